"""Whole networks against PyTorch: outputs, every gradient, running statistics, and weights after three SGD steps.

The twin is written here with torch's functions, block by block, on tensors that carry our parameter names: it shares no
code with tinyres.models.
"""

import numpy as np
import pytest

import tinyres as tr
from tinyres import models, optim

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")
F = torch.nn.functional


class Twin:
    """A ResNet by its state dict: the names say which convolutions and norms there are."""

    def __init__(self, model, dtype, channels_last=False):
        trained = {name for name, _ in model.named_parameters()}
        self.state = {k: torch.from_numpy(v.copy()) for k, v in model.state_dict().items()}
        self.state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.state.items()}
        if channels_last:
            self.state = {k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v
                          for k, v in self.state.items()}
        for name in trained:
            self.state[name].requires_grad_()
        self.trained = [name for name in self.state if name in trained]

    def bn(self, x, name):
        s = self.state
        return F.batch_norm(x, s[f"{name}.running_mean"], s[f"{name}.running_var"], s[f"{name}.weight"],
                            s[f"{name}.bias"], True, 0.1, 1e-5)

    def conv(self, x, name, stride=1):
        w = self.state[f"{name}.weight"]
        return F.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2)

    def shortcut(self, x, block, stride, K):
        if f"{block}.downsample.0.weight" in self.state:
            out = self.conv(x, f"{block}.downsample.0", stride)
            return self.bn(out, f"{block}.downsample.1") if f"{block}.downsample.1.weight" in self.state else out
        if stride == 1 and x.shape[1] == K:
            return x
        side = (K - x.shape[1]) // 2
        return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, side, side))

    def post(self, x, block, stride, plain):
        last = 3 if f"{block}.conv3.weight" in self.state else 2
        h = x
        for i in range(1, last + 1):
            h = self.bn(self.conv(h, f"{block}.conv{i}", stride if i == last - 1 else 1), f"{block}.bn{i}")
            if i < last:
                h = F.relu(h)
        return F.relu(h if plain else h + self.shortcut(x, block, stride, h.shape[1]))

    def pre(self, x, block, stride, shared):
        h = first = F.relu(self.bn(x, f"{block}.bn1"))
        h = self.conv(h, f"{block}.conv1", stride)
        h = self.conv(F.relu(self.bn(h, f"{block}.bn2")), f"{block}.conv2")
        return h + self.shortcut(first if shared else x, block, stride, h.shape[1])

    def __call__(self, x, kind):
        stem = self.state["conv1.weight"].shape[-1]
        h = self.conv(x, "conv1", 2 if stem == 7 else 1)
        h = h if kind == "pre" else F.relu(self.bn(h, "bn1"))
        h = F.max_pool2d(h, 3, 2, 1) if stem == 7 else h
        blocks = dict.fromkeys(".".join(k.split(".")[:2]) for k in self.state if k.startswith("layer"))
        for block in blocks:
            first = block.endswith(".0")
            stride = 2 if first and not block.startswith("layer1") else 1
            h = self.pre(h, block, stride, first) if kind == "pre" else self.post(h, block, stride, kind == "plain")
        h = F.relu(self.bn(h, "bn")) if kind == "pre" else h
        return F.linear(h.mean((2, 3)), self.state["fc.weight"], self.state["fc.bias"])


NETWORKS = {
    "resnet20-A": (lambda: models.resnet20(), "post", 16),
    "resnet20-B": (lambda: models.resnet20(option="B"), "post", 16),
    "plain20": (lambda: models.plain20(), "plain", 16),
    "preact20": (lambda: models.preact_resnet20(), "pre", 16),
    "resnet18-cifar": (lambda: models.resnet18(num_classes=10, cifar_stem=True), "post", 16),
    "resnet18-imagenet": (lambda: models.resnet18(num_classes=10), "post", 64),
    "resnet50-cifar": (lambda: models.resnet50(num_classes=10, cifar_stem=True), "post", 16),
}
N = 4


def data(size):
    rng = np.random.default_rng(1)
    return rng.standard_normal((N, 3, size, size)), rng.integers(0, 10, N)


def distance(a, b):
    """Norm of the difference relative to the norm of b, over a list of arrays taken as one vector."""
    a, b = (np.concatenate([np.asarray(v, np.float64).ravel() for v in vs]) for vs in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", NETWORKS)
def test_float64_equals_torch_over_three_steps(name):
    make, kind, size = NETWORKS[name]
    tr.manual_seed(0)
    model = make().double()
    twin = Twin(model, torch.float64)
    x, y = data(size)
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
    ours = optim.SGD(model.parameters(), **options)
    theirs = torch.optim.SGD([twin.state[k] for k in twin.trained], **options)
    for step in range(3):
        out, expected = model(x), twin(torch.from_numpy(x), kind)
        loss, expected_loss = tr.cross_entropy(out, y), F.cross_entropy(expected, torch.from_numpy(y))
        ours.zero_grad()
        theirs.zero_grad()
        loss.backward()
        expected_loss.backward()
        if step == 0:
            assert distance([out.numpy()], [expected.detach().numpy()]) < 1e-8
            assert abs(loss.item() - expected_loss.item()) < 1e-8
            for key, p in model.named_parameters():
                assert distance([p.grad.numpy()], [twin.state[key].grad.numpy()]) < 1e-8, key
        ours.step()
        theirs.step()
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert distance([value], [twin.state[key].detach().numpy()]) < 1e-8, key


def test_float32_gradient_is_as_near_to_float64_as_twice_torch_channels_last():
    tr.manual_seed(0)
    model = models.resnet20(option="B")
    exact, nhwc = Twin(model, torch.float64), Twin(model, torch.float32, channels_last=True)
    x, y = data(32)
    x = np.concatenate([x] * 4) + np.random.default_rng(2).standard_normal((4 * N, 3, 32, 32))
    x, y = x.astype(np.float32), np.concatenate([y] * 4)
    tr.cross_entropy(model(x), y).backward()
    for twin, dtype in ((exact, torch.float64), (nhwc, torch.float32)):
        images = torch.from_numpy(x).to(dtype)
        if twin is nhwc:
            images = images.contiguous(memory_format=torch.channels_last)
        F.cross_entropy(twin(images, "post"), torch.from_numpy(y)).backward()
    truth = [exact.state[k].grad.numpy() for k in exact.trained]
    theirs = distance([nhwc.state[k].grad.numpy() for k in exact.trained], truth)
    grads = dict(model.named_parameters())
    ours = distance([grads[k].grad.numpy() for k in exact.trained], truth)
    print(f"distance from the float64 gradient: tinyres {ours:.1e}, PyTorch channels_last {theirs:.1e}")
    assert ours <= 2 * theirs
