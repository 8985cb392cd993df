"""Whole networks trained on the CUDA kernels, which the emulator runs: the same as on the reference kernels."""

import numpy as np
import pytest

from tinyres import kernels, models, nn, optim, random
from tinyres.analysis import parity
from tinyres.kernels.cuda import emulator, manifest
from tinyres.models.blocks import Bottleneck
from tinyres.models.resnet import OPTIONS, Residual, ResNet
from tinyres.tensor import Tensor

SHAPE = (4, 3, 8, 8)
# What a training step of a ResNet must have run on, so that no kernel is silently the reference's.
FILES = {"im2col.cu", "matmul.cu", "norm.cu", "loss.cu", "optim.cu"}


def trained(kernel_set, network, dtype, optimizer, steps=2):
    """Everything that so many steps leave: losses, gradients, parameters, running statistics; and logits in eval."""
    random.manual_seed(0)
    model = network().astype(dtype)
    rng = np.random.default_rng(0)
    found = {}
    with kernels.use_kernels(kernel_set):
        steps_with = optimizer(model.parameters())
        for step in range(steps):
            images, labels = rng.standard_normal(SHAPE).astype(dtype), rng.integers(0, 10, SHAPE[0])
            logits, loss, gradients = parity.our_pass(model, images, labels)
            steps_with.step()
            found |= {f"{step} logits": logits, f"{step} loss": np.asarray(loss)}
            found |= {f"{step} gradient of {key}": g for key, g in gradients.items()}
        found |= {f"trained {key}": np.copy(value) for key, value in model.state_dict().items()}
        found["eval"] = model.eval()(Tensor(images)).numpy()
    return found


def sgd(parameters):
    return optim.SGD(parameters, **parity.SGD)


def adam(parameters):
    return optim.Adam(parameters, lr=1e-3)


@pytest.fixture
def launched(monkeypatch):
    """The names of the instances that ran."""
    names = []
    run = emulator.launch

    def noting(kernel, *args, **options):
        names.append(kernel.name)
        return run(kernel, *args, **options)

    monkeypatch.setattr(emulator, "launch", noting)
    return names


def furthest(found, expected):
    """(distance, name) of the array that is furthest from what was expected, relative to its norm."""
    assert found.keys() == expected.keys()
    return max((parity.distance(found[key], expected[key]), key) for key in expected)


def test_resnet20_in_float64_equals_the_reference_in_every_order(launched):
    """Two steps of SGD: within 1e-9 of the reference, and bit for bit the same in whatever order threads run."""
    expected = trained("reference", models.resnet20, "float64", sgd)
    found = {}
    for order in ("forward", "reverse", "random"):
        with emulator.settings(order=order, seed=1, workers=2 if order == "random" else 1):
            found[order] = trained("emulator", models.resnet20, "float64", sgd)
    distance, name = furthest(found["forward"], expected)
    print(f"\nfurthest from the reference: {name}, {distance:.1e}")
    assert distance < 1e-9, name
    assert {manifest.BY_NAME[name].file for name in launched} >= FILES
    assert all("double" in name for name in launched)
    for order in ("reverse", "random"):
        for key, value in found["forward"].items():
            assert np.array_equal(found[order][key], value), f"{key} differs in {order} order"


def bottlenecks():
    """A narrow network with the ImageNet stem, a 7x7 convolution and max pooling, projections, and a dropout."""
    block = Residual(Bottleneck, OPTIONS["B"])
    return nn.Sequential(ResNet(block, [1, 2], [5, 8], 10, 3, cifar_stem=False), nn.Dropout(0.1))


@pytest.mark.parametrize("network, optimizer", [
    (lambda: models.resnet8(option="B"), adam), (models.preact_resnet20, sgd), (models.plain20, adam),
    (bottlenecks, sgd),
], ids=["resnet8", "preact_resnet20", "plain20", "bottlenecks"])  # fmt: skip
def test_other_networks_in_float64_equal_the_reference(network, optimizer, launched):
    """Projections, pre-activation, no shortcuts, bottlenecks with channels that are no multiple of anything."""
    expected = trained("reference", network, "float64", optimizer)
    distance, key = furthest(trained("emulator", network, "float64", optimizer), expected)
    assert distance < 1e-9, key
    assert {manifest.BY_NAME[name].file for name in launched} >= FILES


def test_resnet20_in_float32_is_as_near_to_float64_as_pytorch_is(torch, launched):
    """Proof 4's bound: the whole gradient, root mean square of three draws, at most twice PyTorch's distance."""
    with kernels.use_kernels("emulator"):
        mine, pytorch = parity.rounding("resnet20", {}, (16, 3, 8, 8), draws=3)
    print(f"\ndistance of the float32 gradient from float64: {mine:.1e}, PyTorch's {pytorch:.1e}")
    assert 1e-8 < mine <= 2 * pytorch
    assert {manifest.BY_NAME[name].file for name in launched if "float" in name} >= FILES - {"optim.cu"}
