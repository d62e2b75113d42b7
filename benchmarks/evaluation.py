"""The bootstrap interval of a difference of median errors, three seeds: against resampling every photo."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks.harness import Result, in_turn, row
from lib.evaluate.intervals import LEVEL, median_of

SIZES = (2_000, 20_000, 210_000)
RESAMPLES, TIMES = 1_000, 20.0


def plain(ours: np.ndarray, theirs: np.ndarray, resamples: int) -> tuple[float, float]:
    """Ends of the interval: seeds and photos drawn anew, medians of all of them."""
    generator, drawn = np.random.default_rng(0), []
    for _ in range(resamples):
        some, photos = (generator.integers(size, size=size) for size in ours.shape)
        medians = [np.median(errors[np.ix_(some, photos)], 1).mean() for errors in (ours, theirs)]
        drawn.append(medians[0] - medians[1])
    return tuple(np.quantile(drawn, [0.5 - LEVEL / 2.0, 0.5 + LEVEL / 2.0]))


def run(sizes: Sequence[int], resamples: int = RESAMPLES) -> Result:
    """Measure each of ``sizes``, photos. The difference is that of the intervals' widths, as a share."""
    rows = []
    for count in sizes:
        drawn = np.random.default_rng(0)
        theirs = drawn.lognormal(6.0, 2.0, (3, count))
        ours = theirs * drawn.lognormal(0.0, 0.3, (3, count))
        found = in_turn(
            1, partial(median_of, ours, theirs, resamples), partial(plain, ours, theirs, resamples)
        )
        widths = found[0].value.high - found[0].value.low, found[1].value[1] - found[1].value[0]
        rows.append(row(count, *found, abs(widths[0] / widths[1] - 1.0)))
    goal = (
        f"20 times as fast at {sizes[-1]:,} photos as drawing and sorting all of them, {resamples} resamples"
    )
    return Result("evaluation", "photos", goal, rows[-1].ratio >= TIMES, rows)
