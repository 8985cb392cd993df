"""The recorder: one forward and one backward pass of a callable, turned into a Trace.

There is no second engine. The forward pass is the callable's own, run unfused so that every op can be seen, with an
observer at the engine's door; the backward pass is the engine's walk, which yields an event when a gradient is whole
and when a rule has run. The recorder writes down what the events hold. What comes to a fork is copied until the fork's
gradient is whole, as the engine may add into it; everything else is summarised at once and let go.

Recording changes nothing: gradients are not committed, running statistics and the random state are put back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyres import kernels
from tinyres.analysis.norms import finite
from tinyres.graph import Event, topological_order
from tinyres.operands import type_name
from tinyres.ops.fused import Fused
from tinyres.stepper import ledger, rerun, rules, structure
from tinyres.stepper.arrivals import Arrivals
from tinyres.stepper.mismatch import calls_of, explain, suspicious
from tinyres.stepper.observe import Observer
from tinyres.stepper.passes import events, forward
from tinyres.stepper.schema import Check, Node, Trace
from tinyres.stepper.summarise import with_maps
from tinyres.tensor import Tensor

MEMORY = 2**28  # bytes of input arrays that are held for worked elements


def record(run: Callable[[], Tensor] | Tensor, *, title: str = "", details: bool = False, memory: int = MEMORY,
           names: Mapping[str, Tensor] | None = None) -> Recording:
    """Run a forward pass and its backward pass, and write down every step.

    run: a function without arguments that computes a loss, one number, and is run here, unfused; or the loss of a
    forward pass that was run already. details: also work out one element of every contribution and compare it with a
    finite difference; memory: bytes of arrays that may be held for that, beyond which nodes have no details. names: of
    leaf tensors; those that `run` finds in its surroundings have their variables' names without it. A callable may also
    bring `title`, `leaves` (names) and `notes` along, as the examples do.

    A forward pass that stops because shapes do not fit gives a trace with `stopped`. Raises TypeError if run gives no
    Tensor of one element, RuntimeError if nothing of it requires a gradient, and what run itself raises.
    """
    if not isinstance(run, Tensor) and not callable(run):
        raise TypeError(f"step: expected a function that returns the loss, or the loss itself, got {type_name(run)}: "
                        "pass lambda: tr.cross_entropy(model(x), y)")
    seen = Observer(_names(run, names), hold=memory if details else 0)
    title = title or getattr(run, "title", "") or "a backward pass"
    trace = Trace(title, None, "", kernels.current(), True, _versions())
    recording = Recording(trace, run, seen.names, seen.leaves)
    try:
        loss = forward(run, seen)
    except (ValueError, TypeError) as error:
        stopped = explain(error, seen)
        if stopped is None:
            raise
        trace.stopped = stopped
        prepare(trace, seen, None)
        return recording
    _check_loss(loss)
    seen.id_of(loss)  # with a graph of its own, where it was given
    trace.loss, trace.dtype = finite(float(loss.data.item())), str(loss.dtype)
    prepare(trace, seen, loss)
    trace.notes += [*suspicious(calls_of(trace.nodes)), *getattr(run, "notes", ())]
    backward(trace, seen, loss, details)
    return recording


@dataclass(eq=False)
class Recording:
    """A trace, and the means to look closer: the callable that was recorded."""

    trace: Trace
    run: Any = field(repr=False)
    names: dict[int, str] = field(repr=False)
    leaves: dict[int, Tensor] = field(repr=False)

    def check(self, node: int, index: tuple[int, ...] | None = None, what: str = "rule", slot: int | None = None
              ) -> Check:
        """A finite difference beside the analytic value, computed now, in float64 where the forward pass allows it.

        node: an id; what: "rule" moves an element of input `slot` of this op, "loss" one of the node's output; index:
        which element, else the one with the largest gradient. Raises ValueError for a node or element that does not
        exist or has no gradient, RuntimeError where the forward pass cannot be run again.
        """
        rerun.check_node(self, node, what)
        return rerun.check_op(self, node, slot, index) if what == "rule" else rerun.check_loss(self, node, index)


def _names(run: Any, names: Mapping[str, Tensor] | None) -> dict[int, str]:
    """Of the tensors that the callable refers to by variables, and those that were named."""
    found: dict[int, str] = {}
    try:
        variables = inspect.getclosurevars(getattr(run, "run", run))
        around = {**variables.globals, **variables.nonlocals}
    except TypeError:  # no Python function
        around = {}
    for name, value in {**around, **getattr(run, "leaves", {}), **(names or {})}.items():
        if isinstance(value, Tensor):
            found[id(value)] = name
    return found


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"numpy": np.__version__}
    for name in ("tinyres", "numba"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a bare checkout
            pass
    return found


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.data.size != 1:
        got, fix = (f"a Tensor of shape {loss.shape}", "reduce it with sum() or mean()") if isinstance(loss, Tensor) \
            else (type_name(loss), "return the Tensor itself, before item(), float() or numpy() took the number out")
        raise TypeError(f"step: the function must return the loss, a Tensor of one element, got {got}: {fix}")
    if loss.edge is None:
        raise RuntimeError("step: nothing that the loss was computed from requires a gradient: set requires_grad=True "
                           "on a leaf, or pass a network's parameters through it")


def prepare(trace: Trace, seen: Observer, loss: Tensor | None) -> None:
    """Everything that is known before the backward pass begins."""
    trace.nodes = seen.nodes
    if loss is not None:
        seen.reached = {seen.by_edge[id(node)] for node in topological_order([loss.edge])}
    structure.find_joins(seen)
    last = None if loss is None else seen.by_edge[id(loss.edge)]
    trace.groups = structure.find_groups(seen, last)
    trace.blocks = structure.spans(seen, trace.groups)
    for group in trace.groups:
        node, call = trace.nodes[group.output], seen.calls.get(group.output)
        picture = seen.leaf_picture(node.id) if call is None else call.picture
        if node.value is not None and picture is not None:
            node.value = with_maps(node.value, picture)
    for call in seen.calls.values():
        function = call.function
        call.node.fused = isinstance(function, Fused)
        if function is not None and seen.tracked(call):
            shapes = [trace.nodes[x.source].shape if x.source is not None else None for x in call.node.inputs]
            call.node.shapes = rules.with_shapes(function, shapes, call.node.shape)
    fused = sorted({node.op for node in trace.nodes if node.fused})
    if fused:
        trace.unfused = False
        trace.notes.append(f"{', '.join(fused)} ran fused, as one op each, so that what happens inside is not to be "
                           "seen. To see it, let the stepper run the forward pass: tr.step(lambda: ...) with all of it "
                           "in the function.")


def backward(trace: Trace, seen: Observer, loss: Tensor, details: bool) -> None:
    """The backward pass, written down as it goes."""
    books = ledger.Ledger(trace, seen)
    arrivals = Arrivals(trace, seen)
    for event in events(loss, seen.earlier or details):  # what others have made is not freed
        node = trace.nodes[seen.node_of(event.node)]
        if event.kind == "ready":
            node.step = len(trace.backward)
            trace.backward.append(node.id)
            arrivals.whole(node, event.grad, bool(event.node.hooks))
            continue
        arrivals.brought(node, event)
        if details:
            _work_out(node, seen, event)
    for group in sorted(trace.groups, key=lambda group: trace.nodes[group.output].step or 0):
        if trace.nodes[group.output].step is not None:
            group.step = len(trace.block_steps)
            trace.block_steps.append(group.id)
    books.close()


def _work_out(node: Node, seen: Observer, event: Event) -> None:
    """One element of each contribution by hand, and its finite difference, where the input arrays were held."""
    call = seen.calls[node.id]
    if not call.arrays:
        return
    for slot, contribution in enumerate(event.contributions):
        if contribution is None or not contribution.size:
            continue
        worked = rules.worked(event.node, slot, list(call.arrays), call.result, event.grad, contribution)
        if worked is not None:
            node.worked.append(worked)
        node.checks.append(rules.check_rule(event.node, slot, list(call.arrays), event.grad, contribution))
    call.arrays, call.result = (), None

