"""Steps by what people call them: by labels, by the names of modules and parameters, by the beginning of one."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tinyres.stepper import words
from tinyres.stepper.schema import Trace

Named = tuple[str, int]  # a name, and the row of its step


def names(trace: Trace, view: str, order: Sequence[int]) -> list[Named]:
    """What the steps of an order are called, each name with the first step that has it: the module's dotted name, in
    the op view the node's own too, and the label, as "the join of layer1.0"."""
    found: dict[str, int] = {}
    for row, id in enumerate(order):
        if view == "ops":
            own = [trace.nodes[id].name, trace.nodes[id].module]
        else:
            own = [trace.groups[id].module]
        for name in (*own, words.label(trace, view, id)):
            if name:
                found.setdefault(name, row)
    return list(found.items())


def fitting(named: Sequence[Named], typed: str) -> list[Named]:
    """Those whose name begins with what was typed, or else those that contain it; small and capital letters alike."""
    typed = typed.strip().lower()
    return ([entry for entry in named if entry[0].lower().startswith(typed)] or
            [entry for entry in named if typed in entry[0].lower()])


def completed(fits: Sequence[Named], typed: str) -> str:
    """What was typed, with as many more signs as all that it fits have in common."""
    common = os.path.commonprefix([name.lower() for name, _ in fits])
    return fits[0][0][:len(common)] if len(common) > len(typed.strip()) else typed
