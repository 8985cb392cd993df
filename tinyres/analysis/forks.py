"""The split of the gradient at every fork: what each consumer of a tensor brings to its gradient.

A tensor that several ops use gets the sum of what they bring. In front of a residual block these are the shortcut and
the branch: g = g_shortcut + g_branch, and where the shortcut is an identity, g_shortcut is the gradient at the block's
addition itself (He et al. 2016, "Identity mappings in deep residual networks", equation 5). The share
<g_shortcut, g> / <g, g> says how much of the gradient the identity route carries; shares sum to 1, and one is negative
where its consumer works against the sum.

Nothing is calculated here: the engine's events show each contribution as it arrives, and the whole when it is complete.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.norms import cosine, finite, norm, share
from tinyres.analysis.taps import leaf, objective, tapped
from tinyres.analysis.untouched import untouched
from tinyres.files import PathLike
from tinyres.graph import topological_order
from tinyres.nn import Module
from tinyres.state import enable_grad

SHORTCUT = "shortcut"


@dataclass(frozen=True)
class Contribution:
    """What one consumer brings: its op ("shortcut" for the way past a block, "block NAME" for a block as a whole), the
    norm, and the share of the whole."""

    consumer: str
    norm: float | None
    share: float | None


@dataclass(frozen=True)
class Fork:
    """A tensor with several consumers. residual: it is the fork in front of a block, and its first contribution is the
    shortcut's. branch: norm of the sum of all but the first; cosine: the angle between the first and that sum; norm: of
    the whole gradient. None where a number is not defined, as the direction of a zero."""

    name: str
    residual: bool
    shape: tuple[int, ...]
    contributions: list[Contribution]
    branch: float | None
    cosine: float | None
    norm: float | None

    @property
    def share(self) -> float | None:
        """Of the first contribution."""
        return self.contributions[0].share


@dataclass(frozen=True)
class GradientSplit:
    """The forks in the order of the forward pass; loss: at which the backward pass began."""

    forks: list[Fork]
    loss: float | None

    @property
    def residual(self) -> list[Fork]:
        """Those in front of residual blocks."""
        return [fork for fork in self.forks if fork.residual]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return asdict(self)


def split_of_gradient(network: Module, images: Any, labels: Any, training: bool | None = None) -> GradientSplit:
    """One forward and backward pass, and what each consumer brought to each tensor that has several.

    images: (N, C, H, W) floats of the network's dtype; labels: (N,), or a function that makes one number of the output.
    training: the mode, else each module's own. The network stays as it is. Parameters that are used several times are
    forks too. Raises what the network raises for images that do not fit it.
    """
    with untouched(network, training), enable_grad():
        with tapped(network) as taps:
            x = leaf(images)
            loss = objective(network(x), labels)
        names = {id(p): name for name, p in network.named_parameters()} | {id(x): "images"}
        at_fork = {tap.fork.edge: tap for tap in taps}
        words = {tap.entrance.node: f"block {tap.name}" for tap in taps} | {tap.door.node: SHORTCUT for tap in taps}
        order = topological_order([loss.edge])
        consumers = Counter(edge for node in order for edge in node.edges if edge is not None)
        brought: dict[Any, list[tuple[Any, Any]]] = {}
        forks: list[Fork] = []
        for event in loss.backward_steps(retain_graph=False):
            if event.kind == "ready" and event.node in brought:
                tap = at_fork.get(event.node)
                name = tap.name if tap else names.get(id(event.node), f"output of {_op(event.node)}")
                parts = [(words.get(node, _op(node)), g) for node, g in brought.pop(event.node)]
                if tap and all(word != SHORTCUT for word, _ in parts):  # one that is cut off
                    parts.append((SHORTCUT, 0 * event.grad))
                forks.append(_fork(name, tap is not None, parts, event.grad))
            for edge, g in zip(event.node.edges, event.contributions, strict=False):  # none when "ready"
                if g is not None and (consumers[edge] > 1 or edge in at_fork):
                    brought.setdefault(edge, []).append((event.node, g.copy(order="K")))  # it may be added into
    return GradientSplit(forks[::-1], finite(float(loss.data)))


def _op(node: Any) -> str:
    return getattr(node, "name", "") or "a leaf"


def _fork(name: str, residual: bool, parts: list[tuple[str, Any]], whole: Any) -> Fork:
    """The numbers of one fork, the shortcut first, else in the order of the arrivals."""
    parts = sorted(parts, key=lambda part: part[0] != SHORTCUT)
    first, *others = [g for _, g in parts]
    rest = sum(others[1:], others[0]) if others else 0 * first
    contributions = [Contribution(consumer, finite(norm(g)), share(g, whole)) for consumer, g in parts]
    return Fork(name, residual, tuple(whole.shape), contributions, finite(norm(rest)), cosine(first, rest),
                finite(norm(whole)))


def draw(split: GradientSplit, path: PathLike, title: str = "") -> None:
    """Draw what reaches each residual fork as a PNG: the norms, and the share that the shortcut carries.

    Raises ValueError if there is no residual fork.
    """
    forks = split.residual
    if not forks:
        raise ValueError("draw: this network has no residual blocks, so no shortcut whose share could be drawn")
    figure = new_figure(max(8.0, min(16.0, 4 + 0.35 * len(forks))), 6)
    top, bottom = figure.subplots(2, 1, sharex=True)
    places = range(len(forks))
    series = (("whole", [f.norm for f in forks], "black", "o-"),
              ("through the shortcut", [f.contributions[0].norm for f in forks], "#0072B2", "s--"),
              ("through the branch", [f.branch for f in forks], "#D55E00", "^:"))
    for label, values, color, style in series:
        top.plot(places, [v if v else float("nan") for v in values], style, color=color, label=label, markersize=4)
    top.set_yscale("log")
    top.set_ylabel("norm of the gradient")
    top.legend(ncols=3, fontsize=9)
    bottom.bar(places, [float("nan") if f.share is None else f.share for f in forks], color="#0072B2", width=0.7)
    for height, style in ((0, "-"), (1, ":")):
        bottom.axhline(height, color="black", linewidth=0.8, linestyle=style)
    bottom.set_ylabel("share of the shortcut\n" r"$\langle g_s, g\rangle / \langle g, g\rangle$")
    step = -(-len(forks) // 40)
    bottom.set_xticks(list(places)[::step], [f.name for f in forks][::step], rotation=90, fontsize=8)
    bottom.set_xlabel("residual block, first to last")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    figure.suptitle(f"Which way does the gradient take at each fork?\n{title}".rstrip(), parse_math=False)
    write_png(figure, path)
