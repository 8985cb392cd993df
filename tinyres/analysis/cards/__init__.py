"""Claim cards: what papers say of residual networks, and what a reduced experiment says of it here.

`cards.named("degradation")` is a card, `cards.run(card, out="claims")` runs it. Predictions and rules are committed
before the first run.
"""

from __future__ import annotations

import importlib

from tinyres.analysis.cards.card import BUDGETS, Card, read, run
from tinyres.analysis.cards.expect import VERDICTS
from tinyres.data import nearest

NAMES = ("degradation", "shortcut-scaling", "activation-order", "residual-scale", "article-readings", "paths",
         "shattering", "loss-surface", "connections", "weight-sharing", "shared-linear")

__all__ = ["BUDGETS", "NAMES", "VERDICTS", "Card", "named", "names", "read", "run"]


def names() -> list[str]:
    """The names that `named` knows, in the order in which they are listed."""
    return list(NAMES)


def named(name: str) -> Card:
    """The card of that name, from the file that is called like it. Raises ValueError that suggests the nearest name."""
    found = str(name).replace("_", "-")
    if found not in NAMES:
        raise ValueError(f"no claim card {name!r}.{nearest(found, NAMES)} There are {', '.join(NAMES)}")
    return importlib.import_module(f"{__name__}.{found.replace('-', '_')}").CARD
