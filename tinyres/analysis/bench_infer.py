"""Inference in eval mode, ours and PyTorch's: what it costs to classify one image, or a batch of them.

Ours runs twice: as trained, and with each batch norm folded into the convolution in front of it, which changes the
logits by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tinyres import kernels, nn
from tinyres.analysis import bench_step, bench_torch, timing
from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.twins import pytorch
from tinyres.analysis.workload import Workload
from tinyres.files import PathLike
from tinyres.state import no_grad
from tinyres.tensor import Tensor

WARMUP = 2
LEAD = 1  # as in bench_step
SETTLE = 5  # batches in training mode, so that the running statistics are of these images
BLOCK = 0.05  # seconds: a run shorter than that is repeated, as a clock and a sleeping core tell little in less


def inference(model: Any, x: np.ndarray) -> Callable[[], np.ndarray]:
    """A function that returns the logits (N, classes) of the batch."""
    def infer() -> np.ndarray:
        with no_grad():
            return np.asarray(model(Tensor(x)).numpy())

    return infer


def measure(work: Workload, batches: Sequence[int], rounds: int, against_torch: bool = False,
            tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Time the network of `work` with batches of each size; returns what `rows` and JSON show.

    batches: for each its size; sides (ours, folded, eager, channels_last) with times in ms and images a second; and the
    greatest difference of logits, absolute: logits_difference of ours to eager's, folded_difference of folded to ours,
    logits_size: the greatest logit. Against PyTorch also ratio_NAME and ratio_folded_NAME, as bench_step.ratios.

    Raises ModuleNotFoundError without PyTorch if that is asked for.
    """
    torch = pytorch() if against_torch else None
    with timing.pinned(torch):
        machine = timing.machine()
        model = work.network()
        settled = inference(model.train(), replace(work, batch=max(batches), seed=work.seed + 1).data()[0])
        for _ in range(SETTLE):
            settled()
        model.eval()
        found = []
        for batch in batches:
            tell(f"batch {batch}: {rounds} rounds")
            found.append(_measure_batch(replace(work, batch=batch), model, rounds, against_torch))
    return {"model": work.model, **work.options, "size": work.size, "rounds": rounds, "kernels": kernels.current(),
            "words": replace(work, batch=1).words().partition(", batch")[0], "machine": machine,
            "quiet": machine["quiet"], "batches": found}


def _measure_batch(work: Workload, model: Any, rounds: int, against_torch: bool) -> dict[str, Any]:
    x = work.data()[0]
    runs = {"ours": inference(model, x), "folded": inference(nn.fold_batch_norm(model, x[:1]), x)}
    if against_torch:
        weights = model.state_dict()
        runs |= {name: bench_torch.inference(work, name, weights) for name in bench_torch.LAYOUTS}
    logits = {name: run() for name, run in runs.items()}
    alone = timing.alternate({"ours": runs["ours"]}, 2)["ours"].least
    calls = max(1, round(BLOCK / alone))
    taken = timing.alternate({name: _repeated(run, calls) for name, run in runs.items()}, rounds, WARMUP,
                             LEAD)
    times = {name: timing.Times([seconds / calls for seconds in t.seconds]) for name, t in taken.items()}
    sides = {name: {**t.as_dict(), "images_per_second": work.batch / t.median} for name, t in times.items()}
    return {"batch": work.batch, "calls_a_round": calls, "sides": sides, "unsteady": timing.unsteady(times),
            **bench_step.ratios(times), **bench_step.ratios(times, "folded", "ratio_folded"),
            "folded_difference": _apart(logits["folded"], logits["ours"]),
            "logits_difference": _apart(logits["ours"], logits["eager"]) if against_torch else None,
            "logits_size": float(np.abs(logits["ours"]).max())}


def _repeated(run: Callable[[], object], calls: int) -> Callable[[], None]:
    def block() -> None:
        for _ in range(calls):
            run()

    return block


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


# --- for people -------------------------------------------------------------------------------------------------------

COLUMNS = (("batch", "right"), *bench_step.TIMES[:5], ("tinyres", "right"), ("folded", "right"), ("by min", "right"))


def heading(found: Mapping[str, Any]) -> str:
    """What was measured."""
    return f"Inference: {found['words']}; {found['rounds']} rounds in turn, kernel set {found['kernels']}"


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table that COLUMNS head: how long ours, and ours folded, take of each of PyTorch's times."""
    return [_row(one, name) for one in found["batches"] for name in one["sides"]]


def _row(one: Mapping[str, Any], name: str) -> list[str]:
    cells = [str(one["batch"]), *bench_step.time_cells(name, one["sides"][name], one, "ratio")[:5]]
    if f"ratio_{name}" not in one:
        return [*cells, "", "", ""]
    plain, folded = f"ratio_{name}", f"ratio_folded_{name}"
    return [*cells, f"{one[plain]:.2f} of it", f"{one[folded]:.2f} of it",
            f"{one[f'{plain}_least']:.2f}, {one[f'{folded}_least']:.2f}"]


def summary(found: Mapping[str, Any]) -> str:
    """How far the logits are apart, and whose times jumped, a line for each batch."""
    lines = []
    for one in found["batches"]:
        other = "" if one["logits_difference"] is None else f", ours from PyTorch's by {one['logits_difference']:.1e}"
        lines.append(f"Batch {one['batch']}: logits up to {one['logits_size']:.3g}; folded ones differ from ours by at "
                     f"most {one['folded_difference']:.1e}{other}.")
        lines += bench_step.unsteady_in_words(one["unsteady"], found)
    return "\n".join(lines)


def draw(found: Mapping[str, Any], path: PathLike) -> None:
    """Write a PNG: boxes as bench_step draws them, a row of the figure for each batch."""
    count = len(found["batches"])
    figure = new_figure(9, 0.6 + count * (1 + 0.5 * len(found["batches"][0]["sides"])))
    for axes, one in zip(figure.subplots(count, squeeze=False)[:, 0], found["batches"], strict=True):
        bench_step.draw_boxes(axes, one["sides"], found)
        axes.set_title(f"batch {one['batch']}", fontsize=10)
    figure.suptitle(bench_step.picture_title(heading(found), found), fontsize=11, parse_math=False)
    write_png(figure, path)
