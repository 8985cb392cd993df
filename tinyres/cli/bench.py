"""`tinyres bench`: how fast training and inference are on this machine, beside PyTorch where that is asked for."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyres.cli import setup, table

if TYPE_CHECKING:
    from tinyres.analysis.workload import Workload

QUIET_MACHINE = """
    The machine must be quiet. PyTorch's threads (OpenMP) and OpenBLAS's wait for each other by spinning, so that any
    other busy process makes their times jump, up to tenfold, and ours far less: the ratios then flatter tinyres. A
    warning is printed if the load average before the start is above half a processor, and "quiet" in the JSON is false.
"""

Model = Annotated[str, typer.Option(help="A network's name, like resnet20 or resnet18.")]
CifarStem = Annotated[bool, typer.Option("--cifar-stem", help="resnet18 and its like with the 3x3 stem for 32x32 "
                                         "images and 10 classes, not for 224x224 and 1000.")]
Shortcuts = Annotated[str, typer.Option("--option", help="Shortcuts that change shape, on both sides: A pads with "
                                        "zeros, B projects, C projects everywhere.")]
Size = Annotated[int | None, setup.whole("Pixels a side of the random images. Default: 32 with a stem for such "
                                         "images, else 224.", 8, 1024)]
Rounds = Annotated[int, setup.whole("How often all sides take their turn.")]
Against = Annotated[str | None, typer.Option(metavar="torch", help="Take turns with PyTorch: eager (NCHW) and "
                                             "channels_last.")]
Out = Annotated[Path | None, typer.Option(help="Draw the times into this .png.")]

app = typer.Typer(rich_markup_mode=None)


def _with_pitfall(command: Any) -> Any:
    """The command, whose help ends with what it needs of the machine."""
    command.__doc__ = f"{inspect.cleandoc(command.__doc__)}\n\n{inspect.cleandoc(QUIET_MACHINE)}"
    return command


@app.callback(invoke_without_command=True)
def bench(context: typer.Context) -> None:
    """Measure how fast tinyres is on this machine."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("step")
@_with_pitfall
def bench_step(
    model: Model = "resnet20",
    batch: Annotated[int, setup.whole("Images in a step.")] = 128,
    cifar_stem: CifarStem = False,
    option: Shortcuts = "B",
    image_size: Size = None,
    rounds: Rounds = 15,
    against: Against = None,
    try_compile: Annotated[bool, typer.Option("--compile", help="Against torch.compile too, if it works here within "
                                              "five minutes; else the reason is told.")] = False,
    memory: Annotated[bool, typer.Option(help="Peak memory too, in a process of its own for each side; with --device "
                                         "cuda always, of the GPU.")] = True,
    profile: Annotated[bool, typer.Option("--profile", help="No race: milliseconds and bytes of each op of ours, "
                                          "beside what the machine could do.")] = False,
    kernels: setup.Kernels = "fast",
    device: setup.Device = "cpu",
    seed: Annotated[int, setup.whole("Of weights and images.", 0)] = 0,
    out: Out = None,
    json: setup.Json = False,
    quiet: setup.Quiet = False,
) -> None:
    """Time one training step: forward, cross-entropy, backward, SGD with momentum and weight decay.

    Against PyTorch, both sides take turns in one process, on the same number of threads, with the same weights and the
    same batch, and their losses are compared. "tinyres takes 0.50 of it" is the ratio of the medians, then come the
    quartiles of the rounds' own ratios, and the ratio of the least times.

    With --device cuda all is timed by events of the GPU: each of our kernel sets; PyTorch also in TF32 and autocast;
    with --compile torch.compile in its modes; and what the GPU could do is measured in the same run.
    """
    from tinyres.analysis import bench_step as analysis

    _check_out(out)
    with_torch = _with_torch(against)
    if try_compile and not with_torch:
        raise typer.BadParameter("it is PyTorch's: give --against torch too.", param_hint="--compile")
    work = _workload(model, batch, cifar_stem, option, image_size, seed)
    setup.use_kernels(kernels)
    setup.use_device(device)
    if device == "cuda":
        return _step_on_gpu(work, rounds, with_torch, try_compile, profile, out, json, quiet)
    if profile:
        return _profile(work, with_torch, rounds, out, json, quiet)
    with setup.telling_of_compilation(quiet or json):
        found = analysis.measure(work, rounds, with_torch, try_compile, memory, lambda text: setup.say(text, quiet))
    _report("step", analysis, found, analysis.heading(found), out, json, quiet)


@app.command("infer")
@_with_pitfall
def bench_infer(
    model: Model = "resnet20",
    batch: Annotated[list[int] | None, setup.whole("Images at a time; may be given several times. Default: 1 and "
                                                   "128.")] = None,
    cifar_stem: CifarStem = False,
    option: Shortcuts = "B",
    image_size: Size = None,
    rounds: Rounds = 15,
    against: Against = None,
    kernels: setup.Kernels = "fast",
    device: setup.Device = "cpu",
    seed: Annotated[int, setup.whole("Of weights and images.", 0)] = 0,
    out: Out = None,
    json: setup.Json = False,
    quiet: setup.Quiet = False,
) -> None:
    """Time inference in eval mode, ours as trained and with batch norm folded into the convolutions.

    Against PyTorch in eval mode and under inference_mode, eager (NCHW) and channels_last, as bench step does it; with
    --device cuda also in TF32 and autocast.
    """
    from tinyres.analysis import bench_infer as analysis

    _check_out(out)
    with_torch = _with_torch(against)
    work = _workload(model, 1, cifar_stem, option, image_size, seed)
    setup.use_kernels(kernels)
    setup.use_device(device)
    batches = list(dict.fromkeys(batch or [1, 128]))
    if device == "cuda":
        from tinyres.analysis import bench_gpu_infer as on_gpu

        found = on_gpu.measure(work, batches, rounds, with_torch, lambda text: setup.say(text, quiet))
        return _report("infer", on_gpu, found, on_gpu.heading(found), out, json, quiet)
    with setup.telling_of_compilation(quiet or json):
        found = analysis.measure(work, batches, rounds, with_torch, lambda text: setup.say(text, quiet))
    _report("infer", analysis, found, analysis.heading(found), out, json, quiet)


@app.command("layers")
@_with_pitfall
def bench_layers(
    batch: Annotated[int | None, setup.whole("Images. Default: 128 of resnet20, 32 of resnet18.")] = None,
    rounds: Rounds = 9,
    against: Against = None,
    out: Out = None,
    json: setup.Json = False,
    quiet: setup.Quiet = False,
) -> None:
    """Time each convolution and batch norm alone: GFLOP/s or GB/s, and the share of what this machine could do."""
    from tinyres.analysis import bench_layers as analysis

    _check_out(out)
    with setup.telling_of_compilation(quiet or json):
        found = analysis.measure(batch, _with_torch(against), rounds, tell=lambda text: setup.say(text, quiet))
    _report("layers", analysis, found, "Convolutions and batch norms, each alone", out, json, quiet)


@app.command("kernels")
def bench_kernels(
    batch: Annotated[int, setup.whole("Images.")] = 128,
    rounds: Rounds = 9,
    out: Out = None,
    json: setup.Json = False,
    quiet: setup.Quiet = False,
) -> None:
    """Time every CUDA kernel alone, on the shapes of ResNet-20: GB/s, TFLOP/s, and the share of what the GPU could do.

    Needs a GPU. Bytes and operations are counted by formula: each array of a kernel once, and the multiplications and
    additions of the direct convolution.
    """
    from tinyres.analysis import bench_gpu_kernels as analysis

    _check_out(out)
    found = analysis.measure(batch, rounds, tell=lambda text: setup.say(text, quiet))
    _report("kernels", analysis, found, f"CUDA kernels on ResNet-20's shapes, batch {batch}", out, json, quiet)


@app.command("peers")
@_with_pitfall
def bench_peers(
    model: Annotated[str, typer.Option(help="A network for small images, like resnet20.")] = "resnet20",
    batch: Annotated[int, setup.whole("Images in a step.")] = 32,
    rounds: Rounds = 5,
    out: Out = None,
    json: setup.Json = False,
    quiet: setup.Quiet = False,
) -> None:
    """Time a training step beside the usual way in NumPy alone: im2col and a matrix product."""
    from tinyres.analysis import bench_peers as analysis

    _check_out(out)
    with setup.telling_of_compilation(quiet or json):
        found = analysis.measure(batch, rounds, model, tell=lambda text: setup.say(text, quiet))
    _report("peers", analysis, found, "A training step by several ways of computing", out, json, quiet)


# --- what the commands share ------------------------------------------------------------------------------------------


def _with_torch(against: str | None) -> bool:
    """Whether PyTorch is asked for. Raises ModuleNotFoundError if it is and is not there."""
    from tinyres.analysis.twins import pytorch

    if against not in (None, "torch"):
        raise typer.BadParameter(f"{against!r}: only torch is known.", param_hint="--against")
    if against is None:
        return False
    try:
        pytorch()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("bench: --against torch, but PyTorch is not installed: pip install torch==2.13.0",
                                  name="torch") from error
    return True


def _step_on_gpu(work: Workload, rounds: int, with_torch: bool, try_compile: bool, profile: bool, out: Path | None,
                 json: bool, quiet: bool) -> None:
    from tinyres.analysis import bench_gpu_step as analysis

    if profile:
        raise typer.BadParameter("it looks at the processor only: see tinyres bench kernels.", param_hint="--profile")
    found = analysis.measure(work, rounds, with_torch, try_compile, lambda text: setup.say(text, quiet))
    _report("step", analysis, found, analysis.heading(found), out, json, quiet)


def _check_out(out: Path | None) -> None:
    """Before minutes are spent."""
    if out is not None and (out.suffix.lower() != ".png" or not out.parent.is_dir()):
        raise typer.BadParameter(f"{out} is not a .png file in a folder that exists.", param_hint="--out")


def _workload(model: str, batch: int, cifar_stem: bool, option: str, size: int | None, seed: int) -> Workload:
    """The network as asked for; an option that it does not take is an error, but for the default of --option."""
    from tinyres import models
    from tinyres.analysis.workload import Workload

    with setup.option("--model"):
        if model not in models.names():
            models.build(model)
    takes = inspect.signature(getattr(models, model)).parameters
    small = cifar_stem or "cifar_stem" not in takes
    options: dict[str, Any] = {"num_classes": 10 if small else 1000, "in_channels": 3}
    if "option" in takes or option != "B":
        options["option"] = option
    if "cifar_stem" in takes or cifar_stem:
        options["cifar_stem"] = cifar_stem
    with setup.option("--cifar-stem" if "cifar_stem" in options and "cifar_stem" not in takes else "--option"):
        models.build(model, **options)
    return Workload(model, options, batch, size or (32 if small else 224), seed)


def _profile(work: Workload, with_torch: bool, rounds: int, out: Path | None, json: bool, quiet: bool) -> None:
    from tinyres.analysis import bench_profile as analysis

    if with_torch:
        raise typer.BadParameter("it looks at our ops only: leave --against out.", param_hint="--profile")
    setup.say(f"profiling {rounds} steps of {work.words()}", quiet)
    with setup.telling_of_compilation(quiet or json):
        found = analysis.measure(work, rounds)
    _report("profile", analysis, found, f"The ops of a training step: {work.words()}", out, json, quiet)


def _report(name: str, analysis: Any, found: dict[str, Any], title: str, out: Path | None, json: bool,
            quiet: bool) -> None:
    """What an analysis found: as JSON; or the machine, and the analysis's table and summary; and the picture."""
    from tinyres.analysis import timing

    if out is not None:
        analysis.draw(found, out)
        setup.say(f"drawn: {out}", quiet)
    if json:
        setup.say(timing.warning(found["machine"]), quiet or not timing.warning(found["machine"]))
        picture = None if out is None else str(out)
        return setup.report({"bench": name, **found, "quiet": found["machine"]["quiet"], "out": picture}, "", True)
    print(timing.in_words(found["machine"]) + "\n")
    table.show(analysis.COLUMNS, analysis.rows(found), title)
    print(analysis.summary(found), flush=True)
