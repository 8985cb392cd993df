"""Files as torch.save writes them, made without PyTorch: instruction by instruction, so that they may also be wrong."""

import io
import struct
import zipfile
from typing import NamedTuple

import numpy as np

SUFFIX = {"f4": "Float", "f8": "Double", "f2": "Half", "bf": "BFloat16", "i8": "Long", "i4": "Int", "i2": "Short",
          "i1": "Char", "u1": "Byte", "b1": "Bool"}
MAGIC = 0x1950A86A20F9469CFC6C


class Global(NamedTuple):
    """A function or class by its module and name."""

    module: str
    name: str


class Call(NamedTuple):
    """What a function makes of arguments."""

    function: object
    arguments: tuple


class Build(NamedTuple):
    """An object whose attributes are then set."""

    value: object
    state: object


class Persistent(NamedTuple):
    """What the reader is to find by itself: a storage."""

    identity: object


class Raw(NamedTuple):
    """Instructions as they are."""

    content: bytes


ORDERED = Global("collections", "OrderedDict")


def code(value):
    """The instructions that push a value."""
    if isinstance(value, Raw):
        return value.content
    if isinstance(value, Global):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return code(value.function) + code(value.arguments) + b"R"
    if isinstance(value, Build):
        return code(value.value) + code(value.state) + b"b"
    if isinstance(value, Persistent):
        return code(value.identity) + b"Q"
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        short = len(digits) < 256
        return (b"\x8a" + bytes([len(digits)]) if short else b"\x8b" + struct.pack("<i", len(digits))) + digits
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        content = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(content)) + content
    if isinstance(value, tuple):
        return b"(" + b"".join(map(code, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(code, value)) + b"e"
    assert isinstance(value, dict), value
    return b"}(" + b"".join(code(key) + code(item) for key, item in value.items()) + b"u"


def pickled(value, protocol=2):
    return bytes([0x80, protocol]) + code(value) + b"."


def storage(key, kind, count, *view):
    """The identity of a storage, by its key, type and number of elements; view: of the legacy format."""
    return Persistent(("storage", Global("torch", f"{SUFFIX[kind]}Storage"), key, "cpu", count, *view))


def tensor(where, shape, strides=None, offset=0, *more):
    """A tensor in a storage; strides: those of C order if not given."""
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1:], dtype=object)) for i in range(len(shape)))
    arguments = (where, offset, shape, strides, False, Call(ORDERED, ()), *more)
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def zip_file(value, storages, byteorder="little", method=zipfile.ZIP_STORED, **others):
    """The format since version 1.6. storages: {key: bytes}; others: {member: bytes} besides, or instead."""
    members = {"data.pkl": value if isinstance(value, bytes) else pickled(value), "version": b"3\n"}
    if byteorder:
        members["byteorder"] = byteorder.encode()
    members |= {f"data/{key}": content for key, content in storages.items()} | others
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return out.getvalue()


def legacy_file(value, storages, little_endian=True, protocol=1001, keys=None):
    """The format before. storages: {key: (number of elements, bytes)}."""
    machine = {"protocol_version": protocol, "little_endian": little_endian,
               "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickled(MAGIC), pickled(protocol), pickled(machine), pickled(value),
             pickled(list(storages) if keys is None else keys)]
    return b"".join(parts) + b"".join(struct.pack("<q", count) + content for count, content in storages.values())


def files_of(arrays):
    """The same state dict in both formats: [zip, legacy]."""
    kinds = {array.dtype.str[1:]: array.dtype for array in arrays.values()}
    assert kinds.keys() <= SUFFIX.keys()
    entries = {name: tensor(storage(str(i), array.dtype.str[1:], array.size), array.shape)
               for i, (name, array) in enumerate(arrays.items())}
    contents = [np.ascontiguousarray(array).tobytes() for array in arrays.values()]
    counted = {str(i): (array.size, content) for i, (array, content) in
               enumerate(zip(arrays.values(), contents, strict=True))}
    return [zip_file(entries, {str(i): content for i, content in enumerate(contents)}),
            legacy_file({name: Call(entry.function, (Persistent((*entry.arguments[0].identity, None)),
                                                     *entry.arguments[1:])) for name, entry in entries.items()},
                        counted)]
