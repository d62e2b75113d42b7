"""Tables of the third study from kept predictions, in seconds: ``python -m study.third_kept``.

Its intervals are over draws of places, photos (or cells) within draws, and seeds within draws. Draws are
independent, so the variance of the mean over D of them is B / D, B the variance between their means: it holds
what draws, photos and seeds add. Where B is below the variance W that photos and seeds alone would give, W
takes its place, because few draws may agree by chance. Simulated with 4 draws, 40 cells and 3 seeds, such
intervals of 95 % hold the truth 94 to 97 % of the time (tests/test_third.py).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from lib.evaluate import evaluation, intervals
from lib.evaluate.intervals import Estimate
from lib.method.errors import BundleError
from lib.train.metrics import COMPARED, METRICS
from study.kept import ENDPOINTS, KEPT, MARGIN

PREDICTIONS = KEPT / "third_predictions.parquet"
DRAWS = {"blue_marble": (211, 212, 213, 214), "shaded_relief": (221, 222, 223, 224)}
"""Imagery -> seeds of the draws of places."""
NEAREST = "nearest_neighbour"
QUESTION = ("semivariogram geoclip", "infonce geoclip")
CONTRASTS = (
    *((*QUESTION, *one) for one in ENDPOINTS),
    *(
        (f"{MARGIN} places", f"{MARGIN} {kind}", *one)
        for kind in ("geoclip", "curve", "hand_set")
        for one in ENDPOINTS
    ),
    *(
        ("kriging_targets places", theirs, *one)
        for theirs in ("distance_targets places", f"{MARGIN} places")
        for one in ENDPOINTS[1:]
    ),
)
"""The primary ones: ours, theirs, split, metric."""
EXPLORED = (
    *((f"{arm} places", f"{arm} geoclip") for arm in ("infonce", "semivariogram")),
    *((f"{MARGIN} {kind}", f"infonce {kind}") for kind in ("geoclip", "hand_set", "places")),
    ("semivariogram places", "infonce places"),
    ("infonce_stopped geoclip", "infonce geoclip"),
    *((f"{name}_targets places", f"{MARGIN} places") for name in ("uniform", "distance", "correlation")),
    *((f"{MARGIN} places", other) for other in ("infonce geoclip", NEAREST)),
)
"""Contrasts that were not planned as primary."""
PUSH = "constant_offset geoclip"
TUNED_ALIKE = (
    QUESTION,
    *((one, f"{PUSH}_equal") for one in (QUESTION[0], f"{MARGIN} geoclip")),
    (f"{PUSH}_equal", f"{QUESTION[1]}_equal"),
    *((f"{MARGIN} places", f"{MARGIN} {kind}") for kind in ("geoclip", "curve", "hand_set")),
    ("infonce places", f"{QUESTION[1]}_equal"),
    ("infonce places", "infonce hand_set"),
)
"""Contrasts of arms of which each had its learning rate and its temperature tuned at 16 epochs, or has the
other's (``_equal``)."""
SIZES = (1_500, 3_000, 6_000, 12_000, 24_000)
Errors = dict[str, np.ndarray]


def of_draws(errors: pd.DataFrame, split: str, seeds: Sequence[int]) -> dict[int, tuple[Errors, np.ndarray]]:
    """Draw -> errors [S, N] of each arm, cells [N] of the photos. An untrained arm stands for each seed."""
    made = {}
    for draw, of_draw in errors[errors["split"] == split].groupby("draw"):
        found: Errors = {}
        for arm, frame in of_draw.groupby("arm", observed=True):
            wide = frame.pivot(index="seed", columns="id", values="error_km")
            wide = wide.loc[[wide.index[0]] * len(seeds)] if arm == NEAREST else wide.reindex(seeds)
            if not wide.isna().to_numpy().any():
                found[str(arm)] = wide.to_numpy(float)
        cells = of_draw.drop_duplicates("id").sort_values("id")["cell"].to_numpy()
        made[int(draw)] = found, cells
    return made


def whole_seeds(errors: pd.DataFrame, arms: Iterable[str]) -> list[int]:
    """Seeds that every one of ``arms`` has in every draw of the world of ``errors``."""
    if errors.empty:
        return []
    there = errors[errors["arm"].isin(list(arms))].drop_duplicates(["draw", "arm", "seed"])
    draws = len(DRAWS[str(errors["world"].iloc[0])])
    count = there.groupby("seed").size()
    return sorted(int(seed) for seed in count[count == draws * len(set(arms))].index)


def nested(draws: Sequence[np.ndarray]) -> Estimate:
    """Mean and 95 % interval of values [S, N_d] of each draw of places, as the module's first lines say."""
    within = [intervals.means_of([values])[0] for values in draws]
    means, count = np.array([one.value for one in within]), len(within)
    variance = np.array([one.error**2 for one in within])
    degrees = np.array([one.degrees_of_freedom for one in within])
    between, inside, freedom = float(means.var(ddof=1)), float(variance.mean()), count - 1.0
    if between < inside:
        between, freedom = inside, float(variance.sum() ** 2 / (variance**2 / degrees).sum())
    error = np.sqrt(between / count)
    half = error * stats.t.ppf(0.975, freedom)
    mean = float(means.mean())
    return Estimate(mean, mean - half, mean + half, float(error), freedom)


def difference(
    draws: Mapping[int, tuple[Errors, np.ndarray]], ours: str, theirs: str, split: str, metric: str
) -> Estimate:
    """Paired difference of two arms at a ``metric``; by cells on held-out splits."""
    values = []
    for found, cells in draws.values():
        one, other = (reached(found[arm], metric) for arm in (ours, theirs))
        values.append(intervals.by_cluster(one - other, cells if split.endswith("_blocked") else None))
    return nested(values)


def reached(error_km: np.ndarray, metric: str) -> np.ndarray:
    """``metric`` of each photo; of ``A - B`` the first less the second."""
    first, *others = (METRICS[name](error_km).astype(float) for name in metric.split(" - "))
    return first - others[0] if others else first


def contrasts(world: str, errors: pd.DataFrame, asked: Iterable[tuple[str, str, str, str]]) -> pd.DataFrame:
    """Paired differences: world, strategy, baseline, split, metric, difference, interval, p_value, seeds.
    Contrasts whose arms have no seed in common in all draws are left out."""
    rows, read = [], {}
    for ours, theirs, split, metric in asked:
        arms = [arm for arm in (ours, theirs) if arm != NEAREST]
        if not (seeds := whole_seeds(errors, arms)):
            continue
        key = (split, *arms)
        if key not in read:
            read[key] = of_draws(errors[errors["arm"].isin([ours, theirs])], split, seeds)
        found = difference(read[key], ours, theirs, split, metric)
        p_value = float(intervals.p_values(np.array(found.value), found.error, found.degrees_of_freedom))
        rows.append((world, ours, theirs, split, metric, *found[:3], p_value, len(seeds)))
    names = ["world", "strategy", "baseline", "split", "metric", "difference", "ci_low", "ci_high", "p_value",
             "seeds"]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def levels(world: str, errors: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each arm, the ``strategy``, by split: mean over draws and seeds, a column a radius."""
    hits = errors[["split", "arm", "draw", "seed"]].assign(
        **{name: METRICS[name](errors["error_km"].to_numpy()) for name in COMPARED}
    )
    by_seed = hits.groupby(["split", "arm", "draw", "seed"], observed=True).mean()
    grouped = by_seed.groupby(["split", "arm"], observed=True)
    table = grouped.mean().reset_index()
    counts = by_seed.reset_index().groupby(["split", "arm"], observed=True)[["draw", "seed"]].nunique()
    table.insert(0, "world", world)
    table = table.merge(counts.rename(columns={"draw": "draws", "seed": "seeds"}).reset_index())
    return table.rename(columns={"arm": "strategy"})


def components(errors: pd.DataFrame, world: str) -> pd.DataFrame:
    """Variance components of the primary differences, squared points: between draws, what photos or cells
    and seeds add to a draw's mean, and their share."""
    rows = []
    for ours, theirs, split, metric in CONTRASTS:
        if len(seeds := whole_seeds(errors, [ours, theirs])) < 2:
            continue
        draws = of_draws(errors[errors["arm"].isin([ours, theirs])], split, seeds)
        within = []
        for found, cells in draws.values():
            one, other = (METRICS[metric](found[arm]).astype(float) for arm in (ours, theirs))
            values = intervals.by_cluster(one - other, cells if split.endswith("_blocked") else None)
            within.append((values.mean(), *intervals.mean_squares(values), *values.shape))
        mean, of_seeds, of_photos, rest, count, photos = np.array(within).T
        inside = ((np.maximum(of_photos, rest) - rest) / (count * photos)).mean()
        seeds_part = ((np.maximum(of_seeds, rest) - rest) / (count * photos)).mean()
        left = (rest / (count * photos)).mean()
        draws_part = max(0.0, mean.var(ddof=1) - inside - seeds_part - left)
        parts = [1e4 * part for part in (draws_part, inside, seeds_part, left)]
        rows.append((world, ours, theirs, split, metric, *parts))
    names = ["world", "strategy", "baseline", "split", "metric", "draws", "photos", "seeds", "rest"]
    return pd.DataFrame(rows, columns=names)


def scaling(errors: pd.DataFrame) -> pd.DataFrame:
    """Gains by the number of training photos: contrast, metric, photos, mean and interval over draws; in rows
    of photos 0 the slope on the natural logarithm, in rows of -24,000 what smaller sizes predict there."""
    pairs = {
        "places, infonce": ("infonce places", "infonce geoclip"),
        "places, margin": (f"{MARGIN} places", f"{MARGIN} geoclip"),
        "margin, geoclip": (f"{MARGIN} geoclip", "infonce geoclip"),
        "margin, places": (f"{MARGIN} places", "infonce places"),
        "both": (f"{MARGIN} places", "infonce geoclip"),
    }
    trained = errors[(errors["split"] == "test") & (errors["arm"] != NEAREST)]
    chosen = trained[trained["seed"] == trained["seed"].min()]
    rows = []
    for (name, (ours, theirs)), metric in itertools.product(pairs.items(), ("acc_100km", "acc_200km")):
        reached = {}
        for draw, of_draw in chosen.groupby("draw"):
            by_arm = of_draw.groupby("arm", observed=True)["error_km"].apply(
                lambda km, metric=metric: METRICS[metric](km.to_numpy()).mean()
            )
            named = [("" if size == 6_000 else f" {size}") for size in SIZES]
            if all(f"{arm}{end}" in by_arm for arm in (ours, theirs) for end in named):
                reached[draw] = [by_arm[f"{ours}{end}"] - by_arm[f"{theirs}{end}"] for end in named]
        if len(reached) < 2:
            continue
        gains, log = np.array([*reached.values()]), np.log(SIZES)
        slope, offset = np.polyfit(log[:-1], gains[:, :-1].T, 1)
        predicted = slope * log[-1] + offset
        for size, values in (*zip(SIZES, gains.T, strict=True), (0, np.polyfit(log, gains.T, 1)[0]),
                             (-SIZES[-1], predicted)):  # fmt: skip
            error = values.std(ddof=1) / np.sqrt(len(values))
            half = error * stats.t.ppf(0.975, len(values) - 1)
            rows.append(
                (name, metric, size, values.mean(), values.mean() - half, values.mean() + half, len(values))
            )
    names = ["contrast", "metric", "photos", "difference", "ci_low", "ci_high", "draws"]
    return pd.DataFrame(rows, columns=names)


def tables() -> None:
    """Write every table that the kept predictions allow.

    Raises:
        BundleError: there are none.
    """
    if not PREDICTIONS.exists():
        raise BundleError(f"{PREDICTIONS} is not there; run python -m study.third final")
    every, made = pd.read_parquet(PREDICTIONS), {}
    for world in DRAWS:
        errors = every[every["world"] == world]
        if errors["draw"].nunique() < len(DRAWS[world]):
            continue
        own = errors[~errors["arm"].astype(str).str.contains(r" (?:\d+|longer)$")]
        planned = [
            arm for arm in own["arm"].unique() if arm != NEAREST and not arm.endswith(("_tuned", "_equal"))
        ]
        seeds = whole_seeds(own, planned)  # a seed that is under way would stand in some rows alone
        own = own[own["seed"].isin(seeds) | (own["arm"] == NEAREST)]
        primary = contrasts(world, own, CONTRASTS)
        made.setdefault("primary", []).append(primary.assign(p_holm=intervals.holm(primary["p_value"])))
        tuned = {arm: f"{arm}_tuned" for arm in own["arm"].unique() if f"{arm}_tuned" in set(own["arm"])}
        idea, plain = (tuned.get(arm, arm) for arm in QUESTION)
        pairs = dict.fromkeys((QUESTION, (idea, plain), (idea, f"{QUESTION[1]}_equal")))
        whole = [(split, metric) for split in ("test", "test_blocked") for metric in COMPARED]
        radii = itertools.combinations(("acc_2500km", "acc_200km", "acc_25km"), 2)
        whole += [("test", f"{one} - {other}") for one, other in radii]
        question = [(*pair, *one) for pair, one in itertools.product(pairs, whole)]
        made.setdefault("papers_question", []).append(contrasts(world, own, question))
        explored = [
            (*pair, split, metric)
            for pair in EXPLORED
            for split, metric in (("test", "acc_25km"), ("test", "acc_100km"), *ENDPOINTS)
        ]
        made.setdefault("exploratory", []).append(contrasts(world, own, explored))
        alike = [
            (*(tuned.get(arm, arm) for arm in pair), split, metric)
            for pair in TUNED_ALIKE
            for split, metric in (
                ("test", "acc_25km"),
                *ENDPOINTS[:1],
                ("test", "acc_2500km"),
                *ENDPOINTS[1:],
            )
        ]
        made.setdefault("alike", []).append(contrasts(world, own, alike) if tuned else pd.DataFrame())
        later = errors[errors["arm"].astype(str).str.endswith(" longer")]
        later = later.assign(arm=later["arm"].astype(str).str.removesuffix(" longer"))
        made.setdefault("longer", []).append(contrasts(world, later, CONTRASTS))
        made.setdefault("levels", []).append(levels(world, own))
        made.setdefault("components", []).append(components(own, world))
        if world == "blue_marble":
            made.setdefault("scaling", []).append(scaling(errors))
    for name, parts in made.items():
        if len(table := pd.concat(parts)):
            evaluation.save_table(table.round(6), KEPT / f"third_{name}.csv")


if __name__ == "__main__":
    try:
        tables()
    except (BundleError, OSError) as error:
        sys.exit(f"study.third_kept: {error}")
