"""The source article's three connections between consecutive blocks, for chains of any length.

Blocks are the article's, y = L(z) + a R(z) (ParallelBlock), all of one width K. The first takes the stem's output, the
second the first's, and from the third on the outputs y_1, y_2 of the two blocks before are joined:

    addition        z = y_1 + y_2, for both branches                    a gradient is copied to y_1 and y_2
    concatenation   [y_1, y_2] for the left branch, y_2 for the right   it is split, and y_2 gets that of R besides
    bottleneck      z = 1x1(relu(3x3([y_1, y_2]))), for both            it is projected

The article sends the concatenation into the *left* branch of the third block and is silent about the right one. Here R
receives y_2, the output of the block before: R is the route past the block, and with the same input as in a chain
without connections it keeps its shape, C = K. Chains have batch norm in stem, L and join unless told otherwise: as R is
scaled by 0.1 they are nearly plain networks, and six blocks without norm learn the digits many times more slowly. The
literature's connections are elsewhere: addition in blocks.py (He et al. 2015), dense concatenation in densenet.py
(Huang et al. 2017), and in blocks.py the bottleneck that first reduces and then restores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinyres import nn, ops, random
from tinyres.models.article_blocks import (
    ConvReLU,
    Layer,
    ParallelBlock,
    Plan,
    ResidualStep,
    Stem,
    he_init_fan_in_,
    plan_of,
)
from tinyres.models.blocks import Block
from tinyres.models.joins import Add
from tinyres.nn.options import positive
from tinyres.tensor import Tensor

EXPANSION = 4  # of the bottleneck's 1x1 convolution, as in He's Bottleneck


# --- joins of two outputs -------------------------------------------------------------------------------------------


class Concatenation(nn.Module):
    """[previous, last] along the channels: (N, K, H, W) twice -> (N, 2 K, H, W)."""

    def forward(self, previous: Tensor, last: Tensor) -> Tensor:
        return ops.concat([previous, last], 1)


class BottleneckJoin(nn.Module):
    """Concatenate, 3x3 to K/4 channels, [batch norm,] ReLU, 1x1 that expands to K: (N, K, H, W) twice -> (N, K, H, W).

    Nothing follows the 1x1, as nothing follows an addition. Raises ValueError for K below 4.
    """

    def __init__(self, K: int, layer: Layer = ConvReLU):
        super().__init__()
        positive(type(self).__name__, K=K)
        if K < EXPANSION:
            raise ValueError(f"BottleneckJoin: K must be at least {EXPANSION}, as the 3x3 has K/{EXPANSION} filters, "
                             f"got {K}: use a wider chain")
        self.reduce, self.expand = layer(2 * K, K // EXPANSION, 3, 1, 1), nn.Conv2d(K // EXPANSION, K, 1)

    def forward(self, previous: Tensor, last: Tensor) -> Tensor:
        return self.expand(self.reduce(ops.concat([previous, last], 1)))


# --- the block behind a concatenation -------------------------------------------------------------------------------


class LastChannels(nn.Module):
    """The last K channels: (N, C, H, W) -> (N, K, H, W)."""

    def __init__(self, K: int):
        super().__init__()
        self.K = K

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -self.K:]  # type: ignore[index]

    def extra_repr(self) -> str:
        return f"{self.K}"


class ConcatenationBlock(ResidualStep):
    """y = L([y_1, y_2]) + a R(y_2): (N, 2 K, H, W), the concatenation, -> (N, K, H, W).

    The fork is the concatenation; the shortcut takes its last K channels, y_2, and then R.
    """

    def __init__(self, K: int, plan: Plan | None = None):
        plan = plan or Plan()
        plan.check_sizes("ConcatenationBlock")
        super().__init__(plan.left(2 * K, K, 1), nn.Sequential(LastChannels(K), plan.right(K, K, 1, plan.pool)))


# --- networks -------------------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Blocks joined to the two before them; (N, in_channels, H, W) -> (N, num_classes).

    Stem of `width` channels (it halves H and W), the blocks, global average pool, linear layer. join(plan) makes the
    join in front of a block from the third on, block(plan) that block; width is the plan's filters, in every layer.
    """

    def __init__(self, join: Callable[[Plan], nn.Module], block: Callable[[Plan], Block], plan: Plan, blocks: int,
                 num_classes: int, in_channels: int):
        super().__init__()
        positive(type(self).__name__, blocks=blocks, num_classes=num_classes, in_channels=in_channels)
        width = plan.filters
        self.stem = Stem(in_channels, width, plan.layer)
        self.blocks = nn.ModuleList([_same_input(plan) if i < 2 else block(plan) for i in range(blocks)])
        self.joins = nn.ModuleList([join(plan) for _ in range(blocks - 2)])
        self.fc = nn.Linear(width, num_classes)
        he_init_fan_in_(self)

    def forward(self, x: Tensor) -> Tensor:
        previous = last = self.stem(x)
        for i, block in enumerate(self.blocks):
            joined = last if i < 2 else self.joins[i - 2](previous, last)
            previous, last = last, block(joined)
        return self.fc(ops.global_avg_pool2d(last))


def _same_input(plan: Plan) -> Block:
    return ParallelBlock(plan.filters, plan.filters, 1, plan)


def chain_addition(num_classes=10, in_channels=3, blocks=6, width=32, a=0.1, learnable_scale=False, layers=2,
                   batch_norm=True):
    """A chain of the article's blocks, from the third on fed with the sum of the two outputs before."""
    plan = plan_of(width, layers, 3, a, learnable_scale, batch_norm)
    return Chain(lambda plan: Add(), _same_input, plan, blocks, num_classes, in_channels)


def chain_concatenation(num_classes=10, in_channels=3, blocks=6, width=32, a=0.1, learnable_scale=False, layers=2,
                        batch_norm=True):
    """A chain of the article's blocks, from the third on with the two outputs before it concatenated on the left."""
    plan = plan_of(width, layers, 3, a, learnable_scale, batch_norm)
    return Chain(lambda plan: Concatenation(), lambda plan: ConcatenationBlock(plan.filters, plan), plan, blocks,
                 num_classes, in_channels)


def chain_bottleneck(num_classes=10, in_channels=3, blocks=6, width=32, a=0.1, learnable_scale=False, layers=2,
                     batch_norm=True):
    """A chain of the article's blocks, from the third on behind two convolutions of the concatenation."""
    plan = plan_of(width, layers, 3, a, learnable_scale, batch_norm)
    return Chain(lambda plan: BottleneckJoin(plan.filters, plan.layer), _same_input, plan, blocks, num_classes,
                 in_channels)


def width_for(constructor: Callable[..., nn.Module], parameters: int, **options: Any) -> int:
    """The width with which constructor(width=..., **options) comes nearest to so many parameters.

    Networks are built and counted, by bisection; the library's generator is left as it was. Raises ValueError if even
    the narrowest, of width 4, has more.
    """
    positive("width_for", parameters=parameters)

    def count(width: int) -> int:
        return sum(p.data.size for p in constructor(width=width, **options).parameters())

    state = random.get_state()
    try:
        low, high = EXPANSION, 2 * EXPANSION
        if count(low) > parameters:
            name = getattr(constructor, "__name__", constructor)
            raise ValueError(f"width_for: {name} has {count(low):,} parameters at its least width, {low}, more than "
                             f"the budget of {parameters:,}: raise it, or take fewer blocks")
        while count(high) <= parameters:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if count(middle) <= parameters else (low, middle)
        return low if parameters - count(low) <= count(high) - parameters else high
    finally:
        random.set_state(state)


NETWORKS = (chain_addition, chain_concatenation, chain_bottleneck)
