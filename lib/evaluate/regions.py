"""Where on Earth: differences by continent, and a smooth field of error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial import KDTree

from lib.data.manifest import read_table
from lib.evaluate.evaluation import save_table
from lib.evaluate.intervals import compare, corrected, levels
from lib.method.geodesy import EARTH_RADIUS_KM, distance_km, unit_vectors
from lib.runs import Run
from lib.train.metrics import COMPARED

REACH_KM = 300.0
"""Standard deviation of the kernel that smooths the field of error, in kilometres."""
FIELD_SIDE = 200
SMALLEST_ERROR_KM = 1.0
TABLES = ("gain_by_continent", "intervals")
"""What :func:`make` writes."""


def continent_gains(predictions: pd.DataFrame, continents: pd.Series) -> pd.DataFrame:
    """Differences by continent, corrected for all strategies and continents of a split and radius.

    Args:
        continents: continent of each photo, indexed by id.
    """
    table = compare(predictions, metrics=COMPARED, groups=continents)
    return corrected(table, ("split", "metric")).rename(columns={"group": "continent"})


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
    """``TABLES``, made once or reused: gains by continent, and every accuracy with its own 95 % interval.

    Args:
        predictions: of all strategies and splits, as predictions.parquet has them.
        manifest: the photos, for their continents.
    """

    def _write() -> None:
        continents = manifest.set_index("id")["continent"]
        save_table(continent_gains(predictions, continents), run.table("gain_by_continent"))
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
    return {name: read_table(run.table(name)) for name in TABLES}
