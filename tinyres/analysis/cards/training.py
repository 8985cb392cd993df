"""What the cards that train have in common: one recipe a budget, and how networks are compared under it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinyres import data, models, nn, optim, random
from tinyres.train import evaluate, train

TOP_LOSS = 100.0  # a larger loss, or none, is recorded as this: JSON has no infinity


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov's momentum 0.9 and a cosine from `lr` to 0; no augmentation unless told.

    images: only so many training images, and as many to test on; None: all.
    """

    data: str = "digits"
    epochs: int = 12
    batch: int = 64
    lr: float = 0.1
    weight_decay: float = 5e-4
    clip_norm: float | None = None
    images: int | None = None
    augment: bool = False
    device: str = "cpu"

    def __str__(self) -> str:
        count = "All" if self.images is None else f"{self.images:,}"
        epochs = f"{self.epochs} epoch{'s' * (self.epochs > 1)}"
        return (f"{count} training images of {self.data}, {'augmented' if self.augment else 'not augmented'}, "
                f"{epochs}, batch {self.batch}, SGD with Nesterov's momentum 0.9, rate {self.lr:g} to 0 on "
                f"a cosine, weight decay {self.weight_decay:g}, "
                + (f"gradients clipped to norm {self.clip_norm:g}, " if self.clip_norm else "")
                + f"device {self.device}")


RECIPES = {
    "small": Recipe(),
    "gpu": Recipe("cifar10", epochs=100, batch=128, weight_decay=1e-4, augment=True, device="cuda"),
    "smoke": Recipe(epochs=1, images=32, batch=32),
}


def recipe(budget: str, epochs: int, **changes: Any) -> Recipe:
    """The recipe of a budget with changes; so many epochs in "small" alone, as the others have their own."""
    if budget == "small":
        changes["epochs"] = epochs
    return replace(RECIPES[budget], **changes)


@dataclass(frozen=True)
class Network:
    """A network of the library by name, with options of its own."""

    name: str
    options: Mapping[str, Any]

    def build(self, images: data.Dataset) -> nn.Module:
        """The network for a data set's images, its weights drawn from the library's generator."""
        C, H, W = images.images.shape[1:]
        takes = inspect.signature(getattr(models, models.known_name(self.name))).parameters
        of_data = {"num_classes": len(images.classes), "in_channels": C, "in_features": C * H * W}
        given = {key: value for key, value in of_data.items() if key in takes}
        return models.build(self.name, **given, **self.options)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


def network(name: str, **options: Any) -> Network:
    """network("resnet20", option="B")."""
    return Network(name, options)


def splits(plan: Recipe) -> tuple[data.Dataset, data.Dataset]:
    """Training and test images of a recipe."""
    training, test = data.load(plan.data, "train"), data.load(plan.data, "test")
    if plan.images is not None:
        training, test = (split.subset(range(min(plan.images, len(split)))) for split in (training, test))
    return training, test


def fit(built: nn.Module, plan: Recipe, seed: int) -> dict[str, float]:
    """Train a network, then read both splits once in eval mode; returns what a card may compare.

    train loss, train error and test error in %, and diverged: 1 if training stopped because a loss or gradient was not
    finite, 0 if not. The weights are then the last finite ones.
    """
    training, test = (split.to(plan.device) for split in splits(plan))
    built.to(plan.device)
    transforms = data.augment.standard(training) if plan.augment else ()
    loader = data.Loader(training, plan.batch, True, seed, transforms, True)
    optimizer = optim.SGD(built.named_parameters(), plan.lr, 0.9, plan.weight_decay, True)
    schedule = optim.CosineAnnealingLR(optimizer, plan.epochs * len(loader))
    diverged = 0.0
    try:
        train(built, loader, optimizer, plan.epochs, schedule=schedule, clip_norm=plan.clip_norm)
    except FloatingPointError:
        diverged = 1.0
    with np.errstate(all="ignore"):  # a network that diverged may overflow
        fitted, held_out = evaluate(built, training), evaluate(built, test)
    return {"train loss": finite(fitted.loss), "train error": 100 * (1 - fitted.accuracy),
            "test error": 100 * (1 - held_out.accuracy), "diverged": diverged}


def finite(loss: float) -> float:
    """A loss that JSON can hold: at most TOP_LOSS, which also stands for infinity and NaN."""
    return min(float(loss), TOP_LOSS) if math.isfinite(loss) else TOP_LOSS


def compare(variants: Mapping[str, Network], plan: Recipe, seed: int) -> dict[str, dict[str, float]]:
    """Build and train each variant from the same seed; variant -> what `fit` returns, and the number of parameters."""
    found = {}
    for name, variant in variants.items():
        random.manual_seed(seed)
        built = variant.build(splits(plan)[0])
        found[name] = fit(built, plan, seed) | {"parameters": count(built)}
    return found


def count(built: nn.Module) -> float:
    """How many parameters a network has; a shared one counts once."""
    return float(sum(p.data.size for p in built.parameters()))


def in_words(variants: Mapping[str, Network], plan: Recipe) -> str:
    """The experiment in words."""
    return ("Train " + "; ".join(f"{name} ({variant})" if name != str(variant) else name
                                 for name, variant in variants.items()) + f". {plan}. Both splits "
            "are read once at the end, in eval mode.")
