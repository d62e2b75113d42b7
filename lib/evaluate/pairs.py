"""Pairs of photos as the fitted curve sees them: false negatives, hard negatives, and the rest."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from lib.data import datasets, features
from lib.method.geodesy import distance_km, km_to_rad
from lib.method.semivariogram import FittedSemivariogram
from lib.runs import Run

FALSE_NEGATIVE = "false negative"
HARD_NEGATIVE = "hard negative"
EASY = "easy negative"


def sample(run: Run, fitted: FittedSemivariogram, count: int = 200_000, seed: int = 0) -> pd.DataFrame:
    """About ``count`` random pairs of training photos, half of them uniform, half stratified by distance.

    Uniform pairs are nearly all thousands of kilometres apart; the other half is thinned so that each stretch
    of log distance holds equally many, which is what a plot from near to far needs.

    Returns:
        first, second (manifest rows), distance_km, dissimilarity (0..2), gamma, residual, kind.
    """
    manifest = datasets.read(run)
    frozen = features.read(run, manifest)
    generator = np.random.default_rng(seed)
    rows = datasets.manifest.rows_of(manifest, "train")
    # 20 million pairs to draw from, at most
    rows = generator.choice(rows, min(len(rows), 20_000), replace=False)
    coordinates = datasets.manifest.coordinates(manifest)
    anchors = generator.choice(rows, min(len(rows), 1_000), replace=False)
    first, second = (grid.ravel() for grid in np.meshgrid(anchors, rows, indexing="ij"))
    distance = distance_km(coordinates[first], coordinates[second])
    chosen = _half_stratified(distance, count, generator)
    chosen = chosen[first[chosen] != second[chosen]]
    frame = pd.DataFrame({"first": first[chosen], "second": second[chosen], "distance_km": distance[chosen]})
    frame["dissimilarity"] = np.concatenate(
        [
            (
                1.0 - (frozen.unit(part["first"].to_numpy()) * frozen.unit(part["second"].to_numpy())).sum(1)
            ).numpy()
            for _, part in frame.groupby(np.arange(len(frame)) // 16_384)
        ]
    )
    return classify(frame, fitted)


def _half_stratified(distance: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Indices of a sample of ``distance``: half uniform, half with equal chances for each of 50 steps of log
    distance."""
    uniform = generator.choice(len(distance), min(len(distance), count // 2), replace=False)
    step = np.digitize(np.log(np.maximum(distance, 1.0)), np.linspace(0.0, np.log(20_016.0), 51))
    share = 1.0 / np.bincount(step)[step]
    stratified = np.flatnonzero(generator.random(len(distance)) < share * (count / 2 / len(np.unique(step))))
    return np.unique(np.concatenate((uniform, stratified)))


def classify(frame: pd.DataFrame, fitted: FittedSemivariogram) -> pd.DataFrame:
    """``frame`` (distance_km, dissimilarity) with gamma, residual and kind.

    Look-alikes (residual above 0) are false negatives up to the range and hard negatives beyond it; every
    other pair is an easy negative. Source: the paper's two definitions.
    """
    gamma = fitted.gamma(km_to_rad(frame["distance_km"].to_numpy()))
    residual = gamma - frame["dissimilarity"]
    look_alike = np.where(frame["distance_km"] <= fitted.range_km, FALSE_NEGATIVE, HARD_NEGATIVE)
    return frame.assign(gamma=gamma, residual=residual, kind=np.where(residual > 0, look_alike, EASY))


def telling_pair(frame: pd.DataFrame, used: set[int], share: float = 0.02, seed: int = 0) -> pd.DataFrame:
    """One pair of ``frame`` out of the ``share`` with the largest residuals, no photo of it in ``used``
    (none: empty).

    Drawn at random there: the very largest residuals are all of one kind, uniform snow or forest. Adds its
    photos to ``used``.
    """
    free = frame[~frame["first"].isin(used) & ~frame["second"].isin(used)]
    top = free.nlargest(max(1, round(share * len(free))), "residual")
    chosen = top.sample(min(1, len(top)), random_state=seed)
    used |= {*chosen["first"], *chosen["second"]}
    return chosen


def examples(frame: pd.DataFrame, fitted: FittedSemivariogram, count: int = 4) -> pd.DataFrame:
    """Telling false negatives and hard negatives, one in each of ``count`` steps of distance, no photo
    twice."""
    used: set[int] = set()
    found = [
        telling_pair(frame[(frame["kind"] == kind) & frame["distance_km"].between(low, high)], used)
        for kind, low, high in steps_of_distance(fitted.range_km, count)
    ]
    return pd.concat(found, ignore_index=True)


def steps_of_distance(range_km: float, count: int = 4) -> list[tuple[str, float, float]]:
    """(kind, from, to) of the distances, km, of which :func:`examples` has one pair each.

    Even in log distance from 20 km to the range, and even in distance from there to the antipode.
    """
    edges = {
        FALSE_NEGATIVE: np.geomspace(20.0, range_km, count + 1),
        HARD_NEGATIVE: np.linspace(range_km, 20_016.0, count + 1),
    }
    return [(kind, low, high) for kind, steps in edges.items() for low, high in itertools.pairwise(steps)]


def shares(run: Run, fitted: FittedSemivariogram, count: int = 200_000, seed: int = 1) -> pd.DataFrame:
    """Share of each kind among uniform random pairs of training photos, as a batch draws them, and how many
    in a batch."""
    manifest = datasets.read(run)
    frozen = features.read(run, manifest)
    rows = datasets.manifest.rows_of(manifest, "train")
    anchors = np.random.default_rng(seed).choice(
        rows, min(len(rows), 1 + int(np.sqrt(2 * count))), replace=False
    )
    first, second = np.triu_indices(len(anchors), 1)
    unit, places = frozen.unit(anchors), datasets.manifest.coordinates(manifest)[anchors]
    frame = pd.DataFrame(
        {
            "distance_km": distance_km(places[first], places[second]),
            "dissimilarity": (1.0 - unit @ unit.T).numpy()[first, second],
        }
    )
    share = (
        classify(frame, fitted)["kind"]
        .value_counts(normalize=True)
        .reindex([FALSE_NEGATIVE, HARD_NEGATIVE, EASY], fill_value=0.0)
    )
    negatives = min(run.settings.training.batch_size, len(rows)) - 1
    return pd.DataFrame(
        {"share": share.round(4), f"of a photo's {negatives} negatives": (share * negatives).round(1)}
    )
