"""Statements about distances, offsets, cells and lattices on the sphere."""

from __future__ import annotations

import math

import numpy as np
import pyproj
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.data import sphere
from lib.method import geodesy
from lib.method.geodesy import EARTH_RADIUS_KM

SPHERE = pyproj.Geod(a=EARTH_RADIUS_KM * 1000.0, f=0.0)
place = st.tuples(st.floats(-90.0, 90.0), st.floats(-180.0, 180.0))
ODD = [
    ((20.0, 30.0), (-20.0, -150.0)), ((20.0, 30.0), (-20.0, -150.0001)), ((10.0, 179.999), (10.0, -179.999)),
    ((90.0, 0.0), (-90.0, 123.0)), ((90.0, 10.0), (90.0, -170.0)), ((48.1, 11.6), (48.1, 11.6)),
]  # fmt: skip
"""Antipodes, nearly antipodes, the 180th meridian, both poles, one pole, one place."""


def by_pyproj_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    return SPHERE.inv(a[1], a[0], b[1], b[0])[2] / 1000.0


def by_vectors_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    """atan2(|a x b|, a . b) R: well conditioned everywhere, antipodes included."""
    first, second = (
        np.array([math.cos(la) * math.cos(lo), math.cos(la) * math.sin(lo), math.sin(la)])
        for la, lo in (map(math.radians, a), map(math.radians, b))
    )
    return math.atan2(np.linalg.norm(np.cross(first, second)), float(first @ second)) * EARTH_RADIUS_KM


class TestDistance:
    @given(st.tuples(place, place) | st.sampled_from(ODD))
    def test_it_is_that_of_pyproj_on_the_same_sphere(self, both: tuple) -> None:
        expected = by_pyproj_km(*both)
        # near the antipode the haversine formula keeps half the digits: 0.3 m there, a millimetre elsewhere
        tolerance = 1e-6 if expected < 20_000.0 else 3e-4
        assert geodesy.distance_km(*both) == pytest.approx(expected, abs=tolerance)
        assert by_vectors_km(*both) == pytest.approx(expected, abs=1e-5)

    @given(st.tuples(place, place) | st.sampled_from(ODD))
    def test_the_matrix_is_right_to_1e_7_rad_for_arrays_and_tensors(self, both: tuple) -> None:
        (a, b), h = both, by_vectors_km(*both) / EARTH_RADIUS_KM
        for make in (np.array, lambda rows: torch.tensor(rows, dtype=torch.float64)):
            found = np.asarray(geodesy.pairwise_distance_rad(make([a, b]), make([b, a, a])))
            assert np.allclose(found, [[h, 0.0, 0.0], [0.0, h, h]], rtol=0.0, atol=1e-7)

    def test_float32_coordinates_do_not_lose_a_street(self) -> None:
        a, b = torch.tensor([[48.0, 11.0]]), torch.tensor([[48.001, 11.0]])
        metres = geodesy.rad_to_km(geodesy.pairwise_distance_rad(a, b)).item() * 1000.0
        assert metres == pytest.approx(111.2, abs=1.0)


class TestWrap:
    @given(st.floats(-1_000.0, 1_000.0))
    def test_the_meridian_is_the_same_modulo_a_turn(self, longitude: float) -> None:
        wrapped = sphere.wrap_longitude(longitude)
        turns = (wrapped - longitude) / 360.0
        assert -180.0 <= wrapped <= 180.0 and turns == pytest.approx(round(turns), abs=1e-12)


class TestDestination:
    @given(st.floats(-85, 85), st.floats(-180, 180), st.floats(0, 6.28), st.floats(1.0, 2_000.0))
    def test_it_is_where_pyproj_arrives(self, lat: float, lon: float, bearing: float, length: float) -> None:
        longitude, latitude, _ = SPHERE.fwd(lon, lat, math.degrees(bearing), length * 1000.0)
        east, north = np.array(length * math.sin(bearing)), np.array(length * math.cos(bearing))
        end = sphere.destination(np.array((lat, lon)), east, north)
        assert float(geodesy.distance_km(end, (latitude, longitude))) < 1e-5


class TestJitter:
    @pytest.mark.parametrize("latitude", [0.0, 60.0, -80.0, 85.0])
    def test_metres_are_metres_at_every_latitude_in_float32(self, latitude: float) -> None:
        still = torch.tensor([[latitude, 179.9999]], dtype=torch.float32).repeat(20_000, 1)
        moved = sphere.jitter([still], [1_000.0], torch.Generator().manual_seed(0)).double().numpy()
        north_m = np.deg2rad(moved[:, 0] - still[:, 0].double().numpy()) * EARTH_RADIUS_KM * 1000.0
        total_m = geodesy.distance_km(moved, still.double().numpy()) * 1000.0
        assert np.std(north_m) == pytest.approx(1_000.0, rel=0.03)
        assert np.sqrt(np.mean(total_m**2) / 2.0) == pytest.approx(1_000.0, rel=0.03)  # hence the east's, too
        assert abs(np.mean(north_m)) < 30.0

    def test_the_noise_is_that_of_its_generator_and_leaves_the_input_alone(self) -> None:
        still = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
        first, second = (sphere.jitter([still], [150.0], torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(first, second) and not torch.equal(first, still)
        assert still.tolist() == [[10.0, 20.0], [30.0, 40.0]]

    def test_each_part_has_its_own_noise_and_a_part_without_draws_nothing(self) -> None:
        still, other = torch.tensor([[10.0, 20.0]] * 500), torch.tensor([[-40.0, 5.0]] * 700)
        together = sphere.jitter([still, other], [100.0, 5_000.0], torch.Generator().manual_seed(2))
        draw = torch.Generator().manual_seed(2)
        apart = [sphere.jitter([still], [100.0], draw), sphere.jitter([other], [5_000.0], draw)]
        assert torch.allclose(together, torch.cat(apart), atol=1e-5)
        second = sphere.jitter([still, other], [0.0, 5_000.0], torch.Generator().manual_seed(2))
        alone = sphere.jitter([other], [5_000.0], torch.Generator().manual_seed(2))
        assert torch.allclose(second, torch.cat((still, alone)), atol=1e-5)


class TestNearest:
    def test_it_is_the_smallest_of_all_distances(self) -> None:
        generator = np.random.default_rng(4)
        photos, among = sphere.uniform_on_sphere(60, generator), sphere.uniform_on_sphere(200, generator)
        naive = np.array([[by_pyproj_km(tuple(a), tuple(b)) for b in among] for a in photos])
        for rank in (1, 2, 5):
            row, distance = sphere.nearest(photos, among, rank)
            assert np.array_equal(row, np.argsort(naive, 1)[:, rank - 1])
            assert np.allclose(distance, np.sort(naive, 1)[:, rank - 1], atol=1e-5)


class TestLattice:
    def test_each_point_stands_for_the_stated_surface(self) -> None:
        points = sphere.lattice(300.0)
        assert len(points) * 300.0**2 == pytest.approx(4.0 * math.pi * EARTH_RADIUS_KM**2, rel=1e-3)
        assert (np.abs(points) <= [90.0, 180.0]).all()


class TestUniform:
    def test_equal_areas_hold_equally_many_and_the_limit_holds(self) -> None:
        points = sphere.uniform_on_sphere(40_000, np.random.default_rng(6), 60.0)
        assert np.abs(points[:, 0]).max() <= 60.0
        below_30 = (np.abs(points[:, 0]) < 30.0).mean()
        assert below_30 == pytest.approx(0.5 / math.sin(math.radians(60.0)), abs=0.01)
        assert (points[:, 1] < 0.0).mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("side_km", [500.0, 1_000.0, 2_000.0, 30_000.0])
def test_every_cell_has_the_same_area_and_together_they_are_the_earth(side_km: float) -> None:
    grid = sphere.EqualAreaGrid.of(side_km)
    south, west, north, east = np.deg2rad(grid.bounds_of(np.arange(grid.counts.sum()))).T
    area = (east - west) * (np.sin(north) - np.sin(south)) / (4.0 * np.pi)
    assert area == pytest.approx(np.full(len(area), 1.0 / len(area)), rel=1e-9)
    if side_km < 10_000.0:
        assert sphere.EARTH_AREA_KM2 / len(area) == pytest.approx(side_km**2, rel=0.05)


def test_poles_and_the_180th_meridian_have_a_cell() -> None:
    grid = sphere.EqualAreaGrid.of(1_000.0)
    corners = grid.cell_of(np.array([[-90.0, 0.0], [90.0, 179.999999], [0.0, 180.0], [0.0, -180.0]]))
    assert corners[0] >= 0 and corners[1] == grid.counts.sum() - 1
    assert corners[2] == corners[3]
