"""Gated shortcuts (He et al. 2016, "Identity mappings", section 3.1): x decides by itself how much of it passes.

g(x) = sigmoid(1x1 convolution of x + b), one number a channel and position. Exclusive gating, that of highway networks
(Srivastava et al. 2015), gives the branch what it takes from the shortcut; shortcut-only gating leaves the branch as it
is. All depends on the bias at the start: b = -6 makes g = 0.0025, near 0, so the shortcut is nearly the identity, but
with exclusive gating the branch is then nearly off. The gates are parameters on the shortcut, and yet they train worse.
"""

from __future__ import annotations

from tinyres import nn, ops
from tinyres.models.blocks import Block, conv3x3, shortcut_b
from tinyres.models.joins import ResidualWith, finite
from tinyres.models.resnet import CIFAR_WIDTHS, OPTIONS, ResNet, blocks_per_stage, shortcut_option
from tinyres.tensor import Tensor


class Gate(nn.Module):
    """g(x) = sigmoid(conv1x1(x) + b) in (0, 1); (N, C, H, W) -> (N, K, P, Q), of the size that the join has.

    Every bias starts at `bias`. Where the block changes the shape, the convolution has the block's stride and K
    channels, so that each number of the join has a gate of its own. Raises ValueError for a bias that is not finite.
    """

    def __init__(self, C: int, K: int, stride: int = 1, bias: float = -6.0):
        super().__init__()
        self.conv = nn.Conv2d(C, K, 1, stride=stride)
        nn.init.constant_(self.conv.bias, finite("Gate", "bias", bias))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return ops.sigmoid(self.conv(x))


class GatedBasicBlock(Block):
    """Base of the two: BasicBlock's layers and a gate. Only shortcut and join differ, so F is as ever."""

    def __init__(self, C: int, K: int, stride: int = 1, shortcut: nn.Module | None = None, bias: float = -6.0):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(C, K, stride), nn.BatchNorm2d(K)
        self.conv2, self.bn2 = conv3x3(K, K), nn.BatchNorm2d(K)
        self.downsample = shortcut_b(C, K, stride) if shortcut is None else shortcut
        self.gate = Gate(C, K, stride, bias)

    def branch(self, x: Tensor) -> Tensor:
        """F(x), up to the join."""
        return self.bn2(self.conv2(self.bn1(self.conv1(x), relu=True)))

    def without_branch(self, x: Tensor) -> Tensor:
        return ops.relu((1.0 - self.gate(x)) * self.shortcut(x))

    def zero_branch_(self) -> None:
        nn.init.zeros_(self.bn2.weight)


class ExclusiveGateBlock(GatedBasicBlock):
    """relu(g(x) F(x) + (1 - g(x)) shortcut(x)); (N, C, H, W) -> (N, K, P, Q) (He et al. 2016, figure 2c)."""

    def forward(self, x: Tensor) -> Tensor:
        g = self.gate(x)
        return ops.relu(g * self.branch(x) + (1.0 - g) * self.shortcut(x))


class ShortcutGateBlock(GatedBasicBlock):
    """relu(F(x) + (1 - g(x)) shortcut(x)); (N, C, H, W) -> (N, K, P, Q) (He et al. 2016, figure 2d)."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(self.branch(x) + (1.0 - self.gate(x)) * self.shortcut(x))


def _gated(block: type[Block], depth: int, num_classes: int, in_channels: int, bias: float, option: str,
           zero_init_residual: bool, name: str) -> ResNet:
    n = blocks_per_stage(depth, 2, name)
    make_block = ResidualWith(block, shortcut_option(OPTIONS, option), lambda: bias)
    return ResNet(make_block, [n] * 3, CIFAR_WIDTHS, num_classes, in_channels, True, zero_init_residual)


def exclusive_gate_resnet(depth=20, num_classes=10, in_channels=3, bias=-6.0, option="A", zero_init_residual=False):
    """ResNet of depth 6n+2 with exclusive gates, biases starting at `bias` (He et al. 2016, section 3.1: 0 to -10)."""
    return _gated(ExclusiveGateBlock, depth, num_classes, in_channels, bias, option, zero_init_residual,
                  "exclusive_gate_resnet")


def shortcut_gate_resnet(depth=20, num_classes=10, in_channels=3, bias=-6.0, option="A", zero_init_residual=False):
    """ResNet of depth 6n+2 with gates on the shortcuts only, biases starting at `bias` (He et al. 2016, table 1)."""
    return _gated(ShortcutGateBlock, depth, num_classes, in_channels, bias, option, zero_init_residual,
                  "shortcut_gate_resnet")


NETWORKS = (exclusive_gate_resnet, shortcut_gate_resnet)
