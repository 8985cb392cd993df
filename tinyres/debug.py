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

from tinyres.graph import exhaust
from tinyres.kernels.layout import array_module
from tinyres.state import setting, state
from tinyres.tensor import Tensor, walk

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_KERNELS = os.path.realpath(os.path.join(_PACKAGE, "kernels"))
_OURS = (_PACKAGE + os.sep, _KERNELS + os.sep)
_last: _Observer | None = None


class debug(setting):
    """Watch every op inside the block. With raise_on_nan=False a NaN or Inf is only recorded for `why`.

    Raises FloatingPointError naming the op and line that made the first NaN or Inf, and RuntimeError naming the op
    whose kept array was overwritten.
    """

    def __init__(self, raise_on_nan: bool = True):
        super().__init__(debug=_Observer(raise_on_nan))

    def __enter__(self) -> None:
        global _last
        _last = self.values["debug"]
        super().__enter__()


class _Observer:
    """What the engine calls while debug() is on. It keeps no results: it knows a tensor by its edge, the node that made
    it or the leaf itself, and outside the graph by its version."""

    def __init__(self, raise_on_nan: bool):
        self.raise_on_nan = raise_on_nan
        self._reset()

    def _reset(self) -> None:
        self.calls: list[tuple[str, list[Any], Any, bool]] = []   # forward: op and line, inputs, result, is it tracked
        self.order: Any = None                                    # backward: which pass
        self.again = False                                        # whether that pass can be differentiated again
        self.arrivals: dict[Any, str] = {}                        # node -> verdict on its whole gradient
        self.received: dict[Any, list[tuple[Any, str]]] = {}      # edge -> (consumer, verdict) pairs
        self.first_bad = ""

    def forward(self, node: Any, inputs: Any, edges: Any, result: Tensor) -> None:
        if self.arrivals and not self.again and not state.walking:  # the step after the one that was watched
            self._reset()
        node.line = _user_line()
        sources = [x.version if e is None else e for x, e in zip(inputs, edges, strict=True) if isinstance(x, Tensor)]
        self.calls.append((node.name + node.line, sources, _key(result), result.requires_grad))
        arrays = [_array(x) for x in inputs]
        if state.walking or _verdict(result.data) != "NaN" or any(_verdict(a) == "NaN" for a in arrays):
            return  # within a rule it is `backward` that finds it
        self._bad(f"{node.name} made the first {_which(result.data)} of the forward pass{node.line}: input "
                  f"{', '.join(_range(a) for a in arrays if hasattr(a, 'shape'))}")

    def cut(self, name: str, source: Tensor, result: Tensor) -> None:
        self.calls.append((name + _user_line(), [_key(source)], _key(result), False))

    def arrived(self, order: Any, node: Any, grad: Any) -> None:
        if state.walking:  # a pass within a rule or a hook
            return
        if order is not self.order:
            self.order, self.again, self.arrivals, self.received = order, isinstance(grad, Tensor), {}, {}
        self.arrivals[node] = _verdict(_array(grad))

    def backward(self, node: Any, grad: Any, grads: Any) -> None:
        for edge, g in zip(node.edges, grads, strict=True):
            if g is None or state.walking:
                continue
            verdict = _verdict(_array(g))
            self.received.setdefault(edge, []).append((node, verdict))
            if verdict == "NaN" and self.arrivals[node] != "NaN":
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
        order = np.argsort([-s for s in array.strides], kind="stable")  # memory order: no copy for channels-last
        ordered = array.transpose(tuple(int(axis) for axis in order))
        host = ordered if isinstance(array, np.ndarray) else ordered.get()
        return zlib.crc32(np.ascontiguousarray(host).data)

    def check_saved(self, node: Any, kept: Any) -> None:
        if kept.checksum is not None and kept.checksum != self.checksum(kept.array):
            raise RuntimeError(f"{node.name} kept an array of shape {kept.array.shape} for backward, and something "
                               f"wrote into its memory since (a raw write into .data or a NumPy view){node.line}")


def why(parameter: Tensor, run: Callable[[], Tensor] | None = None) -> str:
    """Say in a sentence what became of `parameter`'s gradient, naming the op at which it became None, zero or NaN.

    Needs a forward and backward pass inside `with tr.debug():`, the last of which it reads; or pass `run`, a function
    that returns the loss, and it makes that pass itself, leaving every `.grad` as it was. Without either it says only
    what the gradient is.
    """
    if not isinstance(parameter, Tensor):
        raise TypeError(f"why: expected a Tensor, got {type(parameter).__name__}: pass model.fc.weight, for example")
    name = getattr(parameter, "name", "") or f"tensor of shape {parameter.shape}"
    if not parameter.requires_grad:
        return f"{name}: no gradient, because requires_grad is False (frozen)."
    if run is not None:
        return f"{name}: {_watch(parameter, run)}"
    seen = _last
    missed = seen is None or not seen.calls or parameter.edge not in seen.arrivals
    if seen is None or not seen.calls or (missed and parameter.grad is not None and not seen.first_bad):
        found = "None" if parameter.grad is None else {"NaN": "NaN or Inf", "ok": "neither None, zero nor NaN"}.get(
            _verdict(parameter.grad.data), "zero")
        hint = "" if found.startswith("neither") else " Run the step inside `with tr.debug():` to learn at which op."
        return f"{name}: the gradient is {found}.{hint}"
    return f"{name}: {_explain(seen, parameter.edge, list(seen.arrivals))}"


def _watch(parameter: Tensor, run: Callable[[], Tensor]) -> str:
    seen = _Observer(raise_on_nan=False)
    with setting(debug=seen, grad_enabled=True):
        loss = run()
        if loss.edge is not None:
            exhaust(walk([loss], [None], {parameter.edge}, False, False))
    return _explain(seen, parameter.edge, [_key(loss)])


def _explain(seen: _Observer, edge: Any, ends: list[Any]) -> str:
    """`ends`: keys of the loss, or of all that the backward pass visited."""
    if edge not in seen.arrivals:
        if seen.first_bad and seen.raise_on_nan:
            return f"the pass stopped before it got there: {seen.first_bad}."
        return _explain_none(seen, edge, ends)
    verdict = seen.arrivals[edge]
    if verdict == "ok":
        names = ", ".join(node.name for node, _ in seen.received.get(edge, []))
        return f"the gradient arrived and is neither zero nor NaN; it came from {names or 'backward() itself'}."
    first = f" Before that, {seen.first_bad}." if verdict == "NaN" and "forward" in seen.first_bad else ""
    return _trace(seen, edge, verdict) + first


def _trace(seen: _Observer, edge: Any, verdict: str) -> str:
    """From the parameter up to where the gradient went bad."""
    words = {"NaN": "NaN or Inf", "zero": "zero"}[verdict]
    at = edge
    while seen.received.get(at):
        where = "" if at is edge else f" at the output of {at.name}{at.line}"
        alike = [node for node, v in seen.received[at] if v == verdict]
        if len(alike) < (len(seen.received[at]) if verdict == "zero" else 1):  # the parts are good, their sum is not
            if at.hooks:
                return f"the gradient became {words} in a hook{where}."
            names = ", ".join(node.name for node, _ in seen.received[at])
            how = "cancel" if verdict == "zero" else f"add up to {words}"
            return f"the gradient is {words} because the contributions of {names} {how}{where}."
        at = alike[0]
        if seen.arrivals[at] != verdict:
            return f"the gradient became {words} at {at.name}{at.line}, whose upstream gradient was good."
    return f"the gradient was {words} from the start: the tensor that backward() was called on got it."


def _explain_none(seen: _Observer, edge: Any, ends: list[Any]) -> str:
    carries, last = {edge: ""}, ""  # what was computed from it -> "", or the op that cut the gradient off
    for where, sources, result, tracked in seen.calls:
        found = [carries[key] for key in sources if key in carries]
        if "" in found:
            last = where
            carries[result] = "" if tracked else where
        elif found:
            carries[result] = found[0]
    cuts = [carries[key] for key in ends or carries if carries.get(key)]
    if cuts:
        return (f"the gradient is None because it was cut at {cuts[0]}: its result does not require a gradient "
                "(detach, no_grad, or an op without derivative).")
    for node in seen.arrivals:
        for e, needed in zip(node.edges, getattr(node, "needs", ()), strict=False):
            if needed and e not in seen.arrivals and carries.get(e) == "":
                return f"the gradient is None because the rule of {node.name}{node.line} gave none."
    if any(carries.get(key) == "" for key in ends):
        return "the gradient is None because the last pass did not ask for it: it was a tr.grad() for other inputs."
    if not last:
        return "the gradient is None because no op of the last pass used it."
    return (f"the gradient is None because what was computed from it, last by {last}, does not lead to the tensor that "
            "backward() was called on (its result was dropped, or went on through argmax, a comparison, .data, numpy() "
            "or item()).")


def _key(x: Tensor) -> Any:
    edge = x.edge
    return x.version if edge is None else edge


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
        if not path.startswith(_OURS):
            return f" (called at {path}:{frame.f_lineno})"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
