"""The prediction map: the true and the predicted place of every photo, one strategy at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folium
import numpy as np
import pandas as pd

from lib.data.datasets import root_of
from lib.data.sphere import wrap_longitude
from lib.runs import Run
from lib.show import world
from lib.show.world import great_circle, integers, save_map

THUMBNAIL_PX = 72
MOST_PHOTOS = 2_000
"""Photos of a split on one map: beyond, a browser takes too long, and the page grows past 10 MB."""
TRUE, PREDICTED = ("latitude", "longitude"), ("predicted_latitude", "predicted_longitude")
NUMBERS = (*TRUE, *PREDICTED, "error_km")
COLUMNS = ("id", "split", "strategy", "seed", *NUMBERS, "path")


def prediction_map(predictions: pd.DataFrame, image_root: Path, *, title: str = "") -> folium.Map:
    """World map of photos: true place, predicted place and the great circle between, one strategy at a time.
    ``predictions`` have a row per photo, strategy and seed, and ``COLUMNS``: degrees, kilometres, ``path``
    below ``image_root``. The smallest seed of each strategy is drawn. ``title`` is plain text."""
    seeds = predictions.groupby("strategy")["seed"]
    drawn = predictions[predictions["seed"] == seeds.transform("min")]
    shown = drawn.drop_duplicates("id")
    photos = world.photos_of(image_root, shown["id"], shown["path"], THUMBNAIL_PX)
    notes = [f"{len(shown):,} photos, split {', '.join(map(str, predictions['split'].unique()))}."]
    if seeds.nunique().max() > 1:
        notes.append("Several seeds were trained; the smallest of each strategy is drawn.")
    if lost := len(photos["unreadable"]):
        notes.append(f"{lost:,} of {len(shown):,} photos have no thumbnail: file missing or unreadable.")
    strategies = [_strategy(rows, shown) for _, rows in drawn.groupby("strategy", sort=False)]
    data = {"notes": notes, "truth": integers(_places(shown, TRUE), 1e4), "strategies": strategies}
    return world.world_page("predictions", data | photos | {"title": title or "True and predicted places"})


def split_map(predictions: pd.DataFrame, manifest: pd.DataFrame, run: Run, split: str) -> folium.Map:
    """The map of a split's predictions, saved as maps/predictions.html (later splits: predictions_NAME.html).
    Of more than ``MOST_PHOTOS`` photos so many are drawn, at random; ``manifest`` has their paths."""
    of_split, title = predictions[predictions["split"] == split], f"{run.name}: split {split}"
    ids = of_split["id"].drop_duplicates()
    if len(ids) > MOST_PHOTOS:
        title += f", {MOST_PHOTOS:,} of {len(ids):,} photos"
        of_split = of_split[of_split["id"].isin(ids.sample(MOST_PHOTOS, random_state=0))]
    chosen = of_split.merge(manifest[["id", "path"]], on="id", how="left")
    page = prediction_map(chosen, root_of(run), title=title)
    name = "predictions" if split == predictions["split"].iloc[0] else f"predictions_{split}"
    save_map(page, run.map(name))
    return page


def _strategy(rows: pd.DataFrame, shown: pd.DataFrame) -> dict[str, Any]:
    """What the page needs of one strategy, in the order of ``shown``; null where it predicts nothing."""
    known, found = rows.set_index("id").reindex(shown["id"]), {"error_km": [], "lines": []}
    truth, predicted = _places(shown, TRUE), np.nan_to_num(_places(known, PREDICTED))
    for error_km, start, end in zip(known["error_km"].tolist(), truth, predicted, strict=True):
        is_known = not np.isnan(error_km)
        pieces = great_circle(start, end) if is_known else [np.empty((0, 2))]
        # Without its two ends, which the page has already; 0 when nothing is between them.
        pieces[0] = pieces[0][1:]
        pieces[-1] = pieces[-1][:-1]
        found["error_km"].append(round(error_km, 2) if is_known else None)
        found["lines"].append([integers(piece, 100.0) for piece in pieces] if len(pieces[0]) else 0)
    named = {"name": str(rows["strategy"].iloc[0]), "seed": str(rows["seed"].iloc[0])}
    return named | {"predicted": integers(predicted, 1e4)} | found


def _places(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Latitude and longitude within [-180, 180), float64 [N, 2], of the two ``columns`` of ``table``."""
    values = table[[*columns]].to_numpy(np.float64, copy=True)
    values[:, 1] = wrap_longitude(values[:, 1])
    return values
