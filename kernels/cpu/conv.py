"""Which convolution kernel computes which shape: the one table that decides it.

    3x3, stride 1, no dilation, one group, at least 8 channels each way      Winograd, m = 4
    everything else                                                          direct
"""

from . import conv_direct, conv_winograd


def _winograd(channels, outputs, kernel, stride, dilation, groups):
    return kernel == (3, 3) and stride == (1, 1) and dilation == (1, 1) and groups == 1 and min(channels, outputs) >= 8


def conv2d(x, w, stride, padding, dilation, groups):
    """y (N, K, P, Q)."""
    if _winograd(w.shape[1], w.shape[0], w.shape[2:], stride, dilation, groups):
        return conv_winograd.conv2d(x, w, padding, 4)
    return conv_direct.conv2d(x, w, stride, padding, dilation, groups)


def conv2d_input_grad(g, w, x_shape, stride, padding, dilation, groups):
    """dx (N, C, H, W)."""
    if _winograd(w.shape[1], w.shape[0], w.shape[2:], stride, dilation, groups):
        return conv_winograd.conv2d_input_grad(g, w, x_shape, padding, 4)
    return conv_direct.conv2d_input_grad(g, w, x_shape, stride, padding, dilation, groups)


def conv2d_weight_grad(x, g, w_shape, stride, padding, dilation, groups):
    """dw (K, C/G, R, S)."""
    if _winograd(w_shape[1], w_shape[0], tuple(w_shape[2:]), stride, dilation, groups):
        return conv_winograd.conv2d_weight_grad(x, g, padding, 4)
    return conv_direct.conv2d_weight_grad(x, g, w_shape, stride, padding, dilation, groups)
