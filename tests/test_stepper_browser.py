"""The stepper's page in headless Chromium with the network off: its numbers are the engine's own, a pass that ended
early is explained, and a step takes a moment only."""

import re
from statistics import median

import pytest
from stepper_pages import loss_of, network

import tinyres as tr
from tinyres import kernels, models
from tinyres.analysis.norms import share
from tinyres.stepper.summarise import summarise

pytest_plugins = "visits"


def what_comes_to_blocks(model):
    """Of each residual block, the last first: what came to its input in the order in which it came, and the sum; from a
    backward pass of our own."""
    entrances, brought, forks = set(), {}, []
    blocks = [block for block in model.modules() if isinstance(block, models.blocks.Block)]
    for block in blocks:
        block.register_forward_pre_hook(lambda module, args: entrances.add(args[0].edge))
    with tr.unfused():
        loss = loss_of(model)
    for event in loss.backward_steps():
        if event.kind == "ready" and event.node in entrances:
            forks.append((brought[event.node], event.grad.copy(order="K")))
        for edge, part in zip(event.node.edges, event.contributions, strict=False):
            if edge in entrances:
                brought.setdefault(edge, []).append(part.copy(order="K"))  # summed in the order of the memory
    assert len(forks) == len(blocks) > 0
    return forks


def steps_of(trace, view="blocks"):
    return trace.block_steps if view == "blocks" else trace.backward


@pytest.mark.parametrize("name, options", [("resnet8", {}), ("projection", {"option": "B"})])
def test_the_numbers_at_the_forks_are_the_engines_own(name, options, visit):
    kernels.use_kernels("reference")
    seen = visit(name)
    for parts, whole in what_comes_to_blocks(network(**options)):
        seen.press("f")
        rows = "#fork tr.arrival"
        assert seen.floats(rows, "norm") == [summarise(part).norm for part in parts]
        assert seen.floats("#fork[data-total-norm]", "total-norm") == [summarise(whole).norm]
        shares = [share(part, whole) for part in parts]
        assert seen.floats(rows, "share") == pytest.approx(shares, rel=1e-9)
        assert sum(seen.floats(rows, "share")) == pytest.approx(1)
        (identity,) = seen.floats("#fork[data-identity-share]", "identity-share")
        assert identity in seen.floats(rows, "share")
    at = seen.state()["step"]
    seen.press("f")
    assert seen.state()["step"] == at  # that was the last


@pytest.mark.parametrize("view", ["blocks", "ops"])
def test_every_step_shows_what_the_recording_holds(view, visit, pages):
    trace = pages["hand"][0].trace
    seen = visit("hand")
    if view == "ops":
        seen.press("v")
    for place, id in enumerate(steps_of(trace, view)):
        assert seen.state() == {"view": view, "direction": "backward", "step": place}
        part = (trace.groups if view == "blocks" else trace.nodes)[id]
        brought = [i.contribution.norm for i in part.inputs if i.contribution is not None]
        assert seen.floats("#contributions > .contribution", "norm") == brought
        assert seen.page.is_hidden("#fork") == (part.fork is None)
        if part.fork is not None:
            assert seen.floats("#fork tr.arrival", "norm") == [arrival.norm for arrival in part.fork.arrivals]
            assert seen.floats("#fork tr.arrival", "consumer") == [arrival.consumer for arrival in part.fork.arrivals]
        assert seen.page.evaluate("[...document.querySelectorAll('#graph g.current')].map(e => Number(e.dataset.id))") \
            == [id]
        seen.press("n")


def test_the_ledger_ends_empty_and_never_holds_more_than_at_the_loss(visit, pages):
    trace = pages["resnet8"][0].trace
    seen = visit("resnet8")
    held = []
    for _ in trace.block_steps:
        (before,), (after,) = (seen.floats("#kept [data-held]", f"held-{when}") for when in ("before", "after"))
        assert 0 <= after <= before <= trace.held
        held += [before, after]
        seen.press("n")
    assert held[0] == trace.held > 0 and held[-1] == 0
    assert held[1:-1:2] == held[2::2]  # what one step leaves is what the next finds


@pytest.mark.parametrize("name, kind, word", [("resnet8", "addition", "copied"),
                                              ("concatenation", "concatenation", "split"),
                                              ("bottleneck", "projection", "project")])
def test_a_join_says_what_kind_it_is(name, kind, word, visit, pages):
    trace = pages[name][0].trace
    kinds = [next((trace.nodes[n].join.kind for n in trace.groups[id].nodes if trace.nodes[n].join), "")
             if trace.groups[id].kind == "join" else "" for id in trace.block_steps]
    seen = visit(name)
    assert seen.page.is_hidden("#join")  # the loss is none
    seen.go(kinds.index(kind))
    assert word in seen.text("#join")


def test_the_block_on_paper_is_read_number_by_number(visit, pages):
    trace = pages["hand"][0].trace
    seen = visit("hand")
    seen.press("f")
    group = trace.groups[trace.block_steps[seen.state()["step"]]]
    words = " ".join(seen.texts("#fork, #incoming, #value"))
    numbers = {float(text.replace("\u2212", "-")) for text in re.findall(r"[-\u2212]?\d+(?:\.\d+)?", words)}
    for arrival in group.fork.arrivals:
        assert set(arrival.sum.values) <= numbers
    assert set(trace.nodes[group.output].value.values) <= numbers


def test_each_worked_element_and_finite_difference_is_shown(visit, pages):
    trace = pages["hand"][0].trace
    seen = visit("hand", hash="#view=ops&direction=backward&step=0")
    for id in trace.backward:
        node = trace.nodes[id]
        words = " ".join(seen.texts("#worked")), " ".join(seen.texts("#check"))
        assert all(worked.element in words[0] for worked in node.worked)
        assert all(check.element in words[1] for check in node.checks)
        seen.press("n")
    assert any(trace.nodes[id].worked for id in trace.backward) and any(trace.nodes[id].checks for id in trace.backward)


def test_a_pass_that_ended_early_shows_what_met_what_and_the_ways_out(visit, pages):
    trace, seen = pages["stopped"][0].trace, visit("stopped")
    assert seen.state() == {"view": "blocks", "direction": "forward", "step": len(trace.groups) - 1}  # what ran last
    stop, words = trace.stopped, seen.text("#stop")
    flat = re.sub(r"\s+", " ", words)
    assert all(re.sub(r"\s+", " ", line) in flat for line in (*stop.text, *stop.fixes)) and len(stop.fixes) >= 2
    assert all(str(shape) in flat for _, shape in stop.sides) and len(stop.sides) == 2


@pytest.mark.parametrize("name, megabytes", [("resnet20", 2), ("resnet110", 10)])
def test_a_page_stays_small_and_reacts_within_a_tenth_of_a_second(name, megabytes, visit, pages):
    assert pages[name][1].stat().st_size < 1e6 * megabytes
    seen = visit(name)
    for view in ("blocks", "ops"):
        times = [seen.reaction("n")[0] for _ in range(25)]
        assert seen.state() == {"view": view, "direction": "backward", "step": 25}
        assert median(times) < 100, times
        seen.press("Home", "v")


def test_a_key_that_is_held_down(visit):
    """More steps than a browser lets a page rewrite its address in half a minute."""
    seen = visit("resnet20", hash="#view=ops&direction=backward&step=0")
    seen.page.evaluate("""for (let i = 0; i < 300; i += 1)
        document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "n", bubbles: true, repeat: true}))""")
    assert seen.state()["step"] == 300
    seen.page.wait_for_url("**#view=ops&direction=backward&step=300", timeout=5000)
