"""Optimizers: SGD, Adam and AdamW with PyTorch's arithmetic, and the audit that a first step makes.

An optimizer writes into the arrays of its parameters in place and never replaces them. The schedules live in
schedules.py and are reached from here too: optim.MultiStepLR(...).
"""

from __future__ import annotations

import difflib
import math
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tinyres import nn
from tinyres.ema import ExponentialMovingAverage
from tinyres.kernels.layout import array_module
from tinyres.nn.parameter import assign
from tinyres.nn.state_dict import host_array
from tinyres.operands import check_writable
from tinyres.schedules import CosineAnnealingLR, LinearWarmup, MultiStepLR, OneCycleLR, Schedule, StepLR
from tinyres.tensor import Tensor, reached_leaves

__all__ = [
    "SGD", "Adam", "AdamW", "AuditWarning", "CosineAnnealingLR", "ExponentialMovingAverage", "LinearWarmup",
    "MultiStepLR", "OneCycleLR", "Optimizer", "Schedule", "StepLR", "clip_grad_norm_", "split_decay",
]

MOST_NAMES = 8  # of parameters in a warning
# Every parameter that some optimizer was given, by id: a WeakSet would compare tensors with ==, element by element.
_held: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()


class AuditWarning(UserWarning):
    """A parameter that will not be trained: it has no gradient, or no optimizer holds it."""


def _label(p: Tensor) -> str:
    return getattr(p, "name", None) or f"a tensor of shape {tuple(p.shape)}"


class Optimizer:
    """Base of the optimizers: parameters in groups with options, state per parameter, step().

    parameters: an iterable of leaf Tensors, of (name, Tensor) pairs, or of groups {"params": iterable, option: value}.
    A subclass checks its options in `check(group)` and writes the rule as `update(p, grad, group, state)` on arrays.
    Raises ValueError for no parameters, one given twice or an option out of range; TypeError for other than leaves.
    """

    def __init__(self, parameters: Iterable[Any], **defaults: Any):
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        self._audited = False
        if isinstance(parameters, (Tensor, nn.Module, Mapping)):
            raise TypeError(f"{self._name}: expected an iterable of parameters, got {type(parameters).__name__}: pass "
                            "model.parameters(), or a list")
        entries = list(parameters)
        mappings = sum(isinstance(entry, Mapping) for entry in entries)
        if mappings not in (0, len(entries)):
            raise TypeError(f"{self._name}: {mappings} of the {len(entries)} parameters given are groups: put all of "
                            "them into groups, like {'params': [w], 'lr': 0.1}, or none")
        groups = entries if mappings else [{"params": entries}]
        for group in groups:
            self.add_param_group(group)
        if not any(group["params"] for group in self.param_groups):
            raise ValueError(f"{self._name}: the list of parameters is empty: pass model.parameters(), freshly called "
                             "(a generator can be read only once); layers kept in a plain list are not found, use "
                             "nn.ModuleList, nor are Tensors, use nn.Parameter")

    @property
    def _name(self) -> str:
        return type(self).__name__

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add {"params": iterable, option: value, ...}; options left out take the optimizer's defaults."""
        for key in group:
            if key != "params" and key not in self.defaults:
                near = difflib.get_close_matches(key, self.defaults, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(self.defaults)}"
                raise ValueError(f"{self._name}: a group has the unknown option {key!r}: {hint}")
        if "params" not in group:
            raise ValueError(f"{self._name}: a group must be a dict with 'params', got the keys {list(group)}")
        added = {"params": [], **self.defaults, **{k: v for k, v in group.items() if k != "params"}}
        self.check(added)
        params = group["params"]
        held = {id(p) for p in self.parameters()}
        for entry in [params] if isinstance(params, Tensor) else params:
            p = self._leaf(entry)
            if id(p) in held:
                raise ValueError(f"{self._name}: {_label(p)} was given twice, so it would step twice: list it once")
            held.add(id(p))
            added["params"].append(p)
        self.param_groups.append(added)
        _held.update({id(p): p for p in added["params"]})

    def _leaf(self, entry: Any) -> Tensor:
        name, p = entry if isinstance(entry, (tuple, list)) and len(entry) == 2 else (None, entry)
        if not isinstance(p, Tensor):
            raise TypeError(f"{self._name}: parameters must be Tensors, (name, Tensor) pairs or groups, got "
                            f"{type(p).__name__}")
        if p.node is not None:
            raise TypeError(f"{self._name}: {_label(p)} was made by {p.node.name}, and only leaves can be trained: "
                            "give it the Parameter that it was computed from")
        if p.dtype.kind != "f":
            raise TypeError(f"{self._name}: {_label(p)} has dtype {p.dtype}, and only floats can be trained: use "
                            "astype('float32')")
        if name is not None and isinstance(p, nn.Parameter):
            p.rename(name)
        return p

    def parameters(self) -> Iterator[Tensor]:
        """All parameters, group by group."""
        return (p for group in self.param_groups for p in group["params"])

    def check(self, group: dict[str, Any]) -> None:
        """Raise ValueError for options out of range. Options become Python numbers, so float32 stays float32."""
        for option in ("lr", "weight_decay", "eps"):
            if option in group:
                value = group[option] = self._number(option, group[option])
                if not 0 <= value < math.inf:
                    raise ValueError(f"{self._name}: {option} must not be negative, got {value}: give a finite number "
                                     "of at least 0")

    def _number(self, option: str, value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{self._name}: {option} must be a number, got {value!r}") from error

    def update(self, p: Any, grad: Any, group: dict[str, Any], state: dict[str, Any]) -> None:
        raise NotImplementedError(f"{self._name} has no rule: define update(self, p, grad, group, state)")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or with set_to_none=False fill them with zeros."""
        for p in self.parameters():
            p.grad = None if set_to_none or p.grad is None else Tensor(array_module(p.data).zeros_like(p.data))

    def step(self) -> None:
        """Update every parameter that has a gradient. The first step warns (AuditWarning) of those left out.

        Raises ValueError when a gradient has not its parameter's shape and dtype, when a parameter is read-only, or
        when an option is out of range by now; nothing was updated then.
        """
        if not self._audited:
            self._audited = True
            self._audit()
        reached_leaves.clear()  # or a model of the past, kept alive by its loss, would look like one left out
        for group in self.param_groups:
            self.check(group)
            for p in group["params"]:
                if p.grad is not None:
                    self._check_gradient(p)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p.data, p.grad.data, group, self.state.setdefault(p, {}))
                    p.bump(f"{self._name}.step")

    def _check_gradient(self, p: Tensor) -> None:
        if not isinstance(p.grad, Tensor):
            raise TypeError(f"{self._name}: the gradient of {_label(p)} must be a Tensor, got "
                            f"{type(p.grad).__name__}: wrap it in tr.tensor()")
        if p.grad.shape != p.shape or p.grad.dtype != p.dtype:
            raise ValueError(f"{self._name}: {_label(p)} is {p.dtype} {tuple(p.shape)}, its gradient "
                             f"{p.grad.dtype} {tuple(p.grad.shape)}: call zero_grad() after changing a model")
        check_writable(f"{self._name}: {_label(p)}", p, "give nn.Parameter a copy")

    def _audit(self) -> None:
        without = [_label(p) for p in self.parameters() if p.requires_grad and p.grad is None]
        strays = sorted(_label(p) for i, p in list(reached_leaves.items())
                        if isinstance(p, nn.Parameter) and p.requires_grad and p.grad is not None
                        and i not in _held)
        lines = []
        if without and not any(p.grad is not None for p in self.parameters()):
            lines.append("no parameter has a gradient: call loss.backward() before step()")
        elif without:
            lines.append(f"without gradient, so never trained: {', '.join(without)}. Use them in forward, look for "
                         "detach(), or freeze them with requires_grad_(False)")
        if strays:
            more = f" and {len(strays) - MOST_NAMES} more" if len(strays) > MOST_NAMES else ""
            lines.append(f"with a gradient, but in no optimizer: {', '.join(strays[:MOST_NAMES])}{more}. Add them to "
                         "the optimizer, or freeze them with requires_grad_(False)")
        if lines:
            warnings.warn(f"{self._name}.step: " + "; ".join(lines), AuditWarning, stacklevel=3)

    def state_dict(self) -> dict[str, Any]:
        """{"arrays": {"3.momentum_buffer": numpy copy, ...}, "scalars": what JSON can hold}.

        Parameters go by their position; names and options are in "scalars", so a checkpoint needs nothing else.
        """
        position = {p: i for i, p in enumerate(self.parameters())}
        arrays, counters = {}, {}
        for p, state in self.state.items():
            for name, value in state.items():
                if isinstance(value, int):
                    counters[f"{position[p]}.{name}"] = value
                else:
                    arrays[f"{position[p]}.{name}"] = np.array(host_array(value), order="C")
        groups = [{**{k: list(v) if isinstance(v, tuple) else v for k, v in group.items() if k != "params"},
                   "params": [position[p] for p in group["params"]]} for group in self.param_groups]
        names = [getattr(p, "name", None) for p in self.parameters()]
        return {"arrays": arrays,
                "scalars": {"optimizer": self._name, "names": names, "groups": groups, "counters": counters}}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Continue from what state_dict() returned, options included. Raises ValueError, and changes nothing, if it is
        another optimizer's, its parameters differ in grouping, name or shape, or an option is out of range."""
        params = list(self.parameters())
        try:
            arrays, scalars = saved["arrays"], saved["scalars"]
            problems = list(self._misfits(params, arrays, scalars))
            options = [_options(group) for group in scalars["groups"]]
            for group in options if not problems else ():
                self.check(group)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise ValueError(f"{self._name}.load_state_dict: nothing was loaded: this is not what state_dict() "
                             f"returned ({error!r})") from error
        if problems:
            raise ValueError(f"{self._name}.load_state_dict: nothing was loaded: {'; '.join(problems)}. Make the "
                             "optimizer as the saved one was made")
        for group, was in zip(self.param_groups, options, strict=True):
            group.update(was)
        self.state = {}
        for key, value in (*arrays.items(), *scalars["counters"].items()):
            i, name = key.split(".")
            p = params[int(i)]
            if not isinstance(value, int):
                buffer = Tensor(array_module(p.data).empty_like(p.data))
                assign(buffer, value, "load_state_dict")
                value = buffer.data
            self.state.setdefault(p, {})[name] = value

    def _misfits(self, params: list[Tensor], arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> Iterator[str]:
        if scalars["optimizer"] != self._name:
            yield f"the state is of {scalars['optimizer']}"
        sizes, given = [len(g["params"]) for g in self.param_groups], [len(g["params"]) for g in scalars["groups"]]
        if sizes != given:
            yield f"its groups have {given} parameters, this optimizer's have {sizes}"
            return
        unknown = sorted({name for group in scalars["groups"] for name in group} ^ {"params", *self.defaults})
        if unknown:
            yield f"its options and this optimizer's differ in {', '.join(unknown)}"
        for p, name in zip(params, scalars["names"], strict=True):
            if name and getattr(p, "name", None) and name != p.name:  # type: ignore[attr-defined]
                yield f"the state has {name} where this optimizer has {_label(p)}"
        for key, value in arrays.items():
            p = params[int(key.split(".")[0])]
            if value.shape != p.shape:
                yield f"{key} ({_label(p)}) has shape {value.shape}, expected {tuple(p.shape)}"


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as in PyTorch: g = grad + weight_decay p; v = momentum v + g;
    p -= lr v, or with `nesterov` p -= lr (g + momentum v) (Sutskever et al. 2013)."""

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
        decay, momentum = float(group["weight_decay"]), float(group["momentum"])
        if decay:
            grad = grad + decay * p
        if momentum:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = array_module(p).zeros_like(p)
            velocity = state["momentum_buffer"]
            velocity *= momentum
            velocity += grad
            grad = grad + momentum * velocity if group["nesterov"] else velocity
        p -= float(group["lr"]) * grad


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1), weight decay added to the gradient, as in PyTorch."""

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
        decay = float(group["weight_decay"])
        self._adam(p, grad + decay * p if decay else grad, group, state)

    def _adam(self, p: Any, grad: Any, group: dict[str, Any], state: dict[str, Any]) -> None:
        xp = array_module(p)
        if not state:
            state.update(step=0, exp_avg=xp.zeros_like(p), exp_avg_sq=xp.zeros_like(p))
        state["step"] += 1
        beta1, beta2 = group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean += (1 - beta1) * (grad - mean)
        square *= beta2
        square += (1 - beta2) * (grad * grad)
        unbias1, unbias2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        denominator = xp.sqrt(square) / math.sqrt(unbias2) + float(group["eps"])
        p -= float(group["lr"]) / unbias1 * mean / denominator


class AdamW(Adam):
    """Adam with decoupled weight decay: p shrinks by lr * weight_decay first (Loshchilov & Hutter 2019)."""

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 1e-2):
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def update(self, p: Any, grad: Any, group: dict[str, Any], state: dict[str, Any]) -> None:
        p *= 1 - float(group["lr"]) * float(group["weight_decay"])
        self._adam(p, grad, group, state)


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """A saved group without its parameters; what JSON made a list is a tuple again."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in group.items() if k != "params"}


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
