"""Whole networks on a GPU: they compute what they do on the processor, again and again the same, in memory that stays
flat, and beside PyTorch on the same card.

Everything here needs a GPU. That it runs at all can be seen without one: `python tests/gpu_rehearsal.py pytest -m gpu
tests/test_gpu.py` takes the strict stand-in for CuPy instead.
"""

import importlib
import json

import numpy as np
import pytest
from differences import distance, upstreams
from test_cuda_library import CASES, NETWORKS, OPTIMIZERS, SETS, difference, everything, network, train

import tinyres as tr
from tinyres import models, optim
from tinyres.analysis import parity
from tinyres.kernels import layout, use_kernels

pytestmark = pytest.mark.gpu

EXACT = 1e-9  # in float64, relative
IMAGES = (16, 3, 32, 32)
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}


@pytest.fixture
def cupy():
    return importlib.import_module("cupy")


@pytest.fixture
def cuda_torch(torch):
    if not torch.cuda.is_available():
        pytest.skip(f"PyTorch {torch.__version__} finds no GPU")
    return torch


def resnet20(dtype, device):
    return parity.network("resnet20", {"option": "B"}, 1).astype(dtype).to(device)


def one_batch(dtype, device, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal(IMAGES).astype(dtype)
    return tr.tensor(images, device=device), tr.tensor(rng.integers(0, 10, IMAGES[0]), device=device)


def steps(model, count, dtype, device, kernel_set):
    """The losses of so many steps, and the state after them."""
    optimizer, (x, y), losses = optim.SGD(model.parameters(), **SGD), one_batch(dtype, device), []
    with use_kernels(kernel_set):
        for _ in range(count):
            optimizer.zero_grad()
            losses.append(tr.cross_entropy(model(x), y))
            losses[-1].backward()
            optimizer.step()
    gradients = {f"gradient of {name}": p.grad.numpy() for name, p in model.named_parameters()}
    return [loss.item() for loss in losses], {**model.state_dict(), **gradients}


# ---- as on the processor ----


@pytest.mark.parametrize("row, kernel_set", CASES)
def test_op(row, kernel_set):
    """Forward, backward, and backward of the backward pass, in float64."""
    arrays = row.make()
    wanted = row.differentiable(arrays)
    upstream = upstreams(row, arrays) if wanted else []
    with use_kernels("reference"):
        expected = everything(row, arrays, wanted, upstream, "cpu")
    with use_kernels(kernel_set):
        found = everything(row, arrays, wanted, upstream, "cuda")
    for host, t in zip(expected, found, strict=True):
        assert t.device == "cuda" and t.dtype == host.dtype and t.shape == host.shape
        assert distance(t.numpy(), host.numpy()) < 1e-11


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("rule", OPTIMIZERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_as_on_the_processor(name, rule, kernel_set):
    found = {}
    for device, chosen in (("cpu", "fast"), ("cuda", kernel_set)):
        model = network(name, device)
        with use_kernels(chosen):
            losses = train(model, OPTIMIZERS[rule](model.parameters()), device)
        found[device] = losses, model.state_dict()
    np.testing.assert_allclose(found["cuda"][0], found["cpu"][0], rtol=EXACT)
    assert difference(found["cuda"][1], found["cpu"][1]) < (EXACT if rule == "sgd" else 1e-6)


@pytest.mark.parametrize("kernel_set", SETS)
def test_steps_of_resnet20_in_float64_equal_those_of_the_fast_kernels(kernel_set):
    wanted, state = steps(resnet20("float64", "cpu"), 3, "float64", "cpu", "fast")
    losses, found = steps(resnet20("float64", "cuda"), 3, "float64", "cuda", kernel_set)
    np.testing.assert_allclose(losses, wanted, rtol=EXACT)
    assert wanted[0] != wanted[-1] and difference(found, state) < EXACT


@pytest.mark.parametrize("kernel_set", SETS)
def test_float32_is_as_near_to_float64_as_pytorch_is(torch, kernel_set):
    """The whole gradient's distance from that in float64 on the processor, root mean square of three draws, is at most
    twice that of PyTorch there: the proof's bound."""
    squares = np.zeros(2)
    for seed in range(3):
        drawn = parity.pair("resnet20", {"option": "B"}, IMAGES, "float32", seed)
        theirs = drawn.theirs.to(memory_format=torch.channels_last)
        images = torch.tensor(drawn.images).to(memory_format=torch.channels_last)
        other = parity.their_pass(theirs, images, drawn.labels)[2]
        with use_kernels("fast"):
            exact = gradient(parity.our_pass(drawn.ours.astype("float64"), drawn.images.astype("float64"),
                                             drawn.labels)[2])
        ours = drawn.ours.astype("float32").to("cuda")
        with use_kernels(kernel_set):
            mine = parity.our_pass(ours, tr.tensor(drawn.images, device="cuda"), drawn.labels)[2]
        squares += [parity.distance(gradient(g), exact) ** 2 for g in (mine, other)]
    mine, pytorchs = np.sqrt(squares / 3)
    print(f"\n{kernel_set}: ours {mine:.1e}, PyTorch's {pytorchs:.1e}, ratio {mine / pytorchs:.2f}")
    assert 1e-8 < mine <= 2 * pytorchs


def gradient(named):
    """The gradients of all parameters in one array."""
    return np.concatenate([g.ravel().astype(np.float64) for name, g in named.items() if name != "images"])


@pytest.mark.parametrize("kernel_set", SETS)
def test_odd_batches_and_images(kernel_set):
    """One image in evaluation; sizes that nothing divides; the stem and pooling for large images."""
    for build, shape in ((lambda: models.resnet8(), (1, 3, 33, 31)), (lambda: models.resnet18(), (3, 3, 65, 67))):
        tr.manual_seed(2)
        model = build().astype("float64")
        x = np.random.default_rng(0).standard_normal(shape)
        with use_kernels("fast"):
            model.train()(tr.tensor(np.concatenate([x, -x])))
            expected = model.eval()(tr.tensor(x)).numpy()
        with use_kernels(kernel_set):
            found = model.to("cuda")(tr.tensor(x, device="cuda")).numpy()
        assert distance(found, expected) < EXACT


# ---- again and again ----


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel_set", ["fast", "im2col"])
def test_the_same_steps_give_the_same_bits(kernel_set, dtype):
    runs = [steps(resnet20(dtype, "cuda"), 5, dtype, "cuda", kernel_set) for _ in range(3)]
    for losses, state in runs[1:]:
        assert losses == runs[0][0]
        for name, array in state.items():
            np.testing.assert_array_equal(array, runs[0][1][name], err_msg=name)


@pytest.mark.parametrize("kernel_set", SETS)
def test_memory_is_flat_over_100_steps(cupy, kernel_set):
    model, pool = resnet20("float32", "cuda"), cupy.get_default_memory_pool()
    optimizer, (x, y) = optim.SGD(model.parameters(), **SGD), one_batch("float32", "cuda")
    held = []
    with use_kernels(kernel_set):
        for _ in range(120):
            optimizer.zero_grad()
            tr.cross_entropy(model(x), y).backward()
            optimizer.step()
            held.append((pool.used_bytes(), pool.total_bytes()))
    assert len(set(held[20:])) == 1, sorted(set(held[20:]))


@pytest.mark.parametrize("kernel_set", SETS)
def test_a_step_rearranges_no_image(kernel_set):
    model, (x, y) = resnet20("float32", "cuda"), one_batch("float32", "cuda")
    for _ in range(2):
        with use_kernels(kernel_set), layout.count_copies() as counted:
            tr.cross_entropy(model(x), y).backward()
        assert counted.copies == 0


# ---- beside PyTorch ----


def test_arrays_are_handed_over_without_a_copy(cuda_torch, cupy):
    theirs = cuda_torch.arange(24.0, device="cuda").reshape(4, 6)
    ours = tr.from_dlpack(theirs)
    assert ours.device == "cuda" and ours.data.data.ptr == theirs.data_ptr() and ours.tolist() == theirs.tolist()
    images = tr.randn(2, 3, 4, 5, device="cuda")
    back = cuda_torch.from_dlpack(images)
    assert back.data_ptr() == images.data.data.ptr and back.is_contiguous(memory_format=cuda_torch.channels_last)
    back.mul_(2)
    cuda_torch.cuda.synchronize()
    np.testing.assert_array_equal(images.numpy(), back.cpu().numpy())


@pytest.mark.parametrize("kernel_set", SETS)
def test_a_step_beside_pytorch_on_the_same_card(cuda_torch, kernel_set):
    drawn = parity.pair("resnet20", {"option": "B"}, IMAGES, "float64")
    theirs, x = drawn.theirs.to("cuda"), cuda_torch.tensor(drawn.images, device="cuda")
    loss = cuda_torch.nn.functional.cross_entropy(theirs(x), cuda_torch.tensor(drawn.labels, device="cuda"))
    loss.backward()
    wanted = {name: p.grad.cpu().numpy() for name, p in theirs.named_parameters()}
    with use_kernels(kernel_set):
        _, value, found = parity.our_pass(drawn.ours.to("cuda"), tr.tensor(drawn.images, device="cuda"), drawn.labels)
    assert abs(value - loss.item()) < EXACT
    assert parity.largest({name: found[name] for name in wanted}, wanted) < EXACT


# ---- the commands ----


def test_training_from_the_command_line(tinyres_command):
    line = "train --device cuda --model resnet8 --iterations 4 --batch 16 --json"
    lines = []
    for out in ("one", "two"):
        status, text, err = tinyres_command(f"{line} --out {out}")
        assert status == 0, err
        found = json.loads(text.splitlines()[-1])
        lines.append((found["loss"], found["correct"], found["iterations"]))
    assert lines[0] == lines[1] and lines[0][2] == 4


def test_the_benchmark_of_a_step(tinyres_command):
    status, text, err = tinyres_command("bench step --device cuda --model resnet8 --batch 8 --rounds 2 --json")
    assert status == 0, err
    found = json.loads(text.splitlines()[-1])
    assert found["left_out"] == {} and {"ours", "as_trained", "im2col", "reference"} <= set(found["sides"])
    assert all(side["median_ms"] > 0 and side["peak_memory"] > 0 for side in found["sides"].values())
    losses = [side["early_loss"] for side in found["sides"].values()]
    assert max(losses) - min(losses) < 1e-3 and found["limits"]["copy_peak_gbs"] > 1
