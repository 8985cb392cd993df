"""Gradients and Hessian products of whole networks and of each block against finite differences, in float64.

The sizes leave 8 values per channel to the batch norms of the last stage: with fewer, their curvature spoils the
differences. nudge moves the scales off 1 and the shifts off 0, where a forgotten factor would not show. With -s it
prints what it found.
"""

import time

import numpy as np
import pytest

import tinyres as tr
from tinyres import models, nn
from tinyres.analysis.gradcheck import ALL, gradcheck
from tinyres.models import blocks, preact, resnet

# Name -> (network, its options, images, step). ResNet-50 is the most curved: its step is smaller.
CIFAR = {"cifar_stem": True, "num_classes": 10}
NETWORKS = {
    "resnet20 A": ("resnet20", {}, (8, 3, 8, 8), 1e-5),
    "resnet20 B": ("resnet20", {"option": "B"}, (8, 3, 8, 8), 1e-5),
    "resnet20 C": ("resnet20", {"option": "C"}, (2, 3, 16, 16), 1e-5),
    "plain20": ("plain20", {}, (8, 3, 8, 8), 1e-5),
    "preact20": ("preact_resnet20", {}, (8, 3, 8, 8), 1e-5),
    "preact20 B": ("preact_resnet20", {"option": "B"}, (2, 3, 16, 16), 1e-5),
    "resnet18": ("resnet18", CIFAR, (2, 3, 16, 16), 1e-5),
    "resnet18, 7x7 stem": ("resnet18", {"num_classes": 10}, (8, 3, 32, 32), 1e-5),
    "resnet50": ("resnet50", CIFAR, (2, 3, 16, 16), 3e-6),
}


def images(*shape):
    return np.random.default_rng(shape).standard_normal(shape)


def network(name):
    build, options, shape, step = NETWORKS[name]
    tr.manual_seed(0)
    return models.build(build, **options), images(*shape), step


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_networks_in_training(name, order):
    model, x, step = network(name)
    began = time.perf_counter()
    with tr.use_kernels("fast"):  # what trains is what is checked
        result = gradcheck(model, x, order=order, step=step, nudge=0.1, directions=2, raise_on_failure=True)
    print(f"\n{name}, order {order}, {time.perf_counter() - began:.1f} s: {result}")
    assert result.max_relative_error < 1e-6
    assert not result.notes  # every parameter was checked, and no batch norm saw fewer than 8 values
    named = {parameter for parameter, _ in model.named_parameters()}
    assert set(result.errors[order]) == named | {"input 0"} | ({ALL} if order == 1 else set())


@pytest.mark.parametrize("name", ["resnet20 A", "preact20", "plain20"])
def test_gradients_of_networks_with_a_loss_and_in_eval_mode(name):
    model, x, step = network(name)
    model(tr.Tensor(x.astype("float32")))  # running statistics that are not 0 and 1
    labels = np.arange(len(x)) % 10
    for training in (True, False):
        result = gradcheck(lambda m, x: tr.cross_entropy(m(x), labels, label_smoothing=0.1), model.train(training), x,
                           order=(1, 2), step=step, nudge=0.1, directions=2, raise_on_failure=True)
        assert result.max_relative_error < 1e-6, str(result)


# --- blocks -----------------------------------------------------------------------------------------------------------

POST = (blocks.BasicBlock, blocks.Bottleneck)
PRE = (blocks.PreActBasicBlock, blocks.PreActBottleneck, blocks.SharedPreActBasicBlock, blocks.SharedPreActBottleneck)
SHAPES = {"same": (4, 4, 1), "wider": (4, 8, 1), "halved": (4, 8, 2), "same width, halved": (4, 4, 2)}
CASES = [(block, option, size) for block in (*POST, *PRE) for option in "ABC" for size in SHAPES]
CASES += [(blocks.PlainBlock, "-", size) for size in SHAPES]


def make(block, option, size):
    C, K, stride = SHAPES[size]
    tr.manual_seed(1)
    if block is blocks.PlainBlock:
        return block(C, K, stride)
    options = resnet.OPTIONS if block in POST else preact.OPTIONS
    return block(C, K, stride, options[option](C, K, stride))


@pytest.mark.parametrize("kernels", ["fast", "reference"])
@pytest.mark.parametrize("block, option, size", CASES, ids=lambda v: getattr(v, "__name__", v))
def test_gradients_of_blocks(block, option, size, kernels):
    with tr.use_kernels(kernels):
        result = gradcheck(make(block, option, size), images(2, 4, 4, 4), order=(1, 2), nudge=0.1, directions=2,
                           raise_on_failure=True)
    assert result.max_relative_error < 1e-6 and not result.notes
    assert f"kernels {kernels}" in str(result)


def test_each_block_is_among_the_cases():
    """A block that is added to blocks.py must be added here."""
    modules = [c for c in vars(blocks).values() if isinstance(c, type) and issubclass(c, nn.Module)]
    shortcuts = {blocks.PadShortcut, blocks.ProjectionShortcut, blocks.ConvShortcut}
    assert {c for c in modules if c.__module__ == blocks.__name__} - shortcuts - {blocks.Block} == {c[0] for c in CASES}
