"""What the CUDA kernels are run with when each is to run once: calls of their host functions, on made-up arrays.

Two scales: the layers of ResNet-20, and two of ResNet-18, for how fast they are; and odd shapes, a few values each, for
the tools that look at every access (compute-sanitizer on a GPU, the emulator without one). The cases of odd shapes
launch every instance in the manifest; a test holds that.

Bytes of a case are those of its inputs and outputs, each once; operations those of the direct convolution.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tinyres.kernels import layout
from tinyres.kernels.cuda import conv
from tinyres.kernels.cuda.dropout import philox_words
from tinyres.kernels.cuda.launch import blocks, launch, type_name
from tinyres.kernels.reference import conv_output_size

Put = Callable[[np.ndarray], Any]  # host array -> array on the device


@dataclass(frozen=True)
class Case:
    """run() calls a host function; bytes: of its inputs and outputs; flops: its multiplications and additions."""

    words: str
    run: Callable[[], object]
    bytes: float
    flops: float = 0.0


@dataclass(frozen=True)
class Convolution:
    """x (N, C, H, W), w (K, C/G, R, S)."""

    C: int
    K: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __str__(self) -> str:
        words = f"{self.kernel[0]}x{self.kernel[1]} {self.C}->{self.K} @ {self.size[0]}x{self.size[1]}"
        words += f", stride {self.stride[0]}" if self.stride != (1, 1) else ""
        return words + (f", {self.groups} groups" if self.groups > 1 else "")


RESNET20 = (Convolution(3, 16, (32, 32)), Convolution(16, 16, (32, 32)), Convolution(16, 32, (32, 32), stride=(2, 2)),
            Convolution(16, 32, (32, 32), (1, 1), (2, 2), (0, 0)), Convolution(32, 32, (16, 16)),
            Convolution(32, 64, (16, 16), stride=(2, 2)), Convolution(64, 64, (8, 8)))
RESNET18 = (Convolution(64, 64, (32, 32)), Convolution(128, 128, (16, 16)))
ODD = (Convolution(3, 5, (7, 9), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), Convolution(1, 1, (1, 1)),
       Convolution(6, 4, (5, 6), (2, 3), groups=2), Convolution(8, 12, (6, 5)), Convolution(4, 4, (3, 3), (1, 1),
                                                                                             padding=(0, 0)))


@dataclass(frozen=True)
class Scale:
    """The shapes of the cases: convolutions, images (C, H, W) of batch norm and pooling, classes of the loss."""

    batch: int
    convolutions: tuple[Convolution, ...]
    images: tuple[tuple[int, int, int], ...]
    classes: tuple[int, ...]
    parameters: tuple[tuple[int, ...], ...]
    stored: tuple[int, int, int, int] = (2, 3, 8, 8)
    padding: int = 1
    groups: int = 128  # of the products: so many blocks at least make a large tile worth while


def resnet20(batch: int) -> Scale:
    """The layers of ResNet-20 with CIFAR's images."""
    weights = [(one.K, one.C, *one.kernel) for one in RESNET20]
    weights += [(16, 16, 3, 3)] * 5 + [(32, 32, 3, 3)] * 4 + [(64, 64, 3, 3)] * 4
    vectors = [(16,)] * 14 + [(32,)] * 14 + [(64,)] * 14
    return Scale(batch, RESNET20 + RESNET18, ((16, 32, 32), (32, 16, 16), (64, 8, 8)), (10, 100),
                 (*weights, *vectors, (10, 64), (10,)), (1000, 3, 32, 32), 4)


def odd() -> Scale:
    """A few values each: sizes that no block of threads and no vector of values divides, and some that they do."""
    return Scale(2, ODD, ((5, 3, 7), (8, 4, 4), (1, 1, 1)), (3, 37), ((5, 3, 3, 2), (7,), (1,), (33, 4)),
                 (3, 3, 5, 7), 2)


def cases(put: Put, dtype: str, batch: int | None = None) -> Iterator[Case]:
    """All cases in a dtype, "float32" or "float64": of ResNet-20 with so many images, or with None of odd shapes.

    put: brings an array to where the kernels are to run.
    """
    at = Arrays(put, np.dtype(dtype), odd() if batch is None else resnet20(batch))
    for make in (convolutions, products, norms, pools, losses, optimizers, dropouts, augmentations):
        yield from make(at)


@dataclass
class Arrays:
    """Random arrays of a dtype where the kernels are to run; cuda, im2col: the modules of both kernel sets."""

    put: Put
    dtype: np.dtype
    scale: Scale
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    cuda: Any = field(default_factory=lambda: importlib.import_module("tinyres.kernels.cuda"))
    im2col: Any = field(default_factory=lambda: importlib.import_module("tinyres.kernels.cuda.im2col"))
    product: Any = field(default_factory=lambda: importlib.import_module("tinyres.kernels.cuda.matmul"))

    def values(self, *shape: int, power: int = 1) -> Any:
        """Normal random numbers, or their squares; of four axes channels-last."""
        drawn = (self.rng.standard_normal(shape) ** power).astype(self.dtype)
        return self.put(layout.channels_last(drawn) if drawn.ndim == 4 else drawn)

    def size(self, *arrays: Any) -> int:
        return sum(a.nbytes for a in arrays if a is not None)


def convolutions(at: Arrays) -> Iterator[Case]:
    """Forward and both gradients, by our own product and by im2col with the library's."""
    N = at.scale.batch
    for one in at.scale.convolutions:
        x, w = at.values(N, one.C, *one.size), at.values(one.K, one.C // one.groups, *one.kernel)
        options = (one.stride, one.padding, one.dilation, one.groups)
        P, Q = conv_output_size(x.shape, one.kernel, *options[:3])
        g = at.values(N, one.K, P, Q)
        flops, moved = 2.0 * g.size * w[0].size, at.size(x, w, g)
        for name, kernel_set in (("", at.cuda), (", im2col", at.im2col)):
            calls = {"conv2d": (x, w), "conv2d_input_grad": (g, w, x.shape), "conv2d_weight_grad": (x, g, w.shape)}
            for function, args in calls.items():
                if hasattr(kernel_set, function):
                    yield Case(f"{function} {one}{name}", _call(kernel_set, function, *args, *options), moved, flops)
            if hasattr(kernel_set, "conv2d_input_grad_add"):
                run = _call(kernel_set, "conv2d_input_grad_add", at.values(*x.shape), g, w, *options)
                yield Case(f"conv2d_input_grad_add {one}{name}", run, moved + at.size(x), flops)


def products(at: Arrays) -> Iterator[Case]:
    """Our matrix products in each tile, of many groups with few rows; and the col2im of the lesson, which scatters."""
    groups, rows, inner = at.scale.groups, 3, 5
    for columns in (16, 50, 100):
        a, b, c = at.values(groups, rows, inner), at.values(groups, columns, inner), at.values(groups, rows, columns)
        flops, moved, words = 2.0 * groups * rows * columns * inner, at.size(a, b, c), f"{groups}x{rows}x{columns}"
        yield Case(f"a b^T {words}", _call(at.product, "a_bt", a, b, c, groups), moved, flops)
        b = at.values(groups, inner, columns)
        yield Case(f"a b {words}", _call(at.product, "a_b", a, b, c, groups), moved, flops)
        a, b, c = at.values(inner, rows), at.values(inner, columns), at.values(1, columns, rows)
        yield Case(f"b^T a {rows}x{columns}", _call(at.product, "sum_bt_a", [(a, b)], c, 1), at.size(a, b, c),
                   2.0 * rows * columns * inner)
    one, N = at.scale.convolutions[0], at.scale.batch
    layer = conv.Layer.of((N, one.C, *one.size), (one.K, one.C, *one.kernel), one.stride, one.padding, one.dilation, 1)
    columns, image = at.values(1, N * layer.P * layer.Q, layer.R * layer.S * layer.C), at.values(N, *one.size, one.C)
    sizes = map(np.int32, (N, *layer[1:8], *one.stride, *one.padding, *one.dilation, 1))
    run = partial(launch, f"col2im_atomic<{type_name(columns)}>", (blocks(columns.size, 256), 1), (256,), columns,
                  image.reshape(-1), *sizes)
    yield Case(f"col2im_atomic {one}", run, at.size(columns, image))


def norms(at: Arrays) -> Iterator[Case]:
    """Batch norm with and without what follows it in a block."""
    for C, H, W in at.scale.images:
        x, g, y, residual = (at.values(at.scale.batch, C, H, W) for _ in range(4))
        a, b, d = (at.values(C) for _ in range(3))
        mean = at.put(at.rng.standard_normal(C))
        words = f"{C} @ {H}x{W}"
        yield Case(f"batch_norm_stats {words}", _call(at.cuda, "batch_norm_stats", x), at.size(x))
        for added in (None, residual):
            for relu in (False, True):
                tail = " + residual" * (added is not None) + " + ReLU" * relu
                yield Case(f"batch_norm_apply{tail} {words}",
                           _call(at.cuda, "batch_norm_apply", x, a, b, added, relu), at.size(x, x, added))
                yield Case(f"add_bias{tail} {words}", _call(at.cuda, "add_bias", y, a, added, relu),
                           at.size(y, y, added))
        for out in (None, y):
            tail = " + ReLU" * (out is not None)
            yield Case(f"batch_norm_grad_sums{tail} {words}", _call(at.cuda, "batch_norm_grad_sums", g, x, mean, out),
                       at.size(g, x, out))
            for wanted in (False, True):
                yield Case(f"batch_norm_input_grad{tail}{' + residual' * wanted} {words}",
                           _call(at.cuda, "batch_norm_input_grad", g, x, a, b, d, out, wanted),
                           at.size(g, x, out, x) + at.size(x) * (wanted and out is not None))


def pools(at: Arrays) -> Iterator[Case]:
    """Pooling, 3x3 with stride 2 as in the stem for large images, and global as at the end of every network."""
    kernel, stride, padding, dilation = (3, 3), (2, 2), (1, 1), (1, 1)
    for C, H, W in at.scale.images:
        x, words = at.values(at.scale.batch, C, H, W), f"{C} @ {H}x{W}"
        output = conv_output_size(x.shape, kernel, stride, padding, dilation)
        g, grid = at.values(at.scale.batch, C, *output), (min(2, H), min(2, W))
        index = at.put(layout.channels_last(at.rng.integers(0, H * W, g.shape)))
        yield Case(f"max_pool2d {words}", _call(at.cuda, "max_pool2d", x, kernel, stride, padding, dilation, output),
                   at.size(x, g, index))
        yield Case(f"adaptive_max_pool2d {words}", _call(at.cuda, "adaptive_max_pool2d", x, grid), at.size(x))
        yield Case(f"gather_hw {words}", _call(at.cuda, "gather_hw", x, index), at.size(g, g, index))
        yield Case(f"scatter_hw {words}", _call(at.cuda, "scatter_hw", g, index, x.shape), at.size(g, index, x))
        for include in (True, False):
            yield Case(f"avg_pool2d {words}{', with padding' * include}",
                       _call(at.cuda, "avg_pool2d", x, kernel, stride, padding, output, include), at.size(x, g))
            yield Case(f"avg_pool2d_input_grad {words}{', with padding' * include}",
                       _call(at.cuda, "avg_pool2d_input_grad", g, x.shape, kernel, stride, padding, include),
                       at.size(x, g))
        mean = at.values(at.scale.batch, C, 1, 1)
        whole = ((H, W), (H, W), (0, 0))
        yield Case(f"global average {words}", _call(at.cuda, "avg_pool2d", x, *whole, (1, 1), True), at.size(x, mean))
        yield Case(f"global average's gradient {words}",
                   _call(at.cuda, "avg_pool2d_input_grad", mean, x.shape, *whole, True), at.size(x, mean))


def losses(at: Arrays) -> Iterator[Case]:
    """Cross-entropy and its gradient."""
    N = at.scale.batch
    for K in at.scale.classes:
        logits, g, labels = at.values(N, K), at.values(N), at.put(at.rng.integers(0, K, N))
        yield Case(f"softmax_cross_entropy {N}x{K}", _call(at.cuda, "softmax_cross_entropy", logits, labels, 0.1),
                   at.size(logits, logits, labels, g))
        yield Case(f"softmax_cross_entropy_grad {N}x{K}",
                   _call(at.cuda, "softmax_cross_entropy_grad", g, logits, labels, 0.1),
                   at.size(logits, logits, labels, g))


def optimizers(at: Arrays) -> Iterator[Case]:
    """A step of all parameters at once."""
    shapes = at.scale.parameters
    p, g, v, m = ([at.values(*shape) for shape in shapes] for _ in range(4))
    square = [at.values(*shape, power=2) for shape in shapes]
    size, none, few = at.size(*p), [None] * len(p), (1e-3, 0.9, 1e-4)
    yield Case("sgd without momentum", _call(at.cuda, "sgd", p, g, none, 1e-3, 0.0, 1e-4, False), 3 * size)
    yield Case("sgd", _call(at.cuda, "sgd", p, g, v, *few, False), 5 * size)
    yield Case("sgd, Nesterov", _call(at.cuda, "sgd", p, g, v, *few, True), 5 * size)
    yield Case("adam", _call(at.cuda, "adam", p, g, m, square, [1] * len(p), 1e-3, (0.9, 0.999), 1e-8, 0.0, 1.0),
               7 * size)


def dropouts(at: Arrays) -> Iterator[Case]:
    """Dropout, its own adjoint; and the bare random words."""
    for C, H, W in at.scale.images:
        x = at.values(at.scale.batch, C, H, W)
        yield Case(f"dropout {C} @ {H}x{W}", _call(at.cuda, "dropout", x, 0.3, 7), at.size(x, x))
    yield Case("random words", partial(philox_words, x, (1, 2), 3, 5, at.scale.batch * 97), at.scale.batch * 97 * 8.0)


def augmentations(at: Arrays) -> Iterator[Case]:
    """A batch of stored images, cropped, mirrored, with a square cut out, normalised."""
    N, (count, C, H, W) = at.scale.batch, at.scale.stored
    index = at.put(at.rng.integers(0, count, N))
    factor, offset = (at.put(at.rng.standard_normal(C).astype(np.float32)) for _ in range(2))
    for kind in (np.uint8, at.dtype):
        stored = at.put(layout.channels_last(at.rng.integers(0, 255, at.scale.stored).astype(kind)))
        fill = at.put(np.zeros(C, kind))
        options = ((0, at.scale.padding), 1, (2, max(1, H // 4), fill))
        for words, (crop, flip, cutout) in ((", plain", (None, None, None)), ("", options)):
            run = _call(at.cuda, "augment", stored, index, factor, offset, (1, 2), crop, flip, cutout)
            yield Case(f"augment {np.dtype(kind)}{words}", run, N * C * H * W * (np.dtype(kind).itemsize + 4))


def _call(kernel_set: Any, function: str, *args: Any) -> Callable[[], object]:
    return lambda: getattr(kernel_set, function)(*args)
