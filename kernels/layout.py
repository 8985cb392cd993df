"""Memory order of images: logically NCHW, in memory channels-last (NHWC).

Every image tensor of the framework has the logical shape (N, C, H, W), the shape users know, and lies in memory as
(N, H, W, C): the channels of one pixel are neighbours. That is the order in which a convolution reads them (one row of
the kernel window over all channels is one contiguous run) and in which batch norm's per-channel factors are a plain
vector. Going from one view to the other is a transpose without a copy:

    logical (N, C, H, W)  --transpose(0, 2, 3, 1)-->  memory (N, H, W, C), C-contiguous

Convolution weights follow the same rule: logical (K, C/G, R, S), memory (K, R, S, C/G). NumPy keeps the memory order in
most places and CuPy in few, so everything that makes a 4-D array goes through this file. A copy made only to restore
the order is counted in `copies`: a training step should make exactly one, for its input.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

copies = 0  # how many layout copies this process has made


def array_module(a):
    """The module that owns the array: cupy for a CuPy array, numpy for everything else. CuPy is imported only then."""
    if type(a).__module__.partition(".")[0] == "cupy":
        import cupy

        return cupy
    return np


@contextmanager
def count_copies():
    """Counts the layout copies made inside the `with` block: `with count_copies() as counted: ...; counted.copies`."""
    before = copies
    counted = SimpleNamespace(copies=0)
    try:
        yield counted
    finally:
        counted.copies = copies - before


def _contiguous(view):
    """The array itself where it is C-contiguous, else a counted copy."""
    if view.flags.c_contiguous:
        return view
    global copies
    copies += 1
    return array_module(view).ascontiguousarray(view)


def nhwc(x):
    """(N, C, H, W) -> (N, H, W, C), C-contiguous: a view of a channels-last array, a counted copy of any other."""
    return _contiguous(x.transpose(0, 2, 3, 1))


def nchw(y):
    """(N, H, W, C) -> (N, C, H, W), always a view."""
    return y.transpose(0, 3, 1, 2)


def is_channels_last(x):
    """Whether the logically NCHW array x lies in memory as contiguous NHWC."""
    return x.transpose(0, 2, 3, 1).flags.c_contiguous


def channels_last(x):
    """(N, C, H, W) -> the same values, channels-last in memory: x itself if it is so already, else a counted copy."""
    return x if is_channels_last(x) else nchw(nhwc(x))


def rows(x):
    """(N, C) or (N, C, ...) -> (M, C), C-contiguous, one row of channels per position; a copy is counted as in nhwc."""
    if x.ndim == 4:
        return nhwc(x).reshape(-1, x.shape[1])
    if x.ndim == 2:
        return _contiguous(x)
    return _contiguous(x.transpose(0, *range(2, x.ndim), 1)).reshape(-1, x.shape[1])


def from_rows(values, shape):
    """Inverse of rows: (M, C) -> a view of the logical shape (N, C, ...), channels last in memory."""
    channel_last = values.reshape(shape[0], *shape[2:], shape[1])
    return channel_last.transpose(0, len(shape) - 1, *range(1, len(shape) - 1))


def elementwise(fn, *operands):
    """fn(*operands) with a 4-D result in channels-last memory, whatever library and broadcast made it.

    fn works like a ufunc: element by element, with broadcasting. Operands are arrays of any ndim and Python scalars.
    The result is an array also where NumPy would give a scalar, so that float32 meets float32 in the next op.
    """
    for operand in operands:
        if type(operand) is not np.ndarray and array_module(operand) is not np:
            return _elementwise_cupy(fn, operands)
    y = fn(*operands)
    if type(y) is not np.ndarray:
        return np.asarray(y)
    # NumPy gives the result the memory order of its operands: only mixed orders and some broadcasts need a copy.
    if y.ndim == 4 and not y.transpose(0, 2, 3, 1).flags.c_contiguous:
        return channels_last(y)
    return y


def reduced(x, how, axes, **options):
    """x.max(axes, keepdims=True) for how = "max", and other reductions, with a 4-D result in channels-last memory."""
    if x.ndim != 4:
        return getattr(x, how)(axis=axes, keepdims=True, **options)
    memory = tuple((0, 3, 1, 2)[axis] for axis in axes)
    return nchw(getattr(x.transpose(0, 2, 3, 1), how)(axis=memory, keepdims=True, **options))


def along(fn, axis, *arrays):
    """fn(*arrays, axis=axis) for arrays of one ndim, with a 4-D result in channels-last memory."""
    if arrays[0].ndim != 4:
        return fn(*arrays, axis=axis)
    return nchw(fn(*(a.transpose(0, 2, 3, 1) for a in arrays), axis=(0, 3, 1, 2)[axis]))


def _elementwise_cupy(fn, operands):
    """CuPy writes every result in C order: show it the operands as NHWC, and its C order is the one we want."""
    ndim = max(getattr(operand, "ndim", 0) for operand in operands)
    if ndim != 4:
        return fn(*operands)

    def show_nhwc(operand):
        if getattr(operand, "ndim", 0) == 0:
            return operand
        return operand.reshape((1,) * (4 - operand.ndim) + operand.shape).transpose(0, 2, 3, 1)

    return nchw(fn(*map(show_nhwc, operands)))
