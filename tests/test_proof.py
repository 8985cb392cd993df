"""The proof table: what is right passes; a wrong gradient, size or distance fails its row, and the command with it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tinyres import models, nn
from tinyres.analysis import parity, proof
from tinyres.analysis.proof import Case, Row, prove
from tinyres.analysis.verdict import GradcheckResult
from tinyres.ops.conv import Conv2d
from tinyres.ops.norm import BatchNorm

SMALL = Case("resnet8", "option A", {"option": "A"}, 75_290, (8, 3, 4, 4), (4, 3, 8, 8), usual=True)
GOOD = Row("resnet8, option A", 75_290, None, {1: 6.5e-9, 2: 5e-10}, 2, dict.fromkeys(
    ("loss", "eval", *proof.EXACT), 2.5e-14), {"ours": 5e-4, "pytorch": 2e-3, "ratio": 0.25}, [])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One small network, few draws and directions."""
    monkeypatch.setattr(proof, "CASES", (SMALL, replace(SMALL, network="plain8", words="", options={}, usual=False)))
    monkeypatch.setattr(proof, "DRAWS", 2)
    monkeypatch.setattr(proof, "MORE", 1)
    monkeypatch.setattr(proof, "DIRECTIONS", 1)


@pytest.fixture
def rows(monkeypatch):
    """rows(row, ...): the command finds these."""
    return lambda *found: monkeypatch.setattr(proof, "prove_all", lambda cases, seed: iter(found))


# --- the measuring ----------------------------------------------------------------------------------------------------


def test_a_right_network_passes_every_bound(torch):
    row = prove(SMALL)
    assert (row.verdict, row.complaints, row.parameters) == ("passed", [], 75_290)
    assert row.gradcheck.keys() == {1, 2} and all(0 < error < proof.GRADCHECK for error in row.gradcheck.values())
    assert row.exact.keys() >= set(proof.EXACT) and all(0 <= value < 1e-11 for value in row.exact.values())
    assert row.float32["ratio"] == row.float32["ours"] / row.float32["pytorch"] <= proof.RATIO
    assert prove(SMALL, with_pytorch=False).gradcheck == row.gradcheck


@pytest.mark.parametrize("broken", ["batch norm", "convolution"])
def test_a_broken_backward_fails_the_row_and_the_command(tinyres_command, torch, monkeypatch, broken):
    """A sign in a fused kernel; a factor in a rule. Finite differences and PyTorch both see each."""
    if broken == "batch norm":
        right = BatchNorm.fused_backward
        monkeypatch.setattr(BatchNorm, "fused_backward", lambda self, grad: tuple(
            None if g is None else -g for g in right(self, grad)))
    else:
        rule = Conv2d.backward
        monkeypatch.setattr(Conv2d, "backward", lambda self, grad: tuple(
            None if g is None else g * 1.001 for g in rule(self, grad)))
    status, out, err = tinyres_command("claims proof --json")
    found = json.loads(out.splitlines()[-1])
    [row] = found["rows"]
    assert (status, found["passed"], row["verdict"]) == (1, False, "FAILED") and "1/1 resnet8, option A: FAILED" in err
    assert row["gradcheck"]["1"] > 1e-5 and any("gradcheck FAILED" in text for text in row["complaints"])
    assert row["exact"]["gradients"] > 1e-4 and row["exact"]["outputs"] > 1e-8
    assert any("gradients: " in text and "from PyTorch's in float64" in text for text in row["complaints"])


def test_a_wrong_forward_that_differentiates_well_is_seen_by_pytorch_only(torch, monkeypatch):
    model = parity.network

    def more_eps(*args):
        found = model(*args)
        for module in found.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps *= 1.01
        return found

    monkeypatch.setattr(parity, "network", more_eps)
    row = prove(SMALL)
    assert max(row.gradcheck.values()) < proof.GRADCHECK and row.exact["outputs"] > proof.PARITY
    assert row.verdict == "FAILED" and all("from PyTorch's in float64" in text for text in row.complaints)


def test_without_pytorch_the_rest_works(tinyres_command, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    status, out, err = tinyres_command("claims proof")
    assert status == 0 and "1 of 1 networks passed (PyTorch not installed: nothing was compared with it)" in out
    heading, row = out.splitlines()[:2]
    assert proof.MISSING in row and row.endswith("passed") and "75,290" in row and heading.split()[0] == "network"
    assert err.startswith("PyTorch not installed, so nothing is compared with it: pip install torch")
    assert not proof.has_pytorch() and prove(SMALL, with_pytorch=False).exact is None
    with pytest.raises(ModuleNotFoundError, match="pip install torch"):
        parity.pair("resnet8", {}, (4, 3, 8, 8), "float64")


def result(**found):
    return GradcheckResult({1: {"fc.weight": 2e-9}, 2: {"fc.weight": 1e-9}}, 1e-6, 1e-12, 3, "a check", **{
        "failures": [], "unclear": [], "notes": [], **found})


@pytest.mark.parametrize("patch, complaint", [
    ({"gradcheck": result(unclear=["a kink in every draw"])}, "gradcheck inconclusive: a kink in every draw"),
    ({"gradcheck": result(notes=["4 values per channel"])}, "gradcheck passed: 4 values per channel"),
    ({"gradcheck": result(failures=["the sign is wrong"])}, "gradcheck FAILED: the sign is wrong"),
    ({"exact": 2e-8}, "weights: 2.0e-08 from PyTorch's in float64, at most 1e-08 is right"),
    ({"exact": float("nan")}, "weights: nan from PyTorch's"),
    ({"rounding": (3e-3, 1e-3)}, "float32: 3.00 times as far from float64 as PyTorch, at most 2 is right"),
    ({"rounding": (float("nan"), 1e-3)}, "float32: nan times as far"),
    ({"published": 75_291}, "75,290 parameters, published are 75,291"),
    ({}, ""),
])
def test_each_bound_is_held(monkeypatch, patch, complaint):
    exact = {**GOOD.exact, "weights": patch.get("exact", 0.0)}
    monkeypatch.setattr(proof, "gradcheck", lambda *args, **kwargs: patch.get("gradcheck", result()))
    monkeypatch.setattr(parity, "pair", lambda *args: None)
    monkeypatch.setattr(parity, "exact_distances", lambda pair: exact)
    monkeypatch.setattr(parity, "rounding", lambda *args: patch.get("rounding", (2e-3, 1e-3)))
    row = prove(replace(SMALL, published=patch.get("published")))
    assert row.gradcheck == {1: 2e-9, 2: 1e-9} and row.redrawn == 3
    assert len(row.complaints) == bool(complaint) and complaint in "".join(row.complaints)
    json.dumps(row.as_dict(), allow_nan=False)


def test_the_options_and_the_point_of_a_row_reach_every_measurement(monkeypatch):
    seen = []
    monkeypatch.setattr(proof, "gradcheck", lambda model, images, **more: seen.append((
        model.bn1.bias.numpy()[0], images.shape, more["step"], more["seed"], more["order"])) or result())
    for name, found in (("pair", None), ("rounding", (1.0, 1.0))):
        monkeypatch.setattr(parity, name, lambda *args, found=found: seen.append(args) or found)
    monkeypatch.setattr(parity, "exact_distances", lambda pair: GOOD.exact)
    prove(replace(SMALL, shift=0.5, step=3e-6), 7)
    options = {"option": "A"}
    assert seen == [(0.5, (8, 3, 4, 4), 3e-6, 7, (1, 2)), ("resnet8", options, (4, 3, 8, 8), "float64", 7, 0.5),
                    ("resnet8", options, (4, 3, 8, 8), 7, 2, 0.5)]
    monkeypatch.setattr(proof, "MORE", 5)  # times as many draws of a small network
    prove(SMALL, 7)
    monkeypatch.setattr(proof, "SMALL", 10)
    prove(SMALL, 7)
    assert [args[-2] for args in seen[5::3]] == [10, 2]


def test_a_network_that_breaks_off_fails_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(proof, "has_pytorch", lambda: False)
    found = list(proof.prove_all([replace(SMALL, options={"option": "D"}), SMALL]))
    assert [row.verdict for row in found] == ["FAILED", "passed"]
    assert "ValueError: " in found[0].complaints[0] and "option must be one of A, B, C" in found[0].complaints[0]
    assert proof.cells(found[0])[3:-1] == ["-", "-", "0", *"-------"]


# --- the table --------------------------------------------------------------------------------------------------------


def test_all_networks_have_a_row_and_enough_values_for_their_norms():
    cases = real_cases()
    assert {case.network for case in cases} == set(models.names())
    assert len({case.name for case in cases}) == len(cases) and 8 <= sum(case.usual for case in cases) < 20
    for case in (case for case in cases if len(case.images) == 4):
        N, _, H, W = case.images
        shrinks = 32 if case.words == "ImageNet" else 8 if case.words == "CIFAR stem" else 4
        assert N * (H // shrinks) * (W // shrinks) >= 8, case.name


def real_cases():
    import importlib.util

    spec = importlib.util.spec_from_file_location("proof_again", proof.__file__)
    again = importlib.util.module_from_spec(spec)
    sys.modules["proof_again"] = again  # dataclasses look their module up
    spec.loader.exec_module(again)
    return again.CASES


def test_the_table_as_text_markdown_and_json(tinyres_command, rows):
    bad = replace(GOOD, name="plain8", published=3, exact={**GOOD.exact, "weights": np.inf}, complaints=["too far"])
    rows(GOOD, bad)
    status, out, err = tinyres_command("claims proof --out proof.md")
    lines = out.splitlines()
    assert status == 1 and lines[-2:] == ["1 of 2 networks passed.", "- plain8: too far"]
    assert lines[1].split() == ["resnet8,", "option", "A", "75,290", "-", "6.5e-09", "5.0e-10", "2", *["2.5e-14"] * 4,
                                "5.0e-04", "2.0e-03", "0.25", "passed"]
    assert "2/2 plain8: FAILED" in err or "2/1 plain8: FAILED" in err
    page = Path("proof.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 4 and {line.count("|") for line in table} == {len(proof.COLUMNS) + 1}
    assert "| plain8 | 75,290 | 3 |" in page and "FAILED |" in page and "- plain8: too far" in page
    assert "Made by `tinyres claims proof` on 20" in page and "cores" in page and "numpy" in page and "seed 0" in page
    status, out, err = tinyres_command("claims proof --markdown -q --seed 3")
    assert (status, err) == (1, "") and out.startswith("# The proof table\n") and "seed 3" in out
    rows(GOOD)
    status, out, _ = tinyres_command("claims proof --json -q")
    found = json.loads(out)
    assert (status, found["passed"], found["bounds"]) == (0, True, {"gradcheck": 1e-6, "parity": 1e-8, "ratio": 2.0})
    assert found["rows"][0]["exact"]["weights"] == 2.5e-14 and found["rows"][0]["verdict"] == "passed"
    assert {"date", "machine", "versions", "threads", "seed", "seconds", "kernels", "command"} <= found.keys()


def test_the_page_says_where_the_point_was_moved():
    assert "Shifts" not in proof.markdown([GOOD], "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "CASES", (replace(SMALL, shift=1.0),))
        page = proof.markdown([GOOD], "")
    assert "Shifts of all batch norms are 1 instead of 0 at the start in resnet8, option A:" in page
    assert page.endswith("bounds.\n") and max(len(line) for line in page.splitlines() if line[:1] != "|") <= 120


@pytest.mark.parametrize("line, status, message", [
    ("claims proof --model resnet21", 2, "--model: models.build: no network is called 'resnet21'; did you mean"),
    ("claims proof --all --model resnet8", 2, "--all: give --all or --model, not both"),
    ("claims proof --out nowhere/proof.md", 2, "--out: nowhere/proof.md is not a .md file in a folder that exists"),
    ("claims proof --out proof.txt", 2, "--out: proof.txt is not a .md file"),
    ("claims --json proof", 2, "--json: give it after proof"),
    ("claims prof", 2, "No such command 'prof'"),
])
def test_errors_of_the_command(tinyres_command, line, status, message):
    found, out, err = tinyres_command(line)
    assert (found, out) == (status, "") and message in err and len(err.splitlines()) == 1


def test_claims_lists_what_there_is(tinyres_command):
    status, out, err = tinyres_command("claims")
    assert (status, err) == (0, "") and out.startswith("tinyres claims proof: ")
    assert [claim["name"] for claim in json.loads(tinyres_command("claims --json")[1])["claims"]] == ["proof"]


def test_which_rows_are_made(tinyres_command, monkeypatch):
    made = []
    monkeypatch.setattr(proof, "prove_all", lambda cases, seed: made.append([c.name for c in cases]) or iter([GOOD]))
    for line in ("", "--all", "--model plain8", "--model plain8 --model resnet8"):
        assert tinyres_command(f"claims proof -q {line}")[0] == 0
    assert made == [["resnet8, option A"], ["resnet8, option A", "plain8"], ["plain8"], ["resnet8, option A", "plain8"]]
