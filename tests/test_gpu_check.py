"""benchmarks/gpu_check.sh without a GPU: it runs to its end whatever fails, in time, and its summary says what did."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from emulated import NEEDS_EMULATOR

from tinyres import data

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
sys.path.insert(0, str(ROOT / "benchmarks"))

import cifar_subset  # noqa: E402
import gpu_parity  # noqa: E402
import gpu_summary  # noqa: E402

SANITIZER = """#!/bin/sh
case "$*" in
    *--version*) echo "compute-sanitizer of straw" ;;
    *racecheck*) echo "ERROR SUMMARY: 1 error"; exit 9 ;;
    *synccheck*) sleep 100 ;;
    *) echo '{"missing": []}' ;;
esac
"""
NVIDIA_SMI = "#!/bin/sh\necho 'GPU of straw, 580.65, 1 MiB, 1 MHz, 1 W'\n"


@pytest.fixture
def check(tmp_path):
    """check(arguments, PARTS=...) -> (status, output, summary.json or None), with stubs for NVIDIA's programs."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("compute-sanitizer", SANITIZER), ("nvidia-smi", NVIDIA_SMI)):
        (tools / name).write_text(text)
        (tools / name).chmod((tools / name).stat().st_mode | stat.S_IXUSR)

    def call(*arguments, **options):
        chosen = {f"TINYRES_GPU_CHECK_{name}": str(value) for name, value in options.items()}
        variables = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": sys.executable, **chosen,
                     "TINYRES_GPU_CHECK_REHEARSAL": "1", "TINYRES_NUM_THREADS": "1"}
        done = subprocess.run(["bash", str(SCRIPT), *map(str, arguments)], env=variables, cwd=tmp_path, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
        summary = tmp_path / "out" / "summary.json"
        return done.returncode, done.stdout, json.loads(summary.read_text()) if summary.exists() else None

    return call


def npz(path, count=12):
    rng = np.random.default_rng(0)
    arrays = {f"{part}images": rng.integers(0, 255, (count, 8, 8, 3), np.uint8) for part in ("", "test_")}
    np.savez(path, **arrays, labels=np.arange(count) % 3, test_labels=np.arange(count) % 3)
    return path


# ---- the script ------------------------------------------------------------------------------------------------------


def test_the_script_is_sound():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    assert os.access(SCRIPT, os.X_OK)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SCRIPT], check=True)


@NEEDS_EMULATOR
def test_a_rehearsal_goes_on_after_a_part_that_fails_and_says_so(check, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    npz(folder / "cifar.npz")
    parts = "^(environment|kernels-once|tests|step-resnet20|parity|train|bench-kernels|memcheck|racecheck|infer)$"
    status, output, found = check("out", folder, PARTS=parts)
    verdicts = {part["name"]: part["verdict"] for part in found["parts"]}
    assert verdicts == {name: "failed" if name == "racecheck" else "passed" for name in (
        "environment", "kernels-once", "tests", "step-resnet20", "parity", "train", "bench-kernels", "memcheck",
        "racecheck", "infer")}, output
    assert status == 1 and "REHEARSAL without a GPU" in output and "9 passed, 1 failed" in output
    results = {part["name"]: part["result"] for part in found["parts"]}
    assert results["environment"]["nvidia_smi"].startswith("GPU of straw")
    assert results["kernels-once"]["missing"] == [] and results["parity"]["complaints"] == []
    assert results["step-resnet20"]["left_out"] == {} and results["bench-kernels"]["rows"]
    assert results["train"]["n"] == 12 and results["train"]["iterations"] == 1
    assert next(part for part in found["parts"] if part["name"] == "tests")["tests"]["passed"] >= 1
    failed = next(part for part in found["parts"] if part["verdict"] == "failed")
    assert (failed["status"], failed["tail"]) == (9, ["ERROR SUMMARY: 1 error"]) and "| ERROR SUMMARY" in output
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["logs.tar.gz", "summary.json", "summary.txt"]
    assert (tmp_path / "out" / "summary.txt").read_text() in output
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"logs/parts.tsv", "logs/racecheck.out", "logs/tests.xml", "logs/train/log.csv"} <= names
    assert not any(name.endswith(".safetensors") or "/." in name for name in names)


def test_a_part_is_stopped_when_its_time_is_up_and_none_begins_without_time(check):
    status, output, found = check("out", PARTS="^(synccheck|infer|step-compiled)$", SECONDS=6)
    verdicts = {part["name"]: (part["verdict"], part["words"]) for part in found["parts"]}
    assert status == 1 and verdicts["synccheck"] == ("timed out", "")
    assert verdicts["infer"] == ("not run", "no time was left") and verdicts["step-compiled"][0] == "not run"
    assert 5 <= found["seconds"] <= 12 and "TIMED OUT" in output


@pytest.mark.parametrize("arguments, message", [
    ((), "benchmarks/gpu_check.sh OUTDIR [CIFAR]"), (("out", "nothing.npz"), "no .npz file at nothing.npz"),
    (("out", "."), "no .npz file at ."), (("out", "a", "b"), "benchmarks/gpu_check.sh OUTDIR [CIFAR]")])
def test_wrong_arguments(check, arguments, message):
    status, output, found = check(*arguments)
    assert status == 2 and message in output and found is None


# ---- the summary -----------------------------------------------------------------------------------------------------

REPORT = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'


@pytest.mark.parametrize("status, report, verdict, words", [
    (0, (5, 0, 0, 2), "passed", "3 passed, 2 skipped"), (1, (5, 1, 1, 0), "failed", "3 passed, 2 failed"),
    (0, (4, 0, 0, 4), "failed", "4 skipped: no test ran"), (5, (0, 0, 0, 0), "failed", ""),
    (124, (1, 0, 0, 0), "timed out", "1 passed")])
def test_tests_that_were_all_skipped_are_no_success(tmp_path, status, report, verdict, words):
    (tmp_path / "parts.tsv").write_text(f"tests\t{status}\t7\t60\n")
    (tmp_path / "tests.xml").write_text(REPORT.format(*report))
    part = gpu_summary.collect(tmp_path, tmp_path / "out")["parts"][0]
    assert (part["verdict"], part["words"]) == (verdict, words)


def test_a_damaged_report_and_a_long_log(tmp_path):
    (tmp_path / "parts.tsv").write_text("tests\t1\t7\t60\n")
    (tmp_path / "tests.xml").write_text("<testsuites><testsu")
    (tmp_path / "tests.out").write_bytes(b"first\n" + b"x" * 3 * gpu_summary.LONGEST + b"\nlast\n{broken\n")
    found = gpu_summary.collect(tmp_path, tmp_path / "out")
    assert found["parts"][0]["result"] is None and found["parts"][0]["verdict"] == "failed"
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as archive:
        log = archive.extractfile("logs/tests.out").read()
    assert log.startswith(b"first\n") and log.endswith(b"{broken\n") and len(log) < 1.1 * gpu_summary.LONGEST
    assert b"bytes left out" in log and not list((tmp_path / "out").glob("*.new"))


def test_what_is_there_is_told_by_name(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert gpu_summary.main(["facts"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nvidia_smi"] is None and found["versions"]["numpy"] == np.__version__
    assert gpu_summary.main([]) == 2


# ---- the same steps on both devices ----------------------------------------------------------------------------------

TINY = Namespace(model="resnet8", steps=2, batch=2, size=8)


def test_losses_that_differ_are_complained_of(monkeypatch):
    found = {"cpu": [2.0, 1.0], "fast": [2.0, 1.0], "im2col": [2.0 + 1e-8, 1.0], "reference": [2.0, 1.0]}
    monkeypatch.setattr(gpu_parity, "losses", lambda device, kernel_set, dtype, asked: found[
        "cpu" if device == "cpu" else kernel_set])
    complaints = gpu_parity.compare(TINY)["complaints"]
    assert len(complaints) == 1 and complaints[0].startswith("im2col float64: 5.0e-09 from the processor")
    found["im2col"] = [2.0, float("nan")]
    assert any("inf at most" in line for line in gpu_parity.compare(TINY)["complaints"])
    found["im2col"], calls = [2.0, 1.0], iter(range(100))
    monkeypatch.setattr(gpu_parity, "losses", lambda device, *rest: [2.0, 1.0 + 1e-12 * (
        device == "cuda" and next(calls) == 1)])
    assert gpu_parity.compare(TINY)["complaints"] == [
        "fast float64: a second run gave other losses, expected the same bit for bit"]


# ---- a part of CIFAR-10 ----------------------------------------------------------------------------------------------


def test_the_subset_is_read_as_data_of_ones_own(tmp_path):
    training, test = (colored(data.load("digits", split)) for split in ("train", "test"))
    content = cifar_subset.packed(training, test, 100, 50)
    assert content == cifar_subset.packed(training, test, 100, 50)
    (tmp_path / "part.npz").write_bytes(content)
    for split, count, whole in (("train", 100, training), ("test", 50, test)):
        found = data.load(str(tmp_path / "part.npz"), split)
        assert found.images.shape == (count, 3, 8, 8) and found.images.dtype == np.uint8
        assert np.bincount(found.labels).tolist() == [count // 10] * 10
        assert list(found.classes) == list(training.classes)
        images = {image.tobytes(): label for image, label in zip(whole.images, whole.labels, strict=True)}
        assert all(images[image.tobytes()] == label for image, label in zip(found.images, found.labels, strict=True))


def colored(dataset):
    """The digits with three channels, as bytes."""
    images = np.repeat((dataset.images * (255 / dataset.images.max())).astype(np.uint8), 3, axis=1)
    return data.Dataset(images, dataset.labels, dataset.classes)


def test_a_subset_that_is_too_large(monkeypatch):
    training = colored(data.load("digits", "train"))
    with pytest.raises(ValueError, match="5000 images wanted, expected less than the 1437"):
        cifar_subset.packed(training, training, 5000, 10)
    monkeypatch.setattr(cifar_subset, "LARGEST", 100)
    with pytest.raises(ValueError, match="expected at most 100: take fewer images, with --train"):
        cifar_subset.packed(training, training, 20, 10)
