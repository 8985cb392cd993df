"""ONNX files: onnxruntime, which knows nothing of this library, computes the same from them for every network."""

import inspect
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

import tinyres as tr
from tinyres import data, models, nn, ops, random, weights
from tinyres.files import write_atomically
from tinyres.onnx import ExportError, export_onnx

onnx = pytest.importorskip("onnx", reason='onnx is not installed: pip install "tinyres[onnx]"')
DATA = os.environ.get("TINYRES_DATA", "")


@pytest.fixture(scope="session")
def runtime():
    """runtime(path, images) -> outputs, by onnxruntime on one thread."""
    module = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")
    options = module.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3

    def run(path, images):
        session = module.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        assert [i.name for i in session.get_inputs()] == ["input"]
        (outputs,) = session.run(["output"], {"input": images})
        return outputs

    return run


def images(*shape, seed=0, dtype="float32"):
    return np.random.Generator(np.random.Philox(seed)).standard_normal(shape).astype(dtype)


def lively(model, seed=0):
    """Every parameter and statistic moved off its start, where 0 and 1 would hide a wrong one."""
    rng = np.random.Generator(np.random.Philox(seed))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dtype.kind == "f":
            noise = rng.standard_normal(tensor.shape).astype(tensor.dtype)
            tensor.data[...] = 0.5 + abs(noise) if name.endswith("var") else tensor.data + 0.1 * noise
    return model.eval()


def ours(model, x):
    with tr.no_grad(), tr.use_kernels("im2col"):
        return model(tr.tensor(x)).numpy()


def assert_same(runtime, model, shape, path, batches=(1, 3), bound=1e-5, **options):
    """onnxruntime's outputs are ours, relative to the largest, for batches that were not traced; and they vary."""
    export_onnx(model, path, shape, **options)
    for batch in batches:
        x = images(batch, *shape, seed=batch)
        expected, found = ours(model, x), runtime(path, x)
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert np.abs(found - expected).max() <= bound * np.abs(expected).max()
    assert batch == 1 or np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max()  # dead units would be equal


# --- networks ---------------------------------------------------------------------------------------------------------


def one_of_each_kind():
    """The names of the zoo, of those that differ in their depth alone the first that is deep enough to matter."""
    kinds = {}
    for name in models.names():
        kinds.setdefault((re.sub(r"\d+$", "", name), "cifar_stem" in options_of(name)), name)
    return list(kinds.values())


def options_of(name):
    return inspect.signature(getattr(models, name)).parameters


@pytest.mark.parametrize("name", one_of_each_kind())
def test_every_network_gives_the_same_logits(runtime, tmp_path, name):
    takes = options_of(name)
    random.manual_seed(0)
    given = {"cifar_stem": True, "depth": 8, "width": 12}
    model = lively(models.build(name, **{key: value for key, value in given.items() if key in takes}))
    features = takes["in_features"].default if "in_features" in takes else None
    size = 32 if "mlperf" in name else 8
    assert_same(runtime, model, (features,) if features else (3, size, size), tmp_path / "n.onnx")


@pytest.mark.parametrize("name, options, shape", [
    ("resnet8", {"option": "B", "in_channels": 1, "num_classes": 3}, (1, 9, 12)),
    ("resnet8", {"option": "C"}, (3, 8, 8)),
    ("preact_resnet20", {"option": "B"}, (3, 8, 8)),
])
def test_options(runtime, tmp_path, name, options, shape):
    random.manual_seed(1)
    assert_same(runtime, lively(models.build(name, **options)), shape, tmp_path / "n.onnx")


def test_bottlenecks_and_the_imagenet_stem(runtime, tmp_path):
    random.manual_seed(1)
    sizes = [1, 2], (4, 8), 5, 3, False  # depths, widths, classes, channels, and the ImageNet stem
    make_block = models.resnet.Residual(models.blocks.Bottleneck, models.blocks.shortcut_b)
    before = models.preact.PreActResNet(models.blocks.PreActBottleneck, models.blocks.preact_shortcut_b, *sizes, 8)
    for model in (models.resnet.ResNet(make_block, *sizes), before):
        assert_same(runtime, lively(model), (3, 21, 24), tmp_path / "n.onnx")


def test_a_folded_network_and_one_in_float64(runtime, tmp_path):
    model = lively(models.resnet8(option="B"))
    folded = nn.fold_batch_norm(model, images(2, 3, 8, 8))
    assert_same(runtime, folded, (3, 8, 8), tmp_path / "n.onnx")
    assert "BatchNormalization" not in export_onnx(folded, tmp_path / "n.onnx", (3, 8, 8))
    model = lively(models.residual_mlp(depth=2).double())  # onnxruntime has no convolution in float64
    export_onnx(model, tmp_path / "n.onnx", (64,))
    x = images(2, 64, dtype="float64")
    np.testing.assert_allclose(runtime(tmp_path / "n.onnx", x), ours(model, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_opsets_say_the_same(runtime, tmp_path, opset):
    """Opset 18 made the axes of ReduceMean and ReduceMax inputs."""
    network = OfOps(lambda x: ops.amax(x, (2, 3)) + ops.mean(x, (2, 3)))
    assert_same(runtime, network, (4, 3, 5), tmp_path / "n.onnx", opset=opset)
    proto = onnx.load(tmp_path / "n.onnx")
    assert [entry.version for entry in proto.opset_import] == [opset]


@pytest.mark.skipif(not DATA or not Path(DATA, "pretrained", "resnet20.npz").is_file(),
                    reason="needs CIFAR-10 and published weights in $TINYRES_DATA")
def test_published_weights_keep_their_accuracy_in_onnxruntime(runtime, tmp_path):
    """9,173 of the 10,000 test images, as `tinyres eval` has it."""
    model = models.resnet20()
    source = weights.load(model, Path(DATA, "pretrained", "resnet20.npz"))
    export_onnx(model, tmp_path / "n.onnx", (3, 32, 32))
    images = data.load("cifar10", "test", DATA).with_normalisation(*source.normalisation)
    right = 0
    for start in range(0, len(images), 2000):
        x, y = images.take(np.arange(start, start + 2000))
        right += int((runtime(tmp_path / "n.onnx", np.ascontiguousarray(x)).argmax(1) == y).sum())
    assert right == 9173


# --- ops --------------------------------------------------------------------------------------------------------------


class OfOps(nn.Module):
    """A function as a network."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def layer(made):
    return OfOps(lambda x, inner: inner(x), made)


def in_place(x):
    y = x * 2.0
    y += 1.0
    y *= x
    y -= 0.5
    y /= 3.0
    return ops.relu_(y)


WEIGHT = images(4, 3, 2, 3, seed=5)
OPS = {
    "convolution": layer(nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), groups=2)),
    "same padding": layer(nn.Conv2d(4, 3, 3, padding="same", dilation=2, bias=False)),
    "transposed": layer(nn.ConvTranspose2d(4, 6, 3, (2, 3), 1, (1, 2), groups=2)),
    "max pool": layer(nn.MaxPool2d((3, 2), 2, 1)),
    "max pool, ceil": layer(nn.MaxPool2d(3, 2, ceil_mode=True)),
    "max pool, dilated": layer(nn.MaxPool2d(2, 1, 1, dilation=2)),
    "mean pool": layer(nn.AvgPool2d(3, 2, 1)),
    "mean pool without pad": layer(nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
    "adaptive, even": layer(nn.AdaptiveAvgPool2d((2, 3))),
    "adaptive, uneven": layer(nn.AdaptiveAvgPool2d((4, 4))),
    "adaptive, one": layer(nn.AdaptiveAvgPool2d(1)),
    "adaptive max": OfOps(lambda x: ops.adaptive_max_pool2d(x, (2, 3))),
    "norm without scale": layer(nn.BatchNorm2d(4, affine=False)),
    "norm of rows": OfOps(lambda x, fc, bn: bn(fc(ops.flatten(x, 1))), nn.Linear(4 * 6 * 9, 5), nn.BatchNorm1d(5)),
    "linear in 3-D": OfOps(lambda x, fc: fc(x[:, :, 1]), nn.Linear(9, 5)),
    "linear without bias": OfOps(lambda x, fc: fc(ops.flatten(x, 1)), nn.Linear(4 * 6 * 9, 5, bias=False)),
    "dropout in eval mode": layer(nn.Dropout(0.9)),
    "arithmetic": OfOps(lambda x: (1.0 - x) * 2 / (3.0 + x * x) - x / 7),
    "functions": OfOps(lambda x: ops.exp(ops.tanh(x)) + ops.log(1.5 + ops.sigmoid(x)) - ops.sqrt(abs(x)) + -x),
    "powers and bounds": OfOps(lambda x: ops.minimum(ops.maximum(x, -0.5), 0.7) ** 2 + ops.maximum(x, -x)),
    "in place": OfOps(in_place),
    "sums": OfOps(lambda x: ops.sum(x, 1, keepdim=True) + ops.mean(x, (1, 3), keepdim=True)),
    "a sum that is used twice": OfOps(lambda x: (lambda s: s * (1 / 54) + s)(ops.sum(x, (2, 3)))),
    "variance": OfOps(lambda x: ops.std(x, 3) + ops.var(x, -1, correction=0)),
    "extremes": OfOps(lambda x: ops.amax(x, 1) - ops.amin(x, (1,))),
    "softmax": OfOps(lambda x: ops.softmax(x, 1) + ops.log_softmax(x, -1)),
    "slices": OfOps(lambda x: x[:, ::2, 1:-1, ::-2]),
    "cut to the batch": OfOps(lambda x: x[0:len(x), :, 1:6]),
    "backwards to an end": OfOps(lambda x: x[..., 4:1:-1] + x[..., -1:-4:-1]),
    "numbers and new axes": OfOps(lambda x: x[:, None, 1, ..., -2, None]),
    "the first image": OfOps(lambda x: x + x[0] + x[:1]),
    "as many images as were traced": OfOps(lambda x: ops.sum(x[:2, :], 0) + ops.sum(x[:3, :], 0) + x),
    "picked channels": OfOps(lambda x: x[:, np.array([2, 0, 2])]),
    "gathered": OfOps(lambda x, p: x + ops.gather(p.weight, 1, np.array([[1], [0], [2], [0]])).reshape(4, 1, 1),
                      nn.Linear(3, 4)),
    "padded": OfOps(lambda x: ops.pad(x, (1, 0, 0, 2, 1, 1), 0.5)),
    "cropped": OfOps(lambda x: ops.pad(x, (-1, 2, 1, -2))),
    "joined": OfOps(lambda x: ops.concat([*ops.split(x, [1, 3], 1), x * 2], 1)),
    "reshaped": OfOps(lambda x: ops.transpose(ops.permute(x, 0, 2, 3, 1).reshape(x.shape[0] * 6, 9, 2, 2), 1, 3)),
    "repeated": OfOps(lambda x: ops.broadcast_to(x[:, :1], x.shape) * ops.mean(x, (2, 3), keepdim=True)),
    "product": OfOps(lambda x: x @ ops.transpose(x)),
    "product with what was turned by nothing": OfOps(lambda x, fc: x[:, 0, 0] @ ops.permute(fc.weight, 0, 1),
                                                     nn.Linear(9, 9)),
    "chosen by a mask": OfOps(lambda x: ops.where(np.arange(9) % 2 == 0, x, 0.0)),
    "converted": OfOps(lambda x: ops.astype(ops.astype(x, "float64") * 2, "float32")),
    "detached": OfOps(lambda x: x.detach() * x),
    "a constant": OfOps(lambda x: x * images(4, 1, 1, seed=3)),
    "the input itself": OfOps(lambda x: (ops.exp(x), x)[1]),
    "a convolution's bias that others use": OfOps(lambda x, conv: conv(x) + (conv(x) + conv.bias.reshape(1, -1, 1, 1)),
                                                  nn.Conv2d(4, 2, 1)),
    "added to a convolution, but no bias": OfOps(lambda x, conv: (lambda h: ops.relu(h) + h)(conv(x)),
                                                 nn.Conv2d(4, 2, 1, bias=False)),
}


@pytest.mark.parametrize("case", OPS)
def test_ops(runtime, tmp_path, case):
    random.manual_seed(2)
    assert_same(runtime, lively(OPS[case]), (4, 6, 9), tmp_path / "n.onnx", batches=(1, 5))


# --- what the file says -----------------------------------------------------------------------------------------------


def test_names_are_those_of_modules_and_parameters(tmp_path):
    model = models.resnet8(option="B")
    types = export_onnx(model, tmp_path / "n.onnx", (3, 8, 8), batch="images", description="A small network.",
                        metadata={"normalisation": {"mean": [0.5]}, "run": "1"})
    proto = onnx.load(tmp_path / "n.onnx")
    nodes = {node.name: node for node in proto.graph.node}
    assert [node.op_type for node in proto.graph.node] == types and len(nodes) == len(types)
    assert list(nodes)[:5] == ["conv1", "bn1", "bn1.relu", "layer1.0.conv1", "layer1.0.bn1"]
    assert {"layer2.0.bn2.add", "layer2.0.bn2.relu", "layer3.0.downsample.0", "reducemean", "fc"} <= nodes.keys()
    assert list(nodes["bn1"].input) == ["conv1", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"]
    assert list(nodes["fc"].input) == ["reducemean", "fc.weight", "fc.bias"] and list(nodes["fc"].output) == ["output"]
    stored = {entry.name: onnx.numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    state = {name: array for name, array in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert stored.keys() == state.keys() and all(np.array_equal(stored[name], state[name]) for name in state)
    ends = [[axis.dim_param or axis.dim_value for axis in end.type.tensor_type.shape.dim]
            for end in (proto.graph.input[0], proto.graph.output[0])]
    assert ends == [["images", 3, 8, 8], ["images", 10]]
    assert proto.doc_string == "A small network." and proto.producer_name == "tinyres"
    texts = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(texts["normalisation"]) == {"mean": [0.5]} and texts["run"] == "1"


def test_layers_that_are_used_twice_are_stored_once(runtime, tmp_path):
    model = OfOps(lambda x, conv, bn: bn(conv(bn(conv(x), relu=True))), nn.Conv2d(2, 2, 3, padding=1, bias=False),
                  nn.BatchNorm2d(2))
    assert_same(runtime, lively(model), (2, 5, 5), tmp_path / "n.onnx")
    proto = onnx.load(tmp_path / "n.onnx")
    assert [node.name for node in proto.graph.node] == ["layers.0", "layers.1", "layers.1.relu", "layers.0_2",
                                                        "layers.1_2"]
    assert len(proto.graph.initializer) == 5


def test_the_number_of_images_can_be_fixed(runtime, tmp_path):
    model = lively(models.resnet8())
    export_onnx(model, tmp_path / "n.onnx", (3, 8, 8), batch=4)
    x = images(4, 3, 8, 8)
    np.testing.assert_allclose(runtime(tmp_path / "n.onnx", x), ours(model, x), rtol=1e-4, atol=1e-5)
    proto = onnx.load(tmp_path / "n.onnx")
    assert [end.type.tensor_type.shape.dim[0].dim_value for end in (proto.graph.input[0], proto.graph.output[0])] == [
        4, 4]


def test_the_same_model_gives_the_same_bytes_and_is_not_touched(tmp_path):
    random.manual_seed(3)
    model = models.resnet8().train()
    before = model.state_dict(), random.get_state(), tr.kernels.current()
    export_onnx(model, tmp_path / "a.onnx", (3, 8, 8))
    export_onnx(model, tmp_path / "b.onnx", (3, 8, 8))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert all(module.training and not module._forward_hooks and not module._pre_hooks for module in model.modules())
    assert all(np.array_equal(a, b) for a, b in zip(model.state_dict().values(), before[0].values(), strict=True))
    assert (random.get_state(), tr.kernels.current()) == before[1:]
    assert tr.state.state.debug is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


# --- what cannot be exported ------------------------------------------------------------------------------------------


class Swish(tr.Function):
    """An op that no table has."""

    def forward(self, x):
        return x * x


def stale(x):
    y = x * 1.0
    part = y[:, :1]
    y += 1.0
    return part + y


def written(x):
    y = x * 1.0
    y[:, 0] = 0.0
    return y * 2.0


def branching(x):
    return ops.relu(x) if len(x) == 2 else ops.exp(x)


def rewired(x):
    a, b = ops.exp(x), ops.tanh(x)
    return a * (a if len(x) == 2 else b)


def counting(x):
    y = ops.relu(x)
    return y if len(x) == 2 else ops.exp(y)


@pytest.mark.parametrize("function, words", [
    (Swish.apply, ("swish in OfOps (the network itself)", "no translation", "conv2d")),
    (lambda x: ops.clamp(x, max=6.0), ("where in OfOps", "its input 0", "maximum and minimum")),
    (lambda x: x * x.data, ("mul in OfOps", "its input 1", "past the graph")),
    (lambda x: x * float(x.data[0, 0, 0, 0]), ("mul in OfOps", "its input 1", "past the graph")),
    (lambda x: x - ops.mean(x), ("mul in OfOps", "how many there are")),
    (lambda x: x * (1.0 / len(x)), ("mul in OfOps", "how many there are")),
    (lambda x: x + ops.zeros((len(x), 1, 1, 1)), ("add in OfOps", "how many there are")),
    (lambda x: ops.dropout(x, 0.5, True), ("dropout in OfOps", "no translation")),
    (lambda x: ops.max(x, 1).values, ("gather in OfOps", "its option index")),
    (branching, ("ran in the place of", "route depends")),
    (rewired, ("took the output of tanh in OfOps", "route depends")),
    (counting, ("1 ops ran, and with other images 2", "route depends")),
    (stale, ("changed in place", "add_")),
    (written, ("changed in place", "__setitem__")),
    (lambda x: (x, x), ("returned tuple", "expected one Tensor")),
    (lambda x: x.numpy(), ("returned ndarray", "expected one Tensor")),
    (lambda x: ops.avg_pool2d(x, 2, 2, ceil_mode=True), ("avg_pool2d in OfOps", "count_include_pad=False")),
    (lambda x: ops.adaptive_max_pool2d(x, (2, 2)), ("max_pool2d in OfOps", "windows of several sizes")),
    (lambda x: ops.broadcast_to(x[:1], x.shape), ("broadcast_to in OfOps", "as often as there are images")),
    (lambda x: x[np.array([0]), np.array([1])], ("get_item in OfOps", "several arrays")),
    (lambda x: ops.pad(x, (0, 0, 0, 0, 0, 0, 0, 1)), ("pad in OfOps", "pads the batch")),
    (lambda x: ops.pad(x, (0, 0, 0, 0, 0, 0, 1, 0)), ("pad in OfOps", "pads the batch")),
    (lambda x: ops.logsumexp(x, 1), ("sub in OfOps", "its input 1")),
    (lambda x: x[:, :len(x)], ("get_item in OfOps", "its option index")),
])
def test_what_onnx_cannot_say_is_an_error_that_names_it(tmp_path, function, words):
    with pytest.raises(ExportError) as error:
        export_onnx(OfOps(function), tmp_path / "n.onnx", (2, 3, 5))
    assert all(word in str(error.value) for word in ("export_onnx", *words)), str(error.value)
    assert not list(tmp_path.iterdir()) and tr.state.state.debug is None


@pytest.mark.parametrize("layers, words", [
    ((nn.BatchNorm2d(2, track_running_stats=False),), ("batch_norm in BatchNorm2d layers.0", "option mean")),
    ((nn.Sequential(nn.Conv2d(2, 2, 1), OfOps(Swish.apply)),), ("swish in OfOps layers.0.1",)),
])
def test_the_module_is_named(tmp_path, layers, words):
    with pytest.raises(ExportError) as error:
        export_onnx(OfOps(lambda x, inner: inner(x), *layers), tmp_path / "n.onnx", (2, 3, 5))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_parameter_that_forward_changes_is_an_error(tmp_path):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", np.zeros(1, np.float32))

        def forward(self, x):
            self.calls += 1.0
            return x * self.calls

    with pytest.raises(ExportError, match="changes calls in place"):
        export_onnx(Counting(), tmp_path / "n.onnx", (2,))


@pytest.mark.parametrize("options, words", [
    ({"opset": 12}, "opset must be from 13"),
    ({"opset": 10_000}, "opset must be from 13"),
    ({"batch": 0}, "batch must be a name"),
    ({"batch": ""}, "batch must be a name"),
    ({"input_shape": (3, 0, 8)}, "input_shape must be the positive lengths"),
    ({"input_shape": ()}, "input_shape must be the positive lengths"),
    ({"input_shape": (1, 8, 8)}, "conv2d: input"),
])
def test_wrong_arguments(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        export_onnx(models.resnet8(), **{"path": tmp_path / "n.onnx", "input_shape": (3, 8, 8), **options})
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        export_onnx(models.resnet8(), tmp_path / "nowhere" / "n.onnx", (3, 8, 8))
    write_atomically(tmp_path / "n.onnx", b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinyres.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export_onnx(models.resnet8(), tmp_path / "n.onnx", (3, 8, 8))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("n.onnx", b"old")]


def test_without_onnx_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "tinyres\[onnx\]"'):
        export_onnx(models.resnet8(), tmp_path / "n.onnx", (3, 8, 8))


# --- the command ------------------------------------------------------------------------------------------------------


def last_line(out):
    return json.loads(out.strip().splitlines()[-1])


def test_a_file_becomes_onnx(tinyres_command, runtime, tmp_path):
    random.manual_seed(4)
    model = lively(models.resnet8(option="B", num_classes=7, in_channels=1))
    weights.save(model, tmp_path / "w.safetensors")
    status, out, err = tinyres_command("export w.safetensors --to n.onnx --input 1,9,12 --json")
    found = last_line(out)
    assert status == 0 and "the same to" in err and found["difference"] < 1e-5
    assert (found["model"], found["input"], found["nodes"]) == ("resnet8", ["N", 1, 9, 12], 30)
    x = images(3, 1, 9, 12)
    np.testing.assert_allclose(runtime("n.onnx", x), ours(model, x), rtol=1e-4, atol=1e-5)
    proto = onnx.load("n.onnx")
    assert proto.doc_string.startswith("resnet8: ResNet-8 (He et al. 2015)")
    status, out, _ = tinyres_command("export w.safetensors --to f.onnx --input 1,9,12 --fold --batch 3 --opset 18 "
                                     "--json")
    assert (status, last_line(out)["input"], last_line(out)["nodes"]) == (0, [3, 1, 9, 12], 30 - 9)
    np.testing.assert_allclose(runtime("f.onnx", x), ours(model, x), rtol=1e-4, atol=1e-5)


def test_published_names_and_the_normalisation_go_along(tinyres_command, tmp_path):
    """A file as akamaster/pytorch_resnet_cifar10 writes it: ImageNet's statistics, other names."""
    model = lively(models.resnet8())
    state = {f"module.{name}".replace("fc.", "linear."): array for name, array in model.state_dict().items()}
    np.savez(tmp_path / "w.npz", **state)
    assert tinyres_command("export w.npz --to n.onnx --quiet")[0] == 0
    texts = {entry.key: entry.value for entry in onnx.load("n.onnx").metadata_props}
    assert json.loads(texts["normalisation"]) == {"mean": list(weights.IMAGENET[0]), "std": list(weights.IMAGENET[1])}
    assert texts["model"] == "resnet8"
    status, out, err = tinyres_command("export w.npz --to w.safetensors --json")
    assert (status, err, last_line(out)["arrays"]) == (0, "", len(state))
    source = weights.read("w.safetensors")
    assert source.format == "tinyres" and json.loads(source.metadata["normalisation"])["std"][0] == 0.229
    assert all(np.array_equal(source.arrays[name], array) for name, array in model.state_dict().items())


def test_a_run_is_exported_for_its_own_images(tinyres_command, tmp_path):
    assert tinyres_command("train --iterations 1 --out run --quiet --kernels im2col")[0] == 0
    status, out, _ = tinyres_command("export run --to n.onnx --json")
    assert (status, last_line(out)["model"], last_line(out)["input"]) == (0, "resnet8", ["N", 1, 8, 8])
    texts = {entry.key: entry.value for entry in onnx.load("n.onnx").metadata_props}
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert json.loads(texts["normalisation"]) == config["normalisation"]


def test_weights_of_an_unknown_network_go_to_safetensors_only(tinyres_command, tmp_path):
    np.savez(tmp_path / "w.npz", **{"module.a.weight": np.ones((2, 3), np.float32)})
    status, out, _ = tinyres_command("export w.npz --to w.safetensors --json")
    assert (status, last_line(out)["model"], list(weights.read("w.safetensors").arrays)) == (0, "", ["a.weight"])
    status, out, err = tinyres_command("export w.npz --to n.onnx")
    assert (status, out) == (2, "") and "--model" in err and "no network known by its names" in err


def test_a_file_that_does_not_fit_or_is_not_there(tinyres_command, tmp_path):
    weights.save(models.resnet8(), tmp_path / "w.safetensors")
    for line, status, words in (
            ("export w.safetensors --to w.txt", 2, "ends in .onnx or .safetensors"),
            ("export w.safetensors --to w.safetensors", 2, "is the file to read"),
            ("export w.safetensors --to v.safetensors --fold --batch 3", 2, "--batch, --fold"),
            ("export w.safetensors --to n.onnx --model resnet20", 1, "missing from the state"),
            ("export w.safetensors --to v.safetensors --model resnet20", 1, "missing from the state"),
            ("export w.safetensors --to n.onnx --input 3x32", 2, "is not a shape"),
            ("export w.safetensors --to n.onnx --opset 5", 1, "opset must be from 13"),
            ("export w.safetensors --to nowhere/n.onnx", 1, "there is no folder nowhere"),
            ("export nowhere --to n.onnx", 1, "there is no file"),
            ("export w.safetensors", 2, "--to")):
        found, out, err = tinyres_command(line)
        assert (found, out) == (status, "") and words in err, (line, err)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_file_that_computes_something_else_is_found(tinyres_command, runtime, tmp_path, monkeypatch):
    weights.save(lively(models.resnet8()), tmp_path / "w.safetensors")
    monkeypatch.setattr("tinyres.onnx.ops._join", lambda graph, step, y, residual: y)  # no addition and no ReLU
    status, out, err = tinyres_command("export w.safetensors --to n.onnx")
    assert (status, out) == (1, "") and "the file is not the network" in err
