"""The compiled rules of SGD and Adam by themselves: against the reference, in any memory order, on any thread count."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import DTYPES, machine, quick

from tinyres import kernels
from tinyres.kernels import cpu as fast
from tinyres.kernels import reference
from tinyres.kernels.cpu import optim

# Norm of the error as a share of the norm of the sum of all absolute terms, in float32: three times the worst of 4,000
# draws.
BOUND = 5e-7
SHAPES = st.sampled_from([(), (1,), (7,), (67,), (1009,), (0, 3), (5, 3), (3, 4, 5), (1, 1, 1, 1), (3, 67, 1, 1),
                          (4, 1, 3, 5), (2, 5, 3, 3)])


@dataclass(frozen=True)
class Rule:
    """One step of a rule: p, its gradient and its state, and the options that the kernel takes after them."""

    name: str
    shape: tuple
    options: tuple
    states: int
    seed: int
    first: bool = False  # the state is still zero

    def arrays(self, dtype):
        """p, g and the state; a 4-D array channels last, as parameters are. Squares are positive."""
        rng = np.random.default_rng(self.seed)
        memory = (self.shape[0], *self.shape[2:], self.shape[1]) if len(self.shape) == 4 else self.shape
        made = [np.asarray(rng.standard_normal(memory).astype(dtype)) for _ in range(2 + self.states)]
        if self.name == "adam":
            made[3] = np.asarray(made[3] ** 2 + 0.01, dtype)
        for state in made[2:] if self.first else ():
            state[...] = 0
        return [a.transpose(0, 3, 1, 2) if a.ndim == 4 else a for a in made]

    def run(self, kernel_set, p, g, *states):
        """The rule in place; returns what it may change."""
        states = states or ((None,) if self.name == "sgd" else ())
        options = self.options if self.name == "sgd" else ([self.options[0]], *self.options[1:])
        getattr(kernel_set, self.name)([p], [g], *([state] for state in states), *options)
        return [a for a in (p, *states) if a is not None]

    def magnitude(self, p, g, *states):
        """The sums of the absolute values of the terms, for what `run` returns."""
        p, g, *states = (np.asarray(np.abs(a), np.float64) for a in (p, g, *states))
        if self.name == "sgd":
            lr, *rest = self.options
            return replace(self, options=(-lr, *rest)).run(reference, p, g, *states)
        step, lr, (beta1, beta2), eps, decay, _ = self.options
        g = g + decay * p
        mean, square = states[0] + (1 - beta1) * (g + states[0]), beta2 * states[1] + (1 - beta2) * g * g
        return [p + lr / (1 - beta1**step) * mean / (np.sqrt(square / (1 - beta2**step)) + eps), mean, square]


@st.composite
def rules(draw):
    lr, decay = draw(st.sampled_from([0.0, 0.1, 1.5])), draw(st.sampled_from([0.0, 0.05]))
    shape, seed = draw(SHAPES), draw(st.integers(0, 9999))
    if draw(st.booleans()):
        momentum = draw(st.sampled_from([0.0, 0.9]))
        options = lr, momentum, decay, bool(momentum) and draw(st.booleans())
        return Rule("sgd", shape, options, bool(momentum), seed, draw(st.booleans()))
    betas, eps = draw(st.sampled_from([(0.9, 0.999), (0.5, 0.9), (0.0, 0.5)])), draw(st.sampled_from([1e-8, 1e-2]))
    first = draw(st.booleans())
    step = 1 if first else draw(st.integers(2, 1000))
    decays = draw(st.sampled_from([(decay, 1.0), (0.0, 1 - decay)]))
    return Rule("adam", shape, (step, lr, betas, eps, *decays), 2, seed, first)


@quick(200)
@given(rule=rules(), dtype=st.sampled_from(DTYPES), thread_count=st.integers(1, 3), poison=st.booleans())
def test_equals_reference(rule, dtype, thread_count, poison):
    arrays = rule.arrays(dtype)
    wide = [a.astype(np.float64) for a in arrays]
    magnitude = rule.magnitude(*arrays)
    gradient = arrays[1].copy()
    with machine(thread_count, poison=poison):
        got = rule.run(fast, *arrays)
    for one, expected, size in zip(got, rule.run(reference, *wide), magnitude, strict=True):
        assert one.dtype == dtype and one.shape == rule.shape
        if dtype is np.float64:
            np.testing.assert_allclose(one, expected, rtol=0, atol=1e-12 * np.max(size, initial=0))
        else:
            assert np.linalg.norm((one - expected).ravel()) <= BOUND * np.linalg.norm(size.ravel())
    np.testing.assert_array_equal(arrays[1], gradient, err_msg="the gradient was changed")


@quick(60)
@given(rule=rules(), dtype=st.sampled_from(DTYPES), thread_count=st.integers(2, 5))
def test_threads_change_no_bit(rule, dtype, thread_count):
    with machine(1):
        alone = rule.run(fast, *rule.arrays(dtype))
    with machine(thread_count):
        together = rule.run(fast, *rule.arrays(dtype))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


SGD = Rule("sgd", (4, 3, 2, 5), (0.1, 0.9, 0.05, True), 1, 0)
ADAM = Rule("adam", (4, 3, 2, 5), (3, 0.1, (0.9, 0.999), 1e-8, 0.05, 1.0), 2, 1)
SHRINKING = Rule("adam", (4, 3, 2, 5), (3, 0.1, (0.9, 0.999), 1e-8, 0.0, 0.9), 2, 2)


def in_order(axes):
    """A copy with the axes in this order in memory, the logical array as it was."""
    return lambda a: np.ascontiguousarray(a.transpose(axes)).transpose(np.argsort(axes))


def strided(a):
    wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), np.nan, a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def backwards(a):
    return np.ascontiguousarray(a[:, ::-1])[:, ::-1]


ORDERS = [np.ascontiguousarray, np.asfortranarray, in_order((0, 2, 3, 1)), in_order((2, 0, 3, 1)), strided, backwards]


@pytest.mark.parametrize("rule", [SGD, ADAM, SHRINKING], ids=["sgd", "adam", "adamw"])
@pytest.mark.parametrize("one", range(4))
@pytest.mark.parametrize("order", ORDERS, ids=["C", "F", "channels_last", "mixed", "strided", "backwards"])
def test_any_array_may_lie_in_memory_in_any_way(rule, one, order):
    """Each of p, g and the state alone, and (one = 3) all of them together."""
    expected = rule.run(reference, *rule.arrays(np.float64))
    arrays = rule.arrays(np.float64)
    chosen = range(len(arrays)) if one == 3 else [one]
    arrays = [order(a) if i in chosen else a for i, a in enumerate(arrays)]
    for got, wanted in zip(rule.run(fast, *arrays), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)


def test_usual_arrays_are_not_copied(monkeypatch):
    """Contiguous in one order: also a 1x1 weight, whose strides of length 1 differ with how it was made."""
    monkeypatch.setattr(np, "empty_like", lambda a: pytest.fail("a copy of the gradient"))
    monkeypatch.setattr(reference, "sgd", lambda *a: pytest.fail("the reference"))
    channels_last = np.ones((4, 1, 1, 3)).transpose(0, 3, 1, 2)
    plain = np.ones((4, 3, 1, 1))
    assert channels_last.strides != plain.strides
    for p in (np.ones((2, 3)), np.ones((2, 3)).T, SGD.arrays(np.float64)[0]):
        fast.sgd([p], [p.copy(order="K")], [None], 0.1, 0.0, 0.0, False)
    fast.sgd([channels_last], [plain], [None], 0.1, 0.0, 0.0, False)
    row, column = np.ones((2, 1, 5, 3)).transpose(0, 3, 1, 2), np.ones((2, 5, 1, 3)).transpose(0, 3, 2, 1)
    assert row.shape == column.shape and row.strides != column.strides and not row.flags.c_contiguous
    fast.sgd([row], [column], [None], 0.1, 0.0, 0.0, False)
    assert (row != 1).all()


def test_large_vectors_are_shared_between_threads(monkeypatch):
    seen = []
    monkeypatch.setattr(optim, "split", lambda n, run, cost: (seen.append((n, cost)), run(0, 0, n)))
    monkeypatch.setenv("TINYRES_NUM_THREADS", "2")
    for size in (1000, 2_000_000):
        fast.sgd([np.ones(size, np.float32)], [np.ones(size, np.float32)], [None], 0.1, 0.0, 0.0, False)
    assert [n for n, _ in seen] == [2_000_000]


def test_the_kernels_are_those_of_the_current_set(monkeypatch):
    called = []
    monkeypatch.setattr(reference, "sgd", lambda *a: called.append("reference"))
    monkeypatch.setattr(fast, "sgd", lambda *a: called.append("fast"))
    for name in ("fast", "im2col", "reference", "fast"):
        with kernels.use_kernels(name):
            kernels.sgd([np.ones(1)], [np.ones(1)], [None], 0.1, 0.0, 0.0, False)
    assert called == ["fast", "reference", "reference", "fast"]
