"""From an array to the few numbers and the small map that the stepper shows of it.

Norm and mean are summed in float64. Maps are averages over rectangles, so that a pattern larger than a cell survives; a
single hot element does not, but is seen in min and max.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from tinyres import kernels
from tinyres.analysis.norms import finite, norm
from tinyres.analysis.untouched import host
from tinyres.stepper.schema import LISTED, Summary

SIDE, MAP_SIDE = 8, 16  # of a map of any array, and of a feature map
CHANNELS = 4
LEVELS = 99


def summarise(array: Any) -> Summary:
    """The summary of an array of any shape and dtype, on any device."""
    x = host(array)
    shape, dtype = tuple(x.shape), str(x.dtype)
    if x.dtype.kind not in "fiub" or not x.size:
        return Summary(shape, dtype, None, None, None, None, 0.0)
    flat = in_memory_order(x)
    with np.errstate(invalid="ignore", over="ignore"):
        total, squares, zeros = kernels.moments(flat)
    bad = 0 if math.isfinite(squares) or flat.dtype.kind != "f" else flat.size - int(np.isfinite(flat).sum())
    low, high = (float(flat.min()), float(flat.max())) if not bad else (math.nan, math.nan)
    length = math.sqrt(squares) if 0 < squares < math.inf or bad else norm(flat)  # squares may overflow or vanish
    cells, top = small_map(_plane(x), SIDE)
    return Summary(shape, dtype, finite(length), finite(low),
                   finite(total / flat.size), finite(high), zeros / flat.size, bad, cells, top,
                   values=[finite(float(v)) for v in x.reshape(-1)] if x.size <= LISTED else [])


def in_memory_order(x: np.ndarray) -> np.ndarray:
    """All elements as one axis, without a copy where the memory is contiguous in whatever order of axes."""
    return x.transpose(_order(x)).reshape(-1)


def inner(a: Any, b: Any) -> float:
    """<a, b> of two arrays of one shape, summed in float64; inf or nan where it overflows."""
    order = _order(a)
    with np.errstate(invalid="ignore", over="ignore"):
        return kernels.inner(a.transpose(order).reshape(-1), b.transpose(order).reshape(-1))


def _order(x: Any) -> tuple[int, ...]:
    """The axes from the slowest in memory to the fastest."""
    return tuple(int(axis) for axis in np.argsort([-abs(s) for s in x.strides], kind="stable"))


def _plane(x: np.ndarray) -> np.ndarray:
    """The two axes that are drawn: of an image batch the first image's first channel, of a vector one row."""
    while x.ndim > 2:
        x = x[0]
    return x.reshape(1, -1) if x.ndim < 2 else x


def small_map(plane: np.ndarray, side: int, top: float | None = None) -> tuple[list[list[int]], float]:
    """(H, W) as at most side x side averages, in whole numbers of which LEVELS stands for the largest magnitude (`top`
    where it is given), and that magnitude. What is not finite counts as 0."""
    means = _averages(plane, side)
    top = float(np.abs(means).max()) if top is None else top
    if not top:
        return np.zeros(means.shape, int).tolist(), 0.0
    return np.rint(means * (LEVELS / top)).astype(int).tolist(), top


def first_channels(x: Any) -> np.ndarray | None:
    """Of an image batch (N, C, H, W) a copy of the first image's first channels, large ones made smaller; else None."""
    if x.ndim != 4 or not x.size or x.dtype.kind != "f":
        return None
    part = host(x[0, :CHANNELS])
    if max(part.shape) > 4 * MAP_SIDE:
        return np.stack([_averages(plane, MAP_SIDE) for plane in part])
    return part.copy()


def with_maps(summary: Summary, channels: np.ndarray) -> Summary:
    """A summary with feature maps, all on one scale."""
    channels = np.stack([_averages(plane, MAP_SIDE) for plane in channels])
    top = float(np.abs(channels).max())
    return replace(summary, maps=[small_map(plane, MAP_SIDE, top)[0] for plane in channels], maps_top=top)


def _averages(plane: np.ndarray, side: int) -> np.ndarray:
    cells = np.asarray(plane, dtype=np.float64)
    if not np.isfinite(cells).all():
        cells = np.nan_to_num(cells, nan=0.0, posinf=0.0, neginf=0.0)
    for axis in (0, 1):
        n = cells.shape[axis]
        if n > side:
            edges = [i * n // side for i in range(side + 1)]
            sums = np.add.reduceat(cells, edges[:-1], axis=axis)
            sizes = np.diff(edges)
            cells = sums / (sizes[:, None] if axis == 0 else sizes)
    return cells
