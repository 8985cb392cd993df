"""What `tinyres doctor` looks at: the installation, here; the machine, BLAS, the GPU, compilers in files of their own.

A probe is a function that returns findings. Each is guarded: one that fails tells so and the others go on.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tinyres.analysis import blas, compilers, gpu, machine
from tinyres.analysis.finding import NOTE, PROBLEM, Finding, guarded

PACKAGE = "tinyres"


def examine() -> Iterator[Finding]:
    """All findings, in the order in which they are told."""
    for name, probe in PROBES:
        yield from guarded(name, probe)


# --- the installation -------------------------------------------------------------------------------------------------


def python() -> list[Finding]:
    """Which Python runs."""
    words = f"{platform.python_version()} ({platform.python_implementation()}, {platform.system()}), {sys.executable}"
    return [Finding("Python", words, facts={"version": platform.python_version()})]


def packages() -> list[Finding]:
    """The packages that tinyres needs, and those of its extras."""
    version, where = importlib.import_module(PACKAGE).__version__, Path(__file__).parents[1]
    try:
        wanted = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return [Finding("tinyres", f"{version} in {where}, not installed: which packages it needs is unknown", NOTE,
                        "pip install -e .")]
    bad, extras = judge_requirements(wanted)
    words = f"{version} in {where}"
    facts = {"version": version, "extras": extras}
    if bad:
        names = ", ".join(bad.values())
        needs = " ".join(f'"{name}"' for name in bad)
        return [Finding("tinyres", f"{words}, but {names}", PROBLEM, f"pip install {needs}", facts)]
    there = " ".join(name for name, missing in extras.items() if not missing) or "none"
    absent = [name for name, missing in extras.items() if missing]
    more = f'; others by pip install "tinyres[NAME]": {" ".join(absent)}' if absent else ""
    return [Finding("tinyres", words, facts=facts), Finding("extras", f"installed: {there}{more}")]


def judge_requirements(wanted: list[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Read the requirements of a package's metadata, like 'numpy>=2.1.2' or 'onnx; extra == "onnx"'.

    Returns {requirement: what is wrong} of those always needed, and {extra: [names that are missing]}.
    """
    bad: dict[str, str] = {}
    extras: dict[str, list[str]] = {}
    for text in wanted:
        requirement, _, condition = (part.strip() for part in text.partition(";"))
        name = re.split(r"[^A-Za-z0-9._-]", requirement)[0]
        extra = re.search(r"extra\s*==\s*[\"']([^\"']+)", condition)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if extra:
            extras.setdefault(extra[1], []).extend([] if version else [name])
            continue
        least = re.search(r">=\s*([0-9.]+)", requirement)
        if version is None:
            bad[requirement] = f"{name} is missing"
        elif least and _numbers(version) < _numbers(least[1]):
            bad[requirement] = f"{name} is {version}, older than {least[1]}"
    return bad, extras


def _numbers(version: str) -> tuple[int, ...]:
    """"2.1.2rc1" -> (2, 1, 2)"""
    return tuple(int(digits[0]) for part in version.split(".") if (digits := re.match(r"[0-9]+", part)))


# --- Numba ------------------------------------------------------------------------------------------------------------


def numba() -> list[Finding]:
    """Numba compiles a function; and where the compiled kernels are kept."""
    try:
        import numba as found
        from llvmlite import __version__ as llvmlite
        from llvmlite import binding
    except Exception as error:
        return [Finding("Numba", f"cannot be imported: {type(error).__name__}: {error}", PROBLEM,
                        "pip install --force-reinstall numba")]
    words = f"{found.__version__}, llvmlite {llvmlite}, for {binding.get_host_cpu_name()}"
    facts = {"version": found.__version__, "llvmlite": llvmlite, "cpu": binding.get_host_cpu_name()}
    if found.config.DISABLE_JIT:
        return [Finding("Numba", f"{words}; NUMBA_DISABLE_JIT is set, so kernels are interpreted: some 1000 times "
                        "slower", NOTE, "unset NUMBA_DISABLE_JIT", facts)]
    narrowed = [name for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES") if os.environ.get(name)]
    if narrowed:
        return [Finding("Numba", f"{words}; {narrowed[0]}={os.environ[narrowed[0]]} decides for which processor it "
                        "compiles", NOTE, f"unset {' '.join(narrowed)}", facts)]
    try:
        answer = found.njit(lambda number: number + 1)(1)
    except Exception as error:
        return [Finding("Numba", f"{words}, cannot compile: {type(error).__name__}: {error}", PROBLEM,
                        "pip install --force-reinstall numba llvmlite", facts)]
    if answer != 2:
        return [Finding("Numba", f"{words}, compiles wrongly: 1 + 1 gives {answer}", PROBLEM,
                        "pip install --force-reinstall numba llvmlite", facts)]
    return [Finding("Numba", f"{words}; its own threads and SVML are not used", facts=facts)]


def kernel_cache() -> list[Finding]:
    """Where compiled kernels are kept, so that only the first process waits for them."""
    from tinyres.kernels.cpu import code_cache

    return [cache_finding(code_cache.folder(), code_cache.folders_read(), os.environ.get("NUMBA_CACHE_DIR", ""))]


def cache_finding(folder: Path | None, read: Sequence[Path], asked: str) -> Finding:
    """Judge the folder that is written (None: there is none), those that are read, and what $NUMBA_CACHE_DIR asked."""
    kept = [path for place in read for path in place.glob("*.nbc")]
    size = sum(path.stat().st_size for path in kept)
    facts = {"path": None if folder is None else str(folder), "kernels": len(kept), "bytes": size,
             "NUMBA_CACHE_DIR": asked or None}
    words = f"{len(kept)} compiled kernels, {size / 2**20:.1f} MiB" if kept else "empty"
    if folder is None:
        return Finding("kernel cache", f"{words}; no folder for compiled kernels can be written, so every process "
                       "compiles them again", NOTE, f"export NUMBA_CACHE_DIR={Path('~/.cache/numba').expanduser()}",
                       facts)
    words += f", in {folder}" if kept else f", {folder}: the first run compiles, or now: tinyres doctor --warm"
    if asked and not folder.absolute().is_relative_to(Path(asked).absolute()):
        return Finding("kernel cache", f"{words}; NUMBA_CACHE_DIR={asked} cannot be written", NOTE,
                       "unset NUMBA_CACHE_DIR", facts)
    return Finding("kernel cache", words, facts=facts)


# --- what else is of use ----------------------------------------------------------------------------------------------


def digits() -> list[Finding]:
    """The embedded data set."""
    from tinyres import data

    try:
        count = len(data.digits("train")) + len(data.digits("test"))
    except Exception as error:
        return [Finding("digits", f"the embedded images cannot be read: {error}", PROBLEM,
                        "pip install --force-reinstall tinyres")]
    return [Finding("digits", f"embedded, {count:,} images")]


def data_sets() -> list[Finding]:
    """Where the other data sets were found; their content is what `tinyres data check` looks at."""
    from tinyres.data import cifar, cifar_formats
    from tinyres.data.cache import VARIABLE
    from tinyres.data.fashion import find as find_fashion

    variable = os.environ.get(VARIABLE, "")
    found = []
    if variable and not Path(variable).expanduser().exists():
        found.append(Finding("data", f"{VARIABLE}={variable} is not there", NOTE, f"unset {VARIABLE}"))
    finders: dict[str, Callable[[], Path]] = {
        "cifar10": lambda: cifar.find(cifar_formats.CIFAR10), "cifar100": lambda: cifar.find(cifar_formats.CIFAR100),
        "fashion": find_fashion}
    for name, find in finders.items():
        found += guarded(name, lambda name=name, find=find: [_data_finding(name, find)])  # type: ignore[misc]
    return found


def _data_finding(name: str, find: Callable[[], Path]) -> Finding:
    try:
        path = find()
    except FileNotFoundError:
        return Finding(name, "not found", NOTE, f"tinyres data fetch {name}", {"path": None})
    return Finding(name, str(path), facts={"path": str(path)})


def data_cache() -> list[Finding]:
    """Where fetched data sets are kept."""
    from tinyres.data.cache import CACHE_VARIABLE, cache_folder

    folder = cache_folder()
    facts = {"path": str(folder)}
    if not machine.writable(folder):
        return [Finding("data cache", f"{folder} cannot be written: nothing can be fetched into it", NOTE,
                        f"export {CACHE_VARIABLE}=FOLDER", facts)]
    return [Finding("data cache", f"{folder}{'' if folder.exists() else ', made when it is needed'}", facts=facts)]


PROBES: tuple[tuple[str, Callable[[], list[Finding]]], ...] = (
    ("Python", python),
    ("tinyres", packages),
    ("processor", machine.processor),
    ("threads", machine.cores),
    ("memory", machine.memory),
    ("NumPy", blas.numpy_and_blas),
    ("product", blas.matrix_product),
    ("Numba", numba),
    ("kernel cache", kernel_cache),
    ("GPU", gpu.driver_and_cupy),
    ("C++ compiler", compilers.cplusplus),
    ("NVRTC", compilers.nvrtc),
    ("digits", digits),
    ("data", data_sets),
    ("data cache", data_cache),
    ("disk", machine.disk),
)
