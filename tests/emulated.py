"""What the tests of the emulator share: arrays, and kernels to launch."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tinyres.kernels.cuda import emulator
from tinyres.kernels.cuda.emulator import Module

FAULTS = Path(__file__).parent / "emulator_faults"
ORDERS = ("forward", "reverse", "random")
F32, I32 = np.float32, np.int32
NEEDS_EMULATOR = pytest.mark.skipif(not emulator.available(), reason=emulator.missing())


def ramp(*shape, dtype=F32):
    """1, 2, 3, ..."""
    return np.arange(1, np.prod(shape) + 1, dtype=dtype).reshape(shape)


def blank(*shape, dtype=F32):
    return np.full(shape, -1, dtype)


X64, X32 = ramp(64), ramp(32)


def function(text, name, *options):
    return Module(text, options, [name]).get_function(name)


def run(text, name, grid, block, *args, shared=0, options=()):
    grid, block = (g if isinstance(g, tuple) else (g,) for g in (grid, block))
    function(text, name, *options)(grid, block, args, shared)


@cache
def module(file, mended):
    """The kernels of a file of emulator_faults/, as they are or mended."""
    text = (FAULTS / file).read_text()
    names = re.findall(r"__global__ void (\w+)\(", text)
    return Module(text, ("-DMENDED",) if mended else (), names, FAULTS / file)


def launch(file, kernel, mended, grid, block, args, shared=0):
    module(file, mended).get_function(kernel)((grid,), (block,), args, shared)


AXPY = """
template <typename T> __global__ void __launch_bounds__(256) axpy(T a, const T* __restrict__ x /* n */, T* y, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
"""


def axpy(a, x, y, n, grid=(1,), block=(32,), shared=0):
    function(AXPY, "axpy<float>")(grid, block, (a, x, y, n), shared)
