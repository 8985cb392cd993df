"""Weights shared over depth: the unshared twin's function, gradients that add up, and each parameter counted once."""

import copy

import numpy as np
import pytest
from block_protocol import classes_of, keeps_the_protocol, moved

import tinyres as tr
from tinyres import models, nn, ops, optim, weights
from tinyres.analysis.gradcheck import gradcheck
from tinyres.analysis.summary import summary
from tinyres.ema import ExponentialMovingAverage
from tinyres.models import resnet, shared
from tinyres.models.blocks import BasicBlock, Block
from tinyres.models.shared import Borrowed
from tinyres.tensor import Tensor

NAMES = ["shared_resnet", "shared_conv_resnet"]


@pytest.fixture(autouse=True)
def seed():
    tr.manual_seed(0)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def count(model):
    return sum(p.numel() for p in model.parameters())


def blocks_of(model):
    return [block for name in model.stages for block in getattr(model, name)]


def name_of_source(name, stage_first):
    """Where a shared network keeps what resnet20 has as `name`: with the first block of its stage that keeps its
    shape, unless that is the block's own. Both ways of sharing."""
    layer, number, rest = name.split(".", 2)
    first = stage_first[layer]
    if int(number) < first:
        return [name]
    conv = rest.replace("conv1", "convs.0").replace("conv2", "convs.1")
    return [f"{layer}.{first}.branch.{rest}", f"{layer}.{first if 'conv' in rest else number}.{conv}"]


def pair(name, depth=20, **options):
    """A shared network in float64, and the resnet without sharing that has the same weights in all its blocks."""
    one = moved(models.build(name, depth=depth, **options))
    many = resnet.cifar_resnet(depth, **options).double()
    state, stage_first = one.state_dict(), {"layer1": 0, "layer2": 1, "layer3": 1}
    sources = {key: next((s for s in name_of_source(key, stage_first) if s in state), key)
               if key.startswith("layer") and "downsample" not in key else key for key in many.state_dict()}
    many.load_state_dict({key: state[source] for key, source in sources.items()})
    return one, many, sources


# --- counts ----------------------------------------------------------------------------------------------------------


def test_counts():
    """Of each stage the blocks that keep their shape count once: 167,834, and 2 batch norms more a block else."""
    conv, norm = lambda C, K: 9 * C * K, lambda C: 2 * C
    total = conv(3, 16) + norm(16) + 2 * (conv(16, 16) + norm(16)) + 64 * 10 + 10
    for C, K in ((16, 32), (32, 64)):
        total += conv(C, K) + conv(K, K) + 2 * norm(K) + 2 * (conv(K, K) + norm(K))
    assert count(models.shared_resnet20()) == count(models.shared_resnet56()) == total == 167_834
    assert count(models.shared_resnet(depth=14)) == total
    extra = 2 * 2 * norm(16) + 2 * norm(32) + 2 * norm(64)
    assert count(models.shared_conv_resnet20()) == total + extra == 168_346
    assert count(models.shared_resnet20(option="B")) == total + 16 * 32 + 32 * 64 + norm(32) + norm(64)
    assert count(models.shared_resnet(depth=8)) == count(models.shared_conv_resnet(depth=8)) == count(models.resnet8())
    assert type(shared.Sharing(shared.SharedBasicBlock, resnet.shortcut_b)(4, 8, 1)) is BasicBlock
    model = models.shared_resnet20(num_classes=4, in_channels=1)
    assert count(model) == total - 2 * 9 * 16 - 6 * 65 and model(normal(2, 1, 8, 8).astype("float32")).shape == (2, 4)


@pytest.mark.parametrize("name, total", [("shared_resnet", 167_834), ("shared_conv_resnet", 168_346)])
def test_everything_that_counts_counts_once(name, total):
    model = models.build(name)
    state = {key: value for key, value in model.state_dict().items() if "running" not in key and "num_b" not in key}
    assert sum(value.size for value in state.values()) == total
    assert list(state) == [key for key, _ in model.named_parameters()]
    found = summary(model, (3, 8, 8))
    assert found.parameters == found.trainable == total == sum(row.parameters for row in found.rows)
    assert found.multiply_adds == summary(models.resnet20(), (3, 8, 8)).multiply_adds, "every use costs"
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    assert sum(p.numel() for p in optimizer.parameters()) == total
    assert len(blocks_of(model)) == 9 and len({id(block) for block in blocks_of(model)}) == 9
    assert all(isinstance(block, Block) for block in blocks_of(model))


# --- the function and its gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("option", "ABC")
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_a_shared_weight_is_the_sum_over_its_uses(name, option):
    """Exactly the sum of the gradients of the unshared twin's blocks, taken in the order of backward."""
    one, many, sources = pair(name, option=option)
    x, upstream = normal(4, 3, 8, 8), normal(4, 10)
    outputs = []
    for model in (one, many):
        y = model(tr.tensor(x))
        y.backward(upstream)
        outputs.append(y.numpy())
    assert np.array_equal(*outputs)
    theirs = dict(many.named_parameters())
    for key, p in one.named_parameters():
        uses = [theirs[name].grad.numpy() for name, source in sources.items() if source == key]
        total = uses[-1]
        for grad in reversed(uses[:-1]):
            total = total + grad
        assert np.array_equal(p.grad.numpy(), total), key
    used = [sum(source == key for source in sources.values()) for key, _ in one.named_parameters()]
    assert sorted(set(used)) == [1, 2, 3]


def test_shared_statistics_take_every_use_and_separate_ones_their_own():
    x = normal(8, 3, 8, 8)
    one, many, _ = pair("shared_resnet")
    start = one.layer1[0].branch.bn1.running_mean.numpy().copy()
    one(Tensor(x)), many(Tensor(x))
    batch_means = [(block.bn1.running_mean.numpy() - 0.9 * start) / 0.1 for block in many.layer1]
    expected = start
    for mean in batch_means:
        expected = 0.9 * expected + 0.1 * mean
    norm = one.layer1[0].branch.bn1
    assert np.allclose(norm.running_mean.numpy(), expected, rtol=1e-12, atol=1e-14)
    assert norm.num_batches_tracked.item() == 3
    one, many, _ = pair("shared_conv_resnet")
    one(Tensor(x)), many(Tensor(x))
    for ours, theirs in zip(blocks_of(one), blocks_of(many), strict=True):
        assert np.array_equal(ours.bn2.running_var.numpy(), theirs.bn2.running_var.numpy())
    assert np.array_equal(one.eval()(Tensor(x)).numpy(), many.eval()(Tensor(x)).numpy())


# --- save, load, copy, step, fold ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_and_refuse_what_is_not_shared(name, tmp_path):
    one, many, _ = pair(name)
    x = normal(2, 3, 8, 8)
    one(Tensor(x))
    weights.save(one, tmp_path / "one.safetensors")
    other = models.build(name).double()
    weights.load(other, tmp_path / "one.safetensors")
    assert np.array_equal(other.eval()(Tensor(x)).numpy(), one.eval()(Tensor(x)).numpy())
    assert weights.identify(one.state_dict()) is None, "it is not taken for a smaller resnet"
    before = one.state_dict()
    with pytest.raises(ValueError, match="missing from the state(.|\n)*unknown to the model"):
        one.load_state_dict(many.state_dict())
    assert all(np.array_equal(before[key], value) for key, value in one.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_shares_among_itself_alone(name):
    one = moved(models.build(name))
    twin, before = copy.deepcopy(one), one.state_dict()
    kept = set(twin.modules())
    borrowers = [module for module in twin.modules() if isinstance(module, Borrowed)]
    assert len(borrowers) == (4 if name == "shared_resnet" else 8)
    assert all(borrower.owner in kept for borrower in borrowers)
    x = normal(2, 3, 8, 8)
    twin(tr.tensor(x)).backward(normal(2, 10))
    grads = [p.grad.numpy().copy() for p in twin.parameters()]
    optim.SGD(twin.parameters(), lr=0.5).step()
    for grad, p, old in zip(grads, twin.parameters(), one.parameters(), strict=True):
        assert np.array_equal(p.numpy(), old.numpy() - 0.5 * grad), "one step, not one a use"
    assert all(np.array_equal(before[key], value) for key, value in one.state_dict().items())
    average = ExponentialMovingAverage(one)
    one.load_state_dict(twin.state_dict())
    average.update()  # the first keeps a tenth
    after = one.state_dict()
    for key, mean in average.model.named_parameters():
        assert np.allclose(mean.numpy(), 0.1 * before[key] + 0.9 * after[key], rtol=1e-12), key


@pytest.mark.parametrize("name, folds", [("shared_resnet", 5), ("shared_conv_resnet", 5)])
def test_folding_leaves_what_is_used_more_than_once(name, folds):
    """Five batch norms are behind a convolution of their own: the stem's and two each of the first blocks."""
    model = models.build(name)
    x = Tensor(normal(8, 3, 8, 8).astype("float32"))
    for _ in range(5):
        model(x)
    folded = nn.fold_batch_norm(model)
    assert sum(isinstance(module, nn.FoldedConv2d) for module in folded.modules()) == folds
    assert np.allclose(folded(x).numpy(), model.eval()(x).numpy(), rtol=1e-4, atol=1e-5)
    twice = nn.Sequential(*list(model.layer2)[1:])
    with pytest.raises(ValueError, match="ran 2 times"):
        nn.fold_batch_norm(twice, np.zeros((1, 32, 4, 4), "float32"))


def test_zero_init_starts_every_block_as_its_shortcut():
    for name in NAMES:
        model = models.build(name, zero_init_residual=True)
        x = Tensor(normal(2, 16, 4, 4).astype("float32"))
        y = x
        for block in model.layer1:
            y = block(y)
        assert np.array_equal(y.numpy(), ops.relu(x).numpy())


# --- gradients -------------------------------------------------------------------------------------------------------

BLOCKS = [shared.SharedBasicBlock, shared.SharedConvBasicBlock]


class Uses(nn.Module):
    """A block, and twice more on its weights."""

    def __init__(self, block, shortcut):
        super().__init__()
        first = block(4, shortcut(4, 4, 1))
        self.first, self.second, self.third = first, first.again(shortcut(4, 4, 1)), first.again(shortcut(4, 4, 1))

    def forward(self, x):
        return self.third(self.second(self.first(x)))


@pytest.mark.parametrize("option", "AC")
@pytest.mark.parametrize("block", BLOCKS)
def test_gradients_of_blocks_that_share(block, option):
    result = gradcheck(Uses(block, resnet.OPTIONS[option]), normal(2, 4, 4, 4), order=(1, 2), nudge=0.1, directions=2,
                       raise_on_failure=True)
    assert result.max_relative_error < 1e-6 and not result.notes


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_networks(name):
    gradcheck(models.build(name), normal(8, 3, 8, 8), order=(1, 2), nudge=0.1, directions=2, raise_on_failure=True)


def test_each_block_is_among_the_cases():
    assert classes_of(shared) == {*BLOCKS, Borrowed, shared.BasicBranch}


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_keep_the_protocol_also_on_borrowed_weights(block):
    keeps_the_protocol(block(4, nn.Identity()), normal(2, 4, 5, 5))
    uses = Uses(block, resnet.shortcut_a)
    keeps_the_protocol(uses.first, normal(2, 4, 5, 5))
    x, asked = tr.tensor(normal(2, 4, 5, 5)), []
    uses.double()
    uses.second.shortcut.register_forward_pre_hook(lambda module, args: asked.append(args[0]))
    uses.second(x)
    assert len(asked) == 1 and asked[0] is x
    later = uses.third.again(nn.Identity())  # a block on borrowed weights lends them on, not its borrowed modules
    parts = [(later.branch, uses.first.branch)] if block is shared.SharedBasicBlock else zip(
        later.convs, uses.first.convs, strict=True)
    assert all(borrowed.owner is owner for borrowed, owner in parts)


def test_hooks_of_a_borrowed_module_are_its_own_and_those_of_the_owner_see_every_use():
    model, calls = models.shared_resnet20(), []
    model.layer1[0].branch.register_forward_hook(lambda *args: calls.append("owner"))
    model.layer1[2].branch.register_forward_hook(lambda *args: calls.append("third"))
    model(Tensor(normal(1, 3, 8, 8).astype("float32")))
    assert calls == ["owner", "owner", "owner", "third"]
    assert repr(model.layer1[2].branch) == "Borrowed(BasicBranch)"
    assert isinstance(model.layer2[0], BasicBlock) and model.layer2[2].branch.owner is model.layer2[1].branch


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors():
    with pytest.raises(ValueError, match=r"shared_resnet: depth must be 6n\+2, got 19: use 20"):
        models.shared_resnet(depth=19)
    with pytest.raises(ValueError, match=r"shared_conv_resnet: depth must be 6n\+2, got 10"):
        models.shared_conv_resnet(depth=10)
    with pytest.raises(ValueError, match="option must be one of A, B, C"):
        models.shared_resnet20(option="E")
