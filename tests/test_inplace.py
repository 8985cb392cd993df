"""Changing arrays in place: right where nobody kept the old values, an error naming both ops where somebody did, and
never a gradient that is silently wrong."""

import numpy as np
import pytest

import tinyres as tr
from tinyres import ops


def leaf(values, dtype="float64"):
    return tr.tensor(np.array(values, dtype), requires_grad=True)


def pair():
    return leaf([1.0, -2.0, 3.0]), leaf([0.5, 2.0, -1.0])


def changed(keeper, writer):
    """What the error must say: who kept, who changed, what to do."""
    return rf"{keeper} kept an array .* and {writer} changed it in place since: .*without underscore"


# ---- where it is right


def test_add_inplace_where_nobody_kept_the_old_values():
    x, w = pair()
    h = x + 1.0
    alias = h
    h += w
    assert h is alias and h.node.name == "add_"
    np.testing.assert_array_equal(h.numpy(), x.numpy() + 1 + w.numpy())
    (h * h).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * (x.numpy() + 1 + w.numpy()))
    np.testing.assert_allclose(w.grad.numpy(), 2 * (x.numpy() + 1 + w.numpy()))


def test_mul_inplace_needs_the_old_value_and_keeps_it():
    x, w = pair()
    h = x + 1.0
    h *= w
    h.sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), x.numpy() + 1)
    np.testing.assert_allclose(x.grad.numpy(), w.numpy())


def test_relu_inplace_after_batch_norm_equals_the_one_with_a_copy():
    rng = np.random.default_rng(0)
    values, upstream = rng.standard_normal((4, 3, 2, 2)), rng.standard_normal((4, 3, 2, 2))
    grads = []
    for relu in (ops.relu, ops.relu_):
        x, gamma, beta = leaf(values), leaf([1.0, 2.0, -1.0]), leaf([0.1, 0.2, 0.3])
        shortcut = x * 1.0
        out = ops.batch_norm(x, weight=gamma, bias=beta, training=True)
        out = relu(out.add_(shortcut) if relu is ops.relu_ else out + shortcut)
        out.backward(upstream)
        grads.append([t.grad.numpy() for t in (x, gamma, beta)])
    for a, b in zip(*grads, strict=True):
        np.testing.assert_array_equal(a, b)


def test_relu_inplace_after_ops_that_keep_only_inputs():
    x, w = pair()
    for h in (x + w, x * w, x - w, ops.where(x.numpy() > 0, x, w)):
        x.grad = w.grad = None
        expected = tr.grad(ops.relu(h).sum(), [x, w], retain_graph=True)
        ops.relu_(h).sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), expected[0].numpy())
        np.testing.assert_array_equal(w.grad.numpy(), expected[1].numpy())


def test_add_to_itself_in_place():
    x, _ = pair()
    h = x * 1.0
    h += h
    (h * h).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 8 * x.numpy())


def test_inplace_on_a_tensor_that_needed_no_gradient_makes_it_need_one():
    _, w = pair()
    total = tr.zeros(3, dtype="float64")
    total += w
    total += w * w
    assert total.requires_grad and not total.is_leaf
    total.sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), 1 + 2 * w.numpy())


def test_inplace_under_create_graph_adds():
    x, w = pair()
    h = x * 1.0
    h += w * w
    (g,) = tr.grad((h * h).sum(), w, create_graph=True)  # 4 w (x + w**2)
    (second,) = tr.grad(g.sum(), x)
    np.testing.assert_allclose(second.numpy(), 4 * w.numpy())


def test_mul_inplace_under_create_graph():
    """f = (x w)**2 with x w made in place: d2f / dw dx = 4 x w."""
    x, w = pair()
    h = x * 1.0
    h *= w
    (g,) = tr.grad((h * h).sum(), w, create_graph=True)
    (mixed,) = tr.grad(g.sum(), x)
    np.testing.assert_allclose(mixed.numpy(), 4 * x.numpy() * w.numpy())


def test_div_inplace_under_create_graph():
    """f = (x / w)**2 with x / w made in place: d2f / dw dx = -4 x / w**3."""
    x, w = pair()
    h = x * 1.0
    h /= w
    (g,) = tr.grad((h * h).sum(), w, create_graph=True)
    (mixed,) = tr.grad(g.sum(), x)
    np.testing.assert_allclose(mixed.numpy(), -4 * x.numpy() / w.numpy() ** 3)


def test_gradient_descent_by_hand_moves_the_leaf_itself():
    x = leaf([1.0, -2.0])
    array = x.data
    (x * x).sum().backward()
    with tr.no_grad():
        x -= 0.25 * x.grad
        x /= 2.0
    assert x.data is array and x.is_leaf and x.requires_grad
    np.testing.assert_array_equal(array, [0.25, -0.5])


def test_a_change_after_backward_harms_nobody():
    x, w = pair()
    h = x * w
    y = ops.exp(h)
    y.sum().backward()
    y += 1.0
    h += 1.0
    np.testing.assert_allclose(x.grad.numpy(), w.numpy() * np.exp(x.numpy() * w.numpy()))


# ---- where an op kept the old values


@pytest.mark.parametrize("keeper, make", [
    ("exp", ops.exp), ("sigmoid", ops.sigmoid), ("tanh", ops.tanh), ("relu", ops.relu),
    ("sqrt", lambda x: ops.sqrt(x * x + 1.0)), ("pow", lambda x: (x * x) ** 1.5),
    ("log_softmax", lambda x: ops.log_softmax(x, 0)),
])
@pytest.mark.parametrize("writer, change", [
    ("relu_", lambda h: ops.relu_(h)), ("add_", lambda h: h.add_(1.0)), ("mul_", lambda h: h.mul_(2.0)),
])
def test_an_op_that_kept_its_output_names_who_changed_it(keeper, make, writer, change):
    x, _ = pair()
    h = make(x)
    out = change(h).sum()
    with pytest.raises(RuntimeError, match=changed(keeper, writer)):
        out.backward()
    assert x.grad is None


@pytest.mark.parametrize("keeper, use", [
    ("mul", lambda h, w: h * w), ("div", lambda h, w: w / h), ("log", lambda h, w: ops.log(h.add_(3.0)) + w),
    ("mul", lambda h, w: h * h), ("matmul", lambda h, w: h @ ops.unsqueeze(w, 1)),
])
def test_an_op_that_kept_its_input_names_who_changed_it(keeper, use):
    x, w = pair()
    h = ops.unsqueeze(x, 0) + 1.0
    out = use(h, w).sum()
    h += 1.0
    with pytest.raises(RuntimeError, match=changed(keeper, "add_")):
        out.backward()


def test_the_last_writer_is_named():
    x, _ = pair()
    h = ops.exp(x)
    out = ops.relu_(h.add_(1.0)).sum()
    with pytest.raises(RuntimeError, match=changed("exp", "relu_")):
        out.backward()


@pytest.mark.parametrize("factor", [lambda h: h, lambda h: h.detach()])
def test_multiplying_by_itself_in_place_is_an_error_and_not_a_wrong_gradient(factor):
    x, _ = pair()
    h = x * 1.0
    h.mul_(factor(h))
    with pytest.raises(RuntimeError, match=changed("mul_", "mul_")):
        h.sum().backward()


def test_an_optimizer_that_writes_and_says_so_is_noticed():
    x, w = pair()
    loss = (x * w).sum()
    w.data -= 0.1
    w.bump("SGD")
    with pytest.raises(RuntimeError, match=changed("mul", "SGD")):
        loss.backward()
    (x * w).sum().backward()  # the next step is a new graph
    np.testing.assert_array_equal(x.grad.numpy(), w.numpy())


def test_assigning_to_a_slice_is_noticed():
    x, _ = pair()
    constant = tr.tensor([1.0, 2.0, 3.0], dtype="float64")
    loss = (x * constant).sum()
    constant[1] = 7.0
    with pytest.raises(RuntimeError, match=changed("mul", "__setitem__")):
        loss.backward()


def test_writing_into_a_detached_tensor_is_noticed_by_who_kept_the_original():
    x, _ = pair()
    h = ops.exp(x)
    h.detach().add_(1.0)
    with pytest.raises(RuntimeError, match=changed("exp", "add_")):
        h.sum().backward()


def test_the_graph_of_a_gradient_notices_a_change_too():
    for keep in (ops.exp, ops.tanh):
        x, _ = pair()
        h = keep(x)
        (g,) = tr.grad(h.sum(), x, create_graph=True)
        h.detach().add_(1.0)
        with pytest.raises(RuntimeError, match=changed("mul", "add_")):
            tr.grad(g.sum(), x)
    x, _ = pair()
    constant = tr.tensor([1.0, 2.0, 3.0], dtype="float64")
    (g,) = tr.grad(ops.exp(x * constant).sum(), x, create_graph=True)
    constant.add_(1.0)
    with pytest.raises(RuntimeError, match=changed("mul", "add_")):
        tr.grad(g.sum(), x)


def test_abandoned_second_pass_over_a_changed_graph_leaves_gradients():
    x, w = pair()
    h = x * w
    h.sum().backward(retain_graph=True)
    grad = x.grad.numpy().copy()
    w.data *= 2.0
    w.bump("SGD")
    with pytest.raises(RuntimeError, match=changed("mul", "SGD")):
        h.sum().backward()
    assert x.grad.numpy().tobytes() == grad.tobytes()


# ---- leaves, views, read-only memory, shapes


@pytest.mark.parametrize("change", [lambda x: x.add_(1.0), lambda x: x.mul_(2.0), lambda x: ops.relu_(x),
                                    lambda x: x.__iadd__(1.0), lambda x: x.__isub__(1.0),
                                    lambda x: x.__itruediv__(2.0)])
def test_a_leaf_that_requires_a_gradient(change):
    x, _ = pair()
    values = x.numpy().copy()
    with pytest.raises(RuntimeError, match=r"(add|sub|mul|div|relu)_: a leaf that requires a gradient .* no_grad\(\)"):
        change(x)
    assert x.numpy().tobytes() == values.tobytes()
    with tr.no_grad():
        change(x)
    assert x.is_leaf and x.requires_grad and x.version.count == 1


VIEWS = {
    "slice": lambda h: h[:2], "reshape": lambda h: h.reshape(3, 1), "transpose": lambda h: h.reshape(1, 3).T,
    "column": lambda h: h.reshape(3, 1)[:, 0], "new dimension": lambda h: h[None],
    "split": lambda h: ops.split(h, 2)[0], "iterated": lambda h: next(iter(h.reshape(1, 3))),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_whose_gradient_is_recorded(view):
    x, w = pair()
    h = ops.tanh(x)
    v = VIEWS[view](h)
    assert np.shares_memory(v.data, h.data)
    values = h.numpy().copy()
    with pytest.raises(RuntimeError, match=r"relu_: the tensor of shape .* shares memory with a view"):
        ops.relu_(v)
    with pytest.raises(RuntimeError, match=r"add_: the tensor of shape .* shares memory with a view"):
        h += w
    assert h.numpy().tobytes() == values.tobytes()
    h.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 1 - np.tanh(x.numpy()) ** 2)


@pytest.mark.parametrize("copy", [lambda h: h[[0, 1]], lambda h: h[h.numpy() > 0], lambda h: h * 1.0,
                                  lambda h: ops.concat([h, h]), lambda h: h.float().double()])
def test_a_copy_is_no_view_and_may_be_changed(copy):
    x, _ = pair()
    h = ops.tanh(x)
    out = ops.relu_(copy(h))
    (out.sum() + h.sum()).backward()
    h += 1.0  # h was never viewed
    assert x.grad is not None


def test_a_view_is_noticed_also_without_gradients():
    x, _ = pair()
    base = tr.tensor([1.0, 2.0, 3.0], dtype="float64")
    part = base[1:]
    loss = (x * base).sum()
    part += 1.0
    with pytest.raises(RuntimeError, match=changed("mul", "add_")):
        loss.backward()


def test_a_gradient_may_not_enter_a_base_whose_views_would_miss_it():
    """total[:2] was taken while total needed no gradient; after total += w it would hold w without leading to it."""
    _, w = pair()
    total = tr.zeros(3, dtype="float64")
    first = total[:2]
    with pytest.raises(RuntimeError, match="add_: the tensor of shape .* shares memory with a view"):
        total += w
    assert not first.numpy().any()


def test_views_made_under_no_grad_are_no_obstacle():
    x, w = pair()
    h = x * 1.0
    with tr.no_grad():
        peek = h[:1].numpy().copy()
    h += w
    h.sum().backward()
    assert peek == 1.0 and w.grad is not None


def test_a_gradient_may_not_enter_through_a_view_outside_the_graph():
    x, w = pair()
    h = x * 1.0
    with tr.no_grad():
        peek = h[:2]
    for view in (peek, h.detach()[:2], h.detach()):
        with pytest.raises(RuntimeError, match="add_: the tensor of shape .* shares memory with a view"):
            view.add_(w[: view.shape[0]])
    peek.add_(1.0)  # without a gradient it may
    assert h.numpy()[0] == x.numpy()[0] + 1 and not h.version.viewed


def test_a_custom_op_that_returns_its_input_makes_a_view():
    class Same(tr.Function):
        def forward(self, x):
            return x

        def backward(self, grad):
            return grad

    x, _ = pair()
    h = ops.exp(x)
    with pytest.raises(RuntimeError, match="relu_: the tensor of shape .* shares memory with a view"):
        ops.relu_(Same.apply(h))
    with tr.no_grad():
        Same.apply(h).add_(1.0)
    with pytest.raises(RuntimeError, match=changed("exp", "add_")):
        h.sum().backward()


def test_read_only_arrays():
    frozen = np.arange(3.0)
    frozen.flags.writeable = False
    for array in (frozen, np.broadcast_to(np.ones(1), (3,))):
        with pytest.raises(ValueError, match=r"add_: the array of shape \(3,\) is read-only; .*without underscore"):
            tr.Tensor(array).add_(1.0)
    x, _ = pair()
    with pytest.raises(ValueError, match=r"relu_: the array of shape \(2, 3\) is read-only"):
        ops.relu_(ops.broadcast_to(x, (2, 3)))


@pytest.mark.parametrize("change, name", [(lambda h, b: h.add_(b), "add_"), (lambda h, b: h.mul_(b), "mul_")])
def test_an_operand_that_broadcasts_too_large(change, name):
    x, _ = pair()
    h = x * 1.0
    version = h.version.count
    with pytest.raises(ValueError, match=rf"{name}: an operand of shape \(2, 3\) does not fit into \(3,\) in place"):
        change(h, tr.ones(2, 3, dtype="float64"))
    assert h.version.count == version and h.node.name == "mul"
    h.sum().backward()


def test_an_operand_that_broadcasts_into_the_target():
    x, w = leaf(np.ones((2, 3))), leaf([1.0, 2.0, 3.0])
    h = x * 1.0
    h += w
    h *= w
    h.sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), 2 * (1 + 2 * w.numpy()))


def test_what_is_not_a_tensor_cannot_be_changed_in_place():
    x, _ = pair()
    with pytest.raises(TypeError, match="add_ changes its first input in place, so that must be a Tensor, got ndarray"):
        ops.inplace.AddInplace.apply(np.ones(3), x)


def test_retain_grad_follows_the_tensor_through_a_change(torch):
    x, w = pair()
    h = x * 2.0
    h.retain_grad()
    h *= w
    (h * h).sum().backward()
    a, b = (torch.tensor(t.numpy(), requires_grad=True) for t in (x, w))
    k = a * 2.0
    k.retain_grad()
    k *= b
    (k * k).sum().backward()
    for ours, theirs in ((h, k), (x, a), (w, b)):
        np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy())
