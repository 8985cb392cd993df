"""Do neighbouring inputs have similar gradients? dy/dx along a line of inputs, and how far it resembles itself.

Balduzzi et al. 2017, "The shattered gradients problem", section 2 and figure 1. In a deep plain network dy/dx looks
like white noise along a line of inputs: it says nothing about the point next door. With shortcuts it decays more
slowly, like something between white and brown noise, but shortcuts alone do not save it: a branch scaled by a small
number, or batch norm, does. The measure is the autocorrelation at lag k,

    R(k) = sum_i <g_i - m, g_{i+k} - m> / sum_i <g_i - m, g_i - m>,    m the mean of the g_i,

of the gradients g_i at n points, one step apart. For inputs of one number it is the paper's; for images <,> is the
inner product, so that R weighs every pixel's gradient.

Each g_i must be a gradient at one point alone. So batch norm does not use the batch's statistics but fixed ones: its
running ones, or (`statistics="line"`) those that the points themselves have in an untrained network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinyres import autograd, random
from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.palette import COLORS, MARKERS
from tinyres.analysis.untouched import host, untouched
from tinyres.files import PathLike
from tinyres.kernels import layout
from tinyres.nn import BatchNorm1d, BatchNorm2d, Module
from tinyres.state import enable_grad, no_grad
from tinyres.tensor import Tensor

STATISTICS = ("running", "line")


@dataclass(frozen=True, eq=False)
class Shattering:
    """The gradient along a line of inputs.

    positions: (n,) from 0 to the line's length; along: (n,) the derivative of the output in the line's direction, per
    unit of length; norms: (n,) of the whole gradient; autocorrelation: (lags + 1,) R(0) = 1, R(1), ...
    """

    positions: np.ndarray
    along: np.ndarray
    norms: np.ndarray
    autocorrelation: np.ndarray
    output: int
    statistics: str

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value
                for name, value in asdict(self).items()}


def shattering(network: Module, start: Any, end: Any, points: int = 256, lags: int = 20, output: int = 0,
               statistics: str = "running") -> Shattering:
    """The gradient of one output at `points` inputs from `start` to `end`, equally far apart, and its autocorrelation.

    start, end: two inputs of one shape, without the batch's axis: (C, H, W), or (1,) for a function of one number.
    output: which of the network's outputs; statistics: batch norm's, "running" or "line" (see above).

    The network is run in eval mode, and is afterwards as before. Raises ValueError for points that are fewer than two
    or do not differ, lags that the line does not have, an output that is not there, batch norm that has no statistics
    but the batch's, or gradients that are not finite or all alike.
    """
    first, last = (host(x.data if isinstance(x, Tensor) else np.asarray(x)) for x in (start, end))
    if first.shape != last.shape or np.array_equal(first, last):
        raise ValueError(f"shattering: start and end have shapes {first.shape} and {last.shape}, expected two "
                         "different inputs of one shape, without the batch's axis")
    if not 1 <= lags < points - 1:
        raise ValueError(f"shattering: {points} points have no lag {lags}, expected 1 <= lags < points - 1")
    if statistics not in STATISTICS:
        raise ValueError(f"shattering: statistics is {statistics!r}, expected one of {', '.join(STATISTICS)}")
    parameter = next(iter(network.parameters()), None)
    dtype = first.dtype if parameter is None else parameter.dtype
    share = np.linspace(0.0, 1.0, points).reshape(-1, *(1,) * first.ndim)
    line = (first.astype(np.float64) * (1 - share) + last.astype(np.float64) * share).astype(dtype)
    line = line if parameter is None else layout.array_module(parameter.data).asarray(line)
    with untouched(network), enable_grad():
        for name, norm in network.named_modules():
            if isinstance(norm, (BatchNorm1d, BatchNorm2d)) and not norm.track_running_stats:
                raise ValueError(f"shattering: {name or type(norm).__name__} normalises by the batch in eval mode too, "
                                 "so that no gradient is one point's alone: build it with track_running_stats=True")
        if statistics == "line":
            _take_statistics(network, line)
        x = Tensor(line, requires_grad=True)
        y = network(x)
        if y.ndim != 2 or not 0 <= output < y.shape[1]:
            raise ValueError(f"shattering: the network gives {tuple(y.shape)}, which has no output {output}: expected "
                             "(points, outputs)")
        gradients = host(autograd.grad(y[:, output].sum(), x)[0].data)  # type: ignore[union-attr]
    g = gradients.reshape(points, -1).astype(np.float64)
    direction = (last.astype(np.float64) - first).reshape(-1)
    length = float(np.linalg.norm(direction))
    return Shattering(np.linspace(0.0, length, points), g @ direction / length, np.linalg.norm(g, axis=1),
                      autocorrelation(g, lags), output, statistics)


def autocorrelation(gradients: np.ndarray, lags: int) -> np.ndarray:
    """R(0), ..., R(lags) of a series of vectors (n, d), or of numbers (n,): (lags + 1,) float64.

    Raises ValueError where a gradient is NaN or infinite, or all are alike, which leaves nothing to correlate.
    """
    g = gradients.reshape(len(gradients), -1)
    if not np.isfinite(g).all():
        raise ValueError("shattering: a gradient along the line is NaN or infinite: the network's activations "
                         'overflow; use statistics="line" for an untrained network with batch norm, or fewer layers')
    centred = g - g.mean(axis=0)
    size = np.abs(centred).max()
    if size <= 1e-12 * np.abs(g).max() or size == 0:
        raise ValueError("shattering: the gradient is the same all along the line, so it has no autocorrelation: take "
                         "a longer line")
    centred /= size  # a gradient of 1e200 has no square
    power = np.vdot(centred, centred)
    return np.array([np.vdot(centred[:len(g) - k], centred[k:]) / power for k in range(lags + 1)])


def over_seeds(make: Callable[[], Module], seeds: Sequence[int], start: Any, end: Any,
               **options: Any) -> list[Shattering]:
    """`shattering` of the networks that make() builds after manual_seed(seed), one for each seed.

    The random state is put back at the end. The paper averages the autocorrelation over networks.
    """
    state, found = random.get_state(), []
    try:
        for seed in seeds:
            random.manual_seed(seed)
            found.append(shattering(make(), start, end, **options))
    finally:
        random.set_state(state)
    return found


def _take_statistics(network: Module, line: Any) -> None:
    """Set every batch norm's running statistics to those of the line's points, by one pass in training mode."""
    norms = [m for m in network.modules() if isinstance(m, (BatchNorm1d, BatchNorm2d))]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.training = 1.0, True
        with no_grad():
            network(Tensor(line))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum, norm.training = momentum, False


# --- the figure -------------------------------------------------------------------------------------------------------


def draw(results: Shattering | Mapping[str, Sequence[Shattering]], path: PathLike, title: str = "") -> None:
    """Draw gradients along the line and their autocorrelation as a PNG.

    results: one, or for each name those of several seeds: the gradient shown is the first seed's, the autocorrelation
    their mean, in a band from the lowest to the highest. The grey band is where 95 % of white noise lies.
    """
    groups = {"": [results]} if isinstance(results, Shattering) else results
    figure = new_figure(9.6, 1.2 + max(2.6, 1.15 * len(groups)))
    left, right = figure.subfigures(1, 2, width_ratios=[1.15, 1])
    panels = np.atleast_1d(left.subplots(len(groups), 1, sharex=True))
    axes = right.subplots()
    points = len(next(iter(groups.values()))[0].positions)
    noise = 1.96 / points**0.5
    axes.axhspan(-noise, noise, color="0.85", label="white noise (95 %)")
    for i, (panel, (name, found)) in enumerate(zip(panels, groups.items(), strict=True)):
        color = COLORS[i % len(COLORS)]
        size = np.abs(found[0].along).max() or 1.0
        panel.plot(found[0].positions, found[0].along / size, color=color, linewidth=0.9)
        panel.set_ylim(-1.15, 1.15)
        panel.set_title(f"{name + ': ' if name else ''}largest |dy/dx| {size:.2g}", fontsize=9, loc="left",
                        parse_math=False)
        panel.grid(alpha=0.3)
        curves = np.array([one.autocorrelation for one in found])
        lags = np.arange(curves.shape[1])
        axes.plot(lags, curves.mean(axis=0), color=color, marker=MARKERS[i % len(MARKERS)], markersize=4,
                  label=name or "this network")
        if len(found) > 1:
            axes.fill_between(lags, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.15, linewidth=0)
    panels[-1].set_xlabel("position on the line of inputs")
    left.supylabel("dy/dx along the line (largest = 1)", fontsize=9)
    axes.set_xlabel("lag in points")
    axes.set_ylabel("autocorrelation of dy/dx")
    axes.set_ylim(min(-0.3, axes.get_ylim()[0]), 1.05)
    axes.grid(alpha=0.3)
    legend = right.legend(fontsize=8, loc="outside upper center", ncols=2)
    for text in legend.get_texts():
        text.set_parse_math(False)
    seeds = max(len(found) for found in groups.values())
    heading = f"{title + ': ' if title else ''}does the gradient shatter?"
    figure.suptitle(f"{heading} ({points} points{f', {seeds} seeds' if seeds > 1 else ''})", fontsize=11,
                    parse_math=False)
    write_png(figure, path)
