"""Files of weights: what is written can be read, what is damaged or foreign says so, a checkpoint survives a kill."""

import io
import os
import pickle
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch_files
from fuzz_inputs import zip_bomb
from fuzz_leaves import npy
from safetensors.numpy import load_file
from safetensors.numpy import save as serialise

from tinyres import files, models, random, weights
from tinyres.npy import read_array

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


def test_kuangliu_names_are_translated_and_promise_no_normalisation(tmp_path):
    """pytorch-cifar's ResNet18: akamaster's names with four stages, which its script normalises by CIFAR-10's own."""
    model, other = (network(seed, "resnet18", cifar_stem=True, num_classes=10) for seed in (0, 1))
    (tmp_path / "w").write_bytes(torch_files.files_of(as_akamaster(model.state_dict()))[0])
    source = weights.load(other, tmp_path / "w")
    assert same(other.state_dict(), model.state_dict())
    assert (source.format, source.normalisation, source.architecture.name) == ("akamaster", None, "resnet18")


def as_timm(state):
    """The names of timm's resnetv2_50, whose head is a 1x1 convolution."""
    found = {}
    for name, array in state.items():
        stage, *rest = name.split(".")
        if stage.startswith("layer"):
            block, part, *leaf = rest
            part = {"downsample": "downsample.conv"}.get(part, part.replace("bn", "norm"))
            name = f"stages.{int(stage[5:]) - 1}.blocks.{block}.{part}.{leaf[-1]}"
        else:
            name = {"conv1": "stem.conv", "bn": "norm", "fc": "head.fc"}[stage] + f".{rest[0]}"
        found[name] = array[..., None, None] if name == "head.fc.weight" else array
    return found


def test_timm_names_of_pre_activation_networks_are_translated(tmp_path):
    model, other = network(0, "preact_resnet50", num_classes=7), network(1, "preact_resnet50", num_classes=7)
    foreign = as_timm(model.state_dict())
    assert {"stages.2.blocks.5.norm3.running_var", "stages.0.blocks.0.downsample.conv.weight"} < foreign.keys()
    (tmp_path / "w").write_bytes(serialise({name: array.copy() for name, array in foreign.items()}))
    source = weights.load(other, tmp_path / "w")
    assert same(other.state_dict(), model.state_dict())
    assert (source.format, source.architecture.name) == ("timm", "preact_resnet50")


@pytest.mark.parametrize("leave_out, add, words", [
    ("stages.0.blocks.0.downsample", {}, "resnetv2_18 and _34"), ("norm.running_mean", {}, "with group norm"),
    ("nothing", {"head.fc.weight": np.zeros((7, 2048, 2, 2))}, r"\(7, 2048, 2, 2\), expected \(K, C, 1, 1\)"),
])
def test_timm_networks_that_compute_something_else_are_refused(tmp_path, leave_out, add, words):
    foreign = as_timm(models.build("preact_resnet50", num_classes=7).state_dict()) | add
    small = {name: np.zeros((1,) * array.ndim, np.float32) if name not in add else array
             for name, array in foreign.items() if not name.startswith(leave_out)}
    (tmp_path / "w").write_bytes(serialise(small))
    with pytest.raises(weights.WeightsError, match=words):
        weights.read(tmp_path / "w")


def test_arrays_that_no_resnet_has_leave_the_network_without_a_name():
    """Gates, scales and the like: the plan is a ResNet's, the network is not."""
    state = network(0, "resnet20").state_dict()
    assert weights.identify(state | {"layer1.0.gate.weight": np.zeros(1)}).name == ""
    assert weights.identify(state | {"layer1.0.scale": np.zeros(1)}).name == ""


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


@pytest.mark.parametrize("changes", [
    {"fc.weight": np.zeros(())}, {"layer1.0.conv1.weight": np.zeros(3)}, {"conv1.weight": np.zeros(3)},
    {"layer1.0.conv1.weight": None, "layer1.7.conv1.weight": np.zeros((16, 16, 3, 3))},
    {"layer1.0.conv1.weight": None, "layer1.00.conv1.weight": np.zeros((16, 16, 3, 3))},
    {"layer1.0.conv1.weight": None, "layer1.0.conv1.weight\n": np.zeros((16, 16, 3, 3))},
    {f"layer{'9' * 5000}.0.conv1.weight": np.zeros((3, 3))}, {"layer\u0661.0.conv1.weight": np.zeros((3, 3))},
])
def test_names_that_are_nearly_a_networks_do_no_harm(tmp_path, changes):
    arrays = {name: array for name, array in (network().state_dict() | changes).items() if array is not None}
    (tmp_path / "w").write_bytes(serialise(arrays))
    found = weights.read(tmp_path / "w").architecture
    assert found is None or found.name in ("resnet8", "")


def test_two_names_for_one_array_are_refused(tmp_path):
    arrays = {name: np.zeros(1, np.float32) for name in ("linear.weight", "a.shortcut.b", "a.downsample.b")}
    (tmp_path / "w").write_bytes(serialise(arrays))
    with pytest.raises(weights.WeightsError, match="which both are 'a.downsample.b' here: remove one"):
        weights.read(tmp_path / "w")
    long = "a" * 9999
    arrays = {name: np.zeros(1, np.float32) for name in ("linear.weight", f"{long}.shortcut.b", f"{long}.downsample.b")}
    (tmp_path / "w").write_bytes(serialise(arrays))
    with pytest.raises(weights.WeightsError, match="remove one") as error:
        weights.read(tmp_path / "w")
    assert len(str(error.value)) < 1000


# --- damaged and foreign files ----------------------------------------------------------------------------------------


def npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def zipped(name, content, method=zipfile.ZIP_STORED, times=1):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name given twice
        for _ in range(times):
            archive.writestr(name, content)
    return out.getvalue()


def zipped_npy(header, data=b""):
    return zipped("a.npy", npy(header, data))


def safetensors(header, data=b""):
    return len(header).to_bytes(8, "little") + header.encode() + data


def encrypted(content):
    """With the flag set that says so, in the member's header and in the directory."""
    data = bytearray(content)
    data[6] |= 1
    data[content.index(b"PK\1\2") + 8] |= 1
    return bytes(data)


SMALL = serialise({"a": np.arange(6, dtype=np.float32), "b": np.zeros((), np.int64)})
NPZ = npz(a=np.arange(600, dtype=np.float32))
BFLOAT = '{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
ONE = '{"w":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]%s}}'
HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': (%s,), }"
BOMB = 1024  # MiB that a megabyte of zip unpacks to


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
    (safetensors(BFLOAT, b"1234"), "BF16"),
    (safetensors(ONE % (",".join(["1"] * 65), ""), b"1234"), "maximum supported dimension"),
    (safetensors(ONE % ("1", ',"x":' + "9" * 5000), b"1234"), "cannot be read as safetensors"),
    ((2**40).to_bytes(8, "little") + b"{" * 64, "header too large"),
    (zipped_npy(HEADER % ("<f4", 250 * 10**12)), "expected 1,000,000,000,000,000 for float32"),
    (zipped_npy(HEADER % ("<f4", 3), b"1" * 8), "has 8 bytes of values, expected 12"),
    (zipped_npy(HEADER % ("<f4", 3), b"1" * 16), "has 16 bytes of values, expected 12"),
    (zipped_npy(HEADER % ("<f4", -3)), "expected sizes of at least 0"),
    (zipped_npy(HEADER % ("|V0", 10**15)), r"values of type \|V0, expected numbers"),
    (zipped_npy(HEADER % ("<U3", 1), b"1" * 12), "values of type <U3, expected numbers"),
    (zipped_npy("(" * 9000), "has a damaged header"),
    (zipped_npy("-" * 9000 + "1"), "has a damaged header"),
    (zipped_npy("{'shape': (3L,), "), "has a damaged header"),
    (zipped_npy(" " * 20_000), "has a header of 20,001 bytes"),
    (zipped("a.npy", b"\x93NUMPY\3\0" + b"1" * 20), r"has version \(3, 0\) of the .npy format"),
    (zipped("a.npy", b"hello"), "does not begin with"),
    (zipped("a.npy", NPZ, times=2), "'a' twice"),
    (zipped("a.npy", NPZ, zipfile.ZIP_BZIP2), "packed by another method than deflate"),
    (zipped("a.npy", NPZ, zipfile.ZIP_LZMA), "packed by another method than deflate"),
    (encrypted(NPZ), "encrypted"),
    (zip_bomb("a.npy", npy(HEADER % ("|u1", BOMB << 20), b""), BOMB), "claims to hold 1,073,741,"),
    (zip_bomb("a.npy", npy(HEADER % ("|u1", BOMB << 20), b""), BOMB, claimed=1000), "cannot be read as .npz"),
    (zip_bomb("a.npy", npy(HEADER % ("|u1", 1000), b""), BOMB, claimed=1078), "cannot be read as .npz"),
])
def test_bad_files_are_named_and_take_little_memory(tmp_path, content, message):
    path = tmp_path / "given"
    path.write_bytes(content)
    model = network()
    tracemalloc.start()
    try:
        with pytest.raises(weights.WeightsError, match=message) as error:
            weights.load(model, path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value)


def test_an_npz_may_unpack_to_so_much_of_its_size(tmp_path, monkeypatch):
    """Zeros pack a thousandfold: a small file of them is read, a large one is not, unless it is stored unpacked."""
    packed = npz_of_zeros(300_000, zipfile.ZIP_DEFLATED)
    stored = npz_of_zeros(300_000, zipfile.ZIP_STORED)
    assert len(packed) * 500 < len(stored)
    assert not files.read_npz(tmp_path, packed)["a"].any()
    monkeypatch.setattr(files, "UNPACKED", 1_000_000)
    with pytest.raises(weights.WeightsError, match="claims to hold 1,200,128 bytes, expected at most 1,000,000"):
        files.read_npz(tmp_path, packed)
    assert len(files.read_npz(tmp_path, stored)["a"]) == 300_000
    monkeypatch.setattr(files, "SHRINKAGE", 1_000)
    assert len(files.read_npz(tmp_path, packed)["a"]) == 300_000


def npz_of_zeros(count, method):
    content = io.BytesIO()
    np.save(content, np.zeros(count, np.float32))
    return zipped("a.npy", content.getvalue(), method)


@pytest.mark.parametrize("array", [
    np.arange(6, dtype=">f4").reshape(2, 3), np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)), np.zeros((0, 3)),
    np.array(7, np.int64), np.arange(500_000, dtype=np.int32), np.array([True, False]), np.float16([1, 2]),
], ids=lambda array: f"{array.dtype.str}{array.shape}")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_kind_of_numbers_is_read_from_npz(tmp_path, array, save):
    path = tmp_path / "w.npz"
    save(path, a=array, b=np.ones(3))
    found = weights.read(path).arrays
    assert list(found) == ["a", "b"] and found["a"].dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(found["a"], array) and found["a"].shape == array.shape
    assert found["a"].flags.writeable and found["a"].dtype.isnative


def test_a_stream_that_ends_early_is_truncated():
    content = npy(HEADER % ("|u1", 100), b"1" * 100)
    assert read_array("x", io.BytesIO(content), len(content)).tolist() == [49] * 100
    with pytest.raises(ValueError, match="^x has 60 bytes of values, expected 100: it is truncated$"):
        read_array("x", io.BytesIO(content[:-40]), len(content))


def test_texts_that_are_null_are_none(tmp_path):
    (tmp_path / "w").write_bytes(safetensors('{"__metadata__":null}'))
    assert weights.read(tmp_path / "w").metadata == {}


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
