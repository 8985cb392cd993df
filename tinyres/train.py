"""Training: one loop, a log, a checkpoint after every epoch, and the reading of a data set.

The order of the samples, their augmentation and the rate of a step are functions of (seed, epoch, batch), so a run
that goes on from a checkpoint does, bit for bit on the same number of threads, what it would have done. Its log is cut
back to the checkpoint first.

Model and data set live on one device. On a GPU the program runs ahead of the device, which is given its work in order
and is still busy with it; only where a number is read does the program wait. So a step reads its three, loss, hits and
whether all is finite, in one copy (see finite.py).
"""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyres import kernels, ops
from tinyres.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from tinyres.data import Dataset, Loader
from tinyres.ema import ExponentialMovingAverage
from tinyres.files import PathLike, WeightsError
from tinyres.finite import first_bad_op, read
from tinyres.interrupt import Interruption
from tinyres.kernels import layout
from tinyres.nn import Module
from tinyres.ops.create import move
from tinyres.optim import Optimizer, Schedule, clip_grad_norm_
from tinyres.run_log import Log, Row, progress_bar
from tinyres.state import no_grad
from tinyres.tensor import Tensor

EVALUATION_BATCH = 250


@dataclass
class Progress:
    """Where a run is: steps done in all, epochs done, batches done in the present one, and what those gave so far."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    images: int = 0
    loss: float = 0.0  # summed over the images of the present epoch
    correct: int = 0
    seconds: float = 0.0  # of the present epoch


def train(model: Module, loader: Loader, optimizer: Optimizer, epochs: int | None = None, *,
          iterations: int | None = None, schedule: Schedule | None = None, label_smoothing: float = 0.0,
          clip_norm: float | None = None, accumulate: int = 1, average: ExponentialMovingAverage | None = None,
          validation: Dataset | None = None, out: PathLike | None = None, config: Mapping[str, Any] | None = None,
          resume: bool = False, checkpoint_every: int = 0, show_progress: bool = False,
          on_row: Callable[[Row], None] | None = None) -> list[Row]:
    """Train for so many epochs, or so many iterations (batches); returns the log, one row an epoch.

    schedule: stepped after every batch. clip_norm, accumulate: see train_step. average: follows the weights, and is
    what `validation` is read with; that is read after every epoch, and is never the test set, which is read once, when
    all choices are made. out: an existing folder for log.csv, log.jsonl and the checkpoint, in which `config` is kept;
    resume: go on from its checkpoint. checkpoint_every: also save after so many batches. on_row: called with each row.

    A row has epoch, iterations, lr, train_loss and train_accuracy (while training: of augmented images, by weights that
    move), seconds, images_per_second, and with validation validation_loss and validation_accuracy. Accuracies are
    shares, 0 to 1.

    With the fast kernels on the CPU, whose threads fill the processors, BLAS has one meanwhile, and what it had
    afterwards. On a GPU the seconds are right although it works on its own: every step waits for the loss, and what is
    left then of the last one, the optimizer's update, is done before the checkpoint is written.

    Raises FloatingPointError that names the op when the loss or a gradient becomes NaN or infinite, OSError when the
    disk is full, KeyboardInterrupt on Ctrl-C or SIGTERM after the step under way; the checkpoint is whole each time.
    """
    if (epochs is None) == (iterations is None):
        raise ValueError(f"train: give epochs or iterations, one of them, got {epochs} and {iterations}")
    total = iterations if iterations is not None else (epochs or 0) * len(loader)
    at, log = _begin(model, loader, optimizer, schedule, average, out, resume)

    def save() -> None:
        if out is not None:
            with _writing(out):
                progress = {"at": asdict(at), "log": log.rows}
                save_checkpoint(out, model, optimizer, schedule, progress, config, average)

    if at.step == 0:
        save()
    full = loader.batch_size if loader.drop_last else len(loader.dataset) / len(loader)
    bar = progress_bar(round(total * full), round((at.step - at.batch) * full) + at.images, show_progress)
    asked = Interruption()
    with bar, asked, _one_blas_thread(loader.dataset), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* encountered in", RuntimeWarning)  # NumPy's: a step names the op instead
        while at.step < total:
            model.train()
            began = time.perf_counter() - at.seconds
            for x, y in itertools.islice(loader.epoch(at.epoch, at.batch), total - at.step):
                rate = optimizer.param_groups[0]["lr"]
                place = f"epoch {at.epoch + 1}, batch {at.batch}"
                loss, correct = train_step(model, optimizer, x, y, label_smoothing, place, clip_norm, accumulate)
                if average is not None:
                    average.update()
                at.step += 1
                at.batch += 1
                at.images += len(y)
                at.loss += loss * len(y)
                at.correct += correct
                at.seconds = time.perf_counter() - began
                if schedule is not None and at.step < total:
                    schedule.step()
                bar.set_description(f"epoch {at.epoch + 1}/{math.ceil(total / len(loader))}", refresh=False)
                bar.set_postfix_str(f"loss {at.loss / at.images:.4f}, accuracy {at.correct / at.images:.2%}", False)
                bar.update(len(y))
                if at.batch < len(loader) and at.step < total:
                    if asked.stop or (checkpoint_every and at.batch % checkpoint_every == 0):
                        save()
                    if asked.stop:
                        raise KeyboardInterrupt
            row = _row(at, rate, model if average is None else average.model, validation)
            with _writing(out):
                log.write(row)
                if on_row is not None:
                    on_row(row)
            at = Progress(at.step, at.epoch + 1)
            save()
            if asked.stop:
                raise KeyboardInterrupt
    return log.rows


def _row(at: Progress, rate: float, model: Module, validation: Dataset | None) -> Row:
    """What the log says of the epoch that has ended; the model is read with the validation images, if there are any."""
    row = {"epoch": at.epoch + 1, "iterations": at.step, "lr": rate, "train_loss": at.loss / at.images,
           "train_accuracy": at.correct / at.images}
    if validation is not None:
        found = evaluate(model, validation)
        row |= {"validation_loss": found.loss, "validation_accuracy": found.accuracy}
    return row | {"seconds": round(at.seconds, 3), "images_per_second": round(at.images / at.seconds, 1)}


def _begin(model: Module, loader: Loader, optimizer: Optimizer, schedule: Schedule | None,
           average: ExponentialMovingAverage | None, out: PathLike | None, resume: bool) -> tuple[Progress, Log]:
    """Where to start and the rows so far: at the beginning, or with `resume` where the folder's checkpoint is."""
    if not resume:
        with _writing(out):
            return Progress(), Log(out, [])
    if out is None:
        raise ValueError("train: resume needs the folder of a run: pass out")
    if not has_checkpoint(out):
        log = Path(out) / "log.jsonl"
        if log.is_file() and log.stat().st_size > 0:
            raise FileNotFoundError(f"train: {out} has a log but no checkpoint: the checkpoints were lost, so train "
                                    "anew in another folder")
        with _writing(out):
            return Progress(), Log(out, [])  # killed before it wrote its first
    saved = load_checkpoint(out, model, optimizer, schedule, average)
    try:
        at, rows = Progress(**saved["at"]), [dict(row) for row in saved["log"]]
        kinds = [type(value) for value in astuple(Progress())]
        wrong = [type(value) for value in astuple(at)] != kinds or min(astuple(at)) < 0
        if wrong or at.batch >= len(loader) or max(at.step, at.epoch) >= 2**63:
            raise TypeError(f"{at}, of {len(loader)} batches an epoch")
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"train: the checkpoint in {out} does not say where the run is: {error!r}") from error
    with _writing(out):
        return at, Log(out, rows)


@contextlib.contextmanager
def _writing(out: PathLike | None) -> Iterator[None]:
    """Inside, an error of the file system, such as a full disk, says what it means for the run."""
    try:
        yield
    except OSError as error:
        raise OSError(f"train: {out} could not be written: {error}. The last checkpoint there is whole: make room, "
                      "then go on by resuming") from error


def _one_blas_thread(dataset: Dataset) -> contextlib.AbstractContextManager[Any]:
    """With the fast kernels on the CPU; the others have no threads but those of BLAS."""
    if kernels.current() != "fast" or dataset.device != "cpu":
        return contextlib.nullcontext()
    from tinyres.kernels.cpu.threads import one_blas_thread  # only now: it costs the import of Numba

    return one_blas_thread()


def train_step(model: Module, optimizer: Optimizer, x: Any, y: Any, label_smoothing: float = 0.0,
               place: str = "this step", clip_norm: float | None = None, accumulate: int = 1) -> tuple[float, int]:
    """One step of gradient descent on a batch; returns its mean loss and how many it had right before the step.

    x: (B, C, H, W) where the model lives; y: (B,) labels or (B, K) probabilities. accumulate: the batch is run in so
    many parts whose gradients are added up, in the memory of one part; only batch norm sees the difference. clip_norm:
    gradients are scaled down to this joint norm if theirs is larger.

    Raises FloatingPointError, before the weights change, if the loss or a gradient is NaN or infinite; ValueError for
    more parts than images.
    """
    if not 1 <= accumulate <= len(x):
        raise ValueError(f"train_step: accumulate is {accumulate}, expected 1 to {len(x)}, the images of a batch")
    optimizer.zero_grad()
    losses, hits = [], []
    for part in _parts(len(x), accumulate):
        x_part, y_part = x[part], y[part]
        logits = model(Tensor(x_part))
        loss = ops.cross_entropy(logits, y_part, label_smoothing)
        if accumulate > 1:
            loss = loss * (len(x_part) / len(x))
        loss.backward()
        losses.append(loss.data)
        labels = y_part if y_part.ndim == 1 else y_part.argmax(1)
        hits.append((logits.data.argmax(1) == layout.array_module(logits.data).asarray(labels)).sum())
    grads = [p.grad.data for p in optimizer.parameters() if p.grad is not None]
    value, correct, finite = read(losses, hits, grads)
    if not math.isfinite(value) or not finite:
        what = f"the loss is {value}" if not math.isfinite(value) else "a gradient is not finite"
        rate = optimizer.param_groups[0]["lr"]
        raise FloatingPointError(f"train: {what} in {place}: {first_bad_op(model, x, y, label_smoothing)}. The weights "
                                 f"are still finite; try a lower learning rate (it was {rate:.4g})")
    if clip_norm is not None:
        clip_grad_norm_(optimizer.parameters(), clip_norm)
    optimizer.step()
    return value, correct


def _parts(count: int, parts: int) -> Iterator[slice]:
    """`count` samples cut into so many parts, the first of which may have one sample more."""
    each, more = divmod(count, parts)
    starts = [part * each + min(part, more) for part in range(parts + 1)]
    return itertools.starmap(slice, itertools.pairwise(starts))


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
    """Read a data set in eval mode, without augmentation; the model's training mode is put back after it.

    Model and data set live on one device; what is returned is on the host.
    """
    loader = Loader(dataset, batch)
    training, logits, loss = model.training, [], 0.0
    model.eval()
    with no_grad(), _one_blas_thread(dataset), progress_bar(len(dataset), 0, show_progress) as bar:
        for x, y in loader.epoch(0):
            found = model(Tensor(x))
            loss += ops.cross_entropy(found, y, reduction="none").data.sum(dtype=np.float64)
            logits.append(found.data)
            bar.update(len(y))
    model.train(training)
    everything = move(layout.array_module(logits[0]).concatenate(logits), "cpu")
    correct = int((everything.argmax(1) == move(dataset.labels, "cpu")).sum())
    return Evaluation(correct / len(dataset), correct, len(dataset), float(loss) / len(dataset), everything)
