"""The empirical semivariogram: sums over pairs of photos by lag.

gamma_hat(k) is the mean of d_ij over the pairs whose distance h_ij lies in lag k: gamma, not 2 gamma. With
unit features u the cosine distance d_ij = 1 - u_i . u_j equals half of ||u_i - u_j||^2, so this is Matheron's
classical semivariogram of the feature field, summed over its dimensions (docs/semivariograms.md). Lags are in
radians; an empty lag is NaN, not 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch

from .errors import BundleError
from .geodesy import check_degrees, chord_to_rad, rad_to_km, unit_vectors

if TYPE_CHECKING:
    import pandas as pd

BLOCKS_AT_A_TIME = 8  # held in memory while the other blocks are read one by one
SUMS = ("pairs", "distance_sum_rad", "gamma_sum", "square_sum")
QUANTUM = 2.0**-26
"""Distances and dissimilarities are rounded to this on a GPU: sums below 2**53 quanta are exact."""


@dataclass(frozen=True)
class EmpiricalSemivariogram:
    """Sums over the pairs of each lag, [K] each: number of pairs, distance h, dissimilarity d, and d**2.

    Lag k holds the pairs with k ``lag_width_rad`` <= h < (k + 1) ``lag_width_rad``.
    """

    lag_width_rad: float
    pairs: np.ndarray
    distance_sum_rad: np.ndarray
    gamma_sum: np.ndarray
    square_sum: np.ndarray

    @property
    def lag_rad(self) -> np.ndarray:
        """[K] mean distance of each lag's pairs, radians; NaN where there are none."""
        return self._mean(self.distance_sum_rad)

    @property
    def gamma(self) -> np.ndarray:
        """[K] mean dissimilarity of each lag, 0..2; NaN where there are no pairs."""
        return self._mean(self.gamma_sum)

    def _mean(self, total: np.ndarray) -> np.ndarray:
        return np.divide(total, self.pairs, out=np.full(len(total), np.nan), where=self.pairs > 0)

    def coarsened(self, factor: int) -> EmpiricalSemivariogram:
        """The same sums over lags ``factor`` times as wide, for drawing."""
        starts = np.arange(0, len(self.pairs), factor)
        sums = (np.add.reduceat(getattr(self, name), starts) for name in SUMS)
        return EmpiricalSemivariogram(self.lag_width_rad * factor, *sums)

    def table(self) -> pd.DataFrame:
        """Columns lag_km, gamma, variance, pairs; lags without pairs are left out."""
        import pandas as pd

        variance = np.maximum(self._mean(self.square_sum) - self.gamma**2, 0.0)
        columns = {"lag_km": rad_to_km(self.lag_rad), "gamma": self.gamma, "variance": variance}
        frame = pd.DataFrame(columns | {"pairs": self.pairs})
        return frame[frame["pairs"] > 0].reset_index(drop=True)


def lag_count(width_rad: float) -> int:
    """Number of lags of ``width_rad`` from 0 to pi."""
    if not width_rad > 0.0:
        raise BundleError(f"lag_width_rad={width_rad}: a lag is wider than 0 radians")
    return max(1, math.ceil(math.pi / width_rad - 1e-9))


def sum_by_lag(lag: torch.Tensor, values: torch.Tensor, lags: int) -> torch.Tensor:
    """Sums of ``values`` [P], each at most 4, by their ``lag``, int64 [P]; float64 [lags], P < 2**25.

    A GPU adds in any order. Whole quanta have an exact sum, so every order gives the same bits.
    """
    quanta = (values.double() / QUANTUM).round_()
    sums = torch.zeros(lags, dtype=torch.float64, device=lag.device)
    return sums.index_add_(0, lag, quanta).mul_(QUANTUM)


def of_tile(
    product: torch.Tensor, left: torch.Tensor, right: torch.Tensor, width: float, ahead: int
) -> np.ndarray:
    """Sums [4, K], in the order of ``SUMS``, over the pairs i < j of a tile ``product`` u_i . u_j [n, m].

    ``left`` [3, n] and ``right`` [3, m] are unit vectors of the places, ``width`` that of a lag in radians;
    ``ahead`` is the number of rows from the left block's first photo to the right block's. On any device.
    """
    once, lags = torch.ones_like(product, dtype=torch.bool).triu_(1 - ahead), lag_count(width)
    distance, dissimilarity = chord_to_rad(2.0 - 2.0 * (left.T @ right))[once], (1.0 - product[once]).double()
    lag = (distance / width).long().clamp_(max=lags - 1)
    sums = [sum_by_lag(lag, one, lags) for one in (distance, dissimilarity, dissimilarity**2)]
    return torch.stack([torch.bincount(lag, minlength=lags).double(), *sums]).cpu().numpy()


def exact(
    unit_rows: Callable[[np.ndarray], torch.Tensor], coordinates_deg: np.ndarray, lag_width_rad: float = 1e-3,
    *, block: int | None = None, device: torch.device | str = "cpu",
    progress: Callable[[range], Iterable[int]] = iter,
) -> EmpiricalSemivariogram:  # fmt: skip
    """Empirical semivariogram of N photos over all N (N - 1) / 2 pairs.

    Args:
        unit_rows: row numbers 0..N-1 [n] -> unit features, float32 [n, D]; called from several threads.
        coordinates_deg: [N, 2] latitude and longitude.
        block: rows of a block, at most 4,096; None: 512, on a GPU 4,096. Memory, whatever N: nine blocks of
            features, and 4 ``block``**2 bytes a thread, on a GPU about 60 ``block``**2.
        progress: a progress bar around the first rows of the blocks that are held.

    Raises:
        BundleError: fewer than two photos, or a coordinate or feature that is not finite.

    Source: Matheron 1962.
    """
    photos, device = len(coordinates_deg), torch.device(device)
    if photos < 2:
        raise BundleError(f"a semivariogram needs at least two photos; there are {photos}")
    check_degrees(coordinates_deg)
    points = torch.from_numpy(unit_vectors(coordinates_deg).T.copy()).to(device)
    block = block or (512 if device.type == "cpu" else 4_096)
    sums_of_tile, total = _fastest(device), np.zeros((4, lag_count(lag_width_rad)))

    def rows(first: int, count: int) -> torch.Tensor:
        return unit_rows(np.arange(first, min(first + count, photos))).to(device)

    def against(first: int, held: torch.Tensor, second: int) -> np.ndarray:
        """Sums over the pairs of the rows ``held`` (from ``first``) with the block from ``second``."""
        is_held = second < first + len(held)
        right = held[second - first :][:block] if is_held else rows(second, block)
        sums = np.zeros_like(total)
        for start in range(first, min(first + len(held), second + 1), block):
            product = held[start - first :][:block] @ right.T
            here, there = points[:, start : start + len(product)], points[:, second : second + len(right)]
            sums += sums_of_tile(product, here, there, lag_width_rad, second - start)
        return sums

    with _one_thread_each(torch.get_num_threads() if device.type == "cpu" else 1) as pool:
        for first in progress(range(0, photos, block * BLOCKS_AT_A_TIME)):
            held = rows(first, block * BLOCKS_AT_A_TIME)
            if not torch.isfinite(held).all():
                raise BundleError("a feature is not finite; look for NaN, or extract again")
            for sums in pool.map(partial(against, first, held), range(first, photos, block)):
                total += sums
    return EmpiricalSemivariogram(lag_width_rad, total[0].astype(np.int64), *total[1:])


def draw_photos(count: int, limit: int, seed: int = 0) -> np.ndarray:
    """Ascending rows of ``limit`` of ``count`` photos, drawn at random; all rows where there are no more."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def _fastest(device: torch.device) -> Callable[..., np.ndarray]:
    """:func:`of_tile`, or :func:`.binning.of_tile` on a processor with numba."""
    if device.type != "cpu" or find_spec("numba") is None:
        return of_tile
    from . import binning  # numba takes a second to import

    return binning.of_tile


@contextmanager
def _one_thread_each(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that each bin a tile for themselves, with one of torch's threads; a GPU needs only one."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # the number for matrix products is the process's, not the thread's
