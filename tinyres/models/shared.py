"""Sharing over depth: the blocks of a stage that keep their shape use one set of weights, one after the other.

A convolution shares its kernel over positions; that is not sharing over depth. Here block 2 of a stage is block 1 over
again, so a stage is a recurrence x <- relu(x + F(x)), and the network has as many weights as one with a block of each
shape. The gradient of a shared weight is the sum over its uses, which the engine adds up as for any tensor that is used
twice; nothing here does anything about it.

Every shared module is registered once, with its first use; the others hold it as Borrowed. So it is counted, saved,
stepped and initialised once, and the weights of an unshared network are refused rather than half taken.
"""

from __future__ import annotations

from typing import Any

from tinyres import nn
from tinyres.models.blocks import BasicBlock, Block, ShortcutOption, conv3x3
from tinyres.models.resnet import CIFAR_WIDTHS, OPTIONS, Residual, ResNet, blocks_per_stage, shortcut_option
from tinyres.tensor import Tensor


class Borrowed(nn.Module):
    """One more use of a module that is registered elsewhere: it calls `owner`, and lists none of its parameters.

    The owner must be part of the same network, or nobody trains, converts or moves it. copy.deepcopy of that network
    keeps the two together. An owner's hooks run at every use, those of a Borrowed at its own.
    """

    def __init__(self, owner: nn.Module):
        super().__init__()
        self._owner = (owner,)  # in a tuple, as a module would be registered

    @property
    def owner(self) -> nn.Module:
        """The module that holds the parameters."""
        return self._owner[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.owner(*args, **kwargs)

    def extra_repr(self) -> str:
        return type(self.owner).__name__


def owner_of(module: nn.Module) -> nn.Module:
    """The module that holds the parameters: the owner of a Borrowed, else the module itself."""
    return module.owner if isinstance(module, Borrowed) else module


# --- blocks ---------------------------------------------------------------------------------------------------------


class BasicBranch(nn.Module):
    """BasicBlock without its shortcut: relu(F(x) + add), F with two 3x3 convolutions and two batch norms of its own.

    (N, K, H, W) twice -> (N, K, H, W).
    """

    def __init__(self, K: int):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(K, K), nn.BatchNorm2d(K)
        self.conv2, self.bn2 = conv3x3(K, K), nn.BatchNorm2d(K)

    def forward(self, x: Tensor, add: Tensor) -> Tensor:
        h = self.bn1(self.conv1(x), relu=True)
        return self.bn2(self.conv2(h), add=add, relu=True)


class SharedBasicBlock(Block):
    """BasicBlock whose `branch`, batch norms included, other blocks use too; (N, K, H, W) -> (N, K, H, W).

    In training each use is normalised by its own batch, while the running statistics mix those of all uses: in eval
    mode one mean serves all, and fits none exactly. SharedConvBasicBlock keeps them apart.
    """

    def __init__(self, K: int, shortcut: nn.Module, branch: nn.Module | None = None):
        super().__init__()
        self.channels = K
        self.branch = BasicBranch(K) if branch is None else branch
        self.downsample = shortcut

    def again(self, shortcut: nn.Module) -> SharedBasicBlock:
        """One more block on this one's branch."""
        return SharedBasicBlock(self.channels, shortcut, Borrowed(owner_of(self.branch)))

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x, self.shortcut(x))

    def zero_branch_(self) -> None:
        """Set the last scale to zero, and so that of every block on this branch."""
        nn.init.zeros_(owner_of(self.branch).bn2.weight)


class SharedConvBasicBlock(Block):
    """BasicBlock whose two 3x3 `convs` other blocks use too; each block has batch norms, and statistics, of its own.

    (N, K, H, W) -> (N, K, H, W).
    """

    def __init__(self, K: int, shortcut: nn.Module, convs: nn.ModuleList | None = None):
        super().__init__()
        self.channels = K
        self.convs = nn.ModuleList([conv3x3(K, K), conv3x3(K, K)]) if convs is None else convs
        self.bn1, self.bn2 = nn.BatchNorm2d(K), nn.BatchNorm2d(K)
        self.downsample = shortcut

    def again(self, shortcut: nn.Module) -> SharedConvBasicBlock:
        """One more block on this one's convolutions."""
        borrowed = nn.ModuleList([Borrowed(owner_of(conv)) for conv in self.convs])
        return SharedConvBasicBlock(self.channels, shortcut, borrowed)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(self.convs[0](x), relu=True)
        return self.bn2(self.convs[1](h), add=self.shortcut(x), relu=True)

    def zero_branch_(self) -> None:
        nn.init.zeros_(self.bn2.weight)


# --- networks -------------------------------------------------------------------------------------------------------


class Sharing(Residual):
    """A constructor of the blocks of one network: those that keep their shape share one set of weights a width.

    The others, first of their stages, are BasicBlocks. Shortcuts are shared by none: with option C each projection is
    the block's own.
    """

    def __init__(self, block: type[SharedBasicBlock] | type[SharedConvBasicBlock], shortcut: ShortcutOption):
        super().__init__(block, shortcut)
        self.first: dict[int, Any] = {}  # output channels -> the block that holds the weights

    def __call__(self, C: int, K: int, stride: int) -> Block:
        shortcut = self.shortcut(C, K, stride)
        if (C, stride) != (K, 1):
            return BasicBlock(C, K, stride, shortcut)
        if K in self.first:
            return self.first[K].again(shortcut)
        self.first[K] = self.block(K, shortcut)  # type: ignore[call-arg]
        return self.first[K]


def shared_resnet(depth=20, num_classes=10, in_channels=3, option="A", zero_init_residual=False):
    """ResNet of depth 6n+2 whose identity-shaped blocks of a stage are one, batch norms included.

    It has as many parameters for every depth from 14 on: 167,834 with option A.
    """
    n = blocks_per_stage(depth, 2, "shared_resnet")
    make_block = Sharing(SharedBasicBlock, shortcut_option(OPTIONS, option))
    return ResNet(make_block, [n] * 3, CIFAR_WIDTHS, num_classes, in_channels, True, zero_init_residual)


def shared_conv_resnet(depth=20, num_classes=10, in_channels=3, option="A", zero_init_residual=False):
    """shared_resnet with batch norms of its own for each block: 168,346 parameters at depth 20 with option A."""
    n = blocks_per_stage(depth, 2, "shared_conv_resnet")
    make_block = Sharing(SharedConvBasicBlock, shortcut_option(OPTIONS, option))
    return ResNet(make_block, [n] * 3, CIFAR_WIDTHS, num_classes, in_channels, True, zero_init_residual)


def shared_resnet20(num_classes=10, in_channels=3, option="A", zero_init_residual=False):
    """ResNet-20 with shared blocks; 167,834 parameters with option A, where resnet20 has 269,722."""
    return shared_resnet(20, num_classes, in_channels, option, zero_init_residual)


def shared_resnet56(num_classes=10, in_channels=3, option="A", zero_init_residual=False):
    """ResNet-56 with shared blocks; the 167,834 parameters of shared_resnet20, where resnet56 has 853,018."""
    return shared_resnet(56, num_classes, in_channels, option, zero_init_residual)


def shared_conv_resnet20(num_classes=10, in_channels=3, option="A", zero_init_residual=False):
    """ResNet-20 with shared convolutions, and batch norms of its own for each block; 168,346 parameters."""
    return shared_conv_resnet(20, num_classes, in_channels, option, zero_init_residual)


NETWORKS = (shared_resnet, shared_resnet20, shared_resnet56, shared_conv_resnet, shared_conv_resnet20)
