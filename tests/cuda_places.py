"""Where the tests of CUDA kernels run: on the emulator, and on a GPU where there is one.

    @pytest.mark.parametrize("place", PLACES)
    def test_it(place):
        y = kernel_set.conv2d(place.put(x), place.put(w), ...)     # arrays of the place, in their memory order
        assert_close(place.get(y), expected)
"""

from __future__ import annotations

import numpy as np
import pytest

from tinyres.kernels import layout


class Host:
    """NumPy's arrays as they are: for the emulator, and for kernels of the processor beside it."""

    def put(self, a):
        return a

    def get(self, a):
        return a


class Gpu:
    def put(self, a):
        import cupy

        if a.ndim == 4:
            return layout.nchw(cupy.asarray(np.ascontiguousarray(a.transpose(0, 2, 3, 1))))
        return cupy.asarray(np.ascontiguousarray(a))

    def get(self, a):
        return layout.nchw(a.transpose(0, 2, 3, 1).get()) if a.ndim == 4 else a.get()


HOST = Host()
PLACES = [pytest.param(HOST, id="emulator"), pytest.param(Gpu(), id="gpu", marks=pytest.mark.gpu)]
