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

    No photo is decoded: the extraction of features finds those that cannot be. Photos without row or place,
    and rows without photo, are listed with the reason in tables/not_matched.csv. Photos without a continent
    or country get them by their coordinates.

    Raises:
        BundleError: photos cannot be had, or the manifest cannot be used.
    """
    settings = run.settings.dataset
    if ranks.rank() == 0:
        MODULES[settings.name].obtain(settings, root_of(run))
    ranks.wait()
    run.produce("manifest", make=lambda: _build(run), **stage_of(run))
    return manifest.read(run.manifest)


def _build(run: Run) -> None:
    settings = run.settings.dataset
    photos, not_matched = MODULES[settings.name].build(settings, root_of(run))
    manifest.check(photos, str(run.manifest))
    with writing(run.table("not_matched")) as aside:
        not_matched.to_csv(aside, index=False)
    if len(_listed(unreadable_list(run))):  # the photos have changed: all are tried again
        unreadable_list(run).unlink()
    manifest.write(_with_places(photos), run.manifest)


def stage_of(run: Run) -> dict[str, Any]:
    """Arguments of :meth:`lib.runs.Run.produce` for the stage ``manifest``, but for ``make``."""
    settings, root = run.settings.dataset, root_of(run)
    module, table = MODULES[settings.name], getattr(settings, "csv", None)
    tables = [PROJECT / table] if table else []
    if tables and tables[0].resolve().is_relative_to(run.folder.resolve()):
        raise BundleError(f"{tables[0]}: lies in the folder that the run writes to; move the table elsewhere")
    windows = [blue_marble.window_archive(settings, root)] if isinstance(settings, BlueMarble) else []
    given = json.loads(settings.model_dump_json(exclude={"download"}))
    return {
        "inputs": [path for path in tables if path.is_file()],
        "outputs": [run.manifest, run.table("not_matched"), *windows],
        "settings": given | {"photos": module.listing(settings, root)},
        "code": [manifest.check, _with_places, module.build],
        "group": "dataset",
    }


def _with_places(photos: pd.DataFrame) -> pd.DataFrame:
    """``photos`` with country and continent by their coordinates, where the table gives none; all are text.

    Towns are added where the table has no continents.
    """
    given = [name for name in ("country", "continent") if name in photos]
    photos = photos.assign(**{name: photos[name].astype("str") for name in given})
    lacking = {name: photos[name].fillna("").str.strip() == "" for name in given}
    if "continent" in given and not any(rows.any() for rows in lacking.values()):
        return photos
    described = places.describe(manifest.coordinates(photos)).set_index(photos.index)
    for name in given:
        photos[name] = photos[name].mask(lacking[name], described[name])
    added = ["continent"] if "continent" in given else list(described)
    return photos.join(described[[name for name in added if name not in photos]])


def read(run: Run, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The run's manifest, or ``columns`` of it; what could not be decoded is ``UNREADABLE``.

    Raises:
        ArtefactError: notebook 01 has not made it yet.
    """
    photos = manifest.read(run.require(run.manifest, NOTEBOOK), columns)
    if "split" in photos and unreadable_list(run).exists():
        rows = _listed(run.require(unreadable_list(run), NOTEBOOK))["row"].astype(int)
        photos.loc[photos.index.isin(rows), "split"] = UNREADABLE
    return photos


def unreadable_list(run: Run) -> Path:
    """List of photos that could not be decoded (CSV: row, id, path, reason), written with the features."""
    return run.features.with_name("unreadable.csv")


def write_left_out(run: Run) -> None:
    """Write tables/left_out.csv, unless it is up to date, and print how many photos and rows it names.

    It holds what did not match and photos that could not be decoded: columns id, path, reason.
    """
    parts = [_listed(path) for path in (run.table("not_matched"), unreadable_list(run))]
    found = pd.concat([part[["id", "path", "reason"]] for part in parts], ignore_index=True)
    path = run.table("left_out")
    if path.exists() and _listed(path).equals(found):
        return
    with writing(path) as aside:
        found.to_csv(aside, index=False)
    if len(found):
        note(f"left out {len(found):,} photos or rows, each with its reason in {path}")


def _listed(path: Path) -> pd.DataFrame:
    """A list of what was left out, all of it as text; empty where there is none."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError):
        return pd.DataFrame(columns=["row", "id", "path", "reason"], dtype=str)
