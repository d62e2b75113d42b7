"""A GSTools model fitted to lag means by least squares: GSTools' own search, and ours where it fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import gstools
import numpy as np
from scipy import optimize

from .errors import BundleError

Family = Literal["Stable", "Exponential", "Gaussian", "Spherical", "Matern", "Rational"]
"""The families of covariance models, by GSTools' names."""
FAMILIES: tuple[str, ...] = get_args(Family)
SHAPE_PARAMETERS = {"Stable": "alpha", "Matern": "nu", "Rational": "alpha"}
"""GSTools' name of the shape parameter of the families that have one; called exponent here."""
SHAPES = {"Stable": (0.3, 0.5, 0.7, 1.0, 1.4, 2.0), "Matern": (0.2, 0.35, 0.5, 1.0, 2.0),
          "Rational": (0.5, 1.0, 2.0, 5.0)}  # fmt: skip
"""Exponents that a search begins with; it stays between the first and the last."""
LEAST_R2 = 0.5
"""An unweighted fit that explains less of the lag means' variance follows lags of a handful of pairs."""


class NoRise(BundleError):
    """No rising curve explains the lag means better than a constant."""


class Lags(NamedTuple):
    """Lags of a semivariogram, [K] each: distance in radians, mean dissimilarity, number of pairs."""

    lag: np.ndarray
    gamma: np.ndarray
    pairs: np.ndarray


def covariance_model(family: str, metric: str, **parameters: float) -> gstools.CovModel:
    """The GSTools model of a family; ``metric`` planar or sphere."""
    place = {"latlon": True} if metric == "sphere" else {"dim": 2}
    return getattr(gstools, family)(**place, **parameters)


def evaluate(model: gstools.CovModel, distance_rad: np.ndarray) -> np.ndarray:
    """gamma(h), any shape; the nugget at h = 0."""
    distance = np.maximum(np.asarray(distance_rad, dtype=np.float64), 1e-12)
    return model.vario_yadrenko(distance) if model.latlon else model.variogram(distance)


WEIGHTS: dict[str, Callable[[Lags, np.ndarray], np.ndarray]] = {
    "none": lambda lags, gamma: np.ones(len(lags.lag)),
    "pairs": lambda lags, gamma: lags.pairs,
    "cressie": lambda lags, gamma: lags.pairs / np.maximum(gamma, 1e-3) ** 2,
    "pairs_by_h2": lambda lags, gamma: lags.pairs / np.maximum(lags.lag, 1e-4) ** 2,
}
"""Name -> the weights [K] of squared deviations, of the lags and the fitted gamma at them [K]."""


def by_gstools(lags: Lags, family: str, metric: str, weights: str) -> gstools.CovModel | None:
    """The model that GSTools' own search finds; None where it fails, or the model does not rise, or explains
    less than ``LEAST_R2`` of unweighted lags. Cressie's weights follow the curve in four rounds."""
    model, fitted = covariance_model(family, metric), lags.gamma
    for _ in range(4 if weights == "cressie" else 1):
        weight = WEIGHTS[weights](lags, fitted)
        root = None if weights == "none" else np.sqrt(weight)
        try:
            model.fit_variogram(lags.lag, lags.gamma, nugget=True, weights=root, loss="linear")
        except (RuntimeError, ValueError):
            return None
        fitted = evaluate(model, lags.lag)
    if weights == "none" and r2(lags, model) < LEAST_R2:
        return None
    return model if _rises(lags._replace(pairs=weight), model) else None


def r2(lags: Lags, model: gstools.CovModel) -> float:
    """Share of the lag means' variance that ``model`` explains."""
    squares = np.mean((lags.gamma - evaluate(model, lags.lag)) ** 2)
    return float(1.0 - squares / max(np.var(lags.gamma), 1e-300))


def by_search(lags: Lags, family: str, metric: str) -> tuple[str, gstools.CovModel]:
    """Family and model of least squares, lags weighted by their pairs, over shapes and length scales.

    The exponential family takes the place of an exponent that does not beat it by Schwarz' criterion. Raises
    :class:`NoRise` where no rising curve beats a constant.
    """
    lag, gamma, pairs = lags
    best = _least_squares(lags, family, metric, SHAPES.get(family, (None,)))
    if family in {"Stable", "Matern"}:
        simple = _least_squares(lags, "Exponential", metric, (None,))
        told = math.log(len(lag)) / len(lag)
        if math.log(max(simple[0], 1e-300) / max(best[0], 1e-300)) < told:
            family, best = "Exponential", simple
    if _rises(lags, best[1]):
        return family, best[1]
    constant, count = np.average(gamma, weights=pairs), len(lag)
    variance = np.average((gamma - constant) ** 2, weights=pairs)
    explained = 100.0 * max(0.0, 1.0 - best[0] / variance) if variance > 1e-18 else 0.0
    asked = -100.0 * math.expm1(-(3.0 * math.log(count) + 4.0) / count)
    said = f"no curve that rises with distance beats a constant ({constant:.3f}) over all {count:,} lags"
    seen = f"the best explains {explained:.2f} % of the lag means' variance, weighted by pairs"
    asks = f"Schwarz' criterion asks for {asked:.2f} %"
    raise NoRise(f"{said}: {seen}, and {asks}; check coordinates, features and lag width")


def _least_squares(lags: Lags, family: str, metric: str, shapes: tuple) -> tuple[float, gstools.CovModel]:
    """Weighted sum of squares and model, the least over a grid that is then refined.

    For a given shape and length scale the curve is linear in nugget and partial sill, which are solved for
    within their bounds (variable projection, Golub and Pereyra 1973).
    """
    lag, gamma, pairs = lags
    root = np.sqrt(pairs / pairs.sum())

    def solved(log_length: float, shape: float | None = None) -> tuple[float, dict[str, float]]:
        given = {"len_scale": math.exp(log_length)}
        given |= {} if shape is None else {SHAPE_PARAMETERS[family]: shape}
        rise = evaluate(covariance_model(family, metric, var=1.0, nugget=0.0, **given), lag)
        design = np.stack((np.ones_like(rise), rise), 1) * root[:, None]
        (nugget, partial_sill), residual = optimize.nnls(design, gamma * root)
        return residual**2, given | {"nugget": nugget, "var": partial_sill}

    shortest = lag[lag > 0.0].min(initial=math.pi)  # a first lag may be of 0 m
    ends = math.log(min(shortest, 0.5) / 2.0), math.log(math.pi)
    grid = [(length, shape) for length in np.linspace(*ends, 24) for shape in shapes]
    first = min(grid, key=lambda one: solved(*one)[0])
    has_shape = first[1] is not None
    bounds = [ends, (min(shapes), max(shapes))] if has_shape else [ends]
    options = {"maxiter": 200, "xatol": 1e-4, "fatol": 1e-14}
    how = {"method": "Nelder-Mead", "bounds": bounds, "options": options}
    found = optimize.minimize(lambda values: solved(*values)[0], first if has_shape else first[:1], **how)
    squares, parameters = solved(*found.x)
    return squares, covariance_model(family, metric, **parameters)


def _rises(lags: Lags, model: gstools.CovModel) -> bool:
    """Whether the curve beats a constant by Schwarz' criterion and a margin of 4; lags count by ``pairs``."""
    lag, gamma, weights = lags
    constant = np.average(gamma, weights=weights)
    around_constant = np.sum(weights * (gamma - constant) ** 2)
    around_curve = np.sum(weights * (gamma - evaluate(model, lag)) ** 2)
    if model.var < 1e-9 or around_constant <= 1e-18 * len(lag):
        return False
    return len(lag) * math.log(around_constant / max(around_curve, 1e-300)) > 3.0 * math.log(len(lag)) + 4.0
