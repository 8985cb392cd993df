"""Joins, scaled, dropped and gated shortcuts, and networks made of them: numbers, Jacobians, what passes a block."""

import copy
import inspect

import numpy as np
import pytest
from differences import norm_distance
from test_models import count, images
from test_structure import generic, gradients, jacobian, normal

import tinyres as tr
from tinyres import data, models, nn, optim, weights
from tinyres.analysis.gradcheck import gradcheck
from tinyres.models import blocks, gates, joins, resnet, scaled
from tinyres.models.joins import (
    Add,
    DropoutShortcut,
    JoinedBasicBlock,
    LearnedScaledAdd,
    ReZeroBasicBlock,
    ScaledAdd,
    ScaledShortcut,
    SkipInitBlock,
)
from tinyres.tensor import Tensor

EXACT = 1e-12
SHAPES = {"same": (4, 4, 1), "halved": (4, 8, 2)}


# --- networks ---------------------------------------------------------------------------------------------------------

# Row of He et al. 2016, table 1 (ResNet-110, CIFAR-10) -> the network in one line.
TABLE_1 = {
    "original": "models.resnet110()",
    "constant scaling, shortcut 0.5, F 1": "models.scaled_resnet(110, shortcut_scale=0.5)",
    "constant scaling, shortcut 0.5, F 0.5": "models.scaled_resnet(110, shortcut_scale=0.5, residual_scale=0.5)",
    "exclusive gating, init b = 0": "models.exclusive_gate_resnet(110, bias=0)",
    "exclusive gating, init b = -5": "models.exclusive_gate_resnet(110, bias=-5)",
    "exclusive gating, init b = -6": "models.exclusive_gate_resnet(110, bias=-6)",
    "exclusive gating, init b = -7": "models.exclusive_gate_resnet(110, bias=-7)",
    "shortcut-only gating, init b = 0": "models.shortcut_gate_resnet(110, bias=0)",
    "shortcut-only gating, init b = -6": "models.shortcut_gate_resnet(110, bias=-6)",
    "1x1 conv shortcut": "models.conv_shortcut_resnet(110)",
    "dropout shortcut 0.5": "models.dropout_shortcut_resnet(110, p=0.5)",
}


@pytest.mark.parametrize("row", TABLE_1)
def test_each_row_of_table_1_is_one_line_and_every_parameter_of_it_learns(row):
    tr.manual_seed(0)
    model = eval(TABLE_1[row])
    assert sum(isinstance(module, blocks.Block) for module in model.modules()) == 54
    tr.cross_entropy(model(images(4, 3, 8, 8)), np.arange(4)).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.numpy().any()]
    assert all(p.grad.dtype == np.float32 for p in model.parameters())


@pytest.mark.parametrize("kernels", ["fast", "reference"])
def test_with_scales_of_one_it_is_resnet20_bit_for_bit(kernels):
    """Two steps: outputs, gradients, running statistics and weights, in float32."""
    found = []
    with tr.use_kernels(kernels):
        for build in (models.resnet20, models.scaled_resnet):
            tr.manual_seed(0)
            model = build()
            optimizer, record = optim.SGD(model.parameters(), lr=0.1, momentum=0.9), []
            for step in range(2):
                loss = tr.cross_entropy(model(images(8, 3, 8, 8, seed=step)), np.arange(8))
                model.zero_grad()
                loss.backward()
                record += [loss.numpy(), *(p.grad.numpy() for p in model.parameters())]
                optimizer.step()
            found.append([*record, *model.state_dict().values()])
            assert list(model.state_dict()) == list(models.resnet20().state_dict())
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][0].dtype == np.float32


def test_counts_of_parameters_at_depth_20():
    """269,722 are resnet20's; of these 1,376 are its norms' scales and shifts, and there are 9 blocks."""
    projections = sum(C * K for C, K in [(16, 16)] * 3 + [(16, 32)] + [(32, 32)] * 2 + [(32, 64)] + [(64, 64)] * 2)
    gate_biases = 3 * (16 + 32 + 64)
    conv_biases = 2 * gate_biases
    assert count(models.scaled_resnet(residual_scale=0.1)) == count(models.dropout_shortcut_resnet()) == 269_722
    assert count(models.rezero_resnet()) == 269_722 + 9
    assert count(models.conv_shortcut_resnet()) == 269_722 + projections == 283_290
    assert count(models.skipinit_resnet(option="A")) == 269_722 - 1_376 + conv_biases + 9 == 269_027
    assert count(models.skipinit_resnet()) == 269_027 + 16 * 32 + 32 * 64
    for build in (models.exclusive_gate_resnet, models.shortcut_gate_resnet):
        assert count(build()) == 269_722 + projections + gate_biases == 283_626
        assert count(build(depth=8, num_classes=4, in_channels=1)) < count(build(depth=8))


NETWORKS = [*scaled.NETWORKS, *gates.NETWORKS]


@pytest.mark.parametrize("build", NETWORKS, ids=lambda f: f.__name__)
def test_gradients_of_the_networks(build):
    tr.manual_seed(0)
    model = build(20, residual_scale=0.3, shortcut_scale=0.7) if build is scaled.scaled_resnet else build(20)
    result = gradcheck(model, normal(8, 3, 8, 8), order=(1, 2), nudge=0.1, directions=2, raise_on_failure=True)
    assert result.max_relative_error < 1e-6 and not result.notes


@pytest.mark.parametrize("build", NETWORKS, ids=lambda f: f.__name__)
def test_the_options_of_the_networks_can_be_given_by_name(build):
    """num_classes and in_channels as everywhere; the others have plain defaults, which a command line can set."""
    defaults = {name: p.default for name, p in inspect.signature(build).parameters.items()}
    assert {"depth": 20, "num_classes": 10, "in_channels": 3}.items() <= defaults.items()
    assert all(type(value) in (int, float, str, bool) for value in defaults.values())
    model = models.build(build.__name__, depth=8, num_classes=4, in_channels=1)
    assert model(images(2, 1, 8, 8)).shape == (2, 4)


# --- blocks against PyTorch -------------------------------------------------------------------------------------------


class Twin:
    """The layers of a block as PyTorch functions of its parameters, in training mode and in float64."""

    def __init__(self, torch, block):
        self.torch, self.block, self.F = torch, block, torch.nn.functional
        self.of = {name: torch.tensor(np.array(p.data), requires_grad=True) for name, p in block.named_parameters()}

    def conv(self, name, x):
        layer = self.block.get_submodule(name)
        return self.F.conv2d(x, self.of[f"{name}.weight"], self.of.get(f"{name}.bias"), layer.stride, layer.padding)

    def norm(self, name, x):
        return self.F.batch_norm(x, None, None, self.of[f"{name}.weight"], self.of[f"{name}.bias"], training=True)

    def shortcut(self, x):
        """Identity, a bare 1x1 convolution or one with a batch norm, by what the block has."""
        if "downsample.0.weight" not in self.of:
            return x
        y = self.conv("downsample.0", x)
        return self.norm("downsample.1", y) if "downsample.1.weight" in self.of else y


def same_as_in_pytorch(torch, block, formula, x):
    """Output, gradient at the input and every parameter's gradient; the upstream gradient is random."""
    block = generic(block)
    upstream = normal(*block(Tensor(x)).shape, seed=1)
    y, dx, grads = gradients(block, x, upstream)
    twin, leaf = Twin(torch, block), torch.tensor(x, requires_grad=True)
    out = formula(twin, leaf)
    out.backward(torch.tensor(upstream))
    assert norm_distance(y, out.detach().numpy()) < EXACT and norm_distance(dx, leaf.grad.numpy()) < EXACT
    assert set(grads) == set(twin.of)
    for name, grad in grads.items():
        assert norm_distance(grad, twin.of[name].grad.numpy(), at_least=1e-8) < 1e-10, name


def basic_branch(t, x):
    return t.norm("bn2", t.conv("conv2", t.norm("bn1", t.conv("conv1", x)).relu()))


BLOCKS = {
    "constant scales": (lambda C, K, s, shortcut: JoinedBasicBlock(C, K, s, shortcut, ScaledAdd(0.3, 0.7)),
                        lambda t, x: (0.7 * t.shortcut(x) + 0.3 * basic_branch(t, x)).relu()),
    "plain addition": (lambda C, K, s, shortcut: JoinedBasicBlock(C, K, s, shortcut),
                       lambda t, x: (t.shortcut(x) + basic_branch(t, x)).relu()),
    "ReZero": (ReZeroBasicBlock,
               lambda t, x: (t.shortcut(x) + t.of["join.scale"] * basic_branch(t, x)).relu()),
    "SkipInit": (SkipInitBlock, lambda t, x: t.shortcut(x) + t.of["join.scale"] * t.conv(
        "conv2", t.conv("conv1", x.relu()).relu())),
    "exclusive gate": (lambda C, K, s, shortcut: gates.ExclusiveGateBlock(C, K, s, shortcut, -0.5), lambda t, x: (
        t.conv("gate.conv", x).sigmoid() * basic_branch(t, x)
        + (1 - t.conv("gate.conv", x).sigmoid()) * t.shortcut(x)).relu()),
    "gate on the shortcut": (lambda C, K, s, shortcut: gates.ShortcutGateBlock(C, K, s, shortcut, -0.5), lambda t, x: (
        basic_branch(t, x) + (1 - t.conv("gate.conv", x).sigmoid()) * t.shortcut(x)).relu()),
}


@pytest.mark.parametrize("option", [resnet.OPTIONS["B"], blocks.ConvShortcut], ids=["option B", "1x1 everywhere"])
@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_compute_what_pytorch_does(torch, name, size, option):
    tr.manual_seed(0)
    make, formula = BLOCKS[name]
    same_as_in_pytorch(torch, make(*SHAPES[size], option(*SHAPES[size])), formula, normal(3, 4, 6, 6))


@pytest.mark.parametrize("kernels", ["fast", "reference"])
@pytest.mark.parametrize("option", "ABC")
@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_of_blocks(name, size, option, kernels):
    tr.manual_seed(1)
    block = BLOCKS[name][0](*SHAPES[size], resnet.OPTIONS[option](*SHAPES[size]))
    with tr.use_kernels(kernels):
        result = gradcheck(block, normal(2, 4, 4, 4), order=(1, 2), nudge=0.1, directions=2, raise_on_failure=True)
    assert result.max_relative_error < 1e-6 and not result.notes


PARTS = {
    "add": (lambda: Add(), 2, lambda s, b: s + b),
    "scaled add": (lambda: ScaledAdd(0.3, -0.7), 2, lambda s, b: 0.3 * b - 0.7 * s),
    "learned": (lambda: LearnedScaledAdd(0.4), 2, lambda s, b: s + np.float32(0.4) * b),
    "scaled shortcut": (lambda: ScaledShortcut(nn.Identity(), 0.7), 1, lambda s: 0.7 * s),
    "dropout, eval": (lambda: DropoutShortcut(nn.Identity(), 0.3).eval(), 1, lambda s: 0.7 * s),
    "dropout": (lambda: DropoutShortcut(nn.Identity(), 0.3), 1, None),
    "gate": (lambda: gates.Gate(4, 8, 2, -0.5), 1, None),
}


@pytest.mark.parametrize("name", PARTS)
def test_numbers_and_gradients_of_joins_and_shortcuts(name):
    make, inputs, formula = PARTS[name]
    arrays = [normal(2, 4, 4, 4, seed=i) for i in range(inputs)]
    result = gradcheck(make(), *arrays, order=(1, 2), nudge=0.1, directions=2, raise_on_failure=True)
    assert result.max_relative_error < 1e-6 and not result.notes
    if formula:
        for dtype in ("float32", "float64"):
            given = [a.astype(dtype) for a in arrays]
            y = make().astype(dtype)(*given).numpy()
            assert y.dtype == dtype and norm_distance(y, formula(*given)) < (1e-7 if dtype == "float32" else 1e-15)


def test_each_class_is_among_the_cases():
    """A class that is added to these files must be added here."""
    tr.manual_seed(0)
    made = [make(4, 4, 1, None) for make, _ in BLOCKS.values()] + [make() for make, _, _ in PARTS.values()]
    made += [build(8) for build in NETWORKS]
    checked = {type(module) for module in made}
    for file in (joins, scaled, gates):
        classes = {c for c in vars(file).values() if isinstance(c, type) and issubclass(c, nn.Module)}
        assert {c for c in classes if c.__module__ == file.__name__} - {gates.GatedBasicBlock} <= checked


# --- the Jacobian of a block ------------------------------------------------------------------------------------------


def branch_of(block):
    return lambda x: block.bn2(block.conv2(block.bn1(block.conv1(x), relu=True)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("join, a, b", [(ScaledAdd(0.3, 0.7), 0.3, 0.7), (ScaledAdd(-2.0, 1.0), -2.0, 1.0),
                                        (ScaledAdd(0.0, 0.5), 0.0, 0.5), (LearnedScaledAdd(0.25), 0.25, 1.0)],
                         ids=["both", "a = -2", "a = 0", "learned"])
def test_the_jacobian_is_a_times_the_branchs_plus_b_times_one(join, a, b, training):
    """All of it behind the ReLU that follows the addition."""
    tr.manual_seed(0)
    x = normal(2, 4, 3, 3)
    block = generic(JoinedBasicBlock(4, 4), x).train(training)
    block.join = join.double()
    y, J = jacobian(block, x)
    f, J_branch = jacobian(branch_of(block), x)
    assert norm_distance(y, np.maximum(a * f + b * x, 0)) < EXACT
    assert norm_distance(J, (y.ravel() > 0)[:, None] * (a * J_branch + b * np.eye(x.size))) < EXACT


@pytest.mark.parametrize("block", [gates.ExclusiveGateBlock, gates.ShortcutGateBlock])
def test_the_jacobian_of_a_gated_block_has_a_route_through_the_gate(block):
    """d(g F + (1 - g) x) = g dF + (1 - g) dx + (F - x) dg: the shortcut loses by 1 - g, and the gate's own derivative
    comes on top."""
    tr.manual_seed(0)
    x = normal(2, 4, 3, 3)
    model = generic(block(4, 4, bias=-1.0))
    y, J = jacobian(model, x)
    f, J_branch = jacobian(model.branch, x)
    g, J_gate = jacobian(model.gate, x)
    mask, exclusive = (y.ravel() > 0)[:, None], block is gates.ExclusiveGateBlock
    share, other = (g if exclusive else np.ones_like(g)), (f - x if exclusive else -x)
    wanted = (share.reshape(-1, 1) * J_branch + np.diag(1 - g.ravel()) + other.reshape(-1, 1) * J_gate)
    assert norm_distance(J, mask * wanted) < EXACT
    assert 0.05 < g.min() < g.max() < 0.95


# --- what passes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 30])
def test_k_scaled_shortcuts_pass_the_gradient_times_s_to_the_k(k):
    """To the bit: s is a power of two. A shortcut of one's own goes into any block, here into pre-activation ones."""
    s, chain = 0.5, []
    for _ in range(k):
        block = generic(blocks.PreActBasicBlock(4, 4, 1, ScaledShortcut(nn.Identity(), s)))
        block.zero_branch_()
        chain.append(block)
    x, upstream = normal(2, 4, 5, 5), normal(2, 4, 5, 5, seed=1)
    y, dx, _ = gradients(nn.Sequential(*chain), x, upstream)
    assert np.array_equal(y, s ** k * x) and np.array_equal(dx, s ** k * upstream)


@pytest.mark.parametrize("option", "AB")
def test_in_a_network_all_blocks_scale_also_those_that_change_the_shape(option):
    """With zero branches the stem's gradient is s^9 times that of the network without scales: 9 blocks, not 7."""
    found = []
    for s in (1.0, 0.5):
        tr.manual_seed(0)
        model = models.scaled_resnet(shortcut_scale=s, option=option, zero_init_residual=True).double().eval()
        _, dx, grads = gradients(model, normal(2, 3, 8, 8), normal(2, 10))
        found.append((dx, grads["conv1.weight"]))
    assert all(np.array_equal(scaled, 0.5 ** 9 * plain) and np.abs(plain).max() > 1e-3
               for plain, scaled in zip(*found, strict=True))


MADE = {"scaled": lambda: JoinedBasicBlock(4, 4, join=ScaledAdd(0.3, 0.7)), "ReZero": lambda: ReZeroBasicBlock(4, 4),
        "SkipInit": lambda: SkipInitBlock(4, 4), "exclusive": lambda: gates.ExclusiveGateBlock(4, 4, bias=0.0),
        "on the shortcut": lambda: gates.ShortcutGateBlock(4, 4, bias=0.0)}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MADE)
def test_without_its_branch_a_block_gives_what_it_gives_for_a_zero_branch(name, training):
    tr.manual_seed(0)
    x = normal(2, 4, 5, 5)
    block = generic(MADE[name](), x).train(training)
    assert norm_distance(block.without_branch(Tensor(x)).numpy(), block(Tensor(x)).numpy()) > 1e-3
    block.zero_branch_()
    if name not in ("ReZero", "SkipInit"):
        nn.init.zeros_(block.bn2.bias)  # generic() had moved it off 0
    assert np.array_equal(block.without_branch(Tensor(x)).numpy(), block(Tensor(x)).numpy())


@pytest.mark.parametrize("name", MADE)
def test_a_block_calls_its_shortcut_once_on_the_fork(name):
    """As the instruments expect, which listen there."""
    block, seen = MADE[name](), []
    block.shortcut.register_forward_hook(lambda module, args, output: seen.append((args, output)))
    x = Tensor(images(2, 4, 5, 5))
    block(x)
    block.without_branch(x)
    assert [(args, output) for args, output in seen] == [((x,), x)] * 2


@pytest.mark.parametrize("block", [JoinedBasicBlock, ReZeroBasicBlock, SkipInitBlock, gates.ExclusiveGateBlock,
                                   gates.ShortcutGateBlock])
def test_a_block_alone_makes_a_shortcut_that_fits(block):
    assert block(4, 8, 2)(Tensor(images(2, 4, 5, 6))).shape == (2, 8, 3, 3)
    assert type(block(4, 4).shortcut) is nn.Identity


def test_a_shut_gate_is_the_identity():
    """b -> -inf: g = 0, so the exclusive gate leaves relu(x), and the gate on the shortcut the block as it was."""
    tr.manual_seed(0)
    x = normal(2, 4, 5, 5)
    exclusive, only = gates.ExclusiveGateBlock(4, 4, bias=-1e4), gates.ShortcutGateBlock(4, 4, bias=-1e4)
    assert np.array_equal(exclusive.double()(Tensor(x)).numpy(), np.maximum(x, 0))
    plain = blocks.BasicBlock(4, 4).double()
    plain.load_state_dict({name: a for name, a in only.double().state_dict().items() if "gate" not in name})
    upstream = normal(2, 4, 5, 5, seed=1)
    for a, b in zip(gradients(only, x, upstream)[:2], gradients(plain, x, upstream)[:2], strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("build", gates.NETWORKS, ids=lambda f: f.__name__)
def test_gates_start_at_their_bias(build):
    """The initialisation of the convolutions, which comes last, leaves it alone."""
    tr.manual_seed(0)
    model = build(20, bias=-3.0)
    found = [m for m in model.modules() if isinstance(m, gates.Gate)]
    assert len(found) == 9
    assert all((m.conv.bias.numpy() == -3.0).all() and m.conv.weight.numpy().std() > 0.05 for m in found)
    assert [m.conv.stride for m in found if m.conv.stride != (1, 1)] == [(2, 2)] * 2


# --- learned scales ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ReZeroBasicBlock, SkipInitBlock])
def test_at_zero_only_the_scale_learns_and_then_the_branch(make):
    tr.manual_seed(0)
    block, x, upstream = make(4, 4).double(), np.abs(normal(4, 4, 5, 5)), normal(4, 4, 5, 5, seed=1)
    y, dx, grads = gradients(block, x, upstream)
    assert np.array_equal(y, x) and np.array_equal(dx, upstream)
    assert grads["join.scale"].shape == (1,) and abs(grads["join.scale"]) > 0.1
    assert not any(grad.any() for name, grad in grads.items() if name != "join.scale")
    optim.SGD(block.parameters(), lr=0.01).step()
    _, _, grads = gradients(block, x, upstream)
    assert all(grads[name].any() for name in ("conv1.weight", "conv2.weight", "join.scale"))


@pytest.mark.parametrize("build", [models.rezero_resnet, models.skipinit_resnet])
@pytest.mark.parametrize("rule, options", [(optim.SGD, {"lr": 0.05, "momentum": 0.9}), (optim.AdamW, {"lr": 0.003})])
def test_networks_with_learned_scales_train_and_are_saved(build, rule, options, tmp_path):
    """Without a norm too: the loss on digits falls; scales are single numbers for optimizer, file and copy."""
    tr.manual_seed(0)
    model = build(14, in_channels=1)
    optimizer = rule(model.parameters(), weight_decay=1e-4, **options)
    x, y = data.digits("train").batch(128)
    losses = []
    for _ in range(40):
        loss = tr.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.numpy()))
    scales = [p.numpy() for name, p in model.named_parameters() if name.endswith("join.scale")]
    assert len(scales) == 6 and all(s.shape == (1,) and s.dtype == np.float32 and s != 0 for s in scales)
    assert losses[-1] < 0.7 * losses[0]
    weights.save(model, tmp_path / "w.safetensors")
    other = build(14, in_channels=1)
    other.load_state_dict(weights.read(tmp_path / "w.safetensors").arrays)
    wanted = model.eval()(x).numpy()
    assert np.array_equal(other.eval()(x).numpy(), wanted) and np.array_equal(copy.deepcopy(model)(x).numpy(), wanted)


def test_a_skipinit_network_is_its_stem_at_the_start():
    """Option A passes every second pixel of the stem's channels; one ReLU follows the last addition."""
    tr.manual_seed(0)
    model, x = models.skipinit_resnet(20, option="A").double(), Tensor(normal(2, 3, 8, 8))
    assert not any(p.numpy().any() for name, p in model.named_parameters() if ".conv" in name and name.endswith("bias"))
    pooled = np.zeros((2, 64))
    pooled[:, 24:40] = np.maximum(model.conv1(x).numpy()[:, :, ::4, ::4], 0).mean((2, 3))
    wanted = pooled @ model.fc.weight.numpy().T + model.fc.bias.numpy()
    assert norm_distance(model(x).numpy(), wanted) < EXACT


def test_without_norm_the_zero_keeps_a_deep_network_from_exploding():
    """56 layers: with every scale at 1 each of 27 blocks nearly doubles the variance, at 0 none changes it."""
    tr.manual_seed(0)
    model, x = models.skipinit_resnet(56), normal(4, 3, 16, 16).astype("float32")
    quiet = np.abs(model(x).numpy()).max()
    for name, p in model.named_parameters():
        if name.endswith("join.scale"):
            nn.init.ones_(p)
    assert quiet < 10 and np.abs(model(x).numpy()).max() > 100 * quiet


# --- dropout ----------------------------------------------------------------------------------------------------------


def test_a_dropped_shortcut_passes_or_not_and_in_eval_mode_scales():
    tr.manual_seed(0)
    shortcut, x = DropoutShortcut(nn.Identity(), 0.25), normal(8, 4, 16, 16) + 10
    leaf = tr.tensor(x, requires_grad=True)
    y = shortcut(leaf)
    y.backward(x)
    passed = y.numpy() != 0
    assert norm_distance(y.numpy(), passed * x) < 1e-15 and norm_distance(leaf.grad.numpy(), passed * x) < 1e-15
    assert abs(passed.mean() - 0.75) < 4 * (0.25 * 0.75 / x.size) ** 0.5
    assert not np.array_equal(shortcut(Tensor(x)).numpy() != 0, passed)
    assert np.array_equal(shortcut.eval()(Tensor(x)).numpy(), 0.75 * x)


def test_a_seed_fixes_what_a_network_drops():
    def logits(seed):
        tr.manual_seed(0)
        model = models.dropout_shortcut_resnet(8)
        tr.manual_seed(seed)
        return model(images(2, 3, 8, 8)).numpy(), model.eval()(images(2, 3, 8, 8)).numpy()

    assert np.array_equal(logits(1)[0], logits(1)[0]) and not np.array_equal(logits(1)[0], logits(2)[0])
    model = models.dropout_shortcut_resnet(8, p=0)
    plain = models.resnet8()
    plain.load_state_dict(model.state_dict())
    assert np.array_equal(model(images(2, 3, 8, 8)).numpy(), plain(images(2, 3, 8, 8)).numpy())


# --- folding, errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [models.scaled_resnet, models.rezero_resnet, models.dropout_shortcut_resnet,
                                   *gates.NETWORKS], ids=lambda f: f.__name__)
def test_batch_norms_fold(build):
    """fold_batch_norm compares outputs itself; here that nothing was left over."""
    tr.manual_seed(0)
    model = generic(build(8), normal(8, 3, 8, 8)).eval()
    folded = nn.fold_batch_norm(model, normal(2, 3, 8, 8))
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("call, message", [
    (lambda: models.scaled_resnet(residual_scale="a lot"), "ScaledAdd: residual_scale must be a finite number, got 'a"),
    (lambda: models.scaled_resnet(shortcut_scale=float("nan")), "ScaledAdd: shortcut_scale must be a finite number"),
    (lambda: ScaledShortcut(nn.Identity(), float("inf")), "ScaledShortcut: scale must be a finite number, got inf"),
    (lambda: LearnedScaledAdd(None), "LearnedScaledAdd: initial must be a finite number, got None"),
    (lambda: models.exclusive_gate_resnet(bias=-float("inf")), "Gate: bias must be a finite number, got -inf"),
    (lambda: models.dropout_shortcut_resnet(p=1), r"DropoutShortcut: p must lie in \[0, 1\), the share .* got 1"),
    (lambda: models.scaled_resnet(21), r"scaled_resnet: depth must be 6n\+2, got 21: use 20"),
    (lambda: models.rezero_resnet(9), r"rezero_resnet: depth must be 6n\+2, got 9: use 8"),
    (lambda: models.skipinit_resnet(option="D"), "option must be one of A, B, C"),
    (lambda: models.skipinit_resnet(num_classes=0), "SkipInitResNet: num_classes must be a positive int, got 0"),
    (lambda: models.shortcut_gate_resnet(option="D"), "option must be one of A, B, C"),
    (lambda: models.build("scaled_resnet", residual_scal=0.1), "did you mean 'residual_scale'?"),
])
def test_wrong_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
