"""Taps see each block's fork, shortcut and output, change no number, and leave the network as they found it."""

import numpy as np
import pytest

import tinyres as tr
from tinyres import models, nn, ops
from tinyres.analysis.taps import calls, cut, leaf, objective, shut, tapped, watch
from tinyres.models.blocks import BasicBlock, Block, PreActBasicBlock, SharedPreActBasicBlock
from tinyres.tensor import Tensor

NETWORKS = {
    "option A": ("resnet8", {}), "option B": ("resnet8", {"option": "B"}), "option C": ("resnet8", {"option": "C"}),
    "pre-activation": ("preact_resnet20", {"option": "B"}), "gated": ("exclusive_gate_resnet", {"depth": 8}),
    "scaled": ("scaled_resnet", {"depth": 8, "residual_scale": 0.5}), "shared": ("shared_resnet20", {}),
}


def network(name):
    tr.manual_seed(0)
    build, options = NETWORKS[name]
    return models.build(build, **options).double()


def images(*shape):
    return np.random.default_rng(shape).standard_normal(shape)


def hooks(model):
    return sum(len(m._pre_hooks) + len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_there_is_one_tap_a_call_of_a_block_in_order(name):
    model = network(name)
    with tapped(model) as taps:
        model(leaf(images(4, 3, 8, 8)))
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert [tap.block for tap in taps] == blocks
    assert [tap.name for tap in taps] == [n for n, m in model.named_modules() if isinstance(m, Block)]
    for before, after in zip(taps, taps[1:], strict=False):
        assert after.source is before.output  # nothing stands between blocks here
    for tap in taps:
        assert np.array_equal(tap.entrance.numpy(), tap.source.numpy())
        assert tap.shortcut.shape == tap.output.shape
        assert np.array_equal(tap.door.numpy(), tap.fork.numpy())


@pytest.mark.parametrize("door", [watch, cut, shut])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_door_changes_an_output(name, door):
    model = network(name).eval()
    x = images(4, 3, 8, 8)
    y = model(Tensor(x)).numpy()
    with tapped(model, door):
        assert np.array_equal(model(leaf(x)).numpy(), y)


@pytest.mark.parametrize("name", NETWORKS)
def test_watching_changes_no_gradient(name):
    """An alias hands the gradient on as it is; only the sum at the fork may be taken in another order."""
    model, x, upstream = network(name), images(4, 3, 8, 8), images(4, 10)
    found = []
    for watched in (False, True):
        model.zero_grad()
        at = leaf(x)
        if watched:
            with tapped(model):
                y = model(at)
        else:
            y = model(at)
        y.backward(upstream)
        found.append([at.grad.numpy(), *(p.grad.numpy() for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        assert np.abs(a - b).max() <= 1e-13 * np.abs(b).max()


@pytest.mark.parametrize("block, fork_is_entrance", [(BasicBlock, True), (PreActBasicBlock, True),
                                                     (SharedPreActBasicBlock, False)])
def test_what_a_cut_shortcut_brings_is_what_its_formula_says(block, fork_is_entrance):
    """Behind an identity that is the upstream gradient itself, or after a ReLU where the output is positive; and what
    it does not bring reaches the input through the branch alone."""
    tr.manual_seed(0)
    model = block(4, 4).double()
    x, upstream = images(3, 4, 5, 5), images(3, 4, 5, 5)[::-1].copy()
    at = leaf(x)
    with tapped(model, cut) as taps:
        y = model(at)
    y.backward(upstream)
    (tap,) = taps
    expected = np.where(y.numpy() > 0, upstream, 0.0) if block is BasicBlock else upstream
    assert np.array_equal(tap.door.grad.numpy(), expected)
    assert (tap.fork is tap.entrance) == fork_is_entrance
    through_branch = at.grad.numpy()
    at = leaf(x)
    model(at).backward(upstream)
    if fork_is_entrance:
        assert np.allclose(at.grad.numpy(), through_branch + expected, rtol=0, atol=1e-13)
    else:  # the shared activation stands between the input and the fork
        assert not np.allclose(at.grad.numpy(), through_branch + expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("block", [BasicBlock, PreActBasicBlock, SharedPreActBasicBlock])
def test_behind_a_shut_branch_the_gradient_is_that_of_the_block_without_it(block):
    """Of the values nothing is taken away, so the ReLU after the addition is open where the whole block's is."""
    tr.manual_seed(0)
    model = block(4, 4).double()
    x, upstream = images(3, 4, 5, 5), images(3, 4, 5, 5)[::-1].copy()
    at, other = leaf(x), leaf(x)
    with tapped(model, shut):
        y = model(at)
    y.backward(upstream)
    g = np.where(y.numpy() > 0, upstream, 0.0) if block is BasicBlock else upstream
    if block is SharedPreActBasicBlock:
        model.bn1(other, relu=True).backward(g)
        g = other.grad.numpy()
    assert np.array_equal(at.grad.numpy(), g)


class Twice(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(self.block(x))


def test_a_block_that_is_used_twice_has_two_taps():
    tr.manual_seed(0)
    model = Twice(BasicBlock(4, 4))
    with tapped(model) as taps:
        model(leaf(images(2, 4, 5, 5).astype("float32")))
    assert [tap.name for tap in taps] == ["block", "block"]
    assert taps[1].source is taps[0].output and taps[0].fork is not taps[1].fork


def test_two_blocks_may_have_one_shortcut_module():
    identity = nn.Identity()
    tr.manual_seed(0)
    model = nn.Sequential(BasicBlock(4, 4, 1, identity), BasicBlock(4, 4, 1, identity))
    x = leaf(images(2, 4, 5, 5).astype("float32"))
    with tapped(model) as taps:
        model(x)
        identity(x)  # no block's doing
    assert [tap.name for tap in taps] == ["0", "1"]
    assert all(tap.shortcut is tap.door for tap in taps)


class Nested(Block):
    """A block whose branch is a block."""

    def __init__(self):
        super().__init__()
        self.inner, self.downsample = PreActBasicBlock(4, 4), nn.Identity()

    def forward(self, x):
        return self.inner(x) + self.shortcut(x)


def test_a_block_inside_a_branch_has_a_tap_of_its_own():
    tr.manual_seed(0)
    model = Nested()
    with tapped(model) as taps:
        y = model(leaf(images(2, 4, 5, 5).astype("float32")))
    assert [tap.name for tap in taps] == ["Nested", "inner"]
    assert taps[0].output is y and taps[1].source is taps[0].fork


class NoCall(Block):
    def __init__(self, times):
        super().__init__()
        self.times, self.downsample = times, nn.Identity()

    def forward(self, x):
        for _ in range(self.times):
            x = self.shortcut(x)
        return x * 2.0


@pytest.mark.parametrize("times, words", [(0, "did not call its shortcut"), (2, "called its shortcut twice")])
def test_a_block_that_breaks_the_rule_is_named_and_the_hooks_go(times, words):
    model = nn.Sequential(nn.ReLU(), NoCall(times))
    with pytest.raises(RuntimeError, match=f"NoCall '1' {words}: a block's forward calls self.shortcut once"):
        with tapped(model):
            model(leaf(images(2, 3)))
    assert hooks(model) == 0


def test_no_hook_is_left_behind_and_others_stay():
    model = network("option B")
    model.layer1.register_forward_hook(lambda module, args, output: None)
    for tap_in in (tapped, calls):
        with tap_in(model):
            model(leaf(images(4, 3, 8, 8)))
        with pytest.raises(ValueError), tap_in(model):
            model(leaf(images(4, 5, 8, 8)))
        assert hooks(model) == 1


def test_calls_are_those_of_layers_and_blocks_in_order():
    model = network("option A")
    with calls(model) as made:
        model(leaf(images(4, 3, 8, 8)))
    block = [("conv1", "Conv2d"), ("bn1", "BatchNorm2d"), ("conv2", "Conv2d"), ("bn2", "BatchNorm2d")]
    expected = block[:2]  # the stem; its maxpool is an identity
    for stage in ("layer1.0", "layer2.0", "layer3.0"):
        inside = [(f"{stage}.{name}", kind) for name, kind in block]
        pad = [] if stage == "layer1.0" else [(f"{stage}.downsample", "PadShortcut")]
        expected += [*inside[:3], *pad, inside[3], (stage, "BasicBlock")]
    assert [(call.name, call.type) for call in made] == [*expected, ("fc", "Linear")]
    assert [call.name for call in made if call.is_block] == ["layer1.0", "layer2.0", "layer3.0"]


@pytest.mark.parametrize("name, count", [("plain8", 3), ("plain_mlp", 18), ("residual_mlp", 18)])
def test_blocks_without_a_shortcut_are_blocks_too(name, count):
    model = models.build(name)
    shape = (4, 3, 8, 8) if name == "plain8" else (4, 1, 8, 8)
    with calls(model) as made:
        model(leaf(images(*shape).astype("float32")))
    assert sum(call.is_block for call in made) == count


def test_errors_say_what_they_expect():
    for instrument in (tapped, calls):
        with pytest.raises(TypeError, match="expected a network, got function: pass an nn.Module"):
            with instrument(ops.relu):
                pass
    with pytest.raises(TypeError, match="floats, got int64"):
        leaf(np.arange(3))
    with pytest.raises(TypeError, match="floats, got list"):
        leaf([1.0])
    with pytest.raises(TypeError, match=r"one number as a Tensor, got shape \(2, 10\)"):
        objective(Tensor(images(2, 10)), lambda y: y)
    assert objective(Tensor(np.zeros((2, 10))), np.array([1, 2])).data == pytest.approx(np.log(10))
