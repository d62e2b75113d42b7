"""Statements about the study: equal budgets, the run's own trainings taken where they are the same, the test
split left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import Runs

from lib.runs import Run
from lib.settings import Study
from lib.train import curve, training
from lib.train.metrics import COMPARED
from study import sweeps as study
from study.sweeps import StudyError, Variant

pytestmark = pytest.mark.usefixtures("narrow")
SHORT = (
    "training.epochs=1",
    "training.batch_size=48",
    "training.strategies=infonce,decayed,similarity",
    "evaluation.bootstrap=100",
)


def with_study(run: Run, **values: object) -> Run:
    given = {"sweep_strategies": ["infonce", "decayed"], "sweep_seeds": [0]} | values
    return replace(run, settings=run.settings.model_copy(update={"study": Study.model_validate(given)}))


def trained(run: Run) -> list[str]:
    return sorted(path.name.removesuffix(".safetensors") for path in run.folder.rglob("checkpoints/*"))


class TestVariant:
    def test_what_the_run_trains_anyway_has_its_name_and_its_job(self, make_run: Runs) -> None:
        run = make_run(*SHORT, "training.beta=4")
        same, other = (
            Variant("decayed", {"beta": 4.0}, {"epochs": 9}),
            Variant("decayed", {"beta": 8.0}, {"epochs": 9}),
        )
        assert same.label(run) == "decayed" and same.job(run, 0).run.settings.training.epochs == 1
        assert other.label(run) == "decayed,beta=8.0" and other.job(run, 0).run.settings.training.epochs == 9

    def test_the_search_has_trainings_of_its_own_whatever_the_profile_says(self, make_run: Runs) -> None:
        run = with_study(make_run(*SHORT, "training.beta=4"), search={"decayed": [{"beta": 4.0}]})
        (one,) = study.search_variants(run)
        assert one.label(run) == "decayed,beta=4.0"
        chosen = run.settings.training.changed({"variants": {"decayed": {"beta": 4.0, "photos": 90}}})
        after = replace(run, settings=run.settings.model_copy(update={"training": chosen}))
        assert one.job(after, 100).run.settings.training == one.job(run, 100).run.settings.training


class TestSearch:
    def test_it_takes_the_best_on_validation_and_says_what_the_profile_uses(self, make_run: Runs) -> None:
        tried = {
            "infonce": [{"learning_rate": 1e-3}, {"learning_rate": 1e-7}],
            "decayed": [{"beta": 1.0}, {"beta": 2.0}],
        }
        run = with_study(make_run(*SHORT, "training.epochs=8", "training.learning_rate=1e-3"), search=tried)
        table = study.search(run)
        assert table["settings"].tolist() == [
            "learning_rate 0.001",
            "learning_rate 1e-07",
            "beta 1",
            "beta 2",
        ]
        assert table["in_profile"].tolist() == [True, False, False, True]
        assert table.groupby("strategy")["chosen"].sum().tolist() == [1, 1]
        for _, rows in table.groupby("strategy"):
            assert rows.loc[rows["chosen"], "score"].item() == rows["score"].max()
        history = pd.read_csv(run.history("decayed,beta=1.0", 100))
        assert table["score"].iloc[2] == pytest.approx(history[study.SCORE].iloc[-1].mean())
        pd.testing.assert_frame_equal(pd.read_csv(run.table("search")), table)
        assert "*" in study.search_for_reading(table).loc["infonce"].sum()

    def test_a_seed_of_the_final_table_is_refused(self, make_run: Runs) -> None:
        with pytest.raises(StudyError, match=r"share \[0\]"):
            study.search(with_study(make_run(*SHORT), search_seeds=[0, 100]))


class TestSweeps:
    def test_the_gain_is_the_paired_difference_on_validation(self, make_run: Runs) -> None:
        run = with_study(make_run(*SHORT), epochs=[1, 2], sweep_seeds=[0, 1])
        table = study.sweep(run, "length", study.length_variants(run))
        assert trained(run) == [
            "decayed,epochs=2_seed0",
            "decayed,epochs=2_seed1",
            "decayed_seed0",
            "decayed_seed1",
            "infonce,epochs=2_seed0",
            "infonce,epochs=2_seed1",
            "infonce_seed0",
            "infonce_seed1",
        ]
        assert table.columns[0] == "epochs" and set(table["metric"]) == set(COMPARED)
        for epochs, label in ((1, ""), (2, ",epochs=2")):
            frames = {
                name: [
                    pd.read_parquet(run.folder / "validation" / f"{name}{label}_seed{seed}.parquet")
                    for seed in (0, 1)
                ]
                for name in ("infonce", "decayed")
            }
            assert all(set(frame["split"]) == {"validation"} for some in frames.values() for frame in some)
            within = {
                name: np.mean([(frame["error_km"] <= 2500).mean() for frame in some])
                for name, some in frames.items()
            }
            row = table[(table["epochs"] == epochs) & (table["metric"] == "acc_2500km")].set_index("strategy")
            assert row.loc["decayed", "accuracy"] == pytest.approx(within["decayed"])
            assert row.loc["decayed", "difference"] == pytest.approx(within["decayed"] - within["infonce"])
            assert (
                row.loc["decayed", "ci_low"]
                <= row.loc["decayed", "difference"]
                <= row.loc["decayed", "ci_high"]
            )
            assert np.isnan(row.loc["infonce", "difference"])

    def test_trainings_of_every_density_see_as_many_photos(self, make_run: Runs) -> None:
        run = with_study(make_run(*SHORT, "training.epochs=4"), photos=[24, 48, 96], batch_sizes=[12, 24])
        for one in study.density_variants(run):
            changed = one.job(run, 0).run.settings.training
            assert changed.photos * changed.epochs == 96 * 4 and changed.validate_every == changed.epochs

    def test_a_second_time_everything_is_reused(self, make_run: Runs) -> None:
        run = with_study(make_run(*SHORT), queue_sizes=[0, 24])
        first = study.sweep(run, "queue", study.queue_variants(run))
        made = len(run.reports)
        pd.testing.assert_frame_equal(study.sweep(run, "queue", study.queue_variants(run)), first)
        assert (
            all(report.startswith("reused") for report in run.reports[made:]) and len(run.reports) == 2 * made
        )


class TestWorlds:
    def test_noise_raises_the_nugget_and_nothing_else_changes(self, make_run: Runs) -> None:
        run = with_study(make_run(*SHORT, "semivariogram.lag_width_rad=0.1"), noises=[0.0, 1.0])
        run.semivariogram.unlink()
        curve.fit_run(run)
        found = study.worlds(run)
        plain, still, noisy = (
            np.load(one.features).astype(np.float64) for one in (run, found[0][2], found[1][2])
        )
        assert np.array_equal(plain, still) and noisy.shape == plain.shape
        assert (noisy - plain).std() == pytest.approx(plain.std(0).mean(), rel=0.03)
        table = study.sweep_worlds(run, found)
        ratio = table.drop_duplicates("world").set_index("world")["nugget_to_sill"]
        assert (
            ratio["as it is"] == pytest.approx(ratio["noise 0"], rel=1e-3)
            and ratio["noise 1"] > ratio["noise 0"]
        )
        assert len(table) == 3 * 2 * len(COMPARED)


class TestSimulation:
    def test_its_tables_are_those_of_the_run(self, make_run: Runs) -> None:
        values = {
            "train": 200,
            "validation": 20,
            "test": 40,
            "epochs": 1,
            "seeds": [0],
            "strategies": ["infonce", "decayed"],
        }
        run = with_study(make_run(*SHORT), simulation=values)
        _, simulated, tables = study.simulate(run)
        assert simulated.folder == run.folder / "simulation"
        assert set(tables["gains"]["strategy"]) == {"decayed", "oracle", "oracle_false", "oracle_hard"}
        assert pd.read_csv(run.table("simulation_detection"))["strategy"].nunique() == 5
        with pytest.raises(StudyError, match="simulation"):
            study.simulate(with_study(make_run(*SHORT)))


class TestMake:
    def test_a_part_makes_the_trainings_that_its_table_then_finds(self, make_run: Runs) -> None:
        run = with_study(make_run(*SHORT), epochs=[1, 2], search={"infonce": [{"learning_rate": 1e-3}]})
        for part in ("search", "table", "length"):
            study.make(run, part)
        there = trained(run)
        (
            study.search(run),
            study.sweep(run, "length", study.length_variants(run)),
            training.train_all(run, ["similarity"]),
        )
        assert trained(run) == there
