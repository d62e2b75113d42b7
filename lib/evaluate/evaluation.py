"""Errors at granularity: predictions, accuracy tables, paired intervals, the bounds that gallery and chance set."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from lib.data import backbones, datasets, features
from lib.data.blue_marble import photo_places
from lib.data.sphere import nearest
from lib.method.geodesy import distance_km
from lib.runs import Run, progress, ranks, writing
from lib.settings import Evaluation
from lib.train import checkpoints, gallery, training
from lib.train.training import COMPARED_KM, RADII_KM

GEOSCORE_SCALE_KM = 1492.7
"""Decay length of GeoScore, kilometres (OSV5M)."""

PUBLISHED = "geoclip_pretrained"
"""GeoCLIP as published, which is one model, whatever the seeds of the others."""
CONTROL = "similarity"
"""The strategy without geography: what the semivariogram adds is the difference to it."""

COMPARED = tuple(f"acc_{radius}km" for radius in COMPARED_KM)
"""The accuracies that strategies are compared by."""
PerPhoto = Callable[[np.ndarray], np.ndarray]
METRICS: dict[str, PerPhoto] = {
    **{f"acc_{radius}km": lambda error, radius=radius: error <= radius for radius in RADII_KM},
    "mean_km": lambda error: error,
    "geoscore": lambda error: 5000.0 * np.exp(-error / GEOSCORE_SCALE_KM),
    "acc_100km": lambda error: error <= 100,
}
"""Metrics that are means over photos, of great-circle errors in km; the median is not one of them."""
COLUMNS = [*list(METRICS)[:5], "median_km", "mean_km", "geoscore", "acc_100km"]


def summarise(error_km: np.ndarray) -> dict[str, float]:
    """Accuracies (0..1), median and mean error (km) and GeoScore (0..5000) of errors [N] in kilometres, N > 0."""
    values = {name: float(np.mean(of(error_km))) for name, of in METRICS.items()}
    return {name: float(np.median(error_km)) if name == "median_km" else values[name] for name in COLUMNS}


def splits_of(run: Run, manifest: pd.DataFrame) -> list[str]:
    """The evaluation splits that the run's data set has; those that it lacks are named in a printed line.

    Raises:
        ManifestError: it has none of them.
    """
    there = set(manifest["split"])
    wanted = run.settings.evaluation.splits
    if not there & set(wanted):
        raise datasets.manifest.ManifestError(
            f"{run.manifest}: has none of the splits {', '.join(wanted)} (evaluation.splits); it has {', '.join(sorted(there))}"
        )
    if lacking := [split for split in wanted if split not in there]:
        print(f"not evaluated: split {', '.join(lacking)} has no photos in this data set")
    return [split for split in wanted if split in there]


def predict_all(
    run: Run,
    strategies: list[str],
    *,
    manifest: pd.DataFrame | None = None,
    split_names: list[str] | None = None,
    among_ranks: bool = False,
) -> pd.DataFrame:
    """Top-1 predictions of each strategy and seed on the evaluation splits, one row a photo, not written anywhere.

    Args:
        manifest: the run's, where it has been read already.
        split_names: splits to predict; default ``evaluation.splits``.
        among_ranks: the gallery is shared out among the ranks, all of which call this and get the same.

    Returns:
        id, split, strategy, seed, latitude, longitude, predicted_latitude, predicted_longitude, error_km.
    """
    if manifest is None:
        manifest = datasets.read(run, [*datasets.manifest.PLACES, "id"])
    frozen, candidates = features.read(run, manifest), gallery.coordinates(run, manifest)
    splits = split_names or splits_of(run, manifest)
    rows = np.concatenate([datasets.manifest.rows_of(manifest, split) for split in splits])
    photos, truth = manifest.iloc[rows], datasets.manifest.coordinates(manifest)[rows]
    trained = [(name, seed) for name in strategies for seed in run.settings.training.seeds]
    frames = []
    for name, seed in progress(trained, "predicting", len(trained)):
        geoclip = checkpoints.load(
            run.require(run.checkpoint(name, seed), "02_baseline_geoclip or 04_regularized_training"), run.device
        )
        found = candidates[gallery.search(geoclip, frozen, rows, candidates, among_ranks=among_ranks)]
        frames.append(predictions_of(photos, truth, found, name, seed))
    return pd.concat(frames, ignore_index=True)


def predict_published(run: Run, manifest: pd.DataFrame, among_ranks: bool = False) -> pd.DataFrame:
    """Top-1 predictions of GeoCLIP as published among its own 100,000 places, the columns of :func:`predict_all`; seed 0.

    Raises:
        BackboneError: the run's features are not CLIP ViT-L/14's.
    """
    backbones.check_published_head(run.settings.backbone)
    frozen, candidates = features.read(run, manifest), photo_places()
    rows = np.concatenate([datasets.manifest.rows_of(manifest, split) for split in splits_of(run, manifest)])
    published = checkpoints.published().to(run.device)
    found = gallery.search(published, frozen, rows, candidates, among_ranks=among_ranks)
    truth = datasets.manifest.coordinates(manifest)[rows]
    return predictions_of(manifest.iloc[rows], truth, candidates[found], PUBLISHED, 0)


def predictions_of(photos: pd.DataFrame, truth: np.ndarray, found: np.ndarray, strategy: str, seed: int) -> pd.DataFrame:
    """Rows as :func:`predict_all` has them: of ``photos`` at ``truth`` [N, 2], predicted at ``found`` [N, 2], degrees."""
    return pd.DataFrame(
        {
            "id": photos["id"].to_numpy(),
            "split": photos["split"].to_numpy(),
            "strategy": strategy,
            "seed": seed,
            "latitude": truth[:, 0],
            "longitude": truth[:, 1],
            "predicted_latitude": found[:, 0],
            "predicted_longitude": found[:, 1],
            "error_km": distance_km(truth, found),
        }
    )


def bounds(run: Run, manifest: pd.DataFrame, split: str, seed: int = 0) -> pd.DataFrame:
    """What the gallery and chance allow on ``split``: the same columns as :func:`accuracy`, strategies ceiling and chance.

    ceiling: each photo is given its nearest gallery point; chance: a gallery point drawn at random.
    """
    candidates = gallery.coordinates(run, manifest)
    rows = datasets.manifest.rows_of(manifest, split)
    truth = datasets.manifest.coordinates(manifest)[rows]
    drawn = np.random.default_rng(seed).integers(len(candidates), size=len(rows))
    frames = [
        predictions_of(manifest.iloc[rows], truth, candidates[found], name, seed)
        for name, found in (("ceiling", nearest(truth, candidates)[0]), ("chance", drawn))
    ]
    return accuracy(pd.concat(frames))


def accuracy(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row a strategy, seed and split: n, accuracies as fractions, median_km, mean_km, geoscore."""
    grouped = predictions.groupby(["strategy", "seed", "split"], sort=False)["error_km"]
    rows = [(*key, len(errors), *summarise(errors.to_numpy()).values()) for key, errors in grouped]
    return pd.DataFrame(rows, columns=["strategy", "seed", "split", "n", *COLUMNS])


def compare(
    predictions: pd.DataFrame, baseline: str = "infonce", resamples: int = 2_000, seed: int = 0
) -> pd.DataFrame:
    """Paired differences, strategy minus ``baseline``, with 95 % bootstrap intervals over photos and seeds.

    ``geoclip_pretrained`` is one model and stands against every seed of the others.

    Photos and seeds are drawn anew, independently and with replacement, in every resample; both strategies see the same
    draw, so what photos and seeds have in common cancels. With few seeds S the variance between seeds is understated, by
    (S - 1) / S, and that of single photos from seed to seed overstated: the interval is too wide where seeds hardly differ
    in their mean, and too narrow where they differ much. Holds 100 resamples of the photos at a time.

    Returns:
        strategy, baseline, metric, difference, ci_low, ci_high, seeds, n, split.
    """
    rows = []
    for split, of_split in aligned(predictions).groupby("split", sort=False):
        errors = {name: seed_by_photo(frame) for name, frame in of_split.groupby("strategy", sort=False)}
        if baseline not in errors:
            continue
        for name in (name for name in errors if name != baseline):
            if not errors[name].columns.equals(errors[baseline].columns) or not errors[name].index.equals(
                errors[baseline].index
            ):
                raise ValueError(
                    f"{name} and {baseline} were not evaluated on the same photos and seeds of split {split}"
                )
            pair = errors[name].to_numpy(), errors[baseline].to_numpy()
            for metric, (difference, low, high) in _differences(*pair, resamples, seed).items():
                rows.append((name, baseline, metric, difference, low, high, *pair[0].shape, split))
    names = ["strategy", "baseline", "metric", "difference", "ci_low", "ci_high", "seeds", "n", "split"]
    return pd.DataFrame(rows, columns=names)


def aligned(predictions: pd.DataFrame) -> pd.DataFrame:
    """``predictions`` in which GeoCLIP as published, one model, has a copy for every seed of the others."""
    others = predictions[predictions["strategy"] != PUBLISHED]
    published = predictions[predictions["strategy"] == PUBLISHED]
    if others.empty or published.empty:
        return predictions
    return pd.concat([others, *(published.assign(seed=seed) for seed in sorted(others["seed"].unique()))], ignore_index=True)


def seed_by_photo(frame: pd.DataFrame) -> pd.DataFrame:
    """Errors [S, N] in kilometres of one strategy of one split, a row a seed and a column a photo."""
    return frame.pivot(index="seed", columns="id", values="error_km")


def _differences(
    ours: np.ndarray, theirs: np.ndarray, resamples: int, seed: int
) -> dict[str, tuple[float, float, float]]:
    """Difference and interval of each metric of errors [S, N] in kilometres."""
    generator = np.random.default_rng(seed)
    seeds, photos = ours.shape
    seed_share = generator.multinomial(seeds, np.full(seeds, 1.0 / seeds), resamples) / seeds
    gains = {name: METRICS[name](ours).astype(float) - METRICS[name](theirs) for name in METRICS}
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    for chunk in np.array_split(seed_share, -(-resamples // 100)):
        draws = generator.integers(photos, size=(len(chunk), photos))
        photo_share = np.stack([np.bincount(draw, minlength=photos) for draw in draws]) / photos
        medians = np.stack([np.median(ours[:, draw], 1) - np.median(theirs[:, draw], 1) for draw in draws])
        for name in COLUMNS:
            per_seed = medians if name == "median_km" else photo_share @ gains[name].T
            drawn[name].append((per_seed * chunk).sum(1))
    found = {}
    for name in COLUMNS:
        per_seed = np.median(ours, 1) - np.median(theirs, 1) if name == "median_km" else gains[name].mean(1)
        low, high = np.quantile(np.concatenate(drawn[name]), [0.025, 0.975])
        found[name] = (float(per_seed.mean()), float(low), float(high))
    return found


def by_group(predictions: pd.DataFrame, groups: pd.Series, name: str) -> pd.DataFrame:
    """Mean over seeds of each strategy's metrics within each group of photos.

    Args:
        groups: group of each photo, indexed by id; photos without a group are left out.
        name: column that the group gets.

    Returns:
        split, strategy, ``name``, n (photos), and the metrics.
    """
    order = groups.cat.categories if isinstance(groups.dtype, pd.CategoricalDtype) else sorted(groups.dropna().unique())
    columns = {
        column: pd.Categorical(predictions[column], predictions[column].unique()) for column in ("split", "strategy")
    }
    columns[name] = pd.Categorical(predictions["id"].map(groups), order)
    labelled, keys = predictions.assign(**columns).dropna(subset=[name]), ["split", "strategy", name]
    rows = []
    for key, frame in labelled.groupby(keys, observed=True):
        per_seed = pd.DataFrame([summarise(errors.to_numpy()) for _, errors in frame.groupby("seed")["error_km"]])
        rows.append((*key, frame["id"].nunique(), *per_seed.mean()))
    return pd.DataFrame(rows, columns=[*keys, "n", *COLUMNS])


def latitude_band(manifest: pd.DataFrame, width_deg: float = 15.0) -> pd.Series:
    """Latitude band of each photo, indexed by id, as ordered text from south to north such as ``-15..0``."""
    edges = np.arange(-90.0, 90.0 + width_deg, width_deg)
    labels = [f"{low:.0f}..{high:.0f}" for low, high in itertools.pairwise(edges)]
    bands = pd.cut(manifest["latitude"], edges, labels=labels, include_lowest=True)
    return pd.Series(bands.to_numpy(), index=manifest["id"], dtype=pd.CategoricalDtype(labels, ordered=True))


def comparisons(predictions: pd.DataFrame, settings: Evaluation) -> pd.DataFrame:
    """Every strategy against ``infonce``, and those that use geography against the control without it."""
    against = [compare(predictions, "infonce", settings.bootstrap, settings.seed)]
    if CONTROL in set(predictions["strategy"]):
        others = predictions[predictions["strategy"] != "infonce"]
        against.append(compare(others, CONTROL, settings.bootstrap, settings.seed))
    return pd.concat(against, ignore_index=True)


def evaluate(run: Run) -> dict[str, pd.DataFrame]:
    """Predictions and tables of the run's strategies on its evaluation splits, made once or reused.

    Of several processes each searches a part of the gallery.

    Returns:
        ``predictions`` and the tables accuracy, comparison, bounds, by_continent, by_latitude, each as its file has it.
    """
    strategies, settings = run.settings.training.strategies, run.settings.evaluation
    tables = ["accuracy", "comparison", "bounds", "by_continent", "by_latitude"]

    def make() -> None:
        manifest = datasets.read(run)
        predictions = predict_all(run, strategies, manifest=manifest, among_ranks=True)
        if PUBLISHED in settings.baselines:
            predictions = pd.concat([predictions, predict_published(run, manifest, among_ranks=True)], ignore_index=True)
        if ranks.rank() > 0:
            return
        with writing(run.predictions) as aside:
            predictions.to_parquet(aside, index=False)
        made = {
            "accuracy": accuracy(predictions),
            "comparison": comparisons(predictions, settings),
            "bounds": pd.concat([bounds(run, manifest, split) for split in predictions["split"].unique()], ignore_index=True),
            "by_continent": by_group(predictions, manifest.set_index("id")["continent"], "continent"),
            "by_latitude": by_group(predictions, latitude_band(manifest), "latitude_band"),
        }
        for name, table in made.items():
            save_table(table, run.table(name))

    checkpoints = [run.checkpoint(name, seed) for name in strategies for seed in run.settings.training.seeds]
    training.refuse_outdated(run, strategies)
    run.produce(
        "evaluation",
        make=make,
        inputs=[
            run.require(run.manifest, "01_data_preparation"),
            run.require(run.features, "01_data_preparation"),
            *(run.require(path, "04_regularized_training") for path in checkpoints),
            *gallery.input_files(run),
        ],
        outputs=[run.predictions, *map(run.table, tables)],
        settings=settings.model_dump(exclude={"shown"}) | {"strategies": strategies, "seeds": run.settings.training.seeds},
        code=[evaluate],
        by="all ranks",
    )
    return {"predictions": pd.read_parquet(run.predictions)} | {name: datasets.manifest.read_table(run.table(name)) for name in tables}


def shown(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``table`` (with a column strategy) that figures and maps show: those of ``evaluation.shown``, or all."""
    names = run.settings.evaluation.shown
    return table[table["strategy"].isin([*names, PUBLISHED])] if names else table


def save_table(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Write ``table`` as CSV, whole or not at all; return it for the notebook to show."""
    with writing(path) as aside:
        table.to_csv(aside, index=False)
    return table


def with_bounds(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """An accuracy table with the rows ceiling and chance of its splits below."""
    manifest = datasets.read(run, [*datasets.manifest.PLACES, "id"])
    return pd.concat([table, *(bounds(run, manifest, split) for split in table["split"].unique())], ignore_index=True)


def for_reading(accuracies: pd.DataFrame, limits: pd.DataFrame) -> pd.DataFrame:
    """Accuracy, mean over seeds, with the rows ceiling and chance, rounded; one row a split and strategy."""
    columns = [*[*METRICS][:5], "acc_100km"]
    order = [*sorted(columns, key=lambda name: int(name[4:-2])), "median_km", "mean_km", "geoscore"]
    rows = pd.concat([accuracies, limits]).groupby(["split", "strategy"], sort=False)[order].mean()
    rounding = {name: 3 for name in columns} | {"median_km": 0, "mean_km": 0, "geoscore": 0}
    return rows.sort_index(level="split", sort_remaining=False, kind="stable").round(rounding)


def differences_for_reading(comparison: pd.DataFrame) -> pd.DataFrame:
    """Paired differences of the accuracies, "+0.8 [+0.1, +1.5]" in points; one row a split, baseline and strategy."""
    chosen = comparison[comparison["metric"].str.startswith("acc_") & (comparison["metric"] != "acc_1km")]
    text = [
        f"{100 * row.difference:+.1f} [{100 * row.ci_low:+.1f}, {100 * row.ci_high:+.1f}]"
        for row in chosen.itertuples(index=False)
    ]
    wide = chosen.assign(text=text).pivot(index=["split", "baseline", "strategy"], columns="metric", values="text")
    return wide[sorted(wide.columns, key=lambda name: int(name[4:-2]))]
