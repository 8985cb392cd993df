"""Gradient flow: how large the gradient is at the output of every layer and block, and at every parameter.

Gradients that shrink or grow from layer to layer as a power of the depth were the first obstacle to deep networks
(Hochreiter 1991; Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks",
figure 7). The numbers come from the events of one backward pass: the gradient of a node is read when all of its
consumers have contributed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.norms import finite, norm
from tinyres.analysis.taps import calls, leaf, objective
from tinyres.analysis.untouched import untouched
from tinyres.files import PathLike
from tinyres.nn import Module
from tinyres.state import enable_grad


@dataclass(frozen=True)
class OutputFlow:
    """The gradient at the output of one call of a layer or block: its norm, and its root mean square, which does not
    depend on how many numbers there are. None: not finite, or no gradient came."""

    name: str
    type: str
    is_block: bool
    shape: tuple[int, ...]
    norm: float | None
    rms: float | None


@dataclass(frozen=True)
class ParameterFlow:
    """Norms of a parameter's gradient and of the parameter. gradient is None where none came, or not finite."""

    name: str
    shape: tuple[int, ...]
    gradient: float | None
    value: float | None

    @property
    def ratio(self) -> float | None:
        """How large the gradient is beside the parameter; None for a parameter of zeros."""
        return self.gradient / self.value if self.gradient is not None and self.value else None


@dataclass(frozen=True)
class GradientFlow:
    """Outputs in the order of the calls, parameters in their own; images: the norm of the gradient at the input."""

    outputs: list[OutputFlow]
    parameters: list[ParameterFlow]
    images: float | None
    loss: float | None

    @property
    def blocks(self) -> list[OutputFlow]:
        """The outputs of blocks; of layers where there are no blocks."""
        return [row for row in self.outputs if row.is_block] or self.outputs

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return asdict(self)


def gradient_flow(network: Module, images: Any, labels: Any, training: bool | None = None) -> GradientFlow:
    """One forward and backward pass, and the gradient's norm at every output and parameter.

    images: (N, C, H, W) floats of the network's dtype; labels: (N,), or a function that makes one number of the output.
    training: the mode, else each module's own. The network stays as it is. Raises what the network raises for images
    that do not fit it.
    """
    with untouched(network, training), enable_grad():
        with calls(network, lambda output: output.edge) as made:
            x = leaf(images)
            loss = objective(network(x), labels)
        watched = {call.seen for call in made} | set(network.parameters()) | {x}
        norms = {event.node: norm(event.grad) for event in loss.backward_steps(retain_graph=False)
                 if event.kind == "ready" and event.node in watched}
        outputs = [OutputFlow(call.name, call.type, call.is_block, tuple(call.output.shape),
                              _known(norms, call.seen),
                              _known(norms, call.seen, math.sqrt(call.output.data.size))) for call in made]
        parameters = [ParameterFlow(name, tuple(p.shape), _known(norms, p), finite(norm(p.data)))
                      for name, p in network.named_parameters()]
    return GradientFlow(outputs, parameters, _known(norms, x), finite(float(loss.data)))


def _known(norms: dict[Any, float], node: Any, by: float = 1.0) -> float | None:
    return finite(norms[node] / by) if node in norms else None


def draw(flow: GradientFlow, path: PathLike, title: str = "") -> None:
    """Draw the norms as a PNG: at the outputs of the blocks, and at the weights, both against depth."""
    figure = new_figure(max(8.0, min(16.0, 4 + 0.3 * len(flow.blocks))), 6.4)
    top, bottom = figure.subplots(2, 1)
    blocks = flow.blocks
    places = range(len(blocks))
    top.plot(places, [row.norm or float("nan") for row in blocks], "o-", color="#0072B2", markersize=4)
    step = -(-len(blocks) // 40)
    top.set_xticks(list(places)[::step], [row.name for row in blocks][::step], rotation=90, fontsize=8)
    top.set_xlabel(f"{'block' if blocks and blocks[0].is_block else 'layer'}, first to last")
    top.set_ylabel("norm of the gradient\nat the output")
    kinds = (("weights of layers", lambda p: len(p.shape) > 1, "#0072B2", "o"),
             ("scales, shifts, biases", lambda p: len(p.shape) <= 1, "#D55E00", "x"))
    for label, belongs, color, marker in kinds:
        rows = [(i, p.gradient or float("nan")) for i, p in enumerate(flow.parameters) if belongs(p)]
        if rows:
            bottom.plot(*zip(*rows, strict=True), marker, color=color, label=label, markersize=4)
    bottom.set_xlabel("number of the parameter, first to last")
    bottom.set_ylabel("norm of the\nparameter's gradient")
    bottom.legend(fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    for axes in (top, bottom):
        axes.set_yscale("log")
        axes.grid(alpha=0.3, which="major")
    figure.suptitle(f"Does the gradient reach the first layers?\n{title}".rstrip(), parse_math=False)
    write_png(figure, path)
