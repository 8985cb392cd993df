"""The base of all optimizers: parameters in groups, state that a checkpoint keeps, and the audit of the first step.

The rules themselves, SGD and Adam, are in optim.py. An optimizer writes into the arrays of its parameters in place and
never replaces them.
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
from tinyres.kernels.layout import array_module
from tinyres.nn.parameter import assign
from tinyres.nn.state_dict import host_array
from tinyres.operands import check_writable
from tinyres.ops.create import device_of
from tinyres.tensor import Tensor, reached_leaves

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
    A subclass checks its options in `check(group)` and writes the rule as `update(p, grad, group, state)` on arrays, or
    as `update_all`, which is given lists of them at once; `keeps` are the names in a parameter's state, None if a state
    that is loaded may have any.
    Raises ValueError for no parameters, one given twice or an option out of range; TypeError for other than leaves.
    """

    keeps: tuple[str, ...] | None = None

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if "update" in vars(cls) and "update_all" not in vars(cls):  # then what it inherits is not its rule
            cls.update_all = Optimizer.update_all  # type: ignore[method-assign]

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

    def update_all(self, params: list[Any], grads: list[Any], group: dict[str, Any],
                   states: list[dict[str, Any]]) -> None:
        """One step of several parameters of a group, all on one device: their arrays, gradients and states."""
        for p, grad, state in zip(params, grads, states, strict=True):
            self.update(p, grad, group, state)

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
            graded = [p for p in group["params"] if p.grad is not None]
            for xp in {array_module(p.data): None for p in graded}:
                params = [p for p in graded if array_module(p.data) is xp]
                for p in params:
                    p.bump(f"{self._name}.step")
                self.update_all([p.data for p in params], [p.grad.data for p in params], group,
                                [self._state_of(p) for p in params])

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        """The state of a parameter, on its device: the arrays follow where the model went."""
        state = self.state.setdefault(p, {})
        for name, value in state.items():
            if hasattr(value, "strides") and type(value) is not type(p.data) and device_of(value) != device_of(p):
                state[name] = _like(p, value)
        return state

    def _check_gradient(self, p: Tensor) -> None:
        if not isinstance(p.grad, Tensor):
            raise TypeError(f"{self._name}: the gradient of {_label(p)} must be a Tensor, got "
                            f"{type(p.grad).__name__}: wrap it in tr.tensor()")
        if p.grad.shape != p.shape or p.grad.dtype != p.dtype:
            raise ValueError(f"{self._name}: {_label(p)} is {p.dtype} {tuple(p.shape)}, its gradient "
                             f"{p.grad.dtype} {tuple(p.grad.shape)}: call zero_grad() after changing a model")
        if type(p.grad.data) is not type(p.data) and device_of(p.grad) != device_of(p):
            raise ValueError(f"{self._name}: {_label(p)} is on {device_of(p)}, its gradient on {device_of(p.grad)}: "
                             "call zero_grad() after moving a model")
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
            self.state.setdefault(p, {})[name] = value if isinstance(value, int) else _like(p, value)

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
        kept: dict[int, set[str]] = {}
        for key, value in (*arrays.items(), *scalars["counters"].items()):
            position, name = key.split(".")
            i = int(position)
            if not 0 <= i < len(params):
                yield f"it has {key} of {len(params)} parameters"
                continue
            kept.setdefault(i, set()).add(name)
            if key in arrays and value.shape != params[i].shape:
                yield f"{key} ({_label(params[i])}) has shape {value.shape}, expected {tuple(params[i].shape)}"
            if key not in arrays and not (isinstance(value, int) and 0 <= value < 2**63):
                yield f"{key} ({_label(params[i])}) is {value!r}, expected a count of steps"
        for i, names in kept.items():
            if self.keeps is not None and names != set(self.keeps):
                yield f"of {_label(params[i])} it has {', '.join(sorted(names))}, expected {', '.join(self.keeps)}"


def _like(p: Tensor, value: Any) -> Any:
    """A copy of an array of p's shape on p's device, with p's dtype and memory order."""
    buffer = Tensor(array_module(p.data).empty_like(p.data))
    assign(buffer, host_array(value), "load_state_dict")
    return buffer.data


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """A saved group without its parameters; what JSON made a list is a tuple again."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in group.items() if k != "params"}
