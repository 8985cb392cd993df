"""A forward pass under an observer, and the walk back from its loss; neither changes what it runs on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tinyres import random
from tinyres.graph import Event, topological_order
from tinyres.state import setting, state
from tinyres.stepper.observe import Observer
from tinyres.tensor import Tensor, walk


def forward(run: Any, seen: Observer, **settings: Any) -> Tensor:
    """Run the callable under an observer; running statistics and the random state are put back, also after an error."""
    if isinstance(run, Tensor):
        return run
    seen.outer = state.debug
    drawn = random.get_state()
    try:
        with setting(**{"debug": seen, "calls": seen, "unfused": True, "grad_enabled": True} | settings):
            return run()
    finally:
        for buffer, array, values in seen.buffers:
            buffer.data = array
            buffer.data[...] = values
        random.set_state(drawn)


def events(loss: Tensor, retain: bool) -> Iterator[Event]:
    """The engine's walk to all leaves; asked for them by name it does not commit their gradients."""
    leaves = {node for node in topological_order([loss.edge]) if isinstance(node, Tensor)}
    return walk([loss], [None], leaves, retain, False)
