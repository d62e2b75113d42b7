"""Statements about pairs by distance: none is missing, none is twice, and those that are drawn are drawn
uniformly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from lib.data.sampling import Candidates, Shell
from lib.data.sphere import uniform_on_sphere
from lib.method.geodesy import unit_vectors


def as_set(left: np.ndarray, right: np.ndarray) -> set[tuple[int, int]]:
    """Pairs without their order; none may be twice."""
    pairs = [tuple(sorted(pair)) for pair in zip(left.tolist(), right.tolist(), strict=True)]
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


def scattered(count: int, seed: int) -> np.ndarray:
    """Places of every sort: spread, at the poles, at the 180th meridian, clustered, twice at one place."""
    generator = np.random.default_rng(seed)
    places = uniform_on_sphere(count, generator)
    places[: count // 8] = [90.0, 0.0] + generator.normal(0.0, 1.0, (count // 8, 2)) * [0.0, 90.0]
    places[count // 8 : count // 4, 1] = 180.0 - np.abs(generator.normal(0.0, 0.2, count // 4 - count // 8))
    places[count // 4 : count // 3] = generator.normal([10.0, 20.0], 0.5, (count // 3 - count // 4, 2))
    places[-1] = places[-2]
    return unit_vectors(places)


class TestCandidates:
    @given(seed=st.integers(0, 10_000), radius=st.floats(1e-5, math.pi), count=st.integers(9, 60))
    def test_every_pair_within_the_radius_is_among_them_once(
        self, seed: int, radius: float, count: int
    ) -> None:
        points = scattered(count, seed)
        candidates = Candidates.within(points, radius)
        found = as_set(*candidates.pairs(np.arange(len(candidates))))
        near = cKDTree(points).query_pairs(2.0 * math.sin(radius / 2.0) * (1.0 - 1e-12))
        assert near <= found

    def test_far_pairs_are_ruled_out(self) -> None:
        points = unit_vectors(uniform_on_sphere(2_000, np.random.default_rng(0)))
        assert len(Candidates.within(points, 0.02)) < 0.01 * 2_000**2


class TestShell:
    WIDTH = 0.02

    def lag(self, points: np.ndarray) -> np.ndarray:
        """Lag of each pair [N, N]; -1 below the diagonal."""
        distance = 2.0 * np.arcsin(
            np.minimum(1.0, np.linalg.norm(points[:, None] - points[None], axis=2) / 2.0)
        )
        return np.where(np.triu(np.ones_like(distance), 1) > 0, np.floor(distance / self.WIDTH), -1).astype(
            int
        )

    @pytest.mark.parametrize("lags", [range(1), range(1, 2), range(2, 8), range(8, 158)])
    def test_a_whole_shell_is_every_pair_of_its_lags(self, lags: range) -> None:
        points = scattered(160, 3)
        shell = Shell.of(points, self.WIDTH, lags, 10**6, seed=0)
        assert shell.is_whole
        parts = [shell.pairs(chunk) for chunk in range(shell.chunks)]
        found = as_set(*(np.concatenate(some) for some in list(zip(*parts, strict=True))[:2]))
        expected = {tuple(pair) for pair in np.argwhere(np.isin(self.lag(points), list(lags))).tolist()}
        assert found == expected

    @pytest.mark.parametrize("lags", [range(1, 2), range(2, 4), range(4, 158)])
    def test_each_pair_of_a_shell_is_drawn_equally_often(self, lags: range) -> None:
        points = scattered(60, 4)
        shell = Shell.of(points, self.WIDTH, lags, 1, seed=0)
        assert not shell.is_whole
        lag, drawn = self.lag(points), np.zeros((60, 60), int)
        for chunk in range(40):
            left, right, distance = shell.pairs(chunk)
            np.add.at(drawn, (np.minimum(left, right), np.maximum(left, right)), 1)
            assert set(np.floor(distance / self.WIDTH).astype(int)) <= set(lags)
        inside = np.isin(lag, list(lags))
        assert inside.any() and drawn[~inside].sum() == 0
        expected = drawn[inside].mean()
        assert expected > 50
        chi_square = ((drawn[inside] - expected) ** 2 / expected).sum()
        freedom = inside.sum() - 1
        assert abs(chi_square - freedom) < 5.0 * math.sqrt(2.0 * freedom) + 1e-9
