"""The graphics processor as something to measure on: what it is, its clock, and how much of its memory was in use.

A program hands a GPU its work and goes on at once, so the processor's clock tells when the work was handed over. An
*event* is a mark in the queue of the work itself, which the GPU stamps with the time when it gets there:

    processor   record(start)  launch  launch  launch  record(end)  wait for end
    GPU         -------------- start [kernel][kernel][kernel] end --------------

Between small kernels the GPU waits for the processor, which needs some microseconds for each launch. That belongs to
the time of a training step, and not to that of a kernel: then something long is put into the queue first, so that all
launches wait there before the first of them starts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any


class CudaClock:
    """Times what a run puts into the present CuPy stream, which is PyTorch's too, by events of the GPU.

    ahead: called before the start is recorded; it puts something long into the queue.
    """

    def __init__(self, cupy: Any, ahead: Callable[[], object] | None = None) -> None:
        self.cupy, self.ahead = cupy, ahead
        self.start, self.end = cupy.cuda.Event(), cupy.cuda.Event()

    def rest(self) -> None:
        """Wait until the GPU has done everything."""
        self.cupy.cuda.Device().synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        """Run and wait; the seconds between both events, whose resolution is half a microsecond."""
        if self.ahead is not None:
            self.ahead()
        self.start.record()
        run()
        self.end.record()
        self.end.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(self.start, self.end)) / 1e3


def facts(cupy: Any) -> dict[str, Any]:
    """What the times were taken on, ready for JSON: name, capability, multiprocessors, memory and l2 in bytes, driver
    and runtime (CUDA's versions, 13000 for 13.0), cupy; and all of it in `words`."""
    runtime = cupy.cuda.runtime
    about = runtime.getDeviceProperties(cupy.cuda.Device().id)
    found: dict[str, Any] = {
        "name": about["name"].decode(errors="replace"), "capability": [int(about["major"]), int(about["minor"])],
        "multiprocessors": int(about["multiProcessorCount"]), "memory": int(about["totalGlobalMem"]),
        "l2": int(about["l2CacheSize"]), "driver": int(runtime.driverGetVersion()),
        "runtime": int(runtime.runtimeGetVersion()), "cupy": str(cupy.__version__)}
    major, minor = found["capability"]
    words = (f"{found['name']}, compute capability {major}.{minor}, {found['multiprocessors']} multiprocessors, "
             f"{found['memory'] / 2**30:.0f} GiB; CuPy {found['cupy']}, CUDA {_dotted(found['runtime'])}, driver for "
             f"{_dotted(found['driver'])}")
    return {**found, "words": words}


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def peak_memory(cupy: Any, run: Callable[[], object], already: int = 0) -> dict[str, int]:
    """Bytes of CuPy's memory pool while run() ran: `peak`, handed out at most; `reserved`, taken from the GPU.

    already: handed out to others before, which is not counted in the peak. Reserved is all that the pool holds, free
    blocks too. What libraries like cuBLAS take for themselves is in neither.
    """
    pool = cupy.get_default_memory_pool()

    class Counting(cupy.cuda.MemoryHook):
        name = "peak memory"
        now = most = 0

        def malloc_postprocess(self, **of: Any) -> None:
            self.now += of["mem_size"]
            self.most = max(self.most, self.now)

        def free_postprocess(self, **of: Any) -> None:
            self.now -= of["mem_size"]

    before = int(pool.used_bytes())
    with Counting() as hook:
        run()
    return {"peak": before + hook.most - already, "reserved": int(pool.total_bytes())}


def free_memory(cupy: Any) -> int:
    """Bytes that can still be had, after the pool has given back what it holds and does not use."""
    cupy.get_default_memory_pool().free_all_blocks()
    return int(cupy.cuda.runtime.memGetInfo()[0])


@contextlib.contextmanager
def compute_type(cupy: Any, dtype: Any, name: str) -> Any:
    """Inside, CuPy's matrix products of `dtype` are computed in COMPUTE_TYPE_<name>, such as TF32; it has no public
    name for that but the variable CUPY_TF32, read at its first product. Raises AttributeError where it has changed."""
    core = cupy._core
    index = getattr(core._routines_linalg, f"COMPUTE_TYPE_{name}")
    before = core.get_compute_type(dtype)
    core.set_compute_type(dtype, index)
    try:
        yield
    finally:
        core.set_compute_type(dtype, before)
