"""The loop learns; a resumed run repeats the unbroken one bit by bit; a run that diverges names the op."""

import copy
import csv
import json
import warnings

import numpy as np
import pytest

from tinyres import checkpoint, data, kernels, models, nn, ops, optim, random
from tinyres import train as loop
from tinyres.finite import is_finite
from tinyres.tensor import Tensor
from tinyres.train import evaluate, freeze, train, train_step

TIMES = ("seconds", "images_per_second")


class Small(nn.Module):
    """Convolution, batch norm and dropout: weights, running statistics and a random state to bring back."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.2)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.drop(ops.global_avg_pool2d(self.bn(self.conv(x), relu=True))))


def job(epochs=3, seed=0, model=Small):
    """Model, loader, optimizer, epochs and schedule of a small run on 300 digits."""
    random.manual_seed(seed)
    network = model()
    loader = data.Loader(data.digits("fit").subset(range(300)), 50, True, seed, data.augment.standard("digits"))
    optimizer = optim.SGD(network.named_parameters(), 0.05, 0.9, 1e-3, True)
    schedule = optim.OneCycleLR(optimizer, 0.05, epochs * len(loader), cycle_momentum=False)
    return network, loader, optimizer, epochs, schedule


def run(parts, **options):
    network, loader, optimizer, epochs, schedule = parts
    return train(network, loader, optimizer, epochs, schedule=schedule, **options)


def without_times(rows):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_resnet_learns_the_digits(tmp_path):
    parts = job(4, model=lambda: models.resnet8(in_channels=1))
    validation = data.digits("validation")
    before = evaluate(parts[0], validation)
    rows = run(parts, validation=validation, out=tmp_path)
    assert before.accuracy < 0.3
    assert rows[-1]["validation_accuracy"] == evaluate(parts[0], validation).accuracy > 0.75
    assert rows[-1]["train_loss"] < 0.7 * rows[0]["train_loss"]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    with open(tmp_path / "log.csv") as file:
        assert [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)] == rows
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == rows


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [0, 5, 6, 9, 12, 17])
def test_a_resumed_run_repeats_the_unbroken_one(tmp_path, monkeypatch, at):
    """Killed in front of step `at` (an epoch has 6 steps, a checkpoint comes every 2), with a log that ran ahead."""
    whole = job()
    expected = without_times(run(whole))
    steps = iter(range(1000))
    step = loop.train_step

    def killed(*args):
        if next(steps) == at:
            raise Killed
        return step(*args)

    monkeypatch.setattr(loop, "train_step", killed)
    with pytest.raises(Killed):
        run(job(), out=tmp_path, checkpoint_every=2, config={"seed": 0})
    monkeypatch.undo()
    with open(tmp_path / "log.csv", "a") as table, open(tmp_path / "log.jsonl", "a") as lines:
        table.write("99,0.1,")
        lines.write('{"epoch": 99, "lr"')
    again = job(seed=5)  # other weights and another random state: all of it must come from the checkpoint
    again = (again[0], whole[1], *again[2:])
    rows = run(again, out=tmp_path, resume=True, config={"seed": 0})
    assert same(again[0].state_dict(), whole[0].state_dict())
    assert without_times(rows) == expected
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == rows
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4


def test_a_resumed_run_needs_its_folder():
    with pytest.raises(ValueError, match="resume needs the folder"):
        run(job(), resume=True)


def test_two_runs_of_a_seed_are_equal_and_of_two_seeds_are_not():
    states = []
    for seed in (0, 0, 1):
        parts = job(1, seed)
        run(parts)
        states.append(parts[0].state_dict())
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


# --- a run that diverges ----------------------------------------------------------------------------------------------


class Breaking(nn.Module):
    """Linear, then an op that breaks for zeros: forward for log, only backward for sqrt."""

    def __init__(self, op):
        super().__init__()
        self.op, self.fc = op, nn.Linear(4, 3)

    def forward(self, x):
        return self.op(self.fc(x) * 0.0)


@pytest.mark.filterwarnings("ignore:.*encountered in")
@pytest.mark.parametrize("op, what, message", [
    (ops.log, "the loss is nan", "log made the first Inf of the forward pass: .*, in "),
    (ops.sqrt, "a gradient is not finite", "sqrt made the first Inf of the backward pass"),
])
def test_a_step_that_makes_nan_names_the_op_and_changes_no_weight(op, what, message):
    model = Breaking(op)
    before = model.state_dict()
    optimizer = optim.SGD(model.named_parameters(), 0.1)
    with pytest.raises(FloatingPointError, match=f"train: {what} in epoch 2: {message}") as error:
        train_step(model, optimizer, np.ones((2, 4), np.float32), np.array([0, 1]), place="epoch 2")
    assert "lower learning rate (it was 0.1)" in str(error.value)
    assert "called at" not in str(error.value)
    assert same(model.state_dict(), before)


@pytest.mark.filterwarnings("error::RuntimeWarning")  # NumPy's complaints are not shown besides
def test_a_rate_far_too_high_ends_with_finite_weights():
    network, loader, optimizer, epochs, _ = job()
    for group in optimizer.param_groups:
        group["lr"] = 1e30
    with pytest.raises(FloatingPointError, match=r"epoch 1, batch \d+: .* made the first"):
        train(network, loader, optimizer, epochs)
    assert all(np.isfinite(p.data).all() for p in network.parameters())


def test_large_finite_numbers_are_finite():
    large = np.full((3, 4), 1e18, np.float32)
    large[0] = 1e19  # the sum of squares is infinite in float32
    with np.errstate(over="ignore"):
        assert is_finite(large) and is_finite(np.zeros(0, np.float32))
        for bad in (np.nan, np.inf):
            large[1, 2] = bad
            assert not is_finite(large)


# --- freezing and reading ---------------------------------------------------------------------------------------------


def test_what_is_frozen_stays_and_the_rest_moves():
    random.manual_seed(0)
    model = models.resnet8(in_channels=1, option="B")
    frozen = freeze(model, "*conv*.weight")
    assert len(frozen) == 7 and "layer3.0.conv2.weight" in frozen
    assert freeze(model, "downsample.0") == ["layer2.0.downsample.0.weight", "layer3.0.downsample.0.weight"]
    before = model.state_dict()
    loader = data.Loader(data.digits("fit"), 100, True)
    optimizer = optim.SGD([(name, p) for name, p in model.named_parameters() if p.requires_grad], 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the audit of the first step must not complain
        x, y = next(loader.epoch(0))
        train_step(model, optimizer, x, y)
    moved = {name for name, p in model.named_parameters() if not np.array_equal(p.data, before[name])}
    convolutions = {name for name, p in model.named_parameters() if p.ndim == 4}
    assert len(convolutions) == 9 and not moved & convolutions
    assert moved == {name for name, _ in model.named_parameters()} - convolutions


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"no parameter matches 'layer9\.\*'; names are conv1.weight"):
        freeze(models.resnet8(), "layer9.*")


def test_evaluate_counts_what_the_model_gets_right():
    random.manual_seed(0)
    model = models.resnet8(in_channels=1).train()
    dataset = data.digits("validation")
    before = model.state_dict()
    found = evaluate(model, dataset, 100)
    assert model.training and same(model.state_dict(), before)
    x, y = dataset.take(range(len(dataset)))
    with kernels.use_kernels("reference"):
        logits = copy.deepcopy(model).eval()(Tensor(x)).numpy().astype(np.float64)
    np.testing.assert_allclose(found.logits, logits, atol=1e-4)
    assert found.correct == int((logits.argmax(1) == y).sum()) and found.n == 287
    assert found.accuracy == found.correct / 287
    likelihood = np.exp(logits)[np.arange(287), y] / np.exp(logits).sum(1)
    assert found.loss == pytest.approx(-np.log(likelihood).mean(), rel=1e-5)


def test_the_bar_counts_every_image_once(capsys):
    run(job(2), show_progress=True)
    text = capsys.readouterr().err
    assert "epoch 2/2" in text and "600/600" in text and "images/s" in text
    assert "loss 2." in text and "accuracy " in text
    run(job(1))
    assert capsys.readouterr() == ("", "")


def test_images_that_are_not_finite_are_blamed_themselves():
    network, loader, optimizer, _, _ = job()
    x, y = next(loader.epoch(0))
    x[2, 0, 1, 1] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(FloatingPointError, match="the batch's images hold NaN or Inf: clean the data"):
            train_step(network, optimizer, x, y)


# --- iterations, parts, clipping, averages ----------------------------------------------------------------------------


def test_iterations_end_a_run_within_an_epoch(tmp_path):
    network, loader, optimizer, _, _ = job()
    rows = train(network, loader, optimizer, iterations=8, out=tmp_path)
    assert [(row["epoch"], row["iterations"]) for row in rows] == [(1, 6), (2, 8)]
    other, loader, optimizer, _, _ = job()
    train(other, loader, optimizer, iterations=6)
    for x, y in list(loader.epoch(1))[:2]:
        train_step(other.train(), optimizer, x, y)
    assert same(network.state_dict(), other.state_dict())
    for wrong in ({}, {"epochs": 2, "iterations": 3}):
        with pytest.raises(ValueError, match="give epochs or iterations, one of them"):
            train(network, loader, optimizer, **wrong)


@pytest.mark.parametrize("soft", [False, True])
def test_the_gradients_of_parts_add_up_to_the_batch(soft):
    """In float64, of a network without batch norm or dropout, whose images do not see each other."""
    x, y = data.digits("train").batch(10)
    y = np.eye(10)[y] if soft else y

    def grads(accumulate):
        random.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).double()
        optimizer = optim.SGD(model.named_parameters(), 0.0)
        loss, correct = train_step(model, optimizer, x.astype("float64"), y, 0.1, accumulate=accumulate)
        return loss, correct, [p.grad.numpy() for p in model.parameters()]

    loss, correct, whole = grads(1)
    assert max(np.abs(g).max() for g in whole) > 0.01
    for parts in (2, 3, 10):  # 3 parts are of 4, 3 and 3 images
        found = grads(parts)
        assert found[0] == pytest.approx(loss, rel=1e-12) and found[1] == correct
        for a, b in zip(found[2], whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)
    with pytest.raises(ValueError, match="accumulate is 11, expected 1 to 10, the images of a batch"):
        grads(11)


def test_soft_labels_count_as_their_largest_share():
    network, loader, _, _, _ = job()
    network.drop = nn.Dropout(0.0)
    x, y = next(loader.epoch(0))
    hard, soft = (train_step(network, optim.SGD(network.parameters(), 0.0), x, labels)
                  for labels in (y, np.eye(10, dtype=np.float32)[y]))
    assert soft[0] == pytest.approx(hard[0], rel=1e-5) and 0 < soft[1] == hard[1]


def test_a_step_moves_no_further_than_the_clipped_norm():
    network, loader, _, _, _ = job()
    x, y = next(loader.epoch(0))
    before = {name: p.numpy().copy() for name, p in network.named_parameters()}
    optimizer = optim.SGD(network.named_parameters(), 1.0)
    train_step(network, optimizer, x, y, clip_norm=0.01)
    moved = np.sqrt(sum(((p.numpy() - before[name]) ** 2).sum() for name, p in network.named_parameters()))
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_the_average_follows_the_weights():
    network, loader, optimizer, _, _ = job()
    average = optim.ExponentialMovingAverage(network, 0.9)
    expected = {name: array.astype("float64") for name, array in network.state_dict().items()}
    for t, (x, y) in enumerate(loader.epoch(0)):
        train_step(network, optimizer, x, y)
        average.update()
        keep = min(0.9, (1 + t) / (10 + t))
        for name, array in network.state_dict().items():
            expected[name] = keep * expected[name] + (1 - keep) * array
    found = average.model.state_dict()
    assert found["fc.weight"].dtype == np.float32 and not np.array_equal(found["fc.weight"],
                                                                         network.state_dict()["fc.weight"])
    for name, array in found.items():
        want = network.state_dict()[name] if name.endswith("num_batches_tracked") else expected[name]
        np.testing.assert_allclose(array, want, rtol=1e-5, atol=1e-6)
    assert not average.model.training and not any(p.requires_grad for p in average.model.parameters())
    for decay in (0.0, 1.0, -1, float("nan")):
        with pytest.raises(ValueError, match=f"decay must lie between 0 and 1, got {decay}"):
            optim.ExponentialMovingAverage(network, decay)


def test_validation_reads_the_average(tmp_path):
    parts, validation = job(2), data.digits("validation")
    average = optim.ExponentialMovingAverage(parts[0], 0.9)
    rows = run(parts, validation=validation, average=average, out=tmp_path)
    assert rows[-1]["validation_loss"] == evaluate(average.model, validation).loss
    assert rows[-1]["validation_loss"] != evaluate(parts[0], validation).loss
    saved, _ = checkpoint.read_weights(tmp_path)
    assert same(saved, average.model.state_dict())


def test_each_row_is_passed_on():
    seen = []
    assert run(job(2), on_row=seen.append) == seen and len(seen) == 2


@pytest.mark.parametrize("at", [None, {"step": "x"}, {"step": 1.5}, {"steps": 1}, {"epoch": None}, []])
def test_a_checkpoint_that_does_not_say_where_the_run_is(tmp_path, at):
    parts = job(1)
    run(parts, out=tmp_path)
    path = tmp_path / checkpoint.CHECKPOINT
    saved = json.loads(path.read_text())
    saved["progress"]["at"] = at
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="does not say where the run is"):
        run(parts, out=tmp_path, resume=True)
