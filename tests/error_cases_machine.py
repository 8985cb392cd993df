"""What is not there: a GPU, an extra; and random numbers that cannot be drawn."""

from unittest import mock

import standin
from error_case import Command, chapter, leaf, without

import tinyres as tr
from tinyres import nn, ops, random

case = chapter("Random numbers")


@case("A seed that is no integer", TypeError, "manual_seed", "float 1.5", "an integer", fix="use int()")
def _(folder):
    return lambda: tr.manual_seed(1.5),


@case("A negative seed", ValueError, "manual_seed", "-1", "must not be negative", fix="use 0 or more")
def _(folder):
    return lambda: tr.manual_seed(-1),


@case("A random state that is damaged", ValueError, "random.set_state", "no state", fix="what get_state() returned",
      varies=r"\(.*\)(?=; pass)")
def _(folder):
    state = {**random.get_state(), "buffer": [1, 2]}
    return lambda: random.set_state(state), state


@case("Random integers", TypeError, "randn", "int64", "float32 or float64", fix="astype()")
def _(folder):
    return lambda: tr.randn(3, dtype="int64"),


case = chapter("GPUs and extras")


@case("A GPU without CuPy", RuntimeError, "device 'cuda'", "CuPy is not installed", fix="pip install 'tinyres[cuda13]'")
def _(folder):
    x = leaf(2)

    def wrong():
        with without("cupy"):
            ops.to(x, "cuda")

    return wrong, x


@case("A device that is not known", ValueError, "to: device", "'gpu'", "'cpu' or 'cuda'", fix="a GPU is 'cuda'")
def _(folder):
    x = leaf(2)
    return lambda: x.to("gpu"), x


@case("A device with a number", ValueError, "to: device", "'cuda:1'", "'cpu' or 'cuda'", fix="CUDA_VISIBLE_DEVICES")
def _(folder):
    model = nn.Linear(2, 2)
    return lambda: model.to("cuda:1"), model


@case("A dtype where a device is expected", ValueError, "to: device", "'float64'", fix="astype('float64')")
def _(folder):
    model = nn.Linear(2, 2)
    return lambda: model.to("float64"), model


@case("A device that is not known, asked for by its name", ValueError, "device", "'gpu'", "'cpu' or 'cuda'",
      fix="a GPU is 'cuda'")
def _(folder):
    return lambda: tr.device("gpu"),


@case("A tensor for a device that is not known", ValueError, "tensor: device", "'cuda:0'", "'cpu' or 'cuda'",
      fix="CUDA_VISIBLE_DEVICES")
def _(folder):
    return lambda: tr.tensor([1.0], device="cuda:0"),


@case("CuPy without a GPU", RuntimeError, "device 'cuda'", "finds no GPU", fix="pip install 'tinyres[cuda13]'")
def _(folder):
    def wrong():
        with standin.installed(), mock.patch.object(standin.cupy, "is_available", lambda: False):
            tr.zeros(2, device="cuda")

    return wrong,


@case("A device that is not known, on the command line", 2, "--device", "'gpu'", "'cpu' or 'cuda'",
      fix="a GPU is 'cuda'")
def _(folder):
    return Command("train --device gpu --out run"),


@case("A device that is not known, to evaluate on", 2, "--device", "'gpu'", "'cpu' or 'cuda'", fix="a GPU is 'cuda'")
def _(folder):
    return Command("eval --weights w.safetensors --device gpu"),


def without_cupy(line):
    """The command where CuPy is not installed."""
    def wrong():
        with without("cupy"):
            return Command(line)()

    return wrong


@case("Training on a GPU without CuPy", 1, "device 'cuda'", "CuPy is not installed",
      fix="pip install 'tinyres[cuda13]'")
def _(folder):
    return without_cupy("train --device cuda --out run"),


@case("Evaluation on a GPU without CuPy", 1, "device 'cuda'", "CuPy is not installed",
      fix="pip install 'tinyres[cuda13]'")
def _(folder):
    return without_cupy("eval --weights w.safetensors --device cuda"),


@case("TensorBoard's files without tensorboardX", ModuleNotFoundError, "TensorBoard event files", "tensorboardX",
      fix="tinyres[tensorboard]", varies=r"\([^()]*tensorboardX[^()]*\)")
def _(folder):
    def wrong():
        from tinyres.analysis.tensorboard import event_writer

        with without("tensorboardX"):
            event_writer(folder / "events")

    return wrong,


@case("TensorBoard's files without tensorboardX, on the command line", 1, "--tensorboard", "needs tensorboardX",
      fix='pip install "tinyres[tensorboard]"')
def _(folder):
    def wrong():
        with without("tensorboardX"):
            return Command("train --tensorboard --quiet")()

    return wrong,
