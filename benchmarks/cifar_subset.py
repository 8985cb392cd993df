"""A part of CIFAR-10 in one file, for a machine that has no network and takes little: 16,000 images to train and 2,000
to test, 1,600 and 200 of each class, bytes, at most 55 MB.

    python benchmarks/cifar_subset.py cifar_subset.npz --data-dir FOLDER
    tinyres train --data cifar_subset.npz --model resnet20

The .npz holds images (N, 32, 32, 3) and labels (N,) to train, test_images and test_labels, and the names of the
classes: the form of one's own data, see tinyres/data/own.py. What is chosen depends on the counts alone.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tinyres import data  # noqa: E402
from tinyres.data.dataset import Dataset, stratified_split  # noqa: E402
from tinyres.files import write_atomically  # noqa: E402

LARGEST = 55_000_000  # bytes


def subset(dataset: Dataset, count: int) -> tuple[np.ndarray, np.ndarray]:
    """count images (N, H, W, C) and labels of a data set, as many of each class as of the others."""
    if count >= len(dataset):
        raise ValueError(f"cifar_subset: {count} images wanted, expected less than the {len(dataset)} that there are")
    chosen = stratified_split(dataset.labels, count, seed=0)[1]
    return np.ascontiguousarray(dataset.images[chosen].transpose(0, 2, 3, 1)), dataset.labels[chosen].astype(np.int64)


def packed(training: Dataset, test: Dataset, train_count: int, test_count: int) -> bytes:
    """The file's bytes. Raises ValueError if they are more than LARGEST."""
    images, labels = subset(training, train_count)
    test_images, test_labels = subset(test, test_count)
    file = io.BytesIO()
    np.savez_compressed(file, images=images, labels=labels, test_images=test_images, test_labels=test_labels,
                        classes=np.array(training.classes))
    content = file.getvalue()
    if len(content) > LARGEST:
        raise ValueError(f"cifar_subset: the file would have {len(content):,} bytes, expected at most {LARGEST:,}: "
                         "take fewer images, with --train")
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir", help="Folder or archive of CIFAR-10. Default: $TINYRES_DATA.")
    parser.add_argument("--train", type=int, default=16_000)
    parser.add_argument("--test", type=int, default=2_000)
    asked = parser.parse_args()
    training, test = (data.load("cifar10", split, asked.data_dir) for split in ("train", "test"))
    content = packed(training, test, asked.train, asked.test)
    write_atomically(asked.out, content)
    print(f"{asked.out}: {asked.train:,} + {asked.test:,} images, {len(content):,} bytes")


if __name__ == "__main__":
    main()
