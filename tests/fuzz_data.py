"""The readers of data sets that tests/fuzz.py fuzzes: valid files to begin from, known attacks, and the contract.

A reader's `read` takes a folder with the files and either returns, having checked by `assert` what was read, or raises
what the reader documents, with a message that names the file; fuzz.py judges that. See also tests/fuzz_runs.py.
"""

from __future__ import annotations

import gzip
import io
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import fuzz_inputs as inputs
import numpy as np
from fuzz_leaves import npy, png_chunk

Files = dict[str, bytes]  # name below a folder -> content
BOMB = 768  # MiB, more than a reader may take
PETABYTE = "{'descr': '<f4', 'fortran_order': False, 'shape': (250000000000000,), }"


@dataclass(frozen=True)
class Reader:
    """valid: folders that are read without complaint. hostile: known attacks. mend: what makes a changed folder fit
    together again, such as a checksum in another file. errors: what it documents besides ValueError and OSError."""

    valid: list[Files]
    read: Callable[[Path], Any]
    hostile: list[Files]
    mend: Callable[[Files, Random], Files] = lambda files, rng: files
    errors: tuple[type[Exception], ...] = ()


def saved(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def npz(arrays: dict[str, np.ndarray], packed: bool = False) -> bytes:
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    return inputs.zipped([(f"{name}.npy", saved(array)) for name, array in arrays.items()], method)


# --- CIFAR ------------------------------------------------------------------------------------------------------------


def cifar_format(kind: str) -> tuple[Any, Files]:
    """CIFAR-10 or -100 with three records a file, and the files."""
    from tinyres.data import cifar_formats

    rng = np.random.default_rng(0)
    wanted = getattr(cifar_formats, kind)
    small, files = {}, {}
    for part, listed in (("train", wanted.train[:2]), ("test", wanted.test)):
        small[part] = tuple(replace(file, records=3, sha1=None) for file in listed)
        for file in small[part]:
            records = rng.integers(0, 256, (3, wanted.record_bytes), np.uint8)
            records[:, :len(wanted.labels)] %= 10
            files[file.name] = records.tobytes()
    return replace(wanted, **small), files


def read_cifar(wanted: Any, path: Path) -> int:
    from tinyres.data import cifar

    found = cifar.read(wanted, path, verify=False)
    for split, count in (("train", 3 * len(wanted.train)), ("test", 3)):
        images, labels = found[split]
        assert images.shape == (count, 3, 32, 32) and images.dtype == np.uint8
        assert labels.shape == (count, len(wanted.labels)) and labels.dtype == np.uint8
        assert all((labels[:, i] < len(names)).all() for i, names in enumerate(wanted.labels.values()))
    return len(found)


def cifar_folder() -> Reader:
    wanted, files = cifar_format("CIFAR100")
    return Reader([files], lambda folder: read_cifar(wanted, folder), [])


def cifar_archive() -> Reader:
    wanted, files = cifar_format("CIFAR10")
    members = [inputs.tar_member(f"{wanted.folder}/{name}", content) for name, content in files.items()]
    tar = b"".join(members) + bytes(1024)
    long = [inputs.tar_member("x", b"", kind, BOMB << 20) for kind in (b"x", b"g", b"L", b"K", b"0")]
    extended = bytearray(inputs.tar_member("x", b"", b"S"))  # an old sparse file, whose map goes on and ends early
    extended[482] = 1
    sparse = inputs.pax(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9"))
    attacks = [
        *(inputs.gzip_bomb(start, BOMB) for start in long),
        inputs.gzip_bomb(inputs.tar_member("x", b"") * 60_000, 1),
        inputs.gzip_bomb(inputs.pax(("comment", "x")) * 60_000, 1),
        sparse + inputs.tar_member("x", b"1000000\n" + b"1\n" * 100),
        sparse + inputs.tar_member("x", b"9" * 5000 + b"\n"),
        inputs.tar_member("x", b"", b"S") + bytes(512), inputs.tar_checksum(extended) + bytes(3),
        inputs.pax(("size", str(2**62))) + tar, inputs.pax(("size", "-512")) + inputs.tar_member("x", b"") + tar,
        inputs.pax(("path", "../" * 9 + "x")) + tar,
    ]
    return Reader([{"c.tar": gzip.compress(tar)}, {"c.tar": tar}],
                  lambda folder: read_cifar(wanted, folder / "c.tar"), [{"c.tar": content} for content in attacks])


# --- statistics and idx files -----------------------------------------------------------------------------------------


def statistics() -> Reader:
    """The cache of a data set's statistics: whatever it holds, what comes back is what would be computed."""
    from tinyres.data import dataset
    from tinyres.data import statistics as cache

    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4), np.uint8)
    expected = dataset.channel_statistics(images, 255.0)

    def read(folder: Path) -> Any:
        (folder / "statistics").mkdir(exist_ok=True)
        for path in folder.glob("*.json"):
            path.rename(folder / "statistics" / path.name)
        with mock.patch.object(cache, "WORTH_KEEPING", 0), mock.patch.dict(os.environ, TINYRES_CACHE=str(folder)):
            found = cache.training_statistics(images, 255.0)
        assert all(a.dtype == np.float64 and a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True))
        return 0

    with tempfile.TemporaryDirectory() as folder:
        read(Path(folder))
        valid = {path.name: path.read_bytes() for path in Path(folder, "statistics").iterdir()}
    name = next(iter(valid))
    attacks = [b"[" * 10**5 + b"]" * 10**5, b'{"mean": ' + b"9" * 10**5 + b"}", b"{}" + b" " * 10**6]
    return Reader([valid], read, [{name: content} for content in attacks])


def idx() -> Reader:
    from tinyres.data.idx import header, read_idx

    def read(folder: Path) -> Any:
        shape = (None, 4, 3) if (folder / "images").exists() else (None,)
        found = read_idx(folder / ("images" if len(shape) == 3 else "labels"), shape)
        assert found.dtype == np.uint8 and found.ndim == len(shape) and found.shape[1:] == shape[1:] and len(found) > 0
        return found.shape

    images, labels = header((5, 4, 3)) + bytes(range(60)), header((5,)) + bytes(5)
    huge = header((2**32 - 1,)) + bytes(100)
    attacks = [{"labels": content} for content in (
        huge, inputs.gzip_bomb(huge[:8], 1), inputs.gzip_bomb(huge[:8], BOMB), inputs.gzip_bomb(header((100,)), BOMB),
        inputs.gzip_bomb(header((BOMB << 20,)), BOMB))]
    attacks.append({"images": header((2**32 - 1, 4, 3)) + bytes(100)})
    return Reader([{"images": images}, {"labels": labels}, {"images": gzip.compress(images)},
                   {"labels": gzip.compress(labels)}], read, attacks)


# --- data of one's own ------------------------------------------------------------------------------------------------


def read_own(path: Path) -> Any:
    from tinyres import data

    found = [data.load(str(path), split) for split in ("train", "test", "fit", "validation")]
    for dataset in found:
        check_dataset(dataset)
    assert isinstance(data.has_test_split(path), bool)
    return found[0].images.shape[1:], str(found[0].images.dtype), len(found[0].classes)


def check_dataset(dataset: Any) -> None:
    """The contract of data.Dataset, and that a batch of it can be had."""
    images, labels = dataset.images, dataset.labels
    assert images.ndim == 4 and len(images) == len(labels) > 0 and images.shape[1] in (1, 3)
    assert images.dtype == np.uint8 or images.dtype.kind == "f"
    assert labels.dtype == np.int64 and labels.min() >= 0 and labels.max() < len(dataset.classes)
    assert (dataset.std > 0).all() and np.isfinite(dataset.mean).all()
    x, y = dataset.batch(1)
    assert x.dtype == np.float32 and x.shape == (1, *images.shape[1:]) and y.dtype == np.int64


def own_arrays() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    labels = np.arange(12) % 3
    coloured = rng.integers(0, 256, (12, 5, 4, 3), np.uint8)
    grey = rng.random((12, 1, 5, 4), np.float32)
    return [{"images": coloured, "labels": labels},
            {"x_train": grey, "y_train": labels.astype(np.uint8), "x_test": grey[:6], "y_test": labels[:6]},
            {"train_images": coloured[..., 0], "train_labels": labels}]


TOO_MANY_CLASSES = "\n".join(map(str, range(140_000))).encode()


def own_npy() -> Reader:
    valid = [{f"{name}.npy": saved(array) for name, array in arrays.items()} for arrays in own_arrays()]
    valid.append({**valid[0], "classes.txt": b"cat\ndog\n\xc3\xa9\n"})
    attacks = [{**valid[0], "images.npy": npy(header, bytes(64)), "labels.npy": npy(header, bytes(64))}
               for header in (PETABYTE, PETABYTE.replace("<f4", "|V0"), "-" * 9000 + "1", "(" * 9000, "[" * 200)]
    attacks += [{**valid[0], "classes.txt": TOO_MANY_CLASSES}, {**valid[0], "classes.txt": b"\n" * (1 << 20)},
                {**valid[0], "images.npy": saved(np.array([object()] * 12))},
                {**valid[0], "labels.npy": saved(np.full(12, 2**62))},
                {**valid[0], "labels.npy": saved(np.full(12, -(2**63)))},
                {**valid[1], "x_train.npy": saved(np.full((12, 1, 5, 4), 1e300))},
                {**valid[1], "x_train.npy": saved(np.full((12, 1, 5, 4), np.nan, np.float16))}]
    return Reader(valid, read_own, attacks, errors=(TypeError,))


def own_npz() -> Reader:
    named = {**own_arrays()[0], "classes": np.array(["cat", "dog", "\xe9"])}
    valid = [{"d.npz": npz(arrays, packed)} for arrays in (*own_arrays(), named) for packed in (False, True)]
    start = npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({BOMB << 10}, 32, 32), }}", b"")
    labels = ("labels.npy", saved(np.arange(12) % 3))
    attacks = [inputs.zip_bomb("images.npy", start, BOMB), inputs.zip_bomb("images.npy", start, BOMB, claimed=1000),
               inputs.zip_bomb("classes.npy", start, BOMB),
               inputs.zipped([("images.npy", npy(PETABYTE, b"")), labels]),
               inputs.zipped([("images.npy", bytes(1 << 24)), labels], zipfile.ZIP_LZMA),
               inputs.zipped([(f"{i}.npy", b"") for i in range(3000)]), inputs.zipped([labels] * 2)]
    return Reader(valid, lambda folder: read_own(folder / "d.npz"), [{"d.npz": content} for content in attacks],
                  errors=(TypeError,))


def own_idx() -> Reader:
    from tinyres.data.idx import header

    images, labels = header((12, 5, 4)) + bytes(range(240)), header((12,)) + bytes([0, 1, 2] * 4)
    names = "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
    valid = [dict(zip(names, (images, labels), strict=False)),
             {f"{name}.gz": gzip.compress(c) for name, c in zip(names, (images, labels) * 2, strict=True)}]
    return Reader(valid, read_own, [{**valid[0], "classes.txt": TOO_MANY_CLASSES}], errors=(TypeError,))


def pictures(kind: str) -> list[bytes]:
    """Small images in one of Pillow's formats and several of its modes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    modes = {"PNG": ("RGB", "L", "P", "RGBA", "1", "LA"), "JPEG": ("RGB", "L", "CMYK"), "GIF": ("P", "L"),
             "WEBP": ("RGB", "RGBA"), "BMP": ("RGB", "L", "P"), "PPM": ("RGB", "L", "1")}
    found = []
    for mode in modes[kind]:
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).convert(mode).save(out, kind)
        found.append(out.getvalue())
    return found


def image_folders() -> Reader:
    valid = []
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM"):
        files = [f"{kind}{i}.{kind.lower()}" for i in range(6)]
        valid += [{f"cat/{files[0]}": one, f"dog/{files[1]}": one, f"cat/{files[2]}": one, f"dog/{files[3]}": two}
                  for one, two in zip(pictures(kind), reversed(pictures(kind)), strict=True)]
    valid.append({f"{split}/{name}/1.png": pictures("PNG")[0] for split in ("train", "test") for name in "ab"})
    sizes = (2**31 - 1, 2**31 - 1), (65_535, 65_535), (13_000, 6_800), (9_400, 9_400), (2**31 - 1, 1), (0, 0), (1, 1)
    attacks = [{f"{name}/0.png": blank_png(*size) for name in "ab"} for size in sizes]
    attacks.append({f"{name}/{i}.png": blank_png(2_000, 2_000) for name in "ab" for i in range(30)})
    attacks += [{"a/1.png": pictures("PNG")[0], "b/1.png": long_png(content)} for content in pictures("PNG")]
    return Reader(valid, read_own, attacks, errors=(TypeError,))


def long_png(content: bytes) -> bytes:
    """The picture, but its pixels are said to take two gigabytes, which Pillow then asks of the file."""
    at = content.index(b"IDAT")
    return content[:at - 4] + (2**31 - 1).to_bytes(4, "big") + content[at:]


def blank_png(width: int, height: int) -> bytes:
    """A black picture, for all but the largest sizes with all its pixels."""
    size = min((width * 3 + 1) * height, BOMB << 20)
    pixels = b"\x78\x01" + inputs.deflated_zeros(-(-size >> 20)) + b"\0\0\0\0"
    start = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\2\0\0\0"
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", start) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b""))


DATA: dict[str, Callable[[], Reader]] = {
    "cifar folder": cifar_folder,
    "cifar archive": cifar_archive,
    "idx file": idx,
    "own npy": own_npy,
    "own npz": own_npz,
    "own idx": own_idx,
    "image folder": image_folders,
    "statistics cache": statistics,
}
