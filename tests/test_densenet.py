"""DenseNet-BC: exact counts, a twin written in PyTorch, gradients and errors."""

import numpy as np
import pytest
from differences import norm_distance

import tinyres as tr
from tinyres import data, models, nn, optim
from tinyres.analysis.gradcheck import gradcheck
from tinyres.analysis.summary import summary
from tinyres.models import densenet
from tinyres.models.densenet import DenseLayer, Transition, cifar_densenet
from tinyres.train import train_step


@pytest.fixture(autouse=True)
def seed():
    tr.manual_seed(0)


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def count(model):
    return sum(p.data.size for p in model.parameters())


def formula(depth, k, classes=10, channels=3):
    """Weights of convolutions, scale and shift of every norm, and the head, layer by layer."""
    n, C = (depth - 4) // 6, 2 * k
    total = 9 * channels * C
    for stage in range(3):
        for _ in range(n):
            total += 2 * C + C * 4 * k + 2 * 4 * k + 9 * 4 * k * k
            C += k
        if stage < 2:
            total += 2 * C + C * (C // 2)
            C //= 2
    return total + 2 * C + C * classes + classes


def test_counts():
    """The paper's table 2 has DenseNet-BC (k = 12) of depth 100 with 0.8 M parameters."""
    assert count(models.densenet100()) == formula(100, 12) == 769_162
    assert count(models.densenet40()) == formula(40, 12) == 176_122
    assert count(cifar_densenet(22, 7, 1, growth=5)) == formula(22, 5, 7, 1)  # an odd number of channels to halve
    layers = sum(isinstance(part, (nn.Conv2d, nn.Linear)) for part in models.densenet100().modules())
    assert layers == 100


def test_channels_grow_by_k_and_are_halved():
    rows = {row.name: row.output for row in summary(models.densenet40(), (3, 32, 32)).rows}
    assert rows["dense1.0"] == (1, 36, 32, 32) and rows["dense1.5"] == (1, 96, 32, 32)
    assert rows["transition1.pool"] == (1, 48, 16, 16) and rows["dense2.5"] == (1, 120, 16, 16)
    assert rows["transition2.pool"] == (1, 60, 8, 8) and rows["dense3.5"] == (1, 132, 8, 8)


def test_a_layer_hands_its_input_on_unchanged():
    layer = DenseLayer(4, 3).double()
    leaf = tr.tensor(normal(2, 4, 3, 3), requires_grad=True)
    y = layer(leaf)
    assert np.array_equal(y.numpy()[:, :4], leaf.numpy()) and y.shape == (2, 7, 3, 3)
    upstream = normal(2, 7, 3, 3, seed=1)
    upstream[:, 4:] = 0
    y.backward(upstream)
    assert np.array_equal(leaf.grad.numpy(), upstream[:, :4])


def test_he_initialisation():
    for part in models.densenet40().modules():
        if isinstance(part, nn.Conv2d) and part.weight.data.size > 2000:
            K, _, R, S = part.weight.shape
            assert part.weight.data.std() == pytest.approx((2 / (K * R * S)) ** 0.5, rel=0.05)


def torch_twin(torch, state, x, layers, training):
    """The forward pass in PyTorch, with all earlier features kept in a list, as the paper's formula [x_0 ... x_l]."""
    import torch.nn.functional as F

    def activate(h, name):
        if training:
            return F.relu(F.batch_norm(h, None, None, state[f"{name}.weight"], state[f"{name}.bias"], True))
        return F.relu(F.batch_norm(h, state[f"{name}.running_mean"], state[f"{name}.running_var"],
                                   state[f"{name}.weight"], state[f"{name}.bias"]))

    h = F.conv2d(x, state["conv1.weight"], None, 1, 1)
    for stage in (1, 2, 3):
        features = [h]
        for i in range(layers):
            name = f"dense{stage}.{i}"
            new = F.conv2d(activate(torch.cat(features, 1), f"{name}.bn1"), state[f"{name}.conv1.weight"])
            features.append(F.conv2d(activate(new, f"{name}.bn2"), state[f"{name}.conv2.weight"], None, 1, 1))
        h = torch.cat(features, 1)
        if stage < 3:
            name = f"transition{stage}"
            h = F.avg_pool2d(F.conv2d(activate(h, f"{name}.bn"), state[f"{name}.conv.weight"]), 2)
    return F.linear(activate(h, "bn").mean((2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("training", [True, False])
def test_a_twin_in_pytorch(torch, training):
    import torch.nn.functional as F

    ours = cifar_densenet(16, growth=4).double()
    x, labels = normal(4, 3, 8, 10), np.array([0, 1, 2, 3])
    ours(x)  # running statistics that are not 0 and 1
    state = {k: torch.tensor(v, requires_grad=v.dtype.kind == "f" and "running" not in k)
             for k, v in ours.state_dict().items()}
    z = torch_twin(torch, state, torch.tensor(x), 2, training)
    y = ours.train(training)(x)
    tr.cross_entropy(y, labels).backward()
    F.cross_entropy(z, torch.tensor(labels)).backward()
    assert norm_distance(y.numpy(), z.detach().numpy()) < 1e-12
    for name, p in ours.named_parameters():
        assert norm_distance(p.grad.numpy(), state[name].grad.numpy(), 1e-6) < 1e-9, name


def test_densenet_learns_the_digits():
    model = models.densenet40(in_channels=1, growth=6)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, y = data.digits("train").batch(64)
    losses = [train_step(model, optimizer, x, y)[0] for _ in range(20)]
    assert losses[-1] < 0.6 * losses[0], losses


def test_every_parameter_gets_a_gradient():
    model = models.densenet40(num_classes=7)
    tr.cross_entropy(model(normal(2, 3, 32, 32, dtype="float32")), np.array([0, 6])).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.numpy().any()]


CASES = {
    "layer": lambda: DenseLayer(3, 2),
    "transition": lambda: Transition(3, 2),
    "network": lambda: cifar_densenet(10, growth=3),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    result = gradcheck(CASES[name](), normal(4, 3, 8, 8), order=(1, 2), nudge=0.1, directions=2, raise_on_failure=True)
    assert result.max_relative_error < 1e-6 and not result.notes, str(result)


def test_each_class_is_among_the_cases():
    made = {type(part) for case in CASES.values() for part in case().modules()}
    own = {c for c in vars(densenet).values()
           if isinstance(c, type) and issubclass(c, nn.Module) and c.__module__ == densenet.__name__}
    assert len(own) == 3 and own <= made


@pytest.mark.parametrize("depth, near", [(41, 40), (3, 10), (99, 100)])
def test_other_depths_are_refused(depth, near):
    with pytest.raises(ValueError, match=rf"cifar_densenet: depth must be 6n\+4, got {depth}: use {near}"):
        cifar_densenet(depth)


def test_wrong_sizes_are_refused():
    with pytest.raises(TypeError, match=r"cifar_densenet: depth must be an integer of the form 6n\+4, got '40': use"):
        cifar_densenet("40")
    with pytest.raises(ValueError, match="DenseNet: growth must be a positive int, got 0"):
        models.densenet40(growth=0)
    with pytest.raises(ValueError, match="DenseNet: num_classes must be a positive int, got -1"):
        models.densenet40(num_classes=-1)
