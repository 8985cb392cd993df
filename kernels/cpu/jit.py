"""The one way kernels are compiled.

`compiled` turns a Python function into machine code at its first call, one version for each combination of argument
types (float32, float64, None where a kernel allows it). The code is cached on disk beside the source, so that only the
first process waits for it. The cache looks at the file of the function alone: a compiled function and all compiled
functions that it calls must live in ONE file, or an edit to a callee would run yesterday's code.
"""

import numba

OPTIONS = {
    "nogil": True,  # kernels run in ordinary threads (threads.py)
    "error_model": "numpy",  # no test for a zero divisor
    # May reorder sums and fuse a multiply with an add, which vectors need. Not the full fastmath: that may assume that
    # no NaN exists, and then max(x, 0) turns NaN into 0 and hides a network that diverges.
    "fastmath": {"contract", "reassoc"},
}


def compiled(function):
    """Decorator: compiles without the global lock and with an on-disk cache where a folder for it is writable."""
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # Numba: "cannot cache function: no locator available", in a read-only install, say
        return numba.njit(**OPTIONS)(function)


def inlined(function):
    """Decorator for a small helper that compiled functions of the same file call: its code is copied into theirs."""
    return numba.njit(forceinline=True, **OPTIONS)(function)
