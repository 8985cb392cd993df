"""Loss surface: around the weights of a deep network without shortcuts the loss is steep and full of bumps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinyres import random
from tinyres.analysis import loss_surface as instrument
from tinyres.analysis.cards import training
from tinyres.analysis.cards.card import Card, Numbers
from tinyres.analysis.cards.degradation import DEPTHS, variants
from tinyres.analysis.cards.expect import NOT_HERE, Above, Near
from tinyres.analysis.cards.points import curves, head, points
from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.published import find
from tinyres.files import PathLike

PLANS = {budget: training.recipe(budget, epochs=8) for budget in DEPTHS}
LINES = {"small": 5, "gpu": 10, "smoke": 1}  # random directions a network
STEPS = {"small": 11, "gpu": 21, "smoke": 3}
IMAGES = {"small": 250, "gpu": 1000, "smoke": 32}
SPAN = 0.5


def measure(budget: str, seed: int) -> Numbers:
    """One run of the experiment; see the card."""
    found, training_set = {}, training.splits(PLANS[budget])[0]
    x, y = training_set.batch(IMAGES[budget], seed)
    for name, network in variants(budget).items():
        random.manual_seed(seed)
        built = network.build(training_set)
        fitted = training.fit(built, PLANS[budget], seed)
        built.to("cpu")
        lines = [instrument.loss_surface(built, x, y, STEPS[budget], SPAN, 1, seed=LINES[budget] * seed + k)
                 for k in range(LINES[budget])]
        losses = np.array([[training.finite(loss) for loss in line.losses[0]] for line in lines])
        concave = np.nan_to_num([line.concave_share for line in lines], nan=1.0)  # NaN: nothing but overflow
        found[name] = fitted | {"rise": float(losses.mean() - losses[:, STEPS[budget] // 2].mean()),
                                "concave": float(100 * concave.mean()),
                                "steps": lines[0].x.tolist(), "losses": losses.mean(axis=0).tolist()}
    return found


def draw(record: Mapping[str, Any], path: PathLike) -> None:
    """Rise and concave share, and the mean loss along the lines."""
    figure = new_figure(11, 3.8)
    left, middle, right = figure.subplots(1, 3)
    names = list(record["results"])
    points(left, record["results"], names, "rise", "mean rise of the loss")
    points(middle, record["results"], names, "concave", "points where the line\nis concave, in %")
    for axes in (left, middle):
        axes.set_yticks(range(len(names)), names if axes is left else [""] * len(names))
        axes.invert_yaxis()
    curves(right, record["results"], "steps", "losses")
    right.set_yscale("log")
    right.set_xlabel("step (1: as long as the weights)")
    right.set_ylabel("loss (cross-entropy)")
    head(figure, "Is the loss around the weights of a deep plain network steeper and less convex?", record)
    write_png(figure, path)


CARD = Card(
    name="loss-surface",
    claim="Without shortcuts the loss surface of a deep network is chaotic and not convex; shortcuts keep it smooth "
          "and nearly convex around the minimum, whatever the depth.",
    source="Li et al. 2018, section 5",
    quoted=tuple(find(paper="Li et al. 2018")),
    prediction="Along random filter-wise normalised lines of half the weights' length the loss of the deep plain "
               "network rises more than that of the deep residual one, by 0.3 on average: a random change of half a "
               "filter's norm adds a quarter to the variance behind it, in eval mode nothing normalises that again, "
               "and in a plain network the gains of all 55 layers multiply. More concave points are not to be seen in "
               "every seed: a loss that climbs so is convex, and eleven points a line are few. At 20 layers plain and "
               "residual rise about alike, within 0.5. Chaos as in the paper's figure of 56 layers does not show.",
    expected=NOT_HERE,
    expectations=(Above("deep plain", "deep residual", "rise", 0.3),
                  Above("deep plain", "deep residual", "concave", 5.0, "points"),
                  Near("shallow plain", "shallow residual", "rise", 0.5)),
    experiment={budget: training.in_words(variants(budget), PLANS[budget]) + f" Then the loss of {IMAGES[budget]} "
                f"training images at {STEPS[budget]} points on each of {LINES[budget]} random lines (filter-wise "
                f"normalised, running statistics of batch norm) up to {SPAN:g} times the weights' length to both "
                f"sides. Losses above {training.TOP_LOSS:g} count as that; rise is the mean loss on the lines minus "
                "that at the weights; concave the share of negative second differences." for budget in DEPTHS},
    measure=measure,
    draw=draw,
)
