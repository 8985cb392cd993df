"""Connections between consecutive blocks: addition, concatenation and bottleneck at equal numbers of parameters."""

from __future__ import annotations

from tinyres import models, random
from tinyres.analysis.cards import training
from tinyres.analysis.cards.card import Card, Numbers
from tinyres.analysis.cards.expect import NOT_HERE, Above
from tinyres.analysis.cards.points import drawing
from tinyres.analysis.published import find
from tinyres.analysis.summary import summary
from tinyres.models.connections import width_for

CHAINS = {"addition": "chain_addition", "concatenation": "chain_concatenation", "bottleneck": "chain_bottleneck"}
BLOCKS = {"small": 8, "gpu": 16, "smoke": 4}
PARAMETERS = {"small": 120_000, "gpu": 1_000_000, "smoke": 3_000}
PLANS = {budget: training.recipe(budget, epochs=18, lr=0.02, clip_norm=1.0) for budget in BLOCKS}


def measure(budget: str, seed: int) -> Numbers:
    """One run of the experiment; see the card."""
    found, images = {}, training.splits(PLANS[budget])[0]
    sizes = {"num_classes": len(images.classes), "in_channels": images.images.shape[1], "blocks": BLOCKS[budget]}
    for name, chain in CHAINS.items():
        width = width_for(getattr(models, chain), PARAMETERS[budget], **sizes)
        random.manual_seed(seed)
        built = models.build(chain, width=width, **sizes)
        cost = summary(built, images.images.shape[1:]).multiply_adds
        found[name] = training.fit(built, PLANS[budget], seed) | {
            "parameters": training.count(built), "million multiply-adds": cost / 1e6, "width": float(width)}
    return found


CARD = Card(
    name="connections",
    claim="At equal numbers of parameters, concatenating the outputs of blocks gives a lower error than adding them.",
    source="Huang et al. 2017, table 2, for dense blocks; the source article for its addition, concatenation and "
           "bottleneck",
    quoted=tuple(find(paper="Huang et al. 2017", table="Table 2")),
    prediction="On digits 120,000 parameters are more than is needed, so the three chains differ by less than what "
               "the seeds differ by: a point of test error. Equal size makes the joined ones narrower, 23 and 25 "
               "channels beside 27.",
    expected=NOT_HERE,
    expectations=(Above("addition", "concatenation", "test error", 1.0, "points"),
                  Above("addition", "bottleneck", "test error", 1.0, "points")),
    experiment={budget: f"Chains of {BLOCKS[budget]} blocks of the article (a = 0.1, two convolutions with batch "
                        "norm), from the third on fed with the two outputs before, joined in one of three ways, and as "
                        f"wide as comes nearest to {PARAMETERS[budget]:,} parameters. {PLANS[budget]}. Both "
                        "splits are read once at the end, in eval mode." for budget in BLOCKS},
    measure=measure,
    draw=drawing("Is concatenation better than addition at equal size?",
                 {"test error": "test error in %", "train loss": "training loss (cross-entropy)",
                  "million multiply-adds": "million multiply-adds"}),
)
