"""What a gradient check found, and how it says so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LISTED = 8    # so many failures are described one by one
CLEAR = 1e-3  # a ratio this close to 2 is called 2

CAUSES = (
    (-1.0, "the sign is wrong"),
    (2.0, "twice the right value: something is counted twice, or a factor is wrong"),
    (0.5, "half the right value: one of two uses is dropped, or a factor is wrong"),
    (0.0, "zero, though f depends on it: its contribution is dropped"),
    (1.0, "nearly right: a small term is wrong, or something inside has fewer digits"),
)


def norm(x: Any) -> float:
    """The 2-norm of a number or an array."""
    return float((x * x).sum()) ** 0.5 if hasattr(x, "sum") else abs(float(x))


def relative_error(analytic: Any, numeric: Any, floor: float) -> float:
    """|a - n| / max(|a|, |n|, floor), for numbers or, in norms, for arrays; infinite where one is not finite."""
    difference, size = norm(analytic - numeric), max(norm(analytic), norm(numeric), floor)
    return difference / size if np.isfinite(difference) and size else float("inf") if difference else 0.0


@dataclass
class Probe:
    """A derivative along one direction, from the backward pass and from finite differences: numbers, or one array each
    for a second derivative. Errors are relative to at least `floor`; `noise` is what rounding may do to `numeric`."""

    analytic: Any
    numeric: Any
    floor: float
    noise: float
    place: str = ""
    missing: bool = False  # the gradient is None
    kink: bool = False     # the slopes to both sides of the point stay apart

    @property
    def error(self) -> float:
        return relative_error(self.analytic, self.numeric, self.floor)

    @property
    def silent(self) -> bool:
        """Both sides say, within rounding, that f does not depend on this: nothing was checked."""
        return max(norm(self.analytic), norm(self.numeric)) <= self.noise


@dataclass
class Comparison:
    """All probes of one variable at one order."""

    order: int
    name: str
    probes: list[Probe] = field(default_factory=list)

    @property
    def error(self) -> float:
        return max((p.error for p in self.probes), default=0.0)

    @property
    def silent(self) -> bool:
        return all(p.silent for p in self.probes)

    def describe(self) -> str:
        """The worst probe in numbers, and what the numbers look like."""
        worst = max(self.probes, key=lambda p: p.error)
        kind, of = ("second derivative: ", "norms: ") if self.order == 2 else ("", "")
        return (f"{self.name}{worst.place}: {kind}relative error {worst.error:.1e}; {of}analytic "
                f"{norm_or_value(worst.analytic):.6g}, numeric {norm_or_value(worst.numeric):.6g}; {self.cause()}")

    def cause(self) -> str:
        """The likely mistake, from the ratio of analytic to numeric values."""
        if any(p.kink for p in self.probes):
            return "the slopes to its two sides differ: f has a kink here that no op recorded"
        if any(p.missing for p in self.probes):
            return "the gradient is None: an op between it and the output passes none on"
        aa, an, nn = (sum(float((x * y).sum()) if hasattr(x, "sum") else x * y for x, y in pairs) for pairs in (
            [(p.analytic, p.analytic) for p in self.probes], [(p.analytic, p.numeric) for p in self.probes],
            [(p.numeric, p.numeric) for p in self.probes]))
        if not np.isfinite(aa):
            return "the gradient is not finite"
        if nn <= sum(p.noise**2 for p in self.probes):
            return "f does not depend on it, but a gradient arrives"
        ratio = an / nn
        spread = max(aa - ratio * an, 0.0) ** 0.5  # the norm of what the ratio leaves unexplained
        if spread <= CLEAR * nn**0.5:
            for value, words in CAUSES:
                if abs(ratio - value) < CLEAR:
                    return words
            if sum(getattr(p.analytic, "size", 1) for p in self.probes) > 1:
                return f"{ratio:.4g} times the right value, everywhere: a factor is wrong"
        return "neither a sign nor a factor: a term is missing or too much, an axis is swapped, or an index is off"


def norm_or_value(x: Any) -> float:
    """The norm of an array; a number as it is, with its sign."""
    return norm(x) if hasattr(x, "sum") else float(x)


@dataclass
class GradcheckResult:
    """The verdict of a gradient check; true if it passed, and in words as str().

    errors: order -> name of a variable -> its largest relative error. noise: what rounding may do to a difference,
    c eps |v f| / h with a c that is measured at the point by rounding its numbers differently. An error is relative to
    at least noise / tolerance, so that what lies within the noise passes.
    redrawn: directions drawn again, because the ends of one chose differently at a ReLU or a maximum. failures,
    unclear (a kink in every draw), notes: in words.
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
    def verdict(self) -> str:
        """"passed", "FAILED", or "inconclusive": nothing failed, but something could not be checked."""
        return "FAILED" if self.failures else "inconclusive" if self.unclear else "passed"

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"

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
        lines += [f"  {text}" for text in shortened(self.failures, "more, further from the output")]
        lines += [f"  unclear: {text}" for text in shortened(self.unclear, "more that are unclear")]
        for order, errors in self.errors.items():
            worst = max(errors, key=errors.__getitem__, default=None)
            if worst is not None:
                lines.append(f"  order {order}: largest relative error {errors[worst]:.1e} ({worst})")
        lines.append(f"  tolerance {self.tolerance:.0e}; rounding noise of a difference about {self.noise:.0e}")
        if self.redrawn:
            lines.append(f"  {self.redrawn} times a direction was drawn again, as its ends chose differently at a kink")
        return "\n".join(lines + [f"  note: {text}" for text in self.notes])


def shortened(texts: list[str], rest: str) -> Iterable[str]:
    """The first few texts, and how many more there are."""
    return texts[:LISTED] + ([f"and {len(texts) - LISTED} {rest}"] if len(texts) > LISTED else [])
