"""The one way kernels are compiled, and the cache of what was compiled.

`compiled` turns a Python function into machine code at its first call, one version for each combination of argument
types (float32, float64, None where a kernel allows it). The code is cached on disk beside the source, so that only the
first process waits for it. Numba's own cache looks at the file of the function alone; but a kernel's code contains that
of the functions it calls, and of the vector instructions of simd.py, in other files. So ours looks at the text of all
files of this folder: a change in any of them compiles all anew.
"""

import functools
import hashlib
from pathlib import Path

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

OPTIONS = {
    "nogil": True,  # kernels run in ordinary threads (threads.py)
    "error_model": "numpy",  # no test for a zero divisor
    # May reorder sums and fuse a multiply with an add, which vectors need. Not the full fastmath: that may assume that
    # no NaN exists, and then max(x, 0) turns NaN into 0 and hides a network that diverges.
    "fastmath": {"contract", "reassoc"},
}


@functools.cache
def source_stamp():
    """SHA-256 of the text of all kernel files: what makes cached code stale."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class KernelCache(FunctionCache):
    """Numba's cache on disk, stale when any kernel file has changed."""

    def __init__(self, function):
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, source_stamp())


def compiled(function):
    """Decorator: compiles without the global lock and with an on-disk cache where a folder for it is writable."""
    dispatcher = numba.njit(**OPTIONS)(function)
    try:
        dispatcher._cache = KernelCache(function)
    except RuntimeError:  # Numba: "cannot cache function: no locator available", in a read-only install, say
        pass
    return dispatcher


def inlined(function):
    """Decorator for a small helper that compiled functions call: its code is copied into theirs."""
    return numba.njit(forceinline=True, **OPTIONS)(function)
