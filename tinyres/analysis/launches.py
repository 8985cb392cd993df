"""The launches of CUDA kernels, watched: which instance ran, on what, and how to run it once more.

On a GPU every launch goes through a compiled function that `launch.function` returns, on the emulator through
`emulator.launch`: each is replaced, for a while, by one that does the same and then tells.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch of the instance `name`; again() launches it once more, with the same arrays."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: tuple[Any, ...]
    shared: int
    again: Callable[[], object]

    @property
    def arrays(self) -> list[Any]:
        """The different arrays that it was given."""
        return list({id(a): a for a in self.args if getattr(a, "ndim", 0) or hasattr(a, "get")}.values())

    @property
    def bytes(self) -> int:
        """Of its arrays, each once."""
        return sum(a.nbytes for a in self.arrays)


@contextlib.contextmanager
def watched(seen: Callable[[Launch], None]) -> Iterator[None]:
    """Inside, `seen(launch)` follows every launch that no other launch makes, as a stand-in for CuPy does that runs its
    kernels on the emulator. All is put back at the end, after an exception too."""
    place: Any = importlib.import_module("tinyres.kernels.cuda.launch")
    emulator: Any = importlib.import_module("tinyres.kernels.cuda.emulator")
    function, emulated = place.function, emulator.launch
    depth = 0

    def noted(run: Callable[[], object], kernel: Any, grid: Any, block: Any, args: Any, shared: int) -> None:
        nonlocal depth
        depth += 1
        try:
            run()
        finally:
            depth -= 1
        if not depth:
            seen(Launch(kernel.name, tuple(grid), tuple(block), tuple(args), shared, run))

    def watching_function(kernel: Any) -> Callable[..., None]:
        compiled = function(kernel)

        def call(grid: Any, block: Any, args: Any, shared_mem: int = 0) -> None:
            noted(partial(compiled, grid, block, args, shared_mem=shared_mem), kernel, grid, block, args, shared_mem)

        return call

    def watching_emulator(kernel: Any, grid: Any, block: Any, args: Any, shared: int = 0) -> None:
        noted(partial(emulated, kernel, grid, block, args, shared), kernel, grid, block, args, shared)

    try:
        place.function, emulator.launch = watching_function, watching_emulator
        yield
    finally:
        place.function, emulator.launch = function, emulated
