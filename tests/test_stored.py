"""Weights that say which network they are for: files with texts about themselves, runs, options on top of either."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer

from tinyres import models, random, weights
from tinyres.cli.stored import network_for, stored
from tinyres.files import safetensors

NETWORKS = [("scaled_resnet", {"depth": 8, "residual_scale": 0.1, "shortcut_scale": 0.9}),
            ("stochastic_depth_resnet", {"depth": 8, "survival": 0.3}), ("plain8", {})]
MEAN, STD = [0.25], [0.5]


def last_line(out):
    return json.loads(out.strip().splitlines()[-1])


def written(name, options, texts=None, path="w.safetensors"):
    """A file of the network's weights with these texts, or with those of network_texts."""
    random.manual_seed(0)
    model = models.build(name, **options)
    texts = weights.network_texts(name, options, (MEAN, STD)) if texts is None else texts
    Path(path).write_bytes(safetensors(model.state_dict(), texts))
    return model


# --- runs and files that say it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, options", NETWORKS)
def test_an_exported_run_evaluates_as_itself(tinyres_command, name, options):
    """Names and shapes alone would make each of these a resnet8."""
    given = " ".join(f"--model-option {key}={value}" for key, value in options.items())
    assert tinyres_command(f"train --model {name} {given} --iterations 3 --out run --quiet --kernels im2col")[0] == 0
    config = json.loads(Path("run/config.json").read_text())
    assert config["network"].items() >= options.items()
    assert tinyres_command("export run --to w.safetensors --json")[0] == 0
    source = weights.read("w.safetensors")
    assert source.network == (name, config["network"])
    assert source.normalisation == tuple(tuple(config["normalisation"][key]) for key in ("mean", "std"))
    results = []
    for line in ("run", "w.safetensors", "w.safetensors --model resnet8"):
        status, out, err = tinyres_command(f"eval --weights {line} --data digits --json --kernels im2col")
        assert status == 0, err
        results.append(last_line(out))
    of_run, of_file, as_resnet = results
    assert (of_file["loss"], of_file["model"]) == (of_run["loss"], name) and of_run["loss"] != as_resnet["loss"]
    assert (of_file["mean"], of_file["std"]) == tuple(config["normalisation"][key] for key in ("mean", "std"))
    assert tinyres_command("export w.safetensors --to v.safetensors --json")[0] == 0
    again = weights.read("v.safetensors")
    assert again.metadata == source.metadata and again.arrays.keys() == source.arrays.keys()
    assert all(np.array_equal(again.arrays[key], array) for key, array in source.arrays.items())


def test_the_file_s_normalisation_is_used_unless_another_is_asked_for(tinyres_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written("resnet8", {"in_channels": 1})
    for given, mean, std in (("", MEAN, STD), ("--normalize none", [0.0], [1.0])):
        status, out, err = tinyres_command(f"eval --weights w.safetensors --data digits {given} --json")
        assert (status, last_line(out)["mean"], last_line(out)["std"]) == (0, mean, std)
        assert given or "the statistics that the weights expect" in err


def test_options_on_top_of_what_is_said_change_only_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, options = NETWORKS[0]
    options = options | {"in_channels": 1, "num_classes": 7, "option": "B"}
    written(name, options)
    path = Path("w.safetensors")
    for model in (None, "scaled-resnet", "scaled_resnet"):
        found = stored(path, model, None, ["residual_scale=0.7"], None)
        assert (found.name, found.options) == (name, options | {"residual_scale": 0.7})
        assert stored(path, model, None, [], None).options == options
    source = weights.read(path)
    assert network_for(source, path, None, "A", [], 10, 3, (32, 32)) == (name, options | {"option": "A"})
    assert network_for(source, path, None, None, ["option=A"], 10, 3, (32, 32)) == (name, options | {"option": "A"})
    other, taken = network_for(source, path, "resnet8", None, [], 7, 1, (8, 8))
    assert (other, taken) == ("resnet8", {"num_classes": 7, "in_channels": 1, "option": "B"})
    with pytest.raises(typer.BadParameter, match="has no option 'residual_scal'.*Did you mean 'residual_scale'"):
        stored(path, None, None, ["residual_scal=1"], None)


def test_an_option_on_top_of_a_run(tinyres_command):
    tinyres_command("train --model scaled-resnet --model-option depth=8 --model-option residual_scale=0.1 "
                    "--iterations 3 --out run --quiet --kernels im2col")
    losses = [last_line(tinyres_command(f"eval --weights run {given} --json --quiet --kernels im2col")[1])["loss"]
              for given in ("", "--model-option residual_scale=0.1", "--model-option residual_scale=1.0")]
    assert losses[0] == losses[1] != losses[2]


def test_rows_keep_their_length():
    options = {"in_features": 12, "num_classes": 3, "depth": 2, "width": 8}
    source = weights.Source({}, "tinyres", metadata=weights.network_texts("residual-mlp", options))
    assert source.network == ("residual_mlp", options)
    found = network_for(source, Path("w"), None, None, ["a=0.5"], 10, 3, (32, 32))
    assert found == ("residual_mlp", options | {"a": 0.5})


def test_what_is_not_said_is_the_networks_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written("residual_mlp", {"in_features": 12, "depth": 2}, weights.network_texts("residual_mlp", {"depth": 2}))
    found = stored(Path("w.safetensors"), None, None, [], None)
    assert (found.shape, found.options) == ((12,), {"in_features": 12, "depth": 2})


# --- files that say nothing -------------------------------------------------------------------------------------------


def test_plain_files_are_told_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written("resnet8", {"option": "B", "in_channels": 1}, {"note": "none"})
    source = weights.read("w.safetensors")
    assert (source.network, source.normalisation) == (None, None)
    found = stored(Path("w.safetensors"), None, None, [], None)
    assert (found.name, found.options["option"]) == ("resnet8", "B")
    assert (found.normalisation, found.shape) == (None, (1, 32, 32))


@pytest.mark.parametrize("command", ["export w.safetensors --to n.onnx", "summary --weights w.safetensors"])
@pytest.mark.parametrize("arrays", [
    {"fc.weight": np.zeros((), np.float32)}, {"fc.weight": np.zeros(3, np.float32)},
    {"stem.weight": np.zeros((), np.float32), "conv1.weight": np.zeros(2, np.float32)},
])
def test_arrays_of_odd_shapes_are_no_network(tinyres_command, tmp_path, command, arrays):
    (tmp_path / "w.safetensors").write_bytes(safetensors(arrays))
    status, out, err = tinyres_command(command)
    assert (status, out) == (2, "") and "no network known by its names" in err and err.count("\n") == 1


def test_weights_that_are_not_finite(tinyres_command, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")
    state = models.resnet8(in_channels=1).state_dict()
    state["fc.bias"][0] = np.nan
    (tmp_path / "w.safetensors").write_bytes(safetensors(state))
    status, out, err = tinyres_command("eval --weights w.safetensors --data digits --json --quiet --kernels im2col")
    assert (status, last_line(out)["loss"]) == (0, None), err
    status, out, err = tinyres_command("export w.safetensors --to n.onnx --json")
    assert (status, out) == (1, "") and "the weights are damaged" in err


# --- hostile texts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["", "{", "[1]", "3", "null", '"resnet8"', "[" * 100_000, '{"a":' * 50_000,
                                     '{"depth": ' + "9" * 5000 + "}"])
def test_texts_that_say_no_network_are_passed_over(network):
    source = weights.Source({}, "tinyres", metadata={"model": "scaled_resnet", "network": network})
    assert source.network is None
    assert weights.Source({}, "tinyres", metadata={"network": "{}"}).network is None
    assert weights.Source({}, "tinyres", metadata={"model": "resnet8"}).network is None


@pytest.mark.parametrize("model, network, words", [
    ("evil", "{}", "no network is called 'evil'"), ("__class__", "{}", "no network is called"),
    ("build", '{"name": "resnet8"}', "no network is called"), ("resnet8", '{"evil": 1}', "takes no 'evil'"),
    ("resnet8", '{"evil": null}', "takes no 'evil'"),
    ("scaled_resnet", '{"depth": "8"}', "takes no 'depth' of '8'"), ("scaled_resnet", '{"depth": 8.0}', "'depth' of"),
    ("scaled_resnet", '{"residual_scale": [1]}', "takes no 'residual_scale'"),
    ("resnet8", '{"num_classes": null}', "takes no 'num_classes' of 'None'"),
    ("resnet8", '{"option": {"a": "%s"}}' % ("x" * 9999), "takes no 'option'"),
    ("scaled_resnet", '{"depth": 6000002}', "depth is 6000002, expected at most 10,000"),
])
def test_texts_that_say_a_network_that_cannot_be(tinyres_command, tmp_path, monkeypatch, model, network, words):
    monkeypatch.chdir(tmp_path)
    written("resnet8", {"in_channels": 1}, {"model": model, "network": network})
    for line in ("eval --weights w.safetensors --data digits", "export w.safetensors --to v.safetensors"):
        status, out, err = tinyres_command(line)
        assert (status, out) == (2, "") and words in err and "w.safetensors says for which network" in err, err
        assert "--model" in err and err.count("\n") == 1 and len(err) < 2500
    status, out, err = tinyres_command("export w.safetensors --to v.safetensors --model resnet8 --json")
    assert (status, last_line(out)["model"]) == (0, "resnet8"), err


def test_a_network_that_is_said_but_does_not_fit(tinyres_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written("resnet8", {"in_channels": 1}, {"model": "resnet20", "network": '{"in_channels": 1}'})
    status, out, err = tinyres_command("export w.safetensors --to v.safetensors")
    assert (status, out) == (1, "") and "missing from the state" in err
    assert not Path("v.safetensors").exists()


@pytest.mark.parametrize("text", [
    "", "{", "[]", "3", "null", "{}", '{"mean": [0]}', '{"mean": [0], "std": []}', '{"mean": [], "std": []}',
    '{"mean": [0], "std": [0]}', '{"mean": [0], "std": [-1]}', '{"mean": [NaN], "std": [1]}', '{"mean": 0, "std": 1}',
    '{"mean": [0], "std": [Infinity]}', '{"mean": [0, 0], "std": [1]}', '{"mean": ["x"], "std": [1]}',
    '{"mean": [[0]], "std": [1]}', '{"mean": [null], "std": [1]}', '{"mean": [1%s], "std": [1]}' % ("0" * 400),
    '{"mean": [0], "std": [1e-60]}', '{"mean": [1e300], "std": [1]}', '{"mean": {"a": 0}, "std": [1]}', "[" * 100_000,
])
def test_a_normalisation_that_cannot_be_is_passed_over(tmp_path, text):
    (tmp_path / "w").write_bytes(safetensors({"a": np.zeros(3, np.float32)}, {"normalisation": text}))
    assert weights.read(tmp_path / "w").normalisation is None


def test_a_normalisation_for_other_channels_is_an_error(tinyres_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written("resnet8", {"in_channels": 1}, weights.network_texts("resnet8", {"in_channels": 1}, ([0] * 3, [1] * 3)))
    status, out, err = tinyres_command("eval --weights w.safetensors --data digits")
    assert (status, out) == (2, "") and "--normalize" in err and "expected 1 finite numbers" in err


def test_texts_name_a_network_that_there_is():
    assert weights.network_texts("scaled-resnet", {"depth": 8}) == {"model": "scaled_resnet", "network": '{"depth": 8}'}
    texts = weights.network_texts("resnet8", {}, (np.float32([0.5]), np.float32([0.25])))
    assert json.loads(texts["normalisation"]) == {"mean": [0.5], "std": [0.25]}
    with pytest.raises(ValueError, match="no network is called 'resnet9'"):
        weights.network_texts("resnet9", {})
