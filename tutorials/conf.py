"""The site: pages in MyST, whose code cells run when it is built, the lessons, and the reference, made from the
docstrings.

    python -m sphinx -W -n -b html tutorials build/site

Nothing is fetched, neither when it is built nor when it is read: formulas become MathML here, and the theme brings its
fonts, styles and scripts along.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
# The kernels of the code cells are processes of their own: they are to see this tinyres, and to print no colours.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
os.environ["NO_COLOR"] = "1"
os.environ.pop("TINYRES_DATA", None)  # pages show the same wherever they are built

import tinyres  # noqa: E402
from tinyres.kernels.cuda import emulator  # noqa: E402

project = "tinyres"
author = "The tinyres authors"
copyright = "The tinyres authors, MIT licence"
version = release = tinyres.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "tinyres.teach.formulas"]
exclude_patterns = ["images/**", "conf.py", "wrong_answers/**"]
nitpicky = True
smartquotes = False  # a quote in a docstring may be Python's

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_execution_excludepatterns = ["[0-9][0-9]_*.py", *(["gpu.md"] if emulator.missing() else [])]
nb_custom_formats = {".py": "tinyres.teach.pages.for_site"}  # a lesson, which that has executed
nb_merge_streams = True
nb_ipywidgets_js: dict[str, Any] = {}  # myst-nb's default is a CDN

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "none"  # the docstrings say shapes and dtypes, which annotations do not
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"tinyres {version}"
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
html_static_path: list[str] = []
templates_path: list[str] = []


# --- docstrings -------------------------------------------------------------------------------------------------------

ARGUMENT = re.compile(r"(\w+(?:, \w+)*): ")  # "weight, bias: (C,) or None" begins a line of its own
CODE = re.compile(r"(`[^`\n]+`)")


def rst(docstring: str) -> Iterator[str]:
    """A docstring, which is plain text, as lines of reStructuredText.

    What stands between blank lines is a paragraph, in which a line that explains an argument stays a line of its own;
    what is indented stays as it is, a table for instance; `names` in backquotes are code.
    """
    for block in docstring.strip("\n").split("\n\n"):
        lines = block.split("\n")
        if all(line.startswith("    ") for line in lines if line):
            yield from ("::", "", *("    " + line for line in lines), "")
            continue
        items = [""]
        for line in lines:
            argument = ARGUMENT.match(line)
            if argument and not docstring.startswith(line):  # the first line says what it is
                names = ", ".join(f"`{name}`" for name in argument[1].split(", "))
                items.append(f"{names}: {line[argument.end():]}")
            elif line.startswith("- "):
                items.append(line)
            else:
                items[-1] += f" {line.strip()}"
        items = [item.strip() for item in items if item]
        for item in items:
            if item.startswith("- "):
                yield from ("", f"* {inline(item[2:])}", "")
            else:
                yield inline(item) if len(items) == 1 else f"| {inline(item)}"
        yield ""


def inline(text: str) -> str:
    """A line with its code marked, and with everything else escaped that reStructuredText would read as markup."""
    return "".join(f"`{part}`" if CODE.fullmatch(part) else re.sub(r"([\\*_|`])", r"\\\1", part)
                   for part in CODE.split(text))


def convert(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = rst("\n".join(lines))


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", convert)
