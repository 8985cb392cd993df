"""A lesson: its one source, read into cells and exercises.

The source is jupytext's percent format, of which a lesson uses little enough to be read here without jupytext: a
learner can check answers with nothing but tinyres. tests/test_teach.py compares this reader with jupytext's own.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinyres.teach import header

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = ("# YOUR CODE HERE", "raise NotImplementedError()")  # nbgrader's own default
FILE = re.compile(r"(\d\d)_(\w+)\.py")
CELL = re.compile(r"# %%(?: \[(markdown|md|raw)\])?(?: (?!\[)(.*))?$")
CHECK = "check-"


@dataclass(frozen=True)
class Cell:
    """A cell: "markdown", "code" or "raw"; its text; its metadata; the line of the file on which its text begins."""

    kind: str
    source: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    line: int = 0

    @property
    def grading(self) -> Mapping[str, Any]:
        """nbgrader's metadata, empty if the cell has none."""
        found = self.metadata.get("nbgrader", {})
        return found if isinstance(found, Mapping) else {}

    @property
    def grade_id(self) -> str | None:
        found = self.grading.get("grade_id")
        return found if isinstance(found, str) else None

    @property
    def is_solution(self) -> bool:
        """Whether it is the learner's to write."""
        return bool(self.grading.get("solution"))

    @property
    def is_check(self) -> bool:
        """Whether points depend on it."""
        return bool(self.grading.get("grade"))


@dataclass(frozen=True)
class Exercise:
    """A solution cell and the check that follows it, by their places among the lesson's cells."""

    name: str
    points: int
    solution: int
    check: int


@dataclass(frozen=True)
class Lesson:
    """A lesson as its source has it. seconds: of CPU time, of the script on two cores; needs: lessons before it."""

    path: Path
    number: int
    title: str
    minutes: int
    seconds: int
    needs: tuple[int, ...]
    objectives: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def checks(self) -> str:
        """The module with its checks."""
        return f"tinyres.teach.checks.lesson_{self.number:02d}"

    @property
    def exercises(self) -> tuple[Exercise, ...]:
        """In the order of the lesson. A solution without its check, which the lint finds, is left out."""
        places = {cell.grade_id: i for i, cell in enumerate(self.cells) if cell.grade_id}
        return tuple(Exercise(cell.grade_id, int(self.cells[places[CHECK + cell.grade_id]].grading.get("points", 0)), i,
                              places[CHECK + cell.grade_id])
                     for i, cell in enumerate(self.cells)
                     if cell.is_solution and cell.grade_id and CHECK + cell.grade_id in places)

    @property
    def points(self) -> int:
        return sum(exercise.points for exercise in self.exercises)

    def student(self) -> Lesson:
        """The lesson with the solutions taken out."""
        cells = [replace(cell, source=cleared(cell.source)) if cell.kind == "code" else cell for cell in self.cells]
        return replace(self, cells=tuple(cells))

    def solved(self) -> Lesson:
        """The lesson with the solutions, without the marks around them."""
        cells = [replace(cell, source=unmarked(cell.source)) if cell.kind == "code" else cell for cell in self.cells]
        return replace(self, cells=tuple(cells))


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: Path) -> Lesson:
    """The lesson in a file. Raises ValueError for one that is none, with what is missing."""
    if not FILE.fullmatch(path.name):
        raise ValueError(f"{path} is no lesson: expected a name like 01_forks_and_order.py")
    return parse(path.read_text(encoding="utf-8"), path)


def parse(text: str, path: Path) -> Lesson:
    """The lesson that a text holds; path: of its file, by which errors name it."""
    top, body = header.split(text, path.name)
    values = header.read(top, path.name)
    begin = text[:len(text) - len(body)].count("\n")
    return Lesson(path, values["lesson"], values["title"], values["minutes"], values["seconds"],
                  tuple(values["needs"]), tuple(values["objectives"]), tuple(cells(body, path.name, begin)))


def cells(text: str, where: str, begin: int = 0) -> list[Cell]:
    """The cells of a text in percent format. Text before the first mark is a cell of code, unless it is blank.

    begin: lines before the text in its file. Raises ValueError for a cell's metadata that cannot be read.
    """
    found: list[Cell] = []
    kind, line = "code", begin
    metadata: dict[str, Any] = {}
    lines: list[str] = []

    def end() -> None:
        source = "\n".join(lines).strip("\n")
        if kind != "code":
            source = "\n".join(re.sub("^# ?", "", part) for part in source.split("\n"))
        if found or source or line > begin:
            found.append(Cell(kind, source, metadata, line + 1))

    for number, content in enumerate(text.splitlines(), begin + 1):
        mark = CELL.match(content)
        if mark is None:
            lines.append(content)
            continue
        end()
        kind = {"md": "markdown", None: "code"}.get(mark[1], mark[1])
        metadata, line, lines = options(mark[2] or "", f"{where}, line {number}"), number, []
    end()
    return found


def options(text: str, where: str) -> dict[str, Any]:
    """The metadata behind a cell's mark: `key=value ...`, each value in JSON; words before them are a title."""
    decoder, found, rest = json.JSONDecoder(), {}, text.strip()
    while rest:
        key = re.match(r"([\w.-]+)=", rest)
        if key is None:
            word, _, rest = rest.partition(" ")  # of the cell's title
            rest = rest.lstrip()
            continue
        try:
            found[key[1]], end = decoder.raw_decode(rest[key.end():])
        except ValueError as error:
            raise ValueError(f"{where}: the cell's {key[1]} is {rest[key.end():]!r}, expected JSON: {error}") from None
        rest = rest[key.end() + end:].lstrip()
    return found


def notebook_cells(content: bytes, where: str) -> list[Cell]:
    """The cells of a notebook. Raises ValueError if it is none."""
    try:
        notebook = json.loads(content)
        return [Cell(str(cell["cell_type"]), "".join(cell["source"]), dict(cell.get("metadata", {})))
                for cell in notebook["cells"]]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is no notebook of Jupyter's format 4 ({type(error).__name__}: {error}): save it "
                         "again, or take back a copy of it") from None


# --- solutions --------------------------------------------------------------------------------------------------------


def cleared(source: str) -> str:
    """A cell's text with each solution replaced by `raise NotImplementedError()`, as nbgrader does it."""
    kept, inside = [], False
    for line in source.split("\n"):
        if line.strip() == BEGIN:
            inside, indent = True, line[:len(line) - len(line.lstrip())]
            kept += [indent + stub for stub in STUB]
        elif line.strip() == END:
            inside = False
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def unmarked(source: str) -> str:
    """A cell's text without the marks around its solutions."""
    return "\n".join(line for line in source.split("\n") if line.strip() not in (BEGIN, END))


def solutions(source: str) -> list[str]:
    """The lines of a cell's solutions, blank ones and comments left out, stripped."""
    found, inside = [], False
    for line in map(str.strip, source.split("\n")):
        if line in (BEGIN, END):
            inside = line == BEGIN
        elif inside and line and not line.startswith("#"):
            found.append(line)
    return found


def defines(source: str) -> set[str]:
    """The functions and classes that a text defines at its top, none if it is not Python."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    return {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}


# --- where they are ---------------------------------------------------------------------------------------------------


def folder(given: Path | None = None) -> Path:
    """The folder of the lessons: the one given, else tutorials/ beside the package, as in a checkout.

    Raises FileNotFoundError, which says how to get them, where there are none, as beside an installed wheel.
    """
    beside = Path(__file__).resolve().parents[2] / "tutorials"
    place = beside if given is None else given
    if place.is_dir() and any(FILE.fullmatch(path.name) for path in place.iterdir()):
        return place
    if given is not None:
        raise FileNotFoundError(f"teach: {given} holds no lessons; expected a folder with files like "
                                "01_forks_and_order.py, as tutorials/ of a checkout of tinyres")
    raise FileNotFoundError("teach: the lessons are not part of an installed tinyres, and there is no "
                            f"{beside.name}/ beside it: name the folder tutorials/ of a checkout by --lessons")


def all_in(place: Path) -> list[Lesson]:
    """The lessons in a folder, by their numbers."""
    return [read(path) for path in sorted(place.iterdir()) if FILE.fullmatch(path.name)]


def one_of(lessons: list[Lesson], number: int) -> Lesson:
    """The lesson of this number. Raises ValueError that lists those there are."""
    for lesson in lessons:
        if lesson.number == number:
            return lesson
    there = ", ".join(str(lesson.number) for lesson in lessons)
    raise ValueError(f"there is no lesson {number} yet; there are {there}")
