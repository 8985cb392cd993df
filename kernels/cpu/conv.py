"""Which convolution kernel computes which shape: the one table that decides it.

                                                        forward            both gradients
    3x3, stride 1, no dilation, one group, at least 8
    input and 8 output channels, and the more of them
        less than 64                                    Winograd, m = 4    Winograd, m = 4
        64 to 256                                       Winograd, m = 2    Winograd, m = 4
        more than 256                                   Winograd, m = 2    Winograd, m = 2
    everything else                                     direct             direct

m = 4 saves the most products and rounds the most (see conv_winograd.py). In the forward pass that matters twice: an
activation near 0 that is rounded to the other side switches its ReLU, and the whole gradient behind it. So m = 4 stays
where networks are small. With more than 256 channels its 36 products of the weights outgrow the caches.
"""

from ..layout import is_channels_last
from . import conv_direct, conv_winograd


def tiles(w_shape, stride, dilation, groups):
    """m of Winograd's tiles, forward and in the gradients; 0 for the direct kernels."""
    fewer, more = sorted(w_shape[:2])
    if tuple(w_shape[2:]) != (3, 3) or (*stride, *dilation, groups) != (1, 1, 1, 1, 1) or fewer < 8:
        return 0, 0
    return 4 if more < 64 else 2, 4 if more <= 256 else 2


def conv2d(x, w, stride, padding, dilation, groups):
    """y (N, K, P, Q)."""
    m, _ = tiles(w.shape, stride, dilation, groups)
    return conv_winograd.conv2d(x, w, padding, m) if m else conv_direct.conv2d(x, w, stride, padding, dilation, groups)


def conv2d_input_grad(g, w, x_shape, stride, padding, dilation, groups):
    """dx (N, C, H, W)."""
    return _input_grad(g, w, x_shape, stride, padding, dilation, groups, None)


def conv2d_input_grad_add(total, g, w, stride, padding, dilation, groups):
    """total (N, C, H, W) += dx, which takes no memory of its own, unless total lies in another order than images do."""
    if is_channels_last(total):
        _input_grad(g, w, total.shape, stride, padding, dilation, groups, total)
    else:
        total += _input_grad(g, w, total.shape, stride, padding, dilation, groups, None)


def _input_grad(g, w, x_shape, stride, padding, dilation, groups, total):
    _, m = tiles(w.shape, stride, dilation, groups)
    if m:
        return conv_winograd.conv2d_input_grad(g, w, x_shape, padding, m, total)
    return conv_direct.conv2d_input_grad(g, w, x_shape, stride, padding, dilation, groups, total)


def conv2d_weight_grad(x, g, w_shape, stride, padding, dilation, groups):
    """dw (K, C/G, R, S)."""
    _, m = tiles(w_shape, stride, dilation, groups)
    if m:
        return conv_winograd.conv2d_weight_grad(x, g, padding, m)
    return conv_direct.conv2d_weight_grad(x, g, w_shape, stride, padding, dilation, groups)
