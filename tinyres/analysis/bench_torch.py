"""PyTorch's side of the benchmarks: the twin of our network with the same weights, run as PyTorch's users run it.

This file imports nothing of the engine: see bench_memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tinyres.analysis.twins import pytorch, twin
from tinyres.analysis.workload import Workload

# Both sides. The rate is small, so that rounding grows little while the same batch is learnt by heart.
SGD: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}
LAYOUTS = ("eager", "channels_last")
NAMES = {"ours": "tinyres", "eager": "PyTorch eager (NCHW)", "channels_last": "PyTorch channels_last",
         "compiled": "torch.compile (channels_last)", "folded": "tinyres, batch norm folded"}
OURS = ("ours", "folded", "as_trained", "im2col", "reference", "fast")  # sides that are not PyTorch's


def training_step(work: Workload, side: str, weights: Mapping[str, np.ndarray] | None = None) -> Callable[[], float]:
    """A function that does one step, forward, cross-entropy, backward and SGD, and returns the loss before it.

    side: eager, channels_last or compiled. weights: our state_dict(), without which the twin draws its own.
    """
    torch = pytorch()
    model, x = prepared(work, side, weights)
    y = torch.tensor(work.data()[1])
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    run = torch.compile(model) if side == "compiled" else model

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(run(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def inference(work: Workload, side: str, weights: Mapping[str, np.ndarray]) -> Callable[[], np.ndarray]:
    """A function that returns the logits (N, classes) of the batch in eval mode."""
    torch = pytorch()
    model, x = prepared(work, side, weights)
    model.eval()

    def infer() -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(model(x).numpy())

    return infer


def prepared(work: Workload, side: str, weights: Mapping[str, np.ndarray] | None) -> tuple[Any, Any]:
    """The twin and the images, both in the memory layout of a side."""
    torch = pytorch()
    model = twin(work.model, **work.options)
    if weights is not None:
        model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    layout = torch.contiguous_format if side == "eager" else torch.channels_last
    images = torch.tensor(np.ascontiguousarray(work.data()[0]))
    return model.to(memory_format=layout), images.contiguous(memory_format=layout)
