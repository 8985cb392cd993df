"""Data sets fetched from where they are: mirrors in order, partial downloads that go on, and nothing kept unchecked.

What decides is the content. A file is right if it has the official MD5, or else, as mirrors pack the same content
again, if what is in it has the published checksums. Only then does it get its name, by a rename; what is wrong is
deleted, and the next mirror is tried. Nothing is unpacked. (`pooch.retrieve` knows one checksum a file and starts from
nothing after each interruption, which at the official site's 50 kB/s would never end: hence transfer.py.)
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tinyres.data import cifar
from tinyres.data.cache import cache_folder
from tinyres.data.cifar_formats import FORMATS, MARGIN, Format
from tinyres.data.dataset import nearest
from tinyres.data.fashion import FILES as FASHION_FILES
from tinyres.data.fashion import IdxFile
from tinyres.data.idx import header, read_idx
from tinyres.data.transfer import PATIENCE, Patience, Transfer, TransferError, discard, shown
from tinyres.files import PathLike, flush_folder

MIRROR_VARIABLE = "TINYRES_MIRROR"
FASHION_MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",  # the authors'
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",  # Keras's
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)


@dataclass(frozen=True)
class Remote:
    """A file to fetch: its name; the addresses in order; the official MD5; the most bytes it may have.

    verify(path) raises ValueError unless the content is right, whatever the MD5.
    """

    name: str
    urls: tuple[str, ...]
    md5: str
    limit: int
    verify: Callable[[Path], None]


@dataclass
class Fetched:
    """What `fetch` did: where the data set is, whence its files came, bytes that came over the line and seconds.

    checked: how each file was found to be right, "official MD5" or "content".
    """

    name: str
    path: Path
    urls: list[str] = field(default_factory=list)
    received: int = 0
    seconds: float = 0.0
    checked: list[str] = field(default_factory=list)


class DownloadError(OSError):
    """A file that no mirror gave; the message lists each and what was wrong."""


def fetch(name: str, folder: PathLike | None = None, mirrors: Sequence[str] = (), force: bool = False,
          show: bool = True, patience: Patience = PATIENCE) -> Fetched:
    """Put the official files of "cifar10", "cifar100" or "fashion" into a folder, checked; return where they are.

    folder: default the cache folder, $TINYRES_CACHE or the system's usual one, where `data.load` looks. mirrors: tried
    first, then those in $TINYRES_MIRROR, then the known ones; each the address of a folder with files of their official
    names, or of the file itself. force: fetch even what is there and right. show: progress and failures on stderr.

    Files that are there and right are not fetched again. A second process waits for the first. A file that is there
    and wrong stays until it is replaced by a right one.

    Raises ValueError for another name or for what is no address, DownloadError, an OSError, if no mirror gave a file,
    and OSError if it cannot be written.
    """
    files, below = remotes(name)
    target = (Path(folder).expanduser() if folder is not None else cache_folder()) / below
    try:
        target.mkdir(parents=True, exist_ok=True)
        if not os.access(target, os.W_OK):
            raise PermissionError("it is read-only")
    except OSError as error:
        raise OSError(f"{name}: {target} cannot be written: {error}. Choose another folder with --folder or "
                      "TINYRES_CACHE") from error
    began, result = time.perf_counter(), Fetched(name, target)
    for file in files:
        usual = [address(mirror, file.name) for mirror in os.environ.get(MIRROR_VARIABLE, "").split()]
        usual = [url for url in usual if urlsplit(url).path.endswith(f"/{file.name}")]  # it may be for another data set
        urls = [*(address(mirror, file.name) for mirror in mirrors), *usual, *file.urls]
        fetch_file(name, file, list(dict.fromkeys(urls)), target, force, show, patience, result)
    result.path = target / files[0].name if len(files) == 1 else target
    result.seconds = time.perf_counter() - began
    return result


def remotes(name: str) -> tuple[tuple[Remote, ...], str]:
    """The files of a data set, and the folder below the given one that they go to."""
    if name in FORMATS:
        return (cifar_archive(FORMATS[name]),), "."
    if name == "fashion":
        return tuple(map(idx_file, FASHION_FILES.values())), "fashion"
    if name == "digits":
        raise ValueError("data fetch: digits come with the package; there is nothing to fetch")
    names = (*FORMATS, "fashion")
    raise ValueError(f"data fetch: no data set {name!r}.{nearest(name, names)} There are {', '.join(names)}")


def cifar_archive(wanted: Format) -> Remote:
    """The archive of a CIFAR data set."""
    def verify(path: Path) -> None:
        try:
            cifar.read(wanted, path, verify=True)
        except cifar.DamagedError as error:
            raise ValueError(error.what.replace(str(path), "the archive")) from error

    return Remote(wanted.archives[0], (*wanted.mirrors, wanted.url), wanted.md5, wanted.most_bytes, verify)


def idx_file(file: IdxFile) -> Remote:
    """One of the packed files of Fashion-MNIST."""
    def verify(path: Path) -> None:
        content = read_idx(path, file.shape)
        found = hashlib.sha256(header(file.shape) + content.tobytes()).hexdigest()
        if found != file.sha256:
            raise ValueError(f"its content has SHA-256 {found}, expected {file.sha256}")

    name = f"{file.name}.gz"
    urls = tuple(mirror + name for mirror in FASHION_MIRRORS)
    return Remote(name, urls, file.md5, file.packed_bytes + MARGIN, verify)


def fetch_file(name: str, file: Remote, urls: Sequence[str], folder: Path, force: bool, show: bool,
               patience: Patience, result: Fetched) -> None:
    """Put one file into a folder; add to `result` what was done. Raises DownloadError, or OSError as it is."""
    target = folder / file.name
    failures: list[tuple[str, TransferError]] = []
    with _alone(folder, file.name, show) as private:
        if target.is_file() and not force:
            found, wrong = check(file, target)
            if found:
                result.checked.append(found)
                return
            _say(f"{name}: {target} is there, but wrong: {wrong}", show)
        for url in urls:
            _say(f"{name}: {file.name} from {shown(url)}", show)
            part = folder / f".{file.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}{private}.part"
            transfer = Transfer(url, part, file.limit, patience, show)
            try:
                result.checked.append(_checked(file, transfer))
                os.replace(part, target)
                break
            except TransferError as error:
                failures.append((shown(url), error))
                _say(f"{name}: {error}", show)
            except OSError as error:
                raise OSError(f"{name}: fetching {file.name} into {folder}: {error}. What has come is kept, and the "
                              "same command goes on from there") from error
            finally:
                result.received += transfer.received
        else:
            raise DownloadError(_all_failed(name, file, folder, failures))
        result.urls.append(shown(url))
        flush_folder(folder)
        for part in (transfer.part, *(() if private else folder.glob(f".{file.name}.*.part"))):
            discard(part)


def check(file: Remote, path: Path) -> tuple[str, str]:
    """How a file was found to be right, and what is wrong with it; one of them is empty."""
    import pooch

    if pooch.file_hash(str(path), alg="md5") == file.md5:
        return "official MD5", ""
    try:
        file.verify(path)
    except ValueError as error:
        return "", str(error)
    return "content", ""


def _checked(file: Remote, transfer: Transfer) -> str:
    """Fetch a file and check it; returns how. Raises TransferError, and then no wrong file is left.

    A file that came in pieces may be wrong because they do not belong together: it gets a second try from the start.
    """
    for last in (False, True):
        try:
            transfer.run()
        except TransferError:
            found = check(file, transfer.part)[0] if transfer.part.exists() else ""
            if not found:
                raise
            return found  # all there is: the server announced more
        found, wrong = check(file, transfer.part)
        if found:
            return found
        discard(transfer.part)
        if transfer.in_one_piece or last:
            break
    raise TransferError(f"sent a wrong file: {wrong}")


def address(mirror: str, name: str) -> str:
    """The address of a file on a mirror, which is given as this address or as a folder's. Raises ValueError if none."""
    try:
        parts = urlsplit(mirror)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected http:// or https:// and a host")
    except ValueError as error:
        raise ValueError(f"data fetch: the mirror {mirror!r} is no address of {name}, or of a folder that holds it: "
                         f"{error}. Data on this machine need not be fetched: use --data-dir") from error
    folder, _, last = parts.path.rpartition("/")
    if last.endswith("-ubyte.gz"):  # one of several files of a data set
        path = f"{folder}/{name}"
    elif last.endswith((".gz", ".tgz", ".tar")):
        path = parts.path
    else:
        path = f"{parts.path.rstrip('/')}/{name}"
    return urlunsplit(parts._replace(path=path))


def _all_failed(name: str, file: Remote, folder: Path, failures: list[tuple[str, TransferError]]) -> str:
    tried = "".join(f"\n  {url}: {error}" for url, error in failures)
    offline = ("\nNone could be reached: is there a network? A proxy is taken from HTTPS_PROXY and HTTP_PROXY."
               if failures and all(error.unreachable for _, error in failures) else "")
    return (f"{name}: no mirror gave {file.name}.{tried}{offline}\nTry again later: what has come is kept. Or give "
            f"another address with --mirror or {MIRROR_VARIABLE}. Or get {file.name} by hand (MD5 {file.md5}) and put "
            f"it into {folder}")


@contextlib.contextmanager
def _alone(folder: Path, name: str, show: bool) -> Iterator[str]:
    """Inside, no other process fetches this file into this folder; one that does is waited for.

    Where files cannot be locked, as on Windows and some network folders, processes work in partial files of their own:
    the text yielded is then part of the name. The lock ends with its process, however that ends; its file stays.
    """
    try:
        import fcntl
    except ImportError:
        yield f".{os.getpid()}"
        return
    with open(folder / f".{name}.lock", "w") as file:
        private = ""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"{name}: another process is fetching it; waiting for that", show)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            private = f".{os.getpid()}"
        yield private


def _say(text: str, show: bool) -> None:
    if show:
        print(text, file=sys.stderr, flush=True)
