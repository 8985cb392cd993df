"""Ops against PyTorch: every row of the table with a counterpart, and the points where a derivative is a convention."""

import numpy as np
import pytest
from differences import copies, gradients, leaves, norm_distance, outputs, upstreams
from op_table import ROWS

import tinyres as tr
from tinyres import ops

CASES = [pytest.param(row, id=row.id) for row in ROWS if row.torch is not None]
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}  # of the norm


def torch_results(torch, row, arrays, upstream, wanted):
    tensors = [torch.tensor(a, requires_grad=i in wanted) for i, a in enumerate(arrays)]
    result = row.torch(torch, *tensors)
    results = list(result) if isinstance(result, tuple) else [result]
    floats = [y for y in results if y.dtype.is_floating_point]
    grads = torch.autograd.grad(floats, [tensors[i] for i in wanted],
                                [torch.tensor(u) for u in upstream]) if wanted else []
    return [y.detach().numpy() for y in results], [g.numpy() for g in grads]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("row", CASES)
def test_forward_and_gradient(torch, row, dtype):
    arrays = row.make(dtype, seed=2)
    upstream, wanted = upstreams(row, arrays), row.differentiable(arrays)
    theirs, their_grads = torch_results(torch, row, copies(arrays), upstream, wanted)
    ours = row.run(*copies(arrays))
    for y, t in zip(ours if isinstance(ours, tuple) else [ours], theirs, strict=True):
        assert y.dtype == t.dtype
        assert norm_distance(y, t) < TOLERANCE[dtype]
    if wanted:
        for g, t in zip(gradients(row, arrays, upstream, wanted), their_grads, strict=True):
            assert g.dtype == t.dtype
            assert norm_distance(g, t) < TOLERANCE[dtype]


def test_rows_without_a_counterpart_are_few():
    compared = {row.name for row in ROWS if row.torch is not None}
    assert {row.name for row in ROWS} - compared == {"alias", "dropout", "put"}


# ---- where a derivative is a convention ----

NAN, INF = np.nan, np.inf
EDGES = {
    "relu at zero": (lambda m, x: m.relu(x), [[-1.0, -0.0, 0.0, 1.0, NAN, INF, -INF]]),
    "abs at zero": (lambda m, x: m.abs(x), [[-1.0, -0.0, 0.0, 1.0, INF]]),
    "sqrt at zero": (lambda m, x: m.sqrt(x), [[0.0, 4.0, -1.0, NAN]]),
    "log at zero": (lambda m, x: m.log(x), [[0.0, 1.0, -1.0, NAN]]),
    "exp overflows": (lambda m, x: m.exp(x), [[1000.0, -1000.0, INF, -INF, NAN]]),
    "tanh saturates": (lambda m, x: m.tanh(x), [[1000.0, -1000.0, INF, -INF, NAN, 0.0]]),
    "sigmoid saturates": (lambda m, x: m.sigmoid(x), [[1000.0, -1000.0, 100.0, INF, -INF, NAN, 0.0]]),
    "division by zero": (lambda m, a, b: m.div(a, b), [[1.0, -1.0, 0.0, NAN], [0.0, 0.0, 0.0, 1.0]]),
    "maximum of equals": (lambda m, a, b: m.maximum(a, b), [[1.0, 2.0, 0.0, INF], [1.0, 1.0, -0.0, INF]]),
    "minimum of equals": (lambda m, a, b: m.minimum(a, b), [[1.0, 2.0, 0.0, INF], [1.0, 1.0, -0.0, INF]]),
    "clamp at its bounds": (lambda m, x: m.clamp(x, -1.0, 1.0), [[-2.0, -1.0, 0.0, 1.0, 2.0, INF]]),
    "amax of equals": (lambda m, x: m.amax(x, 1), [[[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, -0.0, -1.0]]]),
    "amin of equals": (lambda m, x: m.amin(x, (0, 1)), [[[1.0, 3.0, 1.0], [1.0, 2.0, 2.0]]]),
    "max of equals": (lambda m, x: m.max(x), [[[1.0, 3.0, 3.0], [2.0, 3.0, 2.0]]]),
    "min of equals": (lambda m, x: m.min(x), [[[1.0, 3.0, 1.0], [2.0, 3.0, 2.0]]]),
    "max over dim of equals": (lambda m, x: m.max(x, 1)[0], [[[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]]),
    "min over dim of equals": (lambda m, x: m.min(x, 1)[0], [[[1.0, 3.0, 1.0], [2.0, 2.0, 2.0]]]),
    "power of zero": (lambda m, a, b: m.pow(a, b), [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.5, 1.0, 2.0, 3.0, -1.0]]),
    "power of negatives": (lambda m, a, b: m.pow(a, b), [[-2.0, -2.0, -2.0, -2.0, -2.0], [2.0, 3.0, -1.0, 0.0, 0.5]]),
    "square": (lambda m, x: m.pow(x, 2), [[0.0, -3.0, 3.0]]),
    "zeroth power": (lambda m, x: m.pow(x, 0), [[0.0, -3.0, 3.0]]),
    "first power": (lambda m, x: m.pow(x, 1), [[0.0, -3.0, 3.0]]),
    "reciprocal": (lambda m, x: m.pow(x, -1), [[0.5, -4.0]]),
    "zero to the x": (lambda m, x: 0.0**x, [[0.0, 0.5, 2.0]]),
    "where keeps NaN out": (lambda m, a, b: m.where(a > 0, a, b), [[1.0, -1.0, NAN], [NAN, 2.0, 3.0]]),
    "softmax of large numbers": (lambda m, x: m.softmax(x, 1), [[[1000.0, 0.0, -1000.0], [-1e4, -1e4, -1e4]]]),
    "softmax with a masked class": (lambda m, x: m.softmax(x, 1), [[[1.0, -INF, 2.0]]]),
    "log_softmax of large numbers": (lambda m, x: m.log_softmax(x, 1), [[[1000.0, 0.0, -1000.0], [-1e4, -1e4, -1e4]]]),
    "logsumexp of large numbers": (lambda m, x: m.logsumexp(x, 1), [[[1000.0, 0.0, -1000.0], [-1e4, -1e4, -1e4]]]),
    "logsumexp with a masked class": (lambda m, x: m.logsumexp(x, 1), [[[1.0, -INF, 2.0]]]),
    "logsumexp of infinities": (lambda m, x: m.logsumexp(x, 1), [[[1.0, INF, 2.0]]]),
    "deviation of equals": (lambda m, x: m.std(x, 1), [[[1.0, 2.0, 4.0], [0.5, 0.5, 0.6]]]),
}


@pytest.mark.parametrize("edge", EDGES)
def test_conventions(torch, edge):
    fn, inputs = EDGES[edge]
    arrays = [np.array(a) for a in inputs]
    ours, theirs = leaves(arrays, range(len(arrays))), [torch.tensor(a, requires_grad=True) for a in arrays]
    with np.errstate(all="ignore"):
        y, t = fn(ops, *ours), fn(torch, *theirs)
        upstream = np.random.default_rng(0).uniform(0.5, 2, y.shape)
        y.backward(upstream)
    t.backward(torch.tensor(upstream))
    np.testing.assert_allclose(y.data, t.detach().numpy(), rtol=1e-14)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad.data, b.grad.numpy(), rtol=1e-12)


NANS = {
    "maximum": (lambda m, a, b: m.maximum(a, b), [[NAN, 1.0, NAN, 2.0], [1.0, NAN, NAN, 1.0]]),
    "minimum": (lambda m, a, b: m.minimum(a, b), [[NAN, 1.0, NAN, 2.0], [1.0, NAN, NAN, 1.0]]),
    "amax": (lambda m, x: m.amax(x, 1), [[[1.0, NAN, 3.0], [1.0, 2.0, 0.0]]]),
    "amin": (lambda m, x: m.amin(x, 1), [[[1.0, NAN, 3.0], [1.0, 2.0, 0.0]]]),
    "max": (lambda m, x: m.max(x, 1)[0], [[[1.0, NAN, 3.0], [1.0, 2.0, 0.0]]]),
    "argmax": (lambda m, x: m.argmax(x, 1), [[[1.0, NAN, 3.0], [1.0, 2.0, 0.0]]]),
    "argmin": (lambda m, x: m.argmin(x, 1), [[[1.0, NAN, 3.0], [1.0, 2.0, 0.0]]]),
    "softmax": (lambda m, x: m.softmax(x, 1), [[[1.0, NAN, 3.0], [1.0, 2.0, 0.0]]]),
    "clamp": (lambda m, x: m.clamp(x, 0.0, 1.0), [[[1.0, NAN, 3.0], [1.0, 2.0, 0.0]]]),
    "logsumexp of nothing": (lambda m, x: m.logsumexp(x, 1), [[[-INF, -INF], [-INF, NAN], [INF, -INF]]]),
    "sum": (lambda m, x: m.sum(x, 1), [[[1.0, NAN, 3.0], [1.0, 2.0, 0.0]]]),
}


@pytest.mark.parametrize("name", NANS)
def test_nan_is_not_lost(torch, name):
    fn, inputs = NANS[name]
    arrays = [np.array(a) for a in inputs]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = fn(ops, *arrays)
    np.testing.assert_allclose(found, fn(torch, *map(torch.tensor, arrays)).numpy())


def test_the_derivative_of_max_goes_to_the_nan(torch):
    x = np.array([[1.0, NAN, 3.0], [1.0, 2.0, 0.0]])
    ours, theirs = tr.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    outputs(ours.max(1))[0].backward(np.array([2.0, 3.0]))
    theirs.max(1)[0].backward(torch.tensor([2.0, 3.0]).double())
    np.testing.assert_array_equal(ours.grad.data, theirs.grad.numpy())


@pytest.mark.parametrize("a, b", [("float32", "int64"), ("int32", "float32"), ("float64", "bool"),
                                  ("uint8", "float32")])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "pow", "maximum", "minimum"])
def test_integers_beside_floats(torch, name, a, b):
    """The result has the float's dtype, for arrays and for Tensors."""
    x, y = np.array([3, 1, 2]).astype(a), np.array([[1], [2]]).astype(b)
    wanted = getattr(torch, name)(torch.tensor(x), torch.tensor(y.astype(a) if b == "bool" else y)).numpy()
    for found in (getattr(ops, name)(x, y), getattr(ops, name)(tr.tensor(x), tr.tensor(y)).data):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
