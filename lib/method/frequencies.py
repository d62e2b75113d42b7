"""Fourier frequencies of the location encoder, drawn by the training places or from the fitted semivariogram.

By the places: uniform over a disc whose radius is a share of their Nyquist frequency. What a ridge regression
on random Fourier features wants of n noisy places is not the signal's spectral density S but its ridge
leverage n S / (n S + lambda): flat where the signal stands above the noise, and falling beyond (Avron et al.
2017). The share is ours, chosen on validation (docs/third-study.md).

From the curve: by Bochner's theorem a covariance is a law of frequencies. That of the stable family,
C(h) = exp(-(h / l)^a), is the isotropic a-stable law: B = sqrt(A) G / (2 pi l) with G ~ N(0, 2 I) and A
positive and a/2-stable, so that E cos(2 pi B . x) = exp(-(|x| / l)^a). Exponential and Gaussian are a = 1 and
2. Draws beyond the Nyquist frequency are drawn again: what is left is the band-limited law, whose correlation
is higher near by than the curve's. Source: Rahimi and Recht 2007; Kanter 1975.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats
from scipy.spatial import KDTree

from .errors import BundleError
from .geodesy import chord_to_rad, unit_vectors
from .semivariogram import FittedSemivariogram

UNITS_PER_RAD = 66.50336 / 180.0
"""Length of a radian in GeoCLIP's projection (Equal Earth, scaled), as the mean over the sphere's area."""

NEIGHBOURS = 8
"""Which neighbour tells the density of places."""


def from_curve(
    curve: FittedSemivariogram, count: int, most: float, generator: torch.Generator
) -> torch.Tensor:
    """``count`` frequencies B of the law of ``curve``, none longer than ``most``, shortest first, [count, 2].

    In cycles per unit of GeoCLIP's projection.

    Raises:
        BundleError: the law of the curve's family is not known here, or nearly all of it is beyond ``most``.
    """
    exponent = {"Stable": curve.exponent, "Exponential": 1.0, "Gaussian": 2.0}.get(curve.family)
    if curve.metric != "planar" or exponent is None:
        said = f"a planar Stable, Exponential or Gaussian curve, not {curve.metric} {curve.family}"
        mend = "set semivariogram.family or training.frequencies=geoclip"
        raise BundleError(f"training.frequencies=curve needs {said}; {mend}")
    length = curve.model().len_rescaled * UNITS_PER_RAD
    found = torch.empty(0, 2, dtype=torch.float64)
    for _ in range(1_000):
        normal = torch.randn(4 * count, 2, generator=generator, dtype=torch.float64) * math.sqrt(2.0)
        root = positive_stable(exponent / 2.0, 4 * count, generator).sqrt()[:, None]
        drawn = root * normal / (2.0 * math.pi * length)
        found = torch.cat((found, drawn[drawn.norm(dim=1) <= most]))
        if len(found) >= count:
            return found[:count][found[:count].norm(dim=1).argsort()].float()
    said = f"beyond {most:.3g}, the highest that the training places can tell"
    raise BundleError(f"the curve's frequencies lie {said}; set training.frequencies=geoclip")


def positive_stable(b: float, count: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` draws A > 0 with E exp(-s A) = exp(-s^b), 0 < b <= 1, float64. Source: Kanter 1975."""
    uniform = math.pi * torch.rand(count, generator=generator, dtype=torch.float64).clamp(min=1e-12)
    waiting = torch.empty(count, dtype=torch.float64).exponential_(generator=generator)
    if b == 1.0:
        return torch.ones(count, dtype=torch.float64)
    ratio = ((1.0 - b) * uniform).sin() / waiting
    return (b * uniform).sin() / uniform.sin() ** (1.0 / b) * ratio ** ((1.0 - b) / b)


def on_disc(count: int, radius: float, generator: torch.Generator) -> torch.Tensor:
    """``count`` frequencies uniform over a disc of ``radius``, shortest first, [count, 2]. Ours."""
    length = radius * torch.rand(count, generator=generator, dtype=torch.float64).sqrt().sort().values
    angle = 2.0 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    return (length[:, None] * torch.stack((angle.cos(), angle.sin()), 1)).float()


def nyquist(places_deg: np.ndarray) -> float:
    """Highest frequency that places [N, 2] can tell, in cycles per unit of the projection: 1 / (2 s).

    s is the side of the square that each place would have alone at the median density, which follows from the
    median distance to the ``NEIGHBOURS``-th neighbour: with it lambda pi distance^2 is a gamma variable.
    Places within 11 m of each other count once, so that copies and short sequences hardly matter. A single
    place is a BundleError.
    """
    points = unit_vectors(np.unique(np.round(np.asarray(places_deg, dtype=np.float64), 4), axis=0))
    if (k := min(NEIGHBOURS, len(points) - 1)) < 1:
        raise BundleError("frequencies need two places or more; set training.frequencies=geoclip")
    chord = np.median(KDTree(points).query(points, k=[k + 1])[0])
    spacing_rad = float(chord_to_rad(chord**2)) * math.sqrt(math.pi / stats.gamma(k).median())
    return 1.0 / (2.0 * spacing_rad * UNITS_PER_RAD)


def hand_set(sigmas: Sequence[float], count: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` frequencies for each of ``sigmas`` in turn, N(0, sigma^2 I) as GeoCLIP draws them, [*, 2]."""
    return torch.cat([sigma * torch.randn(count, 2, generator=generator) for sigma in sigmas])


def of_capsules(encoder: torch.nn.Module) -> list[torch.Tensor]:
    """The frequencies of each capsule of a location encoder, [256, 2] each in GeoCLIP's own."""
    return [getattr(encoder, f"LocEnc{number}").capsule[0].b for number in range(encoder.n)]


@torch.no_grad()
def set_in(encoder: torch.nn.Module, frequencies: torch.Tensor) -> None:
    """Give the capsules of geoclip's location ``encoder`` these ``frequencies`` [F, 2], in order."""
    for own, part in zip(of_capsules(encoder), frequencies.chunk(encoder.n), strict=True):
        own.copy_(part)
