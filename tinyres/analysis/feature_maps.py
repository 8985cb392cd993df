"""What does a layer see? Its maps for some images; and for a residual block what branch and shortcut bring to the sum.

A residual block computes y = S(x) + F(x), or a ReLU of it (He et al. 2015, figure 2): the branch F only has to find
what is missing in S. So a block's maps come in four rows: the shortcut's, the branch's, their sum, and the output.
The parts are those of the addition: scales, gates and the like have been applied already. They are seen by watching the
ops of one forward pass in which fused ops run as their parts (tr.unfused), so that the addition is an op of its own.

All maps of a figure have one colour scale, symmetric about 0 where some are negative, so that rows can be compared; it
ends where 99.5 % of the values lie within.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.norms import finite, norm
from tinyres.analysis.untouched import host, untouched
from tinyres.files import PathLike
from tinyres.models.blocks import Block
from tinyres.nn import Module
from tinyres.operands import type_name
from tinyres.ops.shape import alias
from tinyres.state import no_grad, setting, unfused
from tinyres.tensor import Tensor

MOST = 0.995  # the share of the values that the colours tell apart: one bright pixel must not make all others pale
PARTS = ("shortcut", "branch", "sum", "output")


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """The maps of a layer: parts maps "output", or for a residual block "shortcut", "branch", "sum" and "output", to
    arrays (N, K, P, Q). images: (N, C, H, W), what went in."""

    layer: str
    type: str
    images: np.ndarray
    parts: dict[str, np.ndarray]

    def as_dict(self) -> dict[str, Any]:
        """Shape, mean, standard deviation, norm and share of zeros of each part, and the channels that are zero
        everywhere; the maps themselves are not in it. None: not finite."""
        found = {}
        for name, maps in self.parts.items():
            values = maps.astype(np.float64)
            found[name] = {"shape": list(maps.shape), "mean": finite(float(values.mean())),
                           "std": finite(float(values.std())), "norm": finite(norm(values)),
                           "zeros": float((maps == 0).mean()),
                           "dead_channels": [int(k) for k in np.flatnonzero(~maps.any(axis=(0, 2, 3)))]}
        return {"layer": self.layer, "type": self.type, "parts": found}


def feature_maps(network: Module, images: Any, layer: str) -> FeatureMaps:
    """The maps of the module called `layer` ("conv1", "layer2.0") for images (N, C, H, W), in eval mode.

    A layer that is used several times gives those of its last use; a block that adds in place, whose branch is then
    overwritten, its output alone. The network is afterwards as before.

    Raises AttributeError for a name that is not there, ValueError for a layer that the forward pass does not call or
    that gives no maps.
    """
    module = network.get_submodule(layer)
    watch = _Watch()
    handles = [module.register_forward_hook(watch.after)]
    if isinstance(module, Block):
        handles.append(module.shortcut.register_forward_hook(watch.after_shortcut))
    x = images if isinstance(images, Tensor) else Tensor(images)
    try:
        with untouched(network), no_grad(), unfused(), setting(debug=watch):
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    if watch.output is None:
        raise ValueError(f"feature_maps: the forward pass does not call {layer!r}: name a layer that it calls, or the "
                         "block around it")
    if not isinstance(watch.output, Tensor) or watch.output.ndim != 4:
        got = tuple(watch.output.shape) if isinstance(watch.output, Tensor) else type_name(watch.output)
        raise ValueError(f"feature_maps: {layer!r} gives {got}, expected maps (N, K, P, Q): name a layer that "
                         "gives them, before any pooling over the whole image")
    found = {name: host(getattr(watch, name).data) for name in PARTS if getattr(watch, name) is not None}
    return FeatureMaps(layer, type(module).__name__, host(x.data), found)


class _Watch:
    """Follows what a shortcut gives through the ops after it, to the addition where it meets the branch.

    It is the observer of `tinyres.state` for one forward pass without gradients.
    """

    def __init__(self) -> None:
        self.shortcut: Tensor | None = None  # at the addition, once it was met
        self.branch: Tensor | None = None
        self.sum: Tensor | None = None
        self.output: Any = None
        self.route: Tensor | None = None     # what has become of the shortcut's result so far

    def after(self, module: Module, args: tuple, output: Any) -> None:
        self.output, self.route = _copied(output), None

    def after_shortcut(self, module: Module, args: tuple, output: Tensor) -> Tensor:
        """Give an identity's result a name of its own: the branch begins at the very same tensor."""
        self.shortcut = self.branch = self.sum = None
        self.route = route = alias(output)
        return route

    def forward(self, node: Any, inputs: Sequence[Any], edges: Sequence[Any], result: Tensor) -> None:
        """After each op: the addition of the route and another tensor is the join; any other op carries it on."""
        if self.route is None or not any(x is self.route for x in inputs):
            return
        others = [x for x in inputs if isinstance(x, Tensor) and x is not self.route]
        if node.name == "add" and len(others) == 1 and others[0].shape == self.route.shape:
            self.shortcut, self.branch, self.sum, self.route = self.route, others[0], _copied(result), None
        elif result.ndim == 4:
            self.route = result

    def cut(self, *args: Any) -> None:
        """A detach(): nothing to note."""


def _copied(result: Any) -> Any:
    """A copy, as a ReLU in place may come next."""
    return Tensor(result.data.copy(order="K")) if isinstance(result, Tensor) else result


# --- the figures ------------------------------------------------------------------------------------------------------


def draw(result: FeatureMaps, path: PathLike, title: str = "", images: int = 4, maps: int = 10) -> None:
    """Draw the maps as a PNG: of a layer, a row for each image; of a block, its parts for the first image.

    The channels shown are those whose output varies most (by standard deviation over the images), in their own order.
    """
    output = result.parts["output"]
    strength = output.astype(np.float64).std(axis=(0, 2, 3))
    channels = np.sort(np.argsort(-strength, kind="stable")[:maps])
    if len(result.parts) > 1:
        rows = [(name, 0, result.parts[name]) for name in PARTS if name in result.parts]
    else:
        rows = [(f"image {i + 1}", i, output) for i in range(min(images, len(output)))]
    shown = np.concatenate([maps_[i, channels].ravel() for _, i, maps_ in rows])
    signed = bool((shown < 0).any())
    high = float(np.quantile(np.abs(shown), MOST)) or float(np.abs(shown).max()) or 1.0
    scale = {"cmap": "RdBu_r", "vmin": -high, "vmax": high} if signed else {"cmap": "magma", "vmin": 0, "vmax": high}
    figure = new_figure(1.0 + 0.92 * (len(channels) + 1), 0.7 + 0.95 * len(rows))
    grid = figure.subplots(len(rows), len(channels) + 1, squeeze=False)
    picture = None
    for r, (name, i, maps_) in enumerate(rows):
        grid[r, 0].set_ylabel(name, fontsize=9)
        _show_image(grid[r, 0], result.images[i])
        for c, channel in enumerate(channels):
            picture = grid[r, c + 1].imshow(maps_[i, channel], interpolation="nearest", **scale)
            if r == 0:
                grid[r, c + 1].set_title(f"{channel}", fontsize=8)
    for axes in grid.ravel():
        axes.set_xticks([])
        axes.set_yticks([])
    grid[0, 0].set_title("input", fontsize=8)
    bar = figure.colorbar(picture, ax=grid.ravel().tolist(), shrink=0.85, pad=0.01,
                          extend="both" if signed else "max")
    bar.set_label(f"value, one scale for all; {1 - MOST:.1%} lie beyond", fontsize=8)
    K, P, Q = output.shape[1:]
    figure.suptitle(f"{title + ': ' if title else ''}what does {result.layer} ({result.type}) see? {len(channels)} of "
                    f"{K} channels, {P} x {Q}", fontsize=10, parse_math=False)
    write_png(figure, path)


def _show_image(axes: Any, image: np.ndarray) -> None:
    """An input image, its own darkest value black and its brightest white; of other than 3 channels the first, grey."""
    low, high = float(image.min()), float(image.max())
    picture = (image - low) / (high - low or 1.0)
    axes.imshow(np.clip(picture.transpose(1, 2, 0), 0, 1) if len(image) == 3 else picture[0], cmap="gray",
                interpolation="nearest")
