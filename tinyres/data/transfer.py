"""One file over HTTP into one partial file, however often the line breaks.

The partial file NAME.part is all that counts: its length says where to go on, in this process or a later one, and
NAME.part.json which version of the file it belongs to, so that the server is asked for the rest of that version
(If-Range, RFC 9110, section 13.1.5) and sends the whole file if it has another by now. No server is believed: not about
the length, nor that it sent what was asked for, nor that it will ever end. Whether the content is right is for the
caller to find out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

PIECE = 2**16  # bytes read at a time; an attempt that brings fewer is not progress
RETRIED = {408, 425, 429, 500, 502, 503, 504}  # a server's answers that may be better next time


@dataclass(frozen=True)
class Patience:
    """How long to bear with a server.

    connect: seconds until there must be a connection; stall: seconds without a byte, and those over which the rate must
    be at least `slowest` bytes a second; tries: attempts in a row without progress; pause: seconds before the second of
    them, doubled each time, `longest` at most.
    """

    connect: float = 15.0
    stall: float = 30.0
    slowest: float = 1_000.0
    tries: int = 5
    pause: float = 1.0
    longest: float = 30.0


PATIENCE = Patience()


class TransferError(OSError):
    """A file that did not come, or not whole; `unreachable` if there was never an answer."""

    def __init__(self, reason: str, unreachable: bool = False):
        super().__init__(reason)
        self.unreachable = unreachable


class _Broken(Exception):
    """An attempt that failed, but another may do better."""


class Transfer:
    """A file on its way from `url` into `part`, of which at most `limit` bytes are taken.

    show: a progress bar on stderr. received: bytes that came in this process. in_one_piece: whether all came in one
    answer and in the length that was announced; if not, a damaged file is worth a second try from the start.
    """

    def __init__(self, url: str, part: Path, limit: int, patience: Patience = PATIENCE, show: bool = False):
        self.url, self.part, self.limit, self.patience, self.show = url, part, limit, patience, show
        self.received = 0
        self.in_one_piece = False

    def run(self) -> None:
        """Go on where `part` ends; try again, waiting longer each time, as long as that may help.

        Raises TransferError if the file is not there or too large, or did not come whole; what has come stays in
        `part`, unless it is too large. Raises OSError, as it is, if it cannot be written.
        """
        best, fruitless = _size(self.part), 0
        self.in_one_piece = best == 0
        while True:
            try:
                return self._attempt()
            except _Broken as error:
                self.in_one_piece = False
                fruitless = 0 if _size(self.part) >= best + PIECE else fruitless + 1
                best = max(best, _size(self.part))
                if fruitless >= self.patience.tries:
                    raise TransferError(f"{error} ({fruitless} attempts in a row brought nothing new)") from error
            time.sleep(min(self.patience.pause * 2 ** max(fruitless - 1, 0), self.patience.longest))

    def _attempt(self) -> None:
        """Ask once and write what comes. Raises _Broken or TransferError."""
        start, memory = _size(self.part), _recall(self.part)
        if start and start == memory.get("total"):
            return  # complete: what ended the last process came between the transfer and the check
        headers = {"Accept-Encoding": "identity"}  # the file as it is: a .gz must not be unpacked on the way
        if start:
            headers["Range"] = f"bytes={start}-"
            if memory.get("version"):
                headers["If-Range"] = memory["version"]
        with _answer(self.url, headers, self.patience, under_way=start > 0) as answer:
            start, total = self._place(answer, start, memory)
            if total is not None and total > self.limit:
                discard(self.part)
                raise TransferError(f"has {total:,} bytes, expected at most {self.limit:,}: it is another file")
            self.in_one_piece &= total is not None
            if start and start == total:
                return
            _check_room(self.part.parent, (total or self.limit) - start)
            with open(self.part, "ab" if start else "wb") as file:
                _remember(self.part, answer, total)
                self._copy(answer.raw, file, start, total)

    def _place(self, answer: Any, start: int, memory: dict[str, Any]) -> tuple[int, int | None]:
        """Where in the file the body begins, and the file's length if it is announced.

        Raises _Broken, and forgets what was there, if the body does not fit to it: the next attempt starts anew.
        """
        if answer.status_code == 416:  # there is nothing after this byte: what is here is all, or wrong
            return start, start
        if answer.status_code == 200:
            length = answer.headers.get("Content-Length", "")
            return 0, int(length) if length.isdecimal() else None
        said = answer.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", said)
        first, total = found.groups() if found else (None, "*")
        length_now = None if total == "*" else int(total)
        same_length = memory.get("total") is None or length_now in (None, memory["total"])
        same_version = memory.get("version") in (None, _version(answer)) or _version(answer) is None
        if first != str(start) or not same_length or not same_version:
            discard(self.part)
            raise _Broken(f"sent {said or 'no range'} when asked for what follows byte {start:,}: the file has changed")
        return start, length_now if length_now is not None else memory.get("total")

    def _copy(self, raw: Any, file: Any, start: int, total: int | None) -> None:
        """Write the body to the file. Raises TransferError if it is too long, _Broken if it ends early or stalls."""
        from tqdm import tqdm

        place = start
        with tqdm(total=total, initial=start, unit="B", unit_scale=True, dynamic_ncols=True, disable=not self.show,
                  leave=False, file=sys.stderr, mininterval=0.1 if sys.stderr.isatty() else 5) as bar:
            for piece in _pieces(raw, self.patience):
                place += len(piece)
                self.received += len(piece)
                if place > self.limit:
                    file.close()
                    discard(self.part)
                    raise TransferError(f"sent more than {self.limit:,} bytes: it is another file, or has no end")
                file.write(piece)
                bar.update(len(piece))
        file.flush()
        os.fsync(file.fileno())
        if total is not None and place != total:
            raise _Broken(f"closed the connection after {place:,} of {total:,} bytes")


def discard(part: Path) -> None:
    """Delete a partial file and what is remembered about it."""
    for path in (part, _memory(part)):
        path.unlink(missing_ok=True)


def shown(url: str) -> str:
    """An address as it may be shown: without the user's name and password, and without what follows a "?"."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@contextlib.contextmanager
def _answer(url: str, headers: dict[str, str], patience: Patience, under_way: bool) -> Iterator[Any]:
    """The server's answer to a GET, its body not read yet. Proxies are those of the environment, like HTTPS_PROXY."""
    import requests

    try:
        answer = requests.get(url, headers=headers, stream=True, timeout=(patience.connect, patience.stall))
    except requests.exceptions.SSLError as error:
        raise TransferError(f"no secure connection: {_reason(error)}") from error
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        if under_way or not _is_unreachable(error):
            raise _Broken(_reason(error)) from error
        raise TransferError(_reason(error), unreachable=True) from error
    except (requests.exceptions.RequestException, UnicodeError) as error:  # no address; or redirects in a ring
        raise TransferError(_reason(error)) from error
    with answer:
        if answer.status_code in RETRIED:
            raise _Broken(f"answered {answer.status_code} {answer.reason}")
        if answer.status_code not in (200, 206, 416):
            raise TransferError(f"answered {answer.status_code} {answer.reason}")
        yield answer


def _is_unreachable(error: Any) -> bool:
    """Whether requests' error means that there was no connection, not that one broke."""
    from requests.exceptions import ConnectTimeout, ProxyError
    from urllib3.exceptions import NewConnectionError

    cause = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(error, (ConnectTimeout, ProxyError)) or isinstance(cause, NewConnectionError)


def _pieces(raw: Any, patience: Patience) -> Iterator[bytes]:
    """What comes, as it comes: a read must not wait until a piece is full, or a slow server could hold us for days."""
    from urllib3.exceptions import HTTPError, IncompleteRead

    read, size = (raw.read1, PIECE) if hasattr(raw, "read1") else (raw.read, 2**10)  # read1 came with urllib3 2.2
    began, received = time.monotonic(), 0
    while True:
        try:
            piece = read(size, decode_content=False)
        except HTTPError as error:
            if any(isinstance(cause, IncompleteRead) for cause in (error, *error.args)):
                return  # closed before the announced end: the caller counts
            raise _Broken(_reason(error)) from error
        if not piece:
            return
        yield piece
        received += len(piece)
        passed = time.monotonic() - began
        if passed >= patience.stall:
            if received < patience.slowest * passed:
                raise _Broken(f"sent only {received / passed:.0f} bytes a second")
            began, received = time.monotonic(), 0


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{folder} has room for {free:,} bytes, {needed:,} more are needed: free some, or choose another "
                      "folder")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _memory(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _remember(part: Path, answer: Any, total: int | None) -> None:
    _memory(part).write_text(json.dumps({"total": total, "version": _version(answer)}))


def _recall(part: Path) -> dict[str, Any]:
    """What is known of the file that `part` is the beginning of; nothing if that was lost or cut short."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(_memory(part).read_bytes())
        kinds = {"total": (int, NoneType), "version": (str, NoneType)}
        if isinstance(found, dict) and all(isinstance(found.get(key), kind) for key, kind in kinds.items()):
            return found
    return {}


def _version(answer: Any) -> str | None:
    """What tells one version of the file from another: a strong ETag, else the date of its last change."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified")


def _reason(error: BaseException) -> str:
    """What went wrong, in the words of the innermost error: "Connection refused"."""
    inner = error
    while inner.__cause__ or inner.__context__:
        inner = inner.__cause__ or inner.__context__  # type: ignore[assignment]
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
