"""One run at a time writes to a results folder.

The lock is the system's own (package filelock) on the file ``.lock``, released when the process ends. The
file ``.owner`` says whose it is. What a run starts (kernels, ranks) knows the run by a token: the variable
``SEMIVARIOGRAM_RUN``. Whoever only reads needs no lock: a notebook that a person has opened
beside a run is refused only where it would make something.
"""

from __future__ import annotations

import errno
import os
import platform
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

from filelock import FileLock, Timeout

from lib.method.errors import BundleError

VARIABLE = "SEMIVARIOGRAM_RUN"
"""Environment variable by which the processes of a run know one another."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What disks answer that know no locks, most often those of a network."""
PATIENCE_S = 10.0
"""Whoever makes a short stage is done by then, and workers of a killed run have ended."""


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keep other runs from writing to ``folder``. A process of the run that holds it goes on at once.
    BundleError: another run holds it."""
    token = os.environ.get(VARIABLE) or uuid.uuid4().hex
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder / ".lock")
    if not _acquire(lock, folder, token):
        yield
        return
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    try:
        who = f"process {os.getpid()} on {platform.node()} since {since}"
        (folder / ".owner").write_text(f"{token}\n{who}\n")
        with patch.dict(os.environ, {VARIABLE: token}):
            yield
    finally:
        lock.release()


@contextmanager
def waiting(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock ``path``, and hold it; where the disk knows locks."""
    lock = _lock(path)
    try:
        try:
            lock.acquire(timeout=1.0)
        except Timeout:
            print(f"{path}: another process holds it; waiting for its end", flush=True)
            lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"{path}: this disk knows no locks; see to it that no other run writes here")
    try:
        yield
    finally:
        lock.release()


def _lock(path: Path) -> FileLock:
    return FileLock(path, fallback_to_soft=False)  # a soft one would outlive a killed run


def _acquire(lock: FileLock, folder: Path, token: str) -> bool:
    """Whether this process now holds ``lock``: not where its run does, or where the disk knows no locks."""
    for patience in (0.0, PATIENCE_S):
        try:
            lock.acquire(timeout=patience)
            return True
        except Timeout:
            if _owner(folder)[0] == token:
                return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(f"{folder}: this disk knows no locks; see to it that no other run writes here")
            return False
    advice = "wait for its end, or give this one another name (--run)"
    raise BundleError(f"{folder}: another run writes here, {_owner(folder)[1]}; {advice}")


def _owner(folder: Path) -> tuple[str, str]:
    """Token and description of whoever wrote ``.owner``."""
    try:
        token, who = (folder / ".owner").read_text().splitlines()
    except (OSError, ValueError):
        return "", "a process that has not said who it is"
    return token, who
