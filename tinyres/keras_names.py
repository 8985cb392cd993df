"""Keras's names and layouts for weights, and ours. A layer's arrays become a module's:

    in the file                               here
    LAYER/kernel (R, S, C, K)                 MODULE.weight (K, C, R, S)     a convolution
    LAYER/kernel (C, K)                       MODULE.weight (K, C)           a dense layer
    LAYER/bias                                MODULE.bias
    LAYER/gamma, beta                         MODULE.weight, bias            batch norm
    LAYER/moving_mean, moving_variance        MODULE.running_mean, running_var

A name may end in ":0" and have folders in front, as in HDF5 files. Layers without a name of their own are numbered by
Keras in the order in which a session made them; only that order counts here: a file whose first convolution is conv2d_7
is read as if that were conv2d.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

LEAVES = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
          "moving_variance": "running_var"}
AXES = {2: (1, 0), 4: (3, 2, 0, 1)}  # of a kernel with so many dimensions

# models.mlperf_resnet8: each layer of MLPerf Tiny's ResNet-8, in the order in which its program makes them.
MLPERF_RESNET8 = {
    "conv2d": "conv1", "batch_normalization": "bn1",
    "conv2d_1": "layer1.0.conv1", "batch_normalization_1": "layer1.0.bn1",
    "conv2d_2": "layer1.0.conv2", "batch_normalization_2": "layer1.0.bn2",
    "conv2d_3": "layer2.0.conv1", "batch_normalization_3": "layer2.0.bn1",
    "conv2d_4": "layer2.0.conv2", "batch_normalization_4": "layer2.0.bn2", "conv2d_5": "layer2.0.downsample",
    "conv2d_6": "layer3.0.conv1", "batch_normalization_5": "layer3.0.bn1",
    "conv2d_7": "layer3.0.conv2", "batch_normalization_6": "layer3.0.bn2", "conv2d_8": "layer3.0.downsample",
    "dense": "fc",
}
NETWORKS: tuple[Mapping[str, str], ...] = (MLPERF_RESNET8,)


def is_keras(names: Iterable[str]) -> bool:
    """Whether these are Keras's names: all of the form LAYER/..., one of them a kernel."""
    names = list(names)
    return all("/" in name for name in names) and any(_split(name)[1] == "kernel" for name in names)


def translate(arrays: Mapping[str, np.ndarray], modules: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The arrays of a Keras file under our names and in our layouts; `modules`: {Keras layer: our module}.

    Raises ValueError for a layer that is not in `modules`, for one of those that the file lacks, for an array of
    another kind than those above, a kernel that is neither a convolution's nor a dense layer's, and two arrays for one.
    """
    numbered = _numbered({_split(name)[0] for name in arrays})
    if numbered.values() - modules.keys() or modules.keys() - numbered.values():
        raise ValueError(f"its Keras layers are {_listed(numbered.values())}, expected {_listed(modules)}")
    found: dict[str, np.ndarray] = {}
    for old, array in arrays.items():
        (layer, leaf), shown = _split(old), old[:200]
        if leaf not in LEAVES:
            raise ValueError(f"its array {shown!r} is none of {', '.join(LEAVES)}: only convolutions, dense layers and "
                             "batch norms have a place here")
        if leaf == "kernel" and array.ndim not in AXES:
            raise ValueError(f"its array {shown!r} has shape {array.shape}, expected a kernel (R, S, C, K) or (C, K)")
        name = f"{modules[numbered[layer]]}.{LEAVES[leaf]}"
        if name in found:
            raise ValueError(f"its array {shown!r} is the second that would be {name!r} here: remove one")
        found[name] = np.ascontiguousarray(array.transpose(AXES[array.ndim])) if leaf == "kernel" else array
    return found


def translate_known(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """translate() for the network of NETWORKS that has these layers. Raises ValueError if none has, or as it does."""
    layers = set(_numbered({_split(name)[0] for name in arrays}).values())
    for modules in NETWORKS:
        if layers == modules.keys():
            return translate(arrays, modules)
    raise ValueError(f"its {len(layers)} Keras layers are those of no network known here: {_listed(layers)}. Give a "
                     "map of your own to tinyres.keras_names.translate, and its result to load_state_dict")


def _split(name: str) -> tuple[str, str]:
    """Layer and leaf: ("conv2d_1", "kernel") of "model_weights/conv2d_1/conv2d_1/kernel:0"."""
    folders, _, leaf = name.rpartition("/")
    return folders.rpartition("/")[2], leaf.removesuffix(":0")


def _numbered(layers: set[str]) -> dict[str, str]:
    """Each layer's name with its number counted from the first of its kind: {"conv2d_7": "conv2d", ...}."""
    kinds: dict[str, list[tuple[int, str]]] = {}
    for layer in sorted(layers):
        kind, number = re.fullmatch(r"(.*?)(?:_([1-9][0-9]{0,8}))?", layer, re.DOTALL).groups()  # type: ignore[union-attr]
        kinds.setdefault(kind, []).append((int(number or 0), layer))
    return {layer: kind if i == 0 else f"{kind}_{i}" for kind, found in kinds.items()
            for i, (_, layer) in enumerate(sorted(found))}


def _listed(names: Iterable[str]) -> str:
    words = sorted(names, key=lambda name: (re.sub("[0-9]+$", "", name), len(name), name))
    return ", ".join(word[:100] for word in words[:40]) + (f" and {len(words) - 40} more" if len(words) > 40 else "")
