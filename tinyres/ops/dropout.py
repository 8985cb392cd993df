"""Dropout, whose mask is never stored."""

from __future__ import annotations

from typing import Any

from tinyres import kernels, random
from tinyres.operands import check_floats, check_tensors
from tinyres.tensor import Function


class Dropout(Function):
    """y = m x, with m = 0 or 1 / (1 - p);  dx = m g: the same op again, as the key makes the same mask again."""

    fresh = True

    def forward(self, x: Any, *, p: float, key: int) -> Any:
        return kernels.dropout(x, p, key)

    def backward(self, grad: Any) -> Any:
        return Dropout.apply(grad, **self.params)


def dropout(x: Any, p: float = 0.5, training: bool = True) -> Any:
    """Zeroes each element with probability p and divides the others by 1 - p, in training (Srivastava et al. 2014).

    x: floats of any shape. The mask is a function of p, of each element's position, and of a key, one word of 64 bits
    that each call draws from tinyres.random.generator(): a seed gives the same mask on every device and kernel set.
    Infinities and NaN among the zeroed elements become NaN, as 0 * x is. Raises ValueError unless 0 <= p < 1, TypeError
    for other than floats.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must be at least 0 and less than 1, got {p}: it is the share that is zeroed")
    check_tensors("dropout", input=x)
    check_floats("dropout", input=x)
    if not training or p == 0:
        return x
    return Dropout.apply(x, p=float(p), key=random.key())
