"""debug() names the op and the line; why() says in a sentence what became of a gradient, and the sentence is true."""

import gc
import linecache
import os
import re
import weakref

import numpy as np
import pytest

import tinyres as tr
from tinyres import nn

FILE = __file__


def leaf(*values):
    return tr.tensor(np.array(values, "float64"), requires_grad=True)


def points_to(message, marker):
    """Whether the message names this file and the line that carries `# marker`."""
    lines = [int(n) for path, n in re.findall(r"\(called at (.*?):(\d+)\)", str(message)) if path == FILE]
    return any(linecache.getline(FILE, n).rstrip().endswith(f"# {marker}") for n in lines)


# ---- raw writes


@pytest.mark.parametrize("write", [
    lambda h: h.data.__setitem__(0, 9.0), lambda h: h.numpy().fill(0.0), lambda h: np.negative(h.data, out=h.data),
    lambda h: h.reshape(2, 1).numpy().__setitem__(0, 9.0),
])
def test_a_raw_write_is_found_by_checksum(write):
    x = leaf(1.0, 2.0)
    with tr.debug():
        h = tr.exp(x)  # the keeper
        write(h)
        with pytest.raises(RuntimeError, match="exp kept an array .* something wrote into its memory since") as error:
            h.sum().backward()
    assert points_to(error.value, "the keeper") and x.grad is None


def test_a_raw_write_into_an_image_or_a_constant_is_found():
    x = tr.randn(2, 3, 4, 4, requires_grad=True)
    mask = np.ones((2, 3, 4, 4), dtype=bool)
    with tr.debug():
        y = tr.where(mask, x, 0.0).sum()
        mask[0, 0, 0, 0] = False
        with pytest.raises(RuntimeError, match="where kept an array .* something wrote"):
            y.backward()


def test_outside_debug_nothing_looks_and_nothing_costs():
    x = leaf(1.0, 2.0)
    h = tr.exp(x)
    assert h.node._saved[0].checksum is None and h.node.line == ""
    with tr.debug():
        h.sum().backward()  # the forward pass was not watched: there is nothing to compare with
    assert x.grad is not None


def test_a_clean_step_passes_also_with_empty_tensors_and_integers():
    with tr.debug():
        x, empty = tr.randn(2, 3, 4, 4, requires_grad=True), tr.tensor(np.zeros((0, 3)), requires_grad=True)
        loss = (tr.relu(x)[:, 1] * tr.tensor([1, 2, 3, 4])).sum().double() + tr.exp(empty).sum()
        loss.backward()
    assert x.grad.shape == x.shape and empty.grad.shape == (0, 3)


def test_an_inplace_change_is_reported_as_such_with_the_line():
    x = leaf(1.0, 2.0)
    with tr.debug():
        h = tr.exp(x)  # the victim
        h += 1.0
        with pytest.raises(RuntimeError, match="exp kept .* add_ changed it in place since") as error:
            h.sum().backward()
    assert points_to(error.value, "the victim")


# ---- NaN and Inf


@pytest.mark.parametrize("op, value, what", [
    (tr.log, -1.0, "NaN"), (tr.log, 0.0, "Inf"), (tr.sqrt, -1.0, "NaN"), (tr.exp, 1000.0, "Inf"),
])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_op_that_makes_the_first_bad_number_forward_is_named(op, value, what):
    x = leaf(0.5, value)
    with tr.debug(), pytest.raises(FloatingPointError) as error:
        y = x * 1.0
        z = op(y)  # makes it
        (z + 1.0).sum()
    assert re.match(rf"{op.__name__} made the first {what} of the forward pass", str(error.value))
    assert points_to(error.value, "makes it")
    assert "input (2,) from " in str(error.value) and f"{value:.3g}" in str(error.value)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_bad_number_that_was_given_is_no_ops_fault():
    x = leaf(np.nan, np.inf, 1.0)
    with tr.debug():
        y = tr.exp(x) + x - x
    assert np.isnan(y.numpy()[0])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("create_graph", [False, True])
def test_the_op_that_makes_the_first_bad_number_backward_is_named(create_graph):
    x = leaf(0.0, 1.0)
    with tr.debug():
        y = tr.sqrt(x * 2.0)  # infinite slope at 0
        loss = (y * 3.0).sum()
        with pytest.raises(FloatingPointError, match="sqrt made the first Inf of the backward pass") as error:
            loss.backward(create_graph=create_graph)
    assert points_to(error.value, "infinite slope at 0") and x.grad is None
    assert "upstream gradient (2,) from 3 to 3" in str(error.value)


def test_a_bad_gradient_that_was_given_is_no_ops_fault():
    x = leaf(1.0, 2.0)
    with tr.debug():
        (x * 2.0).backward(np.array([np.nan, 1.0]))
    assert np.isnan(x.grad.numpy()[0])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_without_raising_the_pass_goes_on():
    x = leaf(0.0, 1.0)
    with tr.debug(raise_on_nan=False):
        tr.sqrt(x).sum().backward()
    assert np.isinf(x.grad.numpy()[0]) and x.grad.numpy()[1] == 0.5


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_fused_op_and_a_layer_are_named_with_the_users_line():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    model[0].weight.data[...] = 1e38
    x = tr.tensor(np.full((2, 3), 1e38, "float32"))
    with tr.debug(), pytest.raises(FloatingPointError, match="matmul made the first Inf of the forward pass") as error:
        model(x)  # the user's line
    assert points_to(error.value, "the user's line")


def test_the_users_file_may_lie_in_a_folder_whose_name_begins_like_the_package():
    folder = f"{os.path.dirname(tr.__file__)}_experiments"
    code = compile("def call(f, x):\n    return f(x)\n", f"{folder}/mine.py", "exec")
    space = {}
    exec(code, space)
    with tr.debug():
        y = space["call"](tr.exp, leaf(1.0))
    assert y.node.line == f" (called at {folder}/mine.py:2)"


def test_debug_ends_with_its_block_also_after_an_error_and_as_a_decorator():
    with pytest.raises(FloatingPointError), tr.debug():
        with np.errstate(all="ignore"):
            tr.log(leaf(-1.0))
    assert tr.exp(leaf(1.0)).node.line == ""

    @tr.debug()
    def step(x):
        y = tr.exp(x)  # inside
        y.sum().backward()
        return y

    x = leaf(1.0)
    y = step(x)
    assert points_to(y.node.line, "inside")
    assert "arrived" in tr.why(x)


def test_watching_keeps_no_results_alive():
    """A validation epoch inside debug() must not hold every activation until the next backward pass."""
    w = leaf(1.0, 2.0)
    gc.disable()
    try:
        with tr.debug():
            with tr.no_grad():
                h = tr.exp(w)
                alive = weakref.ref(h.data)
                del h
                assert alive() is None
            loss = (tr.tanh(w) * 2.0).sum()
            (kept,) = [weakref.ref(e.node._saved[0].array) for e in loss.backward_steps()
                       if e.kind == "done" and e.node.name == "tanh"]
            loss.backward()
            assert kept() is None
    finally:
        gc.enable()


# ---- why: each sentence


def watched(step):
    with tr.debug():
        step().backward()


def both(parameter, step, *contains, marker=None):
    """The sentence after a watched step, and the one from `run`: both must say the same, and touch no gradient."""
    watched(step)
    sentences = [tr.why(parameter)]
    before = None if parameter.grad is None else (parameter.grad, parameter.grad.numpy().copy())
    sentences.append(tr.why(parameter, run=step))
    if before is None:
        assert parameter.grad is None
    else:
        assert parameter.grad is before[0] and parameter.grad.numpy().tobytes() == before[1].tobytes()
    for sentence in sentences:
        for part in contains:
            assert part in sentence, sentence
        if marker is not None:
            assert points_to(sentence, marker), sentence
    return sentences


def test_why_arrived():
    p, x = leaf(1.0, 2.0), leaf(3.0, 4.0)
    sentences = both(p, lambda: (p * x + tr.exp(p)).sum(), "arrived and is neither zero nor NaN", "it came from ")
    assert all("mul" in s and "exp" in s for s in sentences)
    assert "tensor of shape (2,): " in sentences[0]


def test_why_names_a_parameter_by_its_name():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    dict(model.named_parameters())
    assert tr.why(model[1].weight, run=lambda: model(tr.randn(2, 3)).sum()).startswith("1.weight: the gradient arrived")


def test_why_frozen():
    p = leaf(1.0)
    p.requires_grad = False
    for sentence in (tr.why(p), tr.why(p, run=lambda: (p * leaf(1.0)).sum())):
        assert sentence == "tensor of shape (1,): no gradient, because requires_grad is False (frozen)."


def test_why_unused():
    p, x = leaf(1.0), leaf(2.0)
    both(p, lambda: (x * 2.0).sum(), "is None because no op of the last pass used it")


@pytest.mark.parametrize("cut, name", [
    (tr.Tensor.detach, "detach"), (tr.no_grad()(tr.exp), "exp"), (lambda h: h.astype("int64"), "as_type"),  # the cut
])
def test_why_cut(cut, name):
    p, x = leaf(1.0, 2.0), leaf(3.0, 4.0)

    def step():
        h = tr.tanh(p)
        h = cut(h)  # the cut
        return (h * x).sum()

    both(p, step, f"is None because it was cut at {name} (called at", marker="the cut")


def test_why_cut_in_front_of_everything():
    """Nothing leads to the loss, so backward() itself fails: `run` still explains."""
    p = leaf(1.0, 2.0)
    sentence = tr.why(p, run=lambda: (p.detach() * 2.0).sum())  # all of it
    assert "cut at detach" in sentence and points_to(sentence, "all of it")
    with tr.debug(), pytest.raises(RuntimeError, match="nothing that this tensor was computed from"):
        (p.detach() * 2.0).sum().backward()
    assert "cut at detach" in tr.why(p)


def test_why_a_detach_for_the_log_is_not_the_cut():
    p, x = leaf(1.0, 2.0), leaf(3.0, 4.0)

    def step():
        h = p * x
        float(h.detach().sum())
        return (x * x).sum()

    sentences = both(p, step, "is None because what was computed from it", "does not lead to the tensor")
    assert not any("cut at" in s for s in sentences)

    def used():
        h = p * x
        float(h.detach().sum())
        return h.sum()

    both(p, used, "arrived")


@pytest.mark.parametrize("lose", [
    lambda h: h.argmax().double(), lambda h: (h > 3.0).double(), lambda h: float(h.sum()),
    lambda h: tr.Tensor(h.numpy()), lambda h: tr.Tensor(h.data), lambda h: 1.0,
])
def test_why_the_result_was_dropped_or_left_the_graph(lose):
    p, x = leaf(1.0, 2.0), leaf(3.0, 4.0)
    both(p, lambda: (x * lose(tr.exp(p))).sum(),
         "is None because what was computed from it, last by ", "does not lead to the tensor", "argmax")


def test_why_the_rule_gave_none():
    class OneSided(tr.Function):
        def forward(self, a, b):
            return a * b

        def backward(self, grad):
            return grad, None

    p, x = leaf(1.0, 2.0), leaf(3.0, 4.0)
    both(p, lambda: OneSided.apply(x, p).sum(),  # one-sided
         "is None because the rule of one_sided", "gave none", marker="one-sided")


def test_why_the_last_pass_was_for_others():
    p, x = leaf(1.0, 2.0), leaf(3.0, 4.0)
    with tr.debug():
        tr.grad((p * x).sum(), x)
    assert "the last pass did not ask for it" in tr.why(p)


def test_why_zero_by_a_dead_relu():
    p, x = leaf(1.0, 2.0), leaf(3.0, 4.0)

    def step():
        h = p * x - 100.0
        h = tr.relu(h)  # dead
        return (h * 5.0).sum()

    both(p, step, "the gradient became zero at relu", "whose upstream gradient was good", marker="dead")


def test_why_zero_by_cancellation_at_the_parameter():
    p = leaf(1.0, 2.0)
    both(p, lambda: (p * 3.0 - p * 3.0).sum(), "zero because the contributions of mul, mul cancel.")


def test_why_zero_by_cancellation_further_up():
    p, x = leaf(1.0, 2.0), leaf(3.0, 4.0)

    def step():
        h = p * x  # where they meet
        return (h - h).sum()

    both(p, step, "zero because the contributions of sub, sub cancel at the output of mul", marker="where they meet")


def test_why_cancellation_is_judged_by_this_pass_alone():
    p = leaf(1.0, 2.0)
    (p * 7.0).sum().backward()  # an earlier gradient, which stays in p.grad
    both(p, lambda: (p * 3.0 - p * 3.0).sum(), "cancel")
    p.grad = None
    assert "cancel" in tr.why(p)  # the sentence is about the pass, not about what became of .grad


def test_why_zero_from_the_start():
    p = leaf(1.0, 2.0)
    with tr.debug():
        (p * 2.0).backward(np.zeros(2))
    assert "the gradient was zero from the start" in tr.why(p)


def test_why_zero_in_a_hook():
    p, x = leaf(1.0, 2.0), leaf(3.0, 4.0)

    def step():
        h = p * x  # hooked
        h.register_hook(lambda g: g * 0.0)
        return h.sum()

    both(p, step, "the gradient became zero in a hook at the output of mul", marker="hooked")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("op, name", [(tr.sqrt, "sqrt"), (tr.log, "log"), (lambda h: 1.0 / h, "div")])  # bad
def test_why_nan(op, name):
    p, x = leaf(0.0, 2.0), leaf(3.0, 4.0)

    def step():
        h = op(p * x)  # bad
        return tr.minimum(h * 2.0, 50.0).sum() if name == "sqrt" else (h * 2.0)[:1].sum()

    with tr.debug(raise_on_nan=False):
        step().backward()
    for sentence in (tr.why(p), tr.why(p, run=step)):
        assert f"the gradient became NaN or Inf at {name} (called at" in sentence, sentence
        assert points_to(sentence, "bad")
        assert ("Before that, " in sentence) == (name != "sqrt"), "the forward pass was bad already"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_why_a_bad_forward_pass_is_mentioned():
    p, x = leaf(1.0, 2.0), leaf(-3.0, 4.0)

    def step():
        root = tr.sqrt(x.detach())  # NaN here
        return (p * root).sum()

    sentence = tr.why(p, run=step)
    assert "became NaN or Inf at mul" in sentence and "Before that, sqrt made the first NaN of the forward" in sentence
    assert points_to(sentence, "NaN here")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_why_the_pass_stopped():
    p = leaf(0.0, 1.0)
    with tr.debug(), pytest.raises(FloatingPointError):
        tr.sqrt(p * 2.0).sum().backward()
    assert "the pass stopped before it got there: sqrt made the first Inf of the backward pass" in tr.why(p)


def test_why_contributions_that_overflow_together():
    p = leaf(1.0, 2.0)
    big = 1.5e308
    with tr.debug(raise_on_nan=False), np.errstate(all="ignore"):
        (p * big + p * big).backward(np.ones(2))
    assert "the contributions of mul, mul add up to NaN or Inf." in tr.why(p)


def test_why_without_a_watched_pass_says_what_the_gradient_is():
    p = leaf(1.0, 2.0)
    watched(lambda: (leaf(1.0) * 2.0).sum())  # some other business
    for grad, words in (([1.0, 0.0], "neither None, zero nor NaN."), ([0.0, 0.0], "zero. Run the step inside"),
                        ([np.nan, 0.0], "NaN or Inf. Run the step inside")):
        p.grad = tr.tensor(grad, dtype="float64")
        assert f"the gradient is {words}" in tr.why(p)


def test_why_reads_the_last_pass():
    p, x = leaf(1.0, 2.0), leaf(3.0, 4.0)
    with tr.debug():
        for factor in (0.0, 1.0):
            p.grad = None
            (p * factor * x).sum().backward()
        assert "arrived" in tr.why(p)
        shared = p * x  # two passes over one forward pass: the second one counts
        first, second = (shared * 2.0).sum(), (shared * 0.0).sum()
        first.backward(retain_graph=True)
        second.backward()
    assert "the gradient became zero at mul" in tr.why(p)


def test_why_forgets_the_step_before():
    p, x = leaf(1.0, 2.0), leaf(3.0, 4.0)
    with tr.debug():
        (p.detach() * x).sum().backward()
        (x * 2.0).sum().backward()
    assert "no op of the last pass used it" in tr.why(p)


def test_why_is_not_confused_by_a_pass_within_the_pass():
    p, x, other = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(5.0)

    def step():
        h = tr.exp(p)
        h.register_hook(tr.enable_grad()(lambda g: (other * 3.0).sum().backward()))
        return (tr.relu(h - 100.0) * x).sum()

    both(p, step, "the gradient became zero at relu")


@pytest.mark.parametrize("create_graph", [False, True])
def test_why_with_hooks_and_create_graph(create_graph):
    """Ops that run inside the backward pass, in hooks and rules, are no new forward pass."""
    p, x, unused = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(1.0)
    with tr.debug():
        h = tr.exp(p * x)
        lost = unused * 2.0  # lost
        h.register_hook(lambda g: g * 1.0)
        (h * h).sum().backward(create_graph=create_graph)
    assert "arrived" in tr.why(p) and "it came from mul" in tr.why(p)
    assert "last by mul" in tr.why(unused) and points_to(tr.why(unused), "lost") and lost is not None


def test_why_a_gradient_penalty():
    """The ops of the first forward pass still count after a pass with create_graph."""
    p, x, lost = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(1.0)
    with tr.debug():
        h = tr.exp(p * x) * tr.exp(lost).detach()  # cut
        (g,) = tr.grad(h.sum(), x, create_graph=True)
        (h + g * g).sum().backward()
    assert "arrived" in tr.why(p)
    assert "cut at detach" in tr.why(lost) and points_to(tr.why(lost), "cut")


def test_run_leaves_every_gradient_and_the_last_watched_pass_as_they_were():
    p, other, assigned = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(5.0, 6.0)
    watched(lambda: (other * 0.0).sum())
    assigned.grad = mine = tr.tensor([7.0, 7.0], dtype="float64")  # no pass has brought this one
    kept = other.grad
    assert "arrived" in tr.why(p, run=lambda: (p * other * assigned).sum())
    assert p.grad is None and other.grad is kept and assigned.grad is mine
    np.testing.assert_array_equal(mine.numpy(), [7.0, 7.0])
    assert "became zero at mul" in tr.why(other)


def test_run_works_inside_no_grad_and_for_interior_tensors():
    p = leaf(1.0, 2.0)
    with tr.no_grad():
        assert "arrived" in tr.why(p, run=lambda: (p * 2.0).sum())
    with tr.debug():
        h = p * 2.0
        tr.relu(h - 100.0).sum().backward()
    assert "tensor of shape (2,): the gradient became zero at relu" in tr.why(h)
