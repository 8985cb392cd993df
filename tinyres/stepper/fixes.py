"""The legal ways out where shapes do not fit at a join or a layer, with the numbers of the case.

A shortcut that must change the shape has two forms: zeros for the channels that are missing (option A), or a 1x1
convolution (option B; He et al. 2015, section 3.3), both with the branch's stride. The third way out is a branch that
keeps the shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tinyres.stepper.routes import History, Shape, Step, counted, stride_between, total_stride, window


@dataclass(frozen=True)
class Side:
    """What met another at a join. role: "branch", "shortcut", "first input" ...; steps: since the fork."""

    role: str
    shape: Shape
    id: int | None
    steps: tuple[Step, ...] = ()


def of_shortcut(history: History, fork: Shape, branch: Side, place: str = "as the shortcut") -> list[str]:
    """Options A and B from the fork's shape to the branch's, (N, C, H, W) or (N, C)."""
    C, K = fork[1], branch.shape[1]
    if len(fork) == 2:
        zeros = (f"tr.pad(x, (0, {K - C})) {place}: {counted(K - C, 'zero')} for the features that the branch adds; "
                 "no parameters." if K > C else f"it adds zero features, and the branch has {K}, not more than {C}.")
        return [f"Option A{'' if K > C else ' is not possible'}: {zeros}",
                f"Option B: nn.Linear({C}, {K}, bias=False) {place}: {C * K} weights."]
    strides = total_stride(history, branch.steps)
    if strides is None:
        least = stride_between(fork, branch.shape)
        strides = (least, least) if least is not None else None
    fits = strides is not None and all(math.ceil(n / s) == m for n, s, m in
                                       zip(fork[2:], strides, branch.shape[2:], strict=True))
    if strides is None or not fits:
        return _cropped(fork, branch.shape, place)
    if (C, *strides) == (K, 1, 1):
        return [f"Option A: nn.Identity() {place}: the branch keeps {fork}, so no zeros are needed.",
                f"Option B: models.blocks.ProjectionShortcut({C}, {K}, 1) {place}: a 1x1 convolution that keeps "
                f"{fork[2]}x{fork[3]}, and batch norm. With equal shapes an identity does."]
    s, stride = strides[0], strides if strides[0] != strides[1] else strides[0]
    why = "it has one stride for both axes, and the branch has two" if strides[0] != strides[1] else \
        f"it can only add channels, and the branch makes {K} of {C}" if K < C else \
        f"it adds as many zero channels on each side, and {K} - {C} is odd" if (K - C) % 2 else ""
    zeros = (f"models.blocks.PadShortcut({C}, {K}, {s}) {place}: "
             + (f"every {_ordinal(s)} pixel" if s > 1 else "every pixel")
             + (f", and {counted((K - C) // 2, 'zero channel')} on each side" if K > C else "") + "; no parameters.")
    return [f"Option A is not possible here: {why}." if why else f"Option A: {zeros}",
            f"Option B: models.blocks.ProjectionShortcut({C}, {K}, {stride}) {place}: a 1x1 convolution with "
            f"stride {stride}, {C * K} weights, and batch norm."]


def _cropped(fork: Shape, branch: Shape, place: str) -> list[str]:
    """Why neither option helps where rows were lost, and what would."""
    lost = [n - m for n, m in zip(fork[2:], branch[2:], strict=True)]
    words = f"{fork[2]}x{fork[3]} to {branch[2]}x{branch[3]}"
    if fork[1] != branch[1] or min(lost) < 0:
        cut = "first let the branch keep its rows and columns."
    else:
        before = [n // 2 for n in lost]
        rows, columns = (f"{b}:{b + m}" for b, m in zip(before, branch[2:], strict=True))
        cut = f"x[:, :, {rows}, {columns}] {place} crops it; rather let the branch keep its rows and columns."
    return [f"Option A is not possible here: no stride of the branch takes {words}; {cut}",
            f"Option B is not possible here: a 1x1 convolution with a stride does not take {words} either."]


def _ordinal(n: int) -> str:
    return {2: "second", 3: "third"}.get(n, f"{n}th")


def keep_the_shape(history: History, target: Shape, sides: Sequence[Side], channels: bool = True,
                   norm: tuple[str, Shape] | None = None) -> str:
    """What to change in the layers so that the routes keep `target`; channels: also its channels; norm: the batch norm
    that was to add the sides, and its input's shape."""
    changes = [f"{name}: {', '.join(options)}" for side in sides
               for name, options in _changes(history, side.steps, target, channels).items()]
    if norm is not None and norm[1][1] != target[1]:
        changes.append(f"{norm[0]}: num_features={target[1]}")
    if not changes:
        return ""
    return f"Keep the shape {target}: {'; '.join(changes)}."


def _changes(history: History, steps: Sequence[Step], target: Shape, channels: bool) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for step in steps:
        if len(step.before) != len(step.after):
            found[step.name] = ["leave it out"]
        elif len(step.after) == 4 and step.before[2:] != step.after[2:]:
            slid = window(history, step)
            keeps = None if slid is None or step.op("conv2d") is None else slid.padding_that_keeps()
            if slid is None or keeps is None:
                found[step.name] = ["leave it out" if step.op("conv2d") is None else
                                    "an odd kernel with padding=(kernel - 1) / 2 and stride=1"]
                continue
            options = [] if slid.stride == (1, 1) else ["stride=1"]
            padding = keeps[0] if keeps[0] == keeps[1] else keeps
            found[step.name] = options + ([] if slid.padding == keeps else [f"padding={padding}"])
    makers = [step for step in steps if step.op("conv2d", "matmul") or step.before[1:2] != step.after[1:2]]
    if channels and makers and len(target) > 1 and makers[-1].after[1:2] != target[1:2]:
        step = makers[-1]
        option = "out_channels" if step.op("conv2d") else "out_features" if step.op("matmul") else ""
        found.setdefault(step.name, []).append(f"{option}={target[1]}" if option else "leave it out")
        for behind in steps[steps.index(step) + 1:]:
            if behind.type.startswith("BatchNorm"):
                found.setdefault(behind.name, []).append(f"num_features={target[1]}")
    return found


def of_concatenation(history: History, sides: Sequence[Side], dim: int) -> list[str]:
    """The ways out where images that are to be concatenated along `dim` differ elsewhere."""
    shapes = [side.shape for side in sides]
    if len({len(shape) for shape in shapes}) > 1 or not all(len(shape) == 4 for shape in shapes):
        return of_shapes(sides)
    differing = {i for i in range(4) if i != dim and len({shape[i] for shape in shapes}) > 1}
    if differing == {1}:
        return ["Concatenate along the channels: concat(..., dim=1), where they may differ."]
    if 0 in differing:
        return ["All must hold the same images, or be concatenated along them: concat(..., dim=0)."]
    small = min(shapes, key=lambda shape: shape[2] * shape[3])
    large = next(side for side in sides if side.shape[2:] != small[2:])
    s = stride_between(large.shape, small)
    C, (H, W) = large.shape[1], large.shape[2:]
    fixes = []
    if s is not None and (H // s, W // s) == small[2:]:
        fixes.append(f"Pool the larger one first: nn.AvgPool2d({s}) takes {H}x{W} to {small[2]}x{small[3]}.")
    if s is not None:
        fixes.append(f"Or a 1x1 convolution with that stride: nn.Conv2d({C}, {C}, 1, stride={s}).")
    else:
        fixes.append(f"No stride takes {H}x{W} to {small[2]}x{small[3]}: the larger one can be cropped, or the smaller "
                     "one padded.")
    return [*fixes, *filter(None, [keep_the_shape(history, large.shape, [side for side in sides if side is not large],
                                                  channels=False)])]


def of_product(sides: Sequence[Side]) -> list[str]:
    """The ways out where two matrices, or batches of them, cannot be multiplied."""
    first, second = sides[0], sides[-1]
    a, b = first.shape, second.shape
    found = []
    if len(a) > 1 and len(b) > 1:
        flipped = {"first": (*a[:-2], a[-1], a[-2]), "second": (*b[:-2], b[-1], b[-2])}
        for side, (left, right) in ((second, (a, flipped["second"])), (first, (flipped["first"], b))):
            if left[-1] == right[-2]:
                found.append(f"transpose(-2, -1) of the {side.role}: {left} @ {right} gives {left[-2]}x{right[-1]}.")
        if b[-1] == a[-2]:
            found.append(f"Or the other way round: {b} @ {a} gives {b[-2]}x{a[-1]}.")
    return found or [f"No transpose makes {a} and {b} fit: the last length of the first must be the second last of the "
                     "second."]


def of_shapes(sides: Sequence[Side]) -> list[str]:
    """The ways out for other arrays that do not broadcast."""
    fixes = []
    first, second = sides[0], sides[-1]
    for one, other in ((first, second), (second, first)):
        if len(one.shape) == 1 and len(other.shape) == 4 and one.shape[0] == other.shape[1]:
            fixes.append(f"One number a channel: reshape(1, {one.shape[0]}, 1, 1) of the {one.role}.")
        elif len(one.shape) == 4 and len(other.shape) == 2 and one.shape[:2] == other.shape:
            fixes.append(f"Pool the {one.role} as well: nn.GlobalAvgPool2d() takes {one.shape} to {other.shape}.")
            fixes.append(f"Or one number a channel: reshape({other.shape[0]}, {other.shape[1]}, 1, 1) of the "
                         f"{other.role}.")
    if math.prod(first.shape) == math.prod(second.shape) and first.shape != second.shape:
        fixes.append(f"Both have {math.prod(first.shape)} elements: reshape{second.shape} of the {first.role}, if they "
                     "stand in the same order.")
    return fixes or [f"Give both one shape: {first.shape} and {second.shape} have nothing in common that could be "
                     "repeated."]
