"""Pooling over drawn windows: against the definition and PyTorch, with ties, NaN and infinities; average pooling's
gradient as its adjoint, max pooling's as what comes back to the first maximum; what a shift and another order do."""

import numpy as np
import oracles
import pytest
from differences import norm_distance
from hypothesis import given
from hypothesis import strategies as st

import tinyres as tr
from tinyres import ops
from tinyres.kernels import layout, use_kernels

TOLERANCE = {"float64": 1e-10, "float32": 1e-4}  # of the norm
SETS = st.sampled_from(["fast", "reference"])


@st.composite
def images(draw, ties=False):
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 8)), draw(st.integers(1, 8)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(-1, 2, shape).astype("float64") if ties else rng.standard_normal(shape)


@st.composite
def windows(draw, size, dilated=False):
    """Arguments of a pooling whose windows all fit into an image of `size` and see some of it."""
    sides = []
    for n in size:
        kernel = draw(st.integers(1, 4))
        padding = draw(st.integers(0, kernel // 2))
        widest = n + 2 * padding
        kernel = min(kernel, widest)
        dilation = draw(st.integers(1, max(1, (n - 1) // (kernel - 1)))) if dilated and kernel > 1 else 1
        sides.append((kernel, draw(st.integers(1, 4)), min(padding, kernel // 2) if dilation == 1 else 0, dilation))
    kernel, stride, padding, dilation = zip(*sides, strict=True)
    options = {"kernel_size": kernel, "stride": draw(st.sampled_from([stride, None])), "padding": padding,
               "ceil_mode": draw(st.booleans())}
    return {**options, "dilation": dilation} if dilated else {**options, "count_include_pad": draw(st.booleans())}


def oracle(name, x, options):
    return getattr(oracles, name)(x, **{"kernel" if k == "kernel_size" else k: v for k, v in options.items()})


def run(name, x, g, *args, **options):
    t = tr.tensor(x, requires_grad=True)
    y = getattr(ops, name)(t, *args, **options)
    g = g(y.shape).astype(x.dtype)
    y.backward(g)
    assert layout.is_channels_last(y.data) and y.dtype == t.grad.dtype == x.dtype
    return y.data, t.grad.data, g


def run_torch(torch, name, x, g, *args, **options):
    t = torch.tensor(x, requires_grad=True)
    y = getattr(torch.nn.functional, name)(t, *args, **options)
    y.backward(torch.tensor(g))
    return y.detach().numpy(), t.grad.numpy()


def upstream():
    return np.random.default_rng((7, 7, 7)).standard_normal  # another stream than that of any drawn image


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_max_pool(torch, dtype, ties):
    @given(st.data(), images(ties), SETS)
    def check(data, x, kernel_set):
        options = data.draw(windows(x.shape[2:], dilated=True))
        x = x.astype(dtype)
        with use_kernels(kernel_set):
            y, dx, g = run("max_pool2d", x, upstream(), **options)
        theirs, their_dx = run_torch(torch, "max_pool2d", x, g, **options)
        np.testing.assert_array_equal(y, oracle("max_pool2d", x, options))
        np.testing.assert_array_equal(y, theirs)
        assert norm_distance(dx, their_dx) < TOLERANCE[dtype]

    check()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_avg_pool(torch, dtype):
    @given(st.data(), images(), SETS)
    def check(data, x, kernel_set):
        options = data.draw(windows(x.shape[2:]))
        x = x.astype(dtype)
        with use_kernels(kernel_set):
            y, dx, g = run("avg_pool2d", x, upstream(), **options)
        assert norm_distance(y, oracle("avg_pool2d", x.astype("float64"), options)) < TOLERANCE[dtype]
        for a, t in zip((y, dx), run_torch(torch, "avg_pool2d", x, g, **options), strict=True):
            assert norm_distance(a, t) < TOLERANCE[dtype]

    check()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name, ties", [("adaptive_avg_pool2d", False), ("adaptive_max_pool2d", False),
                                        ("adaptive_max_pool2d", True)])
def test_adaptive_pool(torch, name, ties, dtype):
    @given(images(ties), st.integers(1, 9), st.integers(1, 9), SETS)
    def check(x, P, Q, kernel_set):
        x = x.astype(dtype)
        with use_kernels(kernel_set):
            y, dx, g = run(name, x, upstream(), (P, Q))
        assert y.shape == (*x.shape[:2], P, Q)
        assert norm_distance(y, getattr(oracles, name)(x.astype("float64"), (P, Q))) < TOLERANCE[dtype]
        for a, t in zip((y, dx), run_torch(torch, name, x, g, (P, Q)), strict=True):
            assert norm_distance(a, t) < TOLERANCE[dtype]

    check()


@given(st.data(), images(), SETS)
def test_gradients_are_adjoints(data, x, kernel_set):
    """Average pooling is linear: <pool(x), g> = <x, dx>. Max pooling is too, once it has chosen."""
    with use_kernels(kernel_set):
        for name, dilated in (("avg_pool2d", False), ("max_pool2d", True)):
            y, dx, g = run(name, x, upstream(), **data.draw(windows(x.shape[2:], dilated)))
            assert abs((y * g).sum() - (x * dx).sum()) <= 1e-12 * np.linalg.norm(y) * np.linalg.norm(g)
        for name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
            y, dx, g = run(name, x, upstream(), data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5))))
            assert abs((y * g).sum() - (x * dx).sum()) <= 1e-12 * np.linalg.norm(y) * np.linalg.norm(g)


@given(st.data(), images(), SETS, st.randoms(use_true_random=False))
def test_order_of_batch_and_channels(data, x, kernel_set, random):
    order = np.ix_(random.sample(range(len(x)), len(x)), random.sample(range(x.shape[1]), x.shape[1]))
    with use_kernels(kernel_set):
        for name, dilated in (("avg_pool2d", False), ("max_pool2d", True)):
            options = data.draw(windows(x.shape[2:], dilated))
            y, dx, g = run(name, x, upstream(), **options)
            moved, moved_dx, _ = run(name, x[order], lambda shape, g=g: g[order], **options)
            np.testing.assert_array_equal(moved, y[order])
            np.testing.assert_array_equal(moved_dx, dx[order])


@pytest.mark.parametrize("kernel, stride", [(2, 2), (3, 1), ((3, 2), (2, 1))])
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_shifting_the_image_shifts_the_result(name, kernel, stride):
    x, (sh, sw) = np.random.default_rng(0).standard_normal((2, 3, 9, 10)), oracles.pairs(stride)[0]
    pool = getattr(ops, name)
    y = pool(x, kernel, stride)
    np.testing.assert_array_equal(pool(x[:, :, sh:], kernel, stride), y[:, :, 1:])
    np.testing.assert_array_equal(pool(x[..., sw:], kernel, stride), y[..., 1:])


@pytest.mark.parametrize("name, args", [("max_pool2d", (2,)), ("max_pool2d", (3, 1, 1)), ("adaptive_max_pool2d", (2,)),
                                        ("max_pool2d", (2, 1, 0, 2))])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
def test_nan_and_infinities(torch, name, args, special):
    """NaN wins its windows, and is given their gradient, as in PyTorch."""
    rng = np.random.default_rng(0)
    for share in (0.1, 0.6, 1.0):
        x = np.where(rng.random((2, 3, 6, 5)) < share, special, rng.standard_normal((2, 3, 6, 5)))
        y, dx, g = run(name, x, upstream(), *args)
        theirs, their_dx = run_torch(torch, name, x, g, *args)
        np.testing.assert_array_equal(y, theirs)
        np.testing.assert_allclose(dx, their_dx, atol=1e-14)


def test_the_first_of_equal_maxima_gets_the_gradient():
    x = tr.tensor(np.zeros((1, 1, 2, 4)), requires_grad=True)
    ops.max_pool2d(x, 2).sum().backward()
    assert x.grad.tolist() == [[[[1, 0, 1, 0], [0, 0, 0, 0]]]]


def test_overlapping_windows_add_up():
    x = tr.tensor(np.array([[[[0.0, 5.0, 1.0]]]]), requires_grad=True)
    ops.max_pool2d(x, (1, 2), 1).backward(np.array([[[[2.0, 3.0]]]]))
    assert x.grad.tolist() == [[[[0, 5, 0]]]]


def test_global_average_is_the_adaptive_one():
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4))
    np.testing.assert_allclose(ops.global_avg_pool2d(x), ops.adaptive_avg_pool2d(x, 1)[:, :, 0, 0], rtol=1e-14)


def test_a_window_may_overhang_in_ceil_mode(torch):
    x = np.random.default_rng(0).standard_normal((1, 2, 2, 3))
    for name in ("max_pool2d", "avg_pool2d"):
        y, dx, g = run(name, x, upstream(), (3, 2), 2, ceil_mode=True)
        for a, t in zip((y, dx), run_torch(torch, name, x, g, (3, 2), 2, ceil_mode=True), strict=True):
            np.testing.assert_allclose(a, t, rtol=1e-13)
