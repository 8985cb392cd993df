"""Why a layer refused its input: the channels or features that it takes, those that it got, and who made them."""

from __future__ import annotations

import math
from typing import Any

from tinyres.stepper.refusal import Refusal
from tinyres.stepper.routes import History, Shape, Step, counted, listed, resized, window

Lines = tuple[list[str], list[tuple[str, Shape]], list[str]]  # text, sides, ways out


def of_layer(history: History, found: Refusal, shapes: list[Shape], ids: list[int | None], where: str,
             name: str) -> Lines | None:
    """The explanation for a convolution, a linear layer or a batch norm, None where its shapes are not the reason.

    shapes, ids: of its input and, but for batch norm, its weight; name: of the layer.
    """
    op, x = found.op, shapes[0]
    steps = history.route(None, ids[0]) if ids[0] is not None else []
    if op in ("conv2d", "conv_transpose2d"):
        text, ways = _convolution(history, found, shapes, steps, name)
    elif op == "linear":
        text, ways = _linear(history, shapes, steps, name)
    else:
        takes = getattr(found.modules[-1], "num_features", None) if found.modules else None
        if takes is None or len(x) < 2 or takes == x[1]:
            return None
        text = [f"{name} normalises {counted(takes, 'channel')}, and its input {x} has {x[1]}."]
        ways = [f"Give {name} the channels that it gets: nn.BatchNorm{'2d' if len(x) == 4 else '1d'}({x[1]}).",
                *_maker(steps, takes)]
    if not text:
        return None
    way = f"{listed(steps)}" if steps else history.named(ids[0]) or "made elsewhere"
    sides = [(f"input: {way}", x)] + [(f"weight of {name}", shape) for shape in shapes[1:2]]
    text[0] = where + text[0].removeprefix(name)  # each begins with the layer's name
    if steps:
        made = [words for words in (resized(history, step) for step in steps) if words]
        text.append(f"The input came by {way}. "
                    + ("; ".join(made[-4:]) + "." if made else "No step changed the shape."))
    return text, sides, ways


def _maker(steps: list[Step], takes: int) -> list[str]:
    """The change of the last layer that made the channels or features."""
    makers = [step for step in steps if step.op("conv2d", "conv2d_input_grad", "matmul")]
    if not makers:
        return []
    option = "out_features" if makers[-1].op("matmul") else "out_channels"
    return [f"Or let {makers[-1].name} make what it takes: {option}={takes}."]


def _convolution(history: History, found: Refusal, shapes: list[Shape], steps: list[Step],
                 name: str) -> tuple[list[str], list[str]]:
    x, weight = shapes
    layer = "nn.Conv2d" if found.op == "conv2d" else "nn.ConvTranspose2d"
    if len(weight) != 4:
        return [], []
    if len(x) != 4:
        flat = next((step for step in steps if len(step.before) == 4 and len(step.after) != 4), None)
        ways = [f"Leave {flat.name} out, or move it behind {name}."] if flat else \
            ["Give a single image a batch dimension: x[None]."] if len(x) == 3 else []
        return [f"{name} takes images (N, C, H, W), and its input is {x}."], \
            [*ways, f"Or reshape it to (N, C, H, W) with C = {weight[1] * _groups(found)}."]
    takes = weight[1] * _groups(found) if found.op == "conv2d" else weight[0]
    makes = weight[0] if found.op == "conv2d" else weight[1] * _groups(found)
    kernel = weight[2] if weight[2] == weight[3] else tuple(weight[2:])
    if x[1] != takes:
        ways = [f"It looks like (N, H, W, C): x.permute(0, 3, 1, 2) gives {(x[0], x[3], x[1], x[2])}."] \
            if x[3] == takes else []
        return ([f"{name} takes {counted(takes, 'channel')}, and its input {x} has {x[1]}."],
                [*ways, f"Give {name} the channels that it gets: {layer}({x[1]}, {makes}, {kernel}"
                 f"{_geometry(found)}).", *_maker(steps, takes),
                 f"Or put a 1x1 convolution between: nn.Conv2d({x[1]}, {takes}, 1)."])
    if found.op != "conv2d":
        return [], []
    padding, dilation = _both(found.options.get("padding", 0)), _both(found.options.get("dilation", 1))
    if padding is None or dilation is None:
        return [], []
    extent = [d * (k - 1) + 1 for k, d in zip(weight[2:], dilation, strict=True)]
    if all(n + 2 * p >= e for n, p, e in zip(x[2:], padding, extent, strict=True)):
        return [], []
    shrunk = [step for step in steps if len(step.after) == 4 and step.before[2:] != step.after[2:]]
    ways = [f"Pad more: padding={-(-(max(extent) - 1) // 2)} keeps {x[2]}x{x[3]} at stride 1.",
            f"Or use a kernel of at most {min(n + 2 * p for n, p in zip(x[2:], padding, strict=True))}."]
    if shrunk:
        slid = window(history, shrunk[-1])
        ways.append(f"Or shrink the image less before: {shrunk[-1].name} takes {shrunk[-1].before[2]}x"
                    f"{shrunk[-1].before[3]} to {shrunk[-1].after[2]}x{shrunk[-1].after[3]}"
                    + (f" with stride {slid.stride[0]}." if slid else "."))
    size = f"{extent[0]}x{extent[1]}"
    return [f"{name} has a kernel of {size} pixels, more than its padded input {x} has."], ways


def _linear(history: History, shapes: list[Shape], steps: list[Step], name: str) -> tuple[list[str], list[str]]:
    x, weight = shapes
    if len(weight) != 2 or not x or x[-1] == weight[1]:
        return [], []
    K, takes = weight
    text = [f"{name} takes {counted(takes, 'feature')}, and the last length of its input {x} is {x[-1]}."]
    if len(x) == 4:
        ways = [f"Pool the images first: nn.GlobalAvgPool2d() takes {x} to {x[:2]}."] if x[1] == takes else []
        ways += [f"Flatten the images first: nn.Flatten() takes {x} to {(x[0], math.prod(x[1:]))}."] \
            if math.prod(x[1:]) == takes else []
        return text, ways or [f"Pool the images first, nn.GlobalAvgPool2d(), and let the layer be nn.Linear({x[1]}, "
                              f"{K})."]
    ways = [f"Give {name} the features that it gets: nn.Linear({x[-1]}, {K})."]
    flat = next((step for step in reversed(steps) if len(step.before) == 4 and len(step.after) == 2
                 and math.prod(step.before[1:]) == step.after[1]), None)
    if flat is None:
        return text, [*ways, *_maker(steps, takes)]
    C, H, W = flat.before[1:]
    text.append(f"{flat.name} made them of {C} channels of {H}x{W}: {C}·{H}·{W} = {x[-1]}.")
    side = math.isqrt(takes // C)
    if takes == C:
        ways.append(f"Or pool instead of flattening: nn.GlobalAvgPool2d() gives {C} features, whatever the image's "
                    "size.")
    elif takes % C == 0 and side * side * C == takes and side > 0:
        ways.append(f"Or nn.AdaptiveAvgPool2d({side}) before {flat.name}: {C}·{side}·{side} = {takes}, whatever the "
                    "image's size.")
    return text, ways


def _groups(found: Refusal) -> int:
    return int(found.options.get("groups", 1))


def _both(value: Any) -> tuple[int, int] | None:
    if isinstance(value, str):
        return (0, 0) if value == "valid" else None
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _geometry(found: Refusal) -> str:
    """The options of a layer that are not the usual ones, as its constructor takes them."""
    text = ""
    for option, usual in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)):
        value = found.options.get(option, usual)
        value = value[0] if isinstance(value, tuple) and value[0] == value[1] else value
        text += "" if value == usual else f", {option}={value!r}"
    return text
