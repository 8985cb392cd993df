"""Data of one's own: arrays and folders of images, as they should be, as they are by mistake, and as they may be made
to do harm."""

import io
import os
import pickle
import resource
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyres import data
from tinyres.data import augment
from tinyres.data.arrays import ArraysError, read_npy, read_npz
from tinyres.data.bounds import SizeError
from tinyres.data.dataset import channel_statistics, stratified_split
from tinyres.data.image_folder import ImageError
from tinyres.data.own import own

Image = pytest.importorskip("PIL.Image")
MINI = Path(os.environ.get("TINYRES_DATA") or "nowhere") / "mini"


def pixels(n: int = 20, h: int = 6, w: int = 7, c: int | None = 3, seed: int = 0) -> np.ndarray:
    shape = (n, h, w) if c is None else (n, h, w, c)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def folder_of(path: Path, **arrays: np.ndarray) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    return path


LABELS = np.arange(20) % 4


# ---- .npy and .npz files


@given(shape=st.lists(st.integers(0, 4), max_size=4), order=st.sampled_from("CF"), seed=st.integers(0, 9),
       dtype=st.sampled_from(["u1", "<f4", ">f8", "<f2", ">i4", "?", "<U5"]), packed=st.booleans())
def test_arrays_round_trip(tmp_path_factory, shape, order, seed, dtype, packed):
    folder = tmp_path_factory.mktemp("a")
    array = np.asarray(np.random.default_rng(seed).integers(0, 99, shape).astype(dtype), order=order)
    np.save(folder / "a.npy", array)
    (np.savez_compressed if packed else np.savez)(folder / "a.npz", other=np.zeros(3), a=array)
    for found in (read_npy(folder / "a.npy"), read_npz(folder / "a.npz", "a")):
        assert found.dtype == array.dtype.newbyteorder("=") and found.dtype.isnative
        np.testing.assert_array_equal(found, array)


@given(share=st.floats(0, 1, exclude_max=True), packed=st.booleans())
def test_files_truncated_anywhere_are_refused(tmp_path_factory, share, packed):
    folder = tmp_path_factory.mktemp("a")
    np.save(folder / "a.npy", pixels())
    (np.savez_compressed if packed else np.savez)(folder / "a.npz", a=pixels())
    for path in (folder / "a.npy", folder / "a.npz"):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ArraysError, match=path.name):
            read_npy(path) if path.suffix == ".npy" else read_npz(path, "a")


def npy(header: str, content: bytes = b"", version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    text = header.encode() + b"\n"
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + version + size + text + content


def described(shape: str, dtype: str = "'|u1'", order: str = "False") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}"


class Bomb:
    """What a pickle would run."""

    def __reduce__(self):
        return os.abort, ()


PICKLE = pickle.dumps(np.array([Bomb()], dtype=object))
HOSTILE = [
    (npy(described("(10**15,)"), b"x"), "damaged header"),
    (npy(described("(1000000000000000,)"), b"x"), "has 1 bytes of values, expected 1,000,000,000,000,000 for uint8"),
    (npy(described("(4000000000, 4000000000, 4000000000)"), b"x"), "expected 64,000,000,000,000,000,000,000,000,000"),
    (npy(described("(3000000000,)", "'<f8'"), b"x" * 8), "expected 24,000,000,000 for float64"),
    (npy(described("(-1, 3)"), b"x" * 3), r"has the shape \(-1, 3\) by its header, expected sizes of at least 0"),
    (npy(described("(-1, -3)"), b"x" * 3), "expected sizes of at least 0"),
    (npy(described("(3,)"), b"xxxx"), "has 4 bytes of values, expected 3"),
    (npy(described("(3,)"), b"xx"), "has 2 bytes of values, expected 3"),
    (npy(described("(1,)", "'|O'"), PICKLE), "Python objects, which are never loaded"),
    (npy(described("(1,)", "[('a', '|O')]"), PICKLE), "Python objects, which are never loaded"),
    (npy(described("(1,)", "[('a', '|u1')]"), b"x"), "holds values of type"),
    (npy(described("(1,)", "'<c8'"), bytes(8)), "values of type complex64, expected numbers"),
    (npy(described("(1,)", "'<M8[s]'"), bytes(8)), "values of type datetime64"),
    (npy(described("(1000000000,)", "'|V0'")), "holds values of type"),
    (npy(described("(1,)", "'<U0'")), "holds values of type"),
    (npy(described("(2,)", "'<U1'"), struct.pack("<II", 65, 0x110000)), "texts with characters that are none"),
    (npy(described("(2,)", "'>U1'"), struct.pack(">II", 65, 0xDFFF)), "texts with characters that are none"),
    (npy("__import__('os').abort()"), "damaged header"),
    (npy(described("(1,)", "'nonsense'"), b"x"), "damaged header"),
    (npy(described("3"), b"xxx"), "damaged header"),
    (npy("{}"), "damaged header"),
    (npy("(" * 3000), "damaged header"),
    (npy("x" * 20_000), "a header of 20,001 bytes, expected at most 10,000"),
    (npy(described("(1,)"), b"x", b"\x02\x00", 2**32 - 1), "a header of 4,294,967,295 bytes"),
    (npy(described("(1,)"), b"x", b"\x03\x00"), r"version \(3, 0\) of the .npy format, expected \(1, 0\) or \(2, 0\)"),
    (b"", "is no .npy file"),
    (b"\x93NUMPY", r"version \(\) of the .npy format"),
    (b"\x93NUMPY\x01\x00", "damaged header"),
    (PICKLE, "is no .npy file: it does not begin with"),
]


@pytest.fixture
def little_memory():
    """2 GiB more than now: an allocation that a header asks for fails, instead of being only reserved."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("reads the memory in use from /proc")
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("content, message", HOSTILE, ids=[message for _, message in HOSTILE])
def test_hostile_arrays_are_refused(tmp_path, little_memory, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ArraysError, match=f"a.npy .*{message}"):
        read_npy(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(ArraysError, match=f"a.npz: a .*{message}"):
        read_npz(tmp_path / "a.npz", "a")
    folder = folder_of(tmp_path / "set", labels=LABELS)
    (folder / "images.npy").write_bytes(content)
    with pytest.raises(ArraysError, match="images.npy"):
        data.load(folder)


def zipped(path: Path, method: int = zipfile.ZIP_DEFLATED, **contents: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(f"{name}.npy", content)
    return path


def test_archives_that_lie_are_refused(tmp_path, little_memory):
    big = npy(described("(200000000,)"), bytes(200_000_000))
    with pytest.raises(SizeError, match=r"bomb.npz: a: its .* packed bytes claim to hold 200,.*numpy.savez"):
        read_npz(zipped(tmp_path / "bomb.npz", a=big), "a")
    good = npy(described("(3,)"), b"abc")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(ArraysError, match="is packed by method .*, expected deflate"):
            read_npz(zipped(tmp_path / "method.npz", method, a=good), "a")
    path = zipped(tmp_path / "size.npz", zipfile.ZIP_STORED, a=good)
    content, size = path.read_bytes(), struct.pack("<I", len(good))
    for claimed in (2**32 - 2, 10 * 2**20, len(good) - 1):  # as the directory at the end says
        at = content.rindex(size)
        path.write_bytes(content[:at] + struct.pack("<I", claimed) + content[at + 4 :])
        with pytest.raises((ArraysError, SizeError), match="size.npz: a"):
            read_npz(path, "a")
    path.write_bytes(content.replace(b"abc", b"abd"))
    with pytest.raises(ArraysError, match="size.npz: a cannot be read: Bad CRC-32"):
        read_npz(path, "a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
            archive.writestr("a.npy", good)
            archive.writestr("a.npy", good)
    with pytest.raises(ArraysError, match="twice.npz holds a twice, expected once"):
        read_npz(tmp_path / "twice.npz", "a")
    many = zipped(tmp_path / "many.npz", **{f"a{k}": good for k in range(1001)})
    with pytest.raises(ArraysError, match="many.npz holds more than 1,000 arrays"):
        read_npz(many, "a1")
    with pytest.raises(ArraysError, match="good.npz has no array b, expected one; it holds a"):
        read_npz(zipped(tmp_path / "good.npz", a=good), "b")


def test_files_that_are_no_archives_are_refused(tmp_path):
    for name, content in {"text.npz": b"hello", "pickle.pkl": PICKLE, "empty.npz": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArraysError, match=rf"{name} \({len(content)} bytes\) cannot be read as .npz"):
            data.load(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")  # which would be waited for
    with pytest.raises(ValueError, match="pipe is a device or the like, expected a folder or an .npz file"):
        data.load(tmp_path / "pipe")
    os.mkfifo(folder_of(tmp_path / "set", labels=LABELS) / "images.npy")
    with pytest.raises(ArraysError, match="images.npy is a folder or a device, expected a plain file"):
        data.load(tmp_path / "set")


# ---- data sets of arrays

FORMS = [("images", "labels"), ("train_images", "train_labels"), ("x_train", "y_train")]
TESTS = {"x_train": ("x_test", "y_test")}


@pytest.mark.parametrize("kind", ["folder", "npz"])
@pytest.mark.parametrize("images, labels", FORMS)
@pytest.mark.parametrize("tested", [True, False])
def test_sets_of_arrays(tmp_path, kind, images, labels, tested):
    arrays = {images: pixels(), labels: LABELS, "something": np.zeros(3)}
    test_images, test_labels = TESTS.get(images, ("test_images", "test_labels"))
    if tested:
        arrays |= {test_images: pixels(8, seed=1), test_labels: LABELS[:8][::-1]}
    path = tmp_path / "set" if kind == "folder" else tmp_path / "set.npz"
    folder_of(path, **arrays) if kind == "folder" else np.savez(path, **arrays)
    train, test, fit, validation = (data.load(str(path), split) for split in data.SPLITS)
    assert data.has_test_split(path) == tested and train.name == str(path) and train.classes == tuple("0123")
    if tested:
        np.testing.assert_array_equal(train.images.transpose(0, 2, 3, 1), pixels())
        np.testing.assert_array_equal(train.labels, LABELS)
        np.testing.assert_array_equal(test.images.transpose(0, 2, 3, 1), pixels(8, seed=1))
        np.testing.assert_array_equal(test.labels, LABELS[:8][::-1])
    else:
        kept, held_out = stratified_split(LABELS, 4, seed=0)
        for part, index in ((train, kept), (test, held_out)):
            np.testing.assert_array_equal(part.images.transpose(0, 2, 3, 1), pixels()[index])
            np.testing.assert_array_equal(part.labels, LABELS[index])
        assert np.bincount(test.labels).tolist() == [1, 1, 1, 1]
    mean, std = channel_statistics(train.images, 255.0)
    for part in (train, test, fit, validation):
        np.testing.assert_array_equal((part.mean, part.std), (mean, std))
    assert len(fit) + len(validation) == len(train) and len(validation) == len(train) // 5
    x, y = train.batch(5)
    assert x.shape == (5, 3, 6, 7) and x.dtype == np.float32


@pytest.mark.parametrize(
    "images, expected",
    [(pixels(c=None), (1, 6, 7)), (pixels(c=1), (1, 6, 7)), (pixels(c=3), (3, 6, 7)),
     (pixels(c=3).transpose(0, 3, 1, 2), (3, 6, 7)), (pixels(c=1).transpose(0, 3, 1, 2), (1, 6, 7)),
     (pixels(c=3)[:, :1], None), (pixels(c=3)[:, :3], None), (pixels(c=None)[:, :1, :, None], None),
     (pixels(c=4), "or last place: images with a fourth, transparency"), (pixels(c=2), "expected 1 or 3 channels"),
     (pixels(c=None).reshape(20, 42), "reshape them before"), (pixels()[0, 0], r"expected \(N, H, W\), "),
     (pixels(c=None)[:, :3], (1, 3, 7))],
)
def test_where_the_channels_are(tmp_path, images, expected):
    path = folder_of(tmp_path / "set", images=images, labels=LABELS[: len(images)])
    if isinstance(expected, tuple):
        train = data.load(path)
        assert train.images.shape[1:] == expected
        whole = images.reshape(20, 6 if images.shape[1] == 6 else -1, 7, 1) if images.ndim == 3 else images
        whole = whole if whole.shape[3] in (1, 3) else whole.transpose(0, 2, 3, 1)
        kept, _ = stratified_split(LABELS, 4, seed=0)
        np.testing.assert_array_equal(train.images.transpose(0, 2, 3, 1), whole[kept])
    else:
        message = expected or r"can be \(N, C, H, W\) or \(N, H, W, C\). Make a data.Dataset"
        with pytest.raises(ArraysError, match=f"images.* have shape .*{message}"):
            data.load(path)


def test_floating_images_have_scale_one(tmp_path):
    images = pixels().astype(np.float32) / 255
    train = data.load(folder_of(tmp_path / "set", images=images, labels=LABELS))
    x, _ = train.take(np.arange(len(train)))
    assert train.scale == 1 and abs(x.mean()) < 1e-5 and abs(x.std() - 1) < 1e-3
    bytes_set = data.load(folder_of(tmp_path / "bytes", images=pixels(), labels=LABELS))
    np.testing.assert_allclose(x, bytes_set.take(np.arange(len(train)))[0], atol=1e-5)


def test_class_names(tmp_path):
    path = folder_of(tmp_path / "set", images=pixels(), labels=LABELS)
    (path / "classes.txt").write_text("\ufeffant\nbee\ncrow \ndäcke\nnone yet\n\n", encoding="utf-8")
    assert data.load(path).classes == ("ant", "bee", "crow", "däcke", "none yet")
    np.savez(tmp_path / "set.npz", images=pixels(), labels=LABELS, classes=["a", "b", "c", "d"])
    assert data.load(tmp_path / "set.npz").classes == ("a", "b", "c", "d")
    for text, message in (("a\nb\nc\n", "label 3 of image .* is out of range, expected 0 to 2"),
                          ("a\nb\na\nd\n", "classes.txt holds 'a' twice"), ("a\n\nb\nc", "holds an empty name"),
                          ("\n\n", "holds 0 names"), ("", "holds 0 names"),
                          ("\n".join(map(str, range(100_001))), "holds 100,001 names, expected .* 100,000 at most"),
                          ("x" * (2**20 + 1), "classes.txt has more than 1,048,576 bytes")):
        (path / "classes.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            data.load(path)
    (path / "classes.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match="classes.txt is no UTF-8 text"):
        data.load(path)
    (path / "classes.txt").unlink()
    os.mkfifo(path / "classes.txt")  # which would be waited for
    with pytest.raises(ValueError, match="classes.txt is a folder or a device, expected a plain file"):
        data.load(path)
    np.savez(tmp_path / "set.npz", images=pixels(), labels=LABELS, classes=np.arange(4))
    with pytest.raises(ArraysError, match="set.npz: classes are int64 of shape .4,., expected texts"):
        data.load(tmp_path / "set.npz")


@pytest.mark.parametrize(
    "arrays, error, message",
    [
        ({"labels": LABELS + 1}, ValueError, "the labels are 1, 2, 3, 4, expected 0, 1, 2 and so on.*return_inverse"),
        ({"labels": LABELS * 2}, ValueError, "the labels are 0, 2, 4, 6, expected"),
        ({"labels": LABELS - 1}, ValueError, "the labels are -1, 0, 1, 2, expected"),
        ({"labels": np.where(LABELS, LABELS, -1)}, ValueError, "the labels are -1, 1, 2, 3, expected"),
        ({"labels": LABELS * 10**17}, ValueError, "the labels are 0, 100000000000000000, "),
        ({"labels": LABELS * 0}, ValueError, "has 1 class, expected at least 2"),
        ({"labels": LABELS.astype(float)}, TypeError, "labels are float64 of shape .20,., expected integers"),
        ({"labels": np.array(list("abcd") * 5)}, TypeError, "labels are <U1 .*numpy.unique"),
        ({"labels": LABELS[:, None]}, TypeError, r"of shape \(20, 1\), expected integers of shape"),
        ({"labels": LABELS[:19]}, ValueError, "20 images but 19 labels"),
        ({"labels": LABELS[:0], "images": pixels(0)}, ValueError, "the labels are none"),
        ({"images": pixels().astype(np.int64)}, TypeError, "images are int64, expected uint8 or floating"),
        ({"images": np.full((20, 4, 4), np.nan, np.float32)}, ValueError, "NaN or Inf"),
        ({"images": np.zeros((20, 4, 4), np.uint8)}, ValueError, "a channel that never changes"),
        ({"labels": None}, ArraysError, "holds images without labels, expected both"),
        ({"images": None}, ArraysError, "holds labels without images, expected both"),
        ({"test_images": pixels(4)}, ArraysError, "holds test_images without test_labels, expected both"),
        ({"train_images": pixels()}, ArraysError, "expected one of: images and labels; or train_images and"),
        ({"labels": None, "images": None, "a": LABELS}, ArraysError, "holds a, expected one of"),
        ({"test_images": pixels(4, 5), "test_labels": LABELS[:4]}, ValueError,
         r"the test images are uint8 \(3, 5, 7\) \(C, H, W\), expected uint8 \(3, 6, 7\)"),
        ({"test_images": pixels(4).astype(np.float32), "test_labels": LABELS[:4]}, ValueError, "images are float32"),
        ({"test_images": pixels(4), "test_labels": LABELS[:4] + 1}, ValueError,
         "label 4 of image 3 is out of range, expected 0 to 3"),
    ],
)
def test_wrong_sets_are_refused(tmp_path, arrays, error, message):
    arrays = {"images": pixels(), "labels": LABELS, **arrays}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(error, match=f"set.npz.*{message}"):
        data.load(tmp_path / "set.npz")
    if "a" not in arrays:  # a folder with no array of a known name is taken for one of images
        with pytest.raises(error, match=f"set.*{message}"):
            data.load(folder_of(tmp_path / "set", **arrays))


def test_changed_data_is_read_again_and_unchanged_data_once(tmp_path):
    path = folder_of(tmp_path / "set", images=pixels(), labels=LABELS)
    first = data.load(path)
    assert data.load(path) is first
    np.save(path / "images.npy", pixels(seed=1))
    os.utime(path / "images.npy", (1_000_000_000, 1_000_000_000))
    second = data.load(path)
    assert not np.array_equal(first.images, second.images) and not np.array_equal(first.mean, second.mean)


def test_idx_files_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)

    def put(name, array):
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (tmp_path / name).write_bytes(header + array.astype(np.uint8).tobytes())

    put("train-images-idx3-ubyte", rng.integers(0, 256, (20, 5, 6)))
    put("train-labels-idx1-ubyte", LABELS)
    assert not data.has_test_split(tmp_path) and len(data.load(tmp_path, "test")) == 4
    put("t10k-images-idx3-ubyte", rng.integers(0, 256, (8, 5, 6)))
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte.gz: there is no such file"):
        data.load(tmp_path)
    put("t10k-labels-idx1-ubyte", LABELS[:8])
    assert data.has_test_split(tmp_path)
    assert data.load(tmp_path).images.shape == (20, 1, 5, 6) and len(data.load(tmp_path, "test")) == 8


# ---- folders of images


def picture(path: Path, array: np.ndarray, mode: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@given(grey=st.booleans(), tested=st.booleans(), suffix=st.sampled_from(["png", "bmp", "PNG", "ppm"]),
       counts=st.lists(st.integers(1, 3), min_size=2, max_size=4), seed=st.integers(0, 9))
def test_image_folders_round_trip(tmp_path_factory, grey, tested, suffix, counts, seed):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(seed)
    expected = {}
    for split in ("train", "test") if tested else ("",):
        for label, count in reversed(list(enumerate(counts))):
            for k in reversed(range(count)):
                array = rng.integers(0, 256, (5, 4) if grey else (5, 4, 3), dtype=np.uint8)
                picture(root / split / "dcba"[-1 - label] / f"{k}.{suffix}", array)
                expected[split, label, k] = array
    train, test = data.load(root), data.load(root, "test")
    names = tuple(sorted("abcd"[: len(counts)]))
    assert train.classes == names and data.has_test_split(root) == tested
    assert train.images.shape[1:] == ((1, 5, 4) if grey else (3, 5, 4))
    for split, part in (("train", train), ("test", test)) if tested else ():
        chosen = [(label, array) for (where, label, _), array in sorted(expected.items(), key=lambda e: e[0])
                  if where == split]
        assert part.labels.tolist() == [label for label, _ in chosen]
        np.testing.assert_array_equal(part.images.transpose(0, 2, 3, 1).reshape(np.shape([a for _, a in chosen])),
                                      [array for _, array in chosen])
    assert len(train) + len(test) == len(expected)


def colour(value: int = 9, h: int = 5, w: int = 5) -> np.ndarray:
    return np.full((h, w, 3), value, np.uint8) + np.arange(h * w * 3, dtype=np.uint8).reshape(h, w, 3)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes, three colour images each."""
    for name in ("cats", "dogs"):
        for k in range(3):
            picture(tmp_path / "photos" / name / f"{k}.png", colour(k))
    return tmp_path / "photos"


def test_what_systems_leave_behind_is_skipped(photos):
    (photos / "README.md").write_text("about")
    (photos / ".git").mkdir()
    (photos / "__MACOSX").mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png"):
        (photos / "cats" / name).write_bytes(b"x")
    assert len(data.load(photos)) == 5 and data.load(photos).classes == ("cats", "dogs")


def test_kinds_of_images(photos):
    """Grey among colours, palettes, transparency (on black), one bit, CMYK, a GIF of one frame, JPEG, WebP."""
    grey = np.arange(25, dtype=np.uint8).reshape(5, 5)
    picture(photos / "cats" / "a.png", grey)
    picture(photos / "cats" / "b.png", grey > 12)
    picture(photos / "cats" / "c.gif", colour(), "P")
    picture(photos / "cats" / "d.jpg", np.full((5, 5, 3), 77, np.uint8), "CMYK")
    picture(photos / "cats" / "e.webp", colour(), lossless=True)
    alpha = np.dstack([np.full((5, 5, 3), 200, np.uint8), np.where(grey < 5, 0, np.where(grey < 10, 128, 255))])
    picture(photos / "cats" / "f.png", alpha.astype(np.uint8))
    picture(photos / "cats" / "g.png", np.dstack([np.full((5, 5), 200, np.uint8), alpha[..., 3].astype(np.uint8)]))
    picture(photos / "cats" / "h.png", colour(), "P", transparency=0)
    names = [path.stem for path in sorted((photos / "cats").iterdir())] + ["0", "1", "2"]
    (photos.parent / "test").mkdir()
    photos.rename(photos.parent / "train")
    (photos.parent / "test" / "cats").mkdir()
    picture(photos.parent / "test" / "cats" / "a.png", grey)
    train = data.load(photos.parent)
    found = dict(zip(names, train.images.transpose(0, 2, 3, 1), strict=False))
    np.testing.assert_array_equal(found["a"], np.dstack([grey] * 3))
    np.testing.assert_array_equal(found["b"], np.dstack([(grey > 12) * 255] * 3))
    assert abs(found["d"].astype(int) - 77).max() < 5
    np.testing.assert_array_equal(found["e"], colour())
    for name in "fg":
        assert (found[name][0] == 0).all() and (found[name][2:] == 200).all()
        assert (abs(found[name][1].astype(int) - 100) <= 1).all()


def test_photographs_are_turned_upright(photos, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn right by 90 degrees
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, :8] = 255
    folder = tmp_path / "turned"
    for name in ("a", "b"):
        picture(folder / name / "0.jpg", wide, exif=exif, quality=95)
        picture(folder / name / "1.jpg", np.rot90(wide, -1), quality=95)
    train = data.load(folder)
    assert train.images.shape[1:] == (3, 16, 8)
    assert (train.images[:, :, :7] > 200).all() and (train.images[:, :, 9:] < 50).all()


def test_a_cameras_preview_is_no_animation(photos):
    picture(photos / "cats" / "x.jpg", colour(), format="MPO", save_all=True, append_images=[Image.new("RGB", (5, 5))])
    assert Image.open(photos / "cats" / "x.jpg").n_frames == 2
    assert data.load(photos).images.shape[1:] == (3, 5, 5)


def test_size_scales_and_crops(tmp_path):
    """Halves of two colours, wide and tall: the middle square is kept."""
    for name, (h, w) in {"a": (16, 32), "b": (32, 16), "c": (8, 8)}.items():
        array = np.zeros((h, w, 3), np.uint8)
        array[: h // 2, : w // 2], array[h // 2 :, w // 2 :] = (250, 0, 0), (0, 250, 250)
        for k in range(2):
            picture(tmp_path / "x" / name / f"{k}.png", array)
    with pytest.raises(ImageError, match=r"holds images of 3 sizes: 32x16 \(2\), 16x32 \(2\), 8x8 \(2\); expected one, "
                                         r"or a size .*size=32 \(on the command line --image-size 32\)"):
        data.load(tmp_path / "x")
    train = data.load(tmp_path / "x", size=8)
    assert train.images.shape == (5, 3, 8, 8) or train.images.shape == (4, 3, 8, 8)
    for image in train.images:
        assert (image[0, :3, :3] == 250).all() and (image[1, 5:, 5:] == 250).all() and (image[:, :3, 5:] == 0).all()
    assert data.load(tmp_path / "x", size=9).images.shape[2:] == (9, 9)
    for size in (0, -1, 5000, 2.5, "8"):
        with pytest.raises(ValueError, match=f"size is {size!r}, expected a whole number from 1 to 4,096"):
            data.load(tmp_path / "x", size=size)
    arrays = folder_of(tmp_path / "set", images=pixels(), labels=LABELS)
    with pytest.raises(ValueError, match="size is 8, but .*set holds arrays.*leave it out"):
        data.load(arrays, size=8)


def test_wrong_folders_are_refused(photos, tmp_path):
    def refused(message, path=photos):
        with pytest.raises(ImageError, match=message):
            data.load(path)

    (photos / "cats" / "notes.txt").write_text("x")
    refused("cats/notes.txt is no image by its name, expected images .*: move or remove it")
    (photos / "cats" / "notes.txt").unlink()
    (photos / "cats" / "kittens.png").mkdir()
    refused("cats/kittens.png is a folder, expected images")
    (photos / "cats" / "kittens.png").rmdir()
    os.mkfifo(photos / "cats" / "pipe.png")
    refused("cats/pipe.png is no plain file, expected images")
    (photos / "cats" / "pipe.png").unlink()
    (photos / "birds").mkdir()
    refused("birds holds no image, expected some in every class")
    (photos / "birds").rmdir()
    picture(photos / "stray.jpg", colour())
    refused("photos holds stray.jpg, which is in no class, expected CLASS/image.png")
    (photos / "stray.jpg").unlink()
    (tmp_path / "bare").mkdir()
    refused("bare holds no data: expected CLASS/image.png", tmp_path / "bare")
    data.load(photos)
    one = tmp_path / "one"
    one.mkdir()
    (photos / "cats").rename(one / "cats")
    with pytest.raises(ValueError, match="has 1 class, expected at least 2"):
        data.load(one)


def test_wrong_divisions_are_refused(photos, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    photos.rename(root / "test")
    with pytest.raises(ImageError, match="holds test beside no train, expected train and test"):
        data.load(root)
    (root / "test").rename(root / "train")
    (root / "val").mkdir()
    with pytest.raises(ImageError, match="holds train beside val, expected train and test, or else a folder a class"):
        data.load(root)
    (root / "val").rmdir()
    picture(root / "test" / "cat" / "0.png", colour())
    with pytest.raises(ImageError, match="test/cat is of no class in train. Did you mean 'cats'. There are cats, dogs"):
        data.load(root)
    (root / "test" / "cat").rename(root / "test" / "dogs")
    assert data.load(root, "test").labels.tolist() == [1]
    picture(root / "train" / "x.png", colour())
    with pytest.raises(ImageError, match="train/x.png is in no class"):
        data.load(root)
    (root / "train" / "x.png").unlink()
    picture(root / "test" / "dogs" / "1.png", colour(h=6))
    with pytest.raises(ImageError, match=r"images of 2 sizes: 5x5 \(7\), 5x6 \(1\)"):
        data.load(root)


def test_links_must_stay_inside(photos, tmp_path):
    (photos / "cats" / "link.png").symlink_to(photos / "dogs" / "0.png")
    (photos / "wolves").symlink_to("dogs")
    assert len(data.load(photos)) + len(data.load(photos, "test")) == 10
    outside = picture(tmp_path / "outside" / "0.png", colour())
    for link, target in (("cats/out.png", outside), ("birds", outside.parent), ("cats/broken.png", tmp_path / "gone")):
        (photos / link).symlink_to(target)
        with pytest.raises(ImageError, match=f"{link} is a link to {target}, expected links to what is inside"):
            data.load(photos)
        (photos / link).unlink()
    (photos / "cats" / "loop.png").symlink_to("loop.png")
    with pytest.raises(ImageError, match="loop.png is a link to"):
        data.load(photos)
    (photos / "cats" / "loop.png").unlink()
    (tmp_path / "elsewhere").symlink_to(photos)  # the folder itself may be a link
    assert data.load(tmp_path / "elsewhere").classes == ("cats", "dogs", "wolves")


def png(w: int, h: int, content: bytes = b"") -> bytes:
    """A PNG file that says it is so large."""
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b""))


def saved(array: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


FRAMES = [Image.new("RGB", (5, 5), shade) for shade in ("red", "blue")]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "x.png cannot be read as an image .*UnidentifiedImageError.*replace or remove it"),
        (b"no image", "x.png cannot be read as an image"),
        (PICKLE, "cannot be read as an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n", "cannot be read as an image"),  # would start a program
        (saved(colour(), "TIFF"), "cannot be read as an image .*expected an undamaged PNG, JPEG"),
        (saved(colour(), "PNG")[:50], "cannot be read as an image"),
        (saved(colour(), "JPEG")[:300], "cannot be read as an image"),
        (saved(colour(), "JPEG")[:-20], "cannot be read as an image .*[Tt]runcated"),
        (png(5, 5, b"short"), "cannot be read as an image"),
        (png(20_000, 20_000), "cannot be read as an image .*DecompressionBombError"),
        (png(10_000, 10_000), "cannot be read as an image .*DecompressionBombWarning"),
        (png(0, 5), "cannot be read as an image"),
        (png(9_000, 9_000, bytes(9_000)), "packed bytes claim to hold 243,000,000, expected at most 67,108,864"),
        (saved(np.arange(25, dtype=np.uint16).reshape(5, 5), "PNG"), "has pixels of mode I;16, expected 8-bit grey"),
        (saved(colour(), "GIF", save_all=True, append_images=FRAMES), r"is animated \(3 frames\), expected one"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_bad_images_are_refused_by_name(photos, little_memory, content, message):
    (photos / "dogs" / "x.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user's filters do not matter
        for size in (None, 5):
            with pytest.raises((ImageError, SizeError), match=f"dogs/.*{message}"):
                data.load(photos, size=size)


@given(at=st.integers(8, 200), value=st.integers(0, 255), kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP"]))
def test_a_changed_byte_is_an_image_or_an_error_that_names_the_file(tmp_path_factory, at, value, kind):
    folder = tmp_path_factory.mktemp("x")
    content = bytearray(saved(colour(h=9, w=9), kind))
    content[at % len(content)] = value
    for name in ("a", "b"):
        picture(folder / name / "0.png", colour(h=9, w=9))
    (folder / "b" / "x.png").write_bytes(content)
    try:
        train = data.load(folder, size=9)
    except ImageError as error:
        assert str(folder / "b" / "x.png") in str(error)
    else:
        assert len(train) == 2


def test_images_that_would_fill_the_memory_are_refused(photos, monkeypatch):
    monkeypatch.setattr("tinyres.data.bounds.LARGEST", 6 * 4 * 4 * 3)
    assert data.load(photos, size=4).images.shape[2:] == (4, 4)
    with pytest.raises(ValueError, match="photos: 450 bytes of values, expected at most 288 .*Pass a smaller size"):
        data.load(photos)
    monkeypatch.undo()
    monkeypatch.setattr("tinyres.data.bounds.SMALL", 200)
    monkeypatch.setattr("tinyres.data.bounds.MOST_SHRINKAGE", 0.1)
    with pytest.raises(ValueError, match="photos: its .* packed bytes claim to hold 450, expected at most 200 .*"):
        data.load(photos)  # one by one they are small enough


# ---- load, augment


def test_load_takes_paths(tmp_path, monkeypatch):
    np.savez(tmp_path / "set.npz", images=pixels(), labels=LABELS)
    folder_of(tmp_path / "digits", images=pixels(), labels=LABELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.load("set.npz").name == "set.npz" and len(data.load("~/set.npz")) == 16
    assert len(data.load("digits")) == 1437 and len(data.load("./digits")) == 16  # a name is a name
    assert data.load("./digits").name == "./digits"
    for missing in ("no/such", "missing.npz", "~/nothing"):
        with pytest.raises(FileNotFoundError, match="own data: there is nothing at /.*expected a folder .*check the"):
            data.load(missing)
    with pytest.raises(ValueError, match="no data set 'nothing'. There are .*; data of your own is loaded by its path"):
        data.load("nothing")
    with pytest.raises(ValueError, match="data_dir is 'x', but 'set.npz' is a path itself: leave data_dir out"):
        data.load("set.npz", data_dir="x")
    with pytest.raises(ValueError, match="size is 8, but it is for a folder of images, not for 'digits'"):
        data.load("digits", size=8)
    with pytest.raises(ValueError, match="no split 'valid'. Did you mean 'validation'"):
        data.load("set.npz", "valid")


def test_tiny_sets_can_be_divided(tmp_path):
    for n in (3, 4, 7):
        path = folder_of(tmp_path / str(n), images=pixels(n), labels=np.arange(n) % 2)
        sizes = [len(own(path, split)) for split in data.SPLITS]
        assert sizes[0] + sizes[1] == n and sizes[2] + sizes[3] == sizes[0] and min(sizes) == 1


def test_augmentation_by_size(tmp_path):
    def standard(h, w):
        return augment.standard(data.load(folder_of(tmp_path / f"{h}{w}", images=pixels(h=h, w=w), labels=LABELS)))

    assert standard(32, 40) == (augment.RandomCrop(4), augment.RandomFlip())
    assert standard(64, 64) == (augment.RandomCrop(8), augment.RandomFlip())
    assert standard(5, 6) == (augment.RandomCrop(1), augment.RandomFlip())
    assert augment.standard(data.digits()) == augment.standard("digits") == (augment.RandomCrop(1),)
    assert augment.standard("fashion") == (augment.RandomCrop(2), augment.RandomFlip())
    with pytest.raises(ValueError, match="there is none for 'fashoin'. Did you mean 'fashion'"):
        augment.standard("fashoin")


# ---- real data in this form, where there is some


@pytest.mark.parametrize("name, shape, counts", [("fashion_mnist_mini", (1, 28, 28), (1000, 250)),
                                                 ("sign_digits_32_mini", (3, 32, 32), (250, 100)),
                                                 ("digits_8x8", (1, 8, 8), (1438, 359))])
def test_real_sets(name, shape, counts):
    path = MINI / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"no {path}: set TINYRES_DATA to a folder with mini/{name}.npz to run this test")
    train, test = data.load(path), data.load(path, "test")
    assert train.images.shape == (counts[0], *shape) and len(test) == counts[1] and len(train.classes) == 10
    assert train.images.dtype == np.uint8 and min(np.bincount(test.labels)) >= counts[1] // 10 - 2
    with np.load(path) as arrays:
        if "train_images" in arrays:
            np.testing.assert_array_equal(train.images.transpose(0, 2, 3, 1).reshape(arrays["train_images"].shape),
                                          arrays["train_images"])
            np.testing.assert_array_equal(test.labels, arrays["test_labels"])
    assert 0 < train.mean.min() and train.std.max() < 1
