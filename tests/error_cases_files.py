"""Files that are damaged, of another kind, or made to harm: weights, checkpoints, archives; and downloads that fail."""

import io
import os
import tarfile

import numpy as np
from error_case import chapter, environment
from torch_files import Call, Global, legacy_file, storage, tensor, zip_file

from tinyres import data, models, nn, optim, weights
from tinyres.checkpoint import load_checkpoint, save_checkpoint
from tinyres.data import download
from tinyres.data.cifar import DamagedError
from tinyres.files import WeightsError

case = chapter("Files of weights")


def linear(path="w.safetensors"):
    model = nn.Linear(2, 2)
    weights.save(model, path)
    return model


@case("A file of weights that is not there", FileNotFoundError, "weights", "no file",
      fix="check the path")
def _(folder):
    model = nn.Linear(2, 2)
    return lambda: weights.load(model, "w.safetensors"), model


@case("A pickle", WeightsError, "weights: model.pt", "a PyTorch pickle", "never read",
      fix="safetensors.torch.save_file")
def _(folder):
    (folder / "model.pt").write_bytes(b"\x80\2}q\0.")
    return lambda: weights.read("model.pt"),


@case("A PyTorch file that would run code", WeightsError, "weights: model.pt", "never executed", "'os.system'",
      fix="safetensors.torch.save_file")
def _(folder):
    (folder / "model.pt").write_bytes(zip_file({"a": Call(Global("os", "system"), ("true",))}, {}))
    return lambda: weights.read("model.pt"),


@case("A PyTorch file with two state dicts", WeightsError, "weights: model.pt", "'ema', 'model'",
      fix="Save one of them alone")
def _(folder):
    one = tensor(storage("0", "f4", 4), (4,))
    (folder / "model.pt").write_bytes(zip_file({"model": {"a": one}, "ema": {"a": one}}, {"0": bytes(16)}))
    return lambda: weights.read("model.pt"),


@case("A PyTorch file that is truncated", WeightsError, "weights: model.pt", "truncated", fix="fetch or save it again")
def _(folder):
    one = tensor(storage("0", "f4", 4), (4,))
    (folder / "model.pt").write_bytes(legacy_file({"a": one}, {"0": (4, bytes(16))})[:-4])
    return lambda: weights.read("model.pt"),


@case("Keras layers of an unknown network", WeightsError, "weights: w.npz", "no network known here",
      fix="keras_names.translate")
def _(folder):
    with open("w.npz", "wb") as file:
        np.savez(file, **{"dense/kernel:0": np.ones((2, 2))})
    return lambda: weights.read("w.npz"),


@case("A page of the web instead of the file", WeightsError, "weights: w.safetensors", "an HTML or XML page",
      fix="expected safetensors, .npz or .pt")
def _(folder):
    (folder / "w.safetensors").write_bytes(b"<!DOCTYPE html><title>404</title>")
    return lambda: weights.read("w.safetensors"),


@case("A pointer of Git LFS", WeightsError, "weights: w.safetensors", "a Git LFS pointer", fix="git lfs pull")
def _(folder):
    (folder / "w.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return lambda: weights.read("w.safetensors"),


@case("An HDF5 file, as Keras writes it", WeightsError, "weights: w.h5", "an HDF5 file",
      fix="expected safetensors, .npz or .pt")
def _(folder):
    (folder / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    return lambda: weights.read("w.h5"),


@case("A safetensors file that is cut off", WeightsError, "weights: w.safetensors", "bytes) cannot be read",
      fix="truncated, damaged or another kind", varies=r"(?<=safetensors: )[^.]*(?=\.)")
def _(folder):
    model = linear()
    (folder / "w.safetensors").write_bytes((folder / "w.safetensors").read_bytes()[:-4])
    return lambda: weights.load(model, "w.safetensors"), model


@case("An .npz file that is damaged", WeightsError, "weights: w.npz", "cannot be read as .npz",
      fix="truncated, damaged",
      varies=r"(?<=\.npz: ).*?(?=\. It is)")
def _(folder):
    np.savez("w.npz", weight=np.ones((50, 50)))
    content = (folder / "w.npz").read_bytes()
    (folder / "w.npz").write_bytes(content[:200] + bytes(200) + content[400:])
    return lambda: weights.read("w.npz"),


@case("An .npz file of Python objects", WeightsError, "weights: w.npz", "Python objects, which are never loaded",
      fix="which are never loaded")
def _(folder):
    np.savez("w.npz", weight=np.array([None], object))
    return lambda: weights.read("w.npz"),


@case("The weights of another network", WeightsError, "w.safetensors holds the weights of models.resnet20(",
      "nothing was loaded", fix="holds the weights of")
def _(folder):
    model = models.resnet8()
    weights.save(models.resnet20(), "w.safetensors")
    return lambda: weights.load(model, "w.safetensors"), model


@case("Weights of another shape", WeightsError, "weight", "(2, 2)", "(3, 2)", fix="nothing was loaded")
def _(folder):
    linear()
    model = nn.Linear(2, 3)
    return lambda: weights.load(model, "w.safetensors"), model


case = chapter("Checkpoints")


def checkpoint(folder):
    """A model and optimizer with a checkpoint, then changed, so that loading it would be seen."""
    model = nn.Linear(2, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    save_checkpoint(folder, model, optimizer, progress={"epoch": 1})
    nn.init.ones_(model.weight)
    return model, optimizer


@case("A file to be written into a folder that is not there", FileNotFoundError, "w.safetensors cannot be written",
      "there is no folder", fix="make it first")
def _(folder):
    model = nn.Linear(2, 3)
    return lambda: weights.save(model, folder / "missing" / "w.safetensors"), model


@case("A folder without a checkpoint", FileNotFoundError, "checkpoint", "has no checkpoint.json",
      fix="stopped before it wrote one")
def _(folder):
    model = nn.Linear(2, 2)
    return lambda: load_checkpoint(folder, model), model


@case("A checkpoint whose JSON is cut off", WeightsError, "checkpoint.json cannot be read", "JSONDecodeError",
      fix="damaged or no checkpoint", varies=r"JSONDecodeError\(.*?\)(?=\. It)")
def _(folder):
    model, optimizer = checkpoint(folder)
    path = folder / "checkpoint.json"
    path.write_bytes(path.read_bytes()[:100])
    return lambda: load_checkpoint(folder, model, optimizer), model, optimizer


@case("A checkpoint of another format", WeightsError, "checkpoint.json has the format", "'tinyres checkpoint 9'",
      fix="expected all of 'tinyres checkpoint 1'")
def _(folder):
    model, optimizer = checkpoint(folder)
    path = folder / "checkpoint.json"
    path.write_bytes(path.read_bytes().replace(b"checkpoint 1", b"checkpoint 9"))
    return lambda: load_checkpoint(folder, model, optimizer), model, optimizer


@case("A checkpoint that names a file elsewhere", WeightsError, "checkpoint.json names the file", "'../w.safetensors'",
      "its own folder", fix="it was edited; nothing outside the folder is read")
def _(folder):
    model, optimizer = checkpoint(folder)
    path = folder / "checkpoint.json"
    name = next(folder.glob("*.safetensors")).name
    path.write_bytes(path.read_bytes().replace(name.encode(), b"../w.safetensors"))
    return lambda: load_checkpoint(folder, model, optimizer), model, optimizer


@case("A checkpoint whose arrays are gone", WeightsError, "checkpoint.json names", "not there",
      fix="copy the folder as a whole")
def _(folder):
    model, optimizer = checkpoint(folder)
    next(folder.glob("*.safetensors")).unlink()
    return lambda: load_checkpoint(folder, model, optimizer), model, optimizer


@case("A checkpoint whose arrays are damaged", WeightsError, "checkpoint", "has SHA-256", "expected",
      fix="Bring the folder back from a copy, or train anew")
def _(folder):
    model, optimizer = checkpoint(folder)
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    return lambda: load_checkpoint(folder, model, optimizer), model, optimizer


@case("The checkpoint of another model", WeightsError, "checkpoint", "(2, 2)", "(3, 2)",
      fix="not of this model, optimizer and schedule")
def _(folder):
    checkpoint(folder)
    model = nn.Linear(2, 3)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return lambda: load_checkpoint(folder, model, optimizer), model, optimizer


@case("The checkpoint of another optimizer", WeightsError, "checkpoint", "the state is of SGD", "Adam.load_state_dict",
      fix="not of this model, optimizer and schedule")
def _(folder):
    model, _ = checkpoint(folder)
    optimizer = optim.Adam(model.parameters())
    return lambda: load_checkpoint(folder, model, optimizer), model, optimizer


case = chapter("Archives and downloads")


def packed(path, *members):
    """A tar archive of (name, content, link target or "")."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content, link in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info, io.BytesIO(content))


def cifar(path):
    def wrong():
        with environment(TINYRES_DATA=""):
            data.cifar10("train", path)

    return wrong


@case("An archive that is cut off", DamagedError, "cifar10", "cannot be read as a tar archive", "truncated",
      fix="tinyres data fetch cifar10", varies=r"(?<=tar archive: ).*?(?=\. It is)")
def _(folder):
    packed("cifar.tar.gz", ("a", os.urandom(20_000), ""))
    (folder / "cifar.tar.gz").write_bytes((folder / "cifar.tar.gz").read_bytes()[:10_000])
    return cifar(folder / "cifar.tar.gz"),


@case("An archive that is none", DamagedError, "cifar10", "cannot be read as a tar archive", "no archive",
      fix="tinyres data fetch cifar10", varies=r"(?<=tar archive: ).*?(?=\. It is)")
def _(folder):
    (folder / "cifar.tar.gz").write_bytes(b"<html>503</html>")
    return cifar(folder / "cifar.tar.gz"),


@case("An archive that would write outside of its folder", DamagedError, "cifar10", "'../../.bashrc'",
      "no absolute paths, '..' or links", fix="Do not unpack it")
def _(folder):
    packed("cifar.tar.gz", ("../../.bashrc", b"echo", ""))
    return cifar(folder / "cifar.tar.gz"),


@case("An archive with a link", DamagedError, "cifar10", "'batches/data_batch_1.bin', a link",
      "plain files", fix="Do not unpack it", varies=r"(?<=, )a link[^;]*(?=;)")
def _(folder):
    packed("cifar.tar.gz", ("batches/data_batch_1.bin", b"", "/etc/passwd"))
    return cifar(folder / "cifar.tar.gz"),


@case("An archive that lacks files", DamagedError, "cifar10", "lacks data_batch_1.bin", "expected the 6 files",
      fix="tinyres data fetch cifar10")
def _(folder):
    packed("cifar.tar.gz", ("cifar-10-batches-bin/readme.html", b"1", ""))
    return cifar(folder / "cifar.tar.gz"),


@case("A file of another size than the format's", DamagedError, "cifar10: data_batch_1.bin", "1,000 bytes",
      "expected 30,730,000", fix="tinyres data fetch cifar10")
def _(folder):
    (folder / "data_batch_1.bin").write_bytes(bytes(1_000))
    return cifar(folder),


@case("A file with another checksum", DamagedError, "cifar10: data_batch_1.bin", "has SHA-1", "expected",
      fix="it is damaged")
def _(folder):
    with open("data_batch_1.bin", "wb") as file:
        file.truncate(30_730_000)
    return cifar(folder),


@case("A set fetched that is not there", ValueError, "data fetch", "'cifar11'", fix="Did you mean 'cifar10'?")
def _(folder):
    return lambda: download.fetch("cifar11", folder),


@case("A set fetched that comes with the package", ValueError, "data fetch", "digits", fix="there is nothing to fetch")
def _(folder):
    return lambda: download.fetch("digits", folder),


@case("A mirror that is no address", ValueError, "data fetch", "'/mnt/data'", "http:// or https://", fix="--data-dir")
def _(folder):
    return lambda: download.fetch("cifar10", folder, mirrors=["/mnt/data"]),
