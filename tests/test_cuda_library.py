"""The whole library on device "cuda", on the strict stand-in for CuPy arrays: it computes what it does on the cpu,
waits for the device only where that is documented, and keeps arrays where they are."""

import subprocess
import sys

import numpy as np
import pytest
import standin
from differences import distance, leaves, outputs, upstreams
from op_table import ROWS

import tinyres as tr
from tinyres import models, nn, optim, weights
from tinyres.kernels import layout, use_kernels

SETS = ("reference", "im2col", "fast")


@pytest.fixture(autouse=True, scope="module")
def cupy():
    with standin.installed() as module:
        yield module


@pytest.fixture(autouse=True)
def reference_kernels():
    standin.syncs.clear()
    standin.copies.clear()
    with use_kernels("reference"):
        yield


def is_device(x):
    return isinstance(x.data, standin.ndarray)


def normal(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---- every op ----

CASES = [pytest.param(row, name, id=f"{row.id}-{name}") for row in ROWS
         for name in (SETS if row.kernels else ("reference",)) if row.name != "to"]


@pytest.mark.parametrize("row, kernel_set", CASES)
def test_op(row, kernel_set):
    """Forward, backward, and backward of the backward pass."""
    arrays = row.make()
    wanted = row.differentiable(arrays)
    upstream = upstreams(row, arrays) if wanted else []
    results = {}
    for device in ("cpu", "cuda"):
        with use_kernels("reference" if device == "cpu" else kernel_set):
            results[device] = everything(row, arrays, wanted, upstream, device)
    assert len(results["cpu"]) == len(results["cuda"])
    for host, t in zip(results["cpu"], results["cuda"], strict=True):
        assert is_device(t) and t.dtype == host.dtype and t.shape == host.shape
        assert distance(t.numpy(), host.numpy()) < 1e-12
    y = results["cuda"][0]
    assert y.ndim != 4 or not row.layout_kept or layout.is_channels_last(y.data)


def everything(row, arrays, wanted, upstream, device):
    """The outputs, the gradients, and the gradients of the gradients' sum of squares."""
    tensors = [t.to(device) for t in leaves(arrays, ())]
    for i in wanted:
        tensors[i].requires_grad_()
    found = row.run(*tensors)
    found = found if isinstance(found, tuple) else (found,)
    if not wanted:
        return list(found)
    variables = [tensors[i] for i in wanted]
    seeds = [tr.tensor(u, device=device) for u in upstream]
    first = tr.grad(outputs(found), variables, seeds, create_graph=True)
    squares = sum(((g * g).sum() for g in first if g.requires_grad), tr.zeros((), dtype="float64", device=device))
    second = tr.grad(squares, variables, allow_unused=True) if squares.requires_grad else ()
    plain = [tr.tensor(t, requires_grad=i in wanted) for i, t in enumerate(tensors)]
    for y, u in zip(outputs(row.run(*plain)), seeds, strict=True):
        y.backward(u, retain_graph=True)
    return [*found, *first, *(h for h in second if h is not None), *(plain[i].grad for i in wanted)]


REDUCTIONS = {
    **{name: lambda x, dim, name=name: getattr(tr, name)(x, dim, keepdim=True)
       for name in ("sum", "mean", "amax", "amin", "logsumexp", "var")},
    **{name: lambda x, dim, name=name: getattr(tr, name)(x, dim) for name in ("softmax", "log_softmax")},
    "max": lambda x, dim: tr.max(x, dim, keepdim=True).values,
    "gather": lambda x, dim: tr.gather(x, dim, tr.argmax(x, dim, keepdim=True)),
}


@pytest.mark.parametrize("dim", range(4))
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_images_keep_the_layout(name, dim):
    x = tr.tensor(normal(2, 3, 4, 5), device="cuda", requires_grad=True)
    host = tr.tensor(x.numpy(), requires_grad=True)
    with layout.count_copies() as counted:
        y = REDUCTIONS[name](x, dim)
        y.backward(y.detach())
    wanted = REDUCTIONS[name](host, dim)
    wanted.backward(wanted.detach())
    assert counted.copies == 0 and layout.is_channels_last(y.data) and layout.is_channels_last(x.grad.data)
    assert distance(y.numpy(), wanted.data) < 1e-12 and distance(x.grad.numpy(), host.grad.data) < 1e-12


# ---- whole networks ----

BLOCKS = models.blocks
BOTTLENECKS = models.resnet.Residual(BLOCKS.Bottleneck, models.resnet.shortcut_b)
WIDTHS = (4, 8, 12)
NETWORKS = {
    "resnet8-A": lambda: models.resnet.cifar_resnet(8, widths=WIDTHS),
    "resnet8-B": lambda: models.resnet.cifar_resnet(8, option="B", widths=WIDTHS),
    "plain8": lambda: models.resnet.cifar_plain(8, widths=WIDTHS),
    "preact8": lambda: models.preact.PreActResNet(BLOCKS.PreActBasicBlock, BLOCKS.shortcut_a, (1, 1, 1), WIDTHS, 10, 3,
                                                  True, 4),
    "bottleneck": lambda: models.resnet.ResNet(BOTTLENECKS, (1, 1), (4, 6), 10, 3, False),
    "resnet20": lambda: models.resnet20(),
    "numbers of shape ()": lambda: models.fixup_resnet(8),
    "numbers of shape (1,)": lambda: models.rezero_resnet(8),
    "shared": lambda: models.shared_conv_resnet(14),
}
OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adam": lambda p: optim.Adam(p, lr=1e-3, weight_decay=1e-3),
}


def network(name="resnet8-A", device="cpu", dtype="float64"):
    tr.manual_seed(3)
    return NETWORKS[name]().astype(dtype).to(device)


def batch(device="cpu", dtype="float64", seed=0, count=4, size=8):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((count, 3, size, size)).astype(dtype)
    return tr.tensor(images, device=device), tr.tensor(rng.integers(0, 10, count), device=device)


def train(model, optimizer, device, steps=2, dtype="float64", clip=None):
    """The losses; one batch a step, each with its gradient accumulated from two halves."""
    losses = []
    for step in range(steps):
        x, y = batch(device, dtype, step)
        optimizer.zero_grad()
        for half in (slice(0, 2), slice(2, 4)):
            loss = tr.cross_entropy(model(x[half]), y[half], label_smoothing=0.1)
            loss.backward()
            losses.append(loss)
        if clip is not None:
            optim.clip_grad_norm_(model.parameters(), clip)
            assert all(layout.is_channels_last(p.grad.data) for p in model.parameters() if p.ndim == 4)
        optimizer.step()
    return [loss.item() for loss in losses]


def difference(a, b):
    """The largest difference between two states, as a share of the largest value of each array."""
    assert a.keys() == b.keys()
    return max(distance(a[name], b[name]) for name in a)


TRAINED = [pytest.param(name, rule, kernel_set, id=f"{name}-{rule}-{kernel_set}") for kernel_set in SETS
           for name in NETWORKS for rule in OPTIMIZERS
           if (rule == "sgd" or name == "resnet8-A") and (name, kernel_set) != ("resnet20", "fast")]


@pytest.mark.parametrize("name, rule, kernel_set", TRAINED)  # resnet20 by the kernels: test_emulator_networks.py
def test_networks_train_as_on_the_cpu(name, rule, kernel_set):
    states, losses = {}, {}
    for device in ("cpu", "cuda"):
        model = network(name, device)
        optimizer = OPTIMIZERS[rule](model.parameters())
        with use_kernels("reference" if device == "cpu" else kernel_set):
            losses[device] = train(model, optimizer, device)
        states[device] = model.state_dict()
        assert all((p.device, p.grad.device) == (device, device) for p in model.parameters())
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-9)
    assert losses["cpu"][0] != losses["cpu"][-1]
    assert difference(states["cuda"], states["cpu"]) < 1e-9


@pytest.mark.parametrize("kernel_set", SETS)
def test_float32_stays_float32(kernel_set):
    states = {}
    for device in ("cpu", "cuda"):
        model = network("resnet8-B", device, "float32")
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        with use_kernels("reference" if device == "cpu" else kernel_set):
            train(model, optimizer, device, dtype="float32")
        states[device] = model.state_dict()
        for tensor in (*model.parameters(), *(p.grad for p in model.parameters())):
            assert tensor.dtype == "float32" and (tensor.ndim != 4 or layout.is_channels_last(tensor.data))
        assert all(a.dtype == "float32" for s in optimizer.state.values() for a in s.values())
    assert difference(states["cuda"], states["cpu"]) < 1e-4


@pytest.mark.parametrize("kernel_set", SETS)
def test_a_step_makes_one_layout_copy_and_never_waits(kernel_set):
    name = "resnet8-B" if kernel_set == "fast" else "resnet20"
    model, (_, y) = network(name, "cuda", "float32"), batch("cuda", "float32")
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    x = standin.cupy.asarray(normal(4, 3, 8, 8, dtype="float32"))  # in C order
    for _ in range(2):
        optimizer.zero_grad()
        standin.syncs.clear()
        standin.copies.clear()
        with use_kernels(kernel_set), layout.count_copies() as counted:
            tr.cross_entropy(model(x), y).backward()
            optimizer.step()
        assert counted.copies == 1 and standin.syncs == []
        # Where the gradients lie, which the one-launch optimizers are told in a table: eager gradients may move.
        assert standin.copies == [] or kernel_set == "fast" and len(standin.copies) <= 1


@pytest.mark.parametrize("name", ["resnet8-A", "preact8", "bottleneck"])
def test_all_but_matrix_products_could_be_captured(name):
    """With the CUDA kernels nothing of a step is in the way of a CUDA graph but the last layer's product by cuBLAS."""
    model, (x, y) = network(name, "cuda", "float32"), batch("cuda", "float32")
    model.fc = nn.Identity()
    with use_kernels("fast"), standin.capturing():
        tr.cross_entropy(model(x), y.data % 4, label_smoothing=0.1).backward()
    assert all(p.grad is not None for p in model.parameters())


# ---- moving ----


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (1, 2, 3, 1), (2, 0, 3, 3)])
def test_there_and_back(shape):
    a = normal(*shape)
    for x in (tr.tensor(a), tr.Tensor(a), tr.Tensor(np.asfortranarray(a))):
        there = x.to("cuda")
        assert is_device(there) and there.device == "cuda" and there.to("cuda") is there
        assert there.ndim != 4 or layout.is_channels_last(there.data)
        back = there.cpu()
        assert back.device == "cpu" and back.ndim != 4 or layout.is_channels_last(back.data)
        np.testing.assert_array_equal(back.data, a)
        assert not np.shares_memory(there.numpy(), a)


def test_channels_last_arrays_move_without_a_layout_copy():
    x = tr.tensor(normal(2, 3, 4, 5))
    with layout.count_copies() as counted:
        x.cuda().cpu()
    assert counted.copies == 0
    assert len(standin.copies) == 1 and len(standin.syncs) == 1


def test_gradients_come_back_to_where_a_leaf_lives():
    x = tr.tensor(normal(2, 3, 4, 5), requires_grad=True)
    y = x.to("cuda")
    (y * y).sum().backward()
    assert x.grad.device == "cpu" and layout.is_channels_last(x.grad.data)
    np.testing.assert_array_equal(x.grad.data, 2 * x.data)
    z = tr.tensor(normal(3), device="cuda", requires_grad=True)
    (z.to("cpu") * 2.0).sum().backward()
    assert z.grad.device == "cuda" and z.grad.tolist() == [2.0] * 3


def test_device_of_what_is_made():
    assert tr.device("cuda") == "cuda" and tr.device("cpu") == "cpu"
    for made in (tr.zeros(2, device="cuda"), tr.ones(2, 3, 4, 5, device="cuda"), tr.randn(2, device="cuda"),
                 tr.rand(2, device="cuda"), tr.arange(3, device="cuda"), tr.tensor([1, 2], device="cuda"),
                 tr.tensor(2.5, device="cuda"), tr.tensor(standin.cupy.zeros(3)), tr.tensor(tr.zeros(2).cuda())):
        assert made.device == "cuda" and is_device(made) and made.is_leaf
    assert tr.tensor(tr.zeros(2).cuda(), device="cpu").device == "cpu"
    x = tr.zeros(2).cuda()
    assert not standin.cupy.shares_memory(tr.tensor(x).data, x.data)
    assert tr.tensor([1.5], device="cuda").dtype == "float32" and tr.arange(3, device="cuda").dtype == "int64"
    tr.manual_seed(4)
    host = tr.randn(2, 3, 4, 5)
    tr.manual_seed(4)
    np.testing.assert_array_equal(tr.randn(2, 3, 4, 5, device="cuda").numpy(), host.data)


def test_models_move_with_gradients_and_keep_their_parameters():
    model = network()
    before, parameters = model.state_dict(), list(model.parameters())
    tr.cross_entropy(model(batch()[0]), batch()[1]).backward()
    grads = [p.grad.numpy() for p in parameters]
    assert model.to("cuda") is model and all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(is_device(t) for t in (*model.parameters(), *model.buffers()))
    assert all(p.grad.device == "cuda" and layout.is_channels_last(p.data) for p in parameters if p.ndim == 4)
    model.to("cpu")
    for name, array in model.state_dict().items():
        assert isinstance(array, np.ndarray) and ("running" in name or "num_b" in name or (array == before[name]).all())
    for p, g in zip(parameters, grads, strict=True):
        np.testing.assert_array_equal(p.grad.data, g)


def test_state_goes_from_device_to_device(tmp_path):
    there, here = network(device="cuda"), network("resnet8-A")
    train(there, OPTIMIZERS["sgd"](there.parameters()), "cuda", 1)
    here.load_state_dict(there.state_dict())
    there.load_state_dict({name: tr.tensor(a, device="cuda") * 2 for name, a in here.state_dict().items()
                           if "num_batches" not in name})
    assert all(is_device(t) and (t.ndim != 4 or layout.is_channels_last(t.data)) for t in there.parameters())
    np.testing.assert_array_equal(there.conv1.weight.numpy(), 2 * here.conv1.weight.numpy())
    weights.save(there, tmp_path / "w.safetensors")
    weights.load(here, tmp_path / "w.safetensors")
    weights.load(there, tmp_path / "w.safetensors")
    assert difference(here.state_dict(), there.state_dict()) == 0
    assert int(there.bn1.num_batches_tracked) == 2
    for model in (there, here):
        tr.manual_seed(5)
        nn.init.kaiming_normal_(nn.init.zeros_(model.conv1.weight))
    assert (there.conv1.weight.numpy() == here.conv1.weight.data).all() and here.conv1.weight.data.any()


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_optimizer_state_saves_and_loads(rule):
    first, second = network(device="cuda"), network(device="cuda")
    one, two = (OPTIMIZERS[rule](m.parameters()) for m in (first, second))
    train(first, one, "cuda", 1)
    second.load_state_dict(first.state_dict())
    two.load_state_dict(one.state_dict())
    for model, optimizer in ((first, one), (second, two)):
        train(model, optimizer, "cuda", 2)
    assert difference(first.state_dict(), second.state_dict()) == 0


def test_moving_average_clipping_and_folding():
    states = {}
    for device in ("cpu", "cuda"):
        model = network("resnet8-B", device)
        average = optim.ExponentialMovingAverage(model, 0.9)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        for _ in range(2):
            train(model, optimizer, device, 1, clip=0.1)
            average.update()
        folded = nn.fold_batch_norm(model)
        x = batch(device)[0]
        states[device] = {**average.state_dict()["arrays"], "folded": folded(x).numpy(),
                          "model": model.eval()(x).numpy()}
    assert difference(states["cuda"], states["cpu"]) < 1e-9
    np.testing.assert_allclose(states["cuda"]["folded"], states["cuda"]["model"], atol=1e-9)
    assert all(p.ndim != 4 or layout.is_channels_last(p.data) for p in folded.parameters())
    assert all(is_device(t) and (t.ndim != 4 or layout.is_channels_last(t.data)) for t in average.model.parameters())
    average.model.to("cpu")
    with pytest.raises(ValueError, match="average.model.to"):
        average.update()


def test_where_there_is_no_gpu(monkeypatch):
    model = network()
    asks = (lambda: tr.device("cuda"), lambda: model.to("cuda"), lambda: tr.zeros(2, device="cuda"), tr.ones(2).cuda)
    with monkeypatch.context() as patch:
        patch.setattr(standin.cupy, "is_available", lambda: False)
        for ask in asks:
            with pytest.raises(RuntimeError, match=r"device 'cuda': CuPy is installed but finds no GPU; .*\[cuda13\]"):
                ask()
        patch.setitem(sys.modules, "cupy", None)
        for ask in asks:
            with pytest.raises(RuntimeError, match=r"device 'cuda': CuPy is not installed; .*\[cuda12\]"):
                ask()
    assert all(p.device == "cpu" for p in model.parameters())
    for ask, op in ((lambda: tr.device("gpu"), ""), (lambda: tr.tensor(1, device="gpu"), "tensor: "),
                    (lambda: tr.randn(2, device="cuda:1"), "tensor: "), (lambda: model.to("float64"), "to: ")):
        with pytest.raises(ValueError, match=f"^{op}device must be 'cpu' or 'cuda', got '"):
            ask()


def test_folded_convolutions_have_gradients():
    grads = {}
    for device in ("cpu", "cuda"):
        tr.manual_seed(6)
        conv, norm = nn.Conv2d(3, 4, 3, padding=1, dtype="float64"), nn.BatchNorm2d(4, dtype="float64")
        layer = nn.FoldedConv2d(conv, norm).to(device)
        x, add = tr.tensor(normal(2, 3, 4, 5), device=device), tr.tensor(normal(2, 4, 4, 5, seed=1), device=device)
        for t in (x, add):
            t.requires_grad_()
        with layout.count_copies() as counted:
            y = layer(x, add=add, relu=True)
            y.backward(y.detach())
        assert counted.copies == 0
        tensors = {"x": x, "add": add, **dict(layer.named_parameters())}
        grads[device] = {name: t.grad.numpy() for name, t in tensors.items()}
    assert difference(grads["cuda"], grads["cpu"]) < 1e-12


# ---- looking at tensors ----


def test_values_on_the_host():
    x = tr.tensor(normal(2, 3, dtype="float32"), device="cuda", requires_grad=True)
    assert isinstance(x.numpy(), np.ndarray) and x.tolist() == x.numpy().tolist()
    assert repr(x) == repr(tr.tensor(x.numpy(), requires_grad=True)).replace(
        ", requires_grad", ", device='cuda', requires_grad")
    assert x[0, 0].item() == float(x[0, 0]) == x.numpy()[0, 0] and bool(x[0, 0] == x[0, 0])
    assert [row.tolist() for row in x] == x.tolist() and len(x) == 2
    with pytest.raises(TypeError, match="numpy()"):
        np.asarray(x)


def test_numbers_on_the_device():
    x = tr.tensor(2.5, device="cuda", requires_grad=True)
    for y, value in ((tr.maximum(x, 1.0), 2.5), (tr.minimum(1.0, x), 1.0), (tr.where(x > 0, x, 0.0), 2.5), (2 / x, 0.8),
                     (tr.where(True, x, 0.0), 2.5), (tr.clamp(x, 0.0, 1.0), 1.0), (x**2, 6.25), (2.0**x, 2**2.5),
                     (tr.amax(x), 2.5), (x.mean(), 2.5), (x[None].max(0).values, 2.5)):
        assert is_device(y) and y.shape == () and y.dtype == "float32" and abs(y.item() - value) < 1e-6
        y.backward(tr.ones((), device="cuda"))
    assert x.grad.shape == () and is_device(x.grad)
    x.grad = None
    with tr.no_grad():
        x += 1
        x *= np.float64(2)
    assert x.dtype == "float32" and x.item() == 7


def test_indexing():
    a = normal(4, 3, 5, 6)
    x = tr.tensor(a, device="cuda")
    i, mask = np.array([2, 0, 2]), a[:, 0, 0, 0] > 0
    for index in (0, -1, (slice(None), 1), i, mask, (..., None), (i, slice(None), 1), (slice(None), slice(1, 3))):
        for where in ("cpu", "cuda"):
            device_index = tuple(map(on(where), index)) if isinstance(index, tuple) else on(where)(index)
            np.testing.assert_array_equal(x[device_index].numpy(), a[index])
    assert layout.is_channels_last(x[i].data) and layout.is_channels_last(x[1:3].data)
    y = tr.tensor(a)
    for t, where in ((x, "cuda"), (y, "cpu")):
        t[0] = 1.5
        t[1, 2] = tr.ones(5, 6, dtype="float64", device=where)
        t[2, :, 0] = a[0, :, 1]
        t[:, 0, 0, 0] += 1.0
        t[on(where)(mask)] = 7
    np.testing.assert_array_equal(x.numpy(), y.data)
    x.requires_grad_()
    standin.copies.clear()
    x[i, 1].backward(tr.ones(3, 5, 6, dtype="float64", device="cuda"))
    assert len([line for line in standin.copies if "shape.py" in line]) == 1  # the index moves once, for both passes
    assert x.grad.numpy()[:, 1, 0, 0].tolist() == [1, 0, 2, 0]
    with pytest.raises(TypeError, match="cupy and numpy meet"):
        y[0] = x[0]
    with pytest.raises(TypeError, match="cupy and numpy meet"):
        y[tr.tensor([1], device="cuda")]


def on(where):
    return lambda part: tr.tensor(part, device=where) if isinstance(part, np.ndarray) else part


def test_labels_may_come_from_the_host_and_bad_ones_make_nan():
    logits = tr.tensor(normal(3, 4), device="cuda", requires_grad=True)
    assert tr.cross_entropy(logits, [1, 2, 3]).item() == tr.cross_entropy(logits, np.array([1, 2, 3])).item()
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.3"):
        tr.cross_entropy(logits, [1, 2, 4])
    for loss in (tr.cross_entropy, lambda x, y, **o: tr.nll_loss(tr.log_softmax(x, 1), y, **o)):
        losses = loss(logits, tr.tensor([1, 4, -1], device="cuda"), reduction="none")
        assert np.isnan(losses.numpy()).tolist() == [False, True, True]
    with pytest.raises(TypeError, match="cupy and numpy meet"):
        tr.cross_entropy(logits.cpu(), tr.tensor([1, 2, 3], device="cuda"))


def test_two_devices_never_mix():
    x, y = tr.ones(2, 3), tr.ones(2, 3, device="cuda")
    for mix in (lambda: x + y, lambda: y * x, lambda: x == y, lambda: tr.where(y > 0, x, x), lambda: tr.mse_loss(x, y),
                lambda: tr.concat([x, y]), lambda: tr.linear(y, x), lambda: y + x.numpy(),
                lambda: tr.batch_norm(y, tr.zeros(3), tr.ones(3)), lambda: tr.gather(x, 0, (y * 0).astype("int64"))):
        with pytest.raises(TypeError, match="cupy and numpy meet: move them to one device"):
            mix()
    y.requires_grad_()
    with pytest.raises(TypeError, match="backward: .*meet"):
        (y * 2.0).backward(tr.ones(2, 3))


def test_debug_names_the_op_and_finds_raw_writes():
    x = tr.tensor([-1.0, 1.0], device="cuda", requires_grad=True)
    with tr.debug(), pytest.raises(FloatingPointError, match="log made the first NaN"):
        tr.log(x)
    with tr.debug():
        images = tr.randn(2, 3, 4, 4, device="cuda", requires_grad=True)
        loss = (images * images).sum()
        images.data[0, 0, 0, 0] = 9.0
        with pytest.raises(RuntimeError, match="wrote into its memory"):
            loss.backward()
    assert "neither zero nor NaN" in tr.why(x, lambda: (x * x).sum())


def test_gradcheck_runs_where_the_model_is():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                          nn.Linear(12, 2)).to("cuda")
    result = tr.gradcheck(model, tr.randn(6, 2, 6, 6, dtype="float64", device="cuda"), order=(1, 2), directions=1)
    assert result.passed, str(result)
    assert tr.gradcheck(lambda x: tr.tanh(x) * x, tr.randn(3, dtype="float64", device="cuda"))


# ---- DLPack ----


def test_dlpack_of_a_device_array_shares_its_memory():
    a = standin.cupy.zeros((2, 3), "float32")
    x = tr.from_dlpack(a)
    a += 1.0
    assert x.device == "cuda" and x.tolist() == [[1.0] * 3] * 2
    assert x.__dlpack_device__() == (2, 0)
    again = tr.from_dlpack(x)
    assert standin.cupy.shares_memory(again.data, a)
    images = standin.cupy.zeros((2, 3, 4, 5))
    with layout.count_copies() as counted:
        y = tr.from_dlpack(images)
    assert counted.copies == 1 and layout.is_channels_last(y.data)
    assert standin.cupy.shares_memory(tr.from_dlpack(y).data, y.data)


# ---- nothing of CuPy where it is not asked for ----

WITHOUT = """
import sys
import numpy as np, tinyres as tr
from tinyres import models, optim
model = models.resnet8()
optimizer = optim.SGD(model.parameters(), lr=0.1)
tr.cross_entropy(model(np.zeros((2, 3, 8, 8), np.float32)), [0, 1]).backward()
optimizer.step()
tr.from_dlpack(np.zeros(2)); model.to("cpu"); tr.device("cpu"); print(tr.zeros(2))
assert not [name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupyx", "cupy_backends")]
"""


def test_cupy_is_not_imported_unless_asked_for():
    subprocess.run([sys.executable, "-c", "from tinyres import use_kernels; use_kernels('reference')\n" + WITHOUT],
                   check=True, capture_output=True, text=True)
