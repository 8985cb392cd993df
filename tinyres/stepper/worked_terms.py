"""What a worked element is made of: terms in letters and in numbers, and indices as a reader writes them.

An index is a tuple of numbers and letters: (0, "h", "w") are all pixels of image 0, over which is summed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres.tensor import Function

Index = tuple[int, ...]
Place = tuple[Any, ...]  # of numbers, and letters where an index runs over all
LETTERS = {4: "nchw"}


@dataclass(frozen=True)
class Call:
    """A call of an op, in float64. given: its inputs as they came; x: the same as arrays, of a number a 0-d one; y: its
    output; g: the gradient that arrived. `slot` is the input whose contribution is looked at."""

    node: Function
    slot: int
    names: tuple[str, ...]
    given: list[Any]
    x: list[Any]
    y: Any
    g: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x[self.slot].shape


@dataclass(frozen=True)
class Terms:
    """Terms of one form. form: in letters, "g · b"; numbers: by letter, one a term or one for all; values: of each."""

    form: str
    numbers: dict[str, Any]
    values: Any

    def text(self, place: int) -> str:
        """The term at `place` in numbers."""
        numbers = {name: number(np.ravel(v)[place if np.size(v) > 1 else 0]) for name, v in self.numbers.items()}
        return re.sub(r"^\((-[^()]*)\)", r"\1", substituted(self.form, numbers))  # a minus in front needs no brackets


Recipe = tuple[str, list[Terms]]  # the element in letters, and its terms


def substituted(form: str, by: dict[str, str]) -> str:
    """A form with each name in it replaced, where `by` has one for it."""
    return re.sub(r"[A-Za-z]+'?", lambda found: by.get(found[0], found[0]), form)


def number(value: float) -> str:
    """Four digits, in brackets if negative."""
    text = f"{float(value) + 0.0:.4g}"  # + 0.0 turns -0 into 0
    return f"({text})" if text.startswith("-") else text


def at(name: str, place: Sequence[Any]) -> str:
    """"g[0, h, 2]"; of a single number only the name."""
    return f"{name}[{', '.join(map(str, place))}]" if len(place) else name


def over(place: Sequence[Any]) -> str:
    """"Σ over n, h of " for the letters in a place; "" where there are none."""
    summed = [i for i in place if isinstance(i, str)]
    return f"Σ over {', '.join(summed)} of " if summed else ""


def met(shape: tuple[int, ...], out: tuple[int, ...], index: Index) -> Place:
    """Where element `index` of an operand of `shape`, broadcast to `out`, stands: a letter where it was repeated."""
    letters, lead = LETTERS.get(len(out), "ijklmopq"[:len(out)]), len(out) - len(shape)
    return tuple(letters[d] if d < lead or (shape[d - lead] == 1 and n != 1) else index[d - lead]
                 for d, n in enumerate(out))


def operand(shape: tuple[int, ...], place: Sequence[Any]) -> Place:
    """The element of an operand of `shape` that is met at `place` of what it was broadcast to."""
    return tuple(0 if n == 1 else i for n, i in zip(shape, place[len(place) - len(shape):], strict=True))


def affine(*terms: tuple[int, str], constant: int = 0) -> str:
    """"2p + r - 1" of (2, "p"), (1, "r") and the constant -1."""
    text = " + ".join((str(factor) if factor != 1 else "") + letter for factor, letter in terms)
    if not constant:
        return text or "0"
    return f"{text} {'-' if constant < 0 else '+'} {abs(constant)}" if text else str(constant)
