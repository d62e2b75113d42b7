"""What many strategies, few seeds and some thousand photos can show: paired differences, corrected for their number.

The seeds' photos are the same and the photos' seeds are the same, so a difference x[s, i] (seed s, photo i) has a part of the
seed, a part of the photo and a rest. Its mean over both has the variance

    (MS_seeds + MS_photos - MS_rest) / (S N)

of the two-way analysis of variance (mean squares MS), with Satterthwaite's degrees of freedom. Unlike a bootstrap of seeds it
does not understate few seeds by (S - 1) / S, and it reaches the far tails that a correction for many comparisons asks for.
Medians, which are no means over photos, are bootstrapped over photos and seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from lib.evaluate.evaluation import COMPARED, METRICS, aligned, seed_by_photo
from lib.method.errors import BundleError

LEVEL = 0.95


class SignificanceError(BundleError):
    """A comparison cannot be made; the message says which and why."""


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values, in the order given (Holm 1979)."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    adjusted = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    return np.minimum(adjusted, 1.0)[np.argsort(order)]


def mean_of(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of x [S, N] over S seeds and N photos, its standard error, and Satterthwaite's degrees of freedom.

    A mean square of seeds or photos below the rest's is taken as the rest's: a variance is not negative. One seed: the
    variance is that of the photos alone, which says nothing about other seeds.

    Source: the two-way random-effects analysis of variance.
    """
    seeds, photos = values.shape
    mean = float(values.mean())
    by_seed, by_photo = values.mean(1), values.mean(0)
    if seeds == 1:
        return mean, float(by_photo.std(ddof=1) / np.sqrt(photos)), float(photos - 1)
    rest = values - by_seed[:, None] - by_photo + mean
    freedom = np.array([seeds - 1, photos - 1, (seeds - 1) * (photos - 1)], dtype=float)
    squares = np.array([photos * by_seed.var() * seeds, seeds * by_photo.var() * photos, (rest**2).sum()]) / freedom
    squares[:2] = np.maximum(squares[:2], squares[2])
    variance = (squares[0] + squares[1] - squares[2]) / (seeds * photos)
    if variance <= 0.0:
        return mean, 0.0, freedom[2]
    return mean, float(np.sqrt(variance)), float((seeds * photos * variance) ** 2 / (squares**2 / freedom).sum())


def _interval(mean: float, error: float, freedom: float, level: float, least: float = -1.0) -> tuple[float, float]:
    """``least``: what no value can fall below: -1 for a difference of two accuracies, 0 for an accuracy."""
    width = error * stats.t.ppf(0.5 + level / 2.0, freedom) if error else 0.0
    return max(mean - width, least), min(mean + width, 1.0)


def _matrix(predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Errors [S, N] in kilometres of each strategy of one split, on the same seeds and photos.

    ``geoclip_pretrained`` is one model and stands against every seed of the others.

    Raises:
        SignificanceError: they are not the same.
    """
    found = {name: seed_by_photo(frame) for name, frame in aligned(predictions).groupby("strategy", sort=False)}
    first = next(iter(found.values()))
    for name, errors in found.items():
        if not errors.columns.equals(first.columns) or not errors.index.equals(first.index) or errors.isna().any(axis=None):
            raise SignificanceError(f"{name} was not evaluated on the same photos and seeds as {next(iter(found))}")
    return found


def _median(errors: np.ndarray, draws: tuple[np.ndarray, np.ndarray]) -> tuple[float, np.ndarray]:
    """Mean over seeds of the median error, and the same in each draw of seeds [R, S] and photos [R, N]."""
    drawn = [np.median(errors[np.ix_(some, photos)], axis=1).mean() for some, photos in zip(*draws, strict=True)]
    return float(np.median(errors, axis=1).mean()), np.array(drawn)


def _draws(shape: tuple[int, int], resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return tuple(generator.integers(size, size=(resamples, size)) for size in shape)


def final_table(predictions: pd.DataFrame, resamples: int = 300, seed: int = 0) -> pd.DataFrame:
    """Every strategy's accuracies and median error with 95 % intervals over photos and seeds.

    Returns:
        split, strategy, metric, value, ci_low, ci_high, sd_of_seeds, seeds, n.
    """
    rows = []
    for split, of_split in predictions.groupby("split", sort=False):
        matrices = _matrix(of_split)
        draws = _draws(next(iter(matrices.values())).shape, resamples, seed)
        for name, errors in matrices.items():
            errors = errors.to_numpy()
            for metric in COMPARED:
                hits = METRICS[metric](errors).astype(float)
                mean, error, freedom = mean_of(hits)
                between = float(hits.mean(1).std(ddof=1)) if len(hits) > 1 else np.nan
                interval = _interval(mean, error, freedom, LEVEL, least=0.0)
                rows.append((split, name, metric, mean, *interval, between, *errors.shape))
            value, drawn = _median(errors, draws)
            between = float(np.median(errors, axis=1).std(ddof=1)) if len(errors) > 1 else np.nan
            rows.append((split, name, "median_km", value, *np.quantile(drawn, [0.025, 0.975]), between, *errors.shape))
    names = ["split", "strategy", "metric", "value", "ci_low", "ci_high", "sd_of_seeds", "seeds", "n"]
    return pd.DataFrame(rows, columns=names)


def paired(predictions: pd.DataFrame, baseline: str, metrics: Sequence[str] = COMPARED) -> pd.DataFrame:
    """Differences, strategy minus ``baseline``, photo by photo and seed by seed, with what testing them takes.

    Returns:
        split, strategy, baseline, metric, difference, ci_low, ci_high (95 %), p_value (two-sided), error (standard), freedom,
        seeds, n.

    Raises:
        SignificanceError: ``baseline`` is not among the strategies, or they were evaluated on different photos or seeds.
    """
    rows = []
    for split, of_split in predictions.groupby("split", sort=False):
        matrices = {name: errors.to_numpy() for name, errors in _matrix(of_split).items()}
        if baseline not in matrices:
            raise SignificanceError(f"{baseline} is not among the strategies of split {split}: {', '.join(matrices)}")
        for name, metric in ((name, metric) for name in matrices if name != baseline for metric in metrics):
            gain = METRICS[metric](matrices[name]).astype(float) - METRICS[metric](matrices[baseline])
            mean, error, freedom = mean_of(gain)
            p_value = float(2.0 * stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0.0)
            low, high = _interval(mean, error, freedom, LEVEL)
            rows.append((split, name, baseline, metric, mean, low, high, p_value, error, freedom, *gain.shape))
    names = ["split", "strategy", "baseline", "metric", "difference", "ci_low", "ci_high", "p_value", "error", "freedom", "seeds", "n"]
    return pd.DataFrame(rows, columns=names)


def corrected(table: pd.DataFrame, family: Iterable[str] = ("split",), margin: float = 0.003) -> pd.DataFrame:
    """``table`` of :func:`paired` with what is left when the number of comparisons is allowed for.

    Args:
        family: columns; the rows that agree in them are one family of comparisons.
        margin: differences inside are called equivalent, as a fraction.

    Returns:
        The table with p_holm (Holm's step-down), corrected_low and corrected_high (Bonferroni's intervals, which hold all
        at once with 95 %), comparisons (their number), and verdict: better, worse, equivalent (the corrected interval
        lies inside the margin) or undecided.
    """
    parts = []
    for _, rows in table.groupby(list(family), sort=False):
        level = 1.0 - (1.0 - LEVEL) / len(rows)
        bounds = [_interval(one.difference, one.error, one.freedom, level) for one in rows.itertuples()]
        low, high = np.array(bounds).T
        parts.append(
            rows.assign(p_holm=holm(rows["p_value"].to_numpy()), corrected_low=low, corrected_high=high, comparisons=len(rows))
        )
    whole = pd.concat(parts).loc[table.index]
    inside = (whole["corrected_low"] > -margin) & (whole["corrected_high"] < margin)
    shown = whole["p_holm"] < 1.0 - LEVEL
    whole["verdict"] = np.select(
        [shown & (whole["difference"] > 0), shown & (whole["difference"] < 0), inside], ["better", "worse", "equivalent"], "undecided"
    )
    return whole


def beats_all(predictions: pd.DataFrame, strategy: str, others: Sequence[str], metrics: Sequence[str] = COMPARED) -> pd.DataFrame:
    """``strategy`` against each of ``others``, corrected over all of these comparisons of a split: the table of :func:`corrected`.

    Column ``baseline`` names the other one; the strategy beats all where every corrected_low of a metric is above zero.

    Raises:
        SignificanceError: see :func:`paired`.
    """
    chosen = predictions[predictions["strategy"].isin([strategy, *others])]
    frames = [paired(chosen[chosen["strategy"].isin([strategy, other])], other, metrics) for other in others]
    return corrected(pd.concat(frames, ignore_index=True))


def beats_each(
    predictions: pd.DataFrame, strategies: Sequence[str], others: Sequence[str], metrics: Sequence[str] = COMPARED
) -> pd.DataFrame:
    """:func:`beats_all` for each of ``strategies`` against ``others`` but itself, one table; each corrected by itself."""
    frames = [beats_all(predictions, name, [one for one in others if one != name], metrics) for name in strategies]
    return pd.concat(frames, ignore_index=True)


def final_for_reading(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`final_table` with one row a split and strategy: percent (kilometres for the median) and half the interval's width."""
    share = np.where(table["metric"] == "median_km", 1.0, 100.0)
    half = (table["ci_high"] - table["ci_low"]) / 2.0 * share
    text = [f"{value:.1f} ± {width:.1f}" for value, width in zip(table["value"] * share, half, strict=True)]
    wide = table.assign(text=text).pivot(index=["split", "strategy"], columns="metric", values="text")
    order = table[["split", "strategy"]].drop_duplicates()
    return wide.loc[pd.MultiIndex.from_frame(order), [*COMPARED, "median_km"]].rename_axis(columns=None)


def differences_for_reading(table: pd.DataFrame, by: Sequence[str] = ("strategy",)) -> pd.DataFrame:
    """:func:`corrected` with one row a split and ``by``: points, the corrected interval, and a mark where Holm leaves something."""
    keys = ["split", *by]
    marks = {"better": " ▲", "worse": " ▼", "equivalent": " =", "undecided": ""}
    text = [
        f"{100 * one.difference:+.1f} [{100 * one.corrected_low:+.1f}, {100 * one.corrected_high:+.1f}]{marks[one.verdict]}"
        for one in table.itertuples()
    ]
    wide = table.assign(text=text).pivot(index=keys, columns="metric", values="text")
    order = table[keys].drop_duplicates()
    columns = [metric for metric in COMPARED if metric in wide]
    return wide.loc[pd.MultiIndex.from_frame(order), columns].rename_axis(columns=None)
