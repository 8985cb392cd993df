"""The compilers that CUDA kernels need where there is no GPU: one for C++, for the emulator, and NVRTC, for the check.

Training needs neither; on a GPU the kernels are compiled by the NVRTC that CuPy uses.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from tinyres.analysis.finding import NOTE, Finding

INSTALL = {"Debian": "sudo apt-get install g++", "Fedora": "sudo dnf install gcc-c++", "Arch": "sudo pacman -S gcc",
           "Alpine": "sudo apk add g++", "SUSE": "sudo zypper install gcc-c++", "Darwin": "xcode-select --install",
           "Windows": "winget install BrechtSanders.WinLibs.POSIX.UCRT"}
FAMILIES = {"debian": "Debian", "ubuntu": "Debian", "fedora": "Fedora", "rhel": "Fedora", "centos": "Fedora",
            "arch": "Arch", "alpine": "Alpine", "suse": "SUSE", "opensuse": "SUSE"}
EMULATED_ON = {"x86_64", "aarch64"}  # under Linux
TRIAL_SECONDS = 60


def cplusplus() -> list[Finding]:
    """A C++ compiler, which only the emulator of CUDA kernels needs, and whether that compiler can compile it."""
    names = os.environ.get("CXX", "").split()[:1] or ["g++", "clang++"]
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        return [Finding("C++ compiler", f"no {' and no '.join(names)}; only the emulator of CUDA kernels needs one",
                        NOTE, INSTALL.get(system_family(), "install GCC"))]
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10)
    if done.returncode != 0:
        return [Finding("C++ compiler", f"{program} does not run (status {done.returncode}); only the emulator of CUDA "
                        "kernels needs one", NOTE, INSTALL.get(system_family(), "install GCC"))]
    return [Finding("C++ compiler", f"{done.stdout.splitlines()[0]}, {program}"), emulator(program)]


def emulator(program: str) -> Finding:
    """Whether the emulator of CUDA kernels works here: the right system, and a compiler that understands its header."""
    system, processor = platform.system(), platform.machine()
    if system != "Linux" or processor not in EMULATED_ON:
        return Finding("emulator", f"of CUDA kernels: needs Linux on {' or '.join(sorted(EMULATED_ON))}, this is "
                       f"{system} on {processor}; everything else works", NOTE)
    why = try_header(program)
    if why:
        return Finding("emulator", f"of CUDA kernels: {program} cannot compile it: {why}; it needs g++ 11, clang++ 14 "
                       "or newer", NOTE, INSTALL.get(system_family(), "install GCC"))
    return Finding("emulator", 'of CUDA kernels: tinyres.use_kernels("emulator") runs them on the processor, slowly')


def try_header(program: str) -> str:
    """Have the compiler read the emulator's header; returns its first complaint, "" if there is none."""
    from tinyres.kernels.cuda.launch import FOLDER

    header = FOLDER / "emulator" / "cuda_host.h"
    line = [program, "-std=c++17", "-fsyntax-only", "-x", "c++", "-include", str(header), os.devnull]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        return f"it did not answer within {TRIAL_SECONDS} seconds"
    if done.returncode == 0:
        return ""
    words = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
    return next((text for text in words if "error" in text), words[0])


def nvrtc() -> list[Finding]:
    """CUDA's compiler as a library, with which the tests compile every CUDA kernel where there is no GPU."""
    from tinyres.kernels.cuda import compile_check

    if platform.system() == "Darwin":
        return []  # NVIDIA makes none for it
    try:
        version = compile_check.version()
    except ImportError as error:
        why = "not installed" if isinstance(error.__cause__, ModuleNotFoundError) else f"cannot be loaded: {error}"
        return [Finding("NVRTC", f"{why}; only the compile check of the CUDA kernels needs it", NOTE,
                        'pip install "tinyres[kernelcheck]"', {"version": None})]
    return [Finding("NVRTC", f"{version}; the compile check of the CUDA kernels needs no GPU: "
                    "pytest tests/test_cuda_compile.py", facts={"version": version})]


def system_family(release: Path = Path("/etc/os-release")) -> str:
    """By what packages are installed: the system's family, Debian, Fedora, ..., Darwin, Windows; "" if unknown."""
    if platform.system() != "Linux":
        return platform.system()
    try:
        lines = dict(line.partition("=")[::2] for line in release.read_text().splitlines())
    except OSError:
        return ""
    names = " ".join(lines.get(key, "").strip('"') for key in ("ID", "ID_LIKE")).lower().replace("-", " ").split()
    return next((FAMILIES[name] for name in names if name in FAMILIES), "")
