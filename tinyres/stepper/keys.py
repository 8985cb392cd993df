"""Keys as they are pressed, without Enter: of a terminal that is set so and left as it was found.

A key is its sign ("n"), or a name: "left", "right", "up", "down", "home", "end", "page up", "page down", "enter",
"backspace", "tab", "escape"; "resize" tells that the window has another size, "quit" that no more will come. Ctrl-C
raises KeyboardInterrupt, as everywhere.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

ESCAPES = {"[A": "up", "[B": "down", "[C": "right", "[D": "left", "OA": "up", "OB": "down", "OC": "right", "OD": "left",
           "[H": "home", "[F": "end", "OH": "home", "OF": "end", "[1~": "home", "[4~": "end", "[7~": "home",
           "[8~": "end", "[5~": "page up", "[6~": "page down", "[Z": "tab"}
CONTROLS = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\b": "backspace", "\t": "tab", "\x04": "quit",
            "\x0c": "resize"}  # Ctrl-L draws anew
WINDOWS = {"H": "up", "P": "down", "M": "right", "K": "left", "G": "home", "O": "end", "I": "page up", "Q": "page down"}
PAUSE = 0.1  # seconds after which an escape sign was the key Escape, and not the beginning of an arrow

Read = Callable[[], str]


@contextlib.contextmanager
def keys(stream: TextIO | None = None) -> Iterator[Read]:
    """Inside, the function that is given waits for the next key. Afterwards the terminal is as it was, also after an
    error, Ctrl-C, or a signal that ends the process politely.

    stream: where keys come from, sys.stdin by default. Where keys cannot be read one by one (no terminal, a system
    without a way to ask for them) whole lines are read; each sign is a key, and the line's end "enter", but behind a
    single sign.
    """
    stream = sys.stdin if stream is None else stream
    if sys.platform == "win32" and stream.isatty():
        import msvcrt

        yield lambda: windows_key(msvcrt.getwch)
        return
    found = _terminal(stream)
    if found is None:
        yield LineKeys(stream).key
        return
    with _set(*found) as ready:
        yield Decoder(found[0], ready).key


def _terminal(stream: TextIO) -> tuple[int, Any, Any] | None:
    """The file number of a stream, the mode of its terminal, and the module that asked for it; None without one."""
    try:
        import termios
    except ImportError:
        return None
    try:
        fd = stream.fileno()
        return fd, termios.tcgetattr(fd), termios
    except (OSError, ValueError, AttributeError, termios.error):  # no terminal, closed, or no file at all
        return None


@contextlib.contextmanager
def _set(fd: int, before: Any, termios: Any) -> Iterator[int]:
    """Without echo and without waiting for Enter, Ctrl-C and Ctrl-Z as ever. Gives a file that can be read when a
    signal has told of a new window size, or that the process was stopped and goes on."""
    mode = [*before[:6], list(before[6])]
    mode[3] &= ~(termios.ECHO | termios.ICANON)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    ready, tell = os.pipe()
    os.set_blocking(tell, False)

    def woken(number: int, frame: Any) -> None:
        if number == signal.SIGCONT:  # a shell may have set the terminal otherwise meanwhile
            termios.tcsetattr(fd, termios.TCSADRAIN, mode)
        with contextlib.suppress(OSError):
            os.write(tell, b"r")

    def ended(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    handlers: dict[int, Any] = {signal.SIGWINCH: woken, signal.SIGCONT: woken, signal.SIGTERM: ended,
                                signal.SIGHUP: ended}
    found: dict[int, Any] = {}
    try:
        with contextlib.suppress(ValueError):  # signals are the business of the main thread
            for number, handler in handlers.items():
                found[number] = signal.signal(number, handler)
        termios.tcsetattr(fd, termios.TCSADRAIN, mode)
        yield ready
    finally:
        with contextlib.suppress(termios.error):  # it may be gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
        for number, handler in found.items():
            signal.signal(number, handler)
        os.close(ready)
        os.close(tell)


class Decoder:
    """Bytes of a terminal as keys. wake: a file that can be read when the screen must be drawn anew, or None."""

    def __init__(self, fd: int, wake: int | None = None):
        self.fd, self.wake = fd, wake
        self.decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self.waiting = ""

    def key(self) -> str:
        """The next key."""
        while True:
            if not self.waiting and not self.more(None):
                return "quit"
            if self.waiting.startswith("\0resize"):
                self.waiting = self.waiting[len("\0resize"):]
                return "resize"
            sign, self.waiting = self.waiting[:1], self.waiting[1:]
            if sign == "\x1b":
                name = self.escape()
            else:
                name = CONTROLS.get(sign, sign if sign.isprintable() else "")
            if name:
                return name

    def escape(self) -> str:
        """What follows an escape sign: the rest of an arrow's sequence, which may come late, or nothing."""
        if not self.waiting and not self.more(PAUSE) or self.waiting[:1] not in ("[", "O"):
            return "escape"
        sequence, self.waiting = self.waiting[:1], self.waiting[1:]
        while self.waiting or self.more(PAUSE):
            sign, self.waiting = self.waiting[:1], self.waiting[1:]
            sequence += sign
            if sign.isalpha() or sign == "~":
                break
        return ESCAPES.get(sequence, "")  # a key without a meaning here

    def more(self, seconds: float | None) -> bool:
        """Wait for bytes, or for a signal; False if none came in time, or none will."""
        import select

        files = [self.fd] if self.wake is None else [self.fd, self.wake]
        found, _, _ = select.select(files, [], [], seconds)
        if self.wake is not None and self.wake in found:
            os.read(self.wake, 1024)
            if seconds is None:
                self.waiting += "\0resize"
                return True
        if self.fd not in found:
            return False
        try:
            content = os.read(self.fd, 1024)
        except OSError:  # the terminal is gone
            return False
        self.waiting += self.decode(content)
        return bool(content)


class LineKeys:
    """Keys from whole lines: "n" is one key, "g conv1" those of the name and "enter", an empty line "enter"."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.waiting: list[str] = []

    def key(self) -> str:
        """The next key, "quit" at the end."""
        if not self.waiting:
            line = self.stream.readline()
            if not line:
                return "quit"
            signs = [sign for sign in line.strip() if sign.isprintable()]
            self.waiting = signs if len(signs) == 1 else [*signs, "enter"]
        return self.waiting.pop(0)


def windows_key(getwch: Callable[[], str]) -> str:
    """The next key of a Windows console, whose arrows come as two signs."""
    while True:
        sign = getwch()
        if sign == "\x03":
            raise KeyboardInterrupt
        if sign in ("\0", "\xe0"):
            name = WINDOWS.get(getwch(), "")
        elif sign == "\x1b":
            name = "escape"
        else:
            name = CONTROLS.get(sign, sign if sign.isprintable() else "")
        if name:
            return name
