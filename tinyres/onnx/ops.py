"""Each op of a traced forward pass in ONNX's words: one small function an op, and the graph that they build.

An Add that only brings a convolution's or a linear layer's bias becomes that node's bias, a sum divided by its count a
ReduceMean: what a reader of the graph expects to see. Nodes that nothing uses are left out at the end.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np

from tinyres.onnx.graph import TRANSLATIONS, Graph, Made, Node, ints, refused, translates
from tinyres.onnx.trace import ExportError, Step, Trace, Value
from tinyres.ops import elementwise as e
from tinyres.ops.broadcast import BroadcastTo, SumTo
from tinyres.ops.conv import Conv2d, Conv2dInputGrad
from tinyres.ops.conv_bias import ConvBias
from tinyres.ops.create import AsType
from tinyres.ops.linear import Matmul
from tinyres.ops.norm import BatchNorm
from tinyres.ops.pool import AvgPool2d, MaxPool2d
from tinyres.ops.reduce import Amax, LogSoftmax
from tinyres.ops.shape import ChannelsLast, Concat, Gather, GetItem, Pad, Permute, Reshape
from tinyres.tensor import Tensor

LAST = {False: 2**63 - 1, True: -(2**63)}  # the end of a whole slice, and of a whole slice backwards


def translate(trace: Trace) -> tuple[Graph, Made]:
    """The graph of a trace, nodes in order and only those that the output needs, and what its output is.

    Raises ExportError for an op that has no translation.
    """
    graph = Graph()
    for step in trace.steps:
        rule = next((TRANSLATIONS[base] for base in step.op.__mro__ if base in TRANSLATIONS), None)
        if rule is None:
            raise ExportError(f"export_onnx: {step} has no translation to ONNX: build it from ops that have one, "
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


# --- element by element -----------------------------------------------------------------------------------------------

SAME_NAME = {e.Sub: "Sub", e.Div: "Div", e.Pow: "Pow", e.Maximum: "Max", e.Minimum: "Min", e.Where: "Where",
             e.Neg: "Neg", e.Exp: "Exp", e.Log: "Log", e.Sqrt: "Sqrt", e.Tanh: "Tanh", e.Sigmoid: "Sigmoid",
             e.Abs: "Abs", e.Relu: "Relu"}


@translates(*SAME_NAME)
def _same_name(graph: Graph, step: Step) -> Made:
    type = next(SAME_NAME[base] for base in step.op.__mro__ if base in SAME_NAME)
    return graph.node(step, type, *graph.inputs(step))


@translates(e.Add)
def _add(graph: Graph, step: Step) -> Made:
    for i, j in ((0, 1), (1, 0)):
        layer, bias = graph.only(step, i, "Conv", "ConvTranspose", "Gemm"), _bias(step.inputs[j])
        if layer is not None and len(layer.inputs) == 2 and bias is not None:
            channels = layer.step.output.shape[1]
            if bias.shape == (channels,) and (step.inputs[j].step is None) == (layer.type == "Gemm"):
                layer.inputs.append(bias)
                return layer
    return graph.node(step, "Add", *graph.inputs(step))


def _bias(x: Any) -> Value | None:
    """The 1-D parameter that is added, as it is or reshaped to (1, K, 1, 1)."""
    made = x.step if isinstance(x, Value) else None
    if made is not None and made.op is Reshape and made.options["shape"] == (1, math.prod(x.shape), 1, 1):
        x = made.inputs[0]
    return x if isinstance(x, Value) and x.array is not None and len(x.shape) == 1 else None


@translates(e.Mul)
def _mul(graph: Graph, step: Step) -> Made:
    for i, j in ((0, 1), (1, 0)):
        total, factor = graph.only(step, i, "ReduceSum"), step.inputs[j]
        if total is not None and isinstance(factor, float):
            lengths = [total.step.inputs[0].shape[axis] for axis in total.axes or ()]
            if -1 not in lengths and math.isclose(factor * math.prod(lengths), 1.0):
                total.type = "ReduceMean"
                return total
    return graph.node(step, "Mul", *graph.inputs(step))


# --- sums and extremes ------------------------------------------------------------------------------------------------


@translates(SumTo)
def _sum_to(graph: Graph, step: Step) -> Made:
    x, to = step.inputs[0], step.options["shape"]
    lead = len(x.shape) - len(to)
    axes = [*range(lead), *(lead + i for i, n in enumerate(to) if n == 1 and x.shape[lead + i] != 1)]
    total = graph.node(step, "ReduceSum", graph.input(step, 0), axes=axes, keepdims=1)
    return graph.node(step, "Squeeze", total, axes=list(range(lead))) if lead else total


@translates(Amax)
def _amax(graph: Graph, step: Step) -> Made:
    return graph.node(step, "ReduceMax", graph.input(step, 0), axes=list(step.options["dims"]), keepdims=1)


@translates(LogSoftmax)
def _log_softmax(graph: Graph, step: Step) -> Made:
    return graph.node(step, "LogSoftmax", graph.input(step, 0), axis=step.options["dim"])


# --- shapes -----------------------------------------------------------------------------------------------------------


@translates(Reshape)
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
        raise refused(step, f"the number of images decides several lengths of {to}; keep it to one dimension")
    return graph.node(step, "Reshape", graph.input(step, 0), ints(to))


@translates(Permute)
def _permute(graph: Graph, step: Step) -> Made:
    return graph.node(step, "Transpose", graph.input(step, 0), perm=list(step.options["dims"]))


@translates(ChannelsLast)
def _channels_last(graph: Graph, step: Step) -> Made:
    return graph.input(step, 0)


@translates(Concat)
def _concat(graph: Graph, step: Step) -> Made:
    return graph.node(step, "Concat", *graph.inputs(step), axis=step.options["dim"])


@translates(Pad)
def _pad(graph: Graph, step: Step) -> Made:
    x, before = step.inputs[0], step.options["before"]
    after = [0 if n == -1 else n - b - m for n, b, m in zip(step.options["shape"], before, x.shape, strict=True)]
    if any(n == -1 and step.output.size[i] != x.size[i] for i, n in enumerate(step.options["shape"])):
        raise refused(step, "it pads the batch; pad the images only")
    value = np.asarray(step.options["value"], x.dtype)
    return graph.node(step, "Pad", graph.input(step, 0), ints([*before, *after]), value, mode="constant")


@translates(BroadcastTo)
def _broadcast_to(graph: Graph, step: Step) -> Made:
    x, to = step.inputs[0], step.options["shape"]
    lead = len(to) - len(x.shape)
    if any(n == -1 and (i < lead or x.shape[i - lead] != -1) for i, n in enumerate(to)):
        raise refused(step, "it repeats a tensor as often as there are images; let the op that uses it broadcast")
    return graph.node(step, "Expand", graph.input(step, 0), ints(1 if n == -1 else n for n in to))


@translates(GetItem)
def _getitem(graph: Graph, step: Step) -> Made:
    index, at = step.options["index"], graph.input(step, 0)
    parts = [np.asarray(p) if isinstance(p, list) else p for p in (index if isinstance(index, tuple) else (index,))]
    rank = len(step.inputs[0].shape)
    for where in [i for i, p in enumerate(parts) if p is Ellipsis]:
        parts[where:where + 1] = [slice(None)] * (rank - sum(p is not None for p in parts) + 1)
    arrays = [p for p in parts if isinstance(p, np.ndarray)]
    numbers = any(isinstance(p, (int, np.integer)) for p in parts)
    if len(arrays) > 1 or any(p.dtype.kind == "b" for p in arrays) or (arrays and numbers):
        raise refused(step, "it indexes with a mask or with several arrays; index with slices, integers or one array")
    axis, cuts, new = 0, [], []  # type: int, list[tuple[int, ...]], list[int]
    picks: list[tuple[int, np.ndarray]] = []
    for part in parts:
        if part is None:
            new.append(axis + sum(pick.ndim - 1 for _, pick in picks) + len(new))
            continue
        if isinstance(part, slice):
            s = 1 if part.step is None else part.step
            start = part.start if part.start is not None else 0 if s > 0 else LAST[False]
            cuts += [(axis, start, LAST[s < 0] if part.stop is None else part.stop, s)] if part != slice(None) else []
        else:
            picks.append((axis, np.asarray(part, np.int64)))
        axis += 1
    if cuts:
        axes, starts, ends, steps = (ints(column) for column in zip(*cuts, strict=True))
        at = graph.node(step, "Slice", at, starts, ends, axes, steps)
    for axis, pick in reversed(picks):  # a number drops its axis, so the last comes first
        at = graph.node(step, "Gather", at, pick, axis=axis)
    return graph.node(step, "Unsqueeze", at, axes=new) if new else at


@translates(Gather)
def _gather(graph: Graph, step: Step) -> Made:
    return graph.node(step, "GatherElements", graph.input(step, 0), step.options["index"].astype(np.int64),
                      axis=step.options["dim"])


@translates(AsType)
def _astype(graph: Graph, step: Step) -> Made:
    return graph.node(step, "Cast", graph.input(step, 0), to=np.dtype(step.options["dtype"]))


# --- layers -----------------------------------------------------------------------------------------------------------


def _geometry(options: dict[str, Any], kernel: tuple[int, ...]) -> dict[str, Any]:
    """The attributes of a convolution; pads are (top, left, bottom, right)."""
    return {"kernel_shape": list(kernel), "strides": list(options["stride"]), "pads": [*options["padding"]] * 2,
            "dilations": list(options["dilation"]), "group": options["groups"]}


@translates(Conv2d)
def _conv(graph: Graph, step: Step) -> Made:
    return graph.node(step, "Conv", *graph.inputs(step), **_geometry(step.options, step.inputs[1].shape[2:]))


@translates(Conv2dInputGrad)
def _conv_transpose(graph: Graph, step: Step) -> Made:
    g, w = step.inputs
    geometry = _geometry(step.options, w.shape[2:])
    sizes = zip(step.options["x_shape"][2:], g.shape[2:], w.shape[2:], *(step.options[key] for key in
                ("stride", "padding", "dilation")), strict=True)
    extra = [n - ((p - 1) * s - 2 * b + d * (k - 1) + 1) for n, p, k, s, b, d in sizes]
    return graph.node(step, "ConvTranspose", *graph.inputs(step), **geometry, output_padding=extra)


@translates(ConvBias)
def _conv_bias(graph: Graph, step: Step) -> Made:
    x, w, bias, residual = graph.inputs(step)
    y = graph.node(step, "Conv", x, w, bias, **_geometry(step.options, step.inputs[1].shape[2:]))
    return _join(graph, step, y, residual)


@translates(BatchNorm)
def _batch_norm(graph: Graph, step: Step) -> Made:
    x, weight, bias, residual = graph.inputs(step)
    if step.options["training"]:
        raise refused(step, "it normalises by the statistics of the batch, which ONNX's does only in training")
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


@translates(Matmul)
def _matmul(graph: Graph, step: Step) -> Made:
    a, b = step.inputs
    turned = b.step if isinstance(b, Value) else None
    if turned is not None and turned.op is Permute and (*turned.options["dims"], len(a.shape)) == (1, 0, 2):
        return graph.node(step, "Gemm", graph.input(step, 0), graph.input(turned, 0), transB=1)
    return graph.node(step, "MatMul", *graph.inputs(step))


# --- pooling ----------------------------------------------------------------------------------------------------------


def _window(step: Step, x: Value, output: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> dict[str, Any]:
    """The attributes of a pooling. The pads at the end are such that exactly `output` windows fit, which also says what
    ceil_mode does."""
    ends = [max(0, (n - 1) * s + d * (k - 1) + 1 - size - b) for n, s, d, k, size, b in
            zip(output, stride, dilation, kernel, x.shape[2:], padding, strict=True)]
    return {"kernel_shape": list(kernel), "strides": list(stride), "pads": [*padding, *ends]}


@translates(MaxPool2d)
def _max_pool(graph: Graph, step: Step) -> Made:
    x, numbers = step.inputs[0], dict(inspect.getclosurevars(step.options["pool"]).nonlocals)
    if "kernel" not in numbers:  # adaptive_max_pool2d: a grid of windows
        output = numbers["output"]
        if any(n % m for n, m in zip(x.shape[2:], output, strict=True)):
            raise refused(step, f"windows of several sizes, as {x.shape[2:]} is no multiple of {output}; use "
                           "max_pool2d")
        kernel = tuple(n // m for n, m in zip(x.shape[2:], output, strict=True))
        numbers = {"output": output, "kernel": kernel, "stride": kernel, "padding": (0, 0), "dilation": (1, 1)}
    numbers = {key: numbers[key] for key in ("output", "kernel", "stride", "padding", "dilation")}
    return graph.node(step, "MaxPool", graph.input(step, 0), **_window(step, x, **numbers),
                      dilations=list(numbers["dilation"]))


@translates(AvgPool2d)
def _avg_pool(graph: Graph, step: Step) -> Made:
    x, options = step.inputs[0], dict(step.options)
    include = options.pop("count_include_pad")
    window = _window(step, x, dilation=(1, 1), **options)
    beyond = any(end > begin for begin, end in zip(window["pads"][:2], window["pads"][2:], strict=True))
    if include and beyond:
        raise refused(step, "with ceil_mode a window leaves the padded image, and ONNX would divide by another count; "
                       "use count_include_pad=False")
    return graph.node(step, "AveragePool", graph.input(step, 0), **window, count_include_pad=int(include))
