"""Residual MLPs: the formula of the block, growth with depth, one linear layer for all blocks."""

import copy
import math

import numpy as np
import pytest
from block_protocol import classes_of, keeps_the_protocol, moved

import tinyres as tr
from tinyres import models, nn, optim, weights
from tinyres.analysis.gradcheck import gradcheck
from tinyres.models import mlp
from tinyres.models.shared import Borrowed
from tinyres.tensor import Tensor


@pytest.fixture(autouse=True)
def seed():
    tr.manual_seed(0)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def count(model):
    return sum(p.numel() for p in model.parameters())


# --- what is calculated ----------------------------------------------------------------------------------------------

NAMES = [constructor.__name__ for constructor in mlp.NETWORKS]


def by_hand(model, x, shortcut, scales):
    """The network in NumPy: every block x + a (W relu(x) + b), or the bracket alone."""
    state = model.state_dict()
    h = x.reshape(len(x), -1) @ state["stem.weight"].T + state["stem.bias"]
    for i, a in enumerate(scales):
        name = f"layer1.{i}.linear" if f"layer1.{i}.linear.weight" in state else "layer1.0.linear"
        h = shortcut * h + a * (np.maximum(h, 0) @ state[f"{name}.weight"].T + state[f"{name}.bias"])
    return np.maximum(h, 0) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("name", NAMES)
def test_networks_against_the_formula(name):
    options = {"a": 0.3} if name in ("residual_mlp", "learned_scale_mlp", "shared_residual_mlp") else {}
    model = moved(models.build(name, num_classes=4, in_features=18, depth=5, width=7, **options))
    scales = [float(block.a.item() if isinstance(block.a, Tensor) else block.a) if hasattr(block, "a") else 1.0
              for block in model.layer1]
    x = normal(3, 2, 3, 3)
    expected = by_hand(model, x, 0.0 if name in ("plain_mlp", "shared_mlp") else 1.0, scales)
    assert np.allclose(model(Tensor(x)).numpy(), expected, rtol=1e-12, atol=1e-12)
    assert np.array_equal(model(Tensor(x.reshape(3, 18))).numpy(), model(Tensor(x)).numpy())


def test_counts():
    ends = 64 * 100 + 100 + 100 * 10 + 10
    hidden = 100 * 100 + 100
    assert count(models.residual_mlp()) == count(models.plain_mlp()) == ends + 18 * hidden == 189_310
    assert count(models.learned_scale_mlp()) == count(models.rezero_mlp()) == ends + 18 * (hidden + 1)
    for depth in (1, 18, 40):
        assert count(models.shared_mlp(depth=depth)) == count(models.shared_residual_mlp(depth=depth)) == ends + hidden


@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_and_every_parameter_gets_a_gradient(name):
    model = models.build(name, depth=4, width=12)
    if name == "rezero_mlp":
        for block in model.layer1:
            nn.init.constant_(block.a, 0.1)
    y = model(normal(6, 1, 8, 8).astype("float32"))
    assert y.shape == (6, 10) and y.dtype == np.float32
    tr.cross_entropy(y, np.arange(6)).backward()
    assert all(p.grad.dtype == np.float32 and p.grad.numpy().any() for p in model.parameters())


# --- growth without norm ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a, one_seed", [(1.0, 1.7e7), (0.1, 1.26), (mlp.inverse_sqrt(50), 1.5)])
def test_fifty_blocks_grow_as_the_theory_says(a, one_seed):
    """(1 + a^2)^(L/2) in the mean over seeds of the logarithm, a block; the one seed of the lessons is no outlier.

    Each seed draws the weights and one input.
    """
    depth, growth = 50, []
    for s in range(24):
        tr.manual_seed(s)
        blocks = models.residual_mlp(depth=depth, width=100, a=a).layer1
        x = normal(1, 100, seed=s).astype("float32")
        with tr.no_grad():
            y = blocks(Tensor(x)).numpy()
        growth.append(math.sqrt((y.astype("float64") ** 2).mean() / (x**2).mean()))
    theory = (1 + a * a) ** (depth / 2)
    a_block = math.exp(np.mean(np.log(growth)) / depth)
    print(f"\na = {a:.3f}: {np.exp(np.mean(np.log(growth))):.4g} in the geometric mean, from {min(growth):.4g} to "
          f"{max(growth):.4g}, theory {theory:.4g}")
    assert abs(a_block / math.sqrt(1 + a * a) - 1) < 0.01
    assert min(growth) < one_seed < max(growth)


def test_the_plain_twin_keeps_its_size():
    """He's initialisation is made for that: W relu(x) has the size of x, 1.0 a block."""
    sizes = []
    for s in range(24):
        tr.manual_seed(s)
        x = normal(64, 100, seed=s).astype("float32")
        with tr.no_grad():
            y = models.plain_mlp(depth=20).layer1(Tensor(x)).numpy()
        sizes.append(math.sqrt((y**2).mean() / (x**2).mean()))
    assert abs(math.exp(np.mean(np.log(sizes)) / 20) - 1) < 0.03


def test_inverse_sqrt():
    assert mlp.inverse_sqrt(25) == 0.2
    with pytest.raises(ValueError, match="inverse_sqrt: depth must be a positive int, got 0"):
        mlp.inverse_sqrt(0)


# --- blocks ----------------------------------------------------------------------------------------------------------

BLOCKS = {mlp.MLPBlock: lambda linear: mlp.MLPBlock(linear, 0.7),
          mlp.LearnedMLPBlock: lambda linear: mlp.LearnedMLPBlock(linear, 0.7), mlp.PlainMLPBlock: mlp.PlainMLPBlock}


@pytest.mark.parametrize("block", BLOCKS)
def test_gradients_of_blocks(block):
    result = gradcheck(BLOCKS[block](mlp.hidden_linear(6)), normal(3, 6), order=(1, 2), nudge=0.1, directions=2,
                       raise_on_failure=True)
    assert result.max_relative_error < 1e-6 and not result.notes


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_networks(name):
    model = models.build(name, num_classes=3, in_features=5, depth=4, width=6)
    gradcheck(model, normal(3, 5), order=(1, 2), nudge=0.1, directions=2, raise_on_failure=True)


def test_each_block_is_among_the_cases():
    assert classes_of(mlp) == {*BLOCKS, mlp.MLP}


@pytest.mark.parametrize("block", [mlp.MLPBlock, mlp.LearnedMLPBlock])
def test_blocks_keep_the_protocol(block):
    keeps_the_protocol(BLOCKS[block](mlp.hidden_linear(6)), normal(4, 6))


def test_a_learned_scale_from_zero_is_an_identity_whose_scale_learns_first():
    """d a = <upstream, W relu(x)>, and W follows once a has moved."""
    block = mlp.LearnedMLPBlock(mlp.hidden_linear(6)).double()
    x, upstream = normal(4, 6), normal(4, 6, seed=1)
    y = block(tr.tensor(x))
    assert np.array_equal(y.numpy(), x)
    y.backward(upstream)
    expected = (upstream * (np.maximum(x, 0) @ block.linear.weight.numpy().T)).sum()
    assert np.isclose(block.a.grad.item(), expected, rtol=1e-12) and not block.linear.weight.grad.numpy().any()
    optim.SGD(block.parameters(), lr=0.1).step()
    block.zero_grad()
    block(tr.tensor(x)).backward(upstream)
    assert block.linear.weight.grad.numpy().any()


def test_a_zero_branch_is_zeroed_where_its_weights_are():
    """At the owner of a borrowed layer; a learned scale is zeroed itself, as W at 0 as well would never learn."""
    linear = mlp.hidden_linear(6)
    borrower, learned = mlp.MLPBlock(Borrowed(linear)), mlp.LearnedMLPBlock(linear, 0.7)
    learned.zero_branch_()
    assert not learned.a.item() and linear.weight.numpy().all()
    borrower.zero_branch_()
    x = normal(4, 6).astype("float32")
    assert not linear.weight.numpy().any() and np.array_equal(borrower(Tensor(x)).numpy(), x)


def test_rezero_starts_as_its_two_ends():
    model = models.rezero_mlp(depth=3, width=9).double()
    x = normal(2, 64)
    ends = nn.Sequential(model.stem, nn.ReLU(), model.fc)
    assert np.array_equal(model(Tensor(x)).numpy(), ends(Tensor(x)).numpy())


# --- one linear layer ------------------------------------------------------------------------------------------------

PAIRS = [("shared_mlp", "plain_mlp"), ("shared_residual_mlp", "residual_mlp")]


def pair(shared, unshared, depth=5):
    """The shared network and one without sharing that has its weights in every block."""
    one = moved(models.build(shared, depth=depth, width=8))
    state = one.state_dict()
    many = models.build(unshared, depth=depth, width=8).double()
    many.load_state_dict({name: state["layer1.0." + name.split(".", 2)[2] if name.startswith("layer1") else name]
                          for name in many.state_dict()})
    return one, many


@pytest.mark.parametrize("shared, unshared", PAIRS)
def test_the_gradient_of_the_shared_layer_is_the_sum_over_its_uses(shared, unshared):
    one, many = pair(shared, unshared)
    x, upstream = normal(3, 64), normal(3, 10)
    for model in (one, many):
        model(tr.tensor(x)).backward(upstream)
    for part in ("weight", "bias"):
        total = 0.0
        for block in reversed(list(many.layer1)):  # as backward meets them: sums in floats depend on the order
            total = total + getattr(block.linear, part).grad.numpy()
        assert np.array_equal(getattr(one.layer1[0].linear, part).grad.numpy(), total)
    assert np.array_equal(one.stem.weight.grad.numpy(), many.stem.weight.grad.numpy())


@pytest.mark.parametrize("shared, unshared", PAIRS)
def test_the_shared_layer_is_saved_stepped_and_copied_once(shared, unshared, tmp_path):
    one, many = pair(shared, unshared)
    state = one.state_dict()
    assert sorted(state) == ["fc.bias", "fc.weight", "layer1.0.linear.bias", "layer1.0.linear.weight", "stem.bias",
                             "stem.weight"]
    weights.save(one, tmp_path / "one.safetensors")
    other = models.build(shared, depth=5, width=8).double()
    weights.load(other, tmp_path / "one.safetensors")
    x = normal(3, 64)
    assert np.array_equal(other(Tensor(x)).numpy(), one(Tensor(x)).numpy())
    with pytest.raises(ValueError, match=r"unknown to the model \(8\)"):
        one.load_state_dict(many.state_dict())
    twin = copy.deepcopy(one)
    twin(tr.tensor(x)).backward(normal(3, 10))
    linear = twin.layer1[0].linear
    before, grad = linear.weight.numpy().copy(), linear.weight.grad.numpy().copy()
    optim.SGD(twin.parameters(), lr=0.5).step()
    assert np.array_equal(linear.weight.numpy(), before - 0.5 * grad)
    assert all(isinstance(block.linear, Borrowed) and block.linear.owner is linear for block in list(twin.layer1)[1:])
    assert np.array_equal(one.state_dict()["layer1.0.linear.weight"], state["layer1.0.linear.weight"])


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors():
    with pytest.raises(ValueError, match=r"MLP: the input has shape \(2, 3, 8, 8\).*in_features=64.*in_features=192"):
        models.residual_mlp()(normal(2, 3, 8, 8).astype("float32"))
    with pytest.raises(ValueError, match=r"MLP: the input has shape \(64,\), .*: give a batch, x\[None\] for one"):
        models.residual_mlp()(normal(64).astype("float32"))
    with pytest.raises(ValueError, match="residual_mlp: depth must be a positive int, got 0"):
        models.residual_mlp(depth=0)
    with pytest.raises(ValueError, match="shared_mlp: width must be a positive int, got 1.5"):
        models.shared_mlp(width=1.5)
    for a in ("much", math.nan, math.inf):
        with pytest.raises(ValueError, match="MLPBlock: a must be a finite number"):
            models.residual_mlp(a=a)
    with pytest.raises(ValueError, match="LearnedMLPBlock: a must be a finite number"):
        models.learned_scale_mlp(a=None)
    with pytest.raises(ValueError, match="MLP: in_features must be a positive int"):
        models.plain_mlp(in_features=-1)
    for option in ("option", "zero_init_residual", "cifar_stem"):  # no resnet_mlp and no 3x3 stem are spoken of
        with pytest.raises(ValueError, match=f"plain_mlp has no option '{option}'; leave it out. Its options: num_cla"):
            models.build("plain_mlp", **{option: True})
