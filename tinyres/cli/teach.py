"""`tinyres teach`: build the lessons' notebooks and pages, check answers, release a course, serve what is built."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from tinyres.cli import setup, table
from tinyres.teach import build as building
from tinyres.teach import check as checking
from tinyres.teach import lesson as reading
from tinyres.teach.lesson import Lesson

app = typer.Typer(rich_markup_mode=None)

Lessons = Annotated[Path | None, typer.Option(help="The folder with the lessons. Default: tutorials/ of the checkout "
                                                   "that this tinyres is part of.")]
To = Annotated[Path, typer.Option(help="The folder of what is built: student/, solution/, html/.")]
Install = Annotated[str, typer.Option(metavar="WHAT", help="What the notebooks install on Colab: tinyres, "
                                      "tinyres==VERSION or \"tinyres @ ADDRESS\".")]
Number = Annotated[int, typer.Argument(metavar="NN", show_default=False, help="The number of a lesson.")]


@app.callback(invoke_without_command=True)
def teach(context: typer.Context) -> None:
    """The lessons: build notebooks and pages of them, check answers, release a course."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("list")
def list_lessons(lessons: Lessons = None, json: setup.Json = False) -> None:
    """The lessons there are: minutes, what each needs, its exercises and points."""
    found = _all(lessons)
    if json:
        setup.report({"lessons": [_about(lesson) for lesson in found]}, "", True)
        return
    columns = (("lesson", "right"), ("title", "left"), ("minutes", "right"), ("needs", "left"), ("points", "right"),
               ("exercises", "left"))
    table.show(columns, [[str(lesson.number), lesson.title, str(lesson.minutes),
                          ", ".join(map(str, lesson.needs)) or "none", str(lesson.points),
                          ", ".join(exercise.name for exercise in lesson.exercises)] for lesson in found])


@app.command("build")
def build_lessons(
    numbers: Annotated[list[int] | None, typer.Argument(metavar="[NN ...]", show_default=False, help="Only these "
                                                        "lessons. Default: all.")] = None,
    to: To = building.USUAL,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace student notebooks that were worked in, too.")
                         ] = False,
    install: Install = "tinyres",
    lessons: Lessons = None,
    quiet: setup.Quiet = False,
    json: setup.Json = False,
) -> None:
    """Build student notebooks, executed solutions and pages in HTML. Needs the extra teach.

    A student notebook in which somebody has changed anything is kept.
    """
    found = _all(lessons)
    for number in numbers or ():
        _one(found, number)
    if to.exists() and not to.is_dir():
        raise typer.BadParameter(f"{to} is a file; give a folder.", param_hint="--to")
    _installable(install)
    built = building.build(found, to, numbers or (), overwrite, install, lambda line: setup.say(line, quiet))
    for path in built.kept:
        setup.say(f"kept, as somebody worked in it (--overwrite replaces it): {path}", quiet)
    files = [str(path) for path in built.written]
    setup.report({"to": str(to), "written": files, "kept": [str(path) for path in built.kept]},
                 f"{len(files)} files in {to}; `tinyres teach serve{_unless(to)}` shows them", json)


@app.command("check")
def check_answers(
    number: Number,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", show_default=False, help="A notebook or a Python file "
                                                "with your answers; its code is run. Default: the student notebook in "
                                                f"{building.USUAL}, else the exercise as it is handed out.")] = None,
    limit: Annotated[float | None, setup.number("Seconds that one cell may take. Default: 30, or twice the lesson's.",
                                                0.1)] = None,
    lessons: Lessons = None,
    json: setup.Json = False,
) -> None:
    """Check the answers to a lesson's exercises, and say which misconception a wrong one shows.

    Only the answers count: whatever else of the notebook was changed is taken from the lesson itself. Exit status 1
    unless every exercise is right.
    """
    lesson = _one(_all(lessons), number)
    usual = building.student_notebook(building.USUAL, lesson)
    if file is None and usual.is_file():
        file = usual
    if file is not None and not file.is_file():
        what = "is a folder; name a file" if file.is_dir() else "is not there; check the path"
        raise typer.BadParameter(f"{file} {what}.", param_hint="FILE")
    with setup.option("FILE"):
        report = checking.grade_file(lesson, file, limit)
    setup.report(report.as_dict() | {"file": None if file is None else str(file)}, "", True) if json else _show(report,
                                                                                                              file)
    if not report.passed:
        raise typer.Exit(1)


@app.command("release")
def release_lessons(
    numbers: Annotated[list[int] | None, typer.Argument(metavar="[NN ...]", show_default=False, help="Only these "
                                                        "lessons. Default: all.")] = None,
    to: Annotated[Path, typer.Option(help="The folder of the course; one that is there is brought up to date.")
                  ] = Path("build") / "course",
    roster: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="The students, a line each, with a column id: "
                                                "each gets notebooks with a seed of their own.")] = None,
    install: Install = "tinyres",
    wheel: Annotated[Path | None, typer.Option(help="The wheel of tinyres for the autograders. Default: built from the "
                                                    "checkout.")] = None,
    gradescope: Annotated[bool, typer.Option(help="Make the autograders for Gradescope, too.")] = True,
    lessons: Lessons = None,
    quiet: setup.Quiet = False,
    json: setup.Json = False,
) -> None:
    """Release a course: nbgrader's folder, a notebook for each student, autograders for Gradescope.

    Needs the extra teach. Submissions, grades and the configuration that are there already are left as they are.
    """
    from tinyres.teach import release
    from tinyres.teach import roster as rosters

    found = _all(lessons)
    for number in numbers or ():
        _one(found, number)
    for option, path in (("--roster", roster), ("--wheel", wheel)):
        if path is not None and not path.is_file():
            raise typer.BadParameter(f"{path} is not there; check the path.", param_hint=option)
    if to.exists() and not to.is_dir():
        raise typer.BadParameter(f"{to} is a file; give a folder.", param_hint="--to")
    _installable(install)
    with setup.option("--roster"):
        students = [] if roster is None else rosters.read(roster)
    done = release.release(found, to, numbers or (), students, install, gradescope, wheel,
                           lambda line: setup.say(line, quiet))
    setup.report({"to": str(to), "assignments": list(done.assignments), "students": done.students,
                  "autograders": [str(path) for path in done.autograders]},
                 f"{len(done.assignments)} lessons for {done.students} students in {to}", json)


@app.command("serve")
def serve_lessons(
    port: Annotated[int, setup.whole("The port. 0: any that is free.", 0, 65535)] = 8000,
    to: To = building.USUAL,
) -> None:
    """Show what `tinyres teach build` built in a browser, on this machine only. Ctrl+C ends it."""
    from tinyres.teach.pages import server

    served = server(to, port)
    print(f"http://127.0.0.1:{served.server_address[1]}/ shows {to}; Ctrl+C ends it", flush=True)
    try:
        served.serve_forever()
    finally:
        served.server_close()


# --- what the commands share ------------------------------------------------------------------------------------------


def _all(lessons: Path | None) -> list[Lesson]:
    try:
        return reading.all_in(reading.folder(lessons))
    except FileNotFoundError as error:
        if lessons is None:
            raise
        raise typer.BadParameter(str(error), param_hint="--lessons") from error


def _one(lessons: list[Lesson], number: int) -> Lesson:
    with setup.option("NN"):
        return reading.one_of(lessons, number)


def _installable(install: str) -> None:
    from tinyres.teach import colab

    with setup.option("--install"):
        colab.first_cell(install)


def _unless(to: Path) -> str:
    return "" if to == building.USUAL else f" --to {to}"


def _about(lesson: Lesson) -> dict[str, Any]:
    return {"lesson": lesson.number, "title": lesson.title, "file": str(lesson.path), "minutes": lesson.minutes,
            "seconds": lesson.seconds, "needs": list(lesson.needs), "objectives": list(lesson.objectives),
            "exercises": {exercise.name: exercise.points for exercise in lesson.exercises}, "points": lesson.points}


def _show(report: checking.Report, file: Path | None) -> None:
    lesson = report.lesson
    print(f"lesson {lesson.number}, {lesson.title}: {file or 'the exercise as it is handed out'}")
    rows = [[verdict.exercise, f"{verdict.earned} of {verdict.points}", _result(verdict)]
            for verdict in report.verdicts]
    table.show((("exercise", "left"), ("points", "right"), ("result", "left")), rows)
    for verdict in report.verdicts:
        if verdict.kind not in SHORT:
            print(f"\n{verdict.exercise}: {_result(verdict)}")
            for line in verdict.says.splitlines():
                print(textwrap.indent(textwrap.fill(table.printable(line), 96, break_long_words=False), "    "))
    for note in report.notes:
        setup.say(f"note: {note}")
    print(f"\n{report.earned} of {lesson.points} points", flush=True)


SHORT = ("right", "empty")  # all that there is to say stands in the table
WORDS = {"wrong": "wrong", "missing": "no cell for it", "error": "its code failed",
         "stuck": "does not end", "ended": "ends the program", "printed": "prints without end"}


def _result(verdict: checking.Verdict) -> str:
    """What the table says."""
    if verdict.kind in SHORT:
        return verdict.says.removeprefix(f"{verdict.exercise}: ")
    return verdict.tag or WORDS[verdict.kind]
