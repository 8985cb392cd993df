"""The function under a gradient check: evaluated anywhere near one point, with everything else held fixed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres import autograd, ops, random
from tinyres.kernels import layout
from tinyres.nn import Module
from tinyres.state import setting
from tinyres.tensor import Tensor


class Choices:
    """The tape of `state.choices`: what ops with kinks chose (ReLU masks, pooling indices), call by call.

    Fresh, it records. Given the `taken` of another run it is frozen: ops follow those choices instead of their own.
    """

    def __init__(self, taken: Sequence[tuple[str, Any]] | None = None):
        self.frozen = taken is not None
        self.taken: list[tuple[str, Any]] = [] if taken is None else list(taken)
        self.position = 0

    def take(self, name: str, fresh: Any) -> Any:
        """The choice to follow: `fresh`, which is recorded, or what was recorded at this place.

        Raises RuntimeError where a frozen run calls another op than the recorded one did.
        """
        self.position += 1
        if not self.frozen:
            self.taken.append((name, fresh))
            return fresh
        recorded, choice = self.taken[self.position - 1] if self.position <= len(self.taken) else ("nothing", fresh)
        if recorded != name or choice.shape != fresh.shape:
            raise RuntimeError(f"gradcheck: f called {name} where it called {recorded} at the point itself; near one "
                               "point it must run the same ops: take the branch on data out of it")
        return choice

    def differs(self, other: Choices) -> bool:
        """Whether two runs chose differently anywhere."""
        return len(self.taken) != len(other.taken) or any(
            a.shape != b.shape or bool((a != b).any()) for (_, a), (_, b) in zip(self.taken, other.taken, strict=True))


@dataclass(eq=False)
class Variable:
    """A leaf that is checked, and the array that it holds at the point."""

    name: str
    tensor: Tensor
    base: Any


Direction = Sequence[Any]  # an array for each variable, None where it stays as it is


class Subject:
    """L = sum(v * f) as a function of variables: the float inputs, and the parameters of modules that want a gradient.

    Modules, as f or among the inputs, are replaced by float64 copies. Before each evaluation their buffers (running
    statistics) and the random state (dropout) are set back. The weights v have random signs and sizes from 0.5 to 1.5,
    so that every output counts.
    """

    def __init__(self, f: Any, inputs: Sequence[Any], rng: np.random.Generator, nudge: float):
        copies = copy.deepcopy([m for m in (f, *inputs) if isinstance(m, Module)])  # at once: shared parts stay shared
        modules = [m.double() for m in copies]
        self.rng, self.random_state = rng, random.get_state()
        self.variables: list[Variable] = []
        self.weights: list[Any] = []
        self.f = copies.pop(0) if isinstance(f, Module) else f
        self.inputs = [copies.pop(0) if isinstance(x, Module) else self._input(i, x, bool(modules))
                       for i, x in enumerate(inputs)]
        for i, module in enumerate(modules):
            for name, p in module.named_parameters("" if len(modules) == 1 else f"module {i}"):
                if p.requires_grad and not any(p is v.tensor for v in self.variables):
                    self.variables.append(Variable(name, p, p.data))
        self.variables = [v for v in self.variables if v.base.size]
        if not self.variables:
            raise ValueError("gradcheck: nothing to check: there are no float inputs, and no parameters that require a "
                             "gradient")
        for v in self.variables if nudge else ():
            size = float((v.base * v.base).mean()) ** 0.5 or 1.0
            v.base = _shifted(v.base, nudge * size, self._normal(v.base))
        self.buffers = [(b, b.data.copy(order="K")) for m in modules for b in m.buffers()]

    def _input(self, i: int, x: Any, convert: bool) -> Any:
        array = x.data if isinstance(x, Tensor) else x
        if getattr(getattr(array, "dtype", None), "kind", "") != "f" or isinstance(array, np.generic):
            return x
        if array.dtype != np.float64 and not convert:
            raise TypeError(f"gradcheck: input {i} is {array.dtype}; float32 has 7 digits, of which a central "
                            "difference keeps 2 to 4, too few to tell a wrong gradient from rounding: pass "
                            "astype('float64')")
        leaf = Tensor(array.astype(np.float64, copy=False), requires_grad=True)
        self.variables.append(Variable(f"input {i}", leaf, leaf.data))
        return leaf

    def _normal(self, like: Any) -> Any:
        """Normal random numbers of an array's shape, in the memory order that ops give images."""
        N, *rest = like.shape or (1,)
        if like.ndim != 4:
            return layout.array_module(like).asarray(self.rng.standard_normal(like.shape))
        return layout.nchw(layout.array_module(like).asarray(self.rng.standard_normal((N, rest[1], rest[2], rest[0]))))

    def direction(self, variables: Sequence[Variable] | None = None) -> Direction:
        """A random direction of norm 1, of all variables or of some. Each has the same share of the norm: by its number
        of elements a bias would weigh nothing beside a million weights."""
        chosen = self.variables if variables is None else variables
        parts: list[Any] = []
        for v in self.variables:
            part = self._normal(v.base) if any(v is c for c in chosen) else None
            if part is not None:
                part *= 1.0 / (float((part * part).sum()) * len(chosen)) ** 0.5
            parts.append(part)
        return parts

    def rounded(self) -> Direction:
        """Each number of each variable with a random sign: times eps, it rounds all of them differently."""
        return [layout.elementwise(lambda b, r: b * (2.0 * (r > 0) - 1.0), v.base, self._normal(v.base))
                for v in self.variables]

    def element(self, variable: Variable, index: tuple[int, ...]) -> Direction:
        """The direction of one element of one variable."""
        unit = layout.array_module(variable.base).zeros(variable.base.shape)
        unit[index] = 1.0
        return [unit if v is variable else None for v in self.variables]

    def outputs(self, direction: Direction | None = None, step: float = 0.0, choices: Any = None) -> list[Tensor]:
        """f's float outputs at base + step * direction. Raises TypeError unless they are float64 Tensors."""
        for v, d in zip(self.variables, direction or [None] * len(self.variables), strict=True):
            v.tensor.data = v.base if d is None else _shifted(v.base, step, d)
        for buffer, kept in self.buffers:
            buffer.data = kept.copy(order="K")
        random.set_state(self.random_state)
        with setting(choices=choices):
            result = self.f(*self.inputs)
        outputs = list(result) if isinstance(result, (tuple, list)) else [result]
        outputs = [y for y in outputs if not (isinstance(y, Tensor) and y.dtype.kind in "iub")]
        for y in outputs:
            if not isinstance(y, Tensor) or y.dtype != np.float64:
                kind = f"a {y.dtype} Tensor" if isinstance(y, Tensor) else type(y).__name__
                raise TypeError(f"gradcheck: f must return float64 Tensors, got {kind}: compute with ops, and convert "
                                "nothing inside f")
        if not outputs:
            raise TypeError("gradcheck: f returned no float Tensor, so there is no derivative to check")
        if not self.weights:
            self.weights = [layout.array_module(y.data).asarray(self.rng.choice([-1.0, 1.0], y.shape)
                                                                * self.rng.uniform(0.5, 1.5, y.shape)) for y in outputs]
        return outputs

    def values(self, direction: Direction | None = None, step: float = 0.0, choices: Any = None) -> list[Any]:
        """v * f as arrays: subtracted before they are summed, they lose fewer digits."""
        with setting(grad_enabled=False):
            return self.weighted(self.outputs(direction, step, choices))

    def weighted(self, outputs: Sequence[Tensor]) -> list[Any]:
        return [y.data * w for y, w in zip(outputs, self.weights, strict=True)]

    def gradient(self, outputs: Sequence[Tensor]) -> list[Any]:
        """The gradient of L by the backward pass: an array for each variable, or None."""
        live = [(y, w) for y, w in zip(outputs, self.weights, strict=True) if y.requires_grad]
        if not live:
            return [None] * len(self.variables)
        found = autograd.grad([y for y, _ in live], self.tensors, [w for _, w in live], allow_unused=True)
        return [None if g is None else g.data for g in found]

    def hvp(self, direction: Direction) -> list[Any]:
        """The Hessian of L times `direction`, by two backward passes: an array for each variable."""
        total: Any = sum(ops.sum(ops.mul(y, w)) for y, w in zip(self.outputs(), self.weights, strict=True))
        vectors = [layout.array_module(v.base).zeros_like(v.base) if d is None else d
                   for v, d in zip(self.variables, direction, strict=True)]
        if not total.requires_grad:
            return [0.0 * v for v in vectors]
        return [h.data for h in autograd.hvp(total, self.tensors, vectors)]

    @property
    def tensors(self) -> list[Tensor]:
        return [v.tensor for v in self.variables]


def _shifted(base: Any, step: float, direction: Any) -> Any:
    return layout.elementwise(lambda b, d: b + step * d, base, direction)
