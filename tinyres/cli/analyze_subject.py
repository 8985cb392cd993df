"""What the instruments of `tinyres analyze` look at: a network, with or without trained weights, and a batch of images.

The same options mean the same for every instrument; `subject` makes of them what the instruments' functions take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tinyres.cli import setup
from tinyres.cli.stored import network_for, normalisation

RANDOM = "random"           # in place of a data set: images of CIFAR's shape drawn from N(0, 1), and labels by chance
RANDOM_SHAPE, RANDOM_CLASSES = (3, 32, 32), 10
MODEL, DATA = "resnet20", "digits"  # where neither options nor weights say

Model = Annotated[str | None, typer.Option(help=f"A network's name. Default: what the weights tell, else {MODEL}.")]
Weights = Annotated[Path | None, typer.Option(help="A file of weights or the folder of a run. Default: the weights "
                                                   "that training would start from.")]
Data = Annotated[str | None, setup.data_option(f" {RANDOM}: normal images of 3x32x32. Default: the run's, else "
                                               f"{DATA}.")]
Batch = Annotated[int, setup.whole("Images in the batch.")]
Seed = Annotated[int, setup.whole("Of new weights, of the choice of images, and of all that is drawn.", 0)]
Out = Annotated[Path | None, typer.Option(help="Draw the figure into this .png file.")]


@dataclass(frozen=True)
class Subject:
    """A network and a batch. images: (N, C, H, W) float32 Tensor, normalised as the network expects; labels: (N,) int64
    array; dataset: what they were taken from, None for random images; options: those the network was built with."""

    name: str
    network: Any
    images: Any
    labels: Any
    dataset: Any
    options: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """What the result of an instrument says about its subject."""
        return {"model": self.name, "options": self.options, "batch": len(self.labels),
                "data": RANDOM if self.dataset is None else self.dataset.name}


def subject(model: str | None, weights: Path | None, model_option: Sequence[str] | None, data: str | None,
            data_dir: Path | None, batch: int, seed: int, split: str = "train") -> Subject:
    """The network, in training mode, and a batch of images, the same ones for the same seed.

    Raises the error that names the option at fault.
    """
    import numpy as np

    from tinyres import data as datasets
    from tinyres import models, random
    from tinyres.tensor import Tensor
    from tinyres.weights import load, read

    source = None if weights is None else read(weights)
    config = {} if source is None else source.config
    data = data or config.get("data") or DATA
    if data == RANDOM:
        if data_dir is not None:
            raise typer.BadParameter(f"{data_dir}, but random images come from no folder; leave it out.",
                                     param_hint="--data-dir")
        dataset = None
        rng = np.random.Generator(np.random.Philox(seed))
        images = rng.standard_normal((batch, *RANDOM_SHAPE), dtype=np.float32)
        labels = rng.integers(0, RANDOM_CLASSES, batch)
    else:
        setup.check_data(data, data_dir, None)
        data = setup.absolute_data(data)
        run = config if data == config.get("data") else {}
        dataset = datasets.load(data, split, data_dir or run.get("data_dir"), run.get("image_size"))
        expected = None if source is None else normalisation(source)
        with setup.option("--data"):  # not of as many channels as the weights take
            dataset = dataset if expected is None else dataset.with_normalisation(*expected)
        with setup.option("--batch"):
            images, labels = dataset.batch(batch, seed)
    channels, *size = RANDOM_SHAPE if dataset is None else dataset.images.shape[1:]
    classes = RANDOM_CLASSES if dataset is None else len(dataset.classes)
    own, shape = model_option or [], (size[0], size[1])
    if source is not None and weights is not None:
        name, options = network_for(source, weights, model, None, own, classes, channels, shape)
    else:
        name = model or MODEL
        options = setup.network_options(name, classes, channels, shape, None, own)
    name = models.known_name(name)
    random.manual_seed(seed)
    network = setup.build(name, options)
    if weights is not None:
        load(network, weights)
    return Subject(name, network, Tensor(images), labels, dataset, options)


def check_out(path: Path | None) -> None:
    """Raise the error for a figure that could not be written, before anything is computed."""
    if path is not None and (path.suffix.lower() != ".png" or not path.absolute().parent.is_dir()):
        raise typer.BadParameter(f"{path} is not a .png file in a folder that exists.", param_hint="--out")
