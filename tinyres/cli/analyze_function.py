"""`tinyres analyze`, the instruments of the function: lesion, shattering, surface, hessian, features.

What each measures, and its paper, is told in the module of its name in tinyres.analysis.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tinyres.cli import setup, table
from tinyres.cli.analyze_subject import Batch, Data, Model, Out, Seed, Subject, Weights, check_out, subject

Statistics = Annotated[str, typer.Option(help="Batch norm's: running, or batch, each point's own.")]


def remove_blocks(
    model: Model = None,
    weights: Weights = None,
    model_option: setup.ModelOption = None,
    data: Data = None,
    data_dir: setup.DataDir = None,
    batch: Batch = 256,
    trials: Annotated[int, setup.whole("Draws of each number of blocks, and of exchanges.")] = 5,
    seed: Seed = 0,
    out: Out = None,
    kernels: setup.Kernels = "fast",
    json: setup.Json = False,
) -> None:
    """Show which blocks a trained network needs, by removing and exchanging them (Veit et al. 2016).

    Error on test images without each block, without several, and with blocks in another order.
    """
    from tinyres.analysis import lesion as instrument

    found = _begin(out, kernels, model, weights, model_option, data, data_dir, batch, seed, "test")
    if weights is None:
        setup.say("these are new weights, with which any network guesses; give trained ones by --weights")
    result = instrument.lesion(found.network, found.images, found.labels, trials=trials, seed=seed)
    if out is not None:
        instrument.draw(result, out, found.name)
    if not json:
        columns = [("removed", "left"), ("type", "left"), ("output", "left"), ("loss", "right"), ("accuracy", "right")]
        rows = [["nothing", "", "", *_cells(result.intact)]]
        rows += [[place.block, place.type, "x".join(map(str, place.output)), *_cells(trial.score)]
                 for trial in result.single for place in [result.places[trial.removed[0]]]]
        for word, groups in (("block", result.several), ("exchange", result.swapped)):
            rows += [[f"{n} {word}{'s' * (n > 1)} at random", f"median of {len(trials)}", "", *_median(trials)]
                     for n, trials in groups.items()]
        table.show(columns, rows)
    _end(found, seed, result.as_dict(), "", out, json)


def shatter(
    model: Model = None,
    weights: Weights = None,
    model_option: setup.ModelOption = None,
    data: Data = None,
    data_dir: setup.DataDir = None,
    batch: Annotated[int, setup.whole("Images among which the two are the first of different classes.", 2)] = 32,
    grid: Annotated[bool, typer.Option("--grid", help="Inputs from -2 to 2 instead of images; for networks of one "
                                       "number, as residual_mlp, with new weights.")] = False,
    seeds: Annotated[int, setup.whole("With --grid: so many networks, from --seed on.")] = 8,
    points: Annotated[int, setup.whole("Inputs on the line.", 4)] = 256,
    lags: Annotated[int, setup.whole("The longest distance, in points.")] = 20,
    statistics: Annotated[str, typer.Option(help="Batch norm's: running, or line, those of the inputs on the line. "
                                            "Default: line for new weights.")] = "",
    seed: Seed = 0,
    out: Out = None,
    kernels: setup.Kernels = "fast",
    json: setup.Json = False,
) -> None:
    """Show how alike the gradients of neighbouring inputs are (Balduzzi et al. 2017).

    Autocorrelation of dy/dx along a line between two images of different classes, y being the first one's logit; or
    with --grid along a line of numbers.
    """
    from tinyres.analysis import shattering as instrument

    if grid:
        for hint, given in (("--weights", weights), ("--data", data), ("--data-dir", data_dir),
                            ("--statistics", statistics or None)):
            if given is not None:
                raise typer.BadParameter(f"it takes new weights and numbers from -2 to 2; leave {hint} out.",
                                         param_hint="--grid")
        return _shatter_grid(model, model_option, seeds, points, lags, seed, out, kernels, json)
    found = _begin(out, kernels, model, weights, model_option, data, data_dir, batch, seed, "test")
    other = int((found.labels != found.labels[0]).argmax()) or 1
    result = instrument.shattering(found.network, found.images.data[0], found.images.data[other], points, lags,
                                   int(found.labels[0]), statistics or ("line" if weights is None else "running"))
    if out is not None:
        instrument.draw(result, out, found.name)
    shown = [lag for lag in (1, 2, 5, 10, 20, 50, 100) if lag <= lags]
    text = "\n".join(f"autocorrelation at lag {lag}: {result.autocorrelation[lag]:.3f}" for lag in shown)
    _end(found, seed, result.as_dict(), text, out, json)


def _shatter_grid(model: str | None, own: list[str] | None, seeds: int, points: int, lags: int, seed: int,
                  out: Path | None, kernels: str, json: bool) -> None:
    """The paper's own setting: functions of one number, with new weights, averaged over seeds."""
    import numpy as np

    from tinyres.analysis import shattering as instrument

    check_out(out)
    setup.use_kernels(kernels)
    name = (model or "residual_mlp").replace("-", "_")
    options = setup.network_options(name, 1, 1, 1, None, own or ())
    if "in_features" not in options:
        raise typer.BadParameter(f"{name} takes images; use a network of numbers, as residual_mlp or plain_mlp.",
                                 param_hint="--model")
    results = instrument.over_seeds(lambda: setup.build(name, options), range(seed, seed + seeds), [-2.0], [2.0],
                                    points=points, lags=lags)
    if out is not None:
        instrument.draw({name: results}, out)
    curves = np.array([one.autocorrelation for one in results])
    shown = [lag for lag in (1, 2, 5, 10, 20, 50, 100) if lag <= lags]
    lines = [f"{name}, {seeds} seeds: mean autocorrelation of dy/dx (lowest to highest)"]
    lines += [f"lag {lag}: {c.mean():.3f} ({c.min():.3f} to {c.max():.3f})" for lag in shown for c in [curves[:, lag]]]
    report: dict[str, Any] = {"model": name, "options": options, "seeds": list(range(seed, seed + seeds)),
                              "points": points, "autocorrelation": curves.mean(axis=0).tolist(),
                              "by_seed": curves.tolist(), "figure": None if out is None else str(out)}
    setup.report(report, "\n".join(lines), json)


def map_loss(
    model: Model = None,
    weights: Weights = None,
    model_option: setup.ModelOption = None,
    data: Data = None,
    data_dir: setup.DataDir = None,
    batch: Batch = 128,
    steps: Annotated[int, setup.whole("Points in each direction, an odd number.", 3)] = 21,
    span: Annotated[float, setup.number("How far to go, 1 being as far as the weights are long.")] = 1.0,
    dimensions: Annotated[int, setup.whole("1, a curve, or 2, a surface.", 1, 2)] = 2,
    statistics: Statistics = "running",
    seed: Seed = 0,
    out: Out = None,
    kernels: setup.Kernels = "fast",
    json: setup.Json = False,
) -> None:
    """Map the loss around the weights, along random directions scaled filter by filter (Li et al. 2018)."""
    from tinyres.analysis import loss_surface as instrument

    found = _begin(out, kernels, model, weights, model_option, data, data_dir, batch, seed)
    result = instrument.loss_surface(found.network, found.images, found.labels, steps, span, dimensions, statistics,
                                     seed)
    if out is not None:
        instrument.draw(result, out, found.name)
    text = (f"loss {result.centre:.4g} at the weights, {result.losses.min():.4g} to {result.losses.max():.4g} within "
            f"{span:g} of them; {result.concave_share:.0%} of the second differences are negative")
    _end(found, seed, result.as_dict(), text, out, json)


def bend_loss(
    model: Model = None,
    weights: Weights = None,
    model_option: setup.ModelOption = None,
    data: Data = None,
    data_dir: setup.DataDir = None,
    batch: Batch = 64,
    largest: Annotated[int, setup.whole("How many of the largest eigenvalues.", 0)] = 5,
    smallest: Annotated[int, setup.whole("How many of the smallest, the most negative.", 0)] = 1,
    iterations: Annotated[int, setup.whole("Products with the Hessian at most.")] = 100,
    tolerance: Annotated[float, setup.number("Residual, as a share of the largest eigenvalue.")] = 1e-4,
    training: Annotated[bool, typer.Option("--training", help="With batch norm's batch statistics.")] = False,
    seed: Seed = 0,
    out: Out = None,
    kernels: setup.Kernels = "fast",
    json: setup.Json = False,
) -> None:
    """Find the extreme eigenvalues of the loss's Hessian by Lanczos (Ghorbani et al. 2019, Yao et al. 2020).

    In float64, on training images.
    """
    from tinyres.analysis import hessian as instrument

    found = _begin(out, kernels, model, weights, model_option, data, data_dir, batch, seed)
    result = instrument.hessian_eigenvalues(found.network, found.images, found.labels, largest, smallest, iterations,
                                            tolerance, training, seed=seed)
    if out is not None:
        instrument.draw(result, out, found.name)
    _end(found, seed, result.as_dict(), str(result), out, json)


def show_maps(
    layer: Annotated[str, typer.Option(help="A module's name; a residual block shows shortcut, branch and sum.")] =
        "layer1.0",
    model: Model = None,
    weights: Weights = None,
    model_option: setup.ModelOption = None,
    data: Data = None,
    data_dir: setup.DataDir = None,
    batch: Batch = 8,
    seed: Seed = 0,
    out: Out = None,
    kernels: setup.Kernels = "fast",
    json: setup.Json = False,
) -> None:
    """Show a layer's feature maps; of a block, what branch and shortcut bring to its sum (He et al. 2015)."""
    from tinyres.analysis import feature_maps as instrument

    found = _begin(out, kernels, model, weights, model_option, data, data_dir, batch, seed, "test")
    with setup.option("--layer"):
        try:
            result = instrument.feature_maps(found.network, found.images, layer)
        except AttributeError as error:
            raise ValueError(str(error)) from error
    if out is not None:
        instrument.draw(result, out, found.name)
    said = result.as_dict()
    if not json:
        columns = [("part", "left"), ("maps", "left"), *((n, "right") for n in ("mean", "std", "norm", "zeros"))]
        table.show(columns, [[name, "x".join(map(str, part["shape"])),
                              *("-" if part[key] is None else f"{part[key]:.4g}" for key in ("mean", "std", "norm")),
                              f"{part['zeros']:.1%}"] for name, part in said["parts"].items()])
    _end(found, seed, said, "", out, json)


def _begin(out: Path | None, kernels: str, model: str | None, weights: Path | None, own: list[str] | None,
           data: str | None, data_dir: Path | None, batch: int, seed: int, split: str = "train") -> Subject:
    """What is wrong with the options comes before anything is computed."""
    check_out(out)
    setup.use_kernels(kernels)
    return subject(model, weights, own, data, data_dir, batch, seed, split)


def _end(found: Subject, seed: int, result: dict[str, Any], text: str, out: Path | None, json: bool) -> None:
    """Report the result, what it is of, and where its figure is."""
    figure = None if out is None else str(out)
    if json or text:
        setup.report(found.as_dict() | {"seed": seed, "figure": figure} | result, text, json)
    if figure is not None and not json:
        setup.say(f"drawn: {figure}")


def _cells(score: Any) -> list[str]:
    return [f"{score.loss:.4f}", f"{score.accuracy:.2%}"]


def _median(trials: Any) -> list[str]:
    from statistics import median

    return [f"{median(t.score.loss for t in trials):.4f}", f"{median(t.score.accuracy for t in trials):.2%}"]
