"""Fashion-MNIST: 70,000 grey photographs of clothes, 28x28 pixels, ten classes, in four idx files.

Han Xiao, Kashif Rasul and Roland Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms", 2017 (MIT licence). The files have the names of MNIST's, so it is their content that tells them apart.
"""

import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyres.data.cache import cache_folder
from tinyres.data.dataset import Dataset, pick_split
from tinyres.data.idx import header, locate, read_idx
from tinyres.data.statistics import training_statistics

VARIABLE = "TINYRES_DATA"
VALIDATION_SIZE = 5_000
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where the package dataset-fashion-mnist puts the files
FOLDERS = ("fashion", "fashion-mnist", "FashionMNIST/raw", ".")  # below a given folder; the third is torchvision's
URL = "https://github.com/zalandoresearch/fashion-mnist/tree/master/data/fashion"
FIX = f"Get the four files with `tinyres data fetch fashion`, from Debian's dataset-fashion-mnist or from {URL}"
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass(frozen=True)
class IdxFile:
    """One of the four files. md5 and packed_bytes: of the official .gz; sha256: of what is in it.

    Only the content counts when a file is read: Debian's .gz differ from the official ones, as they are packed without
    their names.
    """

    name: str
    shape: tuple[int, ...]
    sha256: str
    md5: str
    packed_bytes: int


# The MD5 are those of the authors' README; what we unpacked to compute the SHA-256 has the MD5 that others publish.
FILES = {
    "train_images": IdxFile("train-images-idx3-ubyte", (60_000, 28, 28),
                            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                            "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
    "train_labels": IdxFile("train-labels-idx1-ubyte", (60_000,),
                            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                            "25c81989df183df01b3e8a0aad5dffbe", 29_515),
    "test_images": IdxFile("t10k-images-idx3-ubyte", (10_000, 28, 28),
                           "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                           "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
    "test_labels": IdxFile("t10k-labels-idx1-ubyte", (10_000,),
                           "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
                           "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
}


def fashion(split: str = "train", data_dir: str | os.PathLike[str] | None = None, verify: bool = True) -> Dataset:
    """Fashion-MNIST: (N, 1, 28, 28) bytes, 10 classes, read once a process.

    split: "train" (60,000) or "test" (10,000); "fit" (55,000) and "validation" (5,000) divide the training images.
    data_dir: a folder with the four files, as .gz or unpacked, or one above it; if None, $TINYRES_DATA, then what
    `tinyres data fetch` fetched, then Debian's package. verify: compare each content's SHA-256 (0.1 s).

    Raises FileNotFoundError, saying where it looked, if the data is not there, and ValueError if it is damaged or
    another data set, as MNIST is.
    """
    train, test = _train_and_test(find(data_dir), verify)
    return pick_split(split, train, test, VALIDATION_SIZE)


def find(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder with the files, in or below `data_dir`; without one, wherever they may be.

    Raises FileNotFoundError that lists every place looked at and says what to do.
    """
    looked = []
    for place in _places(data_dir):
        looked.append(str(place))
        if any(locate(place, file.name).is_file() for file in FILES.values()):
            return place.resolve()
    raise FileNotFoundError(f"fashion: not found. Looked at {', '.join(looked)}. {FIX}, and pass their folder as "
                            f"data_dir (on the command line --data-dir) or set {VARIABLE} to it")


def read(folder: Path, verify: bool) -> dict[str, np.ndarray]:
    """The four arrays by their names in FILES: images (N, 28, 28) and labels (N,), uint8.

    Raises ValueError, naming file, found and expected, for a file that is missing, damaged or, with verify, another.
    """
    missing = [file.name for file in FILES.values() if not locate(folder, file.name).is_file()]
    if missing:
        raise ValueError(f"fashion: {folder} lacks {', '.join(missing)}, expected all four files. {FIX}")
    arrays = {}
    for key, file in FILES.items():
        path = locate(folder, file.name)
        values = arrays[key] = read_idx(path, file.shape, FIX)
        if verify:
            found = hashlib.sha256(header(file.shape))
            found.update(values.data)
            if found.hexdigest() != file.sha256:
                raise ValueError(f"fashion: the content of {path} has SHA-256 {found.hexdigest()}, expected "
                                 f"{file.sha256}: it is damaged or another data set, such as MNIST, which "
                                 f"data.load(FOLDER) reads. {FIX}")
    return arrays


def _places(data_dir: str | os.PathLike[str] | None) -> Iterator[Path]:
    given = os.fspath(data_dir) if data_dir is not None else os.environ.get(VARIABLE, "")
    if given:
        yield from (Path(given).expanduser() / folder for folder in FOLDERS)
    if data_dir is None:
        yield cache_folder() / "fashion"
        yield DEBIAN


@functools.lru_cache(maxsize=1)
def _train_and_test(folder: Path, verify: bool) -> tuple[Dataset, Dataset]:
    """Both splits, kept in memory for the life of the process."""
    arrays = read(folder, verify)
    images = arrays["train_images"][:, None]
    mean, std = training_statistics(images, 255.0)
    train = Dataset(images, arrays["train_labels"], CLASSES, mean, std, name="fashion")
    test = Dataset(arrays["test_images"][:, None], arrays["test_labels"], CLASSES, mean, std, name="fashion")
    return train, test
