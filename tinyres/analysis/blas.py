"""NumPy's BLAS, which multiplies matrices: which it is, with which kernels it runs, and how fast."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from tinyres.analysis.finding import NOTE, Finding
from tinyres.analysis.machine import cpu_flags

TRAP = "OPENBLAS_CORETYPE"
FIGURES = "on 2 cores with AVX2, Haswell's kernels gave 183 GFLOP/s, Sandybridge's 140, Nehalem's 53"
# The vector instructions of OpenBLAS's kernels, by the name that it gives them: lower is slower.
SSE, AVX, AVX2, AVX512 = range(4)
LEVEL = {
    **dict.fromkeys("katmai coppermine northwood prescott banias core2 penryn dunnington nehalem atom athlon opteron "
                    "opteron_sse3 barcelona bobcat nano".split(), SSE),
    **dict.fromkeys("sandybridge bulldozer piledriver steamroller".split(), AVX),
    **dict.fromkeys("haswell zen excavator".split(), AVX2),
    **dict.fromkeys("skylakex cooperlake sapphirerapids".split(), AVX512),
}
WORDS = {SSE: "SSE", AVX: "AVX", AVX2: "AVX2", AVX512: "AVX-512"}
SLOW = 10e9  # operations a second of one thread: an unoptimised BLAS stays below
SIZE = 768
ROWS = 384  # of the product, for each thread
SECONDS = 0.12
ALONE = "from tinyres.analysis import blas; print(blas.kernels(), blas.speed(1))"


def numpy_and_blas() -> list[Finding]:
    """NumPy, its BLAS library, and whether that runs with the kernels for this processor."""
    import numpy as np

    found = [Finding("NumPy", np.__version__, facts={"version": np.__version__})]
    try:
        library = loaded()
    except ImportError:
        return [*found, Finding("BLAS", "unknown, as threadpoolctl is not installed: BLAS threads compete with the "
                                "kernels'", NOTE, "pip install threadpoolctl")]
    return [*found, blas_finding(library, cpu_flags(), os.environ.get(TRAP, ""))]


def loaded() -> dict[str, Any] | None:
    """What threadpoolctl says of NumPy's BLAS, None for one that it does not know."""
    import numpy as np
    from threadpoolctl import threadpool_info

    np.ones((2, 2)) @ np.ones((2, 2))
    libraries = [library for library in threadpool_info() if library.get("user_api") == "blas"]
    return next((one for one in libraries if "numpy" in str(one.get("filepath"))), next(iter(libraries), None))


def kernels() -> str:
    """The processor for which the BLAS kernels in use were written, as OpenBLAS calls it."""
    return str((loaded() or {}).get("architecture") or "unknown")


def blas_finding(library: dict[str, Any] | None, flags: set[str], forced: str) -> Finding:
    """Judge a BLAS library, as threadpoolctl tells of it, by the processor's features and $OPENBLAS_CORETYPE."""
    if library is None:
        return Finding("BLAS", "none that threadpoolctl knows (OpenBLAS, MKL, BLIS)", NOTE)
    written_for = str(library.get("architecture") or "")
    words = f"{library.get('internal_api')} {library.get('version')}"
    if written_for:
        words += f" with {written_for} kernels"
    names = ("internal_api", "version", "architecture", "threading_layer", "num_threads", "filepath")
    facts = {name: library.get(name) for name in names} | {TRAP: forced or None}
    level, able = LEVEL.get(written_for.lower()), best_level(flags)
    if library.get("internal_api") != "openblas" or level is None:
        return Finding("BLAS", words, facts=facts)
    if forced and level < able:
        figures, measured = compare_unforced()
        return Finding("BLAS", f"{words}, forced by {TRAP}={forced}: {WORDS[level]}, and this processor has "
                       f"{WORDS[able]}; {figures}", NOTE, f"unset {TRAP}", facts | measured)
    if level < min(able, AVX2):  # with AVX-512, OpenBLAS itself takes AVX2 for some processors
        return Finding("BLAS", f"{words}: {WORDS[level]}, and this processor, which OpenBLAS did not recognise, has "
                       f"{WORDS[able]}; {FIGURES}", NOTE, f"export {TRAP}=Haswell", facts)
    if forced:
        words += f"; {TRAP}={forced} is set, and does no harm here"
    return Finding("BLAS", words, facts=facts)


def best_level(flags: set[str]) -> int:
    """The best of OpenBLAS's vector instructions that a processor has."""
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        return AVX512
    if "avx2" in flags and flags & {"fma", "fma3"}:
        return AVX2
    return AVX if "avx" in flags else SSE


def compare_unforced() -> tuple[str, dict[str, Any]]:
    """How fast a matrix product is with $OPENBLAS_CORETYPE and, in a process of its own, without."""
    free = {name: value for name, value in os.environ.items() if name != TRAP}
    try:
        done = subprocess.run([sys.executable, "-c", ALONE], env=free, capture_output=True, text=True, timeout=20)
        written_for, operations = done.stdout.split()
        here, there = speed(1), float(operations)
    except (OSError, ValueError, subprocess.SubprocessError):
        return FIGURES, {}
    return (f"one thread gives {here / 1e9:.0f} GFLOP/s, and without the variable {there / 1e9:.0f} ({written_for})",
            {"one_thread": here, "one_thread_unforced": there, "architecture_unforced": written_for})


def matrix_product() -> list[Finding]:
    """Billions of operations a second of a float32 matrix product, on one thread and as the kernels thread it."""
    from tinyres.kernels.cpu.threads import count

    one, threads = speed(1), count()
    many = speed(threads) if threads > 1 else one
    words = f"float32 matrices: {one / 1e9:.0f} GFLOP/s on 1 thread"
    if threads > 1:
        busy = " (other processes seem to use the cores)" if many < 1.1 * one else ""
        words += f", {many / 1e9:.0f} on {threads}{busy}"
    facts = {"one_thread": one, "all_threads": many, "threads": threads}
    if one < SLOW:
        return [Finding("product", f"{words}: slow for any processor of these years", NOTE,
                        "pip install --force-reinstall numpy", facts)]
    return [Finding("product", words, facts=facts)]


def speed(threads: int) -> float:
    """Operations a second of the best of several products (384 * threads, 768) x (768, 768), rows split by threads."""
    import numpy as np

    from tinyres.kernels.cpu.threads import one_blas_thread, split

    a, b = np.ones((ROWS * threads, SIZE), np.float32), np.ones((SIZE, SIZE), np.float32)
    product = np.empty_like(a)

    def run(slot: int, start: int, stop: int) -> None:
        np.matmul(a[start:stop], b, out=product[start:stop])

    best, until = float("inf"), time.perf_counter() + SECONDS
    with one_blas_thread():
        while True:
            began = time.perf_counter()
            split(threads, lambda slot, start, stop: run(slot, start * ROWS, stop * ROWS), 1e9)
            best = min(best, time.perf_counter() - began)
            if time.perf_counter() > until:
                return 2 * ROWS * threads * SIZE * SIZE / best
