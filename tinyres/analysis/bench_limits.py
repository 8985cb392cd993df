"""What this machine could do at best, measured: multiply-adds, and bytes to and from memory. The roof of a roofline.

A kernel that does F operations and moves B bytes takes at least max(F / peak, B / bandwidth): no program is faster
than the arithmetic units or than the memory (Williams, Waterman and Patterson 2009, "Roofline"). The peak is that of
this processor at its present clock, so it is measured with the kernels' own register tiles (kernels/cpu/simd.py), in a
loop that does nothing else:

    each thread, again and again
        for k in 128:  tile += A[:, k] (outer) B[k]      A and B stay in the first cache, the tile in registers

The bandwidth is that of a copy, on as many threads; a byte read and a byte written count as two.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from tinyres.kernels.cpu.jit import OPTIONS
from tinyres.kernels.cpu.simd import ROWS, WIDTH, tile_add_product, tile_store, tile_width, tile_zeros
from tinyres.kernels.cpu.threads import count, split

STEPS = 128  # k above: A takes 4 KiB and B 16, of a first cache of 32 KiB or more
REPEATS = 4000  # some milliseconds
MEMORY_BYTES = 128 * 2**20  # of an array that no cache holds
ALL_THREADS = 1e12  # nanoseconds: work that is worth every thread


@numba.njit(**OPTIONS)  # not kept on disk: the cache of the kernels knows only the kernels' files
def _multiply_adds(A, B, C, repeats):
    for _ in range(repeats):
        tile = tile_zeros(A, ROWS, 2)
        for k in range(STEPS):
            tile = tile_add_product(tile, A, k, STEPS, B, k * tile_width(tile))
        tile_store(tile, C, 0, WIDTH, WIDTH)


def multiply_adds() -> tuple[Callable[[], None], int]:
    """A function that multiplies and adds float32 on all threads, and how many operations a call of it does."""
    threads = count()
    A, B = np.ones(ROWS * STEPS, np.float32), np.ones(STEPS * WIDTH, np.float32)
    results = np.zeros((threads, ROWS * WIDTH), np.float32)

    def work(slot: int, start: int, stop: int) -> None:
        _multiply_adds(A, B, results[slot], REPEATS)

    def run() -> None:
        split(threads, work, ALL_THREADS)

    run()  # compiles
    if not (results == STEPS).all():
        raise RuntimeError(f"multiply_adds: register tiles gave {np.unique(results)}, expected {STEPS}: run "
                           "tests/test_conv_cpu.py, the tests of kernels/cpu/simd.py")
    return run, 2 * threads * REPEATS * STEPS * ROWS * WIDTH


def copy(nbytes: int) -> tuple[Callable[[], np.ndarray], int]:
    """A function that copies an array of so many bytes on all threads and returns the copy, and the bytes that it
    moves: twice as many."""
    source = np.arange(nbytes // 4, dtype=np.float32)
    target = np.zeros_like(source)

    def work(slot: int, start: int, stop: int) -> None:
        target[start:stop] = source[start:stop]

    def run() -> np.ndarray:
        split(len(source), work, ALL_THREADS)
        return target

    return run, 2 * source.nbytes
