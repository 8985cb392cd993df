"""Everything that is built from the lessons, into one folder: student/, solution/ and html/."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyres.teach import colab, notebooks, pages
from tinyres.teach.lesson import Lesson
from tinyres.teach.notebooks import Notebook

STUDENT, SOLUTION, HTML = "student", "solution", "html"
USUAL = Path("build") / "lessons"


@dataclass(frozen=True)
class Built:
    """What was written, and the student's notebooks that were kept, as somebody has worked in them."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]


def student_notebook(to: Path, lesson: Lesson) -> Path:
    """Where a lesson's student notebook is built, or was."""
    return to / STUDENT / f"{lesson.name}.ipynb"


def build(lessons: Sequence[Lesson], to: Path, only: Collection[int] = (), overwrite: bool = False,
          install: str = colab.INSTALL, tell: Callable[[str], None] = lambda line: None) -> Built:
    """Build the lessons, or only those of some numbers, into the folder `to`; tell(line) before what takes long.

    A student's notebook in which anything was changed is kept unless `overwrite`. install: what it installs on Colab.
    Pages of lessons that are not built now are made anew from their solutions, where those are there and up to date.
    Raises ModuleNotFoundError without the extra `teach`; ValueError for an `install` that will not do; RuntimeError for
    a lesson whose code fails or whose page does not come out.
    """
    notebooks.need_extra(pages.NEEDS)
    chosen = [lesson for lesson in lessons if not only or lesson.number in only]
    names = {lesson.name for lesson in lessons}
    executed = {lesson.name: found for lesson in lessons if lesson not in chosen
                if (found := _up_to_date(to / SOLUTION / f"{lesson.name}.ipynb", lesson)) is not None}
    written, kept = [], []
    for folder in (STUDENT, SOLUTION):
        (to / folder).mkdir(parents=True, exist_ok=True)

    def target(name: str) -> str | None:
        return f"{name}.ipynb" if name in names else None

    for lesson in chosen:
        tell(f"lesson {lesson.number}: {lesson.title}, up to {lesson.seconds} seconds")
        path = student_notebook(to, lesson)
        if path.exists() and not overwrite and notebooks.has_work(path):
            kept.append(path)
        else:
            made = colab.with_first_cell(pages.with_links(notebooks.student(lesson), target), install)
            notebooks.write(notebooks.handed_out(made), path)
            written.append(path)
        executed[lesson.name] = notebooks.solution(lesson)
        path = to / SOLUTION / f"{lesson.name}.ipynb"
        notebooks.write(pages.with_links(executed[lesson.name], target), path)
        written.append(path)
    tell("pages")
    pages.build({lesson.name: notebooks.page(lesson, executed[lesson.name]) for lesson in lessons
                 if lesson.name in executed}, lessons, to / HTML)
    written += [to / HTML / f"{lesson.name}.html" for lesson in chosen]
    return Built(tuple(written), tuple(kept))


def _up_to_date(path: Path, lesson: Lesson) -> Notebook | None:
    """An executed notebook that was built before, if it is one of the lesson as it is now."""
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError, KeyError, nbformat.ValidationError):
        return None
    codes = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    same = (len(notebook.cells) == len(lesson.cells)
            and codes == [cell.source for cell in lesson.solved().cells if cell.kind == "code"])
    return notebook if same else None
