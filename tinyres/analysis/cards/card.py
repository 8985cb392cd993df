"""A claim card: what a paper says, what we expect at a small scale and how we decide, all written before the run.

The prediction and the rule are part of the code; a record keeps the texts that the code had when it ran, so that a
later change of mind shows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from tinyres import random
from tinyres.analysis.cards import expect
from tinyres.analysis.published import Number
from tinyres.files import PathLike, write_atomically

BUDGETS = ("small", "gpu", "smoke")  # smoke: one step of a small network, only to see that a card works

DIGITS = 8  # significant ones that a record keeps

# What a record has at least.
SHOWN = {"name", "claim", "source", "quoted", "prediction", "expected", "rule", "experiment", "budget", "seeds",
         "results", "mean", "range", "verdict", "as_predicted", "seconds"}

# Variant -> quantity -> a number, or a list of numbers where the quantity is a curve.
Numbers = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Card:
    """A claim and its reduced experiment.

    claim, source: what is said, in a sentence, and by whom. quoted: the numbers printed there. prediction: what is
    expected here and why; expected: the verdict that it amounts to. expectations: the decision rule. experiment: in
    words, by budget. measure(budget, seed): runs it once; the same numbers for the same arguments on one machine.
    draw(record, path): its figure. revised: of a card whose experiment is not the first one, what became of that.
    """

    name: str
    claim: str
    source: str
    quoted: tuple[Number, ...]
    prediction: str
    expected: str
    expectations: tuple[expect.Expectation, ...]
    experiment: Mapping[str, str]
    measure: Callable[[str, int], Numbers]
    draw: Callable[[Mapping[str, Any], PathLike], None]
    revised: str = ""

    @property
    def rule(self) -> str:
        """The decision rule in words, made from the same values as the code that decides."""
        return expect.in_words(self.expectations)

    def verdict(self, results: expect.Results) -> str:
        """The verdict on results (variant -> quantity -> values, one a seed): one of expect.VERDICTS."""
        return expect.decide(self.expectations, results)

    def as_dict(self) -> dict[str, Any]:
        """The texts of the card, without a result."""
        return {"name": self.name, "claim": self.claim, "source": self.source,
                "quoted": [number.as_dict() for number in self.quoted], "prediction": self.prediction,
                "expected": self.expected, "rule": self.rule, "revised": self.revised}


def run(card: Card, budget: str = "small", seeds: Sequence[int] = (0, 1, 2), out: PathLike | None = None,
        made: Mapping[str, Any] | None = None, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run a card's experiment with each seed; returns its record, and writes it to OUT/NAME.json with OUT/NAME.png.

    made: what the record says besides, such as versions, machine and date. tell: is told of each seed that is done.
    The library's generator is put back where it was, also when the experiment raises. Raises ValueError for an unknown
    budget or no seeds, and what the experiment raises.
    """
    if budget not in BUDGETS:
        raise ValueError(f"cards.run: no budget {budget!r}: there are small and gpu")
    if not seeds:
        raise ValueError("cards.run: there are no seeds, expected one at least: pass (0, 1, 2)")
    from tinyres.kernels.cpu.threads import one_blas_thread  # only now: it costs the import of Numba

    began, before, measured = time.perf_counter(), random.get_state(), []
    try:
        for number, seed in enumerate(seeds, 1):
            random.manual_seed(seed)
            with one_blas_thread():  # the matrices are small, and threads of BLAS would fight those of the kernels
                measured.append(card.measure(budget, seed))
            tell(f"{card.name}: seed {seed}, {number} of {len(seeds)}, {time.perf_counter() - began:.0f} s")
    finally:
        random.set_state(before)
    results = together(measured)
    record = card.as_dict() | {
        "experiment": card.experiment[budget], "budget": budget, "seeds": list(seeds), "results": results,
        "mean": over_seeds(results, _mean), "range": over_seeds(results, _range), "verdict": card.verdict(results),
        "parts": expect.parts(card.expectations, results)}
    record["as_predicted"] = record["verdict"] == card.expected
    record |= {"seconds": round(time.perf_counter() - began, 1), **(made or {})}
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        card.draw(record, Path(out) / f"{card.name}.png")
        write_atomically(Path(out) / f"{card.name}.json", as_json(record))
    return record


def together(measured: Sequence[Numbers]) -> dict[str, dict[str, list[Any]]]:
    """Variant -> quantity -> the values of all seeds, with DIGITS digits, which the verdict is then made from."""
    return {variant: {quantity: [_rounded(numbers[variant][quantity]) for numbers in measured]
                      for quantity in quantities} for variant, quantities in measured[0].items()}


def _rounded(value: Any) -> Any:
    return [_rounded(one) for one in value] if isinstance(value, list) else float(f"{value:.{DIGITS}g}")


def over_seeds(results: expect.Results, of: Callable[[list[Any]], Any]) -> dict[str, dict[str, Any]]:
    """`of` the seeds' values, for every variant and quantity."""
    return {variant: {quantity: of(values) for quantity, values in quantities.items()}
            for variant, quantities in results.items()}


def _mean(values: list[Any]) -> Any:
    return [mean(column) for column in zip(*values, strict=True)] if isinstance(values[0], list) else mean(values)


def _range(values: list[Any]) -> list[Any]:
    if isinstance(values[0], list):
        columns = list(zip(*values, strict=True))
        return [[min(column) for column in columns], [max(column) for column in columns]]
    return [min(values), max(values)]


def as_json(record: Mapping[str, Any]) -> bytes:
    """A record as JSON that people can read too: a line a variant. Raises ValueError for NaN and infinity."""
    lines = []
    for key, value in record.items():
        text = json.dumps(value, allow_nan=False)
        if isinstance(value, dict) and value:
            text = "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}"
                                     for k, v in value.items()) + "}"
        lines.append(f" {json.dumps(key)}: {text}")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read(path: PathLike) -> dict[str, Any]:
    """A record from its JSON file. Raises ValueError if that is damaged or no record of a card."""
    try:
        record = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cards.read: {path} is damaged: {error}; run the card again") from error
    if not isinstance(record, dict) or not SHOWN <= record.keys():
        missing = sorted(SHOWN - record.keys()) if isinstance(record, dict) else sorted(SHOWN)
        raise ValueError(f"cards.read: {path} is no record of a card: it lacks {', '.join(missing)}")
    return record
