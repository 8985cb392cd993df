"""Residual networks from scratch on NumPy, Numba and CuPy: how a gradient passes a skip connection, and how fast.

    import tinyres as tr
    x = tr.tensor([1.0, 2.0], requires_grad=True)
    y = (x + tr.tanh(x)).sum()      # x is used twice
    y.backward()                    # and collects two contributions: 1 + (1 - tanh(x)**2)
"""

from tinyres.autograd import grad, hvp
from tinyres.debug import debug, why
from tinyres.graph import Event
from tinyres.kernels import use_kernels
from tinyres.ops import *  # noqa: F403
from tinyres.random import manual_seed
from tinyres.state import enable_grad, is_grad_enabled, no_grad, unfused
from tinyres.tensor import Function, Tensor

__version__ = "0.1.0"

_LAZY = {"gradcheck": "tinyres.analysis.gradcheck", "step": "tinyres.stepper", "summary": "tinyres.analysis.summary"}


def __getattr__(name: str) -> object:
    import importlib

    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in ("analysis", "data", "models", "nn", "optim", "stepper", "train", "weights"):
        return importlib.import_module(f"tinyres.{name}")
    import difflib

    near = difflib.get_close_matches(name, [*globals(), *_LAZY], 1) if not name.startswith("_") else []
    hint = f": did you mean {near[0]!r}?" if near else ""
    raise AttributeError(f"module 'tinyres' has no attribute {name!r}{hint}")
