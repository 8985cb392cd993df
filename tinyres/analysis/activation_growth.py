"""Activation growth: mean, standard deviation and size of what every layer and block puts out, against depth.

Without normalisation, a block x + a F(x) whose branch keeps the size of its input on average, |F(x)| = |x|, and points
anywhere, multiplies the squared size by 1 + a^2, so L blocks make (1 + a^2)^(L/2) of it: an explosion for a = 1, a
constant factor for a = 1/sqrt(L) (Zhang, Dauphin and Ma 2019, "Fixup initialization", section 2; De and Smith 2020,
section 3). Batch norm in the branch keeps |F(x)| fixed instead, and growth becomes that of a sum, sqrt(L).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.norms import finite, norm
from tinyres.analysis.taps import calls, leaf
from tinyres.analysis.untouched import untouched
from tinyres.files import PathLike
from tinyres.nn import Module
from tinyres.state import no_grad
from tinyres.tensor import Tensor


@dataclass(frozen=True)
class Activation:
    """The output of one call of a layer or block. rms: root mean square, the norm a number; growth: rms beside that of
    the first block's input (without blocks, the first layer's output). None: not finite."""

    name: str
    type: str
    is_block: bool
    shape: tuple[int, ...]
    mean: float | None
    std: float | None
    norm: float | None
    rms: float | None
    growth: float | None


@dataclass(frozen=True)
class ActivationGrowth:
    """The outputs in the order of the calls. start: the rms that growth is measured from."""

    outputs: list[Activation]
    start: float | None

    @property
    def blocks(self) -> list[Activation]:
        """The outputs of blocks; of layers where there are no blocks."""
        return [row for row in self.outputs if row.is_block] or self.outputs

    @property
    def growth(self) -> float | None:
        """Of the last block."""
        return self.blocks[-1].growth if self.outputs else None

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return asdict(self)


def activation_growth(network: Module, images: Any, training: bool | None = None) -> ActivationGrowth:
    """One forward pass, and the size of every output.

    images: (N, C, H, W) floats of the network's dtype. training: the mode, else each module's own. The network stays
    as it is. Raises what the network raises for images that do not fit it.
    """
    with untouched(network, training), no_grad(), calls(network, _sizes) as made:
        network(leaf(images).detach())
    blocks = [call for call in made if call.is_block]
    start = _sizes(blocks[0].input)[3] if blocks else made[0].seen[3] if made else 0.0
    rows = [Activation(call.name, call.type, call.is_block, tuple(call.output.shape), finite(mean), finite(std),
                       finite(size), finite(rms), finite(rms / start) if start else None)
            for call in made for mean, std, size, rms in [call.seen]]
    return ActivationGrowth(rows, finite(start))


def _sizes(output: Tensor) -> tuple[float, float, float, float]:
    """Mean, standard deviation, norm and root mean square, in float64."""
    values = output.data.astype("float64")
    size = norm(values)
    return float(values.mean()), float(values.std()), size, size / math.sqrt(values.size)


def draw(growth: ActivationGrowth, path: PathLike, title: str = "") -> None:
    """Draw the size (rms), spread (std) and mean of the blocks' outputs against depth as a PNG."""
    blocks = growth.blocks
    figure = new_figure(max(8.0, min(16.0, 4 + 0.3 * len(blocks))), 4.6)
    axes = figure.subplots()
    places = range(len(blocks))
    series = (("root mean square", [row.rms for row in blocks], "black", "o-"),
              ("standard deviation", [row.std for row in blocks], "#0072B2", "s--"),
              ("mean, without its sign", [abs(row.mean or 0.0) for row in blocks], "#D55E00", "^:"))
    for label, values, color, style in series:
        axes.plot(places, [v or float("nan") for v in values], style, color=color, label=label, markersize=4)
    axes.set_yscale("log")
    axes.set_ylabel("size of the output")
    step = -(-len(blocks) // 40)
    axes.set_xticks(list(places)[::step], [row.name for row in blocks][::step], rotation=90, fontsize=8)
    axes.set_xlabel(f"{'block' if blocks and blocks[0].is_block else 'layer'}, first to last")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.suptitle(f"Do activations grow with depth?\n{title}".rstrip(), parse_math=False)
    write_png(figure, path)
