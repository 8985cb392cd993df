"""Checkpoints: everything comes back, a kill leaves the old one or the new one, a lost newest one is survived."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_weights import network, same

from tinyres import checkpoint, ops, optim, random, weights
from tinyres.tensor import Tensor


def trained(seed=0, steps=1):
    """A network after some steps of Adam, with a schedule that has counted them."""
    model = network(seed)
    optimizer = optim.Adam(model.named_parameters(), lr=0.01)
    schedule = optim.StepLR(optimizer, 1)
    for _ in range(steps):
        x = random.generator().standard_normal((4, 3, 8, 8), dtype=np.float32)
        optimizer.zero_grad()
        ops.cross_entropy(model(Tensor(x)), np.arange(4)).backward()
        optimizer.step()
        schedule.step()
    return model, optimizer, schedule


def test_a_checkpoint_brings_everything_back(tmp_path):
    model, optimizer, schedule = trained()
    checkpoint.save_checkpoint(tmp_path, model, optimizer, schedule, {"epoch": 3}, {"seed": 7})
    expected = random.generator().random(3)
    others = trained(seed=1, steps=0)
    assert checkpoint.load_checkpoint(tmp_path, *others) == {"epoch": 3}
    assert np.array_equal(random.generator().random(3), expected)
    assert same(others[0].state_dict(), model.state_dict())
    assert same(others[1].state_dict()["arrays"], optimizer.state_dict()["arrays"])
    assert others[1].state_dict()["scalars"] == optimizer.state_dict()["scalars"]
    assert others[2].state_dict() == schedule.state_dict()
    source = weights.load(network(2), tmp_path)
    assert source.config == {"seed": 7}


def test_a_kill_between_the_two_files_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    model, optimizer, _ = trained()
    checkpoint.save_checkpoint(tmp_path, model, optimizer, progress={"epoch": 1})
    state = model.state_dict()
    write = checkpoint.write_atomically

    def killed(path, content):
        if Path(path).name == checkpoint.CHECKPOINT:
            raise KeyboardInterrupt
        write(path, content)

    model.conv1.weight.data[...] = 0
    monkeypatch.setattr(checkpoint, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_checkpoint(tmp_path, model, optimizer, progress={"epoch": 2})
    monkeypatch.undo()
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    again = trained(seed=1, steps=0)
    assert checkpoint.load_checkpoint(tmp_path, *again[:2]) == {"epoch": 1}
    assert same(again[0].state_dict(), state)
    checkpoint.save_checkpoint(tmp_path, model, optimizer, progress={"epoch": 2})
    checkpoint.save_checkpoint(tmp_path, model, optimizer, progress={"epoch": 3})
    named = {json.loads((tmp_path / name).read_text())["weights"]["file"]
             for name in (checkpoint.CHECKPOINT, checkpoint.PREVIOUS)}
    assert {path.name for path in tmp_path.glob("*.safetensors")} == named  # what the kill left is cleared away


def _damage_weights(folder):
    path = next(folder.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _edit(folder, change):
    path = folder / checkpoint.CHECKPOINT
    saved = json.loads(path.read_text())
    change(saved)
    path.write_text(json.dumps(saved))


@pytest.mark.parametrize("damage, message", [
    (_damage_weights, "it is damaged"),
    (lambda folder: next(folder.glob("*.safetensors")).unlink(), "which is not there"),
    (lambda folder: (folder / checkpoint.CHECKPOINT).write_text('{"format": "tiny'), "is damaged or no checkpoint"),
    (lambda folder: (folder / checkpoint.CHECKPOINT).write_text("[]"), "is damaged or no checkpoint"),
    (lambda folder: _edit(folder, lambda saved: saved.update(format="other 2")), "format 'other 2'"),
    (lambda folder: _edit(folder, lambda saved: saved["weights"].update(file="../w.safetensors")), "names the file"),
    (lambda folder: _edit(folder, lambda saved: saved["optimizer"].update(optimizer="SGD")), "not of this model"),
])
def test_damaged_checkpoints_are_refused(tmp_path, damage, message):
    model, optimizer, _ = trained()
    checkpoint.save_checkpoint(tmp_path, model, optimizer)
    damage(tmp_path)
    with pytest.raises(weights.WeightsError, match=message):
        checkpoint.load_checkpoint(tmp_path, model, optimizer)


@pytest.mark.parametrize("content", [b"", b"\xa2", b'{"format": "tiny', None])
def test_a_damaged_newest_checkpoint_never_takes_the_place_of_the_one_before_it(tmp_path, content):
    model, optimizer, _ = trained()
    for epoch in (1, 2):
        model.conv1.weight.data[...] = epoch
        checkpoint.save_checkpoint(tmp_path, model, optimizer, progress={"epoch": epoch})
    newest = json.loads((tmp_path / checkpoint.CHECKPOINT).read_text())["weights"]["file"]
    if content is None:
        (tmp_path / newest).write_bytes(b"damaged")
    else:
        (tmp_path / checkpoint.CHECKPOINT).write_bytes(content)
    kept = (tmp_path / checkpoint.PREVIOUS).read_bytes()
    model.conv1.weight.data[...] = 3
    checkpoint.save_checkpoint(tmp_path, model, optimizer, progress={"epoch": 3})
    assert (tmp_path / checkpoint.PREVIOUS).read_bytes() == kept
    assert (tmp_path / json.loads(kept)["weights"]["file"]).is_file()
    assert checkpoint.read_checkpoint(tmp_path)[0]["progress"] == {"epoch": 3}


def test_a_folder_without_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no checkpoint\.json"):
        checkpoint.load_checkpoint(tmp_path, network())
