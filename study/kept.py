"""Tables and figures that follow from the kept predictions of the second study, in seconds and without any
training."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd

from lib.data.blue_marble import draw_places
from lib.data.sphere import nearest
from lib.evaluate import evaluation, intervals
from lib.runs.run import REFERENCE
from lib.settings import load
from lib.show import figures
from lib.train.metrics import COMPARED
from study import second_figures

KEPT = REFERENCE / "study"
PREDICTIONS = KEPT / "second_predictions.parquet"
WORLDS = {"tune": ("blue_marble", 101), "final": ("blue_marble", 102), "relief": ("shaded_relief", 103)}
"""Part of the study -> imagery and seed of its places."""
ENDPOINTS = (("test", "acc_200km"), ("test_blocked", "acc_750km"), ("test_blocked", "acc_2500km"))
STRATEGIES = ("infonce", "constant_offset", "distance_margin", "semivariogram", "semivariance_margin")
MARGIN = "semivariance_margin"
PRIMARY = (*((name, "geoclip") for name in STRATEGIES), (MARGIN, "curve"))
"""Strategy and frequencies of each arm whose predictions are kept."""
CONTRASTS = (
    *((f"{MARGIN} geoclip", f"{name} geoclip") for name in STRATEGIES if name != MARGIN),
    (f"{MARGIN} curve", f"{MARGIN} geoclip"),
)
NEAREST_KM = (0.0, 30.0, 60.0, 100.0, 181.0, np.inf)
"""Limits of the classes of distance to the nearest training place; 181 km is half a window's diagonal."""


def world_settings(part: str) -> list[str]:
    """Overrides of the profile ``second`` that name the world of ``part``, a key of ``WORLDS``."""
    imagery, seed = WORLDS[part]
    return [f"dataset.imagery={imagery}", f"dataset.seed={seed}"]


def predictions(world: str) -> pd.DataFrame:
    """Kept predictions of a world: split, cell, id, strategy ("infonce geoclip"), seed, error_km.

    Args:
        world: ``blue_marble`` or ``shaded_relief``.
    """
    errors = pd.read_parquet(PREDICTIONS, filters=[("world", "==", world)])
    arm = errors["strategy"].astype(str) + " " + errors["frequencies"].astype(str)
    plain = errors.astype({"id": str, "split": str}).assign(strategy=arm)
    return plain.drop(columns=["world", "frequencies"])


def comparison(
    world: str, errors: pd.DataFrame, contrasts: Iterable[tuple[str, str]] = CONTRASTS
) -> pd.DataFrame:
    """Paired differences at the primary endpoints, with Holm's p values within the world.

    Intervals are over photos and seeds on ``test``, over cells and seeds on ``test_blocked``.

    Args:
        world: goes into the first column.
        errors: the columns of :func:`predictions`.
        contrasts: pairs of arms, the first less the second. A pair that ``errors`` lack is left out.
    """
    rows = []
    for (ours, theirs), (split, metric) in itertools.product(contrasts, ENDPOINTS):
        pair = errors[errors["strategy"].isin([ours, theirs]) & (errors["split"] == split)]
        if pair["strategy"].nunique() == 2:
            rows.append(intervals.compare(pair, theirs, [metric]))
    table = pd.concat(rows, ignore_index=True).drop(columns=["degrees_of_freedom", "cells"])
    table.insert(0, "world", world)
    return table.assign(p_holm=intervals.holm(table["p_value"]))


def papers_question(world: str, errors: pd.DataFrame) -> pd.DataFrame:
    """``semivariogram`` less ``infonce``, both with GeoCLIP's frequencies: every split and radius.

    Uncorrected intervals as in :func:`comparison`, whose arguments it takes.
    """
    pair = errors[errors["strategy"].isin(["semivariogram geoclip", "infonce geoclip"])]
    table = intervals.compare(pair, "infonce geoclip", COMPARED).drop(columns=["degrees_of_freedom", "cells"])
    table.insert(0, "world", world)
    return table


def contrasts_for_reading(table: pd.DataFrame) -> pd.DataFrame:
    """Differences in points with their intervals, "+2.3 [+1.9, +2.7]": one row a contrast, one column an
    endpoint.

    Args:
        table: of :func:`comparison`.
    """
    keys = ["world", "strategy", "baseline"]
    wide = table.assign(text=intervals.in_points(table)).pivot(
        index=keys, columns=["split", "metric"], values="text"
    )
    return wide.loc[pd.MultiIndex.from_frame(table[keys].drop_duplicates())]


def nearest_training_km(part: str) -> pd.Series:
    """Distance in km of each photo of ``test`` to the nearest training place, by id; places are drawn anew.

    Args:
        part: a key of ``WORLDS``.
    """
    places = draw_places(load("second", world_settings(part)).dataset).set_index("id")
    train, test = (
        places.loc[places["split"] == split, ["latitude", "longitude"]] for split in ("train", "test")
    )
    return pd.Series(nearest(test.to_numpy(), train.to_numpy())[1], test.index, name="nearest_km")


def overlap(part: str, errors: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of ``infonce`` within 200 km on ``test`` by distance to the nearest training place.

    Args:
        part: a key of ``WORLDS``.
        errors: :func:`predictions` of that world.

    Returns:
        world, from_km, to_km, photos, share (of the photos), acc_200km (mean over seeds); the last row holds
        all photos.
    """
    chosen = errors[(errors["strategy"] == "infonce geoclip") & (errors["split"] == "test")]
    hit = (chosen["error_km"] <= 200.0).groupby(chosen["id"]).mean()
    away = nearest_training_km(part).loc[hit.index]
    rows = []
    for low, high in (*itertools.pairwise(NEAREST_KM), (0.0, np.inf)):
        inside = (away >= low) & (away < high)
        rows.append((WORLDS[part][0], low, high, int(inside.sum()), inside.mean(), hit[inside].mean()))
    return pd.DataFrame(rows, columns=["world", "from_km", "to_km", "photos", "share", "acc_200km"])


def tables() -> None:
    """Write the tables and figures that follow from the kept predictions."""
    made: dict[str, list[pd.DataFrame]] = {"primary": [], "papers_question": [], "overlap": []}
    for part in ("final", "relief"):
        world = WORLDS[part][0]
        errors = predictions(world)
        made["primary"].append(comparison(world, errors))
        made["papers_question"].append(papers_question(world, errors))
        made["overlap"].append(overlap(part, errors))
    for name, parts in made.items():
        evaluation.save_table(pd.concat(parts), KEPT / f"second_{name}.csv")
    drawn = {"primary": second_figures.contrasts(pd.concat(made["primary"]))}
    steps = KEPT / "second_factorial_differences.csv"
    drawn["steps"] = second_figures.by_steps(pd.read_csv(steps))
    for name, figure in drawn.items():
        path = KEPT / "figures" / f"second_{name}.png"
        figures.save(figure, path)
        path.with_suffix(".pdf").unlink()  # the PNG alone is kept
