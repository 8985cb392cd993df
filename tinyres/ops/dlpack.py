"""DLPack: arrays handed from one library to another without a copy (dmlc.github.io/dlpack, the Python protocol).

    tr.from_dlpack(x)              x of NumPy, PyTorch, CuPy, ...: both then see each other's changes
    torch.from_dlpack(t)           t a Tensor of this library; so do np.from_dlpack and cupy.from_dlpack
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyres.kernels import layout
from tinyres.operands import type_name
from tinyres.ops.create import gpu_library
from tinyres.tensor import Tensor

CPU, CUDA, PINNED = 1, 2, 3  # DLPack's numbers for kinds of memory; pinned memory is the host's


def from_dlpack(x: Any) -> Tensor:
    """A Tensor in the memory of `x`, an array or tensor of any library that has `__dlpack__`; it requires no gradient.

    NumPy's and other host memory gives a Tensor on "cpu", CUDA memory one on "cuda". A 4-D array whose memory is not
    channels-last is copied, which layout.count_copies() counts; all others share memory with `x`. Host memory that is
    read-only stays so; CuPy's arrays cannot be. Raises TypeError for what has no `__dlpack__` and for other than
    floats, integers and booleans; ValueError for memory of other devices; BufferError for a tensor that requires a
    gradient: detach() it first.
    """
    if not hasattr(x, "__dlpack__") or not hasattr(x, "__dlpack_device__"):
        raise TypeError(f"from_dlpack: expected an array or tensor that has __dlpack__, got {type_name(x)}; use "
                        "tr.tensor(x)")
    kind, number = x.__dlpack_device__()
    kind = int(kind)
    if kind not in (CPU, CUDA, PINNED) or (kind == CUDA and number != 0):
        raise ValueError(f"from_dlpack: got memory of DLPack device {(kind, number)}, expected the host's (1 or 3) or "
                         "the first GPU's (2, 0); move it there first")
    library = gpu_library() if kind == CUDA else np
    try:
        array = library.from_dlpack(x)
    except BufferError as error:
        raise BufferError(f"from_dlpack: {type_name(x)} does not hand out its memory: {error}; detach() a tensor that "
                          "requires a gradient, copy() others") from error
    except (RuntimeError, ValueError, TypeError) as error:
        raise TypeError(f"from_dlpack: {type_name(x)} of {getattr(x, 'dtype', 'unknown dtype')}: {error}; convert it "
                        "there to float32, float64 or int64") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"from_dlpack: got {array.dtype} of shape {tuple(array.shape)}, expected floats, integers or "
                        "booleans; convert it there")
    return Tensor(layout.channels_last(array) if array.ndim == 4 else array)


def export(x: Tensor, **options: Any) -> Any:
    """The tensor's memory for another library, without a copy; the options are the protocol's (stream, max_version,
    dl_device, copy). Raises BufferError for a tensor that requires a gradient, which the other library would not
    see."""
    if x.requires_grad:
        raise BufferError(f"__dlpack__: a tensor of shape {x.shape} that requires a gradient would lose it in another "
                          "library: use detach()")
    return x.data.__dlpack__(**options)


def export_device(x: Tensor) -> tuple[int, int]:
    """DLPack's numbers for where the tensor is: (1, 0) on the cpu, (2, 0) on the first GPU."""
    return x.data.__dlpack_device__()
