"""How everything here is timed: in turn, in one process, on so many threads and no more, with the machine told.

Two programs timed one after the other are timed on two machines: the clock frequency, the other processes and the
memory's pages have changed meanwhile. So all runs take turns, round by round, and ratios are formed within a round.
Medians are reported; the least and the most tell how far to trust them.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

QUIET_LOAD = 0.5  # processors that others may keep busy: more, and threads that wait by spinning lose their turns
JUMP = 1.3  # a median so many times the least time is not the run's own


class Clock(Protocol):
    """What alternate() times with: rest() waits until the run before has ended, seconds(run) runs and times it."""

    def rest(self) -> None: ...

    def seconds(self, run: Callable[[], object]) -> float: ...


@dataclass(frozen=True)
class Times:
    """The seconds of each round of one run, in order."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        return min(self.seconds)

    @property
    def most(self) -> float:
        return max(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Median, least and most in milliseconds, and all rounds."""
        return {"median_ms": 1e3 * self.median, "min_ms": 1e3 * self.least, "max_ms": 1e3 * self.most,
                "rounds_ms": [1e3 * seconds for seconds in self.seconds]}


class HostClock:
    """Times a run by the processor's clock, and lets the processor come to rest before it."""

    def rest(self) -> None:
        rest()

    def seconds(self, run: Callable[[], object]) -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began


def alternate(runs: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1, lead: int = 0,
              clock: Clock | None = None) -> dict[str, Times]:
    """Time all runs in turn, `rounds` times after `warmup` turns that do not count; returns the Times by name.

    Every second round goes backwards, so that no run always follows the same other one, and each waits until the one
    before has come to rest. lead: in each turn a run first goes so many times untimed, as what it will do back to back
    it should not begin with an idle processor and another's data in the caches. clock: a HostClock unless given; a GPU
    has one of its own. Raises ValueError for less than one round.
    """
    clock = clock or HostClock()
    if rounds < 1 or warmup < 0 or lead < 0:
        raise ValueError(f"alternate: rounds must be at least 1, warmup and lead 0, got {rounds}, {warmup} and {lead}")
    for _ in range(warmup):
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[::-1] if number % 2 else runs:
            clock.rest()
            for _ in range(lead):
                runs[name]()
            seconds[name].append(clock.seconds(runs[name]))
    return {name: Times(values) for name, values in seconds.items()}


def rest(seconds: float = 0.1) -> None:
    """Wait until this process uses no processor any more, at most so long.

    OpenMP's threads (PyTorch's) look for new work for some 5 milliseconds after the last, on a core that the next run
    needs: behind PyTorch, a step of ours of 12 milliseconds took 25.
    """
    until, idle = time.perf_counter() + seconds, 0
    while idle < 2 and time.perf_counter() < until:
        began, used = time.perf_counter(), time.process_time()
        time.sleep(0.002)
        busy = (time.process_time() - used) / (time.perf_counter() - began)
        idle = idle + 1 if busy < 0.2 else 0


def ratio(ours: Times, theirs: Times) -> dict[str, float]:
    """Ours to theirs: of the medians (`median`), of the least times (`least`); and of the ratios round by round the
    quartiles, `low` and `high`."""
    low, high = quartiles([a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True)])
    return {"median": ours.median / theirs.median, "low": low, "high": high, "least": ours.least / theirs.least}


def quartiles(values: list[float]) -> tuple[float, float]:
    """Between which the middle half of the values lies."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def unsteady(times: Mapping[str, Times]) -> list[str]:
    """The names of the runs whose median is far above their least: something else ran."""
    return [name for name, taken in times.items() if taken.median > JUMP * taken.least]


# --- threads ----------------------------------------------------------------------------------------------------------


def ours_threads() -> int:
    """On how many threads our kernels run, and PyTorch when it is timed beside them."""
    from tinyres.kernels.cpu.threads import count

    return int(count())


@contextlib.contextmanager
def pinned(torch: Any = None) -> Iterator[None]:
    """Inside, BLAS has one thread, as our kernels have threads of their own; and PyTorch, if given, as many as they.

    Only BLAS is limited: without user_api, threadpoolctl would limit OpenMP too, and halve the speed of PyTorch. What
    was set before is set again at the end. Without threadpoolctl, BLAS keeps its threads.
    """
    from tinyres.kernels.cpu.threads import one_blas_thread

    before = torch.get_num_threads() if torch is not None else 0
    with one_blas_thread():
        try:
            if torch is not None:
                torch.set_num_threads(ours_threads())  # after the limit: PyTorch may share its BLAS with NumPy
            yield
        finally:
            if torch is not None:
                torch.set_num_threads(before)


# --- the machine ------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the times were taken on, ready for JSON; call it inside pinned() and before anything is timed.

    cpu, cores (that this process may use), threads, torch_threads (None where PyTorch is not loaded), blas (library,
    version, kernels: the processor they were written for, threads), OPENBLAS_CORETYPE, versions, load (processors busy
    in the last minute; None where the system does not tell) and quiet (load small enough; None where unknown).
    """
    from tinyres.analysis.machine import cpu_name

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")
    return {"cpu": cpu_name(), "cores": cores, "threads": ours_threads(),
            "torch_threads": torch.get_num_threads() if torch is not None else None, "blas": _blas(),
            "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE"), "versions": _versions(),
            "load": load, "quiet": None if load is None else load <= QUIET_LOAD}


def _blas() -> dict[str, Any] | None:
    """NumPy's BLAS; None where threadpoolctl is missing or does not know it."""
    from tinyres.analysis import blas

    try:
        library = blas.loaded()
    except ImportError:
        return None
    if library is None:
        return None
    return {"library": library.get("internal_api"), "version": library.get("version"),
            "kernels": library.get("architecture"), "threads": library.get("num_threads")}


def _versions() -> dict[str, str]:
    """Of Python, and of the packages that compute; PyTorch's if it is loaded."""
    import platform

    found = {"tinyres": str(importlib.import_module("tinyres").__version__), "python": platform.python_version()}
    for name in ("numpy", "numba", *(["torch"] if "torch" in sys.modules else [])):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def in_words(found: Mapping[str, Any]) -> str:
    """machine() for people: three lines, one more of a GPU if `found` has one, and a warning if it was busy."""
    blas = found["blas"]
    library = "BLAS unknown" if blas is None else (
        f"{blas['library']} {blas['version']}" + (f" with {blas['kernels']} kernels" if blas["kernels"] else ""))
    if found["OPENBLAS_CORETYPE"]:
        library += f" (OPENBLAS_CORETYPE={found['OPENBLAS_CORETYPE']})"
    threads = [f"tinyres {found['threads']}"]
    if found["torch_threads"] is not None:
        threads.append(f"PyTorch {found['torch_threads']}")
    if blas is not None:
        threads.append(f"NumPy's BLAS {blas['threads']}")
    load = "unknown" if found["load"] is None else f"{found['load']:.2f}"
    gpu = [found["gpu"]["words"]] if found.get("gpu") else []
    lines = [*gpu, f"{found['cpu']}, {found['cores']} cores; load average before the start {load}",
             f"threads: {', '.join(threads)}; {library}",
             ", ".join(f"{name} {number}" for name, number in found["versions"].items())]
    return "\n".join([*lines, warning(found)]).rstrip()


def warning(found: Mapping[str, Any]) -> str:
    """What to think of times taken on a busy machine; "" for one that was quiet, or does not tell."""
    if found["quiet"] is not False:
        return ""
    return (f"The machine is busy: the load average is above {QUIET_LOAD}. Threads that wait by spinning (PyTorch's "
            "OpenMP, OpenBLAS)\nthen lose far more time than ours, so ratios flatter tinyres: repeat this on a quiet "
            "machine.")
