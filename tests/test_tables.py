"""Tables with places: usual names and signed decimal degrees are read; all else is one sentence."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.data import tables
from lib.exchange import export_geolocation
from lib.method.errors import BundleError
from lib.method.model import GeoCLIP
from lib.pipeline import check_before_computing
from lib.predict.predictors import Release, read_geolocation
from lib.runs import Run
from lib.train import gallery


def read(tmp_path: Path, text: str) -> tables.Table:
    (tmp_path / "table.csv").write_bytes(text.encode())
    return tables.read(tmp_path / "table.csv", tuple(tables.COLUMN_NAMES), gaps=True)


def read_parquet(tmp_path: Path, frame: pd.DataFrame) -> tables.Table:
    frame.to_parquet(tmp_path / "table.parquet")
    return tables.read(tmp_path / "table.parquet", tuple(tables.COLUMN_NAMES), gaps=True)


def places(table: tables.Table) -> list[list[float]]:
    return table.frame[["latitude", "longitude"]].to_numpy().tolist()


class TestReading:
    @pytest.mark.parametrize(
        "header",
        ["IMG_ID,LAT,LON", "image_id,lat,lng", "file name,Latitude,Longitude", "img_path,gt_lat,gt_lon",
         "id,lat,long", "SourceFile,GPSLatitude,GPSLongitude", "image,decimalLatitude,decimalLongitude",
         "uuid, lat , lon "],
    )  # fmt: skip
    def test_the_usual_names(self, tmp_path: Path, header: str) -> None:
        table = read(tmp_path, f"{header}\na,11,12\nb,-13,14\n")
        assert places(table) == [[11, 12], [-13, 14]] and table.frame["photo"].tolist() == ["a", "b"]

    @pytest.mark.parametrize(
        "text",
        ["path;lat;lon\na.jpg;11.5;12\n", "path\tlat\tlon\na.jpg\t11.5\t12\n",
         "path|lat|lon\na.jpg|11.5|12\n", "\ufeffpath,lat,lon\r\na.jpg,11.5,12\r\n",
         'n,"path","lat"\x20,lon\n0,"a.jpg"," +11.5 ",12.0\n',
         "\n\npath,lat,lon\n  \na.jpg,11.5,12,\n", "name,file.size,path,lat,lon\nx,9,a.jpg,1.15e1,12.\n"],
    )  # fmt: skip
    def test_delimiters_quotes_blanks_and_byte_order_marks(self, tmp_path: Path, text: str) -> None:
        table = read(tmp_path, text)
        assert places(table) == [[11.5, 12]] and table.frame["photo"].tolist() == ["a.jpg"]

    def test_text_stays_text_and_other_columns_stay(self, tmp_path: Path) -> None:
        text = "id,lat,lon,continent,latest\n0012,11,12,NA,x\nnull,NA,,,y\n12345678901234567,13,14,Asia,\n"
        frame = read(tmp_path, text).frame
        assert frame["id"].tolist() == ["0012", "null", "12345678901234567"]
        assert frame["continent"].fillna("-").tolist() == ["NA", "-", "Asia"] and "latest" in frame

    @pytest.mark.parametrize("cell", ["", " ", "NA", "n/a", "NaN", "null", "None", "-", r"\N", None, pd.NA])
    def test_nothing_is_nothing(self, cell: object) -> None:
        assert np.isnan(tables.numbers(pd.Series([cell], dtype=object))[0])

    @pytest.mark.parametrize("cell", ["-33.9", " -33.9 ", Decimal("-33.9"), np.float32(-33.9), "-3.39E1"])
    def test_signed_decimal_degrees_are_read(self, cell: object) -> None:
        assert tables.numbers(pd.Series([cell], dtype=object))[0] == pytest.approx(-33.9, abs=1e-5)

    @pytest.mark.parametrize(
        "cell",
        ["33.9S", "S33.9", "-33,9", "−33.9", "33.9°", "33 54 0", "33°54'S", "33:54:00", "48.85 2.35",
         "33.9.1", "abc", "inf", "1_0", "0x10", "1/2", True, [33.9], b"33.9", float("inf")],
    )  # fmt: skip
    def test_every_other_spelling_is_refused(self, cell: object) -> None:
        assert np.isinf(tables.numbers(pd.Series([cell], dtype=object))[0])

    def test_types_and_index_of_parquet(self, tmp_path: Path) -> None:
        latitude = pd.array([11, None], dtype="Int64")
        frame = pd.DataFrame({"id": "a", "lat": latitude, "lon": pd.Categorical(["2.5", "4"])})
        found = read_parquet(tmp_path, frame).frame
        assert found["latitude"].fillna(0).tolist() == [11, 0] and found["longitude"].tolist() == [2.5, 4]
        with pytest.raises(
            BundleError, match=r"table\.parquet: coordinates in float16 are off by up to 7 km"
        ):
            read_parquet(tmp_path, pd.DataFrame({"id": "a", "lat": np.array([48.8], "f2"), "lon": [2.3]}))
        for odd in ([True], [[1.0, 2.0]], [pd.Timestamp(0)], [np.inf]):
            with pytest.raises(BundleError, match=r"parquet: row 1: latitude .* is no signed decimal number"):
                read_parquet(tmp_path, pd.DataFrame({"path": ["a.jpg"], "lat": odd, "lon": [2.0]}))
        index = pd.MultiIndex.from_arrays([["a", "b"], [7, 8], ["x", "y"]], names=["photo", None, "split"])
        found = read_parquet(tmp_path, pd.DataFrame({"lat": [11.0, 12.0], "lon": 3.0}, index=index)).frame
        assert found[["photo", "split"]].to_numpy().tolist() == [["a", "x"], ["b", "y"]]


class TestRefusals:
    @pytest.mark.parametrize(
        ("header", "words"),
        [
            ("path,breadth,width", "no column for the latitude (latitude, lat,"),
            ("path,lat", "no column for the longitude"),
            ("title,lat,lon", "no column for the photo (path, file,"),
            ("path,easting,northing,zone", "no column for the latitude"),
            ("path,latitudeE7,longitudeE7", "no column for the latitude"),
            ("path,lat,lon,lat", "two columns for the latitude, lat and lat.1"),
            ("path,lat,latitude,lon", "two columns for the latitude, lat and latitude"),
            ("path,lat,lon,LON ", "two columns for the longitude, lon and LON"),
            ("path,lat,lon,split,Subset", "two columns for the split, split and Subset"),
            ("path,GPSLatitude,GPSLatitudeRef,GPSLongitude", "GPSLatitude and GPSLatitudeRef"),
            ("path,lat,lon,NS_hemisphere", "two columns for the latitude, lat and NS_hemisphere"),
            ("path,lat,N/S,lon,E/W", "two columns for the latitude, lat and N/S"),
            ("path,GPSLatitude,GPSLongitude,EXIF:GPSLongitudeRef", "GPSLongitude and EXIF:GPSLongitudeRef"),
            ("path,lat,lat_min,lon,lon_min", "two columns for the latitude, lat and lat_min"),
            ("path,lat,lon,lon_sec", "two columns for the longitude, lon and lon_sec"),
            ('{"type": "FeatureCollection"}', "no column for the latitude"),
            ("<?xml version='1.0'?>", "no column for the latitude"),
        ],
    )  # fmt: skip
    def test_columns_that_are_missing_or_doubled(self, tmp_path: Path, header: str, words: str) -> None:
        with pytest.raises(BundleError) as raised:
            read(tmp_path, f"{header}\n" + ",".join(["11"] * (header.count(",") + 1)) + "\n")
        said = str(raised.value)
        assert words in said and f"; it has {header.replace(',', ', ').strip()}" in said
        assert said.startswith(f"{tmp_path}/table.csv: ") and said.endswith("decimal degrees, such as -33.86")

    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            ("a,11,12\nb,33.9S,12\nc,S33.9,1\n", r"row 2: latitude '33\.9S' is no .*\(2 such rows\)"),
            ("a,11,east\n", "row 1: longitude 'east' is no signed decimal number of degrees"),
            ("a,11,12\nb,103.8,1.3\n", r"row 2: latitude '103\.8' is not within .* swapped\? \(1 such"),
            ("a,4885.66,2\n", r"row 1: latitude '4885\.66' is not within \+-90 degrees \("),
            ("a,48.8,357.6\n", r"row 1: longitude '357\.6' is not within \+-180 degrees \("),
            ('\na,11,12\n"b\nb",1,2\n\nc,95,4\n', r"row 3: latitude '95' is not within"),
            ("   \na,99,2\n", "row 1: latitude '99'"),
            ("a,0.85,0.04\nb,-0.59,2.6\n", "they are radians, not degrees"),
            ("", "the table has no rows"),
            ("a,1,2,3\n", "cannot be read as a table .Length of header or names does not match"),
        ],
    )  # fmt: skip
    def test_rows_that_are_no_place(self, tmp_path: Path, rows: str, words: str) -> None:
        with pytest.raises(BundleError, match=rf"table\.csv: .*{words}"):
            read(tmp_path, "path,lat,lon\n" + rows)

    @pytest.mark.parametrize(
        "content",
        [b"", b"\xd0\xcf\x11\xe0" + bytes(60), b"\x1f\x8b\x08" + bytes(60),
         "path,lat,lon\ncafé.jpg,1,2\n".encode("cp1252"), "path,lat,lon\n".encode("utf-16")],
    )  # fmt: skip
    @pytest.mark.parametrize("ending", ["csv", "parquet"])
    def test_what_is_no_table_is_one_sentence(self, tmp_path: Path, content: bytes, ending: str) -> None:
        (tmp_path / f"table.{ending}").write_bytes(content)
        with pytest.raises(BundleError, match=rf"table\.{ending}: cannot be read as a table .*; save it"):
            tables.read(tmp_path / f"table.{ending}")

    def test_no_file_and_a_folder(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.csv", tmp_path):
            with pytest.raises(BundleError, match=f"{path.name}: no such table; name a CSV or parquet file"):
                tables.read(path)


class TestGallery:
    """A gallery is read by the same function, without gaps and without photos."""

    def test_columns_in_any_order_to_the_edges_of_the_map(self, tmp_path: Path) -> None:
        (tmp_path / "places.csv").write_text("name,LON,LAT\na,11.5,48\nb,-180,-90\n")
        assert gallery.read_csv(tmp_path / "places.csv").tolist() == [[48.0, 11.5], [-90.0, -180.0]]
        (tmp_path / "places.csv").write_text("latitude;longitude\n48;11.5\n")
        assert gallery.read_csv(tmp_path / "places.csv").tolist() == [[48.0, 11.5]]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("\nLAT,LON\n\n1,2\n  \n3,\n", "row 2: longitude nan is no signed decimal number"),
            ("LAT,LON\n103.8,1.3\n", r"row 1: latitude '103\.8' is not within .*columns swapped\?"),
            ("LAT,LON,LAT\n11,12,13\n", r"two columns for the latitude, LAT and LAT\.1"),
            ("LAT,place\n1,2\n", "no column for the longitude"),
            ("48.8,2.3\n48.9,2.4\n", r"no column for the latitude .* it has 48\.8, 2\.3;"),
            ("LAT,LON\n0.85,0.04\n-0.59,2.6\n", "all coordinates .* they are radians"),
            ("LAT,LON,longitude\n1,2,3\n", "two columns for the longitude, LON and longitude"),
        ],
    )  # fmt: skip
    def test_refusals_are_those_of_a_photos_table(self, tmp_path: Path, text: str, words: str) -> None:
        """In a gallery, in the gallery of a release, and before anything is computed."""
        export_geolocation(Release(GeoCLIP(768), np.ones((1, 2)), "x", None), tmp_path)
        (tmp_path / "gallery.csv").write_text(text)
        run = Run.open("smoke", f"{tmp_path}/run", [f"evaluation.gallery={tmp_path}/gallery.csv"])
        for use in (lambda: check_before_computing(run), lambda: read_geolocation(tmp_path)):
            with pytest.raises(BundleError, match=rf"gallery\.csv: {words}"):
                use()
