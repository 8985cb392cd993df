"""What a training step reads of its numbers: the loss, how many were right, whether all is finite, and if not, why."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from tinyres import ops
from tinyres.debug import debug
from tinyres.kernels import layout
from tinyres.nn import Module
from tinyres.ops.create import move
from tinyres.tensor import Tensor


def read(losses: list[Any], hits: list[Any], grads: list[Any]) -> tuple[float, int, bool]:
    """The sums of both, and whether all gradients are finite: what a step reads from its device.

    Each reading waits until the device has done all that it was given. So on a GPU the numbers are laid side by side
    there, losses and gradients as one sum of squares, and read in one copy.
    """
    xp = layout.array_module(losses[0])
    if xp is np:
        return sum(loss.item() for loss in losses), int(sum(hits)), all(map(is_finite, grads))
    every = xp.concatenate([_flat(array) for array in (*losses, *grads)])
    numbers = [number.astype("float64") for number in (*losses, *hits, every @ every)]
    *read, squares = xp.stack(numbers).get().tolist()
    finite = math.isfinite(squares) or bool(xp.isfinite(every).all())
    return sum(read[:len(losses)]), int(sum(read[len(losses):])), finite


def is_finite(array: Any) -> bool:
    """Whether an array has neither NaN nor Inf.

    A sum of squares tells in one fast pass; every element is looked at only if that is not finite, which large finite
    numbers may bring about too.
    """
    flat = _flat(array)
    return math.isfinite(float(flat @ flat)) or bool(layout.array_module(array).isfinite(flat).all())


def _flat(array: Any) -> Any:
    """All values in one row, a view if they lie so; CuPy has no order="K"."""
    if layout.array_module(array) is np:
        return array.ravel(order="K")
    return (array.transpose(0, 2, 3, 1) if array.ndim == 4 else array).ravel()


def first_bad_op(model: Module, x: Any, y: Any, label_smoothing: float) -> str:
    """Repeat a step under debug(); what it says of the op that made the first NaN or Inf, and the layer it ran in.

    Raises ValueError for labels that do not fit the logits, which are looked at only on the host.
    """
    y = move(y, "cpu")
    if not is_finite(x):
        return "the batch's images hold NaN or Inf: clean the data"
    entered = [""]
    handles = [module.register_forward_pre_hook(lambda module, args, name=name: entered.append(name))
               for name, module in model.named_modules()]
    try:
        with debug():
            loss = ops.cross_entropy(model(Tensor(x)), y, label_smoothing)
            entered = [""]
            loss.backward()
    except FloatingPointError as error:
        message = re.sub(r" \(called at .*:\d+\)", "", str(error))  # the line that called train(): no news
        return message + (f", in {entered[-1]}" if entered[-1] else "")
    finally:
        for handle in handles:
            handle.remove()
    return "a repetition of the step did not show it again"
