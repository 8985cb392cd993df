"""Predict first: every answer is recomputed here from the trace. And the sentences that terminal and page share."""

import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import tinyres as tr
from tinyres import data, models
from tinyres.stepper import words
from tinyres.stepper.questions import questions
from tinyres.stepper.schema import Arrival, Fork, Join, Kept, Node, Summary
from tinyres.stepper.short import counted, number, percent, plain, several, shape, size
from tinyres.stepper.trace import record


def network(name, **options):
    tr.manual_seed(0)
    x, y = data.digits("train").batch(2)
    model = getattr(models, name)(in_channels=1, **options)
    with tr.use_kernels("reference"):
        return record(lambda: tr.cross_entropy(model(x), y), title=name).trace


def small():
    x = tr.tensor(np.array([[1.0, -2.0], [0.5, 3.0]]), requires_grad=True)
    w = tr.tensor(np.array([[1.0, 2.0], [-1.0, 0.5]]), requires_grad=True)
    return record(lambda: ((x + tr.relu(x @ w)) * x).sum()).trace


TRACES = {"resnet8": lambda: network("resnet8"), "preact": lambda: network("preact_resnet20"),
          "option B": lambda: network("resnet8", option="B"), "small": small}


@pytest.fixture(scope="module", params=TRACES)
def trace(request):
    return TRACES[request.param]()


def parts(trace, view, id):
    """(gradient, [(contribution, passed on)], arrivals, bytes freed) of a step, straight from the data."""
    if view == "blocks":
        group = trace.groups[id]
        ids, inputs, fork = group.nodes, group.inputs, group.fork
        node = trace.nodes[group.output]
    else:
        node = trace.nodes[id]
        ids, inputs, fork = [id], node.inputs, node.fork
    brought = [(i.contribution, i.passed_on) for i in inputs if i.contribution is not None]
    freed = sum(k.bytes for i in ids for k in trace.nodes[i].kept if k.freed)
    return node.gradient, brought, fork.arrivals if fork else [], freed


def right(trace, view, id, question):
    """The answers that are right, found out another way than the question's."""
    gradient, brought, arrivals, freed = parts(trace, view, id)
    kind, choices = question.kind, question.choices
    if kind == "beginning":
        return {"1"} if gradient.min == gradient.max == 1 and gradient.shape == () else set()
    if kind == "freed":
        return {choices[0]} if freed else {choices[1]}
    if kind == "larger":
        best = max(arrivals, key=lambda a: a.norm)
        return {c for c, a in zip(choices, arrivals, strict=True) if a is best}
    if kind == "sum":
        whole = arrivals[-1].sum.norm  # |a + b|^2 = |a|^2 + |b|^2 + 2 |a| |b| cos
        a, b = arrivals[0].norm, arrivals[1].norm
        assert whole ** 2 == pytest.approx(a * a + b * b + 2 * a * b * arrivals[1].cosine, rel=1e-3)
        return {choices[0]} if whole > a and whole > b else {choices[1]}
    if kind == "share":
        branch = next(a for a in arrivals if a.route == "branch")
        return {"with the sum"} if branch.share > 0 else {"against the sum"}
    if kind == "handed on":
        if any(p for _, p in brought) and not all(p for _, p in brought):
            return {"the very array that arrived"}  # it asks for one that is
        return {"the very array that arrived" if brought[0][1] else "a new array"}
    if kind == "shape":
        return {str(c.shape) if c.shape else "one number" for c, _ in brought if c.shape != gradient.shape}
    if kind == "norm":
        ratio = brought[0][0].norm / gradient.norm
        assert not 0.46 < ratio < 0.54 and not 1.85 < ratio < 2.15, "too close to tell"
        return {choices[0] if ratio < 0.5 else choices[1] if ratio < 2 else choices[2]}
    assert kind == "sign"
    contribution = next(c for c, _ in brought if not c.min == c.max == 0)
    return {"none is negative" if contribution.min >= 0 else "none is positive" if contribution.max <= 0 else
            "both signs"}


@pytest.mark.parametrize("view", ["blocks", "ops"])
def test_every_answer_is_the_right_one_and_only_one_is(trace, view):
    asked = questions(trace, view)
    order = words.steps(trace, view)
    assert len(asked) >= len(order) / 3 and set(asked) <= set(order)
    for id, question in asked.items():
        good = right(trace, view, id, question) & set(question.choices)
        if question.kind == "shape":  # it asks for one input of several
            assert question.choices[question.answer] in good
        else:
            assert good == {question.choices[question.answer]}, question
        assert 2 <= len(question.choices) <= 4 and len(set(question.choices)) == len(question.choices)
        assert question.ask.isprintable() and question.because.endswith(".")


def test_the_kinds_and_the_right_answers_take_turns(trace):
    asked = questions(trace, "ops")
    kinds = Counter(question.kind for question in asked.values())
    assert len(kinds) >= 5
    if len(asked) > 20:
        places = Counter(question.answer for question in asked.values())
        assert max(places.values()) < 0.8 * len(asked), "always the same digit would do"


def test_the_same_trace_gives_the_same_questions():
    assert questions(small(), "ops") == questions(small(), "ops")
    with pytest.raises(ValueError, match="view must be 'blocks' or 'ops', got 'x'"):
        questions(small(), "x")


def test_forks_that_are_not_clear_cut_get_no_such_question():
    trace = small()
    fork = next(node for node in trace.nodes if node.fork is not None)
    a, b = fork.fork.arrivals[:2]
    even = replace(fork.fork, arrivals=[replace(a, norm=1.0, share=0.5), replace(b, norm=1.1, share=0.01, sum=replace(
        b.sum, norm=1.12))])
    fork.fork = even
    assert questions(trace, "ops").get(fork.id, None) is None or \
        questions(trace, "ops")[fork.id].kind not in ("larger", "sum", "share")


@pytest.mark.parametrize("a, b, whole, answer", [(3.0, 3.1, 4.3, "larger than each of the two"),
                                                 (3.0, 3.1, 2.5, "smaller than at least one of them"),
                                                 (3.0, 3.5, 3.2, "smaller than at least one of them")])
def test_a_sum_is_larger_than_both_or_not(a, b, whole, answer):
    x = tr.tensor(np.array([1.0, -2.0]), requires_grad=True)
    trace = record(lambda: (x + tr.exp(x)).sum()).trace
    node = next(node for node in trace.nodes if node.fork is not None)
    first, second = node.fork.arrivals
    node.fork = replace(node.fork, arrivals=[replace(first, norm=a, route="", share=None), replace(
        second, norm=b, route="", share=None, sum=replace(second.sum, norm=whole))])
    question = questions(trace, "ops")[node.id]
    assert question.kind == "sum" and question.choices[question.answer] == answer


def test_a_gradient_that_is_not_finite_is_not_asked_about():
    x = tr.tensor(np.array([0.0, 1.0]), requires_grad=True)
    with np.errstate(all="ignore"):
        trace = record(lambda: (tr.log(x) * x).sum()).trace
        asked = questions(trace, "ops")
    assert all(trace.nodes[id].gradient.norm is not None for id in asked)


# --- the sentences ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x, text", [
    (0.0, "0"), (-0.0, "0"), (3.0, "3"), (-2.5, "-2.5"), (0.1, "0.1"), (1 / 3, "0.3333"), (1234.5, "1234"),
    (999.96, "1000"), (123456.7, "123457"), (1e6, "1e6"), (1234567.0, "1.235e6"), (0.0001234, "1.234e-4"),
    (-1e-30, "-1e-30"), (math.inf, "inf"), (math.nan, "nan"), (None, "-")])
def test_numbers_are_short(x, text):
    assert number(x) == text and len(text) <= 10


def test_numbers_are_right_to_four_digits():
    rng = np.random.default_rng(0)
    for x in rng.standard_normal(2000) * 10.0 ** rng.integers(-30, 30, 2000):
        assert float(number(x)) == pytest.approx(x, rel=5.1e-4) and len(number(x)) <= 11


def test_shares_bytes_shapes_and_lists():
    assert [percent(x) for x in (0.4261, 1.0, -0.05, -0.0001, None, 0.0)] == [
        "42.6 %", "100.0 %", "-5.0 %", "0.0 %", "-", "0.0 %"]
    assert [size(n) for n in (0, 1, 640, 1023, 1024, 12800, 1024 ** 2 - 1, 3 * 1024 ** 2, 1024 ** 4)] == [
        "0 bytes", "1 byte", "640 bytes", "1023 bytes", "1.0 KiB", "12.5 KiB", "1.0 MiB", "3.0 MiB", "1.0 TiB"]
    assert [shape(()), shape((3,)), shape([2, 3])] == ["one number", "(3,)", "(2, 3)"]
    assert [several(list("abcdef"[:n])) for n in (1, 2, 4, 5, 6)] == [
        "a", "a and b", "a, b, c and d", "a, b, c and 2 others", "a, b, c and 3 others"]
    assert [counted(n, "op") for n in (1, 2, 12)] == ["one op", "two ops", "12 ops"]
    assert plain("a\x1b[2J\nb") == "a\\x1b[2J\\nb"


def test_why_now_names_every_consumer_and_its_step():
    trace = network("resnet8")
    for view in ("blocks", "ops"):
        order = words.steps(trace, view)
        for id in order:
            text = words.why_now(trace, view, id)
            if id == order[0]:
                assert text.startswith("it is the loss")
                continue
            if view == "ops":
                users = [n.id for n in trace.nodes for i in n.inputs if i.source == id and i.contribution]
            else:
                users = [g.id for g in trace.groups for i in g.inputs if i.group == id and i.contribution]
            steps = sorted(order.index(u) + 1 for u in set(users))
            assert [int(n) for n in re.findall(r"step (\d+)\)", text)] == (steps if len(steps) < 5 else steps[:3])
            assert max(steps) <= order.index(id), "a step comes after all of its consumers"


def test_why_now_of_a_tensor_that_one_op_uses_twice():
    x = tr.tensor(np.ones(2), requires_grad=True)
    trace = record(lambda: (x + x).sum()).trace
    leaf = next(node for node in trace.nodes if node.kind == "input")
    assert words.why_now(trace, "ops", leaf.id) == "its only consumer is done: add (step 3), which uses it twice"


def _summary(norm):
    return Summary((2,), "float64", norm, -1.0, 0.0, 1.0, 0.0)


def _fork(a, b, whole, share, routes=("shortcut", "branch")):
    arrivals = [Arrival(1, routes[0], a, None, share, _summary(a)),
                Arrival(2, routes[1], b, 0.0, None if share is None else 1 - share, _summary(whole))]
    return Fork(arrivals, bool(routes[0]), share)


@pytest.mark.parametrize("fork, end", [
    (_fork(3.0, 4.0, 5.0, 0.36), "of norms 3 (shortcut) and 4 (branch); the sum has norm 5. The shortcut carries 36.0 "
                                 "% of it."),
    (_fork(1.0, 4.0, 3.0, -0.33), "The share of the shortcut is -33.0 %: it works against the sum."),
    (_fork(4.0, 1.0, 3.0, 1.33), "The share of the shortcut is 133.0 %: the branch works against the sum."),
    (_fork(4.0, 4.0, 0.0, None), "the sum has norm 0. They cancel, so that no share is defined."),
    (_fork(1.0, 1.0, 2.0, None, ("", "")), "Two contributions are added, of norms 1 and 1; the sum has norm 2.")])
def test_what_is_said_of_a_fork(fork, end):
    assert words.fork_sentence(fork).endswith(end)


def test_what_is_said_of_joins_and_of_what_is_kept():
    both = [(0, "shortcut"), (1, "branch")]
    assert words.join_sentence(Join("addition", 3, both)) == \
        "An addition: the gradient that arrives is copied, shortcut and branch get the same one."
    assert "split, the inputs get a part each" in words.join_sentence(Join("concatenation", None, [(0, ""), (1, "")]))
    assert "projected" in words.join_sentence(Join("projection", 3, both))
    node = Node(0, "op", "matmul", "fc matmul", (2, 2), "float32", kept=[
        Kept("a", 1, (2, 4), 32, True, False), Kept("b", 2, (4, 2), 2048, False, True)])
    assert words.kept_sentence(node) == ("The rule needs a (2, 4) of 32 bytes and b (4, 2) of 2.0 KiB. Now a can go: "
                                         "32 bytes are freed. Of these b is a parameter or an input and stays anyway.")
    assert "nothing is kept" in words.kept_sentence(Node(0, "op", "add", "add", (), "float32"))


def test_held_bytes_of_a_step_are_what_the_step_before_left():
    trace = network("resnet8")
    for view in ("blocks", "ops"):
        left = trace.held
        for id in words.steps(trace, view):
            before, after = words.held(trace, view, id)
            assert before == left and after <= before
            left = after
        assert left == 0


def test_an_announcement_says_where_one_is_what_came_and_how_much_the_shortcut_carries():
    trace = network("resnet8")
    id = next(g for g in trace.block_steps if trace.groups[g].fork)
    text = words.announcement(trace, "blocks", id)
    share = percent(trace.groups[id].fork.identity_share)
    assert re.match(r"Step 12 of 29: relu of layer2.0, gradient \(2, 32, 4, 4\), norm ", text)
    assert text.endswith(f", a fork of two contributions, shortcut {share}.")
    assert "value (2, 32, 4, 4)" in words.announcement(trace, "blocks", id, "forward")
