"""The figures of training runs: loss and error against the epoch, drawn from the logs of one run or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from tinyres.analysis.figure import new_figure, write_png
from tinyres.files import PathLike


def draw_curves(rows: Sequence[Mapping[str, Any]], path: PathLike, title: str = "") -> None:
    """Draw the rows of `train`'s log as a PNG: loss and error (100 % minus accuracy), training and validation.

    The error is on a logarithmic scale, where the differences at the end can be seen. An error of 0 is drawn at the
    bottom, as half of the smallest other one.
    """
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(epochs) == 1 else None
    for kind, color in (("train", "tab:blue"), ("validation", "tab:orange")):
        if rows and f"{kind}_loss" in rows[0]:
            left.plot(epochs, [row[f"{kind}_loss"] for row in rows], color=color, marker=marker, label=kind)
            errors = errors_in_percent([row[f"{kind}_accuracy"] for row in rows])
            right.plot(epochs, errors, color=color, marker=marker, label=kind)
    name_axes(left, right)
    if rows:
        left.legend()
        right.legend()
    figure.suptitle(title, parse_math=False)
    write_png(figure, path)


def errors_in_percent(accuracies: Sequence[float]) -> list[float]:
    """100 % minus each accuracy; a 0, which a logarithmic scale lacks, becomes half of the smallest other one."""
    errors = [100 * (1 - accuracy) for accuracy in accuracies]
    floor = min((error for error in errors if error > 0), default=1.0) / 2
    return [max(error, floor) for error in errors]


def name_axes(left: Any, right: Any) -> None:
    """Loss on the left, error on the right, both logarithmic, against the epoch."""
    from matplotlib.ticker import MaxNLocator

    for axes, label in ((left, "loss (cross-entropy)"), (right, "error in %")):
        axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3, which="both")


@dataclass(frozen=True)
class Curve:
    """What is drawn in one colour: the logs of runs that differ in the seed only, and their test accuracies."""

    label: str
    logs: list[list[dict[str, Any]]]
    accuracies: list[float]


def draw_comparison(curves: Sequence[Curve], path: PathLike) -> None:
    """Draw loss and error of several runs against the epoch as a PNG.

    A line is what the validation images give, dashed what the training images give (a line too if no run has validation
    images); of several seeds the mean, in a band from the lowest to the highest. A star is the mean error on the test
    images.

    Raises ValueError if no log has a row.
    """
    curves = [Curve(curve.label, [log for log in curve.logs if log], curve.accuracies) for curve in curves]
    curves = [curve for curve in curves if curve.logs]
    if not curves:
        raise ValueError("draw_comparison: no run has an epoch in its log yet, so there is nothing to draw")
    validated = any("validation_loss" in log[0] for curve in curves for log in curve.logs)
    styles = {"train": "--", "validation": "-"} if validated else {"train": "-"}
    figure = new_figure(11, 4 + 0.2 * len(curves))
    left, right = figure.subplots(1, 2)
    handles = [_draw_curve(left, right, curve, color, styles)
               for curve, color in zip(curves, _colors(len(curves)), strict=True)]
    name_axes(left, right)
    lines = "line: validation, dashed: training" if validated else "line: training"
    figure.suptitle(f"{lines}, band: all seeds, star: test", fontsize=10)
    legend = figure.legend(handles, [curve.label for curve in curves], loc="outside lower left", fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    write_png(figure, path)


def _draw_curve(left: Any, right: Any, curve: Curve, color: Any, styles: Mapping[str, str]) -> Any:
    """Draw one colour's lines, bands and star; returns the line that stands for it in the legend."""
    handle = None
    for kind, style in styles.items():
        logs = [log for log in curve.logs if f"{kind}_loss" in log[0]]
        for axes, column in ((left, "loss"), (right, "accuracy")):
            by_epoch: dict[int, list[float]] = {}
            for log in logs:
                values = [row[f"{kind}_{column}"] for row in log]
                for row, value in zip(log, errors_in_percent(values) if column == "accuracy" else values, strict=True):
                    by_epoch.setdefault(row["epoch"], []).append(value)
            if by_epoch:
                epochs = sorted(by_epoch)
                marker = "o" if len(epochs) == 1 else None
                handle, = axes.plot(epochs, [mean(by_epoch[e]) for e in epochs], style, color=color, marker=marker)
                if len(logs) > 1:
                    axes.fill_between(epochs, [min(by_epoch[e]) for e in epochs], [max(by_epoch[e]) for e in epochs],
                                      color=color, alpha=0.2, linewidth=0)
    if curve.accuracies:
        last = max(log[-1]["epoch"] for log in curve.logs)
        right.plot([last], [mean(errors_in_percent(curve.accuracies))], "*", color=color, markersize=9)
    return handle


def _colors(count: int) -> list[Any]:
    from matplotlib import colormaps

    if count <= 10:
        return [colormaps["tab10"](number) for number in range(count)]
    return [colormaps["turbo"](0.05 + 0.9 * number / (count - 1)) for number in range(count)]
