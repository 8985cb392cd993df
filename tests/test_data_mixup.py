"""Mixup: the weights' distribution, the mixture written down as loops, and batches that a resumed run repeats."""

import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinyres import data, ops
from tinyres.data import philox
from tinyres.data.augment import RandomCrop, RandomFlip
from tinyres.data.mixup import beta_distribution, beta_weight, mix

STEP = 2.0**-24


def small_set(n: int = 50, c: int = 3) -> data.Dataset:
    images = np.random.default_rng(0).integers(0, 256, (n, c, 6, 7), dtype=np.uint8)
    return data.Dataset(images, np.arange(n) % 5, "abcde")


# ---- the weights

INVERSES = {
    0.5: lambda u: math.sin(math.pi * u / 2) ** 2,  # the arcsine law
    1.0: lambda u: u,
}
DISTRIBUTIONS = {
    0.5: lambda x: 2 / math.pi * math.asin(math.sqrt(x)),
    1.0: lambda x: x,
    2.0: lambda x: 3 * x**2 - 2 * x**3,
    4.0: lambda x: 35 * x**4 - 84 * x**5 + 70 * x**6 - 20 * x**7,
}


@pytest.mark.parametrize("alpha", DISTRIBUTIONS)
def test_the_distribution_function_in_closed_form(alpha):
    for x in (0.0, 1e-9, 0.001, 0.1, 0.25, 0.4, 0.5):
        assert beta_distribution(x, alpha) == pytest.approx(DISTRIBUTIONS[alpha](x), rel=1e-12, abs=1e-300)


@given(word=st.integers(0, 2**64 - 1), alpha=st.sampled_from(sorted(INVERSES)))
@example(word=2**48 - 1025, alpha=1.0)
def test_weights_invert_the_distribution(word, alpha):
    weight = beta_weight(word, alpha)
    assert abs(weight - INVERSES[alpha]((word + 0.5) / 2**64)) <= STEP
    assert weight == 1 - beta_weight(2**64 - 1 - word, alpha)  # symmetric
    assert (weight / STEP).is_integer() and np.float32(weight) + np.float32(1 - weight) == 1


@given(words=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), alpha=st.floats(1e-300, 1000))
def test_weights_grow_with_the_word_for_any_alpha(words, alpha):
    low, high = (beta_weight(word, alpha) for word in sorted(words))
    assert 0 <= low <= high <= 1


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 3.0, 30.0])
def test_weights_have_the_moments_of_the_distribution(alpha):
    """Mean 1/2, variance 1 / (4 (2 alpha + 1)), and the fourth central moment, within 5 standard errors."""
    count = 4_000
    centred = [beta_weight(int(word), alpha) - 0.5 for word in philox.words(3, 1, philox.MIXUP_WEIGHT, count)]
    second = 1 / (4 * (2 * alpha + 1))
    fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    eighth = 105 / (256 * math.prod(2 * alpha + k for k in (1, 3, 5, 7)))
    assert abs(fmean(centred)) < 5 * math.sqrt(second / count)
    assert abs(fmean(c**2 for c in centred) - second) < 5 * math.sqrt((fourth - second**2) / count)
    assert abs(fmean(c**4 for c in centred) - fourth) < 5 * math.sqrt((eighth - fourth**2) / count)


# ---- the mixture


def test_mix_is_the_formula():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 4, 5, 3)).astype(np.float32).transpose(0, 3, 1, 2)
    labels, partner, weight = np.array([0, 1, 2, 3, 1, 0]), np.array([3, 1, 4, 0, 2, 5]), 0.75
    before = x.copy()
    mixed, targets = mix(x, labels, 4, partner, weight)
    assert mixed.dtype == targets.dtype == np.float32 and targets.shape == (6, 4)
    assert mixed.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(x, before)
    for i, j in enumerate(partner):
        np.testing.assert_allclose(mixed[i], 0.75 * x[i] + 0.25 * x[j], rtol=1e-6)
        expected = [0.0] * 4
        expected[labels[i]] += 0.75
        expected[labels[j]] += 0.25
        assert targets[i].tolist() == expected
    np.testing.assert_array_equal(mixed[1], x[1])  # its own partner


# ---- in the Loader


def loader(mixup: float = 0.4, seed: int = 9, **options) -> data.Loader:
    return data.Loader(small_set(), 8, True, seed, [RandomCrop(2), RandomFlip()], mixup=mixup, **options)


def test_batches_are_mixtures_of_the_plain_batches():
    """Weight and partners are found from the targets and the images, not from the code."""
    weights, orders = [], []
    for (x, y), (plain_x, labels) in zip(loader().epoch(3), loader(0.0).epoch(3), strict=True):
        assert x.dtype == y.dtype == np.float32 and x.transpose(0, 2, 3, 1).flags.c_contiguous
        assert y.shape == (len(x), 5)
        assert (y.sum(1) == 1).all() and (y >= 0).all()
        shares = {float(row[label]) for row, label in zip(y, labels, strict=True) if row[label] < 1}
        assert len(shares) <= 1  # one weight a batch
        weight = shares.pop() if shares else 1.0
        weights.append(weight)
        partners = []
        for i in range(len(x)):
            mixtures = [np.float32(weight) * plain_x[i] + np.float32(1 - weight) * other for other in plain_x]
            fits = [j for j, mixture in enumerate(mixtures) if np.allclose(x[i], mixture, atol=1e-5)]
            partners.append(fits[0])
            assert y[i, labels[fits[0]]] == pytest.approx(1 - weight if labels[fits[0]] != labels[i] else 1)
        if 0.01 < weight < 0.99:
            assert sorted(partners) == list(range(len(x)))
            orders.append(tuple(partners))
    assert len(set(weights)) == len(weights) == 7 and len(set(orders)) == len(orders) > 3


def test_a_resumed_epoch_repeats_its_mixtures():
    whole = list(loader().epoch(5))
    for start in (0, 3, len(whole)):
        for (x, y), (again, y_again) in zip(whole[start:], loader().epoch(5, start), strict=True):
            np.testing.assert_array_equal(x, again)
            np.testing.assert_array_equal(y, y_again)
    for other in (loader().epoch(6), loader(seed=10).epoch(5), loader(0.5).epoch(5)):
        assert not any(np.array_equal(x, x_other) for (x, _), (x_other, _) in zip(whole, other, strict=True))


def test_mixup_changes_neither_order_nor_augmentation():
    """Its random words are from streams of their own: with weights near 1 the plain batches appear."""
    for (x, y), (plain_x, labels) in zip(loader(1e-12).epoch(2), loader(0.0).epoch(2), strict=True):
        chosen = y.argmax(1)
        assert sorted(chosen) == sorted(labels)  # the sample or its partner, as a whole
        rows = {row.tobytes() for row in plain_x.reshape(len(x), -1)}
        assert {row.tobytes() for row in x.reshape(len(x), -1)} == rows


def test_every_use_has_random_words_of_its_own(monkeypatch):
    drawn = []
    monkeypatch.setattr(philox, "words", lambda *key, real=philox.words: drawn.append(key) or real(*key))
    next(loader().epoch(4))
    assert all(key[:2] == (9, 4) for key in drawn) and len({key[2] for key in drawn}) == len(drawn) == 5


def test_without_mixup_labels_stay_integers():
    x, y = next(loader(0.0).epoch(0))
    assert y.dtype == np.int64 and y.shape == (8,)


def test_a_batch_of_one_is_itself():
    dataset = small_set(1)
    (x, y), = data.Loader(dataset, 1, mixup=1.0).epoch(0)
    np.testing.assert_allclose(x, dataset.normalise(dataset.images), atol=1e-6)
    assert y.tolist() == [[1, 0, 0, 0, 0]]


def test_cross_entropy_takes_the_targets():
    x, y = next(loader(1.0).epoch(1))
    logits = np.random.default_rng(2).normal(size=(8, 5)).astype(np.float32)
    shifted = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    assert float(ops.cross_entropy(logits, y)) == pytest.approx(-(shifted * y).sum(1).mean(), rel=1e-6)


@pytest.mark.parametrize("alpha", [-0.1, -1, math.nan, math.inf, 1000.1, "0.2", None, [0.2]])
def test_bad_alphas_are_refused(alpha):
    with pytest.raises(ValueError, match=r"Loader: mixup is .*, expected a number from 0 \(no mixing\) to 1,000"):
        loader(alpha)
