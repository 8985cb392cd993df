"""Wires between boxes that stand in rows and lanes, so that none passes through a box.

A wire runs down in the middle of a lane and moves sideways between two rows only, each source at a height of its own,
as in a channel router (Hashimoto and Stevens 1971): it meets a box only where it ends. A circle may be entered from the
right, where nothing stands between.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from tinyres.stepper.placement import Arrangement

Point = tuple[float, float]

PORT, TRACK, LANE = 12.0, 9.0, 22.0  # between two wires into one box, two heights in a gap, two lanes
OUT, IN = 12.0, 15.0  # straight pieces below a box and above one, where the arrowhead is
CLOSE = 3.0  # wires nearer than this would be seen as one


@dataclass
class Size:
    """Of a vertex: left and right of its middle line, and down. body: half the width of the box that wires enter."""

    left: float
    right: float
    height: float
    body: float


@dataclass
class Placement:
    """middle, top: of each vertex; wires: per edge its corners; dots: (source, x, y) where a wire parts; lanes: x."""

    middle: list[float]
    top: list[float]
    wires: list[list[Point]]
    dots: list[tuple[int, float, float]]
    lanes: list[float]
    height: float


class _Gap:
    """The wires between two rows: from each source to where its edges enter the lower row."""

    def __init__(self) -> None:
        self.start: dict[tuple, float] = {}  # source -> its x
        self.ends: dict[tuple, dict[tuple, float]] = defaultdict(dict)
        self.track: dict[tuple, int] = {}
        self.tracks = 0

    def add(self, source: tuple, x: float, end: tuple, end_x: float) -> None:
        self.start[source] = x
        self.ends[source][end] = end_x

    def route(self) -> None:
        """Give every source that moves sideways a height: no two at one height overlap, and where one wire comes down
        in the column in which another leaves its box, the latter turns first."""
        moving = [s for s in self.start if any(abs(x - self.start[s]) > 0.01 for x in self.ends[s].values())]
        spans = {s: (min(self.start[s], *self.ends[s].values()), max(self.start[s], *self.ends[s].values()))
                 for s in moving}
        above = {s: [other for other in moving if other != s
                     and any(abs(x - self.start[other]) < CLOSE for x in self.ends[s].values())] for s in moving}
        waiting = sorted(moving, key=lambda s: (spans[s][1] - spans[s][0], spans[s]))
        used: list[list[tuple[float, float]]] = []
        while waiting:
            ready = [s for s in waiting if not any(other in waiting for other in above[s])]
            source = (ready or waiting)[0]
            waiting.remove(source)
            low, high = spans[source]
            least = max((self.track[other] + 1 for other in above[source] if other in self.track), default=0)
            track = next(t for t in range(least, len(used) + least + 1)
                         if t >= len(used) or all(high + CLOSE < a or b + CLOSE < low for a, b in used[t]))
            while len(used) <= track:
                used.append([])
            used[track].append((low, high))
            self.track[source] = track
        self.tracks = len(used)


def place(plan: Arrangement, sizes: list[Size], gap: float = 20.0, out: float = OUT) -> Placement:
    """Coordinates of an arrangement whose vertices have these sizes. gap: the least between two rows; out: the straight
    piece below a box from which a wire turns. Lane 0's middle is x = 0, the top y = 0."""
    lanes = _lane_middles(plan, sizes)
    middle = [lanes[lane] for lane in plan.lanes]
    sideways = _side_entries(plan)
    stops = [_stops(plan, e, lanes, middle, e in sideways) for e in range(len(plan.edges))]
    offsets = _entries(plan, sizes, middle, stops, sideways)
    gaps: dict[int, _Gap] = defaultdict(_Gap)
    for e, edge in enumerate(plan.edges):
        for (row, key, x), (_, below, below_x) in zip(stops[e], stops[e][1:], strict=False):
            gaps[row].add(key, x, below, below_x)
        if e not in sideways:
            row, key, x = stops[e][-1]
            gaps[row].add(key, x, ("enters", e), middle[edge.target] + offsets[e])
    count = max(plan.rows, default=-1) + 1
    heights = [0.0] * count
    for v, row in enumerate(plan.rows):
        heights[row] = max(heights[row], sizes[v].height)
    tops, y = [0.0] * count, 0.0
    for row in range(count):
        tops[row] = y
        gaps[row].route()
        y += heights[row] + max(gap, out + TRACK * gaps[row].tracks + IN if gaps[row].tracks else 0.0)
    total = tops[-1] + heights[-1] if count else 0.0
    spare = [heights[row] - sizes[v].height for v, row in enumerate(plan.rows)]
    top = [tops[row] + (spare[v] / 2 if spare[v] < 60 else 0.0) for v, row in enumerate(plan.rows)]

    def level(row: int, key: tuple) -> float:
        return tops[row] + heights[row] + out + TRACK * gaps[row].track.get(key, 0)

    wires = []
    for e, edge in enumerate(plan.edges):
        size, v = sizes[edge.target], edge.target
        points = [(stops[e][0][2], top[edge.source] + sizes[edge.source].height)]
        for (row, key, x), (_, _, below_x) in zip(stops[e], stops[e][1:], strict=False):
            points += [(x, level(row, key)), (below_x, level(row, key))]
        row, key, x = stops[e][-1]
        if e in sideways:
            centre = top[v] + size.height / 2
            points += [(x, centre), (middle[v] + size.body, centre)]
        else:
            offset = offsets[e]
            inset = size.body - math.sqrt(size.body ** 2 - offset ** 2) if plan.vertices[v].round else 0.0
            enters = middle[v] + offset
            points += [(x, level(row, key)), (enters, level(row, key)), (enters, top[v] + inset)]
        wires.append(straightened(points))
    dots = []
    for row in sorted(gaps):
        for key, ends in gaps[row].ends.items():
            source = key[1] if key[0] == "vertex" else key[2]
            xs = sorted({round(x, 2) for x in ends.values()} | {round(gaps[row].start[key], 2)})
            if len(ends) > 1:
                inner = {round(gaps[row].start[key], 2), *xs[1:-1]}
                dots += [(source, x, level(row, key)) for x in sorted(inner)]
    return Placement(middle, top, wires, dots, lanes, total)


def _lane_middles(plan: Arrangement, sizes: list[Size]) -> list[float]:
    count = max([*plan.lanes, *(one.lane for one in plan.run if one)], default=0) + 1
    left, right = [0.0] * count, [0.0] * count
    for v, lane in enumerate(plan.lanes):
        left[lane], right[lane] = max(left[lane], sizes[v].left), max(right[lane], sizes[v].right)
    lanes = [0.0]
    for lane in range(1, count):
        lanes.append(lanes[-1] + right[lane - 1] + LANE + left[lane])
    return lanes


def _side_entries(plan: Arrangement) -> set[int]:
    """The edges that enter a circle from the right: one a circle, and nothing stands between."""
    found: dict[int, int] = {}
    for e, edge in enumerate(plan.edges):
        one, row, lane = plan.run[e], plan.rows[edge.target], plan.lanes[edge.target]
        if plan.vertices[edge.target].round and one and one.lane > lane and one.bottom >= row:
            between = range(lane + 1, one.lane)
            if edge.target not in found and not any(row in plan.taken.get(i, ()) for i in between):
                found[edge.target] = e
    return set(found.values())


def _stops(plan: Arrangement, e: int, lanes: list[float], middle: list[float], sideways: bool
           ) -> list[tuple[int, tuple, float]]:
    """(row, what, x) of where edge e leaves and of the rows that it passes."""
    edge, one = plan.edges[e], plan.run[e]
    row, x = plan.rows[edge.source], middle[edge.source] + edge.out
    stops: list[tuple[int, tuple, float]] = [(row, ("vertex", edge.source, edge.out), x)]
    if one is not None:
        last = plan.rows[edge.target] + sideways
        stops += [(r, ("run", id(one), edge.source), lanes[one.lane]) for r in range(row + 1, last)]
    return stops


def _entries(plan: Arrangement, sizes: list[Size], middle: list[float], stops: list[list[tuple[int, tuple, float]]],
             sideways: set[int]) -> dict[int, float]:
    """Where each edge enters its box, from the middle line: straight from above in the middle, others beside it."""
    arriving: dict[int, list[int]] = defaultdict(list)
    offsets = {}
    for e, edge in enumerate(plan.edges):
        if edge.into is not None:
            offsets[e] = edge.into
        elif e not in sideways:
            arriving[edge.target].append(e)
    for v, several in arriving.items():
        several.sort(key=lambda e: (stops[e][-1][2], e))
        straight = [i for i, e in enumerate(several) if abs(stops[e][-1][2] - middle[v]) < 0.01]
        centre = straight[0] if straight else (len(several) - 1) / 2
        room = sizes[v].body * (0.7 if plan.vertices[v].round else 0.85)
        step = min(PORT, room / max(centre, len(several) - 1 - centre, 1))
        offsets |= {e: (i - centre) * step for i, e in enumerate(several)}
    return offsets


def straightened(points: list[Point]) -> list[Point]:
    """The corners of a line alone: without repeated points, and without those in the middle of a straight piece."""
    kept: list[Point] = []
    for point in points:
        if kept and abs(point[0] - kept[-1][0]) < 0.01 and abs(point[1] - kept[-1][1]) < 0.01:
            continue
        if len(kept) > 1 and any(abs(point[i] - kept[-1][i]) < 0.01 and abs(kept[-1][i] - kept[-2][i]) < 0.01
                                 for i in (0, 1)):
            kept[-1] = point
        else:
            kept.append(point)
    return kept
