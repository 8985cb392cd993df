"""Real networks, broken in many ways: the explanation names what met what and why, and each fix on offer mends it."""

import re

import numpy as np
import pytest

import tinyres as tr
from tinyres import models, nn, ops
from tinyres.models.blocks import BasicBlock, Bottleneck, PreActBasicBlock, ProjectionShortcut, conv3x3
from tinyres.models.densenet import DenseLayer
from tinyres.stepper.mismatch import Call, calls_of, suspicious
from tinyres.stepper.refusal import refused
from tinyres.stepper.routes import History, Window
from tinyres.stepper.trace import record

NAMES = {"models": models, "nn": nn, "tr": tr}


@pytest.fixture(autouse=True)
def small():
    tr.manual_seed(0)
    with tr.use_kernels("reference"):
        yield


def images(N=2, C=16, H=8, W=8):
    return np.random.default_rng(C).standard_normal((N, C, H, W)).astype("float32")


def stopped(model, x):
    stop = record(lambda: model(x).sum()).trace.stopped
    assert stop is not None
    return stop


def mended(stop, model, x, place="downsample"):
    """Every fix for the shortcut, tried: the module that it names takes the shortcut's place, and the block runs."""
    tried = 0
    for fix in stop.fixes:
        found = re.match(r"Option [AB]: ((?:models\.blocks|nn)\.\w+\([^)]*(?:\([^)]*\))?[^)]*\)) as the shortcut", fix)
        if found:
            setattr(model, place, eval(found.group(1), NAMES))
            model(x)
            tried += 1
    return tried


def kept(stop):
    """The changes under "Keep the shape", by layer."""
    (line,) = [fix for fix in stop.fixes if fix.startswith("Keep the shape")]
    return dict(part.split(": ") for part in line.split("): ", 1)[1].rstrip(".").split("; "))


def apply(model, changes):
    """Make each layer anew with the options that the fix names."""
    for name, options in changes.items():
        layer, new = model.get_submodule(name), eval(f"dict({options})")
        if isinstance(layer, nn.Conv2d):
            usual = {"in_channels": layer.in_channels, "out_channels": layer.out_channels, "bias": False,
                     "kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
            made = nn.Conv2d(**usual | new)
        else:
            made = type(layer)(**new)
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, made)


def said(stop, *words):
    text = "\n".join(stop.text)
    for word in words:
        assert word in text, (word, text)


IDENTITY = nn.Identity

BLOCKS = {
    "a stride on the branch": (lambda: BasicBlock(16, 16, 2, IDENTITY()), ["stride 2", "takes 8x8 to 4x4",
                               "floor((8 + 2·1 - 3) / 2) + 1 = 4", "The strides differ: 2 on the branch, 1 on the"], 2),
    "stride and channels": (lambda: BasicBlock(16, 32, 2, IDENTITY()), ["conv1 (3x3, stride 2, padding 1) makes 32 "
                            "channels of 16", "channels (32 on the branch, 16 on the shortcut)"], 2),
    "a projection without the stride": (lambda: BasicBlock(16, 32, 2, ProjectionShortcut(16, 32, 1)),
                                        ["The shortcut: downsample.0 -> downsample.1",
                                         "height and width (4 on the branch, 8 on the shortcut)"], 2),
    "a projection with a stride too many": (lambda: BasicBlock(16, 16, 1, ProjectionShortcut(16, 16, 2)),
                                            ["No step changes the shape", "1 on the branch, 2 on the shortcut"], 2),
    "an odd number of channels": (lambda: BasicBlock(16, 33, 1, IDENTITY()), ["makes 33 channels of 16"], 1),
    "fewer channels": (lambda: BasicBlock(16, 8, 2, IDENTITY()), ["makes 8 channels of 16"], 1),
    "a bottleneck": (lambda: Bottleneck(16, 64, 2, IDENTITY()), ["conv3 (1x1) makes 64 channels of 16",
                     "conv2 (3x3, stride 2, padding 1) takes 8x8 to 4x4"], 2),
    "pre-activation": (lambda: PreActBasicBlock(16, 32, 2, IDENTITY()), ["bn1 -> conv1 -> bn2 -> conv2"], 2),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_broken_block_is_explained_and_each_of_its_fixes_mends_it(name):
    make, words, options = BLOCKS[name]
    x, stop = images(), stopped(make(), images())
    assert stop.op == ("add" if name == "pre-activation" else "batch_norm")
    said(stop, *words, "Both come from (2, 16, 8, 8), the input.")
    assert [side.partition(":")[0] for side, _ in stop.sides] == ["branch", "shortcut"]
    assert stop.sides[0][1] != stop.sides[1][1]
    assert len(stop.fixes) == 3
    assert mended(stop, make(), x) == options
    model = make()
    apply(model, kept(stop))
    assert model(x).shape == x.shape


def test_option_a_says_why_it_is_not_possible():
    odd, fewer = (stopped(BLOCKS[name][0](), images()) for name in ("an odd number of channels", "fewer channels"))
    assert odd.fixes[0] == ("Option A is not possible here: it adds as many zero channels on each side, and 33 - 16 is "
                            "odd.")
    assert "it can only add channels, and the branch makes 8 of 16" in fewer.fixes[0]
    uneven = BasicBlock(16, 32, 1, nn.Identity())
    uneven.conv1 = nn.Conv2d(16, 32, 3, stride=(2, 1), padding=1)
    stop = stopped(uneven, images())
    assert "the branch has two" in stop.fixes[0]
    assert mended(stop, uneven, images()) == 1  # ProjectionShortcut(16, 32, (2, 1))


def test_rows_lost_to_missing_padding_are_no_matter_of_a_stride():
    block = BasicBlock(16, 16, 1, nn.Identity())
    block.conv2 = nn.Conv2d(16, 16, 3, bias=False)
    x, stop = images(H=9), stopped(block, images(H=9))
    said(stop, "conv2 (3x3) takes 9x8 to 7x6: floor((9 + 2·0 - 3) / 1) + 1 = 7 and floor((8 + 2·0 - 3) / 1) + 1 = 6",
         "The branch loses 2 rows and 2 columns")
    assert stop.fixes[0].startswith("Option A is not possible") and stop.fixes[1].startswith("Option B is not possible")
    crop = re.search(r"x(\[.*?\])", stop.fixes[0]).group()
    assert eval(crop, {"x": x}).shape == (2, 16, 7, 6)
    assert kept(stop) == {"conv2": "padding=1"}
    apply(block, kept(stop))
    assert block(x).shape == x.shape


def test_too_much_padding_gains_rows():
    block = BasicBlock(16, 16, 1, nn.Identity())
    block.conv1 = nn.Conv2d(16, 16, 1, padding=1, bias=False)
    stop = stopped(block, images())
    said(stop, "The branch gains 2 rows and 2 columns")
    assert kept(stop) == {"conv1": "padding=0"}


def test_a_block_deep_in_a_network_is_named():
    model = models.resnet8(in_channels=1)
    model.layer2[0].downsample = nn.Identity()
    x = images(2, 1)
    stop = stopped(model, x)
    said(stop, "layer2.0.bn2 (tinyres/models/blocks.py:", "the output of layer1.0.bn2", "The branch: conv1 -> bn1")
    assert mended(stop, model.layer2[0], images(2, 16)) == 2
    assert stop.message.startswith("batch_norm: cannot add (2, 16, 8, 8) to (2, 32, 4, 4)")


def test_the_trace_keeps_what_ran_before_and_has_no_backward_pass():
    trace = record(lambda: BasicBlock(16, 32, 2, nn.Identity())(images()).sum()).trace
    assert "conv2d" in [node.op for node in trace.nodes]
    assert trace.backward == [] and trace.loss is None


def test_a_pool_whose_window_is_not_known():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.short = conv3x3(16, 16), nn.MaxPool2d(2), nn.Identity()

        def forward(self, x):
            return self.short(x) + self.pool(ops.relu(self.conv(x)))

    stop = stopped(Net(), images())
    said(stop, "conv -> relu -> pool. pool takes 8x8 to 4x4.")
    assert mended(stop, Net(), images(), "short") == 2
    assert kept(stop) == {"pool": "leave it out"}


def test_a_block_of_features():
    stop = stopped(models.mlp.MLPBlock(nn.Linear(16, 20)), images()[:, :, 0, 0])
    said(stop, "features (16 on the shortcut, 20 on the branch)")
    x = tr.tensor(images()[:, :, 0, 0])
    pad, linear = (re.search(pattern, fix).group() for pattern, fix in
                   zip((r"tr\.pad\(x, \(0, 4\)\)", r"nn\.Linear\(.*?\)"), stop.fixes, strict=False))
    assert eval(pad, NAMES | {"x": x}).shape == eval(linear, NAMES)(x).shape == (2, 20)
    assert kept(stop) == {"linear": "out_features=16"}


def test_images_that_are_missing_cannot_be_made_by_a_shortcut():
    class Half(nn.Module):
        def forward(self, x):
            return x[:1]

    stop = stopped(BasicBlock(16, 16, 1, Half()), images())
    said(stop, "downsample makes 1 image of 2")
    assert stop.fixes == ["Both sides must hold the same images: no shortcut can make more of them, or fewer."]


def test_a_concatenation_of_two_sizes():
    layer = DenseLayer(16, 12)
    layer.conv2 = conv3x3(48, 12, 2)
    x, stop = images(), stopped(layer, images())
    assert stop.op == "concat"
    said(stop, "All lengths but that of dim 1 must be equal", "They differ in height and width (8 on the shortcut, 4")
    assert "channels (" not in "\n".join(stop.text)
    modules = [eval(re.search(r"nn\.\w+\(.*?\)", fix).group(), NAMES) for fix in stop.fixes[:2]]
    assert all(module(tr.tensor(x)).shape == (2, 16, 4, 4) for module in modules)
    apply(layer, kept(stop))
    assert layer(x).shape == (2, 28, 8, 8)


def test_a_concatenation_along_the_wrong_dimension():
    x = tr.tensor(images(), requires_grad=True)
    stop = record(lambda: ops.concat([x, x[:, :4]], 2).sum()).trace.stopped
    assert stop.fixes == ["Concatenate along the channels: concat(..., dim=1), where they may differ."]
    said(stop, "channels (16 on the shortcut, 4 on the branch)")


def test_a_concatenation_of_other_batches():
    x = tr.tensor(images(), requires_grad=True)
    stop = record(lambda: ops.concat([x, x, x[:1]], 1).sum()).trace.stopped
    said(stop, "concat was to join (2, 16, 8, 8), (2, 16, 8, 8) and (1, 16, 8, 8) along dim 1")
    assert stop.fixes == ["All must hold the same images, or be concatenated along them: concat(..., dim=0)."]


def test_a_convolution_that_takes_other_channels():
    model = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 6, 3, stride=2, padding=1))
    stop = stopped(model, images())
    said(stop, "Conv2d 2 (test_stepper_mismatch.py:", "takes 16 channels, and its input (2, 8, 8, 8) has 8",
         "Conv2d 0 (3x3, padding 1) makes 8 channels of 16")
    assert stop.fixes[0] == "Give Conv2d 2 the channels that it gets: nn.Conv2d(8, 6, 3, stride=2, padding=1)."
    assert stop.fixes[1] == "Or let Conv2d 0 make what it takes: out_channels=16."
    assert stop.fixes[2] == "Or put a 1x1 convolution between: nn.Conv2d(8, 16, 1)."


def test_images_whose_channels_come_last():
    stop = stopped(nn.Conv2d(3, 8, 3), images(2, 8, 8, 3))
    assert stop.fixes[0] == "It looks like (N, H, W, C): x.permute(0, 3, 1, 2) gives (2, 3, 8, 8)."


def test_a_kernel_that_is_larger_than_what_is_left_of_the_image():
    stop = stopped(nn.Sequential(nn.Conv2d(16, 8, 3, stride=4), nn.Conv2d(8, 8, 3)), images())
    said(stop, "has a kernel of 3x3 pixels, more than its padded input (2, 8, 2, 2) has")
    assert any("padding=1" in fix for fix in stop.fixes) and any("with stride 4" in fix for fix in stop.fixes)


def test_a_linear_layer_behind_a_flatten():
    conv = nn.Conv2d(16, 8, 3, stride=2, padding=1)
    stop = stopped(nn.Sequential(conv, nn.Flatten(), nn.Linear(512, 10)), images())
    said(stop, "Flatten 1 made them of 8 channels of 4x4: 8·4·4 = 128.")
    assert stop.fixes == ["Give Linear 2 the features that it gets: nn.Linear(128, 10).",
                          "Or nn.AdaptiveAvgPool2d(8) before Flatten 1: 8·8·8 = 512, whatever the image's size."]
    assert nn.Sequential(conv, nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(512, 10))(images()).shape == (2, 10)


def test_a_linear_layer_on_images():
    stop = stopped(nn.Linear(16, 10), images())
    assert stop.fixes == ["Pool the images first: nn.GlobalAvgPool2d() takes (2, 16, 8, 8) to (2, 16)."]


def test_a_batch_norm_of_other_channels():
    stop = stopped(nn.Sequential(nn.Conv2d(16, 8, 3), nn.BatchNorm2d(16)), images())
    said(stop, "normalises 16 channels, and its input (2, 8, 6, 6) has 8")
    assert stop.fixes == ["Give BatchNorm2d 1 the channels that it gets: nn.BatchNorm2d(8).",
                          "Or let Conv2d 0 make what it takes: out_channels=16."]


def test_one_number_a_channel_must_be_reshaped():
    x, b = tr.tensor(images(), requires_grad=True), tr.tensor(np.zeros(16, "float32"))
    stop = record(lambda: (x + b).sum()).trace.stopped
    assert stop.fixes == ["One number a channel: reshape(1, 16, 1, 1) of the constant."]
    assert (x + b.reshape(1, 16, 1, 1)).shape == x.shape


@pytest.mark.parametrize("error", [ValueError("mine"), TypeError("mine"), KeyError("mine")])
def test_an_error_of_ones_own_is_raised_as_it_is(error):
    def run():
        raise error

    with pytest.raises(type(error), match="mine"):
        record(run)


def test_an_error_about_something_else_is_raised_as_it_is():
    x = tr.tensor(images(), requires_grad=True)
    with pytest.raises(ValueError, match="momentum"):
        record(lambda: ops.batch_norm(x, training=True, momentum=2).sum())
    with pytest.raises(TypeError, match="float32 and float64"):
        record(lambda: (x + images().astype("float64")).sum())


def test_the_traceback_tells_what_an_op_was_given():
    x, y = tr.tensor(np.ones((2, 3))), tr.tensor(np.ones((2, 4)))
    for op, run in {"add": lambda: x + y, "matmul": lambda: ops.matmul(x, y), "mse_loss": lambda: tr.mse_loss(x, y),
                    "concat": lambda: ops.concat([x, y], 0)}.items():
        try:
            run()
        except ValueError as error:
            found = refused(error)
        assert found.op == op and found.modules == [] and found.line.startswith("test_stepper_mismatch.py:")
        assert [given for _, given in found.operands] == [x, y] or all(
            a is b for (_, a), b in zip(found.operands, (x, y), strict=True))
    assert refused(ValueError("never raised")) is None


@pytest.mark.parametrize("a, b, fixes", [
    ((4, 3), (4, 3), ["second input: (4, 3) @ (3, 4) gives 4x4", "first input: (3, 4) @ (4, 3) gives 3x3"]),
    ((4, 3), (5, 4), ["first input: (3, 4) @ (5, 4)", "(5, 4) @ (4, 3) gives 5x3"]),
    ((2, 4, 3), (2, 5, 3), ["second input: (2, 4, 3) @ (2, 3, 5) gives 4x5"]),
    ((4, 3), (5, 2), ["No transpose"]),
])
def test_matrices_that_cannot_be_multiplied_get_ways_out_that_work(a, b, fixes):
    x, y = (tr.tensor(np.ones(shape), "float64", requires_grad=True) for shape in (a, b))
    stopped = record(lambda: (x @ y).sum()).trace.stopped
    for text in stopped.fixes:
        assert any(fix in text for fix in fixes), text
        for way in re.findall(r"\(([\d, ]+)\) @ \(([\d, ]+)\) gives (\d+)x(\d+)", text):
            left, right = (tuple(map(int, shape.split(","))) for shape in way[:2])
            assert (np.ones(left) @ np.ones(right)).shape[-2:] == tuple(map(int, way[2:]))


# --- joins that are no error ----------------------------------------------------------------------------------------


def noted(run):
    return suspicious(calls_of(record(run).trace.nodes))


def test_a_join_that_repeats_one_channel_is_noted():
    conv = nn.Conv2d(16, 1, 3, padding=1)
    x = tr.tensor(images(), requires_grad=True)
    (note,) = noted(lambda: (x + conv(x)).sum())
    assert "add repeats (2, 1, 8, 8) to (2, 16, 8, 8) along channels (16 times)" in note


def test_one_channel_is_noted_also_behind_a_reduction_that_has_nothing_to_do_with_it():
    conv = nn.Conv2d(16, 1, 3, padding=1)
    x = tr.tensor(images(), requires_grad=True)

    def run():
        h = x - x.mean(1, keepdim=True)
        return (h + conv(h)).sum()

    assert len(noted(run)) == 1


def test_a_difference_that_grows_is_noted():
    linear, target = nn.Linear(4, 1), tr.tensor(np.zeros(3, "float32"))
    x = tr.tensor(np.ones((3, 4), "float32"), requires_grad=True)
    (note,) = noted(lambda: ((linear(x) - target) * 2.0).sum())
    assert "sub of (3, 1) and (3,) gives (3, 3), larger than both" in note


@pytest.mark.parametrize("model", ["resnet8", "preact_resnet20", "densenet40", "chain_concatenation", "fixup_resnet20"])
def test_sound_networks_get_no_note(model):
    net, labels = models.build(model, in_channels=1), np.array([1, 2])
    assert noted(lambda: tr.cross_entropy(net(images(2, 1, 16, 16)), labels)) == []


def test_a_mean_that_is_subtracted_is_meant():
    x = tr.tensor(images(), requires_grad=True)
    assert noted(lambda: (x - x.mean(1, keepdim=True)).sum()) == []
    assert noted(lambda: (x + ops.avg_pool2d(x, 8)).sum()) == []


# --- the parts ------------------------------------------------------------------------------------------------------


def test_the_formula_is_that_of_the_convolution():
    rng = np.random.default_rng(0)
    for _ in range(60):
        k, s, p, d, n = (int(rng.integers(*bounds)) for bounds in ((1, 5), (1, 4), (0, 3), (1, 3), (8, 16)))
        y = ops.conv2d(np.zeros((1, 1, n, n)), np.zeros((1, 1, k, k)), stride=s, padding=p, dilation=d)
        text = Window((k, k), (s, s), (p, p), (d, d)).formula(0, n)
        left, right = text.split(" = ")
        assert int(right) == y.shape[2]
        assert eval(left.replace("·", "*"), {"floor": np.floor}) == y.shape[2]


def test_fork_and_routes_of_a_hand_made_history():
    calls = [Call(0, "", {}, (), (2, 4), "x", "input"), Call(1, "", {}, (), (4, 4), "w", "parameter"),
             Call(2, "relu", {}, (0,), (2, 4)), Call(3, "matmul", {}, (2, 1), (2, 4), "fc", "Linear"),
             Call(4, "mul", {}, (3, None), (2, 4), "fc", "Linear"), Call(5, "matmul", {}, (2, 1), (2, 4))]
    history = History(calls)
    assert history.fork([4, 2]) == 2 and history.fork([4, 5]) == 2  # not the parameter that both use
    assert history.fork([1, 4]) is None
    (step,) = history.route(2, 4)
    assert (step.name, step.type, step.before, step.after) == ("fc", "Linear", (2, 4), (2, 4))
    assert [s.name for s in history.route(None, 4)] == ["relu", "fc"]


def test_options_may_be_text():
    calls = [Call(0, "", {}, (), (2, 4, 9, 9), "x", "input"), Call(1, "", {}, (), (4, 4, 3, 3), "w", "parameter"),
             Call(2, "conv2d", {"stride": "(2, 2)", "padding": "(1, 1)", "dilation": "(1, 1)"}, (0, 1), (2, 4, 5, 5))]
    from tinyres.stepper.routes import resized, total_stride
    steps = History(calls).route(0, 2)
    assert total_stride(History(calls), steps) == (2, 2)
    assert resized(History(calls), steps[0]) == ("conv2d (3x3, stride 2, padding 1) takes 9x9 to 5x5: "
                                                 "floor((9 + 2·1 - 3) / 2) + 1 = 5")
