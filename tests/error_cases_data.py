"""Mistakes with data sets: arrays that are none, batches, augmentation, and data of one's own."""

import struct
import zipfile
from pathlib import Path

import numpy as np
from error_case import chapter, environment, floats, images, without

from tinyres import data
from tinyres.data.arrays import ArraysError
from tinyres.data.bounds import SizeError
from tinyres.data.image_folder import ImageError

case = chapter("Data sets")

PIXELS = np.arange(4 * 64, dtype=np.uint8).reshape(4, 1, 8, 8)
LABELS = np.array([0, 1, 0, 1])
NAMES = ["cat", "dog"]


@case("A data set that is not there", ValueError, "data set", "'cifar'", fix="Did you mean 'cifar10'?")
def _(folder):
    return lambda: data.load("cifar"),


@case("A split that is not there", ValueError, "digits", "'tset'", fix="Did you mean 'test'?")
def _(folder):
    return lambda: data.digits("tset"),


@case("Labels that are neither fine nor coarse", ValueError, "cifar100: labels", "'corse'",
      fix="Did you mean 'coarse'?")
def _(folder):
    return lambda: data.cifar100(labels="corse"),


@case("Grey images without a channel axis", ValueError, "dataset: images", "(4, 8, 8)", "(N, C, H, W)",
      fix="images[:, None]")
def _(folder):
    x = PIXELS[:, 0]
    return lambda: data.Dataset(x, LABELS, NAMES), x, LABELS


@case("Images of whole numbers", TypeError, "dataset: images", "int64", "uint8 or floating", fix="images.astype(")
def _(folder):
    x = PIXELS.astype("int64")
    return lambda: data.Dataset(x, LABELS, NAMES), x, LABELS


@case("Images that hold NaN", ValueError, "dataset: the images", "NaN or Inf", "finite numbers", fix="clean them first")
def _(folder):
    x = floats(4, 1, 8, 8)
    x[0, 0, 0, 0] = np.nan
    return lambda: data.Dataset(x, LABELS, NAMES), x, LABELS


@case("An empty data set", ValueError, "dataset: images", "(0, 1, 8, 8)", fix="empty")
def _(folder):
    x = PIXELS[:0]
    return lambda: data.Dataset(x, LABELS[:0], NAMES), x


@case("More labels than images", ValueError, "dataset", "4 images", "6 labels", fix="one label an image")
def _(folder):
    labels = np.zeros(6, int)
    return lambda: data.Dataset(PIXELS, labels, NAMES), PIXELS, labels


@case("A label without a class", ValueError, "dataset: label 2", "0 to 1", "2 classes", fix="expected 0 to 1")
def _(folder):
    labels = np.array([0, 1, 2, 1])
    return lambda: data.Dataset(PIXELS, labels, NAMES), PIXELS, labels


@case("A channel that never changes", ValueError, "dataset: std", "[0.0]", "positive numbers", fix="give mean and std")
def _(folder):
    x = np.ones((4, 1, 8, 8), np.uint8)
    return lambda: data.Dataset(x, LABELS, NAMES), x


@case("Statistics of another number of channels", ValueError, "dataset: mean", "[0.5]", "3 finite numbers",
      fix="one a channel")
def _(folder):
    x = np.repeat(PIXELS, 3, 1)
    return lambda: data.Dataset(x, LABELS, NAMES, [0.5], [0.5]), x


@case("A sample that is not there", ValueError, "pets: index 8", "out of range", fix="expected 0 to 7")
def _(folder):
    pets = images(8)
    return lambda: pets.take([0, 8]), pets


@case("A part of a data set without an image", ValueError, "pets.subset", "index is empty", fix="one image at least")
def _(folder):
    pets = images(8)
    return lambda: pets.subset(np.array([], int)), pets


@case("A batch larger than the data", ValueError, "pets.batch: size", "is 9", fix="expected 1 to 8")
def _(folder):
    pets = images(8)
    return lambda: pets.batch(9), pets


@case("Batches of no images", ValueError, "Loader: batch_size", "is 0", fix="at least 1")
def _(folder):
    pets = images(8)
    return lambda: data.Loader(pets, 0), pets


@case("The last batch dropped where it is the only one", ValueError, "Loader: batch_size 9", "8 images",
      fix="smaller batch_size")
def _(folder):
    pets = images(8)
    return lambda: data.Loader(pets, 9, drop_last=True), pets


@case("A loop over a loader without saying which epoch", TypeError, "Loader", "which epoch", fix="loader.epoch(e)")
def _(folder):
    pets = images(8)
    return lambda: list(data.Loader(pets, 4)), pets


@case("A first batch beyond the epoch", ValueError, "Loader.epoch: start_batch", "is 3", fix="expected 0 to 2")
def _(folder):
    pets = images(8)
    return lambda: data.Loader(pets, 4).epoch(0, start_batch=3), pets


@case("A negative share of mixup", ValueError, "Loader: mixup", "is -0.2", "from 0", fix="0.2 and 1 are usual")
def _(folder):
    pets = images(8)
    return lambda: data.Loader(pets, 4, mixup=-0.2), pets


@case("The usual augmentation of unknown data", ValueError, "augment.standard", "'cifar'",
      fix="Did you mean 'cifar10'?")
def _(folder):
    return lambda: data.augment.standard("cifar"),


@case("A crop without padding", ValueError, "RandomCrop: padding", "is 0", fix="at least 1 pixel")
def _(folder):
    return lambda: data.augment.RandomCrop(0),


@case("CIFAR-10 that is nowhere", FileNotFoundError, "cifar10", "not found", fix="tinyres data fetch cifar10")
def _(folder):
    empty = folder.with_name(f"{folder.name}-cache")

    def wrong():
        with environment(TINYRES_CACHE=str(empty), TINYRES_DATA=""):
            data.cifar10("train", folder)

    return wrong,


case = chapter("Data of your own")


def save(folder: Path, **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def draw(path: Path, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    Image.new(mode, size, 7).save(path)


@case("A path where nothing is", FileNotFoundError, "own data", "nothing at", "a folder", fix="check the path")
def _(folder):
    return lambda: data.load(folder / "pets"),


@case("A folder that holds no data", ImageError, "holds no data", "CLASS/image.png", fix="images.npy and labels.npy")
def _(folder):
    return lambda: data.load(folder),


@case("Images without labels", ArraysError, "images without labels", "expected both", fix="Save labels too")
def _(folder):
    save(folder, images=PIXELS)
    return lambda: data.load(folder),


@case("Images of which no side can be the channels", ArraysError, "images", "(4, 8, 8, 7)", "1 or 3 channels",
      fix="second or last place")
def _(folder):
    save(folder, images=np.zeros((4, 8, 8, 7), np.uint8), labels=LABELS)
    return lambda: data.load(folder),


@case("Labels that are floats, in a file", TypeError, "labels", "float32 of shape (4,)", "integers of shape (N,)",
      fix="such as ")
def _(folder):
    save(folder, images=PIXELS, labels=LABELS.astype("float32"))
    return lambda: data.load(folder),


@case("Labels that skip a class", ValueError, "the labels are 0, 2", "expected 0, 1, 2", fix="classes.txt")
def _(folder):
    save(folder, images=PIXELS, labels=LABELS * 2)
    return lambda: data.load(folder),


@case("Only one class", ValueError, "1 class", "at least 2", fix="to tell apart")
def _(folder):
    save(folder, images=PIXELS, labels=LABELS * 0)
    return lambda: data.load(folder),


@case("An array file that is cut off", ArraysError, "images.npy", "156 bytes of values", "expected 256",
      fix="truncated")
def _(folder):
    save(folder, images=PIXELS, labels=LABELS)
    path = folder / "images.npy"
    path.write_bytes(path.read_bytes()[:-100])
    return lambda: data.load(folder),


@case("An array file that holds Python objects", ArraysError, "labels.npy", "Python objects, which are never loaded",
      "expected numbers", fix="numpy.save")
def _(folder):
    save(folder, images=PIXELS)
    np.save(folder / "labels.npy", np.array([0, None], object), allow_pickle=True)
    return lambda: data.load(folder),


@case("An archive that unpacks to far more than it is", SizeError, "images", "packed bytes claim to hold 100,000,000",
      "expected at most 67,108,864", fix="store it unpacked", varies=r"[\d,]+(?= packed bytes)")
def _(folder):
    with zipfile.ZipFile("pets.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(1_000))
        archive.writestr("labels.npy", bytes(1_000))
        for member in archive.infolist():
            member.file_size = 100_000_000
    return lambda: data.load(folder / "pets.npz"),


@case("An image outside of any class", ImageError, "a.png", "in no class", fix="expected CLASS/image.png")
def _(folder):
    draw(folder / "a.png")
    return lambda: data.load(folder),


@case("Images of several sizes", ImageError, "2 sizes", "8x8 (1), 9x8 (1)", "expected one", fix="size=32")
def _(folder):
    draw(folder / "cat" / "a.png")
    draw(folder / "dog" / "b.png", (9, 8))
    return lambda: data.load(folder),


@case("An image file that is damaged", ImageError, "a.png", "cannot be read as an image", "undamaged",
      fix="replace or remove it", varies=r"\([A-Za-z]+: .*?\)(?=, expected)")
def _(folder):
    draw(folder / "cat" / "a.png")
    draw(folder / "dog" / "b.png")
    path = folder / "cat" / "a.png"
    path.write_bytes(path.read_bytes()[:30])
    return lambda: data.load(folder),


@case("An image of 16 bits", ImageError, "a.png", "mode I;16", "8-bit grey or colour", fix="Convert it")
def _(folder):
    draw(folder / "cat" / "a.png", mode="I;16")
    draw(folder / "dog" / "b.png")
    return lambda: data.load(folder),


@case("A link out of the folder", ImageError, "is a link to", "links to what is inside", fix="copy")
def _(folder):
    draw(folder / "cat" / "a.png")
    (folder / "dog").symlink_to("/")
    return lambda: data.load(folder),


@case("Images without Pillow", ImportError, "a.png needs Pillow", fix="pip install pillow")
def _(folder):
    draw(folder / "cat" / "a.png")
    draw(folder / "dog" / "b.png")

    def wrong():
        with without("PIL"):
            data.load(folder)

    return wrong,


@case("A file of another kind under an idx name", ValueError, "idx file", "begins with 3c21444f", "expected 00000803",
      fix="magic number")
def _(folder):
    for name, content in (("train-images-idx3-ubyte", b"<!DOCTYPE html>"), ("train-labels-idx1-ubyte", b"")):
        (folder / name).write_bytes(content)
    return lambda: data.load(folder),


@case("An idx file that is cut off", ValueError, "idx file", "100 bytes of values", "expected 256", fix="truncated")
def _(folder):
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 4, 8, 8) + bytes(100))
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 4) + bytes(4))
    return lambda: data.load(folder),
