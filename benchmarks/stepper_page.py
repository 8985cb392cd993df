"""How large the stepper's pages are, how fast they open, and how fast they react, in headless Chromium.

    python benchmarks/stepper_page.py [MODEL ...]      resnet8, resnet20 and resnet110 unless others are named

Each network runs untrained on two of the embedded digits. `open` is from the call for the file to the end of the first
frame. `step` is from a press of the key n, or b at the end, to the end of layout, for each step of a view (of the op
view at most 200, evenly spread); `frame` is the same to the end of the next frame, which adds the wait for the screen.
Prints the table of results/stepper.md. Needs Chromium and Playwright (pip install 'tinyres[browser]').
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests")]

from browser import Browser, missing  # noqa: E402

import tinyres as tr  # noqa: E402
from tinyres import data, models  # noqa: E402
from tinyres.stepper.html import page  # noqa: E402
from tinyres.stepper.trace import record  # noqa: E402

MODELS = ("resnet8", "resnet20", "resnet110")
MOST = 200  # steps of a view that are timed
HEAD = ("network", "nodes", "groups", "recording s", "writing s", "MB", "open ms", "block step ms: median", "max",
        "frame", "op step ms: median", "max", "frame")


def write_page(name: str, path: Path) -> tuple[Any, float, float]:
    """The trace, the seconds of the recording, and those of writing the page."""
    tr.manual_seed(0)
    model = models.build(name, in_channels=1)
    images, labels = data.digits("train").batch(2, 0)
    began = time.perf_counter()
    recording = record(lambda: tr.cross_entropy(model(images), labels), title=name)
    recorded = time.perf_counter()
    path.write_text(page(recording), encoding="utf-8")
    return recording.trace, recorded - began, time.perf_counter() - recorded


def step_times(visit: Any, steps: int) -> tuple[float, float, float]:
    """Of the current view: median and maximum to the end of layout, and the median to the end of the next frame."""
    laid, painted = [], []
    stride = max(1, steps // MOST)
    for place in range(0, steps - 1, stride):
        visit.go(place)
        times = visit.reaction("n")
        assert visit.state()["step"] == place + 1
        laid.append(times[0])
        painted.append(times[1])
    return statistics.median(laid), max(laid), statistics.median(painted)


def row(name: str, browser: Browser, folder: Path) -> list[str]:
    path = folder / f"{name}.html"
    trace, recording, writing = write_page(name, path)
    began = time.perf_counter()
    visit = browser.open(path)
    visit.page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    opened = 1e3 * (time.perf_counter() - began)
    blocks = step_times(visit, len(trace.block_steps))
    visit.press("v")
    ops = step_times(visit, len(trace.backward))
    assert not visit.problems, visit.problems
    visit.page.context.close()
    return [name, f"{len(trace.nodes):,}", f"{len(trace.groups):,}", f"{recording:.2f}", f"{writing:.2f}",
            f"{path.stat().st_size / 1e6:.2f}", f"{opened:.0f}", *(f"{ms:.1f}" for ms in (*blocks, *ops))]


def main() -> None:
    if why := missing():
        sys.exit(why)
    from tinyres import kernels

    kernels.use_kernels("reference")
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        rows = [row(name, browser, Path(folder)) for name in sys.argv[1:] or MODELS]
        print(f"{browser.version}; Playwright {version('playwright')}; Python {platform.python_version()}; "
              f"{os.cpu_count()} cores; load average {os.getloadavg()[0]:.1f}\n")
    for line in (HEAD, ["---"] + ["---:"] * (len(HEAD) - 1), *rows):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
