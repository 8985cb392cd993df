"""`tinyres step`: watch one backward pass, step by step, in the terminal, or write it as a page, a picture or JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tinyres.cli import setup
from tinyres.cli.analyze_subject import RANDOM, Seed, Weights
from tinyres.cli.step_subject import BATCH, MODEL, Walk, check_alone, example_walk, file_walk, network_walk, running

VIEWS = ("blocks", "ops")
ENDINGS = {"--html": (".html", ".htm"), "--json-trace": (".json",), "--svg": (".svg",), "--png": (".png",),
           "--dot": (".dot", ".gv")}


def step_through(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", show_default=False, help="A Python file of your own "
                                                "that defines loss(), or model, images and labels. Its code is run.",
                                                )] = None,
    model: Annotated[str | None, typer.Option(help=f"A network's name. Default: what the weights tell, else {MODEL}.")
                     ] = None,
    weights: Weights = None,
    model_option: setup.ModelOption = None,
    example: Annotated[str | None, typer.Option(help="A small example in place of a network: residual (a block with "
                                                     "every gradient worked out by hand), fork, batchnorm, conv or "
                                                     "concat.")] = None,
    data: Annotated[str | None, setup.data_option(f" {RANDOM}: normal images of 3x32x32. Default: the run's, else "
                                                  "digits.")] = None,
    data_dir: setup.DataDir = None,
    batch: Annotated[int | None, setup.whole(f"Images in the batch. Default: {BATCH}.")] = None,
    seed: Seed = 0,
    evaluating: Annotated[bool, typer.Option("--eval", help="As after training: batch norm by its running statistics, "
                                                            "no dropout. Default: as in training.")] = False,
    float64: Annotated[bool, typer.Option("--float64", help="In double precision.")] = False,
    view: Annotated[str, typer.Option(help="Begin with a step a layer (blocks) or a step an op (ops).")] = "blocks",
    forward: Annotated[bool, typer.Option("--forward", help="Begin with the forward pass.")] = False,
    predict: Annotated[bool, typer.Option("--predict", help="Ask before a step is shown, and keep a score.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page for the browser, one .html file.")] = None,
    json_trace: Annotated[Path | None, typer.Option(help="Write all that was recorded as a .json file.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw the graph into this .svg file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the graph into this .png file.")] = None,
    dot: Annotated[Path | None, typer.Option(help="Write the graph for Graphviz into this .dot file.")] = None,
    kernels: setup.Kernels = "reference",
    json: setup.Json = False,
) -> None:
    """Step through a backward pass: what comes to each layer, what it hands on, what is added at a fork.

    In a terminal the steps are walked by keys (? lists them). Where the output is piped, all steps come as plain text.
    With --html, --json-trace, --svg, --png or --dot files are written instead.

    Exit status 1 if the forward pass stops before the loss, as where shapes do not fit; what met what is then shown.
    """
    outputs = {"--html": html, "--json-trace": json_trace, "--svg": svg, "--png": png, "--dot": dot}
    files = {option: path for option, path in outputs.items() if path is not None}
    for option, path in files.items():
        _check_output(option, path)
    if view not in VIEWS:
        raise typer.BadParameter(f"{view!r}: give blocks or ops.", param_hint="--view")
    interactive = not json and not files and sys.stdin.isatty() and sys.stdout.isatty()
    if predict and not interactive:
        raise typer.BadParameter("it asks in a terminal, and here is none to ask in; leave it out (a page by --html "
                                 "has a button for it).", param_hint="--predict")
    if forward and (json or files):
        raise typer.BadParameter("it is about the text and the terminal; leave it out (in a page press d).",
                                 param_hint="--forward")
    check_alone(file, example, {
        "--model": model is not None, "--weights": weights is not None, "--model-option": bool(model_option),
        "--data": data is not None, "--data-dir": data_dir is not None, "--batch": batch is not None,
        "--eval": evaluating})
    setup.use_kernels(kernels)
    if file is not None:
        walk = file_walk(file, float64)
    elif example is not None:
        walk = example_walk(example)  # in float64 anyway
    else:
        walk = network_walk(model, weights, model_option, data, data_dir, batch, seed, evaluating, float64)
    stepper = _recorded(walk, seed)
    for option, path in files.items():
        _write(stepper, option, path, view)
    if json:
        setup.report(_result(stepper.trace, walk, kernels, files), "", True)
    elif files:
        print(_summary(stepper.trace))
        for path in files.values():
            setup.say(f"written: {path}, {path.stat().st_size:,} bytes")
    else:
        with running(walk.file):  # a check moves an element and runs it again
            stepper.terminal(view=view, direction="forward" if forward else "backward", predict=predict)
    if stepper.trace.stopped is not None:
        raise typer.Exit(1)


def _check_output(option: str, path: Path) -> None:
    """Raise the error for a file that could not be written, before anything is computed."""
    endings = ENDINGS[option]
    if path.suffix.lower() not in endings:
        raise typer.BadParameter(f"{path}: give a name that ends in {' or '.join(endings)}.", param_hint=option)
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"{path}: there is no folder {path.parent}; make it first.", param_hint=option)
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; give the name of a file.", param_hint=option)


def _recorded(walk: Walk, seed: int) -> Any:
    """The recording. The random numbers of the forward pass, as dropout's, are the seed's."""
    from tinyres import random
    from tinyres.stepper import step

    random.manual_seed(seed)
    with running(walk.file):
        return step(walk.run, walk.title, names=walk.names)


def _write(stepper: Any, option: str, path: Path, view: str) -> None:
    if option == "--json-trace":
        stepper.to_json(path)
    else:
        write = {"--html": stepper.to_html, "--svg": stepper.to_svg, "--png": stepper.to_png, "--dot": stepper.to_dot}
        write[option](path, view=view)


def _summary(trace: Any) -> str:
    """What was recorded, in a line; where the forward pass stopped, why."""
    if trace.stopped is not None:
        return "\n".join([f"{trace.title}: {trace.stopped.message}", *trace.stopped.text, *trace.stopped.fixes])
    from tinyres.stepper.short import number, size

    forks = sum(group.fork is not None for group in trace.groups)
    return (f"{trace.title}: loss {number(trace.loss)}, {len(trace.block_steps)} steps by layer, "
            f"{len(trace.backward)} by op, {forks} {'fork' if forks == 1 else 'forks'}, {size(trace.held)} kept")


def _result(trace: Any, walk: Walk, kernels: str, files: dict[str, Path]) -> dict[str, Any]:
    """What --json prints: the forks with what came to them, in the order of the backward pass, and the totals."""
    from tinyres.stepper.words import label

    forks = []
    for id in trace.block_steps:
        group = trace.groups[id]
        if group.fork is not None:
            whole = trace.nodes[group.output].gradient
            arrivals = [{"from": label(trace, "blocks", a.consumer), "route": a.route, "norm": a.norm,
                         "cosine": a.cosine, "share": a.share} for a in group.fork.arrivals]
            forks.append({"at": label(trace, "blocks", id), "shape": list(whole.shape), "norm": whole.norm,
                          "residual": group.fork.residual, "identity_share": group.fork.identity_share,
                          "arrivals": arrivals})
    stopped = trace.stopped
    return walk.about | {
        "kernels": kernels, "dtype": trace.dtype, "loss": trace.loss, "nodes": len(trace.nodes),
        "steps": {"blocks": len(trace.block_steps), "ops": len(trace.backward)}, "held_bytes": trace.held,
        "forks": forks, "notes": trace.notes,
        "stopped": None if stopped is None else {"op": stopped.op, "message": stopped.message, "fixes": stopped.fixes},
        "files": [str(path) for path in files.values()]}
