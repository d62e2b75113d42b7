"""Strategies: how each negative of a batch is reweighted. One pure function each, headed by its equation.

Photo i of a batch stands against places j: its own (the positive, j = i) and all others (the negatives). A
strategy sees logits z_ij, dissimilarities d_ij (0: the same look), distances h_ij and the fitted curve gamma.
The residual r_ij = gamma(h_ij) - d_ij is positive where two photos look MORE alike than their distance leads
one to expect. Sources: docs/strategies.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import BundleError
from .geodesy import EARTH_RADIUS_KM, chord_to_rad, unit_vectors
from .semivariogram import Curve

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Pairs:
    """B photos against M >= B places, of which the first B are the photos' own: all that a strategy sees.

    Attributes:
        logits: z [B, M], detached.
        unit: u [M, D] unit features of the photos taken at the places.
        place_deg, curve: [M, 2] latitude and longitude, degrees; the fitted semivariogram.
        alpha, beta: damping of near look-alikes; emphasis on far ones, or height of a margin.
        range_km: where far begins; None: the curve's range.
        softness_km, sharpness, concentration: see the strategies that read them.
        progress: share of the training's steps that are done, 0..1.
        partner_deg: [M, 2] places of the photos that ``shuffled`` puts at the others' places.

    Matrices are made when a strategy asks for them, float32 [B, M] each: ``infonce`` costs nothing.
    """

    logits: Tensor
    unit: Tensor
    place_deg: Tensor
    curve: Curve | None = None
    alpha: float = 2.0
    beta: float = 2.0
    range_km: float | None = None
    softness_km: float = 100.0
    sharpness: float = 20.0
    concentration: float = 0.1
    progress: float = 1.0
    partner_deg: Tensor | None = None

    @cached_property
    def positive(self) -> Tensor:
        """Whether place j is photo i's own, bool [B, M]."""
        return torch.eye(*self.logits.shape, dtype=torch.bool, device=self.logits.device)

    @cached_property
    def dissimilarity(self) -> Tensor:
        """d_ij = 1 - u_i . u_j, 0..2."""
        return 1.0 - self.unit[: len(self.logits)] @ self.unit.T

    @cached_property
    def distance_rad(self) -> Tensor:
        """h_ij, great-circle distance, 0..pi."""
        points = unit_vectors(self.place_deg)
        return chord_to_rad(2.0 - 2.0 * points[: len(self.logits)] @ points.T).float()

    @cached_property
    def gamma(self) -> Tensor:
        """gamma(h_ij), the dissimilarity that the distance leads one to expect."""
        return self.curve.gamma(self.distance_rad)

    @cached_property
    def correlation(self) -> Tensor:
        """C(h_ij) = 1 - (gamma - nugget) / partial sill, 1 at h = 0 and towards 0 beyond the range."""
        return self.curve.correlation_of(self.gamma)

    @cached_property
    def residual(self) -> Tensor:
        """r_ij = gamma(h_ij) - d_ij; positive: more alike than expected."""
        photos = self.unit[: len(self.logits)]
        return torch.addmm(self.gamma.to(photos.dtype), photos, self.unit.T).sub_(1.0)

    @cached_property
    def look_alike(self) -> Tensor:
        """max(0, r_ij)."""
        return self.residual.clamp(min=0.0)

    @cached_property
    def near(self) -> Tensor:
        """h_ij <= rho, bool."""
        rho = self.curve.range_rad if self.range_km is None else self.range_km / EARTH_RADIUS_KM
        return self.distance_rad <= rho


@dataclass(frozen=True)
class Reweighting:
    """What a strategy does to the negatives, each [B, M] or None for nothing; the loss leaves positives out.

    ``log_weight`` log w_ij is added to z_ij, ``factor`` s_ij multiplies it; ``targets`` are shares >= 0
    of the places in photo i's target, of any sum (None: its own place alone).
    """

    log_weight: Tensor | None = None
    factor: Tensor | None = None
    targets: Tensor | None = None

    def effect(self) -> Tensor | None:
        """[B, M] log-weight, or log of the factor, for plots of the weights; None where there are none."""
        return self.log_weight if self.factor is None else self.factor.log()


@dataclass(frozen=True)
class Strategy:
    """A registered strategy; ``parameters`` are the settings that it reads, of ``PARAMETERS``.

    Its kind is ``family`` (of the semivariogram), ``peer`` (weights without it) or ``control``.
    """

    name: str
    description: str
    reweight: Callable[[Pairs], Reweighting]
    needs_curve: bool
    parameters: tuple[str, ...] = ()
    kind: str = "family"


REGISTRY: dict[str, Strategy] = {}
PARAMETERS = ("alpha", "beta", "range_km", "softness_km", "sharpness", "concentration")


def strategy(
    name: str, description: str, *parameters: str, needs_curve: bool = True, kind: str = "family"
) -> Callable:
    """Decorator: register a function of :class:`Pairs` that reads the settings ``parameters``.

    Raises:
        BundleError: another module has registered ``name``.
    """

    def register(reweight: Callable[[Pairs], Reweighting]) -> Callable[[Pairs], Reweighting]:
        if name in REGISTRY and REGISTRY[name].reweight.__module__ != reweight.__module__:
            raise BundleError(f"there is a strategy {name!r} already; give yours a name of its own")
        REGISTRY[name] = Strategy(name, description, reweight, needs_curve, parameters, kind)
        return reweight

    return register


def get(name: str | Strategy) -> Strategy:
    """The strategy registered under ``name``, or a strategy as it is; an unknown one is a BundleError."""
    found = name if isinstance(name, Strategy) else REGISTRY.get(name)
    if found is None:
        raise BundleError(f"strategy {name!r} is unknown; registered: {', '.join(REGISTRY)}")
    return found


def table() -> pd.DataFrame:
    """Registered strategies: name, kind, description, whether the curve is needed, the settings read."""
    import pandas as pd

    columns, of = ["strategy", "kind", "description", "needs_curve", "reads"], REGISTRY.values()
    rows = [(one.name, one.kind, one.description, one.needs_curve, ", ".join(one.parameters)) for one in of]
    return pd.DataFrame(rows, columns=columns).set_index("strategy")


@strategy("infonce", "the baseline: all weights 1", needs_curve=False, kind="peer")
def infonce(pairs: Pairs) -> Reweighting:
    """w_ij = 1. Source: GeoCLIP."""
    return Reweighting()


@strategy("thesis", "author code: factor on near negative logits", "range_km")
def thesis(pairs: Pairs) -> Reweighting:
    """s_ij = exp(max(0, d_ij - gamma(h_ij))) for h_ij <= rho, else 1. Source: author code, get_penalty5.

    It multiplies the LOGIT: where logits are positive it presses on near pairs that look different.
    """
    return Reweighting(factor=torch.where(pairs.near, (-pairs.residual).clamp(min=0.0).exp(), 1.0))


@strategy("semivariogram", "far look-alikes up, near look-alikes down", "alpha", "beta", "range_km")
def semivariogram(pairs: Pairs) -> Reweighting:
    """log w_ij = beta max(0, r_ij) for h_ij > rho, -alpha max(0, r_ij) for h_ij <= rho.

    Source: the paper's two definitions, of hard and of false negatives; the formula is ours.
    """
    return Reweighting(log_weight=torch.where(pairs.near, -pairs.alpha, pairs.beta) * pairs.look_alike)


@strategy("hard_only", "far look-alikes up", "beta", "range_km")
def hard_only(pairs: Pairs) -> Reweighting:
    """log w_ij = beta max(0, r_ij) for h_ij > rho, else 0. Ours: ``semivariogram`` with alpha = 0."""
    return Reweighting(log_weight=torch.where(pairs.near, 0.0, pairs.beta * pairs.look_alike))


@strategy("false_only", "near look-alikes down", "alpha", "range_km")
def false_only(pairs: Pairs) -> Reweighting:
    """log w_ij = -alpha max(0, r_ij) for h_ij <= rho, else 0. Ours: ``semivariogram`` with beta = 0."""
    return Reweighting(log_weight=torch.where(pairs.near, -pairs.alpha * pairs.look_alike, 0.0))


@strategy("residual", "look-alikes up, near and far", "beta")
def residual(pairs: Pairs) -> Reweighting:
    """log w_ij = beta max(0, r_ij). Ours."""
    return Reweighting(log_weight=pairs.beta * pairs.look_alike)


@strategy("decayed", "look-alikes up as correlation fades", "beta")
def decayed(pairs: Pairs) -> Reweighting:
    """log w_ij = beta max(0, r_ij) (1 - C(h_ij)). Ours: the switch at rho made smooth."""
    return Reweighting(log_weight=pairs.beta * pairs.look_alike * (1.0 - pairs.correlation))


@strategy("semivariance_margin", "margin that grows with the expected dissimilarity", "beta")
def semivariance_margin(pairs: Pairs) -> Reweighting:
    """log w_ij = beta (1 - C(h_ij)) = beta (gamma(h_ij) - nugget) / partial sill.

    A softmax-margin (Gimpel and Smith 2010): the more different a wrong place is expected to look, the more
    it must lose by. The photos themselves are not looked at. Ours.
    """
    return Reweighting(log_weight=pairs.beta * (1.0 - pairs.correlation))


@strategy("soft_targets", "targets spread over places by the fitted correlation", "sharpness")
def soft_targets(pairs: Pairs) -> Reweighting:
    """Target share of place j: max(0, C(h_ij))^sharpness, 1 for photo i's own place. Ours."""
    shares = pairs.correlation.clamp(min=0.0) ** pairs.sharpness
    return Reweighting(targets=shares.masked_fill(pairs.positive, 1.0))


@strategy("distance_soft", "targets spread by distance alone", "softness_km", needs_curve=False, kind="peer")
def distance_soft(pairs: Pairs) -> Reweighting:
    """Target share of place j: exp(-h_ij in km / softness_km), 1 for photo i's own place.

    Source: as in spatially weighted CLIP (arXiv 2604.04357); the form is ours.
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


@strategy("distance_margin", "margin by a kernel of distance set by hand", "beta", "softness_km",
          needs_curve=False, kind="control")  # fmt: skip
def distance_margin(pairs: Pairs) -> Reweighting:
    """log w_ij = beta (1 - exp(-h_ij in km / softness_km)). Control: no looks were fitted."""
    kernel = torch.exp(-pairs.distance_rad * (EARTH_RADIUS_KM / pairs.softness_km))
    return Reweighting(log_weight=pairs.beta * (1.0 - kernel))


@strategy("shuffled", "semivariance_margin's weights on the wrong pairs", "beta", kind="control")
def shuffled(pairs: Pairs) -> Reweighting:
    """log w_ij = that of ``semivariance_margin`` for i and pi(j), pi one permutation of the training photos.

    Control: the same weights on the wrong places. Outside a training, which knows pi, a BundleError.
    """
    if pairs.partner_deg is None:
        raise BundleError("strategy 'shuffled' needs partner_deg, the places of a permutation of the photos")
    points = unit_vectors(pairs.place_deg)[: len(pairs.logits)]
    distance = chord_to_rad(2.0 - 2.0 * points @ unit_vectors(pairs.partner_deg).T).float()
    correlation = pairs.curve.correlation_of(pairs.curve.gamma(distance))
    return Reweighting(log_weight=pairs.beta * (1.0 - correlation))
