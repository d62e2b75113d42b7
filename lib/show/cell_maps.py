"""Maps of equal-area cells: how far off each strategy is, and where it gains or loses against the baseline.

Pages made as those of :mod:`lib.show.maps` are: no network, on the Blue Marble. The cells' figures come from
:mod:`lib.evaluate.regions`; draws, and computes nothing beyond drawing.
"""

from __future__ import annotations

from typing import Any

import folium
import numpy as np
import pandas as pd

from lib.evaluate.intervals import LEAST_PHOTOS
from lib.evaluate.regions import LEAST_FOR_A_MEAN
from lib.method.geodesy import EARTH_RADIUS_KM
from lib.runs import Run
from lib.show.maps import integers, save_map, world_page

ERROR_BOUNDS_KM = (30, 100, 300, 1_000, 3_000)
ERROR_RAMP = ("#2a0b54", "#65156e", "#9f2a63", "#d44842", "#f57d15", "#fac228")
"""Inferno of matplotlib: evenly brighter from class to class, so that it reads without telling hues apart."""
LISTED_PHOTOS = 10
"""Photos of a cell that the list of the largest errors takes at least."""
GAIN_BOUNDS = (5, 10, 20)
GAIN_RAMP = ("#c6dbef", "#6baed6", "#2f7fc1", "#08519c")
LOSS_RAMP = ("#fdd0a2", "#fd8d3c", "#e05a07", "#a63603")
"""Blue and orange of ColorBrewer, safe for the colour-blind; the numbers in the cells bear their sign
besides."""
SPLIT_NAMES = {"test_blocked": "test_blocked: cells held out whole"}
METRIC_NAMES = {"mean_km": "mean error", "median_km": "median error"}
CELL_COLUMNS = ("n", "south", "west", "north", "east", "place")


def error_cell_map(cells: pd.DataFrame, title: str = "") -> folium.Map:
    """World map of the mean and median error by equal-area cell, one split and strategy at a time.

    cells: the table of :func:`lib.evaluate.regions.cell_errors`. title: plain text above the controls and of
    the browser's tab.

    Raises ValueError: no rows, or a column is missing; the message names it.
    """
    _check(
        cells,
        (
            "split",
            "strategy",
            "cell",
            "seeds",
            "mean_km",
            "mean_low",
            "mean_high",
            "median_km",
            *CELL_COLUMNS,
        ),
    )
    strategies = list(dict.fromkeys(cells["strategy"]))
    views = {
        "|".join((split, strategy, metric)): {
            "value": _numbers(frame[metric]),
            **(
                {"low": _numbers(frame["mean_low"]), "high": _numbers(frame["mean_high"])}
                if metric == "mean_km"
                else {}
            ),
        }
        for (split, strategy), frame in _by_view(cells, "cell", ["split"], ["strategy"])
        for metric in METRIC_NAMES
    }
    data = {
        "kind": "error",
        "title": title or "How far off, by equal-area cell",
        "grids": _grids(cells, "cell", ["split"]),
        "grid_by": ["split"],
        "views": views,
        "choices": [
            _splits(cells),
            _choice("strategy", "Strategy", strategies),
            _choice("metric", "Error", list(METRIC_NAMES), METRIC_NAMES),
        ],
        "bounds": list(ERROR_BOUNDS_KM),
        "ramp": list(ERROR_RAMP),
        "least": LEAST_FOR_A_MEAN,
        "listed": LISTED_PHOTOS,
        "notes": [
            f"Cells of {_side(cells):,.0f} km, all of the same area; a cell's errors are those of its "
            f"photos over {_seeds(cells)}.",
            "The mean is drawn to the few photos that are placed on another continent; the median is not.",
            "Intervals: 95 %, over the cell's photos and the seeds, not corrected for the number of cells.",
        ],
    }
    return world_page("cell_map.j2", data)


def gain_cell_map(cells: pd.DataFrame, title: str = "") -> folium.Map:
    """World map of where each strategy places more or fewer photos right than the baseline, by cell.

    A cell has a colour only where its corrected interval leaves zero out; else it is grey, "not shown".

    cells: the table of :func:`lib.evaluate.regions.cell_gains`. title: plain text above the controls and of
    the browser's tab.

    Raises ValueError: no rows, or a column is missing; the message names it.
    """
    needed = ["split", "strategy", "baseline", "metric", "group", "side_km", "seeds", "difference"]
    needed += ["corrected_low", "corrected_high", "verdict"]
    _check(cells, (*needed, *CELL_COLUMNS))
    cells = cells.assign(side=cells["side_km"].map("{:g}".format))
    views = {
        "|".join((split, side, strategy, metric)): {
            "value": _numbers(100.0 * frame["difference"]),
            "low": _numbers(100.0 * frame["corrected_low"]),
            "high": _numbers(100.0 * frame["corrected_high"]),
            "verdict": frame["verdict"].tolist(),
        }
        for (split, side, strategy, metric), frame in _by_view(
            cells, "group", ["split", "side"], ["strategy", "metric"]
        )
    }
    metrics = {name: f"within {int(name[4:-2]):,} km" for name in dict.fromkeys(cells["metric"])}
    order = sorted(metrics, key=lambda name: name != "acc_200km")
    strategies = _most_gains_first(cells)
    sides = {side: f"{float(side):,.0f} km" for side in dict.fromkeys(cells["side"])}
    tested = int(cells["comparisons"].max()) if "comparisons" in cells else 0
    data = {
        "kind": "gain",
        "title": title or "Where does it help?",
        "grids": _grids(cells, "group", ["split", "side"]),
        "grid_by": ["split", "side"],
        "views": views,
        "choices": [
            _splits(cells),
            _choice("side", "Cells", list(sides), sides),
            _choice("strategy", f"Strategy, against {cells['baseline'].iloc[0]}", strategies),
            _choice("metric", "Photos placed", order, metrics),
        ],
        "bounds": list(GAIN_BOUNDS),
        "gains": list(GAIN_RAMP),
        "loses": list(LOSS_RAMP),
        "least": LEAST_PHOTOS,
        "notes": [
            "Difference in percentage points of the cell's photos, paired by photo and seed "
            f"({_seeds(cells)}). All cells have the same area: large ones show more, small ones say where.",
            f"Intervals hold for all cells of one map at once with 95 % (Bonferroni, up to {tested} cells); "
            "looking through many maps is not allowed for.",
            "Grey does not mean no difference: it means that these photos cannot show one.",
        ],
    }
    return world_page("cell_map.j2", data)


def draw_cells(run: Run, tables: dict[str, pd.DataFrame], strategies: list[str]) -> folium.Map:
    """The map of gains, or of errors where nothing can be compared; both are saved under maps/.

    tables: error_cells and gain_cells, as :func:`lib.evaluate.regions.make` gives them. strategies: those to
    show.
    """
    errors, gained = (
        tables[name][tables[name]["strategy"].isin(strategies)] for name in ("error_cells", "gain_cells")
    )
    world = error_cell_map(errors, f"{run.name}: how far off, by cell")
    save_map(world, run.map("error_cells"))
    if gained.empty:
        return world
    gains = gain_cell_map(gained, f"{run.name}: where does it help?")
    save_map(gains, run.map("gain_cells"))
    return gains


def _check(cells: pd.DataFrame, columns: tuple[str, ...]) -> None:
    if missing := [name for name in columns if name not in cells]:
        raise ValueError(f"cell map: the cells lack the column {', '.join(map(repr, missing))}.")
    if cells.empty:
        raise ValueError("cell map: the cells have no rows; run the evaluation that writes them first.")


def _by_view(
    cells: pd.DataFrame, cell: str, grid: list[str], keys: list[str]
) -> list[tuple[tuple, pd.DataFrame]]:
    """The rows of each view, one a cell of its grid, in the order of :func:`_grids`."""
    order = {
        key: frame[cell].drop_duplicates().sort_values() for key, frame in cells.groupby(grid, sort=False)
    }
    return [
        (key, frame.set_index(cell).loc[order[key[: len(grid)]]])
        for key, frame in cells.groupby([*grid, *keys], sort=False)
    ]


def _grids(cells: pd.DataFrame, cell: str, grid: list[str]) -> dict[str, dict[str, list]]:
    """Edges in hundredths of a degree, number of photos and place of the cells of each grid."""
    grids = {}
    for key, frame in cells.groupby(grid, sort=False):
        there = frame.drop_duplicates(cell).sort_values(cell)
        bounds = there[["south", "west", "north", "east"]].to_numpy(np.float64)
        grids["|".join(key)] = {
            "bounds": integers(bounds, 100),
            "photos": there["n"].tolist(),
            "places": there["place"].tolist(),
        }
    return grids


def _numbers(values: pd.Series) -> list[float | None]:
    """Four significant digits; null where there is no number."""
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values.to_numpy(np.float64)]


def _choice(key: str, label: str, values: list[str], names: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "key": key,
        "label": label,
        "options": [[value, (names or {}).get(value, value)] for value in values],
    }


def _splits(cells: pd.DataFrame) -> dict[str, Any]:
    return _choice("split", "Photos", list(dict.fromkeys(cells["split"])), SPLIT_NAMES)


def _most_gains_first(cells: pd.DataFrame) -> list[str]:
    """Strategies, those that gain in the most cells first."""
    gained = (cells["verdict"] == "gains").groupby(cells["strategy"], sort=False).sum()
    return gained.sort_values(ascending=False, kind="stable").index.tolist()


def _side(cells: pd.DataFrame) -> float:
    """Side in kilometres of a square with a cell's area, to the nearest 10."""
    one = cells.iloc[0]
    turn = np.deg2rad(one["east"] - one["west"]) * (
        np.sin(np.deg2rad(one["north"])) - np.sin(np.deg2rad(one["south"]))
    )
    return round(float(np.sqrt(turn)) * EARTH_RADIUS_KM, -1)


def _seeds(cells: pd.DataFrame) -> str:
    seeds = int(cells["seeds"].max())
    return f"{seeds} seeds" if seeds > 1 else "one seed"
