"""Full backward hooks of a module: its gradients at the output and at the inputs, seen (and replaced) by a function.

An identity op goes in front of the module and one behind it. The gradient that reaches the output's identity is
`grad_output`; the one that reaches the input's, when every use inside the module has contributed, is `grad_input`.
The engine's own tensor hooks do the watching; nothing here walks the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinyres import ops
from tinyres.tensor import Tensor


def _tracked(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _as_tensor(grad: Any) -> Tensor:
    return grad if isinstance(grad, Tensor) else Tensor(grad)


class BackwardWatch:
    """One call of a module whose backward hooks want to know what flows through it.

    `inputs(args)` and `outputs(result)` put the identities in place. The hooks run once per backward pass, when the
    gradients of all inputs that want one are complete; when no input wants one, as soon as the output's gradient is.
    An input that the module does not use never completes, and then the hooks do not run.
    """

    def __init__(self, module: Any, hooks: list[Callable]):
        self.module, self.hooks = module, list(hooks)
        self.wanted: list[int] = []
        self.grad_input: dict[int, Any] = {}
        self.grad_output: dict[int, Any] = {}
        self.outputs_wanted: list[int] = []
        self.counts = (0, 0)

    def inputs(self, args: tuple) -> tuple:
        self.wanted = [i for i, a in enumerate(args) if _tracked(a)]
        watched = [ops.alias(a) if i in self.wanted else a for i, a in enumerate(args)]
        self.counts = (len(args), 0)
        for i in self.wanted:
            watched[i].register_hook(lambda grad, i=i: self._input_arrived(i, grad))
        return tuple(watched)

    def outputs(self, result: Any) -> Any:
        several = isinstance(result, (tuple, list))
        parts = list(result) if several else [result]
        self.counts = (self.counts[0], len(parts))
        self.outputs_wanted = [i for i, part in enumerate(parts) if _tracked(part)]
        for i in self.outputs_wanted:
            parts[i] = ops.alias(parts[i])
            parts[i].register_hook(lambda grad, i=i: self._output_arrived(i, grad))
        return (parts if isinstance(result, list) else tuple(parts)) if several else parts[0]

    def _output_arrived(self, i: int, grad: Any) -> None:
        if i in self.grad_output:  # a new pass; the one before was abandoned or asked for other inputs
            self.grad_output, self.grad_input = {}, {}
        self.grad_output[i] = grad
        if not self.wanted and len(self.grad_output) == len(self.outputs_wanted):
            self._run()

    def _input_arrived(self, i: int, grad: Any) -> Any:
        self.grad_input[i] = grad
        return self._run() if len(self.grad_input) == len(self.wanted) else None

    def _run(self) -> Any:
        """Call the hooks; return the gradient that replaces the one that has just arrived, or None."""
        grad_input = tuple(_as_tensor(self.grad_input[i]) if i in self.grad_input else None
                           for i in range(self.counts[0]))
        grad_output = tuple(_as_tensor(self.grad_output[i]) if i in self.grad_output else None
                            for i in range(self.counts[1]))
        before = grad_input
        for hook in self.hooks:
            replaced = hook(self.module, grad_input, grad_output)
            if replaced is not None:
                grad_input = self._checked(replaced, grad_input)
        self.grad_input, self.grad_output = {}, {}
        return grad_input[self.wanted[0]] if grad_input is not before and self.wanted else None

    def _checked(self, replaced: Any, grad_input: tuple) -> tuple:
        replaced = replaced if isinstance(replaced, tuple) else (replaced,)
        name = type(self.module).__name__
        if len(replaced) != len(grad_input):
            raise ValueError(f"{name}'s full backward hook returned {len(replaced)} gradients for {len(grad_input)} "
                             "inputs: return one for each positional argument, or None to change nothing")
        if len(self.wanted) > 1:
            raise ValueError(f"{name}'s full backward hook returned gradients for {len(self.wanted)} inputs, which "
                             "were handed on at different times: replace them with Tensor.register_hook on each input")
        return tuple(None if old is None else _as_tensor(new) for new, old in zip(replaced, grad_input, strict=True))
