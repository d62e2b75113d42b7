"""A bench for weightings of your own: ``python -m study.bench my_idea.py [--quick]``.

The file registers one strategy (docs/howto-strategy.md) and may set ``TRAINING``, a dict of settings of
training, such as ``{"beta": 8.0, "frequencies": "places"}``. It is trained at the kept places with the kept
seeds, and paired photo by photo with the kept predictions. So nothing else need be trained.

* ``--quick``: three seeds of the profile ``quick``, two minutes on two cores once ``results/quick`` is there;
* without it: every draw and seed of the third study, in both worlds.

The table and the picture go to ``results/bench``. ``--keep`` makes the predictions of ``results/quick`` the
kept ones.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import ValidationError

from lib.data import features, manifest
from lib.evaluate import evaluation, intervals
from lib.evaluate.intervals import BASELINE
from lib.method import negatives
from lib.method.errors import BundleError
from lib.runs import Run, cache, cached, progress, write_json, writing
from lib.runs.run import REFERENCE, RESULTS
from lib.show import figures
from lib.train import curve
from lib.train.metrics import COMPARED
from study import second, third, third_kept
from study.second import TEST, Trial

KEPT = REFERENCE / "quick"
BENCH = RESULTS / "bench"
ASKED = (
    ("test", "acc_25km"),
    ("test", "acc_200km"),
    ("test_blocked", "acc_750km"),
    ("test_blocked", "acc_2500km"),
)
SECONDS_A_TRAINING = 45
"""Of the third study, on two cores."""
PROTOCOL = {"epochs", "batch_size", "queue_size", "optimizer", "schedule", "weight_decay", "precision",
            "nyquist_share"}  # fmt: skip
SAMPLE = 8
"""So many photos, and so many of their features, tell features of another kind."""


class Idea(NamedTuple):
    """A strategy of the user's, settings of its training, and the checksum of its file."""

    strategy: str
    training: dict[str, Any]
    code: str


def read_idea(path: Path) -> Idea:
    """Run the file at ``path``, which registers one strategy.

    Raises:
        BundleError: it cannot be read or run, or registers none or several.
    """
    before = set(negatives.REGISTRY)
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise BundleError("its name must end with .py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        code = hashlib.sha256(path.read_bytes()).hexdigest()
    except Exception as error:  # whatever the user's file may raise
        raise BundleError(f"{path}: cannot be run ({type(error).__name__}: {error})") from error
    if len(new := sorted(set(negatives.REGISTRY) - before)) != 1:
        said = f"registers {', '.join(new) or 'no strategy'}; it must register one"
        raise BundleError(f"{path}: {said} (docs/howto-strategy.md)")
    return Idea(new[0], dict(getattr(module, "TRAINING", {})), code)


def errors_of(run: Run, idea: Idea, seeds: Sequence[int], settings: Mapping[str, Any]) -> pd.DataFrame:
    """Errors of ``idea`` on test splits, trained with ``settings``: id, split, error_km, strategy, seed."""
    frames = []
    for seed in progress(seeds, idea.strategy, len(seeds)):
        try:
            training = run.settings.training.changed({**settings, **idea.training})
        except ValidationError as error:
            first = error.errors()[0]
            said = f"TRAINING: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise BundleError(said) from None
        trial = Trial(idea.strategy, idea.strategy, {**settings, **idea.training}, seed)
        own = replace(run, settings=run.settings.model_copy(update={"training": training}))
        path = run.folder / "bench" / f"{idea.strategy}_{idea.code[:12]}_seed{seed}.parquet"
        curve.fit_run(run)
        cached(
            own, f"bench-{path.stem}", partial(second.train, own, trial, TEST, path),
            inputs=[run.manifest, run.features, run.semivariogram], outputs=[path], code=[second.train],
            settings={"training": training.model_dump(), "seed": seed, "file": idea.code},
        )  # fmt: skip
        frames.append(pd.read_parquet(path).assign(strategy=idea.strategy, seed=seed))
    return pd.concat(frames, ignore_index=True).drop(columns="temperature")


def fingerprint(run: Run) -> dict[str, Any]:
    """What places, features and arithmetic of a run are told apart by."""
    photos = features.photos(run)
    rows = manifest.rows_of(photos, "train")[:SAMPLE]
    sample = features.read(run, photos).rows(rows)[:, :SAMPLE]
    places = np.round(manifest.coordinates(photos), 6)
    base = run.settings.training.model_dump(mode="json", include=PROTOCOL)
    return {
        "places": hashlib.sha256(places.tobytes()).hexdigest(), "features": sample.double().tolist(),
        "protocol": base, "gallery": [run.settings.evaluation.gallery, run.settings.evaluation.lattice_km],
    }  # fmt: skip


def check(run: Run, kept: Mapping[str, Any]) -> None:
    """Refuse a run whose places, features or protocol are not those of ``kept``, a :func:`fingerprint`."""
    here = fingerprint(run)
    differs = [name for name in ("places", "protocol", "gallery") if here[name] != kept[name]]
    if np.shape(here["features"]) != np.shape(kept["features"]) or not np.allclose(
        here["features"], kept["features"], atol=0.02
    ):
        differs.append("features")
    if differs:
        said = f"{run.folder} has other {', '.join(differs)} than the kept predictions"
        raise BundleError(f"{said}; make it anew with ./run_all.sh, at the commit that kept them")


def keep(run: Run) -> None:
    """Keep the predictions of ``run``, those of every strategy and seed, for later comparisons."""
    told = pd.read_parquet(run.predictions, columns=["id", "split", "strategy", "seed", "error_km", "cell"])
    types = dict.fromkeys(["id", "split", "strategy"], "category") | {"seed": "int16", "cell": "int32"}
    told["error_km"] = told["error_km"].round(1).astype("float32")
    with writing(KEPT / "predictions.parquet") as aside:
        told.astype(types).to_parquet(aside, index=False, compression="zstd")
    with cache.as_finished():  # as it is: nothing of it is made again
        write_json(KEPT / "bench.json", fingerprint(run))


def quick(idea: Idea) -> pd.DataFrame:
    """The idea under the protocol of ``quick`` beside its kept rows; differences, printed and drawn."""
    run = Run.open("quick")
    curve.fit_run(run)
    check(run, json.loads((KEPT / "bench.json").read_text(encoding="utf-8")))
    known = pd.read_parquet(KEPT / "predictions.parquet").astype({"id": str, "split": str, "strategy": str})
    if idea.strategy in set(known["strategy"]):
        raise BundleError(f"there is a kept strategy {idea.strategy!r}; give yours a name of its own")
    basis = {"learning_rate": run.settings.training.own(BASELINE)[1].learning_rate}
    ours = errors_of(run, idea, run.settings.training.seeds, basis)
    ours["cell"] = ours["id"].map(features.photos(run).set_index("id")["cell"])
    both = pd.concat([known, ours.round({"error_km": 1})], ignore_index=True)
    figure = figures.forest(intervals.compare(both, BASELINE, COMPARED))
    figures.save(figure, BENCH / f"{idea.strategy}.png")
    parts = []
    for baseline in known["strategy"].unique():
        pair = both[both["strategy"].isin([idea.strategy, baseline])]
        for split, metric in ASKED:
            parts.append(intervals.compare(pair[pair["split"] == split], baseline, [metric]))
    return pd.concat(parts, ignore_index=True).query("strategy == @idea.strategy")


def study(idea: Idea) -> pd.DataFrame:
    """The idea in every draw of the third study; its differences to four kept arms.

    Raises:
        BundleError: no seed of these arms is whole in a world.
    """
    every, parts = third.kept(), []
    against = ("infonce geoclip", "semivariogram geoclip", f"{third.MARGIN} places", third.NEAREST)
    for world, draws in third.DRAWS.items():
        known = every[every["world"] == world].astype({"arm": str, "split": str, "world": str})
        seeds = third_kept.whole_seeds(known, against[:3]) if len(known) else []
        if not seeds:
            print(f"{world}: left out; {third.PREDICTIONS.name} holds no whole seed of it")
            continue
        minutes = len(draws) * len(seeds) * SECONDS_A_TRAINING // 60
        print(f"{world}: {len(draws)} draws x {len(seeds)} seeds, about {minutes} minutes on two cores")
        for draw in draws:
            run = third.open_world(f"{world}_{draw}")
            basis = {"epochs": third.EPOCHS, "validate_every": third.EPOCHS, "photos": third.STEPS_OF}
            basis |= {name: third.chosen()[against[0]][name] for name in ("learning_rate", "temperature")}
            ours = errors_of(run, idea, seeds, basis).rename(columns={"strategy": "arm"})
            cell = features.photos(run).set_index("id")["cell"]
            ours = ours.assign(world=world, draw=draw, cell=ours["id"].map(cell))
            ours["id"] = ours["id"].str.removeprefix("bm_").astype("int32")
            known = pd.concat([known, ours.round({"error_km": 1})], ignore_index=True)
        asked = [(idea.strategy, arm, *one) for arm, one in itertools.product(against, ASKED)]
        parts.append(third_kept.contrasts(world, known, asked))
    if not parts:
        raise BundleError(f"{third.PREDICTIONS} holds no whole seed of any world; try --quick")
    return pd.concat(parts, ignore_index=True)


def report(idea: Idea, table: pd.DataFrame) -> None:
    """Print differences with intervals, in points, and write ``table`` with Holm's p values."""
    table = table.assign(p_holm=intervals.holm(table["p_value"]))
    text = intervals.in_points(table)
    marks = np.where(table["p_holm"] < 0.05, " *", "")
    where = table["split"].map({"test": "random", "test_blocked": "held out"})
    radius = table["metric"].str.removeprefix("acc_").str.removesuffix("km") + " km"
    index = [name for name in ("world", "baseline") if name in table]
    shown = table.assign(text=[a + b for a, b in zip(text, marks, strict=True)], at=where + ", " + radius)
    wide = shown.pivot(index=index, columns="at", values="text")[list(dict.fromkeys(shown["at"]))]
    print(f"{idea.strategy} less each of these, in percentage points; *: left by Holm's test\n")
    print(wide.to_string())
    evaluation.save_table(table.round(6), BENCH / f"{idea.strategy}.csv")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit status 1 with a sentence."""
    parser = argparse.ArgumentParser(prog="python -m study.bench", description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, help="Python file that registers one strategy")
    parser.add_argument("--quick", action="store_true", help="three seeds of the profile quick")
    parser.add_argument("--keep", action="store_true", help="keep the predictions of results/quick")
    given = parser.parse_args(arguments)
    if given.keep == bool(given.file):
        parser.error("name a file, or give --keep")
    try:
        if given.keep:
            keep(Run.open("quick"))
            return 0
        idea = read_idea(given.file)
        report(idea, (quick if given.quick else study)(idea))
        print(f"\n{BENCH / idea.strategy}.csv{' and .png' if given.quick else ''}")
    except (BundleError, OSError) as error:
        print(f"study.bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
