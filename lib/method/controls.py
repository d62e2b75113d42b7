"""What the strategies of :mod:`lib.method.negatives` are compared with.

Peers weigh without a curve; controls leave a part of what the curve says out.
"""

from __future__ import annotations

import math

import torch

from .errors import BundleError
from .geodesy import EARTH_RADIUS_KM, chord_to_rad, unit_vectors
from .negatives import Pairs, Reweighting, semivariance_margin, strategy


@strategy("distance_soft", "targets spread by distance alone", "softness_km", needs_curve=False, kind="peer")
def distance_soft(pairs: Pairs) -> Reweighting:
    """Target share of place j: exp(-h_ij in km / softness_km), 1 for photo i's own place.

    Source: targets softened by geodesic distance, as in spatially weighted CLIP (arXiv 2604.04357); the form
    is ours.
    """
    shares = torch.exp(-pairs.distance_rad * (EARTH_RADIUS_KM / pairs.softness_km))
    return Reweighting(targets=shares.masked_fill(pairs.positive, 1.0))


@strategy("hcl", "hard negatives by the logits alone", "concentration", needs_curve=False, kind="peer")
def hcl(pairs: Pairs) -> Reweighting:
    """w_ij = e^(concentration z_ij), scaled so that photo i's negatives have mean weight 1.

    Source: Robinson et al. 2021, arXiv 2010.04592, without the correction for false negatives.
    """
    excluded = pairs.positive | pairs.logits.isneginf()  # 0 times infinity is no number
    log_weight = (pairs.concentration * pairs.logits).masked_fill(excluded, -math.inf)
    count = log_weight.isfinite().sum(1, keepdim=True)
    log_mean = torch.logsumexp(log_weight, 1, keepdim=True) - count.clamp(min=1).log()
    return Reweighting(log_weight=log_weight - log_mean.masked_fill(count == 0, 0.0))


@strategy("similarity", "look alone, no geography", "beta", needs_curve=False, kind="control")
def similarity(pairs: Pairs) -> Reweighting:
    """log w_ij = beta u_i . u_j. Control: compare with it to see what the semivariogram adds."""
    return Reweighting(log_weight=pairs.beta * (1.0 - pairs.dissimilarity))


@strategy("constant_offset", "all negatives up alike", "beta", needs_curve=False, kind="control")
def constant_offset(pairs: Pairs) -> Reweighting:
    """log w_ij = beta. Control: a plain margin, the same for every pair."""
    return Reweighting(log_weight=torch.full_like(pairs.logits, pairs.beta))


@strategy(
    "distance_margin", "margin by a kernel of distance set by hand", "beta", "softness_km",
    needs_curve=False, kind="control",
)  # fmt: skip
def distance_margin(pairs: Pairs) -> Reweighting:
    """log w_ij = beta (1 - exp(-h_ij in km / softness_km)). Control: no looks were fitted."""
    kernel = torch.exp(-pairs.distance_rad * (EARTH_RADIUS_KM / pairs.softness_km))
    return Reweighting(log_weight=pairs.beta * (1.0 - kernel))


@strategy("shuffled", "semivariance_margin's weights on the wrong pairs", "beta", kind="control")
def shuffled(pairs: Pairs) -> Reweighting:
    """log w_ij = that of ``semivariance_margin`` for i and pi(j), pi one permutation of the training photos.

    Control: the same weights, but not by the place that they stand at. pi is the same in every step.

    Raises:
        BundleError: outside a training, which alone knows pi.
    """
    if pairs.partner_deg is None:
        raise BundleError("strategy 'shuffled' needs partner_deg, the places of a permutation of the photos")
    stead = Pairs(pairs.logits, pairs.unit, pairs.place_deg, pairs.curve, beta=pairs.beta)
    points = unit_vectors(pairs.place_deg)[: len(pairs.logits)]
    apart = chord_to_rad(2.0 - 2.0 * points @ unit_vectors(pairs.partner_deg).T).float()
    stead.__dict__["distance_rad"] = apart
    return semivariance_margin(stead)
