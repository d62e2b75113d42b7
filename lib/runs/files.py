"""Files that appear whole or not at all, and stay: written aside, forced to the disk, renamed. And their
checksums.

What a file system refuses (a full disk, a read-only folder) becomes one sentence that names the file and the
mend.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import socket
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lib.method.errors import BundleError

MENDS = {
    errno.ENOSPC: "the disk is full; make room and run it again",
    errno.EDQUOT: "the quota of this disk is used up; make room and run it again",
    errno.EFBIG: "files may not grow so large here; raise the limit (ulimit -f) or take another disk",
    errno.EROFS: "the file system is read-only; take another folder",
    errno.EACCES: "permission is missing; change the folder's permissions or take another folder",
    errno.EPERM: "permission is missing; change the folder's permissions or take another folder",
    errno.EIO: "the disk reports an error; take another disk",
    errno.ENOTDIR: "a part of its path is a file, not a folder; take another folder",
    errno.EEXIST: "there is a file where its folder should be; remove that file or take another folder",
    errno.EISDIR: "there is a folder of that name; remove it or take another name",
    errno.ENAMETOOLONG: "its name is too long for the file system; take a shorter one",
}
"""What a file system answers, and what a user can do about it."""
READING_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, EOFError,
    MemoryError,
    SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What packages raise where a file is not what its name says."""
LEFTOVER = re.compile(r"^\..+\.(\d+)@(.+)\.part(\.[^.]*)?$")
"""Name of a file that is being written: process and machine of the writer."""


ArtefactError = BundleError


def one_line(said: object) -> str:
    """What ``said`` (an error, a name) says, on one line: a package's message may have several, or none."""
    return " ".join(str(said).split())[:300] or type(said).__name__


def printable(text: str) -> str:
    """``text`` with what a terminal would obey, or could not show, escaped: a file may have any name."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@contextmanager
def refusals_named(path: Path) -> Iterator[None]:
    """Whatever the file system refuses about ``path`` inside the context, as one sentence.

    Raises:
        BundleError: in the place of an ``OSError`` of ``MENDS``.
    """
    try:
        yield
    except OSError as error:
        where = None if error.filename is None else Path(os.fsdecode(error.filename))
        about = {path, _aside(path), *path.parents}
        if error.errno not in MENDS or not (where is None or where in about or path in where.parents):
            raise
        path = path if where is None or path not in where.parents else where
        raise BundleError(f"{path}: cannot be written: {MENDS[error.errno]}") from error


def _aside(path: Path) -> Path:
    machine = re.sub(r"[^\w-]", "-", socket.gethostname())
    return path.with_name(f".{path.name}.{os.getpid()}@{machine}.part{path.suffix}")


@contextmanager
def writing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A path beside ``path`` to write to; renamed to ``path`` once it is written, removed on error.

    Args:
        durable: wait until file and name are on the disk, so that not even a power cut leaves half a file;
            for thousands of small files that are checked afterwards the wait is too dear.

    Raises:
        BundleError: the disk is full, the folder read-only or closed to this user.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path  # the link stays one
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise BundleError(f"{path}: is no file but a device or the like; name a file to write")
    aside = _aside(path)
    with refusals_named(path):
        make_folder(path.parent)
        try:
            yield aside
            if durable:
                _force(aside)
            os.replace(aside, path)
            if durable:
                _force(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make ``folder`` and its parents, and see to it that a power cut does not take them away again."""
    missing = [one for one in (folder, *folder.parents) if not one.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in reversed(missing):
        _force(one.parent)


def _force(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone leaves the bytes in the drive's own cache
            try:
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
                return
            except OSError as error:
                if error.errno not in {errno.ENOTSUP, errno.EINVAL, errno.ENOTTY}:
                    raise
        os.fsync(descriptor)
    except OSError as error:
        # network disks that do it unasked
        if error.errno not in {errno.EINVAL, errno.ENOTSUP} or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, whole or not at all."""
    with writing(path) as aside:
        aside.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def write_rows(path: Path, blocks: Iterable[np.ndarray], dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Write an array (npy) block by block, whole or not at all; holds one block at a time.

    Not through a memory map, and not by ``np.save``: on a full disk the one kills the process, the other does
    not say why.

    Args:
        blocks: [n, ...] each, one below the other of ``dtype`` and ``shape`` together.
    """
    with writing(path) as aside, aside.open("wb") as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        written = sum(file.write(np.ascontiguousarray(block, dtype).tobytes()) for block in blocks)
        if written != math.prod(shape) * np.dtype(dtype).itemsize:
            raise ValueError(f"{path}: the blocks do not add up to {shape}")


def remove_leftovers(folder: Path) -> None:
    """Remove what writers of this machine that are dead have left half-written below ``folder``."""
    machine = re.sub(r"[^\w-]", "-", socket.gethostname())
    for path in folder.rglob(".*.part*"):
        found = LEFTOVER.match(path.name)
        if found and found[2] == machine and not _lives(int(found[1])):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def checksum(path: Path) -> str:
    """SHA-256, hexadecimal, of a file; read once a process for each size, time of change and inode.

    Raises:
        BundleError: it is a folder, or closed to this user.
    """
    try:
        status = path.stat()
        return _checksum(path, status.st_size, status.st_mtime_ns, status.st_ino)
    except (IsADirectoryError, PermissionError) as error:
        raise BundleError(f"{path}: cannot be read: {MENDS[error.errno]}") from error


@lru_cache(maxsize=4096)
def _checksum(path: Path, size: int, changed_ns: int, inode: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
