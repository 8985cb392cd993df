"""The reference of `augment`: a batch of stored images, moved about, mirrored, cut out and normalised.

Everything that happens to an image but the last step only says which stored value an output value is:

    output pixel (h, w)  --mirrored?-->  (h, W-1-w)  --moved-->  (h + down, W-1-w + right)  of image index[b]

with zeros outside the image, and the fill inside the square that is cut out. So one gather does it all. How far an
image is moved, whether it is mirrored and where it is cut depends on its own random words, which are a function of
(key, stream, number of the image); see philox.py.
"""

import numpy as np

from . import philox
from .layout import array_module, nchw, nhwc


def augment(images, index, factor, offset, key, crop, flip, cutout):
    """x = float32(value) * factor + offset, two roundings; value as in the picture above."""
    xp, (count, _, H, W) = array_module(images), images.shape
    rows, columns = xp.arange(H)[None, :], xp.arange(W)[None, :]  # (B, H) and (B, W): where pixels come from
    if flip is not None:
        mirrored = philox.coins(_words(xp, key, flip, count, index))
        columns = xp.where(mirrored[:, None], W - 1 - columns, columns)
    if crop is not None:
        stream, padding = crop
        top, left = philox.integer_pairs(_words(xp, key, stream, count, index), 2 * padding + 1, 2 * padding + 1)
        rows, columns = rows + (top - padding)[:, None], columns + (left - padding)[:, None]
    row_there, column_there = (rows >= 0) & (rows < H), (columns >= 0) & (columns < W)
    rows, columns = xp.where(row_there, rows, 0), xp.where(column_there, columns, 0)
    value = nhwc(images)[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    inside = row_there[:, :, None, None] & column_there[:, None, :, None]
    value = xp.where(inside, value, images.dtype.type(0))
    if cutout is not None:
        stream, size, fill = cutout
        y, x = philox.integer_pairs(_words(xp, key, stream, count, index), H, W)
        square = _covers(xp, H, y, size)[:, :, None] & _covers(xp, W, x, size)[:, None, :]
        value = xp.where(square[..., None], fill, value)
    return nchw(value.astype(np.float32) * factor + offset)


def _words(xp, key, stream, count, index):
    """The words of the images in a batch, where the images live."""
    return xp.asarray(philox.kept_words(key, stream, count))[index]


def _covers(xp, length, centre, size):
    """(B, length) bool: which positions a square of `size` around `centre` covers."""
    distance = xp.arange(length) - (centre[:, None] - size // 2)
    return (distance >= 0) & (distance < size)
