"""A batch of training images from a data set on the device: see augment.cu."""

import numpy as np

from .. import reference
from ..layout import nchw, nhwc
from . import launch

STORED = {"uint8": "unsigned char", "float32": "float", "float64": "double"}
THREADS, VALUES = 256, 4  # of a block, and of a thread: 3 blocks for an image of 32 x 32 x 3


def augment(images, index, factor, offset, key, crop, flip, cutout):
    """x (B,C,H,W) float32; images of another type, or more of them than 32 bits count, go the reference's way."""
    if images.dtype.name not in STORED or images.size > launch.MOST_VALUES:
        return reference.augment(images, index, factor, offset, key, crop, flip, cutout)
    stored, batch = nhwc(images), len(index)
    _, height, width, channels = stored.shape
    x = launch.empty(images, (batch, height, width, channels), np.float32)
    crop_stream, padding = crop or (0, 0)
    cutout_stream, size, fill = cutout or (0, 0, stored)
    slabs = launch.blocks(height * width * channels, THREADS * VALUES)
    name = f"augment<{STORED[images.dtype.name]}>"
    launch.launch(name, (batch, min(slabs, 65_535)), (THREADS,), stored, index, factor, offset, fill, x,
                  *map(np.int32, (height, width, channels, padding, flip is not None, size)),
                  *map(np.uint64, (*key, crop_stream, flip or 0, cutout_stream)))
    return nchw(x)
