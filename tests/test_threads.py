"""The pool of threads, whatever its callers do; BLAS beside it; and that training gives the same bits."""

import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from tinyres import data, kernels, models, optim, random
from tinyres.analysis import blas
from tinyres.kernels.cpu import threads
from tinyres.train import evaluate, train

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def all_work_is_worth_sharing(monkeypatch):
    monkeypatch.setattr(threads, "NANOSECONDS_WORTH_A_THREAD", 1e-9)
    monkeypatch.setattr(threads, "HAND_OVER", 0)
    monkeypatch.setenv("TINYRES_NUM_THREADS", "3")


def run_alone(script, expected):
    """In a process of its own, with 3 threads; what it prints."""
    setup = "from tinyres.kernels.cpu import threads\nthreads.NANOSECONDS_WORTH_A_THREAD, threads.HAND_OVER = 1e-9, 0\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", setup + script], env=environment, capture_output=True,
                          text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


# --- the pool ---------------------------------------------------------------------------------------------------------


def test_workers_are_used_again():
    def calls():
        names = set()
        threads.split(3, lambda *_: names.add(threading.get_ident()), 1)
        return names

    first = calls()
    assert all(calls() == first for _ in range(50)), "no thread is started where one is idle"


@pytest.mark.parametrize("hand_over, head", [(0, 4), (1, 4), (25, 6), (1000, 10)])
def test_the_callers_range_is_longer_by_what_it_does_until_the_others_begin(monkeypatch, hand_over, head):
    """Of work of 100 for 12 items on 3 threads; but each of the others gets an item."""
    monkeypatch.setattr(threads, "HAND_OVER", hand_over)
    calls = []
    threads.split(12, lambda *arguments: calls.append(arguments), 100)
    calls.sort()
    assert calls[0] == (0, 0, head) and calls[-1][2] == 12
    assert [start for _, start, _ in calls[1:]] == [stop for _, _, stop in calls[:-1]]
    assert all(stop > start for _, start, stop in calls) and len(calls) == 3


def test_calls_within_calls_do_not_wait_for_each_other():
    done = []

    def run(slot, start, stop):
        threads.split(3, lambda inner, *_: threads.split(3, lambda *most: done.append((slot, inner, most[0])), 1), 1)

    threads.split(3, run, 1)
    assert sorted(done) == [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]


def test_many_callers_at_once_get_their_own_ranges():
    wrong = []

    def caller(number):
        for _ in range(100):
            out = np.zeros(30)
            threads.split(30, lambda slot, start, stop, to=out: to[start:stop].fill(number + slot), 1)
            if not np.array_equal(out, np.repeat(number + np.arange(3), 10)):
                wrong.append(out)

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(6)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert wrong == []


def test_an_idle_worker_keeps_no_array_alive():
    array = np.zeros(10)
    there = weakref.ref(array)

    def run(slot, start, stop, array=array):
        if slot:
            raise KeyError(slot)

    with pytest.raises(KeyError) as raised:
        threads.split(3, run, 1)
    del array, run, raised
    for _ in range(100):
        if there() is None:
            return
        time.sleep(0.01)
    pytest.fail("a worker that sleeps holds the arrays of its last range")


@pytest.mark.skipif(sys.platform == "win32", reason="here a process cannot send itself a Ctrl-C")
def test_ctrl_c_is_raised_when_every_range_has_ended():
    """While the caller waits for the others, and while it works itself."""
    script = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
ended = []
def run(slot, start, stop):
    if slot == interrupter:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
    if slot:
        time.sleep(0.3)
    ended.append(slot)
for interrupter in (1, 0):
    try:
        threads.split(3, run, 1)
    except KeyboardInterrupt:
        print(sorted(ended)[-2:])
    ended.clear()
threads.split(3, lambda slot, *_: ended.append(slot), 1)
print(sorted(ended))
"""
    run_alone(script, "[1, 2]\n[1, 2]\n[0, 1, 2]\n")


def test_where_the_system_has_no_more_threads_the_caller_does_it_all(monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_idle", [])
    monkeypatch.setattr(threading.Thread, "start", start)
    calls = []
    threads.split(7, lambda *arguments: calls.append(arguments), 1)
    assert sorted(calls) == [(0, 0, 2), (1, 2, 4), (2, 4, 7)]
    with pytest.raises(ZeroDivisionError):
        threads.split(3, lambda slot, *_: 1 / (slot - 1), 1)


@pytest.mark.parametrize("used_before", [True, False])
def test_kernels_run_while_python_ends(used_before):
    """In an exit handler, and in the last breath of an object that outlives the modules."""
    script = """
import atexit, os
def call(name, write=os.write, threads=threads):
    calls = []
    threads.split(3, lambda slot, *_: calls.append(slot), 1)
    write(1, f"{name} {sorted(calls)}\\n".encode())
class Last:
    def __del__(self, call=call):
        call("del")
_kept = Last()  # names with one underscore go first
atexit.register(call, "exit")
""" + ("call('before')\n" if used_before else "")
    run_alone(script, ("before [0, 1, 2]\n" if used_before else "") + "exit [0, 1, 2]\ndel [0, 1, 2]\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_at_any_moment_has_threads_of_its_own():
    script = """
import os, sys, threading
calls = []
def run(slot, start, stop):
    calls.append(slot)
threads.split(3, run, 1)
with threads.one_blas_thread():
    threads._blas.lock.acquire()   # as another thread of the parent may hold it
    child = os.fork()
    if child == 0:
        with threads.one_blas_thread():
            threads.split(3, run, 1)
        os._exit(0 if sorted(calls) == [0, 0, 1, 1, 2, 2] else 1)
    threads._blas.lock.release()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run_alone(script, "0\n")


# --- BLAS -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def blas_threads():
    """blas_threads() -> of NumPy's BLAS; 2 outside, whatever the machine has."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    if blas.loaded() is None:
        pytest.skip("NumPy has a BLAS that threadpoolctl does not know")
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        yield lambda: blas.loaded()["num_threads"]


def test_blas_has_one_thread_until_the_last_context_ends(blas_threads):
    first, second = threads.one_blas_thread(), threads.one_blas_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as two callers may, of which none is within the other
    assert blas_threads() == 1
    second.__exit__(None, None, None)
    assert blas_threads() == 2


def test_the_threads_of_openmp_are_left_alone(torch):
    before = torch.get_num_threads()
    threads._blas_controller.cache_clear()  # PyTorch may have come since the first look
    try:
        with threads.one_blas_thread():
            torch.set_num_threads(3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def job():
    digits = data.digits("train")
    random.manual_seed(0)
    model = models.build("resnet8", in_channels=1)
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    return model, data.Loader(digits, 32, shuffle=True), optimizer


def test_blas_has_one_thread_in_training_and_evaluation_and_its_own_count_afterwards(blas_threads):
    seen = []
    model, loader, optimizer = job()
    forward = model.forward

    def watched(x):
        seen.append(blas_threads())
        return forward(x)

    model.forward = watched
    train(model, loader, optimizer, iterations=1)
    evaluate(model, data.digits("test"), 300)
    assert len(seen) == 3 and set(seen) == {1} and blas_threads() == 2
    with kernels.use_kernels("im2col"):  # whose only threads are those of BLAS
        evaluate(model, data.digits("test"), 360)
    assert seen[3:] == [2]


def test_blas_has_its_own_count_after_training_that_failed(blas_threads):
    model, loader, optimizer = job()

    def forward(x):
        raise KeyError("fails")

    model.forward = forward
    for call in (lambda: train(model, loader, optimizer, iterations=1), lambda: evaluate(model, data.digits("test"))):
        with pytest.raises(KeyError):
            call()
        assert blas_threads() == 2


# --- bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_training_gives_the_same_bits_on_the_same_number_of_threads(monkeypatch, count):
    monkeypatch.setenv("TINYRES_NUM_THREADS", str(count))

    def bits():
        model, loader, optimizer = job()
        losses = [row["train_loss"] for row in train(model, loader, optimizer, iterations=3)]
        return losses, [p.data.tobytes() for p in model.parameters()]

    assert bits() == bits()
