"""The program of the second study, by study/PLAN.md: ``python -m study.second PART`` with PART one of

* ``tune``: choose how long to train, hand-set frequencies and each arm's settings, on validation splits;
* ``factorial``: batch sizes by steps, on validation;
* ``sharper``: the four sharper margins, on validation; ``sharpest``: the best of each on Blue Marble's tests;
* ``final`` and ``relief``: train for the final tables on Blue Marble and on shaded relief;
* ``keep``: levels, exploratory contrasts and primary predictions of these, under results/reference/study;
* ``tables``: tables and figures of the kept predictions (:mod:`study.kept`), in seconds, without trainings.

Each training is a stage of its own. Finished ones are reused, so a part that was stopped goes on. Several
processes (torchrun) share the trainings. ``tune`` never opens a test split.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.data import features, manifest
from lib.evaluate import evaluation, intervals
from lib.method import negatives, semivariogram
from lib.method.errors import BundleError
from lib.method.semivariogram import FittedSemivariogram
from lib.runs import Run, cached, ranks, write_json, writing
from lib.runs.run import RESULTS
from lib.settings import PROJECT
from lib.train import curve, gallery, training
from study import kept, sharper
from study.kept import KEPT, MARGIN, PRIMARY, STRATEGIES

CHOSEN = PROJECT / "study" / "second.json"
"""What ``tune`` chose: epochs, triple of sigmas, and the settings of each arm."""
VALIDATION, TEST = ("validation", "validation_blocked"), ("test", "test_blocked")
FREQUENCIES = ("geoclip", "curve", "hand_set")
ARMS = tuple(itertools.product(STRATEGIES, FREQUENCIES))
EXPLORATORY = (
    *((f"{name} curve", f"{name} geoclip") for name in STRATEGIES if name != MARGIN),
    *((f"{name} hand_set", f"{name} curve") for name in ("infonce", MARGIN)),
    *((f"{MARGIN} {kind}", f"infonce {kind}") for kind in ("curve", "hand_set")),
    *((f"{MARGIN} {kind}", f"distance_margin {kind}") for kind in ("curve", "hand_set")),
    ("distance_margin geoclip", "infonce geoclip"),
)
EPOCHS, LEAST_GAIN = (8, 16, 24, 32), 0.003
RATES, TEMPERATURES, LENGTHS_KM = (2.5e-4, 5e-4, 1e-3, 2e-3), (None, 0.05, 0.1), (50.0, 200.0, 800.0, 3_200.0)
STRENGTHS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
PLAIN_SHAPE = 1
"""Which of the shapes that sharper margins are tried in is that of the final table."""
TRIPLES = (
    [1, 4, 16], [2, 4, 8], [4, 8, 16], [2, 8, 32], [1, 8, 64], [4, 16, 64], [1, 16, 64], [8, 16, 32],
)  # fmt: skip
FIRST: dict[str, Changes] = {
    "infonce": {}, "constant_offset": {"beta": 4.0}, MARGIN: {"beta": 4.0},
    "distance_margin": {"beta": 4.0, "softness_km": 200.0}, "semivariogram": {"beta": 4.0, "alpha": 0.125},
}  # fmt: skip
"""Settings of a strategy before its own are chosen."""
SEARCH_SEEDS, FACTORIAL_SEEDS, FINAL_SEEDS = (0, 1), (0, 1, 2), tuple(range(10, 20))
Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """One training and its errors on some splits.

    Attributes:
        arm: what it is called in tables.
        strategy: a registered name.
        changes: settings of ``training`` that differ from the profile's.
        seed: of weights, batches and noise.
        curve: settings of ``semivariogram`` that differ; the run's lags are fitted anew by them.
    """

    arm: str
    strategy: str
    changes: Changes
    seed: int
    curve: Changes = field(default_factory=dict)

    def path(self, run: Run, splits: Sequence[str]) -> Path:
        """Where its errors lie: id, split, error_km, temperature (parquet)."""
        what = [self.strategy, dict(self.changes), self.seed, list(splits)]
        what += [dict(self.curve)] if self.curve else []
        text = json.dumps(what, sort_keys=True)
        return run.folder / "trials" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.parquet"


def open_world(name: str, overrides: Sequence[str] = ()) -> Run:
    """The run of a world, with manifest, features and curve made or reused."""
    run = Run.open("second", str(RESULTS / f"second_{name}"), [*kept.world_settings(name), *overrides])
    curve.fit_run(run)
    return run


def make_all(run: Run, trials: Iterable[Trial], splits: Sequence[str] = VALIDATION) -> None:
    """Train and predict each of ``trials``, or reuse it; processes deal them out."""
    for trial in list(trials)[ranks.rank() :: ranks.count()]:
        make(run, trial, splits)
    ranks.wait()


def make(run: Run, trial: Trial, splits: Sequence[str]) -> None:
    """Train ``trial`` and keep its errors on ``splits``, or reuse them."""
    settings = run.settings.training.changed(trial.changes)
    own = replace(run, settings=run.settings.model_copy(update={"training": settings}))
    path = trial.path(run, splits)
    used = {
        "strategy": trial.strategy,
        "seed": trial.seed,
        "splits": list(splits),
        "curve": dict(trial.curve),
    }
    curve.fit_run(run)
    cached(
        own,
        f"trial-{path.stem}",
        lambda: train(own, trial, splits, path),
        inputs=[run.manifest, run.features, run.semivariogram],
        outputs=[path],
        settings=used | {"training": settings.model_dump(), "arithmetic": run.arithmetic(settings.precision)},
        code=[train, negatives.get(trial.strategy).reweight],
    )


def train(run: Run, trial: Trial, splits: Sequence[str], path: Path) -> None:
    """Train ``trial`` under the settings of ``run``, and write its errors on ``splits`` to ``path``."""
    data = replace(training.TrainingData.read(run, with_curve=True), curve=curve_of(run, trial.curve))
    unvalidated = replace(data, gallery_deg=data.gallery_deg[:1])  # the splits are searched below
    model, history = training.train(run, unvalidated, negatives.get(trial.strategy), trial.seed)
    photos = features.photos(run)
    rows = np.concatenate([manifest.rows_of(photos, split) for split in splits])
    with run.autocast(run.settings.training.precision):
        found = gallery.search(model.eval(), data.frozen, rows, data.gallery_deg)
    table = evaluation.predictions_of(photos.iloc[rows], data.gallery_deg[found], trial.arm, trial.seed)
    table["temperature"] = history["temperature"].iloc[-1]
    with writing(path) as aside:
        table[["id", "split", "error_km", "temperature"]].to_parquet(aside, index=False)


def curve_of(run: Run, changes: Changes) -> FittedSemivariogram:
    """The curve of the run's lags under its settings with ``changes``; as the run fitted it without any."""
    if not changes:
        return curve.fit_run(run)[1]
    given = run.settings.semivariogram.model_dump(include=curve.OPTIONS) | dict(changes)
    return semivariogram.fit(curve.load_empirical(run.empirical), **given)


def predictions(run: Run, trials: Iterable[Trial], splits: Sequence[str] = VALIDATION) -> pd.DataFrame:
    """Errors of the finished ones of ``trials``: id, split, strategy (the arm), seed, error_km, temperature.

    Raises:
        BundleError: none is finished.
    """
    frames = []
    for trial in trials:
        if (path := trial.path(run, splits)).exists():
            frames.append(pd.read_parquet(path).assign(strategy=trial.arm, seed=trial.seed))
    if not frames:
        raise BundleError(f"{run.folder / 'trials'}: nothing has been trained yet")
    return pd.concat(frames, ignore_index=True)


def score(errors: pd.DataFrame) -> float:
    """Mean of accuracy within 200 km on ``validation`` and within 750 km on ``validation_blocked``."""
    of = {split: frame["error_km"] for split, frame in errors.groupby("split")}
    return float(((of["validation"] <= 200.0).mean() + (of["validation_blocked"] <= 750.0).mean()) / 2.0)


class Search:
    """The choice of settings. The table at ``path`` holds every try with its score; none is made twice."""

    def __init__(self, run: Run, path: Path) -> None:
        self.run, self.path = run, path
        self.tries = pd.read_csv(path).to_dict("records") if path.exists() else []

    def scores(self, phase: str, tries: Sequence[tuple[str, str, Changes]]) -> list[float]:
        """Score, mean over the search seeds, of each (arm, strategy, settings)."""
        known = {_key(one["arm"], json.loads(one["settings"])): one["score"] for one in self.tries}
        new = [one for one in tries if _key(one[0], one[2]) not in known]
        at_once = max(1, ranks.count() // len(SEARCH_SEEDS))  # written often, so that a stop loses little
        for some in (new[at : at + at_once] for at in range(0, len(new), at_once)):
            trials = [[Trial(*one, seed) for seed in SEARCH_SEEDS] for one in some]
            make_all(self.run, itertools.chain(*trials))
            for (arm, _, changes), of_try in zip(some, trials, strict=True):
                value = known[_key(arm, changes)] = score(predictions(self.run, of_try))
                told = {"phase": phase, "arm": arm, "settings": json.dumps(dict(changes)), "score": value}
                self.tries.append(told | {"device": self.run.device.type})
            if ranks.rank() == 0:
                evaluation.save_table(pd.DataFrame(self.tries), self.path)
            ranks.wait()
        return [known[_key(arm, changes)] for arm, _, changes in tries]

    def choose(
        self, phase: str, chosen: dict[str, Changes], options: Mapping[str, Sequence[Changes]]
    ) -> None:
        """Add the best of its ``options`` to the settings of each arm in ``chosen``; the first of equals."""
        tries = [
            (arm, arm.split()[0], {**chosen[arm], **option})
            for arm, some in options.items()
            for option in some
        ]
        found = iter(self.scores(phase, tries))
        for arm, some in options.items():
            of_arm = [next(found) for _ in some]
            chosen[arm] = {**chosen[arm], **some[int(np.argmax(of_arm))]}


def _key(arm: str, changes: Changes) -> str:
    """A try's name. A setting of None, such as a learned temperature, is the default and left out."""
    given = {name: value for name, value in changes.items() if value is not None}
    return f"{arm} {json.dumps(given, sort_keys=True)}"


def stopping_epochs(run: Run) -> int:
    """How long to train: by the accuracy of ``infonce`` within 200 km on validation, of two seeds."""
    path = KEPT / "second_stopping.csv"
    if not path.exists():
        changes = {"epochs": EPOCHS[-1], "validate_every": 2}
        jobs = [training.Job.of(run, "infonce", seed, changes, "stopping") for seed in SEARCH_SEEDS]
        training.make_all(jobs)
        ranks.wait()
        read = [pd.read_csv(run.history("stopping", seed)).assign(seed=seed) for seed in SEARCH_SEEDS]
        if ranks.rank() == 0:
            evaluation.save_table(pd.concat(read).dropna(subset=["validation_acc_200km"]), path)
        ranks.wait()
    reached = pd.read_csv(path).groupby("epoch")["validation_acc_200km"].mean()
    levelled = (count for count in EPOCHS if reached[count] - reached[3 * count // 4] < LEAST_GAIN)
    return next(levelled, EPOCHS[-1])


def tune(run: Run) -> None:
    """Choose epochs, the triple of sigmas and each arm's settings, and write them to ``CHOSEN``.

    The primary arms come first; the others take temperature, length and strength from them.
    """
    epochs = stopping_epochs(run)
    basis, search = {"epochs": epochs, "validate_every": epochs}, Search(run, KEPT / "second_tries.csv")
    tried = [{**basis, "frequencies": [float(s) for s in triple]} for triple in TRIPLES]
    both = [
        search.scores("triple", [(f"{name} hand_set", name, changes) for changes in tried])
        for name in ("infonce", MARGIN)
    ]
    triple = tried[int(np.argmax(np.sum(both, 0)))]["frequencies"]
    frequencies = {"geoclip": "geoclip", "curve": "curve", "hand_set": triple}
    chosen: dict[str, Changes] = {}
    for arms in (PRIMARY, [arm for arm in ARMS if arm not in PRIMARY]):
        own = {
            f"{name} {kind}": {**basis, "frequencies": frequencies[kind]} | FIRST[name] for name, kind in arms
        }
        search.choose("rate", own, {arm: [{"learning_rate": rate} for rate in RATES] for arm in own})
        if arms is PRIMARY:
            search.choose(
                "temperature", own, {arm: [{"temperature": one} for one in TEMPERATURES] for arm in own}
            )
            lengths = [{"softness_km": length} for length in LENGTHS_KM]
            search.choose("length", own, {arm: lengths for arm in own if arm.startswith("distance_margin")})
            _choose_strength(search, own)
        chosen |= {arm: {**settings, **_carried(arm, chosen)} for arm, settings in own.items()}
        if ranks.rank() == 0:
            write_json(CHOSEN, {"epochs": epochs, "triple": triple, "arms": chosen})


def _carried(arm: str, chosen: Mapping[str, Changes]) -> Changes:
    """What an exploratory arm takes over from its strategy with GeoCLIP's frequencies."""
    model = chosen.get(f"{arm.split()[0]} geoclip", {})
    return {name: model[name] for name in ("temperature", "softness_km", "beta") if name in model}


def _choose_strength(search: Search, chosen: dict[str, Changes]) -> None:
    """Double the strength of each arm until its score has fallen twice; keep the best."""
    reached: dict[str, list[float]] = {arm: [] for arm in chosen if not arm.startswith("infonce")}
    for strength in STRENGTHS:
        going = [arm for arm, found in reached.items() if not _has_fallen_twice(found)]
        tries = [(arm, arm.split()[0], {**chosen[arm], "beta": strength}) for arm in going]
        for arm, value in zip(going, search.scores("strength", tries) if tries else [], strict=True):
            reached[arm].append(value)
    for arm, found in reached.items():
        chosen[arm] = {**chosen[arm], "beta": STRENGTHS[int(np.argmax(found))]}


def _has_fallen_twice(found: Sequence[float]) -> bool:
    return len(found) >= 3 and found[-1] < found[-2] < found[-3]


def chosen_settings() -> dict[str, Any]:
    """What ``tune`` has chosen.

    Raises:
        BundleError: it has not run.
    """
    if not CHOSEN.exists():
        raise BundleError(f"{CHOSEN} is not there; run python -m study.second tune")
    return json.loads(CHOSEN.read_text(encoding="utf-8"))


def final_trials(arms: Iterable[tuple[str, str]] = ARMS) -> list[Trial]:
    """The trainings of the final table, seed by seed: a part of them is a whole table of fewer seeds."""
    own = chosen_settings()["arms"]
    named = [(f"{name} {kind}", name) for name, kind in arms]
    return [Trial(arm, name, own[arm], seed) for seed in FINAL_SEEDS for arm, name in named]


def final(run: Run) -> None:
    """The final table's trainings: the primary arms first."""
    rest = [arm for arm in ARMS if arm not in PRIMARY]
    make_all(run, [*final_trials(PRIMARY), *final_trials(rest)], TEST)


def factorial_trials() -> list[Trial]:
    """Batch 64, 256, 1,024 by about 46, 184, 368 steps; settings as tuned at batch 256."""
    own, made = chosen_settings()["arms"], []
    epochs = {64: (1, 2, 4), 256: (2, 8, 16), 1_024: (9, 37, 74)}
    for name, size, place in itertools.product(("infonce", "constant_offset", MARGIN), epochs, range(3)):
        count = epochs[size][place]
        # 2,944 photos are 46 batches of 64, 5,888 are 23 of 256; of 1,024 there are five an epoch
        photos = 2_944 if (size, place) == (64, 0) else 5_888
        shape = {"batch_size": size, "epochs": count, "validate_every": count, "photos": photos}
        steps = photos // size * count
        arm = f"{name} batch {size} steps {steps}"
        made += [Trial(arm, name, {**own[f"{name} geoclip"], **shape}, seed) for seed in FACTORIAL_SEEDS]
    return made


def factorial(run: Run) -> None:
    """Train the factorial; the differences from ``infonce`` within each batch size and number of steps."""
    trials = factorial_trials()
    make_all(run, trials)
    if ranks.rank() > 0:
        return
    on_validation(run, trials, "factorial")
    errors, compared = predictions(run, trials), []
    parts = errors["strategy"].str.split(" ", n=1, expand=True)
    for shape, some in errors.assign(strategy=parts[0]).groupby(parts[1], sort=False):
        compared.append(intervals.compare(some, metrics=["acc_200km", "acc_750km"]).assign(shape=shape))
    evaluation.save_table(pd.concat(compared), KEPT / "second_factorial_differences.csv")


def sharper_options() -> dict[str, list[Changes]]:
    """What is tried of each sharper margin, around the settings of the margin."""
    arms = chosen_settings()["arms"]
    own, plain = arms[f"{MARGIN} geoclip"], arms["infonce geoclip"]
    shapes: list[Changes] = [{"epochs": 2, "validate_every": 2}, {}, {"batch_size": 1_024}]
    shares, looks, targets = (0.0, 0.25, 0.5, 1.0, 2.0), (0.0, 0.25, 0.5, 1.0, 2.0), (0.05, 0.1, 0.2, 0.4)
    return {
        "untied_margin": [{**own, "alpha": share * own["beta"]} for share in shares],
        "residual_margin": [{**own, "alpha": kappa} for kappa in looks],
        "kriging_targets": [{**own, "alpha": share} for share in targets],
        "annealed_margin": [{**own, **shape} for shape in shapes],
        MARGIN: [{**own, **shape} for shape in shapes],
        "infonce": [{**plain, **shape} for shape in shapes],
    }


def sharpest(told: pd.DataFrame) -> list[Trial]:
    """The final table's trainings of each sharper margin, with what did best on validation.

    Args:
        told: ``second_sharper.csv``. A setting that is the plain margin does not count.
    """
    reached = {split: frame.set_index("strategy") for split, frame in told.groupby("split")}
    scores = reached["validation"]["acc_200km"] + reached["validation_blocked"]["acc_750km"]
    options, made = sharper_options(), []
    own = options[MARGIN][PLAIN_SHAPE]
    for name in ("untied_margin", "residual_margin", "kriging_targets", "annealed_margin"):
        plain = {"untied_margin": own["beta"], "residual_margin": 0.0}.get(name, "none")
        some = {f"{name} {number}": changes for number, changes in enumerate(options[name])}
        if name == "annealed_margin":
            some = {f"{name} {PLAIN_SHAPE}": options[name][PLAIN_SHAPE]}
        best = max((arm for arm in some if some[arm].get("alpha") != plain), key=scores.get)
        made += [Trial(name, name, some[best], seed) for seed in FINAL_SEEDS]
    return made


def sharper_trials() -> list[Trial]:
    """The trainings of the sharper margins, on validation."""
    made = []
    for name, some in sharper_options().items():
        for number, changes in enumerate(some):
            made += [Trial(f"{name} {number}", name, changes, seed) for seed in FACTORIAL_SEEDS]
    return made


def sharpen(run: Run) -> None:
    """Train the sharper margins."""
    sharper.register()
    make_all(run, sharper_trials())
    if ranks.rank() == 0:
        on_validation(run, sharper_trials(), "sharper")


def sharpest_on_test(run: Run) -> None:
    """Train what did best of each sharper margin; its differences from the margin, on Blue Marble's tests."""
    sharper.register()
    trials = sharpest(pd.read_csv(KEPT / "second_sharper.csv"))
    make_all(run, trials, TEST)
    if ranks.rank() > 0:
        return
    plain = [one for one in final_trials([(MARGIN, "geoclip")]) if one.path(run, TEST).exists()]
    errors = predictions(run, [*trials, *plain], TEST)
    errors["cell"] = errors["id"].map(features.photos(run).set_index("id")["cell"])
    asked = ["acc_25km", "acc_200km", "acc_750km", "acc_2500km"]
    evaluation.save_table(intervals.compare(errors, f"{MARGIN} geoclip", asked), KEPT / "second_sharpest.csv")


def levels(world: str, errors: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Accuracy of every arm, mean over seeds, and the best that the gallery allows."""
    means = evaluation.accuracy(errors).groupby(["split", "strategy"], sort=False).mean().reset_index()
    seeds = errors.groupby(["split", "strategy"])["seed"].nunique().rename("seeds").reset_index()
    ceiling = evaluation.bounds(run, features.photos(run), TEST).query("strategy == 'ceiling'")
    table = pd.concat([means.merge(seeds), ceiling], ignore_index=True).drop(columns="seed")
    table.insert(0, "world", world)
    return table.round(5)


def whole_seeds(run: Run, arms: Iterable[tuple[str, str]]) -> list[Trial]:
    """The trials of the final table whose seed is there for all of ``arms``."""
    trials = final_trials(arms)
    lacking = {trial.seed for trial in trials if not trial.path(run, TEST).exists()}
    return [trial for trial in trials if trial.seed not in lacking]


def keep() -> None:
    """Keep what the final trainings predicted: primary predictions, levels, exploratory contrasts.

    Raises:
        BundleError: no seed has all primary arms.
    """
    explored, reached, primary = [], [], []
    for world in ("final", "relief"):
        run, imagery = open_world(world), kept.WORLDS[world][0]
        if not (trials := whole_seeds(run, PRIMARY)):
            continue
        trials += whole_seeds(run, [arm for arm in ARMS if arm not in PRIMARY])
        whole = {trial.seed for trial in whole_seeds(run, ARMS)}
        errors = predictions(run, trials, TEST)
        reached.append(levels(imagery, errors, run))
        errors["cell"] = errors["id"].map(features.photos(run).set_index("id")["cell"])
        if whole:
            table = kept.comparison(imagery, errors[errors["seed"].isin(whole)], EXPLORATORY)
            explored.append(table.drop(columns=["p_value", "p_holm"]))  # neither planned nor corrected
        primary.append(_primary(imagery, errors))
    if not primary:
        raise BundleError("no seed has all primary arms; run python -m study.second final")
    evaluation.save_table(pd.concat(reached), KEPT / "second_levels.csv")
    if explored:
        evaluation.save_table(pd.concat(explored), KEPT / "second_exploratory.csv")
    names = ["world", "split", "id", "strategy", "frequencies"]
    types = {"error_km": "float32", "seed": "int16", "cell": "int32"} | dict.fromkeys(names, "category")
    with writing(kept.PREDICTIONS) as aside:
        pd.concat(primary).astype(types).to_parquet(aside, index=False, compression="zstd")


def _primary(world: str, errors: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``errors`` that are of primary arms, arm split into strategy and frequencies."""
    chosen = errors[errors["strategy"].isin([f"{name} {kind}" for name, kind in PRIMARY])]
    parts = chosen["strategy"].str.split(" ", expand=True)
    chosen = chosen.assign(world=world, strategy=parts[0], frequencies=parts[1])
    return chosen[["world", "split", "cell", "id", "strategy", "frequencies", "seed", "error_km"]]


def on_validation(run: Run, trials: Sequence[Trial], name: str) -> pd.DataFrame:
    """Accuracies on validation, one row an arm, and the temperature at the end; under ``KEPT``."""
    errors = predictions(run, trials)
    table = evaluation.accuracy(errors).groupby(["split", "strategy"], sort=False).mean(numeric_only=True)
    warmth = errors.groupby(["split", "strategy"])["temperature"].mean()
    made = table.join(warmth).drop(columns="seed").reset_index().round(5)
    return evaluation.save_table(made, KEPT / f"second_{name}.csv")


PARTS: dict[str, tuple[str, Callable[[Run], None]]] = {
    "tune": ("tune", tune),
    "factorial": ("tune", factorial),
    "sharper": ("tune", sharpen),
    "sharpest": ("final", sharpest_on_test),
    "final": ("final", final),
    "relief": ("relief", final),
}
"""Part -> its world, and what it does there."""
FROM_KEPT: dict[str, Callable[[], None]] = {"keep": keep, "tables": kept.tables}
"""Parts that are of both worlds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: a part, and settings such as ``device=cpu``. Exit status 1 with a sentence."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    part, overrides = given[0] if given else "", given[1:]
    if part not in {*PARTS, *FROM_KEPT}:
        print(f"python -m study.second {'|'.join([*PARTS, *FROM_KEPT])} [SETTING…]", file=sys.stderr)
        return 1

    def do() -> None:
        if part in FROM_KEPT:
            FROM_KEPT[part]()
        else:
            world, of_world = PARTS[part]
            of_world(open_world(world, overrides))

    return finished("study.second", do)


def finished(program: str, do: Callable[[], None]) -> int:
    """Exit status of ``do``, among the ranks that torchrun has started: 1, with a sentence, for an error."""
    try:
        ranks.start()
        do()
    except (BundleError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    finally:
        ranks.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
