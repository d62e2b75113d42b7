"""Two strategies side by side: two maps that move together, the same photos on both, what each strategy makes
of them.

A page made as those of :mod:`lib.show.maps` are: no network, on the Blue Marble. Draws, and computes nothing
beyond drawing.
"""

from __future__ import annotations

from pathlib import Path

import folium
import pandas as pd

from lib.data.datasets import root_of
from lib.runs import Run
from lib.show.maps import chosen_photos, photo_data, save_map, split_photos, world_page


def side_by_side_map(
    predictions: pd.DataFrame, image_root: Path | None, *, left: str = "", right: str = "", title: str = ""
) -> folium.Map:
    """Two world maps that pan and zoom together, one strategy on each; a photo opens on both at once.

    predictions, image_root: as :func:`lib.show.maps.prediction_map` takes them.
    left, right: strategies to begin with; default: the first, and the one with the most photos within 200 km.
    title: plain text of the bar above the maps and of the browser's tab.

    Raises ValueError: as :func:`lib.show.maps.prediction_map`, or fewer than two strategies, or ``left`` or
    ``right`` is none of them.
    """
    drawn, shown = chosen_photos(predictions)
    names = list(dict.fromkeys(drawn["strategy"]))
    if len(names) < 2:
        raise ValueError(
            f"side_by_side_map: two strategies are needed to compare; there is only {', '.join(names)}."
        )
    if unknown := [name for name in (left, right) if name and name not in names]:
        raise ValueError(
            f"side_by_side_map: there is no strategy {unknown[0]!r}; there are {', '.join(names)}."
        )
    left = left or names[0]
    near = (drawn["error_km"] <= 200.0).groupby(drawn["strategy"], sort=False).mean().drop(left)
    data = photo_data(predictions, drawn, shown, image_root) | {
        "title": title or "Two strategies, photo by photo",
        "sides": [names.index(left), names.index(right or near.idxmax())],
        "tiles": None,
    }
    return world_page("side_by_side.j2", data)


def draw_pair(run: Run, predictions: pd.DataFrame, manifest: pd.DataFrame) -> folium.Map | None:
    """The map of the first split's predictions side by side, also saved as maps/side_by_side.html; None with
    one strategy only."""
    if predictions["strategy"].nunique() < 2:
        return None
    split = predictions["split"].iloc[0]
    chosen, title = split_photos(predictions, manifest, run, split)
    world = side_by_side_map(chosen, root_of(run), title=f"{title}, two strategies side by side")
    save_map(world, run.map("side_by_side"))
    return world
