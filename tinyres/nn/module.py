"""Module: a node in a tree of named parameters, buffers and submodules, with a forward.

Assigning an attribute registers it: a Parameter, a Module, or a buffer that was named with register_buffer. Everything
keeps the order in which it was assigned first, so names, state and optimizers have the same order in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tinyres.graph import Handle
from tinyres.nn.hooks import BackwardWatch
from tinyres.nn.options import float_dtype
from tinyres.nn.parameter import Parameter
from tinyres.nn.state_dict import LoadResult, entries, host_array, load
from tinyres.ops.create import astype, to
from tinyres.state import state
from tinyres.tensor import Tensor

REGISTRIES = ("_parameters", "_buffers", "_modules")


def _is_array(value: Any) -> bool:
    return not isinstance(value, Tensor) and hasattr(value, "strides") and hasattr(value, "ndim")


class Module:
    """Base class of layers and networks: assign parts in __init__ after super().__init__(), define forward.

    `module(x)` runs the hooks and forward; raw arrays among the arguments are wrapped as Tensors first.
    """

    training: bool
    optional_state: tuple[str, ...] = ()  # entries of this module's own state that load_state_dict does without

    def __init__(self) -> None:
        vars(self).update(training=True, _parameters={}, _buffers={}, _modules={}, _transient=set(),
                          _pre_hooks=[], _forward_hooks=[], _backward_hooks=[])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward: define forward(self, x)")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args = tuple(Tensor(a) if _is_array(a) else a for a in args)
        kwargs = {name: Tensor(a) if _is_array(a) else a for name, a in kwargs.items()}
        for hook in tuple(self._pre_hooks):
            changed = hook(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        watch = None
        if self._backward_hooks:
            watch = BackwardWatch(self, self._backward_hooks)
            args = watch.inputs(args)
        if state.calls is not None:
            state.calls.enter(self, args)
        result = self.forward(*args, **kwargs)
        if state.calls is not None:
            result = state.calls.leave(self, result)
        for hook in tuple(self._forward_hooks):
            changed = hook(self, args, result)
            result = result if changed is None else changed
        return result if watch is None else watch.outputs(result)

    # --- attributes ---------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Parameter):
            self.register_parameter(name, value)
        elif isinstance(value, Module):
            self.register_module(name, value)
        elif name in vars(self).get("_buffers", ()):
            self.register_buffer(name, value, persistent=name not in self._transient)
        elif name in vars(self).get("_parameters", ()) or name in vars(self).get("_modules", ()):
            kind = "Parameter" if name in self._parameters else "Module"
            if value is not None:
                raise TypeError(f"{type(self).__name__}.{name} is a {kind}, got {type(value).__name__}: assign a "
                                f"{kind} or None, or delete the attribute first")
            (self._parameters if kind == "Parameter" else self._modules)[name] = None
        else:
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        for registry in REGISTRIES:
            if name in own.get(registry, ()):
                return own[registry][name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'", name=name, obj=self)

    def __delattr__(self, name: str) -> None:
        for registry in REGISTRIES:
            if vars(self).get(registry, {}).pop(name, self) is not self:
                self._transient.discard(name)
                return
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(name for r in REGISTRIES for name in vars(self).get(r, {}))})

    def _register(self, registry: str, name: str, value: Any) -> None:
        """Put `value` into one registry under a valid name, out of the others; a name keeps its first place."""
        if "_parameters" not in vars(self):
            raise AttributeError(f"{type(self).__name__}: call super().__init__() before assigning '{name}'")
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"{type(self).__name__}: a name must be a non-empty string without dots, got {name!r}")
        if hasattr(type(self), name):
            raise ValueError(f"{type(self).__name__}.{name} is already a method or attribute of the class: choose "
                             "another name")
        vars(self).pop(name, None)
        for other in REGISTRIES:
            if other != registry:
                vars(self)[other].pop(name, None)
        vars(self)[registry][name] = value

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Add a Parameter under `name`, as assigning it does; None keeps the place. Raises TypeError otherwise."""
        if parameter is not None and not isinstance(parameter, Parameter):
            raise TypeError(f"{type(self).__name__}: parameter '{name}': expected a Parameter or None, got "
                            f"{type(parameter).__name__}: wrap it with nn.Parameter(...)")
        self._register("_parameters", name, parameter)

    def register_module(self, name: str, module: Module | None) -> None:
        """Add a submodule under `name`, as assigning it does; None keeps the place. Raises TypeError otherwise."""
        if module is not None and not isinstance(module, Module):
            fix = f"make one of it: {module.__name__}(...)" if isinstance(module, type) else \
                "give modules one by one, or unpack with *" if isinstance(module, (list, tuple)) else \
                "write a Module for a function, as nn.ReLU is for tr.relu"
            raise TypeError(f"{type(self).__name__}: module '{name}': expected a Module or None, got "
                            f"{type(module).__name__}: {fix}")
        self._register("_modules", name, module)

    add_module = register_module

    def register_buffer(self, name: str, value: Any, persistent: bool = True) -> None:
        """Add state that is not trained: an array, or a Tensor that requires no gradient, or None.

        It moves with to() and astype(), and is part of state_dict() if `persistent`. Raises TypeError otherwise.
        """
        value = Tensor(value) if _is_array(value) else value
        if value is not None and (not isinstance(value, Tensor) or value.requires_grad):
            got = type(value).__name__ + (" that requires a gradient" if isinstance(value, Tensor) else "")
            raise TypeError(f"{type(self).__name__}: buffer '{name}' must be an array or a Tensor without gradient, or "
                            f"None, got {got}: use a Parameter for what is trained, detach() for what is not")
        self._register("_buffers", name, value)
        (self._transient.discard if persistent else self._transient.add)(name)

    # --- the tree -----------------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the direct submodules, each module once."""
        seen: set[int] = set()
        for name, module in self._modules.items():
            if module is not None and id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def children(self) -> Iterator[Module]:
        """The direct submodules, each once."""
        return (module for _, module in self.named_children())

    def named_modules(self, prefix: str = "", _seen: set[int] | None = None) -> Iterator[tuple[str, Module]]:
        """(dotted name, module) of this module (named by `prefix`) and of all below it, each module once."""
        seen = set() if _seen is None else _seen
        if id(self) not in seen:
            seen.add(id(self))
            yield prefix, self
            for name, module in self._modules.items():
                if module is not None:
                    yield from module.named_modules(f"{prefix}.{name}" if prefix else name, seen)

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        return (module for _, module in self.named_modules())

    def _named(self, registry: str, prefix: str) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for owner, module in self.named_modules(prefix):
            for name, tensor in vars(module)[registry].items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{owner}.{name}" if owner else name, tensor

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter) in order; a shared one comes once, under its first name, which it takes as .name."""
        for name, parameter in self._named("_parameters", prefix):
            parameter.rename(name)
            yield name, parameter

    def parameters(self) -> Iterator[Parameter]:
        """The parameters of this module and all below it, in order, each once."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """(dotted name, buffer) of this module and all below it, in order, each once."""
        return self._named("_buffers", prefix)

    def buffers(self) -> Iterator[Tensor]:
        """The buffers of this module and all below it, in order, each once."""
        return (buffer for _, buffer in self.named_buffers())

    def get_submodule(self, name: str) -> Module:
        """The module under a dotted name ("layer1.0.conv1"; "" is this one). Raises AttributeError naming the part."""
        module = self
        for part in name.split(".") if name else ():
            if part not in module._modules:
                raise AttributeError(f"get_submodule('{name}'): {type(module).__name__} has no submodule '{part}', "
                                     f"only {', '.join(module._modules) or 'none'}")
            module = module._modules[part]
        return module

    # --- what is done to the whole tree ---------------------------------------------------------------------------

    def apply(self, function: Callable[[Module], Any]) -> Module:
        """Call `function(module)` on every module, children first, this one last; returns self."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def train(self, mode: bool = True) -> Module:
        """Set the training mode (batch norm and dropout depend on it) of the whole tree; returns self.

        Raises TypeError for other than True or False: train("eval") would otherwise mean training.
        """
        if not isinstance(mode, (bool, np.bool_)):
            raise TypeError(f"{type(self).__name__}.train: mode must be True or False, got {mode!r}: use eval() to "
                            "evaluate")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Set the evaluation mode of the whole tree; returns self."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Freeze (False) or free (True) every parameter; returns self."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Set every parameter's gradient to None."""
        for parameter in self.parameters():
            parameter.grad = None

    def _convert(self, convert: Callable[[Tensor], Tensor], writer: str) -> Module:
        for tensor in (*self.parameters(), *self.buffers()):
            tensor.data = convert(tensor.detach()).data
            tensor.bump(writer)
            if tensor.grad is not None:
                tensor.grad = convert(tensor.grad.detach())
        return self

    def to(self, device: str) -> Module:
        """Move parameters, their gradients and buffers to "cpu" or "cuda"; returns self.

        The Parameter objects stay, so an optimizer keeps them; its own state follows at its next step.
        """
        return self._convert(lambda t: to(t, device), "to")

    def astype(self, dtype: Any) -> Module:
        """Convert float parameters, their gradients and float buffers to a float dtype; returns self."""
        float_dtype(f"{type(self).__name__}.astype", dtype)
        return self._convert(lambda t: astype(t, dtype) if t.dtype.kind == "f" else t, "astype")

    def float(self) -> Module:
        """Convert to float32; returns self."""
        return self.astype("float32")

    def double(self) -> Module:
        """Convert to float64; returns self."""
        return self.astype("float64")

    # --- state --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """Dotted name -> a C-contiguous numpy copy of each parameter and persistent buffer, in order.

        Copies: training on does not change a state that was taken. A shared parameter comes under each of its names.
        """
        return {name: np.array(host_array(t), order="C") for name, t, _ in entries(self)}

    def load_state_dict(self, given: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy arrays (or tensors, also another library's) by name into this module's own arrays.

        Layout, device and dtype of the module stay: floats are cast to its float dtype, as in PyTorch; a float for an
        integer is an error. A state from before BatchNorm counted its batches may lack num_batches_tracked.
        Returns (missing, unexpected) names. Raises ValueError that lists everything missing, unexpected and mis-shaped
        at once, and then nothing was loaded; strict=False lets names be missing or unexpected, but not mis-shaped.
        """
        return load(self, given, strict)

    # --- hooks --------------------------------------------------------------------------------------------------

    def register_forward_pre_hook(self, hook: Callable) -> Handle:
        """Call hook(module, args) before forward; what it returns, if anything, replaces the positional arguments."""
        return Handle(self._pre_hooks, hook)

    def register_forward_hook(self, hook: Callable) -> Handle:
        """Call hook(module, args, output) after forward; what it returns, if anything, replaces the output."""
        return Handle(self._forward_hooks, hook)

    def register_full_backward_hook(self, hook: Callable) -> Handle:
        """Call hook(module, grad_input, grad_output) in each backward pass, when the inputs' gradients are complete.

        Both are tuples, one entry for each positional argument and each output; None where no gradient is wanted.
        With one input that wants a gradient, what the hook returns, if anything, replaces grad_input.
        """
        return Handle(self._backward_hooks, hook)

    # --- text ---------------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What a layer adds to its line in the printed tree."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): " + repr(module).replace("\n", "\n  ") for name, module in self._modules.items()]
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        body = "\n  ".join([extra, *lines] if extra else lines)
        return f"{type(self).__name__}(\n  {body}\n)"
