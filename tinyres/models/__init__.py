"""Networks by name: `models.resnet20()`, or `models.build("resnet20", num_classes=100)` for a name from outside."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from tinyres import nn
from tinyres.models import (
    article,
    blocks,
    connections,
    densenet,
    fixup,
    gates,
    mlp,
    mlperf,
    orders,
    preact,
    resnet,
    scaled,
    shared,
    stochastic_depth,
)

FAMILIES = (resnet, preact, scaled, gates, orders, fixup, stochastic_depth, shared, article, connections, densenet, mlp,
            mlperf)
_CONSTRUCTORS = {constructor.__name__: constructor for family in FAMILIES for constructor in family.NETWORKS}
globals().update(_CONSTRUCTORS)  # models.resnet20(), and so each name of a family's NETWORKS


def names() -> list[str]:
    """The names that build() knows, family by family."""
    return list(_CONSTRUCTORS)


def known_name(name: str) -> str:
    """The name of a network as Python has it: "article-prose" is article_prose.

    Raises ValueError that suggests the nearest name.
    """
    found = str(name).replace("-", "_")
    if found not in _CONSTRUCTORS:
        near = difflib.get_close_matches(found.lower(), _CONSTRUCTORS, 3)
        raise ValueError(f"models.build: no network is called {name!r}; "
                         + (f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(names())}"))
    return found


def build(name: str, **options: Any) -> nn.Module:
    """The network `name` with its constructor's options (num_classes, in_channels, option, cifar_stem ...).

    Raises ValueError that suggests the nearest name or option, or says which options this network has.
    """
    name = known_name(name)
    constructor = _CONSTRUCTORS[name]
    takes = list(inspect.signature(constructor).parameters)
    for option in options:
        if option not in takes:
            near = difflib.get_close_matches(option, takes, 1)
            why = f"did you mean {near[0]!r}?" if near else _why_not(name, option, takes)
            raise ValueError(f"models.build: {name} has no option {option!r}; {why} Its options: {', '.join(takes)}")
    return constructor(**options)


def _why_not(name: str, option: str, takes: list[str]) -> str:
    twin = name.replace("plain", "resnet")
    if option in ("option", "zero_init_residual") and twin != name and twin in _CONSTRUCTORS:
        return f"a plain network has no shortcuts: use {twin}."
    if option == "cifar_stem" and "in_channels" in takes:
        return "it is made for small images and always has the 3x3 stem: leave the option out."
    return "leave it out."


def __getattr__(name: str) -> Any:
    near = difflib.get_close_matches(name.lower(), _CONSTRUCTORS, 3)
    hint = f": did you mean {' or '.join(near)}?" if near and not name.startswith("_") else ""
    raise AttributeError(f"module 'tinyres.models' has no attribute {name!r}{hint}")


__all__ = ["blocks", "build", "known_name", "names", *(family.__name__.rpartition(".")[2] for family in FAMILIES),
           *_CONSTRUCTORS]
