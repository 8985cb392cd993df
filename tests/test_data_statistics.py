"""Cached statistics: the computed ones bit for bit, never another set's, and a cache that cannot make anything fail."""

import json
import os

import numpy as np
import pytest

from tinyres import data
from tinyres.data import statistics
from tinyres.data.dataset import channel_statistics
from tinyres.data.statistics import training_statistics


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache in which even small sets are kept; returns where the statistics go."""
    monkeypatch.setattr(statistics, "WORTH_KEEPING", 0)
    monkeypatch.setenv("TINYRES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "statistics"


@pytest.fixture
def computed(monkeypatch):
    """A list that grows whenever statistics are computed, not read."""
    calls: list[tuple[int, ...]] = []
    monkeypatch.setattr(statistics, "channel_statistics",
                        lambda images, scale: calls.append(images.shape) or channel_statistics(images, scale))
    return calls


def images(seed: int = 0, dtype: type = np.uint8, shape: tuple[int, ...] = (20, 3, 4, 5)) -> np.ndarray:
    n, c, h, w = shape
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, c)).astype(dtype).transpose(0, 3, 1, 2)


def same(first, second) -> bool:
    return all(a.tobytes() == b.tobytes() and a.dtype == b.dtype for a, b in zip(first, second, strict=True))


def test_statistics_are_kept_bit_for_bit(folder, computed):
    x = images()
    first = training_statistics(x, 255.0)
    assert same(first, channel_statistics(x, 255.0)) and len(computed) == 1
    assert len(list(folder.iterdir())) == 1
    assert same(training_statistics(x.copy(), 255.0), first) and len(computed) == 1
    planes = np.ascontiguousarray(x)  # the same images in another layout
    assert same(training_statistics(planes, 255.0), first) and len(computed) == 1


def test_other_images_are_never_given_them(folder, computed):
    """One byte, the scale, the shape, the order of the same bytes: each is another set. Only bytes are kept."""
    x = images(shape=(20, 3, 4, 4))
    changed = x.copy()
    changed[19, 2, 3, 3] ^= 1
    wide = x.transpose(0, 2, 3, 1).reshape(20, 4, 12, 1).transpose(0, 3, 1, 2)  # its bytes lie in x's order
    sets = [(x, 255.0), (changed, 255.0), (x, 16.0), (x.view(np.int8), 255.0), (wide, 255.0),
            (x.astype(np.float32), 255.0), (x[::-1], 255.0)]
    for _ in range(2):
        for pixels, scale in sets:
            assert same(training_statistics(pixels, scale), channel_statistics(pixels, scale))
    assert len(list(folder.iterdir())) == len(sets) - 2 and len(computed) == len(sets) + 2


GOOD = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"null", b"[]", b"{}", b'{"mean": 1}', b"[" * 50_000, json.dumps(GOOD).encode(),
     b'{"mean": [1' + b"0" * 400 + b'], "std": [1]}',
     json.dumps({**GOOD, "sha256": "0" * 64}).encode(), b'{"mean": [NaN, NaN, NaN], "std": [1, 1, 1]}', b"cut",
     b"digit", b"channels", b"x" * 10**6],
    ids=lambda content: repr(content[:20]),
)
def test_a_damaged_cache_is_computed_anew_and_mended(folder, computed, content):
    x = images()
    expected = training_statistics(x, 255.0)
    path, = folder.iterdir()
    whole = path.read_bytes()
    if content == b"cut":
        content = whole[:-20]
    if content == b"digit":  # still JSON, of numbers that are not those
        at = whole.index(b".") + 3
        content = whole[:at] + (b"1" if whole[at : at + 1] != b"1" else b"2") + whole[at + 1 :]
    if content == b"channels":
        content = statistics._content(np.array([0.5]), np.array([0.2]))
    path.write_bytes(content)
    assert same(training_statistics(x, 255.0), expected) and len(computed) == 2
    assert path.read_bytes() == whole
    assert os.listdir(folder) == [path.name]  # no temporary file stays


@pytest.mark.parametrize("kind", ["file", "file above", "folder", "no home", "null"])
def test_a_cache_that_cannot_be_written_costs_time_only(folder, computed, monkeypatch, tmp_path, kind):
    x = images()
    if kind == "file":
        folder.parent.mkdir()
        folder.write_text("in the way")
    elif kind == "file above":
        folder.parent.write_text("in the way")
    elif kind == "folder":  # under the name of the file itself
        training_statistics(x, 255.0)
        path, = folder.iterdir()
        path.unlink()
        (path / "in the way").mkdir(parents=True)
    elif kind == "no home":
        monkeypatch.setenv("TINYRES_CACHE", "~nobody-has-this-name/cache")
        monkeypatch.chdir(tmp_path)
    else:
        monkeypatch.setenv("TINYRES_CACHE", "/dev/null/cache")
    for _ in range(2):
        assert same(training_statistics(x, 255.0), channel_statistics(x, 255.0))


def test_a_full_or_read_only_disk_costs_time_only(folder, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(statistics, "write_atomically", full)
    assert same(training_statistics(images(), 255.0), channel_statistics(images(), 255.0))
    assert list(folder.iterdir()) == []


def test_small_sets_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYRES_CACHE", str(tmp_path / "cache"))
    training_statistics(images(), 255.0)
    assert not (tmp_path / "cache").exists()


def test_changed_data_gets_its_own_statistics(folder, tmp_path):
    """Same path, same size, same time of change."""
    path = tmp_path / "set.npz"
    labels = np.arange(20) % 2
    for seed in (0, 1):
        np.savez(path, images=images(seed), labels=labels)
        os.utime(path, (1_000_000_000, 1_000_000_000))
        train = data.load(path)
        assert same((train.mean, train.std), channel_statistics(train.images, 255.0))
