"""Pooling. Max pooling is a gather by the index of each window's maximum, and its backward the scatter to the same
index; average pooling is linear, and its backward its adjoint. Every other rule follows from these two pairs."""

from __future__ import annotations

from typing import Any

from tinyres import kernels
from tinyres.kernels.layout import array_module
from tinyres.operands import check_floats, check_tensors
from tinyres.ops.conv import Pair, pair
from tinyres.ops.elementwise import raw
from tinyres.ops.linear import matmul
from tinyres.ops.reduce import mean
from tinyres.ops.shape import channels_last
from tinyres.state import state
from tinyres.tensor import Function


class MaxPool2d(Function):
    """The maximum of each window; its rule scatters g to the index of the maximum."""

    fresh = True

    def forward(self, x: Any, *, pool: Any) -> Any:
        y, index = pool(x)
        self.x_shape = x.shape
        self.save(index)
        return y

    def backward(self, grad: Any) -> Any:
        return ScatterHW.apply(grad, index=raw(self.saved[0]), x_shape=self.x_shape)


class GatherHW(Function):
    """y = x at an index per element; its adjoint is ScatterHW."""

    name = "gather_hw"
    fresh = True

    def forward(self, x: Any, *, index: Any) -> Any:
        self.x_shape = x.shape
        return kernels.gather_hw(x, index)

    def backward(self, grad: Any) -> Any:
        return ScatterHW.apply(grad, index=self.params["index"], x_shape=self.x_shape)


class ScatterHW(Function):
    """The adjoint of GatherHW: adds each value at its index."""

    name = "scatter_hw"
    fresh = True

    def forward(self, g: Any, *, index: Any, x_shape: Any) -> Any:
        return kernels.scatter_hw(g, index, x_shape)

    def backward(self, grad: Any) -> Any:
        return GatherHW.apply(grad, index=self.params["index"])


class AvgPool2d(Function):
    """The mean of each window, linear in x."""

    fresh = True

    def forward(self, x: Any, *, output: Any, **window: Any) -> Any:
        self.x_shape, self.window = x.shape, window
        return kernels.avg_pool2d(x, output=output, **window)

    def backward(self, grad: Any) -> Any:
        return AvgPool2dInputGrad.apply(grad, x_shape=self.x_shape, **self.window)


class AvgPool2dInputGrad(Function):
    """The adjoint of AvgPool2d: spreads each value over its window."""

    fresh = True

    def forward(self, g: Any, *, x_shape: Any, **window: Any) -> Any:
        self.output, self.window = g.shape[2:], window
        return kernels.avg_pool2d_input_grad(g, x_shape, **window)

    def backward(self, grad: Any) -> Any:
        return AvgPool2d.apply(grad, output=self.output, **self.window)


def max_pool2d(x: Any, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, dilation: Pair = 1,
               ceil_mode: bool = False) -> Any:
    """The maximum of each window: (N, C, H, W) -> (N, C, P, Q). Padding counts as -inf, NaN wins, and of equal elements
    the first gets the gradient. stride defaults to kernel_size. Raises ValueError where no window fits, or where
    padding exceeds half the kernel (a window could then lie in padding alone)."""
    kernel, stride, padding, dilation, output = _windows("max_pool2d", x, kernel_size, stride, padding, dilation,
                                                         ceil_mode)
    return _max("max_pool2d", x, lambda a: kernels.max_pool2d(a, kernel, stride, padding, dilation, output))


def adaptive_max_pool2d(x: Any, output_size: Pair) -> Any:
    """The maximum over a P x Q grid of windows that cover the image: (N, C, H, W) -> (N, C, P, Q)."""
    output = _grid("adaptive_max_pool2d", x, output_size)
    return _max("adaptive_max_pool2d", x, lambda a: kernels.adaptive_max_pool2d(a, output))


def _max(op: str, x: Any, pool: Any) -> Any:
    if x.dtype.kind == "f":  # integers have maxima too
        check_floats(op, input=x)
    x = channels_last(x)
    if state.choices is None:
        return MaxPool2d.apply(x, pool=pool)
    index = state.choices.take("max_pool2d", pool(raw(x))[1])
    return GatherHW.apply(x, index=index)


def avg_pool2d(x: Any, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0, ceil_mode: bool = False,
               count_include_pad: bool = True) -> Any:
    """The mean of each window: (N, C, H, W) -> (N, C, P, Q); padding counts as zeros, or with count_include_pad=False
    not at all. stride defaults to kernel_size. Raises ValueError where no window fits."""
    kernel, stride, padding, _, output = _windows("avg_pool2d", x, kernel_size, stride, padding, 1, ceil_mode)
    check_floats("avg_pool2d", input=x)
    return AvgPool2d.apply(channels_last(x), output=output, kernel=kernel, stride=stride, padding=padding,
                           count_include_pad=count_include_pad)


def adaptive_avg_pool2d(x: Any, output_size: Pair) -> Any:
    """The mean over a P x Q grid of windows that cover the image: (N, C, H, W) -> (N, C, P, Q). Window i of an axis
    covers floor(i*H/P) to ceil((i+1)*H/P), as in PyTorch; the mean along an axis is a product with a P x H matrix."""
    output = _grid("adaptive_avg_pool2d", x, output_size)
    check_floats("adaptive_avg_pool2d", input=x)
    if output == (1, 1):
        return mean(x, (2, 3), keepdim=True)
    if not any(n % m for n, m in zip(x.shape[2:], output, strict=True)):
        return avg_pool2d(x, tuple(n // m for n, m in zip(x.shape[2:], output, strict=True)))
    down, across = (_averaging(raw(x), n, m) for n, m in zip(x.shape[2:], output, strict=True))
    return channels_last(matmul(matmul(down, x), across.T))


def global_avg_pool2d(x: Any) -> Any:
    """The mean of each channel's image: (N, C, H, W) -> (N, C) (Lin et al. 2014)."""
    _images("global_avg_pool2d", x)
    return mean(x, (2, 3))


def _averaging(like: Any, size: int, output: int) -> Any:
    matrix = array_module(like).zeros((output, size), like.dtype)
    for i in range(output):
        start, end = i * size // output, -(-(i + 1) * size // output)
        matrix[i, start:end] = 1.0 / (end - start)
    return matrix


def _images(op: str, x: Any) -> None:
    check_tensors(op, input=x)
    if x.ndim != 4 or min(x.shape) < 1:
        raise ValueError(f"{op}: expected images (N, C, H, W), none of them empty, got shape {tuple(x.shape)}; "
                         "give one image a batch dimension with x[None]")


def _grid(op: str, x: Any, output_size: Pair) -> tuple[int, int]:
    _images(op, x)
    return pair(op, "output_size", output_size, 1)


def _windows(op: str, x: Any, kernel: Pair, stride: Pair | None, padding: Pair, dilation: Pair, ceil_mode: bool) -> Any:
    """The window's numbers as pairs, and how many windows fit into the image."""
    _images(op, x)
    kernel = pair(op, "kernel_size", kernel, 1)
    stride = pair(op, "stride", kernel if stride is None else stride, 1)
    padding, dilation = pair(op, "padding", padding, 0), pair(op, "dilation", dilation, 1)
    output = []
    for size, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True):
        if 2 * p > k:
            raise ValueError(f"{op}: padding {padding} may be at most half of kernel_size {kernel}")
        room = size + 2 * p - d * (k - 1) - 1
        n = (room + s - 1) // s + 1 if ceil_mode else room // s + 1
        if n < 1:
            raise ValueError(f"{op}: a window of {kernel} (dilation {dilation}) does not fit into {tuple(x.shape)} "
                             f"with padding {padding}; use a smaller window")
        n = n - 1 if (n - 1) * s >= size + p else n  # no window starts in the padding on the right
        if d > 1 and not all(any(0 <= i * s - p + t * d < size for t in range(k)) for i in range(n)):
            raise ValueError(f"{op}: with padding {padding} and dilation {dilation} a window of {kernel} sees "
                             f"nothing of the image {tuple(x.shape)} but padding; pad less")
        output.append(n)
    return kernel, stride, padding, dilation, tuple(output)
