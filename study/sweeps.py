"""Many trainings around a run: the search for settings on validation, and sweeps over what the mechanism says
must matter.

Every training is a stage of its own: what is there from the same settings is reused, so a study can be
stopped anywhere and goes on. The test split has no part in anything here; notebook 05 reads it, once, for the
final table.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.data import datasets, features
from lib.evaluate import evaluation, intervals
from lib.method import negatives
from lib.method.errors import BundleError
from lib.method.semivariogram import FittedSemivariogram
from lib.runs import Run, generator, ranks, writing
from lib.runs.files import write_rows
from lib.settings import Study
from lib.train import curve, gallery, training
from lib.train.metrics import COMPARED, COMPARED_KM
from lib.train.training import Job
from study import simulation, variography

SCORE = [f"validation_acc_{radius}km" for radius in COMPARED_KM]
"""The search takes the settings with the highest mean of these."""


class StudyError(BundleError):
    """A study cannot be made as its settings have it; the message says why."""


def settings_of(run: Run) -> Study:
    """The run's group ``study``.

    Raises:
        StudyError: its profile has none.
    """
    if run.settings.study is None:
        raise StudyError(
            f"profile {run.settings.profile} has no group `study`: take profile study, or add one to yours"
        )
    return run.settings.study


def label(name: str, changes: Mapping[str, Any]) -> str:
    """Name of the files of a training of strategy ``name`` with ``changes``, such as ``decayed,beta=4``."""
    return ",".join([name, *(f"{key}={value}" for key, value in sorted(changes.items()))])


@dataclass(frozen=True)
class Variant:
    """A strategy with other settings of ``training`` than the run's, by which it is told from others.

    Attributes:
        name: one of ``training.strategies``, or a strategy.
        changes: what is varied.
        besides: other settings, that say nothing to a reader.
        of_its_own: trained also where the changes change nothing, and without what the profile has chosen for
            the strategy; else the run's own training is taken where it is the same.
    """

    name: str
    changes: dict[str, Any]
    besides: dict[str, Any]
    of_its_own: bool = False

    def is_the_runs(self, run: Run) -> bool:
        """Whether it is what ``run`` trains anyway."""
        own = run.settings.training.own(self.name)[1]
        return not self.of_its_own and all(getattr(own, key) == value for key, value in self.changes.items())

    def label(self, run: Run) -> str:
        """Name of its files in the folder of ``run``."""
        return self.name if self.is_the_runs(run) else label(self.name, self.changes)

    def job(self, run: Run, seed: int) -> Job:
        """Its training with ``seed``, in the folder of ``run``."""
        if self.is_the_runs(run):
            return Job.of(run, self.name, seed)
        base = _before_the_choice(run) if self.of_its_own else run
        return Job.variant(base, self.label(run), self.name, seed, self.changes | self.besides)


def _before_the_choice(run: Run) -> Run:
    """``run`` with the strategies that variants stand for, but without their settings."""
    own = run.settings.training
    plain = {name: {"strategy": own.own(name)[0]} for name in own.variants}
    training_settings = own.model_copy(update={"variants": plain})
    return replace(run, settings=run.settings.model_copy(update={"training": training_settings}))


def _only_at_the_end(run: Run) -> dict[str, Any]:
    """Validation after the last epoch only; a change of the length must be made beside it."""
    return {"validate_every": run.settings.training.epochs}


def search_variants(run: Run) -> list[Variant]:
    """What the search tries, in the order of the profile."""
    tried = settings_of(run).search.items()
    return [
        Variant(name, dict(changes), _only_at_the_end(run), of_its_own=True)
        for name, some in tried
        for changes in some
    ]


def search(run: Run) -> pd.DataFrame:
    """Train everything that the search tries, or reuse it; how each did on validation.

    Returns:
        strategy, settings (text), score (mean of ``SCORE`` over seeds), the parts of the score, chosen (the
        best of its strategy; the first of equals), in_profile (whether the run's own trainings use exactly
        these settings).

    Raises:
        StudyError: strategies are given unequal numbers of settings, or a seed of the final table.
    """
    study, variants = settings_of(run), search_variants(run)
    if len({len(some) for some in study.search.values()}) > 1:
        raise StudyError(
            "study.search gives one strategy more settings than another: the comparison would not be fair"
        )
    if shared := set(study.search_seeds) & set(run.settings.training.seeds):
        raise StudyError(
            f"study.search_seeds and training.seeds share {sorted(shared)}: the search has its own seeds"
        )
    training.make_all([one.job(run, seed) for one in variants for seed in study.search_seeds])
    rows = []
    for one in variants:
        ends = pd.concat(
            [pd.read_csv(run.history(one.label(run), seed)).tail(1) for seed in study.search_seeds]
        )
        parts = ends[SCORE].mean()
        rows.append({"strategy": one.name, "settings": _text(one.changes), "score": parts.mean(), **parts})
        rows[-1]["in_profile"] = _is_in_profile(run, one)
    table = pd.DataFrame(rows)
    best = table.groupby("strategy", sort=False)["score"].idxmax()
    table.insert(3, "chosen", table.index.isin(best))
    return evaluation.save_table(table, run.table("search"))


def _text(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {'fitted' if value is None else f'{value:g}'}" for key, value in changes.items())


def _is_in_profile(run: Run, variant: Variant) -> bool:
    own = run.settings.training.own(variant.name)[1]
    return all(getattr(own, key) == value for key, value in variant.changes.items())


def search_for_reading(table: pd.DataFrame) -> pd.DataFrame:
    """One row a strategy, one column a try: settings and score in percent, the chosen one marked."""
    text = [
        f"{row.settings}: "
        f"{100 * row.score:.2f}{' *' if row.chosen else ''}{' (profile)' if row.in_profile else ''}"
        for row in table.itertuples()
    ]
    number = table.groupby("strategy").cumcount() + 1
    wide = table.assign(text=text, number=number).pivot(index="strategy", columns="number", values="text")
    return wide.loc[list(dict.fromkeys(table["strategy"]))].rename_axis(columns="try")


def best_of(searched: pd.DataFrame, kind: str) -> str:
    """The strategy of ``kind`` (family, peer, control) with the highest score of the search.

    Raises:
        StudyError: the search tried none of that kind.
    """
    of_kind = searched[
        [
            name in negatives.REGISTRY and negatives.REGISTRY[name].kind == kind
            for name in searched["strategy"]
        ]
    ]
    if of_kind.empty:
        raise StudyError(f"study.search tries no strategy of the kind {kind}")
    return str(of_kind.loc[of_kind["score"].idxmax(), "strategy"])


def length_variants(run: Run) -> list[Variant]:
    """The sweep's strategies trained for each of ``study.epochs``."""
    study = settings_of(run)
    return [
        Variant(name, {"epochs": count}, {"validate_every": count})
        for count, name in itertools.product(study.epochs, study.sweep_strategies)
    ]


def density_variants(run: Run) -> list[Variant]:
    """Training photos x batch size; each training sees as many photos, however often each, as the run's
    own."""
    study, own = settings_of(run), run.settings.training
    total = (own.photos or len(datasets.manifest.rows_of(datasets.read(run), "train"))) * own.epochs
    made = []
    for photos, size, name in itertools.product(study.photos, study.batch_sizes, study.sweep_strategies):
        epochs = max(1, round(total / photos))
        made.append(
            Variant(
                name, {"photos": photos, "batch_size": size}, {"epochs": epochs, "validate_every": epochs}
            )
        )
    return made


def queue_variants(run: Run) -> list[Variant]:
    """The sweep's strategies with each of ``study.queue_sizes``."""
    study = settings_of(run)
    return [
        Variant(name, {"queue_size": size}, _only_at_the_end(run))
        for size, name in itertools.product(study.queue_sizes, study.sweep_strategies)
    ]


def sweep(run: Run, part: str, variants: Sequence[Variant]) -> pd.DataFrame:
    """Train ``variants`` with the sweep's seeds, or reuse them, and compare each with ``infonce`` of the same
    settings.

    On the validation split: paired differences with 95 % intervals over photos and seeds.

    Returns:
        the varied settings, strategy, metric, accuracy (of the strategy), difference, ci_low, ci_high, seeds,
        n; the table ``sweep_<part>`` too.

    Raises:
        StudyError: ``infonce`` is not among the sweep's strategies.
    """
    study = settings_of(run)
    if "infonce" not in study.sweep_strategies:
        raise StudyError("study.sweep_strategies needs infonce, which the others are compared with")
    training.make_all([one.job(run, seed) for one in variants for seed in study.sweep_seeds])
    ranks.wait()
    keys = [json.dumps(one.changes, sort_keys=True) for one in variants]
    frames = []
    for key in dict.fromkeys(keys):
        group = [one for one, own in zip(variants, keys, strict=True) if own == key]
        frames.append(_gains(_predictions(run, group, study), run).assign(**group[0].changes))
    if not frames:
        return pd.DataFrame()
    table = pd.concat(frames, ignore_index=True)
    varied = [name for name in table.columns if name not in frames[0].columns or name in variants[0].changes]
    return evaluation.save_table(
        table[[*varied, *(name for name in table if name not in varied)]], run.table(f"sweep_{part}")
    )


def _predictions(run: Run, group: Iterable[Variant], study: Study) -> pd.DataFrame:
    """Validation predictions of ``group``, made once: parquet files beside the checkpoints, named as they
    are."""
    frames = []
    for one, seed in itertools.product(group, study.sweep_seeds):
        checkpoint = run.checkpoint(one.label(run), seed)
        path = run.folder / "validation" / f"{checkpoint.stem}.parquet"
        asked = replace(run, settings=_with_seeds(run, [seed]))

        def make(asked: Run = asked, one: Variant = one, path: Path = path) -> None:
            with writing(path) as aside:
                evaluation.predict_all(asked, [one.label(asked)], split_names=["validation"]).to_parquet(
                    aside, index=False
                )

        run.produce(
            f"validation-{checkpoint.stem}",
            make=make,
            inputs=[run.manifest, run.features, checkpoint, *gallery.input_files(run)],
            outputs=[path],
            settings=run.settings.evaluation.model_dump(include={"gallery", "lattice_km"}),
            code=[evaluation.predict_all],
            by="this rank",
        )
        frames.append(pd.read_parquet(path).assign(strategy=one.name))
    return pd.concat(frames, ignore_index=True)


def _with_seeds(run: Run, seeds: list[int]) -> Any:
    changed = run.settings.training.model_copy(update={"seeds": seeds})
    return run.settings.model_copy(update={"training": changed})


def _gains(predictions: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Differences to infonce, and beside them each strategy's own accuracy; infonce's own rows have no
    difference."""
    compared = intervals.compare(predictions, metrics=COMPARED)
    means = evaluation.accuracy(predictions).groupby("strategy", sort=False)[list(COMPARED)].mean().stack()
    means = means.rename("accuracy").rename_axis(["strategy", "metric"]).reset_index()
    table = means.merge(
        compared.drop(columns=["baseline", "split", "p_value", "error", "degrees_of_freedom", "cells"]),
        on=["strategy", "metric"],
        how="left",
    )
    return table


def worlds(run: Run) -> list[tuple[str, float, Run]]:
    """Runs that differ from ``run`` in their features: (factor, level, run) for each noise and other
    backbone.

    They lie under worlds/ of the run's folder, with manifest, features and fitted semivariogram made here or
    reused.
    """
    study, found = settings_of(run), []
    for level in study.noises:
        one_view = run.settings.model_copy(
            update={"backbone": run.settings.backbone.model_copy(update={"views": 1})}
        )
        world = Run(one_view, run.folder / "worlds" / f"noise={level:g}")
        _copy_manifest(run, world)
        _add_noise(run, world, level)
        found.append(("noise", level, world))
    for name in study.backbones:
        backbone = run.settings.backbone.model_copy(update={"name": name, "revision": None})
        settings = run.settings.model_copy(update={"backbone": backbone})
        world = Run(settings, run.folder / "worlds" / name.replace("/", "_"))
        _copy_manifest(run, world)
        features.extract(world)
        found.append((name, 0.0, world))
    for _, _, world in found:
        curve.fit_run(world)
    return found


def _copy_manifest(run: Run, world: Run) -> None:
    def make() -> None:
        with writing(world.manifest) as aside:
            aside.write_bytes(run.manifest.read_bytes())

    world.produce("manifest", make=make, inputs=[run.manifest], outputs=[world.manifest])


def _add_noise(run: Run, world: Run, level: float) -> None:
    """Features of ``run`` with Gaussian noise of ``level`` standard deviations of theirs, the same for head
    and weights."""

    def make() -> None:
        stored = np.load(run.features, mmap_mode="r", allow_pickle=False)
        spread = float(np.std(stored[:: max(1, len(stored) // 2_000)].astype(np.float32), axis=0).mean())
        draw = np.random.default_rng(generator(0, "feature noise").initial_seed())
        blocks = (stored[start : start + 1_024].astype(np.float32) for start in range(0, len(stored), 1_024))
        noisy = (block + level * spread * draw.standard_normal(block.shape, np.float32) for block in blocks)
        write_rows(world.features, noisy, stored.dtype, stored.shape)

    world.produce(
        "features",
        make=make,
        inputs=[run.features],
        outputs=[world.features],
        settings={"noise": level},
        code=[_add_noise],
    )


def _train_in(world: Run, study: Study) -> list[Variant]:
    """The sweep's strategies as they are, trained in ``world``."""
    variants = [Variant(name, {}, {}) for name in study.sweep_strategies]
    training.make_all([one.job(world, seed) for one in variants for seed in study.sweep_seeds])
    return variants


def sweep_worlds(run: Run, worlds_of_run: Sequence[tuple[str, float, Run]]) -> pd.DataFrame:
    """The sweep's strategies in each world, with the nugget-to-sill ratio that its fitted curve has.

    Returns:
        world, nugget_to_sill, r2, and the columns of :func:`sweep`; the table ``sweep_worlds`` too.
    """
    study, frames = settings_of(run), []
    for factor, level, world in [("as it is", 0.0, run), *worlds_of_run]:
        fitted = FittedSemivariogram.load(world.semivariogram)
        variants = _train_in(world, study)
        ranks.wait()
        table = _gains(_predictions(world, variants, study), world)
        named = f"noise {level:g}" if factor == "noise" else factor
        frames.append(table.assign(world=named, nugget_to_sill=fitted.nugget / fitted.sill, r2=fitted.r2))
    table = pd.concat(frames, ignore_index=True)
    front = ["world", "nugget_to_sill", "r2"]
    return evaluation.save_table(
        table[[*front, *(name for name in table if name not in front)]], run.table("sweep_worlds")
    )


def simulate(run: Run) -> tuple[simulation.World, Run, dict[str, pd.DataFrame]]:
    """The simulated world of the profile: how well each strategy finds what is false and hard in it, and what
    that gains.

    Returns:
        The world, its run, and the tables detection, curves, gains (:func:`lib.evaluate.intervals.corrected`,
        against infonce) and final; all but the curves are tables of ``run``, named ``simulation_…``.

    Raises:
        StudyError: the profile has no simulation.
    """
    settings = settings_of(run).simulation
    if settings is None:
        raise StudyError(f"profile {run.settings.profile} has no group `study.simulation`")
    world = simulation.make(settings)
    simulated = simulation.as_run(world, run)
    names = [*settings.strategies, *simulation.ORACLES]
    predictions = simulation.train_all(world, simulated, names)
    found, curves = simulation.detection(world, simulated, names)
    compared = intervals.corrected(
        intervals.compare(predictions, metrics=COMPARED), margin=settings_of(run).margin_points / 100
    )
    tables = {"detection": found, "gains": compared, "final": intervals.levels(predictions)}
    for name, table in tables.items():
        evaluation.save_table(table, run.table(f"simulation_{name}"))
    return world, simulated, tables | {"curves": curves}


def levels_for_reading(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`lib.evaluate.intervals.levels`: percent (kilometres for the median) and half the interval's
    width."""
    share = np.where(table["metric"] == "median_km", 1.0, 100.0)
    half = (table["ci_high"] - table["ci_low"]) / 2.0 * share
    text = [f"{value:.1f} ± {width:.1f}" for value, width in zip(table["value"] * share, half, strict=True)]
    return intervals.in_order(table.assign(text=text), ["split", "strategy"])


def against(predictions: pd.DataFrame, strategies: Sequence[str], others: Sequence[str]) -> pd.DataFrame:
    """Each of ``strategies`` against each of ``others`` but itself, corrected over all comparisons of one
    strategy in a split.

    Column ``baseline`` names the other one; a strategy beats all where every corrected_low of a metric is
    above zero.
    """
    tables = []
    for name in dict.fromkeys(strategies):
        pairs = [
            intervals.compare(predictions[predictions["strategy"].isin([name, other])], other, COMPARED)
            for other in others
            if other != name
        ]
        tables.append(intervals.corrected(pd.concat(pairs, ignore_index=True)))
    return pd.concat(tables, ignore_index=True)


PARTS = ("search", "table", "length", "density", "queue", "worlds", "simulation")


def make(run: Run, part: str) -> None:
    """The trainings of one part, made or reused, by as many processes as there are.

    Raises:
        StudyError: there is no such part.
    """
    if part == "search":
        study = settings_of(run)
        training.make_all([one.job(run, seed) for one in search_variants(run) for seed in study.search_seeds])
    elif part == "table":
        training.train_all(run, run.settings.training.strategies)
    elif part == "worlds":
        for world in (run, *(one for _, _, one in worlds(run))):
            _train_in(world, settings_of(run))
    elif part == "simulation":
        if settings_of(run).simulation is not None:
            simulate(run)
    elif part in PARTS:
        of_part = {"length": length_variants, "density": density_variants, "queue": queue_variants}[part]
        seeds = settings_of(run).sweep_seeds
        training.make_all([one.job(run, seed) for one in of_part(run) for seed in seeds])
    else:
        raise StudyError(f"part {part}: there is no such part; there are {', '.join(PARTS)}")
    ranks.wait()


def make_all(run: Run) -> None:
    """The trainings of all parts, made or reused."""
    for part in PARTS:
        make(run, part)


def asked(run: Run) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(notebook, group, what asks for the stage) of notebooks 07 and 08, in their order."""
    yield from _variants(run, "07", "search", search_variants(run), run.settings.study.search_seeds)
    yield from _of_table(run)
    yield "07", "", lambda: evaluation.evaluate(run)
    yield from _variants(run, "07", "length", length_variants(run), run.settings.study.sweep_seeds)
    yield "08", "", lambda: variography.examine(run)
    if run.manifest.exists() and run.manifest not in run.pending:  # else it is made, or made again, first
        yield from _variants(run, "08", "density", density_variants(run), run.settings.study.sweep_seeds)
    yield from _variants(run, "08", "queue", queue_variants(run), run.settings.study.sweep_seeds)


def _variants(
    run: Run, number: str, part: str, variants: Iterable[Variant], seeds: Iterable[int]
) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for one in variants:
        for seed in seeds:
            yield number, f"trainings of the {part}", partial(training.make, one.job(run, seed))


def _of_table(run: Run) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for name in run.settings.training.strategies:
        for seed in run.settings.training.seeds:
            yield "07", f"training {name}", partial(training.make, Job.of(run, name, seed))
