"""The confusion matrix of a classifier: how many images of each class were taken for which; and its figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyres.analysis.figure import new_figure, write_png
from tinyres.files import PathLike

MOST_WITH_NUMBERS = 20  # classes; the counts of more do not fit into the cells
MOST_WITH_NAMES = 120
LONGEST_NAME = 24


def confusion_matrix(labels: Any, predictions: Any, classes: int) -> np.ndarray:
    """How often class i (row, true) was taken for class j (column, predicted): (classes, classes) int64.

    labels, predictions: (n,) whole numbers from 0 to classes - 1. Raises ValueError for other lengths or numbers,
    TypeError if they are not whole numbers.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 1 or labels.shape != predictions.shape:
        raise ValueError(f"confusion_matrix: labels have shape {labels.shape} and predictions {predictions.shape}, "
                         "expected one of each for every image: (n,) and (n,)")
    for name, numbers in (("labels", labels), ("predictions", predictions)):
        if not np.issubdtype(numbers.dtype, np.integer):
            raise TypeError(f"confusion_matrix: {name} are {numbers.dtype}, expected whole numbers: pass "
                            "logits.argmax(1), not logits")
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < classes:
            raise ValueError(f"confusion_matrix: {name} go from {numbers.min()} to {numbers.max()}, expected 0 to "
                             f"{classes - 1} for {classes} classes")
    pairs = labels.astype(np.int64) * classes + predictions.astype(np.int64)
    return np.bincount(pairs, minlength=classes * classes).astype(np.int64).reshape(classes, classes)


def draw_confusion(labels: Any, predictions: Any, classes: Sequence[str], path: PathLike, title: str = "") -> None:
    """Draw the confusion matrix as a PNG: rows true, columns predicted; the title says the accuracy.

    labels, predictions: (n,) whole numbers, places in `classes`. The colour of a cell is its share of its row, on the
    scale of a square root, where rare confusions can be seen. Up to 20 classes the cells also show their counts.
    Raises what confusion_matrix does.
    """
    counts = confusion_matrix(labels, predictions, len(classes))
    side = 3.5 + (0.5 * len(classes) if len(classes) <= MOST_WITH_NUMBERS else min(9.0, 3 + 0.06 * len(classes)))
    figure = new_figure(side + 0.7, side)
    axes = figure.subplots()
    _draw_cells(figure, axes, counts)
    _name_classes(axes, classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    right, n = int(counts.trace()), int(counts.sum())
    accuracy = f"accuracy {right / n:.2%} ({right:,} of {n:,})" if n else "no images"
    axes.set_title(f"{title}\n{accuracy}" if title else accuracy, parse_math=False)
    write_png(figure, path)


def _draw_cells(figure: Any, axes: Any, counts: np.ndarray) -> None:
    """Colours, their scale, and for few classes the counts; a zero off the diagonal is left blank."""
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import PercentFormatter

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    bar = figure.colorbar(picture, ax=axes, shrink=0.7, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], format=PercentFormatter(1))
    bar.set_label("share of the row")
    if len(counts) > MOST_WITH_NUMBERS:
        return
    for row, column in zip(*np.nonzero(counts + np.eye(len(counts), dtype=np.int64)), strict=True):
        color = "white" if shares[row, column] > 0.3 else "black"
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=color, fontsize=8)


def _name_classes(axes: Any, classes: Sequence[str]) -> None:
    """Class names along both sides, smaller where there are many, none where they would be a smear."""
    if len(classes) > MOST_WITH_NAMES:
        return
    names = [name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME - 3] + "..." for name in map(str, classes)]
    size = 9 if len(classes) <= MOST_WITH_NUMBERS else max(5.5, 9 - 0.05 * len(classes))
    places = range(len(classes))
    turned = 90 if len(classes) > MOST_WITH_NUMBERS else 45 if max(map(len, names), default=0) > 2 else 0
    axes.set_xticks(places, names, rotation=turned, fontsize=size, parse_math=False,
                    **({"ha": "right", "rotation_mode": "anchor"} if turned == 45 else {}))
    axes.set_yticks(places, names, fontsize=size, parse_math=False)
