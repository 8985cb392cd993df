"""The map beside a step: what came, what is next, and the shortcut on a lane of its own.

A line a step. The main way runs down at the left; from a join to the fork where its routes part, a lane runs beside it:

      2  (+)─┐  the join of stages.0.0
      3   o  │  bn2
    > 4   o  │  conv2
      5   o  │  relu1
      9   O──┘  relu
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyres.stepper import words
from tinyres.stepper.lines import STRONG, WEAK, Line, Paper, cells, shortened
from tinyres.stepper.schema import Trace

LANES = 3  # drawn at most side by side; blocks within blocks seldom need more than two
SPACING = 3
CROSSED = {"│": "┼", "┘": "┴", "┐": "┬", "┤": "┼"}  # what a lane's line to the main way makes of another lane
MET = {("┐", "┘"): "┤", ("┘", "┐"): "┤", ("─", "┐"): "┬", ("─", "┘"): "┴"}  # and what a corner makes of what is there


@dataclass(frozen=True)
class Lane:
    """A shortcut that is open from one row to another; it begins at a join, or forward at a fork. end: behind the last
    row where the other end has no step, as a parameter in the block view."""

    start: int
    end: int


def lanes(trace: Trace, view: str, order: list[int]) -> list[Lane]:
    """The shortcuts, as rows of `order`."""
    rows = {id: row for row, id in enumerate(order)}
    pairs = {(span.join, span.fork) for span in trace.blocks if span.join is not None}
    pairs |= {(node.id, node.join.fork) for node in trace.nodes if node.join is not None and node.join.fork is not None}
    found = set()
    for join, fork in pairs:
        steps = (join, fork) if view == "ops" else (trace.nodes[join].group, trace.nodes[fork].group)
        ends = [len(order) if step is None else rows.get(step, len(order)) for step in steps]
        if min(ends) < len(order) and ends[0] != ends[1]:
            found.add((min(ends), max(ends)))
    return [Lane(*ends) for ends in sorted(found)]


def depth(lane: Lane, all_lanes: list[Lane]) -> int:
    """How many lanes that are open where it begins, and began earlier, stand between it and the main way."""
    taken: list[tuple[Lane, int]] = []
    for other in all_lanes:
        used = {place for before, place in taken if before.end > other.start}
        place = next(i for i in range(len(all_lanes)) if i not in used)
        if other == lane:
            return place
        taken.append((other, place))
    return 0


def on_shortcut(trace: Trace, view: str, id: int) -> bool:
    """Whether a step runs on the shortcut of a residual block, as the 1x1 convolution of option B does."""
    group = id if view == "blocks" else trace.nodes[id].group
    return group is not None and trace.groups[group].lane == "shortcut"


def neighbourhood(paper: Paper, trace: Trace, view: str, order: list[int], row: int, before: int = 3,
                  after: int = 3) -> list[Line]:
    """The rows around one, `before` of them and `after`, more at one side where the other has fewer.

    Each has a mark at the current one, its number, the lanes, and what it is.
    """
    count = before + 1 + after
    first = max(0, min(row - before, len(order) - count))
    shown = range(first, min(len(order), first + count))
    all_lanes = lanes(trace, view, order)
    places = {lane: depth(lane, all_lanes) for lane in all_lanes
              if lane.start <= shown[-1] and lane.end >= shown[0]} if shown else {}
    places = {lane: place for lane, place in places.items() if place < LANES}
    columns = max(places.values(), default=-1) + 1
    digits = len(str(len(order)))
    lines: list[Line] = []
    for r in shown:
        id = order[r]
        sign = _sign(trace, view, id)
        if on_shortcut(trace, view, id) and columns:
            lane = max((lane for lane in places if lane.start < r < lane.end), key=lambda a: a.start, default=None)
            drawing = _drawing(r, "│" if lane else sign, places, columns, lane, sign)
        else:
            drawing = _drawing(r, sign, places, columns)
        drawing = paper.text(drawing)
        near = words.block_of(trace, view, order[row])
        head = f"{'>' if r == row else ' '} {r + 1:>{digits}} {drawing}  "
        room = max(8, paper.width - cells(head))
        text = shortened(paper.text(words.label(trace, view, id, near if r != row else "")), room)
        lines.append([(head, STRONG if r == row else WEAK), (text, STRONG if r == row else "" if r > row else WEAK)])
    return lines


def _sign(trace: Trace, view: str, id: int) -> str:
    """(+) a join that adds, [c] one that puts side by side, O a fork, o another step."""
    node = words.node_of(trace, view, id)
    if node.join is not None or view == "blocks" and trace.groups[id].kind == "join":
        return "(+)" if node.join is None or node.join.kind == "addition" else "[c]"
    return " O " if (trace.groups[id] if view == "blocks" else node).fork is not None else " o "


def _drawing(r: int, sign: str, places: dict[Lane, int], columns: int, own: Lane | None = None,
             on_lane: str = "") -> str:
    """The main way and the lanes of one row; own: the lane on which the step stands, with the sign on_lane."""
    row = list(f"{sign:^3}" + " " * (SPACING * columns))
    for lane, place in places.items():
        column = 2 + SPACING * (place + 1)
        if lane.start < r < lane.end:
            row[column] = "│"
            if lane == own:
                row[column] = on_lane.strip() if len(on_lane.strip()) == 1 else "+"
        elif r in (lane.start, lane.end):
            begin = 3 if row[2] == ")" or row[2] == "]" else 2
            for i in range(begin, column):
                row[i] = CROSSED.get(row[i], "─")
            corner = "┐" if r == lane.start else "┘"
            row[column] = MET.get((row[column], corner), corner)
    return "".join(row)
