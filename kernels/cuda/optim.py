"""SGD and Adam, all parameters of a dtype in one launch: see optim.cu.

Here the table is made that the launch reads, from the addresses of the arrays. What is read is their memory in one run,
so a parameter and its state must lie in memory without gaps and in one order of their axes; a gradient that does not is
copied into that order. What fits in no table, the reference updates.
"""

import math
from collections import Counter
from functools import lru_cache

import numpy as np

from .. import reference
from ..layout import array_module
from .launch import launch
from .manifest import TYPES

DTYPES = tuple(np.dtype(name) for name in TYPES)
PIECE = 2048  # values of a row of the table, which a block of 256 threads updates
WORDS = 5  # of a row: addresses of p, g and two arrays of state (0 for none), and how many values


def sgd(parameters, gradients, velocities, lr, momentum, weight_decay, nesterov):
    """p and velocity in place, velocity may be None."""
    launches, rest = _batches(zip(parameters, gradients, velocities, strict=True))
    for arrays in launches:
        _run("sgd", arrays, *map(np.float64, (lr, momentum, weight_decay)), np.int32(nesterov))
    for p, g, velocity in rest:
        reference.sgd([p], [g], [velocity], lr, momentum, weight_decay, nesterov)


def adam(parameters, gradients, means, squares, steps, lr, betas, eps, weight_decay, shrink):
    """p, mean and square in place; as many launches as there are different steps, which is usually one."""
    beta1, beta2 = betas
    entries = list(zip(parameters, gradients, means, squares, steps, strict=True))
    for step in dict.fromkeys(steps):
        launches, rest = _batches(entry[:4] for entry in entries if entry[4] == step)
        rate, scale = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
        for arrays in launches:
            _run("adam", arrays, *map(np.float64, (rate, scale, beta1, beta2, eps, weight_decay, shrink)))
        for p, g, mean, square in rest:
            reference.adam([p], [g], [mean], [square], [step], lr, betas, eps, weight_decay, shrink)


def _batches(entries):
    """Lists of the entries (p, g, state, ...) that can go into one launch each, and a list of those for the reference.

    A launch has arrays of one dtype, and no parameter's memory twice: its blocks run in any order.
    """
    launches: dict = {}
    rest, seen = [], Counter[int]()
    for p, g, *states in entries:
        order = _order(p.shape, p.strides, p.itemsize) if p.dtype in DTYPES else None
        alike = order is not None and all(a is None or _alike(a, p, order) for a in states)
        if not alike or type(g) is not type(p) or g.dtype != p.dtype or g.shape != p.shape:
            rest.append((p, g, *states))
        elif p.size:
            if _order(g.shape, g.strides, g.itemsize) != order:
                g = array_module(g).ascontiguousarray(g.transpose(order))
            turn = p.dtype, seen[_address(p)]
            seen[_address(p)] += 1
            launches.setdefault(turn, []).append((p, g, *states))
    return launches.values(), rest


def _alike(a, p, order):
    """Whether a lies in memory as p does."""
    same = type(a) is type(p) and a.dtype == p.dtype and a.shape == p.shape
    return same and _order(a.shape, a.strides, a.itemsize) == order


@lru_cache(maxsize=4096)
def _order(shape, strides, itemsize):
    """The axes from the slowest to the fastest, those of length 1 first, whose strides say nothing; None for gaps."""
    axes = sorted(range(len(shape)), key=lambda axis: (shape[axis] > 1, -strides[axis] if shape[axis] > 1 else 0))
    expected = itemsize
    for axis in reversed(axes):
        if shape[axis] > 1 and strides[axis] != expected:
            return None
        expected *= shape[axis]
    return tuple(axes)


def _run(name, arrays, *options):
    """One launch for `arrays`, a list of (p, g, state, ...) of one dtype."""
    p = arrays[0][0]
    parts = tuple((*(_address(a) for a in entry), entry[0].size) for entry in arrays)
    table = _table(array_module(p), parts, p.itemsize)
    launch(f"{name}<{TYPES[p.dtype.name]}>", (len(table),), (256,), table, *options)


def _address(a):
    """Where an array begins: 0 for None."""
    if a is None:
        return 0
    return a.__array_interface__["data"][0] if array_module(a) is np else a.data.ptr


@lru_cache(maxsize=32)
def _table(xp, parts, itemsize):
    """The table on the device, (pieces, WORDS) uint64; parts: addresses and a size for each parameter.

    It is kept by what it says, so it cannot be out of date, and is uploaded when an array has moved and then no more:
    gradients move every step, but as the allocator gives freed memory out again, between a few places.
    """
    tables = []
    for *addresses, size in parts:
        starts = np.arange(0, size, PIECE, dtype=np.uint64)
        rows = np.zeros((len(starts), WORDS), np.uint64)
        for column, address in enumerate(addresses):
            rows[:, column] = starts * np.uint64(itemsize) + np.uint64(address) if address else 0
        rows[:, -1] = np.minimum(PIECE, size - starts)
        tables.append(rows)
    return xp.asarray(np.concatenate(tables))
