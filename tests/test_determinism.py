"""The same numbers twice: same seed, same machine, same bits; also after a resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Runs, python
from kills_program import SETTINGS, contents, write_photos

from lib.data import datasets, features
from lib.evaluate import evaluation
from lib.runs import Run
from lib.settings import load
from lib.train import curve, training

pytestmark = pytest.mark.usefixtures("narrow")
SEEDS = (0, 1, 2)


def computed(run: Run) -> dict[str, bytes]:
    curve.fit_run(run)
    training.train_all(run, run.settings.training.strategies)
    evaluation.evaluate(run)
    return contents(run.folder)


def test_two_runs_with_the_same_seeds_are_the_same_files(make_run: Runs) -> None:
    """Tables, semivariogram.json, checkpoints, histories, predictions."""
    settings = (
        "training.epochs=2", f"training.seeds={','.join(map(str, SEEDS))}", "training.queue_size=40",
        "training.strategies=infonce,decayed,shuffled", "semivariogram.lag_width_rad=0.1",
        "evaluation.bootstrap=100", "evaluation.splits=test,test_blocked",
    )  # fmt: skip
    first = computed(make_run(*settings))
    torch.rand(5)
    np.random.default_rng().normal()
    second = computed(make_run(*settings))
    assert first.keys() == second.keys()
    assert len([name for name in first if name.startswith("checkpoints")]) == 9
    assert [name for name in first if first[name] != second[name]] == []


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder)
    return folder


def over(photos: Path, folder: Path, *more: str) -> Run:
    named = [f"dataset.root={photos / 'photos'}", f"dataset.csv={photos / 'places.csv'}"]
    run = Run(load("smoke", [*SETTINGS[:1], *named, *SETTINGS[1:], *more]), folder)
    datasets.prepare(run)
    return run


@pytest.mark.parametrize("views", [1, 2])
def test_any_number_of_processes_that_decode_gives_the_same_features(
    photos: Path, tmp_path: Path, views: int
) -> None:
    found = []
    for workers in (0, 1, 3):
        run = over(photos, tmp_path / f"{workers}", f"backbone.workers={workers}", f"backbone.views={views}")
        found.append((features.extract(run).read_bytes(), run.views.read_bytes() if views > 1 else b""))
    assert found[0] == found[1] == found[2]


@pytest.mark.thorough
def test_the_order_of_pythons_sets_has_no_part_in_it(tmp_path: Path) -> None:
    """Whole processes, from photos to tables, each with another seed of Python's own hashes."""
    found = []
    for hashes in ("1", "2"):
        program = Path(__file__).with_name("kills_program.py")
        done = python(program, tmp_path / "same", 0, 0, -1, PYTHONHASHSEED=hashes)
        assert done.returncode == 0, done.stderr[-3_000:]
        found.append(contents(tmp_path / "same" / "run"))
        (tmp_path / "same").rename(tmp_path / hashes)
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []
