"""A module's state as arrays by name: reading it out, and writing it back only if all of it fits."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tinyres.nn.parameter import assign
from tinyres.tensor import Tensor

LISTED, LONGEST = 200, 200  # names per list, and characters of a name, in a message: a file may hold millions
SUGGESTIONS = 8  # names per list that get a suggestion: comparing strings is slow, and the rest follow the same pattern


class LoadResult(NamedTuple):
    """What load_state_dict did not find, and what it did not use."""

    missing: list[str]
    unexpected: list[str]


def entries(module: Any, prefix: str = "") -> Iterator[tuple[str, Tensor, bool]]:
    """(dotted name, tensor, may be left out) for every parameter and persistent buffer, in PyTorch's order.

    A parameter or module that is shared comes under each of its names.
    """
    optional = module.optional_state
    for name, tensor in module._parameters.items():
        if tensor is not None:
            yield prefix + name, tensor, name in optional
    for name, tensor in module._buffers.items():
        if tensor is not None and name not in module._transient:
            yield prefix + name, tensor, name in optional
    for name, child in module._modules.items():
        if child is not None:
            yield from entries(child, f"{prefix}{name}.")


def host_array(value: Any) -> np.ndarray:
    """The values of an array, a Tensor or another library's tensor, as a numpy array on the host."""
    for method in ("detach", "cpu", "numpy"):
        if not isinstance(value, np.ndarray) and hasattr(value, method):
            value = getattr(value, method)()
    return value.get() if type(value).__module__.startswith("cupy") else np.asarray(value)


def load(module: Any, given: Mapping[str, Any], strict: bool) -> LoadResult:
    """Copy `given` into the module's tensors if everything fits; see Module.load_state_dict."""
    arrays, result = check(module, given, strict)
    wanted = {name: tensor for name, tensor, _ in entries(module)}
    for name, array in arrays.items():
        assign(wanted[name], array, "load_state_dict")
    return result


def check(module: Any, given: Mapping[str, Any], strict: bool) -> tuple[dict[str, np.ndarray], LoadResult]:
    """The arrays of `given` that the module has a place for, and what else there is; raises ValueError for a misfit."""
    if not isinstance(given, Mapping):
        fix = "pass its state_dict()" if hasattr(given, "state_dict") else \
            "read it first: weights.load(model, path)" if isinstance(given, (str, os.PathLike)) else "pass a dict"
        raise TypeError(f"{type(module).__name__}.load_state_dict: expected a mapping from names to arrays, got "
                        f"{type(given).__name__}: {fix}")
    wanted = {name: (tensor, optional) for name, tensor, optional in entries(module)}
    arrays = {name: host_array(value) for name, value in given.items() if name in wanted}
    missing = [name for name, (_, optional) in wanted.items() if name not in given and not optional]
    unexpected = [name for name in given if name not in wanted]
    unfit = [complaint for name, array in arrays.items() if (complaint := _unfit(name, array, wanted[name][0]))]
    if unfit or (strict and (missing or unexpected)):
        raise ValueError(_report(type(module).__name__, missing if strict else [], unexpected if strict else [],
                                 unfit, list(wanted)))
    return arrays, LoadResult(missing, unexpected)


def _unfit(name: str, array: np.ndarray, tensor: Tensor) -> str | None:
    if array.shape != tensor.shape:
        return f"{name}: the state has shape {array.shape}, the model {tuple(tensor.shape)}"
    if array.dtype.kind.replace("u", "i") != tensor.dtype.kind:
        return f"{name}: the state has dtype {array.dtype}, the model {tensor.dtype}: convert it with astype()"
    if array.dtype.itemsize > tensor.dtype.itemsize and array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            lost = np.isfinite(array) & ~np.isfinite(array.astype(tensor.dtype))
        if lost.any():
            return f"{name}: the state holds {array[lost].flat[0]:.3g}, which {tensor.dtype} cannot: use model.double()"
    return None


def _report(owner: str, missing: list[str], unexpected: list[str], unfit: list[str], names: list[str]) -> str:
    lines = [f"{owner}.load_state_dict: the state does not fit the model; nothing was loaded."]
    if missing:
        lines += [f"  missing from the state ({len(missing)}):", *_with_suggestions(missing, unexpected)]
    if unexpected:
        lines += [f"  unknown to the model ({len(unexpected)}):", *_with_suggestions(unexpected, names)]
    if unfit:
        lines += [f"  of another shape or kind ({len(unfit)}):", *(f"    {line}" for line in unfit)]
    prefix = os.path.commonprefix(unexpected).rpartition(".")[0] + "."
    if unexpected and sum(name.removeprefix(prefix) in names for name in unexpected) > len(unexpected) / 2:
        lines.append(f"  The state's names begin with {prefix!r}, the model's do not: remove it.")
    if missing or unexpected:
        lines.append("  Rename the entries, or pass strict=False to load those that fit.")
    return "\n".join(lines)


def _with_suggestions(names: list[str], candidates: list[str]) -> Iterator[str]:
    for i, name in enumerate(names):
        if i == LISTED:
            yield f"    and {len(names) - i:,} more"
            return
        near = [c for c in candidates if c.endswith(f".{name}") or name.endswith(f".{c}")] if i < SUGGESTIONS else []
        near = near or (difflib.get_close_matches(name, candidates, 1) if i < SUGGESTIONS else [])
        yield f"    {name[:LONGEST]}" + (f"  (near: {near[0][:LONGEST]})" if near else "")
