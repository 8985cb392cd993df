"""What benchmarks/gpu_check.sh writes: what is there, and after each part the summary of all parts so far.

    python gpu_summary.py facts                       what the machine has, as JSON
    python gpu_summary.py collect WORK OUTDIR         WORK/parts.tsv and the parts' outputs -> OUTDIR

WORK/parts.tsv has a line for each part, "NAME<tab>exit status<tab>seconds<tab>limit<tab>why it was not run"; NAME.out
and NAME.err are what it wrote, NAME.xml is the report of a part that ran tests. OUTDIR gets summary.txt, summary.json
(parts, and the JSON line that each part ended with), and logs.tar.gz with everything in WORK, long logs cut in the
middle. It is written anew after every part, so that what is killed leaves what it had. Needs nothing but Python.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

PACKAGES = ("numpy", "numba", "cupy-cuda13x", "cupy-cuda12x", "cupy", "torch", "triton", "ml_dtypes", "pytest",
            "hypothesis", "pytest-xdist", "typer", "rich", "tqdm", "safetensors", "matplotlib", "threadpoolctl",
            "pooch")
TIMED_OUT = {124, 137}
KEPT = (".out", ".err", ".xml", ".tsv", ".json", ".jsonl", ".csv", ".png")
LONGEST = 2**20  # bytes of a log that are kept: the first half and the last
QUERY = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit",
         "--format=csv,noheader"]
NAMES = {"failed": "FAILED", "timed out": "TIMED OUT"}


def facts() -> dict[str, Any]:
    """Python, system, processors, the versions of packages (None: not installed), and what nvidia-smi says."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {"python": platform.python_version(), "system": platform.platform(), "processors": os.cpu_count(),
            "nvidia_smi": _run(QUERY), "compute_sanitizer": _run(["compute-sanitizer", "--version"]),
            "versions": versions}


def _run(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def collect(work: Path, out: Path) -> dict[str, Any]:
    """Write all three files; returns what summary.json holds."""
    parts = [_part(work, *line.split("\t")) for line in (work / "parts.tsv").read_text().splitlines()]
    counted = {verdict: sum(part["verdict"] == verdict for part in parts) for verdict in
               ("passed", "failed", "timed out", "not run")}
    found = {"written": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
             "rehearsal": (work / "rehearsal").exists(), "seconds": sum(part["seconds"] for part in parts),
             "counted": counted, "parts": parts}
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "summary.json", (json.dumps(found, indent=1) + "\n").encode())
    _write(out / "summary.txt", (text(found) + "\n").encode())
    _write(out / "logs.tar.gz", _packed(work))
    return found


def _part(work: Path, name: str, status: str, seconds: str, limit: str, why: str = "") -> dict[str, Any]:
    """A part: its verdict, times, a few words of what it found, its last lines if it failed, its JSON."""
    part: dict[str, Any] = {"name": name, "status": int(status), "seconds": int(seconds), "limit": int(limit),
                            "result": _json_line(work / f"{name}.out")}
    if why:
        return {**part, "verdict": "not run", "words": why}
    part["verdict"] = "passed" if part["status"] == 0 else "timed out" if part["status"] in TIMED_OUT else "failed"
    part["words"] = ""
    report = work / f"{name}.xml"
    if report.exists():
        tests = part["tests"] = _tests(report)
        part["words"] = ", ".join(f"{count} {what}" for what, count in tests.items() if count)
        if part["verdict"] == "passed" and not tests["passed"]:
            part["verdict"] = "not run" if (work / "rehearsal").exists() else "failed"
            part["words"] += ": no test ran"
    if part["verdict"] in ("failed", "timed out"):
        part["tail"] = _tail(work / f"{name}.out", 15) + _tail(work / f"{name}.err", 15)
    return part


def _tests(report: Path) -> dict[str, int]:
    """How many tests passed, failed, and were skipped, of a report in JUnit's XML; an error is a failure."""
    try:
        suites = ElementTree.parse(report).getroot().iter("testsuite")
        count = {what: 0 for what in ("tests", "failures", "errors", "skipped")}
        for suite in suites:
            for what in count:
                count[what] += int(suite.get(what, 0))
    except ElementTree.ParseError:
        return {"passed": 0, "failed": 0, "skipped": 0}
    failed = count["failures"] + count["errors"]
    return {"passed": count["tests"] - failed - count["skipped"], "failed": failed, "skipped": count["skipped"]}


def _json_line(path: Path) -> Any:
    """The JSON object in the last line that is one; None if there is none."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                return None
    return None


def _tail(path: Path, count: int) -> list[str]:
    return [line[:300] for line in path.read_text(errors="replace").splitlines()[-count:]] if path.exists() else []


def _packed(work: Path) -> bytes:
    """WORK as a .tar.gz, without hidden folders (compiled kernels) and checkpoints."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for path in sorted(path for path in work.rglob("*") if path.is_file() and path.suffix in KEPT):
            if any(part.startswith(".") for part in path.relative_to(work).parts):
                continue
            content = path.read_bytes()
            if len(content) > LONGEST:
                gap = f"\n... {len(content) - LONGEST:,} bytes left out ...\n".encode()
                content = content[:LONGEST // 2] + gap + content[-LONGEST // 2:]
            entry = tarfile.TarInfo(f"logs/{path.relative_to(work)}")
            entry.size, entry.mtime = len(content), int(time.time())
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    os.replace(new, path)


def text(found: dict[str, Any]) -> str:
    """The summary for people."""
    kind = "REHEARSAL without a GPU: its numbers mean nothing\n" if found["rehearsal"] else ""
    lines = [f"{kind}gpu_check, {found['written']}", ""]
    for part in found["parts"]:
        verdict = NAMES.get(part["verdict"], part["verdict"])
        lines.append(f"{verdict:>9}  {part['seconds']:>4} s of {part['limit']:>3}  {part['name']}"
                     + (f": {part['words']}" if part["words"] else ""))
        lines += [f"{'':>23}| {line}" for line in part.get("tail", [])]
    counted = ", ".join(f"{count} {verdict}" for verdict, count in found["counted"].items() if count)
    return "\n".join([*lines, "", f"{counted}; {found['seconds']} seconds"])


def main(arguments: list[str]) -> int:
    if arguments == ["facts"]:
        print(json.dumps(facts()))
        return 0
    if len(arguments) == 3 and arguments[0] == "collect":
        found = collect(Path(arguments[1]), Path(arguments[2]))
        return 1 if found["counted"]["failed"] + found["counted"]["timed out"] else 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
