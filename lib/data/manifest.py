"""The manifest: one row a photo, the same columns whatever the data set.

Columns: ``id`` (text, unique), ``path`` (relative to the data set's root), ``latitude``, ``longitude``
(degrees), ``split`` (train, validation, test, or another test split whose name begins with ``test``), then
whatever the data set adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from lib.data import tables
from lib.data.sphere import nearest
from lib.data.tables import Table
from lib.method.errors import BundleError
from lib.runs import writing
from lib.runs.files import one_line
from lib.settings import NO_FILE_NAME, is_file_name

REQUIRED = ("id", "path", "latitude", "longitude", "split")
PLACES = ("latitude", "longitude", "split")
"""What a training or a semivariogram needs to know: of five million photos ids and paths are a gigabyte."""
OUTSIDE = r"^(?:[/\\]|[A-Za-z]:)|(?:^|[/\\])\.\.(?:[/\\]|$)"
"""Paths that are absolute or climb out of their folder."""


class Built(NamedTuple):
    """What a data set's builder returns: the manifest, and what was left out (columns id, path, reason)."""

    photos: pd.DataFrame
    left_out: pd.DataFrame


def check(manifest: pd.DataFrame, source: str) -> None:
    """Check columns, coordinates, ids, splits and paths; a BundleError names ``source``, the first wrong row
    and the number of such rows."""
    require_columns(manifest, REQUIRED, source)
    if manifest.empty:
        raise BundleError(f"{source}: no photos; check the folder and the table it was made from")
    table, paths = Table(manifest.reset_index(drop=True), source), manifest["path"].reset_index(drop=True)
    tables.places(table)
    refuse_ids(table)
    refuse_splits(table)
    table.refuse(~paths.map(lambda path: isinstance(path, str) and path != ""), "path", "is no path")
    table.refuse(paths.str.contains(OUTSIDE, regex=True), "path", "leaves the data set's folder")


def refuse_ids(table: Table) -> None:
    """Raise a BundleError where an id of ``table`` is missing or used twice."""
    ids = table.frame["id"]
    table.refuse(ids.isna() | (ids == "") | ids.duplicated(), "id", "is missing or used twice")


def refuse_splits(table: Table) -> None:
    """Raise a BundleError where a row of ``table`` is in no split that stages know, or whose name is none."""
    names = table.frame["split"].astype(str)
    known = names.isin(["train", "validation", "validation_blocked"]) | names.str.startswith("test")
    table.refuse(~known, "split", "is none of train, validation, test…")
    table.refuse(~names.map(is_file_name), "split", NO_FILE_NAME)


def require_columns(table: pd.DataFrame, columns: Sequence[str], source: str | Path) -> None:
    """Check that ``table`` has all of ``columns``; the error lists those that it has."""
    if missing := [name for name in columns if name not in table]:
        there = one_line(", ".join(map(str, table)))
        raise BundleError(f"{source}: column {missing[0]!r} is missing; there are {there}")


def write(manifest: pd.DataFrame, path: Path) -> None:
    """Write ``manifest`` to ``path`` (parquet), whole or not at all."""
    with writing(path) as aside:
        manifest.reset_index(drop=True).to_parquet(aside, index=False)


def read_table(path: Path) -> pd.DataFrame:
    """A table of a run: "NA" is a continent or a country there, and an empty cell is nothing."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def read(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The manifest at ``path``, or ``columns`` of it."""
    return tables.read_parquet(path, columns)


def coordinates(manifest: pd.DataFrame) -> np.ndarray:
    """Latitude and longitude in degrees, float64 [N, 2]."""
    return manifest[["latitude", "longitude"]].to_numpy(np.float64, copy=True)


def rows_of(manifest: pd.DataFrame, split: str) -> np.ndarray:
    """Row numbers of a split, int64 [n]. BundleError: the split has no photos."""
    rows = np.flatnonzero(manifest["split"] == split)
    if len(rows) == 0:
        splits = ", ".join(sorted(manifest["split"].unique()))
        raise BundleError(f"split {split!r} has no photos; the manifest has {splits}")
    return rows


def summary(manifest: pd.DataFrame) -> pd.DataFrame:
    """One row a split: photos, range of latitudes and longitudes, photos that share a place with another,
    countries."""
    shared = manifest.duplicated(["latitude", "longitude"], keep=False)
    grouped = manifest.assign(shared=shared).groupby("split", sort=False)
    frame = grouped.agg(
        photos=("id", "size"), south=("latitude", "min"), north=("latitude", "max"),
        west=("longitude", "min"), east=("longitude", "max"), sharing_a_place=("shared", "sum"),
    )  # fmt: skip
    return frame.join(grouped["country"].nunique().rename("countries")) if "country" in manifest else frame


def nearest_training_km(manifest: pd.DataFrame) -> pd.DataFrame:
    """Distance of every photo to the nearest (other) training photo, columns split, nearest_km."""
    train = coordinates(manifest)[rows_of(manifest, "train")]
    frames = []
    for split, frame in manifest.groupby("split", sort=False):
        _, distance = nearest(coordinates(frame), train, rank=2 if split == "train" else 1)
        frames.append(pd.DataFrame({"split": split, "nearest_km": distance}))
    return pd.concat(frames, ignore_index=True)
