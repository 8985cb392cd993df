"""The quoted numbers: each is findable, says where it stands, and those that can be counted are counted again."""

import json
import math

import numpy as np
import pytest

from tinyres import models
from tinyres.analysis import published
from tinyres.models.mlp import inverse_sqrt

COUNTED = [n for n in published.numbers() if n.unit == "parameters" and n.network and n.what.startswith("parameters")]


def test_every_number_says_what_it_is_and_where_it_stands():
    numbers = published.numbers()
    assert len(numbers) > 80
    for number in numbers:
        assert number.paper in published.papers(), number
        assert number.what and number.unit and number.checked in ("yes", "no"), number
        assert isinstance(number.value, (int, float)) or number.value == "fails", number
        assert number.checked == "yes" or number.note, f"why it is not checked: {number}"
    keys = [(n.paper, n.table, n.what) for n in numbers]
    assert len(set(keys)) == len(keys), "a number stands there twice"


def network_of(number):
    """The network that a number names, "resnet20 option=B"."""
    name, *options = number.network.split()
    return name, {key: int(value) if value.isdigit() else value for key, value in (o.split("=") for o in options)}


@pytest.mark.parametrize("number", COUNTED, ids=lambda n: n.network)
def test_counted_parameters_are_those_of_our_networks(number, monkeypatch):
    name, options = network_of(number)
    monkeypatch.setattr("tinyres.random._generator", Zeros())
    assert sum(p.data.size for p in models.build(name, **options).parameters()) == number.value


class Zeros:
    """A generator of zeros, as sixty million random numbers take a while."""

    def standard_normal(self, shape, dtype):
        return np.zeros(shape, dtype)

    random = standard_normal


def test_printed_parameters_are_the_counted_ones_rounded():
    for printed in published.find("as printed"):
        counted = published.one("parameters", network=printed.network, unit="parameters", paper="tinyres")
        digits = 2 if printed.value < 1 else 1
        assert round(counted.value / 1e6, digits) == printed.value


def test_growth_in_theory_is_the_formula():
    for a in (1.0, 0.1, inverse_sqrt(50)):
        name = {1.0: "a = 1", 0.1: "a = 0.1"}.get(a, "a = 1/sqrt(50)")
        theory = (1 + a * a) ** 25
        (number,) = [n for n in published.find("in theory") if n.what.endswith(name)]
        assert math.isclose(number.value, theory, rel_tol=0.02)


def test_numbers_are_found_by_words_and_fields():
    assert published.one("test error", network="resnet20", paper="He et al. 2015").value == 8.75
    assert [n.value for n in published.find("test error", network="resnet56")] == [6.97, 5.89]
    assert published.find("no such words") == []
    assert "8.75% error (He et al. 2015, Table 6)" in str(published.find(network="resnet20", table="Table 6")[-1])
    assert json.loads(json.dumps(published.numbers()[0].as_dict()))["value"] == 269722


@pytest.mark.parametrize("call, error, message", [
    (lambda: published.one("test error"), LookupError, "fits 3[0-9] numbers, expected one: say more"),
    (lambda: published.one("test eror of ResNet-20"), LookupError, "no number fits 'test eror of ResNet-20'; nearest"),
    (lambda: published.find(papper="He"), TypeError, "a number has no field 'papper'; its fields are paper, table"),
])
def test_what_is_not_there_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()
