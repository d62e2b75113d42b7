"""Statements about frequencies that are drawn by the places or from the curve."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import fitted
from scipy import stats

from lib.data import sphere
from lib.method import frequencies
from lib.method.errors import BundleError
from lib.method.geodesy import distance_km
from lib.method.model import GeoCLIP, geoclip_locations


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("family", "exponent"),
    [*(("Stable", exponent) for exponent in (0.6, 1.0, 1.5, 2.0)), ("Exponential", None), ("Gaussian", None)],
)
def test_their_mean_cosine_is_the_fitted_correlation(family: str, exponent: float | None) -> None:
    curve = fitted(family=family, exponent=exponent, length_scale_rad=0.2)
    drawn = frequencies.from_curve(curve, 100_000, math.inf, seeded())
    for h in (0.01, 0.1, 0.2, 0.6):
        x = torch.tensor([0.6 * h, 0.8 * h]) * frequencies.UNITS_PER_RAD
        found = torch.cos(2.0 * math.pi * drawn @ x).mean().item()
        assert found == pytest.approx(curve.correlation(np.array([h]))[0], abs=0.012)


@pytest.mark.parametrize("b", [0.2, 0.5, 0.9, 1.0])
def test_the_positive_stable_draws_have_its_laplace_transform(b: float) -> None:
    drawn = frequencies.positive_stable(b, 200_000, seeded(1))
    for s in (0.1, 1.0, 5.0):
        assert torch.exp(-s * drawn).mean().item() == pytest.approx(math.exp(-(s**b)), abs=0.005)


def test_none_is_beyond_the_limit_and_they_ascend() -> None:
    drawn = frequencies.from_curve(fitted(exponent=0.6), 768, 20.0, seeded())
    lengths = drawn.norm(dim=1)
    assert drawn.shape == (768, 2) and lengths.max() <= 20.0 and (lengths.diff() >= 0).all()
    assert torch.equal(drawn, frequencies.from_curve(fitted(exponent=0.6), 768, 20.0, seeded()))
    assert not torch.equal(drawn, frequencies.from_curve(fitted(exponent=0.6), 768, 20.0, seeded(1)))


def test_a_radian_has_the_projections_length() -> None:
    """Equal Earth is of equal area: the length of a radian is the root of the area of a small square."""
    half = 0.05
    for place in ([0.0, 0.0], [40.0, 10.0], [-60.0, 120.0]):
        corners = [[-half, -half], [-half, half], [half, half], [half, -half]]
        corner = torch.tensor(place) + torch.tensor(corners)
        x, y = geoclip_locations().equal_earth_projection(corner.float()).double().T
        area = 0.5 * abs((x * y.roll(-1) - y * x.roll(-1)).sum().item())
        true = math.radians(2.0 * half) ** 2 * math.cos(math.radians(place[0]))
        assert math.sqrt(area / true) == pytest.approx(frequencies.UNITS_PER_RAD, rel=5e-3)


def test_the_disc_is_filled_evenly() -> None:
    drawn = frequencies.on_disc(40_000, 12.0, seeded())
    length, angle = drawn.norm(dim=1).numpy(), torch.atan2(*drawn.T).numpy()
    assert length.max() <= 12.0 and (np.diff(length) > -1e-5).all()
    assert stats.kstest((length / 12.0) ** 2, "uniform").pvalue > 0.01
    assert stats.kstest(angle / (2.0 * np.pi) + 0.5, "uniform").pvalue > 0.01


def test_the_nyquist_frequency_is_that_of_the_density() -> None:
    """Of N places scattered over the sphere each has 4 pi / N: the Nyquist frequency follows at once."""
    places = sphere.uniform_on_sphere(4_000, np.random.default_rng(0))
    expected = 0.5 / (math.sqrt(4.0 * math.pi / 4_000) * frequencies.UNITS_PER_RAD)
    assert frequencies.nyquist(places) == pytest.approx(expected, rel=0.03)
    copies = np.repeat(places, 10, axis=0)
    assert frequencies.nyquist(copies) == frequencies.nyquist(places)
    tracks = (places[:, None] + [0.0, 3e-4] * np.arange(3)[:, None]).reshape(-1, 2)  # three photos 33 m apart
    assert frequencies.nyquist(tracks) < 3.0 * frequencies.nyquist(places)


def test_the_nyquist_frequency_is_that_of_a_double_loop() -> None:
    places = sphere.uniform_on_sphere(60, np.random.default_rng(0))
    apart = np.sort(distance_km(places[:, None], places[None]), 1)
    middle = np.median(apart[:, 8]) / 6371.0088
    spacing = middle * math.sqrt(math.pi / stats.gamma(8).median()) * frequencies.UNITS_PER_RAD
    assert frequencies.nyquist(places) == pytest.approx(1.0 / (2.0 * spacing), rel=1e-4)
    with pytest.raises(BundleError, match="need two places or more"):
        frequencies.nyquist(np.repeat(places[:1], 5, axis=0))


def test_the_encoder_gets_them_in_order_and_a_state_keeps_them() -> None:
    drawn = frequencies.hand_set([1.0, 4.0, 16.0], 256, seeded())
    assert [round(part.std().item()) for part in drawn.chunk(3)] == [1, 4, 16]
    model = GeoCLIP(8)
    frequencies.set_in(model.location_encoder, drawn)
    assert torch.equal(model.location_encoder.LocEnc1.capsule[0].b, drawn[256:512])
    again = GeoCLIP(8)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.location_encoder.LocEnc2.capsule[0].b, drawn[512:])


@pytest.mark.parametrize(
    ("changes", "most", "said"),
    [
        ({"family": "Matern", "exponent": 0.5}, 50.0, "needs a planar Stable, Exponential or Gaussian curve"),
        ({"metric": "sphere"}, 50.0, "not sphere Stable"),
        ({"length_scale_rad": 1e-7}, 1e-3, "set training.frequencies=geoclip"),
    ],
)
def test_what_cannot_be_drawn_is_a_sentence(changes: dict, most: float, said: str) -> None:
    with pytest.raises(BundleError, match=said):
        frequencies.from_curve(fitted(**changes), 8, most, seeded())
