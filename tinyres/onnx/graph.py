"""The ONNX graph that a traced forward pass becomes, before its nodes have names; the ops' rules fill it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyres.onnx.trace import ExportError, Step, Value
from tinyres.tensor import Function


@dataclass(eq=False)
class Node:
    """A node to be: its inputs are Nodes, Values or None (left out). axes become an input or an attribute, as the
    opset wants it."""

    type: str
    inputs: list[Any]
    attributes: dict[str, Any]
    step: Step
    axes: list[int] | None = None
    name: str = ""


Made = Any  # a Node or a Value
TRANSLATIONS: dict[type[Function], Callable[[Graph, Step], Made]] = {}


@dataclass
class Graph:
    """The nodes of a trace and what became of each Value; filled op by op."""

    nodes: list[Node] = field(default_factory=list)
    made: dict[Value, Made] = field(default_factory=dict)

    def node(self, step: Step, type: str, *inputs: Any, axes: list[int] | None = None, **attributes: Any) -> Node:
        """A new node; the inputs may be Nodes, Values and arrays."""
        given = [Value(x.shape, x.dtype, array=x) if isinstance(x, np.ndarray) else x for x in inputs]
        self.nodes.append(Node(type, given, attributes, step, axes))
        return self.nodes[-1]

    def input(self, step: Step, i: int) -> Made:
        """Input i of a step; a Python number becomes a constant of the output's dtype."""
        x = step.inputs[i]
        if isinstance(x, Value):
            return self.made.get(x, x)
        return None if x is None else Value((), step.output.dtype, array=np.asarray(x, step.output.dtype))

    def inputs(self, step: Step) -> list[Made]:
        """What input 0, 1, ... of a step are in the graph."""
        return [self.input(step, i) for i in range(len(step.inputs))]

    def only(self, step: Step, i: int, *types: str) -> Node | None:
        """The node behind input i, if it is of one of these types and nothing else uses what it gives."""
        x = step.inputs[i]
        node = self.input(step, i)
        alone = isinstance(x, Value) and step.uses.get(x) == 1
        return node if alone and isinstance(node, Node) and node.type in types else None


def translates(*ops: type[Function]) -> Callable:
    """Decorator: this function is the translation of these ops and of their in-place forms."""
    def register(rule: Callable) -> Callable:
        TRANSLATIONS.update(dict.fromkeys(ops, rule))
        return rule
    return register


def refused(step: Step, why: str) -> ExportError:
    """The error for a step that ONNX cannot say, to be raised."""
    return ExportError(f"export_onnx: {step} cannot be written as ONNX: {why}")


def ints(values: Any) -> np.ndarray:
    """Numbers as ONNX wants shapes, axes and pads: int64."""
    return np.asarray(list(values), np.int64)
