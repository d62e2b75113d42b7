"""The contrastive loss with reweighted negatives, and the module that other training loops import.

    L_i = -log( e^{z_ii} / (e^{z_ii} + sum_{j != i} w_ij e^{s_ij z_ij}) ),  averaged over the batch

Gradient flows through the logits only. With all weights 1 it is InfoNCE (GeoCLIP's loss). Source: method.md, section 5.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from lib.method.errors import BundleError
from lib.method.negatives import Pairs, Reweighting, Strategy, get
from lib.method.semivariogram import Curve, FittedSemivariogram


class SemivariogramLoss(nn.Module):
    """InfoNCE whose negatives are reweighted by a fitted semivariogram, for any training loop.

    Args:
        curve: what :func:`lib.method.semivariogram.fit_semivariogram` returns; None for a strategy that needs none.
        strategy: a registered name or a strategy, see :mod:`lib.method.negatives`.
        parameters: those that the strategy reads, such as ``beta=8.0``.

    Raises:
        BundleError: the strategy is unknown, needs a curve, or does not read one of ``parameters``.

    Holds the curve as buffers, so ``.to(device)`` moves it. Peak memory of a call: some float32 and one float64 [B, M].
    """

    def __init__(self, curve: FittedSemivariogram | None, strategy: str | Strategy = "semivariance_margin", **parameters: float | None) -> None:
        super().__init__()
        self.strategy, self.parameters = get(strategy) if isinstance(strategy, str) else strategy, parameters
        if unread := set(parameters) - set(self.strategy.parameters):
            reads = ", ".join(self.strategy.parameters) or "none"
            raise BundleError(f"strategy {self.strategy.name!r} does not read {', '.join(sorted(unread))}; it reads {reads}")
        if self.strategy.needs_curve and curve is None:
            raise BundleError(f"strategy {self.strategy.name!r} needs a fitted semivariogram; call fit_semivariogram first")
        self.curve = Curve(curve) if self.strategy.needs_curve else None

    def forward(
        self, logits: torch.Tensor, coordinates_deg: torch.Tensor, features: torch.Tensor, scale: torch.Tensor | float = math.inf
    ) -> torch.Tensor:
        """Mean loss of B photos against M >= B places, a scalar.

        Args:
            logits: z [B, M], any float type; photo i's own place in column i; -inf where a place is no candidate.
            coordinates_deg: [M, 2] latitude and longitude, degrees.
            features: [M, D] frozen features of the photos taken there, of any length, made as those of the curve were.
            scale: exp(s), the largest logit there can be; read by ``debiased`` only.
        """
        unit = F.normalize(features.detach().float(), dim=1)
        return contrastive_loss(logits, self.reweighting(logits, coordinates_deg, unit, scale=scale))

    @torch.no_grad()
    def reweighting(
        self, logits: torch.Tensor, coordinates_deg: torch.Tensor, unit: torch.Tensor, **more: object
    ) -> Reweighting:
        """What the strategy does to these pairs; arguments as in :meth:`forward`, ``unit`` [M, D] of length 1."""
        count = len(logits)
        if logits.shape[1] < count or not logits.shape[1] == len(coordinates_deg) == len(unit):
            shapes = f"{list(logits.shape)}, {list(coordinates_deg.shape)}, {list(unit.shape)}"
            raise BundleError(f"logits [B, M >= B], coordinates [M, 2] and features [M, D] do not fit: {shapes}")
        with torch.autocast(logits.device.type, enabled=False):
            pairs = Pairs(logits.detach(), unit, coordinates_deg, self.curve, **self.parameters, **more)
            return self.strategy.reweight(pairs)


def contrastive_loss(logits: torch.Tensor, reweighting: Reweighting) -> torch.Tensor:
    """Mean of L_i over the batch, a scalar; with no weights exactly InfoNCE.

    Args:
        logits: z [B, M], photo i's own place in column i; -inf: not a candidate.
        reweighting: taken without gradient; what it says of positives is ignored, but for their share in ``targets``.
    """
    positive = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    if reweighting.factor is not None:
        logits = logits * reweighting.factor.detach().masked_fill(positive, 1.0)
    if reweighting.log_weight is not None:
        logits = logits + reweighting.log_weight.detach().masked_fill(positive, 0.0)
    if reweighting.prior:
        return _debiased_loss(logits.float(), positive, reweighting)
    if reweighting.targets is None:
        return F.cross_entropy(logits.float(), torch.arange(len(logits), device=logits.device))
    shares = reweighting.targets.detach().masked_fill(logits.isinf(), 0.0)
    log_probability = torch.log_softmax(logits.float(), 1).masked_fill(logits.isinf(), 0.0)  # 0 x -inf is not a number
    return -(shares / shares.sum(1, keepdim=True) * log_probability).sum(1).mean()


def _debiased_loss(logits: torch.Tensor, positive: torch.Tensor, reweighting: Reweighting) -> torch.Tensor:
    """-log( e^{z_ii} / (e^{z_ii} + N g) ), N g = max( (sum_j e^{z_ij} - tau N e^{z_ii}) / (1 - tau), N e^floor ).

    Everything is divided by the row's largest term, which changes nothing but keeps e^z finite.
    """
    largest = logits.amax(1, keepdim=True).detach()
    shifted = logits - largest
    terms = shifted.exp()
    count = (logits.isfinite() & ~positive).sum(1)
    own, others = terms.diagonal(), terms.masked_fill(positive, 0.0).sum(1)
    corrected = (others - reweighting.prior * count * own) / (1.0 - reweighting.prior)
    least = count * (reweighting.floor - largest.squeeze(1)).exp()
    return ((own + torch.maximum(corrected, least)).log() - shifted.diagonal()).mean()
