"""`tinyres train`: from a data set's name to a folder with log, figures, checkpoint and result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Annotated, Any

import typer

from tinyres.analysis.runs import CONFIG, RESULT
from tinyres.cli import folders, recipes, setup

Smoothing = Annotated[float | None, setup.number("Share of the target spread over all classes. Default: 0.", most=1)]
Augment = Annotated[bool | None, typer.Option("--augment/--no-augment", help="Random crops, and flips but for digits. "
                                              "Default: on.")]
Freeze = Annotated[list[str] | None, typer.Option(help="Do not train the parameters whose dotted name matches, like "
                                                  "'*conv*.weight', or contains, like conv. May be repeated.")]
Validate = Annotated[bool | None, typer.Option("--validate/--no-validate", help="Hold back a fixed part of the "
                                               "training images and read it after every epoch. Default: on with "
                                               "he2015.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/DATA-MODEL-seedSEED, or the first of "
                                          "that name with -2, -3, ... that is not there.")]
Resume = Annotated[Path | None, typer.Option(help="Go on with the run in this folder, with its options.")]
ScheduleName = Annotated[str | None, typer.Option(help="cosine, onecycle, constant, or he2015: a tenth of the rate "
                                                  "after 1/2, a hundredth after 3/4. Default: the recipe's.")]
RecipeName = Annotated[str | None, typer.Option(help="digits; fast: one cycle of the rate; he2015: 64k iterations, the "
                                                "rate divided by 10 at 32k and 48k, 45,000 images to fit and 5,000 to "
                                                "validate. Default: digits for digits, else fast. Options change it.")]
Accumulate = Annotated[int | None, setup.whole("Run each batch in so many parts and add up their gradients: less "
                                               "memory. Default: 1.")]
Average = Annotated[float | None, setup.number("Test a moving average of the weights with this decay, like 0.999. "
                                               "Default: 0, none.", most=0.999999)]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard event files too; needs the extra "
                                           "tensorboard.")]


def train_network(
    context: typer.Context,
    data: Annotated[str, setup.data_option()] = "digits",
    data_dir: setup.DataDir = None,
    image_size: setup.ImageSize = None,
    recipe: RecipeName = None,
    model: Annotated[str | None, typer.Option(help="A network. Default: resnet8 on digits, else resnet20.")] = None,
    option: setup.ShortcutOption = None,
    model_option: setup.ModelOption = None,
    epochs: Annotated[int | None, setup.whole("Passes over the images. Default: 40 on digits, else 45.")] = None,
    iterations: Annotated[int | None, setup.whole("Batches in all, instead of epochs.")] = None,
    batch: Annotated[int | None, setup.whole("Images a step. Default: 64 on digits, else 128, but less for "
                                                      "a small data set of your own.")] = None,
    accumulate: Accumulate = None,
    lr: Annotated[float | None, setup.number("Learning rate, at its highest. Default: 0.1, with fast "
                                                    "0.2.")] = None,
    schedule: ScheduleName = None,
    warmup: Annotated[int | None, setup.whole("Begin with so many batches at a low rate. Default: 0.", 0)] = None,
    momentum: Annotated[float | None, setup.number("0 for none. Default: 0.9.", most=0.9999)] = None,
    nesterov: Annotated[bool | None, typer.Option("--nesterov/--no-nesterov", help="Nesterov's form of momentum. "
                                                  "Default: on, but off with he2015.")] = None,
    weight_decay: Annotated[float | None, setup.number("Default: 0.01 on digits, else 0.0005.")] = None,
    clip_norm: Annotated[float | None, setup.number("Scale gradients down to this joint norm.", least=1e-12)] = None,
    label_smoothing: Smoothing = None,
    mixup: Annotated[float | None, setup.number("Mix pairs of images, shares from Beta(X, X). Default: 0.")] = None,
    augment: Augment = None,
    ema: Average = None,
    freeze: Freeze = None,
    validate: Validate = None,
    seed: Annotated[int, setup.whole("Fixes weights, order and augmentation.", 0)] = 0,
    seeds: Annotated[int, setup.whole("Train so many networks, with seeds SEED, SEED + 1, ...")] = 1,
    out: Out = None,
    resume: Resume = None,
    checkpoint_every: Annotated[int, setup.whole("Save also after so many batches; 0: after epochs only.", 0)] = 0,
    tensorboard: TensorBoard = False,
    kernels: setup.Kernels = "fast",
    device: setup.Device = "cpu",
    json: setup.Json = False,
    quiet: setup.Quiet = False,
) -> None:
    """Train a network, then test it once.

    Without options: a small ResNet on the embedded digits, to more than 98 % of the test images in less than a minute.
    The folder gets config.json, log.csv, log.jsonl, curves.png, confusion.png, a checkpoint and result.json. Accuracy
    is the last epoch's, as a share from 0 to 1.

    Ctrl-C saves and stops. After that, or after the process was killed, --resume FOLDER goes on; on the same number of
    threads the end is bit for bit that of an unbroken run. With --device it goes on elsewhere, and differs in rounding.
    """
    if resume is not None:
        return _resume(resume, context)
    setup.check_data(data, data_dir, image_size)
    name, chosen = recipes.choose(recipe, data, context.params)
    if setup.is_own(data):
        images = setup.count_images(data, image_size, quiet)
        chosen = chosen if batch is not None else recipes.fit_batch(chosen, images)
    config = {"data": setup.absolute_data(data), "data_dir": None if data_dir is None else str(data_dir.absolute()),
              "image_size": image_size, "recipe": name, **asdict(chosen), "option": option,
              "model_option": model_option or [], "freeze": freeze or [], "seed": seed, "kernels": kernels,
              "device": device, "tensorboard": tensorboard}
    base = f"{Path(data).stem}-{chosen.model}-seed"
    if seeds == 1:
        folder = folders.fresh(out, f"{base}{seed}")
        result = run(config, folder, checkpoint_every, quiet, json)
        return setup.report(result, _sentence(result), json)
    folder = folders.fresh(out, f"{base}s{seed}to{seed + seeds - 1}")
    _several({"config": config, "seeds": list(range(seed, seed + seeds))}, folder, checkpoint_every, quiet, json)


def _resume(folder: Path, context: typer.Context) -> None:
    """Go on with a folder's run or runs; options other than those about how to go on are refused."""
    given = context.params
    free = {"resume", "json", "quiet", "checkpoint_every", "data_dir", "device"}
    others = [name for name in given if name not in free and _given(context, name)]
    if others:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise typer.BadParameter(f"the run's own options hold, so leave out {names}.", param_hint="--resume")
    found = folders.config_of(folder)
    config = found["config"] if "seeds" in found else found
    if given["data_dir"] is not None:
        config["data_dir"] = str(given["data_dir"].absolute())
    began_on = config["device"]
    if _given(context, "device"):
        config["device"] = given["device"]
    if config["device"] != began_on:
        setup.say(f"this run began on {began_on} and goes on on {config['device']}: the last bits will differ from an "
                  "unbroken run's", given["quiet"])
    if "seeds" in found:
        return _several(found, folder, given["checkpoint_every"], given["quiet"], given["json"])
    result = run(config, folder, given["checkpoint_every"], given["quiet"], given["json"])
    setup.report(result, _sentence(result), given["json"])


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


# --- one run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a run works with, made from its config; `options` are those that the network was built with."""

    model: Any
    options: dict[str, Any]
    loader: Any
    optimizer: Any
    schedule: Any
    average: Any
    validation: Any
    test: Any


def prepare(config: dict[str, Any]) -> Job:
    """Read the data and build the network; whatever is wrong with the options is found here, before a file is made."""
    from tinyres import data, random
    from tinyres.optim import ExponentialMovingAverage
    from tinyres.train import freeze

    setup.use_kernels(config["kernels"])
    setup.use_device(config["device"])
    if config["tensorboard"]:
        setup.need("tensorboardX", "tensorboard", "--tensorboard")
    random.manual_seed(config["seed"])
    with setup.option("--data"):
        splits = ("fit", "validation", "test") if config["validate"] else ("train", "test")
        where = config["data"], config["data_dir"], config["image_size"]
        training, *validation, test = (data.load(where[0], split, *where[1:]) for split in splits)
    channels, *size = training.images.shape[1:]
    options = setup.network_options(config["model"], len(training.classes), channels, tuple(size), config["option"],
                                    config["model_option"])
    model = setup.build(config["model"], options)
    for pattern in config["freeze"]:
        with setup.option("--freeze"):
            freeze(model, pattern)
    model.to(config["device"])
    transforms = data.augment.standard(training) if config["augment"] else ()
    with setup.option("--batch"):
        loader = data.Loader(training.to(config["device"]), config["batch"], True, config["seed"], transforms, True,
                             config["mixup"])
    validation = [images.to(config["device"]) for images in validation]
    optimizer, schedule = recipes.optimizer_and_schedule(model, config, len(loader))
    average = ExponentialMovingAverage(model, config["ema"]) if config["ema"] else None
    return Job(model, options, loader, optimizer, schedule, average, validation[0] if validation else None, test)


def run(config: dict[str, Any], folder: Path, checkpoint_every: int, quiet: bool, as_json: bool = False
        ) -> dict[str, Any]:
    """Train what `config` says in `folder`, or go on with what is there; returns the result that result.json holds."""
    from tinyres.files import write_atomically
    from tinyres.train import evaluate, train

    began = time.perf_counter()
    if (folder / RESULT).is_file():
        setup.say(f"{folder} is finished already", quiet)
        return setup.read_json(folder / RESULT)
    job = prepare(config)
    resume = (folder / CONFIG).is_file()
    if resume:
        folders.check_provenance(config, job.loader.dataset, quiet)
    else:
        config = config | _facts(job)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CONFIG, setup.pretty(config))
    with setup.telling_of_compilation(quiet or as_json), folders.used(folder), _listening(config, folder) as on_row:
        setup.say(_introduction(job, config, folder), quiet)
        try:
            rows = train(job.model, job.loader, job.optimizer, config["epochs"], iterations=config["iterations"],
                         schedule=job.schedule, label_smoothing=config["label_smoothing"],
                         clip_norm=config["clip_norm"], accumulate=config["accumulate"], average=job.average,
                         validation=job.validation, out=folder, config=config, resume=resume,
                         checkpoint_every=checkpoint_every, show_progress=not quiet, on_row=on_row)
        except KeyboardInterrupt:
            setup.say(f"interrupted; go on with: tinyres train --resume {folder}")
            raise typer.Exit(130) from None
        found = evaluate(job.model if job.average is None else job.average.model, job.test.to(config["device"]))
        _draw(rows, found, job.test, config, folder)
        result = {"accuracy": found.accuracy, "correct": found.correct, "n": found.n, "loss": found.loss,
                  "seed": config["seed"], "epochs": rows[-1]["epoch"], "iterations": rows[-1]["iterations"],
                  "seconds": round(time.perf_counter() - began, 2),
                  "images_per_second": median(row["images_per_second"] for row in rows), "out": str(folder)}
        write_atomically(folder / RESULT, setup.pretty(result))
    return result


def _facts(job: Job) -> dict[str, Any]:
    """What a run's config.json says besides the options."""
    training = job.loader.dataset
    return {"network": job.options, "threads": setup.threads(), "versions": setup.versions(training.device),
            "normalisation": {"mean": training.mean.tolist(), "std": training.std.tolist()},
            "provenance": folders.provenance(training)}


@contextlib.contextmanager
def _listening(config: dict[str, Any], folder: Path) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """What train is to call with each row: the writer of TensorBoard's event files, if they are asked for.

    The writer is made at the first row, when it is known from which epoch on older events are to be purged.
    """
    if not config["tensorboard"]:
        yield None
        return
    from tinyres.analysis.tensorboard import event_writer

    with contextlib.ExitStack() as stack:
        writers: list[Any] = []

        def write(row: dict[str, Any]) -> None:
            if not writers:
                writers.append(event_writer(folder / "tensorboard", row["epoch"]))
                stack.callback(writers[0].close)
            writers[0].write(row)

        yield write


def _draw(rows: list[dict[str, Any]], found: Any, test: Any, config: dict[str, Any], folder: Path) -> None:
    """The figures of a finished run."""
    from tinyres.analysis.confusion import draw_confusion
    from tinyres.analysis.curves import draw_curves

    title = f"{config['model']} on {Path(test.name).name}, seed {config['seed']}"
    draw_curves(rows, folder / "curves.png", title)
    draw_confusion(test.labels, found.logits.argmax(1), test.classes, folder / "confusion.png", title)


# --- several seeds ----------------------------------------------------------------------------------------------------


def _several(found: dict[str, Any], folder: Path, checkpoint_every: int, quiet: bool, as_json: bool) -> None:
    """The runs of several seeds, each in a folder of its own; those that are finished are not run again."""
    from tinyres.files import write_atomically

    if not (folder / folders.SEVERAL).is_file():
        prepare(found["config"])  # fails, if it must, before there is a folder
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / folders.SEVERAL, setup.pretty(found))
    results = []
    for seed in found["seeds"]:
        one = folder / f"seed{seed}"
        config = setup.read_json(one / CONFIG) if (one / CONFIG).is_file() else found["config"]
        config = config | {"seed": seed, "device": found["config"]["device"]}
        results.append(run(config, one, checkpoint_every, quiet, as_json))
        setup.say(_sentence(results[-1]), quiet)
    accuracies = [result["accuracy"] for result in results]
    average, deviation = mean(accuracies), stdev(accuracies)
    total = {"accuracy": average, "deviation": deviation, "worst": min(accuracies), "accuracies": accuracies,
             "seed": results[0]["seed"], "seeds": len(results), "epochs": results[0]["epochs"],
             "seconds": round(sum(result["seconds"] for result in results), 2),
             "images_per_second": median(result["images_per_second"] for result in results),
             "out": [result["out"] for result in results]}
    write_atomically(folder / RESULT, setup.pretty(total))
    setup.report(total, f"test accuracy {average:.2%}, deviation {deviation:.2%}, worst {min(accuracies):.2%} of "
                        f"{len(results)} seeds; {total['seconds']:.1f} s; {folder}", as_json)


# --- reports ----------------------------------------------------------------------------------------------------------


def _introduction(job: Job, config: dict[str, Any], folder: Path) -> str:
    count, images = sum(p.data.size for p in job.model.parameters()), len(job.loader.dataset)
    return (f"{config['model']} ({count:,} parameters) on {images:,} images of {config['data']}; recipe "
            f"{config['recipe']}, kernels {config['kernels']}, {_where(config)}, seed {config['seed']}; {folder}")


def _where(config: dict[str, Any]) -> str:
    return f"{setup.threads()} threads" if config["device"] == "cpu" else f"device {config['device']}"


def _sentence(result: dict[str, Any]) -> str:
    return (f"test accuracy {result['accuracy']:.2%} ({result['correct']:,} of {result['n']:,}), loss "
            f"{result['loss']:.4f}; seed {result['seed']}, {result['epochs']} epochs, {result['seconds']:.1f} s, "
            f"{result['images_per_second']:,.0f} images/s; {result['out']}")
