"""The source article's two networks, which differ: that of its prose and that of its code.

The prose has a stem of two convolutions, a max pool, three blocks 64 -> 256, a global average pool and a linear layer;
its blocks come in three readings, see article_blocks.py. The code is a ResNet after He et al. 2015 with a 3x3 stem,
four stages of 64, 128, 256 and 512 channels and no max pool, whose basic block has the stride on its second
convolution.
"""

from __future__ import annotations

from tinyres import nn, ops
from tinyres.models.article_blocks import (
    FourStepBlock,
    ParallelBlock,
    Plan,
    SeriesBlock,
    Stem,
    he_init_fan_in_,
    plan_of,
)
from tinyres.models.blocks import BasicBlock, Bottleneck, conv3x3
from tinyres.models.resnet import IMAGENET_WIDTHS, OPTIONS, Residual, ResNet, shortcut_option
from tinyres.nn.options import positive
from tinyres.tensor import Tensor

# --- the prose --------------------------------------------------------------------------------------------------------


class ArticleProse(nn.Module):
    """The network of the article's prose; (N, in_channels, H, W) -> (N, num_classes), H and W at least 3.

    Stem, 2x2 max pool, `blocks` blocks of which the first goes from the plan's filters (the stem's too) to `width`
    channels, global average pool, linear layer. block: one of the three readings.
    """

    def __init__(self, block: type[ParallelBlock] | type[SeriesBlock] | type[FourStepBlock], plan: Plan, blocks: int,
                 width: int, num_classes: int, in_channels: int):
        super().__init__()
        positive(type(self).__name__, blocks=blocks, width=width, num_classes=num_classes, in_channels=in_channels)
        self.stem, self.maxpool = Stem(in_channels, plan.filters, plan.layer), nn.MaxPool2d(2)
        self.blocks = nn.Sequential(*(block(plan.filters if i == 0 else width, width, 1, plan) for i in range(blocks)))
        self.fc = nn.Linear(width, num_classes)
        he_init_fan_in_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(ops.global_avg_pool2d(self.blocks(self.maxpool(self.stem(x)))))


def article_prose_parallel(num_classes=10, in_channels=3, a=0.1, learnable_scale=False, blocks=3, layers=2, filters=64,
                           width=256, kernel_size=3, batch_norm=False):
    """The article's prose network, y = L(x) + a R(x) in each block; 964,618 parameters."""
    plan = plan_of(filters, layers, kernel_size, a, learnable_scale, batch_norm)
    return ArticleProse(ParallelBlock, plan, blocks, width, num_classes, in_channels)


def article_prose(num_classes=10, in_channels=3, a=0.1, learnable_scale=False, blocks=3, layers=2, filters=64,
                  width=256, kernel_size=3, batch_norm=False):
    """The article's prose network in the reading of its formula: article_prose_parallel by its short name."""
    return article_prose_parallel(num_classes, in_channels, a, learnable_scale, blocks, layers, filters, width,
                                  kernel_size, batch_norm)


def article_prose_series(num_classes=10, in_channels=3, a=0.1, learnable_scale=False, blocks=3, layers=2, filters=64,
                         width=256, kernel_size=3, batch_norm=False):
    """The article's prose network, u = L(x), y = u + a R(u) in each block; 1,013,770 parameters."""
    plan = plan_of(filters, layers, kernel_size, a, learnable_scale, batch_norm)
    return ArticleProse(SeriesBlock, plan, blocks, width, num_classes, in_channels)


def article_prose_four_step(num_classes=10, in_channels=3, a=0.1, learnable_scale=False, blocks=3, layers=2,
                            filters=64, width=256, kernel_size=3, batch_norm=False, option="B"):
    """The article's prose network, u = x + L(x), y = u + a R(u) in each block; 1,030,154 parameters with option B."""
    plan = plan_of(filters, layers, kernel_size, a, learnable_scale, batch_norm, option)
    return ArticleProse(FourStepBlock, plan, blocks, width, num_classes, in_channels)


# --- the code ---------------------------------------------------------------------------------------------------------


class ArticleBasicBlock(BasicBlock):
    """BasicBlock with the stride on the second convolution, as in the article's code; (N, C, H, W) -> (N, K, P, Q).

    The first convolution then works on the whole image: the first 64 -> 128 block at 32 x 32 costs 113.2 M
    multiply-adds instead of 56.6 M, its shortcut (2.1 M) aside.
    """

    def __init__(self, C: int, K: int, stride: int = 1, shortcut: nn.Module | None = None):
        super().__init__(C, K, stride, shortcut)
        self.conv1, self.conv2 = conv3x3(C, K), conv3x3(K, K, stride)


ArticleBottleneck = Bottleneck  # the article's too has the stride on its second convolution, which is the 3x3


def _code(block, depths, num_classes, in_channels, option, zero_init_residual):
    """The network of the article's code: 3x3 stem, four stages 64-128-256-512, no max pool."""
    make_block = Residual(block, shortcut_option(OPTIONS, option))
    return ResNet(make_block, depths, IMAGENET_WIDTHS, num_classes, in_channels, True, zero_init_residual)


def article_resnet18(num_classes=10, in_channels=3, option="B", zero_init_residual=False):
    """The article's code, ArticleBasicBlock [2, 2, 2, 2]; 11,173,962 parameters with 10 classes."""
    return _code(ArticleBasicBlock, [2, 2, 2, 2], num_classes, in_channels, option, zero_init_residual)


def article_resnet34(num_classes=10, in_channels=3, option="B", zero_init_residual=False):
    """The article's code, ArticleBasicBlock [3, 4, 6, 3]; 21,282,122 parameters with 10 classes."""
    return _code(ArticleBasicBlock, [3, 4, 6, 3], num_classes, in_channels, option, zero_init_residual)


def article_resnet50(num_classes=10, in_channels=3, option="B", zero_init_residual=False):
    """The article's code, ArticleBottleneck [3, 4, 6, 3]; 23,520,842 parameters with 10 classes."""
    return _code(ArticleBottleneck, [3, 4, 6, 3], num_classes, in_channels, option, zero_init_residual)


NETWORKS = (article_prose, article_prose_parallel, article_prose_series, article_prose_four_step,
            article_resnet18, article_resnet34, article_resnet50)
