"""`tinyres summary`: parameters, multiply-adds and kept bytes, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinyres.cli import setup
from tinyres.cli.stored import shape, stored


def summarise(
    model: Annotated[str | None, typer.Option(help="A network's name, like resnet20. Default: that of the "
                                              "weights.")] = None,
    weights: Annotated[Path | None, typer.Option(help="A file of weights, or the folder of a run.")] = None,
    input: Annotated[str | None, typer.Option(help="Channels, height and width of an image. Default: 3,32,32, or what "
                                              "the weights are for.")] = None,
    classes: Annotated[int | None, setup.whole("Number of classes. Default: 10, or the weights'.")] = None,
    batch: Annotated[int, setup.whole("Images in a batch; multiply-adds and bytes are the batch's.")] = 1,
    option: setup.ShortcutOption = None,
    model_option: setup.ModelOption = None,
    json: setup.Json = False,
) -> None:
    """Show what a network costs, layer by layer.

    Parameters, multiply-adds, bytes kept for backward, totals, and which ResNet it is: where its stride is, what its
    shortcuts do, whether its branches are zero; and what papers print of it.
    """
    from tinyres import models
    from tinyres.analysis.summary import summary

    if model is None and weights is None:
        raise typer.BadParameter("say which network: its name, like resnet20, or a file by --weights.",
                                 param_hint="--model")
    if weights is not None:
        if classes is not None:
            raise typer.BadParameter("the weights have their own number of classes; leave it out.",
                                     param_hint="--classes")
        found = stored(weights, model, option, model_option or [], input)
        result = summary(found.network, found.shape, batch, found.name)
    else:
        sizes = shape("3,32,32" if input is None else input)
        if len(sizes) == 1:  # rows of features
            sizes = (sizes[0], 1, 1)
        options = setup.network_options(str(model), classes or 10, sizes[0], (sizes[1], sizes[2]), option,
                                        model_option or [])
        result = summary(setup.build(str(model), options), sizes, batch, models.known_name(str(model)))
    setup.report(result.as_dict(), str(result), json)
