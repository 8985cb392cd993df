"""Compiling C++ for the processor, once for each text: shared libraries in a cache folder.

A library's file name holds a hash of all that it was made of: the text and the headers it includes, the compiler's
version, its flags and the processor, as code for this one may not run on another. So what is found under the name is
what would be compiled. Several processes may want the same one: the first locks it and compiles, the others wait; a
file is written under another name and renamed, so that it is there whole or not at all.

Where: beside this file, in __pycache__; where that cannot be written, in $TINYRES_CACHE or ~/.cache/tinyres; where
neither can, in a folder of this process's own, which is removed when it ends.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
KEPT = 32  # libraries of one name: those used last
OLDEST = {"g++": 11, "clang++": 14}
INSTALL = ("install one (Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++; conda: conda install -c "
           "conda-forge gxx), or say where it is: export CXX=/path/to/g++")
FLAGS = (
    "-std=c++17", "-fPIC", "-pthread", "-march=native", "-U_FORTIFY_SOURCE",
    "-fvisibility=hidden",  # a library's shared arrays are its own, whatever names another's have
    "-gdwarf-4",  # lines for messages, variables for gdb; with DWARF 5 addr2line 2.40 takes #line's file for another
)
GCC_FLAGS = ("-fno-ipa-icf",)  # functions that do the same are not made one, which would have the lines of the other


def check_platform():
    """Raises RuntimeError where the emulator cannot run: anywhere but Linux on x86-64 and aarch64."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ("x86_64", "aarch64"):
        raise RuntimeError(f"the CUDA emulator runs on Linux with an x86-64 or aarch64 processor, and this is "
                           f"{platform.system()} on {machine}: use the kernel set \"fast\", or a machine with Linux")


@cache
def compiler():
    """The words that call the compiler, $CXX or else g++ or clang++, and what it says of its version.

    Raises RuntimeError where there is none or it is too old, with how to get one.
    """
    wanted = os.environ.get("CXX", "").split()
    path = next((p for p in map(shutil.which, wanted[:1] or ["g++", "clang++"]) if p), None)
    if path is None:
        what = f"there is no {wanted[0]!r}, which CXX names" if wanted else "there is neither g++ nor clang++ here"
        raise RuntimeError(f"the CUDA emulator compiles kernels with a C++ compiler, and {what}: {INSTALL}")
    version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    kind = "clang++" if "clang" in version else "g++"
    number = re.search(r"clang version (\d+)|\) (\d+)\.\d", version)
    if number and int(number[1] or number[2]) < OLDEST[kind]:
        raise RuntimeError(f"the CUDA emulator needs {kind} {OLDEST[kind]} or newer, and {path} is {version!r}: "
                           f"{INSTALL}")
    return (path, *wanted[1:]), version


@cache
def processor():
    """What Linux tells of the processor: code for this one may not run on another with which we share the folder."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return [next((line for line in lines if line.startswith(name)), "") for name in ("model name", "flags", "Features")]


def shared_library(name, text, options=(), links=()):
    """The Path of a shared library of this C++ text, compiled if it has not been.

    name: a word for its file; options: flags of the compiler beyond FLAGS; links: Paths of libraries that it calls,
    which are to be loaded before it.
    Raises RuntimeError where there is no compiler, where the text has a mistake, with what the compiler says, and
    where no folder can be written.
    """
    check_platform()
    command, version = compiler()
    flags = FLAGS if "clang" in version else (*FLAGS, *GCC_FLAGS)
    included = [(path.name, path.read_bytes()) for path in headers(text, options)]
    parts = (text, included, command, flags, options, version, processor(), [link.name for link in links])
    file = f"{name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}.so"
    for path in (folder / file for folder in (*folders(), writable_folder())):
        if path.exists():
            with contextlib.suppress(OSError):
                os.utime(path)  # it was used: see remove_old
            return path
    path = writable_folder() / file
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            compile_library(path, text, [*command, *flags, *options], links)
    remove_old(path.parent, name)
    return path


def headers(text, options):
    """The Paths of the files that the text includes by #include "name", from the -I folders, and those that they do."""
    places = [HERE, *(Path(option[2:]) for option in options if option.startswith("-I"))]
    found, texts = {}, [text]
    while texts:
        for name in re.findall(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', texts.pop(), re.MULTILINE):
            path = next((place / name for place in places if (place / name).is_file()), None)
            if path and path not in found:
                found[path] = True
                texts.append(path.read_text())
    return list(found)


def compile_library(path, text, command, links):
    """Compile and link, in two steps: linking with a sanitizer's flag would add its library, which we replace."""
    unfinished = path.with_name(f"{path.stem}-{uuid.uuid4().hex}")
    source, code, linked = (unfinished.with_suffix(end) for end in (".cpp", ".o", ".tmp"))
    try:
        source.write_text(text)
        call([*command, f"-I{HERE}", "-c", str(source), "-o", str(code)], path.stem)
        call([command[0], "-shared", "-pthread", f"-Wl,-soname,{path.name}", str(code), *map(str, links), "-ldl",
              "-o", str(linked)], path.stem)
        os.replace(linked, path)
    finally:
        for file in (source, code, linked):
            file.unlink(missing_ok=True)


def call(command, name):
    """Run the compiler; RuntimeError with its messages if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        raise RuntimeError(f"the CUDA emulator could not compile {name.rpartition('-')[0]}:\n{done.stderr}"
                           f"The command was: {' '.join(command)}")


# ---- the cache folder ----


def folders():
    """Where libraries are looked for, and kept if it can be written, in this order."""
    chosen = os.environ.get("TINYRES_CACHE", "")
    user = os.path.expanduser(chosen or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "tinyres"))
    return HERE / "__pycache__" / "cuda", Path(user) / "cuda"


@cache
def writable_folder():
    """The first of the folders in which a file can be written, made if it is not there; else one of this process."""
    for folder in folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f"{uuid.uuid4().hex}.tmp"
            probe.touch()
            probe.unlink()
            return folder
    folder = tempfile.mkdtemp(prefix="tinyres-cuda-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@contextlib.contextmanager
def locked(path):
    """Only one process at a time is in the block. Where files cannot be locked, all are: they then do work twice."""
    import fcntl  # not on Windows, where this file can be imported all the same

    with path.open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def remove_old(folder, name):
    """Remove the libraries of that name that were not used for longest, as each change of a kernel makes new ones."""
    ours = re.compile(re.escape(name) + r"-[0-9a-f]{24}\.so")
    with contextlib.suppress(OSError):
        files = sorted((p for p in folder.iterdir() if ours.fullmatch(p.name)), key=os.path.getmtime)
        for path in files[:-KEPT]:
            path.unlink(missing_ok=True)
