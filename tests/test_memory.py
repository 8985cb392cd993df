"""The memory that large arrays share one after the other."""

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest

from tinyres.kernels import memory
from tinyres.kernels.memory import LEAST, Pool, empty

LARGE = LEAST // 4  # float32 values


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    fresh = Pool()
    monkeypatch.setattr(memory, "_pool", fresh)
    return fresh


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("shape, dtype", [((3, 5), np.float32), ((0, 4), np.float64), ((), np.float64),
                                          ((7, LARGE), np.float32), ((LARGE, 2), np.uint8)])
def test_an_array_is_contiguous_aligned_and_writable(shape, dtype):
    array = empty(shape, dtype)
    assert array.shape == shape and array.dtype == dtype and array.flags.c_contiguous and array.flags.writeable
    assert array.size == 0 or address(array) % 64 == 0
    array[...] = 1
    assert array.sum() == array.size


def test_dropped_memory_is_used_again_the_last_first():
    first, second = empty((LARGE,), np.float32), empty((LARGE,), np.float32)
    places = [address(first), address(second)]
    assert places[0] != places[1]
    del first
    del second
    assert address(empty((LARGE // 2, 2), np.float32)) == places[1]


def test_memory_is_in_use_while_any_view_lives():
    array = empty((4, LARGE), np.float32)
    array[...] = 7
    view, place = array.reshape(-1)[::3].T, address(array)
    del array
    gc.collect()
    others = [empty((4, LARGE), np.float32) for _ in range(3)]
    for other in others:
        other[...] = 8
    assert place not in map(address, others) and (view == 7).all()
    del view
    assert address(empty((4, LARGE), np.float32)) == place


def test_a_much_larger_block_is_not_given():
    place = address(empty((2 * LARGE,), np.float32))
    kept = empty((LARGE,), np.float32)
    assert address(kept) != place
    assert address(empty((2 * LARGE,), np.float32)) == place


def test_what_waits_is_bounded_by_what_was_in_use(pool):
    """Each size is used once and dropped; without a bound all fifty would wait."""
    for i in range(1, 51):
        empty((i * LARGE,), np.float32)
    waiting = sum(size for size, *_ in pool.waiting)
    assert pool.in_use + waiting <= memory.KEEP * pool.peak
    assert pool.peak <= 51 * LEAST


def test_a_loop_of_the_same_sizes_asks_the_system_once(monkeypatch):
    sizes, asked = [4, 4, 2, 1, 2, 4, 1], []
    monkeypatch.setattr(memory, "_aligned", lambda size, make=memory._aligned: (asked.append(size), make(size))[1])

    def step():
        alive = [empty((size * LARGE,), np.float32) for size in sizes]
        while alive:
            alive.pop()
            empty((LARGE,), np.float32)

    step()
    first = len(asked)
    for _ in range(5):
        step()
    assert first == len(sizes) and len(asked) == first


def test_threads_never_share_a_block():
    failures = []

    def work(number):
        for _ in range(200):
            array = empty((LARGE,), np.float32)
            array[...] = number
            if not (array == number).all():
                failures.append(number)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def test_arrays_that_live_until_the_end_of_the_process():
    script = "from tinyres.kernels.memory import empty; a = [empty((10**6,), 'float32')]; a.append(a); print(len(a))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")
