"""The functions of the stand-in's module: FUNCTIONS and UFUNCS name all that there are."""

from __future__ import annotations

from typing import Any

import numpy as np

from standin.array import index, ndarray, new, operand, scalar, view, view_or_new
from standin.memory import copy_to_device, refuse, sync

# --- making arrays ------------------------------------------------------------------------------------------------


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """Poisoned: floats are NaN, integers -1 or their largest."""
    host = np.empty(shape, dtype)
    host.reshape(-1).view(np.uint8 if host.dtype.itemsize else host.dtype).fill(255)
    return new(host, order)


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return new(np.zeros(shape, dtype), order)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return new(np.ones(shape, dtype), order)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    return new(np.full(shape, scalar(fill_value), dtype), order)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    return new(np.arange(start, dtype=dtype) if stop is None else np.arange(start, stop, step, dtype))


def empty_like(prototype: ndarray, dtype: Any = None, order: str = "K") -> ndarray:
    return _like(np.full, prototype, dtype, order, np.nan if prototype.dtype.kind == "f" else 1)


def zeros_like(a: ndarray, dtype: Any = None, order: str = "K") -> ndarray:
    return _like(np.full, a, dtype, order, 0)


def ones_like(a: ndarray, dtype: Any = None, order: str = "K") -> ndarray:
    return _like(np.full, a, dtype, order, 1)


def full_like(a: ndarray, fill_value: Any, dtype: Any = None, order: str = "K") -> ndarray:
    return _like(np.full, a, dtype, order, scalar(fill_value))


def _like(fn: Any, a: ndarray, dtype: Any, order: str, value: Any) -> ndarray:
    return new(np.full_like(device(a)._host, value, dtype, order=order), "K")


def array(obj: Any, dtype: Any = None, copy: bool = True, order: str = "K", subok: bool = False, ndmin: int = 0, *,
          blocking: bool = False) -> ndarray:
    if isinstance(obj, ndarray):
        if not copy and (dtype is None or obj.dtype == dtype) and order == "K":
            return obj
        return new(obj._host if dtype is None else obj._host.astype(dtype), order)
    if isinstance(obj, (list, tuple)) and any(isinstance(x, ndarray) for x in obj):
        return new([x._host for x in obj])
    copy_to_device("an array from the host")
    host = np.asarray(obj, dtype)
    return new(host, "F" if order in "KA" and host.flags.f_contiguous and not host.flags.c_contiguous else
               order if order in "CF" else "C")


def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False) -> ndarray:
    if isinstance(a, ndarray) and (dtype is None or a.dtype == dtype) and order in (None, "K"):
        return a
    return array(a, dtype, False, order or "K")


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    if isinstance(a, ndarray) and a.flags.c_contiguous and (dtype is None or a.dtype == dtype):
        return a
    return array(a, dtype, True, "C")


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    return a.get(stream, order, out) if isinstance(a, ndarray) else np.asarray(a, order=order)  # type: ignore[call-overload]


def device(a: Any) -> ndarray:
    """`a`, which must be on the device."""
    if not isinstance(a, ndarray):
        raise TypeError(f"Unsupported type {type(a)}: this function takes device arrays")
    return a


# --- moving elements about ------------------------------------------------------------------------------------------


def broadcast_to(array: ndarray, shape: Any) -> ndarray:
    return view(device(array), np.broadcast_to(array._host, shape))


def reshape(a: ndarray, newshape: Any) -> ndarray:
    return device(a).reshape(newshape)


def transpose(a: ndarray, axes: Any = None) -> ndarray:
    return device(a).transpose(axes)


def concatenate(tup: Any, axis: int = 0, out: Any = None) -> ndarray:
    return new(np.concatenate([device(a)._host for a in tup], axis))


def stack(tup: Any, axis: int = 0, out: Any = None) -> ndarray:
    return new(np.stack([device(a)._host for a in tup], axis))


def take(a: ndarray, indices: Any, axis: Any = None, out: Any = None) -> ndarray:
    return device(a).take(indices, axis)


def take_along_axis(a: ndarray, indices: ndarray, axis: Any) -> ndarray:
    positions = device(indices)._host % max(device(a).shape[axis], 1)
    return new(np.take_along_axis(a._host, positions, axis))


def flip(a: ndarray, axis: Any = None) -> ndarray:
    return view(device(a), np.flip(a._host, axis))


def pad(array: ndarray, pad_width: Any, mode: str = "constant") -> ndarray:
    return new(np.pad(device(array)._host, pad_width, mode))  # type: ignore[call-overload]


def ravel(a: ndarray) -> ndarray:
    return view_or_new(device(a), a._host.reshape(-1))


# --- picking and counting -------------------------------------------------------------------------------------------


def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    if x is None:
        return device(condition).nonzero()
    return new(np.where(device(condition)._host, operand(x), operand(y)))


def nonzero(a: ndarray) -> Any:
    return device(a).nonzero()


def bincount(x: ndarray, weights: Any = None, minlength: Any = None) -> ndarray:
    sync("bincount, which looks for the largest")
    return new(np.bincount(device(x)._host, None if weights is None else device(weights)._host, minlength or 0))


def matmul(x1: ndarray, x2: ndarray, /, out: Any = None) -> ndarray:
    refuse("a product by cuBLAS")
    product = np.matmul(device(x1)._host, device(x2)._host)
    if out is None:
        return new(product)
    if out.dtype != product.dtype or out.shape != product.shape:
        raise ValueError(f"matmul: out is {out.dtype} {out.shape}, the product {product.dtype} {product.shape}")
    out._host[...] = product
    return out


def dot(a: ndarray, b: ndarray, out: Any = None) -> ndarray:
    return device(a).dot(device(b))


def may_share_memory(a: Any, b: Any, max_work: Any = None) -> bool:
    return np.may_share_memory(device(a)._host, device(b)._host)


def shares_memory(a: Any, b: Any, max_work: Any = None) -> bool:
    return np.shares_memory(device(a)._host, device(b)._host)


def is_available() -> bool:
    return True


def from_dlpack(array: Any) -> ndarray:
    if array.__dlpack_device__()[0] != 2:
        raise TypeError("from_dlpack: CPU arrays cannot be directly imported to CuPy")
    given = array.__dlpack__()
    return view(given, given._host)


# --- functions by element -------------------------------------------------------------------------------------------


ATOMICS = ("int32", "uint32", "uint64", "float16", "float32", "float64")  # what a GPU can add to, with others at it


class Ufunc:
    """A function of elements; with `at`, where CuPy has it."""

    def __init__(self, ufunc: np.ufunc):
        self.ufunc, self.__name__ = ufunc, ufunc.__name__
        self.nin = ufunc.nin

    def __call__(self, *args: Any, out: Any = None, dtype: Any = None, casting: str = "same_kind") -> ndarray:
        if len(args) != self.nin or not any(isinstance(a, ndarray) for a in args):
            raise TypeError(f"{self.__name__}: expected {self.nin} operands, one of them a device array, got "
                            f"{', '.join(type(a).__name__ for a in args)}")
        hosts = [operand(a) for a in args]
        options: dict[str, Any] = {"casting": casting} if dtype is None else {"casting": casting, "dtype": dtype}
        with np.errstate(all="ignore"):
            if out is None:
                return new(self.ufunc(*hosts, **options))
            self.ufunc(*hosts, out=device(out)._host, **options)
        return out

    def at(self, a: ndarray, indices: Any, b: Any = None) -> None:
        if self.ufunc not in (np.add, np.subtract, np.maximum, np.minimum):
            raise NotImplementedError(f"at() of {self.__name__}")
        if device(a).dtype.name not in ATOMICS:
            raise TypeError(f"scatter_add supports {', '.join(ATOMICS)} only, got {a.dtype}")
        if not isinstance(b, ndarray):
            copy_to_device("a number that is added to elements")
        parts = tuple(map(index, indices)) if isinstance(indices, tuple) else index(indices)
        self.ufunc.at(a._host, parts, operand(b))


_NAMES = """add subtract multiply divide true_divide floor_divide power remainder maximum minimum negative absolute sign
            exp log sqrt square tanh floor ceil clip isfinite isnan isinf equal not_equal less less_equal greater
            greater_equal logical_and logical_or logical_not bitwise_and bitwise_or bitwise_xor left_shift right_shift
            invert""".split()
UFUNCS = {name: Ufunc(getattr(np, name)) for name in _NAMES if isinstance(getattr(np, name), np.ufunc)}
UFUNCS["abs"] = UFUNCS["absolute"]

FUNCTIONS = {function.__name__: function for function in (
    arange, array, asarray, ascontiguousarray, asnumpy, bincount, broadcast_to, concatenate, dot, empty, empty_like,
    flip, from_dlpack, full, full_like, is_available, matmul, may_share_memory, nonzero, ones, ones_like, pad, ravel,
    reshape, shares_memory, stack, take, take_along_axis, transpose, where, zeros, zeros_like)}
