"""Folders of training runs, read back and compared: which there are, where they differ, what several seeds give.

A folder is never refused. Of one that is damaged, whatever can be read is told, and what is wrong with it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from tinyres.files import PathLike

CONFIG, LOG, RESULT = "config.json", "log.jsonl", "result.json"
# What config.json holds besides the options that decide how a network learns.
FACTS = {"seed", "data_dir", "tensorboard", "network", "normalisation", "threads", "versions", "provenance"}
SHOWN_ALWAYS = {"model", "data", "epochs"}
OFF: tuple[Any, ...] = (None, 0, "", [])  # what an option that an older run did not know was; 0 is False too, and 0.0
SORTS = ("accuracy", "time", "name")


@dataclass(frozen=True)
class Run:
    """What a folder holds. state: "finished", "unfinished" or "damaged"; note: how far it came, or what is wrong."""

    folder: Path
    state: str
    note: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0  # seconds since 1970

    @property
    def accuracy(self) -> float | None:
        """The share of the test images, which are read at the end; None before."""
        return self.result.get("accuracy")

    @property
    def epochs(self) -> int | None:
        return self.rows[-1]["epoch"] if self.rows else self.result.get("epochs")

    @property
    def seconds(self) -> float | None:
        """All of a finished run; else those of the epochs in the log."""
        return self.result.get("seconds", sum(row.get("seconds", 0) for row in self.rows) if self.rows else None)

    @property
    def images_per_second(self) -> float | None:
        speeds = [row["images_per_second"] for row in self.rows if "images_per_second" in row]
        return self.result.get("images_per_second", median(speeds) if speeds else None)

    def as_dict(self, options: Iterable[str] = ()) -> dict[str, Any]:
        """For JSON: what the table shows, with these options of the config."""
        return {"folder": str(self.folder), "state": self.state, "note": self.note,
                **{name: self.config.get(name) for name in ("model", "data", "seed")},
                "options": {name: self.config.get(name) for name in options},
                "accuracy": self.accuracy, "loss": self.result.get("loss"), "epochs": self.epochs,
                "seconds": self.seconds, "images_per_second": self.images_per_second,
                "began": datetime.fromtimestamp(self.began, timezone.utc).isoformat(timespec="seconds")}


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed only. Of runs with the same seed the one that began last counts."""

    runs: list[Run]

    @property
    def seeds(self) -> list[int]:
        return sorted({run.config["seed"] for run in self.runs})

    @property
    def finished(self) -> list[Run]:
        latest = {run.config["seed"]: run for run in sorted(self.runs, key=lambda run: run.began)
                  if run.state == "finished"}
        return [latest[seed] for seed in sorted(latest)]

    def as_dict(self, options: Iterable[str] = ()) -> dict[str, Any]:
        """For JSON: means over the finished runs, the sample deviation and the worst of their accuracies."""
        finished, config = self.finished, self.runs[0].config
        accuracies = [run.result["accuracy"] for run in finished]
        return {"folders": [str(run.folder) for run in self.runs], "model": config["model"], "data": config["data"],
                "options": {name: config.get(name) for name in options},
                "seeds": self.seeds, "n": len(finished),
                "accuracy": mean(accuracies) if finished else None,
                "deviation": stdev(accuracies) if len(finished) > 1 else None,
                "worst": min(accuracies, default=None),
                "loss": mean(run.result["loss"] for run in finished) if finished else None,
                "seconds": mean(run.result["seconds"] for run in finished) if finished else None}


# --- reading ----------------------------------------------------------------------------------------------------------


def find_runs(folders: Sequence[PathLike]) -> list[Run]:
    """All runs in or below these folders, each once, in the order of their names (seed2 before seed10).

    Hidden folders and links to folders are left out. Raises FileNotFoundError for a folder that is not there.
    """
    found: dict[Path, Run] = {}
    for root in map(Path, folders):
        if not root.is_dir():
            raise FileNotFoundError(f"runs: there is no folder {root}: name folders that hold runs, or train a network "
                                    "first (tinyres train)")
        for place, below, files in os.walk(root):
            below[:] = [name for name in below if not name.startswith(".")]
            folder = Path(place)
            if _may_be_run(folder, files) and folder.resolve() not in found:
                found[folder.resolve()] = read_run(folder)
    return sorted(found.values(), key=lambda run: _natural(str(run.folder)))


def _may_be_run(folder: Path, files: Sequence[str]) -> bool:
    """Whether a folder is, or was, a run's: a config.json alone may be anyone's, and is looked into."""
    if LOG in files or "checkpoint.json" in files:
        return True
    return CONFIG in files and bool(read_run(folder).config)


def read_run(folder: PathLike) -> Run:
    """Read a run's folder, whatever state it is in."""
    folder = Path(folder)
    wrong: list[str] = []
    config = _object(folder / CONFIG, wrong, {"model": str, "data": str, "seed": int})
    rows = _rows(folder / LOG, wrong)
    result = {}
    if (folder / RESULT).exists():
        result = _object(folder / RESULT, wrong, dict.fromkeys(("accuracy", "loss", "seconds"), float))
    began = _began(folder, config)
    if wrong:
        return Run(folder, "damaged", "; ".join(wrong), config, rows, result, began)
    if result:
        return Run(folder, "finished", "", config, rows, result, began)
    if config.get("iterations"):
        done = rows[-1].get("iterations", 0) if rows else 0
        return Run(folder, "unfinished", f"iteration {done} of {config['iterations']}", config, rows, {}, began)
    done = rows[-1]["epoch"] if rows else 0
    return Run(folder, "unfinished", f"epoch {done} of {config.get('epochs', '?')}", config, rows, {}, began)


def _object(path: Path, wrong: list[str], kinds: Mapping[str, type]) -> dict[str, Any]:
    """The JSON object in a file, {} if there is none; `wrong` gets what is wrong with it. kinds: what it must hold."""
    try:
        found = _parse(path.read_bytes())
        lacking = [name for name, kind in kinds.items() if not _is(found.get(name), kind)]
        if lacking:
            raise ValueError(f"no {', no '.join(lacking)}")
        return found
    except FileNotFoundError:
        wrong.append(f"no {path.name}")
    except (OSError, ValueError, RecursionError, OverflowError) as error:
        wrong.append(f"{path.name}: {_one_line(error)}")
    return {}


def _rows(path: Path, wrong: list[str]) -> list[dict[str, Any]]:
    """The rows of a log up to the first bad one. A last line without its end was cut short by a kill: no damage."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        wrong.append(f"{path.name}: {_one_line(error)}")
        return []
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = _parse(line)
            bad = [name for name, value in row.items() if not _is(value, float)]
            lacking = {"train_loss", "train_accuracy"} - row.keys()
            if not _is(row.get("epoch"), int) or bad or lacking:
                raise ValueError(f"not a row: {line[:40].decode(errors='replace')}")
        except (ValueError, RecursionError, OverflowError) as error:
            wrong.append(f"{path.name}, line {number}: {_one_line(error)}")
            break
        rows.append(row)
    return rows


def _parse(content: bytes) -> dict[str, Any]:
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}, expected an object")
    json.dumps(found, allow_nan=False)  # raises ValueError for NaN and Infinity, which are not JSON
    return found


def _is(value: Any, kind: type) -> bool:
    """Whether a value of JSON is of this kind; a float may be written as a whole number, and must be finite."""
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and not isinstance(value, bool)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "too deeply nested" if isinstance(error, RecursionError) else " ".join(str(error).split())


def _began(folder: Path, config: Mapping[str, Any]) -> float:
    """When a run began: by its own word, else when its config.json was written."""
    try:
        return datetime.fromisoformat(config["provenance"]["began"]).timestamp()
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        pass
    for path in (folder / CONFIG, folder):
        try:
            return path.stat().st_mtime
        except OSError:
            pass
    return 0.0


# --- comparing --------------------------------------------------------------------------------------------------------


def sort_runs(runs: Sequence[Run], by: str) -> list[Run]:
    """By accuracy, the best first; by the time when they began, the last first; or by name."""
    if by == "accuracy":
        return sorted(runs, key=lambda run: -1.0 if run.accuracy is None else run.accuracy, reverse=True)
    if by == "time":
        return sorted(runs, key=lambda run: run.began, reverse=True)
    return sorted(runs, key=lambda run: _natural(str(run.folder)))


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs that differ in the seed only, together; in the order of their first ones. Damaged ones are left out."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.state != "damaged":
            groups.setdefault(_key(run), []).append(run)
    return [Group(members) for members in groups.values()]


def _key(run: Run) -> str:
    """What decides how a run learns, but for its seed: its options, and the digest of its data if it is known."""
    options = {name: value for name, value in run.config.items() if name not in FACTS and value not in OFF}
    provenance = run.config.get("provenance")
    digest = provenance.get("data_sha256") if isinstance(provenance, dict) else None
    return json.dumps([options, digest], sort_keys=True)


def differing(runs: Sequence[Run]) -> list[str]:
    """The options, and the number of threads, in which runs differ; without those that a table shows anyway."""
    configs = [run.config for run in runs if run.state != "damaged"]
    names = dict.fromkeys(name for config in configs for name in config)
    shown = [name for name in names if name == "threads" or name not in FACTS | SHOWN_ALWAYS]
    return [name for name in shown if len({_text(config.get(name)) for config in configs}) > 1]


def _text(value: Any) -> str:
    return "" if value in OFF else json.dumps(value, sort_keys=True)


def label(run: Run, runs: Sequence[Run]) -> str:
    """A run in words, without its seed, for the legend of a figure of these runs."""
    config, others = run.config, [other.config for other in runs if other.state != "damaged"]
    words = [Path(config["data"]).name] if len({other["data"] for other in others}) > 1 else []
    words += [f"{name} {readable(config.get(name))}" for name in differing(runs) if name != "threads"]
    return ", ".join([config["model"], *words])


def readable(value: Any) -> str:
    """An option's value for a table: - for none, yes and no, numbers without needless digits."""
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts numbers within names by their value."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    return [(int(part), "") if part.isdecimal() and len(part) < 18 else (0, part) for part in parts]
