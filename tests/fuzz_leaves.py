"""Files without files in them, changed at random by one who knows the format: bytes, JSON, tables, arrays, pictures.

Each function takes (content, rng, others) and returns other content, with lengths and checksums that hold, so that the
change gets past a reader's first check; it raises anything at all if the content is too damaged to be taken apart.
Nothing here is a test; see tests/fuzz.py.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

LARGEST = 1 << 18  # bytes of a file, packed or unpacked, that is taken apart, or changed more than once
NUMBERS = [0, 1, 2, 3, 127, 128, 255, 256, 1000, 32767, 65535, 65536, 10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40,
           2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -1, -2, -128, -(2**31), -(2**63)]
DEEP = 100_000
JSON_VALUES = [
    *map(str, NUMBERS), "0.5", "-0.0", "1e400", "-1e400", "1e-400", "NaN", "Infinity", "-Infinity", "9" * 5000,
    "0." + "3" * 5000, "null", "true", "false", '""', '"1"', '"x"', '"\\ud800"', '"\\u0000"', '"../../x"', '"/x"',
    '"' + "x" * 70_000 + '"', "[]", "{}", "[null]", "[[1, 2], [3]]", '{"a": 1}', "[" * 50 + "]" * 50,
    "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "[1, 2", "nul", "'x'", "\ufeff1",
]
DTYPES = ["<f4", ">f4", "<f8", "<f2", "<f16", "|u1", "|i1", "<i8", ">i8", "<u8", "|b1", "<c16", "|O", "<U5", "<U0",
          "|V0", "|V2147483647", "|S0", "<M8[s]", "<m8[ns]", "f", "", "f4,f4", "<f4, O", "x", "<i3", "<f999999999999"]
EXPRESSIONS = ["__import__('os')", "[" * 2000, "(" * 3000, "-" * 5000 + "1", "1+1", "3L", "None", "'x", "{}", "b''",
               "(1,2)*9", "9" * 5000, "\\d", "\x00", "'\\x'", "lambda: 0", "\n\n  x", "...", "1if 1else 2"]


def change_bytes(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """A few bytes changed, removed, inserted or doubled; integers set to boundaries; the end cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        end = min(len(data), 128) if rng.random() < 0.5 else len(data)  # half of the time in the header
        at = rng.randrange(end + 1)
        length = rng.choice((1, 1, 2, 4, 8, 30, 512))
        kind = rng.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice((0, 1, 9, 10, 32, 34, 44, 45, 48, 57, 91, 123, 127, 128, 255))
        elif kind == 2:
            number = number_bytes(rng)
            data[at:at + len(number)] = number
        elif kind == 3:
            del data[at:at + length]
        elif kind == 4:
            data[at:at] = rng.randbytes(length)
        elif kind == 5:
            data[at:at] = data[at:at + length] * rng.choice((1, 2, 50))
        elif kind == 6:
            del data[at:]
        else:
            other = rng.choice(others) if others else bytes(data)
            begin = rng.randrange(len(other) + 1)
            data[at:at + length] = other[begin:begin + length]
    return bytes(data[:4 * LARGEST])


def flip(content: bytes, rng: Random) -> bytes:
    """Some bytes changed, and none more or fewer: it may still be read."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 4, 100)) if data else 0):
        data[rng.randrange(len(data))] = rng.choice((0, 127, 128, 255, rng.randrange(256)))
    return bytes(data)


def number_bytes(rng: Random) -> bytes:
    """A boundary as 1, 2, 4 or 8 bytes, little or big endian."""
    size = rng.choice((1, 2, 4, 4, 8, 8))
    return (rng.choice(NUMBERS) % (1 << 8 * size)).to_bytes(size, rng.choice(("little", "big")))


def change_text(text: str, rng: Random) -> str:
    """A number or a word of a text replaced by another, by an expression, or left out."""
    found = list(re.finditer(r"-?\d+|\w+|[^\w\s]", text))
    if not found:
        return rng.choice(EXPRESSIONS)
    spot = rng.choice(found)
    new = rng.choice((str(rng.choice(NUMBERS)), rng.choice(EXPRESSIONS), rng.choice(found)[0], "", spot[0] * 2))
    return text[:spot.start()] + new + text[spot.end():]


# --- JSON and tables --------------------------------------------------------------------------------------------------


def change_json(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """A value replaced, removed, renamed, exchanged with another, or its key given twice."""
    tree = {"": json.loads(content)}
    places = list(_places(tree))
    held, key = rng.choice(places)
    raw = rng.choice(JSON_VALUES)
    kind = rng.randrange(8)
    again = ""
    if kind == 0 and isinstance(held, (dict, list)) and held is not tree:
        del held[key]
    elif kind == 1:
        other, place = rng.choice(places)
        held[key], other[place] = other[place], held[key]
    elif kind == 2 and isinstance(held, dict) and held is not tree:
        held[rng.choice((key + "x", "", "\ud800", key.upper(), "__metadata__"))] = held.pop(key)
    elif kind == 3 and isinstance(held, dict) and held is not tree:
        again = f"{json.dumps(key)}: "
    else:
        held[key] = "@RAW@"
    text = json.dumps(tree[""]) if kind != 1 or _is_tree(tree) else content.decode()
    text = text.replace('"@RAW@"', raw, 1)
    if again:
        text = text.replace(again, f"{again}{raw}, {again}", 1)
    return text.encode("utf-8", "surrogatepass")


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from _places(tree[key])


def _is_tree(tree: Any) -> bool:
    """Whether an exchange of two values left no circle."""
    try:
        json.dumps(tree)
    except (ValueError, RecursionError):
        return False
    return True


def change_lines(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """A line of a table or of JSON lines changed, removed, doubled or cut."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    kind = rng.randrange(5)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, rng.choice(lines))
    elif kind == 2 and lines[at][:1] in (b"{", b"["):
        lines[at] = change_json(lines[at], rng, others)
    elif kind == 3:
        lines[at] = rng.choice(JSON_VALUES).encode("utf-8", "surrogatepass")
    else:
        lines[at] = change_text(lines[at].decode(), rng).encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


# --- arrays -----------------------------------------------------------------------------------------------------------


def npy(header: str, data: bytes, version: bytes = b"\1\0", length: int | None = None) -> bytes:
    """An .npy file with any text as its header."""
    text = header.encode("utf-8", "surrogatepass") + b"\n"
    form = "<H" if version == b"\1\0" else "<I"
    size = (len(text) if length is None else length) % (1 << 8 * struct.calcsize(form))
    return b"\x93NUMPY" + version + struct.pack(form, size) + text + data


def change_npy(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """A word of the header replaced, the dtype or shape first of all; or the data changed."""
    form, start = ("<H", 10) if content[6] == 1 else ("<I", 12)
    end = start + struct.unpack_from(form, content, 8)[0]
    header, data = content[start:end].decode(), content[end:]
    kind = rng.randrange(6)
    if kind == 0:
        dtype = rng.choice((rng.choice(DTYPES), rng.choice(DTYPES)))
        new = rng.choice((repr(dtype), repr([("a", dtype), ("b", "<f4")]), repr([("a", dtype, (10**6, 10**4))])))
        header = re.sub(r"'descr': [^,]*", lambda _: f"'descr': {new}", header)
    elif kind == 1:
        shape = tuple(rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 1, 2, 4, 70))))
        header = re.sub(r"'shape': \([^)]*\)", lambda _: f"'shape': {rng.choice((shape, list(shape)))}", header)
    elif kind == 2:
        header = header.replace("False", rng.choice(("True", "1", "None", "'x'")))
    elif kind == 3:
        header = change_text(header, rng)
    elif kind == 4:
        data = flip(data, rng)
    elif rng.random() < 0.8:
        data = change_bytes(data, rng, others)
    else:
        header, data = header * 200, b""
    length = rng.choice(NUMBERS) if rng.random() < 0.1 else None
    version = rng.choice((content[6:8],) * 8 + (b"\1\0", b"\2\0", b"\3\0", b"\4\0", b"\0\0"))
    return npy(header.rstrip("\n"), data, version, length)


def change_safetensors(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """The JSON of the header changed, its length with it; or two offsets, or the length alone."""
    end = 8 + int.from_bytes(content[:8], "little")
    header, data = content[8:end], content[end:]
    kind = rng.randrange(6)
    if kind < 3:
        header = change_json(header, rng, others)
    elif kind == 3:
        header = change_text(header.decode(), rng).encode()
    elif kind == 4:
        return content[:end] + flip(data, rng)
    else:
        header = header.replace(rng.choice((b"F32", b"I64")), rng.choice((b"BF16", b"U8", b"F8_E4M3", b"F64", b"BOOL",
                                                                          b"C64", b"x")), 1)
    length = rng.choice(NUMBERS) % 2**64 if rng.random() < 0.1 else len(header)
    return length.to_bytes(8, "little") + header + data


# --- pictures ---------------------------------------------------------------------------------------------------------


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def change_png(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """A chunk changed, its checksum with it; the header's numbers first of all."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        size = struct.unpack_from(">I", content, at)[0]
        chunks.append((content[at + 4:at + 8], content[at + 8:at + 8 + size]))
        at += 12 + size
    spot = rng.choice((0, rng.randrange(len(chunks))))
    kind, body = chunks[spot]
    choice = rng.randrange(6)
    if choice == 0:
        del chunks[spot]
    elif choice == 1:
        profile = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n9999999\n" + b"00" * 99)
        text = rng.choice((b"x", b"\0\0", profile, b"a\0\0" + zlib.compress(bytes(10**6)), rng.randbytes(20)))
        named = rng.choice((b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"eXIf", b"IHDR"))
        chunks.insert(spot, (named, text))
    elif choice == 2 and kind == b"IDAT":
        body = zlib.decompressobj().decompress(body, LARGEST)
        chunks[spot] = kind, zlib.compress(change_bytes(body, rng, others), 1)
    elif kind == b"IHDR" and choice > 2:
        field, size = rng.choice(((0, 4), (4, 4), (8, 1), (9, 1), (10, 1), (12, 1)))
        value = rng.choice((rng.choice(NUMBERS), 1, 2, 4, 8, 16, 6, 30_000)) % (1 << 8 * size)
        chunks[spot] = kind, body[:field] + value.to_bytes(size, "big") + body[field + size:]
    else:
        chunks[spot] = kind, change_bytes(body, rng, others)
    return content[:8] + b"".join(png_chunk(*chunk) for chunk in chunks)


def change_jpeg(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """A segment's length, or a number in it, changed; or the segment doubled or left out."""
    marks = [match.start() for match in re.finditer(rb"\xff[\xc0-\xfe]", content)]
    spot = rng.randrange(len(marks))
    begin, end = marks[spot], (marks + [len(content)])[spot + 1]
    segment = bytearray(content[begin:end])
    kind = rng.randrange(4)
    if kind < 2:
        at = 2 if kind == 0 else rng.randrange(len(segment))
        number = number_bytes(rng)
        segment[at:at + len(number)] = number
    elif kind == 2:
        segment *= 2
    else:
        segment = bytearray()
    return content[:begin] + bytes(segment) + content[end:]


Change = Callable[[bytes, Random, list[bytes]], bytes]
Format = tuple[Callable[[bytes], bool], Change]
LEAVES: list[Format] = [
    (lambda c: c[:6] == b"\x93NUMPY", change_npy),
    (lambda c: c[8:9] == b"{" and c[5:8] == b"\0\0\0", change_safetensors),
    (lambda c: c[:4] == b"\x89PNG", change_png),
    (lambda c: c[:3] == b"\xff\xd8\xff", change_jpeg),
    (lambda c: c[:1] in b"{[" and b"}\n{" not in c, change_json),
    (lambda c: len(c) > 3 and all(9 <= byte < 127 for byte in c[:64]), change_lines),
]
