"""`tinyres data list | fetch | check | show` as a script sees it, on small data sets; and the pictures' contents."""

import hashlib
import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mirror import RECORDS, Answer, Mirror, packed, small_cifar10

from tinyres import data
from tinyres.analysis import grid
from tinyres.cli.main import app
from tinyres.data import cifar
from tinyres.data.augment import RandomCrop, RandomFlip
from tinyres.data.cifar_formats import FORMATS

SMALL, CONTENTS = small_cifar10()
ARCHIVE = packed(CONTENTS)
SMALL = replace(SMALL, md5=hashlib.md5(ARCHIVE).hexdigest(), mirrors=())
NAME = "cifar-10-binary.tar.gz"


@pytest.fixture
def tinyres_command(capsys, monkeypatch, tmp_path):
    """tinyres_command("data list") -> (exit status, stdout, stderr), in an empty folder, with a small CIFAR-10."""
    for name in ("TINYRES_DATA", "TINYRES_MIRROR", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TINYRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(FORMATS, "cifar10", SMALL)
    monkeypatch.setattr(cifar, "CIFAR10", SMALL)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(line):
        with pytest.raises(SystemExit) as end:
            app(shlex.split(line), prog_name="tinyres")
        text = capsys.readouterr()
        return end.value.code, text.out, text.err

    return call


@pytest.fixture
def mirror():
    mirror = Mirror()
    yield mirror
    mirror.close()


def last_line(out):
    return json.loads(out.splitlines()[-1])


def own_data(path="own.npz", n=24):
    """Two classes, the second three times as large; one channel of 6x5 pixels, in class k near 100 k."""
    labels = (np.arange(n) % 4 > 0).astype(np.int64)
    images = (labels[:, None, None] * 100 + np.arange(30).reshape(6, 5)).astype(np.uint8)
    np.savez(path, images=images, labels=labels, classes=np.array(["few", "many"]))
    return path


def test_help(tinyres_command):
    status, out, err = tinyres_command("data")
    assert (status, err) == (0, "") and tinyres_command("data --help") == (0, out, "")
    assert all(f"\n  {name} " in out for name in ("list", "fetch", "check", "show"))
    assert "\n  data " in tinyres_command("--help")[1]


@pytest.mark.parametrize("line, status, message", [
    ("data lsit", 2, "tinyres data: No such command 'lsit'. Did you mean 'list'?"),
    ("data fetch", 2, "tinyres data fetch: Missing argument 'NAME'"),
    ("data fetch cifar11", 2, "NAME: data fetch: no data set 'cifar11'. Did you mean 'cifar10'?"),
    ("data fetch digits", 2, "digits come with the package; there is nothing to fetch"),
    ("data fetch cifar10 --mirror ftp://x", 2, "--mirror: data fetch: the mirror 'ftp://x' is no address of cifar-10"),
    ("data check cifra10", 2, "NAME|PATH: no data set 'cifra10'. Did you mean 'cifar10'?"),
    ("data check cifar100", 1, "tinyres: cifar100: not found, no data_dir was given and TINYRES_DATA is not set"),
    ("data check cifar100 --data-dir nowhere", 1, "Fetch it with: tinyres data fetch cifar100"),
    ("data check ./nowhere", 1, "there is nothing at "),
    ("data check own.npz --data-dir x", 2, "--data-dir: own.npz is a path itself; leave --data-dir out."),
    ("data check digits --image-size 9", 2, "--image-size: it is for a folder of images, not for digits"),
    ("data check own.npz --image-size 9", 1, "tinyres: own data: size is 9, but "),
    ("data show digits --split tset", 2, "--split: digits: no split 'tset'. Did you mean 'test'?"),
    ("data show digits --out x.jpg", 2, "--out: x.jpg does not end in .png"),
    ("data show digits --count 0", 2, "'--count': '0' is not a whole number from 1 to 400"),
    ("data show digits --seed -1", 2, "'--seed': '-1' is not a whole number of at least 0"),
    ("data show digits --out nowhere/x.png", 1, "nowhere"),
])
def test_errors_are_one_line(tinyres_command, line, status, message):
    own_data()
    found, out, err = tinyres_command(line)
    assert (found, out, len(err.splitlines())) == (status, "", 1) and message in err and "Traceback" not in err
    assert [path.name for path in Path().iterdir()] == ["own.npz"]


# --- list -------------------------------------------------------------------------------------------------------------


def test_list_says_what_there_is_and_how_to_get_it(tinyres_command, tmp_path, monkeypatch):
    own_data()
    status, out, err = tinyres_command("data list own.npz")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert (status, err) == (0, "") and list(lines) == ["name", "digits", "cifar10", "cifar100", "fashion", "own.npz"]
    assert lines["digits"].split()[1:] == ["1,437", "360", "10", "8x8", "grey", "embedded"]
    assert "not here; get its 170 MB with: tinyres data fetch cifar10" in lines["cifar10"]
    assert "50,000  10,000      100  32x32 RGB" in lines["cifar100"]
    assert "60,000  10,000       10  28x28 grey" in lines["fashion"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / NAME).write_bytes(ARCHIVE)
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path / "data"))
    found = last_line(tinyres_command("data list own.npz --json")[1])
    sets = {one["name"]: one for one in found["sets"]}
    assert found["cache"] == str(tmp_path / "cache")
    assert sets["cifar10"] == {
        "name": "cifar10", "train": 5 * RECORDS, "test": RECORDS, "classes": 10, "shape": [3, 32, 32],
        "where": str(tmp_path / "data" / NAME), "fetch": "tinyres data fetch cifar10"}
    assert sets["cifar100"]["where"] is None and sets["digits"]["fetch"] is None
    assert (sets["own.npz"]["train"], sets["own.npz"]["test"], sets["own.npz"]["shape"]) == (20, 4, [1, 6, 5])
    assert "Your own" in tinyres_command("data list")[2]


# --- fetch ------------------------------------------------------------------------------------------------------------


def test_fetch_then_check_and_show(tinyres_command, mirror, tmp_path):
    address = mirror.serve(f"/data/{NAME}", Answer(ARCHIVE))
    status, out, err = tinyres_command(f"data fetch cifar10 --mirror {mirror.address('/data/')} --json")
    found, path = last_line(out), str(tmp_path / "cache" / NAME)
    assert (status, len(out.splitlines())) == (0, 1) and f"{NAME} from {address}" in err
    assert {key: found[key] for key in ("name", "path", "fetched", "urls", "checked", "received")} == {
        "name": "cifar10", "path": path, "fetched": True, "urls": [address], "checked": ["official MD5"],
        "received": len(ARCHIVE)}
    assert found["bytes_per_second"] > 0 and found["seconds"] >= 0
    status, out, err = tinyres_command("data fetch cifar10")
    assert (status, err) == (0, "") and out == f"cifar10: {path} (was there already; right by its official MD5)\n"
    assert len(mirror.requests) == 1
    found = last_line(tinyres_command("data check cifar10 --json")[1])
    assert (found["path"], found["passed"]) == (path, True)
    assert found["checked"] == "SHA-1 of each file, MD5 of the official archive"
    assert tinyres_command("data show cifar10 --split test")[0] == 0 and Path("grid.png").is_file()


def test_fetch_to_a_folder_quietly_and_by_force(tinyres_command, mirror):
    line = f"data fetch cifar10 --mirror {mirror.serve('/x.tgz', Answer(ARCHIVE))} --folder there --quiet"
    status, out, err = tinyres_command(line)
    assert (status, err) == (0, "") and out.startswith(f"cifar10: there/{NAME} (0.6 MB came in ")
    assert Path("there", NAME).read_bytes()[:2] == b"\x1f\x8b"
    tinyres_command(line)
    assert len(mirror.requests) == 1
    assert "came in" in tinyres_command(f"{line} --force")[1] and len(mirror.requests) == 2


def test_fetch_leaves_what_is_elsewhere_alone_but_looks_at_it(tinyres_command, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYRES_MIRROR", mirror.address())
    mirror.serve(f"/{NAME}", Answer(ARCHIVE))
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / NAME
    mine.write_bytes(ARCHIVE)
    found = last_line(tinyres_command("data fetch cifar10 --json")[1])
    assert (found["path"], found["fetched"], found["received"]) == (str(mine), False, 0) and mirror.requests == []
    damaged = ARCHIVE[:300_000]
    mine.write_bytes(damaged)
    cifar._train_and_test.cache_clear()
    status, out, err = tinyres_command("data fetch cifar10")
    assert (status, out, mirror.requests) == (1, "", []) and f"{mine} (300,000 bytes) cannot be read" in err
    assert "Delete it and fetch it again" in err and mine.read_bytes() == damaged
    mine.unlink()
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / NAME).write_bytes(damaged)  # a wrong file in our own cache is replaced
    status, out, err = tinyres_command("data fetch cifar10 --json")
    assert status == 0 and last_line(out)["fetched"] and "is there, but wrong: the archive (300,000 bytes)" in err


def test_fetch_that_fails_lists_the_mirrors(tinyres_command, mirror, monkeypatch):
    monkeypatch.setitem(FORMATS, "cifar10", replace(SMALL, url=mirror.address("/official.tar.gz")))
    status, out, err = tinyres_command(f"data fetch cifar10 --mirror {mirror.address('/mine/')} --quiet --json")
    lines = err.splitlines()
    assert (status, out) == (1, "") and lines[0] == f"tinyres: cifar10: no mirror gave {NAME}."
    assert lines[1] == f"  {mirror.address('/mine/' + NAME)}: answered 404 Not Found"
    assert lines[2] == f"  {mirror.address('/official.tar.gz')}: answered 404 Not Found" and "by hand" in lines[3]


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_counts_and_measures(tinyres_command):
    own_data()
    status, out, err = tinyres_command("data check own.npz --json")
    found = last_line(out)
    train = data.own("own.npz", "train")
    assert (status, err, len(out.splitlines())) == (0, "", 1)
    assert (found["classes"], found["checked"]) == (["few", "many"], "sizes and labels")
    assert np.sum(list(found["counts"].values()), axis=0).tolist() == [6, 18]
    assert sum(found["counts"]["test"]) == found["test"] == 4
    pixels = train.images / 255
    np.testing.assert_allclose([found["mean"], found["std"]], [[pixels.mean()], [pixels.std()]], rtol=1e-12)
    assert (found["lowest"], found["highest"], found["scale"], found["dtype"]) == (0, 129, 255, "uint8")
    status, out, err = tinyres_command("data check own.npz")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["class", "train", "test"] and lines[3] == ["all", "20", "4"] and err == ""
    assert "5x6 grey, uint8 from 0 to 129" in out and out.endswith("own.npz is right (sizes and labels): own.npz\n")
    assert "digits is right" in tinyres_command("data check digits")[1]


@pytest.mark.parametrize("form", [NAME, "cifar-10-batches-bin", "mine.tar"])
def test_check_finds_cifar_by_its_path(tinyres_command, form):
    path = Path(form)
    if path.suffix:
        path.write_bytes(packed({name: CONTENTS[name] for name in reversed(CONTENTS)}))
    else:
        path.mkdir()
        for name, content in CONTENTS.items():
            (path / name).write_bytes(content)
    found = last_line(tinyres_command(f"data check ./{form} --json")[1])
    assert (found["name"], found["checked"]) == ("cifar10", "SHA-1 of each file")
    assert found["counts"] == {"train": [RECORDS // 2] * 10, "test": [RECORDS // 10] * 10}
    if path.suffix:
        path.write_bytes(path.read_bytes()[:-200_000])
    else:
        content = bytearray(CONTENTS["data_batch_5.bin"])
        content[5_000] ^= 1
        (path / "data_batch_5.bin").write_bytes(content)
    cifar._train_and_test.cache_clear()
    status, out, err = tinyres_command(f"data check {form} --json")
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert ("cannot be read as a tar" if path.suffix else "data_batch_5.bin in ") in err


def test_check_takes_an_archive_with_100_in_its_name_for_cifar100(tinyres_command):
    Path("cifar-100-binary.tar.gz").write_bytes(ARCHIVE)
    status, _, err = tinyres_command("data check cifar-100-binary.tar.gz")
    assert status == 1 and "cifar100: " in err and "lacks test.bin, train.bin" in err


# --- show and the pictures --------------------------------------------------------------------------------------------


def read_png(path):
    """(H, W, 3) from 0 to 1."""
    from matplotlib.image import imread

    return imread(path)[:, :, :3]


def test_show_draws_the_images_it_names(tinyres_command):
    status, out, err = tinyres_command("data show digits --count 20 --seed 3 --out a.png --json")
    found = last_line(out)
    assert (status, err, found["path"]) == (0, "", "a.png")
    assert found["classes"] == [str(k) for k in range(10) for _ in range(2)]
    assert found["classes"] == [str(label) for label in data.digits().labels[found["index"]]]
    again = last_line(tinyres_command("data show digits --count 20 --seed 3 --out b.png --json")[1])
    assert again["index"] == found["index"] and Path("a.png").read_bytes() == Path("b.png").read_bytes()
    other = last_line(tinyres_command("data show digits --count 20 --seed 4 --out b.png --json")[1])
    assert other["index"] != found["index"] and Path("a.png").read_bytes() != Path("b.png").read_bytes()
    status, out, err = tinyres_command("data show digits --split test --augment --out c.png")
    assert (status, out) == (0, "c.png: digits, test: 10 of 360 images\n")
    height, width = read_png("c.png").shape[:2]
    assert height > width  # ten rows of eight
    own_data()
    assert tinyres_command("data show own.npz --augment")[0] == 0 and Path("grid.png").is_file()


def test_pictures_show_the_right_pixels(tmp_path):
    colors = np.array([[255, 0, 0], [0, 0, 255], [0, 255, 0]], np.uint8)
    images = np.broadcast_to(colors[:, :, None, None], (3, 3, 8, 8)).copy()
    images[2, :, :4] = 0  # the upper half of the third is black
    dataset = data.Dataset(images, [0, 1, 0], ["red", "blue"], name="colours")
    grid.draw_grid(dataset, [1, 2, 0], tmp_path / "x.png", columns=2)
    picture = read_png(tmp_path / "x.png")

    def centre(color):
        rows, columns = np.nonzero((np.abs(picture - np.array(color)) < 0.02).all(axis=2))
        assert len(rows) > 1000
        return rows.mean() / len(picture), columns.mean() / picture.shape[1]

    blue, green, red = centre([0, 0, 1]), centre([0, 1, 0]), centre([1, 0, 0])
    assert blue[0] < 0.5 < red[0] and blue[1] < 0.5 < green[1] and red[1] < 0.5
    assert green[0] > blue[0] + 0.05  # its lower half
    grey = data.Dataset(np.full((1, 1, 4, 4), 3, np.uint8), [0], ["a"], [0.0], [1.0], scale=6.0)
    grid.draw_grid(grey, [0], tmp_path / "y.png")
    assert (np.abs(read_png(tmp_path / "y.png") - 0.5) < 0.02).mean() > 0.3  # half of fully bright


def test_spread_takes_as_many_of_each_class_as_can_be():
    labels = np.repeat([0, 1, 2], [50, 3, 50])[np.random.default_rng(0).permutation(103)]
    for count, expected in ((3, [1, 1, 1]), (9, [3, 3, 3]), (13, [5, 3, 5]), (103, [50, 3, 50]), (999, [50, 3, 50])):
        chosen = grid.spread(labels, count, seed=5)
        assert np.bincount(labels[chosen]).tolist() == expected
        assert len(set(chosen.tolist())) == len(chosen) and (np.diff(labels[chosen]) >= 0).all()
    first, again, other = (grid.spread(labels, 9, seed).tolist() for seed in (5, 5, 6))
    assert first == again != other and len(grid.spread(labels, 1, 5)) == 1


def test_augmented_pictures_are_what_the_loader_yields():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    dataset = data.Dataset(images, np.arange(40) % 4, "abcd", [0.0] * 3, [1.0] * 3, scale=1.0)
    transforms = (RandomCrop(2), RandomFlip())
    index = np.array([31, 7, 8])
    versions = grid.augmented(dataset, index, transforms, seed=6, epochs=3)
    np.testing.assert_array_equal(versions[:, 0], images[index])
    for epoch in range(3):
        seen = next(data.Loader(dataset, 40, seed=6, augment=transforms).epoch(epoch))[0]
        np.testing.assert_array_equal(versions[:, 1 + epoch], seen[index])
    assert (versions[:, 1:] != versions[:, :1]).any()


@pytest.mark.parametrize("call, message", [
    (lambda d, p: grid.draw_grid(d, [], p), "index"),
    (lambda d, p: grid.draw_grid(d, [40], p), "index 40 is out of range"),
    (lambda d, p: grid.draw_grid(d, [0], p, columns=0), "columns is 0, expected at least 1"),
    (lambda d, p: grid.draw_augmented(d, [0], (), p, epochs=0), "epochs is 0, expected at least 1"),
])
def test_wrong_arguments_draw_nothing(tmp_path, call, message):
    dataset = data.Dataset(np.arange(40 * 16, dtype=np.float32).reshape(40, 1, 4, 4), np.zeros(40, int), ["a"])
    with pytest.raises((ValueError, TypeError), match=message):
        call(dataset, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
