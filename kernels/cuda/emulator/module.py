"""A .cu text compiled for the processor, and its kernels as functions of NumPy arrays."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import threading
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from .. import manifest
from . import build
from .memory import GuardedArrays, Parameter
from .report import KernelError, Report, base_address
from .settings import ORDERS, current

KERNELS = Path(manifest.__file__).parent
KERNEL_FLAGS = (
    "-ffp-contract=off",  # a * b + c is rounded twice, everywhere the same; fmaf(a, b, c) once
    "-fno-strict-aliasing",  # four floats are loaded as a float4
    "-fno-math-errno", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-attributes",
)
# In the sanitize build the compiler's checks call the runtime, see hooks.h.
CHECKS = ("-fsanitize=thread", "-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero")
DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+|alignas\(\d+\)\s+)?([\w:]+)\s+(\w+)\s*\[\s*\]\s*;")
MOST_THREADS, MOST_BLOCK, MOST_GRID = 1024, (1024, 1024, 64), (2**31 - 1, 65535, 65535)
MOST_SHARED, MOST_SHARED_ASKED_FOR = 48 * 1024, 227 * 1024  # bytes of shared memory; the second where a kernel asks

_one_launch = threading.Lock()  # at a time: the signal handlers are the whole process's


def _new_lock():
    global _one_launch
    _one_launch = threading.Lock()  # in a child process: the thread that held it is not there


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


class Array(ctypes.Structure):
    """Array of runtime.h."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ("begin", "end", "first", "last")),
                ("value_size", ctypes.c_uint64)]


class Request(ctypes.Structure):
    """Request of runtime.h."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint64),
        ("seed", ctypes.c_uint64), ("order", ctypes.c_int), ("workers", ctypes.c_int), ("sanitize", ctypes.c_int),
        ("array_count", ctypes.c_int), ("arrays", ctypes.POINTER(Array)),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)), ("report", ctypes.POINTER(Report)),
    ]


class Module:
    """A .cu text, used as cupy.RawModule is: Module(text, options, name_expressions).get_function(name).

    text: CUDA C++; options: as for NVRTC, of which -I, -D, -U and -O count here, and the rest is left out;
    name_expressions: the kernels that can be had, as C++ names them: "im2col<float>", or "f" for one that is no
    template. file: what messages call the text; for a text of the manifest that is its file.
    A text of the manifest is always compiled with all its instances, so that it is compiled once, whoever asks.
    It is compiled when a function is first called or asked for its parameters. Raises what build.shared_library raises.
    """

    def __init__(self, text, options=(), name_expressions=(), file=None):
        known = _file_of(text) if file is None else file
        self.file = str(known or "module.cu")
        self.names = list(name_expressions)
        instances = [k.name for k in manifest.KERNELS if known and KERNELS / k.file == Path(known)]
        if set(self.names) <= set(instances):
            self.names = instances
        self.text = text
        self.options = tuple(o for o in options if o[:2] in ("-I", "-D", "-U", "-O"))
        self._libraries = {}

    def get_function(self, name):
        """The kernel as a Function: f(grid, block, args, shared_mem=0). Raises ValueError if it is not one of ours."""
        if name not in self.names:
            raise ValueError(f"{Path(self.file).name} was compiled without the kernel {name!r}: name it in "
                             f"name_expressions; there are {', '.join(self.names) or 'none'}")
        return Function(self, name)

    def shared_library(self, sanitize):
        """The compiled text: its Path, and loaded with ctypes. sanitize: of the build that checks every access."""
        if sanitize not in self._libraries:
            flags = (*KERNEL_FLAGS, "-O2", *(CHECKS if sanitize else ()), *self.options)
            name = Path(self.file).stem + ("-sanitize" if sanitize else "")
            path = build.shared_library(name, self._source(), flags, links=(runtime(),))
            self._libraries[sanitize] = path, ctypes.CDLL(str(path))
        return self._libraries[sanitize]

    def _source(self):
        """The text, then for each kernel a function that launches it and one that tells its parameters' types."""
        text = DYNAMIC.sub(r"\1* \2 = static_cast<\1*>(emulator::dynamic_shared());", self.text)
        lines = ['#include "cuda_host.h"', f'#line 1 "{self.file}"', text, '#line 1 "entries.cpp"', 'extern "C" {',
                 "#pragma GCC visibility push(default)"]
        for i, name in enumerate(self.names):
            lines.append(f"int emulator_launch_{i}(emulator::Request* r) {{ return emulator::launch({name}, r); }}")
            lines.append(f"const char* emulator_signature_{i}() {{ return emulator::signature({name}); }}")
        return "\n".join([*lines, "#pragma GCC visibility pop", "}", ""])


@cache
def runtime():
    """The Path of the runtime's library, which is loaded: the kernels' find it by its name."""
    path = build.shared_library("runtime", '#include "runtime.cpp"\n', ("-O2",))
    ctypes.CDLL(str(path))  # which stays loaded
    return path


@cache
def _file_of(text):
    """The Path of the manifest's file with this text; None if there is none."""
    for name in dict.fromkeys(kernel.file for kernel in manifest.KERNELS):
        with contextlib.suppress(OSError):
            if (KERNELS / name).read_text() == text:
                return KERNELS / name
    return None


class Function:
    """A kernel that can be launched: f(grid, block, args, shared_mem=0).

    most_threads: of a block, as its __launch_bounds__ say. static_shared: bytes of shared memory that it declares.
    max_dynamic_shared_size_bytes: to be set for more than 48 KB of shared memory, as on the device.
    """

    def __init__(self, module, name, most_threads=MOST_THREADS, static_shared=0):
        self.module, self.name = module, name
        self.most_threads, self.static_shared = most_threads, static_shared
        self.max_dynamic_shared_size_bytes = MOST_SHARED - static_shared
        self._number = module.names.index(name)
        self._entries = {}

    def __call__(self, grid, block, args, shared_mem=0):
        """Run the kernel.

        grid, block: one to three ints; args: C-contiguous NumPy arrays and NumPy scalars of exactly the types that the
        kernel declares; shared_mem: bytes of dynamic shared memory.
        Raises TypeError for arguments of other types or number, ValueError for arrays that are not contiguous or not
        writable and for sizes that no device takes, KernelError for what the kernel does wrong; the arrays are then
        as they were before.
        """
        request = Request(shared=shared_mem, report=ctypes.pointer(Report()))
        self._set_sizes(request, grid, block, shared_mem)
        now = current()
        request.seed, request.order, request.sanitize = now.seed, ORDERS.index(now.order), now.sanitize
        request.workers = 1 if now.sanitize else now.workers
        parameters, values, pointers = self._arguments(args)
        with _one_launch:
            arrays = GuardedArrays(parameters, now.order == "reverse") if now.guard else None
            try:
                self._run(request, arrays, parameters, values, pointers)
            finally:
                if arrays:
                    arrays.close()

    @cached_property
    def signature(self):
        """The parameters' types, in NumPy's codes: "f4", "*f4" for float*, "&f4" for const float*."""
        _, library = self.module.shared_library(current().sanitize)
        tell = getattr(library, f"emulator_signature_{self._number}")
        tell.restype = ctypes.c_char_p
        return tell().decode().split()

    @cached_property
    def parameter_names(self):
        """The parameters' names as the text has them, "" where they cannot be found."""
        base = re.escape(self.name.partition("<")[0].rpartition("::")[2])
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", self.module.text, flags=re.DOTALL)
        found = re.search(rf"\b{base}\s*\(([^(){{}}]*)\)\s*\{{", text)
        names = [re.sub(r".*\W", "", p.strip(), flags=re.DOTALL) for p in found[1].split(",")] if found else []
        return names if len(names) == len(self.signature) else [""] * len(self.signature)

    def _run(self, request, arrays, parameters, values, pointers):
        for p in parameters:
            values[p.number] = ctypes.c_void_p(p.address or p.array.ctypes.data)
            pointers[p.number] = ctypes.addressof(values[p.number])
        request.arguments = pointers
        if arrays:
            bounds = [Array(*bound) for bound in arrays.bounds()]
            request.array_count, request.arrays = len(bounds), (Array * len(bounds))(*bounds)
        library, entry = self._entry(bool(request.sanitize))
        if entry(ctypes.byref(request)):
            raise request.report.contents.error(self.name, library, base_address(entry), arrays)
        if arrays:
            found = arrays.overwritten_slack()
            if found:
                raise KernelError(self.name, f"has written {found}; settings(sanitize=True) finds the line",
                                  self.module.file)
            arrays.copy_back()

    def _entry(self, sanitize):
        if sanitize not in self._entries:
            path, library = self.module.shared_library(sanitize)
            self._entries[sanitize] = path, getattr(library, f"emulator_launch_{self._number}")
        return self._entries[sanitize]

    def _set_sizes(self, request, grid, block, shared):
        """The sizes of the grid and of a block, if a device takes them."""
        for what, sizes, most in (("grid", grid, MOST_GRID), ("block", block, MOST_BLOCK)):
            if not 1 <= len(sizes) <= 3 or not all(1 <= s <= m for s, m in zip(sizes, most, strict=False)):
                raise ValueError(f"{self.name}: the {what} is {tuple(sizes)}, expected one to three sizes of at least "
                                 f"1 and at most {most}")
            setattr(request, what, (*sizes, 1, 1)[:3])
        threads = math.prod(request.block)
        if threads > min(self.most_threads, MOST_THREADS):
            raise ValueError(f"{self.name}: a block of {tuple(request.block)} has {threads} threads, expected at most "
                             f"{min(self.most_threads, MOST_THREADS)}, the kernel's launch bounds")
        most = min(self.max_dynamic_shared_size_bytes, MOST_SHARED_ASKED_FOR - self.static_shared)
        if not 0 <= shared <= most:
            raise ValueError(f"{self.name}: {shared} bytes of dynamic shared memory, expected 0 to {most}, as a block "
                             f"has {MOST_SHARED} and the kernel declares {self.static_shared}; more can be had by "
                             f"setting max_dynamic_shared_size_bytes")

    def _arguments(self, args):
        """The arrays as Parameters, the other arguments as bytes, and room for a pointer to each."""
        if len(args) != len(self.signature):
            raise TypeError(f"{self.name} takes {len(self.signature)} arguments ({', '.join(self.parameter_names)}), "
                            f"got {len(args)}")
        parameters: list[Parameter] = []
        values: list = [None] * len(args)  # kept alive as long as the pointers to them
        pointers = (ctypes.c_void_p * len(args))()
        for i, (value, code) in enumerate(zip(args, self.signature, strict=True)):
            if code[0] in "*&":
                self._check_array(i, value, code)
                parameters.append(Parameter(i, self.parameter_names[i], value, code[0] == "&"))
            else:
                if not isinstance(value, np.generic) or (code != "?" and value.dtype != np.dtype(code)):
                    wanted = np.dtype(code).name if code != "?" else "void"
                    raise TypeError(f"{self._argument(i)} is {_type_of(value)}, expected a NumPy scalar: "
                                    f"np.{wanted}(...)")
                values[i] = np.array(value)
                pointers[i] = values[i].ctypes.data
        return parameters, values, pointers

    def _check_array(self, i, array, code):
        wanted = None if code[1:] == "?" else np.dtype(code[1:])
        if not isinstance(array, np.ndarray) or (wanted is not None and array.dtype != wanted):
            raise TypeError(f"{self._argument(i)} is {_type_of(array)}, expected a NumPy array of "
                            f"{wanted or 'structs'}")
        if not array.flags.c_contiguous:
            raise ValueError(f"{self._argument(i)} has shape {array.shape} and strides {array.strides}, expected a "
                             f"C-contiguous array: np.ascontiguousarray(...)")
        if code[0] == "*" and not array.flags.writeable:
            raise ValueError(f"{self._argument(i)} is a read-only array, expected one that can be written, or a "
                             f"const pointer in the kernel")

    def _argument(self, i):
        name = self.parameter_names[i]
        return f"{self.name}: argument {i + 1}" + (f" ({name!r})" if name else "")


def _type_of(value):
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return f"np.{value.dtype}" if isinstance(value, np.generic) else f"a Python {type(value).__name__}"
