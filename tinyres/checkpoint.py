"""Checkpoints: all that a run needs to go on as if it had never stopped, and what a kill at any moment leaves of them.

A checkpoint is two files that belong together: checkpoint.json names a safetensors file and its SHA-256. Each is
written under a temporary name and renamed, the JSON last, so that a killed process leaves the old pair or the new one.
The pair before the newest is kept as well, and read if the newest is lost or damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from tinyres import random
from tinyres.files import Arrays, PathLike, WeightsError, read_safetensors, safetensors, write_atomically
from tinyres.nn import Module, state_dict

CHECKPOINT = "checkpoint.json"
PREVIOUS = "checkpoint-previous.json"
FORMAT = "tinyres checkpoint 1"
# What checkpoint.json must hold besides the format and the weights' file and digest.
KINDS: dict[str, Any] = {"config": dict, "progress": dict, "random": dict, "optimizer": (dict, NoneType),
                         "schedule": (dict, NoneType)}


def save_checkpoint(folder: PathLike, model: Module, optimizer: Any = None, schedule: Any = None,
                    progress: Mapping[str, Any] | None = None, config: Mapping[str, Any] | None = None,
                    average: Any = None) -> None:
    """Write all that a run needs to go on as if it had never stopped: weights, optimizer, schedule, random state.

    progress (where the run is) and config (what it is) are kept as JSON; average: an ExponentialMovingAverage, kept
    beside the weights. The folder must exist. Raises OSError, as when the disk is full; the checkpoints that were there
    are then there still.
    """
    state = optimizer.state_dict() if optimizer is not None else {"arrays": {}, "scalars": None}
    averaged = average.state_dict() if average is not None else {"arrays": {}, "scalars": None}
    arrays = {f"model.{name}": array for name, array in model.state_dict().items()}
    arrays |= {f"optimizer.{name}": array for name, array in state["arrays"].items()}
    arrays |= {f"average.{name}": array for name, array in averaged["arrays"].items()}
    content = safetensors(arrays, {"format": FORMAT})
    digest = hashlib.sha256(content).hexdigest()
    file = f"checkpoint-{digest[:12]}.safetensors"
    saved = {
        "format": FORMAT,
        "weights": {"file": file, "sha256": digest},
        "progress": dict(progress or {}),
        "config": dict(config or {}),
        "optimizer": state["scalars"],
        "schedule": schedule.state_dict() if schedule is not None else None,
        "average": averaged["scalars"],
        "random": random.get_state(),
    }
    folder = Path(folder)
    text = json.dumps(saved, indent=1, allow_nan=False)
    write_atomically(folder / file, content)
    if _is_whole(folder, CHECKPOINT):  # a damaged one must not take the place of the good one before it
        write_atomically(folder / PREVIOUS, (folder / CHECKPOINT).read_bytes())
    write_atomically(folder / CHECKPOINT, text.encode())
    _remove_others(folder)


def load_checkpoint(folder: PathLike, model: Module, optimizer: Any = None, schedule: Any = None,
                    average: Any = None) -> dict[str, Any]:
    """Put a run back where save_checkpoint found it; returns its progress.

    If the newest checkpoint is lost or damaged, the one before it is taken, with a warning. Raises FileNotFoundError if
    the folder has none, WeightsError if all are damaged or it does not fit; model and random state are unchanged then.
    """
    saved, arrays = read_checkpoint(folder)
    drawn = random.get_state()
    try:
        random.set_state(saved["random"])
        state_dict.check(model, _below("model.", arrays), strict=True)
        if schedule is not None:
            schedule.load_state_dict(saved["schedule"])
        if optimizer is not None:
            optimizer.load_state_dict({"arrays": _below("optimizer.", arrays), "scalars": saved["optimizer"]})
        if average is not None:
            average.load_state_dict({"arrays": _below("average.", arrays), "scalars": saved.get("average")})
        model.load_state_dict(_below("model.", arrays))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        random.set_state(drawn)
        raise WeightsError(f"checkpoint: {folder} is not of this model, optimizer and schedule: {error}") from error
    return saved["progress"]


def has_checkpoint(folder: PathLike) -> bool:
    """Whether a folder holds a checkpoint, be it whole or not."""
    return any((Path(folder) / name).is_file() for name in (CHECKPOINT, PREVIOUS))


def read_weights(folder: PathLike) -> tuple[Arrays, dict[str, Any]]:
    """The model's arrays in a folder's checkpoint, the averaged ones if there are any, and the run's config."""
    saved, arrays = read_checkpoint(folder)
    return _below("average.", arrays) or _below("model.", arrays), saved["config"]


def read_checkpoint(folder: PathLike) -> tuple[dict[str, Any], Arrays]:
    """The JSON and the arrays of a folder's newest checkpoint that can be read, checked to belong together."""
    folder = Path(folder)
    if not has_checkpoint(folder):
        raise FileNotFoundError(f"checkpoint: {folder} has no {CHECKPOINT}: it is no folder of a run, or the run was "
                                "stopped before it wrote one")
    try:
        return _read_pair(folder, CHECKPOINT)
    except (WeightsError, OSError) as newest:
        try:
            found = _read_pair(folder, PREVIOUS)
        except (WeightsError, OSError):
            raise newest from None
        warnings.warn(f"{newest}. The checkpoint before it is used", stacklevel=3)
        return found


def _is_whole(folder: Path, name: str) -> bool:
    try:
        _read_pair(folder, name)
    except (WeightsError, OSError):
        return False
    return True


def _read_pair(folder: Path, name: str) -> tuple[dict[str, Any], Arrays]:
    path = folder / name
    if not path.is_file():
        raise WeightsError(f"checkpoint: {path} is not there")
    try:
        saved = json.loads(path.read_bytes())
        file, digest = saved["weights"]["file"], saved["weights"]["sha256"]
        missing = KINDS.keys() - saved.keys()
        wrong = [key for key, kind in KINDS.items() if key in saved and not isinstance(saved[key], kind)]
        json.dumps(saved, allow_nan=False)  # as it was written: without NaN, and no number too large
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"checkpoint: {path} cannot be read: {type(error).__name__}({error}). It is damaged or no "
                           "checkpoint") from error
    if saved.get("format") != FORMAT or missing or wrong:
        what = (f"lacks {', '.join(sorted(missing))}" if missing else f"holds no proper {', '.join(wrong)}" if wrong
                else f"has the format {str(saved.get('format'))[:80]!r}")
        raise WeightsError(f"checkpoint: {path} {what}, expected all of {FORMAT!r}: it is damaged, or of another "
                           "version of tinyres; train anew in another folder")
    if not isinstance(file, str) or Path(file).name != file:
        raise WeightsError(f"checkpoint: {path} names the file {file!r}, expected one of its own folder: it was "
                           "edited; nothing outside the folder is read")
    if not (folder / file).is_file():
        raise WeightsError(f"checkpoint: {path} names {file}, which is not there: copy the folder as a whole")
    content = (folder / file).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise WeightsError(f"checkpoint: {folder / file} has SHA-256 {found}, expected {digest}: it is damaged. "
                           "Bring the folder back from a copy, or train anew")
    return saved, read_safetensors(folder / file, content)[0]


def _remove_others(folder: Path) -> None:
    """Remove the arrays that neither checkpoint names, and what killed processes left half written."""
    kept = set()
    for name in (CHECKPOINT, PREVIOUS):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # of a damaged one
            kept.add(json.loads((folder / name).read_bytes())["weights"]["file"])
    for old in (*folder.glob("checkpoint-*.safetensors"), *folder.glob(".checkpoint*.tmp")):
        if old.name not in kept:
            old.unlink(missing_ok=True)


def _below(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
