"""A folder of photos: with a table of coordinates, with GPS in the photos' EXIF, or both.

The table is a CSV (any of the usual delimiters, with or without a byte-order mark) or a parquet file. Its
columns may have any of the usual names, in any case: those of MP-16, IM2GPS3k, YFCC4k, Global Streetscapes
and OSV5M among them. A photo is found by its path below the root, its file name, or its file name without the
ending. Where the table has no coordinates for a photo, EXIF is asked. What cannot be used is left out and
listed with the reason; what is wrong stops with the line and the mend.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from lib.data.manifest import LIMITS, Built, read_csv, read_parquet
from lib.data.photos import ENDINGS, exif_coordinates
from lib.method.errors import BundleError
from lib.runs import progress
from lib.runs.files import READING_ERRORS, one_line
from lib.settings import PROJECT, Folder

COLUMN_NAMES = {
    "latitude": ("latitude", "lat", "gps_latitude", "gt_lat"),
    "longitude": ("longitude", "lon", "lng", "long", "gps_longitude", "gt_lon"),
    "photo": (
        "path", "file", "filename", "file_name", "image", "image_path", "img_path", "img", "img_id",
        "image_id", "photo", "id",
    ),
    "id": ("id", "img_id", "image_id", "uuid"),
    "split": ("split", "subset"),
}  # fmt: skip
SPLIT_NAMES = {"training": "train", "val": "validation", "valid": "validation"}
CODES = {"country", "continent"}
"""Columns where "NA" is Namibia, or North America, not a missing value."""


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
    if not sizes:
        raise BundleError(f"{root}: no photos in it ({', '.join(sorted(ENDINGS))}); check dataset.root")
    if settings.csv is None:
        photos = pd.DataFrame(
            {"id": list(sizes), "path": list(sizes), "latitude": np.nan, "longitude": np.nan}
        )
    else:
        source = PROJECT / settings.csv
        photos = _match(_read_table(source), list(sizes), source, left_out)
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
    """The table at ``path`` under our column names; coordinates as numbers, checked; everything else as it
    is."""
    if not path.is_file():
        raise BundleError(
            f"{path}: no such table; set dataset.csv to a CSV or parquet file, or to null for EXIF"
        )
    try:
        if path.suffix.lower() == ".parquet":
            table = read_parquet(path)
        else:
            options = {"sep": _delimiter(path), "encoding": "utf-8-sig", "dtype": str}
            table = read_csv(path, **options)
            if codes := [name for name in table if name.strip().lower() in CODES]:
                as_text = read_csv(path, usecols=codes, keep_default_na=False, **options)
                table[codes] = as_text[codes].replace("", None)
    except READING_ERRORS as error:
        sentence = f"cannot be read as a table ({one_line(error)}); save it as UTF-8 CSV or parquet"
        raise BundleError(f"{path}: {sentence}") from error
    table = _renamed(table, path)
    for name in (name for name in LIMITS if name in table):
        table[name] = _degrees(table, name, path)
    return table


def _delimiter(path: Path) -> str:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
    try:
        return csv.Sniffer().sniff(first, delimiters=",;\t|").delimiter
    except csv.Error:
        return ","


def _renamed(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """``table`` with the columns photo, id, latitude, longitude, split under these names, where it has
    them."""
    lower = {str(name).strip().lower(): name for name in table}
    found = {
        ours: next((lower[name] for name in names if name in lower), None)
        for ours, names in COLUMN_NAMES.items()
    }
    if found["photo"] is None:
        raise BundleError(
            f"{path}: no column names the photos; take one of {', '.join(COLUMN_NAMES['photo'])}"
        )
    if (found["latitude"] is None) != (found["longitude"] is None):
        missing = "latitude" if found["latitude"] is None else "longitude"
        raise BundleError(
            f"{path}: column {missing} is missing; take one of {', '.join(COLUMN_NAMES[missing])}"
        )
    chosen = pd.DataFrame({ours: table[name] for ours, name in found.items() if name is not None})
    rest = [name for name in table if name not in found.values() and str(name) not in {*COLUMN_NAMES, "path"}]
    return pd.concat([chosen, table[rest]], axis=1)


def _degrees(table: pd.DataFrame, name: str, path: Path) -> pd.Series:
    """The column ``name`` (latitude or longitude) as numbers, NaN where it is empty; a decimal comma is a
    point."""
    given, limit = table[name], LIMITS[name]
    if given.dtype == object or isinstance(given.dtype, pd.StringDtype):
        given = given.str.strip().str.replace(",", ".", regex=False)
    values = pd.to_numeric(given, errors="coerce")
    wrong = (given.notna() & values.isna()) | (values.notna() & ~values.abs().le(limit))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        swapped = name == "latitude" and "longitude" in table
        raise BundleError(
            f"{path}: line {row + 2}: {name} {given.iloc[row]!r} is not within +-{limit:g} degrees "
            f"({int(wrong.sum())} such rows); "
            + ("latitude and longitude look swapped" if swapped else "mend or drop the row")
        )
    return values


def _match(table: pd.DataFrame, files: list[str], source: Path, left_out: list[tuple]) -> pd.DataFrame:
    """Rows of ``table`` with the path of their photo; rows without photo and photos without row go to
    ``left_out``."""
    wanted = table["photo"].astype(str).str.strip().str.replace("\\", "/", regex=False).str.removeprefix("./")
    paths = wanted.map(_names_of(files))
    if not paths.notna().any():
        first = one_line(wanted.iloc[0]) if len(table) else "-"
        raise BundleError(
            f"{source}: none of its {len(table):,} rows names a photo of the folder (first row: {first}; "
            f"first photo: {one_line(files[0])}); check dataset.root and the column of file names"
        )
    for row, name in wanted[paths.isna()].items():
        left_out.append((name, "", f"line {row + 2}: no such photo, or several of that name"))
    left_out += [(name, name, "no row in the table") for name in sorted(set(files) - set(paths.dropna()))]
    frame = table.assign(path=paths)[paths.notna()].drop(columns="photo")
    frame["id"] = (frame["id"] if "id" in frame else frame["path"]).astype(str)
    for name in LIMITS:
        frame[name] = (
            frame[name].astype("float64") if name in frame else np.nan
        )  # whole degrees too: EXIF may fill gaps
    return frame


def _names_of(files: list[str]) -> dict[str, str]:
    """Every name by which a row may call a file: its path, its name, its stem; a name of several files is
    none."""
    known = {}
    for of in (
        lambda path: PurePosixPath(path).stem,
        lambda path: PurePosixPath(path).name,
        lambda path: path,
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
