"""Tables with places: the one reader of a folder's table, of a gallery, and of an exported release.

A table is a CSV in UTF-8 (comma, semicolon, tab or bar; with or without byte-order mark) or a parquet file.
Latitude and longitude are one column each of signed decimal degrees. Whatever else is found is refused.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow import parquet

from lib.method.errors import BundleError
from lib.method.geodesy import check_degrees, check_precision
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
    """A table, and how messages call its rows: by the line of a CSV, else by their number."""

    frame: pd.DataFrame
    path: Path | str
    delimiter: str | None = None
    """Of a CSV."""

    def row(self, label: int) -> str:
        """What a message calls the row with ``label``, counted from 0 over the whole table."""
        return f"row {label + 1}" if self.delimiter is None else f"line {self._lines[label]}"

    def refuse(self, wrong: pd.Series, column: str, sentence: str) -> None:
        """Raise a BundleError with the first ``wrong`` row, its value, and the number of such rows."""
        if wrong.any():
            label, many = wrong.idxmax(), f"{int(wrong.sum()):,} such rows"
            value = self.frame[column][label]
            said = f"{column} {one_line(repr(value) if isinstance(value, str) else value)} {sentence}"
            raise BundleError(f"{self.path}: {self.row(label)}: {said} ({many}); mend or drop them")

    @cached_property
    def _lines(self) -> list[int]:
        return [line for line, _ in _rows(Path(self.path), self.delimiter or ",")][1:]


def read(path: Path, columns: Sequence[str] = tuple(LIMITS), *, gaps: bool = False) -> Table:
    """The table at ``path`` with ``columns`` of ``COLUMN_NAMES``, coordinates as float64 and checked.

    Id and split may be missing; with ``gaps`` cells of latitude and longitude may be empty (NaN).
    BundleError: no table, no rows, columns that are missing or doubled, or a row that is no place.
    """
    if not path.is_file():
        raise BundleError(f"{path}: no such table; name a CSV or parquet file")
    try:
        given, header, delimiter = _read_file(path)
    except (*READING_ERRORS, csv.Error) as error:
        why = f"cannot be read as a table ({one_line(error)}); save it as CSV in UTF-8, or as parquet"
        raise BundleError(f"{path}: {why}") from error
    found = _find(header, columns, path)
    if given.empty:
        raise BundleError(f"{path}: the table has no rows")
    ours = pd.DataFrame({name: given[column] for name, column in found.items()})
    taken = {*map(str, found.values()), *COLUMN_NAMES}
    table = Table(ours.join(given[[name for name in given if str(name) not in taken]]), path, delimiter)
    table.frame[list(LIMITS)] = places(table, gaps=gaps)
    return table


def places(table: Table, *, gaps: bool = False) -> pd.DataFrame:
    """Latitude and longitude of ``table`` as float64 degrees; NaN where a cell is empty and ``gaps`` may be.
    BundleError: a value is no number or beyond its limit, all places are radians, or they are float16."""
    found = pd.DataFrame({name: numbers(table.frame[name]) for name in LIMITS})
    for name, limit in LIMITS.items():
        wrong = np.isinf(found[name]) | (found[name].isna() & (not gaps))
        table.refuse(wrong, name, "is no signed decimal number of degrees, such as -33.86")
        beyond = found[name].abs() > limit
        hint = ", columns swapped?" if found[name][beyond].abs().max() <= LIMITS["longitude"] else ""
        table.refuse(beyond, name, f"is not within +-{limit:g} degrees{hint}")
    try:
        for name in LIMITS:
            check_precision(table.frame[name])
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


def _read_file(path: Path) -> tuple[pd.DataFrame, list[Hashable], str | None]:
    """The table as it is, all cells of a CSV as text; its column names; a CSV's delimiter."""
    if path.suffix.lower() == ".parquet":
        table = read_parquet(path)
        if named := [name for name in table.index.names if name is not None]:
            table = table.reset_index(level=named)
        return table.reset_index(drop=True), list(table), None
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = next((line for line in file if line.strip()), "")
    if "\0" in first:
        raise ValueError("it is no text")
    delimiter = max(",;\t|", key=first.count)
    _, header = next(_rows(path, delimiter), (1, []))
    options = {"encoding": "utf-8-sig", "dtype": str, "keep_default_na": False, "na_values": [""]}
    return read_csv(path, sep=delimiter, **options), header, delimiter


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """First line, from 1, and cells of each row of a CSV, the header among them; blank lines are no rows."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader, begins = csv.reader(file, delimiter=delimiter), 1
        for cells in reader:
            if len(cells) > 1 or "".join(cells).strip():
                yield begins, cells
            begins = reader.line_num + 1


def _find(header: Sequence[Hashable], columns: Sequence[str], path: Path) -> dict[str, Hashable]:
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
        raise BundleError(f"{path}: {why}; it has {one_line(', '.join(map(str, header)))}; {form}")
    return found


def _named(header: Sequence[Hashable], ours: str) -> list[Hashable]:
    """Columns of ``header`` for ``ours``, of several names of photos the first in ``COLUMN_NAMES``; then
    those for parts of a coordinate."""
    known = COLUMN_NAMES[ours]
    plain = [re.sub(r"[\s_]", "", str(column)).lower() for column in header]
    first = next((name for name in known if name in plain), None)
    allowed = {first} if ours in {"photo", "id"} else set(known)
    parts = re.compile(rf"(?:\w+:)?(?:{'|'.join(known)}){PARTS}|{HEMISPHERES}")
    whole = [column for column, name in zip(header, plain, strict=True) if name in allowed]
    rest = [column for column, name in zip(header, plain, strict=True) if parts.fullmatch(name)]
    return whole + (rest if whole and ours in LIMITS else [])


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The table at ``path``, or those of ``columns`` that it has. Raises one of ``READING_ERRORS``."""
    with parquet.ParquetFile(path) as file:
        known = file.schema_arrow.names
        if twice := [name for name in dict.fromkeys(known) if known.count(name) > 1]:
            raise ValueError(f"it has two columns {twice[0]!r}")
        table = file.read(columns=None if columns is None else [name for name in columns if name in known])
    table.validate(full=True)
    return table.to_pandas()


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """The table at ``path``, read with pandas' ``options``. Raises one of ``READING_ERRORS``, also where rows
    have more fields than the header has names: pandas would shift them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(path, index_col=False, **options)
        except pd.errors.ParserWarning as error:
            raise ValueError("its rows have more fields than its header has names; name them all") from error
