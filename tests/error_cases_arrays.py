"""Mistakes with arrays: their shapes, their dtypes and kinds, and memory that cannot be written."""

import numpy as np
from error_case import chapter, floats, leaf

import tinyres as tr
from tinyres import models, nn, ops

case = chapter("Shapes")


@case("Shapes that do not broadcast", ValueError, "add", "(2, 3)", "(2, 4)", fix="reshape one side")
def _(folder):
    x, y = leaf(2, 3), leaf(2, 4)
    return lambda: x + y, x, y


@case("A matrix product of lengths that differ", ValueError, "matmul", "(2, 3)", "(2, 4)", fix="transpose one")
def _(folder):
    x, y = leaf(2, 3), leaf(2, 4)
    return lambda: x @ y, x, y


@case("A linear layer given images", ValueError, "linear", "(2, 3, 8, 8)", "(4, 192)", fix="flatten the input")
def _(folder):
    x, layer = floats(2, 3, 8, 8), nn.Linear(192, 4)
    return lambda: layer(x), x, layer


@case("Another number of elements", ValueError, "reshape", "6 elements", "(2, 3)", "(4, 2)",
      fix="one of them may be -1")
def _(folder):
    x = leaf(2, 3)
    return lambda: x.reshape(4, 2), x


@case("A fraction for a length", TypeError, "reshape", "whole number", "float 1.5", fix="must be a whole number")
def _(folder):
    x = leaf(2, 3)
    return lambda: x.reshape(1.5, 4), x


@case("A dimension that is not there", IndexError, "sum", "dim 2", "2 dimensions", fix="from -2 to 1")
def _(folder):
    x = leaf(2, 3)
    return lambda: x.sum(2), x


@case("A dimension named twice", ValueError, "mean", "(0, -2)", "(2, 3)", fix="name each once")
def _(folder):
    x = leaf(2, 3)
    return lambda: x.mean((0, -2)), x


@case("A dimension of a single number", IndexError, "log_softmax", "dim 0", "0 dimensions", fix="reshape(1)")
def _(folder):
    x = leaf()
    return lambda: x.softmax(0), x


@case("Dimensions left out when they are reordered", ValueError, "permute", "(0,)", "(2, 3)", fix="name each")
def _(folder):
    x = leaf(2, 3)
    return lambda: x.permute(0), x


@case("An index out of range", IndexError, "getitem", "index 5", "(2, 3)", fix="integers in range")
def _(folder):
    x = leaf(2, 3)
    return lambda: x[5], x


@case("Values that do not fit into a slice", ValueError, "setitem", "(5,)", "(2, 3)", fix="must broadcast")
def _(folder):
    x, values = tr.zeros(2, 3), np.ones(5)
    return lambda: x.__setitem__(0, values), x, values


@case("Positions that are not there", IndexError, "gather", "5 to 5", "0 to 2", "(2, 3)", fix="has the positions")
def _(folder):
    x, index = leaf(2, 3), np.array([[5], [5]])
    return lambda: x.gather(1, index), x, index


@case("Tensors joined that differ elsewhere", ValueError, "concat", "(2, 3)", "(2, 4)",
      fix="must agree except in dim 0")
def _(folder):
    x, y = leaf(2, 3), leaf(2, 4)
    return lambda: tr.concat([x, y]), x, y


@case("Nothing to join", ValueError, "concat", "no tensors", fix="at least one")
def _(folder):
    return lambda: tr.concat([]),


@case("Pieces that do not add up", ValueError, "split", "[1, 1]", "(2, 3)", fix="must add up to 3")
def _(folder):
    x = leaf(2, 3)
    return lambda: x.split([1, 1], 1), x


@case("Padding that crops everything away", ValueError, "pad", "(-2, -1)", "(2, 3)", fix="crop less")
def _(folder):
    x = leaf(2, 3)
    return lambda: x.pad((-2, -1)), x


@case("The mean of nothing", ValueError, "mean", "(0, 3)", "no elements", fix="leave out what is empty")
def _(folder):
    x = leaf(0, 3)
    return lambda: x.mean(0), x


@case("The variance of one value", ValueError, "var", "1 elements", "correction 1", fix="correction=0")
def _(folder):
    x = leaf(1, 3)
    return lambda: x.var(0), x


@case("A negative length", ValueError, "zeros", "(2, -1)", "negative length", fix="-1 works in reshape() only")
def _(folder):
    return lambda: tr.zeros(2, -1),


@case("Nested lists of different lengths", ValueError, "tensor", "2, 1", fix="pad them to one length")
def _(folder):
    rows = [[1.0, 2.0], [3.0]]
    return lambda: tr.tensor(rows), rows


@case("A tensor where one number is expected", ValueError, "item", "(2, 3)", "6 elements", fix="index it or reduce it")
def _(folder):
    x = leaf(2, 3)
    return lambda: float(x), x


@case("The length of a single number", TypeError, "len", "without dimensions", "one number", fix="item()")
def _(folder):
    x = leaf()
    return lambda: len(x), x


case = chapter("Dtypes and kinds of arrays")


@case("float32 meets float64", TypeError, "mul", "float32", "float64", fix="astype()")
def _(folder):
    x, y = leaf(2, 3), leaf(2, 3, dtype="float64")
    return lambda: x * y, x, y


@case("Integers where floats are needed", TypeError, "mean", "int64", "expected floats", fix="astype('float32')")
def _(folder):
    x = np.arange(6).reshape(2, 3)
    return lambda: tr.mean(x), x


@case("Pixels as bytes given to a network", TypeError, "conv2d", "uint8", "floats", fix="divide by 255")
def _(folder):
    x, model = np.zeros((2, 3, 8, 8), np.uint8), models.resnet8()
    return lambda: model(x), x, model


@case("Half precision in a convolution", TypeError, "conv2d", "float16", "float32 or float64", fix="astype('float32')")
def _(folder):
    x, w = floats(1, 1, 4, 4).astype("float16"), floats(1, 1, 3, 3)
    return lambda: ops.conv2d(x, w.astype("float16")), x, w


@case("Half precision in a maximum", TypeError, "max_pool2d", "float16", "float32 or float64", fix="astype('float32')")
def _(folder):
    x = floats(1, 1, 4, 4).astype("float16")
    return lambda: ops.max_pool2d(x, 2), x


@case("A model made of half precision", TypeError, "Linear.astype", "float16", fix="'float32' or 'float64'")
def _(folder):
    model = nn.Linear(2, 3)
    return lambda: model.astype("float16"), model


@case("A gradient asked for integers", TypeError, "requires_grad", "int64", "float tensors", fix="astype('float32')")
def _(folder):
    x = np.arange(3)
    return lambda: tr.tensor(x, requires_grad=True), x


@case("Text where numbers are expected", TypeError, "tensor", "<U3", "numbers", fix="turn text")
def _(folder):
    words = ["cat", "dog"]
    return lambda: tr.tensor(words), words


@case("An array of Python objects", TypeError, "add", "object", "floats, integers or booleans", fix="astype()")
def _(folder):
    x = tr.Tensor(np.array([1.0, None], object))
    return lambda: x + 1.0, x


@case("Complex numbers", TypeError, "mul", "complex128", "floats, integers or booleans", fix="astype()")
def _(folder):
    x, y = tr.Tensor(np.ones(2, complex)), leaf(2)
    return lambda: y * x, x, y


@case("A NumPy matrix, whose * is a matrix product", TypeError, "mul", "matrix", "(2, 2)", fix="np.asarray(x)")
def _(folder):
    x, y = np.ones((2, 2)).view(np.matrix), leaf(2, 2, dtype="float64")
    return lambda: y * x, x, y


@case("A masked array, whose mask would be lost", TypeError, "tensor", "MaskedArray", "(2,)", fix="filled(value)")
def _(folder):
    x = np.ma.array([1.0, 2.0], mask=[False, True])
    return lambda: tr.tensor(x), x


@case("Numbers in another machine's byte order", TypeError, "conv2d", ">f4", "(2, 3, 8, 8)", fix="astype('float32')")
def _(folder):
    x, layer = floats(2, 3, 8, 8).astype(">f4"), nn.Conv2d(3, 4, 3)
    return lambda: layer(x), x, layer


@case("A list as an operand", TypeError, "add", "list", "tensors, arrays or numbers", fix="tr.tensor()")
def _(folder):
    x, y = leaf(3), [1.0, 2.0, 3.0]
    return lambda: x + y, x, y


@case("None as an operand", TypeError, "add", "None", "a Tensor, an array or a number", fix="forget its return")
def _(folder):
    x = leaf(3)
    return lambda: x + None, x


@case("Another library's array as an operand", TypeError, "mul", "Series", "tensors, arrays or numbers",
      fix="tr.tensor()")
def _(folder):
    class Series:  # as pandas has it: a dtype and a shape, but no memory of an array
        dtype, shape, ndim = np.dtype("float32"), (3,), 1

    Series.__module__ = "pandas.core.series"
    x = leaf(3)
    return lambda: x * Series(), x


@case("A dtype that is not there", TypeError, "zeros", "'float33'", fix="use 'float32'")
def _(folder):
    return lambda: tr.zeros(3, dtype="float33"),


@case("A mask of numbers", TypeError, "where", "float32", "booleans", fix="where(x > 0, x, y)")
def _(folder):
    x = leaf(2, 3)
    return lambda: tr.where(x, x, 0.0), x


@case("Floats written into integers", TypeError, "setitem", "int64", "floats", fix="astype('float32')")
def _(folder):
    x = tr.tensor([1, 2])
    return lambda: x.__setitem__(0, 1.5), x


@case("Arithmetic that booleans do not have", TypeError, "sub", "bool, bool", fix="astype('float32')")
def _(folder):
    x = tr.tensor([True, False])
    return lambda: x - x, x


case = chapter("Memory")


@case("An op in place on a read-only view", ValueError, "relu_", "(2, 3)", "read-only", fix="without underscore")
def _(folder):
    x = ops.broadcast_to(tr.ones(3), (2, 3))
    return lambda: tr.relu_(x), x


@case("Writing into a memory-mapped file", ValueError, "setitem", "(2, 3)", "read-only", fix="copy it first")
def _(folder):
    np.save(folder / "x.npy", floats(2, 3))
    x = tr.Tensor(np.load(folder / "x.npy", mmap_mode="r"))
    return lambda: x.__setitem__(0, 1.0), x.data


@case("Running statistics that cannot be moved", ValueError, "batch_norm: running_mean", "(3,)", "read-only",
      fix="copy it first")
def _(folder):
    x, layer = floats(2, 3, 4, 4), nn.BatchNorm2d(3)
    layer.running_mean.data.setflags(write=False)
    return lambda: layer(x), x, layer


@case("An op in place on what has a view", RuntimeError, "add_", "(2, 3)", "shares memory", fix="without underscore")
def _(folder):
    x = leaf(2, 3)
    y = x * 2.0
    view = y.reshape(3, 2)
    return lambda: y.add_(1.0), x, y, view


@case("An operand in place that is larger than its target", ValueError, "mul_", "(4, 2, 3)", "(2, 3)",
      fix="without underscore")
def _(folder):
    x, y = tr.tensor(floats(2, 3)), tr.ones(4, 2, 3)
    return lambda: x.mul_(y), x, y
