"""Maps of photos: where each strategy puts them, one strategy at a time or two side by side.

Each is a page of :mod:`lib.show.world`: it opens without a network. Draws, and computes nothing beyond
drawing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folium
import matplotlib as mpl
import numpy as np
import pandas as pd
from PIL import Image

from lib.data.datasets import root_of
from lib.data.sphere import wrap_longitude
from lib.evaluate.regions import REACH_KM, ErrorField, error_field
from lib.runs import Run
from lib.show.world import CLUSTERS, encoded, great_circle, integers, require, save_map, thumbnail, world_page

ERROR_CLASSES = (
    ("street, city", 25.0, "#56B4E9"),
    ("region", 200.0, "#009E73"),
    ("country", 750.0, "#F0E442"),
    ("continent", 2500.0, "#E69F00"),
    ("beyond", None, "#D55E00"),
)
"""Label, largest great-circle error in km, colour. Bounds: the granularities of GeoCLIP's tables. Colours:
Okabe and Ito, "Color Universal Design", 2008."""
ERROR_BOUNDS_KM = [upper for _, upper, _ in ERROR_CLASSES[:-1]]
THUMBNAIL_PX = 72
MOST_PHOTOS = 2_000
"""Photos of a split on one map: beyond, a browser takes too long, and the page grows past 10 MB."""
HEAT_KM = (30.0, 3_000.0)
"""Errors at the two ends of the heat's logarithmic scale of colours."""
LIMITS = {
    "latitude": (-90.0, 90.0),
    "longitude": (-np.inf, np.inf),
    "predicted_latitude": (-90.0, 90.0),
    "predicted_longitude": (-np.inf, np.inf),
    "error_km": (0.0, np.inf),
}
KEYS = ("id", "split", "strategy", "seed")
COLUMNS = (*KEYS, *LIMITS, "path")


def prediction_map(
    predictions: pd.DataFrame, image_root: Path, *, field: ErrorField | None = None, title: str = ""
) -> folium.Map:
    """World map of photos: true place, predicted place and the great circle between, one strategy at a time.

    Args:
        predictions: a row per photo, strategy and seed: ``id``, ``split``, ``strategy``, ``seed``;
            ``latitude``, ``longitude``, ``predicted_latitude``, ``predicted_longitude`` in degrees;
            ``error_km`` in kilometres; ``path`` of the photo below ``image_root``. Of several seeds the
            smallest of each strategy is drawn.
        image_root: folder of the photos. Those that cannot be read are counted on the page.
        field: heat of error to offer, of these strategies (:func:`lib.evaluate.regions.error_field`).
        title: plain text above the controls and of the browser's tab.

    Raises:
        ValueError: no rows, a column is missing, a number is not finite or no place on Earth, a photo is
            twice in one strategy or has two true places; the message names the column or the id.
    """
    data = _photo_data(predictions, image_root)
    data |= {"title": title or "True and predicted places", "heat": None}
    if field:
        data["heat"] = _heat(field, [strategy["name"] for strategy in data["strategies"]])
        data["notes"].append(
            "Heat of error: the geometric mean of the errors nearby, over all seeds, weighted by a bell of "
            f"{REACH_KM:,.0f} km; it fades where no photo is near."
        )
    return world_page("predictions", data, [CLUSTERS])


def side_by_side_map(predictions: pd.DataFrame, image_root: Path, *, title: str = "") -> folium.Map:
    """Two world maps that pan and zoom together, one strategy on each; a photo opens on both at once.

    The page begins with the first strategy and the one that places most photos within 200 km. Arguments and
    errors are those of :func:`prediction_map`; ValueError besides where there is only one strategy.
    """
    data = _photo_data(predictions, image_root)
    names = [strategy["name"] for strategy in data["strategies"]]
    if len(names) < 2:
        raise ValueError(
            f"side_by_side_map: two strategies are needed to compare; there is only {', '.join(names)}."
        )
    errors = np.array([strategy["error_km"] for strategy in data["strategies"]], dtype=np.float64)
    other = 1 + int(np.argmax((errors[1:] <= 200.0).sum(1)))
    data |= {"title": title or "Two strategies, photo by photo", "sides": [0, other]}
    return world_page("side_by_side", data)


def split_map(predictions: pd.DataFrame, manifest: pd.DataFrame, run: Run, split: str) -> folium.Map:
    """The map of a split's predictions, saved as maps/predictions.html (later splits: predictions_NAME.html).

    Args:
        predictions: of all splits, as predictions.parquet has them. Of more than ``MOST_PHOTOS`` photos so
            many are drawn at random, and the title says so.
        manifest: for the photos' paths.
    """
    chosen, title = _of_split(predictions, manifest, run, split)
    page = prediction_map(chosen, root_of(run), field=error_field(chosen), title=title)
    is_first = split == predictions["split"].iloc[0]
    save_map(page, run.map("predictions" if is_first else f"predictions_{split}"))
    return page


def draw_pair(run: Run, predictions: pd.DataFrame, manifest: pd.DataFrame) -> folium.Map | None:
    """The first split's predictions side by side, saved as maps/side_by_side.html; None with one strategy."""
    if predictions["strategy"].nunique() < 2:
        return None
    chosen, title = _of_split(predictions, manifest, run, predictions["split"].iloc[0])
    page = side_by_side_map(chosen, root_of(run), title=f"{title}, two strategies side by side")
    save_map(page, run.map("side_by_side"))
    return page


def _of_split(
    predictions: pd.DataFrame, manifest: pd.DataFrame, run: Run, split: str
) -> tuple[pd.DataFrame, str]:
    """The predictions of one split's photos that a map shows, with their paths; and the map's title."""
    of_split, title = predictions[predictions["split"] == split], f"{run.name}: split {split}"
    ids = of_split["id"].drop_duplicates()
    if len(ids) > MOST_PHOTOS:
        title += f", {MOST_PHOTOS:,} of {len(ids):,} photos"
        of_split = of_split[of_split["id"].isin(ids.sample(MOST_PHOTOS, random_state=0))]
    return of_split.merge(manifest[["id", "path"]], on="id", how="left"), title


def _photo_data(predictions: pd.DataFrame, image_root: Path) -> dict[str, Any]:
    """What a page needs of the photos and of every strategy's prediction of them, JSON-like."""
    _check(predictions)
    seeds = predictions.groupby("strategy")["seed"]
    drawn = predictions[predictions["seed"] == seeds.transform("min")]
    _check_unique(drawn)
    shown = drawn.drop_duplicates("id")
    thumbnails = [thumbnail(image_root, path, THUMBNAIL_PX) for path in shown["path"]]
    paths = {k: str(path) for k, path in enumerate(shown["path"]) if not thumbnails[k]}
    notes = [f"{len(shown):,} photos, split {', '.join(map(str, predictions['split'].unique()))}."]
    if seeds.nunique().max() > 1:
        notes.append("Several seeds were trained; the smallest of each strategy is drawn.")
    if paths:
        notes.append(
            f"{len(paths):,} of {len(shown):,} photos have no thumbnail: file missing or unreadable."
        )
    return {
        "notes": notes,
        "classes": ERROR_CLASSES,
        "ids": shown["id"].astype(str).tolist(),
        "splits": shown["split"].astype(str).tolist(),
        "truth": integers(_places(shown, "latitude", "longitude"), 1e4),
        "strategies": [_strategy(drawn, shown, name) for name in drawn["strategy"].unique()],
        "thumbnails": thumbnails,
        "unreadable": paths,
    }


def _check(predictions: pd.DataFrame) -> None:
    require(
        "prediction_map: the predictions", predictions, COLUMNS, "run the evaluation that writes them first"
    )
    for name in KEYS:
        if predictions[name].isna().any():
            raise ValueError(
                f"prediction_map: {name} is empty in row {int(np.argmax(predictions[name].isna()))}."
            )
    for name, (lowest, highest) in LIMITS.items():
        values = pd.to_numeric(predictions[name], errors="coerce").to_numpy(np.float64, na_value=np.nan)
        good = np.isfinite(values) & (lowest <= values) & (values <= highest)
        if not good.all():
            row = predictions.iloc[int(np.argmin(good))]
            raise ValueError(
                f"prediction_map: {name} of the photo {row['id']!r} ({row['strategy']}) is {row[name]}, "
                "which is not a finite number within its bounds."
            )


def _check_unique(drawn: pd.DataFrame) -> None:
    twice = drawn[drawn.duplicated(["strategy", "id"])]
    if len(twice):
        identity, name, seed = twice.iloc[0][["id", "strategy", "seed"]]
        raise ValueError(
            f"prediction_map: the photo {identity!r} is twice in the strategy {name!r}, seed {seed}."
        )
    places = drawn.drop_duplicates(["id", "latitude", "longitude"])
    moved = places.loc[places.duplicated("id"), "id"]
    if len(moved):
        raise ValueError(
            f"prediction_map: the photo {moved.iloc[0]!r} has two true places in the predictions."
        )


def _strategy(drawn: pd.DataFrame, shown: pd.DataFrame, name: Any) -> dict[str, Any]:
    """What the page needs of one strategy, in the order of ``shown``; null where it predicts nothing."""
    rows = drawn[drawn["strategy"] == name]
    known = rows.set_index("id").reindex(shown["id"])
    truth = _places(shown, "latitude", "longitude")
    predicted = _places(known, "predicted_latitude", "predicted_longitude")
    error_km = known["error_km"].to_numpy(np.float64)
    present = np.isfinite(error_km)
    classes = np.searchsorted(ERROR_BOUNDS_KM, error_km)
    return {
        "name": str(name),
        "seed": str(rows["seed"].iloc[0]),
        "predicted": integers(np.where(present[:, None], predicted, 0.0), 1e4),
        "error_km": [
            round(value, 2) if ok else None for value, ok in zip(error_km.tolist(), present, strict=True)
        ],
        "error_class": [value if ok else None for value, ok in zip(classes.tolist(), present, strict=True)],
        "lines": [_inner(*ends) if ok else 0 for *ends, ok in zip(truth, predicted, present, strict=True)],
    }


def _inner(start_deg: np.ndarray, end_deg: np.ndarray) -> list[list[int]] | int:
    """``great_circle`` without its two ends, which the page has already; 0 when nothing is between them."""
    pieces = great_circle(start_deg, end_deg)
    pieces[0] = pieces[0][1:]
    pieces[-1] = pieces[-1][:-1]
    return [integers(piece, 100.0) for piece in pieces] if len(pieces[0]) else 0


def _places(table: pd.DataFrame, latitude: str, longitude: str) -> np.ndarray:
    """Coordinates in degrees, float64 [N, 2], of two columns; longitude within [-180, 180)."""
    values = table[[latitude, longitude]].to_numpy(np.float64)
    return np.column_stack((values[:, 0], wrap_longitude(values[:, 1])))


def _heat(field: ErrorField, strategies: list[str]) -> dict[str, Any]:
    """A PNG in base64 of each strategy's field of error, fading out where no photo is near; and its scale."""
    low, high = np.log(HEAT_KM)
    scale = mpl.colormaps["inferno"]
    pictures = []
    for name in strategies:
        share = np.clip((np.log(field.typical_km[name]) - low) / (high - low), 0.0, 1.0)
        pixels = scale(0.15 + 0.85 * share)
        pixels[..., 3] = np.clip(field.photos / 2.0, 0.0, 1.0) * 0.85
        pictures.append(encoded(Image.fromarray(np.rint(255.0 * pixels).astype(np.uint8), "RGBA"), "PNG"))
    ramp = [mpl.colors.to_hex(scale(0.15 + 0.85 * share)) for share in np.linspace(0.0, 1.0, 9)]
    return {"pictures": pictures, "ramp": ramp, "ends": [f"{value:,.0f} km" for value in HEAT_KM]}
