"""Convolution as plain Python loops: nothing hidden, and nothing fast.

A convolution connects inputs to outputs: output pixel (p, q) of channel k sees input pixel (h, v) of channel c through
the weight w[k, c, r, s], if h = p*stride - padding + r*dilation (and so for v, q, s) and the pixel lies in the image.
With groups, the channels fall into G equal parts, and an output channel sees only its own part.

    for n in N:  for k in K:  for p in P:  for q in Q:           each output value
        for c in C/G:  for r in R:  for s in S:                  is a sum over these

The three functions walk over the very same connections. Along each one, three numbers meet: an input, a weight and an
output. Forward sends input times weight to the output; the two gradients send the output's gradient back along the same
connection, times the number at its other end. That is all there is to the backward pass of a convolution.
"""

import numpy as np

from .layout import nchw
from .reference import conv_output_size


def connections(x_shape, w_shape, stride, padding, dilation, groups):
    """Yields (n, k, p, q, c, r, s, channel, h, v), one per multiply-add; c is counted within the group."""
    (N, _, H, W), (K, channels_per_group, R, S) = x_shape, w_shape
    P, Q = conv_output_size(x_shape, (R, S), stride, padding, dilation)
    for n in range(N):
        for k in range(K):
            first_channel = k // (K // groups) * channels_per_group
            for p in range(P):
                for q in range(Q):
                    for c in range(channels_per_group):
                        for r in range(R):
                            for s in range(S):
                                h = p * stride[0] - padding[0] + r * dilation[0]
                                v = q * stride[1] - padding[1] + s * dilation[1]
                                if 0 <= h < H and 0 <= v < W:
                                    yield n, k, p, q, c, r, s, first_channel + c, h, v


def conv2d(x, w, stride, padding, dilation, groups):
    """Forward: every output is the sum of input times weight over its connections."""
    P, Q = conv_output_size(x.shape, w.shape[2:], stride, padding, dilation)
    y = _zeros((x.shape[0], w.shape[0], P, Q))
    for n, k, p, q, c, r, s, channel, h, v in connections(x.shape, w.shape, stride, padding, dilation, groups):
        y[n, k, p, q] += x[n, channel, h, v] * w[k, c, r, s]
    return y.astype(x.dtype)


def conv2d_input_grad(g, w, x_shape, stride, padding, dilation, groups):
    """Gradient in x: every input collects output gradient times weight over its connections."""
    dx = _zeros(x_shape)
    for n, k, p, q, c, r, s, channel, h, v in connections(x_shape, w.shape, stride, padding, dilation, groups):
        dx[n, channel, h, v] += g[n, k, p, q] * w[k, c, r, s]
    return dx.astype(g.dtype)


def conv2d_input_grad_add(total, g, w, stride, padding, dilation, groups):
    """total (N, C, H, W) += dx."""
    total += conv2d_input_grad(g, w, total.shape, stride, padding, dilation, groups)


def conv2d_weight_grad(x, g, w_shape, stride, padding, dilation, groups):
    """Gradient in w: every weight collects output gradient times input over its connections."""
    dw = _zeros(w_shape)
    for n, k, p, q, c, r, s, channel, h, v in connections(x.shape, w_shape, stride, padding, dilation, groups):
        dw[k, c, r, s] += g[n, k, p, q] * x[n, channel, h, v]
    return dw.astype(x.dtype)


def _zeros(shape):
    """Channels-last zeros of a logical shape. Sums run in float64 and are rounded once, at the end."""
    N, C, H, W = shape
    return nchw(np.zeros((N, H, W, C)))
