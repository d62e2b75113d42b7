"""One run at a time writes to a results folder: a lock that says who holds it, and that dies with its owner.

It is the system's own lock (``flock``) on the file ``.lock`` of the folder. A run is a process with all that
it starts: kernels and ranks know it by a token that they inherit (``SEMIVARIOGRAM_RUN``), or by torchrun's
own id. Whoever only reads needs no lock: a notebook that a person has opened beside a run is refused only
where it would have to make something. The package filelock would do half of it: it cannot say who holds a
lock, and a forked loader of photos would keep it alive.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shlex
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from lib.method.errors import BundleError
from lib.runs.files import make_folder, refusals_named, remove_leftovers

VARIABLE = "SEMIVARIOGRAM_RUN"
"""Environment variable by which a run's processes know one another."""
NAME = ".lock"
TRIES, PAUSE_S = 10, 0.1
"""How often, and how long apart, a lock is asked for: whoever makes a short stage is done by then."""

_held: dict[Path, int] = {}
_own = uuid.uuid4().hex


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Nobody else's run writes to ``folder``, or to a folder of a run inside it, meanwhile.

    Nothing happens where this process, or the run that it is a part of, holds it already.

    Raises:
        BundleError: another run holds it, or the folder cannot be written.
    """
    folder = folder.resolve()
    is_inside = any(one in _held for one in (folder, *folder.parents)) or any(
        map(_is_held_by_ours, folder.parents)
    )
    descriptor = None if is_inside else _acquire(folder)
    if descriptor is None:
        yield
        return
    inherited = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = _run()
    _held[folder] = descriptor
    try:
        remove_leftovers(folder)
        yield
    finally:
        if inherited is None:
            os.environ.pop(VARIABLE, None)
        if _held.pop(folder, None) is not None:
            # a disk that is full by now: the next owner writes its own name over ours
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)


def _run() -> str:
    """Token of the run that this process is a part of."""
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    return "/".join(os.environ.get(name, "") for name in names) if names[0] in os.environ else _own


def _acquire(folder: Path) -> int | None:
    """A descriptor that holds the lock; None where the run of this process holds it, or the disk knows no
    locks."""
    path = folder / NAME
    with refusals_named(path):
        make_folder(folder)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        for _ in range(TRIES):
            if _try(descriptor):
                _sign(descriptor, path)
                kept, descriptor = descriptor, None
                return kept
            if owner(path).get("run") == _run():
                return None
            time.sleep(PAUSE_S)
    except OSError as error:
        if error.errno not in {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}:
            raise
        print(f"{folder}: this disk knows no locks; see to it that no other run writes here")
        return None
    finally:
        if descriptor is not None:
            os.close(descriptor)
    advice = "wait for its end, or give this one another name (--run)"
    raise BundleError(f"{folder}: another run writes here, {_described(owner(path))}; {advice}")


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(descriptor: int, path: Path) -> None:
    """Write into the lock whose it is; and say so where the last owner died without giving it back."""
    if former := owner(path):
        print(f"took over {path.parent} from a run that died: {_described(former)}")
    mine = {
        "run": _run(),
        "process": os.getpid(),
        "machine": platform.node(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        "command": " ".join(shlex.join(sys.orig_argv).split())[:120],
    }
    with refusals_named(path):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(mine).encode(), 0)


def owner(path: Path) -> dict[str, Any]:
    """Who signed the lock at ``path``: run, process, machine, since, command; empty where nobody has."""
    try:
        signed = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return signed if isinstance(signed, dict) else {}


def _described(signed: dict[str, Any]) -> str:
    if not signed:
        return "which has not signed its lock yet"
    who = f"process {signed.get('process')} on {signed.get('machine')}"
    return f"{who} since {signed.get('since')} ({signed.get('command')})"


def _is_held_by_ours(folder: Path) -> bool:
    """Whether another process of this run holds ``folder``."""
    path = folder / NAME
    if not path.is_file() or owner(path).get("run") != _run():
        return False
    with path.open("r+b") as file:  # network disks lock only what may be written
        return not _try(file.fileno())  # closing gives it back


def _forget() -> None:
    """A forked process, such as one that decodes photos, must not keep the lock beyond its parent's death."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
