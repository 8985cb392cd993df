"""The stepper: a forward and a backward pass, recorded by the engine's own events, and shown step by step.

    stepper = tr.step(lambda: tr.cross_entropy(model(x), y))
    stepper.terminal()                  # in a terminal
    stepper.to_html("backward.html")    # as a page of its own; in a notebook the stepper itself is the page
    stepper.trace                       # as data
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tinyres.files import PathLike, write_atomically
from tinyres.stepper.schema import Check, Trace
from tinyres.stepper.short import number
from tinyres.stepper.trace import Recording, record
from tinyres.tensor import Tensor

VIEWS = ("blocks", "ops")


def step(run: Callable[[], Tensor] | Tensor, title: str = "", details: bool = True,
         names: Mapping[str, Tensor] | None = None) -> Stepper:
    """Record one forward and backward pass, to be gone through step by step.

    run: a function without arguments that returns the loss, one number. It is run here, once and unfused, so that every
    op is to be seen: its gradients equal the fused run's up to rounding. Or a loss that was computed already, whose
    fused ops then stay one step each. details: work out one element of every contribution and check it by a finite
    difference. names: of leaf tensors, where the variables' own are not enough. Gradients, running statistics and the
    random state stay as they are, unless run itself changes them, as by backward(). Raises TypeError if run does not
    give a Tensor of one element, RuntimeError if nothing of it requires a gradient.
    """
    return Stepper(record(run, title=title, details=details, names=names))


class Stepper:
    """A recorded pass and the ways to look at it. `view` is "blocks", a step a layer, or "ops", a step an op."""

    def __init__(self, recording: Recording):
        self.recording = recording

    @property
    def trace(self) -> Trace:
        """The recording as plain data."""
        return self.recording.trace

    def check(self, node: int, index: tuple[int, ...] | None = None, what: str = "loss", slot: int | None = None
              ) -> Check:
        """A finite difference of one element at a node beside its gradient; see Recording.check."""
        return self.recording.check(node, index, what, slot)

    def terminal(self, view: str = "blocks", **options: Any) -> None:
        """Go through the steps by keys; without a terminal, print them all."""
        from tinyres.stepper.terminal import run

        run(self.recording, check_view(view), **options)

    def to_html(self, path: PathLike, view: str = "blocks") -> None:
        """Write the page: one file that needs nothing else, not even a network."""
        from tinyres.stepper.html import page

        write_atomically(path, page(self.recording, view=check_view(view)).encode())

    def to_json(self, path: PathLike) -> None:
        """Write the trace as JSON, in the format that tinyres/stepper/trace.schema.json describes."""
        write_atomically(path, (json.dumps(self.trace.as_dict(), allow_nan=False) + "\n").encode())

    def to_svg(self, path: PathLike, view: str = "blocks") -> None:
        """Draw the graph as SVG."""
        from tinyres.stepper.drawing import svg

        write_atomically(path, svg(self.trace, check_view(view)).encode())

    def to_png(self, path: PathLike, view: str = "blocks") -> None:
        """Draw the graph as PNG, by matplotlib."""
        from tinyres.stepper.drawing import png

        png(self.trace, check_view(view), path)

    def to_dot(self, path: PathLike, view: str = "blocks") -> None:
        """Write the graph for Graphviz."""
        from tinyres.stepper.drawing import dot

        write_atomically(path, dot(self.trace, check_view(view)).encode())

    def _repr_html_(self) -> str:
        from tinyres.stepper.html import iframe, page

        return iframe(page(self.recording))

    def __str__(self) -> str:
        trace = self.trace
        if trace.stopped is not None:
            return f"{trace.title}: the forward pass stopped at {trace.stopped.op}: {trace.stopped.message}"
        forks = [group.fork for group in trace.groups if group.fork is not None and group.fork.residual]
        return (f"{trace.title}: loss {number(trace.loss)}, {len(trace.block_steps)} steps by layer, "
                f"{len(trace.backward)} by op, {len(forks)} residual {'fork' if len(forks) == 1 else 'forks'}; "
                '.terminal() or .to_html("backward.html") shows them')


def check_view(view: str) -> str:
    """The view, or ValueError for one that does not exist."""
    if view not in VIEWS:
        raise ValueError(f"step: view is {view!r}, expected \"blocks\" (a step a layer) or \"ops\" (a step an op)")
    return view
