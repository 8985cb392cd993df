"""CIFAR-10 and CIFAR-100 from the official binary version: a folder, or the archive as it was downloaded.

An archive is read in place, see archive.py. The Python version of CIFAR is pickle, which can run code when it is
loaded, and is not read.
"""

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tinyres.data import archive
from tinyres.data.cache import cache_folder
from tinyres.data.cifar_formats import CIFAR10, CIFAR100, BinaryFile, Format
from tinyres.data.dataset import Dataset, nearest, pick_split
from tinyres.data.statistics import training_statistics

VARIABLE = "TINYRES_DATA"
VALIDATION_SIZE = 5_000  # He et al. (2015), section 4.2: 45,000 images to fit, 5,000 to choose by

Arrays = tuple[np.ndarray, np.ndarray]
Member = tuple[BinaryFile, bytes]


class DamagedError(ValueError):
    """Files that are not the data set's; `what` is wrong with them, in words."""

    def __init__(self, wanted: Format, what: str):
        super().__init__(
            f"{wanted.name}: {what}. Delete it and fetch it again: tinyres data fetch {wanted.name} (official address: "
            f"{wanted.url})"
        )
        self.what = what


def cifar10(split: str = "train", data_dir: str | os.PathLike[str] | None = None, verify: bool = True) -> Dataset:
    """CIFAR-10: (N, 3, 32, 32) bytes, RGB, 10 classes, read once a process.

    split: "train" (50,000) or "test" (10,000); "fit" (45,000) and "validation" (5,000) divide the training images.
    data_dir: the folder cifar-10-batches-bin, the archive cifar-10-binary.tar.gz, or a folder that holds one of them;
    if None, what `find` finds. verify: compare each file's SHA-1 (0.2 s) and not its size only.

    Raises FileNotFoundError, saying where it looked, if the data is not there, and DamagedError, a ValueError, if it is
    damaged.
    """
    train, test = _train_and_test(CIFAR10, find(CIFAR10, data_dir), "class", verify)
    return pick_split(split, train, test, VALIDATION_SIZE)


def cifar100(
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    labels: str = "fine",
    verify: bool = True,
) -> Dataset:
    """CIFAR-100: (N, 3, 32, 32) bytes, RGB; labels "fine" (100 classes) or "coarse" (20).

    split, data_dir and verify as for `cifar10`, with cifar-100-binary and cifar-100-binary.tar.gz. Raises what
    `cifar10` raises, and ValueError for other labels.
    """
    if labels not in CIFAR100.labels:
        guess = nearest(labels, CIFAR100.labels)
        raise ValueError(f"cifar100: labels is {labels!r}, expected 'fine' or 'coarse'.{guess}")
    train, test = _train_and_test(CIFAR100, find(CIFAR100, data_dir), labels, verify)
    return pick_split(split, train, test, VALIDATION_SIZE)


def find(wanted: Format, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder or archive of a data set below `data_dir`; if None, below $TINYRES_DATA, else in the cache folder.

    Raises FileNotFoundError that lists every place looked at, how to fetch the data set, and the official address.
    """
    variable = os.environ.get(VARIABLE, "")
    if data_dir is not None:
        roots = [Path(data_dir).expanduser()]
    else:
        roots = [*([Path(variable).expanduser()] if variable else []), cache_folder()]
    looked = []
    for root in roots:
        if root.is_file():
            return root.resolve()
        places = [root] + [
            folder / name for folder in (root, root / wanted.name) for name in (wanted.folder, *wanted.archives)
        ]
        for place in places:
            if place.is_file() or any((place / file.name).is_file() for file in wanted.files):
                return place.resolve()
        looked += places
    unset = f", no data_dir was given and {VARIABLE} is not set" if data_dir is None and not variable else ""
    raise FileNotFoundError(
        f"{wanted.name}: not found{unset}. Looked at {', '.join(map(str, looked))}. Fetch it with: tinyres data fetch "
        f"{wanted.name}. Or pass data_dir (on the command line --data-dir) or set {VARIABLE} to the folder "
        f"{wanted.folder}, to the archive {wanted.archives[0]}, or to a folder that holds one of them. The binary "
        f"version is needed, not the Python one. Official address: {wanted.url}"
    )


def read(wanted: Format, path: Path, verify: bool) -> dict[str, Arrays]:
    """All records of a folder or archive: {"train": (images, labels), "test": (images, labels)}.

    images: (N, 3, 32, 32) uint8, channels-last; labels: (N, label bytes) uint8. Raises DamagedError, naming file, found
    and expected, for a file that is missing, has another size, another SHA-1 (with verify) or a label out of range, and
    for an archive that archive.py refuses.
    """
    sets: dict[str, Arrays] = {}
    position: dict[str, tuple[Arrays, int]] = {}
    for split, files in (("train", wanted.train), ("test", wanted.test)):
        count = sum(file.records for file in files)
        images = np.empty((count, 32, 32, 3), np.uint8)
        sets[split] = images.transpose(0, 3, 1, 2), np.empty((count, len(wanted.labels)), np.uint8)
        start = 0
        for file in files:
            position[file.name] = sets[split], start
            start += file.records
    members = _folder_members if path.is_dir() else _archive_members
    for file, content in members(wanted, path):
        (images, labels), start = position.pop(file.name)
        _decode(wanted, file, path, content, verify, images[start:], labels[start:])
    if position:
        raise DamagedError(
            wanted,
            f"{path} lacks {', '.join(sorted(position))}, expected the {len(wanted.files)} files "
            f"{', '.join(file.name for file in wanted.files)}",
        )
    return sets


def _decode(
    wanted: Format, file: BinaryFile, path: Path, content: bytes, verify: bool, images: np.ndarray, labels: np.ndarray
) -> None:
    """Check the content of one .bin file and write its records to the front of `images` and `labels`."""
    where = f"{file.name} in {path}"
    if verify and file.sha1 is not None:
        found = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        if found != file.sha1:
            raise DamagedError(wanted, f"{where} has SHA-1 {found}, expected {file.sha1}: it is damaged")
    records = np.frombuffer(content, np.uint8).reshape(file.records, wanted.record_bytes)
    for column, (kind, classes) in enumerate(wanted.labels.items()):
        wrong = np.flatnonzero(records[:, column] >= len(classes))
        if len(wrong):
            raise DamagedError(
                wanted,
                f"{where}: record {wrong[0]} has the {kind} label {records[wrong[0], column]}, expected 0 to "
                f"{len(classes) - 1}",
            )
    planes = records[:, len(wanted.labels) :].reshape(file.records, 3, 32, 32)
    labels[: file.records] = records[:, : len(wanted.labels)]
    for channel in range(3):  # plane by plane: three times faster than one transposed copy
        images[: file.records, channel] = planes[:, channel]


def _folder_members(wanted: Format, path: Path) -> Iterator[Member]:
    """The wanted files of a folder that are there."""
    for file in wanted.files:
        place = path / file.name
        if place.is_file():
            _check_size(wanted, file, path, place.stat().st_size)
            yield file, place.read_bytes()


def _archive_members(wanted: Format, path: Path) -> Iterator[Member]:
    """The wanted files of a tar archive, in its order, in one pass; a file's folder does not matter."""
    files = {file.name: file for file in wanted.files}

    def is_wanted(name: str, size: int) -> bool:
        if name in files:
            _check_size(wanted, files[name], path, size)
        return name in files

    try:
        for name, content in archive.contents(path, wanted.most_bytes, is_wanted):
            yield files[name], content
    except archive.ArchiveError as error:
        raise DamagedError(wanted, f"{path} {error}") from error


def _check_size(wanted: Format, file: BinaryFile, path: Path, size: int) -> None:
    """Raise DamagedError, before anything is read, for a file of another size than the format's."""
    expected = file.records * wanted.record_bytes
    if size != expected:
        raise DamagedError(
            wanted,
            f"{file.name} in {path} has {size:,} bytes, expected {expected:,} ({file.records:,} records of "
            f"{wanted.record_bytes:,}): it is truncated or another file",
        )


@functools.lru_cache(maxsize=3)
def _train_and_test(wanted: Format, path: Path, kind: str, verify: bool) -> tuple[Dataset, Dataset]:
    """Both splits as data sets with the labels called `kind`, kept in memory for the life of the process."""
    sets = read(wanted, path, verify)
    column = list(wanted.labels).index(kind)
    images, labels = sets["train"]
    mean, std = training_statistics(images, 255.0)
    train = Dataset(images, labels[:, column], wanted.labels[kind], mean, std, name=wanted.name)
    images, labels = sets["test"]
    test = Dataset(images, labels[:, column], wanted.labels[kind], mean, std, name=wanted.name)
    return train, test
