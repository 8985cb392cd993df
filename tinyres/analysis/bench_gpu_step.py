"""One whole training step on a GPU, with each of our kernel sets, and PyTorch's: see bench_step, which does it on the
processor.

All sides start from the same weights and learn the same batch again and again, and their losses must agree. Images and
labels lie on the GPU before. No side waits for its loss within a step: that would cost the time in which the processor
can run ahead. "as tinyres train" is our side that does, as training calls it: it reads the loss, counts the right
answers and looks for NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tinyres import kernels, ops, optim
from tinyres.analysis import bench_gpu_card as card
from tinyres.analysis import bench_gpu_limits as limits
from tinyres.analysis import bench_gpu_torch as theirs
from tinyres.analysis import bench_step, bench_torch, timing
from tinyres.analysis.workload import Workload
from tinyres.ops.create import gpu_library, move
from tinyres.tensor import Tensor
from tinyres.train import train_step

WARMUP = 3      # steps of each side before anything is measured: they compile, allocate and choose algorithms
MEMORY = 2      # steps whose memory is measured
LEAD = 1        # blocks of a turn that are not timed
BLOCK = 0.03    # seconds that a block of steps lasts at least, on the fastest side
MOST_STEPS = 10  # of a block
SETS = ("fast", "im2col", "reference")
OURS = {"ours": "tinyres", "as_trained": "as tinyres train"} | {name: f"tinyres, {name} kernels" for name in SETS}
NAMES = OURS | {name: side.words for name, side in theirs.ALL.items()}

draw, heading = bench_step.draw, bench_step.heading


def measure(work: Workload, rounds: int, against_torch: bool = False, try_compile: bool = False,
            tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Time steps in turn; returns what `rows` and JSON show, with the keys of bench_step.measure.

    sides: "ours" with the current kernel set, "as_trained" the same by train.train_step, the other kernel sets by their
    names, and PyTorch's of bench_gpu_torch.SIDES, and with try_compile those of COMPILED. Of each: times in ms, images
    a second, the last loss, peak_memory and reserved_memory in bytes. steps_a_round: how many steps a timed block has.
    limits: what bench_gpu_limits found. left_out: name -> why a side is missing: out of memory, say.

    Raises RuntimeError where CuPy, a GPU, or PyTorch's GPU is missing; ModuleNotFoundError without PyTorch.
    """
    cupy = gpu_library()
    names = [*(theirs.SIDES if against_torch else {}), *(theirs.COMPILED if try_compile else {})]
    torch = theirs.gpu_pytorch() if names else None
    with timing.pinned(torch):
        machine = {**timing.machine(), "gpu": card.facts(cupy)}
        tell("measuring what the GPU could do")
        could = limits.measure(cupy)
        weights = {name: value.copy() for name, value in work.network().state_dict().items()}
        sides, left_out = _prepared(cupy, work, weights, names, tell)
        clock = card.CudaClock(cupy)
        alone = timing.alternate({name: partial(side.block, 1) for name, side in sides.items()}, 1, clock=clock)
        calls = min(MOST_STEPS, max(1, round(BLOCK / min(times.least for times in alone.values()))))
        tell(f"{rounds} rounds in turn, of {calls} steps each")
        blocks = {name: partial(side.block, calls) for name, side in sides.items()}
        taken = timing.alternate(blocks, rounds, 0, LEAD, clock)
    times = {name: timing.Times([seconds / calls for seconds in t.seconds]) for name, t in taken.items()}
    found = {name: {**t.as_dict(), "images_per_second": work.batch / t.median, "early_loss": sides[name].early,
                    "loss": sides[name].loss(), "peak_memory": sides[name].memory["peak"],
                    "reserved_memory": sides[name].memory["reserved"]}
             for name, t in times.items()}
    return {"model": work.model, **work.options, "device": "cuda", "batch": work.batch, "size": work.size,
            "rounds": rounds, "steps_a_round": calls, "steps": WARMUP + MEMORY + 2 + calls * rounds * (LEAD + 1),
            "kernels": kernels.current(), "words": f"{work.words()}, on the GPU", "machine": machine,
            "quiet": machine["quiet"], "unsteady": timing.unsteady(times), "names": NAMES, "limits": could,
            "sides": found, **bench_step.ratios(times), **_compared(found), "left_out": left_out}


@dataclass
class Side:
    """block(count) does so many steps; memory: `peak` and `reserved`, in bytes; last: what the last step returned;
    early: the loss of the last step of the warm-up, as long as rounding has not grown."""

    step: Callable[[], Any]
    within: Callable[[], AbstractContextManager[Any]]
    memory: Mapping[str, int | None] = field(default_factory=dict)
    last: Any = None
    early: float | None = None

    def block(self, count: int) -> None:
        with self.within():
            for _ in range(count):
                self.last = self.step()

    def loss(self) -> float | None:
        """The last loss; None where it is not finite, as JSON has no NaN."""
        value = float(self.last)
        return value if math.isfinite(value) else None


def _prepared(cupy: Any, work: Workload, weights: Mapping[str, Any], names: list[str], tell: Callable[[str], None]
              ) -> tuple[dict[str, Side], dict[str, str]]:
    """All sides that work here, warmed up one after the other and their memory measured; name -> why of the others."""
    sides: dict[str, Side] = {}
    left_out: dict[str, str] = {}
    others = [name for name in SETS if name != kernels.current()]
    for name in ["ours", "as_trained", *others, *names]:
        tell(f"preparing {NAMES[name]}")
        prepare = _prepare_theirs if name in theirs.ALL else _prepare_ours
        try:
            side = prepare(cupy, work, weights, name)
            side.early = side.loss()
            sides[name] = side
        except Exception as error:  # out of memory, or what torch.compile raises, of a class of either library
            if name == "ours":
                raise
            left_out[name] = (f"{type(error).__name__}: {error}".splitlines() or [""])[0][:300]
        card.free_memory(cupy)
    return sides, left_out


def _prepare_ours(cupy: Any, work: Workload, weights: Mapping[str, Any], name: str) -> Side:
    chosen = name if name in SETS else kernels.current()
    already = int(cupy.get_default_memory_pool().used_bytes())
    with kernels.use_kernels(chosen):
        side = Side(training_step(work, weights, name == "as_trained"), lambda: kernels.use_kernels(chosen))
    side.block(WARMUP)
    side.memory = card.peak_memory(cupy, lambda: side.block(MEMORY), already)
    return side


def _prepare_theirs(cupy: Any, work: Workload, weights: Mapping[str, Any], name: str) -> Side:
    already, precision = theirs.memory_in_use(), theirs.ALL[name]
    side = Side(theirs.training_step(work, name, weights), lambda: theirs.precision(precision))
    side.block(WARMUP)
    side.memory = theirs.peak_memory(lambda: side.block(MEMORY), already)
    return side


def training_step(work: Workload, weights: Mapping[str, Any], as_trained: bool = False) -> Callable[[], Any]:
    """A function that does one step of our network on the GPU and returns the loss before it: an array there; with
    `as_trained` a number, by train.train_step."""
    model = work.network()
    model.load_state_dict(weights)
    model.to("cuda")
    model.train()
    x, y = (move(array, "cuda") for array in work.data())
    optimizer = optim.SGD(model.parameters(), **bench_torch.SGD)
    if as_trained:
        return lambda: train_step(model, optimizer, x, y)[0]

    def step() -> Any:
        optimizer.zero_grad()
        loss = ops.cross_entropy(model(Tensor(x)), y)
        loss.backward()
        optimizer.step()
        return loss.data

    return step


def _compared(sides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is said of ours beside PyTorch besides times: memory and losses; nothing if there is no PyTorch."""
    if "eager" not in sides:
        return {}

    def apart(one: str, other: str, what: str) -> float | None:
        a, b = sides.get(one, {}).get(what), sides.get(other, {}).get(what)
        return None if a is None or b is None else abs(a - b)

    peaks = [sides[name]["peak_memory"] for name in bench_torch.LAYOUTS if name in sides]
    ours = sides["ours"]["peak_memory"]
    return {"ratio_peak_memory": None if None in peaks else ours / min(peaks),
            "loss_difference": apart("ours", "eager", "loss"),
            "layouts_difference": apart("channels_last", "eager", "loss"),
            "early_loss_difference": apart("ours", "eager", "early_loss"),
            "early_layouts_difference": apart("channels_last", "eager", "early_loss")}


# --- for people -------------------------------------------------------------------------------------------------------

COLUMNS = (*bench_step.TIMES, ("peak MiB", "right"), ("reserved MiB", "right"), ("early loss", "right"),
           ("last loss", "right"))


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table that COLUMNS head."""
    cells = []
    for name, side in found["sides"].items():
        memory = (side["peak_memory"], side["reserved_memory"])
        losses = (side["early_loss"], side["loss"])
        cells.append([*bench_step.time_cells(name, side, found, "ratio"),
                      *("-" if value is None else f"{value / 2**20:.0f}" for value in memory),
                      *("nan" if loss is None else f"{loss:.5f}" for loss in losses)])
    return cells


def summary(found: Mapping[str, Any]) -> str:
    """What the table does not say, a line each: the limits measured, same work, memory, what was left out."""
    lines = [limits.in_words(found["limits"])]
    if found.get("early_loss_difference") is not None:
        layouts = found["early_layouts_difference"]
        beside = "" if layouts is None else f" (PyTorch's two layouts: {layouts:.1e})"
        lines.append(f"Same weights, batch and steps: after {WARMUP + MEMORY} steps the losses of tinyres and of "
                     f"PyTorch's eager differ by {found['early_loss_difference']:.1e}{beside}.")
    if found.get("ratio_peak_memory") is not None:
        lines.append(f"Peak memory: {found['ratio_peak_memory']:.2f} of the smaller of PyTorch's two layouts.")
    lines += [f"{NAMES[name]} was left out: {why}" for name, why in found["left_out"].items()]
    lines += bench_step.unsteady_in_words(found["unsteady"], found)
    return "\n".join(lines)
