"""The cache of machine code: kernels are compiled once for a text, a version of Numba and a processor.

Numba has a cache of its own; this one replaces it, as that

    knows a kernel by the file of the function alone: its code contains that of functions in other files, such as the
        vector instructions of simd.py, and an edit there would leave stale code in use. Here a change in any file of
        this folder makes all of it stale.
    numbers its files in an index: two processes that compile at the same time may both write number 1, and one of them
        is later given the other's code. Here a file's name says what it holds.
    believes what it reads. Here a file that was cut short or damaged is not run, and its kernel is compiled anew.

What is in a file's name: the kernel, and a hash of the argument types, the processor and its vector instructions (a
home folder may be shared by several machines). What is in its folder's: a hash of the kernels' text and the versions of
Python, Numba and llvmlite. The folders of the last few texts are kept, as one goes back and forth between branches.

Where: in $NUMBA_CACHE_DIR if that is set, else beside the source, else in the user's cache folder: the first in which
a file can be written. Where none can, kernels are compiled in each process, but for what an administrator has compiled
beside the source.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import shutil
import sys
import uuid
from pathlib import Path

import llvmlite
import numba
from llvmlite import binding
from numba.core import caching, serialize
from numba.core.compiler import CompileResult

SOURCE = Path(__file__).parent
PREFIX = "tinyres-kernels-"
KEPT = 4  # folders, of the texts used last
CHECKSUM = hashlib.sha256().digest_size


@functools.cache
def source_stamp():
    """SHA-256 of the text of all kernel files and of the versions of what compiles them: what makes code stale."""
    digest = hashlib.sha256(repr((sys.implementation.cache_tag, numba.__version__, llvmlite.__version__)).encode())
    for path in sorted(SOURCE.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def processor():
    """What the host can do. Numba's own key has what it compiles for, which $NUMBA_CPU_NAME may change; but simd.py
    makes its vectors as wide as the host's."""
    return binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()


@functools.cache
def folder():
    """Where code is written: the Path of a folder that is there, or None if none can be written."""
    locators = (caching.UserProvidedCacheLocator, caching.InTreeCacheLocator, caching.UserWideCacheLocator)
    for locator in locators:  # each tries to write a file, and is None if it could not
        with contextlib.suppress(OSError, RuntimeError):  # of a home folder that cannot be found
            place = locator.from_function(folder.__wrapped__, str(SOURCE / Path(__file__).name))
            if place is not None:
                return _made(Path(place.get_cache_path()) / (PREFIX + source_stamp()[:16]))
    return None


def _made(path):
    """The folder, made if it is not there, and then those of its kind removed that were not used for longest."""
    if path.is_dir():
        os.utime(path)
        return path
    path.mkdir(parents=True, exist_ok=True)
    others = sorted((other for other in path.parent.glob(PREFIX + "*") if other != path), key=os.path.getmtime)
    for old in others[: -(KEPT - 1)]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def folders_read():
    """Where code is looked for: folder(), and beside the source even where that cannot be written.

    Not there if $NUMBA_CACHE_DIR says where: an empty folder is then an empty cache.
    """
    beside = None if numba.config.CACHE_DIR else SOURCE / "__pycache__" / (PREFIX + source_stamp()[:16])
    return list(dict.fromkeys(path for path in (folder(), beside) if path is not None))


class KernelCache:
    """The versions of one function: what Numba asks of a cache."""

    def __init__(self, function):
        self.name = f"{Path(function.__code__.co_filename).stem}.{function.__qualname__}"

    @staticmethod
    def holds(function):
        """Whether the function lies in a file of this folder, as only those count for the stamp."""
        return Path(function.__code__.co_filename).parent == SOURCE

    @property
    def cache_path(self):
        """The folder's name, None if nothing can be written."""
        return None if folder() is None else str(folder())

    def load_overload(self, signature, target_context):
        """The compiled version for these argument types, None if there is none that can be used."""
        target_context.refresh()  # makes sure that the context is ready to link what is loaded
        key = self._key(signature, target_context.codegen())
        for place in folders_read():
            with contextlib.suppress(Exception):  # whatever is wrong with the file: the kernel is then compiled
                content = (place / self._file(key)).read_bytes()
                if content[:CHECKSUM] == hashlib.sha256(content[CHECKSUM:]).digest():
                    found, code = pickle.loads(content[CHECKSUM:])
                    if found == key:
                        return CompileResult._rebuild(target_context, *code)
        return None

    def save_overload(self, signature, result):
        """Keep a compiled version. A disk that is full or read-only by now is no reason to stop."""
        place = folder()
        if place is None:
            return
        key = self._key(signature, result.codegen)
        payload = serialize.dumps((key, result._reduce()))
        with contextlib.suppress(OSError):
            _write(place / self._file(key), hashlib.sha256(payload).digest() + payload)

    def _key(self, signature, codegen):
        return str(signature), str(codegen.magic_tuple()), str(processor())

    def _file(self, key):
        return f"{self.name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.nbc"

    def enable(self):
        """Part of what Numba asks for; this cache is always on."""

    def disable(self):
        """Likewise."""

    def flush(self):
        """Forget all versions of the function."""
        for path in folder().glob(f"{self.name}-*.nbc") if folder() else ():
            path.unlink(missing_ok=True)


def _write(path, content):
    """All of the file or none of it, also beside other processes that write it; the folder may have been removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
