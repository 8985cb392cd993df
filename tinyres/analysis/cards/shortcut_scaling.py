"""Shortcut scaling: whatever stands on the shortcut, a factor, a gate, a convolution or dropout, makes it worse."""

from __future__ import annotations

from tinyres.analysis.cards import training
from tinyres.analysis.cards.card import Card, Numbers
from tinyres.analysis.cards.expect import NOT_HERE, Above
from tinyres.analysis.cards.points import drawing
from tinyres.analysis.published import find

DEPTHS = {"small": 32, "gpu": 110, "smoke": 8}
PLANS = {budget: training.recipe(budget, epochs=7) for budget in DEPTHS}


def variants(budget: str) -> dict[str, training.Network]:
    """The rows of the paper's table 1, in its order."""
    depth = DEPTHS[budget]
    return {
        "identity": training.network("scaled_resnet", depth=depth),
        "x 0.5, branch 1": training.network("scaled_resnet", depth=depth, shortcut_scale=0.5),
        "x 0.5, branch 0.5": training.network("scaled_resnet", depth=depth, shortcut_scale=0.5, residual_scale=0.5),
        "exclusive gate, b = -6": training.network("exclusive_gate_resnet", depth=depth, bias=-6.0),
        "shortcut gate, b = 0": training.network("shortcut_gate_resnet", depth=depth, bias=0.0),
        "1x1 convolution": training.network("conv_shortcut_resnet", depth=depth),
        "dropout 0.5": training.network("dropout_shortcut_resnet", depth=depth, p=0.5),
    }


def measure(budget: str, seed: int) -> Numbers:
    """One run of the experiment; see the card."""
    return training.compare(variants(budget), PLANS[budget], seed)


CARD = Card(
    name="shortcut-scaling",
    claim="The identity is the best shortcut: constant factors, gates, 1x1 convolutions and dropout on it all raise "
          "the error, and some keep the network from training.",
    source="He et al. 2016, section 3 and table 1 (ResNet-110 on CIFAR-10)",
    quoted=tuple(find(paper="He et al. 2016", table="Table 1")),
    prediction="15 blocks are not 54: a factor of 0.5 leaves 3e-5 of the first block's signal on the pure shortcut "
               "route but every branch brings its own, so nothing fails to train as in the paper. Dropout on the "
               "shortcut is clearly worse than the identity, in test error by 2 points at least: its noise cannot be "
               "learned away and batch norm's running statistics do not fit without it. The 1x1 convolution and the "
               "factor 0.5 cost training loss in a few hundred steps, but by less than 0.05, or not in every seed. The "
               "gates end within a point of the identity.",
    expected=NOT_HERE,
    expectations=(Above("dropout 0.5", "identity", "test error", 2.0, "points"),
                  Above("x 0.5, branch 1", "identity", "train loss", 0.05),
                  Above("x 0.5, branch 0.5", "identity", "train loss", 0.05),
                  Above("1x1 convolution", "identity", "train loss", 0.05),
                  Above("shortcut gate, b = 0", "identity", "train loss", 0.05)),
    experiment={budget: training.in_words(variants(budget), PLANS[budget]) for budget in DEPTHS},
    measure=measure,
    draw=drawing("Does anything but the identity do on the shortcut?",
                 {"train loss": "training loss (cross-entropy)", "test error": "test error in %"}),
)
