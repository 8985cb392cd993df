"""How the emulator runs kernels: in which order, on how many processors, with which checks."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

ORDERS = ("forward", "reverse", "random")


@dataclass(frozen=True)
class Settings:
    """order: of threads and blocks; seed: of the random order; workers: how many blocks run at a time, each on an
    operating-system thread; sanitize: the slow build that checks every access; guard: arrays in guarded memory."""

    order: str = "forward"
    seed: int = 0
    workers: int = 1
    sanitize: bool = False
    guard: bool = True

    def __post_init__(self):
        if self.order not in ORDERS:
            raise ValueError(f"emulator.settings: there is no order {self.order!r}: choose one of {', '.join(ORDERS)}")
        for name, value, least in (("seed", self.seed, 0), ("workers", self.workers, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"emulator.settings: {name} is {value!r}, expected an int of at least {least}")


_current = Settings()


def current():
    """The settings that launches go by now."""
    return _current


@contextlib.contextmanager
def settings(**changes):
    """`with settings(order="reverse"):` other settings for the block; what is not named stays as it is.

    order: "forward", "reverse" or "random", with seed: in which order threads run, and blocks. A missing barrier gives
    another result in one of them; a kernel that is right gives the same bits in all.
    workers: so many blocks run at once. sanitize: kernels are built once more with every access checked: races of
    shared memory and between blocks, reads of what nobody wrote, bounds to the byte, alignment, overflows; some 10
    times slower, and with one worker.
    guard: arrays are copied to guarded memory for the launch (memory.py); without, an access outside may crash Python.
    Raises ValueError for a value that makes no sense, TypeError for a name that is none of these.
    """
    global _current
    before = _current
    _current = replace(before, **changes)
    try:
        yield
    finally:
        _current = before
