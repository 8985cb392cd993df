"""A training step op by op: how long each kernel takes, how many bytes it moves, and how long it would take at best.

The step is that of `tinyres train`: a batch cut out, augmented and normalised, forward, loss, backward, a look for NaN
in the gradients, optimizer. A first step, which is not timed, tells what work each call of a kernel is; the timed ones
only read the clock. Beside each op stands its roof, the least time that this machine's peak and bandwidth allow
(bench_limits.py):

    roof = max(products / peak, bytes / bandwidth)       products: what the algorithm must multiply and add

What is left of the step outside kernels is NumPy, Python and the engine, listed by the part of the step. The rows add
up to the whole step, as all are means over the same steps: the faster half, as a busy machine only ever adds time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyres import kernels, ops, optim
from tinyres.analysis import bench_limits, timing
from tinyres.analysis.bench_torch import SGD
from tinyres.analysis.blas import speed
from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.kernel_calls import Call, Work, watched
from tinyres.analysis.kernel_calls import work as work_of
from tinyres.analysis.workload import Workload
from tinyres.data import Dataset, Loader, augment
from tinyres.files import PathLike
from tinyres.finite import is_finite
from tinyres.tensor import Tensor

PARTS = ("data", "forward", "loss", "backward", "look for NaN", "optimizer")
@dataclass
class _Step:
    """Seconds of one step: of each part, and of each kernel call in turn."""

    parts: dict[str, float] = field(default_factory=dict)
    calls: list[tuple[str, float]] = field(default_factory=list)  # the part it was made in, its seconds

    @property
    def whole(self) -> float:
        return sum(self.parts.values())


def measure(work: Workload, rounds: int = 10) -> dict[str, Any]:
    """Profile `rounds` training steps of a network on random images, by the present kernel set; returns what JSON can
    hold.

    Keys: machine, words (what was run), rounds, kernels, peak_gflops, matrix_gflops (NumPy's product), copy_gbs,
    step_ms, outside_kernels (share of the step), rows: op, calls, ms, share (of the step), megabytes, gbs, gflop,
    gflops, roof_ms, share_of_roof, largest first; all from megabytes on are None outside kernels.

    Raises ValueError for less than one round.
    """
    if rounds < 1:
        raise ValueError(f"profile: rounds must be at least 1, got {rounds}: one step is one round")
    step = training_step(work)
    with timing.pinned():
        machine = timing.machine()
        before = _limits()
        works = count_work(step)
        steps = [_timed(step) for _ in range(rounds)]
        peak, copy, product = map(max, before, _limits())
    if any(len(one.calls) != len(works) for one in steps):
        raise RuntimeError("profile: the steps made different numbers of kernel calls, so they cannot be compared: "
                           "profile a network whose steps are alike")
    faster = sorted(steps, key=lambda one: one.whole)[: (rounds + 1) // 2]
    whole = float(np.mean([one.whole for one in faster]))
    found = [*_kernel_rows(works, faster, whole, peak, copy), *_other_rows(faster, whole)]
    return {"machine": machine, "words": work.words(), "rounds": rounds, "kernels": kernels.current(),
            "peak_gflops": peak / 1e9, "matrix_gflops": product / 1e9, "copy_gbs": copy / 1e9, "step_ms": 1e3 * whole,
            "outside_kernels": sum(row["share"] for row in found if row["megabytes"] is None),
            "rows": sorted(found, key=lambda row: -row["ms"])}


# ---- one step ----


def training_step(work: Workload) -> Callable[[], Iterator[str]]:
    """A function that goes through one training step, and says after each part which one it was."""
    model, classes = work.network(), work.options["num_classes"]
    optimizer = optim.SGD(model.parameters(), **SGD)
    rng = np.random.default_rng(work.seed)
    images = rng.integers(0, 256, (work.batch, work.size, work.size, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
    data = Dataset(images, rng.integers(0, classes, work.batch), [str(number) for number in range(classes)])
    loader = Loader(data, work.batch, shuffle=True, augment=augment.standard("cifar10"))

    def step() -> Iterator[str]:
        x, y = next(loader.epoch(0))
        yield "data"
        optimizer.zero_grad()
        logits = model(Tensor(x))
        yield "forward"
        loss = ops.cross_entropy(logits, y)
        loss.item()
        yield "loss"
        loss.backward()
        yield "backward"
        all(is_finite(p.grad.data) for p in model.parameters())
        yield "look for NaN"
        optimizer.step()
        yield "optimizer"

    return step


def count_work(step: Callable[[], Iterator[str]]) -> list[tuple[str, Work]]:
    """The name and the work of each kernel call of a step, in order; a step before it compiles the kernels."""
    works: list[tuple[str, Work]] = []

    def count(call: Call) -> None:
        works.append((call.name, work_of(call)))

    for _ in step():
        pass
    with watched(count):
        for _ in step():
            pass
    return works


def _timed(step: Callable[[], Iterator[str]]) -> _Step:
    found, calls = _Step(), []
    with watched(lambda call: calls.append(call.seconds)):
        began = time.perf_counter()
        for part in step():
            ended = time.perf_counter()
            found.parts[part] = ended - began
            found.calls += [(part, seconds) for seconds in calls]
            calls.clear()
            began = time.perf_counter()
    return found


def _limits() -> tuple[float, float, float]:
    """Operations a second of multiply-adds, bytes a second of a copy, operations a second of NumPy's matrix product."""
    multiply_adds, flops = bench_limits.multiply_adds()
    copy, moved = bench_limits.copy(bench_limits.MEMORY_BYTES)
    times = timing.alternate({"peak": multiply_adds, "copy": copy}, rounds=9)
    return flops / times["peak"].least, moved / times["copy"].least, speed(timing.ours_threads())


# ---- the rows ----


def _kernel_rows(works: list[tuple[str, Work]], steps: list[_Step], whole: float, peak: float,
                 bandwidth: float) -> list[dict[str, Any]]:
    """One row for each kernel, and where there is a choice for each algorithm."""
    groups: dict[str, list[int]] = {}
    for number, (name, one) in enumerate(works):
        groups.setdefault(f"{name} ({one.kernel})" if one.kernel else name, []).append(number)
    found = []
    for op, numbers in groups.items():
        seconds = float(np.mean([sum(step.calls[i][1] for i in numbers) for step in steps]))
        moved, flops = (sum(getattr(works[i][1], what) for i in numbers) for what in ("bytes", "flops"))
        roof = sum(max(works[i][1].products / peak, works[i][1].bytes / bandwidth) for i in numbers)
        found.append({"op": op, "calls": len(numbers), "ms": 1e3 * seconds, "share": seconds / whole,
                     "megabytes": moved / 1e6, "gbs": moved / seconds / 1e9, "gflop": flops / 1e9,
                     "gflops": flops / seconds / 1e9, "roof_ms": 1e3 * roof, "share_of_roof": roof / seconds})
    return found


def _other_rows(steps: list[_Step], whole: float) -> list[dict[str, Any]]:
    """What is left of each part of the step when its kernels are taken off."""
    nothing = dict.fromkeys(("megabytes", "gbs", "gflop", "gflops", "roof_ms", "share_of_roof"))
    found = []
    for part in PARTS:
        outside = float(np.mean([step.parts[part] - sum(seconds for where, seconds in step.calls if where == part)
                                 for step in steps]))
        found.append({"op": f"{part}, outside kernels", "calls": None, "ms": 1e3 * outside, "share": outside / whole,
                     **nothing})
    return found


# ---- for people ----


COLUMNS = (("op", "left"), ("calls", "right"), ("ms", "right"), ("of the step", "right"), ("MB", "right"),
           ("GB/s", "right"), ("GFLOP", "right"), ("GFLOP/s", "right"), ("roof, ms", "right"), ("of the roof", "right"))


def rows(found: dict[str, Any]) -> list[list[str]]:
    """The cells of the table that COLUMNS head; the last row is the whole step."""

    def text(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    cells = [[row["op"], text(row["calls"], "d"), text(row["ms"], ".2f"), text(row["share"], ".1%"),
              text(row["megabytes"], ".1f"), text(row["gbs"], ".1f"), text(row["gflop"] or None, ".2f"),
              text(row["gflops"] or None, ".0f"), text(row["roof_ms"], ".2f"), text(row["share_of_roof"], ".0%")]
             for row in found["rows"]]
    own = [row for row in found["rows"] if row["megabytes"] is not None]
    megabytes, gflop, roof = (sum(row[what] for row in own) for what in ("megabytes", "gflop", "roof_ms"))
    step = found["step_ms"]
    return [*cells, ["the whole step", str(sum(row["calls"] for row in own)), f"{step:.2f}", "100.0%",
                     f"{megabytes:.1f}", f"{megabytes / step:.1f}", f"{gflop:.2f}", f"{gflop / step * 1e3:.0f}",
                     f"{roof:.2f}", f"{roof / step:.0%}"]]


def summary(found: dict[str, Any]) -> str:
    """What the table does not say."""
    return (f"{found['step_ms']:.1f} ms, {found['outside_kernels']:.1%} of it outside kernels. Peak of multiply-adds "
            f"{found['peak_gflops']:.0f} GFLOP/s (NumPy's matrix product {found['matrix_gflops']:.0f}), copy "
            f"{found['copy_gbs']:.1f} GB/s.")


def draw(found: dict[str, Any], path: PathLike) -> None:
    """Draw a PNG: for each op its milliseconds, and on them the roof, below which they cannot go."""
    own = found["rows"][::-1]
    figure = new_figure(9, 1.6 + 0.28 * len(own))
    axes = figure.subplots()
    places = range(len(own))
    colors = ["tab:blue" if row["megabytes"] is not None else "tab:gray" for row in own]
    axes.barh(places, [row["ms"] for row in own], color=colors, alpha=0.55)
    axes.barh(places, [row["roof_ms"] or 0 for row in own], height=0.35, color="black")
    axes.set_yticks(places, [row["op"] for row in own], fontsize=8)
    axes.set_xlabel("milliseconds in a step; black: the least that peak and bandwidth allow; grey: outside kernels")
    axes.grid(alpha=0.3, axis="x")
    axes.set_title(f"A training step: {found['words']}\n{summary(found)}", fontsize=9, parse_math=False)
    write_png(figure, path)
