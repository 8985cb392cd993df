"""The source article's block, as written; where the article is imprecise, the choice is named.

The block has a left branch L, a few convolutions with ReLU, and a right branch R, one 1x1 convolution that is scaled by
a = 0.1. Its formula and its description in steps disagree, and there are three readings:

    parallel    y = L(x) + a R(x)                     the formula
    series      u = L(x),      y = u + a R(u)
    four-step   u = x + L(x),  y = u + a R(u)         the only one with x itself in it

A residual block in the sense of He et al. (2015) is a fork, a branch F, a shortcut that is the identity wherever shapes
allow it, and an addition. `ResidualStep` is that, and each reading is made of it:

- Parallel: one step with the branch L. Its shortcut is a R, a projection in every block (option C, without norm) that
  also scales what passes, and its gradient, by a = 0.1. Residual in form; the identity is nowhere.
- Series: L, past which nothing leads, then one step with the branch a R on u. Residual in its second half only.
- Four-step: two steps in a row, with the branches L and a R. Two residual blocks in He's sense.

The article's prose has no batch norm, so convolutions have biases (ConvReLU) and start from He's initialisation with
fan_in, which keeps the size of the activations. Its code has one behind every convolution: ConvNormReLU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyres import nn, ops
from tinyres.models.blocks import Block, ShortcutOption, preact_shortcut_b, preact_shortcut_c, shortcut_a
from tinyres.models.joins import finite
from tinyres.models.resnet import shortcut_option
from tinyres.nn.options import positive
from tinyres.tensor import Tensor

OPTIONS: dict[str, ShortcutOption] = {"A": shortcut_a, "B": preact_shortcut_b, "C": preact_shortcut_c}  # no norm


def he_init_fan_in_(module: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / fan_in) (He et al. 2015, "Delving deep", equation 10); biases are zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


# --- the scale a ----------------------------------------------------------------------------------------------------


class FixedScale(nn.Module):
    """a x for a constant a, any shape. Raises ValueError unless a is a finite number."""

    def __init__(self, a: float = 0.1):
        super().__init__()
        self.a = finite(type(self).__name__, "a", a)

    def forward(self, x: Tensor) -> Tensor:
        return ops.mul(x, self.a)

    def extra_repr(self) -> str:
        return f"a={self.a:g}"


class LearnedScale(nn.Module):
    """a x for one learned number a, the parameter `a` (1,), any shape; da = <upstream, x>.

    Raises ValueError unless the value at which it starts is a finite number.
    """

    def __init__(self, a: float = 0.1):
        super().__init__()
        self.a = nn.Parameter(np.full(1, finite(type(self).__name__, "a", a), np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return ops.mul(self.a, x)


# --- branches -------------------------------------------------------------------------------------------------------


class ConvReLU(nn.Module):
    """Convolution with a bias, then ReLU; (N, C, H, W) -> (N, K, P, Q)."""

    def __init__(self, C: int, K: int, kernel_size: int, stride: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(C, K, kernel_size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu(self.conv(x))


class ConvNormReLU(nn.Module):
    """Convolution without bias, batch norm, ReLU; (N, C, H, W) -> (N, K, P, Q)."""

    def __init__(self, C: int, K: int, kernel_size: int, stride: int, padding: int):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(C, K, kernel_size, stride, padding, bias=False), nn.BatchNorm2d(K)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x), relu=True)


Layer = type[ConvReLU] | type[ConvNormReLU]


class LeftBranch(nn.Sequential):
    """L: convolutions with ReLU, each with `filters` filters but the last, which has K; (N, C, H, W) -> (N, K, P, Q).

    ReLU follows every convolution, the last too, as the article has it: so L only adds, never subtracts (the "ReLU
    before addition" of He et al. 2016, table 2), and an L of zeros stays one, as relu'(0) = 0. The first convolution
    has the stride, so that the others work on the smaller image. A max pool of pool x pool, if any, comes last.
    """

    def __init__(self, C: int, K: int, stride: int, filters: int, layers: int, kernel_size: int, padding: int,
                 pool: int, layer: Layer = ConvReLU):
        super().__init__()
        for i in range(layers):
            self.append(layer(C if i == 0 else filters, K if i == layers - 1 else filters, kernel_size,
                              stride if i == 0 else 1, padding))
        if pool > 1:
            self.append(nn.MaxPool2d(pool))


class RightBranch(nn.Sequential):
    """a R: a 1x1 convolution with L's stride, the scale and L's max pool; (N, C, H, W) -> (N, K, P, Q)."""

    def __init__(self, C: int, K: int, stride: int, scale: nn.Module, pool: int):
        super().__init__(nn.Conv2d(C, K, 1, stride), scale)
        if pool > 1:
            self.append(nn.MaxPool2d(pool))


class Stem(nn.Sequential):
    """Two 3x3 convolutions with ReLU, the second with stride 2: (N, C, H, W) -> (N, K, P, Q), P = ceil(H/2)."""

    def __init__(self, C: int, K: int, layer: Layer = ConvReLU):
        super().__init__(layer(C, K, 3, 1, 1), layer(K, K, 3, 2, 1))


@dataclass(frozen=True)
class Plan:
    """What the article leaves open in its block; plan.left(C, K, stride) and the others build the parts.

    padding: None is the one that keeps H and W. pool: the window of a max pool at the end of the block, 1 for none.
    scale: FixedScale or LearnedScale. layer: ConvReLU or ConvNormReLU. shortcut: for x in the four-step reading.
    Raises ValueError for a size that is no positive int.
    """

    filters: int = 64
    layers: int = 2
    kernel_size: int = 3
    padding: int | None = None
    pool: int = 1
    a: float = 0.1
    scale: type[FixedScale] | type[LearnedScale] = FixedScale
    layer: Layer = ConvReLU
    shortcut: ShortcutOption = preact_shortcut_b

    def __post_init__(self) -> None:
        positive("the article's block", filters=self.filters, layers=self.layers, kernel_size=self.kernel_size,
                 pool=self.pool)
        if self.padding is not None and not (hasattr(self.padding, "__index__") and self.padding >= 0):
            raise ValueError("the article's block: padding must be an int of at least 0, or None to keep H and W, got "
                             f"{self.padding!r}")

    @property
    def border(self) -> int:
        """The padding as a number."""
        return self.kernel_size // 2 if self.padding is None else self.padding

    def left(self, C: int, K: int, stride: int) -> LeftBranch:
        """L."""
        return LeftBranch(C, K, stride, self.filters, self.layers, self.kernel_size, self.border, self.pool, self.layer)

    def right(self, C: int, K: int, stride: int, pool: int = 1) -> RightBranch:
        """a R."""
        return RightBranch(C, K, stride, self.scale(self.a), pool)

    def around_left(self, C: int, K: int, stride: int) -> nn.Module:
        """The shortcut past L: `shortcut`, and L's max pool behind it."""
        found = self.shortcut(C, K, stride)
        return nn.Sequential(found, nn.MaxPool2d(self.pool)) if self.pool > 1 else found

    def check_sizes(self, block: str) -> None:
        """Raise ValueError unless L's images have the size that a 1x1 convolution with its stride gives.

        floor((H + 2 padding - kernel_size) / s) + 1 = floor((H - 1) / s) + 1 for all H asks for an odd kernel.
        """
        if self.kernel_size != 2 * self.border + 1:
            raise ValueError(f"{block}: kernel_size={self.kernel_size} with padding={self.border} changes H and W in "
                             "the left branch but not beside it, so the two cannot be added: use an odd kernel_size "
                             "with padding = kernel_size // 2, or the series reading")


def plan_of(filters: int, layers: int, kernel_size: int, a: float, learnable_scale: bool, batch_norm: bool,
            option: str = "B") -> Plan:
    """The plan for a network's options. Raises ValueError for an option that is not A, B or C, or a wrong size."""
    return Plan(filters, layers, kernel_size, a=a, scale=LearnedScale if learnable_scale else FixedScale,
                layer=ConvNormReLU if batch_norm else ConvReLU, shortcut=shortcut_option(OPTIONS, option))


# --- blocks ---------------------------------------------------------------------------------------------------------


class ResidualStep(Block):
    """shortcut(x) + branch(x), nothing after it; (N, C, H, W) -> (N, K, P, Q). The shortcut is the identity if None."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.branch = branch
        self.downsample = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)

    def without_branch(self, x: Tensor) -> Tensor:
        return self.shortcut(x)

    def zero_branch_(self) -> None:
        last = [part for part in self.branch.modules() if isinstance(part, (nn.Conv2d, nn.BatchNorm2d))][-1]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)


class ParallelBlock(ResidualStep):
    """y = L(x) + a R(x); (N, C, H, W) -> (N, K, P, Q). R is the shortcut, of the same stride: no identity anywhere.

    Raises ValueError where L's images would not have the size of R's.
    """

    def __init__(self, C: int, K: int, stride: int = 1, plan: Plan | None = None):
        plan = plan or Plan()
        plan.check_sizes("ParallelBlock")
        super().__init__(plan.left(C, K, stride), plan.right(C, K, stride, plan.pool))


class SeriesBlock(nn.Sequential):
    """u = L(x), y = u + a R(u); (N, C, H, W) -> (N, K, P, Q). Only "1", the second half, has a shortcut."""

    def __init__(self, C: int, K: int, stride: int = 1, plan: Plan | None = None):
        plan = plan or Plan()
        super().__init__(plan.left(C, K, stride), ResidualStep(plan.right(K, K, 1)))


class FourStepBlock(nn.Sequential):
    """u = x + L(x), y = u + a R(u): two residual steps; (N, C, H, W) -> (N, K, P, Q).

    Where shapes change, x goes through the plan's shortcut. Raises ValueError where L's images would not have its size.
    """

    def __init__(self, C: int, K: int, stride: int = 1, plan: Plan | None = None):
        plan = plan or Plan()
        plan.check_sizes("FourStepBlock")
        super().__init__(ResidualStep(plan.left(C, K, stride), plan.around_left(C, K, stride)),
                         ResidualStep(plan.right(K, K, 1)))
