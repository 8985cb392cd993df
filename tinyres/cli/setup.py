"""What the commands set up alike: kernels, data, network; and how they report.

A wrong value becomes an error that names its option; everything heavy is imported inside the functions.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer


def whole(help: str, least: int = 1, most: int | None = None) -> Any:
    """An option whose value is a whole number; its error names the value, which typer's own does not."""
    return typer.Option(help=help, metavar="N", parser=_number_parser(int, "a whole number", least, most))


def number(help: str, least: float = 0.0, most: float | None = None) -> Any:
    """An option whose value is a finite number."""
    return typer.Option(help=help, metavar="X", parser=_number_parser(float, "a number", least, most))


def _number_parser(kind: Callable[[str], Any], words: str, least: float, most: float | None) -> Callable[[Any], Any]:
    def parse(text: Any) -> Any:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if math.isfinite(value) and least <= value and (most is None or value <= most):
                return value
        bounds = f"from {least:g} to {most:g}" if most is not None else f"of at least {least:g}"
        raise typer.BadParameter(f"{text!r} is not {words} {bounds}")

    return parse


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no text on stderr.")]
Kernels = Annotated[str, typer.Option(help="Who computes: fast (Numba; on cuda CUDA kernels), im2col, reference, loops "
                                           "or emulator (the CUDA kernels on the processor, slowly).")]
Device = Annotated[str, typer.Option(help="Where: cpu, or cuda, an NVIDIA GPU through CuPy.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder or archive of CIFAR or Fashion-MNIST. Default: "
                                             "$TINYRES_DATA, else what `tinyres data fetch` fetched.")]
ShortcutOption = Annotated[str | None, typer.Option(help="Shortcuts that change shape: A pads with zeros, B projects "
                                                         "(C everywhere). Default: the network's own.")]

ModelOption = Annotated[list[str] | None, typer.Option(
    help="An option of the network's own, like residual_scale=0.1. May be repeated.", metavar="NAME=VALUE")]


@contextlib.contextmanager
def option(name: str) -> Iterator[None]:
    """Inside, a ValueError is the fault of this option's value."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=name) from error


def use_kernels(name: str) -> None:
    """Choose the kernel set for the process."""
    from tinyres import kernels

    with option("--kernels"):
        kernels.use_kernels(name)


def use_device(name: str) -> None:
    """Raise the error for a device that does not exist, or RuntimeError where CuPy or a GPU is missing."""
    from tinyres.ops.create import device

    with option("--device"):
        device(name)


ImageSize = Annotated[int | None, whole("Scale the images of a folder of your own to so many pixels a side.")]


def data_option(default: str = "") -> Any:
    """The option --data, with the name of a data set or the path of one's own."""
    return typer.Option(help=f"digits (embedded), cifar10, cifar100, fashion; or the folder or .npz file of your own "
                             f"images.{default}")


def check_data(name: str, data_dir: Path | None, size: int | None) -> None:
    """Raise the error for a data set that does not exist, or an option that does not apply to it."""
    from tinyres import data

    if size is not None and name in data.NAMES:
        raise typer.BadParameter(f"{size}, but it scales a folder of your own images, and {name} is none; leave it "
                                 "out.", param_hint="--image-size")
    if data_dir is not None and (name == "digits" or name not in data.NAMES):
        why = "come with the package" if name == "digits" else "is a path itself"
        raise typer.BadParameter(f"{data_dir}, but {name} {why}; leave it out.", param_hint="--data-dir")
    if name not in data.NAMES and not data.is_path(name):
        with option("--data"):
            data.load(name)


def is_own(name: str) -> bool:
    """Whether --data is the path of one's own data, not a data set's name."""
    from tinyres import data

    return name not in data.NAMES


def absolute_data(name: str) -> str:
    """A data set's name, or the absolute path of one's own, which then holds from any folder."""
    return str(Path(name).expanduser().absolute()) if is_own(name) else name


def count_images(path: str, size: int | None, quiet: bool) -> int:
    """How many training images one's own data has; says which images will test, if the data does not."""
    from tinyres import data

    with option("--data"):
        count = len(data.load(path, "train", size=size))
        if not data.has_test_split(path):
            say(f"{path} has no test split: a fixed fifth of its images, {len(data.load(path, 'test', size=size)):,}, "
                "is held out as one", quiet)
    return count


def need(module: str, extra: str, what: str) -> None:
    """Raise ModuleNotFoundError, with the line that installs it, if a module of an extra is missing."""
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(f'{what} needs {module}: pip install "tinyres[{extra}]"', name=module)


def network_options(name: str, classes: int, channels: int, size: int | tuple[int, int], shortcut: str | None = None,
                    given: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments with which models.build makes the network for images of (channels, size, size).

    size may be (height, width). given: options of the network's own, each as "name=value".
    """
    from tinyres import models

    height, width = size if isinstance(size, tuple) else (size, size)
    with option("--model"):
        takes = inspect.signature(getattr(models, models.known_name(name))).parameters
    from_data = {"num_classes": classes, "in_channels": channels, "in_features": channels * height * width}
    options: dict[str, Any] = {key: value for key, value in from_data.items() if key in takes}
    if shortcut is not None:
        options["option"] = shortcut
    if "cifar_stem" in takes:
        options["cifar_stem"] = min(height, width) <= 64
    for text in given:
        key, value = _own_option(name, text, takes)
        if key in from_data or (key == "option" and shortcut is not None):
            why = "--option has set it" if key == "option" else "the data set it"
            raise typer.BadParameter(f"{text!r}: {why}; leave it out.", param_hint="--model-option")
        options[key] = value
    return options


def _own_option(name: str, text: str, takes: Mapping[str, inspect.Parameter]) -> tuple[str, Any]:
    """Name and value of "name=value", the value being of the kind of the option's default."""
    from tinyres.data import nearest

    key, equals, value = text.partition("=")
    key = key.strip().replace("-", "_")
    if not equals:
        raise typer.BadParameter(f"{text!r} has no value; give NAME=VALUE.", param_hint="--model-option")
    if key not in takes:
        raise typer.BadParameter(f"{text!r}: {name} has no option {key!r}.{nearest(key, takes)} Its options: "
                                 f"{', '.join(takes)}.", param_hint="--model-option")
    kind = type(takes[key].default)
    truths = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    with contextlib.suppress(ValueError, KeyError):
        return key, truths[value.lower()] if kind is bool else kind(value) if kind in (int, float) else value
    words = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
    raise typer.BadParameter(f"{text!r}: {key} takes {words}.", param_hint="--model-option")


def build(name: str, options: dict[str, Any]) -> Any:
    """The network, its weights drawn from the library's generator."""
    from tinyres import models

    usual = {"num_classes", "in_channels", "in_features", "cifar_stem", "option"}
    own = options.keys() - usual
    with option("--model-option" if own else "--option" if "option" in options else "--model"):
        return models.build(name, **options)


def versions(device: str = "cpu") -> dict[str, str]:
    """What a run was made with."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import numpy as np

    import tinyres

    found = {"tinyres": tinyres.__version__, "python": platform.python_version(), "numpy": np.__version__}
    for name in ("numba", "safetensors", *(("cupy", "cupy-cuda12x", "cupy-cuda13x") if device == "cuda" else ())):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def threads() -> int:
    """How many threads the fast kernels use."""
    from tinyres.kernels.cpu.threads import count

    return int(count())


@contextlib.contextmanager
def telling_of_compilation(quiet: bool) -> Iterator[None]:
    """Inside, stderr says which kernels are being compiled, if any are; quiet: not even that."""
    from tinyres.kernels.cpu import compile_line, jit

    with jit.told_to(jit.silent if quiet else compile_line.CompileLine(off_terminal=True)):
        yield


def say(text: str, quiet: bool = False) -> None:
    """A line for people, on stderr."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def report(result: dict[str, Any], text: str, as_json: bool) -> None:
    """The result: as text, or with --json as one line of JSON."""
    print(json.dumps(result, allow_nan=False) if as_json else text, flush=True)


def pretty(content: dict[str, Any]) -> bytes:
    """JSON for a file that people also read."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object from a file. Raises ValueError if it is damaged."""
    try:
        found = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(found).__name__}, expected an object of JSON")
    return found
