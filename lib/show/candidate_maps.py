"""A map of candidates: where a model puts photos, how its probability lies over the Earth, the true places.

One page of :mod:`lib.show.world` for all photos. Draws, and computes nothing beyond drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folium
import numpy as np
import pandas as pd

from lib.data.sphere import wrap_longitude
from lib.show.world import HEAT, great_circle, integers, require, thumbnail, world_page

MAX_PHOTOS = 200
"""Photos on one page: 20 kB each, so that it stays below 10 MB."""
MAX_HEAT_POINTS = 100_000
"""Gallery points on one page, shared evenly among its photos."""
THUMBNAIL_PX = 300
NUMBERS = ["latitude", "longitude", "probability", "probability_within_200km"]
CANDIDATES = ("photo", "rank", *NUMBERS, "town", "country", "true_latitude", "true_longitude", "error_km")
MASS = ("photo", "latitude", "longitude", "probability")
CELL_PX = 15
EXPLAINED = (
    "Probability: of one gallery point, and of all points within 200 km of it. "
    "Candidates are distinct places.",
    f"Heat: probability of the gallery's points, summed in cells of {CELL_PX} pixels; the colour follows its "
    "square root, so that little probability stays visible. Neighbouring cells blend.",
    "Probabilities are a softmax over the gallery and not calibrated: "
    "60 % does not mean right in six of ten.",
)


def candidate_map(
    candidates: pd.DataFrame, mass: pd.DataFrame, root: Path, *, title: str = "", notes: Sequence[str] = ()
) -> folium.Map:
    """World map of the candidates of one photo at a time, chosen from a list of all photos.

    Args:
        candidates: a row per photo and rank, columns ``CANDIDATES``, of :func:`lib.predict.predict.predict`:
            degrees, fractions, kilometres; the true place and the error may be NaN.
        mass: a row per photo and gallery point, the likeliest first, columns ``MASS``.
        root: folder that the photos' names are relative to. A photo that cannot be read has no thumbnail.
        title: which model this is, plain text.
        notes: sentences for the end of the page, plain text.

    Of more than ``MAX_PHOTOS`` photos the first are drawn, and the page says so.

    Raises:
        ValueError: no rows, a column is missing, or a photo has no mass; the message names it.
    """
    _check(candidates, mass)
    photos = candidates["photo"].drop_duplicates().tolist()
    shown, said = photos[:MAX_PHOTOS], [*EXPLAINED, *notes]
    if len(shown) < len(photos):
        said.append(f"The first {len(shown):,} of {len(photos):,} photos are shown; the table holds all.")
    points = MAX_HEAT_POINTS // len(shown)
    by_photo = candidates.sort_values("rank", kind="stable").groupby("photo", sort=False)
    heat = mass.groupby("photo", sort=False)
    data = {
        "title": title or "Where is this photo?",
        "notes": said,
        "cell": CELL_PX,
        "photos": [
            _photo(name, by_photo.get_group(name), heat.get_group(name)[:points], root) for name in shown
        ],
    }
    return world_page("candidates", data, [HEAT])


def _photo(name: str, rows: pd.DataFrame, heat: pd.DataFrame, root: Path) -> dict[str, Any]:
    """What the page needs of one photo: places in degrees, probabilities as fractions, heat as integers."""
    found = rows[["latitude", "longitude"]].to_numpy(np.float64)
    truth = rows[["true_latitude", "true_longitude"]].to_numpy(np.float64)[0]
    is_known = bool(np.isfinite(truth).all())
    # Parts in ten million: of 100,000 equally likely points each still has a hundred.
    triples = (integers(heat[column], scale) for column, scale in zip(MASS[1:], (100, 100, 1e7), strict=True))
    return {
        "name": str(name),
        "thumbnail": thumbnail(root, name, THUMBNAIL_PX),
        "candidates": [
            {
                "at": [round(row.latitude, 4), round(float(wrap_longitude(row.longitude)), 4)],
                "probability": float(f"{row.probability:.4g}"),
                "nearby": float(f"{row.probability_within_200km:.4g}"),
                "place": ", ".join(str(part) for part in (row.town, row.country) if part),
                "error_km": round(float(row.error_km), 2) if is_known else None,
            }
            for row in rows.itertuples(index=False)
        ],
        "truth": [round(float(value), 4) for value in truth] if is_known else None,
        "line": [integers(piece, 100) for piece in great_circle(truth, found[0])] if is_known else [],
        "heat": np.array([*triples]).T.ravel().tolist(),
        "share": float(f"{heat['probability'].sum():.4g}"),
    }


def _check(candidates: pd.DataFrame, mass: pd.DataFrame) -> None:
    require("candidate_map: the candidates", candidates, CANDIDATES, "predict at least one photo")
    require("candidate_map: the mass", mass, MASS, "predict at least one photo")
    good = np.isfinite(candidates[NUMBERS].to_numpy(np.float64)).all(1)
    if not good.all():
        row = candidates.iloc[int(np.argmin(good))]
        raise ValueError(
            f"candidate_map: candidate {row['rank']} of the photo {row['photo']!r} is not a finite number."
        )
    if without := sorted(set(candidates["photo"]) - set(mass["photo"])):
        raise ValueError(f"candidate_map: the photo {without[0]!r} has candidates but no mass.")
