"""Activation order: where batch norm and ReLU stand around the addition."""

from __future__ import annotations

from tinyres.analysis.cards import training
from tinyres.analysis.cards.card import Card, Numbers
from tinyres.analysis.cards.expect import ORDERING, Above, Near
from tinyres.analysis.cards.points import drawing
from tinyres.analysis.published import find

DEPTHS = {"small": 56, "gpu": 110, "smoke": 8}
PLANS = {budget: training.recipe(budget, epochs=6) for budget in DEPTHS}
ORDERS = {"original": "original_resnet", "BN after addition": "bn_after_addition_resnet",
          "ReLU before addition": "relu_before_addition_resnet",
          "ReLU-only pre-activation": "relu_only_preactivation_resnet",
          "full pre-activation": "full_preactivation_resnet"}


def variants(budget: str) -> dict[str, training.Network]:
    """The rows of the paper's table 2, in its order."""
    return {order: training.network(name, depth=DEPTHS[budget]) for order, name in ORDERS.items()}


def measure(budget: str, seed: int) -> Numbers:
    """One run of the experiment; see the card."""
    return training.compare(variants(budget), PLANS[budget], seed)


CARD = Card(
    name="activation-order",
    claim="Batch norm and ReLU in front of the convolutions (full pre-activation) train best; batch norm after the "
          "addition and a ReLU before it are worse than the original order.",
    source="He et al. 2016, section 4 and table 2",
    quoted=tuple(find(paper="He et al. 2016", table="Table 2") + find(paper="He et al. 2016", table="Table 3")),
    prediction="In so few steps the order shows in the training loss. Batch norm after the addition stands on the "
               "route past the blocks, 27 of them, and has the higher loss than full pre-activation in every seed, by "
               "0.05 or more. ReLU before the addition lets the sum only grow; its loss is above that of full "
               "pre-activation too, but by less. Original and full pre-activation end close to each other, within "
               "0.05, as in the paper at 110 layers (6.61 and 6.37 % error).",
    expected=ORDERING,
    expectations=(Above("BN after addition", "full pre-activation", "train loss", 0.05),
                  Above("ReLU before addition", "full pre-activation", "train loss", 0.05),
                  Near("original", "full pre-activation", "train loss", 0.05)),
    experiment={budget: training.in_words(variants(budget), PLANS[budget]) for budget in DEPTHS},
    measure=measure,
    draw=drawing("Where should batch norm and ReLU stand?",
                 {"train loss": "training loss (cross-entropy)", "test error": "test error in %"}),
)
