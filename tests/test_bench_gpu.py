"""Measuring on a GPU, tried on a GPU of straw: what is timed, in which order, how bytes and operations are counted."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import gpu_rehearsal
import numpy as np
import pytest
from emulated import NEEDS_EMULATOR

from tinyres import kernels
from tinyres.analysis import bench_gpu_card as card
from tinyres.analysis import (
    bench_gpu_infer,
    bench_gpu_kernels,
    bench_gpu_step,
    bench_gpu_torch,
    bench_torch,
    launches,
    timing,
)
from tinyres.analysis import bench_gpu_limits as limits
from tinyres.analysis.bench_gpu_cases import Case, cases
from tinyres.analysis.workload import Workload
from tinyres.kernels.cuda.manifest import KERNELS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gpu_kernels  # noqa: E402

TINY = Workload("resnet8", {"num_classes": 10, "in_channels": 3, "option": "B"}, 2, 8)


@pytest.fixture
def cupy(monkeypatch):
    monkeypatch.setenv("TINYRES_NUM_THREADS", "1")
    with gpu_rehearsal.rehearsal() as module, gpu_rehearsal.small():
        yield module


class Queue:
    """A GPU that works off its queue by itself: a launch costs the processor nothing, and the GPU its seconds."""

    def __init__(self):
        self.done, self.order = 0.0, []
        queue = self

        class Event:
            def record(self):
                queue.order.append("record")
                self.at = queue.done

            def synchronize(self):
                queue.order.append("wait")

        self.cuda = SimpleNamespace(
            Event=Event, get_elapsed_time=lambda start, end: 1e3 * (end.at - start.at),
            Device=lambda: SimpleNamespace(synchronize=lambda: queue.order.append("rest")))

    def launch(self, name, seconds):
        self.order.append(name)
        self.done += seconds


# ---- the clock -------------------------------------------------------------------------------------------------------


def test_the_clock_times_what_is_between_both_events():
    """Not what fills the queue before, and nothing by the processor's clock."""
    gpu = Queue()
    clock = card.CudaClock(gpu, lambda: gpu.launch("ahead", 5.0))
    assert clock.seconds(lambda: gpu.launch("it", 0.25)) == pytest.approx(0.25)
    assert gpu.order == ["ahead", "record", "it", "record", "wait"]


def test_sides_take_turns_on_the_gpus_clock():
    gpu = Queue()
    runs = {"a": lambda: gpu.launch("a", 0.5), "b": lambda: gpu.launch("b", 2.0)}
    found = timing.alternate(runs, 2, 1, lead=1, clock=card.CudaClock(gpu))
    turns = [name for name in gpu.order if name in "ab"]
    assert "".join(turns) == "ab" + "aabb" + "bbaa" and gpu.order.count("rest") == 4
    assert found["a"].seconds == [0.5, 0.5] and found["b"].seconds == [2.0, 2.0]


def test_the_peak_is_what_was_handed_out_at_once(cupy):
    pool = cupy.get_default_memory_pool()
    pool.take(100)

    def run():
        pool.take(40)
        pool.take(30)
        pool.give_back(40)
        pool.take(20)
        pool.give_back(50)

    assert card.peak_memory(cupy, run) == {"peak": 170, "reserved": 170}
    assert card.peak_memory(cupy, run, already=60)["peak"] == 110
    assert card.peak_memory(cupy, lambda: None, already=60)["peak"] == 40 and gpu_rehearsal.Pool.hooks == []


def test_what_the_card_is(cupy):
    found = card.facts(cupy)
    assert found["capability"] == [9, 0] and found["memory"] == 2**30 and json.dumps(found)
    assert found["words"] == ("GPU of straw, compute capability 9.0, 4 multiprocessors, 1 GiB; CuPy 14.0.0, CUDA 13.0, "
                              "driver for 13.0")
    machine = {**timing.machine(), "gpu": found}
    assert timing.in_words(machine).startswith(found["words"] + "\n")


# ---- the limits ------------------------------------------------------------------------------------------------------


def test_speeds_are_bytes_and_operations_by_the_seconds_of_one_run(cupy, monkeypatch):
    monkeypatch.setattr(limits, "_block_seconds", lambda cupy, run, rounds: (run(), 1e-3)[1])
    assert limits.copy_speed(cupy, 4096) == pytest.approx(2 * 4096 / 1e-3)
    found = limits.measure(cupy)
    assert found["tflops"]["float32"] == pytest.approx(2 * 32**3 / 1e-3 / 1e12) == found["tflops"]["tf32"]
    assert found["copy_gbs"] == {"16384": pytest.approx(2 * 16384 / 1e-3 / 1e9),
                                 "65536": pytest.approx(2 * 65536 / 1e-3 / 1e9)}
    assert found["copy_peak_gbs"] == found["copy_gbs"]["65536"] and json.dumps(found)
    assert cupy._core.get_compute_type("float32") == 1  # TF32 is off again


def test_a_type_that_cannot_be_multiplied_is_left_out_with_the_reason(cupy, monkeypatch):
    def refuse(dtype, value):
        raise AttributeError("no such compute type")

    monkeypatch.setattr(cupy._core, "set_compute_type", refuse)
    found = limits.measure(cupy)
    assert found["tflops"]["tf32"] is None and "no such compute type" in found["left_out"]["tf32"]
    assert found["tflops"]["float32"] > 0 and "tf32" not in limits.in_words(found)


def test_a_kernel_is_compared_with_the_copy_next_in_size():
    could = {"copy_gbs": {"1024": 10.0, "65536": 20.0, "4194304": 30.0}}
    found = [limits.speed_of_copy(could, moved) for moved in (1, 2048, 100_000, 2 * 65536, 10**9)]
    assert found == [10, 10, 20, 20, 30]


def test_the_queue_is_held_for_as_long_as_asked(cupy):
    could = {"copy_gbs": {"4096": 8.192}, "copy_peak_gbs": 8.192}  # a copy takes a microsecond
    counted = []
    cupy.copyto = lambda target, source: counted.append(target.nbytes)
    limits.ahead(cupy, could, 20e-6)()
    assert counted == [4096] * 20


# ---- a training step -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def step():
    """A whole measurement, beside PyTorch on the processor."""
    pytest.importorskip("torch")
    with gpu_rehearsal.rehearsal(), gpu_rehearsal.small(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYRES_NUM_THREADS", "1")
        return bench_gpu_step.measure(TINY, 1, against_torch=True)


def test_all_sides_do_the_same_work(step):
    assert list(step["sides"]) == ["ours", "as_trained", "im2col", "reference", *bench_gpu_torch.SIDES]
    assert step["left_out"] == {} and step["kernels"] == "fast" and step["device"] == "cuda"
    losses = {name: side["early_loss"] for name, side in step["sides"].items()}
    exact = [losses[name] for name in losses if name not in ("bf16", "fp16")]
    assert max(exact) - min(exact) < 1e-5 and all(abs(losses[name] - exact[0]) < 0.1 for name in ("bf16", "fp16"))
    assert step["early_loss_difference"] < 1e-5 and step["loss_difference"] < 1e-4
    assert step["steps"] == 2 + 1 + 2 + 2 * step["steps_a_round"]


def test_json_and_table_have_what_was_asked_for(step):
    assert json.loads(json.dumps(step, allow_nan=False))["machine"]["gpu"]["name"] == "GPU of straw"
    assert {"ratio_eager", "ratio_channels_last", "ratio_peak_memory", "loss_difference", "ratio_bf16",
            "ratio_channels_last_tf32"} <= step.keys() and "ratio_im2col" not in step
    eager = step["sides"]["eager"]
    assert step["ratio_eager"] == pytest.approx(step["sides"]["ours"]["median_ms"] / eager["median_ms"])
    cells = bench_gpu_step.rows(step)
    assert len(cells) == len(step["sides"]) and {len(row) for row in cells} == {len(bench_gpu_step.COLUMNS)}
    assert cells[0][0] == "tinyres" and cells[4][0] == "PyTorch eager (NCHW)"
    words = bench_gpu_step.summary({**step, "unsteady": ["eager"], "left_out": {"fp16": "why"}})
    assert "after 5 steps the losses" in words and "autocast fp16 was left out: why" in words and "jump" in words


def test_the_picture(step, tmp_path):
    bench_gpu_step.draw(step, tmp_path / "step.png")
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")


def test_each_side_of_ours_runs_its_own_kernels(cupy, monkeypatch):
    """In warm-up, memory and race; and the set that was current is current again."""
    seen = {}

    def watching(work, weights, as_trained=False):
        name = "as_trained" if as_trained else kernels.current()

        def run():
            seen.setdefault(name, []).append(kernels.current())
            return 1.0

        return run

    monkeypatch.setattr(bench_gpu_step, "training_step", watching)
    with kernels.use_kernels("im2col"):
        found = bench_gpu_step.measure(TINY, 1)
        assert kernels.current() == "im2col"
    assert list(found["sides"]) == ["ours", "as_trained", "fast", "reference"] and found["kernels"] == "im2col"
    assert {name: set(sets) for name, sets in seen.items()} == {
        "im2col": {"im2col"}, "as_trained": {"im2col"}, "fast": {"fast"}, "reference": {"reference"}}
    assert {len(sets) for sets in seen.values()} == {found["steps"]}


def test_a_side_that_fails_is_left_out_but_ours_is_not(cupy, monkeypatch):
    def failing(work, weights, as_trained=False):
        if kernels.current() == "reference" or failing.ours:
            raise MemoryError("out of memory: 7 GB wanted")
        return lambda: float("nan")

    failing.ours = False
    monkeypatch.setattr(bench_gpu_step, "training_step", failing)
    found = bench_gpu_step.measure(TINY, 1)
    assert list(found["sides"]) == ["ours", "as_trained", "im2col"] and found["sides"]["ours"]["loss"] is None
    assert found["left_out"] == {"reference": "MemoryError: out of memory: 7 GB wanted"}
    failing.ours = True
    with pytest.raises(MemoryError):
        bench_gpu_step.measure(TINY, 1)


# ---- inference -------------------------------------------------------------------------------------------------------


def test_inference_on_all_sides(cupy, torch, monkeypatch, tmp_path):
    found = bench_gpu_infer.measure(TINY, [1, 2], 1, against_torch=True)
    assert [one["batch"] for one in found["batches"]] == [1, 2] and json.dumps(found, allow_nan=False)
    for one in found["batches"]:
        assert list(one["sides"]) == ["ours", "folded", "im2col", "reference", *bench_gpu_torch.SIDES]
        assert one["logits_difference"] < 1e-4 * one["logits_size"] and "ratio_folded_bf16" in one
        assert 0 < one["folded_difference"] < 1e-4 * one["logits_size"]
        assert one["sides"]["bf16"]["difference"] > one["sides"]["eager"]["difference"]
    cells = bench_gpu_infer.rows(found)
    assert {len(row) for row in cells} == {len(bench_gpu_infer.COLUMNS)} and len(cells) == 20
    bench_gpu_infer.draw(found, tmp_path / "infer.png")
    assert (tmp_path / "infer.png").exists() and "logits up to" in bench_gpu_infer.summary(found)


# ---- PyTorch's side --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eager", "channels_last_tf32"])
def test_precision_is_set_inside_and_put_back(torch, name):
    side = bench_gpu_torch.ALL[name]
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    with pytest.raises(KeyError), bench_gpu_torch.precision(side):
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is side.tf32
        assert torch.backends.cudnn.benchmark
        raise KeyError
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,
                      torch.backends.cudnn.benchmark)


def test_layouts_and_weights_of_pytorchs_sides(torch, monkeypatch):
    monkeypatch.setattr(bench_gpu_torch, "DEVICE", "cpu")
    weights = TINY.network().state_dict()
    for name, side in bench_gpu_torch.ALL.items():
        model, x = bench_gpu_torch.prepared(TINY, side, weights)
        assert x.is_contiguous(memory_format=getattr(torch, {"contiguous": "contiguous_format"}.get(
            side.layout, side.layout))), name
        np.testing.assert_array_equal(model.conv1.weight.detach().numpy(), weights["conv1.weight"])
    assert not set(bench_gpu_torch.ALL) & set(bench_torch.OURS) and set(bench_gpu_torch.ALL) < set(bench_gpu_step.NAMES)


def test_pytorch_without_a_gpu_is_told(torch, tinyres_command):
    with gpu_rehearsal.rehearsal():
        status, out, err = tinyres_command("bench step --device cuda --against torch --model resnet8")
    assert status != 0 and out == "" and "finds no GPU" in err and "pytorch.org" in err


# ---- kernels ---------------------------------------------------------------------------------------------------------


def test_every_instance_of_the_manifest_is_run_on_odd_shapes():
    found = gpu_kernels.run_all(lambda array: array)
    assert found["missing"] == [] and set(found["launches"]) == {kernel.name for kernel in KERNELS}
    assert found["cases"] > 100


def test_what_is_missing_is_told(monkeypatch, capsys):
    monkeypatch.setattr(gpu_kernels, "KERNELS", [*KERNELS, SimpleNamespace(name="nobody<float>")])
    monkeypatch.setattr(gpu_kernels, "cases", lambda put, dtype: iter([Case("nothing", lambda: None, 0)]))
    monkeypatch.setattr(sys, "argv", ["gpu_kernels.py", "--place", "emulator", "--dtype", "float32"])
    assert gpu_kernels.main() == 1
    assert "nobody<float>" in json.loads(capsys.readouterr().out.splitlines()[-1])["missing"]


def test_launches_are_watched_and_run_again():
    case = next(case for case in cases(lambda array: array, "float32") if case.words == "sgd")
    seen = []
    with pytest.raises(KeyError), launches.watched(seen.append):
        case.run()
        raise KeyError
    case.run()  # no longer watched
    assert [one.name for one in seen] == ["sgd<float>"] and len(seen[0].arrays) == 1
    place = __import__("tinyres.kernels.cuda.emulator", fromlist=["launch"])
    emulated, again = place.launch, []
    place.launch = lambda *args: again.append(args)
    try:
        seen[0].again()
    finally:
        place.launch = emulated
    assert again == []  # it keeps what it was watching


def test_bytes_of_a_launch_are_those_of_its_different_arrays():
    a, b = np.zeros(10, np.float32), np.zeros((2, 3))
    one = launches.Launch("it", (1,), (1,), (a, np.int32(4), b, a), 0, lambda: None)
    assert one.bytes == 40 + 48


def test_the_case_counts_the_direct_convolution():
    words = "conv2d 3x3 16->16 @ 32x32"
    case = next(case for case in cases(lambda array: array, "float32", 2) if case.words == words)
    pixels = 2 * 32 * 32
    assert case.flops == 2 * pixels * 16 * 16 * 9 and case.bytes == 4 * (2 * pixels * 16 + 16 * 16 * 9)


@NEEDS_EMULATOR
def test_rows_of_kernels(cupy, monkeypatch, tmp_path):
    """Whole calls and their launches, with the speeds that times, bytes and operations make."""
    wanted = ("conv2d 3x3 32->32 @ 16x16", "batch_norm_stats 16 @ 32x32", "sgd")
    monkeypatch.setattr(bench_gpu_kernels, "cases", lambda put, dtype, batch: (
        case for case in cases(put, dtype, batch) if case.words in wanted or case.words == "broken"))
    found = bench_gpu_kernels.measure(1, 2)
    rows = {(row["case"], row["dtype"], row["kernel"]): row for row in found["rows"]}
    assert found["left_out"] == {} and json.dumps(found, allow_nan=False)
    for dtype, name in (("float32", "float"), ("float64", "double")):
        assert {kernel for case, kind, kernel in rows if (case, kind) == (wanted[2], dtype)} == {"", f"sgd<{name}>"}
        whole, launch = (rows[wanted[2], dtype, kernel] for kernel in ("", f"sgd<{name}>"))
        assert whole["bytes"] == launch["bytes"]  # one launch does it all, though it is given only a table
        convolution = rows[wanted[0], dtype, ""]
        assert convolution["tflops"] == pytest.approx(convolution["flops"] / convolution["us"] / 1e6)
        assert convolution["gbs"] == pytest.approx(convolution["bytes"] / convolution["us"] / 1e3)
    product = next(row for (case, _, kernel), row in rows.items() if case == wanted[0] and kernel.startswith("matmul"))
    assert product["flops"] == convolution["flops"] and product["share_of_product"] > 0
    columns = next(row for (case, _, kernel), row in rows.items() if case == wanted[0] and kernel.startswith("im2col"))
    assert columns["flops"] is None and columns["bytes"] == 4 * 16 * 16 * 32 * (1 + 9)
    cells = bench_gpu_kernels.rows(found)
    assert {len(row) for row in cells} == {len(bench_gpu_kernels.COLUMNS)} and "whole" in {row[2] for row in cells}
    bench_gpu_kernels.draw(found, tmp_path / "kernels.png")
    assert (tmp_path / "kernels.png").exists() and "copy" in bench_gpu_kernels.summary(found)


def test_a_case_that_cannot_be_run_is_left_out_with_the_reason(cupy, monkeypatch):
    def broken():
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(bench_gpu_kernels, "cases", lambda put, dtype, batch: iter([Case("broken", broken, 1.0)]))
    found = bench_gpu_kernels.measure(1, 1)
    assert found["rows"] == [] and "ILLEGAL_ADDRESS" in found["left_out"]["broken, float32"]


# ---- the commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["step --device cuda", "kernels", "infer --device cuda"])
def test_without_a_gpu_there_is_one_clear_message(tinyres_command, line, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    status, out, err = tinyres_command(f"bench {line}")
    assert status != 0 and out == "" and err.count("\n") == 1
    assert "CuPy is not installed" in err and "pip install 'tinyres[cuda13]'" in err


@pytest.mark.parametrize("line, message", [
    ("step --device gpu", "Invalid value for --device"),
    ("step --device cuda --profile", "Invalid value for --profile"),
])
def test_wrong_options(cupy, tinyres_command, line, message):
    status, out, err = tinyres_command(f"bench {line}")
    assert (status, out) == (2, "") and message in err


def test_the_commands_print_json_and_tables(cupy, tinyres_command, monkeypatch, step):
    monkeypatch.setattr(bench_gpu_step, "measure", lambda *args, **more: step)
    status, out, err = tinyres_command("bench step --device cuda --json --quiet")
    found = json.loads(out.splitlines()[-1])
    assert (status, err, found["bench"], found["device"]) == (0, "", "step", "cuda")
    status, out, _ = tinyres_command("bench step --device cuda --out it.png")
    assert status == 0 and out.startswith("GPU of straw") and "PyTorch channels_last, TF32" in out
