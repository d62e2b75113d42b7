"""The semivariogram's own questions: which family, and how certain.

Every interval here comes from resampling PLACES. The pairs of a lag share their photos, so the standard error
that treats them as independent, sqrt(variance / pairs), is far too small (Clark & Allingham 2011). One pass
over all pairs sorts their sums by the groups of places that the two photos belong to; a resample of groups is
then a weighted sum of that table. Lags are finer near zero, so a coarse curve is an
:class:`EmpiricalSemivariogram` of width NaN beside its edges.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.data import datasets, features
from lib.method.empirical import EmpiricalSemivariogram, UnitRows
from lib.method.errors import BundleError
from lib.method.geodesy import chord_to_rad, rad_to_km, unit_vectors
from lib.method.semivariogram import (
    RANGE_RULES,
    SHAPE_PARAMETERS,
    FittedSemivariogram,
    fit,
    range_by_sill,
    range_by_slope,
)
from lib.runs import Run, progress, writing
from lib.train.curve import load_empirical

FAMILIES = ("Stable", "Exponential", "Gaussian", "Spherical", "Matern", "Rational")
METRICS = ("planar", "sphere")
WEIGHTS = ("none", "pairs")
LEAST_PAIRS = 30
"""A lag of fewer pairs has no band worth reading a range from."""
CONFIDENCE = (2.5, 97.5)
"""Percentiles of the resamples that bound an interval."""


class VariographyError(BundleError):
    """A question about the curve cannot be answered from what was given; the message says why and what to
    do."""


def lag_edges(lags: int = 100, finest_rad: float = 0.002) -> np.ndarray:
    """Edges [``lags`` + 1] from 0 to pi, radians: the first lag ends at ``finest_rad``, each other is wider
    by one ratio."""
    return np.concatenate([[0.0], np.geomspace(finest_rad, math.pi, lags)])


def merged(empirical: EmpiricalSemivariogram, lags: int = 100) -> tuple[EmpiricalSemivariogram, np.ndarray]:
    """The same sums over about ``lags`` lags of growing width, and their edges, radians; of width NaN."""
    fine = len(empirical.pairs)
    starts = np.unique(np.concatenate([[0], np.round(np.geomspace(1, fine, lags)).astype(int)]))[:-1]
    sums = (empirical.pairs, empirical.distance_sum_rad, empirical.gamma_sum, empirical.square_sum)
    edges = np.append(starts, fine) * empirical.lag_width_rad
    return EmpiricalSemivariogram(math.nan, *(np.add.reduceat(total, starts) for total in sums)), edges


def fit_merged(
    empirical: EmpiricalSemivariogram, edges_rad: np.ndarray, **options: object
) -> FittedSemivariogram:
    """:func:`lib.method.semivariogram.fit` over lags of unequal width.

    With the weights ``none`` a lag counts by its width: as many equal narrow lags as it stands for. So the
    fit is that of the narrow lags, which many short lags near zero would otherwise outvote.

    Args:
        options: what ``fit`` takes.

    Raises:
        BundleError: see ``fit``.
    """
    if options.get("weights", "none") != "none":
        return fit(empirical, **options, fallback=False)
    share = np.where(empirical.pairs > 0, np.diff(edges_rad) / np.diff(edges_rad).min(), 0.0)
    lag, gamma, square = (
        np.nan_to_num(values) * share for values in (empirical.lag_rad, empirical.gamma, empirical.variance)
    )
    even = EmpiricalSemivariogram(math.nan, share, lag, gamma, square)
    found = fit(even, **(options | {"weights": "pairs"}), fallback=False)
    return replace(found, weights="none", pairs=int(empirical.pairs.sum()))


def valid_on_sphere(family: str, metric: str, exponent: float | None = None) -> str:
    """Whether the model is a covariance on the sphere, of great-circle distance: ``yes`` or ``no``.

    ``sphere``: the chord is the distance of three-dimensional space, where every family is valid: yes.
    ``planar``, the family on the angle itself: Exponential, Spherical, Stable of exponent <= 1 and Matern of
    nu <= 1/2 are valid (Gneiting 2013, Bernoulli 19(4), theorem 3 and table 1). Others are not: as a function
    on the sphere they have a kink at the antipode, whose Legendre coefficients (-1)**n n**-2 outlast those of
    the smoother origin, so some are negative. That includes Rational, the generalised Cauchy family of
    exponent 2, for which Gneiting allows exponents <= 1, and the Gaussian; how negative they are depends on
    the length scale, and may be too little to matter.

    Raises:
        VariographyError: an unknown family or metric, or Stable and Matern without exponent.
    """
    if family not in FAMILIES or metric not in METRICS:
        raise VariographyError(
            f"no model {family} on {metric}; families: {', '.join(FAMILIES)}; metrics: planar, sphere"
        )
    limits = {"Exponential": math.inf, "Spherical": math.inf, "Stable": 1.0, "Matern": 0.5}
    if metric == "sphere":
        return "yes"
    if family in {"Stable", "Matern"} and exponent is None:
        raise VariographyError(f"whether {family} is valid depends on its exponent; give it")
    return "yes" if (exponent or 0.0) <= limits.get(family, -1.0) else "no"


def candidates_table(
    empirical: EmpiricalSemivariogram, *, lags: int = 100, folds: int = 6, max_lag_rad: float = math.pi
) -> pd.DataFrame:
    """Every family, metric and weighting fitted to the same coarse lags, judged alike.

    Args:
        empirical: of even lags, as :func:`lib.method.empirical.estimate` gives it; merged here into about
            ``lags`` lags.
        folds: contiguous blocks of the lags, alike in log distance, of which each is left out once.

    Returns:
        36 rows: family, metric, weights, nugget, partial_sill, length_scale_rad, exponent, range_slope_rad,
        range_sill95_rad, r2 (lags counted by their width), aic, delta_aic, held_out_rmse, held_out_worst (of
        the blocks), valid_on_sphere, note. A model that cannot be fitted, or not without one of the blocks,
        has NaN and the reason in ``note``.

        One weighting judges all rows, whatever they were fitted with: w = pairs / variance of the pairs, the
        inverse of a lag mean's variance up to a factor. aic = n ln(sum w r**2 / sum w) + 2 p: n lags, r the
        residuals, p parameters and that unknown factor. held_out_rmse = root of the mean over blocks of sum w
        r**2 / sum w, r from the fit without the block: each block counts alike, else the farthest would
        decide alone.

    Raises:
        BundleError: fewer lags with pairs than three a block.
    """
    coarse, edges = merged(empirical, lags)
    used = (coarse.pairs > 0) & (coarse.lag_rad <= max_lag_rad)
    if used.sum() < 3 * folds:
        raise BundleError(
            f"{used.sum()} lags are too few for {folds} blocks; narrow semivariogram.lag_width_rad"
        )
    judged = _Judged(coarse, edges, used, np.array_split(np.flatnonzero(used), folds))
    rows = [
        judged.row(family, metric, weights)
        for family in FAMILIES
        for metric in METRICS
        for weights in WEIGHTS
    ]
    table = pd.DataFrame(rows)
    table.insert(table.columns.get_loc("aic") + 1, "delta_aic", table["aic"] - table["aic"].min())
    return table


@dataclass(frozen=True)
class _Judged:
    """Coarse lags by which models are judged, see :func:`candidates_table`."""

    coarse: EmpiricalSemivariogram
    edges: np.ndarray
    used: np.ndarray
    blocks: list[np.ndarray]

    def row(self, family: str, metric: str, weights: str) -> dict[str, object]:
        """The row of one model."""
        options = {"family": family, "metric": metric, "weights": weights}
        try:
            whole = fit_merged(self._only(self.used), self.edges, **options)
        except BundleError as error:
            return options | {"aic": math.nan, "held_out_rmse": math.nan, "note": str(error)}
        width, model = np.diff(self.edges) * self.used, whole.model()
        total = np.sum(
            width[self.used] * (self._gamma - np.average(self._gamma, weights=width[self.used])) ** 2
        )
        parameters = 4 + (family in SHAPE_PARAMETERS)
        squares, note = self._held_out(whole, options)
        at_bound = family == "Matern" and whole.exponent < 0.2 + 1e-6
        return options | {
            "nugget": whole.nugget,
            "partial_sill": whole.partial_sill,
            "length_scale_rad": whole.length_scale_rad,
            "exponent": math.nan if whole.exponent is None else whole.exponent,
            "range_slope_rad": range_by_slope(model),
            "range_sill95_rad": range_by_sill(model),
            "r2": 1.0 - np.sum(width[self.used] * self._residuals(whole)[self.used] ** 2) / total,
            "aic": self.used.sum() * math.log(self._mean_square(whole, self.used)) + 2 * parameters,
            "held_out_rmse": math.sqrt(np.mean(squares)),
            "held_out_worst": math.sqrt(np.max(squares)),
            "valid_on_sphere": valid_on_sphere(family, metric, whole.exponent),
            "note": note or ("exponent at GSTools' lower bound 0.2" if at_bound else ""),
        }

    @property
    def _gamma(self) -> np.ndarray:
        return self.coarse.gamma[self.used]

    def _only(self, kept: np.ndarray) -> EmpiricalSemivariogram:
        sums = (
            self.coarse.pairs,
            self.coarse.distance_sum_rad,
            self.coarse.gamma_sum,
            self.coarse.square_sum,
        )
        return EmpiricalSemivariogram(math.nan, *(np.where(kept, total, 0) for total in sums))

    def _residuals(self, fitted: FittedSemivariogram) -> np.ndarray:
        return self.coarse.gamma - fitted.gamma(np.nan_to_num(self.coarse.lag_rad))

    def _mean_square(self, fitted: FittedSemivariogram, lags: np.ndarray) -> float:
        """Mean square of the residuals over ``lags``, weighted by pairs / variance."""
        weights = self.coarse.pairs[lags] / np.maximum(self.coarse.variance[lags], 1e-12)
        return float(np.average(self._residuals(fitted)[lags] ** 2, weights=weights))

    def _held_out(self, whole: FittedSemivariogram, options: Mapping[str, str]) -> tuple[list[float], str]:
        """Mean square of each block left out, or one NaN and the reason."""
        squares = []
        for block in self.blocks:
            kept = self.used.copy()
            kept[block] = False
            try:
                without = fit_merged(self._only(kept), self.edges, start=whole, **options)
            except BundleError as error:
                return [math.nan], f"without lags {block[0]} to {block[-1]}: {error}"
            squares.append(self._mean_square(without, block))
        return squares, ""


def choose(table: pd.DataFrame, only_valid: bool = False) -> pd.Series:
    """The row of :func:`candidates_table` with the smallest held-out error, and what AIC would have chosen.

    Held-out error first: the weights need the curve where lags are few and noisy as much as where it is well
    known, and AIC takes the lag means' residuals as independent, which they are not, since every lag has the
    same photos.

    Args:
        only_valid: choose among the models that are valid on the sphere.

    Returns:
        The row with ``aic_choice`` (family, metric, weights of the smallest AIC) and ``aic_agrees`` (same
        family and metric).

    Raises:
        VariographyError: no model was fitted.
    """
    judged = table.dropna(subset=["held_out_rmse", "aic"])
    judged = judged[judged["valid_on_sphere"] == "yes"] if only_valid else judged
    if judged.empty:
        raise VariographyError("no candidate could be fitted; see the column note")
    best, other = judged.loc[judged["held_out_rmse"].idxmin()].copy(), judged.loc[judged["aic"].idxmin()]
    best["aic_choice"] = " ".join(other[["family", "metric", "weights"]])
    best["aic_agrees"] = bool((best[["family", "metric"]] == other[["family", "metric"]]).all())
    return best


def place_groups(
    coordinates_deg: np.ndarray,
    kind: str = "random",
    *,
    count: int = 50,
    cell_deg: float = 10.0,
    seed: int = 0,
) -> np.ndarray:
    """Group 0..G-1 of each place, int64 [N]: what is resampled whole.

    Args:
        kind: ``random``: ``count`` groups alike in size, for places drawn independently; ``cells``: whole
            cells of ``cell_deg`` degrees, which keeps neighbours together and so allows for the look of a
            region as well.

    Raises:
        VariographyError: an unknown kind, or fewer than two groups.
    """
    if kind == "random":
        groups = np.random.default_rng(seed).permutation(np.arange(len(coordinates_deg)) % count)
    elif kind == "cells":
        cells = (coordinates_deg + np.array([90.0, 180.0])) % 360.0 // cell_deg
        groups = np.unique(cells, axis=0, return_inverse=True)[1]
    else:
        raise VariographyError(f"no groups of kind {kind!r}; there are random and cells")
    if len(np.unique(groups)) < 2:
        raise VariographyError(
            "resampling needs at least two groups of places; take more places or smaller cells"
        )
    return groups


@dataclass(frozen=True)
class PlaceSums:
    """Sums over the pairs of each lag, by the groups of the two places; each pair once, at [lower, higher
    group].

    Attributes:
        edges_rad: [K + 1] edges of the lags.
        places: [G] places of each group.
        centres: [G, 3] mean of their unit vectors.
        pairs, distance_sum_rad, gamma_sum: [G, G, K], zero below the diagonal.
        square_sum: [K] sum of d**2.
    """

    edges_rad: np.ndarray
    places: np.ndarray
    centres: np.ndarray
    pairs: np.ndarray
    distance_sum_rad: np.ndarray
    gamma_sum: np.ndarray
    square_sum: np.ndarray

    @property
    def empirical(self) -> EmpiricalSemivariogram:
        """The curve of all places, over lags of width NaN."""
        totals = (total.sum((0, 1)) for total in (self.pairs, self.distance_sum_rad, self.gamma_sum))
        return EmpiricalSemivariogram(math.nan, *totals, self.square_sum)

    def resampled(self, resamples: int, seed: int = 0) -> Iterator[EmpiricalSemivariogram]:
        """Curves of ``resamples`` draws of G groups with replacement."""
        count = len(self.places)
        draws = (
            np.random.default_rng(seed)
            .multinomial(count, np.full(count, 1.0 / count), size=resamples)
            .astype(float)
        )
        totals = [_weighted(draws, total) for total in (self.pairs, self.distance_sum_rad, self.gamma_sum)]
        for pairs, distance, gamma in zip(*totals, strict=True):
            yield EmpiricalSemivariogram(math.nan, pairs, distance, gamma, np.zeros_like(gamma))


def _weighted(draws: np.ndarray, total: np.ndarray) -> np.ndarray:
    """[B, K]: sum over groups of m_g m_h T_gh, a group with itself m_g T_gg, for multiplicities ``draws`` [B,
    G].

    A group drawn twice is two regions that look alike, not one with its pairs counted four times: with m_g**2
    the nearest lags, all of whose pairs lie in one cell, would get bands 1.7 times too wide.
    """
    count, lags = len(total), total.shape[2]
    own = total[np.arange(count), np.arange(count)]
    between = total.copy()
    between[np.arange(count), np.arange(count)] = 0.0
    sums = [
        np.einsum("bh,bhk->bk", part, (part @ between.reshape(count, -1)).reshape(-1, count, lags))
        + part @ own
        for part in np.array_split(draws, math.ceil(len(draws) / 64))
    ]
    return np.concatenate(sums)


@dataclass(frozen=True)
class _Block:
    """Pairs of two runs of places in the order of their groups: local tables start at groups ``first`` and
    ``second``."""

    first: int
    second: int
    shape: tuple[int, int]
    cell: torch.Tensor
    distance_rad: torch.Tensor
    dissimilarity: torch.Tensor


def _blocks(
    unit_rows: UnitRows,
    coordinates_deg: np.ndarray,
    groups: np.ndarray,
    block: int,
    device: torch.device | str,
) -> Iterator[_Block]:
    """Every pair once, by blocks of ``block`` places; ``cell`` is the pair's place in a local table of
    groups."""
    if not np.isfinite(coordinates_deg).all():
        raise VariographyError("a coordinate is not finite; check the manifest")
    order = np.argsort(groups, kind="stable")
    points, sorted_groups = unit_vectors(torch.tensor(coordinates_deg[order])).to(device), groups[order]
    starts = range(0, len(order), block)
    for start in progress(starts, "curves", len(starts)):
        rows = slice(start, start + block)
        left = _checked(unit_rows(order[rows])).to(device)
        for other in range(start, len(order), block):
            columns = slice(other, other + block)
            right = left if other == start else _checked(unit_rows(order[columns])).to(device)
            first, second = int(sorted_groups[start]), int(sorted_groups[other])
            row = torch.from_numpy(sorted_groups[rows] - first).to(device)
            column = torch.from_numpy(sorted_groups[columns] - second).to(device)
            shape = int(row[-1]) + 1, int(column[-1]) + 1
            cell = row[:, None] * shape[1] + column[None, :]
            distance = chord_to_rad(2.0 - 2.0 * points[rows] @ points[columns].T)
            dissimilarity = 1.0 - left @ right.T
            once = torch.ones_like(distance, dtype=torch.bool).triu(1) if other == start else ...
            yield _Block(
                first,
                second,
                shape,
                cell[once].flatten(),
                distance[once].flatten(),
                dissimilarity[once].flatten(),
            )


def _checked(rows: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(rows).all():
        raise VariographyError("a feature is not finite; extract the features again (notebook 01, --fresh)")
    return rows


def _add(table: np.ndarray, block: _Block, index: torch.Tensor, weights: torch.Tensor | None = None) -> None:
    """Add to ``table`` [G, G, K] the count, or the sum of ``weights``, of a block's pairs by groups and
    ``index`` 0..K-1."""
    lags = table.shape[2]
    found = (
        torch.bincount(block.cell * lags + index, weights, block.shape[0] * block.shape[1] * lags)
        .cpu()
        .numpy()
    )
    part = table[block.first : block.first + block.shape[0], block.second : block.second + block.shape[1]]
    part += found.reshape(*block.shape, lags)


def place_sums(
    unit_rows: UnitRows,
    coordinates_deg: np.ndarray,
    groups: np.ndarray,
    edges_rad: np.ndarray | None = None,
    *,
    block: int = 1_024,
    device: torch.device | str = "cpu",
) -> PlaceSums:
    """One exact pass over all pairs of N places.

    Args:
        unit_rows: reads unit features of rows 0..N-1.
        groups: [N] group 0..G-1 of each place, see :func:`place_groups`. Memory is 24 G**2 K bytes.
        edges_rad: edges of the lags, from 0 to pi; :func:`lag_edges` where None.

    Raises:
        VariographyError: fewer than two places, or a coordinate or feature is not finite.
    """
    edges = lag_edges() if edges_rad is None else np.asarray(edges_rad)
    if len(coordinates_deg) < 2 or len(groups) != len(coordinates_deg):
        raise VariographyError(
            f"{len(coordinates_deg)} places and {len(groups)} groups: give two places or more, a group each"
        )
    count, lags = int(groups.max()) + 1, len(edges) - 1
    pairs, distance, gamma = (np.zeros((count, count, lags)) for _ in range(3))
    square, inner = np.zeros(lags), torch.from_numpy(edges[1:-1]).to(device)
    for part in _blocks(unit_rows, coordinates_deg, groups, block, device):
        lag = torch.bucketize(part.distance_rad, inner, right=True)
        dissimilarity = part.dissimilarity.double()
        _add(pairs, part, lag)
        _add(distance, part, lag, part.distance_rad)
        _add(gamma, part, lag, dissimilarity)
        square += torch.bincount(lag, dissimilarity**2, lags).cpu().numpy()
    places = np.bincount(groups, minlength=count)
    centres = np.stack([np.bincount(groups, axis, count) for axis in unit_vectors(coordinates_deg).T], 1)
    return PlaceSums(edges, places, centres / np.maximum(places, 1)[:, None], pairs, distance, gamma, square)


def range_by_band(lag_rad: np.ndarray, upper: np.ndarray, sill: float, pairs: np.ndarray) -> float:
    """First lag, radians, whose ``upper`` band reaches the fitted ``sill``; pi where none does.

    From there on the data no longer tell the curve from its sill. Lags of fewer than 30 pairs are passed
    over.
    """
    reached = np.flatnonzero((upper >= sill) & (pairs >= LEAST_PAIRS))
    return float(lag_rad[reached[0]]) if len(reached) else math.pi


@dataclass(frozen=True)
class Bands:
    """A curve and what resampling places says about it.

    Attributes:
        edges_rad, empirical, fitted: the lags, the curve of all places and the model fitted to it.
        low, high: [K] 95 % band of the empirical curve; NaN where there are no pairs.
        draws: a row a resample: nugget, partial_sill, sill, length_scale_km, exponent, and the range in
            kilometres by each
            rule: range_slope_km, range_sill95_km, range_band_km.
        refused: resamples to which no curve could be fitted; they are not among the draws.
    """

    edges_rad: np.ndarray
    empirical: EmpiricalSemivariogram
    fitted: FittedSemivariogram
    low: np.ndarray
    high: np.ndarray
    draws: pd.DataFrame
    refused: int

    def table(self) -> pd.DataFrame:
        """Columns parameter, value, ci_low, ci_high: the fit to all places, with 95 % intervals."""
        values = _reading(self.fitted, self.empirical, self.high)
        low, high = np.percentile(self.draws[list(values)], CONFIDENCE, axis=0)
        return pd.DataFrame(
            {"parameter": list(values), "value": list(values.values()), "ci_low": low, "ci_high": high}
        )


def _reading(
    fitted: FittedSemivariogram, empirical: EmpiricalSemivariogram, upper: np.ndarray
) -> dict[str, float]:
    """Parameters of a fit and its ranges."""
    model = fitted.model()
    ranges = {f"range_{name}_km": rad_to_km(rule(model)) for name, rule in RANGE_RULES.items()}
    band = range_by_band(empirical.lag_rad, upper, fitted.sill, empirical.pairs)
    shape = {} if fitted.exponent is None else {"exponent": fitted.exponent}
    return {
        "nugget": fitted.nugget,
        "partial_sill": fitted.partial_sill,
        "sill": fitted.sill,
        "length_scale_km": fitted.length_scale_km,
        **shape,
        **ranges,
        "range_band_km": rad_to_km(band),
    }


def bands(sums: PlaceSums, *, resamples: int = 500, seed: int = 0, **options: object) -> Bands:
    """Bands and intervals of 95 % by drawing the groups of places with replacement, and fitting each draw
    anew.

    In lags of few pairs the band is too wide rather than too narrow: a bootstrap of places counts what the
    two photos of a pair do together up to three times.

    Args:
        options: family, metric, weights, max_lag_rad, as :func:`lib.method.semivariogram.fit` takes them.

    Raises:
        BundleError: the curve of all places cannot be fitted.
        VariographyError: nor can half of the draws.
    """
    empirical = sums.empirical
    fitted = fit_merged(empirical, sums.edges_rad, **options)
    curves = list(sums.resampled(resamples, seed))
    low, high = _band(np.array([curve.gamma for curve in curves]))
    readings = []
    for curve in curves:
        try:
            found = fit_merged(curve, sums.edges_rad, start=fitted, **options)
        except BundleError:
            continue
        # The draw's own upper band is unknown; it lies as far above the draw as the band above the curve.
        readings.append(_reading(found, curve, curve.gamma + high - empirical.gamma))
    if len(readings) < 0.5 * resamples:
        raise VariographyError(
            f"only {len(readings)} of {resamples} resamples could be fitted; take more places"
        )
    return Bands(
        sums.edges_rad, empirical, fitted, low, high, pd.DataFrame(readings), resamples - len(readings)
    )


def _band(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound [...] of 95 % of ``curves`` [B, ...], over the draws that have pairs; NaN where
    none has."""
    bounds = np.full((2, *curves.shape[1:]), np.nan)
    known = np.isfinite(curves).any(0)
    bounds[:, known] = np.nanpercentile(curves[:, known], CONFIDENCE, axis=0)
    return bounds[0], bounds[1]


def _drawn(count: int, max_pairs: int, seed: int) -> np.ndarray:
    """Rows, ascending, of as many photos as have at most ``max_pairs`` pairs."""
    most = int((1.0 + math.sqrt(1.0 + 8.0 * max_pairs)) / 2.0)
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


@dataclass(frozen=True)
class Findings:
    """What :func:`examine` found; every table is a file of the run too.

    Attributes:
        bands: of the run's own model, by resampling random groups of places.
        models: :func:`candidates_table`.
        intervals: :meth:`Bands.table` with a column ``resampled``: places, or whole cells.
    """

    bands: Bands
    models: pd.DataFrame
    intervals: pd.DataFrame


TABLES = {"models": "semivariogram_models", "intervals": "semivariogram_intervals"}


def examine(run: Run, resamples: int | None = None) -> Findings:
    """Families and bands of the training split's features, made once or reused.

    Args:
        resamples: of the bands; None: ``evaluation.bootstrap``.

    Raises:
        BundleError, VariographyError: too few photos for one of the questions.
    """
    resamples = resamples or run.settings.evaluation.bootstrap
    settings, kept = run.settings.semivariogram, run.folder / "semivariogram" / "bands.npz"
    used = {"model": settings.model_dump(), "centred": run.settings.backbone.centred, "resamples": resamples}

    def make() -> None:
        found = _findings(run, resamples)
        for name, table in TABLES.items():
            with writing(run.table(table)) as aside:
                getattr(found, name).to_csv(aside, index=False)
        _save_bands(found.bands, kept)

    run.produce(
        "variography",
        make=make,
        inputs=[
            run.require(path, "01_data_preparation") for path in (run.manifest, run.features, run.empirical)
        ],
        outputs=[kept, *map(run.table, TABLES.values())],
        settings=used,
        code=[examine],
    )
    return Findings(
        _load_bands(kept),
        **{name: datasets.manifest.read_table(run.table(table)) for name, table in TABLES.items()},
    )


def _findings(run: Run, resamples: int) -> Findings:
    settings, manifest = run.settings.semivariogram, datasets.read(run)
    frozen = features.read(run, manifest)
    every_row = datasets.manifest.rows_of(manifest, "train")
    rows = every_row[_drawn(len(every_row), settings.max_pairs, settings.seed)]
    places, fitting = datasets.manifest.coordinates(manifest)[rows], {
        "family": settings.family, "metric": settings.metric, "weights": settings.weights,
        "max_lag_rad": settings.max_lag_rad,
    }  # fmt: skip

    def _sums(groups: np.ndarray) -> PlaceSums:
        return place_sums(lambda chosen: frozen.unit(rows[chosen]), places, groups, device=run.adding_device)

    found = {
        kind: bands(_sums(place_groups(places, name)), resamples=resamples, **fitting)
        for kind, name in (("places", "random"), ("cells of 10 degrees", "cells"))
    }
    return Findings(
        found["places"],
        candidates_table(semivariogram_sums(run), max_lag_rad=settings.max_lag_rad),
        pd.concat([one.table().assign(resampled=kind) for kind, one in found.items()], ignore_index=True),
    )


def semivariogram_sums(run: Run) -> EmpiricalSemivariogram:
    """The run's empirical semivariogram.

    Raises:
        ArtefactError: the curve has not been estimated.
    """
    return load_empirical(run.require(run.empirical, "01_data_preparation"))


def _save_bands(found: Bands, path: Path) -> None:
    sums = {
        name: getattr(found.empirical, name)
        for name in ("pairs", "distance_sum_rad", "gamma_sum", "square_sum")
    }
    with writing(path) as aside:
        np.savez(
            aside, edges_rad=found.edges_rad, low=found.low, high=found.high, refused=found.refused,
            draws=found.draws.to_numpy(), names=found.draws.columns.to_numpy(str),
            fitted=json.dumps(asdict(found.fitted)), **sums,
        )  # fmt: skip


def _load_bands(path: Path) -> Bands:
    with np.load(path, allow_pickle=False) as kept:
        sums = [kept[name] for name in ("pairs", "distance_sum_rad", "gamma_sum", "square_sum")]
        return Bands(
            kept["edges_rad"],
            EmpiricalSemivariogram(math.nan, *sums),
            FittedSemivariogram(**json.loads(str(kept["fitted"]))),
            kept["low"],
            kept["high"],
            pd.DataFrame(kept["draws"], columns=list(kept["names"])),
            int(kept["refused"]),
        )
