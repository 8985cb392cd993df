"""The set "im2col" for CuPy arrays: the convolution of conv.py with the product of the library, which is cuBLAS.

im2col and col2im are our kernels, the product between them is NVIDIA's. It is one 2-D product for each group: CuPy's
products of more dimensions make copies, and convert half precision to single first.
"""

from __future__ import annotations

import numpy as np

from ..layout import array_module
from .conv import Convolutions


class Library:
    """The products of matmul.py, by xp.matmul."""

    @staticmethod
    def a_bt(a, b, c, groups):
        """c = a b^T in each group: a (M, L), b (K, L), c (M, K)."""
        for group in range(groups):
            _multiply(_matrix(a, group, groups), _matrix(b, group, groups).T, _matrix(c, group, groups))

    @staticmethod
    def a_b(a, b, c, groups, add=False):
        """c = a b, or c += a b, in each group: a (M, K), b (K, L), c (M, L)."""
        for group in range(groups):
            _multiply(_matrix(a, group, groups), _matrix(b, group, groups), _matrix(c, group, groups), add)

    @staticmethod
    def sum_bt_a(pairs, c, groups):
        """c (G, K, L) = the sum over all pairs (a, b) of b^T a in each group; the pairs' sums are added in double."""
        total = 0
        for a, b in pairs:
            for group in range(groups):
                _multiply(_matrix(b, group, groups).T, _matrix(a, group, groups), c[group])
            total = c.astype(np.float64) + total
        c[...] = total


def _matrix(a, group, groups):
    """One group's matrix, a view of an array (G, rows, columns) or (rows, G*columns)."""
    if a.ndim == 3:
        return a[group]
    width = a.shape[1] // groups
    return a[:, group * width : (group + 1) * width]


def _multiply(a, b, c, add=False):
    """c = a b, or c += a b. Straight into c where it is contiguous, as CuPy asks of `out`."""
    xp = array_module(c)
    if add:
        c += xp.matmul(a, b)
    elif c.flags.c_contiguous:
        xp.matmul(a, b, out=c)
    else:
        c[...] = xp.matmul(a, b)


_with_library = Convolutions(Library)
conv2d, conv2d_input_grad = _with_library.conv2d, _with_library.conv2d_input_grad
conv2d_input_grad_add, conv2d_weight_grad = _with_library.conv2d_input_grad_add, _with_library.conv2d_weight_grad
