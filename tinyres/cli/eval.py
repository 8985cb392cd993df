"""`tinyres eval`: how many images of a data set given weights get right."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tinyres.cli import setup
from tinyres.cli.stored import network_for

Normalize = Annotated[str | None, typer.Option(help="imagenet; train (statistics of the training images); none (0 to "
                                               "1); or means, then stds, a channel each: m,m,m,s,s,s. Default: the "
                                               "run's or the format's, else train.")]


def evaluate_weights(
    weights: Annotated[Path, typer.Option(help="A safetensors, .npz, .pt or .pth file, or the folder of a run.")],
    model: Annotated[str | None, typer.Option(help="A network's name. Default: the run's, or what the file's names "
                                              "tell.")] = None,
    option: setup.ShortcutOption = None,
    model_option: setup.ModelOption = None,
    data: Annotated[str | None, setup.data_option(" Default: the run's.")] = None,
    data_dir: setup.DataDir = None,
    image_size: setup.ImageSize = None,
    split: Annotated[str, typer.Option(help="test, train, fit or validation.")] = "test",
    normalize: Normalize = None,
    logits: Annotated[Path | None, typer.Option(help="Write the logits, (n, classes) float32, to this .npy.")] = None,
    batch: Annotated[int, setup.whole("Images at a time.")] = 250,
    fold: Annotated[bool, typer.Option("--fold", help="Fold each batch norm into the convolution in front of it: "
                                       "faster, the logits equal up to rounding.")] = False,
    kernels: setup.Kernels = "fast",
    device: setup.Device = "cpu",
    json: setup.Json = False,
    quiet: setup.Quiet = False,
) -> None:
    """Evaluate weights on a data set.

    The weights are those of a run, or of a published file; nothing in it is executed. Files of
    akamaster/pytorch_resnet_cifar10, which expect ImageNet's mean and std, and of MLPerf Tiny's ResNet-8, which expect
    raw pixels, are recognised. Accuracy is a share from 0 to 1.
    """
    from tinyres import data as datasets
    from tinyres.files import write_atomically
    from tinyres.nn import FoldedConv2d, fold_batch_norm
    from tinyres.train import evaluate
    from tinyres.weights import load, read

    began = time.perf_counter()
    setup.use_kernels(kernels)
    setup.use_device(device)
    source = read(weights)
    data = data or source.config.get("data")
    if data is None:
        raise typer.BadParameter(f"{weights} does not say on which data; give one of {', '.join(datasets.NAMES)}.",
                                 param_hint="--data")
    setup.check_data(data, data_dir, image_size)
    if split not in datasets.SPLITS:
        with setup.option("--split"):
            datasets.digits(split)
    data = setup.absolute_data(data)
    mine = source.config if data == source.config.get("data") else {}
    dataset = datasets.load(data, split, data_dir or mine.get("data_dir"), image_size or mine.get("image_size"))
    channels, *size = dataset.images.shape[1:]
    name, options = network_for(source, weights, model, option, model_option or [], len(dataset.classes), channels,
                                tuple(size))
    mean, std, origin = _normalisation(source, normalize, dataset)
    network = setup.build(name, options)
    load(network, weights)
    with setup.option("--normalize"):
        images = dataset.with_normalisation(mean, std)
    if fold:
        network = fold_batch_norm(network, images.take([0])[0])
    folded = sum(isinstance(layer, FoldedConv2d) for layer in network.modules())
    setup.say(f"{name} from {weights} on {len(dataset):,} images of {data} ({split}); input normalised by {origin}: "
              f"mean {_numbers(mean)}, std {_numbers(std)}; kernels {kernels}, device {device}"
              + (f"; {folded} batch norms folded" if fold else ""), quiet)
    with setup.telling_of_compilation(quiet or json):
        found = evaluate(network.to(device), images.to(device), batch, show_progress=not quiet)
    if logits is not None:
        content = io.BytesIO()
        np.save(content, found.logits, allow_pickle=False)
        write_atomically(logits, content.getvalue())
    result = {"accuracy": found.accuracy, "correct": found.correct, "n": found.n,
              "loss": found.loss if math.isfinite(found.loss) else None, "model": name, "data": data, "split": split,
              "mean": list(mean), "std": list(std), "folded": folded,
              "seconds": round(time.perf_counter() - began, 2)}
    text = f"accuracy {found.accuracy:.2%} ({found.correct:,} of {found.n:,}), loss {found.loss:.5f}"
    setup.report(result, text, json)


def _normalisation(source: Any, asked: str | None, dataset: Any) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Mean and std for each channel, and in words whose they are."""
    from tinyres.weights import IMAGENET, RAW_PIXELS

    channels = dataset.images.shape[1]
    if asked is None and "normalisation" in source.config:
        ours = source.config["normalisation"]
        return tuple(ours["mean"]), tuple(ours["std"]), "the run's statistics"
    if asked is None and source.normalisation is not None:
        theirs = {IMAGENET: "ImageNet's statistics", RAW_PIXELS: "nothing (pixels from 0 to 255)"}
        return (*source.normalisation, f"{theirs.get(source.normalisation, 'the statistics')} that the weights expect")
    if asked in (None, "train"):
        return tuple(dataset.mean.tolist()), tuple(dataset.std.tolist()), "the training images' statistics"
    if asked == "imagenet":
        values = [*IMAGENET[0], *IMAGENET[1]]
    elif asked == "none":
        values = [0.0] * channels + [1.0] * channels
    else:
        values = _floats(asked)
    if len(values) != 2 * channels or not all(map(math.isfinite, values)) or min(values[channels:]) <= 0:
        raise typer.BadParameter(f"{asked!r}: expected imagenet (for 3 channels), train, none, or {channels} means and "
                                 f"then {channels} positive stds, with commas.", param_hint="--normalize")
    words = {"imagenet": "ImageNet's statistics", "none": "nothing (pixels from 0 to 1)"}
    return tuple(values[:channels]), tuple(values[channels:]), words.get(asked, "given statistics")


def _floats(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4f}" for value in values)
