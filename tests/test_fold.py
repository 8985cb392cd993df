"""Batch norm folded into the convolution in front of it: the folded copy is the same function, is made only where that
is so, and leaves the model as it was."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from differences import Tape, norm_distance
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import DTYPES, machine, quick, values

import tinyres as tr
from tinyres import kernels, models, nn, ops, weights
from tinyres.kernels import layout, reference, use_kernels
from tinyres.nn import FoldedConv2d, fold_batch_norm
from tinyres.ops.conv_bias import ConvBias, conv_bias
from tinyres.state import setting
from tinyres.tensor import Tensor


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def unusual(model, seed=1):
    """The model with batch norms as nobody trains them: scales of both signs, one 0, and any statistics."""
    rng = np.random.default_rng(seed)
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d)):
            if m.affine:
                m.weight.data[...] = rng.uniform(0.5, 1.5, m.num_features) * rng.choice([-1, 1], m.num_features)
                m.weight.data[0] = 0
                m.bias.data[...] = 0.3 * rng.standard_normal(m.num_features)
            m.running_mean.data[...] = 0.3 * rng.standard_normal(m.num_features)
            m.running_var.data[...] = rng.uniform(0.5, 2, m.num_features)
    return model


def outputs(model, x):
    with tr.no_grad():
        return model(Tensor(x)).numpy()


def kinds(model):
    """{name: type} of the layers that take part."""
    parts = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
    return {name: type(m).__name__ for name, m in model.named_modules() if isinstance(m, parts)}


def count(model, kind):
    return sum(type(m) is kind for m in model.modules())


# --- every network ----------------------------------------------------------------------------------------------------

DEEP = ("resnet110", "resnet1202", "plain110", "preact_resnet110", "preact_resnet164", "resnet101", "resnet152",
        "resnet50", "preact_resnet50")  # too slow for each run; their blocks are in the others and below
FIRST = [network.__name__ for family in (models.resnet, models.preact) for network in family.NETWORKS]
OTHERS = [name for name in models.names() if name not in FIRST]
NETWORKS = [(name, {"num_classes": 5} | ({"cifar_stem": True} if "18" in name else {}))
            for name in FIRST if name not in DEEP]
NETWORKS += [("resnet8", {"option": option}) for option in "BC"] + [("preact_resnet20", {"option": o}) for o in "BC"]


def small(name, options, dtype="float64"):
    tr.manual_seed(0)
    return unusual(models.build(name, **options)).astype(dtype).eval()


@pytest.mark.parametrize("name, options", NETWORKS)
def test_networks_in_float64(name, options):
    model, x = small(name, options), normal(2, 3, 16, 16)
    before = model.state_dict()
    twin = fold_batch_norm(model, x[:1])
    expected, got = outputs(model, x), outputs(twin, x)
    assert np.abs(expected).max() > 1e-3
    assert norm_distance(got, expected) < 1e-10
    for key, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[key])
    left = 0
    if name.startswith("preact"):  # each block's first batch norm, and the one after the last addition
        left = sum(len(getattr(model, stage)) for stage in model.stages) + 1
        left -= isinstance(model.maxpool, nn.Identity)  # the first block's is behind the stem's convolution
    assert count(twin, nn.BatchNorm2d) == left
    assert count(twin, FoldedConv2d) == count(model, nn.BatchNorm2d) - left


NOTHING_TO_FOLD = {"skipinit_resnet", "fixup_resnet", "fixup_resnet20", "article_prose", "article_prose_parallel",
                   "article_prose_series", "article_prose_four_step", *(name for name in OTHERS if "mlp" in name[-3:])}


@pytest.mark.parametrize("name", [name for name in OTHERS if not name.endswith(("34", "50", "56", "100", "110"))])
def test_other_networks_keep_their_outputs_or_have_nothing_to_fold(name):
    """It is not said how many can be folded: a batch norm behind an addition cannot, nor one that is shared."""
    model = small(name, {"num_classes": 5})
    x = normal(2, 64) if name.endswith("mlp") else normal(2, 3, 16, 16)
    if name in NOTHING_TO_FOLD:
        with pytest.raises(ValueError, match="there is nothing to fold in this"):
            fold_batch_norm(model, x[:1])
        return
    twin, expected = fold_batch_norm(model, x[:1]), outputs(model, x)
    assert np.abs(expected).max() > 1e-3
    assert norm_distance(outputs(twin, x), expected) < 1e-10
    assert 0 < count(twin, FoldedConv2d) == count(model, nn.BatchNorm2d) - count(twin, nn.BatchNorm2d)


@pytest.mark.parametrize("block", [models.blocks.Bottleneck, models.blocks.PreActBottleneck,
                                   models.blocks.SharedPreActBottleneck])
@pytest.mark.parametrize("stride", [1, 2])
def test_bottlenecks(block, stride):
    tr.manual_seed(0)
    model, x = unusual(nn.Sequential(nn.Conv2d(3, 8, 1), block(8, 16, stride))).double().eval(), normal(2, 3, 6, 6)
    twin = fold_batch_norm(model)
    assert norm_distance(outputs(twin, x), outputs(model, x)) < 1e-10
    assert count(twin, nn.BatchNorm2d) == (block is models.blocks.PreActBottleneck)  # its shortcut takes x, too


@pytest.mark.parametrize("name", ["resnet20", "plain20", "preact_resnet20"])
def test_networks_in_float32(name):
    model, x = small(name, {}, "float32"), normal(4, 3, 32, 32, dtype="float32")
    twin = fold_batch_norm(model)
    assert all(p.dtype == np.float32 for p in twin.parameters())
    got = outputs(twin, x)
    assert got.dtype == np.float32
    assert norm_distance(got, outputs(model, x)) < 1e-5  # 1e-6 was seen


def test_the_copy_is_in_eval_mode_and_shares_nothing():
    model = models.resnet8(in_channels=1)
    model.requires_grad_(False)
    model.layer1.requires_grad_(True)
    states = [m.training for m in model.modules()]
    arrays = {name: (t.data, t.data.copy(), t.version.count) for name, t, _ in nn.state_dict.entries(model)}
    drawn = tr.random.get_state()
    twin = fold_batch_norm(model)
    assert tr.random.get_state() == drawn
    assert [m.training for m in model.modules()] == states and all(states)
    assert not any(m.training for m in twin.modules())
    assert [(m._pre_hooks, m._forward_hooks) for m in twin.modules() if m._pre_hooks or m._forward_hooks] == []
    for name, t, _ in nn.state_dict.entries(model):
        array, values_before, version = arrays[name]
        assert t.data is array and t.version.count == version and t.grad is None
        np.testing.assert_array_equal(array, values_before)
    ours = [t.data for t in (*model.parameters(), *model.buffers())]
    assert not any(np.shares_memory(t.data, array) for t in twin.parameters() for array in ours)
    wants = {name: p.requires_grad for name, p in twin.named_parameters()}
    assert wants["layer1.0.bn1.weight"] and not wants["bn1.weight"] and not wants["fc.weight"]
    assert layout.is_channels_last(twin.layer1[0].bn1.weight.data)
    assert isinstance(twin.conv1, nn.Identity) and "bn1): FoldedConv2d(1, 16, kernel_size=(3, 3)" in repr(twin)


def test_the_formula_to_the_last_bit():
    """Computed in float64 and rounded once."""
    conv, norm = nn.Conv2d(4, 6, 3, groups=2), unusual(nn.BatchNorm2d(6, eps=0.5))
    twin = fold_batch_norm(nn.Sequential(conv, norm))[1]
    w, b, gamma, beta, mean, var = (t.data.astype(np.float64) for t in (
        conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var))
    scale = gamma / np.sqrt(var + 0.5)
    for k in range(6):
        np.testing.assert_array_equal(twin.weight.data[k], (w[k] * scale[k]).astype(np.float32))
    np.testing.assert_array_equal(twin.bias.data, (beta + (b - mean) * scale).astype(np.float32))
    assert not twin.weight.data[0].any() and twin.bias.data[0] == beta[0].astype(np.float32)


GEOMETRY = [{}, {"stride": 2}, {"padding": "same"}, {"padding": (2, 0), "dilation": (1, 2)}, {"groups": 2},
            {"bias": True}, {"bias": True, "groups": 4, "stride": (2, 1)}]


@pytest.mark.parametrize("options", GEOMETRY)
@pytest.mark.parametrize("affine", [True, False])
def test_convolutions_of_users(options, affine):
    conv = nn.Conv2d(4, 8, 3, **{"bias": False, **options})
    model = unusual(nn.Sequential(conv, nn.BatchNorm2d(8, affine=affine), nn.ReLU(inplace=True))).double().eval()
    twin, x = fold_batch_norm(model), normal(2, 4, 9, 8)
    assert kinds(twin) == {"1": "FoldedConv2d"}
    assert norm_distance(outputs(twin, x), outputs(model, x)) < 1e-12
    assert type(fold_batch_norm(nn.Sequential(twin[1], nn.Conv2d(8, 3, 1), nn.BatchNorm2d(3)).double())[0]) \
        is FoldedConv2d


def test_linear_with_batch_norm():
    model = unusual(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3, bias=False),
                                  nn.BatchNorm1d(3))).double().eval()
    twin, x = fold_batch_norm(model), normal(4, 5)
    assert kinds(twin) == {"1": "FoldedLinear", "4": "FoldedLinear"}
    assert norm_distance(outputs(twin, x), outputs(model, x)) < 1e-12
    h = twin[1](Tensor(x), add=Tensor(normal(4, 7)), relu=True).numpy()
    np.testing.assert_allclose(h, np.maximum(outputs(model[:2], x) + normal(4, 7), 0), atol=1e-12)


# --- what must not be folded ------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two convolutions of four channels with batch norms, called as `run` says."""

    def __init__(self, run):
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.bn, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.run = run
        unusual(self)

    def forward(self, x):
        return self.run(self, x)


def used_twice(net, x):
    h = net.conv(x)
    return net.bn2(net.other(net.bn(h))) + h


def convolution_shared(net, x):
    return net.bn2(net.other(net.bn(net.conv(net.conv(x)))))


def batch_norm_shared(net, x):
    return net.bn2(net.other(net.bn(net.bn(net.conv(x)))))


def something_between(net, x):
    return net.bn2(net.other(net.bn(ops.relu(net.conv(x)))))


def in_place_between(net, x):
    h = net.conv(x)
    h += 1.0
    return net.bn2(net.other(net.bn(h)))


def input_changed_between(net, x):
    x = x * 1.0
    h = net.conv(x)
    x *= 2.0
    return net.bn2(net.other(net.bn(h) + x))


def returned_too(net, x):
    h = net.conv(x)
    return {"first": h, "all": [net.bn2(net.other(net.bn(h)))]}


def other_way_round(net, x):
    return net.bn2(net.other(net.conv(net.bn(x))))


@pytest.mark.parametrize("run", [used_twice, convolution_shared, batch_norm_shared, something_between, in_place_between,
                                 input_changed_between, returned_too, other_way_round])
def test_what_else_is_seen_of_a_convolution_keeps_its_batch_norm(run):
    model, x = Net(run).double().eval(), normal(2, 4, 5, 5)
    twin = fold_batch_norm(model, x)
    assert kinds(twin) == {"conv": "Conv2d", "bn": "BatchNorm2d", "bn2": "FoldedConv2d"}
    flat = [t for model in (twin, model) for t in nn.fold._tensors(model(x))]
    for got, expected in zip(flat[: len(flat) // 2], flat[len(flat) // 2:], strict=True):
        assert norm_distance(got.numpy(), expected.numpy()) < 1e-12


@pytest.mark.parametrize("part", ["conv", "bn"])
def test_hooks_keep_their_layers(part):
    model, seen = Net(lambda net, x: net.bn2(net.other(net.bn(net.conv(x))))).eval(), []
    getattr(model, part).register_forward_hook(lambda m, args, out: seen.append(m))
    twin = fold_batch_norm(model)
    assert kinds(twin) == {"conv": "Conv2d", "bn": "BatchNorm2d", "bn2": "FoldedConv2d"}
    seen.clear()
    twin(normal(1, 4, 5, 5, dtype="float32"))
    assert seen == [getattr(twin, part)]


def test_subclasses_keep_their_layers():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2.0

    class Shifted(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1.0

    model = nn.Sequential(Scaled(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2),
                          nn.Conv2d(2, 3, 1), Shifted(3))
    assert kinds(fold_batch_norm(model)) == {"0": "Scaled", "1": "BatchNorm2d", "3": "FoldedConv2d", "4": "Conv2d",
                                             "5": "Shifted"}


def test_a_layer_under_two_names_and_weights_that_two_layers_share():
    model = Net(lambda net, x: net.again(net.other(net.conv(x))))
    model.again, model.other.weight = model.bn, nn.Parameter(model.other.weight.data)
    model.bn2.weight = model.bn.weight
    twin, x = fold_batch_norm(model), normal(1, 4, 5, 5, dtype="float32")
    assert twin.again is twin.bn and type(twin.bn) is FoldedConv2d
    assert norm_distance(outputs(twin, x), outputs(model.eval(), x)) < 1e-6
    tied = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    tied[2].weight = tied[0].weight
    twin = fold_batch_norm(unusual(tied).eval())
    assert norm_distance(outputs(twin, x), outputs(tied, x)) < 1e-6


def test_linear_on_sequences_is_not_folded_into_a_batch_norm_over_the_sequence():
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6))  # (N, 6, 5) -> (N, 6, 6): channels are the middle axis
    with pytest.raises(ValueError, match="1: its input is not the output of a Linear"):
        fold_batch_norm(model, normal(2, 6, 5, dtype="float32"))


@pytest.mark.parametrize("model, example, message", [
    (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), None, "nothing to fold in this Sequential: it has no batch norm"),
    (nn.Sequential(nn.ReLU()), None, "has no Conv2d and no Linear"),
    (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), None,
     r"1: it has no running statistics \(track_running_stats=False\)"),
    (Net(lambda net, x: net.bn(net.conv(x)) + net.bn(net.conv(x))), None, "bn: it ran 2 times in a forward pass"),
    (Net(lambda net, x: net.bn(net.conv(net.conv(x)))), None, "the Conv2d in front of it ran 2 times"),
    (Net(lambda net, x: (h := net.conv(x)) * net.bn(h)), None, "the output of the Conv2d in front of it is used 2"),
    (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)), None,
     r"tried with a random input of shape \(1, 3, 32, 32\): linear.* give an example"),
])
def test_refusals(model, example, message):
    before = model.state_dict()
    with pytest.raises(ValueError, match=f"(?s)^fold_batch_norm: .*{message}"):
        fold_batch_norm(model, example)
    assert all((a == before[name]).all() for name, a in model.state_dict().items()) and model.training


@pytest.mark.parametrize("run, message", [
    (lambda net, x: net.bn(h := net.conv(x)) + h.detach(), "gives outputs that differ by up to"),
    (lambda net, x: net.bn(net.conv(x)) * net.conv.weight.data.mean(), "does not run: .*'weight'"),
])
def test_a_model_that_looks_past_the_graph_is_refused(run, message):
    with pytest.raises(RuntimeError, match=f"^fold_batch_norm: .*{message}"):
        fold_batch_norm(Net(run))


def test_an_example_that_does_not_fit_says_so_in_the_op_s_words():
    with pytest.raises(ValueError, match="^conv2d: .*has 2 channels"):
        fold_batch_norm(models.resnet8(), normal(1, 2, 8, 8, dtype="float32"))


# --- the op and its kernel --------------------------------------------------------------------------------------------


@quick(60)
@given(st.tuples(st.integers(1, 3), st.integers(1, 67), st.integers(1, 13), st.integers(1, 13)),
       st.sampled_from(DTYPES), st.integers(0, 9999), st.integers(1, 3))
def test_add_bias_is_within_rounding_of_the_reference(shape, dtype, seed, thread_count):
    rng = np.random.default_rng(seed)
    y, residual = values(rng, shape, dtype), values(rng, shape, dtype)
    bias = rng.standard_normal(shape[1]).astype(dtype)
    with machine(thread_count, poison=True):
        for other, relu in itertools.product((None, residual), (False, True)):
            wide = [None if v is None else v.astype(np.float64) for v in (y, bias, other)]
            expected = reference.add_bias(*wide, relu)
            got = kernels.cpu.add_bias(y.copy(order="K"), bias, other, relu)
            assert got.dtype == dtype and layout.is_channels_last(got)
            np.testing.assert_allclose(got, expected, rtol=0, atol={np.float32: 1e-6, np.float64: 1e-14}[dtype])


def test_add_bias_keeps_nan_and_works_in_place():
    y = layout.channels_last(np.array([np.nan, -1.0, 2.0], np.float32).reshape(1, 3, 1, 1))
    with use_kernels("fast"):
        found = kernels.add_bias(y, np.zeros(3, np.float32), None, True)
    np.testing.assert_array_equal(found.ravel(), [np.nan, 0, 2])
    assert np.shares_memory(found, y)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_add", [False, True])
@pytest.mark.parametrize("kernel_set", ["fast", "reference"])
def test_gradients_are_those_of_the_parts(relu, with_add, kernel_set):
    """With an upstream gradient that is not uniform; and the gradient of a gradient."""
    inputs = [normal(2, 4, 5, 6), normal(6, 2, 3, 3), normal(6), normal(2, 6, 3, 3, seed=9)][: 3 + with_add]
    geometry = {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "groups": 2}

    def run(op):
        leaves = [tr.tensor(a, requires_grad=True) for a in inputs]
        y = op(*leaves)
        grads = tr.grad(y, leaves, [normal(*y.shape, seed=5)], create_graph=True)
        second = tr.grad(sum(((g * g).sum() for g in grads), start=tr.tensor(0.0, dtype="float64")), leaves,
                         allow_unused=True)
        return [t.numpy() for t in (y, *grads, *second) if t is not None]

    def whole(x, w, b, add=None):
        return conv_bias(x, w, b, geometry["stride"], geometry["padding"], geometry["dilation"], 2, add, relu)

    def parts(x, w, b, add=None):
        y = ops.conv2d(x, w, b, **geometry)
        y = y if add is None else y + add
        return ops.relu(y) if relu else y

    with use_kernels(kernel_set):
        for got, expected in zip(run(whole), run(parts), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)
        leaves = [tr.tensor(a, requires_grad=True) for a in inputs]
        whole(*leaves).backward(normal(2, 6, 3, 3, seed=5))  # not recorded: the fused rule
        twins = [tr.tensor(a, requires_grad=True) for a in inputs]
        parts(*twins).backward(normal(2, 6, 3, 3, seed=5))
        for got, expected in zip(leaves, twins, strict=True):
            np.testing.assert_allclose(got.grad.numpy(), expected.grad.numpy(), rtol=1e-10, atol=1e-10)
    assert whole(*leaves).node.name == ConvBias.name == "conv_bias"


def test_a_folded_network_passes_gradcheck():
    model = fold_batch_norm(unusual(models.resnet8(in_channels=2, num_classes=3)).double())
    assert tr.gradcheck(model, tr.tensor(normal(1, 2, 8, 8), requires_grad=True))


def test_a_frozen_relu_keeps_its_choices():
    """As gradient checks need it: the side of 0 on which a value lay when it was recorded."""
    layer = fold_batch_norm(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).double())[1]
    x, tape = Tensor(normal(2, 2, 3, 3)), Tape()
    with setting(choices=tape):
        recorded = layer(x, relu=True).numpy() > 0
    with setting(choices=tape.rewound()):
        found = layer(x * -1.0, relu=True).numpy()
    np.testing.assert_array_equal(found, np.where(recorded, layer(x * -1.0).numpy(), 0))


@pytest.mark.parametrize("x, add, message", [
    (normal(2, 3, 5, 5), None, r"^conv2d: .* has 3 channels, but weight .* takes 4"),
    (normal(4, 5, 5), None, r"^conv2d: expected input \(N, C, H, W\)"),
    (normal(2, 4, 2, 5), None, r"^conv2d: the kernel's height 3"),
    (normal(0, 4, 5, 5), None, r"^conv2d: empty input"),
    (normal(2, 4, 5, 5), normal(2, 6, 5, 3), r"^conv_bias: cannot add \(2, 6, 5, 3\) to \(2, 6, 3, 3\)"),
])
def test_wrong_shapes(x, add, message):
    layer = fold_batch_norm(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).double())[1]
    with pytest.raises(ValueError, match=message):
        layer(Tensor(x), add=None if add is None else Tensor(add))
    with pytest.raises(TypeError, match="float32 and float64 meet"):
        layer(Tensor(normal(2, 4, 5, 5, dtype="float32")))


# --- tinyres eval --fold ----------------------------------------------------------------------------------------------


def test_eval_fold(tinyres_command):
    model = unusual(models.resnet8(in_channels=1))
    weights.save(model, "w.safetensors")
    found, logits = [], []
    for fold in ("", "--fold"):
        status, out, err = tinyres_command(
            f"eval --weights w.safetensors --data digits --normalize train --json --logits logits.npy {fold}")
        assert status == 0 and ("7 batch norms folded" in err) == bool(fold)
        found.append(json.loads(out.splitlines()[-1]))
        logits.append(np.load(Path("logits.npy")))
    assert [one["folded"] for one in found] == [0, 7]
    assert abs(found[0]["correct"] - found[1]["correct"]) <= 2
    assert norm_distance(logits[1], logits[0]) < 1e-4 and (logits[0] != logits[1]).any()
