"""Fashion-MNIST and the idx format: round trips, files that lie, places where the data may be, the real set."""

import gzip
import hashlib
import importlib
import os
import resource
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyres import data
from tinyres.data.cache import cache_folder
from tinyres.data.idx import header, locate, read_idx

fashion = importlib.import_module("tinyres.data.fashion")  # `data.fashion` is the function
COUNTS = {"train": 60, "t10k": 20}


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def idx_bytes(values: np.ndarray) -> bytes:
    """The format written down from its description, not by the code under test."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


# ---- idx


@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=4), packed=st.booleans(), seed=st.integers(0, 99))
def test_idx_round_trip(tmp_path_factory, shape, packed, seed):
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    content = idx_bytes(values)
    assert header(shape) == content[: 4 + 4 * len(shape)]
    path = write(tmp_path_factory.mktemp("idx") / "x", gzip.compress(content) if packed else content)
    for expected in (shape, [None] * len(shape), [shape[0]] + [None] * (len(shape) - 1)):
        found = read_idx(path, expected)
        assert found.dtype == np.uint8 and not found.flags.writeable
        np.testing.assert_array_equal(found, values)


@given(cut=st.integers(0, 27), packed=st.booleans())
def test_idx_truncated_anywhere_is_refused(tmp_path_factory, cut, packed):
    content = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 2, 2))
    assert len(content) == 28
    path = write(tmp_path_factory.mktemp("idx") / "cut", gzip.compress(content[:cut]) if packed else content[:cut])
    with pytest.raises(ValueError, match=r"idx file .*cut.*(expected|truncated).*Get the file again"):
        read_idx(path, (None, 2, 2))


def test_idx_gzip_truncated_anywhere_is_refused(tmp_path):
    whole = gzip.compress(idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 2, 2)))
    for cut in range(len(whole)):
        with pytest.raises(ValueError, match="idx file .*cut"):
            read_idx(write(tmp_path / "cut", whole[:cut]), (3, 2, 2))


GOOD = idx_bytes(np.zeros((3, 2, 2), np.uint8))


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "begins with nothing, expected 00000803"),
        (b"\0\0\x08\x01" + GOOD[4:], "begins with 00000801, expected 00000803, the magic number of bytes in 3 dim"),
        (b"\0\0\x0d\x03" + GOOD[4:], "begins with 00000d03, expected 00000803"),
        (b"\0\0\x08", "begins with 000008, expected 00000803"),
        (GOOD[:15], "ends in the header, after 15 bytes, expected 16"),
        (GOOD + b"x", "1[23].* bytes of values, expected 12 .3 x 2 x 2 by its header.*truncated, or has bytes behind"),
        (GOOD + bytes(5000), "12.* bytes of values, expected 12 |5,012 bytes of values, expected 12 "),
        (GOOD[:-1], "11 bytes of values, expected 12"),
        (idx_bytes(np.zeros((4, 2, 2), np.uint8)), "dimensions are 4 x 2 x 2, expected 3 x 2 x 2"),
        (header((0, 2, 2)), "dimensions are 0 x 2 x 2, expected 3 x 2 x 2"),
        (b"<!DOCTYPE html>" * 9, "begins with 3c21444f .an HTML or XML page."),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_wrong_idx_files_are_refused(tmp_path, content, pack, message):
    with pytest.raises(ValueError, match=f"idx file .*wrong.*{message}.*Turn it off and on"):
        read_idx(write(tmp_path / "wrong", pack(content)), (3, 2, 2), "Turn it off and on")


def test_an_empty_dimension_is_refused_where_any_size_will_do(tmp_path):
    with pytest.raises(ValueError, match="dimensions are 0 x 2 x 2, expected any x 2 x 2"):
        read_idx(write(tmp_path / "x", header((0, 2, 2))), (None, 2, 2))


def test_idx_paths_that_are_no_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.*there is no such file"):
        read_idx(tmp_path / "nothing", (1,))
    os.mkfifo(tmp_path / "pipe")
    for name in (".", "pipe"):  # a pipe would be waited for
        with pytest.raises(ValueError, match="a folder or a device, expected a plain file"):
            read_idx(tmp_path / name, (1,))


@pytest.fixture
def little_memory():
    """2 GiB more than now: an allocation that a header asks for fails, instead of being only reserved."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use from /proc")
@pytest.mark.parametrize("count", [2**32 - 1, 50_000_000, 20_000_000])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_headers_that_lie_take_no_memory(tmp_path, little_memory, count, pack):
    lie = write(tmp_path / "lie", pack(header((count, 28, 28)) + bytes(2000)))
    with pytest.raises(ValueError, match=r"lie.* (2,000 bytes of values|claim to hold \d|values, expected at)"):
        read_idx(lie, (None, 28, 28))


def test_a_gzip_bomb_is_not_unpacked(tmp_path, little_memory):
    """It has what its header says, but no images shrink so; and one whose header says less is cut off after a byte."""
    zeros = bytes(2**20)
    path = tmp_path / "bomb"
    for claimed in (100 * 2**20, 2**20):
        with gzip.open(path, "wb") as file:
            file.write(header((claimed,)))
            for _ in range(100):
                file.write(zeros)
        assert path.stat().st_size < 10**6
        with pytest.raises(ValueError, match="claim to hold 104,857,600|more than 1,048,576 bytes of values"):
            read_idx(path, (None,))


def test_a_damaged_gzip_file_fails_its_checksum(tmp_path):
    content = bytearray(gzip.compress(GOOD, compresslevel=0))
    content[-15] ^= 1  # a value, stored as it is; the checksum and the length are the last 8 bytes
    with pytest.raises(ValueError, match="x .*cannot be unpacked: CRC check failed"):
        read_idx(write(tmp_path / "x", bytes(content)), (3, 2, 2))
    with pytest.raises(ValueError, match="cannot be unpacked: Not a gzipped file"):
        read_idx(write(tmp_path / "x", gzip.compress(GOOD) + b"more"), (3, 2, 2))


# ---- Fashion-MNIST from files that the test makes


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The four files with few images: name -> content. The cache is empty, Debian's package not installed."""
    rng = np.random.default_rng(5)
    contents, files = {}, {}
    for key, file in fashion.FILES.items():
        count = COUNTS[file.name.split("-")[0]]
        values = rng.integers(0, 256, (count, 28, 28)) if len(file.shape) == 3 else np.arange(count) % 10
        content = contents[file.name] = idx_bytes(values.astype(np.uint8))
        files[key] = replace(file, shape=values.shape, sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(fashion, "FILES", files)
    monkeypatch.setattr(fashion, "VALIDATION_SIZE", 20)
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("TINYRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYRES_DATA", raising=False)
    return contents


def put(folder: Path, contents: dict[str, bytes], packed: bool = True) -> Path:
    for name, content in contents.items():
        write(folder / (f"{name}.gz" if packed else name), gzip.compress(content) if packed else content)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_is_read(tmp_path, small, packed):
    folder = put(tmp_path / "x", small, packed)
    train, test = data.fashion("train", folder), data.load("fashion", "test", folder)
    assert (len(train), len(test)) == (60, 20) and train.images.shape[1:] == (1, 28, 28)
    assert train.name == "fashion" and train.classes[0] == "T-shirt/top" and train.classes[9] == "Ankle boot"
    assert train.images.tobytes() == small["train-images-idx3-ubyte"][16:]
    assert test.images.tobytes() == small["t10k-images-idx3-ubyte"][16:]
    assert test.labels.tolist() == list(small["t10k-labels-idx1-ubyte"][8:])
    np.testing.assert_allclose(train.mean, train.images.mean() / 255)
    np.testing.assert_array_equal(test.mean, train.mean)
    fit, validation = data.fashion("fit", folder), data.fashion("validation", folder)
    assert np.bincount(fit.labels).tolist() == [4] * 10 and np.bincount(validation.labels).tolist() == [2] * 10
    x, y = train.batch(8)
    assert x.shape == (8, 1, 28, 28) and x.dtype == np.float32


@pytest.mark.parametrize("below", ["fashion", "fashion-mnist", "FashionMNIST/raw", "."])
def test_where_fashion_is_found(tmp_path, small, monkeypatch, below):
    folder = put(tmp_path / "given" / below, small).resolve()
    assert fashion.find(tmp_path / "given") == folder
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path / "given"))
    assert fashion.find() == folder


def test_the_order_of_places(tmp_path, small, monkeypatch):
    with pytest.raises(FileNotFoundError) as caught:
        fashion.find()
    for part in ("fashion: not found", str(tmp_path / "cache" / "fashion"), str(tmp_path / "debian"), "TINYRES_DATA",
                 "tinyres data fetch fashion", "--data-dir", "dataset-fashion-mnist"):
        assert part in str(caught.value)
    debian = put(tmp_path / "debian", small)
    assert fashion.find() == debian.resolve()
    fetched = put(tmp_path / "cache" / "fashion", small)
    assert fashion.find() == fetched.resolve()
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path / "elsewhere"))
    assert fashion.find() == fetched.resolve()  # the variable may be there for another data set
    given = put(tmp_path / "elsewhere", small)
    assert fashion.find() == given.resolve()
    with pytest.raises(FileNotFoundError, match="empty"):  # the argument, once given, is the only place
        fashion.find(tmp_path / "empty")


def test_wrong_fashion_files_are_refused(tmp_path, small):
    missing = {name: content for name, content in small.items() if "labels" not in name}
    with pytest.raises(ValueError, match="lacks train-labels-idx1-ubyte, t10k-labels-idx1-ubyte, expected all four"):
        data.fashion("train", put(tmp_path / "missing", missing))
    name = "train-images-idx3-ubyte"
    other = small | {name: small[name][:-1] + bytes([small[name][-1] ^ 1])}
    folder = put(tmp_path / "other", other)
    with pytest.raises(ValueError, match=rf"{name}.gz has SHA-256 [0-9a-f]+, expected [0-9a-f]+.*MNIST.*data fetch"):
        data.fashion("train", folder)
    assert data.fashion("train", folder, verify=False).images[-1, 0, -1, -1] == small[name][-1] ^ 1
    label = small["t10k-labels-idx1-ubyte"][:-1] + b"\x0a"
    with pytest.raises(ValueError, match="label 10 of image 19 is out of range, expected 0 to 9"):
        data.fashion("train", put(tmp_path / "label", small | {"t10k-labels-idx1-ubyte": label}), verify=False)
    with pytest.raises(ValueError, match="no split 'tests'. Did you mean 'test'"):
        data.fashion("tests", put(tmp_path / "good", small))


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYRES_CACHE", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c" and not (tmp_path / "c").exists()
    monkeypatch.setenv("TINYRES_CACHE", "~/c")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "c"
    monkeypatch.setenv("TINYRES_CACHE", "")
    assert cache_folder().name == "tinyres"


# ---- the real one, where there is one


def test_real_fashion(monkeypatch, tmp_path):
    try:
        folder = fashion.find()
    except FileNotFoundError:
        pytest.skip("no Fashion-MNIST: set TINYRES_DATA to a folder with its files, or `tinyres data fetch fashion`")
    monkeypatch.setenv("TINYRES_CACHE", str(tmp_path))
    train, test = data.fashion("train", folder), data.fashion("test", folder)
    assert data.fashion("train", folder) is train  # read once a process
    assert np.bincount(train.labels).tolist() == [6000] * 10 and np.bincount(test.labels).tolist() == [1000] * 10
    assert train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    np.testing.assert_allclose((train.mean, train.std), ([0.2860406], [0.35302424]), atol=5e-9)
    assert np.bincount(data.fashion("validation", folder).labels).tolist() == [500] * 10
    own = data.load(folder)
    np.testing.assert_array_equal(own.images, train.images)
    assert own.classes == tuple("0123456789") and locate(folder, "train-images-idx3-ubyte").exists()
