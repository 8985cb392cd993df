"""The kernels of the lesson: in Numba's simulator they equal the NumPy im2col, and a debugger stops in the thread that
was asked for. The simulator must be chosen before Numba is imported, so every test has a process of its own."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tinyres.kernels import im2col
from tinyres.kernels.cuda import numba_twins
from tinyres.kernels.layout import nchw
from tinyres.kernels.reference import conv_output_size

ROOT = Path(__file__).resolve().parents[1]


def python(code, simulator=True, keys=""):
    """Run code in a process of its own, with `keys` typed into it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    environment.pop("PYTHONBREAKPOINT", None)
    if simulator:
        environment["NUMBA_ENABLE_CUDASIM"] = "1"
    return subprocess.run([sys.executable, "-c", code], env=environment, input=keys, capture_output=True, text=True,
                          timeout=120)


# --- the same as NumPy's ----------------------------------------------------------------------------------------------

GEOMETRIES = [  # x, kernel, stride, padding, dilation, groups
    ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 3, 5, 4), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 4, 7, 5), (3, 2), (2, 1), (1, 2), (1, 2), 2),
    ((2, 3, 6, 5), (1, 3), (3, 2), (0, 1), (2, 1), 3),
    ((1, 2, 5, 5), (3, 3), (2, 2), (2, 2), (2, 2), 1),
]


def compare_with_numpy():
    """Called in the simulator: bit for bit, as both add a pixel's values in the same order."""
    rng = np.random.default_rng(0)
    for (N, C, H, W), kernel, stride, padding, dilation, groups in GEOMETRIES:
        for dtype in ("float32", "float64"):
            x = nchw(rng.standard_normal((N, H, W, C)).astype(dtype))
            x[0, 0, 0, 0] = np.nan
            columns = numba_twins.im2col(x, kernel, stride, padding, dilation, groups)
            expected = im2col.columns(im2col.windows(x, kernel, stride, padding, dilation), groups)
            assert columns.dtype == x.dtype
            np.testing.assert_array_equal(columns, expected)

            g = rng.standard_normal(columns.shape).astype(dtype)
            image = numba_twins.col2im(g, x.shape, kernel, stride, padding, dilation)
            P, Q = conv_output_size(x.shape, kernel, stride, padding, dilation)
            windows = g.reshape(groups, N, P, Q, *kernel, C // groups).transpose(1, 2, 3, 4, 5, 0, 6)
            windows = windows.reshape(N, P, Q, *kernel, C)
            expected = im2col.add_columns(windows, x.shape, stride, padding, dilation)
            assert image.dtype == x.dtype and image.transpose(0, 2, 3, 1).flags.c_contiguous
            np.testing.assert_array_equal(image, expected)
    print("equal")


def test_the_simulator_equals_numpy():
    done = python("import test_numba_twins; test_numba_twins.compare_with_numpy()")
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr


# --- a debugger -------------------------------------------------------------------------------------------------------

STOP = """
import sys, threading
import numpy as np
from tinyres.kernels.cuda import numba_twins

def stopped():
    frame = sys._getframe(1)
    print(frame.f_code.co_name, frame.f_locals["i"], threading.current_thread().threadIdx.x)

sys.breakpointhook = stopped
x = np.ones((1, 2, 9, 8), "float32")
columns = numba_twins.im2col(x, (1, 1), stop=141)
numba_twins.col2im(columns, x.shape, (1, 1), stop=7)
numba_twins.im2col(x, (1, 1))
"""


def test_a_debugger_stops_in_one_thread():
    done = python(STOP)
    assert (done.returncode, done.stdout) == (0, "im2col_kernel 141 13\ncol2im_kernel 7 7\n"), done.stderr


def test_the_session_in_the_docstring():
    """What is typed there into Python and into pdb gives what stands there."""
    session = re.findall(r"^    (>>>|\(Pdb\)) ?(.*)\n(?:    (\(.*\)|np\..*)\n)?", numba_twins.__doc__, re.M)
    code = "\n".join(line for prompt, line, _ in session if prompt == ">>>")
    keys = "".join(f"{line}\n" for prompt, line, _ in session if prompt == "(Pdb)")
    answers = [answer for _, _, answer in session if answer]
    assert len(answers) == 3 and "stop=14" in code
    done = python(code, keys=keys)
    assert done.returncode == 0, done.stderr
    shown = [line.removeprefix("(Pdb) ") for line in done.stdout.splitlines()]
    assert [line for line in shown if line in answers] == answers, done.stdout


# --- without the simulator --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code, simulator, words", [
    ("numba_twins.im2col(x, (3, 3))", False, "set NUMBA_ENABLE_CUDASIM=1 before Python starts"),
    ("numba_twins.im2col(FAKE, (3, 3))", True, "got CuPy arrays, but NUMBA_ENABLE_CUDASIM is set"),
    ("numba_twins.im2col(FAKE, (3, 3), stop=3)", False, "got stop=3, but only the simulator can stop in a thread"),
    ("importlib.util.find_spec = lambda name: None; numba_twins.im2col(FAKE, (3, 3))", False, "pip install 'tinyres["),
    ("sys.modules['numba.cuda'] = None; numba_twins.im2col(x, (3, 3))", False,
     "pip install 'tinyres[gpu-lesson]'"),
])
def test_the_wrong_arrays_or_environment_are_refused(code, simulator, words):
    """A class from a module called cupy stands in for CuPy's arrays, as nothing is launched."""
    begin = """
import importlib.util, sys, types
import numpy as np
from tinyres.kernels.cuda import numba_twins
x = np.ones((1, 1, 4, 4), "float32")
sys.modules["cupy"] = cupy = types.ModuleType("cupy")
cupy.empty, cupy.ascontiguousarray = np.empty, np.ascontiguousarray
FAKE = np.ones((1, 1, 4, 4), "float32").view(type("ndarray", (np.ndarray,), {"__module__": "cupy"}))
"""
    done = python(begin + code, simulator)
    assert done.returncode == 1 and words in done.stderr.splitlines()[-1]


PTX = """
from numba import cuda, types
from tinyres.kernels.cuda import numba_twins
numba_twins.load()
pair = types.UniTuple(types.int64, 2)
for kernel, source, target in ((numba_twins.im2col_kernel, 4, 3), (numba_twins.col2im_kernel, 3, 4)):
    for dtype in (types.float32, types.float64):
        arrays = [types.Array(dtype, dimensions, "C") for dimensions in (source, target)]
        text, _ = cuda.compile_ptx(kernel, (*arrays, *[pair] * 5, types.int64), cc=(9, 0))
        print(kernel.__name__, dtype, ".entry" in text, "brkpt" in text, ".f64" in text)
"""


def test_they_compile_for_a_gpu_without_one():
    """float32 stays float32: no instruction is one on doubles."""
    done = python(PTX, simulator=False)
    missing = done.returncode != 0 and re.search("nvvm|nvrtc|CudaSupportError|libdevice", done.stderr, re.I)
    if missing or find_spec("numba_cuda") is None:
        pytest.skip("numba-cuda or NVVM is not there, so the Numba kernels were not compiled: pip install "
                    "'tinyres[gpu-lesson]'")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "im2col_kernel float32 True True False", "im2col_kernel float64 True True True",
        "col2im_kernel float32 True True False", "col2im_kernel float64 True True True"]
