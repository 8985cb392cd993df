"""Sums, means and extremes over dimensions. `dim` is one dimension, several, or None for all; as in PyTorch."""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

from tinyres.kernels.layout import array_module, elementwise, reduced
from tinyres.operands import check_tensors
from tinyres.ops.broadcast import sum_to
from tinyres.ops.elementwise import exp, log, mul, neg, raw, sqrt, sub
from tinyres.ops.shape import _dims, gather, reshape, squeeze
from tinyres.state import state
from tinyres.tensor import Function, Tensor

Dim = Any  # int, a sequence of ints, or None


class MinMax(NamedTuple):
    """What max and min over a dimension return."""

    values: Any
    indices: Any


class Amax(Function):
    """Largest element over `dims`; equal ones share the gradient evenly, as in PyTorch's amax."""

    fresh = True

    def forward(self, x: Any, *, dims: tuple[int, ...]) -> Any:
        out = reduced(x, "max", dims)
        share = elementwise(operator.eq, x, out).astype(x.dtype)
        share /= reduced(share, "sum", dims)
        if state.choices is not None:
            share = state.choices.take(self.name, share)
            out = reduced(elementwise(operator.mul, x, share), "sum", dims).astype(x.dtype, copy=False)
        self.save(share)
        return out

    def backward(self, grad: Any) -> Any:
        (share,) = self.saved
        return mul(grad, share)


def _reduced(x: Any, dim: Dim, name: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """dims to reduce, the shape with them kept as 1, the shape with them dropped"""
    check_tensors(name, input=x)
    named = range(x.ndim) if dim is None else dim if isinstance(dim, (tuple, list, range)) else (dim,)
    dims = _dims(name, named, x.ndim)
    if len(set(dims)) < len(dims):
        raise ValueError(f"{name}: dim {dim} names a dimension of shape {tuple(x.shape)} twice; name each once")
    kept = tuple(1 if i in dims else n for i, n in enumerate(x.shape))
    return dims, kept, tuple(n for i, n in enumerate(x.shape) if i not in dims)


def sum(x: Any, dim: Dim = None, keepdim: bool = False) -> Any:
    """The sum over `dim`. float32 is accumulated in float64. Integers and booleans add up to int64."""
    dims, kept, dropped = _reduced(x, dim, "sum")
    if raw(x).dtype.kind in "iub":
        return _plain(x, raw(x).sum(axis=dims, keepdims=keepdim))
    return reshape(sum_to(x, kept), kept if keepdim else dropped)


def mean(x: Any, dim: Dim = None, keepdim: bool = False) -> Any:
    """The mean over `dim`. Raises TypeError for integers, ValueError over no elements."""
    dims, _, _ = _reduced(x, dim, "mean")
    _floats("mean", x)
    _not_empty("mean", x, dim, dims)
    count = math.prod(x.shape[d] for d in dims)
    return mul(sum(x, dim, keepdim), 1.0 / count)


def _floats(op: str, x: Any) -> None:
    if raw(x).dtype.kind != "f":
        raise TypeError(f"{op}: expected floats, got {raw(x).dtype}; use astype('float32')")


def _not_empty(op: str, x: Any, dim: Dim, dims: tuple[int, ...]) -> None:
    if any(x.shape[d] == 0 for d in dims):
        raise ValueError(f"{op}: shape {tuple(x.shape)} has no elements over dim {dim}; leave out what is empty")


def var(x: Any, dim: Dim = None, keepdim: bool = False, correction: int = 1) -> Any:
    """The variance over `dim`; correction 1 divides by count - 1 (Bessel), 0 by count."""
    dims, _, _ = _reduced(x, dim, "var")
    _floats("var", x)
    count = math.prod(x.shape[d] for d in dims)
    if count <= correction:
        raise ValueError(f"var: {count} elements over dim {dim} of shape {tuple(x.shape)} are too few for correction "
                         f"{correction}; correction=0 needs only one")
    centred = sub(x, mean(x, dim, keepdim=True))
    return mul(sum(mul(centred, centred), dim, keepdim), 1.0 / (count - correction))


def std(x: Any, dim: Dim = None, keepdim: bool = False, correction: int = 1) -> Any:
    """The standard deviation over `dim`: the square root of var."""
    return sqrt(var(x, dim, keepdim, correction))


def amax(x: Any, dim: Dim = None, keepdim: bool = False) -> Any:
    """The largest element over `dim`; equal ones share the gradient evenly."""
    dims, _, dropped = _reduced(x, dim, "amax")
    _not_empty("amax", x, dim, dims)
    out = Amax.apply(x, dims=dims)
    return out if keepdim else reshape(out, dropped)


def amin(x: Any, dim: Dim = None, keepdim: bool = False) -> Any:
    """The smallest element over `dim`; equal ones share the gradient evenly."""
    return neg(amax(neg(x), dim, keepdim))


def max(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The largest element of all, or with `dim` a pair (values, indices); the gradient goes to the first largest."""
    return amax(x) if dim is None else _extreme("max", x, dim, keepdim, argmax)


def min(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The smallest element of all, or with `dim` a pair (values, indices); the gradient goes to the first smallest."""
    return amin(x) if dim is None else _extreme("min", x, dim, keepdim, argmin)


def _extreme(op: str, x: Any, dim: int, keepdim: bool, arg: Any) -> MinMax:
    check_tensors(op, input=x)
    (dim,) = _dims(op, (dim,), x.ndim)
    index = arg(raw(x), dim, keepdim=True)
    if state.choices is not None:
        index = state.choices.take(op, index)
    values, kept = gather(x, dim, index), index if keepdim else index.squeeze(dim)
    return MinMax(values if keepdim else squeeze(values, dim), _plain(x, kept))


def argmax(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The index of the first largest element over `dim` (of all, in row-major order, for None); no gradient."""
    return _arg("argmax", x, dim, keepdim)


def argmin(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The index of the first smallest element over `dim`; no gradient."""
    return _arg("argmin", x, dim, keepdim)


def _arg(op: str, x: Any, dim: int | None, keepdim: bool) -> Any:
    dims, _, _ = _reduced(x, dim, op)
    _not_empty(op, x, dim, dims)
    if dim is not None and len(dims) != 1:
        raise ValueError(f"{op}: dim {dim} names {len(dims)} dimensions of shape {tuple(x.shape)}, expected one; give "
                         "None for all of them")
    axis = None if dim is None else dims[0]
    return _plain(x, getattr(raw(x), op)(axis=axis, keepdims=keepdim))


def _plain(x: Any, array: Any) -> Any:
    return Tensor(array) if isinstance(x, Tensor) else array_module(array).asarray(array)


class LogSoftmax(Function):
    """y = x - log(sum(exp(x))); dx = g - softmax(x) * sum(g)."""

    fresh = True

    def forward(self, x: Any, *, dim: int) -> Any:
        xp = array_module(x)
        shifted = elementwise(operator.sub, x, reduced(x, "max", (dim,)))  # the largest exponent is 0: no overflow
        total = reduced(elementwise(xp.exp, shifted), "sum", (dim,))
        out = elementwise(operator.sub, shifted, elementwise(xp.log, total))
        self.save(out)
        return out

    def backward(self, grad: Any) -> Any:
        (out,) = self.saved
        return sub(grad, mul(exp(out), sum(grad, self.params["dim"], keepdim=True)))


def log_softmax(x: Any, dim: int) -> Any:
    """log(exp(x) / sum(exp(x))) over `dim`, without overflow."""
    check_tensors("log_softmax", input=x)
    (dim,) = _dims("log_softmax", (dim,), x.ndim)
    _floats("log_softmax", x)
    _not_empty("log_softmax", x, dim, (dim,))
    return LogSoftmax.apply(x, dim=dim)


def softmax(x: Any, dim: int) -> Any:
    """exp(x) / sum(exp(x)) over `dim`, without overflow."""
    return exp(log_softmax(x, dim))


def logsumexp(x: Any, dim: Dim, keepdim: bool = False) -> Any:
    """log(sum(exp(x))) over `dim`, without overflow."""
    dims, kept, dropped = _reduced(x, dim, "logsumexp")
    _floats("logsumexp", x)
    _not_empty("logsumexp", x, dim, dims)
    xp, top = array_module(raw(x)), reduced(raw(x), "max", dims)
    top = xp.where(xp.isfinite(top), top, 0.0)  # inf - inf would be nan where all, or one, is infinite
    out = log(sum(exp(sub(x, top)), dim, keepdim=True))
    return reshape(out + top, kept if keepdim else dropped)
