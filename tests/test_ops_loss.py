"""Losses over drawn logits: cross-entropy with every kind of target, against PyTorch, its definition and its parts."""

import numpy as np
import oracles
import pytest
from differences import norm_distance
from hypothesis import given
from hypothesis import strategies as st

import tinyres as tr
from tinyres import ops
from tinyres.kernels import use_kernels

TOLERANCE = {"float64": 1e-10, "float32": 1e-4}  # of the norm
SETS = st.sampled_from(["fast", "reference"])
REDUCTIONS = ["mean", "sum", "none"]


@st.composite
def classifications(draw, probabilities=False):
    """Logits (N, K, ...), some of them large, and targets."""
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 6)),
             *draw(st.sampled_from([(), (), (3,), (2, 3), (1, 2, 2)])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.standard_normal(shape) * draw(st.sampled_from([1.0, 10.0, 300.0]))
    if not probabilities:
        return logits, rng.integers(0, shape[1], (shape[0], *shape[2:]))
    target = rng.random(shape)
    return logits, target / target.sum(1, keepdims=True)


def run(logits, target, g, **options):
    x = tr.tensor(logits, requires_grad=True)
    y = ops.cross_entropy(x, target, **options)
    g = g(y.shape).astype(logits.dtype)
    y.backward(g)
    assert y.dtype == x.grad.dtype == logits.dtype
    return y.data, x.grad.data, g


def upstream(shape):
    return np.asarray(np.random.default_rng((7, 7, 7)).standard_normal(shape))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("probabilities", [False, True], ids=["classes", "probabilities"])
def test_cross_entropy(torch, probabilities, reduction, dtype):
    @given(classifications(probabilities), st.sampled_from([0.0, 0.1, 1.0]), SETS)
    def check(drawn, smoothing, kernel_set):
        logits, target = drawn[0].astype(dtype), drawn[1].astype(dtype) if probabilities else drawn[1]
        options = {"label_smoothing": smoothing, "reduction": reduction}
        with use_kernels(kernel_set):
            y, dx, g = run(logits, target, upstream, **options)
        wanted = oracles.cross_entropy(logits.astype("float64"), target, **options)
        assert norm_distance(y, wanted, 1.0) < TOLERANCE[dtype]
        x = torch.tensor(logits, requires_grad=True)
        theirs = torch.nn.functional.cross_entropy(x, torch.tensor(target), **options)
        theirs.backward(torch.tensor(g))
        assert norm_distance(y, theirs.detach().numpy(), 1.0) < TOLERANCE[dtype]
        size = np.linalg.norm(g) / (y.size if y.ndim else len(logits))  # softmax - target may all but vanish
        assert np.linalg.norm(dx - x.grad.numpy()) <= TOLERANCE[dtype] * max(size, np.linalg.norm(x.grad.numpy()))

    check()


@pytest.mark.parametrize("dtype, bound", [("float64", 1e-12), ("float32", 1e-5)])
@given(classifications(), st.sampled_from([0.0, 0.1, 1.0]), SETS)
def test_fused_is_its_spec(dtype, bound, drawn, smoothing, kernel_set):
    logits, target = drawn[0].astype(dtype) / max(1, np.abs(drawn[0]).max() / 20), drawn[1]
    logits = logits.astype(dtype)
    options = {"label_smoothing": smoothing, "reduction": "none"}
    with use_kernels(kernel_set):
        y, dx, g = run(logits, target, upstream, **options)
        with tr.unfused():
            spec_y, spec_dx, _ = run(logits, target, upstream, **options)
        x = tr.tensor(logits, requires_grad=True)
        (recorded,) = tr.grad(ops.cross_entropy(x, target, **options), x, tr.tensor(g), create_graph=True)
    scale = np.abs(g).max() * (1 + np.abs(logits).max())
    for a, b in ((y, spec_y), (dx, spec_dx), (dx, recorded.data)):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound * scale)


@given(classifications(), st.sampled_from([0.0, 0.3]))
def test_gradient_is_softmax_minus_target(drawn, smoothing):
    """So it adds up to 0 over the classes, and adding a constant to all logits changes nothing."""
    logits, target = drawn
    K = logits.shape[1]
    y, dx, g = run(logits, target, upstream, label_smoothing=smoothing, reduction="none")
    one_hot = np.moveaxis(np.eye(K)[target], -1, 1)
    softmax = np.exp(oracles.log_softmax(logits, 1))
    np.testing.assert_allclose(dx, g[:, None] * (softmax - (1 - smoothing) * one_hot - smoothing / K), atol=1e-12)
    np.testing.assert_allclose(dx.sum(1), 0, atol=1e-12)
    shifted, shifted_dx, _ = run(logits + 100, target, upstream, label_smoothing=smoothing, reduction="none")
    np.testing.assert_allclose(shifted, y, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(shifted_dx, dx, atol=1e-10)


def test_a_uniform_guess_costs_log_k():
    for smoothing in (0.0, 0.1):
        loss = tr.cross_entropy(tr.zeros(4, 10), np.array([0, 3, 9, 3]), smoothing)
        assert abs(loss.item() - np.log(10)) < 1e-6


def test_losses_without_overflow():
    logits = tr.tensor([[1e30, -1e30, 0.0], [-1e4, 0.0, 1e4]], requires_grad=True)
    loss = tr.cross_entropy(logits, np.array([0, 2]))
    loss.backward()
    assert loss.item() == 0 and (logits.grad.data == 0).all()
    assert tr.cross_entropy(tr.tensor([[0.0, 2000.0]]), np.array([0])).item() == 2000


def test_labels_in_any_form():
    logits = tr.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, 0.0]])
    losses = [tr.cross_entropy(logits, labels).item() for labels in
              (np.array([2, 0]), [2, 0], tr.tensor([2, 0]), np.array([2, 0], np.uint8), np.array([2, 0], np.int32))]
    assert len(set(losses)) == 1
    assert tr.cross_entropy(logits.data, np.array([2, 0])) == np.float32(losses[0])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nll_of_log_softmax_is_cross_entropy(reduction):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((5, 4)), rng.integers(0, 4, 5)
    one, other = tr.tensor(logits, requires_grad=True), tr.tensor(logits, requires_grad=True)
    a = ops.nll_loss(ops.log_softmax(one, 1), labels, reduction)
    b = ops.cross_entropy(other, labels, reduction=reduction)
    g = upstream(a.shape)
    a.backward(g)
    b.backward(g)
    np.testing.assert_allclose(a.data, b.data, rtol=1e-13)
    np.testing.assert_allclose(one.grad.data, other.grad.data, atol=1e-14)


@given(st.integers(1, 5), st.integers(1, 7), st.sampled_from([-1, 0]), st.sampled_from([1.0, 100.0, 1e6]))
def test_softmax_is_a_distribution(n, k, dim, scale):
    x = np.random.default_rng(n * k).standard_normal((n, k)).astype("float32") * np.float32(scale)
    p, logp = ops.softmax(x, dim), ops.log_softmax(x, dim)
    assert (p >= 0).all() and (logp <= 0).all()
    np.testing.assert_allclose(p.sum(dim), 1, rtol=1e-6)
    np.testing.assert_allclose(ops.softmax(x + np.float32(8), dim), p, rtol=2e-5 * scale, atol=1e-6)
