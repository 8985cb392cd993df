"""What the rules of SGD and Adam must do in every kernel set that has its own: of odd dtypes, NaN and infinities."""

from dataclasses import replace

import numpy as np
import pytest
from cuda_places import HOST, PLACES
from test_kernels import DTYPES
from test_optim_cpu import ADAM, SGD

from tinyres.kernels import cpu, cuda, reference

# (kernel set, where its arrays live)
_, GPU = (place.values[0] for place in PLACES)
SETS = [pytest.param(cpu, HOST, id="processor"), pytest.param(cuda, HOST, id="emulator"),
        pytest.param(cuda, GPU, id="gpu", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("kernel_set", [cpu, cuda], ids=["processor", "emulator"])
@pytest.mark.parametrize("dtypes", [("f2", "f2", "f2"), ("f4", "f4", "f8"), ("f8", "f8", "f4"), (">f4", ">f4", ">f4"),
                                    ("f4", "f8", "f4")])
@pytest.mark.parametrize("shape", [SGD.shape, (1,)])
def test_other_dtypes_are_updated_by_the_reference(kernel_set, dtypes, shape):
    """As after model.double(), when the state is still float32."""
    rule = replace(SGD, shape=shape)
    arrays = [a.astype(dtype) for a, dtype in zip(rule.arrays(np.float64), dtypes, strict=True)]
    expected = rule.run(reference, *(a.copy(order="K") for a in arrays))
    for got, wanted in zip(rule.run(kernel_set, *arrays), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype == wanted.dtype


@pytest.mark.parametrize("rule", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel_set, place", SETS)
def test_nan_stays_nan_and_nothing_else_becomes_it(kernel_set, place, rule, value, dtype):
    with np.errstate(invalid="ignore"):
        for which in range(2):
            arrays, wide = rule.arrays(dtype), rule.arrays(np.float64)
            arrays[which][1, 2, 1, 3] = wide[which][1, 2, 1, 3] = value
            results = rule.run(kernel_set, *map(place.put, arrays))
            for got, wanted in zip(results, rule.run(reference, *wide), strict=True):
                np.testing.assert_array_equal(np.isnan(place.get(got)), np.isnan(wanted))
                np.testing.assert_array_equal(np.isinf(place.get(got)), np.isinf(wanted))


@pytest.mark.parametrize("kernel_set, place", SETS)
def test_an_infinite_weight_without_decay_is_not_made_nan(kernel_set, place):
    p = place.put(np.array([np.inf, 1.0]))
    kernel_set.sgd([p], [place.put(np.ones(2))], [None], 0.1, 0.0, 0.0, False)
    assert place.get(p).tolist() == [np.inf, 0.9]


@pytest.mark.parametrize("kernel_set, place", SETS)
def test_float32_is_computed_in_float32(kernel_set, place):
    """1e-46 is 0 in float32: so the rate is, as is the eps, and 0 / 0 is NaN."""
    p, *zeros = (place.put(np.full(1, value, np.float32)) for value in (1, 0, 0, 0))
    kernel_set.adam([p], [zeros[0]], [zeros[1]], [zeros[2]], [1], 0.1, (0.9, 0.999), 1e-46, 0.0, 1.0)
    assert np.isnan(place.get(p)[0])
    kernel_set.sgd([zeros[0]], [place.put(np.full(1, 1e10, np.float32))], [None], 1e-46, 0.0, 0.0, False)
    assert place.get(zeros[0])[0] == 0


@pytest.mark.parametrize("kernel_set", [cpu, cuda], ids=["processor", "emulator"])
def test_a_gradient_may_be_read_only_or_the_parameter_itself(kernel_set):
    p, g = np.ones(5), np.broadcast_to(2.0, 5)
    kernel_set.sgd([p], [g], [None], 0.1, 0.0, 0.0, False)
    np.testing.assert_allclose(p, 0.8)
    kernel_set.sgd([p], [p], [None], 0.5, 0.0, 0.0, False)
    np.testing.assert_allclose(p, 0.4)
