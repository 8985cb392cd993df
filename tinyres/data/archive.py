"""Tar archives read in place, from front to back, in bounded memory: nothing is ever unpacked to the disk.

An archive comes from a stranger. What it can cost is fixed before it is opened: the bytes that come out of the
decompressor are counted, whatever headers claim (170 MB of gzip can hold 170 GB of zeros), and so are the members.
Members with a path or type that an unpacker should fear are refused, although nothing here would write them.
"""

import contextlib
import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

MOST_MEMBERS = 1_000
GZIP = b"\x1f\x8b"
# What tarfile and the decompressor raise for damaged input; the last four come from fields that are no numbers, from
# maps of sparse files that end early, and from headers that follow each other without end.
UNREADABLE = (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, LookupError, OverflowError, RecursionError)


class ArchiveError(ValueError):
    """An archive that is damaged, hostile or none. The message goes on after the archive's name, like "holds ..."."""


def contents(path: Path, limit: int, wanted: Callable[[str, int], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and content of the wanted files of a .tar or .tar.gz archive, in its order.

    limit: the most bytes that the file may have, and that may come out of it. wanted(name, bytes) is asked for each
    plain file, by its name without folders, before its content is read; it may raise.

    Raises ArchiveError for what is no such archive, is truncated, is larger than the limit, or holds a link, a device,
    a sparse file, an absolute path, "..", too many members, or a wanted name twice.
    """
    size = path.stat().st_size
    if size > limit:
        raise ArchiveError(f"has {size:,} bytes, expected at most {limit:,}: it is another file")
    seen: set[str] = set()
    with open(path, "rb") as file:
        with _readable(size):
            zipped = file.peek(2)[:2] == GZIP
            content = _Bounded(gzip.GzipFile(fileobj=file) if zipped else file, limit)
            archive = tarfile.open(fileobj=content, mode="r|")  # type: ignore[call-overload]  # it only needs read()
        while True:
            with _readable(size):
                member = archive.next()
            if member is None:
                return
            _refuse(member, len(archive.members))
            name = PurePosixPath(member.name).name
            if not member.isfile() or not wanted(name, member.size):
                continue
            if name in seen:
                raise ArchiveError(f"holds {name} twice, expected once")
            seen.add(name)
            with _readable(size):
                found = archive.extractfile(member).read()
            yield name, found


@contextlib.contextmanager
def _readable(size: int) -> Iterator[None]:
    """Inside, what tarfile and the decompressor raise becomes an ArchiveError."""
    try:
        yield
    except ArchiveError:
        raise
    except UNREADABLE as error:
        raise ArchiveError(
            f"({size:,} bytes) cannot be read as a tar archive: {error}. It is truncated or no archive"
        ) from error


def _refuse(member: tarfile.TarInfo, count: int) -> None:
    """Raise ArchiveError for a member that is not a plain file or folder below the archive's root, or one too many."""
    name = PurePosixPath(member.name)
    plain = (member.isfile() and not member.issparse()) or member.isdir()
    if name.is_absolute() or ".." in name.parts or not plain or member.size < 0:
        kind = "a folder" if member.isdir() else "a file" if plain else "a link, device or sparse file"
        raise ArchiveError(
            f"holds {member.name!r}, {kind}; expected plain files below its root, no absolute paths, '..' or links. "
            "Do not unpack it"
        )
    if count > MOST_MEMBERS:
        raise ArchiveError(f"holds more than {MOST_MEMBERS:,} members: it is another file")


class _Bounded:
    """A stream of which at most `limit` bytes can be read."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, limit: int):
        self.file = file
        self.limit = self.left = limit
        self.reads_at_end = 0

    def read(self, size: int) -> bytes:
        chunk = self.file.read(min(size, self.left + 1))
        self.left -= len(chunk)
        self.reads_at_end += not chunk
        if self.reads_at_end > 100:  # tarfile itself would skip a claimed 2^62 bytes behind the end, block by block
            raise ArchiveError("ends within a member: it is truncated or damaged")
        if self.left < 0:
            raise ArchiveError(
                f"unpacks to more than {self.limit:,} bytes: it is another file, or was made to fill the memory"
            )
        return chunk
