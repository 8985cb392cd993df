"""Random numbers that are a function of (seed, epoch, sample), not of what was drawn before.

With the key (seed, epoch) and sample i reading word i of a stream (see kernels/philox.py), a sample's augmentation is
the same in whatever batch it arrives, and a run that resumes needs to know only its epoch and its batch. Different uses
(the order, the first augmentation, the second, ...) read different streams.
"""

import numpy as np

from tinyres.kernels import philox
from tinyres.kernels.philox import coins, integer_pairs

__all__ = ["MIXUP_PARTNER", "MIXUP_WEIGHT", "SHUFFLE", "checked_key", "coins", "integer_pairs", "permutation", "words"]

SHUFFLE = 0  # the stream of the order of an epoch; augmentation number k reads stream 1 + k
MIXUP_WEIGHT = 2**63  # of the weights, word b for batch b
MIXUP_PARTNER = 2**63 + 1  # of the partners in a batch, word i for sample i
WORD = 2**64


def words(seed: int, epoch: int, stream: int, count: int) -> np.ndarray:
    """Words 0 .. count-1 of a stream: (count,) uint64. Word i does not depend on `count`.

    Raises ValueError unless seed, epoch and stream are integers from 0 to 2^64 - 1.
    """
    key = checked_key(seed, epoch)
    _check("stream", stream)
    return np.asarray(philox.words(key, stream, count))


def checked_key(seed: int, epoch: int) -> tuple[int, int]:
    """The two as the key that the kernels take. Raises ValueError unless they are integers from 0 to 2^64 - 1."""
    _check("seed", seed)
    _check("epoch", epoch)
    return int(seed), int(epoch)


def _check(name: str, value: int) -> None:
    if not isinstance(value, (int, np.integer)) or not 0 <= value < WORD:
        raise ValueError(f"random words: {name} is {value!r}, expected an integer from 0 to 2^64 - 1")


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of `count` samples in an epoch, (count,) int64: the samples sorted by their random words."""
    return np.argsort(words(seed, epoch, SHUFFLE, count), kind="stable")
