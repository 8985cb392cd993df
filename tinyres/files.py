"""Files: written whole or not at all; arrays in safetensors and .npz files, read and checked. Never a pickle.

Every file is written under a temporary name in its folder and then renamed: a reader finds the old one or the new one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tinyres.npy import read_array

PICKLE = "a pickle"
OTHER_KINDS = {b"\x80\2": PICKLE, b"\x80\3": PICKLE, b"\x80\4": PICKLE, b"\x80\5": PICKLE,
               b"\x89HDF": "an HDF5 file, expected safetensors, .npz or .pt",
               b"version https://git-lfs": "a Git LFS pointer, not the file itself: fetch it with git lfs pull",
               b"<": "an HTML or XML page, expected safetensors, .npz or .pt"}

UNPACKED = 256 << 20  # bytes that any .npz may unpack to: the weights of resnet152 have 241,000,000
SHRINKAGE = 256  # a larger one may unpack to so many times its own size

Arrays = dict[str, np.ndarray]
PathLike = str | os.PathLike[str]


class WeightsError(ValueError):
    """A file of weights that cannot be read, or does not fit."""


def write_atomically(path: PathLike, content: bytes) -> None:
    """Write a file under a temporary name in the same folder, flush it to the disk, and rename it.

    Raises OSError, as when the disk is full; the old file is still there then, and the temporary one is not.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}; make it first")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush_folder(folder: Path) -> None:
    """Make a rename outlast a power cut, where the system lets a folder be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of a safetensors file with these arrays, and with texts about them if given."""
    from safetensors.numpy import save as serialise

    return serialise(dict(arrays), dict(metadata) if metadata else None)


def read_safetensors(path: Path, content: bytes) -> tuple[Arrays, dict[str, str]]:
    """The arrays, sorted by name, and the texts of a safetensors file's content. Raises WeightsError if damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as deserialise

    try:
        arrays = deserialise(content)
        header = json.loads(content[8:8 + int.from_bytes(content[:8], "little")])
    except KeyError as error:
        raise WeightsError(f"weights: {path} holds arrays of type {error}, which NumPy does not have: convert them to "
                           "float32") from error
    except (SafetensorError, ValueError) as error:  # ValueError: of a shape or number that only Python finds too long
        kind = next((words for magic, words in OTHER_KINDS.items() if content.startswith(magic)), "")
        raise WeightsError(_pickle(path) if kind == PICKLE else f"weights: {path} is {kind}" if kind else
                           f"weights: {path} ({len(content):,} bytes) cannot be read as safetensors: {error}. It is "
                           "truncated, damaged or another kind of file; safetensors, .npz and PyTorch's .pt can be "
                           "read") from error
    return dict(sorted(arrays.items())), header.get("__metadata__") or {}


def read_npz(path: Path, content: bytes) -> Arrays:
    """The arrays in the content of an .npz file. Raises WeightsError if it is damaged or holds anything else.

    It may unpack to UNPACKED bytes, or else to SHRINKAGE times its own size: zeros pack 1,032-fold, trained weights
    hardly at all, and a small file must not fill the memory.
    """
    found: Arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            _check_members(path, members, max(UNPACKED, SHRINKAGE * len(content)))
            for member in members:
                with archive.open(member) as file:
                    name = member.filename.removesuffix(".npy")
                    found[name] = read_array(f"its array {name!r}", file, member.file_size)
        return found
    except WeightsError:
        raise
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, NotImplementedError) as error:
        raise WeightsError(f"weights: {path} ({len(content):,} bytes) cannot be read as .npz: {error}. It is "
                           "truncated, damaged, or holds Python objects, which are never loaded") from error


def _check_members(path: Path, members: list[zipfile.ZipInfo], most: int) -> None:
    """Raise WeightsError, before anything is unpacked, for members that are no arrays, or more than should be there."""
    names: set[str] = set()
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name.endswith("data.pkl"):
            raise WeightsError(_pickle(path))
        if name == member.filename or name in names:
            what = f"{name!r} twice, expected once" if name in names else f"{name!r}, not all of its members are arrays"
            raise WeightsError(f"weights: {path} holds {what}: write it again with numpy.savez")
        names.add(name)
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
            raise WeightsError(f"weights: {path} holds {name!r} encrypted or packed by another method than deflate: "
                               "write it again with numpy.savez")
    size = sum(member.file_size for member in members)
    if size > most:
        raise WeightsError(f"weights: {path} claims to hold {size:,} bytes, expected at most {most:,} in a file of its "
                           "size: no weights shrink so much. If it is real, write it again with numpy.savez, unpacked")


def _pickle(path: Path) -> str:
    return (f"weights: {path} is a PyTorch pickle, which can run code when it is loaded and is never read. Convert it "
            "once, where PyTorch is: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'w.safetensors')")
