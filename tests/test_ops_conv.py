"""Convolutions of drawn shapes: against the definition, against PyTorch, and against what they must be: linear in both
factors, each gradient the adjoint, indifferent to the order of the batch, moving along with the image."""

from types import SimpleNamespace

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
SETS = st.sampled_from(["fast", "im2col", "reference"])


@st.composite
def convolutions(draw, transposed=False):
    """Input, weight, bias, upstream gradient and geometry; heights and widths are drawn apart."""
    small = st.integers(1, 3)
    groups, c, k, batch = draw(small), draw(small), draw(small), draw(st.integers(1, 2))
    sides = [draw(st.tuples(st.integers(1, 4), small, st.integers(0, 3), small, st.integers(0, 5), st.integers(0, 2)))
             for _ in range(2)]
    kernel, stride, padding, dilation, more, extra = zip(*sides, strict=True)
    span = [d * (n - 1) + 1 for n, d in zip(kernel, dilation, strict=True)]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:
        extra = [min(e, s - 1) for e, s in zip(extra, stride, strict=True)]
        options["output_padding"] = tuple(extra)
        # At least so many rows that something is left after the padding was cut off.
        size = [1 + m + max(0, -((n + e - 1 - 2 * p) // s)) for n, s, p, e, m in
                zip(span, stride, padding, extra, more, strict=True)]
        x_shape, w_shape, channels = (batch, k * groups, *size), (k * groups, c, *kernel), c * groups
    else:
        size = [max(1, n - 2 * p) + m for n, p, m in zip(span, padding, more, strict=True)]
        x_shape, w_shape, channels = (batch, c * groups, *size), (k * groups, c, *kernel), k * groups
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x, w, b = rng.standard_normal(x_shape), rng.standard_normal(w_shape), rng.standard_normal(channels)
    op = "conv_transpose2d" if transposed else "conv2d"
    y = getattr(oracles, op)(x, w, b, **options)
    return SimpleNamespace(op=op, x=x, w=w, b=b, y=y, g=rng.standard_normal(y.shape), options=options)


def in_dtype(drawn, dtype):
    return [a.astype(dtype) for a in (drawn.x, drawn.w, drawn.b, drawn.g)]


def run(op, x, w, b, g, options):
    """Output and gradients of x, w and b, as arrays."""
    inputs = [tr.tensor(a, requires_grad=True) for a in (x, w, b)]
    y = getattr(ops, op)(*inputs, **options)
    y.backward(g)
    return [y.data] + [t.grad.data for t in inputs]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv2d", "conv_transpose2d"])
def test_definition_and_adjoints(transposed, dtype):
    """y is what the definition says; <y, g> = <x, dx> = <w, dw>, which says that dx and dw are the adjoints; and the
    bias's gradient is the sum of g."""

    @given(convolutions(transposed), SETS)
    def check(drawn, kernel_set):
        x, w, b, g = in_dtype(drawn, dtype)
        with use_kernels(kernel_set):
            y, dx, dw, db = run(drawn.op, x, w, b, g, drawn.options)
        assert y.dtype == dx.dtype == dw.dtype == db.dtype == dtype
        assert all(layout.is_channels_last(a) for a in (y, dx, dw))
        assert norm_distance(y, drawn.y) < TOLERANCE[dtype] / 10
        x, w, g, linear = (a.astype("float64") for a in (x, w, g, drawn.y - drawn.b[:, None, None]))
        inner, size = (linear * g).sum(), np.linalg.norm(linear) * np.linalg.norm(g)
        assert abs((x * dx).sum() - inner) <= TOLERANCE[dtype] / 10 * size
        assert abs((w * dw).sum() - inner) <= TOLERANCE[dtype] / 10 * size
        assert norm_distance(db, g.sum((0, 2, 3))) < TOLERANCE[dtype]

    check()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv2d", "conv_transpose2d"])
def test_torch(torch, transposed, dtype):
    @given(convolutions(transposed), SETS)
    def check(drawn, kernel_set):
        x, w, b, g = in_dtype(drawn, dtype)
        with use_kernels(kernel_set):
            ours = run(drawn.op, x, w, b, g, drawn.options)
        theirs = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
        y = getattr(torch.nn.functional, drawn.op)(*theirs, **drawn.options)
        y.backward(torch.tensor(g))
        for a, t in zip(ours, [y.detach()] + [t.grad for t in theirs], strict=True):
            assert norm_distance(a, t.numpy()) < TOLERANCE[dtype]

    check()


# The layers of a ResNet, large enough for several threads and several blocks: channels in and out, kernel, stride.
LAYERS = [(3, 16, 3, 1), (16, 16, 3, 1), (16, 32, 3, 2), (16, 32, 1, 2), (64, 64, 3, 1), (3, 64, 7, 2), (64, 16, 1, 1)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("C, K, R, stride", LAYERS)
def test_torch_at_the_size_of_a_network(torch, C, K, R, stride, dtype):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((8, C, 24, 20)).astype(dtype), rng.standard_normal((K, C, R, R)).astype(dtype)
    options = {"stride": stride, "padding": R // 2}
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, w)]
    y = torch.nn.functional.conv2d(*theirs, **options)
    g = rng.standard_normal(tuple(y.shape)).astype(dtype)
    y.backward(torch.tensor(g))
    ours = [tr.tensor(a, requires_grad=True) for a in (x, w)]
    out = ops.conv2d(*ours, **options)
    out.backward(g)
    for a, t in zip([out.data] + [t.grad.data for t in ours], [y.detach()] + [t.grad for t in theirs], strict=True):
        assert norm_distance(a, t.numpy()) < TOLERANCE[dtype]


@given(convolutions(), SETS)
def test_transposed_is_the_adjoint(drawn, kernel_set):
    """<conv2d(x), g> = <x, conv_transpose2d(g)>, with the output padding that gives x's size back."""
    x, w, g, options = drawn.x, drawn.w, drawn.g, drawn.options
    with use_kernels(kernel_set):
        smallest = ops.conv_transpose2d(g, w, **options) if _has_room(g, w, options) else None
        if smallest is None:
            return
        extra = tuple(n - m for n, m in zip(x.shape[2:], smallest.shape[2:], strict=True))
        back = ops.conv_transpose2d(g, w, **options, output_padding=extra)
    y = drawn.y - drawn.b[:, None, None]
    assert back.shape == x.shape
    assert abs((back * x).sum() - (y * g).sum()) <= 1e-11 * np.linalg.norm(y) * np.linalg.norm(g)


def _has_room(g, w, options):
    numbers = zip(g.shape[2:], w.shape[2:], options["stride"], options["padding"], options["dilation"], strict=True)
    return all((n - 1) * s - 2 * p + d * (k - 1) + 1 > 0 for n, k, s, p, d in numbers)


@given(convolutions(), SETS, st.randoms(use_true_random=False))
def test_order_of_the_batch_and_of_the_channels(drawn, kernel_set, random):
    x, w, g, options = drawn.x, drawn.w, drawn.g, drawn.options
    batch, outputs = random.sample(range(len(x)), len(x)), random.sample(range(len(w)), len(w))
    with use_kernels(kernel_set):
        y, dx, dw, db = run("conv2d", x, w, drawn.b, g, options)
        py, pdx, pdw, _ = run("conv2d", x[batch], w, drawn.b, g[batch], options)
        for a, b in ((py, y[batch]), (pdx, dx[batch]), (pdw, dw)):
            assert norm_distance(a, b) < 1e-12
        if options["groups"] == 1:
            py, pdx, pdw, pdb = run("conv2d", x, w[outputs], drawn.b[outputs], g[:, outputs], options)
            for a, b in ((py, y[:, outputs]), (pdx, dx), (pdw, dw[outputs]), (pdb, db[outputs])):
                assert norm_distance(a, b) < 1e-12


@given(convolutions(), SETS)
def test_shifting_the_image_shifts_the_result(drawn, kernel_set):
    """By one stride: the windows are the same ones, numbered anew, apart from those that see the padding."""
    (sh, sw), w = drawn.options["stride"], drawn.w
    options = {**drawn.options, "padding": 0}
    x = np.random.default_rng(0).standard_normal((*drawn.x.shape[:2], 14, 15))
    with use_kernels(kernel_set):
        y = ops.conv2d(x, w, **options)
        np.testing.assert_allclose(ops.conv2d(x[:, :, sh:], w, **options), y[:, :, 1:], atol=1e-12)
        np.testing.assert_allclose(ops.conv2d(x[..., sw:], w, **options), y[..., 1:], atol=1e-12)


def test_groups_are_convolutions_of_their_own():
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((2, 6, 5, 5)), rng.standard_normal((9, 2, 3, 3)), rng.standard_normal(9)
    parts = [ops.conv2d(x[:, 2 * i:2 * i + 2], w[3 * i:3 * i + 3], b[3 * i:3 * i + 3], padding=1) for i in range(3)]
    np.testing.assert_allclose(ops.conv2d(x, w, b, padding=1, groups=3), np.concatenate(parts, 1), atol=1e-12)


def test_dilation_is_a_kernel_with_holes():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 9, 9)), rng.standard_normal((4, 3, 2, 3))
    holes = np.zeros((4, 3, 4, 5))
    holes[:, :, ::3, ::2] = w
    np.testing.assert_allclose(ops.conv2d(x, w, dilation=(3, 2)), ops.conv2d(x, holes), atol=1e-12)


@pytest.mark.parametrize("kernel, dilation", [(1, 1), (3, 1), ((1, 5), 1), (3, 2), (2, 2), ((3, 2), (1, 2))])
def test_same_keeps_the_size(kernel, dilation):
    kernel = oracles.pairs(kernel)[0]
    x, w = np.random.default_rng(0).standard_normal((2, 3, 6, 7)), np.ones((4, 3, *kernel))
    dilated = oracles.pairs(dilation)[0]
    padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilated, strict=True))
    y = ops.conv2d(x, w, padding="same", dilation=dilation)
    assert y.shape == (2, 4, 6, 7)
    np.testing.assert_allclose(y, oracles.conv2d(x, w, padding=padding, dilation=dilation), atol=1e-12)
    valid = ops.conv2d(x, w, padding="valid", dilation=dilation)
    np.testing.assert_allclose(valid, oracles.conv2d(x, w, dilation=dilation), atol=1e-12)


def test_third_derivative():
    """Each rule calls its siblings. Along a line through (x, w), t * <u, conv2d> is a + b t + c t^2 times t: its second
    derivative is 2 b + 6 c t and its third 6 c."""
    rng = np.random.default_rng(0)
    shapes = (2, 4, 5, 6), (6, 2, 3, 3)
    options = {"stride": (1, 2), "padding": (1, 0), "groups": 2}
    x, w, dx, dw = (rng.standard_normal(s) for s in shapes * 2)
    u = rng.standard_normal(ops.conv2d(x, w, **options).shape)
    b, c = (sum((oracles.conv2d(*pair, **options) * u).sum() for pair in pairs) for pairs in (((x, dw), (dx, w)),
                                                                                              ((dx, dw),)))
    t = tr.tensor(np.array(0.3), requires_grad=True)
    f = t * (ops.conv2d(tr.tensor(x) + t * tr.tensor(dx), tr.tensor(w) + t * tr.tensor(dw), **options) * u).sum()
    derivatives = []
    for _ in range(3):
        (f,) = tr.grad(f, t, create_graph=True)
        derivatives.append(f.item())
    np.testing.assert_allclose(derivatives[1:], [2 * b + 6 * c * 0.3, 6 * c], rtol=1e-12)
