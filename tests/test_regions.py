"""Statements about where on Earth: cells of one area, honest intervals of many small groups, a field of error
without seams."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import table
from scipy import stats

from lib.data.sphere import EARTH_AREA_KM2, EqualAreaGrid, uniform_on_sphere
from lib.evaluate.intervals import LEAST_PHOTOS
from lib.evaluate.regions import cell_errors, cell_gains, continent_gains, error_field


def predictions(errors: dict[str, np.ndarray], places: np.ndarray, split: str = "test") -> pd.DataFrame:
    """Rows as predictions.parquet has them, of errors [S, N] in kilometres at ``places`` [N, 2]."""
    frame = pd.concat([table(matrix, name, split) for name, matrix in errors.items()], ignore_index=True)
    latitude, longitude = np.tile(places, (len(frame) // len(places), 1)).T
    return frame.assign(
        latitude=latitude, longitude=longitude, predicted_latitude=0.0, predicted_longitude=0.0
    )


def errors_of(hits: np.ndarray) -> np.ndarray:
    """10 km where it hits, 5,000 km elsewhere."""
    return np.where(hits, 10.0, 5_000.0)


class TestEqualAreaGrid:
    @pytest.mark.parametrize("side_km", [500.0, 1_000.0, 2_000.0, 30_000.0])
    def test_every_cell_has_the_same_area_and_together_they_are_the_earth(self, side_km: float) -> None:
        grid = EqualAreaGrid.of(side_km)
        south, west, north, east = np.deg2rad(grid.bounds_of(np.arange(grid.counts.sum()))).T
        area = (east - west) * (np.sin(north) - np.sin(south)) / (4.0 * np.pi)
        assert area == pytest.approx(np.full(len(area), 1.0 / len(area)), rel=1e-9)
        if side_km < 10_000.0:
            assert EARTH_AREA_KM2 / len(area) == pytest.approx(side_km**2, rel=0.05)

    def test_poles_and_the_180th_meridian_have_a_cell(self) -> None:
        grid = EqualAreaGrid.of(1_000.0)
        corners = grid.cell_of(np.array([[-90.0, 0.0], [90.0, 179.999999], [0.0, 180.0], [0.0, -180.0]]))
        assert corners[0] >= 0 and corners[1] == grid.counts.sum() - 1
        assert corners[2] == corners[3]


class TestGains:
    def test_a_gain_is_found_where_it_is_and_nowhere_else(self) -> None:
        generator = np.random.default_rng(0)
        places = np.column_stack((np.zeros(600), np.repeat(np.arange(6) * 50.0 - 150.0, 100)))
        base = generator.random((3, 600)) < 0.5
        better = base | ((places[:, 1] == -50.0) & (generator.random((3, 600)) < 0.5))
        table = cell_gains(
            predictions({"infonce": errors_of(base), "decayed": errors_of(better)}, places),
            sides_km=[2_000.0],
        )
        said = table[table["metric"] == "acc_200km"].set_index("west")["verdict"]
        assert (said == "gains").sum() == 1 and (said == "not shown").sum() == 5
        found = table[(table["verdict"] == "gains") & (table["metric"] == "acc_200km")].iloc[0]
        assert found["west"] <= -50.0 <= found["east"] and found["n"] == 100
        assert (
            found["corrected_low"]
            < found["ci_low"]
            < found["difference"]
            < found["ci_high"]
            < found["corrected_high"]
        )

    def test_few_photos_have_a_difference_and_no_interval(self) -> None:
        places = np.column_stack(
            (np.zeros(40), np.repeat([0.0, 90.0], [LEAST_PHOTOS - 1, 41 - LEAST_PHOTOS]))
        )
        hits = np.random.default_rng(0).random((2, 2, 40)) < 0.5
        table = cell_gains(
            predictions({"infonce": errors_of(hits[0]), "decayed": errors_of(hits[1])}, places),
            sides_km=[2_000.0],
        )
        few = table[table["n"] < LEAST_PHOTOS]
        assert len(few) and (few["verdict"] == "too few photos").all() and few["ci_low"].isna().all()
        assert table["comparisons"].eq(1).all()

    def test_continents_are_corrected_for_strategies_too(self) -> None:
        places, generator = uniform_on_sphere(200, np.random.default_rng(0)), np.random.default_rng(1)
        continents = pd.Series(np.repeat(["Africa", "Asia"], 100), index=[f"p{k:04d}" for k in range(200)])
        hits = {name: errors_of(generator.random((2, 200)) < 0.5) for name in ("infonce", "a", "b", "c")}
        assert continent_gains(predictions(hits, places), continents)["comparisons"].eq(6).all()

    def test_a_cell_is_named_by_the_country_of_most_of_its_photos(self) -> None:
        frame = predictions({"infonce": np.ones((1, 3)), "decayed": np.ones((1, 3))}, np.full((3, 2), 1.0))
        countries = pd.Series(["BR", "BR", "PE"], index=["p0000", "p0001", "p0002"])
        assert set(cell_gains(frame, countries)["place"]) == {"Brazil"}
        assert set(cell_gains(frame)["place"]) == {""}


class TestErrors:
    def test_a_cells_figures_are_those_of_its_photos_over_seeds(self) -> None:
        errors = np.array([[10.0, 20, 30, 40, 300], [10.0, 20, 30, 40, 300]])
        (row,) = cell_errors(predictions({"infonce": errors}, np.zeros((5, 2)))).to_dict("records")
        assert (row["n"], row["seeds"]) == (5, 2)
        assert row["mean_km"] == pytest.approx(errors.mean())
        assert row["median_km"] == pytest.approx(np.median(errors))
        low, high = stats.ttest_1samp(errors.mean(0), 0.0).confidence_interval()
        assert (row["mean_low"], row["mean_high"]) == (pytest.approx(max(0.0, low)), pytest.approx(high))


class TestErrorField:
    def test_near_one_photo_it_is_that_photos_error_and_far_away_it_rests_on_none(self) -> None:
        field = error_field(
            predictions({"infonce": np.array([[500.0, 80.0]])}, np.array([[0.0, 0.0], [0.0, 90.0]])), side=60
        )
        assert field.typical_km["infonce"][30, 30] == pytest.approx(500.0)
        assert field.typical_km["infonce"][30, 45] == pytest.approx(80.0)
        assert field.photos[30, 30] == pytest.approx(np.exp(-0.5 * (471.7 / 300.0) ** 2), rel=0.02)
        assert field.photos[30, 5] == 0.0

    def test_it_has_no_seam_at_the_180th_meridian(self) -> None:
        field = error_field(predictions({"infonce": np.array([[500.0]])}, np.array([[0.0, 180.0]])), side=80)
        assert field.photos[:, 0] == pytest.approx(field.photos[:, -1], rel=1e-9)
        assert field.photos[40, 0] > 0.3

    def test_it_is_a_geometric_mean_over_seeds(self) -> None:
        field = error_field(
            predictions({"infonce": np.array([[10.0], [1_000.0]])}, np.zeros((1, 2))), side=40
        )
        assert field.typical_km["infonce"][20, 20] == pytest.approx(100.0)
