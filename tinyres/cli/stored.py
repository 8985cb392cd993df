"""The network that a file of weights, or a run, is for: its name, its options, the images it takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from tinyres.cli import setup

COUNTS, DEEPEST = ("depth", "blocks", "layers"), 10_000  # a file that asks for more keeps the processor busy for ever
IMAGES = {"digits": (8, 8), "cifar10": (32, 32), "cifar100": (32, 32), "fashion": (28, 28)}  # height, width


@dataclass(frozen=True)
class Stored:
    """A network with the weights of a file or run, and the options that it was built with; shape: of its input without
    the batch; normalisation: (mean, std) that its input needs, on the scale 0..1, None where nobody says."""

    name: str
    options: dict[str, Any]
    network: Any
    shape: tuple[int, ...]
    normalisation: tuple[Sequence[float], Sequence[float]] | None


def stored(weights: Path, model: str | None, option: str | None, own: Sequence[str], input: str | None) -> Stored:
    """Read the weights into the network that network_for finds.

    Raises typer.BadParameter where it cannot be told which network that is, or for which images.
    """
    from tinyres import models
    from tinyres.weights import load, read

    source = read(weights)
    given = None if input is None else shape(input)
    name, options = network_for(source, weights, model, option, own, _classes(source), *_images(source, given))
    features = source.arrays.get("stem.weight")
    if features is not None and features.ndim == 2 and _takes(name, "in_features"):
        options["in_features"] = features.shape[1]
    size = given or _shape(options, source)
    network = setup.build(name, options)
    load(network, weights)
    return Stored(models.known_name(name), options, network, size, normalisation(source))


def network_for(source: Any, weights: Path, model: str | None, option: str | None, own: Sequence[str], classes: int,
                channels: int, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
    """Name and options of the network: as asked for, else as the run or the file says, else what the names tell.

    classes, channels, size: the images', for what is left to them. Raises typer.BadParameter where nobody tells.
    """
    from tinyres import models

    told, known = source.network, source.architecture
    wrong = _wrong(*told) if told is not None else ""
    if wrong and model is None:
        raise typer.BadParameter(f"{weights} says for which network it is, but there is none like that: {wrong}. Say "
                                 "which it is.", param_hint="--model")
    told = None if wrong else told
    if told is not None and model is None and option is None and not own:
        return told
    name = model or (told[0] if told is not None else known.name if known is not None else "")
    if not name:
        raise typer.BadParameter(f"{weights} holds {known or 'no network known by its names'}; say which network it is "
                                 "for.", param_hint="--model")
    shortcut = option
    if option is None and known is not None and _takes(name, "option") and not any(_names(own, "option")):
        shortcut = known.options.get("option")
    found = setup.network_options(name, classes, channels, size, shortcut, own)
    if known is not None and "cifar_stem" in found and not any(_names(own, "cifar_stem")):
        found["cifar_stem"] = known.options.get("cifar_stem", found["cifar_stem"])
    name = models.known_name(name)
    if told is None or models.known_name(told[0]) != name:
        return name, found
    asked = {key for key in found if (key == "option" and option is not None) or any(_names(own, key))}
    return name, told[1] | {key: found[key] for key in asked}


def _wrong(name: str, options: dict[str, Any]) -> str:
    """Why there is no such network with such options; "" if there is one."""
    from tinyres import models

    try:
        takes = inspect.signature(getattr(models, models.known_name(name))).parameters
    except ValueError as error:
        return str(error)
    for key, value in options.items():
        kind = type(takes[key].default) if key in takes else None
        if kind is None or not isinstance(value, (int, float) if kind is float else kind):
            return f"{name} takes no {key[:100]!r} of {str(value)[:100]!r}"
        if key in COUNTS and value > DEEPEST:
            return f"{key} is {str(value)[:100]}, expected at most {DEEPEST:,}"
    return ""


def normalisation(source: Any) -> tuple[Sequence[float], Sequence[float]] | None:
    """(mean, std) that the weights' input needs: the run's, else what the format or the file says."""
    ours = source.config.get("normalisation")
    return source.normalisation if ours is None else (ours["mean"], ours["std"])


def _classes(source: Any) -> int:
    """How many classes the last layer has."""
    head, told = source.arrays.get("fc.weight"), source.network
    if head is not None and head.ndim == 2:
        return head.shape[0]
    return told[1].get("num_classes", 10) if told is not None else 10


def _images(source: Any, given: tuple[int, ...] | None) -> tuple[int, tuple[int, int]]:
    """Channels, and height and width, of the images: as given, else as the weights and the run's data have them."""
    stem, known = source.arrays.get("conv1.weight"), source.architecture
    told = source.network[1].get("in_channels", 3) if source.network is not None else 3
    channels = given[0] if given else stem.shape[1] if stem is not None and stem.ndim == 4 else told
    if given and len(given) == 3:
        return channels, (given[1], given[2])
    if known is not None and known.options.get("cifar_stem") is False:
        return channels, (224, 224)
    return channels, IMAGES.get(source.config.get("data", ""), (32, 32))


def _names(own: Sequence[str], option: str) -> Iterator[bool]:
    """For each NAME=VALUE whether it is this option."""
    return (text.partition("=")[0].strip().replace("-", "_") == option for text in own)


def _takes(name: str, option: str) -> bool:
    from tinyres import models

    with setup.option("--model"):
        return option in inspect.signature(getattr(models, models.known_name(name))).parameters


def _shape(options: dict[str, Any], source: Any) -> tuple[int, ...]:
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
