"""Networks by name on the command line: each of them takes digits, and options of its own."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

import tinyres as tr
from tinyres import models
from tinyres.cli import recipes, setup

OLD = {*models.resnet.NETWORKS, *models.preact.NETWORKS}  # which test_models and others run


@pytest.mark.parametrize("name", [name for name in models.names() if getattr(models, name) not in OLD])
def test_each_network_takes_digits(name):
    """One step forward and backward: what `tinyres train --model NAME` does first."""
    tr.manual_seed(0)
    model = setup.build(name, setup.network_options(name, 10, 1, (8, 8)))
    x = np.random.default_rng(0).standard_normal((8, 1, 8, 8)).astype("float32")
    with tr.use_kernels("im2col"):  # no compilation for shapes that occur once
        loss = tr.cross_entropy(model(tr.Tensor(x)), np.arange(8))
        loss.backward()
    assert np.isfinite(loss.item()) and loss.dtype == np.float32
    assert all(p.grad is not None and p.grad.dtype == np.float32 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", models.names())
def test_each_network_says_what_it_takes(name):
    takes = inspect.signature(getattr(models, name)).parameters
    assert {"num_classes"} < set(takes) and {"in_channels", "in_features"} & set(takes)
    assert all(isinstance(option.default, (bool, int, float, str)) for option in takes.values())
    assert inspect.getdoc(getattr(models, name))


def test_options_of_a_network_reach_it_and_stay_with_the_run(tinyres_command):
    command = "train --model article-prose --model-option a=0.3 --model-option filters=16 --epochs 1 --batch 400"
    status, out, err = tinyres_command(f"{command} --quiet --json --out run")
    result = json.loads(out.splitlines()[-1])
    assert status == 0, err
    config = json.loads(Path("run/config.json").read_text())
    assert config["model"] == "article_prose" and config["model_option"] == ["a=0.3", "filters=16"]
    assert (config["network"]["a"], config["network"]["filters"]) == (0.3, 16)
    status, out, err = tinyres_command("eval --weights run --json")
    assert status == 0 and json.loads(out.splitlines()[-1])["correct"] == result["correct"]
    Path("run/result.json").unlink()
    status, out, err = tinyres_command("train --resume run --quiet --json")
    assert status == 0 and json.loads(out.splitlines()[-1])["loss"] == result["loss"]


def test_a_run_from_before_there_were_such_options_goes_on(tinyres_command):
    tinyres_command("train --epochs 1 --batch 400 --quiet --out run")
    path = Path("run/config.json")
    config = json.loads(path.read_text())
    del config["model_option"]
    path.write_text(json.dumps(config))
    Path("run/result.json").unlink()
    status, out, err = tinyres_command("train --resume run --quiet --json")
    assert status == 0, err


@pytest.mark.parametrize("given, message", [
    ("depth", "has no value; give NAME=VALUE"),
    ("dept=20", "Did you mean 'depth'?"),
    ("depth=twenty", "depth takes a whole number"),
    ("residual_scale=x", "residual_scale takes a number"),
    ("num_classes=3", "the data set it"),
])
def test_options_that_cannot_be(given, message, tinyres_command):
    status, out, err = tinyres_command(f"train --model scaled-resnet --model-option {given}")
    assert (status, out) == (2, "") and "--model-option" in err and message in err and err.count("\n") == 1


def test_an_option_given_twice_over(tinyres_command):
    status, _, err = tinyres_command("train --model resnet20 --option B --model-option option=A")
    assert status == 2 and "--option has set it" in err


def test_a_value_that_the_network_refuses_is_the_options_fault(tinyres_command):
    status, _, err = tinyres_command("train --model scaled-resnet --model-option depth=21")
    assert status == 2 and "--model-option" in err and "6n+2" in err


def test_a_network_without_norm_is_trained_gently_unless_told_otherwise():
    def chosen(model, recipe=None, **given):
        found = recipes.choose(recipe, "digits", {"model": model} | given)[1]
        return found.lr, found.clip_norm, found.weight_decay

    for name in ("article-prose", "fixup-resnet20", "skipinit_resnet", "residual_mlp"):
        assert chosen(name) == (0.02, 1.0, 5e-4)
        assert chosen(name, lr=0.3, weight_decay=0.0) == (0.3, 1.0, 0.0)
        assert chosen(name, "he2015") == (0.1, None, 1e-4)
    assert chosen("resnet8") == chosen("article-resnet18") == chosen("chain_addition") == (0.1, None, 1e-2)


@pytest.mark.slow
def test_the_articles_network_learns_the_digits(tinyres_command):
    status, out, err = tinyres_command("train --model article-prose-four-step --epochs 6 --quiet --json --out run")
    assert status == 0 and json.loads(out.splitlines()[-1])["accuracy"] > 0.7, out  # 0.81 was seen
