"""Worked elements of ops that go element by element, and of those that only move elements about.

Element by element: the upstream gradient times a slope, summed over the outputs for which a broadcast operand was
repeated. Moved: a lone 1 is sent through the forward pass, and where it comes out, the gradient is collected. So the
forward pass says where an element went, and the engine's backward rule is not asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres.stepper.difference import rerun
from tinyres.stepper.worked_terms import Call, Index, Recipe, Terms, at, met, operand, over, substituted


@dataclass(frozen=True)
class Slope:
    """form: in letters; rule: its value; m, named: numbers that the letter m stands for, and how they are written."""

    form: str
    rule: Callable[..., Any]
    m: Callable[[Call], Any] | None = None
    named: str = ""


def _chosen(call: Call) -> Any:
    """1 where the first operand was taken, half of it at a tie."""
    a, b = call.x
    return (a < b if call.node.name == "minimum" else a > b) + 0.5 * (a == b)


def _masked(m: Callable[[Call], Any], named: str) -> Slope:
    return Slope("g · m", lambda g, m, **_: g * m, m, named)


def _power(g: Any, a: Any, b: Any, **_: Any) -> Any:
    return np.where(b == 0, 0.0, g * b * a ** (b - 1))  # x**0 is constant, also at 0


def _exponent(g: Any, a: Any, b: Any, y: Any) -> Any:
    return g * y * np.log(np.where((a == 0) & (b >= 0), 1.0, a))  # 0**b is constant for b > 0


PLAIN, TURNED = Slope("g", lambda g, **_: g), Slope("-g", lambda g, **_: -g)
SLOPES: dict[str, tuple[Slope, ...]] = {
    "add": (PLAIN, PLAIN),
    "sub": (PLAIN, TURNED),
    "mul": (Slope("g · b", lambda g, b, **_: g * b), Slope("g · a", lambda g, a, **_: g * a)),
    "div": (Slope("g / b", lambda g, b, **_: g / b), Slope("-g · a / b²", lambda g, a, b, **_: -g * a / b**2)),
    "pow": (Slope("g · b · a^(b - 1)", _power), Slope("g · y · log(a)", _exponent)),
    "maximum": (_masked(_chosen, "[a > b]"), _masked(lambda call: 1 - _chosen(call), "[b > a]")),
    "minimum": (_masked(_chosen, "[a < b]"), _masked(lambda call: 1 - _chosen(call), "[b < a]")),
    "where": (PLAIN, Slope("g · mask", lambda g, mask, **_: g * mask),
              Slope("g · (1 - mask)", lambda g, mask, **_: g * (1 - mask))),
    "neg": (TURNED,),
    "exp": (Slope("g · y", lambda g, y, **_: g * y),),
    "log": (Slope("g / x", lambda g, x, **_: g / x),),
    "sqrt": (Slope("g / (2 · y)", lambda g, y, **_: g / (2 * y)),),
    "tanh": (Slope("g · (1 - y²)", lambda g, y, **_: g * (1 - y**2)),),
    "sigmoid": (Slope("g · y · (1 - y)", lambda g, y, **_: g * y * (1 - y)),),
    "abs": (_masked(lambda call: np.sign(call.x[0]), "sign(x)"),),
    "relu": (_masked(lambda call: 1.0 - (call.y <= 0), "[y > 0]"),),
    "dropout": (_masked(lambda call: rerun(call.node, [np.ones_like(call.x[0])]), "mask / (1 - p)"),),
    "as_type": (PLAIN,), "to": (PLAIN,), "channels_last": (PLAIN,), "broadcast_to": (PLAIN,),
}
for _name in ("add", "sub", "mul", "div", "relu"):  # in place
    SLOPES[f"{_name}_"] = SLOPES[_name]


def elementwise(call: Call, index: Index) -> Recipe:
    """The upstream gradient times the slope, at all places to which this element was repeated."""
    slope, out = SLOPES[call.node.name][call.slot], call.g.shape
    place = met(call.shape, out, index)
    arrays = {"g": call.g, "y": call.y} | dict(zip(call.names, call.x, strict=True))
    if slope.m is not None:
        arrays["m"] = slope.m(call)
    everywhere = tuple(slice(None) if isinstance(i, str) else i for i in place)
    met_there = {name: np.broadcast_to(a, out)[everywhere].ravel() for name, a in arrays.items()}
    letters = {name: at(name, operand(a.shape, place)) for name, a in arrays.items() if name != "m"}
    form = slope.form.replace("m", slope.named) if slope.named else slope.form
    return over(place) + substituted(form, letters), [Terms(slope.form, met_there, slope.rule(**met_there))]


def lone(call: Call, index: Index, others: float = 0.0) -> list[Any]:
    """A 1 at `index` of this input and 0 elsewhere in it; the inputs beside it filled with one number."""
    found = [None if x is None else np.full_like(x, others) for x in call.x]
    found[call.slot] = one = np.zeros_like(call.x[call.slot])
    one[index] = 1.0
    return found


def moved(call: Call, index: Index) -> Recipe:
    """An op that only moves elements: the upstream gradient at the places where this one came out."""
    frame = {"value": 0.0} if call.node.name == "pad" else {}
    return _collected(call, np.argwhere(rerun(call.node, lone(call, index), **frame)))


def won(call: Call, index: Index) -> Recipe:
    """Max pooling: of this channel the windows whose maximum the pixel was."""
    n, c, h, w = index
    winners = call.node.params["pool"](call.given[0])[1][n, c]
    places = np.argwhere(winners == h * call.shape[3] + w)
    return _collected(call, np.insert(places, [0, 0], (n, c), axis=1))


def _collected(call: Call, places: np.ndarray) -> Recipe:
    g = call.g[tuple(places.T)] if len(places) else np.zeros(0)
    written = " + ".join(at("g", [int(i) for i in place]) for place in places[:3])
    written += f" + ... ({len(places)} places)" if len(places) > 3 else ""
    return written or "0, as it went nowhere", [Terms("g", {"g": g}, np.atleast_1d(g))]


def largest(call: Call, index: Index) -> Recipe:
    """amax: the share of this element among those that equal the maximum."""
    place = operand(call.g.shape, index)
    ties = call.x[0] == call.y
    share = ties[index] / np.count_nonzero(ties[tuple(slice(None) if n == 1 else i for n, i in
                                                      zip(call.g.shape, index, strict=True))])
    g = call.g[place]
    return (f"{at('g', place)} · [{at('x', index)} = {at('y', place)}] / ties",
            [Terms("g · m", {"g": g, "m": share}, np.atleast_1d(g * share))])
