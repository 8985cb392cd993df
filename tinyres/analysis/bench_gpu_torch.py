"""PyTorch's side of the benchmarks on a GPU: the twin of our network, run as PyTorch's users run it there.

At its best: cudnn.benchmark is on, so that the fastest algorithms are searched for; SGD is the fused one; and no step
waits for its loss. Each side names its precision. In float32 proper, TF32 is off for convolutions too, where PyTorch's
default is on.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres.analysis import bench_torch
from tinyres.analysis.twins import pytorch
from tinyres.analysis.workload import Workload

DEVICE = "cuda"


@dataclass(frozen=True)
class Side:
    """layout: contiguous (NCHW) or channels_last; autocast: None, bfloat16 or float16, the latter with a GradScaler;
    compile: None, or the mode of torch.compile."""

    words: str
    layout: str = "channels_last"
    tf32: bool = False
    autocast: str | None = None
    compile: str | None = None


SIDES = {
    "eager": Side("PyTorch eager (NCHW)", "contiguous"),
    "channels_last": Side("PyTorch channels_last"),
    "eager_tf32": Side("PyTorch eager (NCHW), TF32", "contiguous", tf32=True),
    "channels_last_tf32": Side("PyTorch channels_last, TF32", tf32=True),
    "bf16": Side("PyTorch channels_last, autocast bf16", tf32=True, autocast="bfloat16"),
    "fp16": Side("PyTorch channels_last, autocast fp16", tf32=True, autocast="float16"),
}
COMPILED = {
    "compiled": Side("torch.compile", compile="default"),
    "compiled_graph": Side("torch.compile, reduce-overhead", compile="reduce-overhead"),
    "compiled_graph_tf32": Side("torch.compile, reduce-overhead, TF32", tf32=True, compile="reduce-overhead"),
    "compiled_graph_bf16": Side("torch.compile, reduce-overhead, autocast bf16", tf32=True, autocast="bfloat16",
                                compile="reduce-overhead"),
}
ALL = SIDES | COMPILED


def gpu_pytorch() -> Any:
    """The module torch. Raises ModuleNotFoundError without PyTorch, RuntimeError where it finds no GPU."""
    torch = pytorch()
    if DEVICE == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"bench: --against torch --device cuda, but PyTorch {torch.__version__} finds no GPU: "
                           "install its build for your CUDA, see https://pytorch.org/get-started/locally")
    return torch


def training_step(work: Workload, name: str, weights: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    """A function that does one step and returns the loss before it, a tensor of the GPU that nobody has waited for.

    To be called within precision() of its side.
    """
    torch, side = gpu_pytorch(), ALL[name]
    model, x = prepared(work, side, weights)
    y = torch.tensor(work.data()[1], device=DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), **bench_torch.SGD, fused=True)
    run = torch.compile(model, mode=side.compile) if side.compile else model
    scaler = torch.amp.GradScaler(DEVICE) if side.autocast == "float16" else None

    def step() -> Any:
        optimizer.zero_grad()
        with autocast(side):
            loss = torch.nn.functional.cross_entropy(run(x), y)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return loss.detach()

    return step


def inference(work: Workload, name: str, weights: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    """A function that returns the logits (N, classes) of the batch in eval mode, a tensor of the GPU; to be called
    within precision() of its side."""
    torch, side = gpu_pytorch(), ALL[name]
    model, x = prepared(work, side, weights)
    model.eval()
    run = torch.compile(model, mode=side.compile) if side.compile else model

    def infer() -> Any:
        with torch.inference_mode(), autocast(side):
            return run(x)

    return infer


def prepared(work: Workload, side: Side, weights: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
    """The twin with our weights and the images, both on the GPU in the side's memory layout."""
    model, x = bench_torch.prepared(work, "eager" if side.layout == "contiguous" else "channels_last", weights)
    return model.to(DEVICE), x.to(DEVICE)


def autocast(side: Side) -> Any:
    """Inside, PyTorch computes in half precision what the side's autocast says; for a side without it, as always."""
    torch = pytorch()
    if side.autocast is None:
        return contextlib.nullcontext()
    return torch.autocast(DEVICE, dtype=getattr(torch, side.autocast))


@contextlib.contextmanager
def precision(side: Side) -> Any:
    """Inside, TF32 is as the side says, and cuDNN searches for its fastest algorithms."""
    torch = pytorch()
    places = ((torch.backends.cudnn, "allow_tf32", side.tf32), (torch.backends.cuda.matmul, "allow_tf32", side.tf32),
              (torch.backends.cudnn, "benchmark", True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a newer PyTorch has newer names for the same, and says so
        before = [getattr(place, what) for place, what, _ in places]
        try:
            for place, what, value in places:
                setattr(place, what, value)
            yield
        finally:
            for (place, what, _), value in zip(places, before, strict=True):
                setattr(place, what, value)


def peak_memory(run: Callable[[], object], already: int) -> dict[str, int | None]:
    """Bytes of PyTorch's allocator while run() ran: `peak`, handed out at most; `reserved`, taken from the GPU.

    already: handed out to other sides before, which is not counted in the peak.
    """
    cuda = pytorch().cuda
    if not cuda.is_available():
        run()
        return {"peak": None, "reserved": None}
    cuda.empty_cache()
    cuda.reset_peak_memory_stats()
    run()
    return {"peak": int(cuda.max_memory_allocated()) - already, "reserved": int(cuda.max_memory_reserved())}


def memory_in_use() -> int:
    """Bytes that PyTorch's allocator has handed out."""
    cuda = pytorch().cuda
    return int(cuda.memory_allocated()) if cuda.is_available() else 0
