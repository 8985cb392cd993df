"""`tinyres summary`: parameters, multiply-adds and kept bytes, layer by layer."""

from __future__ import annotations

from typing import Annotated

import typer

from tinyres.cli import setup


def summarise(
    model: Annotated[str, typer.Option(help="A network's name, like resnet20.")],
    input: Annotated[str, typer.Option(help="Channels, height and width of an image.")] = "3,32,32",
    classes: Annotated[int, setup.whole("Number of classes.")] = 10,
    batch: Annotated[int, setup.whole("Images in a batch; multiply-adds and bytes are the batch's.")] = 1,
    option: setup.ShortcutOption = None,
    json: setup.Json = False,
) -> None:
    """Show what a network costs, layer by layer.

    Parameters, multiply-adds, bytes kept for backward, totals, and which ResNet it is.
    """
    from tinyres.analysis.summary import summary

    shape = _shape(input)
    options = setup.network_options(model, classes, shape[0], min(shape[1:]), option)
    result = summary(setup.build(model, options), shape, batch)
    setup.report(result.as_dict(), str(result), json)


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.replace("x", ",").split(",")
    if len(sizes) != 3 or not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise typer.BadParameter(f"{text!r} is not a shape; give three positive numbers, like 3,32,32.",
                                 param_hint="--input")
    return tuple(int(size) for size in sizes)
