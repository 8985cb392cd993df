"""The source article's block in its three readings, and its two networks, against NumPy, PyTorch and exact counts."""

import numpy as np
import oracles
import pytest
from differences import norm_distance

import tinyres as tr
from tinyres import data, models, nn, optim
from tinyres.analysis.gradcheck import gradcheck
from tinyres.analysis.summary import summary
from tinyres.models import article, article_blocks, blocks
from tinyres.models.article_blocks import (
    ConvNormReLU,
    FixedScale,
    FourStepBlock,
    LearnedScale,
    LeftBranch,
    ParallelBlock,
    Plan,
    ResidualStep,
    RightBranch,
    SeriesBlock,
)
from tinyres.train import train_step

READINGS = (ParallelBlock, SeriesBlock, FourStepBlock)


@pytest.fixture(autouse=True)
def seed():
    tr.manual_seed(0)


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def count(model):
    return sum(p.data.size for p in model.parameters())


# --- the block, by its formulas ---------------------------------------------------------------------------------------


def left(branch, x, stride, padding, pool):
    """L(x) in NumPy from the weights of a LeftBranch without norm."""
    for i, layer in enumerate(part for part in branch if not isinstance(part, nn.MaxPool2d)):
        x = oracles.conv2d(x, layer.conv.weight.data, layer.conv.bias.data, stride if i == 0 else 1, padding)
        x = np.maximum(x, 0)
    return oracles.max_pool2d(x, pool) if pool > 1 else x


def right(branch, x, stride, a, pool=1):
    y = a * oracles.conv2d(x, branch[0].weight.data, branch[0].bias.data, stride)
    return oracles.max_pool2d(y, pool) if pool > 1 else y


@pytest.mark.parametrize("plan, C, K, stride", [
    (Plan(filters=3), 2, 4, 1), (Plan(filters=3, layers=3, kernel_size=5, a=-0.7), 2, 4, 2),
    (Plan(filters=2, layers=1, pool=2, a=0.3), 4, 4, 1), (Plan(filters=3, pool=2, kernel_size=1), 2, 4, 2)])
def test_the_three_readings_are_their_formulas(plan, C, K, stride):
    x, padding = normal(2, C, 7, 6), plan.kernel_size // 2
    block = ParallelBlock(C, K, stride, plan).double()
    wanted = left(block.branch, x, stride, padding, plan.pool) + right(block.shortcut, x, stride, plan.a, plan.pool)
    assert norm_distance(block(x).numpy(), wanted) < 1e-14

    block = SeriesBlock(C, K, stride, plan).double()
    u = left(block[0], x, stride, padding, plan.pool)
    assert norm_distance(block(x).numpy(), u + right(block[1].branch, u, 1, plan.a)) < 1e-14

    block = FourStepBlock(C, K, stride, plan).double()
    u = block[0].shortcut(x).numpy() + left(block[0].branch, x, stride, padding, plan.pool)
    assert norm_distance(block(x).numpy(), u + right(block[1].branch, u, 1, plan.a)) < 1e-14
    weight = next(block[0].shortcut.parameters(), None)  # a 1x1 convolution without bias where channels change
    around = x if C == K else oracles.conv2d(x, weight.data, stride=stride)
    assert norm_distance(block[0].shortcut(x).numpy(), oracles.max_pool2d(around, plan.pool)) < 1e-14


def test_each_layer_has_the_same_filters_but_the_last():
    branch = Plan(filters=5, layers=4).left(3, 8, 2)
    assert [layer.conv.weight.shape[:2] for layer in branch] == [(5, 3), (5, 5), (5, 5), (8, 5)]
    assert [layer.conv.stride for layer in branch] == [(2, 2), (1, 1), (1, 1), (1, 1)]


def test_padding_decides_the_size_in_the_series_reading():
    plan = Plan(filters=2, layers=2, kernel_size=4, padding=0)
    assert SeriesBlock(2, 4, 2, plan)(normal(1, 2, 15, 12, dtype="float32")).shape == (1, 4, 3, 2)


# --- which of them is a residual block --------------------------------------------------------------------------------


def test_only_the_four_step_reading_has_an_identity_past_l():
    def routes(block):
        return [(type(step.branch), type(step.shortcut)) for step in block.modules() if isinstance(step, blocks.Block)]

    plan = Plan(filters=2)
    assert routes(ParallelBlock(4, 4, 1, plan)) == [(LeftBranch, RightBranch)]
    assert routes(SeriesBlock(4, 4, 1, plan)) == [(RightBranch, nn.Identity)]
    assert routes(FourStepBlock(4, 4, 1, plan)) == [(LeftBranch, nn.Identity), (RightBranch, nn.Identity)]
    assert routes(FourStepBlock(4, 8, 1, plan))[0] == (LeftBranch, blocks.ConvShortcut)


def test_what_a_gradient_meets_where_all_branches_are_zero():
    """Four steps pass it unchanged, ten blocks of them; parallel blocks multiply it by a R^T; series ones stop it."""
    x, upstream = normal(2, 4, 3, 3), normal(2, 4, 3, 3, seed=1)

    def gradient(build):
        model = nn.Sequential(*(build() for _ in range(10))).double()
        for step in model.modules():
            if isinstance(step, blocks.Block):
                step.zero_branch_()
        for branch in (part for part in model.modules() if isinstance(part, LeftBranch)):
            for parameter in branch.parameters():
                nn.init.zeros_(parameter)
        leaf = tr.tensor(x, requires_grad=True)
        model(leaf).backward(upstream)
        return model, leaf.grad.numpy()

    _, found = gradient(lambda: FourStepBlock(4, 4, 1, Plan(filters=2)))
    assert np.array_equal(found, upstream)
    model, found = gradient(lambda: ParallelBlock(4, 4, 1, Plan(filters=2)))
    wanted = upstream
    for block in reversed(list(model)):
        wanted = 0.1 * np.einsum("kc,nkhw->nchw", block.shortcut[0].weight.data[:, :, 0, 0], wanted)
    assert norm_distance(found, wanted) < 1e-13 and np.linalg.norm(found) < 1e-6 * np.linalg.norm(upstream)
    _, found = gradient(lambda: SeriesBlock(4, 4, 1, Plan(filters=2)))
    assert not found.any()


STEPS = {
    "parallel": lambda: ParallelBlock(4, 6, 2, Plan(filters=3)),
    "parallel, norm": lambda: ParallelBlock(4, 6, 2, Plan(filters=3, layer=ConvNormReLU)),
    "four-step, pool": lambda: FourStepBlock(4, 6, 2, Plan(filters=3, pool=2))[0],
    "a R": lambda: SeriesBlock(4, 6, 2, Plan(filters=3))[1],
    "code": lambda: article.ArticleBasicBlock(4, 6, 2),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_calls_its_shortcut_once_and_is_its_shortcut_when_its_branch_is_zero(name, training):
    block = STEPS[name]().double()
    x = tr.tensor(normal(2, 6 if name == "a R" else 4, 9, 9))
    block(x)
    calls = []
    block.downsample.register_forward_hook(lambda module, args, out: calls.append((args, out)))
    full = block.train(training)(x).numpy()
    assert len(calls) == 1 and calls[0][0][0] is x and calls[0][1].shape == full.shape
    assert norm_distance(full, block.without_branch(x).numpy()) > 0.01
    block.zero_branch_()
    assert np.array_equal(block(x).numpy(), block.without_branch(x).numpy())


def test_a_learned_scale_is_one_number_a_block():
    plan = Plan(filters=3, scale=LearnedScale)
    block, fixed = ParallelBlock(2, 4, 1, plan).double(), ParallelBlock(2, 4, 1, Plan(filters=3)).double()
    assert count(block) == count(fixed) + 1
    for a, b in zip((p for n, p in block.named_parameters() if not n.endswith(".a")), fixed.parameters(), strict=True):
        b.data = a.data
    x, upstream = normal(2, 2, 5, 5), normal(2, 4, 5, 5, seed=1)
    y = block(x)
    assert norm_distance(fixed(x).numpy(), y.numpy()) < 1e-7  # 0.1 was a float32
    y.backward(upstream)
    da = (upstream * oracles.conv2d(x, block.shortcut[0].weight.data, block.shortcut[0].bias.data)).sum()
    assert norm_distance(block.shortcut[1].a.grad.numpy(), [da]) < 1e-13
    assert ParallelBlock(2, 4, 1, plan)(x.astype("float32")).dtype == np.float32


# --- the networks -----------------------------------------------------------------------------------------------------


def convolution(C, K, size=3):
    return C * K * size * size + K


def test_counts_of_the_prose_networks_by_formula():
    def total(blocks, filters, width, layers, extra):
        stem = convolution(3, filters) + convolution(filters, filters)
        inputs = [filters] + [width] * (blocks - 1)
        L = sum(convolution(C, filters) + (layers - 2) * convolution(filters, filters) + convolution(filters, width)
                for C in inputs)
        return stem + L + sum(extra(C, width) for C in inputs) + width * 10 + 10

    def one(C, K):
        return convolution(C, K, 1)

    extras = {"parallel": one, "series": lambda C, K: one(K, K),
              "four_step": lambda C, K: one(K, K) + (C * K if C != K else 0)}
    for reading, extra in extras.items():
        for options in ({}, {"blocks": 2, "filters": 4, "width": 8, "layers": 3}):
            wanted = total(**{"blocks": 3, "filters": 64, "width": 256, "layers": 2, **options}, extra=extra)
            assert count(models.build(f"article-prose-{reading}", **options)) == wanted
    assert count(models.article_prose()) == 964_618
    assert count(models.article_prose_four_step(option="A")) == count(models.article_prose_series())
    assert count(models.article_prose(learnable_scale=True)) == 964_618 + 3


def test_article_prose_is_the_parallel_reading():
    named = models.article_prose(blocks=2, filters=3, width=8, a=0.3, layers=3, kernel_size=5, batch_norm=True)
    tr.manual_seed(0)
    parallel = models.article_prose_parallel(blocks=2, filters=3, width=8, a=0.3, layers=3, kernel_size=5,
                                             batch_norm=True)
    x = normal(2, 3, 8, 8, dtype="float32")
    assert np.array_equal(named(x).numpy(), parallel(x).numpy())


def test_images_of_the_prose_network():
    """Stride 1, stride 2, max pool, and blocks that keep H and W: 32 -> 32 -> 16 -> 8."""
    rows = {row.name: row.output for row in summary(models.article_prose(), (3, 32, 32)).rows}
    assert rows["stem.0.conv"] == (1, 64, 32, 32) and rows["stem.1.conv"] == (1, 64, 16, 16)
    assert rows["maxpool"] == (1, 64, 8, 8)
    assert all(rows[f"blocks.{i}.branch.0.conv"] == (1, 64, 8, 8) for i in range(3))
    assert all(rows[f"blocks.{i}"] == (1, 256, 8, 8) for i in range(3))


def test_he_initialisation_with_fan_in_and_biases_of_zero():
    model = models.article_prose()
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == 2 + 3 * 3
    for part in convolutions:
        assert not part.bias.data.any()
        wanted = (2 / np.prod(part.weight.shape[1:])) ** 0.5
        assert part.weight.data.std() == pytest.approx(wanted, rel=0.05)


CODE = {"article_resnet18": (article.ArticleBasicBlock, [2, 2, 2, 2], 11_173_962),
        "article_resnet34": (article.ArticleBasicBlock, [3, 4, 6, 3], 21_282_122),
        "article_resnet50": (article.ArticleBottleneck, [3, 4, 6, 3], 23_520_842)}


@pytest.mark.parametrize("name", CODE)
def test_the_code_network(name):
    block, depths, parameters = CODE[name]
    model = models.build(name)
    assert count(model) == parameters
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    assert [len(stage) for stage in stages] == depths
    assert {type(b) for stage in stages for b in stage} == {block}
    assert isinstance(model.maxpool, nn.Identity) and model.conv1.kernel_size == (3, 3)
    strides = [(stage[0].conv1.stride, stage[0].conv2.stride) for stage in stages]
    assert strides == [((1, 1), (1, 1))] + 3 * [((1, 1), (2, 2))]


def test_the_article_s_estimate_of_parameters_has_no_width():
    """k (l + 1) + m for k = 8 blocks of l = 2 layers and a head of m is 5,154; the truth is 2,168 times that."""
    model = models.article_resnet18()
    assert 8 * (2 + 1) + count(model.fc) == 5_154 and count(model) == 11_173_962


def test_the_stride_on_the_second_convolution_doubles_the_work():
    costs = {}
    for block in (article.ArticleBasicBlock, blocks.BasicBlock):
        rows = summary(block(64, 128, 2), (64, 32, 32)).rows
        costs[block] = sum(row.multiply_adds for row in rows if row.name in ("conv1", "conv2"))
        assert sum(row.multiply_adds for row in rows if row.name.startswith("downsample")) == 2_097_152
    assert costs == {article.ArticleBasicBlock: 113_246_208, blocks.BasicBlock: 56_623_104}


@pytest.mark.parametrize("stride", [1, 2])
def test_the_basic_block_of_the_code_written_in_pytorch(torch, stride):
    import torch.nn.functional as F

    block = article.ArticleBasicBlock(4, 8, stride).double()
    state = {k: torch.tensor(v, requires_grad=v.dtype.kind == "f") for k, v in block.state_dict().items()}

    def norm(h, name):
        return F.batch_norm(h, None, None, state[f"{name}.weight"], state[f"{name}.bias"], True)

    x, leaf = normal(3, 4, 7, 6), tr.tensor(normal(3, 4, 7, 6), requires_grad=True)
    z = torch.tensor(x, requires_grad=True)
    h = F.relu(norm(F.conv2d(z, state["conv1.weight"], None, 1, 1), "bn1"))
    h = norm(F.conv2d(h, state["conv2.weight"], None, stride, 1), "bn2")
    theirs = F.relu(h + norm(F.conv2d(z, state["downsample.0.weight"], None, stride), "downsample.1"))
    ours = block(leaf)
    upstream = normal(*ours.shape, seed=1)
    ours.backward(upstream)
    theirs.backward(torch.tensor(upstream))
    assert norm_distance(ours.numpy(), theirs.detach().numpy()) < 1e-13
    assert norm_distance(leaf.grad.numpy(), z.grad.numpy()) < 1e-11
    for name, p in block.named_parameters():
        assert norm_distance(p.grad.numpy(), state[name].grad.numpy()) < 1e-11, name


# --- training ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, batch, steps", [
    ("article_prose_parallel", 64, 35), ("article_prose_series", 64, 35), ("article_prose_four_step", 64, 25),
    ("article_resnet18", 16, 6)])
def test_networks_learn_the_digits(name, batch, steps):
    model = models.build(name, in_channels=1)
    optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    x, y = data.digits("train").batch(batch)
    losses = [train_step(model, optimizer, x, y)[0] for _ in range(steps)]
    assert losses[-1] < 0.8 * losses[0], losses


@pytest.mark.parametrize("name, options", [
    ("article_prose_parallel", {"batch_norm": True}), ("article_prose_series", {"learnable_scale": True}),
    ("article_prose_four_step", {"option": "A"}), ("article_prose_four_step", {"option": "C", "layers": 3})])
def test_networks_learn_images_of_32_pixels(name, options):
    model = models.build(name, filters=8, width=16, **options)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    labels = np.arange(16) % 10
    x = normal(16, 3, 32, 32, dtype="float32") + normal(10, 3, 1, 1, dtype="float32")[labels]
    losses = [train_step(model, optimizer, x, labels)[0] for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0], losses


@pytest.mark.parametrize("name", CODE)
def test_every_parameter_of_the_code_network_gets_a_gradient(name):
    model = models.build(name, num_classes=7)
    tr.cross_entropy(model(normal(2, 3, 32, 32, dtype="float32")), np.array([0, 6])).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.numpy().any()]


# --- gradients --------------------------------------------------------------------------------------------------------

SMALL = Plan(filters=3)
NORMED = Plan(filters=3, layer=ConvNormReLU, scale=LearnedScale, pool=2)
CASES = {f"{block.__name__}, {kind}": (lambda block=block, plan=plan, size=size: block(*size, plan))
         for block in READINGS for kind, plan, size in [
             ("same", SMALL, (4, 4, 1)), ("halved", SMALL, (4, 6, 2)), ("norm, pool", NORMED, (4, 6, 1))]}
CASES |= {"ArticleBasicBlock": lambda: article.ArticleBasicBlock(4, 8, 2),
          "ArticleBasicBlock, same": lambda: article.ArticleBasicBlock(4, 4),
          "prose": lambda: models.article_prose(in_channels=4, filters=3, width=6, blocks=2)}


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    result = gradcheck(CASES[name](), normal(4, 4, 8, 8), order=(1, 2), nudge=0.1, directions=2, raise_on_failure=True)
    assert result.max_relative_error < 1e-6 and not result.notes, str(result)


def test_each_class_is_among_the_cases():
    made = {type(part) for case in CASES.values() for part in case().modules()}
    for file in (article, article_blocks):
        own = {c for c in vars(file).values()
               if isinstance(c, type) and issubclass(c, nn.Module) and c.__module__ == file.__name__}
        assert own - {ResidualStep} <= made and (ResidualStep in made or file is article)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, words", [
    (lambda: ParallelBlock(4, 4, 1, Plan(kernel_size=2)), "ParallelBlock: kernel_size=2 with padding=1 changes H and"),
    (lambda: FourStepBlock(4, 4, 1, Plan(padding=0)), "use an odd kernel_size with padding = kernel_size // 2"),
    (lambda: Plan(padding=-1), "padding must be an int of at least 0, or None to keep H and W, got -1"),
    (lambda: Plan(layers=0), "the article's block: layers must be a positive int, got 0"),
    (lambda: FixedScale(float("nan")), "FixedScale: a must be a finite number, got nan"),
    (lambda: models.article_prose(a="b", learnable_scale=True), "LearnedScale: a must be a finite number, got 'b'"),
    (lambda: models.article_prose(blocks=0), "ArticleProse: blocks must be a positive int, got 0"),
    (lambda: models.article_prose_four_step(option="D"), "option must be one of A, B, C"),
])
def test_wrong_values(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)
