"""Optimizers: SGD, Adam and AdamW with PyTorch's arithmetic, clipping, and what else belongs to an update.

Each rule is `update_all`, on the arrays of a whole group; its arithmetic is in tinyres.kernels (sgd and adam), what the
rules share in optimizer.py. The schedules live in schedules.py and are reached from here too: optim.MultiStepLR(...).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from tinyres import kernels, nn
from tinyres.ema import ExponentialMovingAverage
from tinyres.kernels.layout import array_module, elementwise
from tinyres.optimizer import AuditWarning, Optimizer
from tinyres.schedules import CosineAnnealingLR, LinearWarmup, MultiStepLR, OneCycleLR, Schedule, StepLR
from tinyres.tensor import Tensor

__all__ = [
    "SGD", "Adam", "AdamW", "AuditWarning", "CosineAnnealingLR", "ExponentialMovingAverage", "LinearWarmup",
    "MultiStepLR", "OneCycleLR", "Optimizer", "Schedule", "StepLR", "clip_grad_norm_", "split_decay",
]


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as in PyTorch: g = grad + weight_decay p; v = momentum v + g;
    p -= lr v, or with `nesterov` p -= lr (g + momentum v) (Sutskever et al. 2013)."""

    keeps = ("momentum_buffer",)

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-3, momentum: float = 0.0, weight_decay: float = 0.0,
                 nesterov: bool = False):
        super().__init__(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        momentum = group["momentum"] = self._number("momentum", group["momentum"])
        if not 0 <= momentum < 1:
            raise ValueError(f"SGD: momentum must lie in [0, 1), got {momentum}: 0.9 is usual")
        if group["nesterov"] and momentum == 0:
            raise ValueError("SGD: nesterov=True needs a momentum above 0, got 0: pass momentum=0.9")

    def update_all(self, params: list[Any], grads: list[Any], group: dict[str, Any],
                   states: list[dict[str, Any]]) -> None:
        velocities, momentum = [None] * len(params), group["momentum"]
        if momentum:
            for p, state in zip(params, states, strict=True):
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = array_module(p).zeros_like(p)
            velocities = [state["momentum_buffer"] for state in states]
        kernels.sgd(params, grads, velocities, group["lr"], momentum, group["weight_decay"], bool(group["nesterov"]))

    def update(self, p: Any, grad: Any, group: dict[str, Any], state: dict[str, Any]) -> None:
        """The rule for one parameter, for a subclass to build on."""
        SGD.update_all(self, [p], [grad], group, [state])


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1), weight decay added to the gradient, as in PyTorch."""

    keeps = ("step", "exp_avg", "exp_avg_sq")

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        pair = group["betas"] if isinstance(group["betas"], (tuple, list)) else (group["betas"],)
        betas = group["betas"] = tuple(self._number("betas", beta) for beta in pair)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"{self._name}: betas must be two numbers in [0, 1), got {betas}: (0.9, 0.999) is usual")

    def update_all(self, params: list[Any], grads: list[Any], group: dict[str, Any],
                   states: list[dict[str, Any]]) -> None:
        for p, state in zip(params, states, strict=True):
            if not state:
                xp = array_module(p)
                state.update(step=0, exp_avg=xp.zeros_like(p), exp_avg_sq=xp.zeros_like(p))
            state["step"] += 1
        steps, means, squares = ([state[name] for state in states] for name in self.keeps)
        kernels.adam(params, grads, means, squares, steps, group["lr"], group["betas"], group["eps"],
                     *self._decay(group))

    def update(self, p: Any, grad: Any, group: dict[str, Any], state: dict[str, Any]) -> None:
        """The rule for one parameter, for a subclass to build on."""
        Adam.update_all(self, [p], [grad], group, [state])

    def _decay(self, group: dict[str, Any]) -> tuple[float, float]:
        """What is added to the gradient, as a multiple of p, and the factor by which p shrinks first."""
        return group["weight_decay"], 1.0


class AdamW(Adam):
    """Adam with decoupled weight decay: p shrinks by lr * weight_decay first (Loshchilov & Hutter 2019)."""

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 1e-2):
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def _decay(self, group: dict[str, Any]) -> tuple[float, float]:
        return 0.0, 1 - group["lr"] * group["weight_decay"]


def split_decay(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups for an optimizer: weights with `weight_decay`; biases and norms' scales (1-D) without."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"split_decay: expected a Module, got {type(model).__name__}: pass the model itself")
    named = list(model.named_parameters())
    groups = [{"params": [p for _, p in named if p.ndim > 1], "weight_decay": weight_decay},
              {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def clip_grad_norm_(parameters: Iterable[Tensor] | Tensor, max_norm: float, norm_type: float = 2.0,
                    error_if_nonfinite: bool = False) -> float:
    """Scale the gradients so that their joint norm is at most max_norm; returns the norm before (Pascanu et al. 2013).

    norm_type: p of the p-norm, or math.inf; summed in float64. Each `.grad` becomes a new Tensor if it is scaled.
    Raises ValueError for max_norm or norm_type <= 0, RuntimeError for a norm that is not finite if asked to.
    """
    if not max_norm > 0 or not norm_type > 0:
        raise ValueError(f"clip_grad_norm_: max_norm and norm_type must be positive, got {max_norm} and {norm_type}")
    if isinstance(parameters, nn.Module):
        raise TypeError(f"clip_grad_norm_: expected parameters, got {type(parameters).__name__}: pass "
                        "model.parameters()")
    listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for p in listed:
        if not isinstance(p, Tensor):
            raise TypeError(f"clip_grad_norm_: parameters must be Tensors, got {type(p).__name__}: pass "
                            "model.parameters()")
    graded = [p for p in listed if p.grad is not None]
    total = _joint_norm([p.grad.data for p in graded], float(norm_type))  # type: ignore[union-attr]
    if error_if_nonfinite and not math.isfinite(total):
        raise RuntimeError(f"clip_grad_norm_: the gradients' norm is {total}; tr.debug() names the op that made it so")
    scale = float(max_norm) / (total + 1e-6)
    if not scale >= 1:
        for p in graded:
            p.grad = Tensor(elementwise(operator.mul, p.grad.data, scale))  # type: ignore[union-attr]
    return total


def _joint_norm(arrays: list[Any], norm_type: float) -> float:
    """The p-norm of all values together. What a GPU finds, a number for each array, is waited for once."""
    found: list[float] = []
    for xp in dict.fromkeys(map(array_module, arrays)):
        sizes = (abs(a.astype("float64")) for a in arrays if a.size and array_module(a) is xp)
        parts = [size.max() if norm_type == math.inf else (size**norm_type).sum() for size in sizes]
        found += map(float, parts) if xp is np or not parts else xp.stack(parts).get().tolist()
    if norm_type == math.inf:
        return float(np.max(found, initial=0.0))  # NaN if one is, which max() would not say
    return sum(found) ** (1 / norm_type)
