"""Pre-activation ResNets (He et al. 2016, "Identity mappings in deep residual networks").

Batch norm and ReLU come before each convolution, nothing follows the addition, so x_L = x_l + the sum of the branches
between them. The paper's appendix treats the ends: the first activation comes right after the stem's convolution,
before the paths part, and one more follows the last addition. Here the first block of every stage shares its first
activation between branch and shortcut, as in the authors' code: that is the appendix's rule for the first block, and
it gives projections a normalised input. All other shortcuts take x itself. Projections are bare 1x1 convolutions. With
the ImageNet stem the max pool follows the 7x7 convolution directly.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinyres import nn, ops
from tinyres.models.blocks import (
    Block,
    PreActBasicBlock,
    PreActBottleneck,
    SharedPreActBasicBlock,
    SharedPreActBottleneck,
    ShortcutOption,
    conv3x3,
    he_init_,
    preact_shortcut_b,
    preact_shortcut_c,
    shortcut_a,
)
from tinyres.models.resnet import CIFAR_WIDTHS, IMAGENET_WIDTHS, blocks_per_stage, shortcut_option, zero_branches_
from tinyres.nn.options import positive
from tinyres.tensor import Tensor

OPTIONS: dict[str, ShortcutOption] = {"A": shortcut_a, "B": preact_shortcut_b, "C": preact_shortcut_c}
SHARED: dict[type[Block], type[Block]] = {PreActBasicBlock: SharedPreActBasicBlock,
                                          PreActBottleneck: SharedPreActBottleneck}


class PreActResNet(nn.Module):
    """A pre-activation network; (N, in_channels, H, W) -> (N, num_classes).

    Arguments as for ResNet, with a pre-activation block and its shortcut option. `bn` is the activation after the last
    addition; each stage's first block is the shared form of `block`.
    """

    def __init__(self, block: type[Block], shortcut: ShortcutOption, depths: Sequence[int], widths: Sequence[int],
                 num_classes: int, in_channels: int, cifar_stem: bool, stem_width: int,
                 zero_init_residual: bool = False):
        super().__init__()
        positive(type(self).__name__, num_classes=num_classes, in_channels=in_channels)
        C = stem_width
        self.conv1 = conv3x3(in_channels, C) if cifar_stem else nn.Conv2d(in_channels, C, 7, 2, 3, bias=False)
        self.maxpool = nn.Identity() if cifar_stem else nn.MaxPool2d(3, 2, 1)
        self.stages = tuple(f"layer{i}" for i in range(1, len(depths) + 1))
        for name, depth, width in zip(self.stages, depths, widths, strict=True):
            K = width * block.expansion
            stride = 1 if name == "layer1" else 2
            blocks = [SHARED[block](C, K, stride, shortcut(C, K, stride))]  # type: ignore[call-arg]
            blocks += [block(K, K, 1, shortcut(K, K, 1)) for _ in range(depth - 1)]  # type: ignore[call-arg]
            self.register_module(name, nn.Sequential(*blocks))
            C = K
        self.bn = nn.BatchNorm2d(C)
        self.fc = nn.Linear(C, num_classes)
        he_init_(self)
        if zero_init_residual:
            zero_branches_(self)

    def forward(self, x: Tensor) -> Tensor:
        h = self.maxpool(self.conv1(x))
        for name in self.stages:
            h = getattr(self, name)(h)
        return self.fc(ops.global_avg_pool2d(self.bn(h, relu=True)))


def cifar_preact_resnet(depth: int, num_classes: int = 10, option: str = "A", in_channels: int = 3,
                        zero_init_residual: bool = False, block: type[Block] = PreActBasicBlock) -> PreActResNet:
    """Pre-activation ResNet for small images: depth 6n+2 with PreActBasicBlock, 9n+2 with PreActBottleneck."""
    n = blocks_per_stage(depth, 3 if block is PreActBottleneck else 2, "cifar_preact_resnet")
    return PreActResNet(block, shortcut_option(OPTIONS, option), [n] * 3, CIFAR_WIDTHS, num_classes, in_channels, True,
                        CIFAR_WIDTHS[0], zero_init_residual)


def preact_resnet20(num_classes=10, option="A", in_channels=3, zero_init_residual=False):
    """Pre-activation ResNet-20; 269,722 parameters with option A, as many as resnet20."""
    return cifar_preact_resnet(20, num_classes, option, in_channels, zero_init_residual)


def preact_resnet32(num_classes=10, option="A", in_channels=3, zero_init_residual=False):
    """Pre-activation ResNet-32; 464,154 parameters with option A."""
    return cifar_preact_resnet(32, num_classes, option, in_channels, zero_init_residual)


def preact_resnet44(num_classes=10, option="A", in_channels=3, zero_init_residual=False):
    """Pre-activation ResNet-44; 658,586 parameters with option A."""
    return cifar_preact_resnet(44, num_classes, option, in_channels, zero_init_residual)


def preact_resnet56(num_classes=10, option="A", in_channels=3, zero_init_residual=False):
    """Pre-activation ResNet-56; 853,018 parameters with option A."""
    return cifar_preact_resnet(56, num_classes, option, in_channels, zero_init_residual)


def preact_resnet110(num_classes=10, option="A", in_channels=3, zero_init_residual=False):
    """Pre-activation ResNet-110; 1,727,962 parameters with option A."""
    return cifar_preact_resnet(110, num_classes, option, in_channels, zero_init_residual)


def preact_resnet164(num_classes=10, option="B", in_channels=3, zero_init_residual=False):
    """Pre-activation ResNet-164, n = 18 bottlenecks a stage."""
    return cifar_preact_resnet(164, num_classes, option, in_channels, zero_init_residual, PreActBottleneck)


def imagenet_preact_resnet(block: type[Block], depths: Sequence[int], num_classes: int = 1000,
                           cifar_stem: bool = False, in_channels: int = 3, option: str = "B",
                           zero_init_residual: bool = False) -> PreActResNet:
    """Pre-activation ResNet with four stages of widths 64 to 512."""
    return PreActResNet(block, shortcut_option(OPTIONS, option), depths, IMAGENET_WIDTHS, num_classes, in_channels,
                        cifar_stem, IMAGENET_WIDTHS[0], zero_init_residual)


def preact_resnet18(num_classes=1000, cifar_stem=False, in_channels=3, option="B", zero_init_residual=False):
    """Pre-activation ResNet-18."""
    return imagenet_preact_resnet(PreActBasicBlock, [2, 2, 2, 2], num_classes, cifar_stem, in_channels, option,
                                  zero_init_residual)


def preact_resnet34(num_classes=1000, cifar_stem=False, in_channels=3, option="B", zero_init_residual=False):
    """Pre-activation ResNet-34."""
    return imagenet_preact_resnet(PreActBasicBlock, [3, 4, 6, 3], num_classes, cifar_stem, in_channels, option,
                                  zero_init_residual)


def preact_resnet50(num_classes=1000, cifar_stem=False, in_channels=3, option="B", zero_init_residual=False):
    """Pre-activation ResNet-50."""
    return imagenet_preact_resnet(PreActBottleneck, [3, 4, 6, 3], num_classes, cifar_stem, in_channels, option,
                                  zero_init_residual)


NETWORKS = (preact_resnet20, preact_resnet32, preact_resnet44, preact_resnet56, preact_resnet110, preact_resnet164,
            preact_resnet18, preact_resnet34, preact_resnet50)
