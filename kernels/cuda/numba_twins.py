"""im2col and col2im once more, as CUDA kernels in Python: for the lesson, where one steps through a thread with pdb.

Numba compiles such functions for a GPU. Without one it simulates it: every thread becomes a thread of Python, and runs
the function as it stands here, so that a debugger stops in it. That takes 0.1 ms for each thread and more, so a few
thousand threads are the limit. Nothing in tinyres calls these kernels; what trains are their twins in im2col.cu.

    NUMBA_ENABLE_CUDASIM=1 python
    >>> import numpy as np
    >>> from tinyres.kernels.cuda import numba_twins
    >>> x = np.arange(16, dtype="float32").reshape(1, 1, 4, 4)
    >>> columns = numba_twins.im2col(x, (3, 3), padding=(1, 1), stop=14)     # stop in thread 14
    (Pdb) p i, cuda.blockIdx.x, cuda.threadIdx.x
    (14, 0, 14)
    (Pdb) until 70
    (Pdb) p n, p, q, r, s, c, h, w
    (0, 0, 1, 1, 2, 0, 0, 2)
    (Pdb) p image[n, h, w, c]
    np.float32(2.0)
    (Pdb) continue

Thread 14 writes the value of the pixel (0, 2), for the output pixel (0, 1) and the weight (1, 2). The same picture as
in kernels/im2col.py, one row for each output pixel and one column for each weight:

    image (N, H, W, C)  ->  columns (G, N*P*Q, R*S*C/G)         thread i writes value i of the columns
    columns             ->  image                               thread i writes value i of the image

The second sums, for its pixel, what all windows hold of it (a gather). The other way round, a thread for each value of
the columns that adds it to its pixel, would have many threads add to one address: right only with atomic additions,
whose order, and with it the last bits, is another each time.

What differs from im2col.cu: a Python integer has 64 bits in Numba, and a division by one takes several times as long as
by 32 bits; launching costs some 10 us instead of 3; and the simulator has no warps.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np

from ..layout import array_module, nchw, nhwc
from ..reference import conv_output_size

THREADS = 128  # of a block
NOWHERE = -1  # no thread has this number
cuda: Any = None  # numba.cuda, once it is imported: before that the environment decides whether it is the simulator


def im2col_kernel(image, columns, kernel, stride, padding, dilation, sizes, stop):
    """One thread writes one value of columns (G, N*P*Q, R*S*C/G); image (N, H, W, C); sizes (P, Q)."""
    i = cuda.grid(1)  # = blockIdx.x * blockDim.x + threadIdx.x
    if i == stop:
        breakpoint()
    if i < columns.size:
        # The number i, read as (group, n, p, q, r, s, channel within the group), the last running fastest.
        channels = image.shape[3] // columns.shape[0]
        c = i % channels
        s = i // channels % kernel[1]
        r = i // (channels * kernel[1]) % kernel[0]
        column = i % columns.shape[2]
        row = i // columns.shape[2] % columns.shape[1]
        group = i // (columns.shape[2] * columns.shape[1])
        q = row % sizes[1]
        p = row // sizes[1] % sizes[0]
        n = row // (sizes[1] * sizes[0])
        h = p * stride[0] + r * dilation[0] - padding[0]
        w = q * stride[1] + s * dilation[1] - padding[1]
        inside = 0 <= h < image.shape[1] and 0 <= w < image.shape[2]
        if inside:
            columns[group, row, column] = image[n, h, w, group * channels + c]
        else:
            columns[group, row, column] = 0


def col2im_kernel(columns, image, kernel, stride, padding, dilation, sizes, stop):
    """One thread writes one value of image (N, H, W, C): the sum of all values of columns that were copied from it."""
    i = cuda.grid(1)
    if i == stop:
        breakpoint()
    if i < image.size:
        C, W, H = image.shape[3], image.shape[2], image.shape[1]
        c = i % C
        w = i // C % W
        h = i // (C * W) % H
        n = i // (C * W * H)
        channels = C // columns.shape[0]
        group = c // channels
        total = image.dtype.type(0)
        for r in range(kernel[0]):
            for s in range(kernel[1]):
                # Which window has this pixel at its place (r, s)? The formula for h in im2col, solved for p.
                from_top = h + padding[0] - r * dilation[0]
                from_left = w + padding[1] - s * dilation[1]
                p = from_top // stride[0]
                q = from_left // stride[1]
                whole = from_top % stride[0] == 0 and from_left % stride[1] == 0
                if whole and 0 <= p < sizes[0] and 0 <= q < sizes[1]:
                    row = (n * sizes[0] + p) * sizes[1] + q
                    column = (r * kernel[1] + s) * channels + c % channels
                    total += columns[group, row, column]
        image[n, h, w, c] = total


def im2col(x, kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, stop=NOWHERE):
    """x (N, C, H, W) -> columns (G, N*P*Q, R*S*C/G), of x's dtype, where x is.

    kernel (R, S), stride, padding, dilation: pairs of ints. stop: the thread in which the simulator calls breakpoint().
    Raises ImportError where Numba has no CUDA or, on a GPU, without numba-cuda; ValueError where x is a NumPy array and
    Numba does not simulate, or the other way round, or for `stop` on a GPU.
    """
    N, C, _, _ = x.shape
    sizes = conv_output_size(x.shape, kernel, stride, padding, dilation)
    shape = (groups, N * math.prod(sizes), math.prod(kernel) * (C // groups))
    columns = array_module(x).empty(shape, x.dtype)
    run(im2col_kernel, columns.size, nhwc(x), columns, kernel, stride, padding, dilation, sizes, stop)
    return columns


def col2im(columns, x_shape, kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1), stop=NOWHERE):
    """columns (G, N*P*Q, R*S*C/G) -> (N, C, H, W) = x_shape: the adjoint of im2col, with the same arguments and errors.

    A pixel's values are added in the order of the kernel's rows and columns, so the result is the same each time.
    """
    N, C, H, W = x_shape
    sizes = conv_output_size(x_shape, kernel, stride, padding, dilation)
    image = array_module(columns).empty((N, H, W, C), columns.dtype)
    run(col2im_kernel, image.size, columns, image, kernel, stride, padding, dilation, sizes, stop)
    return nchw(image)


def run(kernel, count, source, target, *arguments):
    """Launch with a thread for each of `count` values; the last block has threads to spare."""
    load()
    compiled = cuda.jit(kernel)
    simulated = "simulator" in type(compiled).__module__
    if simulated and array_module(source) is not np:
        raise ValueError("numba_twins: got CuPy arrays, but NUMBA_ENABLE_CUDASIM is set, and the simulator takes NumPy "
                         "arrays; unset it and start Python anew")
    if not simulated and array_module(source) is np:
        raise ValueError("numba_twins: got NumPy arrays, which only Numba's simulator takes; set "
                         "NUMBA_ENABLE_CUDASIM=1 before Python starts, as Numba reads it when it is imported, or "
                         "give CuPy arrays")
    if not simulated and arguments[-1] != NOWHERE:
        raise ValueError(f"numba_twins: got stop={arguments[-1]}, but only the simulator can stop in a thread; leave "
                         "stop out, or set NUMBA_ENABLE_CUDASIM=1 before Python starts and give NumPy arrays")
    if not simulated and importlib.util.find_spec("numba_cuda") is None:
        raise ImportError("numba_twins: Numba's own CUDA cannot compile breakpoint(); on a GPU the kernels need "
                          "numba-cuda: pip install 'tinyres[gpu-lesson]'")
    compiled[-(-count // THREADS), THREADS](source, target, *arguments)


def load():
    """Bind numba.cuda: the package numba-cuda where that is installed, else Numba's own, which is enough to simulate.
    Raises ImportError where there is neither."""
    global cuda
    try:
        from numba import cuda
    except ImportError as error:
        raise ImportError(f"numba_twins needs CUDA in Numba: pip install 'tinyres[gpu-lesson]' ({error})") from error
