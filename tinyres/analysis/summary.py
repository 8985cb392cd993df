"""What a network costs: parameters, multiply-adds and the bytes that forward keeps for backward, a row a layer.

One forward pass of a copy of the network is watched, nothing is calculated layer by layer: a hook on every module sees
its output, takes the nodes of the graph that were made since its inputs (its children took theirs before), and adds up
what they keep. So an op that a block calls itself, an addition or a pooling, has a row of its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinyres import nn, weights
from tinyres.graph import topological_order
from tinyres.kernels import use_kernels
from tinyres.models.blocks import PlainBlock
from tinyres.state import enable_grad
from tinyres.tensor import Tensor

COLUMNS = ("layer", "type", "output", "parameters", "multiply-adds", "kept bytes")


@dataclass(frozen=True)
class Row:
    """One call of a layer, or the ops that a module calls itself. kept_bytes: what these are the first to keep."""

    name: str
    type: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    kept_bytes: int


@dataclass(frozen=True)
class Summary:
    """The rows in the order of the calls, and their totals; a table as str().

    multiply_adds: of convolutions and linear layers in one forward pass of the batch; a backward pass costs about twice
    as much. kept_bytes: activations that wait for backward, the input included; parameters are not. which: what network
    this is, "" if its parameters' names are not a ResNet's.
    """

    rows: list[Row]
    input: tuple[int, ...]
    parameters: int
    trainable: int
    multiply_adds: int
    kept_bytes: int
    which: str

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        total = Row("total", "", self.input, self.parameters, self.multiply_adds, self.kept_bytes)
        table = [COLUMNS, *(_cells(row) for row in self.rows), _cells(total)]
        table[-1] = (*table[-1][:2], "", *table[-1][3:])
        widths = [max(len(cells[i]) for cells in table) for i in range(len(COLUMNS))]
        lines = ["  ".join(cell.ljust(w) if i < 3 else cell.rjust(w)
                           for i, (cell, w) in enumerate(zip(cells, widths, strict=True))).rstrip() for cells in table]
        rule = "-" * max(len(line) for line in lines)
        frozen = f" ({self.trainable:,} trained, the others frozen)" if self.trainable != self.parameters else ""
        heading = [self.which] if self.which else []
        heading.append(f"input {_times(self.input)}, {self.parameters:,} parameters{frozen}")
        return "\n".join([*heading, rule, lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _cells(row: Row) -> tuple[str, ...]:
    counts = (f"{n:,}" if n else "" for n in (row.parameters, row.multiply_adds, row.kept_bytes))
    return row.name, row.type, _times(row.output), *counts


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


class _Watch:
    """The hooks of one forward pass, and the rows that they make."""

    def __init__(self, model: nn.Module):
        self.rows: list[Row] = []
        self.names = {id(module): name for name, module in model.named_modules()}
        self.claimed: set[int] = set()
        self.counted: set[int] = set()
        self.kept = {_address(t.data) for t in (*model.parameters(), *model.buffers())}
        for module in model.modules():
            module.register_forward_hook(self.after)

    def after(self, module: nn.Module, args: tuple, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise TypeError(f"summary: {type(module).__name__} returned {type(output).__name__}, expected one Tensor")
        inputs = [x for x in args if isinstance(x, Tensor)]
        nodes = self._new_nodes(inputs, output)
        own = [p for p in module._parameters.values() if p is not None and id(p) not in self.counted]
        self.counted |= {id(p) for p in own}
        if nodes or own:
            leaf = not any(True for _ in module.children())
            made = type(module).__name__ if leaf else ", ".join(node.name for node in reversed(nodes))
            shape = tuple(output.shape if leaf or not nodes else nodes[0].shape)  # nodes: the last op first
            self.rows.append(Row(self.names[id(module)] or "(network)", made, shape, sum(p.data.size for p in own),
                                 _multiply_adds(module, inputs, output), sum(self._first_kept(node) for node in nodes)))

    def _new_nodes(self, inputs: list[Tensor], output: Tensor) -> list[Any]:
        """The nodes between the inputs and the output that no module inside this one made."""
        edges = frozenset(x.node for x in inputs if x.node is not None)
        order = [] if output.node is None else topological_order([output.node], edges)
        new = [n for n in order if not isinstance(n, Tensor) and n not in edges and id(n) not in self.claimed]
        self.claimed |= {id(n) for n in new}
        return new

    def _first_kept(self, node: Any) -> int:
        """Bytes of the arrays that this node keeps and that were not counted before."""
        total = 0
        for array in (saved.array for saved in node._saved or ()):
            if isinstance(array, np.ndarray) and _address(array) not in self.kept:
                self.kept.add(_address(array))
                total += array.nbytes
        return total


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _multiply_adds(module: nn.Module, inputs: list[Tensor], output: Tensor) -> int:
    """Each number of a weight matrix or kernel is used once at every position: of the output, or, where the convolution
    is transposed, of the input. Axis 0 of the weight is that side's channels."""
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim < 2:
        return 0
    side = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
    return math.prod(side.shape) // weight.shape[0] * weight.data.size


def which(model: nn.Module) -> str:
    """Which ResNet this is, in a phrase; "" if the names of its parameters are not a ResNet's."""
    state = {name: t.data for name, t in (*model.named_parameters(), *model.named_buffers())}
    found = weights.identify(state)
    if found is None:
        return ""
    plain = any(isinstance(module, PlainBlock) for module in model.modules())
    kind = "plain" if plain else "pre-activation ResNet" if "bn.weight" in state else "ResNet"
    source = "He et al. 2016" if kind.startswith("pre-") else "He et al. 2015"
    layers = 9 if "layer1.0.conv3.weight" in state else 6
    n = found.depths[0]
    form = (f"{layers}n+2 layers with n = {n}" if set(found.depths) == {n} and len(found.depths) == 3
            else f"stages of {', '.join(map(str, found.depths))} blocks")
    widths = f", {'/'.join(map(str, found.widths))} channels" if not found.name else ""
    shortcuts = ", no shortcuts" if plain else f", shortcut option {found.options['option']}"
    stem = ", CIFAR stem" if found.options.get("cifar_stem") else ""
    return f"{kind}-{found.layers} ({source}): {form}{widths}{shortcuts}{stem}"


def summary(model: nn.Module, input_shape: Sequence[int], batch: int = 1) -> Summary:
    """What a training step of `model` costs for images of shape (C, H, W), `batch` of them.

    The model itself is not touched: a copy runs once in training mode, on zeros, with NumPy kernels (no compilation).
    Raises what the model raises for an input that does not fit it.
    """
    shape = (batch, *input_shape)
    if batch < 1 or any(size < 1 for size in input_shape):
        raise ValueError(f"summary: the input has shape {shape}, expected positive sizes")
    twin = copy.deepcopy(model).to("cpu").train()
    watch = _Watch(twin)
    parameters = list(twin.parameters())
    with use_kernels("im2col"), enable_grad():
        twin(Tensor(np.zeros(shape, parameters[0].dtype if parameters else "float32")))
    rows = watch.rows
    return Summary(rows, shape, sum(p.data.size for p in parameters),
                   sum(p.data.size for p in parameters if p.requires_grad),
                   sum(row.multiply_adds for row in rows), sum(row.kept_bytes for row in rows), which(model))
