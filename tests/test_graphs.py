"""The walk over the graph: random graphs with forks against finite differences and PyTorch, each node exactly once and
after all its consumers, no recursion, linear time, memory released on the way, steps that can be abandoned."""

import copy
import gc
import itertools
import time
import tracemalloc
import weakref
from collections import Counter

import numpy as np
import pytest

import tinyres as tr
from tinyres.graph import topological_order
from tinyres.tensor import reached_leaves, walk

UNARY = ("tanh", "exp", "sigmoid", "neg", "reshape", "transpose", "halves", "square")
BINARY = ("add", "sub", "mul", "matmul", "row")


def random_graph(seed, leaves, library):
    """A scalar from `leaves`, (3, 3) tensors of `library` (tinyres or torch), by random ops on random earlier results:
    most are used more than once. Values stay of order 1. Returns the scalar and all that was made on the way."""
    rng = np.random.default_rng(seed)
    made = list(leaves)

    def pick():
        recent = made[-4:] if rng.random() < 0.7 else made
        return recent[rng.integers(len(recent))]

    for _ in range(rng.integers(4, 15)):
        name, a, b = rng.choice(UNARY + BINARY + BINARY), pick(), pick()
        made.append({
            "tanh": lambda a, b: library.tanh(a),
            "exp": lambda a, b: library.exp(library.tanh(a)),
            "sigmoid": lambda a, b: library.sigmoid(a) + a,
            "neg": lambda a, b: -a,
            "reshape": lambda a, b: a.reshape(9).reshape(3, 3),
            "transpose": lambda a, b: a.transpose(0, 1),
            "halves": lambda a, b: library.cat([a[:1], a[1:]]) + a * 0.5,
            "square": lambda a, b: library.tanh(a * a),
            "add": lambda a, b: a + b,
            "sub": lambda a, b: a - b,
            "mul": lambda a, b: library.tanh(a) * b,
            "matmul": lambda a, b: library.tanh(a @ b),
            "row": lambda a, b: a + b[1] * 0.5,
        }[name](a, b))
    total = sum((t * float(w)).sum() for t, w in zip(made[-3:], rng.standard_normal(3), strict=False))
    return total, made


def start(seed, n=3):
    rng = np.random.default_rng(1000 + seed)
    return [rng.standard_normal((3, 3)) for _ in range(n)]


def leaves_of(values):
    return [tr.tensor(v, requires_grad=True) for v in values]


def gradient(seed, values):
    leaves = leaves_of(values)
    random_graph(seed, leaves, tr)[0].backward()
    return [np.zeros((3, 3)) if t.grad is None else t.grad.numpy() for t in leaves]


# ---- random graphs


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_random_graphs_agree_with_finite_differences(first):
    used = 0
    for seed in range(first, first + 20):
        values, h = start(seed), 1e-6
        directions = start(seed + 500)
        ends = [random_graph(seed, [tr.Tensor(v + s * h * d) for v, d in zip(values, directions, strict=True)], tr)[0]
                for s in (1, -1)]
        numeric = (ends[0].item() - ends[1].item()) / (2 * h)
        grads = gradient(seed, values)
        analytic = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
        scale = sum(np.abs(g * d).sum() for g, d in zip(grads, directions, strict=True))
        assert abs(numeric - analytic) <= 1e-7 * max(scale, 1.0), f"graph {seed}"
        used += scale > 0
    assert used >= 19  # a graph may happen not to use its leaves, but that is rare


def test_random_graphs_agree_with_finite_differences_element_by_element():
    for seed in range(100, 106):
        values, h = start(seed), 1e-6
        grads = gradient(seed, values)
        for k, i, j in np.ndindex(3, 3, 3):
            ends = []
            for s in (h, -h):
                moved = [v.copy() for v in values]
                moved[k][i, j] += s
                ends.append(random_graph(seed, [tr.Tensor(v) for v in moved], tr)[0].item())
            assert abs((ends[0] - ends[1]) / (2 * h) - grads[k][i, j]) < 1e-6, (seed, k, i, j)


@pytest.mark.parametrize("first", range(0, 100, 50))
def test_random_graphs_agree_with_pytorch_to_second_order(torch, first):
    for seed in range(first, first + 50):
        ours = leaves_of(start(seed))
        theirs = [torch.tensor(v, requires_grad=True) for v in start(seed)]
        loss, want = random_graph(seed, ours, tr)[0], random_graph(seed, theirs, torch)[0]
        if not want.requires_grad:
            assert not loss.requires_grad
            continue
        np.testing.assert_allclose(loss.item(), want.item(), rtol=1e-12)
        first_order = tr.grad(loss, ours, create_graph=True, allow_unused=True)
        wanted = torch.autograd.grad(want, theirs, create_graph=True, allow_unused=True)
        assert [g is None for g in first_order] == [g is None for g in wanted]
        square = sum((g * g).sum() for g in first_order if g is not None)
        wanted_square = sum((g * g).sum() for g in wanted if g is not None)
        for g, w in zip(first_order, wanted, strict=True):
            if g is not None:
                np.testing.assert_allclose(g.numpy(), w.detach().numpy(), rtol=1e-10, atol=1e-12)
        if not square.requires_grad:
            continue
        second = tr.grad(square, ours, allow_unused=True)
        wanted = torch.autograd.grad(wanted_square, theirs, allow_unused=True)
        for g, w in zip(second, wanted, strict=True):
            g, w = (np.zeros((3, 3)) if v is None else v.detach().numpy() for v in (g, w))
            np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-10)


def counted(monkeypatch):
    """How often each node's rule ran."""
    runs = Counter()
    original = tr.Function.contributions

    def contributions(node, *args):
        runs[node] += 1
        return original(node, *args)

    monkeypatch.setattr(tr.Function, "contributions", contributions)
    return runs


def reachable(root):
    """All nodes below `root`, found without the engine."""
    found, todo = set(), [root]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo.extend(node.edges)
    return found


def test_each_node_is_visited_once_after_all_its_consumers(monkeypatch):
    runs = counted(monkeypatch)
    for seed in range(100):
        runs.clear()
        loss, _ = random_graph(seed, leaves_of(start(seed)), tr)
        if not loss.requires_grad:
            continue
        nodes = reachable(loss.node)
        waiting = Counter(e for node in nodes for e in node.edges if e is not None)
        ready, done = [], []
        for event in loss.backward_steps():
            if event.kind == "ready":
                assert waiting[event.node] == 0, "a consumer had not contributed yet"
                ready.append(event.node)
            else:
                assert ready[-1] is event.node, "the rule runs when the gradient is whole"
                done.append(event.node)
                waiting.subtract(e for e in event.node.edges if e is not None)
        functions = {node for node in nodes if isinstance(node, tr.Function)}
        assert set(ready) == nodes and len(ready) == len(nodes)
        assert set(done) == functions and len(done) == len(functions)
        assert runs == dict.fromkeys(functions, 1)


def test_sixty_residual_blocks_take_sixty_visits_and_not_two_to_the_sixty(monkeypatch):
    runs = counted(monkeypatch)
    x = tr.tensor(np.ones(2), requires_grad=True)
    h = x
    for _ in range(60):
        h = h + tr.tanh(h)
    events = list(h.backward_steps(np.ones(2)))
    assert len(runs) == 120 and set(runs.values()) == {1}
    assert len(events) == 2 * 120 + 1


def test_two_passes_over_one_graph_report_the_same_events_in_the_same_order():
    loss, _ = random_graph(7, leaves_of(start(7)), tr)
    first, second = ([(e.kind, id(e.node), np.asarray(e.grad).tobytes()) for e in loss.backward_steps()] for _ in "ab")
    assert first == second


def test_topological_order_puts_each_root_once_and_stops_where_told():
    x, y = leaves_of(start(0, 2))
    a = x * y
    b = tr.exp(a) + a
    order = topological_order([b.node, a.node, b.node])
    assert len(order) == len(set(order)) and order[0] is b.node and order.index(a.node) == 2
    assert set(order) == {a.node, b.node, *b.node.edges, x, y}
    assert set(topological_order([b.node], frozenset([a.node]))) == {b.node, *b.node.edges}


def test_a_walk_does_not_go_past_a_node_where_it_is_told_to_stop():
    x, y = leaves_of(start(0, 2))
    h = tr.exp(x)
    events = list(walk([(h * y).sum()], [None], None, True, False, frozenset([h.node])))
    assert [e.kind for e in events if e.node is h.node] == ["ready"]
    assert x.grad is None and y.grad is not None


# ---- depth and time


def chain(n):
    x = tr.tensor(np.ones(1), requires_grad=True)
    h = x
    for _ in range(n // 2):
        h = h * 0.999 + x
    return x, h


def test_twenty_thousand_ops_in_linear_time():
    seconds = {}
    for n in (10_000, 20_000):
        times = []
        for _ in range(3):
            x, h = chain(n)
            gc.collect()
            start = time.process_time()
            h.backward()
            times.append(time.process_time() - start)
            powers = 0.999 ** np.arange(n // 2 + 1)
            np.testing.assert_allclose(x.grad.numpy(), [powers.sum()], rtol=1e-10)
            del h  # its nodes go one by one, without recursion
        seconds[n] = min(times)
    assert seconds[20_000] < 3 * seconds[10_000], seconds


def test_a_very_deep_graph_is_dropped_without_recursion_with_and_without_a_pass():
    for run in (False, True):
        x, h = chain(50_000)
        alive = weakref.ref(h.node)
        if run:
            (g,) = tr.grad(h, x)
            assert np.isfinite(g.item())
        del h
        assert alive() is None


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_residual_chain_of_1202_layers(create_graph):
    rng = np.random.default_rng(0)
    weights = [tr.tensor(w, requires_grad=True) for w in 0.05 * rng.standard_normal((1202, 4, 4))]
    x = tr.tensor(rng.standard_normal((2, 4)), requires_grad=True)
    h = x
    for w in weights:
        h = h + tr.tanh(h @ w)
    (h * h).sum().backward(create_graph=create_graph)
    g = 2 * h.numpy()  # the same by hand, layer by layer from the top
    inputs = [x.numpy()]
    for w in weights:
        inputs.append(inputs[-1] + np.tanh(inputs[-1] @ w.numpy()))
    for w, a in zip(reversed(weights), reversed(inputs[:-1]), strict=True):
        inner = g * (1 - np.tanh(a @ w.numpy()) ** 2)
        np.testing.assert_allclose(w.grad.numpy(), a.T @ inner, rtol=1e-8)
        g = g + inner @ w.numpy().T
    np.testing.assert_allclose(x.grad.numpy(), g, rtol=1e-8)
    twins = copy.deepcopy(weights)
    assert all(t.grad is None and t.requires_grad and t.is_leaf for t in twins)
    assert not any(np.shares_memory(t.data, w.data) for t, w in zip(twins, weights, strict=True))
    np.testing.assert_array_equal(np.stack([t.numpy() for t in twins]), np.stack([w.numpy() for w in weights]))
    for w in [x, *weights]:  # the gradients lead back to the leaves: a cycle, which the caller must cut
        w.grad = None


def test_deepcopy_of_an_interior_tensor_says_what_to_do():
    _, h = chain(5_000)
    with pytest.raises(RuntimeError, match=r"deepcopy: only leaves are copied, .* made by add: detach\(\) it"):
        copy.deepcopy({"cached": h})
    assert copy.deepcopy(h.detach()).item() == h.item()


# ---- memory


def test_the_engine_remembers_which_leaves_got_a_gradient_but_keeps_none_alive():
    x, y = leaves_of(start(0, 2))
    (x * y.detach()).sum().backward()
    tr.grad((x * y).sum(), y)
    assert reached_leaves.get(id(x)) is x and id(y) not in reached_leaves
    key, alive = id(x), weakref.ref(x)
    del x
    assert alive() is None and key not in reached_leaves


def interior(loss):
    return [node for node in topological_order([loss.node]) if isinstance(node, tr.Function)]


def test_what_a_node_kept_is_freed_while_the_pass_goes_on():
    x = tr.tensor(np.ones(1000), requires_grad=True)
    h = x
    for _ in range(50):
        h = tr.exp(h * -1.0)
    loss = h.sum()
    kept = {node: weakref.ref(node._saved[0].array) for node in interior(loss) if node.name == "exp"}
    del h
    assert len(kept) == 50 and all(array() is not None for array in kept.values())
    visited = []
    for event in loss.backward_steps(retain_graph=False):
        if event.kind == "done" and event.node in kept:
            visited.append(event.node)
            alive = [node for node in kept if kept[node]() is not None]
            assert set(alive) == set(kept) - set(visited), "freed when its rule has run, and not before"
    assert len(visited) == 50


def test_a_step_reports_the_bytes_that_its_rule_needed():
    x = tr.tensor(np.ones((4, 5)), requires_grad=True)
    w = tr.tensor(np.ones((5, 6)), requires_grad=True)
    kept = {e.node.name: e.kept for e in (tr.tanh(x @ w) + 1.0).sum().backward_steps() if e.kind == "done"}
    assert kept["matmul"] == 8 * (4 * 5 + 5 * 6) and kept["tanh"] == 8 * 4 * 6 and kept["add"] == 0


def small_step(parameters, x):
    h = x
    for w in parameters:
        h = h + tr.tanh(h @ w)
    loss = (h * h).mean()
    loss.backward()
    for w in parameters:
        w.data -= 0.01 * w.grad.data
        w.bump("SGD")
        w.grad = None
    return loss.item()


def test_memory_is_flat_over_200_steps():
    rng = np.random.default_rng(0)
    parameters = [tr.tensor(0.1 * rng.standard_normal((16, 16)), requires_grad=True) for _ in range(4)]
    x = rng.standard_normal((64, 16))
    traced = []
    tracemalloc.start()
    try:
        for steps in (20, 200):
            for _ in range(steps):
                small_step(parameters, tr.Tensor(x))
            gc.collect()  # empties Python's free lists too
            traced.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert traced[1] - traced[0] < x.nbytes, f"{traced[1] - traced[0]} bytes more after 200 steps"


@pytest.mark.parametrize("how", ["backward", "steps", "abandoned", "grad", "no pass"])
def test_a_plain_pass_leaves_no_reference_cycle(how):
    x = tr.tensor(np.ones((3, 3)), requires_grad=True)
    x.register_hook(lambda g: g * 2.0)

    def step():
        h = tr.tanh(x @ x) + x
        h.retain_grad()
        loss = h.sum()
        if how == "backward":
            loss.backward()
        elif how == "steps":
            list(loss.backward_steps())
        elif how == "abandoned":
            list(itertools.islice(loss.backward_steps(), 5))
        elif how == "grad":
            tr.grad(loss, [x, h])
        return weakref.ref(loss.node), weakref.ref(h.node), weakref.ref(h.data)

    gc.collect()
    gc.disable()
    try:
        assert all(ref() is None for ref in step())
        assert gc.collect() == 0
    finally:
        gc.enable()


# ---- step by step


def test_backward_steps_gives_the_gradients_of_backward_when_it_ends():
    for seed in range(20):
        stepped, plain = leaves_of(start(seed)), leaves_of(start(seed))
        loss = random_graph(seed, stepped, tr)[0]
        if not loss.requires_grad:
            continue
        for _ in loss.backward_steps():
            assert all(t.grad is None for t in stepped), "a leaf got its gradient before the pass was complete"
        random_graph(seed, plain, tr)[0].backward()
        for a, b in zip(stepped, plain, strict=True):
            assert (a.grad is None) == (b.grad is None)
            assert a.grad is None or a.grad.data.tobytes() == b.grad.data.tobytes()


def test_an_abandoned_pass_changes_nothing():
    seed = 12
    plain = leaves_of(start(seed))
    random_graph(seed, plain, tr)[0].backward()
    leaves = leaves_of(start(seed))
    loss, made = random_graph(seed, leaves, tr)
    made[4].retain_grad()
    total = len(list(loss.backward_steps()))
    for t in (*leaves, made[4]):
        t.grad = None
    for stop in range(total + 1):  # one more event would be the end
        steps = loss.backward_steps()
        assert len(list(itertools.islice(steps, stop))) == stop
        steps.close()
        assert all(t.grad is None for t in (*leaves, made[4]))
    other = loss.backward_steps()  # one left open while another runs
    next(other)
    loss.backward()
    for a, b in zip(leaves, plain, strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or a.grad.data.tobytes() == b.grad.data.tobytes()


def test_an_abandoned_pass_leaves_earlier_gradients_alone():
    x = leaves_of(start(0, 1))[0]
    (x * x).sum().backward()
    grad, values = x.grad, x.grad.numpy().copy()
    list(itertools.islice((tr.exp(x) + x).sum().backward_steps(), 6))
    assert x.grad is grad and x.grad.numpy().tobytes() == values.tobytes()


def test_a_pass_that_fails_half_way_leaves_the_leaves_alone():
    class Broken(tr.Function):
        def forward(self, x):
            return x * 2

        def backward(self, grad):
            raise ZeroDivisionError("on purpose")

    x = leaves_of(start(0, 1))[0]
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        (x + Broken.apply(x)).sum().backward()
    assert x.grad is None
    (x * 3.0).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.full((3, 3), 3.0))


def test_unfused_stepping_equals_the_unfused_pass_exactly_and_the_fused_one_closely():
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((8, 3, 4, 4)), rng.integers(0, 5, 8)
    values = [rng.standard_normal(s) for s in ((5, 48), 3, 3)]

    def run(fused, stepped):
        w, gamma, beta = parameters = leaves_of(values)
        x = tr.tensor(images, requires_grad=True)
        with tr.unfused() if not fused else tr.enable_grad():
            h = tr.batch_norm(x, weight=gamma, bias=beta, training=True, add=x, relu=True)
            loss = tr.cross_entropy(tr.linear(h.flatten(1), w), labels, label_smoothing=0.1)
            names = [e.node.name for e in loss.backward_steps() if e.kind == "done"] if stepped else loss.backward()
        return [loss.data, *(p.grad.data for p in (x, *parameters))], names

    (fused, _), (plain, _), (stepped, names) = run(True, False), run(False, False), run(False, True)
    assert [a.tobytes() for a in plain] == [a.tobytes() for a in stepped]
    assert not {"batch_norm", "cross_entropy"} & set(names) and "sqrt" in names
    for a, b in zip(fused, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)
