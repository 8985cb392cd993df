"""Write the compile table: registers, shared memory, spills of every CUDA kernel for every architecture.

    python benchmarks/cuda_table.py          benchmarks/results/cuda_kernels.md; exit status 1 if a budget is not held

Needs NVRTC, and no GPU: pip install 'tinyres[kernelcheck]'.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tinyres.files import write_atomically
from tinyres.kernels.cuda import compile_check
from tinyres.kernels.cuda.compile_check import Report
from tinyres.kernels.cuda.manifest import ARCHITECTURES, KERNELS, Kernel

RESULT = Path(__file__).parent / "results" / "cuda_kernels.md"
INTRODUCTION = """# What the CUDA kernels take

Every instance in `kernels/cuda/manifest.py`, compiled for every architecture by NVRTC {version}, without a GPU, with
warnings as errors. None of this says how fast a kernel is: no GPU has run them yet. Written by
`python benchmarks/cuda_table.py`; `tests/test_cuda_compile.py` holds every instance to its budget.

- registers: of a thread, for sm_75, sm_80 and sm_90, and the budget. An SM has 65,536; with up to 32 a thread it can
  hold 2,048 threads (sm_75: 1,024, for which 64 are enough).
- shared: bytes of static shared memory of a block. stack: bytes of local memory of a thread, the most of the three.
- spills: bytes that a thread stores and loads for want of registers, in all three together.
"""


def compile_all(kernels: Iterable[Kernel]) -> list[Report]:
    """The reports, each file and architecture in a program of its own, on all processors."""
    compile_check.load()
    programs = compile_check.by_file(kernels)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NVRTC computes without Python's lock
        found = pool.map(lambda item: compile_check.compile_file(item[1], item[0][1]), programs.items())
        return [report for reports in found for report in reports]


def table(reports: Iterable[Report]) -> str:
    """A table of the instances in Markdown, and one of the files."""
    rows: dict[Kernel, dict[str, Report]] = {}
    for report in reports:
        rows.setdefault(report.kernel, {})[report.architecture] = report
    names = " | ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
    lines = [f"| instance | threads | {names} | budget | shared | stack | spills |",
             "| --- |" + " ---: |" * (5 + len(ARCHITECTURES))]
    for kernel, found in rows.items():
        registers = " | ".join(str(found[architecture].registers) if architecture in found else ""
                               for architecture in ARCHITECTURES)
        shared, stack = (max(getattr(report, what) for report in found.values()) for what in ("shared", "stack"))
        spills = sum(report.spill_stores + report.spill_loads for report in found.values())
        lines.append(f"| `{kernel.name}` | {kernel.threads} | {registers} | {kernel.registers} | {shared:,} | {stack} "
                     f"| {spills} |")
    lines += ["", f"| file | instances | {names} |", "| --- |" + " ---: |" * (1 + len(ARCHITECTURES))]
    for file in dict.fromkeys(kernel.file for kernel in rows):
        mine = [found for kernel, found in rows.items() if kernel.file == file]
        seconds = {architecture: report.seconds for found in mine for architecture, report in found.items()}
        times = " | ".join(f"{seconds[architecture]:.2f} s" if architecture in seconds else ""
                           for architecture in ARCHITECTURES)
        lines.append(f"| {file} | {len(mine)} | {times} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    began = time.process_time()
    reports = compile_all(KERNELS)
    seconds = time.process_time() - began
    wrong = [line for report in reports for line in compile_check.complaints(report)]
    print(*dict.fromkeys(wrong), sep="\n")
    if wrong:
        return 1
    took = (f"Compiling the {len(KERNELS)} instances for {len(ARCHITECTURES)} architectures takes {seconds:.0f} s of "
            "processor time.\nThe instances of a file are one program; the second table has the seconds of each.")
    content = f"{INTRODUCTION.format(version=compile_check.version())}\n{table(reports)}\n{took}\n"
    write_atomically(RESULT, content.encode())
    print(f"{RESULT}: {len(KERNELS)} instances, {seconds:.0f} s of one processor")
    return 0


if __name__ == "__main__":
    sys.exit(main())
