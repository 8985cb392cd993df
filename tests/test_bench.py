"""`tinyres bench`: both sides do the same work, on as many threads, and it is told on what. No speed is judged."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tinyres import models
from tinyres.analysis import bench_infer, bench_memory, bench_step, bench_torch, timing
from tinyres.analysis.timing import Times
from tinyres.analysis.workload import Workload
from tinyres.cli import bench

TINY = Workload("resnet8", {"num_classes": 10, "in_channels": 3, "option": "B"}, 6, 8)
STEM = Workload("resnet18", {"num_classes": 10, "in_channels": 3, "cifar_stem": True, "option": "C"}, 4, 16)
QUICK = "--model resnet8 --image-size 8 --rounds 2 --no-memory"
ONE_SIDE = {"median_ms", "min_ms", "max_ms", "rounds_ms", "images_per_second"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Beside other tests, PyTorch's threads would wait for each other for seconds."""
    monkeypatch.setenv("TINYRES_NUM_THREADS", "1")


def found_by(command, line):
    """The JSON that a command prints, and its stderr."""
    status, out, err = command(f"{line} --json")
    assert status == 0, err
    return json.loads(out.splitlines()[-1]), err


@pytest.fixture
def load(monkeypatch):
    """load(0.7): the machine's load average from now on."""
    return lambda value: monkeypatch.setattr(os, "getloadavg", lambda: (value, 9.0, 9.0), raising=False)


# --- the clock --------------------------------------------------------------------------------------------------------


def test_runs_take_turns_forwards_and_backwards_and_the_warmup_does_not_count():
    order = []
    found = timing.alternate({name: lambda name=name: order.append(name) for name in "abc"}, 3, 2)
    assert "".join(order) == "abcabc" + "abc" + "cba" + "abc"
    assert list(found) == ["a", "b", "c"] and all(len(times.seconds) == 3 for times in found.values())
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        timing.alternate({"a": time.time}, 0)


def test_the_seconds_are_those_of_the_run_alone():
    found = timing.alternate({"short": lambda: None, "long": lambda: time.sleep(0.05)}, 2, 0)
    assert found["long"].least >= 0.05 > found["short"].least


@pytest.mark.parametrize("busy_until, wait, rested", [(0.0, 0.1, 0.004), (0.011, 0.1, 0.016), (9.0, 0.1, 0.1)])
def test_a_run_waits_for_the_threads_of_the_one_before(monkeypatch, busy_until, wait, rested):
    """As OpenMP's do, threads of an earlier run use a processor until some time; two idle naps tell that they sleep."""
    now = [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(
        perf_counter=lambda: now[0], process_time=lambda: min(now[0], busy_until),
        sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)))
    timing.rest(wait)
    assert now[0] == pytest.approx(rested, abs=1e-9)


def test_each_timed_run_begins_at_rest(monkeypatch):
    order = []
    monkeypatch.setattr(timing, "rest", lambda: order.append("rest"))
    timing.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, 1)
    assert order == ["a", "b", "rest", "a", "rest", "b", "rest", "b", "rest", "a"]


def test_a_turn_may_begin_with_runs_that_are_not_timed(monkeypatch):
    order = []
    monkeypatch.setattr(timing, "rest", lambda: order.append("rest"))
    found = timing.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 1, 0, lead=2)
    assert order == ["rest", "a", "a", "a", "rest", "b", "b", "b"] and len(found["a"].seconds) == 1


def test_medians_ranges_and_ratios():
    ours, theirs = Times([1.0, 2.0, 9.0]), Times([4.0, 4.0, 2.0])
    assert (ours.median, ours.least, ours.most) == (2.0, 1.0, 9.0)
    assert timing.ratio(ours, theirs) == {"median": 0.5, "low": 0.375, "high": 2.5, "least": 0.5}
    assert timing.ratio(Times([1.0]), Times([2.0])) == {"median": 0.5, "low": 0.5, "high": 0.5, "least": 0.5}
    assert timing.unsteady({"ours": ours, "theirs": theirs, "steady": Times([1.0, 1.2, 9.0])}) == ["ours", "theirs"]


# --- threads ----------------------------------------------------------------------------------------------------------


def blas_threads():
    from tinyres.analysis import blas

    return (blas.loaded() or {}).get("num_threads")


def test_pytorch_has_as_many_threads_as_our_kernels_and_blas_one_and_all_is_put_back(torch, monkeypatch):
    """The fixture gives PyTorch one thread. Limiting OpenMP too, as threadpoolctl does unasked, would keep it there."""
    from threadpoolctl import threadpool_limits

    monkeypatch.setenv("TINYRES_NUM_THREADS", "3")
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with pytest.raises(KeyError), timing.pinned(torch):
            assert torch.get_num_threads() == 3 and blas_threads() == 1
            assert "omp_get_max_threads() : 3" in torch.__config__.parallel_info()
            found = timing.machine()
            raise KeyError
        assert (torch.get_num_threads(), blas_threads()) == (1, before)
    assert (found["threads"], found["torch_threads"], found["blas"]["threads"]) == (3, 3, 1)
    assert found["cpu"] and found["versions"].keys() >= {"tinyres", "python", "numpy", "numba", "torch"}
    words = timing.in_words(found)
    assert "threads: tinyres 3, PyTorch 3, NumPy's BLAS 1;" in words and str(found["blas"]["kernels"]) in words


def test_without_threadpoolctl_pytorchs_threads_are_pinned_and_put_back_all_the_same(torch, monkeypatch):
    from tinyres.kernels.cpu import threads

    monkeypatch.setenv("TINYRES_NUM_THREADS", "3")
    monkeypatch.setattr(threads, "_blas_controller", lambda: None)  # whose end restores OpenMP's threads, too
    with timing.pinned(torch):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("value, quiet", [(0.5, True), (0.51, False)])
def test_a_busy_machine_is_told(load, value, quiet, tinyres_command):
    load(value)
    found, err = found_by(tinyres_command, f"bench step {QUICK} --batch 2")
    assert (found["quiet"], found["machine"]["load"]) == (quiet, value)
    assert ("The machine is busy" in err) is not quiet
    status, out, err = tinyres_command(f"bench step {QUICK} --batch 2")
    assert status == 0 and ("The machine is busy" in out) is not quiet and "The machine is busy" not in err


def test_a_system_without_load_averages_or_threadpoolctl_is_told_of_as_unknown(monkeypatch):
    monkeypatch.delattr(os, "getloadavg", raising=False)
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    found = timing.machine()
    assert found["load"] is found["quiet"] is found["blas"] is None and timing.warning(found) == ""
    titles = [bench_step.picture_title("a step", {"quiet": quiet}) for quiet in (None, True, False)]
    assert titles == ["a step", "a step", "a step (on a busy machine)"]
    words = timing.in_words(found)
    assert "start unknown" in words and "BLAS unknown (OPENBLAS_CORETYPE=Nehalem)" in words


# --- a step -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [TINY, STEM])
def test_both_sides_do_the_same_work(torch, monkeypatch, work):
    """A large rate and decay, so that a side that leaves out momentum or decay is found out within a few steps."""
    monkeypatch.setattr(bench_torch, "SGD", {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.5})
    model = work.network()
    weights = {name: value.copy() for name, value in model.state_dict().items()}
    runs = {"ours": bench_step.training_step(work, model)}
    runs |= {side: bench_torch.training_step(work, side, weights) for side in bench_torch.LAYOUTS}
    losses = {name: [run() for _ in range(4)] for name, run in runs.items()}
    assert losses["ours"][0] - losses["ours"][-1] > 0.1
    np.testing.assert_allclose(losses["eager"], losses["ours"], rtol=1e-4, atol=3e-4)
    np.testing.assert_allclose(losses["channels_last"], losses["ours"], rtol=1e-4, atol=3e-4)


def test_pytorch_gets_the_layout_that_its_name_says(torch):
    for side, layout in (("eager", torch.contiguous_format), ("channels_last", torch.channels_last)):
        model, x = bench_torch.prepared(TINY, side, None)
        assert x.is_contiguous(memory_format=layout) and np.array_equal(x.numpy(), TINY.data()[0])
        assert model.layer1[0].conv1.weight.is_contiguous(memory_format=layout)


def test_step_against_pytorch_as_json(torch, tinyres_command, load):
    load(0.0)
    found, err = found_by(tinyres_command, f"bench step {QUICK} --batch 4 --against torch --out times.png")
    assert found.keys() >= {"ratio_eager", "ratio_channels_last", "ratio_peak_memory", "loss_difference", "machine",
                            "quiet", "layouts_difference", "ratio_eager_range", "ratio_eager_least", "unsteady"}
    assert (found["bench"], found["option"], found["batch"], found["rounds"], found["steps"]) == ("step", "B", 4, 2, 6)
    assert list(found["sides"]) == ["ours", "eager", "channels_last"]
    for side in found["sides"].values():
        assert side.keys() >= ONE_SIDE and len(side["rounds_ms"]) == 2
        assert side["min_ms"] <= side["median_ms"] <= side["max_ms"]
        assert side["images_per_second"] == pytest.approx(4e3 / side["median_ms"])
    ours, eager = found["sides"]["ours"], found["sides"]["eager"]
    assert found["ratio_eager"] == pytest.approx(ours["median_ms"] / eager["median_ms"])
    assert found["loss_difference"] == abs(ours["loss"] - eager["loss"]) < 1e-3
    assert found["machine"]["torch_threads"] == found["machine"]["threads"]
    assert Path("times.png").read_bytes().startswith(b"\x89PNG") and "drawn: times.png" in err


def test_step_for_people_names_option_threads_and_machine(torch, tinyres_command, load):
    load(0.0)
    status, out, err = tinyres_command(f"bench step {QUICK} --batch 4 --against torch --option C")
    lines = out.splitlines()
    assert status == 0 and "load average before the start 0.00" in lines[0] and lines[1].startswith("threads: tinyres ")
    assert any("resnet8, option C shortcuts, batch 4 of 3x8x8; 2 rounds in turn, kernel set fast" in line
               for line in lines)
    assert [line.split()[0] for line in lines if " of it" in line] == ["PyTorch", "PyTorch"]
    assert "after 6 steps the losses differ by" in out and "2 rounds" in err


def test_ours_alone_needs_no_pytorch(tinyres_command, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found, _ = found_by(tinyres_command, f"bench step {QUICK} --batch 2 --kernels im2col")
    assert list(found["sides"]) == ["ours"] and found["kernels"] == "im2col" and "ratio_eager" not in found
    assert not any(key.startswith("ratio") or key == "loss_difference" for key in found)
    for line in ("step", "infer", "layers"):
        status, out, err = tinyres_command(f"bench {line} --against torch")
        assert (status, out) == (1, "")
        assert err == "tinyres: bench: --against torch, but PyTorch is not installed: pip install torch==2.13.0\n"


def test_torch_compile_that_fails_or_hangs_is_left_out_in_words(torch, tinyres_command, monkeypatch):
    def fails(work, side, threads, **more):
        assert side == "compiled" and more["seconds"] == bench_step.COMPILE_SECONDS
        raise RuntimeError("bench: the process for compiled took longer than 300 seconds")

    monkeypatch.setattr(bench_step, "peak_memory", fails)
    line = f"bench step {QUICK} --batch 2 --against torch --compile"
    found, _ = found_by(tinyres_command, line)
    assert found["left_out"] == {"compiled": "the process for compiled took longer than 300 seconds"}
    assert list(found["sides"]) == ["ours", "eager", "channels_last"]
    assert "torch.compile (channels_last) was left out: the process for compiled took" in tinyres_command(line)[1]


def test_torch_compile_that_works_takes_part(torch, monkeypatch):
    monkeypatch.setattr(bench_step, "peak_memory", lambda *args, **more: {})
    monkeypatch.setattr(torch, "compile", lambda model: model)
    found = bench_step.measure(TINY, 1, True, True, memory=False)
    assert list(found["sides"]) == ["ours", "eager", "channels_last", "compiled"] and found["ratio_compiled"] > 0


def test_a_loss_that_is_not_finite_is_no_number_in_json(monkeypatch):
    monkeypatch.setattr(bench_step, "training_step", lambda work, model: lambda: float("nan"))
    found = bench_step.measure(TINY, 1, memory=False)
    assert found["sides"]["ours"]["loss"] is None and "nan" in bench_step.rows(found)[0]


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_is_of_a_process_of_its_own_and_ratios_are_to_pytorchs_smaller_layout(torch, monkeypatch):
    ballast = np.ones(60_000_000)  # of this process; Linux's ru_maxrss would hand it on to the child
    work = Workload(TINY.model, TINY.options, 64, 32)
    seen = bench_memory.peak_memory(work, "ours", 1, "im2col")
    assert seen["start"] is None or 10e6 < seen["start"] < ballast.nbytes
    assert seen["peak"] is None or seen["peak"] > seen["start"] + 3 * 64 * 16 * 32 * 32 * 4  # the first stage at least
    found = {"ours": {"start": 10, "peak": 40}, "eager": {"start": 20, "peak": 80},
             "channels_last": {"start": 40, "peak": 90}}
    monkeypatch.setattr(bench_step, "peak_memory", lambda work, side, *rest: found[side])
    done = bench_step.measure(TINY, 1, True)
    assert (done["ratio_peak_memory"], done["ratio_memory_above_imports"]) == (0.5, 0.6)
    monkeypatch.setattr(bench_step, "peak_memory", lambda work, side, *rest: {"start": None, "peak": None})
    done = bench_step.measure(TINY, 1, True)
    assert done["ratio_peak_memory"] is None and bench_step.rows(done)[0][-3:-1] == ["-", "-"]


def test_pytorchs_process_holds_nothing_of_ours(torch):
    code = bench_memory.child_code(TINY, "channels_last", 1, "fast")
    code += "\nprint(*[name for name in sys.modules if name.startswith(('numba', 'tinyres'))], torch_threads())"
    code = "def torch_threads():\n    import torch\n    return torch.get_num_threads()\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    numbers, names = done.stdout.splitlines()
    assert 0 < json.loads(numbers)["start"] <= json.loads(numbers)["peak"]
    assert sorted(names.split()) == sorted(["1", "tinyres", "tinyres.analysis", *(
        f"tinyres.analysis.{name}" for name in ("bench_memory", "bench_torch", "twins", "workload"))])


def test_a_process_that_fails_or_hangs_is_an_error_in_words(torch):
    with pytest.raises(RuntimeError, match="for eager failed .status 1.: ValueError: .*resnet9"):
        bench_memory.peak_memory(Workload("resnet9", {"num_classes": 10}, 2, 8), "eager", 1)
    with pytest.raises(RuntimeError, match="bench: the process for ours took longer than 0.01 seconds"):
        bench_memory.peak_memory(TINY, "ours", 1, seconds=0.01)


# --- inference --------------------------------------------------------------------------------------------------------


def test_inference_against_pytorch(torch, tinyres_command):
    found, _ = found_by(tinyres_command, "bench infer --model resnet8 --image-size 8 --rounds 1 --batch 1 --batch 3 "
                                         "--against torch --out times.png")
    assert [one["batch"] for one in found["batches"]] == [1, 3] and found["option"] == "B"
    for one in found["batches"]:
        assert list(one["sides"]) == ["ours", "folded", "eager", "channels_last"]
        assert all(side.keys() >= ONE_SIDE for side in one["sides"].values())
        assert one.keys() >= {"ratio_eager", "ratio_channels_last", "ratio_folded_eager", "ratio_folded_channels_last"}
        ours, eager = (one["sides"][name]["median_ms"] for name in ("ours", "eager"))
        assert one["ratio_eager"] == pytest.approx(ours / eager) and one["calls_a_round"] >= 1
        assert 0 < one["logits_difference"] < 1e-4 * one["logits_size"]
        assert 0 < one["folded_difference"] < 1e-4 * one["logits_size"]
    assert Path("times.png").read_bytes().startswith(b"\x89PNG")


def test_inference_of_ours_alone_for_people(tinyres_command):
    status, out, err = tinyres_command("bench infer --model resnet8 --image-size 8 --rounds 1 --batch 2 --batch 2")
    assert status == 0 and "Inference: resnet8, option B shortcuts; 1 rounds in turn" in out
    rows = [line for line in out.splitlines() if line.split()[:2] == ["2", "tinyres"]]
    assert len(rows) == 1 and out.count("Batch 2: logits up to ") == 1 and "batch 2: 1 rounds" in err


def test_inference_runs_in_eval_mode_with_settled_statistics(monkeypatch):
    seen = []
    right = bench_infer.inference
    monkeypatch.setattr(bench_infer, "inference", lambda model, x: seen.append(
        (model, model.training, len(x))) or right(model, x))
    bench_infer.measure(TINY, [2], 1)
    assert [kind[1:] for kind in seen] == [(True, 2), (False, 2), (False, 2)]
    assert np.abs(seen[1][0].bn1.running_mean.data).max() > 1e-3


# --- the options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line, option, size, classes, words", [
    ("resnet20", "B", 32, 10, "resnet20, option B shortcuts, batch 4 of 3x32x32"),
    ("resnet18", "B", 224, 1000, "resnet18, option B shortcuts, batch 4 of 3x224x224"),
    ("resnet18 --cifar-stem", "A", 32, 10, "resnet18, CIFAR stem, option A shortcuts, batch 4 of 3x32x32"),
    ("plain20", "B", 32, 10, "plain20, batch 4 of 3x32x32"),
])
def test_the_workload_of_the_options(line, option, size, classes, words):
    name, _, stem = line.partition(" ")
    work = bench._workload(name, 4, bool(stem), option, None, 0)
    assert (work.size, work.options["num_classes"], work.words()) == (size, classes, words)
    assert work.options.get("option") == (None if name == "plain20" else option)
    models.build(name, **work.options)
    images, labels = work.data()
    assert images.shape == (4, 3, size, size) and images.dtype == np.float32 and images.strides[1] == 4
    assert labels.shape == (4,) and images[0].std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("line, message", [
    ("step --model resnet19", "Invalid value for --model"),
    ("step --option D", "Invalid value for --option"),
    ("step --model plain20 --option A", "Invalid value for --option"),
    ("step --cifar-stem", "Invalid value for --cifar-stem"),
    ("step --batch 0", "'0' is not a whole number of at least 1"),
    ("step --image-size 4", "from 8 to 1024"),
    ("step --rounds 0", "'0' is not a whole number of at least 1"),
    ("step --against jax", "Invalid value for --against: 'jax': only torch is known"),
    ("step --compile", "Invalid value for --compile: it is PyTorch's: give --against torch too"),
    ("step --out times.svg", "times.svg is not a .png file in a folder that exists"),
    ("infer --out nowhere/times.png", "times.png is not a .png file in a folder that exists"),
    ("infer --batch many", "'many' is not a whole number"),
    ("step --kernels slow", "Invalid value for --kernels"),
])
def test_wrong_options_are_told_before_anything_runs(tinyres_command, line, message):
    status, out, err = tinyres_command(f"bench {line}")
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_profile_is_of_ours_only(torch, tinyres_command):
    status, _, err = tinyres_command(f"bench step {QUICK} --profile --against torch")
    assert status == 2 and "it looks at our ops only: leave --against out" in err


def test_help_names_the_pitfall(tinyres_command):
    assert "layers" in tinyres_command("bench")[1]
    for name in ("step", "infer", "layers", "peers"):
        text = " ".join(tinyres_command(f"bench {name} --help")[1].split())
        assert "The machine must be quiet." in text and "by spinning" in text and "flatter tinyres" in text


@pytest.mark.parametrize("line", ["layers --batch 2 --rounds 1", "peers --model resnet8 --batch 2 --rounds 1",
                                  "step --model resnet8 --batch 2 --rounds 1 --profile"])
def test_the_other_analyses_are_wired(tinyres_command, monkeypatch, line):
    """Their numbers have tests of their own; here the way from the options to text, JSON and picture."""
    from tinyres.analysis import bench_layers, bench_peers, bench_profile

    name = "profile" if "--profile" in line else line.split()[0]
    analysis = {"layers": bench_layers, "peers": bench_peers, "profile": bench_profile}[name]
    asked = []
    machine = {**timing.machine(), "quiet": False}
    monkeypatch.setattr(analysis, "measure", lambda *args, **more: asked.append((args, more)) or {
        "machine": machine, "words": "a step"})
    monkeypatch.setattr(analysis, "rows", lambda found: [["cell"] * len(analysis.COLUMNS)])
    monkeypatch.setattr(analysis, "summary", lambda found: "the summary")
    monkeypatch.setattr(analysis, "draw", lambda found, path: Path(path).write_bytes(b"picture"))
    status, out, err = tinyres_command(f"bench {line} --out it.png")
    assert status == 0 and "The machine is busy" in out and "cell" in out and out.endswith("the summary\n")
    assert Path("it.png").exists() and "drawn: it.png" in err
    found, err = found_by(tinyres_command, f"bench {line} --quiet")
    assert (found["bench"], found["quiet"], found["out"], err) == (name, False, None, "")
    expected = {"layers": (2, False, 1), "peers": (2, 1, "resnet8")}
    args = asked[0][0]
    assert args == expected[name] if name in expected else (args[0].model, args[0].batch, args[1]) == ("resnet8", 2, 1)
