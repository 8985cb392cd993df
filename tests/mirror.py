"""A mirror that misbehaves on request: a threaded HTTP server on this machine; and small data sets for it to serve."""

import gzip
import hashlib
import io
import tarfile
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from tinyres.data.cifar_formats import CIFAR10, BinaryFile, Format

RECORDS = 30  # a file: the six have 553 kB together


@dataclass
class Answer:
    """How one request is answered.

    content: the file, sent in pieces of `piece` bytes with `pause` seconds between. etag, modified: its version.
    ranges: whether a Range is heeded, if If-Range allows. drop: close the connection after so many bytes. announce: a
    Content-Length that is a lie; None, and there is none. stall: after so many bytes, send nothing until the end.
    """

    content: bytes = b""
    status: int = 200
    etag: str | None = None
    modified: str | None = None
    ranges: bool = True
    drop: int | None = None
    announce: int | None | str = "the truth"
    location: str | None = None
    piece: int = 2**20
    pause: float = 0.0
    stall: int | None = None
    endless: bool = False
    chunked: bool = False


class Mirror:
    """Serves `answers[path]`, a list: the n-th request for a path gets the n-th answer, later ones the last.

    requests: (path, Range, If-Range) of each, in order; encodings: Accept-Encoding of each. sent: bytes of content that
    went out.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.encodings: list[str | None] = []
        self.sent = 0
        self.over = threading.Event()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with suppress(BrokenPipeError, ConnectionResetError):
                    mirror._answer(self)

            def log_message(self, *text: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def address(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}{path}"

    def serve(self, path: str, *answers: Answer) -> str:
        """Answer requests for a path like this; returns its address."""
        self.answers[path] = list(answers)
        return self.address(path)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path
        before = sum(one[0] == path for one in self.requests)
        self.requests.append((path, request.headers.get("Range"), request.headers.get("If-Range")))
        self.encodings.append(request.headers.get("Accept-Encoding"))
        choices = self.answers.get(path, [Answer(b"no such file", 404)])
        answer = choices[min(before, len(choices) - 1)]
        request.close_connection = True
        start, status = self._start(request, answer)
        request.send_response(status)
        for name, value in self._headers(answer, status, start).items():
            request.send_header(name, str(value))
        request.end_headers()
        self._send(request, b"" if status == 416 else answer.content[start:], answer)

    @staticmethod
    def _start(request: BaseHTTPRequestHandler, answer: Answer) -> tuple[int, int]:
        """Where the body begins, and the status."""
        wanted, condition = request.headers.get("Range"), request.headers.get("If-Range")
        changed = condition is not None and condition not in (answer.etag, answer.modified)
        if wanted is None or not answer.ranges or changed or answer.status != 200:
            return 0, answer.status
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        return start, 206 if start < len(answer.content) else 416

    @staticmethod
    def _headers(answer: Answer, status: int, start: int) -> dict[str, Any]:
        total = len(answer.content) if answer.announce == "the truth" else answer.announce
        headers: dict[str, Any] = {"Connection": "close", "ETag": answer.etag, "Last-Modified": answer.modified,
                                   "Location": answer.location}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{(total or len(answer.content)) - 1}/{total or '*'}"
        elif status == 416:
            headers["Content-Range"] = f"bytes */{total or '*'}"
        if answer.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif total is not None:
            headers["Content-Length"] = 0 if status == 416 else total - start
        return {name: value for name, value in headers.items() if value is not None}

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, answer: Answer) -> None:
        end = len(body) if answer.drop is None else min(answer.drop, len(body))
        place = 0
        while place < end or answer.endless:
            piece = body[place : min(place + answer.piece, end)] or bytes(answer.piece)
            request.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if answer.chunked else piece)
            self.sent += len(piece)
            place += len(piece)
            if answer.pause:
                self.over.wait(answer.pause)
            if answer.stall is not None and place >= answer.stall:
                self.over.wait(10)
                return
            if self.over.is_set():
                return
        if answer.chunked and end == len(body):
            request.wfile.write(b"0\r\n\r\n")


def small_cifar10() -> tuple[Format, dict[str, bytes]]:
    """CIFAR-10's format with a few records a file, and the content of the files: noise, which does not compress."""
    rng = np.random.default_rng(7)
    contents = {}

    def shrink(file: BinaryFile) -> BinaryFile:
        records = rng.integers(0, 256, (RECORDS, CIFAR10.record_bytes), dtype=np.uint8)
        records[:, 0] = np.arange(RECORDS) % 10
        contents[file.name] = records.tobytes()
        return BinaryFile(file.name, RECORDS, hashlib.sha1(contents[file.name]).hexdigest())

    return replace(CIFAR10, train=tuple(map(shrink, CIFAR10.train)), test=tuple(map(shrink, CIFAR10.test))), contents


def packed(contents: dict[str, bytes], *extra: tuple[tarfile.TarInfo, bytes], level: int = 6) -> bytes:
    """A .tar.gz of these files, and before them of members made by hand."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for member, content in extra:
            archive.addfile(member, io.BytesIO(content))
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), level, mtime=0)


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """The header of an archive's member."""
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, kind, link
    return made
