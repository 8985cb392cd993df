"""Optimizers: SGD, Adam and AdamW with PyTorch's arithmetic, clipping, and what else belongs to an update.

Each rule is `update`, on the arrays of one parameter; its arithmetic is in tinyres.kernels (sgd and adam), what the
rules share in optimizer.py. The schedules live in schedules.py and are reached from here too: optim.MultiStepLR(...).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tinyres import kernels, nn
from tinyres.ema import ExponentialMovingAverage
from tinyres.kernels.layout import array_module
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

    def update(self, p: Any, grad: Any, group: dict[str, Any], state: dict[str, Any]) -> None:
        velocity, momentum = None, group["momentum"]
        if momentum:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = array_module(p).zeros_like(p)
            velocity = state["momentum_buffer"]
        kernels.sgd(p, grad, velocity, group["lr"], momentum, group["weight_decay"], bool(group["nesterov"]))


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

    def update(self, p: Any, grad: Any, group: dict[str, Any], state: dict[str, Any]) -> None:
        self._adam(p, grad, group, state, group["weight_decay"], 1.0)

    def _adam(self, p: Any, grad: Any, group: dict[str, Any], state: dict[str, Any], decay: float,
              shrink: float) -> None:
        if not state:
            xp = array_module(p)
            state.update(step=0, exp_avg=xp.zeros_like(p), exp_avg_sq=xp.zeros_like(p))
        state["step"] += 1
        kernels.adam(p, grad, state["exp_avg"], state["exp_avg_sq"], state["step"], group["lr"], group["betas"],
                     group["eps"], decay, shrink)


class AdamW(Adam):
    """Adam with decoupled weight decay: p shrinks by lr * weight_decay first (Loshchilov & Hutter 2019)."""

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 1e-2):
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def update(self, p: Any, grad: Any, group: dict[str, Any], state: dict[str, Any]) -> None:
        self._adam(p, grad, group, state, 0.0, 1 - group["lr"] * group["weight_decay"])


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
    sizes = [abs(p.grad.data.astype("float64")) for p in graded]  # type: ignore[union-attr]
    if norm_type == math.inf:
        total = max((float(size.max()) for size in sizes if size.size), default=0.0)
    else:
        total = sum(float((size ** norm_type).sum()) for size in sizes) ** (1 / norm_type)
    if error_if_nonfinite and not math.isfinite(total):
        raise RuntimeError(f"clip_grad_norm_: the gradients' norm is {total}; tr.debug() names the op that made it so")
    scale = float(max_norm) / (total + 1e-6)
    if not scale >= 1:
        for p in graded:
            p.grad = Tensor(p.grad.data * scale)  # type: ignore[union-attr]
    return total
