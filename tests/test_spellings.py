"""What people's files hold: places, names and types as photo, map and table tools write them."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet as pq

from lib.data import datasets, degrees, folder, osv5m
from lib.data.photos import GPS_IFD, exif_coordinates, open_photo
from lib.method.errors import BundleError
from lib.predict.predict import find_photos
from lib.runs import Run
from lib.settings import OSV5M, PROJECT, Folder, load


def photo(path: Path, latitude: object = None, longitude: object = None, **references: object) -> Path:
    """A small photo; with GPS in its EXIF where a latitude is given."""
    exif = Image.Exif()
    if latitude is not None:
        gps = {1: references.get("north", "N"), 2: latitude, 3: references.get("east", "E"), 4: longitude}
        exif[GPS_IFD] = {tag: value for tag, value in gps.items() if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (90, 120, 60)).save(path, exif=exif)
    return path


def built(tmp_path: Path, text: str | pd.DataFrame, *names: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Manifest and what was left out, of photos ``names`` and a table."""
    root, table = tmp_path / "photos", tmp_path / "table.csv"
    for name in names or ("a.jpg", "b.jpg"):
        photo(root / name)
    if isinstance(text, pd.DataFrame):
        table = table.with_suffix(".parquet")
        text.to_parquet(table)
    else:
        table.write_text(text, encoding="utf-8")
    return folder.build(Folder(root=root, csv=table), root)


def places(tmp_path: Path, text: str | pd.DataFrame, *names: str) -> list[list[float]]:
    frame = built(tmp_path, text, *names)[0].sort_values("path")
    return frame[["latitude", "longitude"]].to_numpy().round(4).tolist()


class TestExif:
    @pytest.mark.parametrize("north", ["S", "s", "S ", " S", "S\0", "South", "SOUTH", b"S"])
    @pytest.mark.parametrize("east", ["W", "w ", "West", "W\0"])
    def test_a_hemisphere_however_it_is_written(self, tmp_path: Path, north: object, east: object) -> None:
        path = photo(tmp_path / "a.jpg", (33.0, 54.0, 0.0), (18.0, 24.0, 0.0), north=north, east=east)
        assert exif_coordinates(path.parent, path.name) == pytest.approx((-33.9, -18.4))

    @pytest.mark.parametrize("north", ["", " ", "X", "NS", "E", None, "5"])
    def test_without_a_hemisphere_there_is_no_place(self, tmp_path: Path, north: object) -> None:
        path = photo(tmp_path / "a.jpg", (48.0, 51.0, 24.0), (2.0, 21.0, 7.0), north=north)
        assert np.isnan(exif_coordinates(path.parent, path.name)).all()

    @pytest.mark.parametrize(
        ("parts", "reference", "expected"),
        [
            ((33.0, 54.0, 0.0), "S", -33.9), ((-33.0, 54.0, 0.0), "S", -33.9), ((33.9,), "S", -33.9),
            (33.9, "N", 33.9), ((-33.0, 54.0, 0.0), "N", np.inf), ((33.0, 75.0, 0.0), "N", np.inf),
            ((33.0, -5.0, 0.0), "N", np.inf), ((np.nan, 0.0, 0.0), "N", np.nan), ((33.0, 54.0), "N", 33.9),
        ],
    )  # fmt: skip
    def test_a_sign_counts_once(self, parts: object, reference: str, expected: float) -> None:
        found = degrees.of_exif(parts, reference, "latitude")
        assert found == pytest.approx(expected, nan_ok=True) or not np.isfinite([found, expected]).any()

    def test_zero_zero_is_a_place_that_was_removed(self, tmp_path: Path) -> None:
        path = photo(tmp_path / "a.jpg", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
        assert np.isnan(exif_coordinates(path.parent, path.name)).all()
        path = photo(tmp_path / "b.jpg", (0.0, 0.0, 0.0), (9.0, 0.0, 0.0))
        assert exif_coordinates(path.parent, path.name) == (0.0, 9.0)


class TestCells:
    @pytest.mark.parametrize(
        "cell",
        ["-33.9", "33.9S", "33.9 s", "S33.9", "S 33,9", "-33,9", "−33.9", "33.9° S", "-33.9°", "-33.9 S",
         "33 54 S", "33°54'S", "33° 54' 0\" S", "33 deg 54' 0.00\" S", "33:54:00 South", "33d54m0s S",
         "33º54′0″S", Decimal("-33.9"), np.float32(-33.9), "33°54.0' S", "-33.9 deg"],
    )  # fmt: skip
    def test_what_is_unambiguous_is_read(self, cell: object) -> None:
        assert degrees.of_cell(cell, "latitude") == pytest.approx(-33.9, abs=1e-5)

    @pytest.mark.parametrize(
        "cell",
        ["-33.9 N", "33.9 E", "33.9 X", "S33.9S", "48.85, 2.35", "33°75'", "33 54 99", "abc", "33.9.1", True,
         [33.9], b"33.9", "1/2", "inf", "33°-54'"],
    )  # fmt: skip
    def test_the_rest_is_no_number_of_degrees(self, cell: object) -> None:
        assert np.isinf(degrees.of_cell(cell, "latitude"))

    @pytest.mark.parametrize("cell", ["", " ", "NA", "n/a", "NaN", "null", "None", "-", r"\N", None, pd.NA])
    def test_nothing_is_nothing(self, cell: object) -> None:
        assert np.isnan(degrees.of_cell(cell, "longitude"))


class TestTable:
    @pytest.mark.parametrize(
        "header",
        ["SourceFile,GPSLatitude,GPSLongitude", "EXIF:FileName,Composite:GPSLatitude,Composite:GPSLongitude",
         "image,decimalLatitude,decimalLongitude", "image_name,POINT_Y,POINT_X", "Photo,LAT_DD,LON_DD",
         "file name,Latitude (deg),Longitude (deg)", "path,geoData.latitude,geoData.longitude",
         "Filename,Lat.,Long.", "img_id,GT_LAT,GT_LON", "photo_id,Lat,Lng", "FILE,ycoord,xcoord"],
    )  # fmt: skip
    def test_the_names_that_tools_give_columns(self, tmp_path: Path, header: str) -> None:
        assert places(tmp_path, f"{header}\n./a.jpg,1,2\nb.jpg,-3,4\n") == [[1, 2], [-3, 4]]

    @pytest.mark.parametrize("header", ["path,breadth,width", "path,x,y", "path,location"])
    def test_a_table_without_coordinates_is_not_passed_over(self, tmp_path: Path, header: str) -> None:
        photo(tmp_path / "photos" / "a.jpg", (48.0, 0.0, 0.0), (2.0, 0.0, 0.0))
        with pytest.raises(
            BundleError, match=f"no column names latitudes; it has {header.replace(',', ', ')}"
        ):
            built(tmp_path, f"{header}\n" + "a.jpg,1,2\n"[: len(header.split(",")) * 2 + 3] + "\n", "b.jpg")

    def test_a_column_of_hemispheres_gives_the_sign(self, tmp_path: Path) -> None:
        text = "path,GPSLatitude,GPSLatitudeRef,GPSLongitude,GPSLongitudeRef\n"
        text += "a.jpg,33.9,S,18.4,East\nb.jpg,-33.9,South,18.4,W\n"
        assert places(tmp_path, text) == [[-33.9, 18.4], [-33.9, -18.4]]
        with pytest.raises(BundleError, match="line 2: latitude '-33.9' contradicts its hemisphere, N"):
            built(tmp_path, "path,lat,lat_ref,lon\na.jpg,-33.9,N,2\n")

    def test_names_stay_text(self, tmp_path: Path) -> None:
        names = ["null.jpg", "12345678901234567.jpg", "0012.jpg", "NA.jpg"]
        text = "id,lat,lon\nnull,1,2\n12345678901234567,3,4\n0012,5,6\nNA,7,8\n"
        kept, left_out = built(tmp_path, text, *names)
        assert sorted(kept["id"]) == ["0012", "12345678901234567", "NA", "null"] and left_out.empty

    def test_types_of_parquet(self, tmp_path: Path) -> None:
        frame = pd.DataFrame(
            {
                "id": pd.array([12345678901234567, None], dtype="Int64"),
                "latitude": [Decimal("1.5"), Decimal("3")],
                "longitude": pd.Categorical(["2,5", "4° W"]),
            }
        )
        kept, left_out = built(tmp_path, frame, "12345678901234567.jpg")
        assert kept[["latitude", "longitude"]].to_numpy().tolist() == [[1.5, 2.5]]
        assert left_out["reason"].tolist() == ["row 2: no such photo, or several of that name"]
        lists = pd.DataFrame({"path": ["a.jpg"], "lat": [[1.0, 2.0]], "lon": [2.0]})
        with pytest.raises(BundleError, match=r"row 1: latitude .* is no number of degrees"):
            built(tmp_path, lists)

    @pytest.mark.parametrize("head", ["sep=;\n", '"sep=;"\n', "# from QGIS\n#\n", "\n\n"])
    def test_lines_before_the_header(self, tmp_path: Path, head: str) -> None:
        assert places(tmp_path, f"{head}path;lat;lon\na.jpg;1,5;2\nb.jpg;3;4\n") == [[1.5, 2], [3, 4]]

    def test_messages_count_lines_not_rows(self, tmp_path: Path) -> None:
        text = '# made by hand\npath,lat,lon,note\n\na.jpg,1,2,"two\nlines"\n\nb.jpg,95,4,x\n'
        with pytest.raises(BundleError, match=r"line 7: latitude '95' is not within .* look swapped"):
            built(tmp_path, text)
        _, left_out = built(tmp_path, text.replace("b.jpg,95", "nobody,9"))
        assert left_out.set_index("id").at["nobody", "reason"].startswith("line 7: no such photo")

    @pytest.mark.parametrize("cell", ["95", "95N", "95° 0' N"])
    def test_a_number_that_is_too_large_is_called_that_in_any_spelling(
        self, tmp_path: Path, cell: str
    ) -> None:
        with pytest.raises(BundleError, match=r"line 2: latitude .* is not within \+-90 degrees .* swapped"):
            built(tmp_path, f"path,lat,lon\na.jpg,{cell},2\n")

    def test_longitudes_from_0_to_360_are_called_that(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"line 3: longitude '357\.6' .*; subtract 360 from longitudes"):
            built(tmp_path, "path,lat,lon\na.jpg,48.8,2.3\nb.jpg,48.8,357.6\n")

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.jpg", 'Unnamed: 0,"path","lat ", lon \n0,a.jpg,1,2\n'),
            ("a b.jpg", "path\tlat\tlon\na b.jpg\t1\t2\n"),
            ("d/a.jpg", "path|lat|lon\nd\\a.jpg|1|2\n"), ("a.jpg", "path,lat,lon,lat\na.jpg,1,2,1\n"),
            ("a.jpg", "\ufeffpath,lat,lon\r\na.jpg,1,2\r\n"), ("a.jpg", "path,lat,lat_ref,lon\na.jpg,1,,2\n"),
            ("a.jpg", "file,file.size,lat,lon,name.2,name\na.jpg,9,1,2,x,y\n"),
            ("a.jpg", "path,lat,lat_ref,lon\na.jpg,1 deg 0' 0.00\" N,-,2\nb.jpg,3,S,2\n"),
            ("a.jpg", "path,lat,lon\na.jpg,0 60.0 0,2° 0.0' 0\n"),
            ("a.jpg", "path,lat,lon,split\na.jpg,1,2,validation_blocked\n"),
            ("a.jpg", 'path,lat,lon\n"a.jpg","1,0","2,0"\n'),
            ("a.jpg", "path;lat;lon\na.jpg;1° N;2° E\n"), ("a.JPG", "path,lat,lon\na.JPG,+1,+2.0\n"),
        ],
    )  # fmt: skip
    def test_exports_of_kaggle_excel_and_gis(self, tmp_path: Path, name: str, text: str) -> None:
        assert places(tmp_path, text, name) == [[1, 2]]

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("id,latitudeE7,longitudeE7\na,488566000,23522000\n", "it has id, latitudeE7"),
            ("key,computed_geometry\na,POINT (2 1)\n", "it has key, computed_geometry"),
            ("path,lat,lon\na.jpg,4885.66,2\n", "is not within"),
            ("path,lat,lon\na.jpg,1,2,3,4\nb.jpg,1,2,3,4\n", "more fields than its header"),
            ("path,lat,lon,lat\na.jpg,1,2,9\n", "two columns 'lat' differ"),
            ("path,lat,lon,path\na.jpg,1,2,b.jpg\n", "two columns 'path' differ"),
            ("path,lat,lon,split,split\na.jpg,1,2,train,test\n", "two columns 'split' differ"),
            ("path,lat,lon\na.jpg,48.8566 2.3522,2\n", "line 2: latitude '48.8566 2.3522' is no number"),
            ("path,lat,lon\na.jpg,48 51.5 24,2\n", "is no number of degrees"),
            ("path,lat,lat_ref,lon\na.jpg,33.9,Sud,18\n", r"no known hemisphere .* \(Sud\).*write N or S"),
            ("path,lat,lon,lon_ref\na.jpg,33.9,18,E\nb.jpg,33,18,\n", "line 3: .* no known hemi.*E or W"),
            ("path,lat,lon\n   \na.jpg,99,2\n", "line 3: latitude '99'"),
            ("path,lat,lon,split\n\na.jpg,1,2,train\nb.jpg,1,2,tset\n", "csv: line 4: split is none.*'tset'"),
            ("path,id,lat,lon\na.jpg,7,1,2\nb.jpg,7,1,2\n", r"table.csv: line 3: id is used twice \('7'"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_meant_is_refused(self, tmp_path: Path, text: str, sentence: str) -> None:
        with pytest.raises(BundleError, match=sentence):
            built(tmp_path, text)

    @pytest.mark.parametrize(
        ("begin", "sentence"),
        [
            (b'{"type": "FeatureCollection"}', "is JSON, no CSV"), (b"\xef\xbb\xbf[1]", "is JSON, no CSV"),
            (b"PK\x03\x04" + bytes(60), "an Excel workbook or another archive"), (b"<?xml?>", "is KML, GPX"),
            (b"SQLite format 3\0", "a GeoPackage"), (b"PAR1" + bytes(60), "name it .parquet"),
            (b"\x1f\x8b\x08" + bytes(60), "gzip.*export it as CSV"), (b"\xd0\xcf\x11\xe0", "Excel"),
        ],
    )  # fmt: skip
    def test_what_is_no_csv_is_called_what_it_is(self, tmp_path: Path, begin: bytes, sentence: str) -> None:
        photo(tmp_path / "photos" / "a.jpg")
        (tmp_path / "table.csv").write_bytes(begin)
        with pytest.raises(BundleError, match=sentence):
            folder.build(Folder(root=tmp_path, csv=tmp_path / "table.csv"), tmp_path)

    def test_what_parquet_alone_can_hold_is_text_or_a_sentence(self, tmp_path: Path) -> None:
        rows = {"path": ["a.jpg", "b.jpg"], "lat": [48.8, -33.9], "lon": [2.3, 18.4]}
        for country in (pd.Categorical(["FR", None]), [1.0, None], [["FR"], None]):
            frame = datasets._with_places(built(tmp_path, pd.DataFrame(rows | {"country": country}))[0])
            datasets.manifest.write(frame, tmp_path / "manifest.parquet")
            assert frame["country"].iloc[1] == "ZA"
        named = pd.DataFrame(rows | {"uuid": ["7", "7"]}).set_index("path")
        with pytest.raises(BundleError, match="table.parquet: row 2: id is used twice"):
            built(tmp_path, named)
        twice = pa.table([rows["path"], rows["lat"], rows["lon"], rows["lat"]], ["path", "lat", "lon", "lat"])
        pq.write_table(twice, tmp_path / "twice.parquet")
        with pytest.raises(BundleError, match="twice.parquet: .*it has two columns 'lat'"):
            folder.build(
                Folder(root=tmp_path / "photos", csv=tmp_path / "twice.parquet"), tmp_path / "photos"
            )

    def test_a_table_in_the_runs_own_folder_or_a_folder_as_a_table_is_refused(self, tmp_path: Path) -> None:
        photo(tmp_path / "photos" / "a.jpg")
        table = tmp_path / "run" / "tables" / "left_out.csv"
        table.parent.mkdir(parents=True)
        table.write_text("path,lat,lon\na.jpg,1,2\n")
        for csv, sentence in (
            (table, "lies in the folder that the run writes to"),
            (tmp_path, "no such table"),
            ("", "no such table"),
        ):
            run = Run(
                load(
                    "smoke", ["dataset=folder", f"dataset.root={tmp_path / 'photos'}", f"dataset.csv={csv}"]
                ),
                tmp_path / "run",
            )
            with pytest.raises(BundleError, match=sentence):
                datasets.prepare(run)
        assert table.read_text().startswith("path,lat,lon")

    def test_a_photo_in_two_rows_counts_once_and_with_two_places_not_at_all(self, tmp_path: Path) -> None:
        rows = "name,lat,lon\na.jpg,48,2\na.jpg,48,2\nb.jpg,1,1\nc.jpg,4,3\nb.jpg,1,9\n"
        found, left_out = built(tmp_path, rows, "a.jpg", "b.jpg", "c.jpg")
        assert found[["path", "latitude", "longitude"]].values.tolist() == [["a.jpg", 48, 2], ["c.jpg", 4, 3]]
        assert left_out["path"].tolist() == ["a.jpg", "b.jpg"]
        assert left_out["reason"].tolist() == [
            "line 3: is in line 2 already", "line 4 and line 6 differ in its place"
        ]  # fmt: skip

    @pytest.mark.parametrize("header", ["lat,latitude,lon", "Lat,lat,lon"])
    def test_two_columns_that_contradict_each_other_are_refused(self, tmp_path: Path, header: str) -> None:
        same = f"name,{header}\na.jpg,48.85,48.85,2.35\nb.jpg,4,,3\n"
        assert places(tmp_path, same)[0] == [48.85, 2.35]
        with pytest.raises(BundleError, match=r"line 3: column lat.*says .* where another .*drop one"):
            built(tmp_path, f"name,{header}\na.jpg,48.85,48.85,2.35\nb.jpg,-4,4.5,3\n")
        with pytest.raises(BundleError, match=r"line 2: column lat\w* says (here|x) where another"):
            text = "here,48" if header.startswith("lat,") else "48,x"
            built(tmp_path, f"name,{header}\na.jpg,{text},2\nb.jpg,4,4,3\n")

    @pytest.mark.parametrize("content", ["", " ", "NA"])
    def test_continents_that_are_missing_come_from_the_coordinates(
        self, tmp_path: Path, content: str
    ) -> None:
        photo(tmp_path / "photos" / "a.jpg"), photo(tmp_path / "photos" / "b.jpg")
        (tmp_path / "t.csv").write_text(
            f"path,lat,lon,continent\na.jpg,48.8,2.3,{content}\nb.jpg,-33.9,18.4,\n"
        )
        asked = ["dataset=folder", f"data.root={tmp_path / 'photos'}", f"data.csv={tmp_path / 't.csv'}"]
        manifest = datasets.prepare(Run(load("smoke", asked), tmp_path / "run")).set_index("path")
        expected = "North America" if content == "NA" else "Europe"
        assert manifest["continent"].to_dict() == {
            "a.jpg": content if content == "NA" else expected,
            "b.jpg": "Africa",
        }


class TestFolder:
    def test_links_are_followed_once_and_what_leads_nowhere_is_listed(self, tmp_path: Path) -> None:
        root, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
        photo(root / "a.jpg"), photo(elsewhere / "b.jfif"), photo(elsewhere / "c.gif")
        (root / "linked").symlink_to(elsewhere)
        (root / "a_link").symlink_to(root / "real")
        photo(root / "real" / "d.jpg")
        (elsewhere / "back").symlink_to(root)
        (root / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
        left_out: list[tuple] = []
        found = [path.relative_to(root).as_posix() for path in sorted(folder.files_below(root, left_out))]
        assert found == ["a.jpg", "linked/b.jfif", "linked/c.gif", "real/d.jpg"]
        assert left_out == [("lost.jpg", "lost.jpg", "is a link that leads nowhere")]
        assert sorted(folder.photo_sizes(root)) == ["a.jpg", "linked/b.jfif", "real/d.jpg"]
        photos, (others, *_) = find_photos([str(root)])
        assert len(photos) == 3 and others.endswith("c.gif")


class TestFormats:
    def test_formats_that_are_not_read_are_called_that(self, tmp_path: Path) -> None:
        for name in ("c.heic", "d.DNG"):
            (tmp_path / "photos").mkdir(exist_ok=True)
            photo(tmp_path / "photos" / "x.jpg").rename(tmp_path / "photos" / name)
        kept, left_out = built(tmp_path, "path,lat,lon\na.jpg,1,2\nb.jpg,3,4\nc.heic,5,6\n")
        reasons = left_out["reason"].tolist()
        assert len(kept) == 2 and sum("HEIC is not read: convert it" in one for one in reasons) == 2
        assert "DNG (a camera's raw data) is not read: convert it to JPEG or PNG" in reasons
        with pytest.raises(ValueError, match="HEIC is not read"):
            open_photo(tmp_path / "photos", "c.heic")
        photos, not_read = find_photos([str(tmp_path / "photos")])
        assert len(photos) == 2 and len(not_read) == 2

    @pytest.mark.parametrize(("scale", "expected"), [(1.0, 127), (255.0, 127)])
    def test_floats_become_the_right_grey(self, tmp_path: Path, scale: float, expected: int) -> None:
        values = np.full((4, 4), 0.5, np.float32) * scale
        values[0, 0] = scale
        Image.fromarray(values).save(tmp_path / "a.tif")
        assert abs(open_photo(tmp_path, "a.tif").getpixel((2, 2))[0] - expected) <= 1


class TestOsv5m:
    def settings(self, root: Path) -> OSV5M:
        return OSV5M(root=root, train_shards=1, test_shards=1, validation=1, download=False)

    def set_up(self, root: Path, number: int) -> None:
        for split in ("train", "test"):
            (root / "images" / split).mkdir(parents=True)
            with zipfile.ZipFile(root / "images" / split / "00.zip", "w") as archive:
                path = photo(root / "x.jpg")
                for _ in range(2):  # a name twice
                    archive.write(path, f"00/{number}.jpg")
            (root / f"{split}.csv").write_text("id,latitude,longitude\n1,48.8,2.3\n2,33,S\n")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_no_id_that_matches_is_called_that(self, tmp_path: Path) -> None:
        self.set_up(tmp_path, 7)
        with pytest.raises(BundleError, match=r"no row of train\.csv has a photo in the chosen shards"):
            osv5m.build(self.settings(tmp_path), tmp_path)

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"files": 3}'])
    def test_a_torn_record_of_downloads_is_one_sentence(self, tmp_path: Path, content: str) -> None:
        (tmp_path / osv5m.LOCK).write_text(content)
        with pytest.raises(BundleError, match=r"osv5m\.json: damaged .*; delete it"):
            osv5m.obtain(self.settings(tmp_path), tmp_path)


def test_a_terminal_that_knows_no_utf8_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "\u0431.heic").write_bytes(b"")
    environment = os.environ | {"PYTHONIOENCODING": "iso-8859-1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "lib.predict", str(tmp_path), "--model", str(tmp_path / "\u0431…")]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True)
    assert done.returncode == 1 and b"no such folder" in done.stderr and b"Traceback" not in done.stderr
    program = "from lib.runs.machine import print_anywhere; print_anywhere(); print('\u2026 \u0431')"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, env=environment, capture_output=True)
    assert done.stdout == b"? ?\n"


def test_a_clone_on_windows_keeps_the_line_ends_of_scripts_and_the_bytes_of_pictures(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    for command in (
        ["git", "init", "-q", str(kept)],
        ["git", "-C", str(kept), "config", "core.autocrlf", "true"],
    ):
        subprocess.run(command, check=True)
    for name in (".gitattributes", "run_all.sh", "requirements.lock"):
        (kept / name).write_bytes((PROJECT / name).read_bytes())
    photo(kept / "a.png")
    (kept / "b.parquet").write_bytes(b"\r\n\n\r\n")
    before = {path.name: path.read_bytes() for path in kept.iterdir() if path.is_file()}
    subprocess.run(["git", "-C", str(kept), "add", "-A"], check=True, capture_output=True)
    for name in before:
        (kept / name).unlink()
    subprocess.run(["git", "-C", str(kept), "checkout", "-q", "--", "."], check=True)
    assert {path.name: path.read_bytes() for path in kept.iterdir() if path.is_file()} == before
