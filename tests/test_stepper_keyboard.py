"""The stepper's page without a mouse: every key, Tab's way through it, search, links to a step, predicting first."""

import re

import pytest

pytest_plugins = "visits"


def test_the_keys(visit, pages):
    trace = pages["resnet8"][0].trace
    last = len(trace.block_steps) - 1
    seen = visit("resnet8")

    def after(key):
        seen.press(key)
        return seen.state()["step"]

    assert [after(key) for key in ("n", "ArrowRight", "b", "ArrowLeft", "b")] == [1, 2, 1, 0, 0]
    assert [after(key) for key in ("End", "n", "Home")] == [last, last, 0]
    forks = [i for i, id in enumerate(trace.block_steps) if trace.groups[id].fork]
    joins = [i for i, id in enumerate(trace.block_steps) if trace.groups[id].kind == "join"]
    assert [after("f") for _ in forks] == forks and len(forks) == 3
    seen.press("Home")
    assert [after("j") for _ in joins] == joins and len(joins) == 3


def test_the_views_and_directions(visit, pages):
    trace = pages["resnet8"][0].trace
    seen = visit("resnet8")
    seen.press("f")
    place = seen.state()["step"]
    seen.press("v")
    assert seen.state()["view"] == "ops"
    shown = trace.backward[seen.state()["step"]]
    assert shown in trace.groups[trace.block_steps[place]].nodes  # the same layer
    seen.press("v")
    assert seen.state() == {"view": "blocks", "direction": "backward", "step": place}
    seen.press("d")
    assert seen.state()["direction"] == "forward"
    seen.press("Home")
    assert seen.state()["step"] == 0
    assert [seen.press("End"), seen.state()["step"]][1] == len(trace.groups) - 1
    assert seen.page.is_visible("#value")
    seen.press("v")
    seen.press("End")
    assert seen.state()["step"] == sum(node.kind == "op" for node in trace.nodes) - 1


def test_buttons_do_what_their_keys_do(visit):
    seen = visit("resnet8")
    steps = []
    for action in ("next", "next", "back", "fork", "join", "last", "first"):
        seen.act(action)
        steps.append(seen.state()["step"])
    seen.press("n", "n", "b", "f")
    assert steps[:4] == [1, 2, 1, seen.state()["step"]]
    seen.press("j")
    assert steps[4] == seen.state()["step"] and steps[5] > steps[4] and steps[6] == 0
    seen.page.click('#timeline button[data-step="5"]')
    assert seen.state()["step"] == 5
    box = seen.page.locator("#graph svg g.box.waiting").first
    id = box.get_attribute("data-id")
    box.click()
    assert seen.page.get_attribute("#graph g.current", "data-id") == id


def test_tab_reaches_every_control_and_shows_where_it_is(visit):
    seen = visit("resnet8")
    seen.press("f")
    order = seen.tab_order()
    names = [one["name"] for one in order]
    assert not [one["name"] for one in order if not one["seen"]]
    actions = seen.page.evaluate("""[...document.querySelectorAll("button[data-action]:not(:disabled)")]
        .filter(e => e.checkVisibility() && e.tabIndex >= 0).map(e => e.dataset.action)""")
    assert {"back", "next", "fork", "join", "view", "direction", "predict", "theme", "help"} <= set(actions)
    assert set(actions) <= set(names) and {"#search", "#graph"} <= set(names)
    assert any(re.fullmatch(r"step \d+", name) for name in names)
    assert len(names) < 40  # the timeline and the graph are one stop each
    assert names[0] == "#skip"


def test_the_skip_link_leads_to_the_step(visit):
    seen = visit("resnet8")
    seen.press("Tab", "Enter")
    assert seen.page.evaluate("document.activeElement.id") == "step-title"
    seen.press("n")
    assert seen.state()["step"] == 1


def test_help_opens_and_closes_and_gives_the_focus_back(visit):
    seen = visit("resnet8")
    seen.page.focus('[data-action="help"]')
    seen.press("?")
    assert seen.page.is_visible("dialog[open]") and "next" in seen.text("dialog[open]")
    seen.press("n")
    assert seen.state()["step"] == 0  # the page behind stands still
    seen.press("Escape")
    assert seen.page.is_hidden("dialog")
    assert seen.page.evaluate("document.activeElement.dataset.action") == "help"


def test_search_jumps_to_a_layer(visit, pages):
    trace = pages["resnet8"][0].trace
    seen = visit("resnet8")
    seen.press("/")
    assert seen.page.evaluate("document.activeElement.id") == "search"
    module = trace.groups[trace.block_steps[len(trace.block_steps) // 2]].module
    seen.page.keyboard.type(module)  # its letters are no commands here
    assert seen.state()["step"] == 0
    seen.press("Enter")
    assert trace.groups[trace.block_steps[seen.state()["step"]]].module == module
    at = seen.state()["step"]
    seen.page.fill("#search", "no such layer")
    seen.press("Enter")
    assert seen.state()["step"] == at
    seen.press("Escape", "n")
    assert seen.state()["step"] == at + 1


@pytest.mark.parametrize("hash, state", [
    ("#view=ops&direction=backward&step=12", ("ops", "backward", 12)),
    ("#view=blocks&direction=forward&step=3", ("blocks", "forward", 3)),
    ("#step=4", ("blocks", "backward", 4)),
    ("#view=ops&direction=backward&step=99999", None),
    ("#view=<img>&step=-1", None),
    ("#step=1e1", None),
    ("#somewhere", None),
])
def test_deep_links(hash, state, visit):
    seen = visit("resnet8", hash=hash)
    found = seen.state()
    if state is None:
        assert found["step"] == 0
    else:
        assert (found["view"], found["direction"], found["step"]) == state


def test_the_address_follows_and_can_be_opened_again(visit):
    seen = visit("resnet8")
    seen.press("v", "n", "n", "n")
    seen.page.wait_for_url(f"**#view=ops&direction=backward&step={seen.state()['step']}", timeout=5000)
    hash = seen.page.evaluate("location.hash")
    again = visit("resnet8", hash=hash)
    assert again.state() == seen.state() == {"view": "ops", "direction": "backward", "step": seen.state()["step"]}
    assert again.text("#step-title") == seen.text("#step-title")
    again.page.evaluate("location.hash = '#view=blocks&direction=backward&step=2'")
    assert again.page.evaluate("new Promise(done => setTimeout(() => done(document.body.dataset.step)))") == "2"


@pytest.mark.parametrize("view", ["blocks", "ops"])
def test_predicting_first_hides_the_numbers_until_an_answer_and_keeps_a_score(view, visit):
    seen = visit("resnet8", hash=f"#view={view}&direction=backward&step=0")
    seen.press("p")
    for _ in range(3):
        seen.press("n")
        for _ in range(40):  # not every step has a question
            if seen.texts("#question .ask"):
                break
            seen.press("n")
        assert seen.texts("#contributions, #incoming, #fork, #join, #kept, #rule .shapes") == []
        seen.press("1")
        assert seen.texts("#contributions") and seen.texts("#question .because")
    assert re.search(r"[0-3] of 3", seen.text("#score"))
    seen.press("p", "n")
    assert seen.page.is_hidden("#question")
