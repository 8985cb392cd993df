"""What a drawing of the stepper consists of, and what its boxes say: their texts, outlines, sizes and colours."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, replace
from typing import Any

from tinyres.stepper.schema import SHORTCUT, Group, Node
from tinyres.stepper.wiring import Point, straightened

BOX, PILL, PLUS, BRACKET, LEAF = "box", "pill", "plus", "bracket", "leaf"  # outlines

RADIUS = 13.0  # of a join
LETTER, SMALL = 7.7, 6.1  # widths of a letter of the label and of the detail, a little generous
LONGEST = 24  # letters of a label

LIGHT = {"paper": "#ffffff", "ink": "#1b1f24", "soft": "#5c6470", "line": "#4a5260", "fill": "#f4f6f8",
         "block": "#fafbfc", "edge": "#a9b1bc", "shortcut": "#0072b2", "branch": "#b34700", "parameter": "#eef1ee",
         "loss": "#fdf3dc"}
DARK = {"paper": "#14171b", "ink": "#eceff3", "soft": "#a4adb9", "line": "#b4bcc8", "fill": "#22272e",
        "block": "#1a1e23", "edge": "#59626e", "shortcut": "#56b4e9", "branch": "#f0955a", "parameter": "#232a26",
        "loss": "#332c1b"}


@dataclass(frozen=True)
class Box:
    """What is drawn of a group or a node. id: of the group in the block view, of the node in the op view; node: whose
    value and gradient it stands for; kind: as in schema.py; outline: "box", "pill", "plus", "bracket" or "leaf";
    label, detail: the two texts; full: the whole name; x, y: of the corner at the top left; lane. leaf: it belongs to
    no group, a parameter, an input or a constant; in the block view it is no step then, and its id that of its node."""

    id: int
    node: int
    kind: str
    outline: str
    label: str
    detail: str
    full: str
    x: float
    y: float
    width: float
    height: float
    lane: int = 0
    leaf: bool = False


@dataclass(frozen=True)
class Wire:
    """From the box `source` to the box `target`, ids of the view. leaf: source is a parameter, an input or a constant,
    and its id that of a node; slot: which input of the target; route: "shortcut", "branch" or ""; points: corners."""

    source: int
    target: int
    slot: int
    route: str
    leaf: bool
    points: list[Point]


@dataclass(frozen=True)
class Frame:
    """Around a residual block ("block"), or around the ops of one layer ("group", whose id is `id`)."""

    kind: str
    id: int
    label: str
    type: str
    x: float
    y: float
    width: float
    height: float

    @property
    def text(self) -> str:
        """What is written in its corner."""
        return self.label if self.kind == "group" or self.label == self.type else f"{self.label}  {self.type}"


@dataclass(frozen=True)
class Dot:
    """Where the wires of `source` part; residual: they are shortcut and branch of a residual block."""

    source: int
    x: float
    y: float
    residual: bool
    leaf: bool


@dataclass(frozen=True)
class Layout:
    """Of one view. lanes: the x of each lane's middle, the spine's first; width, height: of the whole drawing."""

    view: str
    width: float
    height: float
    boxes: list[Box]
    wires: list[Wire]
    frames: list[Frame]
    dots: list[Dot]
    lanes: list[float]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return asdict(self)

    def thin(self, wire: Wire) -> bool:
        """Whether a wire only brings a parameter or a constant."""
        return not wire.route and (wire.source, wire.leaf) in self._small

    @functools.cached_property
    def _small(self) -> set[tuple[int, bool]]:
        return {(box.id, box.leaf) for box in self.boxes if box.kind in ("parameter", "constant")}

    def parted(self) -> tuple[dict[int, list[Point]], list[Wire]]:
        """The wires to draw, routes above others. Routes that part at a dot begin there, and a stub leads to it from
        the box, by its id."""
        dots = {(dot.source, dot.leaf, dot.x): dot.y for dot in reversed(self.dots)}
        stubs, wires = {}, []
        for wire in sorted(self.wires, key=lambda wire: (not wire.leaf, bool(wire.route), wire.route == SHORTCUT)):
            (x, y), *rest = wire.points
            parting = dots.get((wire.source, wire.leaf, x))
            if wire.route and parting is not None and y < parting <= rest[0][1] + 0.1:
                stubs[wire.source] = [(x, y), (x, parting)]
                wire = replace(wire, points=straightened([(x, parting), *rest]))
            wires.append(wire)
        return stubs, wires


def group_box(group: Group, node: Node) -> Box:
    """The box of a layer; node: its output."""
    full = " ".join(filter(None, [group.module or group.title, group.type and f"({group.type})"]))
    return _box(group.id, node, group.kind, group.title, full)


def op_box(node: Node) -> Box:
    """The box of an op; a number that it takes is written after its name."""
    numbers = [x.text for x in node.inputs if x.source is None and 0 < len(x.text) <= 10 and x.text != "None"]
    return _box(node.id, node, "op", " ".join([node.op, *numbers[:1]]), node.name)


def _box(id: int, node: Node, kind: str, label: str, full: str) -> Box:
    detail = by(node.shape)
    if node.kind != "op":  # a parameter that several groups use is a group of its own
        return replace(leaf_box(node, alone=True), id=id, leaf=False)
    if node.join is not None and node.join.kind == "addition":
        return Box(id, node.id, kind, PLUS, "+", detail, full, 0, 0, 2 * RADIUS, 2 * RADIUS)
    label = shortened(label)
    if node.join is not None:
        width = max(76.0, LETTER * len(label) + 26, SMALL * len(detail) + 26)
        return Box(id, node.id, kind, BRACKET, label, detail, full, 0, 0, width, 36)
    if kind == "activation" or node.op in ("relu", "relu_inplace"):
        return Box(id, node.id, kind, PILL, label, "", full, 0, 0, max(64.0, LETTER * len(label) + 28), 24)
    width = max(92.0, LETTER * len(label) + 20, SMALL * len(detail) + 20)
    return Box(id, node.id, kind, BOX, label, detail, full, 0, 0, round(width), 40)


def leaf_box(node: Node, alone: bool = False) -> Box:
    """The small box of a parameter, an input or a constant; alone: it stands in a row and not beside its user."""
    label = shortened(node.name if alone or node.kind != "parameter" else node.name.rpartition(".")[2])
    detail = by(node.shape)
    width = SMALL * (len(label) + len(detail) + 1) + 16
    return Box(node.id, node.id, node.kind, LEAF, label, detail, node.name, 0, 0, round(width), 18,
               leaf=True)


def by(shape: tuple[int, ...]) -> str:
    """A shape as it is written in a box: "2×16×8×8"; of a number "number"."""
    return "×".join(map(str, shape)) if shape else "number"


def shortened(text: str) -> str:
    """A long name without its middle."""
    return text if len(text) <= LONGEST else f"{text[:9]}…{text[-(LONGEST - 10):]}"


def width_of(label: str) -> float:
    """About how wide a label in bold is."""
    return LETTER * len(label)
