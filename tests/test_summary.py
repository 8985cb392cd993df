"""The summary of a network: its numbers are those of the literature, and what it says is kept, backward finds."""

import json

import numpy as np
import pytest

from tinyres import models, nn, ops, random, weights
from tinyres.analysis.summary import summary
from tinyres.analysis.which import published_costs, which
from tinyres.kernels import use_kernels
from tinyres.tensor import Tensor


@pytest.mark.parametrize("name, options, shape, parameters, multiply_adds", [
    ("resnet20", {}, (3, 32, 32), 269_722, 40_551_040),  # 0.27 M (He et al. 2015, table 6) and 40.55 M
    ("resnet56", {}, (3, 32, 32), 853_018, 125_485_696),
    ("resnet18", {}, (3, 224, 224), 11_689_512, 1_814_073_344),  # torchvision: 1.81 G
])
def test_published_networks_cost_what_is_published(name, options, shape, parameters, multiply_adds):
    found = summary(models.build(name, **options), shape)
    assert (found.parameters, found.multiply_adds) == (parameters, multiply_adds)
    assert sum(row.parameters for row in found.rows) == parameters


class Fork(nn.Module):
    """A convolution whose output is used twice, an addition of the network's own, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.up, self.act = nn.Conv2d(2, 4, 3, padding=1), nn.ConvTranspose2d(4, 2, 2, stride=2), nn.ReLU()
        self.fc = nn.Linear(2, 2, bias=False)

    def forward(self, x):
        h = self.conv(x)
        h = self.act(h) + h
        return self.fc(self.fc(ops.global_avg_pool2d(self.up(h))))


def test_every_layer_has_a_row_with_its_own_costs():
    found = summary(Fork(), (2, 6, 6), batch=3)
    rows = [(row.name, row.type, row.output, row.parameters, row.multiply_adds) for row in found.rows]
    assert rows[:3] == [
        ("conv", "Conv2d", (3, 4, 6, 6), 4 * 2 * 9 + 4, 3 * 36 * 4 * 2 * 9),
        ("act", "ReLU", (3, 4, 6, 6), 0, 0),
        ("up", "ConvTranspose2d", (3, 2, 12, 12), 4 * 2 * 4 + 2, 3 * 36 * 4 * 2 * 4),
    ]
    assert [row[:2] for row in rows[3:5]] == [("fc", "Linear"), ("fc", "Linear")]
    assert [row[3:] for row in rows[3:5]] == [(4, 3 * 4), (0, 3 * 4)]  # its parameters count once, its work twice
    assert rows[5][0] == "(network)" and "add" in rows[5][1]
    assert found.multiply_adds == sum(row[4] for row in rows) and found.parameters == 76 + 34 + 4


def test_what_is_kept_is_counted_once():
    """Against the arrays themselves: all that the graph of a like forward pass holds, parameters aside."""
    model = models.resnet8(in_channels=1, option="B").train()
    found = summary(model, (1, 16, 16), batch=2)
    output = model(Tensor(np.zeros((2, 1, 16, 16), np.float32)))
    own = {t.data.__array_interface__["data"][0] for t in (*model.parameters(), *model.buffers())}
    held, stack, seen = {}, [output.node], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen or isinstance(node, Tensor):
            continue
        seen.add(node)
        stack += node.edges
        arrays = [kept.array for kept in node._saved if isinstance(kept.array, np.ndarray)]
        held |= {a.__array_interface__["data"][0]: a.nbytes for a in arrays}
    assert found.kept_bytes == sum(nbytes for address, nbytes in held.items() if address not in own)
    rows = {row.name: row.kept_bytes for row in found.rows}
    image = 2 * 16 * 16 * 16 * 4
    assert rows["conv1"] == 2 * 16 * 16 * 4                # the input
    assert rows["bn1"] == 2 * image + 2 * 16 * 8           # its own input and output; mean and 1/deviation in float64
    assert rows["layer1.0.conv1"] == 0                     # keeps what bn1 kept already


def test_the_model_is_not_touched():
    model = models.resnet8().eval()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    summary(model, (3, 32, 32))
    assert not model.training and not model._forward_hooks and not model.conv1._forward_hooks
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name, options, phrase", [
    ("resnet20", {"option": "B"}, "ResNet-20 (He et al. 2015): 6n+2 layers with n = 3, shortcut option B, stride in "
                                  "the first convolution"),
    ("resnet20", {"zero_init_residual": True}, "ResNet-20 (He et al. 2015): 6n+2 layers with n = 3, shortcut option A, "
                                               "stride in the first convolution, all branches zero"),
    ("plain20", {}, "plain-20 (He et al. 2015): 6n+2 layers with n = 3, no shortcuts, stride in the first convolution"),
    ("preact_resnet20", {}, "pre-activation ResNet-20 (He et al. 2016): 6n+2 layers with n = 3, shortcut option A, "
                            "stride in the first convolution"),
    ("preact_resnet164", {}, "pre-activation ResNet-164 (He et al. 2016): 9n+2 layers with n = 18, shortcut option B, "
                             "stride in the 3x3"),
    ("resnet18", {"cifar_stem": True}, "ResNet-18 (He et al. 2015): stages of 2, 2, 2, 2 blocks, shortcut option B, "
                                       "CIFAR stem, stride in the first convolution"),
    ("resnet50", {}, "ResNet-50 (He et al. 2015): stages of 3, 4, 6, 3 blocks, shortcut option B, stride in the 3x3"),
    # The names and shapes of these parameters are resnet20's or resnet18's: only the blocks tell them apart.
    ("article_resnet18", {}, "ResNet of 8 blocks in stages of 2, 2, 2, 2: ArticleBasicBlock (models.article), "
                             "shortcuts: 5 Identity, 3 ProjectionShortcut, stride in the second convolution"),
    ("scaled_resnet", {"depth": 8}, "ResNet of 3 blocks in stages of 1, 1, 1: JoinedBasicBlock (models.joins), "
                                    "shortcuts: 1 Identity, 2 PadShortcut, stride in the first convolution"),
    ("exclusive_gate_resnet", {"depth": 8}, "ResNet of 3 blocks in stages of 1, 1, 1: ExclusiveGateBlock "
                                            "(models.gates), shortcuts: 1 Identity, 2 PadShortcut, stride in the first "
                                            "convolution"),
    ("residual_mlp", {"depth": 3}, "MLP of 3 blocks: MLPBlock (models.mlp), shortcuts: Identity"),
    ("plain_mlp", {"depth": 3}, "MLP of 3 blocks: PlainMLPBlock (models.mlp), no shortcuts"),
    ("article_prose_series", {}, "ArticleProse of 3 blocks: SeriesBlock (models.article_blocks), shortcuts: "
                                 "Identity"),
    ("densenet40", {}, "DenseNet of 18 blocks: DenseLayer (models.densenet), no shortcuts"),
])
def test_it_says_which_network_this_is(name, options, phrase):
    assert which(models.build(name, **options)) == phrase


def test_trained_branches_are_not_called_zero():
    model = models.resnet8(zero_init_residual=True)
    assert "all branches zero" in which(model)
    model.layer3[0].bn2.weight.data[0] = 1e-3
    assert "zero" not in which(model)


def test_he_places_the_stride_of_a_bottleneck_in_the_first_1x1():
    class Original(models.blocks.Bottleneck):
        def __init__(self, C, K, stride=1, shortcut=None):
            super().__init__(C, K, stride, shortcut)
            self.conv1, self.conv2 = (models.blocks.conv1x1(C, K // 4, stride), models.blocks.conv3x3(K // 4, K // 4))

    make_block = models.resnet.Residual(Original, models.blocks.shortcut_b)
    model = models.resnet.ResNet(make_block, [1, 1], (4, 8), 2, 3, True)
    assert which(model).endswith("stride in the first 1x1")


@pytest.mark.parametrize("name, options, shape, words", [
    ("resnet20", {}, (3, 32, 32), "0.27 million parameters (He et al. 2015, Table 6)"),
    ("resnet18", {}, (3, 224, 224), "1.8 billion multiply-adds (He et al. 2015, Table 1), quoted from memory"),
    ("resnet20", {"num_classes": 100}, (3, 32, 32), ""),  # another head, another stem, another image: not the paper's
    ("resnet20", {"option": "B"}, (3, 32, 32), ""),
    ("resnet18", {"cifar_stem": True, "num_classes": 10}, (3, 32, 32), ""),
    ("resnet20", {}, (3, 16, 16), ""),
    ("plain20", {}, (3, 32, 32), ""),
])
def test_what_papers_print_stands_beside_only_where_it_is_their_network(name, options, shape, words):
    found = published_costs(models.build(name, **options), (1, *shape), name)
    assert words in " ".join(found) and bool(found) == bool(words)


def test_a_network_by_name_is_looked_up_among_the_published(name="densenet100"):
    found = summary(models.build(name), (3, 32, 32), name=name)
    assert found.which.startswith("densenet100: DenseNet of 48 blocks") and "published: " in str(found)
    assert "0.8 million parameters (Huang et al. 2017, Table 2), quoted from memory" in found.published[0]
    assert json.loads(json.dumps(found.as_dict()))["published"] == list(found.published)


# --- shared layers ----------------------------------------------------------------------------------------------------


def test_shared_layers_are_counted_once_and_marked():
    found = summary(models.shared_resnet20(), (3, 32, 32))
    assert found.parameters == sum(row.parameters for row in found.rows) == 167_834
    assert found.multiply_adds == 40_551_040  # those of resnet20: every use costs
    shared = [row for row in found.rows if row.shared]
    assert shared and all(row.parameters == 0 for row in shared)
    assert "167,834 parameters, shared ones counted once" in str(found) and str(found).count("(shared)") == len(shared)
    assert not any(row.shared for row in summary(models.resnet8(), (3, 8, 8)).rows)


def test_one_layer_used_many_times_is_one_row_with_parameters():
    found = summary(models.shared_mlp(depth=5, width=7), (64,))
    assert [(row.parameters, row.multiply_adds, row.shared) for row in found.rows if row.multiply_adds == 49] == [
        (56, 49, False), *[(0, 49, True)] * 4]


class Raw(nn.Module):
    """Convolution and product called as ops, with parameters that are no layer's `weight`; two outputs inside."""

    class Two(nn.Module):
        def forward(self, pair):
            return pair[0] * 2.0, pair[1]

    def __init__(self):
        super().__init__()
        self.kernel, self.matrix = nn.Parameter(np.ones((4, 2, 3, 3), np.float32)), nn.Parameter(
            np.ones((4, 5), np.float32))
        self.two = self.Two()

    def forward(self, x):
        h = ops.conv2d(x, self.kernel, padding=1)
        a, b = self.two((h, h))
        return ops.global_avg_pool2d(a + b) @ self.matrix


def test_work_without_a_layer_is_counted():
    found = summary(Raw(), (2, 6, 6), batch=3)
    assert found.multiply_adds == 3 * 36 * 4 * 2 * 9 + 3 * 4 * 5 and found.parameters == 72 + 20
    assert [row.name for row in found.rows] == ["two", "(network)"]


def test_stochastic_depth_is_counted_with_every_branch_and_draws_nothing():
    model = models.stochastic_depth_resnet(survival=0.0)
    before = random.get_state()
    found = summary(model, (3, 32, 32))
    assert (found.parameters, found.multiply_adds) == (269_722, 40_551_040)
    assert sum(row.parameters for row in found.rows) == 269_722
    assert random.get_state() == before


@pytest.mark.parametrize("name", ["resnet8", "preact_resnet20", "scaled_resnet", "fixup_resnet20", "rezero_mlp",
                                  "shared_conv_resnet20", "article_prose_four_step", "chain_concatenation",
                                  "densenet40"])
def test_the_rows_add_up_for_every_family(name):
    """Against the parameters, and the multiply-adds that the layers' own hooks give."""
    model, layers = models.build(name), []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda m, args, y: layers.append(
                np.prod(y.shape) * m.weight.data.size // m.weight.shape[0]))
    shape = (64,) if "mlp" in name else (3, 16, 16)
    found = summary(model, shape)
    assert sum(row.parameters for row in found.rows) == found.parameters == sum(p.numel() for p in model.parameters())
    layers.clear()
    with use_kernels("im2col"):
        model.eval()(Tensor(np.zeros((1, *shape), np.float32)))
    assert found.multiply_adds == sum(layers)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_takes_a_name_or_weights(tinyres_command, tmp_path):
    weights.save(models.resnet8(option="B", num_classes=7, in_channels=1), tmp_path / "w.safetensors")
    status, out, err = tinyres_command("summary --weights w.safetensors")
    assert (status, err) == (0, "") and "resnet8: ResNet-8 (He et al. 2015)" in out and "input 1 x 1 x 32 x 32" in out
    found = json.loads(tinyres_command("summary --weights w.safetensors --input 1,9,9 --batch 2 --json")[1])
    assert found["input"] == [2, 1, 9, 9] and found["parameters"] == summary(
        models.resnet8(option="B", num_classes=7, in_channels=1), (1, 9, 9)).parameters
    found = json.loads(tinyres_command("summary --model residual-mlp --input 64 --model-option depth=2 --json")[1])
    assert found["parameters"] == 64 * 100 + 100 + 2 * 10_100 + 1_010
    status, out, err = tinyres_command("summary --model scaled-resnet --model-option depth=8")
    assert status == 0 and "scaled_resnet: ResNet of 3 blocks" in out


@pytest.mark.parametrize("line, words", [
    ("summary", "say which network"),
    ("summary --weights w.npz --classes 3", "--classes"),
    ("summary --model resnet8 --input 3,32", "'3,32' is not a shape"),
    ("summary --model resnet9", "did you mean"),
    ("summary --model resnet8 --model-option depth=3", "resnet8 has no option 'depth'"),
])
def test_wrong_options(tinyres_command, line, words):
    status, out, err = tinyres_command(line)
    assert (status, out) == (2, "") and words in err and err.count("\n") == 1


def test_frozen_parameters_are_told_apart_and_other_networks_have_no_name():
    model = models.resnet8()
    model.conv1.weight.requires_grad_(False)
    found = summary(model, (3, 8, 8))
    assert found.parameters - found.trainable == 432
    assert "74,858 trained, the others frozen" in str(found)
    assert summary(Fork(), (2, 6, 6)).which == ""


def test_a_wrong_input_is_an_error():
    with pytest.raises(ValueError, match=r"expected positive sizes"):
        summary(models.resnet8(), (3, 0, 32))
    with pytest.raises(ValueError, match="conv2d"):
        summary(models.resnet8(), (1, 32, 32))
