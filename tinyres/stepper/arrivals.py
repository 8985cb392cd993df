"""What comes to each tensor in the backward pass, and at a fork in what order and with what sum.

A tensor with one consumer gets its gradient from it, and there is nothing to add. At a fork each contribution is copied
as it comes, since the engine may later write the sum into it; when the gradient is whole, the copies tell what share of
it each one is. The same is done for layers: what a layer brings to a tensor is the sum of what its ops bring.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres.graph import Event
from tinyres.kernels.layout import array_module
from tinyres.stepper.observe import Observer
from tinyres.stepper.schema import SHORTCUT, Arrival, Fork, GroupInput, Node, Summary, Trace
from tinyres.stepper.short import number
from tinyres.stepper.summarise import inner, summarise


@dataclass(eq=False)
class _Brought:
    consumer: int
    route: str
    array: Any
    sum: Summary
    cosine: float | None
    own: Summary


class Arrivals:
    """The book of contributions: `brought` when a rule has run, `whole` when a gradient is complete."""

    def __init__(self, trace: Trace, seen: Observer):
        self.trace = trace
        edges = [(node, i, x.source) for node in trace.nodes for i, x in enumerate(node.inputs)
                 if x.source is not None and seen.wants(node.id, i)]
        self.uses = Counter(source for _, _, source in edges)
        self.group_uses = Counter((node.group, source) for node, _, source in edges if node.group is not None)
        self.users: dict[int, set[int]] = {}                     # source -> groups outside its own that use it
        for node, _, source in edges:
            if node.group is not None and node.group != trace.nodes[source].group:
                self.users.setdefault(source, set()).add(node.group)
        self.links: dict[tuple[int, int], GroupInput] = {(group.id, link.source): link for group in trace.groups
                                                         for link in group.inputs}
        self.single: dict[int, tuple[Any, Summary]] = {}
        self.at_node: dict[int, list[_Brought]] = {}
        self.at_group: dict[int, list[_Brought]] = {}
        self.sums: dict[tuple[str, int], Any] = {}
        self.parts: dict[tuple[int, int], tuple[Any, int]] = {}  # (group, source) -> sum so far, how many are to come
        self.alone: set[tuple[int, int]] = set()                 # (group, source): all that comes there is the group's

    def brought(self, node: Node, event: Event) -> None:
        """The rule of `node` has run."""
        for i, g in enumerate(event.contributions):
            link = node.inputs[i]
            if g is None or link.source is None:
                continue
            source = link.source
            link.passed_on = g is event.grad
            assert node.gradient is not None
            link.contribution = node.gradient if link.passed_on else summarise(g)
            self.trace.nodes[source].consumers.append(node.id)
            if self.uses[source] == 1:
                self.single[source] = (g, link.contribution)
            else:
                self._arrive("node", self.at_node, source, node.id, link.route, g, link.contribution)
            if node.group is not None and node.group != self.trace.nodes[source].group:
                several = len(self.users[source]) > 1 or bool(event.node.edges[i].hooks)
                self._for_group(node.group, source, g, link.contribution, link.passed_on, several)

    def _for_group(self, group: int, source: int, g: Any, own: Summary, passed_on: bool, several: bool) -> None:
        link = self.links[group, source]
        if self.group_uses[group, source] == 1:
            link.contribution, link.passed_on = own, passed_on
            if several:
                self._arrive("group", self.at_group, source, group, link.route, g, own)
            return
        if not several:
            self.alone.add((group, source))  # what it brings is the whole gradient, when that is there
            return
        total, missing = self.parts.get((group, source), (None, self.group_uses[group, source]))
        total = g.copy(order="K") if total is None else total + g
        self.parts[group, source] = total, missing - 1
        if missing == 1:
            self._close(group, source)

    def _close(self, group: int, source: int) -> None:
        """The ops of a group have brought what they bring; a rule may give less than its inputs want."""
        link, (total, _) = self.links[group, source], self.parts.pop((group, source))
        link.contribution = summarise(total)
        self._arrive("group", self.at_group, source, group, link.route, total, link.contribution)

    def _arrive(self, level: str, book: dict[int, list[_Brought]], source: int, consumer: int, route: str, g: Any,
                own: Summary) -> None:
        before = self.sums.get((level, source))
        if before is None:
            self.sums[level, source] = total = g.copy(order="K")
            angle, summed = None, own
        else:
            angle = _ratio(inner(g, before), own.norm, book[source][-1].sum.norm)
            own_memory = before is not book[source][0].array and array_module(g) is np
            total = np.add(before, g, out=before) if own_memory else before + g
            self.sums[level, source] = total = array_module(g).asarray(total)  # of 0-d arrays it is a scalar
            summed = summarise(total)
        copy = total if before is None else g.copy(order="K")
        book.setdefault(source, []).append(_Brought(consumer, route, copy, summed, angle, own))

    def whole(self, node: Node, grad: Any, hooked: bool) -> None:
        """The gradient of `node` is complete; hooked: and went through hooks, which may have changed it since."""
        array, known = self.single.pop(node.id, (None, None))
        node.gradient = known if known is not None and array is grad else summarise(grad)
        came = self.sums.get(("node", node.id), array)
        if hooked and came is not None and not array_module(grad).array_equal(came, grad):
            self.trace.notes.append(f"A hook on {node.name} changes its gradient, once that is whole: what goes on "
                                    f"there, of norm {number(node.gradient.norm)}, is not what came, of norm "
                                    f"{number(summarise(came).norm)}.")
        for user in self.users.get(node.id, ()):
            if (user, node.id) in self.parts:
                self._close(user, node.id)
        node.fork = self._fork("node", self.at_node, node.id)
        if node.group is not None:
            group = self.trace.groups[node.group]
            if group.output == node.id:
                group.fork = self._fork("group", self.at_group, node.id)
        else:
            self.at_group.pop(node.id, None)
        for user in self.users.get(node.id, ()):
            if (user, node.id) in self.alone:
                self.links[user, node.id].contribution = node.gradient
        self.sums.pop(("group", node.id), None)

    def _fork(self, level: str, book: dict[int, list[_Brought]], source: int) -> Fork | None:
        """The shares are of what came: a hook may change it before it goes on."""
        parts, whole = book.pop(source, []), self.sums.pop((level, source), None)
        if len(parts) < 2:
            return None
        size = parts[-1].sum.norm
        arrivals = [Arrival(part.consumer, part.route, part.own.norm, part.cosine,
                            _ratio(inner(part.array, whole), size, size), part.sum) for part in parts]
        shares = [a.share for a in arrivals if a.route == SHORTCUT]
        known = [share for share in shares if share is not None]
        return Fork(arrivals, any(a.route for a in arrivals), sum(known) if known and len(known) == len(shares)
                    else None)


def _ratio(product: float, a: float | None, b: float | None) -> float | None:
    """<., .> over the product of two norms; None where it is not defined."""
    if not a or not b or not math.isfinite(product):
        return None
    return product / a / b
