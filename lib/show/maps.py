"""The prediction map: the true and the predicted place of every photo, one strategy at a time."""

from __future__ import annotations

from pathlib import Path

import folium
import numpy as np
import pandas as pd

from lib.data.datasets import root_of
from lib.data.manifest import rows_of
from lib.data.sphere import nearest
from lib.runs import Run
from lib.show import world
from lib.show.style import named
from lib.show.world import integers, save_map
from lib.train.metrics import GEOSCORE_SCALE_KM

THUMBNAIL_PX = 80
MOST_PHOTOS, MOST_TRAINING = 2_000, 3_000
"""Photos of a split on one map, and training photos beside them: beyond, a browser takes too long, and the
page grows past 10 MB."""
TRUE, PREDICTED = ("latitude", "longitude"), ("predicted_latitude", "predicted_longitude")
NUMBERS = (*TRUE, *PREDICTED, "error_km")
COLUMNS = ("id", "split", "strategy", "seed", *NUMBERS, "path")


def prediction_map(
    predictions: pd.DataFrame, training: pd.DataFrame, image_root: Path, *, title: str = "", chosen: str = ""
) -> folium.Map:
    """World map of photos: true place, predicted place and the great circle between, one strategy at a time,
    ``chosen`` first; beside a photo the one of ``training`` (``id``, ``path``, degrees) nearest to the
    predicted place. ``predictions`` have a row per photo, strategy and seed, and ``COLUMNS``: degrees,
    kilometres, ``path`` below ``image_root``. The smallest seed of each strategy is drawn. ``title`` and
    ``chosen`` are plain text."""
    smallest = predictions.groupby("strategy")["seed"].transform("min")
    drawn = predictions[predictions["seed"] == smallest]
    shown = drawn.drop_duplicates("id")
    photos = world.photos_of(image_root, shown["id"], shown["path"], THUMBNAIL_PX)
    notes = [f"{len(shown):,} photos, split {', '.join(map(str, predictions['split'].unique()))}."]
    strategies = [
        {
            "name": str(name), "label": named(name), "seed": str(rows["seed"].iloc[0]),
            "predicted": integers(rows.loc[shown["id"], [*PREDICTED]], 1e4),
            "error_km": rows.loc[shown["id"], "error_km"].round(2).tolist(),
        }
        for name, rows in drawn.set_index("id").groupby("strategy", sort=False)
    ]  # fmt: skip
    strategies.sort(key=lambda one: one["name"] != chosen)
    guessed = np.concatenate([one["predicted"] for one in strategies]).reshape(-1, 2) / 1e4
    row, _ = nearest(guessed, training[[*TRUE]].to_numpy(float))
    used = pd.unique(row)[:MOST_TRAINING]
    number, beside = {row: k for k, row in enumerate(used.tolist())}, training.iloc[used]
    for one, rows in zip(strategies, np.split(row, len(strategies)), strict=True):
        one["near"] = [number.get(row) for row in rows.tolist()]
    taken = world.photos_of(image_root, beside["id"], beside["path"], THUMBNAIL_PX)
    data = {
        "title": title or "True and predicted places", "notes": notes, "strategies": strategies,
        "chosen": chosen, "truth": integers(shown[[*TRUE]], 1e4), "scale_km": GEOSCORE_SCALE_KM,
        "training": taken | {"places": integers(beside[[*TRUE]], 1e4)},
    }  # fmt: skip
    return world.world_page("predictions", data | photos)


def split_map(
    predictions: pd.DataFrame, manifest: pd.DataFrame, run: Run, split: str, chosen: str = ""
) -> folium.Map:
    """The map of a split's predictions, saved as maps/predictions.html (later splits: predictions_NAME.html),
    the strategy ``chosen`` first. Of more than ``MOST_PHOTOS`` photos so many are drawn, at random;
    ``manifest`` has their paths, and the training photos."""
    of_split = predictions[predictions["split"] == split]
    title = f"{run.name}: {named(split, set(predictions['split']))}"
    ids = of_split["id"].drop_duplicates()
    if len(ids) > MOST_PHOTOS:
        title += f", {MOST_PHOTOS:,} of {len(ids):,} photos"
        of_split = of_split[of_split["id"].isin(ids.sample(MOST_PHOTOS, random_state=0))]
    with_paths = of_split.merge(manifest[["id", "path"]], on="id", how="left")
    training = manifest.iloc[rows_of(manifest, "train")]
    page = prediction_map(with_paths, training, root_of(run), title=title, chosen=chosen)
    name = "predictions" if split == predictions["split"].iloc[0] else f"predictions_{split}"
    save_map(page, run.map(name))
    return page
