"""Bins the pairs of a tile of photos by lag with numba, in a fifth of the time of the tile's matrix product.

Imported when pairs are binned, since numba takes a second to import and to compile this.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial

from .empirical import lag_count

COMPILED = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nnan", "ninf", "nsz", "arcp"}}
"""No flag changes the order of a sum, so the same tile gives the same bits."""


def _arcsine(degree: int = 12) -> tuple[float, ...]:
    """Coefficients in y of asin(sqrt(y)) / sqrt(y), 0 <= y <= 1/2, to 2e-12. A polynomial is vectorised."""
    fitted = Chebyshev.interpolate(lambda y: np.arcsin(np.sqrt(y)) / np.sqrt(y), degree, [0.0, 0.5])
    return tuple(fitted.convert(kind=Polynomial).coef)


ARCSINE = _arcsine()


@numba.njit(**COMPILED)
def distances(
    x: float, y: float, z: float, places: np.ndarray, width: float, distance: np.ndarray, lag: np.ndarray
) -> None:
    """Write ``distance`` [m], radians, from (x, y, z) to unit vectors ``places`` [3, m], and ``lag`` [m].

    Haversine formula; beyond a right angle from the antipode, so that the arcsine's argument stays small.
    """
    for j in range(places.shape[1]):
        east, north, up = places[0, j] - x, places[1, j] - y, places[2, j] - z
        haversine = 0.25 * (east * east + north * north + up * up)
        is_far = haversine > 0.5
        rest = max(1.0 - haversine if is_far else haversine, 0.0)
        value = 0.0
        for power in range(len(ARCSINE) - 1, -1, -1):
            value = value * rest + ARCSINE[power]
        angle = 2.0 * math.sqrt(rest) * value
        angle = math.pi - angle if is_far else angle
        distance[j] = angle
        lag[j] = np.int32(angle / width)


@numba.njit(**COMPILED)
def add_tile(
    product: np.ndarray, left: np.ndarray, right: np.ndarray, width: float, ahead: int, sums: np.ndarray
) -> None:
    """Add the pairs i < j of a tile to ``sums`` [K, 4], of each lag: pairs, h, d, d**2.

    Other arguments as in :func:`.empirical.of_tile`, as arrays; ``product`` is float32.
    """
    last = len(sums) - 1
    distance, lag = np.empty(product.shape[1]), np.empty(product.shape[1], np.int32)
    for i in range(len(product)):
        distances(left[0, i], left[1, i], left[2, i], right, width, distance, lag)
        for j in range(max(0, i + 1 - ahead), product.shape[1]):
            row, dissimilarity = min(lag[j], last), 1.0 - product[i, j]
            sums[row, 0] += 1.0
            sums[row, 1] += distance[j]
            sums[row, 2] += dissimilarity
            sums[row, 3] += dissimilarity * dissimilarity


def of_tile(
    product: torch.Tensor, left: torch.Tensor, right: torch.Tensor, width: float, ahead: int
) -> np.ndarray:
    """:func:`.empirical.of_tile` of tensors on the processor, five times as fast."""
    sums = np.zeros((lag_count(width), 4))
    places = (np.ascontiguousarray(points.numpy()) for points in (left, right))
    add_tile(product.numpy(), *places, width, ahead, sums)
    return sums.T
