"""Every CUDA kernel of the manifest, run once or twice on odd shapes: what compute-sanitizer is to look at.

    compute-sanitizer --tool memcheck python benchmarks/gpu_kernels.py     on a GPU
    python benchmarks/gpu_kernels.py --place emulator                      without one

Each array is an allocation of its own, not a piece of CuPy's pool, so that an access beyond its end is one beyond an
allocation. The last line is JSON: launches by instance, and the instances that were not run, which are a failure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tinyres.analysis.bench_gpu_cases import cases  # noqa: E402
from tinyres.analysis.launches import watched  # noqa: E402
from tinyres.kernels.cuda.manifest import KERNELS  # noqa: E402
from tinyres.ops.create import move  # noqa: E402

DTYPES = ("float32", "float64")


def run_all(put: Callable[[np.ndarray], Any], dtypes: tuple[str, ...] = DTYPES,
            tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Run all cases of odd shapes; returns cases, launches (instance -> how often) and missing (instances not run)."""
    counted: Counter[str] = Counter()
    done = 0
    with watched(lambda launch: counted.update([launch.name])):
        for dtype in dtypes:
            for case in cases(put, dtype):
                tell(f"{case.words}, {dtype}")
                case.run()
                done += 1
    missing = [kernel.name for kernel in KERNELS if kernel.name not in counted]
    return {"cases": done, "launches": dict(sorted(counted.items())), "missing": missing}


def place(name: str) -> Callable[[np.ndarray], Any]:
    """How arrays get to the GPU, or stay where the emulator takes them."""
    if name == "emulator":
        return lambda array: array
    put = lambda array: move(array, "cuda")  # noqa: E731
    put(np.zeros(1))
    import cupy

    cupy.cuda.set_allocator(None)
    return put


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--place", choices=("gpu", "emulator"), default="gpu")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="Default: both.")
    asked = parser.parse_args()
    found = run_all(place(asked.place), tuple(asked.dtype or DTYPES), lambda text: print(text, flush=True))
    if asked.place == "gpu":
        import cupy

        cupy.cuda.Device().synchronize()
    print(json.dumps({"place": asked.place, **found}))
    return 1 if found["missing"] else 0


if __name__ == "__main__":
    sys.exit(main())
