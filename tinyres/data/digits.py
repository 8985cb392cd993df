"""Handwritten digits that come with the package: 1,797 grey images of 8x8 pixels, values 0 to 16, ten classes.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (CC BY 4.0, see LICENSE-digits.txt),
as scikit-learn distributes them. There is no official split; ours is fixed for ever: 1,437 images to train on and 360
to test, the classes in the same proportion.
"""

import functools
from importlib import resources

import numpy as np

from tinyres.data.dataset import Dataset, pick_split, stratified_split

TEST_SIZE = 360
VALIDATION_SIZE = 287  # a fifth of the training images
BRIGHTEST = 16.0


def digits(split: str = "train") -> Dataset:
    """The digits as a Dataset of (N, 1, 8, 8) bytes from 0 to 16; needs no file and no network.

    split: "train" (1,437) or "test" (360); or, to choose between models without looking at the test set, "fit" (1,150)
    and "validation" (287), which divide the training images. Raises ValueError for another name.
    """
    train, test = _train_and_test()
    return pick_split(split, train, test, VALIDATION_SIZE)


@functools.lru_cache(maxsize=1)
def _train_and_test() -> tuple[Dataset, Dataset]:
    with resources.files("tinyres.data").joinpath("digits.npz").open("rb") as file:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays["images"][:, None], arrays["labels"]
    train, test = stratified_split(labels, TEST_SIZE, seed=0)
    names = [str(digit) for digit in range(10)]
    train_set = Dataset(images[train], labels[train], names, scale=BRIGHTEST, name="digits")
    test_set = Dataset(images[test], labels[test], names, train_set.mean, train_set.std, BRIGHTEST, "digits")
    return train_set, test_set
