"""The README's picture: what `tinyres train` does in its first minute, and what a skip connection does to a gradient.

    python benchmarks/readme_picture.py [FILE.png]

Left, the default job itself, run in a temporary folder: the error while training, and that on the test images, which
are read once, at the end. Right, before any training: the norm of the gradient at the input of each of the 27 blocks
of plain56 and resnet56, relative to the last block's, for a batch of 128 digits; a line is the geometric mean of five
seeds, a band their range. Prints the numbers as one line of JSON. Takes about 20 seconds on 2 cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import tinyres as tr
from tinyres import data, models
from tinyres.analysis.curves import errors_in_percent
from tinyres.analysis.figure import new_figure, write_png

PICTURE = Path(__file__).resolve().parents[1] / "tutorials" / "images" / "first_minute.png"
SEEDS = range(5)
COLOURS = {"plain56": "#b34700", "resnet56": "#0072b2"}  # told apart by colour-blind readers, and by dash besides


def default_job() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run `tinyres train`; its log, a row an epoch, and its result."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        subprocess.run([sys.executable, "-m", "tinyres", "train", "--quiet", "--out", str(out)], check=True,
                       stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return rows, json.loads((out / "result.json").read_text())


def arriving_gradients(name: str, seed: int) -> np.ndarray:
    """The norm of the loss's gradient at the input of each block of a fresh network, the first block first."""
    tr.manual_seed(seed)
    model = models.build(name, in_channels=1)
    norms: list[tuple[int, float]] = []
    blocks = [block for stage in model.stages for block in getattr(model, stage)]
    for i, block in enumerate(blocks):
        def watch(module: Any, args: tuple, i: int = i) -> None:
            args[0].register_hook(lambda grad: norms.append((i, float(np.linalg.norm(grad.data.astype("float64"))))))

        block.register_forward_pre_hook(watch)
    images, labels = data.digits("train").batch(128, seed)
    tr.cross_entropy(model(images), labels).backward()
    return np.array([norm for _, norm in sorted(norms)])


def gradients() -> dict[str, np.ndarray]:
    """Name -> (seeds, blocks) of arriving_gradients."""
    return {name: np.array([arriving_gradients(name, seed) for seed in SEEDS]) for name in COLOURS}


def growths(norms: dict[str, np.ndarray] | None = None) -> dict[str, float]:
    """How many times larger the first block's gradient is than the last one's: the geometric mean of the seeds."""
    return {name: float(np.exp(np.log(found[:, 0] / found[:, -1]).mean()))
            for name, found in (norms or gradients()).items()}


def draw(rows: list[dict[str, Any]], result: dict[str, Any], norms: dict[str, np.ndarray], path: Path) -> None:
    """The two panels as a PNG; norms: name -> (seeds, blocks)."""
    figure = new_figure(9.6, 3.4)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    errors = errors_in_percent([row["train_accuracy"] for row in rows])
    left.plot(epochs, errors, color=COLOURS["resnet56"], label="training images")
    left.plot(epochs[-1], 100 * (1 - result["accuracy"]), "o", color=COLOURS["plain56"],
              label=f"unseen images: {result['correct']} of {result['n']} right")
    left.set(title="tinyres train: a ResNet on real digits", xlabel="epoch", ylabel="error in %", yscale="log")
    for (name, found), dash in zip(norms.items(), ("--", "-"), strict=True):
        relative = found / found[:, -1:]
        blocks = np.arange(1, found.shape[1] + 1)
        right.plot(blocks, np.exp(np.log(relative).mean(0)), dash, color=COLOURS[name], label=name)
        right.fill_between(blocks, relative.min(0), relative.max(0), color=COLOURS[name], alpha=0.2, linewidth=0)
    right.set(title="The gradient that arrives at each block", xlabel="block, from the input to the loss",
              ylabel="norm, last block = 1", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    write_png(figure, path)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(64)
    small.save(path, optimize=True)


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    norms = gradients()
    rows, result = default_job()
    draw(rows, result, norms, path)
    print(json.dumps({"picture": str(path), "bytes": path.stat().st_size, "accuracy": result["accuracy"],
                      "seconds": result["seconds"], "first block's gradient, last block's = 1": growths(norms)}))


if __name__ == "__main__":
    main()
