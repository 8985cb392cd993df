"""What a network costs: parameters, multiply-adds and the bytes that forward keeps for backward, a row a layer.

One forward pass of a copy of the network is watched, nothing is calculated layer by layer: a hook on every module sees
its output, takes the nodes of the graph that were made since its inputs (its children took theirs before), and adds up
what they keep. So an op that a block calls itself, an addition or a pooling, has a row of its own. A parameter that
several calls use is counted at the first; at the others the row says that it is shared.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinyres import nn, random
from tinyres.analysis.which import published_costs, which
from tinyres.graph import topological_order
from tinyres.kernels import use_kernels
from tinyres.models.stochastic_depth import StochasticBasicBlock
from tinyres.ops.conv import Conv2d, Conv2dInputGrad
from tinyres.ops.linear import Matmul
from tinyres.state import enable_grad
from tinyres.tensor import Tensor

COLUMNS = ("layer", "type", "output", "parameters", "multiply-adds", "kept bytes")
SHARED = "(shared)"  # in the place of a number of parameters


@dataclass(frozen=True)
class Row:
    """One call of a layer, or the ops that a module calls itself. kept_bytes: what these are the first to keep.

    shared: it uses parameters of its own that an earlier row counts.
    """

    name: str
    type: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    kept_bytes: int
    shared: bool = False


@dataclass(frozen=True)
class Summary:
    """The rows in the order of the calls, and their totals; a table as str().

    multiply_adds: of convolutions and linear layers in one forward pass of the batch; a backward pass costs about twice
    as much. kept_bytes: activations that wait for backward, the input included; parameters are not. which: what network
    this is, "" if it is none of tinyres.models. published: what papers print of this very network, a sentence each.
    """

    rows: list[Row]
    input: tuple[int, ...]
    parameters: int
    trainable: int
    multiply_adds: int
    kept_bytes: int
    which: str
    published: tuple[str, ...] = ()

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
        shared = ", shared ones counted once" if any(row.shared for row in self.rows) else ""
        heading.append(f"input {_times(self.input)}, {self.parameters:,} parameters{frozen}{shared}")
        heading += [f"published: {text}" for text in self.published]
        return "\n".join([*heading, rule, lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _cells(row: Row) -> tuple[str, ...]:
    parameters, *costs = (f"{n:,}" if n else "" for n in (row.parameters, row.multiply_adds, row.kept_bytes))
    if row.shared:
        parameters = f"{parameters} {SHARED}".strip()
    return row.name, row.type, _times(row.output), parameters, *costs


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
        outputs = list(output) if isinstance(output, (tuple, list)) else [output]
        strange = next((x for x in outputs if not isinstance(x, Tensor)), None)
        if strange is not None or not outputs:
            raise TypeError(f"summary: {type(module).__name__} returned {type(strange).__name__}, expected a Tensor or "
                            "a tuple of Tensors")
        inputs = [x for x in _flat(args) if isinstance(x, Tensor)]
        nodes = self._new_nodes(inputs, outputs)
        parameters = [p for p in module._parameters.values() if p is not None]
        own = [p for p in parameters if id(p) not in self.counted]
        self.counted |= {id(p) for p in own}
        if nodes or own:
            leaf = not any(True for _ in module.children())
            made = type(module).__name__ if leaf else ", ".join(node.name for node in reversed(nodes))
            shape = tuple(outputs[0].shape if leaf or not nodes else nodes[0].shape)  # nodes: the last op first
            self.rows.append(Row(self.names[id(module)] or "(network)", made, shape, sum(p.data.size for p in own),
                                 _multiply_adds(module, inputs, outputs[0], nodes),
                                 sum(self._first_kept(node) for node in nodes), len(own) < len(parameters)))

    def _new_nodes(self, inputs: list[Tensor], outputs: list[Tensor]) -> list[Any]:
        """The nodes between the inputs and the outputs that no module inside this one made."""
        edges = frozenset(x.node for x in inputs if x.node is not None)
        order = topological_order([x.node for x in outputs if x.node is not None], edges)
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


def _flat(args: Any) -> Iterator[Any]:
    for x in args:
        if isinstance(x, (tuple, list)):
            yield from _flat(x)
        else:
            yield x


def _multiply_adds(module: nn.Module, inputs: list[Tensor], output: Tensor, nodes: Sequence[Any]) -> int:
    """Each number of a weight matrix or kernel is used once at every position: of the output, or, where the convolution
    is transposed, of the input. Axis 0 of the weight is that side's channels.

    A module without a `weight` is asked through its nodes: convolutions and products with a parameter.
    """
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim < 2:
        return sum(_of_node(node) for node in nodes)
    side = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
    return math.prod(side.shape) // weight.shape[0] * weight.data.size


def _of_node(node: Any) -> int:
    """Multiply-adds of a convolution, transposed convolution or matrix product whose second factor is a parameter."""
    if not isinstance(node, (Conv2d, Conv2dInputGrad, Matmul)):
        return 0
    at = node.edges[1]
    while at is not None and not isinstance(at, Tensor) and len(at.edges) == 1:  # transposed, in another memory order
        at = at.edges[0]
    if not isinstance(at, Tensor):
        return 0
    first, second = (saved.array for saved in node._saved)
    if isinstance(node, Matmul):
        return math.prod(node.shape) * first.shape[-1]
    return math.prod(node.shape if isinstance(node, Conv2d) else first.shape) // second.shape[0] * second.size


def summary(model: nn.Module, input_shape: Sequence[int], batch: int = 1, name: str = "") -> Summary:
    """What a training step of `model` costs for images of shape (C, H, W), or rows of shape (C,), `batch` of them.

    name: that with which models.build makes the network, where it is known; it then stands in front of `which`, and is
    looked up among the papers' numbers. Where the model itself tells that it is a ResNet of a paper, no name is needed.

    The model itself is not touched, nor the library's random state: a copy runs once in training mode, on zeros, with
    NumPy kernels (no compilation). With stochastic depth it is a step in which every branch survives.
    Raises what the model raises for an input that does not fit it.
    """
    shape = (batch, *input_shape)
    if batch < 1 or any(size < 1 for size in input_shape):
        raise ValueError(f"summary: the input has shape {shape}, expected positive sizes")
    twin = copy.deepcopy(model).to("cpu").train()
    for module in twin.modules():
        if isinstance(module, StochasticBasicBlock):
            module.training = False  # the block's own draw, not its batch norms'
    watch = _Watch(twin)
    parameters = list(twin.parameters())
    drawn = random.get_state()
    try:
        with use_kernels("im2col"), enable_grad():
            twin(Tensor(np.zeros(shape, parameters[0].dtype if parameters else "float32")))
    finally:
        random.set_state(drawn)
    rows = watch.rows
    found = which(model)
    return Summary(rows, shape, sum(p.data.size for p in parameters),
                   sum(p.data.size for p in parameters if p.requires_grad),
                   sum(row.multiply_adds for row in rows), sum(row.kept_bytes for row in rows),
                   f"{name}: {found}" if name and found else name or found,
                   published_costs(model, shape, name))
