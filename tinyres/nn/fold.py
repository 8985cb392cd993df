"""Batch norm folded into the convolution in front of it: the same function in fewer steps, for inference.

In eval mode the statistics of a batch norm stand still, so it is a scale and a shift of each channel k, and a
convolution absorbs both:

    gamma (w * x + b - mean) / sqrt(var + eps) + beta  =  w' * x + b'
    s = gamma / sqrt(var + eps)    w'[k] = s[k] w[k]    b'[k] = beta[k] + (b[k] - mean[k]) s[k]

That holds only where nothing comes between the two and nothing else sees the convolution's output. Names do not tell;
a forward pass does. It is recorded as for training, and its graph says who consumed what: a pair is folded if the batch
norm's input is the convolution's output itself, if that has no other consumer, and if each of the two ran once. What is
left of the pair stands in the batch norm's place, since that is where the addition and the ReLU of a block are asked
for; the convolution's place gets an Identity.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tinyres import ops
from tinyres.graph import topological_order
from tinyres.kernels.layout import elementwise
from tinyres.nn.layers import BatchNorm1d, BatchNorm2d, Conv2d, Identity, Linear
from tinyres.nn.module import Module
from tinyres.nn.parameter import Parameter
from tinyres.nn.state_dict import host_array
from tinyres.ops.conv import check_padding
from tinyres.ops.conv_bias import conv_bias
from tinyres.ops.create import device_of, to
from tinyres.state import no_grad, setting
from tinyres.tensor import Tensor

GUESSED_SIZE = 32  # pixels a side of the image that is tried if no example is given
SAME = 1e-2  # greatest difference of outputs, as a share of the largest: far above rounding, far below a mistake


class FoldedConv2d(Conv2d):
    """Conv2d with the batch norm behind it folded in: [relu](conv2d(x) + bias [+ add]) as one op.

    (N, C, H, W) -> (N, K, P, Q); it is called as the batch norm was.
    """

    def __init__(self, conv: Conv2d, norm: BatchNorm2d):
        Module.__init__(self)  # Conv2d's would draw weights
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups"):
            setattr(self, name, getattr(conv, name))
        self.padding = check_padding("FoldedConv2d", conv.padding, conv.kernel_size, conv.stride, conv.dilation)
        self.weight, self.bias = folded(conv.weight, conv.bias, norm)

    def forward(self, x: Tensor, add: Tensor | None = None, relu: bool = False) -> Any:
        return conv_bias(x, self.weight, self.bias, self.stride, self.padding,  # type: ignore[arg-type]
                         self.dilation, self.groups, add, relu)


class FoldedLinear(Linear):
    """Linear with the BatchNorm1d behind it folded in: (N, C) -> (N, K), called as the batch norm was."""

    def __init__(self, linear: Linear, norm: BatchNorm1d):
        Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = folded(linear.weight, linear.bias, norm)

    def forward(self, x: Tensor, add: Tensor | None = None, relu: bool = False) -> Any:
        y = super().forward(x)
        y = y if add is None else ops.add(y, add)
        return ops.relu(y) if relu else y


FOLDS: dict[type[Module], tuple[type[Module], Any]] = {  # a subclass may compute something else, and is left alone
    BatchNorm2d: (Conv2d, FoldedConv2d), BatchNorm1d: (Linear, FoldedLinear)}


def folded(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Parameter, Parameter]:
    """w' and b' of the formula on top: computed in float64, rounded once, in the memory order of `weight`."""
    w, mean, var = (t.data.astype("float64") for t in (weight, norm.running_mean, norm.running_var))
    b, gamma, beta = (neutral if t is None else t.data.astype("float64")
                      for t, neutral in ((bias, 0.0), (norm.weight, 1.0), (norm.bias, 0.0)))
    s = gamma / (var + norm.eps) ** 0.5
    found = elementwise(operator.mul, w, s.reshape(-1, *[1] * (w.ndim - 1))), beta + (b - mean) * s
    new_w, new_b = (Parameter(v.astype(weight.dtype), weight.requires_grad) for v in found)
    return new_w, new_b


def fold_batch_norm(model: Module, example: Any = None) -> Module:
    """A copy of the model in eval mode, each batch norm directly behind a convolution (or Linear) folded into it.

    example: an input of the model, array or Tensor; by default one random image of 32 x 32 pixels, or one row, with the
    channels that the first layer takes. The model is not touched, and the copy shares no array with it. What cannot be
    folded stays: a batch norm in front of its convolution, say, or behind one whose output is used twice, or one with
    hooks. What was folded is of type FoldedConv2d or FoldedLinear, so print() shows it.

    Raises ValueError, which gives the reasons, if nothing can be folded, or if the model does not take the default
    example; RuntimeError if the copy gives other outputs: the model then reads a convolution's output past the graph.
    """
    twin = copy.deepcopy(model).eval()
    x = _example(twin) if example is None else ops.tensor(example)
    if x.dtype.kind == "f":
        x.requires_grad = True  # so that the forward pass is recorded even if the model is frozen
    try:
        trace = _Trace(twin, x)
    except Exception as error:
        if example is not None:
            raise
        raise ValueError(f"fold_batch_norm: the model was tried with a random input of shape {x.shape}: {error}; give "
                         "an example of its inputs, fold_batch_norm(model, x)") from error
    pairs = list(trace.pairs())
    if not pairs:
        raise ValueError(f"fold_batch_norm: there is nothing to fold in this {type(model).__name__}: "
                         + ("; ".join(trace.reasons) or "it has no batch norm") + "; use it as it is")
    for first, norm in pairs:
        _replace(twin, norm, FOLDS[type(norm)][1](first, norm))
        _replace(twin, first, Identity())
    _check_same(trace.outputs, twin.eval(), x)
    return twin


class _Trace:
    """One recorded forward pass: what each layer that may be folded was given and returned, and who consumed it."""

    def __init__(self, model: Module, x: Tensor):
        self.calls: Counter[Module] = Counter()
        self.made: dict[Any, tuple[Module, Tensor, int]] = {}   # node of an output: its layer, input, input's version
        self.taken: dict[Module, tuple[Any, Any]] = {}          # batch norm: node of its input, what made lists for it
        self.reasons: list[str] = []
        self.norms = {module: name for name, module in model.named_modules() if type(module) in FOLDS}
        firsts = tuple(first for first, _ in FOLDS.values())
        watched = [module for module in model.modules() if module in self.norms or type(module) in firsts]
        self.hooked = {m for m in watched if m._pre_hooks or m._forward_hooks or m._backward_hooks}
        handles = [module.register_forward_hook(self._ran) for module in watched]
        try:
            with setting(grad_enabled=True, unfused=False, choices=None):
                self.outputs = list(_tensors(model(x)))
        finally:
            for handle in handles:
                handle.remove()
        roots = [t.node for t in self.outputs if t.node is not None]
        nodes = topological_order(list(dict.fromkeys(roots)))
        self.uses = Counter(roots) + Counter(edge for node in nodes for edge in node.edges if edge is not None)

    def _ran(self, module: Module, args: tuple, output: Any) -> None:
        self.calls[module] += 1
        x = args[0] if args else None
        if module in self.norms:
            node = getattr(x, "node", None)
            found = self.made.get(node)
            self.taken[module] = node, found if found and found[1].version.count == found[2] else None
        elif x is not None and output.node is not None:
            self.made[output.node] = module, x, x.version.count

    def pairs(self) -> Iterator[tuple[Module, Module]]:
        """(convolution, batch norm) that can be folded; the others' reasons go to `reasons`."""
        for norm, name in self.norms.items():
            node, found = self.taken.get(norm, (None, None))
            wanted = FOLDS[type(norm)][0]
            if norm.running_mean is None or norm.running_var is None:
                reason = "it has no running statistics (track_running_stats=False)"
            elif self.calls[norm] != 1:
                reason = f"it ran {self.calls[norm]} times in a forward pass"
            elif found is None or type(found[0]) is not wanted or len(node.shape) == 3:  # (N, L, C), normalised over L
                reason = f"its input is not the output of a {wanted.__name__}"
            elif self.calls[found[0]] != 1:
                reason = f"the {wanted.__name__} in front of it ran {self.calls[found[0]]} times"
            elif self.uses[node] != 1:
                reason = f"the output of the {wanted.__name__} in front of it is used {self.uses[node]} times"
            elif {norm, found[0]} & self.hooked:
                reason = f"it or the {wanted.__name__} in front of it has hooks"
            else:
                yield found[0], norm
                continue
            self.reasons.append(f"{name or type(norm).__name__}: {reason}")


def _example(model: Module) -> Tensor:
    """A random input for the model's first layer with weights. Raises ValueError if there is none."""
    for layer in model.modules():
        if isinstance(layer, (Conv2d, Linear)):
            image = isinstance(layer, Conv2d)
            shape = (1, layer.in_channels, GUESSED_SIZE, GUESSED_SIZE) if image else (1, layer.in_features)
            x = np.random.default_rng(0).standard_normal(shape).astype(layer.weight.dtype)
            return to(Tensor(x), device_of(layer.weight))
    raise ValueError(f"fold_batch_norm: there is nothing to fold in this {type(model).__name__}, which has no Conv2d "
                     "and no Linear; use it as it is")


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """The Tensors in what a model returned: one, or tuples, lists and mappings of them."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (tuple, list, Mapping)):
        for part in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(part)


def _replace(model: Module, old: Module, new: Module) -> None:
    """Put `new` wherever `old` is registered."""
    for module in model.modules():
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new


def _check_same(before: list[Tensor], twin: Module, x: Tensor) -> None:
    """Raise RuntimeError unless the folded copy gives the outputs that it gave before."""
    name = type(twin).__name__
    try:
        with no_grad():
            after = list(_tensors(twin(x)))
    except Exception as error:
        raise RuntimeError(f"fold_batch_norm: the folded copy of this {name} does not run: {error}: use the model as "
                           "it is, or let its forward only call its layers") from error
    for was, now in zip(before, after, strict=True):
        a, b = (np.asarray(host_array(t), np.float64) for t in (was, now))
        size = float(np.abs(a).max(initial=0))
        if not np.allclose(a, b, rtol=0, atol=SAME * size + 1e-6, equal_nan=True):
            raise RuntimeError(f"fold_batch_norm: the folded copy of this {name} gives outputs that differ by up to "
                               f"{np.abs(a - b).max():.3g}, where the largest is {size:.3g}: a convolution's output is "
                               "read past the graph, by .data, numpy() or detach(); use the model as it is")
