"""Matrix products: the linear layer, and matmul over batches."""

from __future__ import annotations

from typing import Any

from tinyres.operands import alike, arrays_of, check_floats, check_tensors
from tinyres.ops.broadcast import sum_to
from tinyres.ops.elementwise import add, raw
from tinyres.ops.shape import reshape, squeeze, transpose, unsqueeze
from tinyres.tensor import Function


class Matmul(Function):
    """C = A B;  dA = G B^T,  dB = A^T G, summed where a batch dimension was broadcast."""

    fresh = True

    def forward(self, a: Any, b: Any) -> Any:
        a, b = alike((a, b))
        self.save(a, b)
        try:
            return a @ b
        except ValueError as error:
            raise ValueError(f"matmul: shapes {a.shape} and {b.shape}: all but the last two dimensions must broadcast: "
                             "counted from the right, be equal or 1; reshape one side") from error

    def backward(self, grad: Any) -> Any:
        a, b = self.saved
        da = sum_to(matmul(grad, transpose(b)), a.shape) if self.needs[0] else None
        db = sum_to(matmul(transpose(a), grad), b.shape) if self.needs[1] else None
        return da, db


def matmul(a: Any, b: Any) -> Any:
    """The matrix product (..., M, K) @ (..., K, N) -> (..., M, N); leading dimensions broadcast, a 1-D operand is a row
    on the left and a column on the right, as in NumPy. Raises ValueError for inner lengths that differ."""
    check_tensors("matmul", first=a, second=b)
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape}: both need at least one dimension; use * for numbers")
    if a.shape[-1] != (b.shape[-2] if b.ndim > 1 else b.shape[0]):
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape}: the last length of the first, {a.shape[-1]}, must "
                         f"equal the {'second last' if b.ndim > 1 else 'only'} length of the second; transpose one")
    left, right = a.ndim == 1, b.ndim == 1
    out = Matmul.apply(unsqueeze(a, 0) if left else a, unsqueeze(b, 1) if right else b)
    out = squeeze(out, -2) if left else out
    return squeeze(out, -1) if right else out


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """x W^T + b: x (..., C), weight (K, C), bias (K,) or None -> (..., K). Raises ValueError for other shapes."""
    check_tensors("linear", input=x, weight=weight)
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear: input {tuple(x.shape)} and weight {tuple(weight.shape)}: expected (..., C) and "
                         "(K, C) with one C; flatten the input or set in_features to its last length")
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"linear: bias {tuple(bias.shape)} must have shape ({weight.shape[0]},), one per row of "
                         f"weight {tuple(weight.shape)}")
    arrays_of("linear", (x, weight, bias), optional=True)
    if raw(weight).dtype.kind == "f":
        check_floats("linear", input=x)
    rows = reshape(x, (-1, x.shape[-1])) if x.ndim > 2 else x
    out = matmul(rows, transpose(weight))
    out = reshape(out, (*x.shape[:-1], weight.shape[0])) if x.ndim > 2 else out
    return out if bias is None else add(out, bias)
