"""The layers: each holds its parameters and calls the op of its name. Arguments and printed form are PyTorch's.

A convolution's weight is logically (K, C/G, R, S); its memory is channels-last, (K, R, S, C/G), as the kernels want it.
Default initialisation is PyTorch's: uniform within 1/sqrt(fan_in). What a layer needs of its input (channels, dtype) is
checked by the op, which names the shapes it got.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyres import ops
from tinyres.kernels import layout
from tinyres.nn import init
from tinyres.nn.module import Module
from tinyres.nn.options import Pair, float_dtype, number, pair, positive, window
from tinyres.nn.parameter import Parameter
from tinyres.operands import check_tensors
from tinyres.ops.conv import check_padding
from tinyres.ops.linear import linear
from tinyres.tensor import Tensor


class _Conv(Module):
    """What the two convolutions share: sizes, weight (A, B, R, S) in channels-last memory, bias (out_channels,)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Pair, stride: Pair, padding: Pair | str,
                 dilation: Pair, groups: int, bias: bool, transposed: bool, dtype: Any):
        super().__init__()
        layer = type(self).__name__
        positive(layer, in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"{layer}: groups must divide in_channels and out_channels, got groups={groups} for "
                             f"{in_channels} and {out_channels} channels")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = pair(layer, "kernel_size", kernel_size, 1)
        self.stride = pair(layer, "stride", stride, 1)
        self.dilation = pair(layer, "dilation", dilation, 1)
        if isinstance(padding, str) and not transposed:
            check_padding(layer, padding, self.kernel_size, self.stride, self.dilation)
        self.padding = padding if isinstance(padding, str) and not transposed else pair(layer, "padding", padding, 0)
        dtype = float_dtype(layer, dtype)
        first, second = (in_channels, out_channels // groups) if transposed else (out_channels, in_channels // groups)
        self.weight = Parameter(layout.nchw(np.empty((first, *self.kernel_size, second), dtype)))
        self.bias = Parameter(np.empty(out_channels, dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias from U(-b, b) with b = 1 / sqrt(fan_in), PyTorch's default."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(init.fans(self.weight)[0])
            init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, usual in (("padding", (0, 0)), ("dilation", (1, 1)), ("output_padding", (0, 0)), ("groups", 1)):
            value = getattr(self, name, usual)
            text += "" if value == usual else f", {name}={value}"
        return text + ("" if self.bias is not None else ", bias=False")


class Conv2d(_Conv):
    """Cross-correlation of (N, C, H, W) with a weight (K, C/G, R, S) -> (N, K, P, Q).

    P = floor((H + 2 padding - dilation (R - 1) - 1) / stride) + 1; padding may be "same" or "valid". Raises ValueError
    for sizes that cannot be.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Pair, stride: Pair = 1,
                 padding: Pair | str = 0, dilation: Pair = 1, groups: int = 1, bias: bool = True,
                 dtype: Any = "float32"):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, False, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ConvTranspose2d(_Conv):
    """The adjoint of Conv2d as a layer: (N, C, H, W) with a weight (C, K/G, R, S) -> (N, K, P, Q).

    P = (H - 1) stride - 2 padding + dilation (R - 1) + output_padding + 1. Raises ValueError for sizes that cannot be.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Pair, stride: Pair = 1, padding: Pair = 0,
                 output_padding: Pair = 0, groups: int = 1, bias: bool = True, dilation: Pair = 1,
                 dtype: Any = "float32"):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, True, dtype)
        self.output_padding = pair("ConvTranspose2d", "output_padding", output_padding, 0)

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv_transpose2d(x, self.weight, self.bias, self.stride, self.padding, self.output_padding,
                                    self.groups, self.dilation)


class Linear(Module):
    """y = x W^T + b: (..., C) -> (..., K) with a weight (K, C) and a bias (K,)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: Any = "float32"):
        super().__init__()
        positive("Linear", in_features=in_features, out_features=out_features)
        dtype = float_dtype("Linear", dtype)
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(np.empty((out_features, in_features), dtype))
        self.bias = Parameter(np.empty(out_features, dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias from U(-b, b) with b = 1 / sqrt(C), PyTorch's default."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _BatchNorm(Module):
    """What the two batch norms share; a subclass says how many dimensions it takes."""

    dimensions: tuple[int, ...]
    weight: Any  # a Parameter, or None without affine; so is bias
    bias: Any
    optional_state = ("num_batches_tracked",)

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
                 track_running_stats: bool = True, dtype: Any = "float32"):
        super().__init__()
        layer = type(self).__name__
        positive(layer, num_features=num_features)
        dtype = float_dtype(layer, dtype)
        if momentum is not None:
            momentum = number(layer, "momentum", momentum, 0, 1, "lie in [0, 1], the share of the new batch, or be "
                              "None for the average of all batches")
        self.eps = number(layer, "eps", eps, 0, 1, "be a small number and not negative, like 1e-5")
        self.num_features, self.momentum = num_features, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight = Parameter(np.ones(num_features, dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_features, dtype)) if affine else None
        tracked = track_running_stats
        self.register_buffer("running_mean", np.zeros(num_features, dtype) if tracked else None)
        self.register_buffer("running_var", np.ones(num_features, dtype) if tracked else None)
        self.register_buffer("num_batches_tracked", np.zeros((), np.int64) if tracked else None)

    def reset_parameters(self) -> None:
        """Scale 1, shift 0, and no batch seen."""
        for tensor, value in ((self.weight, 1), (self.bias, 0), (self.running_mean, 0), (self.running_var, 1),
                              (self.num_batches_tracked, 0)):
            if tensor is not None:
                init.constant_(tensor, value)

    def forward(self, x: Tensor, add: Tensor | None = None, relu: bool = False) -> Tensor:
        """[relu](batch_norm(x) [+ add]) as one fused op: the join of a residual block."""
        check_tensors(type(self).__name__, input=x)
        if x.ndim not in self.dimensions:
            allowed = " or ".join(f"{d}-D" for d in self.dimensions)
            other = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d"}.get(x.ndim)
            raise ValueError(f"{type(self).__name__} takes {allowed} input with its channels at axis 1, got shape "
                             f"{tuple(x.shape)}; " + (f"use {other}" if other else "reshape it"))
        momentum, counts = self.momentum, self.training and self.track_running_stats
        if momentum is None:
            momentum = 1.0 / (float(self.num_batches_tracked.data) + 1) if counts else 0.0
        mean, var = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        use_batch = self.training or not self.track_running_stats
        y = ops.batch_norm(x, mean, var, self.weight, self.bias, use_batch, momentum, self.eps, add, relu)
        if counts:  # after the op, which may refuse its input
            self.num_batches_tracked.data += 1
        return y

    def extra_repr(self) -> str:
        return (f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
                f"track_running_stats={self.track_running_stats}")


class BatchNorm2d(_BatchNorm):
    """Batch norm of (N, C, H, W) over N, H, W (Ioffe & Szegedy 2015); called with add= and relu= it is a block's join.

    momentum is the share of the new batch in the running statistics (PyTorch's convention), None averages all batches.
    Training normalises with the batch's biased variance and tracks the unbiased one; eval uses the running statistics.
    Raises ValueError unless the input is 4-D.
    """

    dimensions = (4,)


class BatchNorm1d(_BatchNorm):
    """Batch norm of (N, C) over N, or of (N, C, L) over N and L; the rest as BatchNorm2d."""

    dimensions = (2, 3)


class ReLU(Module):
    """max(x, 0), any shape; `inplace` writes into its input."""

    def __init__(self, inplace: bool = False):
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return ops.relu_(x) if self.inplace else ops.relu(x)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


class Tanh(Module):
    """tanh(x), any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.tanh(x)


class Sigmoid(Module):
    """1 / (1 + exp(-x)), any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.sigmoid(x)


class MaxPool2d(Module):
    """The maximum of each window: (N, C, H, W) -> (N, C, P, Q); padding counts as minus infinity.

    `ceil_mode` keeps a last window that only begins inside the image.
    """

    def __init__(self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, dilation: Pair = 1,
                 ceil_mode: bool = False):
        super().__init__()
        window("MaxPool2d", kernel_size, stride, padding)
        pair("MaxPool2d", "dilation", dilation, 1)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode

    def forward(self, x: Tensor) -> Tensor:
        return ops.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def extra_repr(self) -> str:
        return (f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
                f"dilation={self.dilation}, ceil_mode={self.ceil_mode}")


class AvgPool2d(Module):
    """The mean of each window: (N, C, H, W) -> (N, C, P, Q); padding counts as zeros, or not at all if
    count_include_pad=False."""

    def __init__(self, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, ceil_mode: bool = False,
                 count_include_pad: bool = True):
        super().__init__()
        window("AvgPool2d", kernel_size, stride, padding)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.ceil_mode, self.count_include_pad = padding, ceil_mode, count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        return ops.avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AdaptiveAvgPool2d(Module):
    """The mean of windows that tile the image: (N, C, H, W) -> (N, C, P, Q), (P, Q) = output_size."""

    def __init__(self, output_size: Pair):
        super().__init__()
        pair("AdaptiveAvgPool2d", "output_size", output_size, 1)
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        return ops.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class GlobalAvgPool2d(Module):
    """The mean of each channel: (N, C, H, W) -> (N, C), ready for Linear."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.global_avg_pool2d(x)


class Dropout(Module):
    """In training, zero each element with probability p and scale the others by 1/(1-p) (Srivastava et al. 2014)."""

    def __init__(self, p: float = 0.5):
        super().__init__()
        self.p = number("Dropout", "p", p, 0, 1 - 1e-9, "lie in [0, 1), the share that is zeroed")

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Flatten(Module):
    """(N, C, H, W) -> (N, C H W) in logical order; start_dim and end_dim choose other axes."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        return ops.flatten(x, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Identity(Module):
    """x, unchanged: the same Tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return x
