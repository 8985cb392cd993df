"""What it costs to record a pass: against the same unfused pass without an observer, in turn, in one process.

    python benchmarks/stepper_record.py [--model resnet56] [--batch 16] [--rounds 7]

Each round times the unfused forward pass, the unfused backward() and record() of both, once each. Two ratios are
printed: of the whole recording to forward and backward, and of the recorder's backward pass (with its summaries) to
backward(). Prints the table of results/stepper_record.md.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time

import numpy as np

import tinyres as tr
from tinyres import models
from tinyres.analysis.machine import cpu_name
from tinyres.stepper import passes
from tinyres.stepper import trace as recorder
from tinyres.stepper.observe import Observer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    tr.manual_seed(0)
    model = models.build(options.model)
    images = tr.tensor(np.random.default_rng(0).standard_normal((options.batch, 3, 32, 32)), dtype="float32")
    labels = np.arange(options.batch) % 10
    rows = [one_round(lambda: tr.cross_entropy(model(images), labels)) for _ in range(options.rounds + 1)][1:]
    whole = [row["record"] / (row["forward"] + row["backward"]) for row in rows]
    back = [row["recorded backward"] / row["backward"] for row in rows]
    print(f"{options.model}, batch {options.batch}, {cpu_name()}, median of {options.rounds} rounds (least to most)\n")
    for name in rows[0]:
        times = [1e3 * row[name] for row in rows]
        print(f"{name:20} {statistics.median(times):8.0f} ms   {min(times):.0f} to {max(times):.0f}")
    for name, ratios in (("record / (forward + backward)", whole), ("recorded backward / backward", back)):
        print(f"{name:32} {statistics.median(ratios):.2f}   {min(ratios):.2f} to {max(ratios):.2f}")


def one_round(run: object) -> dict[str, float]:
    """Seconds of the plain passes and of the recorded ones."""
    found = {}
    with tr.unfused():
        loss = timed(found, "forward", run)
        timed(found, "backward", loss.backward)
    del loss
    timed(found, "record", lambda: recorder.record(run))
    seen = Observer()
    loss = passes.forward(run, seen)
    parts = recorder.Trace("", float(loss.data), "", "", True, {})
    recorder.prepare(parts, seen, loss)
    timed(found, "recorded backward", lambda: recorder.backward(parts, seen, loss, False))
    return found


def timed(found: dict[str, float], name: str, run: object) -> object:
    gc.collect()
    began = time.perf_counter()
    result = run()
    found[name] = time.perf_counter() - began
    return result


if __name__ == "__main__":
    main()
