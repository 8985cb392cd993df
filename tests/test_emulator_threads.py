"""The CUDA emulator: what threads do together, in which order, and the functions that CUDA has."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from emulated import F32, I32, NEEDS_EMULATOR, ORDERS, blank, run

from tinyres.kernels.cuda.emulator import Module, settings

pytestmark = NEEDS_EMULATOR


def in_all_orders(test):
    changes = [*({"order": order, "seed": 3} for order in ORDERS), {"order": "random", "seed": 9, "workers": 3}]
    return pytest.mark.parametrize("changes", changes, ids=[*ORDERS, "3 workers"])(test)


SHUFFLES = """
__global__ void shuffles(const int* x, const int* by, int* y, int width)
{
    const int i = threadIdx.x;
    y[i] = __shfl_sync(0xffffffffu, x[i], by[i], width);
    y[i + 32] = __shfl_up_sync(0xffffffffu, x[i], by[0], width);
    y[i + 64] = __shfl_down_sync(0xffffffffu, x[i], by[0], width);
    y[i + 96] = __shfl_xor_sync(0xffffffffu, x[i], by[0], width);
}
template <typename T> __global__ void sum_of_warp(const T* x, T* y)
{
    T v = x[threadIdx.x];
    for (int k = 16; k > 0; k /= 2) v += __shfl_down_sync(0xffffffffu, v, k);
    if (threadIdx.x % 32 == 0) y[threadIdx.x / 32] = v;
}
__global__ void votes(const int* x, unsigned* y)
{
    const int i = threadIdx.x;
    y[i] = __ballot_sync(0xffffffffu, x[i] > 1);
    y[i + 64] = __any_sync(0xffffffffu, x[i] > 1);
    y[i + 128] = __all_sync(0xffffffffu, x[i] > 1);
    y[i + 192] = __syncthreads_count(x[i] > 1);
    y[i + 256] = __syncthreads_or(x[i] > 1);
    y[i + 320] = __syncthreads_and(x[i] > 1);
}
__global__ void only_the_first(const int* x, int* y, int lanes)
{
    const int lane = threadIdx.x % 32;
    if (lane >= lanes) return;
    y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
}
__global__ void histogram(const int* x, int* count)
{
    __shared__ int bins[4];
    if (threadIdx.x < 4) bins[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&bins[x[threadIdx.x]], 1);
    __syncthreads();
    if (threadIdx.x < 4) count[threadIdx.x] += bins[threadIdx.x];
}
__global__ void chain(const int* x, int* y)  // lane 0 tells lane 1, and lane 1 then lane 2
{
    __shared__ int told;
    if (threadIdx.x == 0) told = x[0];
    if (threadIdx.x < 2) __syncwarp(0x3u);
    if (threadIdx.x == 1 || threadIdx.x == 2) __syncwarp(0x6u);
    if (threadIdx.x == 2) y[2] = told;
}
__global__ void half_warps(const int* x, int* y)
{
    const unsigned mask = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
    int v = x[threadIdx.x];
    if (threadIdx.x < 16) {
        for (int k = 8; k > 0; k /= 2) v += __shfl_xor_sync(mask, v, k);
    } else {
        for (int k = 8; k > 0; k /= 2) v = max(v, __shfl_xor_sync(mask, v, k));
        __syncwarp(mask);
    }
    y[threadIdx.x] = v;
}
"""
SHUFFLE_NAMES = ["shuffles", "votes", "half_warps", "only_the_first", "histogram", "chain", "sum_of_warp<float>",
                 "sum_of_warp<double>", "sum_of_warp<long long>"]


@cache
def shuffles():
    return Module(SHUFFLES, (), SHUFFLE_NAMES)


@in_all_orders
@pytest.mark.parametrize("width", [2, 8, 32])
def test_shuffles_are_those_of_the_programming_guide(changes, width):
    x = np.random.default_rng(width).integers(-99, 99, 32, dtype=I32)
    lane = np.arange(32)
    for by in range(width):
        source, y = np.roll(np.arange(32, dtype=I32), -by), blank(128, dtype=I32)
        with settings(**changes):
            shuffles().get_function("shuffles")((1,), (32,), (x, source, y, I32(width)))
        first = lane // width * width
        assert (y[:32] == x[first + source % width]).all()
        up, down, xor = lane - source[0], lane + source[0], lane ^ source[0]
        assert (y[32:64] == np.where(up >= first, x[up], x)).all()
        assert (y[64:96] == np.where(down < first + width, x[down % 32], x)).all()
        assert (y[96:] == np.where(xor < first + width, x[xor % 32], x)).all()


@in_all_orders
@pytest.mark.parametrize("type_, dtype", [("float", F32), ("double", float), ("long long", np.int64)])
def test_values_of_4_and_8_bytes_are_shuffled(changes, type_, dtype):
    x, y = np.arange(96, dtype=dtype) * 3 - 70, blank(3, dtype=dtype)
    with settings(**changes):
        shuffles().get_function(f"sum_of_warp<{type_}>")((1,), (96,), (x, y))
    assert (y == x.reshape(3, 32).sum(1)).all()


@in_all_orders
@pytest.mark.parametrize("threads", [64, 50])
def test_votes_count_the_threads_that_are_there(changes, threads):
    x = np.random.default_rng(1).integers(0, 3, 64, dtype=I32)
    y = np.zeros(384, np.uint32)
    with settings(**changes):
        shuffles().get_function("votes")((1,), (threads,), (x, y))
    p = x[:threads] > 1
    y = y.reshape(6, 64)[:, :threads]
    for first in (0, 32):
        bits = sum(1 << i for i, vote in enumerate(p[first:first + 32]) if vote)
        assert (y[0, first:first + 32] == bits).all()
        assert (y[1, first:first + 32] == p[first:first + 32].any()).all()
        assert (y[2, first:first + 32] == p[first:first + 32].all()).all()
    assert (y[3] == p.sum()).all() and (y[4] == p.any()).all() and (y[5] == p.all()).all()


@in_all_orders
def test_parts_of_a_warp_go_different_ways(changes):
    x, y = np.random.default_rng(2).integers(0, 99, 32, dtype=I32), blank(32, dtype=I32)
    with settings(**changes):
        shuffles().get_function("half_warps")((1,), (32,), (x, y))
    assert (y[:16] == x[:16].sum()).all() and (y[16:] == x[16:].max()).all()


def test_what_atomics_and_chains_of_syncwarps_order_is_no_race():
    count, y = np.zeros(4, I32), blank(32, dtype=I32)
    for order in ORDERS:
        count[:] = 0
        with settings(sanitize=True, order=order):
            shuffles().get_function("histogram")((1,), (64,), (np.arange(64, dtype=I32) % 4, count))
            shuffles().get_function("chain")((1,), (32,), (np.arange(32, dtype=I32) + 7, y))
        assert (count == 16).all() and (y[:3] == [-1, -1, 7]).all()


@in_all_orders
def test_lanes_that_have_returned_are_not_waited_for(changes):
    x, y = np.arange(64, dtype=I32), blank(64, dtype=I32)
    with settings(**changes):
        shuffles().get_function("only_the_first")((1,), (64,), (x, y, I32(16)))
    assert (y == np.where(x % 32 < 16, x ^ 1, -1)).all()


ATOMICS = """
template <typename T> __global__ void add(const T* x, T* sum, int n)
{
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(sum, x[i]);
}
__global__ void each(const int* x, int* y, unsigned* u)
{
    const int v = x[blockIdx.x * blockDim.x + threadIdx.x];
    atomicMin(&y[0], v);
    atomicMax(&y[1], v);
    atomicAnd(&y[2], v);
    atomicOr(&y[3], v);
    atomicXor(&y[4], v);
    atomicSub(&y[5], v);
    for (int old = y[6], seen; ; old = seen) {
        seen = atomicCAS(&y[6], old, old + v);
        if (seen == old) break;
    }
    if (atomicExch(&y[7], 1) == 0) y[8] += 1;
    atomicInc(&u[0], 9u);
    atomicDec(&u[1], 9u);
}
"""


@in_all_orders
def test_atomics_lose_nothing(changes):
    m = Module(ATOMICS, (), ["add<int>", "add<float>", "add<unsigned long long>", "each"])
    for type_, dtype in (("int", I32), ("float", F32), ("unsigned long long", np.uint64)):
        x, total = np.random.default_rng(0).integers(0, 9, 4000).astype(dtype), np.zeros(1, dtype)
        with settings(**changes):
            m.get_function(f"add<{type_}>")((8,), (64,), (x, total, I32(4000)))
        assert total[0] == x.sum()
    x = np.random.default_rng(1).integers(-99, 99, 512, dtype=I32)
    y, u = np.array([500, -500, -1, 0, 0, 0, 0, 0, 0], I32), np.zeros(2, np.uint32)
    with settings(**changes):
        m.get_function("each")((8,), (64,), (x, y, u))
    assert y.tolist() == [x.min(), x.max(), np.bitwise_and.reduce(x), np.bitwise_or.reduce(x),
                          np.bitwise_xor.reduce(x), -x.sum(), x.sum(), 1, 1]
    assert u.tolist() == [512 % 10, (-512) % 10]


INDICES = """
__global__ void where(unsigned* y)
{
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    y[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1000 * block + thread;
}
__global__ void when(unsigned* clock, unsigned* blocks, unsigned* threads)
{
    const unsigned now = atomicAdd(clock, 1u);
    blocks[now] = blockIdx.x, threads[now] = threadIdx.x;
}
"""


@in_all_orders
def test_indices_in_three_dimensions(changes):
    y = np.zeros((60, 24), np.uint32)
    with settings(**changes):
        run(INDICES, "where", (5, 4, 3), (4, 3, 2), y)
    assert (y == 1000 * np.arange(60)[:, None] + np.arange(24)).all()


def orders_of(grid, block, **changes):
    clock, blocks, threads = np.zeros(1, np.uint32), blank(grid * block, dtype=I32), blank(grid * block, dtype=I32)
    blocks, threads = blocks.view(np.uint32), threads.view(np.uint32)
    with settings(**changes):
        run(INDICES, "when", grid, block, clock, blocks, threads)
    return blocks.reshape(grid, block)[:, 0].tolist(), threads.reshape(grid, block).tolist()


def test_the_orders_of_blocks_and_threads():
    forward, back = list(range(7)), list(range(7))[::-1]
    assert orders_of(7, 7) == (forward, [forward] * 7)
    assert orders_of(7, 7, order="reverse") == (back, [back] * 7)
    for grid in (1, 2, 7, 64):
        seen = set()
        for seed in range(20):
            blocks, threads = orders_of(grid, 7, order="random", seed=seed)
            assert sorted(blocks) == list(range(grid)) and all(sorted(t) == forward for t in threads)
            assert (blocks, threads) == orders_of(grid, 7, order="random", seed=seed)
            seen.add((*blocks, *threads[0]))
        assert len(seen) == 20 and (grid == 1 or len({tuple(t) for t in threads}) > 1)


# ---- functions of CUDA ----

FUNCTIONS = """
__global__ void floats(const float* x, float* y, int n)
{
    for (int i = 0; i < n; ++i) {
        y[i] = rsqrtf(x[i]);
        y[n + i] = __expf(x[i]);
        y[2 * n + i] = min(x[i], 1.0f);
        y[3 * n + i] = max(x[i], 1.0f);
        y[4 * n + i] = fmaf(x[i], x[i], -1.0f);
        y[5 * n + i] = __saturatef(x[i]);
        y[6 * n + i] = __int_as_float(__float_as_int(x[i]) ^ 0x80000000);
        y[7 * n + i] = exp(x[i]);
        y[8 * n + i] = __float2int_rn(x[i]);
        y[9 * n + i] = __float2int_rz(x[i]);
        y[10 * n + i] = __float2uint_rn(x[i]);
        y[11 * n + i] = min(1.0f, x[i]);
        y[12 * n + i] = max(1.0f, x[i]);
    }
}
__global__ void integers(const unsigned long long* x, unsigned long long* y, int n)
{
    for (int i = 0; i < n; ++i) {
        const unsigned low = unsigned(x[i]), high = unsigned(x[i] >> 32);
        y[i] = __umul64hi(x[i], 0x9e3779b97f4a7c15ull);
        y[n + i] = __umulhi(low, 0xcd9e8d57u);
        y[2 * n + i] = __popcll(x[i]);
        y[3 * n + i] = __clzll((long long)x[i]);
        y[4 * n + i] = __ffsll((long long)x[i]);
        y[5 * n + i] = __brev(low);
        y[6 * n + i] = __funnelshift_l(low, high, 12);
        y[7 * n + i] = __double_as_longlong(__hiloint2double(int(high), int(low)));
        y[8 * n + i] = __mulhi(int(low), int(high));
    }
}
"""


def test_functions_of_floats():
    x = np.array([0.25, 2.5, 3.5, -1.5, np.nan, np.inf, 3e9, -3e9], F32)
    y = blank(13, 8)
    run(FUNCTIONS, "floats", 1, 1, x, y, I32(8))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(y[0], F32(1) / np.sqrt(x))
        np.testing.assert_allclose(y[1], np.exp(x), rtol=1e-6)
        np.testing.assert_array_equal(y[2:4], [np.fmin(x, F32(1)), np.fmax(x, F32(1))])
        np.testing.assert_array_equal(y[11:], y[2:4])
        np.testing.assert_array_equal(y[4], (x.astype(float) ** 2 - 1).astype(F32))  # one rounding
        np.testing.assert_array_equal(y[5], np.nan_to_num(np.clip(x, 0, 1), nan=0))
        np.testing.assert_array_equal(y[6], -x)
        np.testing.assert_allclose(y[7], np.exp(x), rtol=1e-6)
    np.testing.assert_array_equal(y[8], F32([0, 2, 4, -2, 0, 2**31 - 1, 2**31 - 1, -(2**31)]))
    np.testing.assert_array_equal(y[9], F32([0, 2, 3, -1, 0, 2**31 - 1, 2**31 - 1, -(2**31)]))
    np.testing.assert_array_equal(y[10], F32([0, 2, 4, 0, 0, 2**32 - 1, 3e9, 0]))


def test_functions_of_integers():
    x = np.array([1, 2**63 + 5, 0x123456789ABCDEF0, 2**64 - 1], np.uint64)
    y = np.zeros((9, 4), np.uint64)
    run(FUNCTIONS, "integers", 1, 1, x, y, I32(4))
    for i, v in enumerate(map(int, x)):
        low, high = v % 2**32, v >> 32
        signed = [w - 2**32 if w >= 2**31 else w for w in (low, high)]
        assert y[:, i].tolist() == [
            v * 0x9E3779B97F4A7C15 >> 64, low * 0xCD9E8D57 >> 32, v.bit_count(), 64 - v.bit_length(),
            (v & -v).bit_length(), int(f"{low:032b}"[::-1], 2), (high << 12 | low >> 20) % 2**32, v,
            (signed[0] * signed[1] >> 32) % 2**64]
