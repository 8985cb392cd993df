"""The stand-in's ndarray: a NumPy array behind CuPy's rules.

    memory order   what is computed element by element, a reduction, copy(), and what is picked by arrays comes in C
                   order, whatever the operands' order; astype() and the _like functions keep their operand's
    mixing         a NumPy array as operand, a NumPy function on a device array and np.asarray(x) raise TypeError
    dtypes         Python numbers are weak, NumPy scalars are strong; a result without dimensions stays an array
    waiting        float(), bool(), item(), get(), printing, iterating and masks are noted in memory.syncs
"""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np

from standin.memory import copy_to_device, refuse, sync

NUMBERS = (bool, int, float, complex, np.generic)


class Flags:
    """The three flags that CuPy has."""

    def __init__(self, array: np.ndarray, owner: bool):
        self.c_contiguous, self.f_contiguous = array.flags.c_contiguous, array.flags.f_contiguous
        self.owndata = owner


class Pointer:
    """Where an array begins: `a.data.ptr`, which a kernel may be given."""

    def __init__(self, address: int):
        self.ptr = address


class ndarray:
    """See the head of this file. It is made by the functions of the module, by `new` and by `view` here."""

    __slots__ = ("_host", "base")
    __module__ = "cupy"
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any):
        raise TypeError("the stand-in makes arrays by its functions only: cupy.empty(shape, dtype)")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy "
                        "array explicitly.")

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"np.{function.__name__} on a device array: use the array's own module")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method == "__call__" and not kwargs and any(isinstance(x, np.generic) for x in inputs):
            return new(ufunc(*map(operand, inputs)))  # np.float32(2) * x
        for x in inputs:
            operand(x)
        raise TypeError(f"np.{ufunc.__name__} on a device array: use the array's own module")

    # --- attributes

    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    flags = property(lambda self: Flags(self._host, self.base is None))
    data = property(lambda self: Pointer(self._host.ctypes.data))
    T = property(lambda self: self if self.ndim < 2 else view(self, self._host.T))

    # --- what stays a view

    def transpose(self, *axes: Any) -> ndarray:
        return view(self, self._host.transpose(*axes))

    def swapaxes(self, axis1: int, axis2: int) -> ndarray:
        return view(self, self._host.swapaxes(axis1, axis2))

    def squeeze(self, axis: Any = None) -> ndarray:
        return view(self, self._host.squeeze(axis))

    def reshape(self, *shape: Any, order: str = "C") -> ndarray:
        assert order == "C"
        return view_or_new(self, self._host.reshape(*shape))

    def ravel(self, order: str = "C") -> ndarray:
        assert order == "C"
        return view_or_new(self, self._host.reshape(-1))

    def view(self, dtype: Any = None, type: Any = None) -> ndarray:
        return view(self, self._host.view() if dtype is None else self._host.view(dtype))

    # --- copies

    def copy(self, order: str = "C") -> ndarray:
        return new(self._host, order)

    def astype(self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None,
               copy: bool = True) -> ndarray:
        if casting is not None or subok is not None:
            raise TypeError("casting is not supported yet")
        if not copy and self._host.dtype == np.dtype(dtype) and order == "K":
            return self
        return new(self._host.astype(dtype), order)

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        sync("get()")
        host = np.array(self._host, order="C" if order == "A" and not self._host.flags.f_contiguous else order)
        if out is None:
            return host
        out[...] = host
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray) or arr.dtype != self.dtype or arr.shape != self.shape:
            raise TypeError(f"set: expected a NumPy array like this {self.dtype} {self.shape}")
        copy_to_device("set()")
        self._host[...] = arr

    def item(self) -> Any:
        sync("item()")
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self._host.item()

    def tolist(self) -> Any:
        sync("tolist()")
        return self._host.tolist()

    def fill(self, value: Any) -> None:
        self._host.fill(scalar(value))

    def take(self, indices: Any, axis: Any = None, out: Any = None) -> ndarray:
        return new(self._host.take(index(indices), axis))

    def nonzero(self) -> tuple[ndarray, ...]:
        sync("nonzero()")
        return tuple(map(new, self._host.nonzero()))

    def dot(self, b: ndarray, out: Any = None) -> ndarray:
        refuse("a product by cuBLAS")
        return new(self._host.dot(operand(b)))

    # --- reductions

    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _reduced(self, "sum", out, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _reduced(self, "mean", out, axis=axis, dtype=dtype, keepdims=keepdims)

    def var(self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0,
            keepdims: bool = False) -> ndarray:
        return _reduced(self, "var", out, axis=axis, dtype=dtype, ddof=ddof, keepdims=keepdims)

    def max(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _reduced(self, "max", out, axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _reduced(self, "min", out, axis=axis, keepdims=keepdims)

    def argmax(self, axis: Any = None, out: Any = None, dtype: Any = None, keepdims: bool = False) -> ndarray:
        return _reduced(self, "argmax", out, axis=axis, keepdims=keepdims)

    def argmin(self, axis: Any = None, out: Any = None, dtype: Any = None, keepdims: bool = False) -> ndarray:
        return _reduced(self, "argmin", out, axis=axis, keepdims=keepdims)

    def all(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _reduced(self, "all", out, axis=axis, keepdims=keepdims)

    def any(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _reduced(self, "any", out, axis=axis, keepdims=keepdims)

    def cumsum(self, axis: Any = None, dtype: Any = None, out: Any = None) -> ndarray:
        return new(self._host.cumsum(axis, dtype))

    # --- what waits

    def __bool__(self) -> bool:
        sync("bool()")
        return bool(self._host)

    def __int__(self) -> int:
        sync("int()")
        return int(self._host)

    def __float__(self) -> float:
        sync("float()")
        return float(self._host)

    def __repr__(self) -> str:
        sync("printing")
        return repr(self._host)

    def __str__(self) -> str:
        sync("printing")
        return str(self._host)

    def __iter__(self) -> Any:
        sync("iterating")
        return (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        return len(self._host)

    # --- indexing

    def __getitem__(self, key: Any) -> ndarray:
        key, basic = _key(key, self._host)
        if not basic:
            return new(self._host[key])
        return view(self, self._host[key if builtins.any(p is Ellipsis for p in key) else (*key, Ellipsis)])

    def __setitem__(self, key: Any, value: Any) -> None:
        where, basic = _key(key, self._host)
        if not isinstance(value, ndarray) and not basic:
            copy_to_device("a number for the elements that an array picks")
        self._host[where] = operand(value)

    # --- DLPack

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None,
                   copy: Any = None) -> Any:
        return self

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


def new(host: Any, order: str = "C") -> ndarray:
    """An array with memory of its own, in C order unless told otherwise ("K" keeps the order of `host`)."""
    a = object.__new__(ndarray)
    a._host, a.base = np.array(host, order=order, copy=True), None
    return a


def view(source: ndarray, host: np.ndarray) -> ndarray:
    """A view of `source`'s memory."""
    a = object.__new__(ndarray)
    a._host, a.base = host, source if source.base is None else source.base
    return a


def view_or_new(source: ndarray, host: np.ndarray) -> ndarray:
    return view(source, host) if np.may_share_memory(source._host, host) else new(host)


def operand(x: Any) -> Any:
    """What NumPy is to compute with. Raises TypeError for what CuPy takes no arithmetic with."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, NUMBERS):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


def scalar(value: Any) -> Any:
    if isinstance(value, NUMBERS):
        return value
    raise TypeError(f"Unsupported type {type(value)}: move it to the device first")


def index(indices: Any) -> Any:
    """An index array on the host; one that comes from there is a copy to the device."""
    if isinstance(indices, ndarray):
        return indices._host
    if isinstance(indices, (np.ndarray, list)):
        copy_to_device("an index from the host")
        return np.asarray(indices)
    return indices


def _key(key: Any, host: np.ndarray) -> tuple[tuple, bool]:
    """The index for NumPy, and whether it is a basic one, which gives a view. Positions wrap round as CuPy's do: what
    is out of range is no error, but some other element."""
    parts = list(map(index, key if isinstance(key, tuple) else (key,)))
    masks = [p for p in parts if isinstance(p, np.ndarray) and p.dtype == bool]
    if masks:
        sync("indexing by a boolean mask")
    if len(masks) > 1:
        raise ValueError("CuPy takes at most one mask in an index")
    axis = 0
    for i, part in enumerate(parts):
        if part is Ellipsis:
            axis = host.ndim - builtins.sum(map(_axes, parts[i + 1:]))
        elif isinstance(part, np.ndarray) and part.dtype != bool:
            parts[i] = part % builtins.max(host.shape[axis], 1)
        axis += _axes(part)
    return tuple(parts), not builtins.any(isinstance(p, np.ndarray) for p in parts)


def _axes(part: Any) -> int:
    """How many axes a part of an index takes."""
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, np.ndarray) and part.dtype == bool else 1


def _reduced(a: ndarray, name: str, out: Any, **options: Any) -> ndarray:
    assert out is None, "out= of a reduction is not in the stand-in"
    with np.errstate(all="ignore"):
        return new(getattr(a._host, name)(**options))


# --- operators ----------------------------------------------------------------------------------------------------

OPERATORS = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "floordiv": np.floor_divide,
    "mod": np.remainder, "pow": np.power, "matmul": np.matmul, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "lshift": np.left_shift, "rshift": np.right_shift,
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
}
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
UNARY = {"neg": np.negative, "abs": np.absolute, "invert": np.invert}


def _binary(ufunc: np.ufunc, swapped: bool) -> Any:
    def method(self: ndarray, other: Any) -> Any:
        if getattr(other, "__array_ufunc__", self) is None:
            return NotImplemented
        if ufunc is np.matmul:
            refuse("a product by cuBLAS")
        a, b = operand(self), operand(other)
        with np.errstate(all="ignore"):
            return new(ufunc(b, a) if swapped else ufunc(a, b))

    return method


def _inplace(ufunc: np.ufunc) -> Any:
    def method(self: ndarray, other: Any) -> Any:
        if getattr(other, "__array_ufunc__", self) is None:
            return NotImplemented
        with np.errstate(all="ignore"):
            ufunc(self._host, operand(other), out=self._host)
        return self

    return method


for _name, _ufunc in OPERATORS.items():
    setattr(ndarray, f"__{_name}__", _binary(_ufunc, False))
    if _name not in COMPARISONS:
        setattr(ndarray, f"__r{_name}__", _binary(_ufunc, True))
        if _name != "matmul":
            setattr(ndarray, f"__i{_name}__", _inplace(_ufunc))
for _name, _ufunc in UNARY.items():
    setattr(ndarray, f"__{_name}__", lambda self, fn=_ufunc: new(fn(self._host)))

METHODS = [n for n, v in vars(ndarray).items() if callable(v) and not n.startswith("_")]
PROPERTIES = [n for n, v in vars(ndarray).items() if isinstance(v, property)] + ["base"]
