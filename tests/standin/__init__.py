"""A strict stand-in for CuPy: what the library does with device arrays can be tested where there is no GPU.

    with standin.installed():                    # `import cupy` now gives the stand-in
        x = tr.randn(2, 3).to("cuda")            # x.data is a standin.ndarray, which wraps a NumPy array
        ...
        assert standin.syncs == []               # nothing waited for the device
        with standin.capturing():                # as while a CUDA graph is captured: what cannot be captured raises
            ...

It is stricter than CuPy where CuPy would be slow or surprising, and has only what tables name: a function or method
that is not in them does not exist. A wrapped array is in the same memory order as CuPy's would be, and NumPy's own
arrays never mix with it.

    memory.py      copies between host and device, waiting, capturing: what is counted and what is refused
    array.py       ndarray: attributes, operators, methods
    functions.py   the functions of the module
    raw_module.py  RawModule, whose kernels run on the emulator; cupy.cuda
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from standin.array import METHODS, OPERATORS, PROPERTIES, ndarray
from standin.functions import FUNCTIONS, UFUNCS
from standin.memory import capturing, copies, syncs
from standin.raw_module import CUDA, RawModule

__all__ = ["FUNCTIONS", "METHODS", "OPERATORS", "PROPERTIES", "UFUNCS", "capturing", "copies", "cupy", "installed",
           "ndarray", "syncs"]


class _Module(types.ModuleType):
    def __getattr__(self, name: str):
        raise AttributeError(f"the stand-in for CuPy has no {name!r}: if CuPy has, add it to standin/functions.py")


def _module() -> types.ModuleType:
    module = _Module("cupy")
    vars(module).update(FUNCTIONS, **UFUNCS, ndarray=ndarray, RawModule=RawModule, cuda=CUDA, __version__="14.0.0",
                        __path__=[])
    return module


cupy = _module()


@contextmanager
def installed() -> Iterator[types.ModuleType]:
    """`import cupy` gives the stand-in inside the block. Counts begin anew; a real CuPy is back afterwards."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "cupy"}
    sys.modules["cupy"], sys.modules["cupy.cuda"] = cupy, CUDA
    syncs.clear()
    copies.clear()
    _forget()
    try:
        yield cupy
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "cupy"]:
            del sys.modules[name]
        sys.modules.update(before)
        _forget()


def _forget() -> None:
    """What the library keeps of CuPy (compiled kernels) belongs to one CuPy."""
    for name, module in list(sys.modules.items()):
        if name.startswith("tinyres") and module is not None:
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()


@pytest.fixture
def standin_cupy() -> Iterator[types.ModuleType]:
    """The stand-in, installed for one test: `from standin import standin_cupy  # noqa: F401`."""
    with installed() as module:
        yield module
