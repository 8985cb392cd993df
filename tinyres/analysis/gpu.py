"""The graphics processor, its driver and CuPy: what is there, what it can do, which line installs what fits."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyres.analysis.finding import NOTE, PROBLEM, Finding

WSL = Path("/usr/lib/wsl/lib")  # where Windows puts its driver's library for Linux
DRIVER_LIBRARIES = {"Linux": ("libcuda.so.1", "libcuda.so", str(WSL / "libcuda.so.1")), "Windows": ("nvcuda.dll",)}
# CUDA 13 knows no processor before Turing (compute capability 7.5), though its driver still does.
LEAST_FOR_13 = (7, 5)
OLDEST, NEWEST = (12, 0), (13, 0)
ERRORS = {34: "libcuda is the stub of a CUDA toolkit, not a driver", 100: "no device is visible",
          802: "the system is not ready", 803: "the driver's library and its kernel module are of different versions",
          999: "unknown error"}
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
# What must work for a step: memory, a compiled elementwise kernel (NVRTC and CUDA's headers), a reduction, cuBLAS.
TRIAL = """
import json, cupy
x = cupy.arange(8, dtype=cupy.float32)
y = x[:, None] @ x[None, :]
print(json.dumps([cupy.__version__, float((x * x).sum()), float(y.sum())]))
"""
TRIAL_SECONDS = 60


@dataclass(frozen=True)
class Driver:
    """version: the newest CUDA it runs, (12, 4); devices: (name, compute capability, bytes); why: what is wrong."""

    version: tuple[int, int] | None
    devices: tuple[tuple[str, tuple[int, int], int], ...] = ()
    why: str = ""


def driver_and_cupy() -> list[Finding]:
    """The driver, the devices, and CuPy if it is installed."""
    library = load_driver()
    driver = None if library is None else ask(library)
    installed = installed_cupy()
    return [_driver_finding(driver), *_cupy_findings(driver, installed)]


# --- the driver -------------------------------------------------------------------------------------------------------


def load_driver() -> Any:
    """The driver's library, None where there is none."""
    for name in DRIVER_LIBRARIES.get(platform.system(), ()):
        try:
            return ctypes.CDLL(name)
        except OSError:
            pass
    return None


def ask(library: Any) -> Driver:
    """What the driver says of itself and its devices."""
    number = ctypes.c_int(0)
    status = library.cuDriverGetVersion(ctypes.byref(number))
    if status != 0 or number.value <= 0:
        return Driver(None, why=_error(status))
    version = (number.value // 1000, number.value % 1000 // 10)
    count = ctypes.c_int(0)
    status = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value == 0:
        return Driver(version, why=_error(status or 100))
    return Driver(version, tuple(_device(library, place) for place in range(count.value)))


def _device(library: Any, place: int) -> tuple[str, tuple[int, int], int]:
    device, size = ctypes.c_int(0), ctypes.c_size_t(0)
    name, major, minor = ctypes.create_string_buffer(128), ctypes.c_int(0), ctypes.c_int(0)
    status = (library.cuDeviceGet(ctypes.byref(device), place)
              or library.cuDeviceGetName(name, len(name), device)
              or library.cuDeviceGetAttribute(ctypes.byref(major), CAPABILITY_MAJOR, device)
              or library.cuDeviceGetAttribute(ctypes.byref(minor), CAPABILITY_MINOR, device)
              or library.cuDeviceTotalMem_v2(ctypes.byref(size), device))
    if status != 0:
        raise OSError(f"device {place}: {_error(status)}")
    return name.value.decode(errors="replace"), (major.value, minor.value), size.value


def _error(status: int) -> str:
    return f"{ERRORS[status]} (CUDA error {status})" if status in ERRORS else f"CUDA error {status}"


def install_line(version: tuple[int, int], capabilities: list[tuple[int, int]]) -> str:
    """The pip line for what a driver runs, the older CUDA if a device is too old for the newer; "" for none."""
    if version < OLDEST:
        return ""
    new = version >= NEWEST and all(capability >= LEAST_FOR_13 for capability in capabilities)
    return f'pip install "tinyres[cuda{13 if new else 12}]"'


def _driver_finding(driver: Driver | None) -> Finding:
    """A machine without a GPU is in order: everything works on the processor."""
    if driver is None:
        return Finding("GPU", f"no NVIDIA driver{_hint()}; everything works on the processor. A GPU would need an "
                       f"NVIDIA card, its driver for CUDA {OLDEST[0]} or newer, and then {install_line(OLDEST, [])} "
                       f"or, for CUDA {NEWEST[0]}, {install_line(NEWEST, [])}", NOTE,
                       facts={"driver_cuda": None, "devices": []})
    facts: dict[str, Any] = {"driver_cuda": driver.version, "devices": [list(device) for device in driver.devices]}
    if driver.version is None or not driver.devices:
        words = f"a driver for CUDA {_dotted(driver.version)}" if driver.version else "a driver's library"
        return Finding("GPU", f"{words}, but {driver.why}{_hint()}; everything works on the processor", NOTE,
                       facts=facts)
    names = ", ".join(f"{name} ({_dotted(capability)}, {size / 2**30:.0f} GiB)" for name, capability, size
                      in driver.devices)
    words = f"{names}; {_driver_name()}driver for CUDA {_dotted(driver.version)}"
    if driver.version < OLDEST:
        return Finding("GPU", f"{words}, which is too old for CuPy 14: update it to one for CUDA 12 or newer", NOTE,
                       "https://www.nvidia.com/drivers (version 525 or newer; 580 or newer for CUDA 13)", facts)
    return Finding("GPU", words, facts=facts)


def _hint() -> str:
    """Where to look, if there are traces of a GPU whose driver cannot be reached."""
    version = Path("/proc/version")
    if version.is_file() and "microsoft" in version.read_text(errors="replace").lower():
        return " (this is WSL: the driver is installed in Windows, none within)"
    if Path("/proc/driver/nvidia/version").is_file():
        return " (yet the kernel has one: start the container with its GPUs, like docker run --gpus all)"
    return ""


def _driver_name() -> str:
    """The driver's own number by nvidia-smi, like "580.65 ", "" where that is missing."""
    program = shutil.which("nvidia-smi") or shutil.which(str(WSL / "nvidia-smi"))
    if program is None:
        return ""
    try:
        line = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(line, capture_output=True, text=True, timeout=5)
        return f"{done.stdout.split()[0]} " if done.returncode == 0 and done.stdout.split() else ""
    except (OSError, subprocess.SubprocessError):
        return ""


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


# --- CuPy -------------------------------------------------------------------------------------------------------------


def installed_cupy() -> dict[str, str]:
    """Name of the package -> version: cupy-cuda12x, cupy-cuda13x, or cupy built from source."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name == "cupy" or name.startswith(("cupy-cuda", "cupy-rocm")):
            found[name] = distribution.version
    return found


def _cupy_findings(driver: Driver | None, installed: dict[str, str]) -> list[Finding]:
    usable = driver is not None and driver.version is not None and bool(driver.devices)
    line = ""
    if usable and driver is not None and driver.version is not None:
        line = install_line(driver.version, [capability for _, capability, _ in driver.devices])
    facts = {"installed": installed, "install": line or None}
    if not installed:
        missing = Finding("CuPy", "not installed; it brings the arrays that live on the GPU", NOTE, line, facts)
        return [missing] if line else []
    words = ", ".join(f"{name} {version}" for name, version in sorted(installed.items()))
    if len(installed) > 1:
        others = " ".join(sorted(installed))
        again = f" && {line}" if line else ""
        return [Finding("CuPy", f"{words}: only one of them may be there", PROBLEM, f"pip uninstall {others}{again}",
                        facts)]
    if not usable:
        return [Finding("CuPy", f"{words}, not used without a driver and a device", NOTE, facts=facts)]
    name, version = next(iter(installed.items()))
    failure = try_cupy()
    if failure:
        wanted = line.removeprefix('pip install "tinyres[').removesuffix(']"')
        other = line and name.startswith("cupy-cuda") and name != f"cupy-{wanted}x"
        fix = f"pip uninstall {name} && {line}" if other else line.replace("install", "install --force-reinstall")
        return [Finding("CuPy", f"{words} cannot be used: {failure}", PROBLEM, fix, facts)]
    return [Finding("CuPy", f"{words} works", facts=facts)]


def try_cupy() -> str:
    """Run a few operations in a process of their own, which may crash; returns why they failed, "" if they did not."""
    try:
        done = subprocess.run([sys.executable, "-c", TRIAL], capture_output=True, text=True, timeout=TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        return f"it did not answer within {TRIAL_SECONDS} seconds"
    lines = done.stderr.strip().splitlines()
    if done.returncode != 0:
        return lines[-1] if lines else f"it ended with status {done.returncode}"
    _, squares, products = json.loads(done.stdout.splitlines()[-1])
    return "" if (squares, products) == (140, 784) else f"it computes {squares} and {products}, expected 140 and 784"
