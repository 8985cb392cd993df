"""A data set: images stored once, as they came, and turned into normalised float32 batches on the way out.

Keeping CIFAR-10 as bytes costs 154 MB instead of 614 MB, and makes augmentation a copy of bytes. Images are logical
(N, C, H, W) and lie channels-last in memory, the layout of every image in tinyres.

`dataset.to("cuda")` has the images on the GPU, where batches are then made: over the bus goes nothing but the order of
an epoch.
"""

import copy
import difflib
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tinyres.data import philox
from tinyres.kernels.layout import array_module
from tinyres.ops.create import device_of, move

SPLITS = ("train", "test", "fit", "validation")
CHUNK = 256  # images turned into float64 at a time: 6 MB of 32x32 RGB


class Dataset:
    """Images, their labels, and the statistics that normalise them.

    images: (N, C, H, W) uint8 or floating, kept in that dtype; not copied when channels-last already.
    labels: (N,) integers, kept as int64.
    classes: the names, one a label value.
    mean, std: (C,) of the *training* images on the scale 0..1; None computes them from these images.
    scale: the value of a fully bright pixel, 255 for bytes; 16 for the digits.

    Images and labels live on the CPU, where they are checked, until `to` moves them. The arrays are read-only, since
    several data sets may share them (on the GPU, where arrays cannot be so, do not write into them). Raises TypeError
    or ValueError, naming what it got, for an empty set, wrong dtypes or dimensions, lengths that differ, labels out of
    range, a std that is not positive, images with NaN or Inf.
    """

    images: Any
    labels: Any

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int] | np.ndarray,
        classes: Iterable[str],
        mean: Sequence[float] | np.ndarray | None = None,
        std: Sequence[float] | np.ndarray | None = None,
        scale: float = 255.0,
        name: str = "dataset",
    ):
        self.name = name
        self.classes = tuple(classes)
        self.scale = float(scale)
        self.images = _checked_images(name, images)
        self.labels = _checked_labels(name, labels, len(self.images), len(self.classes))
        if not self.scale > 0:
            raise ValueError(f"{name}: scale is {scale}, expected the positive value of a fully bright pixel, like 255")
        if (mean is None) != (std is None):
            raise ValueError(f"{name}: give both mean and std, or neither to compute them from these images")
        if mean is None or std is None:
            mean, std = channel_statistics(self.images, self.scale)
        self._set_statistics(mean, std)

    def _set_statistics(self, mean: Sequence[float] | np.ndarray, std: Sequence[float] | np.ndarray) -> None:
        self.mean = _checked_channels(self.name, "mean", mean, self.images.shape[1])
        self.std = _checked_channels(self.name, "std", std, self.images.shape[1])
        if not (self.std > 0).all():
            raise ValueError(
                f"{self.name}: std is {self.std.tolist()}, expected positive numbers: a channel that never changes "
                "cannot be normalised; drop it, or give mean and std"
            )
        self._factors: dict[int, tuple[Any, Any]] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.images.shape[1:])
        return f"Dataset({self.name}: {len(self):,} images {shape} {self.images.dtype}, {len(self.classes)} classes)"

    @property
    def device(self) -> str:
        """Where images and labels live, "cpu" or "cuda"; mean and std are always NumPy's."""
        return device_of(self.images)

    def to(self, device: str) -> "Dataset":
        """This data set with images and labels on "cpu" or "cuda", itself where they are there already.

        Its batches are then made there, and are the same, bit for bit. Raises RuntimeError for "cuda" where CuPy or a
        GPU is missing; ValueError for another name.
        """
        if device == self.device:
            return self
        return self._with(_read_only(move(self.images, device)), _read_only(move(self.labels, device)))

    def _with(self, images: Any, labels: Any) -> "Dataset":
        """Other images and labels, known to be in order, under this set's name and statistics."""
        other = copy.copy(self)
        other.images, other.labels, other._factors = images, labels, {}
        return other

    def factors(self, width: int = 1) -> tuple[Any, Any]:
        """1/(scale std) and -mean/std, `width` times: by what a row of pixels is multiplied, and what is added then.

        Two (width * C,) float32, where the images live.
        """
        if width not in self._factors:
            pair = np.tile(1.0 / (self.scale * self.std), width), np.tile(-self.mean / self.std, width)
            factor, offset = (move(values.astype(np.float32), self.device) for values in pair)
            self._factors[width] = factor, offset
        return self._factors[width]

    def normalise(self, images: Any) -> Any:
        """(N, C, H, W) stored values -> (images / scale - mean) / std, float32, channels-last; where this set lives.

        One multiplication and one addition a pixel, with the two factors repeated along a row of the image: NumPy's
        inner loop then has W*C steps instead of C, which is five times faster.
        """
        nhwc = images.transpose(0, 2, 3, 1)
        n, h, w, c = nhwc.shape
        factor, offset = self.factors(w)
        rows = nhwc.reshape(n, h, w * c).astype(np.float32)
        rows *= factor
        rows += offset
        return rows.reshape(n, h, w, c).transpose(0, 3, 1, 2)

    def take(self, index: Sequence[int] | np.ndarray) -> tuple[Any, Any]:
        """The samples at `index` (B,): normalised float32 images (B, C, H, W) and int64 labels (B,)."""
        found = move(_checked_index(self.name, index, len(self)), self.device)
        return self.normalise(self.stored(found)), self.labels[found]

    def stored(self, index: Any) -> Any:
        """The images at `index` (B,), an array where this set lives, as they are stored, (B, C, H, W), channels-last.

        Indexing `images` itself would not do: NumPy promises no memory order for an indexed transposed array.
        """
        return self.images.transpose(0, 2, 3, 1)[index].transpose(0, 3, 1, 2)

    def batch(self, size: int = 64, seed: int = 0) -> tuple[Any, Any]:
        """A random batch without repetition: x (size, C, H, W) float32, channels-last, and y (size,) int64.

        The same seed always gives the same batch, the first one of a shuffled epoch 0; another seed gives another.
        Raises ValueError if the size is not between 1 and the number of images.
        """
        size = operator.index(size)
        if not 1 <= size <= len(self):
            raise ValueError(f"{self.name}.batch: size is {size}, expected 1 to {len(self)}, the number of images")
        return self.take(philox.permutation(seed, 0, len(self))[:size])

    def subset(self, index: Sequence[int] | np.ndarray | range) -> "Dataset":
        """The samples at `index`, in that order, with this set's mean and std. Raises ValueError if out of range."""
        found = move(_checked_index(self.name, index, len(self)), self.device)
        if len(found) == 0:
            raise ValueError(f"{self.name}.subset: the index is empty, expected one image at least")
        return self._with(_read_only(self.stored(found)), _read_only(self.labels[found]))

    def with_normalisation(self, mean: Sequence[float] | np.ndarray, std: Sequence[float] | np.ndarray) -> "Dataset":
        """The same images, not copied, normalised by other statistics, as published weights may need."""
        other = self._with(self.images, self.labels)
        other._set_statistics(mean, std)
        return other


def channel_statistics(images: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (biased) standard deviation a channel of (N, C, H, W) images / scale: two (C,) float64.

    Two passes in float64, the deviations taken from the mean: no cancellation, whatever the images' offset.
    """
    nhwc = images.transpose(0, 2, 3, 1)
    n, h, w, c = nhwc.shape
    chunks = [nhwc[i : i + CHUNK].reshape(-1, w * c) for i in range(0, n, CHUNK)]
    count = n * h * w
    columns = sum(chunk.sum(axis=0, dtype=np.float64) for chunk in chunks)
    mean = np.reshape(columns, (w, c)).sum(axis=0) / count
    columns = np.zeros(w * c)
    for chunk in chunks:
        deviation = chunk - np.tile(mean, w)
        columns += np.einsum("rc,rc->c", deviation, deviation)
    variance = columns.reshape(w, c).sum(axis=0) / count
    return mean / scale, np.sqrt(variance) / scale


def stratified_split(labels: np.ndarray, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sorted index arrays, (N - held_out,) and (held_out,), with the classes in the same proportion in both.

    Each class is shuffled on its own; its k-th of m samples gets the place (k + 1/2) / m in the queue, and the first
    `held_out` of the queue are held out. A class's share is thus right to within one sample.
    """
    shuffled = philox.permutation(seed, 0, len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    queue = np.argsort(place, kind="stable")
    return np.sort(queue[held_out:]), np.sort(queue[:held_out])


def pick_split(split: str, train: Dataset, test: Dataset, validation_size: int) -> Dataset:
    """The split called "train", "test", "fit" or "validation".

    "fit" and "validation" are a fixed, stratified division of the training images: choose hyperparameters with those
    two, then train on "train" and read "test" once. All four are normalised by the statistics of "train".
    Raises ValueError for another name.
    """
    if split == "train":
        return train
    if split == "test":
        return test
    if split not in SPLITS:
        raise ValueError(f"{train.name}: no split {split!r}.{nearest(split, SPLITS)} There are {', '.join(SPLITS)}")
    fit, validation = stratified_split(train.labels, validation_size, seed=1)
    return train.subset(fit if split == "fit" else validation)


def nearest(name: str, choices: Iterable[str]) -> str:
    """' Did you mean ...?' for the choice most like `name`, or '' if none is; to be put behind a full stop."""
    close = difflib.get_close_matches(str(name).lower(), list(choices), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _read_only(array: Any) -> Any:
    """A view that cannot be written into; on the GPU, where there is no such thing, the array itself."""
    if array_module(array) is not np:
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def _checked_images(name: str, images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4:
        raise ValueError(
            f"{name}: images have shape {images.shape}, expected (N, C, H, W); "
            "grey images (N, H, W) need a channel axis: images[:, None]"
        )
    if 0 in images.shape:
        raise ValueError(f"{name}: images have shape {images.shape}: the data set is empty")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise TypeError(f"{name}: images are {images.dtype}, expected uint8 or floating; use images.astype(...)")
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        raise ValueError(f"{name}: the images hold NaN or Inf, expected finite numbers; clean them first")
    return _read_only(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))


def _checked_labels(name: str, labels: Sequence[int] | np.ndarray, images: int, classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{name}: labels are {labels.dtype} of shape {labels.shape}, expected integers of shape (N,)")
    if len(labels) != images:
        raise ValueError(f"{name}: {images} images but {len(labels)} labels, expected one label an image")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ValueError(
            f"{name}: label {labels[wrong[0]]} of image {wrong[0]} is out of range, expected 0 to {classes - 1} for "
            f"{classes} classes ({len(wrong)} such labels)"
        )
    return _read_only(labels.astype(np.int64))


def _checked_channels(name: str, what: str, values: Sequence[float] | np.ndarray, channels: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (channels,) or not np.isfinite(array).all():
        raise ValueError(f"{name}: {what} is {values!r}, expected {channels} finite numbers, one a channel")
    return _read_only(array)


def _checked_index(name: str, index: Any, count: int) -> np.ndarray:
    array = np.asarray(index if array_module(index) is np else move(index, "cpu"))
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name}: index is {array.dtype} of shape {array.shape}, expected integers of shape (B,)")
    wrong = np.flatnonzero((array < 0) | (array >= count))
    if len(wrong):
        raise ValueError(f"{name}: index {array[wrong[0]]} is out of range, expected 0 to {count - 1}")
    return array
