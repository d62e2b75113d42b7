"""The program of the third study, by study/PLAN3.md: ``python -m study.third PART`` with PART one of

* ``tune``: choose each arm's settings; ``shares``: shares of the Nyquist frequency at 1,500, 6,000 and 24,000
  photos and in shaded relief; ``fits``: weights of the lags. All on validation splits;
* ``final`` and ``relief``: train for the final tables on the draws of Blue Marble and of shaded relief;
* ``longer``: the primary arms on Blue Marble, trained twice as long; ``scaling``: 1,500 to 24,000 photos;
* ``alike``: not planned; arms with the second study's learning rate, tuned at 16 epochs
* ``keep``: predictions, curves and Nyquist frequencies of these, under results/reference/study.

Tables and figures of what is kept: :mod:`study.third_kept`. Each training is a stage of its own, and finished
ones are reused. A part that was stopped goes on.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from lib.data import features, manifest
from lib.evaluate import evaluation, neighbour
from lib.method import frequencies
from lib.method.errors import BundleError
from lib.runs import Run, ranks, write_json, writing
from lib.runs.run import RESULTS
from lib.settings import PROJECT
from lib.train import curve
from lib.train.data import TrainingData
from study import second, sharper
from study.second import TEST, VALIDATION, Changes, Trial
from study.third_kept import CONTRASTS, DRAWS, KEPT, MARGIN, NEAREST, PREDICTIONS, PUSH, QUESTION

CHOSEN = PROJECT / "study" / "third.json"
"""Settings of each arm, as ``tune`` chose them."""
WORLDS = {"tune": ("blue_marble", 201, 24_000)} | {
    f"{world}_{seed}": (world, seed, 24_000 if world == "blue_marble" else 6_000)
    for world, seeds in DRAWS.items()
    for seed in seeds
}
"""Name -> imagery, seed of the places, training photos."""
TEMPERATURES = (None, 0.05, 0.1, 0.2, 0.4)
"""None: learned; it stays near 1 / 14, where it begins."""
BETAS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
RATES, STOPPED = (1.25e-4, 2.5e-4, 5e-4, 1e-3), (2, 4, 8, 16, 32)
SHARES = (1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 1.0)
SIZES = (1_500, 3_000, 6_000, 12_000, 24_000)
FINAL_SEEDS, SEARCH_SEED = (10, 11, 12), 0
WINDOW_RAD = 256.0 / 6371.0088
HAND_SET = [2.0, 4.0, 8.0]
TARGETS = ("uniform_targets", "distance_targets", "correlation_targets", "kriging_targets")
ALIKE = ("infonce geoclip", "semivariogram geoclip", f"{MARGIN} geoclip", f"{MARGIN} curve",
         f"{MARGIN} hand_set", "infonce hand_set")  # fmt: skip
"""Arms with the second study's learning rate, which the plan did not tune again at 16 epochs."""
STEPS_OF = 6_000
"""Photos of an epoch that count as one; fewer or more photos are trained for as many steps."""
EPOCHS, LONGER = 16, 32
"""Of every training, and of the check whether longer ones agree."""


def of_arm(
    arm: str, settings: Mapping[str, Any], epochs: int, photos: int | None = None, seed: int = SEARCH_SEED
) -> Trial:
    """The training of ``settings``: strategy, ``curve`` (settings of the fit), and settings of training."""
    photos = photos or STEPS_OF
    own = {"photos": photos, "epochs": round(epochs * STEPS_OF / photos)} | dict(settings)
    own["validate_every"] = own["epochs"]
    return Trial(arm, own.pop("strategy"), own, seed, own.pop("curve", {}))


def open_world(name: str, overrides: Sequence[str] = ()) -> Run:
    """The run of a draw, with manifest, features and curve made or reused."""
    imagery, seed, train = WORLDS[name]
    given = [f"dataset.imagery={imagery}", f"dataset.seed={seed}", f"dataset.train={train}"]
    given += [f"dataset.root=data/third_{name}", "semivariogram.max_photos=6000"]
    if name == "tune":
        given += ["dataset.test=100", "dataset.test_blocked=50", "evaluation.lattice_km=100"]
    run = Run.open("second", str(RESULTS / f"third_{name}"), [*given, *overrides])
    curve.fit_run(run)
    return run


def near_score(errors: pd.DataFrame) -> float:
    """The score of most arms, as in the second study: within 200 km, and within 750 km held out."""
    return second.score(errors)


def far_score(errors: pd.DataFrame) -> float:
    """The score of targets and of early stopping: mean within 750 and 2,500 km on held-out cells."""
    away = errors.loc[errors["split"] == "validation_blocked", "error_km"]
    return float(((away <= 750.0).mean() + (away <= 2_500.0).mean()) / 2.0)


class Tries:
    """Tried settings with their scores, in the table ``third_NAME.csv``; none is made twice."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.path = run, KEPT / f"third_{name}.csv"
        self.rows = pd.read_csv(self.path).to_dict("records") if self.path.exists() else []

    def score(
        self, phase: str, arm: str, settings: Mapping[str, Any], photos: int | None = None,
        of: Callable[[pd.DataFrame], float] = near_score,
    ) -> float:  # fmt: skip
        """The score of ``arm`` with ``settings``, trained unless the table has it."""
        photos = photos or STEPS_OF
        world, text = self.run.folder.name, json.dumps(dict(settings), sort_keys=True)
        for row in self.rows:
            if (row["world"], row["phase"], row["arm"], row["photos"], row["settings"]) == (
                world, phase, arm, photos, text,
            ):  # fmt: skip
                return row["score"]
        trial, start = of_arm(arm, settings, EPOCHS, photos), time.monotonic()
        second.make(self.run, trial, VALIDATION)
        errors = second.predictions(self.run, [trial])
        row = {"world": world, "phase": phase, "arm": arm, "photos": photos, "settings": text}
        row |= {"score": of(errors), "seconds": round(time.monotonic() - start), "seed": trial.seed}
        for split, of_split in errors.groupby("split"):
            for radius in (25, 100, 200, 750, 2_500):
                row[f"{split}_{radius}km"] = (of_split["error_km"] <= radius).mean()
        self.rows.append(row)
        evaluation.save_table(pd.DataFrame(self.rows), self.path)
        return row["score"]


def climb(
    tries: Tries, arm: str, settings: Changes, name: str, grid: Sequence[Any], start: Any,
    of: Callable[[pd.DataFrame], float] = near_score,
) -> Changes:  # fmt: skip
    """``settings`` with the best of ``grid`` for ``name``: from ``start`` up and down until scores fall."""

    def score(k: int) -> float:
        return tries.score(name, arm, {**settings, name: grid[k]}, of=of)

    best = grid.index(start)
    for step in (1, -1):
        while 0 <= best + step < len(grid) and score(best + step) > score(best):
            best += step
    return {**settings, name: grid[best]}


def tune(run: Run) -> None:
    """Choose the settings of every arm, one after the other, and write them to ``CHOSEN``."""
    tries, before = Tries(run, "tries"), second.chosen_settings()["arms"]
    basis = {name: {"strategy": name, "learning_rate": before[f"{name} geoclip"]["learning_rate"]}
             for name in ("infonce", "semivariogram", MARGIN)}  # fmt: skip
    arms: dict[str, Changes] = {}

    def warm(arm: str, settings: Changes) -> Changes:
        return climb(tries, arm, settings, "temperature", TEMPERATURES, 0.1)

    margin = warm(f"{MARGIN} geoclip", basis[MARGIN] | {"frequencies": "geoclip", "beta": 8.0})
    arms[f"{MARGIN} geoclip"] = climb(tries, f"{MARGIN} geoclip", margin, "beta", BETAS, 8.0)
    arms["infonce geoclip"] = warm("infonce geoclip", basis["infonce"] | {"frequencies": "geoclip"})
    idea = basis["semivariogram"] | {"frequencies": "geoclip", "alpha": 0.5, "beta": 4.0}
    arms["semivariogram geoclip"] = _choose_idea(tries, "semivariogram geoclip", idea, warm)

    placed = {"frequencies": "places"}
    margin = climb(
        tries, f"{MARGIN} places", arms[f"{MARGIN} geoclip"] | placed, "nyquist_share", SHARES, 1 / 3
    )
    margin = climb(tries, f"{MARGIN} places", margin, "learning_rate", RATES, 2.5e-4)
    margin = arms[f"{MARGIN} places"] = warm(f"{MARGIN} places", margin)
    placed["nyquist_share"] = margin["nyquist_share"]
    plain = climb(tries, "infonce places", arms["infonce geoclip"] | placed, "learning_rate", RATES, 2.5e-4)
    arms["infonce places"] = warm("infonce places", plain)
    rate = {"learning_rate": plain["learning_rate"]}
    arms["semivariogram places"] = arms["semivariogram geoclip"] | placed | rate
    for name, kind in ((MARGIN, "curve"), (MARGIN, HAND_SET), ("infonce", HAND_SET)):
        arm = f"{name} {'curve' if kind == 'curve' else 'hand_set'}"
        rate = {"learning_rate": before[arm]["learning_rate"]}
        arms[arm] = warm(arm, arms[f"{name} geoclip"] | {"frequencies": kind} | rate)
    arms |= _choose_targets(tries, margin)
    arm = "infonce_stopped geoclip"
    arms[arm] = climb(tries, arm, arms["infonce geoclip"], "epochs", STOPPED, 8, far_score)
    write_json(CHOSEN, arms)


def _choose_idea(
    tries: Tries, arm: str, settings: Changes, warm: Callable[[str, Changes], Changes]
) -> Changes:
    """Temperature, range, alpha and beta of the paper's two definitions."""
    settings = warm(arm, settings)
    ranges: list[Changes] = [{}, {"curve": {"range_rule": "sill95"}}]
    ranges += [{"range_km": km} for km in (200.0, 800.0, 2_000.0)]
    found = [tries.score("range", arm, {**settings, **one}) for one in ranges]
    settings = {**settings, **ranges[int(np.argmax(found))]}
    settings = climb(tries, arm, settings, "alpha", (0.0, 0.5, 2.0, 8.0), 0.5)
    return climb(tries, arm, settings, "beta", BETAS, 4.0)


def _choose_targets(tries: Tries, margin: Changes) -> dict[str, Changes]:
    """Length and mass of targets by distance; the mass serves the others."""
    arm, own = "distance_targets places", margin | {"strategy": "distance_targets", "alpha": 0.1}
    own = climb(tries, arm, own, "softness_km", (100.0, 300.0, 1_000.0, 3_000.0), 1_000.0, far_score)
    own = climb(tries, arm, own, "alpha", (0.05, 0.1, 0.2, 0.4), 0.1, far_score)
    return {f"{name} places": own | {"strategy": name} for name in TARGETS}


def shares(run: Run) -> None:
    """Prediction A1: every share of the Nyquist frequency at three sizes, and in shaded relief."""
    relief = open_world("shaded_relief_221")
    for photos, world in ((STEPS_OF, run), (SIZES[0], run), (SIZES[-1], run), (STEPS_OF, relief)):
        tries = Tries(world, "shares")
        for share in SHARES:
            own = chosen()[f"{MARGIN} places"] | {"nyquist_share": share}
            tries.score("share", f"{MARGIN} places", own, photos)


def fits(run: Run) -> None:
    """Weights of the lags: what each makes of the curve, and of three arms that read it."""
    tries, rows = Tries(run, "fits"), []
    for weights, shortest in itertools.product(
        ("none", "pairs", "cressie", "pairs_by_h2"), (0.0, WINDOW_RAD)
    ):
        options = {"weights": weights} | ({"min_lag_rad": shortest} if shortest else {})
        fitted = second.curve_of(run, options)
        row = {"weights": weights, "from_km": 256.0 if shortest else 0.0, "nugget": fitted.nugget}
        row |= {"sill": fitted.sill, "exponent": fitted.exponent, "range_km": fitted.range_km}
        row |= {
            "length_km": fitted.length_scale_rad * 6371.0088,
            "r2": fitted.r2,
            "fitted_by": fitted.weights,
        }
        for arm in ("semivariogram geoclip", f"{MARGIN} geoclip", f"{MARGIN} curve"):
            own = chosen()[arm]
            own = own | {"curve": {**own.get("curve", {}), **options}}
            row[arm] = tries.score("fit", arm, own)
        rows.append(row)
        evaluation.save_table(pd.DataFrame(rows).round(5), KEPT / "third_curves_by_fit.csv")


def chosen() -> dict[str, Changes]:
    """What ``tune`` has chosen.

    Raises:
        BundleError: it has not run.
    """
    if not CHOSEN.exists():
        raise BundleError(f"{CHOSEN} is not there; run python -m study.third tune")
    return json.loads(CHOSEN.read_text(encoding="utf-8"))


def final_trials(seed: int) -> Iterator[Trial]:
    """A seed's trainings of a draw, the primary arms first."""
    return (of_arm(arm, settings, EPOCHS, seed=seed) for arm, settings in chosen().items())


def scaling_trials(seed: int = FINAL_SEEDS[0]) -> Iterator[Trial]:
    """The trainings of a draw for the table of sizes; those of 6,000 photos are the final table's."""
    arms = [f"{name} {kind}" for name in ("infonce", MARGIN) for kind in ("geoclip", "places")]
    for photos, arm in itertools.product(SIZES, arms):
        yield of_arm(arm if photos == STEPS_OF else f"{arm} {photos}", chosen()[arm], EPOCHS, photos, seed)


def final(world: str) -> None:
    """The final table's trainings on every draw of ``world``, seed by seed."""
    for seed, draw in itertools.product(FINAL_SEEDS, DRAWS[world]):
        run = _train(world, draw, final_trials(seed))
        key = {"world": world, "draw": draw, "arm": NEAREST, "seed": 0}
        if not _has(kept(), key):
            _keep_errors(_nearest(run), run, key)


def longer() -> None:
    """The primary arms on every draw of Blue Marble, one seed, trained twice as long."""
    arms = sorted({arm for ours, theirs, *_ in CONTRASTS for arm in (ours, theirs)})
    for draw in DRAWS["blue_marble"]:
        trials = (of_arm(f"{arm} longer", chosen()[arm], LONGER, seed=FINAL_SEEDS[0]) for arm in arms)
        _train("blue_marble", draw, trials)


def scaling() -> None:
    """The trainings of 1,500 to 24,000 photos on the draws of Blue Marble."""
    for draw in DRAWS["blue_marble"]:
        _train("blue_marble", draw, scaling_trials())


def tune_alike(run: Run) -> dict[str, Changes]:
    """Settings of the arms ``ALIKE`` after a search of their learning rate and a second one of their
    temperature: arm ``X_tuned`` -> settings; those that stay as they were are left out. And, as ``X_equal``,
    with the rate and temperature of ``semivariogram``: ``infonce``, and an equal push on all negatives."""
    tries, found = Tries(run, "tries_alike"), {}
    for arm in ALIKE:
        before = chosen()[arm]
        own = climb(tries, arm, before, "learning_rate", RATES, before["learning_rate"])
        own = climb(tries, arm, own, "temperature", TEMPERATURES, own["temperature"])
        found |= {f"{arm}_tuned": own} if own != before else {}
    idea, plain = (chosen()[arm] | found.get(f"{arm}_tuned", {}) for arm in QUESTION)
    same = {name: idea[name] for name in ("learning_rate", "temperature")}
    push = climb(tries, PUSH, plain | same | {"strategy": "constant_offset", "beta": 4.0}, "beta", BETAS, 4.0)
    return found | {f"{QUESTION[1]}_equal": plain | same, f"{PUSH}_equal": push}


def alike() -> None:
    """The arms of :func:`tune_alike` on every draw of Blue Marble, seed by seed."""
    arms = tune_alike(open_world("tune"))
    for seed, draw in itertools.product(FINAL_SEEDS, DRAWS["blue_marble"]):
        _train("blue_marble", draw, (of_arm(arm, own, EPOCHS, seed=seed) for arm, own in arms.items()))


def _train(world: str, draw: int, trials: Iterable[Trial]) -> Run:
    """The run of ``draw``, after each of ``trials`` that was not kept was trained, and its errors kept."""
    run, known = open_world(f"{world}_{draw}"), kept()
    for trial in trials:
        key = {"world": world, "draw": draw, "arm": trial.arm, "seed": trial.seed}
        if not _has(known, key):
            second.make(run, trial, TEST)
            _keep(run, trial, key)
    return run


def kept() -> pd.DataFrame:
    """All kept predictions: world, draw, arm, seed, split, cell, id, error_km."""
    if not PREDICTIONS.exists():
        return pd.DataFrame(columns=["world", "draw", "arm", "seed", "split", "cell", "id", "error_km"])
    return pd.read_parquet(PREDICTIONS)


def _has(known: pd.DataFrame, key: Mapping[str, Any]) -> bool:
    found = np.ones(len(known), bool)
    for name, value in key.items():
        found &= (known[name] == value).to_numpy()
    return bool(found.any())


def _keep(run: Run, trial: Trial, key: Mapping[str, Any]) -> None:
    _keep_errors(pd.read_parquet(trial.path(run, TEST)), run, key)


def _keep_errors(errors: pd.DataFrame, run: Run, key: Mapping[str, Any]) -> None:
    """Add errors (id, split, error_km) to the kept ones, rounded to 100 m."""
    cell = features.photos(run).set_index("id")["cell"]
    number = errors["id"].str.removeprefix("bm_").astype("int32")
    rows = errors.assign(**key, cell=errors["id"].map(cell), id=number, error_km=errors["error_km"].round(1))
    types = {"error_km": "float32", "seed": "int16", "draw": "int16", "cell": "int32", "id": "int32"}
    types |= dict.fromkeys(["world", "arm", "split"], "category")
    known = kept()
    columns = ["world", "draw", "arm", "seed", "split", "cell", "id", "error_km"]
    whole = pd.concat([known.astype({name: str for name in ("world", "arm", "split")}), rows[columns]])
    with writing(PREDICTIONS) as aside:
        whole.astype(types).to_parquet(aside, index=False, compression="zstd")


def _nearest(run: Run) -> pd.DataFrame:
    """Errors of the training-free answer among the training photos that the arms use."""
    data, photos = TrainingData.read(_of_photos(run), with_curve=False), features.photos(run)
    is_used = np.zeros(len(photos), bool)
    is_used[data.train_rows] = True
    split = photos["split"].where((photos["split"] != "train") | is_used, "unused")
    rows = np.concatenate([manifest.rows_of(photos, name) for name in TEST])
    found = neighbour.predict(data.frozen, photos.assign(split=split), rows, run.device)
    table = evaluation.predictions_of(photos.iloc[rows], found, NEAREST, 0)
    return table[["id", "split", "error_km"]]


def _of_photos(run: Run) -> Run:
    """``run`` with as many training photos as the arms use."""
    training = run.settings.training.changed({"photos": STEPS_OF})
    return replace(run, settings=run.settings.model_copy(update={"training": training}))


def keep() -> None:
    """Keep the curve and the Nyquist frequency of every draw that has been opened."""
    rows = []
    for name, (world, seed, _) in WORLDS.items():
        if not (RESULTS / f"third_{name}" / "semivariogram.json").exists():
            continue
        run = open_world(name)
        fitted, places = curve.fit_run(run)[1], TrainingData.read(_of_photos(run), with_curve=False)
        used = places.coordinates_deg[places.train_rows].numpy()
        row = {"world": world, "draw": seed, "photos": len(used), "nyquist": frequencies.nyquist(used)}
        row |= {"nugget": fitted.nugget, "partial_sill": fitted.partial_sill, "exponent": fitted.exponent}
        rows.append(row | {"length_km": fitted.length_scale_rad * 6371.0088, "range_km": fitted.range_km})
    evaluation.save_table(pd.DataFrame(rows).round(5), KEPT / "third_curves.csv")


PARTS: dict[str, Callable[[], None]] = {
    "tune": lambda: tune(open_world("tune")),
    "shares": lambda: shares(open_world("tune")),
    "fits": lambda: fits(open_world("tune")),
    "final": lambda: final("blue_marble"),
    "relief": lambda: final("shaded_relief"),
    "longer": longer,
    "scaling": scaling,
    "alike": alike,
    "keep": keep,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: a part. Exit status 1 with a sentence."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 1 or given[0] not in PARTS:
        print(f"python -m study.third {'|'.join(PARTS)}", file=sys.stderr)
        return 1
    sharper.register()
    return second.finished("study.third", lambda: _alone(PARTS[given[0]]))


def _alone(do: Callable[[], None]) -> None:
    if ranks.count() > 1:
        raise BundleError("its tables have one writer; start it without torchrun")
    do()


if __name__ == "__main__":
    sys.exit(main())
