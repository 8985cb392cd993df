"""ResNets after He et al. 2015 and their plain twins: the CIFAR family (6n+2 layers) and the ImageNet family.

A network is a stem, stages of equal blocks, a global average pool and a linear layer. The first block of each stage but
the first halves H and W. Parameter names are torchvision's: conv1, bn1, layer1.0.conv1, ..., fc.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinyres import nn, ops
from tinyres.models.blocks import (
    BasicBlock,
    Block,
    Bottleneck,
    PlainBlock,
    ShortcutOption,
    conv3x3,
    he_init_,
    shortcut_a,
    shortcut_b,
    shortcut_c,
)
from tinyres.nn.options import positive
from tinyres.tensor import Tensor

OPTIONS: dict[str, ShortcutOption] = {"A": shortcut_a, "B": shortcut_b, "C": shortcut_c}
CIFAR_WIDTHS = (16, 32, 64)
IMAGENET_WIDTHS = (64, 128, 256, 512)


def shortcut_option(options: dict[str, ShortcutOption], option: str) -> ShortcutOption:
    """The shortcut constructor named "A", "B" or "C". Raises ValueError for another name."""
    if not isinstance(option, str) or option not in options:
        raise ValueError(f"option must be one of {', '.join(options)} (A pads with zero channels, B projects "
                         f"where shapes change, C projects everywhere), got {option!r}")
    return options[option]


class Residual:
    """A constructor of residual blocks with one shortcut option: Residual(BasicBlock, shortcut_a)(C, K, stride)."""

    def __init__(self, block: type[Block], shortcut: ShortcutOption):
        self.block, self.shortcut, self.expansion = block, shortcut, block.expansion

    def __call__(self, C: int, K: int, stride: int) -> Block:
        return self.block(C, K, stride, self.shortcut(C, K, stride))  # type: ignore[call-arg]


class ResNet(nn.Module):
    """A residual (or plain) network; (N, in_channels, H, W) -> (N, num_classes).

    make_block(C, K, stride) builds a block and has `.expansion`; stage i has depths[i] blocks of widths[i] * expansion
    output channels. With `cifar_stem` the stem is a 3x3 convolution, without it 7x7 with stride 2 and a max pool.
    Convolutions start from He's initialisation; `zero_init_residual` starts every block as its shortcut.
    """

    def __init__(self, make_block: Residual | type[PlainBlock], depths: Sequence[int], widths: Sequence[int],
                 num_classes: int, in_channels: int, cifar_stem: bool, zero_init_residual: bool = False):
        super().__init__()
        positive(type(self).__name__, num_classes=num_classes, in_channels=in_channels)
        C = widths[0]
        self.conv1 = conv3x3(in_channels, C) if cifar_stem else nn.Conv2d(in_channels, C, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(C)
        self.maxpool = nn.Identity() if cifar_stem else nn.MaxPool2d(3, 2, 1)
        self.stages = tuple(f"layer{i}" for i in range(1, len(depths) + 1))
        for name, depth, width in zip(self.stages, depths, widths, strict=True):
            K = width * make_block.expansion
            stride = 1 if name == "layer1" else 2
            blocks = [make_block(C if i == 0 else K, K, stride if i == 0 else 1) for i in range(depth)]
            self.register_module(name, nn.Sequential(*blocks))
            C = K
        self.fc = nn.Linear(C, num_classes)
        he_init_(self)
        if zero_init_residual:
            zero_branches_(self)

    def forward(self, x: Tensor) -> Tensor:
        h = self.maxpool(self.bn1(self.conv1(x), relu=True))
        for name in self.stages:
            h = getattr(self, name)(h)
        return self.fc(ops.global_avg_pool2d(h))


def zero_branches_(model: nn.Module) -> None:
    """Start every residual block of `model` as its shortcut (Goyal et al. 2017, section 5.1)."""
    for module in model.modules():
        if isinstance(module, Block):
            module.zero_branch_()


def blocks_per_stage(depth: int, layers: int, family: str) -> int:
    """n for a CIFAR network of `depth` = 3 * layers * n + 2. Raises ValueError when depth has not that form."""
    if not hasattr(depth, "__index__"):
        raise TypeError(f"{family}: depth must be an integer of the form {3 * layers}n+2, got {depth!r}: use 20")
    n, rest = divmod(depth - 2, 3 * layers)
    if n < 1 or rest:
        near = 3 * layers * max(1, round((depth - 2) / (3 * layers))) + 2
        raise ValueError(f"{family}: depth must be {3 * layers}n+2, got {depth}: use {near}")
    return n


def cifar_resnet(depth: int, num_classes: int = 10, option: str = "A", in_channels: int = 3,
                 zero_init_residual: bool = False, widths: Sequence[int] = CIFAR_WIDTHS) -> ResNet:
    """ResNet of depth 6n+2 for small images (He et al. 2015, section 4.2); three stages of n BasicBlocks."""
    n = blocks_per_stage(depth, 2, "cifar_resnet")
    make_block = Residual(BasicBlock, shortcut_option(OPTIONS, option))
    return ResNet(make_block, [n] * 3, widths, num_classes, in_channels, True, zero_init_residual)


def resnet8(num_classes=10, option="A", in_channels=3, zero_init_residual=False):
    """ResNet-8, n = 1: for digits and lessons; 75,290 parameters with option A."""
    return cifar_resnet(8, num_classes, option, in_channels, zero_init_residual)


def resnet20(num_classes=10, option="A", in_channels=3, zero_init_residual=False):
    """ResNet-20, n = 3; 269,722 parameters with option A (option B adds 2,752 to each of the family)."""
    return cifar_resnet(20, num_classes, option, in_channels, zero_init_residual)


def resnet32(num_classes=10, option="A", in_channels=3, zero_init_residual=False):
    """ResNet-32, n = 5; 464,154 parameters with option A."""
    return cifar_resnet(32, num_classes, option, in_channels, zero_init_residual)


def resnet44(num_classes=10, option="A", in_channels=3, zero_init_residual=False):
    """ResNet-44, n = 7; 658,586 parameters with option A."""
    return cifar_resnet(44, num_classes, option, in_channels, zero_init_residual)


def resnet56(num_classes=10, option="A", in_channels=3, zero_init_residual=False):
    """ResNet-56, n = 9; 853,018 parameters with option A."""
    return cifar_resnet(56, num_classes, option, in_channels, zero_init_residual)


def resnet110(num_classes=10, option="A", in_channels=3, zero_init_residual=False):
    """ResNet-110, n = 18; 1,727,962 parameters with option A."""
    return cifar_resnet(110, num_classes, option, in_channels, zero_init_residual)


def resnet1202(num_classes=10, option="A", in_channels=3, zero_init_residual=False):
    """ResNet-1202, n = 200; 19,421,274 parameters with option A."""
    return cifar_resnet(1202, num_classes, option, in_channels, zero_init_residual)


def cifar_plain(depth: int, num_classes: int = 10, in_channels: int = 3,
                widths: Sequence[int] = CIFAR_WIDTHS) -> ResNet:
    """Plain network of depth 6n+2: cifar_resnet with option A without the additions, and as many parameters."""
    n = blocks_per_stage(depth, 2, "cifar_plain")
    return ResNet(PlainBlock, [n] * 3, widths, num_classes, in_channels, True)


def plain8(num_classes=10, in_channels=3):
    """The plain twin of resnet8."""
    return cifar_plain(8, num_classes, in_channels)


def plain20(num_classes=10, in_channels=3):
    """The plain twin of resnet20."""
    return cifar_plain(20, num_classes, in_channels)


def plain32(num_classes=10, in_channels=3):
    """The plain twin of resnet32."""
    return cifar_plain(32, num_classes, in_channels)


def plain44(num_classes=10, in_channels=3):
    """The plain twin of resnet44."""
    return cifar_plain(44, num_classes, in_channels)


def plain56(num_classes=10, in_channels=3):
    """The plain twin of resnet56."""
    return cifar_plain(56, num_classes, in_channels)


def plain110(num_classes=10, in_channels=3):
    """The plain twin of resnet110."""
    return cifar_plain(110, num_classes, in_channels)


def imagenet_resnet(block: type[Block], depths: Sequence[int], num_classes: int = 1000, cifar_stem: bool = False,
                    in_channels: int = 3, option: str = "B", zero_init_residual: bool = False) -> ResNet:
    """ResNet with four stages of widths 64 to 512 (He et al. 2015, table 1), as torchvision's with option B."""
    make_block = Residual(block, shortcut_option(OPTIONS, option))
    return ResNet(make_block, depths, IMAGENET_WIDTHS, num_classes, in_channels, cifar_stem, zero_init_residual)


def resnet18(num_classes=1000, cifar_stem=False, in_channels=3, option="B", zero_init_residual=False):
    """ResNet-18; 11,689,512 parameters, 11,173,962 with cifar_stem and 10 classes."""
    return imagenet_resnet(BasicBlock, [2, 2, 2, 2], num_classes, cifar_stem, in_channels, option, zero_init_residual)


def resnet34(num_classes=1000, cifar_stem=False, in_channels=3, option="B", zero_init_residual=False):
    """ResNet-34; 21,797,672 parameters, 21,282,122 with cifar_stem and 10 classes."""
    return imagenet_resnet(BasicBlock, [3, 4, 6, 3], num_classes, cifar_stem, in_channels, option, zero_init_residual)


def resnet50(num_classes=1000, cifar_stem=False, in_channels=3, option="B", zero_init_residual=False):
    """ResNet-50; 25,557,032 parameters, 23,520,842 with cifar_stem and 10 classes."""
    return imagenet_resnet(Bottleneck, [3, 4, 6, 3], num_classes, cifar_stem, in_channels, option, zero_init_residual)


def resnet101(num_classes=1000, cifar_stem=False, in_channels=3, option="B", zero_init_residual=False):
    """ResNet-101; 44,549,160 parameters."""
    return imagenet_resnet(Bottleneck, [3, 4, 23, 3], num_classes, cifar_stem, in_channels, option, zero_init_residual)


def resnet152(num_classes=1000, cifar_stem=False, in_channels=3, option="B", zero_init_residual=False):
    """ResNet-152; 60,192,808 parameters."""
    return imagenet_resnet(Bottleneck, [3, 8, 36, 3], num_classes, cifar_stem, in_channels, option, zero_init_residual)


NETWORKS = (resnet8, resnet20, resnet32, resnet44, resnet56, resnet110, resnet1202,
            plain8, plain20, plain32, plain44, plain56, plain110,
            resnet18, resnet34, resnet50, resnet101, resnet152)
