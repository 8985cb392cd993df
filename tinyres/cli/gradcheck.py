"""`tinyres gradcheck`: a network's backward pass against finite differences, in float64."""

from __future__ import annotations

from typing import Annotated

import typer

from tinyres.cli import setup


def check_gradients(
    model: Annotated[str, typer.Option(help="A network's name, like resnet20.")] = "resnet8",
    order: Annotated[int, setup.whole("1: gradients; 2: Hessian-vector products.", 1, 2)] = 1,
    size: Annotated[int, setup.whole("Height and width of the random images.")] = 16,
    channels: Annotated[int, setup.whole("Channels of the images.")] = 3,
    batch: Annotated[int, setup.whole("Images in the batch.")] = 4,
    classes: Annotated[int, setup.whole("Number of classes.")] = 10,
    seed: Annotated[int, setup.whole("Of weights, images and directions.", 0)] = 0,
    option: setup.ShortcutOption = None,
    model_option: setup.ModelOption = None,
    kernels: setup.Kernels = "fast",
    json: setup.Json = False,
) -> None:
    """Check gradients by finite differences.

    On a float64 copy of the network, with random images and random directions.

    Exit status 1 if the check does not pass.
    """
    from tinyres import ops, random
    from tinyres.analysis.gradcheck import gradcheck

    setup.use_kernels(kernels)
    random.manual_seed(seed)
    options = setup.network_options(model, classes, channels, size, option, model_option or ())
    network = setup.build(model, options)
    images = ops.randn((batch, channels, size, size), dtype="float64")
    # A new network has scales 1 and shifts 0, where a forgotten factor would not show: nudge them.
    result = gradcheck(network, images, order=order, seed=seed, nudge=0.1)
    found = {"passed": bool(result.passed), "max_relative_error": float(result.max_relative_error)}
    setup.report(found | {"model": model, "order": order, "kernels": kernels, "seed": seed}, str(result), json)
    if not result.passed:
        raise typer.Exit(1)
