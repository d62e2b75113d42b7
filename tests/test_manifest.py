"""Statements about the manifest: whatever is wrong with it is said with the file and the row, before it is
used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SIZES, Runs, world
from PIL import Image

from lib.data import datasets, features, manifest
from lib.data.manifest import Built
from lib.method.errors import BundleError
from lib.runs import Run


def small() -> pd.DataFrame:
    return world({"train": 3, "validation": 1, "test": 1, "test_blocked": 1})[0]


def with_value(column: str, value: object, row: int = 3) -> pd.DataFrame:
    frame = small()
    frame[column] = frame[column].astype(object)
    frame.loc[row, column] = value
    return frame


class TestCheck:
    def test_a_good_one_passes(self) -> None:
        manifest.check(small(), "table.csv")
        edges = small().assign(latitude=[90.0, -90.0, 0, 0, 0, 0], longitude=[180.0, -180.0, 0, 0, 0, 0])
        manifest.check(edges, "table.csv")

    @pytest.mark.parametrize("column", ["id", "path", "latitude", "longitude", "split"])
    def test_a_missing_column_is_named_and_the_others_listed(self, column: str) -> None:
        with pytest.raises(
            BundleError, match=f"table.csv: column '{column}' is missing; there are .*continent"
        ):
            manifest.check(small().drop(columns=column), "table.csv")

    def test_an_empty_one_and_radians_are_refused(self) -> None:
        with pytest.raises(BundleError, match=r"table\.csv: no photos; check"):
            manifest.check(small().iloc[:0], "table.csv")
        with pytest.raises(BundleError, match=r"table\.csv: .*they are radians"):
            manifest.check(small().assign(latitude=0.85, longitude=2.0), "table.csv")

    @pytest.mark.parametrize(
        ("column", "value", "words"),
        [
            ("latitude", 90.1, "90.1 is not within"), ("latitude", np.nan, "nan is no signed decimal number"),
            ("latitude", "north", "'north' is no signed"), ("latitude", 100.0, "100.0 .*columns swapped?"),
            ("longitude", -181.0, "-181.0 is not within"), ("longitude", np.inf, "inf is no signed"),
            ("longitude", None, ".* is no signed"), ("id", "p0000", "'p0000' is missing or used twice"),
            ("id", None, ".* is missing or used twice"), ("split", "trainn", "'trainn' is none of train"),
            ("split", None, ".* is none of"), ("path", None, ".* is no path"), ("path", "", "'' is no path"),
            ("path", "/etc/passwd", "'/etc/passwd' leaves the data set's folder"),
            ("path", "a/../../b.jpg", "'a/../../b.jpg' leaves the data set's folder"),
        ],
    )  # fmt: skip
    def test_a_wrong_entry_is_named_with_file_and_row(self, column: str, value: object, words: str) -> None:
        with pytest.raises(BundleError, match=rf"^table\.csv: row 4: {column} {words}.*\(1 such rows\)"):
            manifest.check(with_value(column, value), "table.csv")


class TestFile:
    def test_there_and_back_whole_or_some_columns(self, tmp_path: Path) -> None:
        path, places = tmp_path / "manifest.parquet", list(manifest.PLACES)
        manifest.write(small(), path)
        pd.testing.assert_frame_equal(manifest.read(path), small())
        pd.testing.assert_frame_equal(manifest.read(path, places), small()[places], check_dtype=False)
        small().drop(columns="split").to_parquet(path)
        with pytest.raises(BundleError, match="column 'split' is missing; there are latitude, longitude"):
            manifest.read(path, places)


class TestRows:
    def test_splits_partition_the_rows(self) -> None:
        frame = world()[0]
        rows = {split: manifest.rows_of(frame, split) for split in SIZES}
        assert {split: len(found) for split, found in rows.items()} == SIZES
        assert sorted(np.concatenate(list(rows.values()))) == list(range(len(frame)))

    def test_an_empty_split_lists_the_others(self) -> None:
        with pytest.raises(BundleError, match="'tset' has no photos; .* test, test_blocked, train, val"):
            manifest.rows_of(small(), "tset")

    def test_coordinates_are_latitude_longitude_and_a_copy(self) -> None:
        frame = small()
        found = manifest.coordinates(frame)
        assert found[2].tolist() == [frame["latitude"][2], frame["longitude"][2]]
        found[:] = 0.0
        assert frame["latitude"].abs().min() > 0.0


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A data set that writes six coloured photos; the list grows by one whenever it is built."""
    built = []

    def build(settings: object, root: Path) -> Built:
        built.append(len(built))
        frame = small()
        for number, path in enumerate(frame["path"]):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(root / path)
        datasets.blue_marble.window_archive(settings, root).write_bytes(b"")
        return Built(frame, pd.DataFrame([("x", "", "no such photo")], columns=["id", "path", "reason"]))

    monkeypatch.setattr(datasets.blue_marble, "build", build)
    return built


@pytest.fixture
def bare(make_run: Runs, tmp_path: Path) -> Run:
    """A run before notebook 01, whose data set lies in a temporary folder."""
    run = make_run(f"dataset.root={tmp_path / 'data'}", "backbone.image_px=32")
    run.manifest.unlink()
    run.features.unlink()
    return run


def archive_of(run: Run) -> Path:
    return datasets.blue_marble.window_archive(run.settings.dataset, datasets.root_of(run))


class TestPrepare:
    def test_photos_that_cannot_be_decoded_are_tried_again_when_photos_have_changed(
        self, bare: Run, builder: list[int]
    ) -> None:
        frame = datasets.prepare(bare)
        photo = datasets.root_of(bare) / frame["path"][1]
        whole = photo.read_bytes()
        photo.write_bytes(b"no photo")
        features.extract(bare)
        assert pd.read_csv(bare.table("left_out"))["id"].tolist() == ["x", "p0001"]
        splits = ["train", "unreadable", "train", "validation", "test", "test_blocked"]
        assert features.photos(bare)["split"].tolist() == splits
        photo.write_bytes(whole)
        archive_of(bare).unlink()
        datasets.prepare(bare)  # photos are gone: they are written again
        features.extract(bare)
        assert np.isfinite(np.load(bare.features)).all() and len(pd.read_csv(bare.table("left_out"))) == 1
        pd.testing.assert_frame_equal(features.photos(bare), frame)

    def test_it_is_built_once(self, bare: Run, builder: list[int]) -> None:
        pd.testing.assert_frame_equal(datasets.prepare(bare), datasets.prepare(bare))
        assert builder == [0]

    def test_reading_before_it_is_made_names_the_notebook(self, bare: Run) -> None:
        with pytest.raises(BundleError, match="01_data_preparation"):
            features.photos(bare)
