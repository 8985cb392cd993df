"""What passes between host and device, and what waits for the device.

syncs holds a line for everything that waits until the device is done: `.get()`, `.item()`, float(), bool(), printing,
a boolean mask whose length must be known. copies holds a line for each copy from the host to the device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

syncs: list[str] = []
copies: list[str] = []
_capturing = False
_HERE = str(Path(__file__).parent)


@contextmanager
def capturing() -> Iterator[None]:
    """As while a CUDA graph is captured: whatever cannot be part of one raises RuntimeError."""
    global _capturing
    before, _capturing = _capturing, True
    try:
        yield
    finally:
        _capturing = before


def sync(what: str) -> None:
    """Note that the host waits for the device."""
    refuse(what)
    syncs.append(what + _caller())


def copy_to_device(what: str) -> None:
    """Note a copy from the host."""
    refuse(what)
    copies.append(what + _caller())


def refuse(what: str) -> None:
    """Raise where a graph is being captured."""
    if _capturing:
        raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} while a graph is being captured{_caller()}")


def _caller() -> str:
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return f" at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
