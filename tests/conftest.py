"""What all tests share: how hypothesis searches, and PyTorch to compare with where it is installed."""

import importlib
import os
import shlex

import hypothesis
import pytest

# No deadline: the first call of a kernel compiles it. In CI the same examples each time, so that a failure repeats.
hypothesis.settings.register_profile("here", deadline=None, max_examples=25)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True)
# For --hypothesis-profile=...: a long search; and one that stops at the first failure, to show only that there is one.
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500)
hypothesis.settings.register_profile("mutation", deadline=None, max_examples=25, derandomize=True, database=None,
                                     phases=[hypothesis.Phase.generate])
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(scope="session")
def torch():
    """PyTorch on one thread. Where it is missing, each test that asks for it is listed as skipped."""
    try:
        module = importlib.import_module("torch")
    except ModuleNotFoundError:
        pytest.skip("PyTorch is not installed, so nothing was compared with it: pip install torch")
    module.set_num_threads(1)
    return module


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
