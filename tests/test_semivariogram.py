"""Statements about the semivariogram: the estimate is a mean over pairs, the fit finds a known field, the curve is its model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import gstools
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Runs, fitted, world
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from sklearn.metrics.pairwise import haversine_distances

from lib import semivariogram
from lib.geodesy import EARTH_RADIUS_KM, uniform_on_sphere
from lib.semivariogram import Curve, EmpiricalSemivariogram, SemivariogramError, estimate, fit, load

FAMILIES = ["Stable", "Exponential", "Gaussian", "Spherical", "Matern", "Rational"]
SHAPE = {"Stable": ("alpha", 0.8), "Matern": ("nu", 0.8), "Rational": ("alpha", 1.5)}


def unit_rows(features: np.ndarray) -> Callable[[np.ndarray], torch.Tensor]:
    """What ``estimate`` reads: features of the given rows at unit length."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return lambda rows: torch.from_numpy(unit[rows]).float()


def brute_force(features: np.ndarray, coordinates: np.ndarray, width: float) -> dict[str, np.ndarray]:
    """Count, mean distance, mean and variance of 1 - cosine in each lag: a double loop over the pairs."""
    lags = math.ceil(math.pi / width)
    distances, values = [[] for _ in range(lags)], [[] for _ in range(lags)]
    for i in range(len(features)):
        for j in range(i + 1, len(features)):
            (la, lo), (lb, lp) = np.deg2rad(coordinates[i]), np.deg2rad(coordinates[j])
            cosine = math.sin(la) * math.sin(lb) + math.cos(la) * math.cos(lb) * math.cos(lo - lp)
            h = math.acos(min(1.0, max(-1.0, cosine)))
            norm = math.sqrt(float(features[i] @ features[i])) * math.sqrt(float(features[j] @ features[j]))
            distances[min(int(h / width), lags - 1)].append(h)
            values[min(int(h / width), lags - 1)].append(1.0 - float(features[i] @ features[j]) / norm)
    mean = [np.mean(found) if found else np.nan for found in values]
    return {
        "pairs": np.array([len(found) for found in values]),
        "lag_rad": np.array([np.mean(found) if found else np.nan for found in distances]),
        "gamma": np.array(mean),
        "variance": np.array([np.var(found) if found else np.nan for found in values]),
    }


def small_world(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    manifest, features = world({"train": count})
    return features.astype(np.float64), manifest[["latitude", "longitude"]].to_numpy(copy=True)


def measured(gamma: np.ndarray, lag: np.ndarray, pairs: np.ndarray | int = 1_000) -> EmpiricalSemivariogram:
    """An empirical semivariogram with these means."""
    pairs = np.broadcast_to(pairs, gamma.shape)
    return EmpiricalSemivariogram(float(lag[1] - lag[0]), pairs, lag * pairs, gamma * pairs, gamma**2 * pairs)


LAG = (np.arange(157) + 0.5) * 0.02


class TestEstimate:
    @pytest.mark.parametrize("width", [0.05, 0.31, 1.0])
    def test_it_is_the_mean_over_the_pairs_of_each_lag(self, width: float) -> None:
        features, coordinates = small_world()
        found = estimate(unit_rows(features), coordinates, width)
        expected = brute_force(features, coordinates, width)
        assert np.array_equal(found.pairs, expected["pairs"])
        for name in ("lag_rad", "gamma", "variance"):
            assert np.allclose(getattr(found, name), expected[name], atol=2e-6, equal_nan=True), name

    def test_a_lag_without_pairs_is_nan_and_left_out_of_the_table(self) -> None:
        features, coordinates = small_world(4)
        found = estimate(unit_rows(features), coordinates, 0.02)
        empty = found.pairs == 0
        assert empty.any()
        for name in ("gamma", "lag_rad", "variance"):
            assert np.array_equal(np.isnan(getattr(found, name)), empty)
        assert len(found.table()) == (~empty).sum()
        assert found.table()["pairs"].sum() == 6

    @pytest.mark.parametrize("block", [1, 7, 30, 59, 60, 61])
    def test_blocks_of_any_size_add_up_to_the_same(self, block: int) -> None:
        features, coordinates = small_world()
        whole = estimate(unit_rows(features), coordinates, 0.2, block=1_000)
        parts = estimate(unit_rows(features), coordinates, 0.2, block=block)
        assert np.array_equal(parts.pairs, whole.pairs)
        for name in ("distance_sum_rad", "gamma_sum", "square_sum"):
            assert np.allclose(getattr(parts, name), getattr(whole, name), atol=1e-4)

    def test_sums_of_machines_add_up_and_other_lags_do_not(self) -> None:
        features, coordinates = small_world()
        north, south = coordinates[:, 0] >= 0.0, coordinates[:, 0] < 0.0
        whole = estimate(unit_rows(features), coordinates, 0.2)
        halves = [estimate(unit_rows(features[part]), coordinates[part], 0.2) for part in (north, south)]
        between = whole.pairs - halves[0].pairs - halves[1].pairs
        assert (halves[0] + halves[1]).pairs.sum() + north.sum() * south.sum() == whole.pairs.sum()
        assert between.min() >= 0
        with pytest.raises(SemivariogramError, match="same lags"):
            halves[0] + estimate(unit_rows(features), coordinates, 0.1)

    def test_wider_lags_hold_the_same_sums(self) -> None:
        features, coordinates = small_world()
        fine, wide = (estimate(unit_rows(features), coordinates, width) for width in (0.1, 0.4))
        coarse = fine.coarsened(4)
        assert coarse.lag_width_rad == pytest.approx(0.4)
        assert np.array_equal(coarse.pairs, wide.pairs)
        assert np.allclose(coarse.gamma, wide.gamma, equal_nan=True, atol=1e-6)
        assert fine.coarsened(5).pairs.sum() == 60 * 59 // 2

    def test_photos_of_one_place_and_antipodes_fall_into_the_first_and_the_last_lag(self) -> None:
        coordinates = np.array([[20.0, 30.0], [20.0, 30.0], [-20.0, -150.0]])
        found = estimate(unit_rows(np.eye(3)), coordinates, 0.001)
        assert found.pairs[0] == 1
        assert found.pairs[-1] == 2
        assert found.gamma[0] == found.gamma[-1] == pytest.approx(1.0)

    def test_one_photo_and_lost_coordinates_and_features_are_refused(self) -> None:
        features, coordinates = small_world(5)
        with pytest.raises(SemivariogramError, match="at least two photos; there are 1"):
            estimate(unit_rows(features[:1]), coordinates[:1])
        with pytest.raises(ValueError, match="coordinate is not finite"):
            estimate(unit_rows(features), np.where(np.arange(5)[:, None] == 3, np.nan, coordinates))
        features[:, 0] = np.nan
        for max_pairs in (10, 9):  # exact, sampled
            with pytest.raises(ValueError, match="feature is not finite"):
                estimate(unit_rows(features), coordinates, max_pairs=max_pairs)


@pytest.fixture(scope="module")
def clustered() -> tuple[Callable[[np.ndarray], torch.Tensor], np.ndarray, EmpiricalSemivariogram]:
    """1,500 photos, 300 of them around one place, where most short lags are; their exact semivariogram."""
    generator = np.random.default_rng(1)
    coordinates = uniform_on_sphere(1_500, generator, 70.0)
    coordinates[:300] = generator.normal([45.0, 10.0], 3.0, (300, 2))
    phase = np.deg2rad(coordinates) @ generator.normal(size=(2, 16)) * 2.0 + generator.uniform(0, 6, 16)
    rows = unit_rows(np.cos(phase) + 0.3 * generator.normal(size=(1_500, 16)))
    return rows, coordinates, estimate(rows, coordinates, 0.01)


@pytest.fixture(scope="module")
def sampled(clustered: tuple) -> tuple[EmpiricalSemivariogram, list[EmpiricalSemivariogram]]:
    """The exact semivariogram, and 16 sampled ones of a tenth of the pairs."""
    rows, coordinates, exact = clustered
    return exact, [estimate(rows, coordinates, 0.01, max_pairs=110_000, seed=seed) for seed in range(16)]


class TestSampledEstimate:
    def test_in_each_lag_it_agrees_with_the_exact_one_within_its_standard_error(self, sampled: tuple) -> None:
        exact, parts = sampled
        gamma = np.stack([part.gamma for part in parts])
        full = (np.stack([part.pairs for part in parts]).min(0) >= 30) & (exact.pairs > 0)
        assert full.sum() > 200
        error = gamma[:, full].std(0, ddof=1) / math.sqrt(len(parts))
        z = (gamma[:, full].mean(0) - exact.gamma[full]) / np.maximum(error, 1e-7)
        assert np.abs(z).max() < 6.0
        assert 0.8 < np.sqrt(np.mean(z**2)) < 1.35
        assert abs(z.mean()) < 0.3

    def test_beyond_the_near_lags_its_own_standard_error_is_honest(self, sampled: tuple) -> None:
        exact, parts = sampled
        far = (np.arange(len(exact.pairs)) >= 5) & (np.stack([part.pairs for part in parts]).min(0) >= 30)
        z = np.concatenate(
            [(part.gamma - exact.gamma)[far] / np.sqrt(part.variance[far] / part.pairs[far]) for part in parts]
        )
        assert np.mean(np.abs(z) < 2.0) == pytest.approx(0.954, abs=0.02)

    def test_short_lags_of_some_photos_only_are_unbiased(self, clustered: tuple) -> None:
        rows, coordinates, exact = clustered
        parts = [estimate(rows, coordinates, 0.01, max_pairs=8_000, seed=seed) for seed in range(40)]
        gamma = np.stack([part.gamma[:5] for part in parts])
        error = gamma.std(0, ddof=1) / math.sqrt(len(parts))
        assert error.min() > 1e-5  # not every near pair is in the sample
        assert np.abs((gamma.mean(0) - exact.gamma[:5]) / error).max() < 4.0

    def test_short_lags_hold_a_larger_share_of_the_sample_than_of_the_pairs(self, sampled: tuple) -> None:
        exact, parts = sampled
        share = parts[0].pairs / np.maximum(exact.pairs, 1)
        assert share[:5].min() > 3.0 * share[20:200].mean()

    def test_it_reads_no_more_than_was_asked_by_much_and_is_seeded(self, sampled: tuple) -> None:
        features, coordinates = small_world(200)
        one, two, other = (
            estimate(unit_rows(features), coordinates, 0.1, max_pairs=5_000, seed=seed) for seed in (3, 3, 4)
        )
        assert np.array_equal(one.gamma_sum, two.gamma_sum)
        assert not np.array_equal(one.gamma_sum, other.gamma_sum)
        assert max(part.pairs.sum() for part in sampled[1]) < 1.5 * 110_000

    def test_a_lag_wider_than_the_near_zone_is_estimated_as_well(self) -> None:
        features, coordinates = small_world(300)
        exact = estimate(unit_rows(features), coordinates, 0.5)
        part = estimate(unit_rows(features), coordinates, 0.5, max_pairs=20_000)
        assert np.allclose(part.gamma, exact.gamma, atol=6.0 * np.sqrt(exact.variance / part.pairs).max())


Field = tuple[np.ndarray, np.ndarray, gstools.CovModel]
"""Features [N, D]: D independent realisations of one random field on the sphere; places [N, 2]; the field's model."""


@pytest.fixture(scope="module")
def smooth_field() -> Field:
    """Made by GSTools itself, from a model whose spectrum it samples exactly."""
    model = gstools.Gaussian(latlon=True, var=0.8, len_scale=0.4, nugget=0.2)
    coordinates = uniform_on_sphere(600, np.random.default_rng(2))
    field = gstools.SRF(model, mode_no=100)
    return np.stack([field((coordinates[:, 0], coordinates[:, 1]), seed=seed) for seed in range(128)], 1), coordinates, model


@pytest.fixture(scope="module")
def rough_field() -> Field:
    """Made from the Cholesky factor of GSTools' covariance, since its generator only approximates this spectrum."""
    model = gstools.Exponential(latlon=True, var=0.8, len_scale=0.25, nugget=0.2)
    generator = np.random.default_rng(3)
    coordinates = uniform_on_sphere(600, generator)
    radians = np.deg2rad(coordinates)
    covariance = model.cov_yadrenko(haversine_distances(radians)) + 0.2 * np.eye(600)
    return np.linalg.cholesky(covariance) @ generator.normal(size=(600, 512)), coordinates, model


class TestRandomField:
    def test_the_estimate_is_that_of_gstools_summed_over_the_dimensions(self, smooth_field: Field) -> None:
        values, coordinates, _ = smooth_field
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        found = estimate(unit_rows(values), coordinates, 0.1)
        place, edges = (coordinates[:, 0], coordinates[:, 1]), np.arange(len(found.pairs) + 1) * 0.1
        _, matheron, counts = gstools.vario_estimate(place, list(unit.T), edges, latlon=True, return_counts=True)
        dimensions = values.shape[1]
        used = counts > 0
        assert used.sum() > 25
        assert np.array_equal(found.pairs, counts / dimensions)
        assert np.allclose(found.gamma[used], dimensions * matheron[used], atol=1e-5)

    @pytest.mark.parametrize("weights", ["none", "pairs"])
    @pytest.mark.parametrize("field", ["smooth_field", "rough_field"])
    def test_the_fit_recovers_nugget_sill_and_length_within_ten_percent(
        self, field: str, weights: str, request: pytest.FixtureRequest
    ) -> None:
        values, coordinates, model = request.getfixturevalue(field)
        empirical = estimate(unit_rows(values), coordinates, 0.05)
        found = fit(empirical, family=type(model).__name__, metric="sphere", weights=weights)
        # unit features divide by the field's sill (1 here), up to a relative 1 / D
        assert found.partial_sill == pytest.approx(model.var, rel=0.1)
        assert found.length_scale_rad == pytest.approx(model.len_scale, rel=0.1)
        assert found.nugget == pytest.approx(model.nugget, abs=0.04)
        assert found.sill == pytest.approx(1.0, rel=0.02)
        assert found.r2 > 0.99

    def test_a_stable_model_finds_the_exponential_field_to_have_exponent_one(self, rough_field: Field) -> None:
        values, coordinates, _ = rough_field
        found = fit(estimate(unit_rows(values), coordinates, 0.05), family="Stable", metric="sphere")
        assert found.exponent == pytest.approx(1.0, abs=0.15)


class TestFit:
    @pytest.mark.parametrize("metric", ["planar", "sphere"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_it_recovers_each_family_from_its_own_curve(self, family: str, metric: str) -> None:
        name, shape = SHAPE.get(family, ("", None))
        place = {"latlon": True} if metric == "sphere" else {"dim": 2}
        model = getattr(gstools, family)(**place, var=0.8, len_scale=0.3, nugget=0.1, **({name: shape} if name else {}))
        gamma = model.vario_yadrenko(LAG) if metric == "sphere" else model.variogram(LAG)
        found = fit(measured(gamma, LAG), family=family, metric=metric)
        assert (found.nugget, found.partial_sill, found.length_scale_rad) == pytest.approx((0.1, 0.8, 0.3), rel=1e-3)
        assert found.exponent == (pytest.approx(shape, rel=1e-3) if name else None)
        assert found.r2 == pytest.approx(1.0)
        assert (found.family, found.metric) == (family, metric)

    def test_the_stable_model_is_the_formula_of_the_method(self) -> None:
        n, c, length, a = 0.116, 0.872, 0.0727, 0.69
        gamma = np.array([n + c * (1.0 - math.exp(-((h / length) ** a))) for h in LAG])
        found = fit(measured(gamma, LAG))
        assert found.family == "Stable"
        assert (found.nugget, found.partial_sill, found.length_scale_rad, found.exponent) == pytest.approx((n, c, length, a), rel=1e-3)
        assert np.allclose(found.gamma(LAG), gamma, atol=1e-6)
        assert np.allclose(found.correlation(LAG), np.exp(-((LAG / length) ** a)), atol=1e-5)

    def test_on_the_sphere_the_distance_is_the_chord(self) -> None:
        found = fitted(family="Exponential", metric="sphere", exponent=None)
        expected = [0.1 + 0.85 * (1.0 - math.exp(-2.0 * math.sin(h / 2.0) / 0.3)) for h in LAG]
        assert np.allclose(found.gamma(LAG), expected, atol=1e-9)

    def test_at_distance_zero_two_photos_differ_by_the_nugget(self) -> None:
        assert fitted().gamma(np.array(0.0)) == pytest.approx(0.1, abs=1e-6)
        assert fitted().correlation(np.array(0.0)) == pytest.approx(1.0, abs=1e-6)

    def test_longer_lags_than_the_limit_are_left_out(self) -> None:
        gamma = 0.1 + 0.8 * (1.0 - np.exp(-LAG / 0.3))
        spoilt = np.where(LAG > 1.5, 0.2, gamma)
        found = fit(measured(spoilt, LAG), family="Exponential", max_lag_rad=1.5)
        assert found.length_scale_rad == pytest.approx(0.3, rel=1e-3)
        assert found.pairs == 157_000

    def test_unweighted_it_is_least_squares_over_the_lags(self) -> None:
        gamma = 0.1 + 0.8 * (1.0 - np.exp(-LAG / 0.3)) + 0.02 * np.random.default_rng(0).normal(size=len(LAG))
        found = fit(measured(gamma, LAG), family="Exponential")
        assert self.parameters(found) == pytest.approx(self.least_squares(gamma, np.ones(len(LAG))), rel=0.01)

    def test_weighted_it_is_least_squares_over_the_pairs(self) -> None:
        generator = np.random.default_rng(1)
        pairs = (1_000 * np.sin(LAG) + 20).astype(int)
        gamma = 0.1 + 0.8 * (1.0 - np.exp(-LAG / 0.3)) + generator.normal(size=len(LAG)) / np.sqrt(pairs)
        found = fit(measured(gamma, LAG, pairs), family="Exponential", weights="pairs")
        assert self.parameters(found) == pytest.approx(self.least_squares(gamma, np.sqrt(pairs)), rel=0.01)

    @staticmethod
    def parameters(found: semivariogram.FittedSemivariogram) -> tuple[float, float, float]:
        return found.nugget, found.partial_sill, found.length_scale_rad

    @staticmethod
    def least_squares(gamma: np.ndarray, weights: np.ndarray) -> list[float]:
        """Nugget, partial sill and length of the exponential model with the smallest weighted sum of squares."""
        best = least_squares(lambda p: weights * (gamma - p[0] - p[1] * (1.0 - np.exp(-LAG / p[2]))), [0.2, 0.6, 0.5])
        return best.x.tolist()

    @pytest.mark.parametrize(
        "gamma", [np.ones(157), np.zeros(157), 1.0 - 0.2 * LAG, 0.5 + 0.5 * np.exp(-LAG)], ids=["one", "zero", "line", "decay"]
    )
    def test_a_curve_that_does_not_rise_is_refused(self, gamma: np.ndarray) -> None:
        with pytest.raises(SemivariogramError, match="do not rise with distance.*check coordinates"):
            fit(measured(gamma, LAG))

    @pytest.mark.parametrize("seed", range(4, 6))
    def test_a_flat_curve_with_noise_is_refused_too(self, seed: int) -> None:
        gamma = 1.0 + 0.01 * np.random.default_rng(seed).normal(size=len(LAG))
        with pytest.raises(SemivariogramError):
            fit(measured(gamma, LAG))

    def test_a_falling_curve_whose_first_lag_is_low_is_refused_too(self) -> None:
        with pytest.raises(SemivariogramError):
            fit(measured(np.where(LAG < 0.02, 0.5, 1.0 - 0.2 * LAG), LAG))

    def test_a_rising_curve_is_fitted_though_its_first_lag_holds_one_odd_pair(self) -> None:
        gamma = 0.1 + 0.8 * (1.0 - np.exp(-LAG / 0.3))
        first = LAG < 0.02
        odd = measured(np.where(first, 1.2, gamma), LAG, np.where(first, 1, 100_000))
        found = fit(odd, family="Exponential", weights="pairs")
        assert found.length_scale_rad == pytest.approx(0.3, rel=0.05)

    def test_four_lags_are_too_few(self) -> None:
        with pytest.raises(SemivariogramError, match="4 lags with pairs are too few"):
            fit(measured(LAG[:4], LAG[:4]))


class TestRange:
    """By hand: exponential gamma' = (c/l) e^(-h/l) = 0.01 at l ln(100 c / l); 95 % of c at l ln 20."""

    @pytest.mark.parametrize(("c", "length"), [(0.8, 0.2), (0.872, 0.0727), (0.5, 0.3)])
    def test_slope_of_the_exponential_model(self, c: float, length: float) -> None:
        gamma = 0.1 + c * (1.0 - np.exp(-LAG / length))
        found = fit(measured(gamma, LAG), family="Exponential", range_rule="slope")
        assert found.range_rad == pytest.approx(length * math.log(100.0 * c / length), abs=0.0101)
        assert found.range_km == pytest.approx(found.range_rad * EARTH_RADIUS_KM)
        assert found.range_rule == "slope"

    @pytest.mark.parametrize("length", [0.1, 0.3])
    def test_95_percent_of_the_sill(self, length: float) -> None:
        gamma = 0.1 + 0.8 * (1.0 - np.exp(-LAG / length))
        found = fit(measured(gamma, LAG), family="Exponential", range_rule="sill95")
        assert found.range_rad == pytest.approx(length * math.log(20.0), abs=0.0011)

    def test_a_spherical_model_is_flat_from_its_length_on(self) -> None:
        model = gstools.Spherical(dim=2, var=1.0, len_scale=1.0)
        assert semivariogram.range_by_slope(model) == pytest.approx(1.0, abs=0.0101)
        # 1.5 h - 0.5 h^3 = 0.95 at h = 0.8114
        assert semivariogram.range_by_sill(model) == pytest.approx(0.8114, abs=0.0011)

    def test_a_curve_that_never_flattens_has_range_pi(self) -> None:
        endless = gstools.Exponential(dim=2, var=1.0, len_scale=10.0)
        assert semivariogram.range_by_slope(endless) == math.pi
        assert semivariogram.range_by_sill(endless) == math.pi


class TestSaved:
    @pytest.mark.parametrize("metric", ["planar", "sphere"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_json_gives_back_the_same_model(self, family: str, metric: str, tmp_path: Path) -> None:
        before = fitted(family=family, metric=metric, exponent=SHAPE[family][1] if family in SHAPE else None, nugget=1.0 / 3.0)
        before.save(tmp_path / "semivariogram.json")
        after = load(tmp_path / "semivariogram.json")
        assert after == before
        assert np.array_equal(after.gamma(LAG), before.gamma(LAG))
        assert json.loads((tmp_path / "semivariogram.json").read_text()) == asdict(before)

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"family": "Stable"}', "3"])
    def test_what_is_no_model_is_named(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(SemivariogramError, match=r"odd\.json: not a saved semivariogram.*notebook 03"):
            load(tmp_path / "odd.json")

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SemivariogramError, match=r"none\.json"):
            load(tmp_path / "none.json")


class TestCurve:
    DISTANCE = np.concatenate([[0.0], np.geomspace(1e-6, math.pi, 5_000)])

    @pytest.mark.parametrize("metric", ["planar", "sphere"])
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("length", [0.01, 0.5])
    def test_it_is_the_model_to_1e_5_of_the_sill(self, family: str, metric: str, length: float) -> None:
        model = fitted(family=family, metric=metric, length_scale_rad=length, exponent=SHAPE[family][1] if family in SHAPE else None)
        curve = Curve(model)
        for dtype in (torch.float32, torch.float64):
            found = curve.gamma(torch.tensor(self.DISTANCE, dtype=dtype))
            assert np.abs(found.numpy() - model.gamma(self.DISTANCE)).max() < 1e-5 * model.partial_sill

    @settings(max_examples=30)
    @given(st.floats(0.3, 2.0), st.floats(0.005, 2.0))
    def test_any_stable_exponent_and_length(self, exponent: float, length: float) -> None:
        model = fitted(exponent=exponent, length_scale_rad=length)
        found = Curve(model).gamma(torch.tensor(self.DISTANCE)).numpy()
        assert np.abs(found - model.gamma(self.DISTANCE)).max() < 1e-4

    def test_its_correlation_is_the_models(self) -> None:
        model = fitted()
        curve = Curve(model)
        found = curve.correlation(curve.gamma(torch.tensor(LAG))).numpy()
        assert np.allclose(found, model.correlation(LAG), atol=1e-5)

    def test_any_shape_and_distances_beyond_pi_by_rounding(self) -> None:
        curve = Curve(fitted())
        found = curve.gamma(torch.tensor([[0.0, 1.0], [math.pi, math.pi + 1e-6]]))
        assert found.shape == (2, 2)
        assert found[1, 0] == found[1, 1]


class TestRun:
    def test_only_the_training_split_is_looked_at(self, make_run: Runs) -> None:
        run = make_run("semivariogram.lag_width_rad=0.1")
        run.semivariogram.unlink()
        empirical, model = semivariogram.fit_run(run)
        manifest, features = world()
        train = (manifest["split"] == "train").to_numpy()
        centred = features[train] - features[train].mean(0)
        expected = estimate(unit_rows(centred), manifest[["latitude", "longitude"]].to_numpy(copy=True)[train], 0.1)
        assert np.array_equal(empirical.pairs, expected.pairs)
        assert np.allclose(empirical.gamma, expected.gamma, atol=1e-5, equal_nan=True)
        assert (model.photos, model.pairs, model.backbone, model.centred) == (96, 96 * 95 // 2, "efficientnet-lite0", True)
        assert load(run.semivariogram) == model
        assert len(pd.read_csv(run.table("semivariogram"))) == (expected.pairs > 0).sum()

    def test_it_is_reused_until_a_setting_changes(self, make_run: Runs) -> None:
        run = make_run("semivariogram.lag_width_rad=0.1")
        first = semivariogram.fit_run(run)[1]
        assert semivariogram.fit_run(run)[1] == first
        assert [report.split()[0] for report in run.reports] == ["made", "reused"]
