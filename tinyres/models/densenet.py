"""DenseNet-BC for small images: every layer sees the concatenated outputs of all layers before it in its dense block.

A layer adds k channels, the growth rate, to what it got; its gradient is split among the layers whose channels those
are. B: a 1x1 convolution to 4k channels in front of each 3x3. C: a transition keeps half of the channels. Huang, Liu,
van der Maaten and Weinberger 2017, "Densely connected convolutional networks", sections 3 and 4.
"""

from __future__ import annotations

from tinyres import nn, ops
from tinyres.models.blocks import conv1x1, conv3x3, he_init_
from tinyres.nn.options import positive
from tinyres.tensor import Tensor

WIDENING = 4       # channels between the two convolutions of a layer, in growth rates (section 3, "Bottleneck layers")
COMPRESSION = 0.5  # theta, the share of channels that a transition keeps (section 3, "Compression")
STAGES = 3


class DenseLayer(nn.Module):
    """[x, H(x)] with H = BN-ReLU-1x1(4k)-BN-ReLU-3x3(k): (N, C, H, W) -> (N, C + k, H, W) (section 3)."""

    def __init__(self, C: int, growth: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(C), conv1x1(C, WIDENING * growth)
        self.bn2, self.conv2 = nn.BatchNorm2d(WIDENING * growth), conv3x3(WIDENING * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(self.bn2(self.conv1(self.bn1(x, relu=True)), relu=True))
        return ops.concat([x, new], 1)


class Transition(nn.Module):
    """BN-ReLU-1x1 to K channels, then 2x2 average pool: (N, C, H, W) -> (N, K, H/2, W/2), rounded down (section 3)."""

    def __init__(self, C: int, K: int):
        super().__init__()
        self.bn, self.conv, self.pool = nn.BatchNorm2d(C), conv1x1(C, K), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(self.bn(x, relu=True)))


class DenseNet(nn.Module):
    """DenseNet-BC; (N, in_channels, H, W) -> (N, num_classes), H and W at least 4.

    A 3x3 stem of 2k channels, three dense blocks of `layers` layers with a transition between two, BN-ReLU, global
    average pool, linear layer. Convolutions start from He's initialisation. Raises ValueError for a size that is no
    positive int.
    """

    def __init__(self, layers: int, growth: int, num_classes: int, in_channels: int):
        super().__init__()
        positive(type(self).__name__, layers=layers, growth=growth, num_classes=num_classes, in_channels=in_channels)
        C = 2 * growth
        self.conv1 = conv3x3(in_channels, C)
        for stage in range(1, STAGES + 1):
            self.register_module(f"dense{stage}",
                                 nn.Sequential(*(DenseLayer(C + i * growth, growth) for i in range(layers))))
            C += layers * growth
            if stage < STAGES:
                K = int(COMPRESSION * C)
                self.register_module(f"transition{stage}", Transition(C, K))
                C = K
        self.bn = nn.BatchNorm2d(C)
        self.fc = nn.Linear(C, num_classes)
        he_init_(self)

    def forward(self, x: Tensor) -> Tensor:
        h = self.transition1(self.dense1(self.conv1(x)))
        h = self.dense3(self.transition2(self.dense2(h)))
        return self.fc(ops.global_avg_pool2d(self.bn(h, relu=True)))


def cifar_densenet(depth: int, num_classes: int = 10, in_channels: int = 3, growth: int = 12) -> DenseNet:
    """DenseNet-BC of depth 6n+4, n layers in each dense block. Raises ValueError when depth has not that form."""
    per_stage = 2 * STAGES
    if not hasattr(depth, "__index__"):
        raise TypeError(f"cifar_densenet: depth must be an integer of the form {per_stage}n+{STAGES + 1}, got "
                        f"{depth!r}: use 40")
    n, rest = divmod(depth - STAGES - 1, per_stage)
    if n < 1 or rest:
        near = per_stage * max(1, round((depth - STAGES - 1) / per_stage)) + STAGES + 1
        raise ValueError(f"cifar_densenet: depth must be {per_stage}n+{STAGES + 1}, got {depth}: use {near}")
    return DenseNet(n, growth, num_classes, in_channels)


def densenet40(num_classes=10, in_channels=3, growth=12):
    """DenseNet-BC of 40 layers, 6 a dense block; the paper's table has this depth without B and C only."""
    return cifar_densenet(40, num_classes, in_channels, growth)


def densenet100(num_classes=10, in_channels=3, growth=12):
    """DenseNet-BC of 100 layers, 16 a dense block; 769,162 parameters, the 0.8 M of the paper's table 2."""
    return cifar_densenet(100, num_classes, in_channels, growth)


NETWORKS = (densenet40, densenet100)
