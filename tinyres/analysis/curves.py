"""The figure of a training run: loss and error against the epoch, drawn from its log."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from tinyres.files import PathLike, write_atomically


def draw_curves(rows: Sequence[Mapping[str, Any]], path: PathLike, title: str = "") -> None:
    """Draw the rows of `train`'s log as a PNG: loss and error (100 % minus accuracy), training and validation.

    The error is on a logarithmic scale, where the differences at the end can be seen. An error of 0 is drawn at the
    bottom, as half of the smallest other one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # not pyplot: no display, no global state
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(epochs) == 1 else None
    for kind, color in (("train", "tab:blue"), ("validation", "tab:orange")):
        if rows and f"{kind}_loss" in rows[0]:
            left.plot(epochs, [row[f"{kind}_loss"] for row in rows], color=color, marker=marker, label=kind)
            errors = [100 * (1 - row[f"{kind}_accuracy"]) for row in rows]
            floor = min((e for e in errors if e > 0), default=1.0) / 2
            right.plot(epochs, [max(e, floor) for e in errors], color=color, marker=marker, label=kind)
    for axes, label in ((left, "loss (cross-entropy)"), (right, "error in %")):
        axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3, which="both")
        if rows:
            axes.legend()
    figure.suptitle(title)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    write_atomically(path, png.getvalue())
