"""How a tensor came to its shape: the layers between a fork and a join, and what each did to the shape.

The facts are a list of `Call`s in the order of the forward pass. A route is what of them lies between two tensors; its
`Step`s are layers, or single ops that run outside of layers.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinyres.stepper.schema import BRANCH, SHORTCUT, Node

Shape = tuple[int, ...]

SILENT = ("alias", "channels_last")  # ops that change neither shape nor value
LONG = 8  # steps of a route, beyond which its middle is left out


@dataclass(frozen=True)
class Call:
    """An op that ran, or a tensor that none made, as far as an explanation needs it.

    id; op: "conv2d", "" for a tensor that none made, of which `module` is the name and `module_type` "parameter",
    "input" or "constant"; options: of the op, values or text; inputs: ids of the calls that made them, None for a
    number; shape: of the result; module, module_type: the innermost in which it ran; block: the innermost residual
    block; line: "net.py:12"; lane: "shortcut" for what runs past a block's branch, between its fork and its join.
    """

    id: int
    op: str
    options: Mapping[str, Any]
    inputs: tuple[int | None, ...]
    shape: Shape
    module: str = ""
    module_type: str = ""
    block: str = ""
    line: str = ""
    lane: str = ""


def calls_of(nodes: Iterable[Node], shortcut: Container[int] = ()) -> list[Call]:
    """The calls that a recorder noted as nodes. shortcut: ids of those that ran on a block's shortcut."""
    return [Call(n.id, n.op, n.options, tuple(i.source for i in n.inputs), tuple(n.shape),
                 n.module if n.kind == "op" else n.name, n.module_type if n.kind == "op" else n.kind, n.block, n.line,
                 SHORTCUT if n.id in shortcut else "") for n in nodes]


@dataclass(frozen=True)
class Step:
    """A layer on a route, or an op outside of layers. name: as in the network, without the block's; type: the layer's
    class or the op; before, after: shapes; calls: what ran."""

    name: str
    type: str
    before: Shape
    after: Shape
    calls: tuple[Call, ...]

    def op(self, *names: str) -> Call | None:
        """Its first call of one of these ops."""
        return next((call for call in self.calls if call.op in names), None)


class History:
    """The calls so far, and what depends on what."""

    def __init__(self, calls: Sequence[Call]):
        self.calls = {call.id: call for call in calls}
        paths = {call.module for call in calls if call.op and call.module}
        self.containers = {path[:i] for path in paths for i, letter in enumerate(path) if letter == "."}
        self.containers |= {""} if paths else set()
        self.containers |= {call.block for call in calls if call.block in paths}
        self.carries: set[int] = set()  # made from an input, not from parameters and constants alone
        for call in calls:
            if (not call.op and call.module_type == "input") or any(i in self.carries for i in call.inputs):
                self.carries.add(call.id)

    def ancestors(self, id: int) -> set[int]:
        """All that went into `id`, itself included."""
        found, left = {id}, [id]
        while left:
            call = self.calls.get(left.pop())
            for source in call.inputs if call else ():
                if source is not None and source not in found:
                    found.add(source)
                    left.append(source)
        return found

    def fork(self, sides: Sequence[int]) -> int | None:
        """The last tensor that went into all sides, and was made from an input; None if there is none."""
        common = set.intersection(*(self.ancestors(side) for side in sides)) & self.carries
        return max(common, default=None)

    def origin(self, side: int) -> int | None:
        """The input that went into a side."""
        found = [i for i in self.ancestors(side) if i in self.calls and self.calls[i].module_type == "input"]
        return min(found, default=None)

    def route(self, start: int | None, end: int, prefix: str = "") -> list[Step]:
        """The steps from `start`, not included, to `end`; from an input where there is no start. prefix: the name of
        the block, which the steps' names leave out."""
        start = self.origin(end) if start is None else start
        before = self.ancestors(end)
        behind: set[int] = set() if start is None else {start}
        on_route = []
        for call in self.calls.values():
            if call.id in before and any(i in behind for i in call.inputs):
                behind.add(call.id)
                on_route.append(call)
        groups: list[list[Call]] = []
        for call in on_route:
            if call.op in SILENT:
                continue
            if groups and self._layer(call) and call.module == groups[-1][-1].module:
                groups[-1].append(call)
            else:
                groups.append([call])
        return [self._step(group, behind, prefix) for group in groups]

    def _layer(self, call: Call) -> bool:
        """Whether it ran in a layer: a module without modules."""
        return bool(call.module_type) and call.module not in self.containers

    def named(self, id: int | None) -> str:
        """What made a tensor: a layer, an op outside of layers, or the name of what none made."""
        call = self.calls.get(-1 if id is None else id)
        if call is None:
            return ""
        if not call.op:
            return call.module or call.module_type
        return telling(call.module, call.module_type) if self._layer(call) else call.op

    def _step(self, group: list[Call], behind: set[int], prefix: str) -> Step:
        first, last = group[0], group[-1]
        source = next(i for i in first.inputs if i in behind)
        before = self.calls[source].shape
        layer = self._layer(first)
        name = first.module if layer else first.op
        if layer and prefix and name.startswith(prefix + "."):
            name = name[len(prefix) + 1:]
        name = telling(name, first.module_type) if layer else name
        return Step(name, first.module_type if layer else first.op, before, last.shape,
                    tuple(group))

    def weight(self, call: Call) -> Shape:
        """The shape of a convolution's weight, () where it is not known."""
        source = call.inputs[1] if len(call.inputs) > 1 else None
        return self.calls[source].shape if source in self.calls else ()


# --- windows --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """What a convolution or pooling slides over an image, in (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def words(self) -> str:
        """"3x3, stride 2, padding 1"."""
        text = "x".join(map(str, self.kernel))
        for name, pair, usual in (("stride", self.stride, 1), ("padding", self.padding, 0),
                                  ("dilation", self.dilation, 1)):
            text += "" if pair == (usual, usual) else f", {name} {pair[0] if pair[0] == pair[1] else pair}"
        return text

    def length(self, axis: int, before: int) -> int:
        """How many places it has along an axis of length `before` (Dumoulin and Visin 2016, section 4)."""
        k, s, p, d = (pair[axis] for pair in (self.kernel, self.stride, self.padding, self.dilation))
        return (before + 2 * p - d * (k - 1) - 1) // s + 1

    def formula(self, axis: int, before: int) -> str:
        """"floor((8 + 2·1 - 3) / 2) + 1 = 4"."""
        k, s, p, d = (pair[axis] for pair in (self.kernel, self.stride, self.padding, self.dilation))
        extent = f"{k}" if d == 1 else f"({d}·({k} - 1) + 1)"
        return f"floor(({before} + 2·{p} - {extent}) / {s}) + 1 = {self.length(axis, before)}"

    def padding_that_keeps(self) -> tuple[int, int] | None:
        """The padding with which it keeps the size at stride 1; None for a kernel that has none."""
        extents = [d * (k - 1) for k, d in zip(self.kernel, self.dilation, strict=True)]
        return None if any(e % 2 for e in extents) else (extents[0] // 2, extents[1] // 2)


def window(history: History, step: Step) -> Window | None:
    """The window of a step that has one, as far as it is known."""
    conv, pool = step.op("conv2d"), step.op("avg_pool2d", "max_pool2d")
    call = conv or pool
    if call is None:
        return None
    weight = history.weight(call) if conv else ()
    kernel = weight[2:] if len(weight) == 4 else call.options.get("kernel")
    pairs = [_pair(value) for value in (kernel, call.options.get("stride", kernel), call.options.get("padding", 0),
                                        call.options.get("dilation", 1))]
    return None if any(pair is None for pair in pairs) else Window(*pairs)  # type: ignore[arg-type]


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return None
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    return (int(both[0]), int(both[1])) if len(both) == 2 and all(isinstance(v, int) for v in both) else None


# --- words ----------------------------------------------------------------------------------------------------------


def listed(steps: Sequence[Step]) -> str:
    """"conv1 -> bn1 -> conv2"; of a long route the first and last steps."""
    names = [step.name for step in steps]
    if len(names) > LONG:
        half = LONG // 2
        names = [*names[:half], f"{len(names) - 2 * half} more", *names[-half:]]
    return " -> ".join(names)


def resized(history: History, step: Step) -> str:
    """What a step did to the shape of its input, "" if nothing."""
    before, after = step.before, step.after
    if before == after:
        return ""
    if len(before) != 4 or len(after) != 4:
        return f"{step.name} makes {after} of {before}"
    parts, slid = [], window(history, step)
    if before[1] != after[1]:
        parts.append(f"makes {counted(after[1], 'channel')} of {before[1]}")
    if before[2:] != after[2:]:
        text = f"takes {before[2]}x{before[3]} to {after[2]}x{after[3]}"
        if slid is not None and all(slid.length(axis, before[2 + axis]) == after[2 + axis] for axis in (0, 1)):
            axes = (0,) if before[2] == before[3] and after[2] == after[3] else (0, 1)
            text += ": " + " and ".join(slid.formula(axis, before[2 + axis]) for axis in axes)
        parts.append(text)
    if before[0] != after[0]:
        parts.append(f"makes {counted(after[0], 'image')} of {before[0]}")
    name = f"{step.name} ({slid.words()})" if slid is not None else step.name
    return f"{name} {' and '.join(parts)}"


def telling(name: str, kind: str) -> str:
    """A layer's name; with its class where the name is a mere number, the class alone where there is no name."""
    return f"{kind} {name}" if name.isdigit() else name or kind


def counted(n: int, what: str) -> str:
    """"1 channel", "2 channels"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def total_stride(history: History, steps: Sequence[Step]) -> tuple[int, int] | None:
    """The product of the strides of a route's windows; None where a step resizes images in a way that is not known."""
    product = [1, 1]
    for step in steps:
        if len(step.before) != 4 or len(step.after) != 4 or step.before[2:] == step.after[2:]:
            continue
        slid = window(history, step)
        if slid is None or any(slid.length(axis, step.before[2 + axis]) != step.after[2 + axis] for axis in (0, 1)):
            return None
        product = [p * s for p, s in zip(product, slid.stride, strict=True)]
    return product[0], product[1]


def stride_between(long: Shape, short: Shape) -> int | None:
    """The least stride that takes the pixels of `long` to those of `short`, None if none does."""
    for s in range(1, max(long[2:]) + 1):
        if all(math.ceil(n / s) == m for n, m in zip(long[2:], short[2:], strict=True)):
            return s
    return None


__all__ = ["BRANCH", "SHORTCUT", "Call", "History", "Step", "Window", "calls_of", "counted", "listed", "resized",
           "stride_between", "telling", "total_stride", "window"]
