"""Mistakes with arrays on a GPU, for which the stand-in for CuPy stands here; with memory that two libraries share; and
with CUDA kernels, wherever they run."""

import functools
from types import SimpleNamespace
from unittest import mock

import numpy as np
import standin
from error_case import chapter, environment, floats, leaf

import tinyres as tr
from tinyres import nn, ops, optim
from tinyres.kernels.cuda import emulator, launch
from tinyres.kernels.cuda.emulator import build

case = chapter("Two devices")


def on_device(*values):
    """Each of the values on device "cuda", without a gradient: a list."""
    with standin.installed():
        return [tr.tensor(value, device="cuda") for value in values]


def there(wrong):
    """Do it where there is a GPU."""
    @functools.wraps(wrong)
    def run():
        with standin.installed():
            return wrong()

    return run


@case("Arrays of two devices", TypeError, "add", "cupy and numpy", fix="to('cpu') or to('cuda')")
def _(folder):
    x, (y,) = leaf(2, 3), on_device(floats(2, 3))
    return there(lambda: x + y), x, y


@case("Tensors of two devices compared", TypeError, "eq: ", "cupy and numpy", fix="to('cpu') or to('cuda')")
def _(folder):
    x, (y,) = leaf(2, 3), on_device(floats(2, 3))
    return there(lambda: x == y), x, y


@case("A mask on the GPU for a tensor that is not", TypeError, "getitem", "cupy and numpy",
      fix="to('cpu') or to('cuda')")
def _(folder):
    x, (mask,) = leaf(2, 3), on_device(floats(2, 3) > 0)
    return there(lambda: x[mask]), x, mask


@case("Values on the GPU written into a tensor that is not", TypeError, "setitem", "cupy and numpy",
      fix="to('cpu') or to('cuda')")
def _(folder):
    x, (y,) = tr.zeros(2, 3), on_device(floats(3))
    return there(lambda: x.__setitem__(0, y)), x, y


@case("Positions on another device", TypeError, "gather", "cupy and numpy", fix="to('cpu') or to('cuda')")
def _(folder):
    index, (y,) = np.zeros((2, 1), np.int64), on_device(floats(2, 3))
    return there(lambda: tr.gather(y, 1, index)), index, y


@case("Running statistics on another device", TypeError, "batch_norm", "cupy and numpy", fix="to('cpu') or to('cuda')")
def _(folder):
    layer, (x,) = nn.BatchNorm2d(3, affine=False), on_device(floats(2, 3, 4, 4))
    return there(lambda: layer(x)), layer, x


@case("Labels on the GPU for logits that are not", TypeError, "cross_entropy", "cupy and numpy",
      fix="to('cpu') or to('cuda')")
def _(folder):
    logits, (labels,) = leaf(2, 3), on_device(np.array([1, 2]))
    return there(lambda: tr.cross_entropy(logits, labels)), logits, labels


@case("Labels on another device than log-probabilities", TypeError, "nll_loss", "cupy and numpy",
      fix="to('cpu') or to('cuda')")
def _(folder):
    labels, (log_probs,) = np.array([1, 2]), on_device(floats(2, 3))
    return there(lambda: ops.nll_loss(log_probs, labels)), labels, log_probs


@case("A gradient to start from on another device", TypeError, "backward", "cupy and numpy",
      fix="to('cpu') or to('cuda')")
def _(folder):
    (x,) = on_device(floats(3))
    with standin.installed():
        y = x.requires_grad_() * 2.0
    grad = tr.ones(3)
    return there(lambda: y.backward(grad)), x, y, grad


@case("A gradient that stayed behind when its model moved", ValueError, "SGD: weight", "on cuda", "its gradient on cpu",
      fix="zero_grad() after moving a model")
def _(folder):
    with standin.installed():
        model = nn.Linear(3, 2).to("cuda")
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        model.weight.grad = tr.ones(2, 3)
    return there(optimizer.step), model, optimizer


@case("A moving average that stayed behind when its model moved", ValueError, "ExponentialMovingAverage",
      "on one device and the model on another", fix="average.model.to('cuda')")
def _(folder):
    model = nn.Linear(3, 2)
    average = optim.ExponentialMovingAverage(model)
    with standin.installed():
        model.to("cuda")
    return there(average.update), model, average


@case("A tensor on the GPU given to NumPy", TypeError, "np.asarray", "(2, 3)", "on a GPU", fix="say so with .numpy()")
def _(folder):
    (x,) = on_device(floats(2, 3))
    return there(lambda: np.asarray(x)), x


case = chapter("Memory shared with other libraries")


class Array:
    """What another library hands out: its device, then memory or an error."""

    def __init__(self, device, error=None):
        self.device, self.error = device, error

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        raise self.error


Array.__module__ = "otherlib"


@case("A list where shared memory is expected", TypeError, "from_dlpack", "list", "has __dlpack__", fix="tr.tensor(x)")
def _(folder):
    x = [1.0, 2.0]
    return lambda: tr.from_dlpack(x), x


@case("Memory of another kind of device", ValueError, "from_dlpack", "(10, 0)", "(1 or 3)", fix="move it there first")
def _(folder):
    return lambda: tr.from_dlpack(Array((10, 0))),  # ROCm's


@case("Memory of the second GPU", ValueError, "from_dlpack", "(2, 1)", "(2, 0)", fix="move it there first")
def _(folder):
    return lambda: tr.from_dlpack(Array((2, 1))),


@case("Memory that its library does not hand out", BufferError, "from_dlpack", "Array", "its gradient would be lost",
      fix="detach()")
def _(folder):
    return lambda: tr.from_dlpack(Array((1, 0), BufferError("its gradient would be lost"))),


@case("Memory of a dtype that NumPy does not know", TypeError, "from_dlpack", "Array", "bfloat16",
      fix="convert it there")
def _(folder):
    return lambda: tr.from_dlpack(Array((1, 0), RuntimeError("bfloat16 is not supported"))),


@case("Memory of complex numbers", TypeError, "from_dlpack", "complex64", "(3,)", fix="convert it there")
def _(folder):
    x = np.ones(3, np.complex64)
    return lambda: tr.from_dlpack(x), x


@case("A tensor handed out whose gradient would be lost", BufferError, "__dlpack__", "(2, 3)", "would lose it",
      fix="detach()")
def _(folder):
    x = leaf(2, 3)
    return lambda: np.from_dlpack(x), x


case = chapter("CUDA kernels")


def philox_words(*arguments):
    """A launch of the kernel philox_words, which is declared with these parameters."""
    launch.launch("philox_words", (1,), (256,), *arguments)


@case("A Python number for a kernel", TypeError, "philox_words", "got 4 of type int", "NumPy scalars", fix="np.int32()")
def _(folder):
    words = np.zeros(4, np.uint64)
    return lambda: philox_words(words, 4), words


@case("An array with gaps for a kernel", ValueError, "philox_words", "(4,)", "C-contiguous", fix="ascontiguousarray()")
def _(folder):
    words = np.zeros(8, np.uint64)
    return lambda: philox_words(words[::2], np.uint32(4)), words


@case("An array that is too large for a kernel", ValueError, "philox_words", "2,147,483,648 values", "2,147,483,647",
      fix="use a smaller batch")
def _(folder):
    return lambda: philox_words(np.empty(2**31, np.uint8), np.uint32(4)),  # of memory that is asked for and not used


def emulated(*arguments, block=(256,)):
    """A launch on the emulator, of a kernel that need not be compiled for it: it would tell these types."""
    kernel = emulator.Module("void words(unsigned long long* words, unsigned count) {}", (), ["words"], "words.cu")
    words = kernel.get_function("words")
    vars(words)["signature"] = ["*u8", "u4"]
    words((1,), block, arguments)


@case("An array of another dtype for the emulator", TypeError, "words: argument 1 ('words')", "float32", "uint64",
      fix="expected a NumPy array")
def _(folder):
    x = floats(4)
    return lambda: emulated(x, np.uint32(4)), x


@case("A number of another type for the emulator", TypeError, "words: argument 2 ('count')", "np.int64",
      fix="np.uint32(...)")
def _(folder):
    words = np.zeros(4, np.uint64)
    return lambda: emulated(words, np.int64(4)), words


@case("Arguments left out for the emulator", TypeError, "words takes 2 arguments", "got 1", fix="(words, count)")
def _(folder):
    words = np.zeros(4, np.uint64)
    return lambda: emulated(words), words


@case("A read-only array to write to, for the emulator", ValueError, "words: argument 1 ('words')", "read-only",
      fix="const pointer")
def _(folder):
    words = np.broadcast_to(np.zeros(1, np.uint64), 1)
    return lambda: emulated(words, np.uint32(1)), words


@case("A block of too many threads", ValueError, "words", "(2048,)", "at most (1024", fix="one to three sizes")
def _(folder):
    words = np.zeros(4, np.uint64)
    return lambda: emulated(words, np.uint32(4), block=(2048,)), words


@case("An order that the emulator does not know", ValueError, "emulator.settings", "'backward'",
      fix="forward, reverse, random")
def _(folder):
    def wrong():
        with emulator.settings(order="backward"):
            pass

    return wrong,


@case("The emulator without a compiler", RuntimeError, "the CUDA emulator", "no 'cxx-of-old'", "CXX",
      fix="apt install g++")
def _(folder):
    def wrong():
        with environment(CXX="cxx-of-old"):
            build.compiler.__wrapped__()  # without what it has found before

    return wrong,


@case("The emulator on another system", RuntimeError, "the CUDA emulator", "Windows on AMD64", "runs on Linux",
      fix='use the kernel set "fast"')
def _(folder):
    def wrong():
        with (mock.patch.object(build, "sys", SimpleNamespace(platform="win32")),
              mock.patch("platform.system", lambda: "Windows"), mock.patch("platform.machine", lambda: "AMD64")):
            build.check_platform()

    return wrong,
