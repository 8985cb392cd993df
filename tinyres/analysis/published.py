"""The numbers that papers print and that this project was given to test against, each with where it stands.

They are kept in reference_numbers.json and shown as quoted: `checked` says whether a number was counted again or only
remembered. Nothing is ever compared silently with a number that was not checked.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

FILE = "reference_numbers.json"


@dataclass(frozen=True)
class Number:
    """One number of a paper: `value` in `unit`, or a word, "fails", where the paper has one instead of a number.

    table: where it stands, "" if nowhere in print. what: what it is, in words. network: how models.build makes the
    network, like "resnet20" or "scaled_resnet depth=110 shortcut_scale=0.5", "" if it is no network's. checked: "yes"
    if it was counted or calculated again, "no" if it is quoted from memory or was measured elsewhere.
    """

    paper: str
    table: str
    what: str
    value: float | str
    unit: str
    network: str = ""
    checked: str = "no"
    note: str = ""

    @property
    def source(self) -> str:
        """Paper and table, as a reference in a text."""
        return f"{self.paper}, {self.table}" if self.table else self.paper

    def as_dict(self) -> dict[str, Any]:
        """The number as JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else f"{readable(self.value)} {self.unit}".replace(" %", "%")
        return f"{self.what}: {value} ({self.source})"


def readable(value: float) -> str:
    """A number as people write it: 269,722; 8.75; 3.4e+07."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e7):
        return f"{int(value):,}" if abs(value) < 1e10 else f"{float(value):.2g}"
    return f"{value:.4g}"


@functools.lru_cache(maxsize=1)
def _content() -> tuple[dict[str, str], tuple[Number, ...]]:
    text = resources.files("tinyres.analysis").joinpath(FILE).read_text(encoding="utf-8")
    found = json.loads(text)
    return found["papers"], tuple(Number(**number) for number in found["numbers"])


def numbers() -> tuple[Number, ...]:
    """All numbers, in the order of the file."""
    return _content()[1]


def papers() -> dict[str, str]:
    """The papers' full references by the short names that numbers carry."""
    return dict(_content()[0])


def find(words: str = "", **fields: Any) -> list[Number]:
    """The numbers whose `what` contains these words and whose fields equal those given; in the order of the file.

    find("test error", network="resnet20") is what papers say of ResNet-20's error. Raises TypeError for a field that a
    Number has not.
    """
    unknown = fields.keys() - Number.__dataclass_fields__.keys()
    if unknown:
        raise TypeError(f"published.find: a number has no field {sorted(unknown)[0]!r}; its fields are "
                        f"{', '.join(Number.__dataclass_fields__)}")
    return [number for number in numbers() if words.lower() in number.what.lower()
            and all(getattr(number, name) == value for name, value in fields.items())]


def one(words: str = "", **fields: Any) -> Number:
    """The only number that `find` finds. Raises LookupError if there are none or several, naming those nearest."""
    found = find(words, **fields)
    if len(found) == 1:
        return found[0]
    asked = ", ".join([repr(words), *(f"{name}={value!r}" for name, value in fields.items())])
    if found:
        raise LookupError(f"published.one: {asked} fits {len(found)} numbers, expected one: say more. They are "
                          + "; ".join(number.what for number in found[:5]))
    import difflib

    near = difflib.get_close_matches(words, [number.what for number in numbers()], 2, 0.3)
    raise LookupError(f"published.one: no number fits {asked}" + (f"; nearest are {'; '.join(near)}" if near else ""))
