"""A folder of photos: with a table of coordinates, with GPS in the photos' EXIF, or both.

The table is a CSV (comma, semicolon, tab or bar, with or without a byte-order mark) or a parquet file, its
coordinates signed decimal degrees. Its columns may have the names of MP-16, IM2GPS3k, YFCC4k, Global
Streetscapes, OSV5M and exiftool. A photo is found by its path below the root, its file name, or its file name
without the ending. Where the table has no coordinates for a photo, EXIF is asked. What cannot be used is left
out and listed with the reason; what is wrong stops with the row and the mend.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from lib.data import degrees
from lib.data.degrees import LIMITS
from lib.data.manifest import Built, read_csv, read_parquet
from lib.data.photos import ENDINGS, NOT_READ, exif_coordinates, not_read
from lib.method.errors import BundleError
from lib.runs import note, progress
from lib.runs.files import READING_ERRORS, one_line
from lib.settings import PROJECT, Folder

COLUMN_NAMES = {
    "latitude": ("latitude", "lat", "gpslatitude", "gtlat", "decimallatitude"),
    "longitude": ("longitude", "lon", "lng", "long", "gpslongitude", "gtlon", "decimallongitude"),
    "photo": (
        "path", "file", "filename", "filepath", "sourcefile", "image", "imagepath", "imgpath", "img", "imgid",
        "imageid", "photo", "photoid", "id", "uuid", "key", "name",
    ),
    "id": ("id", "imgid", "imageid", "uuid"),
    "split": ("split", "subset"),
}  # fmt: skip
"""Our name -> the names that it goes by, as :func:`_plain` has them."""
SPLIT_NAMES = {"training": "train", "val": "validation", "valid": "validation"}


def obtain(settings: Folder, root: Path) -> None:
    """Nothing: one's own photos are where they are."""


def listing(settings: Folder, root: Path) -> str:
    """Digest of the photos' paths and sizes: one that is added, removed or replaced is noticed."""
    return hashlib.sha256(json.dumps(photo_sizes(root)).encode()).hexdigest()


def build(settings: Folder, root: Path) -> Built:
    """The manifest of the photos under ``root`` and what was left out of it.

    Raises:
        BundleError: no photos; a table that cannot be read, lacks a column, or has an impossible coordinate.
    """
    if not root.is_dir():
        raise BundleError(f"{root}: no such folder; set dataset.root to the folder that holds the photos")
    sizes, left_out = photo_sizes(root), []
    for name in [name for name in sizes if not _is_text(name)]:
        del sizes[name]
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        left_out.append((shown, shown, "its name is not UTF-8: rename it"))
    others = sorted(path for path in root.rglob("*") if path.suffix.lower() in NOT_READ and path.is_file())
    for path in others:
        name = path.relative_to(root).as_posix()
        left_out.append((name, name, not_read(path.suffix.lower())))
    if not sizes:
        why = "check dataset.root"
        if others:
            why = f"{len(others):,} files like {others[0].name}: {left_out[-1][2]}"
        raise BundleError(f"{root}: no photos in it ({', '.join(sorted(ENDINGS))}); {why}")
    if settings.csv is None:
        photos = pd.DataFrame(
            {"id": list(sizes), "path": list(sizes), "latitude": np.nan, "longitude": np.nan}
        )
    else:
        source = PROJECT / settings.csv
        photos = _match(_read_table(source), source, list(sizes), left_out)
    photos = _with_splits(_with_exif(photos, root, left_out), settings)
    photos = photos.assign(bytes=photos["path"].map(sizes).to_numpy())
    return Built(photos, pd.DataFrame(left_out, columns=["id", "path", "reason"]))


def photo_sizes(root: Path) -> dict[str, int]:
    """Path below ``root`` and size in bytes of every photo, in order of the paths: by these a changed folder
    is noticed."""
    files = (path for path in root.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in sorted(files)}


def _is_text(name: str) -> bool:
    """Whether a file's name can be written into a table: on Linux it may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_table(path: Path) -> pd.DataFrame:
    """The table at ``path`` under our names; coordinates as numbers, checked; everything else as it is."""
    if not path.is_file():
        raise BundleError(
            f"{path}: no such table; set dataset.csv to a CSV or parquet file, or to null for EXIF"
        )
    try:
        if path.suffix.lower() == ".parquet":
            table = read_parquet(path)
        else:
            plain = {"encoding": "utf-8-sig", "dtype": str, "keep_default_na": False, "na_values": [""]}
            table = read_csv(path, sep=_delimiter(path), **plain)
    except READING_ERRORS as error:
        sentence = f"cannot be read as a table ({one_line(error)}); save it as UTF-8 CSV or parquet"
        raise BundleError(f"{path}: {sentence}") from error
    frame = _renamed(table, path)
    for name in LIMITS:
        frame[name] = _degrees(frame[name], name, path)
    if nowhere := int((frame[list(LIMITS)] == 0.0).all(axis=1).sum()):
        note(f"{path}: {nowhere:,} rows lie at exactly 0, 0; they are kept: drop them if that is no place")
    return frame


def _row(number: int) -> str:
    """How a message calls the row ``number``, counted from 0."""
    return f"data row {number + 1}"


def _delimiter(path: Path) -> str:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            return csv.Sniffer().sniff(file.readline(), delimiters=",;\t|").delimiter
        except csv.Error:
            return ","


def _plain(name: object) -> str:
    """A column's name in small letters and digits, without its group: ``EXIF:GPSLatitude``."""
    return re.sub(r"[^a-z0-9]", "", str(name).rpartition(":")[2].lower())


def _renamed(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """``table`` with the columns photo, id, latitude, longitude, split under these names, where it has them.

    Raises:
        BundleError: photos or coordinates are in no column, coordinates are in two, or have no signs.
    """
    plain = {_plain(name): name for name in reversed(table.columns)}
    found = {ours: [plain[name] for name in names if name in plain] for ours, names in COLUMN_NAMES.items()}
    there = one_line(", ".join(map(str, table)))
    for ours, what in (("photo", "the photos"), ("latitude", "latitudes"), ("longitude", "longitudes")):
        if not found[ours]:
            known = ", ".join(COLUMN_NAMES[ours][:6])
            raise BundleError(
                f"{path}: no column names {what}; it has {there}; call it one of {known}"
                + ("" if ours == "photo" else ", and leave it empty where EXIF knows the place")
            )
    for ours in LIMITS:
        if len(found[ours]) > 1:
            raise BundleError(f"{path}: {' and '.join(found[ours])} are both {ours}s; drop one column")
        sign = plain.get(f"{_plain(found[ours][0])}ref")
        if sign is not None and table[sign].astype(str).str.contains(r"^\s*[SsWw]").any():
            mend = f"write signed decimal degrees into {found[ours][0]} and drop {sign}"
            raise BundleError(f"{path}: column {sign} tells the hemisphere; {mend}")
    chosen = pd.DataFrame({ours: table[names[0]] for ours, names in found.items() if names})
    used = {names[0] for names in found.values() if names} | {*COLUMN_NAMES, "path"}
    return pd.concat([chosen, table[[name for name in table if name not in used]]], axis=1)


def _degrees(given: pd.Series, name: str, path: Path) -> pd.Series:
    """The column ``name`` (latitude or longitude) as numbers, NaN where it is empty."""
    values, limit = degrees.of_column(given), LIMITS[name]
    if (wrong := (values.abs() > limit).to_numpy()).any():
        row = int(np.flatnonzero(wrong)[0])
        number, mend = values.iloc[row], "mend or drop the row"
        if np.isinf(number):
            mend = "write a decimal number, such as -33.86"
        elif name == "latitude" and abs(number) <= LIMITS["longitude"]:
            mend = "latitude and longitude look swapped"
        elif name == "longitude" and limit < number <= 2 * limit:
            mend = "subtract 360 from longitudes above 180"
        said = f"{name} {one_line(repr(given.iloc[row]))} is no number within +-{limit:g} degrees"
        raise BundleError(f"{path}: {_row(row)}: {said} ({int(wrong.sum())} such rows); {mend}")
    return values


def _as_text(values: pd.Series) -> pd.Series:
    """Names or ids as text, in Unicode's composed form: whole numbers have no point, none is empty."""
    if pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")
    text = values.astype(object).where(values.notna(), "").map(str)
    return text.map(_composed)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _match(frame: pd.DataFrame, source: Path, files: list[str], left_out: list[tuple]) -> pd.DataFrame:
    """Rows of ``frame`` with the path of their photo; rows without photo and photos without row go to
    ``left_out``."""
    wanted = _as_text(frame["photo"]).str.strip().str.replace("\\", "/", regex=False).str.removeprefix("./")
    paths = wanted.map(_names_of(files))
    if not paths.notna().any():
        first = one_line(wanted.iloc[0]) if len(frame) else "-"
        raise BundleError(
            f"{source}: none of its {len(frame):,} rows names a photo of the folder (first row: {first}; "
            f"first photo: {one_line(files[0])}); check dataset.root and the column of file names"
        )
    for number in np.flatnonzero(paths.isna()):
        name = wanted.iloc[number]
        ending = PurePosixPath(name).suffix.lower()
        why = not_read(ending) if ending in NOT_READ else "no such photo, or several of that name"
        left_out.append((name, "", f"{_row(number)}: {why}"))
    left_out += [(name, name, "no row in the table") for name in sorted(set(files) - set(paths.dropna()))]
    frame = frame.assign(path=paths)[paths.notna()].drop(columns="photo")
    frame = _once_each(frame, source, left_out)
    frame["id"] = _as_text(frame["id"]) if "id" in frame else frame["path"]
    return frame


def _once_each(frame: pd.DataFrame, source: Path, left_out: list[tuple]) -> pd.DataFrame:
    """``frame`` with one row a photo, and its place from whichever row has one; with two places it is left
    out.

    Raises:
        BundleError: no photo has one place.
    """
    places = frame.groupby("path")[list(LIMITS)]
    differs = frame["path"].map((places.nunique() > 1).any(axis=1))
    again = frame.duplicated("path")
    frame[list(LIMITS)] = places.transform("first")
    for wrong, why in ((again & ~differs, "is in the table already"), (differs & ~again, "has two places")):
        left_out += [(path, path, f"{_row(row)}: {why}") for row, path in frame.loc[wrong, "path"].items()]
    once = frame[~differs & ~again]
    if once.empty:
        raise BundleError(f"{source}: no photo has one place; mend the rows that contradict each other")
    return once.copy()


def _names_of(files: list[str]) -> dict[str, str]:
    """Every name by which a row may call a file: its path, its name, its stem; a name of several files is
    none."""
    known = {}
    for of in (
        lambda path: _composed(PurePosixPath(path).stem),
        lambda path: _composed(PurePosixPath(path).name),
        _composed,
    ):
        counted = Counter(map(of, files))
        known |= {of(path): path for path in files if counted[of(path)] == 1}
    return known


def _with_exif(photos: pd.DataFrame, root: Path, left_out: list[tuple]) -> pd.DataFrame:
    """``photos`` with missing coordinates taken from EXIF; those that have none there either go to
    ``left_out``."""
    missing = photos[list(LIMITS)].isna().any(axis=1)
    for row in progress(photos.index[missing], "reading EXIF", int(missing.sum())):
        photos.loc[row, list(LIMITS)] = exif_coordinates(root, photos.at[row, "path"])
    lost = photos[list(LIMITS)].isna().any(axis=1)
    if lost.all():
        raise BundleError(
            f"{root}: none of {len(photos):,} photos has coordinates; give dataset.csv, or photos with GPS "
            "in EXIF"
        )
    left_out += [
        (photo.id, photo.path, "no coordinates in the table or in EXIF")
        for photo in photos[lost].itertuples()
    ]
    return photos[~lost].reset_index(drop=True)


def _with_splits(photos: pd.DataFrame, settings: Folder) -> pd.DataFrame:
    """``photos`` with a split each: the table's under our names, or a seeded random cut."""
    if "split" in photos:
        return photos.assign(split=photos["split"].astype(str).str.strip().str.lower().replace(SPLIT_NAMES))
    order = np.random.default_rng(settings.seed).permutation(len(photos))
    test, validation = (
        round(settings.test_share * len(photos)),
        round(settings.validation_share * len(photos)),
    )
    split = np.full(len(photos), "train", dtype=object)
    split[order[:test]], split[order[test : test + validation]] = "test", "validation"
    return photos.assign(split=split)
