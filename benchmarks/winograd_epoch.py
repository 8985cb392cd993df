"""Does rounding in the fast convolutions change what a network learns? One epoch with each, side by side.

    python benchmarks/winograd_epoch.py                        ResNet-20 on CIFAR-10, about a minute for each
    python benchmarks/winograd_epoch.py --data digits --epochs 5

The same weights, images and rates for all: only the kernels of the 3x3 convolutions differ. It prints the mean loss of
each tenth of the run, and how far a run's losses lie from those of the direct convolution; beside it, as a yardstick,
that of the direct convolution with one weight of a million changed in its last bit.
"""

from __future__ import annotations

import argparse

import numpy as np

from tinyres import data, models, optim, random
from tinyres.data import augment
from tinyres.kernels.cpu import conv
from tinyres.train import train_step

TABLE = conv.tiles
PARTS = 10


def direct(*shape):
    return 0, 0


def everywhere(m):
    """The table with m wherever Winograd's method is used at all."""
    return lambda *shape: (m, m) if TABLE(*shape)[1] else (0, 0)


WAYS = {"direct": direct, "direct, one bit off": direct, "m = 2": everywhere(2), "m = 4": everywhere(4),
        "the table": TABLE}


def losses(way: str, name: str, network: str, epochs: int, seed: int) -> np.ndarray:
    """The loss of each step."""
    conv.tiles = WAYS[way]
    random.manual_seed(seed)
    images = data.load(name, "train")
    model = models.build(network, in_channels=images.batch(1)[0].shape[1])
    if "bit" in way:
        weight = next(iter(model.parameters())).data
        weight[(0,) * weight.ndim] = np.nextafter(weight[(0,) * weight.ndim], np.float32(np.inf))
    loader = data.Loader(images, 128, shuffle=True, seed=seed, augment=augment.standard(images),
                         drop_last=True)
    optimizer = optim.SGD(model.parameters(), 0.1, 0.9, 5e-4, True)
    return np.array([train_step(model, optimizer, x, y)[0] for epoch in range(epochs) for x, y in loader.epoch(epoch)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    runs = {way: losses(way, options.data, options.model, options.epochs, options.seed) for way in WAYS}
    steps = len(runs["direct"])
    print(f"{options.model} on {options.data}, {steps} steps, seed {options.seed}: mean loss of each tenth")
    for way, found in runs.items():
        parts = " ".join(f"{part.mean():.3f}" for part in np.array_split(found, PARTS))
        print(f"{way:20}  {parts}   mean distance from direct {np.abs(found - runs['direct']).mean():.4f}")


if __name__ == "__main__":
    main()
