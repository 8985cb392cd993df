"""An instrument may run a network, move its weights and switch its modes; afterwards the network is as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres import ops, random
from tinyres.kernels import layout
from tinyres.nn import Module
from tinyres.operands import type_name
from tinyres.state import no_grad
from tinyres.tensor import Tensor


@contextlib.contextmanager
def untouched(network: Module, training: bool | None = False) -> Iterator[None]:
    """Inside, the network is in training or eval mode; after it, also after an error, it is bit for bit as it was.

    training: None leaves each module in its own mode. Put back are the modes, the parameters' arrays and gradients, the
    buffers (running statistics) and the random state. Whoever moves a parameter inside gives it another array: the old
    one must not be written into. Raises TypeError for what is no network.
    """
    if not isinstance(network, Module):
        raise TypeError(f"expected a network, got {type_name(network)}: pass an nn.Module, like models.resnet20()")
    modes = [(module, module.training) for module in network.modules()]
    parameters = [(p, p.data, p.grad) for p in network.parameters()]
    buffers = [(b, b.data, b.data.copy(order="K")) for b in network.buffers()]
    drawn = random.get_state()
    try:
        if training is not None:
            network.train(training)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, array, grad in parameters:
            parameter.data, parameter.grad = array, grad
        for buffer, array, values in buffers:
            buffer.data = array
            buffer.data[...] = values
        random.set_state(drawn)


@dataclass(frozen=True)
class Score:
    """How a network does on some images: mean cross-entropy, and the share that it gets right."""

    loss: float
    accuracy: float


def score(network: Module, images: Any, labels: Any, batch: int = 250) -> Score:
    """Loss and accuracy on images (N, C, H, W) with labels (N,), `batch` at a time, in the mode that it is in. Raises
    ValueError for a batch below 1."""
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected 1 or more images at a time")
    N, loss, correct = len(labels), 0.0, 0
    with no_grad(), np.errstate(over="ignore", invalid="ignore"):  # far from its minimum a network may overflow
        for start in range(0, N, batch):
            y = labels[start:start + batch]
            logits = network(Tensor(images[start:start + batch]))
            loss += float(ops.cross_entropy(logits, y, reduction="none").data.sum(dtype=np.float64))
            correct += int((logits.data.argmax(1) == y).sum())
    return Score(loss / N, correct / N)


def arrays(instrument: str, images: Any, labels: Any) -> tuple[Any, Any]:
    """Images (N, ...) and labels (N,) as arrays. Raises ValueError if there are none, or not as many of each, TypeError
    for labels that are no whole numbers."""
    found = [x.data if isinstance(x, Tensor) else np.asarray(x) if isinstance(x, (list, tuple)) else x
             for x in (images, labels)]
    for name, array in zip(("images", "labels"), found, strict=True):
        if not hasattr(array, "ndim"):
            raise TypeError(f"{instrument}: {name} must be an array or a Tensor, got {type_name(array)}: take them "
                            "from data.digits('test').batch(64)")
    x, y = found
    if y.ndim != 1 or len(x) != len(y) or not len(y):
        raise ValueError(f"{instrument}: images have shape {tuple(x.shape)} and labels {tuple(y.shape)}, expected a "
                         "label for each image: (N, C, H, W) and (N,)")
    if y.dtype.kind not in "iu":
        raise TypeError(f"{instrument}: labels are {y.dtype}, expected whole numbers, the places of the classes")
    return x, y


def host(array: Any) -> np.ndarray:
    """A NumPy array, whatever device the array is on."""
    return np.asarray(array.get() if layout.array_module(array) is not np else array)
