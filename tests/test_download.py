"""Fetching data sets, against a mirror on this machine that throttles, drops, lies, changes and serves wrong files.

However it misbehaves, there is the right file under its name in the end, or an error that says why, and no wrong one.
"""

import errno
import gzip
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from mirror import Answer, Mirror, member, packed, small_cifar10

from tinyres.data import cifar, download, transfer
from tinyres.data.cifar_formats import CIFAR10, CIFAR100, FORMATS
from tinyres.data.download import DownloadError, fetch
from tinyres.data.transfer import Patience

NAME = "cifar-10-binary.tar.gz"
PATH = f"/data/{NAME}"
HASTY = Patience(connect=2, stall=0.4, slowest=20_000, tries=3, pause=0.01, longest=0.02)
SMALL, CONTENTS = small_cifar10()
ARCHIVE = packed(CONTENTS)
SMALL = replace(SMALL, md5=hashlib.md5(ARCHIVE).hexdigest(), mirrors=())
REPACKED = packed(dict(reversed(CONTENTS.items())), level=1)
WRONG = packed({**CONTENTS, "data_batch_4.bin": CONTENTS["data_batch_3.bin"]})


@pytest.fixture
def mirror(monkeypatch):
    """A mirror, and no proxy before it."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "TINYRES_MIRROR", "TINYRES_DATA"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    mirror = Mirror()
    yield mirror
    mirror.close()


@pytest.fixture
def get(mirror, monkeypatch, tmp_path):
    """get(address, ...) fetches the small CIFAR-10 from these mirrors into tmp_path."""
    def call(*urls, **options):
        monkeypatch.setitem(FORMATS, "cifar10", replace(SMALL, mirrors=urls[:-1], url=urls[-1]))
        return fetch("cifar10", tmp_path, **{"show": False, "patience": HASTY, **options})

    return call


def files(folder):
    """The files in a folder that mean something: all but the lock."""
    return sorted(path.name for path in Path(folder).iterdir() if not path.name.endswith(".lock"))


def is_archive(path):
    return path.read_bytes() == ARCHIVE  # in a function: pytest would print the difference


def ranges(mirror):
    return [wanted for _, wanted, _ in mirror.requests]


# --- servers that deliver in the end ----------------------------------------------------------------------------------


def test_an_honest_mirror_gives_the_archive_and_the_data_is_found(mirror, get, tmp_path, monkeypatch):
    done = get(mirror.serve(PATH, Answer(ARCHIVE)))
    assert done.path == tmp_path / NAME and is_archive(done.path) and files(tmp_path) == [NAME]
    assert (done.received, done.checked, done.urls) == (len(ARCHIVE), ["official MD5"], [mirror.address(PATH)])
    assert cifar.find(SMALL, tmp_path) == done.path
    monkeypatch.setenv("TINYRES_CACHE", str(tmp_path))
    monkeypatch.setenv("TINYRES_DATA", str(tmp_path / "elsewhere"))
    assert cifar.find(SMALL) == done.path  # last, but there
    images, labels = cifar.read(SMALL, done.path, verify=True)["test"]
    assert labels[:, 0].tolist() == [n % 10 for n in range(len(images))]


def test_what_is_there_and_right_is_not_fetched_again(mirror, get, tmp_path):
    url = mirror.serve(PATH, Answer(ARCHIVE))
    get(url)
    again = get(url)
    assert len(mirror.requests) == 1 and (again.received, again.urls, again.checked) == (0, [], ["official MD5"])
    assert get(url, force=True).received == len(ARCHIVE)
    (tmp_path / NAME).write_bytes(ARCHIVE[:-9000])
    get(url)
    assert is_archive(tmp_path / NAME) and len(mirror.requests) == 3


def test_a_throttled_mirror_is_borne_with(mirror, get):
    url = mirror.serve(PATH, Answer(ARCHIVE, piece=len(ARCHIVE) // 20 + 1, pause=0.05))
    began = time.perf_counter()
    get(url)
    assert time.perf_counter() - began > HASTY.stall and len(mirror.requests) == 1  # slow as a whole, never silent


@pytest.mark.parametrize("etag, modified", [('"one"', None), (None, "Wed, 21 Oct 2015 07:28:00 GMT"), (None, None),
                                            ('W/"weak"', None)])
def test_a_dropped_line_is_resumed_where_it_was(mirror, get, tmp_path, etag, modified):
    """More drops than tries: each brings something new, so that it never gives up."""
    url = mirror.serve(PATH, Answer(ARCHIVE, etag=etag, modified=modified, drop=70_000))
    done = get(url)
    drops = -(-len(ARCHIVE) // 70_000)
    assert drops > HASTY.tries + 2
    assert ranges(mirror) == [None] + [f"bytes={70_000 * k}-" for k in range(1, drops)]
    condition = None if etag == 'W/"weak"' else etag or modified
    assert {wanted for _, _, wanted in mirror.requests[1:]} == {condition}  # a weak ETag does not tell bytes apart
    assert is_archive(done.path) and done.received == mirror.sent == len(ARCHIVE)
    assert files(tmp_path) == [NAME]


def test_a_network_that_goes_away_under_way_is_waited_for(mirror, get, monkeypatch):
    """At the first contact no connection means another mirror at once; later it means that the line is down."""
    url, asked = mirror.serve(PATH, Answer(ARCHIVE, drop=300_000), Answer(ARCHIVE)), []
    ask = requests.get

    def sometimes(*where, **how):
        asked.append(where)
        if len(asked) in (2, 3):
            raise requests.exceptions.ConnectTimeout("the line is down")
        return ask(*where, **how)

    monkeypatch.setattr(requests, "get", sometimes)
    assert is_archive(get(url).path) and len(asked) == 4
    asked[:] = [0]
    with pytest.raises(DownloadError, match="the line is down"):
        get(url, force=True)
    assert len(asked) == 2


def test_a_line_that_drops_without_bringing_anything_is_given_up(mirror, get):
    url = mirror.serve(PATH, Answer(ARCHIVE, drop=100_000), *[Answer(ARCHIVE, drop=0)] * 99)
    with pytest.raises(DownloadError, match=r"closed the connection after 100,000 of [\d,]+ bytes \(3 attempts in a"):
        get(url)
    assert len(mirror.requests) == 1 + HASTY.tries


def test_a_mirror_without_ranges_sends_all_again(mirror, get, tmp_path):
    url = mirror.serve(PATH, Answer(ARCHIVE, ranges=False, drop=300_000), Answer(ARCHIVE, ranges=False))
    assert is_archive(get(url).path)
    assert ranges(mirror) == [None, "bytes=300000-"] and files(tmp_path) == [NAME]


def test_a_mirror_without_ranges_that_always_drops_is_given_up(mirror, get):
    url = mirror.serve(PATH, Answer(ARCHIVE, ranges=False, drop=300_000))
    with pytest.raises(DownloadError, match="attempts in a row brought nothing new"):
        get(url)
    assert len(mirror.requests) == 1 + HASTY.tries


def test_a_later_process_goes_on(mirror, get, tmp_path):
    url = mirror.serve(PATH, Answer(ARCHIVE, etag='"one"', drop=250_000), *[Answer(status=503)] * HASTY.tries,
                       Answer(ARCHIVE, etag='"one"'))
    with pytest.raises(DownloadError, match="answered 503"):
        get(url)
    assert len([name for name in files(tmp_path) if name.endswith(".part")]) == 1
    done = get(url)
    assert mirror.requests[-1] == (PATH, "bytes=250000-", '"one"')
    assert (done.received, files(tmp_path)) == (len(ARCHIVE) - 250_000, [NAME])


def test_an_interrupted_fetch_leaves_its_part_and_no_file(mirror, get, tmp_path, monkeypatch):
    url = mirror.serve(PATH, Answer(ARCHIVE, etag='"one"'))
    pieces = transfer._pieces

    def interrupted(raw, patience):
        for piece in pieces(raw, patience):
            yield piece
            raise KeyboardInterrupt

    monkeypatch.setattr(transfer, "_pieces", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get(url)
    assert NAME not in files(tmp_path)
    monkeypatch.setattr(transfer, "_pieces", pieces)
    done = get(url)
    assert 0 < done.received < len(ARCHIVE) and is_archive(done.path)


def test_redirects_and_passing_failures_are_followed(mirror, get):
    mirror.serve("/moved/here", Answer(status=500), Answer(status=429), Answer(ARCHIVE))
    url = mirror.serve(PATH, Answer(status=302, location=mirror.address("/moved/here")))
    assert is_archive(get(url).path)


def test_a_gzip_file_is_not_unpacked_on_the_way(mirror, get, monkeypatch):
    """Some servers call a .gz file a plain one in gzip encoding; it has to stay as it is."""
    headers = Mirror._headers
    claimed = {"Content-Encoding": "gzip"}
    monkeypatch.setattr(Mirror, "_headers", staticmethod(lambda *given: {**headers(*given), **claimed}))
    assert get(mirror.serve(PATH, Answer(ARCHIVE))).checked == ["official MD5"] and mirror.encodings == ["identity"]


# --- servers that lie -------------------------------------------------------------------------------------------------


def test_a_chunked_file_that_breaks_is_asked_for_again(mirror, get):
    url = mirror.serve(PATH, Answer(ARCHIVE, chunked=True, piece=100_000, drop=200_000),
                       Answer(ARCHIVE, chunked=True, piece=100_000))
    assert is_archive(get(url).path) and ranges(mirror) == [None, "bytes=200000-"]


@pytest.mark.parametrize("heeds_ranges", [True, False])
def test_a_length_that_is_too_long_does_not_matter_if_all_is_there(mirror, get, heeds_ranges):
    url = mirror.serve(PATH, Answer(ARCHIVE, announce=len(ARCHIVE) + 5_000, ranges=heeds_ranges))
    assert is_archive(get(url).path)
    assert len(mirror.requests) > 1  # it did ask for the rest


def test_a_length_that_is_too_short_makes_a_wrong_file(mirror, get, tmp_path):
    short = mirror.serve("/short/" + NAME, Answer(ARCHIVE, announce=len(ARCHIVE) - 60_000))
    good = mirror.serve(PATH, Answer(ARCHIVE))
    done = get(short, good)
    assert done.urls == [good] and is_archive(done.path) and files(tmp_path) == [NAME]


def test_no_length_at_all(mirror, get):
    """Then the end of the connection is the end of the file, whether it is or not: the check has to tell."""
    url = mirror.serve(PATH, Answer(ARCHIVE, announce=None, drop=200_000), Answer(ARCHIVE, announce=None))
    assert is_archive(get(url).path)
    assert ranges(mirror) == [None, None]  # wrong and of unknown length: once more, from the start


@pytest.mark.parametrize("first, second, conditional", [
    ({"etag": '"one"'}, {"etag": '"two"'}, True),
    ({"etag": '"one"'}, {"etag": '"two"'}, False),  # a server that takes no notice of If-Range
    ({}, {}, False),  # nothing to tell them apart but their length
])
def test_a_file_that_changes_between_attempts_is_fetched_anew(mirror, get, monkeypatch, first, second, conditional):
    old = bytes(byte ^ 1 for byte in ARCHIVE) + (b"" if first else b"old")
    if not conditional:
        start = Mirror._start

        def heedless(request, answer):
            del request.headers["If-Range"]
            return start(request, answer)

        monkeypatch.setattr(Mirror, "_start", staticmethod(heedless))
    url = mirror.serve(PATH, Answer(old, drop=300_000, **first), Answer(ARCHIVE, **second))
    done = get(url)
    assert is_archive(done.path) and ranges(mirror) == [None, "bytes=300000-", *([] if conditional else [None])]
    assert done.received == 300_000 + len(ARCHIVE)  # the rest of the new one was not put behind the old one's beginning


def test_a_change_that_nothing_tells_is_found_by_the_check(mirror, get):
    """The same length, no ETag, no date: the two halves do not fit, and all is fetched once more from the start."""
    other = bytes(byte ^ 1 for byte in ARCHIVE)
    url = mirror.serve(PATH, Answer(other, drop=300_000), Answer(ARCHIVE))
    assert is_archive(get(url).path)
    assert ranges(mirror) == [None, "bytes=300000-", None]


@pytest.mark.parametrize("said", ["bytes 0-99/100", "bytes 300001-9/10", "garbage", ""])
def test_a_range_that_was_not_asked_for_is_not_taken(mirror, get, monkeypatch, said):
    headers = Mirror._headers

    def lying(answer, status, start):
        return {**headers(answer, status, start), **({"Content-Range": said} if status == 206 else {})}

    monkeypatch.setattr(Mirror, "_headers", staticmethod(lying))
    url = mirror.serve(PATH, Answer(ARCHIVE, drop=300_000), Answer(ARCHIVE))
    assert is_archive(get(url).path)
    assert ranges(mirror) == [None, "bytes=300000-", None]


def test_a_part_that_is_complete_already_needs_no_request_and_a_longer_one_is_dropped(mirror, get, tmp_path):
    url = mirror.serve(PATH, Answer(ARCHIVE, etag='"one"', drop=250_000), Answer(status=404))
    with pytest.raises(DownloadError):
        get(url)
    (part,) = tmp_path.glob(".*.part")
    mirror.serve(PATH, Answer(ARCHIVE, etag='"one"'))
    part.write_bytes(bytes(len(ARCHIVE) + 1000))  # of another, longer file
    assert is_archive(get(url).path)
    assert ranges(mirror)[-2:] == [f"bytes={len(ARCHIVE) + 1000}-", None]
    (tmp_path / NAME).unlink()
    part.write_bytes(ARCHIVE)
    part.with_name(part.name + ".json").write_text(json.dumps({"total": len(ARCHIVE), "version": '"one"'}))
    asked = len(mirror.requests)
    assert get(url).received == 0 and len(mirror.requests) == asked
    part.write_bytes(ARCHIVE)  # and nothing remembered: the server says that this is all
    assert get(url, force=True).received == 0 and ranges(mirror)[-1] == f"bytes={len(ARCHIVE)}-"


def test_a_stream_without_end_is_cut_and_nothing_of_it_stays(mirror, get, tmp_path):
    url = mirror.serve(PATH, Answer(b"", announce=None, endless=True))
    with pytest.raises(DownloadError, match=f"sent more than {SMALL.most_bytes:,} bytes: it is another file, or"):
        get(url)
    assert files(tmp_path) == [] and len(mirror.requests) == 1
    big = mirror.serve("/big.tar.gz", Answer(b"x", announce=10**12))
    with pytest.raises(DownloadError, match="has 1,000,000,000,000 bytes, expected at most"):
        get(big)
    assert mirror.requests[-1][0] == "/big.tar.gz" and files(tmp_path) == []


def test_a_stalled_mirror_is_left(mirror, get):
    stalled = mirror.serve("/stalled/" + NAME, Answer(ARCHIVE, piece=9_000, stall=9_000))
    good = mirror.serve(PATH, Answer(ARCHIVE))
    began = time.perf_counter()
    assert get(stalled, good).urls == [good]
    assert time.perf_counter() - began < 4


def test_a_trickle_is_a_stall(mirror, get):
    """A byte now and then keeps a socket's time-out away, but not ours."""
    url = mirror.serve(PATH, Answer(ARCHIVE, piece=1, pause=0.05))
    began = time.perf_counter()
    with pytest.raises(DownloadError, match=r"sent only \d+ bytes a second"):
        get(url)
    assert time.perf_counter() - began < 5


# --- wrong files ------------------------------------------------------------------------------------------------------


def test_a_repacked_archive_is_right_by_its_content(mirror, get, tmp_path):
    assert hashlib.md5(REPACKED).hexdigest() != SMALL.md5
    url = mirror.serve(PATH, Answer(REPACKED))
    done = get(url)
    assert done.checked == ["content"] and done.path.read_bytes() == REPACKED
    assert get(url).received == 0 and len(mirror.requests) == 1  # and stays right
    plain = gzip.decompress(ARCHIVE)
    assert get(mirror.serve("/plain/" + NAME, Answer(plain)), force=True).path.read_bytes() == plain
    forked = packed(CONTENTS, (member("._cifar-10-batches-bin", 40), bytes(40)),  # as macOS packs; MXNet's mirror is
                    (member("cifar-10-batches-bin/._data_batch_1.bin", 40), bytes(40)))
    assert get(mirror.serve("/forked/" + NAME, Answer(forked)), force=True).checked == ["content"]


@pytest.mark.parametrize("content, reason", [
    (WRONG, "data_batch_4.bin in the archive has SHA-1 [0-9a-f]{40}, expected [0-9a-f]{40}: it is damaged"),
    (ARCHIVE[:200_000], r"the archive \(200,000 bytes\) cannot be read as a tar archive: .* It is truncated or no arc"),
    (b"<html>You must log in</html>", r"the archive \(28 bytes\) cannot be read as a tar archive"),
    (b"", r"the archive \(0 bytes\) cannot be read as a tar archive: empty file"),
    (packed({name: CONTENTS[name] for name in list(CONTENTS)[1:]}), "the archive lacks data_batch_1.bin, expected"),
    (packed({**CONTENTS, "test_batch.bin": b"x"}), "test_batch.bin in the archive has 1 bytes, expected 92,190"),
    (packed(CONTENTS, (member("../../up.txt", 3), b"abc")), "the archive holds '../../up.txt', a file; expected"),
    (packed(CONTENTS, (member("/tmp/x", 3), b"abc")), "the archive holds '/tmp/x', a file; expected plain files below"),
    (packed(CONTENTS, (member("a/data_batch_1.bin", 0, tarfile.SYMTYPE, "/etc/passwd"), b"")), "a link, device or s"),
    (packed(CONTENTS, (member("fifo", 0, tarfile.FIFOTYPE), b"")), "the archive holds 'fifo', a link, device or"),
    (packed(CONTENTS, (member("zeros", 50_000_000), bytes(50_000_000))), "unpacks to more than 1,601,716 bytes: it is"),
    (packed(CONTENTS, *[(member(f"{k}"), b"") for k in range(1_200)]), "holds more than 1,000 members"),
    (packed(CONTENTS, (member("a/test_batch.bin", 92_190), CONTENTS["test_batch.bin"])), "holds test_batch.bin twice"),
], ids="damaged truncated html empty lacking short parent absolute symlink fifo bomb crowd twice".split())
def test_a_wrong_archive_is_refused_deleted_and_the_next_mirror_tried(mirror, get, tmp_path, content, reason):
    wrong = mirror.serve("/wrong/" + NAME, Answer(content))
    with pytest.raises(DownloadError, match=f"{re.escape(wrong)}: sent a wrong file: .*{reason}"):
        get(wrong)
    assert files(tmp_path) == [] and len(mirror.requests) == 1  # whole, so that asking again would not help
    good = mirror.serve(PATH, Answer(ARCHIVE))
    done = get(wrong, good)
    assert done.urls == [good] and is_archive(done.path) and files(tmp_path) == [NAME]


def test_a_wrong_file_never_takes_the_place_of_a_right_or_wrong_one(mirror, get, tmp_path):
    (tmp_path / NAME).write_bytes(b"the user's own")
    with pytest.raises(DownloadError):
        get(mirror.serve(PATH, Answer(WRONG)))
    assert (tmp_path / NAME).read_bytes() == b"the user's own"


# --- no mirror gives it -----------------------------------------------------------------------------------------------


def test_the_error_lists_every_mirror_and_how_to_get_it_by_hand(mirror, get, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/x.tar.gz"
        missing, broken = mirror.address("/404.tar.gz"), mirror.serve("/500.tar.gz", Answer(status=500))
        ring = mirror.serve("/ring.tar.gz", Answer(status=302, location="/ring.tar.gz"))
        secret = missing.replace("http://", "http://user:secret@") + "?token=secret"
        with pytest.raises(DownloadError) as caught:
            get(closed, missing, broken, ring, secret)
    text = str(caught.value)
    for part in (f"{closed}: Connection refused", f"{missing}: answered 404 Not Found",
                 f"{broken}: answered 500 Internal Server Error (3 attempts", f"{ring}: Exceeded 30 redirects",
                 f"no mirror gave {NAME}", "--mirror", "TINYRES_MIRROR", SMALL.md5, str(tmp_path)):
        assert part in text
    assert "secret" not in text and "None could be reached" not in text and files(tmp_path) == []


def test_no_network_is_said_plainly(mirror, get):
    with pytest.raises(DownloadError) as caught:
        get("http://mirror.invalid/a.tar.gz", "https://other.invalid/a.tar.gz")
    assert "None could be reached: is there a network? A proxy is taken from HTTPS_PROXY" in str(caught.value)
    assert caught.value.args[0].count("\n  http") == 2


def test_a_proxy_of_the_environment_is_used(mirror, get, monkeypatch):
    monkeypatch.setenv("http_proxy", mirror.address())
    mirror.serve("http://mirror.invalid/a.tar.gz", Answer(ARCHIVE))
    assert is_archive(get("http://mirror.invalid/a.tar.gz").path)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # the port that discards all: nobody is there
    with pytest.raises(DownloadError, match="None could be reached"):
        get("http://mirror.invalid/b.tar.gz", force=True)


def no_space(file):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_an_error_of_its_own_and_keeps_what_came(mirror, get, tmp_path, monkeypatch):
    url = mirror.serve(PATH, Answer(ARCHIVE), Answer(ARCHIVE, drop=200_000))
    usage = transfer.shutil.disk_usage
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: usage(folder)._replace(free=400_000))
    with pytest.raises(OSError, match=r"has room for 400,000 bytes, [\d,]+ more are needed") as caught:
        get(url, mirror.address("/never"))
    assert not isinstance(caught.value, DownloadError) and files(tmp_path) == []
    monkeypatch.setattr(transfer.shutil, "disk_usage", usage)
    monkeypatch.setattr(transfer.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left on device. What has come is kept") as caught:
        get(url)
    assert not isinstance(caught.value, DownloadError) and len(mirror.requests) == 2
    assert [path.stat().st_size for path in tmp_path.glob(".*.part")] == [200_000]


# --- which mirror, which data set -------------------------------------------------------------------------------------


def test_given_mirrors_come_first_then_the_environments_then_the_known(mirror, get, monkeypatch, tmp_path):
    given, usual = mirror.serve("/mine/archive.tgz", Answer(status=404)), mirror.address("/usual/")
    known = mirror.serve(PATH, Answer(ARCHIVE))
    monkeypatch.setenv("TINYRES_MIRROR", f"{usual} {mirror.address('/other/cifar-100-binary.tar.gz')}")
    assert get(known, mirrors=[mirror.address("/folder"), given]).urls == [known]
    assert [path for path, _, _ in mirror.requests] == [f"/folder/{NAME}", "/mine/archive.tgz", f"/usual/{NAME}", PATH]


@pytest.mark.parametrize("address", ["ftp://host/x", "/a/folder", "host/x", "http://", "http://[::1/x", "file:///x"])
def test_what_is_no_address_is_refused(get, address):
    with pytest.raises(ValueError, match=f"the mirror {re.escape(repr(address))} is no address of {NAME}.*--data-dir"):
        get("http://127.0.0.1:9/", mirrors=[address])


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="no data set 'cifar-10'. Did you mean 'cifar10'"):
        fetch("cifar-10")
    with pytest.raises(ValueError, match="digits come with the package"):
        fetch("digits")


def test_fashion_is_four_files_of_which_those_there_are_kept(mirror, monkeypatch, tmp_path):
    fashion = importlib.import_module("tinyres.data.fashion")  # the name in the package is the function
    shape = {"train_images": (5, 28, 28), "train_labels": (5,), "test_images": (3, 28, 28), "test_labels": (3,)}
    made = {}
    for key, file in fashion.FILES.items():
        content = fashion.header(shape[key]) + bytes(range(5))[: shape[key][0]] * (784 if len(shape[key]) == 3 else 1)
        zipped = gzip.compress(content)
        made[key] = replace(file, shape=shape[key], sha256=hashlib.sha256(content).hexdigest(),
                            md5=hashlib.md5(zipped).hexdigest(), packed_bytes=len(zipped))
        mirror.serve(f"/fashion/{file.name}.gz", Answer(zipped if key != "test_labels" else gzip.compress(content, 1)))
    monkeypatch.setattr(fashion, "FILES", made)
    monkeypatch.setattr(download, "FASHION_FILES", made)
    monkeypatch.setenv("TINYRES_CACHE", str(tmp_path))
    done = fetch("fashion", mirrors=[mirror.address("/fashion")], show=False, patience=HASTY)
    assert done.path == tmp_path / "fashion" == fashion.find() and len(files(done.path)) == 4
    assert done.checked == ["official MD5"] * 3 + ["content"]
    assert fashion.read(done.path, verify=True)["test_labels"].tolist() == [0, 1, 2]
    (done.path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"x")
    other = gzip.compress(fashion.header((3,)) + bytes([2, 1, 0]))  # of the right shape, but MNIST's
    mirror.serve("/mnist/t10k-labels-idx1-ubyte.gz", Answer(other))
    monkeypatch.setattr(download, "FASHION_MIRRORS", ())
    with pytest.raises(DownloadError, match="sent a wrong file: its content has SHA-256 [0-9a-f]{64}, expected"):
        fetch("fashion", mirrors=[mirror.address("/mnist")], show=False, patience=HASTY)
    one = mirror.address("/fashion/train-images-idx3-ubyte.gz")  # the address of one file stands for its folder
    again = fetch("fashion", mirrors=[one], show=False, patience=HASTY)
    assert again.urls == [mirror.address("/fashion/t10k-labels-idx1-ubyte.gz")] and len(mirror.requests) == 6


def test_the_official_facts():
    """MD5 of https://www.cs.toronto.edu/~kriz/cifar.html; each address is one of the archive, the official one last."""
    assert (CIFAR10.md5, CIFAR100.md5) == ("c32a1d4ab5d03f1284b67883e8d87530", "03b5dce01913d631647c71ecec9e9cb8")
    for wanted in (CIFAR10, CIFAR100):
        remote = download.cifar_archive(wanted)
        assert remote.urls[-1] == wanted.url and "toronto.edu" in wanted.url and len(remote.urls) >= 4
        assert all(url.startswith("https://") and url.endswith(f"/{wanted.archives[0]}") for url in remote.urls)
        assert all(re.fullmatch("[0-9a-f]{40}", file.sha1) for file in wanted.files)
    assert CIFAR10.most_bytes > 184_380_061 and CIFAR100.most_bytes > 60_000 * 3074


def test_the_real_archive_is_right():
    path = Path(os.environ.get("TINYRES_DATA", ""), "cifar10", CIFAR10.archives[0])
    if not path.is_file():
        pytest.skip(f"needs cifar10/{path.name} in $TINYRES_DATA")
    found, wrong = download.check(download.cifar_archive(CIFAR10), path)
    assert found in ("official MD5", "content") and not wrong


# --- several processes, and ends of processes -------------------------------------------------------------------------


def _fetch_in_a_process(url, folder, queue):
    FORMATS["cifar10"] = replace(SMALL, url=url)  # of that process alone
    queue.put(fetch("cifar10", folder, show=False, patience=HASTY).received)


@pytest.mark.skipif(sys.platform == "win32", reason="no fcntl")
def test_two_processes_fetch_once(mirror, tmp_path):
    url = mirror.serve(PATH, Answer(ARCHIVE, piece=60_000, pause=0.05))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    both = [context.Process(target=_fetch_in_a_process, args=(url, tmp_path, queue)) for _ in range(2)]
    for process in both:
        process.start()
    received = sorted(queue.get(timeout=20) for _ in both)
    for process in both:
        process.join(timeout=20)
    assert received == [0, len(ARCHIVE)] and len(mirror.requests) == 1
    assert is_archive(tmp_path / NAME) and files(tmp_path) == [NAME]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_fetch_goes_on_and_its_lock_is_gone(mirror, get, tmp_path):
    url = mirror.serve(PATH, Answer(ARCHIVE, etag='"one"', piece=100_000, pause=0.2), Answer(ARCHIVE, etag='"one"'))
    code = ("import sys; from dataclasses import replace; from tinyres.data import cifar_formats, download\n"
            "cifar_formats.FORMATS['cifar10'] = replace(cifar_formats.CIFAR10, mirrors=(), url=sys.argv[1])\n"
            "download.fetch('cifar10', sys.argv[2], show=False)")
    process = subprocess.Popen([sys.executable, "-c", code, url, str(tmp_path)])
    for _ in range(500):
        if any(path.stat().st_size >= 100_000 for path in tmp_path.glob(".*.part")):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    (part,) = tmp_path.glob(".*.part")
    kept = part.stat().st_size
    done = get(url)
    assert 100_000 <= kept < len(ARCHIVE) and ranges(mirror)[-1] == f"bytes={kept}-"
    assert done.received == len(ARCHIVE) - kept and is_archive(done.path)


def test_without_locks_each_process_has_a_part_of_its_own(mirror, get, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    url = mirror.serve(PATH, Answer(ARCHIVE, drop=100_000), Answer(status=404), Answer(ARCHIVE))
    other = tmp_path / f".{NAME}.12345678.999.part"
    other.write_bytes(b"another process's")
    with pytest.raises(DownloadError):
        get(url)
    (mine,) = (path.name for path in tmp_path.glob(f".*.{os.getpid()}.part"))
    assert is_archive(get(url).path)
    assert files(tmp_path) == sorted([NAME, other.name]) and mine not in files(tmp_path)


def test_progress_says_where_from_and_begins_with_what_was_there(mirror, get, capsys):
    """The bar must not count resumed bytes as if they had just come: its rate would be a lie."""
    wrong = mirror.serve("/wrong/" + NAME, Answer(WRONG))
    url = mirror.serve(PATH, Answer(ARCHIVE, drop=250_000), Answer(status=404), Answer(ARCHIVE))
    with pytest.raises(DownloadError):
        get(url)
    capsys.readouterr()
    get(wrong, url, show=True)
    err = capsys.readouterr().err
    assert f"{NAME} from {wrong}\n" in err and "sent a wrong file" in err and f"{NAME} from {url}\n" in err
    assert "| 0.00/55" in err and "45%" in err and "| 250k/554k [00:00<?" in err
    get(url, force=True)
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_written_is_named(get, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"cifar10: .*file.below cannot be written: .* --folder or TINYRES_CACHE"):
        fetch("cifar10", tmp_path / "file" / "below", show=False)
