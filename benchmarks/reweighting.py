"""What reweighting adds to a training step: ``semivariogram`` against ``infonce``, batch 512, and against
weights made in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import reference
from benchmarks.harness import Result, in_turn, row
from benchmarks.semivariogram import world
from lib import settings
from lib.data import features
from lib.data.draws import generator
from lib.method import negatives, semivariogram
from lib.method.loss import SemivariogramLoss
from lib.method.negatives import Strategy
from lib.runs import Run
from lib.train import training
from lib.train.checkpoints import initialise
from lib.train.training import Queue

SIZES = (0, 1_024, 2_048, 4_096)
BATCH = 512
SHARE = 0.05
CURVE = semivariogram.FittedSemivariogram(
    "Stable", "planar", 0.1, 0.85, 0.3, 0.8, 0.9, 5733.9, "slope", "none", 0.99, "synthetic", False, 4_608, 0
)


def data(count: int) -> training.TrainingData:
    """``count`` photos with features of 768 dimensions, all of them for training."""
    unit, coordinates = world(count)
    rows, frozen = np.arange(count), features.Features(unit.numpy(), torch.zeros(unit.shape[1]))
    places = torch.from_numpy(coordinates)
    return training.TrainingData(frozen, rows, rows[:0], places, coordinates, CURVE, 1.0)


def step(run: Run, of: training.TrainingData, queue_size: int, strategy: Strategy) -> Callable[[], float]:
    """A call that makes one step, forward and backward, against a full queue, and gives its loss."""
    device = run.device
    model = initialise(0, of.frozen.mean, of.scale, run.settings.training).to(device)
    queue = Queue.empty(queue_size, of.frozen.dimension, device)
    batch = run.settings.training.batch_size
    queued = torch.arange(batch, batch + queue_size)
    earlier = of.batch(1, queued.numpy(), slice(0, queue_size), device)
    queue.push(earlier.numbers, earlier.places_deg, earlier.features)
    noise = generator(0, "noise")
    parameters = {name: getattr(run.settings.training, name) for name in strategy.parameters}
    loss_of = SemivariogramLoss(of.curve, strategy, **parameters).to(device)

    def once() -> float:
        photos = of.batch(1, of.train_rows[:batch], slice(0, batch), device)
        loss, _ = training.loss_of_batch(model, queue, of, photos, loss_of, run, noise)
        model.zero_grad(set_to_none=True)
        loss.backward()
        return loss.item()

    return once


def run(sizes: Sequence[int], batch: int = BATCH) -> Result:
    """Measure each of ``sizes``, numbers of queued places. The floor is the same step with ``infonce``."""
    silent = ("training.precision=float32", "training.batch_noise_m=0", "training.queue_noise_m=0")
    own = Run(settings.load("smoke", (f"training.batch_size={batch}", *silent)), Path("."))
    photos = data(batch + max(sizes))
    ours, baseline = negatives.get("semivariogram"), negatives.get("infonce")
    plain = replace(ours, reweight=partial(reference.reweighting, CURVE))
    rows = []
    for size in sizes:
        calls = [step(own, photos, size, strategy) for strategy in (ours, plain, baseline)]
        for call in calls:
            call()  # the first one allocates
        found = in_turn(5, *calls)
        first = [step(own, photos, size, strategy)() for strategy in (ours, plain)]
        rows.append(row(size, found[0], found[1], abs(first[0] - first[1]), found[2]))
    goal = "batch 512, queue 4,096: a step at most 5 % above `infonce` (floor_ratio 1.05); reference: NumPy"
    return Result("reweighting", "queued places", goal, rows[-1].floor_ratio <= 1.0 + SHARE, rows)
