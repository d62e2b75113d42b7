"""Losses, gradients, distances and curves stay finite and right where numbers are extreme."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import fitted
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data import sphere
from lib.method import geodesy, negatives
from lib.method.empirical import EmpiricalSemivariogram, exact
from lib.method.errors import BundleError
from lib.method.loss import contrastive_loss
from lib.method.negatives import REGISTRY, Pairs, Reweighting
from lib.method.semivariogram import Curve, fit

CURVE = fitted()
PLACES = torch.tensor([[90.0, 0.0], [-90.0, 0.0], [0.0, 0.0], [0.0, 180.0], [0.0, -180.0], [0.0, 0.0],
                       [45.0, 30.0], [-45.0, -150.0]])  # fmt: skip
"""Poles, antipodes, the 180th meridian from both sides, one place twice."""


def candidates(rows: int, columns: int, scale: float, seed: int = 0, **changes: object) -> Pairs:
    """Photos against places: logits up to ``scale``, looks at random, places among ``PLACES``."""
    draw = torch.Generator().manual_seed(seed)
    unit = F.normalize(torch.randn(columns, 8, generator=draw), dim=1)
    unit[columns // 2] = unit[0]  # the very same look
    places = PLACES[torch.randint(len(PLACES), (columns,), generator=draw)]
    logits = scale * (2.0 * torch.rand(rows, columns, generator=draw) - 1.0)
    return Pairs(logits, unit, places, Curve(CURVE), partner_deg=places.roll(3, 0), **changes)


def loss_and_gradient(logits: torch.Tensor, reweighting: Reweighting) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.clone().requires_grad_()
    loss = contrastive_loss(logits, reweighting)
    loss.backward()
    return loss.detach(), logits.grad


def exact_loss(logits: torch.Tensor, reweighting: Reweighting) -> float:
    """The loss by its definition, in float64."""
    z, positive = logits.double(), torch.eye(*logits.shape, dtype=torch.bool)
    if reweighting.factor is not None:
        z = z * reweighting.factor.double().masked_fill(positive, 1.0)
    if reweighting.log_weight is not None:
        z = z + reweighting.log_weight.double().masked_fill(positive, 0.0)
    target = (positive if reweighting.targets is None else reweighting.targets).double()
    return float(-(target / target.sum(1, keepdim=True) * torch.log_softmax(z, 1)).sum(1).mean())


@settings(max_examples=150)
@given(
    st.integers(2, 9), st.integers(0, 9), st.floats(1e-6, 1e4), st.sampled_from([0.0, 2.0, 1e3]),
    st.integers(0, 2**31), st.sampled_from(sorted(REGISTRY)),
)  # fmt: skip
def test_loss_and_gradient_are_finite_and_float32_is_within_1e_5_of_float64(
    rows: int, more: int, scale: float, strength: float, seed: int, name: str
) -> None:
    """Relative to the largest logit, which is what float32 rounds; for every strategy, shape and scale."""
    seen = candidates(rows, rows + more, scale, seed, alpha=strength, beta=strength)
    reweighting = negatives.get(name).reweight(seen)
    loss, gradient = loss_and_gradient(seen.logits, reweighting)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all() and loss > -1e-3 * max(1.0, scale)
    factor = 1.0 if reweighting.factor is None else float(reweighting.factor.max())
    largest = max(1.0, scale * factor, 2.0 * strength)
    assert abs(float(loss) - exact_loss(seen.logits, reweighting)) <= 1e-5 * largest


@pytest.mark.parametrize("name", ["infonce", "decayed", "distance_soft", "soft_targets", "hcl"])
def test_masked_candidates_take_no_part(name: str) -> None:
    """A photo that is still queued is no negative: -inf among the logits."""
    seen = candidates(4, 8, 14.0)
    logits = seen.logits.clone()
    logits[:, 6] = -math.inf
    loss, gradient = loss_and_gradient(logits, negatives.get(name).reweight(replace(seen, logits=logits)))
    assert torch.isfinite(loss) and torch.isfinite(gradient).all() and not gradient[:, 6].any()


coordinates = st.tuples(st.floats(-90, 90), st.floats(-180, 180))


@given(st.lists(coordinates, min_size=2, max_size=12))
def test_a_strategys_distances_are_within_a_metre_of_float64(places: list[tuple[float, float]]) -> None:
    """In float32 as the training has them; half a kilometre at the antipode, where the arc sine is steep."""
    there = torch.tensor(places, dtype=torch.float32)
    seen = replace(candidates(2, len(places), 1.0), place_deg=there)
    true = geodesy.pairwise_distance_rad(there[:2].double().numpy(), there.double().numpy())
    error_km = np.abs(seen.distance_rad.double().numpy() - true) * geodesy.EARTH_RADIUS_KM
    assert (error_km <= np.where(true < 3.1, 0.005, 0.5)).all(), error_km.max()


def test_noise_at_the_poles_and_the_180th_meridian_stays_on_the_globe() -> None:
    still = PLACES.repeat(200, 1)
    moved = sphere.jitter([still], [1_000.0], torch.Generator().manual_seed(0))
    assert torch.isfinite(moved).all() and (moved.abs().amax(0) <= torch.tensor([90.0, 180.0])).all()
    assert geodesy.distance_km(moved.double().numpy(), still.double().numpy()).max() < 6.0


@settings(max_examples=40)
@given(st.integers(2, 40), st.sampled_from([1e-3, 0.05, 0.5, math.pi]), st.integers(0, 2**31))
def test_a_semivariogram_counts_each_pair_once(photos: int, width: float, seed: int) -> None:
    seen = candidates(2, photos, 1.0, seed)
    sums = exact(seen.unit.__getitem__, seen.place_deg.double().numpy(), width)
    assert sums.pairs.sum() == photos * (photos - 1) // 2
    there = sums.pairs > 0
    assert np.isfinite(sums.gamma[there]).all() and np.isnan(sums.gamma[~there]).all()
    assert (sums.gamma[there] >= -1e-6).all() and (sums.gamma[there] <= 2.0 + 1e-6).all()


@settings(max_examples=10)
@given(st.lists(st.floats(0.0, 2.0), min_size=5, max_size=25), st.sampled_from(["none", "pairs"]))
def test_a_fit_to_anything_is_a_finite_curve_or_a_sentence(values: list[float], weights: str) -> None:
    lag, pairs, gamma = (np.arange(len(values)) + 0.5) * 0.1, np.full(len(values), 9), np.array(values)
    sums = EmpiricalSemivariogram(0.1, pairs, 9 * lag, 9 * gamma, 9 * gamma**2)
    try:
        found = fit(sums, weights=weights)
    except BundleError as error:
        assert "\n" not in str(error)
        return
    numbers = [found.nugget, found.partial_sill, found.length_scale_rad, found.exponent, found.range_rad]
    assert np.isfinite(numbers).all() and found.partial_sill > 0
    assert np.isfinite(found.gamma(np.linspace(0, math.pi, 50))).all()
