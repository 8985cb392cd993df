"""What an op says when given what it cannot take: its own name, what it got, and what to do; and it changes nothing.

A row: how the op is called, on which inputs, which exception comes, and what its message must contain.
"""

import itertools

import numpy as np
import pytest
from test_ops import SHAPES, broadcasting

import tinyres as tr
from tinyres import ops

F = np.float32


def floats(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(F)


def ints(*shape):
    return np.arange(int(np.prod(shape))).reshape(shape)


X23, X24, IMAGE, KERNEL = floats(2, 3), floats(2, 4), floats(2, 3, 6, 5), floats(4, 3, 3, 3)
STATS = np.zeros(3, F), np.ones(3, F)

CASES = {
    # elementwise
    "where_mask": (lambda m, x: ops.where(m, x, 0.0), [X23, X23], TypeError, "where", "booleans", "float32",
                   "where(x > 0, x, y)"),
    "where_shapes": (lambda x, y: ops.where(np.ones(3, bool), x, y), [X23, X24], ValueError, "where", "(2, 3)",
                     "(2, 4)", "reshape"),
    "where_text": (lambda x: ops.where(np.ones(3, bool), x, "a"), [X23], TypeError, "where", "str", "float first"),
    "clamp_nothing": (lambda x: ops.clamp(x), [X23], ValueError, "clamp", "min, max or both"),
    "pow_integers": (lambda x: ops.pow(x, -1), [ints(3)], ValueError, "pow", "negative integer powers"),
    "add_list": (lambda x: ops.add(x, [1.0, 2.0, 3.0]), [X23], TypeError, "add", "list", "tr.tensor()"),
    # shape
    "reshape_count": (lambda x: ops.reshape(x, 4, 2), [X23], ValueError, "reshape", "6 elements", "(2, 3)", "(4, 2)"),
    "reshape_two_unknown": (lambda x: ops.reshape(x, -1, -1), [X23], ValueError, "reshape", "(2, 3)",
                            "one of them may be -1"),
    "reshape_uneven": (lambda x: ops.reshape(x, 4, -1), [X23], ValueError, "reshape", "6 elements", "(4, -1)"),
    "reshape_negative": (lambda x: ops.reshape(x, -2, -3), [X23], ValueError, "reshape", "(-2, -3)"),
    "flatten_dims": (lambda x: ops.flatten(x, 2), [X23], IndexError, "flatten", "dim 2", "2 dimensions"),
    "flatten_order": (lambda x: ops.flatten(x, 1, 0), [X23], ValueError, "flatten", "start_dim 1", "(2, 3)",
                      "exchange"),
    "unsqueeze": (lambda x: ops.unsqueeze(x, 3), [X23], IndexError, "unsqueeze", "dim 3", "from -3 to 2"),
    "squeeze": (lambda x: ops.squeeze(x, -3), [X23], IndexError, "squeeze", "dim -3", "from -2 to 1"),
    "permute_twice": (lambda x: ops.permute(x, 0, 0), [X23], ValueError, "permute", "(0, 0)", "(2, 3)", "once"),
    "permute_few": (lambda x: ops.permute(x, 0), [X23], ValueError, "permute", "(0,)", "each of the 2 dimensions"),
    "permute_dims": (lambda x: ops.permute(x, 0, 2), [X23], IndexError, "permute", "dim 2"),
    "transpose": (lambda x: ops.transpose(x, 0, 2), [X23], IndexError, "transpose", "dim 2", "2 dimensions"),
    "channels_last": (lambda x: ops.channels_last(x), [X23], ValueError, "channels_last", "(N, C, H, W)", "(2, 3)"),
    "broadcast_to": (lambda x: ops.broadcast_to(x, (4, 3)), [X23], ValueError, "broadcast_to", "(2, 3)", "(4, 3)",
                     "equal or 1"),
    "broadcast_to_few": (lambda x: ops.broadcast_to(x, (3,)), [X23], ValueError, "broadcast_to", "(2, 3)", "(3,)"),
    "gather_dim": (lambda x: ops.gather(x, 2, ints(2, 3)), [X23], IndexError, "gather", "dim 2"),
    "gather_floats": (lambda x, i: ops.gather(x, 0, i), [X23, X23], TypeError, "gather", "integers", "float32",
                      "astype"),
    "gather_shape": (lambda x: ops.gather(x, 0, ints(2)), [X23], ValueError, "gather", "(2,)", "(2, 3)", "reshape"),
    "getitem": (lambda x: ops.getitem(x, 5), [X23], IndexError, "index 5", "size 2"),
    "pad_odd": (lambda x: ops.pad(x, (1, 2, 3)), [X23], ValueError, "pad", "(1, 2, 3)", "pairs", "(2, 3)"),
    "pad_many": (lambda x: ops.pad(x, (1,) * 6), [X23], ValueError, "pad", "(2, 3)", "one per dimension"),
    "pad_crop": (lambda x: ops.pad(x, (-2, -1)), [X23], ValueError, "pad", "(-2, -1)", "(2, 3)", "crop less"),
    "concat_nothing": (lambda: ops.concat([]), [], ValueError, "concat", "no tensors"),
    "concat_shapes": (lambda x, y: ops.concat([x, y]), [X23, X24], ValueError, "concat", "(2, 3)", "(2, 4)",
                      "except in dim 0"),
    "concat_ndim": (lambda x, y: ops.concat([x, y]), [X23, IMAGE], ValueError, "concat", "(2, 3)", "(2, 3, 6, 5)"),
    "concat_dim": (lambda x: ops.concat([x, x], 2), [X23], IndexError, "concat", "dim 2"),
    "stack_shapes": (lambda x, y: ops.stack([x, y]), [X23, X24], ValueError, "stack", "(2, 3)", "(2, 4)", "equal"),
    "stack_nothing": (lambda: ops.stack([]), [], ValueError, "stack", "at least one"),
    "split_size": (lambda x: ops.split(x, 0), [X23], ValueError, "split", "at least 1", "got 0"),
    "split_sum": (lambda x: ops.split(x, [1, 1], 1), [X23], ValueError, "split", "[1, 1]", "add up to 3", "(2, 3)"),
    "split_negative": (lambda x: ops.split(x, [-1, 4], 1), [X23], ValueError, "split", "[-1, 4]", "negative"),
    "split_dim": (lambda x: ops.split(x, 1, 2), [X23], IndexError, "split", "dim 2"),
    # reduce
    **{f"{name}_dim": (lambda x, n=name: getattr(ops, n)(x, 2), [X23], IndexError, name.replace("amin", "amax"),
                       "dim 2",
                       "2 dimensions") for name in ("sum", "mean", "var", "amax", "amin", "max", "min", "argmax",
                                                    "argmin",
                                                    "log_softmax", "softmax", "logsumexp")},
    "sum_integers_dim": (lambda x: ops.sum(x, 2), [ints(2, 3)], IndexError, "sum", "dim 2"),
    "mean_integers": (lambda x: ops.mean(x), [ints(3)], TypeError, "mean", "int64", "astype('float32')"),
    "mean_nothing": (lambda x: ops.mean(x, 0), [floats(0, 3)], ValueError, "mean", "(0, 3)", "no elements", "dim 0"),
    "var_few": (lambda x: ops.var(x, 0), [floats(1, 3)], ValueError, "var", "1 elements", "correction 1"),
    "std_few": (lambda x: ops.std(x), [floats(1)], ValueError, "var", "1 elements", "correction 1"),
    "amax_nothing": (lambda x: ops.amax(x, 0), [floats(0, 3)], ValueError, "amax", "(0, 3)", "no elements"),
    "argmax_nothing": (lambda x: ops.argmax(x), [floats(0, 3)], ValueError, "argmax", "(0, 3)", "no elements"),
    # linear
    "matmul_inner": (lambda a, b: ops.matmul(a, b), [X23, X24], ValueError, "matmul", "(2, 3)", "(2, 4)", "transpose"),
    "matmul_vector": (lambda a, b: ops.matmul(a, b), [X23, floats(2)], ValueError, "matmul", "(2, 3)", "(2,)",
                      "only length"),
    "matmul_number": (lambda a, b: ops.matmul(a, b), [X23, floats()], ValueError, "matmul", "()", "use *"),
    "matmul_batch": (lambda a, b: ops.matmul(a, b), [floats(2, 2, 3), floats(3, 3, 2)], ValueError, "matmul",
                     "(2, 2, 3)",
                     "(3, 3, 2)", "broadcast", "reshape"),
    "linear_features": (lambda x, w: ops.linear(x, w), [X23, X24], ValueError, "linear", "(2, 3)", "(2, 4)",
                        "in_features"),
    "linear_weight": (lambda x, w: ops.linear(x, w), [X23, floats(3)], ValueError, "linear", "(2, 3)", "(3,)",
                      "(K, C)"),
    "linear_bias": (lambda x, w, b: ops.linear(x, w, b), [X23, floats(4, 3), floats(3)], ValueError, "linear", "(3,)",
                    "(4,)", "(4, 3)"),
    # convolution
    "conv_3d": (lambda x, w: ops.conv2d(x, w), [IMAGE[0], KERNEL], ValueError, "conv2d", "(3, 6, 5)", "(4, 3, 3, 3)",
                "x[None]"),
    "conv_weight": (lambda x, w: ops.conv2d(x, w), [IMAGE, KERNEL[0]], ValueError, "conv2d", "(3, 3, 3)", "4-D weight"),
    "conv_integers": (lambda x, w: ops.conv2d(x, w), [ints(2, 3, 6, 5), KERNEL], TypeError, "conv2d", "int64",
                      "astype('float32')"),
    "conv_weight_integers": (lambda x, w: ops.conv2d(x, w), [IMAGE, ints(4, 3, 3, 3)], TypeError, "conv2d", "weight",
                             "int64"),
    "conv_channels": (lambda x, w: ops.conv2d(x, w), [IMAGE, floats(4, 2, 3, 3)], ValueError, "conv2d", "(2, 3, 6, 5)",
                      "(4, 2, 3, 3)", "in_channels=3"),
    "conv_groups": (lambda x, w: ops.conv2d(x, w, groups=2), [IMAGE, floats(4, 1, 3, 3)], ValueError, "conv2d",
                    "groups=2", "3 channels"),
    "conv_groups_out": (lambda x, w: ops.conv2d(x, w, groups=3), [IMAGE, floats(4, 1, 3, 3)], ValueError, "conv2d",
                        "groups=3", "4"),
    "conv_no_groups": (lambda x, w: ops.conv2d(x, w, groups=0), [IMAGE, KERNEL], ValueError, "conv2d", "groups=0"),
    "conv_bias": (lambda x, w, b: ops.conv2d(x, w, b), [IMAGE, KERNEL, floats(3)], ValueError, "conv2d", "bias (3,)",
                  "(4,)"),
    "conv_large": (lambda x, w: ops.conv2d(x, w), [IMAGE, floats(4, 3, 3, 6)], ValueError, "conv2d", "width 6",
                   "(2, 3, 6, 5)",
                   "(4, 3, 3, 6)", "pad more"),
    "conv_dilated": (lambda x, w: ops.conv2d(x, w, dilation=(3, 1)), [IMAGE, KERNEL], ValueError, "conv2d", "height 7",
                     "6 + 2*0"),
    "conv_empty": (lambda x, w: ops.conv2d(x, w), [floats(0, 3, 6, 5), KERNEL], ValueError, "conv2d", "empty",
                   "(0, 3, 6, 5)"),
    "conv_stride": (lambda x, w: ops.conv2d(x, w, stride=0), [IMAGE, KERNEL], ValueError, "conv2d", "stride",
                    "at least 1", "got 0"),
    "conv_stride_three": (lambda x, w: ops.conv2d(x, w, stride=(1, 1, 1)), [IMAGE, KERNEL], ValueError, "conv2d",
                          "stride", "pair"),
    "conv_stride_half": (lambda x, w: ops.conv2d(x, w, stride=1.5), [IMAGE, KERNEL], ValueError, "conv2d", "stride",
                         "1.5"),
    "conv_dilation": (lambda x, w: ops.conv2d(x, w, dilation=0), [IMAGE, KERNEL], ValueError, "conv2d", "dilation",
                      "at least 1"),
    "conv_padding": (lambda x, w: ops.conv2d(x, w, padding=-1), [IMAGE, KERNEL], ValueError, "conv2d", "padding",
                     "at least 0"),
    "conv_padding_name": (lambda x, w: ops.conv2d(x, w, padding="full"), [IMAGE, KERNEL], ValueError, "conv2d",
                          "'full'", "'same'"),
    "conv_same_stride": (lambda x, w: ops.conv2d(x, w, stride=2, padding="same"), [IMAGE, KERNEL], ValueError, "conv2d",
                         "'same'",
                         "(2, 2)", "as numbers"),
    "conv_same_even": (lambda x, w: ops.conv2d(x, w, padding="same"), [IMAGE, floats(4, 3, 2, 3)], ValueError, "conv2d",
                       "odd", "(2, 3)"),
    "convt_channels": (lambda x, w: ops.conv_transpose2d(x, w), [IMAGE, KERNEL], ValueError, "conv_transpose2d",
                       "(2, 3, 6, 5)",
                       "(4, 3, 3, 3)"),
    "convt_extra": (lambda x, w: ops.conv_transpose2d(x, w, stride=2, output_padding=2), [IMAGE, floats(3, 4, 3, 3)],
                    ValueError,
                    "conv_transpose2d", "output_padding (2, 2)", "stride (2, 2)"),
    "convt_extra_dilated": (lambda x, w: ops.conv_transpose2d(x, w, dilation=2, output_padding=1),
                            [IMAGE, floats(3, 4, 3, 3)],
                            ValueError, "conv_transpose2d", "output_padding (1, 1)", "stride (1, 1)"),
    "convt_empty": (lambda x, w: ops.conv_transpose2d(x, w, padding=4), [IMAGE, floats(3, 4, 3, 3)], ValueError,
                    "conv_transpose2d",
                    "(2, 3, 6, 5)", "padding (4, 4)", "pad less"),
    "convt_bias": (lambda x, w, b: ops.conv_transpose2d(x, w, b), [IMAGE, floats(3, 4, 3, 3), floats(3)], ValueError,
                   "conv_transpose2d", "bias (3,)", "(4,)"),
    "convt_3d": (lambda x, w: ops.conv_transpose2d(x, w), [IMAGE[0], KERNEL], ValueError, "conv_transpose2d",
                 "(3, 6, 5)"),
    # pooling
    **{f"{name}_3d": (lambda x, n=name, a=args: getattr(ops, n)(x, *a), [IMAGE[0]], ValueError, name, "(N, C, H, W)",
                      "(3, 6, 5)")
       for name, args in (("max_pool2d", (2,)), ("avg_pool2d", (2,)), ("adaptive_avg_pool2d", (2,)),
                          ("adaptive_max_pool2d", (2,)),
                          ("global_avg_pool2d", ()))},
    **{f"{name}_large": (lambda x, n=name: getattr(ops, n)(x, 6), [IMAGE], ValueError, name, "(6, 6)", "(2, 3, 6, 5)",
                         "smaller")
       for name in ("max_pool2d", "avg_pool2d")},
    **{f"{name}_padding": (lambda x, n=name: getattr(ops, n)(x, 2, padding=2), [IMAGE], ValueError, name,
                           "padding (2, 2)",
                           "half of kernel_size (2, 2)") for name in ("max_pool2d", "avg_pool2d")},
    **{f"{name}_kernel": (lambda x, n=name: getattr(ops, n)(x, 0), [IMAGE], ValueError, name, "kernel_size", "got 0")
       for name in ("max_pool2d", "avg_pool2d")},
    **{f"{name}_size": (lambda x, n=name: getattr(ops, n)(x, (0, 1)), [IMAGE], ValueError, name, "output_size",
                        "at least 1")
       for name in ("adaptive_avg_pool2d", "adaptive_max_pool2d")},
    "max_pool_beside": (lambda x: ops.max_pool2d(x, 2, 1, 1, 3), [floats(1, 2, 2, 2)], ValueError, "max_pool2d",
                        "dilation (3, 3)",
                        "(1, 2, 2, 2)", "pad less"),
    "avg_pool_integers": (lambda x: ops.avg_pool2d(x, 2), [ints(1, 1, 4, 4)], TypeError, "avg_pool2d", "int64",
                          "astype('float32')"),
    "adaptive_integers": (lambda x: ops.adaptive_avg_pool2d(x, 3), [ints(1, 1, 4, 4)], TypeError, "adaptive_avg_pool2d",
                          "int64",
                          "astype('float32')"),
    # batch norm and dropout
    "bn_1d": (lambda x: ops.batch_norm(x, training=True), [floats(3)], ValueError, "batch_norm", "(N, C)", "(3,)"),
    "bn_integers": (lambda x: ops.batch_norm(x, training=True), [ints(2, 3)], TypeError, "batch_norm", "int64",
                    "astype('float32')"),
    **{f"bn_{name}": (lambda x, v, n=name: ops.batch_norm(x, **{"training": True, n: v}), [X23, floats(2)], ValueError,
                      "batch_norm",
                      f"{name} has shape (2,)", "(2, 3)", "expected (3,)")
       for name in ("running_mean", "running_var", "weight", "bias")},
    "bn_add": (lambda x, z: ops.batch_norm(x, training=True, add=z), [X23, X24], ValueError, "batch_norm", "(2, 4)",
               "(2, 3)", "shortcut"),
    "bn_one_value": (lambda x, m, v: ops.batch_norm(x, m, v, training=True), [floats(1, 3), *STATS], ValueError,
                     "batch_norm", "(1, 3)",
                     "at least 2", "larger batch or eval()"),
    "bn_statistics": (lambda x: ops.batch_norm(x), [X23], ValueError, "batch_norm", "eval mode",
                      "running_mean and running_var"),
    "bn_dtypes": (lambda x, m, v, w: ops.batch_norm(x, m, v, w, training=True), [X23, *STATS, np.ones(3)], TypeError,
                  "batch_norm",
                  "float32 and float64", "astype()"),
    "dropout_one": (lambda x: ops.dropout(x, 1.0), [X23], ValueError, "dropout", "less than 1", "got 1.0"),
    "dropout_negative": (lambda x: ops.dropout(x, -0.5), [X23], ValueError, "dropout", "at least 0", "got -0.5"),
    "dropout_integers": (lambda x: ops.dropout(x), [ints(3)], TypeError, "dropout", "int64", "astype('float32')"),
    # losses
    "ce_1d": (lambda x: ops.cross_entropy(x, ints(3)), [floats(3)], ValueError, "cross_entropy", "(N, K)", "(3,)"),
    "ce_empty": (lambda x: ops.cross_entropy(x, ints(0)), [floats(0, 3)], ValueError, "cross_entropy", "not empty",
                 "(0, 3)"),
    "ce_smoothing": (lambda x: ops.cross_entropy(x, ints(2), 1.5), [X23], ValueError, "cross_entropy",
                     "label_smoothing", "1.5"),
    "ce_floats": (lambda x, y: ops.cross_entropy(x, y), [X23, floats(2)], TypeError, "cross_entropy", "integers",
                  "float32 (2,)"),
    "ce_shape": (lambda x: ops.cross_entropy(x, ints(3)), [X23], ValueError, "cross_entropy", "(2, 3)", "(2,)",
                 "got (3,)"),
    "ce_one_hot": (lambda x: ops.cross_entropy(x, ints(2, 3)), [X23], ValueError, "cross_entropy", "(2,)",
                   "got (2, 3)"),
    "ce_high": (lambda x: ops.cross_entropy(x, np.array([0, 3])), [X23], ValueError, "cross_entropy", "0..2", "0 to 3",
                "num_classes"),
    "ce_low": (lambda x: ops.cross_entropy(x, np.array([-1, 2])), [X23], ValueError, "cross_entropy", "0..2",
               "-1 to 2"),
    "ce_reduction": (lambda x: ops.cross_entropy(x, ints(2), reduction="avg"), [X23], ValueError, "cross_entropy",
                     "'mean'", "'avg'"),
    "nll_shape": (lambda x: ops.nll_loss(x, ints(3)), [X23], ValueError, "nll_loss", "(2, 3)", "(3,)"),
    "nll_floats": (lambda x, y: ops.nll_loss(x, y), [X23, floats(2)], ValueError, "nll_loss", "integer labels",
                   "float32"),
    "nll_range": (lambda x: ops.nll_loss(x, np.array([0, 3])), [X23], ValueError, "nll_loss", "0..2", "0 to 3"),
    "nll_reduction": (lambda x: ops.nll_loss(x, ints(2), "avg"), [X23], ValueError, "nll_loss", "'avg'"),
    "mse_shape": (lambda x, y: ops.mse_loss(x, y), [X23, floats(3)], ValueError, "mse_loss", "(2, 3)", "(3,)",
                  "reshape"),
    "mse_reduction": (lambda x: ops.mse_loss(x, x, "avg"), [X23], ValueError, "mse_loss", "'sum'", "'avg'"),
    # making
    "device": (lambda x: ops.to(x, "gpu"), [X23], ValueError, "device", "'cpu' or 'cuda'", "'gpu'"),
    "tensor_text": (lambda: ops.tensor(["a"]), [], TypeError, "tensor", "numbers", "<U1"),
    "tensor_object": (lambda: ops.tensor([None]), [], TypeError, "tensor", "numbers", "object"),
    "seed": (lambda: tr.manual_seed(-1), [], ValueError, "manual_seed", "negative", "-1"),
}


@pytest.mark.parametrize("kind", ["arrays", "tensors"])
@pytest.mark.parametrize("case", CASES)
def test_message(case, kind):
    call, inputs, exception, *parts = CASES[case]
    arrays = [a.copy() for a in inputs]
    if kind == "tensors":
        if not inputs:
            return
        given = [tr.Tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    else:
        given = arrays
    with pytest.raises(exception) as raised:
        call(*given)
    for part in parts:
        assert part in str(raised.value)
    assert len(str(raised.value)) < 300
    for a, before in zip(arrays, inputs, strict=True):
        assert a.tobytes() == before.tobytes()


BINARY = ["add", "sub", "mul", "div", "pow", "maximum", "minimum"]


@pytest.mark.parametrize("name", BINARY)
def test_shapes_that_do_not_broadcast(name):
    tried = 0
    for a, b in itertools.product([*SHAPES, (4,), (3, 2), (2, 4)], repeat=2):
        if broadcasting(a, b) is None:
            tried += 1
            for make in (floats, lambda *shape: tr.tensor(floats(*shape))):
                with pytest.raises(ValueError, match="reshape") as raised:
                    getattr(ops, name)(make(*a), make(*b))
                assert all(part in str(raised.value) for part in (f"{name}: ", str(a), str(b)))
    assert tried > 50


MIXED = {
    **{name: ([(2, 3), (2, 3)], lambda a, b, n=name: getattr(ops, n)(a, b)) for name in BINARY},
    "where": ([(2, 3), (2, 3)], lambda a, b: ops.where(np.ones(3, bool), a, b)),
    "matmul": ([(2, 3), (3, 2)], ops.matmul),
    "linear": ([(2, 3), (4, 3), (4,)], ops.linear),
    "concat": ([(2, 3), (2, 3)], lambda *xs: ops.concat(xs)),
    "conv2d": ([(2, 3, 4, 4), (4, 3, 3, 3), (4,)], ops.conv2d),
    "conv_transpose2d": ([(2, 3, 4, 4), (3, 4, 3, 3), (4,)], ops.conv_transpose2d),
    "batch_norm": ([(2, 3), (3,), (3,), (2, 3)], lambda x, w, b, z: ops.batch_norm(x, None, None, w, b, True, add=z)),
    "mse_loss": ([(2, 3), (2, 3)], ops.mse_loss),
}


@pytest.mark.parametrize("kind", ["arrays", "tensors"])
@pytest.mark.parametrize("name", MIXED)
def test_float32_and_float64_do_not_mix(name, kind):
    shapes, call = MIXED[name]
    for odd in range(len(shapes)):
        inputs = [floats(*s).astype("float64" if i == odd else F) for i, s in enumerate(shapes)]
        inputs = [tr.tensor(a) for a in inputs] if kind == "tensors" else inputs
        with pytest.raises(TypeError) as raised:
            call(*inputs)
        assert str(raised.value).startswith(f"{name}: float32 and float64 meet") and "astype()" in str(raised.value)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
def test_only_floats_require_gradients(dtype):
    array = np.ones(3, dtype)
    for make in (lambda: tr.tensor(array, requires_grad=True), lambda: tr.Tensor(array, requires_grad=True),
                 lambda: tr.tensor(array).requires_grad_(), lambda: tr.zeros(3, dtype=dtype, requires_grad=True)):
        with pytest.raises(TypeError, match=rf"float tensors.*{dtype}.*astype\('float32'\)"):
            make()


# ---- in place ----


def test_in_place_on_a_leaf():
    x = tr.tensor(X23, requires_grad=True)
    for name, change in {"relu_": lambda: ops.relu_(x), "add_": lambda: x.add_(1.0),
                         "mul_": lambda: x.mul_(2.0)}.items():
        with pytest.raises(RuntimeError,
                           match=f"{name}: a leaf that requires a gradient.*without underscore, or no_grad"):
            change()
    with pytest.raises(RuntimeError, match=r"a leaf that requires a gradient.*no_grad\(\)"):
        x[0] = 1.0
    assert (x.data == X23).all() and x.version.count == 0
    with tr.no_grad():
        ops.relu_(x)
    assert (x.data == np.maximum(X23, 0)).all()


def test_in_place_on_what_was_computed():
    x = tr.tensor(X23, requires_grad=True)
    with pytest.raises(RuntimeError, match="would lose its gradient; use where"):
        (x * 2.0)[0] = 1.0
    y = x * 2.0
    z = y * y
    y.add_(1.0)
    with pytest.raises(RuntimeError, match=r"mul kept an array of shape \(2, 3\).*add_ changed it in place"):
        z.sum().backward()
    assert x.grad is None


def test_in_place_on_a_view():
    x = tr.tensor(X23, requires_grad=True)
    y = x * 2.0
    view = y.reshape(3, 2)
    for target in (y, view):
        with pytest.raises(RuntimeError, match="add_.*shares memory with a view.*without underscore"):
            target.add_(1.0)


def test_in_place_on_read_only_memory():
    x = ops.broadcast_to(tr.ones(3), (2, 3))
    with pytest.raises(ValueError,
                       match=r"relu_: the array of shape \(2, 3\) is read-only; use the op without underscore"):
        ops.relu_(x)


@pytest.mark.parametrize("name", ["add_", "mul_"])
def test_in_place_with_an_operand_that_does_not_fit(name):
    x, whole = tr.tensor(X23), tr.tensor(ints(2, 3))
    for target, operand, exception, parts in (
        (x, tr.ones(2, 4), ValueError, ("(2, 4)", "(2, 3)", "without underscore")),
        (x, tr.ones(4, 2, 3), ValueError, ("(4, 2, 3)", "(2, 3)")),
        (x, tr.ones(3, dtype="float64"), TypeError, ("float32 and float64", "astype()")),
        (whole, tr.ones(3), TypeError, ("int64", "astype('float32')")),
        (whole, 1.5, TypeError, ("int64", "astype('float32')")),
    ):
        with pytest.raises(exception) as raised:
            getattr(target, name)(operand)
        assert all(part in str(raised.value) for part in (name, *parts))
    assert (x.data == X23).all() and x.version.count == 0 and (whole.data == ints(2, 3)).all()


# ---- tensors as Python values ----


def test_only_one_element_is_a_number():
    for convert in (lambda x: x.item(), float, int, bool):
        with pytest.raises(ValueError, match=r"item: a tensor of shape \(2, 3\) has 6 elements; index it or reduce it"):
            convert(tr.tensor(X23))
    with pytest.raises(TypeError, match=r"without dimensions.*item\(\)"):
        iter(tr.tensor(1.0))


def test_cuda_without_cupy_says_what_to_install():
    try:
        import cupy  # noqa: F401
    except ImportError:
        with pytest.raises(RuntimeError, match="device 'cuda': CuPy is not installed.*pip install"):
            ops.to(tr.ones(2), "cuda")
    else:
        pytest.skip("CuPy is installed here")


def test_dropout_draws_nothing_before_it_fails():
    tr.manual_seed(0)
    before = tr.random.get_state()
    for wrong in (lambda: ops.dropout(X23, 1.0), lambda: ops.dropout(ints(3), 0.5)):
        with pytest.raises((ValueError, TypeError)):
            wrong()
    assert tr.random.get_state() == before
