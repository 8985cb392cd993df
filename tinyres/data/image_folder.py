"""A folder of images, one sub-folder a class: CLASS/*.png, or train/CLASS/*.png and test/CLASS/*.png.

Pillow decodes them. A file is only trusted to be an image: the formats are few, a picture that unpacks to far more
pixels than a photograph has is refused, and no link may lead out of the folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyres.data.bounds import SizeError, check_shrinkage
from tinyres.data.dataset import nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")  # as Pillow calls them; what a file is says its content
TURNED = ("JPEG", "MPO", "WEBP")  # formats of cameras, which say how they were held
GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
LEFT_BY_SYSTEMS = ("Thumbs.db", "desktop.ini", "__MACOSX")
LAYOUT = "expected CLASS/image.png, or train/CLASS/image.png and test/CLASS/image.png"
EIGHT_BITS = "Convert it to 8 bits a channel, or remove it"

File = tuple[Path, int]
Arrays = tuple[np.ndarray, np.ndarray]


class ImageError(ValueError):
    """A folder or file of images that cannot be read."""


@dataclass(frozen=True)
class Listing:
    """What a folder holds: its classes, and per split the files with their labels; "test" may be missing."""

    root: Path
    classes: tuple[str, ...]
    splits: tuple[tuple[str, tuple[File, ...]], ...]

    @property
    def paths(self) -> list[Path]:
        return [path for _, files in self.splits for path, _ in files]


def listing(root: Path) -> Listing:
    """The images in a folder, classes and files sorted by name; hidden files are skipped.

    Raises ImageError, naming the entry, for an image outside a class, a class that is empty or not trained on, what is
    no image by its name, a folder in a class, and a link that leads out of the folder.
    """
    entries = _entries(root, root)
    top = {entry.name: Path(entry) for entry in entries if entry.is_dir()}
    loose = [entry.name for entry in entries if not entry.is_dir() and _is_image(entry.name)]
    if loose:
        raise ImageError(f"{root} holds {loose[0]}, which is in no class, {LAYOUT}")
    if not top:
        raise ImageError(f"{root} holds no data: {LAYOUT}; or images.npy and labels.npy; or pass an .npz file")
    divided = {name: path for name, path in top.items() if name in ("train", "test")}
    if not divided:
        return Listing(root, tuple(top), (("train", _files(root, top, list(top))),))
    if "train" not in divided or len(top) > len(divided):
        odd = next((name for name in top if name not in divided), "no train")
        raise ImageError(f"{root} holds {next(iter(divided))} beside {odd}, expected train and test, or else a folder "
                         f"a class: rename or move one of them")
    classes = {path.name: path for path in _folders(root, top["train"])}
    splits = [("train", _files(root, classes, list(classes)))]
    if "test" in divided:
        tested = {path.name: path for path in _folders(root, top["test"])}
        splits.append(("test", _files(root, tested, list(classes))))
    return Listing(root, tuple(classes), tuple(splits))


def read(found: Listing, size: int | None = None) -> dict[str, Arrays]:
    """{"train": (images, labels), and "test": ... if there is one}; images (N, C, H, W) uint8, channels-last.

    C is 1 if all images are grey, else 3. size: the shorter side is scaled to it, by area, and the middle square kept;
    without it all images must be of one size. Transparent parts become black; photographs are turned upright.

    Raises ImageError, naming the file, for what is damaged, animated, of more than 8 bits a channel, or larger than
    Pillow's MAX_IMAGE_PIXELS; for several sizes, saying which. Raises SizeError for more pixels than such files hold.
    """
    known = [_inspect(path) for path in found.paths]
    channels = 1 if all(grey for _, grey in known) else 3
    sizes = Counter(shape for shape, _ in known)
    if size is None and len(sizes) > 1:
        seen = ", ".join(f"{w}x{h} ({count:,})" for (w, h), count in sizes.most_common(4))
        raise ImageError(f"{found.root} holds images of {len(sizes)} sizes: {seen}{', ...' * (len(sizes) > 4)}; "
                         "expected one, or a size to scale all to: pass size=32 (on the command line --image-size 32)")
    w, h = (size, size) if size is not None else next(iter(sizes))
    packed = sum(path.stat().st_size for path in found.paths)
    check_shrinkage(str(found.root), len(known) * h * w * channels, packed, "Pass a smaller size")
    sets = {}
    for split, files in found.splits:
        images = np.empty((len(files), h, w, channels), np.uint8)
        for image, (path, _) in zip(images, files, strict=True):
            with _opened(path) as opened:
                image[...] = _pixels(opened, channels, (w, h))
        sets[split] = images.transpose(0, 3, 1, 2), np.array([label for _, label in files])
    return sets


# --- listing ----------------------------------------------------------------------------------------------------------


def _entries(root: Path, folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden, by name; each is inside `root`."""
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    kept = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in LEFT_BY_SYSTEMS]
    for entry in kept:
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if not Path(target).is_relative_to(os.path.realpath(root)) or not os.path.exists(target):
                raise ImageError(f"{entry.path} is a link to {target}, expected links to what is inside {root} only: "
                                 "copy what it leads to, or remove it")
    return kept


def _folders(root: Path, folder: Path) -> list[Path]:
    """The class folders in train or test; other files there are refused."""
    entries = _entries(root, folder)
    loose = [entry.path for entry in entries if not entry.is_dir()]
    if loose or not entries:
        raise ImageError(f"{loose[0] + ' is in no class' if loose else f'{folder} is empty'}, {LAYOUT}")
    return [Path(entry) for entry in entries]


def _files(root: Path, folders: dict[str, Path], classes: Sequence[str]) -> tuple[File, ...]:
    """The images of class folders, with the number of the class in `classes` as label."""
    files: list[File] = []
    for name, folder in folders.items():
        if name not in classes:
            raise ImageError(f"{folder} is of no class in train.{nearest(name, classes)} There are "
                             f"{', '.join(classes[:10])}: rename or remove it")
        entries = _entries(root, folder)
        for entry in entries:
            if not _is_image(entry.name) or not entry.is_file():
                what = "a folder" if entry.is_dir() else "no image by its name" if entry.is_file() else "no plain file"
                raise ImageError(f"{entry.path} is {what}, expected images ({' '.join(SUFFIXES)}) in a class: move or "
                                 "remove it")
            files.append((Path(entry), classes.index(name)))
        if not entries:
            raise ImageError(f"{folder} holds no image, expected some in every class: fill or remove it")
    return tuple(files)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


# --- decoding ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An image opened by Pillow; whatever goes wrong while it is open becomes an ImageError that names the file."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(f"reading {path} needs Pillow: pip install pillow") from error
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            # From memory, as Pillow believes a chunk's length, and a file is read into as much room as is asked for.
            with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
                yield image
        except (ImageError, SizeError, MemoryError):
            raise
        except Exception as error:  # damaged files make decoders fail in every way
            what = "it is of no known format" if isinstance(error, UnidentifiedImageError) else error
            raise ImageError(f"{path} cannot be read as an image ({type(error).__name__}: {what}), expected an "
                             f"undamaged {', '.join(FORMATS)}: replace or remove it") from error


def _inspect(path: Path) -> tuple[tuple[int, int], bool]:
    """Width and height of an image as it will be decoded, and whether it is grey; its pixels are not decoded yet."""
    with _opened(path) as image:
        if image.mode not in GREY + COLOUR:
            raise ImageError(f"{path} has pixels of mode {image.mode}, expected 8-bit grey or colour. {EIGHT_BITS}")
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a camera's preview is no animation
            raise ImageError(f"{path} is animated ({image.n_frames} frames), expected one picture: save one frame")
        w, h = image.size
        check_shrinkage(str(path), w * h * len(image.getbands()), path.stat().st_size, "Replace or remove it")
        sideways = image.format in TURNED and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return ((h, w) if sideways else (w, h)), image.mode in GREY


def _pixels(image: Any, channels: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) uint8 of an opened image, scaled and cropped to size (W, H) if it is not of that size."""
    from PIL import Image, ImageOps

    if image.format in TURNED:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != size:
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(size[1], size[0], channels)
