"""DLPack: memory shared with NumPy and PyTorch, and what is refused. Device arrays are in test_cuda_library.py."""

import re
import sys

import numpy as np
import pytest

import tinyres as tr
from tinyres.kernels import layout


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "int8"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4)])
def test_numpy_memory_is_shared(shape, dtype):
    a = np.ones(shape, dtype)
    x = tr.from_dlpack(a)
    assert x.shape == shape and x.dtype == dtype and not x.requires_grad and x.is_leaf and x.device == "cpu"
    a += 1
    assert (x.data == 2).all() and np.shares_memory(x.data, a)
    assert np.shares_memory(np.from_dlpack(x), a) and x.__dlpack_device__() == (1, 0)


def test_images_are_shared_if_channels_last_and_copied_else():
    last, first = layout.nchw(np.zeros((2, 4, 5, 3))), np.zeros((2, 3, 4, 5))
    with layout.count_copies() as counted:
        x = tr.from_dlpack(last)
    assert counted.copies == 0 and np.shares_memory(x.data, last)
    with layout.count_copies() as counted:
        y = tr.from_dlpack(first)
    assert counted.copies == 1 and not np.shares_memory(y.data, first) and layout.is_channels_last(y.data)
    assert np.from_dlpack(x).strides == x.data.strides


def test_pytorch_memory_is_shared_both_ways(torch):
    t = torch.arange(6.0).reshape(2, 3)
    x = tr.from_dlpack(t)
    t += 1
    assert x.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]] and x.dtype == "float32"
    back = torch.from_dlpack(x)
    back *= 2
    assert x.tolist() == t.tolist() == [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]
    images = torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert tr.from_dlpack(images).data.__array_interface__["data"][0] == images.data_ptr()
    again = torch.from_dlpack(tr.tensor(np.zeros((2, 3, 4, 5))))
    assert again.is_contiguous(memory_format=torch.channels_last)


def test_pytorch_tensors_that_cannot_be_handed_over(torch):
    with pytest.raises(BufferError, match=r"from_dlpack: torch Tensor .*detach\(\)"):
        tr.from_dlpack(torch.zeros(2, requires_grad=True))
    assert tr.from_dlpack(torch.zeros(2, requires_grad=True).detach()).shape == (2,)
    for dtype in (torch.bfloat16, torch.complex64):
        with pytest.raises(TypeError, match="from_dlpack: .*(bfloat16|complex64).*convert it there"):
            tr.from_dlpack(torch.zeros(2, dtype=dtype))


def test_a_tensor_with_a_gradient_is_detached_first():
    x = tr.ones(2, requires_grad=True)
    for taken in (x, x * 2.0):
        with pytest.raises(BufferError, match=r"requires a gradient.*detach\(\)"):
            np.from_dlpack(taken)
        with pytest.raises(BufferError, match=r"detach\(\)"):
            tr.from_dlpack(taken)
    assert np.shares_memory(np.from_dlpack(x.detach()), x.data)


def test_read_only_memory_stays_so():
    a = np.zeros(3, np.float32)
    a.flags.writeable = False
    try:
        x = tr.from_dlpack(a)
    except BufferError as error:  # NumPy before 2.1 hands out no read-only memory
        assert "from_dlpack: numpy ndarray" in str(error)
        return
    with pytest.raises(ValueError, match="read-only"):
        x[0] = 1.0


class Elsewhere:
    """An array in memory of some other device."""

    def __init__(self, *device):
        self.device = device

    def __dlpack__(self, **options):
        raise AssertionError("not to be asked for")

    def __dlpack_device__(self):
        return self.device


@pytest.mark.parametrize("device", [(2, 1), (4, 0), (10, 0), (13, 0), (8, 0)])
def test_memory_of_other_devices(device):
    with pytest.raises(ValueError, match=re.escape(f"DLPack device {device}, expected the host's")):
        tr.from_dlpack(Elsewhere(*device))


def test_cuda_memory_where_there_is_no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match="CuPy is not installed"):
        tr.from_dlpack(Elsewhere(2, 0))


@pytest.mark.parametrize("thing", [[1.0], 2.5, None, "x"])
def test_what_has_no_dlpack(thing):
    with pytest.raises(TypeError, match="from_dlpack: expected an array or tensor that has __dlpack__, got"):
        tr.from_dlpack(thing)
