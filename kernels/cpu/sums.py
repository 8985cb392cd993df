"""What is told of an array in a few numbers, each array read once.

The stepper describes thousands of arrays, and an instrument that takes longer than what it watches is put away. NumPy
reads an array anew for each number, and converts it to float64 for an exact sum; here one thread takes 44 microseconds
for the three numbers of 1 MiB of float32, and NumPy seven times as long.

    for each piece of 4096 elements:            its three sums are written down
        for each element: three additions       in float64, in vectors

The pieces' sums are then added in their order, so that the bits do not depend on the number of threads.
"""

import numpy as np

from .. import reference
from .jit import compiled
from .threads import split

PIECE = 4096
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def moments(x):
    """x, a vector -> sum, sum of squares, zeros. What is not contiguous or no float, the reference reads."""
    if not _plain(x):
        return reference.moments(x)
    pieces = -(-x.size // PIECE)
    found = np.empty((pieces, 3))
    split(pieces, lambda slot, start, stop: moments_of_pieces(x, found, start, stop), x.size / 6)
    total, squares, zeros = found.sum(0)
    return float(total), float(squares), int(zeros)


def inner(x, y):
    """x, y, vectors -> <x, y>."""
    if not (_plain(x) and _plain(y)):
        return reference.inner(x, y)
    pieces = -(-x.size // PIECE)
    found = np.empty(pieces)
    split(pieces, lambda slot, start, stop: inner_of_pieces(x, y, found, start, stop), x.size / 8)
    return float(found.sum())


def _plain(x):
    return type(x) is np.ndarray and x.dtype in DTYPES and x.flags.c_contiguous


@compiled
def moments_of_pieces(x, found, start, stop):
    """Rows start to stop of `found`: sum, sum of squares and zeros of each piece of x."""
    for piece in range(start, stop):
        part = x[piece * PIECE:(piece + 1) * PIECE]
        total = squares = zeros = 0.0
        for i in range(len(part)):
            v = np.float64(part[i])
            total += v
            squares += v * v
            zeros += 1.0 if v == 0 else 0.0
        found[piece, 0], found[piece, 1], found[piece, 2] = total, squares, zeros


@compiled
def inner_of_pieces(x, y, found, start, stop):
    """found[start:stop]: the inner product of each piece of x and y."""
    for piece in range(start, stop):
        total = 0.0
        a, b = x[piece * PIECE:(piece + 1) * PIECE], y[piece * PIECE:(piece + 1) * PIECE]
        for i in range(len(a)):
            total += np.float64(a[i]) * np.float64(b[i])
        found[piece] = total
