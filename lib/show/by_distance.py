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
    beta, grid_km = run.settings.training.own(STRATEGY)[1].beta, np.geomspace(FROM_KM, TO_KM, 80)
    gamma = fitted.gamma(km_to_rad(np.append(grid_km, table["distance_km"])))
    top = 1.05 * float(gamma.max())
    x = WIDTH * np.log(np.append(grid_km, table["distance_km"]) / FROM_KM) / np.log(TO_KM / FROM_KM)
    points = np.column_stack((x.clip(0.0), HEIGHT * (1.0 - gamma / top))).round(1)
    margins = beta * fitted.correlation(km_to_rad(table["distance_km"].to_numpy()))
    photos, root = features.photos(run).set_index("id"), datasets.root_of(run)
    rows = []
    for row, point, lost in zip(table.to_dict("records"), points[80:].tolist(), margins, strict=True):
        both = [photos.loc[row[one]] for one in ("first", "second")]
        pictures = [
            (_thumbnail(root, one["path"]), place_label(one["latitude"], one["longitude"])) for one in both
        ]
        rows.append(row | {"at": point, "margin": beta - lost, "pictures": pictures})
    ticks = [(km, round(WIDTH * np.log(km / FROM_KM) / np.log(TO_KM / FROM_KM), 1)) for km in TICKS_KM]
    path = " ".join(f"{across},{down}" for across, down in points[:80].tolist())
    size = {"width": WIDTH, "height": HEIGHT, "ticks": ticks}
    return {"rows": rows, "path": path, "beta": beta, "strategy": STRATEGY, **size}


def _thumbnail(root: Path, path: str) -> str:
    """A JPEG in base64; empty where the photo cannot be read."""
    try:
        small = Image.fromarray(brightened(root, path, SIDE_PX))
    except UNREADABLE:
        return ""
    small.thumbnail((SIDE_PX, SIDE_PX))
    return jpeg(small, 70)
