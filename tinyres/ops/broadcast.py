"""Broadcasting and its transpose. Copying a value to many places forward is adding up their gradients backward, and
the other way round: `broadcast_to` and `sum_to` are each other's backward, and all ops get their broadcasting here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyres.kernels.layout import array_module, channels_last, nchw, reduced
from tinyres.operands import check_tensors, whole_numbers
from tinyres.tensor import Function


class BroadcastTo(Function):
    """x repeated to a larger shape;  dx = g summed over the repeats."""

    fresh = True

    def forward(self, x: Any, *, shape: tuple[int, ...]) -> Any:
        self.input_shape = x.shape
        view = array_module(x).broadcast_to(x, shape)
        # Kernels read images as contiguous memory, so an image is written out here, once, in its final order.
        return nchw(view.transpose(0, 2, 3, 1).copy()) if len(shape) == 4 else view

    def backward(self, grad: Any) -> Any:
        return sum_to(grad, self.input_shape)


class SumTo(Function):
    """x summed to a smaller shape;  dx = g repeated."""

    fresh = True

    def forward(self, x: Any, *, shape: tuple[int, ...]) -> Any:
        self.input_shape = x.shape
        lead = x.ndim - len(shape)
        axes = tuple(range(lead)) + tuple(lead + i for i, n in enumerate(shape) if n == 1 and x.shape[lead + i] != 1)
        # A float32 sum over N*H*W terms loses digits that batch statistics need, so the accumulator is float64.
        total = reduced(x, "sum", axes, dtype=np.float64 if x.dtype == np.float32 else None)
        total = total.astype(x.dtype, copy=False).reshape(shape)
        return channels_last(total) if total.ndim == 4 else total

    def backward(self, grad: Any) -> Any:
        return broadcast_to(grad, self.input_shape)


def broadcast_to(x: Any, shape: tuple[int, ...]) -> Any:
    """x repeated along new and length-1 dimensions until it has `shape`; a read-only view (4-D: a copy).

    Raises ValueError where a dimension of x is neither 1 nor that of `shape`. NumPy's broadcasting rules.
    """
    check_tensors("broadcast_to", input=x)
    shape = whole_numbers("broadcast_to", "each length", shape if isinstance(shape, (tuple, list)) else (shape,))
    if x.shape == shape:
        return x
    _check_broadcast("broadcast_to", x.shape, shape)
    return BroadcastTo.apply(x, shape=shape)


def sum_to(x: Any, shape: tuple[int, ...]) -> Any:
    """x summed over the dimensions that broadcasting from `shape` to x.shape would add or stretch: the adjoint of
    broadcast_to. Float32 is accumulated in float64. Raises ValueError unless `shape` broadcasts to x.shape."""
    shape = tuple(shape)
    if x.shape == shape:
        return x
    _check_broadcast("sum_to", shape, x.shape)
    return SumTo.apply(x, shape=shape)


def _check_broadcast(op: str, shape: tuple[int, ...], to: tuple[int, ...]) -> None:
    padded = (1,) * (len(to) - len(shape)) + tuple(shape)
    if len(padded) != len(to) or any(n not in (1, m) for n, m in zip(padded, to, strict=True)):
        raise ValueError(f"{op}: shape {tuple(shape)} does not broadcast to {tuple(to)}: each dimension, counted from "
                         "the right, must be equal or 1")
