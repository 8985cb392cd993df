"""Each op of a traced forward pass in ONNX's words: one small function an op, and the graph that they build.

An Add that only brings a convolution's or a linear layer's bias becomes that node's bias, a sum divided by its count a
ReduceMean: what a reader of the graph expects to see. Nodes that nothing uses are left out at the end.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyres.onnx_trace import ExportError, Step, Trace, Value
from tinyres.ops import broadcast, conv, conv_bias, create, elementwise, linear, norm, pool, reduce, shape
from tinyres.tensor import Function, Tensor

LAST = {False: 2**63 - 1, True: -(2**63)}  # the end of a whole slice, and of a whole slice backwards


@dataclass(eq=False)
class Node:
    """A node to be: its inputs are Nodes, Values or None (left out). axes become an input or an attribute, as the
    opset wants it."""

    type: str
    inputs: list[Any]
    attributes: dict[str, Any]
    step: Step
    axes: list[int] | None = None
    name: str = ""


Made = Any  # a Node or a Value
TRANSLATIONS: dict[type[Function], Callable[[Graph, Step], Made]] = {}


@dataclass
class Graph:
    """The nodes of a trace and what became of each Value; filled by `translate`."""

    opset: int
    nodes: list[Node] = field(default_factory=list)
    made: dict[Value, Made] = field(default_factory=dict)

    def node(self, step: Step, type: str, *inputs: Any, axes: list[int] | None = None, **attributes: Any) -> Node:
        """A new node; the inputs may be Nodes, Values and arrays."""
        given = [Value(x.shape, x.dtype, array=x) if isinstance(x, np.ndarray) else x for x in inputs]
        self.nodes.append(Node(type, given, attributes, step, axes))
        return self.nodes[-1]

    def input(self, step: Step, i: int) -> Made:
        """Input i of a step; a Python number becomes a constant of the output's dtype."""
        x = step.inputs[i]
        if isinstance(x, Value):
            return self.made.get(x, x)
        return None if x is None else Value((), step.output.dtype, array=np.asarray(x, step.output.dtype))

    def inputs(self, step: Step) -> list[Made]:
        return [self.input(step, i) for i in range(len(step.inputs))]

    def only(self, step: Step, i: int, *types: str) -> Node | None:
        """The node behind input i, if it is of one of these types and nothing else uses what it gives."""
        x = step.inputs[i]
        node = self.input(step, i)
        alone = isinstance(x, Value) and step.uses.get(x) == 1
        return node if alone and isinstance(node, Node) and node.type in types else None


def translate(trace: Trace, opset: int) -> tuple[Graph, Made]:
    """The graph of a trace, nodes in order and only those that the output needs, and what its output is.

    Raises ExportError for an op that has no translation.
    """
    graph = Graph(opset)
    for step in trace.steps:
        rule = next((TRANSLATIONS[base] for base in step.op.__mro__ if base in TRANSLATIONS), None)
        if rule is None:
            raise ExportError(f"export_onnx: {step} has no translation to ONNX; there is one for "
                              f"{', '.join(sorted(op.name for op in TRANSLATIONS))}")
        graph.made[step.output] = rule(graph, step)
    output = graph.made.get(trace.output, trace.output)
    needed, stack = set(), [output]
    while stack:
        at = stack.pop()
        if isinstance(at, Node) and at not in needed:
            needed.add(at)
            stack += at.inputs
    graph.nodes = [node for node in graph.nodes if node in needed]
    return graph, output


def translates(*ops: type[Function]) -> Callable:
    """Decorator: this function is the translation of these ops and of their in-place forms."""
    def register(rule: Callable) -> Callable:
        TRANSLATIONS.update(dict.fromkeys(ops, rule))
        return rule
    return register


def _refused(step: Step, why: str) -> ExportError:
    return ExportError(f"export_onnx: {step} cannot be written as ONNX: {why}")


def _ints(values: Any) -> np.ndarray:
    return np.asarray(list(values), np.int64)


# --- element by element -----------------------------------------------------------------------------------------------

SAME_NAME = {elementwise.Sub: "Sub", elementwise.Div: "Div", elementwise.Pow: "Pow", elementwise.Maximum: "Max",
             elementwise.Minimum: "Min", elementwise.Where: "Where", elementwise.Neg: "Neg", elementwise.Exp: "Exp",
             elementwise.Log: "Log", elementwise.Sqrt: "Sqrt", elementwise.Tanh: "Tanh",
             elementwise.Sigmoid: "Sigmoid", elementwise.Abs: "Abs", elementwise.Relu: "Relu"}


@translates(*SAME_NAME)
def _same_name(graph: Graph, step: Step) -> Made:
    type = next(SAME_NAME[base] for base in step.op.__mro__ if base in SAME_NAME)
    return graph.node(step, type, *graph.inputs(step))


@translates(elementwise.Add)
def _add(graph: Graph, step: Step) -> Made:
    for i, j in ((0, 1), (1, 0)):
        layer, bias = graph.only(step, i, "Conv", "ConvTranspose", "Gemm"), _bias(step.inputs[j])
        if layer is not None and len(layer.inputs) == 2 and bias is not None:
            channels = layer.inputs[1].shape[int(layer.type == "ConvTranspose")] * layer.attributes.get("group", 1) \
                if layer.type == "ConvTranspose" else layer.inputs[1].shape[0]
            across = isinstance(step.inputs[j], Value) and step.inputs[j].step is not None  # reshaped to (1, K, 1, 1)
            if bias.shape == (channels,) and across == (layer.type != "Gemm"):
                layer.inputs.append(bias)
                return layer
    return graph.node(step, "Add", *graph.inputs(step))


def _bias(x: Any) -> Value | None:
    """The 1-D parameter that is added, as it is or reshaped to (1, K, 1, 1)."""
    made = x.step if isinstance(x, Value) else None
    if made is not None and made.op is shape.Reshape and made.options["shape"] == (1, math.prod(x.shape), 1, 1):
        x = made.inputs[0]
    return x if isinstance(x, Value) and x.array is not None and len(x.shape) == 1 else None


@translates(elementwise.Mul)
def _mul(graph: Graph, step: Step) -> Made:
    for i, j in ((0, 1), (1, 0)):
        total, factor = graph.only(step, i, "ReduceSum"), step.inputs[j]
        if total is not None and isinstance(factor, float) and -1 not in total.step.inputs[0].shape[1:]:
            x = total.step.inputs[0]
            if 0 not in (total.axes or [0]) and math.isclose(factor * math.prod(x.shape[a] for a in total.axes), 1.0):
                total.type = "ReduceMean"
                return total
    return graph.node(step, "Mul", *graph.inputs(step))


# --- sums and extremes ------------------------------------------------------------------------------------------------


@translates(broadcast.SumTo)
def _sum_to(graph: Graph, step: Step) -> Made:
    x, to = step.inputs[0], step.options["shape"]
    lead = len(x.shape) - len(to)
    axes = [*range(lead), *(lead + i for i, n in enumerate(to) if n == 1 and x.shape[lead + i] != 1)]
    total = graph.node(step, "ReduceSum", graph.input(step, 0), axes=axes, keepdims=1)
    return graph.node(step, "Squeeze", total, axes=list(range(lead))) if lead else total


@translates(reduce.Amax)
def _amax(graph: Graph, step: Step) -> Made:
    return graph.node(step, "ReduceMax", graph.input(step, 0), axes=list(step.options["dims"]), keepdims=1)


@translates(reduce.LogSoftmax)
def _log_softmax(graph: Graph, step: Step) -> Made:
    return graph.node(step, "LogSoftmax", graph.input(step, 0), axis=step.options["dim"])


# --- shapes -----------------------------------------------------------------------------------------------------------


@translates(shape.Reshape)
def _reshape(graph: Graph, step: Step) -> Made:
    to, x = step.options["shape"], step.inputs[0]
    if to == x.shape:
        return graph.input(step, 0)  # alias
    total = graph.only(step, 0, "ReduceSum", "ReduceMean", "ReduceMax")
    if total is not None and total.attributes["keepdims"]:
        if to == tuple(n for i, n in enumerate(x.shape) if i not in (total.axes or ())):
            total.attributes["keepdims"] = 0
            return total
    if to.count(-1) > 1:
        raise _refused(step, f"the number of images decides several lengths of {to}; keep it to one dimension")
    return graph.node(step, "Reshape", graph.input(step, 0), _ints(to))


@translates(shape.Permute)
def _permute(graph: Graph, step: Step) -> Made:
    return graph.node(step, "Transpose", graph.input(step, 0), perm=list(step.options["dims"]))


@translates(shape.ChannelsLast)
def _channels_last(graph: Graph, step: Step) -> Made:
    return graph.input(step, 0)


@translates(shape.Concat)
def _concat(graph: Graph, step: Step) -> Made:
    return graph.node(step, "Concat", *graph.inputs(step), axis=step.options["dim"])


@translates(shape.Pad)
def _pad(graph: Graph, step: Step) -> Made:
    x, before = step.inputs[0], step.options["before"]
    after = [0 if n == -1 else n - b - m for n, b, m in zip(step.options["shape"], before, x.shape, strict=True)]
    if -1 in step.options["shape"] and before[step.options["shape"].index(-1)]:
        raise _refused(step, "it pads the batch; pad the images only")
    value = np.asarray(step.options["value"], x.dtype)
    return graph.node(step, "Pad", graph.input(step, 0), _ints([*before, *after]), value, mode="constant")


@translates(broadcast.BroadcastTo)
def _broadcast_to(graph: Graph, step: Step) -> Made:
    x, to = step.inputs[0], step.options["shape"]
    lead = len(to) - len(x.shape)
    if any(n == -1 and (i < lead or x.shape[i - lead] != -1) for i, n in enumerate(to)):
        raise _refused(step, "it repeats a tensor as often as there are images; let the op that uses it broadcast")
    return graph.node(step, "Expand", graph.input(step, 0), _ints(1 if n == -1 else n for n in to))


@translates(shape.GetItem)
def _getitem(graph: Graph, step: Step) -> Made:
    index, at = step.options["index"], graph.input(step, 0)
    parts = list(index) if isinstance(index, tuple) else [index]
    rank = len(step.inputs[0].shape)
    if Ellipsis in [p for p in parts if not isinstance(p, np.ndarray)]:
        where = next(i for i, p in enumerate(parts) if p is Ellipsis)
        missing = rank - sum(p is not None for p in parts) + 1
        parts[where:where + 1] = [slice(None)] * missing
    arrays = [p for p in parts if isinstance(p, np.ndarray)]
    if len(arrays) > 1 or any(p.dtype.kind == "b" for p in arrays) or (arrays and any(isinstance(p, int) for p in parts)):
        raise _refused(step, "it indexes with a mask or with several arrays; index with slices, integers or one array")
    axis, cuts, picks, new = 0, [], [], []
    for part in parts:
        if part is None:
            new.append(axis - sum(not isinstance(p[1], np.ndarray) for p in picks) + len(new))
            continue
        if isinstance(part, slice):
            s = 1 if part.step is None else part.step
            start = part.start if part.start is not None else 0 if s > 0 else LAST[False]
            cuts += [(axis, start, LAST[s < 0] if part.stop is None else part.stop, s)] if part != slice(None) else []
        else:
            picks.append((axis, np.asarray(part, np.int64)))
        axis += 1
    if cuts:
        axes, starts, ends, steps = (_ints(column) for column in zip(*cuts, strict=True))
        at = graph.node(step, "Slice", at, starts, ends, axes, steps)
    for axis, pick in reversed(picks):  # a number drops its axis, so the last comes first
        at = graph.node(step, "Gather", at, pick, axis=axis)
    return graph.node(step, "Unsqueeze", at, axes=new) if new else at


@translates(shape.Gather)
def _gather(graph: Graph, step: Step) -> Made:
    return graph.node(step, "GatherElements", graph.input(step, 0), _ints_like(step.options["index"]),
                      axis=step.options["dim"])


def _ints_like(index: np.ndarray) -> np.ndarray:
    return index.astype(np.int64)


@translates(create.AsType)
def _astype(graph: Graph, step: Step) -> Made:
    return graph.node(step, "Cast", graph.input(step, 0), to=np.dtype(step.options["dtype"]))


# --- layers -----------------------------------------------------------------------------------------------------------


def _geometry(options: dict[str, Any], kernel: tuple[int, ...]) -> dict[str, Any]:
    """The attributes of a convolution; pads are (top, left, bottom, right)."""
    return {"kernel_shape": list(kernel), "strides": list(options["stride"]), "pads": [*options["padding"]] * 2,
            "dilations": list(options["dilation"]), "group": options["groups"]}


@translates(conv.Conv2d)
def _conv(graph: Graph, step: Step) -> Made:
    return graph.node(step, "Conv", *graph.inputs(step), **_geometry(step.options, step.inputs[1].shape[2:]))


@translates(conv.Conv2dInputGrad)
def _conv_transpose(graph: Graph, step: Step) -> Made:
    g, w = step.inputs
    geometry = _geometry(step.options, w.shape[2:])
    sizes = zip(step.options["x_shape"][2:], g.shape[2:], w.shape[2:], *(step.options[key] for key in
                ("stride", "padding", "dilation")), strict=True)
    extra = [n - ((p - 1) * s - 2 * b + d * (k - 1) + 1) for n, p, k, s, b, d in sizes]
    return graph.node(step, "ConvTranspose", *graph.inputs(step), **geometry, output_padding=extra)


@translates(conv_bias.ConvBias)
def _conv_bias(graph: Graph, step: Step) -> Made:
    x, w, bias, residual = graph.inputs(step)
    y = graph.node(step, "Conv", x, w, bias, **_geometry(step.options, step.inputs[1].shape[2:]))
    return _join(graph, step, y, residual)


@translates(norm.BatchNorm)
def _batch_norm(graph: Graph, step: Step) -> Made:
    x, weight, bias, residual = graph.inputs(step)
    if step.options["training"]:
        raise _refused(step, "it normalises by the statistics of the batch, which ONNX's does only in training")
    statistics = [_running(graph, step, key, weight) for key in ("mean", "var")]
    y = graph.node(step, "BatchNormalization", x, weight, bias, *statistics, epsilon=step.options["eps"])
    return _join(graph, step, y, residual)


def _running(graph: Graph, step: Step, key: str, weight: Value) -> Value:
    """The running statistics: those of the module under their own name, if it is they that were used."""
    array = step.options[key]
    own = getattr(step.module, f"running_{key}", None)
    name = f"{step.name}.running_{key}" if step.name else f"running_{key}"
    same = isinstance(own, Tensor) and np.array_equal(own.data, array)
    return Value(array.shape, weight.dtype, name if same else "", array.astype(weight.dtype))


def _join(graph: Graph, step: Step, y: Made, residual: Made) -> Made:
    """What a fused op does after its first half."""
    y = y if residual is None else graph.node(step, "Add", y, residual)
    return graph.node(step, "Relu", y) if step.options["relu"] else y


@translates(linear.Matmul)
def _matmul(graph: Graph, step: Step) -> Made:
    a, b = step.inputs
    turned = b.step if isinstance(b, Value) else None
    if turned is not None and turned.op is shape.Permute and len(a.shape) == len(b.shape) == 2:
        return graph.node(step, "Gemm", graph.input(step, 0), graph.input(turned, 0), transB=1)
    return graph.node(step, "MatMul", *graph.inputs(step))


# --- pooling ----------------------------------------------------------------------------------------------------------


def _window(step: Step, x: Value, output: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> dict[str, Any]:
    """The attributes of a pooling. The pads at the end are such that exactly `output` windows fit, which also says what
    ceil_mode does."""
    ends = [max(0, (n - 1) * s + d * (k - 1) + 1 - size - b) for n, s, d, k, size, b in
            zip(output, stride, dilation, kernel, x.shape[2:], padding, strict=True)]
    return {"kernel_shape": list(kernel), "strides": list(stride), "pads": [*padding, *ends]}


@translates(pool.MaxPool2d)
def _max_pool(graph: Graph, step: Step) -> Made:
    x, numbers = step.inputs[0], dict(inspect.getclosurevars(step.options["pool"]).nonlocals)
    if "kernel" not in numbers:  # adaptive_max_pool2d: a grid of windows
        output = numbers["output"]
        if any(n % m for n, m in zip(x.shape[2:], output, strict=True)):
            raise _refused(step, f"windows of several sizes, as {x.shape[2:]} is no multiple of {output}; use "
                           "max_pool2d")
        kernel = tuple(n // m for n, m in zip(x.shape[2:], output, strict=True))
        numbers = {"output": output, "kernel": kernel, "stride": kernel, "padding": (0, 0), "dilation": (1, 1)}
    numbers = {key: numbers[key] for key in ("output", "kernel", "stride", "padding", "dilation")}
    return graph.node(step, "MaxPool", graph.input(step, 0), **_window(step, x, **numbers),
                      dilations=list(numbers["dilation"]))


@translates(pool.AvgPool2d)
def _avg_pool(graph: Graph, step: Step) -> Made:
    x, options = step.inputs[0], dict(step.options)
    include = options.pop("count_include_pad")
    window = _window(step, x, dilation=(1, 1), **options)
    beyond = any(end > begin for begin, end in zip(window["pads"][:2], window["pads"][2:], strict=True))
    if include and beyond:
        raise _refused(step, "with ceil_mode a window leaves the padded image, and ONNX would divide by another count; "
                       "use count_include_pad=False")
    return graph.node(step, "AveragePool", graph.input(step, 0), **window, count_include_pad=int(include))
