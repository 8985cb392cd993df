"""Arrays in NumPy's .npy format, read without trusting the header: no Python objects, and no room before it is checked.

NumPy's own reader takes a header's word for the size of what follows, be it petabytes. Here the file, or the member of
an .npz, must have exactly as many bytes as the header says.
"""

from __future__ import annotations

import io
import math
from typing import IO

import numpy as np

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000  # bytes; that of an array of numbers has 118
CHUNK = 1 << 20  # bytes read at a time, so that they are not in memory twice


def read_array(where: str, file: IO[bytes], length: int, kinds: str = "biuf") -> np.ndarray:
    """The array in a stream that is an .npy file of `length` bytes; writable, in this machine's byte order.

    where: what messages begin with. kinds: the kinds of dtype (numpy.dtype.kind) that are taken. Raises ValueError for
    a damaged header, another kind, or another number of bytes than the header says; and what reading `file` raises.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError(f"{where} is no .npy file: it does not begin with \\x93NUMPY")
    shape, fortran, dtype = _header(where, file)
    if dtype.kind not in kinds or dtype.itemsize == 0:
        what = "Python objects, which are never loaded" if dtype.hasobject else f"values of type {dtype}"
        raise ValueError(f"{where} holds {what}, expected numbers{' or texts' if 'U' in kinds else ''}")
    if min(shape, default=0) < 0:
        raise ValueError(f"{where} has the shape {shape} by its header, expected sizes of at least 0")
    claimed, room = math.prod(shape) * dtype.itemsize, length - file.tell()
    if claimed != room:
        raise ValueError(f"{where} has {room:,} bytes of values, expected {claimed:,} for {dtype} {shape} by its "
                         "header: it is truncated, has bytes behind its end, or its header is wrong")
    content, filled = bytearray(claimed), 0
    while part := file.read(min(CHUNK, claimed - filled)):
        content[filled:filled + len(part)] = part
        filled += len(part)
    if filled != claimed:
        raise ValueError(f"{where} has {filled:,} bytes of values, expected {claimed:,}: it is truncated")
    if dtype.kind == "U":
        points = np.frombuffer(content, dtype.byteorder.replace("|", "=") + "u4")
        if ((points > 0x10FFFF) | (points >> 11 == 0xD800 >> 11)).any():
            raise ValueError(f"{where} holds texts with characters that are none, expected Unicode")
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _header(where: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first index runs fastest, and dtype. NumPy parses the text, once its length is checked."""
    from numpy.lib import format as npy

    version = tuple(file.read(2))
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{where} has version {version} of the .npy format, expected (1, 0) or (2, 0)")
    read, width = (npy.read_array_header_1_0, 2) if version == (1, 0) else (npy.read_array_header_2_0, 4)
    size = file.read(width)
    length = int.from_bytes(size, "little")
    if length > LONGEST_HEADER:
        raise ValueError(f"{where} has a header of {length:,} bytes, expected at most {LONGEST_HEADER:,}")
    text = file.read(length)
    try:
        return read(io.BytesIO(size + text))
    except Exception as error:  # NumPy has it parsed as Python: damaged, it fails in many ways
        raise ValueError(f"{where} has a damaged header: {type(error).__name__}: {error}") from error
