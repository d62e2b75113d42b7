"""The theoretical semivariogram: fitted to an empirical one, evaluated, saved. Lags are in radians.

    gamma(h) = nugget + partial_sill (1 - k(h / length_scale)),  h > 0   (expected dissimilarity)
    C(h) = 1 - (gamma(h) - nugget) / partial_sill                        (correlation)

k is the correlation function of a GSTools family. For the stable family, the default and that of the author
code (the first author's thesis repository), k(x) = exp(-x^exponent). On ``sphere`` the chord 2 sin(h / 2)
takes the place of h. Source: Matheron 1962; GSTools; the author code.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import gstools
import numpy as np
import torch
import torch.nn.functional as F

from . import fitting
from .empirical import EmpiricalSemivariogram, draw_photos, exact
from .errors import BundleError
from .fitting import FAMILIES, SHAPE_PARAMETERS
from .geodesy import EARTH_RADIUS_KM, Array, check_precision


@dataclass(frozen=True)
class FittedSemivariogram:
    """A theoretical semivariogram.

    Attributes:
        family, metric: a GSTools covariance model of h itself (planar) or the chord (sphere).
        nugget, partial_sill: cosine distance, 0..2.
        exponent: shape parameter (Stable, Rational: alpha; Matern: nu); None where the family has none.
        range_rad, range_km: distance beyond which two photos count as far, by ``range_rule``.
        r2: share of the lag means' variance that the model explains.
        backbone, centred, photos, pairs: what it was fitted to.
        rises: False where no rising curve fits: the curve is :func:`flat`, and no strategy should read it.
    """

    family: str
    metric: str
    nugget: float
    partial_sill: float
    length_scale_rad: float
    exponent: float | None
    range_rad: float
    range_km: float
    range_rule: str
    weights: str
    r2: float
    backbone: str = ""
    centred: bool = False
    photos: int = 0
    pairs: int = 0
    rises: bool = True

    @property
    def sill(self) -> float:
        """nugget + partial sill."""
        return self.nugget + self.partial_sill

    def model(self) -> gstools.CovModel:
        """The GSTools covariance model with these parameters."""
        shape = {SHAPE_PARAMETERS[self.family]: self.exponent} if self.family in SHAPE_PARAMETERS else {}
        scale = {"var": self.partial_sill, "len_scale": self.length_scale_rad, "nugget": self.nugget}
        return fitting.covariance_model(self.family, self.metric, **scale, **shape)

    def gamma(self, distance_rad: np.ndarray) -> np.ndarray:
        """gamma(h), any shape; the nugget at h = 0."""
        return fitting.evaluate(self.model(), distance_rad)

    def correlation(self, distance_rad: np.ndarray) -> np.ndarray:
        """C(h) = 1 - (gamma(h) - nugget) / partial_sill, any shape; 1 at h = 0."""
        return 1.0 - (self.gamma(distance_rad) - self.nugget) / self.partial_sill

    def save(self, path: Path | str) -> None:
        """Write as JSON with named parameters."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> FittedSemivariogram:
        """The curve that :meth:`save` wrote to ``path``; a file that holds none is a :class:`BundleError`."""
        try:
            fitted = cls(**json.loads(Path(path).read_text(encoding="utf-8")))
            scales = (fitted.partial_sill, fitted.length_scale_rad)
            numbers = (fitted.nugget, *scales, fitted.range_rad, fitted.exponent or 0.0)
            if not (all(map(math.isfinite, numbers)) and fitted.nugget >= 0 and min(scales) > 0):
                raise ValueError(f"no curve has nugget, partial sill, length, range, exponent {numbers}")
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            said = f"not a saved semivariogram ({' '.join(str(error).split())[:300]})"
            raise BundleError(f"{path}: {said}; delete it, and a run makes it anew") from error
        return fitted


def fit_semivariogram(
    features: Array, coordinates_deg: Array, lag_width_rad: float = 0.001, *, max_photos: int = 20_000,
    **options: str | float,
) -> FittedSemivariogram:  # fmt: skip
    """The semivariogram of photos: cosine distance of features against great-circle distance of places.

    Args:
        features: [N, D], of any length; centre them first, here and in the loss, if they share a large mean.
        coordinates_deg: [N, 2] latitude and longitude, degrees, of 32 or 64 bits.
        lag_width_rad: width of a lag, radians (0.001: 6.37 km).
        max_photos: of more photos, this many are drawn at random with a fixed seed; all pairs are used.
        options: of :func:`fit`, such as ``family="Exponential"``.

    Raises:
        BundleError: wrong shapes or options, coordinates in half precision, or see ``exact`` and ``fit``.
    """
    given = (features, coordinates_deg)
    features, coordinates = (one if isinstance(one, torch.Tensor) else np.asarray(one) for one in given)
    if tuple(coordinates.shape) != (len(features), 2) or features.ndim != 2:
        shapes = f"{list(features.shape)} and {list(coordinates.shape)}"
        raise BundleError(f"features must be [N, D] and coordinates [N, 2]; they are {shapes}")
    check_precision(coordinates)
    if unknown := sorted(set(options) - (allowed := {*CHOICES, "min_lag_rad", "max_lag_rad"})):
        known = ", ".join(sorted(allowed))
        raise BundleError(f"fit_semivariogram has no option {', '.join(unknown)}; it has {known}")
    chosen = draw_photos(len(features), max_photos)
    some, places = (torch.as_tensor(one[chosen]).detach().cpu() for one in (features, coordinates))
    unit, places = F.normalize(some.float(), dim=1), places.double().numpy()
    empirical = exact(lambda rows: unit[torch.from_numpy(rows)], places, lag_width_rad)
    return fit(empirical, photos=len(chosen), **options)


def fit(
    empirical: EmpiricalSemivariogram, *, family: str = "Stable", metric: str = "planar",
    weights: str = "cressie", range_rule: str = "sill95", min_lag_rad: float = 0.0,
    max_lag_rad: float = math.pi, **about: str | bool | int,
) -> FittedSemivariogram:  # fmt: skip
    """Least-squares fit of a GSTools model with nugget to the lag means.

    Where GSTools' own search fails, or its curve of unweighted lags explains less than half, a search over
    shapes and length scales takes its place, with lags weighted by pairs; ``family`` and ``weights`` say so.

    Args:
        weights: of the lags: ``none`` (author code), ``pairs`` (their number N), ``cressie`` (N / gamma(h)^2,
            Cressie 1985) or ``pairs_by_h2`` (N / h^2, as gstat does by default).
        range_rule: ``sill95``, where 95 % of the sill is reached, or ``slope`` (author code).
        min_lag_rad, max_lag_rad: shorter and longer lags are left out.
        about: backbone, centred, photos: kept with the curve.

    Raises:
        BundleError: fewer than 5 lags; as NoRise: no rising curve beats a constant.

    Source: author code, ``Stable(dim=2)`` on radians, with weights ``none`` and range rule ``slope``; plain
    squares and the rest are ours.
    """
    for name, value in zip(CHOICES, (family, metric, weights, range_rule), strict=True):
        if value not in CHOICES[name]:
            raise BundleError(f"{name}={value!r} is unknown; take one of {', '.join(CHOICES[name])}")
    used = (empirical.pairs > 0) & (empirical.lag_rad >= min_lag_rad) & (empirical.lag_rad <= max_lag_rad)
    if (count := int(used.sum())) < 5:
        mend = "narrow" if count >= 0.8 * (used.nonzero()[0].max(initial=0) + 1) else "widen"
        said = f"{mend} lag_width_rad, or take photos at more places"
        raise BundleError(f"{count} lags with pairs are too few; {said}")
    lags = fitting.Lags(empirical.lag_rad[used], empirical.gamma[used], empirical.pairs[used])
    model = fitting.by_gstools(lags, family, metric, weights)
    if model is None:
        weights, (family, model) = "pairs", fitting.by_search(lags, family, metric)
    exponent = float(getattr(model, SHAPE_PARAMETERS[family])) if family in SHAPE_PARAMETERS else None
    range_rad = RANGE_RULES[range_rule](model)
    return FittedSemivariogram(
        family=family, metric=metric, nugget=float(model.nugget), partial_sill=float(model.var),
        length_scale_rad=float(model.len_scale), exponent=exponent, range_rad=range_rad,
        range_km=float(range_rad * EARTH_RADIUS_KM), range_rule=range_rule, weights=weights,
        r2=fitting.r2(lags, model), pairs=int(empirical.pairs.sum()), **about,
    )  # fmt: skip


def flat(empirical: EmpiricalSemivariogram, **about: str | bool | int) -> FittedSemivariogram:
    """The curve where no rising one fits: the mean dissimilarity at every distance, but for a hundredth."""
    pairs, step = int(empirical.pairs.sum()), 1e-3
    mean = float(empirical.gamma_sum.sum() / pairs)
    return FittedSemivariogram(
        family="Exponential", metric="planar", nugget=0.99 * mean, partial_sill=0.01 * mean,
        length_scale_rad=step, exponent=None, range_rad=step, range_km=step * EARTH_RADIUS_KM,
        range_rule="none", weights="pairs", r2=0.0, pairs=pairs, rises=False, **about,
    )  # fmt: skip


def range_by_slope(model: gstools.CovModel) -> float:
    """First h, radians, at which d gamma / dh < 1e-2 per radian, in steps of 0.01; pi where there is none.

    Source: author code. Ours: counted from where the curve is steepest, since a Gaussian starts flat.
    """
    grid = np.arange(0.01, math.pi + 0.01, 0.01)
    slope = np.diff(fitting.evaluate(model, grid)) / 0.01
    flat = np.flatnonzero((slope < 1e-2) & (np.arange(len(slope)) >= slope.argmax()))
    return float(grid[flat[0]]) if len(flat) else math.pi


def range_by_sill(model: gstools.CovModel) -> float:
    """First h, radians, at which gamma has gained 95 % of the partial sill; pi where there is none."""
    grid = np.arange(1, round(math.pi / 1e-3)) * 1e-3
    reached = np.flatnonzero(fitting.evaluate(model, grid) >= model.nugget + 0.95 * model.var)
    return float(grid[reached[0]]) if len(reached) else math.pi


RANGE_RULES = {"slope": range_by_slope, "sill95": range_by_sill}
CHOICES = {
    "family": FAMILIES, "metric": ("planar", "sphere"), "weights": tuple(fitting.WEIGHTS),
    "range_rule": tuple(RANGE_RULES),
}  # fmt: skip


class Curve(torch.nn.Module):
    """A fitted semivariogram on a tensor's device: gamma(h) by linear interpolation in sqrt(h).

    A table of 16,385 nodes is dense where gamma is steep. From 6 m on the error is below 1e-4 of the partial
    sill, for all but extreme exponents below 1e-5.
    """

    NODES = 16_385

    def __init__(self, fitted: FittedSemivariogram) -> None:
        super().__init__()
        nodes = (np.linspace(0.0, 1.0, self.NODES) ** 2) * math.pi
        self.nugget, self.partial_sill, self.range_rad = fitted.nugget, fitted.partial_sill, fitted.range_rad
        values = fitted.gamma(nodes)
        # not persistent: a checkpoint must not put one curve's table into another's
        for name, table in (("values", values), ("rise", np.diff(values, append=values[-1]))):
            self.register_buffer(name, torch.from_numpy(table).float(), persistent=False)

    def gamma(self, distance_rad: torch.Tensor) -> torch.Tensor:
        """gamma(h), float32, of distances 0..pi of any shape."""
        position = distance_rad.float().sqrt().mul_((self.NODES - 1) / math.sqrt(math.pi))
        lower = position.long().clamp_(0, self.NODES - 1)  # 0: of no number
        return torch.addcmul(self.values[lower], self.rise[lower], position.frac_())

    def correlation_of(self, gamma: torch.Tensor) -> torch.Tensor:
        """C = 1 - (gamma - nugget) / partial_sill of ``gamma`` = gamma(h), any shape."""
        return 1.0 - (gamma - self.nugget) / self.partial_sill
