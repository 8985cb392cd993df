"""What `tinyres step` steps through: a network of the library and a batch, a file of one's own, or an example.

A file is run like a module, so that what stands under `if __name__ == "__main__":` is left alone. It defines a function

    def loss(): ...          # takes nothing, returns one number as a Tensor

or the names `model`, `images` and `labels`, of which the loss is the mean cross-entropy; `labels` may also be a
function that makes one number of the model's output. The file's code is run as it stands: step through files that you
trust.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from tinyres.cli import setup
from tinyres.cli.analyze_subject import subject

MODEL, BATCH = "resnet8", 2   # small enough to start at once, and to be read
PARTS = ("model", "images", "labels")
NAME = "stepped"  # of the file as a module: never "__main__", and none that could be imported


@dataclass(frozen=True)
class Walk:
    """What is recorded. title: one line; run: the forward pass, which returns the loss; about: the same as JSON can
    hold it; names: of leaf tensors; file: whose code `run` is, None for our own."""

    title: str
    run: Callable[[], Any]
    about: dict[str, Any]
    names: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None


def network_walk(model: str | None, weights: Path | None, model_option: list[str] | None, data: str | None,
                 data_dir: Path | None, batch: int | None, seed: int, evaluating: bool, double: bool) -> Walk:
    """A network by its name or its weights, and the cross-entropy of a batch. Raises the error of the option at
    fault."""
    from tinyres import ops
    from tinyres.tensor import Tensor

    name = model if model is not None or weights is not None else MODEL
    seen = subject(name, weights, model_option, data, data_dir, batch or BATCH, seed)
    network = seen.network.eval() if evaluating else seen.network
    images = seen.images
    if double:
        network, images = network.double(), Tensor(images.data.astype("float64"))
    about = seen.as_dict()
    count = len(seen.labels)
    title = f"{seen.name} on {count} {'image' if count == 1 else 'images'} of {about['data']}"
    return Walk(title, lambda: ops.cross_entropy(network(images), seen.labels),
                about | {"seed": seed, "training": not evaluating}, {"images": images})


def file_walk(path: Path, double: bool) -> Walk:
    """What a file of the user's own defines.

    Raises typer.BadParameter for one that is not there or defines neither `loss` nor all three of `model`, `images`
    and `labels`, RuntimeError, with the line, for one whose code fails.
    """
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {path}; check the path.", param_hint="FILE")
    if path.suffix != ".py":
        raise typer.BadParameter(f"{path} is not a .py file: weights are given by --weights, and what is stepped "
                                 "through by a file in Python.", param_hint="FILE")
    found = _names(path)
    about: dict[str, Any] = {"file": str(path)}
    if "loss" in found:
        loss = found["loss"]
        if not callable(loss):
            raise typer.BadParameter(f"{path} defines loss as a {type(loss).__name__}, expected a function, which can "
                                     "be run again with fused ops as their parts: def loss(): return ...",
                                     param_hint="FILE")
        try:
            inspect.signature(loss).bind()
        except TypeError as error:
            raise typer.BadParameter(f"{path} defines loss{inspect.signature(loss)}, which is called without "
                                     f"arguments: {error}; give them defaults.", param_hint="FILE") from error
        except ValueError:  # a builtin without a signature
            pass
        if double:
            raise typer.BadParameter(f"{path} defines loss(), which computes in the dtype it chooses; leave it out, or "
                                     "define model, images and labels.", param_hint="--float64")
        return Walk(path.name, loss, about, file=path)
    has, lacks = [name for name in PARTS if name in found], [name for name in PARTS if name not in found]
    if lacks:
        what = f"{' and '.join(has)}, but no {' and no '.join(lacks)}" if has else "nothing to step through"
        raise typer.BadParameter(f"{path} defines {what}: define a function loss() that returns one number, or model, "
                                 "images and labels.", param_hint="FILE")
    return _parts_walk(path, double, about, **{name: found[name] for name in PARTS})


def _parts_walk(path: Path, double: bool, about: dict[str, Any], model: Any, images: Any, labels: Any) -> Walk:
    """Of a file's model, images and labels."""
    from tinyres.analysis.taps import objective
    from tinyres.nn import Module
    from tinyres.operands import type_name
    from tinyres.tensor import Tensor

    if not isinstance(model, Module):
        raise typer.BadParameter(f"{path} defines model as {type_name(model)}, expected an nn.Module; for anything "
                                 "else define a function loss().", param_hint="FILE")
    if not isinstance(images, Tensor):
        images = Tensor(images)
    if double:
        model, images = model.double(), Tensor(images.data.astype("float64"))
    return Walk(path.name, lambda: objective(model(images), labels), about, {"images": images}, path)


def _names(path: Path) -> dict[str, Any]:
    """What the file's code leaves behind. Nothing is written beside the file, which an import would do."""
    module = types.ModuleType(NAME)
    module.__file__ = str(path)
    sys.modules[NAME] = module  # where dataclasses look for the names in annotations
    with running(path):
        try:
            exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
        except SystemExit as end:
            raise RuntimeError(f"{path} left by sys.exit({end.code!r}) before it defined anything: put what is a "
                               'program of its own under if __name__ == "__main__":') from end
    return vars(module)


@contextlib.contextmanager
def running(path: Path | None) -> Iterator[None]:
    """Inside, modules beside the file can be imported, and an error that comes out of the file's code becomes a
    RuntimeError that names file and line."""
    before = list(sys.path)
    if path is not None:
        sys.path.insert(0, str(path.absolute().parent))
    try:
        yield
    except Exception as error:
        line = None if path is None else _line(path, error)
        if line is None:
            raise
        words = error.msg if isinstance(error, SyntaxError) else error  # whose text would say the line again
        raise RuntimeError(f"{path}, line {line}: {type(error).__name__}: {words}") from error
    finally:
        sys.path[:] = before


def _line(path: Path, error: BaseException) -> int | None:
    """The innermost line of the file that the error passed; None if it did not."""
    if isinstance(error, SyntaxError) and error.filename is not None and _same(error.filename, path):
        return error.lineno
    lines = [number for frame, number in traceback.walk_tb(error.__traceback__)
             if _same(frame.f_code.co_filename, path)]
    return lines[-1] if lines else None


def _same(name: str, path: Path) -> bool:
    return os.path.abspath(name) == os.path.abspath(path)


def example_walk(name: str) -> Walk:
    """A built-in example. Raises typer.BadParameter for a name that none has."""
    from tinyres.stepper.example import example

    with setup.option("--example"):
        found = example(name)
    return Walk(found.title, found, {"example": name}, found.leaves)


def check_alone(file: Path | None, example: str | None, asked: dict[str, bool]) -> None:
    """Raise typer.BadParameter for options that say something about a network where a file or an example is stepped
    through."""
    if file is not None and example is not None:
        raise typer.BadParameter(f"{example!r}, but a file is given, too; leave one of them out.",
                                 param_hint="--example")
    what = f"the file {file}" if file is not None else f"the example {example!r}" if example is not None else ""
    for option, given in asked.items():
        if what and given:
            raise typer.BadParameter(f"it is about a network and a data set, but {what} is stepped through; leave it "
                                     "out.", param_hint=option)
