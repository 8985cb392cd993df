"""Mistakes with labels, losses, convolutions and normalisation."""

import numpy as np
from error_case import chapter, floats, leaf

import tinyres as tr
from tinyres import models, nn, ops

case = chapter("Labels and losses")


@case("Labels out of range", ValueError, "cross_entropy", "0..2", "0 to 3", fix="check num_classes")
def _(folder):
    logits, labels = leaf(2, 3), np.array([0, 3])
    return lambda: tr.cross_entropy(logits, labels), logits, labels


@case("Labels that are floats", TypeError, "cross_entropy", "float32 (2,)", "integers", fix="labels.astype('int64')")
def _(folder):
    logits, labels = leaf(2, 3), np.array([0, 1], np.float32)
    return lambda: tr.cross_entropy(logits, labels), logits, labels


@case("Labels one-hot in integers", ValueError, "cross_entropy", "shape (2,)", "got (2, 3)", fix="labels.argmax(1)")
def _(folder):
    logits, labels = leaf(2, 3), np.eye(3, dtype=int)[[0, 1]]
    return lambda: tr.cross_entropy(logits, labels), logits, labels


@case("Labels in a column", ValueError, "cross_entropy", "shape (2,)", "got (2, 1)", fix="labels[:, 0]")
def _(folder):
    logits, labels = leaf(2, 3), np.array([[0], [1]])
    return lambda: tr.cross_entropy(logits, labels), logits, labels


@case("Another number of labels than of samples", ValueError, "cross_entropy", "(2, 3)", "got (3,)",
      fix="give one label a sample")
def _(folder):
    logits, labels = leaf(2, 3), np.array([0, 1, 2])
    return lambda: tr.cross_entropy(logits, labels), logits, labels


@case("Class probabilities that do not add up to 1", ValueError, "cross_entropy", "off by 2", "add up to 1",
      fix="divide by the sum")
def _(folder):
    logits, labels = leaf(2, 3), np.ones((2, 3), np.float32)
    return lambda: tr.cross_entropy(logits, labels), logits, labels


@case("Labels and logits exchanged", ValueError, "cross_entropy", "(N, K)", "got (2,)", fix="the logits come first")
def _(folder):
    logits, labels = leaf(2, 3), np.array([0, 1])
    return lambda: tr.cross_entropy(labels, logits), logits, labels


@case("The loss of an empty batch", ValueError, "cross_entropy", "(N, K)", "got (0, 3)", fix="leave out empty batches")
def _(folder):
    logits, labels = leaf(0, 3), np.zeros(0, int)
    return lambda: tr.cross_entropy(logits, labels), logits, labels


@case("Label smoothing beyond 1", ValueError, "cross_entropy: label_smoothing", "got 1.5", fix="between 0 and 1")
def _(folder):
    logits, labels = leaf(2, 3), np.array([0, 1])
    return lambda: tr.cross_entropy(logits, labels, 1.5), logits, labels


@case("A reduction that is not there", ValueError, "cross_entropy: reduction", "got 'avg'",
      fix="'mean', 'sum' or 'none'")
def _(folder):
    logits, labels = leaf(2, 3), np.array([0, 1])
    return lambda: tr.cross_entropy(logits, labels, reduction="avg"), logits, labels


@case("Predictions in a column, targets in a row", ValueError, "mse_loss", "(4, 1)", "(4,)", fix="reshape one")
def _(folder):
    x, y = leaf(4, 1), leaf(4)
    return lambda: tr.mse_loss(x, y), x, y


case = chapter("Convolution and pooling")


@case("An image without a batch dimension", ValueError, "conv2d", "(3, 8, 8)", "(N, C, H, W)", fix="x[None]")
def _(folder):
    x, model = floats(3, 8, 8), models.resnet8()
    return lambda: model(x), x, model


@case("Images with the channels last", ValueError, "conv2d", "(2, 8, 8, 3)", "takes 3", fix="transpose(0, 3, 1, 2)")
def _(folder):
    x, model = floats(2, 8, 8, 3), models.resnet8()
    return lambda: model(x), x, model


@case("Grey images for a network of colour", ValueError, "conv2d", "(2, 1, 8, 8)", "takes 3", fix="in_channels=1")
def _(folder):
    x, model = floats(2, 1, 8, 8), models.resnet8()
    return lambda: model(x), x, model


@case("A batch (x, y) given whole to a network", TypeError, "conv2d: input", "tuple", "a Tensor or an array",
      fix="unpack it first")
def _(folder):
    batch, model = (floats(2, 3, 8, 8), np.array([0, 1])), models.resnet8()
    return lambda: model(batch), batch, model


@case("An empty batch through a network", ValueError, "conv2d", "(0, 3, 8, 8)", "at least one image",
      fix="leave out empty batches")
def _(folder):
    x, model = floats(0, 3, 8, 8), models.resnet8()
    return lambda: model(x), x, model


@case("A kernel larger than the padded image", ValueError, "conv2d", "width 5", "2 + 2*1", fix="pad more")
def _(folder):
    x, w = leaf(1, 3, 8, 2), leaf(4, 3, 3, 5)
    return lambda: ops.conv2d(x, w, padding=1), x, w


@case("A stride of 0", ValueError, "Conv2d: stride", "got 0", fix="at least 1")
def _(folder):
    return lambda: nn.Conv2d(3, 4, 3, stride=0),


@case("A fractional stride", ValueError, "conv2d: stride", "got 1.5", fix="a pair of integers")
def _(folder):
    x, w = leaf(1, 3, 8, 8), leaf(4, 3, 3, 3)
    return lambda: ops.conv2d(x, w, stride=1.5), x, w


@case("True where a number is meant", ValueError, "Conv2d: padding", "got True", fix="an int or a pair")
def _(folder):
    return lambda: nn.Conv2d(3, 4, 3, padding=True),


@case("Padding below 0", ValueError, "conv2d: padding", "got -1", fix="at least 0")
def _(folder):
    x, w = leaf(1, 3, 8, 8), leaf(4, 3, 3, 3)
    return lambda: ops.conv2d(x, w, padding=-1), x, w


@case("Padding by a word that is not known", ValueError, "Conv2d: padding", "got 'smae'", fix="'same' or 'valid'")
def _(folder):
    return lambda: nn.Conv2d(3, 4, 3, padding="smae"),


@case("Same-padding with a stride", ValueError, "Conv2d: padding='same'", "stride (2, 2)", "needs stride 1",
      fix="give padding as numbers")
def _(folder):
    return lambda: nn.Conv2d(3, 4, 3, stride=2, padding="same"),


@case("Groups that do not divide the channels", ValueError, "Conv2d: groups", "groups=2", "3 and 4 channels",
      fix="must divide")
def _(folder):
    return lambda: nn.Conv2d(3, 4, 3, groups=2),


@case("A bias of another length", ValueError, "conv2d: bias", "(3,)", "shape (4,)", fix="one per output channel")
def _(folder):
    x, w, b = leaf(1, 3, 8, 8), leaf(4, 3, 3, 3), leaf(3)
    return lambda: ops.conv2d(x, w, b), x, w, b


@case("Output padding of a whole stride", ValueError, "conv_transpose2d: output_padding", "(2, 2)", "stride (2, 2)",
      fix="leave it 0")
def _(folder):
    x, layer = floats(1, 3, 4, 4), nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=2)
    return lambda: layer(x), x, layer


@case("A transposed convolution padded to nothing", ValueError, "conv_transpose2d", "padding (4, 4)",
      "empty output", fix="pad less")
def _(folder):
    x, w = leaf(1, 3, 4, 4), leaf(3, 4, 3, 3)
    return lambda: ops.conv_transpose2d(x, w, padding=4), x, w


@case("A pooling window larger than the image", ValueError, "max_pool2d", "(9, 9)", "(2, 3, 8, 8)",
      fix="smaller window")
def _(folder):
    x, layer = floats(2, 3, 8, 8), nn.MaxPool2d(9)
    return lambda: layer(x), x, layer


@case("Pooling padded by more than half its window", ValueError, "avg_pool2d: padding", "(2, 2)",
      "kernel_size (2, 2)", fix="at most half")
def _(folder):
    x = leaf(2, 3, 8, 8)
    return lambda: ops.avg_pool2d(x, 2, padding=2), x


@case("A pooling layer of size 0", ValueError, "AdaptiveAvgPool2d: output_size", "got 0", fix="at least 1")
def _(folder):
    return lambda: nn.AdaptiveAvgPool2d(0),


case = chapter("Normalisation and dropout")


@case("Batch norm of other channels", ValueError, "batch_norm", "shape (4,)", "(2, 3, 8, 8)", fix="expected (3,)")
def _(folder):
    x, layer = floats(2, 3, 8, 8), nn.BatchNorm2d(4)
    return lambda: layer(x), x, layer


@case("Batch norm of one value a channel", ValueError, "batch_norm", "(1, 64, 1, 1)", "at least 2",
      fix="larger batch or eval()")
def _(folder):
    x, model = floats(1, 64, 1, 1), nn.BatchNorm2d(64)
    return lambda: model(x), x, model


@case("Batch norm of another number of dimensions", ValueError, "BatchNorm2d", "(2, 3, 4)", "4-D", fix="BatchNorm1d")
def _(folder):
    x, layer = floats(2, 3, 4), nn.BatchNorm2d(3)
    return lambda: layer(x), x, layer


@case("Batch norm without statistics to use", ValueError, "batch_norm", "running_mean and running_var", "got none",
      fix="training=True")
def _(folder):
    x = leaf(2, 3)
    return lambda: ops.batch_norm(x), x


@case("A momentum that is not a number", ValueError, "BatchNorm2d: momentum", "got nan", "[0, 1]",
      fix="None for the average")
def _(folder):
    return lambda: nn.BatchNorm2d(3, momentum=float("nan")),


@case("A negative eps", ValueError, "BatchNorm2d: eps", "got -1e-05", "not negative", fix="like 1e-5")
def _(folder):
    return lambda: nn.BatchNorm2d(3, eps=-1e-5),


@case("A shortcut that keeps a shape which the branch changes", ValueError, "batch_norm", "(2, 16, 8, 8)",
      "(2, 32, 4, 4)", fix="its shortcut must change it too")
def _(folder):
    x, block = floats(2, 16, 8, 8), models.blocks.BasicBlock(16, 32, 2, shortcut=nn.Identity()).eval()
    return lambda: block(x), x, block


@case("Dropout of everything", ValueError, "Dropout: p", "got 1.0", "[0, 1)", fix="the share that is zeroed")
def _(folder):
    return lambda: nn.Dropout(1.0),
