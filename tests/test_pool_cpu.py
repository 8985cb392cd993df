"""The fast pooling by itself, against the reference: any window, any channels, ties, NaN and infinities, windows that
see nothing, any index; and its gradients by finite differences. Other tests compare the reference with PyTorch."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_kernels import DTYPES, image, machine, pool_input, quick

from tinyres.kernels import cpu as fast
from tinyres.kernels import layout, reference
from tinyres.kernels.cpu import pool

# Error of a sum as a share of the sum of absolute values: in float32 about three times the worst of 2,000 draws. Means
# are kept in float64 and rounded once; scatter adds in the gradient's dtype, here at most 16 values to a pixel.
BOUNDS = {np.float32: 4e-7, np.float64: 1e-12}


@st.composite
def windows(draw, dilated=True):
    """(shape of the images, kernel, stride, padding, dilation, output), with windows that overhang in ceil mode."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 67)), draw(st.integers(1, 11)), draw(st.integers(1, 11)))
    pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
    kernel, stride = draw(pairs), draw(pairs)
    padding = tuple(draw(st.integers(0, taps // 2)) for taps in kernel)
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) if dilated else (1, 1)
    output = reference.conv_output_size(shape, kernel, stride, padding, dilation)
    assume(min(output) >= 1)
    if draw(st.booleans()):  # one more window, where it still begins inside the image
        output = tuple(n + (n * step < size + pad) for n, step, size, pad in
                       zip(output, stride, shape[2:], padding, strict=True))
    return shape, kernel, stride, padding, dilation, output


def with_ties(rng, shape, dtype, special):
    """Few different values, so that ties are everywhere; with some NaN and infinities if `special`."""
    x = rng.integers(-2, 3, shape).astype(dtype)
    if special:
        for value in (np.nan, -np.inf, np.inf):
            x[rng.random(shape) < 0.15] = value
    return layout.channels_last(x)


def assert_same(got, expected):
    """Equal bit by bit, or both NaN; channels last, and with the same dtype."""
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype and layout.is_channels_last(a)


def assert_near(got, expected, size):
    """expected and size, the same of absolute values, in float64; got in its own dtype."""
    assert got.shape == expected.shape and layout.is_channels_last(got)
    np.testing.assert_array_less(np.abs(got - expected), BOUNDS[got.dtype.type] * size + 1e-300)


@quick(150)
@given(windows(), st.sampled_from(DTYPES), st.booleans(), st.integers(0, 9999), st.integers(1, 3))
def test_max_pool_equals_reference_bit_by_bit(window, dtype, special, seed, thread_count):
    """Also where a window sees nothing but padding: -inf, and the index -1."""
    shape, *options = window
    x = with_ties(np.random.default_rng(seed), shape, dtype, special)
    with machine(thread_count, poison=True) as poisoned:
        assert_same(fast.max_pool2d(x, *options), reference.max_pool2d(x, *options))
    assert poisoned


def test_a_window_that_sees_nothing():
    """Two places two pixels apart, to the left and to the right of an image of one pixel."""
    x = np.ones((1, 2, 1, 1))
    options = (1, 2), (1, 2), (0, 1), (1, 2), (1, 1)
    y, index = fast.max_pool2d(x, *options)
    assert_same((y, index), reference.max_pool2d(x, *options))
    assert (index == -1).all() and np.isneginf(y).all()


@quick(80)
@given(st.data(), st.sampled_from(DTYPES), st.integers(1, 3))
def test_adaptive_max_pool_equals_reference_bit_by_bit(data, dtype, thread_count):
    x, _ = pool_input(data.draw, dtype)
    output = data.draw(st.tuples(st.integers(1, 11), st.integers(1, 11)))
    with machine(thread_count, poison=True):
        assert_same(fast.adaptive_max_pool2d(x, output), reference.adaptive_max_pool2d(x, output))


@quick(80)
@given(st.data(), st.sampled_from(DTYPES), st.integers(0, 9999), st.integers(1, 3))
def test_gather_and_scatter_equal_reference_for_any_index(data, dtype, seed, thread_count):
    N, H, W, P, Q = (data.draw(st.integers(1, 4)) for _ in range(5))
    C = data.draw(st.integers(1, 67))
    rng = np.random.default_rng(seed)
    x, g = image(rng, (N, C, H, W), dtype), image(rng, (N, C, P, Q), dtype)
    index = rng.integers(0, H * W, (N, C, P, Q))
    with machine(thread_count, poison=True):
        assert_same([fast.gather_hw(x, index)], [reference.gather_hw(x, index)])
        dx = fast.scatter_hw(g, index, x.shape)
    wide = g.astype(np.float64)
    assert dx.dtype == dtype
    assert_near(dx, reference.scatter_hw(wide, index, x.shape), reference.scatter_hw(abs(wide), index, x.shape))


@quick(150)
@given(windows(dilated=False), st.booleans(), st.sampled_from(DTYPES), st.integers(0, 9999), st.integers(1, 3))
def test_avg_pool_and_its_gradient_equal_reference(window, count_include_pad, dtype, seed, thread_count):
    shape, kernel, stride, padding, _, output = window
    rng = np.random.default_rng(seed)
    x, g = image(rng, shape, dtype), image(rng, (*shape[:2], *output), dtype)
    with machine(thread_count, poison=True) as poisoned:
        y = fast.avg_pool2d(x, kernel, stride, padding, output, count_include_pad)
        dx = fast.avg_pool2d_input_grad(g, shape, kernel, stride, padding, count_include_pad)
    assert poisoned and y.dtype == dx.dtype == dtype
    X, G = x.astype(np.float64), g.astype(np.float64)
    for got, function, wide, middle, last in ((y, reference.avg_pool2d, X, (), (output,)),
                                              (dx, reference.avg_pool2d_input_grad, G, (shape,), ())):
        expected, size = (function(a, *middle, kernel, stride, padding, *last, count_include_pad)
                          for a in (wide, abs(wide)))
        assert_near(got, expected, size)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_avg_pool_passes_nan_and_infinities_where_they_are_seen_and_nowhere_else(special):
    x, g = np.zeros((1, 2, 5, 5)), np.zeros((1, 2, 3, 3))
    x[0, 1, 2, 3] = g[0, 0, 1, 1] = special
    window = (3, 3), (2, 2), (1, 1)
    np.testing.assert_array_equal(fast.avg_pool2d(x, *window, (3, 3), True),
                                  reference.avg_pool2d(x, *window, (3, 3), True))
    dx = fast.avg_pool2d_input_grad(g, x.shape, *window, True)
    np.testing.assert_array_equal(dx, reference.avg_pool2d_input_grad(g, x.shape, *window, True))
    assert (~np.isfinite(dx)).sum() == 9


def test_gradients_by_finite_differences():
    """Of sum(pool(x) * g) along one direction: max pooling of values that are far apart, and average pooling."""
    rng = np.random.default_rng(0)
    shape, window, output = (2, 3, 7, 6), ((3, 2), (2, 1), (1, 1)), (4, 7)
    x = layout.nchw(rng.permutation(np.prod(shape)).reshape(2, 7, 6, 3) / 10.0)
    along, g = image(rng, shape, np.float64), image(rng, (*shape[:2], *output), np.float64)
    y, index = fast.max_pool2d(x, *window, (1, 1), output)
    gradients = (fast.scatter_hw(g, index, shape), fast.avg_pool2d_input_grad(g, shape, *window, False))
    pools = (lambda a: fast.max_pool2d(a, *window, (1, 1), output)[0],
             lambda a: fast.avg_pool2d(a, *window, output, False))
    for run, dx in zip(pools, gradients, strict=True):
        loss = [np.sum(run(x + e * along) * g) for e in (1e-5, -1e-5)]
        assert (loss[0] - loss[1]) / 2e-5 == pytest.approx(np.sum(dx * along), rel=1e-8)
    np.testing.assert_array_equal(fast.gather_hw(x, index), y)


@pytest.mark.parametrize("thread_count", [1, 2, 3])
def test_the_same_bits_in_every_run(thread_count):
    rng = np.random.default_rng(0)
    x, g = image(rng, (5, 7, 9, 8), np.float32), image(rng, (5, 7, 9, 8), np.float32)
    window = (3, 3), (1, 1), (1, 1)

    def run():
        y, index = fast.max_pool2d(x, *window, (1, 1), (9, 8))
        return [y, index, fast.scatter_hw(g, index, x.shape), fast.avg_pool2d(x, *window, (9, 8), False),
                fast.avg_pool2d_input_grad(g, x.shape, *window, False)]

    with machine(thread_count):
        first = run()
        for _ in range(10):
            assert_same(run(), first)


def test_any_memory_order_no_layout_copy_without_need_and_no_input_is_changed():
    rng = np.random.default_rng(0)
    x, g = image(rng, (2, 5, 4, 7), np.float32), image(rng, (2, 5, 2, 3), np.float32)
    window = (2, 2), (2, 2), (0, 0)

    def run(x, g):
        y, index = fast.max_pool2d(x, *window, (1, 1), (2, 3))
        return [y, index, fast.gather_hw(x, index), fast.scatter_hw(g, index, x.shape),
                fast.avg_pool2d(x, *window, (2, 3), True), fast.avg_pool2d_input_grad(g, x.shape, *window, True)]

    with layout.count_copies() as counted:
        expected = run(x, g)
    assert counted.copies == 0
    for order in (np.ascontiguousarray, lambda a: np.repeat(a, 2, axis=3)[..., ::2]):
        arrays = order(x), order(g)
        assert_same(run(*arrays), expected)
        np.testing.assert_array_equal(arrays[0], x)
        np.testing.assert_array_equal(arrays[1], g)


def test_an_empty_batch():
    x, window = np.ones((0, 3, 4, 4), np.float32), ((2, 2), (2, 2), (0, 0))
    y, index = fast.max_pool2d(x, *window, (1, 1), (2, 2))
    assert y.shape == index.shape == fast.avg_pool2d(x, *window, (2, 2), True).shape == (0, 3, 2, 2)
    assert fast.scatter_hw(y, index, x.shape).shape == x.shape
    assert fast.avg_pool2d_input_grad(y, x.shape, *window, True).shape == x.shape


def test_compiled_kernels_release_the_lock_and_keep_nan():
    for function in (pool.max_windows, pool.gather, pool.scatter, pool.mean_windows, pool.spread_windows):
        assert function.targetoptions["nogil"]
        assert function.targetoptions["fastmath"] == {"contract", "reassoc"}
