"""A fork sums what its consumers bring, and the identity route hands on the very array it received: nothing that was
handed on may be written into, and no two gradients that a user gets may share memory."""

import itertools

import numpy as np
import pytest

import tinyres as tr

SHAPE = (3, 2)


def numbers(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape)


def leaf(seed, shape=SHAPE):
    return tr.tensor(numbers(seed, shape), requires_grad=True)


def slope(x):
    """The derivative of tanh."""
    return 1 - np.tanh(x) ** 2


# name -> (expression of x and y, its gradients in NumPy for the upstream gradient g)
FORKS = {
    "x + x": (lambda x, y: x + x, lambda g, x, y: (2 * g, None)),
    "x + f(x)": (lambda x, y: x + tr.tanh(x), lambda g, x, y: (g + g * slope(x), None)),
    "f(x) + x": (lambda x, y: tr.tanh(x) + x, lambda g, x, y: (g + g * slope(x), None)),
    "relu(x) + x": (lambda x, y: tr.relu(x) + x, lambda g, x, y: (g + g * (x > 0), None)),
    "three uses": (lambda x, y: x + x * y + tr.exp(x), lambda g, x, y: (g + g * y + g * np.exp(x), g * x)),
    "three times itself": (lambda x, y: x + x + x, lambda g, x, y: (3 * g, None)),
    "x * x": (lambda x, y: x * x, lambda g, x, y: (2 * g * x, None)),
    "x - x": (lambda x, y: x - x, lambda g, x, y: (0 * g, None)),
    "x + y": (lambda x, y: x + y, lambda g, x, y: (g, g)),
    "x - y": (lambda x, y: x - y, lambda g, x, y: (g, -g)),
    "x + y + x": (lambda x, y: x + y + x, lambda g, x, y: (2 * g, g)),
    "(x + y) twice": (lambda x, y: (lambda h: h + tr.tanh(h))(x + y),
                      lambda g, x, y: (g + g * slope(x + y),) * 2),
    "views of x": (lambda x, y: x.reshape(2, 3).reshape(3, 2) + x.T.T + y,
                   lambda g, x, y: (2 * g, g)),
    "one chain of identities": (lambda x, y: (x + 0.0).reshape(6).reshape(3, 2) + (y + 0.0),
                                lambda g, x, y: (g, g)),
    "broadcast x": (lambda x, y: x.sum(0).broadcast_to((3, 2)) + x + y,
                    lambda g, x, y: (g + g.sum(0), g)),
    "pieces of x": (lambda x, y: tr.concat([x[:1], x[1:]]) + x + y, lambda g, x, y: (2 * g, g)),
    "two blocks": (lambda x, y: (lambda h: h + tr.tanh(h) * y)(x + tr.tanh(x) * y),
                   lambda g, x, y: two_blocks(g, x, y)),
}


def two_blocks(g, x, y):
    h = x + np.tanh(x) * y
    gh = g + g * y * slope(h)
    return gh + gh * y * slope(x), g * np.tanh(h) + gh * np.tanh(x)


@pytest.fixture(params=FORKS)
def fork(request):
    """x, y, the output, the upstream gradient, the expected gradients."""
    expression, gradients = FORKS[request.param]
    x, y, g = leaf(0), leaf(1), numbers(2)
    return x, y, expression(x, y), g, gradients(g, x.numpy(), y.numpy())


def check(tensor, expected):
    if expected is None:
        assert tensor.grad is None
    else:
        np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=1e-13, atol=1e-14)


def arrays_apart(*arrays):
    for (i, a), (j, b) in itertools.combinations(enumerate(arrays), 2):
        assert not np.shares_memory(a, b), f"arrays {i} and {j} share memory"


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_fork_sums_what_its_consumers_bring(fork, create_graph):
    x, y, out, g, expected = fork
    before = g.tobytes()
    out.backward(g, create_graph=create_graph)
    check(x, expected[0])
    check(y, expected[1])
    assert g.tobytes() == before


@pytest.mark.parametrize("create_graph", [False, True])
def test_no_two_gradients_share_memory(fork, create_graph):
    x, y, out, g, _ = fork
    out.retain_grad()
    out.backward(g, create_graph=create_graph)
    arrays_apart(g, *(t.grad.data for t in (x, y, out) if t.grad is not None))


@pytest.mark.parametrize("create_graph", [False, True])
def test_results_of_grad_share_no_memory_and_leave_grad_alone(fork, create_graph):
    x, y, out, g, expected = fork
    found = tr.grad(out, [x, y, x, out], g, create_graph=create_graph, allow_unused=True)
    arrays_apart(g, *(t.data for t in found if t is not None))
    for i, want in enumerate((*expected, expected[0], g)):
        if want is None:
            assert found[i] is None
        else:
            np.testing.assert_allclose(found[i].numpy(), want, rtol=1e-13, atol=1e-14)
    assert x.grad is None and y.grad is None


def test_whole_gradients_never_change_once_they_are_reported(fork):
    _, _, out, g, _ = fork
    seen = [(event.grad, event.grad.copy()) for event in out.backward_steps(g)]
    assert all(now.tobytes() == then.tobytes() for now, then in seen)


def test_contributions_are_those_of_the_edge_and_add_up_to_the_whole_gradient(fork):
    x, y, out, g, _ = fork
    brought, whole = {out.edge: [g]}, {}
    for event in out.backward_steps(g):
        if event.kind == "ready":
            whole[event.node] = event.grad
        for edge, contribution in zip(event.node.edges, event.contributions, strict=False):
            if contribution is not None:
                brought.setdefault(edge, []).append(contribution.copy())
    assert whole.keys() == brought.keys()
    for node, grad in whole.items():
        np.testing.assert_allclose(sum(brought[node]), grad, rtol=1e-13, atol=1e-14)


def test_the_step_of_a_residual_branch_shows_the_branch_alone():
    """x + tanh(x): the identity route contributes 1, the branch 1 - tanh(x)**2 and not the sum of both."""
    x = leaf(0)
    (branch,) = [event.contributions[0].copy() for event in (x + tr.tanh(x)).backward_steps(np.ones(SHAPE))
                 if event.kind == "done" and event.node.name == "tanh"]
    np.testing.assert_allclose(branch, slope(x.numpy()), rtol=1e-13)


def test_one_leaf_in_two_losses():
    x, y = leaf(0), leaf(1)
    shared = tr.tanh(x)
    first, second = (shared * y).sum(), (shared + x).sum()
    first.backward(retain_graph=True)
    check(x, y.numpy() * slope(x.numpy()))
    one = x.grad
    kept = one.data.copy()
    second.backward()
    check(x, y.numpy() * slope(x.numpy()) + slope(x.numpy()) + 1)
    assert one.data.tobytes() == kept.tobytes(), "the gradient of the first call was written into"


def test_a_tensor_that_feeds_two_heads():
    x, y = leaf(0), leaf(1)
    body = x * 3.0
    heads = [(body + y), tr.exp(body)]
    g = [numbers(3), numbers(4)]
    before = [v.tobytes() for v in g]
    found = tr.grad(heads, [x, y, body], g)
    at_body = g[0] + g[1] * np.exp(3 * x.numpy())
    for got, want in zip(found, (3 * at_body, g[0], at_body), strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-13)
    assert [v.tobytes() for v in g] == before


def test_one_upstream_array_for_two_outputs_counts_twice_and_stays():
    x, g = leaf(0), numbers(3)
    before = g.tobytes()
    out = x + 1.0
    (found,) = tr.grad([out, out, x], x, [g, g, g])
    np.testing.assert_array_equal(found.numpy(), g + g + g)
    assert g.tobytes() == before


def test_gradients_accumulate_over_calls_into_new_memory():
    x, w = leaf(0), numbers(3)
    kept = []
    for k in (1, 2, 3):
        (x * w).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), k * w, rtol=1e-15)
        kept.append(x.grad.data)
    arrays_apart(w, *kept)


def test_the_gradient_of_a_leaf_that_is_its_own_output_is_a_copy_of_the_seed():
    x, g = leaf(0), numbers(1)
    x.backward(g)
    assert x.grad.data.tobytes() == g.tobytes() and not np.shares_memory(x.grad.data, g)


def test_create_graph_keeps_the_sign_of_zero_and_the_way_back():
    x = tr.tensor([-1.0, 2.0], dtype="float64", requires_grad=True)
    seed = tr.tensor([-0.0, 3.0], dtype="float64", requires_grad=True)
    (g,) = tr.grad(x + 0.0, x, seed, create_graph=True)
    assert g.numpy().tobytes() == seed.numpy().tobytes() and not np.shares_memory(g.data, seed.data)
    (back,) = tr.grad(g.sum(), seed)
    np.testing.assert_array_equal(back.numpy(), [1.0, 1.0])


def test_a_rule_that_hands_its_own_gradient_on_twice_is_not_written_into():
    """A rule may claim that it allocates (fresh) and yet return what it was given: the walk looks at the memory."""

    class Twice(tr.Function):
        fresh = True

        def forward(self, a, b):
            return a + b

        def backward(self, grad):
            return grad, grad[...]

    x, g = leaf(0), numbers(1)
    before = g.tobytes()
    (Twice.apply(x, x) + x).backward(g)
    check(x, 3 * g)
    assert g.tobytes() == before


def test_one_array_for_both_inputs_and_an_array_that_is_kept_are_not_written_into():
    class Scaled(tr.Function):
        """(a + b) * 2 for an upstream gradient of ones: one kept array serves as both gradients."""

        def forward(self, a, b):
            self.save(np.full(a.shape, 2.0))
            return (a + b) * 2.0

        def backward(self, grad):
            (two,) = self.saved
            return two, two

    for first in (True, False):  # it may bring the first contribution or the last
        x, y = leaf(0), leaf(1)
        scaled, others = Scaled.apply(x, y), tr.tanh(x) + y * 3.0
        loss = (scaled + others if first else others + scaled).sum()
        for k in (1, 2):
            loss.backward(retain_graph=True)
            check(x, k * (2 + slope(x.numpy())))
            check(y, k * np.full(SHAPE, 5.0))


def test_images_collect_their_contributions_in_channels_last_memory():
    x = tr.tensor(numbers(0, (2, 3, 4, 5)), requires_grad=True)
    (x + tr.relu(x) + x * 2.0).sum().backward()
    assert x.grad.shape == x.shape
    assert x.grad.data.transpose(0, 2, 3, 1).flags.c_contiguous


def test_two_tensors_on_one_array_are_told_apart_in_the_second_derivative():
    """x * x.detach(): the second factor is a constant, though it is the same array."""
    x = leaf(0)
    for constant in (x.detach(), x.data, tr.Tensor(x.data)):
        for product in (x * constant, constant * x):
            (g,) = tr.grad(product.sum(), x, create_graph=True)
            np.testing.assert_array_equal(g.numpy(), x.numpy())
            assert not g.requires_grad
