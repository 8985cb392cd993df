"""One line of what `tinyres doctor` found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True)
class Finding:
    """verdict: "ok"; "note", slow, or not there and not needed; "problem", something needed is broken.

    fix: a command or a setting that mends it. facts: numbers for a program to read.
    """

    name: str
    value: str
    verdict: str = OK
    fix: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def guarded(name: str, probe: Callable[[], list[Finding]]) -> list[Finding]:
    """What a probe finds; a probe that fails becomes a note that says how."""
    try:
        return probe()
    except Exception as error:  # a doctor that falls ill is of no use to anyone
        text = " ".join(str(error).split())
        return [Finding(name, f"could not be looked at: {type(error).__name__}: {text}", NOTE)]
