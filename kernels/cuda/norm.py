"""Batch norm on a GPU: norm.cu's kernels with the arrays, and the division of the work, that they need.

A thread takes one column of the matrix (M, C), or as many as one 16-byte load brings, and walks down its rows. The
division depends on the shape alone, never on the machine: the sums are the same on every GPU and on the emulator.
Nothing here waits for the GPU.
"""

import numpy as np

from ..layout import array_module, from_rows, rows
from .launch import blocks, empty, launch, type_name

THREADS = 256  # of a block
TILE = 64  # columns of a block at most, so that 4 rows or more are under way
ROWS_OF_A_THREAD = 4  # at least: fetching the factors of its channels, and adding up its block, are shared by so many
MOST_BLOCKS = 1024  # about what fits on an H100 at once; each writes 2 partial sums a channel


def batch_norm_stats(x):
    """Mean and biased variance of each channel, float64 (C,), in one pass."""
    values = rows(x)
    M, C = values.shape
    lanes, grid, block = division(values)
    partials = empty(values, (2, C, grid[0]), np.float64)
    launch(f"batch_norm_stats<{type_name(values)}, {lanes}>", grid, block, values, partials, np.uint32(M), np.uint32(C))
    mean, var = empty(values, C, np.float64), empty(values, C, np.float64)
    launch(f"batch_norm_moments<{type_name(values)}>", (C,), (128,), values, partials, mean, var, np.uint32(M),
           np.uint32(grid[0]))
    return mean, var


def batch_norm_apply(x, scale, shift, residual, relu):
    """y = x*scale + shift [+ residual], then max(y, 0) if relu; NaN stays NaN."""
    values, added = rows(x), None if residual is None else rows(residual)
    y = empty(values, values.shape)
    lanes, grid, block = division(values)
    launch(f"batch_norm_apply<{type_name(values)}, {lanes}>", grid, block, values, *_factors(values, scale, shift),
           values if added is None else added, y, *map(np.uint32, values.shape), np.int32(added is not None),
           np.int32(relu))
    return from_rows(y, x.shape)


def add_bias(y, bias, residual, relu):
    """y + bias [+ residual], then max(y, 0) if relu, in y's memory; NaN stays NaN."""
    values, added = rows(y), None if residual is None else rows(residual)
    lanes, grid, block = division(values)
    (bias,) = _factors(values, bias)
    launch(f"add_bias<{type_name(values)}, {lanes}>", grid, block, values, bias, bias if added is None else added,
           *map(np.uint32, values.shape), np.int32(added is not None), np.int32(relu))
    return from_rows(values, y.shape)


def batch_norm_grad_sums(g, x, mean, y):
    """sum of g' and sum of g' * (x - mean) for each channel, float64 (C,)."""
    gradient, values, outputs = rows(g), rows(x), None if y is None else rows(y)
    M, C = values.shape
    lanes, grid, block = division(values)
    partials = empty(values, (2, C, grid[0]), np.float64)
    mean = array_module(values).ascontiguousarray(mean, np.float64)
    launch(f"batch_norm_grad_sums<{type_name(values)}, {lanes}>", grid, block, gradient, values, mean,
           gradient if y is None else outputs, partials, np.uint32(M), np.uint32(C), np.int32(y is not None))
    total, products = empty(values, C, np.float64), empty(values, C, np.float64)
    launch("add_partials<double>", (C,), (128,), partials, total, products, np.uint32(grid[0]))
    return total, products


def batch_norm_input_grad(g, x, a, b, d, y, residual):
    """dx = a*g' + b*x + d; dres = g' if residual (g itself where no ReLU stood before it), else None."""
    gradient, values, outputs = rows(g), rows(x), None if y is None else rows(y)
    dx = empty(values, values.shape)
    dres = empty(values, values.shape) if residual and y is not None else None
    lanes, grid, block = division(values)
    launch(f"batch_norm_input_grad<{type_name(values)}, {lanes}>", grid, block, gradient, values,
           *_factors(values, a, b, d), gradient if y is None else outputs, dx, dx if dres is None else dres,
           *map(np.uint32, values.shape), np.int32(y is not None), np.int32(dres is not None))
    if not residual:
        return from_rows(dx, x.shape), None
    return from_rows(dx, x.shape), g if y is None else from_rows(dres, x.shape)


def division(values):
    """(V, grid, block) for kernels that go through matrices like `values` (M, C).

    V: the channels of a thread, 16 bytes where C is a multiple of that, else 1; block: (columns, rows) of threads;
    grid: (blocks that take turns down the rows, tiles of columns).
    """
    M, C = values.shape
    lanes = 16 // values.itemsize
    lanes = lanes if C % lanes == 0 else 1
    tiles = max(blocks(C // lanes, TILE), 1)
    across = max(blocks(C // lanes, tiles), 1)  # tiles of one width: 67 columns are 34 + 33, not 64 + 3
    down = min(THREADS // across, max(M, 1))
    turns = max(MOST_BLOCKS // tiles, 1)
    return lanes, (min(blocks(M, ROWS_OF_A_THREAD * down), turns), tiles), (across, down)


def _factors(like, *factors):
    """(C,) arrays as the kernels read them: contiguous."""
    return [array_module(like).ascontiguousarray(factor) for factor in factors]
