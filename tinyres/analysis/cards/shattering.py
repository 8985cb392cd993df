"""Shattering: in deep networks the gradient at one input says nothing about its neighbour's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import mean
from typing import Any

import numpy as np

from tinyres import models, nn
from tinyres.analysis import shattering as instrument
from tinyres.analysis.cards.card import Card, Numbers
from tinyres.analysis.cards.expect import REPRODUCED, Above, Near
from tinyres.analysis.cards.points import curves, head, points
from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.published import find
from tinyres.files import PathLike

WIDTH, LAG, FROM, TO = 100, 5, -2.0, 2.0
DEPTHS = {"small": 50, "gpu": 50, "smoke": 3}
NETWORKS = {"small": 8, "gpu": 32, "smoke": 1}  # random networks a seed
POINTS = {"small": 256, "gpu": 256, "smoke": 32}


def networks(depth: int) -> dict[str, nn.Module]:
    """One random network of each kind, functions of one number."""
    sizes = {"num_classes": 1, "in_features": 1, "width": WIDTH}
    return {
        "plain, 2 blocks": models.build("plain_mlp", depth=2, **sizes),
        "plain": models.build("plain_mlp", depth=depth, **sizes),
        "a = 1": models.build("residual_mlp", depth=depth, a=1.0, **sizes),
        "a = 1/sqrt(L)": models.build("residual_mlp", depth=depth, a=1 / math.sqrt(depth), **sizes),
        "a = 0.1": models.build("residual_mlp", depth=depth, a=0.1, **sizes),
    }


def measure(budget: str, seed: int) -> Numbers:
    """One run of the experiment; see the card."""
    found: dict[str, list[np.ndarray]] = {}
    start, end = (np.array([x], dtype=np.float32) for x in (FROM, TO))
    for _ in range(NETWORKS[budget]):  # each from the next numbers of the generator, which the seed has started
        for name, network in networks(DEPTHS[budget]).items():
            one = instrument.shattering(network, start, end, POINTS[budget], lags=10)
            found.setdefault(name, []).append(one.autocorrelation)
    return {name: {"lag 5": float(mean(one[LAG] for one in all_of)), "lags": list(range(11)),
                   "autocorrelation": np.mean(all_of, axis=0).tolist()} for name, all_of in found.items()}


def draw(record: Mapping[str, Any], path: PathLike) -> None:
    """The autocorrelation at lag 5, and against the lag."""
    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    names = list(record["results"])
    points(left, record["results"], names, "lag 5", "autocorrelation of dy/dx at lag 5")
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    curves(right, record["results"], "lags", "autocorrelation")
    right.set_xlabel("lag in points")
    right.set_ylabel("autocorrelation of dy/dx")
    head(figure, "Do shortcuts alone keep the gradient from shattering?", record)
    write_png(figure, path)


CARD = Card(
    name="shattering",
    claim="Gradients of deep networks resemble white noise along a line of inputs; shortcuts alone do not stop it, a "
          "small scale of the branch does.",
    source="Balduzzi et al. 2017, sections 2 and 3",
    quoted=tuple(find("autocorrelation of dy/dx")),
    prediction="50 blocks without norm, untrained. At lag 5 of 256 points the autocorrelation is near 0.3 for the "
               "plain network and for a = 1, and near 0.8 for a = 0.1, as measured before for this project; two plain "
               "blocks have above 0.8. a = 1/sqrt(L) = 0.14 lies between a = 1 and a = 0.1, nearer to the latter.",
    expected=REPRODUCED,
    expectations=(Above("plain, 2 blocks", "plain", "lag 5", 0.3), Near("a = 1", "plain", "lag 5", 0.15),
                  Above("a = 0.1", "plain", "lag 5", 0.3), Above("a = 0.1", "a = 1/sqrt(L)", "lag 5", 0.02),
                  Above("a = 1/sqrt(L)", "a = 1", "lag 5", 0.2)),
    experiment={budget: f"{NETWORKS[budget]} random networks of each kind a seed, {DEPTHS[budget]} blocks of width "
                        f"{WIDTH} (ReLU, then linear; He's initialisation) unless it says 2, one input, one output. "
                        f"The gradient at {POINTS[budget]} points from {FROM:g} to {TO:g}; its autocorrelation at lag "
                        f"{LAG}, mean over the networks." for budget in DEPTHS},
    measure=measure,
    draw=draw,
)
