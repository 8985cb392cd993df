"""Mixup: a batch mixed with itself in another order, images and labels alike.

Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: beyond empirical risk minimization" (ICLR 2018). With partner j of sample i
and a weight from Beta(alpha, alpha), x = weight * x_i + (1 - weight) * x_j, and the target is the same mixture of the
two labels. As in the authors' code the weight is one for the whole batch and the partners are a permutation of it:
their results, which one may want to repeat, were had so.

The weight comes from one random word by the inverse of the distribution function, not by a method that rejects: so it
takes a fixed number of words, and a batch needs no other batch to have been drawn.
"""

import math
from typing import Any

import numpy as np

from tinyres.kernels.layout import array_module

MOST_ALPHA = 1_000.0  # more would be plain averages: 1/2 to within a hundredth
BITS = 24  # a float32 holds both k / 2^24 and 1 - k / 2^24 exactly, so that targets sum to exactly 1


def beta_weight(word: int, alpha: float) -> float:
    """A number from 0 to 1 with distribution Beta(alpha, alpha) from a random word from 0 to 2^64 - 1.

    It is a multiple of 2^-24, below the exact number by less than that (above it, in the upper half): the distribution
    function is inverted by bisection, in the lower half only, as the density is symmetric.
    """
    lower_share = (min(word, 2**64 - 1 - word) + 0.5) / 2**64  # 1 - share would round differently
    low, high = 0, 2 ** (BITS - 1)
    while high - low > 1:
        middle = (low + high) // 2
        if beta_distribution(middle / 2**BITS, alpha) < lower_share:
            low = middle
        else:
            high = middle
    weight = low / 2**BITS
    return weight if word < 2**63 else 1 - weight


def beta_distribution(x: float, alpha: float) -> float:
    """The share of Beta(alpha, alpha) below x, for x from 0 to 1/2: the incomplete beta function, DLMF 8.17.8.

    The series has positive terms only, each less than the one before it: about 50 for alpha up to 1 and some
    12 sqrt(alpha) for a large one.
    """
    if x == 0:
        return 0.0
    term = total = 1.0
    n = 0
    while term > 1e-17 * total:
        term *= (2 * alpha + n) / (alpha + 1 + n) * x
        total += term
        n += 1
    log_beta = 2 * math.lgamma(alpha) - math.lgamma(2 * alpha)
    return math.exp(alpha * (math.log(x) + math.log1p(-x)) - log_beta) / alpha * total


def mix(images: Any, labels: Any, classes: int, partner: Any, weight: float) -> tuple[Any, Any]:
    """Mix each sample with its partner, an index (B,) into the batch; the sample counts `weight`, the partner the rest.

    images: (B, C, H, W) float32, channels-last; labels: (B,) integers; all on one device. Returns images of the same
    form, and targets (B, classes) float32 whose rows sum to 1.
    """
    xp = array_module(images)
    nhwc = images.transpose(0, 2, 3, 1)
    share, rest = np.float32(weight), np.float32(1 - weight)
    mixed = nhwc * share + nhwc[partner] * rest
    one_hot = labels[:, None] == xp.arange(classes)
    targets = one_hot * share + one_hot[partner] * rest
    return mixed.transpose(0, 3, 1, 2), targets
