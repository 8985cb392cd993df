"""Ops that write into their first input: `x += y`, `x.add_(y)`, `relu_(x)`. Each has the rule of the op it is named
after; the engine refuses a leaf that requires a gradient, and finds out who kept the old values (see operands.py)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres.kernels.layout import array_module
from tinyres.operands import check_devices, check_writable, unfit
from tinyres.ops.elementwise import Add, Div, Mul, Relu, Sub, raw
from tinyres.state import state
from tinyres.tensor import Tensor


class AddInplace(Add):
    """a += b, with the rule of Add."""

    name = "add_"
    inplace = True

    def forward(self, a: Any, b: Any) -> Any:
        self.shapes = a.shape, getattr(b, "shape", ())
        return _into(self.name, operator.iadd, a, _fitting(self.name, a, b))


class SubInplace(Sub):
    """a -= b, with the rule of Sub."""

    name = "sub_"
    inplace = True

    def forward(self, a: Any, b: Any) -> Any:
        self.shapes = a.shape, getattr(b, "shape", ())
        return _into(self.name, operator.isub, a, _fitting(self.name, a, b))


class MulInplace(Mul):
    """a *= b, with the rule of Mul on the old a, of which it keeps a copy: the rule for b needs it."""

    name = "mul_"
    inplace = True

    def forward(self, a: Any, b: Any) -> Any:
        self.shapes = a.shape, getattr(b, "shape", ())
        b = _fitting(self.name, a, b)
        self.save(a.copy(order="K"), b)
        return _into(self.name, operator.imul, a, b)

    def factors(self) -> Any:
        return _old(self)


class DivInplace(Div):
    """a /= b, with the rule of Div on the old a, of which it keeps a copy."""

    name = "div_"
    inplace = True

    def forward(self, a: Any, b: Any) -> Any:
        if a.dtype.kind != "f":
            raise _no_floats(self.name, a)
        self.shapes = a.shape, getattr(b, "shape", ())
        b = _fitting(self.name, a, b)
        self.save(a.copy(order="K"), b)
        return _into(self.name, operator.itruediv, a, b)

    def factors(self) -> Any:
        return _old(self)


class ReluInplace(Relu):
    """Relu written into its input; its rule needs only the output, so the input may go."""

    name = "relu_"
    inplace = True

    def forward(self, x: Any) -> Any:
        array_module(x).maximum(x, 0, out=x)
        self.save(x)
        return x


def _old(node: Any) -> Any:
    """Both operands as they were before the op; under create_graph the copy stands for the old value of the first."""
    a, b = node.saved
    if node.linking and node.edges[0] is not None:
        a = Tensor(a)
        a.node = node.edges[0]
    return a, b


def _no_floats(name: str, a: Any) -> TypeError:
    return TypeError(f"{name}: floats do not fit into a tensor of {a.dtype} in place; convert that first with "
                     "astype('float32')")


def _fitting(name: str, a: Any, b: Any) -> Any:
    """b in the dtype of a, in whose memory the result must fit."""
    if a.dtype.kind != "f" and (isinstance(b, float) or getattr(b, "dtype", a.dtype).kind == "f"):
        raise _no_floats(name, a)
    return b if getattr(b, "dtype", a.dtype) == a.dtype else b.astype(a.dtype)


def _into(name: str, fn: Callable, a: Any, b: Any) -> Any:
    try:
        return fn(a, b)
    except ValueError as error:
        raise ValueError(f"{name}: an operand of shape {getattr(b, 'shape', ())} does not fit into {a.shape} in place; "
                         "use the op without underscore") from error


def add_(x: Tensor, other: Any) -> Tensor:
    """x += other in place; returns x. Like the others here it raises RuntimeError for a leaf that requires a gradient,
    unless inside no_grad(), and TypeError for floats that would have to fit into integers."""
    return AddInplace.apply(x, other)


def sub_(x: Tensor, other: Any) -> Tensor:
    """x -= other in place; returns x."""
    return SubInplace.apply(x, other)


def mul_(x: Tensor, other: Any) -> Tensor:
    """x *= other in place; returns x."""
    return MulInplace.apply(x, other)


def div_(x: Tensor, other: Any) -> Tensor:
    """x /= other in place; returns x."""
    return DivInplace.apply(x, other)


def setitem(x: Tensor, index: Any, value: Any) -> None:
    """x[index] = value in place. Raises RuntimeError where a gradient would be lost, TypeError for floats that would
    have to fit into integers, IndexError and ValueError for what does not fit the shape."""
    if x.requires_grad and not x.is_leaf:
        raise RuntimeError("setitem: assigning to a slice of a tensor that was computed would lose its gradient; use "
                           "where(), concat() or pad()")
    if x.requires_grad:
        raise RuntimeError("setitem: assigning to a slice of a leaf that requires a gradient would not be seen by "
                           "backward(); write into .data inside no_grad()")
    check_writable("setitem", x)
    if array_module(x.data) is np:
        check_devices("setitem", x, value)
    try:
        number = isinstance(value, (bool, int, float))  # is not moved to the device as an array
        values = np.asarray(value) if number else array_module(x.data).asarray(raw(value))
        if values.dtype.kind not in "fiub":
            raise unfit("setitem", values)
        if values.dtype.kind == "f" and x.dtype.kind != "f":
            raise _no_floats("setitem", x)
        place = tuple(raw(p) for p in index) if isinstance(index, tuple) else raw(index)
        x.data[place] = value if number else values
    except (IndexError, ValueError) as error:
        raise type(error)(f"setitem: shape {x.shape}: {error}; the index must exist, and the values must broadcast to "
                          "what it selects") from error
    x.bump("__setitem__")


def relu_(x: Tensor) -> Tensor:
    """relu in place: x itself is changed and returned. Right only where nobody kept the old x for backward; an op that
    did says so in backward()."""
    if state.choices is not None:
        return MulInplace.apply(x, state.choices.take("relu_", raw(x) > 0).astype(x.dtype))
    return ReluInplace.apply(x)
