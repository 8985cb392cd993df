"""A GPU of straw: the strict stand-in for CuPy, with the few more things that measuring needs.

    with rehearsal():                  # `import cupy` gives the stand-in; events are stamped with the processor's time
        bench_gpu_step.measure(...)

    python tests/gpu_rehearsal.py tinyres train --device cuda ...      # a module or a script, run so

What it measures is nothing; that everything runs, in which order, and how it is counted, can be tested.
"""

from __future__ import annotations

import contextlib
import runpy
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import standin  # noqa: E402
from standin.array import ndarray, new  # noqa: E402

PROPERTIES = {"name": b"GPU of straw", "major": 9, "minor": 0, "multiProcessorCount": 4, "totalGlobalMem": 2**30,
              "l2CacheSize": 2**20}


class Event:
    """A mark with the time at which the processor made it, as the stand-in runs everything at once."""

    when: float | None = None

    def record(self, stream: Any = None) -> None:
        self.when = time.perf_counter()

    def synchronize(self) -> None:
        if self.when is None:
            raise RuntimeError("cudaErrorInvalidResourceHandle: nobody has recorded this event")


def get_elapsed_time(start: Event, end: Event) -> float:
    if start.when is None or end.when is None:
        raise RuntimeError("cudaErrorInvalidResourceHandle: nobody has recorded this event")
    return 1e3 * (end.when - start.when)


class Pool:
    """A pool that hands out and takes back what the tests say, and calls the hooks as CuPy's does."""

    hooks: list[Any] = []
    used = held = 0

    def used_bytes(self) -> int:
        return self.used

    def total_bytes(self) -> int:
        return self.held

    def free_all_blocks(self) -> None:
        self.held = self.used

    def take(self, nbytes: int) -> None:
        self.used += nbytes
        self.held = max(self.held, self.used)
        for hook in self.hooks:
            hook.malloc_postprocess(device_id=0, size=nbytes, mem_size=nbytes, mem_ptr=1, pmem_id=1)

    def give_back(self, nbytes: int) -> None:
        self.used -= nbytes
        for hook in self.hooks:
            hook.free_postprocess(device_id=0, mem_size=nbytes, mem_ptr=1, pmem_id=1)


class MemoryHook:
    """As in CuPy: inside `with hook` the pool calls it."""

    def __enter__(self) -> MemoryHook:
        Pool.hooks.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        Pool.hooks.remove(self)


class NoKernel:
    """RawKernel of a text that only the measuring of launches uses."""

    def __init__(self, code: str, name: str) -> None:
        if f"void {name}()" not in code:
            raise TypeError(f"RawKernel: {code!r} has no kernel {name}")

    def __call__(self, grid: tuple, block: tuple, args: tuple) -> None:
        if args:
            raise TypeError("an empty kernel takes no arguments")


def _random() -> types.ModuleType:
    module = types.ModuleType("cupy.random")
    rng = np.random.default_rng(0)
    module.standard_normal = lambda shape, dtype: new(rng.standard_normal(shape, dtype))  # type: ignore[attr-defined]
    return module


def _copyto(target: ndarray, source: ndarray) -> None:
    target[...] = source


def _core() -> types.ModuleType:
    """The private part that sets how matrix products are computed."""
    module, types_ = types.ModuleType("cupy._core"), {"float32": 1}
    module._routines_linalg = types.SimpleNamespace(COMPUTE_TYPE_TF32=7)  # type: ignore[attr-defined]
    module.get_compute_type = lambda dtype: types_[np.dtype(dtype).name]  # type: ignore[attr-defined]
    module.set_compute_type = lambda dtype, value: types_.update({np.dtype(dtype).name: value})  # type: ignore
    return module


@contextlib.contextmanager
def rehearsal() -> Any:
    """The stand-in with events, memory, random numbers and an empty kernel; yields the module."""
    pool = Pool()
    runtime = types.SimpleNamespace(
        getDeviceProperties=lambda number: PROPERTIES, driverGetVersion=lambda: 13000, runtimeGetVersion=lambda: 13000,
        memGetInfo=lambda: (2**30, 2**30), deviceSynchronize=lambda: None)
    more = {"get_default_memory_pool": lambda: pool, "RawKernel": NoKernel, "random": _random(), "copyto": _copyto,
            "_core": _core(), "float16": np.float16, "float32": np.float32, "float64": np.float64, "dtype": np.dtype}
    with standin.installed() as cupy:
        with contextlib.ExitStack() as stack:
            for module, names in ((cupy, more), (cupy.cuda, {"Event": Event, "get_elapsed_time": get_elapsed_time,
                                                             "MemoryHook": MemoryHook, "runtime": runtime})):
                for name, value in names.items():
                    if name not in vars(module):
                        setattr(module, name, value)
                        stack.callback(delattr, module, name)
            yield cupy


@contextlib.contextmanager
def small() -> Any:
    """Inside, the benchmarks measure what the processor does in no time, and PyTorch's side runs on the processor."""
    from tinyres.analysis import bench_gpu_infer, bench_gpu_kernels, bench_gpu_limits, bench_gpu_step, bench_gpu_torch
    from tinyres.analysis.bench_gpu_cases import cases

    measure = bench_gpu_limits.measure
    changes = {
        bench_gpu_limits: {"measure": lambda cupy: measure(cupy, (2**14, 2**16), 32, 2), "LAUNCHES": 5, "LEAST": 1e-5},
        bench_gpu_torch: {"DEVICE": "cpu"}, bench_gpu_step: {"WARMUP": 2, "MEMORY": 1, "MOST_STEPS": 1},
        bench_gpu_infer: {"WARMUP": 1, "MOST_CALLS": 1},
        bench_gpu_kernels: {"MOST_LAUNCHES": 2, "MOST_CALLS": 1, "cases": lambda put, dtype, batch: (
            case for case in cases(put, dtype) if case.words.startswith(("sgd", "batch_norm", "augment")))},
    }
    with contextlib.ExitStack() as stack:
        for module, names in changes.items():
            for name, value in names.items():
                stack.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, value)
        yield


def main(arguments: list[str]) -> None:
    """Run a module (by its name) or a script (by its path) as a program, on the stand-in."""
    what, sys.argv = arguments[0], list(arguments)
    with rehearsal(), small():
        if what.endswith(".py"):
            runpy.run_path(what, run_name="__main__")
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
