"""What every lesson must hold to, beyond what reading it enforces: a line for each thing that does not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tinyres.teach import lesson as lessons
from tinyres.teach.lesson import BEGIN, CHECK, END, Cell, Lesson

SOLUTION = {"grade": False, "locked": False, "schema_version": 3, "solution": True, "task": False}
GRADED = {"grade": True, "locked": True, "schema_version": 3, "solution": False, "task": False}
# Each must stand in the lesson's Markdown or code: (pattern, what it is).
PARTS = (
    (r"tr\.step\(|\bstep\(", "a step in the stepper: tr.step(...)"),
    (r"(?i)\bwhy it differs\b", "\"The paper says, we see, why it differs\""),
    (r"(?i)\bfor the teacher\b", "a box for the teacher"),
    (r"(?i)\bquiz\b|\bquestions\b", "the three quiz questions"),
)
FORBIDDEN = ((r"matplotlib\.use\(", "matplotlib.use(): who runs it chooses the backend"),
             (r"\.show\(\)", ".show(): a script must open no window; end the cell with the figure"),
             (r"^\s*[%!]\w", "a command of IPython: a lesson is plain Python"))
SAME = 2  # so many solution lines in a row are a piece of a solution


def problems(lesson: Lesson) -> list[str]:
    """All that is wrong with one lesson."""
    where = lesson.path.name
    found = [*_header(lesson), *_grading(lesson), *_cells(lesson), *_parts(lesson), *_given_away(lesson)]
    return [f"{where}, {problem}" for problem in found]


def _header(lesson: Lesson) -> Iterator[str]:
    if not lesson.path.name.startswith(f"{lesson.number:02d}_"):
        yield f"the header: it is lesson {lesson.number}, and its file another one"
    for name in ("minutes", "seconds"):
        if getattr(lesson, name) <= 0:
            yield f"the header: {name} must be more than 0"
    if not lesson.objectives or not all(lesson.objectives):
        yield "the header: it names no objectives"
    first = next((cell for cell in lesson.cells), None)
    if first is None or first.kind != "markdown" or not first.source.startswith(f"# {lesson.title}"):
        yield f"the first cell must be Markdown that begins with \"# {lesson.title}\""


def _grading(lesson: Lesson) -> Iterator[str]:
    """nbgrader's metadata: solutions and checks in pairs, with ids of their own, and points."""
    ids = [cell.grade_id for cell in lesson.cells if cell.grading]
    for id in sorted({id for id in ids if ids.count(id) > 1}, key=str):
        yield f"the grade id {id!r} is used more than once"
    for place, cell in enumerate(lesson.cells):
        where, grading, id = f"line {cell.line}:", dict(cell.grading), cell.grade_id
        if not grading:
            continue
        grading.pop("grade_id", None)
        points = grading.pop("points", None) if cell.is_check else 0
        if grading != (GRADED if cell.is_check else SOLUTION) or not isinstance(id, str):
            yield f"{where} nbgrader's metadata is {dict(cell.grading)}; expected those of a solution or of a check"
        elif cell.is_check:
            if not isinstance(points, int) or points <= 0:
                yield f"{where} {id} gives {points} points, expected a whole number of at least 1"
            before = lesson.cells[place - 1] if place else None
            if before is None or id != f"{CHECK}{before.grade_id}":
                yield f"{where} {id} does not stand behind the solution that it checks"
            name = id.removeprefix(CHECK)
            if f"lesson_{lesson.number:02d}.{name}(" not in cell.source:
                yield f"{where} {id} does not call lesson_{lesson.number:02d}.{name}(...)"
        else:
            yield from _solution(lesson, place, cell, id)


def _solution(lesson: Lesson, place: int, cell: Cell, id: str) -> Iterator[str]:
    where = f"line {cell.line}: the solution {id}"
    after = lesson.cells[place + 1] if place + 1 < len(lesson.cells) else None
    if after is None or after.grade_id != f"{CHECK}{id}":
        yield f"{where} is not followed by its check"
    if id not in lessons.defines(cell.source):
        yield f"{where} does not define {id}"
    if id not in lessons.defines(lessons.cleared(cell.source)):
        yield f"{where} does not define {id} any more without its solution"
    marks = [line.strip() for line in cell.source.split("\n") if line.strip() in (BEGIN, END)]
    if not marks or marks != [BEGIN, END] * (len(marks) // 2):
        yield f"{where} must have its solution between {BEGIN!r} and {END!r}"


def _cells(lesson: Lesson) -> Iterator[str]:
    codes = [cell for cell in lesson.cells if cell.kind == "code"]
    if not codes or 'use_kernels("reference")' not in codes[0].source:
        yield "the first cell of code must call tr.use_kernels(\"reference\")"
    for cell in lesson.cells:
        if not cell.is_solution and (BEGIN in cell.source or END in cell.source):
            yield f"line {cell.line}: a solution's mark stands outside of a solution cell"
        mark = 0 if cell.kind == "code" else 2  # the "# " that the source has before it
        yield from (f"line {cell.line + number}: it is longer than 120 characters"
                    for number, line in enumerate(cell.source.split("\n")) if len(line) + mark > 120)
        if cell.kind == "code":
            yield from (f"line {cell.line}: {what}" for pattern, what in FORBIDDEN
                        if re.search(pattern, cell.source, re.M))


def _parts(lesson: Lesson) -> Iterator[str]:
    whole = "\n".join(cell.source for cell in lesson.cells)
    yield from (f"there is not {what}" for pattern, what in PARTS if not re.search(pattern, whole))
    folded = len(re.findall(r"<details", whole))
    if folded < 3:
        yield f"there are {folded} folded boxes, expected at least 3, an answer each"
    if folded != len(re.findall("</details>", whole)):
        yield "a <details> is not closed"
    if not lesson.exercises:
        yield "there is no exercise"


def _given_away(lesson: Lesson) -> Iterator[str]:
    """Pieces of a solution in what the student gets: the notebook, and the module of the checks."""
    texts = {"the student's version": [line for cell in lesson.student().cells for line in cell.source.split("\n")]}
    module = Path(__file__).with_name("checks") / f"{lesson.checks.rsplit('.', 1)[1]}.py"
    if module.is_file():
        texts[module.name] = module.read_text(encoding="utf-8").split("\n")
    for exercise in lesson.exercises:
        solution = lessons.solutions(lesson.cells[exercise.solution].source)
        for where, lines in texts.items():
            for piece in pieces(solution, lines):
                yield f"{where} holds a piece of the solution of {exercise.name}: {piece!r}"


def pieces(solution: Sequence[str], lines: Sequence[str]) -> list[str]:
    """What stands in both: two lines of the solution in a row, or its only line."""
    text = "\n".join(filter(None, map(str.strip, lines)))
    size = min(SAME, len(solution))
    runs = ("\n".join(solution[i:i + size]) for i in range(len(solution) - size + 1))
    return [run for run in dict.fromkeys(runs) if size and f"\n{run}\n" in f"\n{text}\n"]


# --- all lessons together ---------------------------------------------------------------------------------------------


def cycles(needs: Mapping[int, Sequence[int]]) -> list[str]:
    """What is wrong with the lessons' prerequisites: some that are not there, or that need each other."""
    found = [f"lesson {number} needs lesson {other}, which is not there"
             for number, others in needs.items() for other in others if other not in needs]
    done: set[int] = set()
    while True:
        ready = {number for number, others in needs.items() if number not in done
                 and all(other in done or other not in needs for other in others)}
        if not ready:
            break
        done |= ready
    left = sorted(set(needs) - done)
    return found + ([f"the lessons {', '.join(map(str, left))} need each other in a circle"] if left else [])


def dead_links(lesson: Lesson) -> list[str]:
    """Links in the Markdown to files that are not there, and to places of the web without https."""
    found = []
    for cell in lesson.cells:
        for target in re.findall(r"\]\(([^)\s]+)\)|(?:href|src)=\"([^\"]+)\"", cell.source) \
                if cell.kind == "markdown" else ():
            link = (target[0] or target[1]).partition("#")[0]
            if re.match(r"\w+:", link):
                if not link.startswith("https:"):
                    found.append(f"{lesson.path.name}, line {cell.line}: {link} is not https")
            elif link and not (lesson.path.parent / link).exists():
                found.append(f"{lesson.path.name}, line {cell.line}: there is no {link}")
    return found
