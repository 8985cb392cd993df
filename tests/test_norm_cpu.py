"""The fast batch norm by itself: its sums to the last bit, far from zero and with infinities, any number of rows and
channels, and its gradient by finite differences. What it shares with the other sets is in test_kernels.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import DTYPES, image, machine, quick, values

from tinyres.kernels import cpu as fast
from tinyres.kernels import layout, reference

# Error of a value as a share of what its formula gives for absolute values: in float32 about three times the worst of
# 2,000 draws. The sums over rows run in float64 whatever the dtype.
BOUNDS = {np.float32: 3e-7, np.float64: 1e-12}

SHAPES = st.one_of(
    st.tuples(st.integers(1, 3), st.integers(1, 67), st.integers(1, 13), st.integers(1, 13)),
    st.tuples(st.just(1), st.integers(1, 67), st.just(1), st.just(1)),
    st.tuples(st.integers(1, 300), st.integers(1, 67)),
)


def close(got, expected, size, dtype):
    """Each error below BOUNDS of `size`, the formula's value for absolute values."""
    np.testing.assert_array_less(np.abs(got - expected), BOUNDS[dtype] * size + 1e-300)


@quick(100)
@given(SHAPES, st.sampled_from(DTYPES), st.integers(0, 9999), st.integers(1, 3))
def test_every_value_is_within_rounding_of_the_reference(shape, dtype, seed, thread_count):
    rng = np.random.default_rng(seed)
    x, g, y, residual = (values(rng, shape, dtype) for _ in range(4))
    a, b, d = rng.standard_normal((3, shape[1])).astype(dtype)
    mean, M = rng.standard_normal(shape[1]), x.size // shape[1]
    wide = [v.astype(np.float64) for v in (x, g, y, residual, a, b, d)]
    X, G, Y, R, A, B, D = wide
    absolute = [np.abs(v) for v in wide]
    with machine(thread_count, poison=True) as poisoned:
        for got, one in zip(fast.batch_norm_stats(x), reference.batch_norm_stats(X), strict=True):
            np.testing.assert_allclose(got, one, rtol=1e-12, atol=1e-12)
        for relu in (False, True):
            size = reference.batch_norm_apply(absolute[0], absolute[4], absolute[5], absolute[3], False)
            got = fast.batch_norm_apply(x, a, b, residual, relu)
            close(got, reference.batch_norm_apply(X, A, B, R, relu), size, dtype)
            close(fast.batch_norm_apply(x, a, b, None, relu), reference.batch_norm_apply(X, A, B, None, relu), size,
                  dtype)
            assert got.dtype == dtype
        for output, wide_output in ((None, None), (y, Y)):
            sums = fast.batch_norm_grad_sums(g, x, mean, output)
            for got, one in zip(sums, reference.batch_norm_grad_sums(G, X, mean, wide_output), strict=True):
                np.testing.assert_allclose(got, one, rtol=0, atol=1e-12 * M)
            dx, dres = fast.batch_norm_input_grad(g, x, a, b, d, output, True)
            np.testing.assert_array_equal(dres, g if output is None else np.where(y <= 0, 0, g))
            size = reference.batch_norm_input_grad(*absolute[1::-1], *absolute[4:], None, False)[0]
            close(dx, reference.batch_norm_input_grad(G, X, A, B, D, wide_output, False)[0], size, dtype)
            assert dx.dtype == dtype
    assert poisoned


@quick(60)
@given(SHAPES, st.sampled_from(DTYPES), st.integers(0, 9999), st.integers(1, 5))
def test_sums_of_whole_numbers_are_exact(shape, dtype, seed, thread_count):
    """So each row is counted, and counted once, in any split over threads, quarters and the rows left over."""
    rng = np.random.default_rng(seed)
    x, g, y = (layout.channels_last(v) if v.ndim == 4 else v for v in rng.integers(-9, 10, (3, *shape)).astype(dtype))
    mean = rng.integers(-3, 4, shape[1]).astype(np.float64)
    M = x.size // shape[1]
    with machine(thread_count):
        got_mean, got_var = fast.batch_norm_stats(x)
        for output in (None, y):
            for got, one in zip(fast.batch_norm_grad_sums(g, x, mean, output),
                                reference.batch_norm_grad_sums(g, x, mean, output), strict=True):
                np.testing.assert_array_equal(got, one)
    flat = layout.rows(x).astype(np.float64)
    np.testing.assert_allclose(got_mean * M, flat.sum(0), rtol=1e-14, atol=1e-12)
    np.testing.assert_allclose(got_var * M, (flat**2).sum(0) - flat.sum(0) ** 2 / M, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("offset, deviation", [(1000, 1), (-1e5, 1), (1e-3, 1e-7), (3e30, 1e29), (0, 1e-30)])
def test_mean_and_variance_of_float32_at_any_offset_and_scale(offset, deviation):
    """Against the values as they are stored: a mean far from 0 costs no digits, and nothing over- or underflows."""
    x = (offset + deviation * np.random.default_rng(0).standard_normal((5, 7, 9, 11))).astype(np.float32)
    exact = x.astype(np.longdouble)
    for thread_count in (1, 2):
        with machine(thread_count):
            mean, var = fast.batch_norm_stats(x)
        np.testing.assert_allclose(mean, exact.mean((0, 2, 3)).astype(np.float64), rtol=1e-12)
        np.testing.assert_allclose(var, exact.var((0, 2, 3)).astype(np.float64), rtol=1e-11)


@pytest.mark.parametrize("row", [0, 5, 99])
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_infinities_and_nan_anywhere_are_those_of_the_reference(row, special):
    x = np.random.default_rng(0).standard_normal((101, 5)).astype(np.float32)
    g = np.ones_like(x)
    x[row, 2] = special
    g[row, 3] = special

    def run(kernel_set):
        return (*kernel_set.batch_norm_stats(x), kernel_set.batch_norm_apply(x, *x[7:9], g, True),
                *kernel_set.batch_norm_grad_sums(g, x, np.zeros(5), g),
                *kernel_set.batch_norm_input_grad(g, x, *x[7:10], x, True))

    for got, one in zip(run(fast), run(reference), strict=True):
        np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_any_memory_order_and_no_input_is_changed():
    rng = np.random.default_rng(0)
    x, g, y, residual = (image(rng, (3, 5, 4, 7), np.float32) for _ in range(4))
    a, mean = rng.standard_normal(5).astype(np.float32), np.zeros(5)

    def run(x, g, y, residual):
        return (*fast.batch_norm_stats(x), fast.batch_norm_apply(x, a, a, residual, True),
                *fast.batch_norm_grad_sums(g, x, mean, y), *fast.batch_norm_input_grad(g, x, a, a, a, y, True))

    expected = run(x, g, y, residual)
    for order in (np.ascontiguousarray, lambda v: np.repeat(v, 2, axis=3)[..., ::2]):
        given_arrays = [order(v) for v in (x, g, y, residual)]
        before = [v.copy() for v in given_arrays]
        for got, one in zip(run(*given_arrays), expected, strict=True):
            np.testing.assert_array_equal(got, one)
        for v, old in zip(given_arrays, before, strict=True):
            np.testing.assert_array_equal(v, old)


@pytest.mark.parametrize("relu", [False, True])
def test_gradient_by_finite_differences(relu):
    """The four kernels with the (C,)-sized arithmetic of the op between them: derivative along one direction of all
    inputs, of the loss sum(y * g)."""
    rng = np.random.default_rng(0)
    x, residual, g, along_x, along_residual = (image(rng, (3, 5, 4, 3), np.float64) for _ in range(5))
    weight, bias, along_weight, along_bias = rng.standard_normal((4, 5))
    eps, M = 1e-2, x.size // 5

    def forward(e):
        mean, var = fast.batch_norm_stats(x + e * along_x)
        istd = 1 / np.sqrt(var + eps)
        scale = (weight + e * along_weight) * istd
        shift = bias + e * along_bias - mean * scale
        return mean, istd, fast.batch_norm_apply(x + e * along_x, scale, shift, residual + e * along_residual, relu)

    mean, istd, y = forward(0)
    total, products = fast.batch_norm_grad_sums(g, x, mean, y if relu else None)
    a, b = weight * istd, -weight * istd**3 * products / M
    dx, dres = fast.batch_norm_input_grad(g, x, a, b, -a * total / M - b * mean, y if relu else None, True)
    expected = (np.sum(dx * along_x) + np.sum(dres * along_residual) + np.sum(products * istd * along_weight)
                + np.sum(total * along_bias))
    loss = [np.sum(forward(e)[2] * g) for e in (1e-6, -1e-6)]
    assert (loss[0] - loss[1]) / 2e-6 == pytest.approx(expected, rel=1e-7)
