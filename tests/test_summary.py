"""The summary of a network: its numbers are those of the literature, and what it says is kept, backward finds."""

import numpy as np
import pytest

from tinyres import models, nn, ops
from tinyres.analysis.summary import summary, which
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
    ("resnet20", {"option": "B"}, "ResNet-20 (He et al. 2015): 6n+2 layers with n = 3, shortcut option B"),
    ("plain20", {}, "plain-20 (He et al. 2015): 6n+2 layers with n = 3, no shortcuts"),
    ("preact_resnet20", {}, "pre-activation ResNet-20 (He et al. 2016): 6n+2 layers with n = 3, shortcut option A"),
    ("resnet18", {"cifar_stem": True}, "ResNet-18 (He et al. 2015): stages of 2, 2, 2, 2 blocks, shortcut option B, "
                                       "CIFAR stem"),
])
def test_it_says_which_network_this_is(name, options, phrase):
    assert which(models.build(name, **options)) == phrase


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
