"""Tables on stdout: framed on a terminal that is wide enough, else plain, a row a line; nothing is ever cut off."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

Columns = Sequence[tuple[str, str]]  # heading, and "left" or "right"


def show(columns: Columns, rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table, below its title if it has one."""
    cells = [[printable(cell) for cell in row] for row in rows]
    frame = 3 * len(columns) + 1
    if sys.stdout.isatty() and sum(_widths(columns, cells)) + frame <= shutil.get_terminal_size().columns:
        _print_framed(columns, cells, title)
    else:
        print(plain(columns, cells, title), flush=True)


def plain(columns: Columns, rows: Sequence[Sequence[str]], title: str = "") -> str:
    """The table as lines of text, its columns as wide as they must be and two spaces apart."""
    from rich.cells import cell_len

    widths = _widths(columns, rows)

    def cell(number: int, text: str) -> str:
        space = " " * (widths[number] - cell_len(text))
        return space + text if columns[number][1] == "right" else text + space

    lines = [[heading for heading, _ in columns], *rows]
    texts = ["  ".join(cell(number, text) for number, text in enumerate(line)).rstrip() for line in lines]
    return "\n".join([title, *texts] if title else texts)


def _widths(columns: Columns, rows: Sequence[Sequence[str]]) -> list[int]:
    """How many places of a terminal each column takes; a Chinese sign takes two."""
    from rich.cells import cell_len

    return [max(map(cell_len, [heading, *(row[number] for row in rows)])) for number, (heading, _) in
            enumerate(columns)]


def _print_framed(columns: Columns, rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left")
    for heading, side in columns:
        table.add_column(Text(heading), justify="right" if side == "right" else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))  # as Text: a name like [red] is no mark-up
    Console().print(table)


def printable(text: str) -> str:
    """A text in which a line break, a control character or an undecodable byte is shown by its escape."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
