"""The one engine of intervals: what some thousand photos and a few seeds can show.

All seeds see the same photos. So a value x[s, i] of seed s and photo i has a part of the seed, a part of the
photo and a rest, and the mean over both has the variance

    (MS_seeds + MS_photos - MS_rest) / (S N)

of the two-way analysis of variance (mean squares MS), with Satterthwaite's degrees of freedom. Accuracies,
mean error and GeoScore are such means. The median is bootstrapped over photos and seeds. In held-out splits
the cell takes the photo's place, because photos of one cell err together.

With 3 to 5 seeds the intervals of means are wide: those of 95 % hold the truth 97 to 100 % of the time. A
bootstrap is too narrow: over 3 seeds that differ much it holds the truth 91.5 % of the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from lib.method.errors import BundleError
from lib.train.metrics import COLUMNS, COMPARED, METRICS

LEVEL = 0.95
LEAST_PHOTOS, LEAST_CELLS = 20, 5
"""A group of fewer photos, or of fewer held-out cells, has no interval."""
BASELINE = "infonce"
HELD_OUT_ENDING = "_blocked"
"""Ending of the name of a split whose photos lie in held-out cells, column ``cell``."""
HELD_OUT_KM = 750
"""Radius that is reported for held-out cells, kilometres: with a buffer, nothing nearer is reached."""
GEOCLIP_PRETRAINED, NEAREST_NEIGHBOUR = "geoclip_pretrained", "nearest_neighbour"
UNTRAINED = (GEOCLIP_PRETRAINED, NEAREST_NEIGHBOUR)
"""Strategies that the run does not train: one result, whatever the seeds of the others."""


class Estimate(NamedTuple):
    """A mean or median, the ends of its 95 % interval, its standard error and degrees of freedom; NaN where
    there is none."""

    value: float
    low: float = np.nan
    high: float = np.nan
    error: float = np.nan
    degrees_of_freedom: float = np.nan


def means_of(groups: Sequence[np.ndarray], least: int = 2) -> list[Estimate]:
    """Mean and interval of each of ``groups``, values [S, N_g] of S seeds and N_g photos (or clusters).

    The groups share one variance between seeds, because few seeds and few photos tell little about it. A mean
    square of seeds or photos below the rest's counts as the rest's, because a variance is not negative. With
    one seed the variance is that of the photos. A group of fewer than ``least`` photos gets its mean alone.

    Source: two-way random-effects analysis of variance; Satterthwaite (1946).
    """
    found = [Estimate(float(group.mean(1).mean())) for group in groups]
    chosen = [k for k, group in enumerate(groups) if group.shape[1] >= least]
    if not chosen:
        return found
    seeds, photos = len(groups[0]), np.array([groups[k].shape[1] for k in chosen], dtype=float)
    of_seeds, of_photos, rest = np.array([mean_squares(groups[k]) for k in chosen]).T
    if of_seeds.sum() < rest.sum():
        of_seeds = rest
    of_photos, share = np.maximum(of_photos, rest) / (seeds * photos), 1.0 / (seeds * photos.sum())
    variance, parts = of_photos + share * (of_seeds - rest).sum(), of_photos**2 / (photos - 1)
    if seeds > 1:
        parts = parts + share**2 * (of_seeds**2 / (seeds - 1) + rest**2 / ((seeds - 1) * (photos - 1))).sum()
    degrees_of_freedom = np.divide(variance**2, parts, out=photos - 1, where=parts > 0.0)
    error = np.sqrt(variance)
    half = _half_width(error, degrees_of_freedom, LEVEL)
    for k, *one in zip(chosen, half, error, degrees_of_freedom, strict=True):
        (width, spread, degrees), value = map(float, one), found[k].value
        found[k] = Estimate(value, value - width, value + width, spread, degrees)
    return found


def _half_width(error: np.ndarray, degrees_of_freedom: np.ndarray, level: float | np.ndarray) -> np.ndarray:
    """Half the width of an interval, by Student's t."""
    return error * stats.t.ppf(0.5 + level / 2.0, degrees_of_freedom)


def mean_squares(values: np.ndarray) -> tuple[float, float, float]:
    """Mean squares of seeds, photos and rest of ``values`` [S, N], N > 1; of one seed only the photos'."""
    seeds, photos = values.shape
    by_seed, by_photo = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    of_photos = float(seeds * by_photo.var(ddof=1))
    if seeds == 1:
        return 0.0, of_photos, 0.0
    rest = ((values - by_seed - by_photo + values.mean()) ** 2).sum() / ((seeds - 1) * (photos - 1))
    return float(photos * by_seed.var(ddof=1)), of_photos, float(rest)


def median_of(
    ours: np.ndarray, theirs: np.ndarray | None = None, resamples: int = 2_000, seed: int = 0,
    cluster: np.ndarray | None = None,
) -> Estimate:  # fmt: skip
    """Mean over seeds of the median of errors [S, N], less that of ``theirs``, with its bootstrap interval.

    Every resample draws seeds and photos (or whole clusters [N]) anew; both strategies see the same draw. On
    one core 2,000 resamples of two strategies and three seeds take half a minute for 210,000 photos.
    """
    both = ours if theirs is None else np.concatenate((ours, theirs))
    seeds, generator = len(ours), np.random.default_rng(seed)
    sign = np.repeat([1.0, -1.0], seeds)[: len(both)]
    unit = np.arange(both.shape[1]) if cluster is None else pd.factorize(cluster)[0]
    units, order = unit.max() + 1, np.argsort(both, 1)
    ranked = np.take_along_axis(both, order, 1)

    def value(medians: np.ndarray, some: np.ndarray) -> float:
        return float((sign * medians).reshape(-1, seeds)[:, some].mean(1).sum())

    drawn = []
    for _ in range(resamples):
        times = np.bincount(generator.integers(units, size=units), minlength=units)[unit]
        reached = np.cumsum(times[order], 1)  # how many of the drawn photos have at most this error
        middle = (reached[0, -1] - 1) // 2, reached[0, -1] // 2
        place = np.array([np.searchsorted(row, middle, "right") for row in reached])
        medians = np.take_along_axis(ranked, place, 1).mean(1)
        drawn.append(value(medians, generator.integers(seeds, size=seeds)))
    low, high = np.quantile(drawn, [0.5 - LEVEL / 2.0, 0.5 + LEVEL / 2.0])
    return Estimate(value(np.median(both, 1), np.arange(seeds)), float(low), float(high))


def aligned(predictions: pd.DataFrame) -> pd.DataFrame:
    """``predictions`` in which each of ``UNTRAINED`` has a copy for every seed of the trained strategies."""
    is_untrained = predictions["strategy"].isin(UNTRAINED)
    if is_untrained.all():
        return predictions
    trained, untrained = predictions[~is_untrained], predictions[is_untrained]
    copies = (untrained.assign(seed=seed) for seed in trained["seed"].unique())
    return pd.concat([trained, *copies], ignore_index=True)


def by_cluster(values: np.ndarray, cluster: np.ndarray | None) -> np.ndarray:
    """Values [S, C] of C clusters ([N] or None), with the mean of ``values`` [S, N] and that mean's variance.

    A cluster's value is the seed's mean plus C / N times the sum of its photos' deviations from that mean.
    Sums of the values themselves would also vary because clusters hold different numbers of photos.
    Source: the ratio estimator's linearised variance (Cochran, Sampling Techniques, 1977, section 9A.2).
    """
    if cluster is None:
        return values
    number, names = pd.factorize(cluster)
    mean = values.mean(1, keepdims=True)
    sums = np.stack([np.bincount(number, row, len(names)) for row in values - mean])
    return mean + sums * (len(names) / values.shape[1])


class _Split(NamedTuple):
    """A split's name, errors [S, N] by strategy, ids of the N photos, and their cells if held out."""

    name: str
    errors: dict[str, np.ndarray]
    ids: pd.Index
    cluster: np.ndarray | None

    def estimates(
        self, metric: str, name: str, baseline: str = "", groups: pd.Series | None = None,
        resamples: int = 2_000, seed: int = 0,
    ) -> dict[str, tuple[Estimate, np.ndarray]]:  # fmt: skip
        """The metric of strategy ``name``, less that of ``baseline``, and the numbers of the photos, of each
        of ``groups`` (of each photo, indexed by id), or of all, called "". Held-out photos count by cells."""
        ours, theirs = self.errors[name], self.errors.get(baseline)
        if metric == "median_km":
            median = median_of(ours, theirs, resamples, seed, self.cluster)
            return {"": (median, np.arange(len(self.ids)))}
        values = METRICS[metric](ours) - (0.0 if theirs is None else METRICS[metric](theirs).astype(float))
        of_photo = pd.Series("", self.ids) if groups is None else groups.reindex(self.ids)
        members = {group: np.flatnonzero(of_photo == group) for group in sorted(of_photo.dropna().unique())}
        cells = (None if self.cluster is None else self.cluster[some] for some in members.values())
        parts = map(by_cluster, (values[:, some] for some in members.values()), cells)
        least = 2 if groups is None else LEAST_PHOTOS if self.cluster is None else LEAST_CELLS
        found = zip(means_of(list(parts), least), members.values(), strict=True)
        return dict(zip(members, found, strict=True))


def _by_split(predictions: pd.DataFrame) -> Iterator[_Split]:
    """Each split. Raises a BundleError where strategies were evaluated on different photos or seeds."""
    for split, of_split in aligned(predictions).groupby("split", sort=False):
        table = of_split.pivot(index=["strategy", "seed"], columns="id", values="error_km")
        names, seeds = of_split["strategy"].unique(), table.index.unique("seed")
        is_short = table.reindex(pd.MultiIndex.from_product([names, seeds])).isna().any(axis=1)
        if is_short.any():
            said = f"was not evaluated on all photos and seeds of split {split} that others have"
            raise BundleError(f"{is_short.idxmax()[0]} {said}")
        cluster = None
        if str(split).endswith(HELD_OUT_ENDING) and "cell" in of_split and of_split["cell"].notna().all():
            cluster = of_split.drop_duplicates("id").set_index("id")["cell"].loc[table.columns].to_numpy()
        errors = {str(name): table.loc[name].to_numpy() for name in names}
        yield _Split(str(split), errors, table.columns, cluster)


def compare(
    predictions: pd.DataFrame, baseline: str = BASELINE, metrics: Sequence[str] = COLUMNS, *,
    groups: pd.Series | None = None, resamples: int = 2_000, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Differences, strategy minus ``baseline``, paired photo by photo and seed by seed, with 95 % intervals
    over photos and seeds, of held-out splits over cells and seeds.

    ``predictions`` have the columns of :func:`lib.evaluate.evaluation.predict_all`, ``metrics`` are of
    ``COLUMNS``. With ``groups``, the group of each photo, indexed by id, they are compared within each, and
    there is no median. ``resamples`` and ``seed`` are of the median's bootstrap.

    Returns split, strategy, baseline, metric, group (with ``groups``), difference, ci_low, ci_high, p_value
    (two-sided), error (standard), degrees_of_freedom, seeds, n (photos), cells (0 where photos were drawn one
    by one). A median has no p_value, error and degrees_of_freedom, a group of fewer than ``LEAST_PHOTOS``
    photos or ``LEAST_CELLS`` held-out cells no interval.

    BundleError: ``baseline`` is not there, or strategies were evaluated on different photos or seeds.
    """
    rows = []
    for part in _by_split(predictions):
        if baseline not in part.errors:
            there = ", ".join(part.errors)
            raise BundleError(f"{baseline} is not among the strategies of split {part.name}: {there}")
        others = (name for name in part.errors if name != baseline)
        for name, metric in itertools.product(others, metrics):
            found = part.estimates(metric, name, baseline, groups, resamples, seed)
            for group, (one, some) in found.items():
                cells = 0 if part.cluster is None else len(np.unique(part.cluster[some]))
                about = len(part.errors[name]), len(some), cells
                rows.append((part.name, name, baseline, metric, group, *one, *about))
    front = ["split", "strategy", "baseline", "metric", "group", "difference", "ci_low", "ci_high", "error"]
    table = pd.DataFrame(rows, columns=[*front, "degrees_of_freedom", "seeds", "n", "cells"])
    table["ci_low"], table["ci_high"] = _within_limits(table, table["ci_low"], table["ci_high"])
    tested = table[["difference", "error", "degrees_of_freedom"]].to_numpy(float)
    table.insert(8, "p_value", p_values(*tested.T))
    return table if groups is not None else table.drop(columns="group")


def reported_radius_km(split: str) -> int:
    """The radius reported for a split: larger for held-out cells, which have no training photo near."""
    return HELD_OUT_KM if str(split).endswith(HELD_OUT_ENDING) else 200


def _within_limits(table: pd.DataFrame, low: pd.Series, high: pd.Series) -> tuple[pd.Series, pd.Series]:
    """``low`` and ``high``, those of differences of accuracies between -1 and 1."""
    limit = np.where(table["metric"].str.startswith("acc_").astype(bool), 1.0, np.inf)
    return low.clip(lower=-limit), high.clip(upper=limit)


def p_values(mean: np.ndarray, error: np.ndarray, degrees_of_freedom: np.ndarray) -> np.ndarray:
    """Two-sided; without spread 1 where there is no difference, and 0 where there is one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 2.0 * stats.t.sf(np.abs(mean) / error, degrees_of_freedom)
    return np.where(error == 0.0, (mean == 0.0).astype(float), found)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values, in the order given (Holm 1979); NaN stays NaN and does not count."""
    p_values = np.asarray(p_values, dtype=float)
    order, count = np.argsort(p_values), np.isfinite(p_values).sum()
    adjusted = np.maximum.accumulate(p_values[order] * (count - np.arange(len(p_values))))
    return np.minimum(adjusted, 1.0)[np.argsort(order)]


def corrected(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` of :func:`compare`, of accuracies, corrected for the number of comparisons of a family: rows
    of one split and metric.

    Adds comparisons (their number), corrected_low and corrected_high (Bonferroni: all intervals of a family
    hold at once with 95 %), p_holm (Holm's step-down, which finds a little more) and verdict: gains or loses
    (the corrected interval leaves zero out), not shown, too few photos or too few cells.
    """
    tested, keys = table["error"].notna(), [table["split"], table["metric"]]
    count = tested.groupby(keys, sort=False).transform("sum").clip(lower=1)
    level = 1.0 - (1.0 - LEVEL) / count.to_numpy(float)
    half = _half_width(table["error"], table["degrees_of_freedom"], level)
    low, high = _within_limits(table, table["difference"] - half, table["difference"] + half)
    cases = {"too few cells": ~tested & (table["cells"] > 0), "too few photos": ~tested}
    cases |= {"gains": low > 0.0, "loses": high < 0.0}
    table = table.assign(comparisons=count, corrected_low=low, corrected_high=high)
    table["p_holm"] = table["p_value"].groupby(keys, sort=False).transform(holm)
    return table.assign(verdict=np.select(list(cases.values()), list(cases), "not shown"))


def levels(predictions: pd.DataFrame, resamples: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """Every strategy's accuracies and median error with 95 % intervals over photos and seeds: split,
    strategy, metric, value, ci_low, ci_high, sd_of_seeds, seeds, n."""
    rows = []
    for part in _by_split(predictions):
        for (name, errors), metric in itertools.product(part.errors.items(), [*COMPARED, "median_km"]):
            (one, _) = part.estimates(metric, name, resamples=resamples, seed=seed)[""]
            is_median = metric == "median_km"
            by_seed = np.median(errors, 1) if is_median else METRICS[metric](errors).mean(1)
            spread = float(by_seed.std(ddof=1)) if len(errors) > 1 else np.nan
            ends = np.clip(one[:3], 0.0, np.inf if is_median else 1.0)
            rows.append((part.name, name, metric, *ends, spread, *errors.shape))
    names = ["split", "strategy", "metric", "value", "ci_low", "ci_high", "sd_of_seeds", "seeds", "n"]
    return pd.DataFrame(rows, columns=names)


def levels_by_continent(predictions: pd.DataFrame, continents: pd.Series) -> pd.DataFrame:
    """Accuracy within :func:`reported_radius_km` of every strategy on each of ``continents`` (of each photo,
    indexed by id): split, strategy, continent, n, value; ci_low and ci_high, where :func:`compare` has them.
    """
    rows = []
    for part in _by_split(predictions):
        for strategy in part.errors:
            found = part.estimates(f"acc_{reported_radius_km(part.name)}km", strategy, groups=continents)
            for continent, (one, some) in found.items():
                rows.append((part.name, strategy, continent, len(some), *np.clip(one[:3], 0.0, 1.0)))
    return pd.DataFrame(rows, columns=["split", "strategy", "continent", "n", "value", "ci_low", "ci_high"])


def differences_for_reading(
    table: pd.DataFrame, by: Sequence[str] = ("baseline", "strategy")
) -> pd.DataFrame:
    """Differences of accuracies as :func:`in_points`, one row a split and ``by``."""
    chosen, keys = table[table["metric"].isin(COMPARED)], ["split", *by]
    wide = chosen.assign(text=in_points(chosen)).pivot(index=keys, columns="metric", values="text")
    rows, columns = chosen[keys].drop_duplicates(), [metric for metric in COMPARED if metric in wide]
    return wide.loc[pd.MultiIndex.from_frame(rows), columns].rename_axis(columns=None)


def in_points(table: pd.DataFrame) -> list[str]:
    """Differences and their intervals in percentage points, such as "+0.8 [+0.1, +1.5]"."""
    numbers = 100.0 * table[["difference", "ci_low", "ci_high"]].to_numpy()
    return ["{} [{}, {}]".format(*map(points, row)) for row in numbers]


def points(value: float, sign: bool = True) -> str:
    """Percentage points, one decimal, with a true minus, and a plus if ``sign``; 0 has no sign. Halves go
    away from zero, because counts of photos over a round number often end in one."""
    text = f"{value + np.copysign(5e-7, value):{'+' if sign else ''}.1f}"
    return "0.0" if float(text) == 0.0 else text.replace("-", "\u2212")
