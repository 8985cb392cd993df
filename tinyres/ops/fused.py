"""Fused ops: several elementary steps in one kernel, forward and backward, for speed.

Each has a `spec`: the same function in a few lines of elementary ops. The spec says what the kernel computes; it is
what `unfused()` runs instead, and what the gradient of a gradient goes through, recomputed from the saved inputs.
"""

from __future__ import annotations

from typing import Any

from tinyres.graph import exhaust
from tinyres.ops.shape import alias
from tinyres.state import setting, state
from tinyres.tensor import Function, Tensor, walk


class Fused(Function):
    """A subclass writes forward, fused_backward and the static `spec(*inputs, **params)`, and saves all its inputs, in
    order, before anything else that it keeps."""

    @staticmethod
    def spec(*inputs: Any, **params: Any) -> Any:
        raise TypeError("a fused op must define spec")

    def fused_backward(self, grad: Any) -> Any:
        raise TypeError(f"{self.name} must define fused_backward(self, grad)")

    @classmethod
    def apply(cls, *inputs: Any, **params: Any) -> Any:
        if not state.unfused:
            return super().apply(*inputs, **params)
        if state.calls is None:
            return cls.spec(*inputs, **params)
        state.calls.enter(cls, inputs)
        return state.calls.leave(cls, cls.spec(*inputs, **params))

    def backward(self, grad: Any) -> Any:
        return self._through_spec(grad) if self.linking else self.fused_backward(grad)

    def _through_spec(self, grad: Tensor) -> Any:
        """The partial derivatives of the spec. The walk stops at an alias of each input, so that an input which depends
        on another one is still held fixed."""
        inputs = self.saved[:len(self.edges)]
        fixed = [alias(x) if isinstance(x, Tensor) else x for x in inputs]
        nodes = [x.node if isinstance(x, Tensor) else None for x in fixed]
        with setting(choices=None):
            out = self.spec(*fixed, **self.params)
        wanted = {node for node, need in zip(nodes, self.needs, strict=True) if need}
        stop = frozenset(node for node in nodes if node is not None)
        found = exhaust(walk([out], [grad], wanted, True, True, stop))
        return tuple(found.get(node) for node in nodes)
