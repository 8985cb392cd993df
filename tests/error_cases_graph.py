"""Mistakes with the graph: backward passes, changes in place, hooks, own ops; and numbers that go astray."""

import copy

import numpy as np
from error_case import chapter, floats, leaf

import tinyres as tr
from tinyres import nn, optim

case = chapter("Graph and gradients")


@case("Backward from many elements", RuntimeError, "backward", "(2, 3)", "needs a gradient", fix="sum() or mean()")
def _(folder):
    x = leaf(2, 3)
    y = x * x
    return lambda: y.backward(), x, y


@case("Backward where nothing requires a gradient", RuntimeError, "backward", "nothing", fix="requires_grad=True")
def _(folder):
    x = leaf(3)
    with tr.no_grad():
        y = (x * x).sum()
    return lambda: y.backward(), x, y


@case("Backward twice through one graph", RuntimeError, "mul: backward a second time", "freed",
      fix="retain_graph=True")
def _(folder):
    x = leaf(3)
    y = (x * x).sum()
    y.backward()
    return lambda: y.backward(), x, y


@case("A starting gradient of another shape", ValueError, "backward", "float32 (2, 3)", "float32 (3, 2)",
      fix="the tensor's shape and dtype")
def _(folder):
    x, grad = leaf(2, 3), floats(3, 2)
    y = x * 2.0
    return lambda: y.backward(grad), x, y, grad


@case("A kept array changed in place", RuntimeError, "mul kept an array", "(3,)", "add_ changed it",
      fix="without underscore")
def _(folder):
    x = leaf(3)
    y = x * 1.0
    loss = (y * y).sum()
    y.add_(1.0)
    return lambda: loss.backward(), x, y, loss


@case("An optimizer's step between two backward passes", RuntimeError, "matmul kept an array", "(2, 2)",
      "SGD.step changed it", fix="call backward() before the change")
def _(folder):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    loss = model(floats(2, 2)).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    return lambda: loss.backward(), model, optimizer


@case("A raw write into .data, found by tr.debug()", RuntimeError, "mul kept an array", "(3,)",
      "wrote into its memory", fix="a raw write into .data or a NumPy view")
def _(folder):
    x = leaf(3)
    with tr.debug():
        y = x * 1.0
        loss = (y * y).sum()
    y.data[0] = 5.0

    def wrong():
        with tr.debug():
            loss.backward()

    return wrong, x, y


@case("A leaf changed in place", RuntimeError, "sub_", "a leaf that requires a gradient", fix="no_grad()")
def _(folder):
    x = leaf(3)

    def wrong():
        y = x
        y -= 0.1

    return wrong, x


@case("A slice of a result assigned to", RuntimeError, "setitem", "computed", "lose its gradient", fix="use where()")
def _(folder):
    x = leaf(3)
    y = x * 2.0
    return lambda: y.__setitem__(0, 1.0), x, y


@case("A slice of a leaf assigned to", RuntimeError, "setitem", "a leaf that requires a gradient", fix="no_grad()")
def _(folder):
    x = leaf(3)
    return lambda: x.__setitem__(0, 1.0), x


@case("requires_grad set on a result", RuntimeError, "requires_grad", "made by mul", "set on leaves", fix="detach()")
def _(folder):
    x = leaf(3)
    y = x * 2.0
    return lambda: y.requires_grad_(False), x, y


@case("A result copied deeply", RuntimeError, "deepcopy", "made by mul", "only leaves", fix="detach()")
def _(folder):
    x = leaf(3)
    y = x * 2.0
    return lambda: copy.deepcopy(y), x, y


@case("The gradient of a tensor that wants none", RuntimeError, "grad: input 0", "(2,)", fix="requires_grad=True")
def _(folder):
    x, y = leaf(2), tr.ones(2)
    loss = (x * y).sum()
    return lambda: tr.grad(loss, y), x, y


@case("The gradient of what the output does not depend on", RuntimeError, "grad", "input 0", "(2,)",
      fix="allow_unused=True")
def _(folder):
    x, y = leaf(2), leaf(2)
    loss = (x * x).sum()
    return lambda: tr.grad(loss, y), x, y


@case("The gradient of a plain array", TypeError, "grad: input 0", "ndarray", "a Tensor", fix="tr.tensor(x,")
def _(folder):
    x, array = leaf(2), floats(2)
    loss = (x * array).sum()
    return lambda: tr.grad(loss, array), x, array


@case("More gradients than outputs", ValueError, "grad", "1 outputs", "2 grad_outputs", fix="give one an output")
def _(folder):
    x = leaf(2)
    y, ones = x * 2.0, np.ones(2, np.float32)
    return lambda: tr.grad(y, x, [ones, ones]), x, y


@case("Fewer vectors than inputs", ValueError, "hvp", "1 inputs", "0 vectors", fix="give one an input")
def _(folder):
    x = leaf(2)
    loss = (x * x).sum()
    return lambda: tr.hvp(loss, [x], []), x


@case("tr.why of an array", TypeError, "why", "ndarray", "a Tensor", fix="model.fc.weight")
def _(folder):
    x = floats(2)
    return lambda: tr.why(x), x


case = chapter("Hooks and ops of one's own")


@case("A hook that is no function", TypeError, "register_hook", "NoneType", "a function", fix="without calling it")
def _(folder):
    x = leaf(3)
    return lambda: x.register_hook(None), x


@case("A hook where no gradient comes", RuntimeError, "register_hook", "does not require", fix="requires_grad=True")
def _(folder):
    x = tr.ones(3)
    return lambda: x.register_hook(print), x


@case("A hook that returns another shape", RuntimeError, "a hook on a leaf", "float32 (5,)", "float32 (3,)",
      fix="of that shape and dtype, or None")
def _(folder):
    x = leaf(3)
    x.register_hook(lambda grad: np.ones(5, np.float32))
    loss = (x * 2.0).sum()
    return lambda: loss.backward(), x


@case("A module's hook that returns too much", ValueError, "ReLU's full backward hook", "2 gradients", "1 inputs",
      fix="one for each positional argument")
def _(folder):
    x, layer = leaf(3), nn.ReLU()
    layer.register_full_backward_hook(lambda module, grad_input, grad_output: (1, 2))
    loss = layer(x).sum()
    return lambda: loss.backward(), x, layer


class Doubled(tr.Function):
    def forward(self, x):
        return x * 2.0


class Halved(Doubled):
    def backward(self, grad):
        return grad[:1]


class Twice(Doubled):
    def backward(self, grad):
        return grad, grad


class Total(tr.Function):
    def forward(self, x):
        return float(x.sum())


@case("An op without a backward rule", TypeError, "doubled", "backward(self, grad)", fix="must define")
def _(folder):
    x = leaf(3)
    loss = Doubled.apply(x).sum()
    return lambda: loss.backward(), x


@case("A rule that gives a gradient of another shape", RuntimeError, "halved.backward", "float32 (1,)",
      "float32 (3,)", fix="its input's shape and dtype")
def _(folder):
    x = leaf(3)
    loss = Halved.apply(x).sum()
    return lambda: loss.backward(), x


@case("A rule that gives too many gradients", RuntimeError, "twice.backward", "2 gradients", "1 inputs",
      fix="one per input")
def _(folder):
    x = leaf(3)
    loss = Twice.apply(x).sum()
    return lambda: loss.backward(), x


@case("An op that returns a Python number", TypeError, "total.forward", "float", "one array", fix="np.asarray(")
def _(folder):
    x = leaf(3)
    return lambda: Total.apply(x), x


case = chapter("NaN and Inf")


@case("A NaN in the forward pass, under tr.debug()", FloatingPointError, "log made the first NaN", "(1,) from -1 to -1",
      "forward pass", fix="(called at ")
def _(folder):
    x = tr.tensor([-1.0], requires_grad=True)

    def wrong():
        with tr.debug():
            tr.log(x)

    return wrong, x


@case("An Inf in the backward pass, under tr.debug()", FloatingPointError, "sqrt made the first Inf",
      "(1,) from 1 to 1", "backward pass", fix="(called at ")
def _(folder):
    x = tr.tensor([0.0], requires_grad=True)

    def wrong():
        with tr.debug():
            tr.sqrt(x).sum().backward()

    return wrong, x


@case("Gradients clipped that are not finite", RuntimeError, "clip_grad_norm_", "norm is nan", fix="tr.debug()")
def _(folder):
    x = leaf(2)
    x.grad = tr.tensor([np.nan, 1.0], dtype="float32")
    return lambda: optim.clip_grad_norm_([x], 1.0, error_if_nonfinite=True), x
