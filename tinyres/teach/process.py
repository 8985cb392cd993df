"""A learner's cells in a process of their own, which may end at any time or never: what became of each cell.

A cell that does not end is killed with its process; the others then run anew without it and without what it belongs
to. So is a cell that ends its process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyres.teach.answers import Step

PRINTED = 2_000_000  # characters that a cell may print
MEMORY = 8 << 30  # bytes of address space
PATIENCE = 60.0  # seconds for what is not the learner's: to begin, and for a cell of the lesson
POLL = 0.01  # seconds between two looks at the events


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    state: "ended", "stuck" (killed after its time), "died" (it ended the process), "left out" (it belongs to one that
    was stuck or died). failure: of one that ended by an exception, as runner.failed() gives it.
    """

    state: str = "left out"
    seconds: float = 0.0
    printed: str = ""
    failure: dict[str, Any] | None = None


def run(steps: Sequence[Step], limit: float) -> list[Outcome]:
    """Run the steps one after the other; what became of each.

    limit: seconds of wall clock that a step may take which the learner wrote, or which checks it; the lesson's own have
    a minute at least. Raises RuntimeError if the process cannot even begin.
    """
    outcomes = [Outcome() for _ in steps]
    left = list(range(len(steps)))
    while left:
        ran, ended, last = _once([steps[i] for i in left], limit)
        for place, outcome in zip(left, ran, strict=False):
            outcomes[place] = outcome
        if ended:
            return outcomes
        bad = left[len(ran)]
        outcomes[bad] = last
        group = steps[bad].exercise
        left = [i for i in left if i != bad and not (group and steps[i].exercise == group)]
        for i, step in enumerate(steps):
            if i > bad and group and step.exercise == group:
                outcomes[i] = Outcome()
    return outcomes


def _once(steps: Sequence[Step], limit: float) -> tuple[list[Outcome], bool, Outcome]:
    """One process: what became of the first cells, whether it was all of them, and else of the next one."""
    with tempfile.TemporaryDirectory(prefix="tinyres-check-", ignore_cleanup_errors=True) as place:
        work, job, events = Path(place) / "work", Path(place) / "job.json", Path(place) / "events"
        work.mkdir()
        events.touch()
        cells = [{"label": step.label, "source": step.source} for step in steps]
        job.write_text(json.dumps({"cells": cells, "printed": PRINTED, "memory": MEMORY}), encoding="utf-8")
        errors = Path(place) / "errors"
        with open(errors, "wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "tinyres.teach.runner", str(job), str(events)], cwd=work, env=_environment(),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
        try:
            ran, ended, last = _watch(child, events, [
                limit if step.exercise or step.is_own else max(limit, PATIENCE) for step in steps])
        finally:
            _end(child)
        if not ended and not events.read_bytes():
            words = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["no word"]
            raise RuntimeError(f"teach: the process that runs the answers could not begin: {words[0]}")
        return ran, ended, last


def _watch(child: subprocess.Popen[bytes], path: Path, limits: Sequence[float]) -> tuple[list[Outcome], bool, Outcome]:
    outcomes: list[Outcome] = []
    began, rest, limit = time.monotonic(), b"", PATIENCE
    with open(path, "rb") as events:
        while True:
            gone = child.poll() is not None  # asked before the events are read, so that none is missed
            *lines, rest = (rest + events.read()).split(b"\n")
            for line in lines:
                event, began = json.loads(line), time.monotonic()
                if event["state"] == "done":
                    return outcomes, True, Outcome()
                limit = limits[event["cell"]]
                if event["state"] == "ended":
                    outcomes.append(Outcome("ended", event["seconds"], event["printed"], event["failure"]))
            if gone:
                return outcomes, False, Outcome("died", failure={"status": child.returncode})
            if time.monotonic() - began > limit:
                return outcomes, False, Outcome("stuck", limit)
            time.sleep(POLL)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the process and what it started."""
    with contextlib.suppress(OSError, AttributeError):  # there is no killpg on Windows
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        child.kill()
    child.wait()


def _environment() -> dict[str, str]:
    """That of this process, with this tinyres, and with figures that open no window."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "MPLBACKEND": "Agg", "PYTHONIOENCODING": "utf-8"}
