"""Data sets, loader and keyed random numbers: splits for ever, batches that resume, errors that say what to do."""

import gzip
import hashlib
import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tinyres import data
from tinyres.data import cifar, philox
from tinyres.data.augment import Cutout, RandomCrop, RandomFlip
from tinyres.data.cifar_formats import CIFAR10, CIFAR100, BinaryFile, Format
from tinyres.data.dataset import channel_statistics, stratified_split

ROOT = Path(__file__).resolve().parents[1]


def channels_last(x: np.ndarray) -> bool:
    return x.transpose(0, 2, 3, 1).flags.c_contiguous


def sha256(index: np.ndarray) -> str:
    return hashlib.sha256(index.astype("<i8").tobytes()).hexdigest()


def small_set(n: int = 50, c: int = 3, classes: int = 5, seed: int = 0) -> data.Dataset:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, c, 6, 7), dtype=np.uint8)
    return data.Dataset(images, np.arange(n) % classes, "abcde"[:classes])


# ---- keyed random numbers


def philox4x64(counter: int, key: tuple[int, int]) -> list[int]:
    """Philox4x64-10 of Salmon et al. (2011), written down from the paper: four words of one counter."""
    mask = 2**64 - 1
    x = [(counter >> 64 * k) & mask for k in range(4)]
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(x[0] * 0xD2E7470EE14C6C93, 2**64)
        high1, low1 = divmod(x[2] * 0xCA5A826395121157, 2**64)
        x = [high1 ^ x[1] ^ k0, low1, high0 ^ x[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return x


def test_words_are_the_published_generator():
    # The paper's known answer for counter 0 and key 0, so that the oracle itself is checked.
    assert philox4x64(0, (0, 0))[0] == 0x16554D9ECA36314C
    for seed, epoch, stream in ((0, 0, 0), (7, 3, 2), (2**64 - 1, 199, 1)):
        # Word i is lane i % 4 of block i // 4; NumPy counts before it computes, hence the + 1.
        blocks = [philox4x64(block + 1 + (stream << 192), (seed, epoch)) for block in range(3)]
        expected = np.array(blocks, dtype=np.uint64).ravel()
        np.testing.assert_array_equal(philox.words(seed, epoch, stream, 11), expected[:11])


def test_words_do_not_depend_on_how_many_are_asked_for_and_streams_differ():
    np.testing.assert_array_equal(philox.words(1, 2, 3, 1000)[:77], philox.words(1, 2, 3, 77))
    streams = [philox.words(*key, 500) for key in ((1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3), (2, 1, 3))]
    assert len(np.unique(streams)) == 5 * 500


def test_integer_pairs_are_uniform_and_independent():
    first, second = philox.integer_pairs(philox.words(5, 0, 1, 90_000), 9, 5)
    counts = np.zeros((9, 5))
    np.add.at(counts, (first, second), 1)  # an index out of range raises
    assert abs(counts - 2000).max() < 5 * 2000**0.5
    assert abs(philox.coins(philox.words(5, 0, 2, 90_000)).mean() - 0.5) < 5 * 0.5 / 300


@pytest.mark.parametrize("key", [(-1, 0, 0), (0, -1, 0), (2**64, 0, 0), (0.5, 0, 0)])
def test_bad_keys_are_refused(key):
    with pytest.raises(ValueError, match=r"expected an integer from 0 to 2\^64 - 1"):
        philox.words(*key, 4)


# ---- digits


def test_digits_split_is_fixed_for_ever():
    with np.load(ROOT / "tinyres" / "data" / "digits.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    train, test = stratified_split(labels, 360, seed=0)
    assert (len(train), len(test)) == (1437, 360)
    assert sha256(test) == "6e132b1795cda0b4465a92c8f491075817f7cc63e00b4e3ecde9fcf4bced7844"
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(1797))
    for split, index in (("train", train), ("test", test)):
        dataset = data.digits(split)
        np.testing.assert_array_equal(dataset.images[:, 0], images[index])
        np.testing.assert_array_equal(dataset.labels, labels[index])
    assert np.bincount(data.digits("train").labels).tolist() == [142, 145, 142, 146, 145, 146, 145, 143, 139, 144]
    assert np.bincount(data.digits("test").labels).tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]


def test_digits_validation_split_divides_the_training_images_only():
    train, fit, validation = (data.digits(split) for split in ("train", "fit", "validation"))
    assert (len(fit), len(validation)) == (1150, 287)
    fit_index, validation_index = stratified_split(train.labels, 287, seed=1)
    assert sha256(validation_index) == "8d49310783c1851d17ba731ca1eb419c0adcb3997cc7470d3861a592e72a62fb"
    np.testing.assert_array_equal(np.sort(np.concatenate([fit_index, validation_index])), np.arange(1437))
    np.testing.assert_array_equal(fit.images, train.images[fit_index])
    np.testing.assert_array_equal(validation.images, train.images[validation_index])
    assert np.bincount(validation.labels).tolist() == [28, 29, 28, 29, 29, 29, 29, 29, 28, 29]


def test_digits_are_normalised_by_the_training_images_alone():
    train = data.digits("train")
    pixels = train.images.astype(np.float64) / 16
    assert train.images.max() == 16
    np.testing.assert_allclose((train.mean, train.std), ([pixels.mean()], [pixels.std()]), rtol=1e-13)
    for split in ("test", "fit", "validation"):
        np.testing.assert_array_equal(data.digits(split).mean, train.mean)
        np.testing.assert_array_equal(data.digits(split).std, train.std)


def test_digits_batch_is_what_a_model_takes():
    x, y = data.digits("train").batch(64)
    assert x.shape == (64, 1, 8, 8) and x.dtype == np.float32 and channels_last(x)
    assert y.shape == (64,) and y.dtype == np.int64
    assert x[:4].shape == (4, 1, 8, 8)
    assert abs(x.mean()) < 0.1 and abs(x.std() - 1) < 0.1


# ---- Dataset


def test_batch_is_seeded_random_and_without_repetition():
    dataset = small_set()
    x, y = dataset.batch(20, seed=3)
    again, other = dataset.batch(20, seed=3), dataset.batch(20, seed=4)
    np.testing.assert_array_equal(x, again[0])
    np.testing.assert_array_equal(y, again[1])
    assert not np.array_equal(x, other[0])
    everything = dataset.batch(50)[0]
    assert len(np.unique(everything.reshape(50, -1), axis=0)) == 50
    first = next(data.Loader(dataset, 20, shuffle=True, seed=3).epoch(0))
    np.testing.assert_array_equal(x, first[0])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_normalised_values(dtype):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (9, 3, 5, 4)).astype(dtype)
    dataset = data.Dataset(images, np.zeros(9, int), ["a"], [0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
    x, _ = dataset.take(np.arange(9)[::-1])
    pixels = images[::-1].astype(np.float64) / 255
    expected = (pixels - np.reshape([0.5, 0.4, 0.3], (3, 1, 1))) / np.reshape([0.2, 0.25, 0.3], (3, 1, 1))
    assert x.dtype == np.float32 and channels_last(x)
    np.testing.assert_allclose(x, expected, rtol=0, atol=2e-6)


def test_statistics_in_chunks_equal_numpy_in_float64():
    rng = np.random.default_rng(2)
    images = rng.normal(1000, 1, (700, 2, 3, 5)).astype(np.float32)  # a large offset: cancellation would show
    mean, std = channel_statistics(images, 4.0)
    pixels = images.astype(np.float64) / 4
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 2, 3)), rtol=1e-10)


def test_images_are_stored_once_channels_last_and_read_only():
    images = np.zeros((4, 6, 7, 3), np.uint8).transpose(0, 3, 1, 2)
    images[:, :, 0, 0] = 9
    dataset = data.Dataset(images, [0, 1, 1, 0], ["a", "b"])
    assert np.shares_memory(dataset.images, images)
    assert np.shares_memory(dataset.with_normalisation([0.5] * 3, [0.2] * 3).images, images)
    planar = data.Dataset(np.ascontiguousarray(images), [0, 1, 1, 0], ["a", "b"])
    assert channels_last(planar.images) and channels_last(planar.subset([2, 0]).images)
    np.testing.assert_array_equal(planar.images, images)
    for array in (dataset.images, dataset.labels, dataset.mean):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    images[0] = 5  # the caller's own array stays writable


def test_subset_keeps_statistics_and_order():
    dataset = small_set()
    part = dataset.subset([7, 3, 3])
    np.testing.assert_array_equal(part.images, dataset.images[[7, 3, 3]])
    assert part.labels.tolist() == [2, 3, 3]
    np.testing.assert_array_equal(part.mean, dataset.mean)
    assert len(part) == 3 and part.classes == dataset.classes


IMAGES = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)


@pytest.mark.parametrize(
    "images, labels, options, error, message",
    [
        (np.zeros((0, 3, 4, 4), np.uint8), [], {}, ValueError, r"\(0, 3, 4, 4\): the data set is empty"),
        (IMAGES[:, 0], [0, 1], {}, ValueError, r"shape \(2, 4, 4\), expected \(N, C, H, W\).*images\[:, None\]"),
        (IMAGES.astype(np.int32), [0, 1], {}, TypeError, "images are int32, expected uint8 or floating"),
        (np.full((2, 3, 4, 4), np.nan), [0, 1], {}, ValueError, "NaN or Inf"),
        (IMAGES, [0], {}, ValueError, "2 images but 1 labels"),
        (IMAGES, [0, 2], {}, ValueError, "label 2 of image 1 is out of range, expected 0 to 1"),
        (IMAGES, [-1, 0], {}, ValueError, "label -1 of image 0 is out of range"),
        (IMAGES, [0.0, 1.0], {}, TypeError, "labels are float64"),
        (IMAGES, [[0], [1]], {}, TypeError, r"of shape \(2, 1\)"),
        (IMAGES, [0, 1], {"mean": [0.5] * 3}, ValueError, "both mean and std"),
        (IMAGES, [0, 1], {"mean": [0.5] * 2, "std": [1.0] * 3}, ValueError, r"mean is \[0.5, 0.5\], expected 3"),
        (IMAGES, [0, 1], {"mean": [0.5] * 3, "std": [1, 0, 1]}, ValueError, "expected positive numbers"),
        (np.zeros_like(IMAGES), [0, 1], {}, ValueError, "a channel that never changes"),
        (IMAGES, [0, 1], {"scale": 0}, ValueError, "scale is 0, expected"),
    ],
)
def test_bad_data_sets_are_refused(images, labels, options, error, message):
    with pytest.raises(error, match=message):
        data.Dataset(images, labels, ["a", "b"], name="toys", **options)


@pytest.mark.parametrize("size", [0, -3, 51])
def test_bad_batch_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"size is {size}, expected 1 to 50"):
        small_set().batch(size)


def test_bad_indices_are_refused():
    for index in ([50], [-1]):
        with pytest.raises(ValueError, match="out of range, expected 0 to 49"):
            small_set().take(index)
    with pytest.raises(TypeError, match="index is bool"):
        small_set().subset(np.ones(50, bool))


def test_stratified_split_holds_out_exactly_and_in_proportion():
    labels = np.repeat([0, 1, 2], [50, 30, 7])
    kept, held = stratified_split(labels, 29, seed=4)
    assert len(held) == 29 and np.array_equal(np.sort(np.r_[kept, held]), np.arange(87))
    assert np.abs(np.bincount(labels[held]) - np.array([50, 30, 7]) / 3).max() < 1
    assert not np.array_equal(held, stratified_split(labels, 29, seed=5)[1])


# ---- Loader


def test_evaluation_keeps_the_order_and_the_last_small_batch():
    dataset = small_set()
    batches = list(data.Loader(dataset, 16).epoch(0))
    assert [len(y) for _, y in batches] == [16, 16, 16, 2]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), dataset.normalise(dataset.images))
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), dataset.labels)
    dropped = data.Loader(dataset, 16, drop_last=True)
    assert len(dropped) == 3 and [len(y) for _, y in dropped.epoch(0)] == [16, 16, 16]
    assert len(data.Loader(dataset, 25)) == len(data.Loader(dataset, 25, drop_last=True)) == 2


def test_shuffling_is_a_permutation_of_seed_and_epoch():
    images = np.broadcast_to(np.arange(50, dtype=np.float32).reshape(50, 1, 1, 1), (50, 1, 2, 2))
    dataset = data.Dataset(images, np.arange(50), [str(k) for k in range(50)], [0.0], [1.0], scale=1.0)

    def order(seed, epoch):
        batches = list(data.Loader(dataset, 8, shuffle=True, seed=seed).epoch(epoch))
        y = np.concatenate([y for _, y in batches])
        np.testing.assert_array_equal(np.concatenate([x for x, _ in batches])[:, 0, 1, 1], y)  # images follow labels
        return y.tolist()

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert len({tuple(one) for one in orders}) == 4
    assert order(0, 0) == orders[0]


def test_a_resumed_epoch_continues_exactly():
    loader = data.Loader(small_set(), 8, shuffle=True, seed=9, augment=[RandomCrop(2), RandomFlip(), Cutout(2)])
    whole = list(loader.epoch(5))
    for start in (0, 3, len(loader)):
        rest = list(loader.epoch(5, start_batch=start))
        assert len(rest) == len(whole) - start
        for (x, y), (x_again, y_again) in zip(whole[start:], rest, strict=True):
            assert x.dtype == np.float32 and channels_last(x)
            np.testing.assert_array_equal(x, x_again)
            np.testing.assert_array_equal(y, y_again)


def test_a_samples_augmentation_does_not_depend_on_its_batch():
    dataset = small_set()
    augment = [RandomCrop(2), RandomFlip()]

    def by_sample(shuffle, batch_size, epoch=2):
        loader = data.Loader(dataset, batch_size, shuffle=shuffle, seed=1, augment=augment)
        x = np.concatenate([x for x, _ in loader.epoch(epoch)])
        order = philox.permutation(1, epoch, 50) if shuffle else np.arange(50)
        return x[np.argsort(order)]

    np.testing.assert_array_equal(by_sample(True, 8), by_sample(True, 50))
    np.testing.assert_array_equal(by_sample(True, 8), by_sample(False, 7))
    different = np.abs(by_sample(True, 8) - by_sample(True, 8, epoch=3)).max(axis=(1, 2, 3)) > 0
    assert different.sum() > 40  # another epoch is augmented anew


def test_each_transform_draws_from_its_own_stream():
    seen = []

    def spy(images, words):
        seen.append(words)
        return images

    list(data.Loader(small_set(), 50, seed=2, augment=[spy, spy, RandomFlip(), spy]).epoch(6))
    for words, stream in zip(seen, (1, 2, 4), strict=True):
        np.testing.assert_array_equal(words, philox.words(2, 6, stream, 50))


def test_bad_loaders_are_refused():
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        data.Loader(small_set(), 0)
    with pytest.raises(ValueError, match="leaves no batch of 50 images"):
        data.Loader(small_set(), 51, drop_last=True)
    with pytest.raises(TypeError, match="say which epoch"):
        iter(data.Loader(small_set(), 8))
    loader = data.Loader(small_set(), 8, shuffle=True)
    for start in (-1, 8):
        with pytest.raises(ValueError, match=f"start_batch is {start}, expected 0 to 7"):
            loader.epoch(0, start_batch=start)
    with pytest.raises(ValueError, match="epoch is -1"):
        loader.epoch(-1)


# ---- CIFAR from files that the test makes


def small_format(wanted: Format = CIFAR10) -> tuple[Format, dict[str, bytes]]:
    """The format with a few records a file, and the files' contents."""
    rng = np.random.default_rng(3)
    contents: dict[str, bytes] = {}

    def shrink(file: BinaryFile) -> BinaryFile:
        records = rng.integers(0, 256, (4, wanted.record_bytes), dtype=np.uint8)
        for column, classes in enumerate(wanted.labels.values()):
            records[:, column] = rng.integers(0, len(classes), 4)
        contents[file.name] = records.tobytes()
        return BinaryFile(file.name, 4, hashlib.sha1(contents[file.name]).hexdigest())

    small = replace(wanted, train=tuple(map(shrink, wanted.train)), test=tuple(map(shrink, wanted.test)))
    return small, contents


def write_folder(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path: Path, contents: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for member in extra or []:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("wanted", [CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])
@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_records_are_read_in_the_files_order(tmp_path, wanted, kind):
    small, contents = small_format(wanted)
    backwards = dict(reversed(contents.items()))  # an archive may hold its members in any order
    path = write_folder(tmp_path / "x", contents) if kind == "folder" else write_archive(tmp_path / "x.tgz", backwards)
    sets = cifar.read(small, path, verify=True)
    for split, files in (("train", small.train), ("test", small.test)):
        images, labels = sets[split]
        assert images.dtype == np.uint8 and channels_last(images)
        records = b"".join(contents[file.name] for file in files)
        for n in range(4 * len(files)):
            record = records[n * small.record_bytes : (n + 1) * small.record_bytes]
            assert labels[n].tolist() == list(record[: len(wanted.labels)])
            assert images[n].tobytes() == record[len(wanted.labels) :]  # red, green, blue planes, row by row


@pytest.mark.parametrize("name", ["cifar-10-batches-bin", "cifar-10-binary.tar.gz"])
@pytest.mark.parametrize("below", [".", "cifar10"])
def test_the_data_is_found_by_argument_and_by_variable(tmp_path, monkeypatch, name, below):
    small, contents = small_format()
    path = tmp_path / below / name
    path = write_archive(path, contents) if name.endswith(".gz") else write_folder(path, contents)
    monkeypatch.delenv("TINYRES_DATA", raising=False)
    assert cifar.find(small, tmp_path) == cifar.find(small, str(path)) == path.resolve()
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path))
    assert cifar.find(small) == path.resolve()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):  # the argument, once given, is the only place
        cifar.find(small, empty)


def test_missing_data_says_where_it_looked_and_what_to_set(tmp_path, monkeypatch):
    monkeypatch.delenv("TINYRES_DATA", raising=False)
    monkeypatch.setenv("TINYRES_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError) as caught:
        data.cifar10()
    cached = str(tmp_path / "cache" / "cifar-10-binary.tar.gz")
    for part in ("no data_dir was given", "TINYRES_DATA", "--data-dir", CIFAR10.url, cached, "data fetch cifar10"):
        assert part in str(caught.value)
    with pytest.raises(FileNotFoundError) as caught:
        data.load("cifar100", "test", tmp_path)
    looked = [tmp_path, tmp_path / "cifar-100-binary", tmp_path / "cifar100" / "cifar-100-binary.tar.gz"]
    for part in (*map(str, looked), "TINYRES_DATA", CIFAR100.url):
        assert part in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_damaged_files_are_refused(tmp_path, kind):
    small, contents = small_format()

    def read(name, verify=True, **changes):
        changed = {**contents, **{key + ".bin": value for key, value in changes.items()}}
        changed = {key: value for key, value in changed.items() if value is not None}
        if kind == "folder":
            return cifar.read(small, write_folder(tmp_path / name, changed), verify)
        return cifar.read(small, write_archive(tmp_path / f"{name}.tar.gz", changed), verify)

    batch = contents["data_batch_3.bin"]
    flipped = batch[:100] + bytes([batch[100] ^ 1]) + batch[101:]
    with pytest.raises(ValueError, match=r"data_batch_3.bin in .* 12,291 bytes, expected 12,292 \(4 records"):
        read("short", data_batch_3=batch[:-1])
    with pytest.raises(ValueError, match=r"has 12,293 bytes, expected 12,292"):
        read("long", data_batch_3=batch + b"x")
    with pytest.raises(ValueError, match=r"data_batch_3.bin in .* SHA-1 [0-9a-f]{40}, expected [0-9a-f]{40}.*https://"):
        read("damaged", data_batch_3=flipped)
    images = read("unverified", verify=False, data_batch_3=flipped)["train"][0]
    assert images[8].tobytes() == flipped[1:3073]  # the third file begins at record 8
    with pytest.raises(ValueError, match=r"test_batch.bin in .*record 1 has the class label 10, expected 0 to 9"):
        test = contents["test_batch.bin"]
        read("label", verify=False, test_batch=test[:3073] + b"\x0a" + test[3074:])
    with pytest.raises(ValueError, match=r"lacks data_batch_2.bin, test_batch.bin, expected the 6 files"):
        read("missing", data_batch_2=None, test_batch=None)


def test_truncated_archives_are_refused(tmp_path):
    small, contents = small_format()
    whole = write_archive(tmp_path / "whole.tar.gz", contents).read_bytes()
    for cut in (0, 9, len(whole) // 3, len(whole) // 2, len(whole) - 2000):
        path = tmp_path / f"cut{cut}.tar.gz"
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=rf"cut{cut}.tar.gz .*cannot be read as a tar archive"):
            cifar.read(small, path, verify=True)
    with pytest.raises(ValueError, match="cannot be read as a tar archive"):
        cifar.read(small, Path(__file__), verify=True)


def hostile(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, 3 if kind == tarfile.REGTYPE else 0
    return member


@pytest.mark.parametrize(
    "member",
    [
        hostile("/tmp/absolute.txt"),
        hostile("cifar-10-batches-bin/../../up.txt"),
        hostile("cifar-10-batches-bin/link", tarfile.SYMTYPE, "/etc/passwd"),
        hostile("cifar-10-batches-bin/data_batch_1.bin", tarfile.LNKTYPE, "../outside"),
        hostile("cifar-10-batches-bin/fifo", tarfile.FIFOTYPE),
    ],
    ids=["absolute", "parent", "symlink", "hardlink", "fifo"],
)
def test_hostile_members_are_refused_and_nothing_is_written(tmp_path, member):
    small, contents = small_format()
    path = write_archive(tmp_path / "hostile.tar.gz", contents, [member])
    with pytest.raises(ValueError) as caught:
        cifar.read(small, path, verify=True)
    assert "hostile.tar.gz holds" in str(caught.value) and repr(member.name) in str(caught.value)
    assert os.listdir(tmp_path) == ["hostile.tar.gz"]


def test_a_file_twice_in_an_archive_is_refused_and_other_files_are_ignored(tmp_path):
    small, contents = small_format()
    readme = hostile("cifar-10-batches-bin/readme.html")
    assert cifar.read(small, write_archive(tmp_path / "a.tar.gz", contents, [readme]), verify=True)
    twice = write_archive(tmp_path / "b.tar.gz", contents)
    with gzip.open(twice, "rb") as file:
        plain = file.read()
    second = hostile("other/test_batch.bin")
    second.size = len(contents["test_batch.bin"])
    end = plain.rindex(contents["test_batch.bin"]) + -(-second.size // 512) * 512  # a member fills blocks of 512 bytes
    twice.write_bytes(plain[:end] + second.tobuf() + contents["test_batch.bin"] + bytes(2048 - second.size % 512))
    with pytest.raises(ValueError, match="holds test_batch.bin twice"):
        cifar.read(small, twice, verify=True)


def test_cifar100_has_fine_and_coarse_labels(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name, records in (("train.bin", 50_000), ("test.bin", 10_000)):
        with open(folder / name, "wb") as file:  # sparse: only the first three records are on the disk
            for n in range(3):
                file.write(bytes([n + 1, 97 + n]) + bytes(range(256)) * 12)
            file.truncate(records * 3074)
    fine, coarse = (data.cifar100(split, tmp_path, kind, verify=False) for split, kind in
                    (("train", "fine"), ("test", "coarse")))
    with pytest.raises(ValueError, match="train.bin in .* has SHA-1"):
        data.cifar100("train", tmp_path)
    assert fine.labels[:4].tolist() == [97, 98, 99, 0] and coarse.labels[:4].tolist() == [1, 2, 3, 0]
    assert len(fine.classes) == 100 and len(coarse.classes) == 20 and (len(fine), len(coarse)) == (50_000, 10_000)
    assert fine.classes[0] == "apple" and fine.classes[99] == "worm" and list(fine.classes) == sorted(fine.classes)
    with pytest.raises(ValueError, match="labels is 'course', expected 'fine' or 'coarse'. Did you mean 'coarse'"):
        data.cifar100("train", tmp_path, labels="course")


# ---- the real CIFAR-10, where there is one


def real_cifar10() -> str | None:
    for place in (os.environ.get("TINYRES_DATA"), ROOT.parent / "shared" / "data"):
        try:
            if place and cifar.find(CIFAR10, place):
                return str(place)
        except FileNotFoundError:
            continue
    return None


def test_real_cifar10():
    place = real_cifar10()
    if place is None:
        pytest.skip("no CIFAR-10: set TINYRES_DATA to the folder of the official binary version to run this test")
    train, test = data.cifar10("train", place), data.load("cifar10", "test", place)
    assert data.cifar10("train", place) is train  # read once a process
    assert np.bincount(train.labels).tolist() == [5000] * 10 and np.bincount(test.labels).tolist() == [1000] * 10
    assert [train.classes[label] for label in train.labels[:5]] == ["frog", "truck", "truck", "deer", "automobile"]
    assert train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert test.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    np.testing.assert_allclose(train.mean, [0.49139968, 0.48215841, 0.44653091], atol=5e-9)
    np.testing.assert_allclose(train.std, [0.24703223, 0.24348513, 0.26158784], atol=5e-9)
    np.testing.assert_array_equal(test.mean, train.mean)
    assert "airplane automobile bird cat deer dog frog horse ship truck".split() == list(train.classes)
    fit, validation = data.cifar10("fit", place), data.cifar10("validation", place)
    assert np.bincount(fit.labels).tolist() == [4500] * 10 and np.bincount(validation.labels).tolist() == [500] * 10


# ---- load


def test_load_knows_the_names_and_suggests_the_nearest():
    assert data.load("digits", "test") is data.digits("test")
    with pytest.raises(ValueError, match="no data set 'cifar-10'. Did you mean 'cifar10'.*digits, cifar10, cifar100"):
        data.load("cifar-10")
    with pytest.raises(ValueError, match="no data set 'imagenet'. There are"):
        data.load("imagenet")
    with pytest.raises(ValueError, match="no split 'valid'. Did you mean 'validation'"):
        data.digits("valid")
