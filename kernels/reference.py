"""The kernels in plain NumPy or CuPy: the specification that every other kernel set must equal.

Each function is short enough to be checked by eye against its formula. Shape letters are the framework's: N batch,
C and K input and output channels, H W and P Q input and output height and width, R S kernel height and width, G groups.
Images and weights come in with their logical shapes (N, C, H, W) and (K, C/G, R, S) and are worked on channels-last.
Sums over N, H and W run in float64, so that the specification is not itself a source of error; results have the dtype
of the input, except for the two batch norm reductions, which stay float64.
"""

import math

import numpy as np

from . import philox
from .augmentation import augment as augment  # in a file of its own
from .layout import array_module, from_rows, nchw, nhwc, rows

# ---- convolution ----------------------------------------------------------------------------------------------------
#
# A convolution is a sum over kernel positions (r, s): position (r, s) multiplies the image shifted by (r, s), one
# C-vector per output pixel, with the C x K matrix w[:, :, r, s]. The three functions below are that one product seen
# from its three factors. With X the shifted window, W the matrix and Y the output, and the same loop around each:
#
#     conv2d:   Y += X W        conv2d_input_grad:   X += Y W^T        conv2d_weight_grad:   W += X^T Y


def conv_output_size(x_shape, kernel, stride, padding, dilation):
    """(P, Q) of a convolution: how often the dilated kernel fits into the padded image (Dumoulin and Visin 2016)."""
    return tuple(
        (size + 2 * pad - dilate * (taps - 1) - 1) // step + 1
        for size, taps, step, pad, dilate in zip(x_shape[2:], kernel, stride, padding, dilation, strict=True)
    )


def conv2d(x, w, stride, padding, dilation, groups):
    """y[n,k,p,q] = sum over c,r,s of w[k,c,r,s] * x[n, c, p*stride - padding + r*dilation, (same for q and s)]."""
    P, Q = conv_output_size(x.shape, w.shape[2:], stride, padding, dilation)
    padded = _zero_pad(nhwc(x), padding)
    y = array_module(x).zeros((x.shape[0], P, Q, w.shape[0]), x.dtype)
    for (r, s), weight in _kernel_positions(w, groups):
        window = _window(padded, r, s, P, Q, stride, dilation)
        y += _join_groups(_split_groups(window, groups) @ weight, y.shape)
    return nchw(y)


def conv2d_input_grad(g, w, x_shape, stride, padding, dilation, groups):
    """Adjoint of conv2d in x: the gradient of each output pixel goes back to the window that it was computed from."""
    xp, (N, C, H, W), (P, Q), (ph, pw) = array_module(g), x_shape, g.shape[2:], padding
    padded = xp.zeros((N, H + 2 * ph, W + 2 * pw, C), g.dtype)
    gradient = _split_groups(nhwc(g), groups)
    for (r, s), weight in _kernel_positions(w, groups):
        window = _window(padded, r, s, P, Q, stride, dilation)  # a view: adding to it adds to `padded`
        window += _join_groups(gradient @ weight.swapaxes(1, 2), window.shape)
    return nchw(xp.ascontiguousarray(padded[:, ph : ph + H, pw : pw + W]))


def conv2d_input_grad_add(total, g, w, stride, padding, dilation, groups):
    """total (N, C, H, W) += dx."""
    total += conv2d_input_grad(g, w, total.shape, stride, padding, dilation, groups)


def conv2d_weight_grad(x, g, w_shape, stride, padding, dilation, groups):
    """Adjoint of conv2d in w: w[k,c,r,s] collects g[n,k,p,q] times the x it was multiplied with, over all n, p, q."""
    xp, (P, Q) = array_module(x), g.shape[2:]
    padded = _zero_pad(nhwc(x), padding).astype(np.float64)
    gradient = _split_groups(nhwc(g).astype(np.float64), groups)
    dw = nchw(xp.empty((w_shape[0], *w_shape[2:], w_shape[1]), x.dtype))
    for (r, s), weight in _kernel_positions(dw, groups):
        window = _window(padded, r, s, P, Q, stride, dilation)
        weight[...] = _split_groups(window, groups).swapaxes(1, 2) @ gradient  # a view of dw
    return dw


def _zero_pad(x, padding):
    ph, pw = padding
    padded = array_module(x).zeros((x.shape[0], x.shape[1] + 2 * ph, x.shape[2] + 2 * pw, x.shape[3]), x.dtype)
    padded[:, ph : ph + x.shape[1], pw : pw + x.shape[2]] = x
    return padded


def _window(padded, r, s, P, Q, stride, dilation):
    """View (N, P, Q, C) of the pixels that kernel position (r, s) meets."""
    h, w = r * dilation[0], s * dilation[1]
    return padded[:, h : h + (P - 1) * stride[0] + 1 : stride[0], w : w + (Q - 1) * stride[1] + 1 : stride[1]]


def _kernel_positions(w, groups):
    """Yields ((r, s), view of w[:, :, r, s] as one (C/G, K/G) matrix per group), in row-major order."""
    for r, s in np.ndindex(*w.shape[2:]):
        yield (r, s), w[:, :, r, s].reshape(groups, -1, w.shape[1]).swapaxes(1, 2)


def _split_groups(a, groups):
    """(N, P, Q, G*c) -> (G, N*P*Q, c): one matrix per group."""
    return a.reshape(-1, groups, a.shape[3] // groups).swapaxes(0, 1)


def _join_groups(a, shape):
    """(G, N*P*Q, c) -> (N, P, Q, G*c), the inverse of _split_groups."""
    return a.swapaxes(0, 1).reshape(shape)


# ---- pooling --------------------------------------------------------------------------------------------------------
#
# A pooling window is a list of row numbers times a list of column numbers. `rows_of` is (P, R): the R input rows of
# each of the P output rows, -1 where the window hangs over the edge; `columns_of` likewise (Q, S). Sliding and adaptive
# pooling differ in nothing but these two small tables.


def sliding(size, output, taps, step, pad, dilate):
    """(output, taps) positions of sliding windows along one axis, -1 outside the image."""
    position = np.arange(output)[:, None] * step - pad + np.arange(taps) * dilate
    return np.where((position >= 0) & (position < size), position, -1)


def adaptive(size, output):
    """(output, longest) positions of even windows: window i is [floor(i*size/output), ceil((i+1)*size/output))."""
    start, stop = np.arange(output) * size // output, -(-np.arange(1, output + 1) * size // output)
    position = start[:, None] + np.arange((stop - start).max())
    return np.where(position < stop[:, None], position, -1)


def max_pool2d(x, kernel, stride, padding, dilation, output):
    """Maximum of each window and its index h*W+w in the image; padding counts as -inf. output = (P, Q)."""
    axes = zip(x.shape[2:], output, kernel, stride, padding, dilation, strict=True)
    return _max_over_windows(x, *(sliding(*axis) for axis in axes))


def adaptive_max_pool2d(x, output):
    """Maximum over a grid of P x Q windows that cover the image, and its index h*W+w. output = (P, Q)."""
    return _max_over_windows(x, *(adaptive(*axis) for axis in zip(x.shape[2:], output, strict=True)))


def _max_over_windows(x, rows_of, columns_of):
    """Runs through each window as PyTorch does: a later value wins if larger, or NaN; of equals the first stays."""
    xp, (N, C, _, W), images = array_module(x), x.shape, nhwc(x)
    rows_of, columns_of = xp.asarray(rows_of), xp.asarray(columns_of)
    least = -np.inf if x.dtype.kind == "f" else 0  # integers have no infinity; only a window without a pixel shows it
    y = xp.full((N, len(rows_of), len(columns_of), C), least, x.dtype)
    index = xp.full(y.shape, -1, np.int64)
    for r, s in np.ndindex(rows_of.shape[1], columns_of.shape[1]):
        h, w = rows_of[:, r, None], columns_of[None, :, s]
        value = images[:, h, w]
        inside = ((h >= 0) & (w >= 0))[None, :, :, None]
        better = inside & ((value > y) | xp.isnan(value) | (index < 0))
        y = xp.where(better, value, y)
        index = xp.where(better, (h * W + w)[None, :, :, None], index)
    return nchw(y), nchw(index)


def gather_hw(x, index):
    """y[n,c,p,q] = x[n,c] at flat position index[n,c,p,q]: with max_pool2d's index, the maxima again."""
    N, C, H, W = x.shape
    positions = nhwc(index)
    flat = array_module(x).take_along_axis(nhwc(x).reshape(N, H * W, C), positions.reshape(N, -1, C), axis=1)
    return nchw(flat.reshape(positions.shape))


def scatter_hw(g, index, x_shape):
    """Adjoint of gather_hw: adds each g[n,c,p,q] to position index[n,c,p,q] of a zero image of shape x_shape."""
    xp, (N, C, H, W) = array_module(g), x_shape
    n, c = xp.arange(N).reshape(N, 1, 1, 1), xp.arange(C)
    target = (n * (H * W) + nhwc(index)) * C + c
    total = xp.bincount(target.ravel(), nhwc(g).ravel(), minlength=N * H * W * C)  # adds in float64
    return nchw(total.astype(g.dtype).reshape(N, H, W, C))


def avg_pool2d(x, kernel, stride, padding, output, count_include_pad):
    """Mean of each window; the divisor counts the padding or only the pixels of the image. output = (P, Q)."""
    images = nhwc(x)
    y = array_module(x).zeros((x.shape[0], *output, x.shape[1]), np.float64)
    for h, w, p, q in _average_positions(x.shape, kernel, stride, padding, output):
        y[:, p, q] += images[:, h, w]
    y /= array_module(x).asarray(window_sizes(x.shape, kernel, stride, padding, output, count_include_pad))
    return nchw(y.astype(x.dtype))


def avg_pool2d_input_grad(g, x_shape, kernel, stride, padding, count_include_pad):
    """Adjoint of avg_pool2d: each output's gradient, divided like the output, goes to every pixel of its window."""
    xp, (N, C, H, W), output = array_module(g), x_shape, g.shape[2:]
    share = nhwc(g) / xp.asarray(window_sizes(x_shape, kernel, stride, padding, output, count_include_pad))
    dx = xp.zeros((N, H, W, C), np.float64)
    for h, w, p, q in _average_positions(x_shape, kernel, stride, padding, output):
        dx[:, h, w] += share[:, p, q]  # one kernel position meets no pixel twice: += adds each once
    return nchw(dx.astype(g.dtype))


def _average_positions(x_shape, kernel, stride, padding, output):
    """For each kernel position: rows h and columns w of the image that it meets, and the outputs p and q, as slices."""
    for taps in np.ndindex(*kernel):
        axes = zip(x_shape[2:], output, taps, stride, padding, strict=True)
        (h, p), (w, q) = (_met(*axis) for axis in axes)
        yield h, w, p, q


def _met(size, output, tap, step, pad):
    """Slices along one axis: the pixels that lie under this tap of a window, and the windows."""
    first = max(0, -(-(pad - tap) // step))  # output i has its tap on pixel i*step - pad + tap, from 0 to size - 1
    last = max(first, min(output, (size - 1 + pad - tap) // step + 1))
    pixel = first * step - pad + tap
    return slice(pixel, pixel + (last - first) * step, step), slice(first, last)


def window_sizes(x_shape, kernel, stride, padding, output, count_include_pad):
    """(P, Q, 1) float64: how many pixels each window has, with the padding (cut at its outer edge) or without."""
    counts = []
    for size, count, taps, step, pad in zip(x_shape[2:], output, kernel, stride, padding, strict=True):
        start = np.arange(count) * step - pad
        stop = np.minimum(start + taps, size + pad)
        counts.append(stop - start if count_include_pad else np.minimum(stop, size) - np.maximum(start, 0))
    return np.multiply.outer(*counts)[:, :, None].astype(np.float64)


# ---- batch norm (Ioffe and Szegedy 2015) -----------------------------------------------------------------------------
#
# Batch norm is two passes over the image each way. Forward: statistics, then one multiply-add a value. Backward: two
# sums per channel, then dx = a*g' + b*x + d with three numbers per channel. The (C,)-sized arithmetic between passes is
# the op's; here are the passes. g' is the gradient behind the ReLU: g where the output y is positive or NaN, else 0.


def batch_norm_stats(x):
    """Mean and biased variance of each channel, float64 (C,)."""
    values = rows(x)
    return values.mean(0, dtype=np.float64), values.var(0, dtype=np.float64)


def batch_norm_apply(x, scale, shift, residual, relu):
    """y = x*scale + shift [+ residual], then max(y, 0) if relu; NaN stays NaN."""
    y = rows(x) * scale + shift
    if residual is not None:
        y += rows(residual)
    if relu:
        array_module(y).maximum(y, 0, out=y)
    return from_rows(y, x.shape)


def add_bias(y, bias, residual, relu):
    """y + bias [+ residual], then max(y, 0) if relu; NaN stays NaN."""
    return batch_norm_apply(y, 1, bias, residual, relu)


def batch_norm_grad_sums(g, x, mean, y):
    """sum of g' and sum of g' * (x - mean) for each channel, float64 (C,)."""
    gradient = _behind_relu(rows(g), y).astype(np.float64)
    return gradient.sum(0), (gradient * (rows(x) - mean.astype(np.float64))).sum(0)


def batch_norm_input_grad(g, x, a, b, d, y, residual):
    """dx = a*g' + b*x + d, and dres = g' if residual else None."""
    gradient = _behind_relu(rows(g), y)
    dx = from_rows(a * gradient + b * rows(x) + d, x.shape)
    if not residual:
        return dx, None
    return dx, g if y is None else from_rows(gradient, x.shape)


def _behind_relu(g, y):
    return g if y is None else array_module(g).where(rows(y) <= 0, g.dtype.type(0), g)


# ---- dropout (Srivastava et al. 2014) -------------------------------------------------------------------------------
#
# The mask is not drawn one value after another: value i is a function of the key and of i, so that all kernels, on any
# number of threads, make the same mask, and the backward pass makes it again instead of keeping it. Value i takes 32
# bits of NumPy's Philox words, two values a word, the low half first: with u = bits / 2^32, it stays where u >= p.


def dropout(x, p, key):
    """x / (1 - p) where the mask of this key keeps, else x * 0; 4-D channels-last, else in C order."""
    xp, images = array_module(x), x.ndim == 4
    values = nhwc(x) if images else xp.ascontiguousarray(x).reshape(x.shape)
    keep = dropout_bits(key, values.size) >= dropout_threshold(p)
    mask = (keep * (1 / (1 - p))).astype(x.dtype).reshape(values.shape)
    y = xp.asarray(values * xp.asarray(mask))
    return nchw(y) if images else y


def dropout_bits(key, count):
    """(count,) uint32: the halves of words 0, 1, ... of stream 0 for the key (key, 0), see philox.py."""
    words = philox.words((key, 0), 0, (count + 1) // 2)
    return words.astype("<u8", copy=False).view("<u4")[:count]


def dropout_threshold(p):
    """The least bits that are kept, 0 to 2^32: bits / 2^32 >= p, in integers."""
    return np.uint64(math.ceil(p * 2**32))


# ---- softmax and cross entropy --------------------------------------------------------------------------------------


def softmax_cross_entropy(logits, labels, smoothing):
    """losses (N,) = -sum over k of target * log softmax, and log_probs (N, K); target: see the gradient."""
    xp = array_module(logits)
    shifted = logits - logits.max(1, keepdims=True)  # exp cannot overflow; the shift cancels
    log_probs = shifted - xp.log(xp.exp(shifted).sum(1, keepdims=True))
    good, label = _checked(labels, log_probs)
    losses = -(1 - smoothing) * log_probs[xp.arange(len(labels)), label]
    if smoothing:
        losses -= smoothing * log_probs.mean(1)
    return xp.where(good, losses, losses.dtype.type("nan")), log_probs


def softmax_cross_entropy_grad(g, log_probs, labels, smoothing):
    """dlogits[n,k] = g[n] * (softmax - target); target = (1-smoothing) at the label plus smoothing/K everywhere."""
    xp, (N, K) = array_module(log_probs), log_probs.shape
    dlogits = xp.exp(log_probs) - smoothing / K
    good, label = _checked(labels, log_probs)
    dlogits[xp.arange(N), label] -= 1 - smoothing
    return dlogits * xp.where(good, g, g.dtype.type("nan"))[:, None]


def _checked(labels, log_probs):
    """Which labels lie in 0..K-1, and the labels with 0 for the others: asking the GPU would mean to wait for it."""
    good = (labels >= 0) & (labels < log_probs.shape[1])
    return good, array_module(labels).where(good, labels, 0)


# ---- optimizers -----------------------------------------------------------------------------------------------------
#
# Each goes through lists, and changes a parameter p and its state in place; g is its gradient, of p's shape and dtype.


def sgd(parameters, gradients, velocities, lr, momentum, weight_decay, nesterov):
    """g' = g + weight_decay p; v = momentum v + g'; p -= lr v, or lr (g' + momentum v); without velocity p -= lr g'."""
    for p, g, velocity in zip(parameters, gradients, velocities, strict=True):
        if weight_decay:
            g = g + weight_decay * p
        if velocity is not None:
            velocity *= momentum
            velocity += g
            g = g + momentum * velocity if nesterov else velocity
        p -= lr * g


def adam(parameters, gradients, means, squares, steps, lr, betas, eps, weight_decay, shrink):
    """Kingma and Ba (2015), algorithm 1: p = shrink p - lr M / (sqrt(S) + eps), M and S without their bias.

    mean and square are the moving averages of g' = g + weight_decay p and of g' g'; after `step` steps M is
    mean / (1 - beta1^step), S likewise. shrink: 1, or less for a weight decay apart from the gradient.
    """
    beta1, beta2 = betas
    for p, g, mean, square, step in zip(parameters, gradients, means, squares, steps, strict=True):
        p *= shrink
        if weight_decay:
            g = g + weight_decay * p
        mean += (1 - beta1) * (g - mean)
        square *= beta2
        square += (1 - beta2) * (g * g)
        denominator = array_module(p).sqrt(square) / math.sqrt(1 - beta2**step) + eps
        p -= lr / (1 - beta1**step) * mean / denominator


# ---- what is told of an array in a few numbers ----


def moments(x):
    """x, a vector -> its sum, its sum of squares, in float64, and how many elements are 0."""
    wide = x.astype("float64")
    return float(wide.sum()), float(wide @ wide), int((x == 0).sum())


def inner(x, y):
    """x, y, vectors of one length -> <x, y>, summed in float64."""
    return float(x.astype("float64") @ y.astype("float64"))
