"""Parameter: the tensor that a Module lists and an optimizer steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyres.ops.create import device_of, to
from tinyres.tensor import Tensor


class Parameter(Tensor):
    """A leaf tensor that becomes part of a Module when it is assigned to one.

    data: a float array, wrapped without a copy, or a Tensor, whose array is wrapped; requires_grad as in Tensor.
    `.name` is the dotted name under which a module listed it last ("layer1.0.conv1.weight"), None before that; the
    optimizer's audit and error messages use it.
    """

    def __init__(self, data: Any, requires_grad: bool = True):
        super().__init__(data.data if isinstance(data, Tensor) else data, requires_grad)
        self.name: str | None = None

    def __deepcopy__(self, memo: dict) -> Parameter:
        """A new leaf with copied values in the same memory layout; as in PyTorch the gradient is not copied."""
        out = memo[id(self)] = type(self)(self.data.copy(order="K"), self.requires_grad)
        out.name = self.name
        return out

    def __repr__(self) -> str:
        return f"Parameter({self.name or ''}{' ' if self.name else ''}{self.dtype} {tuple(self.shape)})"

    def rename(self, name: str) -> None:
        """Take the dotted name under which a module lists this parameter.

        A submodule knows only the end of the name: the longer of two names that fit each other stays.
        """
        if self.name is None or not f".{self.name}".endswith(f".{name}"):
            self.name = name


def assign(t: Tensor, values: Any, writer: str) -> None:
    """Write a host array into `t.data`, keeping its memory layout, dtype and device; `writer` is noted as the one."""
    values = np.asarray(values).astype(t.dtype, copy=False)
    device = device_of(t)
    t.data[...] = values if device == "cpu" else to(Tensor(values), device).data
    t.bump(writer)
