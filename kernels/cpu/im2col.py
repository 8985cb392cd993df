"""Convolution by im2col in blocks that fit a cache: Numba lays out the windows, BLAS multiplies.

The idea of kernels/im2col.py, with its one fault mended. There the whole column matrix is written to memory and read
again, R*S times the size of the image. Here each thread lays out some output rows at a time, into a scratch that stays
in its cache, multiplies at once, and reuses the scratch:

    each thread
        for block of output rows (n, p):                  columns are (G, pixels of the block, R*S*C/G)
            columns = windows of the block                Numba, copy_windows
            Y[block] = columns @ W^T                      BLAS, one thread; one product per group
        or  columns = dY[block] @ W; dX += columns        the input gradient; Numba, add_windows
        or  dW[slot] += dY[block]^T @ columns             the weight gradient

W (G, K/G, R*S*C/G), Y and dY (G, pixels, K/G) are views of the weights and the outputs. Work is cut by output rows, for
the input gradient by images, because neighbouring rows add to the same pixels.

Cost of each function: N*P*Q * K * R*S*C/G multiply-adds. To and from memory go the image, the output and the weights,
about once each; within the cache the columns, N*P*Q * R*S*C values, written once and read once. A 1x1 convolution with
stride 1 and no padding needs no columns: its image already is that matrix.
"""

from collections import namedtuple

import numpy as np

from ..layout import nchw, nhwc
from ..reference import conv_output_size
from .jit import compiled, inlined
from .threads import one_blas_thread, scratch, slots, split

# Columns in one block. A second-level cache would like less. But between Numba and BLAS a thread is back in Python, and
# when two meet there one waits for the other, some 50 microseconds: a block must be worth many times that.
BLOCK_BYTES = 1536 * 1024

# Where the windows lie. Plain integers, so that compiled code can take it as it is.
Windows = namedtuple("Windows", "G P Q R S stride_h stride_w pad_h pad_w dilation_h dilation_w")


def conv2d(x, w, stride, padding, dilation, groups):
    """Y = columns(x) W^T, a block of output rows at a time."""
    at = _windows(x.shape, w.shape, stride, padding, dilation, groups)
    images, weights = nhwc(x), _weight_matrix(w, groups)
    y = np.empty((x.shape[0], at.P, at.Q, w.shape[0]), x.dtype)

    def run(slot, start, stop):
        for first, last in _blocks(start, stop, weights, at):
            columns = _columns(images, first, last, at)
            np.matmul(columns, weights.swapaxes(1, 2), out=_pixels(y, first, last, at))

    with one_blas_thread():
        split(y.shape[0] * at.P, run, _cost(y, weights))
    return nchw(y)


def conv2d_input_grad(g, w, x_shape, stride, padding, dilation, groups):
    """dX = add_windows(dY W), a block of output rows at a time."""
    N, C, H, W = x_shape
    at = _windows(x_shape, w.shape, stride, padding, dilation, groups)
    gradient, weights = nhwc(g), _weight_matrix(w, groups)
    dx = np.zeros((N, H, W, C), g.dtype)

    def run(slot, start, stop):
        for first, last in _blocks(start * at.P, stop * at.P, weights, at):
            if _is_pointwise(at):
                np.matmul(_pixels(gradient, first, last, at), weights, out=_pixels(dx, first, last, at))
                continue
            columns = scratch((groups, (last - first) * at.Q, weights.shape[2]), g.dtype)
            np.matmul(_pixels(gradient, first, last, at), weights, out=columns)
            add_windows(columns, dx, first, at)

    with one_blas_thread():
        split(N, run, _cost(gradient, weights))
    return nchw(dx)


def conv2d_weight_grad(x, g, w_shape, stride, padding, dilation, groups):
    """dW = dY^T columns(x): each thread sums over its blocks, then the sums of all threads are added in their order."""
    K, channels, R, S = w_shape
    at = _windows(x.shape, w_shape, stride, padding, dilation, groups)
    images, gradient = nhwc(x), nhwc(g)
    rows = x.shape[0] * at.P
    weights = np.empty((groups, K // groups, R * S * channels), x.dtype)
    cost = _cost(gradient, weights)
    sums = np.zeros((slots(rows, cost), *weights.shape), x.dtype)

    def run(slot, start, stop):
        product = np.empty_like(weights)
        # Adding a product to the sum costs as much as writing a block of that size: let no block be smaller.
        for first, last in _blocks(start, stop, weights, at, at_least=product.nbytes):
            columns = _columns(images, first, last, at)
            np.matmul(_pixels(gradient, first, last, at).swapaxes(1, 2), columns, out=product)
            sums[slot] += product

    with one_blas_thread():
        split(rows, run, cost)
    for other in sums[1:]:
        sums[0] += other
    return nchw(sums[0].reshape(K, R, S, channels))


# ---- the pieces -----------------------------------------------------------------------------------------------------


def _windows(x_shape, w_shape, stride, padding, dilation, groups):
    P, Q = conv_output_size(x_shape, w_shape[2:], stride, padding, dilation)
    return Windows(groups, P, Q, *w_shape[2:], *stride, *padding, *dilation)


def _is_pointwise(at):
    """Whether each output pixel sees exactly the input pixel at its own place."""
    return at[3:9] == (1, 1, 1, 1, 0, 0)


def _weight_matrix(w, groups):
    """(K, C/G, R, S) -> (G, K/G, R*S*C/G), a view of channels-last weights."""
    return nhwc(w).reshape(groups, w.shape[0] // groups, -1)


def _pixels(images, first, last, at):
    """Output rows first..last of (N, P, Q, C) as a view (G, pixels, C/G)."""
    C = images.shape[3]
    return images.reshape(-1, C)[first * at.Q : last * at.Q].reshape(-1, at.G, C // at.G).swapaxes(0, 1)


def _blocks(start, stop, weights, at, at_least=0):
    """Cuts output rows start..stop into (first, last) ranges whose columns fill BLOCK_BYTES; 1x1 needs no cut."""
    row_bytes = at.G * at.Q * weights.shape[2] * weights.itemsize
    step = stop - start if _is_pointwise(at) else max(1, max(BLOCK_BYTES, at_least) // row_bytes)
    for first in range(start, stop, step):
        yield first, min(first + step, stop)


def _columns(images, first, last, at):
    """The columns of output rows first..last: in the thread's scratch, for 1x1 a view of the images."""
    if _is_pointwise(at):
        return _pixels(images, first, last, at)
    columns = scratch((at.G, (last - first) * at.Q, at.R * at.S * images.shape[3] // at.G), images.dtype)
    copy_windows(images, columns, first, at)
    return columns


def _cost(y, weights):
    """Nanoseconds on one thread, roughly: 40 multiply-adds, or 4 values of the column matrix, in each."""
    pixels = y.size // y.shape[3]
    return pixels * (weights.size / 40 + weights.shape[0] * weights.shape[2] / 4)


# The two kernels below visit taps in runs that are neighbours in memory on both sides: all S taps of a kernel row when
# they are not dilated and there is one group, else one tap. A run that lies in the image is one loop over contiguous
# values, which the compiler turns into vector moves; at the edges each tap is looked at by itself.


@compiled
def copy_windows(images, columns, first, at):
    """columns[group, (row, q), (r, s, c)] = images[n, h, w, channel c of the group], (n, p) = first + row."""
    N, H, W, C = images.shape
    pixels, width = columns.shape[1:]
    source, target = images.reshape(-1), columns.reshape(-1)
    c, taps = C // at.G, _taps_in_run(at)
    for row in range(pixels // at.Q):
        n, p = divmod(first + row, at.P)
        for group in range(at.G):
            for r in range(at.R):
                h = p * at.stride_h - at.pad_h + r * at.dilation_h
                for s in range(0, at.S, taps):
                    for q in range(at.Q):
                        w = q * at.stride_w - at.pad_w + s * at.dilation_w
                        column = (group * pixels + row * at.Q + q) * width + (r * at.S + s) * c
                        pixel = ((n * H + h) * W + w) * C + group * c
                        if 0 <= h < H and 0 <= w and w + taps <= W:
                            _copy(target, column, source, pixel, taps * c)
                            continue
                        for tap in range(taps):
                            if 0 <= h < H and 0 <= w + tap < W:
                                _copy(target, column + tap * c, source, pixel + tap * C, c)
                            else:
                                _clear(target, column + tap * c, c)


@compiled
def add_windows(columns, images, first, at):
    """Adjoint of copy_windows: images[n, h, w, channel c of the group] += columns[...]."""
    N, H, W, C = images.shape
    pixels, width = columns.shape[1:]
    source, target = columns.reshape(-1), images.reshape(-1)
    c, taps = C // at.G, _taps_in_run(at)
    for row in range(pixels // at.Q):
        n, p = divmod(first + row, at.P)
        for group in range(at.G):
            for r in range(at.R):
                h = p * at.stride_h - at.pad_h + r * at.dilation_h
                if h < 0 or h >= H:
                    continue
                for s in range(0, at.S, taps):
                    for q in range(at.Q):
                        w = q * at.stride_w - at.pad_w + s * at.dilation_w
                        column = (group * pixels + row * at.Q + q) * width + (r * at.S + s) * c
                        pixel = ((n * H + h) * W + w) * C + group * c
                        if 0 <= w and w + taps <= W:
                            _add(target, pixel, source, column, taps * c)
                            continue
                        for tap in range(taps):
                            if 0 <= w + tap < W:
                                _add(target, pixel + tap * C, source, column + tap * c, c)


@inlined
def _taps_in_run(at):
    return at.S if at.dilation_w == 1 and at.G == 1 else 1


# Positions are unsigned: a signed index may be negative and then counts from the end, as in Python, and the test for
# that in every step would keep the compiler from using vectors.


@inlined
def _copy(target, to, source, start, length):
    to, start = np.uint64(to), np.uint64(start)
    for i in range(np.uint64(length)):
        target[to + i] = source[start + i]


@inlined
def _add(target, to, source, start, length):
    to, start = np.uint64(to), np.uint64(start)
    for i in range(np.uint64(length)):
        target[to + i] += source[start + i]


@inlined
def _clear(target, to, length):
    to = np.uint64(to)
    for i in range(np.uint64(length)):
        target[to + i] = 0
