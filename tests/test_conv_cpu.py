"""The fast convolutions by themselves: Winograd at any size, the choice between kernels, vectors and register tiles."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numba import njit
from test_kernels import DTYPES, Convolution, assert_close, convolutions, machine, quick

from tinyres.kernels import cpu as fast
from tinyres.kernels import reference
from tinyres.kernels.cpu import conv, conv_direct, conv_winograd
from tinyres.kernels.cpu.simd import (
    LANES,
    ROWS,
    load,
    load_some,
    store,
    store_some,
    tile_add_product,
    tile_load,
    tile_store,
    tile_width,
    tile_zeros,
    zeros,
)

# Norm of the error as a share of the norm of the result for absolute values, in float32: about three times the worst of
# 2,000 draws.
BOUNDS = {0: 1.5e-7, 2: 3e-7, 4: 1.5e-6}


def winograd(case, m, x, w, g):
    return (conv_winograd.conv2d(x, w, case.padding, m),
            conv_winograd.conv2d_input_grad(g, w, x.shape, case.padding, m),
            conv_winograd.conv2d_weight_grad(x, g, case.padding, m))


@st.composite
def cases(draw, channels=67):
    """3x3, stride 1: any image that the kernel fits into, one pixel included, any channels, padding up to 4."""
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    size = (draw(st.integers(max(1, 3 - 2 * pad), 13)) for pad in padding)
    x_shape = (draw(st.integers(1, 3)), draw(st.integers(1, channels)), *size)
    w_shape = (draw(st.integers(1, channels)), x_shape[1], 3, 3)
    return Convolution(x_shape, w_shape, (1, 1), padding, (1, 1), 1, draw(st.integers(0, 9999)))


@pytest.mark.parametrize("m", [2, 4])
@quick(60)
@given(case=cases(), dtype=st.sampled_from(DTYPES), thread_count=st.integers(1, 3),
       block=st.sampled_from([1, 7, 64]), poison=st.booleans())
def test_winograd_equals_reference(m, case, dtype, thread_count, block, poison):
    x, w, g = case.arrays(dtype)
    wide = [a.astype(np.float64) for a in (x, w, g)]
    magnitude = case.run(reference, *map(np.abs, wide))
    with machine(thread_count, block, poison):
        for got, one, size in zip(winograd(case, m, x, w, g), case.run(reference, *wide), magnitude, strict=True):
            if dtype is np.float64:
                np.testing.assert_allclose(got, one, rtol=0, atol=1e-12 * np.abs(size).max())
            else:
                assert got.dtype == dtype and got.shape == one.shape
                assert np.linalg.norm(got - one) <= BOUNDS[m] * np.linalg.norm(size)


@pytest.mark.parametrize("m", [2, 4])
@quick(20)
@given(case=cases(20))
def test_winograd_gradients_are_adjoints(m, case):
    x, w, g = case.arrays(np.float64)
    y, dx, dw = winograd(case, m, x, w, g)
    bound = 1e-12 * np.sum(reference.conv2d(abs(x), abs(w), *case.options) * abs(g))
    assert abs(np.sum(y * g) - np.sum(x * dx)) <= bound
    assert abs(np.sum(y * g) - np.sum(w * dw)) <= bound


@pytest.mark.parametrize("m", [2, 4])
def test_winograd_gradient_by_finite_differences(m):
    """The kernels' own: the directional derivative of sum(y * g) along a direction of x and one of w."""
    case = Convolution((2, 9, 7, 6), (11, 9, 3, 3), (1, 1), (1, 0), (1, 1), 1, 3)
    x, w, g = case.arrays(np.float64)
    along_x, along_w, _ = Convolution(case.x_shape, case.w_shape, *case.options, 4).arrays(np.float64)
    _, dx, dw = winograd(case, m, x, w, g)
    loss = [np.sum(conv_winograd.conv2d(x + e * along_x, w + e * along_w, case.padding, m) * g) for e in (1e-5, -1e-5)]
    expected = np.sum(dx * along_x) + np.sum(dw * along_w)
    assert (loss[0] - loss[1]) / 2e-5 == pytest.approx(expected, rel=1e-8)


@quick(60)
@given(case=cases(), dtype=st.sampled_from(DTYPES))
def test_direct_convolution_of_many_channels_equals_reference(case, dtype):
    x, w, g = case.arrays(dtype)
    wide = [a.astype(np.float64) for a in (x, w, g)]
    magnitude = case.run(reference, *map(np.abs, wide))
    for got, one, size in zip(case.run(conv_direct, x, w, g), case.run(reference, *wide), magnitude, strict=True):
        assert_close(got, one, size, dtype)


@quick(60)
@given(case=st.one_of(cases(20), convolutions()), m=st.sampled_from([0, 2, 4]), dtype=st.sampled_from(DTYPES),
       thread_count=st.integers(1, 2), block=st.sampled_from([1, 64]))
def test_input_gradients_are_added_to_a_total(case, m, dtype, thread_count, block):
    x, w, g = case.arrays(dtype)
    assume(m == 0 or case.options[::2] + w.shape[2:] == ((1, 1), (1, 1), 3, 3) and case.groups == 1)
    before = case.arrays(dtype)[0][::-1].copy(order="K")
    total = before.copy(order="K")
    with machine(thread_count, block):
        if m:
            found = conv_winograd.conv2d_input_grad(g, w, x.shape, case.padding, m, total)
        else:
            found = conv_direct.conv2d_input_grad(g, w, x.shape, *case.options, total)
    assert found.shape == total.shape and np.shares_memory(found, total)
    added = reference.conv2d_input_grad(*(a.astype(np.float64) for a in (g, w)), x.shape, *case.options)
    size = reference.conv2d_input_grad(abs(g), abs(w), x.shape, *case.options)
    bound = 1e-12 if dtype is np.float64 else 1e-5
    np.testing.assert_allclose(total, before + added, rtol=0, atol=bound * (1 + np.abs(size).max()))


@pytest.mark.parametrize("channels, size, expected", [
    ((7, 64), 3, (0, 0)), ((8, 8), 3, (4, 4)), ((63, 16), 3, (4, 4)), ((16, 64), 3, (2, 4)), ((256, 64), 3, (2, 4)),
    ((64, 257), 3, (2, 2)), ((64, 64), 1, (0, 0)), ((64, 64), 5, (0, 0)),
])
def test_the_table_of_kernels(monkeypatch, channels, size, expected):
    K, C = channels
    assert conv.tiles((K, C, size, size), (1, 1), (1, 1), 1) == expected
    for other in (((2, 1), (1, 1), 1), ((1, 1), (1, 2), 1), ((1, 1), (1, 1), 2)):
        assert conv.tiles((K, C, size, size), *other) == (0, 0)
    used = []
    for name in ("conv2d", "conv2d_input_grad", "conv2d_weight_grad"):
        monkeypatch.setattr(conv_winograd, name, lambda *args: used.append(args[4 if len(args) == 6 else 3]))
        monkeypatch.setattr(conv_direct, name, lambda *args: used.append(0))
    case = Convolution((1, C, 6, 6), (K, C, size, size), (1, 1), (1, 1), (1, 1), 1, 0)
    case.run(fast, *case.arrays(np.float32))
    assert tuple(used) == (expected[0], expected[1], expected[1])


# ---- vectors and tiles ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_add_subtract_multiply_and_are_cut_off(dtype):
    @njit
    def compute(a, out, valid):
        x, y = load(a, 0), load(a, LANES)
        store(out, 0, 2 * x + y * x - y)
        store(out, LANES, zeros(a) - 1.5 * load_some(a, 1, valid))
        store_some(out, 2 * LANES, x, valid)

    a = np.random.default_rng(0).standard_normal(2 * LANES).astype(dtype)
    x, y = a[:LANES], a[LANES:]
    for valid in (1, LANES - 1, LANES, LANES + 3):
        out = np.full(3 * LANES, np.nan, dtype)
        compute(a, out, valid)
        kept = np.arange(LANES) < valid
        np.testing.assert_allclose(out[:LANES], 2 * x + y * x - y, rtol=1e-5)
        np.testing.assert_allclose(out[LANES : 2 * LANES], np.where(kept, -1.5 * a[1 : LANES + 1], 0), rtol=1e-6)
        np.testing.assert_array_equal(out[2 * LANES :], np.where(kept, x, np.nan))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("valid", [1, LANES, LANES + 1, 2 * LANES])
def test_a_tile_adds_products_and_touches_only_valid_columns(dtype, valid):
    @njit
    def compute(A, B, C, K, step, valid):
        tile = tile_load(tile_zeros(A, ROWS, 2), C, 0, step, valid)
        for k in range(K):
            tile = tile_add_product(tile, A, k, K, B, k * tile_width(tile))
        tile_store(tile, C, 0, step, valid)

    rng, K, step = np.random.default_rng(0), 5, 2 * LANES + 3
    A, B = rng.standard_normal((ROWS, K)).astype(dtype), rng.standard_normal((K, 2 * LANES)).astype(dtype)
    C = rng.standard_normal((ROWS, step)).astype(dtype)
    before = C.copy()
    compute(A.ravel(), B.ravel(), C.reshape(-1), K, step, valid)
    np.testing.assert_allclose(C[:, :valid], before[:, :valid] + (A @ B)[:, :valid], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(C[:, valid:], before[:, valid:])
