"""Data of one's own: a folder or a file, without a line of code. `data.load("path/to/it")` comes here.

One of these:
- a folder with images.npy and labels.npy, and test_images.npy and test_labels.npy if there is a test split;
- an .npz file with arrays of these names. Instead of images and labels, train_images and train_labels or x_train,
  y_train, x_test and y_test will do, in a folder too;
- a folder with the four idx files of MNIST or a set like it;
- a folder of images: CLASS/*.png, or train/CLASS/*.png and test/CLASS/*.png (see image_folder.py).

Arrays of images are (N, H, W), (N, H, W, C) or (N, C, H, W), C is 1 or 3, bytes or floating; labels are (N,) integers
from 0 on. The names of the classes are the lines of classes.txt, or an array `classes` of texts, or else the labels.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinyres.data import image_folder
from tinyres.data.arrays import ArraysError, names_in_npz, read_npy, read_npz
from tinyres.data.dataset import Dataset, pick_split, stratified_split
from tinyres.data.fashion import FILES
from tinyres.data.idx import locate, read_idx
from tinyres.data.statistics import training_statistics

FORMS = (("images", "labels", "test_images", "test_labels"),
         ("train_images", "train_labels", "test_images", "test_labels"),
         ("x_train", "y_train", "x_test", "y_test"))
IDX = tuple(file.name for file in FILES.values())
CLASSES = "classes"
MOST_VALIDATION = 5_000
LARGEST_SIZE = 4_096
LONGEST_TEXT = 2**20  # bytes of classes.txt
MOST_CLASSES = 100_000

Arrays = tuple[np.ndarray, np.ndarray]


def own(path: str | os.PathLike[str], split: str = "train", size: int | None = None) -> Dataset:
    """Data of one's own as a Dataset, its name the path; see the top of this file for what is read.

    split: "train" or "test"; where the data has no test split, a fixed fifth of it, stratified, is held out as one.
    "fit" and "validation" divide the training images: a fifth of them, at most 5,000, for validation. Mean and std are
    those of "train". Floating images have scale 1, bytes 255. size: scale images in files to size x size pixels.

    Read once a process, and again when a file changes. Raises FileNotFoundError if there is nothing at the path;
    ValueError or TypeError, naming the file, what was found, what was expected and the fix, for anything else. Nothing
    in the data can run code: arrays of Python objects are refused.
    """
    root = _root(path)
    if size is not None and not (isinstance(size, (int, np.integer)) and 1 <= size <= LARGEST_SIZE):
        raise ValueError(f"own data: size is {size!r}, expected a whole number from 1 to {LARGEST_SIZE:,}")
    form = _form(root)
    if size is not None and form != "images":
        raise ValueError(f"own data: size is {size}, but {root} holds arrays, expected none: size is for folders of "
                         "images; leave it out, or scale the arrays before you save them")
    listing = image_folder.listing(root) if form == "images" else None
    files = _files(root, form) if listing is None else listing.paths
    train, test = _train_and_test(os.fspath(path), root, listing, size, _stamps(files))
    return pick_split(split, train, test, max(1, min(MOST_VALIDATION, len(train) // 5)))


def has_test_split(path: str | os.PathLike[str]) -> bool:
    """Whether the data at a path has a test split of its own; otherwise `own` holds out a fifth of it."""
    root = _root(path)
    form = _form(root)
    if form == "images":
        return "test" in dict(image_folder.listing(root).splits)
    if form == "idx":
        return locate(root, IDX[2]).exists()
    return any(images in _names(root) for _, _, images, _ in FORMS)


@functools.lru_cache(maxsize=1)
def _train_and_test(name: str, root: Path, listing: image_folder.Listing | None, size: int | None,
                    stamps: tuple[tuple[int, ...], ...]) -> tuple[Dataset, Dataset]:
    """Both splits. stamps: of the files, so that changed ones are read again."""
    classes: Sequence[str] | None
    if listing is not None:
        sets, classes = image_folder.read(listing, size), listing.classes
    else:
        sets = _read_idx(root) if _form(root) == "idx" else _read_arrays(root)
        classes = _class_names(root)
    images, labels = sets["train"]
    if classes is None:
        classes = _numbered(name, labels)
    if len(classes) < 2:
        raise ValueError(f"{name}: the data has {len(classes)} class, expected at least 2 to tell apart")
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    unit = [0.0] * images.shape[1], [1.0] * images.shape[1]
    train = Dataset(images, labels, classes, *unit, scale, name)
    if "test" in sets:
        test = Dataset(*sets["test"], classes, *unit, scale, name)
        if (test.images.dtype, test.images.shape[1:]) != (images.dtype, images.shape[1:]):
            raise ValueError(f"{name}: the test images are {test.images.dtype} {test.images.shape[1:]} (C, H, W), "
                             f"expected {images.dtype} {images.shape[1:]} as the training images are")
    else:
        kept, held_out = stratified_split(train.labels, max(1, len(train) // 5), seed=0)
        train, test = train.subset(kept), train.subset(held_out)
    statistics = training_statistics(train.images, scale)
    return train.with_normalisation(*statistics), test.with_normalisation(*statistics)


# --- files ------------------------------------------------------------------------------------------------------------


def _root(path: str | os.PathLike[str]) -> Path:
    root = Path(os.path.expanduser(path))
    if not root.exists():
        raise FileNotFoundError(f"own data: there is nothing at {root.absolute()}, expected a folder (of images, or "
                                "with images.npy and labels.npy) or an .npz file: check the path")
    if not root.is_dir() and not root.is_file():
        raise ValueError(f"own data: {root} is a device or the like, expected a folder or an .npz file: copy it first")
    return root.resolve()


def _form(root: Path) -> str:
    """What is there: "arrays" (a file, or .npy files in a folder), "idx" files, or else "images"."""
    if root.is_file() or any((root / f"{name}.npy").exists() for form in FORMS for name in form):
        return "arrays"
    return "idx" if any(locate(root, name).exists() for name in IDX) else "images"


def _files(root: Path, form: str) -> list[Path]:
    """The files that are read for arrays."""
    if root.is_file():
        return [root]
    files = list(root.glob("*.npy")) if form == "arrays" else [locate(root, name) for name in IDX]
    return [path for path in [*files, root / f"{CLASSES}.txt"] if path.exists()]


def _stamps(files: Sequence[Path]) -> tuple[tuple[int, ...], ...]:
    """What changes when a file does, and cannot all be set back by hand."""
    found = [os.stat(file) for file in files]
    return tuple((at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for at in found)


def _names(root: Path) -> list[str]:
    """The names of the arrays in a folder or an .npz file."""
    return [path.stem for path in root.glob("*.npy")] if root.is_dir() else names_in_npz(root)


def _read_arrays(root: Path) -> dict[str, Arrays]:
    """{"train": (images, labels)}, and "test" if it is there, from a folder of .npy files or an .npz file."""
    names = _names(root)
    forms = [form for form in FORMS if form[0] in names or form[1] in names]
    if len(forms) != 1:
        found = ", ".join(sorted(names)[:10]) or "no arrays"
        choice = "; or ".join(f"{images} and {labels}" for images, labels, *_ in FORMS)
        raise ArraysError(f"{root} holds {found}, expected one of: {choice}. Save or rename the arrays so")
    images, labels, test_images, test_labels = forms[0]
    pairs = {"train": (images, labels), "test": (test_images, test_labels)}
    if test_images not in names and test_labels not in names:
        del pairs["test"]
    for pair in pairs.values():
        for name, other in (pair, pair[::-1]):
            if name not in names:
                raise ArraysError(f"{root} holds {other} without {name}, expected both. Save {name} too")

    def array(name: str) -> np.ndarray:
        return read_npy(root / f"{name}.npy") if root.is_dir() else read_npz(root, name)

    return {split: (_nchw(f"{root}: {images}", array(images)), _labels(f"{root}: {labels}", array(labels)))
            for split, (images, labels) in pairs.items()}


def _read_idx(root: Path) -> dict[str, Arrays]:
    """{"train": (images, labels)}, and "test" if it is there, from two or four idx files."""
    images, labels, test_images, test_labels = (locate(root, name) for name in IDX)
    pairs = {"train": (images, labels), "test": (test_images, test_labels)}
    if not test_images.exists() and not test_labels.exists():
        del pairs["test"]
    return {split: (read_idx(pixels, (None, None, None))[:, None], read_idx(numbers, (None,)))
            for split, (pixels, numbers) in pairs.items()}


def _nchw(where: str, images: np.ndarray) -> np.ndarray:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) as (N, C, H, W). Raises ArraysError where it cannot be told."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise ArraysError(f"{where} have shape {images.shape}, expected (N, H, W), (N, H, W, C) or (N, C, H, W): "
                          "reshape them before you save them")
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first and last:
        raise ArraysError(f"{where} have shape {images.shape}, expected to see which side is the channels: it can be "
                          f"(N, C, H, W) or (N, H, W, C). Make a data.Dataset of them in Python, or pad the images")
    if not first and not last:
        raise ArraysError(f"{where} have shape {images.shape}, expected 1 or 3 channels in second or last place: "
                          "images with a fourth, transparency, need images[..., :3]")
    return images if first else images.transpose(0, 3, 1, 2)


# --- labels and classes -----------------------------------------------------------------------------------------------


def _labels(where: str, labels: np.ndarray) -> np.ndarray:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise TypeError(f"{where} are {labels.dtype} of shape {labels.shape}, expected integers of shape (N,), such as "
                        "numpy.unique(labels, return_inverse=True)[1].ravel()")
    return labels


def _numbered(where: str, labels: np.ndarray) -> list[str]:
    """The training labels as class names, if they are 0, 1, ... K-1; a label of a billion makes no billion names."""
    values = np.unique(labels)
    if len(values) == 0 or values[0] != 0 or values[-1] != len(values) - 1:
        found = ", ".join(str(value) for value in values[:10])
        raise ValueError(f"{where}: the labels are {found or 'none'}{', ...' * (len(values) > 10)}, expected 0, 1, 2 "
                         "and so on without gaps: numpy.unique(labels, return_inverse=True)[1] renumbers them; or name "
                         f"all classes in {CLASSES}.txt")
    return [str(value) for value in values]


def _class_names(root: Path) -> list[str] | None:
    """The names in classes.txt or the array `classes`, if there is one."""
    where = f"{root / CLASSES}.txt" if root.is_dir() else f"{root}: {CLASSES}"
    if root.is_dir():
        if not Path(where).exists():
            return None
        names = _lines(Path(where))
    else:
        if CLASSES not in names_in_npz(root):
            return None
        texts = read_npz(root, CLASSES)
        if texts.ndim != 1 or texts.dtype.kind != "U":
            raise ArraysError(f"{where} are {texts.dtype} of shape {texts.shape}, expected texts of shape (K,)")
        names = texts.tolist()
    if not 0 < len(names) <= MOST_CLASSES or "" in names or len(set(names)) < len(names):
        twice = next((name for name, count in Counter(names).items() if count > 1), "")
        what = f"{twice!r} twice" if twice else "an empty name" if "" in names else f"{len(names):,} names"
        raise ValueError(f"{where} holds {what}, expected a different name for every class, in the labels' order, "
                         f"{MOST_CLASSES:,} at most")
    return names


def _lines(path: Path) -> list[str]:
    """The lines of a text file without empty ones at its end."""
    if not path.is_file():
        raise ValueError(f"{path} is a folder or a device, expected a plain file with a class name a line")
    with open(path, "rb") as file:
        content = file.read(LONGEST_TEXT + 1)
    if len(content) > LONGEST_TEXT:
        raise ValueError(f"{path} has more than {LONGEST_TEXT:,} bytes, expected a class name a line")
    try:
        names = [line.strip() for line in content.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}), expected a class name a line") from error
    while names and not names[-1]:
        names.pop()
    return names
