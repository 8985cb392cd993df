"""From what the runtime reports of a fault to the message: which kernel, file, line, block and thread."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


class KernelError(RuntimeError):
    """A kernel did what it would not get away with on a GPU, or got away with for the time being.

    kernel: its name; file, line: of the kernel's text, None and 0 where they are not known; block, thread: its
    blockIdx and threadIdx as tuples (x, y, z); reason: the fault in words.
    """

    def __init__(self, kernel, reason, file=None, line=0, column=0, block=None, thread=None):
        self.kernel, self.reason, self.file, self.line = kernel, reason, file, line
        self.block, self.thread = block, thread
        place = "".join(f"{part}:" for part in (Path(file).name, line, column) if part) + " " if file else ""
        who = "" if thread is None else " [block ({},{},{}) thread ({},{},{})]".format(*block, *thread)
        super().__init__(f"{kernel}: {place}{reason}{who}")


class Report(ctypes.Structure):
    """Report of runtime.h."""

    _fields_ = [
        ("failed", ctypes.c_int), ("signal", ctypes.c_int), ("access", ctypes.c_int), ("address", ctypes.c_uint64),
        ("reason", ctypes.c_char * 512), ("file", ctypes.c_char * 512), ("line", ctypes.c_int),
        ("column", ctypes.c_int), ("block", ctypes.c_uint * 3), ("thread", ctypes.c_uint * 3),
        ("frame_count", ctypes.c_int), ("frames", ctypes.c_uint64 * 32), ("other_frame", ctypes.c_uint64),
    ]

    def error(self, kernel, library, base, arrays):
        """The KernelError; library: the kernel's, loaded at the address `base`; arrays: the launch's GuardedArrays."""
        file, line, column = self.file.decode(), self.line, self.column
        if not file or Path(file).parent == HERE:  # in one of our own functions: who called it?
            frames = [f - (i > 0 or not self.signal) for i, f in enumerate(self.frames[: self.frame_count])]
            file, line = kernel_line(library, [f - base for f in frames])
            column = 0
        reason = self.reason.decode()
        if "{address}" in reason:
            reason = reason.replace("{address}", arrays.describe(self.address))
        if "{other}" in reason:
            other, at = kernel_line(library, [self.other_frame - 1 - base])
            reason = reason.replace("{other}", f" in {Path(other).name}:{at}" if other else "")
        if not file:
            reason += " (its line is not known: " + unknown_line() + ")"
        return KernelError(kernel, reason, file or None, line, column, tuple(self.block), tuple(self.thread))


class SharedObject(ctypes.Structure):
    """Dl_info of <dlfcn.h>."""

    _fields_ = [("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("symbol", ctypes.c_char_p),
                ("address", ctypes.c_void_p)]


def base_address(function):
    """Where the library with this ctypes function is loaded."""
    found = SharedObject()
    ctypes.CDLL(None).dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(found))
    return found.base


def addr2line():
    """The program that finds lines, or None: it comes with g++ (binutils) and with LLVM."""
    return shutil.which("addr2line") or shutil.which("llvm-addr2line")


def unknown_line():
    """Why the line of a fault is not known."""
    return "it lies in none of the kernel's own" if addr2line() else "install binutils, which has addr2line"


def kernel_line(library, addresses):
    """(file, line) of the innermost of these instructions that lies in a kernel's text; (None, 0) if none does.

    addresses: within the library, the innermost first. Functions that were compiled into others count as calls.
    """
    program = addr2line()
    addresses = [hex(a) for a in addresses if 0 <= a < library.stat().st_size]
    if program is None or not addresses:
        return None, 0
    said = subprocess.run([program, "-i", "-e", str(library), *addresses], capture_output=True, text=True).stdout
    for place in said.splitlines():
        file, _, line = place.partition(" ")[0].rpartition(":")
        if line.isdigit() and int(line) and file.endswith((".cu", ".cuh")):
            return file, int(line)
    return None, 0
