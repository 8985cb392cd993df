"""What the table has no row for: ops that make tensors or change them in place, and operators and methods of Tensor."""

import operator

import numpy as np
import pytest
from differences import distance, leaves, summed_back

import tinyres as tr
from tinyres import ops
from tinyres.kernels import layout

# ---- ops without a row ----


def test_making_tensors():
    for made, shape, dtype in ((tr.zeros(2, 3), (2, 3), "float32"),
                               (tr.ones((2, 3), dtype="float64"), (2, 3), "float64"),
                               (tr.zeros(()), (), "float32"), (tr.ones([2, 1, 2, 3]), (2, 1, 2, 3), "float32")):
        assert made.shape == shape and made.dtype == dtype and not made.requires_grad
    assert (tr.zeros(2, 3).data == 0).all() and (tr.ones(2, 3).data == 1).all()
    assert tr.zeros(2, requires_grad=True).requires_grad
    assert tr.arange(4).tolist() == [0, 1, 2, 3] and tr.arange(4).dtype == "int64"
    assert tr.arange(1.0, 2.0, 0.25).tolist() == [1.0, 1.25, 1.5, 1.75] and tr.arange(1.0, 2.0).dtype == "float32"
    assert tr.arange(3, dtype="float64").dtype == "float64"


@pytest.mark.parametrize("make, mean, deviation", [(tr.randn, 0.0, 1.0), (tr.rand, 0.5, 12**-0.5)])
def test_random_tensors(make, mean, deviation):
    tr.manual_seed(3)
    first, second = make(100, 100), make(100, 100)
    tr.manual_seed(3)
    assert (make(100, 100).data == first.data).all() and (second.data != first.data).any()
    assert first.dtype == "float32" and make(2, dtype="float64").dtype == "float64"
    assert abs(first.data.mean() - mean) < 4 * deviation / 100 and abs(first.data.std() / deviation - 1) < 0.03
    tr.manual_seed(4)
    assert (make(100, 100).data != first.data).any()
    assert make is tr.randn or (first.data.min() >= 0 and first.data.max() < 1)


def test_tensor_copies_its_values():
    source = np.arange(48.0).reshape(2, 4, 2, 3)
    made = tr.tensor(source)
    source[:] = 0
    assert made.data.ravel().tolist() == list(range(48)) and made.dtype == "float64"
    assert layout.is_channels_last(made.data)
    again = tr.tensor(made, requires_grad=True)
    assert again.is_leaf and again.requires_grad and not made.requires_grad
    assert (again.data == made.data).all() and not np.shares_memory(again.data, made.data)


@pytest.mark.parametrize("values, dtype, expected", [([1.0, 2.0], None, "float32"), ([1, 2], None, "int64"),
                                                     (True, None, "bool"), ([1, 2], "float64", "float64"),
                                                     (2.5, None, "float32"), (np.float64(2.5), None, "float64"),
                                                     (np.ones(2, np.float16), None, "float16")])
def test_dtype_of_a_tensor(values, dtype, expected):
    made = tr.tensor(values, dtype)
    assert made.dtype == expected and made.shape == np.shape(values)


def test_relu_in_place():
    x = tr.tensor([[-1.0, 2.0], [np.nan, 0.0]], requires_grad=True)
    h = x * 1.0
    y = tr.relu_(h)
    assert y is h
    np.testing.assert_array_equal(y.data, np.array([[0, 2], [np.nan, 0]], np.float32))
    y.backward(np.array([[1, 2], [3, 4]], np.float32))
    assert x.grad.tolist() == [[0, 2], [3, 0]]


@pytest.mark.parametrize("name, fn, slopes, assign", [
    ("add_", np.add, lambda a, b, u: (u, u), operator.iadd),
    ("sub_", np.subtract, lambda a, b, u: (u, -u), operator.isub),
    ("mul_", np.multiply, lambda a, b, u: (u * b, u * a), operator.imul),
    ("div_", np.divide, lambda a, b, u: (u / b, -u * a / b**2), operator.itruediv)])
@pytest.mark.parametrize("shape", [(2, 3), (3,), ()])
def test_arithmetic_in_place(name, fn, slopes, assign, shape):
    rng = np.random.default_rng(0)
    a, b, u = rng.standard_normal((2, 3)), rng.standard_normal(shape), rng.standard_normal((2, 3))
    x, y = leaves([a, b], (0, 1))
    h = x * 1.0
    before = h.data
    h = getattr(h, name)(y)
    assert h.data is before
    np.testing.assert_array_equal(h.data, fn(a, b))
    h.backward(u)
    da, db = slopes(a, b, u)
    assert distance(x.grad.data, da) < 1e-14 and distance(y.grad.data, summed_back(db, shape)) < 1e-14
    number = getattr(tr.tensor(a) * 1.0, name)(2.5)
    np.testing.assert_array_equal(number.data, fn(a, 2.5))
    h = x * 1.0
    before = h
    h = assign(h, y)
    assert h is before
    np.testing.assert_array_equal(h.data, fn(a, b))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name, fn", [
    ("matmul", lambda x, n: ops.matmul(x, n)), ("concat", lambda x, n: ops.concat([x, n])),
    ("stack", lambda x, n: ops.stack([n, x])), ("where", lambda x, n: ops.where(n > 1, x, n)),
    ("add", lambda x, n: ops.add(n, x)), ("maximum", lambda x, n: ops.maximum(n, x))])
def test_integers_next_to_floats_become_floats_of_their_width(name, fn, dtype):
    """NumPy would make float64 of float32 and int64."""
    x, n = tr.tensor(np.full((2, 2), 1.5, dtype), requires_grad=True), np.array([[1, 2], [3, 4]])
    y = fn(x, n)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.numpy(), fn(x.numpy().astype("float64"), n.astype("float64")))
    y.sum().backward()
    assert x.grad.dtype == dtype


# ---- operators and methods ----

OPERATORS = {
    "x + y": lambda x, y: x + y, "x - y": lambda x, y: x - y, "x * y": lambda x, y: x * y, "x / y": lambda x, y: x / y,
    "x ** y": lambda x, y: x**y, "x @ y": lambda x, y: x @ y, "-x": lambda x, y: -x, "abs(x)": lambda x, y: abs(x),
    "3 + x": lambda x, y: 3 + x, "3 - x": lambda x, y: 3 - x, "3 * x": lambda x, y: 3 * x, "3 / x": lambda x, y: 3 / x,
    "3 ** x": lambda x, y: 3**x, "x[1, :2]": lambda x, y: x[1, :2], "x.T": lambda x, y: x.T,
    "x < y": lambda x, y: x < y, "x <= 1": lambda x, y: x <= 1, "x > y": lambda x, y: x > y,
    "x >= 1": lambda x, y: x >= 1, "x == y": lambda x, y: x == y, "x != y": lambda x, y: x != y,
}


@pytest.mark.parametrize("expression", OPERATORS)
def test_operators(expression):
    rng = np.random.default_rng(1)
    a, b = rng.uniform(0.5, 2, (3, 3)), rng.uniform(0.5, 2, (3, 3))
    b[0] = a[0]
    fn, wanted = OPERATORS[expression], OPERATORS[expression](a, b)
    for x, y in ((tr.tensor(a), tr.tensor(b)), (tr.tensor(a), b), (a, tr.tensor(b))):
        if isinstance(x, np.ndarray) and "y" not in expression:
            continue
        found = fn(x, y)
        assert isinstance(found, tr.Tensor) and found.dtype == wanted.dtype
        assert distance(found.data, wanted) < 1e-15 if wanted.dtype.kind == "f" else (found.data == wanted).all()


def test_methods_are_the_ops():
    same = [name for name in ops.__all__ if getattr(tr.Tensor, name, None) is getattr(ops, name)]
    assert set(same) >= {"sum", "mean", "max", "min", "reshape", "transpose", "permute", "flatten", "exp", "log",
                         "sqrt", "tanh", "sigmoid", "relu", "relu_", "abs", "pad", "matmul", "clamp", "softmax",
                         "astype", "to"}
    x = tr.tensor([[1.0, -2.0]])
    assert x.double().dtype == "float64" and x.double().float().dtype == "float32" and x.numel() == 2
    assert x.size() == (1, 2) and x.size(1) == 2 and len(x) == 1 and float(x[0, 1]) == -2.0 and int(x[0, 0]) == 1
    assert [row.tolist() for row in x] == [[1.0, -2.0]] and bool(x[0, 0]) and x.cpu() is x and x.device == "cpu"
    assert np.asarray(x).dtype == "float32" and x.numpy() is x.data and x[0, 0].item() == 1.0


def test_assigning_to_a_slice():
    x = tr.tensor([1.0, 2.0, 3.0])
    kept = tr.tensor([2.0, 2.0, 2.0], requires_grad=True) * x
    x[1:] = tr.tensor([5.0, 6.0])
    assert x.tolist() == [1.0, 5.0, 6.0]
    with pytest.raises(RuntimeError, match="__setitem__ changed it in place"):
        kept.sum().backward()


def test_a_training_step_asks_for_no_attribute_that_is_not_there(monkeypatch):
    """hasattr() on a Tensor is cheap only where the answer is yes."""
    from tinyres import models, optim

    model = models.resnet8()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    asked = []

    def missing(self, name):
        asked.append(name)
        raise AttributeError(name)

    monkeypatch.setattr(tr.Tensor, "__getattr__", missing)
    tr.cross_entropy(model(np.ones((2, 3, 8, 8), np.float32)), np.array([0, 1])).backward()
    optimizer.step()
    assert not asked
