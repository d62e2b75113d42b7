"""A map of candidates: where a model puts photos, how its probability lies over the Earth, and the true place
where known.

One page for all photos, made as the maps of :mod:`lib.show.maps` are: no network, on the Blue Marble. Draws,
and computes nothing beyond drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folium
import numpy as np
import pandas as pd

from lib.data.photos import UNREADABLE
from lib.data.sphere import wrap_longitude
from lib.show.maps import great_circle, integers, thumbnail, world_page

HEAT_SCRIPT = (
    "https://cdn.jsdelivr.net/gh/python-visualization/folium@main/folium/templates/leaflet_heat.min.js"
)
"""Name of Leaflet.heat in ``lib.show.maps.EMBEDDED_RESOURCES``; nothing is fetched from it."""
MAX_PHOTOS = 200
"""Photos on one page: 20 kB each, so that it stays below 10 MB."""
MAX_HEAT_POINTS = 100_000
"""Gallery points on one page, shared evenly among its photos."""
THUMBNAIL_PX = 300
CANDIDATES = ("photo", "rank", "latitude", "longitude", "probability", "probability_within_200km",
              "town", "country", "true_latitude", "true_longitude", "error_km")  # fmt: skip
MASS = ("photo", "latitude", "longitude", "probability")


def candidate_map(
    candidates: pd.DataFrame, mass: pd.DataFrame, root: Path, *, title: str = "", notes: Sequence[str] = ()
) -> folium.Map:
    """World map of the candidates of one photo at a time, chosen from a list of all photos.

    The heat is the probability of the gallery's points, summed in cells of 15 screen pixels at whatever zoom;
    its colour follows the square root of a cell's probability relative to the most probable cell, so that a
    hundredth still has a tenth of the scale. The page says so, and that the probabilities are not calibrated.

    candidates: a row per photo and rank, columns ``CANDIDATES`` (``lib.predict.predict`` makes them):
    degrees, fractions, kilometres;
        the true place and the error may be NaN.
    mass: a row per photo and gallery point, the likeliest first, columns ``MASS``.
    root: folder that the photos' names are relative to. A photo that cannot be read has no thumbnail.
    title: which model this is, plain text.
    notes: sentences for the end of the page, plain text.

    Of more than ``MAX_PHOTOS`` photos the first are drawn, and the page says so.

    Raises ValueError: no rows, a column is missing, or a photo has no mass; the message names it.
    """
    _check(candidates, mass)
    photos = candidates["photo"].drop_duplicates().tolist()
    shown, said = photos[:MAX_PHOTOS], list(notes)
    if len(shown) < len(photos):
        said.insert(0, f"The first {len(shown):,} of {len(photos):,} photos are shown; the table holds all.")
    points = min(len(mass), MAX_HEAT_POINTS // len(shown))
    by_photo = candidates.sort_values("rank", kind="stable").groupby("photo", sort=False)
    heat = mass.groupby("photo", sort=False)
    data = {
        "title": title or "Where is this photo?",
        "notes": said,
        "photos": [
            _photo(name, by_photo.get_group(name), heat.get_group(name)[:points], root) for name in shown
        ],
    }
    return world_page("candidate_map.j2", data, [HEAT_SCRIPT])


def _photo(name: str, rows: pd.DataFrame, heat: pd.DataFrame, root: Path) -> dict[str, Any]:
    """What the page needs of one photo: places in degrees, probabilities as fractions, the heat as
    integers."""
    found = rows[["latitude", "longitude"]].to_numpy(np.float64)
    truth = rows[["true_latitude", "true_longitude"]].to_numpy(np.float64)[0]
    is_known = bool(np.isfinite(truth).all())
    pieces = great_circle(truth, found[0]) if is_known else []
    # Parts in ten million: of 100,000 equally likely points each still has a hundred.
    triples = (
        integers(heat["latitude"], 100),
        integers(heat["longitude"], 100),
        integers(heat["probability"], 1e7),
    )
    return {
        "name": str(name),
        "thumbnail": _thumbnail_of(root, name),
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
        "line": [integers(piece, 100) for piece in pieces],
        "heat": np.array(triples).T.ravel().tolist(),
        "share": float(f"{heat['probability'].sum():.4g}"),
    }


def _thumbnail_of(root: Path, name: str) -> str:
    try:
        return thumbnail(root, name, THUMBNAIL_PX)
    except (*UNREADABLE, TypeError):
        return ""


def _check(candidates: pd.DataFrame, mass: pd.DataFrame) -> None:
    for table, columns, word in ((candidates, CANDIDATES, "candidates"), (mass, MASS, "mass")):
        if missing := [name for name in columns if name not in table]:
            raise ValueError(f"candidate_map: the {word} lack the column {', '.join(map(repr, missing))}.")
    if candidates.empty:
        raise ValueError("candidate_map: the candidates have no rows; predict at least one photo.")
    places = candidates[["latitude", "longitude", "probability", "probability_within_200km"]].to_numpy(
        np.float64
    )
    if not np.isfinite(places).all():
        row = candidates.iloc[int(np.argmin(np.isfinite(places).all(1)))]
        raise ValueError(
            f"candidate_map: candidate {row['rank']} of the photo {row['photo']!r} is not a finite number."
        )
    if without := sorted(set(candidates["photo"]) - set(mass["photo"])):
        raise ValueError(f"candidate_map: the photo {without[0]!r} has candidates but no mass.")
