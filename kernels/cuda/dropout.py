"""Dropout with the mask made on the spot: see dropout.cu."""

import numpy as np

from ..layout import array_module, nchw, nhwc
from ..reference import dropout_threshold
from .launch import blocks, empty, launch, type_name

VALUES = 8 * 256  # of a block: 8 from each thread's four words


def dropout(x, p, key):
    """x times the mask of this key, without the mask."""
    values = nhwc(x) if x.ndim == 4 else array_module(x).ascontiguousarray(x).reshape(x.shape)
    y = empty(values, values.shape)
    launch(f"dropout<{type_name(x)}>", (blocks(x.size, VALUES),), (256,), values, y, np.uint32(x.size), np.uint64(key),
           dropout_threshold(p), x.dtype.type(1 / (1 - p)))
    return nchw(y) if x.ndim == 4 else y


def philox_words(like, key, stream, first, count):
    """(count,) uint64 where `like` is: words first, first + 1, ... of a stream for key, a pair; see philox.cuh."""
    words = empty(like, (count,), np.uint64)
    launch("philox_words", (blocks(count, 256),), (256,), words, np.uint32(count), *map(np.uint64, key),
           np.uint64(stream), np.uint64(first))
    return words
