"""What an op was given when it refused: read from the traceback of its error, which holds it all.

An op that raises never becomes part of a graph, so no observer sees it. But its frame is still there, with the tensors
that it was called with, and around it the frames of the modules in which it ran.
"""

from __future__ import annotations

import inspect
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyres.nn import Module
from tinyres.tensor import Function

_PACKAGE = Path(__file__).resolve().parents[1]
_OPS = str(_PACKAGE / "ops") + os.sep
_SHOWN = str(_PACKAGE / "models") + os.sep  # the library's networks count as the user's code
_OURS = (str(_PACKAGE) + os.sep, str((_PACKAGE / "kernels").resolve()) + os.sep)

# Functions of tinyres.ops that check shapes before their op runs: the names of the arguments that must fit each other.
CHECKS: dict[str, tuple[str, ...]] = {
    "batch_norm": ("x", "add"), "conv2d": ("x", "weight"), "conv_transpose2d": ("x", "weight"),
    "linear": ("x", "weight"), "matmul": ("a", "b"), "concat": ("xs",), "stack": ("xs",), "mse_loss": ("x", "y"),
}
OPTIONS = ("stride", "padding", "dilation", "groups", "dim")


@dataclass(frozen=True)
class Refusal:
    """An op that raised. operands: (argument's name, what it was given), Tensors, arrays or numbers; options: of the
    call, as given; modules: in whose forward it ran, the outermost first; line: "net.py:12", of the user's code."""

    op: str
    operands: list[tuple[str, Any]]
    options: dict[str, Any]
    modules: list[Module]
    line: str


def refused(error: BaseException) -> Refusal | None:
    """The op that raised `error`, None where none did."""
    frames = list(traceback.walk_tb(error.__traceback__))
    modules: list[Module] = []
    for frame, _ in frames:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Module) and not any(owner is module for module in modules[-1:]):
            modules.append(owner)
    for frame, _ in reversed(frames):
        found = _from_op(frame.f_locals) if frame.f_code is _APPLY else _from_check(frame)
        if found is not None:
            return Refusal(*found, modules, _line(frames))
    return None


_APPLY = Function.apply.__func__.__code__  # type: ignore[attr-defined]


def _from_op(given: dict[str, Any]) -> tuple[str, list[tuple[str, Any]], dict[str, Any]]:
    kind, inputs = given["cls"], given["inputs"]
    names = [name for name, p in inspect.signature(kind.forward).parameters.items()
             if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    names += [f"x{i}" for i in range(len(names), len(inputs))]
    return kind.name, list(zip(names, inputs, strict=False)), dict(given["params"])


def _from_check(frame: Any) -> tuple[str, list[tuple[str, Any]], dict[str, Any]] | None:
    name, given = frame.f_code.co_name, frame.f_locals
    if name not in CHECKS or not frame.f_code.co_filename.startswith(_OPS):
        return None
    operands = [(f"x{i}", x) for i, x in enumerate(given.get("xs", ()))] if CHECKS[name] == ("xs",) else \
        [(argument, given[argument]) for argument in CHECKS[name] if given.get(argument) is not None]
    return name, operands, {option: given[option] for option in OPTIONS if option in given}


def _line(frames: list[tuple[Any, int]]) -> str:
    for frame, line in reversed(frames):
        path = frame.f_code.co_filename
        if path.startswith(_SHOWN):
            return f"{os.path.relpath(path, _PACKAGE.parent).replace(os.sep, '/')}:{line}"
        if not path.startswith(_OURS):
            return f"{os.path.basename(path)}:{line}"
    return ""
