"""The sums that describe an array: equal to the reference, and the same bits at any number of threads."""

import math

import numpy as np
import pytest

from tinyres import kernels
from tinyres.kernels import reference
from tinyres.kernels.cpu import sums

SIZES = [0, 1, 5, sums.PIECE - 1, sums.PIECE, sums.PIECE + 1, 300_000]


def vector(size, dtype, seed=0):
    x = np.random.default_rng(seed).standard_normal(size).astype(dtype) * 1e3
    x[::7] = 0
    return x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES)
def test_equal_the_reference_and_exact_sums(size, dtype):
    x, y = vector(size, dtype), vector(size, dtype, 1)
    total, squares, zeros = sums.moments(x)
    exact = [math.fsum(map(float, x)), math.fsum(float(v) ** 2 for v in x)]
    scale = float(np.abs(x.astype("float64")).sum())
    assert abs(total - exact[0]) <= 1e-13 * scale and squares == pytest.approx(exact[1], rel=1e-13)
    assert zeros == reference.moments(x)[2] == int((x == 0).sum())
    products = [float(a) * float(b) for a, b in zip(x, y, strict=True)]
    assert abs(sums.inner(x, y) - math.fsum(products)) <= 1e-13 * sum(map(abs, products))
    assert reference.inner(x, y) == pytest.approx(sums.inner(x, y), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_change_no_bit(dtype, monkeypatch):
    x, y = vector(3_000_000, dtype), vector(3_000_000, dtype, 1)
    found = set()
    for count in ("1", "2", "3"):
        monkeypatch.setenv("TINYRES_NUM_THREADS", count)
        found.add((sums.moments(x), sums.inner(x, y)))
    assert len(found) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(bad):
    x = vector(10_000, "float32")
    x[5000] = bad
    total, squares, _ = sums.moments(x)
    assert not math.isfinite(total) and not math.isfinite(squares)


@pytest.mark.parametrize("x", [vector(100, "float32")[::2], np.arange(10), np.arange(10) > 4,
                               vector(10, "float16").clip(-9, 9)], ids=["strided", "int64", "bool", "float16"])
def test_other_vectors_are_read_by_the_reference(x):
    assert sums.moments(x) == reference.moments(x)
    assert sums.inner(x, x) == reference.inner(x, x) == pytest.approx(float((x.astype("float64") ** 2).sum()))


def test_they_are_kernels_of_the_current_set():
    x = vector(1000, "float32")
    for name in ("reference", "fast"):
        with kernels.use_kernels(name):
            assert kernels.moments(x)[2] == 143 and kernels.inner(x, x) == pytest.approx(kernels.moments(x)[1])
