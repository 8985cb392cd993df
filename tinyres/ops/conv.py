"""Convolution and its two adjoints. The three are one trilinear form <Y, X * W>, differentiated in turn by each factor:

    conv2d(x, w) -> y          backward:  dx = conv2d_input_grad(g, w)      dw = conv2d_weight_grad(x, g)
    conv2d_input_grad(g, w)    backward:  dg = conv2d(u, w)                 dw = conv2d_weight_grad(u, g)
    conv2d_weight_grad(x, g)   backward:  dx = conv2d_input_grad(g, u)      dg = conv2d(x, u)

so each one's rule calls its siblings, to any order, and a transposed convolution is conv2d_input_grad used forward.
"""

from __future__ import annotations

from typing import Any

from tinyres import kernels
from tinyres.operands import arrays_of, check_floats, check_tensors
from tinyres.ops.elementwise import add
from tinyres.ops.shape import channels_last, reshape
from tinyres.tensor import Function

Pair = Any  # an int, or (vertical, horizontal)


class Conv2d(Function):
    """y = x * w;  dx and dw by its two adjoints."""

    fresh = True
    merges = True

    def forward(self, x: Any, w: Any, **geometry: Any) -> Any:
        self.save(x, w)
        return kernels.conv2d(x, w, **geometry)

    def backward(self, grad: Any) -> Any:
        x, w = self.saved
        dx = self.into[0] if self.into and self.needs[0] else None
        if dx is not None:
            kernels.conv2d_input_grad_add(dx, grad, w, **self.params)
        elif self.needs[0]:
            dx = Conv2dInputGrad.apply(grad, w, x_shape=x.shape, **self.params)
        return dx, Conv2dWeightGrad.apply(x, grad, w_shape=w.shape, **self.params) if self.needs[1] else None


class Conv2dInputGrad(Function):
    """The adjoint of Conv2d in x."""

    fresh = True

    def forward(self, g: Any, w: Any, *, x_shape: Any, **geometry: Any) -> Any:
        self.save(g, w)
        self.geometry = geometry
        return kernels.conv2d_input_grad(g, w, x_shape, **geometry)

    def backward(self, grad: Any) -> Any:
        g, w = self.saved
        return (Conv2d.apply(grad, w, **self.geometry) if self.needs[0] else None,
                Conv2dWeightGrad.apply(grad, g, w_shape=w.shape, **self.geometry) if self.needs[1] else None)


class Conv2dWeightGrad(Function):
    """The adjoint of Conv2d in w."""

    fresh = True

    def forward(self, x: Any, g: Any, *, w_shape: Any, **geometry: Any) -> Any:
        self.save(x, g)
        self.geometry = geometry
        return kernels.conv2d_weight_grad(x, g, w_shape, **geometry)

    def backward(self, grad: Any) -> Any:
        x, g = self.saved
        return (Conv2dInputGrad.apply(g, grad, x_shape=x.shape, **self.geometry) if self.needs[0] else None,
                Conv2d.apply(x, grad, **self.geometry) if self.needs[1] else None)


def pair(op: str, name: str, value: Pair, least: int) -> tuple[int, int]:
    """An int or (vertical, horizontal) as two ints. Raises ValueError below `least`."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or not all(_whole(v) and v >= least for v in both):
        raise ValueError(f"{op}: {name} must be an integer or a pair of integers of at least {least}, got {value!r}")
    return int(both[0]), int(both[1])


def _whole(value: Any) -> bool:
    """Whether it is an integer; 2.0 counts as one, True does not."""
    if isinstance(value, float):
        return value.is_integer()
    return hasattr(value, "__index__") and not isinstance(value, bool)


def conv2d(x: Any, weight: Any, bias: Any = None, stride: Pair = 1, padding: Pair | str = 0, dilation: Pair = 1,
           groups: int = 1) -> Any:
    """2-D convolution (cross-correlation, as in every framework).

    x: (N, C, H, W); weight: (K, C/groups, R, S); bias: (K,) or None -> (N, K, P, Q) with
    P = floor((H + 2*padding - dilation*(R - 1) - 1) / stride) + 1, and Q likewise (Dumoulin and Visin 2016, section 4).
    padding: numbers, "valid" for 0, or "same" (stride 1, odd dilated kernel). Raises ValueError where shapes, channels
    and groups do not fit or the kernel is larger than the padded image.
    """
    check_tensors("conv2d", input=x, weight=weight)
    stride, dilation = pair("conv2d", "stride", stride, 1), pair("conv2d", "dilation", dilation, 1)
    _check("conv2d", x, weight, bias, 0, groups)
    padding = check_padding("conv2d", padding, weight.shape[2:], stride, dilation)
    if x.shape[1] != weight.shape[1] * groups:
        raise _wrong_channels("conv2d", x, weight, weight.shape[1] * groups, groups)
    for name, i in (("height", 0), ("width", 1)):
        extent = dilation[i] * (weight.shape[2 + i] - 1) + 1
        if x.shape[2 + i] + 2 * padding[i] < extent:
            raise ValueError(f"conv2d: the kernel's {name} {extent} (dilation included) is larger than the padded "
                             f"input's {x.shape[2 + i]} + 2*{padding[i]}; input {tuple(x.shape)}, weight "
                             f"{tuple(weight.shape)}: pad more or use a smaller kernel")
    y = Conv2d.apply(channels_last(x), channels_last(weight), stride=stride, padding=padding, dilation=dilation,
                     groups=groups)
    return y if bias is None else add(y, reshape(bias, (1, -1, 1, 1)))


def conv_transpose2d(x: Any, weight: Any, bias: Any = None, stride: Pair = 1, padding: Pair = 0,
                     output_padding: Pair = 0, groups: int = 1, dilation: Pair = 1) -> Any:
    """The adjoint of conv2d in its input, used as a layer ("deconvolution").

    x: (N, K, P, Q); weight: (K, C/groups, R, S); bias: (C,) or None -> (N, C, H, W) with
    H = (P - 1)*stride - 2*padding + dilation*(R - 1) + output_padding + 1. output_padding picks one of the `stride`
    input heights that a convolution maps to P. Raises ValueError where shapes do not fit.
    """
    op = "conv_transpose2d"
    check_tensors(op, input=x, weight=weight)
    stride, dilation = pair(op, "stride", stride, 1), pair(op, "dilation", dilation, 1)
    padding, extra = pair(op, "padding", padding, 0), pair(op, "output_padding", output_padding, 0)
    _check(op, x, weight, bias, 1, groups)
    if x.shape[1] != weight.shape[0]:
        raise _wrong_channels(op, x, weight, weight.shape[0], groups)
    if any(e >= s for e, s in zip(extra, stride, strict=True)):
        raise ValueError(f"{op}: output_padding {extra} must be smaller than stride {stride}, as it picks one of the "
                         "input sizes that the stride maps to one output; leave it 0")
    size = tuple((n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, k, s, p, d, e in
                 zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, extra, strict=True))
    if min(size) < 1:
        raise ValueError(f"{op}: input {tuple(x.shape)}, weight {tuple(weight.shape)}, stride {stride} and padding "
                         f"{padding} give an empty output {size}: pad less")
    y = Conv2dInputGrad.apply(channels_last(x), channels_last(weight), stride=stride, padding=padding,
                              dilation=dilation, groups=groups, x_shape=(x.shape[0], weight.shape[1] * groups, *size))
    return y if bias is None else add(y, reshape(bias, (1, -1, 1, 1)))


def _check(op: str, x: Any, weight: Any, bias: Any, out_dim: int, groups: int) -> None:
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(f"{op}: expected input (N, C, H, W) and a 4-D weight, got {tuple(x.shape)} and "
                         f"{tuple(weight.shape)}; add a batch dimension with x[None] or a channel with unsqueeze(1)")
    if bias is not None:
        check_tensors(op, bias=bias)
    arrays_of(op, (x, weight, bias), optional=True)
    check_floats(op, input=x, weight=weight)
    if min(x.shape) < 1 or min(weight.shape) < 1:
        raise ValueError(f"{op}: empty input {tuple(x.shape)} or weight {tuple(weight.shape)}; expected at least one "
                         "image, channel, row and column: leave out empty batches")
    if not _whole(groups) or groups < 1 or weight.shape[0] % groups or x.shape[1] % groups:
        raise ValueError(f"{op}: groups={groups!r} must divide the input's {x.shape[1]} channels and the weight's "
                         f"{weight.shape[0]}")
    channels = weight.shape[0] if out_dim == 0 else weight.shape[1] * groups
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"{op}: bias {tuple(bias.shape)} must have shape ({channels},), one per output channel")


def _wrong_channels(op: str, x: Any, weight: Any, takes: int, groups: int) -> ValueError:
    """The error for an input of other channels than the weight takes; it tells images that came as (N, H, W, C)."""
    fix = f"set in_channels={x.shape[1]}"
    if x.shape[3] == takes:
        fix = f"this looks like (N, H, W, C): use x.transpose(0, 3, 1, 2), or permute(0, 3, 1, 2) of a Tensor; or {fix}"
    return ValueError(f"{op}: input {tuple(x.shape)} has {x.shape[1]} channels, but weight {tuple(weight.shape)} with "
                      f"groups={groups} takes {takes}; {fix}")


def check_padding(op: str, padding: Any, kernel: tuple[int, ...], stride: tuple[int, int],
                  dilation: tuple[int, int]) -> tuple[int, int]:
    """The padding as two ints. Raises ValueError for a word that is not known, or where "same" cannot be."""
    if padding == "valid":
        return 0, 0
    if padding == "same":
        extent = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if stride != (1, 1) or any(e % 2 for e in extent):
            raise ValueError(f"{op}: padding='same' needs stride 1 and an odd dilated kernel, got stride {stride} "
                             f"and kernel {tuple(kernel)}; give padding as numbers")
        return extent[0] // 2, extent[1] // 2
    if isinstance(padding, str):
        raise ValueError(f"{op}: padding must be numbers, 'same' or 'valid', got {padding!r}")
    return pair(op, "padding", padding, 0)
