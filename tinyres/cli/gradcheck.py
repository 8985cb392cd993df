"""`tinyres gradcheck`: a network's backward pass against finite differences, in float64."""

from __future__ import annotations

from typing import Annotated

import typer

from tinyres.cli import setup


def check_gradients(
    model: Annotated[str, typer.Option(help="A network's name, like resnet20.")] = "resnet8",
    order: Annotated[int, typer.Option(min=1, max=2, help="1: gradients; 2: Hessian-vector products.")] = 1,
    size: Annotated[int, typer.Option(min=1, help="Height and width of the random images.")] = 16,
    channels: Annotated[int, typer.Option(min=1, help="Channels of the images.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Images in the batch.")] = 4,
    classes: Annotated[int, typer.Option(min=1, help="Number of classes.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, images and directions.")] = 0,
    option: setup.ShortcutOption = None,
    kernels: setup.Kernels = "fast",
    json: setup.Json = False,
) -> None:
    """Check a network's gradients by finite differences, on a float64 copy with random images.

    Exit status 1 if the check does not pass.
    """
    from tinyres import ops, random
    from tinyres.analysis.gradcheck import gradcheck

    setup.use_kernels(kernels)
    random.manual_seed(seed)
    options = setup.network_options(model, classes, channels, size, option)
    network = setup.build(model, options)
    images = ops.randn((batch, channels, size, size), dtype="float64")
    result = gradcheck(network, images, order=order, seed=seed)
    found = {"passed": bool(result.passed), "max_relative_error": float(result.max_relative_error)}
    setup.report(found | {"model": model, "order": order, "kernels": kernels, "seed": seed}, str(result), json)
    if not result.passed:
        raise typer.Exit(1)
