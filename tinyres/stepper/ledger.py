"""Which arrays are kept for the backward pass, in how many bytes, and when each is let go.

Several ops may keep one array, or views of one: the memory goes when the last of them is done, and counts once. What
parameters and inputs lie in stays anyway and does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres.kernels.layout import array_module
from tinyres.stepper.observe import Observer
from tinyres.stepper.schema import Kept, Trace


@dataclass(frozen=True)
class _Entry:
    name: str
    source: int | None
    shape: tuple[int, ...]
    bytes: int
    memory: int
    stays: bool


class Ledger:
    """Made when the forward pass has ended; `close` writes the books when the backward pass has."""

    def __init__(self, trace: Trace, seen: Observer):
        self.trace = trace
        self.roots: list[Any] = []  # alive, so that no id is used twice
        stays = {id(_root(leaf.data)) for leaf in seen.leaves.values()}
        self.entries: dict[int, list[_Entry]] = {}
        for node in trace.nodes:
            call = seen.calls.get(node.id)
            found = []
            counts = call is not None and seen.tracked(call) and (seen.reached is None or node.id in seen.reached)
            for kept in (call.function._saved or ()) if call is not None and counts else ():
                array = kept.array
                if not hasattr(array, "nbytes") or not hasattr(array, "strides"):
                    continue
                root = _root(array)
                self.roots.append(root)
                source, name = node.id, "output"
                if kept.origin is None:
                    source, name = -1, "constant"
                elif kept.origin >= 0:
                    link = node.inputs[kept.origin]
                    source, name = (-1 if link.source is None else link.source), link.name
                found.append(_Entry(name, None if source < 0 else source, tuple(array.shape), int(root.nbytes),
                                    id(root), id(root) in stays))
            self.entries[node.id] = found
        counted: dict[int, int] = {}
        for entries in self.entries.values():
            counted.update({e.memory: e.bytes for e in entries if not e.stays})
        trace.held = sum(counted.values())
        met: set[int] = set()
        for group in trace.groups:
            for id_ in group.nodes:
                for e in self.entries.get(id_, ()):
                    if not e.stays and e.memory not in met:
                        met.add(e.memory)
                        group.kept += e.bytes
        self.roots = []

    def close(self) -> None:
        """Who was the last to need what, and what the graph holds after each step."""
        last = {e.memory: id_ for id_ in self.trace.backward for e in self.entries[id_]}
        held = self.trace.held
        for id_ in self.trace.backward:
            node, freed = self.trace.nodes[id_], set()
            for e in self.entries[id_]:
                goes = last[e.memory] == id_ and not e.stays
                node.kept.append(Kept(e.name, e.source, e.shape, e.bytes, goes, e.stays))
                if goes and e.memory not in freed:
                    freed.add(e.memory)
                    held -= e.bytes
            node.held = held


def _root(array: Any) -> Any:
    """The array that owns the memory."""
    kind = np.ndarray if array_module(array) is np else type(array)
    while isinstance(getattr(array, "base", None), kind):
        array = array.base
    return array
