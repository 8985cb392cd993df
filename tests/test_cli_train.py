"""`tinyres train` and `tinyres eval` on what train left: files, options, recipes, seeds, resuming."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import typer

import tinyres
from tinyres import models, optim, weights
from tinyres.cli import folders, recipes

QUICK = "train --epochs 2 --batch 200 --quiet --json --out"


def last_line(out):
    return json.loads(out.splitlines()[-1])


def test_a_run_leaves_its_files_and_eval_finds_its_accuracy_again(tinyres_command):
    status, out, err = tinyres_command(f"{QUICK} run --seed 3 --lr 0.2")
    result = last_line(out)
    assert (status, err, len(out.splitlines())) == (0, "", 1)
    assert {"accuracy", "seed", "epochs", "seconds", "images_per_second"} <= result.keys()
    assert (result["seed"], result["epochs"], result["n"]) == (3, 2, 360)
    assert result["accuracy"] == result["correct"] / 360
    folder = Path("run")
    names = {path.name for path in folder.iterdir()}
    assert {name for name in names if not name.endswith(".safetensors")} == {
        "config.json", "log.csv", "log.jsonl", "curves.png", "confusion.png", "checkpoint.json",
        "checkpoint-previous.json", "result.json"}
    assert len(names) == 10
    for figure in ("curves.png", "confusion.png"):
        assert (folder / figure).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads((folder / "result.json").read_text()) == result
    config = json.loads((folder / "config.json").read_text())
    assert [config[key] for key in ("seed", "lr", "batch", "model", "kernels")] == [3, 0.2, 200, "resnet8", "fast"]
    assert config["versions"].keys() == {"tinyres", "python", "numpy", "numba", "safetensors"}
    assert config["threads"] >= 1
    status, out, err = tinyres_command("eval --weights run --json --logits logits.npy")
    found = last_line(out)
    assert (status, found["correct"], found["loss"]) == (0, result["correct"], pytest.approx(result["loss"], rel=1e-6))
    assert "the run's statistics" in err and "resnet8" in err
    logits = np.load("logits.npy", allow_pickle=False)
    assert logits.shape == (360, 10) and logits.dtype == np.float32
    again = last_line(tinyres_command(f"{QUICK} other --seed 3 --lr 0.2")[1])
    assert again["loss"] == result["loss"]


def test_a_finished_run_resumes_to_the_same_result_and_is_not_overwritten(tinyres_command):
    first = last_line(tinyres_command(f"{QUICK} run")[1])
    status, out, _ = tinyres_command("train --resume run --quiet --json")
    assert status == 0 and last_line(out)["loss"] == first["loss"]
    status, _, err = tinyres_command(f"{QUICK} run")
    assert status == 2 and "run holds a run already; go on with it by --resume run" in err
    status, _, err = tinyres_command("train --resume run --epochs 9 --seed 0")
    assert status == 2 and "leave out --epochs, --seed" in err


def test_an_interrupted_run_goes_on(tinyres_command, monkeypatch):
    """Ctrl-C in the second epoch; the resumed run ends where an unbroken one does."""
    whole = last_line(tinyres_command(f"{QUICK} whole --epochs 3")[1])
    from tinyres import train as loop

    step, calls = loop.train_step, iter(range(100))

    def interrupted(*args):
        if next(calls) == 10:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", interrupted)
        status, out, err = tinyres_command(f"{QUICK} run --epochs 3")
    assert (status, out) == (130, "") and "go on with: tinyres train --resume run" in err
    result = last_line(tinyres_command("train --resume run --json --quiet")[1])
    assert (result["loss"], result["correct"]) == (whole["loss"], whole["correct"])


def test_without_out_the_folder_is_named_after_the_run_and_numbered(tinyres_command):
    line = "train --epochs 1 --batch 700 --json"
    status, out, err = tinyres_command(line)
    assert (status, last_line(out)["out"]) == (0, os.path.join("runs", "digits-resnet8-seed0"))
    assert "epoch 1/1" in err and "75,002 parameters" in err
    assert last_line(tinyres_command(line)[1])["out"] == os.path.join("runs", "digits-resnet8-seed0-2")


def test_several_seeds_give_mean_and_deviation(tinyres_command):
    status, out, _ = tinyres_command(f"{QUICK} runs --seeds 2 --seed 1")
    total = last_line(out)
    results = [json.loads(Path(f"runs/seed{seed}/result.json").read_text()) for seed in (1, 2)]
    a, b = (result["accuracy"] for result in results)
    assert status == 0 and total["accuracies"] == [a, b]
    assert (total["accuracy"], total["worst"]) == (pytest.approx((a + b) / 2), min(a, b))
    assert total["deviation"] == pytest.approx(abs(a - b) / 2**0.5)


def test_the_test_set_is_read_once_after_all_epochs(tinyres_command, monkeypatch):
    from tinyres import train as loop

    evaluate, read = loop.evaluate, []

    def watched(model, dataset, *args, **kwargs):
        read.append(len(dataset))
        return evaluate(model, dataset, *args, **kwargs)

    monkeypatch.setattr(loop, "evaluate", watched)
    status, _, _ = tinyres_command(f"{QUICK} run --validate")
    rows = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert status == 0 and read == [287, 287, 360]
    assert all({"train_accuracy", "validation_accuracy"} <= row.keys() for row in rows)


def test_frozen_weights_stay_as_the_seed_drew_them(tinyres_command):
    status, _, err = tinyres_command("train --epochs 1 --batch 400 --freeze '*conv*.weight' --out run --seed 4 --quiet")
    assert (status, err) == (0, "")
    tinyres.manual_seed(4)
    drawn = models.resnet8(in_channels=1).state_dict()
    trained = weights.read("run").arrays
    equal = {name for name in drawn if np.array_equal(drawn[name], trained[name])}
    assert equal == {name for name in drawn if "conv" in name}


def test_a_run_that_diverges_says_where(tinyres_command):
    status, out, err = tinyres_command("train --lr 1e30 --schedule constant --momentum 0 --quiet --out run")
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert "epoch 1, batch" in err and "made the first" in err and "lower learning rate (it was 1e+30)" in err


# --- recipes and options ----------------------------------------------------------------------------------------------


def config_of(folder):
    return json.loads(Path(folder, "config.json").read_text())


def test_the_recipe_of_he_et_al(tinyres_command):
    """64k iterations, the rate divided by 10 at half and three quarters of them, plain momentum, a 45k/5k split."""
    name, recipe = recipes.choose("he2015", "cifar10", {})
    assert (name, recipe.epochs, recipe.iterations, recipe.batch, recipe.lr) == ("he2015", None, 64_000, 128, 0.1)
    assert (recipe.momentum, recipe.nesterov, recipe.weight_decay, recipe.validate) == (0.9, False, 1e-4, True)
    status, out, err = tinyres_command("train --recipe he2015 --model resnet8 --iterations 12 --quiet --json --out run")
    rows = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert (status, err) == (0, "") and last_line(out)["iterations"] == 12
    assert [row["iterations"] for row in rows] == [8, 12]  # 1,150 images to fit make 8 batches
    assert [row["lr"] for row in rows] == pytest.approx([0.01, 0.001]) and "validation_loss" in rows[0]
    assert config_of("run")["epochs"] is None and config_of("run")["recipe"] == "he2015"


@pytest.mark.parametrize("model, first", [("resnet20", 0.1), ("resnet110", 0.01)])
def test_the_rates_of_he_et_al(model, first):
    _, recipe = recipes.choose("he2015", "cifar10", {"model": model})
    config = {**vars(recipe)}
    optimizer, schedule = recipes.optimizer_and_schedule(models.resnet8(), config, 351)
    rates = {}
    for step in range(64_000):
        rates[step] = optimizer.param_groups[0]["lr"]
        schedule.step()
    expected = {0: first, 399: first, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
    assert {step: rates[step] for step in expected} == pytest.approx(expected)


def test_options_change_a_recipe():
    _, recipe = recipes.choose(None, "cifar10", {"epochs": 3, "lr": 0.2, "momentum": 0.0, "mixup": None, "data": "x"})
    assert (recipe.model, recipe.epochs, recipe.iterations, recipe.lr) == ("resnet20", 3, None, 0.2)
    assert recipe.nesterov is False and recipe.mixup == 0.0
    assert recipes.choose("he2015", "digits", {"epochs": 2})[1].iterations is None
    assert recipes.choose(None, "digits", {"iterations": 2})[1].epochs is None


@pytest.mark.parametrize("options, message", [
    ("--epochs 2 --iterations 9", "--iterations: 2 epochs and 9 iterations exclude each other"),
    ("--recipe he2016", "--recipe: no recipe 'he2016'. Did you mean 'he2015'? There are digits, fast, he2015"),
    ("--schedule onecycle --warmup 3", "--warmup: 3 batches of warm-up, but the schedule onecycle has its own"),
    ("--warmup 44 --epochs 2", "--warmup: 44 batches of warm-up in a run of 44; give fewer"),
    ("--momentum 0 --nesterov", "--nesterov: Nesterov's momentum needs a --momentum above 0, got 0"),
    ("--batch 4 --accumulate 5", "--accumulate: 5 parts of a batch of 4 images; give at most 4"),
    ("--ema 1", "'--ema': '1' is not a number from 0 to 0.999999"),
    ("--clip-norm 0", "'--clip-norm': '0' is not a number of at least 1e-12"),
    ("--seeds 2 --batch 5000", "--batch: Loader: batch_size 5000 with drop_last leaves no batch of 1437 images"),
])
def test_options_that_exclude_each_other(tinyres_command, options, message):
    status, out, err = tinyres_command(f"train {options}")
    assert (status, out, len(err.splitlines())) == (2, "", 1) and message in err and not Path("runs").exists()


def test_the_average_is_what_is_tested(tinyres_command):
    result = last_line(tinyres_command(f"{QUICK} run --ema 0.9 --clip-norm 1 --accumulate 3 --warmup 2")[1])
    status, out, _ = tinyres_command("eval --weights run --json --quiet")
    assert status == 0 and last_line(out)["loss"] == pytest.approx(result["loss"], rel=1e-6)
    plain = last_line(tinyres_command(f"{QUICK} other --clip-norm 1 --accumulate 3 --warmup 2")[1])
    assert plain["loss"] != result["loss"]


def test_tensorboard_without_its_package_fails_before_anything_is_written(tinyres_command, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "tensorboardX" else
                        find(name, *more))
    status, _, err = tinyres_command("train --tensorboard")
    assert status == 1 and err == ('tinyres: --tensorboard needs tensorboardX: pip install "tinyres[tensorboard]"\n')
    assert not Path("runs").exists()


def own_images(folder, images=60):
    """Three colours to tell apart, as one's own images.npy and labels.npy."""
    folder.mkdir()
    labels = np.arange(images) % 3
    pictures = np.random.default_rng(0).integers(0, 60, (images, 12, 12, 3), dtype=np.uint8)
    pictures[np.arange(images), :, :, labels] += 120
    np.save(folder / "images.npy", pictures)
    np.save(folder / "labels.npy", labels)


def test_data_of_ones_own(tinyres_command, monkeypatch):
    own_images(Path("mine"))
    status, out, err = tinyres_command("train --data mine --model resnet8 --epochs 6 --mixup 0.2 --json")
    result = last_line(out)
    assert status == 0 and result["out"] == os.path.join("runs", "mine-resnet8-seed0") and result["n"] == 12
    assert "mine has no test split: a fixed fifth of its images, 12, is held out" in err
    assert result["accuracy"] > 0.9
    config = config_of(result["out"])
    assert (config["batch"], config["mixup"], config["data"]) == (8, 0.2, str(Path("mine").absolute()))
    found = last_line(tinyres_command(f"eval --weights {result['out']} --json --quiet")[1])
    assert found["loss"] == pytest.approx(result["loss"], rel=1e-5)
    Path(result["out"], "result.json").unlink()
    Path("elsewhere").mkdir()
    run = Path(result["out"]).absolute()
    monkeypatch.chdir("elsewhere")
    assert last_line(tinyres_command(f"train --resume {run} --json --quiet")[1])["loss"] == result["loss"]


@pytest.mark.parametrize("images, batch", [(24, 8), (191, 8), (192, 16), (1535, 64), (1536, 128), (50_000, 128)])
def test_small_data_gets_small_batches(images, batch):
    assert recipes.fit_batch(recipes.RECIPES["fast"], images).batch == batch


# --- folders and provenance -------------------------------------------------------------------------------------------


def test_a_run_says_what_it_was_made_with(tinyres_command):
    tinyres_command(f"{QUICK} run")
    made = config_of("run")["provenance"]
    assert made["source_sha256"] == folders.source_digest() and len(made["data_sha256"]) == 64
    assert made["began"].startswith("20") and made["cores"] == os.cpu_count() and made["platform"]


def test_other_data_or_other_code_is_noticed_when_a_run_goes_on(tinyres_command):
    tinyres_command(f"{QUICK} run")
    Path("run/result.json").unlink()
    config = config_of("run")
    config["provenance"]["source_sha256"] = "0" * 64
    Path("run/config.json").write_text(json.dumps(config))
    status, _, err = tinyres_command("train --resume run")
    assert status == 0 and "tinyres has changed since this run began" in err
    Path("run/result.json").unlink()
    config["provenance"]["data_sha256"] = "0" * 64
    Path("run/config.json").write_text(json.dumps(config))
    status, _, err = tinyres_command("train --resume run")
    assert status == 1 and "are not those that the run began with" in err and not Path("run/result.json").exists()


def test_the_digest_of_data_sees_a_pixel_a_label_and_a_shape():
    from tinyres import data

    whole = data.digits("test")
    images, labels = whole.images.copy(), whole.labels.copy()
    images[3, 0, 2, 2] ^= 1
    labels[5] = (labels[5] + 1) % 10
    sets = [whole, data.Dataset(images, whole.labels, whole.classes), data.Dataset(whole.images, labels, whole.classes),
            data.Dataset(whole.images.reshape(360, 1, 4, 16), whole.labels, whole.classes)]
    assert len({folders.data_digest(one) for one in sets}) == 4
    assert folders.data_digest(whole) == folders.data_digest(data.digits("test"))


def test_seeds_go_on_where_they_were(tinyres_command):
    whole = last_line(tinyres_command(f"{QUICK} runs --seeds 3")[1])
    first = Path("runs/seed0/result.json").read_text()
    Path("runs/result.json").unlink()
    Path("runs/seed1/result.json").unlink()
    for path in Path("runs/seed2").iterdir():
        path.unlink()
    Path("runs/seed2").rmdir()
    status, out, err = tinyres_command("train --resume runs --json")
    total = last_line(out)
    assert status == 0 and total["accuracies"] == whole["accuracies"] and Path("runs/result.json").is_file()
    assert "seed0 is finished already" in err and Path("runs/seed0/result.json").read_text() == first
    status, _, err = tinyres_command(f"{QUICK} runs --seeds 3")
    assert status == 2 and "holds a run already" in err


def test_without_out_the_folder_of_several_seeds_names_them(tinyres_command):
    out = tinyres_command("train --iterations 1 --seeds 2 --seed 4 --quiet --json")[1]
    assert last_line(out)["out"] == [os.path.join("runs", "digits-resnet8-seeds4to5", f"seed{n}") for n in (4, 5)]


def test_a_config_that_was_damaged(tinyres_command):
    Path("run").mkdir()
    Path("run/config.json").write_text('{"data": "digits"')
    status, _, err = tinyres_command("train --resume run")
    assert status == 1 and "config.json is damaged" in err and len(err.splitlines()) == 1
    Path("run/config.json").write_text('{"data": "digits"}')
    status, _, err = tinyres_command("train --resume run")
    assert status == 1 and "lacks" in err and "another version" in err and len(err.splitlines()) == 1
    tinyres_command(f"{QUICK} whole")
    Path("whole/result.json").unlink()
    for key, wrong in (("lr", [1]), ("epochs", "3"), ("freeze", None), ("provenance", 1)):
        config = config_of("whole")
        Path("run/config.json").write_text(json.dumps(config | {key: wrong}))
        status, _, err = tinyres_command("train --resume run")
        assert status == 1 and f"holds no proper {key}: it is damaged" in err and len(err.splitlines()) == 1
    Path("whole/config.json").write_text(json.dumps(config_of("whole") | {"weight_decay": 0, "lr": 1}))
    assert tinyres_command("train --resume whole --quiet")[0] == 0


def test_choose_is_plain_about_recipes():
    with pytest.raises(typer.BadParameter, match="exclude each other"):
        recipes.choose("fast", "cifar10", {"epochs": 1, "iterations": 1})
    model = models.resnet8()
    assert isinstance(recipes.optimizer_and_schedule(model, vars(recipes.RECIPES["fast"]), 10)[1], optim.OneCycleLR)
