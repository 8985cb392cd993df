"""Residual networks with one linear layer a block: small enough to calculate by hand what depth does to them.

A block is x + a (W relu(x) + b), with W from He's initialisation and b = 0. While x is symmetric about 0, W relu(x) has
the size of x and is uncorrelated with it, so |x|^2 grows by 1 + a^2 a block, and activations by (1 + a^2)^(L/2) over L
blocks: 3.4e7 for a = 1 and L = 50, 1.28 for a = 0.1, and less than sqrt(e) for a = 1 / sqrt(L), whatever L. There is no
norm that would hide it. The plain twin is W relu(x) + b alone.
He et al. 2015, "Delving deep into rectifiers" (initialisation); Balduzzi et al. 2017, "The shattered gradients problem"
(residual blocks without norm, scaled); Bachlechner et al. 2021, "ReZero is all you need" (a learned, from 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyres import nn, ops
from tinyres.models.blocks import Block
from tinyres.models.joins import finite
from tinyres.models.shared import Borrowed, owner_of
from tinyres.nn.options import positive
from tinyres.tensor import Tensor


def inverse_sqrt(depth: int) -> float:
    """1 / sqrt(L), the `a` that keeps the growth of L = `depth` blocks below sqrt(e), whatever L."""
    positive("inverse_sqrt", depth=depth)
    return 1 / math.sqrt(depth)


def hidden_linear(width: int) -> nn.Linear:
    """A linear layer (N, C) -> (N, C) behind a ReLU, C = `width`: weight from N(0, 2 / C), bias 0."""
    linear = nn.Linear(width, width)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
    return linear


# --- blocks ---------------------------------------------------------------------------------------------------------


class MLPBlock(Block):
    """x + a (W relu(x) + b) with a fixed `a`; (N, C) -> (N, C). `linear` is W and b; it may be Borrowed."""

    def __init__(self, linear: nn.Module, a: float = 1.0):
        super().__init__()
        self.linear, self.downsample = linear, nn.Identity()
        self.a: Any = finite(type(self).__name__, "a", a)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.a * self.linear(ops.relu(x))

    def without_branch(self, x: Tensor) -> Tensor:
        return self.shortcut(x)

    def zero_branch_(self) -> None:
        for parameter in owner_of(self.linear).parameters():
            nn.init.zeros_(parameter)

    def extra_repr(self) -> str:
        return f"a={self.a:g}"


class LearnedMLPBlock(MLPBlock):
    """MLPBlock whose `a` is a parameter of shape (); ReZero if it starts from 0, where the block is an identity."""

    def __init__(self, linear: nn.Module, a: float = 0.0):
        super().__init__(linear, a)
        self.a = nn.Parameter(np.full((), a, np.float32))

    def zero_branch_(self) -> None:
        nn.init.zeros_(self.a)  # zeroing W as well would leave both without a gradient

    def extra_repr(self) -> str:
        return "a learned"


class PlainMLPBlock(nn.Module):
    """MLPBlock without the addition: W relu(x) + b; (N, C) -> (N, C)."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(ops.relu(x))


# --- networks -------------------------------------------------------------------------------------------------------


class MLP(nn.Module):
    """Linear, blocks, ReLU, linear; (N, in_features) or images of as many values (N, C, H, W) -> (N, num_classes).

    `blocks` are modules (N, width) -> (N, width) in the order of the calls, so their number is the depth; they are the
    one stage, `layer1`. The first and the last layer have PyTorch's initialisation, with a bias: without one the
    outputs would be linear on every ray from 0. Raises ValueError for images of another number of values.
    """

    def __init__(self, blocks: Sequence[nn.Module], width: int, num_classes: int, in_features: int):
        super().__init__()
        positive(type(self).__name__, width=width, num_classes=num_classes, in_features=in_features)
        self.stem = nn.Linear(in_features, width)
        self.stages = ("layer1",)
        self.layer1 = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or math.prod(x.shape[1:]) != self.stem.in_features:
            fix = "give a batch, x[None] for one image" if x.ndim < 2 else \
                f"build the network with in_features={math.prod(x.shape[1:])}"
            raise ValueError(f"{type(self).__name__}: the input has shape {tuple(x.shape)}, expected (N, C, H, W) or "
                             f"(N, C) with in_features={self.stem.in_features} values an image: {fix}")
        return self.fc(ops.relu(self.layer1(self.stem(ops.flatten(x, 1)))))


def residual_mlp(num_classes=10, in_features=64, depth=18, width=100, a=1.0):
    """`depth` residual blocks x + a (W relu(x) + b); depth (width^2 + width) parameters between the first and last."""
    positive("residual_mlp", depth=depth, width=width)
    return MLP([MLPBlock(hidden_linear(width), a) for _ in range(depth)], width, num_classes, in_features)


def plain_mlp(num_classes=10, in_features=64, depth=18, width=100):
    """The plain twin of residual_mlp: `depth` blocks W relu(x) + b, and as many parameters."""
    positive("plain_mlp", depth=depth, width=width)
    return MLP([PlainMLPBlock(hidden_linear(width)) for _ in range(depth)], width, num_classes, in_features)


def learned_scale_mlp(num_classes=10, in_features=64, depth=18, width=100, a=1.0):
    """residual_mlp whose every block learns its own `a`, all starting from the one given."""
    positive("learned_scale_mlp", depth=depth, width=width)
    return MLP([LearnedMLPBlock(hidden_linear(width), a) for _ in range(depth)], width, num_classes, in_features)


def rezero_mlp(num_classes=10, in_features=64, depth=18, width=100):
    """learned_scale_mlp from a = 0: it starts as an identity between its ends (Bachlechner et al. 2021)."""
    positive("rezero_mlp", depth=depth, width=width)
    return MLP([LearnedMLPBlock(hidden_linear(width)) for _ in range(depth)], width, num_classes, in_features)


def one_linear(depth: int, width: int) -> list[nn.Module]:
    """A hidden linear layer and depth - 1 more uses of it."""
    linear = hidden_linear(width)
    return [linear, *(Borrowed(linear) for _ in range(depth - 1))]


def shared_mlp(num_classes=10, in_features=64, depth=18, width=100):
    """plain_mlp whose hidden linear layers are one, used `depth` times: width^2 + width parameters, whatever depth."""
    positive("shared_mlp", depth=depth, width=width)
    return MLP([PlainMLPBlock(linear) for linear in one_linear(depth, width)], width, num_classes, in_features)


def shared_residual_mlp(num_classes=10, in_features=64, depth=18, width=100, a=1.0):
    """residual_mlp whose hidden linear layers are one, used `depth` times."""
    positive("shared_residual_mlp", depth=depth, width=width)
    return MLP([MLPBlock(linear, a) for linear in one_linear(depth, width)], width, num_classes, in_features)


NETWORKS = (residual_mlp, plain_mlp, learned_scale_mlp, rezero_mlp, shared_mlp, shared_residual_mlp)
