"""The same training steps on the processor and on the GPU, with every kernel set there: do the losses agree?

    python benchmarks/gpu_parity.py --steps 20

From the same weights, on the same batches of made-up images, by SGD with momentum. In float64 all must agree with the
processor's fast kernels to a relative 1e-9 in the first step; what rounding grows into over the later ones is reported,
and bounded by 1e-6. In float32 it is reported. A second run on the GPU must repeat the first bit for bit. The last line
is JSON; the exit status is 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tinyres import kernels, ops, optim  # noqa: E402
from tinyres.analysis.parity import network  # noqa: E402
from tinyres.ops.create import move  # noqa: E402
from tinyres.tensor import Tensor  # noqa: E402

FIRST, LATER = 1e-9, 1e-6  # relative, of losses in float64
SETS = ("fast", "im2col", "reference")
SGD: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4}


def losses(device: str, kernel_set: str, dtype: str, asked: argparse.Namespace) -> list[float]:
    """The loss of each step."""
    model = network(asked.model, {"num_classes": 10, "option": "B"}, 0).astype(dtype).to(device)
    optimizer, rng, found = optim.SGD(model.parameters(), **SGD), np.random.default_rng(1), []
    with kernels.use_kernels(kernel_set):
        for _ in range(asked.steps):
            x = rng.standard_normal((asked.batch, asked.size, asked.size, 3)).astype(dtype).transpose(0, 3, 1, 2)
            y = rng.integers(0, 10, asked.batch)
            optimizer.zero_grad()
            loss = ops.cross_entropy(model(Tensor(move(x, device))), move(y, device))
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return found


def apart(a: list[float], b: list[float]) -> list[float]:
    """Relative differences, step by step; infinite where one is not finite."""
    found = np.abs(np.subtract(a, b)) / np.maximum(np.abs(b), 1e-300)
    return [float(value) if np.isfinite(value) else float("inf") for value in found]


def compare(asked: argparse.Namespace) -> dict[str, Any]:
    """All of it; complaints: what does not hold, in words."""
    found: dict[str, Any] = {"model": asked.model, "batch": asked.batch, "steps": asked.steps, "losses": {},
                             "apart": {}, "complaints": []}
    for dtype in ("float64", "float32"):
        wanted = found["losses"][f"cpu {dtype}"] = losses("cpu", "fast", dtype, asked)
        for kernel_set in SETS:
            name = f"{kernel_set} {dtype}"
            on_gpu = found["losses"][name] = losses("cuda", kernel_set, dtype, asked)
            distances = found["apart"][name] = apart(on_gpu, wanted)
            if dtype == "float64" and not (distances[0] <= FIRST and max(distances) <= LATER):
                found["complaints"].append(f"{name}: {distances[0]:.1e} from the processor in the first step, "
                                           f"{max(distances):.1e} at most; expected {FIRST:.0e} and {LATER:.0e}")
            if losses("cuda", kernel_set, dtype, asked) != on_gpu:
                found["complaints"].append(f"{name}: a second run gave other losses, expected the same bit for bit")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("steps", 20), ("batch", 32), ("size", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default="resnet20")
    found = compare(parser.parse_args())
    for name, distances in found["apart"].items():
        print(f"{name:>18}: {distances[0]:.1e} in the first step, {max(distances):.1e} at most")
    print(*found["complaints"], sep="\n")
    print(json.dumps(found).replace("Infinity", "null"))
    return 1 if found["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())
