"""The CUDA kernels for pooling against the reference: any window, any channels, ties, NaN and infinities, windows that
see nothing, any index; and the same bits in every order of threads."""

import numpy as np
import pytest
from cuda_places import PLACES
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import DTYPES, image, pool_input, quick
from test_pool_cpu import assert_near, assert_same, windows, with_ties

from tinyres.kernels import layout, reference
from tinyres.kernels.cuda import emulator, pool

anywhere = pytest.mark.parametrize("place", PLACES)


def run(function, place, arrays, *options):
    """The kernel's results on `place`, as a list of NumPy arrays, channels-last as they came."""
    results = function(*map(place.put, arrays), *options)
    results = results if isinstance(results, tuple) else (results,)
    assert all(layout.is_channels_last(a) for a in results)
    return [place.get(a) for a in results]


@anywhere
@quick(50)
@given(windows(), st.sampled_from(DTYPES), st.booleans(), st.integers(0, 9999))
def test_max_pool_equals_reference_bit_by_bit(place, window, dtype, special, seed):
    """Also where a window sees nothing but padding: -inf, and the index -1."""
    shape, *options = window
    x = with_ties(np.random.default_rng(seed), shape, dtype, special)
    assert_same(run(pool.max_pool2d, place, [x], *options), reference.max_pool2d(x, *options))


@anywhere
def test_a_window_that_sees_nothing(place):
    """Two places two pixels apart, to the left and to the right of an image of one pixel."""
    x = np.ones((1, 2, 1, 1))
    options = (1, 2), (1, 2), (0, 1), (1, 2), (1, 1)
    y, index = run(pool.max_pool2d, place, [x], *options)
    assert (index == -1).all() and np.isneginf(y).all()


@anywhere
@quick(30)
@given(st.data(), st.sampled_from(DTYPES))
def test_adaptive_max_pool_equals_reference_bit_by_bit(place, data, dtype):
    x, _ = pool_input(data.draw, dtype)
    output = data.draw(st.tuples(st.integers(1, 11), st.integers(1, 11)))
    assert_same(run(pool.adaptive_max_pool2d, place, [x], output), reference.adaptive_max_pool2d(x, output))


@anywhere
def test_adaptive_windows_of_a_long_image(place):
    """Row times height does not fit into 32 bits: the last windows are those that would go wrong."""
    x = np.arange(70_000.0, dtype=np.float32).reshape(1, 1, -1, 1)
    y, index = run(pool.adaptive_max_pool2d, place, [x], (65_000, 1))
    assert_same([y, index], reference.adaptive_max_pool2d(x, (65_000, 1)))


@anywhere
@quick(30)
@given(st.data(), st.sampled_from(DTYPES), st.integers(0, 9999))
def test_gather_and_scatter_equal_reference_for_any_index(place, data, dtype, seed):
    N, H, W, P, Q = (data.draw(st.integers(1, 4)) for _ in range(5))
    C = data.draw(st.integers(1, 67))
    rng = np.random.default_rng(seed)
    x, g = image(rng, (N, C, H, W), dtype), image(rng, (N, C, P, Q), dtype)
    index = layout.channels_last(rng.integers(0, H * W, (N, C, P, Q)))
    assert_same(run(pool.gather_hw, place, [x, index]), [reference.gather_hw(x, index)])
    (dx,) = run(pool.scatter_hw, place, [g, index], x.shape)
    wide = g.astype(np.float64)
    assert dx.dtype == dtype
    assert_near(dx, reference.scatter_hw(wide, index, x.shape), reference.scatter_hw(abs(wide), index, x.shape))


@anywhere
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pixels, values", [(1, 40), (3, 8), (3, 9), (5, 31), (100, 64)])
def test_values_that_meet_are_added_in_order(place, dtype, pixels, values):
    """Bit by bit as NumPy adds one value after another, though a thread reads the pixels of eight at a time."""
    rng = np.random.default_rng(values)
    g = image(rng, (2, 67, values, 1), dtype)
    index = layout.channels_last(rng.integers(0, pixels, g.shape))
    expected = np.zeros((2, 67, pixels, 1), dtype)
    np.add.at(expected, (*np.ogrid[:2, :67], index[..., 0].transpose(2, 0, 1), 0), g[..., 0].transpose(2, 0, 1))
    assert_same(run(pool.scatter_hw, place, [g, index], expected.shape), [layout.channels_last(expected)])


@anywhere
def test_a_negative_index_counts_from_the_end_of_its_own_image(place):
    x = np.arange(16.0).reshape(2, 2, 2, 2)
    index = np.full((2, 2, 1, 1), -1)
    (y,) = run(pool.gather_hw, place, [x, index])
    np.testing.assert_array_equal(y, x[:, :, 1:, 1:])
    (dx,) = run(pool.scatter_hw, place, [y, index], x.shape)
    np.testing.assert_array_equal(dx, x * (np.arange(4) == 3).reshape(2, 2))


@anywhere
@quick(50)
@given(windows(dilated=False), st.booleans(), st.sampled_from(DTYPES), st.integers(0, 9999))
def test_avg_pool_and_its_gradient_equal_reference(place, window, count_include_pad, dtype, seed):
    shape, kernel, stride, padding, _, output = window
    rng = np.random.default_rng(seed)
    x, g = image(rng, shape, dtype), image(rng, (*shape[:2], *output), dtype)
    (y,) = run(pool.avg_pool2d, place, [x], kernel, stride, padding, output, count_include_pad)
    (dx,) = run(pool.avg_pool2d_input_grad, place, [g], shape, kernel, stride, padding, count_include_pad)
    assert y.dtype == dx.dtype == dtype
    X, G = x.astype(np.float64), g.astype(np.float64)
    for got, function, wide, middle, last in ((y, reference.avg_pool2d, X, (), (output,)),
                                              (dx, reference.avg_pool2d_input_grad, G, (shape,), ())):
        expected, size = (function(a, *middle, kernel, stride, padding, *last, count_include_pad)
                          for a in (wide, abs(wide)))
        assert_near(got, expected, size)


@anywhere
def test_the_sums_of_large_windows_are_rounded_once(place):
    """They are kept in double: a float would lose digits with each of the 400 values."""
    x = (1 + np.random.default_rng(0).random((1, 3, 39, 39))).astype(np.float32)
    window = (20, 20), (1, 1), (0, 0)
    (y,) = run(pool.avg_pool2d, place, [x], *window, (20, 20), True)
    np.testing.assert_allclose(y, reference.avg_pool2d(x.astype(np.float64), *window, (20, 20), True), rtol=6e-8)
    (dx,) = run(pool.avg_pool2d_input_grad, place, [y], x.shape, *window, True)
    expected = reference.avg_pool2d_input_grad(y.astype(np.float64), x.shape, *window, True)
    np.testing.assert_allclose(dx, expected, rtol=6e-8)


@anywhere
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_avg_pool_passes_nan_and_infinities_where_they_are_seen_and_nowhere_else(place, special):
    x, g = np.zeros((1, 2, 5, 5)), np.zeros((1, 2, 3, 3))
    x[0, 1, 2, 3] = g[0, 0, 1, 1] = special
    window = (3, 3), (2, 2), (1, 1)
    (y,) = run(pool.avg_pool2d, place, [x], *window, (3, 3), True)
    (dx,) = run(pool.avg_pool2d_input_grad, place, [g], x.shape, *window, True)
    np.testing.assert_array_equal(y, reference.avg_pool2d(x, *window, (3, 3), True))
    np.testing.assert_array_equal(dx, reference.avg_pool2d_input_grad(g, x.shape, *window, True))
    assert (~np.isfinite(dx)).sum() == 9


@anywhere
def test_gradients_by_finite_differences(place):
    """Of sum(pool(x) * g) along one direction: max pooling of values that are far apart, and average pooling."""
    rng = np.random.default_rng(0)
    shape, window, output = (2, 3, 7, 6), ((3, 2), (2, 1), (1, 1)), (4, 7)
    x = layout.nchw(rng.permutation(np.prod(shape)).reshape(2, 7, 6, 3) / 10.0)
    along, g = image(rng, shape, np.float64), image(rng, (*shape[:2], *output), np.float64)
    y, index = run(pool.max_pool2d, place, [x], *window, (1, 1), output)
    gradients = (run(pool.scatter_hw, place, [g, index], shape),
                 run(pool.avg_pool2d_input_grad, place, [g], shape, *window, False))
    pools = (lambda a: run(pool.max_pool2d, place, [a], *window, (1, 1), output)[0],
             lambda a: run(pool.avg_pool2d, place, [a], *window, output, False)[0])
    for forward, (dx,) in zip(pools, gradients, strict=True):
        loss = [np.sum(forward(x + e * along) * g) for e in (1e-5, -1e-5)]
        assert (loss[0] - loss[1]) / 2e-5 == pytest.approx(np.sum(dx * along), rel=1e-8)
    np.testing.assert_array_equal(run(pool.gather_hw, place, [x, index])[0], y)


def everything(x, g):
    """The results of all the kernels for 3x3 windows with stride 1: each pixel is the maximum of several."""
    window, output = ((3, 3), (1, 1), (1, 1)), x.shape[2:]
    y, index = pool.max_pool2d(x, *window, (1, 1), output)
    return [y, index, *pool.adaptive_max_pool2d(x, (3, 2)), pool.gather_hw(x, index),
            pool.scatter_hw(g, index, x.shape), pool.avg_pool2d(x, *window, output, False),
            pool.avg_pool2d_input_grad(g, x.shape, *window, False)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_in_every_order_of_threads(dtype):
    rng = np.random.default_rng(0)
    x, g = image(rng, (5, 67, 5, 4), dtype), image(rng, (5, 67, 5, 4), dtype)
    first = [a.tobytes() for a in everything(x, g)]
    for order, seed, workers in (("reverse", 0, 1), ("random", 1, 1), ("random", 2, 2)):
        with emulator.settings(order=order, seed=seed, workers=workers):
            assert [a.tobytes() for a in everything(x, g)] == first


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 7, 6), (1, 67, 4, 3)])
def test_no_access_is_out_of_bounds(shape, dtype):
    rng = np.random.default_rng(0)
    with emulator.settings(sanitize=True):
        everything(image(rng, shape, dtype), image(rng, shape, dtype))


@anywhere
def test_any_memory_order_no_layout_copy_without_need_and_no_input_is_changed(place):
    rng = np.random.default_rng(0)
    x, g = image(rng, (2, 5, 4, 7), np.float32), image(rng, (2, 5, 4, 7), np.float32)
    arrays = [place.put(a) for a in (x, g)]
    with layout.count_copies() as counted:
        expected = everything(*arrays)
    assert counted.copies == 0
    channels_first = [place.put(a.reshape(2, -1)).reshape(a.shape) for a in (x, g)]
    strided = [place.put(np.repeat(a, 2, axis=3))[..., ::2] for a in (x, g)]
    for arrays in (channels_first, strided):
        for got, one in zip(everything(*arrays), expected, strict=True):
            np.testing.assert_array_equal(place.get(got), place.get(one))
        np.testing.assert_array_equal(place.get(arrays[0]), x)
        np.testing.assert_array_equal(place.get(arrays[1]), g)


@anywhere
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_, np.float16])
def test_maxima_of_other_types_are_the_references(place, dtype):
    x = image(np.random.default_rng(0), (2, 3, 5, 4), np.float64)
    x = layout.channels_last((9 * abs(x)).astype(dtype))
    window = (2, 2), (2, 2), (0, 0), (1, 1), (2, 2)
    y, index = run(pool.max_pool2d, place, [x], *window)
    assert_same([y, index], reference.max_pool2d(x, *window))
    assert_same(run(pool.adaptive_max_pool2d, place, [x], (3, 2)), reference.adaptive_max_pool2d(x, (3, 2)))
    assert_same(run(pool.gather_hw, place, [x, index]), [y])
    assert_same(run(pool.scatter_hw, place, [y, index], x.shape), [reference.scatter_hw(y, index, x.shape)])


@anywhere
def test_an_empty_batch(place):
    x, window = place.put(np.ones((0, 3, 4, 4), np.float32)), ((2, 2), (2, 2), (0, 0))
    y, index = pool.max_pool2d(x, *window, (1, 1), (2, 2))
    assert y.shape == index.shape == pool.avg_pool2d(x, *window, (2, 2), True).shape == (0, 3, 2, 2)
    assert pool.gather_hw(x, index).shape == y.shape
    assert pool.scatter_hw(y, index, x.shape).shape == x.shape
    assert pool.avg_pool2d_input_grad(y, x.shape, *window, True).shape == x.shape
