"""Finite differences on demand: the recorded pass is run again, and the step in question looked at more closely.

Of a rule, one run brings back the arrays of that one op. Of the loss, two runs move one element of a node's output, up
and down; where the forward pass allows it they run in float64, all leaves converted for as long as they take.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyres.analysis.untouched import host
from tinyres.stepper import difference
from tinyres.stepper.observe import Observer
from tinyres.stepper.passes import events, forward
from tinyres.stepper.schema import Check, Node
from tinyres.tensor import Tensor

if TYPE_CHECKING:
    from tinyres.stepper.trace import Recording

STEPS = {"float64": 1e-5, "float32": 1e-2}  # relative to the element, or to 1 where that is less
TOLERANCE = {"float64": 1e-5, "float32": 2e-2}


def check_node(recording: Recording, node: int, what: str) -> None:
    """Raise the error for a question that cannot be answered; see Recording.check."""
    nodes = recording.trace.nodes
    if what not in ("rule", "loss"):
        raise ValueError(f'check: what is {what!r}, expected "rule" or "loss"')
    if not 0 <= node < len(nodes):
        raise ValueError(f"check: there is no node {node}, the trace has 0 to {len(nodes) - 1}")
    if nodes[node].step is None:
        raise ValueError(f"check: no gradient came to node {node}, {nodes[node].name}: choose one of trace.backward")
    if what == "rule" and nodes[node].kind != "op":
        raise ValueError(f'check: node {node}, {nodes[node].name}, is no op and has no rule: use what="loss"')
    if isinstance(recording.run, Tensor):
        raise RuntimeError("check: the forward pass cannot be run again, as a loss was given: pass a function, "
                           "tr.step(lambda: ...)")
    users = [node, *(nodes[node].consumers if what == "loss" else ())]
    early = next((nodes[id] for id in users if nodes[id].kind == "op" and nodes[id].value is None), None)
    if early is not None:
        raise RuntimeError(f"check: {early.name} ran before the recording began and cannot be run again: pass a "
                           "function that runs all of it, tr.step(lambda: ...)")


def check_op(recording: Recording, id: int, slot: int | None, index: tuple[int, ...] | None) -> Check:
    """The rule of op `id` for one element of an input."""
    node = recording.trace.nodes[id]
    places = [i for i, link in enumerate(node.inputs) if link.contribution is not None]
    slot = places[0] if slot is None else slot
    if slot not in places:
        raise ValueError(f"check: input {slot} of node {id}, {node.name}, got no gradient; those that did are {places}")
    seen = Observer(recording.names, values=False, hold=2**62, only=id)
    loss = forward(recording.run, seen)
    _check_same(recording, seen)
    function, arrays = seen.calls[id].function, seen.calls[id].arrays
    for event in events(loss, True):
        if event.node is function and event.kind == "done":
            return difference.check_rule(function, slot, list(arrays), event.grad, event.contributions[slot], index)
    raise RuntimeError(f"check: node {id}, {node.name}, was not reached when the pass was run again: the function must "
                       "compute the same every time")


def check_loss(recording: Recording, id: int, index: tuple[int, ...] | None) -> Check:
    """The gradient at node `id` for one element of its output, or of a leaf."""
    node = recording.trace.nodes[id]
    gradient = _gradient(recording, id)
    index = difference.place_of("check", gradient, index)
    dtype, note = "float64", ""
    try:
        with _in_float64(recording):
            sides, step, switched = _slopes(recording, id, index, STEPS[dtype], True)
            exact = float(_gradient(recording, id, True)[index])
    except TypeError:  # an array of its own float32 stands in the way
        dtype = node.dtype
        sides, step, switched = _slopes(recording, id, index, STEPS.get(dtype, 1e-2))
        exact = float(gradient[index])
    numeric, analytic, tolerance = sum(sides) / 2, float(gradient[index]), TOLERANCE.get(dtype, 1e-2)
    element = f"dL/d({node.name})" + (f"[{', '.join(map(str, index))}]" if index else "")
    if not np.isfinite([step, numeric, exact, analytic]).all():
        step, analytic = (v if np.isfinite(v) else 0.0 for v in (step, analytic))
        return Check("loss", element, index, step, 0.0, analytic, 1.0, dtype, False, difference.NOT_FINITE)
    error = _apart(numeric, exact)
    ok = error <= tolerance or abs(numeric - exact) < 1e-9
    if not ok and (_apart(*sides) > tolerance and (min(sides) <= exact <= max(sides)
                                                   or min(_apart(side, exact) for side in sides) <= tolerance)):
        ok, note = True, (f"{switched or 'there is a kink'} between the two points: the slope is {sides[0]:.4g} below "
                          f"and {sides[1]:.4g} above, and the rule may take any between them")
    elif switched:
        note = f"{switched} between the two points, so the difference may be off"
    if dtype != node.dtype:
        note = f"the pass was run in {dtype} for this, where the gradient is {exact:.9g}. {note}".strip()
    return Check("loss", element, index, step, numeric, analytic, error, dtype, bool(ok), note)


def _apart(a: float, b: float) -> float:
    """|a - b| relative to the larger."""
    return abs(a - b) / (max(abs(a), abs(b)) or 1.0)


def _gradient(recording: Recording, id: int, double: bool = False) -> np.ndarray:
    seen = Observer(recording.names, values=False, double=double)
    loss = forward(recording.run, seen)
    _check_same(recording, seen)
    if seen.leaves.get(id) is not recording.leaves.get(id):
        raise RuntimeError(f"check: the function makes {recording.trace.nodes[id].name} anew every time it runs, so "
                           "that it cannot be moved: make it outside of the function")
    for event in events(loss, seen.earlier):
        if event.kind == "ready" and seen.node_of(event.node) == id:
            return host(event.grad).copy()
    raise RuntimeError(f"check: node {id} was not reached when the pass was run again: the function must compute the "
                       "same every time")


@np.errstate(all="ignore")
def _slopes(recording: Recording, id: int, index: tuple[int, ...], relative: float, double: bool = False
            ) -> tuple[tuple[float, float], float, str]:
    """How the loss rises as one element moves, below where it is and above; the step; "a ReLU switches" if one does."""
    masks, size = [], [1.0]

    def push(sign: float) -> float:
        signs: list[Any] = []

        def before(node: Node, result: Tensor) -> None:
            if node.op.startswith("relu"):
                signs.append(hash(host(result.data > 0).tobytes()))
            if node.id == id:
                result.data = result.data.copy(order="K")
                size[0] = max(1.0, abs(float(result.data[index])))
                result.data[index] += sign * relative * size[0]

        seen = Observer(recording.names, values=False, before=before, double=double)
        leaf = recording.leaves.get(id)
        array = None if leaf is None else leaf.data
        if leaf is not None and array is not None:
            leaf.data = array.copy(order="K")
            size[0] = max(1.0, abs(float(array[index])))
            leaf.data[index] += sign * relative * size[0]
        try:
            loss = forward(recording.run, seen, grad_enabled=False)
        finally:
            if leaf is not None:
                leaf.data = array
        masks.append(signs)
        return float(loss.data.item())

    low, base, high = push(-1.0), push(0.0), push(1.0)
    step = relative * size[0]
    return ((base - low) / step, (high - base) / step), step, "a ReLU switches" if masks[0] != masks[2] else ""


@contextlib.contextmanager
def _in_float64(recording: Recording) -> Iterator[None]:
    """Inside, every leaf of the pass is float64."""
    leaves = [(leaf, leaf.data) for leaf in recording.leaves.values() if leaf.data.dtype.kind == "f"]
    try:
        for leaf, array in leaves:
            leaf.data = array.astype("float64")
        yield
    finally:
        for leaf, array in leaves:
            leaf.data = array


def _check_same(recording: Recording, seen: Observer) -> None:
    ops = [[node.op for node in nodes] for nodes in (recording.trace.nodes, seen.nodes)]
    if ops[0] != ops[1]:
        raise RuntimeError(f"check: the pass took another course when it was run again ({len(ops[1])} nodes, before "
                           f"{len(ops[0])}): the function must compute the same every time")
