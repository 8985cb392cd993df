"""The command line as a script sees it: exit status, stdout, stderr, and the files of a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tinyres
from tinyres import cli, models, weights
from tinyres.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
DATA = os.environ.get("TINYRES_DATA", "")


def last_line(out):
    return json.loads(out.splitlines()[-1])


# --- the command itself -----------------------------------------------------------------------------------------------


def test_help_names_the_commands_and_is_quick_to_load(tinyres_command):
    status, out, err = tinyres_command("--help")
    assert (status, err) == (0, "") and tinyres_command("") == (0, out, "")
    assert all(f"\n  {name} " in out for name in ("train", "eval", "gradcheck", "summary"))
    slow = "numba matplotlib safetensors tqdm pooch torch threadpoolctl".split()
    code = f"import sys, tinyres.cli.main; print(*[name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_python_m_tinyres_is_the_command():
    line = [sys.executable, "-m", "tinyres", "--version"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tinyres {tinyres.__version__}\n", "")


@pytest.mark.parametrize("line, status, message", [
    ("trian", 2, "No such command 'trian'"),
    ("train --epohcs 3", 2, "--epochs"),
    ("train --epochs x", 2, "'--epochs': 'x' is not a whole number of at least 1 (see tinyres train --help)"),
    ("train --epochs 0", 2, "'--epochs': '0' is not"),
    ("train --lr nan", 2, "'--lr': 'nan' is not a number of at least 0"),
    ("train --momentum 1", 2, "'--momentum': '1' is not a number from 0 to 0.9999"),
    ("train --model resnet21", 2, "--model: models.build: no network is called 'resnet21'; did you mean"),
    ("train --data cifar", 2, "--data: no data set 'cifar'. Did you mean 'cifar10'?"),
    ("train --data cifar10 --data-dir nowhere", 1, "cifar10: not found. Looked at "),
    ("train --kernels fats", 2, "--kernels: use_kernels: there is no kernel set 'fats': choose one of emulator, fast"),
    ("train --schedule cosin", 2, "--schedule: 'cosin' is none of cosine, onecycle, he2015, constant"),
    ("train --freeze layer9", 2, "--freeze: freeze: no parameter matches 'layer9'"),
    ("train --freeze '*'", 2, "--freeze: nothing is left to train"),
    ("train --batch 5000", 2, "--batch: Loader: batch_size 5000 with drop_last leaves no batch of 1437 images"),
    ("train --option D", 2, "--option: option must be one of A, B, C"),
    ("train --resume nowhere", 2, "--resume: nowhere holds no run"),
    ("eval", 2, "Missing option '--weights'"),
    ("eval --weights nowhere", 1, "nowhere: check the path"),
    ("eval --weights w.safetensors", 2, "--data: w.safetensors does not say on which data"),
    ("eval --weights w.safetensors --data digits --split tset", 2, "--split: digits: no split 'tset'. Did you mean"),
    ("eval --weights w.safetensors --data digits --normalize 1,2", 0, ""),
    ("eval --weights w.safetensors --data digits --normalize 1,0", 2, "--normalize: '1,0': expected imagenet"),
    ("eval --weights w.safetensors --data digits --normalize imagenet", 2, "1 means and then 1 positive stds"),
    ("eval --weights w.safetensors --data digits --model resnet20", 1, "holds the weights of models.resnet8("),
    ("eval --weights thin.safetensors --data digits", 2, "--model: thin.safetensors holds a ResNet of 8 layers"),
    ("gradcheck --order 3", 2, "'--order': '3' is not a whole number from 1 to 2"),
    ("summary --model resnet20 --input 3x32", 2, "--input: '3x32' is not a shape; give three positive numbers"),
])
def test_errors_are_plain(tinyres_command, line, status, message):
    weights.save(models.resnet8(in_channels=1), "w.safetensors")
    weights.save(models.resnet.cifar_resnet(8, in_channels=1, widths=(8, 16, 32)), "thin.safetensors")
    found, out, err = tinyres_command(line)
    assert found == status and message in err and "Traceback" not in err
    if status == 2:
        assert out == "" and len(err.splitlines()) == 1 and not Path("runs").exists()


def test_a_bug_shows_its_traceback_on_request(tinyres_command, monkeypatch, capsys):
    monkeypatch.setenv("TINYRES_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        app(["eval", "--weights", "nowhere"], prog_name="tinyres")


# --- gradcheck and summary --------------------------------------------------------------------------------------------


def test_gradcheck_passes_a_right_network_and_fails_a_wrong_one(tinyres_command, monkeypatch):
    line = "gradcheck --model resnet8 --size 8 --kernels reference --json"
    status, out, _ = tinyres_command(line)
    found = last_line(out)
    assert (status, found["passed"]) == (0, True) and 0 < found["max_relative_error"] < 1e-5
    from tinyres.ops.norm import BatchNorm

    right = BatchNorm.fused_backward
    monkeypatch.setattr(BatchNorm, "fused_backward", lambda self, grad: tuple(
        None if g is None else -g for g in right(self, grad)))
    status, out, _ = tinyres_command(line)
    assert status == 1 and last_line(out)["passed"] is False


def test_summary_prints_a_table_or_json(tinyres_command):
    status, out, err = tinyres_command("summary --model resnet20 --option B")
    assert (status, err) == (0, "")
    assert "ResNet-20 (He et al. 2015)" in out and "272,474" in out and "layer3.2.bn2" in out
    found = last_line(tinyres_command("summary --model resnet18 --json")[1])
    assert found["parameters"] == 11_173_962  # small images get the CIFAR stem
    assert found["multiply_adds"] == sum(row["multiply_adds"] for row in found["rows"])


# --- published weights ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path(DATA, "pretrained", "resnet20.npz").is_file() or not DATA,
                    reason="needs CIFAR-10 and published weights in $TINYRES_DATA")
def test_published_weights_give_their_published_error(tinyres_command):
    """8.27 % on the test images, as He et al.'s network by Y. Idelbayev; logits of PyTorch 2.13 for the first image."""
    path = Path(DATA, "pretrained", "resnet20.npz")
    status, out, err = tinyres_command(f"eval --weights {path} --data cifar10 --json --logits logits.npy")
    found = last_line(out)
    assert (status, found["correct"], found["n"], found["accuracy"]) == (0, 9_173, 10_000, 0.9173)
    assert found["loss"] == pytest.approx(0.37266, abs=5e-6)
    assert "resnet20" in err and "ImageNet's statistics" in err
    logits = [-5.3097, -0.4958, 0.8773, 23.7305, -4.1050, 4.4637, -0.2343, -5.4179, -3.7118, -9.8822]
    np.testing.assert_allclose(np.load("logits.npy")[0], logits, atol=1e-3)


def test_every_command_is_a_file():
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert files >= {command.name for command in app.registered_commands} >= {"train", "eval", "gradcheck", "summary"}
