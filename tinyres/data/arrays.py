"""Arrays from .npy and .npz files, read without trusting their headers: Python objects never, no room before checks.

See npy.py for one array. A member of an .npz, a zip archive of .npy files, may not unpack to more than images ever do.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from tinyres.data.bounds import SizeError, check_shrinkage, check_size
from tinyres.npy import read_array

FIX = "Write it again with numpy.save or numpy.savez, from arrays of numbers"
MOST_MEMBERS = 1_000
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)


class ArraysError(ValueError):
    """A file of arrays that is damaged, hostile, or holds something else than arrays of numbers or texts."""


def read_npy(path: Path) -> np.ndarray:
    """The array in an .npy file. Raises ArraysError, naming the file, what was found and what was expected."""
    if not path.is_file():
        raise ArraysError(f"{path} is a folder or a device, expected a plain file")
    with open(path, "rb") as file:
        return _read_array(str(path), file, os.fstat(file.fileno()).st_size)


def names_in_npz(path: Path) -> list[str]:
    """The names of the arrays in an .npz file. Raises ArraysError as `read_npz` does."""
    with _opened(path) as archive:
        return list(_members(path, archive))


def read_npz(path: Path, name: str) -> np.ndarray:
    """The array of this name in an .npz file.

    Raises ArraysError, naming file and array, what was found and what was expected: no such archive, a truncated one,
    a checksum that is wrong, the array missing or there twice, Python objects. Raises SizeError for more bytes than
    images pack to.
    """
    where = f"{path}: {name}"
    with _opened(path) as archive:
        members = _members(path, archive)
        if name not in members:
            raise ArraysError(f"{path} has no array {name}, expected one; it holds {', '.join(members) or 'nothing'}")
        member = members[name]
        try:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArraysError(f"{where} is packed by method {member.compress_type}, expected deflate. {FIX}")
            check_shrinkage(where, member.file_size, min(member.compress_size, path.stat().st_size),
                            "If it is real, store it unpacked with numpy.savez")
            with archive.open(member) as file:
                return _read_array(where, file, member.file_size)
        except (ArraysError, SizeError):
            raise
        except UNREADABLE as error:
            raise ArraysError(f"{where} cannot be read: {error}. {FIX}") from error


def _opened(path: Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise ArraysError(f"{path} is a folder or a device, expected a plain file")
    try:
        return zipfile.ZipFile(path)
    except UNREADABLE as error:
        raise ArraysError(f"{path} ({path.stat().st_size:,} bytes) cannot be read as .npz: {error}. It is truncated, "
                          f"damaged or another kind of file. {FIX}") from error


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The .npy files in a zip archive, by their names without that ending."""
    found: dict[str, zipfile.ZipInfo] = {}
    for count, member in enumerate(archive.infolist()):
        name = member.filename.removesuffix(".npy")
        if name in found or count == MOST_MEMBERS:
            what = f"{name} twice, expected once" if name in found else f"more than {MOST_MEMBERS:,} arrays"
            raise ArraysError(f"{path} holds {what}. {FIX}")
        if member.filename.endswith(".npy"):
            found[name] = member
    return found


def _read_array(where: str, file: IO[bytes], length: int) -> np.ndarray:
    """The array in the `length` bytes of an .npy file."""
    check_size(where, length, "Use fewer or smaller images")
    try:
        return read_array(where, file, length, "biufU")
    except ValueError as error:
        raise ArraysError(f"{error}. {FIX}") from error
