"""cupy.RawModule on the emulator, and what the library uses of cupy.cuda."""

from __future__ import annotations

import types
from typing import Any

import numpy as np

from standin.array import ndarray


class RawModule:
    """A .cu file's text with the instances that are wanted of it."""

    def __init__(self, code: str | None = None, *, path: Any = None, options: tuple[str, ...] = (),
                 backend: str = "nvrtc", name_expressions: Any = None):
        if not code or path is not None or backend != "nvrtc":
            raise TypeError("RawModule: the stand-in compiles `code`, as NVRTC would")
        if any(not isinstance(option, str) for option in options):
            raise TypeError("RawModule: options must be texts")
        self.code, self.options, self.names = code, options, tuple(name_expressions or ())

    def get_function(self, name: str) -> RawKernel:
        if name not in self.names:
            raise RuntimeError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {name} is not in name_expressions")
        return RawKernel(name)


class RawKernel:
    """f(grid, block, args, shared_mem=0)."""

    def __init__(self, name: str):
        self.name = name
        self.max_dynamic_shared_size_bytes = 48 << 10

    def __call__(self, grid: tuple, block: tuple, args: Any, *, shared_mem: int = 0) -> None:
        from tinyres.kernels.cuda import emulator
        from tinyres.kernels.cuda.manifest import BY_NAME

        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError(f"{self.name}: grid is {grid!r} and block {block!r}, expected tuples")
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise RuntimeError(f"CUDA_ERROR_INVALID_VALUE: {self.name}: {shared_mem} bytes of shared memory")
        given = [argument(self.name, a) for a in args]
        emulator.launch(BY_NAME[self.name], grid, block, given, shared_mem)


def argument(kernel: str, a: Any) -> Any:
    """What the emulator is given. CuPy would pass a Python int with 64 bits and a float as double, whatever the kernel
    takes, and of an array only where it begins."""
    if isinstance(a, ndarray):
        if not a.flags.c_contiguous:
            raise ValueError(f"{kernel}: an array of shape {a.shape} and strides {a.strides} as argument: the kernel "
                             "would read it as if it were contiguous")
        return a._host
    if isinstance(a, np.generic):
        return a
    raise TypeError(f"{kernel}: {a!r}, a {type(a).__name__}, as argument: give np.int32(...), np.float32(...)")


class Device:
    """The only device."""

    def __init__(self, device: int = 0):
        self.id = device

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


CUDA: Any = types.ModuleType("cupy.cuda")
CUDA.Device = Device
