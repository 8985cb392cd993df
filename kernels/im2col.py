"""Convolution as one matrix product, in plain NumPy.

Lay the R*S*C values that each output pixel sees out as a row: the image becomes a matrix with one row per output pixel
and one column per weight (`columns`, known as im2col). Then the convolution is a product with the weights as a matrix:

    Y (pixels x K)  =  X (pixels x R*S*C/G)  times  W^T,   W (K x R*S*C/G)          for each of the G groups

and its two gradients are the ones of any matrix product: dX = dY W, dW = dY^T X. Going from dX back to the image, every
row is added to the window that it was copied from (`add_columns`, col2im): the adjoint of laying out.

The windows themselves are a view of the padded image, in which one pixel appears R*S times. Writing the view out as a
matrix copies it: X takes R*S times the memory of the image. That is the price; all arithmetic is in one call of BLAS.
(Chellapilla, Puri and Simard 2006, "High performance convolutional neural networks for document processing".)
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .layout import nchw, nhwc


def conv2d(x, w, stride, padding, dilation, groups):
    """y = columns(x) W^T."""
    patches = windows(x, w.shape[2:], stride, padding, dilation)
    y = columns(patches, groups) @ weight_matrix(w, groups).swapaxes(1, 2)
    return nchw(join_groups(y, (*patches.shape[:3], w.shape[0])))


def conv2d_input_grad(g, w, x_shape, stride, padding, dilation, groups):
    """dx = add_columns(dY W)."""
    N, (P, Q), (R, S) = g.shape[0], g.shape[2:], w.shape[2:]
    dcolumns = split_groups(nhwc(g), groups) @ weight_matrix(w, groups)
    per_group = dcolumns.reshape(groups, N, P, Q, R, S, w.shape[1])
    patches = per_group.transpose(1, 2, 3, 4, 5, 0, 6).reshape(N, P, Q, R, S, x_shape[1])
    return add_columns(patches, x_shape, stride, padding, dilation)


def conv2d_input_grad_add(total, g, w, stride, padding, dilation, groups):
    """total (N, C, H, W) += dx."""
    total += conv2d_input_grad(g, w, total.shape, stride, padding, dilation, groups)


def conv2d_weight_grad(x, g, w_shape, stride, padding, dilation, groups):
    """dW = dY^T columns(x)."""
    (K, channels_per_group, R, S) = w_shape
    patches = windows(x, (R, S), stride, padding, dilation)
    dw = split_groups(nhwc(g), groups).swapaxes(1, 2) @ columns(patches, groups)
    return nchw(dw.reshape(K, R, S, channels_per_group))


def windows(x, kernel, stride, padding, dilation):
    """View (N, P, Q, R, S, C) of the zero-padded image: the window of each output pixel. Only the padding copies."""
    (ph, pw), (dh, dw), (R, S) = padding, dilation, kernel
    padded = np.pad(nhwc(x), ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    span = (dh * (R - 1) + 1, dw * (S - 1) + 1)
    every = sliding_window_view(padded, span, axis=(1, 2))  # (N, all rows, all columns, C, span)
    return every[:, :: stride[0], :: stride[1], :, ::dh, ::dw].transpose(0, 1, 2, 4, 5, 3)


def columns(patches, groups):
    """(N, P, Q, R, S, C) -> (G, N*P*Q, R*S*C/G): one matrix per group, one row per output pixel. This is the copy."""
    N, P, Q, R, S, C = patches.shape
    per_group = patches.reshape(N, P, Q, R, S, groups, C // groups).transpose(5, 0, 1, 2, 3, 4, 6)  # still a view
    return per_group.reshape(groups, N * P * Q, R * S * (C // groups))


def add_columns(patches, x_shape, stride, padding, dilation):
    """Adjoint of `windows`: adds (N, P, Q, R, S, C) to the pixels that the windows cover, and drops the padding."""
    (N, C, H, W), (ph, pw) = x_shape, padding
    padded = np.zeros((N, H + 2 * ph, W + 2 * pw, C), patches.dtype)
    for r, s in np.ndindex(patches.shape[3:5]):  # within one kernel position no pixel is met twice
        h, w = r * dilation[0], s * dilation[1]
        h_end, w_end = h + (patches.shape[1] - 1) * stride[0] + 1, w + (patches.shape[2] - 1) * stride[1] + 1
        padded[:, h : h_end : stride[0], w : w_end : stride[1]] += patches[:, :, :, r, s]
    return nchw(np.ascontiguousarray(padded[:, ph : ph + H, pw : pw + W]))


def weight_matrix(w, groups):
    """(K, C/G, R, S) -> (G, K/G, R*S*C/G), a view: channels-last weights already lie in the order of the columns."""
    return nhwc(w).reshape(groups, w.shape[0] // groups, -1)


def split_groups(y, groups):
    """(N, P, Q, K) -> (G, N*P*Q, K/G)."""
    return y.reshape(-1, groups, y.shape[3] // groups).swapaxes(0, 1)


def join_groups(y, shape):
    """(G, N*P*Q, K/G) -> (N, P, Q, K), C-contiguous: the inverse of split_groups."""
    return np.ascontiguousarray(y.swapaxes(0, 1)).reshape(shape)
