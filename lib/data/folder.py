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
import itertools
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from lib.data import degrees
from lib.data.degrees import LIMITS
from lib.data.manifest import NO_SPLIT, Built, is_split, read_csv, read_parquet
from lib.data.photos import ENDINGS, NOT_READ, exif_coordinates, not_read
from lib.method.errors import BundleError
from lib.runs import note, progress
from lib.runs.files import READING_ERRORS, one_line
from lib.settings import PROJECT, Folder

PARQUET = "parquet"
NO_TABLES = {
    b"PK\x03\x04": "an Excel workbook or another archive", b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"SQLite format 3": "a GeoPackage or another SQLite file", b"{": "JSON", b"[": "JSON",
    b"<": "KML, GPX or another page of markup", b"\x03": "a dBASE file", b"PAR1": PARQUET,
    b"%PDF": "a PDF", b"\x1f\x8b": "compressed by gzip",
}  # fmt: skip
"""How files that are no tables begin."""
COLUMN_NAMES = {
    "latitude": (
        "latitude", "lat", "gpslatitude", "gpslat", "gtlat", "decimallatitude", "latitudedecimal",
        "declat", "latdd", "latdec", "latdeg", "latitudedeg", "geolatitude", "geolat", "pointy", "ycoord",
    ),
    "longitude": (
        "longitude", "lon", "lng", "long", "gpslongitude", "gpslon", "gpslng", "gtlon", "decimallongitude",
        "longitudedecimal", "declon", "declong", "londd", "longdd", "londec", "longdec", "londeg",
        "longdeg", "longitudedeg", "geolongitude", "geolon", "geolng", "pointx", "xcoord",
    ),
    "photo": (
        "path", "file", "filename", "filepath", "sourcefile", "image", "imagepath", "imagefile",
        "imagename", "imgpath", "img", "imgname", "imgid", "imageid", "photo", "photopath", "photoid",
        "picture", "id", "key", "name",
    ),
    "id": ("id", "imgid", "imageid", "uuid"),
    "split": ("split", "subset"),
}  # fmt: skip
"""Our name -> the names that photo, GIS and biodiversity tools use, as :func:`_plain` has them."""
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
    left_out: list[tuple] = []
    files = sorted(files_below(root, left_out))
    sizes = _sizes(files, root)
    for name in [name for name in sizes if not _is_text(name)]:
        del sizes[name]
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        left_out.append((shown, shown, "its name is not UTF-8: rename it"))
    others = [path for path in files if path.suffix.lower() in NOT_READ]
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
        photos = _match(_read_table(PROJECT / settings.csv), list(sizes), left_out)
    photos = _with_splits(_with_exif(photos, root, left_out), settings)
    photos = photos.assign(bytes=photos["path"].map(sizes).to_numpy())
    return Built(photos, pd.DataFrame(left_out, columns=["id", "path", "reason"]))


def photo_sizes(root: Path) -> dict[str, int]:
    """Path below ``root`` and size in bytes of every photo, in order of the paths: by these a changed folder
    is noticed."""
    return _sizes(sorted(files_below(root)), root)


def _sizes(files: list[Path], root: Path) -> dict[str, int]:
    photos = (path for path in files if path.suffix.lower() in ENDINGS)
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in photos}


def files_below(root: Path, left_out: list[tuple] | None = None) -> Iterator[Path]:
    """Every file at any depth, links followed, each folder once; ``left_out`` gets what cannot be opened."""
    lost, seen = [] if left_out is None else left_out, set()

    def lose(path: Path, why: str) -> None:
        name = path.relative_to(root).as_posix()
        lost.append((name, name, why))

    waiting = [root]
    while waiting:  # links wait until every folder has been seen: a photo has the path without them
        for folder, inside, names in os.walk(
            waiting.pop(0),
            onerror=lambda error: lose(Path(error.filename), f"the folder is closed: {error.strerror}"),
        ):
            if (real := os.path.realpath(folder)) in seen:
                inside.clear()
                continue
            seen.add(real)
            waiting += [path for name in sorted(inside) if (path := Path(folder, name)).is_symlink()]
            for path in (Path(folder, name) for name in names):
                if path.is_file():
                    yield path
                elif path.suffix.lower() in ENDINGS:
                    lose(path, "is a link that leads nowhere")


def _is_text(name: str) -> bool:
    """Whether a file's name can be written into a table: on Linux it may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass
class _Table:
    """A table under our column names, its file, and what :func:`_head` says of a CSV (parquet: None)."""

    frame: pd.DataFrame
    path: Path
    head: tuple[int, str] | None

    def row(self, number: int) -> str:
        """How a message calls the row ``number``, counted from 0."""
        return f"row {number + 1}" if self.head is None else f"line {self._lines[number]}"

    @cached_property
    def _lines(self) -> list[int]:
        return lines_of_rows(self.path, *self.head)


def _read_table(path: Path) -> _Table:
    """The table at ``path``; coordinates as numbers, checked; everything else as it is."""
    if not path.is_file():
        raise BundleError(
            f"{path}: no such table; set dataset.csv to a CSV or parquet file, or to null for EXIF"
        )
    head = None
    try:
        _refuse_other_formats(path)
        if path.suffix.lower() == ".parquet":
            table = read_parquet(path)
            table = table.reset_index(drop=table.index.name is None)
        else:
            before, delimiter = head = _head(path)
            table = read_csv(
                path, sep=delimiter, skiprows=before, encoding="utf-8-sig", dtype=str,
                keep_default_na=False, na_values=[""],
            )  # fmt: skip
            _refuse_doubled(path, table, before, delimiter)
    except READING_ERRORS as error:
        sentence = f"cannot be read as a table ({one_line(error)}); save it as UTF-8 CSV or parquet"
        raise BundleError(f"{path}: {sentence}") from error
    frame, references = _renamed(table, path)
    read = _Table(frame, path, head)
    for name in LIMITS:
        frame[name] = _degrees(read, name, references[name])
        _refuse_contradictions(read, name, table)
    if nowhere := int((frame[list(LIMITS)] == 0.0).all(axis=1).sum()):
        note(f"{path}: {nowhere:,} rows lie at exactly 0, 0; they are kept: drop them if that is no place")
    return read


def _refuse_other_formats(path: Path) -> None:
    """Say what a table is that is no CSV or parquet, whatever its name.

    Raises:
        BundleError: it is one of ``NO_TABLES``.
    """
    with path.open("rb") as file:
        begin = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    parquet = path.suffix.lower() == ".parquet"
    for first, kind in NO_TABLES.items():
        if begin.startswith(first) and not (parquet and kind == PARQUET):
            mend = "name it .parquet" if kind == PARQUET else "export it as CSV: path, latitude, longitude"
            raise BundleError(f"{path}: is {kind}, no CSV; {mend}")


def _head(path: Path) -> tuple[int, str]:
    """How many lines stand before the header (Excel's ``sep=;``, comments), and the delimiter."""
    before, delimiter = 0, None
    with path.open(encoding="utf-8-sig", newline="") as file:
        for line in file:
            if before == 0 and (said := line.strip().strip('"').lower()).startswith("sep="):
                delimiter = said[4:5] or ","
            elif line.strip() and not line.startswith("#"):
                break
            before += 1
        else:
            line = ""
    try:
        return before, delimiter or csv.Sniffer().sniff(line, delimiters=",;\t|").delimiter
    except csv.Error:
        return before, ","


def lines_of_rows(path: Path, before: int, delimiter: str) -> list[int]:
    """The line, from 1, in which each row of a CSV begins: blank lines are no rows, a row may have many."""
    found = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        for _ in range(before):
            file.readline()
        reader = csv.reader(file, delimiter=delimiter)
        begins = before + 1
        for cells in reader:
            if len(cells) > 1 or "".join(cells).strip():
                found.append(begins)
            begins = before + reader.line_num + 1
    return found[1:]


def _refuse_doubled(path: Path, table: pd.DataFrame, before: int, delimiter: str) -> None:
    """Raise a BundleError where two columns that we read have one name in the file and differ.

    pandas calls the second of a name ``name.1``.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(itertools.islice(file, before, None), delimiter=delimiter)
        names = next((cells for cells in rows if "".join(cells).strip()), [])
    read = {name for of in COLUMN_NAMES.values() for name in of}
    for name, count in Counter(names).items():
        twins = [f"{name}.{number}" for number in range(1, count)] if _plain(name) in read else []
        if any(not table[twin].equals(table[name]) for twin in twins if twin in table):
            raise BundleError(f"{path}: two columns {name!r} differ; drop or rename one")


def _plain(name: object) -> str:
    """A column's name in small letters and digits, without group and unit: ``EXIF:GPSLatitude (deg)``."""
    text = re.sub(r"[(\[].*?[)\]]", "", str(name)).strip(" .:").lower()
    return re.sub(r"[^a-z0-9]", "", re.split(r"[:./]", text)[-1])


def _renamed(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, dict[str, pd.Series | None]]:
    """``table`` with the columns photo, id, latitude, longitude, split under these names, where it has them;
    and the columns of hemispheres."""
    plain = {_plain(name): name for name in reversed(table.columns)}
    found = {
        ours: next((plain[name] for name in names if name in plain), None)
        for ours, names in COLUMN_NAMES.items()
    }
    there = one_line(", ".join(map(str, table)))
    for ours, what in (("photo", "the photos"), ("latitude", "latitudes"), ("longitude", "longitudes")):
        if found[ours] is None:
            known = ", ".join(COLUMN_NAMES[ours][:6])
            raise BundleError(
                f"{path}: no column names {what}; it has {there}; call it one of {known}"
                + ("" if ours == "photo" else ", and leave it empty where EXIF knows the place")
            )
    chosen = pd.DataFrame({ours: table[name] for ours, name in found.items() if name is not None})
    references = {name: table.get(plain.get(f"{_plain(found[name])}ref", "")) for name in LIMITS}
    rest = [name for name in table if name not in found.values() and str(name) not in {*COLUMN_NAMES, "path"}]
    return pd.concat([chosen, table[rest]], axis=1), references


def _degrees(table: _Table, name: str, references: pd.Series | None) -> pd.Series:
    """The column ``name`` (latitude or longitude) as numbers, NaN where it is empty."""
    given = table.frame[name]
    values = degrees.of_column(given, name, references)
    wrong = np.isinf(values).to_numpy()
    if wrong.any():
        row, limit = int(np.flatnonzero(wrong)[0]), LIMITS[name]
        number = degrees.of_cell(given.iloc[row], name)
        unsaid = references is not None and np.isnan(degrees.hemisphere(references.iloc[row], name))
        if abs(number) <= limit and unsaid:
            letters = "N or S" if name == "latitude" else "E or W"
            said, mend = (
                f"has no known hemisphere beside it ({references.iloc[row]})",
                f"write {letters} there",
            )
        elif abs(number) <= limit:
            said, mend = f"contradicts its hemisphere, {references.iloc[row]}", "drop the sign or the column"
        elif np.isinf(number):
            said, mend = "is no number of degrees", "write it as a decimal number, such as -33.86"
        elif name == "latitude" and abs(number) <= LIMITS["longitude"]:
            said, mend = f"is not within +-{limit:g} degrees", "latitude and longitude look swapped"
        elif name == "longitude" and limit < number <= 2 * limit:
            said, mend = f"is not within +-{limit:g} degrees", "subtract 360 from longitudes above 180"
        else:
            said, mend = f"is not within +-{limit:g} degrees", "mend or drop the row"
        shown = one_line(repr(given.iloc[row]))
        raise BundleError(
            f"{table.path}: {table.row(row)}: {name} {shown} {said} ({int(wrong.sum())} such rows); {mend}"
        )
    return values


def _refuse_contradictions(table: _Table, name: str, given: pd.DataFrame) -> None:
    """Stop where two columns of ``given`` are latitudes, or longitudes, and are not the same; one may be
    without its sign, as exiftool writes it.

    Raises:
        BundleError: they are not.
    """
    columns = [one for one in given if _plain(one) in COLUMN_NAMES[name]]
    ours = table.frame[name].to_numpy(dtype=float)
    for column in columns if len(columns) > 1 else ():
        other = degrees.of_column(given[column], name, None).to_numpy(dtype=float)
        apart = np.minimum(np.abs(ours - other), np.abs(np.abs(ours) - other)) > 1e-3
        if apart.any():
            row = int(apart.argmax())
            shown = one_line(f"column {column} says {given[column].iloc[row]}")
            raise BundleError(
                f"{table.path}: {table.row(row)}: {shown} where another says {name} {ours[row]:.6g} "
                f"({int(apart.sum())} such rows); drop one of the columns"
            )


def _as_text(values: pd.Series) -> pd.Series:
    """Names or ids as text, in Unicode's composed form: whole numbers have no point, none is empty."""
    if pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")
    text = values.astype(object).where(values.notna(), "").map(str)
    return text.map(_composed)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _match(table: _Table, files: list[str], left_out: list[tuple]) -> pd.DataFrame:
    """Rows of ``table`` with the path of their photo; rows without photo and photos without row go to
    ``left_out``."""
    frame, source = table.frame, table.path
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
        left_out.append((name, "", f"{table.row(number)}: {why}"))
    left_out += [(name, name, "no row in the table") for name in sorted(set(files) - set(paths.dropna()))]
    frame = frame.assign(path=paths)[paths.notna()].drop(columns="photo")
    frame = _once_each(frame, table, left_out)
    frame["id"] = _as_text(frame["id"]) if "id" in frame else frame["path"]
    _refuse_rows(table, frame["id"].duplicated(), frame["id"], "id is used twice")
    if "split" in frame:
        frame["split"] = frame["split"].astype(str).str.strip().str.lower().replace(SPLIT_NAMES)
        _refuse_rows(table, ~is_split(frame["split"]), frame["split"], NO_SPLIT)
    return frame


def _refuse_rows(table: _Table, wrong: pd.Series, shown: pd.Series, sentence: str) -> None:
    """Raise a BundleError that names the line of the first row that is ``wrong``."""
    if wrong.any():
        first, many = wrong.idxmax(), f"{int(wrong.sum())} such rows"
        value = one_line(repr(shown[first]))
        raise BundleError(
            f"{table.path}: {table.row(first)}: {sentence} ({value}; {many}); mend or drop them"
        )


def _once_each(frame: pd.DataFrame, table: _Table, left_out: list[tuple]) -> pd.DataFrame:
    """``frame`` with one row a photo: rows that agree, or are silent, count once; with two places it is left
    out.

    Raises:
        BundleError: none has one place.
    """
    again, differs = frame.duplicated("path", keep=False), []
    if not again.any():
        return frame
    for path, rows in frame[again].groupby("path"):
        first, *others = map(table.row, rows.index)
        if (rows[list(LIMITS)].nunique() > 1).any():
            differs.append((path, path, f"{first} and {others[0]} differ in its place"))
        else:
            left_out += [(path, path, f"{other}: is in {first} already") for other in others]
    left_out += differs
    frame[list(LIMITS)] = frame.groupby("path")[list(LIMITS)].transform("first")
    once = frame[~frame["path"].isin([path for path, *_ in differs])].drop_duplicates("path")
    if once.empty:
        raise BundleError(f"{table.path}: no photo has one place ({differs[0][0]}: {differs[0][2]})")
    return once


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
        return photos
    order = np.random.default_rng(settings.seed).permutation(len(photos))
    test, validation = (
        round(settings.test_share * len(photos)),
        round(settings.validation_share * len(photos)),
    )
    split = np.full(len(photos), "train", dtype=object)
    split[order[:test]], split[order[test : test + validation]] = "test", "validation"
    return photos.assign(split=split)
