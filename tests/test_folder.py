"""A folder of photos: tables of every style, EXIF, and what is wrong with them said with line and mend."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lib.data import datasets, folder
from lib.data.photos import GPS_IFD, exif_coordinates
from lib.method.errors import BundleError
from lib.runs import Run
from lib.settings import PROJECT, Folder

REAL = Path(os.environ.get("STREET_LEVEL_PHOTOS", PROJECT.parent / "shared" / "data" / "street_level_mini"))
NAMES = ["a/one.jpg", "a/two.jpg", "b/three@3.jpg", "four.png", "five.JPG"]
PLACES = [(48.8, 9.2), (1.3, 103.8), (-33.9, 151.2), (64.1, -21.9), (-17.7, 178.1)]


def photo(path: Path, place: tuple[float, float] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if place is not None:
        gps = {1: "N" if place[0] >= 0 else "S", 3: "E" if place[1] >= 0 else "W"}
        for number, value in zip((2, 4), map(abs, place), strict=True):
            minutes = value % 1 * 60
            gps[number] = (float(int(value)), float(int(minutes)), minutes % 1 * 60)
        exif[GPS_IFD] = gps
    Image.new("RGB", (24, 16), (90, 120, len(path.name))).save(path, exif=exif)


@pytest.fixture
def root(tmp_path):
    for name in NAMES:
        photo(tmp_path / "photos" / name)
    return tmp_path / "photos"


def built(root, text=None, **settings):
    if text is not None:
        table = root.parent / "table.csv"
        table.write_bytes(text if isinstance(text, bytes) else text.encode())
        settings["csv"] = table
    return folder.build(Folder(root=root, **settings), root)


def rows(names, columns="id,latitude,longitude", separator=","):
    lines = [columns.replace(",", separator)]
    return "\n".join(
        [
            *lines,
            *(separator.join(map(str, (name, *place))) for name, place in zip(names, PLACES, strict=False)),
        ]
    )


@pytest.mark.parametrize(
    "columns",
    [
        "IMG_ID,LAT,LON",
        "image_id,lat,lng",
        "file,latitude,longitude",
        "Path,Latitude,Longitude",
        "img_path,gt_lat,gt_lon",
        "id,lat,long",
    ],
)
@pytest.mark.parametrize(
    "naming", [str, lambda name: Path(name).name, lambda name: Path(name).stem, lambda name: f"./{name}"]
)
def test_tables_of_every_style_find_their_photos(root, columns, naming):
    photos, left_out = built(root, rows(map(naming, NAMES), columns))
    assert photos.set_index("path").loc[NAMES, ["latitude", "longitude"]].to_numpy().tolist() == [
        list(place) for place in PLACES
    ]
    assert left_out.empty


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_delimiter_and_byte_order_mark_do_not_matter(root, separator):
    photos, _ = built(root, b"\xef\xbb\xbf" + rows(NAMES, separator=separator).encode())
    assert photos["latitude"].tolist() == [place[0] for place in PLACES]


def test_decimal_commas_are_read_where_the_delimiter_allows_them(root):
    photos, _ = built(root, "id;lat;lon\none;48,8;9,2\n")
    assert photos[["latitude", "longitude"]].iloc[0].tolist() == [48.8, 9.2]


def test_a_parquet_table_is_as_good_and_its_other_columns_stay(root):
    table = pd.DataFrame(
        {
            "file": NAMES,
            "lat": [place[0] for place in PLACES],
            "lon": [place[1] for place in PLACES],
            "camera": list("abcde"),
        }
    )
    table.to_parquet(root.parent / "table.parquet")
    photos, _ = folder.build(Folder(root=root, csv=root.parent / "table.parquet"), root)
    assert photos["camera"].tolist() == list("abcde")


def test_leading_zeros_of_identifiers_survive(root):
    photo(root / "0012.jpg")
    photos, _ = built(root, "id,lat,lon\n0012,1,2\n")
    assert photos["id"].tolist() == ["0012"]


def test_a_row_without_photo_and_a_photo_without_row_are_left_out_and_listed(root):
    photos, left_out = built(root, "id,lat,lon\none,1,2\nnobody,3,4\n")
    assert photos["path"].tolist() == ["a/one.jpg"]
    reasons = left_out.set_index("id")["reason"]
    assert reasons["nobody"] == "line 3: no such photo, or several of that name"
    assert (reasons.drop("nobody") == "no row in the table").all() and len(reasons) == 5


def test_a_name_that_two_photos_bear_is_taken_for_neither(root):
    photo(root / "c" / "one.jpg")
    photos, left_out = built(root, "id,lat,lon\none.jpg,1,2\na/two.jpg,3,4\n")
    assert photos["path"].tolist() == ["a/two.jpg"]
    assert "several of that name" in left_out.set_index("id").at["one.jpg", "reason"]


@pytest.mark.parametrize("place", PLACES)
def test_exif_gives_the_place_on_every_quarter_of_the_globe(tmp_path, place):
    photo(tmp_path / "photo.jpg", place)
    assert exif_coordinates(tmp_path, "photo.jpg") == pytest.approx(place, abs=1e-4)


def test_without_a_table_exif_decides_and_photos_without_gps_are_listed(root):
    photo(root / "placed.jpg", PLACES[0])
    photos, left_out = built(root)
    assert photos["id"].tolist() == ["placed.jpg"]
    assert sorted(left_out["path"]) == sorted(NAMES)


def test_where_the_table_is_silent_exif_is_asked(root):
    photo(root / "a/one.jpg", PLACES[2])
    photos, left_out = built(root, "id,lat,lon\none,,\ntwo,5,6\n")
    assert photos.set_index("id").loc["one", ["latitude", "longitude"]].tolist() == pytest.approx(
        list(PLACES[2]), abs=1e-4
    )
    assert photos.set_index("id").at["two", "latitude"] == 5.0
    assert len(left_out) == 3


def test_splits_of_the_table_are_kept_under_our_names(root):
    text = (
        rows(NAMES)
        .replace("longitude", "longitude,Split")
        .replace("\n", ",val\n")
        .replace("Split,val", "Split")
        + ",test"
    )
    photos, _ = built(root, text)
    assert photos["split"].tolist() == ["validation"] * 4 + ["test"]


def test_without_splits_a_seeded_cut_is_made(tmp_path):
    for number in range(100):
        photo(tmp_path / f"{number}.png")
    text = "id,lat,lon\n" + "\n".join(f"{number},1,{number}" for number in range(100))
    first, second = (built(tmp_path, text)[0]["split"] for _ in range(2))
    assert first.equals(second)
    assert first.value_counts().to_dict() == {"train": 70, "test": 20, "validation": 10}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "id,lat,lon\none,1,2\ntwo,103.8,1.3\n",
            r"table.csv: line 3: latitude '103.8' is not within \+-90 degrees .*swapped",
        ),
        ("id,lat,lon\none,1,200\n", r"line 2: longitude '200' is not within \+-180"),
        ("id,lat,lon\none,north,2\n", "line 2: latitude 'north'"),
        ("id,lat,lon\none,inf,2\n", "line 2: latitude 'inf'"),
        ("id,lat\none,1\n", "no column names longitudes"),
        ("title,lat,lon\none,1,2\n", "no column names the photos; it has title, lat, lon"),
        ("id,lat,lon\nx,1,2\n", "none of its 1 rows names a photo"),
        ("", "cannot be read as a table"),
        (b"\xff\xfe\x00i\x00d", "cannot be read as a table"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_file_line_and_mend(root, text, sentence):
    with pytest.raises(BundleError, match=sentence):
        built(root, text)


def test_a_missing_folder_or_table_and_an_empty_folder_are_named(tmp_path, root):
    with pytest.raises(BundleError, match=r"nowhere: no such folder"):
        built(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"none\.csv: no such table"):
        built(root, csv=tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="no photos in it"):
        built(tmp_path / "empty")
    with pytest.raises(BundleError, match="none of 5 photos has coordinates"):
        built(root)


def test_a_photo_that_is_added_or_replaced_is_noticed(root, tmp_path):
    for name, place in zip(NAMES, PLACES, strict=True):
        photo(root / name, place)
    run = Run.open("smoke", f"{tmp_path}/run", ["dataset=folder", f"data.root={root}"])
    first = datasets.prepare(run)
    before = run.manifest.read_bytes()
    datasets.prepare(run)
    assert run.reports[-1].startswith("reused")
    Image.effect_noise((64, 64), 50).save(root / "four.png", exif=Image.open(root / "four.png").getexif())
    assert datasets.prepare(run)["id"].tolist() == first["id"].tolist()
    assert run.manifest.read_bytes() != before  # the features hang on the manifest
    photo(root / "six.jpg", PLACES[0])
    assert len(datasets.prepare(run)) == 6


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real photos are not at {REAL}")
def test_real_street_level_photos_become_a_manifest_with_their_countries(tmp_path):
    overrides = ["dataset=folder", f"data.root={REAL}", f"data.csv={REAL / 'metadata.csv'}"]
    manifest = datasets.prepare(Run.open("smoke", f"{tmp_path}/run", overrides))
    assert len(manifest) == 31
    assert {"IN", "SN", "GB", "NO", "US", "MA", "DE", "SG"} <= set(manifest["country"])
    assert {"source", "licence"} <= set(manifest)
    assert np.isfinite(datasets.manifest.coordinates(manifest)).all()


def test_north_america_is_no_missing_value(tmp_path: Path) -> None:
    (tmp_path / "places.csv").write_text("photo,lat,lon,Continent,country\na.jpg,1,NA,NA,NA\nb.jpg,3,4,,DE\n")
    table = folder._read_table(tmp_path / "places.csv").frame
    (tmp_path / "commas.csv").write_text("photo,lat,lon,country\na.jpg,1,2,NA,\nb.jpg,3,4,DE,\n")
    assert folder._read_table(tmp_path / "commas.csv").frame["country"].tolist() == ["NA", "DE"], (
        "lines that end in a comma"
    )
    assert table["Continent"].tolist()[0] == table["country"].tolist()[0] == "NA"
    assert table["Continent"].isna().tolist() == [False, True] and table["longitude"].isna().tolist() == [
        True,
        False,
    ]
