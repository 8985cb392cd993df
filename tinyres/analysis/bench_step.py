"""One whole training step, ours and PyTorch's: forward, cross-entropy, backward, SGD with momentum and weight decay.

Both sides start from the same weights and learn the same batch again and again, so that their losses must agree step by
step: whoever leaves out work is found out. Ours is `train.train_step`, as training calls it; it also counts the right
answers and looks for NaN, which PyTorch is spared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tinyres import kernels, optim
from tinyres.analysis import bench_torch, timing
from tinyres.analysis.bench_memory import peak_memory
from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.twins import pytorch
from tinyres.analysis.workload import Workload
from tinyres.files import PathLike
from tinyres.train import train_step

LEAD = 1  # steps of a turn that are not timed: training does one after the other
WARMUP = 2  # steps: the first compiles, allocates and, with PyTorch, chooses algorithms
COMPILE_SECONDS = 300.0


def training_step(work: Workload, model: Any) -> Callable[[], float]:
    """A function that does one step of our network and returns the loss before it."""
    optimizer, (x, y) = optim.SGD(model.parameters(), **bench_torch.SGD), work.data()
    model.train()
    return lambda: train_step(model, optimizer, x, y)[0]


def measure(work: Workload, rounds: int, against_torch: bool = False, try_compile: bool = False, memory: bool = True,
            tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Time steps in turn; returns what `rows` and JSON show.

    sides: by name (ours, eager, channels_last, compiled) the times in ms, images a second, the loss of the last step
    and the peak memory in bytes. Against PyTorch also ratio_NAME, ours to theirs, its range (quartiles of the rounds'
    own ratios), ratio_peak_memory to the smaller of PyTorch's two layouts, loss_difference: ours from eager's, in the
    last step, and layouts_difference: channels_last's from eager's. left_out: name -> why a side is missing.
    tell: is called with a line for people before each part.

    Raises ModuleNotFoundError without PyTorch if that is asked for.
    """
    torch = pytorch() if against_torch else None
    left_out: dict[str, str] = {}
    with timing.pinned(torch):
        machine = timing.machine()
        names = [*bench_torch.LAYOUTS] if against_torch else []
        if against_torch and try_compile:
            tell(f"trying torch.compile, for at most {COMPILE_SECONDS:g} s")
            left_out = _compile_fails(work)
            names += [] if left_out else ["compiled"]
        model = work.network()
        weights = {name: value.copy() for name, value in model.state_dict().items()}
        runs = {"ours": training_step(work, model)}
        runs |= {name: bench_torch.training_step(work, name, weights) for name in names}
        losses: dict[str, list[float]] = {name: [] for name in runs}
        tell(f"{WARMUP} steps to warm up (the first run on a machine compiles), then {rounds} rounds")
        times = timing.alternate({name: _noting(run, losses[name]) for name, run in runs.items()}, rounds, WARMUP,
                                 LEAD)
        del runs, model, weights
        peaks = _peaks(work, [name for name in times if name != "compiled"], tell) if memory else {}
    sides = {name: {**taken.as_dict(), "images_per_second": work.batch / taken.median,
                    "loss": _finite(losses[name][-1]), "peak_memory": peaks.get(name, {}).get("peak"),
                    "memory_at_start": peaks.get(name, {}).get("start")} for name, taken in times.items()}
    return {"model": work.model, **work.options, "batch": work.batch, "size": work.size, "rounds": rounds,
            "steps": WARMUP + rounds * (LEAD + 1), "kernels": kernels.current(), "words": work.words(),
            "machine": machine, "quiet": machine["quiet"], "unsteady": timing.unsteady(times), "sides": sides,
            **ratios(times), **_compared(sides), "left_out": left_out}


def ratios(times: Mapping[str, timing.Times], ours: str = "ours", prefix: str = "ratio") -> dict[str, Any]:
    """For each NAME of PyTorch's sides prefix_NAME, our median to its; prefix_NAME_range, the quartiles of the rounds'
    own ratios; prefix_NAME_least, of the least times, which a busy machine spoils last."""
    found: dict[str, Any] = {}
    for name in times:
        if name not in bench_torch.OURS:
            value = timing.ratio(times[ours], times[name])
            found[f"{prefix}_{name}"] = value["median"]
            found[f"{prefix}_{name}_range"] = [value["low"], value["high"]]
            found[f"{prefix}_{name}_least"] = value["least"]
    return found


def _noting(run: Callable[[], float], values: list[float]) -> Callable[[], None]:
    return lambda: values.append(run())


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _compile_fails(work: Workload) -> dict[str, str]:
    """{"compiled": why} if torch.compile does not train here in time, else {}; tried where it can be stopped."""
    try:
        peak_memory(work, "compiled", timing.ours_threads(), seconds=COMPILE_SECONDS)
    except RuntimeError as error:
        return {"compiled": str(error).removeprefix("bench: ")}
    return {}


def _peaks(work: Workload, names: Iterable[str], tell: Callable[[str], None]) -> dict[str, dict[str, int | None]]:
    """The memory of each side, in a process of its own."""
    found = {}
    for name in names:
        tell(f"memory of {bench_torch.NAMES[name]}")
        found[name] = peak_memory(work, name, timing.ours_threads(), kernels.current())
    return found


def _compared(sides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is said of ours beside PyTorch besides times: memory and losses; nothing if there is no PyTorch."""
    if "eager" not in sides:
        return {}

    def memory_ratio(above_start: bool) -> float | None:
        taken = {}
        for name in ("ours", *bench_torch.LAYOUTS):
            peak, start = sides[name]["peak_memory"], sides[name]["memory_at_start"]
            if peak is None or start is None:
                return None
            taken[name] = peak - start if above_start else peak
        return float(taken["ours"] / min(taken[name] for name in bench_torch.LAYOUTS))

    def loss_difference(one: str, other: str) -> float | None:
        a, b = sides[one]["loss"], sides[other]["loss"]
        return None if a is None or b is None else abs(a - b)

    return {"ratio_peak_memory": memory_ratio(False), "ratio_memory_above_imports": memory_ratio(True),
            "loss_difference": loss_difference("ours", "eager"),
            "layouts_difference": loss_difference("channels_last", "eager")}


# --- for people -------------------------------------------------------------------------------------------------------

TIMES = (("side", "left"), ("median ms", "right"), ("min", "right"), ("max", "right"), ("images/s", "right"),
         ("tinyres takes", "right"), ("range", "right"), ("by min", "right"))
COLUMNS = (*TIMES, ("peak MiB", "right"), ("imports MiB", "right"), ("last loss", "right"))


def heading(found: Mapping[str, Any]) -> str:
    """What was measured."""
    return f"A training step: {found['words']}; {found['rounds']} rounds in turn, kernel set {found['kernels']}"


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table that COLUMNS head."""
    return [_row(name, side, found) for name, side in found["sides"].items()]


def _row(name: str, side: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    memory = [side["peak_memory"], side["memory_at_start"]]
    return [*time_cells(name, side, found, "ratio"), *("-" if value is None else f"{value / 2**20:.0f}" for value in
            memory), "nan" if side["loss"] is None else f"{side['loss']:.5f}"]


def time_cells(name: str, side: Mapping[str, Any], found: Mapping[str, Any], prefix: str) -> list[str]:
    """The cells below TIMES: a side's times, and how long ours takes beside it, if `found` has such ratios."""
    cells = [side_name(name, found), *(f"{side[key]:.4g}" for key in ("median_ms", "min_ms", "max_ms")),
             f"{side['images_per_second']:,.0f}"]
    if f"{prefix}_{name}" not in found:
        return [*cells, "", "", ""]
    low, high = found[f"{prefix}_{name}_range"]
    return [*cells, f"{found[f'{prefix}_{name}']:.2f} of it", f"{low:.2f} to {high:.2f}",
            f"{found[f'{prefix}_{name}_least']:.2f}"]


def summary(found: Mapping[str, Any]) -> str:
    """What the table does not say, a line each: same work, memory, what was left out."""
    lines = []
    if found.get("loss_difference") is not None:
        lines.append(f"Same weights, batch and steps: after {found['steps']} steps the losses differ by "
                     f"{found['loss_difference']:.1e} (PyTorch's two layouts: {found['layouts_difference']:.1e}).")
    if found.get("ratio_peak_memory") is not None:
        lines.append(f"Peak memory: {found['ratio_peak_memory']:.2f} of the smaller of PyTorch's two layouts; above "
                     f"what the imports take, {found['ratio_memory_above_imports']:.2f}.")
    lines += [f"{side_name(name, found)} was left out: {why}" for name, why in found["left_out"].items()]
    lines += unsteady_in_words(found["unsteady"], found)
    return "\n".join(lines)


def side_name(name: str, found: Mapping[str, Any]) -> str:
    """A side in words: what `found` calls it in "names", or else as the benchmarks of the processor do."""
    return str(found.get("names", bench_torch.NAMES)[name])


def unsteady_in_words(names: Iterable[str], found: Mapping[str, Any]) -> list[str]:
    """A line that says whose times jumped; none if none did."""
    listed = ", ".join(side_name(name, found) for name in names)
    return [f"The times of {listed} jump: most rounds took far longer than the best one, so something else ran. Those "
            "by min are spoilt least; repeat this on a quiet machine."] if listed else []


def draw(found: Mapping[str, Any], path: PathLike) -> None:
    """Write a PNG: a box for each side, of the middle half of its rounds, a line from the least to the most."""
    figure = new_figure(9, 1.6 + 0.55 * len(found["sides"]))
    draw_boxes(figure.subplots(), found["sides"], found)
    figure.suptitle(picture_title(heading(found), found), fontsize=11, parse_math=False)
    write_png(figure, path)


def picture_title(words: str, found: Mapping[str, Any]) -> str:
    """A heading that also says whether the machine was busy: pictures are looked at without their tables."""
    return words + (" (on a busy machine)" if found["quiet"] is False else "")


def draw_boxes(axes: Any, sides: Mapping[str, Mapping[str, Any]], found: Mapping[str, Any]) -> None:
    """A box of the rounds' milliseconds for each side, the first on top, with its median in words."""
    names = list(sides)[::-1]
    for place, name in enumerate(names):
        rounds, median = sides[name]["rounds_ms"], sides[name]["median_ms"]
        low, high = timing.quartiles(rounds)
        axes.hlines(place, min(rounds), max(rounds), color="black", linewidth=1)
        axes.barh(place, high - low, 0.55, low, color="tab:blue" if name in bench_torch.OURS else "tab:orange")
        axes.vlines(median, place - 0.275, place + 0.275, color="black", linewidth=1.5)
        axes.annotate(f"{median:.4g} ms", (max(rounds), place), (6, 0), textcoords="offset points", va="center",
                      fontsize=9)
    axes.set_yticks(range(len(names)), [side_name(name, found) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(0, 1.18 * max(max(side["rounds_ms"]) for side in sides.values()))
    axes.set_xlabel("ms (box: middle half of the rounds, with the median; line: from the least to the most)")
    axes.grid(axis="x", alpha=0.3)
