"""Gradients as values: `grad` returns them instead of filling `.grad`, `hvp` differentiates them once more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyres.graph import exhaust
from tinyres.kernels import layout
from tinyres.operands import type_name
from tinyres.tensor import Tensor, own, walk


def grad(outputs: Tensor | Sequence[Tensor], inputs: Tensor | Sequence[Tensor], grad_outputs: Any = None, *,
         retain_graph: bool | None = None, create_graph: bool = False,
         allow_unused: bool = False) -> tuple[Tensor | None, ...]:
    """The derivatives of `outputs` with respect to `inputs` (leaves or interior tensors), one per input.

    grad_outputs: the weights of the outputs, arrays or Tensors of their shapes; 1 for single elements. The walk visits
    only what lies between. `.grad` is not touched. Raises RuntimeError for an input that does not require a gradient,
    or that no output depends on (with `allow_unused` its gradient is None).
    """
    outputs, inputs = _as_list(outputs), _as_list(inputs)
    for name, given in (("output", outputs), ("input", inputs)):
        for i, x in enumerate(given):
            if not isinstance(x, Tensor):
                raise TypeError(f"grad: {name} {i} must be a Tensor, got {type_name(x)}: wrap it in tr.tensor(x, "
                                "requires_grad=True) before the forward pass")
    grads = [None] * len(outputs) if grad_outputs is None else _as_list(grad_outputs)
    if len(grads) != len(outputs):
        raise ValueError(f"grad: {len(outputs)} outputs but {len(grads)} grad_outputs: give one an output, of its "
                         "shape")
    for i, x in enumerate(inputs):
        if x.edge is None:
            raise RuntimeError(f"grad: input {i} of shape {x.shape} does not require a gradient; set "
                               "requires_grad=True before the forward pass")
    wanted = {x.edge for x in inputs}
    retain = create_graph if retain_graph is None else retain_graph
    found = exhaust(walk(outputs, grads, wanted, retain, create_graph))
    for i, x in enumerate(inputs):
        if x.edge not in found and not allow_unused:
            raise RuntimeError(f"grad: no output depends on input {i} of shape {x.shape}; pass allow_unused=True to "
                               "get None for it")
    return tuple(own(found[x.edge]) if x.edge in found else None for x in inputs)


def hvp(output: Tensor, inputs: Sequence[Tensor], vectors: Sequence[Any]) -> tuple[Tensor, ...]:
    """The Hessian of `output` (a single element) with respect to `inputs`, times `vectors`, without forming it.

    Two backward passes (Pearlmutter 1994): the gradient with create_graph, then the gradient of <gradient, vectors>.
    vectors: arrays or Tensors of the inputs' shapes. Returns one Tensor per input; zero where the gradient is constant.
    """
    inputs, vectors = _as_list(inputs), _as_list(vectors)
    if len(inputs) != len(vectors):
        raise ValueError(f"hvp: {len(inputs)} inputs but {len(vectors)} vectors: give one an input, of its shape")
    first = grad(output, inputs, create_graph=True, retain_graph=True, allow_unused=True)
    pairs = [(g, v) for g, v in zip(first, vectors, strict=True) if g is not None and g.requires_grad]
    second: Sequence[Tensor | None] = [None] * len(inputs)
    if pairs:
        second = grad([g for g, _ in pairs], inputs, [v for _, v in pairs], allow_unused=True, retain_graph=True)
    zeros = [layout.array_module(x.data).zeros_like(x.data) for x in inputs]
    return tuple(Tensor(z) if h is None else h for z, h in zip(zeros, second, strict=True))


def _as_list(x: Any) -> list[Any]:
    return list(x) if isinstance(x, (list, tuple)) or (not hasattr(x, "data") and hasattr(x, "__iter__")) else [x]
