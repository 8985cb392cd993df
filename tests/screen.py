"""A terminal for tests: a program runs in a pseudo-terminal, keys go in, and what stands on the screen comes out.

The screen understands what a plain terminal must: text, carriage return, line feed, backspace, cursor to a place, erase
to the end of line or screen, colours (which it forgets). Anything else fails the test, as a terminal might show it.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

from rich.cells import cell_len

SEQUENCE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class Screen:
    """What a terminal of columns x rows shows after `feed`. scrolled: the lines that left it at the top."""

    def __init__(self, columns: int, rows: int):
        self.columns, self.rows = columns, rows
        self.cells = [[" "] * columns for _ in range(rows)]
        self.row = self.column = 0
        self.scrolled: list[str] = []
        self.rest = ""

    def feed(self, text: str) -> None:
        text, self.rest = self.rest + text, ""
        i = 0
        while i < len(text):
            if text[i] == "\x1b":
                match = SEQUENCE.match(text, i)
                if match is None:
                    assert len(text) - i < 12, f"an escape sequence that no plain terminal knows: {text[i:i + 12]!r}"
                    self.rest = text[i:]
                    return
                self.control(match[1], match[2])
                i = match.end()
            else:
                self.put(text[i])
                i += 1

    def control(self, numbers: str, letter: str) -> None:
        if letter == "m":
            return
        if letter == "H" and not numbers:
            self.row = self.column = 0
        elif letter == "K" and not numbers:
            self.cells[self.row][self.column:] = [" "] * (self.columns - self.column)
        elif letter == "J" and not numbers:
            self.control("", "K")
            for row in range(self.row + 1, self.rows):
                self.cells[row] = [" "] * self.columns
        else:
            raise AssertionError(f"an escape sequence that no plain terminal knows: {numbers}{letter}")

    def put(self, sign: str) -> None:
        if sign == "\r":
            self.column = 0
        elif sign == "\n":
            self.row += 1
            if self.row == self.rows:
                self.scrolled.append("".join(self.cells.pop(0)).rstrip())
                self.cells.append([" "] * self.columns)
                self.row -= 1
        else:
            assert sign.isprintable(), f"a control character on the screen: {sign!r}"
            assert self.column < self.columns, f"a line is wider than the screen: {self.lines()[self.row]!r}"
            self.cells[self.row][self.column] = sign
            for _ in range(cell_len(sign) - 1):  # a wide sign takes two places
                self.column += 1
                self.cells[self.row][self.column] = ""
            self.column += 1

    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self.cells]

    def text(self) -> str:
        return "\n".join(self.lines())


class Terminal:
    """A program in a pseudo-terminal, which is its controlling one."""

    def __init__(self, command: list[str], columns: int = 80, rows: int = 24, **environment: str):
        self.master, self.slave = pty.openpty()
        self.screen = Screen(columns, rows)
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self.slave)
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
        self.process = subprocess.Popen(
            command, stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env=kept | {"TERM": "xterm", "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"} | environment)
        self.raw = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        old, self.screen = self.screen, Screen(columns, rows)
        self.screen.scrolled = old.scrolled

    def keys(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def read(self, seconds: float) -> bool:
        """Take in what the program writes; False if nothing came in that time."""
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            content = os.read(self.master, 65536)
        except OSError:
            return False
        text = content.decode("utf-8", "replace")
        self.raw += text
        self.screen.feed(text)
        return True

    def wait_for(self, *texts: str, seconds: float = 30) -> str:
        """The screen, once it shows all of these texts; fails after a time."""
        end = time.monotonic() + seconds
        while not all(text in self.screen.text() for text in texts):
            assert time.monotonic() < end, f"waited for {texts}, the screen shows:\n{self.screen.text()}"
            self.read(0.2)
        while self.read(0.05):  # the rest of what is being drawn
            pass
        return self.screen.text()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self, seconds: float = 20) -> int:
        """The exit status, once the program has ended."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it does not end; the screen shows:\n{self.screen.text()}"
            self.read(0.1)
        while self.read(0.05):
            pass
        return self.process.returncode

    def is_as_before(self) -> bool:
        """Whether the terminal has the mode that it had before the program ran."""
        return termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)
