"""What an op may be given, checked before it runs: one dtype, one device, nothing that an in-place op would break."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyres.kernels.layout import array_module


def arrays_of(op: str, inputs: Sequence[Any]) -> list[Any]:
    """The arrays behind Tensors; arrays, Python numbers and None as they are. NumPy scalars become Python numbers, so
    that a np.float64 cannot turn float32 into float64.

    Raises TypeError for anything else, and when two float dtypes or two devices meet.
    """
    arrays = [getattr(x, "data", x) if hasattr(x, "edges") else x for x in inputs]
    arrays = [a.item() if isinstance(a, np.generic) else a for a in arrays]
    floats, places, seen = set(), set(), set()
    for i, a in enumerate(arrays):
        if hasattr(a, "dtype"):
            if id(a) in seen:  # x * x.detach(): what save() keeps of the second must be told from the first
                arrays[i] = a.view()
            seen.add(id(a))
            places.add(type(a).__module__.partition(".")[0])
            if a.dtype.kind == "f":
                floats.add(a.dtype.char)
        elif not (a is None or isinstance(a, (int, float))):
            raise TypeError(f"{op}: expected tensors, arrays or numbers, got {type(a).__name__}; "
                            "wrap it in tr.tensor()")
    if len(floats) > 1:
        names = sorted(np.dtype(char).name for char in floats)
        raise TypeError(f"{op}: {' and '.join(names)} meet, and dtypes never mix silently: convert one side "
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


def one_array(op: str, out: Any) -> Any:
    """What an op's forward gave. Raises TypeError unless that is one array."""
    if not hasattr(out, "dtype"):
        raise TypeError(f"{op}.forward must return one array, got {type(out).__name__}: write one op per output, and "
                        "np.asarray(number, x.dtype) for a number")
    return out


def check_gradients(node: Any, grads: Any) -> tuple[Any, ...]:
    """What a backward rule returned, one gradient per input, None where none is wanted.

    Raises RuntimeError for a wrong number of them, for a shape or dtype that is not the input's, and, under
    create_graph, for an array, through which nothing could be differentiated again.
    """
    grads = tuple(grads) if isinstance(grads, (tuple, list)) else (grads,)
    if len(grads) != len(node.edges):
        raise RuntimeError(f"{node.name}.backward gave {len(grads)} gradients for {len(node.edges)} inputs; return one "
                           f"per input of forward, None for those without{node.line}")
    grads = tuple(g if needed else None for needed, g in zip(node.needs, grads, strict=True))
    if not node.linking:
        grads = tuple(g.data if hasattr(g, "edges") else g for g in grads)
    for i, (edge, g) in enumerate(zip(node.edges, grads, strict=True)):
        if g is not None and (getattr(g, "shape", None) != edge.shape or g.dtype != edge.dtype):
            raise RuntimeError(f"{node.name}.backward gave {kind(g)} for input {i}, which is {kind(edge)}{node.line}")
        if g is not None and node.linking and not hasattr(g, "edges"):
            raise RuntimeError(f"{node.name}.backward gave a plain array for input {i} under create_graph, which "
                               f"cannot be differentiated again: write the rule with ops, without .data{node.line}")
    return grads


def seed(output: Any, grad: Any) -> Any:
    """The gradient that a backward pass starts with: `grad`, or 1 for a single element. Raises RuntimeError where it
    cannot start at `output`, ValueError for another shape or dtype."""
    if output.edge is None:
        raise RuntimeError("backward: nothing that this tensor was computed from requires a gradient; set "
                           "requires_grad=True on an input, and look for detach() and no_grad() on the way")
    if grad is None and output.data.size != 1:
        raise RuntimeError(f"backward: a tensor of shape {output.shape} needs a gradient to start from; pass grad of "
                           "that shape, or reduce the tensor with sum() or mean()")
    if grad is not None and (getattr(grad, "shape", None) != output.shape or grad.dtype != output.dtype):
        raise ValueError(f"backward: the tensor is {kind(output)}, but the gradient to start from is {kind(grad)}")
    return array_module(output.data).ones_like(output.data) if grad is None else grad


def kind(x: Any) -> str:
    """dtype and shape, or the type of what has none, for messages."""
    return f"{x.dtype} {tuple(x.shape)}" if hasattr(x, "dtype") else type(x).__name__
