"""The empirical semivariogram: N photos, 768 dimensions, 3,142 lags, against the plain way and against the
bare matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import reference
from benchmarks.harness import Result, in_turn, measure, row
from lib.data.sphere import uniform_on_sphere
from lib.method import empirical
from lib.method.geodesy import unit_vectors

SIZES = (2_000, 4_000, 8_000, 20_000, 50_000)
PLAIN_UP_TO = 8_000
WIDTH_RAD = 0.001
TIMES, FLOOR, MEMORY = 500.0, 1.4, 300e6


def world(count: int, dimension: int = 768) -> tuple[torch.Tensor, np.ndarray]:
    """Unit features [N, D] that vary smoothly over the sphere, and coordinates [N, 2]."""
    generator = np.random.default_rng(0)
    coordinates = uniform_on_sphere(count, generator, 70.0)
    phase = (4.0 * unit_vectors(coordinates) @ generator.normal(size=(3, dimension))).astype(np.float32)
    noise = generator.standard_normal((count, dimension), dtype=np.float32)
    return F.normalize(torch.from_numpy(np.cos(phase) + 0.5 * noise), dim=1), coordinates


def products(unit: torch.Tensor, block: int = 1_024) -> None:
    """The floor: u_i . u_j of every pair, block by block, thrown away."""
    for first in range(0, len(unit), block):
        for second in range(first, len(unit), block):
            unit[first : first + block] @ unit[second : second + block].T


def run(sizes: Sequence[int]) -> Result:
    """Measure each of ``sizes``."""
    rows = []
    for count in sizes:
        unit, coordinates = world(count)
        repeats = 3 if count <= 20_000 else 1
        plain, difference = None, None
        estimate = partial(empirical.exact, unit.__getitem__, coordinates, WIDTH_RAD)
        floor, ours = in_turn(repeats, partial(products, unit), estimate)
        if count <= PLAIN_UP_TO:
            plain = measure(partial(reference.semivariogram, unit.numpy(), coordinates, WIDTH_RAD))
            np.testing.assert_array_equal(np.isnan(plain.value), np.isnan(ours.value.gamma))
            difference = float(np.nanmax(np.abs(plain.value - ours.value.gamma)))
        rows.append(row(count, ours, plain, difference, floor))
    times = all(one.ratio >= TIMES for one in rows if one.size == PLAIN_UP_TO)
    floor = all(one.floor_ratio <= FLOOR for one in rows if one.size >= 20_000)
    memory = all((one.ours_peak_bytes or 0) <= MEMORY for one in rows)
    goal = "500 times N x N matrices at N = 8,000; from 20,000 at most 1.4 x the bare products; under 300 MB"
    return Result("semivariogram", "photos", goal, times and floor and memory, rows)
