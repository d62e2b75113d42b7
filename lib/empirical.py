"""The empirical semivariogram: sums over pairs of photos by lag, of all pairs or of a sample.

Convention: gamma, not 2 gamma. With unit features u the cosine distance d_ij = 1 - u_i . u_j equals half of
||u_i - u_j||^2, so its mean over the pairs of a lag is Matheron's classical semivariogram of the feature field, summed
over its dimensions (method.md, section 3). Lags are in radians; an empty lag is NaN, not 0.

All pairs cost one matrix product, tile by tile, and a fifth of that again to put the tile's pairs into their lags.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch

from lib import ranks
from lib.geodesy import chord_to_rad, rad_to_km, unit_vectors
from lib.runs import progress
from lib.shells import Shell

NEAR_RAD = 0.064
"""Up to here a sample's shells double in width, so that the shortest lags, where the nugget is read off, are not left empty."""
PAIRS_AT_A_TIME = 1_024
"""Pairs of a sample whose features are brought together at a time."""
BLOCKS_AT_A_TIME = 8
"""Blocks of photos that are held while the others pass by them one at a time."""


class SemivariogramError(ValueError):
    """A semivariogram cannot be estimated, fitted or read; the message says why and what to do."""


@dataclass(frozen=True)
class EmpiricalSemivariogram:
    """Sums over the pairs of each lag; the sums of parts, blocks or machines add up.

    Attributes:
        lag_width_rad: width of a lag; lag k holds the pairs with k width <= h < (k + 1) width.
        pairs: [K] number of pairs.
        distance_sum_rad: [K] sum of the pairs' distances h.
        gamma_sum: [K] sum of the dissimilarities d.
        square_sum: [K] sum of d**2.
    """

    lag_width_rad: float
    pairs: np.ndarray
    distance_sum_rad: np.ndarray
    gamma_sum: np.ndarray
    square_sum: np.ndarray

    @classmethod
    def empty(cls, lag_width_rad: float) -> EmpiricalSemivariogram:
        """No pairs, in the lags from 0 to pi."""
        lags = lag_count(lag_width_rad)
        return cls(lag_width_rad, np.zeros(lags, dtype=np.int64), *(np.zeros(lags) for _ in range(3)))

    def over_ranks(self) -> EmpiricalSemivariogram:
        """The sum of what the ranks have."""
        sums = ranks.total(np.stack((self.pairs, self.distance_sum_rad, self.gamma_sum, self.square_sum)))
        return EmpiricalSemivariogram(self.lag_width_rad, sums[0].astype(np.int64), *sums[1:])

    def __add__(self, other: EmpiricalSemivariogram) -> EmpiricalSemivariogram:
        if self.lag_width_rad != other.lag_width_rad or len(self.pairs) != len(other.pairs):
            raise SemivariogramError("two semivariograms add up only over the same lags")
        names = ("pairs", "distance_sum_rad", "gamma_sum", "square_sum")
        return EmpiricalSemivariogram(
            self.lag_width_rad, *(getattr(self, name) + getattr(other, name) for name in names)
        )

    @property
    def lag_rad(self) -> np.ndarray:
        """[K] mean distance of each lag's pairs, radians; NaN where there are none."""
        return self._mean(self.distance_sum_rad)

    @property
    def gamma(self) -> np.ndarray:
        """[K] mean dissimilarity of each lag, 0..2; NaN where there are no pairs."""
        return self._mean(self.gamma_sum)

    @property
    def variance(self) -> np.ndarray:
        """[K] variance of the dissimilarity within each lag; NaN where there are no pairs."""
        return np.maximum(self._mean(self.square_sum) - self.gamma**2, 0.0)

    @property
    def standard_error(self) -> np.ndarray:
        """[K] standard error of each lag's ``gamma`` where its pairs are a uniform sample (:func:`sampled`); NaN below two pairs.

        It is towards the mean over all pairs of these photos, not towards that of other photos, whose pairs share places.
        """
        return np.where(self.pairs > 1, np.sqrt(self.variance / np.maximum(self.pairs - 1, 1)), np.nan)

    def _mean(self, total: np.ndarray) -> np.ndarray:
        return np.divide(total, self.pairs, out=np.full(len(total), np.nan), where=self.pairs > 0)

    def coarsened(self, factor: int) -> EmpiricalSemivariogram:
        """The same sums over lags ``factor`` times as wide, for drawing."""
        starts = np.arange(0, len(self.pairs), factor)
        sums = (self.pairs, self.distance_sum_rad, self.gamma_sum, self.square_sum)
        return EmpiricalSemivariogram(self.lag_width_rad * factor, *(np.add.reduceat(total, starts) for total in sums))

    def table(self) -> pd.DataFrame:
        """Columns lag_km, gamma, variance, pairs; lags without pairs are left out."""
        frame = pd.DataFrame(
            {"lag_km": rad_to_km(self.lag_rad), "gamma": self.gamma, "variance": self.variance, "pairs": self.pairs}
        )
        return frame[frame["pairs"] > 0].reset_index(drop=True)


def lag_count(width_rad: float) -> int:
    """Number of lags of ``width_rad`` from 0 to pi."""
    return max(1, math.ceil(math.pi / width_rad - 1e-9))


def _lag_of(distance_rad: torch.Tensor, width: float, lags: int) -> torch.Tensor:
    return (distance_rad / width).long().clamp_(max=lags - 1)


def _of_pairs(distance_rad: torch.Tensor, dissimilarity: torch.Tensor, width: float) -> EmpiricalSemivariogram:
    """Sums over the given pairs, both tensors flat [P], on any device."""
    lags, dissimilarity = lag_count(width), dissimilarity.double()
    lag = _lag_of(distance_rad, width, lags)
    sums = [torch.bincount(lag, weights, lags) for weights in (distance_rad, dissimilarity, dissimilarity**2)]
    return EmpiricalSemivariogram(width, *(one.cpu().numpy() for one in (torch.bincount(lag, minlength=lags), *sums)))


UnitRows = Callable[[np.ndarray], torch.Tensor]
"""Row numbers [n] -> unit features, float32 [n, D]."""


@dataclass(frozen=True)
class _Tiles:
    """What the tiles of an exact estimate have in common; ``points`` [3, N]."""

    unit_rows: UnitRows
    points: torch.Tensor
    width: float
    block: int

    def rows(self, first: int, count: int) -> torch.Tensor:
        """Unit features of up to ``count`` photos from row ``first``."""
        rows = np.arange(first, min(first + count, self.points.shape[1]))
        return self.unit_rows(rows).to(self.points.device)

    def across(self, left: torch.Tensor, first: int, second: int) -> EmpiricalSemivariogram:
        """Sums over the pairs of the photos from row ``first``, whose features are ``left``, with the block from ``second``."""
        held = first <= second < first + len(left)
        right = left[second - first :][: self.block] if held else self.rows(second, self.block)
        total = EmpiricalSemivariogram.empty(self.width)
        for start in range(first, min(first + len(left), second + 1), self.block):
            product = left[start - first :][: self.block] @ right.T
            total = total + (self._binned(product, start, second) if product.device.type == "cpu" else self._counted(product, start, second))
        return total

    def _binned(self, product: torch.Tensor, start: int, second: int) -> EmpiricalSemivariogram:
        from lib import binning

        sums = np.zeros((lag_count(self.width), 4))
        left, right = (np.ascontiguousarray(self.points[:, row : row + count].numpy()) for row, count in zip((start, second), product.shape, strict=True))
        binning.add_tile(product.numpy(), left, right, self.width, second - start, sums)
        return EmpiricalSemivariogram(self.width, sums[:, 0].astype(np.int64), *sums[:, 1:].T)

    def _counted(self, product: torch.Tensor, start: int, second: int) -> EmpiricalSemivariogram:
        left, right = (self.points[:, row : row + count] for row, count in zip((start, second), product.shape, strict=True))
        distance = chord_to_rad(2.0 - 2.0 * (left.T @ right))
        once = torch.ones_like(product, dtype=torch.bool).triu_(start + 1 - second)
        return _of_pairs(distance[once], 1.0 - product[once], self.width)


def estimate(
    unit_rows: UnitRows,
    coordinates_deg: np.ndarray,
    lag_width_rad: float = 0.001,
    *,
    max_pairs: int = 200_000_000,
    sample_pairs: int = 20_000_000,
    seed: int = 0,
    device: torch.device | str = "cpu",
    among_ranks: bool = False,
) -> EmpiricalSemivariogram:
    """Empirical semivariogram of N photos: :func:`exact` while there are at most ``max_pairs`` pairs, else :func:`sampled`.

    Args:
        unit_rows: reads unit features of rows 0..N-1.
        coordinates_deg: [N, 2] latitude and longitude.
        among_ranks: share the pairs out among the ranks, all of which call this and get the same sums.

    Raises:
        SemivariogramError: fewer than two photos.
        ValueError: a coordinate or feature is not finite.
    """
    count = len(coordinates_deg)
    if count * (count - 1) // 2 <= max_pairs:
        return exact(unit_rows, coordinates_deg, lag_width_rad, device=device, among_ranks=among_ranks)
    return sampled(unit_rows, coordinates_deg, lag_width_rad, pairs=sample_pairs, seed=seed, device=device, among_ranks=among_ranks)


def exact(
    unit_rows: UnitRows,
    coordinates_deg: np.ndarray,
    lag_width_rad: float = 0.001,
    *,
    block: int | None = None,
    device: torch.device | str = "cpu",
    among_ranks: bool = False,
) -> EmpiricalSemivariogram:
    """Empirical semivariogram of N photos over all N (N - 1) / 2 pairs; arguments and errors as in :func:`estimate`.

    Args:
        block: rows of a block; None: 512, on a GPU 4,096. Held beyond ``BLOCKS_AT_A_TIME`` blocks of features, whatever N: a block
            and 4 ``block``**2 bytes a thread, on a GPU about 60 ``block``**2.

    Source: equation of method.md, section 3; the author code builds N x N matrices and masks them lag by lag.
    """
    points, device = _points(coordinates_deg), torch.device(device)
    block = block or (512 if device.type == "cpu" else 4_096)
    tiles = _Tiles(unit_rows, torch.from_numpy(points.T.copy()).to(device), lag_width_rad, block)
    starts = range(0, len(points), block * BLOCKS_AT_A_TIME)
    mine = starts[ranks.rank() :: ranks.count()] if among_ranks else starts
    total = EmpiricalSemivariogram.empty(lag_width_rad)
    with _one_thread_each(device) as pool:
        for first in progress(mine, "semivariogram", len(mine)):
            left = _finite(tiles.rows(first, block * BLOCKS_AT_A_TIME))
            for part in pool(partial(tiles.across, left, first), range(first, len(points), block)):
                total = total + part
    return total.over_ranks() if among_ranks else total


def sampled(
    unit_rows: UnitRows,
    coordinates_deg: np.ndarray,
    lag_width_rad: float = 0.001,
    *,
    pairs: int = 20_000_000,
    seed: int = 0,
    device: torch.device | str = "cpu",
    among_ranks: bool = False,
) -> EmpiricalSemivariogram:
    """Empirical semivariogram of N photos over about ``pairs`` pairs drawn at random; arguments and errors as in :func:`estimate`.

    Half of them lie within ``NEAR_RAD``, shared out evenly among shells that double in width, half beyond. In each lag the pairs are a
    uniform sample of its pairs, drawn with replacement, or all of them: its mean is unbiased, and its error is
    :attr:`EmpiricalSemivariogram.standard_error`. Uniform pairs alone would leave the short lags nearly empty. Reads about two rows a
    pair, in ascending order within some thousand pairs, and holds no more at a time.
    """
    points, total = _points(coordinates_deg), EmpiricalSemivariogram.empty(lag_width_rad)
    parts = ((shell, chunk) for shell in _shells(points, lag_width_rad, pairs, seed) for chunk in range(shell.chunks))
    mine = itertools.islice(parts, ranks.rank(), None, ranks.count()) if among_ranks else parts
    with _one_thread_each(device) as pool:
        for part in progress(pool(partial(_of_chunk, unit_rows, lag_width_rad, device), mine), "semivariogram"):
            total = total + part
    return total.over_ranks() if among_ranks else total


def _of_chunk(unit_rows: UnitRows, width: float, device: torch.device | str, part: tuple[Shell, int]) -> EmpiricalSemivariogram:
    """Sums over the pairs of a shell's chunk; their products are made some at a time, in the cache."""
    shell, chunk = part
    left, right, distance = shell.pairs(chunk)
    rows, place = np.unique(np.concatenate((left, right)), return_inverse=True)
    unit = _finite(unit_rows(rows)).to(device)
    pairs = torch.from_numpy(place).view(2, len(left)).to(device).split(PAIRS_AT_A_TIME, 1)
    products = torch.cat([torch.linalg.vecdot(unit[first], unit[second]) for first, second in pairs])
    return _of_pairs(torch.from_numpy(distance).to(device), 1.0 - products, width)


def _shells(points: np.ndarray, width: float, pairs: int, seed: int) -> Iterator[Shell]:
    """Shells of lags from 0 to pi: as long as they are near, each as wide as all before it; then one of the rest. Made one by one."""
    lags = lag_count(width)
    edges = [0, 1] if lags > 1 else [0]
    while edges[-1] and 2 * edges[-1] * width <= NEAR_RAD:
        edges.append(2 * edges[-1])
    for ends in itertools.pairwise(edges):
        yield Shell.of(points, width, range(*ends), pairs // (2 * len(edges) - 2), seed)
    yield Shell.of(points, width, range(edges[-1], lags), pairs // 2, seed)


def _points(coordinates_deg: np.ndarray) -> np.ndarray:
    """Unit vectors [N, 3] of two places or more."""
    if len(coordinates_deg) < 2:
        raise SemivariogramError(f"a semivariogram needs at least two photos; there are {len(coordinates_deg)}")
    if not np.isfinite(coordinates_deg).all():
        raise ValueError("a coordinate is not finite; check the manifest")
    return unit_vectors(coordinates_deg)


@contextmanager
def _one_thread_each(device: torch.device | str) -> Iterator[Callable]:
    """``map`` over as many threads as torch has, each with one of them; a GPU needs only one.

    Binning does not use several threads by itself, so a second tile is worked on meanwhile. Results come in order.
    """
    threads = torch.get_num_threads()
    if torch.device(device).type != "cpu" or threads == 1:
        yield map
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield lambda function, items: _ahead(pool, function, items, 2 * threads)
    finally:
        torch.set_num_threads(threads)  # its matrix products' threads are the process's, not the thread's


def _ahead(pool: ThreadPoolExecutor, function: Callable, items: Iterable, ahead: int) -> Iterator:
    """``pool.map`` that is at most ``ahead`` results ahead of whoever reads them."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _finite(rows: torch.Tensor) -> torch.Tensor:
    if not torch.isfinite(rows).all():
        raise ValueError("a feature is not finite; extract the features again (notebook 01, --fresh)")
    return rows
