"""A training step on cached features, against one that sends the photos through the frozen backbone again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Result, measure, row
from benchmarks.semivariogram import world
from lib import backbones, features, negatives, settings, training
from lib.model import Queue, initialise
from lib.runs import Run, generator

SIZES = (64, 128, 256, 512)


def run(sizes: Sequence[int]) -> Result:
    """Measure each of ``sizes``, photos in a batch, with ``decayed`` and no queue; the backbone is EfficientNet-Lite0 at 128 px."""
    overrides = ("backbone.name=efficientnet-lite0", "backbone.image_px=128", "backbone.precision=float32", "training.precision=float32",
                 "training.batch_noise_m=0")  # fmt: skip
    own = Run(settings.load("smoke", overrides), Path("."))
    device, backbone = own.device, backbones.build(own.settings.backbone, own.device)
    _, places = world(max(sizes), 8)
    images = torch.randn(max(sizes), 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        cached = torch.cat([backbone.encode(part.to(device)).float().cpu() for part in images.split(64)]).numpy()
    from benchmarks.reweighting import CURVE
    from lib.semivariogram import Curve

    frozen, numbers = features.Features(cached, torch.zeros(cached.shape[1])), np.arange(max(sizes))
    of = training.TrainingData(
        frozen, numbers, numbers[:0], torch.from_numpy(places), places, Curve(CURVE).to(device), 1.0, frozen.unit
    )
    rows = []
    for size in sizes:

        def step(again: bool, size: int = size) -> float:
            model = initialise(0, frozen.mean, 1.0, own.settings.training).to(device)
            batch, seen = training.Batch(1, numbers[:size]), of
            queue = Queue.empty(0, frozen.dimension, device)
            draws = training.Draws(generator(0, "noise"), generator(0, "shuffled weights"))

            def once() -> float:
                nonlocal seen
                if again:
                    with torch.inference_mode():
                        made = backbone.encode(images[:size].to(device)).float().cpu().numpy()
                    fresh = features.Features(made, frozen.mean)
                    seen = replace(of, frozen=fresh, looks=fresh.unit)
                loss, _ = training.loss_of_batch(model, queue, seen, batch, negatives.get("decayed"), own, draws)
                model.zero_grad(set_to_none=True)
                loss.backward()
                return loss.item()

            return once

        found = []
        for again in (False, True):
            call = step(again)
            call()
            found.append(measure(call, 3))
        rows.append(row(size, found[0], found[1], abs(found[0].value - found[1].value)))
    goal = "a step on cached features is faster than one that runs the frozen backbone again"
    return Result("training", "photos in a batch", goal, all(one.ratio > 1.0 for one in rows), rows)
