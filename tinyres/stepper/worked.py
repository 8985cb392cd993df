"""One element of a contribution, worked out by hand: which numbers are multiplied, and which are added.

`worked` asks the recipe of the op for the terms, and shows them in numbers beside what the engine's rule gave. The
recipes are in the files beside this one: worked_elements.py, worked_products.py, worked_channels.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyres.stepper import worked_channels, worked_elements, worked_products
from tinyres.stepper.difference import floats, input_names, place_of
from tinyres.stepper.schema import Worked
from tinyres.stepper.worked_terms import Call, Index, Recipe, at
from tinyres.tensor import Function

SHOWN = 9  # terms that are written out

RECIPES: dict[str, Callable[[Call, Index], Recipe]] = {
    **dict.fromkeys(worked_elements.SLOPES, worked_elements.elementwise),
    **dict.fromkeys(("reshape", "permute", "get_item", "put", "gather", "scatter", "pad", "concat", "sum_to",
                     "gather_hw", "scatter_hw"), worked_elements.moved),
    **dict.fromkeys(worked_products.WRITTEN, worked_products.linear),
    "max_pool2d": worked_elements.won,
    "amax": worked_elements.largest,
    "conv_bias": worked_products.conv_bias,
    "log_softmax": worked_channels.log_softmax,
    "cross_entropy": worked_channels.cross_entropy,
    "batch_norm": worked_channels.batch_norm,
}


def worked(node: Function, slot: int, inputs: Sequence[Any], output: Any, grad: Any, contribution: Any,
           index: Sequence[int] | None = None) -> Worked | None:
    """One element of what `node` brings to input `slot`, worked out in float64 from the op's rule.

    inputs: arrays, numbers or None, as they were before the op ran; output, grad: of the op, of one shape;
    contribution: the engine's, beside which the result is set; index: by default that of its largest element.
    Of more than nine terms the nine largest are listed, in their order. None for an op that is not tinyres' own, for an
    input without a gradient or without elements, and where a number is not finite. Raises IndexError for an index
    outside.
    """
    recipe = RECIPES.get(node.name) if type(node).__module__.startswith("tinyres.") else None
    if recipe is None or contribution is None or not contribution.size:
        return None
    engine, given = floats(contribution), [floats(x) for x in inputs]
    index = place_of("worked", engine, index)
    names = input_names(node, len(given))
    call = Call(node, slot, names, given, [None if x is None else np.asarray(x, np.float64) for x in given],
                floats(output), floats(grad))
    with np.errstate(all="ignore"):  # what is not finite is noticed below
        expression, parts = recipe(call, index)
        values = np.concatenate([part.values for part in parts])
        value = float(values.sum())
    if not (np.isfinite(value) and np.isfinite(engine[index])):
        return None
    texts = [part.text(place) for part in parts for place in range(min(len(part.values), SHOWN))]
    if len(values) > SHOWN:
        (part,) = parts  # only sums of one form are so long
        texts = [part.text(int(place)) for place in sorted(np.argsort(-np.abs(values), kind="stable")[:SHOWN])]
    return Worked(slot, at(f"d{names[slot]}", index), expression, texts, len(values) - len(texts), value,
                  float(engine[index]))
