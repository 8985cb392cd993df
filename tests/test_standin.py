"""The stand-in for CuPy is as strict as CuPy, or stricter; and it catches the mistakes that one makes with CuPy."""

import numpy as np
import pytest
import standin

from tinyres.kernels import layout, reference
from tinyres.kernels.cuda import manifest
from tinyres.kernels.cuda.launch import function, launch


@pytest.fixture(autouse=True, scope="module")
def cupy():
    with standin.installed() as module:
        yield module


@pytest.fixture(autouse=True)
def counts():
    standin.syncs.clear()
    standin.copies.clear()


def values(*shape, dtype="float32"):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def images(cupy, *shape, dtype="float32"):
    """A device array (N, C, H, W) in channels-last memory."""
    N, C, H, W = shape
    return layout.nchw(cupy.asarray(values(N, H, W, C, dtype=dtype)))


# ---- what CuPy refuses ----

HOST = np.ones((2, 3), np.float32)
REFUSED = {
    "np.asarray": lambda x: np.asarray(x),
    "np.array": lambda x: np.array([x, x]),
    "np.float32(x)": lambda x: np.float32(x),
    "np.exp": lambda x: np.exp(x),
    "np.maximum out": lambda x: np.maximum(x, 0, out=x),
    "np.add.reduce": lambda x: np.add.reduce(x),
    "np.where": lambda x: np.where(x > 0, x, 0),
    "np.concatenate": lambda x: np.concatenate([x, x]),
    "x + host": lambda x: x + HOST,
    "host + x": lambda x: HOST + x,
    "x == host": lambda x: x == HOST,
    "host * x": lambda x: HOST * x,
    "x += host": lambda x: x.__iadd__(HOST),
    "host += x": lambda x: HOST.__iadd__(x),
    "x[...] = host": lambda x: x.__setitem__(Ellipsis, HOST),
    "host[...] = x": lambda x: HOST.__setitem__(Ellipsis, x),
    "list + x": lambda x: x + [1.0, 2.0, 3.0],
    "where with a host mask": lambda x: standin.cupy.where(HOST > 0, x, x),
    "function of a host array": lambda x: standin.cupy.exp(HOST),
    "concatenate with host": lambda x: standin.cupy.concatenate([x, HOST]),
    "astype casting": lambda x: x.astype("float64", casting="safe"),
    "hash": lambda x: hash(x),
    "len of a number": lambda x: len(x.sum()),
    "iterating a number": lambda x: list(x.sum()),
    "fill with an array": lambda x: x.fill(HOST),
    "ndarray()": lambda x: standin.ndarray((2, 3)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(cupy, name):
    x = cupy.asarray(values(2, 3))
    with pytest.raises(TypeError):
        REFUSED[name](x)


@pytest.mark.parametrize("name", ["itemset", "tobytes", "__array_interface__", "ctypes", "setflags", "clip", "flat"])
def test_missing_attributes(cupy, name):
    assert not hasattr(cupy.zeros(3), name)


@pytest.mark.parametrize("name", ["float32", "pad_sequence", "einsum", "newaxis", "copyto", "ndindex", "errstate"])
def test_missing_functions(cupy, name):
    with pytest.raises(AttributeError, match="stand-in for CuPy has no"):
        getattr(cupy, name)


def test_two_masks_and_wrong_sizes(cupy):
    x = cupy.zeros((2, 3))
    with pytest.raises(ValueError, match="at most one mask"):
        x[cupy.ones(2, bool), cupy.ones(3, bool)]
    with pytest.raises(ValueError, match="size 1"):
        x.item()
    with pytest.raises(ValueError, match="ambiguous"):
        bool(x)


# ---- memory order ----


def test_results_are_in_c_order(cupy):
    x = images(cupy, 2, 3, 4, 5)
    i = cupy.asarray(np.array([1, 0]))
    for y in (x + x, -x, x * 2, cupy.exp(x), cupy.maximum(x, 0), cupy.where(x > 0, x, 0), x.copy(), abs(x), x > 0,
              x.sum(0, keepdims=True), x.max((2, 3), keepdims=True), x[i], x[:, :, i], x.take(i, 1), x[x > 9],
              cupy.concatenate([x, x]), cupy.stack([x, x]), cupy.pad(x, 1),
              cupy.take_along_axis(x, i.reshape(2, 1, 1, 1), 0),
              x.reshape(2, 60), cupy.ascontiguousarray(x), cupy.array(x, order="C"), cupy.matmul(x, x.swapaxes(2, 3))):
        assert y.flags.c_contiguous and y.base is None
    assert not layout.is_channels_last(x + x)


def test_what_keeps_the_order(cupy):
    x = images(cupy, 2, 3, 4, 5)
    for y in (x.astype("float64"), x.copy(order="K"), cupy.zeros_like(x), cupy.empty_like(x), cupy.array(x), x,
              cupy.asarray(x), x[:1], x[:, :, ::2].copy(order="K")):
        assert layout.is_channels_last(y) and not y.flags.c_contiguous
    assert cupy.zeros_like(x, order="C").flags.c_contiguous and x.astype("float32", copy=False) is x
    fortran = cupy.asarray(np.asfortranarray(values(2, 3)))
    assert fortran.flags.f_contiguous and not fortran.flags.c_contiguous
    assert cupy.asarray(values(2, 3, 4).transpose(0, 2, 1)).flags.c_contiguous
    assert x.get().flags.c_contiguous and x.get(order="A").flags.c_contiguous and cupy.asnumpy(x).flags.c_contiguous


def test_views_know_their_base(cupy):
    x = cupy.zeros((2, 3, 4))
    for view in (x[0], x[:, 1], x.T, x.transpose(2, 0, 1), x.reshape(6, 4), x.ravel(), x[0, 0, 0], x.view(), x[None],
                 x.squeeze(), x.swapaxes(0, 1), cupy.broadcast_to(x, (5, 2, 3, 4)), x[0][1]):
        assert view.base is x and cupy.shares_memory(view, x) and not view.flags.owndata
    x[0, 0, 0] += 5.0
    x[1][:] = 2
    assert x.get().sum() == 29
    assert cupy.zeros((2, 3)).T.reshape(6).base is None


# ---- dtypes ----


def test_promotion(cupy):
    x = cupy.asarray(values(2, 3))
    for weak in (2, 2.5, True):
        assert (x * weak).dtype == (weak * x).dtype == cupy.maximum(x, weak).dtype == "float32"
    for strong in (np.float64(2), np.int64(2), cupy.asarray(np.float64(2)), cupy.ones((), "float64")):
        assert (x * strong).dtype == (strong * x).dtype == "float64"
    assert (x * np.float32(2)).dtype == (np.float32(2) * x).dtype == "float32"
    for number in (x.sum(), x[0, 0], x.max(), cupy.exp(x[0, 0]), x[0, 0] * 2):
        assert isinstance(number, standin.ndarray) and number.shape == ()


def test_atomics(cupy):
    for dtype in ("int32", "float32", "float64"):
        x = cupy.zeros(3, dtype)
        cupy.add.at(x, cupy.asarray(np.array([1, 1])), cupy.ones(2, dtype))
        assert x.get().tolist() == [0, 2, 0]
    with pytest.raises(TypeError, match="scatter_add supports .* only, got int64"):
        cupy.add.at(cupy.zeros(3, "int64"), cupy.zeros(1, int), cupy.ones(1, int))


def test_positions_wrap_round(cupy):
    x, far = cupy.asarray(np.arange(12.0).reshape(3, 4)), cupy.asarray(np.array([5, -1, 3]))
    assert x[far].get()[:, 0].tolist() == [8, 8, 0]
    assert x[:, far].get()[0].tolist() == [1, 3, 3] and x[..., far].get()[0].tolist() == [1, 3, 3]
    x[far] = 0
    assert x.get()[1].tolist() == [4, 5, 6, 7]
    with pytest.raises(IndexError):
        x[3]


# ---- waiting, copies, capturing ----

WAITS = {
    "item": lambda x: x[0, 0].item(), "get": lambda x: x.get(), "float": lambda x: float(x[0, 0]),
    "int": lambda x: int(x[0, 0]), "bool": lambda x: bool(x[0, 0]), "print": lambda x: str(x),
    "repr": lambda x: repr(x), "tolist": lambda x: x.tolist(), "asnumpy": lambda x: standin.cupy.asnumpy(x),
    "nonzero": lambda x: x.nonzero(), "where": lambda x: standin.cupy.where(x > 0), "mask": lambda x: x[x > 0],
    "mask set": lambda x: x.__setitem__(x > 0, 0), "iterating": lambda x: list(x), "if": lambda x: 1 if x.any() else 0,
    "bincount": lambda x: standin.cupy.bincount((x > 0).astype("int64").ravel()),
}
COPIES = {
    "asarray": lambda x: standin.cupy.asarray(HOST), "array": lambda x: standin.cupy.array([1.0, 2.0]),
    "set": lambda x: x.set(HOST), "index": lambda x: x[np.array([1, 0])], "list": lambda x: x[[1, 0]],
    "number": lambda x: standin.cupy.asarray(2.5), "picked": lambda x: x.__setitem__(x[0].astype("int64"), 0),
    "added": lambda x: standin.cupy.add.at(x, x[0].astype("int64"), 1.0),
}
PRODUCTS = {"@": lambda x: x @ x.T, "matmul": lambda x: standin.cupy.matmul(x, x.T), "dot": lambda x: x.dot(x.T)}


@pytest.mark.parametrize("name", [*WAITS, *COPIES, *PRODUCTS])
def test_what_a_capture_refuses(cupy, name):
    x = cupy.asarray(values(2, 3))
    standin.copies.clear()
    action = {**WAITS, **COPIES, **PRODUCTS}[name]
    action(x)
    assert (len(standin.syncs), len(standin.copies)) == (name in WAITS, name in COPIES or name == "mask set")
    assert all("test_standin.py" in line for line in standin.syncs + standin.copies)
    with standin.capturing(), pytest.raises(RuntimeError, match="StreamCaptureUnsupported"):
        action(x)


def test_what_a_capture_takes(cupy):
    x = images(cupy, 2, 3, 4, 5)
    standin.copies.clear()
    with standin.capturing():
        y = cupy.where(x > 0, x, 0).sum((0, 2, 3)) + 1
        x += y.reshape(1, 3, 1, 1)
        cupy.add.at(x, (cupy.zeros(3, int),), cupy.ones((), "float32"))
        x[cupy.zeros(3, int)] -= 1.0
        x[0] = 2.0
        reference.batch_norm_apply(x, y, y, x, True)
    assert standin.syncs == standin.copies == []


# ---- kernels ----


ANY = manifest.KERNELS[0].name


@pytest.mark.parametrize("argument", [3, 2.5, True, "x"])
def test_python_numbers_are_no_kernel_arguments(cupy, argument):
    with pytest.raises(TypeError, match=r"give np.int32\(\.\.\.\)"):
        function(manifest.BY_NAME[ANY])((1,), (32,), (cupy.zeros(4, "float32"), argument))


def test_kernel_arguments_are_contiguous_and_on_the_device(cupy):
    turned = cupy.zeros((4, 4), "float32").T
    with pytest.raises(ValueError, match="C-contiguous"):
        launch(ANY, (1,), (32,), turned)
    kernel = cupy.RawModule(code="text", name_expressions=[ANY]).get_function(ANY)
    with pytest.raises(ValueError, match="as if it were contiguous"):
        kernel((1,), (32,), (turned,))
    with pytest.raises(TypeError, match="ndarray, as argument"):
        kernel((1,), (32,), (HOST,))
    for grid, block in (([1], (32,)), ((1,), [32]), (1, (32,))):
        with pytest.raises(TypeError, match="expected tuples"):
            kernel(grid, block, (cupy.zeros(4, "float32"),))
    with pytest.raises(RuntimeError, match="not in name_expressions"):
        cupy.RawModule(code="text", name_expressions=[ANY]).get_function("other<float>")


# ---- planted mistakes: copies of code of the library, each with one mistake that NumPy forgives ----


def apply_right(x, scale, shift):
    """kernels.batch_norm_apply with ReLU, in the reference."""
    y = layout.rows(x) * scale + shift
    layout.array_module(y).maximum(y, 0, out=y)
    return layout.from_rows(y, x.shape)


def numpys_function(x, scale, shift):
    y = layout.rows(x) * scale + shift
    np.maximum(y, 0, out=y)
    return layout.from_rows(y, x.shape)


def numpys_function_of_arrays(x, scale, shift):
    y = layout.rows(x) * scale + shift
    return layout.from_rows(np.where(y > 0, y, 0), x.shape)


def implicit_host_copy(x, scale, shift):
    y = layout.rows(x) * np.asarray(scale) + shift
    layout.array_module(y).maximum(y, 0, out=y)
    return layout.from_rows(y, x.shape)


def host_table(x, scale, shift):
    y = layout.rows(x) * scale + shift
    order = np.arange(len(y))
    return layout.from_rows(layout.array_module(y).maximum(y[order], 0), x.shape)


def c_order_assumed_away(x, scale, shift):
    y = x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)  # channels-last on NumPy, as x is
    return layout.array_module(y).maximum(y, 0)


def numpys_scalar(x, scale, shift):
    y = layout.rows(x) * scale * np.float64(1.0) + shift  # as from np.sqrt(3) or np.prod(shape): float64 from here on
    layout.array_module(y).maximum(y, 0, out=y)
    return layout.from_rows(y, x.shape)


def mask(x, scale, shift):
    y = layout.rows(x) * scale + shift
    y[y <= 0] = 0
    return layout.from_rows(y, x.shape)


def branch_on_a_value(x, scale, shift):
    y = layout.rows(x) * scale + shift
    if (y < 0).any():
        y = layout.array_module(y).maximum(y, 0)
    return layout.from_rows(y, x.shape)


def kernel_with_a_python_int(x, scale, shift):
    rows = layout.rows(x)
    function(manifest.BY_NAME[ANY])((1,), (32,), (rows, len(rows)))
    return apply_right(x, scale, shift)


PLANTED = {numpys_function: "np.maximum on a device array", numpys_function_of_arrays: "np.where on a device array",
           implicit_host_copy: "Implicit conversion", host_table: "index from the host while a graph is being captured",
           c_order_assumed_away: "not channels-last", numpys_scalar: "float64",
           mask: "boolean mask while a graph is being captured", branch_on_a_value: "bool() while a graph is being",
           kernel_with_a_python_int: "give np.int32"}


def verdict(cupy, version):
    """What the stand-in says of a version of batch_norm_apply: "" if it is right."""
    x, scale, shift = images(cupy, 2, 3, 4, 5), cupy.asarray(values(3) + 2), cupy.asarray(values(3))
    try:
        with standin.capturing():
            y = version(x, scale, shift)
    except (TypeError, RuntimeError) as error:
        return str(error)
    if not layout.is_channels_last(y):
        return "not channels-last"
    if y.dtype != x.dtype:
        return str(y.dtype)
    wanted = reference.batch_norm_apply(x.get(), scale.get(), shift.get(), None, True)
    return "" if np.allclose(y.get(), wanted, atol=1e-6) else "other values"


@pytest.mark.parametrize("version", PLANTED)
def test_planted_mistakes_are_caught(cupy, version):
    assert PLANTED[version] in verdict(cupy, version)
    if version is not kernel_with_a_python_int:  # NumPy forgives it: there it gives what it should
        x, scale, shift = (a.astype("float32") for a in (layout.nchw(values(2, 4, 5, 3)), values(3) + 2, values(3)))
        np.testing.assert_allclose(version(x, scale, shift), apply_right(x, scale, shift), rtol=1e-6, atol=1e-6)


def test_the_right_version_passes(cupy):
    assert verdict(cupy, apply_right) == ""


# ---- it is put in place, and taken away ----


def test_installing(cupy):
    import cupy as imported

    assert imported is cupy is standin.cupy and layout.array_module(cupy.zeros(2)) is cupy
    assert layout.array_module(HOST) is np and cupy.is_available()
