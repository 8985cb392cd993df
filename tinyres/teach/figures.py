"""A figure in words, for those who cannot see it."""

from __future__ import annotations

from typing import Any


def alternative(figure: Any) -> str:
    """The titles, axes, curves and pictures of a matplotlib figure, a sentence for each of its plots."""
    texts = [_plot(axes) for axes in figure.axes]
    heading = getattr(figure, "_suptitle", None)
    heading = heading.get_text().strip() if heading is not None else ""
    return " ".join(filter(None, [f"{_line(heading)}." if heading else "", *texts]))


def _plot(axes: Any) -> str:
    title, x, y = (_line(text) for text in (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()))
    if not (title or x or y) and not axes.lines:  # the scale of colours beside a picture, an empty place
        return ""
    labels = [_line(text.get_text()) for text in axes.get_legend().get_texts()] if axes.get_legend() else []
    kinds = {"log": ", logarithmic"}
    parts = [f"Plot{f': {title}' if title else ''}",
             f"x: {x}{kinds.get(axes.get_xscale(), '')}" if x else "",
             f"y: {y}{kinds.get(axes.get_yscale(), '')}" if y else "",
             f"curves: {', '.join(labels)}" if labels else ""]
    return "; ".join(filter(None, parts)) + "."


def _line(text: str) -> str:
    return " ".join(text.replace("$", "").split())
