"""Walking through a trace with keys: where one is, what a key does, what the screen shows. It knows no terminal."""

from __future__ import annotations

from collections.abc import Callable

from tinyres.stepper import panels, words
from tinyres.stepper.lanes import neighbourhood
from tinyres.stepper.lines import STRONG, WEAK, Line, Paper, cells, shortened
from tinyres.stepper.questions import Question, questions
from tinyres.stepper.schema import Check, Trace
from tinyres.stepper.search import completed, fitting, names
from tinyres.stepper.short import number, several

HELP = [("n, right, enter", "next step; space scrolls first where there is more below"), ("b, left", "step back"),
        ("home, end", "first step, last step"), ("f, F", "next fork, the fork before"),
        ("j, J", "next join, the join before"), ("g", "go to a layer: type its name or a step's number; tab completes"),
        ("v", "blocks or single ops"), ("d", "backward or forward"), ("c", "finite-difference check of this step, now"),
        ("p", "predict first: a question before each step; the digits answer, r reveals"),
        ("up, down, page", "scroll"), ("?", "this help"), ("q, escape", "quit")]
KEYS = ("n next", "b back", "f fork", "g go to", "v view", "j join", "d direction", "p predict", "c check")


class Session:
    """One walk. check(node, what="rule" or "loss"): makes a finite difference, as Recording.check does; None where
    nothing can be run again. Raises ValueError for a view or direction that there is not.
    """

    def __init__(self, trace: Trace, view: str = "blocks", direction: str = "backward", predict: bool = False,
                 check: Callable[..., Check] | None = None):
        self.trace, self.view, self.check = trace, view, check
        self.direction = "forward" if trace.stopped else direction
        self.predict = predict
        self.order = words.steps(trace, view, self.direction)
        self.row = len(self.order) - 1 if trace.stopped and self.order else 0
        self.scroll, self.page, self.below = 0, 10, 0
        self.message, self.help, self.done = "", False, False
        self.typed: str | None = None  # the name that is being typed behind g
        self.asked: dict[str, dict[int, Question]] = {}
        self.answers: dict[tuple[str, int], int | None] = {}  # None: revealed without an answer
        self.checks: dict[tuple[str, str, int], list[Check]] = {}

    @property
    def id(self) -> int:
        return self.order[self.row]

    # --- what a key does ---------------------------------------------------------------------------------------------

    def press(self, key: str) -> None:
        """Do what a key says; one without a meaning does nothing but say so."""
        if key == "resize":
            return
        self.message = ""
        if key == "quit":
            self.done = True
        elif self.typed is not None:
            self._type(key)
        elif self.help:
            self.help, self.scroll = False, 0
        elif self.question is not None and key.isdigit():
            self._answer(int(key) - 1)
        elif key in ("r", "enter") and self.question is not None:
            self.answers[self.view, self.id] = None
        elif key in (" ", "page down", "down", "up", "page up"):
            self._scroll(key)
        elif key in _ACTIONS and (self.order or key in ("?", "h", "q", "escape")):
            _ACTIONS[key](self)
        elif key in _ACTIONS:
            self.message = "there is no step here to go to or to change"
        else:
            self.message = f"{key} does nothing here: ? shows the keys"

    def go(self, row: int) -> None:
        """To a step by its place, from 0; the first or last where there is none."""
        self.row = max(0, min(row, len(self.order) - 1))
        self.scroll = 0

    def move(self, by: int) -> None:
        if not 0 <= self.row + by < len(self.order):
            self.message = "this is the last step" if by > 0 else "this is the first step"
            return
        self.go(self.row + by)

    def seek(self, what: str, by: int) -> None:
        """To the next fork or join, or by < 0 the one before."""
        row = self.row + by
        while 0 <= row < len(self.order):
            if self._is(what, self.order[row]):
                return self.go(row)
            row += by
        self.message = f"there is no {what} {'behind' if by > 0 else 'before'} this step"

    def _is(self, what: str, id: int) -> bool:
        node = words.node_of(self.trace, self.view, id)
        if what == "fork":
            return (self.trace.groups[id] if self.view == "blocks" else node).fork is not None
        return node.join is not None

    def change_view(self) -> None:
        """The other view, at the same place where it has one."""
        node = words.node_of(self.trace, self.view, self.id)
        self.view = "ops" if self.view == "blocks" else "blocks"
        self._reorder(node.id if self.view == "ops" else node.group)

    def change_direction(self) -> None:
        if self.trace.stopped:
            self.message = "the forward pass stopped, so there is no backward pass"
            return
        here = self.id
        self.direction = "forward" if self.direction == "backward" else "backward"
        self._reorder(here)

    def _reorder(self, id: int | None) -> None:
        """The new order of steps, at a step's place in it, or else at that of the step made last before it."""
        self.order = words.steps(self.trace, self.view, self.direction)
        near = [row for row, other in enumerate(self.order) if id is not None and other <= id]
        self.go(self.order.index(id) if id in self.order else max(near, key=lambda r: self.order[r], default=0))

    def check_now(self) -> None:
        """Finite differences of what is shown: of a single op's rule, and of the loss, by one element of the output."""
        node = words.node_of(self.trace, self.view, self.id)
        if self.check is None:
            self.message = "nothing can be run again here: step through a function, tr.step(lambda: ...)"
            return
        single = node.kind == "op" and (self.view == "ops" or len(self.trace.groups[self.id].nodes) == 1)
        done: list[Check] = []
        for what in ("rule", "loss") if single else ("loss",):
            try:
                done.append(self.check(node.id, what=what))
            except (ValueError, RuntimeError, TypeError) as error:
                self.message = f"{self.message} {error}".strip()
        if done:
            self.checks[self.view, self.direction, self.id] = done
            verdict = "agrees with the engine" if all(c.ok for c in done) else "DOES NOT AGREE with the engine"
            self.message = f"{self.message} The finite difference {verdict}: see check below.".strip()

    def toggle_predict(self) -> None:
        self.predict = not self.predict
        self.message = ("predict first: answer with a digit, r reveals" if self.predict else
                        "steps are shown at once") + (f"; {self.score}" if self.score else "")
        if self.predict and self.direction == "forward":
            self.message += "; the questions are about the backward pass (d)"

    def start_typing(self) -> None:
        self.typed = ""

    def show_help(self) -> None:
        self.help, self.scroll = True, 0

    def quit(self) -> None:
        self.done = True

    def _scroll(self, key: str) -> None:
        if key == " " and not self.below:
            return self.move(1)
        by = {"down": 1, "up": -1, "page up": -self.page}.get(key, self.page)
        self.scroll = max(0, min(self.scroll + by, self.scroll + self.below))

    # --- go to a layer -----------------------------------------------------------------------------------------------

    def matches(self) -> list[tuple[str, int]]:
        """The steps that what was typed fits."""
        return fitting(names(self.trace, self.view, self.order), self.typed or "")

    def _type(self, key: str) -> None:
        assert self.typed is not None
        if key == "escape":
            self.typed = None
        elif key == "backspace":
            self.typed = self.typed[:-1]
        elif key == "tab":
            self.typed = completed(self.matches(), self.typed)
        elif key == "enter":
            self._arrive(self.typed.strip())
            self.typed = None
        elif len(key) == 1:
            self.typed += key

    def _arrive(self, typed: str) -> None:
        if typed.isdecimal():
            if not 1 <= int(typed) <= len(self.order):
                self.message = f"there is no step {typed}: they go from 1 to {len(self.order)}"
            else:
                self.go(int(typed) - 1)
            return
        found = self.matches()
        exact = [row for name, row in found if name.lower() == typed.lower()]
        if not typed:
            return
        if not found:
            known = [name for name, _ in names(self.trace, self.view, self.order)]
            self.message = f"no step is called {typed!r}: there are {several(known)}"
            return
        self.go(exact[0] if exact else found[0][1])
        if len(found) > 1 and not exact:
            self.message = f"{found[0][0]}, the first of {len(found)} that {typed!r} fits"

    # --- predict first -----------------------------------------------------------------------------------------------

    @property
    def question(self) -> Question | None:
        """The question that waits for an answer."""
        if not self.predict or self.direction != "backward" or not self.order:
            return None
        if self.view not in self.asked:
            self.asked[self.view] = questions(self.trace, self.view)
        return None if (self.view, self.id) in self.answers else self.asked[self.view].get(self.id)

    def _answer(self, choice: int) -> None:
        question = self.question
        assert question is not None
        if not 0 <= choice < len(question.choices):
            self.message = f"there are answers 1 to {len(question.choices)}"
            return
        self.answers[self.view, self.id] = choice
        right = choice == question.answer
        self.message = (f"{'Right' if right else f'No, it is: {question.choices[question.answer]}'}. "
                        f"{words.sentence(question.because)} {words.sentence(self.score)}")

    @property
    def score(self) -> str:
        """ "3 of 4 right", "" before the first answer."""
        given = [(self.asked[view][id].answer, answer) for (view, id), answer in self.answers.items()
                 if answer is not None]
        return f"{sum(a == b for a, b in given)} of {len(given)} right" if given else ""

    # --- what is shown -----------------------------------------------------------------------------------------------

    def lines(self, paper: Paper, height: int | None = None) -> tuple[list[Line], list[Line]]:
        """(the view, what stands at the foot). With a height both together have at most that many lines, and the view
        is the part of it that was scrolled to."""
        foot = self._foot(paper)
        if height is not None:
            foot = foot[:max(1, height // 2)]
        whole = self._body(paper, height)
        if height is None:
            return whole, foot
        room = max(1, height - len(foot))
        if len(whole) <= room:
            self.scroll = self.below = 0
            return whole, foot
        room = max(1, room - 1)  # the last line tells where one is
        self.page = max(1, room - 1)
        self.scroll = max(0, min(self.scroll, len(whole) - room))
        self.below = len(whole) - room - self.scroll
        more = "space or down: more below" if self.below else "up: more above"
        text = f"-- {more} ({self.scroll + room} of {len(whole)} lines) --"
        return [*whole[self.scroll:self.scroll + room], [(shortened(text, paper.width), WEAK)]], foot

    def _body(self, paper: Paper, height: int | None) -> list[Line]:
        if self.help:
            return [line for key, text in HELP for line in _help_line(paper, key, text)]
        stop = panels.stopped(paper, self.trace.stopped) if self.trace.stopped else []
        if not self.order:
            return stop or [[("nothing was recorded", "")]]
        around = 3 if height is None or height >= 30 else 2
        lines = [[(text, WEAK)] for text in paper.wrap(self._place())]
        lines += [[(text, STRONG)] for text in paper.wrap(words.step_title(self.trace, self.view, self.id))]
        lines += [*neighbourhood(paper, self.trace, self.view, self.order, self.row, around, around), []]
        if stop and self.row == len(self.order) - 1:
            lines += [*stop, []]
        for note in self.trace.notes if self.row == 0 else ():
            lines += paper.item("note", note)
        question = self.question
        if question is not None:
            lines += panels.hidden(paper, self.trace, self.view, self.id)
            lines += paper.item("question", question.ask, STRONG)
            for place, choice in enumerate(question.choices, 1):
                lines += [[(text, "")] for text in paper.wrap(choice, f"{'':10}{place}  ", 13)]
            return lines
        return lines + panels.step(paper, self.trace, self.view, self.id, self.direction,
                                   checks=self.checks.get((self.view, self.direction, self.id)))

    def _place(self) -> str:
        parts = [f"step {self.row + 1} of {len(self.order)}", self.view, self.direction]
        if self.trace.loss is not None:
            parts.append(f"loss {number(self.trace.loss)}")
        if self.score:
            parts.append(self.score)
        return ", ".join(parts)

    def _foot(self, paper: Paper) -> list[Line]:
        if self.typed is not None:
            found = [name for name, _ in self.matches()]
            hints = f"fits: {several(found)}" if found else "nothing fits"
            typed = paper.text(self.typed)
            while cells(typed) + 7 > paper.width:  # the end of it is what one looks at
                typed = typed[1:]
            return [*([(text, WEAK)] for text in paper.wrap(hints)[:2]), [(f"go to: {typed}", STRONG)]]
        lines: list[Line] = [[(text, STRONG)] for text in paper.wrap(self.message)] if self.message else []
        if self.help:
            keys = ["any key goes back"]
        elif self.question is not None:
            keys = [f"1 to {len(self.question.choices)} answer", "r reveal", "n next", "b back", "? help", "q quit"]
        else:
            keys = [*KEYS, "? help", "q quit"]
        while len(keys) > 3 and len(", ".join(keys)) > paper.width:
            del keys[-3]  # help and quit are always there
        return [*lines, [(shortened(", ".join(keys), paper.width), WEAK)]]


def _help_line(paper: Paper, key: str, text: str) -> list[Line]:
    first, *others = paper.wrap(text, f"{key:<16} ", 17)
    return [[(first, "")], *([(line, "")] for line in others)]


_ACTIONS: dict[str, Callable[[Session], None]] = {
    "n": lambda s: s.move(1), "right": lambda s: s.move(1), "enter": lambda s: s.move(1), "b": lambda s: s.move(-1),
    "left": lambda s: s.move(-1), "home": lambda s: s.go(0), "end": lambda s: s.go(len(s.order) - 1),
    "f": lambda s: s.seek("fork", 1), "F": lambda s: s.seek("fork", -1), "j": lambda s: s.seek("join", 1),
    "J": lambda s: s.seek("join", -1), "v": Session.change_view, "d": Session.change_direction,
    "c": Session.check_now, "p": Session.toggle_predict, "g": Session.start_typing, "/": Session.start_typing,
    "?": Session.show_help, "h": Session.show_help, "q": Session.quit, "escape": Session.quit,
}
