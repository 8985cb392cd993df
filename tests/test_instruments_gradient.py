"""The instruments of the gradient against ordinary backward passes, closed formulas and sums over all paths."""

import copy
import json
import math
from itertools import product

import numpy as np
import pytest

import tinyres as tr
from tinyres import models, nn, ops, random, weights
from tinyres.analysis import activation_growth, forks, gradient_flow, norms, path_spectrum
from tinyres.analysis.activation_growth import activation_growth as growth_of
from tinyres.analysis.forks import split_of_gradient
from tinyres.analysis.gradient_flow import gradient_flow as flow_of
from tinyres.analysis.path_spectrum import path_gradients, path_gradients_by_force
from tinyres.analysis.path_spectrum import path_spectrum as spectrum_of
from tinyres.models import resnet
from tinyres.models.blocks import BasicBlock, Block, Bottleneck, PreActBasicBlock, shortcut_b
from tinyres.tensor import Tensor

LABELS = np.arange(4)


def bottlenecks():
    return resnet.ResNet(resnet.Residual(Bottleneck, shortcut_b), [1, 1, 1], (4, 8, 16), 10, 3, True)


# Networks of three blocks each, where the family has such: a name with options, or a function.
SMALL = {
    "after addition, A": ("resnet8", {}),
    "after addition, B": ("resnet8", {"option": "B"}),
    "after addition, C": ("resnet8", {"option": "C"}),
    "scaled": ("scaled_resnet", {"depth": 8, "residual_scale": 0.3, "shortcut_scale": 0.9}),
    "exclusive gate": ("exclusive_gate_resnet", {"depth": 8, "bias": -1.0}),
    "shortcut gate": ("shortcut_gate_resnet", {"depth": 8, "bias": -1.0}),
    "1x1 shortcut": ("conv_shortcut_resnet", {"depth": 8}),
    "dropout shortcut": ("dropout_shortcut_resnet", {"depth": 8}),
    "BN after addition": ("bn_after_addition_resnet", {"depth": 8}),
    "ReLU before addition": ("relu_before_addition_resnet", {"depth": 8}),
    "ReLU only": ("relu_only_preactivation_resnet", {"depth": 8}),
    "full pre-activation": ("full_preactivation_resnet", {"depth": 8}),
    "random depth": ("stochastic_depth_resnet", {"depth": 8, "survival": 0.5}),
    "Fixup": ("fixup_resnet", {"depth": 8}),
    "ReZero": ("rezero_resnet", {"depth": 8}),
    "SkipInit": ("skipinit_resnet", {"depth": 8}),
    "article, parallel": ("article_prose_parallel", {"filters": 8}),
    "article, series": ("article_prose_series", {"filters": 8}),
    "article, four steps": ("article_prose_four_step", {"filters": 8}),
    "chain with concatenations": ("chain_concatenation", {"blocks": 4, "width": 4}),
    "raw pixels, biases": ("mlperf_resnet8", {}),
    "bottleneck": (bottlenecks, {}),
    "pre-activation, B": ("preact_resnet20", {"option": "B"}),
    "shared": ("shared_resnet20", {}),
    "MLP": ("residual_mlp", {"depth": 6, "width": 20, "in_features": 192}),
}
BY_FORCE = [name for name in SMALL if name not in ("pre-activation, B", "shared")]


def network(name, seed=0):
    """In float64, with parameters that are nothing special and running statistics that are not 0 and 1."""
    tr.manual_seed(seed)
    build, options = SMALL[name]
    model = (build() if callable(build) else models.build(build, **options)).double()
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data = p.data + 0.1 * rng.standard_normal(p.shape) * (np.abs(p.data).max() or 1.0)
    with tr.no_grad():
        for _ in range(5):
            model(Tensor(images()))
    return model


def images(*shape):
    shape = shape or (4, 3, 8, 8)
    return np.random.default_rng(shape).standard_normal(shape)


def relative(a, b):
    return np.linalg.norm(np.ravel(a - b)) / np.linalg.norm(np.ravel(b))


def test_each_family_with_residual_blocks_is_among_the_cases():
    """A family that is added to models must be added here."""
    named = {build for build, _ in SMALL.values()}
    missing = [family.__name__ for family in models.FAMILIES if not named & {n.__name__ for n in family.NETWORKS}]
    assert missing == ["tinyres.models.densenet"]  # where nothing is added


# --- the numbers that all of them report ------------------------------------------------------------------------------


def test_norms_do_not_overflow_and_what_is_no_number_is_none():
    big = np.full(4, 1e200)
    assert norms.norm(big) == pytest.approx(2e200) and norms.cosine(big, -big) == pytest.approx(-1.0)
    assert norms.share(0.25 * big, big) == pytest.approx(0.25)
    assert norms.norm(np.full(4, 3e38, np.float32)) == pytest.approx(6e38)
    zero = np.zeros(3)
    assert norms.norm(zero) == 0.0 and norms.cosine(zero, big[:3]) is None and norms.share(big[:3], zero) is None
    assert norms.finite(norms.norm(np.array([1.0, np.inf]))) is None
    assert norms.finite(norms.norm(np.array([1.0, np.nan]))) is None


# --- forks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_the_parts_at_each_fork_make_the_gradient_that_backward_gives(name, training):
    model, x = network(name).train(training), images()
    state = random.get_state()
    split = split_of_gradient(model, x, LABELS)
    inputs = []

    def own_input(block, args):
        """A tensor that the block alone uses."""
        inputs.append(ops.alias(args[0]))
        inputs[-1].retain_grad()
        return inputs[-1]

    handles = [block.register_forward_pre_hook(own_input) for block in model.modules() if isinstance(block, Block)]
    loss = ops.cross_entropy(model(tr.tensor(x, requires_grad=True)), LABELS)
    for handle in handles:
        handle.remove()
    loss.backward()
    random.set_state(state)
    assert split.loss == pytest.approx(float(loss.data), rel=1e-12)
    assert len(split.residual) == len(inputs)
    for fork, at in zip(split.residual, inputs, strict=True):
        shortcut = fork.contributions[0]
        assert shortcut.consumer == "shortcut"
        if fork.norm:
            assert sum(part.share for part in fork.contributions) == pytest.approx(1.0, abs=1e-9)
        if shortcut.norm and fork.branch:  # the law of cosines
            square = shortcut.norm**2 + fork.branch**2 + 2 * fork.cosine * shortcut.norm * fork.branch
            assert fork.norm**2 == pytest.approx(square, rel=1e-9)
        block = model.get_submodule(fork.name)
        if not type(block).__name__.startswith("Shared") or name == "shared":  # else an activation stands between
            assert fork.norm == pytest.approx(np.linalg.norm(at.grad.numpy()), rel=1e-10)
    json.dumps(split.as_dict(), allow_nan=False)


def test_at_a_pre_activation_block_the_shortcut_brings_the_upstream_gradient():
    tr.manual_seed(0)
    block = PreActBasicBlock(4, 4).double()
    x, v = images(3, 4, 5, 5), images(3, 4, 5, 5)[::-1].copy()
    (fork,) = split_of_gradient(block, x, lambda y: ops.sum(y * v)).forks
    at = tr.tensor(x, requires_grad=True)
    block(at).backward(v)
    g = at.grad.numpy()
    branch = g - v
    assert fork.residual and fork.shape == x.shape
    assert fork.contributions[0].norm == pytest.approx(np.linalg.norm(v), rel=1e-12)
    assert fork.share == pytest.approx((v * g).sum() / (g * g).sum(), rel=1e-10)
    assert fork.branch == pytest.approx(np.linalg.norm(branch), rel=1e-10)
    assert fork.cosine == pytest.approx((v * branch).sum() / np.linalg.norm(v) / np.linalg.norm(branch), rel=1e-8)


def test_an_output_that_goes_two_ways_is_a_fork_of_its_own():
    """As where outputs are concatenated; a block is then one consumer, whatever parts inside of it."""
    split = split_of_gradient(network("chain with concatenations"), images(), LABELS)
    between = [fork for fork in split.forks if not fork.residual]
    assert [{part.consumer for part in fork.contributions} for fork in between] == [{"concat", "block blocks.1"},
                                                                                    {"concat"}]
    assert all(sum(part.share for part in fork.contributions) == pytest.approx(1.0) for fork in between)


class ThreeUses(nn.Module):
    """A parameter that is used twice, and an input that is used three times."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(np.array([1.0, 2.0, 3.0]))

    def forward(self, x):
        return ops.sum(x * self.w) + 2.0 * ops.sum(x * self.w * x)


def test_every_tensor_with_several_consumers_is_a_fork():
    x = np.array([1.0, -1.0, 0.5])
    w = np.array([1.0, 2.0, 3.0])
    found = {fork.name: fork for fork in split_of_gradient(ThreeUses(), x, lambda y: y).forks}
    assert set(found) == {"images", "w"} and not any(fork.residual for fork in found.values())
    assert sorted(part.norm for part in found["w"].contributions) == pytest.approx(
        sorted([np.linalg.norm(x), np.linalg.norm(2 * x * x)]))
    assert sorted(part.norm for part in found["images"].contributions) == pytest.approx(
        sorted([np.linalg.norm(w), *[np.linalg.norm(2 * w * x)] * 2]))
    assert found["images"].norm == pytest.approx(np.linalg.norm(w + 4 * w * x))


class Detached(Block):
    """Its shortcut is cut off from the graph."""

    class Stop(nn.Module):
        def forward(self, x):
            return x.detach()

    def __init__(self):
        super().__init__()
        self.w, self.downsample = nn.Parameter(np.array([2.0, 3.0])), self.Stop()

    def forward(self, x):
        return x * self.w + self.shortcut(x)


def test_a_shortcut_that_is_cut_off_brings_nothing():
    (fork,) = split_of_gradient(Detached(), np.ones((1, 2)), lambda y: ops.sum(y)).residual
    assert [(part.consumer, part.norm, part.share) for part in fork.contributions] == [
        ("shortcut", 0.0, 0.0), ("mul", pytest.approx(math.sqrt(13)), pytest.approx(1.0))]
    assert fork.branch == fork.norm == pytest.approx(math.sqrt(13))
    spectrum = spectrum_of(Detached(), np.ones((1, 2)), lambda y: ops.sum(y))
    assert [row.norm for row in spectrum.lengths] == pytest.approx([0.0, math.sqrt(13)])


def test_a_shared_weight_is_a_fork_of_as_many_parts_as_it_has_uses():
    model = models.shared_residual_mlp(depth=5, width=10, in_features=192).double()
    split = split_of_gradient(model, images(), LABELS)
    weight = [fork for fork in split.forks if fork.name.endswith("linear.weight")]
    assert len(weight) == 1 and len(weight[0].contributions) == 5 and len(split.residual) == 5


# --- flow -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["after addition, B", "full pre-activation", "MLP"])
def test_flow_shows_the_norms_of_the_gradients_of_a_pass(name, training):
    model, x = network(name).train(training), images()
    flow = flow_of(model, x, LABELS)
    outputs = {}
    for n, module in model.named_modules():
        module.register_forward_hook(lambda m, args, y, n=n: outputs.update({n: y}) or y.retain_grad())
    at = tr.tensor(x, requires_grad=True)
    ops.cross_entropy(model(at), LABELS).backward()
    assert flow.images == pytest.approx(np.linalg.norm(at.grad.numpy()), rel=1e-10)
    assert [row.name for row in flow.parameters] == [n for n, _ in model.named_parameters()]
    for row, p in zip(flow.parameters, model.parameters(), strict=True):
        assert row.gradient == pytest.approx(np.linalg.norm(p.grad.numpy()), rel=1e-10)
        assert row.value == pytest.approx(np.linalg.norm(p.data), rel=1e-12)
        assert row.ratio == pytest.approx(row.gradient / row.value)
    assert len(flow.outputs) > 5
    for row in flow.outputs:
        g = outputs[row.name].grad.numpy()
        assert row.norm == pytest.approx(np.linalg.norm(g), rel=1e-10), row.name
        assert row.rms == pytest.approx(np.sqrt((g * g).mean()), rel=1e-10)
    json.dumps(flow.as_dict(), allow_nan=False)


def test_a_frozen_parameter_has_no_gradient_in_the_flow():
    model = network("after addition, A")
    model.conv1.weight.requires_grad = False
    flow = flow_of(model, images(), LABELS)
    assert flow.parameters[0].gradient is None and flow.parameters[0].ratio is None
    assert all(row.gradient is not None for row in flow.parameters[1:])


def in_place():
    """Norm, then a ReLU that overwrites its result."""
    tr.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3)).double()


def test_a_layer_in_place_does_not_hide_what_the_layer_before_it_gave():
    model, x = in_place(), images()
    twin = nn.Sequential(*[nn.ReLU() if isinstance(layer, nn.ReLU) else layer for layer in model.children()])
    for found, wanted in ((growth_of(model, x).outputs, growth_of(twin, x).outputs),
                          (flow_of(model, x, lambda y: ops.sum(y * y)).outputs,
                           flow_of(twin, x, lambda y: ops.sum(y * y)).outputs)):
        assert [row.name for row in found] == ["0", "1", "3"]  # the ReLU returns its very input
        for row, other in zip(found, [wanted[0], wanted[1], wanted[3]], strict=True):
            assert (row.norm, row.rms) == pytest.approx((other.norm, other.rms), rel=1e-12)


# --- growth -----------------------------------------------------------------------------------------------------------


def test_growth_shows_what_numpy_says_of_each_output():
    model, x = network("after addition, B"), images()
    growth = growth_of(model, x)
    outputs, inputs = {}, {}
    for n, module in model.named_modules():
        module.register_forward_hook(lambda m, args, y, n=n: outputs.update({n: y.numpy()}) or inputs.update(
            {n: args[0].numpy()}))
    model(Tensor(x))
    start = np.sqrt((inputs["layer1.0"] ** 2).mean())
    assert growth.start == pytest.approx(start)
    for row in growth.outputs:
        y = outputs[row.name]
        assert (row.mean, row.std) == pytest.approx((y.mean(), y.std()), rel=1e-9, abs=1e-12)
        assert row.norm == pytest.approx(np.linalg.norm(y)) and row.rms == pytest.approx(np.sqrt((y * y).mean()))
        assert row.growth == pytest.approx(row.rms / start)
    assert [row.name for row in growth.blocks] == ["layer1.0", "layer2.0", "layer3.0"]
    assert growth.growth == growth.blocks[-1].growth
    json.dumps(growth.as_dict(), allow_nan=False)


@pytest.mark.parametrize("a", [1.0, 0.1, 1 / math.sqrt(50)])
def test_fifty_blocks_without_norm_grow_as_the_theory_says(a):
    """(1 + a^2)^(L/2) holds for the mean square over networks. Over 20 networks of width 100 the logarithm of the
    growth scatters by 0.08 to 0.9, and its mean lies below by half its variance."""
    x = images(32, 1, 8, 8)
    logs = []
    for seed in range(20):
        tr.manual_seed(seed)
        logs.append(math.log(growth_of(models.residual_mlp(depth=50, a=a).double(), x).growth))
    error = np.std(logs) / math.sqrt(len(logs))
    assert np.mean(logs) + np.var(logs) == pytest.approx(25 * math.log1p(a * a), abs=4 * error + 0.02)


def test_an_overflow_is_reported_as_none():
    model = models.residual_mlp(depth=30, a=1e12)
    with np.errstate(all="ignore"):
        growth = growth_of(model, images(4, 1, 8, 8).astype("float32"))
    assert growth.blocks[0].rms is not None and growth.blocks[-1].rms is None
    json.dumps(growth.as_dict(), allow_nan=False)


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["block", "images"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SMALL)
def test_coefficients_sum_to_the_gradient(name, training, to):
    """The whole comes from an ordinary pass; the bound is the issue's."""
    model, x = network(name).train(training), images()
    state = random.get_state()
    coefficients, blocks, loss = path_gradients(model, x, LABELS, to)
    inputs = []
    first = model.get_submodule(blocks[0])
    handle = first.register_forward_pre_hook(lambda module, args: inputs.append(args[0]) or args[0].retain_grad())
    at = tr.tensor(x, requires_grad=True)
    whole = ops.cross_entropy(model(at), LABELS)
    handle.remove()
    whole.backward()
    g = (at if to == "images" else inputs[0]).grad.numpy()
    assert loss == pytest.approx(float(whole.data), rel=1e-12)
    assert len(coefficients) == len(blocks) + 1
    assert relative(sum(coefficients), g) < 1e-10
    random.set_state(state)
    spectrum = spectrum_of(model, x, LABELS, to)
    assert spectrum.error < 1e-10
    assert spectrum.norm == pytest.approx(np.linalg.norm(g), rel=1e-10)
    assert sum(row.share for row in spectrum.lengths) == pytest.approx(1.0, abs=1e-9)
    assert sum(row.share_of_norms for row in spectrum.lengths) == pytest.approx(1.0, abs=1e-12)
    assert sum(row.paths for row in spectrum.lengths) == 2 ** len(blocks)
    for row, c in zip(spectrum.lengths, coefficients, strict=True):
        assert row.norm == pytest.approx(np.linalg.norm(c), rel=1e-9, abs=1e-14)
    json.dumps(spectrum.as_dict(), allow_nan=False)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BY_FORCE)
def test_coefficients_equal_the_sums_over_all_paths(name, training):
    model = network(name).train(training)
    coefficients, blocks, _ = path_gradients(model, images(), LABELS)
    forced = path_gradients_by_force(model, images(), LABELS)
    whole = np.linalg.norm(np.ravel(sum(coefficients)))
    assert len(forced) == len(blocks) + 1 <= 11
    for k, (a, b) in enumerate(zip(coefficients, forced, strict=True)):
        assert np.linalg.norm(np.ravel(a - b)) < 1e-11 * whole, k


def test_ten_blocks_by_force():
    tr.manual_seed(0)
    model = models.residual_mlp(depth=10, width=8, in_features=192).double()
    coefficients, _, _ = path_gradients(model, images(), LABELS, "images")
    forced = path_gradients_by_force(model, images(), LABELS, "images")
    whole = np.linalg.norm(np.ravel(sum(coefficients)))
    assert max(np.linalg.norm(np.ravel(a - b)) for a, b in zip(coefficients, forced, strict=True)) < 1e-10 * whole


class Scaled(Block):
    """s x + W x with a matrix W: a linear block."""

    def __init__(self, W, s=1.0):
        super().__init__()
        self.w, self.s, self.downsample = nn.Parameter(W), s, nn.Identity()

    def forward(self, x):
        return ops.matmul(x, self.w) + self.s * self.shortcut(x)


def test_linear_blocks_give_the_products_of_their_matrices():
    """Over all 2^6 paths: the product of W or s for each block."""
    rng = np.random.default_rng(0)
    Ws, s, v = rng.standard_normal((6, 3, 3)), 0.7, rng.standard_normal((2, 3))
    expected = np.zeros((7, 2, 3))
    for chosen in product((0, 1), repeat=6):
        g = v
        for W, through in list(zip(Ws, chosen, strict=True))[::-1]:
            g = g @ W.T if through else s * g
        expected[sum(chosen)] += g
    model = nn.Sequential(*(Scaled(W, s) for W in Ws))
    for to in ("block", "images"):
        found, _, _ = path_gradients(model, rng.standard_normal((2, 3)), lambda y: ops.sum(y * v), to)
        assert relative(np.array(found), expected) < 1e-13


def test_blocks_of_one_number_give_the_binomial_theorem():
    """(1 + a)^18 multiplied out: C(18, k) a^k; the largest term of (1 + 1)^18 is the middle one."""
    for a, peak in ((1.0, 9), (0.1, 1), (0.03, 0)):
        model = nn.Sequential(*(Scaled(np.array([[a]])) for _ in range(18)))
        spectrum = spectrum_of(model, np.ones((1, 1)), lambda y: ops.sum(y))
        expected = [math.comb(18, k) * a**k for k in range(19)]
        assert [row.norm for row in spectrum.lengths] == pytest.approx(expected, rel=1e-12)
        assert [row.paths for row in spectrum.lengths] == [math.comb(18, k) for k in range(19)]
        assert [row.share for row in spectrum.lengths] == pytest.approx([e / (1 + a) ** 18 for e in expected], rel=1e-9)
        assert spectrum.peak == peak
        assert spectrum.mean_length == pytest.approx(18 * a / (1 + a), rel=1e-9)


def test_zero_branches_leave_the_shortest_path_alone():
    model = models.preact_resnet20(zero_init_residual=True).double()
    spectrum = spectrum_of(model, images(), LABELS)
    assert spectrum.lengths[0].share == pytest.approx(1.0) and spectrum.mean_length == pytest.approx(0.0, abs=1e-12)
    assert all(row.norm == 0.0 for row in spectrum.lengths[1:])


class Concatenated(nn.Module):
    """Three linear blocks that are no chain: the third is given the outputs of both others side by side."""

    def __init__(self, Ws):
        super().__init__()
        self.a, self.b, self.c = (Scaled(W) for W in Ws)

    def forward(self, x):
        first = self.a(x)
        return self.c(ops.concat([first, self.b(first)], 1))


def test_blocks_need_not_form_a_chain():
    """Past block b there are two ways from a to c, of which one is b's: lengths 0 to 3 of 6 paths, by hand."""
    rng = np.random.default_rng(1)
    A, B, C = (rng.standard_normal((n, n)) for n in (2, 2, 4))
    v, eye = rng.standard_normal((3, 4)), np.eye(2)
    expected = np.zeros((4, 3, 2))
    for through_c, through_a in product((0, 1), repeat=2):
        g = v @ C.T if through_c else v
        ways = {0: g[:, :2] + g[:, 2:] @ eye, 1: g[:, 2:] @ B.T}  # past b or through its shortcut; through its branch
        for through_b, h in ways.items():
            expected[through_a + through_b + through_c] += h @ A.T if through_a else h
    model = Concatenated((A, B, C))
    given = model, rng.standard_normal((3, 2)), lambda y: ops.sum(y * v)
    assert relative(np.array(path_gradients(*given)[0]), expected) < 1e-13
    assert relative(np.array(path_gradients_by_force(*given)), expected) < 1e-12


def test_the_gradient_of_a_parameter_in_front_of_the_blocks():
    model = network("after addition, A")
    spectrum = spectrum_of(model, images(), LABELS, model.conv1.weight)
    ops.cross_entropy(model(Tensor(images())), LABELS).backward()
    assert spectrum.to == "tensor" and spectrum.error < 1e-10
    assert spectrum.norm == pytest.approx(np.linalg.norm(model.conv1.weight.grad.numpy()), rel=1e-10)


class FrozenStem(nn.Module):
    """Two blocks, of whose first the input has no gradient."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 4, 1), BasicBlock(4, 4), BasicBlock(4, 4)

    def forward(self, x):
        with tr.no_grad():
            h = self.stem(x)
        return self.b(self.a(h))


def test_blocks_behind_a_frozen_stem():
    """The first block's weights are still reached, past the second block or through its branch."""
    tr.manual_seed(0)
    model = FrozenStem().double()
    given = model, images(), lambda y: ops.sum(y * y), model.a.conv1.weight
    coefficients, names, _ = path_gradients(*given)
    given[2](model(Tensor(images()))).backward()
    assert names == ["a", "b"] and relative(sum(coefficients), given[3].grad.numpy()) < 1e-12
    for k, (a, b) in enumerate(zip(coefficients, path_gradients_by_force(*given), strict=True)):
        assert np.linalg.norm(np.ravel(a - b)) < 1e-12 * np.linalg.norm(np.ravel(given[3].grad.numpy())), k
    with pytest.raises(RuntimeError, match="the loss does not depend on"):
        path_gradients(*given[:3], "images")


def test_eighteen_blocks_of_the_lesson():
    """With a = 1 most of the gradient comes through 8 to 10 of 18 branches, whatever the seed; with a = 0.1, 64 % of it
    through none and 26 % through one, within 2 percent points. A share is that of the norms."""
    x = images(16, 1, 8, 8)
    peaks, shares = [], []
    for seed in range(5):
        for a in (1.0, 0.1):
            tr.manual_seed(seed)
            spectrum = spectrum_of(models.residual_mlp(depth=18, a=a).double(), x, np.arange(16) % 10)
            peaks += [spectrum.peak] if a == 1.0 else []
            shares += [[row.share_of_norms for row in spectrum.lengths[:2]]] if a == 0.1 else []
    assert set(peaks) <= {8, 9, 10}
    assert np.mean(shares, axis=0) == pytest.approx([0.64, 0.26], abs=0.02)


# --- all of them ------------------------------------------------------------------------------------------------------

INSTRUMENTS = {
    "forks": lambda model, x, y: split_of_gradient(model, x, y, training=True),
    "flow": lambda model, x, y: flow_of(model, x, y, training=True),
    "growth": lambda model, x, y: growth_of(model, x, training=True),
    "paths": lambda model, x, y: spectrum_of(model, x, y, training=True),
    "paths by force": lambda model, x, y: path_gradients_by_force(model, x, y, training=True),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_the_network_is_untouched_afterwards_even_by_an_error(instrument, fails):
    model = network("random depth").eval()
    model.layer1.train()
    for p in model.parameters():
        p.grad = Tensor(np.ones_like(p.data))
    x = Tensor(images(4, 5, 8, 8) if fails else images(), requires_grad=not fails)
    before = copy.deepcopy((model.state_dict(), random.get_state()))
    modes = [m.training for m in model.modules()]
    run = INSTRUMENTS[instrument]
    if fails:
        with pytest.raises(ValueError):
            run(model, x, LABELS)
    else:
        first, again = (run(model, x, LABELS) for _ in range(2))
        assert repr(first) == repr(again)  # the same draws, too
    after = model.state_dict(), random.get_state()
    assert after[1] == before[1] and [m.training for m in model.modules()] == modes
    assert all(np.array_equal(before[0][n], after[0][n]) for n in before[0])
    assert all((p.grad.numpy() == 1).all() for p in model.parameters()) and x.grad is None
    assert not any(m._pre_hooks or m._forward_hooks for m in model.modules())


def test_without_a_mode_each_module_stays_in_its_own():
    """As a network whose first stage is frozen in eval mode."""
    model = network("after addition, B").train()
    model.layer1.eval()
    state = model.state_dict()
    kept = copy.deepcopy(state)
    with tr.no_grad():
        loss = float(ops.cross_entropy(model(Tensor(images())), LABELS).data)
    model.load_state_dict(kept)
    given = model, images(), LABELS
    assert split_of_gradient(*given).loss == flow_of(*given).loss == spectrum_of(*given).loss == loss
    assert loss not in (flow_of(*given, training=True).loss, flow_of(*given, training=False).loss)


def test_what_is_no_network_is_said_to_be_none():
    for run in INSTRUMENTS.values():
        with pytest.raises(TypeError, match="expected a network, got function: pass an nn.Module"):
            run(ops.relu, images(), LABELS)


def test_a_spectrum_that_overflows_has_no_peak():
    with np.errstate(all="ignore"):
        spectrum = spectrum_of(models.residual_mlp(depth=3, a=1e200).double(), images(4, 1, 8, 8), LABELS)
    assert spectrum.peak is None and spectrum.mean_length is None and spectrum.error is None
    json.dumps(spectrum.as_dict(), allow_nan=False)


def test_float32_stays_float32():
    model = models.resnet8()
    coefficients, _, _ = path_gradients(model, images().astype("float32"), LABELS)
    assert {c.dtype for c in coefficients} == {np.dtype("float32")}
    assert spectrum_of(model, images().astype("float32"), LABELS).error < 1e-5


def test_no_grad_around_an_instrument_does_not_matter():
    model = network("after addition, A")
    with tr.no_grad():
        inside = spectrum_of(model, images(), LABELS), flow_of(model, images(), LABELS)
    assert inside[0].norm == spectrum_of(model, images(), LABELS).norm and inside[1].images > 0


def test_errors_say_what_to_do():
    plain, model = models.plain8().double(), network("after addition, A")
    with pytest.raises(ValueError, match="ResNet has no residual blocks, so there is one path: use gradient_flow"):
        spectrum_of(plain, images(), LABELS)
    with pytest.raises(ValueError, match="`to` must be 'block', 'images' or a parameter, got 'blok'"):
        spectrum_of(model, images(), LABELS, "blok")
    with pytest.raises(RuntimeError, match="does not depend on the tensor of shape"):
        spectrum_of(model, images(), LABELS, tr.tensor(np.ones(3), requires_grad=True))
    with pytest.raises(RuntimeError, match="does not require a gradient: set requires_grad"):
        spectrum_of(model, images(), LABELS, tr.tensor(np.ones(3)))
    with pytest.raises(ValueError, match="18 blocks have 2.18 paths.*use at most 10 blocks, or path_gradients"):
        path_gradients_by_force(models.residual_mlp().double(), images(4, 1, 8, 8), LABELS)
    with pytest.raises(ValueError, match="no residual blocks"):
        forks.draw(split_of_gradient(plain, images(), LABELS), "x.png")


@pytest.mark.parametrize("model", [BasicBlock(4, 4).double(), models.residual_mlp(depth=12, a=0.0).double(),
                                   models.plain8().double()], ids=["block", "no branch", "plain"])
def test_figures_can_be_drawn_whatever_the_numbers(model, tmp_path):
    """Also of one block, of branches that give zero, and of no block at all."""
    shape = {"BasicBlock": (4, 4, 6, 6), "MLP": (4, 1, 8, 8)}.get(type(model).__name__, (4, 3, 8, 8))
    given = model, images(*shape), lambda y: ops.sum(y * y)
    drawings = [(gradient_flow, flow_of(*given)), (activation_growth, growth_of(*given[:2]))]
    if type(model).__name__ != "ResNet":
        drawings += [(forks, split_of_gradient(*given)), (path_spectrum, spectrum_of(*given))]
    for number, (module, result) in enumerate(drawings):
        module.draw(result, tmp_path / f"{number}.png", "$ a title")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


# --- the commands -----------------------------------------------------------------------------------------------------


def last_json(out):
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("name, key", [("gradient-flow", "parameters"), ("growth", "outputs"), ("forks", "forks"),
                                       ("paths", "lengths")])
def test_commands_print_a_table_a_figure_and_json(tinyres_command, tmp_path, name, key):
    status, out, err = tinyres_command(f"analyze {name} --model resnet8 --batch 4")
    assert status == 0 and "Traceback" not in err and len(out.splitlines()) > 3
    status, out, _ = tinyres_command(f"analyze {name} --model resnet8 --batch 4 --eval --seed 3 --out f.png --json")
    found = last_json(out)
    assert status == 0 and found["model"] == "resnet8" and found["data"] == "digits" and found["seed"] == 3
    assert len(found[key]) > 2 and found["figure"] == "f.png"
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_the_list_of_instruments_names_those_that_there_are(tinyres_command):
    status, out, _ = tinyres_command("analyze --json")
    listed = [row["name"] for row in last_json(out)["instruments"]]
    assert status == 0 and {"gradient-flow", "growth", "forks", "paths", "lesion", "hessian"} <= set(listed)
    for name in listed:
        status, out, _ = tinyres_command(f"analyze {name} --help")
        assert status == 0 and "--model" in out and "--out" in out and "--json" in out
    _, out, _ = tinyres_command("analyze")
    assert all(name in out for name in listed)


def test_paths_can_be_checked_by_force(tinyres_command):
    status, out, _ = tinyres_command("analyze paths --model shared_residual_mlp --model-option depth=6 "
                                     "--model-option a=0.5 --batch 4 --to images --check --json")
    found = last_json(out)
    assert status == 0 and found["passed"] and found["check"] < 1e-10 and found["error"] < 1e-10
    assert found["options"]["a"] == 0.5 and len(found["lengths"]) == 7


def test_what_overflows_does_not_pass_the_check(tinyres_command):
    line = "analyze paths --model residual_mlp --model-option depth=3 --model-option a=1e200 --batch 4 --check"
    with np.errstate(all="ignore"):
        status, out, _ = tinyres_command(f"{line} --json")
        found = last_json(out)
        assert status == 1 and found["passed"] is False and found["check"] is None and found["error"] is None
        status, out, _ = tinyres_command(line)
    assert status == 1 and "against backward(): -\n" in out and "one by one: -" in out


def test_weights_of_a_run_bring_their_network_and_their_data(tinyres_command):
    assert tinyres_command("train --model resnet8 --epochs 1 --out run --quiet --model-option zero_init_residual=true"
                           )[0] == 0
    status, out, _ = tinyres_command("analyze forks --weights run --json")
    found = last_json(out)
    assert status == 0 and found["model"] == "resnet8" and found["options"]["zero_init_residual"] is True
    fresh = last_json(tinyres_command("analyze forks --model resnet8 --model-option zero_init_residual=true --json")[1])
    assert found["loss"] < fresh["loss"]  # it has learned something


def test_weights_that_do_not_tell_their_network_need_its_name(tinyres_command, tmp_path):
    tr.manual_seed(5)
    model = models.residual_mlp(depth=3, width=12)
    weights.save(model, tmp_path / "w.safetensors")
    status, _, err = tinyres_command("analyze growth --weights w.safetensors")
    assert status == 2 and "--model" in err and "say which network it is for" in err
    status, out, _ = tinyres_command("analyze growth --weights w.safetensors --model residual-mlp "
                                     "--model-option depth=3 --model-option width=12 --batch 8 --json")
    x, _ = tr.data.digits("train").batch(8, 0)
    found = last_json(out)
    assert status == 0 and found["outputs"][-1]["rms"] == pytest.approx(growth_of(model, x).outputs[-1].rms)
    assert found["model"] == "residual_mlp"


def test_random_images_need_no_data(tinyres_command):
    status, out, _ = tinyres_command("analyze growth --model resnet8 --data random --batch 4 --json")
    found = last_json(out)
    assert status == 0 and found["data"] == "random" and found["outputs"][0]["shape"] == [4, 16, 32, 32]


@pytest.mark.parametrize("line, words", [
    ("analyze paths --model resnet56 --check", ("--check", "27 blocks")),
    ("analyze paths --to block1", ("--to", "block or images")),
    ("analyze forks --model resnet7", ("--model", "resnet7")),
    ("analyze forks --model plain8 --out f.png", ("--out", "no residual blocks")),
    ("analyze growth --out f.pdf", ("--out", "not a .png file")),
    ("analyze growth --batch 5000", ("--batch", "1437")),
    ("analyze growth --data random --data-dir .", ("--data-dir", "random images")),
    ("analyze --json growth", ("--json", "after growth")),
    ("analyze groth", ("groth", "growth")),
])
def test_a_wrong_option_is_named(tinyres_command, line, words):
    status, out, err = tinyres_command(line)
    assert status == 2 and all(word in err for word in words), err
    assert "Traceback" not in err
