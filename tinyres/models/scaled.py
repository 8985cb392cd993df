"""CIFAR ResNets of depth 6n+2 whose shortcuts or branches are weighed, by constants, by learned numbers, by chance.

The rows of He et al. 2016, "Identity mappings", table 1, are these networks and those of gates.py at depth 110. Names
of parameters are those of resnet20; what is new comes under `join` or `downsample`.
"""

from __future__ import annotations

from tinyres import nn, ops
from tinyres.models import preact
from tinyres.models.blocks import BasicBlock, ConvShortcut, ShortcutOption, conv3x3, he_init_
from tinyres.models.joins import (
    DropoutShortcut,
    JoinedBasicBlock,
    ResidualWith,
    ReZeroBasicBlock,
    ScaledAdd,
    SkipInitBlock,
)
from tinyres.models.resnet import CIFAR_WIDTHS, OPTIONS, Residual, ResNet, blocks_per_stage, shortcut_option
from tinyres.nn.options import positive
from tinyres.tensor import Tensor


def scaled_resnet(depth=20, num_classes=10, in_channels=3, residual_scale=1.0, shortcut_scale=1.0, option="A",
                  zero_init_residual=False):
    """relu(shortcut_scale * x + residual_scale * F(x)) in every block; with both scales 1 it is resnet20, bit for bit.

    He et al. 2016, table 1: shortcut_scale=0.5, and 0.5 for both.
    """
    n = blocks_per_stage(depth, 2, "scaled_resnet")
    make_block = ResidualWith(JoinedBasicBlock, shortcut_option(OPTIONS, option),
                              lambda: ScaledAdd(residual_scale, shortcut_scale))
    return ResNet(make_block, [n] * 3, CIFAR_WIDTHS, num_classes, in_channels, True, zero_init_residual)


def rezero_resnet(depth=20, num_classes=10, in_channels=3, option="A"):
    """ReZero (Bachlechner et al. 2021): one learned scale a block, from 0 on, in front of a branch with batch norm."""
    n = blocks_per_stage(depth, 2, "rezero_resnet")
    make_block = Residual(ReZeroBasicBlock, shortcut_option(OPTIONS, option))
    return ResNet(make_block, [n] * 3, CIFAR_WIDTHS, num_classes, in_channels, True)


def conv_shortcut_resnet(depth=20, num_classes=10, in_channels=3, zero_init_residual=False):
    """A bare 1x1 convolution as every shortcut (He et al. 2016, table 1); option C has a batch norm behind each."""
    n = blocks_per_stage(depth, 2, "conv_shortcut_resnet")
    return ResNet(Residual(BasicBlock, ConvShortcut), [n] * 3, CIFAR_WIDTHS, num_classes, in_channels, True,
                  zero_init_residual)


def dropout_shortcut_resnet(depth=20, num_classes=10, in_channels=3, p=0.5, option="A", zero_init_residual=False):
    """Dropout of share p on every shortcut (He et al. 2016, table 1), whose expected scale so is 1 - p."""
    n = blocks_per_stage(depth, 2, "dropout_shortcut_resnet")
    shortcut = shortcut_option(OPTIONS, option)
    make_block = Residual(BasicBlock, lambda C, K, stride: DropoutShortcut(shortcut(C, K, stride), p))
    return ResNet(make_block, [n] * 3, CIFAR_WIDTHS, num_classes, in_channels, True, zero_init_residual)


class SkipInitResNet(nn.Module):
    """A network without any norm, of SkipInitBlocks; (N, in_channels, H, W) -> (N, num_classes).

    A 3x3 convolution, three stages of n blocks, ReLU, global average pool, linear. At the start all blocks are their
    shortcuts, so neither activations nor gradients grow with depth.
    """

    def __init__(self, n: int, shortcut: ShortcutOption, num_classes: int, in_channels: int):
        super().__init__()
        positive(type(self).__name__, num_classes=num_classes, in_channels=in_channels)
        C = CIFAR_WIDTHS[0]
        self.conv1 = conv3x3(in_channels, C)
        self.stages = tuple(f"layer{i}" for i in range(1, len(CIFAR_WIDTHS) + 1))
        for name, K in zip(self.stages, CIFAR_WIDTHS, strict=True):
            sizes = [(C, K, 1 if name == "layer1" else 2)] + [(K, K, 1)] * (n - 1)
            self.register_module(name, nn.Sequential(*(SkipInitBlock(*size, shortcut(*size)) for size in sizes)))
            C = K
        self.fc = nn.Linear(C, num_classes)
        he_init_(self)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x)
        for name in self.stages:
            h = getattr(self, name)(h)
        return self.fc(ops.global_avg_pool2d(ops.relu(h)))


def skipinit_resnet(depth=20, num_classes=10, in_channels=3, option="B"):
    """SkipInit (De & Smith 2020): no norm, one learned scale a block, from 0 on; projections are bare 1x1 convolutions.

    It needs smaller learning rates than networks with batch norm do: 0.05, or 0.1 with clipped gradients. With option A
    it starts slowly: while branches are zero the head sees a sixteenth of the pixels in a quarter of the channels.
    """
    n = blocks_per_stage(depth, 2, "skipinit_resnet")
    return SkipInitResNet(n, shortcut_option(preact.OPTIONS, option), num_classes, in_channels)


NETWORKS = (scaled_resnet, rezero_resnet, skipinit_resnet, conv_shortcut_resnet, dropout_shortcut_resnet)
