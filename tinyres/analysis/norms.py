"""Lengths and angles of arrays as Python floats, summed in float64; what is no number becomes None, as JSON has it."""

from __future__ import annotations

import math
from typing import Any


def dot(a: Any, b: Any) -> float:
    """<a, b> of two arrays of one shape; inf or nan where it overflows."""
    return float((a.astype("float64") * b).sum())


def norm(a: Any) -> float:
    """The Euclidean norm of an array, which does not overflow before its elements do."""
    top = float(abs(a).max()) if a.size else 0.0
    if not 0 < top < math.inf:
        return top
    scaled = a.astype("float64") / top
    return top * math.sqrt(float((scaled * scaled).sum()))


def cosine(a: Any, b: Any) -> float | None:
    """<a, b> / (|a| |b|); None where one of them is zero or not finite."""
    sizes = norm(a), norm(b)
    if not all(0 < size < math.inf for size in sizes):
        return None
    return dot(a.astype("float64") / sizes[0], b.astype("float64") / sizes[1])


def share(part: Any, whole: Any) -> float | None:
    """<part, whole> / <whole, whole>: shares of parts that sum to the whole sum to 1; they can be negative or more
    than 1. None where the whole is zero or not finite."""
    size = norm(whole)
    if not 0 < size < math.inf:
        return None
    return finite(dot(part.astype("float64") / size, whole.astype("float64") / size))


def finite(x: float) -> float | None:
    """x, or None for inf and nan."""
    return float(x) if math.isfinite(x) else None
