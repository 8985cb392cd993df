"""Archives made to hurt: whatever their headers claim, reading costs little memory and time, and writes nothing."""

import gzip
import lzma
import tarfile
import time
import tracemalloc

import pytest
from mirror import member, packed, small_cifar10

from tinyres.data import archive, cifar

SMALL, CONTENTS = small_cifar10()
ARCHIVE = packed(CONTENTS)


def test_a_bomb_costs_little_memory_and_time(tmp_path):
    """A header claims 8 GB, of zeros that gzip packs a thousandfold; ten thousand headers in a row; other nonsense."""
    long_name = member("long", 8 * 10**9, tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT)
    chained = b"".join(member("x", 0, tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT) for _ in range(10_000))
    pax = (member("x", 22, tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT) + b"22 GNU.sparse.map=a,b\n".ljust(512, b"\0")
           + member("x").tobuf(tarfile.USTAR_FORMAT))  # where numbers should be, there are none
    negative = bytearray(member("x", 0, tarfile.XHDTYPE).tobuf(tarfile.USTAR_FORMAT))
    negative[124:136] = b"\xff" * 12  # a size of -1 in base 256
    negative[148:156] = b" " * 8
    negative[148:156] = b"%06o\0 " % sum(negative)
    for plain in (long_name + bytes(60_000_000), chained + bytes(10**6), pax * 9, bytes(negative) * 99):
        path = tmp_path / "bomb.tar.gz"
        path.write_bytes(gzip.compress(plain, 9))
        tracemalloc.start()
        began = time.perf_counter()
        with pytest.raises(ValueError, match="bomb.tar.gz"):
            cifar.read(SMALL, path, verify=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5 * SMALL.most_bytes and time.perf_counter() - began < 2


def test_a_member_longer_than_the_archive_is_not_skipped_block_by_block(tmp_path):
    """tarfile reads on behind the end of a stream until it has skipped what was claimed: here for years."""
    header = bytearray(member("x").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + (2**62).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(header) + bytes(2_000))
    began = time.perf_counter()
    with pytest.raises(ValueError, match="x.tar ends within a member: it is truncated or damaged"):
        cifar.read(SMALL, path, verify=True)
    assert time.perf_counter() - began < 1


def test_sparse_files_are_refused(tmp_path):
    """A sparse member of 512 bytes can claim any size, made of zeros when it is read."""
    sparse = bytearray(member("cifar-10-batches-bin/data_batch_1.bin", 0).tobuf(tarfile.GNU_FORMAT))
    sparse[156:157] = tarfile.GNUTYPE_SPARSE
    sparse[483:495] = b"%011o\0" % len(CONTENTS["data_batch_1.bin"])
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    path = tmp_path / "sparse.tar"
    path.write_bytes(bytes(sparse) + bytes(1024))
    with pytest.raises(ValueError, match="a link, device or sparse file"):
        cifar.read(SMALL, path, verify=True)


def test_a_file_that_is_too_large_is_not_even_opened(tmp_path):
    """170 MB of gzip can hold nothing and still take minutes: eight million members of twenty bytes."""
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(b"") * 1_000 + ARCHIVE)
    with pytest.raises(ValueError, match="has [0-9,]+ bytes, expected at most 2,000: it is another file"):
        list(archive.contents(path, 2_000, lambda name, size: True))


def test_other_compressions_are_refused(tmp_path):
    path = tmp_path / "x.tar.xz"
    path.write_bytes(lzma.compress(gzip.decompress(ARCHIVE)))
    with pytest.raises(ValueError, match="cannot be read as a tar archive"):
        list(archive.contents(path, 10**7, lambda name, size: True))
