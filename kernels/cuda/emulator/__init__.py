"""The CUDA emulator: runs the kernels of the .cu files here, unchanged, on the processor and on NumPy arrays.

A kernel is a C++ function. What makes it CUDA are a few words and types, and functions by which threads work together;
with those defined (cuda_host.h) a C++ compiler for the processor takes the text as it is. Each CUDA thread then is a
fiber, a function call that can be left and resumed; a scheduler runs the threads of a block one after another, each
until it waits at a barrier or for its warp (block.h). That is slow, some 50 ns for a barrier and thread, but it is the
same text, it needs no GPU, and it sees what a GPU does not tell:

    a load or store outside the arrays          which array, how far, which thread        memory.py
    a barrier that not all threads reach        both lines                                meetings.h
    a missing barrier                           another result in another order; with
                                                sanitize both accesses                    watch.h
    shared memory that nobody wrote             NaN; with sanitize the line               watch.h
    blocks that depend on each other            with sanitize both accesses               arrays.h
    a lane outside its mask; a deadlock         who waits where                           meetings.h
    misaligned vectors, indices, overflows      with sanitize the line and column         hooks.h
    arguments of another type                   before the launch                         module.py

What it cannot see: how fast a kernel is, registers, bank conflicts. A loop that waits for another thread without a
barrier never ends, as threads do not interrupt each other. Products and sums are rounded one by one here and fused on a
device, so that results differ in the last bits.

printf works in a kernel. So does gdb, which shows all variables of a build without optimisation, of a script with

    Module(text, ("-O0",), ["f"], file="norm.cu").get_function("f")(grid, block, args)

    $ gdb --args python script.py
    (gdb) set breakpoint pending on
    (gdb) break norm.cu:33 if emulator::here.thread.x == 5
    (gdb) run

Without a GPU, and without CUDA; it needs Linux on x86-64 or aarch64, and g++ (11 or newer) or clang++ (14).
"""

from __future__ import annotations

from functools import cache

from . import build
from .module import KERNELS, Function, Module
from .report import KernelError
from .settings import current, settings

__all__ = ["KernelError", "Module", "available", "current", "launch", "missing", "settings"]


def launch(kernel, grid, block, args, shared=0):
    """Run a kernel of the manifest; grid, block, args and errors as for a Function of module.py; shared: bytes of
    dynamic shared memory. The kernel's file is compiled once, with all its instances."""
    function(kernel)(grid, block, args, shared)


@cache
def function(kernel):
    """The Function of one kernel of the manifest."""
    return Function(_module(kernel.file), kernel.name, kernel.threads, kernel.shared)


@cache
def _module(file):
    from ..launch import OPTIONS

    return Module((KERNELS / file).read_text(), OPTIONS, (), KERNELS / file)


def missing():
    """What is missing here to run kernels, as a text: the system, or a compiler; "" where nothing is."""
    try:
        build.check_platform()
        build.compiler()
    except RuntimeError as e:
        return str(e)
    return ""


def available():
    """Whether kernels can be run here. Where they cannot, a launch raises RuntimeError with what is missing()."""
    return not missing()
