"""The CUDA kernels for batch norm against the reference: any number of rows and channels, sums to the last bit, far
from zero and with infinities, their gradient by finite differences; and the same bits in every order of threads."""

import numpy as np
import pytest
from cuda_places import PLACES
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import DTYPES, image, quick, values
from test_norm_cpu import SHAPES, close

from tinyres.kernels import layout, reference
from tinyres.kernels.cuda import emulator, norm

anywhere = pytest.mark.parametrize("place", PLACES)

# Shapes whose rows (the first, and the last two) or channels are shared by several blocks.
LARGE = [(2, 3, 32, 16), (3, 260, 2), (2, 131, 5, 1), (7, 1, 61, 3), (1500, 2)]
ANY = st.one_of(SHAPES, st.tuples(st.integers(1, 3), st.integers(1, 67), st.integers(1, 9)), st.sampled_from(LARGE))


def on(place, function, *args):
    """function(*args) with the arrays among args on `place`, and its results as NumPy arrays."""
    results = function(*(place.put(a) if isinstance(a, np.ndarray) else a for a in args))
    if not isinstance(results, tuple):
        return place.get(results)
    return tuple(a if a is None else place.get(a) for a in results)


@anywhere
@quick(30)
@given(ANY, st.sampled_from(DTYPES), st.integers(0, 9999))
def test_every_value_is_within_rounding_of_the_reference(place, shape, dtype, seed):
    rng = np.random.default_rng(seed)
    x, g, y, residual = (values(rng, shape, dtype) for _ in range(4))
    a, b, d = rng.standard_normal((3, shape[1])).astype(dtype)
    mean, M = rng.standard_normal(shape[1]), x.size // shape[1]
    X, G, Y, R, A, B, D = wide = [v.astype(np.float64) for v in (x, g, y, residual, a, b, d)]
    absolute = [np.abs(v) for v in wide]
    for got, one in zip(on(place, norm.batch_norm_stats, x), reference.batch_norm_stats(X), strict=True):
        np.testing.assert_allclose(got, one, rtol=1e-12, atol=1e-12)
        assert got.dtype == np.float64
    for relu in (False, True):
        size = reference.batch_norm_apply(absolute[0], absolute[4], absolute[5], absolute[3], False)
        got = on(place, norm.batch_norm_apply, x, a, b, residual, relu)
        close(got, reference.batch_norm_apply(X, A, B, R, relu), size, dtype)
        assert got.dtype == dtype and (got.ndim != 4 or layout.is_channels_last(got))
        got = on(place, norm.batch_norm_apply, x, a, b, None, relu)
        close(got, reference.batch_norm_apply(X, A, B, None, relu), size, dtype)
        for added, wide_added in ((None, None), (residual, R)):
            got = on(place, norm.add_bias, x.copy(order="K"), b, added, relu)
            close(got, reference.add_bias(X, B, wide_added, relu), absolute[0] + 9, dtype)
    for output, wide_output in ((None, None), (y, Y)):
        sums = on(place, norm.batch_norm_grad_sums, g, x, mean, output)
        for got, one in zip(sums, reference.batch_norm_grad_sums(G, X, mean, wide_output), strict=True):
            np.testing.assert_allclose(got, one, rtol=0, atol=1e-12 * M)
            assert got.dtype == np.float64
        dx, dres = on(place, norm.batch_norm_input_grad, g, x, a, b, d, output, True)
        np.testing.assert_array_equal(dres, g if output is None else np.where(y <= 0, 0, g))
        size = reference.batch_norm_input_grad(*absolute[1::-1], *absolute[4:], None, False)[0]
        close(dx, reference.batch_norm_input_grad(G, X, A, B, D, wide_output, False)[0], size, dtype)
        assert dx.dtype == dtype
        alone, none = on(place, norm.batch_norm_input_grad, g, x, a, b, d, output, False)
        np.testing.assert_array_equal(alone, dx)
        assert none is None


@anywhere
@quick(25)
@given(ANY, st.sampled_from(DTYPES), st.integers(0, 9999), st.sampled_from([1, 2, 1024]))
def test_sums_of_whole_numbers_are_exact(place, shape, dtype, seed, most_blocks):
    """So each row is counted, and counted once, in any division over threads and blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm, "MOST_BLOCKS", most_blocks)
        check_exact_sums(place, shape, dtype, seed)


@anywhere
def test_more_partial_sums_than_the_threads_that_add_them(place, monkeypatch):
    monkeypatch.setattr(norm, "ROWS_OF_A_THREAD", 1)
    check_exact_sums(place, (600, 63), np.float32, 0)


def check_exact_sums(place, shape, dtype, seed):
    rng = np.random.default_rng(seed)
    x, g, y = (layout.channels_last(v) if v.ndim == 4 else v for v in rng.integers(-9, 10, (3, *shape)).astype(dtype))
    mean = rng.integers(-3, 4, shape[1]).astype(np.float64)
    for output in (None, y):
        for got, one in zip(on(place, norm.batch_norm_grad_sums, g, x, mean, output),
                            reference.batch_norm_grad_sums(g, x, mean, output), strict=True):
            np.testing.assert_array_equal(got, one)
    got_mean, got_var = on(place, norm.batch_norm_stats, x)
    flat, M = layout.rows(x).astype(np.float64), x.size // shape[1]
    np.testing.assert_allclose(got_mean * M, flat.sum(0), rtol=1e-14, atol=1e-12)
    np.testing.assert_allclose(got_var * M, (flat**2).sum(0) - flat.sum(0) ** 2 / M, rtol=1e-12, atol=1e-9)


@anywhere
@pytest.mark.parametrize("offset, deviation",
                         [(1000, 1), (1000, 1e-3), (-1e5, 1), (1e-3, 1e-7), (3e30, 1e29), (0, 1e-30)])
def test_mean_and_variance_of_float32_at_any_offset_and_scale(place, offset, deviation):
    """Against the values as they are stored: a mean far from 0 costs no digits, and nothing over- or underflows."""
    x = (offset + deviation * np.random.default_rng(0).standard_normal((5, 7, 9, 11))).astype(np.float32)
    exact = x.astype(np.longdouble)
    mean, var = on(place, norm.batch_norm_stats, x)
    np.testing.assert_allclose(mean, exact.mean((0, 2, 3)).astype(np.float64), rtol=1e-12)
    np.testing.assert_allclose(var, exact.var((0, 2, 3)).astype(np.float64), rtol=1e-11)


@anywhere
def test_a_channel_of_one_value_has_variance_0(place):
    for x in (np.full((3, 5, 2, 2), 0.1), np.array([[7.0, 1e300]])):
        mean, var = on(place, norm.batch_norm_stats, x)
        np.testing.assert_array_equal(mean, layout.rows(x)[0])
        np.testing.assert_array_equal(var, 0)


@anywhere
@pytest.mark.parametrize("row", [0, 5, 99])
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_infinities_and_nan_anywhere_are_those_of_the_reference(place, row, special):
    """A NaN passes the ReLU forward, and where the output is NaN the gradient passes backward."""
    x = np.random.default_rng(0).standard_normal((101, 5)).astype(np.float32)
    g = np.ones_like(x)
    x[row, 2] = special
    g[row, 3] = special

    def run(module, call):
        return (*call(module.batch_norm_stats, x), call(module.batch_norm_apply, x, *x[7:9], g, True),
                call(module.add_bias, x.copy(), x[7], g, True),
                *call(module.batch_norm_grad_sums, g, x, np.zeros(5), g),
                *call(module.batch_norm_input_grad, g, x, *x[7:10], x, True))

    got_all = run(norm, lambda function, *args: on(place, function, *args))
    for got, one in zip(got_all, run(reference, lambda function, *args: function(*args)), strict=True):
        np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-5, equal_nan=True)


def everything(x, g, y, residual, factors, mean):
    """The results of all the kernels; y is the ReLU's output."""
    a, b, d = factors
    return [*norm.batch_norm_stats(x), norm.batch_norm_apply(x, a, b, residual, True),
            norm.add_bias(x.copy(order="K"), b, residual, True), *norm.batch_norm_grad_sums(g, x, mean, y),
            *norm.batch_norm_input_grad(g, x, a, b, d, y, True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 16, 15, 17), (3, 67, 5, 7), (500, 3), (2, 130, 3, 5)])
def test_the_same_bits_in_every_order_of_threads(shape, dtype):
    rng = np.random.default_rng(0)
    arrays = [values(rng, shape, dtype) for _ in range(4)]
    options = rng.standard_normal((3, shape[1])).astype(dtype), rng.standard_normal(shape[1])
    first = [a.tobytes() for a in everything(*arrays, *options)]
    for order, seed, workers in (("reverse", 0, 1), ("random", 1, 1), ("random", 2, 2)):
        with emulator.settings(order=order, seed=seed, workers=workers):
            assert [a.tobytes() for a in everything(*arrays, *options)] == first


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 16, 9, 7), (3, 67, 5), (300, 3)])
def test_no_access_is_out_of_bounds_or_races_with_another(shape, dtype):
    rng = np.random.default_rng(0)
    arrays = [values(rng, shape, dtype) for _ in range(4)]
    with emulator.settings(sanitize=True):
        everything(*arrays, rng.standard_normal((3, shape[1])).astype(dtype), rng.standard_normal(shape[1]))


@anywhere
def test_any_memory_order_and_no_input_is_changed(place):
    rng = np.random.default_rng(0)
    images = [image(rng, (3, 8, 4, 7), np.float32) for _ in range(4)]
    options = place.put(rng.standard_normal((3, 8)).astype(np.float32)), place.put(np.zeros(8))
    with layout.count_copies() as counted:
        expected = everything(*map(place.put, images), *options)
    assert counted.copies == 0
    channels_first = [place.put(v.reshape(3, -1)).reshape(v.shape) for v in images]
    strided = [place.put(np.repeat(v, 2, axis=3))[..., ::2] for v in images]
    for arrays in (channels_first, strided):
        for got, one in zip(everything(*arrays, *options), expected, strict=True):
            np.testing.assert_array_equal(place.get(got), place.get(one))
        for v, old in zip(arrays, images, strict=True):
            np.testing.assert_array_equal(place.get(v), old)


@anywhere
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_that_no_vector_may_be_loaded_from(place, dtype):
    """Each array in turn begins one value after a multiple of 16 bytes: 16 bytes at once would be a fault."""
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((12, 8)).astype(dtype) for _ in range(4)]
    options = place.put(rng.standard_normal((3, 8)).astype(dtype)), place.put(np.zeros(8))
    expected = everything(*map(place.put, images), *options)
    for i in range(4):
        arrays = [place.put(v) for v in images]
        arrays[i] = place.put(np.concatenate([np.zeros(1, dtype), images[i].ravel()]))[1:].reshape(12, 8)
        with emulator.settings(sanitize=True):
            results = everything(*arrays, *options)
        for got, one in zip(results, expected, strict=True):
            np.testing.assert_array_equal(place.get(got), place.get(one))


@anywhere
def test_add_bias_works_in_the_memory_of_its_argument(place):
    y, bias = place.put(image(np.random.default_rng(0), (2, 8, 3, 3), np.float32)), place.put(np.ones(8, np.float32))
    before = place.get(y).copy()
    result = norm.add_bias(y, bias, None, False)
    assert layout.is_channels_last(result)
    np.testing.assert_array_equal(place.get(y), before + 1)
    np.testing.assert_array_equal(place.get(result), before + 1)


@anywhere
def test_without_relu_the_residual_gets_the_gradient_itself(place):
    x = place.put(np.ones((2, 3, 4, 5)))
    factors = [place.put(np.ones(3))] * 3
    assert norm.batch_norm_input_grad(x, x, *factors, None, True)[1] is x
    assert norm.batch_norm_input_grad(x, x, *factors, None, False)[1] is None
    assert norm.batch_norm_input_grad(x, x, *factors, x, True)[1] is not x


@anywhere
@pytest.mark.parametrize("relu", [False, True])
def test_gradient_by_finite_differences(place, relu):
    """The four kernels with the (C,)-sized arithmetic of the op between them: derivative along one direction of all
    inputs, of the loss sum(y * g)."""
    rng = np.random.default_rng(0)
    x, residual, g, along_x, along_residual = (image(rng, (3, 5, 4, 3), np.float64) for _ in range(5))
    weight, bias, along_weight, along_bias = rng.standard_normal((4, 5))
    eps, M = 1e-2, x.size // 5

    def forward(e):
        mean, var = on(place, norm.batch_norm_stats, x + e * along_x)
        istd = 1 / np.sqrt(var + eps)
        scale = (weight + e * along_weight) * istd
        shift = bias + e * along_bias - mean * scale
        y = on(place, norm.batch_norm_apply, x + e * along_x, scale, shift, residual + e * along_residual, relu)
        return mean, istd, y

    mean, istd, y = forward(0)
    total, products = on(place, norm.batch_norm_grad_sums, g, x, mean, y if relu else None)
    a, b = weight * istd, -weight * istd**3 * products / M
    dx, dres = on(place, norm.batch_norm_input_grad, g, x, a, b, -a * total / M - b * mean, y if relu else None, True)
    expected = (np.sum(dx * along_x) + np.sum(dres * along_residual) + np.sum(products * istd * along_weight)
                + np.sum(total * along_bias))
    loss = [np.sum(forward(e)[2] * g) for e in (1e-6, -1e-6)]
    assert (loss[0] - loss[1]) / 2e-6 == pytest.approx(expected, rel=1e-7)


@anywhere
def test_an_empty_batch(place):
    x, factor = place.put(np.ones((0, 3, 4, 4), np.float32)), place.put(np.ones(3, np.float32))
    assert norm.batch_norm_apply(x, factor, factor, x, True).shape == x.shape
    assert norm.batch_norm_input_grad(x, x, factor, factor, factor, x, True)[1].shape == x.shape
    total, products = norm.batch_norm_grad_sums(x, x, factor, None)
    np.testing.assert_array_equal(place.get(total), 0)
    np.testing.assert_array_equal(place.get(products), 0)


@pytest.mark.parametrize("M, C", [(1, 1), (1, 64), (131_072, 16), (131_072, 3), (8192, 67), (6272, 512),
                                  (2**31 - 1, 1)])
def test_the_division_covers_the_matrix_and_keeps_to_the_limits_of_a_launch(M, C):
    lanes, (row_blocks, tiles), (across, down) = norm.division(np.broadcast_to(np.float32(0), (M, C)))
    assert C % lanes == 0 and lanes in (1, 4)
    assert C / lanes <= tiles * across < C / lanes + tiles  # tiles of one width
    assert across * down <= 256 and 1 <= row_blocks <= M and row_blocks * tiles <= 1024
    if M >= 1024:
        assert across * down > 200  # few threads stand idle
