"""Convolution on the GPU: im2col, one matrix product, for the input's gradient col2im. The idea is in ../im2col.py.

                                x (N,C,H,W)            in memory (N,H,W,C)
                                   | im2col                                            per chunk of images
    forward                     columns (G, M, L)  ---- times w^T --->  y (M, K)       M = images*P*Q pixels
    input's gradient            columns            <--- g times w ----  g              L = R*S*C/G
                                   | col2im
                                dx
    weights' gradient           columns  --- g^T times, added up over all pixels --->  dw (K, L)

The columns take R*S times the memory of the image, so they are made for a chunk of images at a time, in one buffer of
at most CHUNK_BYTES (or for one image, if that takes more). Where the kernel is one pixel, with stride 1 and no padding,
the image is already the matrix of its columns: nothing is copied either way.

What multiplies is a parameter: matmul.py, our own kernel, or im2col.Library. No result depends on the order
in which blocks or threads run.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..layout import is_channels_last, nchw, nhwc
from ..reference import conv_output_size
from . import matmul
from .launch import blocks, empty, launch, type_name

CHUNK_BYTES = 256 << 20  # of columns; ResNet-20 with 128 images takes at most 76 MB, so one chunk
PIXELS = 4  # as in im2col.cu


class Convolutions:
    """The four kernels of convolution, with the functions of `product` as matrix products."""

    def __init__(self, product):
        self.product = product

    def conv2d(self, x, w, stride, padding, dilation, groups):
        """y (N, K, P, Q) = columns w^T."""
        layer = Layer.of(x.shape, w.shape, stride, padding, dilation, groups)
        images, weights = nhwc(x), layer.weight_matrices(nhwc(w))
        y = empty(x, (layer.N, layer.P, layer.Q, layer.K))
        for first, last, columns in layer.chunks(images):
            layer.im2col(images[first:last], columns)
            self.product.a_bt(columns, weights, y[first:last].reshape(-1, layer.K), groups)
        return nchw(y)

    def conv2d_input_grad(self, g, w, x_shape, stride, padding, dilation, groups):
        """dx (N, C, H, W) = col2im(g w)."""
        N, C, H, W = x_shape
        dx = nchw(empty(g, (N, H, W, C)))
        self._input_grad(dx, g, w, stride, padding, dilation, groups, add=False)
        return dx

    def conv2d_input_grad_add(self, total, g, w, stride, padding, dilation, groups):
        """total (N, C, H, W) += dx, which takes no memory of its own, unless total is not channels-last."""
        if is_channels_last(total):
            self._input_grad(total, g, w, stride, padding, dilation, groups, add=True)
        else:
            total += self.conv2d_input_grad(g, w, total.shape, stride, padding, dilation, groups)

    def _input_grad(self, dx, g, w, stride, padding, dilation, groups, add):
        """Writes dx, or adds to it; it is channels-last."""
        layer = Layer.of(dx.shape, w.shape, stride, padding, dilation, groups)
        gradient, weights, images = nhwc(g), layer.weight_matrices(nhwc(w)), nhwc(dx)
        for first, last, columns in layer.chunks(images):
            direct = layer.is_its_own_matrix  # then the columns are the memory of dx itself
            self.product.a_b(gradient[first:last].reshape(-1, layer.K), weights, columns, groups, add=add and direct)
            layer.col2im(columns, images[first:last], add)

    def conv2d_weight_grad(self, x, g, w_shape, stride, padding, dilation, groups):
        """dw (K, C/G, R, S) = g^T columns."""
        layer = Layer.of(x.shape, w_shape, stride, padding, dilation, groups)
        images, gradient = nhwc(x), nhwc(g)
        dw = empty(x, (layer.K, layer.R, layer.S, layer.C // groups))

        def pairs():
            for first, last, columns in layer.chunks(images):
                layer.im2col(images[first:last], columns)
                yield columns, gradient[first:last].reshape(-1, layer.K)

        self.product.sum_bt_a(pairs(), layer.weight_matrices(dw), groups)
        return nchw(dw)


class Layer(NamedTuple):
    """A convolution's sizes, in the order in which the kernels of im2col.cu take them; K besides."""

    N: int
    C: int
    H: int
    W: int
    P: int
    Q: int
    R: int
    S: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    K: int

    @classmethod
    def of(cls, x_shape, w_shape, stride, padding, dilation, groups):
        (N, C, H, W), (K, _, R, S) = x_shape, w_shape
        P, Q = conv_output_size(x_shape, (R, S), stride, padding, dilation)
        return cls(N, C, H, W, P, Q, R, S, stride, padding, dilation, groups, K)

    @property
    def is_its_own_matrix(self):
        """Whether the image, a row for each pixel, is the matrix of its columns."""
        return (self.R, self.S, *self.stride, *self.padding) == (1, 1, 1, 1, 0, 0)

    def weight_matrices(self, w):
        """(K, R, S, C/G) -> (G, K/G, R*S*C/G), a view."""
        return w.reshape(self.groups, self.K // self.groups, self.R * self.S * (self.C // self.groups))

    def chunks(self, images):
        """Yields (first, last, columns): a chunk of the images and the memory for its columns, or those images."""
        M, L = self.P * self.Q, self.R * self.S * (self.C // self.groups)
        fits = max(1, CHUNK_BYTES // max(1, self.groups * M * L * images.dtype.itemsize))
        buffer = None if self.is_its_own_matrix else empty(images, (min(fits, self.N) * self.groups * M * L,))
        for first in range(0, self.N, fits):
            last = min(first + fits, self.N)
            if buffer is None:
                yield first, last, images[first:last].reshape(-1, self.C)
            else:
                rows = (last - first) * M
                yield first, last, buffer[: self.groups * rows * L].reshape(self.groups, rows, L)

    def im2col(self, images, columns):
        """Fills columns (G, M, L) from images (chunk, H, W, C)."""
        if self.is_its_own_matrix:
            return
        V = self._together(images)
        threads = len(images) * self.P * blocks(self.Q, PIXELS) * self.R * self.S * (self.C // self.groups // V)
        launch(f"im2col<{type_name(images)}, {V}>", (blocks(threads, 256), self.groups), (256,), images, columns,
               *self._numbers(len(images)))

    def col2im(self, columns, images, add):
        """Writes the sums of the columns that each pixel is in to images (chunk, H, W, C), or adds them to it."""
        if self.is_its_own_matrix:
            return
        V = self._together(images)
        launch(f"col2im<{type_name(images)}, {V}>", (blocks(images.size // V, 256),), (256,), columns, images,
               *self._numbers(len(images)), np.int32(add))

    def _together(self, images):
        """How many channels a thread moves at once: 16 bytes of them, where each group has a multiple of that."""
        V = 16 // images.dtype.itemsize
        return V if self.C // self.groups % V == 0 else 1

    def _numbers(self, images):
        """The kernels' sizes, for a chunk of so many images."""
        sizes = images, *self[1:8], *self.stride, *self.padding, *self.dilation, self.groups
        return map(np.int32, sizes)


_ours = Convolutions(matmul)
conv2d, conv2d_input_grad = _ours.conv2d, _ours.conv2d_input_grad
conv2d_input_grad_add, conv2d_weight_grad = _ours.conv2d_input_grad_add, _ours.conv2d_weight_grad
