"""Formulas as MathML, made when a page is built: browsers draw it without a script and without a network.

An extension of Sphinx: `extensions = ["tinyres.teach.formulas"]` and `html_math_renderer = "mathml"`.
"""

from __future__ import annotations

import re
from typing import Any

SIZES = re.compile(r"\\[Bb]igg?[lrm]?(?![A-Za-z])")  # of brackets, which MathML sizes by itself
# Without a font for mathematics, which many a Linux lacks, Chromium puts subscripts on the line and rows on each other.
STYLE = """<style>
math { font-family: "STIX Two Math", "Cambria Math", "Latin Modern Math", "DejaVu Math TeX Gyre", math; }
math msub > :nth-child(2), math msubsup > :nth-child(2) { position: relative; top: 0.15em; }
math mtd { padding: 0.25em 0.4em; }
div.formula { overflow-x: auto; overflow-y: hidden; padding: 0.2em 0; }
</style>"""


def mathml(tex: str, block: bool, where: Any) -> str:
    """A formula in LaTeX as MathML; "", and a warning of the build, for one that docutils does not understand."""
    from docutils.utils.math import MathError
    from docutils.utils.math.latex2mathml import tex2mathml
    from sphinx.util import logging

    try:
        return str(tex2mathml(SIZES.sub("", tex), block))
    except MathError as error:
        logging.getLogger("tutorials").warning("formula %r: %s", tex, error, location=where)
        return ""


def inline_formula(writer: Any, node: Any) -> None:
    """Sphinx's visitor of a formula within a line."""
    from docutils.nodes import SkipNode

    writer.body.append(mathml(node.astext(), False, node))
    raise SkipNode


def display_formula(writer: Any, node: Any) -> None:
    """Sphinx's visitor of a formula on a line of its own."""
    from docutils.nodes import SkipNode

    writer.body.append(f'<div class="formula">{mathml(node.astext(), True, node)}</div>\n')
    raise SkipNode


def styled(app: Any, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Give a page the style of formulas."""
    context["metatags"] = context.get("metatags", "") + STYLE


def setup(app: Any) -> dict[str, bool]:
    """The Sphinx extension: formulas become MathML."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (display_formula, None))
    app.connect("html-page-context", styled)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
