"""Claim cards: each rule can give each verdict, a card runs and its record survives the disk, records fit the code."""

import importlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tinyres import data, random
from tinyres.analysis import cards
from tinyres.analysis.cards import card as one_card
from tinyres.analysis.cards import expect, training
from tinyres.analysis.cards.expect import Above, Near
from tinyres.state import no_grad

ROOT = Path(__file__).resolve().parents[1]
RECORDED = sorted((ROOT / "benchmarks" / "results" / "claims").glob("*.json"))
CARDS = [cards.named(name) for name in cards.NAMES]
by_card = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)


# --- decision rules ---------------------------------------------------------------------------------------------------


def numbers(*differences):
    """Results in which b is 1 in each seed and a exceeds it by these."""
    return {"a": {"loss": [1.0 + d for d in differences]}, "b": {"loss": [1.0] * len(differences)}}


@pytest.mark.parametrize("differences, verdict", [
    ((0.5, 0.6, 0.7), "reproduced"), ((0.9, 0.9, 0.01), "reproduced"), ((0.5,), "reproduced"),
    ((0.1, 0.2, 0.3), "ordering only"), ((0.01,), "ordering only"),
    ((2.0, 2.0, -0.1), "not at this scale"), ((0.0, 0.9, 0.9), "not at this scale"),
    ((-0.1, -0.2, -0.3), "not at this scale"), ((0.0, 0.0, 0.0), "not at this scale"),
    ((-0.5, -0.6, -0.7), "contradicted"),
])
def test_above_wants_every_seed_and_the_mean(differences, verdict):
    assert Above("a", "b", "loss", 0.5).verdict(numbers(*differences)) == verdict


@pytest.mark.parametrize("differences, verdict", [
    ((0.1, -0.1, 0.4), "reproduced"), ((0.5, 0.5, 0.5), "reproduced"), ((-0.5,), "reproduced"),
    ((0.6, 0.6, 0.6), "not at this scale"), ((9.0, 9.0, -0.1), "not at this scale"),
    ((1.1, 1.1, 1.1), "contradicted"), ((-1.1, -9.0, -0.1), "contradicted"),
])
def test_near_wants_the_mean_alone(differences, verdict):
    assert Near("a", "b", "loss", 0.5).verdict(numbers(*differences)) == verdict


def test_a_card_has_the_verdict_of_what_fares_worst():
    good, weak = Above("a", "b", "loss", 0.1), Above("a", "b", "loss", 9.0)
    bad, open_ = Above("b", "a", "loss", 0.1), Near("a", "b", "loss", 0.3)
    found = numbers(0.5, 0.5)
    assert expect.decide([good], found) == "reproduced"
    assert expect.decide([good, weak], found) == "ordering only"
    assert expect.decide([good, weak, open_], found) == "not at this scale"
    assert expect.decide([open_, bad, good], found) == "contradicted"


def satisfying(expectations):
    """Results of three seeds in which everything that is expected holds, with a fifth to spare."""
    value = {(name, e.quantity): 0.0 for e in expectations
             for name in ((e.higher, e.lower) if isinstance(e, Above) else (e.one, e.other))}
    for _ in range(50):
        for e in expectations:
            if isinstance(e, Above):
                least = value[e.lower, e.quantity] + 1.2 * e.by
                value[e.higher, e.quantity] = max(value[e.higher, e.quantity], least)
            else:
                value[e.one, e.quantity] = value[e.other, e.quantity] = max(value[e.one, e.quantity],
                                                                            value[e.other, e.quantity])
    results = {}
    for (name, quantity), found in value.items():
        results.setdefault(name, {})[quantity] = [found] * 3
    return results


def shifted(results, e, sign, by):
    """The results with the higher variant of an expectation moved by sign * by in the three seeds."""
    moved = {name: dict(quantities) for name, quantities in results.items()}
    lower = moved[e.lower][e.quantity][0]
    moved[e.higher][e.quantity] = [lower + s * by for s in sign]
    return moved


@by_card
def test_each_cards_rule_can_give_each_verdict(card):
    best = satisfying(card.expectations)
    assert card.verdict(best) == "reproduced"
    ordered = [e for e in card.expectations if isinstance(e, Above)]
    assert ordered, "without an ordering there can be no verdict 'ordering only'"
    reached = set()
    for e in ordered:
        for sign, by in (((1, 1, 1), 0.5 * e.by), ((1, 1, -1), 0.5 * e.by), ((-1, -1, -1), 2 * e.by)):
            reached.add(card.verdict(shifted(best, e, sign, by)))
    assert reached >= {"ordering only", "not at this scale", "contradicted"}


@by_card
def test_each_card_says_what_it_is(card):
    assert card.expected in cards.VERDICTS and card.quoted
    assert set(card.experiment) == set(cards.BUDGETS)
    for text in (card.claim, card.prediction, card.rule, *card.experiment.values()):
        assert text.strip().endswith(".") and "  " not in text and text.isascii(), text
    for e in card.expectations:
        assert e.quantity in card.rule
    assert cards.named(card.name.replace("-", "_")) is card


# --- running ----------------------------------------------------------------------------------------------------------


@by_card
def test_each_card_runs(card, tmp_path):
    """One step of small networks: the numbers mean nothing, but all of them are there, finite, and survive the disk."""
    random.manual_seed(7)
    before = random.get_state()
    record = cards.run(card, "smoke", (3, 4), tmp_path / "new", {"machine": "none", "date": "never"})
    assert random.get_state() == before
    assert cards.read(tmp_path / "new" / f"{card.name}.json") == json.loads(json.dumps(record))
    assert (tmp_path / "new" / f"{card.name}.png").read_bytes().startswith(b"\x89PNG")
    assert record["verdict"] == card.verdict(record["results"]) and record["verdict"] in cards.VERDICTS
    assert (record["prediction"], record["rule"], record["seeds"]) == (card.prediction, card.rule, [3, 4])
    assert {"name", "claim", "source", "quoted", "experiment", "seconds", "machine", "date"} <= record.keys()
    for variant, quantities in record["results"].items():
        for quantity, values in quantities.items():
            found = np.array(values, dtype=float)
            assert len(found) == 2 and np.isfinite(found).all(), (variant, quantity)
            assert np.allclose(record["mean"][variant][quantity], found.mean(axis=0), rtol=1e-12)
            assert np.allclose(record["range"][variant][quantity], [found.min(axis=0), found.max(axis=0)])


@pytest.mark.parametrize("name", ["degradation", "shortcut-scaling", "activation-order", "residual-scale",
                                  "article-readings", "weight-sharing", "shared-linear"])
def test_the_networks_of_the_gpu_budget_can_be_built(name):
    """They are never trained here; of those the papers name, ResNet-110 has its number of parameters."""
    images = data.Dataset(np.zeros((2, 3, 32, 32), np.uint8), [0, 1], map(str, range(10)), [0.5] * 3, [0.2] * 3)
    variants = importlib.import_module(f"tinyres.analysis.cards.{name.replace('-', '_')}").variants("gpu")
    networks = variants if isinstance(variants, dict) else {**variants[0], **variants[1]}
    built = {variant: network.build(images) for variant, network in networks.items()}
    if name == "shortcut-scaling":
        assert training.count(built["identity"]) == 1_727_962
    with no_grad():
        assert all(network.eval()(images.take([0])[0]).shape == (1, 10) for network in built.values())


def test_a_seed_gives_the_same_numbers_again():
    measure = cards.named("shared-linear").measure
    assert measure("smoke", 5) == measure("smoke", 5) != measure("smoke", 6)


def test_a_diverged_network_is_recorded_with_finite_numbers():
    variants = {"hot": training.network("plain_mlp", depth=3)}
    plan = training.recipe("smoke", 1, lr=1e30, images=96)
    found = training.compare(variants, plan, 0)["hot"]
    assert found["diverged"] == 1.0 and found["train loss"] <= training.TOP_LOSS
    assert training.finite(float("nan")) == training.finite(float("inf")) == training.TOP_LOSS


def test_state_is_put_back_when_an_experiment_fails(tmp_path):
    class Broken(Exception):
        pass

    def measure(budget, seed):
        random.key()
        raise Broken

    card = cards.named("shattering")
    broken = one_card.Card(**{**vars(card), "measure": measure})
    before = random.get_state()
    with pytest.raises(Broken):
        cards.run(broken, "smoke", (0,), tmp_path)
    assert random.get_state() == before and not list(tmp_path.iterdir())


def damaged(tmp_path, text):
    path = tmp_path / "card.json"
    path.write_text(text)
    return path


@pytest.mark.parametrize("call, message", [
    (lambda tmp: cards.named("degredation"), "no claim card 'degredation'. Did you mean 'degradation'[?] There are"),
    (lambda tmp: cards.run(CARDS[0], "large"), "cards.run: no budget 'large': there are small and gpu"),
    (lambda tmp: cards.run(CARDS[0], "smoke", ()), "cards.run: there are no seeds"),
    (lambda tmp: cards.read(damaged(tmp, "{")), "card.json is damaged: .*; run the card again"),
    (lambda tmp: cards.read(damaged(tmp, '{"name": 1}')), "is no record of a card: it lacks as_predicted, budget"),
    (lambda tmp: cards.read(damaged(tmp, json.dumps(dict.fromkeys(one_card.SHOWN - {"quoted"})))),
     "is no record of a card: it lacks quoted$"),
    (lambda tmp: cards.read(damaged(tmp, "[]")), "is no record of a card"),
])
def test_errors_say_what_to_do(call, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)


# --- records ----------------------------------------------------------------------------------------------------------


def test_recorded_cards_keep_the_prediction_and_the_rule():
    for path in RECORDED:
        record, card = cards.read(path), cards.named(path.stem)
        assert (record["prediction"], record["expected"], record["rule"]) == (
            card.prediction, card.expected, card.rule), f"{path.name}: the card was changed after it was run"
        assert record["verdict"] == card.verdict(record["results"]), path.name
        assert record["parts"] == expect.parts(card.expectations, record["results"])
        assert record["revised"] == card.revised
        assert record["budget"] != "smoke" and record["experiment"] == card.experiment[record["budget"]]
        assert path.with_suffix(".png").is_file()
    assert {path.stem for path in RECORDED} == set(cards.NAMES)


def test_a_card_that_is_not_the_first_version_names_the_first_record():
    for card in map(cards.named, cards.NAMES):
        if card.revised:
            first = ROOT / "benchmarks" / "results" / "claims" / "first" / f"{card.name}.json"
            assert str(first.relative_to(ROOT)) in card.revised
            assert cards.read(first)["experiment"] != card.experiment["small"]


def test_the_readme_counts_the_verdicts():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    counts = Counter(cards.read(path)["verdict"] for path in RECORDED)
    assert f"gave: {', '.join(f'{counts[v]} {v}' for v in expect.VERDICTS if counts[v])} (" in text


# --- the command ------------------------------------------------------------------------------------------------------


def test_claims_lists_every_card(tinyres_command):
    status, out, err = tinyres_command("claims")
    assert (status, err) == (0, "") and all(f"  {name} " in out for name in cards.NAMES)
    listed = json.loads(tinyres_command("claims --json")[1])["cards"]
    assert [found["name"] for found in listed] == list(cards.NAMES) and all(found["claim"] for found in listed)


def test_a_card_is_run_recorded_and_shown(tinyres_command):
    status, out, err = tinyres_command("claims show shattering")
    assert status == 0 and "make one: tinyres claims run shattering" in out and "Prediction (reproduced): " in out
    status, out, err = tinyres_command("claims run shattering --budget smoke --seeds 2 --json")
    record = json.loads(out.splitlines()[-1])
    assert status == 0 and record == cards.read("claims/shattering.json") and record["seeds"] == [0, 1]
    assert {"versions", "machine", "date", "command"} <= record.keys() and "Prediction (" in err
    status, out, err = tinyres_command("claims show shattering")
    assert status == 0 and f"Verdict: {record['verdict']} (" in out and "Quoted:" in out
    assert "autocorrelation" not in out.split("mean (lowest to highest)")[1], "curves are for the figure"
    assert json.loads(tinyres_command("claims show claims/shattering.json --json")[1]) == record
    changed = record | {"prediction": "Something else."}
    Path("claims/shattering.json").write_bytes(one_card.as_json(changed))
    assert "The card has changed since" in tinyres_command("claims show shattering")[1]


@pytest.mark.parametrize("line, status, message", [
    ("claims run degredation", 2, "NAME: no claim card 'degredation'. Did you mean 'degradation'?"),
    ("claims run paths --budget large", 2, "--budget: 'large' is none of small, gpu."),
    ("claims run paths --seeds 0", 2, "'--seeds': '0' is not a whole number from 1 to 100"),
    ("claims run paths --out no/such/folder", 2, "--out: no/such/folder is not a folder that is there or can be made"),
    ("claims show paths --out nowhere", 2, "--out: there is no nowhere/paths.json; run it: tinyres claims run paths"),
    ("claims show none.json", 1, "none.json"),
])
def test_errors_of_the_commands(tinyres_command, line, status, message):
    found, out, err = tinyres_command(line)
    assert (found, out) == (status, "") and message in err and len(err.splitlines()) == 1
