"""Statements about batches: nothing twice, nothing foreign, and partners where the curve says that look-alikes are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import fitted
from scipy import integrate, stats

from lib.batches import Partners, at_random, by_curve, look_alike_density
from lib.empirical import EmpiricalSemivariogram
from lib.geodesy import distance_km, km_to_rad, uniform_on_sphere

ROWS = np.arange(100, 3_100)
PLACES = uniform_on_sphere(len(ROWS), np.random.default_rng(0))


def order(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def empirical(spread: float = 0.2, shift: float = 0.0) -> EmpiricalSemivariogram:
    lag = (np.arange(315) + 0.5) * 0.01
    gamma, pairs = fitted().gamma(lag) + shift, np.full(315, 50)
    return EmpiricalSemivariogram(0.01, pairs, pairs * lag, pairs * gamma, pairs * (gamma**2 + spread**2))


def partners(edges: np.ndarray, probability: np.ndarray) -> Partners:
    return Partners.of(ROWS, PLACES, (edges, probability))


@pytest.mark.parametrize("draw", ["random", "curve"])
class TestBoth:
    def batches(self, draw: str, seed: int = 0) -> list[np.ndarray]:
        if draw == "random":
            return list(at_random(ROWS, 256, order(seed)))
        return list(by_curve(partners(*look_alike_density(empirical(), fitted())), 256, order(seed)))

    def test_as_many_full_batches_as_fit_and_no_photo_twice_in_one(self, draw: str) -> None:
        made = self.batches(draw)
        assert [len(rows) for rows in made] == [256] * (len(ROWS) // 256)
        assert all(len(set(rows)) == 256 and set(rows) <= set(ROWS) for rows in made)

    def test_the_seed_decides(self, draw: str) -> None:
        one, again, other = self.batches(draw), self.batches(draw), self.batches(draw, 1)
        assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
        assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


class TestPartners:
    @pytest.mark.parametrize("step", [2, 20, 60])
    def test_they_stand_at_the_wanted_distance(self, step: int) -> None:
        edges = np.arange(64) * np.pi / 64
        drawn = partners(edges, np.eye(64)[step]).draw(np.arange(1_000), order())
        distance = km_to_rad(distance_km(PLACES[:1_000], PLACES[drawn]))
        assert np.mean((distance > edges[step] - 0.02) & (distance < edges[step] + np.pi / 64 + 0.02)) > 0.95

    def test_all_directions_are_as_frequent(self) -> None:
        anchors = np.arange(len(ROWS))
        drawn = partners(np.arange(64) * np.pi / 64, np.eye(64)[8]).draw(anchors, order())
        north = (PLACES[drawn, 0] > PLACES[anchors, 0])[np.abs(PLACES[:, 0]) < 30].mean()
        assert 0.42 < north < 0.58

    def test_half_of_a_batch_are_anchors_that_come_once_an_epoch(self) -> None:
        made = by_curve(partners(*look_alike_density(empirical(), fitted())), 256, order())
        anchors = np.concatenate([rows[:128] for rows in made])
        assert len(set(anchors)) == len(anchors)


class TestDensity:
    @pytest.mark.parametrize("shift", [-0.3, 0.0, 0.3])
    def test_it_is_the_expected_positive_residual_times_what_has_faded(self, shift: float) -> None:
        edges, density = look_alike_density(empirical(0.2, shift), fitted())
        lag = empirical().coarsened(5).lag_rad
        expected = [
            integrate.quad(lambda r: r * stats.norm.pdf(r, -shift, 0.2), 0.0, 3.0)[0] * (1.0 - fitted().correlation(h)) for h in lag
        ]
        assert edges[1] == pytest.approx(0.05)
        assert np.allclose(density, np.array(expected) / np.sum(expected), atol=2e-3)

    def test_a_step_without_pairs_is_never_drawn(self) -> None:
        sums = empirical()
        gone = np.arange(315) >= 200
        without = EmpiricalSemivariogram(0.01, *(np.where(gone, 0, total) for total in (sums.pairs, sums.distance_sum_rad, sums.gamma_sum, sums.square_sum)))
        density = look_alike_density(without, fitted())[1]
        assert (density[40:] == 0).all() and density.sum() == pytest.approx(1.0)
