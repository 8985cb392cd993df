"""The convolution of CUDA kernels and the matrix product: on the emulator in three orders, and on a GPU."""

import contextlib
import re

import numpy as np
import pytest
from cuda_places import PLACES
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import DTYPES, FIXED, Convolution, convolutions, quick

from tinyres.kernels import im2col as numpy_im2col
from tinyres.kernels import layout, reference
from tinyres.kernels.cuda import conv, emulator, im2col, matmul
from tinyres.kernels.cuda.launch import FOLDER, blocks, launch, type_name

EMULATOR, GPU = PLACES
SETS = {"own product": conv, "library's product": im2col}
# Norm of the error as a share of the norm of the result for absolute values: three times the worst of 1,500 draws.
SHARE = {np.dtype(np.float32): 3e-7, np.dtype(np.float64): 6e-16}
# Kernels of one pixel that differ by one number from those whose columns are the image itself.
CASES = FIXED | {
    "1x1 padded in width": Convolution((2, 5, 4, 4), (7, 5, 1, 1), (1, 1), (0, 1), (1, 1), 1, 15),
    "1x1 stride 2 in width": Convolution((2, 5, 4, 4), (7, 5, 1, 1), (1, 2), (0, 0), (1, 1), 1, 16),
    "1x1 stride 2 in height": Convolution((2, 5, 4, 4), (7, 5, 1, 1), (2, 1), (0, 0), (1, 1), 1, 17),
}
ORDERS = [{"order": "forward"}, {"order": "reverse"}, {"order": "random", "seed": 7}]
PRODUCTS = ["a_bt", "a_b", "sum_bt_a"]


def close(got, expected, magnitude):
    assert got.shape == expected.shape and got.dtype in SHARE
    assert got.ndim != 4 or layout.is_channels_last(got)
    error, scale = (np.linalg.norm(np.asarray(a, np.float64).ravel()) for a in (got - expected, magnitude))
    assert error <= SHARE[got.dtype] * scale, f"error {error:.2e} is {error / scale:.2e} of the magnitude {scale:.2e}"


def same_bits(results, others):
    for one, other in zip(results, others, strict=True):
        np.testing.assert_array_equal(one, other)


def run(place, kernel_set, case, x, w, g):
    """y, dx, dw and the total that dx was added to, as NumPy arrays of the layout that the kernels gave."""
    x, w, g = map(place.put, (x, w, g))
    total = x.copy(order="K")
    kernel_set.conv2d_input_grad_add(total, g, w, *case.options)
    return [place.get(a) for a in (*case.run(kernel_set, x, w, g), total)]


def check(place, kernel_set, case, dtype, orders=ORDERS):
    """Close to the reference, and in every order of the threads (on a GPU: again and again) the same bits."""
    x, w, g = case.arrays(dtype)
    wide = [a.astype(np.float64) for a in (x, w, g)]
    expected, magnitude = case.run(reference, *wide), case.run(reference, *map(np.abs, wide))
    results = []
    for order in orders:
        with emulator.settings(**order):
            results.append(run(place, kernel_set, case, x, w, g))
    for got, one, size in zip(results[0], (*expected, wide[0] + expected[1]),
                              (*magnitude, abs(wide[0]) + magnitude[1]), strict=True):
        close(got, one, size)
    for again in results[1:]:
        same_bits(again, results[0])
    return results[0]


# ---- convolution ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_conv_equals_reference_in_named_cases(place, kernel_set, dtype, name):
    check(place, SETS[kernel_set], CASES[name], dtype)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kernel_set", SETS)
@quick(50)
@given(case=convolutions(), dtype=st.sampled_from(DTYPES))
def test_conv_equals_reference_in_three_orders(place, kernel_set, case, dtype):
    check(place, SETS[kernel_set], case, dtype)


@pytest.mark.parametrize("place", PLACES)
@quick(25)
@given(case=convolutions(largest=5, channels=67), dtype=st.sampled_from(DTYPES))
def test_conv_of_up_to_67_channels_a_group(place, case, dtype):
    check(place, conv, case, dtype, ORDERS[-1:])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_conv_of_a_layer_of_usual_size(place, dtype):
    case = Convolution((4, 16, 16, 16), (20, 16, 3, 3), (1, 1), (1, 1), (1, 1), 1, 0)
    assert blocks(4 * 16 * 16, matmul.part_length(4 * 16 * 16, 9 * 16, 20, 1)) == 4  # more than one partial sum
    check(place, conv, case, dtype, ORDERS[-1:])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("name", ["3x3", "1x1 grouped", "dilated", "depthwise times 2"])
def test_chunks_of_images_give_the_same_result(place, kernel_set, name, monkeypatch):
    """One image at a time, and chunks that do not divide the batch."""
    one = FIXED[name]
    case = Convolution((5, *one.x_shape[1:]), one.w_shape, *one.options, 3)
    whole = check(place, SETS[kernel_set], case, np.float32, ORDERS[:1])
    x, w, g = case.arrays(np.float32)
    N, K, P, Q = case.y_shape
    image = P * Q * np.prod(case.w_shape[1:]) * case.groups * 4
    for chunk_bytes in (1, 2 * image, 3 * image + 1):
        monkeypatch.setattr(conv, "CHUNK_BYTES", int(chunk_bytes))
        y, dx, dw, total = check(place, SETS[kernel_set], case, np.float32, ORDERS[:1])
        if kernel_set == "own product":
            same_bits([y, dx, total], [whole[0], whole[1], whole[3]])


def test_columns_take_no_more_than_their_bytes(monkeypatch):
    asked = []
    monkeypatch.setattr(conv, "empty", lambda like, shape: asked.append(np.prod(shape)) or np.empty(shape, like.dtype))
    monkeypatch.setattr(conv, "CHUNK_BYTES", 3 * 64 * 9 * 16 * 4 + 100)
    layer = conv.Layer.of((8, 16, 8, 8), (16, 16, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    images = np.zeros((8, 8, 8, 16), np.float32)
    chunks = [(first, last, columns.shape) for first, last, columns in layer.chunks(images)]
    assert chunks == [(0, 3, (1, 192, 144)), (3, 6, (1, 192, 144)), (6, 8, (1, 128, 144))]
    assert asked == [3 * 64 * 9 * 16]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("name", ["3x3", "1x1 grouped", "1x1 stride 2", "dilated", "unread border", "depthwise"])
def test_nan_spreads_as_in_the_reference(place, kernel_set, name):
    """A NaN in one of x, w and g; the zeros that fill up tiles and windows take it nowhere else."""
    case = FIXED[name]
    for which in range(3):
        arrays = case.arrays(np.float32)
        arrays[which][-1, 0, -1, 0] = np.nan
        expected = case.run(reference, *arrays)
        for got, one in zip(run(place, SETS[kernel_set], case, *arrays)[:3], expected, strict=True):
            np.testing.assert_array_equal(np.isnan(got), np.isnan(one))


def moved(a):
    """The same values 1 behind a multiple of 16 bytes, read-only: no 16 bytes of them may be moved at once."""
    memory = np.empty(a.size + 8, a.dtype)
    first = -memory.ctypes.data % 16 // a.itemsize + 1
    memory[first : first + a.size] = layout.nhwc(a).ravel()
    b = layout.nchw(memory[first : first + a.size].reshape(layout.nhwc(a).shape))
    assert layout.nhwc(b).ctypes.data % 16 == a.itemsize
    b.flags.writeable = False
    return b


@pytest.mark.parametrize("kernel_set", SETS.values())
@pytest.mark.parametrize("name", ["3x3", "1x1", "1x1 grouped"])
def test_conv_takes_any_memory_order_any_address_and_read_only_arrays_and_changes_no_input(kernel_set, name):
    case = FIXED[name]
    x, w, g = case.arrays(np.float32)
    expected = case.run(kernel_set, x, w, g)
    c_order = [np.ascontiguousarray(a) for a in (x, w, g)]
    strided = [np.repeat(a, 2, axis=3)[..., ::2] for a in (x, w, g)]
    for arrays in (c_order, strided, [moved(a) for a in (x, w, g)]):
        before = [a.copy() for a in arrays]
        results = case.run(kernel_set, *arrays)
        for got, one in zip(results, expected, strict=True):
            np.testing.assert_allclose(got, one, rtol=0, atol=0 if kernel_set is conv else 1e-4)
        assert all(map(layout.is_channels_last, results))
        same_bits(arrays, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["3x3", "1x1", "1x1 grouped", "dilated"])
def test_no_access_is_misaligned_unwritten_or_unordered(dtype, name):
    """In the build of the emulator that watches every access; arrays anywhere in memory."""
    case = FIXED[name]
    x, w, g = case.arrays(dtype)
    with emulator.settings(sanitize=True):
        results = case.run(conv, x, w, g)
        same_bits(case.run(conv, *map(moved, (x, w, g))), results)
        total, moved_total = x.copy(order="K"), moved(x)
        moved_total.flags.writeable = True
        for one in (total, moved_total):
            conv.conv2d_input_grad_add(one, g, w, *case.options)
    same_bits([*case.run(conv, x, w, g), total], [*results, moved_total])


@pytest.mark.parametrize("kernel_set", SETS.values())
def test_input_grad_add_to_a_total_in_another_memory_order(kernel_set):
    case = FIXED["3x3"]
    x, w, g = case.arrays(np.float64)
    total = np.ascontiguousarray(x)
    kernel_set.conv2d_input_grad_add(total, g, w, *case.options)
    np.testing.assert_allclose(total, x + reference.conv2d_input_grad(g, w, x.shape, *case.options), atol=1e-12)


@pytest.mark.parametrize("kernel_set", SETS.values())
@pytest.mark.parametrize("name", ["depthwise times 2", "1x1", "3x3"])
def test_conv_makes_no_layout_copy_of_channels_last_arrays(kernel_set, name):
    x, w, g = FIXED[name].arrays(np.float32)
    with layout.count_copies() as counted:
        FIXED[name].run(kernel_set, x, w, g)
        kernel_set.conv2d_input_grad_add(x, g, w, *FIXED[name].options)
    assert counted.copies == 0


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kernel_set", SETS.values())
@pytest.mark.parametrize("kernel", [1, 3])
def test_conv_of_an_empty_batch(place, kernel_set, kernel):
    options = (1, 1), (kernel // 2, kernel // 2), (1, 1), 1
    w, x, g = (place.put(np.ones(shape, np.float32)) for shape in ((4, 3, kernel, kernel), (0, 3, 5, 5), (0, 4, 5, 5)))
    assert kernel_set.conv2d(x, w, *options).shape == (0, 4, 5, 5)
    assert kernel_set.conv2d_input_grad(g, w, x.shape, *options).shape == (0, 3, 5, 5)
    kernel_set.conv2d_input_grad_add(x, g, w, *options)
    dw = place.get(kernel_set.conv2d_weight_grad(x, g, w.shape, *options))
    np.testing.assert_array_equal(dw, np.zeros((4, 3, kernel, kernel)))


@pytest.mark.parametrize("place", PLACES)
@quick(25)
@given(case=convolutions(), dtype=st.sampled_from(DTYPES))
def test_both_col2im_equal_the_one_of_numpy(place, case, dtype):
    """The scatter within rounding: the order of its additions is not fixed."""
    layer = conv.Layer.of(case.x_shape, case.w_shape, *case.options)
    rng = np.random.default_rng(case.seed)
    patches = rng.standard_normal((layer.N, layer.P, layer.Q, layer.R, layer.S, layer.C)).astype(dtype)
    expected = layout.rows(numpy_im2col.add_columns(patches, case.x_shape, *case.options[:3]))
    columns = place.put(np.ascontiguousarray(numpy_im2col.columns(patches, layer.groups)))
    before = rng.standard_normal(expected.shape).astype(dtype)
    written, added, scattered = place.put(np.full_like(before, np.nan)), place.put(before.copy()), place.put(0 * before)
    sizes = [np.int32(size) for size in (*layer[:8], *layer.stride, *layer.padding, *layer.dilation, layer.groups)]
    name, grid, per_group = type_name(columns), (blocks(before.size, 256),), blocks(columns[0].size, 256)
    with emulator.settings(**ORDERS[-1]):
        launch(f"col2im<{name}, 1>", grid, (256,), columns, written, *sizes, np.int32(0))
        launch(f"col2im<{name}, 1>", grid, (256,), columns, added, *sizes, np.int32(1))
        launch(f"col2im_atomic<{name}>", (per_group, layer.groups), (256,), columns, scattered, *sizes)
    for got, one in ((written, expected), (added, before + expected), (scattered, expected)):
        np.testing.assert_allclose(place.get(got), one, rtol=0, atol=100 * np.finfo(dtype).eps)


# ---- the matrix product ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tiles(name, least_part=48):
    """Every product with this tile, and sums over pixels in as many parts as can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "tile", lambda rows, columns, batch: name)
        patch.setattr(matmul, "LEAST_PART", least_part)
        yield


def operands(product, groups, M, N, inner, dtype, seed=0):
    """Random a and b, stacks of matrices, for `groups` results M x N (of sum_bt_a: N x M)."""
    shapes = {"a_bt": ((M, inner), (N, inner)), "a_b": ((M, inner), (inner, N)), "sum_bt_a": ((inner, M), (inner, N))}
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((groups, *shape)).astype(dtype) for shape in shapes[product]]


def multiply(product, a, b, groups, side_by_side, place):
    """The product of stacks of matrices a (G, ., .) and b, which lie side by side or one after another."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    shape = {"a_bt": (a.shape[1], b.shape[1]), "a_b": (a.shape[1], b.shape[2]), "sum_bt_a": (b.shape[2], a.shape[2])}
    c = np.full((groups, *shape[product]), np.nan, a.dtype)
    beside = {"a_bt": "ac", "a_b": "ac", "sum_bt_a": "ab"}[product] if side_by_side else ""

    def placed(m, letter):
        return place.put(m.swapaxes(0, 1).reshape(m.shape[1], -1) if letter in beside else m)

    a, b, c = placed(a, "a"), placed(b, "b"), placed(c, "c")
    if product == "sum_bt_a":
        matmul.sum_bt_a([(a, b)], c, groups)
    else:
        getattr(matmul, product)(a, b, c, groups)
    c = place.get(c)
    return c.reshape(c.shape[0], groups, -1).swapaxes(0, 1) if c.ndim == 2 else c


def numpy_product(product, a, b):
    if product == "a_b":
        return a @ b
    return a @ b.swapaxes(1, 2) if product == "a_bt" else b.swapaxes(1, 2) @ a


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("product", PRODUCTS)
@quick(12)
@given(sizes=st.tuples(*[st.integers(1, 150)] * 3), groups=st.integers(1, 2), side_by_side=st.booleans(),
       dtype=st.sampled_from(DTYPES), seed=st.integers(0, 9999), fours=st.booleans())
def test_products_with_every_tile_and_odd_sizes(place, product, sizes, groups, side_by_side, dtype, seed, fours):
    M, N, inner = (4 * blocks(size, 4) if fours else size for size in sizes)
    a, b = operands(product, groups, M, N, inner, dtype, seed)
    expected = numpy_product(product, a.astype(np.float64), b.astype(np.float64))
    results = []
    for name, order in zip(matmul.TILES, ORDERS, strict=True):
        with tiles(name), emulator.settings(**order):
            results.append(multiply(product, a, b, groups, side_by_side, place))
        close(results[-1], expected, numpy_product(product, abs(a), abs(b)))
    if product != "sum_bt_a":  # there the parts are other ones
        same_bits(results[1:], results[:1] * 2)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("tile", matmul.TILES)
@pytest.mark.parametrize("product", PRODUCTS)
def test_every_instance_in_three_orders_gives_the_same_bits(place, tile, product):
    """Two tiles each way, two steps along inner and a rest; a sum in three parts."""
    for dtype in DTYPES:
        a, b = operands(product, 1, 130, 129, 150 if product == "sum_bt_a" else 37, dtype)
        results = []
        for order in ORDERS:
            with tiles(tile), emulator.settings(**order):
                results.append(multiply(product, a, b, 1, False, place))
        close(results[0], numpy_product(product, a.astype(np.float64), b.astype(np.float64)),
              numpy_product(product, abs(a), abs(b)))
        same_bits(results[1:], results[:1] * 2)


@pytest.mark.parametrize("tile", matmul.TILES)
@pytest.mark.parametrize("product", PRODUCTS)
def test_no_access_of_a_product_is_misaligned_unwritten_or_unordered(product, tile):
    """Sizes of which some lines begin at a multiple of 16 bytes and some do not."""
    for M, N, inner in ((20, 36, 33), (21, 33, 36)):
        a, b = operands(product, 1, M, N, inner, np.float64)
        with tiles(tile, least_part=16), emulator.settings(sanitize=True):
            watched = multiply(product, a, b, 1, False, EMULATOR.values[0])
        close(watched, numpy_product(product, a, b), numpy_product(product, abs(a), abs(b)))


def test_partial_sums_of_float_are_added_in_double():
    """1 and then 10,080 values of 1e-8 in other parts: added to 1 in float, none of the parts would change the sum."""
    a, b = np.full((1024, 1), 1e-8, np.float32), np.ones((1024, 1), np.float32)
    a[0] = 1
    dw = np.empty((1, 1, 1), np.float32)
    with tiles("NARROW", least_part=16):
        matmul.sum_bt_a([(a, b)] + [(a[16:], b[16:])] * 9, dw, 1)
    assert dw[0, 0, 0] == np.float32(1 + 1e-8 * 1008 * 10)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(5, 7, 10), (64, 64, 10), (1, 1, 1), (3, 0, 2), (0, 3, 2)])
def test_matmul_of_matrices_and_their_transposes(place, dtype, sizes):
    M, K, N = sizes
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((M, K)).astype(dtype), rng.standard_normal((K, N)).astype(dtype)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    a, a_t, b, b_t = map(place.put, (a, a.T.copy(), b, b.T.copy()))
    for left in (a, a_t.T):
        for right in (b, b_t.T):
            close(place.get(matmul.matmul(left, right)), expected, np.abs(place.get(left)) @ np.abs(place.get(right)))


def test_the_tile_of_each_shape_is_the_one_of_the_table():
    M = 128 * 32 * 32
    widths = {10: "NARROW", 16: "NARROW", 32: "NARROW", 48: "MEDIUM", 64: "MEDIUM", 128: "LARGE", 144: "MEDIUM",
              288: "LARGE", 576: "LARGE", 65: "NARROW"}
    assert {columns: matmul.tile(M, columns, 1) for columns in widths} == widths
    assert matmul.tile(2048, 512, 1) == "MEDIUM"  # 64 large tiles leave half the GPU idle
    assert matmul.tile(512, 512, 1) == "NARROW"
    text = (FOLDER / "matmul.cu").read_text()
    sizes = re.findall(r"struct Tile<(\w+)> \{\s+static constexpr int ROWS = (\d+), COLUMNS = (\d+)", text)
    assert {name: (int(rows), int(columns)) for name, rows, columns in sizes} == matmul.TILES
    assert f"constexpr int PIXELS = {conv.PIXELS};" in (FOLDER / "im2col.cu").read_text()


def test_a_sum_over_pixels_is_cut_by_its_shape_into_parts_for_the_whole_gpu():
    assert matmul.part_length(128 * 32 * 32, 144, 16, 1) == 512  # 256 parts of the 2 tiles of 144 x 16
    assert matmul.part_length(128 * 8 * 8, 576, 64, 1) == 256  # no part is shorter
    assert matmul.part_length(100, 576, 64, 1) == 112  # one part, to a multiple of STEP
    assert matmul.part_length(2048, 4608, 512, 1) == 512
