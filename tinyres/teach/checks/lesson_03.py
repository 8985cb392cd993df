"""Checks of lesson 3: the output size of a convolution, and its windows as a view."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from tinyres.teach import seed
from tinyres.teach.misconception import Misconception

Array = np.ndarray


# --- output_size ------------------------------------------------------------------------------------------------------


def output_size(answer: Callable[..., int]) -> None:
    """Check output_size(size, kernel, stride, padding, dilation) by counting windows. Raises Misconception."""
    geometries = [(size, kernel, stride, padding, dilation) for size in (7, 8, 5, 4, 9, 10, 3, 2, 1)
                  for kernel in (3, 2, 5, 1) for stride in (1, 2, 3) for padding in (0, 1, 2) for dilation in (1, 2)
                  if span(kernel, dilation) <= size + 2 * padding]
    given = [_size(answer, *geometry) for geometry in geometries]
    wrong = [i for i, geometry in enumerate(geometries) if given[i] != fits(*geometry)]
    if wrong:
        size, kernel, stride, padding, dilation = geometries[wrong[0]]
        seen = f"{called(*geometries[wrong[0]])} gave {given[wrong[0]]}. {windows_of(*geometries[wrong[0]])}"
        for tag, (mistaken, why) in SIZES.items():
            if [max(value, 0) for value in given] == [max(mistaken(*geometry), 0) for geometry in geometries]:
                raise Misconception(tag, f"{seen}\n{why}")
        raise Misconception("wrong-size", f"{seen}\n{len(wrong)} of {len(geometries)} geometries are wrong, this is "
                            "the first. Count the windows on paper, then look at which of the five numbers you "
                            "treat differently.")
    print(f"output_size: right on {len(geometries)} geometries")


def _size(answer: Callable[..., int], size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """What the answer gives, an integer."""
    geometry = (size, kernel, stride, padding, dilation)
    room = size + 2 * padding - span(kernel, dilation)
    try:
        value = answer(size, kernel, stride=stride, padding=padding, dilation=dilation)
    except NotImplementedError:
        raise
    except Exception as error:
        if room % stride:
            raise Misconception("demands-a-multiple", f"{called(*geometry)} raised {type(error).__name__}: {error}. "
                                f"{windows_of(*geometry)}\nThe division need not come out even: what is left over is "
                                "not read. See the box on the \"integer multiple\".") from error
        raise Misconception("raises", f"{called(*geometry)} raised {type(error).__name__}: {error}. "
                            f"{windows_of(*geometry)}") from error
    if not isinstance(value, Integral):
        raise Misconception("not-an-integer", f"{called(*geometry)} gave {value!r}, a {type(value).__name__}, expected "
                            "an int. A number of windows is counted; an array's shape takes no float. Look at the "
                            "division.")
    return int(value)


def called(size: int, kernel: int, stride: int, padding: int, dilation: int) -> str:
    """The call as the learner would write it."""
    return f"output_size({size}, {kernel}, stride={stride}, padding={padding}, dilation={dilation})"


def span(kernel: int, dilation: int) -> int:
    """The pixels from the kernel's first to its last position."""
    return len(range(kernel + (kernel - 1) * (dilation - 1)))


def starts(length: int, covered: int, stride: int) -> list[int]:
    """Where windows of `covered` pixels start, one after the other, in `length` pixels."""
    return [start for start in range(length) if start % stride == 0 and start + covered <= length]


def fits(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """The number of windows, counted."""
    return len(starts(size + 2 * padding, span(kernel, dilation), stride))


def windows_of(size: int, kernel: int, stride: int, padding: int, dilation: int) -> str:
    """Where they are, in words."""
    where = starts(size + 2 * padding, span(kernel, dilation), stride)
    return (f"The padded axis has {size + 2 * padding} pixels, the kernel covers {span(kernel, dilation)}; windows "
            f"start at {', '.join(map(str, where))}: {len(where)} of them.")


def _partly(length: int, covered: int, stride: int) -> int:
    """Windows counted with a last one that hangs over the edge."""
    whole = starts(length, covered, stride)
    return len(whole) + (whole[-1] + covered < length)


SIZES: dict[str, tuple[Callable[[int, int, int, int, int], int], str]] = {
    "rounds-up": (lambda n, k, t, p, d: _partly(n + 2 * p, span(k, d), t),
                  "You count a last window that hangs over the edge. Only windows that end inside count: look at the "
                  "direction of your rounding."),
    "forgets-the-first": (lambda n, k, t, p, d: fits(n, k, t, p, d) - 1,
                          "You are one short everywhere. Between the first and the last start there are so many "
                          "steps; the first window itself is counted, too."),
    "padding-once": (lambda n, k, t, p, d: len(starts(n + p, span(k, d), t)),
                     "You pad one side. Zeros stand on both sides of the image."),
    "ignores-padding": (lambda n, k, t, p, d: len(starts(n, span(k, d), t)),
                        "Your answer does not depend on the padding, which makes room for more windows."),
    "ignores-dilation": (lambda n, k, t, p, d: len(starts(n + 2 * p, k, t)),
                         "Your answer does not depend on the dilation, by which the kernel's positions lie further "
                         "apart and cover more pixels."),
    "counts-gaps-as-positions": (lambda n, k, t, p, d: len(starts(n + 2 * p, d * k, t)),
                                 "You let a kernel of k positions cover dilation times k pixels. Between k positions "
                                 "there are fewer than k gaps: draw a kernel of 2 with dilation 2."),
    "ignores-the-kernel": (lambda n, k, t, p, d: (n + 2 * p) // t,
                           "You divide the padded size by the stride. A window has a width of its own, and must end "
                           "inside: the kernel's size has to appear."),
}


# --- im2col -----------------------------------------------------------------------------------------------------------

# x, kernel, stride, padding, dilation: each brings one thing that the ones before it have not.
STAGES = (((2, 2, 4, 6), (2, 2), 1, 0, 1), ((2, 3, 5, 7), (3, 2), 1, 0, 1), ((1, 2, 7, 8), (3, 2), 2, 0, 1),
          ((1, 2, 4, 5), (3, 2), 1, 1, 1), ((1, 2, 7, 6), (3, 2), 1, 0, 2), ((2, 2, 8, 9), (3, 3), 3, 2, 2))


def im2col(answer: Callable[..., Array]) -> None:
    """Check im2col(x, kernel, stride, padding, dilation): shape, memory, numbers, no copy. Raises Misconception."""
    rng = np.random.default_rng(seed())
    for geometry in STAGES:
        _windows(answer, rng, *geometry)
    for geometry in random_geometries(rng, 50):
        _windows(answer, rng, *geometry)
    _other_memory(answer, rng)
    print(f"im2col: right on {len(STAGES)} chosen and 50 random geometries, no number copied")


def random_geometries(rng: np.random.Generator, count: int) -> Iterator[tuple[Any, ...]]:
    """(x's shape, kernel, stride, padding, dilation), small ones of all kinds into which the kernel fits."""
    while count:
        N, C, H, W = (int(rng.integers(1, most + 1)) for most in (2, 3, 7, 7))
        R, S, stride, dilation = (int(v) for v in rng.integers(1, 4, 4))
        padding = int(rng.integers(0, 3))
        if span(R, dilation) <= H + 2 * padding and span(S, dilation) <= W + 2 * padding:
            count -= 1
            yield (N, C, H, W), (R, S), stride, padding, dilation


def window_numbers(x: Array, kernel: tuple[int, int], stride: int, padding: int, dilation: int,
                   shape: tuple[int, ...] | None = None) -> Array:
    """(N, P, Q, C, R, S) by loops, a copy: what each window sees, 0 outside the image. shape: only so many windows."""
    (N, C, H, W), (R, S) = x.shape, kernel
    shape = shape or (N, fits(H, R, stride, padding, dilation), fits(W, S, stride, padding, dilation), C, R, S)
    windows = np.zeros(shape, x.dtype)
    for p, q, r, s in np.ndindex(shape[1], shape[2], R, S):
        h, v = p * stride - padding + r * dilation, q * stride - padding + s * dilation
        if 0 <= h < H and 0 <= v < W:
            windows[:, p, q, :, r, s] = x[:, :, h, v]
    return windows


def _other_memory(answer: Callable[..., Array], rng: np.random.Generator) -> None:
    """Numbers of 4 bytes, then pixels in another order of memory: who calculates strides from the shape is wrong."""
    for what, dtype, channels_last in (("numbers of 4 bytes", "float32", False),
                                       ("the channels innermost in memory", "float64", True)):
        try:
            _windows(answer, rng, (2, 3, 6, 5), (3, 2), 2, 0, 1, dtype, channels_last)
        except Misconception as error:
            if error.tag.startswith("copies"):
                raise
            raise Misconception("assumes-the-memory", f"Right on all images of 8-byte numbers, row after row. This x "
                                f"has {what}: {error.message}\nNot every array lies in memory alike. Which attribute "
                                "of an array says how this one does?") from error


def _windows(answer: Callable[..., Array], rng: np.random.Generator, x_shape: tuple[int, ...],
             kernel: tuple[int, int], stride: int, padding: int, dilation: int, dtype: str = "float64",
             channels_last: bool = False) -> None:
    """One geometry. The memory is looked at before a number is read: a wrong view may lie outside of it."""
    x = rng.permutation(np.arange(1.0, 1 + np.prod(x_shape))).reshape(x_shape).astype(dtype)
    if channels_last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    before = x.copy()
    right = window_numbers(x, kernel, stride, padding, dilation)
    call = f"im2col of x {x_shape}, kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}"
    try:
        given = answer(x, kernel, stride=stride, padding=padding, dilation=dilation)
    except NotImplementedError:
        raise
    except Exception as error:
        raise Misconception("raises", f"{call} raised {type(error).__name__}: {error}. Expected a view of shape "
                            f"{right.shape}.") from error
    if not isinstance(given, np.ndarray):
        raise Misconception("not-an-array", f"{call} gave a {type(given).__name__}, expected a NumPy array of shape "
                            f"{right.shape}.")
    if given.shape != right.shape:
        raise Misconception(*_about_shape(call, given.shape, right.shape, x_shape, kernel, stride, dilation))
    _check_memory(call, given)
    if not np.array_equal(given, right):
        raise Misconception(*_about_numbers(call, given, right, x, kernel, stride, padding, dilation))
    _check_no_copy(call, given, x, padding)
    if not np.array_equal(x, before):
        raise Misconception("changes-its-input", f"{call}: afterwards x holds other numbers than before. Windows are "
                            "for reading.")


def _about_shape(call: str, given: tuple[int, ...], right: tuple[int, ...], x_shape: tuple[int, ...],
                 kernel: tuple[int, int], stride: int, dilation: int) -> tuple[str, str]:
    """Tag and message for a wrong shape."""
    N, P, Q, C, R, S = right
    seen = f"{call} has shape {given}, expected (N, P, Q, C, R, S) = {right}."
    if sorted(given) == sorted(right):
        if given == (N, P, Q, C, S, R):
            return "kernel-axes-swapped", (f"{seen}\nThe last two axes are exchanged: r counts the kernel's rows, s "
                                           "its columns, and (R, S) comes in this order.")
        return "axes-in-another-order", (f"{seen}\nThe axes are there, in another order. It is that of the product: a "
                                         "row of X is an output (n, p, q), a column is a weight (c, r, s).")
    if len(given) == 2:
        return "matrix-already", (f"{seen}\nThis is the matrix X. It cannot be a view of the image; here the six axes "
                                  "are asked for, and the product's reshape comes later.")
    if stride > 1 and given[1:3] != (P, Q) and given[4:] == (R, S):
        return "stride-not-used", (f"{seen}\nThere are {given[1]} x {given[2]} windows instead of {P} x {Q}: one for "
                                   f"each pixel, it seems, rather than for each {stride} pixels.")
    return "wrong-shape", f"{seen}\nCompare axis by axis: which of the numbers comes from where?"


def _check_memory(call: str, given: Array) -> None:
    """Raise Misconception where a view's addresses cannot be right."""
    if any(step % given.itemsize for step, length in zip(given.strides, given.shape, strict=True) if length > 1):
        raise Misconception("strides-in-elements", f"{call} is a view with the strides {given.strides} in bytes, but a "
                            f"number has {given.itemsize} bytes, and each stride must be a multiple of that. Strides "
                            "are counted in bytes: take them from x.strides, not from the shape.")
    owner = _owner(given)
    (first, last), (low, high) = byte_bounds(given), byte_bounds(owner)
    if first < low or last > high:
        raise Misconception("reads-outside", f"{call} is a view of bytes {first - low} to {last - low} of an array "
                            f"that has {high - low}: it reads memory that is not the image's. Which array do you take "
                            "the strides from, and is it the one that is padded?")


def _owner(array: Array) -> Array:
    """The array whose memory it is."""
    base: Any = array
    found = array
    while base is not None:
        base = getattr(base, "base", None)
        found = base if isinstance(base, np.ndarray) else found
    return found


def _about_numbers(call: str, given: Array, right: Array, x: Array, kernel: tuple[int, int], stride: int, padding: int,
                   dilation: int) -> tuple[str, str]:
    """Tag and message for wrong numbers in the right shape."""
    at = tuple(int(i) for i in np.argwhere(given != right)[0])
    n, p, q, c, r, s = at
    seen = (f"{call}: element (n, p, q, c, r, s) = {at} is {given[at]:g}, expected {right[at]:g}, the padded x at row "
            f"{p} * {stride} + {r} * {dilation} = {p * stride + r * dilation}, column {q * stride + s * dilation}.")

    def same(*steps: int) -> bool:
        """Whether the numbers are those of another stride, padding and dilation."""
        stride, padding, dilation = steps
        return np.array_equal(given, window_numbers(x, kernel, stride, padding, dilation, right.shape))

    if np.array_equal(given, right[..., ::-1, ::-1]):
        return "kernel-turned", f"{seen}\nYour windows are turned round. Convolution here does not turn the kernel."
    if kernel[0] == kernel[1] and np.array_equal(given, right.swapaxes(4, 5)):
        return "kernel-axes-swapped", (f"{seen}\nr and s are exchanged: r must go down the rows of the image, s along "
                                       "its columns.")
    if stride > 1 and same(1, padding, dilation):
        return "stride-not-used", (f"{seen}\nNeighbouring windows are 1 pixel apart in yours, not {stride}: the "
                                   "convolution's stride is missing from the strides of p and q.")
    if dilation > 1 and same(stride, padding, 1):
        return "dilation-not-used", (f"{seen}\nThe pixels within a window are neighbours in yours, they must be "
                                     f"{dilation} apart.")
    if stride != dilation and same(dilation, padding, stride):
        return "stride-and-dilation-swapped", (f"{seen}\nStride and dilation are exchanged: the stride is between "
                                               "windows (p, q), the dilation between positions of one (r, s).")
    if padding and same(stride, 0, dilation):
        return "padding-on-one-side", (f"{seen}\nWindow (0, 0) begins at the image's first pixel in yours. Zeros "
                                       "stand before it, too.")
    return "wrong-numbers", (f"{seen}\nTake this element, write its address as a sum of index times stride, and "
                             "compare with your strides axis by axis.")


def _check_no_copy(call: str, given: Array, x: Array, padding: int) -> None:
    """Raise Misconception if the numbers are right but were copied."""
    owner, pixels = _owner(given), x.shape[0] * x.shape[1] * (x.shape[2] + 2 * padding) * (x.shape[3] + 2 * padding)
    if owner.size > pixels:
        raise Misconception("copies", f"{call}: the numbers are right, but they lie in {owner.nbytes} bytes of memory, "
                            f"where the padded image has {pixels * x.itemsize}. Somewhere they were copied: by a loop, "
                            "by reshape, by ascontiguousarray, by indexing with arrays. Only strides give a view.")
    if not padding and not np.shares_memory(x, given):
        raise Misconception("copies-the-image", f"{call}: the numbers are right and the windows a view, but of a copy "
                            "of x, not of x. Without padding nothing need be copied (np.shares_memory(x, result) is "
                            "asked for). np.pad copies even where it adds nothing.")
