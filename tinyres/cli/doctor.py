"""`tinyres doctor`: whether the installation and the machine are in order, and what would mend what is not."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import typer

from tinyres.cli import setup

if TYPE_CHECKING:
    from tinyres.analysis.finding import Finding

COLORS = {"ok": "green", "note": "yellow", "problem": "red"}
LEFT = 24  # places of a line for verdict and name


def diagnose(json: setup.Json = False) -> None:
    """Look at the installation, the machine and the data.

    Each line is ok, a note (slow, or not there and not needed) or a problem (something needed is broken), with the
    command that mends it. The exit status is 1 if there is a problem.
    """
    from tinyres.analysis.doctor import examine

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
