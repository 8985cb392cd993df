"""`tinyres data`: which data sets there are, where they are, whether they are right, and what they look like."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyres.cli import setup, table

if TYPE_CHECKING:
    from tinyres.data import Dataset

FETCHED = {"cifar10": "170 MB", "cifar100": "169 MB", "fashion": "31 MB"}
MOST_PICTURES = 400
ARCHIVES = (".tar", ".tar.gz", ".tgz")

Where = Annotated[str, typer.Argument(metavar="NAME|PATH", help="digits, cifar10, cifar100, fashion; or a folder or "
                                      "file of your own, or an archive of CIFAR.")]
Mirror = Annotated[list[str] | None, typer.Option(help="An address to try first, of the file or of a folder that holds "
                                                  "it. May be repeated; $TINYRES_MIRROR gives one for always.")]
Folder = Annotated[Path | None, typer.Option(help="Put it here. Default: the cache folder, $TINYRES_CACHE or the "
                                             "system's usual one, where every command finds it.")]
Augment = Annotated[bool, typer.Option("--augment", help="A row an image: as it is, and as seven epochs of training "
                                       "see it.")]

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def data(context: typer.Context) -> None:
    """List, fetch, check and show data sets."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("list")
def list_sets(
    paths: Annotated[list[str] | None, typer.Argument(metavar="[PATH ...]", help="Data of your own, listed too.",
                                                      show_default=False)] = None,
    json: setup.Json = False,
) -> None:
    """List the data sets, and where they are or how to get them.

    Data of your own is a folder with images.npy and labels.npy, an .npz file, or a folder of images with a folder for
    each class; it is given by its path wherever a command takes --data.
    """
    from tinyres.data.cache import cache_folder

    sets = [_known(name) for name in ("digits", *FETCHED)] + [_own(path) for path in paths or []]
    if json:
        return setup.report({"sets": sets, "cache": str(cache_folder())}, "", True)
    columns = [("name", "left"), ("train", "right"), ("test", "right"), ("classes", "right"), ("image", "left"),
               ("where", "left")]
    rows = [[one["name"], f"{one['train']:,}", f"{one['test']:,}", str(one["classes"]), _shape(one["shape"]),
             one["where"] or f"not here; get its {FETCHED[one['name']]} with: {one['fetch']}"] for one in sets]
    table.show(columns, rows)
    if not paths:
        setup.say("Your own: a folder or .npz file, see tinyres data list --help")


@app.command("fetch")
def fetch_set(
    name: Annotated[str, typer.Argument(metavar="NAME", help="cifar10, cifar100 or fashion.")],
    mirror: Mirror = None,
    folder: Folder = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch it even if it is there and right.")] = False,
    json: setup.Json = False,
    quiet: setup.Quiet = False,
) -> None:
    """Fetch a data set from its mirrors, and check it.

    What is there and right is not fetched again; an interrupted download goes on where it was. A file counts by its
    content: it gets its name only when its published checksum is right. HTTPS_PROXY and HTTP_PROXY are heeded.
    """
    from tinyres.data import download

    with setup.option("NAME"):
        files = download.remotes(name)[0]
    with setup.option("--mirror"):
        for address in mirror or []:
            download.address(address, files[0].name)
    elsewhere = _found(name) if folder is None and not force else None
    if elsewhere is not None and not _is_cached(elsewhere):
        _load(name, "test", elsewhere, None)
        done = download.Fetched(name, elsewhere, checked=["content"])
    else:
        done = download.fetch(name, folder, mirror or (), force, show=not quiet)
    rate = done.received / done.seconds if done.received else 0.0
    result = {"name": name, "path": str(done.path), "fetched": bool(done.urls), "urls": done.urls,
              "checked": done.checked, "received": done.received, "seconds": round(done.seconds, 2),
              "bytes_per_second": round(rate)}
    came = f"{done.received / 1e6:.1f} MB came in {done.seconds:.1f} s, {rate / 1e6:.2f} MB/s"
    right = ", ".join(dict.fromkeys(done.checked))
    text = f"{name}: {done.path} ({came if done.urls else 'was there already'}; right by its {right})"
    setup.report(result, text, json)


@app.command("check")
def check_set(
    where: Where,
    data_dir: setup.DataDir = None,
    image_size: setup.ImageSize = None,
    json: setup.Json = False,
) -> None:
    """Read a data set and check it: files, sizes, checksums, labels. Print its classes and statistics.

    It passes if this command does not fail: then the exit status is 0.
    """
    import numpy as np

    name, path = _locate(where, data_dir)
    train, test = (_load(name, split, path, image_size) for split in ("train", "test"))
    counts = {split: np.bincount(one.labels, minlength=len(one.classes)).tolist() for split, one in
              (("train", train), ("test", test))}
    lowest, highest = min(train.images.min(), test.images.min()), max(train.images.max(), test.images.max())
    checks = _checks(name, path)
    result = {"name": name, "path": None if path is None else str(path), "passed": True, "checked": checks,
              "train": len(train), "test": len(test), "shape": list(train.images.shape[1:]),
              "dtype": str(train.images.dtype), "scale": train.scale, "lowest": float(lowest),
              "highest": float(highest), "classes": list(train.classes), "counts": counts,
              "mean": train.mean.tolist(), "std": train.std.tolist()}
    if not json:
        columns = (*train.classes, "all"), [*counts["train"], len(train)], [*counts["test"], len(test)]
        rows = [[label, f"{first:,}", f"{second:,}"] for label, first, second in zip(*columns, strict=True)]
        table.show([("class", "left"), ("train", "right"), ("test", "right")], rows)
        print(f"{_shape(result['shape'])}, {train.images.dtype} from {lowest:g} to {highest:g}, fully bright at "
              f"{train.scale:g}")
        print(f"training images, from 0 to 1: mean {_numbers(train.mean)}, std {_numbers(train.std)}")
    setup.report(result, f"{name} is right ({checks}){'' if path is None else f': {path}'}", json)


@app.command("show")
def show_set(
    where: Where,
    split: Annotated[str, typer.Option(help="train, test, fit or validation.")] = "train",
    out: Annotated[Path, typer.Option(help="The picture, a .png.")] = Path("grid.png"),
    count: Annotated[int | None, setup.whole("How many images, as many of each class as can be. Default: 60, or 10 "
                                             "with --augment.", most=MOST_PICTURES)] = None,
    seed: Annotated[int, setup.whole("Chooses the images, and fixes the augmentation.", 0)] = 0,
    augment: Augment = False,
    data_dir: setup.DataDir = None,
    image_size: setup.ImageSize = None,
    json: setup.Json = False,
) -> None:
    """Draw images of a data set, with the names of their classes, into a .png."""
    from tinyres.analysis import grid
    from tinyres.data import SPLITS, digits
    from tinyres.data.augment import standard

    if split not in SPLITS:
        with setup.option("--split"):
            digits(split)
    if out.suffix.lower() != ".png":
        raise typer.BadParameter(f"{out} does not end in .png, the only kind of picture drawn.", param_hint="--out")
    name, path = _locate(where, data_dir)
    dataset = _load(name, split, path, image_size)
    index = grid.spread(dataset.labels, count or (10 if augment else 60), seed)
    title = f"{name}, {split}: {len(index)} of {len(dataset):,} images"
    if augment:
        grid.draw_augmented(dataset, index, standard(dataset), out, seed, title=title)
    else:
        grid.draw_grid(dataset, index, out, title)
    result = {"path": str(out), "name": name, "split": split, "index": index.tolist(),
              "classes": [dataset.classes[label] for label in dataset.labels[index]]}
    setup.report(result, f"{out}: {title}", json)


# --- where data sets are ----------------------------------------------------------------------------------------------


def _known(name: str) -> dict[str, Any]:
    """What `list` says of a data set by name; nothing large is read."""
    from tinyres import data
    from tinyres.data.cifar_formats import FORMATS
    from tinyres.data.fashion import CLASSES, FILES

    if name == "digits":
        found = _sizes(name, data.digits("train"), data.digits("test"))
        return {**found, "where": "embedded", "fetch": None}
    if name == "fashion":
        sizes = [FILES[f"{split}_images"].shape[0] for split in ("train", "test")]
        classes, shape = len(CLASSES), [1, 28, 28]
    else:
        wanted = FORMATS[name]
        sizes = [sum(file.records for file in files) for files in (wanted.train, wanted.test)]
        classes, shape = len(list(wanted.labels.values())[-1]), [3, 32, 32]
    place = _found(name)
    return {"name": name, "train": sizes[0], "test": sizes[1], "classes": classes, "shape": shape,
            "where": None if place is None else str(place), "fetch": f"tinyres data fetch {name}"}


def _own(path: str) -> dict[str, Any]:
    """What `list` says of data of one's own."""
    from tinyres import data

    return {**_sizes(path, data.own(path, "train"), data.own(path, "test")), "where": str(Path(path).absolute()),
            "fetch": None}


def _sizes(name: str, train: Dataset, test: Dataset) -> dict[str, Any]:
    return {"name": name, "train": len(train), "test": len(test), "classes": len(train.classes),
            "shape": list(train.images.shape[1:])}


def _find(name: str, data_dir: Path | None) -> Path:
    """Where a data set that is not embedded is. Raises FileNotFoundError."""
    from tinyres.data import cifar
    from tinyres.data.cifar_formats import FORMATS
    from tinyres.data.fashion import find as find_fashion

    return find_fashion(data_dir) if name == "fashion" else cifar.find(FORMATS[name], data_dir)


def _found(name: str) -> Path | None:
    """Where a data set is that was not said where, or None."""
    try:
        return _find(name, None)
    except FileNotFoundError:
        return None


def _is_cached(path: Path) -> bool:
    from tinyres.data.cache import cache_folder

    return cache_folder().resolve() in path.resolve().parents


def _locate(where: str, data_dir: Path | None) -> tuple[str, Path | None]:
    """The name of a data set, or of one's own its path; and where it is, None if it is embedded.

    A path of CIFAR's archive, or of a folder with its files, means CIFAR.
    """
    from tinyres import data
    from tinyres.data.cifar_formats import FORMATS

    if where in data.NAMES:
        return where, None if where == "digits" else _find(where, data_dir)
    if not data.is_path(where):
        with setup.option("NAME|PATH"):
            data.load(where)
    if data_dir is not None:
        raise typer.BadParameter(f"{where} is a path itself; leave --data-dir out.", param_hint="--data-dir")
    path = Path(where).expanduser()
    if path.is_file() and path.name.endswith(ARCHIVES):
        return "cifar100" if "100" in path.name else "cifar10", path
    for name in FORMATS if path.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            return name, _find(name, path)
    return where, path


def _load(name: str, split: str, path: Path | None, size: int | None) -> Dataset:
    """A split of what `_locate` found, its checksums checked."""
    from tinyres import data

    with setup.option("--image-size"):
        if size is not None and name in data.NAMES:
            raise ValueError(f"it is for a folder of images, not for {name}")
    return data.load(name, split, path, size) if name in data.NAMES else data.own(name, split, size)


def _checks(name: str, path: Path | None) -> str:
    """By what a data set that was loaded without an error is known to be right."""
    from tinyres.data.cifar_formats import FORMATS

    if name == "fashion":
        return "SHA-256 of the content of each file"
    if name not in FORMATS or path is None:
        return "sizes and labels"
    import pooch

    official = path.is_file() and pooch.file_hash(str(path), alg="md5") == FORMATS[name].md5
    return "SHA-1 of each file" + (", MD5 of the official archive" if official else "")


# --- words ------------------------------------------------------------------------------------------------------------


def _shape(shape: list[int]) -> str:
    """"32x32 RGB", "8x8 grey"."""
    channels, height, width = shape
    return f"{width}x{height} " + {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")


def _numbers(values: Any) -> str:
    return " ".join(f"{value:.4f}" for value in values)
