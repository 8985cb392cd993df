"""Random numbers that are a function of a key, a stream and a position, not of what was drawn before.

Philox is a counter-based generator: word number i of a stream is computed from i and a key, with no state in between
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The stream's number is the top word of the
256-bit counter, so that streams cannot overlap. cuda/philox.cuh is the same on the GPU, where every thread computes the
word that it needs; here NumPy computes a whole stream at a time.

Only the raw words are NumPy's: they are fixed for ever, while the methods of `numpy.random.Generator` may change
between releases (NEP 19). What is derived from them is derived here, from words on the host or on a device.
"""

from functools import lru_cache

import numpy as np


def words(key, stream, count):
    """Words 0 .. count-1 of a stream: (count,) uint64. Word i does not depend on `count`. key: two ints below 2^64."""
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.asarray(np.random.Philox(key=np.array(key, dtype=np.uint64), counter=counter).random_raw(count))


@lru_cache(maxsize=8)
def kept_words(key, stream, count):
    """`words`, read-only and kept: for who asks for the same ones batch by batch."""
    found = words(key, stream, count)
    found.flags.writeable = False
    return found


def integer_pairs(random_words, first, second):
    """Two independent uniform integers from each word, below `first` and below `second`: two (N,) int64.

    The high and the low half h of a word, 32 bits each, become h * bound / 2^32 rounded down (Lemire, "Fast random
    integer generation in an interval", 2019, without the rejection step: the bias is below bound / 2^32).
    """
    low_half = np.uint64(2**32 - 1)
    shift = np.uint64(32)
    high = (random_words >> shift) * np.uint64(first) >> shift
    low = (random_words & low_half) * np.uint64(second) >> shift
    return high.astype(np.int64), low.astype(np.int64)


def coins(random_words):
    """One fair coin from each word, its top bit: (N,) bool."""
    return (random_words >> np.uint64(63)).astype(bool)
