"""What the larger ops must compute, in NumPy, written from their definitions: one output position at a time, with
nothing shared with the kernels under test."""

import numpy as np


def pairs(*values):
    """Each value as (vertical, horizontal)."""
    return [v if isinstance(v, tuple) else (v, v) for v in values]


def matmul(a, b):
    """One product of a row and a column at a time."""
    left, right = a if a.ndim > 1 else a[None], b if b.ndim > 1 else b[:, None]
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    left, right = np.broadcast_to(left, (*lead, *left.shape[-2:])), np.broadcast_to(right, (*lead, *right.shape[-2:]))
    out = np.zeros((*lead, left.shape[-2], right.shape[-1]))
    for *at, i, j in np.ndindex(out.shape):
        out[(*at, i, j)] = (left[(*at, i)] * right[(*at, slice(None), j)]).sum()
    out = out if a.ndim > 1 else out[..., 0, :]
    return out if b.ndim > 1 else out[..., 0]


def linear(x, w, b=0.0):
    return (x[..., None, :] * w).sum(-1) + b


def conv2d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    (sh, sw), (ph, pw), (dh, dw) = pairs(stride, padding, dilation)
    (N, _, H, W), (K, c, R, S) = x.shape, w.shape
    image = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    P, Q = (H + 2 * ph - dh * (R - 1) - 1) // sh + 1, (W + 2 * pw - dw * (S - 1) - 1) // sw + 1
    y = np.zeros((N, K, P, Q))
    for k, p, q in np.ndindex(K, P, Q):
        first = k // (K // groups) * c
        seen = image[:, first:first + c, p * sh:p * sh + dh * (R - 1) + 1:dh, q * sw:q * sw + dw * (S - 1) + 1:dw]
        y[:, k, p, q] = (seen * w[k]).sum((1, 2, 3))
    return y if b is None else y + b[:, None, None]


def conv_transpose2d(x, w, b=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    (sh, sw), (ph, pw), (eh, ew), (dh, dw) = pairs(stride, padding, output_padding, dilation)
    (N, K, P, Q), (_, c, R, S) = x.shape, w.shape
    H, W = (P - 1) * sh + dh * (R - 1) + 1 + eh, (Q - 1) * sw + dw * (S - 1) + 1 + ew
    y = np.zeros((N, c * groups, H, W))
    for k, p, q in np.ndindex(K, P, Q):
        first = k // (K // groups) * c
        stamp = x[:, k, p, q, None, None, None] * w[k]
        y[:, first:first + c, p * sh:p * sh + dh * (R - 1) + 1:dh, q * sw:q * sw + dw * (S - 1) + 1:dw] += stamp
    y = y[:, :, ph:H - ph, pw:W - pw]
    return y if b is None else y + b[:, None, None]


def _sliding(size, kernel, stride, padding, dilation, ceil_mode):
    """For each window along one axis, its positions, the padding's included (PyTorch's rule for the last window)."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if (count - 1) * stride >= size + padding:
        count -= 1
    return [np.arange(kernel) * dilation + i * stride - padding for i in range(count)]


def _adaptive(size, count):
    return [np.arange(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _pooled(x, rows, columns, value_of):
    y = np.zeros((*x.shape[:2], len(rows), len(columns)))
    for p, q in np.ndindex(*y.shape[2:]):
        h, w = (v[(v >= 0) & (v < n)] for v, n in zip((rows[p], columns[q]), x.shape[2:], strict=True))
        y[:, :, p, q] = value_of(x[:, :, h[:, None], w], rows[p], columns[q])
    return y


def _windows(x, kernel, stride, padding, dilation, ceil_mode):
    kernel = pairs(kernel)[0]
    numbers = zip(x.shape[2:], kernel, *pairs(kernel if stride is None else stride, padding, dilation), strict=True)
    return [_sliding(*axis, ceil_mode) for axis in numbers]


def max_pool2d(x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    rows, columns = _windows(x, kernel, stride, padding, dilation, ceil_mode)
    return _pooled(x, rows, columns, lambda seen, h, w: seen.max((2, 3)))


def avg_pool2d(x, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    (H, W), (ph, pw) = x.shape[2:], pairs(padding)[0]

    def mean(seen, h, w):  # a window of ceil_mode may reach beyond the padding: that part never counts
        counted = (h < H + ph).sum() * (w < W + pw).sum() if count_include_pad else seen.shape[2] * seen.shape[3]
        return seen.sum((2, 3)) / counted

    return _pooled(x, *_windows(x, kernel, stride, padding, 1, ceil_mode), mean)


def adaptive_max_pool2d(x, output):
    P, Q = pairs(output)[0]
    return _pooled(x, _adaptive(x.shape[2], P), _adaptive(x.shape[3], Q), lambda seen, h, w: seen.max((2, 3)))


def adaptive_avg_pool2d(x, output):
    P, Q = pairs(output)[0]
    return _pooled(x, _adaptive(x.shape[2], P), _adaptive(x.shape[3], Q), lambda seen, h, w: seen.mean((2, 3)))


def batch_norm(x, weight=None, bias=None, add=None, *, mean=None, var=None, eps=1e-5, relu=False):
    """By the batch's own statistics, or by `mean` and `var`."""
    axes, channel = (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)
    mean, var = x.mean(axes) if mean is None else mean, x.var(axes) if var is None else var
    y = (x - mean.reshape(channel)) / np.sqrt(var.reshape(channel) + eps)
    y = y if weight is None else y * weight.reshape(channel)
    y = y if bias is None else y + bias.reshape(channel)
    y = y if add is None else y + add
    return np.maximum(y, 0) if relu else y


def log_softmax(x, dim):
    top = x.max(dim, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(dim, keepdims=True))


def cross_entropy(logits, labels, label_smoothing=0.0, reduction="mean"):
    """labels: classes, or probabilities of the logits' shape."""
    target = labels if labels.dtype.kind == "f" else np.moveaxis(np.eye(logits.shape[1])[labels], -1, 1)
    target = (1 - label_smoothing) * target + label_smoothing / logits.shape[1]
    losses = -(target * log_softmax(logits, 1)).sum(1)
    return reduced(losses, reduction)


def reduced(losses, reduction):
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()
