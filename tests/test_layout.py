"""Memory order: views where possible, counted copies elsewhere, channels-last results of elementwise functions."""

import itertools
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyres.kernels import layout


def channels_last(shape, dtype=np.float32):
    N, C, H, W = shape
    return layout.nchw(np.random.default_rng(0).standard_normal((N, H, W, C)).astype(dtype))


# ---- views and counted copies ----


def test_nhwc_of_a_channels_last_image_is_a_view():
    x = channels_last((2, 3, 4, 5))
    with layout.count_copies() as counted:
        memory = layout.nhwc(x)
        assert layout.nchw(memory).shape == x.shape
        assert layout.channels_last(x) is x
    assert counted.copies == 0
    assert memory.flags.c_contiguous and np.shares_memory(memory, x)
    memory[1, 2, 3, 0] = 7
    assert x[1, 0, 2, 3] == 7


def test_nhwc_of_another_order_is_one_counted_copy():
    x = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    before = layout.copies
    with layout.count_copies() as counted:
        memory = layout.nhwc(x)
    assert counted.copies == 1 and layout.copies == before + 1
    assert memory.flags.c_contiguous and not np.shares_memory(memory, x)
    np.testing.assert_array_equal(memory.transpose(0, 3, 1, 2), x)
    with layout.count_copies() as counted:
        y = layout.channels_last(x)
    assert counted.copies == 1 and layout.is_channels_last(y) and not layout.is_channels_last(x)
    np.testing.assert_array_equal(x, y)


def test_count_copies_counts_when_the_block_raises():
    with pytest.raises(KeyError), layout.count_copies() as counted:
        layout.nhwc(np.zeros((2, 3, 4, 5)))
        raise KeyError
    assert counted.copies == 1


@pytest.mark.parametrize("shape", [(5, 1, 4, 4), (5, 3, 1, 1)])
def test_one_channel_or_one_pixel_is_channels_last_in_either_order(shape):
    with layout.count_copies() as counted:
        assert layout.channels_last(np.zeros(shape)).shape == shape
    assert counted.copies == 0


def test_slices_of_the_batch_are_views_and_slices_of_channels_are_copies():
    x = channels_last((4, 6, 3, 3))
    with layout.count_copies() as counted:
        layout.nhwc(x[1:3])
    assert counted.copies == 0
    with layout.count_copies() as counted:
        layout.nhwc(x[:, 2:4])
        layout.nhwc(np.broadcast_to(np.float32(1), x.shape))
    assert counted.copies == 2


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4), (6, 3, 4, 5), (2, 3, 4, 5, 2)])
def test_rows_and_back(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    values = layout.rows(x)
    assert values.shape == (x.size // 3, 3) and values.flags.c_contiguous
    np.testing.assert_array_equal(values[:, 1], x[:, 1].ravel())
    y = layout.from_rows(values, shape)
    np.testing.assert_array_equal(y, x)
    with layout.count_copies() as counted:
        again = layout.rows(y)
    assert counted.copies == 0 and np.shares_memory(again, values)


def test_array_module_does_not_import_cupy_for_numpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it would raise
    for a in (np.zeros(3), np.float32(1), 1.5, np.zeros(3).view(np.recarray)):
        assert layout.array_module(a) is np


# ---- elementwise ----

ORDERS = list(itertools.permutations(range(4)))


@st.composite
def operands(draw):
    """Two or three operands that broadcast to one 4-D shape, in any memory order, or scalars."""
    shape = draw(st.tuples(*[st.integers(1, 4)] * 4))
    result = []
    for position in range(draw(st.integers(2, 3))):
        ndim = 4 if position == 0 else draw(st.integers(0, 4))
        own = tuple(draw(st.sampled_from([size, size, 1])) for size in shape[4 - ndim :])
        a = np.arange(1.0, np.prod(own) + 1, dtype=np.float32).reshape(own)
        if ndim == 4:
            order = draw(st.sampled_from(ORDERS))
            a = np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))
        result.append(draw(st.sampled_from([a, 2.5, 3])) if ndim == 0 else a)
    return result


@settings(max_examples=200, deadline=None)
@given(operands())
def test_elementwise_is_channels_last_for_every_order_and_broadcast(arrays):
    def fn(*a):
        return np.where(a[0] > 3, a[0], a[1]) if len(a) == 2 else a[0] * a[1] + a[2]

    y = layout.elementwise(fn, *arrays)
    np.testing.assert_array_equal(y, fn(*arrays))
    assert y.dtype == np.float32 and y.ndim == 4
    assert layout.is_channels_last(y)


@pytest.mark.parametrize("other", [2.0, np.full((), 3, np.float32), "c11", "1c11", "same", "w"])
def test_elementwise_of_channels_last_operands_needs_no_copy(other):
    x = channels_last((2, 3, 4, 5))
    named = {"c11": np.ones((3, 1, 1), "f"), "1c11": np.ones((1, 3, 1, 1), "f"), "same": x, "w": np.ones(5, "f")}
    other = named[other] if isinstance(other, str) else other
    with layout.count_copies() as counted:
        y = layout.elementwise(np.add, x, other)
        z = layout.elementwise(np.add, other, x)
        layout.elementwise(np.exp, x)
    assert counted.copies == 0
    assert layout.is_channels_last(y) and layout.is_channels_last(z) and y.dtype == np.float32


def test_elementwise_returns_arrays_also_without_dimensions():
    y = layout.elementwise(np.exp, np.ones((), np.float32))
    assert type(y) is np.ndarray and y.shape == () and y.dtype == np.float32
    y = layout.elementwise(np.add, np.ones(3, np.float32), 1.5)
    assert y.dtype == np.float32 and y.shape == (3,)


class FakeCupyArray(np.ndarray):
    """Looks like cupy.ndarray to layout.py; c_order below writes C order whatever comes in, as CuPy's ufuncs do."""


FakeCupyArray.__module__ = "cupy"


def c_order(ufunc):
    return lambda *operands: ufunc(*operands, order="C")


@pytest.fixture
def fake_cupy(monkeypatch):
    module = types.ModuleType("cupy")
    module.ascontiguousarray = lambda a: np.ascontiguousarray(a).view(FakeCupyArray)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.mark.parametrize("other_shape", [(2, 3, 4, 5), (3, 1, 1), (1, 3, 1, 1), (5,), (), None])
def test_elementwise_of_cupy_arrays_is_channels_last(fake_cupy, other_shape):
    x = channels_last((2, 3, 4, 5)).view(FakeCupyArray)
    assert layout.array_module(x) is fake_cupy
    other = 2.0 if other_shape is None else np.random.default_rng(1).standard_normal(other_shape).view(FakeCupyArray)
    assert not layout.is_channels_last(c_order(np.add)(x, other))  # what elementwise is there to mend
    for pair in ((x, other), (other, x)):
        with layout.count_copies() as counted:
            y = layout.elementwise(c_order(np.add), *pair)
        assert counted.copies == 0 and layout.is_channels_last(y)
        np.testing.assert_array_equal(y, np.add(*pair))


def test_elementwise_of_other_cupy_arrays_is_left_alone(fake_cupy):
    x = np.ones((2, 3), np.float32).view(FakeCupyArray)
    y = layout.elementwise(c_order(np.add), x, 1.0)
    assert type(y) is FakeCupyArray and y.shape == (2, 3)
    y = layout.elementwise(c_order(np.add), np.ones((2, 1, 3)).view(FakeCupyArray), x)
    assert y.shape == (2, 2, 3)
