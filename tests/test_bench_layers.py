"""The measuring modules of `tinyres bench`: what they count and compare, never how fast it is."""

import functools
import inspect
import json
import time

import numpy as np
import pytest

from tinyres import kernels, ops, optim
from tinyres.analysis import bench_layers, bench_limits, bench_peers, bench_profile, bench_torch, kernel_calls, naive
from tinyres.analysis.bench_layers import Convolution, Norm
from tinyres.analysis.workload import Workload
from tinyres.kernels import layout, reference
from tinyres.kernels.cpu import threads
from tinyres.kernels.cpu.simd import ROWS, WIDTH
from tinyres.tensor import Tensor

try:
    import torch
except ImportError:
    torch = None
needs_torch = pytest.mark.skipif(torch is None, reason="needs PyTorch, the oracle of this test: pip install torch")

TINY = Workload("resnet8", {"num_classes": 10, "option": "B"}, 4, 8)
PNG = b"\x89PNG"
STRIDED = Convolution((2, 3, 8, 8), (16, 3, 3, 3), (2, 2), (1, 1), (1, 1), 1)
GROUPED = Convolution((2, 8, 5, 4), (6, 4, 3, 3), (1, 2), (1, 0), (1, 1), 2)


@pytest.fixture
def short(monkeypatch):
    """The machine's limits are measured in no time."""
    monkeypatch.setattr(bench_limits, "REPEATS", 2)
    monkeypatch.setattr(bench_limits, "MEMORY_BYTES", 4096)
    monkeypatch.setattr(bench_layers, "speed", lambda count: 1e9)
    monkeypatch.setattr(bench_profile, "speed", lambda count: 1e9)


def works(run):
    calls = []
    with kernel_calls.watched(calls.append):
        run()
    return [kernel_calls.work(call) for call in calls]


# ---- watching calls ----


def test_every_kernel_is_watched_and_put_back():
    names = kernel_calls.names()
    assert {*kernel_calls.CONVOLUTIONS, "batch_norm_apply", "max_pool2d", "softmax_cross_entropy"} <= set(names)
    assert not {"use_kernels", "current", "import_module"} & set(names)
    before = {name: getattr(kernels, name) for name in names}
    with pytest.raises(ZeroDivisionError), kernel_calls.watched(lambda call: 1 / 0):
        assert all(getattr(kernels, name) is not before[name] for name in names)
        kernels.batch_norm_stats(np.zeros((2, 3), np.float32))
    assert all(getattr(kernels, name) is before[name] for name in names)


def test_a_call_is_told_with_its_arguments_by_name_its_result_and_its_time(monkeypatch):
    monkeypatch.setattr(kernel_calls.time, "perf_counter", iter([10.0, 12.5]).__next__)
    calls, x = [], np.ones((2, 3), np.float32)
    with kernel_calls.watched(calls.append):
        ones = np.ones(3, np.float32)
        y = kernels.batch_norm_apply(x, ones, shift=ones, residual=None, relu=True)
    (call,) = calls
    assert (call.name, call.seconds) == ("batch_norm_apply", 2.5)
    assert call.arguments["x"] is x and call.arguments["relu"] is True and call.result is y


def test_a_kernel_that_calls_another_is_one_call(monkeypatch):
    original = kernels.conv2d

    @functools.wraps(original)
    def outer(*args):
        kernels.batch_norm_stats(args[0])
        return original(*args)

    monkeypatch.setattr(kernels, "conv2d", outer)
    calls = []
    with kernel_calls.watched(calls.append):
        STRIDED.ours()["forward"]()
    assert [call.name for call in calls] == ["conv2d"]


# ---- counting work ----


@pytest.mark.parametrize("function", ["forward", "input gradient", "weight gradient"])
def test_work_of_a_convolution_by_hand(function):
    """x 2*3*8*8, w 16*3*3*3, y 2*16*4*4 values; each of the 512 outputs is a sum of 27 products."""
    (found,) = works(STRIDED.ours()[function])
    assert (found.flops, found.products, found.kernel) == (2 * 512 * 27, 2 * 512 * 27, "direct")
    assert found.bytes == 4 * (384 + 432 + 512)


def test_work_of_a_grouped_convolution_by_hand():
    """P = 5, Q = 1: 2*6*5*1 outputs, each a sum of 4 channels times 9 places."""
    assert works(GROUPED.ours()["forward"])[0].flops == 2 * 60 * 36


@pytest.mark.parametrize("channels, function, kernel, share", [
    (16, "forward", "direct", 1), (16, "input gradient", "Winograd, m = 4", 1 / 4),
    (32, "forward", "Winograd, m = 2", 4 / 9), (32, "weight gradient", "Winograd, m = 4", 1 / 4),
])
def test_the_kernel_of_a_convolution_and_its_products(monkeypatch, channels, function, kernel, share):
    monkeypatch.setattr(kernel_calls.conv, "tiles", lambda w_shape, *rest: (0 if w_shape[0] < 32 else 2, 4))
    layer = Convolution((1, channels, 4, 4), (channels, channels, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    (found,) = works(layer.ours()[function])
    assert found.kernel == kernel and found.flops == 2 * 16 * channels * channels * 9
    assert found.products == pytest.approx(share * found.flops)
    with kernels.use_kernels("im2col"):
        (found,) = works(layer.ours()[function])
    assert found.kernel == "im2col" and found.products == found.flops


def test_bytes_of_batch_norm_by_hand():
    x = layout.nchw(np.ones((2, 3, 3, 4), np.float32))  # 72 values
    scale, shift, third = (np.ones(4, np.float32) for _ in range(3))
    (with_residual,) = works(lambda: kernels.batch_norm_apply(x, scale, shift, x.copy(order="K"), True))
    assert (with_residual.bytes, with_residual.flops, with_residual.kernel) == (4 * (3 * 72 + 2 * 4), 0, "")
    (alone,) = works(lambda: kernels.batch_norm_apply(x, scale, shift, None, True))
    assert alone.bytes == 4 * (2 * 72 + 2 * 4)
    g = x.copy(order="K")
    (handed_on,) = works(lambda: kernels.batch_norm_input_grad(g, x, scale, shift, third, None, True))
    assert handed_on.bytes == 4 * (3 * 72 + 3 * 4)  # g, x and dx; the residual's gradient is g itself


def test_bytes_of_an_optimizers_step_by_hand():
    p, g, velocity = (np.ones((3, 5), np.float32) for _ in range(3))
    (plain,) = works(lambda: kernels.sgd([p], [g], [None], 0.1, 0.0, 0.0, False))
    (momentum,) = works(lambda: kernels.sgd([p], [g], [velocity], 0.1, 0.9, 0.0, False))
    assert (plain.bytes, momentum.bytes) == (3 * 60, 5 * 60)  # reads p and g, writes p; and velocity twice


def test_bytes_of_a_result_in_an_arguments_memory_by_hand():
    y, bias = layout.nchw(np.ones((2, 3, 3, 4), np.float32)), np.ones(4, np.float32)
    (found,) = works(lambda: kernels.add_bias(y, bias, None, True))
    assert found.bytes == 4 * (2 * 72 + 4)  # y is read and written; what is returned is y's memory


def test_work_of_an_input_gradient_that_is_added_by_hand():
    """As alone; the total is read and written."""
    _, w, g = STRIDED.arrays()
    total = layout.nchw(np.ones((2, 8, 8, 3), np.float32))
    options = (STRIDED.stride, STRIDED.padding, STRIDED.dilation, STRIDED.groups)
    (found,) = works(lambda: kernels.conv2d_input_grad_add(total, g, w, *options))
    assert (found.flops, found.bytes) == (2 * 512 * 27, 4 * (2 * 384 + 432 + 512))


def test_what_is_written_in_place_exists():
    for name, written in kernel_calls.IN_PLACE.items():
        assert set(written) <= set(inspect.signature(getattr(kernels, name)).parameters), name


# ---- the machine's limits ----


def test_multiply_adds_are_counted_and_copies_copy(monkeypatch):
    monkeypatch.setenv("TINYRES_NUM_THREADS", "3")
    monkeypatch.setattr(bench_limits, "REPEATS", 2)
    used = []
    monkeypatch.setattr(bench_limits, "_multiply_adds",
                        lambda A, B, C, repeats: used.append(repeats * len(A) // ROWS) or C.fill(bench_limits.STEPS))
    run, flops = bench_limits.multiply_adds()
    assert len(used) == threads.count() == 3 and flops == 2 * sum(used) * ROWS * WIDTH

    run, moved = bench_limits.copy(1000)
    np.testing.assert_array_equal(run(), np.arange(250))
    assert moved == 2000


def test_register_tiles_that_compute_wrongly_are_no_yardstick(monkeypatch):
    monkeypatch.setattr(bench_limits, "_multiply_adds", lambda A, B, C, repeats: C.fill(1))
    with pytest.raises(RuntimeError, match="expected 128"):
        bench_limits.multiply_adds()


# ---- layers ----


def test_the_layers_of_a_network_are_found_with_their_calls():
    found = bench_layers.layers_of(Workload("resnet20", {"num_classes": 10, "option": "B"}, 2, 16))
    convolutions = {str(layer): calls for layer, calls in found.items() if isinstance(layer, Convolution)}
    stem, *others = convolutions.items()
    assert stem == ("3x3 3->16 @ 2x16x16", {"forward": 1, "weight gradient": 1})
    three = {name: calls for name, calls in others if len(set(calls.values())) == 1 and len(calls) == 3}
    assert {name: calls["forward"] for name, calls in three.items()} == {
        "3x3 16->16 @ 2x16x16": 6, "3x3 16->32 @ 2x16x16, stride 2": 1, "3x3 32->32 @ 2x8x8": 5,
        "1x1 16->32 @ 2x16x16, stride 2": 1, "3x3 32->64 @ 2x8x8, stride 2": 1, "3x3 64->64 @ 2x4x4": 5,
        "1x1 32->64 @ 2x8x8, stride 2": 1}
    assert len(three) == len(others)
    norms = {str(layer): calls for layer, calls in found.items() if isinstance(layer, Norm)}
    assert sum(calls["forward"] for calls in norms.values()) == 21
    assert norms["batch norm + add + ReLU 16 @ 2x16x16"] == {"forward": 3, "backward": 3}
    assert norms["batch norm + ReLU 16 @ 2x16x16"]["forward"] == 4
    assert norms["batch norm 32 @ 2x8x8"]["forward"] == 1


@pytest.mark.parametrize("layer", [STRIDED, GROUPED], ids=str)
def test_a_timed_convolution_is_the_reference_and_pytorchs(layer):
    x, w, g = layer.arrays()
    options = (layer.stride, layer.padding, layer.dilation, layer.groups)
    expected = {"forward": reference.conv2d(x, w, *options),
                "input gradient": reference.conv2d_input_grad(g, w, layer.x_shape, *options),
                "weight gradient": reference.conv2d_weight_grad(x, g, layer.w_shape, *options)}
    ours = layer.ours()
    assert list(ours) == list(expected)
    theirs = layer.theirs() if torch else {}
    for function, values in expected.items():
        np.testing.assert_allclose(ours[function](), values, rtol=1e-4, atol=1e-4)
        if theirs:
            found = theirs[function]()
            found = found[["input gradient", "weight gradient"].index(function)] if function != "forward" else found
            np.testing.assert_allclose(found.numpy(), values, rtol=1e-4, atol=1e-4)


@needs_torch
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_a_timed_batch_norm_is_pytorchs(add, relu):
    layer = Norm((3, 5, 4, 2), add, relu)
    ours, theirs = layer.ours(), layer.theirs()
    for _ in range(2):  # they may be called again and again
        y, expected = ours["forward"]().numpy(), theirs["forward"]().detach().numpy()
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
        found = [gradient for gradient in ours["backward"]() if gradient is not None]
        expected = theirs["backward"]()
        assert len(found) == len(expected) == 3 + add
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("against_torch", [False, pytest.param(True, marks=needs_torch)])
def test_layers_are_measured_told_and_drawn(short, tmp_path, against_torch):
    found = bench_layers.measure(2, against_torch, 1, [TINY], (told := []).append)
    json.dumps(found, allow_nan=False)
    assert found["networks"] == ["resnet8, option B shortcuts, batch 2 of 3x8x8"] and len(told) == 1
    rows = found["rows"]
    assert len(rows) == 8 * 3 - 1 + 8 * 2  # convolutions, of which the stem has no input gradient, and batch norms
    for row in rows:
        convolution = row["function"] != "backward" and "batch norm" not in row["layer"]
        assert (row["gflops"] is not None) == (row["share_of_peak"] is not None) == convolution
        assert (row["share_of_copy"] is None) == convolution and row["ms"] > 0
        assert (row["torch_ms"] is not None) == (row["ratio"] is not None) == against_torch
    stem = rows[0]
    assert stem["gflops"] * stem["ms"] == pytest.approx(2 * (2 * 8 * 8 * 16) * 27 / 1e6)
    assert stem["share_of_peak"] == pytest.approx(stem["gflops"] / found["peak_gflops"])
    cells = bench_layers.rows(found)
    assert len(cells) == len(rows) and {len(row) for row in cells} == {len(bench_layers.COLUMNS)}
    total = sum(row["calls"] * row["ms"] for row in rows if row["gflops"] is not None)
    assert f"resnet8, all layers of a step: convolutions {total:.1f} ms" in bench_layers.summary(found)
    assert ("PyTorch" in bench_layers.summary(found)) == against_torch
    bench_layers.draw(found, tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(PNG)


# ---- the profile ----


def test_the_profiles_rows_add_up_to_the_step(short, tmp_path):
    before = kernels.conv2d
    found = bench_profile.measure(TINY, 3)
    assert kernels.conv2d is before
    json.dumps(found, allow_nan=False)
    rows = {row["op"]: row for row in found["rows"]}
    assert sum(row["ms"] for row in rows.values()) == pytest.approx(found["step_ms"])
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    outside = [row for name, row in rows.items() if name.endswith(", outside kernels")]
    assert [row["ms"] for row in found["rows"]] == sorted((row["ms"] for row in found["rows"]), reverse=True)
    assert len(outside) == len(bench_profile.PARTS)
    assert sum(row["share"] for row in outside) == pytest.approx(found["outside_kernels"])
    assert sum(row["calls"] for name, row in rows.items() if name.startswith("conv2d (")) == 9
    assert sum(row["calls"] for name, row in rows.items() if name.startswith("conv2d_input_grad")) == 8
    cells = bench_profile.rows(found)
    assert len(cells) == len(rows) + 1 and {len(row) for row in cells} == {len(bench_profile.COLUMNS)}
    assert cells[-1][:4] == ["the whole step", cells[-1][1], f"{found['step_ms']:.2f}", "100.0%"]
    assert f"{found['outside_kernels']:.1%}" in bench_profile.summary(found)
    bench_profile.draw(found, tmp_path / "profile.png")
    assert (tmp_path / "profile.png").read_bytes().startswith(PNG)


def test_the_profile_counts_the_work_and_the_roof(short, monkeypatch):
    monkeypatch.setattr(bench_profile, "_limits", lambda: (1e9, 1e8, 5e8))
    found = bench_profile.measure(TINY, 1)
    assert (found["peak_gflops"], found["copy_gbs"], found["matrix_gflops"]) == (1, 0.1, 0.5)
    images = [4 * 16 * 8 * 8] * 3 + [4 * 32 * 4 * 4] * 3 + [4 * 64 * 2 * 2] * 3  # values of each convolution's output
    taps = [3 * 9, 16 * 9, 16 * 9, 16 * 9, 32 * 9, 16, 32 * 9, 64 * 9, 32]
    flops = sum(2 * values * size for values, size in zip(images, taps, strict=True))
    rows = [row for row in found["rows"] if row["op"].startswith("conv2d (")]
    assert sum(row["gflop"] for row in rows) == pytest.approx(flops / 1e9)
    for row in found["rows"]:
        if row["megabytes"] is None:
            assert row["roof_ms"] is row["gbs"] is row["gflops"] is row["calls"] is None
        else:
            assert row["gbs"] * row["ms"] == pytest.approx(row["megabytes"])
            assert row["share_of_roof"] == pytest.approx(row["roof_ms"] / row["ms"])
            assert row["roof_ms"] >= 0.999 * max(row["megabytes"] / 0.1, 0)
            if row["gflop"] == 0:
                assert row["roof_ms"] == pytest.approx(row["megabytes"] / 0.1)


def test_time_in_a_kernel_is_the_kernels_and_time_beside_it_the_parts(short, monkeypatch):
    slow, backward = kernels.conv2d_weight_grad, Tensor.backward

    @functools.wraps(slow)
    def sleeping(*args, **options):
        time.sleep(0.02)
        return slow(*args, **options)

    def sleepy_backward(loss):
        time.sleep(0.1)
        backward(loss)

    monkeypatch.setattr(kernels, "conv2d_weight_grad", sleeping)
    monkeypatch.setattr(Tensor, "backward", sleepy_backward)
    found = bench_profile.measure(TINY, 2)
    in_kernels = sum(row["ms"] for row in found["rows"] if row["op"].startswith("conv2d_weight_grad"))
    outside = {row["op"]: row["ms"] for row in found["rows"]}["backward, outside kernels"]
    assert in_kernels >= 9 * 20 and outside >= 100
    assert found["outside_kernels"] < 1 - 9 * 20 / found["step_ms"] + 1e-9


def test_steps_that_differ_are_not_averaged(short, monkeypatch):
    monkeypatch.setattr(bench_profile, "count_work", lambda step: [])
    with pytest.raises(RuntimeError, match="different numbers of kernel calls"):
        bench_profile.measure(TINY, 1)
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        bench_profile.measure(TINY, 0)


# ---- peers ----


@pytest.mark.parametrize("model, options", [
    ("resnet8", {"num_classes": 10, "option": "B"}), ("resnet20", {"num_classes": 3, "option": "B"})])
def test_the_plain_networks_loss_and_gradients_are_the_references(model, options):
    work = Workload(model, options, 5, 12)
    ours, (x, y) = work.network().astype("float64"), work.data()
    x = x.astype(np.float64)
    with kernels.use_kernels("reference"):
        loss = ops.cross_entropy(ours(Tensor(x)), y)
        loss.backward()
    gradients = {name: p.grad.numpy() for name, p in ours.named_parameters()}

    plain, owners = naive.network({name: p.data for name, p in ours.named_parameters()})
    found, gradient = naive.cross_entropy(plain.forward(x), y)
    plain.backward(gradient)
    assert found == pytest.approx(loss.item(), rel=1e-12)
    assert owners.keys() == gradients.keys()
    for name, (layer, what) in owners.items():
        size = np.abs(gradients[name]).max()
        np.testing.assert_allclose(layer.grads[what], gradients[name], rtol=0, atol=1e-11 * size, err_msg=name)
    assert plain.layers[1].running_mean == pytest.approx(ours.bn1.running_mean.data)


def test_the_plain_networks_steps_are_ours_and_stay_float32():
    ours, (x, y) = TINY.network(), TINY.data()
    plain, owners = naive.network({name: p.data for name, p in ours.named_parameters()})
    options = bench_torch.SGD | {"lr": 0.1, "weight_decay": 0.1}
    optimizer, theirs = optim.SGD(ours.parameters(), **options), naive.SGD(owners, **options)
    for _ in range(2):
        optimizer.zero_grad()
        ops.cross_entropy(ours(Tensor(x)), y).backward()
        optimizer.step()
        plain.backward(naive.cross_entropy(plain.forward(x), y)[1])
        theirs.step()
    for name, p in ours.named_parameters():
        layer, what = owners[name]
        assert getattr(layer, what).dtype == np.float32, name
        np.testing.assert_allclose(getattr(layer, what), p.data, rtol=1e-3, atol=1e-4, err_msg=name)


def test_peers_start_alike_and_are_compared(tmp_path):
    before = kernels.current()
    found = bench_peers.measure(2, 2, "resnet8", 8)
    assert kernels.current() == before
    json.dumps(found, allow_nan=False)
    sides = found["sides"]
    assert list(sides) == ["fast", "im2col", "reference", "naive"]
    assert found["loss_difference"] == max(abs(side["loss"] - sides["fast"]["loss"]) for side in sides.values()) < 1e-2
    assert sides["fast"]["ratio"] == 1
    assert sides["naive"]["ratio"] == pytest.approx(sides["naive"]["median_ms"] / sides["fast"]["median_ms"])
    cells = bench_peers.rows(found)
    assert len(cells) == 4 and {len(row) for row in cells} == {len(bench_peers.COLUMNS)}
    assert "the last losses differ by at most" in bench_peers.summary(found)
    bench_peers.draw(found, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(PNG)


def test_each_side_runs_its_own_kernels(monkeypatch):
    used = {}
    def step():
        return used.setdefault(kernels.current(), 1.0)

    monkeypatch.setattr(bench_peers, "training_step", lambda work, model: step)
    bench_peers.measure(2, 1, "resnet8", 8, ["reference", "im2col"])
    assert list(used) == ["fast", "reference", "im2col"]


@pytest.mark.parametrize("arguments, message", [
    ({"model": "resnet18"}, "ResNet for small images, got 'resnet18': choose one of resnet8, resnet20"),
    ({"sides": ["fast", "quick"]}, "there is no side quick: choose from fast, im2col, reference, naive"),
])
def test_peers_that_do_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        bench_peers.measure(2, 1, **arguments)
