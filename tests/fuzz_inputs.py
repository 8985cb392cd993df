"""Hostile files, made from valid ones: a change at random, by one who knows the format.

`mutate` looks at what a file is - gzip, tar, zip, or one of tests/fuzz_leaves.py - and changes a part of it, as often
as not a part of a part; now and then it changes mere bytes. Bombs are small files that unpack to large ones. Nothing
here is a test; see tests/fuzz.py.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from random import Random

from fuzz_leaves import LARGEST, LEAVES, NUMBERS, Format, change_bytes, change_text, flip


def mutate(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """The content of another file, made from this one, and now and then from one of the others."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.random()
        if kind < 0.7:
            content = _by_format(content, rng, others)
        else:
            content = flip(content, rng) if kind < 0.8 else change_bytes(content, rng, others)
    return content


def _by_format(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    for recognises, change in FORMATS:
        if len(content) <= LARGEST and recognises(content):
            try:
                return change(content, rng, others)
            except Exception:  # too damaged to be taken apart, in one of many ways
                break
    return change_bytes(content, rng, others)


# --- archives ---------------------------------------------------------------------------------------------------------


def unpacked(content: bytes) -> bytes:
    """What a gzip stream holds, refused (ValueError) if that is much; the fuzzer must not be bombed itself."""
    machine = zlib.decompressobj(31)
    found = machine.decompress(content, LARGEST)
    if machine.unconsumed_tail or not machine.eof:
        raise ValueError("too long, or cut")
    return found


def change_gzip(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    inner = mutate(unpacked(content), rng, others)
    kind = rng.randrange(20)
    if kind == 0:
        return bz2.compress(inner)
    if kind == 1:
        return lzma.compress(inner, preset=0)
    if kind == 2:
        return inner
    middle = len(inner) // 2  # a stream may have several members
    return (gzip.compress(inner[:middle], 1) + gzip.compress(inner[middle:], 1) if kind == 3
            else gzip.compress(inner, rng.choice((0, 1))))


TAR_KINDS = b"01234567ASLKNDVMXgx\0"
TAR_FIELDS = [(0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (265, 32), (345, 155),
              (386, 24), (482, 1), (483, 12)]


def tar_member(name: str, content: bytes, kind: bytes = b"0", size: int | None = None) -> bytes:
    """A header and its data, padded, of any kind and claimed size."""
    info = tarfile.TarInfo(name[:99])
    info.type = kind
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = tar_number(len(content) if size is None else size)
    return tar_checksum(header) + content + b"\0" * (-len(content) % 512)


def tar_number(value: int) -> bytes:
    """12 bytes: octal, or base 256 where that does not fit."""
    if 0 <= value < 8**11:
        return b"%011o\0" % value
    return (b"\xff" if value < 0 else b"\x80") + (value % 2**88).to_bytes(11, "big")


def tar_checksum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def pax(*records: tuple[str, str], kind: bytes = b"x") -> bytes:
    """A pax header with these records."""
    content = b""
    for key, value in records:
        body = f" {key}={value}\n".encode("utf-8", "surrogatepass")
        length = len(body) + len(str(len(body) + 3))
        content += str(length).encode() + body
    return tar_member("pax", content, kind)


def change_tar(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """A field of a header set to something else, or a member put in, taken out, moved or changed."""
    members, at = [], 0
    while at + 512 <= len(content) and content[at] != 0:
        size = int(content[at + 124:at + 135].strip(b" \0") or b"0", 8)
        end = min(at + 512 + -(-size // 512) * 512, len(content))
        members.append(content[at:end])
        at = end
    spot = rng.randrange(len(members))
    kind = rng.randrange(6)
    if kind < 2:
        header = bytearray(members[spot][:512])
        begin, size = rng.choice(TAR_FIELDS)
        value = rng.choice((tar_number(rng.choice(NUMBERS)), rng.randbytes(size), b"", b"-1", b"../x", b"/x",
                            b"9" * size, bytes([rng.choice(TAR_KINDS)])))
        header[begin:begin + size] = value[:size].ljust(size, b"\0")
        members[spot] = (tar_checksum(header) if rng.random() < 0.95 else bytes(header)) + members[spot][512:]
    elif kind == 2:
        change = rng.choice((change_bytes(members[spot][512:], rng, others), flip(members[spot][512:], rng)))
        members[spot] = members[spot][:512] + change
    elif kind == 3:
        members.insert(spot, rng.choice((rng.choice(members), _odd_member(rng))))
    elif kind == 4:
        members.insert(spot, _odd_pax(rng))
    else:
        del members[spot]
        rng.shuffle(members)
    return b"".join(members) + b"\0" * rng.choice((1024, 1024, 0, 512))


def _odd_member(rng: Random) -> bytes:
    kind = bytes([rng.choice(TAR_KINDS)])
    name = rng.choice(("a", "../x", "/x", "long" * 24, "", ".", "data_batch_1.bin", "x/test_batch.bin"))
    size = rng.choice((None, None, rng.choice(NUMBERS)))
    return tar_member(name, rng.choice((b"", b"x" * 700, rng.randbytes(1500), b"1\n" * 300)), kind, size)


PAX_KEYS = ["path", "linkpath", "size", "mtime", "uid", "hdrcharset", "comment", "GNU.sparse.major", "GNU.sparse.minor",
            "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.realsize", "GNU.sparse.name", "GNU.sparse.numblocks", "",
            "="]
PAX_VALUES = ["1", "0", "x", "../x", "/x", "1,2,3", "0,9", "-1", "1e5", "nan", "BINARY", "\xe9", *map(str, NUMBERS)]


def _odd_pax(rng: Random) -> bytes:
    records = [(rng.choice(PAX_KEYS), rng.choice(PAX_VALUES)) for _ in range(rng.choice((1, 2, 5)))]
    if rng.random() < 0.3:
        records += [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")]
    header = pax(*records, kind=rng.choice((b"x", b"x", b"g", b"X")))
    return header if rng.random() < 0.7 else header[:512] + change_text(header[512:].decode(), rng).encode()[:5000]


def zipped(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive; names may come twice."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, content)
    return out.getvalue()


def change_zip(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """A member changed by its own format, renamed, doubled, left out or packed otherwise; or a field set."""
    if rng.random() < 0.35:
        return patch_zip(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(info.file_size for info in archive.infolist()) > LARGEST:
            return patch_zip(content, rng)
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    spot = rng.randrange(len(members)) if members else 0
    kind = rng.randrange(6)
    if not members or kind == 0:
        members.insert(spot, (rng.choice(("a.npy", "a", "x.txt", "x/", "")), rng.choice(others) if others else b""))
    elif kind == 1:
        name = rng.choice(("", "a", "../x.npy", "/x.npy", members[0][0], "x" * 60_000, "é.npy", "a\0b.npy", "data.pkl",
                           members[spot][0].removesuffix(".npy"), members[spot][0] + ".npy",
                           "layer1.7.conv1.weight.npy", f"layer{'9' * 5000}.0.conv1.weight.npy", "linear.weight.npy",
                           "fc.weight.npy"))
        members[spot] = name, members[spot][1]
    elif kind == 2:
        del members[spot]
    else:
        members[spot] = members[spot][0], mutate(members[spot][1], rng, others)
    method = rng.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,) * 4 + (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    packed = zipped(members, method)
    return patch_zip(packed, rng) if rng.random() < 0.1 else packed


# Signature -> (offset, size) of flags, method, CRC, packed and true size, lengths of names, offset of the data.
ZIP_FIELDS = {
    b"PK\1\2": [(4, 2), (6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)],
    b"PK\3\4": [(4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)],
    b"PK\5\6": [(4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)],
}


def patch_zip(content: bytes, rng: Random) -> bytes:
    """A field of a header or of the directory set to a boundary."""
    data = bytearray(content)
    found = list(re.finditer(rb"PK(?:\x01\x02|\x03\x04|\x05\x06)", content))
    spot = rng.choice(found)
    begin, size = rng.choice(ZIP_FIELDS[spot[0]])
    value = rng.choice((rng.choice(NUMBERS), 8, 9, 12, 14, 99, rng.randrange(len(data))))
    data[spot.start() + begin:spot.start() + begin + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(data)


FORMATS: list[Format] = [
    (lambda c: c[:2] == b"\x1f\x8b", change_gzip),
    (lambda c: c[257:262] == b"ustar", change_tar),
    (lambda c: c[:2] == b"PK", change_zip),
    *LEAVES,
]


# --- bombs ------------------------------------------------------------------------------------------------------------


def deflated_zeros(megabytes: int) -> bytes:
    """A raw deflate stream of so many MiB of zeros, 1 KiB for each, without ever holding them."""
    machine = zlib.compressobj(9, wbits=-15)
    piece = machine.compress(bytes(1 << 20)) + machine.flush(zlib.Z_FULL_FLUSH)
    return piece * megabytes + b"\3\0"


def gzip_bomb(start: bytes, megabytes: int) -> bytes:
    """A gzip stream of `start` and then so many MiB of zeros; its checksum is wrong, which shows at its end only."""
    machine = zlib.compressobj(1, wbits=-15)
    begin = machine.compress(start) + machine.flush(zlib.Z_FULL_FLUSH)
    size = (len(start) + (megabytes << 20)) % 2**32
    return b"\x1f\x8b\x08" + b"\0" * 6 + b"\3" + begin + deflated_zeros(megabytes) + struct.pack("<II", 0, size)


def zip_bomb(name: str, start: bytes, megabytes: int, claimed: int | None = None) -> bytes:
    """A zip archive with one member, `start` and then zeros; `claimed`: the size it admits instead of the true one."""
    machine = zlib.compressobj(1, wbits=-15)
    packed = machine.compress(start) + machine.flush(zlib.Z_FULL_FLUSH) + deflated_zeros(megabytes)
    size = len(start) + (megabytes << 20) if claimed is None else claimed
    shared = struct.pack("<5H3I2H", 20, 0, 8, 0, 33, 0, len(packed), size, len(name), 0)
    local = b"PK\3\4" + shared + name.encode() + packed
    entry = b"PK\1\2\x14\0" + shared + struct.pack("<3H2I", 0, 0, 0, 0, 0) + name.encode()
    return local + entry + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(local), 0)
