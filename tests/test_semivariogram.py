"""Statements about the semivariogram: the fit finds a known field, and the curve is its model."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import gstools
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Runs, fitted, small_world, unit_rows, world
from scipy.optimize import least_squares
from sklearn.metrics.pairwise import haversine_distances

from lib.data.sphere import uniform_on_sphere
from lib.method import fitting, semivariogram
from lib.method.empirical import EmpiricalSemivariogram, exact
from lib.method.errors import BundleError
from lib.method.fitting import FAMILIES
from lib.method.geodesy import EARTH_RADIUS_KM, unit_vectors
from lib.method.loss import SemivariogramLoss
from lib.method.semivariogram import Curve, FittedSemivariogram, fit, fit_semivariogram
from lib.train import curve

SHAPE = {"Stable": ("alpha", 0.8), "Matern": ("nu", 0.8), "Rational": ("alpha", 1.5)}


def measured(gamma: np.ndarray, lag: np.ndarray, pairs: np.ndarray | int = 1_000) -> EmpiricalSemivariogram:
    """An empirical semivariogram with these means."""
    pairs = np.broadcast_to(pairs, gamma.shape)
    return EmpiricalSemivariogram(float(lag[1] - lag[0]), pairs, lag * pairs, gamma * pairs, gamma**2 * pairs)


def parameters(found: FittedSemivariogram) -> tuple[float, float, float]:
    return found.nugget, found.partial_sill, found.length_scale_rad


LAG = (np.arange(157) + 0.5) * 0.02
RISE = 0.1 + 0.8 * (1.0 - np.exp(-LAG / 0.3))

Field = tuple[np.ndarray, np.ndarray, gstools.CovModel]
"""Features [N, D], independent realisations of one random field on the sphere; places [N, 2]; its model."""


@pytest.fixture(scope="module")
def smooth_field() -> Field:
    """Made by GSTools itself, from a model whose spectrum it samples exactly."""
    model = gstools.Gaussian(latlon=True, var=0.8, len_scale=0.4, nugget=0.2)
    coordinates = uniform_on_sphere(600, np.random.default_rng(2))
    field = gstools.SRF(model, mode_no=100)
    values = np.stack([field(tuple(coordinates.T), seed=seed) for seed in range(128)], 1)
    return values, coordinates, model


@pytest.fixture(scope="module")
def rough_field() -> Field:
    """From the Cholesky factor of GSTools' covariance: its generator only approximates this spectrum."""
    model = gstools.Exponential(latlon=True, var=0.8, len_scale=0.25, nugget=0.2)
    generator = np.random.default_rng(3)
    coordinates = uniform_on_sphere(600, generator)
    covariance = model.cov_yadrenko(haversine_distances(np.deg2rad(coordinates))) + 0.2 * np.eye(600)
    return np.linalg.cholesky(covariance) @ generator.normal(size=(600, 512)), coordinates, model


class TestRandomField:
    def test_the_estimate_is_that_of_gstools_summed_over_the_dimensions(self, smooth_field: Field) -> None:
        values, coordinates, _ = smooth_field
        unit = values / np.linalg.norm(values, axis=1, keepdims=True)
        found = exact(unit_rows(values), coordinates, 0.1)
        edges, how = np.arange(len(found.pairs) + 1) * 0.1, {"latlon": True, "return_counts": True}
        _, matheron, counts = gstools.vario_estimate(tuple(coordinates.T), list(unit.T), edges, **how)
        dimensions, used = values.shape[1], counts > 0
        assert used.sum() > 25
        assert np.array_equal(found.pairs, counts / dimensions)
        assert np.allclose(found.gamma[used], dimensions * matheron[used], atol=1e-5)

    @pytest.mark.parametrize("weights", ["none", "pairs"])
    @pytest.mark.parametrize("field", ["smooth_field", "rough_field"])
    def test_the_fit_recovers_nugget_sill_and_length_within_ten_percent(
        self, field: str, weights: str, request: pytest.FixtureRequest
    ) -> None:
        values, coordinates, model = request.getfixturevalue(field)
        empirical = exact(unit_rows(values), coordinates, 0.05)
        found = fit(empirical, family=type(model).__name__, metric="sphere", weights=weights)
        # unit features divide by the field's sill (1 here), up to a relative 1 / D
        assert found.partial_sill == pytest.approx(model.var, rel=0.1)
        assert found.length_scale_rad == pytest.approx(model.len_scale, rel=0.1)
        assert found.nugget == pytest.approx(model.nugget, abs=0.04)
        assert found.sill == pytest.approx(1.0, rel=0.02)
        assert found.r2 > 0.99


class TestFit:
    @pytest.mark.parametrize("metric", ["planar", "sphere"])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_it_recovers_each_family_from_its_own_curve(self, family: str, metric: str) -> None:
        name, shape = SHAPE.get(family, ("", None))
        more = {"latlon": True} if metric == "sphere" else {"dim": 2}
        more |= {name: shape} if name else {}
        model = getattr(gstools, family)(var=0.8, len_scale=0.3, nugget=0.1, **more)
        gamma = model.vario_yadrenko(LAG) if metric == "sphere" else model.variogram(LAG)
        found = fit(measured(gamma, LAG), family=family, metric=metric)
        assert parameters(found) == pytest.approx((0.1, 0.8, 0.3), rel=1e-3)
        assert found.exponent == (pytest.approx(shape, rel=1e-3) if name else None)
        assert (found.family, found.metric, found.r2) == (family, metric, pytest.approx(1.0))

    def test_the_stable_model_is_the_formula_of_the_method(self) -> None:
        n, c, length, a = 0.116, 0.872, 0.0727, 0.69
        gamma = np.array([n + c * (1.0 - math.exp(-((h / length) ** a))) for h in LAG])
        found = fit(measured(gamma, LAG))
        assert (*parameters(found), found.exponent) == pytest.approx((n, c, length, a), rel=1e-3)
        assert np.allclose(found.gamma(LAG), gamma, atol=1e-6)
        assert np.allclose(found.correlation(LAG), np.exp(-((LAG / length) ** a)), atol=1e-5)

    def test_on_the_sphere_the_distance_is_the_chord_and_at_zero_gamma_is_the_nugget(self) -> None:
        found = fitted(family="Exponential", metric="sphere", exponent=None)
        expected = [0.1 + 0.85 * (1.0 - math.exp(-2.0 * math.sin(h / 2.0) / 0.3)) for h in LAG]
        assert np.allclose(found.gamma(LAG), expected, atol=1e-9)
        for one in (found, fitted()):
            assert one.gamma(np.array(0.0)) == pytest.approx(0.1, abs=1e-6)
            assert one.correlation(np.array(0.0)) == pytest.approx(1.0, abs=1e-6)

    def test_lags_beyond_the_limits_are_left_out(self) -> None:
        spoilt = np.where((LAG < 0.1) | (LAG > 1.5), 0.2, RISE)
        found = fit(measured(spoilt, LAG), family="Exponential", min_lag_rad=0.1, max_lag_rad=1.5)
        assert found.length_scale_rad == pytest.approx(0.3, rel=1e-3)
        assert found.pairs == 157_000

    @pytest.mark.parametrize("weights", ["none", "pairs", "cressie", "pairs_by_h2"])
    def test_it_is_least_squares_over_weighted_lags(self, weights: str) -> None:
        pairs = (1_000 * np.sin(LAG) + 20).astype(int)
        gamma = RISE + np.random.default_rng(1).normal(size=len(LAG)) / np.sqrt(pairs)
        found = fit(measured(gamma, LAG, pairs), family="Exponential", weights=weights)
        curve = lambda p: p[0] + p[1] * (1.0 - np.exp(-LAG / p[2]))  # noqa: E731
        best = np.array([0.2, 0.6, 0.5])
        for _ in range(20):
            roots = {
                "pairs": pairs**0.5,
                "cressie": pairs**0.5 / curve(best),
                "pairs_by_h2": pairs**0.5 / LAG,
            }
            off = lambda p, root: root * (gamma - curve(p))  # noqa: E731
            best = least_squares(off, best, args=(roots.get(weights, 1.0),)).x
        assert parameters(found) == pytest.approx(best.tolist(), rel=0.01)

    def test_a_curve_that_does_not_rise_or_has_four_lags_is_refused(self) -> None:
        for gamma in (np.ones(157), np.zeros(157), 1.0 - 0.2 * LAG, 0.5 + 0.5 * np.exp(-LAG)):
            with pytest.raises(BundleError, match="beats a constant .*; check coordinates") as raised:
                fit(measured(gamma, LAG))
            explained, asked = map(float, re.findall(r"([\d.]+) %", str(raised.value)))
            assert explained < asked, raised.value
        with pytest.raises(BundleError, match="4 lags with pairs are too few; narrow"):
            fit(measured(LAG[:4], LAG[:4]))

    def test_a_rising_curve_is_fitted_though_its_first_lag_holds_one_odd_pair(self) -> None:
        first = LAG < 0.02
        odd = measured(np.where(first, 1.2, RISE), LAG, np.where(first, 1, 100_000))
        found = fit(odd, family="Exponential", weights="pairs")
        assert found.length_scale_rad == pytest.approx(0.3, rel=0.05)


class TestRange:
    """By hand: exponential gamma' = (c/l) e^(-h/l) = 0.01 at l ln(100 c / l); 95 % of c at l ln 20."""

    @pytest.mark.parametrize(("c", "length"), [(0.8, 0.2), (0.872, 0.0727), (0.5, 0.3)])
    def test_it_is_that_of_the_exponential_model(self, c: float, length: float) -> None:
        sums = measured(0.1 + c * (1.0 - np.exp(-LAG / length)), LAG)
        slope, sill = (fit(sums, family="Exponential", range_rule=rule) for rule in ("slope", "sill95"))
        assert slope.range_rad == pytest.approx(length * math.log(100.0 * c / length), abs=0.0101)
        assert slope.range_km == pytest.approx(slope.range_rad * EARTH_RADIUS_KM)
        assert sill.range_rad == pytest.approx(length * math.log(20.0), abs=0.0011)
        assert (slope.range_rule, sill.range_rule) == ("slope", "sill95")

    def test_a_curve_that_never_flattens_has_range_pi(self) -> None:
        endless = gstools.Exponential(dim=2, var=1.0, len_scale=10.0)
        assert semivariogram.range_by_slope(endless) == math.pi
        assert semivariogram.range_by_sill(endless) == math.pi


class TestSaved:
    def test_the_json_gives_back_the_same_model(self, tmp_path: Path) -> None:
        for family in FAMILIES:
            before = fitted(family=family, exponent=SHAPE.get(family, ("", None))[1], nugget=1.0 / 3.0)
            before.save(tmp_path / "curve.json")
            assert FittedSemivariogram.load(tmp_path / "curve.json") == before
            assert json.loads((tmp_path / "curve.json").read_text()) == asdict(before)

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"family": "Stable"}', "3"])
    def test_what_is_no_model_is_named(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(BundleError, match=r"odd\.json: not a saved semivariogram.*delete it"):
            FittedSemivariogram.load(tmp_path / "odd.json")


class TestCurve:
    DISTANCE = np.concatenate([[0.0], np.geomspace(1e-6, math.pi, 5_000)])

    @pytest.mark.parametrize("metric", ["planar", "sphere"])
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("length", [0.01, 0.5])
    def test_it_is_the_model_to_1e_5_of_the_sill(self, family: str, metric: str, length: float) -> None:
        exponent = SHAPE.get(family, ("", None))[1]
        model = fitted(family=family, metric=metric, length_scale_rad=length, exponent=exponent)
        for dtype in (torch.float32, torch.float64):
            found = Curve(model).gamma(torch.tensor(self.DISTANCE, dtype=dtype))
            assert np.abs(found.numpy() - model.gamma(self.DISTANCE)).max() < 1e-5 * model.partial_sill

    @pytest.mark.parametrize("exponent", [0.3, 0.6, 2.0])
    @pytest.mark.parametrize("length", [0.005, 0.1, 2.0])
    def test_any_stable_exponent_and_length(self, exponent: float, length: float) -> None:
        model = fitted(exponent=exponent, length_scale_rad=length)
        found = Curve(model).gamma(torch.tensor(self.DISTANCE)).numpy()
        assert np.abs(found - model.gamma(self.DISTANCE)).max() < 1e-4


class TestRun:
    def test_of_too_many_photos_some_are_drawn_by_the_seed(self, make_run: Runs) -> None:
        found, given = [], ("semivariogram.lag_width_rad=0.1", "semivariogram.max_photos=60")
        for seed in (0, 0, 1):
            run = make_run(*given, f"semivariogram.seed={seed}")
            run.semivariogram.unlink()
            sums, model = curve.fit_run(run)
            assert (model.photos, model.pairs, sums.pairs.sum()) == (60, 1_770, 1_770)
            found.append(sums.gamma_sum)
        assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])

    def test_only_the_training_split_is_looked_at(self, make_run: Runs) -> None:
        run = make_run("semivariogram.lag_width_rad=0.1")
        run.semivariogram.unlink()
        empirical, model = curve.fit_run(run)
        manifest, features = world()
        train = (manifest["split"] == "train").to_numpy()
        centred = features[train] - features[train].mean(0)
        places = manifest[["latitude", "longitude"]].to_numpy(copy=True)[train]
        expected = exact(unit_rows(centred), places, 0.1)
        assert np.array_equal(empirical.pairs, expected.pairs)
        assert np.allclose(empirical.gamma, expected.gamma, atol=1e-5, equal_nan=True)
        about = model.photos, model.pairs, model.backbone, model.centred
        assert about == (96, 96 * 95 // 2, "efficientnet-lite0", True)
        assert FittedSemivariogram.load(run.semivariogram) == model
        assert len(pd.read_csv(run.table("semivariogram"))) == (expected.pairs > 0).sum()


def tourists(count: int, nugget: float, length_km: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, 64] of an exponential field with noise; places crowd in cities, a tenth of them twice."""
    draw = np.random.default_rng(seed)
    cities = np.stack([draw.uniform(-50, 60, 30), draw.uniform(-180, 180, 30)], 1)
    places = cities[draw.choice(30, count, p=draw.dirichlet(np.full(30, 0.5)))]
    places = places + draw.normal(0.0, draw.choice([0.1, 0.5, 2.0], count)[:, None], (count, 2))
    places[: count // 10] = places[draw.integers(count // 10, count, count // 10)]
    places[:, 1] = (places[:, 1] + 180.0) % 360.0 - 180.0
    waves = draw.standard_normal((2_048, 3)) / np.sqrt(draw.chisquare(1, (2_048, 1)))  # Cauchy: exponential
    phase = unit_vectors(places) @ waves.T * (EARTH_RADIUS_KM / length_km) + draw.uniform(0, 2 * np.pi, 2_048)
    field = np.cos(phase) @ draw.standard_normal((2_048, 64)) * np.sqrt(2.0 / 2_048)
    noise = draw.standard_normal((count, 64))
    return np.sqrt(1.0 - nugget) * field + np.sqrt(nugget) * noise, places


class TestWhereLooksHardlyDependOnThePlace:
    @pytest.mark.parametrize("family", ["Stable", "Matern", "Gaussian", "Exponential", "Spherical"])
    @pytest.mark.parametrize(("count", "nugget"), [(300, 0.5), (1_000, 0.9), (1_500, 0.95)])
    def test_a_curve_that_rises_is_fitted_whatever_the_family(
        self, family: str, count: int, nugget: float
    ) -> None:
        for seed in range(3):
            found = fit_semivariogram(*tourists(count, nugget, 300.0, seed), family=family)
            assert found.nugget / found.sill == pytest.approx(nugget, abs=0.15)
            assert 0.8 < found.sill < 1.2 and found.length_scale_rad < 0.47

    def test_what_does_not_rise_is_called_that_with_its_numbers(self) -> None:
        for seed in range(3):
            with pytest.raises(BundleError, match=r"a constant \(1\.0\d+\) over all 2,\d+ lags"):
                fit_semivariogram(*tourists(300, 1.0, 300.0, seed))

    def test_an_exponent_that_the_lags_do_not_tell_is_left_out(self) -> None:
        lag, pairs = (np.arange(400) + 0.5) * 0.005, np.full(400, 50)
        noisy = 0.95 + 0.05 * (1.0 - np.exp(-lag / 0.03)) + np.random.default_rng(0).normal(0, 0.01, 400)
        family, model = fitting.by_search(fitting.Lags(lag, noisy, pairs), "Stable", "planar")
        assert family == "Exponential" and model.len_scale == pytest.approx(0.03, rel=0.6)
        clear = 0.2 + 0.8 * (1.0 - np.exp(-((lag / 0.3) ** 1.6)))
        family, model = fitting.by_search(fitting.Lags(lag, clear, pairs), "Stable", "planar")
        assert family == "Stable" and model.alpha == pytest.approx(1.6, abs=0.01)
        assert (model.nugget, model.var) == pytest.approx((0.2, 0.8), abs=1e-3)

    def test_the_curve_of_what_does_not_rise_is_flat_and_says_so(self, tmp_path: Path) -> None:
        x, places = tourists(300, 1.0, 300.0, 0)
        empirical = exact(unit_rows(x), places)
        semivariogram.flat(empirical, photos=300).save(tmp_path / "flat.json")
        found = FittedSemivariogram.load(tmp_path / "flat.json")
        mean = empirical.gamma_sum.sum() / empirical.pairs.sum()
        assert not found.rises and found.photos == 300
        assert found.gamma(np.array([0.01, 0.1, 3.0])) == pytest.approx(mean, rel=1e-3)
        said = curve.sentence(empirical, found)
        assert "over all" in said and said.endswith("mean dissimilarity 1.00 at whatever distance")


class TestInOneCall:
    """``fit_semivariogram``, as a reader of the README calls it."""

    def test_tensors_and_arrays_of_any_length_give_the_exact_estimates_fit(self) -> None:
        features, places = small_world(300)
        features = features - features.mean(0)
        expected = fit(exact(unit_rows(features), places, 0.05), photos=300)
        found = fit_semivariogram(5.0 * features, places, 0.05)
        assert parameters(found) == pytest.approx(parameters(expected), rel=1e-4) and found.photos == 300
        tensors = torch.from_numpy(features).requires_grad_(), torch.from_numpy(places)
        assert fit_semivariogram(*tensors, 0.05, family="Exponential").family == "Exponential"

    @pytest.mark.filterwarnings("error::UserWarning")  # of read-only arrays, such as pandas gives
    def test_of_many_photos_a_fixed_sample_is_taken(self) -> None:
        features, places = small_world(300)
        places.flags.writeable = False
        found = [fit_semivariogram(features - features.mean(0), places, 0.1, max_photos=200) for _ in "12"]
        assert found[0] == found[1] and (found[0].photos, found[0].pairs) == (200, 19_900)

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"coordinates_deg": np.zeros((4, 2))}, r"they are \[50, 16\] and \[4, 2\]"),
            ({"famly": "Stable"}, "no option famly; it has family"),
            ({"lag_width_rad": 0.0}, "wider than 0"),
            ({"family": "Stabel"}, "family='Stabel' is unknown; take one of Stable"),
            ({"metric": "spherical"}, "is unknown; take one of planar, sphere"),
            ({"weights": "pair"}, "is unknown; take one of none, pairs, cressie"),
            ({"range_rule": "slop"}, "is unknown; take one of slope"),
        ],
    )
    def test_what_cannot_be_is_a_sentence_with_the_known_words(self, wrong: dict, said: str) -> None:
        features, places = small_world(50)
        with pytest.raises(BundleError, match=said):
            fit_semivariogram(features, **({"coordinates_deg": places, "lag_width_rad": 0.05} | wrong))

    def test_radians_and_coordinates_in_half_precision_are_refused(self) -> None:
        features, places = small_world(50)
        with pytest.raises(BundleError, match="they are radians, not degrees; use rad2deg"):
            fit_semivariogram(features, np.deg2rad(places), 0.05)
        exact = torch.from_numpy(places)
        for wrong in (exact.half(), exact.bfloat16(), exact.half().numpy()):
            with pytest.raises(BundleError, match="coordinates in .*float16 are off by up to .*give float32"):
                fit_semivariogram(features, wrong)

    def test_a_checkpoint_of_the_loss_brings_no_other_curve(self) -> None:
        assert not SemivariogramLoss(fitted(), beta=1.0).state_dict()
