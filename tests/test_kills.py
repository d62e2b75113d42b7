"""A run that is killed at any moment and started again ends with the very bytes of one that nobody
disturbed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import python

STAGES = ["manifest", "features", "semivariogram", "training", "evaluation"]


def killed(folder: Path, *, seed: int, moments: int, points: int) -> list[dict]:
    """What came of each kill of tests/kills_program.py, which says what the numbers mean."""
    program = Path(__file__).with_name("kills_program.py")
    done = python(program, folder / "world", seed, moments, points)
    assert done.returncode == 0, done.stderr[-3_000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(found: list[dict], least: int) -> None:
    for stage in STAGES:
        of_stage = [one for one in found if one["stage"] == stage]
        assert len(of_stage) >= least, stage
        for one in of_stage:
            assert one == one | {"torn": [], "status": 0, "lost": [], "left": []}, one


def test_each_stage_survives_a_kill_at_a_random_moment_and_one_between_two_writes(tmp_path: Path) -> None:
    check(killed(tmp_path, seed=int.from_bytes(os.urandom(4)), moments=1, points=1), least=2)


@pytest.mark.thorough
def test_each_stage_survives_ten_kills_at_random_moments(tmp_path: Path) -> None:
    check(killed(tmp_path, seed=int.from_bytes(os.urandom(4)), moments=10, points=1), least=11)


@pytest.mark.thorough
def test_each_stage_survives_a_kill_at_each_of_its_writes(tmp_path: Path) -> None:
    check(killed(tmp_path, seed=0, moments=0, points=0), least=5)
