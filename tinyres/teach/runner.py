"""The process in which a learner's cells run: python -m tinyres.teach.runner JOB EVENTS.

JOB is a file of JSON: {"cells": [{"label": ..., "source": ...}], "printed": bytes}. To EVENTS a line of JSON is
written before and after each cell. A cell that fails does not stop the next one. It is no sandbox: the code runs with
the rights of the one who checks it, as it does in a notebook.
"""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import sys
import time
import types
from typing import Any

from tinyres.teach.misconception import Misconception

SHOWN = 20_000  # characters kept of what a cell prints


class TooMuch(BaseException):
    """A cell printed more than it may. No Exception, so that a learner's own `except Exception` lets it through."""


class Printed(io.TextIOBase):
    """What a cell prints: its beginning is kept, and past a number of characters it ends the cell."""

    def __init__(self, most: int):
        self.most, self.count, self.kept = most, 0, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.kept += text[:max(0, SHOWN - len(self.kept))]
        self.count += len(text)
        if self.count > self.most:
            raise TooMuch(f"more than {self.most:,} characters")
        return len(text)


def run(cells: list[dict[str, str]], printed: int, tell: Any) -> None:
    """Run the cells in one fresh __main__; tell(event) before and after each."""
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    for place, cell in enumerate(cells):
        tell({"cell": place, "state": "begins"})
        began, output = time.perf_counter(), Printed(printed)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            failure = one(cell["source"], f"<cell {cell['label']}>", main.__dict__)
        tell({"cell": place, "state": "ended", "seconds": time.perf_counter() - began, "printed": output.kept,
              "failure": failure})


def one(source: str, name: str, variables: dict[str, Any]) -> dict[str, Any] | None:
    """Run one cell; what went wrong, or None."""
    lines = source.splitlines(keepends=True)
    linecache.cache[name] = (len(source), None, lines, name)  # for tracebacks, and for inspect.getsource
    try:
        exec(compile(source, name, "exec", dont_inherit=True), variables)
    except BaseException as error:  # KeyboardInterrupt, too: the keys of the terminal do not reach this process
        return failed(error)
    return None


def failed(error: BaseException) -> dict[str, Any]:
    """An exception as data: its class, its words, the tag of a misconception, and the last line of a cell it passed."""
    place, line, trace = "", 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith("<cell "):
            place, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and (error.filename or "").startswith("<cell "):
        place, line = error.filename or "", error.lineno or 0
    try:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
    except Exception:  # an exception of the learner's own, whose __str__ fails
        message = "it cannot say why"
    if isinstance(error, SystemExit):
        message = "" if error.code is None else str(error.code)
    return {"kind": type(error).__name__, "message": message[:SHOWN], "place": place[6:-1], "line": line,
            "tag": str(error.tag) if isinstance(error, Misconception) else None,
            "empty": isinstance(error, NotImplementedError), "ends": isinstance(error, SystemExit),
            "too_much": isinstance(error, TooMuch)}


def limit_memory(most: int) -> None:
    """Bound this process's address space, where the system can, so that a wrong size fails instead of swapping."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main(job: str, events: str) -> None:
    """Run the job, each event told at once, so that it is known how far a process came that dies."""
    with open(job, encoding="utf-8") as file:
        asked = json.load(file)
    limit_memory(asked["memory"])
    with open(events, "a", encoding="utf-8") as out:

        def tell(event: dict[str, Any]) -> None:
            out.write(json.dumps(event) + "\n")
            out.flush()

        run(asked["cells"], asked["printed"], tell)
        tell({"state": "done"})


if __name__ == "__main__":
    main(*sys.argv[1:])
