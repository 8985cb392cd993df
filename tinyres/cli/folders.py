"""Folders of runs: a fresh one, one to go on with, one that another process is using; and what a run was made with."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import typing
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import typer

from tinyres.analysis.gpu import ask, load_driver
from tinyres.analysis.machine import cpu_name
from tinyres.analysis.runs import CONFIG
from tinyres.cli import recipes, setup

SEVERAL = "seeds.json"  # in a folder whose sub-folders are the runs of several seeds
# What config.json must hold.
KINDS: dict[str, Any] = {
    **typing.get_type_hints(recipes.Recipe), "data": str, "data_dir": str | None, "image_size": int | None,
    "recipe": str, "option": str | None, "model_option": list, "freeze": list, "seed": int, "kernels": str,
    "device": str,
    "tensorboard": bool, "network": dict, "normalisation": dict, "threads": int, "provenance": dict,
}


def fresh(out: Path | None, name: str) -> Path:
    """`out` if it holds no run yet; without it, runs/NAME or the first runs/NAME-2, -3, ... that is not there."""
    if out is not None:
        if any((out / file).exists() for file in (CONFIG, SEVERAL)):
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


def config_of(folder: Path) -> dict[str, Any]:
    """What config.json, or seeds.json, of the folder to resume holds. Raises ValueError if it is damaged."""
    for file, kinds in ((SEVERAL, {"config": dict, "seeds": list}), (CONFIG, KINDS)):
        if (folder / file).is_file():
            return _checked(setup.read_json(folder / file), folder / file, kinds)
    raise typer.BadParameter(f"{folder} holds no run: there is no {CONFIG} in it.", param_hint="--resume")


def _checked(found: dict[str, Any], path: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    options = found.get("config") if "seeds" in kinds else found
    if isinstance(options, dict):
        options.setdefault("device", "cpu")  # of a run that began when there was no other
        options.setdefault("model_option", [])
    missing = [key for key in kinds if key not in found]
    wrong = [key for key, kind in kinds.items() if key in found and not isinstance(found[key], kind)
             and not (kind in (float, float | None) and type(found[key]) is int)]
    if missing or wrong:
        names, more = missing or wrong, len(missing or wrong) - 5
        what = f"{'lacks' if missing else 'holds no proper'} {', '.join(names[:5])}{f' and {more} more' * (more > 0)}"
        raise ValueError(f"train: {path} {what}: it is damaged, or of another version of tinyres; train anew")
    return found


@contextlib.contextmanager
def used(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder; the system forgets the lock of a killed process.

    Raises RuntimeError if another process is training there. Where files cannot be locked, nothing is checked.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(folder / CONFIG, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"train: another process is training in {folder}: wait for it, or choose another "
                               "folder by --out") from None
        except OSError:  # a file system without locks
            pass
        for left in folder.glob(".*.tmp"):  # half written by a process that was killed
            left.unlink(missing_ok=True)
        yield


# --- provenance -------------------------------------------------------------------------------------------------------


def provenance(dataset: Any) -> dict[str, Any]:
    """When, by which command, on what machine and from which source a run began, and on which data."""
    import platform

    gpu = gpu_names() if dataset.device == "cuda" else []
    return {
        "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "gpu": gpu[0] if gpu else None,
        "source_sha256": source_digest(),
        "data_sha256": data_digest(dataset),
    }


def gpu_names() -> list[str]:
    """The devices that the driver shows this process, the first of which is used."""
    library = load_driver()
    return [] if library is None else [name for name, _, _ in ask(library).devices]


def source_digest() -> str:
    """SHA-256 over the package's Python and CUDA files, which names its version more surely than a number does."""
    import tinyres

    digest, root = hashlib.sha256(), Path(tinyres.__file__).parent
    below = (root, root / "kernels")  # a symlink in a checkout, so not followed from above
    files = {path for folder in below for ending in ("py", "cu", "cuh") for path in folder.rglob(f"*.{ending}")}
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def data_digest(dataset: Any) -> str:
    """SHA-256 over a data set's images (channels-last) and labels, as they are stored."""
    dataset = dataset.to("cpu")
    digest = hashlib.sha256(repr((dataset.images.shape, str(dataset.images.dtype))).encode())
    digest.update(memoryview(dataset.images.transpose(0, 2, 3, 1)).cast("B"))
    digest.update(memoryview(dataset.labels).cast("B"))
    return digest.hexdigest()


def check_provenance(config: dict[str, Any], dataset: Any, quiet: bool) -> None:
    """Raise ValueError if a run that is resumed would go on with other data; say so if its code or threads changed."""
    began, threads = config["provenance"], setup.threads()
    if began["data_sha256"] != data_digest(dataset):
        raise ValueError(f"train: the images or labels of {config['data']} are not those that the run began with "
                         f"(SHA-256 {began['data_sha256'][:12]}..., now {data_digest(dataset)[:12]}...): bring the old "
                         "ones back, or train anew")
    if config["threads"] != threads and config["device"] == "cpu":
        setup.say(f"this run began with {config['threads']} threads and goes on with {threads}: the last bits will "
                  "differ from an unbroken run's", quiet)
    if began["source_sha256"] != source_digest():
        setup.say("tinyres has changed since this run began: the last bits may differ from an unbroken run's", quiet)
