"""A folder of photos: rows find their photos, EXIF fills gaps, and what is left out is listed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_photos import photo

from lib.data import datasets, folder, manifest
from lib.data.manifest import Built
from lib.method.errors import BundleError
from lib.predict.predict import find_photos
from lib.runs import Run
from lib.settings import PROJECT, Folder, load

REAL = Path(os.environ.get("STREET_LEVEL_PHOTOS", PROJECT.parent / "shared" / "data" / "street_level_mini"))
NAMES = ["a/one.jpg", "a/two.jpg", "b/three@3.jpg", "four.png", "five.JPG"]
GPS = {"latitude": (64.0, 6.0, 0.0), "longitude": (21.0, 54.0, 0.0)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        photo(tmp_path / "photos" / name)
    return tmp_path / "photos"


def built(root: Path, text: str | pd.DataFrame | None = None, **settings: object) -> Built:
    """What is built of the photos below ``root`` and a table, CSV or parquet."""
    if text is not None:
        settings["csv"] = root.parent / ("table.csv" if isinstance(text, str) else "table.parquet")
        if isinstance(text, str):
            settings["csv"].write_text(text, encoding="utf-8")
        else:
            text.to_parquet(settings["csv"])
    return folder.build(Folder(root=root, **settings), root)


def reasons(found: Built) -> dict[str, str]:
    return found.left_out.set_index("id")["reason"].to_dict()


class TestMatching:
    @pytest.mark.parametrize(
        "naming",
        [str, lambda name: Path(name).name, lambda name: Path(name).stem, "./{}".format,
         lambda name: name.replace("/", "\\")],
    )  # fmt: skip
    def test_by_path_name_or_stem(self, root: Path, naming: object) -> None:
        rows = [f"{naming(name)},{11 + row},{-12 - row}" for row, name in enumerate(NAMES)]
        photos, left_out = built(root, "\n".join(["id,lat,lon", *rows]))
        places = photos.set_index("path").loc[NAMES, ["latitude", "longitude"]]
        assert places.to_numpy().tolist() == [[11 + row, -12 - row] for row in range(5)] and left_out.empty

    def test_a_row_without_photo_and_a_photo_without_row_are_left_out_and_listed(self, root: Path) -> None:
        photo(root / "c" / "one.jpg")
        found = built(root, "id,lat,lon\none.jpg,11,2\na/two.jpg,13,4\nnobody,13,4\n")
        assert found.photos["path"].tolist() == ["a/two.jpg"]
        listed = reasons(found)
        assert listed.pop("nobody") == "row 3: no such photo, or several of that name"
        assert listed.pop("one.jpg") == "row 1: no such photo, or several of that name"
        assert list(listed.values()) == ["no row in the table"] * 5

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("id,lat,lon\nx,11,2\n", r"none of its 1 rows names .*first row: x; first photo: a/one\.jpg"),
            ("path,lat,lon,split\n\none,11,2,train\ntwo,1,2,tset\n", "row 2: split 'tset' is none of"),
            ("path,lat,lon,split\n\none,11,2,test/../x\n", "row 1: split .* would be a file's name"),
            ("path,id,lat,lon\none,7,11,2\ntwo,7,1,2\n", "row 2: id '7' is missing or used twice"),
            ("path,id,lat,lon\none,7,11,2\ntwo,,1,2\n", "row 2: id '' is missing or used twice"),
            ("path,lat,lon\none,1,2\nno,3,4\nno,3,4\none.jpg,1,2\n", "row 4: photo 'one.jpg' stands in a"),
            ("path,lat,lon\none,103.8,1.3\n", "row 1: latitude '103.8' is not within .*swapped"),
            ("", "cannot be read as a table"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_with_a_table_is_said_with_file_and_row(
        self, root: Path, text: str, sentence: str
    ) -> None:
        with pytest.raises(BundleError, match=rf"table\.csv: {sentence}"):
            built(root, text)

    def test_what_parquet_alone_can_hold_is_text_and_its_index_is_a_column(
        self, root: Path, tmp_path: Path
    ) -> None:
        rows = pd.DataFrame({"path": ["one", "two"], "lat": [48.8, -33.9], "lon": [2.3, 18.4]})
        for country in (pd.Categorical(["FR", None]), [1.0, None], [["FR"], None]):
            frame = datasets._with_places(built(root, rows.assign(country=country)).photos)
            datasets.manifest.write(frame, tmp_path / "manifest.parquet")
            assert frame["country"].iloc[1] == "ZA"
        levels = [["train"] * 3 + ["test"] * 2, NAMES]
        index = pd.MultiIndex.from_arrays(levels, names=["split", "photo"])
        photos = built(root, pd.DataFrame({"lat": 11.0, "lon": range(5)}, index=index)).photos
        assert photos[["split", "path"]].to_numpy().T.tolist() == levels


class TestPlaces:
    def test_without_a_table_exif_decides_and_photos_without_gps_are_listed(self, root: Path) -> None:
        photo(root / "placed.jpg", **GPS)
        found = built(root)
        assert found.photos["id"].tolist() == ["placed.jpg"]
        assert sorted(found.left_out["path"]) == sorted(NAMES)

    def test_where_the_table_is_silent_exif_is_asked(self, root: Path) -> None:
        photo(root / "a/one.jpg", **GPS)
        found = built(root, "id,lat,lon\none,,NA\ntwo,5,6\nfour,,\n")
        assert found.photos[["id", "latitude"]].values.tolist() == [["one", 64.1], ["two", 5.0]]
        assert reasons(found)["four"] == "no coordinates in the table or in EXIF"

    def test_zero_zero_is_kept_and_said(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert len(built(root, "id,lat,lon\none,0,0\ntwo,5,6\n").photos) == 2
        assert "1 photos are kept that lie at exactly 0, 0" in "".join(capsys.readouterr())

    def test_missing_continents_come_from_the_coordinates(self, root: Path) -> None:
        for content in ("", " ", "NA"):
            text = f"path,lat,lon,continent\none,48.8,2.3,{content}\ntwo,-33.9,18.4,\n"
            found = datasets._with_places(built(root, text).photos)["continent"].tolist()
            assert found == [content.strip() or "Europe", "Africa"]


class TestSplits:
    def test_those_of_the_table_have_our_names(self, root: Path) -> None:
        rows = "one,11,2,val\ntwo,1,2, Training\nfour,1,2,test_coast\n"
        splits = built(root, "id,lat,lon,Split\n" + rows).photos["split"].tolist()
        assert splits == ["validation", "train", "test_coast"]

    def test_without_splits_a_seeded_cut_is_made(self, tmp_path: Path) -> None:
        for number in range(100):
            photo(tmp_path / "photos" / f"{number}.png")
        text = "id,lat,lon\n" + "\n".join(f"{number},1,{number}" for number in range(100))
        first, second = (built(tmp_path / "photos", text).photos["split"] for _ in range(2))
        assert first.equals(second)
        assert first.value_counts().to_dict() == {"train": 70, "test": 20, "validation": 10}


class TestFolder:
    def test_links_are_followed_once_and_what_leads_nowhere_is_listed(self, tmp_path: Path) -> None:
        root, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
        photo(root / "a.jpg"), photo(elsewhere / "b.jfif"), photo(elsewhere / "c.gif")
        (root / "linked").symlink_to(elsewhere)
        (elsewhere / "back").symlink_to(root)
        (root / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
        left_out: list[tuple] = []
        found = [path.relative_to(root).as_posix() for path in folder.photos_below(root, left_out)]
        assert found == ["a.jpg", "linked/b.jfif"]
        assert left_out == [("lost.jpg", "lost.jpg", "is a link that leads nowhere")]
        (tmp_path / "empty").mkdir()
        photos, left_out = find_photos([str(root), "x.gif", str(tmp_path / "empty"), str(root / "a.jpg")])
        assert [Path(one).name for one in photos] == ["a.jpg", "b.jfif", "x.gif"]
        assert "no photos in this folder (.avif," in left_out[str(tmp_path / "empty")]

    def test_photos_that_were_moved_away_are_a_sentence_and_cost_nothing(
        self, root: Path, tmp_path: Path
    ) -> None:
        asked = ["dataset=folder", f"dataset.root={root}", "dataset.validation_share=0.2"]
        run = Run.open("smoke", f"{tmp_path}/run", asked)
        for name in NAMES:
            photo(root / name, **GPS)
        datasets.prepare(run)
        root.rename(tmp_path / "moved")
        with pytest.raises(BundleError, match="photos: no such folder; set dataset.root") as raised:
            datasets.prepare(run)
        assert run.receipt("manifest").exists()
        assert raised.value._render_traceback_() == [f"BundleError: {raised.value}"]  # so Jupyter shows it

    def test_a_missing_or_empty_folder_or_table_is_named(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for name, table, sentence in (
            ("empty", None, "no photos in it"),
            ("photos", None, "none of 5 photos has coordinates"), ("photos", tmp_path, "no such table"),
        ):  # fmt: skip
            with pytest.raises(BundleError, match=sentence):
                built(tmp_path / name, csv=table)

    def test_a_table_in_the_runs_own_folder_is_refused(self, root: Path, tmp_path: Path) -> None:
        table = tmp_path / "run" / "tables" / "left_out.csv"
        table.parent.mkdir(parents=True)
        table.write_text("path,lat,lon\na.jpg,1,2\n")
        asked = ["dataset=folder", f"dataset.root={root}", f"dataset.csv={table}"]
        with pytest.raises(BundleError, match="lies in the folder that the run writes to"):
            datasets.prepare(Run(load("smoke", asked), tmp_path / "run"))
        assert table.read_text().startswith("path,lat,lon")

    def test_a_photo_that_is_added_or_replaced_is_noticed(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        for name in NAMES:
            photo(root / name, **GPS)
        asked = ["dataset=folder", f"dataset.root={root}", "dataset.validation_share=0.2"]
        run = Run.open("smoke", f"{tmp_path}/run", asked)
        first = manifest.read(datasets.prepare(run))
        before = run.manifest.read_bytes()
        datasets.prepare(run)
        assert "again" not in capsys.readouterr().out
        Image.effect_noise((64, 64), 50).save(root / "four.png", exif=Image.open(root / "four.png").getexif())
        assert manifest.read(datasets.prepare(run))["id"].tolist() == first["id"].tolist()
        assert run.manifest.read_bytes() != before  # the features hang on the manifest
        photo(root / "six.jpg", **GPS)
        assert len(manifest.read(datasets.prepare(run))) == 6


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real photos are not at {REAL}")
def test_real_street_level_photos_become_a_manifest_with_their_countries(tmp_path: Path) -> None:
    overrides = ["dataset=folder", f"dataset.root={REAL}", f"dataset.csv={REAL / 'metadata.csv'}"]
    found = manifest.read(datasets.prepare(Run.open("smoke", f"{tmp_path}/run", overrides)))
    assert len(found) == 31 and {"source", "licence"} <= set(found)
    assert {"IN", "SN", "GB", "NO", "US", "MA", "DE", "SG"} <= set(found["country"])
    assert np.isfinite(manifest.coordinates(found)).all()
