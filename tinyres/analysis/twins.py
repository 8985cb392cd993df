"""The twins of our networks in PyTorch: plain torch.nn after He et al. 2015 and 2016, with torchvision's names.

They take nothing from tinyres.models, so that a mistake there has no double here. PyTorch is no dependency: it is
imported when a twin is made.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

IMAGENET: dict[int, tuple[str, Sequence[int]]] = {
    18: ("basic", (2, 2, 2, 2)), 34: ("basic", (3, 4, 6, 3)), 50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)), 152: ("bottleneck", (3, 8, 36, 3))}


def pytorch() -> Any:
    """The module torch. Raises ModuleNotFoundError that says how to get it."""
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("twins: PyTorch is not installed: pip install torch==2.13.0") from error


def twin(name: str, num_classes: int | None = None, in_channels: int = 3, option: str | None = None,
         cifar_stem: bool | None = None) -> Any:
    """The PyTorch network `name`, as a torch.nn.Module in float32; arguments and defaults as for models.build(name).

    Raises ValueError for a name that is not plainN, resnetN or preact_resnetN; ModuleNotFoundError without PyTorch.
    """
    found = re.fullmatch(r"(plain|resnet|preact_resnet)(\d+)", name)
    family, depth = (found[1], int(found[2])) if found else ("", 0)
    kind = "bottleneck" if depth == 164 else "basic"
    n, rest = divmod(depth - 2, 6 if kind == "basic" else 9)
    if depth in IMAGENET:
        kind, depths = IMAGENET[depth]
        widths, classes, usual = [64, 128, 256, 512], 1000, "B"
    elif n > 0 and not rest:  # for small images: 6n+2 layers, or 9n+2 where a block has three
        depths, widths, classes, usual = (n, n, n), [16, 32, 64], 10, "A" if kind == "basic" else "B"
        cifar_stem = True
    else:
        raise ValueError(f"twins: no network is called {name!r}: expected a name like plain20, resnet20 or "
                         "preact_resnet18")
    blocks = _preactivation_blocks() if family == "preact_resnet" else _blocks()
    return _network_class()(blocks["plain" if family == "plain" else kind], depths, widths, option or usual,
                            num_classes or classes, in_channels, bool(cifar_stem), family == "preact_resnet")


def _conv(C: int, K: int, size: int, stride: int = 1) -> Any:
    return pytorch().nn.Conv2d(C, K, size, stride, size // 2, bias=False)


def _shortcut(C: int, K: int, stride: int, option: str, norm: bool = True) -> Any:
    """x itself; or padded with zero channels (A); or a projection, where shapes change (B) or everywhere (C)."""
    nn, F = pytorch().nn, pytorch().nn.functional
    if (C, stride) == (K, 1) and option != "C":
        return lambda x: x
    if option == "A":
        extra = (K - C) // 2
        return lambda x: F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, extra, extra))
    return nn.Sequential(_conv(C, K, 1, stride), *([nn.BatchNorm2d(K)] if norm else []))


@cache
def _blocks() -> dict[str, type]:
    """He et al. 2015: figures 3 and 5; the stride of a bottleneck is on its 3x3, as in torchvision."""
    nn, F = pytorch().nn, pytorch().nn.functional
    Module: Any = nn.Module

    class Plain(Module):
        def __init__(self, C, K, stride, option, first):
            super().__init__()
            self.conv1, self.bn1 = _conv(C, K, 3, stride), nn.BatchNorm2d(K)
            self.conv2, self.bn2 = _conv(K, K, 3), nn.BatchNorm2d(K)

        def branch(self, x):
            return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

        def forward(self, x):
            return F.relu(self.branch(x))

    class Basic(Plain):
        def __init__(self, C, K, stride, option, first):
            super().__init__(C, K, stride, option, first)
            self.downsample = _shortcut(C, K, stride, option)

        def forward(self, x):
            return F.relu(self.branch(x) + self.downsample(x))

    class Bottleneck(Module):
        def __init__(self, C, K, stride, option, first):
            super().__init__()
            self.conv1, self.bn1 = _conv(C, K // 4, 1), nn.BatchNorm2d(K // 4)
            self.conv2, self.bn2 = _conv(K // 4, K // 4, 3, stride), nn.BatchNorm2d(K // 4)
            self.conv3, self.bn3 = _conv(K // 4, K, 1), nn.BatchNorm2d(K)
            self.downsample = _shortcut(C, K, stride, option)

        def forward(self, x):
            y = F.relu(self.bn1(self.conv1(x)))
            y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
            return F.relu(y + self.downsample(x))

    return {"plain": Plain, "basic": Basic, "bottleneck": Bottleneck}


@cache
def _preactivation_blocks() -> dict[str, type]:
    """He et al. 2016: figure 1b. The first block of a stage activates x before the paths part."""
    nn, F = pytorch().nn, pytorch().nn.functional
    Module: Any = nn.Module

    class Basic(Module):
        def __init__(self, C, K, stride, option, first):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(C), _conv(C, K, 3, stride)
            self.bn2, self.conv2 = nn.BatchNorm2d(K), _conv(K, K, 3)
            self.downsample, self.first = _shortcut(C, K, stride, option, norm=False), first

        def branch(self, h):
            return self.conv2(F.relu(self.bn2(self.conv1(h))))

        def forward(self, x):
            h = F.relu(self.bn1(x))
            return self.branch(h) + self.downsample(h if self.first else x)

    class Bottleneck(Basic):
        def __init__(self, C, K, stride, option, first):
            Module.__init__(self)
            self.bn1, self.conv1 = nn.BatchNorm2d(C), _conv(C, K // 4, 1)
            self.bn2, self.conv2 = nn.BatchNorm2d(K // 4), _conv(K // 4, K // 4, 3, stride)
            self.bn3, self.conv3 = nn.BatchNorm2d(K // 4), _conv(K // 4, K, 1)
            self.downsample, self.first = _shortcut(C, K, stride, option, norm=False), first

        def branch(self, h):
            h = self.conv2(F.relu(self.bn2(self.conv1(h))))
            return self.conv3(F.relu(self.bn3(h)))

    return {"basic": Basic, "bottleneck": Bottleneck}


@cache
def _network_class() -> Callable[..., Any]:
    """Stem, stages, global average pool, linear layer; before activation the last norm follows the stages."""
    nn, F = pytorch().nn, pytorch().nn.functional
    Module: Any = nn.Module

    class Network(Module):
        def __init__(self, block, depths, widths, option, num_classes, in_channels, cifar_stem, preactivation):
            super().__init__()
            C = widths[0]
            self.conv1 = _conv(in_channels, C, 3) if cifar_stem else _conv(in_channels, C, 7, 2)
            if not preactivation:
                self.bn1 = nn.BatchNorm2d(C)
            self.maxpool = nn.Identity() if cifar_stem else nn.MaxPool2d(3, 2, 1)
            self.stages = [f"layer{i + 1}" for i in range(len(depths))]
            for i, (name, depth, width) in enumerate(zip(self.stages, depths, widths, strict=True)):
                K, blocks = 4 * width if "Bottleneck" in block.__name__ else width, []
                for j in range(depth):
                    blocks.append(block(K if j else C, K, 2 if i and j == 0 else 1, option, j == 0))
                self.add_module(name, nn.Sequential(*blocks))
                C = K
            if preactivation:
                self.bn = nn.BatchNorm2d(C)
            self.fc, self.preactivation = nn.Linear(C, num_classes), preactivation

        def forward(self, x):
            x = self.conv1(x)
            x = self.maxpool(x if self.preactivation else F.relu(self.bn1(x)))
            for name in self.stages:
                x = getattr(self, name)(x)
            return self.fc((F.relu(self.bn(x)) if self.preactivation else x).mean((2, 3)))

    return Network
