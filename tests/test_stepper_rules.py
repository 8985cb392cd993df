"""The stepper's rules: a text for every op, one element worked out by hand, a finite difference of the op alone. The
worked numbers and the differences come from the forward pass, the contributions they are held against from the engine.
"""

import math
import re

import numpy as np
import pytest
from differences import leaves, outputs, upstreams
from op_table import ROWS

import tinyres as tr
from tinyres import ops
from tinyres.kernels import use_kernels
from tinyres.state import setting
from tinyres.stepper.rules import RULES, check_rule, input_names, rule_of, with_shapes, worked
from tinyres.stepper.worked import RECIPES, SHOWN
from tinyres.tensor import Function

DIFFERENTIABLE = [pytest.param(row, id=row.id) for row in ROWS if row.differentiable(row.make())]


class Watch:
    """Stands where tr.debug()'s observer does, and notes the inputs and the result of every op."""

    def __init__(self):
        self.calls = {}

    def forward(self, node, inputs, edges, result):
        self.calls[node] = [x.data if isinstance(x, tr.Tensor) else x for x in inputs], result.data

    def backward(self, *_):
        pass

    arrived = cut = check_saved = checksum = backward


def steps(run, upstream, kernel_set="reference"):
    """(node, inputs, output, upstream gradient, slot, contribution) of every contribution of a backward pass."""
    watch = Watch()
    with use_kernels(kernel_set):
        with setting(debug=watch):
            results = outputs(run())
        for y, u in zip(results, upstream, strict=True):
            for event in y.backward_steps(u) if y.requires_grad else ():
                if event.kind == "done":
                    for slot, contribution in enumerate(event.contributions):
                        if contribution is not None:
                            inputs, output = watch.calls[event.node]
                            yield event.node, inputs, output, event.grad, slot, np.array(contribution)


def steps_of(row, dtype="float64"):
    arrays = row.make(dtype)
    tensors = leaves(arrays, row.differentiable(arrays))
    return steps(lambda: row.run(*tensors), upstreams(row, arrays))


def shape_of(x):
    return x.shape if hasattr(x, "shape") else None


def evaluated(term):
    """The number that a term's text means."""
    for symbol, code in (("·", "*"), ("²", "**2"), ("^", "**"), ("log", "math.log")):
        term = term.replace(symbol, code)
    return eval(term, {"math": math})


def some_indices(shape, count=3, seed=3):
    rng = np.random.default_rng(seed)
    return [None, *(tuple(int(rng.integers(n)) for n in shape) for _ in range(count))]


def ops_of_tinyres(base=Function):
    for op in base.__subclasses__():
        yield from ops_of_tinyres(op)
        if op.__module__.startswith("tinyres."):
            yield op


def test_every_op_has_a_rule_and_every_rule_an_op():
    named = {op.name for op in ops_of_tinyres()} - {"binary", "fused"}
    assert named == set(RULES)
    assert named - set(RECIPES) == set()


def test_a_rule_has_a_line_per_input():
    for op in ops_of_tinyres():
        if op.name in ("binary", "fused", "concat"):
            continue
        rule = RULES[op.name]
        names = input_names(op(), len(rule.backward))
        for name, line in zip(names, rule.backward, strict=True):
            assert line.startswith(f"d{name} = ") or (name, line) == ("mask", "the mask gets none")
        assert rule.forward.startswith("y = ") and rule.note[0].isupper()
        assert rule.note.endswith(".")


@pytest.mark.parametrize("row", DIFFERENTIABLE)
def test_one_element_worked_out_equals_the_engines(row):
    for node, inputs, output, grad, slot, contribution in steps_of(row):
        for index in some_indices(contribution.shape):
            found = worked(node, slot, inputs, output, grad, contribution, index)
            place = np.unravel_index(np.abs(contribution).argmax(), contribution.shape) if index is None else index
            assert found.engine == contribution[place]
            assert found.value == pytest.approx(found.engine, rel=1e-10, abs=1e-12)
            assert found.slot == slot and found.element.startswith(f"d{input_names(node, len(inputs))[slot]}")
            assert re.findall(r"-?\d+", found.element.partition("[")[2]) == [str(i) for i in place]
            assert len(found.terms) <= SHOWN and (found.more == 0 or len(found.terms) == SHOWN)
            numbers = [evaluated(term) for term in found.terms]
            if found.more == 0:
                assert sum(numbers) == pytest.approx(found.value, rel=2e-3, abs=2e-3 * sum(map(abs, numbers)) + 1e-9)


@pytest.mark.parametrize("row", DIFFERENTIABLE)
def test_the_rule_with_shapes_names_them(row):
    for node, inputs, _, grad, slot, _ in steps_of(row):
        shapes = [shape_of(x) for x in inputs]
        lines = with_shapes(node, shapes, grad.shape)
        assert len(lines) == sum(edge is not None for edge in node.edges)
        name = input_names(node, len(inputs))[slot]
        (line,) = [line for line in lines if line.startswith(f"d{name} ")]
        assert line.startswith(f"d{name} {shapes[slot]} = ") and str(grad.shape) in line.partition(" = ")[2]


@pytest.mark.parametrize("row", DIFFERENTIABLE)
def test_a_finite_difference_of_the_op_agrees_and_a_turned_sign_does_not(row):
    for node, inputs, _, grad, slot, contribution in steps_of(row):
        for index in some_indices(contribution.shape, 1):
            found = check_rule(node, slot, inputs, grad, contribution, index)
            assert found.ok and found.what == "rule" and found.dtype == "float64"
            assert found.analytic == contribution[found.index] and "kink" not in found.note
            if abs(found.analytic) > 1e-6:
                assert found.error < 1e-6
                wrong = np.array(contribution)
                wrong[found.index] *= -1
                assert not check_rule(node, slot, inputs, grad, wrong, found.index).ok


LONG_SUMS = ("conv2d", "batch_norm", "cross_entropy", "log_softmax", "matmul", "astype", "dropout")


@pytest.mark.parametrize("row", [p for p in DIFFERENTIABLE if p.values[0].name in LONG_SUMS])
def test_float32_contributions_agree_within_their_rounding(row):
    for node, inputs, output, grad, slot, contribution in steps_of(row, "float32"):
        found = check_rule(node, slot, inputs, grad, contribution)
        assert found.ok and found.numeric == pytest.approx(found.analytic, rel=1e-4, abs=1e-5)
        by_hand = worked(node, slot, inputs, output, grad, contribution)
        assert by_hand.value == pytest.approx(by_hand.engine, rel=1e-4, abs=1e-5)
        wrong = np.array(contribution)
        wrong[found.index] *= -1
        if abs(found.analytic) > 1e-4:
            assert not check_rule(node, slot, inputs, grad, wrong, found.index).ok


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_folded_convolution_has_a_rule_too(relu, groups):
    rng = np.random.default_rng(2)
    x, w, bias, residual = (tr.tensor(rng.standard_normal(s), requires_grad=True) for s in
                            ((2, 4, 5, 5), (6, 4 // groups, 3, 3), (6,), (2, 6, 3, 3)))
    u = rng.standard_normal((2, 6, 3, 3))
    run = list(steps(lambda: ops.conv_bias.conv_bias(x, w, bias, (2, 2), (1, 1), (1, 1), groups, residual, relu), [u]))
    assert {slot for *_, slot, _ in run} == {0, 1, 2, 3}
    for node, inputs, output, grad, slot, contribution in run:
        for index in some_indices(contribution.shape):
            found = worked(node, slot, inputs, output, grad, contribution, index)
            assert found.value == pytest.approx(found.engine, rel=1e-10, abs=1e-12)
        assert check_rule(node, slot, inputs, grad, contribution).ok


# ---- by hand --------------------------------------------------------------------------------------------------------


def only_step(run, upstream):
    """Of a pass of one op, by slot: the node, what worked() takes, and the contribution."""
    return {slot: (node, slot, inputs, output, grad, contribution)
            for node, inputs, output, grad, slot, contribution in steps(run, [np.asarray(upstream, np.float64)])}


def leaf(*rows):
    return tr.tensor(np.array(rows, np.float64), requires_grad=True)


def test_a_product_by_hand():
    a, b = leaf(2.0, -3.0), leaf(0.5, 4.0)
    found = only_step(lambda: a * b, [10.0, 0.25])
    assert worked(*found[0], index=(1,)).terms == ["0.25 · 4"]
    assert worked(*found[1], index=(1,)).terms == ["0.25 · (-3)"]
    assert worked(*found[1], index=(1,)).expression == "g[1] · a[1]"
    assert worked(*found[1]).value == 20.0 and worked(*found[1]).element == "db[0]"


def test_a_broadcast_bias_collects_over_the_batch_by_hand():
    x, bias = leaf([1.0, 2.0], [3.0, 4.0], [5.0, 6.0]), leaf(7.0, 8.0)
    found = only_step(lambda: x + bias, [[1.0, -2.0], [3.0, 4.0], [-5.0, 0.5]])
    by_hand = worked(*found[1], index=(1,))
    assert by_hand.terms == ["-2", "4", "0.5"] and by_hand.value == 2.5
    assert by_hand.expression == "Σ over i of g[i, 1]"
    node, _, inputs, _, grad, _ = found[1]
    assert with_shapes(node, [(3, 2), (2,)], (3, 2)) == ["da (3, 2) = g (3, 2)",
                                                         "db (2,) = g (3, 2), summed over dim 0"]


def test_a_convolution_by_hand():
    """x 3x3, W 2x2: the middle pixel was seen by all four windows, the corner by one; a weight by all of them."""
    x = tr.tensor(np.arange(1.0, 10.0).reshape(1, 1, 3, 3), requires_grad=True)
    w = tr.tensor(np.array([[1.0, -1.0], [2.0, 0.5]]).reshape(1, 1, 2, 2), requires_grad=True)
    u = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 1, 2, 2)
    run = {node.name: (node, inputs, output, grad) for node, inputs, output, grad, _, _ in
           steps(lambda: ops.conv2d(x, w), [u])}
    found = only_step(lambda: ops.conv2d(x, w), u)
    assert set(run) == {"conv2d"} and set(found) == {0, 1}
    middle = worked(*found[0], index=(0, 0, 1, 1))
    assert middle.terms == ["1 · 0.5", "2 · 2", "3 · (-1)", "4 · 1"] and middle.value == 5.5 == middle.engine
    assert middle.expression == "Σ over k, p, q of g[0, k, p, q] · W[k, 0, r, s] where p + r = 1 and q + s = 1"
    assert worked(*found[0], index=(0, 0, 0, 0)).terms == ["1 · 1"]
    weight = worked(*found[1], index=(0, 0, 0, 1))
    assert weight.terms == ["1 · 2", "2 · 3", "3 · 5", "4 · 6"] and weight.value == 47.0 == weight.engine
    assert weight.expression == "Σ over n, p, q of g[n, 0, p, q] · x[n, 0, p, q + 1]"


def test_stride_padding_dilation_and_groups_stand_in_the_letters():
    rng = np.random.default_rng(0)
    x, w = (tr.tensor(rng.standard_normal(s), requires_grad=True) for s in ((2, 4, 7, 7), (6, 2, 3, 3)))
    y = ops.conv2d(x, w, None, 2, 1, 2, 2)
    found = only_step(lambda: ops.conv2d(x, w, None, 2, 1, 2, 2), rng.standard_normal(y.shape))
    pixel, weight = worked(*found[0], index=(1, 3, 4, 2)), worked(*found[1], index=(5, 1, 0, 2))
    assert pixel.expression.endswith("g[1, k, p, q] · W[k, 1, r, s] where 2p + 2r - 1 = 4 and 2q + 2s - 1 = 2")
    assert pixel.terms == [] and pixel.value == 0.0  # an even sum is never odd: no window saw row 4
    assert weight.expression == "Σ over n, p, q of g[n, 5, p, q] · x[n, 3, 2p - 1, 2q + 3]"
    node = found[0][0]
    assert with_shapes(node, [x.shape, w.shape], y.shape)[0] == (
        "dx (2, 4, 7, 7) = conv2d_input_grad(g (2, 6, 3, 3), W (6, 2, 3, 3)); stride 2, padding 1, dilation 2, "
        "groups 2")


def test_batch_norm_has_three_routes_that_cancel_on_a_straight_line():
    """x = -1.5, -0.5, 0.5, 1.5 has mean 0 and variance 1.25. With g = xhat, eps 0: direct xhat, mean 0, variance -xhat,
    so dx is 0 everywhere, as moving along the line changes only the scale, which batch norm takes out."""
    x = leaf([-1.5], [-0.5], [0.5], [1.5])
    w, b = leaf(2.0), leaf(0.0)
    xhat = np.array([[-1.5], [-0.5], [0.5], [1.5]]) / math.sqrt(1.25)
    found = only_step(lambda: ops.batch_norm(x, None, None, w, b, True, eps=0.0), xhat)
    node, slot, inputs, output, grad, contribution = found[0]
    three = worked(node, slot, inputs, output, grad, contribution, index=(3, 0))
    direct, mean, variance = map(evaluated, three.terms)
    assert direct == pytest.approx(2 * 1.5 / 1.25, rel=1e-3) and variance == pytest.approx(-2 * 1.5 / 1.25, rel=1e-3)
    assert abs(mean) < 1e-12 and abs(three.value) < 1e-12
    assert check_rule(node, slot, inputs, grad, contribution, (3, 0)).ok
    assert not check_rule(node, slot, inputs, grad, contribution + 0.01, (3, 0)).ok


def test_batch_norm_in_eval_mode_has_one_route():
    x, w, b = leaf([1.0], [2.0]), leaf(3.0), leaf(0.0)
    mean, var = np.array([1.0]), np.array([4.0])
    found = only_step(lambda: ops.batch_norm(x, mean, var, w, b, False, eps=0.0), [[1.0], [0.5]])
    assert worked(*found[0], index=(1, 0)).terms == ["3 · 0.5 · 0.5"]
    assert with_shapes(found[0][0], [(2, 1), (1,), (1,), None], (2, 1))[0] == (
        "dx (2, 1) = weight (1,) · istd · g' (2, 1)")


def test_cross_entropy_by_hand():
    """Two equal scores: softmax is one half each."""
    x = leaf([3.0, 3.0])
    labels = np.array([1])
    found = only_step(lambda: ops.cross_entropy(x, labels, reduction="none"), [2.0])
    node, slot, inputs, output, grad, contribution = found[0]
    assert worked(*found[0], index=(0, 1)).terms == ["2 · (0.5 - 1)"]
    assert worked(*found[0], index=(0, 0)).expression == "g[0] · (softmax(x)[0, 0] - [0 = label 1])"
    assert contribution.tolist() == [[1.0, -1.0]]


def test_slices_stand_in_the_rule_of_ops_that_cut_and_join():
    """As in a shortcut of option A: every second pixel, then channels of zeros around."""
    x, z = (tr.tensor(np.ones(s), requires_grad=True) for s in ((2, 3, 4, 4), (2, 5, 2, 2)))

    def run():
        return ops.concat([ops.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)), z], 1)

    lines = {node.name: with_shapes(node, [a.shape for a in inputs], grad.shape)
             for node, inputs, _, grad, *_ in steps(run, [np.ones((2, 11, 2, 2))])}
    assert lines == {
        "concat": ["dx0 (2, 6, 2, 2) = g (2, 11, 2, 2)[:, 0:6]", "dx1 (2, 5, 2, 2) = g (2, 11, 2, 2)[:, 6:11]"],
        "pad": ["dx (2, 3, 2, 2) = g (2, 6, 2, 2)[:, 1:4, :, :]"],
        "get_item": ["dx (2, 3, 4, 4) = zeros, with g (2, 3, 2, 2) added at [:, :, ::2, ::2]"],
    }


def test_a_matrix_product_by_hand():
    a, b = leaf([1.0, 2.0], [3.0, 4.0]), leaf([5.0, -1.0, 0.5], [0.0, 2.0, 1.0])
    found = only_step(lambda: ops.matmul(a, b), [[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
    left, right = worked(*found[0], index=(0, 0)), worked(*found[1], index=(1, 2))
    assert left.expression == "Σ over j of g[0, j] · b[0, j]" and left.value == 6.0
    assert left.terms == ["1 · 5", "0 · (-1)", "2 · 0.5"]
    assert right.expression == "Σ over i of g[i, 2] · a[i, 1]" and right.terms == ["2 · 2", "-1 · 4"]
    assert with_shapes(found[0][0], [(2, 2), (2, 3)], (2, 3)) == ["da (2, 2) = g (2, 3) bᵀ (3, 2)",
                                                                 "db (2, 3) = aᵀ (2, 2) g (2, 3)"]


def test_max_pooling_collects_twice_where_two_windows_chose_one_pixel():
    x = tr.tensor(np.array([0.0, 5.0, 1.0]).reshape(1, 1, 1, 3), requires_grad=True)
    found = only_step(lambda: ops.max_pool2d(x, (1, 2), 1), np.array([2.0, 3.0]).reshape(1, 1, 1, 2))
    assert worked(*found[0]).terms == ["2", "3"] and worked(*found[0]).expression == "g[0, 0, 0, 0] + g[0, 0, 0, 1]"
    assert worked(*found[0], index=(0, 0, 0, 2)).terms == []


def test_an_element_that_went_nowhere_gets_nothing():
    x = leaf(1.0, 2.0, 3.0)
    nothing = worked(*only_step(lambda: x[:2], [4.0, 5.0])[0], index=(2,))
    assert nothing.expression == "0, as it went nowhere" and nothing.value == 0.0 == nothing.engine


def test_of_many_terms_the_largest_are_listed_in_their_order():
    x, bias = tr.tensor(np.zeros((20, 1)), requires_grad=True), leaf(1.0)
    g = np.arange(1.0, 21.0)[::-1].reshape(20, 1)
    found = worked(*only_step(lambda: x + bias, g)[1])
    assert found.terms == [str(n) for n in range(20, 11, -1)] and found.more == 11 and found.value == 210.0


# ---- in place, kinks, other people's ops, mistakes -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["add_", "sub_", "mul_", "div_"])
def test_in_place_ops_share_the_rule(name):
    rng = np.random.default_rng(1)
    old, b = rng.uniform(0.5, 2.0, (2, 3)), tr.tensor(rng.uniform(0.5, 2.0, 3), requires_grad=True)
    x = tr.tensor(old, requires_grad=True)
    for node, _, output, grad, slot, contribution in steps(lambda: getattr(x * 1.0, name)(b), [np.array(old) - 1.0]):
        if node.name == name:
            before = [np.array(old), b.data]
            found = worked(node, slot, before, output, grad, contribution)
            assert found.value == pytest.approx(found.engine, rel=1e-12)
            assert check_rule(node, slot, before, grad, contribution).ok
            assert before[0].tolist() == old.tolist()  # the check wrote into a copy
            assert rule_of(node) == RULES[name.rstrip("_")]


def test_relu_in_place_needs_only_its_output():
    x = leaf(-1.0, 2.0)
    for node, _, output, grad, slot, contribution in steps(lambda: ops.relu_(x * 1.0), [np.array([3.0, 4.0])]):
        if node.name == "relu_":
            before = [np.array([-1.0, 2.0])]
            assert worked(node, slot, before, output, grad, contribution, (0,)).terms == ["3 · 0"]
            assert worked(node, slot, before, output, grad, contribution, (1,)).terms == ["4 · 1"]
            assert check_rule(node, slot, before, grad, contribution, (0,)).ok


@pytest.mark.parametrize("near", [1e-5, -1e-5, 1e-7, -1e-7])
def test_a_kink_inside_the_step_is_stepped_around(near):
    x = leaf(near)
    node, slot, inputs, _, grad, contribution = only_step(lambda: ops.relu(x), [2.0])[0]
    found = check_rule(node, slot, inputs, grad, contribution)
    assert found.ok and found.note == "" and found.numeric == pytest.approx(2.0 * (near > 0), abs=1e-6)
    assert found.step < abs(near)


@pytest.mark.parametrize("run, upstream, rule", [
    (ops.relu, 2.0, 0.0), (ops.abs, 2.0, 0.0), (lambda x: ops.maximum(x, 0.0), 2.0, 1.0)])
def test_on_a_kink_the_note_gives_both_slopes_and_any_rule_between_is_right(run, upstream, rule):
    x = leaf(0.0)
    node, slot, inputs, _, grad, contribution = only_step(lambda: run(x), [upstream])[0]
    assert contribution.tolist() == [rule]
    found = check_rule(node, slot, inputs, grad, contribution)
    assert found.ok and "sits on a kink" in found.note and "2 to its right" in found.note
    assert not check_rule(node, slot, inputs, grad, contribution + 3.0).ok


def test_dropout_keeps_its_mask_and_the_random_state_stays():
    tr.manual_seed(4)
    x = tr.tensor(np.ones((4, 5)), requires_grad=True)
    found = only_step(lambda: ops.dropout(x, 0.5), np.ones((4, 5)))
    node, slot, inputs, output, grad, contribution = found[0]
    state = tr.random.get_state()
    for index in np.ndindex(4, 5):
        check = check_rule(node, slot, inputs, grad, contribution, index)
        assert check.ok and check.analytic == output[index] and "mask is held" in check.note
        assert worked(*found[0], index=index).terms == [f"1 · {output[index]:.4g}"]
    assert str(tr.random.get_state()) == str(state)


class Cube(Function):
    """y = x**3;  dx = 3 g x**2."""

    def forward(self, x):
        self.save(x)
        return x**3

    def backward(self, grad):
        return ops.mul(grad, ops.mul(3.0, ops.mul(self.saved[0], self.saved[0])))


class Relu(Function):  # the name of one of ours, but not its rule
    def forward(self, x):
        return x * 5.0

    def backward(self, grad):
        return grad


def test_an_op_of_ones_own_speaks_by_its_docstring_and_is_checked():
    x = leaf(2.0, -1.0)
    node, slot, inputs, output, grad, contribution = only_step(lambda: Cube.apply(x), [1.0, 1.0])[0]
    assert rule_of(node).forward == "y = x**3" and rule_of(node).backward == ("dx = 3 g x**2",)
    assert with_shapes(node, [(2,)], (2,)) == ["dx (2,) from g (2,): dx = 3 g x**2"]
    assert worked(node, slot, inputs, output, grad, contribution) is None
    assert check_rule(node, slot, inputs, grad, contribution).ok


def test_an_op_of_ones_own_with_a_wrong_rule_and_a_known_name_is_found_out():
    x = leaf(2.0, -1.0)
    node, slot, inputs, output, grad, contribution = only_step(lambda: Relu.apply(x), [1.0, 1.0])[0]
    assert node.name == "relu" and "not part of tinyres" in rule_of(node).note and rule_of(node) != RULES["relu"]
    assert worked(node, slot, inputs, output, grad, contribution) is None
    check = check_rule(node, slot, inputs, grad, contribution)
    assert not check.ok and check.numeric == pytest.approx(5.0) and check.analytic == 1.0 and check.error > 0.7


def test_what_is_not_finite_is_said():
    x = leaf(0.0)
    with np.errstate(all="ignore"):
        node, slot, inputs, output, grad, contribution = only_step(lambda: ops.log(x), [1.0])[0]
    assert worked(node, slot, inputs, output, grad, contribution) is None
    found = check_rule(node, slot, inputs, grad, contribution)
    assert not found.ok and "not finite" in found.note and math.isfinite(found.numeric)


def test_mistakes_are_named():
    x = leaf(1.0, 2.0)
    node, slot, inputs, output, grad, contribution = only_step(lambda: ops.exp(x), [1.0, 1.0])[0]
    with pytest.raises(ValueError, match="input 0 of exp got no gradient.*choose an input that wants one"):
        check_rule(node, 0, inputs, grad, None)
    for call in (lambda i: check_rule(node, slot, inputs, grad, contribution, i),
                 lambda i: worked(node, slot, inputs, output, grad, contribution, i)):
        with pytest.raises(IndexError, match=r"index \(2,\) is not in a contribution of shape \(2,\): give one number"):
            call((2,))
        with pytest.raises(IndexError, match=r"index \(0, 0\) is not in"):
            call((0, 0))
    with pytest.raises(ValueError, match="shape .0,. has no element"):
        check_rule(node, slot, [np.zeros(0)], np.zeros(0), np.zeros(0))


def test_neither_inputs_nor_gradients_are_changed():
    rng = np.random.default_rng(5)
    x, w = (tr.tensor(rng.standard_normal(s), requires_grad=True) for s in ((2, 3, 5, 5), (4, 3, 3, 3)))
    node, slot, inputs, output, grad, contribution = only_step(
        lambda: ops.conv2d(x, w), rng.standard_normal((2, 4, 3, 3)))[0]
    kept = (*inputs, output, grad, contribution, x.grad.data, w.grad.data)
    before = [a.tobytes() for a in kept]
    check_rule(node, slot, inputs, grad, contribution)
    worked(node, slot, inputs, output, grad, contribution)
    assert [a.tobytes() for a in kept] == before
