"""The CUDA emulator: arguments, sizes and memory of a launch, and the process that it happens in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from emulated import (
    AXPY,
    F32,
    FAULTS,
    I32,
    NEEDS_EMULATOR,
    X32,
    X64,
    axpy,
    blank,
    function,
    launch,
    module,
    ramp,
    run,
)

from tinyres.kernels.cuda import emulator
from tinyres.kernels.cuda.emulator import KernelError, memory, settings
from tinyres.kernels.cuda.emulator import module as launching

pytestmark = NEEDS_EMULATOR


# ---- arguments and sizes ----



@pytest.mark.parametrize("args, said", [
    ((2.0, X32, blank(32), I32(9)), r"argument 1 \('a'\) is a Python float, expected a NumPy scalar: np.float32"),
    ((np.float64(2), X32, blank(32), I32(9)), r"argument 1 \('a'\) is np.float64, expected .* np.float32"),
    ((F32(2), X32, blank(32), 9), r"argument 4 \('n'\) is a Python int, expected a NumPy scalar: np.int32"),
    ((F32(2), X32, blank(32), np.array(9)), r"argument 4 \('n'\) is an array of int64, expected a NumPy scalar"),
    ((F32(2), X32.astype(float), blank(32), I32(9)), r"argument 2 \('x'\) is an array of float64, expected .*float32"),
    ((F32(2), X32.astype(">f4"), blank(32), I32(9)), r"argument 2 \('x'\) is an array of >f4, expected .*float32"),
    ((F32(2), X32, F32(0), I32(9)), r"argument 3 \('y'\) is np.float32, expected a NumPy array"),
    ((F32(2), X32, [0.0], I32(9)), r"argument 3 \('y'\) is a Python list, expected a NumPy array"),
])
def test_arguments_of_other_types_are_refused(args, said):
    with pytest.raises(TypeError, match=r"axpy<float>: " + said):
        axpy(*args)


def test_arguments_of_another_number_are_refused():
    with pytest.raises(TypeError, match=r"axpy<float> takes 4 arguments \(a, x, y, n\), got 3"):
        function(AXPY, "axpy<float>")((1,), (32,), (F32(2), X32, blank(32)))


def test_arrays_that_are_not_contiguous_or_writable_are_refused():
    with pytest.raises(ValueError, match=r"argument 2 \('x'\) has shape \(16,\) and strides \(8,\), expected"):
        axpy(F32(2), X32[::2], blank(32), I32(9))
    fixed = blank(32)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match=r"argument 3 \('y'\) is a read-only array"):
        axpy(F32(2), X32, fixed, I32(9))
    axpy(F32(2), fixed, blank(32), I32(9))  # for a const pointer it will do


@pytest.mark.parametrize("grid, block, shared, said", [
    ((1,), (1025,), 0, r"block is \(1025,\)"), ((1,), (32, 32, 2), 0, r"has 2048 threads, expected at most 1024"),
    ((1,), (1, 1, 65), 0, r"block is"), ((1, 65536), (32,), 0, r"grid is \(1, 65536\)"),
    ((1, 1, 65536), (32,), 0, r"grid is"), ((0,), (32,), 0, r"grid is \(0,\)"), ((1,), (), 0, r"block is \(\)"),
    ((1, 1, 1, 1), (32,), 0, r"grid is \(1, 1, 1, 1\)"), ((1,), (32,), 49153, r"49153 bytes of dynamic shared memory"),
    ((1,), (32,), -1, r"-1 bytes"),
])
def test_sizes_that_no_device_takes_are_refused(grid, block, shared, said):
    with pytest.raises(ValueError, match="axpy<float>: .*" + said):
        axpy(F32(2), X32, blank(32), I32(9), grid, block, shared)


def test_more_shared_memory_can_be_had_by_asking():
    f = module("memory.cu", True).get_function("dynamic_shared")
    f.max_dynamic_shared_size_bytes = 227 * 1024
    y = blank(64)
    f((1,), (64,), (X64, y), 227 * 1024)
    assert (y == X64[::-1]).all()
    with pytest.raises(ValueError, match="232449 bytes of dynamic shared memory, expected 0 to 232448"):
        f((1,), (64,), (X64, y), 227 * 1024 + 1)


def test_kernels_of_the_manifest_have_its_launch_bounds():
    from tinyres.kernels.cuda.manifest import KERNELS

    kernel = next(k for k in KERNELS if k.threads < 1024)
    with pytest.raises(ValueError, match=f"has {kernel.threads + 32} threads, expected at most {kernel.threads}"):
        emulator.launch(kernel, (1,), (kernel.threads + 32,), ())


def test_the_grid_may_be_empty_in_no_dimension_and_large_in_x():
    y = np.zeros(1, np.uint32)
    run("__global__ void count(unsigned* y) { atomicAdd(y, 1u); }", "count", 70000, 2, y)
    assert y[0] == 140000


# ---- memory ----

def test_arrays_that_share_memory_still_do():
    a = ramp(96)
    x, y = a[:64], a[32:]
    axpy(F32(2), x, y, I32(32))
    before = ramp(96)
    assert (a == np.concatenate([before[:32], 2 * before[:32] + before[32:64], before[64:]])).all()
    axpy(F32(1), x, x, I32(64))  # the same array twice
    assert (a[:32] == 2 * before[:32]).all() and (a[64:] == before[64:]).all()


@pytest.mark.parametrize("order", ["forward", "reverse"])
@pytest.mark.parametrize("offset", range(0, 64, 4))
def test_addresses_keep_their_remainder_by_16(offset, order):
    text = "__global__ void address(const float* x, unsigned* y) { y[0] = unsigned(size_t(x) % 16); }"
    base, y = ramp(40), blank(1, dtype=I32).view(np.uint32)
    x = base[offset // 4:]
    with settings(order=order):
        run(text, "address", 1, 1, x, y)
    assert y[0] == x.ctypes.data % 16


def test_empty_arrays_point_to_nothing_that_can_be_touched():
    empty = np.empty((0, 3), F32)
    axpy(F32(2), empty, empty, I32(0))
    with pytest.raises(KernelError, match=r"array 'x' \(argument 2, float32 \(0, 3\)\), 0 bytes past its end"):
        axpy(F32(2), empty, blank(32), I32(1))


def test_structs_in_place_of_vectors():
    text = "__global__ void both(const float2* x, float* y) { y[threadIdx.x] = x[threadIdx.x].x + x[threadIdx.x].y; }"
    y = blank(16)
    run(text, "both", 1, 16, X32, y)
    assert (y == X32.reshape(16, 2).sum(1)).all()


def test_without_guard_arrays_are_the_kernels_own():
    y = np.zeros(32, F32)
    with settings(guard=False):
        axpy(F32(2), X32, y, I32(32))
    assert (y == 2 * X32).all()


def test_memory_for_guarded_arrays_does_not_grow(monkeypatch):
    monkeypatch.setattr(memory, "POOL", 2**20)
    for n in (10, 100_000, 1_000_000, 10, 3_000_000, 50_000):
        axpy(F32(2), np.ones(n, F32), np.ones(n, F32), I32(10))
        assert memory.pool.bytes == sum(r.size for r in memory.pool.free) <= 2**20


def test_a_null_pointer_is_called_so():
    text = """__global__ void f(float* y) {
        float* volatile p = nullptr;
        y[0] = *p;
    }"""
    with pytest.raises(KernelError, match=r"f: module.cu:3: reads through a null pointer .address 0x0. .block") as e:
        run(text, "f", 1, 1, blank(1))
    assert e.value.line == 3


def test_faults_in_included_functions_are_named_there(tmp_path):
    (tmp_path / "part.cuh").write_text("\n__device__ float twice(const float* x)\n{\n    return 2 * *x;\n}\n")
    text = '#include "part.cuh"\n__global__ void f(const float* x, float* y) { *y = twice(x + 100000); }'
    with pytest.raises(KernelError, match=r"f: part.cuh:4: reads outside the array 'x'"):
        run(text, "f", 1, 1, X32, blank(1), options=(f"-I{tmp_path}",))
    (tmp_path / "part.cuh").write_text("__device__ float twice(const float* x) { return *x - *(x - 100000); }")
    y = blank(1)
    run(text, "f", 1, 1, np.concatenate([X32, np.zeros(200000, F32)]), y, options=(f"-I{tmp_path}",))
    assert y[0] == -X32[0]  # compiled anew, as the header is another


# ---- the process around ----

def test_signal_handlers_are_as_before():
    script = f"""
import ctypes, faulthandler, signal, numpy as np
from tinyres.kernels.cuda.emulator import Module, KernelError

def handler(number):  # the first field of the C library's struct sigaction
    action = ctypes.create_string_buffer(512)
    assert ctypes.CDLL(None).sigaction(number, None, action) == 0
    return ctypes.cast(action, ctypes.POINTER(ctypes.c_void_p))[0]

faulthandler.enable()
numbers = signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL
before = [handler(n) for n in numbers]
f = Module({(FAULTS / "memory.cu").read_text()!r}, (), ["write_past_end"]).get_function("write_past_end")
try: f((2,), (32,), (np.zeros(44, np.float32), np.int32(44)))
except KernelError: print("caught")
assert [handler(n) for n in numbers] == before
ctypes.string_at(8)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "caught\n" and done.returncode == -signal.SIGSEGV, done
    assert "Fatal Python error: Segmentation fault" in done.stderr  # faulthandler's, as before


def test_several_python_threads_launch_at_once():
    results, failures = {}, []

    def work(k):
        for i in range(50):
            y = np.zeros(64, F32)
            axpy(F32(k), X64, y, I32(64), block=(64,))
            results[k, i] = (y == k * X64).all()
        try:
            launch("barriers.cu", "deadlock", False, 1, 64, (X64, blank(64)))
        except KernelError as e:
            failures.append(e.kernel)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 200 and all(results.values()) and failures == ["deadlock"] * 4


def test_one_launch_at_a_time():
    y = np.zeros(32, F32)
    thread = threading.Thread(target=axpy, args=(F32(2), X32, y, I32(32)))
    axpy(F32(2), X32, blank(32), I32(32))  # so that it is compiled
    with launching._one_launch:
        thread.start()
        thread.join(0.1)
        assert thread.is_alive() and (y == 0).all()
    thread.join()
    assert (y == 2 * X32).all()


def test_a_forked_process_can_launch():
    axpy(F32(2), X32, blank(32), I32(32))
    read, write = os.pipe()
    launching._one_launch.acquire()  # as if another thread were launching
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        y = np.zeros(32, F32)
        axpy(F32(2), X32, y, I32(32))
        os.write(write, bytes([int((y == 2 * X32).all())]))
        os._exit(0)
    launching._one_launch.release()
    os.close(write)
    assert os.read(read, 1) == b"\1"
    os.waitpid(child, 0)


def test_an_interrupt_comes_through_after_the_launch():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        interrupt_a_launch()
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt_a_launch():
    text = """__global__ void slow(float* y, int n) { for (int i = 0; i < n; ++i) y[i % 32] = sinf(y[i % 32]); }"""
    f = function(text, "slow")
    f((1,), (1,), (blank(32), I32(1)))
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    y = blank(32)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(1000):
            f((4,), (32,), (y, I32(3000)))
    y = np.zeros(32, F32)
    axpy(F32(2), X32, y, I32(32))
    assert (y == 2 * X32).all()


def test_a_kernel_can_print():
    script = """
import os, numpy as np
from tinyres.kernels.cuda.emulator import Module
text = '__global__ void f(int n) { printf("thread %u of %d;", threadIdx.x, n); }'
Module(text, (), ["f"]).get_function("f")((1,), (3,), (np.int32(7),))
os.write(1, b"the end")
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout == "".join(f"thread {i} of 7;" for i in range(3)) + "the end", done


def test_assert_and_trap_in_a_kernel():
    text = """__global__ void f(int n) {
        assert(int(threadIdx.x) < n);
        if (blockIdx.x == 1)
            __trap();
    }"""
    said = r"f: module.cu:2: assert\(int\(threadIdx.x\) < n\) does not hold .* thread \(5,"
    with pytest.raises(KernelError, match=said):
        run(text, "f", 2, 8, I32(5))
    with pytest.raises(KernelError, match=r"f: module.cu:4: calls __trap\(\) .block \(1,0,0\) thread \(0,0,0\)"):
        run(text, "f", 2, 8, I32(8))


def test_settings_are_for_the_block_and_checked():
    with settings(order="reverse"):
        with settings(workers=2):
            assert (emulator.current().order, emulator.current().workers) == ("reverse", 2)
        assert emulator.current().workers == 1
    assert emulator.current().order == "forward"
    for changes, said in (({"order": "backward"}, "there is no order 'backward': choose one of forward, reverse"),
                          ({"workers": 0}, "workers is 0, expected an int of at least 1"),
                          ({"seed": -1}, "seed is -1"), ({"seed": 0.5}, "seed is 0.5")):
        with pytest.raises(ValueError, match=said), settings(**changes):
            pass
    with pytest.raises(TypeError, match="unexpected keyword argument 'ordre'"), settings(ordre="reverse"):
        pass
