"""Inference on a GPU in eval mode, ours and PyTorch's: see bench_infer, which does it on the processor.

Ours runs with the current kernel set as trained, with each batch norm folded into the convolution in front of it, and
with the other kernel sets. No side waits for its logits, so that of small batches the time is what the processor takes
to hand over the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tinyres import kernels, nn
from tinyres.analysis import bench_gpu_card as card
from tinyres.analysis import bench_gpu_limits as limits
from tinyres.analysis import bench_gpu_torch as theirs
from tinyres.analysis import bench_infer, bench_step, timing
from tinyres.analysis.bench_gpu_step import NAMES as STEP_NAMES
from tinyres.analysis.bench_gpu_step import SETS
from tinyres.analysis.workload import Workload
from tinyres.ops.create import gpu_library, move
from tinyres.state import no_grad
from tinyres.tensor import Tensor

WARMUP = 3
LEAD = 1
BLOCK = 0.01  # seconds that a block lasts at least, on the fastest side
MOST_CALLS = 50
NAMES = STEP_NAMES | {"folded": "tinyres, batch norm folded"}

# What is found has the keys of bench_infer, so what is said of it is the same.
COLUMNS, heading, rows, draw = bench_infer.COLUMNS, bench_infer.heading, bench_infer.rows, bench_infer.draw
summary = bench_infer.summary


def measure(work: Workload, batches: Sequence[int], rounds: int, against_torch: bool = False,
            tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Time the network of `work` with batches of each size; returns what JSON can hold, with bench_infer's keys.

    Raises RuntimeError where CuPy, a GPU, or PyTorch's GPU is missing; ModuleNotFoundError without PyTorch.
    """
    cupy = gpu_library()
    torch = theirs.gpu_pytorch() if against_torch else None
    with timing.pinned(torch):
        machine = {**timing.machine(), "gpu": card.facts(cupy)}
        model = work.network().to("cuda")
        others = replace(work, batch=max(2, *batches), seed=work.seed + 1).data()[0]
        limits.repeated(_inference(model.train(), move(others, "cuda")), bench_infer.SETTLE)()
        model.eval()
        found = []
        for batch in batches:
            tell(f"batch {batch}: {rounds} rounds")
            found.append(_measure_batch(cupy, replace(work, batch=batch), model, rounds, against_torch))
    return {"model": work.model, **work.options, "device": "cuda", "size": work.size, "rounds": rounds,
            "kernels": kernels.current(), "words": f"{work.words().partition(', batch')[0]}, on the GPU",
            "machine": machine, "quiet": machine["quiet"], "names": NAMES, "batches": found}


def _inference(model: Any, x: Any) -> Callable[[], Any]:
    def infer() -> Any:
        with no_grad():
            return model(Tensor(x)).data

    return infer


def _measure_batch(cupy: Any, work: Workload, model: Any, rounds: int, against_torch: bool) -> dict[str, Any]:
    x, current = move(work.data()[0], "cuda"), kernels.current()
    runs: dict[str, tuple[Callable[[], Any], Callable[[], AbstractContextManager[Any]]]] = {}
    for name in ("ours", "folded", *(name for name in SETS if name != current)):
        network = nn.fold_batch_norm(model, x[:1]) if name == "folded" else model
        chosen = name if name in SETS else current
        runs[name] = _inference(network, x), partial(kernels.use_kernels, chosen)
    if against_torch:
        weights = model.state_dict()
        for name, side in theirs.SIDES.items():
            runs[name] = theirs.inference(work, name, weights), partial(theirs.precision, side)

    def block(name: str, count: int) -> Callable[[], None]:
        run, within = runs[name]

        def do() -> None:
            with within():
                limits.repeated(run, count)()

        return do

    clock = card.CudaClock(cupy)
    logits = {name: _host(run, within) for name, (run, within) in runs.items()}
    alone = timing.alternate({name: block(name, 1) for name in runs}, 1, WARMUP, clock=clock)
    calls = min(MOST_CALLS, max(1, round(BLOCK / min(times.least for times in alone.values()))))
    taken = timing.alternate({name: block(name, calls) for name in runs}, rounds, 0, LEAD, clock)
    times = {name: timing.Times([seconds / calls for seconds in t.seconds]) for name, t in taken.items()}
    sides = {name: {**t.as_dict(), "images_per_second": work.batch / t.median,
                    "difference": _apart(logits[name], logits["ours"])} for name, t in times.items()}
    return {"batch": work.batch, "names": NAMES, "calls_a_round": calls, "sides": sides,
            "unsteady": timing.unsteady(times), **bench_step.ratios(times),
            **bench_step.ratios(times, "folded", "ratio_folded"),
            "folded_difference": sides["folded"]["difference"],
            "logits_difference": sides["eager"]["difference"] if against_torch else None,
            "logits_size": float(np.abs(logits["ours"]).max())}


def _host(run: Callable[[], Any], within: Callable[[], AbstractContextManager[Any]]) -> np.ndarray:
    """The logits, on the host, whichever library has them."""
    with within():
        found = run()
    return np.asarray(found.get() if hasattr(found, "get") else found.float().cpu().numpy())


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())

