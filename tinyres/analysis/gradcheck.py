"""Does the backward pass compute the derivative of the forward pass? A check by finite differences, in float64.

The derivative along a direction d is what a central difference measures, n = (L(p + h d) - L(p - h d)) / 2h, and what
the backward pass claims, a = <gradient, d>. Three things make the comparison worth having:

- L = sum(v * f), v random. With v = 1 the gradient of a batch norm is about 0 whatever its code does, as the sum of
  normalised values is constant; half of all wrong rules would pass.
- float64. A difference of two float32 numbers keeps about 3 digits of their 7.
- Kinks. Where a ReLU switches or a maximum moves between p - h d and p + h d, the difference measures neither side.
  So ops record their choices on a tape (`state.choices`): a direction whose two ends chose differently is drawn again.
  For second derivatives the choices are frozen at p, as one switched ReLU in half a million would drown the rest.

A random direction of a whole network says that the gradient is right, but the bias of one layer weighs little in it: so
each variable is also checked along a direction of its own. Zeros after a ReLU are no kinks: both ends choose the same.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyres import autograd, ops, random
from tinyres.analysis.verdict import SMALL, Comparison, GradcheckResult
from tinyres.graph import topological_order
from tinyres.kernels import layout
from tinyres.nn import Module
from tinyres.ops.norm import BatchNorm
from tinyres.state import setting
from tinyres.tensor import Tensor

ALL = "all variables together"
FEW_ELEMENTS = 500    # functions of at most so many numbers are checked element by element
DRAWS = 12            # how often a direction is drawn before its kinks are taken for a fact
FEWEST_VALUES = 8     # per channel of a batch norm in training: with fewer, its curvature spoils the difference
ROUNDING = 30         # errors of one float64 evaluation, in units of eps: measured on networks, see tests


class Choices:
    """The tape: what ops with kinks chose (ReLU masks, pooling indices), in the order of their calls.

    Fresh, it records. Given the `taken` of another run it is frozen: ops follow those choices instead of their own.
    """

    def __init__(self, taken: Sequence[tuple[str, Any]] | None = None):
        self.frozen = taken is not None
        self.taken: list[tuple[str, Any]] = [] if taken is None else list(taken)
        self.position = 0

    def take(self, name: str, fresh: Any) -> Any:
        """The choice to follow: `fresh`, which is recorded, or what was recorded at this place."""
        self.position += 1
        if not self.frozen:
            self.taken.append((name, fresh))
            return fresh
        recorded, choice = self.taken[self.position - 1] if self.position <= len(self.taken) else ("nothing", fresh)
        if recorded != name or choice.shape != fresh.shape:
            raise RuntimeError(f"gradcheck: f called {name} where it had called {recorded} at the base point; it must "
                               "run the same ops near one point: take the branch on data out of it")
        return choice

    def differs(self, other: Choices) -> bool:
        return len(self.taken) != len(other.taken) or any(
            a.shape != b.shape or bool((a != b).any())
            for (_, a), (_, b) in zip(self.taken, other.taken, strict=True))


@dataclass(eq=False)
class Variable:
    """A leaf that is checked, and the array that it holds at the base point."""

    name: str
    tensor: Tensor
    base: Any


Direction = Sequence[Any]  # an array for each variable, None where it stays at its base point


class Subject:
    """What is checked: f on leaves of its own, evaluated anywhere near the base point with everything else held fixed.

    Modules, as f or among the inputs, are replaced by float64 copies. Before each evaluation their buffers (running
    statistics) and the random state (dropout) are set back.
    """

    def __init__(self, f: Any, inputs: Sequence[Any], rng: np.random.Generator, nudge: float):
        own = iter(copy.deepcopy([m for m in (f, *inputs) if isinstance(m, Module)]))
        f, *inputs = (next(own).double() if isinstance(m, Module) else m for m in (f, *inputs))
        modules = [m for m in (f, *inputs) if isinstance(m, Module)]
        self.f, self.rng, self.random_state = f, rng, random.get_state()
        self.variables: list[Variable] = []
        self.inputs = [self._input(i, x, bool(modules)) for i, x in enumerate(inputs)]
        for i, module in enumerate(modules):
            for name, p in module.named_parameters("" if len(modules) == 1 else f"module {i}"):
                if p.requires_grad and not any(p is v.tensor for v in self.variables):
                    self.variables.append(Variable(name, p, p.data))
        if not self.variables:
            raise ValueError("gradcheck: nothing to check: f has no float inputs and no parameters that require a "
                             "gradient")
        for v in self.variables if nudge else ():
            size = float((v.base * v.base).mean()) ** 0.5 or 1.0
            v.base = layout.elementwise(lambda b, e: b + e, v.base, nudge * size * self._normal(v.base))
        self.buffers = [(b, b.data.copy(order="K")) for m in modules for b in m.buffers()]
        self.weights: list[Any] = []

    def _input(self, i: int, x: Any, convert: bool) -> Any:
        array = x.data if isinstance(x, Tensor) else x
        if getattr(getattr(array, "dtype", None), "kind", "") != "f" or isinstance(array, np.generic):
            return x
        if array.dtype != np.float64 and not convert:
            raise TypeError(f"gradcheck: input {i} is {array.dtype}; float32 has 7 digits, and a central difference keeps "
                            "about 3 of them, too few to tell a wrong gradient from rounding: pass astype('float64')")
        leaf = Tensor(array.astype(np.float64, copy=False), requires_grad=True)
        self.variables.append(Variable(f"input {i}", leaf, leaf.data))
        return leaf

    def _normal(self, like: Any) -> Any:
        return layout.array_module(like).asarray(self.rng.standard_normal(like.shape))

    def direction(self, only: Variable | None = None, balanced=False) -> Direction:
        """A random direction of norm 1, of all variables or of one."""
        d = [self._normal(v.base) if only in (None, v) else None for v in self.variables]
        if balanced: d = [None if p is None else p / max(float((p * p).sum()) ** 0.5, 1e-300) for p in d]
        norm = sum(float((part * part).sum()) for part in d if part is not None) ** 0.5 or 1.0
        return [None if part is None else layout.elementwise(lambda p: p / norm, part) for part in d]

    def element(self, variable: Variable, index: tuple[int, ...]) -> Direction:
        """The direction of one element of one variable."""
        unit = layout.array_module(variable.base).zeros(variable.base.shape)
        unit[index] = 1.0
        return [unit if v is variable else None for v in self.variables]

    def outputs(self, direction: Direction | None = None, step: float = 0.0, choices: Any = None) -> list[Tensor]:
        """f at base + step * direction."""
        for v, d in zip(self.variables, direction or [None] * len(self.variables), strict=True):
            v.tensor.data = v.base if d is None else layout.elementwise(lambda b, e: b + step * e, v.base, d)
        for buffer, kept in self.buffers:
            buffer.data = kept.copy(order="K")
        random.set_state(self.random_state)
        with setting(choices=choices):
            result = self.f(*self.inputs)
        outputs = list(result) if isinstance(result, (tuple, list)) else [result]
        outputs = [y for y in outputs if not (isinstance(y, Tensor) and y.dtype.kind in "iub")]
        for y in outputs:
            if not isinstance(y, Tensor) or y.dtype != np.float64:
                raise TypeError(f"gradcheck: f must return float64 Tensors, got {getattr(y, 'dtype', '')} "
                                f"{type(y).__name__}; compute with ops, and convert nothing inside f")
        if not self.weights:  # signs at random, sizes between 0.5 and 1.5: every output counts
            self.weights = [layout.array_module(y.data).asarray(self.rng.choice([-1.0, 1.0], y.shape)
                                                                * self.rng.uniform(0.5, 1.5, y.shape)) for y in outputs]
        return outputs

    def values(self, direction: Direction | None = None, step: float = 0.0, choices: Any = None) -> list[Any]:
        """v * f, as arrays: subtracted before they are summed, they lose fewer digits."""
        with setting(grad_enabled=False):
            outputs = self.outputs(direction, step, choices)
        return [y.data * w for y, w in zip(outputs, self.weights, strict=True)]

    def gradient(self, direction: Direction | None = None, step: float = 0.0, choices: Any = None) -> list[Any]:
        """The backward pass's gradient of sum(v * f), an array or None for each variable."""
        return self.gradient_of(self.outputs(direction, step, choices))

    def gradient_of(self, outputs: Sequence[Tensor]) -> list[Any]:
        live = [(y, w) for y, w in zip(outputs, self.weights, strict=True) if y.requires_grad]
        if not live:
            return [None] * len(self.variables)
        grads = autograd.grad([y for y, _ in live], self.tensors, [w for _, w in live], allow_unused=True)
        return [None if g is None else g.data for g in grads]

    def hvp(self, direction: Direction) -> list[Any]:
        """The backward pass's second derivatives: the Hessian of sum(v * f), times `direction`."""
        outputs = self.outputs()
        total = ops.add(0.0, sum(ops.sum(ops.mul(y, w)) for y, w in zip(outputs, self.weights, strict=True)))
        vectors = [layout.array_module(v.base).zeros_like(v.base) if d is None else d
                   for v, d in zip(self.variables, direction, strict=True)]
        if not total.requires_grad:
            return [0.0 * v for v in vectors]
        return [h.data for h in autograd.hvp(total, self.tensors, vectors)]

    @property
    def tensors(self) -> list[Tensor]:
        return [v.tensor for v in self.variables]


class Check:
    """The probes of one gradient check, and what they gave."""

    def __init__(self, subject: Subject, step: float, tolerance: float):
        self.subject, self.step, self.tolerance = subject, step, tolerance
        self.comparisons: dict[tuple[int, str], Comparison] = {}
        self.unclear: list[str] = []
        self.notes: list[str] = []
        self.redrawn, self.noise = 0, 0.0
        outputs = subject.outputs()  # as in training: nothing recorded, the user's own memory layout
        self.gradient = subject.gradient_of(outputs)
        self.tape = Choices()
        self.base = subject.values(choices=self.tape)
        self.size = sum(float((y * y).sum()) for y in self.base) ** 0.5
        self._check_base(outputs)
        self._check_batch_norms(outputs)

    def _check_base(self, outputs: Sequence[Tensor]) -> None:
        first = [y.data * w for y, w in zip(outputs, self.subject.weights, strict=True)]
        change = sum(float(abs(a - b).sum()) for a, b in zip(first, self.base, strict=True))
        if not np.isfinite(self.size):
            raise ValueError("gradcheck: f is not finite at this point, so it has no derivative to check")
        if change > 1e-9 * (self.size + np.finfo(float).tiny):
            raise RuntimeError("gradcheck: f gave two different values at one point; draw random numbers from tinyres's "
                               "generator, which is set back between evaluations, and change no state in f")

    def _check_batch_norms(self, outputs: Sequence[Tensor]) -> None:
        nodes = topological_order([y.node for y in outputs if y.node is not None])
        shapes = [n.shape for n in nodes if isinstance(n, BatchNorm) and n.params["training"]]
        few = [s for s in shapes if int(np.prod(s)) // s[1] < FEWEST_VALUES]
        if few:
            self.notes.append(f"batch norm in training saw {tuple(few[0])}, {int(np.prod(few[0])) // few[0][1]} values per "
                              f"channel; with fewer than {FEWEST_VALUES} it is so curved that a right gradient can fail: "
                              "use more or larger images, or eval()")
            warnings.warn(f"gradcheck: {self.notes[-1]}", stacklevel=4)

    def comparison(self, order: int, name: str) -> Comparison:
        return self.comparisons.setdefault((order, name), Comparison(order, name))

    # --- order 1 ------------------------------------------------------------------------------------------------

    def along_directions(self, count: int) -> None:
        """Directions of all variables, their choices recorded; then one of each variable, the choices frozen."""
        clean = sum(self.probe(ALL, self.subject.direction, DRAWS, 0.7) for _ in range(count))
        if not clean:
            self.unclear.append(f"{count * DRAWS} directions, with steps down to {self.step * 0.7 ** (DRAWS - 1):.0e}, all "
                                "crossed a kink: move the point off it with nudge=0.01, or try fewer images")
        for v in self.subject.variables:
            self.measure(v.name, "", self.subject.direction(v), self.step, Choices(self.tape.taken), Choices(self.tape.taken))

    def along_elements(self) -> None:
        """Every element of every variable; one at a kink stays unclear, however small the step."""
        for v in self.subject.variables:
            for index in np.ndindex(v.base.shape):
                unit = self.subject.element(v, index)
                if not self.probe(v.name, lambda unit=unit: unit, 5, 0.25, str(list(index)) if index else ""):
                    self.unclear.append(f"{v.name}{list(index)} lies at a kink, where the derivative jumps: move it off "
                                        "with nudge=0.01")

    def probe(self, name: str, draw: Callable[[], Direction], draws: int, shrink: float, place: str = "") -> bool:
        """Measure along a direction whose two ends choose alike; False if no draw was one."""
        for i in range(draws):
            if self.measure(name, place, draw(), self.step * shrink**i, Choices(), Choices()):
                self.redrawn += i
                return True
        self.redrawn += draws
        return False

    def measure(self, name: str, place: str, direction: Direction, step: float, up: Choices, down: Choices) -> bool:
        above = self.subject.values(direction, step, up)
        below = self.subject.values(direction, -step, down)
        if up.differs(down):
            return False
        numeric = sum(float((a - b).sum()) for a, b in zip(above, below, strict=True)) / (2 * step)
        pairs = [(g, d) for g, d in zip(self.gradient, direction, strict=True) if d is not None]
        analytic = sum(float((g * d).sum()) for g, d in pairs if g is not None)
        noise = ROUNDING * np.finfo(float).eps * self.size / step
        found = self.comparison(1, name)
        found.add(analytic, numeric, max(noise / self.tolerance, SMALL * _typical([g for g, _ in pairs])), place)
        found.missing = all(g is None for g, _ in pairs)
        self.noise = max(self.noise, noise)
        if found.errors[-1] > self.tolerance:
            right = sum(float((a - b).sum()) for a, b in zip(above, self.base, strict=True)) / step
            found.kink |= abs(right - numeric) > 0.01 * max(abs(right), abs(numeric), found.floors[-1])
        return True

    # --- order 2 ------------------------------------------------------------------------------------------------

    def second(self, probes: Iterator[tuple[Direction, str]]) -> None:
        """The Hessian times each direction against the difference of gradients, the choices frozen at the base point."""
        known = sum(float((g * g).sum()) for g in self.gradient if g is not None) ** 0.5
        noise = ROUNDING * np.finfo(float).eps * known / self.step
        self.noise = max(self.noise, noise)
        for direction, place in probes:
            analytic = self.subject.hvp(direction)
            above, below = (self.subject.gradient(direction, h, Choices(self.tape.taken)) for h in (self.step, -self.step))
            for v, a, up, down in zip(self.subject.variables, analytic, above, below, strict=True):
                zero = 0.0 * v.base
                numeric = ((zero if up is None else up) - (zero if down is None else down)) / (2 * self.step)
                self.comparison(2, v.name).add(a, numeric, noise / self.tolerance, place)


def _typical(gradients: Sequence[Any]) -> float:
    """The root mean square of the gradients' elements: what a random direction of norm 1 is expected to give."""
    known = [g for g in gradients if g is not None]
    squares, count = sum(float((g * g).sum()) for g in known), sum(g.size for g in known)
    return (squares / count) ** 0.5 if count else 0.0


def gradcheck(f: Any, *inputs: Any, order: int | Sequence[int] = 1, mode: str | None = None, directions: int = 3,
              step: float = 1e-5, tolerance: float = 1e-6, nudge: float = 0.0, seed: int = 0,
              raise_on_failure: bool = False) -> GradcheckResult:
    orders = (order,) if isinstance(order, int) else tuple(order)
    subject = Subject(f, inputs, np.random.Generator(np.random.Philox(seed)), nudge)
    random_state = random.get_state()
    try:
        with setting(grad_enabled=True, choices=None):
            check = Check(subject, step, tolerance)
            elements = mode == "elements"
            if 1 in orders:
                check.along_elements() if elements else check.along_directions(directions)
            if 2 in orders:
                probes = (((subject.element(v, i), str(list(i))) for v in subject.variables for i in np.ndindex(v.base.shape)) if elements else ((subject.direction(balanced=True), "") for _ in range(directions)))
                check.second(probes)
    finally:
        random.set_state(random_state)
    return check
