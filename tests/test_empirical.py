"""Statements about the empirical semivariogram: a mean over all pairs of a lag."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import small_world, unit_rows

from lib.method import binning, empirical
from lib.method.empirical import draw_photos, exact
from lib.method.errors import BundleError


def brute_force(features: np.ndarray, coordinates: np.ndarray, width: float) -> dict[str, list]:
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
    there = [lag for lag in range(lags) if values[lag]]
    return {
        "lag_km": [6371.0088 * np.mean(distances[lag]) for lag in there],
        "gamma": [np.mean(values[lag]) for lag in there],
        "variance": [np.var(values[lag]) for lag in there],
        "pairs": [len(values[lag]) for lag in there],
    }


class TestExact:
    @pytest.mark.parametrize("width", [0.05, 0.31, 1.0])
    def test_it_is_the_mean_over_the_pairs_of_each_lag(self, width: float) -> None:
        features, coordinates = small_world()
        found = exact(unit_rows(features), coordinates, width).table()
        expected = brute_force(features, coordinates, width)
        assert list(found) == list(expected) and found["pairs"].tolist() == expected["pairs"]
        for name in expected:
            assert np.allclose(found[name], expected[name], rtol=1e-6, atol=2e-6), name

    def test_a_lag_without_pairs_is_nan_and_left_out_of_the_table(self) -> None:
        features, coordinates = small_world(4)
        found = exact(unit_rows(features), coordinates, 0.02)
        empty = found.pairs == 0
        assert np.array_equal(np.isnan(found.gamma), empty) and np.array_equal(np.isnan(found.lag_rad), empty)
        assert len(found.table()) == (~empty).sum() < len(empty) and found.table()["pairs"].sum() == 6

    @pytest.mark.parametrize("block", [1, 7, 30, 59, 60, 61])
    def test_blocks_of_any_size_add_up_to_the_same(self, block: int) -> None:
        features, coordinates = small_world()
        whole = exact(unit_rows(features), coordinates, 0.2, block=1_000)
        parts = exact(unit_rows(features), coordinates, 0.2, block=block)
        assert np.array_equal(parts.pairs, whole.pairs)
        for name in ("distance_sum_rad", "gamma_sum", "square_sum"):
            assert np.allclose(getattr(parts, name), getattr(whole, name), atol=1e-4)

    def test_several_threads_give_the_bits_of_one(self) -> None:
        x, places = small_world(1_500)
        before, found = torch.get_num_threads(), []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(exact(unit_rows(x), places, 0.05))
            assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
        assert (found[0].gamma_sum == found[1].gamma_sum).all() and (found[0].pairs == found[1].pairs).all()

    def test_wider_lags_hold_the_same_sums(self) -> None:
        features, coordinates = small_world()
        fine, wide = (exact(unit_rows(features), coordinates, width) for width in (0.1, 0.4))
        coarse = fine.coarsened(4)
        assert coarse.lag_width_rad == pytest.approx(0.4) and np.array_equal(coarse.pairs, wide.pairs)
        assert np.allclose(coarse.gamma, wide.gamma, equal_nan=True, atol=1e-6)
        assert fine.coarsened(5).pairs.sum() == 60 * 59 // 2

    def test_one_photo_and_lost_coordinates_and_features_are_refused(self) -> None:
        features, coordinates = small_world(5)
        with pytest.raises(BundleError, match="at least two photos; there are 1"):
            exact(unit_rows(features[:1]), coordinates[:1])
        with pytest.raises(BundleError, match="row 3 from 0: nan, nan is no latitude"):
            exact(unit_rows(features), np.where(np.arange(5)[:, None] == 3, np.nan, coordinates))
        features[:, 0] = np.nan
        with pytest.raises(BundleError, match="feature is not finite"):
            exact(unit_rows(features), coordinates)

    def test_photos_are_drawn_by_the_seed_only_where_there_are_too_many(self) -> None:
        assert draw_photos(5, 5).tolist() == draw_photos(5, 9, seed=1).tolist() == [0, 1, 2, 3, 4]
        few = draw_photos(1_000, 50, seed=1)
        assert len(set(few)) == 50 and (np.diff(few) > 0).all() and few.max() < 1_000
        assert np.array_equal(few, draw_photos(1_000, 50, seed=1))
        assert not np.array_equal(few, draw_photos(1_000, 50, seed=2))


class TestBinning:
    """What numba compiles is what array operations give, in every direction and at every distance."""

    @pytest.fixture
    def tile(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Products [50, 70], unit vectors [3, 50] and [3, 70], some equal, antipodal, or metres apart."""
        generator = np.random.default_rng(5)
        left, right = (generator.standard_normal((3, count)) for count in (50, 70))
        right[:, :10], right[:, 10:20], right[:, 20:30] = left[:, :10], -left[:, 10:20], left[:, 20:30] + 1e-7
        product = generator.uniform(-1, 1, (50, 70)).astype(np.float32)
        return product, *(points / np.linalg.norm(points, axis=0) for points in (left, right))

    @pytest.mark.parametrize("ahead", [-30, 0, 20, 70, 1_000])
    def test_a_tile_adds_each_pair_once(self, tile: tuple, ahead: int) -> None:
        product, left, right = tile
        found, expected = np.zeros((315, 4)), np.zeros((315, 4))
        binning.add_tile(product, left, right, 0.01, ahead, found)
        for i, j in np.argwhere(np.arange(50)[:, None] < np.arange(70) + ahead):
            h = 2.0 * math.asin(min(1.0, np.linalg.norm(left[:, i] - right[:, j]) / 2.0))
            d = 1.0 - float(product[i, j])
            expected[min(int(h / 0.01), 314)] += (1.0, h, d, d * d)
        assert expected[:, 0].sum() > 100
        assert np.allclose(found, expected, rtol=1e-9, atol=1e-7)

    @pytest.mark.parametrize("block", [3, 64, 200])
    def test_a_gpus_way_and_a_project_without_numba_get_the_same_sums(
        self, block: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        features, coordinates = small_world(150)
        here = exact(unit_rows(features), coordinates, 0.05, block=block)
        monkeypatch.setattr(empirical, "find_spec", lambda name: None)
        monkeypatch.setattr(binning, "add_tile", None)
        there = exact(unit_rows(features), coordinates, 0.05, block=block)
        assert np.array_equal(here.pairs, there.pairs)
        for name in ("distance_sum_rad", "gamma_sum", "square_sum"):
            assert np.allclose(getattr(here, name), getattr(there, name), rtol=1e-6, atol=1e-6), name
