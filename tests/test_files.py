"""Files appear whole or not at all, whatever the disk does; what it refuses is one sentence with the file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lib.runs import files
from lib.runs.files import writing
from lib.settings import PROJECT

WRITERS = {
    "text": "path.write_text('x' * 3_000_000)",
    "npz": "numpy.savez(path, a=numpy.random.rand(400_000))",
    "csv": "pandas.DataFrame({'a': numpy.random.rand(200_000)}).to_csv(path)",
    "parquet": "pandas.DataFrame({'a': numpy.random.rand(400_000)}).to_parquet(path)",
    "jpg": "Image.effect_noise((3000, 3000), 90).save(path, 'JPEG', quality=100)",
}
"""Ending of a file -> how one of some megabytes is written to ``path``."""
PROGRAM = """
import sys
from pathlib import Path
import numpy, pandas
from PIL import Image
from lib.method.errors import BundleError
from lib.runs import files
for target, statement in zip(map(Path, sys.argv[1::2]), sys.argv[2::2], strict=True):
    try:
        with files.writing(target) as path:
            exec(statement)
    except (BundleError, OSError) as error:
        print(error)
"""


def write(targets: dict[Path, str], *before: str) -> subprocess.CompletedProcess[str]:
    """A process of its own that writes each of ``targets`` by its statement, and prints what is refused."""
    words = [str(word) for pair in targets.items() for word in pair]
    command = [*before, sys.executable, "-c", PROGRAM, *words]
    return subprocess.run(
        command, cwd=PROJECT, env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path_factory.mktemp("small")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root on Linux, and not in every container, may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(small_disk: Path) -> None:
    targets = {small_disk / f"file.{ending}": statement for ending, statement in WRITERS.items()}
    for target in targets:
        target.write_text("old")
    done = write(targets)
    told = zip(targets, done.stdout.splitlines(), strict=True)
    assert all(f"{target}: cannot be written: " in line for target, line in told), done.stderr
    assert done.stdout.count("No space left on device") == len(targets)
    assert {path: path.read_text() for path in small_disk.iterdir()} == dict.fromkeys(targets, "old")


def without_privilege() -> list[str]:
    """What a command begins with, for permissions to hold for it, root's too."""
    if os.geteuid():
        return []
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("root, and no setpriv to give its privileges up")
    return prefix


def test_a_folder_without_permission_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    done = write({tmp_path / "closed" / "file.txt": WRITERS["text"]}, *without_privilege())
    assert "Permission denied: " in done.stdout and f"{tmp_path}/closed/" in done.stdout


def test_file_and_folder_are_on_the_disk_before_anybody_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file before its name appears, the name before the call returns."""
    forced, real = [], os.fsync

    def fsync(descriptor: int) -> None:
        forced.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "new" / "a").exists()))
        real(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to ask which file a descriptor is of")
    monkeypatch.setattr(os, "fsync", fsync)
    with writing(tmp_path / "new" / "a") as aside:
        aside.write_text("whole")
    assert forced == [(str(aside), False), (str(tmp_path / "new"), True)]


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    for text in ("half", "whole"):
        asides = writing(tmp_path / "a.csv")
        with suppress(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch, asides as aside:
            aside.write_text(text)
            if text == "half":
                patch.setattr(Path, "unlink", lambda *_, **__: None)  # killed: nothing is cleared up
                raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.csv": "whole"}


def test_a_file_replaced_by_one_of_the_same_size_and_time_has_its_own_checksum(tmp_path: Path) -> None:
    sums = []
    for text in ("one", "two"):
        (tmp_path / "new").write_text(text)
        os.utime(tmp_path / "new", ns=(1, 1))
        os.replace(tmp_path / "new", tmp_path / "a")
        sums.append(files.checksum(tmp_path / "a"))
    assert sums[0] != sums[1]
