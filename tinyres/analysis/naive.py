"""A residual network in plain NumPy, as from-scratch projects usually write it: what tinyres is compared with.

Images are (N, C, H, W) in memory as in name. A convolution lays out its windows with stride tricks, copies them into
columns (im2col) and calls NumPy's matrix product; its gradient adds the columns back, one kernel position at a time
(many projects use np.add.at there, which is slower still). Batch norm, ReLU and the addition are NumPy operations, one
pass over memory each. A layer keeps in itself what its backward needs. Nothing here is used by the library.

The weights come from one of our networks, so that losses and gradients can be compared number by number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

Array = np.ndarray


class Conv:
    """3x3 or 1x1 convolution; w (K, C, R, R)."""

    def __init__(self, w: Array, stride: int, padding: int):
        self.w, self.stride, self.padding = w.copy(order="C"), stride, padding

    def forward(self, x: Array) -> Array:
        p, s = self.padding, self.stride
        padded = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
        (N, C, H, W), (K, _, R, _) = padded.shape, self.w.shape
        P, Q = (H - R) // s + 1, (W - R) // s + 1
        n, c, h, w = padded.strides
        windows = as_strided(padded, (N, P, Q, C, R, R), (n, h * s, w * s, c, h, w))
        self.padded_shape, self.columns = padded.shape, windows.reshape(N * P * Q, C * R * R)
        y = self.columns @ self.w.reshape(K, -1).T
        return y.reshape(N, P, Q, K).transpose(0, 3, 1, 2)

    def backward(self, g: Array) -> Array:
        (K, C, R, _), (N, _, P, Q), s = self.w.shape, g.shape, self.stride
        rows = g.transpose(0, 2, 3, 1).reshape(-1, K)
        self.grads = {"w": (rows.T @ self.columns).reshape(self.w.shape)}
        windows = (rows @ self.w.reshape(K, -1)).reshape(N, P, Q, C, R, R)
        padded = np.zeros(self.padded_shape, g.dtype)
        for i in range(R):
            for j in range(R):
                padded[:, :, i : i + s * P : s, j : j + s * Q : s] += windows[..., i, j].transpose(0, 3, 1, 2)
        p = self.padding
        return padded[:, :, p : padded.shape[2] - p, p : padded.shape[3] - p]


class BatchNorm:
    """Training mode; gamma and beta (C,)."""

    def __init__(self, gamma: Array, beta: Array):
        self.gamma, self.beta = gamma.copy(), beta.copy()
        self.running_mean, self.running_var = np.zeros_like(gamma), np.ones_like(gamma)

    def forward(self, x: Array) -> Array:
        mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
        self.running_mean = 0.9 * self.running_mean + 0.1 * mean.ravel()
        self.running_var = 0.9 * self.running_var + 0.1 * var.ravel()
        self.std = np.sqrt(var + 1e-5)
        self.normal = (x - mean) / self.std
        return self.gamma[:, None, None] * self.normal + self.beta[:, None, None]

    def backward(self, g: Array) -> Array:
        self.grads = {"gamma": (g * self.normal).sum((0, 2, 3)), "beta": g.sum((0, 2, 3))}
        g = g * self.gamma[:, None, None]
        of_mean = g.mean((0, 2, 3), keepdims=True)
        return (g - of_mean - self.normal * (g * self.normal).mean((0, 2, 3), keepdims=True)) / self.std


class ReLU:
    """max(x, 0); keeps where x was positive."""

    def forward(self, x: Array) -> Array:
        self.mask = x > 0
        return np.maximum(x, 0)

    def backward(self, g: Array) -> Array:
        return g * self.mask


class Sequence:
    """Layers one after the other."""

    def __init__(self, *layers: Any):
        self.layers = layers

    def forward(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, g: Array) -> Array:
        for layer in self.layers[::-1]:
            g = layer.backward(g)
        return g


class Block:
    """relu(branch(x) + shortcut(x))."""

    def __init__(self, branch: Sequence, shortcut: Sequence):
        self.branch, self.shortcut, self.relu = branch, shortcut, ReLU()
        self.layers = (*branch.layers, *shortcut.layers)

    def forward(self, x: Array) -> Array:
        return self.relu.forward(self.branch.forward(x) + self.shortcut.forward(x))

    def backward(self, g: Array) -> Array:
        g = self.relu.backward(g)
        return self.branch.backward(g) + self.shortcut.backward(g)


class Head:
    """Mean over the image, then a linear layer; w (K, C), b (K,)."""

    def __init__(self, w: Array, b: Array):
        self.w, self.b = w.copy(), b.copy()

    def forward(self, x: Array) -> Array:
        self.shape, self.means = x.shape, x.mean((2, 3))
        return self.means @ self.w.T + self.b

    def backward(self, g: Array) -> Array:
        self.grads = {"w": g.T @ self.means, "b": g.sum(0)}
        H, W = self.shape[2:]
        return np.broadcast_to(((g @ self.w) / (H * W))[:, :, None, None], self.shape)


def network(state: dict[str, Array]) -> tuple[Sequence, dict[str, tuple[Any, str]]]:
    """The network whose parameters `state` are: a resnetN for small images with shortcut option B, by names like ours.
    With it, for each name, the layer that has the parameter and what it calls it."""
    owners: dict[str, tuple[Any, str]] = {}

    def conv(name: str, stride: int = 1) -> Conv:
        w = state[f"{name}.weight"]
        layer = Conv(w, stride, w.shape[2] // 2)
        owners[f"{name}.weight"] = layer, "w"
        return layer

    def norm(name: str) -> BatchNorm:
        layer = BatchNorm(state[f"{name}.weight"], state[f"{name}.bias"])
        owners.update({f"{name}.weight": (layer, "gamma"), f"{name}.bias": (layer, "beta")})
        return layer

    def block(name: str) -> Block:
        projected = f"{name}.downsample.0.weight" in state
        stride = 2 if projected else 1
        branch = Sequence(conv(f"{name}.conv1", stride), norm(f"{name}.bn1"), ReLU(), conv(f"{name}.conv2"),
                          norm(f"{name}.bn2"))
        shortcut = [conv(f"{name}.downsample.0", stride), norm(f"{name}.downsample.1")] if projected else []
        return Block(branch, Sequence(*shortcut))

    names = list(dict.fromkeys(".".join(key.split(".")[:2]) for key in state if key.startswith("layer")))
    head = Head(state["fc.weight"], state["fc.bias"])
    owners.update({"fc.weight": (head, "w"), "fc.bias": (head, "b")})
    return Sequence(conv("conv1"), norm("bn1"), ReLU(), *map(block, names), head), owners


def cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """The mean loss, and its gradient."""
    shifted = logits - logits.max(1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    N = np.arange(len(labels))
    loss = -np.log(probabilities[N, labels]).mean()
    probabilities[N, labels] -= 1
    return float(loss), probabilities / len(labels)


class SGD:
    """Momentum and weight decay, on each parameter in turn."""

    def __init__(self, owners: dict[str, tuple[Any, str]], lr: float, momentum: float, weight_decay: float):
        self.owners, self.lr, self.momentum, self.weight_decay = owners, lr, momentum, weight_decay
        self.velocity = {name: 0.0 for name in owners}

    def step(self) -> None:
        for name, (layer, what) in self.owners.items():
            p = getattr(layer, what)
            self.velocity[name] = self.momentum * self.velocity[name] + layer.grads[what] + self.weight_decay * p
            setattr(layer, what, p - self.lr * self.velocity[name])
