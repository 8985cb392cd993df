"""Files of weights: what is written can be read, what is damaged or foreign says so, a checkpoint survives a kill."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save as serialise

from tinyres import files, models, random, weights

PUBLISHED = Path(os.environ.get("TINYRES_DATA", "")) / "pretrained"


def network(seed=0, name="resnet8", **options):
    random.manual_seed(seed)
    model = models.build(name, **options)
    for _, buffer in model.named_buffers():  # running statistics like those of a trained network
        if buffer.dtype.kind == "f":
            buffer.data[...] = 1 + random.generator().random(buffer.shape, dtype=np.float32)
    return model


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def as_akamaster(state):
    """The names that akamaster/pytorch_resnet_cifar10 gives."""
    kept = {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}
    new = [name.replace("fc.", "linear.").replace(".downsample.", ".shortcut.") for name in kept]
    return {f"module.{name}": array for name, array in zip(new, kept.values(), strict=True)}


# --- files ------------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_bit_by_bit(tmp_path):
    model, other = network(0), network(1)
    weights.save(model, tmp_path / "w.safetensors", {"note": "two words"})
    source = weights.load(other, tmp_path / "w.safetensors")
    assert same(other.state_dict(), model.state_dict())
    assert (source.format, source.normalisation, source.metadata) == ("tinyres", None, {"note": "two words"})
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_others_can_read_what_is_saved(tmp_path):
    model = network()
    weights.save(model, tmp_path / "w.safetensors")
    assert same(load_file(tmp_path / "w.safetensors"), model.state_dict())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    model = network()
    path = tmp_path / "w.safetensors"
    weights.save(model, path)
    before = path.read_bytes()
    monkeypatch.setattr(files.os, "replace", lambda *names: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        weights.save(network(1), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize("option", ["A", "B"])
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_published_names_are_translated(tmp_path, option, kind):
    model, other = network(0, "resnet20", option=option), network(1, "resnet20", option=option)
    path, arrays = tmp_path / "published", as_akamaster(model.state_dict())
    if kind == "npz":
        with open(path, "wb") as file:
            np.savez(file, **arrays)
    else:
        path.write_bytes(serialise(arrays))
    source = weights.load(other, path)
    assert same(other.state_dict(), model.state_dict())
    assert (source.format, source.normalisation) == ("akamaster", weights.IMAGENET)
    assert source.architecture.name == "resnet20" and source.architecture.options["option"] == option


def test_wrapped_names_are_unwrapped_but_promise_no_normalisation(tmp_path):
    model = network()
    (tmp_path / "w").write_bytes(serialise({f"_orig_mod.{name}": a for name, a in model.state_dict().items()}))
    source = weights.read(tmp_path / "w")
    assert (source.format, source.normalisation) == ("wrapped", None)
    assert source.arrays.keys() == model.state_dict().keys()


def test_a_misfit_says_which_network_the_file_is_for_and_loads_nothing(tmp_path):
    weights.save(network(0, "resnet20"), tmp_path / "w.safetensors")
    model = network(1, "resnet32")
    before = model.state_dict()
    with pytest.raises(weights.WeightsError) as error:
        weights.load(model, tmp_path / "w.safetensors")
    text = str(error.value)
    assert "models.resnet20(num_classes=10, in_channels=3, option='A')" in text
    assert "missing from the state (60)" in text and "layer3.4.bn2.running_var" in text
    assert same(model.state_dict(), before)
    with pytest.raises(weights.WeightsError, match=r"conv1\.weight: the state has shape \(16, 3, 3, 3\)"):
        weights.load(network(1, "resnet20", in_channels=1), tmp_path / "w.safetensors")


@pytest.mark.parametrize("name, options", [
    ("resnet8", {"in_channels": 1}), ("resnet20", {"option": "B"}), ("resnet32", {"option": "C", "num_classes": 100}),
    ("preact_resnet20", {"option": "B"}), ("preact_resnet164", {}), ("resnet50", {}),
    ("resnet18", {"cifar_stem": True, "num_classes": 10}),
])
def test_names_and_shapes_tell_the_network(name, options):
    model = models.build(name, **options)
    found = weights.identify(model.state_dict())
    assert found.name == name
    assert {key: found.options[key] for key in options} == options
    assert same_shapes(models.build(found.name, **found.options).state_dict(), model.state_dict())


def same_shapes(a, b):
    return {name: array.shape for name, array in a.items()} == {name: array.shape for name, array in b.items()}


def test_unknown_networks_are_not_guessed():
    thin = models.resnet.cifar_resnet(8, widths=(8, 16, 32)).state_dict()
    assert weights.identify(thin).name == "" and weights.identify(thin).widths == (8, 16, 32)
    assert weights.identify({"0.weight": np.zeros((3, 3))}) is None
    assert weights.identify({}) is None


# --- damaged and foreign files ----------------------------------------------------------------------------------------


def npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def zipped(name, content):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, content)
    return out.getvalue()


SMALL = serialise({"a": np.arange(6, dtype=np.float32), "b": np.zeros((), np.int64)})
NPZ = npz(a=np.arange(600, dtype=np.float32))
BFLOAT = b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'


@pytest.mark.parametrize("content, message", [
    *[(SMALL[:n], "truncated, damaged") for n in (0, 1, 7, 8, 30, len(SMALL) - 1)],
    (SMALL + b"x", "truncated, damaged"),
    (b"\xff" * 64, "truncated, damaged"),
    *[(NPZ[:n], "cannot be read as .npz") for n in (4, 100, len(NPZ) // 2, len(NPZ) - 1)],
    (NPZ[:300] + b"\0" * 64 + NPZ[364:], "cannot be read as .npz"),
    (npz(a=np.array([object()])), "Python objects"),
    (pickle.dumps({"a": 1}, protocol=2), "is a PyTorch pickle"),
    (pickle.dumps({"a": 1}, protocol=4), "is a PyTorch pickle"),
    (zipped("archive/data.pkl", pickle.dumps({"a": 1})), "is a PyTorch pickle"),
    (zipped("readme.txt", b"hello"), "not all of its members are arrays"),
    (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "HDF5"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    (b"<!DOCTYPE html><html></html>", "HTML"),
    (len(BFLOAT).to_bytes(8, "little") + BFLOAT + b"1234", "BF16"),
])
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "given"
    path.write_bytes(content)
    with pytest.raises(weights.WeightsError, match=message) as error:
        weights.load(network(), path)
    assert str(path) in str(error.value)


def test_a_header_that_begins_like_a_pickle_is_no_pickle(tmp_path):
    """The first byte of a safetensors file is the low byte of its header's length; 0x80 also begins a pickle."""
    for note in range(400):
        content = serialise({"a": np.zeros(3, np.float32)}, {"note": "x" * note})
        if content[0] == 0x80:
            break
    assert content[0] == 0x80
    (tmp_path / "w").write_bytes(content)
    assert list(weights.read(tmp_path / "w").arrays) == ["a"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        weights.read(tmp_path / "nowhere")


@pytest.mark.skipif(not (PUBLISHED / "resnet20.npz").is_file(), reason="there is no $TINYRES_DATA/pretrained")
@pytest.mark.parametrize("name, parameters", [("resnet20", 269_722), ("resnet32", 464_154)])
def test_published_files_load(name, parameters):
    model = models.build(name)
    source = weights.load(model, PUBLISHED / f"{name}.npz")
    assert (source.format, source.normalisation, source.architecture.name) == ("akamaster", weights.IMAGENET, name)
    assert sum(p.numel() for p in model.parameters()) == parameters
