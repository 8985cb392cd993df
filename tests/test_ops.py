"""Every op, from the rows of op_table.py: forward against NumPy, backward against finite differences, once more for the
second derivative, and what an op must leave alone."""

import itertools

import numpy as np
import pytest
from differences import (
    copies,
    distance,
    finite_differences,
    gradients,
    leaves,
    outputs,
    second_order,
    second_order_differences,
    summed_back,
    upstreams,
)
from op_table import BINARY, NUMPY, ROWS, WITHOUT_ROW

import tinyres as tr
from tinyres import ops
from tinyres.kernels import layout, use_kernels
from tinyres.state import setting

SETS = {False: ("fast",), True: ("fast", "reference")}
CASES = [pytest.param(row, name, id=f"{row.id}-{name}" if row.kernels else row.id)
         for row in ROWS for name in SETS[row.kernels]]
DIFFERENTIABLE = [case for case in CASES if case.values[0].differentiable(case.values[0].make())]
ALL_ROWS = [pytest.param(row, id=row.id) for row in ROWS]
DIFFERENTIABLE_ROWS = [pytest.param(row, id=row.id) for row in ROWS if row.differentiable(row.make())]


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def is_unchanged(before, after):
    """To the bit; tobytes reads any memory order as row-major."""
    return all(a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True))


def test_every_op_has_a_row_or_a_reason():
    with_row = {row.name for row in ROWS}
    assert with_row | set(WITHOUT_ROW) == set(ops.__all__)
    assert not with_row & set(WITHOUT_ROW)
    assert len({row.id for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("row, kernel_set", CASES)
def test_forward(row, kernel_set, dtype):
    arrays = row.make(dtype)
    wanted = as_tuple(row.oracle(*(a.astype("float64") if a.dtype.kind == "f" else a for a in arrays)))
    tensors = leaves(arrays, ())
    given = copies(t.data for t in tensors)  # in the same memory order, so that sums round alike
    with use_kernels(kernel_set):
        from_arrays, from_tensors = as_tuple(row.run(*given)), as_tuple(row.run(*tensors))
    for y, t, w in zip(from_arrays, from_tensors, wanted, strict=True):
        assert isinstance(y, np.ndarray) and isinstance(t, tr.Tensor) and not t.requires_grad
        assert y.tobytes() == t.data.tobytes()
        assert distance(y, w) < {"float64": 1e-13, "float32": 2e-6}[dtype]
        expected = "float64" if row.name == "astype" else dtype
        assert y.dtype == t.dtype == (expected if w.dtype.kind == "f" else "int64")
        if row.layout_kept and t.ndim == 4:
            assert layout.is_channels_last(t.data)
    kept = [i for i in range(len(arrays)) if i not in row.written]
    assert is_unchanged([arrays[i] for i in kept], [given[i] for i in kept])
    assert is_unchanged([arrays[i] for i in kept], [tensors[i].data for i in kept])
    for i in row.written:
        assert (given[i] != arrays[i]).all() and (tensors[i].data == given[i]).all()


@pytest.mark.parametrize("row, kernel_set", DIFFERENTIABLE)
def test_gradient_of_every_element(row, kernel_set):
    arrays = row.make()
    upstream, wanted = upstreams(row, arrays), row.differentiable(arrays)
    with use_kernels(kernel_set):
        found = gradients(row, arrays, upstream, wanted)
        slopes = finite_differences(row, arrays, upstream, wanted)
    for g, slope in zip(found, slopes, strict=True):
        assert distance(g, slope) < 1e-7


@pytest.mark.parametrize("row, kernel_set", DIFFERENTIABLE)
def test_gradient_of_the_gradient(row, kernel_set):
    arrays = row.make()
    upstream, wanted = upstreams(row, arrays), row.differentiable(arrays)
    rng = np.random.default_rng(7)
    direction = [rng.standard_normal(arrays[i].shape) for i in wanted]
    with use_kernels(kernel_set):
        found = second_order(row, arrays, upstream, wanted, direction)
        slopes = second_order_differences(row, arrays, upstream, wanted, direction)
    for h, slope in zip(found, slopes, strict=True):
        assert distance(h, slope) < 1e-6


@pytest.mark.parametrize("row", DIFFERENTIABLE_ROWS)
def test_create_graph_gives_the_plain_gradient(row):
    arrays = row.make()
    upstream, wanted = upstreams(row, arrays), row.differentiable(arrays)
    tensors = leaves(arrays, wanted)
    recorded = tr.grad(outputs(row.run(*tensors)), [tensors[i] for i in wanted], upstream, create_graph=True)
    for plain, g in zip(gradients(row, arrays, upstream, wanted), recorded, strict=True):
        assert distance(g.data, plain) < 1e-12


@pytest.mark.parametrize("row, kernel_set", DIFFERENTIABLE)
def test_float32_gradient(row, kernel_set):
    arrays = row.make("float32")
    upstream, wanted = upstreams(row, arrays), row.differentiable(arrays)
    exact = [a.astype("float64") if a.dtype.kind == "f" else a for a in arrays]
    with use_kernels(kernel_set):
        found = gradients(row, arrays, upstream, wanted)
        better = gradients(row, exact, [u.astype("float64") for u in upstream], wanted)
    for g, w in zip(found, better, strict=True):
        assert g.dtype == "float32"
        assert distance(g, w) < 1e-5


@pytest.mark.parametrize("row", DIFFERENTIABLE_ROWS)
def test_every_subset_of_inputs_may_want_a_gradient(row):
    arrays = row.make()
    upstream, all_of_them = upstreams(row, arrays), row.differentiable(arrays)
    full = dict(zip(all_of_them, gradients(row, arrays, upstream, all_of_them), strict=True))
    for size in range(len(all_of_them)):
        for wanted in itertools.combinations(all_of_them, size):
            tensors = leaves(arrays, wanted)
            for y, u in zip(outputs(row.run(*tensors)), upstream, strict=True):
                assert y.requires_grad == bool(wanted)
                if wanted:
                    y.backward(u, retain_graph=True)
            for i, tensor in enumerate(tensors):
                assert tensor.grad is None if i not in wanted else tensor.grad.data.tobytes() == full[i].tobytes()


@pytest.mark.parametrize("row", DIFFERENTIABLE_ROWS)
def test_used_twice(row):
    """f(x) + f(x): both contributions arrive, also at an interior tensor and in a second backward pass."""
    arrays = row.make()
    upstream, wanted = upstreams(row, arrays), row.differentiable(arrays)
    once = gradients(row, arrays, upstream, wanted)
    given = copies(upstream)
    tensors = leaves(arrays, wanted)
    inside = [ops.alias(ops.neg(ops.neg(t))) if i in wanted else t for i, t in enumerate(tensors)]
    first, second = outputs(row.run(*inside)), outputs(row.run(*inside))
    both = [ops.add(a, b) for a, b in zip(first, second, strict=True)]
    for repetition in (1, 2):
        for y, u in zip(both, given, strict=True):
            y.backward(u, retain_graph=True)
        assert is_unchanged(upstream, given)
        for i, g in zip(wanted, once, strict=True):
            assert distance(tensors[i].grad.data, 2 * repetition * g) < 1e-14


@pytest.mark.parametrize("row", [r for r in DIFFERENTIABLE_ROWS if r.values[0].name not in ("maximum", "minimum")])
def test_skip_connection(row):
    """x + f(x) where f keeps the shape: the identity route and f's route meet at x, and neither spoils the other."""
    arrays = row.make()
    upstream = upstreams(row, arrays)
    wanted = row.differentiable(arrays)
    first = wanted[0]
    if len(upstream) != 1 or upstream[0].shape != arrays[first].shape:
        return
    alone = gradients(row, arrays, upstream, wanted)
    for order in (1, -1):
        tensors, given = leaves(arrays, wanted), copies(upstream)
        x = ops.neg(ops.neg(tensors[first]))
        inputs = [x if i == first else t for i, t in enumerate(tensors)]
        ops.add(*[x, row.run(*inputs)][::order]).backward(given[0])
        assert is_unchanged(upstream, given)
        assert distance(tensors[first].grad.data, alone[0] + upstream[0]) < 1e-14
        for i, g in zip(wanted[1:], alone[1:], strict=True):
            assert tensors[i].grad.data.tobytes() == g.tobytes()


@pytest.mark.parametrize("row", DIFFERENTIABLE_ROWS)
def test_one_tensor_as_both_operands(row):
    arrays = row.make()
    wanted = row.differentiable(arrays)
    pair = [(i, j) for i, j in itertools.combinations(wanted, 2) if arrays[i].shape == arrays[j].shape]
    if not pair or row.name in ("maximum", "minimum"):  # their tie is a kink: test_parity_ops.py
        return
    i, j = pair[0]
    arrays[j] = arrays[i]
    upstream = upstreams(row, arrays)
    apart = dict(zip(wanted, gradients(row, arrays, upstream, wanted), strict=True))
    tensors = leaves(arrays, wanted)
    tensors[j] = tensors[i]
    outputs(row.run(*tensors))[0].backward(upstream[0])
    assert distance(tensors[i].grad.data, apart[i] + apart[j]) < 1e-14


def spread(a):
    """The same values in memory where no two are neighbours, the first axis backwards."""
    if not a.ndim:
        return a
    room = np.full([2 * n for n in a.shape], np.nan if a.dtype.kind == "f" else 0, a.dtype)
    view = room[tuple(slice(None, None, 2) for _ in a.shape)][::-1]
    view[...] = a
    return view


LAYOUTS = {
    "spread": spread,
    "fortran": lambda a: np.asarray(a, order="F"),
    "row-major": lambda a: np.asarray(a, order="C"),
    "channels-last": lambda a: layout.channels_last(a) if a.ndim == 4 else a,
}


@pytest.mark.parametrize("arrangement", LAYOUTS)
@pytest.mark.parametrize("row", ALL_ROWS)
def test_memory_layout_does_not_matter(row, arrangement):
    arrays = row.make()
    wanted = row.differentiable(arrays)
    plain = as_tuple(row.run(*copies(arrays)))
    arranged = [LAYOUTS[arrangement](a.copy()) for a in arrays]
    tensors = [tr.Tensor(a, requires_grad=i in wanted) for i, a in enumerate(arranged)]
    found = as_tuple(row.run(*tensors))
    for y, w in zip(found, plain, strict=True):
        assert distance(y.data, w) < 1e-13
        if row.layout_kept and y.ndim == 4 and row.name not in AS_GIVEN:
            assert layout.is_channels_last(y.data)
    if not wanted:
        return
    upstream = upstreams(row, arrays)
    for y, u in zip(outputs(tuple(found)), upstream, strict=True):
        y.backward(LAYOUTS[arrangement](u), retain_graph=True)
    for i, g in zip(wanted, gradients(row, arrays, upstream, wanted), strict=True):
        assert distance(tensors[i].grad.data, g) < 1e-13
    kept = [i for i in range(len(arrays)) if i not in row.written]
    assert is_unchanged([arrays[i] for i in kept], [arranged[i] for i in kept])


# Their results lie as their inputs do: channels-last if those are, as test_forward checks.
AS_GIVEN = {"to", "squeeze", "dropout", "alias", "amax", "amin", "log_softmax"}


# ---- broadcasting ----

SHAPES = [(), (1,), (3,), (2, 1), (2, 3), (1, 3, 1), (4, 2, 3), (2, 3, 2, 3), (1, 3, 1, 1), (5, 1, 2, 3)]


def broadcasting(a, b):
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        return None


@pytest.mark.parametrize("name", [*BINARY, "maximum", "minimum", "where"])
def test_all_pairs_of_shapes(name):
    """The gradient of a broadcast operand is that of the operand written out in full, summed."""
    rng = np.random.default_rng(3)
    op = getattr(ops, name)
    fn = {**NUMPY, "maximum": np.maximum, "minimum": np.minimum}.get(name)
    if name == "where":
        op, fn = (lambda a, b: ops.where(mask, a, b)), (lambda a, b: np.where(mask, a, b))
    tried = 0
    for shape_a, shape_b in itertools.product(SHAPES, repeat=2):
        full = broadcasting(shape_a, shape_b)
        if full is None:
            continue
        tried += 1
        a, b, mask = rng.uniform(0.5, 2, shape_a), rng.uniform(0.5, 2, shape_b), rng.random(full) < 0.5
        wide_a, wide_b = np.broadcast_to(a, full).copy(), np.broadcast_to(b, full).copy()
        upstream = rng.standard_normal(full)
        narrow, wide = leaves([a, b], (0, 1)), leaves([wide_a, wide_b], (0, 1))
        y = op(*narrow)
        assert y.shape == full and y.dtype == "float64"
        assert distance(y.data, np.asarray(fn(a, b))) < 1e-15
        assert y.ndim != 4 or layout.is_channels_last(y.data)
        y.backward(upstream)
        op(*wide).backward(upstream)
        for t, w in zip(narrow, wide, strict=True):
            assert t.grad.dtype == "float64"
            assert distance(t.grad.data, summed_back(w.grad.data, t.shape)) < 1e-13
    assert tried > 60


# ---- float32 stays float32 ----

X32 = np.array([[-1.5, 0.5, 2.0], [0.25, -0.75, 1.0]], np.float32)
WIDE = np.float64(0.5)  # the type of np.mean(...), of a learning rate out of np.linspace, of an element of an array

NARROW = {
    **{f"{name}-{side}": (lambda x, n=name, s=side: getattr(ops, n)(*[x, WIDE][::1 if s == "right" else -1]))
       for name in (*BINARY, "maximum", "minimum") for side in ("right", "left")},
    "where": lambda x: ops.where(np.array([True, False, True]), x, WIDE),
    "where-numbers": lambda x: ops.mul(ops.where(np.array([True, False, True]), WIDE, 0.0), x),
    "clamp": lambda x: ops.clamp(x, -WIDE, WIDE),
    "pad": lambda x: ops.pad(x, (1, 1), WIDE),
    "mean-times-number": lambda x: ops.mul(ops.mean(x), WIDE),
    "sum-of-all": lambda x: ops.add(ops.sum(x), WIDE),
    "dropout": lambda x: ops.dropout(x, WIDE),
    "batch_norm": lambda x: ops.batch_norm(x, np.zeros(3, "f"), np.ones(3, "f"), training=True, momentum=WIDE,
                                           eps=WIDE),
    "cross_entropy": lambda x: ops.cross_entropy(x, np.array([0, 2]), WIDE),
    "cross_entropy-probabilities": lambda x: ops.cross_entropy(x, np.full((2, 3), 1 / 3), WIDE),
    "softmax": lambda x: ops.softmax(x, np.int64(1)),
    "var": lambda x: ops.var(x, 0, correction=0),
}


@pytest.mark.parametrize("unfused", [False, True], ids=["fused", "unfused"])
@pytest.mark.parametrize("name", NARROW)
def test_a_float64_number_does_not_widen_float32(name, unfused):
    x = tr.tensor(np.abs(X32) if "pow" in name else X32, requires_grad=True)
    with setting(unfused=unfused):
        assert NARROW[name](x.data).dtype == np.float32
        y = NARROW[name](x)
    assert y.dtype == np.float32
    y.backward(np.ones(y.shape, np.float32))
    assert x.grad.dtype == np.float32
