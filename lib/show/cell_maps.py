"""Maps of equal-area cells: how far off each strategy is, and where it gains or loses against the baseline.

Pages of :mod:`lib.show.world`; the cells' figures come from :mod:`lib.evaluate.regions`. Draws, and computes
nothing beyond drawing.
"""

from __future__ import annotations

from typing import Any

import folium
import numpy as np
import pandas as pd

from lib.evaluate.intervals import LEAST_PHOTOS
from lib.evaluate.regions import ERROR_CELL_KM, LEAST_FOR_A_MEAN
from lib.runs import Run
from lib.show.world import integers, require, save_map, world_page

INFERNO = ["#2a0b54", "#65156e", "#9f2a63", "#d44842", "#f57d15", "#fac228"]
"""Of matplotlib: evenly brighter from class to class, so that it reads without telling hues apart."""
BLUES = ["#c6dbef", "#6baed6", "#2f7fc1", "#08519c"]
ORANGES = ["#fdd0a2", "#fd8d3c", "#e05a07", "#a63603"]
"""Both of ColorBrewer, safe for the colour-blind; the numbers in the cells bear their sign besides."""
ERROR_PAGE = {
    "kind": "error",
    "bounds": [30, 100, 300, 1_000, 3_000],
    "ramp": INFERNO,
    "listed": 10,  # photos that a cell in the list of the largest errors has at least
    "legend": {
        "words": "Dark blue: small errors; yellow: large, kilometres",
        "ramp": INFERNO,
        "ticks": ["30", "100", "300", "1,000", "3,000", ""],
        "keys": [["transparent", "few", f"pale: fewer than {LEAST_FOR_A_MEAN} photos"]],
    },
}
GAIN_PAGE = {
    "kind": "gain",
    "bounds": [5, 10, 20],
    "ramp": BLUES,
    "loses": ORANGES,
    "least": LEAST_PHOTOS,
    "legend": {
        "words": "Blue: gains, in percentage points; orange: loses; grey: not shown",
        "ramp": [*reversed(ORANGES), *BLUES],
        "ticks": ["−20", "−10", "−5", "0", "+5", "+10", "+20", ""],
        "keys": [
            ["rgba(135, 149, 163, .6)", "", "not shown: its interval holds zero"],
            ["transparent", "few", f"fewer than {LEAST_PHOTOS} photos"],
        ],
    },
}
"""What the two kinds of page say and show whatever the cells are."""
SPLIT_NAMES = {"test_blocked": "test_blocked: cells held out whole"}
METRIC_NAMES = {"mean_km": "mean error", "median_km": "median error"}
EDGES = ["south", "west", "north", "east"]
OF_BOTH = ("split", "strategy", "seeds", "n", *EDGES, "place")
OF_ERRORS = ("cell", "mean_km", "mean_low", "mean_high", "median_km", *OF_BOTH)
OF_GAINS = ("group", "side_km", "baseline", "metric", "difference", "corrected_low", "corrected_high",
            "verdict", "comparisons", *OF_BOTH)  # fmt: skip


def error_cell_map(cells: pd.DataFrame, title: str = "") -> folium.Map:
    """World map of the mean and median error by equal-area cell, one split and strategy at a time.

    Args:
        cells: the table of :func:`lib.evaluate.regions.cell_errors`.
        title: plain text above the controls and of the browser's tab.

    Raises:
        ValueError: no rows, or a column is missing; the message names it.
    """
    _check(cells, OF_ERRORS)
    cells = cells.rename(columns={"cell": "group", "mean_low": "low", "mean_high": "high"})
    cells["verdict"] = np.where(cells["n"] < LEAST_FOR_A_MEAN, "too few photos", "")
    mean = cells.assign(metric="mean_km", value=cells["mean_km"])
    median = cells.assign(metric="median_km", value=cells["median_km"], low=np.nan, high=np.nan)
    long = pd.concat([mean, median])
    notes = [
        f"Cells of {ERROR_CELL_KM:,.0f} km, all of the same area; "
        f"a cell's errors are those of its photos over {_seeds(cells)}.",
        "The mean is drawn to the few photos that are placed on another continent; the median is not.",
        "Intervals: 95 %, over the cell's photos and the seeds, not corrected for the number of cells.",
    ]
    choices = [_choice("strategy", "Strategy", cells), _choice("metric", "Error", long, METRIC_NAMES)]
    titled = {"title": title or "How far off, by equal-area cell", "notes": notes}
    return _page(long, ["split"], choices, ERROR_PAGE | titled)


def gain_cell_map(cells: pd.DataFrame, title: str = "") -> folium.Map:
    """World map of where each strategy places more or fewer photos right than the baseline, by cell.

    A cell has a colour only where its corrected interval leaves zero out; else it is grey, "not shown".

    Args:
        cells: the table of :func:`lib.evaluate.regions.cell_gains`.
        title: plain text above the controls and of the browser's tab.

    Raises:
        ValueError: no rows, or a column is missing; the message names it.
    """
    _check(cells, OF_GAINS)
    cells = cells.assign(side=cells["side_km"].map("{:g}".format))
    cells[["value", "low", "high"]] = 100.0 * cells[["difference", "corrected_low", "corrected_high"]]
    gains = (cells["verdict"] == "gains").groupby(cells["strategy"]).transform("sum")
    most_gains_first = cells.assign(gains=gains).sort_values("gains", ascending=False, kind="stable")
    headline_first = cells.sort_values("metric", key=lambda names: names != "acc_200km", kind="stable")
    sides = {side: f"{float(side):,.0f} km" for side in cells["side"].unique()}
    metrics = {name: f"within {int(name[4:-2]):,} km" for name in cells["metric"].unique()}
    choices = [
        _choice("side", "Cells", cells, sides),
        _choice("strategy", f"Strategy, against {cells['baseline'].iloc[0]}", most_gains_first),
        _choice("metric", "Photos placed", headline_first, metrics),
    ]
    notes = [
        f"Difference in percentage points of the cell's photos, paired by photo and seed ({_seeds(cells)}). "
        "All cells have the same area: large ones show more, small ones say where.",
        "Intervals hold for all cells of one map at once with 95 % (Bonferroni, up to "
        f"{int(cells['comparisons'].max())} cells); looking through many maps is not allowed for.",
        "Grey does not mean no difference: it means that these photos cannot show one.",
    ]
    titled = {"title": title or "Where does it help?", "notes": notes}
    return _page(cells, ["split", "side"], choices, GAIN_PAGE | titled)


def draw_cells(run: Run, tables: dict[str, pd.DataFrame], strategies: list[str]) -> folium.Map:
    """The map of gains, or of errors where nothing can be compared; both are saved under maps/.

    Args:
        tables: error_cells and gain_cells, as :func:`lib.evaluate.regions.make` gives them.
        strategies: those to show.
    """
    errors, gained = (
        table[table["strategy"].isin(strategies)] for table in (tables["error_cells"], tables["gain_cells"])
    )
    page = error_cell_map(errors, f"{run.name}: how far off, by cell")
    save_map(page, run.map("error_cells"))
    if len(gained):
        page = gain_cell_map(gained, f"{run.name}: where does it help?")
        save_map(page, run.map("gain_cells"))
    return page


def _check(cells: pd.DataFrame, columns: tuple[str, ...]) -> None:
    require("cell map: the cells", cells, columns, "run the evaluation that writes them first")


def _page(
    cells: pd.DataFrame, grid: list[str], choices: list[dict[str, Any]], data: dict[str, Any]
) -> folium.Map:
    """A page with value, low, high and verdict of each cell (column group) for each of the ``choices``."""
    choices = [_choice("split", "Photos", cells, SPLIT_NAMES), *choices]
    cells = cells.sort_values("group", kind="stable")
    views, grids = {}, {}
    for key, frame in cells.groupby([choice["key"] for choice in choices], sort=False):
        numbers = {name: _numbers(frame[name]) for name in ("value", "low", "high")}
        views["|".join(key)] = numbers | {"verdict": frame["verdict"].tolist()}
    for key, frame in cells.groupby(grid, sort=False):
        there = frame.drop_duplicates("group")
        bounds = integers(there[EDGES], 100)
        photos, places = there["n"].tolist(), there["place"].tolist()
        grids["|".join(key)] = {"bounds": bounds, "photos": photos, "places": places}
    return world_page("cells", data | {"choices": choices, "views": views, "grid_by": grid, "grids": grids})


def _numbers(values: pd.Series) -> list[float | None]:
    """Four significant digits; null where there is no number."""
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values.astype(np.float64)]


def _choice(key: str, label: str, cells: pd.DataFrame, names: dict[str, str] | None = None) -> dict[str, Any]:
    """The values of the column ``key`` to choose from, in the rows' order, and what ``names`` calls them."""
    options = [[value, (names or {}).get(value, value)] for value in cells[key].unique()]
    return {"key": key, "label": label, "options": options}


def _seeds(cells: pd.DataFrame) -> str:
    seeds = int(cells["seeds"].max())
    return f"{seeds} seeds" if seeds > 1 else "one seed"
