"""Files that appear whole or not at all: written aside, forced to the disk, renamed. And their checksums.

What a file system refuses (a full disk, a read-only folder) becomes one sentence that names file and mend.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib.method.errors import BundleError

_NO_PERMISSION = "permission is missing; change the folder's permissions or take another folder"
MENDS = {
    errno.ENOSPC: "the disk is full; make room and run it again",
    errno.EDQUOT: "the quota of this disk is used up; make room and run it again",
    errno.EFBIG: "files may not grow so large here; raise the limit (ulimit -f) or take another disk",
    errno.EROFS: "the file system is read-only; take another folder",
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EIO: "the disk reports an error; take another disk",
    errno.ENOTDIR: "a part of its path is a file, not a folder; take another folder",
    errno.EEXIST: "there is a file where its folder should be; remove that file or take another folder",
    errno.EISDIR: "there is a folder of that name; remove it or take another name",
    errno.ENAMETOOLONG: "its name is too long for the file system; take a shorter one",
}
"""What a file system answers, and what a user can do about it."""
READING_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, EOFError,
    MemoryError, SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What packages raise where a file is not what its name says."""
Signature = tuple[int, int, int]
"""Size, time of change (ns) and inode of a file."""


def one_line(said: object) -> str:
    """``said`` (an error, a name) on one line: a package's message may have several lines, or none."""
    return " ".join(str(said).split())[:300] or type(said).__name__


def printable(text: str) -> str:
    """``text`` with escapes for what a terminal would obey or could not show: a file may have any name."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@contextmanager
def refusals_named(path: Path) -> Iterator[None]:
    """Turn what the file system refuses about ``path`` inside the context into one sentence.

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
    """One fixed name: a run has one writer, and the next one overwrites what a killed one left."""
    return path.with_name(f".{path.name}.part{path.suffix}")


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; renamed to ``path`` once it is on the disk, removed on error.

    Raises:
        BundleError: the disk is full, the folder is read-only or closed to this user.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path  # the link stays a link
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise BundleError(f"{path}: is no file but a device or the like; name a file to write")
    aside = _aside(path)
    with refusals_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            force(aside)
            os.replace(aside, path)
            force(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def force(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync alone leaves the bytes in the drive's cache
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)
    except OSError as error:  # network disks know no such call for folders, or for anything on macOS
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.ENOTTY}:
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, whole or not at all."""
    with writing(path) as aside:
        aside.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


remembered: dict[tuple[str, Signature], str] = {}
"""Path and signature of each file that has been read -> its checksum."""


def signature(path: Path) -> Signature:
    """Size, time of change and inode of ``path``."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def remember(path: Path, of: Signature, digest: str) -> None:
    """Let :func:`checksum` answer ``digest`` as long as the file's signature is ``of``."""
    remembered[str(path), of] = digest


def checksum(path: Path) -> str:
    """SHA-256, hexadecimal, of a file; a file whose signature is remembered is not read again.

    Raises:
        BundleError: it is a folder, or closed to this user.
    """
    try:
        key = (str(path), signature(path))
        if key not in remembered:
            with path.open("rb") as file:
                remembered[key] = hashlib.file_digest(file, "sha256").hexdigest()
    except (IsADirectoryError, PermissionError) as error:
        raise BundleError(f"{path}: cannot be read: {MENDS[error.errno]}") from error
    return remembered[key]
