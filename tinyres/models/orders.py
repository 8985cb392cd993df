"""The five orders of batch norm, ReLU and addition (He et al. 2016, "Identity mappings", figure 4 and table 2).

    order                     branch                          behind the addition   block
    original                  conv BN ReLU conv BN            ReLU                  BasicBlock, Bottleneck
    BN after addition         conv BN ReLU conv               BN ReLU               BNAfterAddition...
    ReLU before addition      conv BN ReLU conv BN ReLU       nothing               ReLUBeforeAddition...
    ReLU-only pre-activation  ReLU conv BN ReLU conv BN       nothing               ReLUOnlyPreAct...
    full pre-activation       BN ReLU conv BN ReLU conv       nothing               PreActBasicBlock, PreActBottleneck

All five have the same layers and parameters; a bottleneck has 1x1, 3x3, 1x1 instead of the two convolutions. Only the
last three leave the route past the blocks alone, and of these the third lets a branch add nothing negative. The ends of
a network follow the paper's appendix: where a ReLU opens the branch, the first comes right after the stem's convolution
(and its batch norm), before the paths part, and one more ReLU follows the last addition.
"""

from __future__ import annotations

from tinyres import nn, ops
from tinyres.models import preact
from tinyres.models.blocks import (
    BasicBlock,
    Block,
    Bottleneck,
    PreActBasicBlock,
    PreActBottleneck,
    ShortcutOption,
    preact_shortcut_b,
)
from tinyres.models.resnet import CIFAR_WIDTHS, OPTIONS, Residual, ResNet, blocks_per_stage, shortcut_option
from tinyres.tensor import Tensor

# --- BN after addition ----------------------------------------------------------------------------------------------


class BNAfterAdditionBlock(BasicBlock):
    """relu(BN(shortcut(x) + F(x))), F = conv BN ReLU conv (figure 4b); (N, C, H, W) -> (N, K, P, Q).

    The batch norm is on the route past the block and changes what passes there. A projection is a bare 1x1 convolution:
    a batch norm of its own would add a shift that the one behind the addition takes off again.
    """

    def __init__(self, C: int, K: int, stride: int = 1, shortcut: nn.Module | None = None):
        super().__init__(C, K, stride, preact_shortcut_b(C, K, stride) if shortcut is None else shortcut)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(h) + self.shortcut(x), relu=True)

    def without_branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.shortcut(x), relu=True)

    def zero_branch_(self) -> None:
        nn.init.zeros_(self.conv2.weight)


class BNAfterAdditionBottleneck(Bottleneck):
    """relu(BN(shortcut(x) + F(x))), F = a bottleneck without its last BN; (N, C, H, W) -> (N, K, P, Q)."""

    def __init__(self, C: int, K: int, stride: int = 1, shortcut: nn.Module | None = None):
        super().__init__(C, K, stride, preact_shortcut_b(C, K, stride) if shortcut is None else shortcut)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x), relu=True)
        h = self.bn2(self.conv2(h), relu=True)
        return self.bn3(self.conv3(h) + self.shortcut(x), relu=True)

    def without_branch(self, x: Tensor) -> Tensor:
        return self.bn3(self.shortcut(x), relu=True)

    def zero_branch_(self) -> None:
        nn.init.zeros_(self.conv3.weight)


# --- ReLU before addition -------------------------------------------------------------------------------------------


class ReLUBeforeAdditionBlock(BasicBlock):
    """shortcut(x) + relu(F(x)), F = conv BN ReLU conv BN (figure 4c); (N, C, H, W) -> (N, K, P, Q).

    A branch adds nothing negative, so what passes can only grow. A zero branch can't learn: ReLU'(0) = 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(h), relu=True) + self.shortcut(x)

    def without_branch(self, x: Tensor) -> Tensor:
        return self.shortcut(x)


class ReLUBeforeAdditionBottleneck(Bottleneck):
    """shortcut(x) + relu(F(x)), F = a bottleneck with its last BN; (N, C, H, W) -> (N, K, P, Q)."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x), relu=True)
        h = self.bn2(self.conv2(h), relu=True)
        return self.bn3(self.conv3(h), relu=True) + self.shortcut(x)

    def without_branch(self, x: Tensor) -> Tensor:
        return self.shortcut(x)


# --- ReLU-only pre-activation ---------------------------------------------------------------------------------------


class ReLUOnlyPreActBlock(BasicBlock):
    """shortcut(x) + F(x), F = ReLU conv BN ReLU conv BN (figure 4d); (N, C, H, W) -> (N, K, P, Q).

    The route past the block is an identity, but no batch norm is in front of the first ReLU.
    """

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(ops.relu(x)), relu=True)
        return self.bn2(self.conv2(h), add=self.shortcut(x))

    def without_branch(self, x: Tensor) -> Tensor:
        return self.shortcut(x)


class ReLUOnlyPreActBottleneck(Bottleneck):
    """shortcut(x) + F(x), F = ReLU and a bottleneck with its last BN; (N, C, H, W) -> (N, K, P, Q)."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(ops.relu(x)), relu=True)
        h = self.bn2(self.conv2(h), relu=True)
        return self.bn3(self.conv3(h), add=self.shortcut(x))

    def without_branch(self, x: Tensor) -> Tensor:
        return self.shortcut(x)


class ReLUOnlyPreActResNet(ResNet):
    """ResNet with one more ReLU behind the last addition. Its stem ends in BN and ReLU, before the paths part."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.maxpool(self.bn1(self.conv1(x), relu=True))
        for name in self.stages:
            h = getattr(self, name)(h)
        return self.fc(ops.global_avg_pool2d(ops.relu(h)))


# --- networks -------------------------------------------------------------------------------------------------------


def _choose(name: str, basic: type[Block], wide: type[Block], bottleneck: bool) -> tuple[type[Block], int]:
    """The block, and how many layers it has."""
    if not isinstance(bottleneck, bool):
        raise ValueError(f"{name}: bottleneck must be True (depth 9n+2) or False (depth 6n+2), got {bottleneck!r}")
    return (wide, 3) if bottleneck else (basic, 2)


def _ordered(network: type[ResNet], name: str, basic: type[Block], wide: type[Block], depth: int, num_classes: int,
             in_channels: int, option: str, bottleneck: bool,
             options: dict[str, ShortcutOption] = OPTIONS) -> ResNet:
    block, layers = _choose(name, basic, wide, bottleneck)
    n = blocks_per_stage(depth, layers, name)
    return network(Residual(block, shortcut_option(options, option)), [n] * 3, CIFAR_WIDTHS, num_classes, in_channels,
                   True)


def original_resnet(depth=20, num_classes=10, in_channels=3, option="A", bottleneck=False):
    """Order (a), He et al. 2015: resnet20 at depth 20; with bottleneck=True the depth is 9n+2."""
    return _ordered(ResNet, "original_resnet", BasicBlock, Bottleneck, depth, num_classes, in_channels, option,
                    bottleneck)


def bn_after_addition_resnet(depth=20, num_classes=10, in_channels=3, option="A", bottleneck=False):
    """Order (b): batch norm behind the addition, on the route past the blocks."""
    return _ordered(ResNet, "bn_after_addition_resnet", BNAfterAdditionBlock, BNAfterAdditionBottleneck, depth,
                    num_classes, in_channels, option, bottleneck, preact.OPTIONS)


def relu_before_addition_resnet(depth=20, num_classes=10, in_channels=3, option="A", bottleneck=False):
    """Order (c): the last ReLU in front of the addition, so that branches only add."""
    return _ordered(ResNet, "relu_before_addition_resnet", ReLUBeforeAdditionBlock, ReLUBeforeAdditionBottleneck, depth,
                    num_classes, in_channels, option, bottleneck)


def relu_only_preactivation_resnet(depth=20, num_classes=10, in_channels=3, option="A", bottleneck=False):
    """Order (d): the ReLU in front of each convolution, the batch norm behind it."""
    return _ordered(ReLUOnlyPreActResNet, "relu_only_preactivation_resnet", ReLUOnlyPreActBlock,
                    ReLUOnlyPreActBottleneck, depth, num_classes, in_channels, option, bottleneck)


def full_preactivation_resnet(depth=20, num_classes=10, in_channels=3, option="A", bottleneck=False):
    """Order (e): batch norm and ReLU in front of each convolution; preact_resnet20 at depth 20."""
    name = "full_preactivation_resnet"
    block, layers = _choose(name, PreActBasicBlock, PreActBottleneck, bottleneck)
    blocks_per_stage(depth, layers, name)
    return preact.cifar_preact_resnet(depth, num_classes, option, in_channels, block=block)


NETWORKS = (original_resnet, bn_after_addition_resnet, relu_before_addition_resnet, relu_only_preactivation_resnet,
            full_preactivation_resnet)
