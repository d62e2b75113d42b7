"""Sharper margins, each judged by a prediction of study/PLAN.md, and margins with attracting targets, of
study/PLAN3.md.

They are strategies like those of :mod:`lib.method.negatives`, but registered only where they are trained.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from lib.method.geodesy import EARTH_RADIUS_KM, chord_to_rad, unit_vectors
from lib.method.negatives import Pairs, Reweighting, semivariance_margin, strategy

ANNEALED_SHARE = 0.3
"""Share of a training's steps over which ``annealed_margin`` grows."""
CLASSES = 16
"""Classes of distance in which ``residual_margin`` measures a standard deviation."""


def untied_margin(pairs: Pairs) -> Reweighting:
    """log w_ij = beta - alpha C(h_ij). ``semivariance_margin`` where alpha = beta. Ours."""
    return Reweighting(log_weight=pairs.beta - pairs.alpha * pairs.correlation)


def annealed_margin(pairs: Pairs) -> Reweighting:
    """log w_ij = min(1, t / 0.3) beta (1 - C(h_ij)), t the share of the steps that are done. Ours."""
    grown = min(1.0, pairs.progress / ANNEALED_SHARE)
    return Reweighting(log_weight=grown * pairs.beta * (1.0 - pairs.correlation))


def residual_margin(pairs: Pairs) -> Reweighting:
    """log w_ij = (1 - C(h_ij)) (beta + alpha (r_ij - mean_j r_ij) / sd(h_ij)).

    sd(h) is the standard deviation of r among the batch's pairs of about the same distance, in ``CLASSES`` of
    equally many pairs. The mean over j leaves the margin of a photo as it is on average. Ours.
    """
    off, residual = ~pairs.positive, pairs.residual
    steps = torch.linspace(0.0, 1.0, CLASSES + 1, device=residual.device)[1:-1]
    ordered = pairs.distance_rad.masked_fill(~off, math.pi).flatten().sort().values
    edges = ordered[(steps * (ordered.numel() - 1)).long()]
    of_class = (
        F.one_hot(torch.bucketize(pairs.distance_rad, edges), CLASSES).to(residual.dtype) * off[..., None]
    )
    count = of_class.sum((0, 1)).clamp(min=1.0)
    mean = (of_class * residual[..., None]).sum((0, 1)) / count
    variance = (of_class * residual[..., None] ** 2).sum((0, 1)) / count - mean**2
    deviation = (of_class @ variance.clamp(min=1e-6)).sqrt().clamp(min=1e-3)
    centre = (residual * off).sum(1, keepdim=True) / off.sum(1, keepdim=True)
    looks = (residual - centre) / deviation
    return Reweighting(log_weight=(1.0 - pairs.correlation) * (pairs.beta + pairs.alpha * looks))


def kriging_targets(pairs: Pairs) -> Reweighting:
    """Target 1 - alpha on the own place, alpha on the others by their kriging weights for place i.

    Weights [(K + n I)^-1 k_i]+ of simple kriging with place i left out; K = partial sill C(h) among the
    places, k_i its column, n the nugget. With A = (K + n I)^-1 over all places they are -A_ij / A_ii
    (Dubrule 1983). Log-weights as ``semivariance_margin``. Ours.
    """
    places = unit_vectors(pairs.place_deg)
    apart = chord_to_rad(2.0 - 2.0 * places @ places.T).float().fill_diagonal_(0.0)
    covariance = pairs.curve.partial_sill * pairs.curve.correlation_of(pairs.curve.gamma(apart))
    noise = max(pairs.curve.nugget, 1e-3 * pairs.curve.partial_sill)
    covariance.diagonal().fill_(pairs.curve.partial_sill + noise)
    inverse = torch.linalg.inv(covariance.double())
    weights = (-inverse / inverse.diagonal()[:, None])[: len(pairs.logits)].clamp(min=0.0).float()
    return _margin_towards(pairs, weights)


def uniform_targets(pairs: Pairs) -> Reweighting:
    """``semivariance_margin``, target 1 - alpha on the own place, the rest on all others alike. Ours."""
    return _margin_towards(pairs, torch.ones_like(pairs.logits))


def distance_targets(pairs: Pairs) -> Reweighting:
    """``semivariance_margin``, target 1 - alpha on the own place, the rest on the others by
    exp(-h / softness_km). Ours."""
    return _margin_towards(pairs, torch.exp(-pairs.distance_rad * (EARTH_RADIUS_KM / pairs.softness_km)))


def correlation_targets(pairs: Pairs) -> Reweighting:
    """``semivariance_margin``, target 1 - alpha on the own place, the rest on the others by C(h). Ours."""
    return _margin_towards(pairs, pairs.correlation.clamp(min=0.0))


def _margin_towards(pairs: Pairs, weights: torch.Tensor) -> Reweighting:
    """``semivariance_margin`` with the share alpha of each target spread over other places by ``weights``
    [B, M]; a photo whose weights are all 0 keeps its whole target."""
    weights = weights.masked_fill(pairs.positive, 0.0)
    total = weights.sum(1, keepdim=True)
    shared = torch.where(total > 0.0, pairs.alpha * weights / total.clamp(min=1e-12), 0.0)
    own = 1.0 - shared.sum(1, keepdim=True)
    log_weight = semivariance_margin(pairs).log_weight
    return Reweighting(log_weight=log_weight, targets=torch.where(pairs.positive, own, shared))


def register() -> None:
    """Make them known to :func:`lib.method.negatives.get`."""
    entries = {
        untied_margin: ("margin of its own height, lowered by the correlation", "beta", "alpha"),
        annealed_margin: ("semivariance_margin that grows over the first 30 % of the steps", "beta"),
        residual_margin: ("semivariance_margin, and more for look-alikes", "beta", "alpha"),
        kriging_targets: ("semivariance_margin, targets shared by kriging weights", "beta", "alpha"),
        uniform_targets: ("semivariance_margin, targets shared by all places alike", "beta", "alpha"),
        distance_targets: ("semivariance_margin, targets shared by distance", "beta", "alpha", "softness_km"),
        correlation_targets: ("semivariance_margin, targets shared by correlation", "beta", "alpha"),
    }
    for reweight, (description, *parameters) in entries.items():
        strategy(reweight.__name__, description, *parameters)(reweight)
