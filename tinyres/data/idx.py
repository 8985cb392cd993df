"""Files in the idx format of MNIST and Fashion-MNIST, plain or packed by gzip, read without trusting a byte of them.

A file is a magic number (two zero bytes, the type, the number of dimensions), each dimension as a 32-bit big-endian
number, and the values. LeCun, Cortes and Burges, The MNIST database of handwritten digits, 1998. Only type 8, unsigned
bytes, is read.
"""

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinyres.data.bounds import check_shrinkage

UNSIGNED_BYTE = 8
GZIP = b"\x1f\x8b"
UNREADABLE = (EOFError, zlib.error, OSError)
OTHER_KINDS = {b"<": "an HTML or XML page", b"version ": "a Git LFS pointer", b"PK": "a zip archive"}


def header(shape: Sequence[int]) -> bytes:
    """The header of an idx file of bytes with these dimensions."""
    return bytes([0, 0, UNSIGNED_BYTE, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)


def locate(folder: Path, name: str) -> Path:
    """The file of this name in a folder if it is there unpacked, else NAME.gz, whether that is there or not."""
    unpacked = folder / name
    return unpacked if unpacked.is_file() else folder / f"{name}.gz"


def read_idx(path: Path, shape: Sequence[int | None], fix: str = "Get the file again") -> np.ndarray:
    """The values of an idx file, uint8, read-only; shape: the dimensions expected, None for one of any size.

    The header is checked, and the size that it claims, before room is made for the values; of a gzip file no more is
    unpacked than that and one byte. Raises FileNotFoundError, and ValueError that names the file, what was found, what
    was expected, and `fix`, for another type or other dimensions, a file that is truncated, too long or damaged.
    """
    where = f"idx file {path}"
    if not path.exists():
        raise FileNotFoundError(f"{where}: there is no such file. {fix}")
    if not path.is_file():
        raise ValueError(f"{where}: it is a folder or a device, expected a plain file. {fix}")
    with open(path, "rb") as plain:
        length = os.fstat(plain.fileno()).st_size
        packed = plain.read(2) == GZIP
        plain.seek(0)
        file = gzip.GzipFile(fileobj=plain) if packed else plain
        try:
            dimensions = _dimensions(where, file.read(4 + 4 * len(shape)), shape, fix)
            claimed = math.prod(dimensions)
            room = length - 4 - 4 * len(shape)
            if packed:
                check_shrinkage(where, claimed, length, fix)
            elif room != claimed:
                raise ValueError(_wrong_length(where, f"{room:,}", dimensions, fix))
            content = file.read(claimed + 1)
        except UNREADABLE as error:
            raise ValueError(f"{where} ({length:,} bytes) cannot be unpacked: {error}. It is truncated or damaged. "
                             f"{fix}") from error
    if len(content) != claimed:
        found = f"{len(content):,}" if len(content) < claimed else f"more than {claimed:,}"
        raise ValueError(_wrong_length(where, found, dimensions, fix))
    return np.frombuffer(content, np.uint8).reshape(dimensions)


def _dimensions(where: str, found: bytes, shape: Sequence[int | None], fix: str) -> tuple[int, ...]:
    """The dimensions in a header, which must be those expected."""
    magic = bytes([0, 0, UNSIGNED_BYTE, len(shape)])
    if found[:4] != magic:
        kind = next((f" ({words})" for start, words in OTHER_KINDS.items() if found.startswith(start)), "")
        raise ValueError(f"{where}: it begins with {found[:4].hex() or 'nothing'}{kind}, expected {magic.hex()}, the "
                         f"magic number of bytes in {len(shape)} dimensions. {fix}")
    if len(found) < 4 + 4 * len(shape):
        raise ValueError(f"{where}: it ends in the header, after {len(found)} bytes, expected {4 + 4 * len(shape)}. "
                         f"{fix}")
    dimensions = tuple(int.from_bytes(found[at : at + 4], "big") for at in range(4, len(found), 4))
    if any(size < 1 if wanted is None else size != wanted for size, wanted in zip(dimensions, shape, strict=True)):
        wanted_text = " x ".join("any" if wanted is None else f"{wanted:,}" for wanted in shape)
        raise ValueError(f"{where}: its dimensions are {_times(dimensions)}, expected {wanted_text}. {fix}")
    return dimensions


def _wrong_length(where: str, found: str, dimensions: tuple[int, ...], fix: str) -> str:
    return (f"{where}: {found} bytes of values, expected {math.prod(dimensions):,} ({_times(dimensions)} by its "
            f"header): it is truncated, or has bytes behind its end. {fix}")


def _times(dimensions: Sequence[int]) -> str:
    return " x ".join(f"{size:,}" for size in dimensions)
