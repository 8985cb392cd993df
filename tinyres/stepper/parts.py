"""What takes one place in the stepper's drawing: a box with its parameters beside it, or a layer's ops in a frame."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tinyres.stepper.cells import Box, Dot, Frame, Wire, group_box, leaf_box, op_box, width_of
from tinyres.stepper.placement import Edge, Vertex, arrange
from tinyres.stepper.schema import SHORTCUT, Group, Node, Trace
from tinyres.stepper.wiring import Point, Size, place, straightened

SMALL_KINDS = ("parameter", "constant")  # what stands beside its user
PAD, BESIDE = 12.0, 12.0  # inside a frame, between a box and its parameters
TITLE = 16.0  # height that a frame's name takes
TURN = 12.0  # below a box, before a wire turns


@dataclass
class Cell:
    """What takes one place: a box with the parameters beside it, or the frame of a layer with its ops. Coordinates are
    from the middle line and the top. entries: source node -> x; exit: x; inward: (source, target, slot) -> corners from
    the top; outward: corners down to the foot."""

    boxes: list[Box]
    size: Size
    frame: Frame | None = None
    wires: list[Wire] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    entries: dict[int, float] = field(default_factory=dict)
    exit: float = 0.0
    inward: dict[tuple[int, int, int], list[Point]] = field(default_factory=dict)
    outward: list[Point] = field(default_factory=list)


class Cells:
    """Makes the cells of a view, "blocks" or "ops". users: source node -> (group, target, slot, route) of each use;
    target: a node in the op view, else the group."""

    def __init__(self, trace: Trace, view: str):
        self.trace, self.ops = trace, view == "ops"
        self.users = self._users()

    def _users(self) -> dict[int, list[tuple[int, int, int, str]]]:
        users: dict[int, list[tuple[int, int, int, str]]] = defaultdict(list)
        for group in self.trace.groups:
            if self.ops:
                for id in group.nodes:
                    for slot, x in enumerate(self.trace.nodes[id].inputs):
                        if x.source is not None:
                            users[x.source].append((group.id, id, slot, x.route or self._at_join(id, x.source)))
            else:
                for slot, link in enumerate(group.inputs):
                    route = link.route or self._at_join(group.output, link.source)
                    users[link.source].append((group.id, group.id, slot, route))
        return users

    def _at_join(self, id: int, source: int) -> str:
        """By which route a tensor comes to a join, or that it is on a shortcut; the branch's other wires are plain."""
        node, made = self.trace.nodes[id], self.trace.nodes[source].group
        for slot, route in node.join.routes if node.join is not None else ():
            if node.inputs[slot].source == source:
                return route
        aside = made is not None and self.trace.groups[made].lane == SHORTCUT
        return SHORTCUT if aside and made != node.group else ""

    def beside(self, node: Node) -> bool:
        """Whether a leaf stands beside the one box that uses it once."""
        return node.group is None and node.kind in SMALL_KINDS and len(self.users[node.id]) == 1

    def within(self, node: Node) -> bool:
        """Whether a leaf stands among the ops of one group, several of which use it."""
        return self.ops and node.group is None and node.kind in SMALL_KINDS \
            and len({use[0] for use in self.users[node.id]}) == 1

    def multiple(self, group: Group) -> bool:
        return self.ops and len(group.nodes) > 1

    def is_round(self, group: Group) -> bool:
        node = self.trace.nodes[group.output]
        return not self.multiple(group) and node.join is not None and node.join.kind == "addition" \
            and not self._leaves_beside([group.id if not self.ops else node.id])

    def _leaves_beside(self, targets: Iterable[int]) -> list[Node]:
        wanted = set(targets)
        return [self.trace.nodes[source] for source, uses in self.users.items()
                if uses[0][1] in wanted and self.beside(self.trace.nodes[source])]

    def leaf_cell(self, node: Node) -> Cell:
        box = leaf_box(node, alone=True)
        return Cell([replace(box, x=-box.width / 2)], Size(box.width / 2, box.width / 2, box.height, box.width / 2))

    def cell(self, group: Group, lane: int) -> Cell:
        if self.multiple(group):
            return self._frame_cell(group, lane)
        node = self.trace.nodes[group.output]
        return self._plain_cell(op_box(node) if self.ops else group_box(group, node), lane)

    def _plain_cell(self, box: Box, lane: int) -> Cell:
        """A box on the middle line, with its parameters on the side that faces away from the other lanes."""
        leaves = [leaf_box(node) for node in self._leaves_beside([box.id])]
        stack = sum(leaf.height for leaf in leaves) + 4 * max(len(leaves) - 1, 0)
        height = max(box.height, stack)
        side = -1 if lane == 0 else 1
        half = box.width / 2
        y, reach, boxes, wires = (height - stack) / 2, half, [], []
        for leaf in leaves:
            x = -half - BESIDE - leaf.width if side < 0 else half + BESIDE
            at = y + leaf.height / 2
            slot = self.users[leaf.node][0][2]
            room = box.height / 2 - 5
            enters = height / 2 + max(-room, min(room, at - height / 2))
            points = [(side * (half + BESIDE), at), (side * (half + BESIDE / 2), at),
                      (side * (half + BESIDE / 2), enters), (side * half, enters)]
            boxes.append(replace(leaf, x=x, y=y, lane=lane))
            wires.append(Wire(leaf.node, box.id, slot, "", True, straightened(points)))
            reach = max(reach, half + BESIDE + leaf.width)
            y += leaf.height + 4
        boxes.append(replace(box, x=-half, y=(height - box.height) / 2, lane=lane))
        left, right = (reach, half) if side < 0 else (half, reach)
        return Cell(boxes, Size(left, right, height, half), wires=wires)

    def _frame_cell(self, group: Group, lane: int) -> Cell:
        """The ops of one layer in a frame: wires enter at its top, one a source, and leave at its foot."""
        inside, nodes = set(group.nodes), self.trace.nodes
        sources = [link.source for link in group.inputs if link.source not in inside]
        shared = [s for s in sources if self.within(nodes[s]) and not self.beside(nodes[s])]
        doors = [s for s in sources if s not in shared and not self.beside(nodes[s])]
        leaves = any(use[0] != group.id for use in self.users.get(group.output, ()))
        place_of = {s: i for i, s in enumerate(doors + shared)}
        vertices = [Vertex(first=True) for _ in doors] + [Vertex() for _ in shared]
        for id in group.nodes:
            place_of[id] = len(vertices)
            vertices.append(Vertex())
        edges, keys = [], []
        for id in group.nodes:
            for slot, x in enumerate(nodes[id].inputs):
                if x.source in place_of and place_of[x.source] < place_of[id]:
                    edges.append(Edge(place_of[x.source], place_of[id], alike=nodes[x.source].shape == nodes[id].shape))
                    keys.append((x.source, id, slot, x.route))
        if leaves:
            edges.append(Edge(place_of[group.output], len(vertices)))
            vertices.append(Vertex(last=True))
        plan = arrange(vertices, edges)
        cells = [Cell([], Size(0, 0, 0, 0)) for _ in doors] + [self.leaf_cell(nodes[s]) for s in shared]
        cells += [self._plain_cell(op_box(nodes[id]), plan.lanes[place_of[id]]) for id in group.nodes]
        if leaves:
            cells.append(Cell([], Size(0, 0, 0, 0)))
        placed = place(plan, [cell.size for cell in cells], 18.0, TURN)
        drop = TITLE if doors else TITLE + 4  # wires to the doors are led on through the frame's title
        whole = Cell([], Size(0, 0, 0, 0))
        left, right = -width_of(group.title), 0.0  # the name is written to the left of the wire that enters
        for cell, over, down in zip(cells, placed.middle, placed.top, strict=True):
            whole.boxes += [replace(box, x=box.x + over, y=box.y + down + drop, lane=lane) for box in cell.boxes]
            whole.wires += [replace(wire, points=moved(wire.points, over, down + drop)) for wire in cell.wires]
            left, right = min(left, over - cell.size.left), max(right, over + cell.size.right)
        wires = [moved(points, 0, drop) for points in placed.wires]
        for (source, target, slot, route), points in zip(keys, wires, strict=False):
            if source in doors:
                whole.inward[source, target, slot] = [(points[0][0], 0.0), *points]
            else:
                whole.wires.append(Wire(source, target, slot, route, nodes[source].group is None, points))
        by_place = {p: id for id, p in place_of.items()}
        whole.dots = [self.dot(by_place[p], x, y + drop) for p, x, y in placed.dots]
        whole.entries = {s: placed.middle[place_of[s]] for s in doors}
        for points in wires:
            left, right = min(left, *(x for x, _ in points)), max(right, *(x for x, _ in points))
        height = placed.height + drop + (0 if leaves else PAD)
        if leaves:
            whole.exit = placed.middle[-1]
            whole.outward = wires[-1]
        whole.size = Size(PAD - left, right + PAD, height, right + PAD)
        whole.frame = Frame("group", group.id, group.title, group.type, left - PAD, 0.0, right - left + 2 * PAD, height)
        return whole

    def dot(self, source: int, x: float, y: float) -> Dot:
        node = self.trace.nodes[source]
        group = None if node.group is None else self.trace.groups[node.group]
        fork = node.fork if self.ops or group is None else group.fork
        id = source if self.ops or group is None else group.id
        return Dot(id, x, y, bool(fork and fork.residual), node.group is None)


def moved(points: list[Point], x: float, y: float) -> list[Point]:
    """The points, so much further to the right and down."""
    return [(round(a + x, 1), round(b + y, 1)) for a, b in points]
