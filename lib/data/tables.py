"""Tables with places: the one reader of a folder's table, of a gallery, and of an exported release.

A table is a CSV in UTF-8 (comma, semicolon, tab or bar; with or without byte-order mark) or a parquet file.
Latitude and longitude are one column each of signed decimal degrees. Whatever else is found is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import parquet

from lib.method.errors import BundleError
from lib.method.geodesy import check_degrees
from lib.runs.files import READING_ERRORS, one_line

LIMITS = {"latitude": 90.0, "longitude": 180.0}
"""Of degrees."""
COLUMN_NAMES = {
    "latitude": ("latitude", "lat", "gpslatitude", "gtlat", "decimallatitude"),
    "longitude": ("longitude", "lon", "lng", "long", "gpslongitude", "gtlon", "decimallongitude"),
    "photo": (
        "path", "file", "filename", "filepath", "sourcefile", "image", "imagepath", "imagename", "imgpath",
        "img", "imgid", "imageid", "photo", "photoid", "id", "key", "name", "uuid",
    ),
    "id": ("id", "imgid", "imageid", "uuid"),
    "split": ("split", "subset"),
}  # fmt: skip
"""Our name -> the usual names, in small letters, without spaces and underscores."""
PARTS = r"(?:ref|hem\w*|dir\w*|ns|ew|m|min\w*|s|sec\w*|\.\d+)"
"""How a second column of one coordinate goes on after its name: its hemisphere, minutes or seconds."""
HEMISPHERES = r"n/?s|e/?w|.*hemisphere.*"
NOTHING = ("", "na", "n/a", "nan", "null", "none", "-", "--", r"\n")
"""What stands in a cell, in lower case, where there is no number."""
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"


@dataclass
class Table:
    """A table and where it is from."""

    frame: pd.DataFrame
    path: Path | str

    def refuse(self, wrong: pd.Series, column: str, sentence: str) -> None:
        """Raise a BundleError with the first ``wrong`` row (counted from 1, without the header), its value,
        and the number of such rows."""
        if wrong.any():
            label, many = wrong.idxmax(), f"{int(wrong.sum()):,} such rows"
            value = self.frame[column][label]
            said = f"{column} {one_line(repr(value) if isinstance(value, str) else value)} {sentence}"
            raise BundleError(f"{self.path}: row {label + 1}: {said} ({many}); mend or drop them")


def read(path: Path, columns: Sequence[str] = tuple(LIMITS), *, gaps: bool = False) -> Table:
    """The table at ``path`` with ``columns`` of ``COLUMN_NAMES``, coordinates as float64 and checked.

    Id and split may be missing; with ``gaps`` cells of latitude and longitude may be empty (NaN).
    BundleError: no table, no rows, columns that are missing or doubled, or a row that is no place.
    """
    if not path.is_file():
        raise BundleError(f"{path}: no such table; name a CSV or parquet file")
    try:
        given = read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except (*READING_ERRORS, pd.errors.ParserWarning) as error:
        why = f"cannot be read as a table ({one_line(error)}); save it as CSV in UTF-8, or as parquet"
        raise BundleError(f"{path}: {why}") from error
    found = _find(list(map(str, given)), columns, path)
    if given.empty:
        raise BundleError(f"{path}: the table has no rows")
    ours = pd.DataFrame({name: given[column] for name, column in found.items()})
    table = Table(ours.join(given.drop(columns=[*found.values(), *COLUMN_NAMES], errors="ignore")), path)
    table.frame[list(LIMITS)] = places(table, gaps=gaps)
    return table


def places(table: Table, *, gaps: bool = False) -> pd.DataFrame:
    """Latitude and longitude of ``table`` as float64 degrees; NaN where a cell is empty and ``gaps`` may be.
    BundleError: a value is no number or beyond its limit, all places are radians, or they are float16."""
    if np.float16 in {table.frame[name].dtype.type for name in LIMITS}:
        raise BundleError(
            f"{table.path}: coordinates in float16 are off by up to 7 km; take them from the source"
        )
    found = pd.DataFrame({name: numbers(table.frame[name]) for name in LIMITS})
    for name, limit in LIMITS.items():
        wrong = np.isinf(found[name]) | (found[name].isna() & (not gaps))
        table.refuse(wrong, name, "is no signed decimal number of degrees, such as -33.86")
        beyond = found[name].abs() > limit
        hint = ", columns swapped?" if found[name][beyond].abs().max() <= LIMITS["longitude"] else ""
        table.refuse(beyond, name, f"is not within +-{limit:g} degrees{hint}")
    try:
        check_degrees(found.dropna().to_numpy())
    except BundleError as error:
        raise BundleError(f"{table.path}: {error}") from error
    return found


def numbers(cells: pd.Series) -> pd.Series:
    """Cells as float64: NaN where one is empty, infinite where it is no decimal number."""
    if pd.api.types.is_numeric_dtype(cells) and not pd.api.types.is_bool_dtype(cells):
        return pd.Series(cells.to_numpy(np.float64, na_value=np.nan), cells.index)
    text = cells.astype(object).where(cells.notna(), "").map(str).str.strip().str.lower()
    is_number = text.str.fullmatch(NUMBER).astype(bool)
    values = text.where(is_number, "nan").astype(np.float64)
    return values.where(is_number | text.isin(NOTHING), np.inf)


def _read_csv(path: Path) -> pd.DataFrame:
    """The table as it is, all cells as text. Raises one of ``READING_ERRORS``, or a ParserWarning where rows
    have more fields than the header has names: decimal commas would shift them."""
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
    options = {"encoding": "utf-8-sig", "dtype": str, "keep_default_na": False, "na_values": [""]}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(path, sep=max(",;\t|", key=first.count), index_col=False, **options)


def _find(header: list[str], columns: Sequence[str], path: Path) -> dict[str, str]:
    """Our name -> its column. BundleError: a column is missing, or there are two for one thing."""
    found, why = {}, ""
    for ours in columns:
        named = _named(header, ours)
        if len(named) > 1:
            why = why or f"two columns for the {ours}, {one_line(named[0])} and {one_line(named[1])}"
        elif named:
            found[ours] = named[0]
        elif ours not in {"id", "split"}:
            why = why or f"no column for the {ours} ({', '.join(COLUMN_NAMES[ours][:5])}…)"
    if why:
        form = "latitude and longitude are one column each of signed decimal degrees, such as -33.86"
        raise BundleError(f"{path}: {why}; it has {one_line(', '.join(header))}; {form}")
    return found


def _named(header: list[str], ours: str) -> list[str]:
    """Columns of ``header`` for ``ours``, of several names of photos the first in ``COLUMN_NAMES``; then
    those for parts of a coordinate."""
    known = COLUMN_NAMES[ours]
    plain = [re.sub(r"[\s_]", "", column).lower() for column in header]
    first = next((name for name in known if name in plain), None)
    allowed = {first} if ours in {"photo", "id"} else set(known)
    parts = re.compile(rf"(?:\w+:)?(?:{'|'.join(known)}){PARTS}|{HEMISPHERES}")
    whole = [column for column, name in zip(header, plain, strict=True) if name in allowed]
    rest = [column for column, name in zip(header, plain, strict=True) if parts.fullmatch(name)]
    return whole + (rest if whole and ours in LIMITS else [])


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The table at ``path``, its index as columns, or ``columns`` of it. Raises one of ``READING_ERRORS``."""
    with parquet.ParquetFile(path) as file:
        table = file.read(columns)
    table.validate(full=True)
    return table.to_pandas(ignore_metadata=True)
