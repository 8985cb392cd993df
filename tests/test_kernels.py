"""Every kernel of every set against the reference, and the reference against PyTorch."""

import contextlib
import inspect
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tinyres import kernels
from tinyres.kernels import cpu as fast
from tinyres.kernels import cuda, im2col, layout, loops, memory, reference
from tinyres.kernels.cpu import conv_direct, conv_winograd, jit, norm, pool, threads
from tinyres.kernels.cuda import im2col as cuda_im2col

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None
needs_torch = pytest.mark.skipif(torch is None, reason="needs PyTorch, the oracle of this test: pip install torch")

DTYPES = [np.float32, np.float64]
CONV_SETS = {"loops": loops, "im2col": im2col, "fast": fast}
# Error that is allowed, as a share of the result for absolute values: so cancellation is neither excuse nor flake.
SHARE = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 1e-14}


def quick(examples):
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def image(rng, shape, dtype):
    """Random channels-last array of a logical (N, C, H, W) or (K, C, R, S) shape."""
    N, C, H, W = shape
    return layout.nchw(rng.standard_normal((N, H, W, C)).astype(dtype))


def assert_close(got, expected, magnitude, dtype=None):
    """Norm of the error at most SHARE of the norm of `magnitude`; shape, dtype and memory order as they must be."""
    dtype = np.dtype(dtype or expected.dtype)
    assert got.shape == expected.shape and got.dtype == dtype
    assert got.ndim != 4 or layout.is_channels_last(got)
    error, scale = (np.linalg.norm(np.asarray(a, np.float64).ravel()) for a in (got - expected, magnitude))
    assert error <= SHARE[dtype] * scale, f"error {error:.2e} is {error / scale:.2e} of the magnitude {scale:.2e}"


@contextlib.contextmanager
def machine(thread_count, block=None, poison=False):
    """So many threads, all work worth sharing, blocks of so many values and, with poison, NaN in all fresh memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYRES_NUM_THREADS", str(thread_count))
        patch.setattr(threads, "NANOSECONDS_WORTH_A_THREAD", 1e-9)
        patch.setattr(threads, "HAND_OVER", 0)
        if block:
            patch.setattr(conv_direct, "PANEL_VALUES", block)
            patch.setattr(conv_winograd, "BLOCK", block)
            conv_winograd._cut.cache_clear()
        poisoned = []
        if poison:

            def poisoning(make):
                def made(*args, **options):
                    a = make(*args, **options)
                    a[...] = np.nan if a.dtype.kind == "f" else 255
                    poisoned.append(a.shape)
                    return a

                return made

            for module in (conv_direct, conv_winograd):
                patch.setattr(module, "scratch", poisoning(threads.scratch))
            for module in (conv_direct, conv_winograd, norm, pool):
                patch.setattr(module, "empty", poisoning(memory.empty))
        yield poisoned
    conv_winograd._cut.cache_clear()


# ---- convolution ----------------------------------------------------------------------------------------------------


@dataclass
class Convolution:
    """One drawn case: shapes and arguments; call `arrays` for the numbers."""

    x_shape: tuple
    w_shape: tuple
    stride: tuple
    padding: tuple
    dilation: tuple
    groups: int
    seed: int

    @property
    def options(self):
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def y_shape(self):
        kernel = self.w_shape[2:]
        P, Q = reference.conv_output_size(self.x_shape, kernel, self.stride, self.padding, self.dilation)
        return self.x_shape[0], self.w_shape[0], P, Q

    def arrays(self, dtype):
        rng = np.random.default_rng(self.seed)
        return tuple(image(rng, shape, dtype) for shape in (self.x_shape, self.w_shape, self.y_shape))

    def run(self, kernel_set, x, w, g):
        return (
            kernel_set.conv2d(x, w, *self.options),
            kernel_set.conv2d_input_grad(g, w, x.shape, *self.options),
            kernel_set.conv2d_weight_grad(x, g, w.shape, *self.options),
        )

    def check(self, kernel_set, dtype):
        x, w, g = self.arrays(dtype)
        wide = [a.astype(np.float64) for a in (x, w, g)]
        expected = self.run(reference, *wide)
        magnitude = self.run(reference, *map(np.abs, wide))
        for got, one, size in zip(self.run(kernel_set, x, w, g), expected, magnitude, strict=True):
            assert_close(got, one, size, dtype)
        total = x.copy(order="K")
        kernel_set.conv2d_input_grad_add(total, g, w, *self.options)
        assert_close(total, wide[0] + expected[1], np.abs(x) + magnitude[1], dtype)


@st.composite
def convolutions(draw, largest=9, channels=5):
    groups = draw(st.integers(1, 3))
    R, S = kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    stride, dilation = draw(pairs), draw(pairs)
    padding = draw(st.tuples(st.integers(0, 5), st.integers(0, 5)))
    size = tuple(
        draw(st.integers(max(1, d * (taps - 1) + 1 - 2 * pad), max(largest, d * (taps - 1) + 1)))
        for d, taps, pad in zip(dilation, kernel, padding, strict=True)
    )
    c, k = draw(st.integers(1, channels)), draw(st.integers(1, channels))
    x_shape = (draw(st.integers(1, 3)), groups * c, *size)
    return Convolution(x_shape, (groups * k, c, R, S), stride, padding, dilation, groups, draw(st.integers(0, 9999)))


FIXED = {
    "3x3": Convolution((2, 16, 8, 8), (16, 16, 3, 3), (1, 1), (1, 1), (1, 1), 1, 0),
    "1x1": Convolution((2, 5, 6, 6), (7, 5, 1, 1), (1, 1), (0, 0), (1, 1), 1, 1),
    "1x1 grouped": Convolution((2, 6, 6, 6), (9, 2, 1, 1), (1, 1), (0, 0), (1, 1), 3, 2),
    "1x1 stride 2": Convolution((2, 5, 7, 7), (7, 5, 1, 1), (2, 2), (0, 0), (1, 1), 1, 3),
    "1x1 padded": Convolution((2, 5, 4, 4), (7, 5, 1, 1), (1, 1), (1, 0), (1, 1), 1, 4),
    "depthwise": Convolution((2, 6, 8, 8), (6, 1, 3, 3), (1, 1), (1, 1), (1, 1), 6, 5),
    "depthwise times 2": Convolution((2, 3, 8, 8), (6, 1, 3, 3), (2, 1), (1, 1), (1, 1), 3, 6),
    "unread border": Convolution((1, 3, 10, 9), (4, 3, 2, 2), (3, 4), (0, 0), (1, 1), 1, 7),
    "stride over kernel": Convolution((1, 2, 12, 12), (3, 2, 1, 2), (4, 5), (0, 0), (1, 1), 1, 8),
    "padding over kernel": Convolution((1, 2, 3, 4), (3, 2, 2, 2), (1, 1), (5, 4), (1, 1), 1, 9),
    "dilated": Convolution((2, 4, 12, 11), (6, 2, 3, 3), (2, 1), (2, 3), (3, 2), 2, 10),
    "dilated in one group": Convolution((2, 3, 9, 11), (4, 3, 2, 3), (1, 2), (1, 4), (2, 3), 1, 14),
    "one pixel": Convolution((1, 1, 1, 1), (1, 1, 1, 1), (1, 1), (0, 0), (1, 1), 1, 11),
    "kernel is the image": Convolution((3, 4, 5, 6), (2, 4, 5, 6), (1, 1), (0, 0), (1, 1), 1, 12),
    "wide run of taps": Convolution((1, 3, 5, 3), (2, 3, 1, 7), (1, 1), (0, 4), (1, 1), 1, 13),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("kernel_set", ["im2col", "fast"])
def test_conv_equals_reference_in_named_cases(kernel_set, name, dtype):
    FIXED[name].check(CONV_SETS[kernel_set], dtype)


@quick(80)
@given(convolutions(), st.sampled_from(DTYPES))
def test_im2col_conv_equals_reference(case, dtype):
    case.check(im2col, dtype)


@quick(150)
@given(convolutions(), st.sampled_from(DTYPES), st.integers(1, 3), st.sampled_from([1, 300, 2**20]), st.booleans())
def test_fast_conv_equals_reference_for_all_threads_and_blocks(case, dtype, thread_count, block, poison):
    with machine(thread_count, block, poison) as poisoned:
        case.check(fast, dtype)
    assert bool(poisoned) == poison


@quick(25)
@given(convolutions(largest=4, channels=2), st.sampled_from(DTYPES))
def test_loops_conv_equals_reference(case, dtype):
    assume(np.prod(case.y_shape) * np.prod(case.w_shape[1:]) < 5000)
    case.check(loops, dtype)


@needs_torch
@quick(100)
@given(convolutions())
def test_reference_conv_equals_torch(case):
    x, w, g = case.arrays(np.float64)
    tx, tw = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
    y = F.conv2d(tx, tw, None, *case.options)
    y.backward(torch.tensor(g))
    expected = y.detach().numpy(), tx.grad.numpy(), tw.grad.numpy()
    magnitude = case.run(reference, *map(np.abs, (x, w, g)))
    for got, one, size in zip(case.run(reference, x, w, g), expected, magnitude, strict=True):
        assert_close(got, one, size)


@pytest.mark.parametrize("kernel_set", [reference, im2col, fast, cuda, cuda_im2col])
@quick(30)
@given(case=convolutions())
def test_conv_gradients_are_adjoints(kernel_set, case):
    x, w, g = case.arrays(np.float64)
    y, dx, dw = case.run(kernel_set, x, w, g)
    bound = 1e-13 * np.sum(reference.conv2d(abs(x), abs(w), *case.options) * abs(g))
    assert abs(np.sum(y * g) - np.sum(x * dx)) <= bound
    assert abs(np.sum(y * g) - np.sum(w * dw)) <= bound


@pytest.mark.parametrize("kernel_set", [reference, loops, im2col, fast])
def test_conv_makes_no_layout_copy_of_channels_last_arrays(kernel_set):
    case = FIXED["depthwise times 2"]
    x, w, g = case.arrays(np.float32)
    with layout.count_copies() as counted:
        case.run(kernel_set, x, w, g)
    assert counted.copies == 0


@pytest.mark.parametrize("kernel_set", [reference, loops, im2col, fast])
@pytest.mark.parametrize("name", ["3x3", "1x1 grouped"])
def test_conv_takes_any_memory_order_and_read_only_arrays_and_changes_no_input(kernel_set, name):
    case = FIXED[name]
    if kernel_set is loops:
        case = Convolution((1, 6, 4, 4), (3, 2, 3, 3), (1, 1), (1, 1), (1, 1), 3, 0)
    x, w, g = case.arrays(np.float32)
    expected = case.run(kernel_set, x, w, g)
    c_order = [np.ascontiguousarray(a) for a in (x, w, g)]
    strided = [np.repeat(a, 2, axis=3)[..., ::2] for a in (x, w, g)]
    read_only = [a.copy(order="K") for a in (x, w, g)]
    for a in read_only:
        a.flags.writeable = False
    for arrays in (c_order, strided, read_only):
        before = [a.copy() for a in arrays]
        for got, one in zip(case.run(kernel_set, *arrays), expected, strict=True):
            np.testing.assert_array_equal(got, one)
            assert layout.is_channels_last(got)
        for a, old in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(a, old)


def test_conv_of_an_empty_batch():
    w = np.ones((4, 3, 3, 3), np.float32)
    options = (1, 1), (1, 1), (1, 1), 1
    x, g = np.ones((0, 3, 5, 5), np.float32), np.ones((0, 4, 5, 5), np.float32)
    for kernel_set in (reference, loops, im2col, fast):
        assert kernel_set.conv2d(x, w, *options).shape == (0, 4, 5, 5)
        assert kernel_set.conv2d_input_grad(g, w, x.shape, *options).shape == (0, 3, 5, 5)
        dw = kernel_set.conv2d_weight_grad(x, g, w.shape, *options)
        np.testing.assert_array_equal(dw, np.zeros_like(w))


@pytest.mark.parametrize("kernel_set", [reference, im2col, fast])
def test_conv_keeps_nan_where_it_is_seen_and_nowhere_else(kernel_set):
    x, w = np.zeros((1, 2, 5, 5)), np.ones((3, 2, 3, 3))
    x[0, 1, 0, 0] = np.nan
    seen = np.isnan(kernel_set.conv2d(x, w, (1, 1), (1, 1), (1, 1), 1))
    assert seen[:, :, :2, :2].all() and seen.sum() == 3 * 4


@pytest.mark.parametrize("thread_count", [1, 2, 3])
def test_fast_kernels_repeat_bit_for_bit(thread_count):
    case = Convolution((6, 8, 12, 12), (16, 8, 3, 3), (1, 1), (1, 1), (1, 1), 1, 0)
    x, w, g = case.arrays(np.float32)
    mean = np.zeros(8)
    with machine(thread_count, block=5_000):
        first = [*case.run(fast, x, w, g), *fast.batch_norm_stats(x), *fast.batch_norm_grad_sums(x, x, mean, None)]
        for _ in range(20):
            again = [*case.run(fast, x, w, g), *fast.batch_norm_stats(x), *fast.batch_norm_grad_sums(x, x, mean, None)]
            for one, other in zip(first, again, strict=True):
                np.testing.assert_array_equal(one, other)


def test_fast_conv_from_many_python_threads_at_once():
    """Scratch memory belongs to the calling thread: callers do not write into each other's windows."""
    cases = [Convolution((3, 4, 9, 9), (5, 4, 3, 3), (1, 1), (1, 1), (1, 1), 1, seed) for seed in range(4)]
    expected = [case.run(reference, *case.arrays(np.float64)) for case in cases]
    failures = []

    def caller(case, results):
        arrays = case.arrays(np.float64)
        for _ in range(20):
            for got, one in zip(case.run(fast, *arrays), results, strict=True):
                if not np.allclose(got, one, rtol=1e-10, atol=1e-10):
                    failures.append(case.seed)

    with machine(2, block=1000):
        callers = [threading.Thread(target=caller, args=pair) for pair in zip(cases, expected, strict=True)]
        for one in callers:
            one.start()
        for one in callers:
            one.join()
    assert not failures


# ---- batch norm -----------------------------------------------------------------------------------------------------

SHAPES = st.one_of(
    st.tuples(st.integers(1, 70), st.integers(1, 9)),
    st.tuples(st.integers(1, 4), st.sampled_from([1, 3, 16, 40, 70]), st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 7)),
)


def values(rng, shape, dtype):
    return layout.from_rows(rng.standard_normal((int(np.prod(shape)) // shape[1], shape[1])).astype(dtype), shape)


@quick(80)
@given(SHAPES, st.sampled_from(DTYPES), st.integers(0, 9999), st.integers(1, 3), st.booleans())
def test_fast_batch_norm_equals_reference(shape, dtype, seed, thread_count, poison):
    rng = np.random.default_rng(seed)
    x, g, y, residual = (values(rng, shape, dtype) for _ in range(4))
    scale, shift, d = rng.standard_normal((3, shape[1])).astype(dtype)
    mean = rng.standard_normal(shape[1])
    wide = np.float64
    with machine(thread_count, poison=poison):
        for got, one in zip(fast.batch_norm_stats(x), reference.batch_norm_stats(x), strict=True):
            assert_close(got, one, np.ones_like(one), wide)
        for add in (None, residual):
            for relu in (False, True):
                got = fast.batch_norm_apply(x, scale, shift, add, relu)
                one = reference.batch_norm_apply(x, scale, shift, add, relu)
                assert_close(got, one, abs(x) + 1, dtype)
                assert (got >= 0).all() or not relu
        for output in (None, y):
            got = fast.batch_norm_grad_sums(g, x, mean, output)
            one = reference.batch_norm_grad_sums(g, x, mean, output)
            for a, b in zip(got, one, strict=True):
                assert_close(a, b, np.full_like(b, x.size), wide)
            for wants in (False, True):
                got, got_res = fast.batch_norm_input_grad(g, x, scale, shift, d, output, wants)
                one, one_res = reference.batch_norm_input_grad(g, x, scale, shift, d, output, wants)
                assert_close(got, one, abs(g) + abs(x) + 1, dtype)
                assert (got_res is None) == (one_res is None) == (not wants)
                assert not wants or output is not None or got_res is one_res is g
                assert not wants or np.array_equal(got_res, one_res)


@pytest.mark.parametrize("kernel_set", [reference, fast])
def test_batch_norm_variance_of_values_far_from_zero(kernel_set):
    deviation = np.random.default_rng(0).standard_normal((4000, 3))
    x = 1e7 + deviation
    mean, var = kernel_set.batch_norm_stats(x)
    np.testing.assert_allclose(mean - 1e7, deviation.mean(0), atol=1e-7)
    np.testing.assert_allclose(var, (x - 1e7).var(0), rtol=1e-9)
    constant = np.full((1000, 5), 0.1, np.float32)
    np.testing.assert_array_equal(kernel_set.batch_norm_stats(constant)[1], np.zeros(5))


@pytest.mark.parametrize("kernel_set", [reference, fast])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 16, 64, 100])
def test_nan_stays_nan_through_relu(kernel_set, dtype, channels):
    x = np.random.default_rng(0).standard_normal((67, channels)).astype(dtype)
    x[13] = np.nan
    x[29] = np.inf
    one = np.ones(channels, dtype)
    y = kernel_set.batch_norm_apply(x, one, 0 * one, None, True)
    assert np.isnan(y[13]).all() and np.isnan(y).sum() == channels and np.isposinf(y[29]).all()
    g = np.ones_like(x)
    dx, dres = kernel_set.batch_norm_input_grad(g, 0 * g, one, one, 0 * one, y, True)
    np.testing.assert_array_equal(dres, np.where(x <= 0, 0, 1))  # passes where the output is NaN, as in PyTorch
    np.testing.assert_array_equal(dx, dres)
    with np.errstate(invalid="ignore"):
        mean, var = kernel_set.batch_norm_stats(x[:20])
        assert np.isnan(mean).all() and np.isnan(var).all()
        total, products = kernel_set.batch_norm_grad_sums(x[:20], x[:20], np.zeros(channels), None)
        assert np.isnan(total).all() and np.isnan(products).all()


@needs_torch
@pytest.mark.parametrize("kernel_set", [reference, fast])
def test_batch_norm_add_relu_equals_torch(kernel_set):
    """The four kernels, with the (C,)-sized arithmetic that an op puts between them, as a training step of a layer."""
    rng = np.random.default_rng(0)
    x, residual, g = (image(rng, (4, 6, 5, 3), np.float64) for _ in range(3))
    weight, bias = rng.standard_normal((2, 6))
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, residual, weight, bias)]
    expected = F.relu(F.batch_norm(tensors[0], None, None, tensors[2], tensors[3], True, eps=1e-5) + tensors[1])
    expected.backward(torch.tensor(g))

    mean, var = kernel_set.batch_norm_stats(x)
    istd, M = 1 / np.sqrt(var + 1e-5), x.size // 6
    y = kernel_set.batch_norm_apply(x, weight * istd, bias - mean * weight * istd, residual, True)
    total, products = kernel_set.batch_norm_grad_sums(g, x, mean, y)
    a, b = weight * istd, -weight * istd**3 * products / M
    dx, dres = kernel_set.batch_norm_input_grad(g, x, a, b, -a * total / M - b * mean, y, True)
    grads = dx, dres, products * istd, total
    for got, one in zip((y, *grads), (expected.detach(), *(t.grad for t in tensors)), strict=True):
        np.testing.assert_allclose(got, one.numpy(), rtol=1e-11, atol=1e-12)


# ---- pooling --------------------------------------------------------------------------------------------------------


def pool_input(draw, dtype=np.float64):
    """Few different values, so that ties are everywhere, with some NaN and infinities."""
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    x = rng.integers(-2, 3, (shape[0], *shape[2:], shape[1])).astype(dtype)
    if draw(st.booleans()):
        x[rng.random(x.shape) < 0.15] = np.nan
        x[rng.random(x.shape) < 0.15] = -np.inf
    return layout.nchw(x), rng


@st.composite
def poolings(draw):
    x, rng = pool_input(draw)
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, taps // 2)) for taps in kernel)
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    return x, rng, kernel, stride, padding, dilation, draw(st.booleans())


@needs_torch
@quick(120)
@given(poolings())
def test_max_pool_equals_torch_with_ties_and_nan(case):
    x, rng, kernel, stride, padding, dilation, ceil_mode = case
    assume(min(reference.conv_output_size(x.shape, kernel, stride, padding, dilation)) >= 1)
    t = torch.tensor(x, requires_grad=True)
    options = kernel, stride, padding, dilation
    expected, expected_index = F.max_pool2d(t, *options, ceil_mode, return_indices=True)
    y, index = reference.max_pool2d(x, *options, tuple(expected.shape[2:]))
    assume((index >= 0).all())  # PyTorch has no answer for a dilated window that steps over the whole image
    np.testing.assert_array_equal(y, expected.detach().numpy())
    np.testing.assert_array_equal(index, expected_index.numpy())
    assert index.dtype == np.int64 and layout.is_channels_last(y) and layout.is_channels_last(index)
    np.testing.assert_array_equal(reference.gather_hw(x, index), y)
    g = image(rng, y.shape, np.float64)
    expected.backward(torch.tensor(g))
    dx = reference.scatter_hw(g, index, x.shape)
    np.testing.assert_allclose(dx, t.grad.numpy(), rtol=1e-13, atol=1e-13)
    assert layout.is_channels_last(dx)


@needs_torch
@quick(60)
@given(st.data())
def test_adaptive_max_pool_equals_torch(data):
    x, _ = pool_input(data.draw)
    output = data.draw(st.tuples(st.integers(1, 11), st.integers(1, 11)))
    expected, expected_index = F.adaptive_max_pool2d(torch.tensor(x), output, return_indices=True)
    y, index = reference.adaptive_max_pool2d(x, output)
    np.testing.assert_array_equal(y, expected.numpy())
    np.testing.assert_array_equal(index, expected_index.numpy())
    assert layout.is_channels_last(y) and layout.is_channels_last(index)


@needs_torch
@quick(100)
@given(poolings(), st.booleans(), st.sampled_from(DTYPES))
def test_avg_pool_equals_torch(case, count_include_pad, dtype):
    x, rng, kernel, stride, padding, _, ceil_mode = case
    assume(min(reference.conv_output_size(x.shape, kernel, stride, padding, (1, 1))) >= 1)
    x = image(rng, x.shape, dtype)
    t = torch.tensor(x.astype(np.float64), requires_grad=True)
    expected = F.avg_pool2d(t, kernel, stride, padding, ceil_mode, count_include_pad)
    output = tuple(expected.shape[2:])
    g = image(rng, expected.shape, dtype)
    expected.backward(torch.tensor(g.astype(np.float64)))
    y = reference.avg_pool2d(x, kernel, stride, padding, output, count_include_pad)
    dx = reference.avg_pool2d_input_grad(g, x.shape, kernel, stride, padding, count_include_pad)
    assert_close(y, expected.detach().numpy(), abs(x), dtype)
    assert_close(dx, t.grad.numpy(), abs(g), dtype)
    adjoint = np.sum(y.astype(np.float64) * g) - np.sum(x.astype(np.float64) * dx)
    assert abs(adjoint) <= 1e-5 * np.linalg.norm(x) * np.linalg.norm(g)


def test_max_pool_of_a_known_image():
    x = np.array([[1.0, 3, 3], [3, 2, np.nan], [0, 1, 2]]).reshape(1, 1, 3, 3)
    y, index = reference.max_pool2d(x, (2, 2), (1, 1), (0, 0), (1, 1), (2, 2))
    np.testing.assert_array_equal(y[0, 0], [[3, np.nan], [3, np.nan]])
    np.testing.assert_array_equal(index[0, 0], [[1, 5], [3, 5]])  # the first of equals; NaN wins
    y, index = reference.max_pool2d(-x, (2, 2), (2, 2), (1, 1), (1, 1), (2, 2))
    np.testing.assert_array_equal(y[0, 0], [[-1, -3], [0, np.nan]])  # the padding never wins
    np.testing.assert_array_equal(index[0, 0], [[0, 1], [6, 5]])


@quick(40)
@given(st.data(), st.sampled_from(DTYPES))
def test_scatter_is_the_adjoint_of_gather_and_adds_repeated_positions(data, dtype):
    N, C, H, W, P, Q = (data.draw(st.integers(1, 4)) for _ in range(6))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x, g = image(rng, (N, C, H, W), dtype), image(rng, (N, C, P, Q), dtype)
    index = rng.integers(0, H * W, (N, C, P, Q))
    y, dx = reference.gather_hw(x, index), reference.scatter_hw(g, index, x.shape)
    expected = np.zeros((N, C, H * W))
    for n, c, p, q in np.ndindex(N, C, P, Q):
        assert y[n, c, p, q] == x[n, c].ravel()[index[n, c, p, q]]
        expected[n, c, index[n, c, p, q]] += g[n, c, p, q]
    assert_close(dx, expected.reshape(x.shape), abs(g), dtype)
    assert layout.is_channels_last(y)


# ---- cross entropy --------------------------------------------------------------------------------------------------


@needs_torch
@quick(60)
@given(st.integers(1, 9), st.integers(2, 12), st.sampled_from([0.0, 0.1, 0.7]), st.integers(0, 999))
def test_cross_entropy_equals_torch(N, K, smoothing, seed):
    rng = np.random.default_rng(seed)
    logits, labels, g = 5 * rng.standard_normal((N, K)), rng.integers(0, K, N), rng.standard_normal(N)
    t = torch.tensor(logits, requires_grad=True)
    expected = F.cross_entropy(t, torch.tensor(labels), reduction="none", label_smoothing=smoothing)
    expected.backward(torch.tensor(g))
    losses, log_probs = kernels.softmax_cross_entropy(logits, labels, smoothing)
    dlogits = kernels.softmax_cross_entropy_grad(g, log_probs, labels, smoothing)
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(log_probs, F.log_softmax(t, 1).detach().numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dlogits, t.grad.numpy(), rtol=1e-12, atol=1e-12)


def test_cross_entropy_of_huge_logits_is_finite_and_float32():
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4]], np.float32)
    losses, log_probs = kernels.softmax_cross_entropy(logits, np.array([1, 2]), 0.1)
    dlogits = kernels.softmax_cross_entropy_grad(np.ones(2, np.float32), log_probs, np.array([1, 2]), 0.1)
    for a in (losses, log_probs, dlogits):
        assert np.isfinite(a).all() and a.dtype == np.float32
    np.testing.assert_allclose(losses, [0.9 * 2e4 + 0.1 * 1e4, np.log(3)], rtol=1e-6)


# ---- the dispatch ---------------------------------------------------------------------------------------------------


def test_use_kernels_is_a_context_and_a_call():
    assert kernels.current() == "fast"
    with kernels.use_kernels("loops"):
        assert kernels.current() == "loops"
        with pytest.raises(KeyError), kernels.use_kernels("reference"):
            assert kernels.current() == "reference"
            raise KeyError
        assert kernels.current() == "loops"
    assert kernels.current() == "fast"
    try:
        kernels.use_kernels("im2col")
        assert kernels.current() == "im2col"
    finally:
        kernels.use_kernels("fast")


def test_use_kernels_names_the_sets_when_it_knows_none_of_that_name():
    with pytest.raises(ValueError, match="'quick'.*fast, im2col, loops, reference"):
        kernels.use_kernels("quick")
    assert kernels.current() == "fast"


@pytest.mark.parametrize("name, module", [("reference", reference), *CONV_SETS.items()])
def test_the_set_computes_and_the_reference_fills_in(monkeypatch, name, module):
    called = []
    monkeypatch.setattr(module, "conv2d", lambda *args: called.append(args))
    monkeypatch.setattr(reference, "softmax_cross_entropy", lambda *args: called.append(args))
    x = np.zeros((1, 1, 1, 1))
    with kernels.use_kernels(name):
        kernels.conv2d(x, 2, 3, 4, 5, 6)
        kernels.softmax_cross_entropy(x, 2, 3)
    assert called == [(x, 2, 3, 4, 5, 6), (x, 2, 3)]


def test_every_public_kernel_passes_its_arguments_on_in_order(monkeypatch):
    """Each function of kernels/__init__.py against the reference's function of the same name, with marked arguments."""
    names = [n for n, f in vars(kernels).items() if inspect.isfunction(f) and f.__module__ == kernels.__name__]
    public = [getattr(kernels, name) for name in names if name not in ("_kernel", "_kernel_set", "current")]
    assert len(public) == 23
    for function in public:
        arguments = list(inspect.signature(function).parameters)
        assert arguments == list(inspect.signature(getattr(reference, function.__name__)).parameters)
        monkeypatch.setattr(reference, function.__name__, lambda *args: args)
        with kernels.use_kernels("reference"):
            assert function(*arguments) == tuple(arguments)
        for module in (*CONV_SETS.values(), cuda, cuda_im2col):
            if hasattr(module, function.__name__):
                assert list(inspect.signature(getattr(module, function.__name__)).parameters) == arguments


# ---- threads and the compiler ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("thread_count", [1, 2, 3, 5])
def test_split_covers_the_range_once_on_as_many_threads(thread_count):
    here = threading.get_ident()
    with machine(thread_count):
        for n in (0, 1, 2, 7, 100):
            calls = []
            threads.split(n, lambda *args, to=calls: to.append((*args, threading.get_ident())), cost=1)
            calls.sort()
            assert [slot for slot, *_ in calls] == list(range(min(n, thread_count)))
            assert [i for _, start, stop, _ in calls for i in range(start, stop)] == list(range(n))
            assert all((thread == here) == (slot == 0) for slot, _, _, thread in calls)


def test_split_runs_small_work_inline(monkeypatch):
    monkeypatch.setenv("TINYRES_NUM_THREADS", "4")
    calls = []
    threads.split(1000, lambda *args: calls.append(args), cost=threads.NANOSECONDS_WORTH_A_THREAD)
    assert calls == [(0, 0, 1000)] and threads.slots(1000, 1e9) == 4


@pytest.mark.parametrize("bad_slot", [0, 1, 2])
def test_split_raises_after_all_ranges_have_ended(bad_slot):
    ended = []

    def run(slot, start, stop):
        if slot == bad_slot:
            raise KeyError(slot)
        threading.Event().wait(0.02)
        ended.append(slot)

    with machine(3), pytest.raises(KeyError, match=str(bad_slot)):
        threads.split(3, run, cost=1)
    assert len(ended) == 2


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_thread_count_that_is_no_count(monkeypatch, text):
    monkeypatch.setenv("TINYRES_NUM_THREADS", text)
    with pytest.raises(ValueError, match=f"TINYRES_NUM_THREADS.*{text}"):
        threads.count()


def test_blas_has_one_thread_inside_and_its_own_count_afterwards():
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def blas_threads():
        return [lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]

    threads._blas_controller.cache_clear()  # SciPy, if it is there, may have brought a BLAS since the first look
    before = blas_threads()
    with threads.one_blas_thread():
        assert set(blas_threads()) <= {1}
    assert blas_threads() == before


def test_without_threadpoolctl_kernels_still_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    threads._blas_controller.cache_clear()
    try:
        FIXED["3x3"].check(fast, np.float32)
        assert threads._blas_controller() is None
    finally:
        threads._blas_controller.cache_clear()


def test_kernels_run_in_a_forked_child():
    script = """
import os, sys
from tinyres.kernels.cpu import threads
threads.NANOSECONDS_WORTH_A_THREAD = 1e-9
calls = []
threads.split(4, lambda *args: calls.append(args), cost=1)
child = os.fork()
if child == 0:
    threads.split(4, lambda *args: calls.append(args), cost=1)
    os._exit(0 if len(calls) == 4 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    environment = {**os.environ, "TINYRES_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60, env=environment)


def test_compiled_works_where_nothing_can_be_cached():
    scope = {}
    exec("def double(x):\n    return 2 * x", scope)  # source that lies in no file
    assert jit.compiled(scope["double"])(4) == 8


def test_cached_code_is_stale_when_any_kernel_file_has_changed(tmp_path):
    """A copy of the kernels, run three times: compiled, taken from the cache, and compiled anew when
    simd.py has changed, which all convolutions are made of but in which none is defined."""
    root = Path(kernels.__file__).parent
    shutil.copytree(root, tmp_path / "copied", ignore=shutil.ignore_patterns("__pycache__"))
    script = """
import numpy as np
from copied.cpu import conv_direct
ones = np.ones((1, 1, 4, 4), np.float32)
y = conv_direct.conv2d(ones, ones, (1, 1), (0, 0), (1, 1), 1)
print(y.item(), sum(conv_direct.correlate.stats.cache_hits.values()))
"""

    def run():
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        line = [sys.executable, "-c", script]
        done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert [run(), run()] == [["16.0", "0"], ["16.0", "1"]]
    path = tmp_path / "copied" / "cpu" / "simd.py"
    text = path.read_text()
    assert text.count("[x, y, z]") == 1
    path.write_text(text.replace("[x, y, z]", "[x, y, builder.fsub(z, y)]"))  # each product is taken off again
    assert run() == ["0.0", "0"]


def test_compiled_kernels_release_the_lock_and_keep_nan():
    direct, winograd = (conv_direct.correlate, conv_direct.weight_sums), (conv_winograd.convolve_tiles,
                                                                          conv_winograd.weight_tiles)
    for function in (*direct, *winograd, norm.stats, norm.apply, norm.grad_sums, norm.input_grad):
        assert function.targetoptions["nogil"]
        assert function.targetoptions["fastmath"] == {"contract", "reassoc"}
