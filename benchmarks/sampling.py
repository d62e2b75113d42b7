"""A sample of pairs instead of all of 20,000 photos: its time against the exact estimate's, and how often its
error bars hold the exact curve."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks.harness import Result, in_turn, measure, row
from benchmarks.semivariogram import WIDTH_RAD, world
from lib.data import sampling
from lib.method import empirical

SIZES = (50_000, 100_000, 200_000, 400_000)
PHOTOS, DIMENSION, SEEDS = 20_000, 768, 8
LEAST_PAIRS = 20
"""A lag of fewer pairs is not counted: its own spread is not known well enough for 1.96 standard errors."""
BETWEEN = 0.93, 0.97


def held(sample: empirical.EmpiricalSemivariogram, exact: empirical.EmpiricalSemivariogram) -> np.ndarray:
    """Whether each lag's 95 % interval holds the exact mean; of lags that were sampled, not taken whole, and
    hold enough pairs."""
    counted = (sample.pairs >= LEAST_PAIRS) & (np.abs(sample.gamma - exact.gamma) > 1e-9)
    return (np.abs(sample.gamma - exact.gamma) < 1.96 * sample.standard_error)[counted]


def run(sizes: Sequence[int], photos: int = PHOTOS) -> Result:
    """Measure each of ``sizes``, pairs drawn; the reference is all pairs, which a sample of this size is not
    worth drawing for."""
    unit, coordinates = world(photos, DIMENSION)
    exact = measure(partial(empirical.exact, unit.__getitem__, coordinates, WIDTH_RAD), 2)
    rows = []
    for size in sizes:
        drawn = [
            partial(sampling.sampled, unit.__getitem__, coordinates, WIDTH_RAD, pairs=size, seed=seed)
            for seed in range(SEEDS)
        ]
        samples = [one.value for one in in_turn(1, *drawn)]
        inside = np.concatenate([held(sample, exact.value) for sample in samples])
        worst = np.nanmax(np.abs(samples[0].coarsened(50).gamma - exact.value.coarsened(50).gamma))
        rows.append(row(size, measure(drawn[0]), exact, float(worst), coverage=float(inside.mean())))
    goal = (
        f"20,000 photos, {SEEDS} seeds: 95 % intervals of the sampled lags hold the exact mean "
        f"{BETWEEN[0]:.0%} to {BETWEEN[1]:.0%} of the time"
    )
    return Result(
        "sampling", "pairs drawn", goal, all(BETWEEN[0] <= one.coverage <= BETWEEN[1] for one in rows), rows
    )
