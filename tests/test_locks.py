"""One run at a time writes to a results folder, the second is told who does, and a dead owner stops
nobody."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lib.method.errors import BundleError
from lib.runs import locks
from lib.runs.locks import holding
from lib.settings import PROJECT

OWNER = """
import os, sys, time
from pathlib import Path
from lib.runs import locks
with locks.holding(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
ASKER = """
import sys
from pathlib import Path
from lib.runs import locks
with locks.holding(Path(sys.argv[1])):
    print("held")
"""


def start(program: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    own = {name: value for name, value in os.environ.items() if name != locks.VARIABLE}
    command = [sys.executable, "-c", program, str(folder)]
    surroundings = own | {"PYTHONPATH": str(PROJECT)} | environment
    return subprocess.Popen(
        command,
        cwd=PROJECT,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock is asked for again for a tenth of a second only."""
    monkeypatch.setattr(locks, "PATIENCE_S", 0.1)


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that holds the lock of a folder; all are gone in the end."""
    started = []

    def hold(folder: Path = tmp_path / "run", **environment: str) -> subprocess.Popen[str]:
        started.append(start(OWNER, folder, **environment))
        assert started[-1].stdout.readline() == "held\n", started[-1].stderr.read()
        return started[-1]

    yield hold
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_second_is_told_who_holds_it(tmp_path: Path, another: Callable, short_patience: None) -> None:
    process = another()
    told = rf"run: another run writes here, process {process.pid} on .* since .*; wait for its end"
    with pytest.raises(BundleError, match=told), holding(tmp_path / "run"):
        pass


def test_a_dead_owners_lock_is_free(tmp_path: Path, another: Callable) -> None:
    process = another()
    process.kill()
    process.wait()
    with holding(tmp_path / "run"):
        assert f"process {os.getpid()}" in (tmp_path / "run" / ".owner").read_text()


def test_what_a_run_starts_belongs_to_it(tmp_path: Path) -> None:
    """The kernel of a notebook inherits the run's environment."""
    with holding(tmp_path / "run"), holding(tmp_path / "run"):
        own = {locks.VARIABLE: os.environ[locks.VARIABLE]}
        outside, inside = start(ASKER, tmp_path / "run"), start(ASKER, tmp_path / "run", **own)
        assert inside.communicate(timeout=60)[0] == "held\n"
        assert "another run writes here" in outside.communicate(timeout=60)[1]
    assert locks.VARIABLE not in os.environ


def test_processes_with_one_token_are_one_run(tmp_path: Path, another: Callable) -> None:
    another(tmp_path / "run", **{locks.VARIABLE: "of ranks"})
    same, other = (start(ASKER, tmp_path / "run", **{locks.VARIABLE: one}) for one in ("of ranks", "other"))
    assert same.communicate(timeout=60)[0] == "held\n"
    assert "another run writes here" in other.communicate(timeout=60)[1]


def test_a_kernel_whose_run_has_died_is_a_run_of_its_own(
    tmp_path: Path, another: Callable, short_patience: None
) -> None:
    another()
    with pytest.raises(BundleError), pytest.MonkeyPatch.context() as patch:
        patch.setenv(locks.VARIABLE, "of a run that is gone")
        with holding(tmp_path / "run"):
            pass


@pytest.mark.parametrize("answer", locks.NO_LOCKS)
def test_a_disk_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, answer: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):  # the file that the first has left stops nobody
        with holding(tmp_path / "run"):
            assert f"{tmp_path}/run: this disk knows no locks; see to it" in capsys.readouterr().out
        with locks.waiting(tmp_path / "photos.lock"):
            assert "photos.lock: this disk knows no locks; see to it" in capsys.readouterr().out
