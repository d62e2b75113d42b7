"""Data sets: one file each, all ending in the same manifest; and the manifest of a run, made and read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from lib.data import blue_marble, folder, manifest, osv5m, places, tables
from lib.method.errors import BundleError
from lib.runs import Run, note, ranks, writing
from lib.runs.files import READING_ERRORS, refusals_named
from lib.settings import PROJECT, BlueMarble

MODULES: dict[str, ModuleType] = {"blue_marble": blue_marble, "folder": folder, "osv5m": osv5m}
"""Data set name -> its module, which has three functions of (its settings, its root folder):

* ``obtain``: get what is not there, by downloading;
* ``listing``: a digest of the files that are there, by which a change is noticed, or None;
* ``build``: the manifest and what was left out.
"""
NOTEBOOK = "01_data_preparation"
UNREADABLE = "unreadable"
"""The split of photos that could not be decoded: no stage asks for it."""


def root_of(run: Run) -> Path:
    """Folder that the manifest's paths are relative to; a relative setting is relative to the project."""
    return PROJECT / run.settings.dataset.root


def prepare(run: Run) -> pd.DataFrame:
    """Build the run's manifest and photos, or reuse them; return the checked manifest.

    No photo is decoded: those that cannot be are found when features are extracted. Photos without row or
    place, and rows without photo, are listed with the reason in tables/not_matched.csv. Photos without a
    continent or country get them by their coordinates.

    Raises:
        BundleError: photos cannot be had, or the manifest cannot be used.
    """
    settings, root = run.settings.dataset, root_of(run)
    module = MODULES[settings.name]
    if ranks.rank() == 0:
        module.obtain(settings, root)
    ranks.wait()

    def make() -> None:
        photos, not_matched = module.build(settings, root)
        manifest.check(photos, str(run.manifest))
        with writing(run.table("not_matched")) as aside:
            not_matched.to_csv(aside, index=False)
        if len(_listed(unreadable_list(run))):  # the photos have changed: all are tried again
            unreadable_list(run).unlink()
        manifest.write(_with_places(photos), run.manifest)

    if isinstance(settings, BlueMarble) and run.manifest.exists() and not _windows_are_whole(run):
        with refusals_named(run.receipt("manifest")):
            run.receipt("manifest").unlink(missing_ok=True)
    run.produce("manifest", make=make, **stage_of(run))
    return manifest.read(run.manifest)


def stage_of(run: Run) -> dict[str, Any]:
    """What the stage ``manifest`` is made from and writes: of the arguments of
    :meth:`lib.runs.Run.produce`."""
    settings, root = run.settings.dataset, root_of(run)
    files = [PROJECT / path for path in (getattr(settings, "csv", None),) if path]
    if own := [path for path in files if path.resolve().is_relative_to(run.folder.resolve())]:
        raise BundleError(f"{own[0]}: lies in the folder that the run writes to; move the table elsewhere")
    listing = MODULES[settings.name].listing(settings, root)
    return {
        "inputs": [path for path in files if path.is_file()],
        "outputs": [run.manifest, run.table("not_matched")],
        "settings": json.loads(settings.model_dump_json(exclude={"download"})) | {"photos": listing},
        "code": [manifest.check, _with_places, MODULES[settings.name].build],
        "group": "dataset",
    }


def _with_places(photos: pd.DataFrame) -> pd.DataFrame:
    """``photos`` with town, country and continent by their coordinates, where their table has none.

    A column that the table has is filled row by row; towns are added where it has no continents.
    """
    given = [name for name in ("country", "continent") if name in photos]
    texts = {name: photos[name].astype(object).where(photos[name].notna(), None) for name in given}
    photos = photos.assign(**{name: text.map(str, na_action="ignore") for name, text in texts.items()})
    lacking = photos[given].isna() | (photos[given].astype(str).apply(lambda cells: cells.str.strip()) == "")
    if "continent" in photos and not lacking.to_numpy().any():
        return photos
    described = places.describe(manifest.coordinates(photos)).set_index(photos.index)
    filled = photos.assign(**{name: photos[name].mask(lacking[name], described[name]) for name in given})
    added = ["continent"] if "continent" in photos else list(described)
    return filled.join(described[[name for name in added if name not in filled]])


def _windows_are_whole(run: Run) -> bool:
    try:
        paths = tables.read_parquet(run.manifest, ["path"])["path"]
    except READING_ERRORS:  # torn: to be built again
        return False
    return not blue_marble.not_whole(list(paths), root_of(run), run.settings.dataset)


def read(run: Run, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The run's manifest, or ``columns`` of it; the split of photos that could not be decoded is
    ``unreadable``.

    Raises:
        ArtefactError: notebook 01 has not made it yet.
    """
    photos = manifest.read(run.require(run.manifest, NOTEBOOK), columns)
    if "split" in photos and unreadable_list(run).exists():
        rows = _listed(run.require(unreadable_list(run), NOTEBOOK))["row"].astype(int)
        photos.loc[photos.index.isin(rows), "split"] = UNREADABLE
    return photos


def unreadable_list(run: Run) -> Path:
    """Photos that could not be decoded (CSV): row of the manifest, id, path, reason; written with the
    features."""
    return run.features.with_name("unreadable.csv")


def left_out(run: Run) -> pd.DataFrame:
    """What did not match, and photos that could not be decoded, as tables/left_out.csv has it: id, path,
    reason."""
    parts = [_listed(path) for path in (run.table("not_matched"), unreadable_list(run))]
    return pd.concat([part[["id", "path", "reason"]] for part in parts], ignore_index=True)


def write_left_out(run: Run) -> None:
    """Write tables/left_out.csv, unless it is there and up to date, and print how many photos and rows it
    names."""
    found, path = left_out(run), run.table("left_out")
    if path.exists() and _listed(path).equals(found):
        return
    with writing(path) as aside:
        found.to_csv(aside, index=False)
    if len(found):
        note(f"left out {len(found):,} photos or rows, each with its reason in {path}")


def _listed(path: Path) -> pd.DataFrame:
    """A list of what was left out, empty where there is none. Everything in it is text, whatever it looks
    like."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError):
        return pd.DataFrame(columns=["row", "id", "path", "reason"], dtype=str)
