"""Data sets: one file each, all ending in the same manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from lib import places
from lib.datasets import blue_marble, folder, manifest
from lib.datasets.manifest import Built
from lib.runs import Run, writing
from lib.settings import PROJECT, BlueMarble, Folder

BUILDERS: dict[str, Callable[..., Built]] = {"blue_marble": blue_marble.build, "folder": folder.build}
"""Data set name -> (its settings, its root folder) -> manifest and what was left out"""


def root_of(run: Run) -> Path:
    """Folder that the manifest's paths are relative to; a relative setting is relative to the project."""
    return PROJECT / run.settings.dataset.root


def prepare(run: Run) -> pd.DataFrame:
    """Build the run's manifest and photos, or reuse them; return the checked manifest.

    What the builder could not use, and photos that cannot be decoded, are left out and listed in tables/left_out.csv with
    the reason. Photos without a continent get town, country and continent by their coordinates.

    Raises:
        ManifestError: the data set has no builder, or its manifest cannot be used.
    """
    settings = run.settings.dataset
    if settings.name not in BUILDERS:
        raise manifest.ManifestError(
            f"data set {settings.name!r} has settings but no loader in this version; there is {', '.join(BUILDERS)}"
        )

    def make() -> None:
        photos, left_out = BUILDERS[settings.name](settings, root_of(run))
        manifest.check(photos, str(run.manifest))
        unreadable = manifest.unreadable_photos(photos, root_of(run))
        left_out = pd.concat([left_out, unreadable], ignore_index=True)
        with writing(run.table("left_out")) as aside:
            left_out.to_csv(aside, index=False)
        manifest.write(_with_places(photos[~photos["id"].isin(unreadable["id"])]), run.manifest)
        if len(left_out):
            print(f"left out {len(left_out):,} photos or rows, each with its reason in {run.table('left_out')}")

    source = [PROJECT / path for path in [getattr(settings, "csv", None)] if path and (PROJECT / path).exists()]
    if run.manifest.exists() and not _photos_exist(run):
        run.receipt("manifest").unlink(missing_ok=True)
    run.produce(
        "manifest",
        make=make,
        inputs=source,
        outputs=[run.manifest, run.table("left_out")],
        settings=json.loads(settings.model_dump_json()) | {"photos": _listing(run)},
        code=["geodesy", "places", "datasets", f"datasets.{settings.name}", "datasets.manifest"],
    )
    return read(run)


def _listing(run: Run) -> str | None:
    """Digest of the photos that a folder of one's own holds; None for a data set that makes its photos itself."""
    if not isinstance(run.settings.dataset, Folder):
        return None
    return hashlib.sha256(json.dumps(folder.photo_sizes(root_of(run))).encode()).hexdigest()


def forget(run: Run) -> None:
    """Remove the photos that the data set's builder has made for these settings; a folder of one's own is never touched."""
    if isinstance(run.settings.dataset, BlueMarble):
        shutil.rmtree(root_of(run) / blue_marble.window_folder(run.settings.dataset), ignore_errors=True)


def _with_places(photos: pd.DataFrame) -> pd.DataFrame:
    if "continent" in photos:
        return photos
    described = places.describe(manifest.coordinates(photos)).set_index(photos.index)
    return photos.join(described[[name for name in described if name not in photos]])


def _photos_exist(run: Run) -> bool:
    try:
        paths = pd.read_parquet(run.manifest, columns=["path"])["path"]
    except (OSError, ValueError, KeyError):  # torn: to be built again
        return False
    return all((root_of(run) / path).exists() for path in paths)


def read(run: Run) -> pd.DataFrame:
    """The run's manifest.

    Raises:
        ArtefactError: notebook 01 has not made it yet.
    """
    return manifest.read(run.require(run.manifest, "01_data_preparation"))
