"""Data set, batches, training and the commands on device "cuda", on the strict stand-in for CuPy arrays: the batches
are the CPU's bit for bit, a step waits for the device once, and runs go from one device to the other."""

import itertools
import json
import sys
import warnings

import numpy as np
import pytest
import standin
from emulated import NEEDS_EMULATOR

from tinyres import checkpoint, data, models, nn, ops, optim, random
from tinyres import train as loop
from tinyres.data.augment import Cutout, RandomCrop, RandomFlip, fused
from tinyres.finite import read
from tinyres.kernels import layout, use_kernels
from tinyres.kernels.cpu.threads import one_blas_thread

SETS = ("reference", "im2col", "fast")


@pytest.fixture(autouse=True)
def cupy():
    with standin.installed() as module, use_kernels("reference"), one_blas_thread():
        yield module


def photographs(n=53, dtype=np.uint8):
    """Images of 3 channels that are wider than high."""
    rng = np.random.default_rng(0)
    images = layout.nchw(rng.integers(1, 256, (n, 8, 10, 3)).astype(dtype))
    return data.Dataset(images, rng.integers(0, 4, n), "abcd")


def is_device(x):
    return isinstance(x, standin.ndarray)


def assert_same(found, expected):
    """On the device, what was expected on the host, bit for bit, in the same order of memory."""
    assert is_device(found) and found.dtype == expected.dtype and found.shape == expected.shape
    assert found.ndim != 4 or layout.is_channels_last(found)
    np.testing.assert_array_equal(found._host, expected)


# --- the data set -----------------------------------------------------------------------------------------------------


def test_a_data_set_goes_to_the_device_and_back():
    host = photographs()
    assert host.device == "cpu" and host.to("cpu") is host
    there = host.to("cuda")
    assert there.device == "cuda" and there.to("cuda") is there and host.device == "cpu"
    assert_same(there.images, host.images)
    assert_same(there.labels, host.labels)
    assert len(there) == 53 and "53 images 3x8x10 uint8" in repr(there)
    back = there.to("cpu")
    assert back.device == "cpu" and not back.images.flags.writeable and layout.is_channels_last(back.images)
    np.testing.assert_array_equal(back.images, host.images)
    np.testing.assert_array_equal(back.labels, host.labels)
    with pytest.raises(ValueError, match="device must be 'cpu' or 'cuda', got 'gpu'"):
        host.to("gpu")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_what_is_read_from_it_is_the_same(dtype):
    host = photographs(dtype=dtype)
    there = host.to("cuda")
    index = [52, 0, 7, 7]
    for here, on_device in ((host.take(index), there.take(index)), (host.batch(9, seed=3), there.batch(9, seed=3))):
        assert_same(on_device[0], here[0])
        assert_same(on_device[1], here[1])
    where = standin.cupy.asarray(np.array(index))
    assert_same(there.stored(where), host.stored(np.array(index)))
    assert_same(there.take(where)[0], host.take(index)[0])
    part = there.subset(index)
    assert part.device == "cuda" and part.mean is there.mean
    assert_same(part.images, host.subset(index).images)
    assert_same(part.labels, host.subset(index).labels)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    others = data.Dataset(host.images, host.labels, host.classes, mean, std)
    assert_same(there.with_normalisation(mean, std).take(index)[0], others.take(index)[0])
    np.testing.assert_array_equal(host.with_normalisation(mean, std).take(index)[0], others.take(index)[0])
    with pytest.raises(ValueError, match="std is .* expected positive numbers"):
        there.with_normalisation(mean, (1, 1, 0))
    narrow = there.images[:, :, :, 2:]
    assert_same(there.normalise(narrow), host.normalise(host.images[:, :, :, 2:]))
    for wrong in ([53], [-1]):
        with pytest.raises(ValueError, match="out of range, expected 0 to 52"):
            there.take(wrong)
    with pytest.raises(ValueError, match="subset: the index is empty"):
        there.subset(np.zeros(0, int))


def test_a_missing_cupy_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match="CuPy is not installed"):
        photographs().to("cuda")


# --- batches ----------------------------------------------------------------------------------------------------------


def mirrored(images, words):
    """A transform of one's own, in terms of arrays of whatever kind."""
    odd = (words & np.uint64(1)).astype(bool)
    xp = layout.array_module(images)
    nhwc = images.transpose(0, 2, 3, 1)
    return xp.where(odd[:, None, None, None], nhwc[:, ::-1], nhwc).transpose(0, 3, 1, 2)


RECIPES = {
    "none": (),
    "crop-flip": (RandomCrop(2), RandomFlip()),
    "cutout": (Cutout(4, fill=(1, 2, 3)),),
    "all": (RandomCrop(3), RandomFlip(), Cutout(5)),
    "another-order": (Cutout(5, fill=9), RandomFlip(), RandomCrop(1)),
    "own": (RandomCrop(1), mirrored),
}


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("mixup", [0.0, 0.4])
@pytest.mark.parametrize("recipe", RECIPES)
def test_batches_are_the_cpu_s_bit_by_bit(recipe, mixup, kernel_set):
    """Of two epochs, the last batch smaller; once the first is made, nothing waits or is copied."""
    host = photographs()
    options = {"shuffle": True, "seed": 5, "augment": RECIPES[recipe], "mixup": mixup}
    expected, there = data.Loader(host, 20, **options), data.Loader(host.to("cuda"), 20, **options)
    with use_kernels(kernel_set):
        for epoch, start in ((0, 0), (3, 1)):
            batches = there.epoch(epoch, start)
            for number, (x, y) in enumerate(expected.epoch(epoch, start)):
                found = next(batches)
                assert_same(found[0], x)
                assert_same(found[1], y)
                if number:
                    assert standin.syncs == []
                    assert standin.copies == [] or kernel_set != "fast" or recipe == "another-order"  # Cutout's fill
                standin.syncs.clear()
                standin.copies.clear()
            assert next(batches, None) is None


@pytest.mark.parametrize("transform", [RandomCrop(2), RandomFlip(), Cutout(4, (1, 2, 3)), Cutout(3)])
def test_a_transform_alone_takes_device_arrays(transform):
    host = photographs()
    words = data.philox.words(0, 0, 1, len(host))
    there = standin.cupy.asarray(words)
    standin.copies.clear()
    found = transform(host.to("cuda").images, there)
    assert_same(found, transform(host.images, words))
    assert standin.syncs == []


def test_what_one_kernel_can_do():
    class Own(RandomFlip):
        pass

    crop, flip, cut = RandomCrop(3), RandomFlip(), Cutout(4, 300)
    assert fused((), 3, np.uint8) == {}
    assert fused((crop, flip), 3, np.uint8) == {"crop": (1, 3), "flip": 2}
    assert fused((flip,), 3, np.uint8) == {"flip": 1}
    stream, size, fill = fused((crop, cut), 3, np.float32)["cutout"]
    assert (stream, size) == (2, 4) and fill.dtype == np.float32 and fill.tolist() == [300.0] * 3
    for others in ((flip, crop), (cut, flip), (crop, crop), (Own(),), (crop, mirrored)):
        assert fused(others, 3, np.uint8) is None


def test_partners_go_by_the_words_of_the_samples():
    """Of a shuffled epoch, batch by batch: the targets tell who was mixed with whom."""
    host = data.Dataset(photographs().images, np.arange(53), map(str, range(53)))
    order = data.philox.permutation(5, 2, 53)
    words = data.philox.words(5, 2, data.philox.MIXUP_PARTNER, 53)
    for number, (_, y) in enumerate(data.Loader(host, 20, True, 5, mixup=1.0).epoch(2)):
        index = order[number * 20 : number * 20 + 20]
        partner = index[np.argsort(words[index])]
        for row, pair in zip(y, zip(index, partner, strict=True), strict=True):
            assert set(np.flatnonzero(row)) == set(pair) and row.sum() == 1


def test_a_seed_out_of_range_is_refused_there_too():
    with pytest.raises(ValueError, match="epoch is -1, expected an integer from 0"):
        data.Loader(photographs().to("cuda"), 8).epoch(-1)


# --- training ---------------------------------------------------------------------------------------------------------


def job(device, model=lambda: models.resnet8(in_channels=1), mixup=0.0, batch=25):
    """Model, loader and optimizer on 100 digits."""
    random.manual_seed(0)
    network = model().to(device)
    digits = data.digits("fit").subset(range(100)).to(device)
    loader = data.Loader(digits, batch, True, 0, data.augment.standard("digits"), mixup=mixup)
    return network, loader, optim.SGD(network.named_parameters(), 0.05, 0.9, 1e-3, True)


def steps(device, kernel_set="reference", count=2, **options):
    """What so many steps gave, weights and momenta after them, and what the last one waited for and copied."""
    with use_kernels(kernel_set):
        network, loader, optimizer = job(device, mixup=options.pop("mixup", 0.0), batch=10)
        found = []
        for x, y in itertools.islice(loader.epoch(0), count):
            standin.syncs.clear()
            standin.copies.clear()
            found.append(loop.train_step(network, optimizer, x, y, **options))
        waited, copied = list(standin.syncs), list(standin.copies)
        return found, network.state_dict(), optimizer.state_dict()["arrays"], waited, copied


def assert_close(found, expected, bound):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert isinstance(found[name], np.ndarray) and found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, rtol=0, atol=bound * max(1.0, np.abs(array).max()), err_msg=name)


@pytest.mark.parametrize("kernel_set", SETS)
@pytest.mark.parametrize("options", [{}, {"mixup": 0.3, "label_smoothing": 0.1}, {"accumulate": 3}, {"clip_norm": 0.5}],
                         ids=lambda options: "-".join(options) or "plain")
def test_steps_equal_the_cpu_s_but_for_rounding(kernel_set, options):
    """And the last one waited for the device once, with clipping twice."""
    found, weights, momenta, waited, copied = steps("cuda", kernel_set, **options)
    expected, theirs, moved, *nothing = steps("cpu", **options)
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=2e-4)
    assert [correct for _, correct in found] == pytest.approx([correct for _, correct in expected], abs=1)
    assert_close(weights, theirs, 1e-3)
    assert_close(momenta, moved, 2e-2)
    assert nothing == [[], []] and len(waited) == 1 + ("clip_norm" in options), waited
    assert copied == [] or kernel_set == "fast"  # the one-launch optimizer sends its table of addresses


def test_a_model_trains_on_the_device(tmp_path):
    """The loop as a whole: log, validation, average, checkpoint; evaluated there and, once moved, on the CPU."""
    network, loader, optimizer = job("cuda")
    average = optim.ExponentialMovingAverage(network, 0.9)
    validation = data.digits("validation").subset(range(60))
    rows = loop.train(network, loader, optimizer, 2, average=average, validation=validation.to("cuda"), out=tmp_path)
    other, others, optimizer = job("cpu")
    expected = loop.train(other, others, optimizer, 2, average=optim.ExponentialMovingAverage(other, 0.9),
                          validation=validation)
    for row, theirs in zip(rows, expected, strict=True):
        for name in ("train_loss", "validation_loss"):
            assert row[name] == pytest.approx(theirs[name], rel=1e-3)
    found = loop.evaluate(network, validation.to("cuda"), 25)
    assert isinstance(found.logits, np.ndarray) and found.logits.dtype == np.float32 and found.logits.shape == (60, 10)
    again = loop.evaluate(network.to("cpu"), validation)
    np.testing.assert_allclose(found.logits, again.logits, atol=1e-4)
    assert (found.correct, found.n) == (again.correct, 60) and found.loss == pytest.approx(again.loss, rel=1e-5)


def test_reading_a_data_set_waits_once_whatever_its_size():
    network, loader, _ = job("cuda")
    standin.syncs.clear()
    loop.evaluate(network, loader.dataset, 10)
    assert len(standin.syncs) <= 3, standin.syncs  # the logits, the labels, the loss


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(ops.global_avg_pool2d(self.bn(self.conv(x), relu=True)))


@pytest.mark.parametrize("first, second", [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_a_checkpoint_goes_on_on_another_device(tmp_path, first, second):
    """Two epochs, then two more elsewhere; on the same device bit for bit, else but for rounding."""
    whole, loader, optimizer = job(first, Small)
    loop.train(whole, loader, optimizer, 4)
    network, loader, optimizer = job(first, Small)
    loop.train(network, loader, optimizer, 2, out=tmp_path)
    saved, arrays = checkpoint.read_checkpoint(tmp_path)
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    random.manual_seed(9)
    other = Small().to(second)
    _, loader, _ = job(second, Small)
    optimizer = optim.SGD(other.named_parameters(), 0.05, 0.9, 1e-3, True)
    loop.train(other, loader, optimizer, 4, out=tmp_path, resume=True)
    assert all(is_device(p.data) == (second == "cuda") for p in other.parameters())
    assert all(is_device(state["momentum_buffer"]) == (second == "cuda") for state in optimizer.state.values())
    assert_close(other.state_dict(), whole.state_dict(), 0 if first == second else 1e-4)


# --- what goes wrong on the device ------------------------------------------------------------------------------------


class Breaking(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op, self.fc = op, nn.Linear(4, 3)

    def forward(self, x):
        return self.op(self.fc(x) * 0.0)


def batch_of_two(labels=(0, 1)):
    return standin.cupy.asarray(np.ones((2, 4), np.float32)), standin.cupy.asarray(np.array(labels))


@pytest.mark.filterwarnings("ignore:.*encountered in")
@pytest.mark.parametrize("op, what, message", [
    (ops.log, "the loss is nan", "log made the first Inf of the forward pass: .*, in "),
    (ops.sqrt, "a gradient is not finite", "sqrt made the first Inf of the backward pass"),
])
def test_a_step_that_makes_nan_names_the_op_and_changes_no_weight(op, what, message):
    model = Breaking(op).to("cuda")
    before = model.state_dict()
    optimizer = optim.SGD(model.named_parameters(), 0.1)
    with pytest.raises(FloatingPointError, match=f"train: {what} in epoch 2: {message}"):
        loop.train_step(model, optimizer, *batch_of_two(), place="epoch 2")
    assert_close(model.state_dict(), before, 0)


def test_a_label_that_is_no_class_is_named():
    model = nn.Sequential(nn.Linear(4, 3)).to("cuda")
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2 for 3 classes, got 0 to 3"):
        loop.train_step(model, optim.SGD(model.named_parameters(), 0.1), *batch_of_two((0, 3)))


@pytest.mark.filterwarnings("ignore:SGD.step. no parameter has a gradient")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_step_without_gradients_reads_its_loss(device):
    """An optimizer of other parameters than the model's."""
    model = nn.Sequential(nn.Linear(4, 3)).to(device)
    x, y = (a if device == "cuda" else a.get() for a in batch_of_two())
    loss, hits = loop.train_step(model, optim.SGD([nn.Parameter(np.ones(2))], 0.1), x, y)
    assert loss > 0 and 0 <= hits <= 2


def test_large_finite_gradients_are_finite():
    """A sum of squares beyond float32, of which the step looks at every element."""
    grads = [standin.cupy.full((2, 3, 4, 5), 1e19, np.float32), standin.cupy.zeros(3, np.float32)]
    one = [standin.cupy.ones((), np.float32)]
    with np.errstate(over="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert read(one, one, grads) == (1.0, 1, True)
        for bad in (np.nan, np.inf, -np.inf):
            grads[1][2] = bad
            assert read(one * 2, one * 3, grads) == (2.0, 3, False)


# --- the commands -----------------------------------------------------------------------------------------------------

QUICK = ("train --data small.npz --model resnet8 --epochs 2 --batch 16 --kernels im2col --quiet --json --device cuda "
         "--out")


@pytest.fixture
def small(tinyres_command, monkeypatch):
    """The command, in a folder with a small data set; without figures, which take longer than all the rest."""
    monkeypatch.setattr("tinyres.analysis.curves.draw_curves", lambda *args: None)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (90, 9, 8), np.uint8), np.arange(90) % 3
    np.savez("small.npz", images=images[:60], labels=labels[:60], test_images=images[60:], test_labels=labels[60:])
    return tinyres_command


def result_of(out):
    return json.loads(out.splitlines()[-1])


@NEEDS_EMULATOR
def test_train_and_eval_take_a_device(small):
    status, out, err = small(f"{QUICK} run")
    assert (status, err) == (0, "")
    result = result_of(out)
    config = json.loads(open("run/config.json").read())
    assert config["device"] == "cuda" and "gpu" in config["provenance"]
    standin.syncs.clear()
    status, out, err = small("eval --weights run --kernels im2col --device cuda --json")
    assert status == 0 and "kernels im2col, device cuda" in err and standin.syncs
    there = result_of(out)
    assert (there["correct"], there["loss"]) == (result["correct"], pytest.approx(result["loss"], rel=1e-6))
    host = result_of(small("eval --weights run --kernels im2col --json --quiet")[1])
    assert host["loss"] == pytest.approx(there["loss"], rel=1e-4)
    folded = result_of(small("eval --weights run --kernels im2col --device cuda --fold --json --quiet")[1])
    assert folded["folded"] == 7 and folded["loss"] == pytest.approx(there["loss"], rel=1e-4)


@pytest.fixture
def interrupted(small, monkeypatch):
    """Begins a run in a folder and interrupts it in its second epoch."""
    step = loop.train_step

    def begin(line):
        at = iter(range(100))

        def stopping(*args):
            if next(at) == 4:
                raise KeyboardInterrupt
            return step(*args)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "train_step", stopping)
            status, out, _ = small(line)
        assert (status, out) == (130, "")

    return begin


@NEEDS_EMULATOR
def test_a_resumed_run_keeps_its_device_or_says_so(small, interrupted):
    losses = {"whole": result_of(small(f"{QUICK} whole")[1])["loss"]}
    for folder, more in (("kept", ""), ("moved", " --device cpu")):
        interrupted(f"{QUICK} {folder}")
        standin.syncs.clear()
        status, out, err = small(f"train --resume {folder}{more} --json")
        assert status == 0
        losses[folder] = result_of(out)["loss"]
        assert ("this run began on cuda and goes on on cpu: the last bits will differ" in err) == (folder == "moved")
        assert (folder == "kept") == ("device cuda, seed 0" in err) == bool(standin.syncs)
    assert losses["kept"] == losses["whole"] == pytest.approx(losses["moved"], rel=1e-3)


@NEEDS_EMULATOR
def test_the_runs_of_several_seeds_go_on_on_another_device(small, interrupted):
    interrupted(f"{QUICK} runs --seeds 2 --device cpu")
    status, out, err = small("train --resume runs --device cuda --json")
    assert status == 0 and len(result_of(out)["accuracies"]) == 2
    assert "this run began on cpu and goes on on cuda" in err
    for seed in (0, 1):  # the first of which had begun
        assert checkpoint.read_checkpoint(f"runs/seed{seed}")[0]["config"]["device"] == "cuda"


def test_a_run_from_before_there_were_devices_goes_on_on_the_cpu(small):
    small(f"{QUICK} run --device cpu")
    config = json.loads(open("run/config.json").read())
    del config["device"]
    with open("run/config.json", "w") as file:
        json.dump(config, file)
    (checkpoint.Path("run") / "result.json").unlink()
    status, out, _ = small("train --resume run --json --quiet")
    assert status == 0 and result_of(out)["epochs"] == 2


@pytest.mark.parametrize("command", ["train --out run", "eval --weights nothing"])
def test_a_device_that_is_not_there_is_one_line(tinyres_command, monkeypatch, command, tmp_path):
    status, out, err = tinyres_command(f"{command} --device gpu")
    assert (status, out) == (2, "") and "device must be 'cpu' or 'cuda', got 'gpu'" in err and "--device" in err
    monkeypatch.setattr(standin.cupy, "is_available", lambda: False)
    status, out, err = tinyres_command(f"{command} --device cuda")
    assert (status, out) == (1, "") and len(err.splitlines()) == 1
    assert "CuPy is installed but finds no GPU" in err and "pip install 'tinyres[cuda13]'" in err
    monkeypatch.setitem(sys.modules, "cupy", None)
    status, out, err = tinyres_command(f"{command} --device cuda")
    assert (status, out) == (1, "") and "CuPy is not installed" in err and len(err.splitlines()) == 1
    assert not any(tmp_path.iterdir())
