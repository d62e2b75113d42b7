"""Strategies: how each negative of a batch is reweighted. Pure functions, registered by name.

Photo i of a batch stands against places j: its own (the positive, j = i) and all others (negatives). A strategy sees
logits z_ij, dissimilarities d_ij, distances h_ij and the fitted curve, and answers with a factor on the negative
logits, a log-weight added to them, or neither. Positives always keep weight 1, and no gradient flows through weights:

    L_i = -log( e^{z_ii} / (e^{z_ii} + sum_{j != i} w_ij e^{s_ij z_ij}) )

The direction is defined once: d is a dissimilarity (0: the same look), and the residual r_ij = gamma(h_ij) - d_ij is
positive where two photos look MORE alike than their distance leads one to expect. Source: method.md, section 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
import torch.nn.functional as F

from lib.geodesy import chord_to_rad, unit_vectors
from lib.semivariogram import Curve


class StrategyError(ValueError):
    """A strategy is unknown; the message lists the registered ones."""


@dataclass(frozen=True)
class Candidates:
    """B photos against M >= B places, the first B of which are the photos' own; all that a strategy may look at.

    Attributes:
        logits: z [B, M], detached.
        photo_unit: u [B, D] unit features of the photos; place_unit: [M, D] of the photos taken at the places.
        photo_deg: [B, 2] and place_deg: [M, 2] coordinates in degrees.
        curve: the fitted semivariogram.
        alpha, beta: damping of near and emphasis on far look-alikes.

    Matrices are made when a strategy asks for them, float32 [B, M] each: ``infonce`` costs nothing.
    """

    logits: torch.Tensor
    photo_unit: torch.Tensor
    place_unit: torch.Tensor
    photo_deg: torch.Tensor
    place_deg: torch.Tensor
    curve: Curve | None
    alpha: float
    beta: float

    @cached_property
    def dissimilarity(self) -> torch.Tensor:
        """d_ij = 1 - u_i . u_j, 0..2."""
        return 1.0 - self.photo_unit @ self.place_unit.T

    @cached_property
    def distance_rad(self) -> torch.Tensor:
        """h_ij, great-circle distance, 0..pi."""
        chord = 2.0 - 2.0 * unit_vectors(self.photo_deg) @ unit_vectors(self.place_deg).T
        return chord_to_rad(chord).float()

    @cached_property
    def gamma(self) -> torch.Tensor:
        """gamma(h_ij), the dissimilarity that the distance leads one to expect."""
        return self.curve.gamma(self.distance_rad)

    @cached_property
    def residual(self) -> torch.Tensor:
        """r_ij = gamma(h_ij) - d_ij; positive: more alike than expected."""
        return self.gamma - self.dissimilarity

    @cached_property
    def look_alike(self) -> torch.Tensor:
        """max(0, r_ij)."""
        return self.residual.clamp(min=0.0)

    @cached_property
    def near(self) -> torch.Tensor:
        """h_ij <= rho, bool."""
        return self.distance_rad <= self.curve.range_rad


@dataclass(frozen=True)
class Reweighting:
    """What a strategy does to the negatives, each [B, M] or None for nothing; positives are left out by the loss.

    Attributes:
        log_weight: log w_ij, added to z_ij.
        factor: s_ij, multiplies z_ij.
    """

    log_weight: torch.Tensor | None = None
    factor: torch.Tensor | None = None

    def effect(self) -> torch.Tensor | None:
        """[B, M] log-weight, or log of the factor: what a plot of the weights shows; None where there are none."""
        return self.log_weight if self.factor is None else self.factor.log()


@dataclass(frozen=True)
class Strategy:
    """A registered strategy; ``parameters`` names the settings of ``training`` that it reads."""

    name: str
    description: str
    reweight: Callable[[Candidates], Reweighting]
    needs_curve: bool
    parameters: tuple[str, ...] = ()


REGISTRY: dict[str, Strategy] = {}


def strategy(name: str, description: str, *parameters: str, needs_curve: bool = True) -> Callable:
    """Decorator: register a function of :class:`Candidates`, which reads the settings ``parameters``, under ``name``."""

    def register(reweight: Callable[[Candidates], Reweighting]) -> Callable[[Candidates], Reweighting]:
        REGISTRY[name] = Strategy(name, description, reweight, needs_curve, parameters)
        return reweight

    return register


def get(name: str) -> Strategy:
    """The strategy registered under ``name``.

    Raises:
        StrategyError: there is none.
    """
    if name not in REGISTRY:
        raise StrategyError(f"strategy {name!r} is unknown; registered: {', '.join(REGISTRY)}")
    return REGISTRY[name]


def table() -> pd.DataFrame:
    """Registered strategies: name, description, whether the fitted curve is needed."""
    rows = [(one.name, one.description, one.needs_curve) for one in REGISTRY.values()]
    return pd.DataFrame(rows, columns=["strategy", "description", "needs_curve"]).set_index("strategy")


@strategy("infonce", "the baseline: all weights 1", needs_curve=False)
def infonce(candidates: Candidates) -> Reweighting:
    """w_ij = 1. Source: GeoCLIP."""
    return Reweighting()


@strategy("thesis", "author code: factor on near negative logits")
def thesis(candidates: Candidates) -> Reweighting:
    """s_ij = exp(max(0, d_ij - gamma(h_ij))) for h_ij <= rho, else 1; multiplies the LOGIT.

    Its effect turns round with the logit's sign: a factor above 1 makes a positive logit harder and a negative one
    easier. It presses on near pairs that look different and leaves near look-alikes alone.
    Source: author code, get_penalty5.
    """
    return Reweighting(factor=torch.where(candidates.near, (-candidates.residual).clamp(min=0.0).exp(), 1.0))


@strategy("semivariogram", "far look-alikes up, near look-alikes down", "alpha", "beta")
def semivariogram(candidates: Candidates) -> Reweighting:
    """log w_ij = beta max(0, r_ij) for h_ij > rho, -alpha max(0, r_ij) for h_ij <= rho. Source: the paper's two definitions."""
    sign = torch.where(candidates.near, -candidates.alpha, candidates.beta)
    return Reweighting(log_weight=sign * candidates.look_alike)


@strategy("hard_only", "far look-alikes up", "beta")
def hard_only(candidates: Candidates) -> Reweighting:
    """log w_ij = beta max(0, r_ij) for h_ij > rho, else 0: hard negatives only. Ours: ``semivariogram`` with alpha = 0."""
    return Reweighting(log_weight=torch.where(candidates.near, 0.0, candidates.beta * candidates.look_alike))


@strategy("false_only", "near look-alikes down", "alpha")
def false_only(candidates: Candidates) -> Reweighting:
    """log w_ij = -alpha max(0, r_ij) for h_ij <= rho, else 0: false negatives only. Ours: ``semivariogram`` with beta = 0."""
    return Reweighting(log_weight=torch.where(candidates.near, -candidates.alpha * candidates.look_alike, 0.0))


@strategy("residual", "look-alikes up, near and far", "beta")
def residual(candidates: Candidates) -> Reweighting:
    """log w_ij = beta max(0, r_ij). Ours."""
    return Reweighting(log_weight=candidates.beta * candidates.look_alike)


@strategy("decayed", "look-alikes up as correlation fades", "beta")
def decayed(candidates: Candidates) -> Reweighting:
    """log w_ij = beta max(0, r_ij) (1 - C(h_ij)), C = 1 - (gamma - nugget) / partial sill: the switch at rho made smooth. Ours."""
    fading = 1.0 - candidates.curve.correlation(candidates.gamma)
    return Reweighting(log_weight=candidates.beta * candidates.look_alike * fading)


@strategy("similarity", "control: look alone, no geography", "beta", needs_curve=False)
def similarity(candidates: Candidates) -> Reweighting:
    """log w_ij = beta u_i . u_j. Control: what the semivariogram adds is the difference to this."""
    return Reweighting(log_weight=candidates.beta * (1.0 - candidates.dissimilarity))


def contrastive_loss(logits: torch.Tensor, reweighting: Reweighting) -> torch.Tensor:
    """Mean of L_i over the batch, a scalar; with no weights exactly InfoNCE.

    Args:
        logits: z [B, M], photo i's own place in column i.
        reweighting: taken without gradient; what it says of positives is ignored.
    """
    targets = torch.arange(len(logits), device=logits.device)
    positive = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    if reweighting.factor is not None:
        logits = logits * reweighting.factor.detach().masked_fill(positive, 1.0)
    if reweighting.log_weight is not None:
        logits = logits + reweighting.log_weight.detach().masked_fill(positive, 0.0)
    return F.cross_entropy(logits.float(), targets)
