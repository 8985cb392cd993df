"""What a machine offers a process: processor, cores, memory; under Linux within a container's limits too."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from tinyres.analysis.finding import NOTE, PROBLEM, Finding

ROOT = Path("/")
GIB = 2**30
# What the kernels and BLAS can make use of, as Linux and NumPy call it.
FEATURES = ("sse42", "sse4_2", "avx", "avx2", "fma", "fma3", "avx512f", "asimd", "neon", "sve")
LITTLE_MEMORY = GIB  # a ResNet-20 trains with batch 128 in less
LITTLE_DISK = GIB  # an archive of CIFAR, what is in it, and some runs


def processor() -> list[Finding]:
    """The processor and its vector instructions."""
    flags = cpu_flags()
    known = " ".join(name for name in FEATURES if name in flags) or "vector instructions unknown"
    return [Finding("processor", f"{cpu_name()}, {platform.machine()}: {known}", facts={"features": sorted(flags)})]


def cpu_name(root: Path = ROOT) -> str:
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def cpu_flags(root: Path = ROOT) -> set[str]:
    """The processor's features in small letters, as the system lists them, else as NumPy found them."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return set(value.lower().split())
    with contextlib.suppress(ImportError, AttributeError):  # NumPy has no public list
        found = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__
        return {name.lower() for name, there in found.items() if there}
    return set()


def cores() -> list[Finding]:
    """How many threads kernels use, and whether the machine and its container have cores for them."""
    from tinyres.kernels.cpu.threads import count

    there = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    quota = cpu_quota()
    usable = max(1, min(allowed, math.ceil(quota))) if quota else allowed
    words = f"{allowed} of {there} cores" if allowed < there else f"{there} cores"
    if quota and quota < allowed:
        words += f", of which the container may use {quota:g}"
    facts = {"cores": there, "allowed": allowed, "quota": quota, "usable": usable}
    try:
        threads = count()
    except ValueError as error:
        return [Finding("threads", str(error), PROBLEM, "unset TINYRES_NUM_THREADS", facts)]
    facts["threads"] = threads
    chosen = ", chosen by TINYRES_NUM_THREADS" if os.environ.get("TINYRES_NUM_THREADS") else ""
    words = f"{threads} in kernels{chosen}; {words}"
    if threads > usable:
        return [Finding("threads", f"{words}: more threads than cores wait for each other", NOTE,
                        f"export TINYRES_NUM_THREADS={usable}", facts)]
    return [Finding("threads", words, facts=facts)]


def memory() -> list[Finding]:
    """Memory: of the machine, what is free, what the container may use."""
    total, free = memory_bytes()
    limit = memory_limit()
    facts = {"total": total, "available": free, "limit": limit}
    if total is None:
        return [Finding("memory", "this system does not tell", facts=facts)]
    words = f"{total / GIB:.1f} GiB" + ("" if free is None else f", {free / GIB:.1f} available")
    if limit is not None and limit < total:
        words += f"; the container may use {limit / GIB:.1f}"
    least = min(size for size in (total, free, limit) if size is not None)
    if least < LITTLE_MEMORY:
        return [Finding("memory", f"{words}: training may need more", NOTE, "tinyres train --batch 32", facts)]
    return [Finding("memory", words, facts=facts)]


def memory_bytes(root: Path = ROOT) -> tuple[int | None, int | None]:
    """Bytes of memory in all, and available now; None for what the system does not tell."""
    found = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            found[name] = int(value.split()[0]) * 1024
    if "MemTotal" not in found:
        with contextlib.suppress(AttributeError, ValueError, OSError):
            found["MemTotal"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return found.get("MemTotal"), found.get("MemAvailable")


def disk() -> list[Finding]:
    """Room in the present folder, where runs are written."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    facts = {"free": free}
    if not writable(here):
        return [Finding("disk", f"{here} cannot be written, so runs/ cannot be made in it", NOTE,
                        "tinyres train --out FOLDER", facts)]
    if free < LITTLE_DISK:
        return [Finding("disk", f"{free / GIB:.2f} GiB free in {here}: CIFAR and some runs need more", NOTE,
                        "tinyres train --out FOLDER", facts)]
    return [Finding("disk", f"{free / GIB:.1f} GiB free in {here}", facts=facts)]


def writable(folder: Path) -> bool:
    """Whether a file can be made in a folder; for one that is not there, in the nearest one above it that is."""
    import tempfile

    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


# --- control groups: the limits of containers and of batch systems ----------------------------------------------------


def cpu_quota(root: Path = ROOT) -> float | None:
    """How many processors' worth of time the control groups grant; None for no limit."""
    quotas = []
    for folder in _groups(root, "cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            if (folder / "cpu.max").is_file():  # version 2: "max 100000" or "150000 100000", microseconds
                used, period = (folder / "cpu.max").read_text().split()
            else:
                used, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if used != "max" and int(used) > 0:
                quotas.append(int(used) / int(period))
    return min(quotas, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """How many bytes of memory the control groups grant; None for no limit."""
    limits = []
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text()))
    return min((limit for limit in limits if limit < 2**60), default=None)  # version 1 writes no limit as 2**63 - 4096


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of those above it, of both versions."""
    base = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in (base / controllers, base / controller) if controllers else (base, base / "unified"):
            folder = mount
            yield folder
            for part in path.split("/"):
                if part not in ("", "..", "."):
                    folder = folder / part
                    yield folder
