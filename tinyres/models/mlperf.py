"""ResNet-8 of the MLPerf Tiny benchmark (Banbury et al. 2021), whose published weights come from Keras.

It has resnet8's plan, one block for each of three stages, and differs in four ways, all of them TensorFlow's habits:
convolutions keep their bias though batch norm follows; the padding "same" puts the odd pixel at the bottom and right,
where PyTorch's numbers pad all sides alike; shortcuts that change the shape are a 1x1 convolution without batch norm;
and batch norm adds 1e-3 to the variance. Its input is raw pixels, 0 to 255.
"""

from __future__ import annotations

from tinyres import nn, ops
from tinyres.models.blocks import Block, he_init_
from tinyres.nn.options import positive
from tinyres.tensor import Tensor

EPS, MOMENTUM = 1e-3, 0.01  # Keras's defaults; its momentum 0.99 is the share of the old statistics, ours of the new
WIDTHS = (16, 32, 64)


class SamePadConv2d(nn.Conv2d):
    """Conv2d with TensorFlow's padding "same"; (N, C, H, W) -> (N, K, P, Q) with P = ceil(H / stride), Q likewise.

    Of the max(0, (P - 1) stride + R - H) rows of zeros, the greater half is at the bottom, and so for columns, on the
    right. With stride 1 and an odd kernel that is padding (R - 1) / 2, which nn.Conv2d does.
    """

    def __init__(self, C: int, K: int, kernel_size: int, stride: int):
        super().__init__(C, K, kernel_size, stride)

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = (self.padding_of(size, axis) for axis, size in enumerate(x.shape[2:]))
        x = ops.pad(x, (left, right, top, bottom))
        return ops.conv2d(x, self.weight, self.bias, self.stride)

    def padding_of(self, size: int, axis: int) -> tuple[int, int]:
        """Zeros before and after an axis of this size: 0 for the rows, 1 for the columns."""
        outputs = -(-size // self.stride[axis])
        total = max(0, (outputs - 1) * self.stride[axis] + self.kernel_size[axis] - size)
        return total // 2, total - total // 2


def conv_same(C: int, K: int, stride: int) -> nn.Conv2d:
    """3x3 convolution with a bias and TensorFlow's padding: at stride 1 that is one pixel on all sides."""
    return SamePadConv2d(C, K, 3, stride) if stride > 1 else nn.Conv2d(C, K, 3, padding=1)


class MLPerfBlock(Block):
    """Two 3x3 convolutions with biases; (N, C, H, W) -> (N, K, P, Q). The first has the stride.

    The shortcut is the identity, or where shapes change a 1x1 convolution with a bias and no batch norm.
    """

    def __init__(self, C: int, K: int, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1 = conv_same(C, K, stride), nn.BatchNorm2d(K, EPS, MOMENTUM)
        self.conv2, self.bn2 = conv_same(K, K, 1), nn.BatchNorm2d(K, EPS, MOMENTUM)
        self.downsample = nn.Identity() if (C, stride) == (K, 1) else nn.Conv2d(C, K, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(h), add=self.shortcut(x), relu=True)

    def zero_branch_(self) -> None:
        nn.init.zeros_(self.bn2.weight)


class MLPerfResNet8(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes): a stem, three blocks of 16, 32 and 64 channels, a linear layer.

    Convolutions start from He's initialisation and biases from zero. tinyres/keras_names.py has Keras's names for them.
    """

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        positive(type(self).__name__, num_classes=num_classes, in_channels=in_channels)
        first, second, third = WIDTHS
        self.conv1, self.bn1 = conv_same(in_channels, first, 1), nn.BatchNorm2d(first, EPS, MOMENTUM)
        self.layer1 = nn.Sequential(MLPerfBlock(first, first))
        self.layer2 = nn.Sequential(MLPerfBlock(first, second, 2))
        self.layer3 = nn.Sequential(MLPerfBlock(second, third, 2))
        self.fc = nn.Linear(third, num_classes)
        he_init_(self)
        for part in self.modules():
            if isinstance(part, nn.Conv2d) and part.bias is not None:
                nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x), relu=True)
        h = self.layer3(self.layer2(self.layer1(h)))
        return self.fc(ops.global_avg_pool2d(h))


def mlperf_resnet8(num_classes=10, in_channels=3):
    """ResNet-8 of MLPerf Tiny (Banbury et al. 2021); 78,186 parameters."""
    return MLPerfResNet8(num_classes, in_channels)


NETWORKS = (mlperf_resnet8,)
