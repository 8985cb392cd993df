"""The rules of SGD and Adam, each in one pass over memory.

A rule does a handful of operations for each weight, so its time is the time to read and write arrays. NumPy makes a
pass of every operation; here a weight, its gradient and its state are read once, and what changed is written once:

    function             reads      writes     bytes a weight in float32     as NumPy operations
    sgd                  p g        p          12                            20
    sgd with momentum    p g v      p v        20                            40, with weight decay 60
    adam                 p g m s    p m s      28                            124

    each thread
        for i in its range of the weights:      contiguous, so the compiler uses vectors

What is contiguous is the memory of an array, not its shape: read in the order of memory, the weights of a convolution,
(K, C, R, S) channels last, are a vector like any other. So the compiled rule is called for each parameter, on views of
its arrays, and nothing is copied or moved. One long vector of all parameters would need one call, but all gradients
copied into it. Measured, that won 0.2 ms a step for the 59 parameters of ResNet-20, and lost 2 ms for the 11 million
weights of ResNet-18; and parameters would be views of a buffer, which whatever loads, shares or replaces one must know
of.
"""

import math

import numpy as np

from .. import reference
from .jit import compiled
from .threads import slots, split

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def sgd(parameters, gradients, velocities, lr, momentum, weight_decay, nesterov):
    """p and velocity in place, velocity may be None. What cannot be read as one vector, the reference updates."""
    options = lr, momentum, weight_decay, nesterov
    for p, g, velocity in zip(parameters, gradients, velocities, strict=True):
        vectors = _vectors(p, g, velocity)
        if vectors is None:
            reference.sgd([p], [g], [velocity], *options)
        else:
            _run(sgd_range, vectors, options, p.size / 3)


def adam(parameters, gradients, means, squares, steps, lr, betas, eps, weight_decay, shrink):
    """p, mean and square in place. What cannot be read as one vector, the reference updates."""
    beta1, beta2 = betas
    for p, g, mean, square, step in zip(parameters, gradients, means, squares, steps, strict=True):
        vectors = _vectors(p, g, mean, square)
        if vectors is None:
            reference.adam([p], [g], [mean], [square], [step], lr, betas, eps, weight_decay, shrink)
            continue
        rate, scale = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
        _run(adam_range, vectors, (rate, scale, beta1, beta2, eps, weight_decay, shrink), p.size / 2)


def _vectors(p, g, *states):
    """The arrays as vectors in p's order of memory: g, which is only read, may be a copy, the others are views.

    None if there are no such views (p is a part of another array, with gaps), if p and its state have not one order and
    dtype, or if the dtype is none that is compiled.
    """
    if type(p) is not np.ndarray or p.dtype not in DTYPES:
        return None
    vector = p.ravel(order="K")
    if vector.flags.owndata:  # a copy, so there was no view
        return None
    vectors: list = [vector]
    for array in (g, *states):
        if array is None:
            vectors.append(None)
            continue
        if type(array) is not np.ndarray or array.dtype != p.dtype or array.shape != p.shape:
            return None
        if not _same_order(array, p):
            if array is not g:
                return None
            array = np.empty_like(p)
            array[...] = g
        vectors.append(array.ravel(order="K"))
    return vectors


def _same_order(a, b):
    """Whether two arrays of one shape lie in memory alike. The strides of an axis of length 1 say nothing."""
    return a.strides == b.strides or all(
        size <= 1 or one == other for size, one, other in zip(a.shape, a.strides, b.strides, strict=True)
    )


def _run(kernel, vectors, options, cost):
    """On all processors; most parameters are small, and go straight to the kernel."""
    size = len(vectors[0])
    if slots(size, cost) == 1:
        return kernel(*vectors, *options)

    def run(slot, start, stop):
        kernel(*(None if vector is None else vector[start:stop] for vector in vectors), *options)

    split(size, run, cost)


# ---- compiled: one range of weights ----
#
# The options come as float64 and become numbers of the arrays' dtype, or the whole loop would run in float64. A
# condition on an option is the same for all weights: the compiler takes it out of the loop.


@compiled
def sgd_range(p, g, velocity, lr, momentum, weight_decay, nesterov):
    """v = momentum v + g'; p -= lr v, or lr (g' + momentum v) with nesterov; g' = g + weight_decay p."""
    number = p.dtype.type
    rate, keep, decay = number(lr), number(momentum), number(weight_decay)
    for i in range(len(p)):
        step = g[i]
        if decay != 0:
            step += decay * p[i]
        if velocity is not None:
            v = keep * velocity[i] + step
            velocity[i] = v
            step = step + keep * v if nesterov else v
        p[i] -= rate * step


@compiled
def adam_range(p, g, mean, square, rate, scale, beta1, beta2, eps, weight_decay, shrink):
    """m += (1 - beta1) (g' - m); s = beta2 s + (1 - beta2) g' g'; p = shrink p - rate m / (scale sqrt(s) + eps)."""
    number = p.dtype.type
    gain1, keep2, gain2 = number(1 - beta1), number(beta2), number(1 - beta2)
    rate, scale, least, decay, keep = number(rate), number(scale), number(eps), number(weight_decay), number(shrink)
    for i in range(len(p)):
        weight = keep * p[i]
        gradient = g[i]
        if decay != 0:
            gradient += decay * weight
        m = mean[i] + gain1 * (gradient - mean[i])
        s = keep2 * square[i] + gain2 * (gradient * gradient)
        mean[i] = m
        square[i] = s
        p[i] = weight - rate * m / (scale * np.sqrt(s) + least)
