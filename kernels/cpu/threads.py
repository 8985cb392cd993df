"""One pool of threads for all compiled kernels, and one BLAS thread inside each of them.

Numba kernels and BLAS release Python's global lock, so ordinary threads run them in parallel. A kernel cuts its work
into contiguous ranges, one for each slot:

    split(n, run, cost)        slot 0: run(0, 0, n/T)  |  slot 1: run(1, n/T, 2n/T)  |  ...  then all are waited for

The calling thread works on slot 0 itself; the others go to a pool that lives as long as the process. Handing a range
over takes some 50 microseconds, so small work (`cost`, a rough count of nanoseconds) runs inline.

Slots are fixed: at a given thread count the same slot always gets the same range, and partial sums added in the order
of the slots give the same bits in every run.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache

import numpy as np

from ..memory import empty

NANOSECONDS_WORTH_A_THREAD = 100_000  # twice the price of handing work to another thread


def count():
    """How many threads kernels use: TINYRES_NUM_THREADS, else the number of processors this process may run on."""
    text = os.environ.get("TINYRES_NUM_THREADS", "")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"TINYRES_NUM_THREADS must be a whole number of at least 1, got {text!r}: correct or unset it")
    return int(text)


def slots(n, cost):
    """Into how many ranges `split` cuts n items that cost `cost` nanoseconds together."""
    return max(1, min(count(), n, int(cost) // NANOSECONDS_WORTH_A_THREAD))


def split(n, run, cost):
    """Calls run(slot, start, stop) for slots(n, cost) contiguous ranges that make up range(n), and waits for all.

    An exception in any range is raised here once every range has ended (the one of the lowest slot).
    """
    ranges = slots(n, cost)
    if ranges == 1:
        if n:
            run(0, 0, n)
        return
    bounds = [n * slot // ranges for slot in range(ranges + 1)]
    others = [_pool.submit(run, slot, bounds[slot], bounds[slot + 1]) for slot in range(1, ranges)]
    failures = []
    try:
        run(0, bounds[0], bounds[1])
    except BaseException as error:
        failures.append(error)
    failures += [error for error in (other.exception() for other in others) if error is not None]
    if failures:
        raise failures[0]


# Starts no thread yet: the pool does that when a range is handed over and none is idle.
_pool = ThreadPoolExecutor(max_workers=256, thread_name_prefix="tinyres")


def _renew_pool():
    """A forked child has the pool's books but not its threads."""
    global _pool
    _pool = ThreadPoolExecutor(max_workers=256, thread_name_prefix="tinyres")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_pool)


_local = threading.local()


def scratch(shape, dtype):
    """Uninitialised C-contiguous array from memory that the calling thread keeps: valid until its next call here.

    The memory is one cached block per thread, so that a kernel's working set stays in the processor's cache and no call
    pays for fresh pages.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    block = getattr(_local, "block", None)
    if block is None or block.size < size:
        block = _local.block = empty((size,), np.uint8)
    return block[:size].view(dtype).reshape(shape)


@cache
def _blas_controller():
    """Looks at the loaded BLAS libraries once, at the first use; None where threadpoolctl is not installed."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


def one_blas_thread():
    """Context in which BLAS uses one thread: our threads already fill the processors (6 microseconds in and out).

    Without threadpoolctl nothing is limited: results are the same, and BLAS threads compete with ours.
    """
    controller = _blas_controller()
    return controller.limit(limits=1, user_api="blas") if controller else nullcontext()
