"""The checks of lesson 2: the transpose of broadcasting, and a gradient check that no wrong rule passes by luck.

The oracle for `unbroadcast` follows each element to the one that it is a copy of. A gradient check is checked with six
rules, three of them wrong on purpose; what it evaluates is written down, and tells why it was deceived.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyres.teach import seed
from tinyres.teach.checks.planted_rules import Rule, rules
from tinyres.teach.misconception import Misconception

Array = Any  # a NumPy array
Check = Callable[[Callable, Callable, Array], Any]

# --- unbroadcast ------------------------------------------------------------------------------------------------------

RANDOM_SHAPES = 200
SQUARE = np.array([[1.0, 2, 4], [8, 16, 32], [64, 128, 256]])  # powers of two: a sum tells what went into it


def unbroadcast(student: Callable[[Array, tuple[int, ...]], Array]) -> None:
    """Check unbroadcast(g, shape). Raises Misconception for what is wrong with it."""
    _leading(student)
    _stretched(student)
    small: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((2, 3), ()), ((2, 3), (1, 1)), ((4, 2, 3), (2, 1)),
                                                            ((3,), (3,))]
    for to, shape in small:
        _compare(student, np.arange(1.0, 1 + np.prod(to)).reshape(to), shape)
    _manners(student)
    rng = np.random.default_rng(seed())
    worst = 0.0
    for _ in range(RANDOM_SHAPES):
        shape, to = _random_shapes(rng)
        x, g = rng.standard_normal(shape), rng.standard_normal(to)
        dx = _compare(student, g, shape)
        worst = max(worst, abs(float(np.sum(np.broadcast_to(x, to) * g) - np.sum(x * dx))))
    print(f"unbroadcast: right on {RANDOM_SHAPES} pairs of shapes; adjoint to within {worst:.1e}")


def _leading(student: Callable) -> None:
    """A row that was copied to three rows."""
    got = _answer(student, SQUARE, (3,))
    said = f"g = {_show(SQUARE)} and shape (3,): expected {_show(SQUARE.sum(0))}, got {_show(got)} of shape {got.shape}"
    if got.shape in ((3, 3), (1, 3)):
        raise Misconception("added-axes-kept", f"{said}. NumPy put an axis in front of (3,) and copied the row along "
                            "it. The gradient of three numbers has three numbers: look at the axes that g has and "
                            "`shape` has not.")
    if got.shape == ():
        raise Misconception("sums-everything", f"{said}. All of g was summed, although each of the three numbers was "
                            "copied to one column only. Look at which axis the copies lie along.")
    if got.shape == (3,):
        if np.allclose(got, SQUARE.sum(1)):
            raise Misconception("aligned-left", f"{said}: the sums of the rows. Shapes are aligned at their last axis, "
                                "so (3,) is a row, and its copies lie along axis 0. With square arrays the result has "
                                "the right shape all the same.")
        if np.allclose(got * 3, SQUARE.sum(0)):
            raise Misconception("mean-for-sum", f"{said}: a third of it. Each number was used three times, and its "
                                "gradient is the sum over its uses (lesson 1), not their mean: moving it moves all "
                                "three copies.")
        if any(np.allclose(got, row) for row in SQUARE):
            raise Misconception("one-copy", f"{said}: one row of g. That is the gradient of one of the three copies; "
                                "the other two brought theirs, too.")
    _compare(student, SQUARE, (3,))


def _stretched(student: Callable) -> None:
    """A column that was copied to three columns."""
    g = SQUARE[:2]
    got = _answer(student, g, (2, 1))
    said = f"g = {_show(g)} and shape (2, 1): expected [[7], [56]], got {_show(got)} of shape {got.shape}"
    if got.shape == (2, 3):
        raise Misconception("stretched-axes-kept", f"{said}. An axis of length 1 is stretched, which is also a copy. "
                            "Look at the axes that both have, but with different lengths.")
    if got.shape == (2,):
        raise Misconception("dropped-axis", f"{said}. The sum is right, and the axis is gone: (2,) is not (2, 1). "
                            "Added to a (2, 1) array it would be taken for a row. Keep an axis of length 1.")
    _compare(student, g, (2, 1))


def _manners(student: Callable) -> None:
    """It keeps the dtype."""
    for shape in ((3,), (2, 3)):
        got = _answer(student, SQUARE[:2].astype(np.float32), shape)
        if got.dtype != np.float32:
            raise Misconception("changes-dtype", f"a float32 gradient came back as {got.dtype}, for shape {shape}. A "
                                "gradient has the dtype of its tensor.")


def _compare(student: Callable, g: Array, shape: tuple[int, ...]) -> Array:
    """The student's answer, if it is right."""
    got, want = _answer(student, g, shape), _collected(g, shape)
    where = f"g of shape {g.shape}, shape {shape}"
    if got.shape != shape and got.size != want.size:
        raise Misconception("some-axes-only", f"{where}: got an array of shape {got.shape}. More than one axis can be "
                            "copied along: those that were added in front, and each of length 1 that was stretched.")
    if got.shape != shape:
        raise Misconception("dropped-axis", f"{where}: got an array of shape {got.shape}. The result has exactly the "
                            "shape that was asked for, with its axes of length 1.")
    if not np.allclose(got, want, rtol=1e-10, atol=1e-12):
        raise Misconception("wrong-numbers", f"{where}: expected {_show(want)}, got {_show(got)}. Follow one element "
                            "of the smaller array: to which elements of g was it copied?")
    return got


def _answer(student: Callable, g: Array, shape: tuple[int, ...]) -> Array:
    mine = g.copy()
    got = student(mine, shape)
    if got is None:
        raise Misconception("returns-nothing", "unbroadcast returned None: is there a `return`?")
    if not np.array_equal(mine, g):
        raise Misconception("changes-g", f"after unbroadcast(g, {shape}) g is {_show(mine)}, and was {_show(g)}. The "
                            "same array may be the gradient of another operand (lesson 1), which now gets a wrong one. "
                            "Make a new array.")
    return np.asarray(got)


def _collected(g: Array, shape: tuple[int, ...]) -> Array:
    """The oracle: number the elements of `shape`, let NumPy copy the numbers, and count g under the number it met."""
    size = int(np.prod(shape))
    met = np.broadcast_to(np.arange(size).reshape(shape), g.shape)
    return np.bincount(met.ravel(), g.ravel(), minlength=size).reshape(shape)


def _random_shapes(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape, and one that it broadcasts to: up to two axes in front, some of length 1 stretched, some not."""
    to = tuple(int(n) for n in rng.integers(1, 5, size=rng.integers(0, 5)))
    kept = to[int(rng.integers(0, min(2, len(to)) + 1)):]
    return tuple(n if rng.random() < 0.5 else 1 for n in kept), to


def _show(a: Array) -> str:
    text = np.array2string(np.asarray(a), separator=", ", precision=6, threshold=20)
    return " ".join(text.split())


# --- check ------------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A rule under the student's check, and what the check evaluated."""

    rule: Rule
    points: list[Array] = field(default_factory=list)
    upstream: list[Array] = field(default_factory=list)
    verdict: Any = None

    def forward(self, x: Array) -> Array:
        self.points.append(np.array(x))
        return self.rule.forward(x)

    def backward(self, g: Array, x: Array) -> Array:
        self.upstream.append(np.array(g))
        return self.rule.backward(g, x)

    @property
    def deceived(self) -> bool:
        return bool(self.verdict) != self.rule.right

    def steps(self) -> list[Array]:
        """How far each point lay from x, those at x left out."""
        moved = [p.astype(np.float64) - self.rule.x.astype(np.float64) for p in self.points
                 if p.shape == self.rule.x.shape]
        return [d for d in moved if np.any(d)]


def check(student: Check) -> None:
    """Check check(forward, backward, x), a gradient check, with three wrong rules and three right ones. Raises
    Misconception for what deceives it."""
    rng = np.random.default_rng([seed(), 2])  # not the learner's: with g = x the gradient of batch norm is 0
    watched = [_run(student, rule) for rule in rules(rng)]
    if any(w.deceived for w in watched):
        raise _why(student, watched)
    calls = sum(len(w.points) for w in watched)
    print(f"check: three wrong rules caught, three right ones passed, in {calls:,} calls of forward")


def _run(student: Check, rule: Rule) -> Watched:
    watched = Watched(rule)
    with np.errstate(all="ignore"):
        watched.verdict = student(watched.forward, watched.backward, rule.x.copy())
    return watched


def _why(student: Check, watched: list[Watched]) -> Misconception:
    """What the evaluations show about a check that was deceived."""
    norm_wrong, bias, tanh, norm, relu, softmax = watched
    believed = [w for w in watched if w.deceived and not w.rule.right]
    refused = [w for w in watched if w.deceived and w.rule.right]
    said = "; ".join(f"{verb} {w.rule.name}" for verb, group in (("it passes", believed), ("it rejects", refused))
                     for w in group)
    if any(w.verdict is None for w in watched):
        return Misconception("returns-nothing", "check returned None: it is to return True or False on every way out.")
    if len(believed) == 3 and not refused:
        return Misconception("accepts-everything", f"{said}. It never says no: find out what it compares.")
    if norm_wrong in believed and all(np.ptp(g) == 0 for g in norm_wrong.upstream):
        return Misconception("upstream-of-ones", f"{said}. The upstream gradient that it sent was the same number "
                             "everywhere. A normalised channel always sums to 0, so with such a g the true gradient is "
                             "0, and so is that of a rule which lacks a route. Draw g at random.")
    if relu in refused and all(p.dtype == np.float32 for p in relu.points):
        return Misconception("float32", f"{said}. It evaluated forward in float32, as x came. A difference of two "
                             "float32 numbers that agree in five of their seven digits has two digits left. Convert "
                             "first.")
    if any(np.any(_untouched(w)) for w in believed if w.steps()):
        w = next(w for w in believed if w.steps() and np.any(_untouched(w)))
        return Misconception("some-elements-only", f"{said}. Of the {w.rule.x.size} elements of x, "
                             f"{int(_untouched(w).sum())} were never moved, so nothing is known about their gradient.")
    if norm_wrong in believed and all(np.ptp(d) < 1e-3 * np.max(np.abs(d)) for d in norm_wrong.steps()):
        return Misconception("one-direction", f"{said}. It moved all elements by the same step. Along that one "
                             "direction batch norm does not change at all, and any rule that says 0 there passes.")
    step = _step_problem(norm, said) if norm in refused else None
    if step is not None:
        return step
    if len(refused) == 3:
        return Misconception("refuses-everything", f"{said}. It never says yes: print the two gradients side by side.")
    if bias in believed:
        return Misconception("shape-not-compared", f"{said}. The numbers agree, the shapes do not: (1, 3) against (3,) "
                             "is broadcast by NumPy, in a comparison, too. An optimizer would turn the bias into a "
                             "(1, 3) array. Compare the shapes first.")
    if softmax in refused:
        return Misconception("no-floor", f"{said}. There the true gradient is 0, and what it measures is rounding, "
                             "about 1e-11. Divided by something as small, that is an error of 1. The comparison needs "
                             "a floor: what rounding may do to the difference.")
    if tanh in believed:
        return _too_tolerant(student, tanh, said)
    return Misconception("deceived", f"{said}. Print the measured and the claimed gradient of this rule.")


def _untouched(w: Watched) -> Array:
    return ~np.any([d != 0 for d in w.steps()], axis=0)


def _step_problem(norm: Watched, said: str) -> Misconception | None:
    """Why the difference of a right, smooth function is off."""
    steps = norm.steps()
    if not steps:
        return Misconception("refuses-everything", f"{said}. It never evaluated forward anywhere but at x itself.")
    sizes = [float(np.max(np.abs(d))) for d in steps]
    moved = [int(np.sum(np.abs(d) > 1e-3 * size)) for d, size in zip(steps, sizes, strict=True)]
    if moved[0] == 1 and moved[-1] > 1:
        return Misconception("never-put-back", f"{said}. The first point that it evaluated differs from x in one "
                             f"element, the last in {moved[-1]}: elements that were moved stay moved. Move a copy, or "
                             "put each back.")
    if max(sizes) > 1e-3:
        return Misconception("step-too-large", f"{said}. It moves x by {max(sizes):.0e}. The error of a central "
                             "difference grows with the square of the step, here it is in the third digit or worse. "
                             "Look at the right arm of the V.")
    if max(sizes) < 1e-8:
        return Misconception("step-too-small", f"{said}. It moves x by {max(sizes):.0e}. The two values then agree in "
                             "nearly all of their 16 digits, and the difference is made of the rest. Look at the left "
                             "arm of the V.")
    if not any(np.allclose(a, -b, rtol=1e-3, atol=1e-12) for a in steps for b in steps):
        return Misconception("one-sided", f"{said}. It moves x to one side only. The error of such a difference is in "
                             f"proportion to the step, about {max(sizes):.0e} here, and the tolerance is smaller. "
                             "Evaluate both sides.")
    return None


def _too_tolerant(student: Check, tanh: Watched, said: str) -> Misconception:
    """It passed the small tanh: does it pass it as well when all numbers are 10,000 times as large?"""
    rule = tanh.rule
    large = Rule(rule.name, False, lambda x: 1e4 * rule.forward(x), lambda g, x: 1e4 * rule.backward(g, x), rule.x)
    if _run(student, large).verdict:
        return Misconception("loose-tolerance", f"{said}. Half a percent is 5e-3; a central difference in float64 is "
                             "right to about 1e-9. A tolerance in between tells the two apart: what is yours?")
    return Misconception("absolute-tolerance", f"{said}. Its gradients are about 1e-4, so half a percent of them is "
                         "5e-7. The same rule with all numbers 10,000 times as large is rejected: the tolerance is "
                         "absolute. Relate the error to the size of the gradient.")
