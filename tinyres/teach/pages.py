"""The lessons as pages of HTML, through myst-nb, and a server for them on this machine alone.

The site of tinyres shows the same pages, see tutorials/conf.py. They need no network: formulas are MathML, and the
theme brings its files along.
"""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyres.teach import notebooks
from tinyres.teach.lesson import Lesson, parse
from tinyres.teach.notebooks import Notebook

NEEDS = ("sphinx", "myst_nb", *notebooks.NEEDS)
LINK = re.compile(r"(?<!!)\[([^][]*)\]\((?!\w+:|#)(?:(\d\d_\w+)\.(?:py|ipynb))?([^()\s]*)\)")  # to a file, to a lesson


def build(pages: Mapping[str, Notebook], lessons: Sequence[Lesson], to: Path) -> None:
    """Write the pages of executed notebooks, by the lessons' names, with an index, into the folder `to`.

    The folder appears whole or not at all, in place of an older one. Raises RuntimeError with Sphinx's warnings, if
    there are any: of a formula or a link that does not come out.
    """
    notebooks.need_extra(NEEDS)
    with tempfile.TemporaryDirectory(prefix="tinyres-pages-") as place:
        source, built = Path(place) / "source", Path(place) / "built"
        source.mkdir()
        shown = [lesson for lesson in lessons if lesson.name in pages]
        for lesson in shown:
            notebook = with_links(pages[lesson.name], lambda name: f"{name}.ipynb" if name in pages else None)
            notebook.cells.insert(1, _downloads(lesson))
            (source / f"{lesson.name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
        (source / "index.md").write_text(_index(shown), encoding="utf-8")
        _sphinx(source, built, Path(place) / "doctrees")
        fresh = to.with_name(f".{to.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(built, fresh)
        shutil.rmtree(to, ignore_errors=True)
        fresh.rename(to)


def with_links(notebook: Notebook, target: Callable[[str], str | None], keep: bool = False) -> Notebook:
    """A copy whose links to other lessons, in the source to NN_name.py, lead to `target(name)`; None leaves the words.

    keep: links to other files, which the lessons' folder has; else of these the words are left, too.
    """
    import nbformat

    def link(found: re.Match[str]) -> str:
        place = target(found[2]) if found[2] else "" if keep else None
        return found[1] if place is None else f"[{found[1]}]({place}{found[3]})"

    notebook = nbformat.from_dict(json.loads(json.dumps(notebook)))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell["source"] = LINK.sub(link, cell.source)
    return notebook


def _downloads(lesson: Lesson) -> Any:
    """Below the title, where the notebook of this page is."""
    import nbformat

    name = html.escape(lesson.name)
    return nbformat.v4.new_markdown_cell(
        f'<p>This page can only be read. To work on it, take <a href="../student/{name}.ipynb" download>its notebook'
        f'</a>, and check what you wrote by <code>tinyres teach check {lesson.number}</code>.</p>', id="downloads")


def for_site(text: str) -> Notebook:
    """A lesson's source as the executed notebook that the site shows, for myst-nb's `nb_custom_formats`."""
    import nbformat

    lesson = parse(text, Path("lesson.py"))
    notebook = with_links(notebooks.page(lesson), lambda name: f"{name}.py", keep=True)
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(
        f"This page can only be read. `tinyres teach build {lesson.number}` writes its notebook, to work on, and "
        f"`tinyres teach check {lesson.number}` checks what you wrote.", id="how-to-work"))
    return notebook


def _index(lessons: Sequence[Lesson]) -> str:
    lines = ["# Lessons", "", "The backward pass of residual networks, lesson by lesson. Every number and figure was",
             "computed when the page was built.", "", "| lesson | minutes | needs | notebook | with solutions |",
             "| --- | --- | --- | --- | --- |"]
    for lesson in lessons:
        needs = ", ".join(map(str, lesson.needs)) or "none"
        files = (f'<a href="../{kind}/{lesson.name}.ipynb" download>{kind}</a>' for kind in ("student", "solution"))
        lines.append(f"| {lesson.number}. [{lesson.title}]({lesson.name}.ipynb) | {lesson.minutes} | {needs} | "
                     f"{' | '.join(files)} |")
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", "", *(lesson.name for lesson in lessons), "```", ""])


def _sphinx(source: Path, built: Path, doctrees: Path) -> None:
    from importlib.util import find_spec

    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    settings = {
        "project": "tinyres", "extensions": ["myst_nb", "tinyres.teach.formulas"], "html_math_renderer": "mathml",
        "html_theme": "furo" if find_spec("furo") else "alabaster", "html_title": "Lessons of tinyres",
        "html_copy_source": False, "html_show_copyright": False, "html_show_sphinx": False, "smartquotes": False,
        "nb_execution_mode": "off", "nb_merge_streams": True, "nb_ipywidgets_js": {},
        "myst_heading_anchors": 3, "myst_enable_extensions": ["colon_fence", "deflist", "dollarmath"],
    }
    complaints = io.StringIO()
    with warnings.catch_warnings(), patch_docutils(), docutils_namespace():
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # of myst-nb about Sphinx
        app = Sphinx(str(source), None, str(built), str(doctrees), "html", settings, status=None, warning=complaints)
        app.build()
    said = re.sub(r"\x1b\[[\d;]*m", "", complaints.getvalue()).replace(f"{source}/", "").strip()
    if said or app.statuscode:
        raise RuntimeError(f"teach: the pages do not come out: {said or 'Sphinx failed'}")


# --- serving ----------------------------------------------------------------------------------------------------------


def server(folder: Path, port: int) -> Any:
    """An HTTP server for a built folder, on 127.0.0.1 only; serve_forever() begins, server_close() ends it.

    port: 0 for any that is free. Raises FileNotFoundError if nothing is built there, OSError if the port is taken.
    """
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    if not (folder / "html" / "index.html").is_file():
        raise FileNotFoundError(f"teach: {folder} holds no built lessons: run `tinyres teach build --to {folder}`")

    class Handler(SimpleHTTPRequestHandler):
        extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".ipynb": "application/x-ipynb+json"}

        def do_GET(self) -> None:
            if self.path == "/":
                self.send_response(302)
                self.send_header("Location", "/html/index.html")
                self.end_headers()
            else:
                super().do_GET()

        def end_headers(self) -> None:
            self.send_header("Cache-Control", "no-store")  # what is built anew is shown at once
            super().end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=str(folder)))
