"""The readers of files stand hostile ones, as tests/fuzz.py tries them at length; and that fuzzer finds what it should.

Each reader gets the known attacks, among them all that fuzzing has found, and then some changed files, always the same.
"""

import gzip
import io
import json
import mmap
import signal
import tarfile
import zipfile
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("resource", reason="the fuzzer bounds a process's memory as POSIX systems can")

import fuzz  # noqa: E402
import fuzz_inputs  # noqa: E402
import fuzz_leaves  # noqa: E402
from fuzz_data import Reader  # noqa: E402

HALVES = [list(fuzz.READERS)[::2], list(fuzz.READERS)[1::2]]


@pytest.mark.parametrize("names", HALVES, ids=["half", "other half"])
def test_no_reader_crashes_hangs_or_fills_the_memory(tmp_path, names):
    reports = fuzz.fuzz(names, seed=1, seconds=60, count=60, out=tmp_path)
    assert [report.reader for report in reports] == names
    for report in reports:
        assert not report.findings, report.findings
        assert report.inputs == 60
        assert len(report.outcomes) > 4 or report.accepted == 60, "the changes are all alike"
    assert sum(report.accepted for report in reports) > 60, "hardly anything that was changed could still be read"


# --- the fuzzer itself ------------------------------------------------------------------------------------------------


def outcome(tmp_path, monkeypatch, read, **options):
    """The findings when a reader reads valid content and then other content once."""
    def reader(folder):
        return None if (folder / "x").read_bytes() == b"valid" else read(folder / "x")

    monkeypatch.setitem(fuzz.READERS, "fake", lambda: Reader([{"x": b"valid"}], reader, [{"x": b"other"}], **options))
    monkeypatch.setattr(fuzz, "bound_address_space", lambda: None)  # not of this process
    before = signal.signal(signal.SIGPROF, fuzz.too_slow)
    try:
        worker = fuzz.Worker("fake", 0, tmp_path)
        worker.run(60, 1)
    finally:
        signal.signal(signal.SIGPROF, before)
    return list(worker.report.findings)


def raising(error):
    def read(path):
        raise error if isinstance(error, Exception) else error(f"{path} is damaged")

    return read


def hiding(error, shown):
    def read(path):
        try:
            raise error
        except type(error) as hidden:
            raise ValueError(f"{path} is damaged") from (hidden if shown else None)

    return read


def test_what_a_reader_may_do_is_no_finding(tmp_path, monkeypatch):
    for error in (ValueError, FileNotFoundError, OSError):
        assert outcome(tmp_path, monkeypatch, raising(error)) == []
    assert outcome(tmp_path, monkeypatch, raising(TypeError), errors=(TypeError,)) == []
    assert outcome(tmp_path, monkeypatch, hiding(RecursionError(), True)) == []


@pytest.mark.parametrize("read, words", [
    (raising(KeyError), "KeyError"), (raising(TypeError), "TypeError"), (raising(SystemExit), "SystemExit"),
    (raising(json.JSONDecodeError("x", "y", 0)), "JSONDecodeError"), (raising(MemoryError), "MemoryError"),
    (raising(ValueError("bad")), "does not name the file"), (raising(AssertionError), "AssertionError"),
    (lambda path: raising(ValueError(f"{path}{'x' * 300_000}"))(path), "message of #,# characters"),
    (hiding(MemoryError(), True), "hides a MemoryError"), (hiding(MemoryError(), False), "hides a MemoryError"),
])
def test_what_it_may_not_do_is_one(tmp_path, monkeypatch, read, words):
    found = outcome(tmp_path, monkeypatch, read)
    assert len(found) == 1 and words in found[0]


def test_slow_and_greedy_calls_are_found_and_their_input_is_kept(tmp_path, monkeypatch):
    def slow(path):
        while True:
            pass

    def greedy(path):
        with mmap.mmap(-1, 96 << 20) as memory:  # not malloc's, which may have had as much before
            for page in range(0, len(memory), 4096):
                memory[page] = 1

    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    assert outcome(tmp_path / "a", monkeypatch, slow) == ["took more than #.# s"]
    monkeypatch.setattr(fuzz, "SECONDS", 60)
    monkeypatch.setattr(fuzz, "MEMORY", 64 << 20)
    assert outcome(tmp_path / "b", monkeypatch, greedy) == ["took # MiB: accepted"]
    assert (tmp_path / "b" / "fake-0" / "x").read_bytes() == b"other"


CRASHING = """
import os, sys
sys.path.insert(0, {folder!r})
import fuzz
from fuzz_data import Reader

def read(folder):
    if (folder / "x").read_bytes() != b"valid":
        os.abort()

fuzz.READERS["first"] = lambda: Reader([{{"x": b"valid"}}], read, [{{"x": b"other"}}])
fuzz.READERS["second"] = lambda: Reader([{{"x": b"valid"}}], str, [])
sys.exit(fuzz.main())
"""


def test_a_crash_is_found_and_the_other_readers_still_run(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(CRASHING.format(folder=str(Path(fuzz.__file__).parent)))
    first, second = fuzz.fuzz(["first", "second"], 0, 60, 5, tmp_path, str(program))
    assert list(first.findings) == [f"crashed the interpreter (status {-signal.SIGABRT})"]
    assert Path(next(iter(first.findings.values())), "x").read_bytes() == b"other"
    assert (second.inputs, second.findings) == (5, {})


def test_the_same_seed_makes_the_same_inputs(tmp_path):
    reader = fuzz.READERS["npz weights"]()
    content = reader.valid[0]["w"]
    first, again, other = (fuzz_inputs.mutate(content, Random(seed), [content]) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["cifar archive", "npz weights", "safetensors", "own npy", "image folder", "json"])
def test_whole_files_can_be_changed_by_their_format(name):
    """A change that fails is made one of bytes instead, and would never be missed."""
    changed = 0
    for content in {content for files in fuzz.READERS[name]().valid for content in files.values()}:
        change = next((change for recognises, change in fuzz_inputs.FORMATS if recognises(content)), None)
        for seed in range(40 if change else 0):
            changed += change(content, Random(seed), [content]) != content
    assert changed > 35


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_changed_archives_are_packed_so_that_they_open():
    """The change must be what a reader sees, not a wrong checksum around it."""
    packed = gzip.compress(fuzz_inputs.tar_member("a", b"1" * 600) + fuzz_inputs.tar_member("b", b"2") + bytes(1024))
    zipped = fuzz_inputs.zipped([("a.npy", fuzz_leaves.npy("{'descr': '<f4', 'shape': (2,)}", bytes(8)))])
    opened = 0
    for seed in range(200):
        with_tar = fuzz_inputs.change_gzip(packed, Random(seed), [packed])
        with_zip = fuzz_inputs.change_zip(zipped, Random(seed), [zipped])
        try:
            opened += tarfile.open(fileobj=io.BytesIO(with_tar)).next() is not None
        except (tarfile.TarError, EOFError, ValueError):
            pass
        try:
            opened += len(zipfile.ZipFile(io.BytesIO(with_zip)).namelist()) > 0
        except (zipfile.BadZipFile, ValueError):
            pass
    assert opened > 200


def test_bombs_unpack_to_what_they_should():
    packed = fuzz_inputs.gzip_bomb(b"start", 3)
    assert len(packed) < 8000
    assert gzip.GzipFile(fileobj=io.BytesIO(packed)).read(1 << 20) == b"start" + bytes((1 << 20) - 5)
    with zipfile.ZipFile(io.BytesIO(fuzz_inputs.zip_bomb("a", b"start", 3))) as archive, archive.open("a") as file:
        assert archive.getinfo("a").file_size == 5 + (3 << 20) and file.read(10) == b"start" + bytes(5)
