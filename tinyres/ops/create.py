"""Making tensors, and changing their dtype or device."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyres import random
from tinyres.kernels import layout
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
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
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
    plain = not hasattr(array, "dtype")
    array = np.asarray(array) if plain else array
    if array.dtype.kind not in "fiub":
        raise TypeError(f"tensor: expected numbers, got dtype {array.dtype}")
    if plain and dtype is None and array.dtype.kind == "f":
        dtype = np.float32
    array = move(array, device)
    xp = layout.array_module(array)
    dtype = array.dtype if dtype is None else np.dtype(dtype)
    if array.ndim == 4:
        out = layout.nchw(xp.array(array.transpose(0, 2, 3, 1), dtype=dtype, order="C", copy=True))
    else:
        out = xp.array(array, dtype=dtype, order="C", copy=True)
    return Tensor(out, requires_grad)


def zeros(*shape: Any, dtype: Any = "float32", requires_grad: bool = False) -> Tensor:
    """A Tensor of zeros."""
    return tensor(np.zeros(_shape(shape), dtype), requires_grad=requires_grad)


def ones(*shape: Any, dtype: Any = "float32", requires_grad: bool = False) -> Tensor:
    """A Tensor of ones."""
    return tensor(np.ones(_shape(shape), dtype), requires_grad=requires_grad)


def randn(*shape: Any, dtype: Any = "float32", requires_grad: bool = False) -> Tensor:
    """A Tensor of independent standard normal numbers from the library's generator (see manual_seed)."""
    values = random.generator().standard_normal(_shape(shape), dtype=np.dtype(dtype).type)
    return tensor(values, requires_grad=requires_grad)


def rand(*shape: Any, dtype: Any = "float32", requires_grad: bool = False) -> Tensor:
    """A Tensor of independent numbers, uniform in [0, 1), from the library's generator."""
    return tensor(random.generator().random(_shape(shape), dtype=np.dtype(dtype).type), requires_grad=requires_grad)


def arange(*args: Any, dtype: Any = None) -> Tensor:
    """A Tensor of equally spaced numbers: integers unless a float is given, like Python's range."""
    values = np.arange(*args)
    return tensor(values, dtype if dtype is not None else "float32" if values.dtype.kind == "f" else None)


def _shape(shape: Any) -> tuple[int, ...]:
    return tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape


def astype(x: Any, dtype: Any) -> Any:
    """x in another dtype; the gradient comes back in x's own."""
    dtype = np.dtype(dtype)
    return x if raw(x).dtype == dtype else AsType.apply(x, dtype=dtype)


def to(x: Any, device: str) -> Any:
    """x on "cpu" or "cuda"; the gradient comes back to where x lives. Raises RuntimeError where there is no GPU."""
    return x if device_of(x) == device else To.apply(x, device=device)
