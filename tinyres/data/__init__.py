"""Data sets as arrays: `data.digits("train").batch(64)`, `data.cifar10("test")`, `data.Loader(dataset, 128)`."""

import os

from tinyres.data import augment
from tinyres.data.cifar import cifar10, cifar100
from tinyres.data.dataset import SPLITS, Dataset, nearest
from tinyres.data.digits import digits
from tinyres.data.loader import Loader

__all__ = ["NAMES", "SPLITS", "Dataset", "Loader", "augment", "cifar10", "cifar100", "digits", "load"]

NAMES = ("digits", "cifar10", "cifar100")


def load(name: str, split: str = "train", data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set called "digits", "cifar10" or "cifar100".

    split: "train", "test", "fit" or "validation" (see `digits`). data_dir: the folder or archive of a data set that is
    not embedded; otherwise the environment variable TINYRES_DATA says where it is. Raises ValueError for another name.
    """
    if name == "digits":
        return digits(split)
    if name == "cifar10":
        return cifar10(split, data_dir)
    if name == "cifar100":
        return cifar100(split, data_dir)
    raise ValueError(f"no data set {name!r}.{nearest(name, NAMES)} There are {', '.join(NAMES)}")
