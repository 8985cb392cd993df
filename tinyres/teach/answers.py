"""A learner's file beside the lesson's source: which of its cells answer which exercise, and what is run to check them.

Solution cells are found by their grade id, else by the function they define. All else that is locked comes from the
source, whatever the learner's file has there; cells that the learner added or changed are run if an answer needs them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyres.teach import header
from tinyres.teach import lesson as lessons
from tinyres.teach.lesson import Cell, Lesson

MAGIC = re.compile(r"^(\s*)([%!])", re.M)
ASSIGNED = re.compile(r"^(\s*[\w, ]+=\s*)([%!])", re.M)  # files = !ls


@dataclass(frozen=True)
class Step:
    """A cell to run.

    exercise: the exercise that it answers or checks, "" for another; is_own: whether the learner added it.
    """

    label: str
    source: str
    exercise: str = ""
    is_check: bool = False
    is_own: bool = False


def read(path: Path) -> list[Cell]:
    """The cells of a learner's .ipynb or .py file. Raises ValueError for another kind or a damaged file."""
    if path.suffix == ".ipynb":
        return lessons.notebook_cells(path.read_bytes(), str(path))
    if path.suffix != ".py":
        raise ValueError(f"{path} is neither a notebook nor Python; expected a name that ends in .ipynb or .py")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}; save it as UTF-8") from None
    begin = 0
    if text.startswith(header.MARK):
        _, body = header.split(text, str(path))
        begin = text[:len(text) - len(body)].count("\n")
        text = body
    return lessons.cells(text, str(path), begin)


def steps(lesson: Lesson, theirs: Sequence[Cell] | None) -> tuple[list[Step], set[str]]:
    """What is run for a learner's cells, None for the empty exercise; and the exercises that they have no cell for."""
    answers, own = _answers(lesson, lesson.student().cells if theirs is None else theirs)
    found: list[Step] = []
    names = {exercise.solution: exercise.name for exercise in lesson.exercises}
    checked = {exercise.check: exercise.name for exercise in lesson.exercises}
    for place, cell in enumerate(lesson.cells):
        found += [Step(f"of your own before {names[place]}", source, is_own=True) for source in own.get(place, [])]
        if cell.kind != "code":
            continue
        if place in names:
            found.append(Step(names[place], answers.get(names[place], ""), names[place]))
        elif place in checked:
            found.append(Step(f"check-{checked[place]}", cell.source, checked[place], True))
        else:
            found.append(Step(f"{place}", cell.source))
    return found, set(names.values()) - answers.keys()


def _answers(lesson: Lesson, theirs: Sequence[Cell]) -> tuple[dict[str, str], dict[int, list[str]]]:
    """The answers by exercise, and the learner's own cells by the place in the source before which they are run."""
    places = {exercise.name: exercise.solution for exercise in lesson.exercises}
    given = {cell.source.strip() for whole in (lesson, lesson.student(), lesson.solved()) for cell in whole.cells}
    codes = [cell for cell in theirs if cell.kind == "code" and cell.source.strip()]
    by_id = {cell.grade_id for cell in codes if cell.grade_id in places}
    lacking = set(places) - by_id
    answers: dict[str, str] = {}
    own: dict[int, list[str]] = {}
    waiting: list[str] = []
    last = ""  # the exercise that was answered last
    for cell in codes:
        name = cell.grade_id if cell.grade_id in places else None
        if name is None and not cell.is_check:
            defined = lessons.defines(_python(cell.source)) & lacking
            name = min(defined, key=places.__getitem__) if defined else None
            for other in defined - {name}:  # in a cell with another exercise's
                answers.setdefault(other, "")
        if name is not None:
            # Of two cells for one exercise the later counts, as in the notebook itself.
            answers[name] = "\n".join(filter(None, [answers.get(name, ""), _python(cell.source)]))
            own.setdefault(places[name], []).extend(waiting)
            waiting = []
            last = name
        elif not cell.is_check and cell.grade_id is None and cell.source.strip() not in given:
            waiting.append(_python(cell.source))
        elif cell.is_check and last:  # what stands between an answer and its check may be what the answer calls
            own.setdefault(places[last], []).extend(waiting)
            waiting = []
    if last:
        own.setdefault(places[last], []).extend(waiting)
    return answers, own


def _python(source: str) -> str:
    """A cell's text without the commands that only a notebook understands; as it is, if it is Python already."""
    try:
        compile(source, "cell", "exec", dont_inherit=True)
    except SyntaxError:
        return ASSIGNED.sub(r"\1None  # \2", MAGIC.sub(r"\1pass  # \2", source))
    except (ValueError, RecursionError, MemoryError):
        pass
    return source
