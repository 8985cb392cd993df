"""How much memory training takes: the peak of a fresh process for each side, which does a few steps and nothing else.

What one process has ever used cannot be given back, so each side needs one of its own; and one that measures PyTorch
must not hold Numba too. So the child's package `tinyres` is a bare folder whose __init__ never runs, and the files that
PyTorch's side needs (this one, bench_torch, twins, workload) import nothing of the engine.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyres.analysis.workload import Workload

STEPS = 3  # optimizers allocate in the first, and the second may overlap with what is left of it
SECONDS = 600
CHILD = """
import json, sys, types
package = types.ModuleType("tinyres")
package.__path__ = [{folder!r}]
if {bare}:
    sys.modules["tinyres"] = package
else:
    sys.path.insert(0, {above!r})
from tinyres.analysis import bench_memory
bench_memory.child(json.loads({request!r}))
"""


def peak_memory(work: Workload, side: str, threads: int, kernels: str = "fast", seconds: float = SECONDS
                ) -> dict[str, int | None]:
    """Bytes that a new process of `side` ("ours" or one of PyTorch's) used at most: `peak`; `start`: after its imports.

    Our kernels must have run once before, so that the process loads them and does not compile. None where the system
    does not tell. Raises RuntimeError, with its last line of error, if the process fails, or takes longer than allowed.
    """
    code = child_code(work, side, threads, kernels)
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"bench: the process for {side} took longer than {seconds:g} seconds") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"bench: the process for {side} failed (status {done.returncode}): {last}")
    found: dict[str, int | None] = json.loads(done.stdout.splitlines()[-1])
    return found


def child_code(work: Workload, side: str, threads: int, kernels: str) -> str:
    """The Python program of the new process."""
    request = json.dumps({"work": asdict(work), "side": side, "threads": threads, "kernels": kernels})
    folder = Path(__file__).parents[1]
    return CHILD.format(folder=str(folder), above=str(folder.parent), bare=side != "ours", request=request)


def child(request: dict[str, Any]) -> None:
    """What the new process does: import, note its memory, do the steps, print both numbers as JSON."""
    work, side = Workload(**request["work"]), request["side"]
    prepare = _prepare_ours(request["kernels"]) if side == "ours" else _prepare_torch(request["threads"])
    start = peak_so_far()
    step = prepare(work, side)
    for _ in range(STEPS):
        step()
    print(json.dumps({"start": start, "peak": peak_so_far()}))


def _prepare_ours(kernels: str) -> Callable[[Workload, str], Callable[[], float]]:
    import numba  # noqa: F401  (the kernels import it when the first of them runs)

    from tinyres.analysis import bench_step, timing
    from tinyres.kernels import use_kernels

    use_kernels(kernels)

    def prepare(work: Workload, side: str) -> Callable[[], float]:
        step = bench_step.training_step(work, work.network())

        def pinned_step() -> float:
            with timing.pinned():
                return step()

        return pinned_step

    return prepare


def _prepare_torch(threads: int) -> Callable[[Workload, str], Callable[[], float]]:
    from tinyres.analysis import bench_torch, twins

    twins.pytorch().set_num_threads(threads)
    return bench_torch.training_step


def peak_so_far() -> int | None:
    """The most bytes of memory that this process has used; None where the system does not tell.

    Linux hands what getrusage() tells on from the parent to a new program; the line VmHWM is the program's own.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
