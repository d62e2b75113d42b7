"""The manifest: one row a photo, the same columns whatever the data set.

Columns: ``id`` (text, unique), ``path`` (relative to the data set's root), ``latitude``, ``longitude``
(degrees), ``split`` (train, validation, test, or another test split whose name begins with ``test``), then
whatever the data set adds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pyarrow import ArrowException, parquet

from lib.data.degrees import LIMITS
from lib.data.sphere import nearest
from lib.method.errors import BundleError
from lib.runs import writing
from lib.runs.files import READING_ERRORS, one_line

REQUIRED = ("id", "path", "latitude", "longitude", "split")
PLACES = ("latitude", "longitude", "split")
"""What a training or a semivariogram needs to know: of five million photos ids and paths are a gigabyte."""
OUTSIDE = r"^(?:[/\\]|[A-Za-z]:)|(?:^|[/\\])\.\.(?:[/\\]|$)"
"""Paths that are absolute or climb out of their folder."""


NO_SPLIT = "split is none of train, validation, test…"


class Built(NamedTuple):
    """What a data set's builder returns: the photos' manifest, and what it left out (columns id, path,
    reason)."""

    photos: pd.DataFrame
    left_out: pd.DataFrame


def check(manifest: pd.DataFrame, source: str, columns: Sequence[str] = REQUIRED) -> None:
    """Check that ``manifest`` has ``columns``, and coordinates, ids, splits and paths among them; messages
    name ``source``.

    Raises:
        BundleError: with the first offending row and the number of such rows.
    """
    require_columns(manifest, columns, source)
    if manifest.empty:
        raise BundleError(f"{source}: no photos; check the folder and the table it was made from")
    for name in (name for name in LIMITS if name in columns):
        limit, values = LIMITS[name], pd.to_numeric(manifest[name], errors="coerce")
        _refuse(source, manifest, ~np.isfinite(values), f"{name} is not a number")
        _refuse(
            source,
            manifest,
            values.abs() > limit,
            f"{name} is not within +-{limit:g} degrees (columns swapped?)",
        )
    if "id" in columns:
        wrong = manifest["id"].isna() | manifest["id"].duplicated()
        _refuse(source, manifest, wrong, "id is missing or used twice")
    if "split" in columns:
        _refuse(source, manifest, ~is_split(manifest["split"]), NO_SPLIT)
    if "path" in columns:
        named = manifest["path"].map(lambda path: isinstance(path, str) and path != "")
        _refuse(source, manifest, ~named, "path is missing")
        outside = manifest["path"].str.contains(OUTSIDE, regex=True)
        _refuse(source, manifest, outside, "path leaves the data set's folder")


def is_split(names: pd.Series) -> pd.Series:
    """Whether each of ``names`` is a split's, bool."""
    known = names.isin(["train", "validation", "validation_blocked"])
    return known | names.astype(str).str.startswith("test")


def require_columns(table: pd.DataFrame, columns: Sequence[str], source: str | Path) -> None:
    """Check that ``table`` has all of ``columns``; the error lists those that it has."""
    if missing := [name for name in columns if name not in table]:
        there = one_line(", ".join(map(str, table)))
        raise BundleError(f"{source}: column {missing[0]!r} is missing; there are {there}")


def _refuse(source: str, manifest: pd.DataFrame, wrong: pd.Series, sentence: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        entry = manifest.iloc[row]
        shown = {name: str(entry[name]) for name in ("id", *PLACES) if name in entry}
        raise BundleError(
            f"{source}: row {row + 1}: {sentence} ({shown}; {int(wrong.sum())} such rows); mend or drop them"
        )


def write(manifest: pd.DataFrame, path: Path) -> None:
    """Check ``manifest`` and write it to ``path`` (parquet), whole or not at all."""
    check(manifest, str(path))
    with writing(path) as aside:
        try:
            manifest.reset_index(drop=True).to_parquet(aside, index=False)
        except (ValueError, TypeError, ArrowException) as error:
            said = (
                f"a column of the photos' table cannot be kept ({one_line(error)}); drop it, or make it text"
            )
            raise BundleError(f"{path}: {said}") from error


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The table at ``path``, or those of ``columns`` that it has; its text is known to be UTF-8.

    Raises one of ``READING_ERRORS`` where it is no table.
    """
    with parquet.ParquetFile(path) as file:
        known = file.schema_arrow.names
        if twice := [name for name in dict.fromkeys(known) if known.count(name) > 1]:
            raise ValueError(f"it has two columns {twice[0]!r}")
        table = file.read(columns=None if columns is None else [name for name in columns if name in known])
    table.validate(full=True)
    return table.to_pandas()


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """The table at ``path``, read with pandas' ``options``.

    Raises one of ``READING_ERRORS`` where it is no table, or its rows have more fields than its header has
    names: pandas would take the first field for the row's name, and shift all others.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(path, index_col=False, **options)
        except pd.errors.ParserWarning as error:
            raise ValueError(
                "its rows have more fields than its header has names; name every column"
            ) from error


def read_table(path: Path) -> pd.DataFrame:
    """A table of a run: "NA" is a continent or a country there, and an empty cell is nothing."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def read(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The checked manifest at ``path``, or ``columns`` of it.

    Raises:
        BundleError: it cannot be read, or not be used.
    """
    try:
        manifest = read_parquet(path, columns)
    except READING_ERRORS as error:
        raise BundleError(
            f"{path}: cannot be read as a manifest ({one_line(error)}); run notebook 01 again"
        ) from error
    check(manifest, str(path), columns or REQUIRED)
    return manifest


def coordinates(manifest: pd.DataFrame) -> np.ndarray:
    """Latitude and longitude in degrees, float64 [N, 2]."""
    return manifest[["latitude", "longitude"]].to_numpy(np.float64, copy=True)


def rows_of(manifest: pd.DataFrame, split: str) -> np.ndarray:
    """Row numbers of a split, int64 [n].

    Raises:
        BundleError: the split has no photos.
    """
    rows = np.flatnonzero(manifest["split"] == split)
    if len(rows) == 0:
        splits = ", ".join(sorted(manifest["split"].unique()))
        raise BundleError(f"split {split!r} has no photos; the manifest has {splits}")
    return rows


def summary(manifest: pd.DataFrame) -> pd.DataFrame:
    """One row a split: photos, range of latitudes and longitudes, countries, photos that share a place with
    another."""
    shared = manifest.duplicated(["latitude", "longitude"], keep=False)
    grouped = manifest.assign(shared=shared).groupby("split", sort=False)
    frame = grouped.agg(
        photos=("id", "size"),
        south=("latitude", "min"),
        north=("latitude", "max"),
        west=("longitude", "min"),
        east=("longitude", "max"),
        sharing_a_place=("shared", "sum"),
    )
    return frame.join(grouped["country"].nunique().rename("countries")) if "country" in manifest else frame


def nearest_training_km(manifest: pd.DataFrame) -> pd.DataFrame:
    """Distance of every photo to the nearest (other) training photo, columns split, nearest_km."""
    train = coordinates(manifest)[rows_of(manifest, "train")]
    frames = []
    for split, frame in manifest.groupby("split", sort=False):
        _, distance = nearest(coordinates(frame), train, rank=2 if split == "train" else 1)
        frames.append(pd.DataFrame({"split": split, "nearest_km": distance}))
    return pd.concat(frames, ignore_index=True)
