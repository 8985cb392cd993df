"""Networks: exact parameter counts, names, shapes, what shortcuts and blocks compute, and errors of build()."""

import numpy as np
import pytest

import tinyres as tr
from tinyres import models, nn
from tinyres.models import blocks
from tinyres.models.resnet import cifar_plain, cifar_resnet


@pytest.fixture(autouse=True)
def seed():
    tr.manual_seed(0)


def images(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def count(model):
    return sum(p.numel() for p in model.parameters())


# --- parameter counts -------------------------------------------------------------------------------------------------

CIFAR = {"resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018, "resnet110": 1_727_962,
         "resnet1202": 19_421_274}
IMAGENET = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160,
            "resnet152": 60_192_808}
SMALL_STEM = {"resnet18": 11_173_962, "resnet34": 21_282_122, "resnet50": 23_520_842}


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_counts_with_options_a_and_b_and_of_the_plain_twins(name):
    assert count(models.build(name)) == CIFAR[name]
    if name != "resnet1202":
        assert count(models.build(name, option="B")) == CIFAR[name] + 2_752
        assert count(models.build(name.replace("resnet", "plain"))) == CIFAR[name]
        assert count(models.build(f"preact_{name}")) == CIFAR[name], "the norms move, their sizes add up to the same"


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_counts(name):
    assert count(models.build(name)) == IMAGENET[name]


@pytest.mark.parametrize("name", SMALL_STEM)
def test_cifar_stem_counts(name):
    assert count(models.build(name, num_classes=10, cifar_stem=True)) == SMALL_STEM[name]


def test_counts_from_the_formula():
    """Option C and pre-activation, counted by hand: conv = R*S*C*K, batch norm = 2*C, linear = C*K + K."""
    conv, norm, n = lambda size, C, K: size * size * C * K, lambda C: 2 * C, 3
    stages = ((16, 16), (16, 32), (32, 64))
    total = conv(3, 3, 16) + norm(16) + 64 * 10 + 10
    for C, K in stages:
        total += conv(3, C, K) + (2 * n - 1) * conv(3, K, K) + 2 * n * norm(K)
        total += conv(1, C, K) + (n - 1) * conv(1, K, K) + n * norm(K)
    assert count(models.resnet20(option="C")) == total
    n, C = 18, 16
    total = conv(3, 3, 16) + norm(256) + 256 * 10 + 10
    for width in (16, 32, 64):
        K = 4 * width
        total += conv(1, C, K)
        for i in range(n):
            total += norm(K if i else C) + conv(1, K if i else C, width)
            total += norm(width) + conv(3, width, width) + norm(width) + conv(1, width, K)
        C = K
    assert count(models.preact_resnet164()) == total == 1_703_258


def test_other_inputs_and_outputs():
    assert count(models.resnet8()) == 75_290
    small = models.resnet8(num_classes=4, in_channels=1)
    assert count(small) == 75_290 - 2 * 16 * 9 - 6 * 65
    assert small(images(2, 1, 8, 8)).shape == (2, 4)


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_are_torchvisions():
    names = list(models.resnet18().state_dict())
    assert names[:8] == ["conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var",
                         "bn1.num_batches_tracked", "layer1.0.conv1.weight", "layer1.0.bn1.weight"]
    assert names[-2:] == ["fc.weight", "fc.bias"]
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.running_var", "layer4.1.bn2.bias"} <= set(names)
    assert not any("shortcut" in name or "downsample" in name for name in models.resnet20().state_dict())
    bottleneck = models.resnet50().state_dict()
    assert {f"layer1.0.{part}.weight" for part in ("conv1", "conv3", "bn3", "downsample.0")} <= set(bottleneck)
    assert bottleneck["layer2.0.conv2.weight"].shape == (128, 128, 3, 3)


def test_the_bottlenecks_stride_is_on_the_3x3():
    block = models.resnet50().layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.downsample[0].stride) == ((1, 1), (2, 2), (2, 2))
    assert blocks.BasicBlock(16, 32, 2).conv1.stride == (2, 2)


# --- forward ----------------------------------------------------------------------------------------------------------

SHAPES = [("resnet20", {}, 32), ("resnet20", {"option": "C"}, 30), ("plain20", {}, 32), ("preact_resnet20", {}, 32),
          ("preact_resnet20", {"option": "B"}, 32), ("preact_resnet20", {"option": "C"}, 32), ("resnet18", {}, 64),
          ("resnet18", {"cifar_stem": True, "option": "A"}, 16), ("resnet50", {}, 64), ("preact_resnet18", {}, 64),
          ("preact_resnet50", {"cifar_stem": True}, 16), ("preact_resnet164", {}, 8)]


@pytest.mark.parametrize("name, options, size", SHAPES)
def test_every_parameter_gets_a_gradient(name, options, size):
    model = models.build(name, num_classes=7, **options)
    x = tr.tensor(images(2, 3, size, size), requires_grad=True)
    logits = model(x)
    assert logits.shape == (2, 7) and logits.dtype == np.float32 and np.isfinite(logits.numpy()).all()
    tr.cross_entropy(logits, np.array([0, 6])).backward()
    assert x.grad.shape == x.shape
    lacking = [n for n, p in model.named_parameters() if p.grad is None or not np.isfinite(p.grad.numpy()).all()]
    assert not lacking
    dead = [n for n, p in model.named_parameters() if not p.grad.numpy().any()]
    assert not dead


def test_stem_sizes():
    seen = {}
    for cifar_stem in (False, True):
        model = models.resnet18(cifar_stem=cifar_stem).eval()
        model.layer1.register_forward_hook(lambda m, args, out, c=cifar_stem: seen.update({c: out.shape}))
        model.layer4.register_forward_hook(lambda m, args, out, c=cifar_stem: seen.update({(c, 4): out.shape}))
        model(images(1, 3, 64, 64))
    assert seen[False] == (1, 64, 16, 16) and seen[False, 4] == (1, 512, 2, 2)
    assert seen[True] == (1, 64, 64, 64) and seen[True, 4] == (1, 512, 8, 8)


def test_resnet_forward_written_in_pytorch(torch):
    """Option B and A against a ResNet of two stages written with torch.nn.functional, forward and all gradients."""
    import torch.nn.functional as F

    for option in "AB":
        ours = cifar_resnet(14, option=option, widths=(4, 8, 8)).double()
        state = {k: torch.tensor(v, requires_grad=v.dtype.kind == "f") for k, v in ours.state_dict().items()}

        def conv(h, name, stride=1, padding=1, state=state):
            return F.conv2d(h, state[f"{name}.weight"], None, stride, padding)

        def norm(h, name, state=state):
            return F.batch_norm(h, None, None, state[f"{name}.weight"], state[f"{name}.bias"], True)

        x = images(4, 3, 8, 8, dtype="float64")
        h = F.relu(norm(conv(torch.tensor(x), "conv1"), "bn1"))
        for stage, width in ((1, 4), (2, 8), (3, 8)):
            for i in range(2):
                name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
                branch = F.relu(norm(conv(h, f"{name}.conv1", stride), f"{name}.bn1"))
                branch = norm(conv(branch, f"{name}.conv2"), f"{name}.bn2")
                shortcut = h
                if stride == 2 and option == "A":
                    extra = (width - h.shape[1]) // 2
                    shortcut = F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, extra, extra))
                elif stride == 2:
                    shortcut = norm(conv(h, f"{name}.downsample.0", 2, 0), f"{name}.downsample.1")
                h = F.relu(branch + shortcut)
        z = F.linear(h.mean((2, 3)), state["fc.weight"], state["fc.bias"])
        labels = np.array([0, 1, 2, 3])
        y = ours(x)
        tr.cross_entropy(y, labels).backward()
        F.cross_entropy(z, torch.tensor(labels)).backward()
        np.testing.assert_allclose(y.numpy(), z.detach().numpy(), atol=1e-10)
        for n, p in ours.named_parameters():
            np.testing.assert_allclose(p.grad.numpy(), state[n].grad.numpy(), rtol=1e-7, atol=1e-10, err_msg=n)


def test_preact_forward_written_in_pytorch(torch):
    """First activation shared in each stage's first block, x itself elsewhere, BN-ReLU before the pool."""
    import torch.nn.functional as F

    ours = models.build("preact_resnet20", option="B").double()
    state = {k: torch.tensor(v, requires_grad=v.dtype.kind == "f") for k, v in ours.state_dict().items()}

    def conv(h, name, stride=1, padding=1):
        return F.conv2d(h, state[f"{name}.weight"], None, stride, padding)

    def activate(h, name):
        return F.relu(F.batch_norm(h, None, None, state[f"{name}.weight"], state[f"{name}.bias"], True))

    x, labels = images(4, 3, 8, 8, dtype="float64"), np.array([0, 1, 2, 3])
    h = conv(torch.tensor(x), "conv1")
    for stage in (1, 2, 3):
        for i in range(3):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            first = activate(h, f"{name}.bn1")
            shortcut = first if i == 0 else h
            if stride == 2:
                shortcut = conv(first, f"{name}.downsample.0", 2, 0)
            h = conv(activate(conv(first, f"{name}.conv1", stride), f"{name}.bn2"), f"{name}.conv2") + shortcut
    z = F.linear(activate(h, "bn").mean((2, 3)), state["fc.weight"], state["fc.bias"])
    y = ours(x)
    tr.cross_entropy(y, labels).backward()
    F.cross_entropy(z, torch.tensor(labels)).backward()
    np.testing.assert_allclose(y.numpy(), z.detach().numpy(), atol=1e-10)
    for n, p in ours.named_parameters():
        np.testing.assert_allclose(p.grad.numpy(), state[n].grad.numpy(), rtol=1e-7, atol=1e-9, err_msg=n)


# --- shortcuts and blocks ---------------------------------------------------------------------------------------------


def test_pad_shortcut_takes_every_second_pixel_and_adds_zero_channels():
    x = images(2, 4, 5, 6)
    y = blocks.PadShortcut(4, 8, 2)(x).numpy()
    assert y.shape == (2, 8, 3, 3)
    np.testing.assert_array_equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any() and not y[:, 6:].any()


def test_pad_shortcut_backward_puts_the_gradient_back():
    x = tr.tensor(images(1, 2, 4, 4), requires_grad=True)
    g = images(1, 4, 2, 2, seed=1)
    blocks.PadShortcut(2, 4, 2)(x).backward(tr.tensor(g))
    expected = np.zeros((1, 2, 4, 4), np.float32)
    expected[:, :, ::2, ::2] = g[:, 1:3]
    np.testing.assert_array_equal(x.grad.numpy(), expected)


@pytest.mark.parametrize("C, K", [(8, 4), (4, 7)])
def test_pad_shortcut_refuses(C, K):
    with pytest.raises(ValueError, match=f"{C} -> {K} channels do not allow: use a ProjectionShortcut"):
        blocks.PadShortcut(C, K, 2)


@pytest.mark.parametrize("make, same, other", [
    (blocks.shortcut_a, nn.Identity, blocks.PadShortcut),
    (blocks.shortcut_b, nn.Identity, blocks.ProjectionShortcut),
    (blocks.shortcut_c, blocks.ProjectionShortcut, blocks.ProjectionShortcut),
    (blocks.preact_shortcut_b, nn.Identity, blocks.ConvShortcut),
    (blocks.preact_shortcut_c, blocks.ConvShortcut, blocks.ConvShortcut),
])
def test_options(make, same, other):
    assert type(make(8, 8, 1)) is same
    assert type(make(8, 16, 1)) is type(make(8, 8, 2)) is type(make(8, 16, 2)) is other


def test_a_block_takes_any_shortcut_also_an_empty_one():
    block = blocks.BasicBlock(4, 4, shortcut=nn.Sequential())
    assert isinstance(block.shortcut, nn.Sequential) and block.shortcut is block.downsample
    block = blocks.BasicBlock(4, 8, 2, nn.Identity())
    with pytest.raises(ValueError, match="its shortcut must change it too"):
        block(images(2, 4, 4, 4))


def test_a_zero_branch_leaves_the_shortcut():
    """Jacobian I before activation, diag(x > 0) after it: a block with a zeroed branch passes x or relu(x) exactly."""
    x = images(2, 8, 4, 4)
    g = images(2, 8, 4, 4, seed=1)
    for make in (blocks.BasicBlock, blocks.Bottleneck, blocks.PreActBasicBlock, blocks.PreActBottleneck):
        block = make(8, 8)
        block.zero_branch_()
        a = tr.tensor(x, requires_grad=True)
        y = block(a)
        y.backward(tr.tensor(g))
        after = issubclass(make, (blocks.BasicBlock, blocks.Bottleneck))
        np.testing.assert_array_equal(y.numpy(), np.maximum(x, 0) if after else x)
        np.testing.assert_allclose(a.grad.numpy(), g * (x > 0) if after else g, atol=1e-6)
        assert any(p.grad.numpy().any() for p in block.parameters()), "the branch must be able to leave zero"


@pytest.mark.parametrize("name", ["resnet8", "preact_resnet20"])
def test_zero_init_residual_starts_every_block_as_its_shortcut(name):
    model = models.build(name, zero_init_residual=True)
    x = images(2, 16, 8, 8)
    for block in (model.layer1[0],) if name == "resnet8" else model.layer1[1:]:
        y = block(x).numpy()
        np.testing.assert_array_equal(y, np.maximum(x, 0) if name == "resnet8" else x)
    weights = [m.bn2.weight if name == "resnet8" else m.conv2.weight
               for m in model.modules() if isinstance(m, blocks.Block)]
    assert all(not w.data.any() for w in weights)
    assert models.build(name).layer1[0].bn2.weight.data.all()


def test_preactivation_route_is_an_identity_and_the_last_output_a_sum_of_branches():
    model = models.preact_resnet20().eval()
    outs, stage = [], model.layer1
    for block in stage[1:]:
        block.register_forward_hook(lambda m, args, out: outs.append((m, args[0], out)))
    stage(images(2, 16, 8, 8))
    x, y = outs[0][1], outs[-1][2]
    branches = sum(m.branch(m.bn1(a, relu=True)) for m, a, _ in outs)
    np.testing.assert_allclose(y.numpy(), (x + branches).numpy(), atol=1e-5)


def test_the_first_block_of_each_preact_stage_shares_its_activation():
    model = models.preact_resnet20()
    for stage in (model.layer1, model.layer2, model.layer3):
        assert [type(b) for b in stage] == [blocks.SharedPreActBasicBlock] + 2 * [blocks.PreActBasicBlock]
    block = model.layer1[0].eval()
    x = tr.tensor(images(2, 16, 4, 4))
    h = block.bn1(x, relu=True)
    np.testing.assert_allclose(block(x).numpy(), (h + block.branch(h)).numpy(), atol=1e-6)


def test_plain_block_is_the_basic_block_without_addition():
    plain, basic = blocks.PlainBlock(4, 4), blocks.BasicBlock(4, 4)
    basic.load_state_dict(plain.state_dict())
    x = tr.tensor(np.zeros((2, 4, 3, 3), np.float32))
    np.testing.assert_array_equal(plain(x).numpy(), basic(x).numpy())
    x = tr.tensor(images(2, 4, 3, 3))
    branch = plain.bn2(plain.conv2(plain.bn1(plain.conv1(x), relu=True)))
    np.testing.assert_allclose(plain(x).numpy(), tr.relu(branch).numpy(), atol=1e-6)
    np.testing.assert_allclose(basic(x).numpy(), tr.relu(branch + x).numpy(), atol=1e-6)


def test_he_initialisation():
    tr.manual_seed(0)
    model = models.resnet20()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            K, _, R, S = module.weight.shape
            assert module.weight.data.std() == pytest.approx((2 / (K * R * S)) ** 0.5, rel=0.04)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight.data == 1).all() and not module.bias.data.any()
    again = models.resnet20()
    assert not np.array_equal(again.conv1.weight.data, model.conv1.weight.data)
    tr.manual_seed(0)
    for a, b in zip(models.resnet20().parameters(), model.parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)


def test_state_goes_round():
    source, target = models.resnet8(option="B"), models.resnet8(option="B")
    source(images(4, 3, 8, 8))
    target.load_state_dict(source.state_dict())
    x = images(2, 3, 8, 8)
    np.testing.assert_array_equal(source.eval()(x).numpy(), target.eval()(x).numpy())
    with pytest.raises(ValueError, match="nothing was loaded"):
        models.resnet8(option="A").load_state_dict(source.state_dict())


# --- the registry -----------------------------------------------------------------------------------------------------


def test_names_build_and_are_exported():
    assert len(models.names()) == sum(len(family.NETWORKS) for family in models.FAMILIES) >= 27  # no name twice
    for name in models.names():
        assert getattr(models, name).__doc__ and name in models.__all__
    assert isinstance(models.build("resnet8", num_classes=3).fc, nn.Linear)


@pytest.mark.parametrize("name, options, message", [
    ("resnet21", {}, "no network is called 'resnet21'; did you mean .*resnet20"),
    ("vgg", {}, "choose from resnet8, resnet20"),
    ("resnet20", {"num_clases": 3}, "has no option 'num_clases'; did you mean 'num_classes'"),
    ("resnet20", {"cifar_stem": True}, "always has the 3x3 stem: leave the option out"),
    ("plain20", {"option": "B"}, "a plain network has no shortcuts: use resnet20"),
    ("resnet20", {"option": "D"}, "option must be one of A, B, C .*, got 'D'"),
    ("resnet20", {"num_classes": 0}, "num_classes must be a positive int, got 0"),
])
def test_build_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, **options)


@pytest.mark.parametrize("make, depth, near", [(cifar_resnet, 21, 20), (cifar_plain, 24, 26), (cifar_resnet, 2, 8)])
def test_wrong_depths_name_the_nearest(make, depth, near):
    with pytest.raises(ValueError, match=rf"depth must be 6n\+2, got {depth}: use {near}"):
        make(depth)
