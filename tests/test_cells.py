"""Statements about the equal-area cells that are held out."""

from __future__ import annotations

import numpy as np
import pytest

from lib.data.sphere import EARTH_AREA_KM2, EqualAreaGrid


@pytest.mark.parametrize("side_km", [500.0, 1_000.0, 2_000.0, 30_000.0])
def test_every_cell_has_the_same_area_and_together_they_are_the_earth(side_km: float) -> None:
    grid = EqualAreaGrid.of(side_km)
    south, west, north, east = np.deg2rad(grid.bounds_of(np.arange(grid.counts.sum()))).T
    area = (east - west) * (np.sin(north) - np.sin(south)) / (4.0 * np.pi)
    assert area == pytest.approx(np.full(len(area), 1.0 / len(area)), rel=1e-9)
    if side_km < 10_000.0:
        assert EARTH_AREA_KM2 / len(area) == pytest.approx(side_km**2, rel=0.05)


def test_poles_and_the_180th_meridian_have_a_cell() -> None:
    grid = EqualAreaGrid.of(1_000.0)
    corners = grid.cell_of(np.array([[-90.0, 0.0], [90.0, 179.999999], [0.0, 180.0], [0.0, -180.0]]))
    assert corners[0] >= 0 and corners[1] == grid.counts.sum() - 1
    assert corners[2] == corners[3]
