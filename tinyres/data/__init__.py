"""Data sets as arrays: `data.digits("train").batch(64)`, `data.cifar10("test")`, `data.load("my/photos")`."""

import os

from tinyres.data import augment
from tinyres.data.cifar import cifar10, cifar100
from tinyres.data.dataset import SPLITS, Dataset, nearest
from tinyres.data.digits import digits
from tinyres.data.fashion import fashion
from tinyres.data.loader import Loader
from tinyres.data.own import has_test_split, own

__all__ = [
    "NAMES", "SPLITS", "Dataset", "Loader", "augment", "cifar10", "cifar100", "digits", "fashion", "has_test_split",
    "is_path", "load", "nearest", "own",
]

NAMES = ("digits", "cifar10", "cifar100", "fashion")


def load(
    name: str | os.PathLike[str],
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    size: int | None = None,
) -> Dataset:
    """The data set called "digits", "cifar10", "cifar100" or "fashion", or the data of your own at a path (see `own`).

    split: "train", "test", "fit" or "validation" (see `digits`). data_dir: the folder or archive of a data set that is
    not embedded; otherwise the environment variable TINYRES_DATA says where it is. size: for a folder of images,
    scales them. A folder that is called like a data set needs a path with a separator, "./digits".

    Raises ValueError for a name that is neither, or an argument that does not apply to it; FileNotFoundError if the
    data is not there; and what the data set itself raises.
    """
    text = os.fspath(name)
    if text not in NAMES and is_path(text):
        if data_dir is not None:
            raise ValueError(f"data.load: data_dir is {os.fspath(data_dir)!r}, but {text!r} is a path itself: leave "
                             "data_dir out")
        return own(text, split, size)
    if size is not None:
        raise ValueError(f"data.load: size is {size}, but it is for a folder of images, not for {text!r}: leave it out")
    if text == "digits":
        return digits(split)
    if text == "cifar10":
        return cifar10(split, data_dir)
    if text == "cifar100":
        return cifar100(split, data_dir)
    if text == "fashion":
        return fashion(split, data_dir)
    raise ValueError(
        f"no data set {text!r}.{nearest(text, NAMES)} There are {', '.join(NAMES)}; data of your own is loaded by its "
        "path, a folder or an .npz file, and nothing is at this one"
    )


def is_path(name: str) -> bool:
    """Whether a name means data of one's own: it exists, or it is written as paths are."""
    return os.sep in name or "/" in name or name.startswith("~") or name.endswith(".npz") or os.path.exists(name)
