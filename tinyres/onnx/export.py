"""A network as an ONNX file, which onnxruntime, Netron and most deployment tools read.

One forward pass in eval mode is watched and written down op by op (trace.py, ops.py). Batch norms stay nodes
of their own; fold_batch_norm() before the export makes them part of their convolutions. Nodes are named by the module
that ran them ("layer1.0.conv1"; what else that module does, "layer1.0.bn1.relu"), initialisers by their parameters.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinyres.files import PathLike, write_atomically
from tinyres.nn import Module
from tinyres.onnx.graph import Graph, Node
from tinyres.onnx.ops import translate
from tinyres.onnx.trace import BATCHES, ExportError, Step, Trace, Value, trace
from tinyres.tensor import Function

OLDEST, PRODUCER = 13, "tinyres"  # opset 13 made the axes of ReduceSum, Squeeze and Unsqueeze inputs
LARGEST = 2**31 - 1  # bytes of a protobuf message


def export_onnx(model: Module, path: PathLike, input_shape: Sequence[int], batch: str | int = "N", opset: int = 17,
                description: str = "", metadata: Mapping[str, Any] | None = None) -> list[str]:
    """Write the model, in eval mode, as an ONNX file; returns the types of its nodes in order.

    input_shape: (C, H, W) of an image, or (in_features,). The graph has one input, "input", and one output, "output";
    their first dimension is named `batch`, so that any number of images goes, or is fixed if that is a number. H and W
    are fixed. metadata: texts, or what JSON can hold, such as the normalisation that the input needs. The model is not
    touched, and the file is there whole or not at all; the same model gives the same bytes.

    Raises ModuleNotFoundError without the package onnx, ValueError for an opset or shape that cannot be, and
    ExportError, a ValueError that names op and module, for what ONNX cannot say: an op without translation, a forward
    that reads its input past the graph or depends on how many images there are.
    """
    onnx = _onnx()
    newest = onnx.defs.onnx_opset_version()
    if not isinstance(opset, int) or not OLDEST <= opset <= newest:
        raise ValueError(f"export_onnx: opset must be from {OLDEST} to {newest}, the newest that the installed onnx "
                         f"knows, got {opset!r}: use 17")
    if isinstance(batch, bool) or not (isinstance(batch, str) and batch or isinstance(batch, int) and batch > 0):
        raise ValueError(f"export_onnx: batch must be a name for any number of images or a positive int, got {batch!r}")
    if not input_shape or any(not hasattr(n, "__index__") or n < 1 for n in input_shape):
        raise ValueError(f"export_onnx: input_shape must be the positive lengths of one image, like (3, 32, 32), got "
                         f"{input_shape!r}")
    twin = copy.deepcopy(model).to("cpu").eval()
    found = trace(twin, tuple(int(n) for n in input_shape))
    graph, output = translate(found)
    if isinstance(output, Value):
        output = _identity(graph, found, twin)
    about = description or f"{type(model).__name__}, written by tinyres"
    proto = _model(onnx, _Names(graph, found, output), batch, opset, about, metadata or {})
    if proto.ByteSize() > LARGEST:
        raise ExportError(f"export_onnx: the file would have {proto.ByteSize():,} bytes, and ONNX files have at most "
                          f"{LARGEST:,}: use astype('float32') or a smaller model")
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"export_onnx: onnx refuses the graph of this {type(model).__name__}: {error}") from error
    write_atomically(path, proto.SerializeToString(deterministic=True))
    return [node.type for node in graph.nodes]


def _onnx() -> Any:
    try:
        import onnx
        import onnx.shape_inference
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('export_onnx needs onnx: pip install "tinyres[onnx]"', name="onnx") from error
    return onnx


def _identity(graph: Graph, found: Trace, model: Module) -> Node:
    """A node of its own for an output that is the input or a parameter."""
    return graph.node(Step(Function, (), {}, found.output, model, "", 0), "Identity", found.output)


class _Names:
    """Every node and every constant of a graph with a name of its own; the arrays by name."""

    def __init__(self, graph: Graph, found: Trace, output: Node):
        self.nodes, self.output, self.trace = graph.nodes, output, found
        self.shapes = {made: value for value, made in graph.made.items() if isinstance(made, Node)}
        self.values: dict[Value, str] = {found.input: "input"}
        self.arrays: dict[str, np.ndarray] = {}
        self.taken = {"input", "output"}
        for node in self.nodes:
            for value in node.inputs:
                if isinstance(value, Value) and value.array is not None and value.name:
                    self.constant(value, value.name)
        named: set[int] = set()  # the calls of leaves whose node has the module's own name
        for node in self.nodes:
            step = node.step
            whole = not step.module._modules and step.name and step.call not in named
            named.add(step.call)
            node.name = self.free(step.name if whole else ".".join(filter(None, (step.name, node.type.lower()))))
        for node in self.nodes:
            for i, value in enumerate(node.inputs):
                if isinstance(value, Value) and value.array is not None and value not in self.values:
                    self.constant(value, f"{node.name}.constant{i}")

    def free(self, name: str) -> str:
        """The name, or with a number behind it if it is taken."""
        found, n = name, 1
        while found in self.taken:
            n += 1
            found = f"{name}_{n}"
        self.taken.add(found)
        return found

    def constant(self, value: Value, name: str) -> None:
        """Give a constant its name; equal statistics of one module, made twice, are one."""
        if value in self.values:
            return
        if name in self.arrays and value.name and np.array_equal(self.arrays[name], value.array, equal_nan=True):
            self.values[value] = name
            return
        self.values[value] = self.free(name)
        self.arrays[self.values[value]] = value.array

    def of(self, made: Any) -> str:
        """The name of a tensor; "" for an input that is left out."""
        if isinstance(made, Node):
            return "output" if made is self.output else made.name
        return "" if made is None else self.values[made]


def _model(onnx: Any, names: _Names, batch: str | int, opset: int, about: str, metadata: Mapping[str, Any]) -> Any:
    """The protobuf of the whole file."""
    helper, kind = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype

    def tensor(name: str, value: Value) -> Any:
        lengths = [n if n != -1 else batch if size == BATCHES[0] else None
                   for n, size in zip(value.shape, value.size, strict=True)]
        return helper.make_tensor_value_info(name, kind(np.dtype(value.dtype)), lengths)

    nodes = []
    for node in names.nodes:
        inputs, attributes = [names.of(made) for made in node.inputs], dict(node.attributes)
        if node.axes is not None and (node.type in ("ReduceSum", "Squeeze", "Unsqueeze") or opset >= 18):
            inputs.append(names.free(f"{node.name}.axes"))
            names.arrays[inputs[-1]] = np.asarray(node.axes, np.int64)
        elif node.axes is not None:
            attributes["axes"] = node.axes
        attributes = {key: kind(value) if isinstance(value, np.dtype) else value for key, value in attributes.items()}
        nodes.append(helper.make_node(node.type, inputs, [names.of(node)], name=node.name, **attributes))
    initialisers = [onnx.numpy_helper.from_array(np.array(array, order="C"), name)
                    for name, array in names.arrays.items()]
    ends = [tensor("input", names.trace.input)], [tensor("output", names.trace.output)]
    known = [tensor(node.name, names.shapes[node]) for node in names.nodes if node in names.shapes
             and node is not names.output]
    graph = helper.make_graph(nodes, "network", *ends, initialisers, about, known)
    opsets = [helper.make_opsetid("", opset)]
    proto = helper.make_model(graph, opset_imports=opsets, producer_name=PRODUCER, doc_string=about,
                              ir_version=helper.find_min_ir_version_for(opsets))
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    helper.set_model_props(proto, texts)
    return proto
