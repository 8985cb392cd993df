"""The log of a run: a row an epoch, in memory and as log.csv and log.jsonl; and the progress bar."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

from tinyres.files import PathLike, write_atomically

Row = dict[str, Any]


class Log:
    """The rows of a run, in memory and in a folder's log.csv and log.jsonl, which are cut back to `rows` first."""

    def __init__(self, folder: PathLike | None, rows: list[Row]):
        self.rows = list(rows)
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            write_atomically(self.folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
            lines = [_csv_line(row.keys()) for row in rows[:1]] + [_csv_line(row.values()) for row in rows]
            write_atomically(self.folder / "log.csv", "".join(lines).encode())

    def write(self, row: Row) -> None:
        """Append a row; a kill may cut it short, and the next Log of the folder mends that."""
        self.rows.append(row)
        if self.folder is None:
            return
        with open(self.folder / "log.csv", "a") as file:
            file.write((_csv_line(row.keys()) if len(self.rows) == 1 else "") + _csv_line(row.values()))
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")


def _csv_line(values: Any) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def progress_bar(total: int, done: int, show: bool) -> Any:
    """A bar on stderr that counts images; off a terminal it speaks only every few seconds."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, unit=" images", unit_scale=True, dynamic_ncols=True, disable=not show,
                file=sys.stderr, mininterval=0.1 if sys.stderr.isatty() else 5)
