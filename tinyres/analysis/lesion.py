"""Which block does a network need? Blocks are taken out, or exchanged, after training, and the error is read again.

Veit, Wilber & Belongie 2016, "Residual networks behave like ensembles of relatively shallow networks", section 4. A
residual network is a sum over 2^n paths, and without one block half of them remain: the error hardly moves (section
4.1, figures 3 and 4). It grows smoothly with the number of blocks removed (4.2, figure 5a) and with how far their order
is disturbed (4.3, figure 5b). A plain network has one path, and without any of its layers it only guesses.

Without its branch a residual block gives what its shortcut gives (Block.without_branch): a projection stays, and so
does a ReLU after the addition. A plain block is replaced by the identity, which needs equal shapes. Batch norm uses its
running statistics, those of the intact network; nothing is trained again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from tinyres.analysis.detour import Detour, Place
from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.norms import finite
from tinyres.analysis.untouched import Score, arrays, score, untouched
from tinyres.files import PathLike
from tinyres.nn import Module


@dataclass(frozen=True)
class Trial:
    """A network with some places changed: `removed`, by number; or their `order`, with its Kendall tau (1: intact)."""

    score: Score
    removed: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    kendall_tau: float = 1.0


@dataclass(frozen=True)
class Lesions:
    """The intact network; each place removed on its own; several at once; and places exchanged.

    single: one trial for each removable place, in order. several: number removed -> its trials. swapped: number of
    exchanges -> its trials.
    """

    places: list[Place]
    intact: Score
    single: list[Trial]
    several: dict[int, list[Trial]]
    swapped: dict[int, list[Trial]]
    images: int
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: keys of mappings are text, a loss that is not finite is null."""
        found = asdict(self)
        for name in ("several", "swapped"):
            found[name] = {str(number): trials for number, trials in found[name].items()}
        groups = found["single"], *found["several"].values(), *found["swapped"].values()
        for read in (found["intact"], *(trial["score"] for trials in groups for trial in trials)):
            read["loss"] = finite(read["loss"])
        return found


def lesion(network: Module, images: Any, labels: Any, several: Sequence[int] | None = None,
           swaps: Sequence[int] | None = None, trials: int = 5, blocks: Sequence[str] | None = None, seed: int = 0,
           batch: int = 250) -> Lesions:
    """Remove each block, remove several at random, and exchange pairs of equal shape; read loss and accuracy each time.

    images: (N, C, H, W); labels: (N,). several, swaps: how many blocks to remove, how many exchanges to make, `trials`
    draws of each; by default 1, 2, 4, ... as far as there are blocks, and () for none. An exchange draws two places of
    one type and shape that keep their shape. blocks: dotted names of modules to take as blocks; by default the
    residual blocks, in a network without any the modules of its stages.

    The network is run in eval mode, and is afterwards as before. Raises ValueError if there are no blocks, or for a
    number of blocks that cannot be removed; AttributeError for a name that is not there.
    """
    images, labels = arrays("lesion", images, labels)
    if trials < 1:
        raise ValueError(f"lesion: trials is {trials}, expected 1 or more draws of each number")
    rng = np.random.Generator(np.random.Philox(seed))
    with untouched(network), Detour(network, blocks) as detour:
        places = detour.places(images[:1])

        def read(route: Mapping[int, Callable]) -> Score:
            with detour.taking(route):
                return score(network, images, labels, batch)

        removable = [i for i, place in enumerate(places) if place.removable]
        counts = _doubling(len(removable)) if several is None else several
        for count in counts:
            if not 1 <= count <= len(removable):
                raise ValueError(f"lesion: {count} blocks cannot be removed, expected 1 to {len(removable)}, those "
                                 "that have a shortcut or keep their shape")
        without = {i: detour.without(i) for i in removable}
        intact = read({})
        single = [Trial(read({i: without[i]}), (i,)) for i in removable]
        many = {count: [Trial(read({i: without[i] for i in chosen}), chosen)
                        for chosen in _draw_sets(rng, removable, count, trials)] for count in counts}
        pairs = _exchangeable(places)
        exchanges = (_doubling(len(pairs)) if pairs else []) if swaps is None else swaps
        for count in exchanges:
            if not 1 <= count <= len(pairs):
                raise ValueError(f"lesion: {count} exchanges cannot be made, expected 1 to {len(pairs)}, the pairs of "
                                 "blocks of one type and one shape that they keep: pass swaps=() for none")
        swapped = {}
        for count in exchanges:
            orders = [_exchanged(rng, len(places), pairs, count) for _ in range(trials)]
            swapped[count] = [Trial(read({i: detour.block(j) for i, j in enumerate(order) if i != j}), (), order,
                                    kendall_tau(order)) for order in orders]
    return Lesions(places, intact, single, many, swapped, len(labels), seed)


def kendall_tau(order: Sequence[int]) -> float:
    """1 - 4 inversions / (n (n - 1)) of a permutation of n: 1 for the order itself, -1 for its reverse (Kendall 1938).
    """
    n = len(order)
    inversions = sum(a > b for a, b in combinations(order, 2))
    return 1.0 - 4.0 * inversions / (n * (n - 1)) if n > 1 else 1.0


def _doubling(most: int) -> list[int]:
    """1, 2, 4, ..., and `most`."""
    return sorted({*(2**i for i in range(most.bit_length()) if 2**i <= most), most} - {0})


def _draw_sets(rng: np.random.Generator, places: list[int], count: int, trials: int) -> list[tuple[int, ...]]:
    """Different sets of `count` places in random draws; all of them where there are no more than `trials`."""
    if math.comb(len(places), count) <= trials:
        return list(combinations(places, count))
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < trials:
        drawn[tuple(sorted(int(i) for i in rng.choice(places, count, replace=False)))] = None
    return list(drawn)


def _exchangeable(places: list[Place]) -> list[tuple[int, int]]:
    """Pairs of places whose blocks can stand for one another."""
    return [(i, j) for (i, a), (j, b) in combinations(enumerate(places), 2)
            if a.keeps_shape and (a.type, a.input, a.output) == (b.type, b.input, b.output) and a.block != b.block]


def _exchanged(rng: np.random.Generator, n: int, pairs: list[tuple[int, int]], count: int) -> tuple[int, ...]:
    """The order of n places after `count` random exchanges, no two of the same pair."""
    order = list(range(n))
    for pair in rng.choice(len(pairs), count, replace=False):
        i, j = pairs[pair]
        order[i], order[j] = order[j], order[i]
    return tuple(order)


# --- the figure -------------------------------------------------------------------------------------------------------


def draw(result: Lesions, path: PathLike, title: str = "") -> None:
    """Draw the error as a PNG: without each block, against the number removed, and against the disturbed order."""
    panels = 1 + bool(result.several) + bool(result.swapped)
    figure = new_figure(4.6 + 3.1 * (panels - 1), 3.9)
    axes = np.atleast_1d(figure.subplots(1, panels, sharey=True,
                                         width_ratios=[1.5, *(1,) * (panels - 1)] if panels > 1 else [1]))
    intact = _error(result.intact)
    for axis in axes:
        axis.axhline(intact, color="black", linestyle=":", label="intact")
        axis.grid(alpha=0.3, axis="y")
        axis.set_ylim(-3, 103)
    _draw_single(axes[0], result)
    rest = list(axes[1:])
    if result.several:
        _draw_trials(rest.pop(0), {float(n): t for n, t in result.several.items()}, "blocks removed at random")
    if result.swapped:
        _draw_order(rest.pop(0), result)
    axes[0].set_ylabel("error in %")
    heading = f"{title + ': ' if title else ''}does it need each of its {len(result.places)} blocks?"
    figure.suptitle(f"{heading} ({result.images:,} images)", fontsize=11, parse_math=False)
    write_png(figure, path)


def _error(found: Score) -> float:
    return 100 * (1 - found.accuracy)


def _draw_single(axes: Any, result: Lesions) -> None:
    """A point for each place, a square where the block changes shape, a grey band where it cannot be removed."""
    for keeps, marker, label in ((True, "o", "keeps its shape"), (False, "s", "changes shape")):
        chosen = [t for t in result.single if result.places[t.removed[0]].keeps_shape == keeps]
        if chosen:
            axes.plot([t.removed[0] + 1 for t in chosen], [_error(t.score) for t in chosen], marker, markersize=6,
                      color="tab:blue" if keeps else "tab:orange", label=label)
    fixed = [i + 1 for i, place in enumerate(result.places) if not place.removable]
    for i in fixed:
        axes.axvspan(i - 0.2, i + 0.2, color="0.9", label="cannot be removed" if i == fixed[0] else None)
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0.3, len(result.places) + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("the one block removed, from the input on")
    axes.legend(fontsize=8)


def _draw_trials(axes: Any, groups: dict[float, list[Trial]], label: str) -> None:
    """Each trial a small point, the medians joined."""
    for number, trials in groups.items():
        axes.plot([number] * len(trials), [_error(t.score) for t in trials], "o", color="tab:blue", alpha=0.35,
                  markersize=4)
    axes.plot(list(groups), [float(np.median([_error(t.score) for t in trials])) for trials in groups.values()],
              color="tab:blue", label="median")
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(label)
    axes.legend(fontsize=8)


def _draw_order(axes: Any, result: Lesions) -> None:
    """Error against Kendall's tau, the colour saying how many exchanges."""
    from matplotlib import colormaps

    by_number: dict[int, list[Trial]] = defaultdict(list, result.swapped)
    for i, (number, trials) in enumerate(by_number.items()):
        color = colormaps["viridis"](0.1 + 0.75 * i / max(1, len(by_number) - 1))
        axes.plot([t.kendall_tau for t in trials], [_error(t.score) for t in trials], "o", color=color, markersize=5,
                  label=f"{number} exchange{'s' * (number > 1)}")
    axes.set_xlabel("Kendall's tau of the disturbed order")
    axes.invert_xaxis()
    axes.legend(fontsize=8)
