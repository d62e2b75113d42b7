"""The curve, distance by distance, with a pair of photos at each: what the report needs to show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from lib.data import datasets, features
from lib.data.photos import UNREADABLE
from lib.method.geodesy import km_to_rad
from lib.method.semivariogram import FittedSemivariogram
from lib.runs import Run
from lib.show.style import brightened, place_label
from lib.show.world import jpeg

STRATEGY = "semivariance_margin"
FROM_KM, TO_KM, WIDTH, HEIGHT = 30.0, 20_000.0, 640, 200
TICKS_KM = (100, 1_000, 10_000)
SIDE_PX = 180


def steps(run: Run, table: pd.DataFrame) -> dict[str, Any]:
    """The curve as a path of SVG and, for each row of ``table`` (:func:`lib.evaluate.pairs.typical`), both
    photos and by how much a wrong place must lose. {} without pairs, or where no curve rises."""
    fitted = FittedSemivariogram.load(run.semivariogram) if len(table) else None
    if fitted is None or not fitted.rises:
        return {}
    beta, km = run.settings.training.own(STRATEGY)[1].beta, table["distance_km"].to_numpy()
    grid_km = np.append(np.geomspace(FROM_KM, TO_KM, 80), km)
    down = HEIGHT * (1.0 - fitted.gamma(km_to_rad(grid_km)) / (1.05 * fitted.sill))
    points = np.column_stack((_across(grid_km), down)).round(1).tolist()
    margins = beta * (1.0 - fitted.correlation(km_to_rad(km)))
    photos, root = features.photos(run).set_index("id"), datasets.root_of(run)
    rows = []
    for row, point, margin in zip(table.to_dict("records"), points[80:], margins, strict=True):
        both = [photos.loc[row[one]] for one in ("first", "second")]
        pictures = [
            (_thumbnail(root, one["path"]), place_label(one["latitude"], one["longitude"])) for one in both
        ]
        rows.append(row | {"at": point, "margin": margin, "pictures": pictures})
    ticks = [(km, _across(km).round(1)) for km in TICKS_KM]
    path = " ".join(f"{x},{y}" for x, y in points[:80])
    size = {"width": WIDTH, "height": HEIGHT, "ticks": ticks}
    return {"rows": rows, "path": path, "beta": beta, "strategy": STRATEGY, **size}


def _across(km: float | np.ndarray) -> np.ndarray:
    """Where a distance lies on the picture, in its units from the left; logarithmic."""
    return np.clip(WIDTH * np.log(km / FROM_KM) / np.log(TO_KM / FROM_KM), 0.0, None)


def _thumbnail(root: Path, path: str) -> str:
    """A JPEG in base64; empty where the photo cannot be read."""
    try:
        small = Image.fromarray(brightened(root, path, SIDE_PX))
    except UNREADABLE:
        return ""
    small.thumbnail((SIDE_PX, SIDE_PX))
    return jpeg(small, 70)
