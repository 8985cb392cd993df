"""What a benchmark runs: a network by name, and a batch of random images for it, the same on every side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Workload:
    """A network, by its name and its constructor's options, and `batch` random images of (3, size, size) with labels.

    Only its method network() loads the engine, so that a process that measures PyTorch need not have it in memory.
    """

    model: str
    options: dict[str, Any]
    batch: int
    size: int
    seed: int = 0

    def network(self) -> Any:
        """Our network, its weights drawn from the seed."""
        from tinyres.analysis.parity import network

        return network(self.model, self.options, self.seed)

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, 3, H, W) float32, channels-last as the Loader gives them, and labels (N,) int64."""
        rng = np.random.default_rng(self.seed)
        images = rng.standard_normal((self.batch, self.size, self.size, 3), np.float32).transpose(0, 3, 1, 2)
        return images, rng.integers(0, self.options["num_classes"], self.batch)

    def words(self) -> str:
        """Like: resnet18, CIFAR stem, option B, batch 32 of 3x32x32."""
        stem = ", CIFAR stem" if self.options.get("cifar_stem") else ""
        option = f", option {self.options['option']} shortcuts" if "option" in self.options else ""
        return f"{self.model}{stem}{option}, batch {self.batch} of 3x{self.size}x{self.size}"
