"""Finding out where it went wrong: `debug()` watches every op, `why(parameter)` says what became of a gradient.

Inside `with tr.debug():` each op notes the line that called it; the op that makes the first NaN or Inf, forward or
backward, is named; arrays kept for backward carry a checksum, so that a raw write into `.data` is found. Slow: it looks
at every array. Outside, nothing of this costs anything.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres.kernels.layout import array_module
from tinyres.state import setting
from tinyres.tensor import Tensor, reached_leaves

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_KERNELS = os.path.realpath(os.path.join(_PACKAGE, "kernels"))
_last: _Observer | None = None


class debug(setting):
    """Watch every op inside the block. With raise_on_nan=False a NaN or Inf is only recorded for `why`.

    Raises FloatingPointError naming the op and line that made the first NaN or Inf, and RuntimeError naming the op whose
    kept array was overwritten.
    """

    def __init__(self, raise_on_nan: bool = True):
        global _last
        _last = _Observer(raise_on_nan)
        super().__init__(debug=_last)


class _Observer:
    """What the engine calls while debug() is on."""

    def __init__(self, raise_on_nan: bool):
        self.raise_on_nan = raise_on_nan
        self.stale = False
        self._reset()

    def _reset(self) -> None:
        self.calls: list[tuple[str, str, list[Tensor], Tensor]] = []         # forward: op, line, inputs, result
        self.upstream: dict[Any, str] = {}                                   # backward: node -> verdict on its gradient
        self.received: dict[Any, list[tuple[Any, str]]] = {}                 # edge -> (consumer, verdict) pairs
        self.first_bad = ""

    def forward(self, node: Any, inputs: Any, edges: Any, result: Tensor) -> None:
        if self.stale:
            self._reset()
            self.stale = False
        node.line = _user_line()
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        self.calls.append((node.name, node.line, tensors, result))
        arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
        if _verdict(result.data) == "NaN" and not any(_verdict(a) == "NaN" for a in arrays):
            self._bad(f"{node.name} made the first {_which(result.data)} of the forward pass{node.line}: input "
                      f"{', '.join(_range(a) for a in arrays if hasattr(a, 'shape'))}")

    def cut(self, name: str, source: Tensor, result: Tensor) -> None:
        self.calls.append((name, _user_line(), [source], result))

    def backward(self, node: Any, grad: Any, grads: Any) -> None:
        self.stale = True
        self.upstream[node] = _verdict(_array(grad))
        for edge, g in zip(node.edges, grads, strict=True):
            if g is None:
                continue
            verdict = _verdict(_array(g))
            self.received.setdefault(edge, []).append((node, verdict))
            if verdict == "NaN" and self.upstream[node] != "NaN":
                self._bad(f"{node.name} made the first {_which(_array(g))} of the backward pass{node.line}: upstream "
                          f"gradient {_range(_array(grad))}")

    def _bad(self, message: str) -> None:
        self.first_bad = self.first_bad or message
        if self.raise_on_nan:
            raise FloatingPointError(message)

    @staticmethod
    def checksum(array: Any) -> int | None:
        if not hasattr(array, "dtype"):
            return None
        host = array if isinstance(array, np.ndarray) else array.get()
        order = np.argsort([-s for s in host.strides], kind="stable")  # memory order: no copy for channels-last
        return zlib.crc32(np.ascontiguousarray(host.transpose(order)))

    def check_saved(self, node: Any, kept: Any) -> None:
        if kept.checksum is not None and kept.checksum != self.checksum(kept.array):
            raise RuntimeError(f"{node.name} kept an array of shape {kept.array.shape} for backward, and something wrote "
                               f"into its memory since (a raw write into .data or a NumPy view){node.line}")


def why(parameter: Tensor, run: Callable[[], Tensor] | None = None) -> str:
    """Say in a sentence what became of `parameter`'s gradient, naming the op at which it became None, zero or NaN.

    Needs a forward and backward pass inside `with tr.debug():`, the last of which it reads; or pass `run`, a function
    that returns the loss, and it makes that pass itself, leaving every `.grad` as it was. Without either it says only
    what the gradient is.
    """
    if run is not None:
        return _run_and_explain(parameter, run)
    name = getattr(parameter, "name", "") or f"tensor of shape {parameter.shape}"
    if not parameter.requires_grad:
        return f"{name}: no gradient, because requires_grad is False (frozen)."
    if _last is None or not _last.calls:
        found = "None" if parameter.grad is None else {"NaN": "NaN or Inf", "ok": "neither None, zero nor NaN"}.get(
            _verdict(parameter.grad.data), "zero")
        hint = "" if found.startswith("neither") else " Run the step inside `with tr.debug():` to learn at which op."
        return f"{name}: the gradient is {found}.{hint}"
    return f"{name}: {_explain(_last, parameter.edge, parameter)}"


def _run_and_explain(parameter: Tensor, run: Callable[[], Tensor]) -> str:
    before = dict(reached_leaves)
    grads = {key: leaf.grad for key, leaf in before.items()}
    own = parameter.grad
    with debug(raise_on_nan=False):
        run().backward()
    answer = why(parameter)
    for key, leaf in dict(reached_leaves).items():
        leaf.grad = grads.get(key)
    parameter.grad = own
    return answer


def _explain(seen: _Observer, edge: Any, parameter: Tensor) -> str:
    arrived = seen.received.get(edge, [])
    if not arrived and seen.first_bad and seen.raise_on_nan:
        return f"the pass stopped before it got there: {seen.first_bad}."
    if not arrived:
        return _explain_none(seen, parameter)
    for kind, words in (("NaN", "became NaN or Inf"), ("zero", "became zero")):
        bad = [node for node, verdict in arrived if verdict == kind]
        if bad and (kind == "NaN" or len(bad) == len(arrived)):
            node = bad[0]
            while seen.upstream.get(node) == kind:  # the culprit is the op that got a good gradient and gave a bad one
                above = [n for n, verdict in seen.received.get(node, []) if verdict == kind]
                if not above:
                    return f"the gradient was {kind} from the start: the tensor that backward() was called on got it."
                node = above[0]
            return f"the gradient {words} at {node.name}{node.line}, whose upstream gradient was good."
    total = _verdict(parameter.grad.data) if parameter.grad is not None else "ok"
    if total == "zero":
        names = ", ".join(node.name for node, _ in arrived)
        return f"the gradient is zero because the contributions of {names} cancel."
    return f"the gradient arrived and is neither zero nor NaN; it came from {', '.join(n.name for n, _ in arrived)}."


def _explain_none(seen: _Observer, parameter: Tensor) -> str:
    reached = {id(parameter): True}
    last = ""
    for name, line, inputs, result in seen.calls:
        if not any(reached.get(id(x)) for x in inputs):
            continue
        if not result.requires_grad:
            return (f"the gradient is None because it was cut at {name}{line}: its result does not require a gradient "
                    "(detach, no_grad, or an op without derivative).")
        reached[id(result)] = True
        last = f"{name}{line}"
    if not last:
        return "the gradient is None because no op of the last pass used it."
    return (f"the gradient is None because what was computed from it, last by {last}, does not lead to the tensor that "
            "backward() was called on (its result was dropped, or went on through .data, numpy() or item()).")


def _array(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x


def _verdict(array: Any) -> str:
    """"NaN" if any element is NaN or Inf, "zero" if all are 0, else "ok"."""
    if getattr(getattr(array, "dtype", None), "kind", "") != "f":
        return "ok"
    if not bool(array_module(array).isfinite(array).all()):
        return "NaN"
    return "ok" if bool(array.any()) else "zero"


def _which(array: Any) -> str:
    return "NaN" if bool(array_module(array).isnan(array).any()) else "Inf"


def _range(array: Any) -> str:
    if not array.size or array.dtype.kind not in "fiu":
        return f"{array.dtype} {array.shape}"
    return f"{array.shape} from {float(array.min()):.3g} to {float(array.max()):.3g}"


def _user_line() -> str:
    """Where the innermost frame outside this package stands."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((_PACKAGE, _KERNELS)):
            return f" (called at {path}:{frame.f_lineno})"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
