"""Memory for large arrays that is used again, so that a training step does not ask the system for it each time.

A step makes and drops the same few hundred megabytes over and over. Left to itself, the C library gives them back to
the system and asks anew; the system must then find, clear and map every page (4 KiB) as it is first written to. For
ResNet-20 with a batch of 128 these are 22,000 pages a step, and a third of its time. So `empty` keeps what was dropped:

    empty(shape, dtype) -> array -> views of it ...        while any of them lives, the block is in use;
                                                           then it waits for the next `empty` of about its size

How an array gives its block back: its base is a Lease, which its views keep alive too, and whose __del__ runs when the
last of them is gone. What waits never makes the total more than KEEP times what was in use at once.
"""

import bisect
import os
import threading
from collections import deque

import numpy as np

LEAST = 1 << 18  # bytes of a block; smaller arrays are NumPy's
LINE = 64  # bytes of a line of the cache, and of the widest vector: where every array begins
FIT = 1.25  # a waiting block may be so many times larger than what is asked for
KEEP = 1.25


def empty(shape, dtype):
    """Uninitialised C-contiguous array that begins at a multiple of 64 bytes."""
    dtype, size = np.dtype(dtype), 1
    for length in shape:
        size *= int(length)
    size *= dtype.itemsize
    memory = np.asarray(Lease(_pool.take(size), _pool)) if size >= LEAST else _aligned(size)
    return memory[:size].view(dtype).reshape(shape)


def _aligned(size):
    """Uninitialised bytes, `size` of them, from NumPy."""
    memory = np.empty(size + LINE, np.uint8)
    first = -memory.ctypes.data % LINE
    return memory[first : first + size]


class Lease:
    """What an array's memory belongs to; NumPy finds the memory by __array_interface__."""

    __slots__ = ("__array_interface__", "block", "pool")

    def __init__(self, block, pool):
        self.block, self.pool = block, pool
        self.__array_interface__ = {"data": (block.ctypes.data, False), "shape": block.shape, "typestr": "|u1",
                                    "version": 3}

    def __del__(self):
        self.pool.returned.append(self.block)  # one step, which needs no lock: this may run at any moment


class Pool:
    """Blocks in use and waiting, in bytes."""

    def __init__(self):
        self.lock = threading.RLock()  # a signal's handler may come in between and ask for memory itself
        self.returned: deque = deque()  # not yet sorted in
        self.waiting: list = []  # (size, -number, block) in order; a block that came back later, with more of it in the
        # cache, has a higher number, and is found first
        self.number = self.in_use = self.idle = self.peak = 0

    def take(self, size):
        """A block of at least `size` bytes: one that waits, else a new one."""
        with self.lock:
            self._sort_in()
            i = bisect.bisect_left(self.waiting, (size, -self.number))
            if i < len(self.waiting) and self.waiting[i][0] <= FIT * size:
                block = self.waiting.pop(i)[2]
                self.idle -= block.size
            else:
                block = self._new(size)
            self.in_use += block.size
            self.peak = max(self.peak, self.in_use)
            self._release()
            return block

    def _new(self, size):
        try:
            return _aligned(size)
        except MemoryError:  # what waits may be what is missing
            self.waiting.clear()
            self.idle = 0
            return _aligned(size)

    def _sort_in(self):
        while self.returned:
            block = self.returned.popleft()
            self.in_use -= block.size
            self.idle += block.size
            self.number += 1
            bisect.insort(self.waiting, (block.size, -self.number, block))

    def _release(self):
        """Drop the blocks that have waited longest, as far as there are too many."""
        while self.waiting and self.in_use + self.idle > KEEP * self.peak:
            oldest = max(range(len(self.waiting)), key=lambda i: self.waiting[i][1])
            self.idle -= self.waiting.pop(oldest)[0]


_pool = Pool()


def _after_fork():
    """Another thread of the parent may have held the lock, and the lists in its hands; the child has no such thread."""
    _pool.lock, _pool.returned, _pool.waiting, _pool.idle = threading.RLock(), deque(), [], 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
