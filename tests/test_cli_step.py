"""`tinyres step`: what it prints, writes and refuses; its numbers against a second way to get them."""

import json
import os
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

import tinyres as tr
from tinyres import data, models, weights
from tinyres.analysis import forks
from tinyres.stepper.example import EXAMPLES, GRADIENTS, IDENTITY_SHARE, VALUES

ROOT = Path(__file__).resolve().parents[1]


def last_json(out):
    return json.loads(out.splitlines()[-1])


def step_json(tinyres_command, line=""):
    status, out, err = tinyres_command(f"step {line} --json")
    assert (status, err, out.count("\n")) == (0, "", 1), err
    return last_json(out)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_forks_are_those_that_the_instrument_finds(tinyres_command):
    """Loss, norms, shares and cosines of `analyze forks`, which runs the fused ops, in float64."""
    found = step_json(tinyres_command, "--model resnet8 --batch 3 --seed 5 --float64")
    assert (found["model"], found["batch"], found["data"], found["dtype"]) == ("resnet8", 3, "digits", "float64")
    x, y = data.digits("train").batch(3, 5)
    tr.manual_seed(5)
    with tr.use_kernels("reference"):
        split = forks.split_of_gradient(models.resnet8(in_channels=1).double(), x.astype("float64"), y)
    np.testing.assert_allclose(found["loss"], split.loss, rtol=1e-10)
    theirs, ours = split.residual[::-1], [fork for fork in found["forks"] if fork["residual"]]
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        assert a["shape"] == list(b.shape)
        np.testing.assert_allclose(a["norm"], b.norm, rtol=1e-8)
        np.testing.assert_allclose(a["identity_share"], b.share, rtol=1e-8)
        by_route = {arrival["route"]: arrival for arrival in a["arrivals"]}
        np.testing.assert_allclose(by_route["shortcut"]["norm"], b.contributions[0].norm, rtol=1e-8)
        np.testing.assert_allclose(by_route["branch"]["norm"], b.branch, rtol=1e-8)
        np.testing.assert_allclose(a["arrivals"][1]["cosine"], b.cosine, rtol=1e-8)
        np.testing.assert_allclose(sum(arrival["share"] for arrival in a["arrivals"]), 1, rtol=1e-10)


def test_alone_it_takes_two_digits_through_a_small_network(tinyres_command):
    found = step_json(tinyres_command)
    assert (found["model"], found["batch"], found["kernels"], found["dtype"]) == ("resnet8", 2, "reference", "float32")
    assert found["steps"]["ops"] > 3 * found["steps"]["blocks"] > 30 and found["held_bytes"] > 0
    assert found["stopped"] is None and found["files"] == [] and found["training"] is True
    assert step_json(tinyres_command) == found
    assert step_json(tinyres_command, "--seed 1")["loss"] != found["loss"]


def test_the_hand_worked_example_has_its_numbers(tinyres_command):
    found = step_json(tinyres_command, "--example residual")
    assert found["example"] == "residual" and found["loss"] == VALUES["loss"]
    (fork,) = found["forks"] or [None]
    by_route = {arrival["route"]: arrival for arrival in fork["arrivals"]}
    for route, name in (("shortcut", "x along the shortcut"), ("branch", "x through the branch")):
        np.testing.assert_allclose(by_route[route]["norm"], np.linalg.norm(GRADIENTS[name]), rtol=1e-12)
    np.testing.assert_allclose(fork["identity_share"], IDENTITY_SHARE, rtol=1e-12)


def test_the_weights_of_a_file_and_the_mode_are_taken(tinyres_command):
    tr.manual_seed(3)
    network = models.resnet8(in_channels=1)
    weights.save(network, "w.safetensors")
    x, y = data.digits("train").batch(2, 0)
    with tr.use_kernels("reference"):
        expected = [tr.cross_entropy(network.train(training)(tr.Tensor(x)), y).item() for training in (False, True)]
    line = "--weights w.safetensors --data digits"
    found = [step_json(tinyres_command, f"{line}{mode}")["loss"] for mode in (" --eval", "")]
    assert abs(expected[0] - expected[1]) > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# --- what is printed and written --------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["", "--view ops --example residual", "--forward", "--example batchnorm"])
def test_piped_it_is_plain_text_of_at_most_80_columns(line, tinyres_command):
    status, out, err = tinyres_command(f"step {line}")
    assert (status, err) == (0, "") and "\x1b" not in out and max(map(len, out.splitlines())) <= 80
    assert tinyres_command(f"step {line}")[1] == out
    assert len(out.splitlines()) > 20 and "loss" in out
    if line == "":
        assert "shortcut" in out and "branch" in out and "join" in out


def test_the_directions_differ(tinyres_command):
    backward, forward = (tinyres_command(f"step --example residual {line}")[1] for line in ("", "--forward"))
    assert backward != forward


FILES = {"--html": "a.html", "--json-trace": "a.json", "--svg": "a.svg", "--png": "a.png", "--dot": "a.dot"}


@pytest.mark.parametrize("view", ["blocks", "ops"])
def test_files_are_written(view, tinyres_command):
    options = " ".join(f"{option} {name}" for option, name in FILES.items())
    status, out, err = tinyres_command(f"step --view {view} {options}")
    assert status == 0 and out, err
    assert [line.split()[1].rstrip(",") for line in err.splitlines()] == list(FILES.values())
    assert sorted(os.listdir()) == sorted(FILES.values())
    page = Path("a.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>") and "Content-Security-Policy" in page
    assert json.loads(Path("a.json").read_bytes())["format"] == "tinyres-trace/1"
    assert ElementTree.parse("a.svg").getroot().tag.endswith("svg")
    assert Path("a.png").read_bytes().startswith(b"\x89PNG") and Path("a.dot").read_text().startswith("digraph")


def test_written_files_stand_in_the_json(tinyres_command):
    assert step_json(tinyres_command, "--example fork --dot a.gv")["files"] == ["a.gv"]
    assert Path("a.gv").is_file()


def test_the_same_line_writes_the_same_bytes(tinyres_command):
    for name in ("a", "b"):
        tinyres_command(f"step --html {name}.html --json-trace {name}.json --svg {name}.svg --dot {name}.dot")
    for ending in ("html", "json", "svg", "dot"):
        assert Path(f"a.{ending}").read_bytes() == Path(f"b.{ending}").read_bytes(), ending


def test_nothing_is_computed_for_a_file_that_cannot_be_written(tinyres_command, monkeypatch):
    monkeypatch.setattr("tinyres.cli.step.network_walk", lambda *_: pytest.fail("it began"))
    for line in ("--png no/a.png", "--html a.svg", "--json-trace a.html"):
        status, out, err = tinyres_command(f"step {line}")
        assert (status, out, err.count("\n")) == (2, "", 1) and os.listdir() == []


# --- examples and files of one's own ----------------------------------------------------------------------------------


def test_the_help_names_every_example(tinyres_command):
    text = " ".join(tinyres_command("step --help")[1].split())
    assert all(name in text for name in EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_can_be_stepped_through(name, tinyres_command):
    assert step_json(tinyres_command, f"--example {name}")["loss"] is not None


def test_a_file_with_a_loss(tinyres_command):
    """It finds the module beside it, also late; nothing is written there; what is under __main__ does not run."""
    Path("numbers_for_the_loss.py").write_text("START = [1.0, 2.0]\n")
    Path("net.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import tinyres as tr\n"
        "@dataclass\n"
        "class Scale:\n"
        "    by: float\n"
        "def loss():\n"
        "    from numbers_for_the_loss import START\n"
        "    x = tr.tensor(START, 'float64', requires_grad=True)\n"
        "    return (Scale(3.0).by * x + x * x).sum()\n"
        "if __name__ == '__main__':\n"
        "    raise SystemExit('trained')\n")
    path = list(sys.path)
    found = step_json(tinyres_command, "net.py")
    assert found["file"] == "net.py" and found["loss"] == 14.0 and found["dtype"] == "float64"
    assert sys.path == path
    sys.modules.pop("numbers_for_the_loss")
    assert not any(Path("__pycache__").glob("net*"))
    assert "net.py" in tinyres_command("step net.py")[1]


@pytest.mark.parametrize("labels, expected", [
    ("np.array([1, 0])", lambda y: float(np.mean(np.log(np.exp(y).sum(1)) - y[[0, 1], [1, 0]]))),
    ("lambda y: (y * y).sum()", lambda y: float((y * y).sum())),
], ids=["classes", "function"])
def test_a_file_with_a_model_images_and_labels(labels, expected, tinyres_command):
    Path("net.py").write_text(
        "import numpy as np\nimport tinyres as tr\nfrom tinyres import nn\n"
        "tr.manual_seed(1)\nmodel = nn.Linear(3, 2)\nimages = np.ones((2, 3), 'float32')\n"
        f"labels = {labels}\n")
    tr.manual_seed(1)
    from tinyres import nn

    layer = nn.Linear(3, 2)
    y = np.ones((2, 3)) @ layer.weight.data.T.astype("float64") + layer.bias.data
    found = [step_json(tinyres_command, f"net.py{option}") for option in ("", " --float64")]
    np.testing.assert_allclose(found[0]["loss"], expected(y), rtol=1e-5)
    np.testing.assert_allclose(found[1]["loss"], expected(y), rtol=1e-12)
    assert [one["dtype"] for one in found] == ["float32", "float64"]


STOPS = """
import tinyres as tr
from tinyres import models, nn
block = models.blocks.BasicBlock(4, 8, stride=2)
block.downsample = nn.Identity()
def loss():
    return block(tr.randn((2, 4, 6, 6))).sum()
"""


def test_a_forward_pass_that_stops_is_explained_and_is_a_failure(tinyres_command):
    Path("net.py").write_text(STOPS)
    status, out, err = tinyres_command("step net.py")
    assert (status, err) == (1, "") and "(2, 8, 3, 3)" in out and "(2, 4, 6, 6)" in out
    assert "PadShortcut(4, 8, 2)" in out and "ProjectionShortcut(4, 8, 2)" in out
    status, out, err = tinyres_command("step net.py --json --html a.html")
    found = last_json(out)
    assert status == 1 and found["loss"] is None and found["forks"] == [] and len(found["stopped"]["fixes"]) >= 3
    assert "PadShortcut(4, 8, 2)" in Path("a.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("source, message", [
    ("def loss():\n    return {}['x']\n", "net.py, line 2: KeyError: 'x'"),
    ("import tinyres as tr\ndef loss():\n    raise OSError('the disk')\n", "net.py, line 3: OSError: the disk"),
    ("def loss():\n    f()\ndef f():\n    raise ZeroDivisionError('no')\n", "net.py, line 4: ZeroDivisionError: no"),
    ("import nowhere\n", "net.py, line 1: ModuleNotFoundError: No module named 'nowhere'"),
    ("x = '\\xff\n", "net.py, line 1: SyntaxError"),
])
def test_an_error_in_the_file_names_its_line(source, message, tinyres_command):
    Path("net.py").write_text(source)
    status, out, err = tinyres_command("step net.py")
    assert (status, out, err.count("\n")) == (1, "", 1) and message in err


def test_what_the_loss_returns_must_be_one_number(tinyres_command):
    Path("net.py").write_text("import tinyres as tr\ndef loss():\n    return tr.ones(2, requires_grad=True) * 2\n")
    status, out, err = tinyres_command("step net.py")
    assert (status, out, err.count("\n")) == (1, "", 1) and "(2,)" in err


@pytest.mark.parametrize("arguments, status", [("x", 2), ("x, y=1", 2), ("*, k", 2), ("x=1.0", 0), ("*xs, **ys", 0)])
def test_a_loss_with_arguments_is_named_with_its_file(arguments, status, tinyres_command):
    Path("net.py").write_text(f"import tinyres as tr\ndef loss({arguments}):\n    return 2.0 * tr.ones((), "
                              "requires_grad=True)\n")
    found, out, err = tinyres_command("step net.py --json")
    assert found == status and (not status or f"net.py defines loss({arguments})" in err and "defaults" in err)


# --- in a terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pseudo-terminal on Windows")
def test_in_a_terminal_it_waits_for_keys_and_leaves_the_terminal_as_it_was():
    import pty
    import select
    import termios

    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    line = [sys.executable, "-m", "tinyres", *shlex.split("step --example residual --predict")]
    run = subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT,
                           env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"})
    seen = b""
    while select.select([ours], [], [], 20)[0]:
        seen += os.read(ours, 65536)
        if b"?" in seen and not select.select([ours], [], [], 0.3)[0]:
            break
    assert run.poll() is None, seen.decode(errors="replace")
    os.write(ours, b"q")
    assert run.wait(20) == 0
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
