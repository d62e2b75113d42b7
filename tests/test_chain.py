"""Curve, trainings, tables: what is damaged, or depends on a changed setting, is made again, nothing else."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Runs
from test_locks import OWNER, start

from lib.evaluate import evaluation
from lib.method.errors import BundleError
from lib.runs import Run
from lib.settings import Settings
from lib.train import curve

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture
def chain(make_run: Runs) -> Run:
    """A run whose curve, trainings and tables were made by their stages."""
    short = ("training.epochs=1", "training.strategies=infonce,decayed", "evaluation.bootstrap=100")
    run = make_run(*short, "semivariogram.lag_width_rad=0.1")
    run.semivariogram.unlink()  # that of the test's world
    evaluation.evaluate(run)
    return run


def flip(path: Path, draw: random.Random) -> None:
    """One bit turned round; within this process a checksum is taken once a time of change."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def halve(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


OUTPUTS: dict[str, Callable[[Run], Path]] = {
    "curve": lambda run: run.semivariogram,
    "sums": lambda run: run.empirical,
    "checkpoint": lambda run: run.checkpoint("decayed", 0),
    "history": lambda run: run.history("decayed", 0),
    "predictions": lambda run: run.predictions,
    "table": lambda run: run.table("accuracy"),
}


@pytest.mark.parametrize("damage", [flip, halve, empty])
def test_each_damaged_output_is_named_and_made_again_to_the_same_bytes(
    chain: Run, damage: Callable, capsys: pytest.CaptureFixture
) -> None:
    draw = random.Random(int.from_bytes(os.urandom(4)))  # noqa: S311
    for kind, of in OUTPUTS.items():
        path, whole = of(chain), of(chain).read_bytes()
        damage(path, draw)
        capsys.readouterr()
        evaluation.evaluate(chain)
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("again ")]
        assert len(said) == 1 and f"{path} is damaged: its checksum is not" in said[0], (kind, said)
        assert path.read_bytes() == whole, kind


@pytest.mark.parametrize("damage", [flip, halve, empty])
def test_a_damaged_receipt_never_passes_for_a_whole_one(chain: Run, damage: Callable) -> None:
    whole = {path: path.read_bytes() for path in chain.folder.glob("tables/*.csv")}
    stages = ("semivariogram", "training-infonce_seed0", "training-decayed_seed0", "evaluation")
    for number, stage in enumerate(stages):
        damage(chain.receipt(stage), random.Random(number))  # noqa: S311
        evaluation.evaluate(chain)
    assert {path: path.read_bytes() for path in chain.folder.glob("tables/*.csv")} == whole


def changed(run: Run, group: str, **values: object) -> Run:
    """The run's folder with other settings of a group."""
    settings = run.settings.model_dump(mode="json")
    settings[group] |= values
    return Run(Settings.model_validate(settings), run.folder)


ALL = ["semivariogram", "training-infonce_seed0", "training-decayed_seed0", "evaluation"]


@pytest.mark.parametrize(
    ("group", "values", "again"),
    [
        ("semivariogram", {"lag_width_rad": 0.2}, ["semivariogram", "training-decayed_seed0", "evaluation"]),
        ("training", {"beta": 9.0}, ["training-decayed_seed0", "evaluation"]),
        ("training", {"learning_rate": 1e-4}, ALL[1:]),
        ("evaluation", {"seed": 5}, ["evaluation"]),
        ("evaluation", {"shown": ["infonce"]}, []),
    ],
)
def test_a_changed_setting_makes_what_depends_on_it_again(
    chain: Run, group: str, values: dict[str, object], again: list[str], capsys: pytest.CaptureFixture
) -> None:
    capsys.readouterr()
    evaluation.evaluate(changed(chain, group, **values))
    lines = [words for line in capsys.readouterr().out.splitlines() if (words := line.split())]
    assert [words[1].rstrip(":") for words in lines if words[0] == "again"] == again


def test_only_what_must_be_made_needs_the_lock(chain: Run) -> None:
    """Somebody reads in a notebook while a run writes: what is there is shown, what is not is refused."""
    owner = start(OWNER, chain.folder)
    try:
        assert owner.stdout.readline() == "held\n"
        evaluation.evaluate(chain)
        with pytest.raises(BundleError, match=rf"process {owner.pid}"):
            curve.fit_run(changed(chain, "semivariogram", lag_width_rad=0.2))
    finally:
        owner.kill()
        owner.wait()
