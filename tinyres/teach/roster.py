"""The students of a course, from a CSV file, and the seed that each of them has.

A seed is a hash of the student's id and of nothing else: the same in every release, on every machine and whenever it
is graded, so that no list of seeds need be kept.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyres.teach.lesson import Cell

COLUMNS = ("id", "first_name", "last_name", "email", "lms_user_id")  # those of `nbgrader db student import`
ID = re.compile(r"[A-Za-z0-9_@-][A-Za-z0-9_.@-]*")  # a folder is named by it, and nbgrader's patterns hold no others
SEED = re.compile(r"^SEED *=(?!=)[^#\n]*?( *#.*)?$", re.M)


@dataclass(frozen=True)
class Student:
    """A line of the roster; what it does not say is empty."""

    id: str
    first_name: str = ""
    last_name: str = ""
    email: str = ""
    lms_user_id: str = ""

    @property
    def seed(self) -> int:
        return seed(self.id)


def seed(student: str) -> int:
    """The seed of a student by the id: the first four bytes of its SHA-256, 0 to 4,294,967,295."""
    return int.from_bytes(hashlib.sha256(student.encode()).digest()[:4], "big")


# --- the file ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[Student]:
    """The students in a CSV file with the columns of nbgrader's, of which only `id` must be there.

    Commas or semicolons part the columns; columns of other names are passed over. Raises ValueError, with the line, for
    an id that is missing, appears twice or cannot name a folder; OSError for a file that cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"teach: the roster {path} is not text in UTF-8: {error}; save it as CSV in UTF-8") from None
    first = text.partition("\n")[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=";" if first.count(";") > first.count(",") else ",")
    try:
        return _students(lines, path)
    except csv.Error as error:
        raise ValueError(f"teach: the roster {path}, line {lines.line_num}, is no CSV: {error}; save it again"
                         ) from None


def _students(lines: Any, path: Path) -> list[Student]:
    names = [name.strip().lower() for name in next(lines, [])]
    if names.count("id") != 1:
        raise ValueError(f"teach: the first line of the roster {path} is {','.join(names)!r}, expected the names of "
                         f"its columns with `id` among them once, as {','.join(COLUMNS)}")
    found: dict[str, int] = {}
    students = []
    for line in lines:
        where = f"teach: the roster {path}, line {lines.line_num}"
        if not any(value.strip() for value in line):
            continue
        if len(line) > len(names):
            raise ValueError(f"{where}, has {len(line)} columns, expected the {len(names)} of the first line; put a "
                             "value that holds a comma in quotes")
        values = {name: value.strip() for name, value in zip(names, line, strict=False) if name in COLUMNS}
        student = Student(**values)
        if not ID.fullmatch(student.id):
            raise ValueError(f"{where}: the id is {student.id!r}, expected letters, digits and _ - . @, as a folder is "
                             "named by it")
        if student.id.lower() in found:  # folders that differ in case only are one on some systems
            raise ValueError(f"{where}: the id {student.id!r} stands in line {found[student.id.lower()]} already; give "
                             "each student an id of their own")
        found[student.id.lower()] = lines.line_num
        students.append(student)
    if not students:
        raise ValueError(f"teach: the roster {path} names no student, expected a line for each below the first")
    return students


# --- setting a seed ---------------------------------------------------------------------------------------------------


def with_seed(source: str, seed: int) -> str:
    """A cell's text with `SEED = ...` at the begin of a line set to this seed."""
    return SEED.sub(lambda found: f"SEED = {seed}{found[1] or ''}", source)


def cells_with_seed(cells: Sequence[Cell], seed: int) -> list[Cell]:
    """Cells whose SEED is this one, wherever they set it; where none does, one that does comes first."""
    found = [replace(cell, source=with_seed(cell.source, seed)) if cell.kind == "code" else cell for cell in cells]
    if not any(cell.kind == "code" and SEED.search(cell.source) for cell in cells):
        found.insert(0, Cell("code", f"SEED = {seed}"))
    return found


def set_seed(notebook: Any, resources: Any) -> tuple[Any, Any]:
    """A preprocessor of nbgrader's autograde: a submission is graded with the seed of the student who handed it in."""
    from nbformat.v4 import new_code_cell

    own = seed(resources["nbgrader"]["student"])
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not any(SEED.search(cell.source) for cell in codes):
        notebook.cells.insert(0, new_code_cell(f"SEED = {own}"))
    for cell in codes:
        if "nbgrader" not in cell.metadata or cell.metadata["nbgrader"].get("solution"):
            cell.source = with_seed(cell.source, own)
    return notebook, resources
