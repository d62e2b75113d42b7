"""The one engine of intervals: what some thousand photos and a few seeds can show.

All seeds see the same photos, so a value x[s, i] (seed s, photo i) has a part of the seed, a part of the
photo and a rest. The mean over both has the variance

    (MS_seeds + MS_photos - MS_rest) / (S N)

of the two-way analysis of variance (mean squares MS), with Satterthwaite's degrees of freedom. Accuracies,
mean error and GeoScore are such means. The median is not: it is bootstrapped over photos and seeds. In
held-out cells the cell stands in the photo's place, because photos of one cell err together.

With 3 to 5 seeds these intervals are wide and hold more often than they promise (97 to 100 % of the time for
95 %): Student's t with S - 1 degrees of freedom has far tails, the more so when corrected for many
comparisons. The bootstrap errs the other way: over 3 seeds that differ much it holds 91.5 % of the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from lib.method.errors import BundleError
from lib.train.metrics import COLUMNS, COMPARED, METRICS

LEVEL = 0.95
LEAST_PHOTOS = 20
"""A group of fewer photos has no interval: Student's t of a few zeros and ones promises too much."""
LEAST_CELLS = 5
"""A group of photos of fewer held-out cells has no interval."""
BASELINE = "infonce"
HELD_OUT = "_blocked"
"""Ending of the name of a split whose photos lie in held-out cells, column ``cell``."""
HELD_OUT_KM = 750
"""The radius that is told of held-out cells: with a buffer nothing nearer is reached."""
PUBLISHED = "geoclip_pretrained"
"""GeoCLIP as published, which is one model, whatever the seeds of the others."""


class Estimate(NamedTuple):
    """A mean or median, the ends of its 95 % interval, standard error and degrees of freedom; NaN where there
    is none."""

    value: float
    low: float = np.nan
    high: float = np.nan
    error: float = np.nan
    freedom: float = np.nan


def means_of(groups: Sequence[np.ndarray], least: int = 2) -> list[Estimate]:
    """The mean of each of ``groups``, with its interval.

    Several groups share one variance between seeds: within a group of few photos, few seeds tell little about
    it. Each group has its own variance between photos. A mean square of seeds or photos below the rest's
    counts as the rest's, because a variance is not negative. With one seed the variance is that of the
    photos, which says nothing about other seeds.

    Args:
        groups: values [S, N_g] of S seeds and the N_g photos of each group. A column is what was drawn on its
            own: a photo.
        least: a group of fewer photos gets its mean alone.

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
    freedom = np.divide(variance**2, parts, out=photos - 1, where=parts > 0.0)
    half = half_width(np.sqrt(variance), freedom)
    for k, *one in zip(chosen, half, np.sqrt(variance), freedom, strict=True):
        width, error, free = map(float, one)
        found[k] = Estimate(found[k].value, found[k].value - width, found[k].value + width, error, free)
    return found


def half_width(error: np.ndarray, freedom: np.ndarray, level: float | np.ndarray = LEVEL) -> np.ndarray:
    """Half the width of an interval, by Student's t."""
    return error * stats.t.ppf(0.5 + np.asarray(level) / 2.0, freedom)


def mean_squares(values: np.ndarray) -> tuple[float, float, float]:
    """Mean squares of seeds, photos and rest of ``values`` [S, N], N > 1; those of seeds and rest are 0 where
    S is 1."""
    seeds, photos = values.shape
    by_seed, by_photo = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    of_photos = float(seeds * by_photo.var(ddof=1))
    if seeds == 1:
        return 0.0, of_photos, 0.0
    rest = ((values - by_seed - by_photo + values.mean()) ** 2).sum() / ((seeds - 1) * (photos - 1))
    return float(photos * by_seed.var(ddof=1)), of_photos, float(rest)


def median_of(
    ours: np.ndarray,
    theirs: np.ndarray | None = None,
    resamples: int = 2_000,
    seed: int = 0,
    cluster: np.ndarray | None = None,
) -> Estimate:
    """Mean over seeds of the median of errors [S, N], less that of ``theirs``, with its bootstrap interval.

    Seeds and photos, or whole clusters of photos, are drawn anew, each with replacement, in every resample;
    both strategies see the same draw. Without clusters, only photos near a median decide where it falls: the
    others are drawn by the thousand, see :class:`_Resampled`.
    """
    both = ours if theirs is None else np.concatenate((ours, theirs))
    seeds, generator = len(ours), np.random.default_rng(seed)
    resampled = _Resampled.of(both) if cluster is None else _ResampledClusters.of(both, cluster)
    sign = np.repeat([1.0, -1.0], seeds)[: len(both)]

    def value(medians: np.ndarray, some: np.ndarray) -> float:
        return float((sign * medians).reshape(-1, seeds)[:, some].mean(1).sum())

    drawn = [
        value(resampled.medians(generator), generator.integers(seeds, size=seeds)) for _ in range(resamples)
    ]
    low, high = np.quantile(drawn, [0.5 - LEVEL / 2.0, 0.5 + LEVEL / 2.0])
    return Estimate(value(np.median(both, 1), np.arange(seeds)), float(low), float(high))


class _ResampledClusters(NamedTuple):
    """Bootstrap resamples of the medians of errors [R, N], a cluster at a time.

    Attributes:
        errors: [R, N].
        photos: of each cluster.
    """

    errors: np.ndarray
    photos: list[np.ndarray]

    @classmethod
    def of(cls, errors: np.ndarray, cluster: np.ndarray) -> _ResampledClusters:
        """What resamples of ``errors`` [R, N] by ``cluster`` [N] need."""
        number, names = pd.factorize(cluster)
        return cls(errors, [np.flatnonzero(number == one) for one in range(len(names))])

    def medians(self, generator: np.random.Generator) -> np.ndarray:
        """[R] medians of a resample of the clusters."""
        drawn = generator.integers(len(self.photos), size=len(self.photos))
        return np.median(self.errors[:, np.concatenate([self.photos[one] for one in drawn])], 1)


class _Resampled(NamedTuple):
    """Bootstrap resamples of the medians of errors [R, N], in time that grows with the root of N.

    The median of a resample has a rank of N / 2, give or take some roots of N, among all N photos. Photos
    that are within six standard deviations of that rank in any row are drawn one by one. The others lie on
    one side of every row's median: how many are drawn of those that lie alike is all that matters.

    Attributes:
        count: N.
        singles: how many photos are drawn one by one.
        windows: [R, W] the sorted errors near each row's median.
        members: [R, W] which of the singles they are of.
        sizes: [P] how many other photos there are of each kind.
        below: [P, R] 1 where that kind lies below the row's window, else 0.
        below_single: [M, R] the same of the singles.
    """

    count: int
    singles: int
    windows: np.ndarray
    members: np.ndarray
    sizes: np.ndarray
    below: np.ndarray
    below_single: np.ndarray

    @classmethod
    def of(cls, errors: np.ndarray) -> _Resampled:
        """What resamples of ``errors`` [R, N] need."""
        count = errors.shape[1]
        reach = 3.0 * np.sqrt(count) + 2.0
        first, last = max(0, int(count / 2 - reach)), min(count, int(count / 2 + reach) + 1)
        order = np.argsort(errors, 1, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(count)[None], 1)
        is_single, is_below = ((rank >= first) & (rank < last)).any(0), (rank < first).T.astype(float)
        others = is_below[~is_single]
        kind = others @ np.random.default_rng(0).random(len(errors))  # a number of its own for each kind
        _, example, sizes = np.unique(kind, return_index=True, return_counts=True)
        near, number = order[:, first:last], np.cumsum(is_single) - 1
        windows = np.take_along_axis(errors, near, 1)
        return cls(
            count, int(is_single.sum()), windows, number[near], sizes, others[example], is_below[is_single]
        )

    def medians(self, generator: np.random.Generator) -> np.ndarray:
        """[R] medians of a resample of the photos."""
        hits = generator.binomial(self.count, self.singles / self.count)
        drawn = generator.integers(self.singles, size=hits)
        times = np.bincount(drawn, minlength=self.singles).astype(float)
        before = times @ self.below_single
        if len(self.sizes):
            before += generator.multinomial(self.count - hits, self.sizes / self.sizes.sum()) @ self.below
        reached = np.cumsum(times[self.members], 1) + before[:, None]
        middle = np.array([(self.count - 1) // 2, self.count // 2])
        place = np.array([np.searchsorted(row, middle, "right") for row in reached])
        place = np.minimum(place, self.windows.shape[1] - 1)
        return np.take_along_axis(self.windows, place, 1).mean(1)


def aligned(predictions: pd.DataFrame) -> pd.DataFrame:
    """``predictions`` in which GeoCLIP as published, one model, has a copy for every seed of the others."""
    is_published = predictions["strategy"] == PUBLISHED
    others, published = predictions[~is_published], predictions[is_published]
    if others.empty or published.empty:
        return predictions
    copies = (published.assign(seed=seed) for seed in sorted(others["seed"].unique()))
    return pd.concat([others, *copies], ignore_index=True)


class _Split(NamedTuple):
    """A split: errors [S, N] in kilometres by strategy, ids of the N photos, their clusters or None."""

    name: str
    errors: dict[str, np.ndarray]
    ids: pd.Index
    cluster: np.ndarray | None

    def drawn(self, values: np.ndarray, photos: np.ndarray | slice = slice(None)) -> np.ndarray:
        """``values`` [S, n] of ``photos``, one column for each unit that was drawn independently: a photo, or
        a cluster [S, C] where the split has clusters."""
        return values if self.cluster is None else by_cluster(values, self.cluster[photos])


def _by_split(predictions: pd.DataFrame) -> Iterator[_Split]:
    """Each split of ``predictions``; of one whose name ends in ``HELD_OUT`` the clusters are its cells.

    Raises:
        BundleError: strategies were evaluated on different photos or seeds.
    """
    for split, of_split in aligned(predictions).groupby("split", sort=False):
        found = {
            str(name): frame.pivot(index="seed", columns="id", values="error_km")
            for name, frame in of_split.groupby("strategy", sort=False)
        }
        first, *_ = found
        for name, errors in found.items():
            same = errors.columns.equals(found[first].columns) and errors.index.equals(found[first].index)
            if not same or errors.isna().any(axis=None):
                raise BundleError(
                    f"{name} and {first} were not evaluated on the same photos and seeds of split {split}"
                )
        ids, cluster = found[first].columns, None
        if str(split).endswith(HELD_OUT) and "cell" in of_split and of_split["cell"].notna().all():
            cluster = of_split.drop_duplicates("id").set_index("id")["cell"].loc[ids].to_numpy()
        yield _Split(str(split), {name: errors.to_numpy() for name, errors in found.items()}, ids, cluster)


def compare(
    predictions: pd.DataFrame,
    baseline: str = BASELINE,
    metrics: Sequence[str] = COLUMNS,
    *,
    groups: pd.Series | None = None,
    resamples: int = 2_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Differences, strategy minus ``baseline``, paired photo by photo and seed by seed, with 95 % intervals.

    Intervals are over photos and seeds, of held-out splits over cells and seeds: the photos of a cell are
    near each other, so their errors are alike. The same holds within ``groups``.

    Args:
        predictions: the columns of :func:`lib.evaluate.evaluation.predict_all`.
        metrics: names in ``COLUMNS``; with groups no median.
        groups: group of each photo, indexed by id, to compare within each; photos without a group are left
            out.
        resamples, seed: of the bootstrap of the median.

    Returns:
        split, strategy, baseline, metric, group (with ``groups``), difference, ci_low, ci_high, p_value
        (two-sided), error (standard), freedom, seeds, n (photos), cells (0 where photos were drawn one by
        one). A median has no p_value, error and freedom. A group of fewer than ``LEAST_PHOTOS`` photos or
        ``LEAST_CELLS`` held-out cells has no interval.

    Raises:
        BundleError: ``baseline`` is not among the strategies, or they were evaluated on different photos or
            seeds.
    """
    rows = []
    for of_split in _by_split(predictions):
        split, errors, ids = of_split[:3]
        if baseline not in errors:
            raise BundleError(f"{baseline} is not among the strategies of split {split}: {', '.join(errors)}")
        members, least = _members(ids, groups), 2
        if groups is not None:
            least = LEAST_PHOTOS if of_split.cluster is None else LEAST_CELLS
        cells = [
            0 if of_split.cluster is None else len(np.unique(of_split.cluster[some]))
            for some in members.values()
        ]
        for name, metric in itertools.product((name for name in errors if name != baseline), metrics):
            if metric == "median_km":
                found = [median_of(errors[name], errors[baseline], resamples, seed, of_split.cluster)]
            else:
                ours, theirs = (METRICS[metric](errors[one]).astype(float) for one in (name, baseline))
                gain = ours - theirs
                found = means_of([of_split.drawn(gain[:, some], some) for some in members.values()], least)
            rows += [
                (split, name, baseline, metric, group, *one, len(errors[name]), len(some), count)
                for one, count, (group, some) in zip(found, cells, members.items(), strict=True)
            ]
    front = ["split", "strategy", "baseline", "metric", "group"]
    table = pd.DataFrame(
        rows, columns=[*front, "difference", "ci_low", "ci_high", "error", "freedom", "seeds", "n", "cells"]
    )
    ends = table["difference"] - table["ci_low"], table["ci_high"] - table["difference"]
    table["ci_low"], table["ci_high"] = _ends(table, *ends)
    table.insert(8, "p_value", _p_values(*table[["difference", "error", "freedom"]].to_numpy(float).T))
    return table if groups is not None else table.drop(columns="group")


def by_cluster(values: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Values [S, C] of C clusters that have the mean and the variance of the mean of ``values`` [S, N].

    A cluster's value is the seed's mean plus C / N times the sum of its photos' deviations from that mean.
    Sums of the values themselves would also vary because clusters hold different numbers of photos.

    Args:
        cluster: of each photo, [N].

    Source: the ratio estimator's linearised variance (Cochran, Sampling Techniques, 1977, section 9A.2).
    """
    number, names = pd.factorize(cluster)
    mean = values.mean(1, keepdims=True)
    sums = np.stack([np.bincount(number, row, len(names)) for row in values - mean])
    return mean + sums * (len(names) / values.shape[1])


def _members(ids: pd.Index, groups: pd.Series | None) -> dict[object, np.ndarray]:
    """Each group and the positions of its photos; one group of all without ``groups``."""
    if groups is None:
        return {"": np.arange(len(ids))}
    of_photo = groups.reindex(ids)
    return {
        name: np.flatnonzero((of_photo == name).to_numpy(bool)) for name in sorted(of_photo.dropna().unique())
    }


def _ends(table: pd.DataFrame, below: np.ndarray, above: np.ndarray) -> tuple[pd.Series, pd.Series]:
    """Ends of intervals that reach ``below`` and ``above`` the differences; those of accuracies stay between
    -1 and 1."""
    most = np.where(table["metric"].str.startswith("acc_").astype(bool), 1.0, np.inf)
    return (table["difference"] - below).clip(lower=-most), (table["difference"] + above).clip(upper=most)


def _p_values(mean: np.ndarray, error: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """Two-sided; without spread 1 where there is no difference, and 0 where there is one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 2.0 * stats.t.sf(np.abs(mean) / error, freedom)
    return np.where(error == 0.0, (mean == 0.0).astype(float), found)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values, in the order given (Holm 1979); NaN stays NaN and does not count."""
    p_values = np.asarray(p_values, dtype=float)
    order, count = np.argsort(p_values), np.isfinite(p_values).sum()
    adjusted = np.maximum.accumulate(p_values[order] * (count - np.arange(len(p_values))))
    return np.minimum(adjusted, 1.0)[np.argsort(order)]


def corrected(table: pd.DataFrame, family: Iterable[str] = ("split",), margin: float = 0.0) -> pd.DataFrame:
    """``table`` of :func:`compare`, of accuracies, with what is left when the number of comparisons is
    allowed for.

    Args:
        family: columns; the rows that agree in them are one family of comparisons.
        margin: differences inside are called equivalent, as a fraction; 0: none is.

    Returns:
        The table with comparisons (their number), corrected_low and corrected_high (Bonferroni: all intervals
        of a family hold at once with 95 %), p_holm (Holm's step-down, which finds a little more) and verdict:
        gains or loses (the corrected interval leaves zero out), equivalent (it lies inside the margin), not
        shown, too few photos or too few cells.
    """
    tested, keys = table["error"].notna(), [table[name] for name in family]
    count = tested.groupby(keys, sort=False).transform("sum").clip(lower=1)
    half = half_width(table["error"], table["freedom"], 1.0 - (1.0 - LEVEL) / count.to_numpy(float))
    low, high = _ends(table, half, half)
    verdict = np.select(
        [~tested & (table["cells"] > 0), ~tested, low > 0.0, high < 0.0, (low > -margin) & (high < margin)],
        ["too few cells", "too few photos", "gains", "loses", "equivalent"],
        "not shown",
    )
    p_holm = table["p_value"].groupby(keys, sort=False).transform(holm)
    return table.assign(
        comparisons=count, corrected_low=low, corrected_high=high, p_holm=p_holm, verdict=verdict
    )


def levels(predictions: pd.DataFrame, resamples: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """Every strategy's accuracies and median error with 95 % intervals over photos and seeds.

    Returns:
        split, strategy, metric, value, ci_low, ci_high, sd_of_seeds, seeds, n.
    """
    rows = []
    for of_split in _by_split(predictions):
        for name, metric in itertools.product(of_split.errors, [*COMPARED, "median_km"]):
            split, errors = of_split.name, of_split.errors[name]
            if metric == "median_km":
                by_seed, one = (
                    np.median(errors, 1),
                    median_of(errors, None, resamples, seed, of_split.cluster),
                )
            else:
                hits = METRICS[metric](errors).astype(float)
                by_seed, (one,) = hits.mean(1), means_of([of_split.drawn(hits)])
                one = one._replace(low=max(0.0, one.low), high=min(1.0, one.high))
            spread = float(by_seed.std(ddof=1)) if len(errors) > 1 else np.nan
            rows.append((split, name, metric, *one[:3], spread, *errors.shape))
    names = ["split", "strategy", "metric", "value", "ci_low", "ci_high", "sd_of_seeds", "seeds", "n"]
    return pd.DataFrame(rows, columns=names)


def differences_for_reading(
    table: pd.DataFrame, by: Sequence[str] = ("baseline", "strategy")
) -> pd.DataFrame:
    """Differences of accuracies, "+0.8 [+0.1, +1.5]" in points, one row a split and ``by``.

    Of a table of :func:`corrected` the corrected interval, with ▲ for gains, ▼ for loses and = for
    equivalent.
    """
    chosen, prefix = table[table["metric"].isin(COMPARED)], "corrected" if "verdict" in table else "ci"
    numbers = 100.0 * chosen[["difference", f"{prefix}_low", f"{prefix}_high"]]
    marks = chosen.get("verdict", pd.Series("", chosen.index)).map(
        {"gains": " ▲", "loses": " ▼", "equivalent": " ="}
    )
    rows = zip(numbers.to_numpy(), marks.fillna(""), strict=True)
    text = ["{} [{}, {}]{}".format(*map(points, one), mark) for one, mark in rows]
    return in_order(chosen.assign(text=text), ["split", *by])


def points(value: float, sign: bool = True) -> str:
    """Percentage points with one decimal and a true minus; with ``sign`` also a plus; 0 has no sign.

    Halves are rounded away from zero: counts of photos over a round number fall on them often.
    """
    if not np.isfinite(value):
        return str(value)
    rounded = Decimal(f"{value:.6f}").quantize(Decimal("0.1"), ROUND_HALF_UP)
    text = f"{rounded:+}" if sign else str(rounded)
    return "0.0" if float(text) == 0.0 else text.replace("-", "\u2212")


def in_order(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The column text with a row for each of ``keys``, as they came, and a column a metric, from near to
    far."""
    wide = table.pivot(index=keys, columns="metric", values="text")
    columns = [metric for metric in [*COMPARED, "median_km"] if metric in wide]
    return wide.loc[pd.MultiIndex.from_frame(table[keys].drop_duplicates()), columns].rename_axis(
        columns=None
    )
