"""Making tensors, and changing their dtype or device."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyres import random
from tinyres.kernels import layout
from tinyres.operands import check_tensors, type_name, unfit, whole_numbers
from tinyres.ops.elementwise import raw
from tinyres.tensor import Function, Tensor

GPU_HELP = ("a GPU needs NVIDIA's driver and CuPy: pip install 'tinyres[cuda13]' (or 'tinyres[cuda12]' for a driver of "
            "CUDA 12)")


class AsType(Function):
    """x in another dtype;  dx = g in the old one."""

    def forward(self, x: Any, *, dtype: Any) -> Any:
        self.input_dtype = x.dtype
        return x.astype(dtype)

    def backward(self, grad: Any) -> Any:
        return astype(grad, self.input_dtype)


class To(Function):
    """x on another device;  dx = g on the old one."""

    def forward(self, x: Any, *, device: str) -> Any:
        self.origin = device_of(x)
        return move(x, device)

    def backward(self, grad: Any) -> Any:
        return to(grad, self.origin)


def device_of(x: Any) -> str:
    """"cpu" for NumPy memory, "cuda" for CuPy memory."""
    return "cpu" if layout.array_module(raw(x)) is np else "cuda"


def move(array: Any, device: str) -> Any:
    """An array on `device`, itself where it is there already. Raises RuntimeError for "cuda" without CuPy or a GPU."""
    if device not in ("cpu", "cuda"):
        hint = "the first GPU is used; CUDA_VISIBLE_DEVICES chooses it" if str(device).startswith("cuda") else \
            f"for a dtype use astype({device!r})" if str(device).startswith(("float", "int")) else "a GPU is 'cuda'"
        raise ValueError(f"to: device must be 'cpu' or 'cuda', got {device!r}; {hint}")
    if device_of(array) == device:
        return array
    if device == "cpu":
        host = array.get()
    else:
        host = _cupy().asarray(array)
    return layout.channels_last(host) if host.ndim == 4 else host


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(f"device 'cuda': CuPy is not installed; {GPU_HELP}") from error
    if not cupy.is_available():
        raise RuntimeError(f"device 'cuda': CuPy is installed but finds no GPU; {GPU_HELP}")
    return cupy


def tensor(values: Any, dtype: Any = None, device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A leaf Tensor with a copy of `values`: a number, nested lists, an array, or a Tensor.

    Python floats become float32, arrays keep their dtype unless `dtype` says otherwise ("float32", "float64", ...).
    4-D arrays are copied into channels-last memory. Raises TypeError for values that are not numbers.
    """
    array = raw(values)
    plain = not hasattr(array, "strides")
    array = _from_values(array) if plain else array
    if array.dtype.kind not in "fiub":
        raise TypeError(f"tensor: expected numbers, got dtype {array.dtype} from {type_name(values)}; turn text, "
                        "objects and complex numbers into floats or integers first")
    if isinstance(array, np.ma.MaskedArray):
        raise unfit("tensor", array)
    if plain and dtype is None and array.dtype.kind == "f" and not hasattr(values, "dtype"):
        dtype = np.float32
    array = move(array, device)
    xp = layout.array_module(array)
    dtype = (array.dtype if dtype is None else numeric("tensor", dtype)).newbyteorder("=")
    if array.ndim == 4:
        out = layout.nchw(xp.array(array.transpose(0, 2, 3, 1), dtype=dtype, order="C", copy=True))
    else:
        out = xp.array(array, dtype=dtype, order="C", copy=True)
    return Tensor(out, requires_grad)


def _from_values(values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        rows = values if isinstance(values, (list, tuple)) else ()
        lengths = ", ".join(str(len(row)) if hasattr(row, "__len__") else "none" for row in rows)
        raise ValueError("tensor: the nested lists form no array, as their lengths differ (at the top "
                         f"{lengths[:60]}); pad them to one length") from error


def numeric(op: str, dtype: Any) -> np.dtype:
    """The dtype of that name. Raises TypeError unless it is one of floats, integers or booleans."""
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"{op}: there is no dtype {dtype!r}; use 'float32', 'float64' or 'int64'") from error
    if found.kind not in "fiub":
        raise TypeError(f"{op}: dtype {found} is none of floats, integers or booleans; use 'float32', 'float64' or "
                        "'int64'")
    return found


def zeros(*shape: Any, dtype: Any = "float32", requires_grad: bool = False) -> Tensor:
    """A Tensor of zeros."""
    return tensor(np.zeros(_shape("zeros", shape), numeric("zeros", dtype)), requires_grad=requires_grad)


def ones(*shape: Any, dtype: Any = "float32", requires_grad: bool = False) -> Tensor:
    """A Tensor of ones."""
    return tensor(np.ones(_shape("ones", shape), numeric("ones", dtype)), requires_grad=requires_grad)


def randn(*shape: Any, dtype: Any = "float32", requires_grad: bool = False) -> Tensor:
    """A Tensor of independent standard normal numbers from the library's generator (see manual_seed)."""
    drawn = random.generator().standard_normal(_shape("randn", shape), dtype=drawable("randn", dtype).type)
    return tensor(drawn, requires_grad=requires_grad)


def rand(*shape: Any, dtype: Any = "float32", requires_grad: bool = False) -> Tensor:
    """A Tensor of independent numbers, uniform in [0, 1), from the library's generator."""
    drawn = random.generator().random(_shape("rand", shape), dtype=drawable("rand", dtype).type)
    return tensor(drawn, requires_grad=requires_grad)


def drawable(op: str, dtype: Any) -> np.dtype:
    """The dtype of that name, if random numbers are drawn in it. Raises TypeError for others."""
    found = numeric(op, dtype)
    if found not in (np.float32, np.float64):
        raise TypeError(f"{op}: random numbers are float32 or float64, got dtype {found}; convert them with astype()")
    return found


def arange(*args: Any, dtype: Any = None) -> Tensor:
    """A Tensor of equally spaced numbers: integers unless a float is given, like Python's range."""
    try:
        values = np.arange(*args)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"arange: expected (stop), (start, stop) or (start, stop, step) with a step other than 0, got "
                         f"{args}") from error
    return tensor(values, dtype if dtype is not None else "float32" if values.dtype.kind == "f" else None)


def _shape(op: str, shape: Any) -> tuple[int, ...]:
    lengths = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if any(n < 0 for n in whole_numbers(op, "each length of the shape", lengths)):
        raise ValueError(f"{op}: shape {lengths} has a negative length; -1 works in reshape() only")
    return lengths


def astype(x: Any, dtype: Any) -> Any:
    """x in another dtype; the gradient comes back in x's own."""
    check_tensors("astype", input=x)
    dtype = numeric("astype", dtype)
    return x if raw(x).dtype == dtype else AsType.apply(x, dtype=dtype)


def to(x: Any, device: str) -> Any:
    """x on "cpu" or "cuda"; the gradient comes back to where x lives. Raises RuntimeError where there is no GPU."""
    return x if device_of(x) == device else To.apply(x, device=device)
