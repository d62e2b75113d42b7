"""The map of candidates: where a model puts a photo, and how its probability lies over the Earth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folium
import matplotlib as mpl
import numpy as np
import pandas as pd

from lib.data.places import country_names
from lib.show import world

MAX_PHOTOS, MAX_HEAT_POINTS = 200, 100_000
"""Photos on one page (20 kB each: below 10 MB), and gallery points, shared evenly among its photos."""
THUMBNAIL_PX, CELL_PX = 300, 12
CANDIDATES = ("photo", "rank", "latitude", "longitude", "probability", "probability_within_200km",
              "town", "country", "true_latitude", "true_longitude", "error_km")  # fmt: skip
MASS = ("photo", "latitude", "longitude", "probability")
RAMP = [mpl.colors.to_hex(colour) for colour in mpl.colormaps["inferno"](np.linspace(0.3, 1.0, 16))]
"""Colours of the heat, from little to most probability."""
EXPLAINED = (
    "Probability: of one gallery point, and of all within 200 km of it. Candidates are distinct places.",
    "Heat: the points' probability, summed in each square of the screen; the colour is proportional to it.",
    "Probabilities are a softmax over the gallery, not calibrated: 60 % does not mean right in six of ten.",
)


def candidate_map(
    candidates: pd.DataFrame, mass: pd.DataFrame, root: Path, *,
    title: str = "", notes: Sequence[str] = (), warning: str = "",
) -> folium.Map:  # fmt: skip
    """World map of the candidates of one photo at a time, of at most ``MAX_PHOTOS``, chosen from a list.

    ``candidates`` (``CANDIDATES``: degrees, fractions, kilometres; true place and error may be NaN) and
    ``mass`` are those of :func:`lib.predict.predict.predict`, of photos below ``root``. ``title``, ``notes``
    at the end of the page and ``warning`` across the map are plain text.
    """
    photos = candidates["photo"].drop_duplicates().tolist()
    shown, said = photos[:MAX_PHOTOS], [*EXPLAINED, *notes]
    if len(shown) < len(photos):
        said.append(f"The first {len(shown):,} of {len(photos):,} photos are shown; the table holds all.")
    ranked = candidates.assign(near=place_names(candidates)).sort_values("rank", kind="stable")
    by_photo, heat, points = ranked.groupby("photo"), mass.groupby("photo"), MAX_HEAT_POINTS // len(shown)
    drawn = [_photo(by_photo.get_group(name), heat.get_group(name)[:points]) for name in shown]
    page = {"title": title or "Where is this photo?", "notes": said, "warning": warning, "photos": drawn}
    page |= {"cell": CELL_PX, "ramp": RAMP} | world.photos_of(root, shown, shown, THUMBNAIL_PX)
    return world.world_page("candidates", page)


def place_names(candidates: pd.DataFrame) -> pd.Series:
    """Town and country in full ("Greenstone, Canada") of each row's ``town`` and country code ``country``."""
    places = candidates["town"], candidates["country"].replace(country_names())
    found = [", ".join(str(part) for part in place if part) for place in zip(*places, strict=True)]
    return pd.Series(found, index=candidates.index, dtype=object)


def _photo(rows: pd.DataFrame, heat: pd.DataFrame) -> dict[str, Any]:
    """What the page needs of one photo: places in degrees, probabilities as fractions, heat as integers."""
    truth = rows[["true_latitude", "true_longitude"]].to_numpy(np.float64)[0]
    is_known, candidates = np.isfinite(truth).all(), []
    for row in rows.itertuples(index=False):
        candidates.append({
            "at": [round(row.latitude, 4), round(row.longitude, 4)],
            "probability": float(f"{row.probability:.4g}"),
            "nearby": float(f"{row.probability_within_200km:.4g}"), "place": row.near,
            "error_km": round(float(row.error_km), 2) if is_known else None,
        })  # fmt: skip
    # Parts in ten million: of 100,000 equally likely points each still has a hundred.
    triples = heat[[*MASS[1:]]].to_numpy(np.float64) * (100.0, 100.0, 1e7)
    return {
        "candidates": candidates, "truth": truth.round(4).tolist() if is_known else None,
        "heat": world.integers(triples, 1.0), "share": float(f"{heat['probability'].sum():.4g}"),
    }  # fmt: skip
