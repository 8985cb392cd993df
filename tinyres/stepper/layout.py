"""Where everything of a trace's graph is drawn: the forward flow runs down, a shortcut on a lane beside its branch.

In the block view a box is a group, a layer's call. In the op view it is an op; the ops of one layer are placed among
themselves, and their frame then takes the place that the layer's box has in the block view. Parameters and constants
stand beside what uses them, or above it if several do. Everything is plain data in the units of an SVG; what is drawn
of it is the business of drawing.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tinyres.stepper.cells import Box, Dot, Frame, Layout, Wire, width_of
from tinyres.stepper.parts import PAD, SMALL_KINDS, Cell, Cells, moved
from tinyres.stepper.placement import Edge, Vertex, arrange
from tinyres.stepper.schema import SHORTCUT, BlockSpan, Trace
from tinyres.stepper.wiring import Placement, place, straightened

MARGIN = 18.0  # around the drawing
TURN = 26.0  # below a layer, before a wire turns: a frame's edge lies there

__all__ = ["Layout", "layout"]


def layout(trace: Trace, view: str) -> Layout:
    """The drawing of a trace; view: "blocks" or "ops". Raises ValueError for another one."""
    if view not in ("blocks", "ops"):
        raise ValueError(f"layout: view must be 'blocks' (a box a layer) or 'ops' (a box an op), got {view!r}")
    return _Drawing(trace, view).finished()


class _Drawing:
    def __init__(self, trace: Trace, view: str):
        self.trace, self.view, self.make = trace, view, Cells(trace, view)
        self.boxes: list[Box] = []
        self.wires: list[Wire] = []
        self.frames: list[Frame] = []
        self.dots: list[Dot] = []

    def finished(self) -> Layout:
        """Place the groups and the leaves that several of them use, then shift everything to the margin."""
        trace = self.trace
        loose = [node for node in trace.nodes if node.group is None and node.id in self.make.users
                 and not self.make.beside(node) and not self.make.within(node)]
        place_of: dict[int, int] = {node.id: i for i, node in enumerate(loose)}
        vertices = [Vertex(far=node.kind != "input") for node in loose]
        for group in trace.groups:
            place_of |= dict.fromkeys(group.nodes, len(vertices))
            vertices.append(Vertex(aside=group.lane == SHORTCUT, round=self.make.is_round(group),
                                   far=group.kind in SMALL_KINDS))
        first = len(loose)
        kinds = [self.make.multiple(group) for group in trace.groups]
        edges: list[Edge] = []
        keys: list[tuple[int, list[tuple[int, int, int, str]]]] = []
        for source, uses in self.make.users.items():
            if source not in place_of:
                continue
            bundles: dict[Any, list[tuple[int, int, int, str]]] = {}
            for use in uses:
                if place_of[source] < first + use[0]:  # an edge into its own group is the group's business
                    bundles.setdefault(use[0] if kinds[use[0]] else use, []).append(use)
            for bundle in bundles.values():
                keys.append((source, bundle))
                group = trace.groups[bundle[0][0]]
                edges.append(Edge(place_of[source], first + group.id, any(use[3] == SHORTCUT for use in bundle),
                                  trace.nodes[source].shape == trace.nodes[group.output].shape))
        plan = arrange(vertices, edges)
        cells = [self.make.leaf_cell(node) for node in loose]
        cells += [self.make.cell(group, plan.lanes[first + group.id]) for group in trace.groups]
        for edge, (source, bundle) in zip(edges, keys, strict=True):
            edge.out = cells[edge.source].exit
            if kinds[bundle[0][0]]:
                edge.into = cells[edge.target].entries[source]
        placed = place(plan, [cell.size for cell in cells], 26.0, TURN)
        self._collect(cells, placed, edges, keys)
        self._block_frames(cells, placed, place_of)
        return self._shifted(placed.lanes)

    def _collect(self, cells: list[Cell], placed: Placement, edges: list[Edge],
                 keys: list[tuple[int, list[tuple[int, int, int, str]]]]) -> None:
        for cell, x, y in zip(cells, placed.middle, placed.top, strict=True):
            self.boxes += [replace(box, x=box.x + x, y=box.y + y) for box in cell.boxes]
            self.wires += [replace(wire, points=moved(wire.points, x, y)) for wire in cell.wires]
            self.dots += [replace(dot, x=dot.x + x, y=dot.y + y) for dot in cell.dots]
            if cell.frame is not None:
                self.frames.append(replace(cell.frame, x=cell.frame.x + x, y=y))
        source_at: dict[int, int] = {}
        for edge, (source, bundle), points in zip(edges, keys, placed.wires, strict=True):
            source_at[edge.source] = source
            from_cell, to_cell = cells[edge.source], cells[edge.target]
            before = moved(from_cell.outward, placed.middle[edge.source], placed.top[edge.source])
            node = self.trace.nodes[source]
            id = source if self.make.ops or node.group is None else node.group
            for _, target, slot, route in bundle:
                after = moved(to_cell.inward.get((source, target, slot), []), placed.middle[edge.target],
                               placed.top[edge.target])
                self.wires.append(Wire(id, target, slot, route, node.group is None,
                                       straightened([*before, *points, *after])))
        self.dots += [self.make.dot(source_at[v], x, y) for v, x, y in placed.dots]

    def _block_frames(self, cells: list[Cell], placed: Placement, place_of: dict[int, int]) -> None:
        groups, nodes = self.trace.groups, self.trace.nodes
        fed: set[int] = set()  # what only parameters lead to, as in a block that was left out, stands anywhere
        for group in groups:
            if any(link.group in fed or (link.group is None and nodes[link.source].kind != "parameter")
                   for link in group.inputs):
                fed.add(group.id)
        for number, block in enumerate(self.trace.blocks):
            members = [place_of[groups[g].output] for g in block.groups if g in fed]
            if not members:
                continue
            left = min(placed.middle[v] - cells[v].size.left for v in members)
            right = max(placed.middle[v] + cells[v].size.right for v in members)
            top = min(placed.top[v] for v in members)
            foot = max(placed.top[v] + cells[v].size.height for v in members)
            for wire in self._routes(block):
                inner = [(x, y) for x, y in wire.points if top - TURN <= y <= foot]
                left, right = min([left, *(x for x, _ in inner)]), max([right, *(x for x, _ in inner)])
            fork = place_of.get(block.fork)
            above = [y for v, _, y in placed.dots if v == fork and top - 60 < y < top]
            top = min(above) - 10 if above else top - 20
            spine = 0.0 if left < 0 else right  # the name is written to the left of the wire there
            left = min(left - PAD, spine - width_of(f"{block.name}  {block.type}") - 20)
            self.frames.append(Frame("block", number, block.name, block.type, left, top, right - left + PAD,
                                     foot - top + 6))

    def _routes(self, block: BlockSpan) -> list[Wire]:
        """The wires of a block's shortcut."""
        inside = set(block.groups)
        return [wire for wire in self.wires if wire.route == SHORTCUT
                and (self.trace.nodes[wire.target].group if self.make.ops else wire.target) in inside]

    def _shifted(self, lanes: list[float]) -> Layout:
        xs = [x for box in self.boxes for x in (box.x, box.x + box.width)]
        ys = [y for box in self.boxes for y in (box.y, box.y + box.height)]
        for frame in self.frames:
            xs += [frame.x, frame.x + frame.width]
            ys += [frame.y, frame.y + frame.height]
        for wire in self.wires:
            xs += [x for x, _ in wire.points]
            ys += [y for _, y in wire.points]
        x, y = MARGIN - min(xs, default=0), MARGIN - min(ys, default=0)
        boxes = [replace(box, x=round(box.x + x, 1), y=round(box.y + y, 1)) for box in self.boxes]
        frames = [replace(frame, x=round(frame.x + x, 1), y=round(frame.y + y, 1), width=round(frame.width, 1),
                          height=round(frame.height, 1)) for frame in self.frames]
        frames.sort(key=lambda frame: frame.kind != "block")  # a block's lies below those of its layers
        return Layout(self.view, round(max(xs, default=0) + x + MARGIN, 1), round(max(ys, default=0) + y + MARGIN, 1),
                      boxes, [replace(wire, points=moved(wire.points, x, y)) for wire in self.wires], frames,
                      [replace(dot, x=round(dot.x + x, 1), y=round(dot.y + y, 1)) for dot in self.dots],
                      [round(lane + x, 1) for lane in lanes])
