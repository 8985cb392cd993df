"""The recorder where a pass is unusual: what leads nowhere, what ran before, hooks, single numbers, no elements."""

import json
from dataclasses import asdict

import numpy as np
import pytest

import tinyres as tr
from tinyres import nn
from tinyres.stepper import record, step
from tinyres.stepper.summarise import summarise


@pytest.fixture(autouse=True)
def kernels_of_the_reference():
    with tr.use_kernels("reference"):
        yield


def leaf(*shape, seed=0):
    return tr.tensor(np.random.default_rng(seed).standard_normal(shape), "float64", requires_grad=True)


def node_of(trace, name):
    return next(node for node in trace.nodes if name in (node.name, node.op))


def check_against_the_engine(run, **options):
    """Every gradient and contribution is the engine's, every id the node's place, and no group uses a later one."""
    trace = record(run, **options).trace
    with tr.unfused():
        loss = run()
    whole, brought = [], []
    for event in loss.backward_steps():  # a contribution may be added into later
        if event.kind == "ready":
            whole.append(summarise(event.grad))
        else:
            brought.append([None if g is None else summarise(g) for g in event.contributions])
    assert [trace.nodes[id].gradient for id in trace.backward] == whole
    ops = [trace.nodes[id] for id in trace.backward if trace.nodes[id].kind == "op"]
    assert [[x.contribution for x in node.inputs] for node in ops] == brought
    for place, node in enumerate(trace.nodes):
        assert node.id == place and all(x.source is None or x.source < place for x in node.inputs)
    for group in trace.groups:
        users = {g.id for g in trace.groups for link in g.inputs if link.source == group.output and link.contribution}
        assert (group.fork is not None) == (len(users) > 1), group.title
        for link in group.inputs:
            assert link.group is None or link.group < group.id, group.title
            parts = [x.contribution for id in group.nodes for x in trace.nodes[id].inputs if x.source == link.source]
            assert (link.contribution is None) == (not any(parts)), group.title
    assert not trace.backward or trace.nodes[trace.backward[-1]].held == 0
    return trace


def test_a_leaf_that_is_first_met_by_detach_has_a_place_of_its_own():
    x, w = leaf(4, 3), leaf(3, 3, seed=1)
    trace = check_against_the_engine(lambda: (x.detach() * x + x @ w).sum())
    assert [node.op or node.name for node in trace.nodes[:2]] == ["x", "detach"]
    assert trace.groups[0].title == "x" and trace.groups[1].title == "detach"


def test_ops_outside_the_graph_keep_nothing():
    """Within no_grad, and where neither input nor weights want a gradient, as at the start of a network that is frozen
    in part."""
    x, w = leaf(4, 3), leaf(3, 3, seed=1)

    def gated():
        with tr.no_grad():
            gate = tr.tanh(x @ w)
        return (x * gate).sum()

    trace = check_against_the_engine(gated)
    assert trace.held == 4 * 3 * 8 and node_of(trace, "tanh").kept == []
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    images = tr.tensor(np.ones((2, 3)), "float64")
    check_against_the_engine(lambda: model(images).sum())


def test_batch_norm_in_front_of_everything_that_is_trained_can_be_recorded():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)).double()
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    images = leaf(2, 3, 4, 4).detach()
    check_against_the_engine(lambda: (model(images) * model(images)).sum())


def test_what_does_not_lead_to_the_loss_is_neither_kept_nor_credited():
    x, w = leaf(4, 3), leaf(3, 3, seed=1)

    def run():
        h = tr.tanh(x @ w)
        aside = tr.exp(h) * h
        aside.sum()
        return (h * h).sum()

    trace = check_against_the_engine(run)
    assert trace.held == 4 * 3 * 8  # h alone, which tanh and mul both need
    exp = trace.groups[node_of(trace, "exp").group]
    assert exp.inputs[0].contribution is None and exp.kept == 0 and exp.step is None


def test_a_rule_that_gives_less_than_it_could_makes_no_fork():
    class First(tr.Function):
        def forward(self, a, b):
            return a + b

        def backward(self, grad):
            return grad, None

    x = leaf(2, 3)
    trace = check_against_the_engine(lambda: First.apply(x, x * 2.0).sum())
    assert node_of(trace, "x").fork is None and node_of(trace, "mul").step is None


@pytest.mark.parametrize("times", [2, 3, 4])
def test_a_single_number_may_be_a_fork(times):
    x = tr.tensor(2.0, "float64", requires_grad=True)
    trace = check_against_the_engine(lambda: sum((x * float(i + 1) for i in range(times)), x))
    fork = node_of(trace, "x").fork
    assert len(fork.arrivals) == times + 1 and fork.arrivals[-1].sum.values == [1 + times * (times + 1) / 2]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_loss_of_one_element_may_have_any_shape(shape):
    x = tr.tensor(np.full(shape, 3.0), "float64", requires_grad=True)
    stepper = step(lambda: x * x)
    assert stepper.trace.loss == 9.0 and stepper.check(0).ok and stepper.check(0).analytic == 6.0


def test_an_empty_batch_is_recorded():
    x, w = leaf(0, 3), leaf(3, 3)
    trace = check_against_the_engine(lambda: (x + tr.relu(x @ w)).sum(), details=True)
    assert node_of(trace, "w").gradient.values == [0.0] * 9 and node_of(trace, "x").checks == []


# --- what ran before --------------------------------------------------------------------------------------------------


def test_a_graph_that_was_begun_before_is_recorded_and_left_as_it_was():
    x, w = leaf(4, 3), leaf(3, 3, seed=1)
    h = tr.tanh(x @ w)
    stepper = step(lambda: (h + h * h).sum(), details=False, names={"x": x})
    trace = stepper.trace
    assert x.grad is None and node_of(trace, "tanh").value is None and node_of(trace, "x").gradient is not None
    for name in ("tanh", "x"):
        with pytest.raises(RuntimeError, match="check: .* ran before the recording began"):
            stepper.check(node_of(trace, name).id)
    assert stepper.check(node_of(trace, "mul").id).ok
    check_against_the_engine(lambda: (h + h * h).sum())  # which nothing has freed


def test_a_loss_that_a_function_only_hands_on_keeps_its_graph():
    x = leaf(3)
    loss = (x * x).sum()
    step(lambda: loss, details=False)
    loss.backward()
    np.testing.assert_array_equal(x.grad.data, 2 * x.data)


def test_a_penalty_on_a_gradient_is_recorded_through_the_backward_pass_inside():
    x, w = leaf(4, 3), leaf(3, 3, seed=1)

    def run():
        loss = (tr.tanh(x @ w) * x).sum()
        (g,) = tr.grad(loss, [x], create_graph=True)
        return loss + (g * g).sum()

    with tr.debug():
        record(run)
    assert x.grad is None and w.grad is None
    check_against_the_engine(run, details=True)


# --- hooks ------------------------------------------------------------------------------------------------------------


def test_a_hook_that_changes_a_gradient_is_told_apart_from_what_came():
    x, w = leaf(4, 3), leaf(3, 3, seed=1)

    def run(factor):
        h = x @ w
        h.register_hook(lambda g: g * factor)
        return (h + tr.tanh(h) + h * h).sum()

    trace = check_against_the_engine(lambda: run(2.0))
    made = node_of(trace, "matmul")
    assert sum(a.share for a in made.fork.arrivals) == pytest.approx(1)
    assert made.gradient.norm == pytest.approx(2 * made.fork.arrivals[-1].sum.norm)
    group = trace.groups[made.group]
    assert sum(a.share for a in group.fork.arrivals) == pytest.approx(1)
    (note,) = trace.notes
    assert note.startswith("A hook on matmul changes its gradient")
    assert record(lambda: run(1.0)).trace.notes == []


def test_a_layer_brings_what_it_brings_whatever_a_hook_makes_of_it():
    x = leaf(2, 3)

    def run():
        h = x * 1.0
        h.register_hook(lambda g: g * 3.0)
        return tr.mse_loss(h * h, h)

    trace = record(run).trace
    for group in trace.groups:
        for link in group.inputs:
            parts = [y.contribution.mean for id in group.nodes for y in trace.nodes[id].inputs
                     if y.source == link.source and y.contribution is not None]
            if parts:
                assert link.contribution.mean == pytest.approx(sum(parts))


# --- modules ----------------------------------------------------------------------------------------------------------


def test_running_statistics_of_modules_in_a_list_are_put_back_too():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = [nn.BatchNorm2d(3).double(), nn.Conv2d(3, 3, 1).double()]

        def forward(self, x):
            for part in self.parts:
                x = part(x)
            return x

    model, x = Hidden(), leaf(2, 3, 4, 4)
    before = [b.data.copy() for b in model.parts[0].buffers()]
    record(lambda: (model(x) * 2.0).sum())
    assert all((a == b.data).all() for a, b in zip(before, model.parts[0].buffers(), strict=True))


@pytest.mark.parametrize("kind", [np.array, tr.tensor])
def test_running_statistics_that_a_function_is_given_are_put_back(kind):
    mean, var, x = kind(np.zeros(3)), kind(np.ones(3)), leaf(2, 3, 4, 4)
    record(lambda: (tr.batch_norm(x, mean, var, training=True) * 2.0).sum())
    record(lambda: (tr.batch_norm(x, mean, var, training=True) * 2.0).sum())
    assert (np.asarray(getattr(mean, "data", mean)) == 0).all() and (np.asarray(getattr(var, "data", var)) == 1).all()


def test_modules_made_inside_the_function_have_names():
    x = leaf(4, 3)

    def run():
        h = x
        for _ in range(6):
            h = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()(h)
        return h.sum()

    trace = record(run).trace
    assert [n.name for n in trace.nodes if n.kind == "parameter"] == ["0.weight", "0.bias"] * 6


# --- finite differences of the loss -----------------------------------------------------------------------------------


def test_a_leaf_that_the_function_makes_anew_cannot_be_moved():
    stepper = step(lambda: (tr.tensor([1.0, 2.0], requires_grad=True) * 3.0).sum())
    with pytest.raises(RuntimeError, match="check: the function makes input anew .* outside"):
        stepper.check(0)


def test_images_that_are_wrapped_on_the_way_in_are_checked_in_double_precision():
    tr.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    images = np.random.default_rng(0).standard_normal((2, 1, 4, 4)).astype("float32")
    stepper = step(lambda: tr.cross_entropy(model(images), np.arange(2)), details=False)
    checks = [stepper.check(stepper.trace.groups[id].output) for id in stepper.trace.block_steps]
    assert {(check.ok, check.dtype) for check in checks} == {(True, "float64")}
    assert images.dtype == "float32" and all(p.dtype == "float32" for p in model.parameters())


@pytest.mark.parametrize("run", [lambda x: tr.relu(x).sum(), lambda x: tr.max_pool2d(x, 2).sum()])
def test_on_a_kink_any_slope_between_the_two_is_right(run):
    x = tr.tensor(np.zeros((1, 1, 2, 2)), "float64", requires_grad=True)
    check = step(lambda: run(x)).check(0, (0, 0, 0, 0))
    assert check.ok and "slope is 0 below and 1 above" in check.note


def test_a_wrong_rule_on_a_curve_is_no_kink():
    class Wrong(tr.Function):
        def forward(self, x):
            self.save(x)
            return x * x * x

        def backward(self, grad):
            return grad * self.saved[0] * self.saved[0] * 2.9

    x = tr.tensor([3.0], "float64", requires_grad=True)
    check = step(lambda: Wrong.apply(x).sum()).check(0)
    assert not check.ok and check.note == "" and check.numeric == pytest.approx(27.0)


def test_where_nothing_is_finite_a_check_says_so_and_the_trace_is_still_json():
    x = tr.tensor([0.0, 1.0], "float64", requires_grad=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        stepper = step(lambda: tr.log(x).sum())
        checks = [*(c for node in stepper.trace.nodes for c in node.checks), *map(stepper.check, range(2))]
    assert [check.note for check in checks if not check.ok and "not finite" not in check.note] == []
    assert not checks[-1].ok
    json.dumps([stepper.trace.as_dict(), *map(asdict, checks)], allow_nan=False)
