"""Random numbers that are a function of (seed, epoch, sample), not of what was drawn before.

Philox is a counter-based generator: word number i of a stream is computed from i and a key, with no state in between
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). With the key (seed, epoch) and sample i reading
word i, a sample's augmentation is the same in whatever batch it arrives, and a run that resumes needs to know only its
epoch and its batch. Different uses (the order, the first augmentation, the second, ...) read different streams: the
stream's number is the top word of the 256-bit counter, so that streams cannot overlap.

Only the raw words are NumPy's: they are fixed for ever, while the methods of `numpy.random.Generator` may change
between releases (NEP 19). What is derived from them is derived here.
"""

import numpy as np

SHUFFLE = 0  # the stream of the order of an epoch; augmentation number k reads stream 1 + k
MIXUP_WEIGHT = 2**63  # of the weights, word b for batch b
MIXUP_PARTNER = 2**63 + 1  # of the partners in a batch, word i for sample i
WORD = 2**64


def words(seed: int, epoch: int, stream: int, count: int) -> np.ndarray:
    """Words 0 .. count-1 of a stream: (count,) uint64. Word i does not depend on `count`.

    Raises ValueError unless seed, epoch and stream are integers from 0 to 2^64 - 1.
    """
    for name, value in (("seed", seed), ("epoch", epoch), ("stream", stream)):
        if not isinstance(value, (int, np.integer)) or not 0 <= value < WORD:
            raise ValueError(f"random words: {name} is {value!r}, expected an integer from 0 to 2^64 - 1")
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.asarray(np.random.Philox(key=key, counter=counter).random_raw(count))


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of `count` samples in an epoch, (count,) int64: the samples sorted by their random words."""
    return np.argsort(words(seed, epoch, SHUFFLE, count), kind="stable")


def integer_pairs(random_words: np.ndarray, first: int, second: int) -> tuple[np.ndarray, np.ndarray]:
    """Two independent uniform integers from each word, below `first` and below `second`: two (N,) int64.

    The high and the low half h of a word, 32 bits each, become h * bound / 2^32 rounded down (Lemire, "Fast random
    integer generation in an interval", 2019, without the rejection step: the bias is below bound / 2^32).
    """
    low_half = np.uint64(2**32 - 1)
    shift = np.uint64(32)
    high = (random_words >> shift) * np.uint64(first) >> shift
    low = (random_words & low_half) * np.uint64(second) >> shift
    return high.astype(np.int64), low.astype(np.int64)


def coins(random_words: np.ndarray) -> np.ndarray:
    """One fair coin from each word, its top bit: (N,) bool."""
    return (random_words >> np.uint64(63)).astype(bool)
