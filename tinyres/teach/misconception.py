"""What a lesson's checks raise, and the wrong answers that they are tested with."""

from __future__ import annotations

from dataclasses import dataclass


class Misconception(AssertionError):
    """An answer that is wrong in a known way.

    tag: short and stable, letters, digits and hyphens ("assigns-instead-of-adding"); the wrong answers and the
    teacher's page go by it. message: what was observed on which small input, what that usually means, what to look at.
    """

    def __init__(self, tag: str, message: str):
        super().__init__(message)
        self.tag = tag
        self.message = message

    def __reduce__(self) -> tuple[type[Misconception], tuple[str, str]]:
        return type(self), (self.tag, self.message)


@dataclass(frozen=True)
class WrongAnswer:
    """A plausible wrong answer to an exercise, which its check must reject with this tag.

    exercise: the grade id of the exercise, its function's name. tag: of the Misconception. why: what one who writes
    this believes, one line. code: the whole source of the function or functions, in place of the solution cell.
    """

    exercise: str
    tag: str
    why: str
    code: str
