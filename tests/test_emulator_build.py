"""The CUDA emulator: compiling kernels once for each text, and what is said where that cannot be done."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from emulated import I32, NEEDS_EMULATOR, blank, function, launch

from tinyres.kernels.cuda import emulator
from tinyres.kernels.cuda.emulator import KernelError, Module, build

pytestmark = NEEDS_EMULATOR


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """The function library() with a folder of its own, and the list of what it compiles."""
    compiled, compile_library = [], build.compile_library

    def watched(path, *rest):
        compiled.append(path.name)
        compile_library(path, *rest)

    monkeypatch.setattr(build, "folders", lambda: (tmp_path / "cache",))
    monkeypatch.setattr(build, "writable_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(build, "compile_library", watched)
    (tmp_path / "cache").mkdir()
    return compiled


def test_what_was_compiled_is_found_again(empty_cache, tmp_path, monkeypatch):
    (tmp_path / "a.cuh").write_text('#include "b.cuh"\n')
    (tmp_path / "b.cuh").write_text("constexpr int one = 1;\n")
    text, options = '#include "a.cuh"\nint f() { return one; }\n', (f"-I{tmp_path}",)
    first = build.shared_library("thing", text, options)
    assert build.shared_library("thing", text, options) == first and empty_cache == [first.name]
    assert build.shared_library("thing", text + "\n", options) != first
    assert build.shared_library("thing", text, (*options, "-O1")) != first
    (tmp_path / "b.cuh").write_text("constexpr int one = 2;\n")
    assert build.shared_library("thing", text, options) != first
    (tmp_path / "b.cuh").write_text("constexpr int one = 1;\n")
    monkeypatch.setattr(build, "processor", lambda: ["another"])
    assert build.shared_library("thing", text, options) != first
    monkeypatch.undo()
    assert len(empty_cache) == 5
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".so"]  # nothing half done is left


def test_a_mistake_in_the_text_is_told_with_its_line(empty_cache, tmp_path):
    text = "__global__ void f(float* y)\n{\n    y[0] = z;\n}\n"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"could not compile module:\n(.*\n)*module.cu:3:12: error: .*'z'"):
            function(text, "f")((1,), (1,), (blank(1),))
    with pytest.raises(RuntimeError, match="error: unused variable"):  # warnings are errors
        function("__global__ void f(float* y) { int unused; y[0] = 1; }", "f")((1,), (1,), (blank(1),))
    assert all(p.name.startswith("runtime") for p in (tmp_path / "cache").iterdir())
    with pytest.raises(ValueError, match="module.cu was compiled without the kernel 'g': .*; there are f"):
        function(text, "f").module.get_function("g")


def test_old_libraries_are_removed(empty_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "KEPT", 3)
    paths = []
    for i in range(5):
        paths.append(build.shared_library("thing", f"int f() {{ return {i}; }}"))
        os.utime(paths[-1], (i + 1, i + 1))
    other = build.shared_library("thing-sanitize", "int f();")
    build.shared_library("thing", "int f();")
    assert [p.exists() for p in paths] == [False, False, False, True, True] and other.exists()


def test_where_libraries_are_kept(monkeypatch, tmp_path):
    home, own = tmp_path / "home", build.HERE / "__pycache__" / "cuda"
    monkeypatch.setenv("HOME", str(home))
    for name in ("TINYRES_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert build.folders() == (own, home / ".cache" / "tinyres" / "cuda")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build.folders() == (own, tmp_path / "xdg" / "tinyres" / "cuda")
    monkeypatch.setenv("TINYRES_CACHE", str(tmp_path / "chosen"))
    assert build.folders() == (own, tmp_path / "chosen" / "cuda")


def test_a_folder_that_cannot_be_written_is_passed_over(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(build, "folders", lambda: (tmp_path / "file" / "x", tmp_path / "second"))
    assert build.writable_folder.__wrapped__() == tmp_path / "second"
    monkeypatch.setattr(build, "folders", lambda: (tmp_path / "file" / "x", Path("/proc/nothing")))
    own = build.writable_folder.__wrapped__()
    assert own.is_dir() and own.name.startswith("tinyres-cuda-")
    own.rmdir()


def test_several_processes_compile_a_text_once(tmp_path):
    script = f"""
from pathlib import Path
from tinyres.kernels.cuda.emulator import build
folder = Path({str(tmp_path)!r})
build.folders = lambda: (folder,)
build.writable_folder = lambda: folder
compile_library = build.compile_library
def watched(path, *rest):
    print("compiled", flush=True)
    compile_library(path, *rest)
build.compile_library = watched
build.compiler()
print("ready", flush=True)
input()
build.shared_library("thing", "#include <vector>\\nint f() {{ return 1; }}")
"""
    pipe = subprocess.PIPE
    running = [subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    assert [p.stdout.readline() for p in running] == ["ready\n"] * 3
    for p in running:
        p.stdin.write("\n")
        p.stdin.flush()
    said = [p.communicate()[0] for p in running]
    assert [p.returncode for p in running] == [0, 0, 0] and "".join(said) == "compiled\n"
    assert [p.suffix for p in tmp_path.iterdir()] == [".so"]


def without_compiler(monkeypatch, tmp_path, **environment):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    build.compiler.cache_clear()


@pytest.fixture
def any_compiler():
    yield
    build.compiler.cache_clear()


def test_a_missing_compiler_is_told(monkeypatch, tmp_path, any_compiler):
    without_compiler(monkeypatch, tmp_path)
    assert not emulator.available()
    assert re.search(r"neither g\+\+ nor clang\+\+ here: install one .*apt install g\+\+", emulator.missing())
    with pytest.raises(RuntimeError, match="the CUDA emulator compiles kernels with a C.. compiler, and there is neit"):
        function("__global__ void never_compiled() {}", "never_compiled")((1,), (1,), ())
    without_compiler(monkeypatch, tmp_path, CXX="nothing++ -m64")
    assert "there is no 'nothing++', which CXX names: install one" in emulator.missing()


@pytest.mark.parametrize("version, said", [
    ("g++ (Debian 10.2.1-6) 10.2.1 20210110", r"needs g\+\+ 11 or newer, and .*g\+\+ is 'g\+\+ .Debian 10.2.1-6. 10."),
    ("Ubuntu clang version 13.0.1", r"needs clang\+\+ 14 or newer"), ("clang version 18.1", ""),
    ("g++ (GCC) 11.1.0", ""), ("g++ (conda-forge gcc 13.2.0-5) 13.2.0", ""), ("a compiler that we do not know", ""),
])
def test_a_compiler_that_is_too_old_is_told(monkeypatch, tmp_path, any_compiler, version, said):
    (tmp_path / "g++").write_text(f"#!/bin/sh\necho '{version}'\n")
    (tmp_path / "g++").chmod(0o755)
    without_compiler(monkeypatch, tmp_path)
    assert emulator.available() == (said == "") and re.search(said, emulator.missing())


@pytest.mark.parametrize("system, machine", [("darwin", "arm64"), ("win32", "AMD64"), ("linux", "riscv64")])
def test_another_system_is_told(monkeypatch, system, machine):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    assert not emulator.available()
    assert "the CUDA emulator runs on Linux with an x86-64 or aarch64 processor" in emulator.missing()
    assert machine in emulator.missing() and 'use the kernel set "fast"' in emulator.missing()


def test_a_line_that_cannot_be_found_is_no_other_error(monkeypatch):
    from tinyres.kernels.cuda.emulator import report

    monkeypatch.setattr(report, "addr2line", lambda: None)
    with pytest.raises(KernelError, match=r"write_past_end: writes outside the array 'y' .*install binutils") as caught:
        launch("memory.cu", "write_past_end", False, 2, 32, (blank(44), I32(44)))
    assert (caught.value.file, caught.value.line) == (None, 0)


def test_a_text_of_the_manifest_is_compiled_once_for_all():
    from tinyres.kernels.cuda.launch import OPTIONS
    from tinyres.kernels.cuda.manifest import KERNELS

    kernel = KERNELS[0]
    text = (build.HERE.parent / kernel.file).read_text()
    one = Module(text, OPTIONS, [kernel.name])
    assert one.shared_library(False)[0] == emulator.function(kernel).module.shared_library(False)[0]
    assert one.get_function(kernel.name).signature == emulator.function(kernel).signature
    other = Module(text + "\n", OPTIONS, [kernel.name])
    assert other.names == [kernel.name] and other.file == "module.cu"


def test_it_can_be_imported_on_windows_and_says_where_it_runs():
    """Without what Windows lacks: fcntl, and os.register_at_fork."""
    code = """
import os, platform, sys
import numpy, numba, tinyres  # which do more on Windows than is pretended here
sys.modules["fcntl"] = None
del os.register_at_fork
sys.platform, platform.system, platform.machine = "win32", lambda: "Windows", lambda: "AMD64"
from tinyres.kernels.cuda import emulator
print(emulator.available(), emulator.missing())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False the CUDA emulator runs on Linux") and "Windows on AMD64" in done.stdout
