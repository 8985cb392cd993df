"""The checks of lesson 5: batch norm backward, and the running statistics.

The judge of a gradient is a finite difference. A wrong one is then compared with what the engine gives when a route is
cut out of its graph, so that the message can name what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tinyres import ops
from tinyres.teach import seed
from tinyres.teach.misconception import Misconception
from tinyres.tensor import Tensor

Array = Any  # a NumPy array
Named = Iterable[tuple[str, Array, str]]  # tag, what an answer with this misconception gives, what that means

SHAPES = ((3, 2, 2, 3), (2, 3, 1, 4), (5, 1, 3, 2), (9, 4, 1, 1))
STEP = 1e-5
CHANNELS = (0, 2, 3)  # the axes over which a channel's values lie

# --- batch_norm_backward ----------------------------------------------------------------------------------------------


def batch_norm_backward(student: Callable[[Array, Array, Array, float], tuple[Array, Array, Array]]) -> None:
    """Check batch_norm_backward(g, x, gamma, eps). Raises Misconception for what is wrong with it."""
    rng = np.random.default_rng([seed(), 5])
    worst = 0.0
    for shape in SHAPES:
        for eps in (0.5, 1e-5):  # a large eps shows where it belongs
            x, g = 1 + 2 * rng.standard_normal(shape), rng.standard_normal(shape)
            gamma = rng.choice([-1.0, 1.0], shape[1]) * rng.uniform(0.5, 2, shape[1])
            worst = max(worst, _compare(student, g, x, gamma, eps))
    print(f"batch_norm_backward: right for {len(SHAPES)} shapes and two eps; dx within {worst:.0e} of differences")


def _compare(student: Callable, g: Array, x: Array, gamma: Array, eps: float) -> float:
    """How far dx is from finite differences, relative to their norm; Misconception if that is far."""
    dx, dgamma, dbeta = _answer(student, g, x, gamma, eps)
    where = f"x of shape {x.shape}, eps = {eps}"
    count = x.size // x.shape[1]
    centred = x - x.mean(CHANNELS, keepdims=True)
    want = _of_parameters(g, x, gamma, eps)
    _gradient("dbeta", dbeta, want[0], where, (
        ("mean-for-sum", want[0] / count, "the mean over the channel. Every value of it received the same beta, and "
         "each brings its gradient: lesson 2"),
        ("swapped", want[1], "the gradient of gamma. Look at the order of what is returned"),
        ("parameter-scaled", want[0] * gamma, "multiplied by gamma. beta is added after gamma has had its turn")))
    _gradient("dgamma", dgamma, want[1], where, (
        ("mean-for-sum", want[1] / count, "the mean over the channel. Every value of it was multiplied by the same "
         "gamma, and each brings its gradient: lesson 2"),
        ("x-for-xhat-in-dgamma", (g * x).sum(CHANNELS), "the sum of g x. gamma multiplies the normalised "
         "values, not x"),
        ("x-for-xhat-in-dgamma", (g * centred).sum(CHANNELS), "the sum of g (x - mean). gamma multiplies values that "
         "are divided by the standard deviation, too"),
        ("parameter-scaled", want[1] * gamma, "multiplied by gamma. The slope of gamma * xhat in gamma is xhat")))
    measured = _measured(g, x, gamma, eps)
    _gradient("dx", dx, measured, where, _wrong_inputs(g, x, gamma, eps), 1e-6)
    return float(np.linalg.norm(dx - measured) / np.linalg.norm(measured))


def _answer(student: Callable, g: Array, x: Array, gamma: Array, eps: float) -> tuple[Array, Array, Array]:
    mine = [a.copy() for a in (g, x, gamma)]
    got = student(*mine, eps)
    if not isinstance(got, (tuple, list)) or len(got) != 3 or any(part is None for part in got):
        raise Misconception("returns-something-else", "expected three arrays, dx, dgamma and dbeta; got "
                            + type(got).__name__ + (f" of {len(got)}" if isinstance(got, (tuple, list)) else ""))
    for name, before, after in zip(("g", "x", "gamma"), (g, x, gamma), mine, strict=True):
        if not np.array_equal(before, after):
            raise Misconception("changes-its-input", f"{name} is not what it was before the call. g may be the "
                                "gradient of another tensor, too, as at an addition (lesson 1); x may be kept by "
                                "another op.")
    for name, part, shape in zip(("dx", "dgamma", "dbeta"), got, (x.shape, gamma.shape, gamma.shape), strict=True):
        if np.shape(part) != shape:
            raise Misconception("wrong-shape", f"x of shape {x.shape}: {name} has shape {np.shape(part)}, expected "
                                f"{shape}. A gradient has the shape of its tensor; to combine (C,) with (N, C, H, W), "
                                "look at where the channel's axis has to stand.")
    dx, dgamma, dbeta = (np.asarray(part) for part in got)
    return dx, dgamma, dbeta


def _gradient(name: str, got: Array, want: Array, where: str, wrong: Named, tolerance: float = 1e-8) -> None:
    """Nothing if `got` is `want`; else the first of the wrong ones that it is."""
    def same(a: Array, b: Array) -> bool:
        return bool(np.linalg.norm(a - b) <= tolerance * (np.linalg.norm(b) + 1e-3))

    if same(got, want):
        return
    said = f"{where}: {name} begins with {_show(got)}, expected {_show(want)}"
    for tag, value, meaning in wrong:
        if same(got, value):
            raise Misconception(tag, f"{said}. It is {meaning}.")
    raise Misconception(f"wrong-{name.replace(' ', '-')}", f"{said}. Put in numbers that fit on paper, as the "
                        "lesson's, and compare term by term.")


def _measured(g: Array, x: Array, gamma: Array, eps: float) -> Array:
    """The gradient of sum(g * y) with respect to x by central differences."""
    def loss(values: Array) -> float:
        centred = values - values.mean(CHANNELS, keepdims=True)
        y = gamma[:, None, None] * centred / np.sqrt((centred**2).mean(CHANNELS, keepdims=True) + eps)
        return float(np.sum(g * y))

    slope = np.empty_like(x)
    for index in np.ndindex(x.shape):
        ends = []
        for h in (STEP, -STEP):
            moved = x.copy()
            moved[index] += h
            ends.append(loss(moved))
        slope[index] = (ends[0] - ends[1]) / (2 * STEP)
    return slope


def _of_parameters(g: Array, x: Array, gamma: Array, eps: float) -> tuple[Array, Array]:
    """The library's gradients of beta and gamma."""
    weight, bias = Tensor(gamma, requires_grad=True), Tensor(np.zeros_like(gamma), requires_grad=True)
    ops.batch_norm(Tensor(x), weight=weight, bias=bias, training=True, eps=eps).backward(g)
    assert bias.grad is not None and weight.grad is not None
    return bias.grad.data, weight.grad.data


def _engine(g: Array, x: Array, gamma: Array, eps: float, cut: str = "", dims: tuple[int, ...] = CHANNELS,
            through: tuple[int, ...] | None = None, bessel: bool = False) -> Array:
    """The engine's gradient of x without the routes that `cut` names, with statistics over `dims`, or with their
    gradient going through those over the axes `through`."""
    t = Tensor(x, requires_grad=True)
    mean = _statistic(t, dims, through)
    centred = t - mean.detach()  # the variance does not change when the mean it is taken around moves a little
    var = _statistic(centred * centred, dims, through)
    if bessel:
        count = x.size // x.shape[1]
        var = var * (count / (count - 1))
    mean = mean.detach() if "mean" in cut else mean
    var = var.detach() if "variance" in cut else var
    y = (t - mean) / ops.sqrt(var + eps) * Tensor(gamma[:, None, None])
    y.backward(g)
    assert t.grad is not None
    return t.grad.data


def _statistic(t: Any, dims: tuple[int, ...], through: tuple[int, ...] | None) -> Any:
    """The mean over `dims`; its gradient is the one of the mean over `through`."""
    whole = ops.mean(t, dims, keepdim=True)
    part = None if through is None else ops.mean(t, through, keepdim=True)
    return whole if part is None else whole.detach() + (part - part.detach())


def _wrong_inputs(g: Array, x: Array, gamma: Array, eps: float) -> Named:
    """What dx is under each misconception."""
    count = x.size // x.shape[1]
    spread = np.sqrt(x.var(CHANNELS, keepdims=True) + eps)
    right, direct = _engine(g, x, gamma, eps), _engine(g, x, gamma, eps, "mean, variance")
    mean = _engine(g, x, gamma, eps, "variance") - direct
    var = _engine(g, x, gamma, eps, "mean") - direct
    yield ("statistics-as-constants", direct, "what mean and variance bring if they were constants. They are made "
           "from x, and x is used by both; in eval mode it would be right")
    yield ("no-route-through-mean", direct + var, "right but for the route through the mean: moving one value moves "
           "the mean, which all others are measured from")
    yield ("no-route-through-variance", direct + mean, "right but for the route through the variance: moving one value "
           "changes what all others are divided by")
    yield ("sum-for-mean", direct + count * (mean + var), f"what you get with sums where means belong: one value of x "
           f"moves the mean by 1/{count} only")
    yield "wrong-sign", direct - mean - var, "what you get if the two routes are added with the wrong sign"
    yield ("gamma-forgotten", _engine(g, x, np.ones_like(gamma), eps), "right for gamma = 1. What arrives at the "
           "normalised values is not g")
    yield ("x-for-xhat", direct + mean + var * spread**2, "what you get with x - mean for xhat in the route through "
           "the variance")
    yield ("x-for-xhat", direct + mean + var * spread, "what you get if one of the two xhat in the route through the "
           "variance is x - mean")
    yield ("not-divided", right * spread, "not divided by the standard deviation: every route passes that division")
    yield ("eps-forgotten", _engine(g, x, gamma, 0.0), "right for eps = 0. eps stands below the root, in forward and "
           "in backward")
    yield ("bessel-in-the-batch", _engine(g, x, gamma, eps, bessel=True), "what you get with the variance divided by "
           "M - 1. Training normalises by the biased variance; M - 1 is for the running one")
    for dims in ((0,), (2, 3), (1,)):
        yield ("wrong-axes", _engine(g, x, gamma, eps, dims=dims), f"what you get with statistics over axes {dims}. A "
               "channel's values are those of all images and all positions")
    yield ("wrong-axes", _engine(g, x, gamma, eps, through=(0,)), "what you get with the means over axis 0 only. Each "
           "value moved the statistics of its whole channel")


# --- running_update ---------------------------------------------------------------------------------------------------


def running_update(student: Callable[[Array, Array, Array, float], tuple[Array, Array]]) -> None:
    """Check running_update(running_mean, running_var, x, momentum). Raises Misconception for what is wrong with it."""
    rng = np.random.default_rng([seed(), 6])
    cases = 0
    for shape in SHAPES:
        for momentum in (0.1, 0.25, 1.0):
            x = rng.uniform(-2, 2, shape[1])[:, None, None] + rng.uniform(0.5, 2) * rng.standard_normal(shape)
            _running(student, rng.standard_normal(shape[1]), rng.uniform(0.5, 2, shape[1]), x, momentum)
            cases += 1
    print(f"running_update: mean and variance right in {cases} cases, and nothing changed in place")


def _running(student: Callable, mean: Array, var: Array, x: Array, momentum: float) -> None:
    mine = [a.copy() for a in (mean, var, x)]
    got = student(*mine, momentum)
    if not isinstance(got, (tuple, list)) or len(got) != 2 or any(part is None for part in got):
        raise Misconception("returns-something-else", "expected two arrays, the new running mean and the new running "
                            f"variance; got {type(got).__name__}")
    if not all(np.array_equal(a, b) for a, b in zip(mine, (mean, var, x), strict=True)):
        raise Misconception("changes-its-input", "running_mean, running_var or x is not what it was before the call. "
                            "Return new arrays.")
    for name, part in zip(("mean", "variance"), got, strict=True):
        if np.shape(part) != mean.shape:
            raise Misconception("wrong-shape", f"x of shape {x.shape}: the running {name} has shape {np.shape(part)}, "
                                f"expected {mean.shape}, one number a channel.")
    want = mean.copy(), var.copy()
    ops.batch_norm(Tensor(x), *want, training=True, momentum=momentum)
    count, old = x.size // x.shape[1], 1 - momentum
    batch_mean, biased = x.mean(CHANNELS), x.var(CHANNELS)
    unbiased = biased * count / (count - 1)
    where = f"x of shape {x.shape}, momentum = {momentum}"
    reversed_ = ("momentum-reversed", "what you get if momentum is the share of the old value. Here, as in PyTorch, "
                 "it is the share of the new batch")
    past = ("forgets-the-past", "the batch's own. The running one keeps a share of what it was")
    _gradient("the running mean", np.asarray(got[0]), want[0], where, (
        (past[0], batch_mean, past[1]),
        (reversed_[0], momentum * mean + old * batch_mean, reversed_[1]),
        ("adds-without-forgetting", mean + momentum * batch_mean, "the old value plus a share of the batch's: the two "
         "shares do not make 1")), 1e-9)
    _gradient("the running variance", np.asarray(got[1]), want[1], where, (
        (past[0], unbiased, past[1]),
        (reversed_[0], momentum * var + old * unbiased, reversed_[1]),
        ("biased", old * var + momentum * biased, f"what you get with the biased variance, divided by M = {count}. The "
         "running one is an estimate for images to come: M - 1"),
        ("counts-images", old * var + momentum * biased * x.shape[0] / max(x.shape[0] - 1, 1), "what you get with "
         f"Bessel's correction for N = {x.shape[0]} images. A channel has M = N H W = {count} values"),
        ("bessel-inverted", old * var + momentum * biased * (count - 1) / count, "what you get with (M - 1) / M for "
         "M / (M - 1). NumPy's var divides by M; the estimate must become larger"),
        ("corrects-twice", old * var * count / (count - 1) + momentum * unbiased, "what you get if the old running "
         "variance is corrected along with the batch's. It was, when it came in"),
        ("deviation-for-variance", old * var + momentum * np.sqrt(unbiased), "a share of the batch's standard "
         "deviation. It is the variance that is kept"),
        ("around-the-running-mean", old * var + momentum * _around(x, np.asarray(got[0])) * count / (count - 1),
         "what you get with the variance around the new running mean. A batch's is around its own mean")), 1e-9)


def _around(x: Array, centre: Array) -> Array:
    return ((x - centre[:, None, None]) ** 2).mean(CHANNELS)


def _show(a: Array) -> str:
    return ", ".join(f"{v:.4g}" for v in np.ravel(a)[:3])
