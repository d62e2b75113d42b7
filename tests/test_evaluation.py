"""Statements about errors at granularity: what a table says is what a naive count says, and intervals keep
their promise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyproj
import pytest
from conftest import SIZES, Runs, lognormal, table, world

from lib.data import features, manifest
from lib.evaluate import evaluation, intervals
from lib.evaluate.evaluation import accuracy, bounds, evaluate
from lib.method.geodesy import EARTH_RADIUS_KM
from lib.runs import Run
from lib.train import gallery, training

DEMANDED = ["strategy", "seed", "split", "n", "acc_1km", "acc_25km", "acc_200km", "acc_750km", "acc_2500km"]
DEMANDED += ["median_km", "mean_km", "geoscore"]
METRICS = [*DEMANDED[4:], "acc_100km"]


def naive(errors: list[float]) -> dict[str, float]:
    """The metrics of the method, one photo after the other."""
    found = {
        f"acc_{radius}km": sum(1 for error in errors if error <= radius) / len(errors)
        for radius in (1, 25, 100, 200, 750, 2500)
    }
    ordered, middle = sorted(errors), len(errors) // 2
    found["median_km"] = ordered[middle] if len(errors) % 2 else (ordered[middle - 1] + ordered[middle]) / 2.0
    found["mean_km"] = sum(errors) / len(errors)
    found["geoscore"] = sum(5000.0 * math.exp(-error / 1492.7) for error in errors) / len(errors)
    return found


class TestAccuracy:
    def test_every_number_is_that_of_a_naive_count(self) -> None:
        blocked = table(lognormal(1, (2, 30)), "residual", "test_blocked")
        predictions = pd.concat([table(lognormal(0, (2, 41)), "infonce"), blocked])
        found = accuracy(predictions)
        assert len(found) == 4
        for row in found.itertuples(index=False):
            chosen = predictions.query("strategy == @row.strategy and seed == @row.seed")
            assert row.n == len(chosen)
            for name, value in naive(chosen["error_km"].tolist()).items():
                assert getattr(row, name) == pytest.approx(value), name


@pytest.fixture
def run(make_run: Runs, narrow: None) -> Run:
    """Two strategies with two seeds, trained for a step."""
    short = ("training.epochs=1", "training.batch_size=96", "evaluation.bootstrap=100")
    return make_run(*short, "training.seeds=0,1", "training.strategies=infonce,residual")


class TestRun:
    def test_tables_predictions_and_bounds_of_a_trained_run(self, run: Run) -> None:
        """One run for several statements, for it takes four trainings."""
        found = evaluate(run)
        predictions, candidates = found["predictions"], gallery.coordinates(run, features.photos(run))
        # two strategies with two seeds, and the nearest neighbour
        assert len(predictions) == 5 * (SIZES["test"] + SIZES["test_blocked"])
        manifest = world()[0].set_index("id")
        sphere = pyproj.Geod(a=EARTH_RADIUS_KM * 1000.0, f=0.0)
        for row in predictions.sample(30, random_state=0).itertuples(index=False):
            assert (row.latitude, row.longitude) == tuple(manifest.loc[row.id, ["latitude", "longitude"]])
            assert [row.predicted_latitude, row.predicted_longitude] in candidates.tolist()
            ends = row.longitude, row.latitude, row.predicted_longitude, row.predicted_latitude
            metres = sphere.inv(*ends)[2]
            assert row.error_km == pytest.approx(metres / 1000.0, abs=1e-3)

        # the last incomplete batch counts, each split for itself
        counts = found["accuracy"].groupby("split")["n"].unique().to_dict()
        assert counts == {"test": [24], "test_blocked": [16]}
        assert list(found["accuracy"].columns)[:12] == DEMANDED
        pd.testing.assert_frame_equal(found["accuracy"], accuracy(predictions))
        against = found["comparison"].groupby("baseline")["strategy"].unique().map(list).to_dict()
        assert against == {"infonce": ["residual", "nearest_neighbour"]}
        assert "nearest_neighbour" not in training.strategies_of(run)
        assert training.best_strategy(run)[0] in ("infonce", "residual")
        of_tests = manifest["continent"][manifest["split"].str.startswith("test")]
        assert set(found["by_continent"]["continent"]) == set(of_tests)

        # no gallery point is nearer than the nearest
        best = bounds(run, features.photos(run), ["test"]).set_index("strategy")
        assert best.loc["ceiling", "n"] == best.loc["chance", "n"] == 24
        ours = found["accuracy"][found["accuracy"]["split"] == "test"]
        assert (ours["mean_km"] >= best.loc["ceiling", "mean_km"]).all()
        truth = manifest[manifest["split"] == "test"][["latitude", "longitude"]].to_numpy()
        nearest = [min(sphere.inv(b, a, d, c)[2] for c, d in candidates) / 1000.0 for a, b in truth]
        assert best.loc["ceiling", "mean_km"] == pytest.approx(np.mean(nearest))
        of_test = predictions[predictions["split"] == "test"]
        errors = of_test.pivot(index=["strategy", "seed"], columns="id", values="error_km")
        ids = manifest.index[manifest["split"] == "test"]
        assert (errors[ids].to_numpy() >= np.array(nearest) - 1e-6).all()

    def test_another_gallery_file_is_evaluated_anew(
        self, make_run: Runs, narrow: None, tmp_path: Path
    ) -> None:
        places = tmp_path / "places.csv"
        short = ("training.epochs=1", "training.batch_size=96", "evaluation.bootstrap=100")
        run = make_run(*short, "training.strategies=infonce", f"evaluation.gallery={places}")
        for latitudes in ([10.0, -10.0], [60.0, 50.0, 55.0]):
            places.write_text("LAT,LON\n" + "".join(f"{latitude},20\n" for latitude in latitudes))
            found = evaluate(run)["predictions"].query("strategy == 'infonce'")
            assert found["predicted_latitude"].isin(latitudes).all()


def test_for_reading_accuracies_are_percent_and_by_groups_they_are_those_of_the_groups() -> None:
    predictions = table(lognormal(0, (2, 80)), "infonce")
    levels, none = accuracy(predictions), accuracy(table(np.full((1, 80), 1e4), "chance"))
    found = evaluation.for_reading(levels, none).loc[("test", "infonce"), "acc_200km"]
    assert found == pytest.approx(100 * levels["acc_200km"].mean(), abs=0.05) and found > 10
    groups = pd.Series({f"p{k:04d}": "few" if k < 10 else "many" for k in range(80)})
    few, many = intervals.levels_by_continent(predictions, groups).itertuples()
    for one in (few, many):
        hits = predictions.loc[predictions["id"].map(groups) == one.continent, "error_km"] <= 200
        assert one.value == pytest.approx(hits.mean()) and one.n == len(hits) / 2
    assert math.isnan(few.ci_low) and 0 <= many.ci_low < many.value < many.ci_high <= 1


def test_a_table_read_back_knows_north_america(tmp_path: Path) -> None:
    frame = pd.DataFrame({"continent": ["NA", "EU", None], "value": [1.0, math.nan, 2.0]})
    evaluation.save_table(frame, tmp_path / "table.csv")
    found = manifest.read_table(tmp_path / "table.csv")
    assert found["continent"].tolist()[:2] == ["NA", "EU"] and pd.isna(found["continent"].iloc[2])
    assert found["value"].isna().tolist() == [False, True, False]
