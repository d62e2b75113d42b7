"""Statements about the cut: whose it is, copies and shared places on both of its sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Runs, adopt
from test_photos import photo

from lib.data import datasets, manifest
from lib.evaluate import cut, evaluation
from lib.method.errors import BundleError
from lib.runs import Run


def test_copies_twins_and_shared_places_are_counted_and_listed(
    make_run: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("evaluation.splits=test,test_blocked")
    frame, features = pd.read_parquet(run.manifest), np.load(run.features)
    test, train = (manifest.rows_of(frame, split) for split in ("test", "train"))
    features[test[:4]] = 3.0 * features[train[:4]]  # the same direction
    features[test[4]] = features[train[4]] * np.linspace(0.95, 1.05, 16)
    monkeypatch.setattr(cut, "TWIN", 2e-3)  # 16 numbers are nearer than 1,280
    frame.loc[test[:2], ["latitude", "longitude"]] = frame.loc[
        train[:2], ["latitude", "longitude"]
    ].to_numpy()
    frame.to_parquet(run.manifest), np.save(run.features, features)
    adopt(run)
    whose, of_test, of_blocked = cut.describe(run)
    assert whose == "The split is drawn here, at random and in cells held out whole, by dataset.seed."
    assert of_test.startswith("Split test: 5 of 24 photos have a twin among the training photos")
    assert "all within" in of_test and "; 4 are copies. 2 of 24 share the exact place" in of_test
    assert "remembered" in of_test and "remembered" not in of_blocked
    assert ": 0 of 16 photos have a twin" in of_blocked and "; 0 are copies. 0 of 16" in of_blocked
    twins = evaluation.read_table(run.table("twins")).set_index("id")["training_id"]
    assert twins.to_dict() == dict(zip(frame["id"][test[:5]], frame["id"][train[:5]], strict=True))
    assert evaluation.read_table(run.table("cut"))["said"].tolist() == [whose, of_test, of_blocked]
    monkeypatch.setattr(cut, "MOST_PAIRS", 96 * 10)
    assert "of 10 photos, drawn of 24, have a twin" in cut.describe(run)[1]


@pytest.mark.parametrize(
    ("column", "words"), [("", "a random one, by dataset.seed, because"), (",split", "own (table.csv)")]
)
def test_the_tables_own_split_is_told_from_a_random_one(tmp_path: Path, column: str, words: str) -> None:
    rows, names = [f"path,lat,lon{column}"], ["train", "validation", "test"]
    for number in range(15):
        photo(tmp_path / "photos" / f"{number}.jpg")
        rows.append(f"{number},{number},{20 + number}" + (f",{names[number % 3]}" if column else ""))
    (tmp_path / "table.csv").write_text("\n".join(rows))
    asked = ["dataset=folder", f"dataset.root={tmp_path}/photos", f"dataset.csv={tmp_path}/table.csv"]
    run = Run.open("smoke", f"{tmp_path}/run", asked)
    datasets.prepare(run)
    assert words in cut.whose(run)


@pytest.mark.parametrize(
    ("splits", "asked", "words"),
    [
        ("train validation test", "tset", "no photo in split tset; it has test, train, validation; change"),
        ("train test", "test", "no photo in split validation; it has test, train; give such rows"),
        ("validation test", "test", "no photo in split train; it has"),
    ],
)
def test_what_no_training_or_evaluation_could_use_is_refused_with_the_manifest(
    make_run: Runs, splits: str, asked: str, words: str
) -> None:
    with pytest.raises(BundleError, match=rf"manifest\.parquet: {words}"):
        make_run(f"evaluation.splits={asked}", sizes=dict.fromkeys(splits.split(), 8))
