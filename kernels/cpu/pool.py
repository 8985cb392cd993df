"""Pooling: each output is made from its window in one go, all channels of a pixel together.

NumPy runs over the whole image once for each place of the window, R*S times to and from memory. Here the window is the
inner loop, so that image and output go through memory once. A pixel's C channels are neighbours (kernels/layout.py):
the innermost loop is over channels, contiguous, and the compiler uses vectors for it.

    each thread
        for output row of its images:                                   N*P rows
            for output pixel q:
                for each place (r, s) of the window inside the image:
                    for channel:    y = max(y, x), index = where it was; or total += x

Cost: N*P*Q*C * R*S comparisons or additions. To and from memory go the image and the output, for max pooling also the
index, which has 8 bytes a value. Backward, max pooling adds each gradient to the pixel that its index names, one image
after the other; average pooling adds up, for each pixel, the gradients of the windows that it lies in.
"""

import numpy as np

from .. import reference
from ..layout import nchw, nhwc
from ..memory import empty
from .jit import compiled
from .threads import split


def max_pool2d(x, kernel, stride, padding, dilation, output):
    """Maximum of each window and its index h*W+w in the image; padding counts as -inf. output = (P, Q)."""
    axes = zip(x.shape[2:], output, kernel, stride, padding, dilation, strict=True)
    return _max_over_windows(x, *(reference.sliding(*axis) for axis in axes))


def adaptive_max_pool2d(x, output):
    """Maximum over a grid of P x Q windows that cover the image, and its index h*W+w. output = (P, Q)."""
    return _max_over_windows(x, *(reference.adaptive(*axis) for axis in zip(x.shape[2:], output, strict=True)))


def _max_over_windows(x, rows_of, columns_of):
    """rows_of (P, R) and columns_of (Q, S): the image's rows and columns in each window, -1 outside (reference.py)."""
    images = nhwc(x)
    N, C, (P, R), (Q, S) = x.shape[0], x.shape[1], rows_of.shape, columns_of.shape
    y, index = empty((N, P, Q, C), x.dtype), empty((N, P, Q, C), np.int64)

    def run(slot, start, stop):
        max_windows(images, rows_of, columns_of, start, stop, y, index)

    split(N * P, run, y.size * R * S / 4)
    return nchw(y), nchw(index)


def gather_hw(x, index):
    """y[n,c,p,q] = x[n,c] at flat position index[n,c,p,q]."""
    (N, C, H, W), (P, Q) = x.shape, index.shape[2:]
    images, positions = nhwc(x).reshape(N, H * W, C), nhwc(index).reshape(N, P * Q, C)
    y = empty(positions.shape, x.dtype)

    def run(slot, start, stop):
        gather(images, positions, start, stop, y)

    split(N, run, y.size)
    return nchw(y.reshape(N, P, Q, C))


def scatter_hw(g, index, x_shape):
    """Adjoint of gather_hw: adds each g[n,c,p,q] to position index[n,c,p,q] of a zero image of shape x_shape."""
    (N, C, H, W), (P, Q) = x_shape, index.shape[2:]
    gradient, positions = nhwc(g).reshape(N, P * Q, C), nhwc(index).reshape(N, P * Q, C)
    dx = empty((N, H * W, C), g.dtype)

    def run(slot, start, stop):
        scatter(gradient, positions, start, stop, dx)

    split(N, run, gradient.size + dx.size / 10)
    return nchw(dx.reshape(N, H, W, C))


def avg_pool2d(x, kernel, stride, padding, output, count_include_pad):
    """Mean of each window; the divisor counts the padding or only the pixels of the image. output = (P, Q)."""
    images = nhwc(x)
    y = empty((x.shape[0], *output, x.shape[1]), x.dtype)
    sizes = reference.window_sizes(x.shape, kernel, stride, padding, output, count_include_pad)[..., 0]

    def run(slot, start, stop):
        mean_windows(images, *kernel, *stride, *padding, sizes, start, stop, y)

    split(len(y) * output[0], run, y.size * kernel[0] * kernel[1] / 3)
    return nchw(y)


def avg_pool2d_input_grad(g, x_shape, kernel, stride, padding, count_include_pad):
    """Adjoint of avg_pool2d: each pixel adds up its share of the gradient of each window that it lies in."""
    N, C, H, W = x_shape
    gradient, dx = nhwc(g), empty((N, H, W, C), g.dtype)
    sizes = reference.window_sizes(x_shape, kernel, stride, padding, g.shape[2:], count_include_pad)[..., 0]

    def run(slot, start, stop):
        spread_windows(gradient, *kernel, *stride, *padding, sizes, start, stop, dx)

    split(N * H, run, dx.size)
    return nchw(dx)


# ---- compiled ----


@compiled
def max_windows(x, rows_of, columns_of, start, stop, y, index):
    """Output rows start..stop of all images, counted together. A later value wins if larger, or NaN.

    The index is kept in 32 bits until the window is done: vectors then hold as many indices as float32.
    """
    W, C = x.shape[2:]
    P, Q = y.shape[1:3]
    best, where = np.empty(C, x.dtype), np.empty(C, np.int32)
    for row in range(start, stop):
        n, p = divmod(row, P)
        for q in range(Q):
            best[:] = -np.inf
            where[:] = -1
            for h in rows_of[p]:
                for w in columns_of[q]:
                    if h < 0 or w < 0:
                        continue
                    position = np.int32(h * W + w)
                    for c in range(C):
                        value = x[n, h, w, c]
                        better = value > best[c] or value != value or where[c] < 0
                        best[c] = value if better else best[c]
                        where[c] = position if better else where[c]
            for c in range(C):
                y[n, p, q, c] = best[c]
                index[n, p, q, c] = where[c]


@compiled
def gather(x, index, start, stop, y):
    """y[n, i, c] = x[n, index[n, i, c], c] for the images start..stop."""
    for n in range(start, stop):
        for i in range(y.shape[1]):
            for c in range(y.shape[2]):
                y[n, i, c] = x[n, index[n, i, c], c]


@compiled
def scatter(g, index, start, stop, dx):
    """dx[n, index[n, i, c], c] += g[n, i, c] for the images start..stop, from zero on."""
    for n in range(start, stop):
        dx[n] = 0
        for i in range(g.shape[1]):
            for c in range(g.shape[2]):
                dx[n, index[n, i, c], c] += g[n, i, c]


@compiled
def mean_windows(x, R, S, stride_h, stride_w, padding_h, padding_w, sizes, start, stop, y):
    """Output rows start..stop of all images, counted together; the sum of a window is kept in float64."""
    H, W, C = x.shape[1:]
    P, Q = y.shape[1:3]
    total = np.empty(C)
    for row in range(start, stop):
        n, p = divmod(row, P)
        top = p * stride_h - padding_h
        for q in range(Q):
            left = q * stride_w - padding_w
            total[:] = 0
            for h in range(max(top, 0), min(top + R, H)):
                for w in range(max(left, 0), min(left + S, W)):
                    for c in range(C):
                        total[c] += x[n, h, w, c]
            for c in range(C):
                y[n, p, q, c] = total[c] / sizes[p, q]


@compiled
def spread_windows(g, R, S, stride_h, stride_w, padding_h, padding_w, sizes, start, stop, dx):
    """Rows start..stop of all images, counted together. Pixel h lies in window p if 0 <= h + padding - p*stride < R."""
    P, Q = g.shape[1:3]
    H, W, C = dx.shape[1:]
    total = np.empty(C)
    for row in range(start, stop):
        n, h = divmod(row, H)
        last_p = (h + padding_h) // stride_h
        first_p = (h + padding_h - R) // stride_h + 1
        for w in range(W):
            last_q = (w + padding_w) // stride_w
            first_q = (w + padding_w - S) // stride_w + 1
            total[:] = 0
            for p in range(min(last_p, P - 1), max(first_p, 0) - 1, -1):
                for q in range(min(last_q, Q - 1), max(first_q, 0) - 1, -1):
                    for c in range(C):
                        total[c] += g[n, p, q, c] / sizes[p, q]
            dx[n, h, w] = total
