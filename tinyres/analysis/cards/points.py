"""The figures that cards share: points, a panel a quantity, a row a variant, a point a seed; and curves."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.palette import COLORS, MARKERS
from tinyres.files import PathLike

COLOR, MEAN = COLORS[:2]
FAR = 30.0  # a quantity whose largest value is so many times its smallest is drawn on a logarithmic scale


def drawing(question: str, quantities: Mapping[str, str]) -> Callable[[Mapping[str, Any], PathLike], None]:
    """A card's draw: these quantities of every variant that has them, each under its axis label."""

    def draw(record: Mapping[str, Any], path: PathLike) -> None:
        names = list(record["results"])
        figure = new_figure(2.0 + 3.4 * len(quantities), 1.7 + 0.36 * len(names))
        panels = figure.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
        for axes, (quantity, label) in zip(panels, quantities.items(), strict=True):
            points(axes, record["results"], names, quantity, label)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        head(figure, question, record)
        write_png(figure, path)

    return draw


def points(axes: Any, results: Mapping[str, Any], names: Sequence[str], quantity: str, label: str) -> None:
    """One panel: rows of points."""
    values = [value for name in names for value in results[name].get(quantity, ())]
    for row, name in enumerate(names):
        found = results[name].get(quantity, [])
        if found:
            axes.plot(found, [row] * len(found), "o", color=COLOR, alpha=0.6, markersize=6)
            average = sum(found) / len(found)
            axes.plot([average] * 2, [row - 0.3, row + 0.3], color=MEAN, linewidth=2.5)
    if values and min(values) > 0 and max(values) > FAR * min(values):
        logarithmic(axes, max(values) / min(values))
    else:
        axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(label)
    axes.grid(alpha=0.3, axis="x")


def logarithmic(axes: Any, span: float) -> None:
    """A logarithmic x axis, labelled at powers of ten, and at three times them where those are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if span > 1000 else (1.0, 3.0), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def head(figure: Any, question: str, record: Mapping[str, Any]) -> None:
    """The question, the verdict, and what the marks are."""
    seeds = len(record["seeds"])
    marks = f"points: {seeds} seeds, bar: mean" if seeds > 1 else "one seed"
    text = "\n".join(textwrap.wrap(question, 95))
    figure.suptitle(f"{text}\n{record['verdict']} ({marks}; budget {record['budget']})", fontsize=10, parse_math=False)


def curves(axes: Any, results: Mapping[str, Any], x: str, y: str) -> None:
    """For each variant that has them the mean of the seeds' curves of y against x, in a band of all."""
    named = [(name, found) for name, found in results.items() if y in found]
    for i, (name, found) in enumerate(named):
        columns = list(zip(*found[y], strict=True))
        style = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4}
        axes.plot(found[x][0], [sum(column) / len(column) for column in columns], label=name, **style)
        axes.fill_between(found[x][0], [min(column) for column in columns], [max(column) for column in columns],
                          color=style["color"], alpha=0.15, linewidth=0)
    axes.grid(alpha=0.3)
    for text in axes.legend(fontsize=8).get_texts():
        text.set_parse_math(False)
