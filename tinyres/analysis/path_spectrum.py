"""The path-length spectrum: how much of the gradient came through how many residual branches. Exact, without sampling.

The Jacobian of n residual blocks is a product of n sums, (S_1 + J_1) ... (S_n + J_n), S the shortcut and J the branch.
Multiplied out it has 2^n terms, one for each path through the network (Veit, Wilber and Belongie 2016, "Residual
networks behave like ensembles of relatively shallow networks", section 3). They need not be listed to be counted by
length: the gradient is carried back as a polynomial, G[k] being what came through k branches, and each block does

    G[k]  <-  S^T G[k] + J^T G[k-1]

with vector-Jacobian products on a graph that is kept: about n^2 / 2 backward passes through one block, against 2^n
paths. The coefficients sum to the gradient. Veit et al. sampled paths in an evaluation network; this works in training
mode as well, where J includes the way through the batch's statistics.

What belongs to no branch belongs to every path: the head, ReLUs after additions, first activations that branch and
shortcut share, and all that stands between blocks. Only what passes the shortcut's module counts as the shortcut: a
gate computed from the fork is part of the branch. The forks need not form a chain: where a block's output enters
several blocks, its polynomial is the sum of what these bring.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.norms import finite, norm, share
from tinyres.analysis.taps import Door, Tap, cut, leaf, objective, shut, tapped, watch
from tinyres.analysis.untouched import untouched
from tinyres.autograd import grad
from tinyres.files import PathLike
from tinyres.graph import exhaust, topological_order
from tinyres.kernels.layout import array_module
from tinyres.nn import Module
from tinyres.operands import type_name
from tinyres.state import enable_grad
from tinyres.tensor import Tensor, walk

BRUTE_FORCE = 10  # blocks: 1,024 backward passes
PLACES = ("block", "images")


@dataclass(frozen=True)
class PathLength:
    """What comes through `length` branches. paths: how many are so long in a chain of blocks; norm: of G[length];
    share_of_norms: that norm over the sum of all; share: <G[length], G> / <G, G>, which sums to 1 and can be negative.
    None: not finite."""

    length: int
    paths: int
    norm: float | None
    share_of_norms: float | None
    share: float | None


@dataclass(frozen=True)
class PathSpectrum:
    """The gradient at one tensor, by path length. to: which tensor ("block": the first block's input, "images", or
    "tensor"); norm: of the whole gradient; error: the distance of the coefficients' sum from what backward() gives,
    beside that norm; loss: at which the paths end."""

    blocks: list[str]
    lengths: list[PathLength]
    to: str
    norm: float | None
    error: float | None
    loss: float | None

    @property
    def peak(self) -> int | None:
        """The length with the largest norm; None where one is not finite."""
        norms = [row.norm for row in self.lengths if row.norm is not None]
        return norms.index(max(norms)) if len(norms) == len(self.lengths) else None

    @property
    def mean_length(self) -> float | None:
        """The lengths' mean, weighted by their norms; None where one is not finite, or all are zero."""
        if any(row.share_of_norms is None for row in self.lengths):
            return None
        return sum(row.length * (row.share_of_norms or 0.0) for row in self.lengths)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return asdict(self) | {"peak": self.peak, "mean_length": self.mean_length}


def path_spectrum(network: Module, images: Any, labels: Any, to: str | Tensor = "block",
                  training: bool | None = None) -> PathSpectrum:
    """The gradient of the loss, split by the number of branches that it passed.

    images: (N, C, H, W) floats of the network's dtype; float64 makes the sum exact to 1e-10. labels: (N,), or a
    function that makes one number of the output. to: the gradient at the first block's input ("block"), at the
    "images", or at a parameter, where a branch counts that was passed as a whole. training: the mode, else each
    module's own. The network stays as it is.

    Raises ValueError for a network without residual blocks, RuntimeError where the loss does not depend on `to`, or
    where a block does not call its shortcut exactly once.
    """
    coefficients, names, loss = path_gradients(network, images, labels, to, training)
    (whole,) = _gradients(network, images, labels, to, training, [watch])
    norms = [norm(g) for g in coefficients]
    total = sum(norms)
    size = norm(whole)
    error = norm(sum(coefficients[1:], coefficients[0]) - whole) / (size or 1.0)
    n = len(names)
    lengths = [PathLength(k, math.comb(n, k), finite(norms[k]), finite(norms[k] / total) if total else None,
                          share(g, whole)) for k, g in enumerate(coefficients)]
    where = to if isinstance(to, str) else "tensor"
    return PathSpectrum(names, lengths, where, finite(size), finite(error), finite(loss))


def path_gradients(network: Module, images: Any, labels: Any, to: str | Tensor = "block",
                   training: bool | None = None) -> tuple[list[Any], list[str], float]:
    """The coefficients G[0], ..., G[n] themselves, arrays of the shape of `to`; the n blocks' names; and the loss.

    Arguments and errors are path_spectrum's.
    """
    with _run(network, images, labels, to, training, cut) as (loss, taps, target):
        forks = [tap for tap in taps if tap.fork.requires_grad]  # not those behind a detach()
        passed = {tap.door.edge: 0 for tap in forks} | {tap.fork.edge: 1 for tap in forks} | {target.edge: 0}
        behind = {tap.door.edge: tap.fork.edge for tap in forks}
        known: dict[Any, list[Any]] = {loss.edge: [array_module(loss.data).ones_like(loss.data)]}
        for point in _last_first(loss, forks, target):
            for k, g in enumerate(known.pop(point.edge, [])):
                found = {} if g is None else exhaust(walk([point], [g], set(passed), True, False, frozenset(passed)
                                                          - {point.edge}))
                for edge, part in found.items():
                    if edge is not point.edge:
                        _add(known.setdefault(behind.get(edge, edge), []), k + passed[edge], part)
        if target.edge not in known:
            raise RuntimeError(f"path_spectrum: the loss does not depend on the tensor of shape {tuple(target.shape)}: "
                               "choose 'block', 'images' or a parameter that the network uses")
        zero = array_module(target.data).zeros_like(target.data)
        polynomial = known[target.edge] + [None] * (len(taps) + 1 - len(known[target.edge]))
        return [zero if g is None else g for g in polynomial], [tap.name for tap in taps], float(loss.data)


def _add(polynomial: list[Any], k: int, part: Any) -> None:
    """Add to coefficient k, into new memory: an identity hands on the very array that it was given."""
    polynomial += [None] * (k + 1 - len(polynomial))
    polynomial[k] = part if polynomial[k] is None else polynomial[k] + part


@dataclass(eq=False)
class _Point:
    """The loss or a fork, as a node of the small graph whose edges are the ways from one to the next."""

    tensor: Tensor
    edges: list[Any]


def _last_first(loss: Tensor, taps: Sequence[Tap], target: Tensor) -> list[Tensor]:
    """The loss and the forks that it depends on, each after all that depend on it."""
    points = {tensor.edge: _Point(tensor, []) for tensor in (loss, *(tap.fork for tap in taps))}
    forks = {tap.fork.edge: points[tap.fork.edge] for tap in taps}
    forks |= {tap.door.edge: points[tap.fork.edge] for tap in taps}
    for edge, point in points.items():
        others = frozenset({*forks, target.edge} - {edge})
        reached = topological_order([edge], others)
        point.edges = list({id(forks[node]): forks[node] for node in reached if node in forks and node is not edge}
                           .values())
    return [point.tensor for point in topological_order([points[loss.edge]])]


@contextlib.contextmanager
def _run(network: Module, images: Any, labels: Any, to: str | Tensor, training: bool | None,
         door: Door) -> Iterator[tuple[Tensor, list[Tap], Tensor]]:
    """One forward pass: the loss, the taps, and the tensor whose gradient is asked for."""
    if not isinstance(to, Tensor) and to not in PLACES:
        got = repr(to) if isinstance(to, str) else type_name(to)
        raise ValueError(f"path_spectrum: `to` must be 'block', 'images' or a parameter, got {got}")
    with untouched(network, training), enable_grad():
        with tapped(network, door) as taps:
            x = leaf(images)
            loss = objective(network(x), labels)
        if not taps:
            raise ValueError(f"path_spectrum: {type(network).__name__} has no residual blocks, so there is one path: "
                             "use gradient_flow")
        target = to if isinstance(to, Tensor) else x if to == "images" else taps[0].source
        if target.edge is None:
            raise RuntimeError(f"path_spectrum: the tensor of shape {tuple(target.shape)} does not require a gradient: "
                               "set requires_grad=True on it")
        yield loss, taps, target


def _gradients(network: Module, images: Any, labels: Any, to: str | Tensor, training: bool | None,
               doors: Sequence[Door]) -> Iterator[Any]:
    """The gradient, once for each kind of door, from a run of its own."""
    for door in doors:
        with _run(network, images, labels, to, training, door) as (loss, _, target):
            (found,) = grad(loss, target, allow_unused=True)
            yield array_module(target.data).zeros_like(target.data) if found is None else found.data


def path_gradients_by_force(network: Module, images: Any, labels: Any, to: str | Tensor = "block",
                            training: bool | None = None) -> list[Any]:
    """The coefficients G[0], ..., G[n] from 2^n ordinary backward passes, to check path_gradients with.

    For a set E of blocks let g(E) be the gradient when the branches outside of E bring nothing. It comes from the paths
    whose branches are all in E; so those with the branches of B and no others bring the sum over E within B of
    (-1)^(|B| - |E|) g(E) (inclusion and exclusion), and all B of k blocks together

        G[k] = sum over E of (-1)^(k - |E|) C(n - |E|, k - |E|) g(E)

    Raises ValueError for more than 10 calls of blocks.
    """
    with _run(network, images, labels, to, training, watch) as (_, taps, _):
        n = len(taps)
    if n > BRUTE_FORCE:
        raise ValueError(f"path_gradients_by_force: {n} blocks have 2^{n} paths, which is too many to go one by one; "
                         f"use at most {BRUTE_FORCE} blocks, or path_gradients")
    sets = list(product((False, True), repeat=n))
    doors = [_open_in(chosen) for chosen in sets]
    coefficients: list[Any] = [0.0] * (n + 1)
    for chosen, g in zip(sets, _gradients(network, images, labels, to, training, doors), strict=True):
        e = sum(chosen)
        for k in range(e, n + 1):
            coefficients[k] = coefficients[k] + (-1) ** (k - e) * math.comb(n - e, k - e) * g
    return coefficients


def _open_in(chosen: Sequence[bool]) -> Door:
    """Only the branches of the chosen calls bring something."""
    return lambda call, fork: (watch if chosen[call] else shut)(call, fork)


def draw(spectrum: PathSpectrum, path: PathLike, title: str = "") -> None:
    """Draw the spectrum as a PNG: what comes through paths of each length, and how many paths there are."""
    rows = spectrum.lengths
    figure = new_figure(9, 5.6)
    top, bottom = figure.subplots(2, 1, sharex=True)
    lengths = [row.length for row in rows]
    top.bar(lengths, [100 * (row.share_of_norms or 0.0) for row in rows], color="#0072B2", width=0.8,
            label="share of the norms")
    top.plot(lengths, [float("nan") if row.share is None else 100 * row.share for row in rows], "D", color="#D55E00",
             markersize=4, label=r"share of the whole, $\langle G_k, G\rangle / \langle G, G\rangle$")
    total = sum(row.paths for row in rows)
    top.plot(lengths, [100 * row.paths / total for row in rows], "--", color="black", linewidth=1,
             label="share of the paths")
    top.axhline(0, color="black", linewidth=0.8)
    top.set_ylabel("%")
    top.legend(fontsize=9)
    single = [row.norm / row.paths if row.norm else float("nan") for row in rows]
    bottom.plot(lengths, [row.norm or float("nan") for row in rows], "o-", color="#0072B2", markersize=4,
                label="all paths of this length")
    bottom.plot(lengths, single, "s:", color="#009E73", markersize=4, label="divided by their number")
    bottom.set_yscale("log")
    bottom.set_ylabel("norm of the gradient")
    bottom.set_xlabel("length of the path: number of residual branches that it passes")
    bottom.legend(fontsize=9)
    bottom.xaxis.get_major_locator().set_params(integer=True)
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    figure.suptitle(f"How long are the paths that the gradient comes through?\n{title}".rstrip(), parse_math=False)
    write_png(figure, path)
