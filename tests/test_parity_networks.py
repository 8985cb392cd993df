"""Whole networks against their twins in PyTorch: the same names, and from the same weights the same outputs, loss,
gradients, running statistics, and parameters after three steps of SGD. With -s it prints what it measured."""

import numpy as np
import pytest
from differences import norm_distance

import tinyres as tr
from tinyres import models, optim

EXACT = 1e-8  # relative to the norm of each tensor, in float64
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}

# Name -> (network, its options, images). Rounding is compared at batches that are not too small: one ReLU that switches
# in float32 is then a small part of the gradient.
NETWORKS = {
    "resnet20 A": ("resnet20", {"option": "A"}, (16, 3, 32, 32)),
    "resnet20 B": ("resnet20", {"option": "B"}, (16, 3, 32, 32)),
    "plain20": ("plain20", {}, (16, 3, 32, 32)),
    "preact20 A": ("preact_resnet20", {"option": "A"}, (16, 3, 32, 32)),
    "preact20 B": ("preact_resnet20", {"option": "B"}, (16, 3, 32, 32)),
    "resnet18, cifar stem": ("resnet18", {"num_classes": 10, "cifar_stem": True}, (8, 3, 16, 16)),
    "resnet18": ("resnet18", {"num_classes": 10}, (8, 3, 64, 64)),
    "resnet50, cifar stem": ("resnet50", {"num_classes": 10, "cifar_stem": True}, (8, 3, 16, 16)),
    "resnet50": ("resnet50", {"num_classes": 10}, (4, 3, 64, 64)),
}


def twins(torch):
    """name -> a function that builds the PyTorch twin, written after the papers and torchvision's names."""
    nn, F = torch.nn, torch.nn.functional

    def conv(C, K, size, stride=1):
        return nn.Conv2d(C, K, size, stride, size // 2, bias=False)

    class Pad(nn.Module):
        def __init__(self, C, K, stride):
            super().__init__()
            self.stride, self.extra = stride, (K - C) // 2

        def forward(self, x):
            return F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, self.extra, self.extra))

    def shortcut(option, C, K, stride, norm=True):
        if option is None or (C == K and stride == 1):
            return None
        if option == "A":
            return Pad(C, K, stride)
        return nn.Sequential(*([conv(C, K, 1, stride)] + ([nn.BatchNorm2d(K)] if norm else [])))

    class Basic(nn.Module):
        """With option None the plain block: nothing is added."""

        def __init__(self, C, K, stride, option):
            super().__init__()
            self.conv1, self.bn1 = conv(C, K, 3, stride), nn.BatchNorm2d(K)
            self.conv2, self.bn2 = conv(K, K, 3), nn.BatchNorm2d(K)
            self.downsample, self.plain = shortcut(option, C, K, stride), option is None

        def forward(self, x):
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            if not self.plain:
                y = y + (x if self.downsample is None else self.downsample(x))
            return F.relu(y)

    class Bottleneck(nn.Module):
        def __init__(self, C, K, stride, option):
            super().__init__()
            self.conv1, self.bn1 = conv(C, K // 4, 1), nn.BatchNorm2d(K // 4)
            self.conv2, self.bn2 = conv(K // 4, K // 4, 3, stride), nn.BatchNorm2d(K // 4)
            self.conv3, self.bn3 = conv(K // 4, K, 1), nn.BatchNorm2d(K)
            self.downsample = shortcut(option, C, K, stride)

        def forward(self, x):
            y = F.relu(self.bn1(self.conv1(x)))
            y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
            return F.relu(y + (x if self.downsample is None else self.downsample(x)))

    class PreAct(nn.Module):
        def __init__(self, C, K, stride, option, first=False):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(C), conv(C, K, 3, stride)
            self.bn2, self.conv2 = nn.BatchNorm2d(K), conv(K, K, 3)
            self.downsample, self.first = shortcut(option, C, K, stride, norm=False), first

        def forward(self, x):
            h = F.relu(self.bn1(x))
            x = h if self.first else x
            return self.conv2(F.relu(self.bn2(self.conv1(h)))) + (x if self.downsample is None else self.downsample(x))

    class Network(nn.Module):
        def __init__(self, block, option, depths, widths, cifar_stem):
            super().__init__()
            self.pre, C = block is PreAct, min(widths[0], 64)
            self.conv1 = conv(3, C, 3) if cifar_stem else conv(3, C, 7, 2)
            if not self.pre:
                self.bn1 = nn.BatchNorm2d(C)
            self.pool = nn.Identity() if cifar_stem else nn.MaxPool2d(3, 2, 1)
            self.stages = [f"layer{i}" for i in range(1, len(depths) + 1)]
            for i, (name, depth, K) in enumerate(zip(self.stages, depths, widths, strict=True)):
                parts = []
                for j in range(depth):
                    more = {"first": j == 0} if self.pre else {}
                    parts.append(block(C if j == 0 else K, K, 2 if i and j == 0 else 1, option, **more))
                self.add_module(name, nn.Sequential(*parts))
                C = K
            if self.pre:
                self.bn = nn.BatchNorm2d(C)
            self.fc = nn.Linear(C, 10)

        def forward(self, x):
            x = self.conv1(x)
            x = self.pool(x if self.pre else F.relu(self.bn1(x)))
            for name in self.stages:
                x = getattr(self, name)(x)
            return self.fc((F.relu(self.bn(x)) if self.pre else x).mean((2, 3)))

    small, large = (16, 32, 64), (64, 128, 256, 512)
    return {
        "resnet20 A": lambda: Network(Basic, "A", (3, 3, 3), small, True),
        "resnet20 B": lambda: Network(Basic, "B", (3, 3, 3), small, True),
        "plain20": lambda: Network(Basic, None, (3, 3, 3), small, True),
        "preact20 A": lambda: Network(PreAct, "A", (3, 3, 3), small, True),
        "preact20 B": lambda: Network(PreAct, "B", (3, 3, 3), small, True),
        "resnet18, cifar stem": lambda: Network(Basic, "B", (2, 2, 2, 2), large, True),
        "resnet18": lambda: Network(Basic, "B", (2, 2, 2, 2), large, False),
        "resnet50, cifar stem": lambda: Network(Bottleneck, "B", (3, 4, 6, 3), [4 * w for w in large], True),
        "resnet50": lambda: Network(Bottleneck, "B", (3, 4, 6, 3), [4 * w for w in large], False),
    }


def pair(torch, name, dtype, seed=0):
    """Our network and its twin with the same weights, and images and labels for both."""
    build, options, shape = NETWORKS[name]
    tr.manual_seed(seed)
    ours = models.build(build, **options).astype(dtype)
    theirs = twins(torch)[name]().to(getattr(torch, dtype))
    theirs.load_state_dict({key: torch.tensor(value) for key, value in ours.state_dict().items()})  # strict: same names
    rng = np.random.default_rng(seed)
    return ours, theirs, rng.standard_normal(shape).astype(dtype), rng.integers(0, 10, shape[0])


def our_pass(model, x, labels):
    model.zero_grad()
    y = model(tr.tensor(x, requires_grad=True))
    loss = tr.cross_entropy(y, labels)
    loss.backward()
    return y.numpy(), loss.item(), {name: p.grad.numpy().copy() for name, p in model.named_parameters()}


def their_pass(torch, model, x, labels):
    model.zero_grad()
    y = model(x)
    loss = torch.nn.functional.cross_entropy(y, torch.tensor(labels))
    loss.backward()
    return y.detach().numpy(), loss.item(), {name: p.grad.numpy().copy() for name, p in model.named_parameters()}


def largest(ours, theirs):
    """(largest distance relative to its tensor's norm, name) over tensors of the same names."""
    assert list(ours) == list(theirs)
    return max((norm_distance(ours[name], np.asarray(theirs[name])), name) for name in ours)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_float64(torch, name):
    """Three steps of training, then evaluation; all of it within 1e-8."""
    ours, theirs, x, labels = pair(torch, name, "float64")
    steps = optim.SGD(ours.parameters(), **SGD), torch.optim.SGD(theirs.parameters(), **SGD)
    found = {}
    for i in range(3):
        y, loss, grads = our_pass(ours, x, labels)
        y2, loss2, grads2 = their_pass(torch, theirs, torch.tensor(x), labels)
        for what, distance in (("outputs", norm_distance(y, y2)), ("loss", abs(loss - loss2) / abs(loss2)),
                               ("gradients", largest(grads, grads2)[0])):
            found[what] = max(distance, found.get(what, 0.0))
        for optimizer in steps:
            optimizer.step()
        found["state"], where = largest(ours.state_dict(), theirs.state_dict())
        assert max(found.values()) < EXACT, (i, found, where)
    assert min(norm_distance(p.numpy(), q) for p, q in zip(ours.parameters(), models_start(name), strict=True)) > 1e-4
    found["eval"] = norm_distance(ours.eval()(tr.Tensor(x)).numpy(), theirs.eval()(torch.tensor(x)).detach().numpy())
    print(f"\n{name}: " + ", ".join(f"{what} {distance:.1e}" for what, distance in found.items()))
    assert found["eval"] < EXACT


def models_start(name):
    build, options, _ = NETWORKS[name]
    tr.manual_seed(0)
    return [p.numpy().astype("float64") for p in models.build(build, **options).parameters()]


def flat(grads):
    return np.concatenate([np.asarray(g, np.float64).ravel() for g in grads.values()])


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_float32_are_as_near_to_float64_as_pytorch_is(torch, name):
    """The whole gradient's distance from that in float64, root mean square of three draws, is at most twice that of
    PyTorch in the channels_last format."""
    squares = np.zeros(2)
    for seed in range(3):
        ours, theirs, x, labels = pair(torch, name, "float32", seed)
        theirs = theirs.to(memory_format=torch.channels_last)
        images = torch.tensor(x).to(memory_format=torch.channels_last)
        state = ours.state_dict()
        found = [flat(our_pass(ours, x, labels)[2]), flat(their_pass(torch, theirs, images, labels)[2])]
        ours.load_state_dict(state)
        exact = flat(our_pass(ours.double(), x.astype("float64"), labels)[2])
        squares += [norm_distance(g, exact) ** 2 for g in found]
    mine, pytorch = np.sqrt(squares / 3)
    print(f"\n{name}: distance of the float32 gradient from float64: ours {mine:.1e}, PyTorch's {pytorch:.1e}, "
          f"ratio {mine / pytorch:.2f}")
    assert mine <= 2 * pytorch
