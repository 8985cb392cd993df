"""`tinyres train`: from a data set's name to a folder with log, figure, checkpoint and result."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Annotated, Any

import typer

from tinyres.cli import setup


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how."""

    model: str
    epochs: int
    batch: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "onecycle"
    label_smoothing: float = 0.0
    augment: bool = True


# The digits' were chosen by cross-validation on the training images alone.
RECIPES = {
    "digits": Recipe("resnet8", epochs=40, batch=64, lr=0.1, weight_decay=1e-2, schedule="cosine"),
    "cifar10": Recipe("resnet20", epochs=30, batch=128, lr=0.1),
    "cifar100": Recipe("resnet20", epochs=30, batch=128, lr=0.1),
}
SCHEDULES = ("cosine", "onecycle", "he2015", "constant")
KEPT = "config.json"


Smoothing = Annotated[float | None, setup.number("Share of the target spread over all classes. Default: 0.", most=1)]
Augment = Annotated[bool | None, typer.Option("--augment/--no-augment", help="Random crops, and flips but for digits. "
                                              "Default: on.")]
Freeze = Annotated[list[str] | None, typer.Option(help="Do not train the parameters whose dotted name matches, like "
                                                  "'*conv*.weight', or contains, like conv. May be repeated.")]
Validate = Annotated[bool, typer.Option("--validate", help="Hold back a fixed part of the training images and read it "
                                        "after every epoch.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/DATA-MODEL-seedSEED, or the first of "
                                          "that name with -2, -3, ... that is not there.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with the run in this folder, with its options.")]
ScheduleName = Annotated[str | None, typer.Option(help="cosine, onecycle, constant, or he2015: a tenth of the rate "
                                                  "after 1/2, a hundredth after 3/4. Default: cosine on digits, else "
                                                  "onecycle.")]


def train_network(
    context: typer.Context,
    data: Annotated[str, typer.Option(help="digits (embedded), cifar10 or cifar100.")] = "digits",
    data_dir: setup.DataDir = None,
    model: Annotated[str | None, typer.Option(help="A network. Default: resnet8 on digits, else resnet20.")] = None,
    option: setup.ShortcutOption = None,
    epochs: Annotated[int | None, setup.whole("Passes over the images. Default: 40 on digits, else 30.")] = None,
    batch: Annotated[int | None, setup.whole("Images a step. Default: 64 on digits, else 128.")] = None,
    lr: Annotated[float | None, setup.number("Learning rate, at its highest. Default: 0.1.")] = None,
    momentum: Annotated[float | None, setup.number("Nesterov's; 0 for none. Default: 0.9.", most=0.9999)] = None,
    weight_decay: Annotated[float | None, setup.number("Default: 0.01 on digits, else 0.0005.")] = None,
    schedule: ScheduleName = None,
    label_smoothing: Smoothing = None,
    augment: Augment = None,
    freeze: Freeze = None,
    validate: Validate = False,
    seed: Annotated[int, setup.whole("Fixes weights, order and augmentation.", 0)] = 0,
    seeds: Annotated[int, setup.whole("Train so many networks, with seeds SEED, SEED + 1, ...")] = 1,
    out: Out = None,
    resume: Resume = None,
    checkpoint_every: Annotated[int, setup.whole("Save also after so many batches; 0: after epochs only.", 0)] = 0,
    kernels: setup.Kernels = "fast",
    json: setup.Json = False,
    quiet: setup.Quiet = False,
) -> None:
    """Train a network, then test it once.

    Without options: a small ResNet on the embedded digits, to more than 98 % of the test images in less than a minute.
    The folder gets config.json, log.csv, log.jsonl, curves.png, a checkpoint and result.json. Accuracy is the last
    epoch's, as a share from 0 to 1.
    """
    if resume is not None:
        config, folder = _config_of(resume, context), resume
        result = run(config, folder, checkpoint_every, resume=True, quiet=quiet)
        return setup.report(result, _sentence(result, folder), json)
    setup.check_data_name(data)
    given: dict[str, Any] = {
        "model": model, "epochs": epochs, "batch": batch, "lr": lr, "momentum": momentum, "weight_decay": weight_decay,
        "schedule": schedule, "label_smoothing": label_smoothing, "augment": augment,
    }
    recipe = replace(RECIPES[data], **{key: value for key, value in given.items() if value is not None})
    if recipe.schedule not in SCHEDULES:
        raise typer.BadParameter(f"{recipe.schedule!r} is none of {', '.join(SCHEDULES)}.", param_hint="--schedule")
    results = []
    for number in range(seed, seed + seeds):
        config = {"data": data, "data_dir": None if data_dir is None else str(data_dir.absolute()), **asdict(recipe),
                  "option": option, "freeze": freeze or [], "validate": validate, "seed": number, "kernels": kernels}
        base = f"{data}-{recipe.model}-seed{number}"
        folder = _fresh_folder(out / f"seed{number}" if out is not None and seeds > 1 else out, base)
        results.append(run(config, folder, checkpoint_every, resume=False, quiet=quiet))
        if seeds > 1:
            setup.say(_sentence(results[-1], folder), quiet)
    if seeds == 1:
        setup.report(results[0], _sentence(results[0], folder), json)
    else:
        _report_seeds(results, json)


def run(config: dict[str, Any], folder: Path, checkpoint_every: int, resume: bool, quiet: bool) -> dict[str, Any]:
    """Train what `config` says, in `folder`; returns the result that result.json holds."""
    from tinyres import data as datasets
    from tinyres import random
    from tinyres.analysis.curves import draw_curves
    from tinyres.files import write_atomically
    from tinyres.train import evaluate, freeze, train

    began = time.perf_counter()
    setup.use_kernels(config["kernels"])
    random.manual_seed(config["seed"])
    training = datasets.load(config["data"], "fit" if config["validate"] else "train", config["data_dir"])
    validation = datasets.load(config["data"], "validation", config["data_dir"]) if config["validate"] else None
    test = datasets.load(config["data"], "test", config["data_dir"])
    channels, size = training.images.shape[1:3]
    options = setup.network_options(config["model"], len(training.classes), channels, size, config["option"])
    model = setup.build(config["model"], options)
    for pattern in config["freeze"]:
        with setup.option("--freeze"):
            freeze(model, pattern)
    transforms = datasets.augment.standard(config["data"]) if config["augment"] else ()
    with setup.option("--batch"):
        loader = datasets.Loader(training, config["batch"], True, config["seed"], transforms, drop_last=True)
    optimizer, schedule = _optimizer(model, config, len(loader))
    if not resume:
        statistics = {"mean": training.mean.tolist(), "std": training.std.tolist()}
        config = config | {"network": options, "normalisation": statistics, "threads": setup.threads(),
                           "versions": setup.versions()}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / KEPT, setup.pretty(config))
    elif config["threads"] != setup.threads():
        setup.say(f"this run began with {config['threads']} threads and goes on with {setup.threads()}: the last bits "
                  "will differ from an unbroken run's", quiet)
    count = sum(p.data.size for p in model.parameters())
    setup.say(f"{config['model']} ({count:,} parameters) on {len(training):,} images of {config['data']}; kernels "
              f"{config['kernels']}, {setup.threads()} threads, seed {config['seed']}; {folder}", quiet)
    try:
        rows = train(model, loader, optimizer, config["epochs"], schedule=schedule,
                     label_smoothing=config["label_smoothing"], validation=validation, out=folder, config=config,
                     resume=resume, checkpoint_every=checkpoint_every, show_progress=not quiet)
    except KeyboardInterrupt:
        setup.say(f"interrupted; go on with: tinyres train --resume {folder}")
        raise typer.Exit(130) from None
    found = evaluate(model, test)
    draw_curves(rows, folder / "curves.png", f"{config['model']} on {config['data']}, seed {config['seed']}")
    result = {"accuracy": found.accuracy, "correct": found.correct, "n": found.n, "loss": found.loss,
              "seed": config["seed"], "epochs": config["epochs"], "seconds": round(time.perf_counter() - began, 2),
              "images_per_second": median(row["images_per_second"] for row in rows), "out": str(folder)}
    write_atomically(folder / "result.json", setup.pretty(result))
    return result


def _optimizer(model: Any, config: dict[str, Any], batches: int) -> tuple[Any, Any]:
    """SGD over the parameters that are not frozen, and its schedule over all batches."""
    from tinyres import optim

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    with setup.option("--freeze"):
        if not trained:
            raise ValueError("nothing is left to train; freeze less.")
    optimizer = optim.SGD(trained, config["lr"], config["momentum"], config["weight_decay"], config["momentum"] > 0)
    total = config["epochs"] * batches
    if config["schedule"] == "onecycle":
        return optimizer, optim.OneCycleLR(optimizer, config["lr"], total, cycle_momentum=False)
    if config["schedule"] == "cosine":
        return optimizer, optim.CosineAnnealingLR(optimizer, total)
    if config["schedule"] == "he2015":  # 32k and 48k of 64k batches
        return optimizer, optim.MultiStepLR(optimizer, [total // 2, total * 3 // 4])
    return optimizer, None


# --- folders ----------------------------------------------------------------------------------------------------------


def _fresh_folder(out: Path | None, name: str) -> Path:
    """`out` if it holds no run yet; without it, runs/NAME or the first runs/NAME-2, -3, ... that is not there."""
    if out is not None:
        if (out / KEPT).exists():
            raise typer.BadParameter(f"{out} holds a run already; go on with it by --resume {out}, or choose another "
                                     "folder.", param_hint="--out")
        if out.exists() and not out.is_dir():
            raise typer.BadParameter(f"{out} is a file; give a folder.", param_hint="--out")
        return out
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _config_of(folder: Path, context: typer.Context) -> dict[str, Any]:
    """The options of the run in a folder, with which it must go on; no others may be given."""
    free = {"resume", "json", "quiet", "checkpoint_every", "data_dir"}
    others = [name for name in context.params if name not in free and _given(context, name)]
    if others:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise typer.BadParameter(f"the run's own options hold, so leave out {names}.", param_hint="--resume")
    if not (folder / KEPT).is_file():
        raise typer.BadParameter(f"{folder} holds no run: there is no {KEPT} in it.", param_hint="--resume")
    config = setup.read_json(folder / KEPT)
    if context.params["data_dir"] is not None:
        config["data_dir"] = str(context.params["data_dir"].absolute())
    return config


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


# --- reports ----------------------------------------------------------------------------------------------------------


def _sentence(result: dict[str, Any], folder: Path) -> str:
    return (f"test accuracy {result['accuracy']:.2%} ({result['correct']:,} of {result['n']:,}), loss "
            f"{result['loss']:.4f}; seed {result['seed']}, {result['epochs']} epochs, {result['seconds']:.1f} s, "
            f"{result['images_per_second']:,.0f} images/s; {folder}")


def _report_seeds(results: list[dict[str, Any]], as_json: bool) -> None:
    """Mean and sample standard deviation over the seeds, and the worst."""
    accuracies = [result["accuracy"] for result in results]
    average, deviation = mean(accuracies), stdev(accuracies)
    total = {"accuracy": average, "deviation": deviation, "worst": min(accuracies), "accuracies": accuracies,
             "seed": results[0]["seed"], "seeds": len(results), "epochs": results[0]["epochs"],
             "seconds": round(sum(result["seconds"] for result in results), 2),
             "images_per_second": median(result["images_per_second"] for result in results),
             "out": [result["out"] for result in results]}
    setup.report(total, f"test accuracy {average:.2%}, deviation {deviation:.2%}, worst {min(accuracies):.2%} of "
                        f"{len(results)} seeds; {total['seconds']:.1f} s", as_json)
