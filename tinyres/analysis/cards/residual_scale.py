"""Residual scale: the number a in y = x + a F(x), with batch norm in F and without."""

from __future__ import annotations

import math

import numpy as np

from tinyres import random
from tinyres.analysis.cards import training
from tinyres.analysis.cards.card import Card, Numbers
from tinyres.analysis.cards.expect import REPRODUCED, Above, Near
from tinyres.analysis.cards.points import drawing
from tinyres.analysis.published import find
from tinyres.state import no_grad
from tinyres.tensor import Tensor

BLOCKS = {"small": 50, "gpu": 50, "smoke": 4}  # of the network without norm
DEPTHS = {"small": 20, "gpu": 110, "smoke": 8}  # of the one with batch norm
PLANS = {budget: training.recipe(budget, epochs=8) for budget in DEPTHS}
MLP_PLANS = {budget: training.recipe(budget, epochs=7, lr=0.01) for budget in DEPTHS}
SCALES = {"0": 0.0, "0.1": 0.1, "0.3": 0.3, "1/sqrt(L)": None, "1": 1.0}


def variants(budget: str) -> tuple[dict[str, training.Network], dict[str, training.Network]]:
    """Networks without norm, and networks with it."""
    blocks, depth = BLOCKS[budget], DEPTHS[budget]
    bare = {f"no norm, a = {a}": training.network("residual_mlp", depth=blocks, a=_scale(value, blocks))
            for a, value in SCALES.items()}
    normed = {f"batch norm, a = {a}": training.network("scaled_resnet", depth=depth,
                                                       residual_scale=_scale(value, (depth - 2) // 2))
              for a, value in SCALES.items()}
    return bare, normed


def _scale(value: float | None, blocks: int) -> float:
    return round(1 / math.sqrt(blocks), 4) if value is None else value


def measure(budget: str, seed: int) -> Numbers:
    """One run of the experiment; see the card."""
    bare, normed = variants(budget)
    found = training.compare(bare, MLP_PLANS[budget], seed) | training.compare(normed, PLANS[budget], seed)
    for name, network in bare.items():
        found[name]["log10 growth"] = log_growth(network, MLP_PLANS[budget], seed)
    return found


def log_growth(network: training.Network, plan: training.Recipe, seed: int) -> float:
    """log10 of how much larger activations are behind the last block than before the first, untrained."""
    random.manual_seed(seed)
    images = training.splits(plan)[0]
    built = network.build(images)
    x, _ = images.batch(min(64, len(images)), seed)
    with no_grad():
        before = built.stem(Tensor(x.reshape(len(x), -1)))
        after = built.layer1(before)
    return float(math.log10(np.std(after.data, dtype=np.float64) / np.std(before.data, dtype=np.float64)))


CARD = Card(
    name="residual-scale",
    claim="A small scale of the residual branch, 0.1 to 0.3, or 1/sqrt(L) for L blocks, keeps activations from growing "
          "with depth, and so makes very deep networks trainable.",
    source="Szegedy et al. 2016, Inception-v4, section 3.3 (0.1 to 0.3); the source article (a = 0.1)",
    quoted=tuple(find(paper="Szegedy et al. 2016") + find("growth of activations")),
    prediction="Without norm, 50 blocks with a = 1 multiply activations by about 3e7, (1 + a^2)^(L/2), so log10 of the "
               "growth is 7.5, against 0.1 with a = 0.1: at the same rate the first diverges or stays far above the "
               "others in training loss, by 0.5 at least, and a = 0.1 trains. a = 0 leaves one hidden layer, which "
               "trains, but has the higher training loss than a = 0.1. With batch norm in the branch the scale "
               "hardly matters: a = 0.1 and a = 1 end within 1.5 points of test error; only a = 0, without any "
               "branch, is worse, by 5 points at least.",
    expected=REPRODUCED,
    expectations=(Above("no norm, a = 1", "no norm, a = 0.1", "log10 growth", 5.0),
                  Near("no norm, a = 1/sqrt(L)", "no norm, a = 0.1", "log10 growth", 0.3),
                  Above("no norm, a = 1", "no norm, a = 0.1", "train loss", 0.5),
                  Above("no norm, a = 0", "no norm, a = 0.1", "train loss", 0.01),
                  Near("batch norm, a = 0.1", "batch norm, a = 1", "test error", 1.5, "points"),
                  Above("batch norm, a = 0", "batch norm, a = 0.1", "test error", 5.0, "points")),
    experiment={budget: "Without norm: " + training.in_words(variants(budget)[0], MLP_PLANS[budget]) + " log10 growth "
                "is that of the activations' deviation over all blocks before training. With batch norm: "
                + training.in_words(variants(budget)[1], PLANS[budget]) for budget in DEPTHS},
    measure=measure,
    draw=drawing("How large may the branch's scale a be?",
                 {"log10 growth": "log10 of the growth\nover all blocks", "train loss": "training loss (cross-entropy)",
                  "test error": "test error in %"}),
)
