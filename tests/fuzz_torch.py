"""The reader of PyTorch's files that tests/fuzz.py fuzzes: both formats, and pickles changed by one who knows them."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import fuzz_inputs as inputs
import numpy as np
import torch_files as files
from fuzz_data import Files, Reader
from fuzz_leaves import NUMBERS
from fuzz_runs import check_source, read_weights, states, thin_network
from torch_files import Call, Global, Raw, code

ODD_VALUES: list[Any] = [
    None, True, 1.5, "x", "0", "\ud800", (), [], {}, {"a": []}, (1, 2), [[1, 2]], *NUMBERS, 9**4000, files.ORDERED,
    Global("os", "system"), Global("torch", "FloatStorage"), Global("torch", "float8_e5m2"), Call(files.ORDERED, ()),
    Call(Global("torch", "Size"), ((1, 2),)), Call(Global("builtins", "eval"), ("1",)), Raw(b"2"), Raw(b"0"), Raw(b"("),
    Raw(b"h\1"), Raw(b"q\1"), Raw(b"t"), Raw(b"R"), Raw(b"b"), Raw(b"Q"), Raw(b"s"), Raw(b"u"), Raw(b"e"), Raw(b"."),
    files.storage("0", "f4", 4), files.storage("0", "bf", 10**6), files.storage("1", "f4", 8, ("2", 1, 3)),
    files.tensor(files.storage("0", "f4", 54), (2, 27)), files.tensor(files.storage("0", "f4", 54), (10**9,), (0,)),
]


def change_pickle(content: bytes, rng: Random) -> bytes:
    """An instruction of the pickle in front replaced, left out or doubled, or values put in; the rest as it was."""
    starts = [at for _, _, at in pickletools.genops(content)]
    end = starts[-1] + 1
    spot = rng.randrange(1, len(starts) - 1) if len(starts) > 2 else 0
    first, last = starts[spot], (*starts, end)[spot + 1]
    kind = rng.randrange(5)
    if kind == 0:
        middle = b""
    elif kind == 1:
        middle = content[first:last] * rng.choice((2, 3, 1000))
    else:
        middle = code(rng.choice(ODD_VALUES)) + (content[first:last] if kind == 2 else b"")
    return content[:first] + middle + content[last:]


def with_other_pickle(content: bytes, rng: Random) -> bytes:
    """The pickle of a file changed, and all that lies around it whole."""
    try:
        if content[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = [(info.filename, archive.read(info)) for info in archive.infolist()
                           if info.file_size < inputs.LARGEST]
            return inputs.zipped([(name, change_pickle(part, rng) if name.endswith("data.pkl") else part)
                                  for name, part in members])
        at = 0
        for _ in range(rng.choice((0, 2, 3, 3, 3, 4))):
            at += [position for _, _, position in pickletools.genops(content[at:])][-1] + 1
        return content[:at] + change_pickle(content[at:], rng)
    except Exception:  # too damaged to be taken apart, in one of many ways
        return content


def torch_files() -> Reader:
    network = thin_network()
    valid = [content for state in states() for content in files.files_of(state)]
    small = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4), "c": np.float16([1, 2])}
    valid += [content for content in files.files_of(small)]
    view = files.tensor(files.storage("0", "bf", 10, ("1", 2, 4)), (2, 2))
    valid += [files.zip_file({"state_dict": {"x": files.tensor(files.storage("0", "u1", 9), (3, 3), (1, 3))}},
                             {"0": bytes(9)}, byteorder="big"),
              files.legacy_file({"model": {"x": view}, "epoch": 3}, {"0": (10, bytes(20))})]
    one = files.storage("0", "f4", 4)
    programs = [b"\x80\2" + b"]" * 600_000 + b".", b"\x80\2N" + b"q\0h\0\x86" * 150_000 + b".",
                b"\x80\2]q\0(" + b"N" * 50_000 + b"e" + code(files.ORDERED) + b"q\1" + b"h\1h\0\x85R" * 80_000 + b".",
                b"\x80\2}(" + b"".join(code(i * (2**61 - 1)) + b"N" for i in range(60_000)) + b"u.",
                b"\x80\4X\2\0\0\0osX\6\0\0\0system\x93X\4\0\0\0true\x85R."]
    shapes = [((10**9,), (0,), 0), ((2**40, 2**40), (0, 0), 0), ((0, 2**62), (1, 1), 0), ((4,), (1,), 2**61),
              ((2,), (2**61,), 0), ((1,) * 40, (1,) * 40, 0)]
    attacks = [files.zip_file(program, {}) for program in programs]
    attacks += [files.legacy_file({}, {}).replace(files.pickled({}), program) for program in programs]
    attacks += [files.zip_file({"a": files.tensor(one, *shape)}, {"0": bytes(16)}) for shape in shapes]
    attacks += [files.zip_file({"a": files.tensor(one, (4,))}, {"0": bytes(16)}, method=zipfile.ZIP_DEFLATED),
                inputs.zip_bomb("a/data.pkl", files.pickled({}), 768),
                files.legacy_file({"a": files.tensor(one, (4,))}, {"0": (2**62, bytes(16))}),
                *(valid[-1][:end] for end in (15, 40, 90, len(valid[-1]) - 1))]

    def mend(changed: Files, rng: Random) -> Files:
        """Most of the time a valid file's pickle is changed instead: of other changes few get as far as to that."""
        kind = rng.random()
        if kind < 0.3:
            return changed
        if kind > 0.8:  # other numbers, which are read
            content = bytearray(rng.choice(valid[1::2]))
            content[-rng.randrange(1, 9)] = rng.randrange(256)
            return {"w": bytes(content)}
        return {"w": with_other_pickle(changed.get("w", b"") if kind < 0.5 else rng.choice(valid), rng)}

    return Reader([{"w": content} for content in valid], lambda folder: read(network, folder),
                  [{"w": content} for content in attacks], mend)


def read(network: Any, folder: Path) -> Any:
    """As the other weights; but those that are no network's need only be read."""
    from tinyres import weights

    source = weights.read(folder / "w")
    check_source(source)
    assert all(array.flags.c_contiguous and array.flags.writeable for array in source.arrays.values())
    return read_weights(network, folder) if "conv1.weight" in source.arrays else sorted(source.arrays)


TORCH: dict[str, Callable[[], Reader]] = {"torch file": torch_files}
