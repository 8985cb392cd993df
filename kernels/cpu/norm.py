"""Batch norm and its two neighbours, residual addition and ReLU, in one pass over memory each.

Batch norm does next to no arithmetic: two or three operations for each value that is read. Its time is the time to
read and write images, so the number of passes is all that counts. An image of M = N*H*W pixels is the matrix (M, C),
and each function here goes over its rows once:

    function                 reads            writes     bytes for float32
    batch_norm_stats         x                           4 M C
    batch_norm_apply         x [residual]     y          8 M C   [+ 4 M C]
    batch_norm_grad_sums     g x [y]                     8 M C   [+ 4 M C]
    batch_norm_input_grad    g x [y]          dx [dres]  12 M C  [+ 4 M C each]

    each thread
        for pixel in its range of rows:
            for channel in C:        contiguous, so the compiler uses vectors; the (C,) factors stay in the first cache

As five NumPy operations (subtract, multiply, add, add the residual, maximum) batch_norm_apply would move 44 M C bytes.
Sums run in float64, one set for each thread, added in the order of the threads.
"""

import numpy as np

from ..layout import from_rows, rows
from ..memory import empty
from .jit import compiled, inlined
from .threads import slots, split


def batch_norm_stats(x):
    """Mean and biased variance from one pass: sums of d and d*d, d = x - x[first row], so that nothing cancels.

    For d = x itself the variance would be the small difference of two large numbers where |mean| is far larger than the
    standard deviation (Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance").
    """
    values = rows(x)
    M, C = values.shape
    lanes, (values,) = widen(values)
    shift = values[0, :C].astype(np.float64)
    shift[~np.isfinite(shift)] = 0  # Inf - Inf would be NaN where the mean is Inf
    tiled_shift = _repeat(shift, lanes)
    cost = values.size / 4
    sums = np.zeros((slots(len(values), cost), 2, lanes * C))

    def run(slot, start, stop):
        stats(values[start:stop], tiled_shift, sums[slot])

    split(len(values), run, cost)
    total, squares = sums.reshape(-1, 2, lanes, C).sum((0, 2))
    return shift + total / M, np.maximum(squares / M - (total / M) ** 2, 0)


def batch_norm_apply(x, scale, shift, residual, relu):
    """y = x*scale + shift [+ residual], then max(y, 0) if relu; NaN stays NaN."""
    lanes, (values, added) = widen(rows(x), residual)
    scale, shift = _repeat(scale, lanes), _repeat(shift, lanes)
    y = empty(values.shape, values.dtype)

    def run(slot, start, stop):
        part = slice(start, stop)
        apply(values[part], scale, shift, range_of(added, part), relu, y[part])

    split(len(values), run, values.size / 4)
    return from_rows(y, x.shape)


def batch_norm_grad_sums(g, x, mean, y):
    """sum of g' and sum of g' * (x - mean), float64 (C,)."""
    lanes, (gradient, values, outputs) = widen(rows(g), x, y)
    mean = _repeat(mean.astype(np.float64), lanes)
    cost = values.size / 2
    sums = np.zeros((slots(len(values), cost), 2, len(mean)))

    def run(slot, start, stop):
        part = slice(start, stop)
        grad_sums(gradient[part], values[part], mean, range_of(outputs, part), sums[slot])

    split(len(values), run, cost)
    total, products = sums.reshape(-1, 2, lanes, x.shape[1]).sum((0, 2))
    return total, products


def batch_norm_input_grad(g, x, a, b, d, y, residual):
    """dx = a*g' + b*x + d; dres = g' if residual (g itself where no ReLU stood before it), else None."""
    lanes, (gradient, values, outputs) = widen(rows(g), x, y)
    a, b, d = _repeat(a, lanes), _repeat(b, lanes), _repeat(d, lanes)
    dx = empty(values.shape, values.dtype)
    dres = empty(values.shape, values.dtype) if residual and y is not None else None

    def run(slot, start, stop):
        part = slice(start, stop)
        input_grad(gradient[part], values[part], a, b, d, range_of(outputs, part), dx[part], range_of(dres, part))

    split(len(values), run, values.size / 2)
    if not residual:
        return from_rows(dx, x.shape), None
    return from_rows(dx, x.shape), g if y is None else from_rows(dres, x.shape)


def widen(first, *images):
    """(lanes, the images as matrices (M/lanes, lanes*C)): several pixels side by side in one row; None stays None.

    A compiled loop over C needs some 64 values before its vectors pay. With few channels, let a row hold several pixels
    and repeat the (C,) factors: the same values in the same memory, in longer rows.
    """
    M, C = first.shape
    lanes = 1
    while lanes < 64 and lanes * C < 64 and M % (2 * lanes) == 0:
        lanes *= 2
    wide = first.reshape(M // lanes, lanes * C)
    return lanes, (wide, *(None if image is None else rows(image).reshape(wide.shape) for image in images))


def _repeat(factors, lanes):
    """(C,) -> (lanes*C,): the factors of a row of several pixels; np.tile takes three times as long."""
    return factors if lanes == 1 else np.concatenate((factors,) * lanes)


def range_of(values, part):
    """The rows of a range; None stays None."""
    return None if values is None else values[part]


# ---- compiled: one range of rows ----
#
# An argument that is None selects another version of the code, compiled without the branch. The two sums take four rows
# at a time, one from each quarter of the range. Four, because the accumulators lie in memory, and are then loaded and
# stored a quarter as often. From four quarters, because a processor fetches ahead along each run of addresses that it
# sees, and one run does not keep the memory busy: images that are not in the cache were read in 0.5 to 0.7 of the time
# that four neighbouring rows took.


@compiled
def stats(values, shift, sums):
    """sums[0] = sum of d, sums[1] = sum of d*d over the rows, with d = values - shift in float64."""
    M, C = values.shape
    total, squares = np.zeros(C), np.zeros(C)
    q = M // 4
    for m in range(q):
        for c in range(C):
            d0, d1 = values[m, c] - shift[c], values[m + q, c] - shift[c]
            d2, d3 = values[m + 2 * q, c] - shift[c], values[m + 3 * q, c] - shift[c]
            total[c] += (d0 + d1) + (d2 + d3)
            squares[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
    for m in range(4 * q, M):
        for c in range(C):
            d = values[m, c] - shift[c]
            total[c] += d
            squares[c] += d * d
    sums[0], sums[1] = total, squares


@compiled
def apply(values, scale, shift, residual, relu, y):
    """One multiply-add a value, with all that follows it while the value is in a register."""
    M, C = values.shape
    for m in range(M):
        for c in range(C):
            v = values[m, c] * scale[c] + shift[c]
            if residual is not None:
                v += residual[m, c]
            y[m, c] = 0 if relu and v <= 0 else v  # not max(v, 0): a NaN must pass


@compiled
def grad_sums(g, values, mean, y, sums):
    """sums[0] = sum of g', sums[1] = sum of g' * (values - mean) over the rows, in float64."""
    M, C = values.shape
    total, products = np.zeros(C), np.zeros(C)
    q = M // 4
    for m in range(q):
        for c in range(C):
            g0, g1 = np.float64(_behind_relu(g, y, m, c)), np.float64(_behind_relu(g, y, m + q, c))
            g2, g3 = np.float64(_behind_relu(g, y, m + 2 * q, c)), np.float64(_behind_relu(g, y, m + 3 * q, c))
            d0, d1 = values[m, c] - mean[c], values[m + q, c] - mean[c]
            d2, d3 = values[m + 2 * q, c] - mean[c], values[m + 3 * q, c] - mean[c]
            total[c] += (g0 + g1) + (g2 + g3)
            products[c] += (g0 * d0 + g1 * d1) + (g2 * d2 + g3 * d3)
    for m in range(4 * q, M):
        for c in range(C):
            gradient = np.float64(_behind_relu(g, y, m, c))
            total[c] += gradient
            products[c] += gradient * (values[m, c] - mean[c])
    sums[0], sums[1] = total, products


@compiled
def input_grad(g, values, a, b, d, y, dx, dres):
    """dx = a*g' + b*values + d, and dres = g' unless dres is None."""
    M, C = values.shape
    for m in range(M):
        for c in range(C):
            gradient = _behind_relu(g, y, m, c)
            dx[m, c] = a[c] * gradient + b[c] * values[m, c] + d[c]
            if dres is not None:
                dres[m, c] = gradient


@inlined
def _behind_relu(g, y, m, c):
    if y is None:
        return g[m, c]
    return g.dtype.type(0) if y[m, c] <= 0 else g[m, c]
