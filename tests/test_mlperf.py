"""MLPerf Tiny's ResNet-8: TensorFlow's padding, Keras's names, and the published weights."""

import os
from pathlib import Path

import numpy as np
import oracles
import pytest
from safetensors.numpy import save as serialise

import tinyres as tr
from tinyres import keras_names, models, nn, random, weights
from tinyres.analysis.gradcheck import gradcheck
from tinyres.models import mlperf
from tinyres.train import evaluate

DATA = Path(os.environ.get("TINYRES_DATA", ""))
PUBLISHED = DATA / "pretrained" / "resnet8_mlperf_tiny.npz"
published = pytest.mark.skipif(not PUBLISHED.is_file(), reason="there is no $TINYRES_DATA/pretrained")


def network(**options):
    random.manual_seed(0)
    model = models.build("mlperf_resnet8", **options)
    for _, buffer in model.named_buffers():
        if buffer.dtype.kind == "f":
            buffer.data[...] = 1 + random.generator().random(buffer.shape, dtype=np.float32)
    return model


def images(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 8), (1, 1), (2, 3)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_padding_is_tensorflows(size, stride):
    """Its rule: ceil(size / stride) outputs, what zeros that takes, the odd one behind."""
    layer = mlperf.SamePadConv2d(2, 3, 3, stride)
    x = images(2, 2, *size)
    y = layer(tr.Tensor(x)).numpy()
    P, Q = (-(-n // stride) for n in size)
    need = [max((p - 1) * stride + 3 - n, 0) for p, n in zip((P, Q), size, strict=True)]
    padded = np.pad(x, ((0, 0), (0, 0), *((n // 2, n - n // 2) for n in need)))
    wanted = oracles.conv2d(padded, layer.weight.numpy(), layer.bias.numpy(), stride)
    assert y.shape == (2, 3, P, Q)
    np.testing.assert_allclose(y, wanted, atol=1e-5)


def test_padding_at_stride_2_is_at_the_bottom_and_right():
    layer = mlperf.SamePadConv2d(1, 1, 3, 2)
    assert layer.padding_of(8, 0) == (0, 1) and layer.padding_of(7, 1) == (1, 1)
    plain = nn.Conv2d(1, 1, 3, 2, 1)
    plain.load_state_dict(layer.state_dict())
    x = tr.Tensor(images(1, 1, 8, 8))
    assert np.abs(layer(x).numpy() - plain(x).numpy()).max() > 0.01  # PyTorch's number is another convolution


def test_the_network_is_the_benchmarks():
    model = network()
    assert sum(p.numel() for p in model.parameters()) == 78_186
    assert {part.eps for part in model.modules() if isinstance(part, nn.BatchNorm2d)} == {1e-3}
    assert [type(block.shortcut) for block in model.modules() if isinstance(block, models.blocks.Block)] == [
        nn.Identity, nn.Conv2d, nn.Conv2d]
    assert model(tr.Tensor(images(2, 3, 32, 32))).shape == (2, 10)
    assert models.build("mlperf-resnet8", num_classes=3, in_channels=1)(tr.Tensor(images(2, 1, 8, 8))).shape == (2, 3)


def test_a_block_without_its_branch_is_its_shortcut():
    block = mlperf.MLPerfBlock(4, 8, 2)
    block.zero_branch_()
    nn.init.zeros_(block.bn2.bias)
    x = tr.Tensor(images(2, 4, 6, 6))
    assert np.array_equal(block(x).numpy(), block.without_branch(x).numpy())
    assert np.array_equal(block.without_branch(x).numpy(), np.maximum(block.shortcut(x).numpy(), 0))


CASES = {"same padding": (lambda: mlperf.SamePadConv2d(3, 4, 3, 2), (2, 3, 6, 5)),
         "block": (lambda: mlperf.MLPerfBlock(4, 4), (2, 4, 5, 5)),
         "block, halved": (lambda: mlperf.MLPerfBlock(4, 6, 2), (2, 4, 6, 6)),
         "network": (lambda: models.build("mlperf_resnet8"), (8, 3, 8, 8))}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_gradients(name, training):
    """In training, batch norm subtracts the bias in front of it again: it has no gradient, and the check says so."""
    make, shape = CASES[name]
    random.manual_seed(1)
    model = make().train(training)
    result = gradcheck(model, images(*shape).astype(np.float64), order=(1, 2), nudge=0.1, directions=2,
                       raise_on_failure=True)
    assert result.max_relative_error < 1e-6
    before_norm = [f"{part}.bias" for part, layer in model.named_modules() if isinstance(layer, nn.Conv2d) and part
                   and not part.endswith("downsample")]
    assert len(result.notes) == int(training and bool(before_norm))
    assert not result.notes or f"depend on them here: {', '.join(before_norm)};" in result.notes[0]


def test_each_class_is_among_the_cases():
    classes = {c for c in vars(mlperf).values() if isinstance(c, type) and c.__module__ == mlperf.__name__}
    assert classes == {type(make()) for make, _ in CASES.values()}


# --- Keras's names and layouts ----------------------------------------------------------------------------------------

LEAVES = {"weight": "kernel", "bias": "bias", "running_mean": "moving_mean", "running_var": "moving_variance"}


def as_keras(state, first=0, prefix="", suffix=":0"):
    """The arrays as Keras would have them, its layers numbered from `first` on."""
    layers, found, count = {}, {}, {}
    for name, array in state.items():
        module, leaf = name.rpartition(".")[::2]
        if leaf == "num_batches_tracked":
            continue
        norm = f"{module}.running_mean" in state
        kind = "batch_normalization" if norm else "dense" if module == "fc" else "conv2d"
        if module not in layers:
            number = count.setdefault(kind, first)
            layers[module] = f"{kind}_{number}" if number else kind
            count[kind] += 1
        keras = {"weight": "gamma", "bias": "beta"}.get(leaf, LEAVES[leaf]) if norm else LEAVES[leaf]
        if keras == "kernel":
            array = np.moveaxis(array, (0, 1), (-1, -2))
        found[f"{prefix}{layers[module]}/{keras}{suffix}"] = array.copy()
    return found


@pytest.mark.parametrize("options", [{}, {"first": 9}, {"first": 1, "suffix": ""}, {"prefix": "model_weights/x/"}])
def test_a_keras_file_is_read_back(tmp_path, options):
    model, other = network(), network()
    nn.init.zeros_(other.fc.weight)
    (tmp_path / "w").write_bytes(serialise(as_keras(model.state_dict(), **options)))
    source = weights.load(other, tmp_path / "w")
    state = model.state_dict()
    assert all(np.array_equal(array, state[name]) for name, array in other.state_dict().items())
    assert (source.format, source.normalisation) == ("keras", weights.RAW_PIXELS)
    assert str(source.architecture) == "models.mlperf_resnet8(num_classes=10, in_channels=3)"
    assert source.architecture.layers == 8


def test_what_is_trained_here_has_no_fixed_normalisation(tmp_path):
    weights.save(network(num_classes=4), tmp_path / "w")
    source = weights.read(tmp_path / "w")
    assert (source.format, source.normalisation, source.architecture.name) == ("tinyres", None, "mlperf_resnet8")
    assert source.architecture.options == {"num_classes": 4, "in_channels": 3}


def test_other_networks_take_a_map_of_their_own():
    kernel, dense = images(3, 5, 2, 4), images(6, 7)
    found = keras_names.translate(
        {"stem/kernel:0": kernel, "stem/bias:0": images(4), "top/kernel:0": dense, "norm_1/gamma:0": images(4),
         "norm_1/beta:0": images(4), "norm_1/moving_mean:0": images(4), "norm_1/moving_variance:0": images(4)},
        {"stem": "conv1", "top": "head.fc", "norm": "bn"})
    assert found["conv1.weight"].shape == (4, 2, 3, 5) and found["head.fc.weight"].shape == (7, 6)
    assert all(found["conv1.weight"][k, c, r, s] == kernel[r, s, c, k] for r, s, c, k in np.ndindex(kernel.shape))
    assert np.array_equal(found["head.fc.weight"], dense.T) and found["head.fc.weight"].flags.c_contiguous
    assert {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "conv1.bias"} < found.keys()


@pytest.mark.parametrize("change, words", [
    ({"conv2d_9/kernel:0": np.zeros((1, 1, 2, 2))}, "those of no network known here: .*conv2d_9, dense. Give a map"),
    ({"dense/kernel:0": None, "dense/bias:0": None}, "its 16 Keras layers are those of no network known here"),
    ({"conv2d_4/depthwise_kernel:0": np.zeros((1, 1, 2, 2))}, "'conv2d_4/depthwise_kernel:0' is none of kernel, bias"),
    ({"dense/kernel:0": np.zeros((2, 3, 4))}, r"'dense/kernel:0' has shape \(2, 3, 4\), expected a kernel"),
    ({"x/dense/kernel:0": np.zeros((64, 10))}, "is the second that would be 'fc.weight' here: remove one"),
])
def test_what_does_not_fit_is_refused(tmp_path, change, words):
    arrays = {name: array for name, array in (as_keras(network().state_dict()) | change).items() if array is not None}
    (tmp_path / "w").write_bytes(serialise(arrays))
    with pytest.raises(weights.WeightsError, match=words) as error:
        weights.read(tmp_path / "w")
    assert str(tmp_path / "w") in str(error.value)


def test_a_map_must_have_the_layers_of_the_file():
    with pytest.raises(ValueError, match="its Keras layers are conv2d, expected batch_normalization, .*, dense$"):
        keras_names.translate({"conv2d/kernel": np.zeros((1, 1, 2, 2))}, keras_names.MLPERF_RESNET8)


# --- the published weights --------------------------------------------------------------------------------------------


@published
def test_the_published_file_is_recognised():
    model = network()
    source = weights.load(model, PUBLISHED)
    assert (source.format, source.normalisation) == ("keras", weights.RAW_PIXELS)
    assert source.architecture.name == "mlperf_resnet8"
    kernel = np.load(PUBLISHED)["conv2d_3/kernel:0"]
    assert model.layer2[0].conv1.weight.numpy()[5, 7, 2, 1] == kernel[2, 1, 7, 5]


@published
@pytest.mark.skipif(not (DATA / "cifar10").is_dir(), reason="there is no $TINYRES_DATA/cifar10")
def test_the_published_weights_get_8719_of_10000_right():
    from tinyres import data

    model = network()
    source = weights.load(model, PUBLISHED)
    found = evaluate(model, data.load("cifar10", "test").with_normalisation(*source.normalisation), 250,
                     show_progress=False)
    assert (found.correct, found.n) == (8719, 10_000)
