"""Compiling ahead: a training step and an evaluation of small networks that call every kernel a recipe's network calls.

A kernel is compiled for the types of its arguments, not for their sizes. So a batch of two images does for any batch,
and one convolution of a kind for all of that kind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinyres import models, nn
from tinyres.kernels import use_kernels
from tinyres.optim import SGD, AdamW
from tinyres.state import no_grad
from tinyres.tensor import Tensor
from tinyres.train import train_step

CLASSES = 10


@dataclass(frozen=True)
class Warmth:
    """How many versions of kernels were compiled and how many taken from the cache; the seconds; the cache's folder."""

    compiled: int
    loaded: int
    seconds: float
    folder: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def warm(listener: Callable[[str | None, int], None]) -> Warmth:
    """Compile what is not in the cache yet, in float32; listener is told as in kernels/cpu/jit.py, told_to."""
    from tinyres.kernels.cpu import code_cache, jit

    began, before = time.perf_counter(), jit.counts()
    with use_kernels("fast"), jit.told_to(listener):
        for network, shape in _networks():
            _use(network, np.random.default_rng(0).random((2, *shape), np.float32))
    compiled, loaded = (after - earlier for after, earlier in zip(jit.counts(), before, strict=True))
    folder = code_cache.folder()
    return Warmth(compiled, loaded, round(time.perf_counter() - began, 2), None if folder is None else str(folder))


def _networks() -> list[tuple[nn.Module, tuple[int, int, int]]]:
    """Networks and the (C, H, W) of their images: the recipes' own, and what only the larger ones are made of."""
    imagenet = nn.Sequential(  # the stem of ResNet-18, a bottleneck, and a layer as wide as its last
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(64, 16, 1), nn.AvgPool2d(2), nn.Conv2d(16, 256, 3, padding=1), nn.Conv2d(256, 256, 3, padding=1),
        nn.GlobalAvgPool2d(), nn.Linear(256, CLASSES))
    return [(models.build("resnet8", in_channels=1), (1, 8, 8)), (models.build("resnet20", option="A"), (3, 32, 32)),
            (models.build("resnet20", option="B"), (3, 32, 32)), (models.build("preact_resnet20"), (3, 32, 32)),
            (imagenet, (3, 32, 32))]


def _use(network: nn.Module, images: np.ndarray) -> None:
    """Steps of each optimizer, with labels and with shares of classes; then evaluation, as it is and folded."""
    labels = np.arange(len(images))
    shares = np.full((len(images), CLASSES), 1 / CLASSES, np.float32)
    parameters = list(network.parameters())
    for optimizer in (SGD(parameters, 0.01), SGD(parameters, 0.01, momentum=0.9, nesterov=True), AdamW(parameters)):
        train_step(network, optimizer, images, labels)
    train_step(network, optimizer, images, shares, label_smoothing=0.1)
    network.eval()
    with no_grad():
        for model in (network, nn.fold_batch_norm(network)):
            model(Tensor(images))
