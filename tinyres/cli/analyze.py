"""`tinyres analyze`: the instruments that look inside a network, each with its paper, a table, a figure and JSON.

Here are the instruments of the gradient; those of the function are in analyze_function, and what all set up alike in
analyze_subject. Neither imports this file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tinyres.cli import analyze_function, setup, table
from tinyres.cli.analyze_subject import (
    Batch,
    Data,
    Model,
    Out,
    Seed,
    Subject,
    Weights,
    check_out,
    subject,
)

# Name: what it answers, and where it comes from.
INSTRUMENTS = {
    "gradient-flow": ("norm of the gradient at every block, layer and parameter", "Glorot and Bengio 2010"),
    "growth": ("size of the activations by depth", "Zhang, Dauphin and Ma 2019"),
    "forks": ("what shortcut and branch bring to the gradient at every fork", "He et al. 2016"),
    "paths": ("the gradient by the number of branches it passed, exactly", "Veit et al. 2016"),
    "lesion": ("error without a block, without several, and with blocks exchanged", "Veit et al. 2016"),
    "shattering": ("how alike the gradients of neighbouring inputs are", "Balduzzi et al. 2017"),
    "surface": ("the loss around the weights, along one or two directions", "Li et al. 2018"),
    "hessian": ("the largest and smallest eigenvalues of the loss's Hessian", "Ghorbani et al. 2019"),
    "features": ("feature maps of a layer, or of branch, shortcut and sum", "He et al. 2015"),
}

Eval = Annotated[bool, typer.Option("--eval", help="As after training: batch norm by its running statistics, no "
                                                   "dropout. Default: as in training.")]
To = Annotated[str, typer.Option(help="Split the gradient at the first block's input (block) or at the images.")]
Check = Annotated[bool, typer.Option("--check", help="Also go through all 2^n paths one by one (at most 10 blocks).")]

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def analyze(context: typer.Context, json: setup.Json = False) -> None:
    """List the instruments that look inside a network, or use one."""
    if context.invoked_subcommand is not None and json:
        raise typer.BadParameter(f"give it after {context.invoked_subcommand}.", param_hint="--json")
    if context.invoked_subcommand is None:
        listed = [{"name": name, "shows": shows, "source": source} for name, (shows, source) in INSTRUMENTS.items()]
        if json:
            setup.report({"instruments": listed}, "", True)
        else:
            table.show((("tinyres analyze", "left"), ("shows", "left"), ("source", "left")),
                       [list(row.values()) for row in listed])


def finish(seen: Subject, seed: int, found: dict[str, Any], text: str, json: bool, out: Path | None,
           draw: Callable[[Path, str], None]) -> None:
    """Draw the figure if it is asked for, then report: the instrument's numbers, and what it looked at."""
    if out is not None:
        draw(out, f"{seen.name}, {len(seen.labels)} images of {seen.as_dict()['data']}, seed {seed}")
    setup.report(seen.as_dict() | {"seed": seed, "figure": None if out is None else str(out)} | found, text, json)
    if out is not None and not json:
        setup.say(f"drawn: {out}")


def cells(values: list[Any]) -> list[str]:
    """Numbers as texts, four digits of each; a dash for what is not defined."""
    return ["-" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in values]


def right(*headings: str) -> list[tuple[str, str]]:
    """Columns of numbers."""
    return [(heading, "right") for heading in headings]


@app.command("gradient-flow")
def show_gradient_flow(
    model: Model = None,
    weights: Weights = None,
    model_option: setup.ModelOption = None,
    data: Data = None,
    data_dir: setup.DataDir = None,
    batch: Batch = 64,
    seed: Seed = 0,
    evaluating: Eval = False,
    out: Out = None,
    kernels: setup.Kernels = "fast",
    json: setup.Json = False,
) -> None:
    """Show how large the gradient is at the output of every block and layer, and at every parameter."""
    from tinyres.analysis.gradient_flow import draw, gradient_flow

    check_out(out)
    setup.use_kernels(kernels)
    seen = subject(model, weights, model_option, data, data_dir, batch, seed)
    flow = gradient_flow(seen.network, seen.images, seen.labels, training=not evaluating)
    outputs = [[row.name, row.type, *cells([row.norm, row.rms])] for row in flow.outputs]
    parameters = [[row.name, *cells([row.gradient, row.value, row.ratio])] for row in flow.parameters]
    text = "\n\n".join([
        table.plain([("output of", "left"), ("type", "left"), *right("gradient's norm", "rms")], outputs),
        table.plain([("parameter", "left"), *right("gradient's norm", "own norm", "ratio")], parameters),
    ])
    finish(seen, seed, flow.as_dict(), text, json, out, lambda path, title: draw(flow, path, title))


@app.command("growth")
def show_growth(
    model: Model = None,
    weights: Weights = None,
    model_option: setup.ModelOption = None,
    data: Data = None,
    data_dir: setup.DataDir = None,
    batch: Batch = 64,
    seed: Seed = 0,
    evaluating: Eval = False,
    out: Out = None,
    kernels: setup.Kernels = "fast",
    json: setup.Json = False,
) -> None:
    """Show how large the activations are by depth; growth is beside the first block's input."""
    from tinyres.analysis.activation_growth import activation_growth, draw

    check_out(out)
    setup.use_kernels(kernels)
    seen = subject(model, weights, model_option, data, data_dir, batch, seed)
    growth = activation_growth(seen.network, seen.images, training=not evaluating)
    rows = [[row.name, row.type, *cells([row.mean, row.std, row.rms, row.growth])] for row in growth.outputs]
    text = table.plain([("output of", "left"), ("type", "left"), *right("mean", "std", "rms", "growth")], rows)
    finish(seen, seed, growth.as_dict(), text, json, out, lambda path, title: draw(growth, path, title))


@app.command("forks")
def show_forks(
    model: Model = None,
    weights: Weights = None,
    model_option: setup.ModelOption = None,
    data: Data = None,
    data_dir: setup.DataDir = None,
    batch: Batch = 64,
    seed: Seed = 0,
    evaluating: Eval = False,
    out: Out = None,
    kernels: setup.Kernels = "fast",
    json: setup.Json = False,
) -> None:
    """Show what each consumer of a tensor brings to its gradient, above all shortcut and branch of every block.

    The share of the shortcut is its part along the whole gradient; with the branch's it makes 1.
    """
    from tinyres.analysis.forks import draw, split_of_gradient

    check_out(out)
    setup.use_kernels(kernels)
    seen = subject(model, weights, model_option, data, data_dir, batch, seed)
    split = split_of_gradient(seen.network, seen.images, seen.labels, training=not evaluating)
    if out is not None and not split.residual:
        raise typer.BadParameter(f"{seen.name} has no residual blocks, so there is no figure; leave it out.",
                                 param_hint="--out")
    rows = [[f.name, f.contributions[0].consumer,
             *cells([f.contributions[0].norm, f.branch, f.cosine, f.norm, f.share])] for f in split.forks]
    text = table.plain([("fork", "left"), ("first consumer", "left"),
                        *right("its norm", "the others'", "cosine", "whole", "its share")], rows)
    finish(seen, seed, split.as_dict(), text if rows else "no tensor has several consumers", json, out,
           lambda path, title: draw(split, path, title))


@app.command("paths")
def show_paths(
    model: Model = None,
    weights: Weights = None,
    model_option: setup.ModelOption = None,
    data: Data = None,
    data_dir: setup.DataDir = None,
    batch: Batch = 16,
    seed: Seed = 0,
    evaluating: Eval = False,
    to: To = "block",
    check: Check = False,
    out: Out = None,
    kernels: setup.Kernels = "fast",
    json: setup.Json = False,
) -> None:
    """Split the gradient by the number of residual branches that it passed, in float64.

    With --check, exit status 1 if all paths one by one give something else.
    """
    import numpy as np

    from tinyres.analysis.norms import finite, norm
    from tinyres.analysis.path_spectrum import draw, path_gradients, path_gradients_by_force, path_spectrum

    check_out(out)
    setup.use_kernels(kernels)
    if to not in ("block", "images"):
        raise typer.BadParameter(f"{to!r}: give block or images.", param_hint="--to")
    seen = subject(model, weights, model_option, data, data_dir, batch, seed)
    network = copy.deepcopy(seen.network).double()
    given = network, seen.images.data.astype("float64"), seen.labels, to, not evaluating
    with setup.option("--check"):
        forced = path_gradients_by_force(*given) if check else []
    spectrum = path_spectrum(*given)
    found = spectrum.as_dict()
    rows = [cells([row.length, row.paths, row.norm, row.share_of_norms, row.share]) for row in spectrum.lengths]
    text = [table.plain(right("branches", "paths", "norm", "share of norms", "share of gradient"), rows),
            f"sum of all lengths against backward(): {cells([spectrum.error])[0]}"]
    if check:
        coefficients = path_gradients(*given)[0]
        apart = np.array([norm(a - b) for a, b in zip(coefficients, forced, strict=True)])
        error = finite(norm(apart) / (spectrum.norm or 1.0))
        found |= {"check": error, "passed": error is not None and error < 1e-9}
        text.append(f"against all 2^{len(spectrum.blocks)} paths one by one: {cells([error])[0]}")
    finish(seen, seed, found, "\n".join(text), json, out, lambda path, title: draw(spectrum, path, title))
    if not found.get("passed", True):
        raise typer.Exit(1)


app.command("lesion")(analyze_function.remove_blocks)
app.command("shattering")(analyze_function.shatter)
app.command("surface")(analyze_function.map_loss)
app.command("hessian")(analyze_function.bend_loss)
app.command("features")(analyze_function.show_maps)
