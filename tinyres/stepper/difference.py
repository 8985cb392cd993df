"""An op's forward pass run once more, alone and in float64; and with it the finite difference that its rule must equal.

A central difference of <g, f(x)> in one element of x. Two steps are compared, one a quarter of the other: where the
difference has settled, and the slopes to the left and to the right come together as the step shrinks, the function is
smooth there. Where a kink (a ReLU's 0, two equal maxima) lies inside the step, the step is made smaller until it lies
outside. Where the point sits on the kink itself, no step helps: there the left and the right slope stay apart, any rule
between them is right, and the note says so.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyres import kernels, random
from tinyres.ops.create import AsType, To, move
from tinyres.ops.fused import Fused
from tinyres.state import setting
from tinyres.stepper.schema import Check
from tinyres.tensor import Function

STEP, SHRINK, TRIES = 1e-4, 0.25, 9  # relative to the element, or to 1 where that is less; the ninth is 1.5e-9 of it
SETTLED = 1e-6                       # two differences that agree so well are believed
TOLERANCE = {8: 1e-6, 4: 1e-4}       # of an analytic value in float64, in float32
ROUNDING = 32                        # how many roundings of the largest term a sum of many may show
NOT_FINITE = "not finite: there is no difference to take here"
EPS = float(np.finfo(np.float64).eps)

NAMES = {  # of the inputs, where forward()'s own would be mistaken for something else in a rule
    "conv2d": ("x", "W"), "conv_bias": ("x", "W", "bias", "residual"), "conv2d_input_grad": ("x", "W"),
    "conv2d_weight_grad": ("x", "u"), "cross_entropy": ("x",), "put": ("x",), "scatter": ("x",), "scatter_hw": ("x",),
    "avg_pool2d_input_grad": ("x",),
}


def input_names(node: Function, count: int) -> tuple[str, ...]:
    """What the rules call the inputs: ("a", "b"), ("x", "W"), for concat ("x0", "x1", ...); of an op that is not
    tinyres' own the arguments of its forward(). count: how many inputs there are."""
    own = type(node).__module__.startswith("tinyres.")
    names: tuple[str, ...] = NAMES.get(node.name, ()) if own else ()
    if not names:
        names = _arguments(type(node))  # type: ignore[arg-type]
    return names if len(names) == count else tuple(f"x{i}" for i in range(count))


@functools.cache
def _arguments(op: type[Function]) -> tuple[str, ...]:
    arguments = inspect.signature(op.forward).parameters.values()
    return tuple(a.name for a in arguments if a.kind is a.POSITIONAL_OR_KEYWORD)[1:]


def rerun(node: Function, inputs: Sequence[Any], **changed: Any) -> np.ndarray:
    """The op's output for other inputs, float64 arrays on the host, by reference kernels and unseen by the engine. A
    fused op runs as its spec, so that a batch norm's statistics are those of these inputs."""
    op, params = type(node), {name: _host(value) for name, value in node.params.items()} | changed
    if op in (AsType, To):
        return inputs[0]
    fresh, run = op(), getattr(op, "spec", None)
    fresh.params = params
    with setting(grad_enabled=False, debug=None, choices=None), kernels.use_kernels("reference"):
        if isinstance(node, Fused) and run is not None:
            return np.asarray(run(*inputs, **params))
        own = [np.array(inputs[0]), *inputs[1:]] if op.inplace else inputs  # it writes into the first
        return np.asarray(fresh.forward(*own, **params))


def floats(x: Any) -> Any:
    """An input in float64 on the host; numbers, None, integers and booleans as they are."""
    x = _host(x)
    return x.astype(np.float64) if getattr(getattr(x, "dtype", None), "kind", "") == "f" else x


def _host(x: Any) -> Any:
    """Arrays, and those in a tuple, brought from a GPU."""
    if isinstance(x, tuple):
        return tuple(_host(v) for v in x)
    return move(x, "cpu") if hasattr(x, "strides") and not isinstance(x, np.generic) else x


def place_of(op: str, contribution: Any, index: Sequence[int] | None) -> tuple[int, ...]:
    """The element to look at: `index`, or that of the largest magnitude, of equals the first. Raises ValueError for an
    array without elements, IndexError for an index that is not in it."""
    shape = tuple(contribution.shape)
    if not contribution.size:
        raise ValueError(f"{op}: a contribution of shape {shape} has no element to look at; record a batch that is not "
                         "empty")
    if index is None:
        return tuple(int(i) for i in np.unravel_index(np.argmax(np.abs(contribution)), shape))
    if len(index) != len(shape) or not all(-n <= i < n for i, n in zip(index, shape, strict=True)):
        raise IndexError(f"{op}: index {tuple(index)} is not in a contribution of shape {shape}: give one number a "
                         "dimension, each less than its length")
    return tuple(int(i) % n for i, n in zip(index, shape, strict=True))


def check_rule(node: Function, slot: int, inputs: Sequence[Any], grad: Any, contribution: Any,
               index: Sequence[int] | None = None) -> Check:
    """A finite difference of this op alone, <g, f(inputs)> as one element of input `slot` moves, beside that element of
    the contribution.

    inputs: of the op, as they were before it ran; grad: what arrived, of the output's shape; contribution: what the
    rule gave for input `slot`; index: by default that of its largest element. The difference is computed in float64,
    whatever the dtype of the pass, and a dropout keeps its mask. Raises ValueError where input `slot` got no gradient
    or an empty one, IndexError for an index outside. Griewank and Walther 2008, "Evaluating derivatives", section 1.
    """
    if contribution is None:
        raise ValueError(f"check_rule: input {slot} of {node.name} got no gradient, so there is nothing to check; "
                         "choose an input that wants one")
    analytic_array = _host(contribution)
    index = place_of("check_rule", analytic_array, index)
    analytic, g = float(analytic_array[index]), floats(grad)
    arrays = [floats(x) for x in inputs]
    element = f"d{input_names(node, len(arrays))[slot]}[{', '.join(map(str, index))}]" if index else \
        f"d{input_names(node, len(arrays))[slot]}"
    random_state = random.get_state()
    try:
        with np.errstate(all="ignore"):  # log and sqrt may leave their domain: that is noticed below
            probe = _Probe(node, slot, arrays, g, index)
            step, numeric, note = probe.settle()
    finally:
        random.set_state(random_state)
    if not (np.isfinite(numeric) and np.isfinite(analytic)):
        step, analytic = (v if np.isfinite(v) else 0.0 for v in (step, analytic))
        return Check("rule", element, index, step, 0.0, analytic, 1.0, "float64", False, NOT_FINITE)
    width = 4 if analytic_array.dtype.itemsize < 8 else 8
    rounding = ROUNDING * (float(np.finfo(analytic_array.dtype).eps) * probe.size + probe.noise)
    low, high = (min(probe.sides), max(probe.sides)) if note else (numeric, numeric)
    off = max(low - analytic, analytic - high, 0.0)
    larger = max(abs(numeric), abs(analytic))
    error = abs(numeric - analytic) / larger if larger else 0.0
    if node.name == "dropout" and not note:
        note = "the mask is held: the key draws the same one again"
    return Check("rule", element, index, step, numeric, analytic, error, "float64",
                 bool(off <= TOLERANCE[width] * larger + rounding), note)


class _Probe:
    """The function of one element: x -> <g, f(x)>, and what its differences say."""

    def __init__(self, node: Function, slot: int, inputs: list[Any], g: Any, index: tuple[int, ...]):
        self.node, self.slot, self.inputs, self.g, self.index = node, slot, inputs, g, index
        self.state = random.get_state()
        self.base = self._run(0.0)
        self.sides, self.size, self.noise = (0.0, 0.0), 0.0, 0.0

    def _run(self, step: float) -> np.ndarray:
        random.set_state(self.state)  # an op that draws numbers draws the same ones
        moved = list(self.inputs)
        moved[self.slot] = np.array(self.inputs[self.slot])  # the memory order stays
        moved[self.slot][self.index] += step
        return rerun(self.node, moved)

    def slope(self, step: float) -> tuple[float, float]:
        """The central difference, and by how much the slopes to the right and to the left differ."""
        ahead, behind = self._run(step), self._run(-step)
        right, left = self.g * (ahead - self.base) / step, self.g * (self.base - behind) / step
        self.sides = float(left.sum()), float(right.sum())
        terms = self.g * (ahead - behind) / (2 * step)
        touched = np.abs(self.g) * (np.abs(ahead) + np.abs(behind)) * (ahead != behind)
        self.size, self.noise = float(np.abs(terms).sum()), EPS * float(touched.sum()) / step
        return float(terms.sum()), abs(self.sides[1] - self.sides[0])

    def settle(self) -> tuple[float, float, str]:
        """The step at which the difference has settled, the difference there, and a note where it does not."""
        step = STEP * max(1.0, abs(float(self.inputs[self.slot][self.index])))
        slope, jump = self.slope(step)
        for _ in range(TRIES):
            before, wide, step = slope, jump, step * SHRINK
            slope, jump = self.slope(step)
            slack = SETTLED * self.size + ROUNDING * self.noise
            if abs(slope - before) <= slack and (jump <= wide / 2 or jump <= 4 * slack):
                return step, slope, ""
        if not np.isfinite(slope):
            return step, slope, ""
        return step, slope, (f"the element sits on a kink: the slope is {self.sides[0]:.4g} to its left and "
                             f"{self.sides[1]:.4g} to its right, and the rule may take any between them")
