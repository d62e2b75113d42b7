"""Data sets: one file each, all ending in the same manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from lib.data import blue_marble, folder, manifest, osv5m, places
from lib.runs import Run, ranks, writing
from lib.runs.files import READING_ERRORS, refusals_named
from lib.settings import PROJECT, BlueMarble

MODULES: dict[str, ModuleType] = {"blue_marble": blue_marble, "folder": folder, "osv5m": osv5m}
"""Data set name -> its module, which has three functions of (its settings, its root folder):

* ``obtain``: get what is not there, by downloading;
* ``listing``: a digest of the files that are there, by which a change is noticed, or None;
* ``build``: the manifest and what was left out.
"""


def root_of(run: Run) -> Path:
    """Folder that the manifest's paths are relative to; a relative setting is relative to the project."""
    return PROJECT / run.settings.dataset.root


def prepare(run: Run) -> pd.DataFrame:
    """Build the run's manifest and photos, or reuse them; return the checked manifest.

    What the builder could not use, and photos that cannot be decoded, are left out and listed in tables/left_out.csv with
    the reason. Photos without a continent get town, country and continent by their coordinates.

    Raises:
        ManifestError: photos cannot be had, or the manifest cannot be used.
    """
    settings, root = run.settings.dataset, root_of(run)
    module = MODULES[settings.name]
    if ranks.rank() == 0:
        module.obtain(settings, root)
    ranks.wait()

    def make() -> None:
        photos, left_out = module.build(settings, root)
        manifest.check(photos, str(run.manifest))
        unreadable = manifest.unreadable_photos(photos, root)
        left_out = pd.concat([left_out, unreadable], ignore_index=True)
        with writing(run.table("left_out")) as aside:
            left_out.to_csv(aside, index=False)
        manifest.write(_with_places(photos[~photos["id"].isin(unreadable["id"])]), run.manifest)
        if len(left_out):
            print(f"left out {len(left_out):,} photos or rows, each with its reason in {run.table('left_out')}")

    if isinstance(settings, BlueMarble) and run.manifest.exists() and not _windows_are_whole(run):
        with refusals_named(run.receipt("manifest")):
            run.receipt("manifest").unlink(missing_ok=True)
    run.produce("manifest", make=make, **stage_of(run))
    return read(run)


def stage_of(run: Run) -> dict[str, Any]:
    """What the stage ``manifest`` is made from and writes: of the arguments of :meth:`lib.runs.Run.produce`."""
    settings, root = run.settings.dataset, root_of(run)
    files = [PROJECT / path for path in (getattr(settings, "csv", None),) if path]
    listing = MODULES[settings.name].listing(settings, root)
    return {
        "inputs": [path for path in files if path.exists()],
        "outputs": [run.manifest, run.table("left_out")],
        "settings": json.loads(settings.model_dump_json(exclude={"download"})) | {"photos": listing},
        "code": [manifest.check, manifest.unreadable_photos, _with_places, MODULES[settings.name].build],
        "group": "dataset",
    }


def _with_places(photos: pd.DataFrame) -> pd.DataFrame:
    if "continent" in photos:
        return photos
    described = places.describe(manifest.coordinates(photos)).set_index(photos.index)
    return photos.join(described[[name for name in described if name not in photos]])


def _windows_are_whole(run: Run) -> bool:
    try:
        paths = manifest.read_parquet(run.manifest, ["path"])["path"]
    except READING_ERRORS:  # torn: to be built again
        return False
    return not blue_marble.not_whole(list(paths), root_of(run), run.settings.dataset)


def read(run: Run, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The run's manifest, or ``columns`` of it.

    Raises:
        ArtefactError: notebook 01 has not made it yet.
    """
    return manifest.read(run.require(run.manifest, "01_data_preparation"), columns)
