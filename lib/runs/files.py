"""Files that appear whole or not at all: written aside, forced to the disk, renamed. And their checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lib.method.errors import BundleError

READING_ERRORS = (Exception,)
"""What packages raise where a file is not what its name says: nearly anything."""
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
    """Name ``path`` in what the system says of no file, such as that a disk is full.

    Raises:
        BundleError: in the place of an ``OSError`` that has a number and no file's name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise BundleError(f"{path}: cannot be written: {error.strerror}") from error


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; renamed to ``path`` once it is on the disk, removed on error.

    It has one fixed name: a run has one writer, and the next one overwrites what a killed one left.
    """
    aside = path.with_name(f".{path.name}.part{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with refusals_named(path):
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
        os.fsync(descriptor)
    except OSError as error:  # network disks know no such call for folders
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
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
    """SHA-256, hexadecimal, of a file; a file whose signature is remembered is not read again."""
    key = (str(path), signature(path))
    if key not in remembered:
        with path.open("rb") as file:
            remembered[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return remembered[key]
