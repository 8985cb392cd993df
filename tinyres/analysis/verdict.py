"""What a gradient check found, and how it says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

LISTED = 8       # so many failures are described one by one
CLEAR = 1e-3     # a ratio within this of 2 is called 2
# Numbers below this share of a variable's typical ones are compared as if they had it: a difference has no more digits.
SMALL = 1e-3

CAUSES = (
    (-1.0, "the sign is wrong"),
    (2.0, "twice the right value: something is counted twice, or a factor 2 is missing in the forward pass"),
    (0.5, "half the right value: one of two uses is dropped, or a factor 2 is missing"),
    (0.0, "zero, though f depends on it: its contribution is dropped or multiplied by zero"),
)


@dataclass
class Comparison:
    """What the backward pass claims about one variable and what finite differences measure, along one or more probes.

    A probe gives a number (order 1) or a vector (order 2); `floors` are the smallest sizes that errors are relative to.
    """

    order: int
    name: str
    analytic: list[Any] = field(default_factory=list)
    numeric: list[Any] = field(default_factory=list)
    floors: list[float] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    missing: bool = False  # the gradient is None
    kink: bool = False     # the slopes to both sides of the base point differ

    def add(self, analytic: Any, numeric: Any, floor: float, place: str = "") -> None:
        self.analytic.append(analytic)
        self.numeric.append(numeric)
        self.floors.append(floor)
        self.places.append(place)

    @property
    def errors(self) -> list[float]:
        """|a - n| / max(|a|, |n|, floor) for each probe; infinite where a or n is not finite."""
        return [relative_error(*probe) for probe in zip(self.analytic, self.numeric, self.floors, strict=True)]

    @property
    def error(self) -> float:
        return max(self.errors, default=0.0)

    @property
    def silent(self) -> bool:
        """Both sides say that nothing depends on this variable, within rounding: nothing was checked."""
        return all(max(size(a), size(n)) <= 0.01 * floor
                   for a, n, floor in zip(self.analytic, self.numeric, self.floors, strict=True))

    def describe(self) -> str:
        """The worst probe in numbers, and what the numbers look like."""
        worst = int(np.argmax(self.errors))
        a, n = self.analytic[worst], self.numeric[worst]
        what = ("analytic {:.6g}, numeric {:.6g}" if np.ndim(a) == 0 else "norms: analytic {:.6g}, numeric {:.6g}")
        second = "" if self.order == 1 else "second derivative: "
        return (f"{self.name}{self.places[worst]}: {second}relative error {self.error:.1e}, "
                f"{what.format(*((a, n) if np.ndim(a) == 0 else (size(a), size(n))))}; {self.cause()}")

    def cause(self) -> str:
        """The likely mistake, from the ratio of analytic to numeric values."""
        if self.kink:
            return "the slopes to the two sides differ: f has a kink here that no op recorded"
        if self.missing:
            return "its gradient is None: an op between it and the output passes no gradient on"
        a, n = (np.concatenate([np.ravel(x) for x in side]) for side in (self.analytic, self.numeric))
        if not np.isfinite(a).all():
            return "the gradient is not finite"
        if not n.any():
            return "f does not depend on it, but a gradient arrives"
        ratio = float(a @ n) / float(n @ n)
        if np.linalg.norm(a - ratio * n) <= CLEAR * np.linalg.norm(n):
            for value, words in CAUSES:
                if abs(ratio - value) < CLEAR:
                    return words
            if len(n) > 1:
                return f"{ratio:.4g} times the right value, everywhere: a factor is wrong"
        return "neither a sign nor a factor: a term is missing, an axis is swapped, or an index is off"


def size(x: Any) -> float:
    return float(np.linalg.norm(np.ravel(x)))


def relative_error(analytic: Any, numeric: Any, floor: float) -> float:
    """|a - n| / max(|a|, |n|, floor), for numbers or, in norms, for vectors."""
    error = size(analytic - numeric) / max(size(analytic), size(numeric), floor)
    return error if np.isfinite(error) else float("inf")


@dataclass
class GradcheckResult:
    """The verdict of a gradient check; true if it passed, and in words as str().

    errors: order -> name -> largest relative error, |a - n| / max(|a|, |n|, floor). noise: the rounding error expected of
    a difference; the floor is noise / tolerance, so what lies below the noise passes and what stands out fails.
    redrawn: how many directions were drawn again because a choice differed at their ends. unclear: what had a kink in
    every draw. failures, notes: in words.
    """

    errors: dict[int, dict[str, float]]
    tolerance: float
    noise: float
    redrawn: int
    scope: str
    failures: list[str]
    unclear: list[str]
    notes: list[str]

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"

    @property
    def verdict(self) -> str:
        """"passed", "FAILED", or "inconclusive" if nothing failed but something could not be checked."""
        return "FAILED" if self.failures else "inconclusive" if self.unclear else "passed"

    @property
    def order(self) -> tuple[int, ...]:
        return tuple(self.errors)

    @property
    def max_relative_error(self) -> float:
        return max((e for errors in self.errors.values() for e in errors.values()), default=0.0)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        lines = [f"{self.verdict}: {self.scope}"]
        lines += [f"  {text}" for text in self.failures[:LISTED]]
        if len(self.failures) > LISTED:
            lines.append(f"  and {len(self.failures) - LISTED} more; the first is nearest to the output, so look there")
        lines += [f"  not checked: {text}" for text in self.unclear[:LISTED]]
        if len(self.unclear) > LISTED:
            lines.append(f"  and {len(self.unclear) - LISTED} more not checked")
        for order, errors in self.errors.items():
            if errors:
                name = max(errors, key=errors.__getitem__)
                lines.append(f"  order {order}: largest relative error {errors[name]:.1e} ({name}), tolerance "
                             f"{self.tolerance:.0e}, rounding noise {self.noise:.0e}")
        if self.redrawn:
            lines.append(f"  {self.redrawn} directions were drawn again: a ReLU or a maximum chose differently at their ends")
        return "\n".join(lines + [f"  note: {text}" for text in self.notes])
