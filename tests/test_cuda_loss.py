"""The CUDA kernels of softmax cross-entropy against the reference, on the emulator and on a GPU."""

import numpy as np
import pytest
from cuda_places import PLACES
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import DTYPES, assert_close, quick

from tinyres.kernels import cuda, reference
from tinyres.kernels.cuda import emulator

CLASSES = st.sampled_from([1, 2, 3, 10, 31, 32, 33, 63, 64, 65, 100, 1000, 1001, 3007])
# 8 rows make a block of the forward pass, 256 values one of the backward pass.
ROWS = st.sampled_from([1, 2, 7, 8, 9, 17])


class Case:
    """Logits of a given size, labels, and upstream gradients that differ."""

    def __init__(self, N, K, dtype, size=1.0, seed=0):
        rng = np.random.default_rng(seed)
        self.logits = (rng.standard_normal((N, K)) * size).astype(dtype)
        self.labels = rng.integers(0, K, N)
        self.g = rng.standard_normal(N).astype(dtype)

    def forward(self, place, smoothing):
        losses, log_probs = cuda.softmax_cross_entropy(place.put(self.logits), place.put(self.labels), smoothing)
        return place.get(losses), place.get(log_probs)

    def expected(self, smoothing):
        return reference.softmax_cross_entropy(self.logits.astype(np.float64), self.labels, smoothing)

    def gradient(self, place, log_probs, smoothing, kernel_set=cuda):
        arrays = [place.put(a) for a in (self.g, log_probs, self.labels)]
        return place.get(kernel_set.softmax_cross_entropy_grad(*arrays, smoothing))


@pytest.mark.parametrize("place", PLACES)
@quick(80)
@given(N=ROWS, K=CLASSES, dtype=st.sampled_from(DTYPES), smoothing=st.sampled_from([0.0, 0.1, 1.0]),
       size=st.sampled_from([0.01, 1.0, 30.0]), seed=st.integers(0, 9999))
def test_losses_equal_the_reference(place, N, K, dtype, smoothing, size, seed):
    """Errors as shares of what is subtracted: x - max - log(sum)."""
    case = Case(N, K, dtype, size, seed)
    losses, log_probs = case.forward(place, smoothing)
    wanted, wanted_probs = case.expected(smoothing)
    scale = np.abs(case.logits).astype(np.float64) + np.abs(case.logits).max(1, keepdims=True) + np.log(K) + 1
    assert_close(log_probs, wanted_probs, scale, dtype)
    assert_close(losses, wanted, scale.max(1), dtype)


@pytest.mark.parametrize("place", PLACES)
@quick(80)
@given(N=ROWS, K=CLASSES, dtype=st.sampled_from(DTYPES), smoothing=st.sampled_from([0.0, 0.1, 1.0]),
       seed=st.integers(0, 9999))
def test_gradients_equal_the_reference(place, N, K, dtype, smoothing, seed):
    case = Case(N, K, dtype, 1.0, seed)
    _, log_probs = case.expected(smoothing)
    got = case.gradient(place, log_probs.astype(dtype), smoothing)
    arrays = case.g.astype(np.float64), log_probs.astype(dtype).astype(np.float64), case.labels
    wanted = reference.softmax_cross_entropy_grad(*arrays, smoothing)
    scale = np.abs(case.g[:, None]) * (np.exp(log_probs) + smoothing / K)
    scale[np.arange(N), case.labels] += np.abs(case.g) * (1 - smoothing)
    assert_close(got, wanted, scale, dtype)
    # softmax and target both add up to 1; where one class has both, the two roundings of smoothing/K are left
    assert np.abs(got.sum(1)).max() < {"float32": 1e-5, "float64": 1e-14}[np.dtype(dtype).name] * (np.abs(case.g).max())


@pytest.mark.parametrize("shift", [0, 1e5, -1e5])
@pytest.mark.parametrize("place", PLACES)
def test_large_logits_do_not_overflow(place, shift):
    """exp(1e4) is infinite in float64 too, and with 0 instead of the row's maximum all exponentials may be 0."""
    case = Case(9, 40, np.float32, 1e4)
    case.logits += np.float32(shift)
    losses, log_probs = case.forward(place, 0.1)
    assert np.isfinite(losses).all() and np.isfinite(log_probs).all()
    np.testing.assert_allclose(losses, case.expected(0.1)[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", [3, 67, 1000])
def test_three_orders_of_threads_give_the_same_bits(dtype, K):
    case, place = Case(19, K, dtype), PLACES[0].values[0]
    results = []
    for order in ("forward", "reverse", "random"):
        with emulator.settings(order=order, seed=5):
            losses, log_probs = case.forward(place, 0.1)
            results.append((losses, log_probs, case.gradient(place, log_probs, 0.1)))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("K", [1, 5, 40])
def test_nan_and_infinity_as_in_the_reference(place, smoothing, K):
    """One in each row, at the label and beside it; rows of nothing but -inf and +inf; a row without."""
    case = Case(9, K, np.float64)
    case.labels[:] = 0
    for row, (column, value) in enumerate([(0, np.nan), (K - 1, np.nan), (0, np.inf), (K - 1, np.inf), (0, -np.inf),
                                           (K - 1, -np.inf)]):
        case.logits[row, column] = value
    case.logits[6], case.logits[7] = -np.inf, np.inf
    with np.errstate(all="ignore"):
        got, wanted = case.forward(place, smoothing), case.expected(smoothing)
        gradient = case.gradient(place, wanted[1], smoothing)
        wanted_gradient = case.gradient(PLACES[0].values[0], wanted[1], smoothing, reference)
    for one, other in zip((*got, gradient), (*wanted, wanted_gradient), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)  # and NaN where NaN, inf where inf
    assert np.isfinite(got[0][8])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("label", [-1, 7, 8, 2**31, 2**32, 2**40, -(2**63)])
def test_a_label_outside_makes_its_row_nan_and_no_other(place, label, smoothing):
    """Checking labels on a GPU would mean to wait for it. A label of 2^32 is not 0."""
    good, bad = Case(9, 7, np.float32), Case(9, 7, np.float32)
    bad.labels[4] = label
    for kernel_set in (cuda, reference):
        arrays = [place.put(a) for a in (bad.logits, bad.labels)]
        losses, log_probs = map(place.get, kernel_set.softmax_cross_entropy(*arrays, smoothing))
        gradient = bad.gradient(place, log_probs, smoothing, kernel_set)
        assert np.isnan(losses[4]) and np.isnan(gradient[4]).all() and np.isfinite(log_probs).all()
        rest = np.arange(9) != 4
        np.testing.assert_allclose(losses[rest], good.expected(smoothing)[0][rest], rtol=1e-5)
        assert np.isfinite(gradient[rest]).all()


def test_arrays_of_any_memory_order_and_integer_type():
    case, place = Case(6, 5, np.float64), PLACES[0].values[0]
    expected, log_probs = case.expected(0.1)
    gradient = case.gradient(place, log_probs, 0.1)
    case.logits = np.asfortranarray(case.logits)
    for integers in ("int8", "uint8", "int32", "uint64"):
        case.labels = case.labels.astype(integers)
        np.testing.assert_allclose(case.forward(place, 0.1)[0], expected, rtol=1e-12)
    case.labels = np.repeat(case.labels, 2)[::2]
    np.testing.assert_allclose(case.gradient(place, np.asfortranarray(log_probs), 0.1), gradient, rtol=1e-12)
    case.g = np.broadcast_to(2.0, 6)  # as the mean's gradient is
    np.testing.assert_allclose(case.gradient(place, log_probs, 0.1),
                               case.gradient(place, log_probs, 0.1, reference), rtol=1e-12)


@pytest.mark.parametrize("place", PLACES)
def test_no_rows(place):
    case = Case(0, 5, np.float32)
    losses, log_probs = case.forward(place, 0.1)
    assert losses.shape == (0,) and log_probs.shape == (0, 5)
    assert case.gradient(place, log_probs, 0.1).shape == (0, 5)
