"""Checks of lesson 4: the adjoint of laying out windows, and the backward pass of a convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres.kernels import reference
from tinyres.teach import seed
from tinyres.teach.checks.lesson_03 import fits, random_geometries, window_numbers
from tinyres.teach.misconception import Misconception

Array = np.ndarray
Shape = tuple[int, ...]


# --- col2im -----------------------------------------------------------------------------------------------------------

# x's shape, kernel, stride, padding, dilation: each brings one thing that the ones before it have not.
STAGES: tuple[tuple[Shape, tuple[int, int], int, int, int], ...] = (
    ((1, 1, 3, 4), (2, 2), 1, 0, 1), ((2, 3, 4, 6), (3, 2), 1, 0, 1), ((1, 2, 4, 5), (2, 3), 1, 1, 1),
    ((1, 2, 7, 7), (3, 3), 2, 0, 1), ((1, 2, 5, 6), (2, 2), 1, 0, 2), ((2, 1, 6, 8), (3, 2), 3, 1, 1))


def col2im(answer: Callable[..., Array]) -> None:
    """Check col2im(columns, x_shape, stride, padding, dilation) against the transpose of laying out, and by the
    identity <im2col(x), y> = <x, col2im(y)>. Raises Misconception."""
    rng = np.random.default_rng(seed())
    for geometry in STAGES:
        _collected(answer, rng, *geometry)
    worst = 0.0
    for x_shape, kernel, *steps in random_geometries(rng, 50):
        _collected(answer, rng, x_shape, kernel, *steps)
        x = rng.standard_normal(x_shape)
        windows = window_numbers(x, kernel, *steps)
        y = rng.standard_normal(windows.shape)
        left, right = np.vdot(windows, y), np.vdot(x, answer(y, x_shape, *steps))
        scale = np.linalg.norm(windows) * np.linalg.norm(y)
        worst = max(worst, abs(left - right) / (scale or 1.0))  # a small image under much padding: windows of zeros
    if worst > 1e-12:
        raise Misconception("not-adjoint", f"col2im: <im2col(x), y> and <x, col2im(y)> differ by {worst:.1e} of the "
                            "norms, expected at most 1e-12. Is something rounded on the way?")
    print(f"col2im: right on {len(STAGES)} chosen and 50 random geometries; <im2col(x), y> = <x, col2im(y)> to "
          f"{worst:.0e}")


def transpose(x_shape: Shape, shape: Shape, kernel: tuple[int, int], stride: int, padding: int, dilation: int
              ) -> Array:
    """(pixels, windows' elements) of one image: a 1 where an element is a copy of the pixel. From unit images."""
    pixels = int(np.prod(x_shape[1:]))
    units = np.eye(pixels).reshape(pixels, *x_shape[1:])
    return window_numbers(units, kernel, stride, padding, dilation, (pixels, *shape[1:])).reshape(pixels, -1)


def collect(columns: Array, x_shape: Shape, stride: int, padding: int, dilation: int) -> Array:
    """What col2im must give, by the matrix."""
    kernel = (columns.shape[4], columns.shape[5])
    matrix = transpose(x_shape, columns.shape, kernel, stride, padding, dilation)
    return (columns.reshape(len(columns), -1) @ matrix.T).reshape(x_shape)


def random_columns(rng: np.random.Generator, x_shape: Shape, kernel: tuple[int, int], stride: int, padding: int,
                   dilation: int) -> Array:
    """(N, P, Q, C, R, S) of different whole numbers, so that sums are exact."""
    (N, C, H, W), (R, S) = x_shape, kernel
    shape = (N, fits(H, R, stride, padding, dilation), fits(W, S, stride, padding, dilation), C, R, S)
    return rng.permutation(np.arange(1.0, 1 + np.prod(shape))).reshape(shape)


def _collected(answer: Callable[..., Array], rng: np.random.Generator, x_shape: Shape, kernel: tuple[int, int],
               stride: int, padding: int, dilation: int) -> None:
    """One geometry."""
    columns = random_columns(rng, x_shape, kernel, stride, padding, dilation)
    before, right = columns.copy(), collect(columns, x_shape, stride, padding, dilation)
    call = (f"col2im of columns {columns.shape} to x_shape {x_shape}, stride {stride}, padding {padding}, dilation "
            f"{dilation}")
    try:
        given = answer(columns, x_shape, stride=stride, padding=padding, dilation=dilation)
    except NotImplementedError:
        raise
    except Exception as error:
        raise Misconception("raises", f"{call} raised {type(error).__name__}: {error}") from error
    if not isinstance(given, np.ndarray) or given.shape != x_shape:
        raise Misconception(*_about_shape(call, given, x_shape, stride, padding))
    if not np.array_equal(columns, before):
        raise Misconception("changes-its-input", f"{call}: afterwards columns holds other numbers than before.")
    if not np.allclose(given, right, rtol=1e-12, atol=0):
        raise Misconception(*_about_sums(call, given, right, columns, stride, padding, dilation))
    single = answer(columns.astype(np.float32), x_shape, stride=stride, padding=padding, dilation=dilation)
    if single.dtype != np.float32:
        raise Misconception("another-dtype", f"{call}: of float32 columns came {single.dtype}. The gradient of a "
                            "float32 image is float32; np.zeros makes float64 unless it is told.")


def _about_shape(call: str, given: Any, x_shape: Shape, stride: int, padding: int) -> tuple[str, str]:
    """Tag and message for a wrong shape, or for no array."""
    if not isinstance(given, np.ndarray):
        return "not-an-array", f"{call} gave a {type(given).__name__}, expected an array of shape {x_shape}."
    seen = f"{call} has shape {given.shape}, expected {x_shape}."
    N, C, H, W = x_shape
    if padding and given.shape == (N, C, H + 2 * padding, W + 2 * padding):
        return "not-cropped", (f"{seen}\nThis is the padded image's gradient. The zeros around were no pixels: what "
                               "comes to them goes nowhere.")
    if stride > 1 and given.ndim == 4 and given.shape[2] <= H and given.shape[3] <= W:
        return "size-from-the-output", (f"{seen}\nYou work the size out from the number of windows, it seems. The last "
                                        "rows may lie in no window; they have a gradient all the same, 0. The size is "
                                        "x_shape's.")
    return "wrong-shape", f"{seen}\nThe result is a gradient of x and has x's shape."


def _about_sums(call: str, given: Array, right: Array, columns: Array, stride: int, padding: int, dilation: int
                ) -> tuple[str, str]:
    """Tag and message for wrong numbers in the right shape."""
    kernel, x_shape = (columns.shape[4], columns.shape[5]), right.shape
    matrix = transpose(x_shape, columns.shape, kernel, stride, padding, dilation)
    counts = matrix.sum(1).reshape(x_shape[1:])
    wrong = np.argwhere(~np.isclose(given, right))
    n, c, h, v = (int(i) for i in wrong[np.argmax([counts[tuple(at[1:])] for at in wrong])])
    here = matrix.reshape(*x_shape[1:], -1)[c, h, v]
    brings = columns[n].ravel()[here > 0]
    seen = (f"{call}: pixel (n, c, h, v) = ({n}, {c}, {h}, {v}) is {given[n, c, h, v]:g}. It lies in {len(brings)} "
            f"windows, which bring {' + '.join(f'{value:g}' for value in brings) or 0} = {right[n, c, h, v]:g}.")

    def same(stride: int, padding: int, dilation: int, of: Array = columns) -> bool:
        """Whether the numbers are those of other columns or steps."""
        return np.allclose(given, collect(of, x_shape, stride, padding, dilation))

    if np.allclose(given * counts, right):
        return "averages", (f"{seen}\nYou divide by the number of windows. That would be an inverse of im2col. The "
                            "chain rule asks for its adjoint: each use of the pixel moves the loss, and they add.")
    if _one_of_each(given, columns, matrix):
        return "assigns-instead-of-adding", (f"{seen}\nEvery pixel of yours has the contribution of one single window. "
                                             "Where windows overlap, one has replaced the others: look at what = does, "
                                             "and what += does with an index that repeats.")
    if kernel[0] == kernel[1] and same(stride, padding, dilation, of=columns.swapaxes(4, 5)):
        return "kernel-axes-swapped", f"{seen}\nr and s are exchanged: r moves down the rows, s along the columns."
    if same(stride, padding, dilation, of=columns[..., ::-1, ::-1]):
        return "kernel-turned", (f"{seen}\nYou bring each element to the opposite side of its window. Every element "
                                 "goes back to where it was copied from; the turned kernel belongs to the other way of "
                                 "computing dx, by a convolution.")
    if padding:
        (N, C, H, W), p = x_shape, padding
        padded = collect(columns, (N, C, H + 2 * p, W + 2 * p), stride, 0, dilation)
        if np.allclose(given, padded[:, :, :H, :W]):
            return "cropped-at-the-corner", (f"{seen}\nYou cut the padded image so that its upper left corner remains. "
                                             "Zeros stood on all four sides.")
    if stride > 1 and same(1, padding, dilation):
        return "stride-not-used", (f"{seen}\nYou put neighbouring windows 1 pixel apart; they are {stride} apart.")
    if dilation > 1 and same(stride, padding, 1):
        return "dilation-not-used", f"{seen}\nThe pixels of a window are {dilation} apart; yours are neighbours."
    return "wrong-sums", f"{seen}\nGo through these windows one by one: which one do you miss, or count twice?"


def _one_of_each(given: Array, columns: Array, matrix: Array) -> bool:
    """Whether each pixel equals one of its contributions, or 0 where it has none."""
    for image, row in zip(given.reshape(len(given), -1), columns.reshape(len(columns), -1), strict=True):
        for value, uses in zip(image, matrix > 0, strict=True):
            if not (value == row[uses]).any() and (uses.any() or value != 0):
                return False
    return True


# --- conv2d_backward --------------------------------------------------------------------------------------------------

# x's shape, K, kernel, stride, padding, dilation.
NETWORKS: tuple[tuple[Shape, int, tuple[int, int], int, int, int], ...] = (
    ((1, 1, 3, 4), 1, (2, 2), 1, 0, 1), ((2, 2, 4, 5), 3, (2, 2), 1, 0, 1), ((2, 1, 3, 4), 2, (3, 2), 1, 1, 1),
    ((1, 2, 6, 6), 2, (3, 3), 2, 1, 1), ((1, 2, 6, 5), 2, (2, 2), 1, 0, 2), ((2, 2, 5, 7), 3, (1, 2), 2, 1, 2))
NAMES = ("dx", "dw", "db")


def conv2d_backward(answer: Callable[..., Any]) -> None:
    """Check conv2d_backward(g, x, w, stride, padding, dilation) against differences of the loss. Raises Misconception.

    A convolution is linear in x, in w and in b, so that a difference with any step is exact, and the step here is 1.
    """
    rng = np.random.default_rng(seed())
    checked = 0
    for geometry in NETWORKS:
        checked += _backward(answer, rng, *geometry)
    for x_shape, kernel, *steps in random_geometries(rng, 20):
        checked += _backward(answer, rng, x_shape, int(rng.integers(1, 4)), kernel, *steps)
    print(f"conv2d_backward: right on {len(NETWORKS)} chosen and 20 random convolutions, {checked:,} elements")


def differences(g: Array, x: Array, w: Array, stride: int, padding: int, dilation: int) -> tuple[Array, Array, Array]:
    """dx, dw, db of sum(g * (conv2d(x, w) + b)): what the loss gains if one element grows by 1."""
    steps = (stride, stride), (padding, padding), (dilation, dilation), 1

    def loss(x: Array, w: Array) -> float:
        return float((g * reference.conv2d(x, w, *steps)).sum())

    base, gains = loss(x, w), []
    for which in (0, 1):
        gain = np.zeros((x, w)[which].shape)
        for at in np.ndindex(gain.shape):
            moved = [x.copy(), w.copy()]
            moved[which][at] += 1
            gain[at] = loss(*moved) - base
        gains.append(gain)
    return gains[0], gains[1], np.array([g[:, k].sum() for k in range(g.shape[1])])


def _backward(answer: Callable[..., Any], rng: np.random.Generator, x_shape: Shape, K: int, kernel: tuple[int, int],
              stride: int, padding: int, dilation: int) -> int:
    """One convolution, of whole numbers; returns how many elements were compared."""
    (N, C, H, W), (R, S) = x_shape, kernel
    g_shape = (N, K, fits(H, R, stride, padding, dilation), fits(W, S, stride, padding, dilation))
    g, x, w = (rng.integers(-9, 10, shape).astype(float) for shape in (g_shape, x_shape, (K, C, R, S)))
    before, steps = [array.copy() for array in (g, x, w)], (stride, padding, dilation)
    call = f"conv2d_backward of x {x_shape}, w {w.shape}, stride {stride}, padding {padding}, dilation {dilation}"
    try:
        given = answer(g, x, w, stride=stride, padding=padding, dilation=dilation)
    except NotImplementedError:
        raise
    except Exception as error:
        raise Misconception("raises", f"{call} raised {type(error).__name__}: {error}. g has shape {g.shape}. Write "
                            "the shapes of G, X and W beside the three products.") from error
    right = differences(g, x, w, *steps)
    _check_three(call, given, right)
    given = [np.asarray(array) for array in given]
    for name, array, old in zip("gxw", (g, x, w), before, strict=True):
        if not np.array_equal(array, old):
            raise Misconception("changes-its-input", f"{call}: afterwards {name} holds other numbers. It belongs to "
                                "the caller, who may use it again: at a fork the same array goes two ways.")
    if not all(np.allclose(a, b, rtol=1e-10, atol=1e-9) for a, b in zip(given, right, strict=True)):
        raise Misconception(*_about_gradients(call, given, right, g, x, w, *steps))
    return sum(array.size for array in right)


def _check_three(call: str, given: Any, right: tuple[Array, Array, Array]) -> None:
    """Raise Misconception unless there are three arrays of the right shapes."""
    shapes = [array.shape for array in right]
    if not isinstance(given, (tuple, list)) or len(given) != 3:
        raise Misconception("not-three", f"{call} gave a {type(given).__name__}, expected three arrays: dx, dw, db.")
    got = [np.shape(array) for array in given]
    if got != shapes and sorted(got) == sorted(shapes):
        raise Misconception("another-order", f"{call} gave arrays of the shapes {got}, expected dx, dw, db in this "
                            f"order: {shapes}.")
    for name, one, other in zip(NAMES, got, shapes, strict=True):
        if one != other:
            tag = "bias-not-summed" if name == "db" else "wrong-shape"
            why = ("A bias is used at every output of its channel, in every image; its gradient is the sum over all of "
                   "these, one number a channel." if name == "db" else "A gradient has the shape of what it is the "
                   "gradient of.")
            raise Misconception(tag, f"{call}: {name} has shape {one}, expected {other}.\n{why}")


def _about_gradients(call: str, given: Any, right: tuple[Array, Array, Array], g: Array, x: Array, w: Array,
                     stride: int, padding: int, dilation: int) -> tuple[str, str]:
    """Tag and message for wrong numbers in the right shapes."""
    (dx, dw, db), steps, N = (np.asarray(array) for array in given), (stride, padding, dilation), len(x)
    wrong = [name for name, a, b in zip(NAMES, given, right, strict=True) if not np.allclose(a, b)]
    mine, true = given[NAMES.index(wrong[0])], right[NAMES.index(wrong[0])]
    at = tuple(int(i) for i in np.argwhere(~np.isclose(mine, true))[0])
    seen = (f"{call}: {', '.join(wrong)} wrong. {wrong[0]}{list(at)} is {mine[at]:g}; when that element of "
            f"{wrong[0][1:]} grows by 1, the loss sum(g * y) grows by {true[at]:g}.")
    mixed = g.reshape(N, *g.shape[2:], g.shape[1]).transpose(0, 3, 1, 2)
    if _matches(given, differences(mixed, x, w, *steps), wrong):
        return "g-not-transposed", (f"{seen}\nYou read g as if its channels came last. A reshape does not move axes: "
                                    "it only counts on, and the numbers land in other rows. Move the axis first.")
    if "dw" in wrong and _matches(given, differences(np.ones_like(g), x, w, *steps), wrong):
        return "upstream-ignored", (f"{seen}\nThese are the gradients of sum(y). The loss is another function of y: "
                                    "its gradient g at y has to be multiplied in.")
    if N > 1 and all(np.allclose(mine * N, true) for mine, true in _pairs(given, right, wrong)):
        return "batch-mean", (f"{seen}\nYours is smaller by the factor N = {N}. Images add here. Where a loss is a "
                              "mean over the batch, its 1/N is in g already.")
    if wrong == ["db"] and np.allclose(db * g[:, 0].size, right[2]):
        return "bias-mean", f"{seen}\nYou take the mean over the outputs. Each of them uses the bias in full: they add."
    if "dw" in wrong:
        K, C, R, S = w.shape
        if any(np.allclose(dw, other) for other in (right[1].reshape(K, R, S, C).transpose(0, 3, 1, 2),
                                                    right[1].swapaxes(2, 3) if R == S else np.inf)):
            return "weight-axes", (f"{seen}\ndw has the right numbers at other places. The columns of X count c, r, s; "
                                   "reshape to that order, which is the weight's own.")
    if wrong == ["dx"]:
        return _about_dx(seen, dx, g, x, w, right, *steps)
    return f"wrong-{wrong[0]}", f"{seen}\nWrite down its product, with the shapes of both factors, and compare."


def _about_dx(seen: str, dx: Array, g: Array, x: Array, w: Array, right: tuple[Array, Array, Array], stride: int,
              padding: int, dilation: int) -> tuple[str, str]:
    """Tag and message where dx alone is wrong."""
    if np.allclose(dx, differences(g, x, w[:, :, ::-1, ::-1], stride, padding, dilation)[0]):
        return "kernel-turned", (f"{seen}\nYou turned the kernel. In the product G W nothing is turned: col2im brings "
                                 "each element back to where it came from. Turning belongs to the other way, a "
                                 "convolution of g with zeros between.")
    columns = np.tensordot(g, w, (1, 0))  # (N, P, Q, C, R, S)
    for name, steps in (("stride", (1, padding, dilation)), ("dilation", (stride, padding, 1)),
                        ("padding", (stride, 0, dilation)), ("geometry", (1, 0, 1))):
        if np.allclose(dx, collect(columns, x.shape, *steps)):
            return "geometry-not-passed-on", (f"{seen}\nYour dX is brought back without the {name}. col2im has to be "
                                              "told the same geometry as im2col.")
    return "wrong-dx", f"{seen}\nIs col2im right? Then look at the product before it."


def _pairs(given: Any, right: Any, names: list[str]) -> list[tuple[Array, Array]]:
    """The arrays with these names, in twos."""
    return [(given[i], right[i]) for i, name in enumerate(NAMES) if name in names]


def _matches(given: Any, other: Any, names: list[str]) -> bool:
    """Whether all that is wrong equals this instead."""
    return all(np.allclose(a, b) for a, b in _pairs(given, other, names))
