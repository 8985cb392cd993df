"""What a network asks of the kernels: every call of a function of tinyres.kernels, watched, and what work it is.

Ops call kernels as attributes of one module, `kernels.conv2d(...)`. So each function there can be replaced, for a
while, by one that calls it and then tells what it saw.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tinyres import kernels
from tinyres.kernels.cpu import conv

CONVOLUTIONS = ("conv2d", "conv2d_input_grad", "conv2d_input_grad_add", "conv2d_weight_grad")
# The arguments that a kernel also writes.
IN_PLACE = {"sgd": ("parameters", "velocities"), "adam": ("parameters", "means", "squares"), "add_bias": ("y",),
            "conv2d_input_grad_add": ("total",)}
NO_KERNELS = ("current", "use_kernels")  # functions of tinyres.kernels that choose kernels


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a kernel: its arguments, what it returned, and the seconds it took."""

    name: str
    kernel: Callable
    args: tuple[Any, ...]
    options: dict[str, Any]
    result: Any
    seconds: float

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The arguments by their names."""
        return dict(inspect.signature(self.kernel).bind(*self.args, **self.options).arguments)


def names() -> list[str]:
    """The kernels: what tinyres.kernels itself defines."""
    return [name for name, value in vars(kernels).items()
            if inspect.isfunction(value) and value.__module__ == kernels.__name__
            and not name.startswith("_") and name not in NO_KERNELS]


@contextlib.contextmanager
def watched(seen: Callable[[Call], None]) -> Iterator[None]:
    """Inside, `seen(call)` follows every call of a kernel that no other kernel made; the time it takes is not counted.

    The functions are put back at the end, after an exception too.
    """
    originals = {name: getattr(kernels, name) for name in names()}
    depth = 0

    def watching(name: str, kernel: Callable) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal depth
            if depth:
                return kernel(*args, **options)
            depth += 1
            try:
                began = time.perf_counter()
                result = kernel(*args, **options)
                seconds = time.perf_counter() - began
            finally:
                depth -= 1
            seen(Call(name, kernel, args, options, result, seconds))
            return result

        return call

    try:
        for name, kernel in originals.items():
            setattr(kernels, name, watching(name, kernel))
        yield
    finally:
        for name, kernel in originals.items():
            setattr(kernels, name, kernel)


# ---- how much work a call is ----


@dataclass(frozen=True)
class Work:
    """flops: additions and multiplications of the direct convolution, 0 for what is none. products: those of them that
    the algorithm cannot do without: all, but a quarter or 4/9 with Winograd's. bytes: read and written. kernel: which
    code computes, "direct" or "Winograd, m = 4"; "" where there is no choice."""

    flops: float
    products: float
    bytes: int
    kernel: str


def work(call: Call) -> Work:
    """What a call has to do. Its bytes are those of its different arrays, each read or written once."""
    moved = _bytes(call)
    if call.name not in CONVOLUTIONS:
        return Work(0, 0, moved, "")
    at = call.arguments
    (N, C, _, _), (K, c, R, S), (P, Q) = shapes(call)
    flops = 2.0 * N * P * Q * K * R * S * c
    m = tile(call.name, (K, c, R, S), at["stride"], at["dilation"], at["groups"])
    share = (m + 2) ** 2 / (9 * m * m) if m else 1.0
    return Work(flops, flops * share, moved, kernel_name(m))


def shapes(call: Call) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Of a convolution's call: (N, C, H, W) of the image, (K, C/G, R, S) of the weight, (P, Q) of the output."""
    at = call.arguments
    if call.name == "conv2d":
        return at["x"].shape, at["w"].shape, call.result.shape[2:]
    if call.name == "conv2d_weight_grad":
        return at["x"].shape, tuple(at["w_shape"]), at["g"].shape[2:]
    x_shape = at["total"].shape if call.name == "conv2d_input_grad_add" else tuple(at["x_shape"])
    return x_shape, at["w"].shape, at["g"].shape[2:]


def tile(name: str, w_shape: Any, stride: Any, dilation: Any, groups: int) -> int:
    """m of the Winograd kernel that computes a convolution in the present kernel set, 0 for another kernel."""
    if kernels.current() != "fast":
        return 0
    forward, gradients = conv.tiles(w_shape, stride, dilation, groups)
    return forward if name == "conv2d" else gradients


def kernel_name(m: int) -> str:
    """What computes a convolution, in words: Winograd's tiles of m x m outputs, or with 0 the direct kernel."""
    if kernels.current() != "fast":
        return kernels.current()
    return f"Winograd, m = {m}" if m else "direct"


def _bytes(call: Call) -> int:
    """Of all arrays among the arguments and results. An array that is both, like a gradient handed on, counts once, one
    that is changed in place twice."""
    once = {a.__array_interface__["data"][0]: a.nbytes for a in _arrays(*call.arguments.values(), call.result)}
    written = _arrays(*(call.arguments[name] for name in IN_PLACE.get(call.name, ())))
    return sum(once.values()) + sum(a.nbytes for a in written)


def _arrays(*values: Any) -> Iterator[np.ndarray]:
    """The arrays among the values, in lists and tuples too."""
    for value in values:
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _arrays(*value)
