"""From where an op was called: a line of the user's, or of a network of the library, which uses the engine, too."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_SHOWN = (*(str(_PACKAGE / part) + os.sep for part in ("models", "analysis", "cli", "teach")),
          str(_PACKAGE / "stepper" / "example.py"))  # they use the engine, as a user's file does
_OURS = (str(_PACKAGE) + os.sep, str((_PACKAGE / "kernels").resolve()) + os.sep)


def call_site() -> tuple[str, str, int]:
    """Where the innermost frame outside the engine stands (the library's own networks count as outside), which function
    of the engine it called, and a number that tells that call from others."""
    frame, inner = sys._getframe(1), None
    while frame is not None:
        path = frame.f_code.co_filename
        where = _place(path)
        if where:
            name = inner.f_code.co_name if inner is not None else ""
            return f"{where}:{frame.f_lineno}", name, id(inner) ^ frame.f_lasti
        frame, inner = frame.f_back, frame  # type: ignore[assignment]
    return "", "", 0


@functools.cache
def _place(path: str) -> str:
    """How a file outside of the engine is shown, "" for one of the engine's."""
    if path.startswith(_SHOWN):
        return os.path.relpath(path, _PACKAGE.parent).replace(os.sep, "/")
    return "" if path.startswith(_OURS) else os.path.basename(path)
