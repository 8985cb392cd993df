"""Mistakes with optimizers, schedules and the training loop."""

import errno
import os
from unittest import mock

import numpy as np
from error_case import chapter, floats, images, leaf

import tinyres as tr
from tinyres import data, nn, optim
from tinyres import train as loop
from tinyres.checkpoint import save_checkpoint

case = chapter("Optimizers")


def model_and_optimizer(**options):
    model = nn.Linear(2, 2)
    optimizer = optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})
    model(floats(3, 2)).sum().backward()
    return model, optimizer


@case("A model instead of its parameters", TypeError, "SGD", "Linear", "an iterable of parameters",
      fix="model.parameters()")
def _(folder):
    model = nn.Linear(2, 2)
    return lambda: optim.SGD(model), model


@case("No parameters, as of layers in a plain list", ValueError, "SGD", "empty", fix="nn.ModuleList")
def _(folder):
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Linear(2, 2)]

    model = Listed()
    return lambda: optim.SGD(model.parameters()), model


@case("A parameter given twice", ValueError, "SGD", "weight was given twice", fix="list it once")
def _(folder):
    model = nn.Linear(2, 2)
    return lambda: optim.SGD([*model.parameters(), model.weight]), model


@case("A result as a parameter", TypeError, "SGD", "made by mul", "only leaves", fix="the Parameter")
def _(folder):
    x = leaf(2)
    y = x * 2.0
    return lambda: optim.SGD([y]), x, y


@case("An option of a group misspelt", ValueError, "SGD", "'weight_decy'", fix="did you mean 'weight_decay'?")
def _(folder):
    model = nn.Linear(2, 2)
    return lambda: optim.SGD([{"params": model.parameters(), "weight_decy": 0.1}]), model


@case("Groups and parameters mixed", TypeError, "SGD", "1 of the 2", fix="put all of them into groups")
def _(folder):
    model = nn.Linear(2, 2)
    return lambda: optim.SGD([{"params": [model.weight]}, model.bias]), model


@case("A negative learning rate", ValueError, "SGD: lr", "got -0.1", "not be negative", fix="at least 0")
def _(folder):
    model = nn.Linear(2, 2)
    return lambda: optim.SGD(model.parameters(), lr=-0.1), model


@case("A learning rate in words", TypeError, "SGD: lr", "'fast'", fix="must be a number")
def _(folder):
    model = nn.Linear(2, 2)
    return lambda: optim.SGD(model.parameters(), lr="fast"), model


@case("A momentum of 1", ValueError, "SGD: momentum", "got 1.0", "[0, 1)", fix="0.9 is usual")
def _(folder):
    model = nn.Linear(2, 2)
    return lambda: optim.SGD(model.parameters(), momentum=1), model


@case("Nesterov's momentum without momentum", ValueError, "SGD: nesterov=True", "got 0", "a momentum above 0",
      fix="momentum=0.9")
def _(folder):
    model = nn.Linear(2, 2)
    return lambda: optim.SGD(model.parameters(), nesterov=True), model


@case("One beta where two are needed", ValueError, "Adam: betas", "(0.9,)", "two numbers", fix="(0.9, 0.999)")
def _(folder):
    model = nn.Linear(2, 2)
    return lambda: optim.Adam(model.parameters(), betas=0.9), model


@case("A learning rate that became NaN", ValueError, "SGD: lr", "got nan", fix="a finite number")
def _(folder):
    model, optimizer = model_and_optimizer()
    optimizer.param_groups[0]["lr"] = float("nan")
    return lambda: optimizer.step(), model, optimizer


@case("A gradient of another shape", ValueError, "SGD: bias", "float32 (2,)", "float32 (3,)", fix="zero_grad()")
def _(folder):
    model, optimizer = model_and_optimizer()
    optimizer.step()
    model.bias.grad = tr.ones(3)
    return lambda: optimizer.step(), model, optimizer


@case("A gradient that is a plain array", TypeError, "SGD: the gradient of weight", "ndarray", "a Tensor",
      fix="tr.tensor()")
def _(folder):
    x = nn.Parameter(floats(2))
    x.rename("weight")
    optimizer = optim.SGD([x])
    x.grad = floats(2)
    return lambda: optimizer.step(), x


@case("A read-only parameter", ValueError, "SGD", "(3,)", "read-only", fix="give nn.Parameter a copy")
def _(folder):
    x = nn.Parameter(np.broadcast_to(np.float32(1), 3))
    x.grad = tr.ones(3)
    optimizer = optim.SGD([x])
    return lambda: optimizer.step(), x, optimizer


@case("A step without backward (a warning)", optim.AuditWarning, "SGD.step", "no parameter has a gradient",
      fix="loss.backward()")
def _(folder):
    model = nn.Linear(2, 2)
    optimizer = optim.SGD(model.parameters())
    return lambda: optimizer.step(), model, optimizer


@case("The state of another optimizer", ValueError, "SGD.load_state_dict", "state is of Adam", fix="nothing was loaded")
def _(folder):
    model, optimizer = model_and_optimizer()
    state = optim.Adam(nn.Linear(2, 2).parameters()).state_dict()
    return lambda: optimizer.load_state_dict(state), model, optimizer, state


@case("The state of other parameters", ValueError, "SGD.load_state_dict", "[1]", "[2]", fix="nothing was loaded")
def _(folder):
    model, optimizer = model_and_optimizer()
    state = optim.SGD([nn.Linear(2, 2).weight]).state_dict()
    return lambda: optimizer.load_state_dict(state), model, optimizer, state


@case("Clipping to a norm of 0", ValueError, "clip_grad_norm_: max_norm", "got 0", fix="must be positive")
def _(folder):
    model, _ = model_and_optimizer()
    return lambda: optim.clip_grad_norm_(model.parameters(), 0), model


@case("A moving average that never forgets", ValueError, "ExponentialMovingAverage: decay", "got 1.0",
      "between 0 and 1", fix="0.999")
def _(folder):
    model = nn.Linear(2, 2)
    return lambda: optim.ExponentialMovingAverage(model, 1.0), model


@case("A moving average of a model that changed", ValueError, "ExponentialMovingAverage", "4 arrays now", "2 then",
      fix="make a new average")
def _(folder):
    model = nn.Sequential(nn.Linear(2, 2))
    average = optim.ExponentialMovingAverage(model)
    model.append(nn.Linear(2, 2))
    return lambda: average.update(), model, average


@case("A moving average resumed that was not saved", ValueError, "ExponentialMovingAverage.load_state_dict", "got None",
      "expected decay and count", fix="saved without an average")
def _(folder):
    average = optim.ExponentialMovingAverage(nn.Linear(2, 2))
    return lambda: average.load_state_dict({"arrays": {}, "scalars": None}), average


case = chapter("Schedules")


@case("A schedule made without an optimizer", TypeError, "StepLR", "Linear", "an optimizer",
      fix="make the optimizer first")
def _(folder):
    model = nn.Linear(2, 2)
    return lambda: optim.StepLR(model, 5), model


@case("A schedule of no steps", ValueError, "CosineAnnealingLR: T_max", "got 0", fix="a positive int")
def _(folder):
    model, optimizer = model_and_optimizer()
    return lambda: optim.CosineAnnealingLR(optimizer, 0), model, optimizer


@case("A factor that is not a number", ValueError, "StepLR: gamma", "got nan", fix="a finite number")
def _(folder):
    model, optimizer = model_and_optimizer()
    return lambda: optim.StepLR(optimizer, 5, gamma=float("nan")), model, optimizer


@case("Milestones that are no counts", ValueError, "MultiStepLR: milestones", "[0.5, 0.75]", "integers",
      fix="[32_000, 48_000]")
def _(folder):
    model, optimizer = model_and_optimizer()
    return lambda: optim.MultiStepLR(optimizer, [0.5, 0.75]), model, optimizer


@case("A step beyond the end of one cycle", ValueError, "OneCycleLR", "step 5", "5 steps", fix="step less often")
def _(folder):
    model, optimizer = model_and_optimizer()
    schedule = optim.OneCycleLR(optimizer, 0.1, 5)
    for _ in range(4):
        schedule.step()
    return lambda: schedule.step(), model, optimizer


@case("A warm-up before one that has its own", ValueError, "LinearWarmup", "OneCycleLR", fix="pct_start")
def _(folder):
    model, optimizer = model_and_optimizer()
    schedule = optim.OneCycleLR(optimizer, 0.1, 5)
    return lambda: optim.LinearWarmup(schedule, 2), model, schedule


@case("The state of another schedule", ValueError, "StepLR.load_state_dict", "CosineAnnealingLR", "this is StepLR",
      fix="as the saved one was made")
def _(folder):
    model, optimizer = model_and_optimizer()
    state = optim.CosineAnnealingLR(optimizer, 5).state_dict()
    schedule = optim.StepLR(optimizer, 5)
    return lambda: schedule.load_state_dict(state), model, schedule, state


case = chapter("Training")


def job(count=8, batch=4, **options):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    return model, data.Loader(images(count), batch), optim.SGD(model.parameters(), **options)


@case("Epochs and iterations both", ValueError, "train", "1 and 5", "epochs or iterations", fix="one of them")
def _(folder):
    model, loader, optimizer = job()
    return lambda: loop.train(model, loader, optimizer, 1, iterations=5), model, optimizer


@case("Resuming without a folder", ValueError, "train: resume", "the folder of a run", fix="pass out")
def _(folder):
    model, loader, optimizer = job()
    return lambda: loop.train(model, loader, optimizer, 1, resume=True), model, optimizer


@case("Resuming where the checkpoints are lost", FileNotFoundError, "train", "a log but no checkpoint",
      fix="train anew in another folder")
def _(folder):
    (folder / "log.jsonl").write_text('{"epoch": 1}\n')
    model, loader, optimizer = job()
    return lambda: loop.train(model, loader, optimizer, 1, out=folder, resume=True), model, optimizer


@case("More parts than images", ValueError, "train_step: accumulate", "is 9", fix="1 to 4")
def _(folder):
    model, loader, optimizer = job()
    x, y = next(iter(loader.epoch(0)))
    return lambda: loop.train_step(model, optimizer, x, y, accumulate=9), model, optimizer, x, y


@case("A loss that becomes NaN", FloatingPointError, "matmul made the first", "epoch 3, batch 7", "it was 0.1",
      fix="lower learning rate")
def _(folder):
    model, loader, optimizer = job(lr=0.1)
    x, y = next(iter(loader.epoch(0)))
    nn.init.constant_(model[1].weight, 3e38)
    place = "epoch 3, batch 7"
    return lambda: loop.train_step(model, optimizer, x, y, place=place), [p.data for p in model.parameters()], x, y


@case("Nothing to freeze", ValueError, "freeze", "'conv9'", fix="names are 1.weight")
def _(folder):
    model, _, _ = job()
    return lambda: loop.freeze(model, "conv9"), model


@case("A full disk", OSError, "train", "No space left", "The last checkpoint there is whole", fix="make room")
def _(folder):
    model, loader, optimizer = job()
    save_checkpoint(folder, model, optimizer)
    loop.Log(folder, [])
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def wrong():
        with mock.patch("tinyres.checkpoint.write_atomically", side_effect=full):
            loop.train(model, loader, optimizer, 1, out=folder)

    return wrong, model, optimizer
