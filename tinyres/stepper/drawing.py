"""The graph of a trace as SVG, PNG and DOT, without Graphviz.

The SVG carries the page's hooks: `g.box[data-id]`, `path.wire[data-from][data-to]`, `circle.fork[data-id]`,
`rect.frame`. Colour is never alone: a shortcut is dashed and on its own lane, a join is a circled plus, a
concatenation a bracket, a fork a dot, a parameter a small box beside its layer. What it looks like is said once, in
`style()`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from xml.sax.saxutils import escape

from tinyres.stepper.cells import BRACKET, DARK, LEAF, LIGHT, PILL, PLUS, Box, Frame, Layout, Wire
from tinyres.stepper.graphviz import dot
from tinyres.stepper.layout import layout
from tinyres.stepper.plot import png
from tinyres.stepper.schema import BRANCH, SHORTCUT, Trace
from tinyres.stepper.wiring import Point

__all__ = ["DARK", "LIGHT", "dot", "png", "style", "svg"]

CORNER = 7.0  # radius at which wires turn
HEADS = {"": "line", SHORTCUT: "shortcut", BRANCH: "branch"}  # route -> colour
ROUND_OFF = 1  # digits behind the point


def style(colours: Mapping[str, str]) -> str:
    """The rules of the drawing as CSS, with these colours by the names of LIGHT; `var(--ink)` will do as well."""
    rules = {
        ".graph": {"font-family": "system-ui, 'Helvetica Neue', Arial, sans-serif"},
        ".graph text": {"fill": "{ink}", "font-size": "12px", "text-anchor": "middle"},
        ".graph .label": {"font-weight": "600"},
        ".graph .detail": {"fill": "{soft}", "font-size": "10px"},
        ".graph .leaf text": {"font-size": "10px"},
        ".graph .outline": {"fill": "{fill}", "stroke": "{line}", "stroke-width": "1.3"},
        ".graph .leaf .outline": {"fill": "{parameter}", "stroke": "{edge}"},
        ".graph .loss .outline": {"fill": "{loss}"},
        ".graph .bars": {"fill": "none", "stroke": "{line}", "stroke-width": "1.8"},
        ".graph .frame": {"fill": "none", "stroke": "{edge}", "stroke-width": "1"},
        ".graph .frame.block": {"fill": "{block}", "stroke-width": "1.3"},
        ".graph .name": {"fill": "{soft}", "font-size": "11px", "text-anchor": "start"},
        ".graph .block.name": {"font-weight": "600"},
        ".graph .wire": {"fill": "none", "stroke": "{line}", "stroke-width": "1.6"},
        ".graph .wire.shortcut": {"stroke": "{shortcut}", "stroke-width": "2.4", "stroke-dasharray": "7 4"},
        ".graph .wire.branch": {"stroke": "{branch}", "stroke-width": "2"},
        ".graph .wire.leaf": {"stroke": "{edge}", "stroke-width": "1.2"},
        ".graph .fork": {"fill": "{line}"},
        ".graph .head": {"fill": "{line}"},
        ".graph .head.shortcut": {"fill": "{shortcut}"},
        ".graph .head.branch": {"fill": "{branch}"},
    } | {f".graph.backward.{view} .wire{f'.{route}' if route else ''}:not(.leaf)":
         {"marker-end": "none", "marker-start": f"url(#{view}-{route or 'plain'})"}
         for view in ("blocks", "ops") for route in HEADS}
    return "\n".join(f"{selector} {{ {'; '.join(f'{key}: {value}' for key, value in rule.items())} }}".replace(
        "{ ", "{{ ").replace(" }", " }}").format(**colours) for selector, rule in rules.items())


def svg(trace: Trace, view: str = "blocks", *, steps: Iterable[int] | None = None, standalone: bool = True,
        direction: str = "forward") -> str:
    """The graph of a view, "blocks" or "ops", as one SVG element.

    steps: ids of the view whose boxes get the class `done`, as in a picture of a walk that stopped there. standalone:
    with a style element, light and dark, and a background, so that the file can be opened by itself; else for a page
    that has the rules of style(). direction: "forward" or "backward", which way the arrows point; it is a class of the
    element, which a page may change. Raises ValueError for another view or direction.
    """
    if direction not in ("forward", "backward"):
        raise ValueError(f"svg: direction must be 'forward' or 'backward', got {direction!r}")
    drawn = layout(trace, view)
    done = set(steps or ())
    width, height = _short(drawn.width), _short(drawn.height)
    title = trace.title or "a network"
    what = {"blocks": "a box a layer", "ops": "a box an op"}[view]
    joins = sum(box.outline in (PLUS, BRACKET) for box in drawn.boxes)
    forks = sum(dot.residual for dot in drawn.dots)
    classes = f"graph {view}{' backward' if direction == 'backward' else ''}"
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" class="{classes}" viewBox="0 0 {width} {height}" '
             f'width="{width}" height="{height}" role="group" aria-labelledby="{view}-title {view}-desc">',
             f'<title id="{view}-title">{_text(f"The graph of {title}, {what}")}</title>',
             f'<desc id="{view}-desc">The forward pass runs down. {_count(len(drawn.boxes), "box", "boxes")}, '
             f'{_count(joins, "join", "joins")}, {_count(forks, "fork", "forks")} of residual blocks; a shortcut is a '
             'dashed line on its own lane to the right of its branch.</desc>']
    if standalone:
        dark = style(DARK).replace("\n", "\n  ")
        lines += [f"<style>\n{style(LIGHT)}\n.graph .paper {{ fill: {LIGHT['paper']} }}\n"
                  f"@media (prefers-color-scheme: dark) {{\n  {dark}\n  .graph .paper {{ fill: {DARK['paper']} }}\n}}\n"
                  "</style>", f'<rect class="paper" width="{width}" height="{height}"/>']
    lines.append("<defs>" + "".join(_marker(view, route) for route in HEADS) + "</defs>")
    lines += [_frame(frame) for frame in drawn.frames]
    lines += _wires(drawn)
    lines += [f'<circle class="fork{" residual" if dot.residual else ""}" data-{"leaf" if dot.leaf else "id"}='
              f'"{dot.source}" cx="{_short(dot.x)}" cy="{_short(dot.y)}" r="{5 if dot.residual else 3}"/>'
              for dot in drawn.dots]
    lines += [_box(box, view, box.id in done and not (box.leaf and view == "blocks")) for box in drawn.boxes]
    return "\n".join([*lines, "</svg>\n"])


def _wires(drawn: Layout) -> list[str]:
    stubs, wires = drawn.parted()
    return [f'<path class="wire stub" data-from="{id}" d="{path(points)}"/>' for id, points in stubs.items()] \
        + [_wire(wire, drawn.view, drawn.thin(wire)) for wire in wires]


def _marker(view: str, route: str) -> str:
    name = route or "plain"
    classes = " ".join(["head", route]).strip()
    return (f'<marker id="{view}-{name}" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8" '
            f'markerUnits="userSpaceOnUse" orient="auto-start-reverse"><path class="{classes}" '
            'd="M0 0.5 L8 4 L0 7.5 z"/></marker>')


def _wire(wire: Wire, view: str, thin: bool) -> str:
    classes = " ".join(filter(None, ["wire", wire.route, "leaf" if thin else ""]))
    source = f'data-{"leaf" if wire.leaf and view == "blocks" else "from"}="{wire.source}"'
    head = "" if thin else f' marker-end="url(#{view}-{wire.route or "plain"})"'
    return (f'<path class="{classes}" {source} data-to="{wire.target}" data-slot="{wire.slot}" '
            f'd="{path(wire.points)}"{head}/>')


def path(points: list[Point]) -> str:
    """SVG path data of a line with rounded corners."""
    parts = [f"M{_short(points[0][0])} {_short(points[0][1])}"]
    for before, at, after in zip(points, points[1:], points[2:], strict=False):
        radius = min(CORNER, math.dist(before, at) / 2, math.dist(at, after) / 2)
        a, b = _towards(at, before, radius), _towards(at, after, radius)
        parts.append(f"L{_short(a[0])} {_short(a[1])}Q{_short(at[0])} {_short(at[1])} {_short(b[0])} {_short(b[1])}")
    return "".join([*parts, f"L{_short(points[-1][0])} {_short(points[-1][1])}"])


def _towards(start: Point, end: Point, distance: float) -> Point:
    whole = math.dist(start, end) or 1.0
    return start[0] + (end[0] - start[0]) * distance / whole, start[1] + (end[1] - start[1]) * distance / whole


def _frame(frame: Frame) -> str:
    data = "data-group" if frame.kind == "group" else "data-block"
    return (f'<rect class="frame {frame.kind}" {data}="{frame.id}" x="{_short(frame.x)}" y="{_short(frame.y)}" '
            f'width="{_short(frame.width)}" height="{_short(frame.height)}" rx="{9 if frame.kind == "block" else 5}"/>'
            f'<text class="name {frame.kind}" x="{_short(frame.x + 7)}" y="{_short(frame.y + 14)}">{_text(frame.text)}'
            '</text>')


def _box(box: Box, view: str, done: bool) -> str:
    leaf = box.leaf and view == "blocks"  # no step: named by its node alone
    classes = " ".join(filter(None, ["" if leaf else "box", "leaf" if box.outline == LEAF else "", box.kind,
                                     box.outline if box.outline != LEAF else "", "done" if done else ""]))
    ids = f'data-leaf="{box.id}"' if leaf else f'data-id="{box.id}" data-node="{box.node}"'
    middle, centre = box.x + box.width / 2, box.y + box.height / 2
    x, y = _short(middle), _short(centre)
    tip = f"{box.full}, {box.detail}" if box.label != "+" else f"join by addition, {box.detail}"
    lines = [f'<g class="{classes}" {ids}><title>{_text(tip)}</title>']
    if box.outline == PLUS:
        lines.append(f'<circle class="outline" cx="{x}" cy="{y}" r="{_short(box.width / 2)}"/>'
                     f'<path class="bars" d="M{_short(middle - 7)} {y}h14M{x} {_short(centre - 7)}v14"/>')
        return "".join([*lines, "</g>"])
    corner = {PILL: box.height / 2, LEAF: 3}.get(box.outline, 6)
    lines.append(f'<rect class="outline" x="{_short(box.x)}" y="{_short(box.y)}" width="{_short(box.width)}" '
                 f'height="{_short(box.height)}" rx="{_short(corner)}"/>')
    if box.outline == BRACKET:
        left, right, top, foot = box.x + 5, box.x + box.width - 5, box.y + 4, box.y + box.height - 4
        lines.append(f'<path class="bars" d="M{_short(left + 5)} {_short(top)}h-5V{_short(foot)}h5'
                     f'M{_short(right - 5)} {_short(top)}h5V{_short(foot)}h-5"/>')
    if box.outline == LEAF:
        lines.append(f'<text x="{x}" y="{_short(centre + 3.5)}">{_text(box.label)} '
                     f'<tspan class="detail">{_text(box.detail)}</tspan></text>')
    elif box.detail:
        lines.append(f'<text class="label" x="{x}" y="{_short(centre - 2)}">{_text(box.label)}</text>'
                     f'<text class="detail" x="{x}" y="{_short(centre + 12)}">{_text(box.detail)}</text>')
    else:
        lines.append(f'<text class="label" x="{x}" y="{_short(centre + 4)}">{_text(box.label)}</text>')
    return "".join([*lines, "</g>"])


def _short(x: float) -> str:
    return f"{round(x, ROUND_OFF):g}" if abs(x) < 1e5 else f"{x:.0f}"


def _text(text: str) -> str:
    """Text that any XML reader takes: signs that XML forbids are shown as what they are called."""
    allowed = (c if c in "\t\n" or (c >= " " and not 0xD800 <= ord(c) <= 0xDFFF and ord(c) not in (0xFFFE, 0xFFFF))
               else f"\\x{ord(c):02x}" for c in text)
    return escape("".join(allowed))


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
