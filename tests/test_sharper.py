"""Statements about the four sharper margins, against double loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from test_negatives import ALPHA, BETA, NUGGET, PARTIAL_SILL, PHOTOS, PLACES, batch, correlation, pairs

from lib.method.loss import contrastive_loss
from study import sharper


def off_diagonal() -> list[tuple[int, int, float]]:
    return [(i, j, h) for i, j, _, _, h in pairs(batch()) if i != j]


def test_the_untied_margin_is_the_margin_where_both_are_tied() -> None:
    found = sharper.untied_margin(batch()).log_weight
    for i, j, h in off_diagonal():
        assert found[i, j].item() == pytest.approx(BETA - ALPHA * correlation(h), abs=5e-5)
    tied = sharper.untied_margin(batch(alpha=BETA)).log_weight
    assert torch.allclose(tied, sharper.semivariance_margin(batch()).log_weight, atol=1e-5)


@pytest.mark.parametrize(("progress", "grown"), [(0.0, 0.0), (0.15, 0.5), (0.3, 1.0), (0.9, 1.0)])
def test_the_annealed_margin_grows_for_a_while(progress: float, grown: float) -> None:
    found = sharper.annealed_margin(batch(progress=progress)).log_weight
    assert torch.allclose(found, grown * sharper.semivariance_margin(batch()).log_weight)


def test_the_residual_margin_moves_by_standardised_looks() -> None:
    candidates = batch()
    off = [(i, j, candidates.residual[i, j].item(), h) for i, j, h in off_diagonal()]
    ordered = sorted([*(h for *_, h in off), *[math.pi] * PHOTOS])
    edges = [ordered[int(k / 16 * (len(ordered) - 1))] for k in range(1, 16)]
    classes = {(i, j): sum(edge < h for edge in edges) for i, j, _, h in off}
    found = sharper.residual_margin(candidates).log_weight
    for i, j, r, h in off:
        alike = [value for a, b, value, _ in off if classes[a, b] == classes[i, j]]
        deviation = math.sqrt(max(np.var(alike), 1e-6))
        centre = np.mean([value for a, _, value, _ in off if a == i])
        expected = (1.0 - correlation(h)) * (BETA + ALPHA * (r - centre) / deviation)
        assert found[i, j].item() == pytest.approx(expected, rel=2e-3, abs=2e-3)


def test_kriging_targets_are_the_weights_of_leaving_one_out() -> None:
    candidates = batch()
    found = sharper.kriging_targets(candidates)
    distances = np.zeros((PLACES, PLACES))
    for a, b in itertools.combinations(range(PLACES), 2):
        whole = batch(logits=torch.zeros(PLACES, PLACES))
        distances[a, b] = distances[b, a] = whole.distance_rad[a, b].item()
    covariance = PARTIAL_SILL * np.vectorize(correlation)(distances)
    for i in range(PHOTOS):
        others = [j for j in range(PLACES) if j != i]
        system = covariance[np.ix_(others, others)] + NUGGET * np.eye(PLACES - 1)
        weights = np.maximum(np.linalg.solve(system, covariance[others, i]), 0.0)
        expected = ALPHA * weights / weights.sum() if weights.sum() > 0.0 else weights
        assert found.targets[i, others].numpy() == pytest.approx(expected, abs=1e-3)
        assert found.targets[i, i].item() == pytest.approx(1.0 - expected.sum(), abs=1e-6)
    assert torch.equal(found.log_weight, sharper.semivariance_margin(candidates).log_weight)
    assert torch.isfinite(contrastive_loss(candidates.logits, found))
