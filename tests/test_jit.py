"""The cache of machine code, wherever it lies and whatever is wrong with it; and what is told of compilations."""

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest

from tinyres import models, optim, train
from tinyres.analysis import warm
from tinyres.kernels.cpu import code_cache, compile_line, jit

ROOT = Path(__file__).resolve().parents[1]
OTHER = "from tinyres.kernels.cpu.jit import inlined\n\n@inlined\ndef triple(x):\n    return 3 * x\n"
TINY = "from tinyres.kernels.cpu.jit import compiled\n{}\n\n@compiled\ndef kernel(x):\n    return triple(x) + 1\n"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """tiny.kernel() is a kernel of a folder of its own, as a new process has it: not in memory, maybe in the cache."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "code_cache.py").write_text("")
    (source / "test_jit_other.py").write_text(OTHER)
    (source / "test_jit_tiny.py").write_text(TINY.format("from test_jit_other import triple"))
    monkeypatch.setattr(code_cache, "SOURCE", source)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(jit, "KERNELS", [])
    for name in ("test_jit_other", "test_jit_tiny"):
        monkeypatch.setitem(sys.modules, name, None)

    def forget():
        code_cache.folder.cache_clear()
        code_cache.source_stamp.cache_clear()

    def kernel():
        forget()
        for name in ("test_jit_other", "test_jit_tiny"):
            module = load(source / f"{name}.py")
        return module.kernel

    def call(value=2):
        """(value, compiled, loaded)"""
        one = kernel()
        return one(value), sum(one.stats.cache_misses.values()), sum(one.stats.cache_hits.values())

    yield SimpleNamespace(source=source, kernel=kernel, call=call, home=tmp_path / "home")
    forget()


def files(folder):
    return sorted(folder.rglob("*.nbc"))


# --- when code is taken from the cache --------------------------------------------------------------------------------


def test_code_is_compiled_once_for_each_type(tiny):
    assert [tiny.call(), tiny.call()] == [(7, 1, 0), (7, 0, 1)]
    assert [tiny.call(2.0), tiny.call(2.0)] == [(7.0, 1, 0), (7.0, 0, 1)]
    assert len(files(tiny.source / "__pycache__")) == 2
    tiny.kernel()._cache.flush()
    assert tiny.call() == (7, 1, 0)


def test_an_edit_of_any_file_makes_all_code_stale_and_old_code_does_not_pile_up(tiny):
    other = tiny.source / "test_jit_other.py"
    for factor in range(4, 11):
        other.write_text(OTHER.replace("3", str(factor)))
        assert tiny.call() == (2 * factor + 1, 1, 0)
    assert len(list((tiny.source / "__pycache__").iterdir())) == code_cache.KEPT
    for path in (tiny.source / "__pycache__").iterdir():
        os.utime(path, (0, 0))
    for factor in (8, 11, 12):
        other.write_text(OTHER.replace("3", str(factor)))
        tiny.call()
        assert code_cache.folder().stat().st_mtime > 0, "what is used now is younger than what is not"
    other.write_text(OTHER.replace("3", "8"))
    assert tiny.call() == (17, 0, 1), "the last few are kept, for one who goes back to them"


def test_numbas_version_and_the_processor_are_part_of_the_key(tiny, monkeypatch):
    tiny.call()
    with monkeypatch.context() as patch:
        patch.setattr(numba, "__version__", "0.0.1")
        assert tiny.call() == (7, 1, 0)
    with monkeypatch.context() as patch:
        patch.setattr(code_cache, "processor", lambda: ("other", "+avx512f"))
        assert [tiny.call(), tiny.call()] == [(7, 1, 0), (7, 0, 1)]
    assert tiny.call() == (7, 0, 1), "two machines with one home folder do not push out each other's code"


def unseen(content):
    """A bit changed where nothing but the checksum can see it: in a byte of the object file's header that is unused."""
    place = content.index(b"\x7fELF") + 12
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("spoil", [
    lambda content: b"", lambda content: content[: len(content) // 2], lambda content: bytes(len(content)),
    pytest.param(unseen, marks=pytest.mark.skipif(sys.platform != "linux", reason="object files look otherwise here")),
], ids=["empty", "cut short", "zeros", "one bit"])
def test_a_damaged_file_is_not_run_but_replaced(tiny, spoil):
    tiny.call()
    path, = files(tiny.source)
    path.write_bytes(spoil(path.read_bytes()))
    assert [tiny.call(), tiny.call()] == [(7, 1, 0), (7, 0, 1)]


def test_a_file_under_anothers_name_is_not_run(tiny):
    tiny.call(2)
    whole, = files(tiny.source)
    content = whole.read_bytes()
    tiny.call(2.0)
    for path in files(tiny.source):
        path.write_bytes(content)
    assert tiny.call(2.5) == (8.5, 1, 0)


# --- where it lies ----------------------------------------------------------------------------------------------------


def test_beside_a_read_only_source_the_users_cache_folder_is_used(tiny):
    (tiny.source / "__pycache__").write_text("a file, so that no folder can be made, not even by root")
    assert [tiny.call(), tiny.call()] == [(7, 1, 0), (7, 0, 1)]
    assert len(files(tiny.home)) == 1 and code_cache.folder().is_relative_to(tiny.home)


def test_numbas_variable_decides(tiny, monkeypatch, tmp_path):
    """An empty folder is an empty cache, though there is code beside the source."""
    tiny.call()
    there = files(tiny.source)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "asked"))
    assert [tiny.call(), tiny.call()] == [(7, 1, 0), (7, 0, 1)]
    assert len(files(tmp_path / "asked")) == 1 and files(tiny.source) == there


def test_where_nothing_can_be_written_kernels_are_compiled_in_memory(tiny, monkeypatch):
    (tiny.source / "__pycache__").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/x")
    assert [tiny.call(), tiny.call()] == [(7, 1, 0), (7, 1, 0)]
    assert code_cache.folder() is None and tiny.kernel().stats.cache_path is None
    tiny.kernel()._cache.flush()


def test_what_an_administrator_compiled_is_used_where_nothing_can_be_written(tiny, monkeypatch):
    tiny.call()
    monkeypatch.setattr(code_cache.caching.InTreeCacheLocator, "from_function", lambda *arguments: None)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/x")
    assert tiny.call() == (7, 0, 1) and code_cache.folder() is None
    assert tiny.call(2.0) == (7.0, 1, 0)


@pytest.mark.parametrize("error", [OSError("No space left on device"), PermissionError("read-only by now")])
def test_a_file_that_cannot_be_written_stops_nothing(tiny, monkeypatch, error):
    def write_bytes(path, content):
        raise error

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    assert tiny.call() == (7, 1, 0) and files(tiny.source) == []


def test_a_folder_that_is_removed_meanwhile_is_made_again(tiny):
    kernel = tiny.kernel()
    shutil.rmtree(code_cache.folder())
    assert kernel(2) == 7 and len(files(tiny.source)) == 1


SCRIPT = """
import json, sys
from pathlib import Path
from tinyres.kernels.cpu import code_cache, jit
sys.path.insert(0, "copied")
code_cache.SOURCE = Path("copied").absolute()
from test_jit_tiny import kernel
print(json.dumps([kernel(2), *jit.counts(), str(code_cache.folder())]))
"""


def test_processes_that_compile_at_the_same_time_and_without_a_home(tiny, tmp_path):
    shutil.copytree(tiny.source, tmp_path / "copied")
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": "/dev/null/x", "PYTHONDONTWRITEBYTECODE": "1"}

    def start():
        return subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, text=True,
                                stdout=subprocess.PIPE)

    at_once = [start() for _ in range(3)]
    found = [json.loads(process.communicate(timeout=120)[0]) for process in at_once]
    assert [one[0] for one in found] == [7, 7, 7]
    folder = Path(found[0][3])
    assert [path.suffix for path in folder.iterdir()] == [".nbc"], "one file, and nothing half written"
    assert json.loads(start().communicate(timeout=120)[0])[:3] == [7, 0, 1]
    shutil.rmtree(folder.parent)
    folder.parent.write_text("")
    assert json.loads(start().communicate(timeout=120)[0]) == [7, 1, 0, "None"]


# --- what is told of compilations -------------------------------------------------------------------------------------


def test_a_listener_hears_of_kernels_that_are_compiled_and_not_of_those_in_the_cache(tiny):
    told = []
    with jit.told_to(lambda name, done: told.append((name, done))):
        tiny.call()
        tiny.call()
    (name, before), (end, after) = told
    assert (name, end, after) == ("kernel", None, before + 1)
    with jit.told_to(jit.silent):
        tiny.call(2.0)
    assert len(told) == 2 and isinstance(jit._compilations.listener, compile_line.CompileLine)


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def test_a_line_on_a_terminal_names_the_kernel_and_vanishes(monkeypatch):
    line, stream = compile_line.CompileLine(), Stream(True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "80")
    line("correlate", 3)
    assert "first run only: 3 done" in stream.getvalue() and stream.getvalue().endswith("now correlate")
    monkeypatch.setenv("COLUMNS", "40")
    line("correlate", 4)
    assert len(stream.getvalue().rpartition("\x1b[K")[2]) == 39
    line(None, 5)
    assert stream.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize("off_terminal, lines", [(False, 0), (True, 1)])
def test_off_a_terminal_there_is_one_line_if_it_is_wanted(monkeypatch, off_terminal, lines):
    line, stream = compile_line.CompileLine(off_terminal), Stream(False)
    monkeypatch.setattr(sys, "stderr", stream)
    for name in ("correlate", "stats", None):
        line(name, 0)
    assert stream.getvalue().count("compiling the kernels, first run only") == lines == stream.getvalue().count("\n")


def test_a_stream_that_is_gone_is_no_reason_to_fail(monkeypatch):
    closed = Stream(True)
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stderr", stream)
        compile_line.CompileLine()("correlate", 0)


@pytest.mark.parametrize("options, told", [("", True), ("-q", False), ("--json", False)])
def test_train_tells_of_compilations_unless_it_is_to_be_quiet(tinyres_command, tiny, monkeypatch, options, told):
    original = train.train_step

    def step(*arguments):
        tiny.kernel()(2)
        return original(*arguments)

    monkeypatch.setattr(train, "train_step", step)
    status, _, stderr = tinyres_command(f"train --iterations 1 --kernels im2col {options}")
    assert status == 0 and ("compiling the kernels" in stderr) == told


# --- compiling ahead --------------------------------------------------------------------------------------------------


def test_after_doctor_warm_training_compiles_nothing(tinyres_command):
    """Once by the command; then ResNet-20 as on CIFAR-10, sharing its work among threads, and by the command too."""
    status, out, err = tinyres_command("doctor --warm --json")
    found = json.loads(out.splitlines()[-1])
    assert status == 0 and err == "" and found["folder"] == str(code_cache.folder())
    assert found.keys() == {"compiled", "loaded", "seconds", "folder"}
    before = jit.counts()[0]
    model = models.build("resnet20")
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    images = np.random.default_rng(0).random((64, 3, 32, 32), np.float32)
    train.train_step(model, optimizer, images, np.arange(64) % 10)
    assert tinyres_command("train --model resnet20 --iterations 2 -q")[0] == 0
    assert jit.counts()[0] == before


def test_doctor_warm_tells_each_kernel_and_the_folder(tinyres_command, tiny, monkeypatch):
    monkeypatch.setattr(warm, "_networks", lambda: [(None, (1, 1, 1))])
    monkeypatch.setattr(warm, "_use", lambda network, images: tiny.kernel()(2))
    status, out, err = tinyres_command("doctor --warm")
    assert status == 0 and "done; compiling kernel" in err
    assert out.startswith("1 kernels compiled, 0 taken from the cache, in ") and str(code_cache.folder()) in out
    status, out, err = tinyres_command("doctor --warm")
    assert err == "" and out.startswith("0 kernels compiled, 1 taken from the cache, in ")
