"""What all tests share: how hypothesis searches, and PyTorch to compare with where it is installed."""

import importlib
import os

import hypothesis
import pytest

# No deadline: the first call of a kernel compiles it. In CI the same examples each time, so that a red run can be repeated.
hypothesis.settings.register_profile("here", deadline=None, max_examples=25)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True)
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
