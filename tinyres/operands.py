"""What an op may be given, checked before it runs: one dtype, one device, nothing that an in-place op would break."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def arrays_of(op: str, inputs: Sequence[Any]) -> list[Any]:
    """The arrays behind Tensors; arrays, Python numbers and None as they are. NumPy scalars become Python numbers, so
    that a np.float64 cannot turn float32 into float64.

    Raises TypeError for anything else, and when two float dtypes or two devices meet.
    """
    arrays = [getattr(x, "data", x) if hasattr(x, "edges") else x for x in inputs]
    arrays = [a.item() if isinstance(a, np.generic) else a for a in arrays]
    floats, places = set(), set()
    for a in arrays:
        if hasattr(a, "dtype"):
            places.add(type(a).__module__.partition(".")[0])
            if a.dtype.kind == "f":
                floats.add(a.dtype.name)
        elif not (a is None or isinstance(a, (int, float))):
            raise TypeError(f"{op}: expected tensors, arrays or numbers, got {type(a).__name__}; "
                            "wrap it in tr.tensor()")
    if len(floats) > 1:
        raise TypeError(f"{op}: {' and '.join(sorted(floats))} meet, and dtypes never mix silently: convert one side "
                        "with astype()")
    if len(places) > 1:
        raise TypeError(f"{op}: arrays of {' and '.join(sorted(places))} meet: move them to one device with "
                        "to('cpu') or to('cuda')")
    return arrays


def check_inplace(op: str, target: Any, tracked: bool) -> None:
    """Raise TypeError, ValueError or RuntimeError where changing `target` in place would write into memory that is not
    ours, or lose a gradient. `tracked`: the result will require one."""
    if not hasattr(target, "edges"):
        raise TypeError(f"{op} changes its first input in place, so that must be a Tensor, got {type(target).__name__}")
    if isinstance(target.data, np.ndarray) and not target.data.flags.writeable:
        raise ValueError(f"{op}: the array of shape {target.shape} is read-only; use the op without underscore")
    if not tracked:
        return
    if target.is_leaf and target.requires_grad:
        raise RuntimeError(f"{op}: a leaf that requires a gradient cannot be changed in place; use the op without "
                           "underscore, or no_grad()")
    if target.is_view or target.version.viewed:
        raise RuntimeError(f"{op}: the tensor of shape {target.shape} shares memory with a view of it, whose gradient "
                           "would be wrong; use the op without underscore")
