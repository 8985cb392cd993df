"""A run that is killed with SIGKILL and resumed ends as the undisturbed one does, bit for bit; so do Ctrl-C, a full
disk and a lost checkpoint. The long version is benchmarks/kill_resume.py."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

resource = pytest.importorskip("resource", reason="kills and limits as POSIX systems know them")

from benchmarks.kill_resume import differences, ending, lives, step_of  # noqa: E402

JOB = "--data digits --epochs 12 --ema 0.99 --label-smoothing 0.1 --seed 3".split()
EVERY = 4


def tinyres(*options, **more):
    command = [sys.executable, "-m", "tinyres", "train", "--quiet", "--checkpoint-every", str(EVERY), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def finish(*options, **more):
    process = tinyres(*options, **more)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert finish(*JOB, "--out", str(folder))[0] == 0
    return ending(folder)


def wait_for(folder, step, process):
    while (step_of(folder) or 0) < step:
        assert process.poll() is None and time.sleep(0.01) is None
    return process


def test_killed_and_resumed(undisturbed, tmp_path):
    folder, steps = tmp_path / "run", []
    for kill in lives(JOB, folder, EVERY, random.Random(0), longest=3.0):
        steps.append(kill.step)
        if len(steps) == 4:
            break
    if not (folder / "result.json").is_file():
        assert finish("--resume", str(folder))[0] == 0
    assert steps and differences(undisturbed, ending(folder)) == []
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(undisturbed, tmp_path, number):
    folder = tmp_path / "run"
    process = wait_for(folder, 30, tinyres(*JOB, "--out", str(folder)))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"go on with: tinyres train --resume {folder}" in err
    assert finish("--resume", str(folder))[0] == 0
    assert differences(undisturbed, ending(folder)) == []


def test_a_full_disk_stops_the_run_and_loses_nothing(undisturbed, tmp_path):
    """The limit on the size of a file stands for the full disk: the first checkpoint, without momenta, is smaller."""
    folder = tmp_path / "run"
    limit = 800_000
    status, _, err = finish(*JOB, "--out", str(folder),
                            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert status == 1 and f"{folder} could not be written" in err and "make room, then go on by resuming" in err
    assert step_of(folder) == 0 and not list(folder.glob(".*.tmp"))
    assert finish("--resume", str(folder))[0] == 0
    assert differences(undisturbed, ending(folder)) == []


@pytest.mark.parametrize("lost", ["json", "weights", "damaged"])
def test_a_lost_newest_checkpoint(undisturbed, tmp_path, lost):
    folder = tmp_path / "run"
    process = wait_for(folder, 30, tinyres(*JOB, "--out", str(folder)))
    process.kill()
    process.communicate()
    newest, previous = (json.loads((folder / name).read_text()) for name in
                        ("checkpoint.json", "checkpoint-previous.json"))
    assert previous["progress"]["at"]["step"] < newest["progress"]["at"]["step"]
    if lost == "json":
        (folder / "checkpoint.json").unlink()
    elif lost == "weights":
        (folder / newest["weights"]["file"]).unlink()
    else:
        os.truncate(folder / newest["weights"]["file"], 1000)
    status, _, err = finish("--resume", str(folder))
    assert status == 0 and "The checkpoint before it is used" in err
    assert differences(undisturbed, ending(folder)) == []


def test_both_checkpoints_lost_is_an_error_and_not_a_new_run(tmp_path):
    folder = tmp_path / "run"
    process = wait_for(folder, 30, tinyres(*JOB, "--out", str(folder)))
    process.kill()
    process.communicate()
    for path in folder.glob("checkpoint*"):
        path.unlink()
    log = (folder / "log.jsonl").read_text()
    status, _, err = finish("--resume", str(folder))
    assert status == 1 and "has a log but no checkpoint" in err
    assert (folder / "log.jsonl").read_text() == log


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    folder = tmp_path / "run"
    process = wait_for(folder, 4, tinyres(*JOB, "--out", str(folder)))
    status, _, err = finish("--resume", str(folder))
    process.kill()
    process.communicate()
    assert status == 1 and f"another process is training in {folder}" in err


def test_the_comparison_sees_a_changed_bit(undisturbed):
    arrays = {name: array.copy() for name, array in undisturbed["arrays"].items()}
    arrays["model.fc.bias"].view("uint8")[0] ^= 1
    assert differences(undisturbed, {**undisturbed, "arrays": arrays}) == ["model.fc.bias"]
    assert differences(undisturbed, {**undisturbed, "log": []}) == ["log"]
