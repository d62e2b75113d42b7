"""The manifest: whatever is wrong with it is said with the file and the row, before it is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SIZES, world
from PIL import Image

from lib.data import datasets, features, manifest
from lib.data.manifest import Built
from lib.method.errors import BundleError
from lib.runs import Run
from lib.settings import load


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
            ("split", None, ".* is none of"), ("split", "test/../x", ".* would be a file's name"),
            ("path", None, ".* is no path"), ("path", "", "'' is no path"),
            ("path", "/etc/passwd", "'/etc/passwd' leaves the data set's folder"),
            ("path", "a/../../b.jpg", "'a/../../b.jpg' leaves the data set's folder"),
        ],
    )  # fmt: skip
    def test_a_wrong_entry_is_named_with_file_and_row(self, column: str, value: object, words: str) -> None:
        with pytest.raises(BundleError, match=rf"^table\.csv: row 4: {column} {words}.*\(1 such rows\)"):
            manifest.check(with_value(column, value), "table.csv")


def test_there_and_back_whole_or_some_columns(tmp_path: Path) -> None:
    path, places = tmp_path / "manifest.parquet", list(manifest.PLACES)
    manifest.write(small(), path)
    pd.testing.assert_frame_equal(manifest.read(path), small())
    pd.testing.assert_frame_equal(manifest.read(path, places), small()[places], check_dtype=False)


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


def test_photos_that_cannot_be_decoded_are_tried_again_when_photos_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, root = [], tmp_path / "data"

    def build(settings: object, root: Path) -> Built:
        """Six coloured photos."""
        built.append(len(built))
        for number, path in enumerate(small()["path"]):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(root / path)
        datasets.blue_marble.window_archive(settings, root).write_bytes(b"")
        left_out = pd.DataFrame([("x", "", "no such photo")], columns=["id", "path", "reason"])
        return Built(small(), left_out)

    monkeypatch.setattr(datasets.blue_marble, "build", build)
    run = Run(load("smoke", ["device=cpu", "backbone.image_px=32", f"dataset.root={root}"]), tmp_path / "run")
    photo = root / manifest.read(datasets.prepare(run))["path"][1]
    datasets.prepare(run)
    assert built == [0]
    photo.write_bytes(b"no photo")
    features.extract(run)
    assert pd.read_csv(run.table("left_out"))["id"].tolist() == ["x", "p0001"]
    splits = ["train", "unreadable", "train", "validation", "test", "test_blocked"]
    assert features.photos(run)["split"].tolist() == splits
    datasets.blue_marble.window_archive(run.settings.dataset, root).unlink()
    datasets.prepare(run)  # photos are gone: they are written again
    run.features.unlink()
    features.extract(run)
    assert np.isfinite(np.load(run.features)).all() and len(pd.read_csv(run.table("left_out"))) == 1
    pd.testing.assert_frame_equal(features.photos(run), manifest.read(run.manifest))
