"""Decision rules: what a card expects of its numbers, in words and as code made from the same values.

An expectation compares two variants seed by seed, as each seed starts both from its own draw of weights and batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

REPRODUCED = "reproduced"
ORDERING = "ordering only"
NOT_HERE = "not at this scale"
CONTRADICTED = "contradicted"
VERDICTS = (REPRODUCED, ORDERING, NOT_HERE, CONTRADICTED)
WORST_FIRST = (CONTRADICTED, NOT_HERE, ORDERING, REPRODUCED)

# Variant -> quantity -> its values, one a seed.
Results = Mapping[str, Mapping[str, list[Any]]]


def differences(results: Results, one: str, other: str, quantity: str) -> list[float]:
    """The quantity of `one` minus that of `other`, seed by seed. Raises KeyError for what was not measured."""
    return [float(a) - float(b) for a, b in zip(results[one][quantity], results[other][quantity], strict=True)]


def amount(value: float, unit: str) -> str:
    """A number with its unit, of which there is one at most: 1 point, 0.5 points."""
    return f"{value:g} {unit.removesuffix('s') if value == 1 else unit}".strip()


@dataclass(frozen=True)
class Above:
    """The quantity of `higher` exceeds that of `lower`, by `by` on average.

    reproduced: in every seed, and by that much on average. ordering only: in every seed, by less. contradicted: in
    every seed the other way round, and by that much on average. Otherwise not at this scale.
    """

    higher: str
    lower: str
    quantity: str
    by: float
    unit: str = ""

    def differences(self, results: Results) -> list[float]:
        """By how much the quantity of `higher` exceeds that of `lower`, seed by seed."""
        return differences(results, self.higher, self.lower, self.quantity)

    def verdict(self, results: Results) -> str:
        """Which of VERDICTS the numbers give."""
        found = self.differences(results)
        if all(difference > 0 for difference in found):
            return REPRODUCED if mean(found) >= self.by else ORDERING
        return CONTRADICTED if all(difference < 0 for difference in found) and -mean(found) >= self.by else NOT_HERE

    def __str__(self) -> str:
        return (f"{self.quantity} of {self.higher!r} above that of {self.lower!r} in every seed, on average by at "
                f"least {amount(self.by, self.unit)} (by less: {ORDERING}; as much below in every seed: "
                f"{CONTRADICTED})")


@dataclass(frozen=True)
class Near:
    """The quantity of `one` and that of `other` differ by `within` at most on average.

    reproduced: so. contradicted: they differ by more than twice that on average, in every seed the same way. Otherwise
    not at this scale.
    """

    one: str
    other: str
    quantity: str
    within: float
    unit: str = ""

    def differences(self, results: Results) -> list[float]:
        """The quantity of `one` minus that of `other`, seed by seed."""
        return differences(results, self.one, self.other, self.quantity)

    def verdict(self, results: Results) -> str:
        """Which of VERDICTS the numbers give, never "ordering only"."""
        found = self.differences(results)
        if abs(mean(found)) <= self.within:
            return REPRODUCED
        one_way = all(difference > 0 for difference in found) or all(difference < 0 for difference in found)
        return CONTRADICTED if one_way and abs(mean(found)) > 2 * self.within else NOT_HERE

    def __str__(self) -> str:
        return (f"{self.quantity} of {self.one!r} and of {self.other!r} at most {amount(self.within, self.unit)} apart "
                f"on average (more than {amount(2 * self.within, self.unit)}, in every seed the same way: "
                f"{CONTRADICTED})")


Expectation = Above | Near


def decide(expectations: Iterable[Expectation], results: Results) -> str:
    """The verdict on all expectations: that of the one which fares worst."""
    found = {expectation.verdict(results) for expectation in expectations}
    return next(verdict for verdict in WORST_FIRST if verdict in found)


def parts(expectations: Iterable[Expectation], results: Results) -> list[dict[str, Any]]:
    """Each expectation in words, its own verdict and the differences that decide it, one a seed."""
    return [{"expected": str(expectation), "verdict": expectation.verdict(results),
             "differences": expectation.differences(results)} for expectation in expectations]


def in_words(expectations: Iterable[Expectation]) -> str:
    """The rule as a text."""
    return (f"{REPRODUCED.capitalize()} if all of this holds, else the verdict of what fares worst, {NOT_HERE!r} where "
            "nothing else is said: " + "; ".join(str(expectation) for expectation in expectations) + ".")
