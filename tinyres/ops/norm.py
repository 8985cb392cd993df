"""Batch normalisation, alone or with the addition and the ReLU that follow it in a residual block."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyres import kernels
from tinyres.kernels import layout
from tinyres.operands import arrays_of, check_devices, check_floats, check_tensors, check_writable
from tinyres.ops.elementwise import raw, relu, sqrt, where
from tinyres.ops.fused import Fused
from tinyres.ops.reduce import mean as mean_over
from tinyres.ops.shape import channels_last, reshape
from tinyres.state import state
from tinyres.tensor import Tensor


class BatchNorm(Fused):
    """y = (x - mean) / sqrt(var + eps) * weight + bias [+ residual] [then ReLU], per channel.

    With g' the gradient before the ReLU, M values per channel, xhat = (x - mean) * istd and istd = 1 / sqrt(var + eps),
    in training mode (Ioffe and Szegedy 2015, section 3)

        dx = weight * istd * (g' - sum(g')/M - xhat * sum(g' * xhat)/M)

    the direct route, the route through the mean, and the route through the variance. It is a*g' + b*x + d with three
    numbers per channel, so two passes over memory do: one for the sums, one for dx. The residual receives g' itself.
    """

    def forward(self, x: Any, weight: Any, bias: Any, residual: Any, *, mean: Any, var: Any, training: bool, eps: float,
                relu: bool) -> Any:
        istd = 1.0 / (var + eps) ** 0.5
        scale = weight * istd
        y = kernels.batch_norm_apply(x, scale.astype(x.dtype), (bias - mean * scale).astype(x.dtype), residual, relu)
        self.save(x, weight, bias, residual, y if relu else None, mean, istd)
        return y

    def fused_backward(self, grad: Any) -> Any:
        x, weight, _, _, y, mean, istd = self.saved
        sum_g, sum_gx = kernels.batch_norm_grad_sums(grad, x, mean, y)
        dx = dresidual = None
        if self.needs[0] or self.needs[3]:
            a = weight * istd
            b = d = 0.0 * a
            if self.params["training"]:
                count = x.size // x.shape[1]
                b = -a * istd * istd * sum_gx / count
                d = -a * sum_g / count - b * mean
            a, b, d = (v.astype(x.dtype) for v in (a, b, d))
            dx, dresidual = kernels.batch_norm_input_grad(grad, x, a, b, d, y, self.needs[3])
        return dx, (sum_gx * istd).astype(x.dtype), sum_g.astype(x.dtype), dresidual

    fresh = True
    optional = True

    @staticmethod
    def spec(x: Any, weight: Any, bias: Any, residual: Any, *, mean: Any, var: Any, training: bool, eps: float,
             relu: bool) -> Any:
        dims, channel = (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)
        if training:
            mean = mean_over(x, dims, keepdim=True)
            var = mean_over((x - mean) * (x - mean), dims, keepdim=True)
        else:
            mean, var = (v.astype(x.dtype).reshape(channel) for v in (mean, var))
        y = (x - mean) / sqrt(var + eps) * reshape(weight, channel) + reshape(bias, channel)
        y = y if residual is None else y + residual
        return relu_of(y) if relu else y


relu_of = relu  # `relu` names a flag in this file


def batch_norm(x: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
               training: bool = False, momentum: float = 0.1, eps: float = 1e-5, add: Any = None,
               relu: bool = False) -> Any:
    """Batch normalisation over dim 1, then `+ add`, then ReLU, each if asked for (Ioffe and Szegedy 2015).

    x: (N, C) or (N, C, ...); weight, bias: (C,) or None for 1 and 0; add: x's shape, the shortcut of a residual block.
    training: normalise by the batch (biased variance) and move running_mean and running_var, (C,) arrays or Tensors
    changed in place, by `momentum` towards the batch's mean and unbiased variance, as PyTorch does. Otherwise normalise
    by the running values. Raises ValueError for shapes that do not fit, for missing running values in eval mode, and in
    training for fewer than two values per channel.
    """
    check_tensors("batch_norm", input=x)
    if x.ndim < 2:
        raise ValueError(f"batch_norm: expected input (N, C) or (N, C, ...), got shape {tuple(x.shape)}; give a single "
                         "sample a batch dimension with x[None]")
    check_floats("batch_norm", input=x)
    arrays_of("batch_norm", (x, weight, bias, add), optional=True)
    check_devices("batch_norm", x, running_mean, running_var)
    if not 0 <= eps < math.inf or not 0 <= momentum <= 1:
        raise ValueError(f"batch_norm: eps must not be negative, and momentum, the share of the new batch, must lie in "
                         f"[0, 1], got {eps} and {momentum}; the usual values are 1e-5 and 0.1")
    C = x.shape[1]
    named = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    for name, value in named.items():
        if value is not None and value.shape != (C,):
            raise ValueError(f"batch_norm: {name} has shape {tuple(value.shape)}, but the input {tuple(x.shape)} has "
                             f"{C} channels: expected ({C},)")
    if add is not None and add.shape != x.shape:
        raise ValueError(f"batch_norm: cannot add {tuple(add.shape)} to {tuple(x.shape)}: where a block changes the "
                         "shape, its shortcut must change it too (zero padding or a 1x1 convolution, same stride)")
    if x.ndim == 4:
        x, add = channels_last(x), None if add is None else channels_last(add)
    array = raw(x)
    if training:
        count = array.size // max(C, 1)
        if count < 2:
            raise ValueError(f"batch_norm: input {tuple(x.shape)} has {count} value(s) per channel, and training needs "
                             "at least 2; use a larger batch or eval()")
        for name, running in (("running_mean", running_mean), ("running_var", running_var)):
            check_writable(f"batch_norm: {name}", running)
        mean, var = kernels.batch_norm_stats(array)
        _move(running_mean, mean, momentum)
        _move(running_var, var * (count / (count - 1)), momentum)
    elif running_mean is None or running_var is None:
        raise ValueError("batch_norm: eval mode needs running_mean and running_var, got none: give both, or "
                         "training=True")
    else:
        mean, var = (raw(v).astype(np.float64) for v in (running_mean, running_var))
    xp = layout.array_module(array)
    weight = xp.ones(C, array.dtype) if weight is None else weight
    bias = xp.zeros(C, array.dtype) if bias is None else bias
    options = {"mean": mean, "var": var, "training": training, "eps": float(eps)}
    if relu and state.choices is not None and not state.unfused:  # the spec's own relu asks for its choice
        if state.choices.frozen:
            y = BatchNorm.apply(x, weight, bias, add, relu=False, **options)
            return where(state.choices.take("batch_norm", raw(y) > 0), y, 0.0)
        y = BatchNorm.apply(x, weight, bias, add, relu=True, **options)
        state.choices.take("batch_norm", raw(y) > 0)
        return y
    return BatchNorm.apply(x, weight, bias, add, relu=relu, **options)


def _move(running: Any, batch: Any, momentum: float) -> None:
    if running is None:
        return
    if state.calls is not None:
        state.calls.moves(running)
    array = raw(running)
    array += momentum * (batch - array).astype(array.dtype)
    if isinstance(running, Tensor):
        running.bump("batch_norm")
