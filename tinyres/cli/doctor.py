"""`tinyres doctor`: whether the installation and the machine are in order, and what would mend what is not."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Annotated

import typer

from tinyres.cli import setup

if TYPE_CHECKING:
    from tinyres.analysis.finding import Finding

COLORS = {"ok": "green", "note": "yellow", "problem": "red"}
LEFT = 24  # places of a line for verdict and name


def diagnose(
    warm: Annotated[bool, typer.Option("--warm", help="Only compile all kernels that training needs, ahead of the "
                                       "first run.")] = False,
    json: setup.Json = False,
) -> None:
    """Look at the installation, the machine and the data.

    Each line is ok, a note (slow, or not there and not needed) or a problem (something needed is broken), with the
    command that mends it. The exit status is 1 if there is a problem.
    """
    from tinyres.analysis.doctor import examine

    if warm:
        return _warm(json)
    began = time.perf_counter()
    found = []
    for finding in examine():
        found.append(finding)
        if not json:
            print(_lines(finding), flush=True)
    problems = [finding.name for finding in found if finding.verdict == "problem"]
    notes = [finding.name for finding in found if finding.verdict == "note"]
    result = {"passed": not problems, "problems": problems, "notes": notes,
              "findings": [finding.as_dict() for finding in found], "seconds": round(time.perf_counter() - began, 2)}
    text = f"problems: {', '.join(problems)}" if problems else "everything that is needed works"
    setup.report(result, f"\n{text}" + (f"; notes: {', '.join(notes)}" if notes else ""), json)
    if problems:
        raise typer.Exit(1)


def _warm(json: bool) -> None:
    """Compile ahead; a line on stderr for each kernel."""
    from tinyres.analysis.warm import warm
    from tinyres.kernels.cpu.jit import silent

    def tell(name: str | None, done: int) -> None:
        if name is not None:
            setup.say(f"{done:3} done; compiling {name}")

    found = warm(silent if json else tell)
    text = (f"{found.compiled} kernels compiled, {found.loaded} taken from the cache, in {found.seconds:.1f} s; "
            + (found.folder or "no folder can be written, so every process compiles them again: set NUMBA_CACHE_DIR"))
    setup.report(found.as_dict(), text, json)


def _lines(finding: Finding) -> str:
    """A finding and its fix; on a terminal wrapped to its width, and the verdict in colour."""
    from tinyres.cli.table import printable

    texts = [printable(finding.value)] + ([f"fix: {printable(finding.fix)}"] if finding.fix else [])
    verdict = f"{finding.verdict:8}"
    if sys.stdout.isatty():
        width = max(30, shutil.get_terminal_size().columns - LEFT)
        texts = [line for text in texts for line in textwrap.wrap(text, width, break_on_hyphens=False)]
        if not os.environ.get("NO_COLOR"):
            verdict = typer.style(verdict, fg=COLORS[finding.verdict])
    return f"{verdict} {finding.name:14} " + f"\n{'':{LEFT}}".join(texts)
