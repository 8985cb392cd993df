"""What all tests share: how hypothesis searches, and PyTorch to compare with where it is installed."""

import importlib
import os
import re
import shlex
from pathlib import Path

import pytest

try:
    import hypothesis
except ImportError:  # a bare machine with a GPU: tests that draw their cases are left out, and the first lines say so
    hypothesis = None

if hypothesis is not None:
    # No deadline: the first call of a kernel compiles it. In CI the same examples each time, so that a failure repeats.
    hypothesis.settings.register_profile("here", deadline=None, max_examples=25)
    hypothesis.settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True)
    # For --hypothesis-profile=...: a long search; and one that stops at the first failure, to show only that there is
    # one.
    hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500)
    hypothesis.settings.register_profile("mutation", deadline=None, max_examples=25, derandomize=True, database=None,
                                         phases=[hypothesis.Phase.generate])
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")

collect_ignore = [] if hypothesis else [path.name for path in sorted(Path(__file__).parent.glob("test_*.py"))
                                        if re.search(r"^(import|from) hypothesis", path.read_text(), re.MULTILINE)]


def pytest_report_header():
    if collect_ignore:
        return f"left out without hypothesis (pip install hypothesis): {', '.join(collect_ignore)}"


@pytest.fixture(scope="session")
def torch():
    """PyTorch on one thread. Where it is missing, each test that asks for it is listed as skipped."""
    try:
        module = importlib.import_module("torch")
    except ModuleNotFoundError:
        pytest.skip("PyTorch is not installed, so nothing was compared with it: pip install torch")
    module.set_num_threads(1)
    return module


def pytest_collection_modifyitems(items):
    """Tests marked gpu are skipped, visibly, where CuPy or a GPU is missing."""
    if any("gpu" in item.keywords for item in items) and not gpu_is_there():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a GPU and CuPy: pip install 'tinyres[cuda13]'"))


def skipped_without_emulator(item):
    """A test that would run CUDA kernels on the emulator is skipped, visibly, where that lacks a compiler or Linux."""
    try:
        return (yield)
    except RuntimeError as error:
        from tinyres.kernels.cuda import emulator

        if str(error) != emulator.missing():
            raise
        pytest.skip(str(error))


pytest_runtest_setup = pytest_runtest_call = pytest.hookimpl(wrapper=True)(skipped_without_emulator)


def gpu_is_there():
    try:
        import cupy
    except ImportError:
        return False
    return cupy.is_available()


@pytest.fixture(scope="session", autouse=True)
def cache_of_our_own(tmp_path_factory):
    """Statistics of data sets, and what is fetched, stay out of the user's cache folder."""
    os.environ["TINYRES_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def same_kernels_after_each_test():
    """A command run in this process chooses the kernel set for good; later tests would then check other kernels."""
    from tinyres import kernels

    before = kernels.current()
    yield
    kernels.use_kernels(before)


@pytest.fixture
def tinyres_command(capsys, monkeypatch, tmp_path):
    """tinyres_command("train --epochs 1") -> (exit status, stdout, stderr), in an empty folder."""
    from tinyres.cli.main import app

    monkeypatch.chdir(tmp_path)

    def call(line):
        with pytest.raises(SystemExit) as end:
            app(shlex.split(line), prog_name="tinyres")
        text = capsys.readouterr()
        return end.value.code, text.out, text.err

    return call
