"""Rules that add their contribution to what other consumers gave: in place, and only where nobody else looks."""

import numpy as np
import pytest

import tinyres as tr
from tinyres import kernels, models, random
from tinyres.graph import topological_order
from tinyres.tensor import Function


@pytest.fixture
def added(monkeypatch):
    """The shapes of the totals that input gradients were added to."""
    shapes, add = [], kernels.conv2d_input_grad_add
    monkeypatch.setattr(kernels, "conv2d_input_grad_add",
                        lambda total, *args, **options: (shapes.append(total.shape), add(total, *args, **options))[1])
    return shapes


def gradients(model, x, y, merge):
    for parameter in model.parameters():
        parameter.grad = None
    images = tr.tensor(x, requires_grad=True)
    loss = tr.cross_entropy(model(images), y)
    if merge:
        loss.backward()
    else:
        list(loss.backward_steps())
    return [p.grad.numpy() for p in model.parameters()] + [images.grad.numpy()]


@pytest.mark.parametrize("kernel_set", ["fast", "im2col", "reference"])
@pytest.mark.parametrize("name, option, merged",
                         [("resnet8", "A", 1), ("resnet8", "B", 3), ("preact_resnet20", "B", 2)])
def test_merged_gradients_equal_separate_ones(added, name, option, merged, kernel_set):
    random.manual_seed(0)
    model = models.build(name, option=option).double()
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 3, 16, 16)), np.array([3, 7])
    with kernels.use_kernels(kernel_set):
        separate = gradients(model, x, y, merge=False)
        assert added == []
        for one, other in zip(gradients(model, x, y, merge=True), separate, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * abs(other).max())
    assert len(added) >= merged


def fork():
    """x, w and y = conv(x, w) + relu(conv(x, w)) * 2: two convolutions that read one tensor, all of it in float64."""
    rng = np.random.default_rng(1)
    leaf = tr.tensor(rng.standard_normal((2, 3, 6, 6)), requires_grad=True)
    w, v = (tr.tensor(rng.standard_normal((4, 3, 3, 3)), requires_grad=True) for _ in range(2))
    x = leaf * 1.5
    return leaf, x, tr.conv2d(x, w, padding=1) + tr.relu(tr.conv2d(x, v, padding=1)) * 2.0


def test_a_fork_before_two_convolutions_is_summed_in_place(added):
    leaf, _, y = fork()
    y.sum().backward()
    assert added == [(2, 3, 6, 6)]
    merged = leaf.grad.numpy()
    leaf, _, y = fork()
    list(y.sum().backward_steps())
    np.testing.assert_allclose(merged, leaf.grad.numpy(), rtol=1e-13)


def test_what_hooks_and_retain_grad_saw_does_not_change():
    leaf, x, y = fork()
    seen = []
    x.retain_grad()
    x.register_hook(lambda grad: seen.append((grad.numpy(), grad.numpy().copy())))
    y.register_hook(lambda grad: seen.append((grad.numpy(), grad.numpy().copy())))
    g = np.random.default_rng(2).standard_normal(y.shape)
    before = g.copy()
    y.backward(g, retain_graph=True)
    first, kept = leaf.grad.numpy().copy(), x.grad.numpy().copy()
    y.backward(g)
    np.testing.assert_array_equal(g, before)
    assert len(seen) == 4
    for array, copied in seen:
        np.testing.assert_array_equal(array, copied)
    np.testing.assert_array_equal(x.grad.numpy(), kept)
    np.testing.assert_allclose(leaf.grad.numpy(), 2 * first, rtol=1e-13)


def test_a_total_that_is_also_someone_elses_is_left_alone(added):
    """The addition hands its gradient on to x as it is; the convolution must not write into that array."""
    rng = np.random.default_rng(3)
    x = tr.tensor(rng.standard_normal((2, 3, 6, 6)), requires_grad=True)
    w = tr.tensor(rng.standard_normal((3, 3, 3, 3)), requires_grad=True)
    g = rng.standard_normal((2, 3, 6, 6))
    before = g.copy()
    (x + tr.conv2d(x, w, padding=1)).backward(g)
    assert added == []
    np.testing.assert_array_equal(g, before)
    np.testing.assert_allclose(x.grad.numpy(), g + kernels.conv2d_input_grad(g, w.numpy(), g.shape, (1, 1), (1, 1),
                                                                              (1, 1), 1), rtol=1e-12)


class ChannelsFirst(Function):
    """2x, with a gradient of its own that does not lie channels last."""

    fresh = True

    def forward(self, x):
        return 2 * x

    def backward(self, grad):
        return np.ascontiguousarray(2 * grad)


@pytest.mark.parametrize("other", [ChannelsFirst.apply, lambda x: tr.adaptive_avg_pool2d(x, 4),
                                   lambda x: x @ tr.tensor(np.ones((6, 6)))], ids=["own", "pool", "matmul"])
@pytest.mark.parametrize("last", [False, True])
def test_a_total_in_another_order_of_memory(other, last):
    """Whichever of the two contributes first, the sum has both."""
    rng = np.random.default_rng(4)
    leaf = tr.tensor(rng.standard_normal((2, 9, 6, 6)), requires_grad=True)
    w = tr.tensor(rng.standard_normal((9, 9, 3, 3)), requires_grad=True)

    def gradient(merge):
        leaf.grad = None
        x = leaf * 1.0
        parts = [tr.conv2d(x, w, padding=1).sum(), other(x).sum()]
        y = parts[last] + parts[not last]
        if merge:
            y.backward()
        else:
            list(y.backward_steps())
        return leaf.grad.numpy()

    np.testing.assert_allclose(gradient(True), gradient(False), rtol=1e-12)


def test_an_op_keeps_no_total_once_it_is_done():
    """The graph may live long after, with the loss."""
    leaf, _, y = fork()
    y.sum().backward(retain_graph=True)
    nodes = topological_order([y.node])
    assert len(nodes) > 4 and not any(getattr(node, "into", ()) for node in nodes)


def test_under_create_graph_and_debug_contributions_stay_apart(added):
    leaf, _, y = fork()
    y.sum().backward(create_graph=True)
    with tr.debug():
        leaf, _, y = fork()
        y.sum().backward()
    assert added == []
