"""Grade a learner's answers on this machine, and say which misconception a wrong one shows."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyres.teach import answers, process
from tinyres.teach.answers import Step
from tinyres.teach.lesson import CHECK, Cell, Lesson
from tinyres.teach.misconception import WrongAnswer
from tinyres.teach.needed import needed
from tinyres.teach.process import Outcome

LEAST_LIMIT = 30.0  # seconds of wall clock for one cell


@dataclass(frozen=True)
class Verdict:
    """What came of an exercise.

    kind: "right"; "misconception", a wrong answer that is known, with its tag; "wrong", another one; "empty";
    "missing", the file has no cell for it; "error", the learner's code failed; "stuck", it did not end; "ended", it
    ended the program; "printed", it printed without end. says: in words; where it is right, what the check printed.
    """

    exercise: str
    points: int
    earned: int
    kind: str
    says: str
    tag: str | None = None


@dataclass(frozen=True)
class Report:
    """The verdicts of a lesson; notes: on cells that are no exercise, yet failed."""

    lesson: Lesson
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()

    @property
    def earned(self) -> int:
        return sum(verdict.earned for verdict in self.verdicts)

    @property
    def passed(self) -> bool:
        return self.earned == self.lesson.points

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"lesson": self.lesson.number, "title": self.lesson.title, "points": self.earned,
                "of": self.lesson.points, "exercises": [vars(verdict) for verdict in self.verdicts],
                "notes": list(self.notes)}


def grade_file(lesson: Lesson, path: Path | None, limit: float | None = None) -> Report:
    """Grade a learner's .ipynb or .py, None for the exercise as it is handed out; see grade.

    Raises ValueError for a file that holds no cells, OSError for one that cannot be read.
    """
    return grade(lesson, None if path is None else answers.read(path), limit)


def grade(lesson: Lesson, theirs: Sequence[Cell] | None, limit: float | None = None) -> Report:
    """Grade a learner's cells, in a process of their own.

    Only what the answers and their checks need of the lesson is run. limit: seconds of wall clock that a cell may take,
    by default 30, or twice the lesson's seconds if that is more. Raises RuntimeError if no process can be begun.
    """
    limit = _limit(lesson) if limit is None else limit
    steps, missing = answers.steps(lesson, theirs)
    targets = {i for i, step in enumerate(steps) if step.exercise and step.exercise not in missing}
    steps = [steps[i] for i in needed([step.source for step in steps], targets)] if targets else []
    outcomes = process.run(steps, limit)
    verdicts = []
    for exercise in lesson.exercises:
        if exercise.name in missing:
            verdicts.append(Verdict(exercise.name, exercise.points, 0, "missing",
                                    f"the file has no cell for it: define {exercise.name}() in a cell, or take the "
                                    "cell from the notebook as it was handed out"))
            continue
        answer, check = (next(outcome for step, outcome in zip(steps, outcomes, strict=True)
                              if step.exercise == exercise.name and step.is_check == is_check)
                         for is_check in (False, True))
        verdicts.append(replace(_verdict(exercise.name, answer, check), points=exercise.points))
    verdicts = [replace(verdict, earned=verdict.points if verdict.kind == "right" else 0) for verdict in verdicts]
    notes = [f"cell {step.label}: {_failure(outcome)[1]}" for step, outcome in zip(steps, outcomes, strict=True)
             if not step.exercise and (outcome.failure or outcome.state != "ended")]
    return Report(lesson, tuple(verdicts), tuple(notes))


def _limit(lesson: Lesson) -> float:
    return max(LEAST_LIMIT, 2.0 * lesson.seconds)


def _verdict(name: str, answer: Outcome, check: Outcome) -> Verdict:
    failure = check.failure or {}
    if check.state == "ended" and not failure:
        return Verdict(name, 0, 0, "right", _last_line(check.printed) or "right")
    if failure.get("tag"):
        return Verdict(name, 0, 0, "misconception", failure["message"], failure["tag"])
    broken = answer if answer.failure or answer.state in ("stuck", "died") else check
    kind, says = _failure(broken)
    return Verdict(name, 0, 0, kind, says)


def _failure(outcome: Outcome) -> tuple[str, str]:
    """(kind, words) of what did not come to its end."""
    failure = outcome.failure or {}
    if outcome.state == "stuck":
        return "stuck", (f"not done after {outcome.seconds:g} seconds, so it was stopped: look for a loop that never "
                         "ends (on a slow machine, give it more by --limit)")
    if outcome.state == "left out":
        return "stuck", "left out, as what it needs did not end"
    if outcome.state == "died":
        return "ended", (f"it ended the whole program (exit status {failure.get('status')}): leave out os._exit() and "
                         "the like, and look for memory that is used up")
    if failure["ends"]:
        return "ended", "it ends the program: leave out exit() and quit()"
    if failure["too_much"]:
        return "printed", f"it prints {failure['message']}: look for a print() in a loop that never ends"
    if failure["empty"]:
        return "empty", "not done yet: " + (failure["message"] or "replace `raise NotImplementedError()`")
    where = f" (line {failure['line']} of the cell {failure['place']})" if failure["line"] else ""
    if failure["kind"] == "AssertionError":
        return "wrong", failure["message"] or f"an assertion failed{where}"
    words = f"{failure['kind']}: {failure['message']}{where}"
    if failure["place"].startswith(CHECK):
        words = f"the check could not go on with what it was given: {failure['kind']}: {failure['message']}"
    return "error", words


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


# --- wrong answers ----------------------------------------------------------------------------------------------------


def wrong_answers(lesson: Lesson) -> list[WrongAnswer]:
    """The lesson's wrong answers, from wrong_answers/ beside it. Raises FileNotFoundError if there are none."""
    path = lesson.path.parent / "wrong_answers" / f"lesson_{lesson.number:02d}.py"
    if not path.is_file():
        raise FileNotFoundError(f"teach: lesson {lesson.number} has no wrong answers; expected them in {path}")
    return list(runpy.run_path(str(path))["WRONG"])


def reject(lesson: Lesson, wrong: Sequence[WrongAnswer], limit: float | None = None) -> list[Verdict]:
    """The verdict on each of these answers, all else of the lesson being solved; all in one process."""
    limit = _limit(lesson) if limit is None else limit
    steps = answers.steps(lesson, lesson.solved().cells)[0]
    right = {step.exercise: step for step in steps if step.exercise and not step.is_check}
    checks = {step.exercise: step for step in steps if step.is_check}
    targets = {i for i, step in enumerate(steps) if step.exercise}
    targets |= {len(steps) + i for i in range(len(wrong))}
    kept = needed([step.source for step in steps] + [answer.code for answer in wrong], targets)
    # Checks are not run before, and no step belongs to an exercise: only a wrong answer is left out with its check.
    job = [replace(steps[i], exercise="") for i in kept if i < len(steps) and not steps[i].is_check]
    places = []
    for number, answer in enumerate(wrong):
        group = f"{answer.exercise} {number}"
        places.append(len(job))
        job += [Step(answer.exercise, answer.code, group), replace(checks[answer.exercise], exercise=group),
                replace(right[answer.exercise], exercise="")]
    outcomes = process.run(job, limit)
    return [_verdict(answer.exercise, outcomes[place], outcomes[place + 1])
            for answer, place in zip(wrong, places, strict=True)]
