"""What is trained, and how: the recipes, and the optimizer and schedule that one asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import typer

from tinyres.cli import setup


@dataclass(frozen=True)
class Recipe:
    """Everything about a run but its data, its seed and its kernels. Either epochs or iterations is None."""

    model: str
    epochs: int | None
    batch: int
    lr: float = 0.1
    iterations: int | None = None
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "onecycle"
    warmup: int = 0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    augment: bool = True
    ema: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    validate: bool = False


RECIPES = {
    # Chosen by cross-validation on the training images alone.
    "digits": Recipe("resnet8", epochs=40, batch=64, weight_decay=1e-2, schedule="cosine"),
    # One cycle of the rate (Smith and Topin 2018). The rate and the weight decay were chosen on CIFAR-10's 45,000 and
    # 5,000 training images.
    "fast": Recipe("resnet20", epochs=45, batch=128, lr=0.2),
    # He et al. (2015), section 4.2: 64k iterations, 45,000 images to fit and 5,000 to choose by.
    "he2015": Recipe("resnet20", epochs=None, batch=128, iterations=64_000, nesterov=False, weight_decay=1e-4,
                     schedule="he2015", validate=True),
}
SCHEDULES = ("cosine", "onecycle", "he2015", "constant")
DEEP = ("resnet110", "resnet1202")  # those that He et al. warm up: about 400 iterations at a tenth of the rate
HE_WARMUP = 400
# Networks without norm, whose activations and gradients grow with their weights. Chosen by validation on digits.
WITHOUT_NORM = re.compile("article_prose.*|fixup_.*|skipinit_.*|.*_mlp")
GENTLE = {"lr": 0.02, "clip_norm": 1.0, "weight_decay": 5e-4}


def choose(name: str | None, data: str, given: Mapping[str, Any]) -> tuple[str, Recipe]:
    """The recipe called `name`, else the usual one for the data, changed by the options that were given (not None).

    A network without norm gets a lower rate and weight decay, and clipped gradients, where these were not given.
    Raises typer's BadParameter for an unknown recipe and for options that exclude each other.
    """
    name = name or ("digits" if data == "digits" else "fast")
    if name not in RECIPES:
        from tinyres.data import nearest

        raise typer.BadParameter(f"no recipe {name!r}.{nearest(name, RECIPES)} There are {', '.join(RECIPES)}.",
                                 param_hint="--recipe")
    changes = {field.name: given[field.name] for field in fields(Recipe) if given.get(field.name) is not None}
    if "model" in changes:
        changes["model"] = changes["model"].replace("-", "_")  # article-prose, as it is typed, is article_prose
    if {"epochs", "iterations"} <= changes.keys():
        raise typer.BadParameter(f"{changes['epochs']} epochs and {changes['iterations']} iterations exclude each "
                                 "other; give one of them.", param_hint="--iterations")
    if "epochs" in changes:
        changes["iterations"] = None
    elif "iterations" in changes:
        changes["epochs"] = None
    if name == "he2015" and changes.get("model") in DEEP:
        changes.setdefault("warmup", HE_WARMUP)
    if name != "he2015" and WITHOUT_NORM.fullmatch(changes.get("model", "")):
        changes = GENTLE | changes
    recipe = replace(RECIPES[name], **changes)
    _check(recipe, changes)
    if not recipe.momentum:
        recipe = replace(recipe, nesterov=False)
    return name, recipe


def fit_batch(recipe: Recipe, images: int) -> Recipe:
    """The recipe with a batch small enough for at least 12 steps an epoch: fewer hardly train a small data set.

    A power of two, from 8 up to the recipe's own. Chosen by validation on 250 photographs.
    """
    batch = recipe.batch
    while batch > 8 and images < 12 * batch:
        batch //= 2
    return replace(recipe, batch=batch)


def _check(recipe: Recipe, changes: Mapping[str, Any]) -> None:
    if recipe.schedule not in SCHEDULES:
        raise typer.BadParameter(f"{recipe.schedule!r} is none of {', '.join(SCHEDULES)}.", param_hint="--schedule")
    if recipe.schedule == "onecycle" and recipe.warmup:
        raise typer.BadParameter(f"{recipe.warmup} batches of warm-up, but the schedule onecycle has its own; choose "
                                 "another --schedule or leave it out.", param_hint="--warmup")
    if changes.get("nesterov") and not recipe.momentum:
        raise typer.BadParameter("Nesterov's momentum needs a --momentum above 0, got 0.", param_hint="--nesterov")
    if recipe.accumulate > recipe.batch:
        raise typer.BadParameter(f"{recipe.accumulate} parts of a batch of {recipe.batch} images; give at most "
                                 f"{recipe.batch}.", param_hint="--accumulate")


def optimizer_and_schedule(model: Any, config: Mapping[str, Any], batches: int) -> tuple[Any, Any]:
    """SGD over the parameters that are not frozen, and its schedule over all batches of the run."""
    from tinyres import optim

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    with setup.option("--freeze"):
        if not trained:
            raise ValueError("nothing is left to train; freeze less.")
    total, warmup = config["iterations"] or config["epochs"] * batches, config["warmup"]
    if warmup >= total:
        raise typer.BadParameter(f"{warmup} batches of warm-up in a run of {total}; give fewer.", param_hint="--warmup")
    optimizer = optim.SGD(trained, config["lr"], config["momentum"], config["weight_decay"], config["nesterov"])
    schedule: Any = None
    if config["schedule"] == "onecycle":
        schedule = optim.OneCycleLR(optimizer, config["lr"], total, cycle_momentum=False)
    elif config["schedule"] == "cosine":
        schedule = optim.CosineAnnealingLR(optimizer, total - warmup)
    elif config["schedule"] == "he2015":  # 32k and 48k of 64k iterations
        schedule = optim.MultiStepLR(optimizer, [total // 2 - warmup, total * 3 // 4 - warmup])
    if not warmup:
        return optimizer, schedule
    constant = config["schedule"] == "he2015"
    return optimizer, optim.LinearWarmup(schedule or optimizer, warmup, 0.1, 0.1 if constant else 1.0)
