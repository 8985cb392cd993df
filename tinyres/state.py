"""The few switches of the engine: whether ops record, whether fused ops run as their parts, who watches."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any


class _State(threading.local):
    grad_enabled = True  # no_grad() switches recording off
    walking = False      # a backward walk runs a rule, a hook, or a sum of contributions
    unfused = False      # unfused() runs the spec of every fused op
    choices: Any = None  # gradcheck's tape of ReLU masks and pooling indices
    debug: Any = None    # the observer that debug() installs
    calls: Any = None    # the stepper's, told when a module or the spec of a fused op begins and ends


state = _State()


class setting:
    """Set switches inside a `with` block or a decorated function, and restore them after it, for this thread alone."""

    def __init__(self, **values: Any):
        self.values = values
        self.before: list[dict[str, Any]] = []

    def __enter__(self) -> None:
        self.before.append({name: getattr(state, name) for name in self.values})
        vars(state).update(self.values)

    def __exit__(self, *exc: object) -> None:
        vars(state).update(self.before.pop())

    def __call__(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            own = copy.copy(self)
            own.before = []  # two threads may be inside at once
            with own:
                return function(*args, **kwargs)
        return inside


class no_grad(setting):
    """Record nothing inside: results do not require gradients, and leaves may be changed in place."""

    def __init__(self) -> None:
        super().__init__(grad_enabled=False)


class enable_grad(setting):
    """Record inside, also within no_grad()."""

    def __init__(self) -> None:
        super().__init__(grad_enabled=True)


class unfused(setting):
    """Run every fused op (batch norm with addition and ReLU, cross-entropy) as its elementary parts, which can be seen
    one by one in the graph. Slower; equal to the fused kernels up to rounding."""

    def __init__(self) -> None:
        super().__init__(unfused=True)


def is_grad_enabled() -> bool:
    """Whether ops record at the moment."""
    return state.grad_enabled
