"""Each CUDA kernel alone, on the shapes of ResNet-20: how much of the GPU it uses.

What the kernels are run with is in bench_gpu_cases. Each call of a host function there is timed as a whole, and then
every launch that it made, over and over with the same arrays, behind something long in the queue: so the processor's
time for a launch is not in it. GB/s are of the bytes that must be moved: of a launch each of its arrays once, of a
whole call its inputs and outputs. They are compared with a copy of as many bytes, TFLOP/s with cuBLAS's product in the
same type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tinyres.analysis import bench_gpu_card as card
from tinyres.analysis import bench_gpu_limits as limits
from tinyres.analysis import timing
from tinyres.analysis.bench_gpu_cases import Case, cases
from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.launches import Launch, watched
from tinyres.files import PathLike
from tinyres.ops.create import gpu_library, move

HOLD = 4e-3            # seconds of something long in the queue
LEAST = 2e-4           # seconds that a timed block lasts at least, if that takes no more than so many runs:
MOST_LAUNCHES = 200    # the processor hands these over while the queue is held
MOST_CALLS = 10        # of a host function, which takes far longer than a launch


def measure(batch: int = 128, rounds: int = 9, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Time all cases in float32 and float64; returns what JSON can hold.

    rows: case (in words), dtype, kernel (the instance; "" for the whole call), launches (of it in one call), us, min_us
    and max_us (of one launch, or call), bytes, gbs, share_of_copy, and of what multiplies matrices flops, tflops,
    share_of_product. limits: of bench_gpu_limits. left_out: case -> why it could not be run.

    Raises RuntimeError where CuPy or a GPU is missing.
    """
    cupy = gpu_library()
    machine = {**timing.machine(), "gpu": card.facts(cupy)}
    tell("measuring what the GPU could do")
    could = limits.measure(cupy)
    clock = card.CudaClock(cupy, limits.ahead(cupy, could, HOLD))
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for dtype in ("float32", "float64"):
        tell(f"the kernels in {dtype}")
        for case in cases(lambda array: move(array, "cuda"), dtype, batch):
            try:
                of_case = _measured(case, clock, rounds, dtype, could)
                rows += [{"case": case.words, "dtype": dtype, **row} for row in of_case]
            except Exception as error:  # of CuPy or the driver: out of memory, a kernel that was not compiled
                left_out[f"{case.words}, {dtype}"] = f"{type(error).__name__}: {error}"[:300]
    return {"device": "cuda", "batch": batch, "rounds": rounds, "machine": machine, "quiet": machine["quiet"],
            "limits": could, "rows": rows, "left_out": left_out}


def _measured(case: Case, clock: timing.Clock, rounds: int, dtype: str, could: Mapping[str, Any]
              ) -> list[dict[str, Any]]:
    """The rows of a case: the whole, then each instance that it launched."""
    seen: list[Launch] = []
    case.run()
    with watched(seen.append):
        case.run()
    first = {launch.name: launch for launch in reversed(seen)}
    runs: dict[str, Callable[[], object]] = {"": case.run} | {name: one.again for name, one in sorted(first.items())}
    counts = {name: _count(clock, run, MOST_LAUNCHES if name else MOST_CALLS) for name, run in runs.items()}
    taken = timing.alternate({name: limits.repeated(run, counts[name]) for name, run in runs.items()}, rounds, 1,
                             clock=clock)
    rows = []
    for name, times in taken.items():
        seconds = timing.Times([value / counts[name] for value in times.seconds])
        alone = len(seen) == 1
        moved = case.bytes if not name or alone else first[name].bytes
        flops = case.flops if not name or alone or name.startswith("matmul") else 0.0
        rows.append({"kernel": name, "launches": sum(one.name == name for one in seen) if name else 1,
                     **_speeds(seconds, moved, flops, dtype, could)})
    return rows


def _count(clock: timing.Clock, run: Callable[[], object], most: int) -> int:
    run()
    return min(most, max(1, round(LEAST / max(clock.seconds(run), 1e-7))))


def _speeds(times: timing.Times, moved: float, flops: float, dtype: str, could: Mapping[str, Any]) -> dict[str, Any]:
    """Times, and what they mean beside the limits."""
    gbs, product = moved / times.median / 1e9, could["tflops"].get(dtype)
    tflops = flops / times.median / 1e12 if flops else None
    return {"us": 1e6 * times.median, "min_us": 1e6 * times.least, "max_us": 1e6 * times.most, "bytes": moved,
            "gbs": gbs, "share_of_copy": gbs / limits.speed_of_copy(could, moved), "flops": flops or None,
            "tflops": tflops, "share_of_product": tflops / product if tflops and product else None}


# --- for people -------------------------------------------------------------------------------------------------------

COLUMNS = (("case", "left"), ("dtype", "left"), ("kernel", "left"), ("launches", "right"), ("us", "right"),
           ("min", "right"), ("max", "right"), ("GB/s", "right"), ("of a copy", "right"), ("TFLOP/s", "right"),
           ("of cuBLAS", "right"))


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table that COLUMNS head."""
    def text(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [[row["case"], row["dtype"], row["kernel"] or "whole", str(row["launches"]), f"{row['us']:.1f}",
             f"{row['min_us']:.1f}", f"{row['max_us']:.1f}", f"{row['gbs']:.0f}", f"{row['share_of_copy']:.0%}",
             text(row["tflops"], ".3g"), text(row["share_of_product"], ".0%")] for row in found["rows"]]


def summary(found: Mapping[str, Any]) -> str:
    """The limits measured, and what could not be run."""
    return "\n".join([limits.in_words(found["limits"]),
                      *(f"{name} was left out: {why}" for name, why in found["left_out"].items())])


def draw(found: Mapping[str, Any], path: PathLike) -> None:
    """Write a PNG: a bar for each launch in float32, as a share of what the GPU could do."""
    chosen = [row for row in found["rows"] if row["kernel"] and row["dtype"] == "float32"][::-1]
    figure = new_figure(10, 1 + 0.2 * len(chosen))
    axes = figure.subplots()
    share = [row["share_of_product"] or row["share_of_copy"] for row in chosen]
    colors = ["tab:orange" if row["share_of_product"] else "tab:blue" for row in chosen]
    axes.barh(range(len(chosen)), share, color=colors)
    axes.set_yticks(range(len(chosen)), [f"{row['kernel']}: {row['case']}" for row in chosen], fontsize=7)
    axes.axvline(1, color="black")
    axes.set_xlabel("share of a copy of as many bytes (blue), of cuBLAS's matrix product (orange)")
    axes.grid(axis="x", alpha=0.3)
    write_png(figure, path)
