"""Does the backward pass compute the derivative of the forward pass? Finite differences, in float64, are the judge.

Along a direction d, a central difference measures n = (L(p + h d) - L(p - h d)) / 2h; the backward pass claims that it
is a = <gradient, d>. Three things decide whether the comparison is worth anything:

- L = sum(v * f) with random v. With v = 1 the gradient of a batch norm is about 0 whatever its code does, because the
  sum of normalised values is constant: a wrong rule passes.
- float64. The difference of two float32 numbers keeps 2 to 4 of their 7 digits.
- Kinks. Where a ReLU switches or a maximum moves between p - h d and p + h d, the difference is the slope of neither
  side. So ops record their choices, and a direction whose two ends chose differently is drawn again. Zeros behind a
  ReLU are no kinks: there both ends choose the same.

Directions of the whole network tell whether the gradient is right, but not which part of it is wrong, and a small
mistake in a small variable can drown. So the variables are checked once more, a few neighbours at a time, and one by
one where those fail. This second pass, and all second derivatives, hold the choices of the point itself: the function
is then smooth, and no ReLU in a million can switch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from tinyres import kernels, random
from tinyres.analysis.subject import Choices, Direction, Subject, Variable
from tinyres.analysis.verdict import Comparison, GradcheckResult, Probe, relative_error
from tinyres.graph import topological_order
from tinyres.nn import Module
from tinyres.ops.norm import BatchNorm
from tinyres.state import setting
from tinyres.tensor import Tensor

ALL = "all variables together"
FEW_ELEMENTS = 500  # functions of at most so many numbers are checked element by element
FEW_VALUES = 8      # a batch norm in training with fewer values per channel is too curved for a difference
GROUP = 8           # neighbouring variables that are checked at a time
DRAWS, SHRINK = 12, 0.5               # tries to find a direction without kinks, and the factor of the step between them
ELEMENT_DRAWS, ELEMENT_SHRINK = 5, 0.25  # an element is one direction: only the step can change
ROUNDING = 5        # how often the estimate of an evaluation's rounding error can be exceeded, as seen on networks
EPS = float(np.finfo(np.float64).eps)


def gradcheck(f: Callable | Module, *inputs: Any, order: int | Sequence[int] = 1, mode: str | None = None,
              directions: int = 3, step: float = 1e-5, tolerance: float = 1e-6, nudge: float = 0.0, seed: int = 0,
              raise_on_failure: bool = False) -> GradcheckResult:
    """Compare the gradients of f at `inputs` with finite differences; the result is true if they agree, str() says why.

    f: a Module, or a function of Tensors, that returns one or several Tensors of any shape. They are weighted by a
    fixed random gradient v: with a uniform one, batch norm's gradient is about 0 whatever the code does.
    inputs: float arrays or Tensors are variables; integers (labels) and everything else are passed on. What must stay
    fixed goes into a closure. Modules, f or among the inputs, are replaced by float64 copies in the same mode (train or
    eval), whose parameters are variables too, and float32 inputs are converted; without a module they are refused.
    order: 1 for gradients, 2 for Hessian-vector products (tr.hvp against differences of gradients), (1, 2) for both.
    mode: "elements" (each number of each variable; the default for functions of at most 500 numbers) or "directions"
    (random ones of norm 1: `directions` of all variables, then each variable; the default otherwise).
    step: h. tolerance: of the relative error |a - n| / max(|a|, |n|, floor); the floor is such that what rounding can
    do passes, see GradcheckResult.noise. nudge: first moves each variable at random by this share of its size, away
    from special points such as scales of 1, or zeros where gradients vanish. raise_on_failure: an AssertionError with
    the verdict unless it is "passed".

    Raises TypeError for float32 without a module, ValueError where there is nothing to check or f is not finite,
    RuntimeError if f is not a function: two evaluations at one point differ.
    Central differences: Griewank and Walther 2008, "Evaluating derivatives", section 1; Hessian products: Pearlmutter
    1994, "Fast exact multiplication by the Hessian".
    """
    orders = (order,) if isinstance(order, int) else tuple(order)
    if not orders or not set(orders) <= {1, 2}:
        raise ValueError(f"gradcheck: order must be 1, 2 or (1, 2), got {order!r}")
    if mode not in (None, "elements", "directions"):
        raise ValueError(f"gradcheck: mode must be 'elements', 'directions' or None to choose, got {mode!r}")
    if not (step > 0 and tolerance > 0 and nudge >= 0 and directions >= 1):
        raise ValueError(f"gradcheck: step, tolerance and directions must be positive, nudge not negative, got {step}, "
                         f"{tolerance}, {directions}, {nudge}")
    random_state = random.get_state()
    try:
        with setting(grad_enabled=True, choices=None):
            subject = Subject(f, inputs, np.random.Generator(np.random.Philox(seed)), nudge)
            if mode is None:
                small = sum(v.base.size for v in subject.variables) <= FEW_ELEMENTS
                mode = "elements" if small and not any(isinstance(m, Module) for m in (f, *inputs)) else "directions"
            check = Check(subject, step, tolerance)
            if 1 in orders and mode == "elements":
                check.elements()
            elif 1 in orders:
                check.directions(directions)
            if 2 in orders:
                check.second_order(each_element(subject) if mode == "elements" else
                                   ((subject.direction(), "") for _ in range(directions)))
    finally:
        random.set_state(random_state)
    result = check.result(mode, directions)
    if raise_on_failure and not result.passed:
        raise AssertionError(str(result))
    return result


def each_element(subject: Subject) -> Iterator[tuple[Direction, str]]:
    """The direction of every element of every variable, and where that is, in words."""
    for v in subject.variables:
        for index in np.ndindex(v.base.shape):
            yield subject.element(v, index), f" along {v.name}{_at(index)}"


class Check:
    """The probes of one gradient check at one point."""

    def __init__(self, subject: Subject, step: float, tolerance: float):
        self.subject, self.step, self.tolerance = subject, step, tolerance
        self.comparisons: dict[tuple[int, str], Comparison] = {}
        self.unclear: list[str] = []
        self.notes: list[str] = []
        self.redrawn, self.noise = 0, 0.0
        outputs = subject.outputs()  # as in training: nothing recorded, the inputs in the memory order that they have
        first = subject.weighted(outputs)
        self._count_batch_norm_values(outputs)
        self.gradient = subject.gradient(outputs)
        self.tape = Choices()
        self.base = subject.values(choices=self.tape)
        self.size = _sum(y * y for y in first) ** 0.5
        if not np.isfinite(self.size):
            raise ValueError("gradcheck: f is not finite at this point, so it has no derivative to check")
        if self._change(first) > 1e-9 * self.size + 1e-12:
            raise RuntimeError("gradcheck: f gave two different values at one point: let it draw random numbers from "
                               "tinyres.random.generator() only, which is set back between evaluations, and change no "
                               "state of its own")
        self.rounding = EPS * self.size + max(self._change(subject.values(subject.rounded(), EPS, self.fixed()))
                                              for _ in range(3))

    def _count_batch_norm_values(self, outputs: Sequence[Tensor]) -> None:
        nodes = topological_order([y.node for y in outputs if y.node is not None])
        norms: list[Any] = [n for n in nodes if isinstance(n, BatchNorm)]
        few = [n.shape for n in norms if n.params["training"] and int(np.prod(n.shape)) < FEW_VALUES * n.shape[1]]
        if few:
            values = int(np.prod(few[0])) // few[0][1]
            self.notes.append(f"batch norm in training sees {values} values per channel ({tuple(few[0])}); with fewer "
                              f"than {FEW_VALUES} its curvature can spoil the differences, so that a right gradient "
                              "fails: use more or larger images, or eval()")
            warnings.warn(f"gradcheck: {self.notes[-1]}", stacklevel=4)

    def _change(self, values: Sequence[Any]) -> float:
        return _sum((a - b) ** 2 for a, b in zip(values, self.base, strict=True)) ** 0.5

    def fixed(self) -> Choices:
        """The choices of the point itself."""
        return Choices(self.tape.taken)

    def add(self, order: int, name: str, probe: Probe) -> None:
        self.comparisons.setdefault((order, name), Comparison(order, name)).probes.append(probe)
        self.noise = max(self.noise, probe.noise)

    # --- order 1 ------------------------------------------------------------------------------------------------

    def directions(self, count: int) -> None:
        """Directions of all variables, choices recorded; then each variable, choices held."""
        clean = [self._search(ALL, self.subject.direction, DRAWS, SHRINK) for _ in range(count)]
        if not any(clean):
            self.unclear.append(f"all {count * DRAWS} directions crossed a kink, with steps down to "
                                f"{self.step * SHRINK ** (DRAWS - 1):.0e}: a value sits on one, as in a ReLU of zeros, "
                                "or there are too many: pass nudge=0.01 to move off, fewer images, or a smaller step")
        loud: list[Variable] = []
        quiet: list[Variable] = []
        for v, g in zip(self.subject.variables, self.gradient, strict=True):
            (loud if _typical(g) > self._noise(self.step) else quiet).append(v)
        for group in [loud[i:i + GROUP] for i in range(0, len(loud), GROUP)] + [[v] for v in quiet]:
            self._take_apart(group)

    def _take_apart(self, group: list[Variable]) -> None:
        """Check variables along one direction, and if they fail each half of them."""
        probe = self._probe(self.subject.direction(group), self.step, self.fixed)
        assert probe is not None  # both ends follow the same choices
        if len(group) > 1 and not probe.error <= self.tolerance:
            self._take_apart(group[:len(group) // 2])
            self._take_apart(group[len(group) // 2:])
            return
        for v in group:
            self.add(1, v.name, probe)

    def elements(self) -> None:
        """Each element of each variable; one that lies on a kink stays unclear, however small the step."""
        for v in self.subject.variables:
            for index in np.ndindex(v.base.shape):
                draw = partial(self.subject.element, v, index)
                if not self._search(v.name, draw, ELEMENT_DRAWS, ELEMENT_SHRINK, _at(index)):
                    self.unclear.append(f"{v.name}{_at(index)} lies on a kink, where the slope jumps: pass nudge=0.01 "
                                        "to move off it")

    def _search(self, name: str, draw: Callable[[], Direction], draws: int, shrink: float, place: str = "") -> bool:
        """Probe along a direction whose two ends choose alike. False if none of the draws was one."""
        for i in range(draws):
            probe = self._probe(draw(), self.step * shrink**i, Choices, place)
            if probe is not None:
                self.add(1, name, probe)
                return True
            self.redrawn += 1
        return False

    def _probe(self, direction: Direction, step: float, choices: Callable[[], Choices],
               place: str = "") -> Probe | None:
        """Slope and claim along a direction; None where its ends choose differently.

        A difference's error shrinks with h^2, a wrong gradient's does not: one that fails is measured again at half the
        step, and the two extrapolated to h = 0 (Richardson 1911).
        """
        pairs = [(g, d) for g, d in zip(self.gradient, direction, strict=True) if d is not None]
        analytic = sum(_sum([g * d]) for g, d in pairs if g is not None)
        missing = all(g is None for g, _ in pairs)
        measured = self._slope(direction, step, choices)
        if measured is None:
            return None
        numeric, gap = measured
        noise = self._noise(step)
        probe = Probe(analytic, numeric, noise / self.tolerance, noise, place, missing)
        halved = None if probe.error <= self.tolerance else self._slope(direction, step / 2, choices)
        if halved is not None:
            probe.kink = abs(halved[1]) > max(0.75 * abs(gap), 0.01 * abs(numeric), probe.floor)
            probe.noise, probe.floor = 3 * noise, 3 * noise / self.tolerance
            probe.numeric = numeric if probe.kink else (4 * halved[0] - numeric) / 3
        return probe

    def _slope(self, direction: Direction, step: float, choices: Callable[[], Choices]) -> tuple[float, float] | None:
        """The central difference, and by how much the slopes to the two sides differ; None at a kink."""
        up, down = choices(), choices()
        above, below = self.subject.values(direction, step, up), self.subject.values(direction, -step, down)
        if up.differs(down):
            return None
        ends = list(zip(above, self.base, below, strict=True))
        return _sum(a - b for a, _, b in ends) / (2 * step), _sum((a - m) - (m - b) for a, m, b in ends) / step

    def _noise(self, step: float) -> float:
        """What rounding may do to a difference: eps |v f|, and what rounding all variables differently changes in v f,
        which is more where f itself is a small difference of large numbers."""
        return ROUNDING * self.rounding / step

    # --- order 2 ------------------------------------------------------------------------------------------------

    def second_order(self, probes: Iterator[tuple[Direction, str]]) -> None:
        """The Hessian times each direction against a difference of gradients, variable by variable, choices held."""
        size = _sum(g * g for g in self.gradient if g is not None) ** 0.5
        noise = self._noise(self.step) + ROUNDING * EPS * size / self.step
        for direction, place in probes:
            claims, slopes = self.subject.hvp(direction), self._gradient_slopes(direction, self.step)
            floor = noise / self.tolerance
            if not all(relative_error(a, n, floor) <= self.tolerance for a, n in zip(claims, slopes, strict=True)):
                halved = self._gradient_slopes(direction, self.step / 2)  # as in _probe
                slopes, floor = [(4 * h - n) / 3 for h, n in zip(halved, slopes, strict=True)], 3 * floor
            for v, a, n in zip(self.subject.variables, claims, slopes, strict=True):
                self.add(2, v.name, Probe(a, n, floor, floor * self.tolerance, place))

    def _gradient_slopes(self, direction: Direction, step: float) -> list[Any]:
        above, below = (self.subject.gradient(self.subject.outputs(direction, h, self.fixed())) for h in (step, -step))
        return [(_or_zero(a, v) - _or_zero(b, v)) / (2 * step)
                for v, a, b in zip(self.subject.variables, above, below, strict=True)]

    # --- the verdict --------------------------------------------------------------------------------------------

    def result(self, mode: str, directions: int) -> GradcheckResult:
        """What was found, the failure nearest to the output first."""
        found = list(self.comparisons.values())
        failures = [c.describe() for c in reversed(found) if not c.error <= self.tolerance]
        silent = [c.name for c in found if c.order == 1 and c.name != ALL and c.silent]
        if silent and len(silent) == len([c for c in found if c.order == 1 and c.name != ALL]):
            self.unclear.append("within rounding f depends on none of its variables here, so nothing was checked; if f "
                                "ends in a sum of normalised values, leave the sum out")
        elif silent:
            self.notes.append(f"not checked, as within rounding f does not depend on them here: {', '.join(silent)}; "
                              "nudge=0.1 checks at a less special point nearby")
        variables = self.subject.variables
        numbers = f"{len(variables)} variables with {sum(v.base.size for v in variables):,} numbers"
        how = f"each element of {numbers}" if mode == "elements" else f"{directions} random directions of {numbers}"
        errors: dict[int, dict[str, float]] = {}
        for c in found:
            errors.setdefault(c.order, {})[c.name] = c.error
        return GradcheckResult(errors, self.tolerance, self.noise, self.redrawn,
                               f"{how}, step {self.step:.0e}, kernels {kernels.current()}", failures, self.unclear,
                               self.notes)


def _at(index: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, index))}]" if index else ""


def _or_zero(gradient: Any, v: Variable) -> Any:
    return 0.0 * v.base if gradient is None else gradient


def _sum(arrays: Any) -> float:
    """The sum of all elements of all arrays, as a Python number."""
    return sum((float(a.sum()) for a in arrays), 0.0)


def _typical(gradient: Any) -> float:
    """The root mean square of the elements: what a direction of norm 1 is expected to give."""
    return 0.0 if gradient is None else (_sum([gradient * gradient]) / gradient.size) ** 0.5
