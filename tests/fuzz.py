"""Do the readers of files stand hostile ones? Each gets known attacks, and then valid files that were changed at random
by one who knows their formats (tests/fuzz_inputs.py). Run it by hand; tests/test_fuzz.py does a little of it:

    python tests/fuzz.py                          all readers, ten minutes in all
    python tests/fuzz.py --reader npz --seed 7    the readers whose name contains "npz", other inputs

A reader may return what its contract says, or raise ValueError, OSError or a class of tinyres below them with a message
that names the file. Everything else is a finding: another exception, another library's, a MemoryError that was caught,
a result that breaks the contract, a crash of the interpreter, more than 5 seconds of processor time, more than 512 MiB
of memory. Each reader runs in a process of its own whose address space is bounded. An input whose result is new, or
whose exception came through lines of code that none came through before, is changed further.

It prints a table, keeps the input of each finding in --out, and exits with 1 if there was one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, also where nothing is installed

import fuzz_inputs  # noqa: E402
from fuzz_data import DATA, Files, Reader  # noqa: E402
from fuzz_runs import RUNS  # noqa: E402
from fuzz_torch import TORCH  # noqa: E402

READERS = {**DATA, **RUNS, **TORCH}
MEMORY = 512 << 20  # bytes above what the process had before the call
SECONDS = 5.0  # of processor time a call; of real time twelve times as much, as the machine may be busy
KEPT = 400  # inputs that are changed further
FOUND = 40  # findings after which a reader's run ends


class Slow(BaseException):
    """A call took too much time; not an Exception, so that no reader catches it."""


@dataclass
class Report:
    """What became of one reader's inputs."""

    reader: str
    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)  # kinds of message -> how often
    peak: int = 0  # bytes above the baseline
    longest: float = 0.0  # seconds of processor time
    findings: dict[str, str] = field(default_factory=dict)  # what was found -> folder of the input


# --- one process, one reader ------------------------------------------------------------------------------------------


class Worker:
    """Makes inputs, calls the reader in a folder, judges what it does."""

    def __init__(self, name: str, seed: int, out: Path):
        self.report = Report(name)
        self.seed, self.out = seed, out
        self.reader: Reader = READERS[name]()
        self.folder = out / "now"
        self.corpus = list(self.reader.valid)
        self.lines: set[Any] = set()
        for files in self.reader.valid:  # also warms everything up before memory is measured
            self.write(files)
            self.reader.read(self.folder)
        self.baseline = memory("VmRSS")

    def run(self, seconds: float, count: int) -> None:
        """Try so many inputs, or for so long."""
        unbound = resource.getrlimit(resource.RLIMIT_AS)
        bound_address_space()
        began = time.perf_counter()
        for number in range(count):
            self.report.seconds = time.perf_counter() - began
            if self.report.seconds > seconds or len(self.report.findings) >= FOUND:
                break
            rng = Random(f"{self.seed} {self.report.reader} {number}")
            files = self.reader.hostile[number] if number < len(self.reader.hostile) else self.changed(rng)
            self.try_input(files)
        self.report.seconds = time.perf_counter() - began
        resource.setrlimit(resource.RLIMIT_AS, unbound)

    def changed(self, rng: Random) -> Files:
        files = dict(rng.choice(self.reader.valid if rng.random() < 0.3 else self.corpus))
        others = [content for known in self.reader.valid for content in known.values()]
        for _ in range(rng.choice((1, 1, 1, 2))):
            if not files:
                break
            name = rng.choice(sorted(files))
            kind = rng.random()
            if kind < 0.02:
                del files[name]
            elif kind < 0.03:
                files[name] = files[rng.choice(sorted(files))]
            else:
                files[name] = fuzz_inputs.mutate(files[name], rng, others)
        return self.reader.mend(files, rng)

    def write(self, files: Files) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.folder.mkdir(exist_ok=True)

    def try_input(self, files: Files) -> None:
        """Call the reader, note the outcome, keep the input if it is new or a finding."""
        self.write(files)
        reset_peak()
        before, began = memory("VmRSS"), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            result, error = self.reader.read(self.folder), None
        except KeyboardInterrupt:
            raise
        except BaseException as caught:  # SystemExit too, and what Rust calls a panic
            result, error = None, caught
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        seconds, peak = time.process_time() - began, memory("VmHWM")
        report = self.report
        report.inputs += 1
        report.accepted += error is None
        report.longest = max(report.longest, seconds)
        report.peak = max(report.peak, peak - self.baseline)
        outcome = shape(error, self.folder)
        report.outcomes[outcome] = report.outcomes.get(outcome, 0) + 1
        new = str(result)[:200] if error is None else tuple(line for cause in chain(error) for line in lines(cause))
        if new not in self.lines and sum(map(len, files.values())) < fuzz_inputs.LARGEST:
            self.lines.add(new)
            self.corpus = [*self.corpus[-KEPT:], files]
        fault = self.fault(error)
        if fault is None and peak - before > MEMORY:
            fault = f"took {(peak - before) >> 20} MiB: {outcome}"
        if fault is not None:
            self.keep(fault, files, error)

    def fault(self, error: BaseException | None) -> str | None:
        """What is wrong with an outcome, or None."""
        if error is None:
            return None
        kind, text = type(error), str(error)
        outcome = shape(error, self.folder)
        if isinstance(error, Slow):
            return f"took more than {SECONDS} s"
        ours = issubclass(kind, ValueError) and kind.__module__.startswith("tinyres")
        system = issubclass(kind, OSError) and kind.__module__ == "builtins"
        if not ours and not system and kind not in (ValueError, *self.reader.errors):
            place = traceback.extract_tb(error.__traceback__)[-1]
            return f"{outcome} in {Path(place.filename).name} line {place.lineno}"
        for cause in chain(error):
            if isinstance(cause, MemoryError) and lines(cause)[-1][0] != "ast.py":  # there, of too deep a nesting
                return f"hides a MemoryError: {outcome}"
        if str(self.folder) not in text:
            return f"does not name the file: {outcome}"
        return f"message of {len(text):,} characters" if len(text) > 200_000 else None

    def keep(self, fault: str, files: Files, error: BaseException | None) -> None:
        """Save the input of a finding, once for each kind of finding."""
        kind = re.sub(r"\d+", "#", fault)
        if kind in self.report.findings:
            return
        place = self.out / f"{self.report.reader}-{len(self.report.findings)}".replace(" ", "-")
        for name, content in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        place.mkdir(parents=True, exist_ok=True)
        (place / "finding.txt").write_text(
            fault + "\n" + "".join(traceback.format_exception(error))[-20_000:], errors="backslashreplace")
        self.report.findings[kind] = str(place)


def shape(error: BaseException | None, folder: Path) -> str:
    """The kind of an exception and of its message, without names, numbers and what is quoted."""
    if error is None:
        return "accepted"
    text = str(error)[:1000].replace(str(folder), "FOLDER")
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\(.*?\)|\[.*?\]|\{.*\}", "..", text)
    return f"{type(error).__name__}: " + re.sub(r"[^ ]*[^ a-zA-Z,.:;'][^ ]*", "#", text)[:90]


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def lines(error: BaseException) -> list[tuple[str, int]]:
    """The lines that an exception passed on its way up, those where it began last."""
    return [(Path(place.f_code.co_filename).name, line) for place, line in traceback.walk_tb(error.__traceback__)]


def memory(which: str) -> int:
    """VmRSS, VmHWM or VmSize of this process in bytes; where there is no /proc, the highest that it ever had."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith(which))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def reset_peak() -> None:
    """Let VmHWM begin anew, where the system can."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def too_slow(*_: Any) -> None:
    raise Slow


def bound_address_space() -> None:
    """More than the bound cannot be had, so that a reader that reserves too much fails at once."""
    if Path("/proc/self/status").exists():
        most = memory("VmSize") + MEMORY + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def work(names: list[str], seed: int, seconds: float, count: int, out: Path) -> None:
    """What a worker process does; it prints a report for each reader."""
    signal.signal(signal.SIGPROF, too_slow)
    warnings.simplefilter("ignore")
    for name in names:
        worker = Worker(name, seed, out)
        worker.run(seconds, count)
        print(json.dumps(asdict(worker.report)), flush=True)


# --- all processes ----------------------------------------------------------------------------------------------------


def fuzz(names: list[str], seed: int, seconds: float, count: int, out: Path, program: str = __file__) -> list[Report]:
    """Run readers in one process; a crash or hang ends it and is a finding, and those that are left get another."""
    reports: list[Report] = []
    while len(reports) < len(names):
        left = names[len(reports):]
        command = [sys.executable, program, "--worker", *left, "--seed", str(seed), "--seconds", str(seconds),
                   "--inputs", str(count), "--out", str(out)]
        shutil.rmtree(out / "now", ignore_errors=True)
        with open(out / "stdout", "w+") as stdout:
            process = subprocess.Popen(command, stdout=stdout, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
            hung = watch(process, out / "now")
            if process.returncode > 0:
                raise RuntimeError(f"the fuzzer itself failed, status {process.returncode}: see above")
            stdout.seek(0)
            done = [Report(**json.loads(line)) for line in stdout.read().splitlines()]
        reports += done
        if len(done) < len(left):
            name = left[len(done)]
            place = out / f"{name}-crash".replace(" ", "-")
            shutil.copytree(out / "now", place, dirs_exist_ok=True)
            what = "hung" if hung else f"crashed the interpreter (status {process.returncode})"
            reports.append(Report(name, findings={what: str(place)}))
    return reports


def watch(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Wait for the end; whether it had to be killed, since no new input was written for a minute."""
    while True:
        try:
            process.wait(timeout=1)
            return False
        except subprocess.TimeoutExpired:
            pass
        try:
            idle = time.time() - folder.stat().st_mtime
        except FileNotFoundError:  # between two inputs
            continue
        if idle > 12 * SECONDS:
            process.kill()
            process.wait()
            return True


def table(reports: list[Report]) -> str:
    """The figures, as a table of Markdown."""
    rows = ["| reader | inputs | a second | accepted | kinds of outcome | peak MiB | longest s | findings |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for r in reports:
        rows.append(f"| {r.reader} | {r.inputs:,} | {r.inputs / max(r.seconds, 1e-9):,.0f} | {r.accepted:,} | "
                    f"{len(r.outcomes)} | {r.peak / 2**20:.1f} | {r.longest:.2f} | {len(r.findings)} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="for all readers together")
    parser.add_argument("--inputs", type=int, default=10**12, help="at most so many a reader")
    parser.add_argument("--reader", default="", help="only those whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the inputs of findings; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker, given.seed, given.seconds, given.inputs, given.out)
        return 0
    names = [name for name in READERS if given.reader in name]
    if not names:
        parser.error(f"no reader is called {given.reader!r}; there are {', '.join(READERS)}")
    fast = Path("/dev/shm")
    parent = fast if os.access(fast, os.W_OK) else None
    out = given.out or Path(tempfile.mkdtemp(prefix="tinyres-fuzz-", dir=parent))
    out.mkdir(parents=True, exist_ok=True)
    reports = []
    for name in names:
        reports += fuzz([name], given.seed, given.seconds / len(names), given.inputs, out)
        print(f"{name}: {reports[-1].inputs:,} inputs, findings: {len(reports[-1].findings)}", file=sys.stderr)
    print(table(reports))
    for report in reports:
        for what, place in report.findings.items():
            print(f"{report.reader}: {what}\n    {place}")
    if given.json:
        print(json.dumps({"seed": given.seed, "readers": [asdict(report) for report in reports]}))
    return int(any(report.findings for report in reports))


if __name__ == "__main__":
    sys.exit(main())
