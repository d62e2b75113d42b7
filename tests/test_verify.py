"""A finished run can be asked whether it is as it was finished, and whether its tables follow from its
predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import Runs, python

from lib import verify
from lib.evaluate import evaluation
from lib.runs import Run, provenance, write_json
from lib.train import curve, training

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture
def finished(make_run: Runs) -> Run:
    run = make_run(
        "training.epochs=1",
        "training.strategies=infonce,similarity",
        "semivariogram.lag_width_rad=0.1",
        "evaluation.bootstrap=100",
        "evaluation.splits=test,test_blocked",
    )
    curve.fit_run(run)
    training.train_all(run, run.settings.training.strategies)
    evaluation.evaluate(run)
    finish(run)
    return run


def finish(run: Run) -> None:
    write_json(run.provenance, provenance(run, {}))


def faults(run: Run) -> dict[str, str]:
    """File or stage -> what is wrong with it."""
    found = [one.split(" ", 1) for one in verify.verify(run.folder)]
    return {name.rstrip(":"): what for name, what in found}


def test_a_finished_run_is_whole_and_its_tables_follow(finished: Run) -> None:
    assert verify.verify(finished.folder) == []


def test_what_was_changed_removed_or_does_not_follow_is_named(finished: Run) -> None:
    table = pd.read_csv(finished.table("accuracy"))
    table.loc[0, "acc_200km"] += 0.01  # a table that somebody has improved
    table.to_csv(finished.table("accuracy"), index=False)
    finished.history("infonce", 0).unlink()
    found = faults(finished)
    assert set(found) == {"tables/accuracy.csv", "history/infonce_seed0.csv"}
    assert found["history/infonce_seed0.csv"] == "is missing"
    finish(finished)  # the checksums of a forger are right
    found = faults(finished)
    assert (
        set(found) == {"tables/accuracy.csv"}
        and "does not follow from the predictions: 'infonce,0,test" in found["tables/accuracy.csv"]
    )


def test_predictions_that_were_changed_contradict_every_table_of_theirs(finished: Run) -> None:
    predictions = pd.read_parquet(finished.predictions)
    predictions["error_km"] *= 0.5
    predictions.to_parquet(finished.predictions, index=False)
    finish(finished)
    assert set(faults(finished)) == {f"tables/{name}.csv" for name in ("accuracy", "comparison")}


def test_on_the_command_line(finished: Run, capsys: pytest.CaptureFixture) -> None:
    assert verify.main(["verify", str(finished.folder)]) == 0 and "0 faults" in capsys.readouterr().out
    finished.features.write_bytes(finished.features.read_bytes()[:-1])
    done = python("-W", "ignore", "-m", "lib.runs", "verify", finished.folder)
    assert done.returncode == 1
    assert "FAULT  features/features.npy is not what was written: its checksum differs" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is not there"),
        ("{ half", "damaged, or no run's provenance"),
        ("[]", "damaged"),
        ('{"outputs": {}}', "settings are not of this version"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_one_sentence(
    tmp_path: Path, content: str | None, sentence: str, capsys: pytest.CaptureFixture
) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    assert verify.main(["verify", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("FAULT  ") and sentence in said and said.count("\n") == 1


def test_provenance_says_what_it_takes_to_build_the_run_again(finished: Run) -> None:
    known = json.loads(finished.provenance.read_text())
    again = Run.finished(finished.folder)
    assert again.settings == finished.settings
    assert {"git", "machine", "packages", "threads", "inputs", "outputs", "keys_by_stage", "seeds"} <= set(
        known
    )
    assert set(known["keys_by_stage"]) == {
        "semivariogram",
        "evaluation",
        "training-infonce_seed0",
        "training-similarity_seed0",
    }
