"""The empirical semivariogram of more photos than all pairs can be taken of: a sample of pairs, stratified by
distance.

Pairs of places by their distance: all those of a shell, or pairs drawn uniformly from it, without a matrix of
pairs.

Places are sorted into the cells of a grid in space, as wide as the shell's outer radius, so that every pair
of the shell lies in one cell or in two that touch. The candidates, pairs of such cells' places, are numbered;
a number gives its pair, and a uniform number a uniform pair.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from lib.method.empirical import (
    EmpiricalSemivariogram,
    UnitRows,
    exact,
    finite_rows,
    lag_count,
    of_pairs,
    points_of,
)
from lib.method.geodesy import chord_to_rad
from lib.runs import progress, ranks

NEAR_RAD = 0.064
"""Up to here a sample's shells double in width, so that the shortest lags, where the nugget is read off, are
not left empty."""
PAIRS_AT_A_TIME = 1_024
"""Pairs of a sample whose features are brought together at a time."""
CANDIDATES_AT_A_TIME = 32_768
EXHAUSTED = 8
"""A shell with at most this many times as many candidates as pairs are wanted is gone through whole."""
LEAST_SHARE = 0.01
"""Drawing ends where fewer of the candidates than this turn out to lie in the shell; it then holds fewer
pairs than wanted."""
FINEST_SIDE = 1e-5
"""Smallest side of a cell, in radii of the sphere: the cells' numbers must fit 63 bits."""


@dataclass(frozen=True)
class Candidates:
    """Numbered pairs of N places, among them each pair that is nearer than a radius exactly once.

    Attributes:
        order: [N] places, cell by cell.
        start, size: [C] where a cell's places begin in ``order``, and how many they are.
        first, second: [P] cells of a pair of cells, ``first`` <= ``second``.
        ends: [P] candidates up to and including those of this pair of cells.
    """

    order: np.ndarray
    start: np.ndarray
    size: np.ndarray
    first: np.ndarray
    second: np.ndarray
    ends: np.ndarray

    @classmethod
    def of_all(cls, count: int) -> Candidates:
        """All pairs of ``count`` places."""
        none, all_places = np.zeros(1, dtype=np.int64), np.array([count], dtype=np.int64)
        return cls(np.arange(count), none, all_places, none, none, all_places**2)

    @classmethod
    def within(cls, points: np.ndarray, radius_rad: float) -> Candidates:
        """Those of ``points`` [N, 3], unit vectors, that hold every pair nearer than ``radius_rad``."""
        side = max(2.0 * math.sin(min(radius_rad, math.pi) / 2.0), FINEST_SIDE) * (1.0 + 1e-9)
        # one empty cell beyond each end, so that no neighbour is of another row
        across = math.floor(2.0 / side) + 3
        weight = np.array([across**2, across, 1], dtype=np.int64)
        key = (np.floor((points + 1.0) / side).astype(np.int64) + 1) @ weight
        order = np.argsort(key, kind="stable")
        cells, start, size = np.unique(key[order], return_index=True, return_counts=True)
        first, second = [np.arange(len(cells), dtype=np.int32)], [np.arange(len(cells), dtype=np.int32)]
        for step in itertools.product((-1, 0, 1), repeat=3):
            if step <= (0, 0, 0):
                continue  # of two cells that touch, the one with the smaller number is the first
            wanted = cells + np.array(step) @ weight
            place = np.minimum(np.searchsorted(cells, wanted), len(cells) - 1)
            touching = np.flatnonzero(cells[place] == wanted)
            first.append(touching.astype(np.int32))
            second.append(place[touching].astype(np.int32))
        first, second = np.concatenate(first), np.concatenate(second)
        return cls(order, start, size, first, second, np.cumsum(size[first] * size[second]))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def pairs(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places left and right [n] of the candidates ``numbers``; fewer, as a cell's pairs with itself count
        once."""
        both = np.searchsorted(self.ends, numbers, "right")
        first, second = self.first[both], self.second[both]
        offset = numbers - (self.ends[both] - self.size[first] * self.size[second])
        left, right = (
            self.start[first] + offset // self.size[second],
            self.start[second] + offset % self.size[second],
        )
        once = left < right
        return self.order[left[once]], self.order[right[once]]


@dataclass(frozen=True)
class Shell:
    """The pairs whose lag, floor(h / width), lies in ``lags``: all of them, or a uniform sample, some at a
    time.

    Attributes:
        points: [N, 3] unit vectors.
        lags: from the first to below the last.
        chunks: how many times :meth:`pairs` can be asked.
        is_whole: the chunks together are all pairs of the shell, each once.
    """

    points: np.ndarray
    candidates: Candidates
    width_rad: float
    lags: range
    chunks: int
    is_whole: bool
    seed: tuple[int, ...]

    @classmethod
    def of(cls, points: np.ndarray, width_rad: float, lags: range, wanted: int, seed: int) -> Shell:
        """About ``wanted`` pairs of the shell ``lags`` of ``points``, or all that there are."""
        last = math.ceil(math.pi / width_rad)
        near = lags.stop < last
        candidates = (
            Candidates.within(points, lags.stop * width_rad) if near else Candidates.of_all(len(points))
        )
        if len(candidates) <= EXHAUSTED * wanted:
            return cls(
                points,
                candidates,
                width_rad,
                lags,
                -(-len(candidates) // CANDIDATES_AT_A_TIME),
                True,
                (seed, lags.start),
            )
        made = cls(points, candidates, width_rad, lags, 1, False, (seed, lags.start))
        share = max(LEAST_SHARE, len(made.pairs(0)[0]) / CANDIDATES_AT_A_TIME)
        return replace(made, chunks=max(1, round(wanted / (share * CANDIDATES_AT_A_TIME))))

    def pairs(self, chunk: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places left and right, and their distance in radians, [n] each: the ``chunk``-th part of the
        shell's pairs."""
        if self.is_whole:
            start = chunk * CANDIDATES_AT_A_TIME
            numbers = np.arange(start, min(start + CANDIDATES_AT_A_TIME, len(self.candidates)))
        else:
            drawn = np.random.default_rng((*self.seed, chunk))
            numbers = drawn.integers(len(self.candidates), size=CANDIDATES_AT_A_TIME)
        left, right = self.candidates.pairs(numbers)
        distance = chord_to_rad(((self.points[left] - self.points[right]) ** 2).sum(1))
        lag = np.floor(distance / self.width_rad)
        inside = (lag >= self.lags.start) & (
            (lag < self.lags.stop) | (self.lags.stop * self.width_rad >= math.pi)
        )
        return left[inside], right[inside], distance[inside]


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
    """Empirical semivariogram of N photos: :func:`exact` while there are at most ``max_pairs`` pairs, else
    :func:`sampled`.

    Args:
        unit_rows: reads unit features of rows 0..N-1.
        coordinates_deg: [N, 2] latitude and longitude.
        among_ranks: share the pairs out among the ranks, all of which call this and get the same sums.

    Raises:
        BundleError: fewer than two photos, or a coordinate or feature that is not finite.
    """
    count = len(coordinates_deg)
    if count * (count - 1) // 2 <= max_pairs:
        part = (ranks.rank(), ranks.count()) if among_ranks else (0, 1)

        def watch(starts: range) -> Iterator[int]:
            return progress(starts, "semivariogram", len(starts))

        tile = {}
        if torch.device(device).type == "cpu":
            from lib.data import binning  # numba takes a second to import

            tile = {"tile": binning.of_tile}
        with one_thread_each(device) as apply:
            hooks = {"part": part, "watch": watch, "apply": apply} | tile
            total = exact(unit_rows, coordinates_deg, lag_width_rad, device=device, **hooks)
        return over_ranks(total) if among_ranks else total
    drawn = {"pairs": sample_pairs, "seed": seed, "among_ranks": among_ranks}
    return sampled(unit_rows, coordinates_deg, lag_width_rad, **drawn)


def sampled(
    unit_rows: UnitRows,
    coordinates_deg: np.ndarray,
    lag_width_rad: float = 0.001,
    *,
    pairs: int = 20_000_000,
    seed: int = 0,
    among_ranks: bool = False,
) -> EmpiricalSemivariogram:
    """Empirical semivariogram of N photos over about ``pairs`` pairs drawn at random; arguments and errors as
    in :func:`estimate`.

    Half of them lie within ``NEAR_RAD``, shared out evenly among shells that double in width, half beyond. In
    each lag the pairs are a uniform sample of its pairs, drawn with replacement, or all of them: its mean is
    unbiased, and its error is :attr:`EmpiricalSemivariogram.standard_error`. Uniform pairs alone would leave
    the short lags nearly empty. Reads about two rows a pair, in ascending order within some thousand pairs,
    and holds no more at a time. Works on the processor's threads, also where there is a GPU: what takes time
    is the reading of rows.
    """
    points, total = points_of(coordinates_deg), EmpiricalSemivariogram.empty(lag_width_rad)
    parts = (
        (shell, chunk)
        for shell in _shells(points, lag_width_rad, pairs, seed)
        for chunk in range(shell.chunks)
    )
    mine = itertools.islice(parts, ranks.rank(), None, ranks.count()) if among_ranks else parts
    with one_thread_each("cpu") as pool:
        for part in progress(pool(partial(_of_chunk, unit_rows, lag_width_rad), mine), "semivariogram"):
            total = total + part
    return over_ranks(total) if among_ranks else total


def _of_chunk(unit_rows: UnitRows, width: float, part: tuple[Shell, int]) -> EmpiricalSemivariogram:
    """Sums over the pairs of a shell's chunk; their products are made some at a time, in the cache."""
    shell, chunk = part
    left, right, distance = shell.pairs(chunk)
    rows, place = np.unique(np.concatenate((left, right)), return_inverse=True)
    unit = finite_rows(unit_rows(rows)).cpu()
    pairs = torch.from_numpy(place).view(2, len(left)).split(PAIRS_AT_A_TIME, 1)
    products = torch.cat([torch.linalg.vecdot(unit[first], unit[second]) for first, second in pairs])
    return of_pairs(torch.from_numpy(distance), 1.0 - products, width)


def _shells(points: np.ndarray, width: float, pairs: int, seed: int) -> Iterator[Shell]:
    """Shells of lags from 0 to pi: as long as they are near, each as wide as all before it; then one of the
    rest. Made one by one."""
    lags = lag_count(width)
    edges = [0, 1] if lags > 1 else [0]
    while edges[-1] and 2 * edges[-1] * width <= NEAR_RAD:
        edges.append(2 * edges[-1])
    for ends in itertools.pairwise(edges):
        yield Shell.of(points, width, range(*ends), pairs // (2 * len(edges) - 2), seed)
    yield Shell.of(points, width, range(edges[-1], lags), pairs // 2, seed)


@contextmanager
def one_thread_each(device: torch.device | str) -> Iterator[Callable]:
    """``map`` over as many threads as torch has, each with one of them; a GPU needs only one.

    Binning does not use several threads by itself, so a second tile is worked on meanwhile. Results come in
    order.
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


def over_ranks(own: EmpiricalSemivariogram) -> EmpiricalSemivariogram:
    """The sum of what the ranks have."""
    sums = ranks.total(np.stack((own.pairs, own.distance_sum_rad, own.gamma_sum, own.square_sum)))
    return EmpiricalSemivariogram(own.lag_width_rad, sums[0].astype(np.int64), *sums[1:])
