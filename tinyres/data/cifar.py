"""CIFAR-10 and CIFAR-100 from the official binary version: a folder, or the archive as it was downloaded.

An archive is read from front to back into memory and never unpacked, so nothing in it can be written anywhere; members
with a path that an unpacker should fear are refused all the same, as no official archive has them. The Python version
of CIFAR is pickle, which can run code when it is loaded, and is not read.
"""

import functools
import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from tinyres.data.cifar_formats import CIFAR10, CIFAR100, BinaryFile, Format
from tinyres.data.dataset import Dataset, nearest, pick_split

VARIABLE = "TINYRES_DATA"
VALIDATION_SIZE = 5_000  # He et al. (2015), section 4.2: 45,000 images to fit, 5,000 to choose by
UNREADABLE = (tarfile.TarError, EOFError, zlib.error, OSError)

Arrays = tuple[np.ndarray, np.ndarray]
Member = tuple[BinaryFile, bytes]


def cifar10(split: str = "train", data_dir: str | os.PathLike[str] | None = None, verify: bool = True) -> Dataset:
    """CIFAR-10: (N, 3, 32, 32) bytes, RGB, 10 classes, read once a process.

    split: "train" (50,000) or "test" (10,000); "fit" (45,000) and "validation" (5,000) divide the training images.
    data_dir: the folder cifar-10-batches-bin, the archive cifar-10-binary.tar.gz, or a folder that holds one of them;
    if None, the environment variable TINYRES_DATA. verify: compare each file's SHA-1 (0.2 s) and not its size only.

    Raises FileNotFoundError, saying where it looked, if the data is not there, and ValueError if it is damaged.
    """
    train, test = _train_and_test(CIFAR10, find(CIFAR10, data_dir), "class", verify)
    return pick_split(split, train, test, VALIDATION_SIZE)


def cifar100(split: str = "train", data_dir: str | os.PathLike[str] | None = None, labels: str = "fine") -> Dataset:
    """CIFAR-100: (N, 3, 32, 32) bytes, RGB; labels "fine" (100 classes) or "coarse" (20).

    split and data_dir as for `cifar10`, with cifar-100-binary and cifar-100-binary.tar.gz. Only sizes and labels are
    checked, as we know of no published checksums of the .bin files. Raises what `cifar10` raises, and ValueError for
    other labels.
    """
    if labels not in CIFAR100.labels:
        guess = nearest(labels, CIFAR100.labels)
        raise ValueError(f"cifar100: labels is {labels!r}, expected 'fine' or 'coarse'.{guess}")
    train, test = _train_and_test(CIFAR100, find(CIFAR100, data_dir), labels, verify=False)
    return pick_split(split, train, test, VALIDATION_SIZE)


def find(wanted: Format, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder or archive of a data set below `data_dir`, or else below $TINYRES_DATA.

    Raises FileNotFoundError that lists every place looked at, what to set, and the official address.
    """
    base = os.fspath(data_dir) if data_dir is not None else os.environ.get(VARIABLE, "")
    help_text = (
        f"Pass data_dir (on the command line --data-dir) or set {VARIABLE} to the folder {wanted.folder}, to the "
        f"archive {wanted.archives[0]}, or to a folder that holds one of them. The binary version is needed, not the "
        f"Python one. Official address: {wanted.url}"
    )
    if not base:
        raise FileNotFoundError(f"{wanted.name}: no data_dir was given and {VARIABLE} is not set. {help_text}")
    root = Path(base).expanduser()
    if root.is_file():
        return root.resolve()
    places = [root] + [
        folder / name for folder in (root, root / wanted.name) for name in (wanted.folder, *wanted.archives)
    ]
    for place in places:
        if place.is_file() or any((place / file.name).is_file() for file in wanted.files):
            return place.resolve()
    looked = ", ".join(str(place) for place in places)
    raise FileNotFoundError(f"{wanted.name}: not found. Looked at {looked}. {help_text}")


def read(wanted: Format, path: Path, verify: bool) -> dict[str, Arrays]:
    """All records of a folder or archive: {"train": (images, labels), "test": (images, labels)}.

    images: (N, 3, 32, 32) uint8, channels-last; labels: (N, label bytes) uint8. Raises ValueError, naming file, found
    and expected, for a file that is missing, has another size, another SHA-1 (with verify) or a label out of range.
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
        raise ValueError(
            f"{wanted.name}: {path} lacks {', '.join(sorted(position))}, expected the {len(wanted.files)} files "
            f"{', '.join(file.name for file in wanted.files)}. {_again(wanted)}"
        )
    return sets


def _decode(
    wanted: Format, file: BinaryFile, path: Path, content: bytes, verify: bool, images: np.ndarray, labels: np.ndarray
) -> None:
    """Check the content of one .bin file and write its records to the front of `images` and `labels`."""
    where = f"{wanted.name}: {file.name} in {path}"
    if verify and file.sha1 is not None:
        found = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        if found != file.sha1:
            raise ValueError(f"{where} has SHA-1 {found}, expected {file.sha1}: it is damaged. {_again(wanted)}")
    records = np.frombuffer(content, np.uint8).reshape(file.records, wanted.record_bytes)
    for column, (kind, classes) in enumerate(wanted.labels.items()):
        wrong = np.flatnonzero(records[:, column] >= len(classes))
        if len(wrong):
            raise ValueError(
                f"{where}: record {wrong[0]} has the {kind} label {records[wrong[0], column]}, expected 0 to "
                f"{len(classes) - 1}. {_again(wanted)}"
            )
    planes = records[:, len(wanted.labels) :].reshape(file.records, 3, 32, 32)
    labels[: file.records] = records[:, : len(wanted.labels)]
    for channel in range(3):  # plane by plane: three times faster than one transposed copy
        images[: file.records, channel] = planes[:, channel]


def _again(wanted: Format) -> str:
    return f"Fetch the data set again from {wanted.url}"


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
    seen: set[str] = set()
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                _refuse_unsafe(wanted, path, member)
                name = PurePosixPath(member.name).name
                if name in seen:
                    raise ValueError(f"{wanted.name}: {path} holds {name} twice, expected once. {_again(wanted)}")
                content = archive.extractfile(member) if name in files else None
                if content is not None:
                    seen.add(name)
                    _check_size(wanted, files[name], path, member.size)
                    yield files[name], content.read()
    except UNREADABLE as error:
        raise ValueError(
            f"{wanted.name}: {path} ({path.stat().st_size:,} bytes) cannot be read as a tar archive: {error}. It is "
            f"truncated or no archive. {_again(wanted)}"
        ) from error


def _check_size(wanted: Format, file: BinaryFile, path: Path, size: int) -> None:
    """Raise ValueError, before anything is read, for a file of another size than the format's."""
    expected = file.records * wanted.record_bytes
    if size != expected:
        raise ValueError(
            f"{wanted.name}: {file.name} in {path} has {size:,} bytes, expected {expected:,} ({file.records:,} records "
            f"of {wanted.record_bytes:,}): it is truncated or another file. {_again(wanted)}"
        )


def _refuse_unsafe(wanted: Format, path: Path, member: tarfile.TarInfo) -> None:
    """Raise ValueError for a member that is not a plain file or folder below the archive's root."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
        kind = "a file" if member.isfile() else "a folder" if member.isdir() else "a link or device"
        raise ValueError(
            f"{wanted.name}: {path} holds {member.name!r}, {kind}; expected plain files below {wanted.folder}/, no "
            f"absolute paths, '..' or links. Do not unpack it. {_again(wanted)}"
        )


@functools.lru_cache(maxsize=3)
def _train_and_test(wanted: Format, path: Path, kind: str, verify: bool) -> tuple[Dataset, Dataset]:
    """Both splits as data sets with the labels called `kind`, kept in memory for the life of the process."""
    sets = read(wanted, path, verify)
    column = list(wanted.labels).index(kind)
    images, labels = sets["train"]
    train = Dataset(images, labels[:, column], wanted.labels[kind], name=wanted.name)
    images, labels = sets["test"]
    test = Dataset(images, labels[:, column], wanted.labels[kind], train.mean, train.std, name=wanted.name)
    return train, test
