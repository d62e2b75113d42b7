"""Statements about variography: candidates are judged alike, a resample is of places."""

from __future__ import annotations

import math

import gstools
import numpy as np
import pandas as pd
import pytest
from conftest import Runs, fitted, world
from test_semivariogram import LAG, measured, unit_rows

from lib.data.sphere import uniform_on_sphere
from lib.method.empirical import EmpiricalSemivariogram, exact
from lib.method.geodesy import pairwise_distance_rad, unit_vectors
from lib.method.semivariogram import fit
from lib.train import curve
from study import variography
from study.variography import VariographyError, lag_edges, place_groups, place_sums

RISE = 0.1 + 0.8 * (1.0 - np.exp(-LAG / 0.3))
LEGENDRE = np.polynomial.legendre.leggauss(800)
"""Nodes and weights of an integral over -1..1."""


def wavy(coordinates: np.ndarray, dimension: int, seed: int, frequency: float = 4.0) -> np.ndarray:
    """A stationary field on the sphere, float32 [N, dimension]: each dimension a sum of random waves of the
    places' vectors."""
    generator = np.random.default_rng(seed)
    waves = frequency * generator.normal(size=(3, dimension * 16))
    phase = generator.uniform(0.0, 2.0 * math.pi, dimension * 16)
    return (
        np.cos(unit_vectors(coordinates) @ waves + phase).reshape(-1, dimension, 16).sum(2).astype(np.float32)
    )


class TestCressie:
    def test_the_other_weights_are_gstools_own_bit_for_bit(self) -> None:
        pairs = (1_000 * np.sin(LAG) + 20).astype(int)
        gamma = RISE + 0.01 * np.random.default_rng(2).normal(size=len(LAG))
        empirical = measured(gamma, LAG, pairs)
        for weights, root in (("none", None), ("pairs", np.sqrt(pairs))):
            model = gstools.Stable(dim=2)
            expected, _ = model.fit_variogram(
                empirical.lag_rad, empirical.gamma, nugget=True, weights=root, loss="linear"
            )
            found = fit(empirical, weights=weights)
            assert (found.nugget, found.partial_sill, found.length_scale_rad) == (
                expected["nugget"],
                expected["var"],
                expected["len_scale"],
            )

    def test_from_a_start_it_arrives_at_the_same_curve(self) -> None:
        empirical = measured(RISE, LAG)
        whole = fit(empirical, family="Exponential")
        again = fit(
            empirical,
            family="Exponential",
            start=fitted(family="Exponential", exponent=None, length_scale_rad=0.5),
        )
        assert again.length_scale_rad == pytest.approx(whole.length_scale_rad, rel=1e-4)


class TestMerged:
    def test_wider_lags_hold_the_same_pairs(self) -> None:
        fine = measured(RISE, LAG, np.arange(157))
        coarse, edges = variography.merged(fine, 30)
        assert len(edges) == len(coarse.pairs) + 1 <= 31
        assert (edges[0], edges[-1]) == (0.0, pytest.approx(157 * fine.lag_width_rad))
        assert (np.diff(edges) > 0).all()
        for k in range(len(coarse.pairs)):
            inside = np.digitize(LAG, edges) == k + 1
            assert coarse.pairs[k] == fine.pairs[inside].sum()
            assert coarse.gamma_sum[k] == pytest.approx(fine.gamma_sum[inside].sum())


class TestValidity:
    @pytest.mark.parametrize(
        ("family", "exponent", "length"),
        [("Exponential", None, 0.5), ("Exponential", None, 3.0), ("Spherical", None, 0.7),
         ("Spherical", None, 5.0), ("Stable", 0.6, 0.4), ("Stable", 1.0, 2.0), ("Stable", 1.3, 5.0),
         ("Stable", 1.8, 2.0), ("Matern", 0.3, 0.5), ("Matern", 0.5, 2.0), ("Matern", 1.2, 2.0),
         ("Gaussian", None, 1.5), ("Rational", 0.6, 0.5), ("Rational", 1.5, 1.0), ("Rational", 5.0, 2.0)],
    )  # fmt: skip
    def test_valid_means_no_negative_legendre_coefficient(
        self, family: str, exponent: float | None, length: float
    ) -> None:
        """Schoenberg: a function of the angle is a covariance on the sphere if and only if none of its
        coefficients is negative."""
        node, weight = LEGENDRE
        angle, weight = 0.5 * math.pi * (node + 1.0), 0.5 * math.pi * weight
        model = fitted(family=family, exponent=exponent, length_scale_rad=length)
        values = model.correlation(angle) * np.sin(angle) * weight
        coefficients = values @ np.polynomial.legendre.legvander(np.cos(angle), 119)
        expected = "yes" if min(coefficients) > -1e-9 else "no"
        assert variography.valid_on_sphere(family, "planar", exponent) == expected
        assert variography.valid_on_sphere(family, "sphere", exponent) == "yes"


class TestCandidates:
    @pytest.fixture(scope="class")
    @classmethod
    def table(cls) -> pd.DataFrame:
        """An exponential curve, noise of the size that its pairs suggest."""
        lag = (np.arange(314) + 0.5) * 0.01
        pairs = (50_000 * np.sin(lag) + 50).astype(int)
        gamma = (
            0.1
            + 0.8 * (1.0 - np.exp(-lag / 0.3))
            + 0.3 * np.random.default_rng(0).normal(size=314) / np.sqrt(pairs)
        )
        even = measured(gamma, lag, pairs)
        spread = EmpiricalSemivariogram(0.01, pairs, lag * pairs, gamma * pairs, (gamma**2 + 0.09) * pairs)
        assert np.allclose(spread.gamma, even.gamma)
        return variography.candidates_table(spread, lags=40, folds=4)

    def test_every_model_is_a_row(self, table: pd.DataFrame) -> None:
        assert len(table) == 24 == len(table.drop_duplicates(["family", "metric", "weights"]))
        assert table["delta_aic"].min() == 0.0

    def test_families_that_hold_the_truth_predict_lags_that_they_have_not_seen(
        self, table: pd.DataFrame
    ) -> None:
        best = table[table["metric"] == "planar"].groupby("family")["held_out_rmse"].min()
        assert max(best["Exponential"], best["Matern"]) < min(best["Gaussian"], best["Spherical"]) / 3
        aic = table[table["metric"] == "planar"].groupby("family")["aic"].min()
        assert aic["Exponential"] < min(aic["Gaussian"], aic["Spherical"]) - 50

    def test_the_choice_is_the_smallest_held_out_error(self, table: pd.DataFrame) -> None:
        best = variography.choose(table)
        assert best["held_out_rmse"] == table["held_out_rmse"].min()
        assert best["aic_choice"] == " ".join(
            table.loc[table["aic"].idxmin(), ["family", "metric", "weights"]]
        )
        assert variography.choose(table, only_valid=True)["valid_on_sphere"] == "yes"

    def test_its_aic_is_the_stated_formula(self, table: pd.DataFrame) -> None:
        one, other = (
            table[
                (table["family"] == "Exponential")
                & (table["metric"] == "planar")
                & (table["weights"] == name)
            ].iloc[0]
            for name in ("pairs", "none")
        )
        assert one["aic"] <= other["aic"] + 1e-6  # pairs / a constant variance is what `pairs` minimises

    def test_a_curve_that_does_not_rise_gives_reasons_not_an_error(self) -> None:
        table = variography.candidates_table(measured(1.0 - 0.2 * LAG, LAG), lags=30, folds=3)
        assert table["aic"].isna().all()
        assert table["note"].str.contains("beats a constant").all()
        with pytest.raises(VariographyError, match="no candidate"):
            variography.choose(table.assign(valid_on_sphere="yes"))


class TestPlaceSums:
    @pytest.mark.parametrize("block", [1, 17, 60, 200])
    def test_it_is_a_double_loop_over_the_pairs(self, block: int) -> None:
        manifest, features = world({"train": 60})
        coordinates = manifest[["latitude", "longitude"]].to_numpy(copy=True)
        groups = np.random.default_rng(0).integers(5, size=60)
        groups[:5] = range(5)
        edges = lag_edges(12, 0.1)
        found = place_sums(unit_rows(features), coordinates, groups, edges, block=block)
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        pairs, gamma, square = np.zeros((5, 5, 12)), np.zeros((5, 5, 12)), np.zeros(12)
        distances = pairwise_distance_rad(coordinates, coordinates)
        for i in range(60):
            for j in range(i + 1, 60):
                low, high = sorted((groups[i], groups[j]))
                lag = min(int(np.searchsorted(edges, distances[i, j], side="right")) - 1, 11)
                value = 1.0 - float(unit[i].astype(float) @ unit[j])
                pairs[low, high, lag] += 1
                gamma[low, high, lag] += value
                square[lag] += value**2
        assert np.array_equal(found.pairs, pairs)
        assert np.allclose(found.gamma_sum, gamma, atol=1e-5)
        assert np.allclose(found.square_sum, square, atol=1e-5)
        assert found.places.tolist() == np.bincount(groups).tolist()

    def test_its_curve_is_that_of_estimate(self) -> None:
        manifest, features = world({"train": 90})
        coordinates = manifest[["latitude", "longitude"]].to_numpy(copy=True)
        even = np.minimum(np.arange(33) * 0.1, math.pi)
        found = place_sums(
            unit_rows(features), coordinates, place_groups(coordinates, count=7), even
        ).empirical
        expected = exact(unit_rows(features), coordinates, 0.1)
        assert np.array_equal(found.pairs, expected.pairs)
        assert np.allclose(found.gamma, expected.gamma, atol=1e-6, equal_nan=True)
        assert np.allclose(found.variance, expected.variance, atol=1e-6, equal_nan=True)
        assert np.allclose(found.lag_rad, expected.lag_rad, atol=1e-9, equal_nan=True)

    def test_a_resample_weighs_pairs_by_how_often_their_groups_were_drawn(self) -> None:
        generator = np.random.default_rng(3)
        total = np.triu(np.ones((4, 4)))[:, :, None] * generator.uniform(size=(4, 4, 6))
        draws = generator.multinomial(4, [0.25] * 4, size=90).astype(float)
        found = variography._weighted(draws, total)
        for m, row in zip(draws, found, strict=True):
            expected = sum(
                m[g] * (m[h] if g != h else 1.0) * total[g, h] for g in range(4) for h in range(g, 4)
            )
            assert np.allclose(row, expected)
        assert np.allclose(variography._weighted(np.ones((1, 4)), total)[0], total.sum((0, 1)))


class TestBootstrap:
    def test_resampled_places_cover_the_curve_and_independent_pairs_do_not(self) -> None:
        """150 samples of 150 places out of one field; what is covered is the curve of all of its places."""
        edges = np.array([0.0, 0.4, 0.8, 1.3, 2.0, math.pi])
        many = uniform_on_sphere(2_500, np.random.default_rng(0))
        truth = place_sums(unit_rows(wavy(many, 3, seed=5)), many, place_groups(many), edges).empirical.gamma
        by_places, by_pairs = [], []
        for seed in range(150):
            places = uniform_on_sphere(150, np.random.default_rng(1_000 + seed))
            sums = place_sums(
                unit_rows(wavy(places, 3, seed=5)), places, place_groups(places, count=50, seed=seed), edges
            )
            low, high = variography._band(np.array([curve.gamma for curve in sums.resampled(200, seed)]))
            by_places.append((low <= truth) & (truth <= high))
            naive = np.sqrt(sums.empirical.variance / sums.empirical.pairs)
            by_pairs.append(np.abs(sums.empirical.gamma - truth) <= 1.96 * naive)
        assert 0.90 <= np.mean(by_places) <= 0.995
        assert np.mean(by_pairs) < 0.80

    def test_intervals_of_the_parameters_hold_the_fit_and_shrink_with_more_places(self) -> None:
        widths = []
        for count in (200, 800):
            places = uniform_on_sphere(count, np.random.default_rng(1))
            sums = place_sums(
                unit_rows(wavy(places, 16, seed=2)),
                places,
                place_groups(places, count=40),
                lag_edges(30, 0.05),
            )
            table = (
                variography.bands(sums, resamples=40, family="Gaussian", metric="sphere", weights="pairs")
                .table()
                .set_index("parameter")
            )
            assert list(table.index) == [
                "nugget",
                "partial_sill",
                "sill",
                "length_scale_km",
                "range_slope_km",
                "range_sill95_km",
                "range_band_km",
            ]
            assert (table["ci_low"] <= table["value"] + 1e-9).all() and (
                table["value"] <= table["ci_high"] + 1e-9
            ).all()
            widths.append(table.loc["length_scale_km", "ci_high"] - table.loc["length_scale_km", "ci_low"])
        assert widths[1] < 0.8 * widths[0]

    def test_the_range_by_the_band_is_where_the_upper_bound_meets_the_sill(self) -> None:
        lag, upper = np.array([0.1, 0.2, 0.3, 0.4]), np.array([2.0, 0.5, 1.0, 1.1])
        assert variography.range_by_band(lag, upper, 1.0, np.array([29, 30, 30, 30])) == 0.3
        assert variography.range_by_band(lag, upper, 1.0, np.array([30, 30, 30, 30])) == 0.1
        assert variography.range_by_band(lag, upper, 3.0, np.array([30, 30, 30, 30])) == math.pi


class TestRun:
    def test_the_whole_examination_is_reused_and_its_bands_come_back_as_they_were(
        self, make_run: Runs
    ) -> None:
        run = make_run("semivariogram.lag_width_rad=0.02", sizes={"train": 700, "validation": 24, "test": 24})
        curve.fit_run(run)
        first, again = variography.examine(run, resamples=20), variography.examine(run, resamples=20)
        assert [report.split()[0] for report in run.reports] == ["made", "made", "reused"]
        assert first.bands.fitted == again.bands.fitted and first.bands.draws.equals(again.bands.draws)
        expected = fit(curve.load_empirical(run.empirical))
        assert again.bands.fitted.sill == pytest.approx(expected.sill, rel=0.05)
        assert set(again.intervals["resampled"]) == {"places", "cells of 10 degrees"}
        assert len(again.models) == 24
