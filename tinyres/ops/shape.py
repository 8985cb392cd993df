"""Moving elements about. Nothing is computed, so each backward moves the gradient back: reshape by reshape, transpose
by the inverse permutation, a slice into zeros at its place; and an element taken twice collects twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyres.kernels import layout
from tinyres.kernels.layout import array_module
from tinyres.operands import alike, check_devices, check_tensors, whole_numbers
from tinyres.ops.elementwise import raw
from tinyres.tensor import Function, Tensor


class Reshape(Function):
    """The same elements in another shape; dx is g in the old one."""

    def forward(self, x: Any, *, shape: tuple[int, ...]) -> Any:
        self.input_shape = x.shape
        out = x.reshape(shape)
        return layout.channels_last(out) if out.ndim == 4 else out

    def backward(self, grad: Any) -> Any:
        return reshape(grad, self.input_shape)


class Permute(Function):
    """Dimensions reordered; dx by the inverse order."""

    def forward(self, x: Any, *, dims: tuple[int, ...]) -> Any:
        return x.transpose(dims)

    def backward(self, grad: Any) -> Any:
        return permute(grad, tuple(int(i) for i in np.argsort(self.params["dims"])))


class ChannelsLast(Function):
    """The same values in channels-last memory: the one layout copy that an NCHW input costs."""

    def forward(self, x: Any) -> Any:
        return layout.channels_last(x)

    def backward(self, grad: Any) -> Any:
        return grad


class GetItem(Function):
    """y = x[index];  dx = zeros with g added at the index."""

    def forward(self, x: Any, *, index: Any) -> Any:
        self.input_shape = x.shape
        try:
            if x.ndim == 4 and getattr(index, "ndim", 0) == 1:  # images picked from a batch: whole runs of memory
                return layout.nchw(x.transpose(0, 2, 3, 1)[index])
            return x[index]
        except IndexError as error:
            raise IndexError(f"getitem: shape {x.shape}: {error}; index with integers in range, slices, None, or masks "
                             "of the dimensions' lengths") from error

    def backward(self, grad: Any) -> Any:
        return put(grad, self.params["index"], self.input_shape)


class Put(Function):
    """The adjoint of indexing: an array of zeros with `values` added at `index`."""

    fresh = True

    def forward(self, values: Any, *, index: Any, shape: tuple[int, ...]) -> Any:
        out = _zeros(values, shape)
        if _selects_once(index):
            out[index] = values
        else:
            array_module(values).add.at(out, index, values)
        return out

    def backward(self, grad: Any) -> Any:
        return getitem(grad, self.params["index"])


class Gather(Function):
    """out[..., i, ...] = x[..., index[..., i, ...], ...] along `dim`."""

    def forward(self, x: Any, *, dim: int, index: Any) -> Any:
        self.input_shape = x.shape
        return layout.along(array_module(x).take_along_axis, dim, x, index)

    def backward(self, grad: Any) -> Any:
        return Scatter.apply(grad, shape=self.input_shape, **self.params)


class Scatter(Function):
    """The adjoint of Gather: values added into zeros at their index along `dim`."""

    fresh = True

    def forward(self, values: Any, *, dim: int, index: Any, shape: tuple[int, ...]) -> Any:
        xp = array_module(values)
        out = _zeros(values, shape)
        place = [xp.arange(n).reshape((-1,) + (1,) * (index.ndim - i - 1)) for i, n in enumerate(index.shape)]
        place[dim] = index
        xp.add.at(out, tuple(place), values)
        return out

    def backward(self, grad: Any) -> Any:
        return Gather.apply(grad, dim=self.params["dim"], index=self.params["index"])


class Pad(Function):
    """x inside a frame of one value;  dx = g without the frame."""

    def forward(self, x: Any, *, before: tuple[int, ...], shape: tuple[int, ...], value: float) -> Any:
        self.inside = tuple(slice(b, b + n) for b, n in zip(before, x.shape, strict=True))
        out = _zeros(x, shape)
        if value != 0:
            out[...] = value
        out[self.inside] = x
        return out

    def backward(self, grad: Any) -> Any:
        return getitem(grad, self.inside)


class Concat(Function):
    """Arrays joined;  each dx is its slice of g."""

    def forward(self, *xs: Any, dim: int) -> Any:
        self.ends = np.cumsum([x.shape[dim] for x in xs]).tolist()
        arrays, xp = alike(xs), array_module(xs[0])
        if xs[0].ndim != 4:
            return xp.concatenate(arrays, axis=dim)
        joined = xp.concatenate([a.transpose(0, 2, 3, 1) for a in arrays], axis=(0, 3, 1, 2)[dim])
        return layout.channels_last(layout.nchw(joined))  # NumPy's may be in the order of the parts

    def backward(self, grad: Any) -> Any:
        lead = (slice(None),) * self.params["dim"]
        starts = [0, *self.ends[:-1]]
        return tuple(getitem(grad, (*lead, slice(a, b))) if need else None
                     for a, b, need in zip(starts, self.ends, self.needs, strict=True))


def _zeros(like: Any, shape: tuple[int, ...]) -> Any:
    xp = array_module(like)
    if len(shape) != 4:
        return xp.zeros(shape, like.dtype)
    n, c, h, w = shape
    return layout.nchw(xp.zeros((n, h, w, c), like.dtype))


def _selects_once(index: Any) -> bool:
    """Whether an index can take no element twice: slices, integers, None, Ellipsis and boolean masks."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or isinstance(p, (int, slice, np.integer)) or
               getattr(getattr(p, "dtype", None), "kind", "") == "b" for p in parts)


def _dims(name: str, dims: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Each dim as a number from 0 on. Raises TypeError for what is no integer, IndexError out of range."""
    dims = whole_numbers(name, "dim", dims)
    for d in dims:
        if not -ndim <= d < ndim:
            where = f" (from {-ndim} to {ndim - 1})" if ndim else ": it is a single number; give it one with reshape(1)"
            raise IndexError(f"{name}: dim {d} is out of range for {ndim} dimensions{where}")
    return tuple(d % ndim for d in dims)


def reshape(x: Any, *shape: Any) -> Any:
    """x with another shape of as many elements, in logical (row-major) order; one length may be -1.

    A view where memory allows, else a copy. Raises ValueError if the element counts differ.
    """
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    check_tensors("reshape", input=x)
    shape = whole_numbers("reshape", "each length", shape)
    known = math.prod(n for n in shape if n != -1)
    count = math.prod(x.shape)
    if (shape.count(-1) > 1 or any(n < -1 for n in shape) or (known == 0 and -1 in shape)
            or (count % known if -1 in shape else count != known)):
        raise ValueError(f"reshape: {count} elements of shape {tuple(x.shape)} do not fit into {tuple(shape)}; the "
                         "lengths must multiply to that count, and one of them may be -1")
    shape = tuple(count // known if n == -1 else n for n in shape)
    return x if shape == x.shape else Reshape.apply(x, shape=shape)


def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """The dimensions from start_dim to end_dim (included) made one."""
    check_tensors("flatten", input=x)
    start, end = _dims("flatten", (start_dim, end_dim), max(x.ndim, 1))
    if start > end:
        raise ValueError(f"flatten: start_dim {start_dim} lies behind end_dim {end_dim} in shape {tuple(x.shape)}; "
                         "exchange them")
    return reshape(x, (*x.shape[:start], math.prod(x.shape[start:end + 1]), *x.shape[end + 1:]))


def unsqueeze(x: Any, dim: int) -> Any:
    """x with a new dimension of length 1 before `dim`."""
    check_tensors("unsqueeze", input=x)
    (dim,) = _dims("unsqueeze", (dim,), x.ndim + 1)
    return reshape(x, (*x.shape[:dim], 1, *x.shape[dim:]))


def squeeze(x: Any, dim: int | None = None) -> Any:
    """x without its dimensions of length 1, or without `dim` if that has length 1."""
    check_tensors("squeeze", input=x)
    drop = range(x.ndim) if dim is None else _dims("squeeze", (dim,), x.ndim)
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if not (i in drop and n == 1)))


def permute(x: Any, *dims: Any) -> Any:
    """The dimensions of x in the order `dims`; a view. Raises ValueError unless each appears once."""
    if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
        dims = tuple(dims[0])
    check_tensors("permute", input=x)
    order = _dims("permute", dims, x.ndim)
    if sorted(order) != list(range(x.ndim)):
        raise ValueError(f"permute: dims {dims} must name each of the {x.ndim} dimensions of shape {x.shape} once")
    return Permute.apply(x, dims=order)


def transpose(x: Any, dim0: int = -2, dim1: int = -1) -> Any:
    """x with two dimensions exchanged; a view."""
    check_tensors("transpose", input=x)
    a, b = _dims("transpose", (dim0, dim1), x.ndim)
    order = list(range(x.ndim))
    order[a], order[b] = b, a
    return Permute.apply(x, dims=tuple(order))


def channels_last(x: Any) -> Any:
    """x (N, C, H, W) with channels-last memory: x itself where it is so already, else one counted copy."""
    if x.ndim != 4:
        raise ValueError(f"channels_last: expected images (N, C, H, W), got shape {tuple(x.shape)}")
    return x if layout.is_channels_last(raw(x)) else ChannelsLast.apply(x)


def getitem(x: Any, index: Any) -> Any:
    """x[index] with integers, slices, None, Ellipsis, integer arrays and boolean masks (NumPy's rules).

    Index arrays move to x's device, if they are on the host. On a GPU a mask waits for it, as its length must be known,
    and an index array that is out of range wraps round instead of raising IndexError, as in CuPy. Backward adds there
    the gradients of what an array picks twice in no fixed order: such a run repeats up to rounding, not bit for bit.
    """
    parts = tuple(_index(x, p) for p in index) if isinstance(index, tuple) else _index(x, index)
    return GetItem.apply(x, index=parts)


def _index(x: Any, part: Any) -> Any:
    """One part of an index, on the device of x where it is an array."""
    part = raw(part)
    if not hasattr(part, "strides") or isinstance(part, np.generic):
        return part
    xp = array_module(raw(x))
    if array_module(part) is not xp:
        if xp is np:
            check_devices("getitem", x, part)
        return xp.asarray(part)
    return part


def put(values: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of `shape` with `values` added at `index`: the adjoint of x[index]."""
    return Put.apply(values, index=index, shape=tuple(shape))


def gather(x: Any, dim: int, index: Any) -> Any:
    """The elements of x at `index` (integers, as many dimensions as x) along `dim`.

    Raises IndexError for an index out of range; on a GPU, where a look would wait for it, that wraps round.
    """
    check_tensors("gather", input=x, index=index)
    check_devices("gather", x, index)
    (dim,) = _dims("gather", (dim,), x.ndim)
    index = raw(index)
    if index.dtype.kind not in "iu":
        raise TypeError(f"gather: index must hold integers, got {index.dtype}; use astype('int64')")
    if index.ndim != x.ndim:
        raise ValueError(f"gather: index {index.shape} must have as many dimensions as the input {tuple(x.shape)}; "
                         "reshape it")
    beside = [i for i, (n, m) in enumerate(zip(index.shape, x.shape, strict=True)) if i != dim and n not in (1, m)]
    if beside:
        raise ValueError(f"gather: index {index.shape} and input {tuple(x.shape)} differ in dim {beside[0]}; only dim "
                         f"{dim}, along which is gathered, may differ")
    length = x.shape[dim]
    if array_module(index) is np and index.size and not -length <= int(index.min()) <= int(index.max()) < length:
        raise IndexError(f"gather: index holds {int(index.min())} to {int(index.max())}, but dim {dim} of the input "
                         f"{tuple(x.shape)} has the positions 0 to {length - 1}")
    return Gather.apply(x, dim=dim, index=index)


def pad(x: Any, widths: Sequence[int], value: float = 0.0) -> Any:
    """x with `value` around it. widths counts from the last dimension backwards, (left, right, top, bottom, ...), as in
    torch.nn.functional.pad; a negative width crops. Raises ValueError for an odd number of widths, too many of them, or
    where they crop all there is."""
    check_tensors("pad", input=x)
    widths = whole_numbers("pad", "each width", widths if isinstance(widths, (tuple, list)) else (widths,))
    if len(widths) % 2 or len(widths) > 2 * x.ndim:
        raise ValueError(f"pad: widths {widths} must be pairs, at most one per dimension of shape {tuple(x.shape)}: "
                         "(left, right) or (left, right, top, bottom)")
    if raw(x).dtype.kind != "f" and value != int(value):
        raise TypeError(f"pad: the value {value} does not fit into a tensor of {raw(x).dtype}; convert that first with "
                        "astype('float32')")
    before, after = [0] * x.ndim, [0] * x.ndim
    for i in range(len(widths) // 2):
        before[-1 - i], after[-1 - i] = widths[2 * i], widths[2 * i + 1]
    if any(max(0, -b) + max(0, -a) >= n for b, a, n in zip(before, after, x.shape, strict=True) if b < 0 or a < 0):
        raise ValueError(f"pad: widths {widths} crop away all of shape {tuple(x.shape)}; crop less")
    if any(b < 0 for b in (*before, *after)):
        crop = tuple(slice(max(0, -b), n - max(0, -a)) for b, a, n in zip(before, after, x.shape, strict=True))
        x = getitem(x, crop)
        before, after = [max(0, b) for b in before], [max(0, a) for a in after]
    if not any(before) and not any(after):
        return x
    shape = tuple(b + n + a for b, n, a in zip(before, x.shape, after, strict=True))
    return Pad.apply(x, before=tuple(before), shape=shape, value=value)


def concat(xs: Sequence[Any], dim: int = 0) -> Any:
    """Arrays or Tensors joined along `dim`. Raises ValueError unless all other lengths are equal."""
    xs = list(xs)
    if not xs:
        raise ValueError("concat: got no tensors, expected at least one")
    check_tensors("concat", **{f"input {i}": x for i, x in enumerate(xs)})
    (dim,) = _dims("concat", (dim,), xs[0].ndim)
    rests = {(*x.shape[:dim], *x.shape[dim + 1:]) for x in xs}
    if len(rests) > 1 or len({x.ndim for x in xs}) > 1:
        raise ValueError(f"concat: shapes {', '.join(str(tuple(x.shape)) for x in xs)} must agree except in dim {dim}")
    return Concat.apply(*xs, dim=dim)


def stack(xs: Sequence[Any], dim: int = 0) -> Any:
    """Arrays or Tensors of one shape joined along a new dimension `dim`."""
    check_tensors("stack", **{f"input {i}": x for i, x in enumerate(xs)})
    if len({tuple(x.shape) for x in xs}) != 1:
        raise ValueError(f"stack: shapes {', '.join(str(tuple(x.shape)) for x in xs)} must be equal, and at least one")
    return concat([unsqueeze(x, dim) for x in xs], _dims("stack", (dim,), xs[0].ndim + 1)[0])


def split(x: Any, size: int | Sequence[int], dim: int = 0) -> tuple[Any, ...]:
    """x cut along `dim` into pieces of length `size` (the last may be shorter), or of the lengths in `size`."""
    (dim,) = _dims("split", (dim,), x.ndim)
    total = x.shape[dim]
    if not isinstance(size, (tuple, list)):
        (size,) = whole_numbers("split", "size", (size,))
        if size < 1:
            raise ValueError(f"split: size must be at least 1, got {size}")
        size = [min(size, total - start) for start in range(0, total, size)]
    if sum(size) != total or any(n < 0 for n in size):
        raise ValueError(f"split: lengths {list(size)} must not be negative and must add up to {total}, the length of "
                         f"dim {dim} of {tuple(x.shape)}")
    ends = np.cumsum(size).tolist()
    lead = (slice(None),) * dim
    return tuple(getitem(x, (*lead, slice(end - n, end))) for n, end in zip(size, ends, strict=True))


def alias(x: Tensor) -> Tensor:
    """The same values as a node of its own, at which a gradient can be observed or cut off."""
    return Reshape.apply(x, shape=x.shape)
