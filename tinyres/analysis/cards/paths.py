"""Paths: the gradient comes through short paths, and a residual network does without any one of its blocks."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from tinyres import data, models, nn, random
from tinyres.analysis import lesion
from tinyres.analysis.cards import training
from tinyres.analysis.cards.card import Card, Numbers
from tinyres.analysis.cards.expect import REPRODUCED, Above
from tinyres.analysis.cards.points import curves, head, points
from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.path_spectrum import path_spectrum
from tinyres.analysis.published import find
from tinyres.files import PathLike

DEEP = {"small": 56, "gpu": 110, "smoke": 14}  # layers of the network whose paths are measured
SHALLOW = {"small": 20, "gpu": 56, "smoke": 14}  # of those that lose a block
MLP_BLOCKS = {"small": 18, "gpu": 18, "smoke": 4}
BATCH = {"small": 64, "gpu": 128, "smoke": 8}
PLANS = {budget: training.recipe(budget, epochs=10) for budget in DEEP}
SHORT = 17, 54  # the longest of Veit et al.'s short paths, and the blocks of their network


def measure(budget: str, seed: int) -> Numbers:
    """One run of the experiment; see the card."""
    training_set, test = training.splits(PLANS[budget])
    x, y = training_set.batch(BATCH[budget], seed)
    deep, fitted = _trained("resnet", DEEP[budget], budget, seed, training_set)
    found = {"trained ResNet": fitted | spectrum(deep, x, y)}
    n = (DEEP[budget] - 2) // 2
    found["all its paths"] = of_lengths([math.comb(n, k) / 2**n for k in range(n + 1)])
    random.manual_seed(seed)
    for a in ("1", "0.1"):
        network = models.build("residual_mlp", in_features=x[0].size, depth=MLP_BLOCKS[budget], a=float(a))
        found[f"MLP without norm, a = {a}"] = spectrum(network, x, y)
    for name, kind in (("residual", "resnet"), ("plain", "plain")):
        network, fitted = _trained(kind, SHALLOW[budget], budget, seed, training_set)
        found[f"{name}, one block less"] = fitted | {"damage": damage(network, test)}
    return found


def _trained(kind: str, depth: int, budget: str, seed: int, images: data.Dataset) -> tuple[nn.Module, dict[str, float]]:
    """A trained network on the CPU, and what `fit` says of it."""
    random.manual_seed(seed)
    built: nn.Module
    if kind == "plain":
        built = models.resnet.cifar_plain(depth, len(images.classes), images.images.shape[1])
    else:
        built = training.network("scaled_resnet", depth=depth).build(images)
    fitted = training.fit(built, PLANS[budget], seed)
    return built.to("cpu"), fitted


def spectrum(network: nn.Module, x: Any, y: Any) -> dict[str, Any]:
    """The shares of the gradient by path length, in float64 and eval mode."""
    found = path_spectrum(copy.deepcopy(network).double(), x.astype("float64"), y, training=False)
    return of_lengths([row.share_of_norms or 0.0 for row in found.lengths])


def of_lengths(shares: list[float]) -> dict[str, Any]:
    """What is kept of shares by length 0, 1, ..., n, which sum to 1: the mean length, and the short ones' share."""
    n = len(shares) - 1
    average, longest = sum(k * share for k, share in enumerate(shares)), SHORT[0] * n // SHORT[1]
    return {"mean length": average, "short": 100 * sum(shares[:longest + 1]), "shares": [100 * s for s in shares],
            "lengths": [100 * k / n for k in range(n + 1)]}


def damage(network: nn.Module, test: data.Dataset) -> float:
    """By how many points the test error rises without one block, mean over the blocks that keep their shape."""
    images, labels = test.take(range(min(len(test), 1000)))
    found = lesion.lesion(network, images, labels, several=(), swaps=())
    without = [trial.score.accuracy for trial in found.single if found.places[trial.removed[0]].keeps_shape]
    return 100 * (found.intact.accuracy - sum(without) / len(without))


def draw(record: Mapping[str, Any], path: PathLike) -> None:
    """The shares of the gradient by length, and the damage done by removing a block."""
    figure = new_figure(10.5, 3.9)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    curves(left, record["results"], "lengths", "shares")
    left.set_xlabel("branches on the path, in % of all blocks")
    left.set_ylabel("share of the gradient (of paths) in %")
    names = [name for name, quantities in record["results"].items() if "damage" in quantities]
    points(right, record["results"], names, "damage", "rise of the test error\nwithout one block, in points")
    right.set_yticks(range(len(names)), [name.partition(",")[0] for name in names])
    right.set_ylim(len(names) - 0.5, -0.5)
    head(figure, "Does the gradient come through short paths, and is each block needed?", record)
    write_png(figure, path)


CARD = Card(
    name="paths",
    claim="A residual network behaves like many paths of different length: most gradient comes through short ones, "
          "and removing a block hardly matters, while a plain network is lost without any of its blocks.",
    source="Veit et al. 2016, sections 3 to 5",
    quoted=tuple(find(paper="Veit et al. 2016") + find("of the gradient", paper="tinyres")
                 + find("path length", paper="tinyres")),
    prediction="27 blocks with batch norm: the k-th branch of a stage adds about 1/k of what is on the route already, "
               "so the mean path of the gradient is about 6 to 8 branches long, while the mean of all paths is 13.5: "
               "shorter by 3 at least, and at least 40 points more of the gradient than of the paths are in lengths up "
               "to 17/54 of the blocks, Veit et al.'s longest short ones. The MLP of 18 blocks without norm has "
               "sqrt(C(18, k)) a^k as its expected norms: mean length about 9 for a = 1 and 0.5 for a = 0.1. Without "
               "one of its blocks the residual network of 20 layers loses some points, the plain one guesses: more "
               "damage by 30 points at least.",
    expected=REPRODUCED,
    expectations=(Above("all its paths", "trained ResNet", "mean length", 3.0, "blocks"),
                  Above("trained ResNet", "all its paths", "short", 40.0, "points"),
                  Above("MLP without norm, a = 1", "MLP without norm, a = 0.1", "mean length", 6.0, "blocks"),
                  Above("plain, one block less", "residual, one block less", "damage", 30.0, "points")),
    experiment={budget: f"Train a ResNet of {DEEP[budget]} layers, and a residual and a plain network of "
                        f"{SHALLOW[budget]}. {PLANS[budget]}. The gradient of the loss of "
                        f"{BATCH[budget]} training images at the first block's input is split exactly by the number of "
                        "branches passed (float64, eval mode), for the deep network and for untrained MLPs of "
                        f"{MLP_BLOCKS[budget]} blocks; a length's share is its norm over the sum of all norms. short: "
                        "the share of lengths up to 17/54 of the blocks. Then each block that keeps its shape is "
                        "removed in turn from the other two, and test images are read again; damage is the mean rise "
                        "of the error." for budget in DEEP},
    measure=measure,
    draw=draw,
)
