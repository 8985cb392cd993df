"""Pictures of a data set: images in a grid, each below the name of its class; and what augmentation does to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyres.analysis.figure import new_figure, write_png
from tinyres.files import PathLike

if TYPE_CHECKING:
    from tinyres.data.augment import Transform
    from tinyres.data.dataset import Dataset

CELL = 0.9  # inches that an image is wide
GAP = 0.08  # inches between two
TITLE = 0.19  # inches for the text above one
LONGEST_NAME = 17  # letters that fit above an image


def spread(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """The places of `count` random images, as many of each class as can be, ordered by class: (count,) int64.

    labels: (N,) int64. All N if count is larger. The same seed gives the same ones.
    """
    from tinyres.data import philox

    order = philox.permutation(seed, 0, len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    sizes = np.unique(labels, return_counts=True)[1]
    rank = np.empty(len(labels), np.int64)  # how many images of its class come before an image in the order
    rank[by_class] = np.concatenate([np.arange(size) for size in sizes])
    chosen = order[np.argsort(rank[order], kind="stable")][:count]
    return chosen[np.argsort(labels[chosen], kind="stable")]


def draw_grid(dataset: Dataset, index: Sequence[int] | np.ndarray, path: PathLike, title: str = "",
              columns: int = 10) -> None:
    """Draw the images at `index` (B,), as they are stored, into a PNG.

    Raises ValueError if the index is empty or out of range, or columns is below 1.
    """
    chosen = dataset.subset(index)
    names = [dataset.classes[label] for label in chosen.labels]
    _draw(dataset, chosen.images, names, path, title, columns)


def draw_augmented(dataset: Dataset, index: Sequence[int] | np.ndarray, transforms: Sequence[Transform],
                   path: PathLike, seed: int = 0, epochs: int = 7, title: str = "") -> None:
    """Draw the images at `index` (B,) into a PNG, a row each: as it is, then as epochs 1, 2, ... of training see it.

    Raises what `draw_grid` raises, and ValueError if epochs is below 1.
    """
    if epochs < 1:
        raise ValueError(f"draw_augmented: epochs is {epochs}, expected at least 1")
    versions = augmented(dataset, index, transforms, seed, epochs)
    names = [text for label in dataset.labels[np.asarray(index)]
             for text in (dataset.classes[label], *(f"epoch {epoch + 1}" for epoch in range(epochs)))]
    _draw(dataset, versions.reshape(-1, *versions.shape[2:]), names, path, title, columns=epochs + 1)


def augmented(dataset: Dataset, index: Sequence[int] | np.ndarray, transforms: Sequence[Transform], seed: int,
              epochs: int) -> np.ndarray:
    """The stored images at `index` (B,), and what a `Loader` makes of them: (B, 1 + epochs, C, H, W)."""
    from tinyres.data import philox

    stored = dataset.subset(index).images
    versions = [stored]
    for epoch in range(epochs):
        images = stored
        for number, transform in enumerate(transforms):
            images = transform(images, philox.words(seed, epoch, 1 + number, len(dataset))[np.asarray(index)])
        versions.append(images)
    return np.stack(versions, axis=1)


def _draw(dataset: Dataset, images: np.ndarray, names: Sequence[str], path: PathLike, title: str, columns: int) -> None:
    """Draw images (B, C, H, W) in rows, each below its name."""
    if columns < 1:
        raise ValueError(f"draw_grid: columns is {columns}, expected at least 1")
    if len(images) == 0:
        raise ValueError("draw_grid: no images were chosen, expected at least one place in index")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    c, h, w = images.shape[1:]
    pixels = np.clip(images / dataset.scale, 0, 1).transpose(0, 2, 3, 1)
    width, height = CELL, CELL * h / w
    figure = new_figure(columns * (width + GAP) + 0.2, rows * (height + TITLE) + (0.4 if title else 0.1))
    axes = figure.subplots()  # one for all, in inches: a hundred of them take seconds
    axes.set_axis_off()
    for number, name in enumerate(names):
        row, column = divmod(number, columns)
        left, top = column * (width + GAP), row * (height + TITLE) + TITLE
        _draw_image(axes, pixels[number], c, (left, left + width, top + height, top))
        axes.text(left + width / 2, top - 0.03, _shortened(name), fontsize=6.5, ha="center", parse_math=False)
    axes.set(xlim=(0, columns * (width + GAP)), ylim=(rows * (height + TITLE), 0))
    if title:
        figure.suptitle(title, fontsize=9, parse_math=False)
    write_png(figure, path)


def _draw_image(axes: Any, pixels: np.ndarray, channels: int, place: tuple[float, float, float, float]) -> None:
    """Draw pixels (H, W, C) from 0 to 1: three channels in colour, any other number as their mean in grey."""
    if channels == 3:
        axes.imshow(pixels, interpolation="nearest", extent=place)
    else:
        axes.imshow(pixels.mean(axis=2), cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=place)


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."
