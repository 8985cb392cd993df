"""Weights in files: safetensors written; safetensors, .npz and PyTorch's .pt and .pth read. No pickle is ever executed.

`save(model, path)` and `load(model, path)` are all that most users need. `load` takes a file by its content, not by its
name, and also takes a run folder, whose checkpoint it reads. torchvision's names are ours, and those of timm's resnet18
to resnet152 are too. Other names are translated:

    in the file                     here                  who writes it so
    module.* or _orig_mod.*         *                     PyTorch's DataParallel and torch.compile
    linear.*                        fc.*                  akamaster/pytorch_resnet_cifar10, kuangliu/pytorch-cifar
    layerL.B.shortcut.*             layerL.B.downsample.* the same, where a shortcut projects
    stages.L.blocks.B.normI.* ...   layerL+1.B.bnI.* ...  timm's resnetv2_50, pre-activation with batch norm
    conv2d_N/kernel ...             see keras_names.py    Keras, MLPerf Tiny's ResNet-8

`num_batches_tracked` may be missing. `Source.normalisation` says which input a format expects: that of akamaster's
networks, with 3 stages, is normalised by ImageNet's statistics; MLPerf Tiny's is raw pixels, 0 to 255.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyres import keras_names, models
from tinyres.checkpoint import CHECKPOINT, read_weights
from tinyres.files import Arrays, PathLike, WeightsError, read_npz, read_safetensors, safetensors, write_atomically
from tinyres.nn import Module
from tinyres.torch_file import is_torch_file, read_torch_file

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std a channel, on the scale 0..1
RAW_PIXELS = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # the same for pixels from 0 to 255
WRAPPERS = ("module.", "_orig_mod.")
TIMM_V2 = (  # patterns of timm's resnetv2 and what stands for them here, in this order
    (r"^stem\.conv\.", "conv1."), (r"^norm\.", "bn."), (r"^head\.fc\.", "fc."), (r"\.norm([123])\.", r".bn\1."),
    (r"\.downsample\.conv\.", ".downsample.0."))
# What the networks of models.resnet and models.preact call their arrays; others may have these and more.
OURS = re.compile(r"(conv1|bn1?|fc|layer[1-9]\.[0-9]+\.(conv[123]|bn[123]|downsample\.[01]))"
                  r"\.(weight|bias|running_mean|running_var|num_batches_tracked)")


# --- which network ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """A ResNet, as the names and shapes of its weights tell: `models.build(name, **options)` makes it.

    name is "" if no constructor of models.resnet, models.preact and models.mlperf makes it. Other networks may have a
    ResNet's names and shapes too: a plain one those of the ResNet with option A; constant scales, dropout, the order of
    norm and ReLU and the place of a stride leave no trace in names. network_texts says which it is.
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
    head_options = {"num_classes": head.shape[0], "in_channels": stem.shape[1]}
    if {name.rpartition(".")[0] for name in arrays} == set(keras_names.MLPERF_RESNET8.values()):
        return Architecture("mlperf_resnet8", head_options, 2 * sum(depths) + 2, depths, widths)
    preact = "bn.weight" in arrays
    bottleneck = "layer1.0.conv3.weight" in arrays
    layers = sum(depths) * (3 if bottleneck else 2) + 2
    options = {**head_options, "option": _option(arrays, bottleneck)}
    if len(depths) == 4:
        options["cifar_stem"] = stem.shape[2] == 3
    usual = models.resnet.CIFAR_WIDTHS if len(depths) == 3 else models.resnet.IMAGENET_WIDTHS
    name = f"{'preact_' * preact}resnet{layers}"
    bare = not preact and options["option"] != "A" and not any(".downsample.1." in entry for entry in arrays)
    known = name in models.names() and widths == usual and not bare and all(OURS.fullmatch(entry) for entry in arrays)
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

    format: "tinyres" if nothing was renamed, "wrapped" if only a prefix was taken off, else "akamaster", "timm" or
    "keras". normalisation: (mean, std) of the input, on the scale 0 to 1, if the format fixes it. metadata: the
    safetensors file's own, text by text; config: that of a checkpoint.
    """

    arrays: Arrays
    format: str
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture | None:
        return identify(self.arrays)

    @property
    def network(self) -> tuple[str, dict[str, Any]] | None:
        """(name, options) for models.build as the run, or the file's metadata, says; None where neither does."""
        name, options = self.config.get("model"), self.config.get("network")
        if name is None and "network" in self.metadata:
            with contextlib.suppress(ValueError, RecursionError):
                options = json.loads(self.metadata["network"])
            name = self.metadata.get("model")
        return (name, options) if isinstance(name, str) and isinstance(options, dict) else None


def save(model: Module, path: PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Write the model's parameters and buffers as a safetensors file, with texts about it if given.

    Names and shapes do not tell every network: metadata=network_texts(name, options) does, and the commands read it.
    """
    write_atomically(path, safetensors(model.state_dict(), metadata))


def network_texts(name: str, options: Mapping[str, Any],
                  normalisation: tuple[Sequence[float], Sequence[float]] | None = None) -> dict[str, str]:
    """Metadata that says which network a file is for, models.build(name, **options), and which input it expects.

    normalisation: mean and std a channel, on the scale 0 to 1.
    """
    texts = {"model": models.known_name(name), "network": json.dumps(dict(options), sort_keys=True)}
    if normalisation is not None:
        mean, std = ([float(number) for number in part] for part in normalisation)
        texts["normalisation"] = json.dumps({"mean": mean, "std": std})
    return texts


def load(model: Module, path: PathLike) -> Source:
    """Load a file or the checkpoint of a run folder into the model; returns what was read.

    Raises WeightsError, and changes nothing, if the file is damaged, asks for code, or does not fit: then it lists what
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
    """The arrays of a safetensors, .npz, .pt or .pth file, or of a run folder's checkpoint, by the names used here.

    Raises FileNotFoundError, or WeightsError for a file that is damaged, asks for code or is of another kind.
    """
    path = Path(path)
    if path.is_dir() or path.name == CHECKPOINT:
        arrays, config = read_weights(path if path.is_dir() else path.parent)
        return Source(arrays, "tinyres", config=config)
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {path.absolute()}: check the path")
    arrays, metadata = _read_file(path)
    try:
        if keras_names.is_keras(arrays):
            arrays, kind = keras_names.translate_known(arrays), "keras"
        else:
            arrays, kind = _renamed(arrays)
    except ValueError as error:
        raise WeightsError(f"weights: {path} does not fit: {error}") from error
    found = identify(arrays)
    return Source(arrays, kind, _said_normalisation(metadata) or _normalisation(kind, found), metadata)


def _read_file(path: Path) -> tuple[Arrays, dict[str, str]]:
    """The arrays by the file's own names, and the texts about them."""
    content = path.read_bytes()
    if is_torch_file(content):
        return read_torch_file(path, content), {}
    if content[:4] == b"PK\3\4":
        return read_npz(path, content), {}
    return read_safetensors(path, content)


def _normalisation(kind: str, found: Architecture | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if found is None or found.options["in_channels"] != 3:
        return None
    if kind == "akamaster":
        return IMAGENET if len(found.depths) == 3 else None
    return RAW_PIXELS if kind == "keras" and found.name == "mlperf_resnet8" else None


def _said_normalisation(metadata: Mapping[str, str]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """What network_texts wrote, if it is there and makes sense."""
    with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError, OverflowError):
        found = json.loads(metadata["normalisation"])
        mean, std = (tuple(float(number) for number in found[name]) for name in ("mean", "std"))
        if len(mean) == len(std) and all(abs(number) < 1e6 for number in mean + std) and min(std) > 1e-6:
            return mean, std
    return None


def _renamed(arrays: Arrays) -> tuple[Arrays, str]:
    """The arrays by the names used here, and the format. Raises ValueError where two would have one name."""
    names, kind = _translate(list(arrays))
    new = {name: old for old, name in names.items()}
    if len(new) < len(names):
        old, name = next((old, name) for old, name in names.items() if new[name] != old)
        raise ValueError(f"it holds {old[:200]!r} and {new[name][:200]!r}, which both are {name[:200]!r} here: remove "
                         "one")
    arrays = {name: arrays[old] for name, old in new.items()}
    if kind == "timm":
        _check_timm(arrays)
        arrays["fc.weight"] = arrays["fc.weight"].reshape(arrays["fc.weight"].shape[:2])  # a 1x1 convolution's
    return arrays, kind


def _check_timm(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError for those of timm's resnetv2 that compute something else than our networks."""
    if "layer1.0.conv3.weight" not in arrays or "layer1.0.downsample.0.weight" not in arrays:
        raise ValueError("the shortcut of the first block passes its activation by in timm's resnetv2_18 and _34, and "
                         "in no network here: take resnetv2_50, resnet18 or resnet34")
    if "bn.running_mean" not in arrays or "bn1.weight" in arrays:
        raise ValueError("timm's resnetv2 is there with group norm and without pre-activation too, and this is such a "
                         "one: take the one with batch norm, resnetv2_50")
    if arrays["fc.weight"].shape[2:] != (1, 1):
        raise ValueError(f"'head.fc.weight' has shape {arrays['fc.weight'].shape}, expected (K, C, 1, 1)")


def _translate(names: list[str]) -> tuple[dict[str, str], str]:
    """{name in the file: name here}, and the format; see the table on top."""
    new, kind = names, "tinyres"
    for prefix in WRAPPERS:
        if new and all(name.startswith(prefix) for name in new):
            new, kind = [name.removeprefix(prefix) for name in new], "wrapped"
    if "linear.weight" in new and "fc.weight" not in new:
        new = [re.sub(r"^linear\.", "fc.", name).replace(".shortcut.", ".downsample.") for name in new]
        kind = "akamaster"
    if "stem.conv.weight" in new and "head.fc.weight" in new:
        new = [_from_timm(name) for name in new]
        kind = "timm"
    return dict(zip(names, new, strict=True)), kind


def _from_timm(name: str) -> str:
    name = re.sub(r"^stages\.([0-8])\.blocks\.", lambda stage: f"layer{int(stage[1]) + 1}.", name)
    for pattern, here in TIMM_V2:
        name = re.sub(pattern, here, name)
    return name
