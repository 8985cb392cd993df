"""Part of an image in a small array with a border of zeros, and back: what a thread works on in its cache.

A window is read row by row, as the image lies in memory. So the processor sees what comes next and fetches it in time,
which it cannot when the tiles of an image are picked one by one; and the loops that follow meet no edge.
"""

import numpy as np

from .jit import compiled, inlined


@compiled
def read_window(images, n, H, W, C, top, left, height, width, window, pitch):
    """window[i, j, :C] = pixel (top + i, left + j) of image n, or zero beyond its edges; `pitch` values a pixel.

    What lies between C and pitch is left as it is.
    """
    for i in range(height):
        h = top + i
        target = i * width * pitch
        if h < 0 or h >= H:
            _clear(window, target, width * pitch)
            continue
        before = min(max(-left, 0), width)
        inside = max(min(W - left, width) - before, 0)
        after = target + (before + inside) * pitch
        _clear(window, target, before * pitch)
        _copy(images, ((n * H + h) * W + left + before) * C, C, window, target + before * pitch, pitch, inside, C,
              False)
        _clear(window, after, (width - before - inside) * pitch)


@compiled
def write_window(window, pitch, width, images, n, H, W, C, top, height, add):
    """Pixel (top + i, j) of image n = [itself, if add] + window[i, j, :C], for those rows and columns that it has."""
    for i in range(min(height, H - top)):
        _copy(window, i * width * pitch, pitch, images, ((n * H + top + i) * W) * C, C, W, C, add)


@inlined
def _clear(values, i, count):
    i = np.uint64(i)
    for j in range(np.uint64(count)):
        values[i + j] = 0


@inlined
def _copy(source, start, step, target, to, to_step, pixels, C, add):
    """target[to + p*to_step : + C] = source[start + p*step : + C] for so many pixels p, or += if add.

    In one run where the pixels touch.
    """
    if step == C and to_step == C:
        pixels, C = 1, pixels * C
    for p in range(pixels):
        i, o = np.uint64(start + p * step), np.uint64(to + p * to_step)
        if add:
            for j in range(np.uint64(C)):
                target[o + j] += source[i + j]
        else:
            for j in range(np.uint64(C)):
                target[o + j] = source[i + j]
