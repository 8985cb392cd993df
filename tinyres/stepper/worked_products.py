"""Worked elements of ops that are linear in the input looked at: matrix products, convolutions, average pooling.

Each output multiplied the element with some factor, which is all that its gradient needs: dx = Σ g · factor. A lone 1
in the element's place, sent forward with ones in the other operand, shows which outputs took part; sent forward with
the other operand as it is, it shows the factors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tinyres.ops.conv import Conv2d
from tinyres.stepper.difference import rerun
from tinyres.stepper.worked_elements import lone
from tinyres.stepper.worked_terms import Call, Index, Recipe, Terms, affine, at, met, operand, over


def linear(call: Call, index: Index) -> Recipe:
    """An op that is linear in this input: what a lone 1 there is multiplied by, and where that comes out."""
    taking_part = rerun(call.node, lone(call, index, others=1.0)) != 0
    alone = list(call.given)
    alone[call.slot] = lone(call, index)[call.slot]
    g, factor = call.g[taking_part], rerun(call.node, alone)[taking_part]
    written = WRITTEN[call.node.name](call, index)
    if len(call.names) == 1:  # an average: the factor is one over the window's size
        return written, [Terms("g / m", {"g": g, "m": np.rint(1 / factor)}, g * factor)]
    other = call.names[1 - call.slot]
    return written, [Terms(f"g · {other}", {"g": g, other: factor}, g * factor)]


def conv_bias(call: Call, index: Index) -> Recipe:
    """The convolution's own recipe, the bias's sum or the residual's copy, each of the gradient behind the ReLU."""
    behind = np.where(call.y <= 0, 0.0, call.g) if call.node.params["relu"] else call.g
    if call.slot == 3:
        return at("g'", index), [Terms("g", {"g": behind[index]}, behind[index].reshape(1))]
    if call.slot == 2:
        g = behind[:, index[0]].ravel()
        return f"Σ over n, p, q of g'[n, {index[0]}, p, q]", [Terms("g", {"g": g}, g)]
    conv = Conv2d()
    conv.params = {name: value for name, value in call.node.params.items() if name != "relu"}
    written, terms = linear(replace(call, node=conv, names=call.names[:2], given=call.given[:2], x=call.x[:2],
                                    g=behind), index)
    return written.replace("g[", "g'["), terms


# ---- the sums in letters --------------------------------------------------------------------------------------------


def _matmul(call: Call, index: Index) -> str:
    """da[i, k] = Σ over j of g[i, j] b[k, j];  db[k, j] = Σ over i of g[i, j] a[i, k]."""
    lead = met(call.shape[:-2], call.g.shape[:-2], index[:-2])
    free = "t" if lead else "ji"[call.slot]  # the leading dimensions may have taken the letter
    if call.slot == 0:
        i, k = index[-2:]
        g, other = (*lead, i, free), at("b", (*operand(call.x[1].shape[:-2], lead), k, free))
    else:
        k, j = index[-2:]
        g, other = (*lead, free, j), at("a", (*operand(call.x[0].shape[:-2], lead), free, k))
    return f"{over(g)}{at('g', g)} · {other}"


def _geometry(call: Call) -> tuple[list[tuple[int, int, int]], tuple[int, ...], int]:
    """(stride, dilation, padding) of height and width; the weight's shape; output channels in a group."""
    options = call.node.params
    weight = call.g.shape if call.node.name == "conv2d_weight_grad" else call.x[1].shape
    axes = list(zip(options["stride"], options["dilation"], options["padding"], strict=True))
    return axes, weight, weight[0] // options["groups"]


def _meeting(call: Call, h: int, w: int) -> str:
    """Which output and kernel positions meet at the pixel (h, w)."""
    axes, _, _ = _geometry(call)
    rows, columns = (affine((s, x), (d, y), constant=-p) for (s, d, p), x, y in zip(axes, "pq", "rs", strict=True))
    return f"where {rows} = {h} and {columns} = {w}"


def _pixel(call: Call, name: str, weight_index: Index) -> str:
    """The pixel that the weight (k, c, r, s) meets at each output (p, q)."""
    axes, weight, in_group = _geometry(call)
    k, c, *taps = weight_index
    rows, columns = (affine((s, x), constant=d * tap - p) for (s, d, p), x, tap in zip(axes, "pq", taps, strict=True))
    return f"{name}[n, {c + k // in_group * weight[1]}, {rows}, {columns}]"


def _window(call: Call, name: str, output_index: Index) -> str:
    """The pixels that the kernel meets at the output (n, k, p, q)."""
    axes, weight, in_group = _geometry(call)
    n, k, *places = output_index
    rows, columns = (affine((d, x), constant=s * i - p) for (s, d, p), x, i in zip(axes, "rs", places, strict=True))
    first = k // in_group * weight[1]
    return f"{name}[{n}, {f'{first} + c' if first else 'c'}, {rows}, {columns}]"


def _conv2d(call: Call, index: Index) -> str:
    if call.slot == 1:
        return f"Σ over n, p, q of g[n, {index[0]}, p, q] · {_pixel(call, 'x', index)}"
    n, c, h, w = index
    return f"Σ over k, p, q of g[{n}, k, p, q] · W[k, {c % _geometry(call)[1][1]}, r, s] {_meeting(call, h, w)}"


def _conv2d_input_grad(call: Call, index: Index) -> str:
    if call.slot == 1:
        return f"Σ over n, p, q of {_pixel(call, 'g', index)} · x[n, {index[0]}, p, q]"
    return f"Σ over c, r, s of {_window(call, 'g', index)} · W[{index[1]}, c, r, s]"


def _conv2d_weight_grad(call: Call, index: Index) -> str:
    if call.slot == 1:
        return f"Σ over c, r, s of g[{index[1]}, c, r, s] · {_window(call, 'x', index)}"
    n, c, h, w = index
    return f"Σ over k, r, s of g[k, {c % _geometry(call)[1][1]}, r, s] · u[{n}, k, p, q] {_meeting(call, h, w)}"


WRITTEN: dict[str, Callable[[Any, Index], str]] = {
    "matmul": _matmul, "conv2d": _conv2d, "conv2d_input_grad": _conv2d_input_grad,
    "conv2d_weight_grad": _conv2d_weight_grad,
    "avg_pool2d": lambda call, i: f"Σ over the windows p, q that saw it of g[{i[0]}, {i[1]}, p, q] / size",
    "avg_pool2d_input_grad": lambda call, i: f"Σ over the pixels h, w of its window of g[{i[0]}, {i[1]}, h, w] / size",
}
