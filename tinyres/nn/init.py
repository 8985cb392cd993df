"""Initialisers: they fill a parameter in place from the library's generator, so one tr.manual_seed fixes a model.

Numbers are drawn in the parameter's own dtype and in the order of its logical shape (K, C/G, R, S), whatever its memory
layout. He et al. 2015, "Delving deep into rectifiers" (kaiming); Glorot & Bengio 2010 (xavier); gains as in PyTorch.
"""

from __future__ import annotations

import difflib
import math

import numpy as np

from tinyres import random
from tinyres.nn.parameter import assign
from tinyres.operands import check_floats, type_name
from tinyres.tensor import Tensor

GAINS = {"linear": 1.0, "conv2d": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 0.75}


def calculate_gain(nonlinearity: str, a: float = 0.0) -> float:
    """The factor by which a nonlinearity shrinks the standard deviation; `a` is leaky_relu's negative slope.

    Raises ValueError for a name it does not know.
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + a * a))
    if nonlinearity not in GAINS:
        near = difflib.get_close_matches(str(nonlinearity), [*GAINS, "leaky_relu"], 1)
        hint = f"did you mean {near[0]!r}? T" if near else "t"
        raise ValueError(f"calculate_gain: unknown nonlinearity {nonlinearity!r}; {hint}here are "
                         f"{', '.join([*GAINS, 'leaky_relu'])}")
    return GAINS[nonlinearity]


def fans(t: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) = (C/G R S, K R S) of a weight (K, C/G, R, S) or (K, C). Raises ValueError below 2-D."""
    if t.ndim < 2:
        raise ValueError(f"init: fan_in and fan_out need a weight of at least 2 dimensions, got shape {t.shape}: use "
                         "zeros_, constant_ or normal_ for biases and scales")
    positions = math.prod(t.shape[2:])
    return t.shape[1] * positions, t.shape[0] * positions


def _fan(t: Tensor, mode: str) -> int:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"kaiming: mode must be 'fan_in' or 'fan_out', got {mode!r}")
    return fans(t)[mode == "fan_out"]


def _fillable(op: str, t: Tensor, **numbers: float) -> None:
    """Raise TypeError unless `t` is a Tensor, ValueError for options that are no numbers."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: expected a Tensor, got {type_name(t)}: wrap it in tr.tensor()")
    for name, number in numbers.items():
        if not isinstance(number, (int, float, np.number)) or number != number:
            raise ValueError(f"{op}: {name} must be a number, got {number!r}")


def constant_(t: Tensor, value: float) -> Tensor:
    """Fill `t` (any shape) with one value; returns it."""
    _fillable("constant_", t, value=value)
    t.data[...] = value
    t.bump("constant_")
    return t


def zeros_(t: Tensor) -> Tensor:
    """Fill `t` (any shape) with zeros; returns it."""
    return constant_(t, 0.0)


def ones_(t: Tensor) -> Tensor:
    """Fill `t` (any shape) with ones; returns it."""
    return constant_(t, 1.0)


def normal_(t: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Fill `t` (any shape) with draws from N(mean, std^2); returns it."""
    _fillable("normal_", t, mean=mean, std=std)
    check_floats("normal_", tensor=t)
    if not std >= 0:
        raise ValueError(f"normal_: std must not be negative, got {std}")
    draws = np.asarray(random.generator().standard_normal(t.shape, dtype=t.dtype.type))
    draws *= std
    draws += mean
    assign(t, draws, "normal_")
    return t


def uniform_(t: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Fill `t` (any shape) with draws from [low, high); returns it."""
    _fillable("uniform_", t, low=low, high=high)
    check_floats("uniform_", tensor=t)
    if not low <= high:
        raise ValueError(f"uniform_: low must not be above high, got {low} and {high}; exchange them")
    draws = np.asarray(random.generator().random(t.shape, dtype=t.dtype.type))
    draws *= high - low
    draws += low
    assign(t, draws, "uniform_")
    return t


def kaiming_normal_(t: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Fill a weight with N(0, gain^2 / fan) (He et al. 2015, equations 10 and 14); returns it.

    mode "fan_in" keeps the variance of activations, "fan_out" that of gradients; `a` is leaky_relu's negative slope.
    """
    return normal_(t, 0.0, calculate_gain(nonlinearity, a) / math.sqrt(_fan(t, mode)))


def kaiming_uniform_(t: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Fill a weight with U(-b, b), b = gain * sqrt(3 / fan) (He et al. 2015); arguments as for kaiming_normal_."""
    bound = calculate_gain(nonlinearity, a) * math.sqrt(3 / _fan(t, mode))
    return uniform_(t, -bound, bound)


def xavier_normal_(t: Tensor, gain: float = 1.0) -> Tensor:
    """Fill a weight with N(0, gain^2 * 2 / (fan_in + fan_out)) (Glorot & Bengio 2010); returns it."""
    return normal_(t, 0.0, gain * math.sqrt(2 / sum(fans(t))))


def xavier_uniform_(t: Tensor, gain: float = 1.0) -> Tensor:
    """Fill a weight with U(-b, b), b = gain * sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010); returns it."""
    bound = gain * math.sqrt(6 / sum(fans(t)))
    return uniform_(t, -bound, bound)
