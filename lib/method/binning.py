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
_FITTED = Chebyshev.interpolate(lambda y: np.arcsin(np.sqrt(y)) / np.sqrt(y), 12, [0.0, 0.5])
ARCSINE = tuple(_FITTED.convert(kind=Polynomial).coef)
"""Coefficients in y of asin(sqrt(y)) / sqrt(y), 0 <= y <= 1/2, to 2e-12. A polynomial is vectorised."""


@numba.njit(**COMPILED)
def add_tile(
    product: np.ndarray, left: np.ndarray, right: np.ndarray, width: float, ahead: int, sums: np.ndarray
) -> None:
    """Add the pairs i < j of a tile to ``sums`` [K, 4]; other arguments as of :func:`of_tile`, as arrays."""
    last = len(sums) - 1
    distance, lag = np.empty(product.shape[1]), np.empty(product.shape[1], np.int32)
    for i in range(len(product)):
        x, y, z = left[0, i], left[1, i], left[2, i]
        for j in range(product.shape[1]):
            east, north, up = right[0, j] - x, right[1, j] - y, right[2, j] - z
            haversine = 0.25 * (east * east + north * north + up * up)
            is_far = haversine > 0.5  # then from the antipode, so that the arcsine's argument stays small
            rest = max(1.0 - haversine if is_far else haversine, 0.0)
            value = 0.0
            for power in range(len(ARCSINE) - 1, -1, -1):
                value = value * rest + ARCSINE[power]
            angle = 2.0 * math.sqrt(rest) * value
            distance[j] = math.pi - angle if is_far else angle
            lag[j] = np.int32(distance[j] / width)
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
