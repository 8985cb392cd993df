"""Compiling the CUDA kernels without a GPU, and what the assembler says of each: registers, shared memory, spills.

NVRTC is CUDA's compiler as a library, the one through which CuPy compiles these files when they are first launched. It
needs neither a driver nor a device, so that any machine can compile every instance for every architecture:

    the .cu text  --NVRTC-->  PTX, the instructions of no machine  --ptxas-->  cubin, those of sm_75, sm_80 or sm_90

ptxas gives out registers, and reports how many a thread takes. That number decides how fast a kernel can be: an SM has
65,536 registers, so that with 32 of them for a thread it holds 2,048 threads, as many as it can have, and with 128 only
512. While some threads wait for memory, others compute; with few threads nobody is left who could. If a thread needs
more than its block allows, ptxas keeps values in memory instead (it spills), and each use of one is a load.

The manifest has a budget for each instance; `complaints` holds the report against it. Nothing may spill.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .launch import FOLDER, OPTIONS
from .manifest import Kernel

# What CuPy adds to the options of launch.py, then what makes the compiler strict and ptxas talk. NVRTC takes
# --ptxas-options with one option at a time, and turns the compiler's warnings into errors, but not those of ptxas.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
STRICT = ("-Werror=all-warnings", "--ptxas-options=-v", "--ptxas-options=--warn-on-spills")
INSTALL = "pip install 'tinyres[kernelcheck]'"
REGISTERS = 65_536  # of an SM, which a block must share; given out to a thread in eights
WORDS = {"registers": r"Used (\d+) registers", "shared": r"(\d+) bytes smem", "stack": r"(\d+) bytes stack frame",
         "spill_stores": r"(\d+) bytes spill stores", "spill_loads": r"(\d+) bytes spill loads"}  # of ptxas


@dataclass(frozen=True)
class Report:
    """What the compiler says of one instance for one architecture.

    registers: of a thread. shared, stack: bytes of static shared memory of a block, and of local memory of a thread.
    spill_stores, spill_loads: bytes. cubin: the machine code, seconds: the processor's time, log: the compiler's words,
    all three of the program that it was compiled in, which instances of one file share. compiled: False if refused.
    """

    kernel: Kernel
    architecture: str
    compiled: bool
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    cubin: bytes = b""
    seconds: float = 0.0
    log: str = ""


def compile_instance(kernel: Kernel, architecture: str, folder: Path = FOLDER) -> Report:
    """Compile one instance for an architecture, "80"; folder: where its .cu file is.

    Raises ImportError where NVRTC is missing; an instance that is refused has a report like any other.
    """
    return compile_file([kernel], architecture, folder)[0]


def compile_file(kernels: Sequence[Kernel], architecture: str, folder: Path = FOLDER) -> list[Report]:
    """Compile instances of one file in one program: its text is then read once. If one is refused, all are."""
    file = folder / kernels[0].file
    began = time.thread_time()  # NVRTC works in the thread that calls it
    program = Program(file.read_text(encoding="utf-8"), kernels[0].file)
    try:
        options = [f"--gpu-architecture=sm_{architecture}", *OPTIONS, f"-I{folder}", *CUPY_OPTIONS, *STRICT]
        compiled = program.compile([kernel.name for kernel in kernels], options)
        log, seconds = program.log(), time.thread_time() - began
        if not compiled:
            return [Report(kernel, architecture, False, log=log, seconds=seconds) for kernel in kernels]
        found, cubin = usage(log), program.cubin()
        return [Report(kernel, architecture, True, **found[program.symbol(kernel.name)], cubin=cubin, seconds=seconds,
                       log=log) for kernel in kernels]
    finally:
        program.close()


class Program:
    """A program of NVRTC, from the text of a file: compile it, ask for the log and the cubin, close it."""

    def __init__(self, text: str, name: str):
        self.nvrtc = load()
        self.handle = self._call("CreateProgram", text.encode(), name.encode(), 0, [], [])

    def compile(self, names: Sequence[str], options: Sequence[str]) -> bool:
        """Whether it compiles; names: the instances to be made of its templates."""
        for name in names:
            self._call("AddNameExpression", self.handle, name.encode())
        status, = self.nvrtc.nvrtcCompileProgram(self.handle, len(options), [option.encode() for option in options])
        if status not in (self.nvrtc.nvrtcResult.NVRTC_SUCCESS, self.nvrtc.nvrtcResult.NVRTC_ERROR_COMPILATION):
            raise RuntimeError(f"NVRTC does not take these options: {status.name}, {self.log() or ' '.join(options)}")
        return bool(status == self.nvrtc.nvrtcResult.NVRTC_SUCCESS)

    def log(self) -> str:
        """Errors and warnings, and the report of ptxas."""
        return self._bytes("ProgramLog").decode(errors="replace").rstrip("\0 \n")

    def cubin(self) -> bytes:
        """The machine code of all instances."""
        return self._bytes("CUBIN")

    def symbol(self, name: str) -> str:
        """The name that ptxas and the driver use for an instance."""
        return str(self._call("GetLoweredName", self.handle, name.encode()).decode())

    def close(self) -> None:
        self._call("DestroyProgram", self.handle)

    def _bytes(self, what: str) -> bytes:
        content = bytearray(self._call(f"Get{what}Size", self.handle))  # as many as NVRTC says, which it then fills
        self._call(f"Get{what}", self.handle, content)
        return bytes(content)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of NVRTC; what it returns besides the status. Raises RuntimeError if that is no success."""
        status, *result = getattr(self.nvrtc, f"nvrtc{name}")(*arguments)
        if status != self.nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"NVRTC: {name} failed: {status.name}")
        return result[0] if result else None


def load() -> Any:
    """The module cuda.bindings.nvrtc, with a library behind it that was tried. Raises ImportError without either, and
    for the NVRTC of CUDA 12, which does not make errors of warnings."""
    try:
        from cuda.bindings import nvrtc

        _, major, minor = nvrtc.nvrtcVersion()  # the first call loads the library
    except Exception as error:  # of the loader's own kind if the library is missing
        raise ImportError(f"compile_check needs NVRTC, which compiles without a GPU: {INSTALL} "
                          f"({type(error).__name__}: {' '.join(str(error).split())[:200]})") from error
    if major < 13:
        raise ImportError(f"compile_check: got NVRTC {major}.{minor}, expected 13 or newer: {INSTALL}")
    return nvrtc


def version() -> str:
    """NVRTC's, "13.5". Raises ImportError where it is missing."""
    _, major, minor = load().nvrtcVersion()
    return f"{major}.{minor}"


def usage(log: str) -> dict[str, dict[str, int]]:
    """What ptxas -v says in a log of NVRTC or nvcc: {symbol: its registers, shared, stack, spill_stores, spill_loads}.

    The functions that a kernel calls and that were not made part of it are counted with it.
    """
    found = {}
    for part in log.split("Compiling entry function ")[1:]:
        found[part.split("'")[1]] = {what: sum(map(int, re.findall(pattern, part))) for what, pattern in WORDS.items()}
    return found


def complaints(report: Report) -> list[str]:
    """What of a report is not as the manifest wants it, a sentence each; none if all is in order."""
    kernel = report.kernel
    place = f"{kernel.file}: {kernel.name} for sm_{report.architecture}"
    if not report.compiled:
        return [f"{place} does not compile:\n{report.log}"]
    found = [f"{place}: {line.strip()}" for line in report.log.splitlines() if "warning" in line.lower()]
    if report.registers > kernel.registers:
        found.append(f"{place} takes {report.registers} registers, budget {kernel.registers}")
    if report.shared > kernel.shared:
        found.append(f"{place} takes {report.shared} bytes of shared memory, budget {kernel.shared}")
    if report.spill_stores or report.spill_loads:
        found.append(f"{place} spills: {report.spill_stores} bytes are stored and {report.spill_loads} loaded")
    if kernel.threads * -(-report.registers // 8) * 8 > REGISTERS:
        found.append(f"{place}: {kernel.threads} threads with {report.registers} registers are more than an SM has")
    return found


def by_file(kernels: Iterable[Kernel]) -> dict[tuple[str, str], list[Kernel]]:
    """{(file, architecture): the instances to compile in one program}."""
    groups: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in kernels:
        for architecture in kernel.architectures:
            groups.setdefault((kernel.file, architecture), []).append(kernel)
    return groups
