"""Launching a CUDA kernel: on the GPU where its arrays are CuPy's, on the emulator where they are NumPy's.

    launch("im2col<float>", grid, block, x, columns, np.int32(channels), ...)

The same text, the same grid and the same arguments either way, so what is tested without a GPU is what runs on one.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np

from ..layout import array_module
from .manifest import BY_NAME, TYPES

FOLDER = Path(__file__).parent
MOST_VALUES = 2**31 - 1  # of an array: the kernels count with 32 bits, as a division by 64 takes several times as long
OPTIONS = ("-std=c++17", f"-I{FOLDER}")


def launch(name, grid, block, *args, shared=0):
    """Run the instance `name` of the manifest.

    grid, block: up to three ints each; args: C-contiguous arrays of one library and NumPy scalars of the types that the
    kernel declares (np.int32(3), not 3: CuPy would pass that with 64 bits); shared: bytes of dynamic shared memory.
    Raises TypeError for a Python number, ValueError for an array that is too large or not contiguous. The emulator
    compares dtypes with what the kernel declares; CuPy takes what it is given.
    """
    kernel = BY_NAME[name]
    arrays = [a for a in args if not isinstance(a, np.generic)]
    for a in arrays:
        if not hasattr(a, "flags"):
            raise TypeError(f"{name}: got {a!r} of type {type(a).__name__}, expected arrays and NumPy scalars; "
                            "use np.int32(), or what else the kernel declares")
        if not a.flags.c_contiguous:
            raise ValueError(f"{name}: got an array of shape {tuple(a.shape)} and strides {a.strides}, expected a "
                             "C-contiguous one; use ascontiguousarray()")
        if a.size > MOST_VALUES:
            raise ValueError(f"{name}: got an array of shape {tuple(a.shape)}, {a.size:,} values, expected at most "
                             f"{MOST_VALUES:,}; use a smaller batch")
    if 0 in grid:
        return
    if array_module(arrays[0]) is np:
        from . import emulator

        emulator.launch(kernel, grid, block, args, shared)
    else:
        function(kernel)(grid, block, args, shared_mem=shared)


@cache
def function(kernel):
    """The compiled instance, as CuPy calls it: f(grid, block, args)."""
    import cupy

    # CuPy keeps what it compiled on the disk, under the text that it is given, without that of the headers.
    headers = "".join(header.read_text() for header in sorted(FOLDER.glob("*.cuh")))
    text = (FOLDER / kernel.file).read_text() + f"\n// headers: {hashlib.sha256(headers.encode()).hexdigest()}\n"
    return cupy.RawModule(code=text, options=OPTIONS, name_expressions=[kernel.name]).get_function(kernel.name)


def type_name(array):
    """The array's type as C++ names it, for the name of an instance: "float" or "double"."""
    return TYPES[array.dtype.name]


def empty(like, shape, dtype=None):
    """An uninitialised C-contiguous array where `like` is; for the emulator of bytes 255, so floats are NaN."""
    if array_module(like) is np:
        a = np.empty(shape, dtype or like.dtype)
        a.view(np.uint8 if a.ndim else a.dtype).fill(255)
        return a
    return array_module(like).empty(shape, dtype or like.dtype)


def blocks(count, size):
    """How many blocks of `size` cover `count`: count / size, rounded up."""
    return -(-count // size)
