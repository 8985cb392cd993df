"""Weights in files: safetensors written, safetensors and .npz read, and checkpoints to resume from. Never a pickle.

`save(model, path)` and `load(model, path)` are all that most users need. `load` takes a file by its content, not by its
name, and also takes a run folder, whose checkpoint it reads. Names from elsewhere are translated:

    in the file                     here                  who writes it so
    module.* or _orig_mod.*         *                     PyTorch's DataParallel and torch.compile
    linear.*                        fc.*                  akamaster/pytorch_resnet_cifar10 and its relatives
    layerL.B.shortcut.*             layerL.B.downsample.* the same, with option B

`num_batches_tracked` may be missing. The networks of akamaster's repository have option A and 3 stages, and expect
input normalised by ImageNet's statistics; `Source.normalisation` says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyres import models
from tinyres.checkpoint import CHECKPOINT, read_weights
from tinyres.files import Arrays, PathLike, WeightsError, read_npz, read_safetensors, safetensors, write_atomically
from tinyres.nn import Module

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std a channel, on the scale 0..1
WRAPPERS = ("module.", "_orig_mod.")


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
    for name, array in arrays.items():
        if found := re.fullmatch(r"layer([1-9])\.(0|[1-9][0-9]{0,2})\.conv1\.weight", name):
            stages.setdefault(int(found[1]), set()).add(int(found[2]))
            if array.ndim != 4:
                return None
    stem, head = arrays.get("conv1.weight"), arrays.get("fc.weight")
    if not stages or stem is None or head is None or stem.ndim != 4 or head.ndim != 2:
        return None
    if set(stages) != set(range(1, len(stages) + 1)) or any(s != set(range(len(s))) for s in stages.values()):
        return None
    depths = tuple(len(stages[stage]) for stage in sorted(stages))
    widths = tuple(arrays[f"layer{stage}.0.conv1.weight"].shape[0] for stage in sorted(stages))
    preact = "bn.weight" in arrays
    bottleneck = "layer1.0.conv3.weight" in arrays
    layers = sum(depths) * (3 if bottleneck else 2) + 2
    options = {"num_classes": head.shape[0], "in_channels": stem.shape[1], "option": _option(arrays, bottleneck)}
    if len(depths) == 4:
        options["cifar_stem"] = stem.shape[2] == 3
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
    write_atomically(path, safetensors(model.state_dict(), metadata))


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
        arrays, config = read_weights(path if path.is_dir() else path.parent)
        return Source(arrays, "tinyres", config=config)
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {path}")
    content = path.read_bytes()
    archive = content[:4] == b"PK\3\4"
    arrays, metadata = (read_npz(path, content), {}) if archive else read_safetensors(path, content)
    names, kind = _translate(list(arrays))
    new = {name: old for old, name in names.items()}
    if len(new) < len(names):
        old, name = next((old, name) for old, name in names.items() if new[name] != old)
        raise WeightsError(f"weights: {path} holds {old!r} and {new[name]!r}, which both are {name!r} here: remove one")
    arrays = {name: arrays[old] for name, old in new.items()}
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
