"""Statements about decoding: medians that minimise, votes that count, radii that hold what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Runs, fitted
from scipy.optimize import minimize

from lib.data.sphere import destination, uniform_on_sphere
from lib.evaluate import evaluation
from lib.method.geodesy import distance_km
from lib.method.semivariogram import Curve
from lib.train import training
from study import decoding
from study.decoding import Candidates, Decoder, coverage, mass_short_of, radius_km, smoothed, spherical_median

CURVE = Curve(fitted())


def candidates(photos: int = 40, count: int = 12, seed: int = 0, spread_km: float = 800.0) -> Candidates:
    generator = np.random.default_rng(seed)
    centres = uniform_on_sphere(photos, generator)
    east, north = spread_km * generator.standard_normal((2, photos, count))
    places = destination(np.repeat(centres[:, None], count, 1), east, north)
    logits = (
        torch.from_numpy(generator.normal(0.0, 1.5, (photos, count))).float().sort(1, descending=True).values
    )
    return Candidates(logits, places)


def total_km(found: Candidates, photo: int, place_deg: np.ndarray, temperature: float) -> float:
    share = found.probability(temperature)[photo].numpy()
    return float(
        (
            share
            * distance_km(np.broadcast_to(place_deg, found.places_deg[photo].shape), found.places_deg[photo])
        ).sum()
    )


class TestMedian:
    @pytest.mark.parametrize("spread_km", [50.0, 800.0, 3_000.0])
    def test_no_point_nearby_has_a_smaller_sum_of_distances(self, spread_km: float) -> None:
        found = candidates(12, 9, spread_km=spread_km)
        medians = spherical_median(found, 1.0, steps=300)
        for photo, median in enumerate(medians):
            here = total_km(found, photo, median, 1.0)
            search = minimize(
                lambda place, photo=photo: total_km(found, photo, place, 1.0),
                median,
                method="Nelder-Mead",
                options={"xatol": 1e-6, "fatol": 1e-6},
            )
            assert here <= search.fun * 1.002 + 0.01
            assert here <= min(total_km(found, photo, place, 1.0) for place in found.places_deg[photo]) + 1e-6

    def test_it_is_the_same_by_blocks(self) -> None:
        found = candidates(70, 9, spread_km=800.0)
        whole, by_blocks = (spherical_median(found, 1.0, block=block) for block in (1_000, 16))
        assert np.allclose(whole, by_blocks, atol=1e-9)

    def test_three_places_across_the_180th_meridian_and_at_the_pole(self) -> None:
        places = np.array(
            [[[0.0, 179.0], [0.0, -179.0], [0.5, 180.0]], [[88.0, 0.0], [88.0, 120.0], [88.0, -120.0]]]
        )
        medians = spherical_median(Candidates(torch.zeros(2, 3), places), 1.0)
        assert abs(abs(medians[0, 1]) - 180.0) < 0.6 and abs(medians[0, 0]) < 0.6
        assert medians[1, 0] > 89.9

    def test_a_place_that_holds_most_of_the_weight_is_the_median(self) -> None:
        found = candidates(5, 6)
        sure = Candidates(found.logits + torch.tensor([9.0, 0, 0, 0, 0, 0]), found.places_deg)
        assert np.allclose(distance_km(spherical_median(sure, 1.0), sure.places_deg[:, 0]), 0.0, atol=0.01)


class TestSmoothed:
    def test_it_is_the_place_with_the_most_votes(self) -> None:
        found = candidates(20, 7)
        chosen = smoothed(found, CURVE, 0.7, 8.0, block=6)
        model, share = fitted(), found.probability(0.7).numpy()
        for photo in range(20):
            votes = []
            for place in found.places_deg[photo]:
                h = distance_km(np.broadcast_to(place, (7, 2)), found.places_deg[photo]) / 6371.0088
                votes.append((share[photo] * model.correlation(h).clip(0.0) ** 8.0).sum())
            assert np.allclose(chosen[photo], found.places_deg[photo, int(np.argmax(votes))])

    def test_without_neighbours_it_is_the_best_match(self) -> None:
        found = candidates()
        assert np.array_equal(smoothed(found, CURVE, 1.0, 1e4), found.places_deg[:, 0])

    def test_two_neighbours_outvote_a_better_match_elsewhere(self) -> None:
        places = np.array([[[0.0, 90.0], [50.0, 10.0], [50.1, 10.1]]])
        found = Candidates(torch.tensor([[1.2, 1.0, 1.0]]), places)
        assert np.array_equal(Decoder("smoothed", 1.0, 2.0)(found, CURVE), places[:, 1]) or np.array_equal(
            Decoder("smoothed", 1.0, 2.0)(found, CURVE), places[:, 2]
        )
        assert np.array_equal(Decoder("best")(found, CURVE), places[:, 0])


class TestRadius:
    def truths(self, found: Candidates, seed: int) -> np.ndarray:
        """True places drawn from a distribution that is sharper than the candidates say."""
        generator = np.random.default_rng(seed)
        share = found.probability(0.5).numpy()
        rows = np.array([generator.choice(share.shape[1], p=one / one.sum()) for one in share])
        near = found.places_deg[np.arange(len(rows)), rows]
        return destination(near, *(60.0 * generator.standard_normal((2, len(rows)))))

    def test_calibrated_radii_hold_their_level_and_plain_ones_do_not(self) -> None:
        calibration, asked = candidates(3_000, seed=1), candidates(3_000, seed=2)
        table = coverage(calibration, self.truths(calibration, 3), asked, self.truths(asked, 4)).set_index(
            "level"
        )
        assert np.allclose(table["coverage"], table.index, atol=0.035)
        assert (table["plain"] - table.index).abs().max() > 0.05
        assert table["median_radius_km"].is_monotonic_increasing

    def test_a_radius_that_exceeds_the_score_just_reaches_the_truth(self) -> None:
        found = candidates(30)
        distance = distance_km(np.repeat(found.places_deg[:, :1], 12, 1), found.places_deg)
        share = found.probability().numpy()
        error = distance[:, 5] - 1e-3
        for photo, mass in enumerate(mass_short_of(found, error)):
            assert mass == pytest.approx(share[photo][distance[photo] < error[photo]].sum())
            assert radius_km(found, mass)[photo] == pytest.approx(distance[photo, 5], abs=1e-3)
            if mass > 1e-6:
                assert radius_km(found, mass - 1e-7)[photo] < error[photo]
        assert np.isinf(mass_short_of(found, np.full(30, 20_016.0))).all()
        assert radius_km(found, 1.01) == pytest.approx(np.pi * 6371.0088)


@pytest.mark.usefixtures("narrow")
class TestRun:
    def test_the_best_match_is_what_evaluation_predicts_and_choices_come_from_validation(
        self, make_run: Runs
    ) -> None:
        run = make_run("training.epochs=2", "training.batch_size=48", "training.strategies=infonce")
        training.train_all(run, ["infonce"])
        predictions, choices, covered = decoding.decode_run(run, ["infonce"], ["test"])
        plain = evaluation.predict_all(run, ["infonce"], split_names=["test"])
        ours = predictions[predictions["strategy"] == "infonce"].reset_index(drop=True)
        assert np.allclose(ours["error_km"], plain["error_km"])
        assert set(predictions["strategy"]) == {"infonce", "infonce, smoothed", "infonce, median"}
        assert choices["decoder"].tolist() == ["best", "smoothed", "median"]
        assert set(covered["level"]) == set(decoding.LEVELS) and (covered["split"] == "test").all()
        bare = choices.set_index("decoder")["score"]
        truth = plain.merge(
            evaluation.predict_all(run, ["infonce"], split_names=["validation"]), on="id", how="right"
        )
        assert bare["best"] == pytest.approx(decoding.score(truth["error_km_y"].to_numpy()))
