"""What the GPU could do at best, measured in the same run as what is compared with it. The roof of a roofline.

    bandwidth   a copy from one array to another; a byte read and a byte written count as two. Small arrays stay in the
                GPU's second cache and are copied faster, so copies of several sizes are measured, and a kernel is
                compared with the copy of the size next to its own.
    products    cuBLAS on large square matrices of normal random numbers (of zeros it would be faster, as fewer bits
                switch): float32 as it is, and in the shorter types of the tensor cores, TF32, bfloat16, float16.
    launches    a kernel that does nothing: how long the processor takes to hand it over, and the GPU to run it.

On a data sheet there are larger numbers: those of a chip at its highest clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tinyres.analysis import bench_gpu_card as card
from tinyres.analysis import timing

COPIES = tuple(2**n for n in range(18, 31, 2))  # bytes of an array: 256 KiB to 1 GiB
MATRIX = 8192  # a side; its product is 1.1e12 operations
LAUNCHES = 500
LEAST = 1e-3  # seconds that a timed block lasts, at least
HOLD = 2e-3   # seconds that a copy keeps the queue busy while launches are put into it
ROUNDS = 7
SHARE = 8     # of the free memory, an eighth at most for an array
NOTHING = 'extern "C" __global__ void nothing() {}'


def measure(cupy: Any, copies: tuple[int, ...] = COPIES, side: int = MATRIX, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure all of it; returns what JSON can hold.

    copy_gbs: bytes of the array, as text -> GB/s; copy_peak_gbs: of the largest array; tflops: type -> TFLOP/s, None
    where CuPy cannot compute it (why is in `left_out`); launch_host_us and launch_device_us, microseconds.
    """
    free = card.free_memory(cupy)
    sizes = [nbytes for nbytes in copies if nbytes * SHARE <= free] or [copies[0]]
    speeds = {str(nbytes): copy_speed(cupy, nbytes, rounds) / 1e9 for nbytes in sizes}
    products: dict[str, float | None] = {}
    left_out: dict[str, str] = {}
    for name, speed in _products(cupy, side, rounds):
        try:
            products[name] = speed() / 1e12
        except Exception as error:  # what a type that cannot be computed raises differs from release to release
            products[name], left_out[name] = None, f"{type(error).__name__}: {error}"
    host, device = launch_overhead(cupy, rounds)
    card.free_memory(cupy)
    return {"copy_gbs": speeds, "copy_peak_gbs": speeds[str(sizes[-1])], "tflops": products, "matrix": side,
            "launch_host_us": 1e6 * host, "launch_device_us": 1e6 * device, "left_out": left_out}


def copy_speed(cupy: Any, nbytes: int, rounds: int = ROUNDS) -> float:
    """Bytes a second, read and written, of copying an array of so many bytes, at best."""
    run, moved = copy(cupy, nbytes)
    return moved / _block_seconds(cupy, run, rounds)


def copy(cupy: Any, nbytes: int) -> tuple[Callable[[], object], int]:
    """A function that copies an array of so many bytes, and the bytes that it moves: twice as many."""
    source = cupy.arange(nbytes // 4, dtype=cupy.float32)
    target = cupy.empty_like(source)
    return lambda: cupy.copyto(target, source), 2 * source.nbytes


def ahead(cupy: Any, limits: Mapping[str, Any], seconds: float = HOLD) -> Callable[[], None]:
    """A function that keeps the GPU busy for about so many seconds, and hands that over in a few microseconds."""
    nbytes = max(int(size) for size in limits["copy_gbs"])
    run, moved = copy(cupy, nbytes)
    count = max(1, round(seconds * limits["copy_peak_gbs"] * 1e9 / moved))

    def hold() -> None:
        for _ in range(count):
            run()

    return hold


def speed_of_copy(limits: Mapping[str, Any], moved: float) -> float:
    """GB/s of the measured copy that moves about as many bytes."""
    near = min(limits["copy_gbs"], key=lambda nbytes: abs(np.log2(2 * int(nbytes) / max(moved, 1))))
    return float(limits["copy_gbs"][near])


def _products(cupy: Any, side: int, rounds: int) -> Iterator[tuple[str, Callable[[], float]]]:
    """(name, a function that returns operations a second) for each type."""

    def speed(dtype: Any) -> float:
        a, b = (cupy.random.standard_normal((side, side), dtype=cupy.float32).astype(dtype) for _ in range(2))
        c = cupy.empty((side, side), dtype)
        return 2 * side**3 / _block_seconds(cupy, lambda: cupy.matmul(a, b, out=c), rounds)

    def in_tf32() -> float:
        with card.compute_type(cupy, cupy.dtype("float32"), "TF32"):
            return speed(cupy.float32)

    def in_bfloat16() -> float:
        import ml_dtypes

        return speed(np.dtype(ml_dtypes.bfloat16))

    yield "float32", lambda: speed(cupy.float32)
    yield "tf32", in_tf32
    yield "bfloat16", in_bfloat16
    yield "float16", lambda: speed(cupy.float16)
    yield "float64", lambda: speed(cupy.float64)


def _block_seconds(cupy: Any, run: Callable[[], object], rounds: int) -> float:
    """Seconds of a run, the least of several blocks that last a millisecond each."""
    clock = card.CudaClock(cupy)
    run()
    count = max(1, round(LEAST / max(clock.seconds(run), 1e-6)))
    return timing.alternate({"it": repeated(run, count)}, rounds, clock=clock)["it"].least / count


def launch_overhead(cupy: Any, rounds: int = ROUNDS, launches: int = LAUNCHES) -> tuple[float, float]:
    """Seconds that a launch of an empty kernel takes: of the processor, and of the GPU when many are in its queue."""
    kernel = cupy.RawKernel(NOTHING, "nothing")

    def run() -> None:
        for _ in range(launches):
            kernel((1,), (32,), ())

    clock, host = card.CudaClock(cupy), []
    run()
    for _ in range(rounds):
        clock.rest()
        began = time.perf_counter()
        run()
        host.append((time.perf_counter() - began) / launches)
    on_device = timing.alternate({"it": run}, rounds, clock=clock)["it"].least / launches
    return min(host), on_device


def repeated(run: Callable[[], object], count: int) -> Callable[[], None]:
    """A function that runs it so many times."""

    def block() -> None:
        for _ in range(count):
            run()

    return block


def in_words(limits: Mapping[str, Any]) -> str:
    """The limits in two lines."""
    products = ", ".join(f"{name} {value:.3g}" for name, value in limits["tflops"].items() if value is not None)
    small = ", ".join(f"{speed:.0f} of {int(nbytes) / 2**20:g} MiB" for nbytes, speed in limits["copy_gbs"].items())
    return (f"copy {limits['copy_peak_gbs']:.0f} GB/s ({small}); a launch takes {limits['launch_host_us']:.1f} us of "
            f"the processor and {limits['launch_device_us']:.1f} us of the GPU\nmatrix product, TFLOP/s: {products}")
