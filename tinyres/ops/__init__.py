"""The ops, and their installation on Tensor: operators, methods, and the `add` with which the engine joins gradients.

Every op takes Tensors and records, or takes arrays and returns an array. One row of this file is one way to call an op.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from tinyres.operands import check_devices
from tinyres.ops import create, dlpack
from tinyres.ops.broadcast import broadcast_to, sum_to
from tinyres.ops.conv import conv2d, conv_transpose2d
from tinyres.ops.create import arange, astype, device, ones, rand, randn, tensor, to, zeros
from tinyres.ops.dlpack import from_dlpack
from tinyres.ops.dropout import dropout
from tinyres.ops.elementwise import (
    abs,
    add,
    broadcasting,
    clamp,
    div,
    exp,
    log,
    maximum,
    minimum,
    mul,
    neg,
    pow,
    raw,
    relu,
    sigmoid,
    sqrt,
    sub,
    tanh,
    where,
)
from tinyres.ops.inplace import add_, div_, mul_, relu_, setitem, sub_
from tinyres.ops.linear import linear, matmul
from tinyres.ops.loss import cross_entropy, mse_loss, nll_loss
from tinyres.ops.norm import batch_norm
from tinyres.ops.pool import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool2d,
    global_avg_pool2d,
    max_pool2d,
)
from tinyres.ops.reduce import (
    amax,
    amin,
    argmax,
    argmin,
    log_softmax,
    logsumexp,
    max,
    mean,
    min,
    softmax,
    std,
    sum,
    var,
)
from tinyres.ops.shape import (
    alias,
    channels_last,
    concat,
    flatten,
    gather,
    getitem,
    pad,
    permute,
    put,
    reshape,
    split,
    squeeze,
    stack,
    transpose,
    unsqueeze,
)
from tinyres.tensor import Function, Tensor

Function.join = staticmethod(add)
cat = concat

__all__ = [
    "abs", "adaptive_avg_pool2d", "adaptive_max_pool2d", "add", "alias", "amax", "amin", "arange", "argmax", "argmin",
    "astype", "avg_pool2d", "batch_norm", "broadcast_to", "cat", "channels_last", "clamp", "concat", "conv2d",
    "conv_transpose2d", "cross_entropy", "device", "div", "dropout", "exp", "flatten", "from_dlpack", "gather",
    "getitem", "global_avg_pool2d", "linear", "log", "log_softmax", "logsumexp", "matmul", "max", "max_pool2d",
    "maximum", "mean", "min", "minimum", "mse_loss", "mul", "neg", "nll_loss", "ones", "pad", "permute", "pow", "put",
    "rand", "randn", "relu", "relu_", "reshape", "sigmoid", "softmax", "split", "sqrt", "squeeze", "stack", "std",
    "sub", "sum", "sum_to", "tanh", "tensor", "to", "transpose", "unsqueeze", "var", "where", "zeros",
]

METHODS = [abs, amax, amin, argmax, argmin, astype, broadcast_to, clamp, exp, flatten, gather, log, log_softmax,
           logsumexp, matmul, max, mean, min, pad, permute, pow, relu, relu_, reshape, sigmoid, softmax, split, sqrt,
           squeeze, std, sum, sum_to, tanh, to, transpose, unsqueeze, var]
for _method in METHODS:
    setattr(Tensor, _method.__name__, _method)

OPERATORS = {"add": add, "sub": sub, "mul": mul, "truediv": div, "pow": pow, "matmul": matmul}
for _name, _op in OPERATORS.items():
    setattr(Tensor, f"__{_name}__", _op)
    setattr(Tensor, f"__r{_name}__", lambda self, other, op=_op: op(other, self))


def _compare(fn: Any) -> Any:
    def compare(self: Tensor, other: Any) -> Tensor:
        check_devices(fn.__name__, self, other)
        return Tensor(broadcasting(fn.__name__, fn, self.data, raw(other)))

    return compare


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Tensor, f"__{_name}__", _compare(getattr(operator, _name)))


def _item(self: Tensor) -> Any:
    """The only element as a Python number."""
    if self.data.size != 1:
        raise ValueError(f"item: a tensor of shape {self.shape} has {self.data.size} elements; index it or reduce it")
    return self.data.item()


def _numpy(self: Tensor) -> np.ndarray:
    """The values as a NumPy array, outside the graph: the tensor's own memory on the cpu, a copy from a GPU."""
    return create.move(self.data, "cpu")


def _repr(self: Tensor) -> str:
    values = np.array2string(_numpy(self), separator=", ", prefix="tensor(", threshold=200, edgeitems=2, precision=5)
    extra = "" if self.dtype == np.float32 else f", dtype={self.dtype}"
    place = create.device_of(self)
    extra += "" if place == "cpu" else f", device={place!r}"
    if self.requires_grad:
        extra += ", requires_grad=True" if self.node is None else f", node=<{self.node.name}>"
    return f"tensor({values}{extra})"


def _array(self: Tensor, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    if create.device_of(self) != "cpu":
        raise TypeError(f"np.asarray: a tensor of shape {self.shape} is on a GPU, and copying it to the host waits for "
                        "all work on it: say so with .numpy()")
    return np.array(self.data, dtype=dtype, copy=copy)


def _requires_grad(self: Tensor, value: bool = True) -> Tensor:
    """Set requires_grad and return the tensor."""
    self.requires_grad = value
    return self


def _iter(self: Tensor) -> Any:
    return (getitem(self, i) for i in range(_len(self)))


def _len(self: Tensor) -> int:
    if not self.ndim:
        raise TypeError("len: a tensor without dimensions is one number, and cannot be iterated over; use item()")
    return self.shape[0]


# PyTorch's methods that have another name here.
ELSEWHERE = {"view": "reshape()", "expand": "broadcast_to()", "clone": "tr.tensor(x), or x * 1.0 to keep the graph",
             "cat": "tr.concat()", "dim": ".ndim", "type": "astype()", "half": "astype()", "sub": "-", "add": "+",
             "mul": "*", "div": "/", "square": "** 2", "zero_": "zero_grad(), or .data[...] = 0"}


def _unknown(self: Tensor, name: str) -> Any:
    """The AttributeError; a plain look-up, since hasattr() asks it too. Python itself adds the nearest name."""
    hint = f": use {ELSEWHERE[name]}" if name in ELSEWHERE else ""
    raise AttributeError(f"'{type(self).__name__}' object has no attribute {name!r}{hint}", name=name, obj=self)


for _name, _fn in {
    "__neg__": neg, "__abs__": abs, "__getitem__": getitem, "__setitem__": setitem, "__iadd__": add_, "__isub__": sub_,
    "__imul__": mul_, "__itruediv__": div_, "add_": add_, "sub_": sub_, "mul_": mul_, "div_": div_, "__repr__": _repr,
    "__array__": _array, "__dlpack__": dlpack.export, "__dlpack_device__": dlpack.export_device,
    "__iter__": _iter, "__len__": _len, "__getattr__": _unknown,
    "__float__": lambda self: float(_item(self)), "__int__": lambda self: int(_item(self)),
    "__bool__": lambda self: bool(_item(self)), "__hash__": object.__hash__, "item": _item, "numpy": _numpy,
    "requires_grad_": _requires_grad, "numel": lambda self: int(self.data.size),
    "size": lambda self, d=None: self.shape if d is None else self.shape[d],
    "float": lambda self: astype(self, "float32"), "double": lambda self: astype(self, "float64"),
    "cpu": lambda self: to(self, "cpu"), "cuda": lambda self: to(self, "cuda"),
    "tolist": lambda self: _numpy(self).tolist(),
}.items():
    setattr(Tensor, _name, _fn)
Tensor.device = property(create.device_of)  # type: ignore[attr-defined]
Tensor.T = property(lambda self: permute(self, tuple(reversed(range(self.ndim)))))  # type: ignore[attr-defined]
