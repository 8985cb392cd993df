"""The graph of a trace as PNG, by matplotlib, from the same layout as the SVG."""

from __future__ import annotations

import math
from typing import Any

from tinyres.analysis.figure import new_figure, write_png
from tinyres.files import PathLike
from tinyres.stepper.cells import BRACKET, LEAF, LIGHT, PILL, PLUS, Box, Layout
from tinyres.stepper.layout import layout
from tinyres.stepper.schema import BRANCH, SHORTCUT, Trace

UNIT = 96  # units of the layout per inch
DPI, LONGEST, PIXELS = 192, 30_000, 60e6  # resolution, and the largest side and area


def png(trace: Trace, view: str, path: PathLike) -> None:
    """Draw the graph of a view, "blocks" or "ops", into a PNG file.

    Two pixels a unit; fewer where a side would pass 30,000 pixels, as in the op view of very deep networks, whose text
    can be read in the SVG only. Raises ValueError for another view, OSError if the file cannot be written.
    """
    drawn = layout(trace, view)
    width, height = max(drawn.width, 40), max(drawn.height, 40)
    dpi = min(DPI, LONGEST * UNIT / max(width, height), math.sqrt(PIXELS * UNIT**2 / (width * height)))
    figure = new_figure(width / UNIT, height / UNIT)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    _frames(axes, drawn)
    _wires(axes, drawn)
    for dot in drawn.dots:
        _circle(axes, dot.x, dot.y, 5 if dot.residual else 3, facecolor=LIGHT["line"], zorder=3)
    for box in drawn.boxes:
        _box(axes, box)
    write_png(figure, path, int(dpi))


def _frames(axes: Any, drawn: Layout) -> None:
    for frame in drawn.frames:
        block = frame.kind == "block"
        _rounded(axes, frame.x, frame.y, frame.width, frame.height, 9 if block else 5, edgecolor=LIGHT["edge"],
                 facecolor=LIGHT["block"] if block else "none", linewidth=0.9 if block else 0.7, zorder=1)
        _write(axes, frame.x + 7, frame.y + 10, frame.text, 11, color=LIGHT["soft"], ha="left",
               weight="bold" if block else "normal")


def _wires(axes: Any, drawn: Layout) -> None:
    stubs, wires = drawn.parted()
    for points in stubs.values():
        axes.plot(*zip(*points, strict=True), color=LIGHT["line"], linewidth=1.2, zorder=2)
    for wire in wires:
        small = drawn.thin(wire)
        colour = LIGHT["edge"] if small else LIGHT[{SHORTCUT: "shortcut", BRANCH: "branch"}.get(wire.route, "line")]
        xs, ys = zip(*wire.points, strict=True)
        dash = (0, (3, 1.7)) if wire.route == SHORTCUT else "-"
        axes.plot(xs, ys, color=colour, linewidth=0.9 if small else 1.8 if wire.route == SHORTCUT else 1.2,
                  linestyle=dash, solid_joinstyle="round", dash_joinstyle="round", zorder=2)
        if not small:
            (a, b), (x, y) = wire.points[-2:]
            length = math.dist((a, b), (x, y)) or 1.0
            u, v = (x - a) / length, (y - b) / length
            axes.fill([x, x - 8 * u - 3.5 * v, x - 8 * u + 3.5 * v], [y, y - 8 * v + 3.5 * u, y - 8 * v - 3.5 * u],
                      color=colour, linewidth=0, zorder=2)


def _box(axes: Any, box: Box) -> None:
    x, y = box.x + box.width / 2, box.y + box.height / 2
    line = {"edgecolor": LIGHT["edge" if box.outline == LEAF else "line"], "linewidth": 1.0, "zorder": 4}
    bars = {"color": LIGHT["line"], "linewidth": 1.4, "zorder": 5, "solid_capstyle": "butt"}
    if box.outline == PLUS:
        _circle(axes, x, y, box.width / 2, facecolor=LIGHT["fill"], **line)
        axes.plot([x - 7, x + 7], [y, y], **bars)
        axes.plot([x, x], [y - 7, y + 7], **bars)
        return
    fill = LIGHT["parameter" if box.outline == LEAF else "loss" if box.kind == "loss" else "fill"]
    _rounded(axes, box.x, box.y, box.width, box.height, {PILL: box.height / 2, LEAF: 3}.get(box.outline, 6),
             facecolor=fill, **line)
    if box.outline == BRACKET:
        top, foot = box.y + 4, box.y + box.height - 4
        for side, inward in ((box.x + 5, 5), (box.x + box.width - 5, -5)):
            axes.plot([side + inward, side, side, side + inward], [top, top, foot, foot], **bars)
    if box.outline == LEAF:
        _write(axes, x, y, f"{box.label} {box.detail}", 10)
    elif box.detail:
        _write(axes, x, y - 6, box.label, 12, weight="bold")
        _write(axes, x, y + 8, box.detail, 10, color=LIGHT["soft"])
    else:
        _write(axes, x, y, box.label, 12, weight="bold")


def _rounded(axes: Any, x: float, y: float, width: float, height: float, radius: float, **options: Any) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=f"round,pad=0,rounding_size={radius}", **options))


def _circle(axes: Any, x: float, y: float, radius: float, **options: Any) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(Circle((x, y), radius, **options))


def _write(axes: Any, x: float, y: float, text: str, size: float, color: str = LIGHT["ink"], ha: str = "center",
           weight: str = "normal") -> None:
    axes.text(x, y, text, fontsize=size * 72 / UNIT * 0.92, color=color, ha=ha, va="center", weight=weight, zorder=6,
              parse_math=False)
