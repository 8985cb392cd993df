"""The page: one HTML document that holds a trace, its drawing, a style and a script, and needs nothing else.

Its Content-Security-Policy allows exactly that one script and that one style, by their SHA-256, and nothing from
anywhere: no network, no images, no attributes with code or style in them. Whatever comes from the trace, names that a
user chose among it, stands in a block of JSON or as escaped text of the drawing, and the script shows it as text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from tinyres.stepper.cells import DARK, LIGHT
from tinyres.stepper.drawing import style, svg
from tinyres.stepper.page_data import page_data

FOLDER = Path(__file__).with_name("page")
SCRIPTS = ("pictures.js", "panels.js", "page.js")  # in this order one script


def page(recording: Any, view: str = "blocks") -> str:
    """The document. recording: a Recording, or a Trace alone; view: "blocks" or "ops", with which it opens.

    The same trace always gives the same document. Of a trace of more than 1,500 nodes, as ResNet-110's, the ops inside
    of layers come without heat maps, which keeps the page small. Raises ValueError for another view.
    """
    if view not in ("blocks", "ops"):
        raise ValueError(f"page: view must be 'blocks' (a step a layer) or 'ops' (a step an op), got {view!r}")
    trace = getattr(recording, "trace", recording)
    data = page_data(trace) | {"opens": view}
    parts = {
        "policy": policy(), "title": html.escape(f"{trace.title} - stepper"), "style": stylesheet(), "script": script(),
        "blocks": svg(trace, "blocks", standalone=False), "ops": svg(trace, "ops", standalone=False),
        "trace": as_json(data),
    }
    document = re.sub("@@([a-z]+)@@", lambda found: parts[found[1]], _text("page.html"))
    return document.encode("utf-8", "replace").decode()  # a name may hold half a surrogate pair, a file may not


def iframe(document: str, height: int = 760) -> str:
    """A document inside another, as in a notebook: its script runs, and reaches nothing outside of it."""
    return (f'<iframe srcdoc="{html.escape(document)}" sandbox="allow-scripts" width="100%" height="{int(height)}" '
            'frameborder="0" title="A backward pass, step by step"></iframe>')


def as_json(data: Any) -> str:
    """JSON that may stand inside of a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def script() -> str:
    """The three scripts as one function that is called at once, so that they share names with nobody."""
    return "(() => {\n\"use strict\";\n" + "\n".join(map(_text, SCRIPTS)) + "})();\n"


@cache
def stylesheet() -> str:
    """The page's style and the drawing's, whose colours are the page's, too, where they mean the same."""
    light, dark = ("".join(f" --{name}: {colour};" for name, colour in colours.items()) for colours in (LIGHT, DARK))
    return (f":root {{{light} }}\n@media screen {{ :root[data-theme=dark] {{{dark} }} }}\n{_text('page.css')}\n"
            f"{style({name: f'var(--{name})' for name in LIGHT})}\n")


@cache
def policy() -> str:
    """The Content-Security-Policy: this one script and this one style, by their hashes, and nothing from elsewhere."""
    return (f"default-src 'none'; script-src {_source(script())}; style-src {_source(stylesheet())}; "
            "base-uri 'none'; form-action 'none'")


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")
