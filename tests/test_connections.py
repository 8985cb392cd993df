"""Chains of the article's blocks joined by addition, concatenation and bottleneck: what each join gives, where its
gradients go, sizes, and the width for a number of parameters."""

import numpy as np
import oracles
import pytest
from differences import norm_distance

import tinyres as tr
from tinyres import data, models, nn, optim, random
from tinyres.analysis.gradcheck import gradcheck
from tinyres.models import blocks, connections
from tinyres.models.article_blocks import ConvNormReLU, Plan
from tinyres.models.connections import BottleneckJoin, Chain, Concatenation, ConcatenationBlock, width_for
from tinyres.models.joins import Add
from tinyres.train import train_step

CHAINS = ("chain_addition", "chain_concatenation", "chain_bottleneck")


@pytest.fixture(autouse=True)
def seed():
    tr.manual_seed(0)


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def count(model):
    return sum(p.data.size for p in model.parameters())


def conv(x, layer, stride=1, padding=0):
    return oracles.conv2d(x, layer.weight.data, layer.bias.data, stride, padding)


# --- joins ------------------------------------------------------------------------------------------------------------


def test_where_the_gradient_of_each_join_goes():
    """Addition copies it, concatenation splits it, the bottleneck projects it."""
    previous, last = normal(2, 8, 3, 4), normal(2, 8, 3, 4, seed=1)

    def gradients(join):
        leaves = [tr.tensor(a, requires_grad=True) for a in (previous, last)]
        y = join(*leaves)
        upstream = normal(*y.shape, seed=2)
        y.backward(upstream)
        return y.numpy(), upstream, [leaf.grad.numpy() for leaf in leaves]

    y, upstream, found = gradients(Add())
    assert np.array_equal(y, previous + last) and all(np.array_equal(g, upstream) for g in found)

    y, upstream, found = gradients(Concatenation())
    assert np.array_equal(y[:, :8], previous) and np.array_equal(y[:, 8:], last)
    assert np.array_equal(np.concatenate(found, 1), upstream)

    join = BottleneckJoin(8).double()
    y, upstream, found = gradients(join)
    reduced = np.maximum(conv(np.concatenate([previous, last], 1), join.reduce.conv, padding=1), 0)
    assert reduced.shape[1] == 2 and norm_distance(y, conv(reduced, join.expand)) < 1e-14
    inside = np.einsum("kc,nkhw->nchw", join.expand.weight.data[:, :, 0, 0], upstream) * (reduced > 0)
    back = oracles.conv_transpose2d(inside, join.reduce.conv.weight.data, padding=1)
    assert norm_distance(np.concatenate(found, 1), back) < 1e-13


def test_behind_a_concatenation_r_receives_the_last_output_alone():
    block = ConcatenationBlock(4, Plan(filters=3)).double()
    x = normal(2, 8, 5, 5)
    h = x
    for layer in block.branch:
        h = np.maximum(conv(h, layer.conv, padding=1), 0)
    assert norm_distance(block(x).numpy(), h + 0.1 * conv(x[:, 4:], block.shortcut[1][0])) < 1e-14
    leaf = tr.tensor(x, requires_grad=True)
    block.zero_branch_()
    block(leaf).backward(np.ones((2, 4, 5, 5)))
    assert not leaf.grad.numpy()[:, :4].any() and leaf.grad.numpy()[:, 4:].all()
    assert np.array_equal(block(x).numpy(), block.without_branch(tr.Tensor(x)).numpy())


# --- chains -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 6])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_any_length_written_in_numpy(name, length):
    """Without norm: the first block sees the stem, the second the first, and from the third on two outputs are joined;
    every block is y = L(left) + a R(right)."""
    model = models.build(name, blocks=length, width=4, layers=1, batch_norm=False).double()
    x = normal(2, 3, 7, 7)
    first, second = (layer.conv for layer in model.stem)
    stem = np.maximum(conv(np.maximum(conv(x, first, padding=1), 0), second, 2, 1), 0)
    outputs = []
    for i, block in enumerate(model.blocks):
        left = right = outputs[-1] if outputs else stem
        if i >= 2 and name == "chain_addition":
            left = right = outputs[-2] + outputs[-1]
        elif i >= 2:
            left = np.concatenate(outputs[-2:], 1)
        if i >= 2 and name == "chain_bottleneck":
            join = model.joins[i - 2]
            left = right = conv(np.maximum(conv(left, join.reduce.conv, padding=1), 0), join.expand)
        R = block.shortcut[1][0] if i >= 2 and name == "chain_concatenation" else block.shortcut[0]
        outputs.append(np.maximum(conv(left, block.branch[0].conv, padding=1), 0) + 0.1 * conv(right, R))
    assert len(outputs) == length and outputs[0].shape == (2, 4, 4, 4)
    logits = outputs[-1].mean((2, 3)) @ model.fc.weight.data.T + model.fc.bias.data
    assert norm_distance(model(x).numpy(), logits) < 1e-13


def test_he_initialisation():
    for part in models.chain_bottleneck(width=64).modules():
        if isinstance(part, nn.Conv2d) and part.weight.data.size > 1000:
            wanted = (2 / np.prod(part.weight.shape[1:])) ** 0.5
            assert part.weight.data.std() == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("name", CHAINS)
def test_counts_by_formula(name, batch_norm):
    def layer(C, K):  # 3x3, then a bias, or the scale and shift of a norm
        return 9 * C * K + (2 * K if batch_norm else K)

    for n, W, layers in ((6, 32, 2), (4, 8, 3), (2, 4, 2)):
        right = W * W + W
        joined = max(n - 2, 0)
        wanted = layer(3, W) + layer(W, W) + n * (layers * layer(W, W) + right) + 10 * W + 10
        if name == "chain_concatenation":
            wanted += joined * 9 * W * W
        if name == "chain_bottleneck":
            wanted += joined * (layer(2 * W, W // 4) + W // 4 * W + W)
        model = models.build(name, blocks=n, width=W, layers=layers, batch_norm=batch_norm)
        assert count(model) == wanted and len(model.joins) == joined
        assert count(models.build(name, blocks=n, width=W, layers=layers, batch_norm=batch_norm,
                                  learnable_scale=True)) == wanted + n
        assert sum(isinstance(part, blocks.Block) for part in model.modules()) == n


@pytest.mark.parametrize("name", CHAINS)
def test_the_width_for_a_number_of_parameters_is_the_nearest(name):
    constructor = getattr(models, name)
    before = random.get_state()
    for parameters, options in ((20_000, {"blocks": 4, "in_channels": 1}), (7_777, {"blocks": 3, "layers": 1})):
        found = width_for(constructor, parameters, **options)
        away = {width: abs(count(constructor(width=width, **options)) - parameters)
                for width in range(max(4, found - 3), found + 4)}
        assert away[found] == min(away.values()) < 0.1 * parameters
        random.set_state(before)
        width_for(constructor, parameters, **options)
        assert random.get_state() == before
    exact = count(constructor(width=9, blocks=3))
    assert width_for(constructor, exact, blocks=3) == 9


def test_chains_of_about_equal_size():
    """What the claim card compares: within 5 % of one budget."""
    sizes = [count(getattr(models, name)(width=width_for(getattr(models, name), 100_000))) for name in CHAINS]
    assert all(abs(size - 100_000) < 5_000 for size in sizes), sizes


# --- training and gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAINS)
def test_chains_learn_the_digits(name):
    model = models.build(name, in_channels=1, width=16)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = data.digits("train").batch(64)
    losses = [train_step(model, optimizer, x, y)[0] for _ in range(30)]
    assert losses[-1] < 0.6 * losses[0], losses


@pytest.mark.parametrize("name", CHAINS)
def test_every_parameter_gets_a_gradient_from_images_of_32_pixels(name):
    model = models.build(name, num_classes=7, learnable_scale=True)
    logits = model(normal(4, 3, 32, 32, dtype="float32"))
    assert logits.shape == (4, 7) and logits.dtype == np.float32
    tr.cross_entropy(logits, np.arange(4)).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.numpy().any()]


CASES = {
    **{name: lambda name=name: models.build(name, in_channels=2, blocks=4, width=4) for name in CHAINS},
    "addition, no norm, learned": lambda: models.chain_addition(in_channels=2, width=4, blocks=3, batch_norm=False,
                                                                learnable_scale=True),
    "block": lambda: ConcatenationBlock(1, Plan(filters=3, layer=ConvNormReLU)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    result = gradcheck(CASES[name](), normal(4, 2, 8, 8), order=(1, 2), nudge=0.1, directions=2, raise_on_failure=True)
    assert result.max_relative_error < 1e-6 and not result.notes, str(result)


def test_each_class_is_among_the_cases():
    made = {type(part) for case in CASES.values() for part in case().modules()}
    own = {c for c in vars(connections).values()
           if isinstance(c, type) and issubclass(c, nn.Module) and c.__module__ == connections.__name__}
    assert own <= made and Chain in made


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, words", [
    (lambda: models.chain_bottleneck(width=3), "BottleneckJoin: K must be at least 4, as the 3x3 has K/4 filters, got"),
    (lambda: models.chain_addition(blocks=0), "Chain: blocks must be a positive int, got 0"),
    (lambda: models.chain_addition(width=0), "filters must be a positive int, got 0"),
    (lambda: ConcatenationBlock(4, Plan(kernel_size=4)), "ConcatenationBlock: kernel_size=4 with padding=2"),
    (lambda: width_for(models.chain_addition, 100), "parameters at its least width, 4, more than the budget of 100"),
    (lambda: width_for(models.chain_addition, 0), "width_for: parameters must be a positive int, got 0"),
])
def test_wrong_values(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)
