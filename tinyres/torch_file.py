"""PyTorch's own files, .pt and .pth, read without PyTorch and without executing their pickle.

torch.save writes one of two formats. Since version 1.6 a zip archive, stored unpacked:

    NAME/data.pkl         the pickle: names, and for each tensor its storage, offset, shape and strides
    NAME/data/0, 1, ...   the storages, raw
    NAME/byteorder        "little" or "big"; files from before it existed are little endian

Before, and on request still, four pickles and raw bytes one after the other: a magic number; the protocol, 1001; a dict
about the machine; the object; the list of the storages' keys; then each storage, its number of elements (int64) first.

The pickle is told, not run (tinyres/torch_pickle.py). Each tensor's place is checked against its storage, and each
storage against the file, before anything is allocated.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tinyres.files import Arrays, WeightsError
from tinyres.torch_pickle import Refused, Storage, StoredTensor, Told, itemsize, read_pickle

MAGIC = 0x1950A86A20F9469CFC6C
MAGIC_CODE = b"\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."
PROTOCOL = 1001
LOCAL_HEADER = 30  # bytes in front of a zip member's name

SPREAD = 4  # the arrays may take so many times the file's size, as bfloat16 becomes float32 and storages are shared,
ROOM = 64 << 20  # and so many bytes more
DEPTH = 3  # dicts within dicts in which a state dict is looked for

CONVERT = ("Convert it once, where PyTorch is: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
           "'w.safetensors')")

Order = Literal["<", ">"]  # of the bytes of a number
Fetch = Callable[[Storage], "bytes | memoryview"]  # the bytes of a whole storage


def is_torch_file(content: bytes) -> bool:
    """Whether the content of a file is in one of the formats of torch.save, or was made by torch.jit."""
    if content[:1] == b"\x80":
        return MAGIC_CODE in content[:40]
    if content[:4] != b"PK\3\4":
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return False


def read_torch_file(path: Path, content: bytes) -> Arrays:
    """The state dict in the content of a file that torch.save wrote, each tensor as an array of its own.

    It may be the saved object or lie in dicts of it, under any keys ("state_dict", "model" ...); what else they hold is
    passed over, but two state dicts are not chosen between. float16, float32 and float64 stay what they are, bfloat16
    becomes float32, which holds all its values. Raises WeightsError, which names what was found and a fix, for a pickle
    that asks for anything but tensors in dicts and lists, for a truncated, damaged or packed file, for tensors that
    reach beyond their storage or take more memory than SPREAD and ROOM allow, and where there is no state dict.
    """
    try:
        told, fetch, order = _from_zip(content) if content[:2] == b"PK" else _from_legacy(content)
        tensors = _state_dict(told.value)
        _check_room(tensors, SPREAD * len(content) + ROOM)
        return _arrays(tensors, told.storages, fetch, order)
    except Refused as error:
        raise WeightsError(f"weights: {path} is a PyTorch pickle, which is never executed here, and {error}. "
                           f"{CONVERT}") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, NotImplementedError) as error:
        raise WeightsError(f"weights: {path} ({len(content):,} bytes) cannot be read as a file of torch.save: "
                           f"{str(error)[:500]}. It is truncated or damaged: fetch or save it again") from error


# --- the two formats --------------------------------------------------------------------------------------------------


def _from_zip(content: bytes) -> tuple[Told, Fetch, Order]:
    """What the pickle says, a function that gets a storage's bytes, and their byte order ("<" or ">")."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    members = {member.filename: member for member in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Refused(f"it holds {len(roots)} files data.pkl, expected one")
    root = roots[0]
    if f"{root}constants.pkl" in members:
        raise Refused("it is a program of TorchScript: load it with torch.jit.load and save its state_dict()")
    _check_members(archive.infolist(), len(content))
    words = archive.read(f"{root}byteorder") if f"{root}byteorder" in members else b"little"
    if words not in (b"little", b"big"):
        raise Refused(f"its byte order is {words[:20]!r}, expected 'little' or 'big'")

    def fetch(storage: Storage) -> bytes:
        name = f"{root}data/{storage.key}"
        if name not in members:
            raise ValueError(f"its storage {name[:200]!r} is missing")
        has, needs = members[name].file_size, storage.count * itemsize(storage.kind)
        if has != needs:
            raise ValueError(f"its storage {name[:200]!r} has {has:,} bytes, expected {needs:,}")
        return archive.read(members[name])

    return read_pickle(archive.read(f"{root}data.pkl")), fetch, ">" if words == b"big" else "<"


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    """Raise ValueError unless each member is there once, in a part of the file of its own, and Refused where checksums
    are left out or one is packed: what is stored as it is cannot be more than the file."""
    if len({member.filename for member in members}) < len(members):
        raise ValueError("its archive holds a member twice")
    if all(member.CRC == 0 for member in members):  # set_crc32_options(False)
        raise Refused("it was written without checksums, so that damage could not be told")
    end, last = 0, ""
    for member in sorted(members, key=lambda member: member.header_offset):
        packed = member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size
        if packed or member.flag_bits & 1:
            raise Refused(f"its member {member.filename[:200]!r} is packed or encrypted, which torch.save does not do")
        if member.header_offset < end:
            raise ValueError(f"its members {last[:200]!r} and {member.filename[:200]!r} overlap")
        end, last = member.header_offset + LOCAL_HEADER + member.file_size, member.filename
        if end > size:
            raise ValueError(f"its member {last[:200]!r} reaches beyond the end of the file")


def _from_legacy(content: bytes) -> tuple[Told, Fetch, Order]:
    """As _from_zip, from the format of before version 1.6."""
    magic = read_pickle(content)
    protocol = read_pickle(content, magic.end)
    machine = read_pickle(content, protocol.end)
    if (magic.value, protocol.value) != (MAGIC, PROTOCOL) or not isinstance(machine.value, dict):
        raise ValueError("its first pickles are not those of protocol 1001")
    if machine.value.get("little_endian") is not True:
        raise Refused("it was written on a machine with the other byte order")
    told = read_pickle(content, machine.end)
    keys = read_pickle(content, told.end)
    at, places = keys.end, {}
    for key in keys.value if isinstance(keys.value, list) else ():
        if not isinstance(key, str) or key not in told.storages or key in places:
            raise ValueError("its list of storages names one that no tensor has, or one twice")
        storage = told.storages[key]
        count = int.from_bytes(content[at:at + 8], "little")
        begin, at = at + 8, at + 8 + storage.count * itemsize(storage.kind)
        if count != storage.count:
            raise ValueError(f"its storage {key[:200]!r} has {count:,} elements, expected {storage.count:,}")
        if at > len(content):
            raise ValueError(f"its storage {key[:200]!r} reaches beyond the end of the file")
        places[key] = begin, at

    def fetch(storage: Storage) -> memoryview:
        if storage.key not in places:
            raise ValueError(f"its storage {storage.key[:200]!r} is missing")
        begin, end = places[storage.key]
        return memoryview(content)[begin:end]

    return told, fetch, "<"


# --- the state dict ---------------------------------------------------------------------------------------------------


def _state_dict(saved: Any) -> dict[str, StoredTensor]:
    """The one dict, in `saved` or in dicts within it, that holds tensors with dimensions; raises Refused otherwise."""
    if not isinstance(saved, dict):
        kind = "tensor" if isinstance(saved, StoredTensor) else type(saved).__name__
        raise Refused(f"it holds a {kind}, expected a state dict: save model.state_dict()")
    found: list[tuple[str, dict[str, Any]]] = []
    level, seen = [("", saved)], {id(saved)}
    for _ in range(DEPTH + 1):
        deeper = []
        for path, entries in level:
            if any(isinstance(value, StoredTensor) and value.shape for value in entries.values()):
                found.append((path, entries))
            for name, value in entries.items():
                if isinstance(value, dict) and id(value) not in seen:
                    seen.add(id(value))
                    deeper.append((f"{path}.{name[:200]}"[:200].lstrip("."), value))
        level = deeper
    if len(found) != 1:
        if not found:
            keys = ", ".join(repr(key[:200]) for key in list(saved)[:20])
            raise Refused(f"it holds no tensors with dimensions; its keys are {keys or 'none'}")
        words = ", ".join(sorted(repr(path) if entries is not saved else "the saved dict itself"
                                 for path, entries in found)[:20])
        raise Refused(f"it holds {len(found)} state dicts, expected one: {words}. Save one of them alone")
    return {name: value for name, value in found[0][1].items() if isinstance(value, StoredTensor)}


def _check_room(tensors: dict[str, StoredTensor], most: int) -> None:
    """Raise Refused if the arrays would take more bytes: an axis with stride 0 costs the file nothing."""
    size = sum(math.prod(tensor.shape) * max(4, itemsize(tensor.storage.kind)) for tensor in tensors.values())
    if size > most:
        raise Refused(f"its tensors would take {size:,} bytes, expected at most {most:,} from a file of its size: save "
                      "them with tensor.clone()")


def _arrays(tensors: dict[str, StoredTensor], storages: dict[str, Storage], fetch: Fetch, order: Order) -> Arrays:
    """The arrays in the order of `tensors`; each storage is fetched once, and let go before the next."""
    found: Arrays = {}
    users: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        users.setdefault(tensor.storage.key, []).append(name)
    for key, names in users.items():
        content = fetch(storages[key])
        for name in names:
            found[name] = _array(tensors[name], content, order)
    return {name: found[name] for name in tensors}


def _array(tensor: StoredTensor, content: bytes | memoryview, order: Order) -> np.ndarray:
    """A tensor's elements, copied from the bytes of its storage."""
    kind, storage = tensor.storage.kind, tensor.storage
    dtype = np.dtype({"?": "u1", "bf": "u2"}.get(kind, kind)).newbyteorder(order)
    if 0 in tensor.shape:
        elements = np.zeros(tensor.shape, dtype)
    else:
        whole = np.frombuffer(content, dtype, storage.count, storage.offset * dtype.itemsize)
        strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
        elements = np.lib.stride_tricks.as_strided(whole[tensor.offset:], tensor.shape, strides)
    elements = elements.astype(dtype.newbyteorder("="), order="C")
    if kind == "bf":  # the upper half of a float32
        wide = elements.astype("u4")
        wide <<= 16
        return wide.view("f4")
    return elements.astype(bool) if kind == "?" else elements
