"""The recorder: its numbers are the engine's own, it changes nothing, and it finds forks, joins and layers."""

import math

import numpy as np
import pytest

import tinyres as tr
from tinyres import models, nn
from tinyres.analysis.forks import split_of_gradient
from tinyres.analysis.taps import tapped
from tinyres.stepper import record, step
from tinyres.stepper.summarise import summarise

NETWORKS = ["resnet8", "resnet20", "preact_resnet20", "plain20", "shared_resnet20", "exclusive_gate_resnet",
            "shortcut_gate_resnet", "scaled_resnet", "rezero_resnet", "skipinit_resnet", "fixup_resnet20",
            "article_prose_four_step", "article_prose_series", "chain_concatenation", "chain_bottleneck",
            "dropout_shortcut_resnet", "conv_shortcut_resnet", "bn_after_addition_resnet", "residual_mlp"]


@pytest.fixture(autouse=True)
def kernels_of_the_reference():
    with tr.use_kernels("reference"):
        yield


def network(name, dtype="float32", **options):
    tr.manual_seed(0)
    model = models.build(name, **options)
    for parameter in model.parameters():  # scales that begin at 0 would hide their branch
        noise = np.random.default_rng(1).standard_normal(parameter.shape)
        parameter.data = (parameter.data + 0.05 * noise).astype(dtype)
    for buffer in model.buffers():
        buffer.data = buffer.data.astype(dtype) if buffer.data.dtype.kind == "f" else buffer.data
    size = (2, 1, 8, 8) if "mlp" in name else (2, 3, 16, 16)
    x = tr.tensor(np.random.default_rng(0).standard_normal(size), dtype=dtype)
    return model, x, lambda: tr.cross_entropy(model(x), np.arange(2))


def leaves_of(trace):
    return {node.name: node for node in trace.nodes if node.kind in ("parameter", "input")}


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_equal_those_of_the_same_unfused_run_bit_for_bit(name):
    model, x, run = network(name)
    state = tr.random.get_state()
    trace = record(run).trace
    tr.random.set_state(state)
    with tr.unfused():
        loss = run()
    loss.backward()
    assert trace.loss == float(loss.data)
    found = leaves_of(trace)
    for path, parameter in model.named_parameters():
        if parameter.grad is None:
            assert found[path].gradient is None if path in found else True
        else:
            assert found[path].gradient == summarise(parameter.grad.data), path


def test_every_interior_gradient_and_contribution_is_the_engines():
    model, x, run = network("resnet8")
    trace = record(run).trace
    with tr.unfused():
        loss = run()
    brought, whole, order = [], [], []
    for event in loss.backward_steps():
        if event.kind == "ready":
            order.append(getattr(event.node, "name", "") or "")
            whole.append(summarise(event.grad))
        else:
            brought.append([None if g is None else summarise(g) for g in event.contributions])
    nodes = [trace.nodes[id] for id in trace.backward]
    assert [node.gradient for node in nodes] == whole
    assert [node.op for node in nodes if node.kind == "op"] == [name for name in order if name in {n.op for n in nodes}]
    ops = [node for node in nodes if node.kind == "op"]
    assert [[link.contribution for link in node.inputs] for node in ops] == brought


@pytest.mark.parametrize("name", ["resnet8", "preact_resnet20", "scaled_resnet"])
def test_the_fused_run_is_as_near_as_rounding(name):
    """The bound that the documentation states: 1e-10 of the norm in float64."""
    model, x, run = network(name, "float64")
    trace = record(run).trace
    run().backward()
    found = leaves_of(trace)
    for path, parameter in model.named_parameters():
        norm = float(np.linalg.norm(parameter.grad.data))
        assert abs(found[path].gradient.norm - norm) <= 1e-10 * norm, path


def test_at_a_fork_the_contributions_add_up_to_the_whole():
    trace = record(network("resnet20", "float64")[2]).trace
    forks = [(node, node.fork) for node in trace.nodes if node.fork] + \
        [(trace.nodes[group.output], group.fork) for group in trace.groups if group.fork]
    assert len(forks) > 30
    for node, fork in forks:
        assert math.isclose(sum(a.share or 0 for a in fork.arrivals), 1, rel_tol=1e-9, abs_tol=1e-9) \
            or not node.gradient.norm
        last = fork.arrivals[-1].sum
        assert (last.norm, last.min, last.max) == (node.gradient.norm, node.gradient.min, node.gradient.max)
        assert fork.arrivals[0].cosine is None


@pytest.mark.parametrize("name", ["resnet20", "preact_resnet20", "scaled_resnet", "shortcut_gate_resnet"])
def test_the_split_at_residual_forks_is_that_of_the_instrument(name):
    """tinyres.analysis.forks finds the same forks in another way: by hooks that put an alias at the shortcut."""
    model, x, run = network(name, "float64")
    trace = record(run).trace
    split = split_of_gradient(model, x, np.arange(2))
    ours = [trace.nodes[block.fork].fork for block in trace.blocks]
    assert len(ours) == len(split.residual) > 0
    for fork, other in zip(ours, split.residual, strict=True):
        assert fork.residual
        assert fork.identity_share == pytest.approx(other.share, rel=1e-8)


def test_a_tensor_used_twice_by_one_op_is_a_fork():
    x = tr.tensor([3.0, -1.0], requires_grad=True, dtype="float64")
    trace = record(lambda: (x * x + x).sum()).trace
    fork = leaves_of(trace)["x"].fork
    assert [a.route for a in fork.arrivals] == ["shortcut", "branch", "branch"]
    assert fork.arrivals[-1].sum.values == [7.0, -1.0]
    assert fork.identity_share == pytest.approx((7 - 1) / 50)


def test_a_shared_weight_is_a_fork_and_a_step_of_the_block_view():
    tr.manual_seed(0)
    layer = nn.Linear(3, 3)
    x = tr.tensor(np.ones((2, 3)), dtype="float32")
    trace = record(lambda: layer(tr.relu(layer(x))).sum()).trace
    weight = leaves_of(trace)["weight"]
    assert len(weight.fork.arrivals) == 2
    assert trace.groups[weight.group].kind == "parameter"
    assert len(trace.groups[weight.group].fork.arrivals) == 2


# --- nothing changes --------------------------------------------------------------------------------------------------


def snapshot(model):
    return [(p.data.copy(), None if p.grad is None else p.grad.data.copy(), p.version.count)
            for p in model.parameters()], [b.data.copy() for b in model.buffers()]


def same(a, b):
    (p, q), (u, v) = a, b
    return all((x[0] == y[0]).all() and x[2] == y[2] and ((x[1] is None and y[1] is None) or (x[1] == y[1]).all())
               for x, y in zip(p, u, strict=True)) and all((x == y).all() for x, y in zip(q, v, strict=True))


@pytest.mark.parametrize("with_gradients", [False, True])
def test_recording_changes_no_gradient_running_statistic_or_random_state(with_gradients):
    model, x, run = network("dropout_shortcut_resnet", p=0.5)
    if with_gradients:
        run().backward()
    before, drawn = snapshot(model), tr.random.get_state()
    first = step(run).trace
    assert same(before, snapshot(model)) and tr.random.get_state() == drawn
    assert step(run).trace == first


def test_an_abandoned_walk_changes_nothing():
    model, x, run = network("resnet8")
    before = snapshot(model)
    with tr.unfused():
        loss = run()
    after_forward = snapshot(model)
    steps = loss.backward_steps()
    for _ in range(40):
        next(steps)
    steps.close()
    assert same(after_forward, snapshot(model)) and not same(before, after_forward)  # the forward's own statistics


def test_an_error_in_the_callable_changes_nothing_and_comes_out():
    model, x, run = network("resnet8")
    before, drawn = snapshot(model), tr.random.get_state()

    def wrong():
        run()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        record(wrong)
    assert same(before, snapshot(model)) and tr.random.get_state() == drawn
    assert tr.state.state.debug is None and tr.state.state.calls is None


def test_it_records_inside_debug_and_inside_no_grad():
    model, x, run = network("resnet8")
    plain = record(run).trace
    with tr.debug():
        assert record(run).trace.backward == plain.backward
    with tr.no_grad():
        assert record(run).trace.backward == plain.backward


# --- forks, joins, layers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "plain20"])
def test_every_residual_block_is_found_with_its_fork_and_join(name):
    model, x, run = network(name)
    trace = record(run).trace
    with tapped(model) as taps:
        model(x)
    assert [block.name for block in trace.blocks] == [tap.name for tap in taps]
    for block, tap in zip(trace.blocks, taps, strict=True):
        assert trace.nodes[block.fork].shape == tap.fork.shape
        assert trace.nodes[block.join].shape[0] == tap.output.shape[0] and trace.nodes[block.join].join is not None
        fork = trace.nodes[block.fork].fork
        if fork is not None:
            routes = [a.route for a in fork.arrivals]
            assert "shortcut" in routes and "branch" in routes, (name, block.name, routes)


def test_a_plain_network_has_no_residual_fork():
    trace = record(network("plain20")[2]).trace
    assert trace.blocks == [] and not any(g.fork and g.fork.residual for g in trace.groups)
    assert not any(group.kind == "join" for group in trace.groups)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_op_is_in_one_group_and_groups_form_a_graph_without_circles(name):
    trace = record(network(name)[2]).trace
    of = {}
    for group in trace.groups:
        assert group.output == group.nodes[-1]
        for id in group.nodes:
            assert id not in of and trace.nodes[id].group == group.id
            of[id] = group.id
    assert all(node.id in of for node in trace.nodes if node.kind == "op")
    for group in trace.groups:
        for link in group.inputs:
            assert link.group is None or link.group < group.id
            if link.group is not None:
                assert trace.groups[link.group].output == link.source
    assert sorted(trace.block_steps, key=lambda g: trace.groups[g].step) == trace.block_steps


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_layer_brings_is_the_sum_of_what_its_ops_bring(name):
    """Checked by the norm of one direction: sums are linear, so the mean of the whole is the sum of the means."""
    trace = record(network(name, "float64")[2]).trace
    for group in trace.groups:
        for link in group.inputs:
            parts = [x.contribution for id in group.nodes for x in trace.nodes[id].inputs
                     if x.source == link.source and x.contribution is not None]
            if parts:
                assert link.contribution.mean == pytest.approx(sum(part.mean for part in parts), rel=1e-6, abs=1e-12)
            else:
                assert link.contribution is None


def test_layers_have_the_names_of_their_modules():
    trace = record(network("resnet8")[2]).trace
    titles = [group.title for group in trace.groups if group.block == "layer2.0"]
    assert titles == ["conv1", "bn1", "relu", "conv2", "downsample", "bn2", "join", "relu"]
    assert [g.lane for g in trace.groups if g.title == "downsample"] == ["shortcut", "shortcut"]
    assert [g.title for g in trace.groups if not g.block] == ["conv1", "bn1", "relu", "global_avg_pool2d", "fc",
                                                              "cross_entropy"]


def test_joins_say_whether_the_gradient_is_copied_split_or_projected():
    kinds = {}
    for name in ("resnet8", "chain_concatenation", "chain_bottleneck", "densenet40"):
        options = {"growth": 4} if name == "densenet40" else {}
        kinds[name] = {node.join.kind for node in record(network(name, **options)[2]).trace.nodes if node.join}
    assert kinds == {"resnet8": {"addition"}, "chain_concatenation": {"addition", "concatenation"},
                     "chain_bottleneck": {"addition", "projection"}, "densenet40": {"addition", "concatenation"}}


def test_a_block_without_modules_is_found_by_its_edges():
    x = tr.tensor(np.arange(6.0).reshape(2, 3) - 2, requires_grad=True, dtype="float64")
    w = tr.tensor(np.ones((3, 3)), requires_grad=True, dtype="float64")
    trace = record(lambda: (x + tr.relu(x @ w) * 0.5).sum()).trace
    (join,) = [node for node in trace.nodes if node.join]
    assert join.join.routes == [(0, "shortcut"), (1, "branch")] and trace.nodes[join.join.fork].name == "x"
    fork = leaves_of(trace)["x"].fork
    assert fork.residual and [a.route for a in fork.arrivals] == ["shortcut", "branch"]


def test_a_gradient_that_is_cut_off_is_seen_to_end():
    x = tr.tensor([1.0, 2.0], requires_grad=True)
    trace = record(lambda: (x.detach() * x).sum()).trace
    cut = next(node for node in trace.nodes if node.op == "detach")
    assert cut.step is None and cut.gradient is None and leaves_of(trace)["x"].gradient.values == [1.0, 2.0]


def test_ops_in_place_are_steps_of_their_own():
    x = tr.tensor([1.0, -2.0], requires_grad=True)

    def run():
        h = x * 3.0
        h += 1.0
        return tr.relu(h).sum()

    trace = record(run).trace
    assert [node.op for node in trace.nodes if node.kind == "op"][:3] == ["mul", "add_", "relu"]
    assert leaves_of(trace)["x"].gradient.values == [3.0, 0.0]


# --- the ledger -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet8", "chain_concatenation", "residual_mlp"])
def test_what_is_kept_is_freed_and_counted_once(name):
    model, x, run = network(name)
    trace = record(run).trace
    with tr.unfused():
        loss = run()
    roots, todo, seen = {}, [loss.node], set()
    outside = {id(owner(t.data)) for t in [*model.parameters(), x]}
    while todo:
        node = todo.pop()
        if node is None or isinstance(node, tr.Tensor) or node in seen:
            continue
        seen.add(node)
        todo += node.edges
        for saved in node._saved:
            if hasattr(saved.array, "strides") and id(owner(saved.array)) not in outside:
                roots[id(owner(saved.array))] = owner(saved.array).nbytes
    assert trace.held == sum(roots.values()) > 0
    held = [trace.held, *(trace.nodes[id].held for id in trace.backward)]
    assert held[-1] == 0 and held == sorted(held, reverse=True)
    assert sum(group.kept for group in trace.groups) == trace.held


def owner(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


# --- what is given, and what is wrong ---------------------------------------------------------------------------------


def test_after_a_fused_forward_it_says_so_and_how_to_rerun():
    model, x, run = network("resnet8")
    trace = record(run()).trace
    assert not trace.unfused and "tr.step(lambda" in trace.notes[0] and "batch_norm" in trace.notes[0]
    assert [trace.nodes[id].op for id in trace.backward if trace.nodes[id].fused].count("batch_norm") == 7
    assert record(run).trace.notes == []


def test_a_loss_that_was_given_keeps_its_graph():
    model, x, run = network("resnet8")
    loss = run()
    trace = record(loss).trace
    loss.backward()
    found = {tuple(node.gradient.shape): node.gradient for node in trace.nodes if node.name == "fc.weight"}
    assert found[model.fc.weight.shape] == summarise(model.fc.weight.grad.data)


@pytest.mark.parametrize(
    "run, error, message",
    [
        (lambda: tr.tensor([1.0, 2.0], requires_grad=True) * 2.0, TypeError, "sum"),
        (lambda: 3.0, TypeError, "float"),
        (3, TypeError, "lambda"),
        (lambda: tr.tensor(1.0) * 2.0, RuntimeError, "requires_grad"),
    ],
)
def test_what_gives_no_loss_is_an_error(run, error, message):
    with pytest.raises(error, match="step: .*" + message):
        step(run)


def test_a_forward_pass_that_stops_at_a_join_is_a_trace_of_what_ran():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)

        def forward(self, x):
            return x + self.conv(x)

    model, x = Wrong(), tr.tensor(np.ones((1, 3, 8, 8)), dtype="float32")
    trace = step(lambda: model(x).sum()).trace
    assert trace.stopped is not None and trace.stopped.op == "add" and len(trace.stopped.fixes) == 3
    assert trace.backward == [] and [node.op for node in trace.nodes if node.kind == "op"][0] == "conv2d"
    assert {shape for _, shape in trace.stopped.sides} == {(1, 3, 8, 8), (1, 4, 4, 4)}


def test_an_array_with_nan_is_described_without_inventing_numbers():
    found = summarise(np.array([[1.0, np.nan], [np.inf, 2.0]]))
    assert (found.bad, found.norm, found.mean, found.min) == (2, None, None, None) and found.values[1] is None


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_norms_neither_overflow_nor_vanish(scale):
    assert summarise(np.array([3.0, 4.0]) * scale).norm == pytest.approx(5 * scale)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 1, 0, 2)])
def test_numbers_do_not_depend_on_the_order_of_memory(order):
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 7))
    found = summarise(x.transpose(order).copy().transpose(np.argsort(order)))
    assert found.norm == pytest.approx(np.linalg.norm(x)) and found.mean == pytest.approx(x.mean())
    assert (found.min, found.max, found.shape) == (x.min(), x.max(), x.shape)


# --- finite differences on demand -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_finite_differences_of_the_loss_agree_at_every_step(dtype):
    stepper = step(network("resnet8", dtype)[2], details=False)
    trace = stepper.trace
    for id in trace.block_steps:
        check = stepper.check(trace.groups[id].output)
        assert check.ok and check.dtype == "float64", (trace.groups[id].title, check)


def test_every_rule_is_checked_and_worked_out():
    trace = step(network("resnet8", "float64")[2]).trace
    wanted = sum(link.contribution is not None for node in trace.nodes for link in node.inputs)
    checks = [check for node in trace.nodes for check in node.checks]
    assert len(checks) == wanted > 200 and all(check.ok for check in checks)
    assert all(w.value == pytest.approx(w.engine, rel=1e-9, abs=1e-12) for node in trace.nodes for w in node.worked)


def test_a_wrong_rule_is_found():
    class Wrong(tr.Function):
        def forward(self, x):
            self.save(x)
            return x * x

        def backward(self, grad):
            return grad * self.saved[0]  # the 2 is forgotten

    x = tr.tensor([3.0, 1.0], requires_grad=True, dtype="float64")
    stepper = step(lambda: Wrong.apply(x).sum())
    node = next(node for node in stepper.trace.nodes if node.op == "wrong")
    assert not node.checks[0].ok and not stepper.check(0).ok and not stepper.check(node.id, what="rule").ok
    assert stepper.check(0).numeric == pytest.approx(6.0)


def test_a_check_names_what_is_wrong_with_the_question():
    stepper = step(network("resnet8")[2], details=False)
    with pytest.raises(ValueError, match="no node 9999"):
        stepper.check(9999)
    with pytest.raises(IndexError, match=r"\(5,\)"):
        stepper.check(stepper.trace.backward[0], index=(5,))
    with pytest.raises(ValueError, match="rule"):
        stepper.check(stepper.trace.backward[-1], what="everything")
    loss = network("resnet8")[2]()
    with pytest.raises(RuntimeError, match="lambda"):
        step(loss, details=False).check(0)
