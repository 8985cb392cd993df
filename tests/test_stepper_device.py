"""The recorder on arrays of a GPU, played by the stand-in for CuPy: the same numbers as on the processor."""

import numpy as np
import pytest
import standin

import tinyres as tr
from tinyres import models
from tinyres.stepper import step


@pytest.fixture(autouse=True)
def kernels_of_the_reference():
    with standin.installed(), tr.use_kernels("reference"):
        yield


def recorded(device, dtype="float64"):
    tr.manual_seed(0)
    model = models.resnet8()
    for p in model.parameters():
        p.data = p.data.astype(dtype)
    for b in model.buffers():
        b.data = b.data.astype(dtype) if b.data.dtype.kind == "f" else b.data
    model.to(device)
    x = tr.tensor(np.random.default_rng(0).standard_normal((2, 3, 8, 8)), dtype=dtype, device=device)
    y = tr.tensor(np.arange(2), device=device)
    return model, step(lambda: tr.cross_entropy(model(x), y))


def test_a_recording_on_the_device_equals_that_on_the_processor():
    (_, ours), (_, theirs) = recorded("cpu"), recorded("cuda")
    assert theirs.trace.backward == ours.trace.backward and theirs.trace.block_steps == ours.trace.block_steps
    assert theirs.trace.loss == pytest.approx(ours.trace.loss, rel=1e-12)
    for a, b in zip(ours.trace.nodes, theirs.trace.nodes, strict=True):
        assert (a.op, a.shape, [k.bytes for k in a.kept]) == (b.op, b.shape, [k.bytes for k in b.kept])
        for one, other in ((a.value, b.value), (a.gradient, b.gradient)):
            assert (one is None) == (other is None)
            if one is not None:
                assert other.norm == pytest.approx(one.norm, rel=1e-9, abs=1e-12)
        if a.fork is not None and a.fork.identity_share is not None:
            assert b.fork.identity_share == pytest.approx(a.fork.identity_share, rel=1e-9)
    assert all(check.ok for node in theirs.trace.nodes for check in node.checks)


def test_a_check_of_the_loss_runs_there():
    _, stepper = recorded("cuda")
    for id in stepper.trace.block_steps[:6]:
        assert stepper.check(stepper.trace.groups[id].output).ok
