"""Hooks on tensors: when they are called, with what, what they may replace, and that they can be taken off."""

import gc
import weakref

import numpy as np
import pytest

import tinyres as tr


def leaf(values):
    return tr.tensor(np.array(values, "float64"), requires_grad=True)


def double(grad):
    return grad * 2.0


def test_a_hook_sees_the_whole_gradient_once():
    x = leaf([1.0, 2.0])
    h = x * 3.0
    seen = []
    h.register_hook(lambda g: seen.append(g.numpy().copy()))
    (h * h + tr.exp(h) + h).sum().backward()  # three consumers, one call
    np.testing.assert_allclose(seen, [2 * h.numpy() + np.exp(h.numpy()) + 1])
    np.testing.assert_allclose(x.grad.numpy(), 3 * seen[0])


def test_what_a_hook_sees_is_a_tensor_outside_the_graph():
    x = leaf([1.0, 2.0])
    seen = []
    x.register_hook(seen.append)
    (x * 3.0).sum().backward()
    assert isinstance(seen[0], tr.Tensor) and not seen[0].requires_grad
    x.grad.data[...] = 0.0  # what was handed to the hook is not the leaf's own memory
    np.testing.assert_array_equal(seen[0].numpy(), [3.0, 3.0])


def test_a_hook_on_an_interior_tensor_replaces_what_goes_on():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    h = x * y
    h.register_hook(double)
    h.retain_grad()
    h.sum().backward()
    np.testing.assert_array_equal(h.grad.numpy(), [2.0, 2.0])
    np.testing.assert_array_equal(x.grad.numpy(), 2 * y.numpy())


def test_a_hook_on_a_leaf_replaces_its_gradient_and_that_of_no_one_else():
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    x.register_hook(double)
    for _ in range(2):
        (x + y).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [4.0, 4.0])
    np.testing.assert_array_equal(y.grad.numpy(), [2.0, 2.0])


@pytest.mark.parametrize("give", [lambda g: g * 2.0, lambda g: 2.0 * g.numpy(), lambda g: tr.Tensor(2.0 * g.data)])
def test_a_hook_may_return_a_tensor_or_an_array(give):
    x = leaf([1.0, 2.0])
    x.register_hook(give)
    (x * 3.0).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [6.0, 6.0])
    assert isinstance(x.grad, tr.Tensor)


def test_a_hook_that_returns_what_it_keeps_does_not_share_it_with_the_leaf():
    x = leaf([1.0, 2.0])
    mine = np.array([5.0, 5.0])
    x.register_hook(lambda g: mine)
    (x * 3.0).sum().backward()
    assert not np.shares_memory(x.grad.data, mine)
    np.testing.assert_array_equal(x.grad.numpy(), mine)


def test_hooks_run_in_the_order_in_which_they_were_registered_and_each_gets_the_last_ones_result():
    x = leaf([1.0])
    x.register_hook(lambda g: g + 1.0)
    x.register_hook(lambda g: None)
    x.register_hook(lambda g: g * 10.0)
    (x * 3.0).sum().backward()
    assert x.grad.item() == 40.0


def test_hooks_run_from_the_loss_down():
    x = leaf([1.0])
    order = []
    a = x * 2.0
    b = tr.exp(a)
    for name, t in (("x", x), ("a", a), ("b", b)):
        t.register_hook(lambda g, name=name: order.append(name))
    (a + b).sum().backward()
    assert order == ["b", "a", "x"]


def test_a_hook_taken_off_is_called_no_more():
    x = leaf([1.0])
    first, second = x.register_hook(double), x.register_hook(lambda g: g + 1.0)
    first.remove()
    first.remove()  # twice does no harm
    (x * 3.0).sum().backward()
    assert x.grad.item() == 4.0
    second.remove()
    x.grad = None
    third = x.register_hook(double)
    second.remove()
    (x * 3.0).sum().backward()
    assert x.grad.item() == 6.0
    third.remove()


def test_a_hook_registered_twice_is_taken_off_once_a_handle():
    x = leaf([1.0])
    handles = [x.register_hook(double), x.register_hook(double)]
    for factor, handle in zip((4.0, 2.0), handles, strict=True):
        x.grad = None
        (x * 1.0).sum().backward()
        assert x.grad.item() == factor
        handle.remove()
        handle.remove()
    x.grad = None
    (x * 1.0).sum().backward()
    assert x.grad.item() == 1.0


def test_a_hook_may_take_itself_off_while_it_runs():
    x, calls = leaf([1.0]), []

    def once(grad):
        calls.append("once")
        handle.remove()

    handle = x.register_hook(once)
    x.register_hook(lambda g: calls.append("always"))
    for _ in range(2):
        (x * 3.0).sum().backward()
    assert calls == ["once", "always", "always"]


def test_hooks_with_a_call_that_compares_like_a_tensor_can_be_taken_off():
    class Recorder(list):
        def __call__(self, grad):
            self.append(grad.item())

    x, first, second = leaf([1.0]), Recorder(), Recorder()
    handles = [x.register_hook(r) for r in (first, second)]
    assert first == second  # equal, but not the same
    handles[1].remove()
    (x * 3.0).sum().backward()
    assert first == [3.0] and second == []


@pytest.mark.parametrize("give, what", [
    (lambda g: g.numpy().astype("float32"), r"float32 \(2,\)"), (lambda g: np.ones(3), r"float64 \(3,\)"),
    (lambda g: g.sum(), r"float64 \(\)"), (lambda g: 2.0, "float"), (lambda g: [1.0, 1.0], "list"),
])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_hook_that_returns_no_gradient_of_this_tensor_is_named(give, what, create_graph):
    x = leaf([1.0, 2.0])
    h = tr.exp(x)
    handle = h.register_hook(give)
    with pytest.raises(RuntimeError, match=rf"a hook on exp returned {what} for a gradient that is float64 \(2,\)"):
        h.sum().backward(create_graph=create_graph)
    assert x.grad is None
    handle.remove()
    x.register_hook(give)
    with pytest.raises(RuntimeError, match=rf"a hook on a leaf returned {what} for a gradient that is float64 \(2,\)"):
        tr.exp(x).sum().backward(create_graph=create_graph)


def test_an_error_in_a_hook_leaves_the_leaves_alone():
    x, y = leaf([1.0]), leaf([2.0])
    h = x * y
    handle = h.register_hook(lambda g: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        (h + y).sum().backward(retain_graph=True)
    assert x.grad is None and y.grad is None
    handle.remove()
    assert tr.is_grad_enabled()
    (h + y).sum().backward()
    assert x.grad.item() == 2.0 and y.grad.item() == 2.0


def test_hooks_run_for_grad_and_for_steps_too():
    x = leaf([1.0])
    x.register_hook(double)
    h = x * 3.0
    h.register_hook(double)
    (g,) = tr.grad(h.sum(), x, retain_graph=True)
    assert g.item() == 12.0
    assert [e.grad.item() for e in h.sum().backward_steps() if e.kind == "ready"][-2:] == [2.0, 12.0]


def test_a_hook_is_called_only_when_a_gradient_comes():
    x, y, calls = leaf([1.0]), leaf([1.0]), []
    unused = y * 2.0
    for t in (y, unused):
        t.register_hook(calls.append)
    (x * 2.0).sum().backward()
    with tr.no_grad():
        (y * 2.0).sum()
    tr.grad([(x * 2.0).sum(), unused.sum()], x)  # one of the outputs does not lead to x
    tr.grad([x * 2.0, unused], x)
    assert calls == []


def test_a_tensor_without_gradient_takes_no_hook():
    for t in (tr.tensor([1.0]), leaf([1.0]).detach(), tr.tensor([1, 2])):
        with pytest.raises(RuntimeError, match="register_hook: this tensor does not require a gradient"):
            t.register_hook(print)


@pytest.mark.parametrize("ambient", [tr.enable_grad, tr.no_grad])
def test_under_create_graph_a_hook_is_part_of_the_function(ambient):
    """g -> g * g in a hook: with f = x**3 the gradient is 9 x**4, and its derivative 36 x**3."""
    x = leaf([2.0])
    h = x + 0.0
    handle = h.register_hook(lambda g: g * g)
    loss = (h * h * h).sum()
    with ambient():
        (g,) = tr.grad(loss, x, create_graph=True)
    assert g.item() == 9 * 16
    handle.remove()  # else it would square the second gradient as well: every pass calls the hooks
    (second,) = tr.grad(g.sum(), x)
    assert second.item() == pytest.approx(36 * 8)


def test_a_hook_that_returns_an_array_under_create_graph_gives_a_constant():
    x = leaf([2.0])
    h = x * x
    h.register_hook(lambda g: np.array([5.0]))
    (g,) = tr.grad((h * h).sum(), x, create_graph=True)
    assert g.item() == 20.0
    (second,) = tr.grad(g.sum(), x)
    assert second.item() == 10.0


def test_a_hook_stays_with_the_value_it_was_registered_on(torch):
    """After a change in place the tensor is another function; the hook sees the gradient of what it was."""
    x, a = leaf([1.0, 2.0]), torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    seen = []
    for t in (x, a):
        h = t * 2.0
        h.register_hook(lambda g: seen.append(g.tolist()))
        h *= 5.0
        h.sum().backward()
    assert seen[0] == seen[1] == [5.0, 5.0]


def test_a_hook_is_released_with_its_tensor():
    class Watcher:
        def see(self, grad):
            pass

    gc.disable()
    try:
        watcher = Watcher()
        alive = weakref.ref(watcher)
        h = leaf([1.0]) * 2.0
        h.register_hook(watcher.see)
        del watcher
        assert alive() is not None
        del h
        assert alive() is None
    finally:
        gc.enable()


def test_gradient_clipping_by_hooks_equals_pytorch(torch):
    values = np.random.default_rng(0).standard_normal((2, 3, 3))
    ours = [leaf(v) for v in values]
    theirs = [torch.tensor(v, requires_grad=True) for v in values]
    for (x, w), lib in ((ours, tr), (theirs, torch)):
        h = x @ w
        y = lib.tanh(h) + h
        y.register_hook(lambda g: g * 0.5)
        h.register_hook(lambda g, lib=lib: lib.clamp(g, -0.1, 0.1))
        (y * y).sum().backward()
    for t, u in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(t.grad.numpy(), u.grad.numpy(), rtol=1e-12)
