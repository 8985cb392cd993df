"""A training step by tinyres' kernel sets and by a network in plain NumPy (naive.py), in turn, from the same weights.

The plain network is what a from-scratch project usually is, so its ratio says what a kernel set is worth; the set
"im2col" says what the same idea costs channels-last, under an engine with fused batch norm. Losses of all sides are
compared over the steps: all do the same work. The convolutions of the plain network and of im2col are calls of BLAS,
which gets as many threads as our kernels have, but for the fast kernels' own step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from tinyres.analysis import bench_torch, naive, timing
from tinyres.analysis.bench_step import training_step
from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.workload import Workload
from tinyres.files import PathLike
from tinyres.kernels import use_kernels

NAMES = {"fast": "tinyres, fast kernels", "im2col": "tinyres, im2col kernels",
         "reference": "tinyres, reference kernels", "naive": "plain NumPy network"}

MODELS = ("resnet8", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110")


def measure(batch: int = 32, rounds: int = 5, model: str = "resnet20", size: int = 32,
            sides: Sequence[str] = tuple(NAMES), tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Time training steps of a resnetN for small images, by each side in turn; returns what JSON can hold.

    sides: some of fast, which all others are compared with, im2col, reference, naive. Keys: machine, words, rounds,
    loss_difference (of any side's last loss from fast's), sides: name -> median_ms, min_ms, max_ms, rounds_ms, loss,
    ratio (of the medians, to fast) and ratio_range (quartiles of the rounds').

    Raises ValueError for a network or a side that is not known.
    """
    if model not in MODELS:
        raise ValueError(f"bench peers: the plain NumPy network is a ResNet for small images, got {model!r}: choose "
                         f"one of {', '.join(MODELS)}")
    if unknown := set(sides) - set(NAMES):
        raise ValueError(f"bench peers: there is no side {', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}")
    work = Workload(model, {"num_classes": 10, "option": "B"}, batch, size)
    losses: dict[str, list[float]] = {side: [] for side in ("fast", *sides)}
    runs = {side: _noting(_step(work, side), losses[side]) for side in losses}
    tell(f"a step of each of {len(runs)} to warm up, then {rounds} rounds")
    with timing.pinned():
        machine = timing.machine()
    times = timing.alternate(runs, rounds)
    found = {side: {**times[side].as_dict(), "loss": losses[side][-1], **_ratio(times[side], times["fast"])}
             for side in runs}
    return {"machine": machine, "words": work.words(), "model": model, "batch": batch, "size": size, "rounds": rounds,
            "loss_difference": max(abs(own[-1] - losses["fast"][-1]) for own in losses.values()), "sides": found}


def _ratio(theirs: timing.Times, ours: timing.Times) -> dict[str, Any]:
    found = timing.ratio(theirs, ours)
    return {"ratio": found["median"], "ratio_range": [found["low"], found["high"]]}


def _noting(run: Callable[[], float], losses: list[float]) -> Callable[[], None]:
    return lambda: losses.append(run())


def _step(work: Workload, side: str) -> Callable[[], float]:
    """A function that does one step and returns the loss before it."""
    if side == "naive":
        step = naive_step(work)

        def run() -> float:
            with blas_threads():
                return step()
    else:
        own = training_step(work, work.network())

        def run() -> float:
            with use_kernels(side), timing.pinned() if side == "fast" else blas_threads():
                return own()

    return run


def blas_threads() -> Any:
    """Context in which BLAS has as many threads as our kernels."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    return threadpool_limits(timing.ours_threads(), user_api="blas")


def naive_step(work: Workload) -> Callable[[], float]:
    """The same for the plain network, with the weights of ours."""
    state = {name: value.data for name, value in work.network().named_parameters()}
    model, owners = naive.network(state)
    optimizer = naive.SGD(owners, **bench_torch.SGD)
    images, labels = work.data()
    x = images.copy(order="C")

    def run() -> float:
        loss, gradient = naive.cross_entropy(model.forward(x), labels)
        model.backward(gradient)
        optimizer.step()
        return loss

    return run


# ---- for people ----

COLUMNS = (("training step by", "left"), ("median ms", "right"), ("min", "right"), ("max", "right"),
           ("takes", "right"), ("range", "right"), ("last loss", "right"))


def rows(found: dict[str, Any]) -> list[list[str]]:
    """The cells of the table that COLUMNS head."""
    return [[NAMES[name], f"{side['median_ms']:.1f}", f"{side['min_ms']:.1f}", f"{side['max_ms']:.1f}",
             f"{side['ratio']:.2f} of fast", f"{side['ratio_range'][0]:.2f} to {side['ratio_range'][1]:.2f}",
             f"{side['loss']:.5f}"] for name, side in found["sides"].items()]


def summary(found: dict[str, Any]) -> str:
    """What the table does not say."""
    return (f"{found['words']}. Same weights, batch and steps: the last losses differ by at most "
            f"{found['loss_difference']:.1e}.")


def draw(found: dict[str, Any], path: PathLike) -> None:
    """Write a PNG: a bar for each side's median, a line from its least to its most, its ratio to the fast kernels."""
    names = list(found["sides"])[::-1]
    figure = new_figure(9, 1.6 + 0.5 * len(names))
    axes = figure.subplots()
    for place, name in enumerate(names):
        side = found["sides"][name]
        axes.barh(place, side["median_ms"], color="tab:blue" if name == "fast" else "tab:orange", height=0.6)
        axes.plot([side["min_ms"], side["max_ms"]], [place, place], color="black")
        axes.annotate(f"{side['median_ms']:.4g} ms, {side['ratio']:.3g} x", (side["max_ms"], place), (6, 0),
                      textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), [NAMES[name] for name in names])
    axes.set_xlim(0, 1.3 * max(side["max_ms"] for side in found["sides"].values()))
    axes.set_xlabel("milliseconds of a training step: bar: median; line: least to most; ratio to the fast kernels")
    axes.grid(axis="x", alpha=0.3)
    figure.suptitle(f"Training steps: {found['words']}", fontsize=11, parse_math=False)
    write_png(figure, path)
