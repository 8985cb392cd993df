"""Stochastic depth: the probabilities, one draw a block and call, and the expectation that eval mode stands for."""

import itertools

import numpy as np
import pytest
from block_protocol import classes_of, keeps_the_protocol, moved

import tinyres as tr
from tinyres import models, nn, optim, random
from tinyres.analysis.gradcheck import gradcheck
from tinyres.models import resnet, stochastic_depth
from tinyres.models.stochastic_depth import StochasticBasicBlock, linear_decay, stochastic_depth_resnet
from tinyres.tensor import Tensor


@pytest.fixture(autouse=True)
def seed():
    tr.manual_seed(0)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def blocks_of(model):
    return [block for name in model.stages for block in getattr(model, name)]


@pytest.fixture
def draws(monkeypatch):
    """Put True (the branch survives) or False here: the blocks take them in turn."""
    coming = []
    monkeypatch.setattr(stochastic_depth, "survives", lambda survival: coming.pop(0))
    return coming


# --- probabilities and draws -----------------------------------------------------------------------------------------


def test_survival_falls_linearly_to_the_last_block():
    """p_l = 1 - l/L (1 - p_L); the paper's 110-layer network has 54 blocks, of which about 40 survive a batch."""
    found = linear_decay(54, 0.5)
    assert len(found) == 54 and found[0] == 1 - 1 / 108 and found[26] == 0.75 and found[-1] == 0.5
    assert abs(sum(found) - 40.25) < 1e-9
    model = models.stochastic_depth_resnet110()
    assert [block.survival for block in blocks_of(model)] == found
    assert sum(p.numel() for p in model.parameters()) == 1_727_962
    assert linear_decay(4, 1) == [1.0] * 4 and linear_decay(2, 0) == [0.5, 0.0]


@pytest.mark.parametrize("survival", [0.0, 0.3, 0.5, 1.0])
def test_the_draw_has_the_probability(survival):
    tr.manual_seed(3)
    hits = sum(stochastic_depth.survives(survival) for _ in range(20_000))
    assert abs(hits / 20_000 - survival) < 5 * np.sqrt(survival * (1 - survival) / 20_000) + 1e-12


def test_each_block_draws_one_word_a_call_in_training_and_none_in_eval_mode():
    model = stochastic_depth_resnet(depth=20)
    x = Tensor(normal(2, 3, 8, 8).astype("float32"))
    tr.manual_seed(5)
    words = [random.key() for _ in range(30)]
    tr.manual_seed(5)
    model(x)
    assert random.key() == words[9], "nine blocks, whatever became of them"
    model.eval()(x)
    assert random.key() == words[10]


def test_a_seed_fixes_which_branches_survive():
    model = stochastic_depth_resnet(depth=20, survival=0.3)
    x = Tensor(normal(2, 3, 8, 8).astype("float32"))
    outputs = []
    for s in (1, 1, 2, 3, 4):
        tr.manual_seed(s)
        outputs.append(model(x).numpy())
    assert np.array_equal(outputs[0], outputs[1])
    assert not all(np.array_equal(outputs[0], other) for other in outputs[2:])


# --- what is calculated ----------------------------------------------------------------------------------------------


def test_if_all_survive_it_is_resnet20_bit_for_bit():
    x = Tensor(normal(4, 3, 8, 8).astype("float32"))
    tr.manual_seed(1)
    ours = stochastic_depth_resnet(depth=20, survival=1.0)
    tr.manual_seed(1)
    theirs = models.resnet20()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert np.array_equal(ours(x).numpy(), theirs(x).numpy())
    assert np.array_equal(ours.eval()(x).numpy(), theirs.eval()(x).numpy())


def test_eval_mode_weighs_the_branch_by_its_survival():
    """relu(x + p F(x)), and F(x) is what a block with p = 1 shows before its ReLU."""
    block = moved(StochasticBasicBlock(4, 4, survival=0.3)).eval()
    x = normal(2, 4, 5, 5)
    h = block.bn2(block.conv2(block.bn1(block.conv1(Tensor(x)), relu=True))).numpy()
    assert np.allclose(block(Tensor(x)).numpy(), np.maximum(x + 0.3 * h, 0), rtol=1e-14)


def test_a_dropped_branch_is_not_computed_and_learns_nothing(draws):
    """Its gradients are 0, not None: the optimizer's audit has nothing to report, and momentum goes on."""
    block = StochasticBasicBlock(4, 8, 2, resnet.shortcut_a(4, 8, 2), survival=0.5)
    draws += [False, True]
    block.conv2.register_forward_hook(lambda *args: draws.append("ran"))
    before = block.state_dict()
    leaf = tr.tensor(normal(2, 4, 6, 6).astype("float32"), requires_grad=True)
    y = block(leaf)
    assert draws == [True] and y.dtype == np.float32
    assert np.array_equal(y.numpy(), block.without_branch(leaf).numpy())
    y.sum().backward()
    assert all(p.grad is not None and not p.grad.numpy().any() for p in block.parameters())
    assert leaf.grad.numpy().any()
    optim.SGD(block.parameters(), lr=0.1).step()  # a warning would be an error here
    assert all(np.array_equal(before[name], value) for name, value in block.state_dict().items())
    block(leaf)
    assert draws == ["ran"] and block.bn1.num_batches_tracked.item() == 1


class Bare(nn.Module):
    """In place of a batch norm, which is not linear in a batch: what it is asked to add and to rectify."""

    def forward(self, x, add=None, relu=False):
        y = x if add is None else x + add
        return tr.relu(y) if relu else y


def test_the_expectation_over_all_draws_is_eval_mode_on_a_linear_network(draws):
    """2^6 of them, each with its probability. Weights and inputs are positive, so every ReLU is an identity."""
    decay = linear_decay(6, 0.4)
    network = nn.Sequential(*(StochasticBasicBlock(2, 2, survival=p) for p in decay)).double()
    for block in network:
        block.bn1, block.bn2 = Bare(), Bare()
        for conv in (block.conv1, block.conv2):
            conv.weight.data = 0.2 * np.abs(conv.weight.data)
    x = np.abs(normal(2, 2, 4, 4))
    mean = 0.0
    for alive in itertools.product([True, False], repeat=6):
        draws[:] = alive
        weight = np.prod([p if a else 1 - p for p, a in zip(decay, alive, strict=True)])
        mean = mean + weight * network(Tensor(x)).numpy()
    assert np.allclose(mean, network.eval()(Tensor(x)).numpy(), rtol=1e-12)
    assert not np.allclose(mean, x, rtol=0.1)


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training, seed", [(True, 2), (True, 4), (False, 0)])
@pytest.mark.parametrize("option", "ABC")
def test_gradients_of_the_block(training, seed, option):
    """gradcheck sets the generator back before each evaluation: the draw is fixed. Seed 4 keeps, seed 2 drops."""
    block = StochasticBasicBlock(4, 8, 2, resnet.OPTIONS[option](4, 8, 2), survival=0.5).train(training)
    tr.manual_seed(seed)
    result = gradcheck(block, normal(2, 4, 4, 4), order=(1, 2), nudge=0.1, directions=2, raise_on_failure=True)
    assert result.max_relative_error < 1e-6
    if training:
        assert stochastic_depth.survives(0.5) == (seed == 4)


def test_gradients_of_a_network_some_of_whose_branches_are_dropped():
    model = stochastic_depth_resnet(depth=20, survival=0.2)
    tr.manual_seed(1)
    gradcheck(model, normal(8, 3, 8, 8), order=(1, 2), nudge=0.1, directions=2, raise_on_failure=True)


def test_each_block_is_among_the_cases():
    assert classes_of(stochastic_depth) == {StochasticBasicBlock}


@pytest.mark.parametrize("C, K, stride", [(4, 4, 1), (4, 8, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_the_block_keeps_the_protocol(C, K, stride, training, monkeypatch):
    monkeypatch.setattr(stochastic_depth, "survives", lambda survival: True)
    block = StochasticBasicBlock(C, K, stride, resnet.shortcut_a(C, K, stride), survival=0.6).train(training)
    keeps_the_protocol(block, normal(2, C, 6, 6))


def test_folding_keeps_the_survival():
    model = stochastic_depth_resnet(depth=8, survival=0.5)
    x = Tensor(normal(4, 3, 8, 8).astype("float32"))
    model(x)
    folded = nn.fold_batch_norm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert np.allclose(folded(x).numpy(), model.eval()(x).numpy(), rtol=1e-4, atol=1e-5)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors():
    for survival in (-0.1, 1.5, float("nan"), "often"):
        with pytest.raises(ValueError, match=r"linear_decay: survival must lie in \[0, 1\]"):
            stochastic_depth_resnet(survival=survival)
    with pytest.raises(ValueError, match=r"StochasticBasicBlock: survival must lie in \[0, 1\].*got 2"):
        StochasticBasicBlock(4, 4, survival=2)
    with pytest.raises(ValueError, match=r"stochastic_depth_resnet: depth must be 6n\+2, got 9"):
        stochastic_depth_resnet(depth=9)
    with pytest.raises(ValueError, match="linear_decay: blocks must be a positive int, got 0"):
        linear_decay(0, 0.5)
