"""Weights in files: safetensors written, safetensors and .npz read, and checkpoints to resume from. Never a pickle.

`save(model, path)` and `load(model, path)` are all that most users need. `load` takes a file by its content, not by its
name, and also takes a run folder, whose checkpoint it reads. Names from elsewhere are translated:

    in the file                     here                  who writes it so
    module.* or _orig_mod.*         *                     PyTorch's DataParallel and torch.compile
    linear.*                        fc.*                  akamaster/pytorch_resnet_cifar10 and its relatives
    layerL.B.shortcut.*             layerL.B.downsample.* the same, with option B

`num_batches_tracked` may be missing. The networks of akamaster's repository have option A and 3 stages, and expect
input normalised by ImageNet's statistics; `Source.normalisation` says so.

Every file is written under a temporary name in its folder and then renamed: a reader finds the old one or the new one.
A checkpoint is two files that belong together, so its JSON, renamed last, names the safetensors file and its SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyres import models, random
from tinyres.nn import Module

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std a channel, on the scale 0..1
CHECKPOINT = "checkpoint.json"
FORMAT = "tinyres checkpoint 1"
WRAPPERS = ("module.", "_orig_mod.")
PICKLE = "a pickle"
OTHER_KINDS = {b"\x80\2": PICKLE, b"\x80\3": PICKLE, b"\x80\4": PICKLE, b"\x80\5": PICKLE,
               b"\x89HDF": "an HDF5 file, expected safetensors or .npz",
               b"version https://git-lfs": "a Git LFS pointer, not the file itself: fetch it with git lfs pull",
               b"<": "an HTML or XML page, expected safetensors or .npz"}

Arrays = dict[str, np.ndarray]
PathLike = str | os.PathLike[str]


class WeightsError(ValueError):
    """A file of weights that cannot be read, or does not fit."""


# --- which network ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """A ResNet, as the names and shapes of its weights tell: `models.build(name, **options)` makes it.

    name is "" if no constructor makes it. A plain network has the names and shapes of the ResNet with option A.
    """

    name: str
    options: dict[str, Any]
    layers: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]

    def __str__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        if self.name:
            return f"models.{self.name}({arguments})"
        return f"a ResNet of {self.layers} layers with stages of {self.depths} blocks and {self.widths} channels"


def identify(arrays: Mapping[str, Any]) -> Architecture | None:
    """Which ResNet a state dict (name -> array) belongs to; None if its names are not those of one."""
    stages: dict[int, set[int]] = {}
    for name in arrays:
        if found := re.match(r"layer(\d+)\.(\d+)\.conv1\.weight$", name):
            stages.setdefault(int(found[1]), set()).add(int(found[2]))
    if not stages or not {"conv1.weight", "fc.weight"} <= set(arrays) or arrays["conv1.weight"].ndim != 4:
        return None
    depths = tuple(len(stages[stage]) for stage in sorted(stages))
    widths = tuple(arrays[f"layer{stage}.0.conv1.weight"].shape[0] for stage in sorted(stages))
    preact = "bn.weight" in arrays
    bottleneck = "layer1.0.conv3.weight" in arrays
    layers = sum(depths) * (3 if bottleneck else 2) + 2
    stem = arrays["conv1.weight"].shape
    options = {"num_classes": arrays["fc.weight"].shape[0], "in_channels": stem[1],
               "option": _option(arrays, bottleneck)}
    if len(depths) == 4:
        options["cifar_stem"] = stem[2] == 3
    usual = models.resnet.CIFAR_WIDTHS if len(depths) == 3 else models.resnet.IMAGENET_WIDTHS
    name = f"{'preact_' * preact}resnet{layers}"
    known = name in models.names() and widths == usual
    return Architecture(name if known else "", options, layers, depths, widths)


def _option(arrays: Mapping[str, Any], bottleneck: bool) -> str:
    """A without projections, B with one in front of a stage, C where a block that changes no shape has one too."""
    blocks = {name.split(".downsample.")[0] for name in arrays if ".downsample." in name}
    everywhere = [block for block in blocks if not block.endswith(".0") or (block == "layer1.0" and not bottleneck)]
    return "C" if everywhere else "B" if blocks else "A"


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What a file holds, under the names used here, and what it says about itself.

    format: "tinyres" if nothing was renamed, "wrapped" if only a prefix was taken off, else "akamaster". normalisation:
    (mean, std) of the input if the format fixes it. metadata: the safetensors file's own, text by text; config: that of
    a checkpoint.
    """

    arrays: Arrays
    format: str
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture | None:
        return identify(self.arrays)


def save(model: Module, path: PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Write the model's parameters and buffers as a safetensors file, with texts about it if given."""
    write_atomically(path, _safetensors(model.state_dict(), metadata))


def load(model: Module, path: PathLike) -> Source:
    """Load a file or the checkpoint of a run folder into the model; returns what was read.

    Raises WeightsError, and changes nothing, if the file is damaged, is a pickle, or does not fit: then it lists what
    is missing, unexpected and mis-shaped, and names the network that the file fits, if its names tell.
    """
    source = read(path)
    try:
        model.load_state_dict(source.arrays)
    except ValueError as error:
        fits = source.architecture
        hint = f"{path} holds the weights of {fits}.\n" if fits else f"{path}: "
        raise WeightsError(f"{hint}{error}") from error
    return source


def read(path: PathLike) -> Source:
    """The arrays of a safetensors or .npz file, or of a run folder's checkpoint, by the names used here.

    Raises FileNotFoundError, or WeightsError for a file that is damaged, holds pickles or is of another kind.
    """
    path = Path(path)
    if path.is_dir() or path.name == CHECKPOINT:
        saved, arrays = _read_checkpoint(path if path.is_dir() else path.parent)
        return Source(_below("model.", arrays), "tinyres", config=saved["config"])
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {path}")
    content = path.read_bytes()
    archive = content[:4] == b"PK\3\4"
    arrays, metadata = _read_npz(path, content) if archive else _read_safetensors(path, content)
    names, kind = _translate(list(arrays))
    arrays = {name: arrays[old] for old, name in names.items()}
    found = identify(arrays)
    fixed = kind == "akamaster" and found is not None and len(found.depths) == 3 and found.options["in_channels"] == 3
    return Source(arrays, kind, IMAGENET if fixed else None, metadata)


def _translate(names: list[str]) -> tuple[dict[str, str], str]:
    """{name in the file: name here}, and the format; see the table on top."""
    new, kind = names, "tinyres"
    for prefix in WRAPPERS:
        if new and all(name.startswith(prefix) for name in new):
            new, kind = [name.removeprefix(prefix) for name in new], "wrapped"
    if "linear.weight" in new and "fc.weight" not in new:
        new = [re.sub(r"^linear\.", "fc.", name).replace(".shortcut.", ".downsample.") for name in new]
        kind = "akamaster"
    return dict(zip(names, new, strict=True)), kind


def _safetensors(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    from safetensors.numpy import save as serialise

    return serialise(dict(arrays), dict(metadata) if metadata else None)


def _read_safetensors(path: Path, content: bytes) -> tuple[Arrays, dict[str, str]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as deserialise

    try:
        arrays = deserialise(content)
    except KeyError as error:
        raise WeightsError(f"weights: {path} holds arrays of type {error}, which NumPy does not have: convert them to "
                           "float32") from error
    except SafetensorError as error:
        kind = next((words for magic, words in OTHER_KINDS.items() if content.startswith(magic)), "")
        raise WeightsError(_pickle(path) if kind == PICKLE else f"weights: {path} is {kind}" if kind else
                           f"weights: {path} ({len(content):,} bytes) cannot be read as safetensors: {error}. It is "
                           "truncated, damaged or another kind of file; safetensors and .npz can be read") from error
    header = json.loads(content[8:8 + int.from_bytes(content[:8], "little")])
    return dict(sorted(arrays.items())), header.get("__metadata__", {})


def _read_npz(path: Path, content: bytes) -> tuple[Arrays, dict[str, str]]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(name.endswith("data.pkl") for name in archive.namelist()):
                raise WeightsError(_pickle(path))
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        if not all(isinstance(array, np.ndarray) for array in found.values()):
            raise ValueError("not all of its members are arrays")
        return found, {}
    except WeightsError:
        raise
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, NotImplementedError) as error:
        raise WeightsError(f"weights: {path} ({len(content):,} bytes) cannot be read as .npz: {error}. It is "
                           "truncated, damaged, or holds Python objects, which are never loaded") from error


def _pickle(path: Path) -> str:
    return (f"weights: {path} is a PyTorch pickle, which can run code when it is loaded and is never read. Convert it "
            "once, where PyTorch is: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'w.safetensors')")


def write_atomically(path: PathLike, content: bytes) -> None:
    """Write a file under a temporary name in the same folder, flush it to the disk, and rename it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# --- checkpoints ------------------------------------------------------------------------------------------------------


def save_checkpoint(folder: PathLike, model: Module, optimizer: Any = None, schedule: Any = None,
                    progress: Mapping[str, Any] | None = None, config: Mapping[str, Any] | None = None) -> None:
    """Write all that a run needs to go on as if it had never stopped: weights, optimizer, schedule, random state.

    progress (where the run is) and config (what it is) are kept as JSON. The folder must exist; a killed process leaves
    the previous checkpoint or this one.
    """
    state = optimizer.state_dict() if optimizer is not None else {"arrays": {}, "scalars": None}
    arrays = {f"model.{name}": array for name, array in model.state_dict().items()}
    arrays |= {f"optimizer.{name}": array for name, array in state["arrays"].items()}
    content = _safetensors(arrays, {"format": FORMAT})
    digest = hashlib.sha256(content).hexdigest()
    file = f"checkpoint-{digest[:12]}.safetensors"
    saved = {
        "format": FORMAT,
        "weights": {"file": file, "sha256": digest},
        "progress": dict(progress or {}),
        "config": dict(config or {}),
        "optimizer": state["scalars"],
        "schedule": schedule.state_dict() if schedule is not None else None,
        "random": random.get_state(),
    }
    folder = Path(folder)
    text = json.dumps(saved, indent=1, allow_nan=False)
    write_atomically(folder / file, content)
    write_atomically(folder / CHECKPOINT, text.encode())
    for old in folder.glob("checkpoint-*.safetensors"):
        if old.name != file:
            old.unlink(missing_ok=True)


def load_checkpoint(folder: PathLike, model: Module, optimizer: Any = None, schedule: Any = None) -> dict[str, Any]:
    """Put a run back where save_checkpoint found it; returns its progress.

    Raises FileNotFoundError if the folder has no checkpoint, WeightsError if it is damaged or does not fit.
    """
    saved, arrays = _read_checkpoint(Path(folder))
    try:
        if optimizer is not None:
            optimizer.load_state_dict({"arrays": _below("optimizer.", arrays), "scalars": saved["optimizer"]})
        if schedule is not None:
            schedule.load_state_dict(saved["schedule"])
        model.load_state_dict(_below("model.", arrays))
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"checkpoint: {folder} is not of this model, optimizer and schedule: {error}") from error
    random.set_state(saved["random"])
    return saved["progress"]


def _read_checkpoint(folder: Path) -> tuple[dict[str, Any], Arrays]:
    """The JSON and the arrays of a folder's checkpoint, checked to belong together."""
    path = folder / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {folder} has no {CHECKPOINT}: no run has finished an epoch there")
    try:
        saved = json.loads(path.read_bytes())
        file, digest, missing = saved["weights"]["file"], saved["weights"]["sha256"], {"config", "random"} - set(saved)
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"checkpoint: {path} cannot be read: {error!r}. It is damaged or no checkpoint") from error
    if saved.get("format") != FORMAT or missing or Path(file).name != file:
        raise WeightsError(f"checkpoint: {path} has the format {saved.get('format')!r}, expected {FORMAT!r}")
    if not (folder / file).is_file():
        raise WeightsError(f"checkpoint: {path} names {file}, which is not there: copy the folder as a whole")
    content = (folder / file).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise WeightsError(f"checkpoint: {folder / file} has SHA-256 {found}, expected {digest}: it is damaged")
    return saved, _read_safetensors(folder / file, content)[0]


def _below(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
