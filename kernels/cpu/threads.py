"""The threads of all compiled kernels, and a limit for those of BLAS.

Numba kernels and BLAS release Python's global lock, so ordinary threads run them in parallel. A kernel cuts its work
into contiguous ranges, one for each slot:

    split(n, run, cost)        slot 0: run(0, 0, a)  |  slot 1: run(1, a, b)  |  ...  then all are waited for

The calling thread works on slot 0 itself; each other range goes to a worker, a thread that lives as long as the process
and sleeps until it is handed a range. A call takes workers that are idle and starts new ones where they do not suffice:
calls within calls, and calls from several threads at once, never wait for each other.

What a hand-over costs beside the work, in microseconds, on two processors of a virtual machine:

    a lock wakes the worker, another the caller: what is done here     31
    queue.SimpleQueue there, a lock back                               35
    the same locks, but both threads spin before they sleep            38: each needs Python's global lock then, too
    concurrent.futures.ThreadPoolExecutor                              44, beside work of a millisecond 60

Nearly all of it is the system waking a thread. So small work (`cost`, a rough count of nanoseconds) runs inline; and
the caller, who need not be woken, takes a longer range than the others, by what it can do until they begin.

Slots are fixed: at a given thread count the same slot always gets the same range, and partial sums added in the order
of the slots give the same bits in every run.
"""

import math
import os
import sys
import threading
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np

from ..memory import empty

HAND_OVER = 40_000  # nanoseconds until the other thread begins
NANOSECONDS_WORTH_A_THREAD = 100_000  # so much work for each thread, or it is not handed over


def count():
    """How many threads kernels use: TINYRES_NUM_THREADS, else the number of processors this process may run on."""
    text = os.environ.get("TINYRES_NUM_THREADS", "")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"TINYRES_NUM_THREADS must be a whole number of at least 1, got {text!r}: correct or unset it")
    return int(text)


def slots(n, cost, most=None):
    """Into how many ranges `split` cuts n items that cost `cost` nanoseconds together; at most `most`, if given."""
    worth = min(n if most is None else min(n, most), int(cost / NANOSECONDS_WORTH_A_THREAD))
    return min(count(), worth) if worth > 1 else 1


def split(n, run, cost, most=None):
    """Calls run(slot, start, stop) for slots(n, cost, most) contiguous ranges that make up range(n); waits for all.

    An exception in any range is raised here once every range has ended (the one of the lowest slot). So is a Ctrl-C:
    no range goes on to write into arrays that the caller has given up.
    """
    ranges = slots(n, cost, most)
    if ranges == 1:
        if n:
            run(0, 0, n)
        return
    head = min(int(n / ranges * (1 + (ranges - 1) * HAND_OVER / cost)), n - ranges + 1)
    bounds = [0, *(head + (n - head) * slot // (ranges - 1) for slot in range(ranges))]
    jobs, failures = [_Job(run, slot, bounds[slot], bounds[slot + 1]) for slot in range(1, ranges)], []
    try:
        for job in jobs:
            _hand_over(job)
        run(0, bounds[0], bounds[1])
    except BaseException as error:
        failures.append(error)
    for job in jobs:
        job.wait(failures)
    try:
        if failures:
            raise failures[0]
    finally:
        del job, failures  # or an error would hold this frame, and this frame the error, and the arrays with it


# ---- the workers ----


class _Job:
    """One range, and how it ended."""

    def __init__(self, run, slot, start, stop):
        self.run, self.arguments = run, (slot, start, stop)
        self.handed_over, self.ended, self.error = False, False, None
        self.end = threading.Lock()
        self.end.acquire()

    def work(self):
        try:
            self.run(*self.arguments)
        except BaseException as error:
            self.error = error

    def wait(self, failures):
        """Until the range has ended, come what may; adds what was raised there, and a Ctrl-C meanwhile, to failures.

        One that a Ctrl-C kept from being handed over is not waited for.
        """
        while True:
            try:
                while self.handed_over and not self.ended:
                    self.end.acquire()
                break
            except BaseException as error:
                failures.append(error)
        if self.error is not None:
            failures.append(self.error)
            self.error = None


class _Worker:
    """A thread that sleeps until it is handed a job. A daemon: it does not keep the process from ending."""

    def __init__(self):
        self.job: Any = None
        self.wake = threading.Lock()
        self.wake.acquire()
        threading.Thread(target=self._live, name="tinyres", daemon=True).start()

    def _live(self):
        while True:
            self.wake.acquire()
            job, self.job = self.job, None
            job.work()
            _idle.append(self)
            job.ended = True
            job.end.release()
            del job  # and with it the arrays of the range, which this thread would keep while it sleeps


_idle: list[_Worker] = []


def _hand_over(job):
    """Gives the job to a worker; where there can be none, as when Python is ending, it is done here and now."""
    try:
        worker = None if sys.is_finalizing() else _idle.pop()
    except IndexError:
        try:
            worker = _Worker()
        except RuntimeError:  # "can't start new thread"
            worker = None
    if worker is None:
        job.work()
        return
    worker.job = job
    worker.wake.release()
    job.handed_over = True


# ---- memory of a thread ----

_local = threading.local()


def scratch(shape, dtype):
    """Uninitialised C-contiguous array from memory that the calling thread keeps: valid until its next call here.

    The memory is one cached block per thread, so that a kernel's working set stays in the processor's cache and no call
    pays for fresh pages.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    block = getattr(_local, "block", None)
    if block is None or block.size < size:
        block = _local.block = empty((size,), np.uint8)
    return block[:size].view(dtype).reshape(shape)


# ---- BLAS ----


@cache
def _blas_controller():
    """Looks at the loaded BLAS libraries once, at the first use; None where threadpoolctl is not installed.

    Of BLAS alone: a controller of all libraries would, when a limit ends, also put back the threads of OpenMP.
    """
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController().select(user_api="blas")


class _Blas:
    """How many contexts ask for one BLAS thread. The first sets the limit, the last, on whatever thread, ends it."""

    def __init__(self):
        self.lock, self.users, self.limit = threading.Lock(), 0, ExitStack()


_blas = _Blas()


@contextmanager
def one_blas_thread():
    """Context in which BLAS uses one thread: our threads already fill the processors. May be nested.

    Costs 10 microseconds, and 1 inside another such context, as training is. Without threadpoolctl nothing is limited:
    results are the same, and BLAS threads compete with ours.
    """
    with _blas.lock:
        _blas.users += 1
        if _blas.users == 1 and _blas_controller() is not None:
            _blas.limit.enter_context(_blas_controller().limit(limits=1, user_api="blas"))
    try:
        yield
    finally:
        with _blas.lock:
            _blas.users -= 1
            if _blas.users == 0:
                _blas.limit.close()


# ---- a forked child has none of the other threads ----


def _renew():
    """Neither the workers are there nor another thread that holds the lock."""
    _idle.clear()
    _blas.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
