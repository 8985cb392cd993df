"""Shared linear layers: whether one matrix for all hidden layers makes a network harder to train."""

from __future__ import annotations

from tinyres.analysis.cards import training
from tinyres.analysis.cards.card import Card, Numbers
from tinyres.analysis.cards.expect import REPRODUCED, Above, Near
from tinyres.analysis.cards.points import drawing
from tinyres.analysis.published import Number

DEPTHS = {"small": 8, "gpu": 8, "smoke": 2}
WIDTH, NARROW = 100, 42  # so many numbers a layer: 8 narrow layers make a network as large as the shared one
PLANS = {budget: training.recipe(budget, epochs=40, lr=0.02) for budget in DEPTHS}


def variants(budget: str) -> dict[str, training.Network]:
    """With and without sharing, with and without shortcuts; and one without sharing of the shared one's size."""
    depth = DEPTHS[budget]
    return {
        "plain, shared": training.network("shared_mlp", depth=depth, width=WIDTH),
        "plain, unshared": training.network("plain_mlp", depth=depth, width=WIDTH),
        "plain, unshared, narrow": training.network("plain_mlp", depth=depth, width=NARROW),
        "residual, shared": training.network("shared_residual_mlp", depth=depth, width=WIDTH, a=0.3),
        "residual, unshared": training.network("residual_mlp", depth=depth, width=WIDTH, a=0.3),
    }


def measure(budget: str, seed: int) -> Numbers:
    """One run of the experiment; see the card."""
    return training.compare(variants(budget), PLANS[budget], seed)


CARD = Card(
    name="shared-linear",
    claim="Sharing the weights of fully connected layers makes a network harder to train.",
    source="the source article, which gives no number",
    quoted=(Number("source article", "", "effect of shared linear layers on training", "harder", ""),),
    prediction="Eight hidden layers without norm. One matrix used eight times gets the sum of eight gradients, and "
               "applying it again and again turns all inputs towards its largest eigenvector: without shortcuts the "
               "training loss ends above that of the unshared network by 0.02 at least, in every seed. With shortcuts "
               "and a = 0.3 each use changes the activations only a little, and sharing costs less than 0.05. So the "
               "claim holds for plain networks; that a narrow unshared network of equal size also trains better would "
               "show that it is the sharing, not the size.",
    expected=REPRODUCED,
    expectations=(Above("plain, shared", "plain, unshared", "train loss", 0.02),
                  Above("plain, shared", "plain, unshared, narrow", "train loss", 0.01),
                  Near("residual, shared", "residual, unshared", "train loss", 0.05)),
    experiment={budget: training.in_words(variants(budget), PLANS[budget]) for budget in DEPTHS},
    measure=measure,
    draw=drawing("Do shared linear layers make training harder?",
                 {"train loss": "training loss (cross-entropy)", "test error": "test error in %"}),
)
