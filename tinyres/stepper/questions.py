"""Predict first: a question for a step of the backward pass, to be answered before the step is shown.

Each is about what the rules alone tell, or about sizes that differ by a clear margin: what comes to a fork and which
way brings more, what a join hands on, shapes, signs, how the norm changes, whether memory is freed. A step to which no
clear question fits has none. The kinds take turns, the one asked least comes next, so the same trace always gives the
same questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tinyres.stepper import words
from tinyres.stepper.schema import Fork, Summary, Trace
from tinyres.stepper.short import number, percent, plain, shape, size

MARGIN = 1.25  # a norm is called larger than another from this factor on
SMALLER, SIMILAR, LARGER = "less than half as large", "between half and twice as large", "more than twice as large"
ITSELF, NEW = "the very array that arrived", "a new array"
POSITIVE, NEGATIVE, MIXED = "none is negative", "none is positive", "both signs"
FREED, KEPT = "yes, memory is freed", "no, nothing is freed"
AGREE, AGAINST = "with the sum", "against the sum"
LONGER, SHORTER = "larger than each of the two", "smaller than at least one of them"


@dataclass(frozen=True)
class Question:
    """ask: the question; choices: two to four answers; answer: the index of the right one; because: why, with the
    numbers of the trace; kind: what it is about, as "shape"."""

    ask: str
    choices: list[str]
    answer: int
    because: str
    kind: str = ""


@dataclass(frozen=True)
class _Brought:
    """What a step brings to one of its inputs."""

    name: str
    contribution: Summary
    passed_on: bool


@dataclass(frozen=True)
class _Step:
    """A step of either view, as far as questions go. id: of the node or group; name: in a sentence; brought: to each
    input that wants a gradient; freed: bytes."""

    id: int
    name: str
    first: bool
    gradient: Summary
    brought: list[_Brought]
    fork: Fork | None
    is_join: bool
    freed: int


def questions(trace: Trace, view: str = "blocks") -> dict[int, Question]:
    """A question for each step of the backward pass that has a clear one, by the id of its group ("blocks") or node
    ("ops"). Raises ValueError for another view."""
    asked: Counter[str] = Counter()
    found: dict[int, Question] = {}
    for id in words.steps(trace, view):
        step = _step(trace, view, id)
        if step is None:
            continue
        possible = _at_fork(trace, view, step) if step.fork else []
        possible = possible or [q for make in _KINDS if (q := make(step)) is not None]
        if possible:
            found[id] = min(possible, key=lambda question: asked[question.kind])
            asked[found[id].kind] += 1
    return found


def _step(trace: Trace, view: str, id: int) -> _Step | None:
    """None where the gradient has numbers that are not finite."""
    node = words.node_of(trace, view, id)
    if node.gradient is None or node.gradient.norm is None:
        return None
    near = words.block_of(trace, view, id)
    brought = []
    for entry in trace.groups[id].inputs if view == "blocks" else node.inputs:
        if entry.source is not None and entry.contribution is not None and entry.contribution.norm is not None:
            group = getattr(entry, "group", None)
            name = words.label(trace, "ops", entry.source, near) if group is None else \
                words.label(trace, "blocks", group, near)
            name = f"its {entry.route} input, {name}" if entry.route else f"its input, {name}"
            brought.append(_Brought(plain(name), entry.contribution, entry.passed_on))
    group_or_node = trace.groups[id] if view == "blocks" else node
    is_join = node.join is not None or getattr(group_or_node, "kind", "") == "join"
    return _Step(id, words.label(trace, view, id), words.step_of(trace, view, id) == 1, node.gradient, brought,
                 group_or_node.fork, is_join, words.freed_now(trace, view, id))


# --- at a fork -------------------------------------------------------------------------------------------------------


def _at_fork(trace: Trace, view: str, step: _Step) -> list[Question]:
    """Which contribution is larger, whether they add up or cancel, whether the branch works against the sum."""
    assert step.fork is not None
    arrivals, found = step.fork.arrivals, []
    if len(arrivals) != 2 or any(a.norm is None or a.sum.norm is None for a in arrivals):
        return []
    names = [f"the {a.route}, from {words.label(trace, view, a.consumer)}" if a.route else
             words.label(trace, view, a.consumer) for a in arrivals]
    if names[0] == names[1]:
        return []
    (a, b), whole = [arrival.norm or 0.0 for arrival in arrivals], arrivals[-1].sum.norm or 0.0
    if max(a, b) >= MARGIN * min(a, b) and max(a, b) > 0:
        found.append(Question(f"Two contributions come to {step.name}. Which has the larger norm?", names, int(b > a),
                              f"the norms are {number(a)} from {names[0]}, and {number(b)} from {names[1]}.", "larger"))
    if min(a, b) > 0 and abs(whole / max(a, b) - 1) > 0.05:
        found.append(Question(f"Two contributions are added at {step.name}. The norm of their sum is",
                              [LONGER, SHORTER], int(whole < max(a, b)),
                              f"the norms are {number(a)} and {number(b)}, that of the sum is {number(whole)}; the "
                              f"cosine of the angle between the two is {number(arrivals[1].cosine)}.", "sum"))
    branch = next((i for i, arrival in enumerate(arrivals) if arrival.route == "branch"), None)
    share = None if branch is None else arrivals[branch].share
    if share is not None and abs(share) > 0.02:
        found.append(Question(f"Does what the branch brings to {step.name} point with or against the sum?",
                              [AGREE, AGAINST], int(share < 0),
                              f"its share, <branch, sum> / <sum, sum>, is {percent(share)}.", "share"))
    return found


# --- elsewhere -------------------------------------------------------------------------------------------------------


def _beginning(step: _Step) -> Question | None:
    """The gradient of the loss with respect to itself."""
    if not step.first or step.gradient.shape or step.gradient.min != 1.0:
        return None
    return Question(f"The backward pass begins at {step.name}. What is the gradient there?",
                    ["0", "1", "the value of the loss"], 1, "the loss changes as much as the loss itself: dL/dL = 1.",
                    "beginning")


def _handed_on(step: _Step) -> Question | None:
    """At a join, and where an op hands on what it got: is it the same array?"""
    if not step.brought or not (step.is_join or any(b.passed_on for b in step.brought)):
        return None
    same = {b.passed_on for b in step.brought}
    if len(same) == 2:
        what = next(b for b in step.brought if b.passed_on)
        ask = f"A gradient arrives at {step.name}. What does it bring to {what.name}?"
        answer = ITSELF
    else:
        ask = f"A gradient arrives at {step.name}. What does it bring to {step.brought[0].name}?"
        answer = ITSELF if same == {True} else NEW
    because = ("the rule multiplies it by 1: nothing is computed, nothing is copied." if answer == ITSELF else
               "the rule computes with it, or cuts a part out of it.")
    return Question(ask, [ITSELF, NEW], [ITSELF, NEW].index(answer), because, "handed on")


def _shape(step: _Step) -> Question | None:
    """The shape of what comes to an input, where it is another than the gradient's."""
    for b in step.brought:
        right = tuple(b.contribution.shape)
        others = {tuple(step.gradient.shape), right[::-1], *(tuple(o.contribution.shape) for o in step.brought)}
        if right != tuple(step.gradient.shape):
            wrong = sorted(others - {right}, key=lambda s: (s != tuple(step.gradient.shape), s))[:2]
            choices = sorted([right, *wrong])
            return Question(f"A gradient of shape {shape(step.gradient.shape)} arrives at {step.name}. Which shape has "
                            f"what it brings to {b.name}?", [shape(s) for s in choices], choices.index(right),
                            f"a gradient has the shape of what it is the gradient of, and that is {shape(right)}.",
                            "shape")
    return None


def _ratio(step: _Step) -> Question | None:
    """How the norm changes from the gradient that arrives to the first contribution."""
    if not step.brought or not step.gradient.norm or step.brought[0].passed_on:
        return None
    b = step.brought[0]
    ratio = (b.contribution.norm or 0.0) / step.gradient.norm
    if any(bound / 1.1 < ratio < bound * 1.1 for bound in (0.5, 2)):
        return None
    return Question(f"A gradient of norm {number(step.gradient.norm)} arrives at {step.name}. The norm of what it "
                    f"brings to {b.name} is", [SMALLER, SIMILAR, LARGER], (ratio > 0.5) + (ratio > 2),
                    f"it is {number(b.contribution.norm)}, {number(ratio)} times as large.", "norm")


def _sign(step: _Step) -> Question | None:
    """The signs of a contribution, where zeros and tiny numbers leave no doubt."""
    for b in step.brought:
        low, high = b.contribution.min, b.contribution.max
        if low is None or high is None or low == high == 0:
            continue
        if low < 0 < high and min(-low, high) < 1e-3 * max(-low, high):
            continue
        answer = MIXED if low < 0 < high else POSITIVE if high > 0 else NEGATIVE
        choices = [POSITIVE, NEGATIVE, MIXED]
        return Question(f"Which signs have the elements of what {step.name} brings to {b.name}?", choices,
                        choices.index(answer), f"they lie between {number(low)} and {number(high)}.", "sign")
    return None


def _freed(step: _Step) -> Question | None:
    """Whether memory goes with the step."""
    if not step.brought:
        return None
    because = (f"{size(step.freed)} that were kept for its rule, and that no earlier op needs." if step.freed else
               "its rule kept no array of its own: there was none to keep, or an earlier op still needs it, or it is a "
               "parameter or an input.")
    return Question(f"When {step.name} is done, is memory freed that the forward pass kept?", [FREED, KEPT],
                    int(not step.freed), because, "freed")


_KINDS: tuple[Callable[[_Step], Question | None], ...] = (_beginning, _handed_on, _shape, _ratio, _sign, _freed)
