"""`tinyres doctor` on machines made up here: old drivers, slow BLAS kernels, containers, read-only folders."""

import ctypes
import importlib
import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tinyres.analysis import blas, compilers, doctor, gpu, machine
from tinyres.analysis.finding import Finding, guarded
from tinyres.analysis.gpu import Driver
from tinyres.cli.main import app
from tinyres.kernels.cuda import emulator

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["Python", "tinyres", "processor", "threads", "memory", "NumPy", "BLAS", "product", "Numba", "kernel cache",
         "GPU", "C++ compiler", "emulator", "NVRTC", "digits", "cifar10", "cifar100", "fashion", "data cache", "disk"]


@pytest.fixture
def command(capsys):
    """command("doctor --json") -> (exit status, stdout)"""

    def call(line):
        with pytest.raises(SystemExit) as end:
            app(shlex.split(line), prog_name="tinyres")
        return end.value.code, capsys.readouterr().out

    return call


# --- the command ------------------------------------------------------------------------------------------------------


def test_this_machine_is_in_order(command):
    status, out = command("doctor")
    lines = [line for line in out.splitlines() if line[:8].strip() in ("ok", "note", "problem")]
    names = [line[9:24].strip() for line in lines]
    elsewhere = {"emulator"} if not compiler_is_there() else set()  # what is not told on every machine
    elsewhere |= {"NVRTC"} if sys.platform == "darwin" else set()
    assert status == 0 and [name for name in names if name in NAMES] == [n for n in NAMES if n not in elsewhere]
    assert out.splitlines()[-1].startswith("everything that is needed works")
    assert "could not be looked at" not in out


def compiler_is_there():
    return any(shutil.which(name) for name in os.environ.get("CXX", "").split()[:1] or ("g++", "clang++"))


def test_a_spoilt_environment_is_told_and_breaks_nothing(tmp_path):
    """No home, no programs, a present folder that is gone, and every variable wrong."""
    gone = tmp_path / "gone"
    leave = f"import os; os.mkdir({str(gone)!r}); os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); "
    if subprocess.run([sys.executable, "-c", f"{leave}import numpy"], capture_output=True, timeout=60).returncode:
        leave = ""  # Python 3.13.0 cannot import compiled modules from a folder that is gone
    code = f"{leave}from tinyres.cli.main import app; app(['doctor', '--json'])"
    environment = {"PYTHONPATH": str(ROOT), "HOME": "/nonexistent", "PATH": "", "TINYRES_NUM_THREADS": "many",
                   "TINYRES_DATA": "nowhere", "TINYRES_CACHE": "/dev/null/x", "NUMBA_CACHE_DIR": "/dev/null/x",
                   "OPENBLAS_CORETYPE": "Nehalem", "SYSTEMROOT": os.environ.get("SYSTEMROOT", "")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
    result = json.loads(done.stdout.splitlines()[-1])
    found = {finding["name"]: finding for finding in result["findings"]}
    assert result["passed"] is False and result["problems"] == ["threads"]
    assert found["threads"]["fix"] == "unset TINYRES_NUM_THREADS"
    assert {"data", "data cache", "kernel cache", "C++ compiler"} <= set(result["notes"])
    assert "emulator" not in found  # without a compiler there is no more to say
    if leave:
        assert "disk" in result["notes"] and "could not be looked at: FileNotFoundError" in found["disk"]["value"]
    assert "NUMBA_CACHE_DIR=/dev/null/x cannot be written" in found["kernel cache"]["value"]
    assert found["digits"]["verdict"] == "ok"


def test_a_problem_decides_the_exit_status_and_its_fix_is_told(command, monkeypatch):
    def broken():
        raise KeyError("a\nb")

    probes = (("one", lambda: [Finding("one", "is slow", "note", "hurry")]), ("two", broken))
    monkeypatch.setattr(doctor, "PROBES", probes)
    status, out = command("doctor")
    assert status == 0 and out.splitlines() == [
        "note     one            is slow", "                        fix: hurry",
        "note     two            could not be looked at: KeyError: 'a\\nb'", "",
        "everything that is needed works; notes: one, two"]
    third = Finding("three", "is broken", "problem", "mend")
    monkeypatch.setattr(doctor, "PROBES", (*probes, ("three", lambda: [third])))
    status, out = command("doctor --json")
    result = json.loads(out.splitlines()[-1])
    assert (status, len(out.splitlines()), result["passed"], result["problems"]) == (1, 1, False, ["three"])
    assert result["findings"][2] == {"name": "three", "value": "is broken", "verdict": "problem", "fix": "mend",
                                     "facts": {}}
    assert command("doctor")[1].splitlines()[-1] == "problems: three; notes: one, two"


def test_on_a_terminal_lines_are_wrapped_and_verdicts_coloured(command, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(doctor, "PROBES", (("x", lambda: [Finding("x", "word " * 20, "problem")]),))
    monkeypatch.setenv("NO_COLOR", "1")
    lines = command("doctor")[1].splitlines()
    assert len(lines) == 5 and all(len(line) <= 60 for line in lines) and lines[1].startswith(" " * 24 + "word")
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b[31mproblem" in command("doctor")[1]


# --- BLAS -------------------------------------------------------------------------------------------------------------

AVX2_MACHINE = {"avx", "avx2", "fma"}
AVX512_MACHINE = AVX2_MACHINE | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}


@pytest.mark.parametrize("kernels, flags, forced, verdict, words, fix", [
    ("Haswell", AVX2_MACHINE, "", "ok", "openblas 0.3.31 with Haswell kernels", ""),
    ("Zen", AVX512_MACHINE, "", "ok", "Zen kernels", ""),
    ("Nehalem", {"sse4_2"}, "", "ok", "Nehalem kernels", ""),
    ("neoversen1", {"asimd"}, "", "ok", "neoversen1 kernels", ""),
    ("Haswell", AVX2_MACHINE, "Haswell", "ok", "OPENBLAS_CORETYPE=Haswell is set, and does no harm here", ""),
    ("Nehalem", AVX2_MACHINE, "Nehalem", "note", "forced by OPENBLAS_CORETYPE=Nehalem: SSE, and this processor has "
     "AVX2; 1 or 2", "unset OPENBLAS_CORETYPE"),
    ("Sandybridge", AVX2_MACHINE, "sandybridge", "note", ": AVX, and this processor has AVX2",
     "unset OPENBLAS_CORETYPE"),
    ("Haswell", AVX512_MACHINE, "Haswell", "note", ": AVX2, and this processor has AVX-512",
     "unset OPENBLAS_CORETYPE"),
    ("Prescott", AVX512_MACHINE, "", "note", "did not recognise, has AVX-512; on 2 cores with AVX2, Haswell's kernels "
     "gave 183 GFLOP/s, Sandybridge's 140, Nehalem's 53", "export OPENBLAS_CORETYPE=Haswell"),
    ("SandyBridge", AVX2_MACHINE, "", "note", "did not recognise", "export OPENBLAS_CORETYPE=Haswell"),
])
def test_kernels_below_what_the_processor_can_do_are_told(monkeypatch, kernels, flags, forced, verdict, words, fix):
    monkeypatch.setattr(blas, "compare_unforced", lambda: ("1 or 2", {"one_thread_unforced": 2.0}))
    library = {"internal_api": "openblas", "version": "0.3.31", "architecture": kernels}
    found = blas.blas_finding(library, flags, forced)
    assert (found.verdict, found.fix) == (verdict, fix) and words in found.value
    assert found.facts["architecture"] == kernels and found.facts["OPENBLAS_CORETYPE"] == (forced or None)
    assert ("one_thread_unforced" in found.facts) == (fix == "unset OPENBLAS_CORETYPE")


def test_other_blas_libraries_and_none_are_told():
    found = blas.blas_finding({"internal_api": "mkl", "version": "2024.1"}, AVX2_MACHINE, "Nehalem")
    assert (found.verdict, found.value) == ("ok", "mkl 2024.1")
    assert blas.blas_finding(None, set(), "").verdict == "note"


def test_the_forced_kernels_are_compared_with_openblas_own_choice(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    monkeypatch.setattr(blas, "speed", lambda threads: 25e9)

    def run(line, env, **options):
        assert "OPENBLAS_CORETYPE" not in env and line[0] == sys.executable
        return subprocess.CompletedProcess(line, 0, stdout=answer)

    monkeypatch.setattr(subprocess, "run", run)
    answer = "Haswell 130000000000.0\n"
    words, facts = blas.compare_unforced()
    assert words == "one thread gives 25 GFLOP/s, and without the variable 130 (Haswell)"
    assert facts["one_thread_unforced"] == 130e9
    answer = ""
    assert blas.compare_unforced() == (blas.FIGURES, {})


def test_numpy_comes_with_a_blas_here():
    pytest.importorskip("threadpoolctl")
    found = blas.numpy_and_blas()
    assert [finding.name for finding in found] == ["NumPy", "BLAS"] and blas.kernels()
    assert blas.ALONE.startswith("from tinyres.analysis import blas")  # what the other process runs
    assert len(blas.kernels().split()) == 1


def test_without_threadpoolctl_blas_is_unknown(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    assert blas.numpy_and_blas()[1].fix == "pip install threadpoolctl"


def test_the_matrix_product_is_judged_by_its_speed(monkeypatch):
    assert 0.1e9 < blas.speed(1) < 10e12
    monkeypatch.setenv("TINYRES_NUM_THREADS", "2")
    for speeds, verdict, words in (((60e9, 118e9), "ok", "60 GFLOP/s on 1 thread, 118 on 2"),
                                   ((60e9, 61e9), "ok", "61 on 2 (other processes seem to use the cores)"),
                                   ((2e9, 4e9), "note", "slow for any processor")):
        monkeypatch.setattr(blas, "speed", lambda threads, speeds=speeds: speeds[threads - 1])
        found, = blas.matrix_product()
        assert found.verdict == verdict and words in found.value


# --- processor, cores, memory, disk -----------------------------------------------------------------------------------


def group_files(root, membership, contents):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, content in contents.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.mark.parametrize("membership, contents, quota, limit", [
    ("0::/\n", {"cpu.max": "150000 100000\n", "memory.max": "1073741824\n"}, 1.5, 2**30),
    ("0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, None, None),
    ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000", "a/b/memory.max": "7",
                   "cpu.max": "900000 100000"}, 4.0, 7),
    ("0::/../other\n", {"cpu.max": "50000 100000", "../cpu.max": "1 100000"}, 0.5, None),
    ("4:cpu,cpuacct:/x\n2:memory:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "200000\n",
                                        "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
                                        "memory/x/memory.limit_in_bytes": "12\n"}, 2.0, 12),
    ("4:cpu:/\n2:memory:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n",
                              "memory/memory.limit_in_bytes": "9223372036854771712\n"}, None, None),
    ("5:cpuset:/x\n", {"cpuset/x/cpu.cfs_quota_us": "1", "cpuset/x/cpu.cfs_period_us": "1"}, None, None),
    ("0::/\n", {"cpu.max": "nonsense"}, None, None),
    ("", {}, None, None),
])
def test_limits_of_containers_are_read(tmp_path, membership, contents, quota, limit):
    group_files(tmp_path, membership, contents)
    assert machine.cpu_quota(tmp_path) == quota and machine.memory_limit(tmp_path) == limit
    assert machine.cpu_quota(tmp_path / "nothing") is None


@pytest.mark.parametrize("variable, quota, verdict, words, fix", [
    ("", None, "ok", "4 in kernels; 4 of 8 cores", ""),
    ("", 1.5, "note", "4 in kernels; 4 of 8 cores, of which the container may use 1.5: more threads than cores",
     "export TINYRES_NUM_THREADS=2"),
    ("", 6.0, "ok", "4 in kernels; 4 of 8 cores", ""),
    ("2", 1.5, "ok", "2 in kernels, chosen by TINYRES_NUM_THREADS; 4 of 8", ""),
    ("16", None, "note", "16 in kernels, chosen by TINYRES_NUM_THREADS", "export TINYRES_NUM_THREADS=4"),
    ("0", None, "problem", "TINYRES_NUM_THREADS must be a whole number", "unset TINYRES_NUM_THREADS"),
])
def test_threads_are_compared_with_cores(monkeypatch, variable, quota, verdict, words, fix):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    monkeypatch.setenv("TINYRES_NUM_THREADS", variable)
    found, = machine.cores()
    assert (found.verdict, found.fix) == (verdict, fix) and words in found.value
    assert (found.facts["cores"], found.facts["allowed"], found.facts["quota"]) == (8, 4, quota)


def test_processor_and_memory_are_read_from_proc(tmp_path, monkeypatch):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("model name\t: Some CPU\nflags\t\t: fpu AVX avx2 fma\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:  4194304 kB\nMemAvailable: 2097152 kB\n")
    assert machine.cpu_name(tmp_path) == "Some CPU" and machine.cpu_flags(tmp_path) == {"fpu", "avx", "avx2", "fma"}
    assert machine.memory_bytes(tmp_path) == (4 * 2**30, 2 * 2**30)
    for limit, verdict, words in ((None, "ok", "4.0 GiB, 2.0 available"), (2**29, "note", "the container may use 0.5")):
        monkeypatch.setattr(machine, "memory_bytes", lambda: (4 * 2**30, 2 * 2**30))
        monkeypatch.setattr(machine, "memory_limit", lambda limit=limit: limit)
        found, = machine.memory()
        assert found.verdict == verdict and words in found.value
    assert machine.cpu_flags(tmp_path / "nothing")  # by NumPy
    monkeypatch.setattr(machine, "memory_bytes", lambda: (None, None))
    assert machine.memory()[0].value == "this system does not tell"


def test_a_full_or_read_only_folder_is_told(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert machine.disk()[0].verdict == "ok" and list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**28))
        assert machine.disk()[0].verdict == "note" and "0.25 GiB free" in machine.disk()[0].value
    monkeypatch.setattr("tempfile.TemporaryFile", _refuse)
    assert "cannot be written, so runs/ cannot be made" in machine.disk()[0].value


def _refuse(**options):
    raise PermissionError("read-only")


def test_writable_looks_at_the_nearest_folder_that_is_there(tmp_path):
    (tmp_path / "file").write_text("")
    assert machine.writable(tmp_path / "new" / "newer") and not (tmp_path / "new").exists()
    assert not machine.writable(tmp_path / "file" / "below")


# --- the GPU ----------------------------------------------------------------------------------------------------------


class FakeDriver:
    """libcuda: sets what the pointers of ctypes point to, and returns a status."""

    def __init__(self, version=12040, devices=(("H100", (9, 0)),), version_status=0, init_status=0):
        self.version, self.devices = version, devices
        self.version_status, self.init_status = version_status, init_status

    def cuDriverGetVersion(self, pointer):
        pointer._obj.value = self.version
        return self.version_status

    def cuInit(self, flags):
        return self.init_status

    def cuDeviceGetCount(self, pointer):
        pointer._obj.value = len(self.devices)
        return 0

    def cuDeviceGet(self, pointer, place):
        pointer._obj.value = place
        return 0

    def cuDeviceGetName(self, text, size, device):
        text.value = self.devices[device.value][0].encode()
        return 0

    def cuDeviceGetAttribute(self, pointer, attribute, device):
        pointer._obj.value = self.devices[device.value][1][attribute - 75]
        return 0

    def cuDeviceTotalMem_v2(self, pointer, device):
        pointer._obj.value = 80 * 2**30
        return 0


@pytest.fixture
def gpu_findings(monkeypatch):
    """gpu_findings(library, {package: version}) -> the findings about the GPU and CuPy"""
    monkeypatch.setattr(gpu, "_driver_name", lambda: "")
    monkeypatch.setattr(gpu, "_hint", lambda: "")

    def find(library, installed=None, failure=""):
        monkeypatch.setattr(gpu, "load_driver", lambda: library)
        monkeypatch.setattr(gpu, "installed_cupy", lambda: installed or {})
        monkeypatch.setattr(gpu, "try_cupy", lambda: failure)
        return gpu.driver_and_cupy()

    return find


@pytest.mark.parametrize("version, capability, line", [
    (13000, (9, 0), 'pip install "tinyres[cuda13]"'),
    (13010, (7, 5), 'pip install "tinyres[cuda13]"'),
    (14000, (10, 0), 'pip install "tinyres[cuda13]"'),
    (13000, (7, 0), 'pip install "tinyres[cuda12]"'),  # CUDA 13 does not compile for Volta
    (12090, (9, 0), 'pip install "tinyres[cuda12]"'),
    (12000, (6, 1), 'pip install "tinyres[cuda12]"'),
])
def test_the_install_line_fits_the_driver(gpu_findings, version, capability, line):
    found = gpu_findings(FakeDriver(version, (("A", (9, 0)), ("B", capability))))
    assert [finding.name for finding in found] == ["GPU", "CuPy"]
    assert (found[0].verdict, found[1].verdict, found[1].fix) == ("ok", "note", line)
    dotted = f"{version // 1000}.{version % 1000 // 10}"
    assert found[0].value == f"A (9.0, 80 GiB), B ({capability[0]}.{capability[1]}, 80 GiB); driver for CUDA {dotted}"
    assert found[0].facts["driver_cuda"] == (version // 1000, version % 1000 // 10)


def test_an_old_driver_is_to_be_updated(gpu_findings):
    found, = gpu_findings(FakeDriver(11040))
    assert found.verdict == "note" and "driver for CUDA 11.4, which is too old for CuPy 14: update it" in found.value
    assert "525" in found.fix and "pip" not in found.fix


@pytest.mark.parametrize("library, words", [
    (FakeDriver(version_status=34), "a driver's library, but libcuda is the stub of a CUDA toolkit"),
    (FakeDriver(version=0), "a driver's library, but CUDA error 0"),
    (FakeDriver(init_status=803), "a driver for CUDA 12.4, but the driver's library and its kernel module are of"),
    (FakeDriver(init_status=4711), "but CUDA error 4711"),
    (FakeDriver(devices=()), "but no device is visible (CUDA error 100)"),
    (None, 'no NVIDIA driver; everything works on the processor. A GPU would need an NVIDIA card, its driver for CUDA '
           '12 or newer, and then pip install "tinyres[cuda12]"'),
])
def test_without_a_usable_gpu_everything_works_on_the_processor(gpu_findings, library, words):
    found, = gpu_findings(library)
    assert found.verdict == "note" and words in found.value and "everything works on the processor" in found.value
    _, cupy = gpu_findings(library, {"cupy-cuda12x": "14.0.1"}, "not to be tried")
    assert (cupy.verdict, cupy.value) == ("note", "cupy-cuda12x 14.0.1, not used without a driver and a device")


@pytest.mark.parametrize("version, installed, failure, verdict, words, fix", [
    (12040, {"cupy-cuda12x": "14.0.1"}, "", "ok", "cupy-cuda12x 14.0.1 works", ""),
    (12040, {"cupy-cuda13x": "14.0.1"}, "too old", "problem", "cupy-cuda13x 14.0.1 cannot be used: too old",
     'pip uninstall cupy-cuda13x && pip install "tinyres[cuda12]"'),
    (13000, {"cupy-cuda13x": "14.0.1"}, "no nvrtc", "problem", "no nvrtc",
     'pip install --force-reinstall "tinyres[cuda13]"'),
    (12040, {"cupy-cuda13x": "14.0", "cupy-cuda12x": "14.0"}, "", "problem", "only one of them may be there",
     'pip uninstall cupy-cuda12x cupy-cuda13x && pip install "tinyres[cuda12]"'),
])
def test_an_installed_cupy_is_tried(gpu_findings, version, installed, failure, verdict, words, fix):
    _, found = gpu_findings(FakeDriver(version), installed, failure)
    assert (found.verdict, found.fix) == (verdict, fix) and words in found.value


@pytest.mark.parametrize("source, failure", [
    ("from numpy import *\n__version__ = '14.0'", ""),
    ("from numpy import *\n__version__ = '14.0'\ndef arange(*args, **options): return ones(8, float32)",
     "it computes 8.0 and 64.0, expected 140 and 784"),
    ("raise ImportError('libnvrtc.so.12: cannot open shared object file')",
     "ImportError: libnvrtc.so.12: cannot open shared object file"),
    ("import os\nos._exit(11)", "it ended with status 11"),
])
def test_cupy_is_tried_in_a_process_of_its_own(monkeypatch, tmp_path, source, failure):
    (tmp_path / "cupy.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert gpu.try_cupy() == failure


def test_packages_of_cupy_are_found(monkeypatch, tmp_path):
    for name in ("cupy_cuda12x-14.0.1", "cupy_xarray-1.0", "numpy-2.1.2"):
        folder = tmp_path / f"{name}.dist-info"
        folder.mkdir()
        package, _, version = name.partition("-")
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert gpu.installed_cupy() == {"cupy-cuda12x": "14.0.1"}


def test_the_drivers_library_is_looked_for_where_wsl_has_it(monkeypatch):
    asked = []

    def load(name):
        asked.append(name)
        if name != "/usr/lib/wsl/lib/libcuda.so.1":
            raise OSError("not found")
        return FakeDriver()

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(gpu.platform, "system", lambda: "Linux")
    assert isinstance(gpu.load_driver(), FakeDriver) and asked[0] == "libcuda.so.1"
    monkeypatch.setattr(gpu.platform, "system", lambda: "Darwin")
    assert gpu.load_driver() is None
    assert gpu.ask(FakeDriver(13020)) == Driver((13, 2), (("H100", (9, 0), 80 * 2**30),))


# --- the installation -------------------------------------------------------------------------------------------------


def test_requirements_are_compared_with_what_is_installed(monkeypatch):
    versions = {"numpy": "2.0.9", "typer": "0.12", "onnx": "1.0", "rich": "9.1"}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    wanted = ["numpy>=2.1.2", "typer", "rich>=13", "pooch", 'onnx; extra == "onnx"',
              'cupy-cuda12x[ctk]<15,>=14.0; extra == "cuda12"', "ml_dtypes; extra == 'cuda12'"]
    bad, extras = doctor.judge_requirements(wanted)
    assert bad == {"numpy>=2.1.2": "numpy is 2.0.9, older than 2.1.2", "rich>=13": "rich is 9.1, older than 13",
                   "pooch": "pooch is missing"}
    assert extras == {"onnx": [], "cuda12": ["cupy-cuda12x", "ml_dtypes"]}
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    found, = doctor.packages()
    assert (found.verdict, found.fix) == ("problem", 'pip install "numpy>=2.1.2" "rich>=13" "pooch"')
    versions |= {"numpy": "2.10.0rc1", "rich": "13", "pooch": "1.8"}
    found = doctor.packages()
    assert [finding.verdict for finding in found] == ["ok", "ok"]
    assert found[1].value == 'installed: onnx; others by pip install "tinyres[NAME]": cuda12'


def test_a_bare_checkout_is_told(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert [(found.verdict, found.fix) for found in doctor.packages()] == [("note", "pip install -e .")]


def test_numba_that_does_not_work_is_told(monkeypatch):
    import numba

    assert doctor.numba()[0].verdict == "ok"
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert doctor.numba()[0].fix == "unset NUMBA_CPU_NAME"
    monkeypatch.delenv("NUMBA_CPU_NAME")
    for njit, words in ((lambda function: lambda number: 3, "1 + 1 gives 3"), (lambda function: 1 / 0, "ZeroDivision")):
        monkeypatch.setattr(numba, "njit", njit)
        assert doctor.numba()[0].verdict == "problem" and words in doctor.numba()[0].value
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert doctor.numba()[0].fix == "unset NUMBA_DISABLE_JIT"
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    assert doctor.numba()[0].verdict == "problem"


def test_the_folder_of_compiled_kernels_is_judged(tmp_path):
    assert doctor.kernel_cache()[0].verdict in ("ok", "note")
    found = doctor.cache_finding(None, [], "")
    assert found.verdict == "note" and found.fix.startswith("export NUMBA_CACHE_DIR=/")
    found = doctor.cache_finding(tmp_path, [tmp_path], "")
    assert found.verdict == "ok" and found.value.endswith("the first run compiles, or now: tinyres doctor --warm")
    (tmp_path / "a.nbc").write_bytes(bytes(2**20))
    found = doctor.cache_finding(tmp_path, [tmp_path], str(tmp_path.parent))
    assert found.verdict == "ok" and found.value == f"1 compiled kernels, 1.0 MiB, in {tmp_path}"
    assert (found.facts["kernels"], found.facts["bytes"], found.facts["path"]) == (1, 2**20, str(tmp_path))
    found = doctor.cache_finding(tmp_path, [tmp_path], str(tmp_path / "elsewhere"))
    assert found.fix == "unset NUMBA_CACHE_DIR" and "cannot be written" in found.value
    found = doctor.cache_finding(None, [tmp_path], "")
    assert found.verdict == "note" and found.value.startswith("1 compiled kernels, 1.0 MiB; no folder")


def test_a_missing_compiler_is_no_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(compilers, "system_family", lambda: "Fedora")
    monkeypatch.setattr(compilers.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    found, = compilers.cplusplus()
    assert (found.verdict, found.fix) == ("note", "sudo dnf install gcc-c++") and "no g++ and no clang++" in found.value
    for status, verdict in ((0, "ok"), (3, "note")):
        (tmp_path / "g++").write_text(f"#!/bin/sh\necho 'g++ 14.2'\nexit {status}\n")
        (tmp_path / "g++").chmod(0o755)
        found, *more = compilers.cplusplus()
        assert found.verdict == verdict and ("g++ 14.2, " in found.value) == (status == 0)
        assert [finding.name for finding in more] == ["emulator"] * (status == 0)
    (tmp_path / "g++").rename(tmp_path / "clang++")
    assert compilers.cplusplus()[0].value.startswith(f"{tmp_path / 'clang++'} does not run (status 3); only the")
    monkeypatch.setenv("CXX", "my++ -m32")
    assert compilers.cplusplus()[0].value.startswith("no my++")


def test_the_emulators_header_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(compilers.platform, "system", lambda: "Linux")
    monkeypatch.setattr(compilers.platform, "machine", lambda: "aarch64")
    works = tmp_path / "new++"
    works.write_text("#!/bin/sh\ncase \"$*\" in *-std=c++17*emulator/cuda_host.h*) exit 0;; esac\nexit 1\n")
    works.chmod(0o755)
    found = compilers.emulator(str(works))
    assert found.verdict == "ok" and 'use_kernels("emulator")' in found.value
    old = tmp_path / "old++"
    old.write_text("#!/bin/sh\nprintf 'In file included\\na.h:3: error: no such header <latch>\\n' >&2\nexit 1\n")
    old.chmod(0o755)
    found = compilers.emulator(str(old))
    assert found.verdict == "note" and "a.h:3: error: no such header <latch>; it needs g++ 11" in found.value
    old.write_text("#!/bin/sh\nexit 4\n")
    assert compilers.try_header(str(old)) == "it ended with status 4"


@pytest.mark.skipif(bool(emulator.missing()), reason=f"the header was not compiled: {emulator.missing()}")
def test_a_compiler_that_the_emulator_takes_understands_its_header():
    assert compilers.try_header(emulator.build.compiler()[0][0]) == ""


@pytest.mark.parametrize("system, processor", [("Darwin", "x86_64"), ("Windows", "AMD64"), ("Linux", "ppc64le")])
def test_the_emulator_is_for_two_processors_under_linux(monkeypatch, system, processor):
    monkeypatch.setattr(compilers.platform, "system", lambda: system)
    monkeypatch.setattr(compilers.platform, "machine", lambda: processor)
    found = compilers.emulator("never run")
    assert found.verdict == "note"
    assert f"needs Linux on aarch64 or x86_64, this is {system} on {processor}" in found.value


def test_nvrtc_is_told(monkeypatch):
    from tinyres.kernels.cuda import compile_check

    monkeypatch.setattr(compilers.platform, "system", lambda: "Linux")
    monkeypatch.setattr(compile_check, "version", lambda: "13.5")
    found, = compilers.nvrtc()
    assert (found.verdict, found.facts) == ("ok", {"version": "13.5"}) and found.value.startswith("13.5; ")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    found, = compilers.nvrtc()
    assert (found.verdict, found.fix) == ("note", 'pip install "tinyres[kernelcheck]"')
    assert found.value.startswith("not installed; ")
    broken = SimpleNamespace(nvrtcVersion=lambda: ctypes.CDLL("libnvrtc.so.13.is.not.there"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(nvrtc=broken))
    assert compilers.nvrtc()[0].value.startswith("cannot be loaded: ")
    monkeypatch.setattr(compilers.platform, "system", lambda: "Darwin")
    assert compilers.nvrtc() == []


@pytest.mark.parametrize("release, family", [
    ("ID=debian\n", "Debian"), ('ID=pop\nID_LIKE="ubuntu debian"\n', "Debian"), ('ID="rocky"\nID_LIKE="rhel centos"\n',
                                                                               "Fedora"),
    ('ID="opensuse-leap"\n', "SUSE"), ("ID=arch", "Arch"), ("ID=alpine", "Alpine"), ("ID=other", ""), ("", ""),
])
def test_the_system_decides_how_a_compiler_is_installed(monkeypatch, tmp_path, release, family):
    monkeypatch.setattr(compilers.platform, "system", lambda: "Linux")
    (tmp_path / "os-release").write_text(release)
    assert compilers.system_family(tmp_path / "os-release") == family
    assert compilers.system_family(tmp_path / "nothing") == ""


# --- data -------------------------------------------------------------------------------------------------------------


def test_data_sets_are_found_or_the_fix_fetches_them(monkeypatch, tmp_path):
    module = importlib.import_module("tinyres.data.fashion")  # the package has a function of this name too
    monkeypatch.setattr(module, "DEBIAN", tmp_path / "nothing")
    monkeypatch.setenv("TINYRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path / "nowhere"))
    found = doctor.data_sets()
    fixes = [(finding.name, finding.verdict, finding.fix) for finding in found]
    assert fixes == [("data", "note", "unset TINYRES_DATA")] + [
        (name, "note", f"tinyres data fetch {name}") for name in ("cifar10", "cifar100", "fashion")]
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"")
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path))
    found = {finding.name: finding for finding in doctor.data_sets()}
    assert found.keys() == {"cifar10", "cifar100", "fashion"}
    assert (found["cifar10"].verdict, found["cifar10"].value) == ("ok", str(tmp_path / "cifar-10-binary.tar.gz"))
    assert found["cifar100"].verdict == "note"


def test_damaged_digits_are_a_problem(monkeypatch):
    def digits(split):
        raise ValueError("not a zip file")

    assert doctor.digits()[0].value == "embedded, 1,797 images"
    monkeypatch.setattr("tinyres.data.digits", digits)
    assert doctor.digits()[0].verdict == "problem" and "not a zip file" in doctor.digits()[0].value


def test_a_read_only_data_cache_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYRES_CACHE", str(tmp_path / "new"))
    assert doctor.data_cache()[0].value == f"{tmp_path / 'new'}, made when it is needed"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TINYRES_CACHE", str(tmp_path / "file" / "x"))
    found, = doctor.data_cache()
    assert (found.verdict, found.fix) == ("note", "export TINYRES_CACHE=FOLDER")


def test_a_probe_that_fails_becomes_a_note():
    def probe():
        raise RuntimeError("two\nlines")

    assert guarded("x", probe) == [Finding("x", "could not be looked at: RuntimeError: two lines", "note")]
