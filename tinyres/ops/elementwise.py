"""Element by element: arithmetic, exp, log, relu and their kin, with broadcasting.

Read an op as a row of a table of derivatives: what it computes, what it keeps, and the rule. `grad` is the upstream
gradient, of the output's shape; `sum_to` undoes the broadcasting of an operand.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres.kernels.layout import array_module, elementwise
from tinyres.operands import alike
from tinyres.ops.broadcast import sum_to
from tinyres.state import state
from tinyres.tensor import Function, Tensor


def raw(x: Any) -> Any:
    """The array of a Tensor; anything else as it is. For masks and indices, which carry no gradient."""
    return x.data if isinstance(x, Tensor) else x


def _shape(x: Any) -> tuple[int, ...]:
    return getattr(x, "shape", ())


class Binary(Function):
    """An op of two operands that broadcast. Integers next to floats become floats of the same width."""

    fresh = True

    def operands(self, a: Any, b: Any) -> tuple[Any, Any]:
        a, b = alike((a, b))
        self.shapes = _shape(a), _shape(b)
        return a, b

    def run(self, fn: Callable, *operands: Any) -> Any:
        return broadcasting(self.name, fn, *operands)


def broadcasting(op: str, fn: Callable, *operands: Any) -> Any:
    """fn of operands that broadcast. Raises ValueError with their shapes where they do not."""
    try:
        return elementwise(fn, *operands)
    except ValueError as error:
        shapes = [_shape(x) for x in operands]
        try:
            np.broadcast_shapes(*shapes)
        except ValueError:
            raise ValueError(f"{op}: shapes {' and '.join(map(str, shapes))} do not broadcast: counted from the right, "
                             "each dimension must be equal or 1; reshape one side") from error
        raise ValueError(f"{op}: {error}") from error
    except (TypeError, OverflowError) as error:  # booleans subtracted, 300 added to bytes
        kinds = ", ".join(str(getattr(x, "dtype", x)) for x in operands)
        raise TypeError(f"{op}: not defined for {kinds}; use astype('float32')") from error


class Add(Binary):
    """y = a + b;  da = g, db = g."""

    fresh = False  # the upstream gradient itself is handed on, to both sides

    def forward(self, a: Any, b: Any) -> Any:
        return self.run(operator.add, *self.operands(a, b))

    def backward(self, grad: Any) -> Any:
        return tuple(sum_to(grad, s) if need else None for s, need in zip(self.shapes, self.needs, strict=True))


class Sub(Binary):
    """y = a - b;  da = g, db = -g."""

    fresh = False

    def forward(self, a: Any, b: Any) -> Any:
        return self.run(operator.sub, *self.operands(a, b))

    def backward(self, grad: Any) -> Any:
        return (sum_to(grad, self.shapes[0]) if self.needs[0] else None,
                sum_to(neg(grad), self.shapes[1]) if self.needs[1] else None)


class Mul(Binary):
    """y = a b;  da = g b, db = g a."""

    def forward(self, a: Any, b: Any) -> Any:
        a, b = self.operands(a, b)
        self.save(a, b)
        return self.run(operator.mul, a, b)

    def backward(self, grad: Any) -> Any:
        a, b = self.factors()
        return (sum_to(mul(grad, b), self.shapes[0]) if self.needs[0] else None,
                sum_to(mul(grad, a), self.shapes[1]) if self.needs[1] else None)

    def factors(self) -> Any:
        """Both operands as they were before the op."""
        return self.saved


class Div(Binary):
    """y = a / b;  da = g / b, db = -g a / b**2."""

    def forward(self, a: Any, b: Any) -> Any:
        a, b = self.operands(a, b)
        self.save(a, b)
        return self.run(operator.truediv, a, b)

    def backward(self, grad: Any) -> Any:
        a, b = self.factors()
        return (sum_to(div(grad, b), self.shapes[0]) if self.needs[0] else None,
                sum_to(neg(div(mul(grad, a), mul(b, b))), self.shapes[1]) if self.needs[1] else None)

    def factors(self) -> Any:
        """Both operands as they were before the op."""
        return self.saved


class Pow(Binary):
    """y = a**b;  da = g b a**(b-1), db = g y log a."""

    def forward(self, a: Any, b: Any) -> Any:
        a, b = self.operands(a, b)
        out = self.run(operator.pow, a, b)
        self.save(a, b, out)
        return out

    def backward(self, grad: Any) -> Any:
        a, b, out = self.saved
        da = db = None
        if self.needs[0]:  # x**0 is constant, also at 0, where b * a**(b-1) would be 0 * inf
            slope = mul(pow(a, b - 1.0), b)
            da = sum_to(mul(grad, where(raw(b) == 0, 0.0, slope)), self.shapes[0])
        if self.needs[1]:  # 0**b is constant for b > 0, where out * log(a) would be 0 * -inf
            a = a if hasattr(a, "dtype") else array_module(raw(out)).asarray(a, out.dtype)
            base = where((raw(a) == 0) & (raw(b) >= 0), 1.0, a)
            db = sum_to(mul(grad, mul(out, log(base))), self.shapes[1])
        return da, db


class Maximum(Binary):
    """The larger operand gets the gradient; equal ones get half each, as in PyTorch."""

    pick = staticmethod(operator.gt)

    def forward(self, a: Any, b: Any) -> Any:
        a, b = self.operands(a, b)
        xp = array_module(a if hasattr(a, "strides") else b)
        share = self.run(self.pick, a, b) + 0.5 * elementwise(operator.eq, a, b)
        if state.choices is not None:
            share = state.choices.take(self.name, share)
            out = elementwise(lambda s, u, v: s * u + (1 - s) * v, share.astype(_float_dtype(a, b)), a, b)
        else:
            out = self.run(xp.maximum if self.pick is operator.gt else xp.minimum, a, b)
        self.save(share.astype(out.dtype))
        return out

    def backward(self, grad: Any) -> Any:
        (share,) = self.saved
        return (sum_to(mul(grad, share), self.shapes[0]) if self.needs[0] else None,
                sum_to(mul(grad, sub(1.0, share)), self.shapes[1]) if self.needs[1] else None)


class Minimum(Maximum):
    """The smaller operand gets the gradient; equal ones get half each."""

    pick = staticmethod(operator.lt)


def _float_dtype(a: Any, b: Any) -> Any:
    return a.dtype if hasattr(a, "dtype") else b.dtype


class Where(Function):
    """y = a where the mask is true, else b; each side gets g where it was taken."""

    fresh = True

    def forward(self, mask: Any, a: Any, b: Any) -> Any:
        xp = array_module(next((v for v in (mask, a, b) if hasattr(v, "strides")), mask))
        mask = xp.asarray(mask)  # it may be the bool that comparing two numbers gives
        a, b = alike((a, b))
        self.save(mask)
        self.shapes = (), _shape(a), _shape(b)
        out = broadcasting(self.name, xp.where, mask, a, b)
        from_numbers = out.dtype.kind == "f" and not hasattr(a, "dtype") and not hasattr(b, "dtype")
        return out.astype("float32") if from_numbers else out

    def backward(self, grad: Any) -> Any:
        mask = raw(self.saved[0])
        return (None, sum_to(where(mask, grad, 0.0), self.shapes[1]) if self.needs[1] else None,
                sum_to(where(mask, 0.0, grad), self.shapes[2]) if self.needs[2] else None)


class Neg(Function):
    """y = -x;  dx = -g."""

    fresh = True

    def forward(self, x: Any) -> Any:
        return broadcasting(self.name, operator.neg, x)

    def backward(self, grad: Any) -> Any:
        return neg(grad)


class Exp(Function):
    """y = exp x;  dx = g y."""

    fresh = True

    def forward(self, x: Any) -> Any:
        out = elementwise(array_module(x).exp, x)
        self.save(out)
        return out

    def backward(self, grad: Any) -> Any:
        (out,) = self.saved
        return mul(grad, out)


class Log(Function):
    """y = log x;  dx = g / x."""

    fresh = True

    def forward(self, x: Any) -> Any:
        self.save(x)
        return elementwise(array_module(x).log, x)

    def backward(self, grad: Any) -> Any:
        (x,) = self.saved
        return div(grad, x)


class Sqrt(Function):
    """y = sqrt x;  dx = g / (2 y)."""

    fresh = True

    def forward(self, x: Any) -> Any:
        out = elementwise(array_module(x).sqrt, x)
        self.save(out)
        return out

    def backward(self, grad: Any) -> Any:
        (out,) = self.saved
        return div(mul(grad, 0.5), out)


class Tanh(Function):
    """y = tanh x;  dx = g (1 - y**2)."""

    fresh = True

    def forward(self, x: Any) -> Any:
        out = elementwise(array_module(x).tanh, x)
        self.save(out)
        return out

    def backward(self, grad: Any) -> Any:
        (out,) = self.saved
        return mul(grad, sub(1.0, mul(out, out)))


class Sigmoid(Function):
    """y = 1 / (1 + exp(-x));  dx = g y (1 - y)."""

    fresh = True

    def forward(self, x: Any) -> Any:
        xp = array_module(x)  # 1 / (1 + exp(-x)) overflows for large -x; this form does not
        out = elementwise(lambda v: 0.5 * (xp.tanh(0.5 * v) + 1), x)
        self.save(out)
        return out

    def backward(self, grad: Any) -> Any:
        (out,) = self.saved
        return mul(grad, mul(out, sub(1.0, out)))


class Abs(Function):
    """y = |x|;  dx = g sign x."""

    fresh = True

    def forward(self, x: Any) -> Any:
        sign = elementwise(array_module(x).sign, x)
        if state.choices is not None:
            sign = state.choices.take(self.name, sign)
        self.save(sign)
        return elementwise(operator.mul, x, sign)

    def backward(self, grad: Any) -> Any:
        (sign,) = self.saved
        return mul(grad, sign)


class Relu(Function):
    """max(x, 0). NaN stays NaN; the gradient at exactly 0 is 0."""

    fresh = True

    def forward(self, x: Any) -> Any:
        out = elementwise(array_module(x).maximum, x, 0)
        self.save(out)
        return out

    def backward(self, grad: Any) -> Any:
        (out,) = self.saved
        return where(raw(out) <= 0, 0.0, grad)


def add(a: Any, b: Any) -> Any:
    """a + b with broadcasting. Raises ValueError for shapes that do not broadcast, TypeError for mixed float dtypes."""
    return Add.apply(a, b)


def sub(a: Any, b: Any) -> Any:
    """a - b with broadcasting."""
    return Sub.apply(a, b)


def mul(a: Any, b: Any) -> Any:
    """a * b, element by element, with broadcasting."""
    return Mul.apply(a, b)


def div(a: Any, b: Any) -> Any:
    """a / b, element by element, with broadcasting. Division by zero gives inf or nan, as IEEE 754 says."""
    return Div.apply(a, b)


def pow(a: Any, b: Any) -> Any:
    """a ** b, element by element; b a number, an array or a Tensor."""
    return Pow.apply(a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger of a and b, element by element; NaN wins. At a tie each side gets half of the gradient."""
    return Maximum.apply(a, b)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of a and b, element by element; NaN wins. At a tie each side gets half of the gradient."""
    return Minimum.apply(a, b)


def where(mask: Any, a: Any, b: Any) -> Any:
    """a where mask is true, else b; all three broadcast. The mask is an array or Tensor of booleans."""
    dtype = getattr(mask, "dtype", None)
    if getattr(dtype, "kind", "") != "b" and not isinstance(mask, bool):
        raise TypeError(f"where: the mask must hold booleans, got {dtype or type(mask).__name__}; "
                        "compare first, as in where(x > 0, x, y)")
    return Where.apply(mask, a, b)


def neg(x: Any) -> Any:
    """-x."""
    return Neg.apply(x)


def exp(x: Any) -> Any:
    """e ** x. Like log, sqrt, tanh and sigmoid it raises TypeError for integers, which NumPy would turn into floats of
    a width of its own choice: float16 for bytes, float64 for others."""
    return Exp.apply(_floating("exp", x))


def log(x: Any) -> Any:
    """The natural logarithm of floats; -inf at 0 and nan below."""
    return Log.apply(_floating("log", x))


def sqrt(x: Any) -> Any:
    """The square root of floats; nan below 0. Its derivative at 0 is inf."""
    return Sqrt.apply(_floating("sqrt", x))


def tanh(x: Any) -> Any:
    """The hyperbolic tangent of floats."""
    return Tanh.apply(_floating("tanh", x))


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)) of floats, without overflow."""
    return Sigmoid.apply(_floating("sigmoid", x))


def _floating(op: str, x: Any) -> Any:
    dtype = getattr(x, "dtype", None)
    if getattr(dtype, "kind", "f") in "iub":
        raise TypeError(f"{op}: expected floats, got {dtype}; use astype('float32')")
    return x


def abs(x: Any) -> Any:
    """|x|; the gradient at 0 is 0."""
    return Abs.apply(x)


def relu(x: Any) -> Any:
    """max(x, 0) (Nair and Hinton 2010). NaN stays NaN; the gradient at exactly 0 is 0."""
    if state.choices is not None:
        return where(state.choices.take("relu", raw(x) > 0), x, 0.0)
    return Relu.apply(x)


def clamp(x: Any, min: float | None = None, max: float | None = None) -> Any:
    """x cut off below `min` and above `max`; the gradient is that of x between them (bounds included) and 0 outside."""
    if min is None and max is None:
        raise ValueError("clamp: give min, max or both")
    low, high = -math.inf if min is None else min, math.inf if max is None else max
    if not all(isinstance(bound, (int, float, np.number)) for bound in (low, high)) or not low <= high:
        raise ValueError(f"clamp: min and max must be numbers, min not above max, got {min!r} and {max!r}")
    if min is not None:
        x = where(_choice("clamp", raw(x) < min), float(min), x)
    if max is not None:
        x = where(_choice("clamp", raw(x) > max), float(max), x)
    return x


def _choice(name: str, mask: Any) -> Any:
    return mask if state.choices is None else state.choices.take(name, mask)
