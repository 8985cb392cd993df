"""Why a forward pass stopped at a join or a layer: what met what, where the shapes parted, and the legal ways out.

An op that refuses says which shapes it got. In a residual block that is half of the answer: the other half is where
shortcut and branch parted, and which layer on the way changed the shape. `explain` finds both in the calls so far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from tinyres.models.blocks import Block
from tinyres.stepper import fixes
from tinyres.stepper.fixes import Side
from tinyres.stepper.observe import Observer
from tinyres.stepper.refusal import Refusal, refused
from tinyres.stepper.routes import (
    BRANCH,
    SHORTCUT,
    Call,
    History,
    Shape,
    calls_of,
    counted,
    listed,
    resized,
    telling,
    total_stride,
)
from tinyres.stepper.schema import Stop
from tinyres.stepper.unfit import Lines, of_layer
from tinyres.tensor import Tensor

BROADCASTING = {"add": "add", "sub": "subtract", "mul": "multiply", "div": "divide", "maximum": "compare",
                "minimum": "compare", "pow": "raise", "where": "choose between", "matmul": "multiply"}
NEEDS = {"mse_loss": "They must have one shape.",
         "matmul": "The last length of the first must be the second last of the second, and the lengths before equal, "
                   "or 1.",
         "": "Counted from the right, each length must be equal, or 1."}
SUMS = ("sum_to", "amax", "avg_pool2d", "max_pool2d")  # a length of 1 that these made is meant to be repeated
NORMS = ("BatchNorm", "LayerNorm", "GroupNorm")
AXES = {2: ("rows", "features"), 4: ("images", "channels", "height", "width")}

__all__ = ["Call", "calls_of", "explain", "explanation", "suspicious"]


def explain(error: BaseException, seen: Observer) -> Stop | None:
    """Why `error` ended the forward pass that `seen` watched, None unless an op raised it because shapes do not fit."""
    found = refused(error)
    if found is None:
        return None
    ids = [seen.id_of(x) if isinstance(x, Tensor) else None for _, x in found.operands]
    calls = calls_of(seen.nodes, {node for node, call in seen.calls.items() if call.on_shortcut})
    return explanation(error, found, calls, ids, {id(m): seen.paths.get(id(m), "") for m in found.modules})


def explanation(error: BaseException, found: Refusal, calls: Sequence[Call], ids: Sequence[int | None],
                paths: Mapping[int, str]) -> Stop | None:
    """The same from plain facts: calls: what ran before, in order; ids: of the calls that made the op's operands, None
    for what none made; paths: dotted names of the modules in which it ran, by identity."""
    if not isinstance(error, ValueError):
        return None
    history, lines, op = History(calls), None, found.op.rstrip("_")
    shapes = [tuple(getattr(x, "shape", ())) for _, x in found.operands]
    names = [paths.get(id(module)) or type(module).__name__ for module in found.modules]
    block = next((name for module, name in zip(found.modules[::-1], names[::-1], strict=True)
                  if isinstance(module, Block)), "")
    layer = telling(names[-1], type(found.modules[-1]).__name__) if names else found.op
    where = (layer if names else "Outside of layers") + (f" ({found.line})" if found.line else "")
    join = partial(_join, history, found, shapes=shapes, ids=list(ids), where=where, prefix=block)
    if op == "batch_norm" and len(shapes) == 2 and shapes[0] != shapes[1]:
        lines = join("add")
    elif op in ("concat", "stack"):
        lines = _concatenation(history, found, shapes, list(ids), where, block)
    elif op in ("conv2d", "conv_transpose2d", "linear", "batch_norm"):
        lines = of_layer(history, found, shapes, list(ids), where, layer)
    elif op in ("matmul", "mse_loss") or (op in BROADCASTING and not _broadcast(shapes, found.op)):
        lines = join(op)
    return None if lines is None else Stop(found.op, str(error), *lines)


def _broadcast(shapes: Sequence[Shape], op: str) -> bool:
    """Whether the shapes fit an op that repeats lengths of 1; one in place cannot make its first input larger."""
    try:
        return np.broadcast_shapes(*shapes) == shapes[0] or not op.endswith("_")
    except ValueError:
        return False


# --- joins ----------------------------------------------------------------------------------------------------------


def _join(history: History, found: Refusal, op: str, shapes: list[Shape], ids: list[int | None], where: str,
          prefix: str) -> Lines:
    if op == "where":
        shapes, ids = shapes[-2:], ids[-2:]
    fork = history.fork([i for i in ids if i is not None]) if None not in ids and ids else None
    sides = _sides(history, found, shapes, ids, fork, prefix)
    need = "An addition needs equal shapes." if found.op == "batch_norm" else NEEDS.get(op, NEEDS[""])
    verb = BROADCASTING.get(op, "compare")
    text = [f"{where}: {found.op} was to {verb} the {sides[0].role}, {sides[0].shape}, and the {sides[-1].role}, "
            f"{sides[-1].shape}. {need}"]
    text += _history(history, sides, fork) + _differences(history, sides, fork)
    layer = where.partition(" (")[0]
    norm = (layer.removeprefix(prefix + "."), sides[0].shape) if found.op == "batch_norm" else None
    if op == "matmul":
        return text, [_side(history, side) for side in sides], fixes.of_product(sides)
    residual = fork is not None and {side.role for side in sides} == {SHORTCUT, BRANCH} and op in ("add", "sub")
    return text, [_side(history, side) for side in sides], _ways(history, sides, fork, residual, norm)


def _sides(history: History, found: Refusal, shapes: Sequence[Shape], ids: Sequence[int | None], fork: int | None,
           prefix: str) -> list[Side]:
    """What met, with the way of each since the fork; which is the shortcut, as far as that can be told."""
    routes = [() if i is None or i == fork else tuple(history.route(fork, i, prefix)) for i in ids]
    roles = ["first input", "second input", "third input", "fourth input"][:len(shapes)]
    roles += [f"input {i + 1}" for i in range(len(roles), len(shapes))]
    if found.op == "batch_norm" and len(shapes) == 2:
        roles = [BRANCH, SHORTCUT]
    elif fork is not None and len(shapes) == 2:
        short = [i == fork or any(c.lane == SHORTCUT for step in route for c in step.calls)
                 for i, route in zip(ids, routes, strict=True)]
        if short.count(True) != 1 and len(routes[0]) != len(routes[1]):
            short = [len(route) == min(map(len, routes)) for route in routes]
        if short.count(True) == 1:
            roles = [SHORTCUT if s else BRANCH for s in short]
    elif fork is None and len(shapes) == 2:
        kinds = [history.calls[i].module_type if i in history.calls and not history.calls[i].op else "" for i in ids]
        roles = [kind if kind and kinds.count(kind) == 1 else role for kind, role in zip(kinds, roles, strict=True)]
    return [Side(*parts) for parts in zip(roles, shapes, ids, routes, strict=True)]


def _side(history: History, side: Side) -> tuple[str, Shape]:
    made = history.named(side.id)
    way = listed(side.steps) or ("the fork itself" if made and side.role == SHORTCUT else made or "made elsewhere")
    return f"{side.role}: {way}", side.shape


def _history(history: History, sides: Sequence[Side], fork: int | None) -> list[str]:
    """Where the routes parted, and what each did to the shape."""
    if fork is None:
        text = ["They do not come from one tensor, so this is no residual join."] if \
            all(side.steps for side in sides) else []
    else:
        call = history.calls[fork]
        made = f"the output of {history.named(fork)}" if call.op else f"the {history.named(fork)}"
        text = [f"{'Both' if len(sides) == 2 else 'All'} come from {call.shape}, {made}."]
    for side in sides:
        if side.steps:
            changes = [words for words in (resized(history, step) for step in side.steps) if words]
            text.append(f"The {side.role}: {listed(side.steps)}. "
                        + ("; ".join(changes) + "." if changes else "No step changes the shape."))
        elif fork is not None and side.id == fork:
            text.append(f"The {side.role}: nothing lies on it, so it keeps {side.shape}.")
    return text


def _differences(history: History, sides: Sequence[Side], fork: int | None, free: int | None = None) -> list[str]:
    """Which lengths differ, that of axis `free` apart; of height and width whether strides or lost rows are the
    reason."""
    one, other = sides[0], sides[-1]
    if len(one.shape) != len(other.shape):
        return [f"The {one.role} has {counted(len(one.shape), 'dimension')}, the {other.role} {len(other.shape)}."]
    names = AXES.get(len(one.shape), tuple(f"dim {i}" for i in range(len(one.shape))))
    apart: dict[tuple[int, int], list[str]] = {}
    for i, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)):
        if a != b and i != free:
            apart.setdefault((a, b), []).append(names[i])
    parts = [f"{' and '.join(axes)} ({a} on the {one.role}, {b} on the {other.role})" for (a, b), axes in apart.items()]
    text = [f"They differ in {', and in '.join(parts)}."] if parts else []
    start = history.calls[fork].shape if fork is not None else ()
    if len(start) != 4 or len(one.shape) != 4 or one.shape[2:] == other.shape[2:]:
        return text
    strides = [total_stride(history, side.steps) for side in sides]
    known = [s for s in (strides[0], strides[-1]) if s is not None]
    if len(known) == 2 and known[0] != known[1]:
        at = [s[0] if s[0] == s[1] else s for s in known]
        text.append(f"The strides differ: {at[0]} on the {one.role}, {at[1]} on the {other.role}.")
    return text + [_border(side, start, s) for side, s in zip(sides, strides, strict=True) if s is not None
                   and any(math.ceil(n / step) != m for n, step, m in zip(start[2:], s, side.shape[2:], strict=True))]


def _border(side: Side, start: Shape, strides: tuple[int, int]) -> str:
    """How many rows and columns a route lost, or gained, beyond what its strides leave out."""
    lost = [math.ceil(n / s) - m for n, s, m in zip(start[2:], strides, side.shape[2:], strict=True)]
    parts = [counted(abs(n), what) for n, what in zip(lost, ("row", "column"), strict=True) if n]
    if max(lost) > 0:
        return (f"The {side.role} loses {' and '.join(parts)}: its windows have too little padding to stand on every "
                "pixel of the border.")
    return f"The {side.role} gains {' and '.join(parts)}: it has more padding than its kernels need."


def _ways(history: History, sides: Sequence[Side], fork: int | None, residual: bool,
          norm: tuple[str, Shape] | None) -> list[str]:
    if not residual:
        return fixes.of_shapes(sides)
    start = history.calls[fork].shape  # type: ignore[index]
    branch, shortcut = sorted(sides, key=lambda side: side.role)
    if branch.shape[:1] != shortcut.shape[:1] and len(branch.shape) > 1:
        return ["Both sides must hold the same images: no shortcut can make more of them, or fewer."]
    keep = fixes.keep_the_shape(history, start, (branch, shortcut), norm=norm)
    if len({len(branch.shape), len(shortcut.shape), len(start)}) > 1 or len(start) not in (2, 4):
        return [*fixes.of_shapes(sides), *([keep] if keep else [])]
    return [*fixes.of_shortcut(history, start, branch), *([keep] if keep else [])]


def _concatenation(history: History, found: Refusal, shapes: list[Shape], ids: list[int | None], where: str,
                   prefix: str) -> Lines:
    dim = found.options.get("dim", 0)
    free = dim % len(shapes[0]) if found.op == "concat" and shapes[0] else None
    fork = history.fork([i for i in ids if i is not None]) if None not in ids and ids else None
    sides = _sides(history, found, shapes, ids, fork, prefix)
    rule = f"All lengths but that of dim {dim} must be equal." if found.op == "concat" else "They must have one shape."
    met = f"{', '.join(map(str, shapes[:-1]))} and {shapes[-1]}"
    text = [f"{where}: {found.op} was to join {met} along dim {dim}. {rule}"]
    odd = [sides[0], next(side for side in sides[1:] if _apart(side.shape, sides[0].shape, dim, found.op))]
    ways = fixes.of_concatenation(history, odd, dim if found.op == "concat" else -1)
    return (text + _history(history, sides, fork) + _differences(history, odd, fork, free),
            [_side(history, side) for side in sides], ways)


def _apart(one: Shape, other: Shape, dim: int, op: str) -> bool:
    if op == "stack" or len(one) != len(other):
        return one != other
    return any(a != b for i, (a, b) in enumerate(zip(one, other, strict=True)) if i != dim % len(one))


# --- joins that are no error ----------------------------------------------------------------------------------------


def suspicious(calls: Sequence[Call]) -> list[str]:
    """A sentence for each sum or difference that ran because a length of 1 was repeated, where that may be a mistake.

    (N, 1, H, W) + (N, C, H, W) adds one channel to all; (N, 1) - (N,) is (N, N). Left out: numbers, parameters, what a
    norm does inside, and a length of 1 that a sum, maximum or pooling left there to be repeated.
    """
    history = History(calls)
    notes: dict[str, None] = {}
    for call in calls:
        if call.op.rstrip("_") not in ("add", "sub") or len(call.inputs) != 2 or call.module_type.startswith(NORMS):
            continue
        a, b = (history.calls.get(-1 if i is None else i) for i in call.inputs)
        if a is None or b is None or not a.shape or not b.shape or a.shape == b.shape:
            continue
        if not all(made.id in history.carries or made.module_type == "constant" for made in (a, b)):
            continue
        where = call.module or call.line or "outside of layers"
        if call.shape not in (a.shape, b.shape):
            notes[f"{where}: {call.op} of {a.shape} and {b.shape} gives {call.shape}, larger than both. If each "
                  "element of one belongs to one of the other, reshape one side first."] = None
            continue
        small, large = (a, b) if call.shape == b.shape else (b, a)
        if len(small.shape) != len(large.shape) or not {small.id, large.id} <= history.carries:
            continue
        repeated = [i for i, (n, m) in enumerate(zip(small.shape, large.shape, strict=True)) if n != m]
        if not _meant(history, small, large, repeated):
            names = AXES.get(len(large.shape), tuple(f"dim {i}" for i in range(len(large.shape))))
            axes = " and ".join(f"{names[i]} ({large.shape[i]} times)" for i in repeated)
            notes[f"{where}: {call.op} repeats {small.shape} to {large.shape} along {axes}. That is no error, but a "
                  "join of shortcut and branch needs equal shapes."] = None
    return list(notes)


def _meant(history: History, small: Call, large: Call, repeated: Sequence[int]) -> bool:
    """Whether a reduction, since the two parted, made the lengths of 1 that are repeated."""
    made, fork = set(repeated), history.fork([small.id, large.id])
    since = history.ancestors(small.id) & history.carries
    for call in (history.calls[id] for id in sorted(since) if fork is None or id > fork):
        for source in call.inputs:
            before = history.calls[source].shape if source in history.calls else ()
            if call.op in SUMS and len(before) == len(call.shape):
                made -= {i for i in made if before[i] > 1 and call.shape[i] == 1}
            elif call.op in ("reshape", *SUMS) and len(before) != len(call.shape):
                return True  # a reduction without keepdim, put back: what stood where cannot be told
    return not made
