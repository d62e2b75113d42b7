"""Pairs of photos as the fitted curve sees them: false negatives, hard negatives, and the rest."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from lib.data import datasets, features
from lib.method.geodesy import distance_km, km_to_rad
from lib.method.semivariogram import FittedSemivariogram
from lib.runs import Run

FALSE_NEGATIVE = "false negative"
HARD_NEGATIVE = "hard negative"
EASY = "easy negative"
STEPS_KM = (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 18_000)
NEAREST_KM = 500.0
"""False negatives that are shown as examples are at most so far apart: beyond, the name grows doubtful."""


def sample(run: Run, fitted: FittedSemivariogram, count: int = 200_000, seed: int = 0) -> pd.DataFrame:
    """About ``count`` random pairs of training photos, half of them uniform, half with as many in each of 50
    steps of log distance: nearly all uniform pairs are thousands of kilometres apart.

    Returns:
        first, second (manifest rows), distance_km, dissimilarity (0..2), gamma, residual, kind.
    """
    manifest, generator = features.photos(run), np.random.default_rng(seed)
    rows = datasets.manifest.rows_of(manifest, "train")
    rows = generator.choice(rows, min(len(rows), 20_000), replace=False)
    anchors = generator.choice(rows, min(len(rows), 1_000), replace=False)
    first, second = (grid.ravel() for grid in np.meshgrid(anchors, rows, indexing="ij"))
    coordinates = datasets.manifest.coordinates(manifest)
    distance = distance_km(coordinates[first], coordinates[second])
    uniform = generator.choice(len(distance), min(len(distance), count // 2), replace=False)
    step = np.digitize(np.log(np.maximum(distance, 1.0)), np.linspace(0.0, np.log(20_016.0), 51))
    share = count / 2 / len(np.unique(step)) / np.bincount(step)[step]
    stratified = np.flatnonzero(generator.random(len(distance)) < share)
    chosen = np.unique(np.concatenate((uniform, stratified)))
    chosen = chosen[first[chosen] != second[chosen]]
    return classify(_measured(run, manifest, first[chosen], second[chosen]), fitted)


def _measured(run: Run, manifest: pd.DataFrame, first: np.ndarray, second: np.ndarray) -> pd.DataFrame:
    """Pairs of the manifest's rows ``first`` and ``second`` [P], with distance_km and dissimilarity."""
    frozen, coordinates = features.read(run, manifest), datasets.manifest.coordinates(manifest)
    blocks = (slice(start, start + 16_384) for start in range(0, len(first), 16_384))
    cosine = [(frozen.unit(first[some]) * frozen.unit(second[some])).sum(1) for some in blocks]
    found = pd.DataFrame({"first": first, "second": second})
    found["distance_km"] = distance_km(coordinates[first], coordinates[second])
    return found.assign(dissimilarity=1.0 - torch.cat(cosine).numpy())


def classify(frame: pd.DataFrame, fitted: FittedSemivariogram) -> pd.DataFrame:
    """``frame`` (distance_km, dissimilarity) with gamma, residual and kind. Look-alikes (residual above 0)
    are false negatives up to the range and hard beyond; others are easy. Source: the paper's definitions."""
    gamma = fitted.gamma(km_to_rad(frame["distance_km"].to_numpy()))
    residual = gamma - frame["dissimilarity"]
    look_alike = np.where(frame["distance_km"] <= fitted.range_km, FALSE_NEGATIVE, HARD_NEGATIVE)
    return frame.assign(gamma=gamma, residual=residual, kind=np.where(residual > 0, look_alike, EASY))


def example_pair(
    frame: pd.DataFrame, used: list[int], unit: Callable[[np.ndarray], torch.Tensor], share: float = 0.05
) -> pd.DataFrame:
    """One pair of ``frame``, or none, of the ``share`` with the largest residuals: the one that is least like
    the photos ``used``, to which its own are added. The largest are all alike, uniform snow or forest.
    ``unit`` gives the unit features of rows of the manifest."""
    free = frame[~frame["first"].isin(used) & ~frame["second"].isin(used)]
    top = free.nlargest(max(1, round(share * len(free))), "residual")
    chosen = top.sample(min(1, len(top)), random_state=0)
    if used and len(top):
        both = (unit(top[name].to_numpy()) @ unit(np.array(used)).T for name in ("first", "second"))
        chosen = top.iloc[[int(torch.cat([*both], 1).amax(1).argmin())]]
    used += [*chosen["first"], *chosen["second"]]
    return chosen


def examples(
    frame: pd.DataFrame, fitted: FittedSemivariogram, unit: Callable[[np.ndarray], torch.Tensor],
    count: int = 4,
) -> pd.DataFrame:  # fmt: skip
    """False and hard negatives with large residuals, one in each of ``count`` steps, no photo twice: see
    :func:`example_pair`. Steps are even in log distance from 20 km to ``NEAREST_KM``, or to the range where
    that is nearer, and in distance from the range to the antipode."""
    used: list[int] = []
    edges = {
        FALSE_NEGATIVE: np.geomspace(20.0, max(21.0, min(fitted.range_km, NEAREST_KM)), count + 1),
        HARD_NEGATIVE: np.linspace(fitted.range_km, 20_016.0, count + 1),
    }
    found = [
        example_pair(frame[(frame["kind"] == kind) & frame["distance_km"].between(low, high)], used, unit)
        for kind, steps in edges.items()
        for low, high in itertools.pairwise(steps)
    ]
    return pd.concat(found, ignore_index=True)


def typical(cloud: pd.DataFrame, manifest: pd.DataFrame) -> pd.DataFrame:
    """Of the pairs ``cloud`` that are about each of ``STEPS_KM`` apart, if there are any, the one of median
    dissimilarity: ids of both photos, distance_km, dissimilarity, gamma."""
    about = [cloud[cloud["distance_km"].between(0.9 * km, 1.1 * km)] for km in STEPS_KM]
    rows = [one.sort_values("dissimilarity", kind="stable").iloc[len(one) // 2] for one in about if len(one)]
    found = pd.DataFrame(rows, columns=["first", "second", "distance_km", "dissimilarity", "gamma"])
    ids = {name: manifest["id"].to_numpy()[found[name].astype(int)] for name in ("first", "second")}
    return found.assign(**ids).reset_index(drop=True)


def shares(run: Run, fitted: FittedSemivariogram, count: int = 200_000) -> pd.DataFrame:
    """Share of each kind among about ``count`` uniform pairs of training photos, and in a batch."""
    manifest = features.photos(run)
    rows = datasets.manifest.rows_of(manifest, "train")
    some = min(len(rows), 1 + int(np.sqrt(2 * count)))
    anchors = np.random.default_rng(1).choice(rows, some, replace=False)
    first, second = np.triu_indices(len(anchors), 1)
    found = classify(_measured(run, manifest, anchors[first], anchors[second]), fitted)["kind"]
    share = found.value_counts(normalize=True).reindex([FALSE_NEGATIVE, HARD_NEGATIVE, EASY], fill_value=0.0)
    negatives = min(run.settings.training.batch_size, len(rows)) - 1
    counted = {"share": share.round(4), f"of a photo's {negatives} negatives": (share * negatives).round(1)}
    return pd.DataFrame(counted)
