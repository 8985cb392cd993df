"""What a network computes, as a list of ops: its forward pass is watched twice, with different images.

The observer is called by the engine for every op, as that of tr.debug() is. The two passes have batches of two and of
three images, so whatever differs between them depends on the images: a length that does is the batch's, and becomes -1;
an array or a number that does was computed from the images past the graph, and is an error. What a forward decides by
itself from the values of its input cannot be seen, unless the two passes take different routes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyres import nn, random
from tinyres.kernels import use_kernels
from tinyres.state import setting, state
from tinyres.tensor import Function, Tensor

BATCHES = (2, 3)
SHAPES = ("shape", "x_shape")  # options of ops in which the batch's length may stand


class ExportError(ValueError):
    """A network that cannot be written as ONNX; the message names the op and its module."""


@dataclass(eq=False)
class Value:
    """An array of the forward pass. size: its shape in the first pass; shape: the same, with -1 for a length that the
    batch decides.

    array: of a parameter, a buffer or a constant; step: what computed it; neither: the network's input.
    """

    shape: tuple[int, ...]
    dtype: Any
    name: str = ""
    array: Any = None
    step: Step | None = None

    def __post_init__(self) -> None:
        self.size = self.shape


@dataclass(eq=False)
class Step:
    """A call of an op: its inputs are Values, numbers or None, `options` its keyword arguments with -1 as above.

    module: in which it ran, `name` its dotted name, `call` the number of that call among all calls of modules.
    """

    op: type[Function]
    inputs: tuple[Any, ...]
    options: dict[str, Any]
    output: Value
    module: nn.Module
    name: str
    call: int
    uses: dict[Value, int] = field(default_factory=dict, repr=False)  # of every value of the trace; shared by all steps

    def __str__(self) -> str:
        return f"{self.op.name} in {type(self.module).__name__} {self.name or '(the network itself)'}"


class _Observer:
    """What the engine calls while it is installed; a tensor is known by its identity as long as it lives."""

    def __init__(self, model: nn.Module, x: Tensor):
        self.steps: list[Step] = []
        self.scopes: list[tuple[nn.Module, str, int]] = [(model, "", 0)]  # of the modules that run, outermost first
        self.calls = 0
        self.known: dict[int, tuple[Any, Value, int]] = {}
        self.input = self._bind(x, Value(x.shape, x.dtype, "input"))
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self._bind(tensor, Value(tensor.shape, tensor.dtype, name, tensor.data))
        names = {id(module): name for name, module in model.named_modules()}

        def enter(module: nn.Module, args: tuple) -> None:
            self.calls += 1
            self.scopes.append((module, names[id(module)], self.calls))

        def leave(module: nn.Module, args: tuple, output: Any) -> None:
            self.scopes.pop()

        self.handles = [handle for module in model.modules() for handle in
                        (module.register_forward_pre_hook(enter), module.register_forward_hook(leave))]

    def forward(self, node: Any, inputs: Sequence[Any], edges: Any, result: Tensor) -> None:
        if state.walking:
            return
        module, name, call = self.scopes[-1]
        step = Step(type(node), (), node.params, Value(result.shape, result.dtype), module, name, call)
        step.output.step = step
        step.inputs = tuple(self.value(x, step, int(node.inplace and x is result)) for x in inputs)
        if node.inplace and step.inputs[0].array is not None and step.inputs[0].name:
            raise ExportError(f"export_onnx: {step} changes {step.inputs[0].name} in place, and an ONNX graph keeps no "
                              "state: use the op without underscore")
        self.steps.append(step)
        self._bind(result, step.output)

    def cut(self, name: str, source: Tensor, result: Tensor) -> None:
        self._bind(result, self.value(source, None))

    @staticmethod
    def checksum(array: Any) -> None:
        return None

    def value(self, x: Any, step: Step | None, own_writes: int = 0) -> Any:
        """The Value of an input. Raises ExportError if something wrote into it behind the engine's back."""
        if not isinstance(x, Tensor):
            return Value(x.shape, x.dtype, array=x.copy()) if isinstance(x, np.ndarray) else x
        reference, value, count = self.known.get(id(x), (None, None, 0))
        if reference is None or reference() is not x:  # made outside of the graph: a constant
            return self._bind(x, Value(x.shape, x.dtype, array=x.data.copy()))
        if x.version.count != count + own_writes:
            raise ExportError(f"export_onnx: {step} reads a tensor of shape {x.shape} that {x.version.writer} changed "
                              "in place, through another view or by its elements: use ops that return new tensors")
        return value

    def _bind(self, x: Tensor, value: Value) -> Value:
        self.known[id(x)] = (weakref.ref(x), value, x.version.count)
        return value


@dataclass(frozen=True)
class Trace:
    """The steps in the order of the calls, the network's input, and its output."""

    steps: list[Step]
    input: Value
    output: Value


def trace(model: nn.Module, input_shape: Sequence[int]) -> Trace:
    """Watch the forward pass of `model`, which must be on the CPU, in its present mode, for images of `input_shape`.

    Raises ExportError where the two passes show that the ops depend on the images' values.
    """
    found = [_watch(model, (batch, *input_shape), seed) for seed, batch in enumerate(BATCHES)]
    first, second = found
    for a, b in zip(first.steps, second.steps, strict=False):
        if (a.op, a.name, len(a.inputs)) != (b.op, b.name, len(b.inputs)):
            raise ExportError(f"export_onnx: with other images {b} ran in the place of {a}: a forward whose route "
                              "depends on its input's values or batch cannot be exported")
    if len(first.steps) != len(second.steps):
        raise ExportError(f"export_onnx: {len(first.steps)} ops ran, and with other images {len(second.steps)}: a "
                          "forward whose route depends on its input's values or batch cannot be exported")
    uses: dict[Value, int] = {first.output: 1}
    made = {step: i for steps in (first.steps, second.steps) for i, step in enumerate(steps)}
    for a, b in zip(first.steps, second.steps, strict=True):
        a.options = {key: _same(a, key, *_whole(a, b, key)) for key in a.options}
        for i, (x, y) in enumerate(zip(a.inputs, b.inputs, strict=True)):
            if isinstance(x, Value) and isinstance(y, Value):
                _check_alike(a, i, x, y)
                if (x.step and made[x.step]) != (y.step and made[y.step]):
                    raise ExportError(f"export_onnx: with other images {a} took the output of {y.step or 'no op'}, not "
                                      f"of {x.step or 'no op'}: a forward whose route depends on its input's values or "
                                      "batch cannot be exported")
                uses[x] = uses.get(x, 0) + 1
            elif x is not y and x != y:
                raise _from_data(a, f"its input {i}")
        a.uses = uses
    for a, b in zip(first.steps, second.steps, strict=True):
        a.output.shape = _batched(a.output.shape, b.output.shape)
    first.input.shape = _batched(first.input.shape, second.input.shape)
    return first


def _watch(model: nn.Module, shape: tuple[int, ...], seed: int) -> Trace:
    images = np.random.Generator(np.random.Philox(seed)).standard_normal(shape)
    dtype = next((p.dtype for p in model.parameters()), np.dtype("float32"))
    x = Tensor(images.astype(dtype))
    observer, drawn = _Observer(model, x), random.get_state()
    try:
        with use_kernels("im2col"), setting(debug=observer, grad_enabled=False, unfused=False, choices=None):
            y = model(x)
    finally:
        for handle in observer.handles:
            handle.remove()
        random.set_state(drawn)
    if not isinstance(y, Tensor):
        raise ExportError(f"export_onnx: {type(model).__name__} returned {type(y).__name__}, expected one Tensor: wrap "
                          "it in a module that returns the one to export")
    return Trace(observer.steps, observer.input, observer.value(y, None))


def _check_alike(step: Step, i: int, x: Value, y: Value) -> None:
    """Raise ExportError if input i is another value in the two passes, or a constant that differs."""
    constants = x.array is not None, y.array is not None
    if any(constants) and not (all(constants) and x.name == y.name and x.array.shape == y.array.shape
                               and np.array_equal(x.array, y.array, equal_nan=x.dtype.kind == "f")):
        raise _from_data(step, f"its input {i}")


def _from_data(step: Step, what: str) -> ExportError:
    return ExportError(f"export_onnx: {step}: {what} was computed from the images, or from how many there are, past "
                       "the graph (.data, numpy(), a mask from a comparison, shape[0]): use ops on the Tensor itself, "
                       "such as maximum and minimum for clamp")


def _same(step: Step, key: str, a: Any, b: Any) -> Any:
    """An option that is equal in both passes, or a shape with -1 where the batch decides."""
    if key in SHAPES and len(a) == len(b):
        return _batched(a, b)
    ours, theirs = list(_leaves(a)), list(_leaves(b))
    if len(ours) == len(theirs) and all(callable(x) or _equal(x, y) for x, y in zip(ours, theirs, strict=True)):
        return a  # a function's own numbers come from the module or the image's size
    raise _from_data(step, f"its option {key}")


def _whole(a: Step, b: Step, key: str) -> tuple[Any, Any]:
    """An option in both passes; in an index, a slice that ends in both where the batch does has no end any more, as
    pad() cuts with slices of every length."""
    found = a.options[key], b.options[key]
    if key != "index" or not all(isinstance(parts, tuple) and all(isinstance(p, slice) for p in parts)
                                 for parts in found) or len(found[0]) != len(found[1]):
        return found
    sizes = a.inputs[0].size, b.inputs[0].size
    cut = [(slice(p.start, None, p.step), slice(q.start, None, q.step))
           if (p.stop, q.stop) == (n, m) and (p.step is None or p.step > 0) else (p, q)
           for p, q, n, m in zip(*found, *sizes, strict=False)]
    return tuple(p for p, _ in cut), tuple(q for _, q in cut)


def _leaves(option: Any) -> Iterator[Any]:
    if isinstance(option, (tuple, list)):
        for part in option:
            yield from _leaves(part)
    else:
        yield option


def _equal(a: Any, b: Any) -> bool:
    return np.array_equal(a, b) if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) else bool(a == b)


def _batched(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    return tuple(n if n == m else -1 for n, m in zip(a, b, strict=True))
