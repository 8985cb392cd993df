"""What a layer's options may be, checked when the layer is made: the error comes where the mistake is."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyres.ops.create import numeric

Pair = int | tuple[int, int]


def pair(layer: str, name: str, value: Any, least: int) -> tuple[int, int]:
    """An int or a pair of ints as two ints. Raises ValueError below `least`."""
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2 or not all(_whole(v) and v >= least for v in both):
        raise ValueError(f"{layer}: {name} must be an int or a pair (h, w) of ints, each at least {least}, "
                         f"got {value!r}")
    return int(both[0]), int(both[1])


def positive(layer: str, **sizes: Any) -> None:
    """Raise ValueError, naming the option, for a size that is not a positive int."""
    for name, size in sizes.items():
        if not _whole(size) or size < 1:
            raise ValueError(f"{layer}: {name} must be a positive int, got {size!r}")


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def number(layer: str, name: str, value: Any, least: float, most: float, words: str) -> float:
    """value as a float from `least` to `most`. Raises ValueError that says in `words` what was expected."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{layer}: {name} must {words}, got {value!r}") from error
    if not least <= found <= most:
        raise ValueError(f"{layer}: {name} must {words}, got {value!r}")
    return found


def float_dtype(layer: str, dtype: Any) -> np.dtype:
    """The dtype of a layer's parameters. Raises TypeError unless it is float32 or float64."""
    found = numeric(layer, dtype)
    if found not in (np.float32, np.float64):
        raise TypeError(f"{layer}: parameters are floats, got dtype {found}: use 'float32' or 'float64'")
    return found


def window(layer: str, kernel_size: Pair, stride: Pair | None, padding: Pair) -> None:
    """Raise ValueError for a pooling window that no image can have."""
    pair(layer, "kernel_size", kernel_size, 1)
    pair(layer, "stride", kernel_size if stride is None else stride, 1)
    pair(layer, "padding", padding, 0)
