"""Networks by name: `models.resnet20()`, or `models.build("resnet20", num_classes=100)` for a name from outside."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from tinyres import nn
from tinyres.models import blocks, preact, resnet
from tinyres.models.preact import (
    preact_resnet18,
    preact_resnet20,
    preact_resnet32,
    preact_resnet34,
    preact_resnet44,
    preact_resnet50,
    preact_resnet56,
    preact_resnet110,
    preact_resnet164,
)
from tinyres.models.resnet import (
    plain8,
    plain20,
    plain32,
    plain44,
    plain56,
    plain110,
    resnet8,
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
    resnet101,
    resnet110,
    resnet152,
    resnet1202,
)

_CONSTRUCTORS = {constructor.__name__: constructor for constructor in (
    resnet8, resnet20, resnet32, resnet44, resnet56, resnet110, resnet1202,
    plain8, plain20, plain32, plain44, plain56, plain110,
    resnet18, resnet34, resnet50, resnet101, resnet152,
    preact_resnet20, preact_resnet32, preact_resnet44, preact_resnet56, preact_resnet110, preact_resnet164,
    preact_resnet18, preact_resnet34, preact_resnet50,
)}


def names() -> list[str]:
    """The names that build() knows, family by family."""
    return list(_CONSTRUCTORS)


def build(name: str, **options: Any) -> nn.Module:
    """The network `name` with its constructor's options (num_classes, in_channels, option, cifar_stem ...).

    Raises ValueError that suggests the nearest name or option, or says which options this network has.
    """
    if name not in _CONSTRUCTORS:
        near = difflib.get_close_matches(str(name).lower(), _CONSTRUCTORS, 3)
        raise ValueError(f"models.build: no network is called {name!r}; "
                         + (f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(names())}"))
    constructor = _CONSTRUCTORS[name]
    takes = list(inspect.signature(constructor).parameters)
    for option in options:
        if option not in takes:
            near = difflib.get_close_matches(option, takes, 1)
            why = f"did you mean {near[0]!r}?" if near else _why_not(name, option)
            raise ValueError(f"models.build: {name} has no option {option!r}; {why} Its options: {', '.join(takes)}")
    return constructor(**options)


def _why_not(name: str, option: str) -> str:
    if option in ("option", "zero_init_residual") and name.startswith("plain"):
        return f"a plain network has no shortcuts: use {name.replace('plain', 'resnet')}."
    if option == "cifar_stem":
        return "it is made for small images and always has the 3x3 stem: leave the option out."
    return "leave it out."


def __getattr__(name: str) -> Any:
    near = difflib.get_close_matches(name.lower(), _CONSTRUCTORS, 3)
    hint = f": did you mean {' or '.join(near)}?" if near and not name.startswith("_") else ""
    raise AttributeError(f"module 'tinyres.models' has no attribute {name!r}{hint}")


__all__ = ["blocks", "build", "names", "preact", "resnet", *_CONSTRUCTORS]
