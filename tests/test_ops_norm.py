"""Batch normalisation with its addition and ReLU, against PyTorch, against its own parts and against the two identities
of its gradient."""

import itertools

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
COMBINATIONS = list(itertools.product([True, False], repeat=4))  # training, add, relu, affine


@st.composite
def batches(draw):
    """x, weight, bias, add: at least 4 values a channel, of 2 to 4 dimensions, not centred."""
    shape = draw(st.sampled_from([(4, 3), (7, 1), (3, 2, 5), (2, 3, 2, 3), (5, 4, 1, 1), (1, 2, 4, 3), (3, 70, 2, 2),
                                  (6, 9, 3, 1)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x, add = rng.standard_normal((2, *shape))
    x = x * rng.uniform(0.5, 2, (shape[1], *[1] * (len(shape) - 2))) + rng.standard_normal((shape[1],
                                                                                            *[1] * (len(shape) - 2)))
    return x, rng.standard_normal(shape[1]), rng.standard_normal(shape[1]), add


def unit(g):
    """A gradient may all but cancel: what it is then measured by."""
    return 0.1 * np.linalg.norm(g)


def run(x, weight, bias, add, g, running=(None, None), training=True, relu=False, momentum=0.1, eps=1e-5):
    """Output, gradients of x, weight, bias and add (None where absent), as arrays."""
    inputs = [None if a is None else tr.tensor(a, requires_grad=True) for a in (x, weight, bias, add)]
    y = ops.batch_norm(inputs[0], *running, *inputs[1:3], training, momentum, eps, add=inputs[3], relu=relu)
    y.backward(g)
    assert y.ndim != 4 or layout.is_channels_last(y.data) and layout.is_channels_last(inputs[0].grad.data)
    return [y.data] + [None if t is None else t.grad.data for t in inputs]


def run_torch(torch, x, weight, bias, add, g, running=(None, None), training=True, relu=False, momentum=0.1, eps=1e-5):
    inputs = [None if a is None else torch.tensor(a, requires_grad=True) for a in (x, weight, bias, add)]
    y = torch.nn.functional.batch_norm(inputs[0], *running, *inputs[1:3], training, momentum, eps)
    y = y if add is None else y + inputs[3]
    y = y.relu() if relu else y
    y.backward(torch.tensor(g))
    return [y.detach().numpy()] + [None if t is None else t.grad.numpy() for t in inputs]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("training, with_add, relu, affine", COMBINATIONS)
def test_torch(torch, training, with_add, relu, affine, dtype):
    @given(batches(), SETS, st.floats(0, 1), st.sampled_from([1e-5, 1e-3, 0.5]))
    def check(drawn, kernel_set, momentum, eps):
        x, weight, bias, add = (a.astype(dtype) for a in drawn)
        rng = np.random.default_rng((7, 7, 7))
        mean, var = rng.standard_normal(len(weight)).astype(dtype), rng.uniform(0.5, 2, len(weight)).astype(dtype)
        g = rng.standard_normal(x.shape).astype(dtype)
        if relu:  # at an output of nearly 0 the two libraries may round to different sides
            edge = oracles.batch_norm(*drawn[:3] if affine else drawn[:1], add=drawn[3] if with_add else None,
                                      mean=None if training else mean, var=None if training else var, eps=eps)
            g[np.abs(edge) < 1e-4] = 0
        parts = [x, weight if affine else None, bias if affine else None, add if with_add else None, g]
        running, theirs = (mean.copy(), var.copy()), (torch.tensor(mean), torch.tensor(var))
        options = {"training": training, "relu": relu, "momentum": momentum, "eps": eps}
        with use_kernels(kernel_set):
            ours = run(*parts, running, **options)
        for a, t in zip(ours, run_torch(torch, *parts, theirs, **options), strict=True):
            assert (a is None) == (t is None)
            assert a is None or (a.dtype == dtype and norm_distance(a, t, unit(g)) < TOLERANCE[dtype])
        for a, t in zip(running, theirs, strict=True):
            np.testing.assert_allclose(a, t.numpy(), rtol=TOLERANCE[dtype] / 50, atol=TOLERANCE[dtype] / 50)
        assert training or (running[0] == mean).all() and (running[1] == var).all()

    check()


@pytest.mark.parametrize("momentum", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 3)])
def test_running_statistics_over_several_steps(torch, shape, momentum):
    """As PyTorch moves them: towards the batch's mean and unbiased variance; in place, in arrays and in Tensors."""
    rng = np.random.default_rng(0)
    arrays = [np.zeros(3), np.ones(3)]
    tensors, theirs = [tr.tensor(a) for a in arrays], [torch.tensor(a) for a in arrays]
    kept = arrays[0]
    for step in range(5):
        x = rng.standard_normal(shape) * (step + 1) + step
        ops.batch_norm(x, *arrays, training=True, momentum=momentum)
        ops.batch_norm(tr.tensor(x), *tensors, training=True, momentum=momentum)
        torch.nn.functional.batch_norm(torch.tensor(x), *theirs, training=True, momentum=momentum)
        for a, t, w in zip(arrays, tensors, theirs, strict=True):
            np.testing.assert_allclose(a, w.numpy(), rtol=1e-13)
            np.testing.assert_array_equal(a, t.data)
    assert arrays[0] is kept and tensors[0].version.count == 5


@pytest.mark.parametrize("relu", [False, True])
@given(batches(), SETS, st.sampled_from([1e-5, 0.1, 3.0]))
def test_identities_of_the_gradient(relu, drawn, kernel_set, eps):
    """In each channel <dx, 1> = 0, and <dx, xhat> = weight * istd * eps / (v + eps) * <g', xhat>, which is not 0."""
    x, weight, bias, add = drawn
    g = np.random.default_rng((7, 7, 7)).standard_normal(x.shape)
    with use_kernels(kernel_set):
        y, dx, dweight, dbias, dadd = run(x, weight, bias, add, g, relu=relu, eps=eps)
    axes, channel = (0, *range(2, x.ndim)), (-1, *[1] * (x.ndim - 2))
    mean, var = x.mean(axes).reshape(channel), x.var(axes).reshape(channel)
    xhat, behind = (x - mean) / np.sqrt(var + eps), np.where(y > 0, g, 0) if relu else g
    bound = 1e-12 * np.linalg.norm(g) * max(1, np.abs(weight).max() / np.sqrt((var + eps).min()))
    np.testing.assert_allclose(dx.sum(axes), 0, atol=bound)
    factor = (weight.reshape(channel) / np.sqrt(var + eps) * eps / (var + eps)).reshape(-1)
    np.testing.assert_allclose((dx * xhat).sum(axes), factor * (behind * xhat).sum(axes), rtol=1e-9, atol=bound)
    np.testing.assert_allclose(dweight, (behind * xhat).sum(axes), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(dbias, behind.sum(axes), rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(dadd, behind)


@pytest.mark.parametrize("training", [True, False])
@given(batches(), st.randoms(use_true_random=False))
def test_order_of_the_batch_and_scale_of_the_input(training, drawn, random):
    x, weight, bias, add = drawn
    g, order = np.random.default_rng((7, 7, 7)).standard_normal(x.shape), random.sample(range(len(x)), len(x))
    running = (np.zeros(len(weight)), np.ones(len(weight)))
    y, dx, dw, db, da = run(x, weight, bias, add, g, [r.copy() for r in running], training)
    py, pdx, pdw, pdb, pda = run(x[order], weight, bias, add[order], g[order], [r.copy() for r in running], training)
    for a, b in ((py, y[order]), (pdx, dx[order]), (pda, da[order]), (pdw, dw), (pdb, db)):
        assert norm_distance(a, b, unit(g)) < 1e-11
    if training:  # what batch norm is for: a factor and an offset of its input do not matter
        sy, sdx = run(3 * x + 7, weight, bias, add, g, eps=9e-5)[:2]
        assert norm_distance(sy, y) < 1e-11 and norm_distance(3 * sdx, dx, unit(g)) < 1e-10


@pytest.mark.parametrize("dtype, bound", [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("training, with_add, relu, affine", COMBINATIONS)
def test_fused_is_its_spec(training, with_add, relu, affine, dtype, bound):
    """Outputs and gradients of the kernel and of the elementary ops differ by rounding only; and so does the kernel's
    gradient from the one under create_graph."""

    @given(batches(), SETS)
    def check(drawn, kernel_set):
        x, weight, bias, add = (a.astype(dtype) for a in drawn)
        rng = np.random.default_rng((7, 7, 7))
        g = rng.standard_normal(x.shape).astype(dtype)
        statistics = rng.standard_normal(len(weight)).astype(dtype), rng.uniform(0.5, 2, len(weight)).astype(dtype)
        if relu:
            edge = oracles.batch_norm(*drawn[:3] if affine else drawn[:1], add=drawn[3] if with_add else None,
                                      mean=None if training else statistics[0], var=None if training else statistics[1])
            g[np.abs(edge) < 1e-4] = 0
        parts = [x, weight if affine else None, bias if affine else None, add if with_add else None, g]
        after = [[s.copy() for s in statistics] for _ in range(2)]
        with use_kernels(kernel_set):
            fused = run(*parts, after[0], training, relu)
            with tr.unfused():
                parts_of_it = run(*parts, after[1], training, relu)
        inputs = [None if a is None else tr.tensor(a, requires_grad=True) for a in parts[:4]]
        y = ops.batch_norm(inputs[0], *[s.copy() for s in statistics], *inputs[1:3], training, add=inputs[3], relu=relu)
        assert y.node.name == "batch_norm"
        present = [t for t in inputs if t is not None]
        recorded = tr.grad(y, present, tr.tensor(g), create_graph=True)
        for a, b in zip(fused, parts_of_it, strict=True):
            assert a is b is None or norm_distance(a, b, unit(g)) < bound
        for a, b in zip([a for a in fused[1:] if a is not None], recorded, strict=True):
            assert norm_distance(b.data, a, unit(g)) < bound
        for a, b in zip(*after, strict=True):
            np.testing.assert_array_equal(a, b)

    check()


def test_unfused_shows_the_parts():
    x, add = tr.randn(2, 3, 2, 2, requires_grad=True), tr.randn(2, 3, 2, 2, requires_grad=True)
    names = []
    with tr.unfused():
        y = ops.batch_norm(x, training=True, add=add, relu=True)
    for event in y.sum().backward_steps():
        if event.kind == "done":
            names.append(event.node.name)
    assert "batch_norm" not in names and {"relu", "add", "sqrt", "div", "sub", "mul"} <= set(names)


def test_a_constant_channel_is_not_nan():
    x = np.full((4, 2, 3, 3), 3.0, np.float32)
    g = np.random.default_rng(0).standard_normal(x.shape).astype("float32")
    for kernel_set in ("fast", "reference"):
        with use_kernels(kernel_set):
            y, dx, _, _, _ = run(x, np.ones(2, "f"), np.zeros(2, "f"), None, g)
        assert np.abs(y).max() < 1e-3 and np.isfinite(dx).all()


@pytest.mark.parametrize("kernel_set", ["fast", "reference"])
def test_nan_reaches_its_channel_only(kernel_set):
    x = np.random.default_rng(0).standard_normal((3, 2, 2, 2))
    x[1, 0, 1, 1] = np.nan
    with use_kernels(kernel_set):
        y, dx, dweight, _, _ = run(x, np.ones(2), np.zeros(2), None, np.ones_like(x), relu=True)
    assert np.isnan(y[:, 0]).all() and np.isnan(dx[:, 0]).all() and np.isnan(dweight[0])
    assert np.isfinite(y[:, 1]).all() and np.isfinite(dx[:, 1]).all()
