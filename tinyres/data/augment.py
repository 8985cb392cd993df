"""Augmentation of a whole batch at once, on the stored values (bytes stay bytes).

A transform is called with images (N, C, H, W), channels-last in memory, and one random word a sample (N,) uint64; it
returns images of the same shape, dtype and layout, and changes nothing in place. It draws from the words only, so what
happens to a sample depends on (seed, epoch, sample) alone: see philox.py.

Both are NumPy arrays, or CuPy arrays where the data set lives on the GPU. There the transforms here are one kernel
(see `fused`), which gives the same bits; one of your own is called with what is on the device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres.data import philox
from tinyres.data.dataset import Dataset, nearest
from tinyres.kernels.layout import array_module

Transform = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class RandomCrop:
    """Pad every side with `padding` zeros, then cut a window of the old size at a random place.

    He et al., "Deep residual learning" (2015), section 4.2, with 4 pixels. All windows of all padded images are a view
    (the window's two offsets are two more axes, with the strides of a row and of a pixel): one gather picks N of them,
    and copies each image row as one run of W*C values.
    """

    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 1:
            raise ValueError(f"RandomCrop: padding is {self.padding}, expected at least 1 pixel")

    def __call__(self, images: Any, words: Any) -> Any:
        xp, (n, c, h, w) = array_module(images), images.shape
        p = self.padding
        padded = xp.zeros((n, h + 2 * p, w + 2 * p, c), dtype=images.dtype)
        padded[:, p:-p, p:-p] = images.transpose(0, 2, 3, 1)
        top, left = philox.integer_pairs(words, 2 * p + 1, 2 * p + 1)
        if xp is not np:  # a thread for each value: there are no runs to copy
            rows, columns = top[:, None] + xp.arange(h), left[:, None] + xp.arange(w)
            return padded[xp.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2)
        lines = padded.reshape(n, h + 2 * p, (w + 2 * p) * c)
        windows = np.lib.stride_tricks.sliding_window_view(lines, (h, w * c), axis=(1, 2))
        cropped = windows[np.arange(n), top, left * c]
        return cropped.reshape(n, h, w, c).transpose(0, 3, 1, 2)


@dataclass(frozen=True)
class RandomFlip:
    """Mirror each image left to right with probability 1/2. Wrong for digits and letters: a mirrored 2 is no 2.

    One table says where each of the W*C values of a row comes from: a gather of single values along the rows is three
    times as fast as turning round an axis of pixels of C values, C being 3.
    """

    def __call__(self, images: Any, words: Any) -> Any:
        n, c, h, w = images.shape
        chosen = philox.coins(words)
        if array_module(images) is not np:  # how many are chosen is not known there: a mask would wait for that
            nhwc = images.transpose(0, 2, 3, 1)
            picked = array_module(images).where(chosen[:, None, None, None], nhwc[:, :, ::-1], nhwc)
            return picked.transpose(0, 3, 1, 2)
        mirrored = np.arange(w * c).reshape(w, c)[::-1].ravel()
        rows = images.transpose(0, 2, 3, 1).reshape(n, h, w * c).copy()
        rows[chosen] = rows[chosen].take(mirrored, axis=2)
        return rows.reshape(n, h, w, c).transpose(0, 3, 1, 2)


@dataclass(frozen=True)
class Cutout:
    """Fill a square of `size` x `size` pixels, centred anywhere in the image, so that part of it may fall outside.

    DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout" (2017), section 3.2.
    fill: one value or one a channel, in stored units; the paper's fill is the mean (it cuts after normalisation).
    """

    size: int = 16
    fill: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"Cutout: size is {self.size}, expected at least 1 pixel")

    def __call__(self, images: Any, words: Any) -> Any:
        xp, (_, c, h, w) = array_module(images), images.shape
        centre_y, centre_x = philox.integer_pairs(words, h, w)
        square = self._covers(h, centre_y)[:, :, None] & self._covers(w, centre_x)[:, None, :]
        if xp is not np:
            fill = xp.asarray(self.stored_fill(c, images.dtype))
            return xp.where(square[..., None], fill, images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        cut = images.transpose(0, 2, 3, 1).copy()
        cut[square] = self.stored_fill(c, images.dtype)
        return cut.transpose(0, 3, 1, 2)

    def stored_fill(self, channels: int, dtype: Any) -> np.ndarray:
        """The fill of each channel, (channels,), as images of this dtype store it."""
        return np.ascontiguousarray(np.broadcast_to(np.asarray(self.fill).astype(dtype), channels))

    def _covers(self, length: int, centre: Any) -> Any:
        """(N, length) bool: which of the positions the square covers."""
        distance = array_module(centre).arange(length) - (centre[:, None] - self.size // 2)
        return (distance >= 0) & (distance < self.size)


def fused(transforms: Sequence[Transform], channels: int, dtype: Any) -> dict[str, Any] | None:
    """The transforms as the options of kernels.augment, for images of so many channels stored as dtype.

    None where that kernel cannot do them: it knows RandomCrop, RandomFlip and Cutout, in this order, each at most once.
    """
    options: dict[str, Any] = {}
    order = {RandomCrop: "crop", RandomFlip: "flip", Cutout: "cutout"}
    kinds = [type(transform) for transform in transforms]
    if kinds != [kind for kind in order if kind in kinds]:
        return None
    for stream, transform in enumerate(transforms, start=1):
        if isinstance(transform, RandomCrop):
            options["crop"] = stream, transform.padding
        elif isinstance(transform, Cutout):
            options["cutout"] = stream, transform.size, transform.stored_fill(channels, dtype)
        else:
            options["flip"] = stream
    return options


# Digits move by a pixel and are never mirrored; the photographs get the recipe of He et al. (2015), clothes half of it:
# they are centred, and 28 pixels wide.
STANDARD: dict[str, tuple[Transform, ...]] = {
    "digits": (RandomCrop(1),),
    "cifar10": (RandomCrop(4), RandomFlip()),
    "cifar100": (RandomCrop(4), RandomFlip()),
    "fashion": (RandomCrop(2), RandomFlip()),
}


def standard(data: str | Dataset) -> tuple[Transform, ...]:
    """The usual augmentation of a data set, given by its name or itself.

    For a Dataset of another name: a random crop by an eighth of the shorter side, and a flip, the recipe of He et al.
    (2015) at any size. Wrong where left and right differ, as in writing. Raises ValueError for another name.
    """
    name = data if isinstance(data, str) else data.name
    if name in STANDARD:
        return STANDARD[name]
    if isinstance(data, str):
        raise ValueError(
            f"augment.standard: there is none for {name!r}.{nearest(name, STANDARD)} There is one for "
            f"{', '.join(STANDARD)}, and one by size for a Dataset: pass that; or give the Loader a list like "
            "[augment.RandomCrop(4)]"
        )
    return RandomCrop(max(1, min(data.images.shape[2:]) // 8)), RandomFlip()
