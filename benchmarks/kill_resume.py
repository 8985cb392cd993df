"""Kill a training run again and again with SIGKILL, resume it each time, and compare its end with an undisturbed run's.

    python benchmarks/kill_resume.py --kills 30 -- --data digits --epochs 150
    python benchmarks/kill_resume.py --kills 30 -- --data cifar10 --model resnet20 --epochs 1

What follows -- goes to `tinyres train`. Every second kill waits until a file is being written, so that half of them hit
a checkpoint or a log; the others come after a random time, also while Python starts. If the run ends before all kills
are done, another one is begun. Exit status 1 if any run ends with other weights, log rows or test results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyres.checkpoint import read_checkpoint

TIMES = ("seconds", "images_per_second")


@dataclass
class Kill:
    """One kill: after how many seconds of this process, at which step by the checkpoint, what was half written."""

    after: float
    step: int | None
    half_written: list[str]


def command(options: list[str], folder: Path, every: int) -> list[str]:
    """The command that begins the run, or goes on with it once there is something to go on with."""
    start = [sys.executable, "-m", "tinyres", "train", "--quiet", "--checkpoint-every", str(every)]
    if (folder / "config.json").is_file():
        return [*start, "--resume", str(folder)]
    return [*start, "--out", str(folder), *options]


def lives(options: list[str], folder: Path, every: int, draw: random.Random, longest: float) -> Iterator[Kill]:
    """Run to the end, killing each process on the way; a caller that takes no more kills leaves the run as it is."""
    number = 0
    while True:
        number += 1
        began = time.perf_counter()
        process = subprocess.Popen(command(options, folder, every), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = began + draw.uniform(0.1, longest)
        while process.poll() is None:
            writing = [path.name for path in folder.glob(".*.tmp")]
            if time.perf_counter() > deadline and (number % 2 == 1 or writing):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.0005 if number % 2 == 0 else 0.005)
        _, errors = process.communicate()
        if process.returncode == 0:
            return
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the run failed: {errors.decode()}")
        left = sorted(path.name for path in folder.glob(".*.tmp"))
        yield Kill(time.perf_counter() - began, step_of(folder), left)


def step_of(folder: Path) -> int | None:
    """How many steps the folder's checkpoint has done; None if there is none yet."""
    path = folder / "checkpoint.json"
    return json.loads(path.read_bytes())["progress"]["at"]["step"] if path.is_file() else None


def ending(folder: Path) -> dict[str, Any]:
    """What two runs must share: every array of the checkpoint, the random state, the log without times, the result."""
    saved, arrays = read_checkpoint(folder)
    result = json.loads((folder / "result.json").read_text())
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len((folder / "log.csv").read_text().splitlines()) == len(rows) + 1
    return {"arrays": arrays, "random": saved["random"], "optimizer": saved["optimizer"],
            "schedule": saved["schedule"], "average": saved["average"],
            "log": [{key: value for key, value in row.items() if key not in TIMES} for row in rows],
            "result": [result[key] for key in ("accuracy", "correct", "loss")]}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The parts in which two endings differ; arrays are compared bit by bit."""
    a, b = one["arrays"], other["arrays"]
    found = [name for name in sorted(a.keys() | b.keys())
             if name not in a or name not in b or a[name].dtype != b[name].dtype or a[name].shape != b[name].shape
             or a[name].tobytes() != b[name].tobytes()]
    return found + [part for part in one if part != "arrays" and one[part] != other[part]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--checkpoint-every", type=int, default=5, help="batches")
    parser.add_argument("--longest", type=float, default=6.0, help="seconds that a process lives at most")
    parser.add_argument("options", nargs="*", help="of tinyres train, after --")
    given = parser.parse_args()
    draw, kills, wrong, runs = random.Random(given.seed), [], 0, 0
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        began = time.perf_counter()
        subprocess.run(command(given.options, base / "undisturbed", given.checkpoint_every), check=True,
                       stdout=subprocess.DEVNULL)
        print(f"undisturbed: {time.perf_counter() - began:.0f} s", flush=True)
        expected = ending(base / "undisturbed")
        while len(kills) < given.kills:
            folder = base / f"killed{runs}"
            for kill in lives(given.options, folder, given.checkpoint_every, draw, given.longest):
                kills.append(kill)
                print(f"kill {len(kills)}: after {kill.after:.2f} s, checkpoint of step {kill.step}, half written: "
                      f"{', '.join(kill.half_written) or 'nothing'}", flush=True)
                if len(kills) == given.kills:
                    break
            if not (folder / "result.json").is_file():
                subprocess.run(command(given.options, folder, given.checkpoint_every), check=True,
                               stdout=subprocess.DEVNULL)
            found = differences(expected, ending(folder))
            runs, wrong = runs + 1, wrong + bool(found)
            print(f"run {runs}: {'bit-identical' if not found else 'DIFFERS in ' + ', '.join(found[:5])}", flush=True)
    half = sum(bool(kill.half_written) for kill in kills)
    print(f"{len(kills)} kills, {half} of them while a file was being written, over {runs} runs of "
          f"{expected['log'][-1]['iterations']} steps; runs that ended differently: {wrong}; "
          f"{os.cpu_count()} cores, tinyres train {' '.join(given.options)}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
