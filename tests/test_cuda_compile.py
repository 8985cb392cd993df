"""The compile check: every CUDA kernel of the manifest compiles for every architecture, without a warning or a spill,
and within its budget. No GPU is needed, but NVRTC is: pip install 'tinyres[kernelcheck]'."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import cuda_table
from tinyres.kernels.cuda import compile_check
from tinyres.kernels.cuda.compile_check import Report, complaints
from tinyres.kernels.cuda.launch import FOLDER
from tinyres.kernels.cuda.manifest import ARCHITECTURES, BY_NAME, KERNELS, Kernel

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = compile_check.by_file(KERNELS)
FILES = sorted(path.name for path in FOLDER.glob("*.cu"))
SOURCES = sorted(path.name for path in (*FOLDER.glob("*.cu"), *FOLDER.glob("*.cuh")))
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
BOUND = r"__launch_bounds__\(\s*(\w+)\s*(?:,(?:[^()]|\([^()]*\))*)?\)"  # of threads, then perhaps of blocks
GLOBAL = re.compile(rf"__global__\s+void\s*(?:{BOUND}\s*)?(\w+)\s*\(")
FILLED_IN = "(.+?)"  # the first argument or, at the end, the rest of them


@pytest.fixture(scope="module")
def nvrtc():
    try:
        return compile_check.load()
    except ImportError as error:
        pytest.skip(str(error))


def text_of(file):
    return (FOLDER / file).read_text(encoding="utf-8")


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file, architecture", PROGRAMS, ids=lambda value: f"sm_{value}" if value.isdigit() else value)
def test_every_instance_compiles_within_its_budget(nvrtc, file, architecture):
    reports = compile_check.compile_file(PROGRAMS[file, architecture], architecture)
    assert [line for report in reports for line in complaints(report)] == []
    assert all(report.registers > 0 and len(report.cubin) > 500 for report in reports)


@pytest.mark.parametrize("file", sorted({kernel.file for kernel in KERNELS}))
def test_nvcc_has_no_objection(file, tmp_path):
    """A second opinion: NVIDIA's own driver program, whose front end reads the host's half of CUDA C++ as well."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not there, so NVRTC's word was not compared with its: it is part of the CUDA toolkit")
    done = nvcc([kernel for kernel in KERNELS if kernel.file == file], FOLDER, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = compile_check.usage(done.stdout + done.stderr)
    assert len(found) == sum(kernel.file == file for kernel in KERNELS)
    assert not any(use["spill_stores"] + use["spill_loads"] for use in found.values())


def nvcc(kernels, folder, tmp_path):
    """Compile instances of one file: what takes the address of an instance has it made."""
    made = ", ".join(f"(void*){kernel.name}" for kernel in kernels)
    (tmp_path / "all.cu").write_text(f'#include "{folder / kernels[0].file}"\nvoid* instances[] = {{{made}}};\n')
    line = ["nvcc", "-arch=sm_80", "-std=c++17", "-O3", f"-I{folder}", "--cubin", "-Xptxas", "-v,-warn-spills",
            "-Werror", "all-warnings", "all.cu", "-o", "all.cubin"]
    return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)


# --- the manifest, the sources and the host's code agree --------------------------------------------------------------


def kernels_of(text):
    """{name: its launch bound, "" without one} of the __global__ functions in a text of CUDA C++."""
    return {name: bound for bound, name in GLOBAL.findall(COMMENT.sub("", text))}


def test_kernels_are_found_in_a_text():
    text = ("// __global__ void no(\n__global__ void __launch_bounds__(64)\none(int a) {}\n/* __global__ void no() */"
            "template <int A> __global__ void __launch_bounds__(256, sizeof(T) == 4 ? B<A>::C : 1) two(T* x);\n"
            "__global__ void three() {}\n__device__ void no() {}\n")
    assert kernels_of(text) == {"one": "64", "two": "256", "three": ""}


def test_the_manifest_lists_every_kernel():
    listed = {(kernel.file, kernel.name.split("<")[0]) for kernel in KERNELS}
    there = {(file, name) for file in FILES for name in kernels_of(text_of(file))}
    assert listed == there and listed
    assert len(BY_NAME) == len(KERNELS)
    assert {kernel.file for kernel in KERNELS} == set(FILES)


def test_the_manifest_knows_how_many_threads_a_block_may_have():
    wrong = [(kernel.name, kernel.threads, bound) for kernel in KERNELS
             if (bound := kernels_of(text_of(kernel.file)).get(kernel.name.split("<")[0])) != str(kernel.threads)]
    assert wrong == []


def test_no_kernel_goes_without_an_architecture():
    assert all(kernel.architectures and set(kernel.architectures) <= set(ARCHITECTURES) for kernel in KERNELS)


def test_every_source_opens_with_its_idea():
    """A paragraph before the first line of code; a file with kernels says how many bytes they move as well."""
    for name in SOURCES:
        opening = re.match(r"(?:\s*(?://[^\n]*|/\*.*?\*/))*", text_of(name), re.S)[0]
        assert len(opening.split()) > 40, f"{name} opens with {opening!r}"
        assert "byte" in opening.lower() or name.endswith(".cuh"), f"{name} does not say what it moves"


def launched_names(tree):
    """The first argument of each call of launch(), as a pattern: what an f-string fills in is FILLED_IN. Where even the
    kernel's name is filled in, its own tests must find that it is not there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and "launch" in (getattr(node.func, "id", ""), getattr(node.func, "attr", "")):
            first = node.args[0] if node.args else None
            parts = first.values if isinstance(first, ast.JoinedStr) else [first]
            if isinstance(parts[0], ast.Constant):
                yield "".join(re.escape(part.value) if isinstance(part, ast.Constant) else FILLED_IN for part in parts)


def missing_instances(pattern, names):
    """What is wrong with a launched name, "" if nothing. If its type is filled in, both types must be there."""
    found = [match for name in names if (match := re.fullmatch(pattern, name))]
    if not found:
        return f"no instance is called {pattern}"
    if f"<{FILLED_IN}" in pattern and {"float", "double"} - {match[1] for match in found}:
        return f"{pattern} is not there for float and for double"
    return ""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_what_the_host_launches_is_in_the_manifest(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [wrong for pattern in launched_names(tree) if (wrong := missing_instances(pattern, BY_NAME))] == []


def test_a_launch_of_what_is_not_there_is_found():
    unreadable = 'launch(name)\nlaunch(f"{name}<float>")\nother("c")\n'
    tree = ast.parse(f'launch("a<float>", g)\nlaunch.launch(f"b<{{type_name(x)}}, {{k}}>", g)\n{unreadable}')
    one, two = launched_names(tree)
    assert re.fullmatch(one, "a<float>") and re.fullmatch(two, "b<double, 3>")
    assert missing_instances(one, ["a<float>"]) == "" and "no instance" in missing_instances(one, ["a<double>"])
    assert "not there for float" in missing_instances(two, ["b<float, 1>", "b<float, 2>"])
    assert missing_instances(two, ["b<float, 1>", "b<double, 2>"]) == ""


# --- kernels that are not in order are caught -------------------------------------------------------------------------

TEMPLATE = """// A kernel for the tests of the check.
template <typename T> __global__ void __launch_bounds__(256) made_up(const T* __restrict__ x, T* __restrict__ y) {
    BODY
}
"""
SCALE = "int i = blockIdx.x * 256 + threadIdx.x; y[i] = T(2) * x[i];"
WARNING = SCALE + " int forgotten = 3;"
SHARED = ("__shared__ T tile[256]; tile[threadIdx.x] = x[threadIdx.x]; __syncthreads(); "
          "y[threadIdx.x] = tile[255 - threadIdx.x];")
TOO_MUCH = SHARED.replace("tile[256]", "tile[20000]")
MMA = """unsigned a = 1, b = 2; float d0 = 0, d1 = 0, d2 = 0, d3 = 0;
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%5}, "
                 "{%0,%1,%2,%3};" : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3) : "r"(a), "r"(b));
    y[0] = T(d0 + d1 + d2 + d3) * x[0];"""
# 64 doubles are 128 registers, and a block of 1,024 threads leaves 64 to each.
MANY = ("T v[64]; _Pragma(\"unroll\") for (int i = 0; i < 64; i++) v[i] = x[i * 256 + threadIdx.x]; T sum = 0; "
        "for (int k = 0; k < 9; k++) { _Pragma(\"unroll\") for (int i = 0; i < 64; i++) v[i] = v[i] * v[(i * 7 + 1) % "
        "64] + T(k); } _Pragma(\"unroll\") for (int i = 0; i < 64; i++) sum += v[i]; y[threadIdx.x] = sum;")
SPILLS = TEMPLATE.replace("__launch_bounds__(256)", "__launch_bounds__(1024)")


def compiled(tmp_path, body, architecture="80", template=TEMPLATE, name="made_up<float>", **budget):
    (tmp_path / "made_up.cu").write_text(template.replace("BODY", body))
    return compile_check.compile_instance(Kernel("made_up.cu", name, **budget), architecture, tmp_path)


def test_a_kernel_that_is_in_order_is_reported(nvrtc, tmp_path):
    report = compiled(tmp_path, SHARED, name="made_up<double>", shared=2048)
    assert complaints(report) == [] and report.compiled
    assert (report.shared, report.spill_stores, report.spill_loads, report.stack) == (2048, 0, 0, 0)
    assert 0 < report.registers <= 64 and report.cubin.startswith(b"\x7fELF") and 0 < report.seconds < 60
    assert "made_up" in report.log and "bytes spill stores" in report.log


@pytest.mark.parametrize("body, options, words", [
    (WARNING, {}, '"forgotten" was declared but never referenced'),
    (MANY, {"template": SPILLS, "name": "made_up<double>", "threads": 1024}, "made_up<double> for sm_80 spills: "),
    (SCALE, {"registers": 4}, "registers, budget 4"),
    (SHARED, {"shared": 1023}, "takes 1024 bytes of shared memory, budget 1023"),
    (TOO_MUCH, {"shared": 80_000}, "uses too much shared data"),
    (MMA, {"architecture": "75"}, "does not compile"),
    (SCALE, {"name": "made_off<float>"}, 'identifier "made_off" is undefined'),
    (SCALE, {"name": "made_up<int*, 3>"}, "does not compile"),
    ("#include <cstdint>\n" + SCALE, {}, 'cannot open source file "cstdint"'),
], ids=["warning", "spill", "registers", "shared", "too much shared", "instruction", "name", "arguments", "header"])
def test_what_is_wrong_with_a_kernel_is_told(nvrtc, tmp_path, body, options, words):
    found = complaints(compiled(tmp_path, body, **options))
    assert found and words in "\n".join(found) and all(line.startswith("made_up.cu: ") for line in found)


def test_an_instruction_is_refused_only_where_it_is_lacking(nvrtc, tmp_path):
    assert complaints(compiled(tmp_path, MMA, "80")) == complaints(compiled(tmp_path, MMA, "90")) == []


def test_the_compiler_itself_refuses_a_warning(nvrtc, tmp_path):
    assert not compiled(tmp_path, WARNING).compiled


def test_instances_of_a_file_share_a_program(nvrtc, tmp_path):
    """Each has a report of its own, and one that is refused spoils all of them and says so."""
    (tmp_path / "made_up.cu").write_text(TEMPLATE.replace("BODY", SHARED))
    good, bad = Kernel("made_up.cu", "made_up<float>", shared=1024), Kernel("made_up.cu", "made_up<nonsense>")
    reports = compile_check.compile_file([good, bad], "80", tmp_path)
    assert [report.compiled for report in reports] == [False, False] and "nonsense" in reports[0].log
    one, two = compile_check.compile_file([good, Kernel("made_up.cu", "made_up<double>", shared=2048)], "80", tmp_path)
    assert one.cubin == two.cubin and (one.shared, two.shared) == (1024, 2048)
    assert one.registers and two.registers and not complaints(one) + complaints(two)


def test_the_compiler_warns_of_spills_itself(nvrtc, tmp_path):
    found = complaints(compiled(tmp_path, MANY, template=SPILLS, name="made_up<double>", threads=1024))
    assert any("warning" in line.lower() and "spilled" in line.lower() for line in found)


def test_options_that_the_compiler_does_not_know_are_an_error(nvrtc, tmp_path, monkeypatch):
    monkeypatch.setattr(compile_check, "STRICT", ("--Werror",))
    with pytest.raises(RuntimeError, match="does not take these options"):
        compiled(tmp_path, SCALE)


def test_nvcc_objects_to_spills_and_warnings(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not there")
    for body, name in ((MANY, "made_up<double>"), (WARNING, "made_up<float>")):
        (tmp_path / "made_up.cu").write_text(SPILLS.replace("BODY", body))
        assert nvcc([Kernel("made_up.cu", name)], tmp_path, tmp_path).returncode != 0


# --- without a compiler -----------------------------------------------------------------------------------------------

LOG = """ptxas info    : Compiling entry function '_Z1aIfEvPf' for 'sm_75'
ptxas info    : Function properties for _Z1aIfEvPf
    8 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads
ptxas info    : Function properties for slow_path
    16 bytes stack frame, 12 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 380 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1bv' for 'sm_75'
ptxas info    : Function properties for _Z1bv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 352 bytes cmem[0]
"""


def test_what_ptxas_says_is_read():
    assert compile_check.usage(LOG) == {
        "_Z1aIfEvPf": {"registers": 40, "shared": 1024, "stack": 24, "spill_stores": 12, "spill_loads": 16},
        "_Z1bv": {"registers": 8, "shared": 0, "stack": 0, "spill_stores": 0, "spill_loads": 0}}


def test_a_block_must_fit_into_the_registers():
    kernel = Kernel("a.cu", "a", threads=1024, registers=255)
    assert complaints(Report(kernel, "80", True, registers=64)) == []
    assert "1024 threads with 65 registers" in complaints(Report(kernel, "80", True, registers=65))[0]
    kernel = Kernel("a.cu", "a", threads=768, registers=255)  # which are given out in eights: 85 are 88
    assert "768 threads with 85 registers" in complaints(Report(kernel, "80", True, registers=85))[0]


def test_a_budget_may_be_used_up_and_no_byte_may_spill():
    kernel = Kernel("a.cu", "a", registers=64, shared=1024)
    assert complaints(Report(kernel, "80", True, registers=64, shared=1024)) == []
    for use in ({"registers": 65}, {"shared": 1025}, {"spill_stores": 4}, {"spill_loads": 4}, {"log": "x warning : y"}):
        assert len(complaints(Report(kernel, "80", True, **use))) == 1
    assert complaints(Report(kernel, "80", False, log="words")) == ["a.cu: a for sm_80 does not compile:\nwords"]


def test_without_nvrtc_the_line_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(ImportError, match=r"pip install 'tinyres\[kernelcheck\]'"):
        compile_check.version()
    old = SimpleNamespace(nvrtcVersion=lambda: (0, 12, 9))
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(bindings=SimpleNamespace(nvrtc=old)))
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(nvrtc=old))
    with pytest.raises(ImportError, match="got NVRTC 12.9, expected 13 or newer"):
        compile_check.version()


def test_the_table_names_every_instance(nvrtc):
    small = [kernel for kernel in KERNELS if kernel.file == KERNELS[0].file] if KERNELS else []
    text = cuda_table.table(cuda_table.compile_all(small))
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [kernel.name for kernel in small]


def test_the_table_that_is_kept_is_of_these_kernels():
    """Made anew by python benchmarks/cuda_table.py."""
    kept = (ROOT / "benchmarks" / "results" / "cuda_kernels.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([^`]+)`", kept, re.M) == [kernel.name for kernel in KERNELS]
