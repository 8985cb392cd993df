"""The matrix product of matmul.cu: which tile, how many blocks, and the three products that a convolution is made of.

The matrices of G groups lie either one after another, an array (G, rows, columns), or side by side in the columns of
one matrix, an array (rows, G*columns): so the channels of a pixel lie, and no group need be copied out of them. All
three functions take either, and so does `im2col.Library`, which does the same with the library's product.

Which tile: the widest of which at most a quarter of the columns lies outside the result, and which still makes blocks
for a whole GPU. With as many rows as a convolution has pixels, the rows do not matter.

    result                                                               columns    tile       outside
    y of 16, 32 channels (ResNet-20), of 10 classes                      16, 32     NARROW     1/2, 0
    y of 64 channels (ResNet-20, first stage of ResNet-18)               64         MEDIUM     0
    dcolumns of 3x3 windows over 16 channels                             144        MEDIUM     1/4
    y of 128 channels and more; dcolumns of 32 channels and more         128, 288   LARGE      0, 1/4

The tile changes no bit of a product, only into how many parts a sum over pixels is cut. (CUTLASS's documentation,
"Efficient GEMM in CUDA", explains tiles at length.)
"""

from __future__ import annotations

import numpy as np

from ..layout import array_module
from .launch import blocks, empty, launch, type_name

TILES = {"LARGE": (128, 128), "MEDIUM": (128, 64), "NARROW": (128, 32)}  # rows, columns, as in matmul.cu
ENOUGH_BLOCKS = 128  # about one for each multiprocessor of a large GPU; fixed, so that results do not depend on the GPU
PARTS_BLOCKS = 512  # of a sum over pixels: four for each multiprocessor, so that none waits long for the last
LEAST_PART = 256  # pixels
STEP = 16  # a part is a multiple of it


def tile(rows, columns, batch):
    """The name of the tile for `batch` results of so many rows and columns."""
    for name in ("LARGE", "MEDIUM"):
        across = blocks(columns, TILES[name][1])
        if 4 * columns >= 3 * across * TILES[name][1] and _tiles(name, rows, columns) * batch >= ENOUGH_BLOCKS:
            return name
    return "NARROW"


def a_bt(a, b, c, groups):
    """c = a b^T in each group: a (M, L), b (K, L), c (M, K). The forward pass: columns times weights."""
    _product("false, true", a, b, c, groups, a.shape[-2], b.shape[-2], _width(a, groups))


def a_b(a, b, c, groups, add=False):
    """c = a b, or c += a b, in each group: a (M, K), b (K, L), c (M, L). The input's gradient, as columns."""
    _product("false, false", a, b, c, groups, a.shape[-2], _width(b, groups), _width(a, groups), add=add)


def sum_bt_a(pairs, c, groups):
    """c (G, K, L) = the sum over all pairs (a, b) of b^T a in each group: a (M, L), b (M, K). The weights' gradient.

    Each product is computed as (a^T b)^T, so that the channels, few or many, are the columns and the tile fits them;
    cut into parts along M (see matmul.cu). The partial sums are added in double. Without pairs c is 0.
    """
    _, K, L = c.shape
    total = None
    for a, b in pairs:
        M = a.shape[-2]
        part = part_length(M, L, K, groups)
        partials = empty(c, (blocks(M, part), groups, L, K))
        _product("true, false", a, b, partials, groups, L, K, M, part)
        add, total = total is not None, empty(c, (groups, L, K), np.float64) if total is None else total
        launch(f"sum_partials<{type_name(c)}>", (blocks(c.size, 32),), (32, 8), partials, total, c,
               *map(np.int32, (len(partials), groups, L, K, add)))
    if total is None:
        c[...] = 0


def part_length(inner, rows, columns, groups):
    """How many of the `inner` terms of a sum one block adds up: a multiple of STEP; it depends on the shapes alone."""
    tiles = _tiles(_tile_of_sum(columns), rows, columns) * groups
    parts = max(1, min(blocks(PARTS_BLOCKS, tiles), inner // LEAST_PART))
    return blocks(blocks(inner, parts), STEP) * STEP


def matmul(a, b):
    """a (M, K) @ b (K, N) -> a new array (M, N). A transpose of a contiguous matrix is not copied, unless both are."""
    a_transposed, b_transposed = (not m.flags.c_contiguous and m.T.flags.c_contiguous for m in (a, b))
    xp, c = array_module(a), empty(a, (a.shape[0], b.shape[1]))
    if a_transposed and not b_transposed:
        sum_bt_a([(xp.ascontiguousarray(b), a.T)], c[None], 1)
    elif b_transposed:
        a_bt(xp.ascontiguousarray(a), b.T, c, 1)
    else:
        a_b(xp.ascontiguousarray(a), xp.ascontiguousarray(b), c, 1)
    return c


def _product(transposed, a, b, c, groups, rows, columns, inner, part=0, add=False):
    """Launch the instance for `transposed`: whether a and b are, in C++. part: a sum over inner in parts so long."""
    part = part or inner
    parts = blocks(inner, part) if inner else 1
    name = _tile_of_sum(columns) if transposed == "true, false" else tile(rows, columns, groups)
    (lda, stride_a), (ldb, stride_b), (ldc, stride_c) = (_memory(m, groups) for m in (a, b, c))
    numbers = rows, columns, inner, lda, ldb, ldc, stride_a, stride_b, stride_c, groups, part, add
    launch(f"matmul<{type_name(a)}, {name}, {transposed}>", (_tiles(name, rows, columns), 1, parts * groups), (256,),
           a, b, c, *map(np.int32, numbers))


def _tile_of_sum(columns):
    return tile(1, columns, ENOUGH_BLOCKS)  # its parts make blocks enough


def _tiles(name, rows, columns):
    """How many tiles cover a matrix."""
    return blocks(rows, TILES[name][0]) * blocks(columns, TILES[name][1])


def _width(a, groups):
    """Columns of one group's matrix."""
    return a.shape[1] // groups if a.ndim == 2 else a.shape[-1]


def _memory(a, groups):
    """Values from one line of a group's matrix to its next, and from one group's matrix to the next."""
    return a.shape[-1], _width(a, groups) if a.ndim == 2 else a.shape[-2] * a.shape[-1]
