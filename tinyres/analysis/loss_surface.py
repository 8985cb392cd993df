"""What does the loss look like around the weights? Its values along random directions that are scaled filter by filter.

Li et al. 2018, "Visualizing the loss landscape of neural nets", section 4. A network with ReLUs and batch norm computes
the same if one layer's weights are multiplied by 10 and the next one's divided by it, but a random direction of unit
length then moves it ten times less: pictures of two networks could not be compared. So each filter of the direction is
given the norm of the weights' own filter, d_ij <- d_ij |w_ij| / |d_ij|: a step of 1 changes every filter by as much as
it is. A filter is what makes one output: weight[k] of a convolution (C, R, S) and of a linear layer (C,). Biases and
batch norm's scales and shifts are not moved, as in the paper's code.

Batch norm's statistics at each point are, as the paper has it, the "running" ones of the network as it is; with
"batch" each point takes those of the images themselves, as a step of training does there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.palette import COLORS, MARKERS
from tinyres.analysis.untouched import Score, arrays, score, untouched
from tinyres.files import PathLike
from tinyres.kernels import layout
from tinyres.nn import Module

Direction = dict[str, Any]  # a parameter's name -> an array of its shape
STATISTICS = ("running", "batch")


def filterwise_direction(network: Module, rng: np.random.Generator) -> Direction:
    """A normal random direction whose filters have the norms of the network's own: an array for each weight of two or
    more dimensions, of its shape, dtype and memory order."""
    found: Direction = {}
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2:
            continue
        xp, weight = layout.array_module(parameter.data), parameter.data
        drawn = xp.asarray(rng.standard_normal(weight.shape))
        axes = tuple(range(1, weight.ndim))
        wanted = xp.sqrt((weight.astype(np.float64) ** 2).sum(axes, keepdims=True))
        drawn = drawn * (wanted / xp.sqrt((drawn * drawn).sum(axes, keepdims=True)))
        found[name] = (layout.channels_last(drawn) if drawn.ndim == 4 else drawn).astype(weight.dtype)
    if not found:
        raise ValueError(f"loss_surface: {type(network).__name__} has no weights of two or more dimensions, so there "
                         "is no filter to move")
    return found


@dataclass(frozen=True, eq=False)
class LossSurface:
    """Loss and accuracy at weights + x * first direction (+ y * second).

    x: (n,) steps, 1 being as long as the weights; y: (m,), or (1,) of 0 for a line; losses, accuracies: (m, n), NaN or
    infinite where the network overflows. images: how many they are means over; statistics: batch norm's.
    """

    x: np.ndarray
    y: np.ndarray
    losses: np.ndarray
    accuracies: np.ndarray
    images: int
    statistics: str
    seed: int

    @property
    def is_line(self) -> bool:
        """Whether there is one direction only."""
        return len(self.y) == 1

    @property
    def centre(self) -> float:
        """The loss at the weights themselves."""
        return float(self.losses[int(np.abs(self.y).argmin()), int(np.abs(self.x).argmin())])

    @property
    def concave_share(self) -> float:
        """The share of second differences, along x and along y, that are negative: 0 for a convex surface.

        Where a loss is not finite it counts as the highest: beyond it nothing is said.
        """
        z = np.where(np.isfinite(self.losses), self.losses, np.nan)
        bends = [z[:, 2:] - 2 * z[:, 1:-1] + z[:, :-2], z[2:] - 2 * z[1:-1] + z[:-2]]
        known = np.concatenate([bend[np.isfinite(bend)] for bend in bends])
        return float((known < 0).mean()) if len(known) else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: null for a loss that is not finite."""
        found = {name: value.tolist() if isinstance(value, np.ndarray) else value
                 for name, value in asdict(self).items()}
        found["losses"] = [[v if math.isfinite(v) else None for v in row] for row in found["losses"]]
        share = self.concave_share
        return found | {"centre": self.centre if math.isfinite(self.centre) else None,
                        "concave_share": share if math.isfinite(share) else None}


def loss_surface(network: Module, images: Any, labels: Any, steps: int = 21, span: float = 1.0, dimensions: int = 2,
                 statistics: str = "running", seed: int = 0, directions: Sequence[Direction] | None = None,
                 batch: int = 250) -> LossSurface:
    """Loss and accuracy on images (N, C, H, W) with labels (N,) around the network's weights.

    steps: points from -span to span in each of 1 or 2 dimensions, an odd number, so that the weights themselves are
    among them. directions: instead of random ones, a mapping from names to arrays for each dimension, such as a
    Hessian's eigenvectors; parameters that it leaves out are not moved.

    The network is afterwards as before, its weights to the bit. Raises ValueError for other steps, span, dimensions or
    statistics, and for directions that do not fit.
    """
    images, labels = arrays("loss_surface", images, labels)
    if dimensions not in (1, 2) or steps < 3 or steps % 2 == 0 or not 0 < span < math.inf:
        raise ValueError(f"loss_surface: got steps={steps}, span={span}, dimensions={dimensions}; expected an odd "
                         "number of steps of at least 3, a positive span, and 1 or 2 dimensions")
    if statistics not in STATISTICS:
        raise ValueError(f"loss_surface: statistics is {statistics!r}, expected one of {', '.join(STATISTICS)}")
    rng = np.random.Generator(np.random.Philox(seed))
    if directions is None:
        directions = [filterwise_direction(network, rng) for _ in range(dimensions)]
    _check(network, directions, dimensions)
    x = np.linspace(-span, span, steps)
    x[steps // 2] = 0.0
    y = x if dimensions == 2 else np.zeros(1)
    found: list[list[Score]] = []
    with untouched(network, training=statistics == "batch"):
        parameters = dict(network.named_parameters())
        base = {name: p.data for name, p in parameters.items()}
        for b in y:
            found.append([])
            for a in x:
                for name, parameter in parameters.items():
                    parameter.data = _moved(base[name], [(s, d[name]) for s, d in zip((a, b), directions, strict=False)
                                                         if name in d and s])
                found[-1].append(score(network, images, labels, len(labels) if statistics == "batch" else batch))
    return LossSurface(x, y, np.array([[s.loss for s in row] for row in found]),
                       np.array([[s.accuracy for s in row] for row in found]), len(labels), statistics, seed)


def _moved(base: Any, parts: Sequence[tuple[float, Any]]) -> Any:
    """base + the sum of step * direction in its dtype and memory order; base itself where nothing is added."""
    for step, direction in parts:
        base = layout.elementwise(lambda w, d, s=step: w + w.dtype.type(s) * d.astype(w.dtype), base, direction)
    return base


def _check(network: Module, directions: Sequence[Direction], dimensions: int) -> None:
    if len(directions) != dimensions:
        raise ValueError(f"loss_surface: {len(directions)} directions for {dimensions} dimensions: give one each")
    shapes = {name: p.shape for name, p in network.named_parameters()}
    for direction in directions:
        for name, d in direction.items():
            if name not in shapes or d.shape != shapes[name]:
                raise ValueError(f"loss_surface: the direction of {name!r} has shape {tuple(d.shape)}, expected "
                                 f"{shapes.get(name, 'the name of a parameter')}")


# --- the figures ------------------------------------------------------------------------------------------------------


def draw(results: LossSurface | Mapping[str, LossSurface], path: PathLike, title: str = "") -> None:
    """Draw one or several surfaces as a PNG, all of one scale: contours of two dimensions, curves of one.

    Colours and contours are logarithmic; what lies beyond their end, or is not finite, has the end's colour. Raises
    ValueError for surfaces and lines together.
    """
    named = {"": results} if isinstance(results, LossSurface) else results
    if len({one.is_line for one in named.values()}) != 1:
        raise ValueError("loss_surface: lines and surfaces cannot be drawn together: give one kind")
    one = next(iter(named.values()))
    heading = f"{title + ': ' if title else ''}how does the loss rise around the weights?"
    if one.is_line:
        figure = _draw_lines(named)
    else:
        figure = _draw_contours(named)
    figure.suptitle(f"{heading}\n({one.images:,} images, {one.statistics} statistics of batch norm)", fontsize=10,
                    parse_math=False)
    write_png(figure, path)


def _draw_lines(named: Mapping[str, LossSurface]) -> Any:
    from matplotlib.ticker import LogFormatter

    figure = new_figure(8.6, 3.6)
    left, right = figure.subplots(1, 2)
    for i, (name, one) in enumerate(named.items()):
        style = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 3}
        left.plot(one.x, np.where(np.isfinite(one.losses[0]), one.losses[0], np.nan), label=name, **style)
        right.plot(one.x, 100 * (1 - one.accuracies[0]), label=name, **style)
    left.set_yscale("log")
    left.yaxis.set_major_formatter(LogFormatter())  # 2.5 rather than 2.5 x 10^0
    left.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
    left.set_ylabel("loss (cross-entropy)")
    right.set_ylabel("error in %")
    right.set_ylim(-3, 103)
    for axes in (left, right):
        axes.set_xlabel("step along the direction (1: as long as the weights)")
        axes.grid(alpha=0.3)
        axes.axvline(0, color="black", linestyle=":", linewidth=1)
    if any(named):
        for text in left.legend(fontsize=8).get_texts():
            text.set_parse_math(False)
    return figure


def _draw_contours(named: Mapping[str, LossSurface]) -> Any:
    """Filled contours on one logarithmic scale, with labelled lines; a cross at the weights."""
    from matplotlib.colors import LogNorm

    values = np.concatenate([one.losses.ravel() for one in named.values()])
    finite = values[np.isfinite(values) & (values > 0)]
    low = float(finite.min()) if len(finite) else 0.1
    high = min(float(finite.max()) if len(finite) else 1.0, max(low * 10, HIGHEST))
    levels = np.geomspace(low, max(high, low * 1.01), 24)
    columns = min(len(named), 3)
    rows = -(-len(named) // columns)
    figure = new_figure(1.2 + 3.7 * columns, 0.6 + 3.5 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    filled = None
    for axes, (name, one) in zip(grid.ravel(), named.items(), strict=False):
        z = np.clip(np.where(np.isfinite(one.losses), one.losses, levels[-1]), levels[0], levels[-1])
        filled = axes.contourf(one.x, one.y, z, levels, norm=LogNorm(levels[0], levels[-1]), cmap="viridis_r")
        lines = axes.contour(one.x, one.y, z, levels[2:-1:3], linewidths=0.7,
                             colors=["black" if 2 * i < len(levels) else "white" for i in range(2, len(levels) - 1, 3)])
        axes.clabel(lines, lines.levels[1::2], fmt="%.2g", fontsize=7)
        axes.plot(0, 0, "X", color="white", markeredgecolor="black", markersize=8)
        axes.set_aspect("equal")
        axes.set_xlabel("step along direction 1")
        axes.set_ylabel("step along direction 2")
        share = "" if math.isnan(one.concave_share) else f", concave at {one.concave_share:.0%}"
        axes.set_title(f"{name + ': ' if name else ''}loss {one.centre:.3g} at the cross{share}", fontsize=9,
                       parse_math=False)
    for axes in list(grid.ravel())[len(named):]:
        axes.set_axis_off()
    bar = figure.colorbar(filled, ax=grid.ravel().tolist(), shrink=0.8, format="%.2g")
    bar.set_ticks(levels[::4].tolist())
    bar.ax.minorticks_off()
    bar.set_label("loss (cross-entropy)")
    return figure


HIGHEST = 10.0  # contours end here where losses go on, lest one far corner take all the colours
