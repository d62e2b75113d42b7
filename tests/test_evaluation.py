"""Statements about errors at granularity: what a table says is what a naive count says, and intervals keep their promise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyproj
import pytest
from conftest import SIZES, Runs, world

from lib.data import datasets, manifest
from lib.evaluate import evaluation
from lib.evaluate.evaluation import accuracy, bounds, by_group, compare, evaluate, latitude_band, predict_all
from lib.method.geodesy import EARTH_RADIUS_KM
from lib.runs import ArtefactError, Run
from lib.train import gallery, training

DEMANDED = ["strategy", "seed", "split", "n", "acc_1km", "acc_25km", "acc_200km", "acc_750km", "acc_2500km", "median_km", "mean_km", "geoscore"]
METRICS = [*DEMANDED[4:], "acc_100km"]


def table(errors: np.ndarray, strategy: str, split: str = "test") -> pd.DataFrame:
    """Predictions with errors [S, N] in kilometres."""
    frames = [
        pd.DataFrame({"id": [f"p{k:04d}" for k in range(len(row))], "split": split, "strategy": strategy, "seed": seed, "error_km": row})
        for seed, row in enumerate(errors)
    ]
    return pd.concat(frames, ignore_index=True)


def naive(errors: list[float]) -> dict[str, float]:
    """The metrics of the method, one photo after the other."""
    found = {f"acc_{radius}km": sum(1 for error in errors if error <= radius) / len(errors) for radius in (1, 25, 100, 200, 750, 2500)}
    ordered, middle = sorted(errors), len(errors) // 2
    found["median_km"] = ordered[middle] if len(errors) % 2 else (ordered[middle - 1] + ordered[middle]) / 2.0
    found["mean_km"] = sum(errors) / len(errors)
    found["geoscore"] = sum(5000.0 * math.exp(-error / 1492.7) for error in errors) / len(errors)
    return found


def lognormal(seed: int, shape: tuple[int, int], median_km: float = 300.0) -> np.ndarray:
    return median_km * np.exp(1.8 * np.random.default_rng(seed).normal(size=shape))


class TestAccuracy:
    def test_every_number_is_that_of_a_naive_count(self) -> None:
        predictions = pd.concat([table(lognormal(0, (2, 41)), "infonce"), table(lognormal(1, (2, 30)), "residual", "test_blocked")])
        found = accuracy(predictions)
        assert len(found) == 4
        for row in found.itertuples(index=False):
            chosen = predictions[(predictions["strategy"] == row.strategy) & (predictions["seed"] == row.seed) & (predictions["split"] == row.split)]
            assert row.n == len(chosen)
            for name, value in naive(chosen["error_km"].tolist()).items():
                assert getattr(row, name) == pytest.approx(value), name

    def test_the_columns_stand_in_the_demanded_order(self) -> None:
        assert list(accuracy(table(lognormal(0, (1, 5)), "infonce")).columns)[:12] == DEMANDED

    def test_an_error_on_the_radius_is_within_it(self) -> None:
        found = accuracy(table(np.array([[1.0, 25.0, 200.0, 750.0, 2500.0, 2500.01]]), "infonce")).iloc[0]
        assert [round(6 * found[name]) for name in DEMANDED[4:9]] == [1, 2, 3, 4, 5]

    def test_a_perfect_guess_scores_5000(self) -> None:
        assert accuracy(table(np.zeros((1, 3)), "infonce"))["geoscore"].tolist() == [5000.0]
        assert accuracy(table(np.full((1, 3), 1492.7), "infonce"))["geoscore"][0] == pytest.approx(5000.0 / math.e)


class TestCompare:
    def test_identical_strategies_differ_by_exactly_nothing(self) -> None:
        errors = lognormal(0, (3, 50))
        found = compare(pd.concat([table(errors, "infonce"), table(errors, "twin")]), resamples=100)
        assert found["metric"].tolist() == METRICS
        assert not found[["difference", "ci_low", "ci_high"]].to_numpy().any()

    def test_the_difference_is_that_of_the_tables_means(self) -> None:
        predictions = pd.concat([table(lognormal(0, (3, 50)), "infonce"), table(lognormal(1, (3, 50), 250.0), "residual")])
        found = compare(predictions, resamples=100).set_index("metric")
        means = accuracy(predictions).groupby("strategy")[METRICS].mean()
        for metric in METRICS:
            assert found.loc[metric, "difference"] == pytest.approx(means.loc["residual", metric] - means.loc["infonce", metric])
            assert found.loc[metric, "ci_low"] <= found.loc[metric, "difference"] <= found.loc[metric, "ci_high"]
        assert (found[["strategy", "baseline", "seeds", "n", "split"]] == ["residual", "infonce", 3, 50, "test"]).all(axis=None)

    def test_photos_are_paired_whatever_the_order_of_rows(self) -> None:
        hard = lognormal(0, (2, 60))
        predictions = pd.concat([table(hard, "infonce"), table(hard - 0.5, "better").sample(frac=1.0, random_state=0)])
        found = compare(predictions, resamples=100).set_index("metric").loc["mean_km"]
        assert [found["difference"], found["ci_low"], found["ci_high"]] == pytest.approx([-0.5] * 3)

    def test_the_interval_covers_the_true_difference_19_times_of_20(self) -> None:
        """Differences of photos are drawn around a known mean, of one seed: 95 % +- 2 standard errors of 160 draws."""
        covered, tries, truth = 0, 160, -20.0
        for number in range(tries):
            generator = np.random.default_rng(number)
            base = 500.0 + 300.0 * generator.random((1, 80))
            ours = base + truth + 60.0 * generator.normal(size=(1, 80))
            found = compare(pd.concat([table(base, "infonce"), table(ours, "ours")]), resamples=200, seed=number)
            row = found[found["metric"] == "mean_km"].iloc[0]
            covered += row["ci_low"] <= truth <= row["ci_high"]
        assert 0.90 <= covered / tries <= 0.985

    def test_the_intervals_width_is_the_textbooks(self) -> None:
        generator = np.random.default_rng(0)
        base, gain = 500.0 + 300.0 * generator.random((1, 400)), 60.0 * generator.normal(size=(1, 400))
        row = compare(pd.concat([table(base, "infonce"), table(base + gain, "ours")])).set_index("metric").loc["mean_km"]
        assert row["ci_high"] - row["ci_low"] == pytest.approx(2 * 1.96 * gain.std() / math.sqrt(400), rel=0.1)

    def test_seeds_that_disagree_widen_it(self) -> None:
        base = lognormal(0, (3, 100))
        agreeing = base - 10.0
        disagreeing = base - np.array([[-80.0], [0.0], [110.0]])
        widths = []
        for ours in (agreeing, disagreeing):
            row = compare(pd.concat([table(base, "infonce"), table(ours, "ours")]), resamples=300).set_index("metric").loc["mean_km"]
            assert row["difference"] == pytest.approx(-10.0)
            widths.append(row["ci_high"] - row["ci_low"])
        assert widths[1] > 100.0 > widths[0] + 99.0

    def test_it_is_seeded(self) -> None:
        predictions = pd.concat([table(lognormal(0, (2, 30)), "infonce"), table(lognormal(1, (2, 30)), "ours")])
        pd.testing.assert_frame_equal(compare(predictions, resamples=100), compare(predictions, resamples=100))
        assert not compare(predictions, resamples=100, seed=1)["ci_low"].equals(compare(predictions, resamples=100)["ci_low"])

    def test_the_published_model_stands_against_every_seed(self) -> None:
        """One model, three seeds of ours: as if it had been listed three times."""
        ours, theirs = table(lognormal(0, (3, 80)), "infonce"), lognormal(1, (1, 80))
        once = compare(pd.concat([ours, table(theirs, "geoclip_pretrained")]), resamples=200)
        thrice = compare(pd.concat([ours, table(theirs.repeat(3, 0), "other")]), resamples=200)
        pd.testing.assert_frame_equal(once.drop(columns="strategy"), thrice.drop(columns="strategy"))

    def test_other_photos_or_seeds_cannot_be_compared(self) -> None:
        for ours in (table(lognormal(1, (2, 29)), "ours"), table(lognormal(1, (1, 30)), "ours")):
            with pytest.raises(ValueError, match="ours and infonce were not evaluated on the same photos and seeds of split test"):
                compare(pd.concat([table(lognormal(0, (2, 30)), "infonce"), ours]), resamples=100)


class TestGroups:
    def test_a_groups_numbers_are_the_mean_over_seeds_of_its_photos(self) -> None:
        errors = lognormal(0, (2, 10))
        groups = pd.Series(["north"] * 4 + ["south"] * 5 + [None], index=[f"p{k:04d}" for k in range(10)])
        found = by_group(table(errors, "infonce"), groups, "half").set_index("half")
        assert found["n"].to_dict() == {"north": 4, "south": 5}
        for half, chosen in (("north", errors[:, :4]), ("south", errors[:, 4:9])):
            for metric in METRICS:
                expected = np.mean([naive(row.tolist())[metric] for row in chosen])
                assert found.loc[half, metric] == pytest.approx(expected)

    def test_latitude_bands_stand_from_south_to_north(self) -> None:
        frame = pd.DataFrame({"id": list("abcd"), "latitude": [-90.0, -10.0, 44.9, 90.0]})
        bands = latitude_band(frame)
        assert bands.loc[list("abcd")].astype(str).tolist() == ["-90..-75", "-15..0", "30..45", "75..90"]
        assert bands.cat.ordered
        assert bands.is_monotonic_increasing


@pytest.fixture
def run(make_run: Runs, narrow: None) -> Run:
    """Two strategies with two seeds, trained for a step."""
    run = make_run("training.epochs=1", "training.batch_size=96", "training.seeds=0,1", "training.strategies=infonce,residual",
                   "evaluation.bootstrap=100")  # fmt: skip
    training.train_all(run, ["infonce", "residual"])
    return run


class TestRun:
    def test_tables_predictions_and_bounds_of_a_trained_run(self, run: Run) -> None:
        """One run for several statements, for it takes four trainings."""
        found = evaluate(run)
        predictions, candidates = found["predictions"], gallery.coordinates(run, datasets.read(run))
        assert len(predictions) == 4 * (SIZES["test"] + SIZES["test_blocked"])
        manifest = world()[0].set_index("id")
        sphere = pyproj.Geod(a=EARTH_RADIUS_KM * 1000.0, f=0.0)
        for row in predictions.sample(30, random_state=0).itertuples(index=False):
            assert (row.latitude, row.longitude) == tuple(manifest.loc[row.id, ["latitude", "longitude"]])
            assert [row.predicted_latitude, row.predicted_longitude] in candidates.tolist()
            metres = sphere.inv(row.longitude, row.latitude, row.predicted_longitude, row.predicted_latitude)[2]
            assert row.error_km == pytest.approx(metres / 1000.0, abs=1e-3)

        # the last incomplete batch counts, each split for itself
        assert found["accuracy"].groupby("split")["n"].unique().to_dict() == {"test": [24], "test_blocked": [16]}
        assert list(found["accuracy"].columns)[:12] == DEMANDED
        pd.testing.assert_frame_equal(found["accuracy"], accuracy(predictions))
        assert set(found["comparison"]["strategy"]) == {"residual"}
        assert set(found["by_continent"]["continent"]) == set(manifest["continent"][manifest["split"].str.startswith("test")])

        # no gallery point is nearer than the nearest
        best = bounds(run, datasets.read(run), "test").set_index("strategy")
        assert best.loc["ceiling", "n"] == best.loc["chance", "n"] == 24
        ours = found["accuracy"][found["accuracy"]["split"] == "test"]
        assert (ours["mean_km"] >= best.loc["ceiling", "mean_km"]).all()
        truth = manifest[manifest["split"] == "test"][["latitude", "longitude"]].to_numpy()
        nearest = [min(sphere.inv(b, a, d, c)[2] for c, d in candidates) / 1000.0 for a, b in truth]
        assert best.loc["ceiling", "mean_km"] == pytest.approx(np.mean(nearest))
        errors = predictions[predictions["split"] == "test"].pivot(index=["strategy", "seed"], columns="id", values="error_km")
        assert (errors[manifest.index[manifest["split"] == "test"]].to_numpy() >= np.array(nearest) - 1e-6).all()

        evaluate(run)
        assert run.reports[-1].startswith("reused  evaluation")
        run.receipt("training-residual_seed1").unlink()  # else it would be called damaged
        run.checkpoint("residual", 1).write_bytes(run.checkpoint("residual", 0).read_bytes())
        again = predict_all(run, ["residual"], split_names=["validation"])
        assert len(again) == 2 * SIZES["validation"]
        assert again.groupby("id")["error_km"].nunique().max() == 1  # both seeds are the same network now

    def test_another_gallery_file_is_evaluated_anew(self, make_run: Runs, narrow: None, tmp_path: Path) -> None:
        places = tmp_path / "places.csv"
        places.write_text("LAT,LON\n10,20\n-10,30\n")
        run = make_run("training.epochs=1", "training.batch_size=96", "training.strategies=infonce", "evaluation.bootstrap=100",
                       f"evaluation.gallery={places}", "training.validate_every=1")  # fmt: skip
        training.train_all(run, ["infonce"])
        before = evaluate(run)["predictions"]
        places.write_text("LAT,LON\n60,100\n50,110\n55,120\n")
        after = evaluate(run)["predictions"]
        assert before["predicted_latitude"].isin([10.0, -10.0]).all()
        assert after["predicted_latitude"].isin([60.0, 50.0, 55.0]).all()

    def test_a_missing_checkpoint_is_named_with_its_notebook(self, make_run: Runs) -> None:
        with pytest.raises(ArtefactError, match=r"infonce_seed0\.safetensors is not there: run notebook"):
            evaluate(make_run("training.strategies=infonce"))

    def test_the_radii_are_the_fields(self) -> None:
        assert training.RADII_KM == {1: "street", 25: "city", 200: "region", 750: "country", 2500: "continent"}


def test_a_table_read_back_knows_north_america(tmp_path: Path) -> None:
    frame = pd.DataFrame({"continent": ["NA", "EU", None], "value": [1.0, math.nan, 2.0]})
    evaluation.save_table(frame, tmp_path / "table.csv")
    found = manifest.read_table(tmp_path / "table.csv")
    assert found["continent"].tolist()[:2] == ["NA", "EU"] and found["continent"].isna().tolist() == [False, False, True]
    assert found["value"].isna().tolist() == [False, True, False]
