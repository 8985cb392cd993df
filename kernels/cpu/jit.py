"""The one way kernels are compiled; and who is told of it, as it takes a while.

`compiled` turns a Python function into machine code at its first call, one version for each combination of argument
types (float32, float64, None where a kernel allows it). The code is kept on disk (code_cache.py), so that only the
first process waits for it.
"""

from contextlib import contextmanager

import numba
from numba.core import event

from .code_cache import KernelCache
from .compile_line import CompileLine

OPTIONS = {
    "nogil": True,  # kernels run in ordinary threads (threads.py)
    "error_model": "numpy",  # no test for a zero divisor
    # May reorder sums and fuse a multiply with an add, which vectors need. Not the full fastmath: that may assume that
    # no NaN exists, and then max(x, 0) turns NaN into 0 and hides a network that diverges.
    "fastmath": {"contract", "reassoc"},
}
KERNELS: list = []  # every compiled function


def compiled(function):
    """Decorator: compiles without the global lock and with an on-disk cache where a folder for it is writable."""
    dispatcher = numba.njit(**OPTIONS)(function)
    if hasattr(dispatcher, "stats"):  # a plain function where Numba is switched off
        if KernelCache.holds(function):
            dispatcher._cache = KernelCache(function)
        KERNELS.append(dispatcher)
    return dispatcher


def inlined(function):
    """Decorator for a small helper that compiled functions call: its code is copied into theirs."""
    return numba.njit(forceinline=True, **OPTIONS)(function)


def counts():
    """How many versions of kernels this process has compiled, and how many it has taken from the cache."""
    return (sum(sum(kernel.stats.cache_misses.values()) for kernel in KERNELS),
            sum(sum(kernel.stats.cache_hits.values()) for kernel in KERNELS))


# ---- telling of it ----


class _Compilations(event.Listener):
    """Hears of each compilation from Numba, also of those within another, and tells the present listener.

    listener(name, done): `name` is the kernel that is being compiled, None when no more is; `done` counts those that
    the process has finished.
    """

    def __init__(self):
        self.listener, self.running, self.done = CompileLine(), [], 0

    def on_start(self, event):
        if event.data["dispatcher"] in KERNELS:
            self.running.append(event.data["dispatcher"].__name__)
            self.listener(self.running[-1], self.done)

    def on_end(self, event):
        if event.data["dispatcher"] in KERNELS:
            self.running.pop()
            self.done += 1
            self.listener(self.running[-1] if self.running else None, self.done)


_compilations = _Compilations()
event.register("numba:compile", _compilations)


@contextmanager
def told_to(listener):
    """Inside, listener(name, done) is told of compilations: the kernel under way, or None, and how many are done.

    Outside, a line on stderr tells of them if that is a terminal.
    """
    before, _compilations.listener = _compilations.listener, listener
    try:
        yield
    finally:
        _compilations.listener = before


def silent(name, done):
    """A listener that tells nobody."""
