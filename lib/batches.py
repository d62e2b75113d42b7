"""Which training photos stand together in a batch: at random, or partners at distances where look-alikes are frequent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.stats import norm

from lib.empirical import EmpiricalSemivariogram
from lib.geodesy import chord_to_rad, unit_vectors
from lib.semivariogram import FittedSemivariogram

STEPS_OF_DISTANCE = 64
"""Steps from 0 to pi in which partners' distances are drawn."""
PROPOSALS = 8
"""Bearings tried for each partner; the place nearest to the wanted distance is taken, as there are no places at sea."""


def at_random(rows: np.ndarray, size: int, order: torch.Generator) -> Iterator[np.ndarray]:
    """``rows`` in random order, ``size`` at a time; what is left over waits for another epoch's order."""
    shuffled = rows[torch.randperm(len(rows), generator=order).numpy()]
    for start in range(0, len(rows) - size + 1, size):
        yield shuffled[start : start + size]


def look_alike_density(empirical: EmpiricalSemivariogram, fitted: FittedSemivariogram) -> tuple[np.ndarray, np.ndarray]:
    """How much emphasis ``decayed`` would put on a pair at a distance: E[max(0, r) | h] (1 - C(h)), over equal steps of h.

    The residual within a step is taken as normal, with the mean and variance of the step's pairs. Ours.

    Returns:
        lower edges of the steps, radians [K], and probabilities [K] that add up to 1; 0 where there are no pairs.
    """
    coarse = empirical.coarsened(max(1, round(math.pi / STEPS_OF_DISTANCE / empirical.lag_width_rad)))
    there = coarse.pairs > 0
    lag = np.where(there, coarse.lag_rad, 1.0)
    mean, spread = fitted.gamma(lag) - coarse.gamma, np.sqrt(np.maximum(coarse.variance, 1e-18))
    expected = mean * norm.cdf(mean / spread) + spread * norm.pdf(mean / spread)
    density = np.where(there, expected * (1.0 - fitted.correlation(lag)), 0.0).clip(min=0.0)
    return np.arange(len(density)) * coarse.lag_width_rad, density / density.sum()


@dataclass(frozen=True)
class Partners:
    """Training places, ready to find one at a given distance from another.

    Attributes:
        rows: the manifest's rows, int64 [n].
        points: unit vectors [n, 3]; tree: the same, searchable.
        edges_rad, probability: distances to draw from, see :func:`look_alike_density`.
    """

    rows: np.ndarray
    points: np.ndarray
    tree: cKDTree
    edges_rad: np.ndarray
    probability: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, coordinates_deg: np.ndarray, density: tuple[np.ndarray, np.ndarray]) -> Partners:
        """For training ``rows`` [n] at ``coordinates_deg`` [n, 2]."""
        points = unit_vectors(np.asarray(coordinates_deg, dtype=np.float64))
        return cls(rows, points, cKDTree(points), *density)

    def draw(self, anchors: np.ndarray, order: torch.Generator) -> np.ndarray:
        """A partner for each of ``anchors`` [a], both as positions in ``rows``; int64 [a]."""
        width = self.edges_rad[1] - self.edges_rad[0] if len(self.edges_rad) > 1 else math.pi
        step = torch.multinomial(torch.from_numpy(self.probability), len(anchors), True, generator=order).numpy()
        within = torch.rand(len(anchors), generator=order, dtype=torch.float64).numpy()
        wanted = np.minimum(self.edges_rad[step] + width * within, math.pi)
        bearing = 2.0 * math.pi * torch.rand(len(anchors), PROPOSALS, generator=order, dtype=torch.float64).numpy()
        proposed = _travel(self.points[anchors], wanted, bearing)
        found = self.tree.query(proposed)[1]
        there = chord_to_rad(((self.points[anchors][:, None] - self.points[found]) ** 2).sum(-1))
        best = np.abs(there - wanted[:, None]).argmin(1)
        return found[np.arange(len(anchors)), best]


def _travel(points: np.ndarray, distance_rad: np.ndarray, bearing: np.ndarray) -> np.ndarray:
    """Unit vectors [a, k, 3] at ``distance_rad`` [a] from ``points`` [a, 3] in the directions ``bearing`` [a, k]."""
    pole = np.where(np.abs(points[:, 2:]) < 0.9, [0.0, 0.0, 1.0], [1.0, 0.0, 0.0])
    east = np.cross(pole, points)
    east /= np.linalg.norm(east, axis=1, keepdims=True)
    north = np.cross(points, east)
    heading = np.sin(bearing)[..., None] * east[:, None] + np.cos(bearing)[..., None] * north[:, None]
    return np.cos(distance_rad)[:, None, None] * points[:, None] + np.sin(distance_rad)[:, None, None] * heading


def by_curve(partners: Partners, size: int, order: torch.Generator) -> Iterator[np.ndarray]:
    """As many batches as :func:`at_random` gives: half of each are anchors in random order, the rest their partners.

    A partner that is in the batch already is replaced by a random photo, so that no photo stands twice in a batch.
    """
    shuffled = torch.randperm(len(partners.rows), generator=order).numpy()
    half = size - size // 2
    for step in range(len(shuffled) // size):
        anchors = shuffled[step * half : (step + 1) * half]
        both = np.concatenate((anchors, partners.draw(anchors[: size - half], order)))
        first_spare = (step + 1) * half
        spare = shuffled.take(range(first_spare, first_spare + min(2 * size, len(shuffled))), mode="wrap")
        candidates = np.concatenate((both, spare))
        _, first = np.unique(candidates, return_index=True)
        yield partners.rows[candidates[np.sort(first)][:size]]
