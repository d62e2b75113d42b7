"""The cut between training and test photos: whose it is, and what lies on both of its sides."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from lib.data import features, folder, manifest
from lib.data.features import Features
from lib.evaluate import neighbour
from lib.evaluate.evaluation import save_table
from lib.method.geodesy import distance_km
from lib.runs import Run
from lib.settings import Folder

TWIN = 0.05
"""Two photos are twins where 1 - cosine of their features, as stored, is at most this.

Measured with EfficientNet-Lite0. Six street photos: all copies of JPEG quality 60 to 95, also at half the
size and quality 75; at a third of the size none. Windows of ``quick``, 96 pixels wide: all copies of quality
95, nine in ten of 85, half of 75, one in seven of 60. Without copies: of 2,000 held-out windows one has a
twin, and of 1,500 random ones 57, of which nine in ten overlap it. Another backbone has another scale."""
SAME = 1e-5
"""Likewise, of two copies of one file: what rounding leaves."""
MOST_PHOTOS, MOST_PAIRS = 50_000, 2 * 10**10
"""Test photos of a split that are looked at, drawn if there are more: they take 256 MB, and their pairs with
the training photos minutes on two cores, seconds on a GPU. Beside OSV5M's five million these are 4,000."""
OF_SPLIT = {
    "blue_marble": "drawn here, at random and in cells held out whole, by dataset.seed",
    "osv5m": "the official one; validation is cut at random from its training photos, by dataset.seed",
}


def describe(run: Run) -> list[str]:
    """Sentences on whose split it is, and each test split's twins and shared places; also in tables/cut.csv.
    tables/twins.csv lists the twins: split, id, training_id, dissimilarity, distance_km."""
    photos = features.photos(run)
    frozen, train = features.read(run, photos), manifest.rows_of(photos, "train")
    place, lists = photos["latitude"].to_numpy() + 1j * photos["longitude"].to_numpy(), []
    said, splits = [f"The split is {whose(run)}."], [*photos["split"].unique()]
    if lacking := [name for name in run.settings.evaluation.splits if name not in splits]:
        said.append(f"Not evaluated, because it has no photos: {', '.join(lacking)} (evaluation.splits).")
    for split in [name for name in splits if name.startswith("test")]:
        rows = manifest.rows_of(photos, split)
        most = min(MOST_PHOTOS, max(1, MOST_PAIRS // len(train)))
        some = rows if len(rows) <= most else np.random.default_rng(0).choice(rows, most, replace=False)
        lists.append(twins := twins_of(frozen, photos, train, np.sort(some), run.device))
        same, shared = (twins["dissimilarity"] <= SAME).sum(), np.isin(place[rows], place[train]).sum()
        half, most_km = twins["distance_km"].quantile([0.5, 1.0])
        drawn = f", drawn of {len(rows):,}," if len(some) < len(rows) else ""
        where = f", half of them within {half:,.1f} km, all within {most_km:,.1f} km" if len(twins) else ""
        said.append(
            f"Split {split}: {len(twins):,} of {len(some):,} photos{drawn} have a twin among the training "
            f"photos (features differ by at most {TWIN}){where}; {same:,} are copies. {shared:,} of "
            f"{len(rows):,} share the exact place of a training photo."
        )
        if same or shared:
            said[-1] += " These are remembered, not found: put all photos of one scene into one split."
    save_table(pd.concat([pd.DataFrame({"split": []}), *lists]), run.table("twins"))
    save_table(pd.DataFrame({"said": said}), run.table("cut"))
    return said


def twins_of(
    frozen: Features, photos: pd.DataFrame, train: np.ndarray, rows: np.ndarray, device: torch.device
) -> pd.DataFrame:
    """Those of the photos ``rows`` [n] of the manifest whose most alike one of ``train`` [M] is a twin:
    columns of tables/twins.csv, the most alike first. Memory and time: :func:`neighbour.most_alike`."""
    as_stored = torch.zeros(frozen.dimension, device=device), torch.eye(frozen.dimension, device=device)
    (found,), (cosine,) = neighbour.most_alike(frozen, as_stored, train, rows, [frozen.dimension])
    places, table = manifest.coordinates(photos), photos.iloc[rows][["split", "id"]]
    table = table.assign(training_id=photos["id"].to_numpy()[found], dissimilarity=(1.0 - cosine).clip(0.0))
    table["distance_km"] = distance_km(places[rows], places[found])
    return table[table["dissimilarity"] <= TWIN].sort_values("dissimilarity", kind="stable")


def whose(run: Run) -> str:
    """Whose split it is, in words that go on after "The split is"."""
    settings = run.settings.dataset
    if not isinstance(settings, Folder):
        return OF_SPLIT[settings.name]
    splits = manifest.read(run.manifest, ["split"])["split"].to_numpy()
    if np.array_equal(splits, folder.random_cut(len(splits), settings)):
        return "a random one, by dataset.seed, because there is no table with a column split"
    return f"the table's own ({getattr(settings.csv, 'name', '')})"
