"""Fixup: residual networks that train without any norm (Zhang, Dauphin & Ma 2019, "Fixup initialization").

Three rules, section 3, for L residual branches of m weight layers each:
1. the head and the last layer of each branch start at 0, so each block starts as its shortcut;
2. the other layers start from He's initialisation, those inside a branch times L^(-1/(2m-2)): one step of SGD then
   changes the network's outputs by the same order of magnitude, whatever its depth;
3. one number b before each convolution, linear layer and activation, from 0 on, and one scale a branch, from 1 on.

With two layers, m = 2, the first convolutions are drawn with 1/sqrt(L) of He's standard deviation. Nothing holds the
activations later on, so SGD wants its gradients clipped: train_step(clip_norm=1.0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tinyres import nn, ops
from tinyres.models import preact
from tinyres.models.blocks import Block, ShortcutOption, conv3x3, he_init_, shortcut_a
from tinyres.models.resnet import CIFAR_WIDTHS, blocks_per_stage, shortcut_option
from tinyres.nn.options import positive
from tinyres.tensor import Tensor


def scalar(value: float) -> nn.Parameter:
    """A learned number: shape (), float32."""
    return nn.Parameter(np.full((), value, np.float32))


class FixupBasicBlock(Block):
    """relu(shortcut(x) + scale * conv2(relu(conv1(x + b1a) + b1b) + b2a) + b2b), all four b and the scale one number.

    (N, C, H, W) -> (N, K, P, Q); the first convolution has the stride. `bias2b` is the one before the activation behind
    the addition, so it belongs to the join, not to the branch. The authors' code takes the shortcut from x + b1a where
    it changes the shape; here it always parts at x.
    """

    layers = 2  # the paper's m

    def __init__(self, C: int, K: int, stride: int = 1, shortcut: nn.Module | None = None):
        super().__init__()
        self.bias1a, self.conv1, self.bias1b = scalar(0.0), conv3x3(C, K, stride), scalar(0.0)
        self.bias2a, self.conv2, self.scale, self.bias2b = scalar(0.0), conv3x3(K, K), scalar(1.0), scalar(0.0)
        self.downsample = shortcut_a(C, K, stride) if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        h = ops.relu(self.conv1(ops.add(x, self.bias1a)) + self.bias1b)
        h = self.conv2(h + self.bias2a)
        return ops.relu(self.shortcut(x) + h * self.scale + self.bias2b)

    def without_branch(self, x: Tensor) -> Tensor:
        return ops.relu(self.shortcut(x) + self.bias2b)

    def zero_branch_(self) -> None:
        nn.init.zeros_(self.conv2.weight)


def fixup_init_(model: nn.Module) -> None:
    """Rules 1 and 2 for every FixupBasicBlock of `model`, L being their number, and for its head, `fc`."""
    he_init_(model)
    blocks = [module for module in model.modules() if isinstance(module, FixupBasicBlock)]
    for block in blocks:
        factor = len(blocks) ** (-1 / (2 * block.layers - 2))
        fan_out = nn.init.fans(block.conv1.weight)[1]
        nn.init.normal_(block.conv1.weight, 0.0, factor * math.sqrt(2 / fan_out))
        block.zero_branch_()
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)


class FixupResNet(nn.Module):
    """A network of FixupBasicBlocks, without norm; (N, in_channels, H, W) -> (N, num_classes).

    A 3x3 convolution, stages of depths[i] blocks with widths[i] channels, global average pool, linear: `bias1` comes
    before the first ReLU, `bias2` before the linear layer.
    """

    def __init__(self, depths: Sequence[int], widths: Sequence[int], shortcut: ShortcutOption, num_classes: int,
                 in_channels: int):
        super().__init__()
        positive(type(self).__name__, num_classes=num_classes, in_channels=in_channels)
        C = widths[0]
        self.conv1, self.bias1 = conv3x3(in_channels, C), scalar(0.0)
        self.stages = tuple(f"layer{i}" for i in range(1, len(depths) + 1))
        for name, depth, K in zip(self.stages, depths, widths, strict=True):
            sizes = [(C, K, 1 if name == "layer1" else 2)] + [(K, K, 1)] * (depth - 1)
            self.register_module(name, nn.Sequential(*(FixupBasicBlock(*size, shortcut(*size)) for size in sizes)))
            C = K
        self.bias2, self.fc = scalar(0.0), nn.Linear(C, num_classes)
        fixup_init_(self)

    def forward(self, x: Tensor) -> Tensor:
        h = ops.relu(self.conv1(x) + self.bias1)
        for name in self.stages:
            h = getattr(self, name)(h)
        return self.fc(ops.global_avg_pool2d(h) + self.bias2)


def fixup_resnet(depth=20, num_classes=10, in_channels=3, option="A"):
    """Fixup ResNet of depth 6n+2; option B projects with a bare 1x1 convolution, which is no residual branch."""
    n = blocks_per_stage(depth, 2, "fixup_resnet")
    return FixupResNet([n] * 3, CIFAR_WIDTHS, shortcut_option(preact.OPTIONS, option), num_classes, in_channels)


def fixup_resnet20(num_classes=10, in_channels=3, option="A"):
    """Fixup ResNet-20; 268,393 parameters with option A."""
    return fixup_resnet(20, num_classes, in_channels, option)


def fixup_resnet56(num_classes=10, in_channels=3, option="A"):
    """Fixup ResNet-56; 849,091 parameters with option A."""
    return fixup_resnet(56, num_classes, in_channels, option)


def fixup_resnet110(num_classes=10, in_channels=3, option="A"):
    """Fixup ResNet-110; 1,720,138 parameters with option A."""
    return fixup_resnet(110, num_classes, in_channels, option)


NETWORKS = (fixup_resnet, fixup_resnet20, fixup_resnet56, fixup_resnet110)
