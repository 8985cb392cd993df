"""The network that a file of weights, or a run, is for: its name, its options, the images it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from tinyres.cli import setup

IMAGES = {"digits": (8, 8), "cifar10": (32, 32), "cifar100": (32, 32), "fashion": (28, 28)}  # height, width


@dataclass(frozen=True)
class Stored:
    """A network with the weights of a file or run; shape: of its input without the batch; normalisation: (mean, std)
    that its input needs, on the scale 0..1, None where nobody says."""

    name: str
    network: Any
    shape: tuple[int, ...]
    normalisation: tuple[Sequence[float], Sequence[float]] | None


def stored(weights: Path, model: str | None, option: str | None, own: Sequence[str], input: str | None) -> Stored:
    """Read the weights into the network that the options name, else the run, else what the names in the file tell.

    Raises typer.BadParameter where it cannot be told which network that is, or for which images.
    """
    from tinyres import models
    from tinyres.weights import load, read

    source = read(weights)
    given = None if input is None else shape(input)
    known, run = source.architecture, source.config
    if model is None and option is None and not own and {"model", "network"} <= run.keys():
        name, options = run["model"], run["network"]
    elif model is None and option is None and not own and known is not None and known.name:
        name, options = known.name, known.options
    else:
        name = model or run.get("model") or (known.name if known is not None else "")
        if not name:
            raise typer.BadParameter(f"{weights} holds {known or 'no ResNet known by its names'}; say which network it "
                                     "is for.", param_hint="--model")
        options = _options(name, source, option, own, given)
    size = given or _shape(name, options, source)
    with setup.option("--model"):
        network = models.build(name, **options)
    load(network, weights)
    normalisation = source.normalisation
    if "normalisation" in run:
        normalisation = run["normalisation"]["mean"], run["normalisation"]["std"]
    return Stored(models.known_name(name), network, size, normalisation)


def _options(name: str, source: Any, option: str | None, own: Sequence[str], given: tuple[int, ...] | None
             ) -> dict[str, Any]:
    """The network's options: classes and channels as the weights' shapes have them, the others as asked for."""
    known = source.architecture
    run = source.config.get("network", {})
    told = known.options if known is not None else {}
    head, stem = source.arrays.get("fc.weight"), source.arrays.get("conv1.weight")
    classes = run.get("num_classes") or told.get("num_classes") or (10 if head is None else head.shape[0])
    channels = given[0] if given else (run.get("in_channels") or told.get("in_channels")
                                       or (stem.shape[1] if stem is not None and stem.ndim == 4 else 3))
    data = IMAGES.get(source.config.get("data", ""), (32, 32))
    size = (given[1], given[2]) if given and len(given) == 3 else data
    if known is not None and known.options.get("cifar_stem") is False:
        size = size if given else (224, 224)
    shortcut = option or (told.get("option") if not name.startswith("plain") and _takes(name, "option") else None)
    options = setup.network_options(name, classes, channels, size, shortcut, own)
    features = source.arrays.get("stem.weight")
    if "in_features" in options and features is not None and features.ndim == 2:
        options["in_features"] = features.shape[1]
    return options


def _takes(name: str, option: str) -> bool:
    import inspect

    from tinyres import models

    with setup.option("--model"):
        return option in inspect.signature(getattr(models, models.known_name(name))).parameters


def _shape(name: str, options: dict[str, Any], source: Any) -> tuple[int, ...]:
    """The shape of one input: that of the run's data, or what the network was published for."""
    if "in_features" in options:
        return (options["in_features"],)
    channels, run = options.get("in_channels", 3), source.config
    if run.get("image_size"):
        return (channels, run["image_size"], run["image_size"])
    if run.get("data") in IMAGES:
        return (channels, *IMAGES[run["data"]])
    if run:
        raise typer.BadParameter(f"the run does not say how large its images are; give the shape of one, like "
                                 f"{channels},32,32.", param_hint="--input")
    return (channels, 224, 224) if options.get("cifar_stem") is False else (channels, 32, 32)


def shape(text: str) -> tuple[int, ...]:
    """"3,32,32" as numbers, or "64" for a network that takes rows. Raises typer.BadParameter for anything else."""
    sizes = text.replace("x", ",").split(",")
    if len(sizes) not in (1, 3) or not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise typer.BadParameter(f"{text!r} is not a shape; give three positive numbers, like 3,32,32.",
                                 param_hint="--input")
    return tuple(int(size) for size in sizes)
