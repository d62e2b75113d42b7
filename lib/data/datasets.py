"""Data sets: one file each, all ending in the same manifest; and the manifest of a run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import ModuleType

import pandas as pd

from lib.data import blue_marble, folder, manifest, osv5m, places
from lib.method.errors import BundleError
from lib.runs import Run, cache, cached, ranks, writing
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


def prepare(run: Run) -> Path:
    """Build the run's manifest and photos, or reuse them; return the manifest's path.

    Photos without row or place, and rows without photo, are listed with the reason in tables/not_matched.csv.
    Photos without a town, country or continent get them by their coordinates. Of several ranks the first one
    alone looks at the photos, once; a rank's first call waits for that, so all ranks make it. BundleError:
    photos cannot be had, the manifest cannot be used, or :func:`splits_of` refuses it.
    """
    key = (run.folder, run.settings.dataset.model_dump_json())
    if cache.is_as_finished():  # the photos need not be there
        _take(run)
    elif ranks.count() == 1:
        _prepare(run)
    elif key not in _prepared:
        ranks.in_turn(lambda: _prepare(run) if ranks.rank() == 0 else _take(run))
        _prepared.add(key)
    return run.manifest


_prepared: set[tuple[Path, str]] = set()
"""Run's folder and data set's settings of the manifests that this rank has waited for."""


def _take(run: Run) -> None:
    """Take the manifest as it is, if it is whole: its photos may be gone, or millions to list."""
    with cache.as_finished():
        cached(run, "manifest", lambda: None, outputs=[run.manifest])


def _prepare(run: Run) -> None:
    """Build the manifest, or reuse it."""
    settings, root, module = run.settings.dataset, root_of(run), MODULES[run.settings.dataset.name]
    table = PROJECT / settings.csv if getattr(settings, "csv", None) else None
    if table and table.resolve().is_relative_to(run.folder.resolve()):
        raise BundleError(f"{table}: lies in the folder that the run writes to; move the table elsewhere")
    module.obtain(settings, root)
    windows = [blue_marble.window_archive(settings, root)] if isinstance(settings, BlueMarble) else []
    given = settings.model_dump(mode="json", exclude={"download"})
    cached(
        run, "manifest", lambda: _build(run), inputs=[table] if table and table.is_file() else [],
        outputs=[run.manifest, run.table("not_matched"), *windows],
        settings=given | {"photos": listing(run)}, code=[_build, module.build],
    )  # fmt: skip
    splits_of(run, set(manifest.read(run.manifest, ["split"])["split"].unique()))


def splits_of(run: Run, there: Collection[str]) -> list[str]:
    """Evaluation splits that are ``there``. BundleError: nothing to train, choose or evaluate on."""
    wanted, known = run.settings.evaluation.splits, ", ".join(sorted(there)) or "none"
    table = "give such rows in the table, or leave out its column split"
    for names, mend in ((["train"], table), (["validation"], table), (wanted, "change evaluation.splits")):
        if not set(names) & set(there):
            raise BundleError(f"{run.manifest}: no photo in split {', '.join(names)}; it has {known}; {mend}")
    return [split for split in wanted if split in there]


def listing(run: Run) -> str | None:
    """A digest of the photos that are there, by which a change is noticed; None where they are made here."""
    return MODULES[run.settings.dataset.name].listing(run.settings.dataset, root_of(run))


def _build(run: Run) -> None:
    settings = run.settings.dataset
    photos, not_matched = MODULES[settings.name].build(settings, root_of(run))
    manifest.check(photos, str(run.manifest))
    with writing(run.table("not_matched")) as aside:
        not_matched.to_csv(aside, index=False)
    manifest.write(_with_places(photos), run.manifest)


def _with_places(photos: pd.DataFrame) -> pd.DataFrame:
    """``photos`` with town, country and continent, as text, by their coordinates where the table has none."""
    described = places.describe(manifest.coordinates(photos)).set_index(photos.index)
    for name in described.columns.intersection(photos.columns):
        given = photos[name].astype("str")
        photos = photos.assign(**{name: given.mask(given.fillna("").str.strip() == "", described[name])})
    return photos.join(described.drop(columns=photos.columns, errors="ignore"))
