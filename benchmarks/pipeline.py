"""The stages of ``quick``, one after another: how long each takes, and whether it keeps the machine's cores
busy meanwhile."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.harness import Measured, Result, measure, row
from lib import settings
from lib.data import datasets, features
from lib.evaluate import evaluation
from lib.runs import Run
from lib.train import curve, training

SIZES = (1_125, 2_250, 4_500, 9_000)
BUSY = 0.8
SHORT_SECONDS = 2.0
"""A stage that is done sooner is not judged: reading and writing a file, one core can only wait for the
other."""


def stages(run: Run) -> dict[str, Callable[[], object]]:
    """What the notebooks 01 to 05 call, in their order."""
    return {
        "data": lambda: datasets.prepare(run),
        "features": lambda: features.extract(run),
        "semivariogram": lambda: curve.fit_run(run),
        "training": lambda: training.train_all(run, run.settings.training.strategies),
        "evaluation": lambda: evaluation.evaluate(run),
    }


def busy(call: Callable[[], object]) -> tuple[Measured, Measured]:
    """``call``, measured; and the seconds that it would take were all cores busy all the time."""
    before = os.times()
    found = measure(call)
    after = os.times()
    used = sum(after[:4]) - sum(before[:4])  # this process's and its children's, all but the elapsed time
    return found, Measured(None, used / len(os.sched_getaffinity(0)), None)


def run(sizes: Sequence[int]) -> Result:
    """Measure each of ``sizes``, photos: two thirds of them for training, one epoch with one seed; ``quick``
    has 18,000 and 12 epochs, 3 seeds."""
    rows = []
    for size in sizes:
        ninth = size // 9
        with tempfile.TemporaryDirectory() as folder:
            overrides = [f"dataset.root={folder}/photos", f"dataset.train={6 * ninth}"]
            overrides += [f"dataset.{split}={ninth}" for split in ("validation", "test", "test_blocked")]
            overrides += ["training.epochs=1", "training.validate_every=1", "training.seeds=0"]
            overrides += [f"training.batch_size={min(512, 2 * ninth)}"]
            own = Run(settings.load("quick", overrides), Path(folder) / "run")
            for part, call in stages(own).items():
                rows.append(row(size, *busy(call), None, part=part))
    long = [one for one in rows if one.size == max(sizes) and one.ours_seconds >= SHORT_SECONDS]
    goal = f"stages of `quick`, one epoch, one seed: cores busy (ratio) {BUSY} in each of {SHORT_SECONDS:g} s"
    return Result("pipeline", "photos", goal, all(one.ratio >= BUSY for one in long), rows)
