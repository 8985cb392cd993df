"""Fixup networks: the three rules of initialisation, the block's formula, and that they train without any norm."""

import numpy as np
import pytest
from block_protocol import classes_of, keeps_the_protocol, moved
from oracles import conv2d, linear

import tinyres as tr
from tinyres import data, models, nn, optim
from tinyres.analysis.gradcheck import gradcheck
from tinyres.models import blocks, fixup, preact
from tinyres.tensor import Tensor
from tinyres.train import train_step


@pytest.fixture(autouse=True)
def seed():
    tr.manual_seed(0)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


# --- counts and initialisation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth, total", [(20, 268_393), (56, 849_091), (110, 1_720_138)])
def test_counts_are_the_resnets_without_norms_and_five_numbers_a_block(depth, total):
    n = (depth - 2) // 6
    norms = 2 * (16 * (2 * n + 1) + 32 * 2 * n + 64 * 2 * n)
    resnet = sum(p.numel() for p in models.build(f"resnet{depth}").parameters())
    model = models.build(f"fixup_resnet{depth}")
    assert sum(p.numel() for p in model.parameters()) == resnet - norms + 5 * 3 * n + 2 == total
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_the_three_rules_of_initialisation():
    """He's standard deviation is sqrt(2 / fan_out); inside a branch it is divided by sqrt(L), L = 27 blocks here."""
    model, ratios = models.fixup_resnet56(), []
    assert not model.fc.weight.numpy().any() and not model.fc.bias.numpy().any()
    for block in (*model.layer1, *model.layer2, *model.layer3):
        assert not block.conv2.weight.numpy().any()
        assert block.scale.item() == 1 and block.scale.shape == ()
        assert not any(getattr(block, name).item() for name in ("bias1a", "bias1b", "bias2a", "bias2b"))
        ratios.append(block.conv1.weight.numpy().std() / np.sqrt(2 / (9 * block.conv1.out_channels)))
    assert abs(np.mean(ratios) * np.sqrt(27) - 1) < 0.01 and np.std(ratios) * np.sqrt(27) < 0.05
    stem = model.conv1.weight.numpy().std() / np.sqrt(2 / (9 * 16))
    assert abs(stem - 1) < 0.1, "the stem is in no branch"


def test_a_new_network_is_its_shortcuts_and_says_nothing():
    """All logits 0, and behind the blocks what the shortcuts leave of the stem's output."""
    model = models.fixup_resnet(depth=14).double()
    x = normal(2, 3, 8, 8)
    seen = []
    model.layer3.register_forward_hook(lambda module, args, output: seen.append(output.numpy()))
    assert np.array_equal(model(Tensor(x)).numpy(), np.zeros((2, 10)))
    stem = np.maximum(conv2d(x, model.conv1.weight.numpy(), padding=1), 0)
    assert np.allclose(seen[0][:, 24:40], stem[:, :, ::4, ::4], rtol=1e-12) and not seen[0][:, :24].any()


# --- what is calculated ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("C, K, stride, option", [(4, 4, 1, "A"), (4, 8, 2, "A"), (4, 8, 2, "B"), (4, 4, 1, "C")])
def test_a_block_against_the_formula(C, K, stride, option):
    block = moved(fixup.FixupBasicBlock(C, K, stride, preact.OPTIONS[option](C, K, stride)))
    s = {name: value if value.ndim else float(value) for name, value in block.state_dict().items()}
    x = normal(2, C, 6, 6)
    h = np.maximum(conv2d(x + s["bias1a"], s["conv1.weight"], stride=stride, padding=1) + s["bias1b"], 0)
    h = conv2d(h + s["bias2a"], s["conv2.weight"], padding=1) * s["scale"] + s["bias2b"]
    if "downsample.0.weight" in s:
        side = conv2d(x, s["downsample.0.weight"], stride=stride)
    else:
        side = np.pad(x[:, :, ::stride, ::stride], ((0, 0), ((K - C) // 2,) * 2, (0, 0), (0, 0)))
    assert np.allclose(block(Tensor(x)).numpy(), np.maximum(h + side, 0), rtol=1e-12, atol=1e-12)


def test_the_networks_ends_against_the_formula():
    """relu(conv + bias1) in front of the blocks, mean + bias2 in front of the linear layer."""
    model = moved(models.fixup_resnet(depth=8, num_classes=3, in_channels=2))
    x, seen = normal(2, 2, 8, 8), {}
    model.layer1.register_forward_pre_hook(lambda module, args: seen.update(first=args[0].numpy()))
    model.layer3.register_forward_hook(lambda module, args, output: seen.update(last=output.numpy()))
    y, s = model(Tensor(x)).numpy(), model.state_dict()
    assert np.allclose(seen["first"], np.maximum(conv2d(x, s["conv1.weight"], padding=1) + float(s["bias1"]), 0))
    expected = linear(seen["last"].mean((2, 3)) + float(s["bias2"]), s["fc.weight"], s["fc.bias"])
    assert np.allclose(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("option", "ABC")
@pytest.mark.parametrize("C, K, stride", [(4, 4, 1), (4, 8, 2)])
def test_gradients_of_the_block(C, K, stride, option):
    block = moved(fixup.FixupBasicBlock(C, K, stride, preact.OPTIONS[option](C, K, stride)))
    result = gradcheck(block, normal(2, C, 4, 4), order=(1, 2), nudge=0.1, directions=2, raise_on_failure=True)
    assert result.max_relative_error < 1e-6 and not result.notes


def test_gradients_of_the_network():
    """Off its initial zeros, where most gradients vanish."""
    model = moved(models.fixup_resnet(depth=8, num_classes=3, in_channels=1))
    gradcheck(model, normal(2, 1, 8, 8), order=(1, 2), nudge=0.1, directions=2, raise_on_failure=True)


def test_each_block_is_among_the_cases():
    assert classes_of(fixup) == {fixup.FixupBasicBlock, fixup.FixupResNet}


@pytest.mark.parametrize("C, K, stride", [(4, 4, 1), (4, 8, 2)])
def test_the_block_keeps_the_protocol(C, K, stride):
    keeps_the_protocol(fixup.FixupBasicBlock(C, K, stride), normal(2, C, 6, 6))


# --- training --------------------------------------------------------------------------------------------------------


def unscaled(depth):
    """The same network from He's initialisation alone: what Fixup mends."""
    model = models.fixup_resnet(depth=depth, in_channels=1)
    blocks.he_init_(model)
    model.fc.reset_parameters()
    return model


def test_it_trains_without_norm():
    """By SGD with clipped gradients: without clipping, the steps that leave the plateau at ln 10 are too long."""
    digits = data.digits("train")
    x, y = np.asarray(digits.images[:128], "float32"), digits.labels[:128]
    x = (x - x.mean()) / x.std()
    model = models.fixup_resnet20(in_channels=1)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = [train_step(model, optimizer, x, y, clip_norm=1.0)[0] for _ in range(50)]
    assert abs(losses[0] - np.log(10)) < 1e-5 and max(losses) < 3 and max(losses[-3:]) < 0.6, losses


def test_hes_initialisation_alone_explodes():
    """Its activations grow by a factor a block, and so do its logits; Fixup's are 0."""
    x, y = normal(16, 1, 8, 8).astype("float32"), np.arange(16) % 10
    losses = [tr.cross_entropy(unscaled(depth)(Tensor(x)), y).item() for depth in (8, 20, 56)]
    assert losses[0] < 5 and losses[2] > 20 and losses[2] > 5 * losses[1], losses


def test_the_first_steps_change_the_outputs_alike_at_every_depth():
    """The purpose of rule 2: SGD moves the outputs by an amount that does not depend on L."""
    x, y = normal(16, 1, 8, 8).astype("float32"), np.arange(16) % 10
    changes = []
    for depth in (8, 20, 56):
        tr.manual_seed(1)
        model = models.fixup_resnet(depth=depth, in_channels=1)
        optimizer = optim.SGD(model.parameters(), lr=0.05)
        for _ in range(3):
            tr.cross_entropy(model(Tensor(x)), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        with tr.no_grad():
            changes.append(float(np.sqrt((model(Tensor(x)).numpy() ** 2).mean())))
    assert max(changes) < 2 * min(changes), changes


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors():
    with pytest.raises(ValueError, match=r"fixup_resnet: depth must be 6n\+2, got 21: use 20"):
        models.fixup_resnet(depth=21)
    with pytest.raises(ValueError, match="option must be one of A, B, C"):
        models.fixup_resnet20(option="D")
    with pytest.raises(ValueError, match="FixupResNet: num_classes must be a positive int, got 0"):
        models.fixup_resnet20(num_classes=0)
