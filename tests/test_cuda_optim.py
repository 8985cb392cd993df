"""SGD and Adam in one launch: against the reference, for many parameters at once, in any memory order."""

import importlib

import numpy as np
import pytest
from cuda_places import PLACES
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import DTYPES, quick
from test_optim_cpu import ADAM, BOUND, ORDERS, SGD, SHRINKING, rules

import tinyres as tr
from tinyres import nn, optim
from tinyres.kernels import cuda, reference
from tinyres.kernels.cuda import emulator

on_cuda = importlib.import_module("tinyres.kernels.cuda.optim")
SIZES = [1, 16, 255, 256, 257, 2047, 2048, 2049, 0, 6151, 3]  # a block takes 2,048 values, 256 at a time
SGD_OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}
ADAM_OPTIONS = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.05, "shrink": 0.9}


@pytest.fixture
def launched(monkeypatch):
    """The names of the instances that are launched, and with how many blocks."""
    seen = []
    launch = on_cuda.launch
    monkeypatch.setattr(on_cuda, "launch", lambda name, grid, *rest: (seen.append((name, *grid)),
                                                                      launch(name, grid, *rest)))
    return seen


def parameters(count, sizes=SIZES, dtype=np.float64, seed=0):
    """`count` lists of arrays: parameters, gradients and states."""
    rng = np.random.default_rng(seed)
    return [[(rng.standard_normal(size) ** 2 + 0.01).astype(dtype) for size in sizes] for _ in range(count)]


def copied(lists):
    return [[a if a is None else a.copy(order="K") for a in arrays] for arrays in lists]


def check(kernel, place, lists, *options, rtol=1e-12):
    """The kernel and the reference on copies; all that may change afterwards."""
    expected = copied(lists)
    getattr(reference, kernel)(*expected, *options)
    given_ = [[None if a is None else place.put(a) for a in arrays] for arrays in lists]
    getattr(cuda, kernel)(*given_, *options)
    for arrays, wanted in zip(given_, expected, strict=True):
        for a, w in zip(arrays, wanted, strict=True):
            if a is not None:
                np.testing.assert_allclose(place.get(a), w, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("place", PLACES)
@quick(150)
@given(rule=rules(), dtype=st.sampled_from(DTYPES))
def test_a_rule_equals_the_reference(place, rule, dtype):
    """The bound of the processor's kernels: float32 5e-7 of the norm of the sum of absolute terms."""
    arrays = rule.arrays(dtype)
    wide = [a.astype(np.float64) for a in arrays]
    magnitude = rule.magnitude(*arrays)
    placed = [place.put(a) for a in arrays]
    got = [place.get(a) for a in rule.run(cuda, *placed)]
    for one, expected, size in zip(got, rule.run(reference, *wide), magnitude, strict=True):
        assert one.dtype == dtype and one.shape == rule.shape
        if dtype is np.float64:
            np.testing.assert_allclose(one, expected, rtol=0, atol=1e-12 * np.max(size, initial=0))
        else:
            assert np.linalg.norm((one - expected).ravel()) <= BOUND * np.linalg.norm(size.ravel())
    np.testing.assert_array_equal(place.get(placed[1]), arrays[1], err_msg="the gradient was changed")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_of_all_sizes_is_one_launch(place, momentum, launched):
    lists = parameters(3)
    if not momentum:
        lists[2] = [None] * len(SIZES)
    check("sgd", place, lists, 0.1, momentum, 0.05, bool(momentum))
    assert launched == [("sgd<double>", sum(-(-size // 2048) for size in SIZES))]


@pytest.mark.parametrize("place", PLACES)
def test_adam_of_all_sizes_is_one_launch(place, launched):
    check("adam", place, parameters(4), [3] * len(SIZES), *ADAM_OPTIONS.values())
    assert launched == [("adam<double>", sum(-(-size // 2048) for size in SIZES))]


@pytest.mark.parametrize("place", PLACES)
def test_a_velocity_may_be_missing_here_and_there(place, launched):
    lists = parameters(3)
    lists[2][1] = lists[2][6] = None
    check("sgd", place, lists, *SGD_OPTIONS.values())
    assert len(launched) == 1


@pytest.mark.parametrize("place", PLACES)
def test_a_launch_for_each_dtype_and_each_number_of_steps(place, launched):
    lists = [[a.astype(np.float32) if i % 2 else a for i, a in enumerate(arrays)] for arrays in parameters(4)]
    check("adam", place, lists, [7, 7, 1, 1, 7, 7, 7, 1, 7, 7, 7], *ADAM_OPTIONS.values(), rtol=1e-5)
    assert sorted(name for name, _ in launched) == ["adam<double>", "adam<double>", "adam<float>", "adam<float>"]
    launched.clear()
    check("sgd", place, lists[:3], *SGD_OPTIONS.values(), rtol=1e-5)
    assert sorted(name for name, _ in launched) == ["sgd<double>", "sgd<float>"]


@pytest.mark.parametrize("kernel, options", [("sgd", SGD_OPTIONS), ("adam", ADAM_OPTIONS)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_three_orders_of_threads_give_the_same_bits(kernel, options, dtype):
    results = []
    for order in ("forward", "reverse", "random"):
        lists = parameters(3 if kernel == "sgd" else 4, dtype=dtype)
        with emulator.settings(order=order, seed=2):
            getattr(cuda, kernel)(*lists, *([[2] * len(SIZES)] if kernel == "adam" else []), *options.values())
        results.append([a.tobytes() for arrays in lists for a in arrays])
    assert results[0] == results[1] == results[2]


def test_nothing_else_is_written():
    """Neighbours in memory: before the first value, behind the last."""
    memory = [[np.full(size + 6, np.nan) for size in SIZES] for _ in range(4)]
    for arrays, values in zip(memory, parameters(4), strict=True):
        for wide, value in zip(arrays, values, strict=True):
            wide[3:-3] = value
    inner = [[wide[3:-3] for wide in arrays] for arrays in memory]
    cuda.sgd(*inner[:3], *SGD_OPTIONS.values())
    cuda.adam(*inner, [1] * len(SIZES), *ADAM_OPTIONS.values())
    for arrays in memory:
        for wide in arrays:
            assert np.isnan(wide[:3]).all() and np.isnan(wide[-3:]).all() and np.isfinite(wide[3:-3]).all()


@pytest.mark.parametrize("rule", [SGD, ADAM, SHRINKING], ids=["sgd", "adam", "adamw"])
@pytest.mark.parametrize("one", range(4))
@pytest.mark.parametrize("order", ORDERS, ids=["C", "F", "channels_last", "mixed", "strided", "backwards"])
def test_any_array_may_lie_in_memory_in_any_way(rule, one, order):
    """Each of p, g and the state alone, and (one = 3) all of them together."""
    expected = rule.run(reference, *rule.arrays(np.float64))
    arrays = rule.arrays(np.float64)
    chosen = range(len(arrays)) if one == 3 else [one]
    arrays = [order(a) if i in chosen else a for i, a in enumerate(arrays)]
    for got, wanted in zip(rule.run(cuda, *arrays), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape, first, second", [
    ((4, 3, 1, 1), (0, 1, 2, 3), (0, 2, 3, 1)), ((2, 3, 1, 5), (0, 2, 3, 1), (0, 3, 2, 1)), ((1, 6), (0, 1), (1, 0)),
])
def test_the_stride_of_an_axis_of_length_1_says_nothing(monkeypatch, launched, shape, first, second):
    monkeypatch.setattr(reference, "sgd", lambda *a: pytest.fail("the reference"))
    monkeypatch.setattr(np, "ascontiguousarray", lambda *a, **_: pytest.fail("a copy of the gradient"))
    p, g = (np.ones([shape[axis] for axis in axes]).transpose(np.argsort(axes)) for axes in (first, second))
    assert p.shape == g.shape == shape and p.strides != g.strides
    cuda.sgd([p], [g], [None], 0.1, 0.0, 0.0, False)
    np.testing.assert_allclose(p, 0.9)


def test_memory_that_is_given_twice_is_updated_twice(launched):
    """One after the other, as on the processor: in one launch the blocks would race."""
    memory, (other,) = np.ones(5), parameters(1, [5])[0]
    cuda.sgd([memory, other, memory[:]], [np.ones(5)] * 3, [None] * 3, 0.25, 0.0, 1.0, False)
    np.testing.assert_allclose(memory, 0.5 - 0.25 * 1.5)
    assert len(launched) == 2


# ---- the table ----


def test_the_table_is_uploaded_when_an_array_has_moved_and_no_more():
    lists = parameters(3, [5000, 3])
    expected = copied(lists)
    on_cuda._table.cache_clear()

    def steps(count):
        for _ in range(count):
            cuda.sgd(*lists, *SGD_OPTIONS.values())
            reference.sgd(*expected, *SGD_OPTIONS.values())
        for arrays, wanted in zip(lists, expected, strict=True):
            for a, w in zip(arrays, wanted, strict=True):
                np.testing.assert_allclose(a, w, rtol=1e-12)
        return on_cuda._table.cache_info().misses

    assert steps(3) == 1
    was = lists[1][0]
    lists[1][0] = expected[1][0] = np.full(5000, 3.0)
    assert steps(2) == 2
    lists[1][0] = expected[1][0] = was
    assert steps(1) == 2  # back to where it was: gradients take turns in a few places


def test_a_row_for_each_piece():
    table = on_cuda._table(np, ((1000, 2000, 0, 0, 5000), (8, 16, 24, 32, 1)), 4)
    assert table.tolist() == [[1000, 2000, 0, 0, 2048], [1000 + 8192, 2000 + 8192, 0, 0, 2048],
                              [1000 + 16384, 2000 + 16384, 0, 0, 904], [8, 16, 24, 32, 1]]


# ---- whole optimizers ----


@pytest.mark.parametrize("name, options", [
    ("SGD", {}), ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}), ("Adam", {"weight_decay": 0.1}),
    ("AdamW", {}),
], ids=["plain", "SGD", "Adam", "AdamW"])
def test_optimizers_agree_with_the_reference(launched, name, options):
    def trained(kernel_set):
        rng = np.random.default_rng(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2)).double()
        for p in model.parameters():
            p.data[...] = rng.standard_normal(p.shape)
        optimizer = getattr(optim, name)(optim.split_decay(model, 0.1), **options)
        with tr.use_kernels(kernel_set):
            for _ in range(4):
                for p in model.parameters():
                    p.grad = tr.Tensor(rng.standard_normal(p.shape))
                optimizer.step()
        return list(model.parameters())

    got, expected = trained("emulator"), trained("reference")
    for p, q in zip(got, expected, strict=True):
        np.testing.assert_allclose(p.data, q.data, rtol=1e-12, atol=1e-12)
    assert len(launched) == 4 * 2  # steps, groups
