"""Rows and lanes of a graph that is drawn downwards.

A vertex stands in a row (its longest path from the start; what only feeds another vertex stands just above that) and in
a lane. Lane 0 is the spine: from the end back to where the tensor came from that kept its shape, off the shortcuts. All
other chains, and edges that pass rows, get the first lane to its right that is free in all rows they need, short ones
first, so that routes nest and a shortcut is outermost; what is calculated from parameters alone stands outside of that.
Rows and lanes are an idea of Sugiyama, Tagawa and Toda (1981), "Methods for visual understanding of hierarchical system
structures".
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Vertex:
    """aside: it runs on a shortcut; far: its lane is to the right of all others; round: a circle, which a wire may
    enter from the side; first, last: the row."""

    aside: bool = False
    far: bool = False
    round: bool = False
    first: bool = False
    last: bool = False


@dataclass
class Edge:
    """From one vertex to a later one. out: where it leaves, right of the source's middle line; into: where it enters,
    None for a place that is found; aside: it is a shortcut; alike: both tensors have one shape."""

    source: int
    target: int
    aside: bool = False
    alike: bool = False
    out: float = 0.0
    into: float | None = None


@dataclass
class Run:
    """What shares a lane over the rows top to bottom: a chain of vertices, or an edge that passes rows."""

    source: int
    aside: bool
    top: int
    bottom: int
    lane: int = -1
    vertices: list[int] = field(default_factory=list)


@dataclass
class Arrangement:
    """rows, lanes: of each vertex; run: per edge that of the rows it passes, None for one between neighbouring rows."""

    vertices: list[Vertex]
    edges: list[Edge]
    rows: list[int]
    lanes: list[int]
    run: list[Run | None]
    taken: dict[int, set[int]]  # lane -> the rows in which something stands or passes


def arrange(vertices: list[Vertex], edges: list[Edge]) -> Arrangement:
    """Rows and lanes. Every edge must lead to a vertex further on in the list."""
    into: list[list[int]] = [[] for _ in vertices]
    outs: list[list[int]] = [[] for _ in vertices]
    for e, edge in enumerate(edges):
        into[edge.target].append(e)
        outs[edge.source].append(e)
    rows, held = _rows(vertices, edges, into, outs)
    run, runs = _runs(vertices, edges, into, outs, rows, held)
    taken: dict[int, set[int]] = defaultdict(set)
    lanes = [0] * len(vertices)
    for number, one in enumerate(runs):
        wanted = range(one.top, one.bottom + 1)
        one.lane = 0 if number == 0 else next(lane for lane in range(1, len(runs) + 1)
                                              if taken[lane].isdisjoint(wanted))
        taken[one.lane].update(wanted)
        for v in one.vertices:
            lanes[v] = one.lane
    return Arrangement(vertices, edges, rows, lanes, run, dict(taken))


def _rows(vertices: list[Vertex], edges: list[Edge], into: list[list[int]], outs: list[list[int]]
          ) -> tuple[list[int], list[bool]]:
    """The row of each vertex, and whether the start of all leads to it."""
    rows, depth = [0] * len(vertices), [0] * len(vertices)
    for v in range(len(vertices)):
        rows[v] = max((rows[edges[e].source] + 1 for e in into[v]), default=0)
    for v in reversed(range(len(vertices))):
        depth[v] = max((depth[edges[e].target] + 1 for e in outs[v]), default=0)
    starts = [v for v in range(len(vertices)) if not into[v]]
    anchor = max(starts, key=lambda v: (depth[v], -v), default=-1)
    held = [False] * len(vertices)  # those that the anchor leads to; the others float down to where they are used
    for v, vertex in enumerate(vertices):
        held[v] = v == anchor or vertex.first or any(held[edges[e].source] for e in into[v])
    bottom = max(rows, default=0)
    for v in reversed(range(len(vertices))):
        if vertices[v].last:
            rows[v] = bottom
        elif not held[v] and outs[v]:
            rows[v] = min(rows[edges[e].target] for e in outs[v]) - 1
    return rows, held


def _runs(vertices: list[Vertex], edges: list[Edge], into: list[list[int]], outs: list[list[int]],
          rows: list[int], held: list[bool]) -> tuple[list[Run | None], list[Run]]:
    """The run of each edge that passes rows, and all runs in the order in which they choose a lane."""
    run: list[Run | None] = [None] * len(edges)
    owned = [False] * len(vertices)
    chains: list[Run] = []

    def rank(e: int, v: int) -> tuple:
        source = edges[e].source
        strays = (edges[e].aside or vertices[source].aside) and not vertices[v].aside
        return edges[e].alike, not strays, not owned[source], rows[source], -source

    end = len(vertices) - 1  # the spine leads there, whatever lies below it that leads nowhere
    for start in sorted(range(len(vertices)), key=lambda v: (v != end, -rows[v], v)):
        if owned[start]:
            continue
        chain = Run(start, vertices[start].aside, rows[start], rows[start], vertices=[start])
        v, owned[start] = start, True
        if outs[start] and chains:
            e = min(outs[start], key=lambda e: (rows[edges[e].target], edges[e].target))
            run[e], chain.bottom = chain, _end(vertices, edges[e], rows)
            chain.aside |= edges[e].aside
        while into[v]:
            e = max(into[v], key=lambda e: rank(e, v))
            source = edges[e].source
            if owned[source]:
                if run[e] is None:  # else the edge is another chain's
                    run[e], chain.top = chain, rows[source] + 1
                break
            run[e], chain.top, v = chain, rows[source], source
            chain.vertices.append(v)
            owned[v] = True
        chain.source = v
        chains.append(chain)
    shared: dict[tuple[int, float, bool], Run] = {}
    for e, edge in enumerate(edges):
        if run[e] is None and rows[edge.target] - rows[edge.source] > 1:
            one = shared.setdefault((edge.source, edge.out, edge.aside),
                                    Run(edge.source, edge.aside, rows[edge.source] + 1, 0))
            run[e], one.bottom = one, max(one.bottom, _end(vertices, edge, rows))
    run = [one if rows[edge.target] - rows[edge.source] > 1 else None for one, edge in zip(run, edges, strict=True)]
    others = chains[1:] + list(shared.values())
    far = {id(one): vertices[one.source].far or _aloof(one, edges, outs, held) for one in others}
    others.sort(key=lambda one: (far[id(one)], one.aside, one.bottom - one.top, one.top, one.source))
    return run, chains[:1] + others


def _aloof(one: Run, edges: list[Edge], outs: list[list[int]], held: list[bool]) -> bool:
    """Whether it is calculated from parameters alone, and more than one step of that."""
    loose = not held[one.source] and bool(one.vertices)
    return loose and (one.bottom > one.top or any(not held[edges[e].target] for e in outs[one.source]))


def _end(vertices: list[Vertex], edge: Edge, rows: list[int]) -> int:
    """The last row that an edge's run needs: at a circle that of the circle, to come in from the side."""
    return rows[edge.target] - (not vertices[edge.target].round)
