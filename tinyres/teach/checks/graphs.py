"""Graphs whose ops keep a diary: which rule was called, when, with what, and which arrays were handed over.

They have what the graphs of lesson 1 have for a backward pass: value.node, value.grad, node.inputs, node.rule(g).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres.teach import Misconception

Array = Any

ENOUGH_CALLS = 20_000  # of rules in one pass over a graph of a check, whatever the walk

# name: (forward, its transposed Jacobians: (g, inputs, output) -> a contribution for each input)
OPS: dict[str, tuple[Callable[..., Array], Callable[..., tuple[Array, ...]]]] = {
    "add": (lambda a, b: a + b, lambda g, inputs, y: (g, g)),  # the very same array, as in the lesson
    "sub": (lambda a, b: a - b, lambda g, inputs, y: (g, -g)),
    "mul": (lambda a, b: a * b, lambda g, inputs, y: (g * inputs[1], g * inputs[0])),
    "matmul": (lambda a, b: a @ b, lambda g, inputs, y: (g @ inputs[1].T, inputs[0].T @ g)),
    "relu": (lambda a: np.maximum(a, 0), lambda g, inputs, y: (g * (inputs[0] > 0),)),
    "tanh": (np.tanh, lambda g, inputs, y: (g * (1 - y * y),)),
    "sin": (np.sin, lambda g, inputs, y: (g * np.cos(inputs[0]),)),
    "double": (lambda a: 2 * a, lambda g, inputs, y: (2 * g,)),
    "triple": (lambda a: 3 * a, lambda g, inputs, y: (3 * g,)),
    "sum": (lambda a: np.asarray(a.sum()), lambda g, inputs, y: (np.full(inputs[0].shape, g),)),
}


@dataclass
class Call:
    """A rule was called with `given`: the arrays themselves, and copies of what they were then."""

    node: Node
    given: Array
    arrays: list[Array]
    copies: list[Array]


class Node:
    """An op of a graph, with what the lesson's Function has for a backward pass: inputs and rule(g)."""

    def __init__(self, op: str, inputs: tuple[Value, ...], diary: list[Call]):
        self.op, self.inputs, self.diary = op, inputs, diary
        self.shape: tuple[int, ...] = ()
        self.output: Array = None

    def rule(self, g: Array) -> tuple[Array, ...]:
        if g is None:
            raise Misconception("starts-with-nothing", f"The rule of {self.op} was called with None: no gradient had "
                                "come to its output yet. Where does the first one come from, the derivative of the "
                                "loss by itself? And is this tensor visited after its consumers?")
        if np.shape(g) != self.shape:
            raise Misconception("wrong-shape", f"The rule of {self.op} was called with a gradient of shape "
                                f"{np.shape(g)}, but its output has the shape {self.shape}. A gradient always has the "
                                "shape of its tensor: which tensor's did you pass?")
        if len(self.diary) >= ENOUGH_CALLS:
            raise Misconception("never-ends", f"Rules were called {ENOUGH_CALLS:,} times on a small graph. Either the "
                                "walk comes back to tensors that it has done, or it never ends. What leaves your list "
                                "of things to do, and when does it come in again?")
        parts = OPS[self.op][1](g, [x.data for x in self.inputs], self.output)
        arrays = [a for a in (g, *parts) if isinstance(a, np.ndarray)]
        self.diary.append(Call(self, np.array(g, dtype=float), arrays, [a.copy() for a in arrays]))
        return parts


class Value:
    """A tensor of a graph, with what the lesson's Tensor has: data, node, grad."""

    def __init__(self, data: Array, node: Node | None, name: str):
        self.data, self.node, self.name = np.asarray(data, dtype=float), node, name
        self.grad: Array = None


class Graph:
    """Values in the order in which they were made. leaves: arrays by name; ops: (name, op, names of its inputs)."""

    def __init__(self, leaves: dict[str, Any], ops: Sequence[tuple[str, str, str]], moved: tuple[str, Array] = ("", 0)):
        self.leaves, self.ops, self.diary = leaves, ops, []  # type: tuple[Any, Any, list[Call]]
        self.values: dict[str, Value] = {}
        for name, array in leaves.items():
            self.values[name] = Value(array + moved[1] if moved[0] == name else array, None, name)
        for name, op, names in ops:
            inputs = tuple(self.values[n] for n in names.split())
            node = Node(op, inputs, self.diary)
            node.output = OPS[op][0](*(x.data for x in inputs))
            node.shape = np.shape(node.output)
            self.values[name] = Value(node.output + moved[1] if moved[0] == name else node.output, node, name)
        self.root = self.values[name]

    def grad(self, name: str) -> Array:
        return self.values[name].grad

    def calls(self, name: str) -> list[Array]:
        """What the rule that leads back from this value was called with."""
        return [call.given for call in self.diary if call.node is self.values[name].node]

    def reached(self) -> list[str]:
        """The values from which the root was made, with it."""
        found = {self.root.name}
        for name, _, names in reversed(self.ops):
            if name in found:
                found.update(names.split())
        return [name for name in self.values if name in found]

    def numerical(self, name: str, step: float = 1e-5) -> Array:
        """The derivative of the loss by this value, by central differences: the value itself is moved."""
        base = self.values[name].data
        gradient = np.zeros_like(base)
        for i in np.ndindex(base.shape):
            move = np.zeros_like(base)
            move[i] = step
            up, down = (Graph(self.leaves, self.ops, (name, m)).root.data for m in (move, -move))
            gradient[i] = (up - down) / (2 * step)
        return gradient
