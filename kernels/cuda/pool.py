"""Pooling on a GPU: pool.cu's kernels with the arrays that they need, one thread for each value of the result.

The windows are worked out in the kernels, from the shapes: no table goes to the GPU. Nothing here waits for it.
Maxima of other than float32 and float64, integers above all, are the reference's.
"""

import numpy as np

from .. import reference
from ..layout import array_module, nchw, nhwc
from .launch import blocks, empty, launch, type_name
from .manifest import TYPES


def max_pool2d(x, kernel, stride, padding, dilation, output):
    """Maximum of each window and its index h*W+w in the image; padding counts as -inf. output = (P, Q)."""
    if x.dtype.name not in TYPES:
        return reference.max_pool2d(x, kernel, stride, padding, dilation, output)
    return _maximum("max_pool2d", x, output, *kernel, *stride, *padding, *dilation)


def adaptive_max_pool2d(x, output):
    """Maximum over a grid of P x Q windows that cover the image, and its index h*W+w. output = (P, Q)."""
    if x.dtype.name not in TYPES:
        return reference.adaptive_max_pool2d(x, output)
    return _maximum("adaptive_max_pool2d", x, output)


def _maximum(name, x, output, *window):
    images = nhwc(x)
    N, H, W, C = images.shape
    y, index = empty(images, (N, *output, C)), empty(images, (N, *output, C), np.int64)
    _launch(name, y, (images, y, index), C, H, W, *output, *window)
    return nchw(y), nchw(index)


def gather_hw(x, index):
    """y[n,c,p,q] = x[n,c] at flat position index[n,c,p,q]."""
    if x.dtype.name not in TYPES:
        return reference.gather_hw(x, index)
    images, positions = nhwc(x), nhwc(index)
    (_, H, W, C), (_, P, Q, _) = images.shape, positions.shape
    y = empty(images, positions.shape)
    _launch("gather_hw", y, (images, positions, y), C, H * W, P * Q)
    return nchw(y)


def scatter_hw(g, index, x_shape):
    """Adjoint of gather_hw: adds each g[n,c,p,q] to position index[n,c,p,q] of a zero image of shape x_shape."""
    if g.dtype.name not in TYPES:
        return reference.scatter_hw(g, index, x_shape)
    (N, C, H, W), (P, Q) = x_shape, index.shape[2:]
    gradient = nhwc(g)
    dx = array_module(g).zeros((N, H, W, C), g.dtype)
    launch(f"scatter_hw<{type_name(g)}>", (blocks(N * C, 64),), (64,), gradient, nhwc(index), dx, np.uint32(N * C),
           *map(np.int32, (C, H * W, P * Q)))
    return nchw(dx)


def avg_pool2d(x, kernel, stride, padding, output, count_include_pad):
    """Mean of each window; the divisor counts the padding or only the pixels of the image. output = (P, Q)."""
    images = nhwc(x)
    N, H, W, C = images.shape
    y = empty(images, (N, *output, C))
    _launch("avg_pool2d", y, (images, y), C, H, W, *output, *kernel, *stride, *padding, count_include_pad)
    return nchw(y)


def avg_pool2d_input_grad(g, x_shape, kernel, stride, padding, count_include_pad):
    """Adjoint of avg_pool2d: each pixel adds up its share of the gradient of each window that it lies in."""
    (N, C, H, W), gradient = x_shape, nhwc(g)
    dx = empty(gradient, (N, H, W, C))
    _launch("avg_pool2d_input_grad", dx, (gradient, dx), C, H, W, *g.shape[2:], *kernel, *stride, *padding,
            count_include_pad)
    return nchw(dx)


def _launch(name, result, arrays, *sizes):
    """One thread for each value of `result`, one of the arrays."""
    launch(f"{name}<{type_name(result)}>", (blocks(result.size, 256),), (256,), *arrays, np.uint32(result.size),
           *map(np.int32, sizes))
