"""The six rules that the gradient checks of lesson 2 are checked with: three wrong ones and three right ones.

Each wrong one is right about something: about a loss that sums, about its numbers but not their shape, about all
columns but one. Each right one looks wrong to somebody: in float32, or where its gradient is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres.ops import batch_norm
from tinyres.tensor import Tensor

Array = Any  # a NumPy array
FACTORS = np.array([[1.0, 2, 3], [4, 5, 6]])


@dataclass(frozen=True)
class Rule:
    """A function of one array with a backward rule. forward: x -> y; backward: (g, x) -> dx; x: where to check it."""

    name: str
    right: bool
    forward: Callable[[Array], Array]
    backward: Callable[[Array, Array], Array]
    x: Array


def rules(rng: np.random.Generator) -> Iterator[Rule]:
    """The six rules. They come at random points, and none within 0.01 of a kink."""
    x = rng.standard_normal((8, 3))
    yield Rule("batch norm without the route through the variance", False, _normalised, _without_variance, x)
    yield Rule("a bias whose gradient has shape (1, 3) instead of (3,)", False, _biased,
               lambda g, b: (g * FACTORS).sum(0, keepdims=True), rng.standard_normal(3))
    yield Rule("a small tanh whose last column is off by half a percent", False, _small_tanh, _off_in_one_column,
               rng.uniform(-1, 1, (4, 3)))
    yield Rule("batch norm with all its routes", True, _normalised, _all_routes, x.copy())
    sign = rng.choice([-1.0, 1.0], (6, 5))
    yield Rule("ReLU at float32 numbers", True, lambda x: np.maximum(x, 0), lambda g, x: g * (x > 0),
               (sign * rng.uniform(0.01, 2, (6, 5))).astype(np.float32))
    yield Rule("the sum of a softmax, whose gradient is 0", True, lambda x: _softmax(x).sum(1), _softmax_sum_grad,
               rng.standard_normal((4, 3)))


def _biased(b: Array) -> Array:
    return FACTORS * b


def _normalised(x: Array) -> Array:
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def _without_variance(g: Array, x: Array) -> Array:
    return (g - g.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def _all_routes(g: Array, x: Array) -> Array:
    """From the library's engine, so that its rule does not stand here."""
    t = Tensor(np.array(x), requires_grad=True)
    batch_norm(t, training=True).backward(np.asarray(g, t.dtype))
    assert t.grad is not None
    return t.grad.data


def _small_tanh(x: Array) -> Array:
    return 1e-4 * np.tanh(x)


def _off_in_one_column(g: Array, x: Array) -> Array:
    return g * 1e-4 * (1 - np.tanh(x) ** 2) * np.array([1, 1, 1.005])


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _softmax_sum_grad(g: Array, x: Array) -> Array:
    p = _softmax(x)
    return g[:, None] * (p - p.sum(1, keepdims=True) * p)
