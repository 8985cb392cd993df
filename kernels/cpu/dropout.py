"""Dropout with a mask that is never stored: each thread makes the random bits of its values.

Philox4x64-10 (Salmon et al., SC 2011) turns a counter of 4 words into 4 random words, in 10 rounds of two products of
64 x 64 bits; ../philox.py tells what it is for, ../cuda/philox.cuh draws a round. A word serves two
values, so a round of a block serves eight:

    each thread
        for block in its range of the blocks:                 8 values that are neighbours in memory
            4 words of the block's number and the key         20 products, in registers
            8 values: y = x * (bits >= threshold ? scale : 0)

Measured on one thread, a float32 takes 1.4 ns, so a block 11 ns, as long as NumPy takes for its four words alone; the
reference takes 2.4 ns a value. Backward costs the same again. A mask that is kept would be read in 0.3 ns, but it would
have to be made and written first, and be as large as x until then.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .. import reference
from ..layout import nchw, nhwc
from ..memory import empty
from .jit import compiled
from .threads import split

VALUES = 8  # of a block


def dropout(x, p, key):
    """x times the mask of this key, which is made on the way."""
    if x.dtype not in (np.float32, np.float64) or type(x) is not np.ndarray:
        return reference.dropout(x, p, key)
    values = nhwc(x) if x.ndim == 4 else np.ascontiguousarray(x).reshape(x.shape)
    y = empty(values.shape, x.dtype)
    flat, out, scale = values.reshape(-1), y.reshape(-1), x.dtype.type(1 / (1 - p))
    number, threshold = np.uint64(key), reference.dropout_threshold(p)

    def run(slot, start, stop):
        blocks_of_values(flat, out, number, threshold, scale, start, stop)

    split(-(-x.size // VALUES), run, x.size * 1.4)
    return nchw(y) if x.ndim == 4 else y


# ---- compiled ----


@intrinsic
def high_product(typing, a, b):
    """The upper 64 bits of the product of two unsigned integers of 64 bits, one instruction of most processors."""

    def code(context, builder, signature, args):
        wide = ir.IntType(128)
        a, b = (builder.zext(value, wide) for value in args)
        return builder.trunc(builder.lshr(builder.mul(a, b), ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), code


FACTOR0, FACTOR1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
GROWTH0, GROWTH1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
ONE, HALF, LOW = np.uint64(1), np.uint64(32), np.uint64(2**32 - 1)


@compiled
def blocks_of_values(x, y, key, threshold, scale, start, stop):
    """The values of blocks start .. stop-1; of the last block there may be fewer than 8."""
    zero = scale - scale
    for block in range(start, stop):
        c0, c1, c2, c3 = np.uint64(block) + ONE, np.uint64(0), np.uint64(0), np.uint64(0)
        key0, key1 = key, np.uint64(0)
        for _ in range(10):
            high0, low0 = high_product(FACTOR0, c0), FACTOR0 * c0
            high1, low1 = high_product(FACTOR1, c2), FACTOR1 * c2
            c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
            key0, key1 = key0 + GROWTH0, key1 + GROWTH1
        i = block * VALUES
        words = (c0, c1, c2, c3)
        if i + VALUES <= len(x):
            for j in range(4):
                y[i + 2 * j] = x[i + 2 * j] * (scale if words[j] & LOW >= threshold else zero)
                y[i + 2 * j + 1] = x[i + 2 * j + 1] * (scale if words[j] >> HALF >= threshold else zero)
        else:
            for j in range(len(x) - i):
                word = words[j // 2]
                bits = word >> HALF if j % 2 else word & LOW
                y[i + j] = x[i + j] * (scale if bits >= threshold else zero)
