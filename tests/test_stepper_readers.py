"""The stepper's page for every reader: a small window, dark and light, a screen reader, paper, a frame without rights;
and names that look like markup."""

import re

import pytest
from stepper_pages import HOSTILE

from tinyres.stepper.html import iframe

pytest_plugins = "visits"


@pytest.mark.parametrize("name", ["resnet8", "hand", "stopped", "concatenation"])
def test_nothing_is_too_wide_for_a_small_window(name, visit):
    seen = visit(name, width=320, height=640)
    for keys in ("", "f", "j", "d", "v", "f"):
        seen.press(*keys)
        assert seen.too_wide() == [], keys
    seen.press("?")
    assert seen.too_wide() == []


def test_nothing_is_told_by_colour_alone(visit):
    """A negative cell of a heat map has a dash, a number its sign, a route its own mark and its name."""
    seen = visit("resnet8")
    for keys in ("f", "j", "d"):
        seen.press(*keys)
        maps = seen.page.evaluate("""[...document.querySelectorAll("svg.heat")].map(svg =>
            [svg.querySelector("path[class^=n]") !== null, svg.querySelector("path.dash") !== null])""")
        assert maps and all(negative == dashed for negative, dashed in maps)
        routes = seen.page.evaluate("""[...document.querySelectorAll(".route-name")].map(e =>
            [e.textContent.trim(), e.querySelector("svg rect, svg path").tagName, e.classList.contains("shortcut")])""")
        assert all(named and (mark == "rect") == shortcut for named, mark, shortcut in routes)
    assert routes


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["resnet8", "hand", "stopped"])
def test_every_text_stands_out_from_what_is_under_it(name, dark, visit):
    seen = visit(name, dark=dark, reduced_motion="reduce")
    faint = []
    for keys in ("", "f", "j", "d", "v"):
        seen.press(*keys)
        texts = seen.contrasts()
        assert len(texts) > 15
        faint += [(keys, *row) for row in texts if row[0] < 4.5]
    assert faint == []


def test_the_theme_is_the_systems_until_the_reader_chooses(visit):
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light, dark = visit("hand"), visit("hand", dark=True)
    assert light.page.evaluate(ground) != dark.page.evaluate(ground)
    light.press("t")
    assert light.page.evaluate(ground) == dark.page.evaluate(ground)


def test_each_step_is_announced_and_everything_has_a_name(visit):
    seen = visit("resnet8")
    seen.press("f")
    first = seen.page.text_content("#announce")
    assert len(first) > 30 and "fork" in first
    seen.press("n")
    assert seen.page.text_content("#announce") != first
    nameless = seen.page.evaluate("""[...document.querySelectorAll("button, input, a[href], [role=img], svg, table")]
        .filter(e => e.checkVisibility() && !e.closest("[aria-hidden=true]"))
        .filter(e => e.tagName !== "svg" || !e.closest("[role=img], button") || e.getAttribute("role") === "img")
        .filter(e => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.labels?.length
            || e.textContent.trim() || e.querySelector("caption, title"))).map(e => e.outerHTML.slice(0, 100))""")
    assert nameless == []
    tree = seen.page.locator("body").aria_snapshot()
    for role in ("- main", "- navigation", "- heading", "- button \"", "- combobox", "- status"):
        assert role in tree, role
    maps = seen.page.locator("#fork [role=img]")
    assert maps.count() and all(len(maps.nth(i).get_attribute("aria-label") or "") > 10 for i in range(maps.count()))


def test_a_reader_who_wants_no_motion_gets_none(visit):
    seen = visit("resnet8", reduced_motion="reduce")
    seen.press("f", "j")
    assert seen.page.evaluate("document.getAnimations().length") == 0


def test_in_print_all_panels_and_no_controls(visit):
    seen = visit("resnet8", dark=True)
    seen.press("f")
    seen.page.emulate_media(media="print")
    ink = seen.page.evaluate("getComputedStyle(document.querySelector('#step-title')).color")
    assert max(map(int, re.findall(r"\d+", ink))) < 100  # dark on white, whatever the screen showed
    assert min(ratio for ratio, *_ in seen.contrasts()) > 4.5
    shown = seen.page.evaluate("""[...document.querySelectorAll("button:not(.ref), input, dialog")]
        .filter(e => e.checkVisibility()).map(e => e.outerHTML.slice(0, 80))""")
    assert shown == []
    for panel in ("#step-title", "#fork", "#kept", "#rule", "#graph"):
        assert seen.page.is_visible(panel), panel
    rows = seen.page.locator("#all tbody tr")
    assert rows.count() == len(seen.page.query_selector_all("#timeline > li"))
    assert seen.page.pdf().startswith(b"%PDF")


def test_names_that_look_like_markup_are_shown_as_they_are(visit):
    seen = visit("hostile")
    for keys in ("", "n", "n", "n", "v", "n", "n", "d", "?"):
        seen.press(*keys)
    assert seen.page.evaluate("document.images.length + document.scripts.length") == 2  # its data and its script
    assert HOSTILE[:20] in seen.page.evaluate("document.body.textContent")


def test_it_works_in_a_frame_without_rights(browser, pages, tmp_path):
    outer = tmp_path / "notebook.html"
    outer.write_text(f"<!DOCTYPE html><html lang=en><title>a notebook</title>{iframe(pages['hand'][1].read_text())}")
    seen = browser.open(outer)
    frame = seen.page.frames[1]
    frame.focus("#graph")
    seen.press("n", "v", "n", "t")
    assert frame.evaluate("document.body.dataset.step") != "0"
    assert frame.evaluate("origin") == "null" and seen.page.evaluate("location.hash") == ""
    assert "allow-same-origin" not in seen.page.get_attribute("iframe", "sandbox")
    assert seen.problems == []
    seen.close()
