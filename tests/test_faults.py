"""What ends a whole run of run_all.sh's program ends it with one sentence and exit status 1, and leaves what
was there as it was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL
from kills_program import contents
from test_files import without_privilege
from test_locks import OWNER, start

from lib import pipeline
from lib.settings import PROJECT


def asked(folder: Path, capsys: pytest.CaptureFixture) -> str:
    """What the pipeline says on standard error, where it ends with status 1."""
    assert pipeline.main(["--profile", "smoke", "--device", "cpu", "--run", str(folder)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("run_all.sh: ") and said.count("\n") == 1, said
    return said


def test_a_second_run_in_the_same_folder_is_told_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    owner = start(OWNER, tmp_path / "run")
    try:
        assert owner.stdout.readline() == "held\n"
        (tmp_path / "run" / "kept.csv").write_text("kept")
        assert f"{tmp_path / 'run'}: another run writes here, process {owner.pid} on" in asked(
            tmp_path / "run", capsys
        )
    finally:
        owner.kill()
        owner.wait()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", ".owner", "kept.csv"}


@pytest.mark.parametrize(
    ("place", "sentence"), [("results", "Not a directory"), ("results/run/logs", "File exists")]
)
def test_a_file_where_a_folder_of_the_run_should_be_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, place: str, sentence: str
) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("a file")
    said = asked(tmp_path / "results" / "run", capsys)
    assert str(tmp_path / place) in said and sentence in said
    assert (tmp_path / place).read_text() == "a file"


def stages(folder: Path, *before: str) -> subprocess.Popen[str]:
    """lib.stages over a small run, in a group of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    program = [sys.executable, "-W", "ignore", "-m", "lib.stages", "smoke", str(folder / "run")]
    return subprocess.Popen(
        [*before, *program, *SMALL, f"dataset.root={folder / 'photos'}"], cwd=PROJECT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.thorough
def test_a_results_folder_without_permission_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o555)
    said = stages(tmp_path, *without_privilege()).communicate(timeout=600)[1]
    sentences = [line for line in said.splitlines() if line.startswith("lib.stages")]
    assert len(sentences) == 1 and "Permission denied" in sentences[0]
    assert "Traceback" not in said
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.thorough
def test_whole_programs_killed_at_ten_random_moments_end_as_one_that_was_not(tmp_path: Path) -> None:
    """Real processes with the real encoder: imports, photos, features, curve, trainings."""
    started = time.perf_counter()
    assert (undisturbed := stages(tmp_path / "whole")).communicate()[0] and undisturbed.returncode == 0
    seconds, draw = time.perf_counter() - started, random.Random(int.from_bytes(os.urandom(4)))  # noqa: S311
    for _ in range(10):
        process = stages(tmp_path / "killed")
        time.sleep(draw.uniform(0.3 * seconds, seconds))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    last = stages(tmp_path / "killed")
    assert last.communicate()[0] and last.returncode == 0
    whole, killed = (contents(tmp_path / name / "run") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    compared = [name for name in whole if name.endswith((".csv", ".npy", ".json", ".safetensors"))]
    assert [name for name in compared if whole[name] != killed[name]] == []
