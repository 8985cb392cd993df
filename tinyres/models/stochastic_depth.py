"""Stochastic depth: in training each block drops its branch by chance (Huang et al. 2016, "Deep networks with
stochastic depth").

Block l of L survives a batch with probability p_l = 1 - l/L (1 - p_L), equation 4: early blocks nearly always, the last
one with p_L. In training a block is relu(shortcut(x) + b F(x)), b = 1 with probability p_l and else 0 (equation 2), and
a branch with b = 0 is not computed. In eval mode it is relu(shortcut(x) + p_l F(x)), the expectation (equation 5). The
expected number of branches in training is (L (1 + p_L) - (1 - p_L)) / 2: 40.25 of 54 for p_L = 0.5.
"""

from __future__ import annotations

from tinyres import nn, ops, random
from tinyres.models.blocks import BasicBlock
from tinyres.models.joins import ResidualWith
from tinyres.models.resnet import CIFAR_WIDTHS, OPTIONS, ResNet, blocks_per_stage, shortcut_option
from tinyres.nn.options import number, positive
from tinyres.tensor import Tensor


def linear_decay(blocks: int, survival: float) -> list[float]:
    """[p_1, ..., p_L] with p_l = 1 - l/L (1 - p_L) for L = `blocks` and p_L = `survival` (Huang et al. 2016, eq. 4)."""
    positive("linear_decay", blocks=blocks)
    survival = probability("linear_decay", survival)
    return [1.0 - layer / blocks * (1.0 - survival) for layer in range(1, blocks + 1)]


def probability(owner: str, survival: float) -> float:
    """`survival` as a float. Raises ValueError, naming the owner, unless it lies in [0, 1]."""
    return number(owner, "survival", survival, 0.0, 1.0, "lie in [0, 1], the share of batches that a branch survives")


def survives(survival: float) -> bool:
    """One draw: True with probability `survival`, from one word of the library's generator."""
    return random.key() < survival * 2.0**64


class StochasticBasicBlock(BasicBlock):
    """BasicBlock whose branch survives a batch in training with probability `survival`, its weight in eval mode.

    (N, C, H, W) -> (N, K, P, Q). Each call in training draws once, for the whole batch. A dropped branch is not
    computed, so its running statistics stay; its parameters get gradients of 0, not None, as b F(x) has with b = 0:
    momentum and weight decay go on.
    """

    def __init__(self, C: int, K: int, stride: int = 1, shortcut: nn.Module | None = None, survival: float = 1.0):
        super().__init__(C, K, stride, shortcut)
        self.survival = probability(type(self).__name__, survival)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            h = self.bn1(self.conv1(x), relu=True)
            return ops.relu(self.shortcut(x) + self.survival * self.bn2(self.conv2(h)))
        return super().forward(x) if survives(self.survival) else self.dropped(x)

    def dropped(self, x: Tensor) -> Tensor:
        """relu(shortcut(x) + 0): what is added is 0 times the sum of the branch's parameters."""
        branch = [p for part in (self.conv1, self.bn1, self.conv2, self.bn2) for p in part.parameters()]
        return ops.relu(self.shortcut(x) + sum(ops.sum(p) for p in branch) * 0.0)

    def extra_repr(self) -> str:
        return f"survival={self.survival:g}"


def stochastic_depth_resnet(depth=20, num_classes=10, in_channels=3, survival=0.5, option="A",
                            zero_init_residual=False):
    """ResNet of depth 6n+2 whose last block survives with probability `survival`, the others more often (linear)."""
    n = blocks_per_stage(depth, 2, "stochastic_depth_resnet")
    each = iter(linear_decay(3 * n, survival))
    make_block = ResidualWith(StochasticBasicBlock, shortcut_option(OPTIONS, option), lambda: next(each))
    return ResNet(make_block, [n] * 3, CIFAR_WIDTHS, num_classes, in_channels, True, zero_init_residual)


def stochastic_depth_resnet110(num_classes=10, in_channels=3, survival=0.5, option="A", zero_init_residual=False):
    """The paper's network for CIFAR: 54 blocks; 1,727,962 parameters with option A, as many as resnet110."""
    return stochastic_depth_resnet(110, num_classes, in_channels, survival, option, zero_init_residual)


NETWORKS = (stochastic_depth_resnet, stochastic_depth_resnet110)
