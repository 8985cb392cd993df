"""The readers of weights, checkpoints and folders of runs that tests/fuzz.py fuzzes; see tests/fuzz_data.py."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import fuzz_inputs as inputs
import numpy as np
from fuzz_data import BOMB, PETABYTE, Files, Reader, npz, saved
from fuzz_leaves import npy

# --- weights ----------------------------------------------------------------------------------------------------------


def thin_network() -> Any:
    from tinyres import models

    return models.resnet.cifar_resnet(8, widths=(2, 4, 8), option="B")


def states() -> list[dict[str, np.ndarray]]:
    """A network's arrays, by our names and by akamaster's."""
    state = thin_network().state_dict()
    foreign = {f"module.{name.replace('fc.', 'linear.').replace('.downsample.', '.shortcut.')}": array
               for name, array in state.items()}
    return [state, foreign]


def read_weights(network: Any, folder: Path) -> tuple[Any, ...]:
    from tinyres import weights

    before = network.state_dict()
    source = weights.read(folder / "w")
    check_source(source)
    try:
        weights.load(network, folder / "w")
    except Exception:
        after = network.state_dict()
        assert all(np.array_equal(after[name], before[name]) for name in before), "a refused file changed the model"
        raise
    finally:
        network.load_state_dict(before)
    return source.format, len(source.arrays), str(source.architecture)


def check_source(source: Any) -> None:
    """The contract of weights.Source."""
    assert source.format in ("tinyres", "wrapped", "akamaster", "timm", "keras")
    for name, array in source.arrays.items():
        assert isinstance(name, str) and isinstance(array, np.ndarray) and array.dtype.kind in "biufc", array.dtype
    assert isinstance(source.config, dict)
    assert all(isinstance(text, str) for pair in source.metadata.items() for text in pair)
    assert source.architecture is None or source.architecture.layers > 0


def safetensors_file(header: str, data: bytes = b"") -> Files:
    text = header.encode()
    return {"w": len(text).to_bytes(8, "little") + text + data}


def safetensors() -> Reader:
    from tinyres import files

    network = thin_network()
    valid = [files.safetensors(state, {"note": "two words"} if i else None) for i, state in enumerate(states())]
    one = '{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]%s}%s}'
    attacks = [
        {"w": (2**40).to_bytes(8, "little") + b"{" * 64}, {"w": (2**64 - 1).to_bytes(8, "little") + b"{}"},
        {"w": (99_999_999).to_bytes(8, "little") + b"{" * 100},
        safetensors_file("[" * 100_000 + "]" * 100_000), safetensors_file('{"__metadata__":null}'),
        safetensors_file(one % (",".join(["1"] * 65), "", ""), bytes(4)),
        safetensors_file(one % ("1", ',"x":' + "9" * 5000, ""), bytes(4)),
        safetensors_file(one % ("1", ',"x":' + "[" * 120 + "]" * 120, ""), bytes(4)),
        safetensors_file(one % ("1", "", ',"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'), bytes(4)),
        safetensors_file(one % ("9223372036854775808,0", "", ""), bytes(4)),
        safetensors_file(one % ("4294967296,4294967296,4294967296", "", ""), bytes(4)),
        *({"w": files.safetensors(arrays)} for arrays in odd_names()),
    ]
    return Reader([{"w": content} for content in valid], lambda folder: read_weights(network, folder), attacks)


def odd_names() -> list[dict[str, np.ndarray]]:
    """Arrays whose names are nearly those of a network."""
    from tinyres import keras_names

    stem, empty = np.zeros((2, 3, 3, 3), np.float32), np.zeros((), np.float32)
    return [
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((), np.int64)},
        {"conv1.weight": stem, "fc.weight": empty, "layer1.0.conv1.weight": stem},
        {"conv1.weight": stem, "fc.weight": stem, "layer1.0.conv1.weight": empty},
        {"conv1.weight": stem, "fc.weight": stem[0, 0], "layer1.7.conv1.weight": stem},
        {"conv1.weight": stem, "fc.weight": stem[0, 0], "layer1.00.conv1.weight": stem},
        {"conv1.weight": stem, "fc.weight": stem, f"layer{'9' * 5000}.0.conv1.weight": stem},
        {"conv1.weight": stem, "fc.weight": stem, "layer\u0661.0.conv1.weight": stem},
        {"linear.weight": stem, "layer1.0.shortcut.0.weight": stem, "layer1.0.downsample.0.weight": stem},
        {f"x{i}" + "y" * 200: empty for i in range(3000)},
        {f"{layer}/kernel:0": stem for layer in keras_names.MLPERF_RESNET8},
        {f"{layer}/kernel:0": empty for layer in keras_names.MLPERF_RESNET8},
        {f"{layer}/bias:0": stem for layer in keras_names.MLPERF_RESNET8} | {"dense/kernel:0": stem[0, 0]},
        {"conv2d_" + "9" * 5000 + "/kernel": stem}, {"/kernel": stem}, {"conv2d\n_1/kernel": stem, "x/": stem},
        {"stem.conv.weight": stem, "head.fc.weight": empty, "stages.0.blocks.0.conv3.weight": stem,
         "stages.0.blocks.0.downsample.conv.weight": stem, "norm.running_mean": empty},
    ]


def npz_weights() -> Reader:
    network = thin_network()
    valid = [npz(state, packed=i > 0) for i, state in enumerate(states())]
    start = npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({BOMB << 18},), }}", b"")
    attacks = [
        inputs.zip_bomb("a.npy", start, BOMB), inputs.zip_bomb("a.npy", start, BOMB, claimed=1000),
        inputs.zip_bomb("a.npy", npy(PETABYTE, b""), 1), inputs.zip_bomb("a.txt", b"x", BOMB),
        inputs.zipped([("a.npy", npy(PETABYTE, bytes(64)))]),
        inputs.zipped([("a.npy", npy(PETABYTE.replace("<f4", "|V0"), b""))]),
        inputs.zipped([("a.npy", npy("-" * 9000 + "1", b""))]),
        inputs.zipped([("a.npy", npy("(" * 9000, b""))]),
        inputs.zipped([("a.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3L,), ", bytes(12)))]),
        inputs.zipped([("a.npy", saved(np.array([object()])))]),
        inputs.zipped([("a.npy", bytes(1 << 24))], 12),
        *(npz(arrays) for arrays in odd_names()),
    ]
    return Reader([{"w": content} for content in valid], lambda folder: read_weights(network, folder),
                  [{"w": content} for content in attacks])


# --- checkpoints ------------------------------------------------------------------------------------------------------


def job() -> tuple[Any, ...]:
    """A network, loader, optimizer, schedule and average, as train() takes them."""
    from tinyres import ema, optim
    from tinyres.data import Dataset, Loader

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 3, 8, 8), np.uint8)
    loader = Loader(Dataset(images, np.arange(8), "abcdefghij"), 4, seed=0)
    network = thin_network()
    optimizer = optim.AdamW(optim.split_decay(network, 0.01), lr=0.01)
    return network, loader, optimizer, optim.OneCycleLR(optimizer, 0.01, 8), ema.ExponentialMovingAverage(network)


def resume(parts: tuple[Any, ...], folder: Path, epochs: int, go_on: bool = True) -> list[Any]:
    from tinyres import kernels
    from tinyres.train import train

    kernels.use_kernels("reference")
    network, loader, optimizer, schedule, average = parts
    return train(network, loader, optimizer, epochs, schedule=schedule, average=average, out=folder, resume=go_on,
                 config={"data": "digits", "model": "resnet8"})


def run_folders() -> list[Files]:
    """Two runs' folders, one stopped after its first epoch and one after its second."""
    found = []
    for epochs in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            resume(job(), Path(folder), epochs, go_on=False)
            found.append({path.name: path.read_bytes() for path in Path(folder).iterdir()})
    return found


def fit_digests(files: Files, rng: Random) -> Files:
    """Most often, the checkpoint's digest is made that of the arrays beside it, so that changed ones are read."""
    if rng.random() < 0.2:
        return files
    for name in ("checkpoint.json", "checkpoint-previous.json"):
        try:
            saved = json.loads(files[name])
            saved["weights"]["sha256"] = hashlib.sha256(files[saved["weights"]["file"]]).hexdigest()
            files = {**files, name: json.dumps(saved).encode()}
        except (KeyError, TypeError, ValueError, RecursionError):
            pass
    return files


def read_checkpoint(folder: Path) -> tuple[Any, ...]:
    from tinyres import checkpoint, weights
    from tinyres.tensor import Tensor

    check_source(weights.read(folder))
    network, _, optimizer, schedule, average = job()
    before = network.state_dict()
    try:
        progress = checkpoint.load_checkpoint(folder, network, optimizer, schedule, average)
    except Exception:
        after = network.state_dict()
        assert all(np.array_equal(after[name], before[name]) for name in before), "a refused checkpoint changed it"
        raise
    assert isinstance(progress, dict)
    for p in optimizer.parameters():  # what was loaded can be used, and saved again
        p.grad = Tensor(np.zeros_like(p.data))
    with np.errstate(all="ignore"):
        optimizer.step()
        average.update()
    json.dumps([optimizer.state_dict()["scalars"], schedule.state_dict()])
    return schedule.count, len(progress)


def checkpoint() -> Reader:
    valid = run_folders()
    return Reader(valid, read_checkpoint, damaged(valid[1]), fit_digests)


def resumed_run() -> Reader:
    """A training that goes on from the folder: it refuses it, or does what is left of two epochs, or diverges."""

    def read(folder: Path) -> Any:
        try:
            rows = resume(job(), folder, 2)
        except FloatingPointError:
            return "diverged"
        assert all(isinstance(row, dict) for row in rows)
        return len(rows)

    valid = run_folders()
    return Reader(valid, read, damaged(valid[0]), fit_digests)


def damaged(files: Files) -> list[Files]:
    """The folder with one thing in its checkpoint.json changed, and a few with more."""
    deep = "[" * 50 + "]" * 50
    values = {
        "format": '"' + "x" * 10**6 + '"', "weights": "[]", "weights.file": f'"{"x" * 300}"', "weights.sha256": "7",
        "config": '["a"]', "progress": "7", "progress.at": "[1, 2]", "progress.at.step": "-5", "progress.log": deep,
        "progress.at.batch": "99", "progress.at.epoch": str(10**30), "progress.at.loss": "1e400",
        "progress.at.images": "true", "progress.at.seconds": "NaN", "random": "{}", "random.buffer": '["x"]',
        "random.counter": "[[1], 2]", "random.key": str([2**64, -1]), "random.uinteger": "1e400", "schedule": "[]",
        "schedule.count": "1e300", "schedule.base_lrs": '["x", 1]', "optimizer": "null", "optimizer.counters": "7",
        "optimizer.counters.0$step": "-5", "optimizer.groups": deep, "optimizer.groups.0.betas": "[1]",
        "optimizer.groups.0.lr": '"x"', "optimizer.names": "{}", "average.count": "-10", "average.decay": "null",
    }
    found = [{**files, "checkpoint.json": edited(files["checkpoint.json"], place, value)}
             for place, value in values.items()]
    without_steps = edited(files["checkpoint.json"], "optimizer.counters", "{}")
    previous = {**files, "checkpoint-previous.json": files["checkpoint.json"]}
    return [*found, {**files, "checkpoint.json": without_steps}, {**previous, "checkpoint.json": b"\xa2"},
            {**previous, "checkpoint-previous.json": b"\xa2"}, {**previous, "checkpoint.json": b"[" * 10**5}]


def edited(content: bytes, place: str, value: str) -> bytes:
    """JSON with other text at a place, such as a.b.0; a $ in a name stands for a dot."""
    tree = json.loads(content)
    *path, last = (int(key) if key.isdecimal() else key.replace("$", ".") for key in place.split("."))
    held = tree
    for key in path:
        held = held[key]
    held[last] = "@RAW@"
    return json.dumps(tree).replace('"@RAW@"', value).encode()


# --- JSON -------------------------------------------------------------------------------------------------------------


def json_file() -> Reader:
    from tinyres.cli import setup

    def read(folder: Path) -> Any:
        found = setup.read_json(folder / "x.json")
        assert isinstance(found, dict)
        return len(found)

    valid = {"a": 1, "b": [1.5, None, True], "c": {"d": "text", "e": []}}
    attacks = [b"[" * 10**5 + b"]" * 10**5, b'{"a":' * 10**5, b"9" * 10**5, b'{"a": ' + b"9" * 10**5 + b"}", b"[]",
               b'"a"', b"1", b"null", b"[[1, 2]]", b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}", b""]
    return Reader([{"x.json": json.dumps(valid).encode()}], read, [{"x.json": content} for content in attacks])


# --- folders of runs --------------------------------------------------------------------------------------------------


ROW = {"epoch": 1, "iterations": 22, "lr": 0.1, "train_loss": 2.1, "train_accuracy": 0.25, "seconds": 0.8,
       "images_per_second": 1800.5}
OPTIONS = {"model": "resnet8", "epochs": 2, "batch": 64, "lr": 0.1, "iterations": None, "momentum": 0.9,
           "nesterov": True, "weight_decay": 0.01, "schedule": "cosine", "warmup": 0, "label_smoothing": 0.0,
           "mixup": 0.0, "augment": True, "ema": 0.0, "clip_norm": None, "accumulate": 1, "validate": False,
           "data": "digits", "data_dir": None, "image_size": None, "recipe": "digits", "option": None,
           "freeze": ["conv1*"], "seed": 0, "kernels": "reference", "tensorboard": False}
FACTS = {"network": {"num_classes": 10}, "threads": 2, "versions": {"python": "3.11.7"},
         "normalisation": {"mean": [0.3], "std": [0.4]},
         "provenance": {"began": "2026-11-24T07:00:00+00:00", "command": ["tinyres", "train"], "cores": 2,
                        "source_sha256": "0" * 64, "data_sha256": "0" * 64}}
RESULT = {"accuracy": 0.99, "correct": 357, "n": 360, "loss": 0.05, "seed": 0, "epochs": 2, "seconds": 9.9,
          "images_per_second": 1800.0, "out": "runs/x"}


def folders_of_runs() -> Reader:
    """`tinyres runs`: it never refuses a folder, and whatever it read can be compared, and written as JSON."""
    from tinyres.analysis import runs

    def read(folder: Path) -> Any:
        found = runs.find_runs([folder])
        for by in runs.SORTS:
            found = runs.sort_runs(found, by)
        names = runs.differing(found)
        for run in found:
            assert run.state in ("finished", "unfinished", "damaged"), run.state
            json.dumps(run.as_dict(names), allow_nan=False)
            assert all(isinstance(runs.readable(run.config.get(name)), str) for name in names)
            if run.state != "damaged":
                assert isinstance(runs.label(run, found), str)
        for group in runs.group_runs(found):
            json.dumps(group.as_dict(names), allow_nan=False)
        return [run.state for run in found]

    log = "".join(json.dumps({**ROW, "epoch": epoch}) + "\n" for epoch in (1, 2)).encode()
    one = {"config.json": json.dumps(OPTIONS | FACTS).encode(), "log.jsonl": log,
           "result.json": json.dumps(RESULT).encode()}
    other = {**one, "config.json": json.dumps(OPTIONS | FACTS | {"seed": 1, "epochs": None, "iterations": 44}).encode()}
    valid = [one, {name: one[name] for name in ("config.json", "log.jsonl")},
             {f"seed{seed}/{name}": content for seed, run in enumerate((one, other)) for name, content in run.items()}]
    deep, large = b"[" * 10**5 + b"]" * 10**5, b'{"seed": ' + b"9" * 10**5 + b"}"
    attacks = [{**one, name: content} for name in one for content in (
        deep, large, b'{"epoch": 1e400}', b"\0" * 1000, b"\n" * 10**6, b'{"accuracy": NaN}')]
    return Reader(valid, read, attacks)


RUNS: dict[str, Callable[[], Reader]] = {
    "safetensors": safetensors,
    "npz weights": npz_weights,
    "checkpoint": checkpoint,
    "resumed run": resumed_run,
    "json": json_file,
    "folders of runs": folders_of_runs,
}
