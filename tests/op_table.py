"""One table of all ops. A row says how to call one, on which inputs, and what must come out; tests make the rest of it.

    Row(name, inputs, oracle, torch, call, case)

inputs: one maker per input, rng -> float64, integer or boolean array. The values stay away from where the op has no
derivative, by more than the step of a finite difference. oracle: the same function in NumPy. torch: PyTorch's
counterpart, given the module first; None where it has none. call: how the op is called, if not simply on its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles

from tinyres import manual_seed, ops

# Ops without a row, and why. tests/test_ops_methods.py has a test of its own for each.
WITHOUT_ROW = {
    "device": "checks a name, has no input",
    "from_dlpack": "makes a leaf: nothing flows back through it",
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


# ---- inputs ----


def normal(*shape):
    return lambda rng: np.asarray(rng.standard_normal(shape))


def positive(*shape):
    return lambda rng: np.asarray(rng.uniform(0.5, 2.0, shape))


def nonzero(*shape):
    """Half of them negative, at least 0.2 from zero."""
    signs = np.resize([-1.0, 1.0], int(np.prod(shape)))
    return lambda rng: rng.uniform(0.2, 1.5, shape) * rng.permutation(signs).reshape(shape)


def distinct(*shape, shift=0.0):
    """Multiples of a quarter plus a quarter of `shift`, each once: no two are near, nor near one of another shift."""
    count = int(np.prod(shape))
    return lambda rng: (rng.permutation(count).reshape(shape) - count // 2 + shift) / 4


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

# ---- the same function here, in NumPy and in PyTorch, each given further arguments behind its inputs ----


def ours(name, *args, **options):
    return lambda *xs: getattr(ops, name)(*xs, *args, **options)


def oracle(name, *args, **options):
    return lambda *xs: np.asarray(getattr(oracles, name)(*xs, *args, **options))


def theirs(name, *args, **options):
    return lambda torch, *xs: getattr(torch, name)(*xs, *args, **options)


def functional(name, *args, **options):
    return lambda torch, *xs: getattr(torch.nn.functional, name)(*xs, *args, **options)


# ---- rows ----

BINARY = {"add": normal, "sub": normal, "mul": normal, "div": nonzero, "pow": positive}
UNARY = {"neg": normal, "exp": normal, "log": positive, "sqrt": positive, "tanh": normal, "sigmoid": normal,
         "abs": nonzero, "relu": nonzero}
NUMPY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power, "neg": np.negative,
         "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "relu": lambda x: np.maximum(x, 0),
         **{name: getattr(np, name) for name in ("exp", "log", "sqrt", "tanh", "abs", "maximum", "minimum")}}


def number_left(name, number):
    return lambda x: getattr(ops, name)(number, x)


def rows_elementwise():
    for name, maker in BINARY.items():
        fn, torch = NUMPY[name], theirs(name)
        yield Row(name, (maker(2, 3), maker(2, 3)), fn, torch)
        yield Row(name, (maker(2, 3, 2, 4), maker(3, 1, 1)), fn, torch, case="4d-channel")
        yield Row(name, (maker(2, 3), integers(5, 3, low=1)), fn, torch, case="integers")
        yield Row(name, (maker(2, 3),), lambda x, fn=fn: fn(x, 1.5), theirs(name, 1.5), ours(name, 1.5), "number-right")
        yield Row(name, (maker(2, 3),), lambda x, fn=fn: fn(1.5, x), None, number_left(name, 1.5), "number-left")
    yield Row("pow", (nonzero(2, 3),), lambda x: x**3, theirs("pow", 3), ours("pow", 3), "cube")
    for name in ("maximum", "minimum"):
        fn, half = NUMPY[name], distinct(2, 3, shift=0.5)
        yield Row(name, (distinct(2, 3), half), fn, theirs(name))
        yield Row(name, (distinct(2, 3, 2, 2), distinct(3, 1, 1, shift=0.5)), fn, theirs(name), case="4d-channel")
        yield Row(name, (half,), lambda x, fn=fn: fn(x, 0.0), None, ours(name, 0.0), "number-right")
        yield Row(name, (half,), lambda x, fn=fn: fn(0.0, x), None, number_left(name, 0.0), "number-left")
    yield Row("where", (booleans(2, 3), normal(2, 3), normal(2, 3)), np.where, theirs("where"))
    yield Row("where", (booleans(2, 3, 2, 4), normal(3, 1, 1), normal(2, 1, 2, 1)), np.where, theirs("where"), None,
              "4d-broadcast")
    yield Row("where", (booleans(3), normal(2, 3)), lambda m, a: np.where(m, a, 0.5), theirs("where", 0.5),
              ours("where", 0.5), "number")
    for name, maker in UNARY.items():
        for case, shape in (("", (2, 3)), ("4d", IMAGES), ("0d", ())):
            yield Row(name, (maker(*shape),), NUMPY[name], theirs(name), case=case)
    for case, bounds in (("both", (-0.8, 0.6)), ("min", (0.1, None)), ("max", (None, 0.1))):
        yield Row("clamp", (distinct(2, 3, 2, 2),), lambda x, b=bounds: np.clip(x, *b), theirs("clamp", *bounds),
                  ours("clamp", *bounds), case)


INDICES = {  # case -> index, shape of what is indexed
    "slice": ((slice(None), slice(1, 4, 2)), (2, 5, 3)),
    "integer": ((0, -1), (2, 5, 3)),
    "reverse": ((Ellipsis, slice(None, None, -1)), (2, 5, 3)),
    "newaxis": ((slice(None), None, 1), (2, 5, 3)),
    "repeats": ((np.array([0, 1, 1, 0, 1]),), (2, 5, 3)),
    "two-arrays": ((np.array([0, 1, 1, 1]), slice(None), np.array([2, 0, 2, 2])), (2, 5, 3)),
    "mask": (np.arange(12).reshape(2, 6) % 3 == 0, (2, 6)),
    "4d": ((slice(None), slice(None), slice(None, None, 2), slice(1, None)), IMAGES),
}


def rows_shape():
    def row(name, shape, fn, torch, args=(), case="", **more):
        return Row(name, (normal(*shape),), fn, torch, ours(name, *args), case, **more)

    def flat(x):
        return x.reshape(len(x), -1)

    yield row("reshape", (2, 6), lambda x: x.reshape(3, 4), theirs("reshape", (3, 4)), (3, 4))
    yield row("reshape", IMAGES, flat, theirs("reshape", (2, -1)), ((2, -1),), "4d-to-2d")
    yield row("reshape", (2, 24), lambda x: x.reshape(2, 4, 3, 2), theirs("reshape", (2, 4, 3, 2)), ((2, 4, 3, 2),),
              "2d-to-4d")
    yield row("flatten", IMAGES, flat, theirs("flatten", 1), (1,))
    yield row("flatten", (), lambda x: x.reshape(1), theirs("flatten"), case="0d")
    yield row("unsqueeze", (2, 3), lambda x: x[:, None], theirs("unsqueeze", 1), (1,))
    yield row("unsqueeze", (2, 3, 4), lambda x: x[..., None], theirs("unsqueeze", -1), (-1,), "to-4d")
    yield row("squeeze", (2, 1, 3, 1), lambda x: x[:, 0, :, 0], theirs("squeeze"))
    yield row("squeeze", (2, 1, 3, 1), lambda x: x[:, 0], theirs("squeeze", 1), (1,), "dim")
    yield row("squeeze", (2, 3), lambda x: x, theirs("squeeze", 0), (0,), "nothing")
    yield row("permute", IMAGES, lambda x: x.transpose(2, 0, 3, 1), theirs("permute", (2, 0, 3, 1)), (2, 0, -1, 1),
              layout_kept=False)
    yield row("transpose", (2, 3, 4), lambda x: x.swapaxes(0, 2), theirs("transpose", 0, 2), (0, -1))
    yield row("channels_last", IMAGES, lambda x: x, lambda t, x: x.contiguous(memory_format=t.channels_last))
    yield row("alias", (2, 3), lambda x: x, None)
    yield row("to", IMAGES, lambda x: x, lambda t, x: x.to("cpu"), ("cpu",))
    yield row("astype", (2, 3), lambda x: x, lambda t, x: x.double(), ("float64",))
    yield row("broadcast_to", (3, 1), lambda x: np.broadcast_to(x, (2, 3, 4)), theirs("broadcast_to", (2, 3, 4)),
              ((2, 3, 4),))
    yield row("broadcast_to", (3, 1, 1), lambda x: np.broadcast_to(x, (2, 3, 4, 5)),
              theirs("broadcast_to", (2, 3, 4, 5)), ((2, 3, 4, 5),), "4d", layout_kept=False)
    yield row("sum_to", (2, 3, 4), lambda x: x.sum((0, 2)).reshape(3, 1), lambda t, x: x.sum_to_size(3, 1), ((3, 1),))
    yield row("sum_to", IMAGES, lambda x: x.sum((0, 2, 3), keepdims=True), lambda t, x: x.sum_to_size(1, 4, 1, 1),
              ((1, 4, 1, 1),), "4d")
    for case, (index, shape) in INDICES.items():
        torch = None if case == "reverse" else lambda t, x, i=index: x[i]
        yield row("getitem", shape, lambda x, i=index: x[i], torch, (index,), case, layout_kept=False)
        yield row("put", np.zeros(shape)[index].shape, lambda v, i=index, s=shape: _put(v, i, s), None, (index, shape),
                  case)
    for dim, shape in ((0, (4, 3)), (1, (2, 5)), (2, (2, 3, 4))):
        index = integers(shape[dim], *shape[:dim], 3, *shape[dim + 1:])
        yield Row("gather", (normal(*shape), index), lambda x, i, d=dim: np.take_along_axis(x, i, d),
                  lambda t, x, i, d=dim: x.gather(d, i), lambda x, i, d=dim: ops.gather(x, d, i), f"dim{dim}")
    for case, shape, widths in (("2d", (2, 3), (1, 2, 0, 1)), ("4d", IMAGES, (1, 0, 2, 1)),
                                ("channels", IMAGES, (0, 0, 0, 0, 1, 2)), ("crop", IMAGES, (-1, 2, 0, -2))):
        for value in (0.0, 1.5):
            yield row("pad", shape, lambda x, w=widths, v=value: _pad(x, w, v), functional("pad", widths, value=value),
                      (widths, value), f"{case}-{value}")
    for name in ("concat", "cat"):
        for dim in range(4):
            shapes = [(*IMAGES[:dim], n, *IMAGES[dim + 1:]) for n in (1, 3, 2)]
            yield _joined(name, "concatenate", "cat", shapes, dim, f"dim{dim}")
    yield _joined("concat", "concatenate", "cat", [(2, 3), (2, 1)], -1, "2d")
    yield _joined("stack", "stack", "stack", [(2, 3), (2, 3)], 1, "")
    yield _joined("stack", "stack", "stack", [(2, 3, 4), (2, 3, 4)], -1, "to-4d")
    yield row("split", (5, 2), lambda x: (x[:2], x[2:4], x[4:]), theirs("split", 2), (2,))
    yield row("split", IMAGES, lambda x: (x[:, :1], x[:, 1:]), theirs("split", [1, 3], 1), ([1, 3], 1), "sizes",
              layout_kept=False)


def _joined(name, numpy, torch, shapes, dim, case):
    return Row(name, tuple(normal(*s) for s in shapes), lambda *xs: getattr(np, numpy)(xs, dim),
               lambda t, *xs: getattr(t, torch)(xs, dim), lambda *xs: getattr(ops, name)(xs, dim), case)


def _put(values, index, shape):
    out = np.zeros(shape)
    np.add.at(out, index, values)
    return out


def _pad(x, widths, value):
    for axis, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True), 1):
        keep, grow = [slice(None)] * x.ndim, [(0, 0)] * x.ndim
        keep[-axis] = slice(max(0, -before), x.shape[-axis] - max(0, -after))
        grow[-axis] = max(0, before), max(0, after)
        x = np.pad(x[tuple(keep)], grow, constant_values=value)
    return x


def rows_reduce():
    dims = {"all": (None, False), "dim": (1, False), "keepdim": (-1, True), "two": ((0, 2), False),
            "two-keepdim": ((0, 2), True), "4d-keepdim": ((2, 3), True)}
    for name in ("sum", "mean", "amax", "amin", "logsumexp", "var", "std"):
        for case, (dim, keep) in dims.items():
            shape = (2, 2, 3, 2) if case.startswith("4d") else (2, 3, 4)
            every = dim if dim is not None else (0, 1, 2)
            yield Row(name, (distinct(*shape),), lambda x, n=name, d=dim, k=keep: _reduced(n, x, d, k),
                      theirs(name, every, keepdim=keep), ours(name, dim, keep), case)
    for name in ("var", "std"):
        yield Row(name, (normal(3, 4),), lambda x, n=name: getattr(np, n)(x, 1), theirs(name, 1, correction=0),
                  ours(name, 1, correction=0), "biased")
    yield Row("sum", (integers(9, 2, 3),), lambda x: x.sum(1), theirs("sum", 1), ours("sum", 1), "integers")
    for name in ("max", "min", "argmax", "argmin"):
        constant = (0,) if name.startswith("arg") else ()
        for case, dim, keep in (("dim", 1, False), ("keepdim", -1, True)):
            yield Row(name, (distinct(2, 3, 4),), lambda x, n=name, d=dim, k=keep: _extreme(n, x, d, k),
                      theirs(name, dim, keepdim=keep), ours(name, dim, keep), case, constant)
        yield Row(name, (distinct(2, 3, 4),), lambda x, n=name: np.asarray(getattr(x, n)()), theirs(name), None, "all",
                  constant)
    for name, transform in (("softmax", np.exp), ("log_softmax", np.asarray)):
        for case, shape, dim in (("first", (3, 4), 0), ("last", (3, 4), -1), ("4d", (2, 3, 2, 2), 1)):
            yield Row(name, (normal(*shape),), lambda x, d=dim, fn=transform: fn(oracles.log_softmax(x, d)),
                      theirs(name, dim), ours(name, dim), case)


def _reduced(name, x, dim, keep):
    if name == "logsumexp":
        return np.log(np.exp(x).sum(dim, keepdims=keep))
    correction = {"ddof": 1} if name in ("var", "std") else {}
    return np.asarray(getattr(np, name)(x, dim, keepdims=keep, **correction))


def _extreme(name, x, dim, keep):
    index = getattr(np, name if name.startswith("arg") else "arg" + name)(x, dim, keepdims=keep)
    return index if name.startswith("arg") else (getattr(x, name)(dim, keepdims=keep), index)


def rows_linear():
    for case, a, b in (("2d", (2, 3), (3, 4)), ("batch", (2, 2, 3), (2, 3, 2)), ("broadcast", (2, 3), (3, 1, 3, 2)),
                       ("vector-matrix", (3,), (3, 4)), ("matrix-vector", (2, 3), (3,)), ("vectors", (3,), (3,)),
                       ("batch-vector", (2, 2, 3), (3,)), ("vector-batch", (3,), (2, 3, 4)),
                       ("4d", (2, 1, 2, 3), (2, 3, 2))):
        yield Row("matmul", (normal(*a), normal(*b)), oracle("matmul"), theirs("matmul"), case=case, layout_kept=False)
    for case, x in (("2d", (3, 4)), ("1d", (4,)), ("3d", (2, 3, 4))):
        yield Row("linear", (normal(*x), normal(5, 4), normal(5)), oracle("linear"), functional("linear"), case=case)
        yield Row("linear", (normal(*x), normal(5, 4)), oracle("linear"), functional("linear"), case=f"{case}-no-bias")


def rows_convolution():
    for case, options in {"plain": {}, "stride": {"stride": 2, "padding": 1},
                          "rectangular": {"stride": (1, 2), "padding": (2, 0)},
                          "dilation": {"dilation": (1, 2), "padding": (0, 2)},
                          "groups": {"groups": 2, "padding": 1}, "depthwise": {"groups": 4}}.items():
        inputs = (normal(*IMAGES), normal(4, 4 // options.get("groups", 1), 3, 2), normal(4))
        yield Row("conv2d", inputs, oracle("conv2d", **options), functional("conv2d", **options),
                  ours("conv2d", **options), case, kernels=True)
    yield Row("conv2d", (normal(*IMAGES), normal(3, 4, 1, 1)), oracle("conv2d"), functional("conv2d"), None,
              "pointwise", kernels=True)
    yield Row("conv2d", (normal(*IMAGES), normal(2, 4, 3, 5)), oracle("conv2d", padding=(1, 2)),
              functional("conv2d", padding="same"), ours("conv2d", padding="same"), "same", kernels=True)
    for case, options in {"plain": {}, "stride": {"stride": 2, "padding": 1, "output_padding": 1},
                          "rectangular": {"stride": (3, 1), "padding": (0, 1), "output_padding": (2, 0)},
                          "dilation": {"dilation": 2, "stride": (1, 2)}, "groups": {"groups": 2, "stride": 2}}.items():
        inputs = (normal(2, 4, 2, 3), normal(4, 2, 3, 2), normal(2 * options.get("groups", 1)))
        yield Row("conv_transpose2d", inputs, oracle("conv_transpose2d", **options),
                  functional("conv_transpose2d", **options), ours("conv_transpose2d", **options), case, kernels=True)


def rows_pooling():
    def row(name, case, *args, **options):
        return Row(name, (distinct(2, 3, 5, 6),), oracle(name, *args, **options), functional(name, *args, **options),
                   ours(name, *args, **options), case, kernels=True)

    for name in ("max_pool2d", "avg_pool2d"):
        yield row(name, "plain", 2)
        yield row(name, "overlap", 3, 2, 1)
        yield row(name, "rectangular", (2, 3), (2, 1), (1, 0))
        yield row(name, "ceil", 2, 2, ceil_mode=True)
        yield row(name, "ceil-pad", 3, 3, 1, ceil_mode=True)
    yield row("max_pool2d", "dilation", 2, 1, 0, (2, 3))
    yield row("avg_pool2d", "without-pad", 3, 2, 1, count_include_pad=False)
    for name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
        for case, size in (("one", 1), ("uneven", (2, 4)), ("divides", (5, 3)), ("larger", (7, 4))):
            yield row(name, case, size)
    yield Row("global_avg_pool2d", (normal(*IMAGES),), lambda x: x.mean((2, 3)), theirs("mean", (2, 3)))


def rows_norm():
    x = normal(2, 3, 3, 2)
    for case, shape in (("2d", (6, 3)), ("4d", (2, 3, 3, 2)), ("3d", (2, 3, 4))):
        for add in (False, True):
            for relu in (False, True):
                inputs = (normal(*shape), nonzero(3), normal(3)) + ((normal(*shape),) if add else ())
                yield Row("batch_norm", inputs, oracle("batch_norm", relu=relu), _torch_batch_norm(relu),
                          lambda x, w, b, z=None, r=relu: ops.batch_norm(x, None, None, w, b, True, add=z, relu=r),
                          case + "-add" * add + "-relu" * relu, kernels=True)
    yield Row("batch_norm", (x,), oracle("batch_norm"), _torch_batch_norm(False), ours("batch_norm", training=True),
              "no-affine", kernels=True)
    for add in (False, True):
        inputs = (x, normal(3), positive(3), nonzero(3), normal(3)) + ((normal(2, 3, 3, 2),) if add else ())
        yield Row("batch_norm", inputs,
                  lambda x, m, v, w, b, z=None: oracles.batch_norm(x, w, b, z, mean=m, var=v, relu=True), None,
                  lambda x, m, v, w, b, z=None: ops.batch_norm(x, m, v, w, b, False, add=z, relu=True),
                  "eval-add-relu" if add else "eval-relu", constant=(1, 2), kernels=True)
    yield Row("batch_norm", (normal(5, 3), normal(3), positive(3)), lambda x, m, v: oracles.batch_norm(x, eps=0.1),
              functional("batch_norm", training=True, eps=0.1), ours("batch_norm", training=True, eps=0.1), "running",
              constant=(1, 2), written=(1, 2))
    for p in (0.25, 0.8):
        yield Row("dropout", (normal(2, 3, 4, 2),), lambda x, p=p: _dropped(x, p), None,
                  lambda x, p=p: (manual_seed(5), ops.dropout(x, p))[1], f"p{p}")
    yield Row("dropout", (normal(2, 3),), lambda x: x, None, ours("dropout", 0.5, training=False), "eval")


def _torch_batch_norm(relu):
    def run(torch, x, weight=None, bias=None, add=None):
        y = torch.nn.functional.batch_norm(x, None, None, weight, bias, True)
        y = y if add is None else y + add
        return y.relu() if relu else y

    return run


def _dropped(x, p):
    """By NumPy's Philox: the key is the first word of seed 5; value i of the memory, channels last, takes 32 bits."""
    key = np.random.Philox(5).random_raw()
    bits = np.random.Philox(key=np.array([key, 0], np.uint64)).random_raw(x.size).view("<u4")[: x.size]
    keep = (bits / 2**32 >= p).reshape(x.shape[0], *x.shape[2:], x.shape[1]).transpose(0, 3, 1, 2)
    return np.where(keep, x / (1 - p), 0)


def rows_loss():
    targets = {"": (normal(4, 3), integers(3, 4)), "-dense": (normal(2, 3, 2, 2), integers(3, 2, 2, 2)),
               "-probabilities": (normal(4, 3), probabilities(4, 3))}
    for reduction in ("mean", "sum", "none"):
        for smoothing in (0.0, 0.2):
            for case, inputs in targets.items():
                options = {"label_smoothing": smoothing, "reduction": reduction}
                yield Row("cross_entropy", inputs, oracle("cross_entropy", **options),
                          functional("cross_entropy", **options), ours("cross_entropy", **options),
                          f"{reduction}-{smoothing}{case}", constant=(1,))
        for name, inputs, losses in (("nll_loss", targets[""], lambda x, y: -x[np.arange(4), y]),
                                     ("mse_loss", (normal(2, 3), normal(2, 3)), lambda x, y: (x - y) ** 2)):
            yield Row(name, inputs, lambda x, y, fn=losses, r=reduction: np.asarray(oracles.reduced(fn(x, y), r)),
                      functional(name, reduction=reduction), ours(name, reduction=reduction), reduction)


ROWS = [*rows_elementwise(), *rows_shape(), *rows_reduce(), *rows_linear(), *rows_convolution(), *rows_pooling(),
        *rows_norm(), *rows_loss()]
