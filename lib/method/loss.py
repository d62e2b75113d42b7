"""The contrastive loss with reweighted negatives, and the module that other people's training loops import.

    L_i = -log( e^{z_ii} / (e^{z_ii} + sum_{j != i} w_ij e^{s_ij z_ij}) ),   averaged over the batch

With all weights 1 this is InfoNCE, GeoCLIP's loss. Gradient flows through the logits z only.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import BundleError
from .geodesy import check_degrees, check_precision
from .negatives import Pairs, Reweighting, Strategy, get
from .semivariogram import Curve, FittedSemivariogram


class SemivariogramLoss(nn.Module):
    """InfoNCE whose negatives are reweighted by a fitted semivariogram.

    Args:
        curve: from :func:`lib.method.semivariogram.fit_semivariogram`; None for a strategy that reads none.
        strategy: a name or a strategy of :mod:`lib.method.negatives`.
        parameters: those that the strategy reads, such as ``beta=8.0``; defaults as in ``negatives.Pairs``.

    Raises:
        BundleError: the strategy is unknown, needs a curve, or does not read one of ``parameters``.

    ``.to(device)`` moves the curve. A call makes a few float32 matrices [B, M] and one of float64.
    """

    def __init__(
        self, curve: FittedSemivariogram | None, strategy: str | Strategy = "semivariance_margin",
        **parameters: float | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.strategy = get(strategy)
        said, read = f"strategy {self.strategy.name!r}", ", ".join(self.strategy.parameters) or "none"
        if unread := sorted(set(parameters) - set(self.strategy.parameters)):
            raise BundleError(f"{said} does not read {', '.join(unread)}; it reads {read}")
        for key, value in parameters.items():
            if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
                raise BundleError(f"{key}={value!r} is no number")
        if self.strategy.needs_curve and not isinstance(curve, FittedSemivariogram):
            other = "" if curve is None else f", not a {type(curve).__name__}"
            raise BundleError(f"{said} needs a fitted semivariogram{other}; call fit_semivariogram first")
        self.settings = parameters
        self.curve = Curve(curve) if self.strategy.needs_curve else None

    def forward(self, logits: Tensor, coordinates_deg: Tensor, features: Tensor) -> Tensor:
        """Mean loss of B photos against M >= B places, a scalar.

        Args:
            logits: z [B, M], any float type; photo i's own place in column i; -inf: no candidate.
            coordinates_deg: [M, 2] latitude and longitude, degrees, of 32 or 64 bits.
            features: [M, D] frozen features of the photos taken there, of the same kind as the curve's.

        Raises:
            BundleError: shapes do not fit, or coordinates are in half precision; on the processor also: they
                are not in degrees, or a photo's own place is no candidate.
        """
        unit = F.normalize(features.detach().float(), dim=-1)
        weights = self.reweighting(logits, coordinates_deg, unit)
        if coordinates_deg.device.type == "cpu":  # a check on a GPU would wait for it
            check_degrees(coordinates_deg.detach().double().numpy())
            if len(lost := logits.detach().diagonal().isneginf().nonzero()):
                row = f"logits, row {int(lost[0])} from 0"
                raise BundleError(f"{row}: the photo's own place is no candidate (-inf)")
        return contrastive_loss(logits, weights)

    @torch.no_grad()
    def reweighting(
        self, logits: Tensor, coordinates_deg: Tensor, unit: Tensor, **more: object
    ) -> Reweighting:
        """What the strategy does to these pairs; as in :meth:`forward`, but ``unit`` [M, D] has length 1."""
        count = logits.shape[-1]
        fit = logits.ndim == unit.ndim == 2 and count == len(unit) and coordinates_deg.shape == (count, 2)
        if not fit or count < len(logits):
            shapes = ", ".join(str(list(one.shape)) for one in (logits, coordinates_deg, unit))
            raise BundleError(f"logits [B, M >= B], coordinates [M, 2], features [M, D] do not fit: {shapes}")
        check_precision(coordinates_deg)
        with torch.autocast(logits.device.type, enabled=False):
            logits = _at_least_float32(logits.detach())
            read = self.settings | more
            return self.strategy.reweight(Pairs(logits, unit, coordinates_deg, self.curve, **read))


def contrastive_loss(logits: Tensor, reweighting: Reweighting) -> Tensor:
    """Mean of L_i over logits z [B, M], a scalar, in float32 or better; with no weights exactly InfoNCE.

    ``reweighting`` is taken without gradient; of positives only their share in ``targets`` counts. A photo
    whose targets are no candidates has loss 0.
    """
    logits = _at_least_float32(logits)
    for given in (reweighting.factor, reweighting.log_weight, reweighting.targets):
        if given is not None and given.shape != logits.shape:
            raise BundleError(f"a strategy answered with {list(given.shape)} for logits {list(logits.shape)}")
    positive = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    if reweighting.factor is not None:
        logits = logits * reweighting.factor.detach().masked_fill(positive, 1.0)
    if reweighting.log_weight is not None:
        logits = logits + reweighting.log_weight.detach().masked_fill(positive, 0.0)
    if reweighting.targets is None:
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
    no_candidate = logits.isinf()  # 0 times -inf is not a number
    shares = reweighting.targets.detach().masked_fill(no_candidate, 0.0)
    whole = shares.sum(1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)  # 0: of no candidate at all
    log_probability = torch.log_softmax(logits, 1).masked_fill(no_candidate, 0.0)
    return -(shares / whole * log_probability).sum(1).mean()


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
