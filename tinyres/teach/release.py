"""A course: nbgrader's folder, a notebook for each student, and an autograder for Gradescope a lesson.

    nbgrader_config.py            written once, then the teacher's
    source/lessonNN/NN_name.ipynb with the solutions; nbgrader's input
    release/lessonNN/...          what nbgrader makes of it: for all students
    students/ID/lessonNN/...      the same with the student's own seed, for those on the roster
    gradescope/lessonNN.zip       see gradescope.py
    gradebook.db                  nbgrader's, with the roster; grades that are in it stay there
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyres.files import write_atomically
from tinyres.teach import colab, gradescope, notebooks, pages
from tinyres.teach.lesson import Lesson
from tinyres.teach.roster import Student

NEEDS = ("nbgrader", "nbformat")
REASON = re.compile(r"^ *[\w.]+(?:Error|Exception|Interrupt): (.+)", re.M)  # the end of a traceback in nbgrader's log
CONFIG = '''\
"""For nbgrader 0.9. Written once by `tinyres teach release`, which from then on leaves it as it is.

    nbgrader autograde lesson01            grades submitted/STUDENT/lesson01/*.ipynb
    nbgrader generate_feedback lesson01    writes what each student is told to feedback/
    nbgrader export                        writes grades.csv
"""

from pathlib import Path

c = get_config()  # noqa: F821
c.CourseDirectory.root = str(Path(__file__).resolve().parent)
c.CourseDirectory.course_id = "tinyres"
c.Execute.timeout = 120  # seconds that one cell may take

# nbgrader's own, and then: a submission is graded with the seed of its student, whatever seed the notebook says.
c.Autograde.sanitize_preprocessors = [
    "nbgrader.preprocessors.ClearOutput",
    "nbgrader.preprocessors.DeduplicateIds",
    "nbgrader.preprocessors.OverwriteKernelspec",
    "nbgrader.preprocessors.OverwriteCells",
    "nbgrader.preprocessors.CheckCellMetadata",
    "tinyres.teach.roster.set_seed",
]
'''


@dataclass(frozen=True)
class Released:
    """What was written. assignments: nbgrader's names of the lessons; students: how many have their own notebooks."""

    folder: Path
    assignments: tuple[str, ...]
    students: int
    autograders: tuple[Path, ...]


def assignment(lesson: Lesson) -> str:
    """nbgrader's name of the lesson."""
    return f"lesson{lesson.number:02d}"


def release(lessons: Sequence[Lesson], to: Path, only: Collection[int] = (), students: Sequence[Student] = (),
            install: str = colab.INSTALL, with_gradescope: bool = True, wheel: Path | None = None,
            tell: Callable[[str], None] = lambda line: None) -> Released:
    """Release the lessons, or only those of some numbers, into the folder `to`, which may hold a course already.

    Submissions, grades and the configuration in it are left as they are. install: what the notebooks install on Colab;
    wheel: of tinyres, for the autograders, by default built from the checkout; tell(line) before what takes long.
    Raises ModuleNotFoundError without the extra `teach`; ValueError for an `install` or a wheel that will not do;
    RuntimeError if nbgrader refuses, with its reason.
    """
    notebooks.need_extra(NEEDS)
    colab.first_cell(install)  # refuses before anything is written
    chosen = [lesson for lesson in lessons if not only or lesson.number in only]
    to.mkdir(parents=True, exist_ok=True)
    autograders = []
    if with_gradescope:
        (to / "gradescope").mkdir(exist_ok=True)
        if wheel is None:
            tell("a wheel of tinyres, for the autograders")
            wheel = gradescope.build_wheel(to / "gradescope")
        for lesson in chosen:
            autograders.append(to / "gradescope" / f"{assignment(lesson)}.zip")
            gradescope.write(lesson, wheel, autograders[-1], students)
    if not (to / "nbgrader_config.py").exists():
        write_atomically(to / "nbgrader_config.py", CONFIG.encode())
    with _programs_of_this_python():
        course = open_course(to)
        _enrol(course, students)
        for lesson in chosen:
            tell(f"lesson {lesson.number}: {lesson.title}")
            _release_one(course, lesson, to, students, install)
    return Released(to, tuple(assignment(lesson) for lesson in chosen), len(students), tuple(autograders))


def open_course(folder: Path) -> Any:
    """nbgrader's CourseDirectory of a folder with nbgrader_config.py. Raises RuntimeError if that cannot be read."""
    from nbgrader.coursedir import CourseDirectory
    from traitlets.config.loader import Config, PyFileConfigLoader

    try:
        config = PyFileConfigLoader("nbgrader_config.py", path=str(folder.resolve())).load_config()
    except Exception as error:  # it is a program, and the teacher's
        raise RuntimeError(f"teach: {folder / 'nbgrader_config.py'} fails: {type(error).__name__}: {error}; mend it, "
                           "or move it away to get a new one") from error
    config.merge(Config({"CourseDirectory": {"root": str(folder.resolve())}}))
    return CourseDirectory(config=config)


@contextlib.contextmanager
def _programs_of_this_python() -> Iterator[None]:
    """nbgrader calls `alembic` by its name, and where no environment is activated the system does not find that."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join(filter(None, [str(Path(sys.executable).parent), before]))
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _enrol(course: Any, students: Sequence[Student]) -> None:
    """Put the roster into the gradebook. Students who are there and not on the roster stay: they may have grades."""
    from nbgrader.api import Gradebook

    with Gradebook(course.db_url, course.course_id) as gradebook:
        for student in students:
            gradebook.update_or_create_student(student.id, first_name=student.first_name, last_name=student.last_name,
                                               email=student.email, lms_user_id=student.lms_user_id or None)


def _release_one(course: Any, lesson: Lesson, to: Path, students: Sequence[Student], install: str) -> None:
    import nbformat
    from nbgrader.converters import GenerateAssignment
    from nbgrader.utils import capture_log

    name, file = assignment(lesson), f"{lesson.name}.ipynb"
    source = to / "source" / name
    source.mkdir(parents=True, exist_ok=True)
    notebook = pages.with_links(notebooks.source(lesson), lambda other: None)  # no other lesson lies beside it
    notebooks.write(colab.with_first_cell(notebook, install), source / file)
    course.assignment_id = name
    generate = GenerateAssignment(coursedir=course, config=course.config)
    generate.force = True
    done = capture_log(generate)
    if not done["success"]:
        reasons = REASON.findall(done.get("log", "") + "\n" + done["error"])  # the first is the cause of the others
        raise RuntimeError(f"teach: nbgrader could not release lesson {lesson.number}: {(reasons or ['no word'])[0]}; "
                           f"`nbgrader generate_assignment {name} --force` in {to} says more")
    released = nbformat.read(to / "release" / name / file, as_version=4)
    for student in students:
        place = to / "students" / student.id / name
        place.mkdir(parents=True, exist_ok=True)
        notebooks.write(colab.with_first_cell(released, install, student.seed), place / file)
