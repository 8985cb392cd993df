"""How shortcut and branch are joined: joins, shortcuts that weigh what passes, and the blocks that take them.

A join is a small module called as join(shortcut, branch), both (N, K, P, Q) or a number for a constant part. Where it
says y = s x + r F(x), the gradient that reaches x along the shortcut is s times the upstream one: k blocks multiply it
by s^k, which is why a scale belongs on the branch (He et al. 2016, "Identity mappings", section 3).
Scales hold in every block, also where the shortcut changes the shape: there the padded or projected x is scaled, as in
the paper, which scales "all shortcuts"; so k counts all blocks of the network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres import nn, ops
from tinyres.models.blocks import Block, ShortcutOption, conv3x3, preact_shortcut_b, shortcut_b
from tinyres.models.resnet import Residual
from tinyres.nn.options import number
from tinyres.tensor import Tensor


def finite(owner: str, name: str, value: Any) -> float:
    """value as a float. Raises ValueError, naming the class and its option, unless it is a finite number."""
    most = sys.float_info.max
    return number(owner, name, value, -most, most, "be a finite number")


def scaled(x: Any, scale: float) -> Any:
    """scale * x; x itself where the scale is 1, as a product would only keep one more array for backward."""
    return x if scale == 1.0 else x * scale


# --- joins ----------------------------------------------------------------------------------------------------------


class Add(nn.Module):
    """shortcut + branch; the upstream gradient goes to both unchanged."""

    def forward(self, shortcut: Any, branch: Any) -> Any:
        return shortcut + branch


class ScaledAdd(nn.Module):
    """shortcut_scale * shortcut + residual_scale * branch, both scales constant.

    residual_scale: Szegedy et al. 2016, "Inception-v4", section 3.3, 0.1 to 0.3; the a of y = x + a F(x).
    shortcut_scale: the lambda of He et al. 2016, section 3.1. Raises ValueError for a scale that is not finite.
    """

    def __init__(self, residual_scale: float = 1.0, shortcut_scale: float = 1.0):
        super().__init__()
        self.residual_scale = finite("ScaledAdd", "residual_scale", residual_scale)
        self.shortcut_scale = finite("ScaledAdd", "shortcut_scale", shortcut_scale)

    def forward(self, shortcut: Any, branch: Any) -> Any:
        return scaled(shortcut, self.shortcut_scale) + scaled(branch, self.residual_scale)

    def extra_repr(self) -> str:
        return f"residual_scale={self.residual_scale:g}, shortcut_scale={self.shortcut_scale:g}"


class LearnedScaledAdd(nn.Module):
    """shortcut + scale * branch, with one learned number a block, `scale` (1,), which starts at `initial`.

    At 0 the block starts as its shortcut and the branch's weights get no gradient, but the scale does: d scale =
    <upstream, branch>. After one step the branch learns too. SkipInit (De & Smith 2020, "Batch normalization biases
    residual blocks towards the identity function") and ReZero (Bachlechner et al. 2021) are this join.
    """

    def __init__(self, initial: float = 0.0):
        super().__init__()
        self.initial = finite("LearnedScaledAdd", "initial", initial)
        self.scale = nn.Parameter(np.full(1, self.initial, np.float32))

    def forward(self, shortcut: Any, branch: Any) -> Any:
        return shortcut + self.scale * branch

    def extra_repr(self) -> str:
        return f"initial={self.initial:g}"


# --- shortcuts ------------------------------------------------------------------------------------------------------


class ScaledShortcut(nn.Module):
    """scale * inner(x), for any block that adds: BasicBlock(16, 16, 1, ScaledShortcut(nn.Identity(), 0.5)).

    (N, C, H, W) -> what `inner` gives. Raises ValueError for a scale that is not finite.
    """

    def __init__(self, inner: nn.Module, scale: float):
        super().__init__()
        self.inner, self.scale = inner, finite("ScaledShortcut", "scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return scaled(self.inner(x), self.scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"


class DropoutShortcut(nn.Module):
    """Dropout on what `inner` gives, without the usual division by 1 - p (He et al. 2016, section 3.1).

    In training each element passes with probability 1 - p, else it is zero; in eval mode all are scaled by 1 - p, the
    expectation. So the shortcut's expected scale is 1 - p in both, which is what the paper holds against it. nn.Dropout
    would make it 1. (N, C, H, W) -> what `inner` gives. Raises ValueError unless 0 <= p < 1.
    """

    def __init__(self, inner: nn.Module, p: float = 0.5):
        super().__init__()
        self.inner = inner
        self.p = number("DropoutShortcut", "p", p, 0, 1 - 1e-9, "lie in [0, 1), the share that is zeroed")

    def forward(self, x: Tensor) -> Tensor:
        return scaled(ops.dropout(self.inner(x), self.p, self.training), 1.0 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


# --- blocks ---------------------------------------------------------------------------------------------------------


class JoinedBasicBlock(Block):
    """BasicBlock whose join is a module: relu(join(shortcut(x), F(x))); (N, C, H, W) -> (N, K, P, Q).

    With Add it gives BasicBlock's numbers bit for bit, but more slowly: nothing is fused into the second batch norm.
    """

    def __init__(self, C: int, K: int, stride: int = 1, shortcut: nn.Module | None = None,
                 join: nn.Module | None = None):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(C, K, stride), nn.BatchNorm2d(K)
        self.conv2, self.bn2 = conv3x3(K, K), nn.BatchNorm2d(K)
        self.downsample = shortcut_b(C, K, stride) if shortcut is None else shortcut
        self.join = Add() if join is None else join

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x), relu=True)
        return ops.relu(self.join(self.shortcut(x), self.bn2(self.conv2(h))))

    def without_branch(self, x: Tensor) -> Tensor:
        return ops.relu(self.join(self.shortcut(x), 0.0))

    def zero_branch_(self) -> None:
        nn.init.zeros_(self.bn2.weight)


class ReZeroBasicBlock(JoinedBasicBlock):
    """relu(shortcut(x) + scale * F(x)), the scale learned from 0 on; F is BasicBlock's branch, batch norms included.

    (N, C, H, W) -> (N, K, P, Q). The ReLU behind the addition is He's, so the block starts as relu(shortcut(x)).
    """

    def __init__(self, C: int, K: int, stride: int = 1, shortcut: nn.Module | None = None):
        super().__init__(C, K, stride, shortcut, LearnedScaledAdd())

    def zero_branch_(self) -> None:
        nn.init.zeros_(self.join.scale)  # zeroing bn2 as well would leave neither of the two a gradient


class SkipInitBlock(Block):
    """shortcut(x) + scale * F(x) without any norm, F = ReLU-3x3-ReLU-3x3 with biases, the scale learned from 0 on.

    (N, C, H, W) -> (N, K, P, Q); the first convolution has the stride. De & Smith 2020.
    """

    def __init__(self, C: int, K: int, stride: int = 1, shortcut: nn.Module | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(C, K, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(K, K, 3, padding=1)
        for conv in (self.conv1, self.conv2):
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.downsample = preact_shortcut_b(C, K, stride) if shortcut is None else shortcut
        self.join = LearnedScaledAdd()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(ops.relu(x))
        return self.join(self.shortcut(x), self.conv2(ops.relu(h)))

    def without_branch(self, x: Tensor) -> Tensor:
        return self.shortcut(x)

    def zero_branch_(self) -> None:
        nn.init.zeros_(self.join.scale)  # zeroing conv2 as well would leave neither of the two a gradient


class ResidualWith(Residual):
    """Residual whose blocks take one more argument, made anew for each: a join of its own, the bias of a gate."""

    def __init__(self, block: type[Block], shortcut: ShortcutOption, make: Callable[[], Any]):
        super().__init__(block, shortcut)
        self.make = make

    def __call__(self, C: int, K: int, stride: int) -> Block:
        return self.block(C, K, stride, self.shortcut(C, K, stride), self.make())  # type: ignore[call-arg]
