"""The graph as nodes with edges: in which order to visit them, what a node keeps, what a visit reports.

A node is a Function or a leaf Tensor; `node.edges` leads to the nodes of its inputs (None where no gradient is wanted).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tinyres.kernels.layout import array_module
from tinyres.operands import kind, type_name
from tinyres.state import setting, state


class Node:
    """What the engine notes on a Function when it becomes part of a graph."""

    params: dict[str, Any]    # the op's options
    edges: tuple[Any, ...]    # the node of each input, None where no gradient is wanted
    shape: tuple[int, ...]    # of the output
    dtype: Any
    needs: tuple[bool, ...]   # per input, in this pass
    linking: bool = False     # whether this pass records its rules (create_graph)
    merges: bool = False      # whether the rule can add to what other consumers gave
    into: tuple[Any, ...] = ()  # per input what they gave, in memory that the walk allocated, or None; empty: not here


def topological_order(roots: Sequence[Any], stop: frozenset = frozenset()) -> list[Any]:
    """Every node that `roots` depend on, each after all of its consumers (Kahn 1962), without recursion."""
    consumers = dict.fromkeys(roots, 0)
    found = list(consumers)
    for node in found:
        for edge in () if node in stop else node.edges:
            if edge is not None:
                if edge not in consumers:
                    consumers[edge] = 0
                    found.append(edge)
                consumers[edge] += 1
    order, ready = [], [node for node in found if consumers[node] == 0]
    while ready:
        order.append(node := ready.pop())
        for edge in () if node in stop else node.edges:
            if edge is not None:
                consumers[edge] -= 1
                if consumers[edge] == 0:
                    ready.append(edge)
    return order


def leading_to(wanted: set, order: Sequence[Any], stop: frozenset = frozenset()) -> set:
    """The nodes of `order` from which one of `wanted` can be reached, `wanted` included."""
    leading = set(wanted)
    for node in reversed(order):
        if node not in stop and any(edge in leading for edge in node.edges):
            leading.add(node)
    return leading


def owned(totals: dict, edges: Sequence[Any]) -> tuple[Any, ...]:
    """Per edge the sum of its contributions so far, if it is there in memory that the walk allocated; else None."""
    return tuple(total if ours else None for total, ours in (totals.get(edge, (None, False)) for edge in edges))


@dataclass(eq=False)
class Event:
    """One thing that the backward walk did.

    kind "ready": every consumer of `node` has contributed; `grad` is its whole gradient.
    kind "done":  the node's rule has run; `contributions` holds one gradient (or None) per edge of the node, and `kept`
                  the bytes that the rule needed, released now unless the graph is retained.
    `node` is a Function, or a leaf Tensor (which is never "done"). A contribution may later be added into: copy it if
    you want to keep it. A whole gradient never changes.
    """

    kind: str
    node: Any
    grad: Any
    contributions: tuple[Any, ...] = ()
    kept: int = 0


class Version:
    """How often an array was changed in place, and by whom last. Views of an array share it."""

    __slots__ = ("count", "writer", "viewed")

    def __init__(self) -> None:
        self.count, self.writer, self.viewed = 0, "", False


def share_version(result: Any, sources: Sequence[Any]) -> None:
    """Note that `result` is a view where it lies in the memory of a tensor that it was made from."""
    out = result.data
    if out.base is None and not any(getattr(x, "data", None) is out for x in sources):
        return  # it owns its memory
    xp = array_module(out)
    for x in sources:
        if hasattr(x, "edges") and array_module(x.data) is xp and xp.may_share_memory(out, x.data):
            result.version, result.is_view = x.version, True
            outside = x.is_view and x.edge is None  # a view of detach() or from no_grad() misses no gradient
            result.version.viewed |= state.grad_enabled and not outside


class Saved:
    """An array kept for backward, with where it came from (input i, -1 the output, None a constant) and its version."""

    __slots__ = ("array", "origin", "version", "count", "checksum")

    def __init__(self, array: Any, inputs: Sequence[Any], arrays: Sequence[Any], result: Any):
        self.array, self.origin, self.version = array, None, None
        if array is result.data:
            self.origin, self.version = -1, result.version
        else:
            for i, (x, a) in enumerate(zip(inputs, arrays, strict=True)):
                if array is a and hasattr(x, "edges"):
                    self.origin, self.version = i, x.version
                    break
        self.count = self.version.count if self.version is not None else 0
        if result is inputs[0] and self.version is result.version and self.origin != -1:
            self.count -= 1  # an in-place op that kept what it overwrote
        self.checksum = None if state.debug is None else state.debug.checksum(array)

    def check(self, node: Any) -> None:
        if self.version is not None and self.version.count != self.count:
            raise RuntimeError(f"{node.name} kept an array of shape {self.array.shape} for backward, and "
                               f"{self.version.writer} changed it in place since: use the op without underscore, or "
                               f"call backward() before the change{node.line}")
        if state.debug is not None:
            state.debug.check_saved(node, self)


class Handle:
    """What registering a hook returns: remove() takes the hook off again, once if it was registered twice."""

    def __init__(self, hooks: Any, hook: Callable):
        if not callable(hook):
            raise TypeError(f"register_hook: a hook must be a function, got {type_name(hook)}: pass the function "
                            "itself, without calling it")
        self.hooks, self.hook = hooks, hook
        hooks.append(hook)

    def remove(self) -> None:
        where = next((i for i, hook in enumerate(self.hooks) if hook is self.hook), None)
        if where is not None:
            del self.hooks[where]
        self.hook = None  # type: ignore[assignment]


def hooked(node: Any, hook: Callable, grad: Any, create_graph: bool) -> Any:
    """What `hook` makes of the whole gradient of `node`, a Tensor: an array, or under create_graph a Tensor. Raises
    RuntimeError unless it has the gradient's shape and dtype."""
    with setting(grad_enabled=create_graph, walking=True):
        replaced = hook(grad)
    replaced = grad if replaced is None else replaced
    if getattr(replaced, "shape", None) != grad.shape or replaced.dtype != grad.dtype:
        raise RuntimeError(f"a hook on {getattr(node, 'name', None) or 'a leaf'} returned {kind(replaced)} for a "
                           f"gradient that is {kind(grad)}: return one of that shape and dtype, or None")
    if not hasattr(replaced, "edges"):
        replaced = type(grad)(replaced)
    return replaced if create_graph else replaced.data


def exhaust(steps: Iterator[Event]) -> Any:
    """Run a walk to its end and return what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
