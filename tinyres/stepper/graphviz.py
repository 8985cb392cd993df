"""The graph of a trace in the DOT language, for Graphviz and what reads it; no Graphviz is needed to write it."""

from __future__ import annotations

from collections import defaultdict

from tinyres.stepper.cells import BRACKET, LEAF, LIGHT, PILL, PLUS, Box, Wire
from tinyres.stepper.layout import layout
from tinyres.stepper.schema import BRANCH, SHORTCUT, Trace

SHAPES = {PLUS: "circle", PILL: "box", BRACKET: "house", LEAF: "note"}


def dot(trace: Trace, view: str = "blocks") -> str:
    """The graph of a view, "blocks" or "ops", as a digraph.

    Residual blocks are clusters, in the op view layers too. A parameter is on the rank of what it stands beside, and
    boxes of one lane have one `group`, which Graphviz draws in a straight line. Raises ValueError for another view.
    """
    drawn = layout(trace, view)
    blocks = {group: number for number, block in enumerate(trace.blocks) for group in block.groups}
    framed = {frame.id: frame for frame in drawn.frames if frame.kind == "group"}
    homes: dict[int, int | None] = {}  # of the boxes that are no leaves: the group
    for box in drawn.boxes:
        if not box.leaf:
            homes[box.id] = box.id if view == "blocks" else trace.nodes[box.id].group
    beside = {wire.source: wire.target for wire in drawn.wires if wire.leaf and _level(wire)}
    inside: dict[tuple[int | None, int | None], list[str]] = defaultdict(list)
    for box in drawn.boxes:
        group = homes.get(beside.get(box.id, -1)) if box.leaf else homes[box.id]
        place = None if group is None else blocks.get(group), group if group in framed else None
        inside[place].append(_node(box))
        if box.leaf and box.id in beside:
            inside[place].append(f"{{ rank=same; {_name(box.id, True)}; {_name(beside[box.id], False)}; }}")
    lines = ["digraph tinyres {", f"  label={quoted(trace.title)}; labelloc=t; rankdir=TB; splines=ortho;",
             '  node [fontname="Helvetica", fontsize=11, shape=box, style="rounded,filled", '
             f'fillcolor="{LIGHT["fill"]}", color="{LIGHT["line"]}"];',
             f'  edge [color="{LIGHT["line"]}"];']
    lines += [f"  {line}" for line in inside.pop((None, None), [])]
    for block in [None, *range(len(trace.blocks))]:
        parts = [(group, found) for (of, group), found in inside.items() if of == block]
        if not parts:
            continue
        indent = "  "
        if block is not None:
            named = f"{trace.blocks[block].name} {trace.blocks[block].type}"
            lines.append(f'  subgraph cluster_block{block} {{ label={quoted(named)}; color="{LIGHT["edge"]}";')
            indent = "    "
        for group, found in parts:
            if group is not None:
                lines.append(f'{indent}subgraph cluster_layer{group} {{ label={quoted(framed[group].label)}; '
                             f'color="{LIGHT["edge"]}"; style=dotted;')
            lines += [f"{indent}  {line}" for line in found]
            lines += [f"{indent}}}"] if group is not None else []
        lines += ["  }"] if block is not None else []
    lines += [f"  {_edge(wire)}" for wire in drawn.wires]
    return "\n".join([*lines, "}\n"])


def _level(wire: Wire) -> bool:
    """Whether a wire comes from beside its box, and not from above."""
    return abs(wire.points[0][1] - wire.points[1][1]) < 0.1


def _name(id: int, leaf: bool) -> str:
    return f"{'leaf' if leaf else 'step'}{id}"


def _node(box: Box) -> str:
    label = quoted(box.label if box.outline == PLUS else "\n".join(filter(None, [box.label, box.detail])))
    extra = ", fontsize=9" if box.outline == LEAF else f', group="lane{box.lane}"'
    shape = f", shape={SHAPES[box.outline]}" if box.outline in SHAPES else ""
    return f"{_name(box.id, box.leaf)} [label={label}, tooltip={quoted(box.full)}{shape}{extra}];"


def _edge(wire: Wire) -> str:
    colour = {SHORTCUT: "shortcut", BRANCH: "branch"}.get(wire.route)
    style = ", style=dashed, penwidth=2" if wire.route == SHORTCUT else ""
    options = f' [label={quoted(wire.route)}, color="{LIGHT[colour]}"{style}]' if colour else ""
    return f"{_name(wire.source, wire.leaf)} -> {_name(wire.target, False)}{options};"


def quoted(text: str) -> str:
    """A string of the DOT language: quoted, with line breaks as \\n, and without signs that no text has."""
    text = "".join(c if c >= " " or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
