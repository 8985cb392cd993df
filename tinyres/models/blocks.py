"""Residual blocks: a branch, a shortcut, and the join of the two, each block's forward short enough to draw.

Every block takes its input's channels C, its output's channels K, the `stride` and, if it has one, its shortcut.
Names of parameters are torchvision's, so the shortcut is registered as `downsample`.
He et al. 2015, "Deep residual learning for image recognition"; He et al. 2016, "Identity mappings in deep residual
networks" (pre-activation).
"""

from __future__ import annotations

from collections.abc import Callable

from tinyres import nn, ops
from tinyres.tensor import Tensor

ShortcutOption = Callable[[int, int, int], nn.Module]


def conv3x3(C: int, K: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution that keeps H and W at stride 1; no bias, as batch norm follows."""
    return nn.Conv2d(C, K, 3, stride=stride, padding=1, bias=False)


def conv1x1(C: int, K: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias."""
    return nn.Conv2d(C, K, 1, stride=stride, bias=False)


def he_init_(module: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / fan_out) (He et al. 2015, "Delving deep", equation 14)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


# --- shortcuts ------------------------------------------------------------------------------------------------------


class PadShortcut(nn.Module):
    """Option A: every stride-th pixel, then zero channels, (K - C) / 2 on each side; (N, C, H, W) -> (N, K, P, Q).

    It has no parameters. Raises ValueError if K - C is negative or odd.
    """

    def __init__(self, C: int, K: int, stride: int):
        super().__init__()
        if K < C or (K - C) % 2:
            raise ValueError(f"PadShortcut adds the same number of zero channels on each side, which {C} -> {K} "
                             "channels do not allow: use a ProjectionShortcut (option B)")
        self.stride, self.channels = stride, (K - C) // 2

    def forward(self, x: Tensor) -> Tensor:
        s, k = self.stride, self.channels
        return ops.pad(x[:, :, ::s, ::s], (0, 0, 0, 0, k, k))  # type: ignore[index]

    def extra_repr(self) -> str:
        return f"stride={self.stride}, channels={self.channels}+{self.channels}"


class ProjectionShortcut(nn.Sequential):
    """Options B and C: a 1x1 convolution with the block's stride, then batch norm; (N, C, H, W) -> (N, K, P, Q)."""

    def __init__(self, C: int, K: int, stride: int):
        super().__init__(conv1x1(C, K, stride), nn.BatchNorm2d(K))


class ConvShortcut(nn.Sequential):
    """The projection of pre-activation blocks: the 1x1 convolution alone, as its input is normalised already."""

    def __init__(self, C: int, K: int, stride: int):
        super().__init__(conv1x1(C, K, stride))


def shortcut_a(C: int, K: int, stride: int) -> nn.Module:
    """Option A: identity where shapes agree, else zero-padded channels."""
    return nn.Identity() if (C, stride) == (K, 1) else PadShortcut(C, K, stride)


def shortcut_b(C: int, K: int, stride: int) -> nn.Module:
    """Option B: identity where shapes agree, else a projection."""
    return nn.Identity() if (C, stride) == (K, 1) else ProjectionShortcut(C, K, stride)


def shortcut_c(C: int, K: int, stride: int) -> nn.Module:
    """Option C: a projection everywhere."""
    return ProjectionShortcut(C, K, stride)


def preact_shortcut_b(C: int, K: int, stride: int) -> nn.Module:
    """Option B before activation: identity where shapes agree, else a 1x1 convolution."""
    return nn.Identity() if (C, stride) == (K, 1) else ConvShortcut(C, K, stride)


def preact_shortcut_c(C: int, K: int, stride: int) -> nn.Module:
    """Option C before activation: a 1x1 convolution everywhere."""
    return ConvShortcut(C, K, stride)


# --- blocks ---------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Base of the blocks with a shortcut. `expansion` is K / width, the width being that of the 3x3 convolution.

    The forward of a block calls `self.shortcut` once, on the tensor at which shortcut and branch part: its one argument
    is the fork and its result is what the join gets. The instruments in tinyres.analysis find both there.
    """

    expansion = 1

    @property
    def shortcut(self) -> nn.Module:
        """The shortcut module; it is registered as `downsample`, torchvision's name."""
        return self.downsample

    def without_branch(self, x: Tensor) -> Tensor:
        """What the block gives if its branch gives zero: (N, C, H, W) -> (N, K, P, Q)."""
        return ops.relu(self.shortcut(x))

    def zero_branch_(self) -> None:
        """Set the branch's last layer to zero, so that the block starts as its shortcut."""
        raise NotImplementedError(f"{type(self).__name__} must define zero_branch_(self)")


class BasicBlock(Block):
    """Two 3x3 convolutions; (N, C, H, W) -> (N, K, P, Q) (He et al. 2015, figure 5 left). The first has the stride."""

    def __init__(self, C: int, K: int, stride: int = 1, shortcut: nn.Module | None = None):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(C, K, stride), nn.BatchNorm2d(K)
        self.conv2, self.bn2 = conv3x3(K, K), nn.BatchNorm2d(K)
        self.downsample = shortcut_b(C, K, stride) if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(h), add=self.shortcut(x), relu=True)

    def zero_branch_(self) -> None:
        nn.init.zeros_(self.bn2.weight)


class Bottleneck(Block):
    """1x1 to K/4 channels, 3x3, 1x1 back to K (He et al. 2015, figure 5 right); (N, C, H, W) -> (N, K, P, Q).

    The 3x3 has the stride, as in torchvision ("v1.5"); He's has it in the first 1x1.
    """

    expansion = 4

    def __init__(self, C: int, K: int, stride: int = 1, shortcut: nn.Module | None = None):
        super().__init__()
        width = K // self.expansion
        self.conv1, self.bn1 = conv1x1(C, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv1x1(width, K), nn.BatchNorm2d(K)
        self.downsample = shortcut_b(C, K, stride) if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x), relu=True)
        h = self.bn2(self.conv2(h), relu=True)
        return self.bn3(self.conv3(h), add=self.shortcut(x), relu=True)

    def zero_branch_(self) -> None:
        nn.init.zeros_(self.bn3.weight)


class PlainBlock(nn.Module):
    """BasicBlock without the addition: the plain twin (He et al. 2015, figure 3 middle)."""

    expansion = 1

    def __init__(self, C: int, K: int, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(C, K, stride), nn.BatchNorm2d(K)
        self.conv2, self.bn2 = conv3x3(K, K), nn.BatchNorm2d(K)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(h), relu=True)


class PreActBasicBlock(Block):
    """BN-ReLU-3x3 twice, added to x itself (He et al. 2016, figure 1b): the route past the block is an identity.

    (N, C, H, W) -> (N, K, P, Q); the first convolution has the stride.
    """

    def __init__(self, C: int, K: int, stride: int = 1, shortcut: nn.Module | None = None):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(C), conv3x3(C, K, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(K), conv3x3(K, K)
        self.downsample = preact_shortcut_b(C, K, stride) if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(self.bn1(x, relu=True)) + self.shortcut(x)

    def branch(self, h: Tensor) -> Tensor:
        """What follows the first activation on the way to the addition."""
        return self.conv2(self.bn2(self.conv1(h), relu=True))

    def without_branch(self, x: Tensor) -> Tensor:
        return self.shortcut(x)

    def zero_branch_(self) -> None:
        nn.init.zeros_(self.conv2.weight)  # zeroing bn2 instead would leave it without a gradient: ReLU'(0) = 0


class PreActBottleneck(Block):
    """BN-ReLU before each of 1x1, 3x3 and 1x1, added to x itself (He et al. 2016, section 5).

    (N, C, H, W) -> (N, K, P, Q); the 3x3 has K/4 channels and the stride.
    """

    expansion = 4

    def __init__(self, C: int, K: int, stride: int = 1, shortcut: nn.Module | None = None):
        super().__init__()
        width = K // self.expansion
        self.bn1, self.conv1 = nn.BatchNorm2d(C), conv1x1(C, width)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv3x3(width, width, stride)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), conv1x1(width, K)
        self.downsample = preact_shortcut_b(C, K, stride) if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(self.bn1(x, relu=True)) + self.shortcut(x)

    def branch(self, h: Tensor) -> Tensor:
        """What follows the first activation on the way to the addition."""
        h = self.conv2(self.bn2(self.conv1(h), relu=True))
        return self.conv3(self.bn3(h, relu=True))

    def without_branch(self, x: Tensor) -> Tensor:
        return self.shortcut(x)

    def zero_branch_(self) -> None:
        nn.init.zeros_(self.conv3.weight)


class SharedPreActBasicBlock(PreActBasicBlock):
    """PreActBasicBlock whose first activation feeds branch and shortcut alike: the first block of each stage."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(x, relu=True)
        return self.branch(h) + self.shortcut(h)

    def without_branch(self, x: Tensor) -> Tensor:
        return self.shortcut(self.bn1(x, relu=True))


class SharedPreActBottleneck(PreActBottleneck):
    """PreActBottleneck whose first activation feeds branch and shortcut alike: the first block of each stage."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(x, relu=True)
        return self.branch(h) + self.shortcut(h)

    def without_branch(self, x: Tensor) -> Tensor:
        return self.shortcut(self.bn1(x, relu=True))
