"""The stepper in a terminal: keys and a view that is drawn anew after each; as plain text where it is piped.

No screen of its own: what stood in the terminal scrolls up, and the last view stays. A terminal that can only print
lines (TERM=dumb) gets each view below the one before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from tinyres.stepper import panels, words
from tinyres.stepper.keys import keys
from tinyres.stepper.lines import Line, Paper, unstyled
from tinyres.stepper.schema import Trace
from tinyres.stepper.session import Session
from tinyres.stepper.short import number, size

if TYPE_CHECKING:
    from tinyres.stepper.trace import Recording

WIDEST = 110  # places that are used at most: longer lines are hard to read
HOME, REST_OF_LINE, REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def run(recording: Recording | Trace, view: str = "blocks", *, direction: str = "backward", predict: bool = False,
        stdin: TextIO | None = None, stdout: TextIO | None = None) -> Session | None:
    """Step through a recording with keys, until q; print it as plain text where stdin or stdout is no terminal.

    recording: from `record`, or its trace alone, of which nothing can be checked anew; view: "blocks" or "ops";
    direction: "backward" or "forward"; predict: ask before each step. Returns the session, whose `score` is that of the
    predictions, or None after plain text. Raises ValueError for another view or direction; Ctrl-C raises
    KeyboardInterrupt. The terminal is left as it was.
    """
    stdin, stdout = sys.stdin if stdin is None else stdin, sys.stdout if stdout is None else stdout
    trace, check = (recording, None) if isinstance(recording, Trace) else (recording.trace, recording.check)
    session = Session(trace, view, direction, predict, check)
    if not (stdin.isatty() and stdout.isatty()):
        _write_plain(trace, view, direction, stdout)
        return None
    screen = Screen(stdout)
    with keys(stdin) as read:
        try:
            while not session.done:
                screen.show(session)
                key = read()
                if key == "c" and check is not None and session.typed is None:
                    session.message = "running the forward pass again ..."
                    screen.show(session)
                session.press(key)
        finally:
            screen.end()
    if session.score:
        stdout.write(f"Predictions: {session.score}.\n")
        stdout.flush()
    return session


class Screen:
    """Where a session is shown: drawn over the view before, or below it on a terminal that can only print."""

    def __init__(self, stdout: TextIO):
        from rich.console import Console

        self.stdout = stdout
        self.console = Console(file=stdout, highlight=False, markup=False, emoji=False, force_terminal=True)
        self.draws = not (self.console.is_dumb_terminal or self.console.legacy_windows)
        encoding = stdout.encoding or "ascii"
        self.encoding = "cp437" if os.environ.get("TERM") == "linux" else encoding  # signs that its fonts have
        self.begun = False

    def show(self, session: Session) -> None:
        """Draw the session as it is now, in the window's size of now."""
        columns, rows = window(self.stdout)
        paper = Paper(max(20, min(columns - 1, WIDEST)), self.encoding)  # a full line might wrap
        view, foot = session.lines(paper, rows if self.draws else rows - 2)  # a blank line before, the cursor behind
        if not self.draws:
            self.stdout.write("".join(self.styled(line) + "\n" for line in [[], *view, *foot]))
            self.stdout.flush()
            return
        if not self.begun:
            self.stdout.write("\n" * rows)  # what was there can be scrolled back to
            self.begun = True
        blank: list[Line] = [[] for _ in range(rows - len(view) - len(foot))]
        texts = [self.styled(line) for line in [*view, *blank, *foot]]
        self.stdout.write(HOME + f"{REST_OF_LINE}\n".join(texts) + REST_OF_SCREEN)
        self.stdout.flush()

    def end(self) -> None:
        """Leave the last view, and the cursor below it."""
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            self.stdout.write("\n")
            self.stdout.flush()

    def styled(self, line: Line) -> str:
        """A line with the escape sequences that the terminal understands, NO_COLOR respected."""
        from rich.text import Text

        with self.console.capture() as capture:
            self.console.print(Text.assemble(*line), end="", no_wrap=True, overflow="ignore", crop=False)
        return capture.get()


def window(stdout: TextIO) -> tuple[int, int]:
    """Columns and rows of the terminal, (80, 24) where it does not tell."""
    columns = rows = 0
    with contextlib.suppress(OSError, ValueError, AttributeError):
        columns, rows = os.get_terminal_size(stdout.fileno())
    if columns <= 0 or rows <= 0:
        columns, rows = shutil.get_terminal_size((80, 24))
    return columns, max(rows, 4)


def _write_plain(trace: Trace, view: str, direction: str, stdout: TextIO) -> None:
    """All steps, line by line; quietly no more once nobody reads."""
    try:
        for line in plain(trace, view, direction, stdout.encoding or "ascii"):
            stdout.write(f"{line}\n")
        stdout.flush()
    except BrokenPipeError:  # as by `| head`: what is still in the buffer must go somewhere
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())


def plain(trace: Trace, view: str = "blocks", direction: str = "backward", encoding: str = "utf-8", width: int = 80
          ) -> Iterator[str]:
    """All steps as lines of plain text of at most `width` signs, each as it is asked for.

    Raises ValueError for a view or direction that there is not, before the first line.
    """
    order = words.steps(trace, view, "forward" if trace.stopped else direction)
    return _plain(trace, view, "forward" if trace.stopped else direction, order, Paper(width, encoding))


def _plain(trace: Trace, view: str, direction: str, order: Sequence[int], paper: Paper) -> Iterator[str]:
    facts = [f"{direction}, {len(order)} steps of {view}"]
    if trace.loss is not None:
        facts += [f"loss {number(trace.loss)} ({trace.dtype})", f"{size(trace.held)} held when the forward pass ended"]
    yield from paper.wrap(trace.title)
    yield from paper.wrap("; ".join(facts))
    for note in trace.notes:
        yield from paper.wrap(note, "note      ", 10)
    digits = len(str(len(order)))
    for place, id in enumerate(order, 1):
        head = f"{place:>{digits}} of {len(order)}  "
        yield ""
        yield from paper.wrap(words.step_title(trace, view, id), head, len(head))
        for line in panels.step(paper, trace, view, id, direction, pictures=False):
            yield unstyled(line)
    if trace.stopped:
        yield ""
        yield from (unstyled(line) for line in panels.stopped(paper, trace.stopped))
