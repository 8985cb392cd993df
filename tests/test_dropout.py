"""Dropout: its statistics, and that its mask is the same function of key and position whoever computes it."""

import importlib

import numpy as np
import pytest
from cuda_places import PLACES
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import DTYPES, machine, quick

import tinyres as tr
from tinyres import nn, ops
from tinyres.data import philox
from tinyres.kernels import cpu, cuda, im2col, layout, loops, reference, use_kernels
from tinyres.kernels.cuda import emulator

on_cuda = importlib.import_module("tinyres.kernels.cuda.dropout")  # cuda.dropout is the function
SETS = {"loops": loops, "im2col": im2col, "fast": cpu, "emulator": cuda}
WORD = st.integers(0, 2**64 - 1)
# A block of Philox is 8 values, a block of threads 2,048.
SHAPES = st.sampled_from([(), (0,), (1,), (7,), (8,), (9,), (2047,), (2048,), (2049,), (6151,), (3, 5), (2, 0, 3),
                          (3, 4, 5), (1, 1, 1, 1), (2, 3, 5, 7), (1, 67, 1, 1), (4, 1, 3, 5), (2, 3, 1, 2, 5)])


def by_numpy(x, p, key):
    """x * mask, with the words of np.random.Philox and floats for the comparison."""
    memory = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
    words = np.random.Philox(key=np.array([key, 0], np.uint64)).random_raw(x.size // 2 + 1)
    bits = np.stack([words & np.uint64(2**32 - 1), words >> np.uint64(32)], 1).ravel()[: x.size]
    mask = np.where(bits / 2**32 >= p, 1 / (1 - p), 0).astype(x.dtype).reshape(memory.shape)
    return np.asarray(x * (mask.transpose(0, 3, 1, 2) if x.ndim == 4 else mask))


def values(shape, dtype, seed=0):
    """Not channels-last where it has four dimensions: a kernel must bring it into that order."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


# ---- the words ----


@pytest.mark.parametrize("place", PLACES)
@quick(40)
@given(key=st.tuples(WORD, WORD), stream=WORD, count=st.integers(1, 600))
def test_philox_gives_numpys_words(place, key, stream, count):
    got = place.get(on_cuda.philox_words(place.put(np.zeros(1)), key, stream, 0, count))
    np.testing.assert_array_equal(got, philox.words(*key, stream, count))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("block", [2**29, 2**31 - 1, 2**32, 2**40 + 3, 2**62 - 3])
def test_words_far_down_a_stream(place, block):
    """A counter of 32 bits would begin again, after 8 and 16 thousand million words."""
    counter = np.array([block, 0, 0, 9], np.uint64)
    expected = np.random.Philox(key=np.array([1, 2], np.uint64), counter=counter).random_raw(9)
    got = place.get(on_cuda.philox_words(place.put(np.zeros(1)), (1, 2), 9, 4 * block + 1, 8))
    np.testing.assert_array_equal(got, expected[1:])


# ---- the same bits everywhere ----


@quick(150)
@given(shape=SHAPES, dtype=st.sampled_from(DTYPES), p=st.sampled_from([0.0, 1e-12, 0.1, 0.5, 0.9, 1 - 1e-12]), key=WORD)
@pytest.mark.parametrize("name", SETS)
def test_every_set_gives_numpys_bits(name, shape, dtype, p, key):
    x = values(shape, dtype)
    with use_kernels(name):
        y = tr.kernels.dropout(x, p, key)
    assert y.dtype == dtype and y.shape == shape
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous if len(shape) == 4 else y.flags.c_contiguous
    np.testing.assert_array_equal(y, by_numpy(x, p, key))
    np.testing.assert_array_equal(y, reference.dropout(x, p, key))


@pytest.mark.parametrize("place", [place for place in PLACES if place.id == "gpu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0,), (1,), (9,), (6151,), (3, 5), (2, 3, 5, 7), (128, 16, 32, 32)])
def test_a_gpu_gives_the_same_bits(place, dtype, shape):
    x = values(shape, dtype)
    np.testing.assert_array_equal(place.get(cuda.dropout(place.put(x), 0.3, 2**64 - 5)), by_numpy(x, 0.3, 2**64 - 5))


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_the_order_of_the_threads_changes_no_bit(order):
    x = values((5, 67, 7, 3), np.float32)
    expected = cuda.dropout(x, 0.4, 77)
    with emulator.settings(order=order, seed=3):
        np.testing.assert_array_equal(cuda.dropout(x, 0.4, 77), expected)


@pytest.mark.parametrize("thread_count", [2, 3, 5])
@pytest.mark.parametrize("size", [1, 8, 17, 1000, 8191])
def test_processor_threads_change_no_bit(thread_count, size):
    x = values((size,), np.float32)
    with machine(thread_count):
        np.testing.assert_array_equal(cpu.dropout(x, 0.4, 77), by_numpy(x, 0.4, 77))


@pytest.mark.parametrize("name", ["reference", *SETS])
def test_memory_order_and_dtype_do_not_change_what_is_dropped(name):
    x = values((2, 3, 4, 5), np.float64)
    with use_kernels(name):
        expected = tr.kernels.dropout(x, 0.5, 3)
        wide = np.full((2, 3, 4, 10), np.nan)
        wide[..., ::2] = x
        for same in (layout.channels_last(x), np.asfortranarray(x), wide[..., ::2]):
            np.testing.assert_array_equal(tr.kernels.dropout(same, 0.5, 3), expected)
        assert ((tr.kernels.dropout(x.astype("f"), 0.5, 3) == 0) == (expected == 0)).all()


def test_a_value_stays_if_its_share_is_at_least_p():
    bits = reference.dropout_bits(5, 9)
    for name in ("reference", "fast", "emulator"):
        with use_kernels(name):
            for i, share in enumerate(bits / 2**32):
                assert tr.kernels.dropout(np.ones(9), share, 5)[i] != 0
                assert tr.kernels.dropout(np.ones(9), share + 2.0**-33, 5)[i] == 0


@pytest.mark.parametrize("name", ["reference", "fast", "emulator"])
def test_a_dropped_nan_stays_nan(name):
    """As in PyTorch: a mask of zeros is multiplied, so that dropout does not hide a network that diverges."""
    with use_kernels(name), np.errstate(invalid="ignore"):
        y = tr.kernels.dropout(np.full(64, np.nan), 0.9, 1)
        z = tr.kernels.dropout(np.full(64, np.inf), 0.5, 1)
    assert np.isnan(y).all() and np.isnan(z).any() and np.isinf(z).any() and (np.isnan(z) | np.isinf(z)).all()


# ---- statistics ----


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(p):
    tr.manual_seed(0)
    n = 200_000
    x = tr.ones(n, requires_grad=True)
    y = ops.dropout(x, p)
    kept = y.data != 0
    assert abs(kept.mean() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5
    np.testing.assert_array_equal(y.data[kept], np.float32(1 / (1 - p)))
    y.backward(np.full(n, 2, np.float32))
    np.testing.assert_array_equal(x.grad.data, 2 * y.data)


def test_values_calls_and_keys_are_independent():
    """Of neighbours in a word, in a block of Philox, of blocks, of rows; of one call and the next; of close keys."""
    tr.manual_seed(0)
    n = 200_000
    x = np.ones(n, np.float32)
    kept, after = (ops.dropout(x, 0.5) != 0 for _ in range(2))
    for lag in (1, 2, 3, 4, 7, 8, 9, 256, 2048):
        assert abs(np.corrcoef(kept[:-lag], kept[lag:])[0, 1]) < 5 / n**0.5, lag
    assert abs(np.corrcoef(kept, after)[0, 1]) < 5 / n**0.5
    near = [cpu.dropout(x, 0.5, key) != 0 for key in (4, 5, 4 + 2**32, 4 + 2**63)]
    for other in near[1:]:
        assert abs(np.corrcoef(near[0], other)[0, 1]) < 5 / n**0.5


# ---- the op ----


def test_dropout_follows_the_seed():
    x = tr.ones(3, 4, 5, 5)
    tr.manual_seed(1)
    first, second = ops.dropout(x, 0.5).data, ops.dropout(x, 0.5).data
    tr.manual_seed(1)
    again = ops.dropout(x, 0.5).data
    tr.manual_seed(2)
    other = ops.dropout(x, 0.5).data
    assert (first == again).all() and (first != second).any() and (first != other).any()
    tr.manual_seed(1)
    assert (ops.dropout(x.double(), 0.5).data == first).all()  # the dtype does not change what is dropped


def test_each_call_takes_one_word_of_the_generator():
    tr.manual_seed(4)
    keys = np.random.Philox(4).random_raw(3)
    x = values((40,), np.float64)
    for key in keys:
        np.testing.assert_array_equal(ops.dropout(x, 0.5), by_numpy(x, 0.5, int(key)))


def test_a_run_that_resumes_drops_the_same():
    tr.manual_seed(7)
    x = tr.ones(5, 8)
    tr.randn(3)
    ops.dropout(x, 0.3)
    saved = tr.random.get_state()
    expected = [ops.dropout(x, 0.3).data for _ in range(5)]
    tr.manual_seed(0)
    tr.random.set_state(saved)
    for wanted in expected:
        np.testing.assert_array_equal(ops.dropout(x, 0.3).data, wanted)


def test_dropout_does_nothing_in_evaluation():
    state = tr.manual_seed(0).bit_generator.state
    x = tr.randn(3, 4)
    after = tr.manual_seed(0)
    assert ops.dropout(x, 0.5, training=False) is x and ops.dropout(x, 0.0) is x
    assert str(after.bit_generator.state) == str(state)


@pytest.mark.parametrize("name", ["reference", "fast", "emulator"])
def test_backward_drops_what_forward_dropped_and_keeps_no_mask(name):
    x = tr.Tensor(values((2, 3, 4, 5), np.float64), requires_grad=True)
    grad = values((2, 3, 4, 5), np.float64, 1)
    with use_kernels(name):
        y = ops.dropout(x, 0.5)
        assert y.node.saved == []
        y.backward(grad)
    np.testing.assert_array_equal(x.grad.data, np.where(y.data == 0, 0, 2 * grad))


def test_the_gradient_of_a_gradient_goes_through_the_same_mask():
    x = tr.Tensor(values((30,), np.float64), requires_grad=True)
    y = ops.dropout(x * x, 0.5)
    mask = y.data / x.data**2
    (slope,) = tr.grad(ops.sum(y), [x], create_graph=True)
    (curvature,) = tr.grad(ops.sum(slope * x), [x])
    np.testing.assert_allclose(slope.data, 2 * x.data * mask, rtol=1e-15)
    np.testing.assert_allclose(curvature.data, 4 * x.data * mask, rtol=1e-15)


def test_a_network_trains_alike_on_all_kernel_sets():
    def trained(name):
        tr.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Dropout(0.4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 2))
        model.double()
        optimizer = tr.optim.SGD(model.parameters(), lr=0.1)
        images = values((4, 2, 4, 4), np.float64)
        for _ in range(3):
            optimizer.zero_grad()
            with use_kernels(name):
                tr.cross_entropy(model(images), np.array([0, 1, 1, 0])).backward()
            optimizer.step()
        return [p.data for p in model.parameters()]

    expected = trained("reference")
    for name in ("fast", "im2col", "emulator"):
        for got, wanted in zip(trained(name), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)
