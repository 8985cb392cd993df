"""Networks beside their twins in PyTorch: from the same weights the same numbers.

Loading our weights into the twin, strictly, compares names and shapes; then outputs, losses, gradients and running
statistics are compared, and the weights after steps of SGD. In float32, where rounding decides, the measure is how far
PyTorch itself is from float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres import models, nn, ops, optim, random
from tinyres.analysis.twins import pytorch, twin
from tinyres.tensor import Tensor

SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
STEPS = 3


@dataclass(frozen=True)
class Pair:
    """Our network and its twin with the same weights, images (N, C, H, W) of their dtype and labels (N,)."""

    ours: nn.Module
    theirs: Any
    images: np.ndarray
    labels: np.ndarray


def network(name: str, options: Mapping[str, Any], seed: int = 0, shift: float = 0.0) -> nn.Module:
    """models.build(name, **options) as tinyres.random draws it after seeding; `shift`: the bias of all batch norms."""
    random.manual_seed(seed)
    model = models.build(name, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data += shift
    return model


def pair(name: str, options: Mapping[str, Any], shape: Sequence[int], dtype: str, seed: int = 0,
         shift: float = 0.0) -> Pair:
    """The network and its twin, both in `dtype`, with normal images of `shape` and random labels.

    Raises RuntimeError (PyTorch's) if names or shapes of parameters differ.
    """
    ours, theirs = network(name, options, seed, shift).astype(dtype), twin(name, **options)
    theirs = theirs.to(getattr(pytorch(), dtype))
    theirs.load_state_dict({key: pytorch().tensor(value) for key, value in ours.state_dict().items()})
    rng = np.random.default_rng(seed)
    images = rng.standard_normal(shape).astype(dtype)
    return Pair(ours, theirs, images, rng.integers(0, theirs.fc.out_features, shape[0]))


Pass = tuple[np.ndarray, float, dict[str, np.ndarray]]  # outputs, loss, gradient by name


def our_pass(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> Pass:
    """Forward and backward of the cross-entropy; the gradients are those of the parameters, and of "images"."""
    model.zero_grad()
    x = ops.tensor(images, requires_grad=True)
    y = model(x)
    loss = ops.cross_entropy(y, labels)
    loss.backward()
    leaves: dict[str, Any] = {**dict(model.named_parameters()), "images": x}
    return y.numpy(), loss.item(), {name: p.grad.numpy().copy() for name, p in leaves.items()}


def their_pass(model: Any, images: Any, labels: np.ndarray) -> Pass:
    """The same in PyTorch; images: a torch tensor, which may be channels_last."""
    model.zero_grad()
    x = images.detach().requires_grad_()
    y = model(x)
    loss = pytorch().nn.functional.cross_entropy(y, pytorch().tensor(labels))
    loss.backward()
    leaves = {**dict(model.named_parameters()), "images": x}
    return y.detach().numpy(), loss.item(), {name: p.grad.numpy().copy() for name, p in leaves.items()}


def distance(found: Any, wanted: Any) -> float:
    """The norm of the difference relative to that of `wanted`; infinite where one is not finite. Shapes must agree."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if found.shape != wanted.shape:
        raise ValueError(f"parity.distance: shapes {found.shape} and {wanted.shape} differ")
    relative = float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-300))
    return relative if np.isfinite(relative) else float("inf")


def largest(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """The largest distance of two tensors of the same name. Raises ValueError unless names and their order agree."""
    if list(found) != list(wanted):
        raise ValueError(f"parity.largest: names differ: {sorted(set(found) ^ set(wanted))}")
    return max((distance(found[name], wanted[name]) for name in found), default=0.0)


def exact_distances(networks: Pair) -> dict[str, float]:
    """What differs most over three steps of SGD (lr 0.1, momentum 0.9, decay 1e-4, Nesterov), which change the pair.

    Distances of "outputs", "loss", "gradients" (of parameters and images), "statistics" (the buffers), "weights", and
    of the trained networks' outputs in "eval" mode, each relative to the norm of PyTorch's tensor.
    """
    torch, ours, theirs = pytorch(), networks.ours, networks.theirs
    images, labels = networks.images, networks.labels
    optimizers = optim.SGD(ours.parameters(), **SGD), torch.optim.SGD(theirs.parameters(), **SGD)
    found: dict[str, float] = {}
    for _ in range(STEPS):
        mine, other = our_pass(ours, images, labels), their_pass(theirs, torch.tensor(images), labels)
        for optimizer in optimizers:
            optimizer.step()
        now = {"outputs": distance(mine[0], other[0]), "loss": distance(mine[1], other[1]),
               "gradients": largest(mine[2], other[2]),
               "statistics": largest(_arrays(ours.named_buffers()), _arrays(theirs.named_buffers())),
               "weights": largest(_arrays(ours.named_parameters()), _arrays(theirs.named_parameters()))}
        found = {what: max(value, found.get(what, 0.0)) for what, value in now.items()}
    outputs = ours.eval()(Tensor(images)), theirs.eval()(torch.tensor(images)).detach()
    return {**found, "eval": distance(outputs[0].numpy(), outputs[1].numpy())}


def _arrays(named: Any) -> dict[str, np.ndarray]:
    return {name: t.detach().numpy() for name, t in named}


def rounding(name: str, options: Mapping[str, Any], shape: Sequence[int], seed: int = 0, draws: int = 3,
             shift: float = 0.0) -> tuple[float, float]:
    """How far the float32 gradient of all parameters is from that in float64: ours, and PyTorch's in channels_last.

    The root mean square of the relative distances of several draws, with seeds seed, seed + 1, ... One draw says
    little: it is about 1e-6, or a thousand times that where one ReLU switches.
    """
    channels_last = pytorch().channels_last
    squares = np.zeros(2)
    for s in range(seed, seed + draws):
        drawn = pair(name, options, shape, "float32", s, shift)
        ours, labels = drawn.ours, drawn.labels
        theirs = drawn.theirs.to(memory_format=channels_last)
        images = pytorch().tensor(drawn.images).to(memory_format=channels_last)
        found = [_flat(our_pass(ours, drawn.images, labels)), _flat(their_pass(theirs, images, labels))]
        exact = _flat(our_pass(ours.double(), drawn.images.astype("float64"), labels))
        squares += [distance(g, exact) ** 2 for g in found]
    mine, pytorchs = np.sqrt(squares / draws)
    return float(mine), float(pytorchs)


def _flat(result: Pass) -> np.ndarray:
    """The gradients of all parameters in one array."""
    return np.concatenate([g.ravel().astype(np.float64) for name, g in result[2].items() if name != "images"])
