"""A folder of photos: with a table of coordinates, with GPS in the photos' EXIF, or both.

:mod:`lib.data.tables` reads the table. A photo is found by its path below the root, its file name, or its
file name without the ending. Where the table has no coordinates for a photo, EXIF is asked. What cannot be
used is left out and listed with the reason; what is wrong stops with the line and the mend.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from lib.data import tables
from lib.data.manifest import Built, refuse_ids, refuse_splits
from lib.data.photos import ENDINGS, exif_coordinates
from lib.data.tables import LIMITS, Table
from lib.method.errors import BundleError
from lib.runs import progress
from lib.runs.files import one_line
from lib.runs.machine import note
from lib.settings import PROJECT, Folder

SPLIT_NAMES = {"training": "train", "val": "validation", "valid": "validation"}


def obtain(settings: Folder, root: Path) -> None:
    """Nothing: one's own photos are where they are. BundleError: they are not there (any more)."""
    if not root.is_dir():
        raise BundleError(f"{root}: no such folder; set dataset.root to the folder that holds the photos")


def listing(settings: Folder, root: Path) -> str:
    """Digest of the photos' paths and sizes: one that is added, removed or replaced is noticed."""
    return hashlib.sha256(json.dumps(_sizes(photos_below(root), root)).encode()).hexdigest()


def build(settings: Folder, root: Path) -> Built:
    """The manifest of the photos under ``root`` and what was left out of it.

    BundleError: no photos; a table that cannot be read, lacks a column, or has an impossible coordinate.
    """
    left_out: list[tuple] = []
    sizes = _sizes(photos_below(root, left_out), root)
    for name in [name for name in sizes if name != name.encode(errors="ignore").decode()]:
        del sizes[name]  # on Linux a name may be any bytes
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        left_out.append((shown, shown, "its name is not UTF-8: rename it"))
    if not sizes:
        raise BundleError(f"{root}: no photos in it ({', '.join(sorted(ENDINGS))}); check dataset.root")
    if settings.csv is None:
        photos = pd.DataFrame({"id": list(sizes), "path": list(sizes), **dict.fromkeys(LIMITS, np.nan)})
    else:
        table = tables.read(PROJECT / settings.csv, tuple(tables.COLUMN_NAMES), gaps=True)
        photos = _match(table, list(sizes), left_out)
    photos = _with_exif(photos, root, left_out)
    if "split" not in photos:
        photos["split"] = random_cut(len(photos), settings)
    photos = photos.assign(bytes=photos["path"].map(sizes).to_numpy())
    return Built(photos, pd.DataFrame(left_out, columns=["id", "path", "reason"]))


def _sizes(photos: list[Path], root: Path) -> dict[str, int]:
    """Path below ``root`` and size in bytes of every photo."""
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in photos}


def photos_below(root: Path, left_out: list[tuple] | None = None) -> list[Path]:
    """Photos at any depth, sorted; links are followed, a folder is read once. ``left_out`` gets what cannot
    be opened."""
    found, seen, lost = [], set(), [] if left_out is None else left_out

    def lose(path: Path, why: str) -> None:
        name = path.relative_to(root).as_posix()
        lost.append((name, name, why))

    def closed(error: OSError) -> None:
        lose(Path(error.filename), f"the folder is closed: {error.strerror}")

    for folder, inside, names in os.walk(root, onerror=closed, followlinks=True):
        inside.sort()
        if (real := os.path.realpath(folder)) in seen:
            inside.clear()
            continue
        seen.add(real)
        for path in (Path(folder, name) for name in names if Path(name).suffix.lower() in ENDINGS):
            if path.is_file():
                found.append(path)
            else:
                lose(path, "is a link that leads nowhere")
    return sorted(found)


def _as_text(values: pd.Series) -> pd.Series:
    """Names or ids as text, in Unicode's composed form; none is empty."""
    return values.astype(object).where(values.notna(), "").map(str).map(_composed)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _match(table: Table, files: list[str], left_out: list[tuple]) -> pd.DataFrame:
    """Rows of ``table`` with their photo's path; rows and photos without the other go to ``left_out``."""
    frame, source = table.frame, table.path
    wanted = _as_text(frame["photo"]).str.strip().str.replace("\\", "/", regex=False).str.removeprefix("./")
    paths = wanted.map(_names_of(files))
    found = paths.notna()
    if not found.any():
        said = f"(first row: {one_line(wanted[0])}; first photo: {one_line(files[0])}); check dataset.root"
        raise BundleError(f"{source}: none of its {len(frame):,} rows names a photo of the folder {said}")
    table.refuse(found & paths.duplicated(), "photo", "stands in a row above, too")
    why = "no such photo, or several of that name"
    left_out += [(wanted[row], "", f"row {row + 1}: {why}") for row in np.flatnonzero(~found)]
    left_out += [(name, name, "no row in the table") for name in sorted(set(files) - set(paths[found]))]
    table.frame = frame.assign(path=paths)[found].drop(columns="photo")
    if "split" in frame:
        names = table.frame["split"].astype(str).str.strip().str.lower()
        table.frame["split"] = names.replace(SPLIT_NAMES)
        refuse_splits(table)
    table.frame["id"] = _as_text(table.frame["id"]) if "id" in frame else table.frame["path"]
    refuse_ids(table)
    if nowhere := int((table.frame[list(LIMITS)] == 0.0).all(axis=1).sum()):
        note(f"{source}: {nowhere:,} photos are kept that lie at exactly 0, 0; drop them if that is no place")
    return table.frame


def _names_of(files: list[str]) -> dict[str, str]:
    """Every name by which a row may call a file: its stem, name, path; a name of several files is none."""
    known = {}
    for named in (lambda path: PurePosixPath(path).stem, lambda path: PurePosixPath(path).name, str):
        names = [_composed(named(path)) for path in files]
        counted = Counter(names)
        known |= {name: path for name, path in zip(names, files, strict=True) if counted[name] == 1}
    return known


def _with_exif(photos: pd.DataFrame, root: Path, left_out: list[tuple]) -> pd.DataFrame:
    """``photos`` with missing coordinates taken from EXIF; those without any go to ``left_out``."""
    missing = photos[list(LIMITS)].isna().any(axis=1)
    for row in progress(photos.index[missing], "reading EXIF", int(missing.sum())):
        photos.loc[row, list(LIMITS)] = exif_coordinates(root, photos.at[row, "path"])
    lost = photos[list(LIMITS)].isna().any(axis=1)
    if lost.all():
        remedy = "give dataset.csv, or photos with GPS in EXIF"
        raise BundleError(f"{root}: none of {len(photos):,} photos has coordinates; {remedy}")
    why = "no coordinates in the table or in EXIF"
    left_out += [(photo.id, photo.path, why) for photo in photos[lost].itertuples()]
    return photos[~lost].reset_index(drop=True)


def random_cut(count: int, settings: Folder) -> np.ndarray:
    """The splits of ``count`` photos of which no table has any, object [count]."""
    order = np.random.default_rng(settings.seed).permutation(count)
    test, validation = (round(share * count) for share in (settings.test_share, settings.validation_share))
    split = np.full(count, "train", dtype=object)
    split[order[:test]], split[order[test : test + validation]] = "test", "validation"
    return split
