"""Errors at granularity: predictions, accuracy tables, and the bounds that gallery and chance set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from lib.data import backbones, datasets, features
from lib.data.manifest import read_table
from lib.data.places import photo_places
from lib.data.sphere import nearest
from lib.evaluate import intervals, neighbour
from lib.evaluate.intervals import GEOCLIP_PRETRAINED, NEAREST_NEIGHBOUR, UNTRAINED
from lib.method.geodesy import distance_km
from lib.runs import Run, cached, progress, writing
from lib.settings import Evaluation
from lib.train import checkpoints, gallery, training
from lib.train.metrics import COLUMNS, COMPARED, COMPARED_KM, RADII_KM, summarise

CONTROL = "similarity"
"""The strategy without geography: what the semivariogram adds is the difference to it."""
SCALES = "infonce_frequencies"
"""The baseline with other frequencies: what a loss adds to those, of a variant whose name ends alike, is the
difference to it."""
TABLES = ("accuracy", "comparison", "intervals", "bounds", "by_continent", "gain_by_continent")


def predict_all(run: Run, strategies: list[str], split_names: list[str] | None = None) -> pd.DataFrame:
    """Top-1 predictions of each strategy and seed, one row a photo: id, split, strategy, seed, latitude,
    longitude, predicted_latitude, predicted_longitude, error_km, and cell where the manifest has it.

    ``strategies`` are names in the run's settings; ``geoclip_pretrained``, GeoCLIP as published among its own
    100,000 places; ``nearest_neighbour``, of :mod:`lib.evaluate.neighbour`. These two have seed 0. By default
    ``split_names`` are ``evaluation.splits``.

    BundleError: GeoCLIP as published is asked for, and the run's features are not CLIP ViT-L/14's.
    """
    manifest = features.photos(run)
    training.train_all(run, [name for name in strategies if name not in UNTRAINED])
    frozen, of_run = features.read(run, manifest), gallery.coordinates(run, manifest)
    splits = split_names or datasets.splits_of(run, set(manifest["split"]))
    rows = np.concatenate([datasets.manifest.rows_of(manifest, split) for split in splits])
    seeds, frames = run.settings.training.seeds, []
    asked = [(name, seed) for name in strategies for seed in ([0] if name in UNTRAINED else seeds)]
    for name, seed in progress(asked, "predicting", len(asked)):
        if name == NEAREST_NEIGHBOUR:
            found = neighbour.predict(frozen, manifest, rows, run.device)
        elif name == GEOCLIP_PRETRAINED:
            backbones.check_published_head(run.settings.backbone)
            published, candidates = checkpoints.published().to(run.device), photo_places()
            found = candidates[gallery.search(published, frozen, rows, candidates)]
        else:
            trained = checkpoints.load(run.checkpoint(name, seed), run.device)
            found = of_run[gallery.search(trained, frozen, rows, of_run)]
        frames.append(predictions_of(manifest.iloc[rows], found, name, seed))
    return pd.concat(frames, ignore_index=True)


def predictions_of(photos: pd.DataFrame, found: np.ndarray, strategy: str, seed: int) -> pd.DataFrame:
    """Rows as of :func:`predict_all`: ``photos``, rows of the manifest, are placed at ``found`` [N, 2]."""
    made = photos[["id", "split"]].reset_index(drop=True).assign(strategy=strategy, seed=seed)
    truth = datasets.manifest.coordinates(photos)
    made[["latitude", "longitude"]], made[["predicted_latitude", "predicted_longitude"]] = truth, found
    made["error_km"] = distance_km(truth, found)
    return made.assign(cell=photos["cell"].to_numpy()) if "cell" in photos else made


def accuracy(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row a strategy, seed and split: n, accuracies as fractions, median_km, mean_km, geoscore."""
    grouped = predictions.groupby(["strategy", "seed", "split"], sort=False)["error_km"]
    rows = [(*key, len(errors), *summarise(errors.to_numpy()).values()) for key, errors in grouped]
    return pd.DataFrame(rows, columns=["strategy", "seed", "split", "n", *COLUMNS])


def bounds(run: Run, manifest: pd.DataFrame, splits: Iterable[str]) -> pd.DataFrame:
    """What the gallery and chance allow on ``splits``, as :func:`accuracy`: ceiling gives each photo its
    nearest gallery point, chance one drawn at random."""
    candidates, frames = gallery.coordinates(run, manifest), []
    for split in splits:
        photos = manifest.iloc[datasets.manifest.rows_of(manifest, split)]
        best, _ = nearest(datasets.manifest.coordinates(photos), candidates)
        drawn = np.random.default_rng(0).integers(len(candidates), size=len(photos))
        frames += [predictions_of(photos, candidates[best], "ceiling", 0)]
        frames += [predictions_of(photos, candidates[drawn], "chance", 0)]
    return accuracy(pd.concat(frames))


def comparison(predictions: pd.DataFrame, settings: Evaluation) -> pd.DataFrame:
    """Every strategy against ``infonce``, trained ones that use geography against the control without, and
    those with other frequencies against ``SCALES``."""
    drawn = {"resamples": settings.bootstrap, "seed": settings.seed}
    named = predictions["strategy"]
    against = {
        CONTROL: predictions[~named.isin([intervals.BASELINE, *UNTRAINED])],
        SCALES: predictions[named.str.endswith("_frequencies")],
    }
    found = [intervals.compare(predictions, **drawn)]
    for name, some in against.items():
        found += [intervals.compare(some, name, **drawn)] if {name} < {*some["strategy"]} else []
    return pd.concat(found, ignore_index=True)


def continent_gains(predictions: pd.DataFrame, continents: pd.Series) -> pd.DataFrame:
    """Differences by continent (of each photo, indexed by id), corrected within each split and radius."""
    table = intervals.compare(predictions, metrics=COMPARED, groups=continents)
    return intervals.corrected(table).rename(columns={"group": "continent"})


def evaluate(run: Run) -> dict[str, pd.DataFrame]:
    """``predictions`` and ``TABLES`` of the run's strategies on its evaluation splits, made or reused."""
    settings = run.settings.evaluation
    strategies = training.train_all(run, training.strategies_of(run))
    weights = [run.checkpoint(name, seed) for name in strategies for seed in run.settings.training.seeds]
    used = {"strategies": strategies, "seeds": run.settings.training.seeds}
    cached(
        run, "evaluation", lambda: _evaluate(run, strategies), code=[_evaluate],
        inputs=[run.manifest, run.features, *weights, *gallery.input_files(run)],
        outputs=[run.predictions, *map(run.table, TABLES)],
        settings=settings.model_dump(exclude={"shown"}) | used,
    )  # fmt: skip
    tables = {name: read_table(run.table(name)) for name in TABLES}
    return {"predictions": pd.read_parquet(run.predictions)} | tables


def _evaluate(run: Run, strategies: list[str]) -> None:
    """Predict with ``strategies`` and those that are not trained; write the predictions and ``TABLES``."""
    settings = run.settings.evaluation
    predictions = predict_all(run, [*strategies, *settings.baselines, NEAREST_NEIGHBOUR])
    with writing(run.predictions) as aside:
        predictions.to_parquet(aside, index=False)
    manifest = features.photos(run)
    continents = manifest.set_index("id")["continent"]
    made = (
        accuracy(predictions),
        comparison(predictions, settings),
        intervals.levels(predictions, settings.bootstrap, settings.seed),
        bounds(run, manifest, predictions["split"].unique()),
        intervals.levels_by_continent(predictions, continents),
        continent_gains(predictions, continents),
    )
    for name, table in zip(TABLES, made, strict=True):
        save_table(table, run.table(name))


def typical(predictions: pd.DataFrame, strategy: str) -> pd.Series:
    """The photo of the first split that has the median error of ``strategy``'s smallest seed, as a row of
    ``predictions``: of two in the middle the farther off, of equals the last by id."""
    rows = predictions[predictions["strategy"] == strategy]
    rows = rows[(rows["split"] == predictions["split"].iloc[0]) & (rows["seed"] == rows["seed"].min())]
    return rows.sort_values(["error_km", "id"]).iloc[len(rows) // 2]


def shown(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``table`` that figures and maps show: strategies of ``evaluation.shown``, or all."""
    names = run.settings.evaluation.shown
    return table[table["strategy"].isin([*names, *UNTRAINED])] if names else table


def save_table(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Write ``table`` as CSV, and return it."""
    with writing(path) as aside:
        table.to_csv(aside, index=False)
    return table


def for_reading(accuracies: pd.DataFrame, limits: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in percent, mean over seeds, and the rows ceiling and chance; one row a split and strategy."""
    radii = [f"acc_{radius}km" for radius in sorted({*RADII_KM, *COMPARED_KM})]
    rounding = dict.fromkeys(radii, 1) | {"median_km": 0, "mean_km": 0, "geoscore": 0}
    rows = pd.concat([accuracies, limits]).groupby(["split", "strategy"], sort=False)[list(rounding)].mean()
    rows[radii] *= 100.0
    return rows.sort_index(level="split", sort_remaining=False, kind="stable").round(rounding)
