"""A guard against slow kernels: each may take at most a given share of the time of NumPy's matrix product for the same
work, in the same run.

The kernel set "im2col" computes a convolution as one product of BLAS, and the rest of a step with plain NumPy. It and
the fast set take turns on one thread each, so that other processes hurt them alike; the least times of many turns are
compared, and what is over its bound gets more turns, three times as many in all. Times in seconds depend on the
machine; these shares on its vectors and its BLAS only, a little.

`python tests/test_speed.py` prints the shares of this machine beside their bounds: after a change of kernels, write
them down here.
"""

import contextlib
import os
import time

import numpy as np
import pytest

from tinyres.analysis import blas, timing
from tinyres.analysis.bench_layers import Convolution, Norm
from tinyres.analysis.bench_step import training_step
from tinyres.analysis.workload import Workload
from tinyres.kernels import use_kernels
from tinyres.kernels.cpu.simd import LANES

N = 16
STEP = Workload("resnet20", {"num_classes": 10, "option": "B"}, 8, 32)
LAYERS = {
    "stage 1": Convolution((N, 16, 32, 32), (16, 16, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "stage 2": Convolution((N, 32, 16, 16), (32, 32, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "stage 3": Convolution((N, 64, 8, 8), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "stride 2": Convolution((N, 16, 32, 32), (32, 16, 3, 3), (2, 2), (1, 1), (1, 1), 1),
    "batch norm": Norm((N, 64, 16, 16), True, True),
}
# The shares measured on one core of a Zen 5: with vectors of 16 lanes (AVX-512) and OpenBLAS's AVX2 kernels; with its
# AVX-512 kernels; compiled for 8 lanes (AVX2), with its AVX2 kernels. Repeated, busy or not, they stay within 15 %.
# Batch norm waits for memory, NumPy's computes: its shares are those of an Intel Xeon with AVX-512, where they are the
# larger, a Zen 5 having 0.17 and 0.06. The other shares are not larger there.
SHARES = {
    ("stage 1", "forward"): (0.24, 0.31, 0.32),
    ("stage 1", "input gradient"): (0.10, 0.11, 0.14),
    ("stage 1", "weight gradient"): (0.21, 0.26, 0.30),
    ("stage 2", "forward"): (0.21, 0.33, 0.33),
    ("stage 2", "input gradient"): (0.135, 0.17, 0.22),
    ("stage 2", "weight gradient"): (0.19, 0.25, 0.30),
    ("stage 3", "forward"): (0.33, 0.54, 0.54),
    ("stage 3", "input gradient"): (0.19, 0.29, 0.30),
    ("stage 3", "weight gradient"): (0.21, 0.33, 0.34),
    ("stride 2", "forward"): (0.43, 0.62, 0.75),
    ("stride 2", "input gradient"): (0.35, 0.42, 0.50),
    ("stride 2", "weight gradient"): (0.43, 0.54, 0.70),
    ("batch norm", "forward"): (0.22, 0.22, 0.22),
    ("batch norm", "backward"): (0.125, 0.125, 0.125),
    ("step", "of ResNet-20"): (0.24, 0.28, 0.30),
}
ROOM = 1.6  # of a bound above the share measured: for other processors, yet a kernel at half its speed is found
TURNS = 8
ATTEMPTS = 3


@contextlib.contextmanager
def fair():
    """One thread for kernels and for BLAS; and memory that was used before for all arrays: glibc, once it has seen a
    large block freed, keeps smaller ones, and else gives them back to the system, whose fresh pages cost NumPy more."""
    np.empty(30 * 2**20, np.uint8)
    with pytest.MonkeyPatch.context() as patch, timing.pinned():
        patch.setenv("TINYRES_NUM_THREADS", "1")
        yield


@pytest.fixture(autouse=True)
def fairly():
    with fair():
        yield


def work_of(name, function):
    """A function that does the work with the present kernel set."""
    return training_step(STEP, STEP.network()) if name == "step" else LAYERS[name].ours()[function]


def bound_of(name, function):
    """ROOM times the share measured with such vectors and such a BLAS; skips where none was measured."""
    level = blas.LEVEL.get(blas.kernels().lower(), blas.SSE)
    if level < blas.AVX2:
        pytest.skip(f"shares were measured beside OpenBLAS's AVX2 and AVX-512 kernels; here it has {blas.kernels()}")
    column = 2 if LANES == 8 else 1 if level == blas.AVX512 else 0
    return ROOM * SHARES[name, function][column]


def share(run, bound=0.0, fast="fast"):
    """The least time of the fast set as a share of im2col's; turns are added while it is above the bound."""
    sets, least = (fast, "im2col"), [float("inf")] * 2
    for turn in range(ATTEMPTS * TURNS):
        for side, kernel_set in enumerate(sets):
            with use_kernels(kernel_set):
                for _ in range(2):
                    began = time.perf_counter()
                    run()
                    least[side] = min(least[side], time.perf_counter() - began)
        if turn % TURNS == TURNS - 1 and least[0] <= bound * least[1]:
            break
    return least[0] / least[1]


@pytest.mark.parametrize("name, function", SHARES)
def test_fast_kernels_are_fast(name, function):
    bound = bound_of(name, function)
    found = share(work_of(name, function), bound)
    assert found <= bound, (f"{name}, {function}: {found:.2f} of the time of NumPy's matrix product, expected at most "
                            f"{bound:.2f}")


@pytest.mark.parametrize("name, function", [row for row in SHARES if row[0] in ("stage 2", "batch norm")])
def test_slow_kernels_are_found(name, function):
    """As slow as NumPy, as if the fast set no longer had the kernel."""
    assert share(work_of(name, function), bound_of(name, function), fast="im2col") > bound_of(name, function)


def main():
    """The shares of this machine beside the bounds, which lie between what was found and twice that."""
    with fair():
        print(f"{LANES} lanes, BLAS kernels {blas.kernels()}, load average {os.getloadavg()[0]:.1f}")
        for row in SHARES:
            found, bound = share(work_of(*row)), bound_of(*row)
            verdict = "ok" if found <= bound < 2 * found else "CHANGED"
            print(f"{' '.join(row):30} {found:.3f}, twice {2 * found:.3f}, bound {bound:.3f}: {verdict}", flush=True)


if __name__ == "__main__":
    main()
