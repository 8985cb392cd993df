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


def device(name: str) -> str:
    """The name of a device, "cpu" or "cuda", as every `device=` and `to()` takes it, if it is there.

    Raises ValueError for another name, RuntimeError for "cuda" where CuPy or a GPU is missing, which says what to
    install.
    """
    return _checked("device", name)


def _checked(op: str, name: Any) -> str:
    if name not in ("cpu", "cuda"):
        hint = "the first GPU is used; CUDA_VISIBLE_DEVICES chooses it" if str(name).startswith("cuda") else \
            f"for a dtype use astype({name!r})" if str(name).startswith(("float", "int")) else "a GPU is 'cuda'"
        where = "" if op == "device" else f"{op}: "
        raise ValueError(f"{where}device must be 'cpu' or 'cuda', got {name!r}; {hint}")
    if name == "cuda":
        gpu_library()
    return name


def move(array: Any, where: str, op: str = "to") -> Any:
    """An array on the device `where`, itself if it is there already. Images and weights (4-D) arrive channels-last.

    Raises what device() raises.
    """
    if device_of(array) == _checked(op, where):
        return array
    if where == "cpu":  # get() writes C order: of an image it is shown the memory order
        return layout.nchw(layout.nhwc(array).get()) if array.ndim == 4 else array.get()
    put = gpu_library().asarray
    if array.ndim == 4:
        last = layout.is_channels_last(array)
        return layout.nchw(put(layout.nhwc(array))) if last else layout.channels_last(put(array))
    return put(array)


def gpu_library() -> Any:
    """The module cupy. Raises RuntimeError, with the lines that install it, where CuPy or a GPU is missing."""
    try:
        import cupy
    except ImportError as error:
        raise RuntimeError(f"device 'cuda': CuPy is not installed; {GPU_HELP}") from error
    if not cupy.is_available():
        raise RuntimeError(f"device 'cuda': CuPy is installed but finds no GPU; {GPU_HELP}")
    return cupy


def tensor(values: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A leaf Tensor with a copy of `values`: a number, nested lists, an array, or a Tensor; on the device of `values`,
    which for numbers and lists is the cpu, or on `device`.

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
    dtype = (array.dtype if dtype is None else numeric("tensor", dtype)).newbyteorder("=")
    if device is not None and _checked("tensor", device) != device_of(array):
        return Tensor(move(array.astype(dtype, copy=False), device), requires_grad)  # a copy already
    xp = layout.array_module(array)
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


def zeros(*shape: Any, dtype: Any = "float32", device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A Tensor of zeros."""
    return tensor(np.zeros(_shape("zeros", shape), numeric("zeros", dtype)), None, device, requires_grad)


def ones(*shape: Any, dtype: Any = "float32", device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A Tensor of ones."""
    return tensor(np.ones(_shape("ones", shape), numeric("ones", dtype)), None, device, requires_grad)


def randn(*shape: Any, dtype: Any = "float32", device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A Tensor of independent standard normal numbers from the library's generator (see manual_seed): they are drawn on
    the cpu, so the same on every device."""
    drawn = random.generator().standard_normal(_shape("randn", shape), dtype=drawable("randn", dtype).type)
    return tensor(drawn, None, device, requires_grad)


def rand(*shape: Any, dtype: Any = "float32", device: str = "cpu", requires_grad: bool = False) -> Tensor:
    """A Tensor of independent numbers, uniform in [0, 1), from the library's generator, drawn as in randn."""
    drawn = random.generator().random(_shape("rand", shape), dtype=drawable("rand", dtype).type)
    return tensor(drawn, None, device, requires_grad)


def drawable(op: str, dtype: Any) -> np.dtype:
    """The dtype of that name, if random numbers are drawn in it. Raises TypeError for others."""
    found = numeric(op, dtype)
    if found not in (np.float32, np.float64):
        raise TypeError(f"{op}: random numbers are float32 or float64, got dtype {found}; convert them with astype()")
    return found


def arange(*args: Any, dtype: Any = None, device: str = "cpu") -> Tensor:
    """A Tensor of equally spaced numbers: integers unless a float is given, like Python's range."""
    try:
        values = np.arange(*args)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"arange: expected (stop), (start, stop) or (start, stop, step) with a step other than 0, got "
                         f"{args}") from error
    return tensor(values, dtype if dtype is not None else "float32" if values.dtype.kind == "f" else None, device)


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
