"""Training: one loop, a log, a checkpoint after every epoch, and the reading of a data set.

The order of the samples, their augmentation and the rate of a step are functions of (seed, epoch, batch), so a run
that goes on from a checkpoint does, bit for bit on the same number of threads, what it would have done. Its log is cut
back to the checkpoint first.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import math
import re
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyres import ops
from tinyres.checkpoint import load_checkpoint, save_checkpoint
from tinyres.data import Dataset, Loader
from tinyres.debug import debug
from tinyres.files import PathLike, write_atomically
from tinyres.kernels import layout
from tinyres.nn import Module
from tinyres.optim import Optimizer, Schedule
from tinyres.state import no_grad
from tinyres.tensor import Tensor

EVALUATION_BATCH = 250


@dataclass
class Progress:
    """Where a run is: epochs done, batches done in the present one, and what those gave so far."""

    epoch: int = 0
    batch: int = 0
    images: int = 0
    loss: float = 0.0  # summed over the images of the present epoch
    correct: int = 0
    seconds: float = 0.0  # of the present epoch


def train(model: Module, loader: Loader, optimizer: Optimizer, epochs: int, *, schedule: Schedule | None = None,
          label_smoothing: float = 0.0, validation: Dataset | None = None, out: PathLike | None = None,
          config: Mapping[str, Any] | None = None, resume: bool = False, checkpoint_every: int = 0,
          show_progress: bool = False) -> list[dict[str, Any]]:
    """Train until `epochs` epochs are done; returns the log, one row an epoch.

    schedule: stepped after every batch. validation: read after every epoch; never the test set, which is read once,
    when all choices are made. out: an existing folder for log.csv, log.jsonl and the checkpoint, in which `config` is
    kept; resume: go on from its checkpoint. checkpoint_every: also save after so many batches. A row has epoch, lr,
    train_loss and train_accuracy (while training: of augmented images, by weights that move), seconds,
    images_per_second, and with validation validation_loss and validation_accuracy. Accuracies are shares, 0 to 1.

    Raises FloatingPointError that names the op when the loss or a gradient becomes NaN or infinite.
    """
    at, rows = Progress(), []
    if resume:
        if out is None:
            raise ValueError("train: resume needs the folder of a run: pass out")
        saved = load_checkpoint(out, model, optimizer, schedule)
        at, rows = Progress(**saved["at"]), saved["log"]
    log = Log(out, rows)

    def save() -> None:
        if out is not None:
            save_checkpoint(out, model, optimizer, schedule, {"at": asdict(at), "log": log.rows}, config)

    if not resume:
        save()
    batches = epochs * len(loader)
    with progress_bar(epochs * images_per_epoch(loader), at, loader, show_progress) as bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* encountered in", RuntimeWarning)  # NumPy's: a step names the op instead
        while at.epoch < epochs:
            model.train()
            began = time.perf_counter() - at.seconds
            for x, y in loader.epoch(at.epoch, at.batch):
                rate = optimizer.param_groups[0]["lr"]
                place = f"epoch {at.epoch + 1}, batch {at.batch}"
                loss, correct = train_step(model, optimizer, x, y, label_smoothing, place)
                at.batch += 1
                at.images += len(y)
                at.loss += loss * len(y)
                at.correct += correct
                at.seconds = time.perf_counter() - began
                if schedule is not None and at.epoch * len(loader) + at.batch < batches:
                    schedule.step()
                bar.set_description(f"epoch {at.epoch + 1}/{epochs}", refresh=False)
                bar.set_postfix_str(f"loss {at.loss / at.images:.4f}, accuracy {at.correct / at.images:.2%}", False)
                bar.update(len(y))
                if checkpoint_every and at.batch % checkpoint_every == 0 and at.batch < len(loader):
                    save()
            row = {"epoch": at.epoch + 1, "lr": rate, "train_loss": at.loss / at.images,
                   "train_accuracy": at.correct / at.images}
            if validation is not None:
                found = evaluate(model, validation)
                row |= {"validation_loss": found.loss, "validation_accuracy": found.accuracy}
            log.write(row | {"seconds": round(at.seconds, 3), "images_per_second": round(at.images / at.seconds, 1)})
            at = Progress(epoch=at.epoch + 1)
            save()
    return log.rows


def train_step(model: Module, optimizer: Optimizer, x: np.ndarray, y: np.ndarray, label_smoothing: float = 0.0,
               place: str = "this step") -> tuple[float, int]:
    """One step of gradient descent on a batch; returns its mean loss and how many it had right before the step.

    Raises FloatingPointError, before the weights change, if the loss or a gradient is NaN or infinite.
    """
    logits = model(Tensor(x))
    loss = ops.cross_entropy(logits, y, label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    value = loss.item()
    grads = [p.grad.data for p in optimizer.parameters() if p.grad is not None]
    if not math.isfinite(value) or not all(is_finite(grad) for grad in grads):
        what = f"the loss is {value}" if not math.isfinite(value) else "a gradient is not finite"
        rate = optimizer.param_groups[0]["lr"]
        raise FloatingPointError(f"train: {what} in {place}: {first_bad_op(model, x, y, label_smoothing)}. The weights "
                                 f"are still finite; try a lower learning rate (it was {rate:.4g})")
    optimizer.step()
    return value, int((logits.data.argmax(1) == layout.array_module(logits.data).asarray(y)).sum())


def is_finite(array: Any) -> bool:
    """Whether an array has neither NaN nor Inf.

    A sum of squares tells in one fast pass; every element is looked at only if that is not finite, which large finite
    numbers may bring about too.
    """
    flat = array.ravel(order="K")
    return bool(np.isfinite(float(flat @ flat))) or bool(layout.array_module(array).isfinite(array).all())


def first_bad_op(model: Module, x: np.ndarray, y: np.ndarray, label_smoothing: float) -> str:
    """Repeat a step under debug(); what it says of the op that made the first NaN or Inf, and the layer it ran in."""
    entered = [""]
    handles = [module.register_forward_pre_hook(lambda module, args, name=name: entered.append(name))
               for name, module in model.named_modules()]
    try:
        with debug():
            loss = ops.cross_entropy(model(Tensor(x)), y, label_smoothing)
            entered = [""]
            loss.backward()
    except FloatingPointError as error:
        message = re.sub(r" \(called at .*:\d+\)", "", str(error))  # the line that called train(): no news
        return message + (f", in {entered[-1]}" if entered[-1] else "")
    finally:
        for handle in handles:
            handle.remove()
    return "a repetition of the step did not show it again"


def freeze(model: Module, pattern: str) -> list[str]:
    """Stop training the parameters whose dotted name matches; returns their names.

    pattern: like "layer1.*" or "*conv*.weight"; one without * ? [ matches any name that contains it. Raises ValueError
    if none does.
    """
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    names = [name for name, _ in model.named_parameters()]
    frozen = fnmatch.filter(names, wanted)
    if not frozen:
        raise ValueError(f"freeze: no parameter matches {pattern!r}; names are {', '.join(names[:5])} ... {names[-1]}")
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)  # type: ignore[attr-defined]
    return frozen


# --- reading a data set -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evaluation:
    """accuracy = correct / n, mean cross-entropy `loss`, and the logits (n, K) float32 in the data set's order."""

    accuracy: float
    correct: int
    n: int
    loss: float
    logits: np.ndarray


def evaluate(model: Module, dataset: Dataset, batch: int = EVALUATION_BATCH, show_progress: bool = False) -> Evaluation:
    """Read a data set in eval mode, without augmentation; the model's training mode is put back after it."""
    loader = Loader(dataset, batch)
    training, logits, loss = model.training, [], 0.0
    model.eval()
    with no_grad(), progress_bar(len(dataset), Progress(), loader, show_progress) as bar:
        for x, y in loader.epoch(0):
            found = model(Tensor(x))
            loss += ops.cross_entropy(found, y, reduction="none").numpy().sum(dtype=np.float64)
            logits.append(found.numpy())
            bar.update(len(y))
    model.train(training)
    everything = np.concatenate(logits)
    correct = int((everything.argmax(1) == dataset.labels).sum())
    return Evaluation(correct / len(dataset), correct, len(dataset), float(loss) / len(dataset), everything)


# --- the log and the bar ----------------------------------------------------------------------------------------------


class Log:
    """The rows of a run, in memory and in a folder's log.csv and log.jsonl, which are cut back to `rows` first."""

    def __init__(self, folder: PathLike | None, rows: list[dict[str, Any]]):
        self.rows = list(rows)
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            write_atomically(self.folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
            lines = [_csv_line(row.keys()) for row in rows[:1]] + [_csv_line(row.values()) for row in rows]
            write_atomically(self.folder / "log.csv", "".join(lines).encode())

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.folder is None:
            return
        with open(self.folder / "log.csv", "a") as file:
            file.write((_csv_line(row.keys()) if len(self.rows) == 1 else "") + _csv_line(row.values()))
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")


def _csv_line(values: Any) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def images_per_epoch(loader: Loader) -> int:
    """How many images an epoch shows: all of them, or those of the full batches."""
    return len(loader) * loader.batch_size if loader.drop_last else len(loader.dataset)


def progress_bar(total: int, at: Progress, loader: Loader, show: bool) -> Any:
    """A bar on stderr that counts images; off a terminal it speaks only every few seconds."""
    from tqdm import tqdm

    done = at.epoch * images_per_epoch(loader) + at.images
    return tqdm(total=total, initial=done, unit=" images", unit_scale=True, dynamic_ncols=True, disable=not show,
                file=sys.stderr, mininterval=0.1 if sys.stderr.isatty() else 5)
