"""Notebooks, all from a lesson's one source: for the student, with the solutions, for nbgrader, and for the page.

Needs the extra `teach`. A notebook is never paired with its source, as jupytext can do: solutions would come back. That
jupytext itself reads the same cells from the source is tested, not relied on: the site is built without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyres.files import write_atomically
from tinyres.teach import lesson as lessons
from tinyres.teach.lesson import Lesson

NEEDS = ("nbformat", "nbclient", "ipykernel")
LIMIT = 300  # seconds that a cell may take when a notebook is executed
Notebook = Any  # nbformat's NotebookNode, a dict


def source(lesson: Lesson) -> Notebook:
    """The lesson as a notebook without outputs; its solutions stand between the marks by which nbgrader takes them out.

    Raises ModuleNotFoundError, with the line that installs it, without the extra `teach`.
    """
    need_extra()
    from nbformat import v4

    make = {"markdown": v4.new_markdown_cell, "code": v4.new_code_cell, "raw": v4.new_raw_cell}
    cells = []
    for place, cell in enumerate(lesson.cells):
        id = hashlib.sha256(f"{lesson.number} {place}".encode()).hexdigest()[:8]  # the same in every build
        cells.append(make[cell.kind](cell.source, id=id, metadata=json.loads(json.dumps(cell.metadata))))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    own = {"lesson": lesson.number, "title": lesson.title}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "tinyres": own})


def student(lesson: Lesson) -> Notebook:
    """For the student: no outputs, and `raise NotImplementedError()` in place of each solution."""
    return handed_out(_with_sources(source(lesson), lesson.student()))


def handed_out(notebook: Notebook) -> Notebook:
    """The notebook with a note of its cells as they are now, by which has_work knows what a learner has changed."""
    notebook.metadata["tinyres"]["handed_out"] = [digest(cell.cell_type + cell.source) for cell in notebook.cells]
    return notebook


def solution(lesson: Lesson) -> Notebook:
    """With the solutions, executed. Raises RuntimeError that names the cell if one fails."""
    return executed(_with_sources(source(lesson), lesson.solved()), lesson)


def page(lesson: Lesson, solved: Notebook | None = None) -> Notebook:
    """For reading: the figures and numbers of the solution, which is executed unless it is given, and the exercises as
    the student gets them.

    Every figure gets a text in place of it: the cell's own (mystnb={"image": {"alt": "..."}}), else its titles, axes
    and curves. Raises RuntimeError for a figure without a text, or one that a cell shows twice.
    """
    notebook = _with_sources(solution(lesson) if solved is None else solved, lesson.student())
    for cell, ours in zip(notebook.cells, lesson.cells, strict=True):
        figures = [output for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})]
        if not figures:
            continue
        where = f"{lesson.path.name}, the cell of line {ours.line}"
        if len({figure.data["image/png"] for figure in figures}) < len(figures):
            raise RuntimeError(f"{where} shows a figure twice, as its last value and as what is open: close it before "
                               "by plt.close(figure)")
        image = cell.metadata.setdefault("mystnb", {}).setdefault("image", {})
        image.setdefault("alt", "; ".join(figure.metadata.get("image/png", {}).get("alt", "") for figure in figures))
        if not image["alt"].strip("; "):
            raise RuntimeError(f"{where} shows a figure that says in no words what it shows: give its axes labels or a "
                               'title, or the cell the metadata mystnb={"image": {"alt": "..."}}')
    return notebook


def _with_sources(notebook: Notebook, lesson: Lesson) -> Notebook:
    """A copy of the notebook with the cells' texts of this version of its lesson."""
    import nbformat

    notebook = nbformat.from_dict(json.loads(json.dumps(notebook)))
    for cell, ours in zip(notebook.cells, lesson.cells, strict=True):
        cell["source"] = ours.source
    return notebook


# --- running ----------------------------------------------------------------------------------------------------------

# Every figure says in words what it shows, for those who cannot see it: its titles, axes and curves.
DESCRIBE = '''
def _describe_figures():
    from IPython import get_ipython
    from matplotlib.figure import Figure
    from tinyres.teach.figures import alternative
    get_ipython().run_line_magic("matplotlib", "inline")
    formatter = get_ipython().display_formatter.formatters["image/png"]
    draw = formatter.lookup_by_type(Figure)
    def with_text(figure):
        drawn = draw(figure)
        data, metadata = drawn if isinstance(drawn, tuple) else (drawn, {})
        return data, {**metadata, "alt": alternative(figure)}
    formatter.for_type(Figure, with_text)
_describe_figures()
del _describe_figures
'''


def executed(notebook: Notebook, lesson: Lesson) -> Notebook:
    """The notebook with its outputs, run by the Python that runs this. Raises RuntimeError for a cell that fails."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from nbclient.util import run_sync

    kernels = AsyncKernelManager()
    here = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=40"]
    kernels._kernel_spec = KernelSpec(argv=here, display_name="Python 3", language="python")
    client: Any = NotebookClient(notebook, km=kernels, timeout=LIMIT, record_timing=False)
    place = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "NO_COLOR": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                   "PYTHONPATH": os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH")]))}
    where = lesson.path.name
    try:
        with client.setup_kernel(cleanup_kc=True, env=environment):
            run_sync(client.kc.execute_interactive)(DESCRIBE, silent=True, store_history=False, timeout=60,
                                                    output_hook=_raise)
            for number, cell in enumerate(notebook.cells):
                where = f"{lesson.path.name}, the cell of line {lesson.cells[number].line}"
                client.execute_cell(cell, number)
    except CellExecutionError as error:
        raise RuntimeError(f"{where} failed: {error.ename}: {error.evalue}") from None
    except CellTimeoutError:
        raise RuntimeError(f"{where} took more than {LIMIT} seconds") from None
    except DeadKernelError:
        raise RuntimeError(f"{where}: its kernel died") from None
    return notebook


def _raise(message: Mapping[str, Any]) -> None:
    if message["msg_type"] == "error":
        content = message["content"]
        raise RuntimeError(f"teach: the kernel could not be prepared: {content['ename']}: {content['evalue']}")


# --- files ------------------------------------------------------------------------------------------------------------


def write(notebook: Notebook, path: Path) -> None:
    """Write a notebook, whole or not at all. Raises nbformat's ValidationError for one that is none."""
    import nbformat

    nbformat.validate(notebook)
    write_atomically(path, (nbformat.writes(notebook) + "\n").encode())


def has_work(path: Path) -> bool:
    """Whether a student's notebook has other cells than those that were handed out, empty ones apart: an answer, a
    prediction, a note; True if unsure."""
    try:
        given = json.loads(path.read_bytes())["metadata"]["tinyres"]["handed_out"]
        cells = lessons.notebook_cells(path.read_bytes(), str(path))
        return [digest(cell.kind + cell.source) for cell in cells if cell.source.strip()] != given
    except (ValueError, KeyError, TypeError):
        return True


def digest(source: str) -> str:
    """A cell's text as a short number, by which it is known again."""
    return hashlib.sha256(source.strip().encode()).hexdigest()[:16]


def need_extra(names: tuple[str, ...] = NEEDS) -> None:
    """Raise ModuleNotFoundError, with the line that installs it, if a module of the extra `teach` is missing."""
    from importlib.util import find_spec

    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f'the lessons\' notebooks need {name}: pip install "tinyres[teach]"', name=name)
