"""The five orders of batch norm, ReLU and addition: numbers, what passes the block, networks, and their errors."""

import numpy as np
import pytest
from differences import norm_distance
from test_joins import EXACT, SHAPES, same_as_in_pytorch
from test_models import count, images
from test_structure import generic, gradients, jacobian, normal

import tinyres as tr
from tinyres import models, nn
from tinyres.analysis.gradcheck import gradcheck
from tinyres.models import blocks, orders, preact, resnet
from tinyres.tensor import Tensor

# Row of He et al. 2016, table 2 (ResNet-110 / ResNet-164, CIFAR-10) -> the two networks, in one line each.
TABLE_2 = {
    "original": ("models.original_resnet(110)", "models.original_resnet(164, bottleneck=True)"),
    "BN after addition": ("models.bn_after_addition_resnet(110)",
                          "models.bn_after_addition_resnet(164, bottleneck=True)"),
    "ReLU before addition": ("models.relu_before_addition_resnet(110)",
                             "models.relu_before_addition_resnet(164, bottleneck=True)"),
    "ReLU-only pre-activation": ("models.relu_only_preactivation_resnet(110)",
                                 "models.relu_only_preactivation_resnet(164, bottleneck=True)"),
    "full pre-activation": ("models.full_preactivation_resnet(110)",
                            "models.full_preactivation_resnet(164, bottleneck=True)"),
}


def bottleneck_count():
    """ResNet-164, n = 18, option A: convolutions, norms behind each, linear layer; by hand."""
    n, C, total = 18, 16, 3 * 16 * 9 + 2 * 16 + 256 * 10 + 10
    for width in (16, 32, 64):
        K = 4 * width
        total += C * width + (n - 1) * K * width + n * (9 * width * width + width * K + 2 * (width + width + K))
        C = K
    return total


@pytest.mark.parametrize("row", TABLE_2)
def test_each_row_of_table_2_is_one_line_and_as_large_as_the_others(row):
    tr.manual_seed(0)
    basic, wide = (eval(line) for line in TABLE_2[row])
    assert count(basic) == 1_727_962
    if row == "full pre-activation":  # a norm in front of each convolution and one at the end, instead of behind
        assert count(wide) == count(models.preact_resnet164(option="A"))
    else:
        assert count(wide) == bottleneck_count()
    tr.cross_entropy(basic(images(4, 3, 8, 8)), np.arange(4)).backward()
    assert not [name for name, p in basic.named_parameters() if p.grad is None or not p.grad.numpy().any()]


@pytest.mark.parametrize("bottleneck", [False, True])
def test_each_network_has_the_blocks_of_its_order(bottleneck):
    wide = {orders.BNAfterAdditionBlock: orders.BNAfterAdditionBottleneck,
            orders.ReLUBeforeAdditionBlock: orders.ReLUBeforeAdditionBottleneck,
            orders.ReLUOnlyPreActBlock: orders.ReLUOnlyPreActBottleneck}
    for build, block in zip(orders.NETWORKS[1:4], wide, strict=True):
        model = build(11 if bottleneck else 14, bottleneck=bottleneck)
        found = {type(module) for module in model.modules() if isinstance(module, blocks.Block)}
        assert found == {wide[block] if bottleneck else block}, build.__name__


def test_two_of_the_orders_are_the_networks_that_exist():
    for ours, theirs in ((models.original_resnet, models.resnet20),
                         (models.full_preactivation_resnet, models.preact_resnet20)):
        found = []
        for build in (ours, theirs):
            tr.manual_seed(0)
            model = build()
            found.append([model(images(4, 3, 8, 8)).numpy(), *model.state_dict().values()])
        assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("build", orders.NETWORKS, ids=lambda f: f.__name__)
def test_names_of_weights_are_the_same_in_all_but_the_last_norm(build):
    wanted = set(models.resnet20().state_dict())
    renamed = {name.replace("bn1", "bn") if name.startswith("bn1") else name for name in wanted}
    assert set(build().state_dict()) == (renamed if build is orders.full_preactivation_resnet else wanted)


def test_projections_have_a_norm_but_where_one_follows_the_addition():
    for build in orders.NETWORKS[:4]:
        norms = {name for name in build(option="B").state_dict() if "downsample.1.weight" in name}
        assert len(norms) == (0 if build is orders.bn_after_addition_resnet else 2), build.__name__


CASES = [(build, {"depth": 20}, (8, 3, 8, 8)) for build in orders.NETWORKS[1:4]]
CASES += [(build, {"depth": 20, "bottleneck": True}, (2, 3, 16, 16)) for build in orders.NETWORKS[:4]]


@pytest.mark.parametrize("build, options, shape", CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_gradients_of_the_networks(build, options, shape):
    tr.manual_seed(0)
    result = gradcheck(build(**options), normal(*shape), order=(1, 2), nudge=0.1, directions=2, step=3e-6,
                       raise_on_failure=True)
    assert result.max_relative_error < 1e-6 and not result.notes


# --- blocks -----------------------------------------------------------------------------------------------------------


def basic(t, x):
    """conv BN ReLU conv"""
    return t.conv("conv2", t.norm("bn1", t.conv("conv1", x)).relu())


def wide(t, x):
    """conv BN ReLU conv BN ReLU conv"""
    return t.conv("conv3", t.norm("bn2", t.conv("conv2", t.norm("bn1", t.conv("conv1", x)).relu())).relu())


BLOCKS = {
    orders.BNAfterAdditionBlock: lambda t, x: t.norm("bn2", basic(t, x) + t.shortcut(x)).relu(),
    orders.BNAfterAdditionBottleneck: lambda t, x: t.norm("bn3", wide(t, x) + t.shortcut(x)).relu(),
    orders.ReLUBeforeAdditionBlock: lambda t, x: t.norm("bn2", basic(t, x)).relu() + t.shortcut(x),
    orders.ReLUBeforeAdditionBottleneck: lambda t, x: t.norm("bn3", wide(t, x)).relu() + t.shortcut(x),
    orders.ReLUOnlyPreActBlock: lambda t, x: t.norm("bn2", basic(t, x.relu())) + t.shortcut(x),
    orders.ReLUOnlyPreActBottleneck: lambda t, x: t.norm("bn3", wide(t, x.relu())) + t.shortcut(x),
}
NAME = {"ids": lambda v: getattr(v, "__name__", None)}


def make(block, option, size):
    """A bare 1x1 convolution where a norm follows the addition: the shift of one more norm would have no effect."""
    options = preact.OPTIONS if "BNAfter" in block.__name__ else resnet.OPTIONS
    return block(*SHAPES[size], options[option](*SHAPES[size]))


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("block", BLOCKS, **NAME)
def test_blocks_compute_what_pytorch_does(torch, block, size):
    tr.manual_seed(0)
    same_as_in_pytorch(torch, block(*SHAPES[size]), BLOCKS[block], normal(3, 4, 6, 6))


@pytest.mark.parametrize("kernels", ["fast", "reference"])
@pytest.mark.parametrize("option", "ABC")
@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("block", BLOCKS, **NAME)
def test_gradients_of_blocks(block, size, option, kernels):
    tr.manual_seed(1)
    with tr.use_kernels(kernels):
        result = gradcheck(make(block, option, size), normal(2, 4, 4, 4), order=(1, 2), nudge=0.1, directions=2,
                           raise_on_failure=True)
    assert result.max_relative_error < 1e-6 and not result.notes


def test_each_class_is_among_the_cases():
    """A block that is added to orders.py must be added here."""
    classes = {c for c in vars(orders).values() if isinstance(c, type) and issubclass(c, nn.Module)}
    assert {c for c in classes if c.__module__ == orders.__name__} - {orders.ReLUOnlyPreActResNet} == set(BLOCKS)
    assert {type(build(8)) for build in orders.NETWORKS} >= {orders.ReLUOnlyPreActResNet}


# --- what passes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("block", BLOCKS, **NAME)
def test_without_its_branch_a_block_gives_what_it_gives_for_a_zero_branch(block, training):
    tr.manual_seed(0)
    x = normal(2, 4, 5, 5)
    made = generic(block(4, 4), x).train(training)
    assert norm_distance(made.without_branch(Tensor(x)).numpy(), made(Tensor(x)).numpy()) > 0.01
    made.zero_branch_()
    last = made.bn3 if isinstance(made, blocks.Bottleneck) else made.bn2
    if not last.weight.numpy().any():
        nn.init.zeros_(last.bias)  # generic() had moved it off 0
    assert np.array_equal(made.without_branch(Tensor(x)).numpy(), made(Tensor(x)).numpy())


@pytest.mark.parametrize("block", BLOCKS, **NAME)
def test_a_block_calls_its_shortcut_once_on_the_fork(block):
    made, seen = block(4, 4), []
    made.shortcut.register_forward_hook(lambda module, args, output: seen.append((args, output)))
    x = Tensor(images(2, 4, 5, 5))
    made(x)
    made.without_branch(x)
    assert seen == [((x,), x)] * 2


PASSES = {  # what the route past ten zero branches makes of x, and of the gradient
    orders.ReLUBeforeAdditionBlock: (lambda x: x, lambda x, g: g),
    orders.ReLUOnlyPreActBlock: (lambda x: x, lambda x, g: g),
    blocks.PreActBasicBlock: (lambda x: x, lambda x, g: g),
    blocks.BasicBlock: (lambda x: np.maximum(x, 0), lambda x, g: np.where(x > 0, g, 0)),
}


@pytest.mark.parametrize("block", PASSES, **NAME)
def test_only_three_of_the_orders_leave_the_route_alone(block):
    """Ten blocks with zero branches: x and its gradient pass to the bit, but for the ReLU behind the addition."""
    chain = [block(4, 4).double() for _ in range(10)]
    for made in chain:
        made.zero_branch_()
    x, upstream = normal(2, 4, 5, 5), normal(2, 4, 5, 5, seed=1)
    y, dx, _ = gradients(nn.Sequential(*chain), x, upstream)
    forward, backward = PASSES[block]
    assert np.array_equal(y, forward(x)) and np.array_equal(dx, backward(x, upstream))


def test_a_norm_behind_the_addition_changes_what_passes():
    """The route past the block is then relu(BN(x)): it forgets x's mean and scale; gradients along them are lost."""
    block = orders.BNAfterAdditionBlock(4, 4).double()
    block.zero_branch_()
    x = normal(2, 4, 5, 5)
    y, J = jacobian(block, x)
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    assert norm_distance(y, np.maximum((x - mean) / np.sqrt(var + 1e-5), 0)) < EXACT
    assert norm_distance(block(Tensor(3 * x + 5)).numpy(), y) < 1e-5
    shift = np.broadcast_to(np.arange(1.0, 5).reshape(1, 4, 1, 1), x.shape).ravel()
    assert np.abs(J @ shift).max() < 1e-11 and np.abs(J @ x.ravel()).max() < 1e-4 < 0.1 < np.abs(J).max()


def test_with_the_relu_before_the_addition_signals_only_grow():
    """Every block of the network adds something and takes nothing away."""
    tr.manual_seed(0)
    model, seen = models.relu_before_addition_resnet(32), []
    for block in model.layer1:
        block.register_forward_hook(lambda module, args, output: seen.append((args[0].numpy(), output.numpy())))
    model(images(8, 3, 16, 16))
    assert all((after >= before).all() and after.mean() > before.mean() + 0.1 for before, after in seen)


def test_the_ends_of_a_relu_only_network():
    """Its first ReLU, behind the stem's norm, comes before the paths part, and one more follows the last addition."""
    tr.manual_seed(0)
    model, seen = models.relu_only_preactivation_resnet(8), []
    model.layer1[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].numpy()))
    model.layer3[-1].register_forward_hook(lambda module, args, output: seen.append(output.numpy()))
    model.fc.register_forward_pre_hook(lambda module, args: seen.append(args[0].numpy()))
    model(images(8, 3, 8, 8))
    first, last, pooled = seen
    assert first.min() == 0.0 > last.min()
    assert norm_distance(pooled, np.maximum(last, 0).mean((2, 3))) < 1e-6


@pytest.mark.parametrize("build, left", [(models.bn_after_addition_resnet, 3), (models.relu_before_addition_resnet, 0),
                                         (models.relu_only_preactivation_resnet, 0)])
def test_batch_norms_fold_but_those_behind_an_addition(build, left):
    tr.manual_seed(0)
    model = generic(build(8), normal(8, 3, 8, 8)).eval()
    folded = nn.fold_batch_norm(model, normal(2, 3, 8, 8))
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == left


@pytest.mark.parametrize("call, message", [
    (lambda: models.original_resnet(21), r"original_resnet: depth must be 6n\+2, got 21: use 20"),
    (lambda: models.bn_after_addition_resnet(26, bottleneck=True),
     r"bn_after_addition_resnet: depth must be 9n\+2, got 26: use 29"),
    (lambda: models.full_preactivation_resnet(22), r"full_preactivation_resnet: depth must be 6n\+2, got 22: use 20"),
    (lambda: models.full_preactivation_resnet(20, option="D"), "option must be one of A, B, C"),
    (lambda: models.relu_before_addition_resnet(20, option=1), "option must be one of A, B, C"),
    (lambda: models.relu_only_preactivation_resnet(20, bottleneck="yes"),
     r"relu_only_preactivation_resnet: bottleneck must be True \(depth 9n\+2\) or False .* got 'yes'"),
])
def test_wrong_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
