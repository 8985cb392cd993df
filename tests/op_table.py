"""One table of all ops. A row says how to call one, on which inputs, and what must come out; the tests make the rest of it.

    Row(name, inputs, oracle, torch, call)

inputs: one maker per input, rng -> float64, integer or boolean array. The values stay away from the places where the op has
no derivative, by more than the step of a finite difference. oracle: the same function in NumPy. call, if it is not simply
the op: how it is called. torch: PyTorch's counterpart, given the module first; absent where PyTorch has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles

from tinyres import manual_seed, ops

# Ops without a row, and why. tests/test_ops.py has a test of its own for each.
WITHOUT_ROW = {
    "arange": "makes a tensor, has no input",
    "ones": "makes a tensor, has no input",
    "zeros": "makes a tensor, has no input",
    "rand": "makes a tensor, has no input",
    "randn": "makes a tensor, has no input",
    "tensor": "makes a leaf: nothing flows back through it",
    "relu_": "changes its input in place, so it cannot run on a leaf",
}


@dataclass(frozen=True)
class Row:
    name: str
    inputs: tuple[Callable, ...]
    oracle: Callable
    torch: Callable | None = None
    call: Callable | None = None
    case: str = ""
    constant: tuple[int, ...] = ()  # float inputs that get no gradient
    written: tuple[int, ...] = ()   # inputs that the op changes in place
    layout_kept: bool = True        # a 4-D result lies channels-last (a view of something else need not)
    kernels: bool = False           # computed by a kernel that exists more than once: tested in each set

    @property
    def id(self) -> str:
        return f"{self.name}-{self.case}" if self.case else self.name

    def make(self, dtype: str = "float64", seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        made = [maker(rng) for maker in self.inputs]
        return [a.astype(dtype) if a.dtype.kind == "f" else a for a in made]

    def run(self, *inputs: Any) -> Any:
        return (self.call or getattr(ops, self.name))(*inputs)

    def differentiable(self, arrays: list[np.ndarray]) -> list[int]:
        return [i for i, a in enumerate(arrays) if a.dtype.kind == "f" and i not in self.constant]


def normal(*shape):
    return lambda rng: np.asarray(rng.standard_normal(shape))


def positive(*shape):
    return lambda rng: np.asarray(rng.uniform(0.5, 2.0, shape))


def nonzero(*shape):
    """Of either sign, at least 0.2 from zero."""
    return lambda rng: np.asarray(rng.uniform(0.2, 1.5, shape) * rng.choice([-1.0, 1.0], shape))


def distinct(*shape, shift=0.0):
    """Multiples of a quarter plus `shift`, each once: no two elements are near, nor near those of another shift."""

    def make(rng):
        count = int(np.prod(shape))
        return (rng.permutation(count).reshape(shape) - count // 2 + shift) / 4

    return make


def integers(high, *shape, low=0):
    return lambda rng: rng.integers(low, high, shape)


def booleans(*shape):
    return lambda rng: rng.random(shape) < 0.5


def probabilities(*shape):
    """Non-negative, adding up to 1 over dim 1."""

    def make(rng):
        p = rng.random(shape)
        return p / p.sum(1, keepdims=True)

    return make


IMAGES = (2, 4, 5, 6)
x4 = normal(*IMAGES)

BINARY = {"add": normal, "sub": normal, "mul": normal, "div": nonzero, "pow": positive}
NUMPY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power}


def rows_elementwise():
    for name, maker in BINARY.items():
        torch_op = (lambda t, a, b, n=name: getattr(t, n)(a, b))
        yield Row(name, (maker(2, 3), maker(2, 3)), NUMPY[name], torch_op)
        yield Row(name, (maker(2, 3, 2, 4), maker(3, 1, 1)), NUMPY[name], torch_op, case="4d-channel")
        yield Row(name, (maker(2, 3),), lambda x, n=name: NUMPY[n](x, 1.5), lambda t, x, n=name: getattr(t, n)(x, 1.5),
                  lambda x, n=name: getattr(ops, n)(x, 1.5), case="number-right")
        yield Row(name, (maker(2, 3),), lambda x, n=name: NUMPY[n](1.5, x),
                  lambda t, x, n=name: getattr(t, n)(t.tensor(1.5, dtype=x.dtype), x),
                  lambda x, n=name: getattr(ops, n)(1.5, x), case="number-left")
        yield Row(name, (maker(2, 3), integers(5, 3, low=1)), lambda a, b, n=name: NUMPY[n](a, b), torch_op, case="integers")
    yield Row("pow", (nonzero(2, 3),), lambda x: x**3, lambda t, x: x**3, lambda x: ops.pow(x, 3), case="cube")
    for name in ("maximum", "minimum"):
        oracle, torch_op = getattr(np, name), (lambda t, a, b, n=name: getattr(t, n)(a, b))
        yield Row(name, (distinct(2, 3), distinct(2, 3, shift=0.5)), oracle, torch_op)
        yield Row(name, (distinct(2, 3, 2, 2), distinct(3, 1, 1, shift=0.5)), oracle, torch_op, case="4d-channel")
        yield Row(name, (distinct(2, 3, shift=0.5),), lambda x, n=name: getattr(np, n)(x, 0.0), None,
                  lambda x, n=name: getattr(ops, n)(x, 0.0), case="number-right")
        yield Row(name, (distinct(2, 3, shift=0.5),), lambda x, n=name: getattr(np, n)(0.0, x), None,
                  lambda x, n=name: getattr(ops, n)(0.0, x), case="number-left")
    yield Row("where", (booleans(2, 3), normal(2, 3), normal(2, 3)), np.where, lambda t, m, a, b: t.where(m, a, b))
    yield Row("where", (booleans(2, 3, 2, 4), normal(3, 1, 1), normal(2, 1, 2, 1)), np.where,
              lambda t, m, a, b: t.where(m, a, b), case="4d-broadcast")
    yield Row("where", (booleans(3), normal(2, 3)), lambda m, a: np.where(m, a, 0.5), lambda t, m, a: t.where(m, a, 0.5),
              lambda m, a: ops.where(m, a, 0.5), case="number")
    for name, maker in {"neg": normal, "exp": normal, "log": positive, "sqrt": positive, "tanh": normal, "sigmoid": normal,
                        "abs": nonzero, "relu": nonzero}.items():
        oracle = {"neg": np.negative, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "relu": lambda x: np.maximum(x, 0)}.get(
            name) or getattr(np, name)
        yield Row(name, (maker(2, 3),), oracle, lambda t, x, n=name: getattr(t, n)(x))
        yield Row(name, (maker(*IMAGES),), oracle, lambda t, x, n=name: getattr(t, n)(x), case="4d")
        yield Row(name, (maker(),), oracle, lambda t, x, n=name: getattr(t, n)(x), case="0d")
    for case, low, high in (("both", -0.8, 0.6), ("min", 0.1, None), ("max", None, 0.1)):
        yield Row("clamp", (distinct(2, 3, 2, 2),), lambda x, lo=low, hi=high: np.clip(x, lo, hi),
                  lambda t, x, lo=low, hi=high: t.clamp(x, lo, hi), lambda x, lo=low, hi=high: ops.clamp(x, lo, hi),
                  case=case)


def rows_shape():
    def row(name, shape, oracle, torch_op, call=None, case="", **more):
        return Row(name, (normal(*shape),), oracle, torch_op, call, case, **more)

    yield row("reshape", (2, 6), lambda x: x.reshape(3, 4), lambda t, x: x.reshape(3, 4), lambda x: ops.reshape(x, 3, 4))
    yield row("reshape", IMAGES, lambda x: x.reshape(2, -1), lambda t, x: x.reshape(2, -1),
              lambda x: ops.reshape(x, (2, -1)), "4d-to-2d")
    yield row("reshape", (2, 24), lambda x: x.reshape(2, 4, 3, 2), lambda t, x: x.reshape(2, 4, 3, 2),
              lambda x: ops.reshape(x, (2, 4, 3, 2)), "2d-to-4d")
    yield row("flatten", IMAGES, lambda x: x.reshape(2, -1), lambda t, x: x.flatten(1), lambda x: ops.flatten(x, 1))
    yield row("flatten", (), lambda x: x.reshape(1), lambda t, x: x.flatten(), ops.flatten, "0d")
    yield row("unsqueeze", (2, 3), lambda x: x[:, None], lambda t, x: x.unsqueeze(1), lambda x: ops.unsqueeze(x, 1))
    yield row("unsqueeze", (2, 3, 4), lambda x: x[..., None], lambda t, x: x.unsqueeze(-1), lambda x: ops.unsqueeze(x, -1),
              "to-4d")
    yield row("squeeze", (2, 1, 3, 1), lambda x: x[:, 0, :, 0], lambda t, x: x.squeeze())
    yield row("squeeze", (2, 1, 3, 1), lambda x: x[:, 0], lambda t, x: x.squeeze(1), lambda x: ops.squeeze(x, 1), "dim")
    yield row("squeeze", (2, 3), lambda x: x, lambda t, x: x.squeeze(0), lambda x: ops.squeeze(x, 0), "nothing")
    yield row("permute", IMAGES, lambda x: x.transpose(2, 0, 3, 1), lambda t, x: x.permute(2, 0, 3, 1),
              lambda x: ops.permute(x, 2, 0, -1, 1), layout_kept=False)
    yield row("transpose", (2, 3, 4), lambda x: x.swapaxes(0, 2), lambda t, x: x.transpose(0, 2),
              lambda x: ops.transpose(x, 0, -1))
    yield row("channels_last", IMAGES, lambda x: x, lambda t, x: x.contiguous(memory_format=t.channels_last))
    yield row("alias", (2, 3), lambda x: x, None)
    yield row("to", IMAGES, lambda x: x, lambda t, x: x.to("cpu"), lambda x: ops.to(x, "cpu"))
    yield row("broadcast_to", (3, 1), lambda x: np.broadcast_to(x, (2, 3, 4)), lambda t, x: t.broadcast_to(x, (2, 3, 4)),
              lambda x: ops.broadcast_to(x, (2, 3, 4)))
    yield row("broadcast_to", (3, 1, 1), lambda x: np.broadcast_to(x, (2, 3, 4, 5)), None,
              lambda x: ops.broadcast_to(x, (2, 3, 4, 5)), "4d", layout_kept=False)
    yield row("sum_to", (2, 3, 4), lambda x: x.sum((0, 2)).reshape(3, 1), lambda t, x: x.sum_to_size(3, 1),
              lambda x: ops.sum_to(x, (3, 1)))
    yield row("sum_to", IMAGES, lambda x: x.sum((0, 2, 3), keepdims=True), lambda t, x: x.sum_to_size(1, 4, 1, 1),
              lambda x: ops.sum_to(x, (1, 4, 1, 1)), "4d")
    for case, index in {"slice": (slice(None), slice(1, 4, 2)), "integer": (0, -1), "reverse": (Ellipsis, slice(None, None, -1)),
                        "newaxis": (slice(None), None, 1), "repeats": (np.array([0, 1, 1, 0, 1]),),
                        "two-arrays": (np.array([0, 1, 1, 1]), slice(None), np.array([2, 0, 2, 2])),
                        "mask": np.arange(12).reshape(2, 6) % 3 == 0}.items():
        shape = (2, 6) if case == "mask" else (2, 5, 3)
        torch_op = None if case == "reverse" else lambda t, x, i=index: x[i]
        yield row("getitem", shape, lambda x, i=index: x[i], torch_op, lambda x, i=index: ops.getitem(x, i), case)
        picked = np.zeros(shape)[index].shape
        yield row("put", picked, lambda v, i=index, s=shape: _put(v, i, s), None,
                  lambda v, i=index, s=shape: ops.put(v, i, s), case)
    yield row("getitem", IMAGES, lambda x: x[:, :, ::2, 1:], lambda t, x: x[:, :, ::2, 1:],
              lambda x: ops.getitem(x, (slice(None), slice(None), slice(None, None, 2), slice(1, None))), "4d",
              layout_kept=False)
    for dim, shape in ((0, (4, 3)), (1, (2, 5)), (2, (2, 3, 4))):
        size = (*shape[:dim], 3, *shape[dim + 1:])
        yield Row("gather", (normal(*shape), integers(shape[dim], *size)),
                  lambda x, i, d=dim: np.take_along_axis(x, i, d), lambda t, x, i, d=dim: t.gather(x, d, i),
                  lambda x, i, d=dim: ops.gather(x, d, i), case=f"dim{dim}")
    for case, shape, widths in (("2d", (2, 3), (1, 2, 0, 1)), ("4d", IMAGES, (1, 0, 2, 1)), ("channels", IMAGES, (0, 0, 0, 0, 1, 2)),
                                ("crop", IMAGES, (-1, 2, 0, -2))):
        for value in (0.0, 1.5) if case != "channels" else (0.0,):
            yield row("pad", shape, lambda x, w=widths, v=value: _pad(x, w, v),
                      lambda t, x, w=widths, v=value: t.nn.functional.pad(x, w, value=v),
                      lambda x, w=widths, v=value: ops.pad(x, w, v), f"{case}-{value}")
    for name in ("concat", "cat"):
        for dim in range(4):
            shapes = [(*IMAGES[:dim], n, *IMAGES[dim + 1:]) for n in (1, 3, 2)]
            yield Row(name, tuple(normal(*s) for s in shapes), lambda *xs, d=dim: np.concatenate(xs, d),
                      lambda t, *xs, d=dim: t.cat(xs, d), lambda *xs, d=dim, n=name: getattr(ops, n)(xs, d), case=f"dim{dim}")
    yield Row("concat", (normal(2, 3), normal(2, 1)), lambda *xs: np.concatenate(xs, 1), lambda t, *xs: t.cat(xs, 1),
              lambda *xs: ops.concat(xs, -1), case="2d")
    yield Row("stack", (normal(2, 3), normal(2, 3)), lambda *xs: np.stack(xs, 1), lambda t, *xs: t.stack(xs, 1),
              lambda *xs: ops.stack(xs, 1))
    yield Row("stack", (normal(2, 3, 4), normal(2, 3, 4)), lambda *xs: np.stack(xs, -1), lambda t, *xs: t.stack(xs, -1),
              lambda *xs: ops.stack(xs, -1), case="to-4d")
    yield row("split", (5, 2), lambda x: (x[:2], x[2:4], x[4:]), lambda t, x: t.split(x, 2), lambda x: ops.split(x, 2))
    yield row("split", IMAGES, lambda x: (x[:, :1], x[:, 1:]), lambda t, x: t.split(x, [1, 3], 1),
              lambda x: ops.split(x, [1, 3], 1), "sizes", layout_kept=False)


def _put(values, index, shape):
    out = np.zeros(shape)
    np.add.at(out, index, values)
    return out


def _pad(x, widths, value):
    for axis, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True), 1):
        keep = [slice(None)] * x.ndim
        keep[-axis] = slice(max(0, -before), x.shape[-axis] - max(0, -after))
        grow = [(0, 0)] * x.ndim
        grow[-axis] = max(0, before), max(0, after)
        x = np.pad(x[tuple(keep)], grow, constant_values=value)
    return x


def rows_reduce():
    dims = {"all": (None, False), "dim": (1, False), "keepdim": (-1, True), "two": ((0, 2), False), "two-keepdim": ((0, 2), True)}
    for name in ("sum", "mean", "amax", "amin", "logsumexp", "var", "std"):
        for case, (dim, keep) in dims.items():
            if name == "logsumexp" and dim is None:
                torch_op = lambda t, x: t.logsumexp(x, (0, 1, 2))  # noqa: E731
            elif dim is None:
                torch_op = lambda t, x, n=name: getattr(t, n)(x)  # noqa: E731
            else:
                torch_op = lambda t, x, n=name, d=dim, k=keep: getattr(t, n)(x, d, keepdim=k)  # noqa: E731
            yield Row(name, (distinct(2, 3, 4),), lambda x, n=name, d=dim, k=keep: _reduced(n, x, d, k), torch_op,
                      lambda x, n=name, d=dim, k=keep: getattr(ops, n)(x, d, k), case)
        yield Row(name, (distinct(2, 2, 3, 2),), lambda x, n=name: _reduced(n, x, (2, 3), True), None,
                  lambda x, n=name: getattr(ops, n)(x, (2, 3), True), "4d-keepdim")
    for name in ("var", "std"):
        yield Row(name, (normal(3, 4),), lambda x, n=name: getattr(np, n)(x, 1), lambda t, x, n=name: getattr(t, n)(x, 1, correction=0),
                  lambda x, n=name: getattr(ops, n)(x, 1, correction=0), "biased")
    yield Row("sum", (integers(9, 2, 3),), lambda x: x.sum(1), lambda t, x: x.sum(1), lambda x: ops.sum(x, 1), "integers")
    for name in ("max", "min", "argmax", "argmin"):
        arg = getattr(np, name if name.startswith("arg") else "arg" + name)
        constant = (0,) if name.startswith("arg") else ()
        for case, dim, keep in (("dim", 1, False), ("keepdim", -1, True)):
            if name.startswith("arg"):
                oracle = lambda x, a=arg, d=dim, k=keep: a(x, d, keepdims=k)  # noqa: E731
            else:
                oracle = lambda x, a=arg, n=name, d=dim, k=keep: (getattr(x, n)(d, keepdims=k), a(x, d, keepdims=k))  # noqa: E731
            yield Row(name, (distinct(2, 3, 4),), oracle, lambda t, x, n=name, d=dim, k=keep: getattr(t, n)(x, d, keepdim=k),
                      lambda x, n=name, d=dim, k=keep: getattr(ops, n)(x, d, k), case, constant)
        yield Row(name, (distinct(2, 3, 4),), lambda x, n=name: np.asarray(getattr(x, n)()), lambda t, x, n=name: getattr(x, n)(),
                  case="all", constant=constant)
    for name in ("softmax", "log_softmax"):
        for dim in (0, -1):
            yield Row(name, (normal(3, 4),), lambda x, n=name, d=dim: _softmax(n, x, d), lambda t, x, n=name, d=dim: getattr(t, n)(x, d),
                      lambda x, n=name, d=dim: getattr(ops, n)(x, d), f"dim{dim}")
        yield Row(name, (normal(2, 3, 2, 2),), lambda x, n=name: _softmax(n, x, 1), lambda t, x, n=name: getattr(t, n)(x, 1),
                  lambda x, n=name: getattr(ops, n)(x, 1), "4d")


def _reduced(name, x, dim, keep):
    if name == "logsumexp":
        return np.log(np.exp(x).sum(dim, keepdims=keep))
    correction = {"ddof": 1} if name in ("var", "std") else {}
    return np.asarray(getattr(np, name)(x, dim, keepdims=keep, **correction))


def _softmax(name, x, dim):
    out = oracles.log_softmax(x, dim)
    return out if name == "log_softmax" else np.exp(out)


def rows_linear():
    for case, a, b in (("2d", (2, 3), (3, 4)), ("batch", (2, 2, 3), (2, 3, 2)), ("broadcast", (2, 3), (3, 1, 3, 2)),
                       ("vector-matrix", (3,), (3, 4)), ("matrix-vector", (2, 3), (3,)), ("vectors", (3,), (3,)),
                       ("batch-vector", (2, 2, 3), (3,)), ("vector-batch", (3,), (2, 3, 4)), ("4d", (2, 1, 2, 3), (2, 3, 2))):
        yield Row("matmul", (normal(*a), normal(*b)), lambda a, b: np.asarray(np.einsum(*_subscripts(a, b))),
                  lambda t, a, b: a @ b, case=case, layout_kept=False)
    for case, x in (("2d", (3, 4)), ("1d", (4,)), ("3d", (2, 3, 4))):
        for bias in (True, False):
            inputs = (normal(*x), normal(5, 4)) + ((normal(5),) if bias else ())
            yield Row("linear", inputs, lambda x, w, b=0.0: (x[..., None, :] * w).sum(-1) + b,
                      lambda t, *a: t.nn.functional.linear(*a), case=case if bias else f"{case}-no-bias")


def _subscripts(a, b):
    """Arguments of einsum for a @ b, letters as numbers: 0 is summed, 1 and 2 are the outer ones, 3... the batch."""
    lead = max(a.ndim, b.ndim) - 2
    batch = [3 + i for i in range(max(lead, 0))]
    of_a = [0] if a.ndim == 1 else [*batch[len(batch) - (a.ndim - 2):], 1, 0]
    of_b = [0] if b.ndim == 1 else [*batch[len(batch) - (b.ndim - 2):], 0, 2]
    shape_a, shape_b = dict(zip(of_a, a.shape, strict=True)), dict(zip(of_b, b.shape, strict=True))
    full = {i: max(shape_a.get(i, 1), shape_b.get(i, 1)) for i in batch}
    a = np.broadcast_to(a, [full.get(i, n) for i, n in shape_a.items()])
    b = np.broadcast_to(b, [full.get(i, n) for i, n in shape_b.items()])
    return a, of_a, b, of_b, batch + [1] * (a.ndim > 1) + [2] * (b.ndim > 1)


def rows_images():
    geometry = {"plain": {}, "stride": {"stride": 2, "padding": 1}, "rectangular": {"stride": (1, 2), "padding": (2, 0)},
                "dilation": {"dilation": (1, 2), "padding": (0, 2)}, "groups": {"groups": 2, "padding": 1},
                "depthwise": {"groups": 4}}
    for case, options in geometry.items():
        groups = options.get("groups", 1)
        yield Row("conv2d", (x4, normal(4, 4 // groups, 3, 2), normal(4)), lambda *a, o=options: oracles.conv2d(*a, **o),
                  lambda t, *a, o=options: t.nn.functional.conv2d(*a, **o), lambda *a, o=options: ops.conv2d(*a, **o),
                  case, kernels=True)
    yield Row("conv2d", (x4, normal(3, 4, 1, 1)), oracles.conv2d, lambda t, x, w: t.nn.functional.conv2d(x, w),
              case="pointwise", kernels=True)
    yield Row("conv2d", (x4, normal(2, 4, 3, 5)), lambda x, w: oracles.conv2d(x, w, padding=(1, 2)),
              lambda t, x, w: t.nn.functional.conv2d(x, w, padding="same"), lambda x, w: ops.conv2d(x, w, padding="same"),
              "same", kernels=True)
    geometry = {"plain": {}, "stride": {"stride": 2, "padding": 1, "output_padding": 1},
                "rectangular": {"stride": (3, 1), "padding": (0, 1), "output_padding": (2, 0)},
                "dilation": {"dilation": 2, "stride": (1, 2)}, "groups": {"groups": 2, "stride": 2}}
    for case, options in geometry.items():
        channels = 2 if options.get("groups", 1) == 2 else 3
        bias = channels * options.get("groups", 1)
        yield Row("conv_transpose2d", (normal(2, 4, 2, 3), normal(4, channels, 3, 2), normal(bias)),
                  lambda *a, o=options: oracles.conv_transpose2d(*a, **o),
                  lambda t, *a, o=options: t.nn.functional.conv_transpose2d(*a, **o),
                  lambda *a, o=options: ops.conv_transpose2d(*a, **o), case, kernels=True)

    pooled = distinct(2, 3, 5, 6)
    for case, args, options in (("plain", (2,), {}), ("overlap", (3, 2, 1), {}), ("rectangular", ((2, 3), (2, 1), (1, 0)), {}),
                                ("ceil", (2, 2), {"ceil_mode": True}), ("ceil-pad", (3, 3, 1), {"ceil_mode": True})):
        for name in ("max_pool2d", "avg_pool2d"):
            yield Row(name, (pooled,), lambda x, n=name, a=args, o=options: getattr(oracles, n)(x, *a, **o),
                      lambda t, x, n=name, a=args, o=options: getattr(t.nn.functional, n)(x, *a, **o),
                      lambda x, n=name, a=args, o=options: getattr(ops, n)(x, *a, **o), case, kernels=True)
    yield Row("max_pool2d", (pooled,), lambda x: oracles.max_pool2d(x, 2, 1, 0, (2, 3)),
              lambda t, x: t.nn.functional.max_pool2d(x, 2, 1, 0, (2, 3)), lambda x: ops.max_pool2d(x, 2, 1, 0, (2, 3)),
              "dilation", kernels=True)
    yield Row("avg_pool2d", (pooled,), lambda x: oracles.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
              lambda t, x: t.nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
              lambda x: ops.avg_pool2d(x, 3, 2, 1, count_include_pad=False), "without-pad", kernels=True)
    for name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
        for case, size in (("one", 1), ("uneven", (2, 4)), ("divides", (5, 3)), ("larger", (7, 4))):
            yield Row(name, (pooled,), lambda x, n=name, s=size: getattr(oracles, n)(x, s),
                      lambda t, x, n=name, s=size: getattr(t.nn.functional, n)(x, s),
                      lambda x, n=name, s=size: getattr(ops, n)(x, s), case, kernels=True)
    yield Row("global_avg_pool2d", (x4,), lambda x: x.mean((2, 3)), lambda t, x: x.mean((2, 3)))


def rows_norm_and_loss():
    for case, shape in (("2d", (6, 3)), ("4d", (2, 3, 3, 2)), ("3d", (2, 3, 4))):
        for add in (False, True):
            for relu in (False, True):
                inputs = (normal(*shape), nonzero(3), normal(3)) + ((normal(*shape),) if add else ())
                yield Row("batch_norm", inputs, lambda *a, r=relu: oracles.batch_norm(*a, relu=r),
                          lambda t, *a, r=relu: _torch_batch_norm(t, *a, relu=r),
                          lambda x, w, b, z=None, r=relu: ops.batch_norm(x, None, None, w, b, True, add=z, relu=r),
                          case + "-add" * add + "-relu" * relu, kernels=True)
    yield Row("batch_norm", (normal(2, 3, 3, 2),), oracles.batch_norm, _torch_batch_norm,
              lambda x: ops.batch_norm(x, training=True), "no-affine", kernels=True)
    for add in (False, True):
        inputs = (normal(2, 3, 3, 2), normal(3), positive(3), nonzero(3), normal(3)) + ((normal(2, 3, 3, 2),) if add else ())
        yield Row("batch_norm", inputs,
                  lambda x, m, v, w, b, z=None: oracles.batch_norm(x, w, b, z, mean=m, var=v, relu=True), None,
                  lambda x, m, v, w, b, z=None: ops.batch_norm(x, m, v, w, b, False, add=z, relu=True),
                  "eval-add-relu" if add else "eval-relu", constant=(1, 2), kernels=True)
    yield Row("batch_norm", (normal(5, 3), normal(3), positive(3)), lambda x, m, v: oracles.batch_norm(x, eps=0.1),
              lambda t, x, m, v: t.nn.functional.batch_norm(x, m, v, training=True, eps=0.1),
              lambda x, m, v: ops.batch_norm(x, m, v, training=True, eps=0.1), "running", constant=(1, 2), written=(1, 2))
    for p in (0.25, 0.8):
        yield Row("dropout", (normal(2, 3, 4, 2),), lambda x, p=p: _dropped(x, p), None,
                  lambda x, p=p: (manual_seed(5), ops.dropout(x, p))[1], f"p{p}")
    yield Row("dropout", (normal(2, 3),), lambda x: x, None, lambda x: ops.dropout(x, 0.5, training=False), "eval")

    for reduction in ("mean", "sum", "none"):
        for smoothing in (0.0, 0.2):
            options = {"label_smoothing": smoothing, "reduction": reduction}
            for case, logits, labels in (("", normal(4, 3), integers(3, 4)), ("-dense", normal(2, 3, 2, 2), integers(3, 2, 2, 2)),
                                         ("-probabilities", normal(4, 3), probabilities(4, 3))):
                yield Row("cross_entropy", (logits, labels), lambda *a, o=options: np.asarray(oracles.cross_entropy(*a, **o)),
                          lambda t, *a, o=options: t.nn.functional.cross_entropy(*a, **o),
                          lambda *a, o=options: ops.cross_entropy(*a, **o), f"{reduction}-{smoothing}{case}", constant=(1,))
        yield Row("nll_loss", (normal(4, 3), integers(3, 4)), lambda x, y, r=reduction: _reduction(-x[np.arange(4), y], r),
                  lambda t, x, y, r=reduction: t.nn.functional.nll_loss(x, y, reduction=r),
                  lambda x, y, r=reduction: ops.nll_loss(x, y, r), reduction)
        yield Row("mse_loss", (normal(2, 3), normal(2, 3)), lambda x, y, r=reduction: _reduction((x - y) ** 2, r),
                  lambda t, x, y, r=reduction: t.nn.functional.mse_loss(x, y, reduction=r),
                  lambda x, y, r=reduction: ops.mse_loss(x, y, r), reduction)


def _torch_batch_norm(t, x, w=None, b=None, add=None, relu=False):
    y = t.nn.functional.batch_norm(x, None, None, w, b, True)
    y = y if add is None else y + add
    return y.relu() if relu else y


def _dropped(x, p):
    keep = np.random.Generator(np.random.Philox(5)).random(x.shape, dtype=np.float32) >= p
    return np.where(keep, x / (1 - p), 0)


def _reduction(losses, reduction):
    return np.asarray({"mean": losses.mean, "sum": losses.sum, "none": lambda: losses}[reduction]())


def rows_dtype():  # the result's dtype is asked for, so these two are not among those whose dtype follows the input
    yield Row("astype", (normal(2, 3),), lambda x: x, lambda t, x: x.double(), lambda x: ops.astype(x, "float64"))


ROWS = [*rows_elementwise(), *rows_shape(), *rows_reduce(), *rows_linear(), *rows_images(), *rows_norm_and_loss(), *rows_dtype()]
