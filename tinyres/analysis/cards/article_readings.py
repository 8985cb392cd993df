"""The source article's block: its formula and its steps disagree, and one of three readings contains the identity."""

from __future__ import annotations

from tinyres.analysis.cards import training
from tinyres.analysis.cards.card import Card, Numbers
from tinyres.analysis.cards.expect import REPRODUCED, Above, Near
from tinyres.analysis.cards.points import drawing
from tinyres.analysis.published import Number, one

READINGS = {"parallel": "article_prose_parallel", "series": "article_prose_series",
            "four-step": "article_prose_four_step"}
DEEP = {"small": 12, "gpu": 24, "smoke": 4}  # blocks; as written there are three
THIN = {"small": {"width": 64, "filters": 32}, "gpu": {"width": 128, "filters": 64},
        "smoke": {"width": 8, "filters": 4}}
AS_WRITTEN: dict[str, dict[str, int]] = {"small": {}, "gpu": {}, "smoke": THIN["smoke"]}
PLANS = {budget: training.recipe(budget, epochs=8, lr=0.01, clip_norm=1.0) for budget in DEEP}


def variants(budget: str) -> dict[str, training.Network]:
    """The three readings, with three blocks as written and with more, thinner ones."""
    shallow = {f"{reading}, as written": training.network(name, **AS_WRITTEN[budget])
               for reading, name in READINGS.items()}
    deep = {f"{reading}, deep": training.network(name, blocks=DEEP[budget], **THIN[budget])
            for reading, name in READINGS.items()}
    return shallow | deep


def measure(budget: str, seed: int) -> Numbers:
    """One run of the experiment; see the card."""
    return training.compare(variants(budget), PLANS[budget], seed)


CARD = Card(
    name="article-readings",
    claim="Of the three readings of the source article's block only that which contains the identity is a residual "
          "block: a few blocks train in any reading, many of them in that one best.",
    source="He et al. 2015, section 3.2, on what a residual block is; the source article, whose formula "
           "y = L(x) + a R(x) and whose steps u = x + L(x), y = u + a R(u) disagree",
    quoted=(Number("source article", "its formula", "scale a of the right branch", 0.1, "", "article_prose"),
            one("estimate k(l+1)+m")),
    prediction="With three blocks all readings train on digits and end within 3 points of test error of each other: "
               "so few layers need no shortcut. With twelve blocks without norm the readings without the identity, "
               "parallel and series, are plain networks of 24 convolutions, as 0.1^12 of anything passes their scaled "
               "route; their training error after so few steps is above that of the four-step reading by 5 points or "
               "more. The four-step reading has x itself in it and so an unscaled route, but nothing scales its L, so "
               "its activations double from block to block and the loss starts high; clipped gradients bear that.",
    expected=REPRODUCED,
    expectations=(Near("parallel, as written", "four-step, as written", "test error", 3.0, "points"),
                  Near("series, as written", "four-step, as written", "test error", 3.0, "points"),
                  Above("parallel, deep", "four-step, deep", "train error", 5.0, "points"),
                  Above("series, deep", "four-step, deep", "train error", 5.0, "points")),
    experiment={budget: training.in_words(variants(budget), PLANS[budget]) for budget in DEEP},
    measure=measure,
    draw=drawing("Which reading of the article's block is a residual block?",
                 {"train error": "training error in %", "train loss": "training loss (cross-entropy)",
                  "test error": "test error in %"}),
)
