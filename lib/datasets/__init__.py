"""Data sets: one file each, all ending in the same manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from lib.datasets import blue_marble, manifest
from lib.runs import Run, writing
from lib.settings import PROJECT

BUILDERS: dict[str, Callable[..., pd.DataFrame]] = {"blue_marble": blue_marble.build}
"""Data set name -> (its settings, its root folder) -> manifest"""


def root_of(run: Run) -> Path:
    """Folder that the manifest's paths are relative to; a relative setting is relative to the project."""
    return PROJECT / run.settings.dataset.root


def prepare(run: Run) -> pd.DataFrame:
    """Build the run's manifest and photos, or reuse them; return the checked manifest.

    Photos that cannot be decoded are left out of the manifest and listed in tables/unreadable_photos.csv.

    Raises:
        ManifestError: the data set has no builder, or its manifest cannot be used.
    """
    settings = run.settings.dataset
    if settings.name not in BUILDERS:
        raise manifest.ManifestError(
            f"data set {settings.name!r} has settings but no loader in this version; there is {', '.join(BUILDERS)}"
        )

    def make() -> None:
        built = BUILDERS[settings.name](settings, root_of(run))
        manifest.check(built, str(run.manifest))
        unreadable = manifest.unreadable_photos(built, root_of(run))
        with writing(run.table("unreadable_photos")) as aside:
            unreadable.to_csv(aside, index=False)
        manifest.write(built[~built["id"].isin(unreadable["id"])], run.manifest)

    if run.manifest.exists() and not _photos_exist(run):
        run.receipt("manifest").unlink(missing_ok=True)
    run.produce(
        "manifest",
        make=make,
        outputs=[run.manifest, run.table("unreadable_photos")],
        settings=json.loads(settings.model_dump_json()),
        code=["geodesy", "places", f"datasets.{settings.name}", "datasets.manifest"],
    )
    return read(run)


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
