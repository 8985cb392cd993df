"""What an op may be given, checked before it runs: arrays of numbers, of one dtype and on one device, and nothing that
an in-place op would break."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyres.kernels.layout import array_module

# Arrays whose operators mean something else: * of a matrix is a matrix product, and a mask would be lost.
STRANGE: dict[Any, str] = {np.matrix: "np.asarray(x)", np.ma.MaskedArray: "x.filled(value)"}
_STRANGE = tuple(STRANGE)


def arrays_of(op: str, inputs: Sequence[Any], optional: bool = False) -> list[Any]:
    """The arrays behind Tensors; arrays, Python numbers and, if `optional`, None as they are. NumPy scalars become
    Python numbers, so that a np.float64 cannot turn float32 into float64.

    Raises TypeError for anything else, for arrays of other than numbers in the machine's byte order, and when two float
    dtypes or two devices meet.
    """
    arrays = [getattr(x, "data", x) if hasattr(x, "edges") else x for x in inputs]
    arrays = [a.item() if isinstance(a, np.generic) else a for a in arrays]
    floats, places, seen = set(), set(), set()
    for i, a in enumerate(arrays):
        if hasattr(a, "strides"):
            if a.dtype.kind not in "fiub" or not a.dtype.isnative or isinstance(a, _STRANGE):
                raise unfit(op, a)
            if id(a) in seen:  # x * x.detach(): what save() keeps of the second must be told from the first
                arrays[i] = a.view()
            seen.add(id(a))
            places.add(type(a).__module__.partition(".")[0])
            if a.dtype.kind == "f":
                floats.add(a.dtype.char)
        elif a is None and not optional:
            raise TypeError(f"{op}: got None, expected a Tensor, an array or a number; did the function that made it "
                            "forget its return?")
        elif not (a is None or isinstance(a, (int, float))):
            fix = "convert it to a float first" if isinstance(a, (str, bytes, complex)) else "wrap it in tr.tensor()"
            raise TypeError(f"{op}: expected tensors, arrays or numbers, got {type_name(a)}; {fix}")
    if len(floats) > 1:
        names = sorted(np.dtype(char).name for char in floats)
        raise TypeError(f"{op}: {' and '.join(names)} meet, and dtypes never mix silently: convert one side "
                        "with astype()")
    if len(places) > 1:
        raise _two_devices(op, places)
    return arrays


def check_devices(op: str, *values: Any) -> None:
    """Raise TypeError where arrays of two devices meet; numbers, lists and None are on none."""
    arrays = [getattr(x, "data", x) if hasattr(x, "edges") else x for x in values]
    places = {array_module(a).__name__ for a in arrays if hasattr(a, "strides") and not isinstance(a, np.generic)}
    if len(places) > 1:
        raise _two_devices(op, places)


def _two_devices(op: str, places: set[str]) -> TypeError:
    return TypeError(f"{op}: arrays of {' and '.join(sorted(places))} meet: move them to one device with to('cpu') or "
                     "to('cuda')")


def unfit(op: str, array: Any) -> TypeError:
    """The error for an array that no op computes with."""
    for strange, fix in STRANGE.items():
        if isinstance(array, strange):
            return TypeError(f"{op}: got {type_name(array)} of shape {array.shape}, expected a plain array; use {fix}")
    if array.dtype.kind in "fiu":
        return TypeError(f"{op}: got {array.dtype.str} of shape {array.shape}, whose bytes are not in this machine's "
                         f"order; use astype('{array.dtype.name}')")
    return TypeError(f"{op}: got {array.dtype} of shape {tuple(array.shape)}, expected floats, integers or booleans; "
                     "convert it with astype()")


def type_name(x: Any) -> str:
    """The type's name, with that of its library where it is not Python's own: "list", "torch Tensor"."""
    library = type(x).__module__.partition(".")[0]
    return type(x).__name__ if library in ("builtins", "tinyres") else f"{library} {type(x).__name__}"


def check_tensors(op: str, **named: Any) -> None:
    """Raise TypeError, naming the argument, for what has no shape: a list, None, a batch (x, y) of a data set."""
    for name, x in named.items():
        if not hasattr(x, "edges") and not hasattr(x, "strides"):
            fix = "unpack it first" if isinstance(x, tuple) else "wrap it in tr.tensor()"
            raise TypeError(f"{op}: {name} must be a Tensor or an array, got {type_name(x)}; {fix}")


def check_floats(op: str, **named: Any) -> None:
    """Raise TypeError, naming the argument, unless it holds float32 or float64."""
    for name, x in named.items():
        if x.dtype.kind != "f":
            pixels = ", then divide by 255 if these are pixels" if x.dtype == np.uint8 else ""
            raise TypeError(f"{op}: {name} must be floats, got {x.dtype}; use astype('float32'){pixels}")
        if x.dtype.itemsize not in (4, 8):
            raise TypeError(f"{op}: {name} must be float32 or float64, got {x.dtype}; use astype('float32')")


def alike(arrays: Sequence[Any]) -> list[Any]:
    """The arrays with integers next to floats made floats of the same width, where NumPy would widen float32."""
    dtype = next((a.dtype for a in arrays if hasattr(a, "dtype") and a.dtype.kind == "f"), None)
    return [a.astype(dtype) if dtype is not None and hasattr(a, "dtype") and a.dtype.kind != "f" else a for a in arrays]


def whole_numbers(op: str, name: str, values: Sequence[Any]) -> tuple[int, ...]:
    """Values as Python ints. Raises TypeError, naming the argument, for floats, booleans, text and the like."""
    for v in values:
        if not hasattr(v, "__index__") or isinstance(v, (bool, np.bool_)):
            raise TypeError(f"{op}: {name} must be a whole number, got {type_name(v)} {v!r}")
    return tuple(int(v) for v in values)


def check_inplace(op: str, target: Any, tracked: bool) -> None:
    """Raise TypeError, ValueError or RuntimeError where changing `target` in place would write into memory that is not
    ours, or lose a gradient. `tracked`: the result will require one."""
    if not hasattr(target, "edges"):
        raise TypeError(f"{op} changes its first input in place, so that must be a Tensor, got {type(target).__name__}")
    check_writable(op, target, "use the op without underscore")
    if not tracked:
        return
    if target.is_leaf and target.requires_grad:
        raise RuntimeError(f"{op}: a leaf that requires a gradient cannot be changed in place; use the op without "
                           "underscore, or no_grad()")
    if target.is_view or target.version.viewed:
        raise RuntimeError(f"{op}: the tensor of shape {target.shape} shares memory with a view of it, whose gradient "
                           "would be wrong; use the op without underscore")


def check_writable(op: str, target: Any, fix: str = "copy it first, tr.tensor(x)") -> None:
    """Raise ValueError where memory is read-only: a broadcast view, a memory-mapped file."""
    array = target.data if hasattr(target, "edges") else target
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        raise ValueError(f"{op}: the array of shape {array.shape} is read-only; {fix}")


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
            raise RuntimeError(f"{node.name}.backward gave {kind(g)} for input {i}, which is {kind(edge)}: a gradient "
                               f"has its input's shape and dtype{node.line}")
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
        raise ValueError(f"backward: the tensor is {kind(output)}, but the gradient to start from is {kind(grad)}: "
                         "pass one of the tensor's shape and dtype")
    check_devices("backward", output, grad)
    return array_module(output.data).ones_like(output.data) if grad is None else grad


def kind(x: Any) -> str:
    """dtype and shape, or the type of what has none, for messages."""
    return f"{x.dtype} {tuple(x.shape)}" if hasattr(x, "dtype") else type(x).__name__
