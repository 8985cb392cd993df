"""What every lesson must hold to: it runs in its time, its exercises can be failed and solved, every wrong answer is
told which misconception it shows, and nothing gives a solution away."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyres.teach import answers, check, lint, process
from tinyres.teach import lesson as reading

resource = pytest.importorskip("resource", reason="processor time is measured by a module that Windows lacks")

ROOT = Path(__file__).resolve().parents[1]
LESSONS = reading.all_in(ROOT / "tutorials")
LEAST = 5  # wrong answers that an exercise needs
each = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
# A script's own processor time decides, so that other tests beside it do not.
each_by_time = pytest.mark.parametrize("lesson", [
    pytest.param(lesson, id=lesson.name, marks=[pytest.mark.slow] if lesson.seconds > 10 else [])
    for lesson in LESSONS])
needs_notebooks = pytest.mark.skipif(not all(map(importlib.util.find_spec, ("nbformat", "nbclient", "ipykernel"))),
                                     reason="no notebook was made: pip install 'tinyres[teach]'")


def test_the_first_lessons_are_there():
    assert {1, 2, 3, 4, 5, 7} <= {lesson.number for lesson in LESSONS}
    assert len({lesson.number for lesson in LESSONS}) == len(LESSONS)


@each
def test_a_lesson_is_built_as_a_lesson_is(lesson):
    assert lint.problems(lesson) == []


@each
def test_links_lead_somewhere(lesson):
    assert lint.dead_links(lesson) == []


def test_prerequisites_come_before():
    needs = {lesson.number: lesson.needs for lesson in LESSONS}
    assert lint.cycles(needs) == []
    assert [(number, other) for number, others in needs.items() for other in others if other >= number] == []


@each_by_time
def test_the_script_runs_in_its_time(lesson, tmp_path):
    """Without a window, without leaving anything behind, on two threads; twice the declared seconds fail."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "2",
                   "OPENBLAS_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-W", "error::RuntimeWarning", lesson.path], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, timeout=60 + 20 * lesson.seconds)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert seconds < 2 * lesson.seconds, f"{seconds:.1f} seconds of processor time, declared {lesson.seconds}"
    assert list(tmp_path.iterdir()) == []
    assert "reference" in "".join(done.stdout.splitlines(keepends=True)[:3])  # which kernel set runs


@each
def test_the_students_version_fails_every_check_as_not_done_yet(lesson):
    report = check.grade(lesson, None)
    assert [verdict.kind for verdict in report.verdicts] == ["empty"] * len(lesson.exercises)
    assert report.earned == 0 < lesson.points and not report.passed and report.notes == ()


@each
def test_the_solution_passes_every_check_and_says_so(lesson):
    report = check.grade(lesson, lesson.solved().cells)
    assert [(verdict.kind, verdict.says) for verdict in report.verdicts if verdict.kind != "right"] == []
    assert report.passed and report.earned == lesson.points and report.notes == ()
    for verdict in report.verdicts:
        assert verdict.says.startswith(f"{verdict.exercise}: ") and any(map(str.isdigit, verdict.says))  # how much


@each
def test_the_solution_passes_with_other_random_inputs(lesson, monkeypatch):
    """A course gives each student a seed."""
    for seed in ("1", "4294967295"):
        monkeypatch.setenv("TINYRES_SEED", seed)
        report = check.grade(lesson, lesson.solved().cells)
        assert [verdict.says for verdict in report.verdicts if verdict.kind != "right"] == [], f"seed {seed}"


@each
def test_every_wrong_answer_is_rejected_with_its_own_words(lesson):
    wrong = check.wrong_answers(lesson)
    assert {answer.exercise for answer in wrong} == {exercise.name for exercise in lesson.exercises}
    for exercise in lesson.exercises:
        tags = {answer.tag for answer in wrong if answer.exercise == exercise.name}
        assert len(tags) >= LEAST, f"{exercise.name}: {tags}"
    assert all(answer.why and "\n" not in answer.why for answer in wrong)
    assert len({(answer.exercise, answer.code) for answer in wrong}) == len(wrong)
    verdicts = check.reject(lesson, wrong)
    assert [(answer.exercise, answer.tag, verdict.tag, verdict.says) for answer, verdict in
            zip(wrong, verdicts, strict=True) if verdict.tag != answer.tag] == []
    tags = {verdict.says: (verdict.exercise, verdict.tag) for verdict in verdicts}
    assert {(verdict.exercise, verdict.tag) for verdict in verdicts} == set(tags.values())  # none shares its words
    assert min(map(len, tags)) > 60


@each
def test_no_message_gives_the_solution_away(lesson):
    for answer, verdict in zip(wrong := check.wrong_answers(lesson), check.reject(lesson, wrong), strict=True):
        (exercise,) = [exercise for exercise in lesson.exercises if exercise.name == answer.exercise]
        solution = reading.solutions(lesson.cells[exercise.solution].source)
        assert lint.pieces(solution, verdict.says.split("\n")) == []


@each
def test_what_follows_an_exercise_runs_without_its_result_or_fails_alone(lesson):
    """The whole student's version: cells that use an unsolved exercise fail, and every other one runs."""
    if lesson.seconds > 30:
        pytest.skip(f"it takes {lesson.seconds} seconds; its cells before the last check are run by the other tests")
    steps = answers.steps(lesson, None)[0]
    outcomes = process.run(steps, 60 + 4 * lesson.seconds)
    assert {outcome.state for outcome in outcomes} == {"ended"}
    failed = [(step, outcome.failure) for step, outcome in zip(steps, outcomes, strict=True) if outcome.failure]
    first, failure = failed[0]  # what a cell below it says may come of names that another lacks
    assert first.is_check and failure["empty"]
    assert {step.exercise for step, _ in failed} >= {exercise.name for exercise in lesson.exercises}


@each
@needs_notebooks
def test_the_students_notebook_holds_no_solution_and_no_output(lesson):
    from tinyres.teach import notebooks

    notebook = notebooks.student(lesson)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "SOLUTION" not in text and text.count("raise NotImplementedError()") >= len(lesson.exercises)
    assert all(cell.get("outputs", []) == [] and cell.get("execution_count") is None for cell in notebook.cells
               if cell.cell_type == "code")
    for exercise in lesson.exercises:
        solution = reading.solutions(lesson.cells[exercise.solution].source)
        assert lint.pieces(solution, repr(notebook).replace("\\n", "\n").split("\n")) == []


@each
def test_jupytext_reads_the_same_cells(lesson):
    jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed, so its reading was not compared: pip "
                                   "install 'tinyres[teach]'")
    theirs = jupytext.reads(lesson.path.read_text(encoding="utf-8"), fmt="py:percent").cells
    if theirs[0].cell_type == "raw":  # the rest of the header
        del theirs[0]
    for cell, ours in zip(theirs, lesson.cells, strict=True):
        cell.metadata.pop("lines_to_next_cell", None)  # only for its way back
        assert (cell.cell_type, cell.source, json.dumps(cell.metadata)) == (ours.kind, ours.source,
                                                                           json.dumps(ours.metadata))
