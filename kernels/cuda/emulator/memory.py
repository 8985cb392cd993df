"""Guarded memory: where a launch's arrays lie while the kernel runs, so that every access beside them is noticed.

    pages that cannot be touched | slack | the array | pages that cannot be touched

Each array is copied in before the launch and back after it. An access past the end, or far before the beginning, stops
the thread there; the slack, less than a page, is looked at afterwards. In reverse order the array lies at the other
end, so that a test in several orders sees both sides at their exact place:

    pages that cannot be touched | the array | slack | pages that cannot be touched

The slack of what is only read is of bytes 255, NaN as floats. That of what is written holds other bytes, so that a
kernel that copies one array's slack to another's is noticed, and numbers to which adding makes a difference.

An array starts at an address with the same remainder by 16 as the original: a kernel that looks whether it may load 16
bytes at once decides as it will on the device. Arrays that share memory still do. The memory has two addresses, by one
of which it can only be read: that one is what a kernel gets for an array that it takes as const.

A fault's address is translated into words here: which array, how far outside.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from dataclasses import dataclass, field

import numpy as np

PAGE = mmap.PAGESIZE
GUARD = 16 * 2**20  # bytes that cannot be touched, on either side: they take addresses, but no memory
POOL, POOLED = 256 * 2**20, 256  # bytes and regions kept for the next launches
SLACK_READ, SLACK_WRITTEN = 0xFF, 0xC1  # the second: -24.2 as floats, -6e8 as doubles
FIXED, NO_RESERVE, NONE = 0x10, 0x4000, 0  # MAP_FIXED, MAP_NORESERVE, PROT_NONE of Linux


class LibC:
    """The three functions of the C library that we need."""

    def __init__(self):
        library = ctypes.CDLL(None, use_errno=True)
        self._mmap, self._munmap = library.mmap, library.munmap
        self._mmap.restype = ctypes.c_void_p
        self._mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def map(self, address, size, access, flags, file):
        """The address of `size` bytes of memory. Raises MemoryError where there are none."""
        found = self._mmap(address, size, access, flags, file, 0)
        if found == ctypes.c_void_p(-1).value:
            raise MemoryError(f"the CUDA emulator got no {size} bytes: {os.strerror(ctypes.get_errno())}")
        return found

    def unmap(self, address, size):
        self._munmap(address, size)


libc = LibC()


class Region:
    """Some pages between pages that cannot be touched, twice: to read and write, and only to read."""

    def __init__(self, size):
        self.size = size
        file = os.memfd_create("tinyres-cuda")
        try:
            os.ftruncate(file, size)
            self.writable = self._map(file, mmap.PROT_READ | mmap.PROT_WRITE)
            self.readable = self._map(file, mmap.PROT_READ)
        finally:
            os.close(file)

    def _map(self, file, access):
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
        begin = libc.map(None, self.size + 2 * GUARD, NONE, flags, -1) + GUARD
        return libc.map(begin, self.size, access, mmap.MAP_SHARED | FIXED, file)

    def close(self):
        for begin in (self.writable, self.readable):
            libc.unmap(begin - GUARD, self.size + 2 * GUARD)


class Pool:
    """Regions that no launch uses, the next one's: making them takes longer than a small launch."""

    def __init__(self):
        self.free = []  # used last: at the end
        self.bytes = 0

    def take(self, size):
        for i in range(len(self.free) - 1, -1, -1):
            if self.free[i].size == size:
                self.bytes -= size
                return self.free.pop(i)
        return Region(size)

    def give_back(self, region):
        self.free.append(region)
        self.bytes += region.size
        while self.bytes > POOL or len(self.free) > POOLED:
            oldest = self.free.pop(0)
            self.bytes -= oldest.size
            oldest.close()


pool = Pool()


@dataclass
class Parameter:
    """A pointer of the kernel, and the array given for it."""

    number: int
    name: str
    array: np.ndarray
    const: bool
    address: int = 0  # in the region

    def __str__(self):
        shape = "(" + ", ".join(map(str, self.array.shape)) + ("," if self.array.ndim == 1 else "") + ")"
        name = f"{self.name!r} (argument {self.number + 1}" if self.name else f"of argument {self.number + 1} ("
        return f"the array {name}, {self.array.dtype} {shape})"


@dataclass
class Cluster:
    """Arrays that share memory, most often one; begin and end: of the original. start: of the copy in the region."""

    begin: int
    end: int
    parameters: list[Parameter] = field(default_factory=list)
    const: bool = True  # all of them are
    region: Region | None = None
    start: int = 0

    @property
    def slack(self):
        return SLACK_READ if self.const else SLACK_WRITTEN


class GuardedArrays:
    """The arrays of a launch, in guarded memory until close(). at_start: the array before the slack, not after it."""

    def __init__(self, parameters, at_start=False):
        self.clusters = clusters_of(parameters)
        for cluster in self.clusters:
            self._copy_in(cluster, at_start)

    def _copy_in(self, cluster, at_start):
        bytes_, rest = cluster.end - cluster.begin, cluster.begin % 16
        region = cluster.region = pool.take(max(1, -(-(bytes_ + rest) // PAGE)) * PAGE)
        offset = rest if at_start else (region.size - bytes_ - rest) // 16 * 16 + rest
        cluster.start = region.writable + offset
        ctypes.memset(region.writable, cluster.slack, offset)
        ctypes.memmove(cluster.start, cluster.begin, bytes_)
        ctypes.memset(cluster.start + bytes_, cluster.slack, region.size - offset - bytes_)
        for p in cluster.parameters:
            base = region.readable if cluster.const else region.writable
            p.address = base + offset + (p.array.ctypes.data - cluster.begin if p.array.size else 0)

    def bounds(self):
        """For each cluster the addresses that the kernel may touch, begin and end, those that it can, first and last,
        and the size of a value, 0 if all of it is const."""
        for c in self.clusters:
            base = c.region.readable if c.const else c.region.writable
            begin = base + c.start - c.region.writable
            size = 0 if c.const else min(p.array.itemsize for p in c.parameters)
            yield begin, begin + c.end - c.begin, base, base + c.region.size, size

    def overwritten_slack(self):
        """What is to be said of the first byte of slack that was changed, or None."""
        for c in self.clusters:
            if c.const:
                continue
            offset, bytes_ = c.start - c.region.writable, c.end - c.begin
            for first, size in ((c.region.writable, offset), (c.start + bytes_, c.region.size - offset - bytes_)):
                slack = ctypes.string_at(first, size)
                if slack.count(c.slack) != size:
                    at = next(i for i, byte in enumerate(slack) if byte != c.slack)
                    size = min(p.array.itemsize for p in c.parameters)  # what was written is the whole value
                    return self.describe(c.start + (first + at - c.start) // size * size)
        return None

    def copy_back(self):
        """Into the originals, of arrays that the kernel may write."""
        for c in self.clusters:
            if not c.const:
                ctypes.memmove(c.begin, c.start, c.end - c.begin)

    def describe(self, address):
        """Such as "outside the array 'y' (argument 3, float32 (4, 8)), 12 bytes past its end", "value 7 of the ..."."""
        for (begin, end, first, last, _), c in zip(self.bounds(), self.clusters, strict=True):
            p = min(c.parameters, key=lambda p: (not 0 <= address - p.address < p.array.nbytes, p.const))
            if begin <= address < end:
                value = f"value {(address - p.address) // p.array.itemsize} of {p}"
                return value + ", which is const" if c.const else value
            if first - GUARD <= address < begin:
                return f"outside {p}, {begin - address} bytes before its beginning"
            if end <= address < last + GUARD:
                return f"outside {p}, {address - end} bytes past its end"
        if address < 65536:
            return f"through a null pointer (address {address:#x})"
        return f"at the address {address:#x}, where no array of the launch is"

    def close(self):
        """The memory is free for the next launch."""
        for cluster in self.clusters:
            pool.give_back(cluster.region)


def clusters_of(parameters):
    """The parameters grouped into those that share memory, directly or through others; empty arrays share none."""
    clusters: list[Cluster] = []
    for p in sorted(parameters, key=lambda p: (p.array.size == 0, p.array.ctypes.data)):
        begin = p.array.ctypes.data
        if not clusters or not p.array.size or begin >= clusters[-1].end:
            clusters.append(Cluster(begin, begin))
        clusters[-1].end = max(clusters[-1].end, begin + p.array.nbytes)
        clusters[-1].const &= p.const
        clusters[-1].parameters.append(p)
    return clusters
