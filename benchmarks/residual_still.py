"""The README's still: the backward pass of one residual block, with the numbers that the stepper recorded.

    python benchmarks/residual_still.py [FOLDER]

A fresh ResNet-20 gets 64 digits (seed 0), and the gradient is shown at its first block: it comes to the addition, which
hands it on unchanged to shortcut and branch; the branch brings something of its own to the fork, and there the two are
added. Writes residual_backward.svg and .png and prints the numbers as one line of JSON. Takes about 2 seconds.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image

import tinyres as tr
from tinyres import data, models
from tinyres.analysis.figure import new_figure, write_png
from tinyres.files import write_atomically
from tinyres.stepper.schema import SHORTCUT, Trace
from tinyres.stepper.short import percent

IMAGES = Path(__file__).resolve().parents[1] / "tutorials" / "images"
BLUE, ORANGE, INK, SOFT, FILL = "#0072b2", "#b34700", "#1b1f24", "#5c6470", "#f4f6f8"
FORK, JOIN, ROUTE, BRANCH = 1.45, 8.15, 1.75, 3.45  # x of fork and join, y of shortcut and branch
WIDTH, HEIGHT = 10.2, 4.5  # inches, the units of everything here


def recorded(block: int = 0) -> tuple[Trace, dict[str, Any]]:
    """The trace, and of a block: the norm at the join, of what each route brings to the fork and of their sum, the
    cosine between the two, the shortcut's share, and the norms behind the branch's layers."""
    tr.manual_seed(0)
    model = models.resnet20(in_channels=1)
    images, labels = data.digits("train").batch(64)
    trace = tr.step(lambda: tr.cross_entropy(model(images), labels), title="resnet20").trace
    span = trace.blocks[block]
    fork, join = trace.nodes[span.fork].fork, trace.nodes[span.join or 0]
    assert fork is not None and join.gradient is not None
    brought = {"shortcut" if a.route == SHORTCUT else "branch": a for a in fork.arrivals}
    layers = [trace.groups[g] for g in span.groups if trace.groups[g].output < join.id]
    total = trace.nodes[span.fork].gradient
    assert total is not None
    return trace, {"block": span.name, "loss": trace.loss, "join": join.gradient.norm,
                   "shortcut": brought["shortcut"].norm, "branch": brought["branch"].norm,
                   "cosine": fork.arrivals[1].cosine, "total": total.norm, "share": fork.identity_share,
                   "first": fork.arrivals[0].route,
                   "layers": [(g.title, trace.nodes[g.output].gradient.norm) for g in layers]}


def draw(seen: dict[str, Any], folder: Path) -> None:
    """Both files."""
    figure = new_figure(WIDTH, HEIGHT)
    figure.set_layout_engine("none")
    figure.set_facecolor("white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    _forward(axes, seen)
    _backward(axes, seen)
    _sum(axes, seen)
    write_png(figure, folder / "residual_backward.png", 160)
    with Image.open(folder / "residual_backward.png") as picture:
        small = picture.convert("RGB").quantize(64)
    small.save(folder / "residual_backward.png", optimize=True)
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "tinyres", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    head, _, body = text.getvalue().partition("<defs>")
    label = (f"<title>The backward pass of a residual block</title>\n <desc>{escape(described(seen))}</desc>\n <defs>")
    svg = head.replace("<svg ", '<svg role="img" ', 1) + label + body
    write_atomically(folder / "residual_backward.svg", "\n".join(line.rstrip() for line in svg.splitlines()).encode())


def described(seen: dict[str, Any]) -> str:
    """The picture in words."""
    return (f"A residual block of a fresh ResNet-20, forward from left to right, its gradient from right to left. A "
            f"gradient of norm {number(seen['join'])} comes to the addition and is handed on unchanged to shortcut and "
            f"branch. At the fork the shortcut brings the same {number(seen['shortcut'])}, the branch "
            f"{number(seen['branch'])}, at a cosine of {seen['cosine']:.2f}; their sum has norm "
            f"{number(seen['total'])}, and the shortcut's share of it is {percent(seen['share'])}.")


def number(x: float) -> str:
    """Three digits."""
    return f"{x:#.3g}"


def _forward(axes: Any, seen: dict[str, Any]) -> None:
    """The block itself, in grey: fork, branch, shortcut, addition."""
    from matplotlib.patches import Circle, FancyBboxPatch

    axes.add_patch(FancyBboxPatch((0.95, 1.05), 7.75, 3.25, boxstyle="round,pad=0,rounding_size=0.12", linewidth=1.1,
                                  edgecolor="#a9b1bc", facecolor="#fafbfc"))
    axes.text(1.1, 4.06, f"{seen['block']}, a BasicBlock of a fresh ResNet-20, 64 digits", fontsize=10, color=SOFT,
              weight="bold", va="center")
    for xs, ys in (((0.1, JOIN), (ROUTE, ROUTE)), ((FORK, FORK, JOIN, JOIN), (ROUTE, BRANCH, BRANCH, ROUTE)),
                   ((JOIN, WIDTH - 0.1), (ROUTE, ROUTE))):
        axes.plot(xs, ys, color="#c3c9d1", linewidth=2.2, solid_joinstyle="round")
    step = (JOIN - FORK - 0.7) / len(seen["layers"])
    for i, (title, norm) in enumerate(seen["layers"]):
        x = FORK + 0.35 + step * (i + 0.5)
        corner = 0.22 if title == "relu" else 0.06
        axes.add_patch(FancyBboxPatch((x - 0.42, BRANCH - 0.24), 0.84, 0.48, zorder=3, linewidth=1.3, edgecolor=INK,
                                      facecolor=FILL, boxstyle=f"round,pad=0,rounding_size={corner}"))
        axes.text(x, BRANCH, title, ha="center", va="center", fontsize=11, weight="bold", color=INK, zorder=4)
        axes.text(x + step / 2, BRANCH + 0.36, number(norm), ha="center", va="center", fontsize=9, color=ORANGE)
    axes.add_patch(Circle((FORK, ROUTE), 0.08, color=INK, zorder=5))
    axes.add_patch(Circle((JOIN, ROUTE), 0.2, facecolor="white", edgecolor=INK, linewidth=1.5, zorder=5))
    axes.plot((JOIN - 0.11, JOIN + 0.11), (ROUTE, ROUTE), color=INK, linewidth=1.8, zorder=6)
    axes.plot((JOIN, JOIN), (ROUTE - 0.11, ROUTE + 0.11), color=INK, linewidth=1.8, zorder=6)


def _backward(axes: Any, seen: dict[str, Any]) -> None:
    """The gradient's way, with its norms."""
    low = ROUTE - 0.14
    _arrow(axes, [(WIDTH - 0.1, low), (JOIN + 0.22, low)], INK)
    _arrow(axes, [(JOIN - 0.22, low), (FORK + 0.12, low)], BLUE, dashed=True)
    _arrow(axes, [(JOIN + 0.14, ROUTE + 0.22), (JOIN + 0.14, BRANCH + 0.14), (FORK - 0.14, BRANCH + 0.14),
                  (FORK - 0.14, ROUTE + 0.12)], ORANGE)
    _arrow(axes, [(FORK - 0.12, low), (0.1, low)], INK)
    middle = (FORK + JOIN) / 2
    say = [(9.45, ROUTE + 0.26, f"g = {number(seen['join'])}", INK),
           (9.45, ROUTE - 0.5, "1. it comes to\nthe addition", INK),
           (JOIN - 0.22, 2.6, "2. which copies it:\nthe same g to both", INK),
           (middle, ROUTE + 0.22, "shortcut: the identity", BLUE),
           (middle, low - 0.24, f"{number(seen['shortcut'])}, the very array", BLUE),
           (middle, BRANCH - 0.45, "branch: each layer multiplies by its Jacobian, transposed", ORANGE),
           (FORK + 0.14, 2.66, number(seen["branch"]), ORANGE),
           (FORK + 0.14, 2.3, "3. the fork adds", INK),
           (0.48, ROUTE + 0.26, number(seen["total"]), INK)]
    for x, y, text, colour in say:
        side = "right" if x == JOIN - 0.22 else "left" if x == FORK + 0.14 else "center"
        axes.text(x, y, text, ha=side, va="center", fontsize=10, color=colour, linespacing=1.25)


def _sum(axes: Any, seen: dict[str, Any]) -> None:
    """Below the block: the running sum at the fork as bars."""
    scale = 4.2 / max(seen["shortcut"], seen["branch"], seen["total"])
    rows = [("shortcut", seen["shortcut"], BLUE, ""),
            ("+ branch", seen["branch"], ORANGE, f", at a cosine of {seen['cosine']:.2f}"),
            ("= sum", seen["total"], INK, f", of which the shortcut's share is {percent(seen['share'])}")]
    for i, (name, value, colour, remark) in enumerate(rows):
        y = 0.8 - 0.28 * i
        axes.text(1.75, y, name, ha="right", va="center", fontsize=10, color=colour)
        axes.barh(y, value * scale, 0.17, 1.85, color=colour, hatch="///" if i == 0 else None, edgecolor="white",
                  linewidth=0)
        axes.text(1.95 + value * scale, y, f"{number(value)}{remark}", va="center", fontsize=10, color=colour)


def _arrow(axes: Any, points: list[tuple[float, float]], colour: str, dashed: bool = False) -> None:
    xs, ys = zip(*points, strict=True)
    axes.plot(xs, ys, color=colour, linewidth=2, linestyle=(0, (4, 2)) if dashed else "-", zorder=2,
              solid_joinstyle="round")
    axes.annotate("", points[-1], points[-2], zorder=2, arrowprops={
        "arrowstyle": "-|>,head_width=0.28,head_length=0.5", "color": colour, "shrinkA": 0, "shrinkB": 0, "lw": 0})


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    _, seen = recorded()
    draw(seen, folder)
    print(json.dumps(seen | {"alt": described(seen)}))


if __name__ == "__main__":
    main()
