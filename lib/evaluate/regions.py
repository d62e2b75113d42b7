"""Where on Earth: differences by continent and by equal-area cell, mean errors by cell, a smooth field of
error.

A cell holds few photos, a world many cells: intervals of differences hold for all cells of one map at once
with 95 %, so a cell that is said to gain or lose is not the luckiest of a hundred. Most say "not shown".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial import KDTree

from lib.data.manifest import read_table
from lib.data.places import country_names
from lib.data.sphere import EqualAreaGrid
from lib.evaluate.evaluation import save_table
from lib.evaluate.intervals import compare, corrected, levels, means_of
from lib.method.geodesy import EARTH_RADIUS_KM, distance_km, unit_vectors
from lib.runs import Run
from lib.train.metrics import COMPARED, HEADLINE, METRICS

CELL_METRICS = ("acc_25km", "acc_200km", "acc_750km", "acc_2500km")
ERROR_CELL_KM = 1_000.0
GAIN_CELL_KM = (2_000.0, 4_000.0)
"""Sides of the cells. A mean error needs fewer photos than a difference of two accuracies; large cells show
more, small ones say where."""
LEAST_FOR_A_MEAN = 5
REACH_KM = 300.0
"""Standard deviation of the kernel that smooths the field of error, in kilometres."""
FIELD_SIDE = 200
SMALLEST_ERROR_KM = 1.0
TABLES = ("gain_by_continent", "gain_cells", "error_cells", "intervals")
"""What :func:`make` writes."""


def continent_gains(predictions: pd.DataFrame, continents: pd.Series) -> pd.DataFrame:
    """Differences by continent, corrected for all strategies and continents of a split and radius.

    Args:
        continents: continent of each photo, indexed by id.
    """
    table = compare(predictions, metrics=COMPARED, groups=continents)
    return corrected(table, ("split", "metric")).rename(columns={"group": "continent"})


def cell_gains(
    predictions: pd.DataFrame, countries: pd.Series | None = None, sides_km: Sequence[float] = GAIN_CELL_KM
) -> pd.DataFrame:
    """Differences by equal-area cell, the cells of a map corrected together.

    Args:
        countries: country code of each photo, indexed by id; names the cells.
        sides_km: sides of the cells; each size is a map of its own.

    Returns:
        The columns of :func:`lib.evaluate.intervals.corrected` (group: index of the cell), side_km, the
        cell's south, west, north and east in degrees, and its place.
    """
    tables = []
    for side_km in sides_km:
        grid = EqualAreaGrid.of(side_km)
        cells = _cells(predictions, grid)
        table = compare(predictions, metrics=CELL_METRICS, groups=cells)
        table = corrected(table, ("split", "strategy", "metric")).assign(side_km=side_km)
        tables.append(_placed(table, "group", grid, cells, countries))
    return pd.concat(tables, ignore_index=True)


def cell_errors(
    predictions: pd.DataFrame, countries: pd.Series | None = None, side_km: float = ERROR_CELL_KM
) -> pd.DataFrame:
    """Errors of each strategy by equal-area cell, over all photos and seeds.

    Returns:
        split, strategy, cell, n (photos), seeds, mean_km, mean_low, mean_high (95 %, each cell by itself, not
        corrected; NaN for fewer than ``LEAST_FOR_A_MEAN`` photos), median_km, acc_200km, south, west, north,
        east, place.
    """
    grid = EqualAreaGrid.of(side_km)
    cells, rows = _cells(predictions, grid), []
    labelled = predictions.assign(cell=predictions["id"].map(cells))
    for key, frame in labelled.groupby(["split", "strategy", "cell"], sort=False):
        errors = frame.pivot(index="seed", columns="id", values="error_km").to_numpy()
        (one,), hits = means_of([errors], LEAST_FOR_A_MEAN), float(METRICS[HEADLINE](errors).mean())
        interval = one.value, np.maximum(0.0, one.low), one.high
        rows.append((*key, errors.shape[1], len(errors), *interval, float(np.median(errors)), hits))
    names = [
        "split",
        "strategy",
        "cell",
        "n",
        "seeds",
        "mean_km",
        "mean_low",
        "mean_high",
        "median_km",
        HEADLINE,
    ]
    return _placed(pd.DataFrame(rows, columns=names), "cell", grid, cells, countries)


def _cells(predictions: pd.DataFrame, grid: EqualAreaGrid) -> pd.Series:
    """Cell of each photo, indexed by id."""
    photos = predictions.drop_duplicates("id").set_index("id")
    return pd.Series(grid.cell_of(photos[["latitude", "longitude"]].to_numpy()), index=photos.index)


def _placed(
    table: pd.DataFrame, column: str, grid: EqualAreaGrid, cells: pd.Series, countries: pd.Series | None
) -> pd.DataFrame:
    """``table`` with the edges in degrees of the cells in ``column``, and the country that most of a cell's
    photos show."""
    table[["south", "west", "north", "east"]] = grid.bounds_of(table[column].to_numpy(np.int64)).round(4)
    if countries is None:
        return table.assign(place="")
    codes = cells.index.to_series().map(countries).groupby(cells)
    most = codes.agg(lambda some: some.mode().iloc[0] if some.notna().any() else "")
    return table.assign(place=table[column].map(most.map(country_names()).fillna("")))


@dataclass(frozen=True)
class ErrorField:
    """A smooth field of error on a square Web Mercator raster, row 0 in the north, column 0 at the 180th
    meridian.

    Attributes:
        typical_km: strategy -> geometric mean error nearby in kilometres, float64 [H, H].
        photos: how many photos a point's mean rests on: the sum of the kernel, 1 where a photo lies, float64
            [H, H].
    """

    typical_km: dict[str, np.ndarray]
    photos: np.ndarray


def error_field(predictions: pd.DataFrame, reach_km: float = REACH_KM, side: int = FIELD_SIDE) -> ErrorField:
    """Geometric mean of the error around every point of the Earth, weighted by a Gaussian of the great-circle
    distance.

    A heat map of dots shows where photos are many; this shows where they are wrong. Errors below
    ``SMALLEST_ERROR_KM`` count as that. Photos beyond three ``reach_km`` count as none. Memory: pairs of
    raster points and photos nearby.

    Args:
        predictions: of one split, all seeds; the columns of :func:`lib.evaluate.evaluation.predict_all`.
        reach_km: standard deviation of the kernel. side: rows and columns of the raster.
    """
    photos = predictions.drop_duplicates("id").set_index("id")
    down = np.pi * (1.0 - (np.arange(side) + 0.5) / side * 2.0)
    latitude, longitude = np.rad2deg(np.arctan(np.sinh(down))), (np.arange(side) + 0.5) / side * 360.0 - 180.0
    raster = np.stack(np.meshgrid(latitude, longitude, indexing="ij"), -1).reshape(-1, 2)
    places = photos[["latitude", "longitude"]].to_numpy(np.float64)
    farthest = 2.0 * np.sin(min(np.pi, 3.0 * reach_km / EARTH_RADIUS_KM) / 2.0)
    trees = KDTree(unit_vectors(raster)), KDTree(unit_vectors(places))
    near = trees[0].sparse_distance_matrix(trees[1], farthest, output_type="coo_matrix")
    length = distance_km(raster[near.row], places[near.col])
    kernel = sparse.csr_matrix(
        (np.exp(-0.5 * (length / reach_km) ** 2), (near.row, near.col)), shape=near.shape
    )
    weight = np.asarray(kernel.sum(1)).ravel()
    typical = {}
    for name, frame in predictions.groupby("strategy", sort=False):
        logarithm = np.log(frame["error_km"].clip(lower=SMALLEST_ERROR_KM)).groupby(frame["id"]).mean()
        logarithm = logarithm.reindex(photos.index)
        has = logarithm.notna().to_numpy()
        total, sums = kernel[:, has].sum(1), kernel[:, has] @ logarithm[has].to_numpy()
        mean = sums / np.maximum(np.asarray(total).ravel(), 1e-12)
        typical[str(name)] = np.exp(mean).reshape(side, side)
    return ErrorField(typical, weight.reshape(side, side))


def make(run: Run, predictions: pd.DataFrame, manifest: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """``TABLES``, made once or reused: where the strategies gain and err, and every accuracy with its own 95
    % interval.

    Args:
        predictions: of all strategies and splits, as predictions.parquet has them.
        manifest: the photos, for their continents and countries.
    """

    def _write() -> None:
        photos = manifest.set_index("id")
        countries = photos.get("country")
        save_table(continent_gains(predictions, photos["continent"]), run.table("gain_by_continent"))
        save_table(cell_gains(predictions, countries), run.table("gain_cells"))
        save_table(cell_errors(predictions, countries), run.table("error_cells"))
        save_table(levels(predictions, **drawn), run.table("intervals"))

    settings = run.settings.evaluation
    drawn = {"resamples": settings.bootstrap, "seed": settings.seed}
    run.produce(
        "regions",
        make=_write,
        inputs=[
            run.require(run.predictions, "05_error_at_granularity"),
            run.require(run.manifest, "01_data_preparation"),
        ],
        outputs=[run.table(name) for name in TABLES],
        settings=drawn,
        code=[make],
    )
    tables = {name: read_table(run.table(name)) for name in TABLES}
    return {
        name: table.fillna({"place": ""}) if "place" in table else table for name, table in tables.items()
    }
